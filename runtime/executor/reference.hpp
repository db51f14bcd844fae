#pragma once
// What a layer must compute, on the CPU in float: the tokens that a run starts from, and the output
// of chosen tokens. Shares nothing with the kernels but the definition of an expert's weights.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/expert_mlp.hpp"
#include "kernels/layout.hpp"

namespace coterie {

// [num_tokens][hidden], uniform in (-sqrt 3, sqrt 3) (variance 1), the same on every machine.
std::vector<kernels::Bf16> make_tokens(std::uint64_t seed, std::uint32_t rank,
                                       std::uint32_t num_tokens, std::uint32_t hidden);

// The row as its receiver reads it: BF16 unchanged; FP8 through e4m3 with one scale per 128 values.
std::vector<float> wire_values(std::span<const kernels::Bf16> row, kernels::RowType type);

// One token, and the experts and router weights it asks for.
struct TokenRequest {
  std::vector<float> values;  // [hidden]
  std::vector<std::uint32_t> experts;
  std::vector<float> weights;
};

// outputs[i] = sum over the experts e of request i of weight * MLP_e(values). Draws each expert's
// weights once. FP8: both factors of every product go through e4m3, rows with one scale per 128
// values, weights with one per 128 x 128 (kernels/mlp_kernels.hpp); hidden and intermediate are then
// multiples of 128.
std::vector<std::vector<float>> reference_outputs(
    const kernels::MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
    std::span<const TokenRequest> requests, kernels::GemmType type = kernels::GemmType::kBf16);

// Squared norms of a difference and of what it is compared with; sums over ranks add up.
struct ErrorNorm {
  double difference = 0.0;
  double reference = 0.0;
  void add(float value, float expected) {
    const double d = static_cast<double>(value) - static_cast<double>(expected);
    difference += d * d;
    reference += static_cast<double>(expected) * static_cast<double>(expected);
  }
  void add(const ErrorNorm& other) {
    difference += other.difference;
    reference += other.reference;
  }
  // ||value - expected|| / ||expected||; NaN where either holds one.
  [[nodiscard]] double relative() const;
};

}  // namespace coterie
