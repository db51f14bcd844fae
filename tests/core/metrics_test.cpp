// What the report says, counted by hand.

#include "core/metrics.hpp"

#include <gtest/gtest.h>

#include "core/result_table.hpp"
#include "core/statistics.hpp"

namespace coterie {
namespace {

// Two ranks; rank 1 has the slower MLP. Seconds:
//
//             rank 0      rank 1
//   notify    0   - 1     0   - 1
//   pack      1   - 2     1   - 3
//   dispatch  2   - 5     3   - 6      first to last transfer, own sends included
//   expand    4.5 - 5     6   - 7      rank 0 has its rows before its last send has ended
//   mlp       5   - 8     7   - 13
//   merge     8   - 9     13  - 14
//   combine   9   - 17    14  - 18     rank 0 sends from 9 on; results for it come from 14 on
//   sum       17  - 18    18  - 20
//
// Each rank needs results of both, so that from 14 on no MLP holds up either.
LayerReport two_ranks() {
  LayerReport layer;
  layer.time_s = 20.0;
  const auto add = [&](Phase phase, double begin0, double end0, double begin1, double end1) {
    layer.phases.push_back({phase, {begin0, begin1}, {end0, end1}, {}});
  };
  add(Phase::kNotify, 0, 1, 0, 1);
  add(Phase::kPack, 1, 2, 1, 3);
  add(Phase::kDispatch, 2, 5, 3, 6);
  add(Phase::kExpand, 4.5, 5, 6, 7);
  add(Phase::kMlp, 5, 8, 7, 13);
  add(Phase::kMerge, 8, 9, 13, 14);
  add(Phase::kCombine, 9, 17, 14, 18);
  add(Phase::kSum, 17, 18, 18, 20);
  layer.combine_ready_s = {14, 14};
  return layer;
}

RunReport run_of(const std::string& name, const std::string& policy, const std::string& placement,
                 const std::vector<double>& times) {
  RunReport report;
  report.kind = "predicted";
  report.engine = "flow";
  report.name = name;
  report.policy = policy;
  report.placement = placement;
  for (const double time_s : times) {
    report.layers.push_back({});
    report.layers.back().time_s = time_s;
  }
  return report;
}

TEST(Metrics, PhasesOnTheirOwnAreThoseOfTheSlowestRank) {
  const LayerReport layer = two_ranks();
  EXPECT_EQ(dispatch_s(layer), 3.0);  // both 3
  EXPECT_EQ(mlp_s(layer), 6.0);       // rank 1
  // Rank 0 from 14 to 17, rank 1 from 14 to 18.
  EXPECT_EQ(combine_s(layer), 4.0);
  // With the wait: rank 0 from 9 to 17.
  EXPECT_EQ(combine_span_s(layer), 8.0);
}

// A report that does not say when the slowest MLP ended has the wait in its combine.
TEST(Metrics, WithoutTheMomentTheCombineHoldsTheWait) {
  LayerReport layer = two_ranks();
  layer.combine_ready_s.clear();
  EXPECT_EQ(combine_s(layer), 8.0);
}

// Rank 1 ends last, at 20: 1 notify, 2 pack, 3 dispatch, 1 expand, 6 MLP, 1 merge, 4 combine, 2 sum.
TEST(Metrics, TheCriticalRankAddsUpToTheLayer) {
  const auto critical = critical_rank(two_ranks());
  ASSERT_TRUE(critical);
  EXPECT_EQ(critical->rank, 1U);
  const PartTimes& parts = critical->parts;
  EXPECT_EQ(parts.seconds, (std::array<double, kNumParts>{1, 2, 3, 1, 6, 1, 4, 2, 0}));
  EXPECT_EQ(parts.total_s(), 20.0);
  EXPECT_EQ(parts.communication_s(), 1.0 + 3.0 + 4.0);
}

// Were rank 0's sum to last until 21, it would end the layer, after waiting from its merge's end at 9
// to 14. Its dispatch counts until its expand begins at 4.5, not until its own last send has ended:
// 1 notify, 1 pack, 2.5 dispatch, 0.5 expand, 3 MLP, 1 merge, 3 combine, 4 sum, 5 wait.
TEST(Metrics, WaitsHaveTheirOwnName) {
  LayerReport layer = two_ranks();
  layer.phases.back().end_s[0] = 21.0;
  const auto critical = critical_rank(layer);
  ASSERT_TRUE(critical);
  EXPECT_EQ(critical->rank, 0U);
  EXPECT_EQ(critical->parts.seconds,
            (std::array<double, kNumParts>{1, 1, 2.5, 0.5, 3, 1, 3, 4, 5}));
  EXPECT_EQ(critical->parts.total_s(), 21.0);
}

// Under the hierarchical policy forwards run beside the dispatch and gathers beside the combine:
// dispatch 1 - 3 and forward 2 - 5 are one dispatch of 4, gather 7 - 9 and combine 8 - 12 one combine.
// The rank's own merge ends at 7, after those of the others at 6.
TEST(Metrics, BothHopsAreOnePart) {
  LayerReport layer;
  const auto add = [&](Phase phase, double begin, double end) {
    layer.phases.push_back({phase, {begin}, {end}, {}});
  };
  add(Phase::kNotify, 0, 1);
  add(Phase::kDispatch, 1, 3);
  add(Phase::kForward, 2, 5);
  add(Phase::kMlp, 5, 6.5);
  add(Phase::kMerge, 6.5, 7);
  add(Phase::kGather, 7, 9);
  add(Phase::kCombine, 8, 12);
  layer.combine_ready_s = {6};
  EXPECT_EQ(dispatch_s(layer), 4.0);
  EXPECT_EQ(combine_s(layer), 5.0);
  const PartTimes parts = critical_rank(layer)->parts;
  EXPECT_EQ(parts.seconds, (std::array<double, kNumParts>{1, 0, 4, 0, 1.5, 0.5, 5, 0, 0}));
}

// A rank that serves nothing has no expand, MLP and merge: after its dispatch it waits for the other.
TEST(Metrics, ARankThatServesNothingWaits) {
  LayerReport layer = two_ranks();
  for (PhaseTimes& times : layer.phases) {
    if (times.phase == Phase::kExpand || times.phase == Phase::kMlp ||
        times.phase == Phase::kMerge) {
      times.begin_s[0] = times.end_s[0] = 5.0;
    }
    if (times.phase == Phase::kCombine) times.begin_s[0] = 14.0;
    if (times.phase == Phase::kSum) times.end_s[0] = 22.0;
  }
  // 1 notify, 1 pack, 3 dispatch (2 to 5), wait until 14, combine until 17, sum until 22.
  const auto critical = critical_rank(layer);
  EXPECT_EQ(critical->rank, 0U);
  EXPECT_EQ(critical->parts.seconds, (std::array<double, kNumParts>{1, 1, 3, 0, 0, 0, 3, 5, 9}));
}

TEST(Metrics, BaselinesAreExactAndContiguous) {
  std::vector<RunReport> runs{run_of("pruned", "standard", "contiguous", {1.0, 1.0}),
                              run_of("standard", "standard", "contiguous", {6.0, 2.0}),
                              run_of("lost", "dedup", "contiguous", {}),
                              run_of("placed", "dedup", "collaboration", {1.0, 1.0}),
                              run_of("dedup", "dedup", "contiguous", {3.0, 1.0})};
  runs[0].exact = false;
  runs[2].failure = "no reason";
  EXPECT_EQ(baseline(runs, "standard"), &runs[1]);
  EXPECT_EQ(baseline(runs, "dedup"), &runs[4]);
  EXPECT_EQ(baseline(runs, "hierarchical"), nullptr);
  // Sums over the layers: 8 and 4 over 2.
  EXPECT_EQ(speedups(runs, runs[3]).over_standard, 4.0);
  EXPECT_EQ(speedups(runs, runs[3]).over_dedup_contiguous, 2.0);
  EXPECT_FALSE(speedups(runs, runs[2]).over_standard);
  EXPECT_EQ(layer_time_s(runs[1]), 4.0);
}

// Layers of 20 and 10 with MLPs of 6 and 3 (half of every time): means 15 and 4.5, and the critical
// parts of both layers together, half as much again as those of the first.
TEST(Metrics, RunsAreMeansAndSumsOverTheirLayers) {
  RunReport report = run_of("dedup", "dedup", "contiguous", {20.0, 10.0});
  report.layers[0] = report.layers[1] = two_ranks();
  LayerReport& half = report.layers[1];
  half.time_s = 10.0;
  for (PhaseTimes& times : half.phases) {
    for (double& s : times.begin_s) s /= 2.0;
    for (double& s : times.end_s) s /= 2.0;
  }
  for (double& s : half.combine_ready_s) s /= 2.0;
  report.layers[0].fanout_ranks = 3.0;
  report.layers[1].fanout_ranks = 2.0;
  EXPECT_EQ(layer_time_s(report), 15.0);
  EXPECT_EQ(layer_mean(report, mlp_s), 4.5);
  EXPECT_EQ(layer_mean(report, &LayerReport::fanout_ranks), 2.5);
  const auto parts = critical_parts(report);
  ASSERT_TRUE(parts);
  EXPECT_EQ(parts->seconds, (std::array<double, kNumParts>{1.5, 3, 4.5, 1.5, 9, 1.5, 6, 3, 0}));
  EXPECT_EQ(parts->total_s(), 30.0);
  // A layer without phases leaves nothing to add up; a run without layers has no mean.
  half.phases.clear();
  EXPECT_FALSE(critical_parts(report));
  EXPECT_EQ(layer_mean(run_of("lost", "dedup", "contiguous", {}), mlp_s), 0.0);
}

// A rank's own sends may go on after its sum: they are the dispatch and the combine of its end.
// 1 notify; the expand begins at 2, so dispatch 1 to 2; 1 expand, 1 MLP, 1 merge; the combine begins
// at 5 and its sum at 6; the sum ends at 7 and the last send at 9.
TEST(Metrics, SendsAfterTheSumStillCount) {
  LayerReport layer;
  const auto add = [&](Phase phase, double begin, double end) {
    layer.phases.push_back({phase, {begin}, {end}, {}});
  };
  add(Phase::kNotify, 0, 1);
  add(Phase::kDispatch, 1, 4);
  add(Phase::kExpand, 2, 3);
  add(Phase::kMlp, 3, 4);
  add(Phase::kMerge, 4, 5);
  add(Phase::kCombine, 5, 9);
  add(Phase::kSum, 6, 7);
  layer.combine_ready_s = {5};
  const PartTimes parts = critical_rank(layer)->parts;
  EXPECT_EQ(parts.seconds, (std::array<double, kNumParts>{1, 0, 1, 1, 1, 1, 1 + 2, 1, 0}));
  EXPECT_EQ(parts.total_s(), 9.0);
}

// Predictions carry an interval, 22 over 20: a tenth. Measured layers have samples, whose spread
// (statistics.hpp) takes its place; the widest layer counts.
TEST(Metrics, UncertaintyIsTheIntervalOrTheSpread) {
  RunReport report = run_of("dedup", "dedup", "contiguous", {20.0, 10.0});
  EXPECT_FALSE(relative_uncertainty(report));
  report.layers[0].low_s = 18.0;
  report.layers[0].high_s = 22.0;
  EXPECT_NEAR(relative_uncertainty(report).value(), 0.1, 1e-12);
  report.layers[0].samples_s = {10.0, 10.0, 10.0};
  EXPECT_EQ(relative_uncertainty(report), 0.0);
  report.layers[1].samples_s = {8.0, 10.0, 12.0};
  EXPECT_EQ(relative_uncertainty(report), relative_spread(report.layers[1].samples_s));
  EXPECT_GT(relative_uncertainty(report).value(), 0.0);
  EXPECT_FALSE(relative_uncertainty(run_of("lost", "dedup", "contiguous", {})));
}

// The highest utilisation of all layers; where none is known, the first layer that has a link.
TEST(Metrics, TheBusiestLinkIsThatOfTheBusiestLayer) {
  RunReport report = run_of("dedup", "dedup", "contiguous", {1.0, 1.0, 1.0});
  EXPECT_EQ(busiest_link(report), nullptr);
  report.layers[1].busiest_link = LinkLoad{"gpu 1 out", "network", 7, {}};
  report.layers[2].busiest_link = LinkLoad{"gpu 2 out", "network", 9, {}};
  EXPECT_EQ(busiest_link(report)->name, "gpu 1 out");
  report.layers[1].busiest_link->utilization = 0.3;
  report.layers[2].busiest_link->utilization = 0.4;
  EXPECT_EQ(busiest_link(report)->name, "gpu 2 out");
}

// Two transfers of one phase and tier add up: GPU 0 sends 10 + 5, GPU 1 receives 10 and GPU 2 5; the
// rows that stay have no times.
TEST(Metrics, TransfersAddUpByPhaseAndTier) {
  TransferSums sums(3);
  sums.add({Phase::kDispatch, "network", 0, 1, 2, 10, 1.0, 4.0});
  sums.add({Phase::kDispatch, "network", 0, 2, 1, 5, 0.5, 3.0});
  sums.add({Phase::kDispatch, "local", 1, 1, 7, 70, {}, {}});
  const auto groups = sums.take();
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].tier, "local");
  EXPECT_FALSE(groups[0].begin_s);
  EXPECT_EQ(groups[1].num_transfers, 2U);
  EXPECT_EQ(groups[1].num_rows, 3U);
  EXPECT_EQ(groups[1].bytes, 15);
  EXPECT_EQ(groups[1].max_rank_send, 15);
  EXPECT_EQ(groups[1].max_rank_receive, 10);
  EXPECT_EQ(groups[1].begin_s, 0.5);
  EXPECT_EQ(groups[1].end_s, 4.0);
  EXPECT_TRUE(sums.take().empty());
  EXPECT_THROW(sums.add({Phase::kDispatch, "wire", 0, 1, 1, 1, {}, {}}), std::logic_error);
}

