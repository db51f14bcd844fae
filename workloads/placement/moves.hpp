#pragma once
// From one placement to another: which expert's weights go from which rank to which.

#include <cstdint>
#include <vector>

#include "workloads/placement/placement.hpp"

namespace coterie {

// The weights of one expert of one layer, sent once.
struct ExpertMove {
  std::uint32_t layer_idx = 0;  // position in Placement::layers
  ExpertIdx expert = 0;
  std::uint32_t src = 0, dst = 0;  // ranks; they differ
  bool operator==(const ExpertMove&) const = default;
};

// One move for every expert of a rank of `after` that the rank did not host in `before`; experts
// that stay move nothing, and weights that nobody hosts any more are dropped. Sources are hosts in
// `before`: in the receiver's node where there is one, and of several the one that has sent least so
// far (then the lowest), the receivers with fewest sources choosing first. By layer, then receiver,
// then expert. Throws InputError where the two differ in ranks, experts or layers.
std::vector<ExpertMove> expert_moves(const Placement& before, const Placement& after);

// `after` with its ranks renumbered so that as many experts as possible stay where `before` has them:
// in every layer an assignment of nodes to nodes and, inside, of ranks to ranks, each optimal. Which
// experts share a rank, and which ranks a node, is unchanged. Throws as expert_moves.
Placement renumbered_to_stay(const Placement& before, const Placement& after);

// Counts of moves; times an expert's bytes, these are bytes.
struct MoveCounts {
  std::uint64_t total = 0;
  std::uint64_t between_nodes = 0;
  std::uint64_t most_sent = 0;       // by one rank
  std::uint64_t most_received = 0;   // by one rank
  std::vector<std::uint64_t> pairs;  // [num_ranks][num_ranks] from rank to rank
};
MoveCounts count_moves(const std::vector<ExpertMove>& moves, std::uint32_t num_ranks,
                       std::uint32_t ranks_per_node);

}  // namespace coterie
