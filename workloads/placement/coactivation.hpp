#pragma once
// The co-activation graph of a layer: experts as vertices, and an edge between two experts for as
// many tokens as chose both (Occult's collaboration, arXiv 2505.13345).

#include <boost/graph/adjacency_matrix.hpp>
#include <cstdint>
#include <span>
#include <vector>

#include "workloads/trace/routing.hpp"

namespace coterie {

struct ExpertVertex {
  std::uint64_t load = 0;  // tokens that chose the expert
};
struct CollaborationEdge {
  std::uint64_t num_tokens = 0;  // tokens that chose both experts
};
// Dense for real traces, hence a matrix. Pairs that never met have no edge.
using CoactivationGraph =
    boost::adjacency_matrix<boost::undirectedS, ExpertVertex, CollaborationEdge>;

// `experts`: [num_tokens][num_topk], ids below num_experts, distinct per token. `token_weight`
// [num_tokens]: for how many tokens each stands; empty where for one.
CoactivationGraph coactivation_graph(std::span<const ExpertIdx> experts, std::uint32_t num_topk,
                                     std::uint32_t num_experts,
                                     std::span<const std::uint32_t> token_weight = {});

}  // namespace coterie
