#include "sim/cli/placement_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>

#include "core/error.hpp"

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
                     "the mean, on the training part");
  command.add_option("--max-node-imbalance", options.max_node_imbalance,
                     "The same for the fullest node");
  command.add_option("--replicas", options.replicas,
                     "Extra expert slots per layer (strategies that learn)");
  command.add_option(
      "--replica-choice", options.replica_choice,
      fmt::format("How the engine chooses among replicas: {}", replica_choice_names()));
  command
      .add_option("--starts", options.num_starts,
                  "Searches with different seeds, of which the best is kept")
      ->check(CLI::Range(1u, 1u << 16))
      ->capture_default_str();
  command.add_option("--jobs", options.num_jobs, "Threads; default: one per core");
  command.add_option("--seed", options.seed, "Seed of random choices");
  command.add_option("--train", options.train, "Sequences to learn on: even, odd, all")
      ->capture_default_str();
  command.add_option("--model", options.model,
                     "Model preset or file; default: the one that the trace names or fits");
}

std::uint32_t default_ranks_per_node(std::uint32_t num_ranks) {
  constexpr std::uint32_t kGpusPerNode = 8;
  return std::min(num_ranks, kGpusPerNode);
}

SequencePart part_option(const std::string& option, const std::string& value) {
  if (const auto part = parse_sequence_part(value)) return *part;
  throw InputError(option, fmt::format("'{}'", value), "one of even, odd, all");
}

std::uint32_t replicas_option(const std::string& value) {
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number > kMaxExperts) {
    throw InputError("--replicas", fmt::format("'{}'", value),
                     fmt::format("a number from 0 to {}", kMaxExperts));
  }
  return number;
}

std::optional<ReplicaChoice> replica_choice_option(const PlacementOptions& options) {
  if (options.replica_choice.empty()) return std::nullopt;
  if (const auto choice = parse_replica_choice(options.replica_choice)) return choice;
  throw InputError("--replica-choice", fmt::format("'{}'", options.replica_choice),
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

Placement learn_placement(const Trace& trace, const PlacementOptions& options,
                          std::uint32_t num_replicas, ReplicaChoice choice) {
  if (!options.num_ranks) throw InputError("--ranks", "nothing", "the number of EP ranks");
  PlacementRequest request;
  request.strategy = options.strategy;
  request.num_ranks = *options.num_ranks;
  request.ranks_per_node =
      options.ranks_per_node.value_or(default_ranks_per_node(request.num_ranks));
  request.seed = options.seed;
  request.max_imbalance = options.max_imbalance;
  request.max_node_imbalance = options.max_node_imbalance;
  request.num_replicas = num_replicas;
  request.replica_choice = choice;
  request.num_starts = options.num_starts;
  request.num_jobs = options.num_jobs;
  const SequencePart part = part_option("--train", options.train);
  const auto* routing = std::get_if<Routing>(&trace);
  if (!strategy_learns(options.strategy) || routing == nullptr) {
    Placement placement = make_placement(trace, request);
    if (strategy_learns(options.strategy)) {
      placement.trained_on = fmt::format("{} counts", std::get<ExpertCounts>(trace).origin);
    }
    return placement;
  }
  Placement placement = make_placement(select(*routing, part), request);
  placement.trained_on = training_label(*routing, part);
  return placement;
}

}  // namespace coterie
