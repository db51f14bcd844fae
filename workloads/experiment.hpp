#pragma once
// An experiment: a cluster, a model, a trace and the runs to compare. Both `coterie simulate` and
// `coterie-runtime run` read it.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/yaml.hpp"
#include "topologies/cluster.hpp"
#include "topologies/transports.hpp"
#include "workloads/disturbances.hpp"
#include "workloads/model.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/plan/prune.hpp"
#include "workloads/step.hpp"

namespace coterie {

struct RunSpec {
  std::string name;       // unique; letters, digits and . _ + - only, because files are named by it
  std::string placement;  // a strategy, or the path of a placement file
  DispatchPolicy policy = DispatchPolicy::kStandard;
  std::optional<PruneRequest> prune;
  std::optional<double> max_imbalance;
  std::optional<double> max_node_imbalance;
  std::uint32_t num_replicas = 0;
  std::optional<TransportChoice> transport;  // absent: the experiment's
  // Absent: the rule of the placement file, or locality for a strategy.
  std::optional<ReplicaChoice> replica_choice;
};

struct TraceSpec {
  std::filesystem::path file;  // relative paths are relative to the experiment file
  SequencePart train = SequencePart::kEven;
  SequencePart eval = SequencePart::kOdd;
  bool evaluate_on_training = false;  // must be true if train and eval overlap
};

struct Experiment {
  std::string name;      // key `name`, or the file's stem
  std::string topology;  // a preset's name or a path; relative paths are relative to the file
  // From `topology: {extends: NAME, ...}` and --set topology.KEY.
  std::vector<Override> topology_overrides;
  Cluster cluster;
  ModelShape model;
  TraceSpec trace;
  std::uint32_t num_ranks = 1;   // of one EP group
  std::uint32_t num_groups = 1;  // EP groups that share the cluster, on consecutive GPUs
  std::optional<std::uint32_t> tokens_per_rank;  // absent: every token of the trace once
  SequenceDeal deal = SequenceDeal::kRoundRobin;
  std::vector<std::uint32_t> layers;  // layer numbers; empty: all of the trace
  PayloadType dispatch_payload = PayloadType::kBf16;
  PayloadType combine_payload = PayloadType::kBf16;
  // Key `precision: {experts: bf16}`: the type of both factors of the routed experts' products. Absent:
  // that of the rows as the experts get them (sim/program/kernels.hpp, expert_payload).
  std::optional<PayloadType> expert_type;
  Bytes chunk{1 << 20};       // hierarchical: about what one rank sends to another in a round
  TransportChoice transport;  // how rows move, unless a run says otherwise; unchecked
  std::string engine;         // simgrid, flow or bound
  std::uint64_t seed = 0;
  // A whole step instead of single layers. `ranks` of the file is then the number of GPUs, num_ranks
  // that of an EP group, and tokens_per_rank what the step says; without recorded routing,
  // trace.file is empty.
  std::optional<StepSpec> step;
  Disturbances disturbances;  // of a step
  // Prefill: GPUs behind those of the step that decode, and get its keys and values; 0: none.
  std::uint32_t decode_pool = 0;
  std::vector<RunSpec> runs;
  // The file with the overrides in place, its name given and its paths made absolute, so that it
  // loads to the same experiment from anywhere. Empty where it was not asked for.
  std::string effective_yaml;

  // How a run of this experiment moves its rows.
  [[nodiscard]] const TransportChoice& transport_of(const RunSpec& run) const {
    return run.transport ? *run.transport : transport;
  }
  // Ranks of a group that share a node.
  [[nodiscard]] std::uint32_t ranks_per_node() const {
    return std::min(cluster.gpus_per_node, num_ranks);
  }
};

enum class EffectiveYaml : std::uint8_t { kMake, kLeaveOut };

// Throws InputError. `overrides` are the --set options; relative paths that they give are relative
// to the working directory.
Experiment load_experiment(const std::filesystem::path& path,
                           const std::vector<Override>& overrides = {},
                           EffectiveYaml effective = EffectiveYaml::kMake);

// The cluster of an experiment given as YAML text, and nothing else: its trace and its model need
// not be there. `where` stands in messages, and relative paths are relative to its folder. Throws
// InputError.
Cluster load_experiment_cluster(const std::string& yaml, const std::filesystem::path& where,
                                const std::vector<Override>& overrides = {});

}  // namespace coterie
