#pragma once
// An independent checker of dispatch plans. It shares no code with the planners: it takes a plan as
// it is, carries every row from rank to rank in the obvious way and looks at what arrived where.

#include <string>
#include <vector>

#include "workloads/plan/plan_file.hpp"

namespace coterie {

// What a plan moves, added up by the checker itself (not by dispatch_bytes).
struct PlanTotals {
  std::uint64_t num_tokens = 0;
  std::uint64_t num_copies = 0;  // (token, expert) pairs served
  std::uint64_t num_rows = 0;    // over all stages
  std::uint64_t num_remote_rows = 0;
  std::int64_t dispatch_bytes = 0;  // remote rows: payload and metadata
  std::int64_t combine_bytes = 0;
};

struct PlanCheck {
  std::vector<std::string> violations;  // empty for a sound plan; at most kMaxViolations
  std::uint64_t num_violations = 0;     // all of them
  PlanTotals totals;
};
inline constexpr std::size_t kMaxViolations = 1000;

// Needs rows and experts (a plan of counts only is a violation). Looks for:
//  - shapes and ids that do not fit each other;
//  - a (token, expert) that no rank serves, that several serve, or that a rank serves which
//    does not host it;
//  - a row sent by a rank that does not have the token there: not its owner in stage 0, not brought
//    by the parent transfer in stage 1, or a copy that the parent row did not carry;
//  - a token sent twice over the same hop, where the policy sends it once; a stage-0 row of a
//    hierarchical plan that does not end at the rank of the same local index;
//  - counts of rows and copies that are not those of the rows, transfers without rows, and bytes
//    (dispatch_bytes, combine_bytes) that are not payload and metadata of the rows;
//  - transfers out of send order, answers out of theirs or missing, rows out of token order, tokens
//    in another round than theirs, forwarded rows in another round than what brought them;
//  - hops and phases that are not the policy's;
//  - rank_expert_tokens that are not what arrives.
// The combine has no lists of its own: it is sound when every dispatched row came from where its
// result must return to, which is what the third point says.
PlanCheck check_plan(const LayerPlan& plan, const PayloadSizes& sizes);

// All layers of a plan file, violations with their layer, totals added up; the sizes of a row are
// worked out anew from hidden size and payload types.
PlanCheck check_plan(const DispatchPlan& plan);

}  // namespace coterie
