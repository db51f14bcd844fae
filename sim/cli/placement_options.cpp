#include "sim/cli/placement_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "sim/cli/commands.hpp"
#include "sim/experiment/layer_times.hpp"

namespace coterie {

void add_placement_options(CLI::App& command, PlacementOptions& options) {
  command.add_option("TRACE", options.trace, "The .moet trace")->required();
  command.add_option("--ranks", options.num_ranks, "EP ranks");
  command.add_option(
      "--ranks-per-node", options.ranks_per_node,
      "EP ranks per node, which divide the ranks; default: 8, or all of fewer ranks");
  command.add_option(
      "--strategy", options.strategy,
      fmt::format("How experts are placed: {}", fmt::join(placement_strategies(), ", ")));
  command.add_option("--max-imbalance", options.max_imbalance,
                     "Balance cap of the collaboration strategies: load of the fullest rank over "
                     "the mean, on the training part; default: no cap");
  command.add_option("--max-node-imbalance", options.max_node_imbalance,
                     "The same for the fullest node; default: no cap");
  command.add_option("--replicas", options.replicas,
                     "Extra expert slots per layer (strategies that learn); default: 0");
  command.add_option("--replica-choice", options.replica_choice,
                     fmt::format("How the engine chooses among replicas: {}; default: locality",
                                 replica_choice_names()));
  command
      .add_option("--starts", options.num_starts,
                  "Searches with different seeds, of which the best is kept")
      ->check(CLI::Range(1u, 1u << 16))
      ->capture_default_str();
  command.add_option("--jobs", options.num_jobs, "Threads; default: one per core");
  command.add_option("--seed", options.seed, "Seed of random choices")->capture_default_str();
  command.add_option("--train", options.train, "Sequences to learn on: even, odd, all")
      ->capture_default_str();
  command.add_option("--model", options.model,
                     "Model preset or file; default: the one that the trace names or fits");
}

void add_time_options(CLI::App& command, PlacementOptions& options) {
  command.add_option("--topology", options.topology,
                     "Cluster that times are predicted on: a preset or a YAML file; default: none, "
                     "and no times");
  command.add_option("--transport", options.transport,
                     "How rows move there; default: the topology's first, else ideal");
  command.add_option("--dispatch", options.dispatch, "standard, dedup or hierarchical")
      ->capture_default_str();
  command.add_option("--dispatch-payload", options.dispatch_payload, "bf16 or fp8")
      ->capture_default_str();
  command.add_option("--combine-payload", options.combine_payload, "bf16 or fp8")
      ->capture_default_str();
  command
      .add_option("--tokens-per-rank", options.tokens_per_rank,
                  "Tokens of a rank in a step; default: those of the training part once")
      ->check(CLI::Range(1u, 1u << 24));
  add_set_option(command, options.overrides, "the topology (or transport.KEY)");
}

void add_bound_option(CLI::App& command, std::string& bound) {
  command
      .add_option("--bound", bound,
                  "How hard to look for a bound on what is possible: quick (milliseconds per "
                  "layer), tight (about a second), none")
      ->capture_default_str();
  command.add_flag_callback(
      "--no-bound", [&bound] { bound = "none"; }, "The same as --bound none");
}

std::optional<BoundEffort> bound_option(const std::string& bound) {
  if (bound == "none") return std::nullopt;
  if (bound == "quick") return BoundEffort::kQuick;
  if (bound == "tight") return BoundEffort::kTight;
  throw InputError("--bound", fmt::format("\"{}\"", bound), "one of quick, tight, none");
}

namespace {

PayloadType payload_option(const char* option, const std::string& value) {
  if (const auto type = parse_payload(value)) return *type;
  throw InputError(option, fmt::format("\"{}\"", value), "one of bf16, fp8");
}

}  // namespace

std::optional<LayerTimesSetup> layer_times_setup(const PlacementOptions& options,
                                                 const Trace& trace, const Routing& training) {
  if (options.topology.empty()) {
    if (!options.transport.empty() || !options.overrides.empty() || options.tokens_per_rank) {
      throw InputError(options.transport.empty() ? "--tokens-per-rank, --set" : "--transport",
                       "it without a topology", "--topology as well");
    }
    return std::nullopt;
  }
  std::vector<Override> overrides = parse_overrides(options.overrides);
  LayerTimesSetup setup;
  setup.transport = take_transport_choice(options.transport, overrides);
  setup.num_ranks = options.num_ranks.value();
  setup.cluster = load_cluster(options.topology, overrides, setup.num_ranks);
  const std::optional<ModelShape> model = find_model(options, trace);
  if (!model) {
    throw InputError("--model", "no preset that fits the trace",
                     "the model whose layers are to be timed");
  }
  if (model->num_experts != training.num_experts || model->num_topk != training.num_topk) {
    throw InputError(
        fmt::format("model {}", model->name),
        fmt::format("{}, top-{}", counted(model->num_experts, "expert"), model->num_topk),
        fmt::format("{} and top-{}, as the trace has", training.num_experts, training.num_topk));
  }
  setup.model = *model;
  const auto policy = parse_policy(options.dispatch);
  if (!policy) {
    throw InputError("--dispatch", fmt::format("\"{}\"", options.dispatch),
                     "one of standard, dedup, hierarchical");
  }
  setup.policy = *policy;
  setup.dispatch_payload = payload_option("--dispatch-payload", options.dispatch_payload);
  setup.combine_payload = payload_option("--combine-payload", options.combine_payload);
  setup.tokens_per_rank = options.tokens_per_rank;
  setup.training_tokens = training.num_tokens();
  return setup;
}

std::shared_ptr<const LayerTimes> layer_times_option(const PlacementOptions& options,
                                                     const Trace& trace, const Routing& training) {
  std::optional<LayerTimesSetup> setup = layer_times_setup(options, trace, training);
  return setup ? make_layer_times(*std::move(setup)) : nullptr;
}

std::uint32_t default_ranks_per_node(std::uint32_t num_ranks) {
  constexpr std::uint32_t kGpusPerNode = 8;
  return std::min(num_ranks, kGpusPerNode);
}

SequencePart part_option(const std::string& option, const std::string& value) {
  if (const auto part = parse_sequence_part(value)) return *part;
  throw InputError(option, fmt::format("\"{}\"", value), "one of even, odd, all");
}

std::uint32_t replicas_option(const std::string& value) {
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number > kMaxExperts) {
    throw InputError("--replicas", fmt::format("\"{}\"", value),
                     fmt::format("a number from 0 to {}", kMaxExperts));
  }
  return number;
}