// ------------------------------------------------------------ tables

TEST(ResultTable, ShowsFailedRunsAndSaysWhy) {
  std::vector<RunReport> runs{run_of("dedup", "dedup", "contiguous", {20.0}),
                              run_of("capped", "dedup", "collaboration", {})};
  runs[0].layers[0] = two_ranks();
  runs[0].warnings = runs[1].warnings = {"tokens repeat"};
  runs[1].failure = "no placement keeps to the cap";
  const Table table = result_table(runs);
  ASSERT_EQ(table.rows.size(), 2U);
  EXPECT_EQ(table.rows[1][0], "capped");
  EXPECT_EQ(table.rows[1][1], "failed");
  EXPECT_EQ(table.rows[0].back(), "1.00x");
  EXPECT_EQ(breakdown_table(runs).rows.size(), 1U);
  EXPECT_EQ(result_notes(runs),
            (std::vector<std::string>{"capped failed: no placement keeps to the cap",
                                      "warning: tokens repeat"}));
}

// A bound knows a time and which link is loaded most, and nothing of when anything happens.
TEST(ResultTable, OfBoundsShowsOnlyWhatTheyKnow) {
  std::vector<RunReport> runs{run_of("dedup", "dedup", "contiguous", {0.25})};
  runs[0].engine = "bound";
  runs[0].layers[0].busiest_link = LinkLoad{"gpu 0 out", "scale_up", 42, {}};
  const Table table = result_table(runs);
  EXPECT_EQ(table.rows[0][1], ">= 250 ms");
  for (const std::size_t column : {2U, 3U, 4U}) EXPECT_EQ(table.rows[0][column], "-");
  EXPECT_EQ(table.rows[0][9], "gpu 0 out");
  EXPECT_TRUE(breakdown_table(runs).rows.empty());
  EXPECT_EQ(result_notes(runs).size(), 1U);
}

}  // namespace
}  // namespace coterie
