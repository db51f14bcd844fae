#pragma once
// The experts of one rank: y = W_down (silu(W_gate x) * (W_up x)), BF16 with float accumulation,
// the products by cuBLAS. Weights are drawn on the device from (seed, layer, expert id) alone, so
// that every placement computes with the same experts.

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/cuda.hpp"

namespace coterie::kernels {

struct MlpShape {
  std::uint32_t hidden;        // a multiple of 8
  std::uint32_t intermediate;  // a multiple of 8
};

// Uniform weight in (-sqrt(3/n), sqrt(3/n)), n the length of the dot product it stands in, so that
// a product keeps the variance of its input. `matrix` is 0 gate, 1 up, 2 down; `element` counts row
// major in [intermediate][hidden] (gate, up) or [hidden][intermediate] (down).
float expert_weight(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                    std::uint32_t expert, std::uint32_t matrix, std::uint64_t element);

// cuBLAS's way to multiply: both give the same result up to summation order.
enum class GemmMethod : std::uint8_t {
  kGrouped,    // one cublasGemmGroupedBatchedEx for all experts
  kPerExpert,  // one cublasGemmEx per expert
};

// What the layers of one rank can share, because they run one after the other: a cuBLAS handle and
// 6 * max_rows * intermediate bytes for the products inside the MLP.
class MlpScratch {
 public:
  MlpScratch(std::uint32_t intermediate, std::uint32_t max_rows);
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
  // bytes and draws the weights (synchronises the device).
  ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
            std::span<const std::uint32_t> experts, std::shared_ptr<MlpScratch> scratch,
            GemmMethod method = GemmMethod::kGrouped);
  // With scratch of its own for up to `max_rows` slots.
  ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
            std::span<const std::uint32_t> experts, std::uint32_t max_rows,
            GemmMethod method = GemmMethod::kGrouped);
  ~ExpertMlp();
  ExpertMlp(ExpertMlp&&) noexcept;
  ExpertMlp& operator=(ExpertMlp&&) noexcept;

  // Prepares `run` for these slots: expert_begin (host, [experts + 1], as in ReceiveIndex), and the
  // addresses of both arrays, [expert_begin.back()][hidden]. Blocking; call it outside timed parts.
  void prepare(std::span<const std::uint32_t> expert_begin, const Bf16* inputs, Bf16* outputs);
  // Enqueues outputs[s] = MLP of the slot's expert (inputs[s]). Experts without slots are skipped.
  // Layers that share scratch must run on one stream, or be ordered by events.
  void run(cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coterie::kernels
