#include "workloads/trace/drift.hpp"

#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "core/random.hpp"

namespace coterie {

std::vector<ExpertIdx> drifted_roles(std::uint32_t num_experts, std::uint32_t layer, double share,
                                     std::uint32_t num_exchanges, std::uint64_t seed) {
  std::vector<ExpertIdx> roles(num_experts);
  std::iota(roles.begin(), roles.end(), ExpertIdx{0});
  const auto num_drawn = static_cast<std::size_t>(std::lround(share * num_experts));
  std::vector<std::uint32_t> order(num_experts);
  for (std::uint32_t exchange = 0; exchange < num_exchanges; ++exchange) {
    std::iota(order.begin(), order.end(), 0U);
    Random random(seed, mix64(std::uint64_t{layer} << 32 | exchange));
    random.shuffle(std::span(order));
    for (std::size_t i = 1; i < num_drawn; ++i) std::swap(roles[order[i - 1]], roles[order[i]]);
  }
  return roles;
}

Routing drifted(Routing routing, double share, std::uint32_t num_exchanges, std::uint64_t seed) {
  const std::size_t stride = routing.num_tokens() * routing.num_topk;
  for (std::size_t i = 0; i < routing.num_layers(); ++i) {
    const std::vector<ExpertIdx> roles =
        drifted_roles(routing.num_experts, routing.layers[i], share, num_exchanges, seed);
    for (ExpertIdx& expert : std::span(routing.experts).subspan(i * stride, stride)) {
      expert = roles[expert];
    }
  }
  return routing;
}

}  // namespace coterie
