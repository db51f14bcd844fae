#pragma once
// The phases of a MoE layer: the words that plans, programs, reports and timelines share.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace coterie {

// What a rank does in one MoE layer, in order. kForward and kGather exist under the hierarchical
// policy only: the hop inside the node after the dispatch and before the combine.
enum class Phase : std::uint8_t {
  kNotify,    // exchange of counts and the barrier that precedes a dispatch
  kPack,      // gather the token rows for each destination
  kDispatch,  // token rows to the ranks (or nodes) of their experts
  kForward,   // hierarchical: rows on to the ranks inside the node
  kExpand,    // received rows to expert order
  kMlp,       // the expert MLP
  kMerge,     // router-weighted pre-sum of a rank's expert outputs per token
  kGather,    // hierarchical: results back to the node's rail peer and their sum
  kCombine,   // results back to the tokens' own ranks
  kSum,       // sum of the returned rows
};
inline constexpr int kNumPhases = 10;
std::string to_string(Phase phase);
std::optional<Phase> parse_phase(std::string_view name);

// Tokens on their way to the experts, or results on their way back.
enum class Direction : std::uint8_t { kDispatch, kCombine };

}  // namespace coterie
