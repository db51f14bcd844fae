#include "workloads/prepare.hpp"

#include <algorithm>
#include <limits>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/provenance.hpp"
#include "workloads/placement/strategies.hpp"
#include "workloads/trace/balanced.hpp"
#include "workloads/trace/generate.hpp"

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
  ContentHash hash;
  hash.add(fmt::format("{} {} {} {} {} {} {} {} {} {} {} {}", version(), request.strategy,
                       request.num_ranks, request.ranks_per_node, request.seed,
                       request.max_imbalance.value_or(0.0),
                       request.max_node_imbalance.value_or(0.0), request.num_replicas,
                       to_string(request.replica_choice), request.num_starts, training.num_experts,
                       training.num_topk));
  hash.add(training.layers).add(training.sequence_begin).add(training.experts);
  return hex64(hash.digest());
}

void require_training(const Experiment& experiment, const TraceParts& parts) {
  if (parts.train->num_sequences() > 0) return;
  throw InputError(fmt::format("{}: found no sequences in the training part, expected at least one",
                               experiment.trace.file.string()));
}

Placement learn(const Experiment& experiment, const RunSpec& spec, const TraceParts& parts,
                const PrepareOptions& options) {
  const bool learns = strategy_learns(spec.placement);
  if (learns) require_training(experiment, parts);
  // Strategies that learn nothing want the shape alone.
  const Routing& training = *parts.train;
  PlacementRequest request;
  request.strategy = spec.placement;
  request.num_ranks = experiment.num_ranks;
  request.ranks_per_node = experiment.ranks_per_node();
  request.seed = experiment.seed;
  request.max_imbalance = spec.max_imbalance;
  request.max_node_imbalance = spec.max_node_imbalance;
  request.num_replicas = spec.num_replicas;
  request.num_jobs = options.num_jobs;
  request.replica_choice = spec.replica_choice.value_or(ReplicaChoice::kLocality);
  std::filesystem::path cached;
  if (learns && options.cache) {
    cached = *options.cache / fmt::format("placement-{}.json", learning_key(request, training));
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
Placement read_fitting(const Experiment& experiment, const RunSpec& spec, const TraceParts& parts) {
  const Routing& trace = *parts.eval;
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
  bool learnt_here = false;
  try {
    learnt_here = learnt_from(placement, parts.digest, experiment.trace.eval);
    placement = select_layers(placement, trace.layers);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", file, error.what()));
  }
  if (learnt_here && !experiment.trace.evaluate_on_training) {
    throw InputError(file, "a placement learnt on sequences that the experiment evaluates",
                     "disjoint parts, or evaluate_on_training: true under trace");
  }
  placement.ranks_per_node = experiment.ranks_per_node();
  return placement;
}

// The trace with the layers that the experiment names.
Routing chosen_layers(const Experiment& experiment, Routing trace) {
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

std::shared_ptr<const Routing> cut_out(Routing trace, SequencePart part) {
  if (part == SequencePart::kAll) return std::make_shared<const Routing>(std::move(trace));
  return std::make_shared<const Routing>(select(trace, part));
}

std::vector<RankTokens> deal_groups(const Experiment& experiment, const Routing& eval) {
  std::vector<RankTokens> tokens;
  for (std::uint32_t group = 0; group < experiment.num_groups; ++group) {
    tokens.push_back(deal_tokens(eval, experiment.num_ranks, experiment.tokens_per_rank,
                                 experiment.deal,
                                 eval.num_sequences() * group / experiment.num_groups));
  }
  return tokens;
}

// Layers of routing that no trace recorded. Skewed layers differ in which experts are popular.
constexpr std::uint32_t kSkewedLayers = 4;

Routing step_routing(const Experiment& experiment, std::uint64_t seed,
                     std::uint32_t num_sequences) {
  const ModelShape& model = experiment.model;
  if (experiment.step->routing == StepRouting::kBalanced) {
    return balanced_routing({model.num_experts, model.num_topk, model.moe_layers.front(),
                             num_sequences, *experiment.tokens_per_rank, seed});
  }
  WorkloadSpec spec;
  spec.name = "skewed";
  spec.seed = seed;
  spec.num_experts = model.num_experts;
  spec.num_topk = model.num_topk;
  for (const std::uint32_t layer : model.moe_layers) {
    if (spec.layers.size() < kSkewedLayers) spec.layers.push_back(layer);
  }
  spec.num_sequences = num_sequences;
  spec.min_tokens = spec.max_tokens = *experiment.tokens_per_rank;
  spec.kind = ZipfKind{experiment.step->routing_skew};
  return generate(spec);
}

// Placements are learnt on other tokens than those that the step routes.
TraceParts generate_trace(const Experiment& experiment) {
  const std::uint32_t ranks = experiment.num_ranks;
  TraceParts parts;
  if (experiment.step->routing == StepRouting::kBalanced) {
    parts.eval = std::make_shared<const Routing>(step_routing(experiment, experiment.seed, ranks));
    parts.train =
        std::make_shared<const Routing>(step_routing(experiment, experiment.seed + 1, ranks));
  } else {
    const Routing both = step_routing(experiment, experiment.seed, 2 * ranks);
    parts.train = std::make_shared<const Routing>(select(both, SequencePart::kEven));
    parts.eval = std::make_shared<const Routing>(select(both, SequencePart::kOdd));
  }
  parts.digest = trace_digest(*parts.eval);
  parts.tokens =
      std::make_shared<const std::vector<RankTokens>>(deal_groups(experiment, *parts.eval));
  return parts;
}

}  // namespace

TraceParts load_trace(const Experiment& experiment) {
  if (experiment.step && experiment.step->routing != StepRouting::kTrace) {
    return generate_trace(experiment);
  }
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
  TraceParts parts;
  parts.digest = trace_digest(trace);
  trace = chosen_layers(experiment, std::move(trace));
  if (experiment.trace.train == experiment.trace.eval) {
    parts.train = parts.eval = cut_out(std::move(trace), experiment.trace.eval);
  } else {
    parts.train = std::make_shared<const Routing>(select(trace, experiment.trace.train));
    parts.eval = cut_out(std::move(trace), experiment.trace.eval);
  }
  if (parts.eval->num_tokens() == 0 || parts.eval->num_layers() == 0) {
    throw InputError(experiment.trace.file.string(), "no tokens in the evaluated part",
                     "at least one sequence there");
  }
  parts.tokens =
      std::make_shared<const std::vector<RankTokens>>(deal_groups(experiment, *parts.eval));
  return parts;
}

PreparedRun prepare_run(const Experiment& experiment, const RunSpec& spec, const TraceParts& parts,
                        const PrepareOptions& options) {
  PreparedRun run;
  run.spec = spec;
  run.placement = is_strategy(spec.placement) ? learn(experiment, spec, parts, options)
                                              : read_fitting(experiment, spec, parts);
  if (spec.replica_choice) run.placement.replica_choice = *spec.replica_choice;
  run.routing = parts.eval;
  run.group_tokens = parts.tokens;
  if (spec.prune) {
    require_training(experiment, parts);
    PruneResult pruned = prune(*parts.eval, *parts.train, run.placement, *spec.prune);
    run.routing = std::make_shared<const Routing>(std::move(pruned.routing));
    run.exact = false;
    run.weight_lost = pruned.weight_lost;
    run.top1_changed = pruned.top1_changed;
  }
  return run;
}

PlanRequest plan_request(const Experiment& experiment, const PreparedRun& run, PlanDetail detail) {
  const Bytes row = row_payload(experiment.dispatch_payload, experiment.model.hidden);
  const std::int64_t rows = experiment.chunk.value / (row.value + kRowMetadataBytes);
  PlanRequest request;
  request.policy = run.spec.policy;
  request.ranks_per_node = experiment.ranks_per_node();
  request.detail = detail;
  request.rows_per_round = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(rows, 1, std::numeric_limits<std::uint32_t>::max()));
  request.replica_choice = run.placement.replica_choice;
  return request;
}

}  // namespace coterie
