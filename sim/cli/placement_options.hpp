#pragma once
// Options that `coterie place` and `coterie analyze` share.

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "workloads/placement/placement.hpp"

namespace coterie {

struct PlacementOptions {
  std::string trace;
  std::optional<std::uint32_t> num_ranks;
  std::optional<std::uint32_t> ranks_per_node;
  std::string strategy;
  std::optional<double> max_imbalance;
  std::uint32_t num_replicas = 0;
  std::uint64_t seed = 0;
  std::string train = "even";
};

// Adds the trace and what describes the ranks and the strategy.
void add_placement_options(CLI::App& command, PlacementOptions& options);

// Nodes of 8 GPUs, or one smaller node, where nothing else is said.
std::uint32_t default_ranks_per_node(std::uint32_t num_ranks);

// Throws InputError naming the option.
SequencePart part_option(const std::string& option, const std::string& value);

// Learns the placement on the training part of the trace and says so in `trained_on`. `train` is
// ignored by strategies that learn nothing and by traces of counts, which have no sequences.
Placement learn_placement(const Trace& trace, const PlacementOptions& options);

}  // namespace coterie
