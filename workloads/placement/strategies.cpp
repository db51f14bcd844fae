#include "workloads/placement/strategies.hpp"

#include <fmt/ranges.h>

#include <array>

#include "core/error.hpp"

namespace coterie {
namespace {

constexpr std::array kRegistry = {
    PlacementStrategy{"contiguous", Learns::kNothing, false, false, place_contiguous},
    PlacementStrategy{"round_robin", Learns::kNothing, false, false, place_round_robin},
    PlacementStrategy{"random", Learns::kNothing, false, false, place_random},
    PlacementStrategy{"load_balanced", Learns::kLoad, false, true, place_load_balanced},
    PlacementStrategy{"load_balanced_joint", Learns::kLoad, false, true, place_load_balanced_joint},
    PlacementStrategy{"collaboration", Learns::kTokens, true, true, place_collaboration},
    PlacementStrategy{"collaboration_refined", Learns::kTokens, true, true,
                      place_collaboration_refined},
    PlacementStrategy{"collaboration_two_level", Learns::kTokens, true, true,
                      place_collaboration_two_level},
    PlacementStrategy{"time_aware", Learns::kTokens, false, true, place_time_aware, true},
};

}  // namespace

std::span<const PlacementStrategy> strategy_registry() {
  return kRegistry;
}

const PlacementStrategy& find_strategy(std::string_view name) {
  for (const PlacementStrategy& strategy : kRegistry) {
    if (strategy.name == name) return strategy;
  }
  throw InputError("placement strategy", fmt::format("\"{}\"", name),
                   fmt::format("one of {}", fmt::join(placement_strategies(), ", ")));
}

std::vector<std::uint32_t> rank_capacities(std::uint32_t num_experts, std::uint32_t num_ranks) {
  std::vector<std::uint32_t> result(num_ranks, num_experts / num_ranks);
  for (std::uint32_t rank = 0; rank < num_experts % num_ranks; ++rank) ++result[rank];
  return result;
}

}  // namespace coterie
