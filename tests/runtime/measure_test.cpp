// From measured times to reports, with numbers that can be checked by hand.

#include "runtime/session/measure.hpp"

#include <gtest/gtest.h>

namespace coterie {
namespace {

LayerTimes layer(double dispatch_s, double combine_s) {
  return {
      {{Phase::kDispatch, 0.0, dispatch_s}, {Phase::kCombine, dispatch_s, dispatch_s + combine_s}}};
}

// Two ranks, three iterations. Slowest rank per iteration: 3, 5, 4; the median is 4 (iteration 2).
TEST(Measure, TheSlowestRankCountsInEveryIteration) {
  const std::vector<RankTimes> ranks{{{layer(1.0, 1.0)}, {layer(4.0, 1.0)}, {layer(1.0, 1.0)}},
                                     {{layer(2.0, 1.0)}, {layer(1.0, 1.0)}, {layer(3.0, 1.0)}}};
  LayerReport report;
  fill_times(ranks, 0, report);
  EXPECT_EQ(report.samples_s, (std::vector<double>{3.0, 5.0, 4.0}));
  EXPECT_EQ(report.time_s, 4.0);
  ASSERT_EQ(report.phases.size(), 2U);
  EXPECT_EQ(report.phases[0].end_s, (std::vector<double>{1.0, 3.0}));
  EXPECT_EQ(report.phases[0].samples_s, (std::vector<double>{2.0, 4.0, 3.0}));
  EXPECT_EQ(report.phases[1].begin_s, (std::vector<double>{1.0, 3.0}));
}

// Rank 0 comes 2 s before rank 1 and waits in the notify step: 3 s instead of 1. Both end their dispatch
// 4 s after it, so the layer takes 5 s from the moment when both are there.
TEST(Measure, ClocksAreSetAtTheNotifyStep) {
  const auto times = [](double notify_s) {
    return LayerTimes{
        {{Phase::kNotify, 0.0, notify_s}, {Phase::kDispatch, notify_s, notify_s + 4.0}}};
  };
  LayerReport report;
  fill_times({{{times(3.0)}}, {{times(1.0)}}}, 0, report);
  EXPECT_EQ(report.time_s, 5.0);
  EXPECT_EQ(report.samples_s, (std::vector<double>{5.0}));
  EXPECT_EQ(report.phases[0].begin_s, (std::vector<double>{-2.0, 0.0}));
  EXPECT_EQ(report.phases[1].end_s, (std::vector<double>{5.0, 5.0}));
}

TEST(Measure, TimesSurviveTheirMessage) {
  const RankTimes times{{layer(0.25, 0.5), layer(1.0, 2.0)}, {layer(3.0, 4.0), layer(5.0, 6.0)}};
  const RankTimes back = unpack_times(pack_times(times));
  ASSERT_EQ(back.size(), 2U);
  ASSERT_EQ(back[1].size(), 2U);
  EXPECT_EQ(back[1][0].phases[1].phase, Phase::kCombine);
  EXPECT_EQ(back[1][0].phases[1].end_s, 7.0);
  EXPECT_EQ(back[0][0].time_s(), 0.75);
}

}  // namespace
}  // namespace coterie
