// The expert MLP against the CPU reference, and its weights.

#include "kernels/expert_mlp.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/random.hpp"
#include "kernels/reference.hpp"
#include "tests/kernels/gpu.hpp"

namespace coterie::kernels {
namespace {

reference::MlpExpert expert_of(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                               std::uint32_t expert) {
  reference::MlpExpert result;
  for (std::uint32_t matrix = 0; matrix < 3; ++matrix) {
    for (std::uint64_t i = 0; i < std::uint64_t{shape.hidden} * shape.intermediate; ++i) {
      result.weights[matrix].push_back(expert_weight(shape, seed, layer, expert, matrix, i));
    }
  }
  return result;
}

// A uniform draw on (-L, L) has mean 0 and variance L^2 / 3, here 1 / length of the dot product.
// No GPU needed. Standard error of the mean at 262144 draws: 0.002 standard deviations.
TEST(ExpertWeight, HasTheVarianceItPromises) {
  const MlpShape shape{512, 256};
  for (std::uint32_t matrix = 0; matrix < 3; ++matrix) {
    double sum = 0.0;
    double squares = 0.0;
    constexpr int kDraws = 1 << 18;
    for (std::uint64_t i = 0; i < kDraws; ++i) {
      const auto weight = static_cast<double>(expert_weight(shape, 5, 3, 17, matrix, i));
      sum += weight;
      squares += weight * weight;
    }
    const double variance = 1.0 / (matrix == 2 ? 256 : 512);
    EXPECT_NEAR(sum / kDraws / std::sqrt(variance), 0.0, 0.01);
    EXPECT_NEAR(squares / kDraws / variance, 1.0, 0.01);
  }
}

TEST(ExpertWeight, DependsOnEveryArgument) {
  const MlpShape shape{512, 256};
  const float one = expert_weight(shape, 5, 3, 17, 0, 9);
  EXPECT_NE(one, expert_weight(shape, 6, 3, 17, 0, 9));
  EXPECT_NE(one, expert_weight(shape, 5, 4, 17, 0, 9));
  EXPECT_NE(one, expert_weight(shape, 5, 3, 18, 0, 9));
  EXPECT_NE(one, expert_weight(shape, 5, 3, 17, 1, 9));
  EXPECT_NE(one, expert_weight(shape, 5, 3, 17, 0, 10));
}

class ExpertMlpTest : public testing::TestWithParam<GemmMethod> {};

// BF16 keeps 8 bits: three roundings on the way, each at most 2^-9 of its value; the reference
// rounds at the same places, so what is left are rare roundings to the other neighbour.
TEST_P(ExpertMlpTest, AgreesWithTheReference) {
  COTERIE_NEEDS_GPU();
  const MlpShape shape{256, 136};
  const std::vector<std::uint32_t> experts = {3, 40, 7, 12};
  const std::vector<std::uint32_t> begin = {0, 5, 5, 38, 39};  // an empty expert
  Random random(11);
  std::vector<float> x(std::size_t{39} * shape.hidden);
  for (float& value : x) value = reference::round_to_bf16(static_cast<float>(random.normal()));
  const DeviceBuffer<Bf16> inputs{std::span<const Bf16>(to_device_type(x))};
  const auto outputs = poisoned<Bf16>(x.size());
  const Stream stream;
  ExpertMlp mlp(shape, 99, 2, experts, 64, GetParam());
  mlp.prepare(begin, inputs.data(), outputs.data());
  mlp.run(stream.get());
  stream.synchronize();
  std::vector<float> expected;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const auto expert = expert_of(shape, 99, 2, experts[e]);
    for (std::size_t s = begin[e]; s < begin[e + 1]; ++s) {
      const auto y = reference::expert_mlp(
          expert, std::span(x).subspan(s * shape.hidden, shape.hidden), shape.intermediate);
      expected.insert(expected.end(), y.begin(), y.end());
    }
  }
  EXPECT_LT(reference::relative_error(to_float(outputs.download()), expected), 5e-3);
}

TEST_P(ExpertMlpTest, NoSlotsIsNoWork) {
  COTERIE_NEEDS_GPU();
  const Stream stream;
  const std::vector<std::uint32_t> experts = {1, 2};
  ExpertMlp mlp({64, 64}, 1, 0, experts, 8, GetParam());
  mlp.prepare(std::vector<std::uint32_t>{0, 0, 0}, nullptr, nullptr);
  mlp.run(stream.get());
  stream.synchronize();
  EXPECT_THROW(mlp.prepare(std::vector<std::uint32_t>{0, 5, 9}, nullptr, nullptr),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Methods, ExpertMlpTest,
                         testing::Values(GemmMethod::kGrouped, GemmMethod::kPerExpert),
                         [](const auto& instance) {
                           return instance.param == GemmMethod::kGrouped ? "Grouped" : "PerExpert";
                         });

}  // namespace
}  // namespace coterie::kernels
