#include "runtime/executor/reference.hpp"

#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/random.hpp"

namespace coterie {

std::vector<kernels::Bf16> make_tokens(std::uint64_t seed, std::uint32_t rank,
                                       std::uint32_t num_tokens, std::uint32_t hidden) {
  std::vector<kernels::Bf16> tokens(std::size_t{num_tokens} * hidden);
  const std::uint64_t stream = mix64(seed ^ mix64(std::uint64_t{rank} + 1));
  const double scale = 2.0 * std::sqrt(3.0) * 0x1p-64;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::uint64_t bits = mix64(stream + i);
    tokens[i] =
        __float2bfloat16(static_cast<float>(static_cast<double>(bits) * scale - std::sqrt(3.0)));
  }
  return tokens;
}

std::vector<float> wire_values(std::span<const kernels::Bf16> row, kernels::RowType type) {
  std::vector<float> values(row.size());
  for (std::size_t i = 0; i < row.size(); ++i) values[i] = __bfloat162float(row[i]);
  if (type == kernels::RowType::kBf16) return values;
  constexpr float kLargestE4m3 = 448.0F;
  for (std::size_t begin = 0; begin < values.size(); begin += kernels::kScaleGroup) {
    const std::size_t end = std::min<std::size_t>(begin + kernels::kScaleGroup, values.size());
    float largest = 0.0F;
    for (std::size_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float scale = largest > 0.0F ? largest / kLargestE4m3 : 1.0F;
    for (std::size_t i = begin; i < end; ++i) {
      const __nv_fp8_e4m3 quantised(values[i] * (1.0F / scale));
      // The receiver expands to BF16.
      values[i] = __bfloat162float(__float2bfloat16(static_cast<float>(quantised) * scale));
    }
  }
  return values;
}

namespace {

// [rows][columns] of one matrix of one expert, as BF16 holds it.
std::vector<float> draw_matrix(const kernels::MlpShape& shape, std::uint64_t seed,
                               std::uint32_t layer, std::uint32_t expert, std::uint32_t matrix) {
  std::vector<float> values(std::size_t{shape.hidden} * shape.intermediate);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = __bfloat162float(
        __float2bfloat16(kernels::expert_weight(shape, seed, layer, expert, matrix, i)));
  }
  return values;
}

float dot(const float* a, const float* b, std::size_t size) {
  // Independent partial sums: fast, and closer to the exact sum than one long chain.
  float sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0.0F;
  for (const float partial : sums) sum += partial;
  for (; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

std::vector<std::vector<float>> reference_outputs(const kernels::MlpShape& shape,
                                                  std::uint64_t seed, std::uint32_t layer,
                                                  std::span<const TokenRequest> requests) {
  std::vector<std::vector<float>> outputs(requests.size(), std::vector<float>(shape.hidden, 0.0F));
  std::map<std::uint32_t, std::vector<std::pair<std::size_t, float>>> uses;  // by expert
  for (std::size_t i = 0; i < requests.size(); ++i) {
    for (std::size_t j = 0; j < requests[i].experts.size(); ++j) {
      uses[requests[i].experts[j]].emplace_back(i, requests[i].weights[j]);
    }
  }
  for (const auto& [expert, users] : uses) {
    const std::vector<float> gate = draw_matrix(shape, seed, layer, expert, 0);
    const std::vector<float> up = draw_matrix(shape, seed, layer, expert, 1);
    const std::vector<float> down = draw_matrix(shape, seed, layer, expert, 2);
    std::vector<float> activated(shape.intermediate);
    for (const auto& [request, weight] : users) {
      const float* x = requests[request].values.data();
      for (std::size_t i = 0; i < shape.intermediate; ++i) {
        const float g = dot(&gate[i * shape.hidden], x, shape.hidden);
        const float u = dot(&up[i * shape.hidden], x, shape.hidden);
        activated[i] = g / (1.0F + std::exp(-g)) * u;
      }
      for (std::size_t h = 0; h < shape.hidden; ++h) {
        outputs[request][h] +=
            weight * dot(&down[h * shape.intermediate], activated.data(), shape.intermediate);
      }
    }
  }
  return outputs;
}

double ErrorNorm::relative() const {
  if (reference == 0.0 && difference == 0.0) return 0.0;
  return std::sqrt(difference / reference);
}

}  // namespace coterie
