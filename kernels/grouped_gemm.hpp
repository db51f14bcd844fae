#pragma once
// Grouped products on Hopper's tensor cores: y_g = x_g w_g^T for groups of rows that lie one after
// the other, by persistent CUTLASS kernels (3.x, sm_90a). The numbers of rows are read from device
// memory, so a product can be captured in a CUDA graph and replayed for other rows.
//
// CUTLASS is optional at build time. Without it, or on another GPU than compute capability 9.0,
// grouped_gemm_available() is false and the tiles cannot be made.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/cuda.hpp"

namespace coterie::kernels {

// The type of both factors. Sums are in float, results in BF16.
enum class GemmType : std::uint8_t {
  kBf16,
  kFp8,  // e4m3; x with a scale per row and 128 of k, w with a scale per 128 of n and 128 of k
};

// Values per scale along k, and along n in w.
inline constexpr std::uint32_t kGemmScaleBlock = 128;

// One product for all groups. Row major; group g has the rows [begin[g], begin[g + 1]) of x and y.
struct GroupedProduct {
  std::uint32_t num_groups = 0;
  std::uint32_t n = 0;      // a multiple of 8; for FP8 of 128
  std::uint32_t k = 0;      // a multiple of 8; for FP8 of 128
  const void* x = nullptr;  // [rows][k], 16-byte aligned
  const void* w = nullptr;  // [num_groups][n][k], 16-byte aligned
  Bf16* y = nullptr;        // [rows][n], 16-byte aligned
  // FP8 only. A value is its e4m3 number times its scale.
  const float* x_scales = nullptr;  // group g: [k / 128][rows of g], from begin[g] * k / 128 on
  const float* w_scales = nullptr;  // [num_groups][k / 128][n / 128]
};

// What a kernel reads about its groups; device memory, [num_groups] each.
struct GroupTables {
  std::int32_t* problems = nullptr;  // [num_groups][3]: rows, n, k
  const void** x = nullptr;
  const void** w = nullptr;
  void** y = nullptr;
  const float** x_scales = nullptr;
  const float** w_scales = nullptr;
};

// A product made ready to run. Not thread safe.
class GroupedGemm {
 public:
  GroupedGemm() = default;
  virtual ~GroupedGemm() = default;
  GroupedGemm(const GroupedGemm&) = delete;
  GroupedGemm& operator=(const GroupedGemm&) = delete;

  // Enqueues the reading of begin (device, [num_groups + 1]) for the runs that follow on the
  // stream.
  virtual void set_rows(const std::uint32_t* begin, cudaStream_t stream) = 0;
  // Enqueues the product for the rows set last.
  virtual void run(cudaStream_t stream) = 0;
};

// A compiled kernel. The name gives rows x columns of y per block of threads, how the warp groups
// of a block share them (cooperative: one tile at a time; pingpong: one each, in turn), and the
// cluster of blocks that share what they load.
struct GemmTile {
  std::string name;
  GemmType type;
  // Rows that a cluster computes at a time: a group's rows are filled up to a multiple of this.
  std::uint32_t rows;
  // Where all rows are filled and the arithmetic decides; measured, results/h200_mlp.md.
  double tflops;
  std::unique_ptr<GroupedGemm> (*make)(const GroupedProduct& product);
};

// The tile of that type whose filled rows take the least time at its rate, for groups of that many
// rows: an index into gemm_tiles(). Throws std::invalid_argument where the build has none.
std::size_t choose_tile(GemmType type, std::span<const std::uint32_t> group_rows);

// True if CUTLASS was found at build time and the current GPU has compute capability 9.0.
bool grouped_gemm_available();
// "CUTLASS 4.2.0", or empty where it was not found.
std::string cutlass_version();
// All tiles of this build; empty without CUTLASS.
std::span<const GemmTile> gemm_tiles();

}  // namespace coterie::kernels
