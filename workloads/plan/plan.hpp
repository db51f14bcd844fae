#pragma once
// The dispatch plan: who sends which token rows to whom, in what order, in what pieces and after
// what, in both directions. It is the joint of the system: the simulator turns it into operations,
// the runtime executes it, and neither decides anything of it again. schedule.hpp says what each
// rank does with it.
//
// One LayerPlan serves one MoE layer of one EP group of P ranks. A *row* is one token's vector on
// one hop. Dispatch runs the stages forwards, combine runs them backwards: every dispatched row is
// answered by exactly one result row over the same pair of ranks, so the combine needs no list of
// its own.
//
//   policy        stages  a row of stage 0                  a row of stage 1
//   standard      1       one (token, expert) copy          -
//   dedup         1       one token to one rank             -
//   hierarchical  2       one token to one node, to the     one token from there to one
//                         rank of the same local index      rank of that node
//
// Rows whose source and destination are the same rank are listed (the rank must expand them) but
// cross no link. In hierarchical plans a row may stay local in stage 0 (own node) or in stage 1
// (own rank).
//
// Several hops would each wait for all of the hop before. A layer is therefore cut into *rounds*:
// round c of n carries the rows of the c-th part of every rank's tokens, [T c / n, T (c+1) / n) of
// a rank's T. A rank passes a round on while the next one still arrives. Flat plans have one.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/phase.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/payload.hpp"
#include "workloads/plan/tokens.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

enum class DispatchPolicy : std::uint8_t { kStandard, kDedup, kHierarchical };
std::string to_string(DispatchPolicy policy);
std::optional<DispatchPolicy> parse_policy(std::string_view name);

// Which ranks the transfers of a stage join.
enum class HopKind : std::uint8_t {
  kGroup,  // any two ranks of the EP group
  kRail,   // ranks of the same local index, one in every node
  kNode,   // ranks of one node
};
std::string to_string(HopKind hop);

// The transfers of one stage. A transfer is the rows that one source sends to one destination in
// one round and that one parent brought there; what travels as one message, and in which order, is
// in schedule.hpp.
struct Stage {
  HopKind hop = HopKind::kGroup;
  Phase out = Phase::kDispatch;  // the phase of its rows, and that of their results
  Phase back = Phase::kCombine;

  // In the order in which rows are sent: sources ascending; a source sends round by round, and in a
  // round to itself, then to the ranks above it, modulo P, so that no destination is everybody's
  // first; to one destination by parent.
  std::vector<std::uint32_t> src;         // [num_transfers]
  std::vector<std::uint32_t> dst;         // [num_transfers]
  std::vector<std::uint32_t> round;       // [num_transfers]
  std::vector<std::uint32_t> num_rows;    // [num_transfers], > 0
  std::vector<std::uint32_t> num_copies;  // [num_transfers] (token, expert) pairs its rows serve
  // Stage 1 only: the stage-0 transfer that brought these rows to `src`, of the same round.
  std::vector<std::uint32_t> parent;  // [num_transfers]
  // The order in which results return, as positions of the transfers that they answer: answering
  // ranks (dst) ascending; a rank answers round by round, and in a round itself, then the ranks
  // above it, modulo P; one rank's by parent.
  std::vector<std::uint32_t> answer_order;  // [num_transfers]

  // The rows themselves; empty in plans of counts only.
  std::vector<std::uint64_t> row_begin;  // [num_transfers + 1]
  std::vector<std::uint32_t> row_token;  // [num_rows] position in LayerPlan::experts, ascending
                                         // within a transfer
  std::vector<std::uint32_t> row_mask;   // [num_rows] bit j: serves the token's j-th expert

  [[nodiscard]] std::size_t num_transfers() const { return src.size(); }
};

// Bytes of a transfer's rows and of their results.
Bytes dispatch_bytes(const Stage& stage, std::size_t transfer_idx, const PayloadSizes& sizes);
Bytes combine_bytes(const Stage& stage, std::size_t transfer_idx, const PayloadSizes& sizes);

struct LayerPlan {
  DispatchPolicy policy = DispatchPolicy::kStandard;
  std::uint32_t layer = 0;  // number in the model
  std::uint32_t num_ranks = 0;
  std::uint32_t ranks_per_node = 1;
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;
  std::uint32_t num_rounds = 1;
  bool exact = true;                       // false for pruned routing
  std::vector<std::uint64_t> token_begin;  // [num_ranks + 1] tokens of each rank, rank-major
  std::vector<ExpertIdx> experts;          // [num_tokens][num_topk]; empty in plans of counts only
  std::vector<float> weights;              // the same shape or empty
  std::vector<Stage> stages;               // 1, or 2 for hierarchical
  std::vector<std::uint32_t> rank_expert_begin;   // [num_ranks + 1] into rank_experts
  std::vector<ExpertIdx> rank_experts;            // experts hosted by each rank, ascending
  std::vector<std::uint64_t> rank_expert_tokens;  // [rank_experts.size()] tokens that each hosted
                                                  // expert serves

  [[nodiscard]] std::uint64_t num_tokens() const {
    return token_begin.empty() ? 0 : token_begin.back();
  }
  [[nodiscard]] std::uint64_t num_tokens(std::uint32_t rank) const {
    return token_begin[rank + 1] - token_begin[rank];
  }
  [[nodiscard]] bool has_rows() const { return !stages.empty() && !stages[0].row_begin.empty(); }
};

// The first token of a rank's part for `round`; that of round num_rounds is the end of its tokens.
std::uint64_t round_begin(std::span<const std::uint64_t> token_begin, std::uint32_t rank,
                          std::uint32_t round, std::uint32_t num_rounds);

enum class PlanDetail : std::uint8_t { kRows, kCounts };

struct PlanRequest {
  DispatchPolicy policy = DispatchPolicy::kDedup;
  std::uint32_t ranks_per_node = 1;
  PlanDetail detail = PlanDetail::kRows;
  // Plans of several hops: rows that one rank sends to one other in a round where its tokens spread
  // evenly, which sets the number of rounds. Absent: one round.
  std::optional<std::uint32_t> rows_per_round = std::nullopt;
  ReplicaChoice replica_choice = ReplicaChoice::kLocality;  // Placement::replica_choice
};

// PlanRequest::rows_per_round of rounds that carry about `chunk` bytes from one rank to another.
std::uint32_t rows_per_round(Bytes chunk, Bytes row);

// Plans one layer. Which host serves a replicated expert is settled by the request's rule
// (host_choice.hpp). Throws InputError for inputs that do not fit each other.
LayerPlan make_plan(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
                    const RankTokens& tokens, const PlanRequest& request);

}  // namespace coterie
