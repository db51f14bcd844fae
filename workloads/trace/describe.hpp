#pragma once
// What a trace looks like: load skew, collaboration, distance from independent routing.

#include <cstdint>
#include <span>
#include <vector>

#include "workloads/trace/moet.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// How unequally the experts of a layer are used.
struct LoadSkew {
  std::uint64_t total = 0;       // (token, expert) pairs
  double max_over_mean = 0.0;    // of pairs per expert
  double gini = 0.0;             // 0: all equal, towards 1: one expert takes all
  double entropy = 0.0;          // of the load distribution over log(num_experts); 1: all equal
  std::uint32_t num_unused = 0;  // experts that were never chosen
};
LoadSkew load_skew(std::span<const std::uint64_t> counts);  // [num_experts]

struct CollaboratingPair {
  ExpertIdx a = 0, b = 0;   // a < b
  std::uint64_t count = 0;  // tokens that chose both
  double lift = 0.0;        // over what independent choices with these loads would give
};

// Expected distinct ranks of a contiguous placement against what the trace shows.
struct FanOutSample {
  std::uint32_t num_ranks = 0;
  double hypergeometric = 0.0;  // P * (1 - C(E - E/P, k) / C(E, k)), uniform routing
  double contiguous = 0.0;      // mean over tokens, own rank included when hit
};

struct LayerDescription {
  std::uint32_t layer = 0;
  LoadSkew load;
  // Collaboration: a token adds one to each of the k(k-1)/2 pairs of its experts.
  std::uint64_t num_pairs_seen = 0;  // distinct pairs that occur
  double top_share = 0.0;            // share of all co-activation in the top 1 percent of all pairs
  std::vector<CollaboratingPair> top_pairs;
  // Distance between the observed distribution over pairs and that of independent routing with the
  // same loads: total variation in [0, 1] and Kullback-Leibler divergence in bits. Both are
  // positive for independent routing too, because the sample is finite; the `_noise` figures are
  // what sampling alone gives, so only the excess says something.
  double pair_variation = 0.0;
  double pair_variation_noise = 0.0;
  double pair_information_bits = 0.0;
  double pair_information_noise_bits = 0.0;
  std::vector<FanOutSample> fanout;
};

// `rank_counts`: the EP sizes of the fan-out; sizes that do not divide the experts are skipped.
std::vector<LayerDescription> describe(const Routing& routing,
                                       std::span<const std::uint32_t> rank_counts,
                                       std::size_t num_top_pairs);

// Expected distinct ranks of a token under uniform routing: P (1 - C(E - E/P, k) / C(E, k)) for E
// experts in equal parts on P ranks and top-k.
double hypergeometric_fanout(std::uint32_t num_experts, std::uint32_t num_topk,
                             std::uint32_t num_ranks);

// Pairs of one layer: [num_experts * num_experts], the upper triangle filled.
std::vector<std::uint64_t> count_pairs(const Routing& routing, std::size_t layer_idx);

}  // namespace coterie
