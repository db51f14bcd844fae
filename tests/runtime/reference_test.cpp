// The CPU reference, against its definition written out once more for a tiny shape.

#include "runtime/executor/reference.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/reference.hpp"
#include "runtime/executor/shared_experts.hpp"

namespace coterie {
namespace {

TEST(Reference, OneExpertIsItsEquation) {
  const kernels::MlpShape shape{8, 8};
  TokenRequest request{{1.0F, -2.0F, 0.5F, 0.0F, 3.0F, 1.5F, -1.0F, 0.25F}, {5}, {0.75F}};
  const auto weight = [&](std::uint32_t matrix, std::size_t row, std::size_t column) {
    return static_cast<double>(__bfloat162float(
        __float2bfloat16(kernels::expert_weight(shape, 11, 3, 5, matrix, row * 8 + column))));
  };
  const auto outputs = reference_outputs(shape, 11, 3, std::span(&request, 1));
  for (std::size_t h = 0; h < 8; ++h) {
    double y = 0.0;
    for (std::size_t i = 0; i < 8; ++i) {
      double g = 0.0;
      double u = 0.0;
      for (std::size_t x = 0; x < 8; ++x) {
        g += weight(0, i, x) * static_cast<double>(request.values[x]);
        u += weight(1, i, x) * static_cast<double>(request.values[x]);
      }
      y += weight(2, h, i) * g / (1.0 + std::exp(-g)) * u;
    }
    EXPECT_NEAR(outputs[0][h], 0.75 * y, 1e-4 * (1.0 + std::fabs(y)));
  }
}

// The equation once more with FP8 factors, as the kernels' own reference has them: rows and weights
// that e4m3 holds exactly give what BF16 gives, others the quantised product, some 3 percent off.
TEST(Reference, Fp8ExpertsMultiplyWhatE4m3Holds) {
  const kernels::MlpShape shape{256, 128};
  const auto tokens = make_tokens(3, 0, 1, shape.hidden);
  TokenRequest request{wire_values(tokens, kernels::RowType::kBf16), {5}, {0.5F}};
  const auto through = [](float value, float largest) {
    const float scale = largest / 448.0F;
    return kernels::reference::from_e4m3(kernels::reference::to_e4m3(value * (1.0F / scale))) *
           scale;
  };
  const auto round = [](double value) {
    return kernels::reference::round_to_bf16(static_cast<float>(value));
  };
  // [rows][columns], one scale per 128 x 128.
  const auto matrix = [&](std::uint32_t which, std::size_t rows, std::size_t columns) {
    std::vector<float> values(rows * columns);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = round(kernels::expert_weight(shape, 11, 3, 5, which, i));
    }
    std::vector<float> largest(rows / 128 * (columns / 128), 0.0F);
    const auto block = [&](std::size_t i) {
      return i / columns / 128 * (columns / 128) + i % columns / 128;
    };
    for (std::size_t i = 0; i < values.size(); ++i) {
      largest[block(i)] = std::max(largest[block(i)], std::fabs(values[i]));
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = through(values[i], largest[block(i)]);
    }
    return values;
  };
  const auto rows_through = [&](std::vector<float> row) {
    for (std::size_t begin = 0; begin < row.size(); begin += 128) {
      float largest = 0.0F;
      for (std::size_t i = begin; i < begin + 128; ++i) {
        largest = std::max(largest, std::fabs(row[i]));
      }
      for (std::size_t i = begin; i < begin + 128; ++i) row[i] = through(row[i], largest);
    }
    return row;
  };
  const auto product = [](const std::vector<float>& w, const std::vector<float>& v,
                          std::size_t row) {
    double sum = 0.0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      sum += static_cast<double>(w[row * v.size() + i]) * static_cast<double>(v[i]);
    }
    return sum;
  };
  const auto gate = matrix(0, 128, 256);
  const auto up = matrix(1, 128, 256);
  const auto down = matrix(2, 256, 128);
  const auto in = rows_through(request.values);
  std::vector<float> inner(128);
  for (std::size_t i = 0; i < 128; ++i) {
    const float g = round(product(gate, in, i));
    inner[i] = round(g / (1.0F + std::exp(-g)) * round(product(up, in, i)));
  }
  inner = rows_through(inner);
  const auto found =
      reference_outputs(shape, 11, 3, std::span(&request, 1), kernels::GemmType::kFp8);
  const auto bf16 = reference_outputs(shape, 11, 3, std::span(&request, 1));
  ErrorNorm against_definition;
  ErrorNorm against_bf16;
  for (std::size_t h = 0; h < shape.hidden; ++h) {
    against_definition.add(found[0][h], static_cast<float>(0.5 * product(down, inner, h)));
    against_bf16.add(found[0][h], bf16[0][h]);
  }
  EXPECT_LT(against_definition.relative(), 2e-3);  // a rounding to BF16 may fall the other way
  // Three bits of mantissa: each factor is off by up to 1/16, 0.026 in the root mean square, three
  // products one after the other.
  EXPECT_GT(against_bf16.relative(), 0.02);
  EXPECT_LT(against_bf16.relative(), 0.08);
}

