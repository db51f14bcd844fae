#pragma once
// Options that `coterie place` and `coterie analyze` share.

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/experiment/layer_times.hpp"
#include "workloads/model.hpp"
#include "workloads/placement/layer_times.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {

struct PlacementOptions {
  std::string trace;
  std::optional<std::uint32_t> num_ranks;
  std::optional<std::uint32_t> ranks_per_node;
  std::string strategy;
  std::optional<double> max_imbalance;
  std::optional<double> max_node_imbalance;
  std::string replicas = "0";
  std::string replica_choice;  // empty: what the command has by default
  std::uint32_t num_starts = PlacementRequest{}.num_starts;
  unsigned num_jobs = 0;
  std::uint64_t seed = 0;
  std::string train = "even";
  std::string model;
  // What times are predicted on, for strategies that need them.
  std::string topology;
  std::string transport;
  std::string dispatch = "dedup";
  std::string dispatch_payload = "bf16";
  std::string combine_payload = "bf16";
  std::optional<std::uint32_t> tokens_per_rank;
  std::vector<std::string> overrides;
  // What those say, once it is known (layer_times_option).
  std::shared_ptr<const LayerTimes> times;
};

// Adds --bound, and --no-bound for none.
void add_bound_option(CLI::App& command, std::string& bound);
// Nothing for "none". Throws InputError for other names than quick and tight.
std::optional<BoundEffort> bound_option(const std::string& bound);

// Adds the trace and what describes the ranks and the strategy.
void add_placement_options(CLI::App& command, PlacementOptions& options);

// Adds what times are predicted on.
void add_time_options(CLI::App& command, PlacementOptions& options);

// What those options say; nothing without a topology. Throws InputError where the model is not known,
// or does not fit the trace.
std::optional<LayerTimesSetup> layer_times_setup(const PlacementOptions& options,
                                                 const Trace& trace, const Routing& training);

// The times that those options ask for, of placements learnt on `training`; nothing without a
// topology. Throws as layer_times_setup.
std::shared_ptr<const LayerTimes> layer_times_option(const PlacementOptions& options,
                                                     const Trace& trace, const Routing& training);

// Nodes of 8 GPUs, or one smaller node, where nothing else is said.
std::uint32_t default_ranks_per_node(std::uint32_t num_ranks);

// Throws InputError naming the option.
SequencePart part_option(const std::string& option, const std::string& value);
std::uint32_t replicas_option(const std::string& value);
// Nothing where the option was not given.
std::optional<ReplicaChoice> replica_choice_option(const PlacementOptions& options);

// The model of --model, else the preset that the trace names, else the one preset (or several of
// one hidden size, the first) whose experts, top-k and layers are the trace's.
std::optional<ModelShape> find_model(const PlacementOptions& options, const Trace& trace);

// What those options ask of a strategy. Throws InputError without a number of ranks.
PlacementRequest placement_request(const PlacementOptions& options, std::uint32_t num_replicas,
                                   ReplicaChoice choice);

// Learns the placement on the training part of the trace and says so in `trained_on`. `train` is
// ignored by strategies that learn nothing and by traces of counts, which have no sequences.
Placement learn_placement(const Trace& trace, const PlacementOptions& options,
                          std::uint32_t num_replicas, ReplicaChoice choice);

}  // namespace coterie
