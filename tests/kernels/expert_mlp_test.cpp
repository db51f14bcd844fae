// The expert MLP against the CPU reference, its weights, and the products alone.

#include "kernels/expert_mlp.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/random.hpp"
#include "kernels/mlp_kernels.hpp"
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

std::vector<float> random_rows(std::size_t num_rows, std::size_t width, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x(num_rows * width);
  for (float& value : x) value = reference::round_to_bf16(static_cast<float>(random.normal()));
  return x;
}

// As quantise_weights() says: one scale per 128 x 128 block of [n][k], the values that it leaves.
std::vector<float> through_fp8(const std::vector<float>& w, std::size_t n, std::size_t k) {
  std::vector<float> result(w.size());
  for (std::size_t row = 0; row < n; row += 128) {
    for (std::size_t column = 0; column < k; column += 128) {
      float largest = 0.0F;
      const auto each = [&](const auto& act) {
        for (std::size_t r = row; r < row + 128; ++r) {
          for (std::size_t c = column; c < column + 128; ++c) act(r * k + c);
        }
      };
      each([&](std::size_t i) { largest = std::max(largest, std::fabs(w[i])); });
      const float scale = largest > 0.0F ? largest / 448.0F : 1.0F;
      each([&](std::size_t i) {
        result[i] = reference::from_e4m3(reference::to_e4m3(w[i] * (1.0F / scale))) * scale;
      });
    }
  }
  return result;
}

// The same for rows, one scale per 128 values. Unlike reference::dequantise, not rounded to BF16.
std::vector<float> row_through_fp8(std::span<const float> row) {
  const reference::QuantisedRow q = reference::quantise(row);
  std::vector<float> result;
  for (std::size_t i = 0; i < row.size(); ++i) {
    result.push_back(reference::from_e4m3(q.values[i]) * q.scales[i / 128]);
  }
  return result;
}

// expert_mlp() of the reference with FP8 factors: the rows that go into a product lose precision
// just before it; the products and the activation round to BF16 as ever.
std::vector<float> expert_mlp_fp8(const reference::MlpExpert& quantised, std::span<const float> x,
                                  std::uint32_t intermediate) {
  const auto product = [](std::span<const float> w, std::span<const float> v, std::size_t row) {
    double sum = 0.0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      sum += static_cast<double>(w[row * v.size() + i]) * static_cast<double>(v[i]);
    }
    return reference::round_to_bf16(static_cast<float>(sum));
  };
  const std::vector<float> in = row_through_fp8(x);
  std::vector<float> inner(intermediate);
  for (std::size_t i = 0; i < intermediate; ++i) {
    const float gate = product(quantised.weights[0], in, i);
    const float up = product(quantised.weights[1], in, i);
    inner[i] = reference::round_to_bf16(gate / (1.0F + std::exp(-gate)) * up);
  }
  const std::vector<float> activated = row_through_fp8(inner);
  std::vector<float> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = product(quantised.weights[2], activated, i);
  return y;
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

// Every way to multiply: the methods, and each tile of the build.
struct Way {
  std::string name;
  MlpOptions options;
};
std::vector<Way> all_ways() {
  std::vector<Way> ways{{"Auto", {}},
                        {"Grouped", {GemmMethod::kGrouped, GemmType::kBf16, std::nullopt}},
                        {"PerExpert", {GemmMethod::kPerExpert, GemmType::kBf16, std::nullopt}}};
  for (std::size_t t = 0; t < gemm_tiles().size(); ++t) {
    const GemmTile& tile = gemm_tiles()[t];
    ways.push_back({(tile.type == GemmType::kFp8 ? "Fp8Tile" : "Tile") + std::to_string(t),
                    {GemmMethod::kCutlass, tile.type, t}});
  }
  return ways;
}

class ExpertMlpTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    COTERIE_NEEDS_GPU();
    if (GetParam().options.method == GemmMethod::kCutlass && !grouped_gemm_available()) {
      GTEST_SKIP() << "the GPU of this machine is not of compute capability 9.0";
    }
  }
  static bool fp8() { return GetParam().options.type == GemmType::kFp8; }

  // The MLP of all slots, by the reference.
  static std::vector<float> expected(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                                     std::span<const std::uint32_t> experts,
                                     std::span<const std::uint32_t> begin,
                                     std::span<const float> x) {
    std::vector<float> result;
    for (std::size_t e = 0; e < experts.size(); ++e) {
      if (begin[e] == begin[e + 1]) continue;
      auto expert = expert_of(shape, seed, layer, experts[e]);
      if (fp8()) {
        for (auto& matrix : expert.weights) {
          const bool down = &matrix == &expert.weights[2];
          matrix = through_fp8(matrix, down ? shape.hidden : shape.intermediate,
                               down ? shape.intermediate : shape.hidden);
        }
      }
      for (std::size_t s = begin[e]; s < begin[e + 1]; ++s) {
        const auto row = x.subspan(s * shape.hidden, shape.hidden);
        const auto y = fp8() ? expert_mlp_fp8(expert, row, shape.intermediate)
                             : reference::expert_mlp(expert, row, shape.intermediate);
        result.insert(result.end(), y.begin(), y.end());
      }
    }
    return result;
  }
  // BF16 keeps 8 bits: three roundings on the way, each at most 2^-9 of its value; the reference
  // rounds at the same places, so what is left are rare roundings to the other neighbour. FP8 adds
  // roundings of the activation to the other neighbour of 4 bits: rare, but 1/16 of a value each.
  static double tolerance() { return fp8() ? 1e-2 : 5e-3; }
};

TEST_P(ExpertMlpTest, AgreesWithTheReference) {
  const MlpShape shape = fp8() ? MlpShape{256, 128} : MlpShape{256, 136};
  const std::vector<std::uint32_t> experts = {3, 40, 7, 12};
  const std::vector<std::uint32_t> begin = {0, 5, 5, 38, 39};  // an empty expert
  const std::vector<float> x = random_rows(39, shape.hidden, 11);
  const DeviceBuffer<Bf16> inputs{std::span<const Bf16>(to_device_type(x))};
  const auto outputs = poisoned<Bf16>(x.size());
  const Stream stream;
  ExpertMlp mlp(shape, 99, 2, experts, 64, GetParam().options);
  mlp.prepare(begin, inputs.data(), outputs.data());
  mlp.run(stream.get());
  stream.synchronize();
  EXPECT_LT(reference::relative_error(to_float(outputs.download()),
                                      expected(shape, 99, 2, experts, begin, x)),
            tolerance());
  EXPECT_NE(mlp.implementation(), "no slots");
}

// More rows and columns than any tile has, boundaries that no tile falls on, one expert with most
// of the rows, more experts than a warp has lanes. Rows behind the last slot must stay as they
// were.
TEST_P(ExpertMlpTest, AgreesOverSeveralTiles) {
  const MlpShape shape = fp8() ? MlpShape{384, 128} : MlpShape{392, 328};
  std::vector<std::uint32_t> experts;
  std::vector<std::uint32_t> begin = {0};
  for (std::uint32_t e = 0; e < 35; ++e) {
    experts.push_back(100 + e);
    begin.push_back(begin.back() + (e == 4 ? 531 : e * 7 % 5));
  }
  const std::size_t num_rows = begin.back();
  const std::vector<float> x = random_rows(num_rows, shape.hidden, 12);
  const DeviceBuffer<Bf16> inputs{std::span<const Bf16>(to_device_type(x))};
  const auto outputs = poisoned<Bf16>(x.size() + shape.hidden);
  const Stream stream;
  ExpertMlp mlp(shape, 5, 1, experts, 640, GetParam().options);
  mlp.prepare(begin, inputs.data(), outputs.data());
  mlp.run(stream.get());
  stream.synchronize();
  std::vector<float> found = to_float(outputs.download());
  for (std::size_t i = x.size(); i < found.size(); ++i) EXPECT_TRUE(std::isnan(found[i]));
  found.resize(x.size());
  EXPECT_LT(reference::relative_error(found, expected(shape, 5, 1, experts, begin, x)),
            tolerance());
}

