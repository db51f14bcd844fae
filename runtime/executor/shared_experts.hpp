#pragma once
// The shared experts of a layer: every token passes through all of them, on its own rank, in the
// MLP phase; their sum joins the routed experts' in the sum phase.
//
//   y[t] = sum over the routed experts (dispatch, MLP, combine) + MLP_shared(x[t])
//
// S shared experts of width I are computed as one expert of width S * I, which is their sum. Its
// weights are those of kernels::expert_weight for the shape {hidden, S * I} and the id below. Own
// tokens do not travel: x is BF16 also where rows are dispatched in FP8.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/expert_mlp.hpp"
#include "runtime/executor/executor.hpp"

namespace coterie {

// Stands for all shared experts of a layer; no routed expert has this number.
inline constexpr std::uint32_t kSharedExpert = 0xffffffffU;

// On the CPU, in float: outputs[i] += MLP_shared(rows[i]). Does nothing without shared experts.
void add_shared_outputs(const LayerShape& shape, std::uint32_t layer,
                        std::span<const std::span<const kernels::Bf16>> rows,
                        std::vector<std::vector<float>>& outputs);

// On the GPU: the shared experts of one layer with the memory for their result. An object made for
// a shape without shared experts, or for no tokens, does nothing.
class SharedExperts {
 public:
  SharedExperts() = default;
  // `tokens`: [num_tokens][hidden] on the device; must outlive the object. Draws the weights
  // (synchronises the device).
  SharedExperts(const LayerShape& shape, std::uint32_t layer, const kernels::Bf16* tokens,
                std::uint32_t num_tokens);

  // Enqueues the products.
  void run(cudaStream_t stream);
  // [num_tokens][hidden], to be added to the sum of the routed experts; null where there is nothing
  // to add.
  [[nodiscard]] const kernels::Bf16* outputs() const { return outputs_.data(); }
  // As kernels::ExpertMlp::implementation; "none" without shared experts.
  [[nodiscard]] std::string implementation() const;

 private:
  std::optional<kernels::ExpertMlp> mlp_;
  kernels::DeviceBuffer<kernels::Bf16> outputs_;
};

}  // namespace coterie
