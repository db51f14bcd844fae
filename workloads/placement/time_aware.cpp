// The predicted time of the layer, on a topology, a transport and a dispatch policy. A search by
// swaps lowers the time that the cost rates give (time_search.hpp), from where the other strategies
// end; what it and they find is then told apart by the prediction itself, on the training part.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "core/random.hpp"
#include "workloads/placement/layer_times.hpp"
#include "workloads/placement/partition.hpp"
#include "workloads/placement/replicas.hpp"
#include "workloads/placement/time_search.hpp"

namespace coterie {
namespace {

constexpr std::uint64_t kMaxEvaluations = 400'000;  // of swaps, beyond the first descents
constexpr std::uint32_t kKicks = 40;
constexpr std::uint64_t kMaxWeight = 1 << 29;
constexpr std::size_t kReplicaStarts = 3;    // placements with replicas that are refined
constexpr std::uint32_t kReplicaRounds = 3;  // of swapping and giving tokens out anew
constexpr double kEvenCap = 1.05;            // of a start that is as even as balance alone
constexpr double kHopeless = 1.1;  // times the least cost by the rates: not worth a prediction

// How far the load of a rank on as many other sequences strays from that on these, over its mean:
// sequences are drawn anew. Experts that are chosen together stray together, so it depends on what
// stands together. A sequence of n tokens with c copies for rank r strays from its share by
// d = c - n k load(r) / sum; loads of S sequences have the variance sum d^2, their difference to S
// others twice as much. Ranks that share a GPU, of which there are `ranks_per_gpu`, count as one.
double load_noise(const LayerTask& layer, const PartOf& parts, std::uint32_t ranks_per_gpu) {
  const std::size_t num_sequences =
      layer.sequence_begin.empty() ? 0 : layer.sequence_begin.size() - 1;
  const auto total = static_cast<double>(layer.experts.size());
  if (num_sequences < 2 || total == 0.0) return 0.0;
  const std::uint32_t num_gpus = (layer.request.num_ranks + ranks_per_gpu - 1) / ranks_per_gpu;
  PartOf gpus = parts;
  for (std::uint32_t& gpu : gpus) gpu /= ranks_per_gpu;
  std::vector<double> load(num_gpus, 0.0);
  for (std::uint32_t e = 0; e < layer.num_experts; ++e) {
    load[gpus[e]] += static_cast<double>(layer.load[e]);
  }
  std::vector<double> count(num_gpus);
  double variance = 0.0;
  for (std::size_t s = 0; s < num_sequences; ++s) {
    const std::size_t begin = layer.sequence_begin[s] * layer.num_topk;
    const std::size_t end = layer.sequence_begin[s + 1] * layer.num_topk;
    std::fill(count.begin(), count.end(), 0.0);
    for (std::size_t i = begin; i < end; ++i) count[gpus[layer.experts[i]]] += 1.0;
    const double share = static_cast<double>(end - begin) / total;
    for (std::uint32_t g = 0; g < num_gpus; ++g) {
      const double stray = count[g] - share * load[g];
      variance += stray * stray;
    }
  }
  return std::sqrt(2.0 * variance / num_gpus) / (total / num_gpus);
}

// The layer as the steps see it that are timed: the tokens that occur in them, and how often.
struct StepLayer {
  std::vector<ExpertIdx> experts;
  std::vector<std::uint64_t> load;
  std::vector<std::uint32_t> weight;
  std::vector<std::uint32_t> token_rank;
};
StepLayer of_steps(const LayerTask& layer, const std::vector<std::uint64_t>& occurrences) {
  // Sums of weights are kept in 31 bits.
  std::uint64_t unit = 1;
  const auto total = [&] {
    return std::accumulate(occurrences.begin(), occurrences.end(), std::uint64_t{0});
  };
  while (total() / unit > kMaxWeight) unit *= 2;
  StepLayer steps;
  steps.load.assign(layer.num_experts, 0);
  for (std::size_t token = 0; token < occurrences.size(); ++token) {
    const std::uint64_t weight = (occurrences[token] + unit - 1) / unit;
    if (weight == 0) continue;
    for (std::uint32_t j = 0; j < layer.num_topk; ++j) {
      const ExpertIdx expert = layer.experts[token * layer.num_topk + j];
      steps.experts.push_back(expert);
      steps.load[expert] += weight;
    }
    steps.weight.push_back(static_cast<std::uint32_t>(weight));
    if (!layer.token_rank.empty()) steps.token_rank.push_back(layer.token_rank[token]);
  }
  return steps;
}

// The layer's tokens as a routing of their own.
Routing routing_of(const LayerTask& layer) {
  Routing routing;
  routing.num_experts = layer.num_experts;
  routing.num_topk = layer.num_topk;
  routing.layers = {layer.layer};
  routing.sequence_begin.assign(layer.sequence_begin.begin(), layer.sequence_begin.end());
  routing.experts.assign(layer.experts.begin(), layer.experts.end());
  return routing;
}

// The first of the fastest on the training part.
RankExperts fastest(const LayerTask& layer, const Routing& routing,
                    std::vector<RankExperts> candidates) {
  std::size_t best = 0;
  double best_s = 0.0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    LayerPlacement placement{layer.layer, candidates[i]};
    for (auto& experts : placement.rank_experts) std::sort(experts.begin(), experts.end());
    const double time_s =
        layer.request.times->predict_s(routing, 0, placement, layer.request.replica_choice);
    if (i > 0 && time_s >= best_s) continue;
    best = i;
    best_s = time_s;
  }
  return std::move(candidates[best]);
}

using Place = RankExperts (*)(const LayerTask&);

RankExperts place_by(Place place, const LayerTask& layer, std::optional<double> cap) {
  PlacementRequest request = layer.request;
  request.max_imbalance = cap;
  request.num_starts = 1;  // the search by time follows
  const LayerTask task{layer.layer,          layer.num_experts, layer.num_topk,   layer.experts,
                       layer.load,           request,           layer.token_rank, layer.replica_of,
                       layer.sequence_begin, layer.token_weight};
  return place(task);
}

std::vector<RankExperts> replicated_candidates(const LayerTask& layer) {
  std::vector<RankExperts> candidates;
  candidates.push_back(place_by(place_load_balanced, layer, std::nullopt));
  candidates.push_back(place_by(place_load_balanced_joint, layer, std::nullopt));
  for (const std::optional<double> cap :
       {std::optional<double>{}, std::optional(1.2), std::optional(1.05)}) {
    for (const Place place : {place_collaboration_refined, place_collaboration_two_level}) {
      if (place == place_collaboration_two_level &&
          layer.request.ranks_per_node >= layer.request.num_ranks) {
        continue;
      }
      try {
        candidates.push_back(place_by(place, layer, cap));
      } catch (const InputError&) {
        // A cap that cannot be met is none of the caller's.
      }
    }
  }
  return candidates;
}

// Swaps replicas for the time that the rates give, tokens staying with their replicas; then the rule
// gives them out anew, and so on while that helps.
struct Refined {
  double cost_s;
  RankExperts placement;
};
Refined refine_replicas(const LayerTask& layer, const LayerCost& cost, RankExperts placement,
                        std::uint32_t num_rounds) {
  Refined best{std::numeric_limits<double>::infinity(), {}};
  for (std::uint32_t round = 0; round <= num_rounds; ++round) {
    ServedReplicas served = serve_replicas(layer, placement);
    const TokenSample sample(served.experts, layer.num_topk,
                             static_cast<std::uint32_t>(served.load.size()));
    TimeTask task{sample, served.load, cost};
    task.replica_of = served.replica_of;
    const double cost_s = expected_cost_s(task, served.parts);
    if (cost_s >= best.cost_s) break;
    best = {cost_s, placement};
    if (round == num_rounds) break;
    refine_time(task, {}, served.parts);
    placement = to_rank_experts(served.parts, cost.num_ranks);
    for (auto& experts : placement) {
      for (ExpertIdx& expert : experts) expert = served.replica_of[expert];
    }
  }
  return best;
}

RankExperts place_replicated(const LayerTask& layer, const LayerTask& seen,
                             const Routing& routing) {
  const LayerCost& cost = layer.request.times->cost();
  std::vector<RankExperts> candidates = replicated_candidates(seen);
  std::vector<Refined> starts;
  for (const RankExperts& candidate : candidates) {
    starts.push_back(refine_replicas(seen, cost, candidate, 0));
  }
  std::stable_sort(starts.begin(), starts.end(),
                   [](const Refined& a, const Refined& b) { return a.cost_s < b.cost_s; });
  if (starts.size() > kReplicaStarts) starts.erase(starts.begin() + kReplicaStarts, starts.end());
  for (const Refined& start : starts) {
    candidates.push_back(refine_replicas(seen, cost, start.placement, kReplicaRounds).placement);
  }
  return fastest(layer, routing, std::move(candidates));
}

}  // namespace

