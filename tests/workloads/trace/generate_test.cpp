// The generator against closed forms and rules, and the bundled example against its description.

#include "workloads/trace/generate.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <set>

#include "core/error.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/trace/describe.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

WorkloadSpec spec_of(const std::string& shape, const std::string& routing) {
  return read_workload(parse_yaml("schema_version: 1\nname: t\nseed: 5\n" + shape +
                                      "\nsequences: {count: 8, tokens: 2500}\nrouting: " + routing,
                                  "test.yaml"));
}
double mean_fanout(const Routing& routing, std::uint32_t num_ranks) {
  const std::vector<std::uint32_t> ranks{num_ranks};
  return describe(routing, ranks, 0).front().fanout.front().contiguous;
}

// 64 experts, top-8: the expected fan-out P (1 - C(E - E/P, k) / C(E, k)), worked out by hand, is
// 3.66 / 5.43 / 6.75 at 4 / 8 / 16 ranks. 20,000 tokens; a token's fan-out has a standard deviation below
// 0.9, so the mean's is below 0.007 and four of them are 0.03.
TEST(Generate, UniformFanOutIsHypergeometric) {
  EXPECT_NEAR(hypergeometric_fanout(64, 8, 4), 3.66, 0.005);
  EXPECT_NEAR(hypergeometric_fanout(64, 8, 8), 5.43, 0.005);
  EXPECT_NEAR(hypergeometric_fanout(64, 8, 16), 6.75, 0.005);
  const Routing routing =
      generate(spec_of("num_experts: 64\nnum_topk: 8\nlayers: [0]", "{kind: uniform}"));
  EXPECT_TRUE(check(routing).empty());
  for (const std::uint32_t ranks : {4U, 8U, 16U}) {
    EXPECT_NEAR(mean_fanout(routing, ranks), hypergeometric_fanout(64, 8, ranks), 0.03);
  }
}

// The closed form of fan-out under a group limit: E = 256, k = 8, at most 4 of 8 groups, 64 ranks in
// 8 nodes give 7.359 ranks and 3.629 nodes. The groups are drawn uniformly there.
TEST(Generate, RandomGroupLimitMatchesTheClosedForm) {
  const Routing routing =
      generate(spec_of("num_experts: 256\nnum_topk: 8\nlayers: [0]",
                       "{kind: group_limited, num_groups: 8, num_topk_groups: 4, score: random}"));
  EXPECT_NEAR(mean_fanout(routing, 64), 7.359, 0.03);
  EXPECT_NEAR(mean_fanout(routing, 8), 3.629, 0.03);
}

// DeepSeek-V3's rule with its own group score: never more than 4 of the 8 groups.
TEST(Generate, BestTwoGroupsNeverExceedTheLimit) {
  for (const char* score : {"best_one", "best_two", "random"}) {
    const Routing routing = generate(
        spec_of("model: deepseek_v3\nlayers: [3]",
                std::string("{kind: group_limited, num_groups: 8, num_topk_groups: 4, score: ") +
                    score + "}"));
    EXPECT_EQ(routing.num_experts, 256U);
    for (std::size_t row = 0; row < routing.experts.size(); row += 8) {
      std::set<int> groups;
      for (std::size_t i = 0; i < 8; ++i) groups.insert(routing.experts[row + i] / 32);
      ASSERT_LE(groups.size(), 4U) << score;
    }
  }
}

