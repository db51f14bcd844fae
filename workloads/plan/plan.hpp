#pragma once
// The dispatch plan: who sends which token rows to whom. It is the joint of the system: the
// predictors turn it into simulated transfers, the runtime into NCCL calls, and both report on it.
//
// One LayerPlan serves one MoE layer of one EP group of P ranks. A *row* is one token's vector on
// one hop. Dispatch runs the stages forwards, combine runs them backwards: every dispatched row is
// answered by exactly one result row over the same pair of ranks, so the combine needs no list of
// its own.
//
//   policy        stages        a row of stage 0                     a row of stage 1
//   standard      1             one (token, expert) copy             -
//   dedup         1             one token to one rank                -
//   hierarchical  2             one token to one node: to the rank   one token from there to one
//   rank
//                               of the same local index there        of that node
//
// Rows whose source and destination are the same rank are listed (the rank must expand them) but
// cross no link. In hierarchical plans a row may stay local in stage 0 (own node) or in stage 1
// (own rank).

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/units.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

enum class DispatchPolicy : std::uint8_t { kStandard, kDedup, kHierarchical };
std::string to_string(DispatchPolicy policy);
std::optional<DispatchPolicy> parse_policy(std::string_view name);

enum class PayloadType : std::uint8_t {
  kBf16,  // 2 bytes per value
  kFp8,   // 1 byte per value and one float scale per 128 values
};
std::string to_string(PayloadType type);
std::optional<PayloadType> parse_payload(std::string_view name);
// Bytes of one row of `hidden` values. FP8 at hidden 7168: 7392 B.
Bytes row_payload(PayloadType type, std::uint32_t hidden);

// What a row costs on the wire besides its payload, in the dispatch direction: the token's index,
// and for every expert it serves there its id and router weight. Result rows return in the order
// the dispatch rows came and carry none.
inline constexpr std::int64_t kRowMetadataBytes = 4;
inline constexpr std::int64_t kCopyMetadataBytes = 8;

struct PayloadSizes {
  Bytes dispatch_row;
  Bytes combine_row;
};

// Transfers of one stage, grouped by source rank; within a source in send order (destination ranks
// src, src + 1, ... modulo P, so that no destination is everybody's first).
struct Stage {
  std::vector<std::uint32_t> src;         // [num_transfers], ascending
  std::vector<std::uint32_t> dst;         // [num_transfers]
  std::vector<std::uint32_t> num_rows;    // [num_transfers], > 0
  std::vector<std::uint32_t> num_copies;  // [num_transfers] (token, expert) pairs its rows serve
  // Stage 1 only: the stage-0 transfer that brought these rows to `src`.
  std::vector<std::uint32_t> parent;  // [num_transfers]
  // The rows themselves; empty in plans of counts only.
  std::vector<std::uint64_t> row_begin;  // [num_transfers + 1]
  std::vector<std::uint32_t>
      row_token;  // [num_rows] position in LayerPlan::experts, ascending per transfer
  std::vector<std::uint32_t> row_mask;  // [num_rows] bit j: serves the token's j-th expert

  [[nodiscard]] std::size_t num_transfers() const { return src.size(); }
};

Bytes dispatch_bytes(const Stage& stage, std::size_t transfer_idx, const PayloadSizes& sizes);
Bytes combine_bytes(const Stage& stage, std::size_t transfer_idx, const PayloadSizes& sizes);

struct LayerPlan {
  DispatchPolicy policy = DispatchPolicy::kStandard;
  std::uint32_t layer = 0;  // number in the model
  std::uint32_t num_ranks = 0;
  std::uint32_t ranks_per_node = 1;
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;
  bool exact = true;                       // false for pruned routing
  std::vector<std::uint64_t> token_begin;  // [num_ranks + 1] tokens of each rank, rank-major
  std::vector<ExpertIdx> experts;          // [num_tokens][num_topk]; empty in plans of counts only
  std::vector<float> weights;              // the same shape or empty
  std::vector<Stage> stages;               // 1, or 2 for hierarchical
  std::vector<std::uint32_t> rank_expert_begin;  // [num_ranks + 1] into rank_experts
  std::vector<ExpertIdx> rank_experts;           // experts hosted by each rank, ascending
  std::vector<std::uint64_t>
      rank_expert_tokens;  // [rank_experts.size()] tokens each hosted expert serves

