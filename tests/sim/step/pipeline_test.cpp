// Pipeline schedules: the order of 1F1B by hand, and the known share of the bubble.

#include "sim/step/pipeline.hpp"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <tuple>

namespace coterie {
namespace {

PipelineCosts costs(double forward_s, double backward_s, double send_s = 0.0) {
  return {[=](std::uint32_t, const PipelineSlot& slot, double) {
            return (slot.forward ? forward_s : 0.0) + (slot.backward ? backward_s : 0.0);
          },
          [=](std::uint32_t, std::uint32_t, bool, double) { return send_s; }};
}

// Stage 1 of 3 with 4 micro-batches: one forward pass ahead, then pairs, then what is left.
TEST(Pipeline, OneForwardOneBackward) {
  const std::vector<PipelineSlot> slots = stage_slots({.num_stages = 3, .num_micro_batches = 4}, 1);
  std::string order;
  for (const PipelineSlot& slot : slots) {
    order += slot.forward ? static_cast<char>('1' + slot.forward->micro_batch)
                          : static_cast<char>('a' + slot.backward->micro_batch);
  }
  EXPECT_EQ(order, "12a3b4cd");
}

// (p-1)/(m+p-1) of the step, and (p-1)/(v m + p - 1) with v chunks: Narayanan et al., SC 2021,
// section 2.2. Backward passes take twice as long as forward ones.
TEST(Pipeline, BubbleHasItsKnownShare) {
  for (const std::uint32_t p : {1U, 2U, 4U, 8U}) {
    for (const std::uint32_t m : {8U, 16U, 32U}) {
      for (const std::uint32_t v : {1U, 2U, 3U}) {
        const PipelineTimes times = schedule_pipeline(
            {.num_stages = p, .num_chunks = v, .num_micro_batches = m}, costs(1.0, 2.0));
        EXPECT_NEAR(times.bubble_s / times.makespan_s, (p - 1.0) / (v * m + p - 1.0), 1e-12)
            << p << " stages, " << m << " micro-batches, " << v << " chunks";
      }
    }
  }
}

// Every stage does every pass once, forward before backward, whatever the schedule.
TEST(Pipeline, EveryPassOnce) {
  for (const bool paired : {false, true}) {
    for (const std::uint32_t v : {1U, 2U}) {
      const PipelineShape shape{
          .num_stages = 4, .num_chunks = v, .num_micro_batches = 8, .paired = paired};
      const PipelineTimes times = schedule_pipeline(shape, costs(1.0, 2.0, 0.1));
      std::set<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> forward, backward;
      for (const SlotTime& slot : times.slots) {
        if (const auto& f = slot.slot.forward) {
          EXPECT_TRUE(forward.emplace(slot.stage, f->chunk, f->micro_batch).second);
        }
        if (const auto& b = slot.slot.backward) {
          EXPECT_TRUE(forward.contains({slot.stage, b->chunk, b->micro_batch}));
          EXPECT_TRUE(backward.emplace(slot.stage, b->chunk, b->micro_batch).second);
        }
      }
      EXPECT_EQ(forward.size(), 4U * v * 8);
      EXPECT_EQ(backward.size(), 4U * v * 8);
    }
  }
}

// Where every slot takes one unit, alone or in a pair, forward pass k of stage s runs in slot s + k and
// its backward pass 2(p - s) - 1 slots later, so that m micro-batches end after m + 2p - 1 slots:
// no stage waits between its first and its last slot but for its own turn.
TEST(Pipeline, PairsFollowEachOtherWithoutGaps) {
  const PipelineCosts unit{[](std::uint32_t, const PipelineSlot&, double) { return 1.0; },
                           [](std::uint32_t, std::uint32_t, bool, double) { return 0.0; }};
  for (const std::uint32_t p : {1U, 2U, 4U}) {
    for (const std::uint32_t m : {8U, 32U}) {
      const PipelineShape shape{.num_stages = p, .num_micro_batches = m, .paired = true};
      EXPECT_DOUBLE_EQ(schedule_pipeline(shape, unit).makespan_s, m + 2.0 * p - 1.0)
          << p << " stages, " << m << " micro-batches";
    }
  }
}

// Two stages, one micro-batch, a send of 0.5: forward 1 + 0.5 + 1, backward 2 + 0.5 + 2.
TEST(Pipeline, SendsDelayTheNeighbour) {
  const PipelineTimes times = schedule_pipeline({.num_stages = 2}, costs(1.0, 2.0, 0.5));
  EXPECT_DOUBLE_EQ(times.makespan_s, 7.0);
  // Back along what was waited for: the last slot is stage 0's backward pass, after stage 1's.
  const SlotTime& last = times.slots[1];
  ASSERT_TRUE(last.waited_for);
  EXPECT_EQ(times.slots[*last.waited_for].stage, 1U);
}

TEST(Pipeline, ForwardAlone) {
  const PipelineTimes times = schedule_pipeline(
      {.num_stages = 3, .num_micro_batches = 5, .backward = false}, costs(1.0, 2.0));
  EXPECT_DOUBLE_EQ(times.makespan_s, 7.0);
}

TEST(Pipeline, InterleavedNeedsWholeRounds) {
  EXPECT_THROW((void)stage_slots({.num_stages = 4, .num_chunks = 2, .num_micro_batches = 6}, 0),
               std::logic_error);
}

}  // namespace
}  // namespace coterie
