#pragma once
// Which rank owns which tokens: what plans are made from.

#include <cstdint>
#include <optional>
#include <vector>

#include "workloads/trace/routing.hpp"

namespace coterie {

// The tokens of one EP group as its ranks own them.
struct RankTokens {
  std::vector<std::uint64_t> token_begin;  // [num_ranks + 1]
  std::vector<std::uint64_t> trace_token;  // [num_tokens] position in the trace
};

// How sequences come to ranks. Rank r owns the tokens of its own sequences, as under data-parallel
// attention.
enum class SequenceDeal : std::uint8_t { kRoundRobin, kInOrder };
// Deals the sequences of a trace to the ranks: round robin (sequence i to rank i mod P) or in order
// (the first S/P sequences to rank 0, ...). With `tokens_per_rank`, a rank is dealt sequences,
// starting over when the trace ends, until it owns exactly that many tokens; the last sequence is
// cut. Without, every token is used once. `first_sequence` rotates the deal, so that groups differ.
RankTokens deal_tokens(const Routing& routing, std::uint32_t num_ranks,
                       std::optional<std::uint32_t> tokens_per_rank, SequenceDeal deal,
                       std::uint64_t first_sequence = 0);

}  // namespace coterie