std::optional<ReplicaChoice> replica_choice_option(const PlacementOptions& options) {
  if (options.replica_choice.empty()) return std::nullopt;
  if (const auto choice = parse_replica_choice(options.replica_choice)) return choice;
  throw InputError("--replica-choice", fmt::format("\"{}\"", options.replica_choice),
                   fmt::format("one of {}", replica_choice_names()));
}

std::optional<ModelShape> find_model(const PlacementOptions& options, const Trace& trace) {
  if (!options.model.empty()) return load_model(options.model);
  const auto* routing = std::get_if<Routing>(&trace);
  std::optional<ModelShape> found;
  for (const ModelPreset& preset : model_presets()) {
    const ModelShape model = load_model(preset.name);
    if (routing == nullptr) break;
    if (model.name == routing->model) return model;
    if (model.num_experts == routing->num_experts && model.num_topk == routing->num_topk &&
        model.moe_layers == routing->layers) {
      if (found && found->hidden != model.hidden) return std::nullopt;
      if (!found) found = model;
    }
  }
  return found;
}

PlacementRequest placement_request(const PlacementOptions& options, std::uint32_t num_replicas,
                                   ReplicaChoice choice) {
  if (!options.num_ranks) throw InputError("--ranks", "nothing", "the number of EP ranks");
  PlacementRequest request;
  request.strategy = options.strategy;
  request.num_ranks = *options.num_ranks;
  request.ranks_per_node = options.ranks_per_node.value_or(
      options.times != nullptr ? options.times->cost().ranks_per_node
                               : default_ranks_per_node(request.num_ranks));
  request.seed = options.seed;
  request.max_imbalance = options.max_imbalance;
  request.max_node_imbalance = options.max_node_imbalance;
  request.num_replicas = num_replicas;
  request.replica_choice = choice;
  request.num_starts = options.num_starts;
  request.num_jobs = options.num_jobs;
  return request;
}

Placement learn_placement(const Trace& trace, const PlacementOptions& options,
                          std::uint32_t num_replicas, ReplicaChoice choice) {
  PlacementRequest request = placement_request(options, num_replicas, choice);
  const SequencePart part = part_option("--train", options.train);
  const auto* routing = std::get_if<Routing>(&trace);
  if (!strategy_learns(options.strategy) || routing == nullptr) {
    Placement placement = make_placement(trace, request);
    if (strategy_learns(options.strategy)) {
      placement.trained_on = fmt::format("{} counts", std::get<ExpertCounts>(trace).origin);
    }
    return placement;
  }
  const Routing training = select(*routing, part);
  if (strategy_needs_times(options.strategy)) request.times = options.times;
  Placement placement = make_placement(training, request);
  placement.trained_on = training_label(*routing, part);
  return placement;
}

}  // namespace coterie
