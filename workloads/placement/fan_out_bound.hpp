#pragma once
// A lower bound on fan-out: what no placement of a layer can go below on given tokens.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "workloads/trace/routing.hpp"

namespace coterie {

// How much work a bound is worth. All are valid.
enum class BoundEffort : std::uint8_t {
  kQuick,  // a few steps from the known placement: milliseconds
  kTight,  // as many as about a second allows, and eigenvalues
};

// Parts are ranks, or nodes: the bound knows capacities only.
struct FanOutBoundTask {
  std::span<const ExpertIdx> experts;  // [num_tokens][num_topk], distinct per token
  std::uint32_t num_topk = 0;
  std::uint32_t num_experts = 0;
  std::uint32_t part_capacity = 0;  // expert slots of the largest part, at least 1
  std::uint32_t num_replicas = 0;   // slots of all parts beyond num_experts
  // Cap on the (token, expert) pairs of a part. Ignored with replicas, whose loads depend on the
  // rule that chooses among them.
  std::optional<double> max_load;
  // A placement that is known, as the part of every expert: where the search for a bound starts,
  // and what it aims at. The bound is valid for any, tighter for a good one. Empty: none is known.
  std::span<const std::uint32_t> known;  // [num_experts]
  // What that placement reaches where `known` does not tell, as with replicas.
  std::optional<std::uint64_t> known_fan_out;
  BoundEffort effort = BoundEffort::kTight;
  // Passes over the tokens that the search may take; absent: as many as the effort says.
  std::optional<std::uint32_t> max_passes;
};

// Distinct parts summed over the tokens: no placement has fewer, whatever rule chooses among
// replicas. See fan_out_bound.cpp for the derivation. Never below num_tokens * ceil(k / capacity),
// and exact where a part has one slot or holds all experts.
std::uint64_t fan_out_bound(const FanOutBoundTask& task);

}  // namespace coterie
