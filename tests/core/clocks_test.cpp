// One clock for all ranks, counted by hand.

#include "core/clocks.hpp"

#include <gtest/gtest.h>

namespace coterie {
namespace {

TEST(Clocks, AreSetWhereTheNotifyStepEnds) {
  EXPECT_EQ(clock_leads({9.0, 17.0, 8.0}), (std::vector<double>{1.0, 9.0, 0.0}));
  EXPECT_TRUE(clock_leads({}).empty());
  // Rank 1 began 8 before rank 0: what it calls 30 is 22 for rank 0.
  LayerReport layer;
  layer.time_s = 30.0;
  layer.phases.resize(2);
  layer.phases[0].phase = Phase::kNotify;
  layer.phases[0].begin_s = {0.0, 0.0};
  layer.phases[0].end_s = {9.0, 17.0};
  layer.phases[1].phase = Phase::kMlp;
  layer.phases[1].begin_s = {10.0, 18.0};
  layer.phases[1].end_s = {20.0, 30.0};
  align_clocks(layer);
  EXPECT_EQ(layer.phases[0].begin_s, (std::vector<double>{0.0, -8.0}));
  EXPECT_EQ(layer.phases[0].end_s, (std::vector<double>{9.0, 9.0}));
  EXPECT_EQ(layer.phases[1].end_s, (std::vector<double>{20.0, 22.0}));
  EXPECT_EQ(layer.time_s, 22.0);
  // A second time changes nothing.
  align_clocks(layer);
  EXPECT_EQ(layer.phases[1].end_s, (std::vector<double>{20.0, 22.0}));
  EXPECT_EQ(layer.time_s, 22.0);
}

TEST(Clocks, StayWithoutANotifyStep) {
  LayerReport layer;
  layer.time_s = 30.0;
  align_clocks(layer);
  EXPECT_EQ(layer.time_s, 30.0);
}

}  // namespace
}  // namespace coterie
