#include "workloads/trace/describe.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace coterie {
namespace {

// Distribution over pairs {a, b}, a < b, with the observed loads and no other preference: q_ab
// proportional to w_a w_b, where w is fitted so that every expert's share of pairs is the observed
// one (quasi-independence; iterative proportional fitting). A plain product of the loads would
// count the impossible pairs {a, a}.
std::vector<double> independent_pairs(const std::vector<std::uint64_t>& pairs, std::size_t n) {
  std::vector<double> share(n, 0.0);
  double total = 0.0;
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = a + 1; b < n; ++b) {
      const auto count = static_cast<double>(pairs[a * n + b]);
      share[a] += count;
      share[b] += count;
      total += count;
    }
  }
  std::vector<double> weight(n);
  for (std::size_t a = 0; a < n; ++a) weight[a] = share[a] /= total;
  for (int round = 0; round < 100; ++round) {
    const double sum = std::accumulate(weight.begin(), weight.end(), 0.0);
    double worst = 0.0;
    for (std::size_t a = 0; a < n; ++a) {
      if (share[a] == 0.0) continue;
      const double marginal = weight[a] * (sum - weight[a]);
      const double factor = share[a] / marginal;
      worst = std::max(worst, std::abs(factor - 1.0));
      weight[a] *= std::sqrt(factor);
    }
    if (worst < 1e-9) break;
  }
  std::vector<double> expected(n * n, 0.0);
  double sum = 0.0;
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = a + 1; b < n; ++b) sum += expected[a * n + b] = weight[a] * weight[b];
  }
  for (double& q : expected) q /= sum;
  return expected;
}

// Mean absolute deviation of a Poisson variable: 2 exp(-m) m^(floor(m)+1) / floor(m)!.
double poisson_deviation(double mean) {
  if (mean <= 0.0) return 0.0;
  const double floor = std::floor(mean);
  return 2.0 * std::exp(-mean + (floor + 1.0) * std::log(mean) - std::lgamma(floor + 1.0));
}

void describe_pairs(const Routing& routing, std::size_t layer_idx, std::size_t num_top_pairs,
                    LayerDescription& layer) {
  const std::size_t n = routing.num_experts;
  const std::vector<std::uint64_t> pairs = count_pairs(routing, layer_idx);
  const std::uint64_t total = std::accumulate(pairs.begin(), pairs.end(), std::uint64_t{0});
  if (total == 0 || n < 2) return;
  const auto num_pairs = static_cast<double>(total);
  const auto num_tokens = static_cast<double>(routing.num_tokens());
  const std::vector<double> expected = independent_pairs(pairs, n);

  std::vector<std::uint32_t> order;
  double variation = 0.0;
  double variation_noise = 0.0;
  double information = 0.0;
  double num_possible = 0.0;
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = a + 1; b < n; ++b) {
      const std::size_t at = a * n + b;
      const double q = expected[at];
      if (q > 0.0) ++num_possible;
      const double p = static_cast<double>(pairs[at]) / num_pairs;
      variation += std::abs(p - q);
      // A pair occurs at most once per token: binomial over the tokens.
      const double mean = q * num_pairs;
      variation_noise +=
          poisson_deviation(mean) * std::sqrt(std::max(0.0, 1.0 - mean / num_tokens)) / num_pairs;
      if (p > 0.0) {
        information += p * std::log2(p / q);
        order.push_back(static_cast<std::uint32_t>(at));
      }
    }
  }
  layer.num_pairs_seen = order.size();
  layer.pair_variation = variation / 2.0;
  layer.pair_variation_noise = variation_noise / 2.0;
  layer.pair_information_bits = information;
  // Mean of the likelihood-ratio statistic: degrees of freedom over 2N (Wilks).
  layer.pair_information_noise_bits =
      std::max(0.0, num_possible - static_cast<double>(n)) / (2.0 * num_pairs * std::numbers::ln2);

  std::sort(order.begin(), order.end(), [&](std::uint32_t x, std::uint32_t y) {
    return pairs[x] != pairs[y] ? pairs[x] > pairs[y] : x < y;
  });
  const std::size_t one_percent = std::max<std::size_t>(1, n * (n - 1) / 2 / 100);
  std::uint64_t top = 0;
  for (std::size_t i = 0; i < std::min(one_percent, order.size()); ++i) top += pairs[order[i]];
  layer.top_share = static_cast<double>(top) / num_pairs;
  for (std::size_t i = 0; i < std::min(num_top_pairs, order.size()); ++i) {
    const std::size_t at = order[i];
    layer.top_pairs.push_back({static_cast<ExpertIdx>(at / n), static_cast<ExpertIdx>(at % n),
                               pairs[at],
                               static_cast<double>(pairs[at]) / (expected[at] * num_pairs)});
  }
}

