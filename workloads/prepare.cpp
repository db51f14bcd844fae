#include "workloads/prepare.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <optional>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/hash.hpp"
#include "core/provenance.hpp"
#include "workloads/placement/layer_times.hpp"
#include "workloads/placement/strategies.hpp"
#include "workloads/trace/balanced.hpp"
#include "workloads/trace/drift.hpp"
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

std::size_t num_bytes(const Routing& routing) {
  return routing.experts.size() * sizeof(ExpertIdx) + routing.weights.size() * sizeof(float) +
         routing.sequence_begin.size() * sizeof(std::uint64_t);
}

std::size_t num_bytes(const Placement& placement) {
  std::size_t sum = 0;
  for (const LayerPlacement& layer : placement.layers) {
    for (const auto& experts : layer.rank_experts) {
      sum += sizeof experts + experts.size() * sizeof(ExpertIdx);
    }
  }
  return sum;
}

// Names the content of a file as far as the file system tells it.
std::string file_state(const std::filesystem::path& file) {
  struct stat state {};
  if (::stat(file.c_str(), &state) != 0) return {};
  return fmt::format("{}\n{} {} {} {}.{} {}.{}", file.string(), state.st_dev, state.st_ino,
                     state.st_size, state.st_mtim.tv_sec, state.st_mtim.tv_nsec,
                     state.st_ctim.tv_sec, state.st_ctim.tv_nsec);
}

std::string content_key(const Placement& placement) {
  ContentHash hash;
  hash.add(fmt::format("{} {} {} {}", placement.num_experts, placement.num_ranks,
                       placement.ranks_per_node, to_string(placement.replica_choice)));
  for (const LayerPlacement& layer : placement.layers) {
    hash.add(std::span(&layer.layer, 1));
    for (const auto& experts : layer.rank_experts) hash.add(experts);
  }
  return hex64(hash.digest());
}