RankExperts place_time_aware(const LayerTask& layer) {
  const LayerTimes& times = *layer.request.times;
  const LayerCost& cost = times.cost();
  const Routing routing = routing_of(layer);
  const StepLayer steps = of_steps(layer, times.occurrences(routing));
  LayerTask seen{layer.layer, layer.num_experts, layer.num_topk,   steps.experts,
                 steps.load,  layer.request,     steps.token_rank, layer.replica_of};
  if (layer.request.num_replicas > 0) {
    // Replicas are placed for tokens that count once each.
    std::vector<std::uint64_t> load(layer.num_experts, 0);
    for (const ExpertIdx expert : steps.experts) ++load[expert];
    seen.load = load;
    return place_replicated(layer, seen, routing);
  }
  seen.token_weight = steps.weight;
  constexpr std::size_t kContiguous = 1;
  std::vector<RankExperts> candidates;
  candidates.push_back(place_by(place_collaboration, seen, std::nullopt));
  candidates.push_back(place_contiguous(seen));
  candidates.push_back(place_by(place_load_balanced, seen, std::nullopt));
  if (layer.request.ranks_per_node < layer.request.num_ranks) {
    candidates.push_back(place_by(place_collaboration_two_level, seen, std::nullopt));
  }
  try {
    candidates.push_back(place_by(place_collaboration_refined, seen, kEvenCap));
  } catch (const InputError&) {
    // A cap that cannot be met is none of the caller's.
  }

  const TokenSample sample(steps.experts, layer.num_topk, layer.num_experts, steps.weight);
  TimeTask task{sample, steps.load, cost};
  const PartOf together = parts_of(candidates[0], layer.num_experts);
  task.log2_exponent =
      noise_exponent(task, together, load_noise(layer, together, cost.ranks_per_gpu));
  struct Found {
    double cost_s;
    PartOf parts;
  };
  std::vector<Found> found;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (i == kContiguous) continue;  // the worst start
    PartOf parts = parts_of(candidates[i], layer.num_experts);
    refine_time(task, {}, parts);
    found.push_back({expected_cost_s(task, parts), std::move(parts)});
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Found& a, const Found& b) { return a.cost_s < b.cost_s; });
  PartOf parts = found[0].parts;
  const std::uint64_t seed = mix64(layer.request.seed) ^ layer.layer;
  refine_time(task, {kMaxEvaluations, kKicks, seed}, parts);
  std::vector<RankExperts> judged{to_rank_experts(parts, cost.num_ranks),
                                  to_rank_experts(found[1].parts, cost.num_ranks)};
  const double most_s = kHopeless * layer_cost_s(task, parts);
  for (RankExperts& candidate : candidates) {
    if (layer_cost_s(task, parts_of(candidate, layer.num_experts)) > most_s) continue;
    judged.push_back(std::move(candidate));
  }
  return fastest(layer, routing, std::move(judged));
}

}  // namespace coterie