TEST_P(ExpertMlpTest, NoSlotsIsNoWork) {
  const Stream stream;
  const std::vector<std::uint32_t> experts = {1, 2};
  ExpertMlp mlp({128, 128}, 1, 0, experts, 8, GetParam().options);
  mlp.prepare(std::vector<std::uint32_t>{0, 0, 0}, nullptr, nullptr);
  mlp.run(stream.get());
  stream.synchronize();
  EXPECT_EQ(mlp.implementation(), "no slots");
  EXPECT_THROW(mlp.prepare(std::vector<std::uint32_t>{0, 5, 9}, nullptr, nullptr),
               std::invalid_argument);
  EXPECT_THROW(mlp.prepare(std::vector<std::uint32_t>{0, 5, 4}, nullptr, nullptr),
               std::invalid_argument);
}

// One captured graph, replayed for other rows per expert: their number comes from device memory.
TEST_P(ExpertMlpTest, ReadsTheRowsOnTheDeviceAndCanBeCaptured) {
  const MlpShape shape{256, 128};
  const std::vector<std::uint32_t> experts = {3, 40, 7};
  const std::vector<float> x = random_rows(200, shape.hidden, 13);
  const DeviceBuffer<Bf16> inputs{std::span<const Bf16>(to_device_type(x))};
  auto outputs = poisoned<Bf16>(x.size());
  DeviceBuffer<std::uint32_t> begin(experts.size() + 1);
  ExpertMlp mlp(shape, 99, 2, experts, 200, GetParam().options);
  if (GetParam().options.method != GemmMethod::kCutlass) {
    if (GetParam().options.method != GemmMethod::kAuto || !grouped_gemm_available()) {
      EXPECT_THROW(mlp.prepare_on_device(begin.data(), 100, inputs.data(), outputs.data()),
                   std::invalid_argument);
      return;
    }
  }
  mlp.prepare_on_device(begin.data(), 100, inputs.data(), outputs.data());
  const Stream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
  mlp.run(stream.get());
  check(cudaStreamEndCapture(stream.get(), &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  for (const std::vector<std::uint32_t>& rows :
       {std::vector<std::uint32_t>{0, 150, 150, 200}, std::vector<std::uint32_t>{0, 3, 70, 71},
        std::vector<std::uint32_t>{0, 0, 0, 0}}) {
    begin.upload(rows);
    outputs.fill_bytes(0xff);
    check(cudaGraphLaunch(executable, stream.get()), "cudaGraphLaunch");
    stream.synchronize();
    std::vector<float> found = to_float(outputs.download());
    const std::size_t written = std::size_t{rows.back()} * shape.hidden;
    for (std::size_t i = written; i < found.size(); ++i) EXPECT_TRUE(std::isnan(found[i]));
    found.resize(written);
    if (written == 0) continue;
    EXPECT_LT(reference::relative_error(
                  found, expected(shape, 99, 2, experts, rows, std::span(x).first(written))),
              tolerance());
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

INSTANTIATE_TEST_SUITE_P(Ways, ExpertMlpTest, testing::ValuesIn(all_ways()),
                         [](const auto& instance) { return instance.param.name; });

// The reference's quantisation, row by row; the scales of an expert's rows lie together.
TEST(MlpKernels, QuantisesRowsAsTheReferenceDoes) {
  COTERIE_NEEDS_GPU();
  constexpr std::uint32_t kWidth = 384;
  const std::vector<std::uint32_t> begin = {0, 3, 3, 10};
  const std::vector<float> x = random_rows(10, kWidth, 3);
  const DeviceBuffer<Bf16> inputs{std::span<const Bf16>(to_device_type(x))};
  const DeviceBuffer<std::uint32_t> device_begin{std::span<const std::uint32_t>(begin)};
  const auto q = poisoned<E4m3>(x.size());
  const auto scales = poisoned<float>(10 * 3);
  const Stream stream;
  quantise_rows(inputs.data(), q.data(), scales.data(), kWidth, {device_begin.data(), 3, 16},
                stream.get());
  stream.synchronize();
  const auto found = q.download();
  const auto found_scales = scales.download();
  for (std::size_t row = 0; row < 10; ++row) {
    const auto expected = reference::quantise(std::span(x).subspan(row * kWidth, kWidth));
    const std::size_t e = row < 3 ? 0 : 2;
    for (std::size_t i = 0; i < kWidth; ++i) {
      EXPECT_EQ(found[row * kWidth + i], expected.values[i]) << row << ", " << i;
    }
    for (std::size_t b = 0; b < 3; ++b) {
      EXPECT_FLOAT_EQ(found_scales[begin[e] * 3 + b * (begin[e + 1] - begin[e]) + row - begin[e]],
                      expected.scales[b]);
    }
  }
}

TEST(MlpKernels, QuantisesWeightsByBlocks) {
  COTERIE_NEEDS_GPU();
  const std::vector<float> w = random_rows(256, 384, 4);
  const DeviceBuffer<Bf16> inputs{std::span<const Bf16>(to_device_type(w))};
  const auto q = poisoned<E4m3>(w.size());
  const auto scales = poisoned<float>(6);
  const Stream stream;
  quantise_weights(inputs.data(), q.data(), scales.data(), 256, 384, stream.get());
  stream.synchronize();
  const auto found = q.download();
  const auto found_scales = scales.download();
  std::vector<float> values;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const float scale = found_scales[i % 384 / 128 * 2 + i / 384 / 128];
    values.push_back(reference::from_e4m3(found[i]) * scale);
  }
  EXPECT_LT(reference::relative_error(values, through_fp8(w, 256, 384)), 1e-6);
}

// No GPU needed: what the options cannot give is refused by name.
TEST(ExpertMlp, RefusesWhatTheBuildOrTheGpuCannotDo) {
  if (grouped_gemm_available()) GTEST_SKIP() << "this machine has all of it";
  if (num_gpus() == 0) GTEST_SKIP() << "no GPU on this machine";
  const std::vector<std::uint32_t> experts = {1, 2};
  EXPECT_THROW(
      ExpertMlp({128, 128}, 1, 0, experts, 8, {GemmMethod::kAuto, GemmType::kFp8, std::nullopt}),
      std::invalid_argument);
  EXPECT_THROW(ExpertMlp({128, 128}, 1, 0, experts, 8,
                         {GemmMethod::kCutlass, GemmType::kBf16, std::nullopt}),
               std::invalid_argument);
}

// No GPU needed. What the rule says for rows counted by hand: 100 rows fill 128 of the middle tile,
// 128 of the low one and 256 of the tall one, so the fastest tile of 128 wins; 512 rows fill every
// tile, so the tall one wins; 1 row goes to the low one; and 300 rows are 384 (middle) or 512
// (tall), which the tall tile's higher rate does not make up for.
TEST(ChooseTile, WeighsFilledRowsAgainstTheRate) {
  using Rows = std::vector<std::uint32_t>;
  if (gemm_tiles().empty()) {
    EXPECT_THROW(choose_tile(GemmType::kBf16, Rows{100}), std::invalid_argument);
    return;
  }
  const auto rows_of = [](GemmType type, const Rows& rows) {
    const GemmTile& tile = gemm_tiles()[choose_tile(type, rows)];
    EXPECT_EQ(tile.type, type);
    return tile.rows;
  };
  EXPECT_EQ(rows_of(GemmType::kBf16, {1, 0, 64}), 64U);
  EXPECT_EQ(rows_of(GemmType::kBf16, {100, 128}), 128U);
  EXPECT_EQ(rows_of(GemmType::kBf16, {512, 768}), 256U);
  EXPECT_EQ(rows_of(GemmType::kBf16, {300, 300}), 128U);
  EXPECT_EQ(rows_of(GemmType::kFp8, {1}), 64U);
  EXPECT_EQ(rows_of(GemmType::kFp8, {128}), 128U);
}

}  // namespace
}  // namespace coterie::kernels