// Names everything that decides what is learnt, the training tokens included.
std::string learning_key(const PlacementRequest& request, const Routing& training) {
  ContentHash hash;
  if (request.times != nullptr) hash.add(request.times->key());
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

// A placement of the cache; absent where there is none, or only a damaged one, which is learnt again.
std::optional<Placement> read_cached(const std::filesystem::path& file,
                                     const PlacementRequest& request, const Routing& training) {
  try {
    if (!path_exists(file)) return std::nullopt;
    Placement placement = read_placement(file);
    std::vector<std::uint32_t> layers;
    for (const auto& layer : placement.layers) layers.push_back(layer.layer);
    if (placement.num_ranks == request.num_ranks && layers == training.layers &&
        placement.num_experts == training.num_experts) {
      return placement;
    }
    spdlog::warn("{}: found a placement of another shape, which is learnt again", file.string());
  } catch (const InputError& error) {
    spdlog::warn("{}; it is learnt again", error.what());
  }
  return std::nullopt;
}

// `key` is learning_key's, where there is a cache.
Placement learn_or_read(const Routing& training, const PlacementRequest& request,
                        const PrepareOptions& options, const std::string& key) {
  std::filesystem::path cached;
  if (options.cache) {
    cached = *options.cache / fmt::format("placement-{}.json", key);
    // A file that another process just wrote is complete: it was renamed into place.
    if (auto known = read_cached(cached, request, training)) return *std::move(known);
  }
  Placement placement = make_placement(training, request);
  placement.trained_on = training.origin;
  if (options.cache) {
    try {
      write_placement(cached, placement);
    } catch (const InputError&) {
      // The cache only saves time: a disk that is full must not fail the run.
    }
  }
  return placement;
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
  if (strategy_needs_times(spec.placement) && options.times) {
    request.times = options.times(spec, training);
  }
  if (!learns) return make_placement(training, request);
  const bool keeps = options.cache || options.memo != nullptr;
  const std::string key = keeps ? learning_key(request, training) : std::string();
  const auto make = [&] { return learn_or_read(training, request, options, key); };
  if (options.memo == nullptr) return make();
  return *options.memo->get("learnt placement " + key, make,
                            [](const Placement& placement) { return num_bytes(placement); });
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
    throw InputError(file, fmt::format("a placement over {}", counted(placement.num_ranks, "rank")),
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

// The tokens of every rank in `num_parts` equal parts, one after the other.
std::vector<RankTokens> cut_tokens(const RankTokens& all, std::uint32_t num_parts) {
  std::vector<RankTokens> parts(num_parts);
  for (std::uint32_t part = 0; part < num_parts; ++part) {
    parts[part].token_begin.push_back(0);
    for (std::size_t rank = 0; rank + 1 < all.token_begin.size(); ++rank) {
      const std::uint64_t count = (all.token_begin[rank + 1] - all.token_begin[rank]) / num_parts;
      const auto first = all.trace_token.begin() +
                         static_cast<std::ptrdiff_t>(all.token_begin[rank] + part * count);
      parts[part].trace_token.insert(parts[part].trace_token.end(), first,
                                     first + static_cast<std::ptrdiff_t>(count));
      parts[part].token_begin.push_back(parts[part].trace_token.size());
    }
  }
  return parts;
}

std::vector<RankTokens> deal_groups(const Experiment& experiment, const Routing& eval) {
  if (experiment.step && experiment.step->num_routings() > 1) {
    const std::uint32_t num_parts = experiment.step->num_routings();
    return cut_tokens(deal_tokens(eval, experiment.num_ranks,
                                  *experiment.tokens_per_rank * num_parts, experiment.deal),
                      num_parts);
  }
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
    // Dealt round robin, a rank has a sequence per micro-batch.
    const Routing both =
        step_routing(experiment, experiment.seed, 2 * ranks * experiment.step->num_routings());
    parts.train = std::make_shared<const Routing>(select(both, SequencePart::kEven));
    parts.eval = std::make_shared<const Routing>(select(both, SequencePart::kOdd));
  }
  parts.digest = trace_digest(*parts.eval);
  parts.tokens =
      std::make_shared<const std::vector<RankTokens>>(deal_groups(experiment, *parts.eval));
  return parts;
}

struct WholeTrace {
  Routing routing;
  std::string digest;
  std::string key;  // names all of its content, and its origin
};

WholeTrace read_whole(const std::filesystem::path& file) {
  WholeTrace trace{read_routing(file), {}, {}};
  const Routing& routing = trace.routing;
  trace.digest = trace_digest(routing);
  ContentHash hash;
  hash.add(fmt::format("{} {}", routing.num_experts, routing.num_topk));
  hash.add(std::string_view(routing.model))
      .add(std::string_view(routing.origin))
      .add(routing.layers)
      .add(routing.sequence_begin);
  hash.add(routing.experts).add(routing.weights);
  trace.key = hex64(hash.digest());
  return trace;
}

void require_model(const Experiment& experiment, const Routing& trace) {
  const ModelShape& model = experiment.model;
  if (trace.num_experts != model.num_experts) {
    throw InputError(
        fmt::format("{}: found {} in the trace and {} in the model, expected "
                    "the same number",
                    describe(experiment), counted(trace.num_experts, "expert"), model.num_experts));
  }
  if (trace.num_topk != model.num_topk) {
    throw InputError(
        fmt::format("{}: found top-{} in the trace and top-{} in the model, expected "
                    "the same",
                    describe(experiment), trace.num_topk, model.num_topk));
  }
}

// The parts that the experiment makes of a trace; whoever has no use for the trace gives it away.
TraceParts cut_parts(const Experiment& experiment, Routing trace, const std::string& digest) {
  TraceParts parts;
  parts.digest = digest;
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

std::size_t num_bytes(const TraceParts& parts) {
  std::size_t sum = num_bytes(*parts.eval);
  if (parts.train != parts.eval) sum += num_bytes(*parts.train);
  for (const RankTokens& tokens : *parts.tokens) {
    sum += (tokens.token_begin.size() + tokens.trace_token.size()) * sizeof(std::uint64_t);
  }
  return sum;
}

// Names what decides the parts of a trace.
std::string parts_key(const Experiment& experiment, const WholeTrace& trace) {
  return fmt::format(
      "parts {} {} {} {} {} {} {} [{}]", trace.key, static_cast<int>(experiment.trace.train),
      static_cast<int>(experiment.trace.eval), experiment.num_ranks, experiment.num_groups,
      experiment.tokens_per_rank ? std::to_string(*experiment.tokens_per_rank) : "-",
      static_cast<int>(experiment.deal), fmt::join(experiment.layers, " "));
}

}  // namespace

TraceParts load_trace(const Experiment& experiment, Memo* memo) {
  if (experiment.step && experiment.step->routing != StepRouting::kTrace) {
    TraceParts parts = generate_trace(experiment);
    parts.key =
        fmt::format("generated {} {} {} {} {}", parts.digest, trace_digest(*parts.train),
                    experiment.num_ranks, experiment.num_groups, static_cast<int>(experiment.deal));
    return parts;
  }
  const std::filesystem::path& file = experiment.trace.file;
  TraceParts parts;
  if (memo == nullptr) {
    WholeTrace trace = read_whole(file);
    require_model(experiment, trace.routing);
    parts = cut_parts(experiment, std::move(trace.routing), trace.digest);
  } else {
    const auto trace = memo->get(
        "trace " + file_state(file), [&] { return read_whole(file); },
        [](const WholeTrace& whole) { return num_bytes(whole.routing); });
    require_model(experiment, trace->routing);
    const std::string key = parts_key(experiment, *trace);
    parts = *memo->get(
        key, [&] { return cut_parts(experiment, trace->routing, trace->digest); },
        [](const TraceParts& cut) { return num_bytes(cut); });
    parts.key = key;
  }
  return parts;
}

std::vector<TraceParts> load_series(const Experiment& experiment) {
  const StepSeries& series = *experiment.step->series;
  std::vector<TraceParts> steps;
  if (series.drift) {
    const TraceParts first = load_trace(experiment);
    const bool one_part = first.train == first.eval;
    for (std::uint32_t i = 0; i < series.num_steps; ++i) {
      const auto after = [&](const Routing& routing) {
        return std::make_shared<const Routing>(drifted(routing, *series.drift, i, experiment.seed));
      };
      TraceParts parts = first;
      parts.eval = after(*first.eval);
      parts.train = one_part ? parts.eval : after(*first.train);
      steps.push_back(std::move(parts));
    }
    return steps;
  }
  const std::string file = experiment.trace.file.string();
  const Routing trace = read_routing(experiment.trace.file);
  require_model(experiment, trace);
  // Even and odd sequences of each.
  const std::size_t fewest =
      experiment.trace.train == experiment.trace.eval && experiment.trace.eval == SequencePart::kAll
          ? 1
          : 2;
  const std::size_t num_sequences = trace.num_sequences();
  if (num_sequences < fewest * series.num_steps) {
    throw InputError(file, counted(num_sequences, "sequence"),
                     fmt::format("at least {} for each of the {} of the series", fewest,
                                 counted(series.num_steps, "step")));
  }
  const std::string digest = trace_digest(trace);
  for (std::size_t i = 0; i < series.num_steps; ++i) {
    const Routing window = select_window(trace, num_sequences * i / series.num_steps,
                                         num_sequences * (i + 1) / series.num_steps);
    steps.push_back(cut_parts(experiment, window, digest));
  }
  return steps;
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
  if (options.memo != nullptr) {
    run.key = fmt::format("{} placed {}", parts.key, content_key(run.placement));
  }
  if (spec.prune) {
    require_training(experiment, parts);
    run.key +=
        fmt::format(" pruned {} {}", static_cast<int>(spec.prune->method), spec.prune->num_devices);
    const auto pruned = remember(
        options.memo, run.key,
        [&] { return prune(*parts.eval, *parts.train, run.placement, *spec.prune); },
        [](const PruneResult& result) { return num_bytes(result.routing); });
    run.routing = {pruned, &pruned->routing};
    run.exact = false;
    run.weight_lost = pruned->weight_lost;
    run.top1_changed = pruned->top1_changed;
  }
  return run;
}

PlanRequest plan_request(const Experiment& experiment, const PreparedRun& run, PlanDetail detail) {
  const Bytes row = row_payload(experiment.dispatch_payload, experiment.model.hidden);
  PlanRequest request;
  request.policy = run.spec.policy;
  request.ranks_per_node = experiment.ranks_per_node();
  request.detail = detail;
  request.rows_per_round = rows_per_round(experiment.chunk, row);
  request.replica_choice = run.placement.replica_choice;
  return request;
}

}  // namespace coterie
