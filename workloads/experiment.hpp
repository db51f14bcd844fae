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
#include "workloads/model.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/plan/prune.hpp"

namespace coterie {

struct RunSpec {
  std::string name;       // unique; letters, digits and . _ + - only, because files are named by it
  std::string placement;  // a strategy, or the path of a placement file
  DispatchPolicy policy = DispatchPolicy::kStandard;
  std::optional<PruneRequest> prune;
  std::optional<double> max_imbalance;
  std::optional<double> max_node_imbalance;
  std::uint32_t num_replicas = 0;
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
  std::vector<Override>
      topology_overrides;  // from `topology: {base: NAME, ...}` and --set topology.KEY
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
  Bytes chunk{1 << 20};  // hierarchical: rows are forwarded in chunks of this size
  std::string engine;    // simgrid, flow or bound
  std::uint64_t seed = 0;
  std::vector<RunSpec> runs;
  // The file with the overrides in place, its name given and its paths made absolute, so that it
  // loads to the same experiment from anywhere.
  // Where learnt placements are kept between processes, by the content they were learnt from;
  // absent: nowhere. Set by programs that prepare the same runs many times, not by the file.
  std::optional<std::filesystem::path> cache;
  // Threads that learn a placement (PlacementRequest::num_jobs). Set by programs that prepare
  // several runs or points at once, which would otherwise start as many threads for each.
  unsigned num_jobs = 0;
  std::string effective_yaml;

  // Ranks of a group that share a node.
  [[nodiscard]] std::uint32_t ranks_per_node() const {
    return std::min(cluster.gpus_per_node, num_ranks);
  }
};

// Throws InputError. `overrides` are the --set options.
Experiment load_experiment(const std::filesystem::path& path,
                           const std::vector<Override>& overrides = {});

// The cluster of an experiment given as YAML text, and nothing else: its trace and its model need
// not be there. `where` stands in messages, and relative paths are relative to its folder. Throws
// InputError.
Cluster load_experiment_cluster(const std::string& yaml, const std::filesystem::path& where,
                                const std::vector<Override>& overrides = {});

// The experiment's trace, reduced to its layers. Throws InputError where trace and model do not
// agree on the number of experts or on top-k, or where a layer is missing.
Routing load_trace(const Experiment& experiment);

// A run made ready: what a predictor or the runtime starts from.
struct PreparedRun {
  RunSpec spec;
  Placement placement;
  Routing routing;    // the evaluated part, pruned where asked for
  RankTokens tokens;  // of group 0
  bool exact = true;
  std::optional<double> weight_lost, top1_changed;
};
// Learns (or reads) the placement, selects the evaluated part, prunes it where asked for and deals
// its tokens. `trace` is what load_trace returned. placement.layers are those of the routing, in
// its order. Throws InputError where a placement file does not fit the experiment.
PreparedRun prepare_run(const Experiment& experiment, const RunSpec& spec, const Routing& trace);

}  // namespace coterie
