#pragma once
// What the ranks do with a plan: which messages they send in which order, and what each has to wait
// for. The simulator adds operations in this order with these waits, the runtime (and its dry
// executor) follows them; a test holds the two against each other.
//
// A *message* is all that one rank sends to one other in one round of one stage: transfers of
// several parents travel together.
//
//   direction  stage  a message of round c leaves once its rank has
//   dispatch   0      packed its rows
//   dispatch   s > 0  received all that stage s - 1 brings it in round c
//   combine    last   merged its experts' outputs
//   combine    s      received all that stage s + 1 returns to it in round c, and summed it
//
// A rank expands once it has received everything of the last stage, and sums up once it has
// received all results of stage 0. Rows and results that stay on their rank are in messages too (to
// itself); they cross no link and are there as soon as they could leave.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "workloads/plan/plan.hpp"

namespace coterie {

struct PlanMessage {
  std::uint32_t src = 0, dst = 0;  // ranks, in the direction of travel
  std::uint32_t round = 0;
  std::uint32_t num_rows = 0;
  std::uint32_t num_copies = 0;  // (token, expert) pairs that the rows serve
  // Its transfers: entries [first, first + count) of the stage, or of its answer_order in the
  // combine direction.
  std::uint32_t first = 0, count = 0;

  [[nodiscard]] Bytes bytes(Direction direction, const PayloadSizes& sizes) const {
    return direction == Direction::kDispatch ? sizes.dispatch(num_rows, num_copies)
                                             : sizes.combine(num_rows);
  }
  friend bool operator==(const PlanMessage&, const PlanMessage&) = default;
};

// All messages of a stage in one direction: senders ascending, each in the order in which it sends.
std::vector<PlanMessage> stage_messages(const Stage& stage, Direction direction);

// One exchange of the EP group: the messages of one stage, direction and round.
struct Step {
  Direction direction = Direction::kDispatch;
  std::size_t stage = 0;
  std::uint32_t round = 0;
  friend bool operator==(const Step&, const Step&) = default;
};
// All exchanges in an order in which every rank can carry them out one after the other: a round is
// passed on after the next one was sent. What has streams may let exchanges of different stages
// overlap; those of one stage and direction keep this order.
std::vector<Step> plan_steps(const LayerPlan& plan);
// The exchanges whose messages to a rank must all have arrived before it may send its own of `step`
// (the table above); those that are answered after the experts wait for the whole dispatch.
std::vector<Step> prerequisites(const LayerPlan& plan, const Step& step);

// The phase of a stage's messages.
Phase phase_of(const Stage& stage, Direction direction);

// The ranks that one rank exchanges rows with on a hop, numbered as the kernels number them: all
// that it may send to are also all that it may receive from.
struct HopPeers {
  std::uint32_t num_peers = 1;  // itself included
  std::uint32_t own = 0;        // its own number
  std::uint32_t first = 0;      // rank of number 0
  std::uint32_t stride = 1;     // between the ranks of consecutive numbers

  [[nodiscard]] std::uint32_t rank_of(std::uint32_t number) const {
    return first + number * stride;
  }
  // Nothing for a rank that the hop does not reach from here.
  [[nodiscard]] std::optional<std::uint32_t> number_of(std::uint32_t rank) const;
};
HopPeers hop_peers(const LayerPlan& plan, HopKind hop, std::uint32_t rank);

// Fills Stage::answer_order from the other columns.
void order_answers(std::uint32_t num_ranks, std::uint32_t num_rounds, Stage& stage);

}  // namespace coterie
