// Fan-out on the recorded traces of workloads/REPRODUCING.md, skipped without them: placements are
// learnt on the even sequences and measured on the odd ones, mean over layers. "greedy + swaps" was
// computed independently of this project.

#include <gtest/gtest.h>

#include <filesystem>

#include "workloads/placement/placement.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie {
namespace {

struct Row {
  std::string set;
  std::uint32_t num_ranks;
  double contiguous;
  double greedy_and_swaps;
};

class RecordedTrace : public ::testing::TestWithParam<Row> {};

double mean_over_layers(const Routing& evaluated, const Placement& placement) {
  const RankTokens tokens =
      deal_tokens(evaluated, placement.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
  double sum = 0.0;
  for (std::size_t i = 0; i < evaluated.num_layers(); ++i) {
    sum += fan_out(evaluated, i, placement.layers[i], 8, tokens).fanout_ranks;
  }
  return sum / static_cast<double>(evaluated.num_layers());
}

double held_out_fan_out(const Routing& trace, const std::string& strategy,
                        std::uint32_t num_ranks) {
  PlacementRequest request;
  request.strategy = strategy;
  request.num_ranks = num_ranks;
  request.num_starts = 1;  // the table is met without the further ones
  return mean_over_layers(select(trace, SequencePart::kOdd),
                          make_placement(select(trace, SequencePart::kEven), request));
}

TEST_P(RecordedTrace, ReproducesTheReferenceTable) {
  const Row& row = GetParam();
  const std::filesystem::path path =
      std::filesystem::path(COTERIE_DATA) / "traces" / "deepseek-v2-lite-esft" / (row.set + ".npz");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no recorded trace " << path;
  const std::vector<std::filesystem::path> inputs = {path};
  const auto trace = std::get<Routing>(import_traces(inputs, "npz", {}).trace);
  EXPECT_NEAR(held_out_fan_out(trace, "contiguous", row.num_ranks) / row.contiguous, 1.0, 0.005);
  // At most 5 percent above; better is welcome.
  const double collaboration = held_out_fan_out(trace, "collaboration", row.num_ranks);
  EXPECT_LE(collaboration, 1.05 * row.greedy_and_swaps);
  // The search on the true objective carries over to unseen sequences.
  EXPECT_LT(held_out_fan_out(trace, "collaboration_refined", row.num_ranks), collaboration);
}

INSTANTIATE_TEST_SUITE_P(
    DeepSeekV2Lite, RecordedTrace,
    ::testing::Values(Row{"intent", 4, 3.341, 2.217}, Row{"intent", 8, 4.557, 2.944},
                      Row{"intent", 16, 5.331, 3.734}, Row{"law", 4, 3.357, 2.398},
                      Row{"law", 8, 4.555, 3.120}, Row{"law", 16, 5.314, 3.924},
                      Row{"summary", 4, 3.359, 2.434}, Row{"summary", 8, 4.566, 3.219},
                      Row{"summary", 16, 5.353, 4.026}),
    [](const auto& row) { return row.param.set + "_" + std::to_string(row.param.num_ranks); });

// One start of the search stays at 2.261 on the training part of layer 5 of `intent` under a cap of
// 1.10; the best of several seeds is 2.212 (found by hand with other seeds of version 0.1).
TEST(RecordedIntent, SeveralStartsFindTheBetterPlacementOfLayerFive) {
  const std::filesystem::path path =
      std::filesystem::path(COTERIE_DATA) / "traces" / "deepseek-v2-lite-esft" / "intent.npz";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no recorded trace " << path;
  const std::vector<std::filesystem::path> inputs = {path};
  const auto trace = std::get<Routing>(import_traces(inputs, "npz", {}).trace);
  const std::vector<std::size_t> fifth = {4};
  const Routing training = select_layers(select(trace, SequencePart::kEven), fifth);
  ASSERT_EQ(training.layers[0], 5u);
  PlacementRequest request;
  request.strategy = "collaboration_refined";
  request.num_ranks = 4;
  request.max_imbalance = 1.10;
  EXPECT_LE(mean_over_layers(training, make_placement(training, request)), 2.2125);
}

// From a count that is independent of this project: for gpt-oss-20b contiguous is 4 to 7 percent
// above the hypergeometric value at EP 4 and 8; all sequences, as nothing is learnt.
TEST(RecordedGptOss, ContiguousIsWorseThanUniform) {
  const std::filesystem::path path =
      std::filesystem::path(COTERIE_DATA) / "traces" / "gpt-oss-20b" / "decode.npz";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no recorded trace " << path;
  const std::vector<std::filesystem::path> inputs = {path};
  const auto trace = std::get<Routing>(import_traces(inputs, "npz", {}).trace);
  for (const std::uint32_t ranks : {4u, 8u}) {
    PlacementRequest request;
    request.strategy = "contiguous";
    request.num_ranks = ranks;
    const double excess =
        mean_over_layers(trace, make_placement(trace, request)) / uniform_fan_out(32, ranks, 4) -
        1.0;
    EXPECT_GE(excess, 0.035);  // 4 percent, rounded
    EXPECT_LT(excess, 0.075);  // 7 percent, rounded
  }
}

}  // namespace
}  // namespace coterie
