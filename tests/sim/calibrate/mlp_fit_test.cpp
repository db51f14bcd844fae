// Loads of the published expert MLP tables as their tool deals them, and fits that get back what made
// the times.

#include "sim/calibrate/mlp_fit.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace coterie {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Le;

using Counts = std::vector<std::uint64_t>;

MlpPoint point(double num_tokens, double hidden, std::uint32_t topk, std::uint32_t num_experts,
               std::uint32_t ep_size, const std::string& load) {
  MlpPoint out;
  out.num_tokens = num_tokens;
  out.hidden = hidden;
  out.intermediate = hidden / 2.0;
  out.topk = topk;
  out.num_experts = num_experts;
  out.ep_size = ep_size;
  out.load = load;
  return out;
}

// Four tokens, top-8 of 128: token t wants expert 4 t and every sixteenth behind it, so that of the first
// four experts only the first has a token.
TEST(MlpLoads, FewTokensOfABalancedLoadAreSpread) {
  EXPECT_THAT(expert_loads(point(4, 2048, 8, 128, 32, "balanced")),
              ElementsAre(Counts{1, 0, 0, 0}));
  // Of 32 tokens each of the 128 experts has 32 * 8 / 128 = 2.
  const auto all = expert_loads(point(32, 2048, 8, 128, 1, "balanced"));
  EXPECT_THAT(all, ElementsAre(Counts(128, 2)));
}

// Shares of the density 1/x between 0.01 and 2 are 0.38 in the mean, so that 128 of them sum up to 48 and
// the largest wants 2 / 48 of one token's 8 pairs, a third of one: all round to zero. The pairs are dealt
// to the ranks in turn, each to its first expert without one.
TEST(MlpLoads, OneTokenIsDealtToTheRanksInTurn) {
  for (const Counts& draw : expert_loads(point(1, 2048, 8, 128, 64, "power_law_1.01"))) {
    EXPECT_THAT(draw, ElementsAre(1, 0));
  }
  for (const Counts& draw : expert_loads(point(1, 2048, 8, 128, 4, "power_law_1.01"))) {
    Counts expected(32, 0);
    expected[0] = expected[1] = 1;
    EXPECT_EQ(draw, expected);
  }
}

// DeepSeek-V3's router takes four of eight groups of 32 experts. At EP 32 the eight ranks that one token is
// dealt to hold experts 0, 8, 16 and so on to 56, all in the first two groups: the first rank has one. At
// EP 8 they are the eight groups: of the first four each keeps its first expert, and the four choices that
// are missing come from the front, where experts 1 to 4 are next.
TEST(MlpLoads, ARouterThatLimitsGroupsChoosesAgain) {
  for (const Counts& draw : expert_loads(point(1, 7168, 8, 256, 32, "power_law_1.2"))) {
    EXPECT_THAT(draw, ElementsAre(1, 0, 0, 0, 0, 0, 0, 0));
  }
  Counts five(32, 0);
  std::fill(five.begin(), five.begin() + 5, 1U);
  for (const Counts& draw : expert_loads(point(1, 7168, 8, 256, 8, "power_law_1.2"))) {
    EXPECT_EQ(draw, five);
  }
}

// On one rank all pairs are there, and no expert has a token twice; on several the rank is the fullest,
// which has at least its even share.
TEST(MlpLoads, DrawnLoadsHoldAllPairs) {
  for (const double tokens : {4.0, 48.0, 1024.0}) {
    const auto whole = expert_loads(point(tokens, 2048, 8, 128, 1, "power_law_1.2"));
    ASSERT_EQ(whole.size(), 20U);
    for (const Counts& draw : whole) {
      EXPECT_EQ(std::accumulate(draw.begin(), draw.end(), 0.0), tokens * 8.0);
      EXPECT_THAT(draw, Each(Le(static_cast<std::uint64_t>(tokens))));
    }
    EXPECT_NE(whole[0], whole[1]);
    for (const Counts& draw : expert_loads(point(tokens, 2048, 8, 128, 8, "power_law_1.2"))) {
      EXPECT_GE(std::accumulate(draw.begin(), draw.end(), 0.0), tokens);
    }
  }
}

