#include <array>
#include <stdexcept>

#include "kernels/grouped_gemm.hpp"

namespace coterie::kernels {
namespace sm90 {
namespace {

// One thread per group: where its rows, weights, results and scales lie. Any grid that covers them.
__global__ void fill_group_tables(GroupedProduct product, unsigned element_bytes, bool scaled,
                                  GroupTables tables, const std::uint32_t* begin) {
  const unsigned g = blockIdx.x * blockDim.x + threadIdx.x;
  if (g >= product.num_groups) return;
  const std::size_t n = product.n;
  const std::size_t k = product.k;
  const std::size_t first = begin[g];
  tables.problems[3 * g] = static_cast<std::int32_t>(begin[g + 1] - begin[g]);
  tables.problems[3 * g + 1] = static_cast<std::int32_t>(n);
  tables.problems[3 * g + 2] = static_cast<std::int32_t>(k);
  tables.x[g] = static_cast<const char*>(product.x) + first * k * element_bytes;
  tables.w[g] = static_cast<const char*>(product.w) + g * n * k * element_bytes;
  tables.y[g] = product.y + first * n;
  if (scaled) {
    const std::size_t k_blocks = k / kGemmScaleBlock;
    tables.x_scales[g] = product.x_scales + first * k_blocks;
    tables.w_scales[g] = product.w_scales + g * k_blocks * (n / kGemmScaleBlock);
  }
}

}  // namespace

void write_group_tables(const GroupedProduct& product, GemmType type, const GroupTables& tables,
                        const std::uint32_t* begin, cudaStream_t stream) {
  constexpr unsigned kThreads = 128;
  const bool fp8 = type == GemmType::kFp8;
  fill_group_tables<<<(product.num_groups + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      product, fp8 ? 1 : 2, fp8, tables, begin);
  check_launch("fill_group_tables");
}

#ifdef COTERIE_CUTLASS_VERSION
std::unique_ptr<GroupedGemm> make_bf16_128x256_c21(const GroupedProduct& product);
std::unique_ptr<GroupedGemm> make_bf16_128x128_pp_c12(const GroupedProduct& product);
std::unique_ptr<GroupedGemm> make_bf16_64x128_pp_c12(const GroupedProduct& product);
std::unique_ptr<GroupedGemm> make_fp8_128x128_c12(const GroupedProduct& product);
std::unique_ptr<GroupedGemm> make_fp8_64x128_pp_c12(const GroupedProduct& product);
#endif

}  // namespace sm90

#ifdef COTERIE_CUTLASS_VERSION
std::span<const GemmTile> gemm_tiles() {
  static const std::array tiles{
      GemmTile{"128x256 cooperative, cluster 2x1", GemmType::kBf16, 256, 690.0,
               &sm90::make_bf16_128x256_c21},
      GemmTile{"128x128 pingpong, cluster 1x2", GemmType::kBf16, 128, 610.0,
               &sm90::make_bf16_128x128_pp_c12},
      GemmTile{"64x128 pingpong, cluster 1x2", GemmType::kBf16, 64, 440.0,
               &sm90::make_bf16_64x128_pp_c12},
      GemmTile{"128x128 cooperative, cluster 1x2", GemmType::kFp8, 128, 900.0,
               &sm90::make_fp8_128x128_c12},
      GemmTile{"64x128 pingpong, cluster 1x2", GemmType::kFp8, 64, 760.0,
               &sm90::make_fp8_64x128_pp_c12},
  };
  return tiles;
}
std::string cutlass_version() {
  return "CUTLASS " COTERIE_CUTLASS_VERSION;
}
bool grouped_gemm_available() {
  if (num_gpus() == 0) return false;
  int device = 0;
  int major = 0;
  int minor = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "cudaDeviceGetAttribute");
  return major == 9 && minor == 0;
}
#else
std::span<const GemmTile> gemm_tiles() {
  return {};
}
std::string cutlass_version() {
  return {};
}
bool grouped_gemm_available() {
  return false;
}
#endif

std::size_t choose_tile(GemmType type, std::span<const std::uint32_t> group_rows) {
  const std::span<const GemmTile> tiles = gemm_tiles();
  std::size_t best = tiles.size();
  double least = 0.0;
  for (std::size_t t = 0; t < tiles.size(); ++t) {
    if (tiles[t].type != type) continue;
    std::uint64_t filled = 0;
    for (const std::uint64_t rows : group_rows) {
      filled += (rows + tiles[t].rows - 1) / tiles[t].rows * tiles[t].rows;
    }
    const double time = static_cast<double>(filled) / tiles[t].tflops;
    if (best == tiles.size() || time < least) {
      best = t;
      least = time;
    }
  }
  if (best == tiles.size()) throw std::invalid_argument("choose_tile: the build has no such tile");
  return best;
}

}  // namespace coterie::kernels