double contiguous_fanout(const Routing& routing, std::size_t layer_idx, std::uint32_t num_ranks) {
  const auto ids = routing.layer_experts(layer_idx);
  const std::uint32_t per_rank = routing.num_experts / num_ranks;
  std::vector<std::uint16_t> rank_of(routing.num_experts);
  for (std::uint32_t e = 0; e < routing.num_experts; ++e) {
    rank_of[e] = static_cast<std::uint16_t>(e / per_rank);
  }
  const std::uint32_t k = routing.num_topk;
  std::uint64_t sum = 0;
  if (num_ranks <= 64) {  // the ranks of a token as a set of bits
    for (std::size_t at = 0; at < ids.size(); at += k) {
      std::uint64_t hit = 0;
      for (std::uint32_t i = 0; i < k; ++i) {
        const std::uint16_t rank = rank_of[ids[at + i]];
        sum += ~(hit >> rank) & 1U;
        hit |= std::uint64_t{1} << rank;
      }
    }
    return static_cast<double>(sum) / static_cast<double>(routing.num_tokens());
  }
  for (std::size_t at = 0; at < ids.size(); at += k) {
    for (std::uint32_t i = 0; i < k; ++i) {
      const std::uint16_t rank = rank_of[ids[at + i]];
      bool first = true;
      for (std::uint32_t j = 0; j < i; ++j) first &= rank_of[ids[at + j]] != rank;
      sum += first ? 1U : 0U;
    }
  }
  return static_cast<double>(sum) / static_cast<double>(routing.num_tokens());
}

}  // namespace

LoadSkew load_skew(std::span<const std::uint64_t> counts) {
  LoadSkew skew;
  std::vector<std::uint64_t> sorted(counts.begin(), counts.end());
  std::sort(sorted.begin(), sorted.end());
  skew.total = std::accumulate(sorted.begin(), sorted.end(), std::uint64_t{0});
  skew.num_unused =
      static_cast<std::uint32_t>(std::count(sorted.begin(), sorted.end(), std::uint64_t{0}));
  if (skew.total == 0) return skew;
  const auto n = static_cast<double>(sorted.size());
  const auto total = static_cast<double>(skew.total);
  skew.max_over_mean = static_cast<double>(sorted.back()) * n / total;
  double weighted = 0.0;
  double entropy = 0.0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const auto count = static_cast<double>(sorted[i]);
    weighted += (2.0 * static_cast<double>(i + 1) - n - 1.0) * count;
    if (sorted[i] > 0) entropy -= count / total * std::log(count / total);
  }
  skew.gini = weighted / (n * total);
  skew.entropy = sorted.size() > 1 ? entropy / std::log(n) : 1.0;
  return skew;
}

double hypergeometric_fanout(std::uint32_t num_experts, std::uint32_t num_topk,
                             std::uint32_t num_ranks) {
  // C(E - m, k) / C(E, k) with m = E / P experts per rank, as a product of k factors.
  const double per_rank = static_cast<double>(num_experts) / num_ranks;
  double missed = 1.0;
  for (std::uint32_t i = 0; i < num_topk; ++i) {
    missed *= std::max(0.0, num_experts - per_rank - i) / static_cast<double>(num_experts - i);
  }
  return num_ranks * (1.0 - missed);
}

std::vector<std::uint64_t> count_pairs(const Routing& routing, std::size_t layer_idx) {
  const std::size_t n = routing.num_experts;
  std::vector<std::uint64_t> pairs(n * n, 0);
  const ExpertIdx* ids = routing.layer_experts(layer_idx).data();
  const std::size_t k = routing.num_topk;
  // Counted in router order, without comparing, and folded onto the triangle at the end.
  for (std::uint64_t token = 0; token < routing.num_tokens(); ++token, ids += k) {
    for (std::size_t i = 0; i < k; ++i) {
      std::uint64_t* row = pairs.data() + ids[i] * n;
      for (std::size_t j = i + 1; j < k; ++j) ++row[ids[j]];
    }
  }
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = a + 1; b < n; ++b) {
      pairs[a * n + b] += pairs[b * n + a];
      pairs[b * n + a] = 0;
    }
  }
  return pairs;
}

std::vector<LayerDescription> describe(const Routing& routing,
                                       std::span<const std::uint32_t> rank_counts,
                                       std::size_t num_top_pairs) {
  std::vector<LayerDescription> layers;
  for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
    LayerDescription layer;
    layer.layer = routing.layers[layer_idx];
    std::vector<std::uint64_t> counts(routing.num_experts, 0);
    for (const ExpertIdx id : routing.layer_experts(layer_idx)) ++counts[id];
    layer.load = load_skew(counts);
    describe_pairs(routing, layer_idx, num_top_pairs, layer);
    for (const std::uint32_t num_ranks : rank_counts) {
      if (num_ranks == 0 || routing.num_experts % num_ranks != 0) continue;
      layer.fanout.push_back(
          {num_ranks, hypergeometric_fanout(routing.num_experts, routing.num_topk, num_ranks),
           contiguous_fanout(routing, layer_idx, num_ranks)});
    }
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace coterie