// One expert of the shared experts' whole width, added to what is there, for the token in BF16; a
// layer without shared experts leaves the outputs alone.
TEST(Reference, SharedExpertsAreOneWideExpertForEveryToken) {
  LayerShape shape;
  shape.mlp = {8, 16};
  shape.dispatch = kernels::RowType::kFp8;
  shape.seed = 11;
  const auto tokens = make_tokens(1, 0, 2, 8);
  const std::vector<std::span<const kernels::Bf16>> rows = {std::span(tokens).first(8),
                                                            std::span(tokens).last(8)};
  std::vector<std::vector<float>> outputs(2, std::vector<float>(8, 0.5F));
  add_shared_outputs(shape, 3, rows, outputs);
  EXPECT_EQ(outputs[1], std::vector<float>(8, 0.5F));

  shape.shared_intermediate = 24;
  add_shared_outputs(shape, 3, rows, outputs);
  const auto weight = [&](std::uint32_t matrix, std::size_t element) {
    return static_cast<double>(
        kernels::expert_weight({8, 24}, 11, 3, 0xffffffffU, matrix, element));
  };
  for (std::size_t t = 0; t < 2; ++t) {
    for (std::size_t h = 0; h < 8; ++h) {
      double y = 0.5;
      for (std::size_t i = 0; i < 24; ++i) {
        double g = 0.0;
        double u = 0.0;
        for (std::size_t x = 0; x < 8; ++x) {
          const auto value = static_cast<double>(__bfloat162float(rows[t][x]));
          g += weight(0, i * 8 + x) * value;
          u += weight(1, i * 8 + x) * value;
        }
        y += weight(2, h * 24 + i) * g / (1.0 + std::exp(-g)) * u;
      }
      EXPECT_NEAR(outputs[t][h], y, 1e-4 * (1.0 + std::fabs(y)));
    }
  }
}

// e4m3 keeps 3 bits of mantissa: a value is off by at most 1/16 of itself, and the largest of each
// group of 128 is exact.
TEST(Reference, Fp8KeepsThreeBitsAndTheLargestValue) {
  const auto tokens = make_tokens(1, 0, 1, 256);
  const auto exact = wire_values(tokens, kernels::RowType::kBf16);
  const auto wire = wire_values(tokens, kernels::RowType::kFp8);
  for (std::size_t begin = 0; begin < 256; begin += 128) {
    std::size_t largest = begin;
    for (std::size_t i = begin; i < begin + 128; ++i) {
      if (std::fabs(exact[i]) > std::fabs(exact[largest])) largest = i;
      EXPECT_NEAR(wire[i], exact[i], std::fabs(exact[i]) / 15.0F + 1e-3F);
    }
    EXPECT_NEAR(wire[largest], exact[largest], std::fabs(exact[largest]) / 256.0F);
  }
}

TEST(Reference, TokensHaveUnitVarianceAndDifferByRank) {
  const auto a = make_tokens(1, 0, 16, 256);
  const auto b = make_tokens(1, 1, 16, 256);
  double square = 0.0;
  std::size_t equal = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto value = static_cast<double>(__bfloat162float(a[i]));
    square += value * value;
    equal += __bfloat162float(a[i]) == __bfloat162float(b[i]) ? 1 : 0;
  }
  EXPECT_NEAR(square / static_cast<double>(a.size()), 1.0, 0.05);
  EXPECT_LT(equal, a.size() / 20);
}

TEST(Reference, NaNNeverPasses) {
  ErrorNorm norm;
  norm.add(std::numeric_limits<float>::quiet_NaN(), 1.0F);
  EXPECT_FALSE(norm.relative() <= 1e9);
  ErrorNorm right;
  right.add(3.0F, 4.0F);
  right.add(0.0F, 3.0F);
  EXPECT_DOUBLE_EQ(right.relative(), std::sqrt(10.0) / 5.0);
}

}  // namespace
}  // namespace coterie
