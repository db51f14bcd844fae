#pragma once
// Small routings that the placement tests build themselves.

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/random.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie::testing {

struct RoutingShape {
  std::uint32_t num_experts = 64;
  std::uint32_t num_topk = 8;
  std::uint64_t num_tokens = 1000;
  std::uint64_t num_sequences = 10;
  std::size_t num_layers = 1;
};

// No experts yet; the tokens in sequences of equal length, the last one longer.
inline Routing empty_routing(const RoutingShape& shape) {
  Routing routing;
  routing.num_experts = shape.num_experts;
  routing.num_topk = shape.num_topk;
  for (std::size_t layer = 0; layer < shape.num_layers; ++layer) {
    routing.layers.push_back(static_cast<std::uint32_t>(layer + 1));
  }
  for (std::uint64_t s = 0; s < shape.num_sequences; ++s) {
    routing.sequence_begin.push_back(shape.num_tokens / shape.num_sequences * s);
  }
  routing.sequence_begin.push_back(shape.num_tokens);
  return routing;
}

// Every token draws k distinct experts uniformly, with random router weights in descending order.
inline Routing uniform_routing(const RoutingShape& shape, std::uint64_t seed) {
  Routing routing = empty_routing(shape);
  Random random(seed);
  std::vector<ExpertIdx> pool(shape.num_experts);
  std::vector<float> weights(shape.num_topk);
  for (std::uint64_t t = 0; t < shape.num_tokens * shape.num_layers; ++t) {
    std::iota(pool.begin(), pool.end(), ExpertIdx{0});
    for (std::uint32_t j = 0; j < shape.num_topk; ++j) {
      std::swap(pool[j], pool[j + random.index(shape.num_experts - j)]);
      routing.experts.push_back(pool[j]);
      weights[j] = static_cast<float>(random.uniform());
    }
    std::sort(weights.begin(), weights.end(), std::greater<>());
    routing.weights.insert(routing.weights.end(), weights.begin(), weights.end());
  }
  return routing;
}

// Expert e belongs to hidden group perm(e) mod num_groups; a token draws its experts from one group
// with probability `strength`, else uniformly. Group loads are skewed: group g is drawn in
// proportion to num_groups - g.
inline Routing planted_routing(const RoutingShape& shape, std::uint32_t num_groups, double strength,
                               std::uint64_t seed) {
  Routing routing = empty_routing(shape);
  Random random(seed);
  std::vector<ExpertIdx> hidden(shape.num_experts);
  std::iota(hidden.begin(), hidden.end(), ExpertIdx{0});
  random.shuffle(std::span(hidden));
  const std::uint32_t group_size = shape.num_experts / num_groups;
  for (std::uint64_t t = 0; t < shape.num_tokens * shape.num_layers; ++t) {
    std::uint64_t draw = random.index(num_groups * (num_groups + 1) / 2);
    std::uint32_t group = 0;
    while (draw >= num_groups - group) draw -= num_groups - group++;
    std::vector<ExpertIdx> chosen;
    while (chosen.size() < shape.num_topk) {
      const bool inside = random.uniform() < strength && chosen.size() < group_size;
      const ExpertIdx expert = inside ? hidden[group * group_size + random.index(group_size)]
                                      : hidden[random.index(shape.num_experts)];
      if (std::find(chosen.begin(), chosen.end(), expert) == chosen.end()) chosen.push_back(expert);
    }
    routing.experts.insert(routing.experts.end(), chosen.begin(), chosen.end());
  }
  return routing;
}

}  // namespace coterie::testing
