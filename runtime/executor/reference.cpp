#include "runtime/executor/reference.hpp"

#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <thread>

#include "core/parallel.hpp"
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

namespace {

float round_to_bf16(float value) {
  return __bfloat162float(__float2bfloat16(value));
}

// `num_rows` rows of `width` values each, `stride` values apart.
struct Tile {
  float* values;
  std::size_t num_rows, width, stride;
};

// Leaves what e4m3 with one scale for the whole tile makes of its values.
void through_e4m3(const Tile& tile) {
  constexpr float kLargestE4m3 = 448.0F;
  const auto each = [&](const auto& act) {
    for (std::size_t row = 0; row < tile.num_rows; ++row) {
      for (std::size_t i = 0; i < tile.width; ++i) act(tile.values[row * tile.stride + i]);
    }
  };
  float largest = 0.0F;
  each([&](float value) { largest = std::max(largest, std::fabs(value)); });
  const float scale = largest > 0.0F ? largest / kLargestE4m3 : 1.0F;
  const float reciprocal = 1.0F / scale;
  each(
      [&](float& value) { value = static_cast<float>(__nv_fp8_e4m3(value * reciprocal)) * scale; });
}

}  // namespace

std::vector<float> wire_values(std::span<const kernels::Bf16> row, kernels::RowType type) {
  std::vector<float> values(row.size());
  for (std::size_t i = 0; i < row.size(); ++i) values[i] = __bfloat162float(row[i]);
  if (type == kernels::RowType::kBf16) return values;
  for (std::size_t begin = 0; begin < values.size(); begin += kernels::kScaleGroup) {
    const std::size_t end = std::min<std::size_t>(begin + kernels::kScaleGroup, values.size());
    through_e4m3({&values[begin], 1, end - begin, 0});
    // The receiver expands to BF16.
    for (std::size_t i = begin; i < end; ++i) values[i] = round_to_bf16(values[i]);
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

// The whole matrix, one scale per tile of `num_rows` rows and 128 columns.
void through_e4m3(std::vector<float>& matrix, std::size_t columns, std::size_t num_rows) {
  constexpr std::size_t kBlock = kernels::kGemmScaleBlock;
  for (std::size_t begin = 0; begin < matrix.size(); begin += num_rows * columns) {
    for (std::size_t column = 0; column < columns; column += kBlock) {
      through_e4m3({&matrix[begin + column], num_rows, kBlock, columns});
    }
  }
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

constexpr unsigned kMaxThreads = 8;

// One expert's weights and what they make of a row.
class ReferenceExpert {
 public:
  ReferenceExpert(const kernels::MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                  std::uint32_t expert, kernels::GemmType type)
      : shape_(shape),
        fp8_(type == kernels::GemmType::kFp8),
        gate_(draw_matrix(shape, seed, layer, expert, 0)),
        up_(draw_matrix(shape, seed, layer, expert, 1)),
        down_(draw_matrix(shape, seed, layer, expert, 2)) {
    if (!fp8_) return;
    through_e4m3(gate_, shape.hidden, kernels::kGemmScaleBlock);
    through_e4m3(up_, shape.hidden, kernels::kGemmScaleBlock);
    through_e4m3(down_, shape.intermediate, kernels::kGemmScaleBlock);
  }

  [[nodiscard]] std::vector<float> output(std::vector<float> x) const {
    if (fp8_) through_e4m3(x, x.size(), 1);
    std::vector<float> activated(shape_.intermediate);
    for (std::size_t i = 0; i < shape_.intermediate; ++i) {
      float g = dot(&gate_[i * shape_.hidden], x.data(), shape_.hidden);
      float u = dot(&up_[i * shape_.hidden], x.data(), shape_.hidden);
      // e4m3 is so coarse that what is rounded before it must be rounded as the device does.
      if (fp8_) g = round_to_bf16(g), u = round_to_bf16(u);
      activated[i] = g / (1.0F + std::exp(-g)) * u;
      if (fp8_) activated[i] = round_to_bf16(activated[i]);
    }
    if (fp8_) through_e4m3(activated, activated.size(), 1);
    std::vector<float> result(shape_.hidden);
    for (std::size_t h = 0; h < shape_.hidden; ++h) {
      result[h] = dot(&down_[h * shape_.intermediate], activated.data(), shape_.intermediate);
    }
    return result;
  }

 private:
  kernels::MlpShape shape_;
  bool fp8_;
  std::vector<float> gate_, up_, down_;
};

}  // namespace

std::vector<std::vector<float>> reference_outputs(const kernels::MlpShape& shape,
                                                  std::uint64_t seed, std::uint32_t layer,
                                                  std::span<const TokenRequest> requests,
                                                  kernels::GemmType type) {
  std::vector<std::vector<float>> outputs(requests.size(), std::vector<float>(shape.hidden, 0.0F));
  // What expert e adds to request i, apart for every pair, so that the experts can be taken at once
  // and the sums still have one order.
  struct Use {
    std::size_t request;
    float weight;
    std::vector<float> output;
  };
  std::map<std::uint32_t, std::vector<Use>> uses;  // by expert
  for (std::size_t i = 0; i < requests.size(); ++i) {
    for (std::size_t j = 0; j < requests[i].experts.size(); ++j) {
      uses[requests[i].experts[j]].push_back({i, requests[i].weights[j], {}});
    }
  }
  std::vector<std::pair<std::uint32_t, std::vector<Use>*>> experts;
  for (auto& [expert, users] : uses) experts.emplace_back(expert, &users);
  // Drawing the weights takes most of the time; each thread holds those of one expert.
  const unsigned num_threads = std::clamp(std::thread::hardware_concurrency(), 1U, kMaxThreads);
  parallel_for(num_threads, experts.size(), [&](std::size_t e) {
    const ReferenceExpert weights(shape, seed, layer, experts[e].first, type);
    for (Use& use : *experts[e].second) use.output = weights.output(requests[use.request].values);
  });
  for (const auto& [expert, users] : experts) {
    for (const Use& use : *users) {
      for (std::size_t h = 0; h < shape.hidden; ++h) {
        outputs[use.request][h] += use.weight * use.output[h];
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
