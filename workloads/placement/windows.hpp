#pragma once
// Traces cut by time: windows to learn on and to judge on, and the steps inside them.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "workloads/trace/routing.hpp"

namespace coterie {

// The traces one after the other, without router weights. Throws InputError, naming the trace, where
// one differs from the first in experts, top-k or layers.
Routing concatenate(std::span<const Routing> traces);

// Consecutive whole sequences [first, second) with at least `min_tokens` tokens each; a rest that is
// smaller belongs to the last window. Throws InputError where the trace has fewer.
std::vector<TokenRange> sequence_windows(const Routing& routing, std::uint64_t min_tokens);

// The steps that the tokens fill: each takes the next num_ranks * tokens_per_rank of them, rank after
// rank, and is a trace of one sequence per rank, which a round-robin deal gives it. What is left over
// fills no step.
std::vector<Routing> steps_of(const Routing& routing, std::uint32_t num_ranks,
                              std::uint32_t tokens_per_rank);

// `num_tokens` tokens to learn from: whole sequences drawn without repetition, the last one
// cut. Equal arguments draw the same.
Routing draw_tokens(const Routing& routing, std::uint64_t num_tokens, std::uint64_t seed);

}  // namespace coterie
