// Collaboration pruning (Occult, arXiv 2505.13345, section 4.3); prune.hpp says what it promises.
//
// A trace records the router weights of the chosen experts only, so "re-pick the top-k" knows the
// scores of the token's own experts and must estimate those of the others. The chosen experts
// inside the allowed ranks had the highest scores and stay. The free places go, under kRouterScore,
// to the allowed experts with the highest mean router weight on the training part (zero where not
// chosen), whose weight is taken as that mean but never above the token's lowest recorded one.

#include "workloads/plan/prune.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/counted.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

std::size_t find_layer(const Routing& routing, std::uint32_t layer, const char* part) {
  const auto found = std::find(routing.layers.begin(), routing.layers.end(), layer);
  if (found == routing.layers.end()) {
    throw InputError(
        fmt::format("pruning: found no layer {} in the {} part of the trace, expected "
                    "every layer of the placement",
                    layer, part));
  }
  return static_cast<std::size_t>(found - routing.layers.begin());
}

// What the training part says about the experts of a layer.
struct ExpertScores {
  std::vector<double> mean_weight;  // [num_experts]
  std::vector<double> similarity;   // [num_experts][num_experts], kSimilarity only
};

ExpertScores learn_scores(const Routing& training, std::size_t layer_idx, PruneMethod method) {
  const std::size_t num_experts = training.num_experts;
  const std::uint32_t num_topk = training.num_topk;
  const auto experts = training.layer_experts(layer_idx);
  const auto weights = training.layer_weights(layer_idx);
  ExpertScores scores;
  scores.mean_weight.assign(num_experts, 0.0);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    scores.mean_weight[experts[i]] +=
        static_cast<double>(weights[i]) / static_cast<double>(training.num_tokens());
  }
  if (method != PruneMethod::kSimilarity) return scores;

  // Cosines of the experts' weight series: products summed over tokens, then divided by the norms.
  std::vector<double>& product = scores.similarity;
  product.assign(num_experts * num_experts, 0.0);
  for (std::size_t begin = 0; begin < experts.size(); begin += num_topk) {
    for (std::uint32_t i = 0; i < num_topk; ++i) {
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        product[experts[begin + i] * num_experts + experts[begin + j]] +=
            static_cast<double>(weights[begin + i]) * static_cast<double>(weights[begin + j]);
      }
    }
  }
  std::vector<double> norm(num_experts);
  for (std::size_t e = 0; e < num_experts; ++e) norm[e] = std::sqrt(product[e * num_experts + e]);
  for (std::size_t e = 0; e < num_experts; ++e) {
    for (std::size_t f = 0; f < num_experts; ++f) {
      const double norms = norm[e] * norm[f];
      product[e * num_experts + f] = norms > 0.0 ? product[e * num_experts + f] / norms : 0.0;
    }
  }
  return scores;
}

class LayerPruner {
 public:
  LayerPruner(const LayerPlacement& placement, const ExpertScores& scores, std::uint32_t num_topk,
              const PruneRequest& request)
      : placement_(placement),
        scores_(scores),
        num_topk_(num_topk),
        request_(request),
        rank_of_(scores.mean_weight.size()),
        allowed_(placement.rank_experts.size(), 0),
        used_(scores.mean_weight.size(), 0),
        order_(num_topk) {
    for (std::size_t rank = 0; rank < placement.rank_experts.size(); ++rank) {
      for (const ExpertIdx expert : placement.rank_experts[rank]) rank_of_[expert] = rank;
    }
  }

