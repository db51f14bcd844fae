#pragma once
// Routing in which every expert is chosen equally often, as training runs force it to measure speed.

#include <cstdint>

#include "workloads/trace/routing.hpp"

namespace coterie {

struct BalancedRequest {
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;
  std::uint32_t layer = 0;  // its number
  std::uint32_t num_sequences = 0;
  std::uint32_t tokens_per_sequence = 0;
  std::uint64_t seed = 0;
};

// One layer: shuffled decks of all experts are dealt to the tokens one after the other, top-k cards
// each, so that counts differ by at most one. Which experts meet in a token is random.
Routing balanced_routing(const BalancedRequest& request);

}  // namespace coterie