// Independent routing stays at the sampling noise; planted groups rise with the strength. With
// strength 1 and groups of 8 >= k every token stays inside its group: 8 * C(8, 2) = 224 pairs.
TEST(Generate, PlantedStrengthShowsAsCollaboration) {
  const std::string shape = "num_experts: 64\nnum_topk: 6\nlayers: [0]";
  const auto information = [&](double strength) {
    const Routing routing = generate(
        spec_of(shape, fmt::format("{{kind: planted, num_groups: 8, strength: {}}}", strength)));
    EXPECT_TRUE(check(routing).empty());
    return describe(routing, {}, 1).front();
  };
  const LayerDescription none = information(0.0);
  const LayerDescription half = information(0.5);
  const LayerDescription full = information(1.0);
  EXPECT_LT(none.pair_information_bits, 1.2 * none.pair_information_noise_bits);
  EXPECT_GT(half.pair_information_bits, 20 * half.pair_information_noise_bits);
  EXPECT_GT(full.pair_information_bits, half.pair_information_bits);
  EXPECT_EQ(full.num_pairs_seen, 224U);
  // All 2016 pairs are equally likely at strength 0 and 224 at strength 1: log2(2016 / 224) =
  // log2 9.
  EXPECT_NEAR(full.pair_information_bits, std::log2(9.0), 0.02);
}

// Zipf with exponent 1 and k = 1: loads proportional to 1/rank, so max/mean is n / H_n.
TEST(Generate, ZipfLoadsFollowTheLaw) {
  const Routing routing =
      generate(spec_of("num_experts: 32\nnum_topk: 1\nlayers: [0]", "{kind: zipf, exponent: 1}"));
  double harmonic = 0.0;
  for (int r = 1; r <= 32; ++r) harmonic += 1.0 / r;
  const LayerDescription layer = describe(routing, {}, 0).front();
  EXPECT_NEAR(layer.load.max_over_mean, 32.0 / harmonic, 0.03 * 32.0 / harmonic);
}

// The same group in the next layer with probability c, else a fresh draw: with all the experts of a
// group chosen (strength 1, groups of k), equal groups have probability c + (1 - c) / G.
TEST(Generate, LayersCorrelateAsAskedFor) {
  const WorkloadSpec spec = read_workload(parse_yaml(
      "schema_version: 1\nname: t\nseed: 3\nnum_experts: 16\nnum_topk: 4\nlayers: [0, 1]\n"
      "sequences: {count: 1, tokens: 20000}\nrouting: {kind: planted, num_groups: 4, strength: 1}\n"
      "correlation: {layer: 0.6}\n",
      "test.yaml"));
  const Routing routing = generate(spec);
  // Groups are known by their smallest expert; layer 1's group of each layer 0 group is the most
  // common partner.
  std::map<std::pair<int, int>, int> together;
  for (std::uint64_t t = 0; t < routing.num_tokens(); ++t) {
    const auto smallest = [&](std::size_t layer_idx) {
      const auto ids = routing.layer_experts(layer_idx).subspan(t * 4, 4);
      return static_cast<int>(*std::min_element(ids.begin(), ids.end()));
    };
    ++together[{smallest(0), smallest(1)}];
  }
  std::map<int, int> best;
  for (const auto& [groups, count] : together) {
    best[groups.first] = std::max(best[groups.first], count);
  }
  double same = 0.0;
  for (const auto& [group, count] : best) same += count;
  EXPECT_NEAR(same / 20000.0, 0.6 + 0.4 / 4.0, 0.015);
}

TEST(Generate, EqualSeedsGiveEqualTracesAndOthersDoNot) {
  WorkloadSpec spec =
      read_workload(load_yaml(std::string(COTERIE_SOURCE_DIR) + "/workloads/examples/zipf.yaml"));
  const Routing a = generate(spec);
  testing::expect_equal(a, generate(spec));
  spec.seed += 1;
  EXPECT_NE(generate(spec).experts, a.experts);
}

