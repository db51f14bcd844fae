#include "workloads/placement/coactivation.hpp"

namespace coterie {

CoactivationGraph coactivation_graph(std::span<const ExpertIdx> experts, std::uint32_t num_topk,
                                     std::uint32_t num_experts,
                                     std::span<const std::uint32_t> token_weight) {
  // Counted flat, as edge look-ups are too slow for a pass over all tokens.
  std::vector<std::uint64_t> load(num_experts, 0);
  std::vector<std::uint32_t> together(std::size_t{num_experts} * num_experts, 0);
  for (std::size_t token = 0; (token + 1) * num_topk <= experts.size(); ++token) {
    const std::size_t begin = token * num_topk;
    const std::uint32_t weight = token_weight.empty() ? 1 : token_weight[token];
    for (std::uint32_t i = 0; i < num_topk; ++i) {
      const std::size_t first = experts[begin + i];
      load[first] += weight;
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        together[first * num_experts + experts[begin + j]] += weight;
      }
    }
  }
  CoactivationGraph graph(num_experts);
  for (std::uint32_t a = 0; a < num_experts; ++a) {
    graph[a].load = load[a];
    for (std::uint32_t b = a + 1; b < num_experts; ++b) {
      const std::uint32_t count = together[std::size_t{a} * num_experts + b];
      if (count > 0) boost::add_edge(a, b, CollaborationEdge{count}, graph);
    }
  }
  return graph;
}

}  // namespace coterie