TEST(MlpKernels, AreThoseOfTheTable) {
  const auto kernel = [](const char* machine, const char* type, const char* name,
                         std::uint32_t ep) {
    MlpPoint made = point(1, 2048, 8, 128, ep, "balanced");
    made.machine = machine;
    made.type = type;
    made.kernel = name;
    return kernel_of(made);
  };
  EXPECT_EQ(kernel("", "", "", 8), MlpKernel::kTritonBf16);
  EXPECT_EQ(kernel("", "bfloat16", "vllm_triton_tritonexperts", 8), MlpKernel::kTritonBf16);
  EXPECT_EQ(kernel("", "fp8_block", "vllm_triton_tritonexperts", 1), MlpKernel::kTritonFp8);
  EXPECT_EQ(kernel("", "fp8_block", "vllm_flashinfer_cutlass", 8), MlpKernel::kFastest);
  EXPECT_EQ(kernel("h100_sxm", "bfloat16", "", 8), MlpKernel::kTritonBf16);
  EXPECT_EQ(kernel("h100_sxm", "fp8_block", "", 1), MlpKernel::kTritonFp8);
  EXPECT_EQ(kernel("h100_sxm", "fp8_block", "", 8), MlpKernel::kFastest);
  EXPECT_EQ(kernel("b200_sxm", "bfloat16", "", 1), MlpKernel::kFastest);
}

// Times that the formula itself makes with known costs: the fit predicts a shape between those it saw.
TEST(MlpFit, PredictsAShapeItHasNotSeen) {
  for (const char* kernel : {"made_triton", "made_grouped"}) {
    MlpFit known;
    known.costs.launch = {22e-6};
    known.costs.weight_bandwidth = {4.2e12};
    known.costs.batch_bandwidth = {4e12};
    known.costs.tile_depth = 100.0;
    known.costs.reads_rows = true;
    known.costs.row_bandwidth = Bandwidth{5e12};
    known.token_bandwidth = {1e12};
    known.group_expert = {20e-9};
    known.replay = {3e-6};
    if (std::string(kernel) == "made_triton") {
      known.costs.tiles = {{16, {1.6e14}, {1.5e-9}, 32},
                           {32, {2.8e14}, {2e-9}, 96},
                           {64, {4.5e14}, {3e-9}, 512},
                           {128, {6.5e14}, {5e-9}, std::nullopt}};
    } else {
      known.costs.expert = {100e-9};
      known.costs.tiles = {{16, {2e14}, {1e-9}, std::nullopt},
                           {64, {4e14}, {1e-9}, std::nullopt},
                           {128, {6.5e14}, {1e-9}, std::nullopt}};
    }
    const auto made = [&](double hidden, double tokens, std::uint32_t ep, const char* load) {
      MlpPoint out = point(tokens, hidden, 8, 128, ep, load);
      out.type = "bfloat16";
      out.kernel = kernel;
      out.time_s = mlp_time_s(known, out);
      return out;
    };
    std::vector<MlpPoint> seen, unseen;
    for (const std::uint32_t ep : {1U, 8U, 64U}) {
      for (const double tokens : {1.0, 16.0, 64.0, 256.0, 1024.0, 8192.0}) {
        for (const char* load : {"balanced", "power_law_1.2"}) {
          for (const double hidden : {2048.0, 6144.0})
            seen.push_back(made(hidden, tokens, ep, load));
          unseen.push_back(made(4096.0, tokens, ep, load));
        }
      }
    }
    const MlpFit fit = fit_mlp(seen);
    for (const MlpPoint& left_out : unseen) {
      EXPECT_NEAR(mlp_time_s(fit, left_out) / left_out.time_s, 1.0, 0.04)
          << kernel << ", EP " << left_out.ep_size << ", " << left_out.num_tokens << " tokens";
      // A balanced load has one draw, which nothing scatters; one token's eight pairs leave nothing to
      // draw, or almost nothing.
      if (left_out.load == "balanced") {
        EXPECT_EQ(mlp_draw_scatter(fit, left_out), 0.0);
      } else if (left_out.num_tokens > 1.0) {
        EXPECT_GT(mlp_draw_scatter(fit, left_out), 0.0) << left_out.num_tokens << " tokens";
      }
    }
  }
}

}  // namespace
}  // namespace coterie