TEST(Generate, TheBundledTraceIsWhatItsDescriptionMakes) {
  const std::string folder = std::string(COTERIE_SOURCE_DIR) + "/workloads/examples/";
  const Routing bundled = read_routing(folder + "collaborating.moet");
  const Routing made = generate(read_workload(load_yaml(folder + "collaborating.yaml")));
  EXPECT_EQ(bundled.experts, made.experts);
  EXPECT_EQ(bundled.sequence_begin, made.sequence_begin);
  // The weights pass through exp(), whose last bit is the C library's business.
  ASSERT_EQ(bundled.weights.size(), made.weights.size());
  for (std::size_t i = 0; i < made.weights.size(); ++i) {
    ASSERT_NEAR(bundled.weights[i], made.weights[i], 1e-6F);
  }
  EXPECT_LE(std::filesystem::file_size(folder + "collaborating.moet"), 300'000U);
}

// The counts are those of workloads/small_moe/README.md, where the recording is described.
TEST(Bundled, TheRecordedTraceIsWhatItsCardSays) {
  const std::string path = std::string(COTERIE_SOURCE_DIR) + "/workloads/examples/small_moe.moet";
  const Routing routing = read_routing(path);
  EXPECT_EQ(routing.layers, (std::vector<std::uint32_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(routing.num_experts, 64U);
  EXPECT_EQ(routing.num_topk, 6U);
  ASSERT_EQ(routing.sequence_begin.size(), 73U);
  for (std::size_t i = 0; i + 1 < routing.sequence_begin.size(); ++i) {
    EXPECT_EQ(routing.sequence_begin[i + 1] - routing.sequence_begin[i], 256U);
  }
  EXPECT_FALSE(routing.weights.empty());
  EXPECT_LE(std::filesystem::file_size(path), 5'000'000U);
}

struct BadWorkload {
  const char* name;
  const char* override_;
  const char* sentence;
};
class BadWorkloads : public ::testing::TestWithParam<BadWorkload> {};

TEST_P(BadWorkloads, AreRefusedWithTheKey) {
  const std::string path =
      std::string(COTERIE_SOURCE_DIR) + "/workloads/examples/group_limited.yaml";
  try {
    read_workload(load_yaml(path, {parse_override(GetParam().override_)}));
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::EndsWith(GetParam().sentence));
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, BadWorkloads,
    ::testing::Values(
        BadWorkload{"kind", "routing.kind=gauss",
                    "found \"gauss\", expected one of uniform, zipf, group_limited, planted"},
        BadWorkload{"unused_key", "routing.kind=uniform",
                    "found unknown key \"num_groups\", expected one of kind"},
        BadWorkload{"groups", "routing.num_groups=7",
                    "found \"7\", expected a divisor of 256 experts"},
        BadWorkload{"few_groups",
                    "routing={kind: group_limited, num_groups: 64, num_topk_groups: 1}",
                    "found \"1\", expected groups that hold at least 8 experts"},
        BadWorkload{"shares", "correlation.sequence=0.9",
                    "found shares of 0.9 and 0.2, expected shares that add up to at most 1"},
        BadWorkload{"tokens", "sequences.tokens={min: 5, max: 4}",
                    "found \"4\", expected a whole number from 5 to 1073741824"},
        BadWorkload{"layers", "layers=[3, 3]", "found \"3\", expected ascending layer numbers"}),
    [](const auto& test) { return std::string(test.param.name); });

// Four pairs of equal load: a Gini of 0, full entropy; one expert of four: 0.75 and 0.
TEST(LoadSkew, KnownValues) {
  const std::vector<std::uint64_t> equal{5, 5, 5, 5};
  EXPECT_DOUBLE_EQ(load_skew(equal).gini, 0.0);
  EXPECT_DOUBLE_EQ(load_skew(equal).entropy, 1.0);
  EXPECT_DOUBLE_EQ(load_skew(equal).max_over_mean, 1.0);
  const std::vector<std::uint64_t> one{0, 8, 0, 0};
  EXPECT_DOUBLE_EQ(load_skew(one).gini, 0.75);
  EXPECT_DOUBLE_EQ(load_skew(one).entropy, 0.0);
  EXPECT_DOUBLE_EQ(load_skew(one).max_over_mean, 4.0);
  EXPECT_EQ(load_skew(one).num_unused, 3U);
}

}  // namespace
}  // namespace coterie
