// From an experiment to runs that can be planned.

#include <algorithm>
#include <string_view>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/provenance.hpp"
#include "core/random.hpp"
#include "workloads/experiment.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {
namespace {

std::string describe(const Experiment& experiment) {
  return fmt::format("trace {} and model {}", experiment.trace.file.string(),
                     experiment.model.name);
}

bool is_strategy(const std::string& placement) {
  const std::vector<std::string> names = placement_strategies();
  return std::find(names.begin(), names.end(), placement) != names.end();
}

// Names everything that decides what is learnt, the training tokens included.
std::string learning_key(const PlacementRequest& request, const Routing& training) {
  const auto bytes_of = [](const auto& values) {
    return std::string_view(reinterpret_cast<const char*>(values.data()),
                            values.size() * sizeof(values[0]));
  };
  std::uint64_t key = content_hash(
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {}", version(), request.strategy,
                  request.num_ranks, request.ranks_per_node, request.seed,
                  request.max_imbalance.value_or(0.0), request.max_node_imbalance.value_or(0.0),
                  request.num_replicas, to_string(request.replica_choice), request.num_starts,
                  training.num_experts, training.num_topk));
  for (const std::string_view part :
       {bytes_of(training.layers), bytes_of(training.sequence_begin), bytes_of(training.experts)}) {
    key = mix64(key ^ content_hash(part));
  }
  return hex64(key);
}

Placement learn(const Experiment& experiment, const RunSpec& spec, const Routing& training) {
  PlacementRequest request;
  request.strategy = spec.placement;
  request.num_ranks = experiment.num_ranks;
  request.ranks_per_node = experiment.ranks_per_node();
  request.seed = experiment.seed;
  request.max_imbalance = spec.max_imbalance;
  request.max_node_imbalance = spec.max_node_imbalance;
  request.num_replicas = spec.num_replicas;
  request.num_jobs = experiment.num_jobs;
  request.replica_choice = spec.replica_choice.value_or(ReplicaChoice::kLocality);
  const bool learns = strategy_learns(spec.placement);
  std::filesystem::path cached;
  if (learns && experiment.cache) {
    cached = *experiment.cache / fmt::format("placement-{}.json", learning_key(request, training));
    // A file that another process just wrote is complete: it was renamed into place.
    if (std::filesystem::exists(cached)) return read_placement(cached);
  }
  Placement placement = make_placement(training, request);
  if (learns) placement.trained_on = training.origin;
  if (!cached.empty()) {
    try {
      write_placement(cached, placement);
    } catch (const InputError&) {
      // The cache only saves time: a disk that is full must not fail the run.
    }
  }
  return placement;
}

// A placement file, checked and its layers brought into the trace's order.
Placement read_fitting(const Experiment& experiment, const RunSpec& spec, const Routing& trace) {
  const std::string& file = spec.placement;
  Placement placement = read_placement(file, experiment.num_ranks);
  if (const auto problems = check(placement); !problems.empty()) {
    throw InputError(fmt::format("{}: {}", file, problems.front()));
  }
  if (placement.num_ranks != experiment.num_ranks) {
    throw InputError(file, fmt::format("a placement over {} ranks", placement.num_ranks),
                     fmt::format("{}, as the experiment has", experiment.num_ranks));
  }
  expect_experts(placement, trace.num_experts, file);
  if (!experiment.trace.evaluate_on_training &&
      learnt_from(placement, trace, experiment.trace.eval)) {
    throw InputError(file, "a placement learnt on sequences that the experiment evaluates",
                     "disjoint parts, or evaluate_on_training: true under trace");
  }
  try {
    placement = select_layers(placement, trace.layers);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", file, error.what()));
  }
  placement.ranks_per_node = experiment.ranks_per_node();
  return placement;
}

}  // namespace

Routing load_trace(const Experiment& experiment) {
  Routing trace = read_routing(experiment.trace.file);
  const ModelShape& model = experiment.model;
  if (trace.num_experts != model.num_experts) {
    throw InputError(
        fmt::format("{}: found {} experts in the trace and {} in the model, expected "
                    "the same number",
                    describe(experiment), trace.num_experts, model.num_experts));
  }
  if (trace.num_topk != model.num_topk) {
    throw InputError(
        fmt::format("{}: found top-{} in the trace and top-{} in the model, expected "
                    "the same",
                    describe(experiment), trace.num_topk, model.num_topk));
  }
  if (experiment.layers.empty()) return trace;
  std::vector<std::size_t> layer_idxs;
  for (const std::uint32_t layer : experiment.layers) {
    const auto found = std::find(trace.layers.begin(), trace.layers.end(), layer);
    if (found == trace.layers.end()) {
      throw InputError(
          fmt::format("experiment {}: key \"layers\": found layer {}, expected layers "
                      "of the trace {}, which has {} to {}",
                      experiment.name, layer, experiment.trace.file.string(), trace.layers.front(),
                      trace.layers.back()));
    }
    layer_idxs.push_back(static_cast<std::size_t>(found - trace.layers.begin()));
  }
  return select_layers(trace, layer_idxs);
}

PreparedRun prepare_run(const Experiment& experiment, const RunSpec& spec, const Routing& trace) {
  PreparedRun run;
  run.spec = spec;
  const bool from_file = !is_strategy(spec.placement);
  const bool learns = !from_file && strategy_learns(spec.placement);
  Routing training;
  if (learns || spec.prune) {
    training = select(trace, experiment.trace.train);
    if (training.num_sequences() == 0) {
      throw InputError(
          fmt::format("{}: found no sequences in the training part, expected at least "
                      "one",
                      experiment.trace.file.string()));
    }
  }
  run.placement = from_file ? read_fitting(experiment, spec, trace)
                            : learn(experiment, spec, learns ? training : trace);
  if (spec.replica_choice) run.placement.replica_choice = *spec.replica_choice;
  run.routing = select(trace, experiment.trace.eval);
  if (spec.prune) {
    PruneResult pruned = prune(run.routing, training, run.placement, *spec.prune);
    run.routing = std::move(pruned.routing);
    run.exact = false;
    run.weight_lost = pruned.weight_lost;
    run.top1_changed = pruned.top1_changed;
  }
  run.tokens =
      deal_tokens(run.routing, experiment.num_ranks, experiment.tokens_per_rank, experiment.deal);
  return run;
}

}  // namespace coterie
