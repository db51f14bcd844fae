#pragma once
// The registry of placement strategies: one file and one line each (workloads/PLACEMENTS.md gives the recipe).

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "workloads/placement/placement.hpp"

namespace coterie {

// One layer as a strategy sees it.
struct LayerTask {
  std::uint32_t layer = 0;  // number in the model
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;
  std::span<const ExpertIdx> experts;   // [num_tokens][num_topk]; empty unless kTokens is needed
  std::span<const std::uint64_t> load;  // [num_experts] tokens; empty unless something is learnt
  const PlacementRequest& request;
  // [num_tokens] the rank that a round-robin deal of the sequences gives each token; empty unless
  // kTokens is needed. With replicas it matters where a token comes from.
  std::span<const std::uint32_t> token_rank = {};
  // [num_experts] the expert that each is a replica of, where a strategy places replicas as experts
  // of their own (replicas.hpp); empty otherwise. Two of one expert never share a rank.
  std::span<const ExpertIdx> replica_of = {};
  // [num_sequences + 1] first token of each; empty unless kTokens is needed.
  std::span<const std::uint64_t> sequence_begin = {};
  // [num_tokens] for how many tokens each stands; empty where for one. `load` counts them all.
  std::span<const std::uint32_t> token_weight = {};

  [[nodiscard]] std::size_t num_tokens() const {
    return num_topk == 0 ? 0 : experts.size() / num_topk;
  }
};

// The experts of every rank, in any order; [num_ranks].
using RankExperts = std::vector<std::vector<ExpertIdx>>;

enum class Learns : std::uint8_t {
  kNothing,
  kLoad,    // how often each expert is chosen
  kTokens,  // which experts are chosen together
};

struct PlacementStrategy {
  std::string_view name;
  Learns learns;
  bool takes_balance_cap;
  bool takes_replicas;
  RankExperts (*place)(const LayerTask& task);
  bool needs_times = false;  // PlacementRequest::times
};

// From what knows nothing of the trace to what knows most.
std::span<const PlacementStrategy> strategy_registry();
const PlacementStrategy& find_strategy(std::string_view name);  // throws InputError

RankExperts place_contiguous(const LayerTask& task);
RankExperts place_round_robin(const LayerTask& task);
RankExperts place_random(const LayerTask& task);
RankExperts place_load_balanced(const LayerTask& task);
RankExperts place_load_balanced_joint(const LayerTask& task);
RankExperts place_collaboration(const LayerTask& task);
RankExperts place_collaboration_refined(const LayerTask& task);
RankExperts place_collaboration_two_level(const LayerTask& task);
RankExperts place_time_aware(const LayerTask& task);

// Experts that each rank holds: in equal parts, the first E mod P ranks one more.
std::vector<std::uint32_t> rank_capacities(std::uint32_t num_experts, std::uint32_t num_ranks);

}  // namespace coterie
