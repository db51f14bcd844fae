// What the program builder keeps and refuses.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "sim/program/program.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;

TEST(ProgramBuilder, RefusesWhatAnEngineCannotRun) {
  ProgramBuilder builder;
  EXPECT_THROW(builder.add_transfer(1, 1, 1.0, kStartEvent, {}), std::logic_error);
  EXPECT_THROW(builder.add_compute(0, -1.0, kStartEvent, {}), std::logic_error);
  EXPECT_THROW(builder.add_compute(0, std::nan(""), kStartEvent, {}), std::logic_error);
  EXPECT_THROW(builder.add_compute(0, 1.0, 7, {}), std::logic_error);
  EXPECT_THROW(builder.add({.amount = -1.0}), std::logic_error);
  EXPECT_THROW(builder.add({.rate_cap = 5}), std::logic_error);
  EXPECT_THROW(builder.add({.queue = 5}), std::logic_error);
  const std::uint32_t start[]{kStartEvent};
  EXPECT_THROW(builder.add({.signals = start}), std::logic_error);
  const std::uint32_t nothing[]{0};
  EXPECT_THROW(builder.add({.uses = nothing}), std::logic_error);
  EXPECT_THROW(builder.add_queue(0), std::logic_error);
  EXPECT_THROW(builder.add_rate_cap(0.0), std::logic_error);
  EXPECT_THROW(builder.add_resource("memory", -1.0), std::logic_error);
  EXPECT_THROW(builder.add_change({-1.0, 0, 1.0}), std::logic_error);
  EXPECT_THROW(builder.add_change({1.0, 0, -1.0}), std::logic_error);
}

TEST(ProgramBuilder, RefusesHoldsThatCannotBe) {
  ProgramBuilder builder;
  const std::uint32_t sms = builder.add_resource("multiprocessors", 132.0);
  const std::uint32_t end = builder.add_event();
  const std::uint32_t op = builder.add_compute(0, 1.0, kStartEvent, {{end}});
  EXPECT_THROW(builder.add_hold({sms + 1, 1.0, op, end}), std::logic_error);
  EXPECT_THROW(builder.add_hold({sms, 133.0, op, end}), std::logic_error);
  EXPECT_THROW(builder.add_hold({sms, 1.0, op + 1, end}), std::logic_error);
  EXPECT_THROW(builder.add_hold({sms, 1.0, op, kStartEvent}), std::logic_error);
  EXPECT_THROW(builder.add_hold({sms, 1.0, op, end + 1}), std::logic_error);
}

TEST(ProgramBuilder, RefusesEventsThatNothingSignals) {
  ProgramBuilder waits;
  waits.add_compute(0, 1.0, waits.add_event(), {});
  EXPECT_THROW((void)std::move(waits).finish(), std::logic_error);
  ProgramBuilder holds;
  const std::uint32_t sms = holds.add_resource("multiprocessors", 132.0);
  const std::uint32_t op = holds.add_compute(0, 1.0, kStartEvent, {});
  holds.add_hold({sms, 1.0, op, holds.add_event()});
  EXPECT_THROW((void)std::move(holds).finish(), std::logic_error);
}

// Equal caps share one position; holds come by operation, changes by time, equal ones in the order
// in which they were added.
TEST(ProgramBuilder, KeepsCapsHoldsAndChangesInOrder) {
  ProgramBuilder builder;
  EXPECT_EQ(builder.add_rate_cap(2e9), 1U);
  EXPECT_EQ(builder.add_rate_cap(3e9), 2U);
  EXPECT_EQ(builder.add_rate_cap(2e9), 1U);
  EXPECT_EQ(builder.add_rate_cap(std::numeric_limits<double>::infinity()), kNoCap);
  const std::uint32_t sms = builder.add_resource("multiprocessors", 132.0);
  const std::uint32_t end = builder.add_event();
  for (int i = 0; i < 2; ++i) builder.add_compute(0, 1.0, kStartEvent, {{end}});
  builder.add_hold({sms, 3.0, 1, end});
  builder.add_hold({sms, 2.0, 0, end});
  builder.add_hold({sms, 1.0, 0, end});
  builder.add_change({2.0, 0, 1.0});
  builder.add_change({1.0, 7, 5.0});
  builder.add_change({1.0, 7, 4.0});
  const Program program = std::move(builder).finish();
  EXPECT_THAT(program.holds,
              ElementsAre(Hold{sms, 2.0, 0, end}, Hold{sms, 1.0, 0, end}, Hold{sms, 3.0, 1, end}));
  EXPECT_THAT(program.changes, ElementsAre(CapacityChange{1.0, 7, 5.0}, CapacityChange{1.0, 7, 4.0},
                                           CapacityChange{2.0, 0, 1.0}));
  EXPECT_EQ(program.event_count[end], 2U);
}

// Only what has an amount and something to flow over flows.
TEST(ProgramBuilder, KnowsWhatFlows) {
  ProgramBuilder builder;
  const std::uint32_t memory[]{builder.add_resource("memory", 1.0)};
  builder.add({.duration = 1.0, .amount = 5.0});
  builder.add({.amount = 5.0, .uses = memory});
  builder.add({.uses = memory});
  builder.add({.src = 0, .dst = 1, .amount = 5.0});
  builder.add({.src = 0, .dst = 1, .uses = memory});
  const Program program = std::move(builder).finish();
  std::vector<bool> flows;
  for (std::size_t op = 0; op < program.num_ops(); ++op) flows.push_back(program.flows(op));
  EXPECT_THAT(flows, ElementsAre(false, true, false, true, false));
}

}  // namespace
}  // namespace coterie
