#include "sim/cli/placement_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"

namespace coterie {

void add_placement_options(CLI::App& command, PlacementOptions& options) {
  command.add_option("TRACE", options.trace, "The .moet trace")->required();
  command.add_option("--ranks", options.num_ranks, "EP ranks");
  command.add_option("--ranks-per-node", options.ranks_per_node,
                     "EP ranks per node; default: 8, or all of fewer ranks");
  command.add_option(
      "--strategy", options.strategy,
      fmt::format("How experts are placed: {}", fmt::join(placement_strategies(), ", ")));
  command.add_option("--max-imbalance", options.max_imbalance,
                     "Balance cap of the collaboration strategies: load of the fullest rank over "
                     "the mean, on the training part");
  command.add_option("--replicas", options.num_replicas,
                     "Extra expert slots per layer (load_balanced)");
  command.add_option("--seed", options.seed, "Seed of random choices");
  command.add_option("--train", options.train, "Sequences to learn on: even, odd, all")
      ->capture_default_str();
}

std::uint32_t default_ranks_per_node(std::uint32_t num_ranks) {
  constexpr std::uint32_t kGpusPerNode = 8;
  return std::min(num_ranks, kGpusPerNode);
}

SequencePart part_option(const std::string& option, const std::string& value) {
  if (const auto part = parse_sequence_part(value)) return *part;
  throw InputError(option, fmt::format("'{}'", value), "one of even, odd, all");
}

Placement learn_placement(const Trace& trace, const PlacementOptions& options) {
  if (!options.num_ranks) throw InputError("--ranks", "nothing", "the number of EP ranks");
  PlacementRequest request;
  request.strategy = options.strategy;
  request.num_ranks = *options.num_ranks;
  request.ranks_per_node =
      options.ranks_per_node.value_or(default_ranks_per_node(request.num_ranks));
  request.seed = options.seed;
  request.max_imbalance = options.max_imbalance;
  request.num_replicas = options.num_replicas;
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
