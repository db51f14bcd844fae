#pragma once
// A dispatch plan as one rank executes it: which blocks it sends and receives in each round of each
// hop, in which order and of which size, and the tables that the kernels are driven by. Plain host
// data; every buffer offset of a run follows from it.
//
// Experts are numbered by *slot*: their position in LayerPlan::rank_experts. A replicated expert
// has one slot per replica, and the plan's rows say which replica serves which copy.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/layout.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

// The blocks of one round of a hop; each is one message. Blocks of zero rows are listed but never
// sent.
struct HopRound {
  std::vector<kernels::BlockCounts> send;  // by send position
  std::vector<kernels::BlockCounts> recv;  // by source
  std::uint32_t num_send_rows = 0, num_send_copies = 0;
  std::uint32_t num_recv_rows = 0, num_recv_copies = 0;
  // Rows and copies of the rounds before.
  std::uint32_t send_row_begin = 0, send_copy_begin = 0;
  std::uint32_t recv_row_begin = 0, recv_copy_begin = 0;
};

// One stage of the plan, seen from one rank.
struct Hop {
  // By send position: the own destination first, then ascending modulo the number of destinations.
  std::vector<std::uint32_t> send_ranks;
  // Every possible source, ascending; the rank itself included.
  std::vector<std::uint32_t> recv_ranks;
  std::size_t recv_self = 0;  // position of this rank in recv_ranks; in send_ranks it is 0
  std::vector<HopRound> rounds;

  // Of all rounds.
  std::uint32_t num_send_rows = 0, num_send_copies = 0;
  std::uint32_t num_recv_rows = 0, num_recv_copies = 0;

  // Destination number of each slot on this hop: a rank, a node, or a rank's index in its node.
  std::vector<std::uint16_t> slot_dest;
  std::uint32_t first_dest = 0;
};

struct RankLayout {
  std::uint32_t rank = 0;
  DispatchPolicy policy = DispatchPolicy::kStandard;
  std::uint32_t num_tokens = 0;
  std::uint32_t num_topk = 0;
  std::vector<std::uint32_t> round_begin;  // [num_rounds + 1] the own tokens of each round
  std::vector<std::uint16_t> token_slots;  // [num_tokens][num_topk] the slot that serves each copy
  std::vector<float> token_weights;        // the same shape; 1/k where the trace holds none
  std::vector<Hop> hops;                   // one per stage
  std::vector<std::uint32_t> slot_expert;  // [num_slots] logical expert
  std::vector<std::uint16_t> slot_local;   // [num_slots] position on its own rank
  std::uint32_t first_local_slot = 0;      // this rank's slots: first_local_slot + 0 ...
  std::vector<std::uint32_t> local_experts;  // logical experts hosted here, by local slot
  std::vector<std::uint32_t> expert_begin;   // [local_experts + 1] rows in expert order

  [[nodiscard]] std::uint32_t num_slots() const {
    return static_cast<std::uint32_t>(slot_expert.size());
  }
  [[nodiscard]] std::uint32_t num_rounds() const {
    return static_cast<std::uint32_t>(round_begin.size()) - 1;
  }
};

// Throws InputError for plans without rows, and for plans whose transfers join ranks that their hop
// does not.
RankLayout make_rank_layout(const LayerPlan& plan, std::uint32_t rank);

// Compares the rows of hop 0 as the device built them with the plan's: `row_item` (the rank's own
// token) and `row_mask` are those of the send index (see kernels/index.hpp), round after round. The
// first difference as a sentence, or nothing.
std::optional<std::string> compare_with_plan(const LayerPlan& plan, const RankLayout& layout,
                                             const std::vector<std::uint32_t>& row_item,
                                             const std::vector<std::uint32_t>& row_mask);

}  // namespace coterie
