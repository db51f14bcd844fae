#pragma once
// The experts of one rank: y = W_down (silu(W_gate x) * (W_up x)), BF16 or FP8 with float
// accumulation. Weights are drawn on the device from (seed, layer, expert id) alone, so that every
// placement computes with the same experts.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/cuda.hpp"
#include "kernels/grouped_gemm.hpp"

namespace coterie::kernels {

struct MlpShape {
  std::uint32_t hidden;        // a multiple of 8; for FP8 of 128
  std::uint32_t intermediate;  // likewise
};

// Uniform weight in (-sqrt(3/n), sqrt(3/n)), n the length of the dot product it stands in, so that
// a product keeps the variance of its input. `matrix` is 0 gate, 1 up, 2 down; `element` counts row
// major in [intermediate][hidden] (gate, up) or [hidden][intermediate] (down). Rounded to BF16.
float expert_weight(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                    std::uint32_t expert, std::uint32_t matrix, std::uint64_t element);

// How the products are computed; all give the same result up to summation order.
enum class GemmMethod : std::uint8_t {
  // One expert: kPerExpert. Several: kCutlass where grouped_gemm_available(), with the tile that
  // choose_tile() names; otherwise the faster of kGrouped and kPerExpert, measured by prepare() for
  // each of the two products.
  kAuto,
  kCutlass,    // one persistent kernel for all experts (grouped_gemm.hpp); the only one for FP8
  kGrouped,    // one cublasGemmGroupedBatchedEx for all experts
  kPerExpert,  // one cublasGemmEx per expert
};

struct MlpOptions {
  GemmMethod method = GemmMethod::kAuto;
  // FP8: both factors of both products in e4m3 with scales per 128 (grouped_gemm.hpp). Inputs and
  // outputs stay BF16; quantising them is part of the run. Needs grouped_gemm_available().
  GemmType type = GemmType::kBf16;
  std::optional<std::size_t> tile = std::nullopt;  // into gemm_tiles(), instead of choose_tile()
};

// What the layers of one rank can share, because they run one after the other: a cuBLAS handle and
// the memory for what lies between the products, 6 * max_rows * intermediate bytes for BF16.
class MlpScratch {
 public:
  MlpScratch(const MlpShape& shape, std::uint32_t max_rows, GemmType type = GemmType::kBf16);
  ~MlpScratch();
  MlpScratch(const MlpScratch&) = delete;
  MlpScratch& operator=(const MlpScratch&) = delete;

 private:
  friend class ExpertMlp;
  struct State;
  std::unique_ptr<State> state_;
};

// The experts of one layer on one rank. Not thread safe.
class ExpertMlp {
 public:
  // `experts`: ids in the order of the slots' groups. Allocates 6 * experts * hidden * intermediate
  // bytes (half of that for FP8) and draws the weights (synchronises the device). Throws
  // std::invalid_argument for a shape, scratch or option that does not fit.
  ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
            std::span<const std::uint32_t> experts, std::shared_ptr<MlpScratch> scratch,
            const MlpOptions& options = {});
  // With scratch of its own for up to `max_rows` slots.
  ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
            std::span<const std::uint32_t> experts, std::uint32_t max_rows,
            const MlpOptions& options = {});
  ~ExpertMlp();
  ExpertMlp(ExpertMlp&&) noexcept;
  ExpertMlp& operator=(ExpertMlp&&) noexcept;

  // Prepares `run` for these slots: expert_begin (host, [experts + 1], as in ReceiveIndex), and the
  // addresses of both arrays, [expert_begin.back()][hidden]. Blocking; call it outside timed parts.
  // Where it measures (kAuto), it overwrites the outputs.
  void prepare(std::span<const std::uint32_t> expert_begin, const Bf16* inputs, Bf16* outputs);
  // The same with expert_begin in device memory, read by every run; expert_begin[experts] must not
  // exceed the scratch's rows. `expected_rows_per_expert` only guides the choice of the tile. For
  // CUTLASS alone: throws std::invalid_argument where the options or the GPU give another method.
  void prepare_on_device(const std::uint32_t* expert_begin, std::uint32_t expected_rows_per_expert,
                         const Bf16* inputs, Bf16* outputs);
  // Enqueues outputs[s] = MLP of the slot's expert (inputs[s]). Experts without slots are skipped.
  // Layers that share scratch must run on one stream, or be ordered by events. By CUTLASS, and by
  // one cuBLAS product per expert, it can be captured in a CUDA graph.
  void run(cudaStream_t stream);

  // How the prepared products are computed, for reports: "CUTLASS 4.2.0 sm_90a grouped BF16,
  // 128x256 cooperative, cluster 2x1"; "cuBLAS BF16, gate and up by one grouped product, down by
  // ...". "no slots" where there is nothing to do.
  [[nodiscard]] std::string implementation() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coterie::kernels