  // Restricts one token; returns the router weight of the experts that it loses.
  double prune_token(std::span<ExpertIdx> experts, std::span<float> weights) {
    std::iota(order_.begin(), order_.end(), 0u);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return weights[a] > weights[b]; });
    std::size_t num_allowed = 0;
    for (const std::uint32_t i : order_) {
      std::uint8_t& allowed = allowed_[rank_of_[experts[i]]];
      if (allowed == 0 && num_allowed < request_.num_devices) {
        allowed = 1;
        ++num_allowed;
      }
    }
    // Which experts stay is settled for all before any place is filled.
    for (const ExpertIdx expert : experts) {
      if (allowed_[rank_of_[expert]] != 0) used_[expert] = 1;
    }
    double lost = 0.0;
    const float lowest = weights[order_.back()];
    touched_.assign(experts.begin(), experts.end());
    for (const std::uint32_t i : order_) {
      if (allowed_[rank_of_[experts[i]]] != 0) continue;
      lost += static_cast<double>(weights[i]);
      const ExpertIdx substitute = choose(experts[i]);
      used_[substitute] = 1;
      touched_.push_back(substitute);
      experts[i] = substitute;
      if (request_.method == PruneMethod::kRouterScore) {
        weights[i] = std::min(lowest, static_cast<float>(scores_.mean_weight[substitute]));
      }
    }
    for (const ExpertIdx expert : touched_) {
      used_[expert] = 0;
      allowed_[rank_of_[expert]] = 0;
    }
    return lost;
  }

 private:
  // The best unused expert of the allowed ranks to stand in for `lost`.
  [[nodiscard]] ExpertIdx choose(ExpertIdx lost) const {
    const auto score = [&](ExpertIdx expert) {
      const double similarity =
          request_.method == PruneMethod::kSimilarity
              ? scores_.similarity[std::size_t{lost} * rank_of_.size() + expert]
              : 0.0;
      return std::pair{similarity, scores_.mean_weight[expert]};
    };
    std::optional<ExpertIdx> best;
    for (std::size_t rank = 0; rank < allowed_.size(); ++rank) {
      if (allowed_[rank] == 0) continue;
      for (const ExpertIdx expert : placement_.rank_experts[rank]) {
        if (used_[expert] != 0) continue;
        if (!best || score(expert) > score(*best) ||
            (score(expert) == score(*best) && expert < *best)) {
          best = expert;
        }
      }
    }
    if (!best) {
      throw InputError(
          fmt::format("prune: found a budget of {}, whose experts in layer {} are fewer "
                      "than the top-{} "
                      "of a token; expected more devices, or fewer ranks with more experts each",
                      counted(request_.num_devices, "device"), placement_.layer, num_topk_));
    }
    return *best;
  }

  const LayerPlacement& placement_;
  const ExpertScores& scores_;
  std::uint32_t num_topk_;
  PruneRequest request_;
  std::vector<std::size_t> rank_of_;   // [num_experts]
  std::vector<std::uint8_t> allowed_;  // [num_ranks], of the current token
  std::vector<std::uint8_t> used_;     // [num_experts], of the current token
  std::vector<std::uint32_t> order_;   // [num_topk] positions by falling weight
  std::vector<ExpertIdx> touched_;
};

std::size_t top1(std::span<const float> weights) {
  return static_cast<std::size_t>(std::max_element(weights.begin(), weights.end()) -
                                  weights.begin());
}

void check_pruning(const Routing& routing, const Routing& training, const Placement& placement,
                   const PruneRequest& request) {
  if (request.num_devices == 0) {
    throw InputError("prune: found a budget of 0 devices, expected at least 1");
  }
  for (const Routing* part : {&routing, &training}) {
    if (part->weights.empty()) {
      throw InputError(
          fmt::format("{}: found no router weights, expected them for pruning, which "
                      "ranks a token's experts by them",
                      part->origin.empty() ? "trace" : part->origin));
    }
  }
  if (placement.num_experts != routing.num_experts || training.num_experts != routing.num_experts) {
    throw InputError(fmt::format(
        "prune: found a placement of {} and training on {}, "
        "expected {} as in the trace",
        counted(placement.num_experts, "expert"), training.num_experts, routing.num_experts));
  }
}

}  // namespace

PruneResult prune(const Routing& routing, const Routing& training, const Placement& placement,
                  const PruneRequest& request) {
  check_pruning(routing, training, placement, request);
  PruneResult result{routing, 0.0, 0.0};
  const std::uint32_t num_topk = routing.num_topk;
  double weight = 0.0;
  double lost = 0.0;
  std::uint64_t changed = 0;
  for (const LayerPlacement& layer : placement.layers) {
    if (expert_hosts(layer, routing.num_experts).replicated()) {
      throw InputError(
          fmt::format("prune: found replicated experts in layer {}, expected one rank "
                      "per expert, because the budget counts ranks",
                      layer.layer));
    }
    const std::size_t layer_idx = find_layer(routing, layer.layer, "evaluated");
    const ExpertScores scores =
        learn_scores(training, find_layer(training, layer.layer, "training"), request.method);
    LayerPruner pruner(layer, scores, num_topk, request);
    const std::size_t begin = layer_idx * routing.num_tokens() * num_topk;
    for (std::uint64_t token = 0; token < routing.num_tokens(); ++token) {
      const std::size_t at = begin + token * num_topk;
      const auto experts = std::span(result.routing.experts).subspan(at, num_topk);
      const auto weights = std::span(result.routing.weights).subspan(at, num_topk);
      weight += std::accumulate(weights.begin(), weights.end(), 0.0);
      const ExpertIdx top1_before = experts[top1(weights)];
      lost += pruner.prune_token(experts, weights);
      changed += experts[top1(weights)] != top1_before ? 1 : 0;
    }
  }
  const auto num_pruned =
      static_cast<double>(placement.layers.size()) * static_cast<double>(routing.num_tokens());
  result.weight_lost = weight > 0.0 ? lost / weight : 0.0;
  result.top1_changed = num_pruned > 0.0 ? static_cast<double>(changed) / num_pruned : 0.0;
  return result;
}

}  // namespace coterie
