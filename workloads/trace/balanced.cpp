#include "workloads/trace/balanced.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/random.hpp"

namespace coterie {

Routing balanced_routing(const BalancedRequest& request) {
  Routing routing;
  routing.origin = fmt::format("balanced, seed {}", request.seed);
  routing.num_experts = request.num_experts;
  routing.num_topk = request.num_topk;
  routing.layers = {request.layer};
  for (std::uint64_t i = 0; i <= request.num_sequences; ++i) {
    routing.sequence_begin.push_back(i * request.tokens_per_sequence);
  }
  Random random(request.seed, request.layer);
  std::vector<ExpertIdx> deck(request.num_experts);
  std::iota(deck.begin(), deck.end(), ExpertIdx{0});
  std::size_t next = deck.size();
  const std::uint64_t num_tokens = routing.num_tokens();
  routing.experts.reserve(num_tokens * request.num_topk);
  for (std::uint64_t token = 0; token < num_tokens; ++token) {
    const std::size_t begin = routing.experts.size();
    for (std::uint32_t k = 0; k < request.num_topk; ++k) {
      if (next == deck.size()) {
        random.shuffle(std::span(deck));
        next = 0;
      }
      // A token that ends one deck and begins the next takes no expert twice: the first card that it
      // does not hold changes places.
      for (std::size_t other = next; other < deck.size(); ++other) {
        if (std::find(routing.experts.begin() + static_cast<std::ptrdiff_t>(begin),
                      routing.experts.end(), deck[other]) != routing.experts.end()) {
          continue;
        }
        std::swap(deck[next], deck[other]);
        break;
      }
      routing.experts.push_back(deck[next++]);
    }
  }
  return routing;
}

}  // namespace coterie