  [[nodiscard]] std::uint64_t num_tokens() const {
    return token_begin.empty() ? 0 : token_begin.back();
  }
  [[nodiscard]] bool has_rows() const { return !stages.empty() && !stages[0].row_begin.empty(); }
};

// The tokens of one layer as the ranks own them: what a plan is made from.
struct RankTokens {
  std::vector<std::uint64_t> token_begin;  // [num_ranks + 1]
  std::vector<std::uint64_t> trace_token;  // [num_tokens] position in the trace
};

// How sequences come to ranks (DESIGN section 4).
enum class SequenceDeal : std::uint8_t { kRoundRobin, kInOrder };
// Deals the sequences of a trace to the ranks: round robin (sequence i to rank i mod P) or in order
// (the first S/P sequences to rank 0, ...). With `tokens_per_rank`, a rank is dealt sequences,
// starting over when the trace ends, until it owns exactly that many tokens; the last sequence is
// cut. Without, every token is used once. `first_sequence` rotates the deal, so that groups differ.
RankTokens deal_tokens(const Routing& routing, std::uint32_t num_ranks,
                       std::optional<std::uint32_t> tokens_per_rank, SequenceDeal deal,
                       std::uint64_t first_sequence = 0);

enum class PlanDetail : std::uint8_t { kRows, kCounts };

struct PlanRequest {
  DispatchPolicy policy = DispatchPolicy::kDedup;
  std::uint32_t ranks_per_node = 1;
  PlanDetail detail = PlanDetail::kRows;
  ReplicaChoice replica_choice = ReplicaChoice::kLocality;  // Placement::replica_choice
};

// Plans one layer. Which host serves a replicated expert is settled by the request's rule
// (host_choice.hpp).
LayerPlan make_plan(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
                    const RankTokens& tokens, const PlanRequest& request);

// Rows per token by the tier they cross; hops that stay on their rank are `local`.
struct TierRows {
  double local = 0.0;
  double scale_up = 0.0;  // between ranks of one node
  double network = 0.0;
};

// What a plan's rows amount to, mean per token (DESIGN section 3).
struct FanOut {
  double copies = 0.0;  // k: every (token, expert) pair, those for the own rank included
  double fanout_ranks = 0.0;
  double remote_fanout_ranks = 0.0;
  double fanout_nodes = 0.0;
  double remote_fanout_nodes = 0.0;
  double rank_load_max_over_mean = 0.0;
  // Dispatch rows of each policy; a hierarchical row is counted once per hop. The rows of
  // `standard` sum to `copies`, those of `dedup` to `fanout_ranks`.
  TierRows standard, dedup, hierarchical;
  // The (token, expert) pairs that the hierarchical rows of each tier serve, once per hop (those of
  // the other two policies are the rows of `standard`). They cost metadata.
  TierRows hierarchical_copies;
};
// Expected fan-out of tokens that choose k distinct experts uniformly, with the experts in equal
// parts (differing by at most one) over the ranks: the sum over ranks of 1 - C(E - e, k) / C(E, k).
double uniform_fan_out(std::uint32_t num_experts, std::uint32_t num_ranks, std::uint32_t num_topk);
// One pass over the layer; the same host choice for replicated experts as make_plan. Throws
// InputError where the placement's experts or ranks do not fit the routing and the tokens.
FanOut fan_out(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
               std::uint32_t ranks_per_node, const RankTokens& tokens,
               ReplicaChoice choice = ReplicaChoice::kLocality);

// A plan file holds the layers of one run with the sizes of its rows.
struct DispatchPlan {
  std::string model;
  std::uint32_t hidden = 0;
  PayloadType dispatch_payload = PayloadType::kBf16;
  PayloadType combine_payload = PayloadType::kBf16;
  std::vector<LayerPlan> layers;
  [[nodiscard]] PayloadSizes sizes() const {
    return {row_payload(dispatch_payload, hidden), row_payload(combine_payload, hidden)};
  }
};
void write_plan(const std::filesystem::path& path, const DispatchPlan& plan);
DispatchPlan read_plan(const std::filesystem::path& path);

}  // namespace coterie
