#include "runtime/executor/shared_experts.hpp"

#include "runtime/executor/reference.hpp"

namespace coterie {
namespace {

kernels::MlpShape shared_shape(const LayerShape& shape) {
  return {shape.mlp.hidden, shape.shared_intermediate};
}

}  // namespace

void add_shared_outputs(const LayerShape& shape, std::uint32_t layer,
                        std::span<const std::span<const kernels::Bf16>> rows,
                        std::vector<std::vector<float>>& outputs) {
  if (shape.shared_intermediate == 0) return;
  std::vector<TokenRequest> requests;
  for (const auto& row : rows) {
    requests.push_back({wire_values(row, kernels::RowType::kBf16), {kSharedExpert}, {1.0F}});
  }
  const auto shared = reference_outputs(shared_shape(shape), shape.seed, layer, requests);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    for (std::size_t h = 0; h < shape.mlp.hidden; ++h) outputs[i][h] += shared[i][h];
  }
}

SharedExperts::SharedExperts(const LayerShape& shape, std::uint32_t layer,
                             const kernels::Bf16* tokens, std::uint32_t num_tokens) {
  if (shape.shared_intermediate == 0 || num_tokens == 0) return;
  outputs_ = kernels::DeviceBuffer<kernels::Bf16>(std::size_t{num_tokens} * shape.mlp.hidden);
  const std::uint32_t experts[] = {kSharedExpert};
  const std::uint32_t begin[] = {0, num_tokens};
  mlp_.emplace(shared_shape(shape), shape.seed, layer, experts, num_tokens);
  mlp_->prepare(begin, tokens, outputs_.data());
}

void SharedExperts::run(cudaStream_t stream) {
  if (mlp_.has_value()) mlp_->run(stream);
}

std::string SharedExperts::implementation() const {
  return mlp_.has_value() ? mlp_->implementation() : "none";
}

}  // namespace coterie
