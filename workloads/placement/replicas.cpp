#include "workloads/placement/replicas.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/random.hpp"
#include "workloads/placement/balance.hpp"
#include "workloads/placement/partition.hpp"
#include "workloads/plan/host_choice.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kMaxRounds = 4;      // of assigning tokens and refining
constexpr std::uint32_t kRoundKicks = 8;     // of the search in a round
constexpr std::size_t kMaxTokens = 1 << 16;  // that the greedy choice looks at
// Exchanges of replicas for the sake of a cap: of how many placements, how many are tried of each, and
// how far beyond the cap.
constexpr std::size_t kMaxNearer = 3;
constexpr std::uint64_t kMaxExchanges = 400;
constexpr double kNear = 1.1;
constexpr std::uint32_t kHeavyTries = 4;   // experts whose replica a rank may take, heaviest first
constexpr std::uint32_t kLightTries = 16;  // and lightest first

LayerPlacement sorted_layer(const LayerTask& layer, RankExperts placement) {
  for (auto& experts : placement) std::sort(experts.begin(), experts.end());
  return {layer.layer, std::move(placement)};
}

// The rank that serves every (token, expert), [num_tokens][num_topk].
std::vector<std::uint32_t> serve(const LayerTask& layer, const ExpertHosts& hosts) {
  const PlacementRequest& request = layer.request;
  const HostChooser chooser(hosts, request.replica_choice, request.num_ranks,
                            request.ranks_per_node);
  std::vector<std::uint32_t> serving(layer.experts.size());
  // Tokens are numbered as deal_tokens does it: those of rank 0 first.
  std::vector<std::uint64_t> begin(request.num_ranks + std::size_t{1}, 0);
  for (const std::uint32_t rank : layer.token_rank) ++begin[rank + std::size_t{1}];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<std::uint64_t> position(request.num_ranks, 0);
  for (std::size_t token = 0; token < layer.num_tokens(); ++token) {
    const std::uint32_t rank = layer.token_rank[token];
    const std::uint64_t nth = position[rank]++;
    chooser.choose(layer.experts.subspan(token * layer.num_topk, layer.num_topk),
                   {begin[rank] + nth, nth, rank},
                   std::span(serving).subspan(token * layer.num_topk, layer.num_topk));
  }
  return serving;
}

std::uint64_t distinct(std::span<const std::uint32_t> serving, std::uint32_t num_topk) {
  std::uint64_t total = 0;
  for (std::size_t begin = 0; begin < serving.size(); begin += num_topk) {
    for (std::uint32_t i = 0; i < num_topk; ++i) {
      bool first = true;
      for (std::uint32_t j = 0; j < i; ++j)
        first = first && serving[begin + j] != serving[begin + i];
      total += first ? 1 : 0;
    }
  }
  return total;
}

double max_over_mean(std::span<const double> load) {
  const double total = std::accumulate(load.begin(), load.end(), 0.0);
  if (total == 0.0) return 1.0;
  return *std::max_element(load.begin(), load.end()) * static_cast<double>(load.size()) / total;
}

// What a placement of a layer amounts to on its training tokens under the request's rule.
struct ReplicaCounts {
  std::uint64_t fan_out = 0;    // distinct ranks, summed over tokens
  double rank_imbalance = 1.0;  // load of the fullest rank over the mean, shared as
  double node_imbalance = 1.0;  // PlacementRequest says; and of the fullest node
};

struct Candidate {
  RankExperts placement;
  ReplicaCounts counts;
  std::vector<std::uint32_t> serving;  // [num_tokens][num_topk]
  std::vector<double> rank_load;       // [num_ranks]
};

Candidate make_candidate(const LayerTask& layer, RankExperts placement) {
  const PlacementRequest& request = layer.request;
  const LayerPlacement sorted = sorted_layer(layer, std::move(placement));
  const ExpertHosts hosts = expert_hosts(sorted, layer.num_experts);
  Candidate result;
  result.placement = sorted.rank_experts;
  result.serving = serve(layer, hosts);
  result.counts.fan_out = distinct(result.serving, layer.num_topk);
  std::vector<double> rank_load(request.num_ranks, 0.0);
  if (request.replica_choice == ReplicaChoice::kLocality) {
    for (const std::uint32_t rank : result.serving) rank_load[rank] += 1.0;
  } else if (request.replica_choice == ReplicaChoice::kStatic) {
    const HostChooser chooser(hosts, ReplicaChoice::kStatic, request.num_ranks,
                              request.ranks_per_node);
    for (std::uint32_t e = 0; e < layer.num_experts; ++e) {
      const auto expert = static_cast<ExpertIdx>(e);
      for (std::uint32_t source = 0; source < request.num_ranks; ++source) {
        std::uint32_t host = 0;
        chooser.choose(std::span(&expert, 1), {0, 0, source}, std::span(&host, 1));
        rank_load[host] += static_cast<double>(layer.load[e]) / request.num_ranks;
      }
    }
  } else {
    for (std::uint32_t expert = 0; expert < layer.num_experts; ++expert) {
      const std::uint32_t begin = hosts.begin[expert];
      const std::uint32_t end = hosts.begin[expert + 1];
      for (std::uint32_t i = begin; i < end; ++i) {
        rank_load[hosts.ranks[i]] += static_cast<double>(layer.load[expert]) / (end - begin);
      }
    }
  }
  std::vector<double> node_load(
      (request.num_ranks + request.ranks_per_node - 1) / request.ranks_per_node, 0.0);
  for (std::uint32_t rank = 0; rank < request.num_ranks; ++rank) {
    node_load[rank / request.ranks_per_node] += rank_load[rank];
  }
  result.counts.rank_imbalance = max_over_mean(rank_load);
  result.counts.node_imbalance = max_over_mean(node_load);
  result.rank_load = std::move(rank_load);
  return result;
}

// A layer whose experts are the replicas, each an expert of its own.
struct ReplicaLayer {
  std::vector<ExpertIdx> replica_of;  // [num_replicas in all] ascending
  std::vector<ExpertIdx> experts;     // [num_tokens][num_topk]
  std::vector<std::uint64_t> load;    // [num_replicas in all]

  [[nodiscard]] LayerTask task(const LayerTask& layer) const {
    return {layer.layer,
            static_cast<std::uint32_t>(replica_of.size()),
            layer.num_topk,
            experts,
            load,
            layer.request,
            layer.token_rank,
            replica_of};
  }
  // Back to the experts that the replicas are of.
  [[nodiscard]] RankExperts unite(RankExperts placement) const {
    for (auto& experts_of_rank : placement) {
      for (ExpertIdx& expert : experts_of_rank) expert = replica_of[expert];
    }
    return placement;
  }
};

ReplicaLayer with_counts(const LayerTask& layer, std::span<const std::uint32_t> replicas) {
  ReplicaLayer result;
  std::vector<std::uint32_t> first;
  for (std::uint32_t expert = 0; expert < layer.num_experts; ++expert) {
    first.push_back(static_cast<std::uint32_t>(result.replica_of.size()));
    result.replica_of.insert(result.replica_of.end(), replicas[expert],
                             static_cast<ExpertIdx>(expert));
  }
  result.load.assign(result.replica_of.size(), 0);
  std::vector<std::uint32_t> used(layer.num_experts, 0);
  for (const ExpertIdx expert : layer.experts) {
    const std::uint32_t replica = first[expert] + used[expert]++ % replicas[expert];
    result.experts.push_back(static_cast<ExpertIdx>(replica));
    ++result.load[replica];
  }
  return result;
}

// The replicas of a placement with the tokens as the candidate serves them, and where they stand.
ReplicaLayer as_served(const LayerTask& layer, const Candidate& candidate, PartOf& parts) {
  const ExpertHosts hosts = expert_hosts({layer.layer, candidate.placement}, layer.num_experts);
  ReplicaLayer result;
  parts.clear();
  for (std::uint32_t expert = 0; expert < layer.num_experts; ++expert) {
    for (std::uint32_t i = hosts.begin[expert]; i < hosts.begin[expert + 1]; ++i) {
      result.replica_of.push_back(static_cast<ExpertIdx>(expert));
      parts.push_back(hosts.ranks[i]);
    }
  }
  result.load.assign(result.replica_of.size(), 0);
  for (std::size_t i = 0; i < layer.experts.size(); ++i) {
    std::uint32_t replica = hosts.begin[layer.experts[i]];
    while (parts[replica] != candidate.serving[i]) ++replica;
    result.experts.push_back(static_cast<ExpertIdx>(replica));
    ++result.load[replica];
  }
  return result;
}

// Swaps replicas for fan-out under the caps, tokens staying with their replicas.
RankExperts refine(const LayerTask& layer, const ReplicaLayer& replicas, bool keep_nodes,
                   std::uint32_t num_kicks, PartOf parts) {
  const LayerTask own = replicas.task(layer);
  PartitionTask task = rank_task(own);
  cap_nodes(own, task);
  const CoactivationGraph graph = coactivation_graph(own.experts, own.num_topk, own.num_experts);
  // Replicas that do not fit are left to the caller's check of the caps.
  repair_balance(task, graph, parts);
  if (keep_nodes) {
    for (std::uint32_t rank = 0; rank < task.num_parts(); ++rank) {
      task.swap_zone[rank] = rank / layer.request.ranks_per_node;
    }
  }
  refine_fan_out(task, {num_kicks, mix64(layer.request.seed) ^ layer.layer, 1}, parts);
  return replicas.unite(to_rank_experts(parts, task.num_parts()));
}

// Adds replicas to a placement without, each to where it saves the most tokens a rank.
class GreedyReplicas {
 public:
  GreedyReplicas(const LayerTask& layer, RankExperts placement)
      : layer_(layer),
        num_ranks_(layer.request.num_ranks),
        placement_(std::move(placement)),
        hosts_(std::size_t{layer.num_experts} * num_ranks_, 0),
        saved_(hosts_.size(), 0),
        free_(rank_capacities(layer.num_experts + layer.request.num_replicas, num_ranks_)),
        rank_load_(num_ranks_, 0.0),
        tokens_of_(layer.num_experts) {
    const PartOf home = parts_of(placement_, layer.num_experts);
    for (std::uint32_t expert = 0; expert < layer.num_experts; ++expert) {
      hosts_[index(expert, home[expert])] = 1;
      --free_[home[expert]];
    }
    const std::size_t available = layer.num_tokens();
    const std::size_t num_tokens = std::min(available, kMaxTokens);
    scale_ =
        num_tokens == 0 ? 1.0 : static_cast<double>(available) / static_cast<double>(num_tokens);
    for (std::size_t i = 0; i < num_tokens; ++i) {
      const auto token =
          layer.experts.subspan(i * available / num_tokens * layer.num_topk, layer.num_topk);
      for (const ExpertIdx expert : token) {
        tokens_of_[expert].push_back(static_cast<std::uint32_t>(i));
        chosen_.push_back(expert);
        serving_.push_back(home[expert]);
        rank_load_[home[expert]] += scale_;
      }
    }
    for (std::uint32_t i = 0; i < num_tokens; ++i) count(i, 1);
    const double total = scale_ * static_cast<double>(chosen_.size());
    max_load_ = layer.request.max_imbalance ? *layer.request.max_imbalance * total / num_ranks_
                                            : std::numeric_limits<double>::infinity();
  }

  RankExperts run() {
    for (std::uint32_t i = 0; i < layer_.request.num_replicas; ++i) {
      if (!add_best()) add_heaviest();
    }
    return placement_;
  }

 private:
  [[nodiscard]] std::size_t index(std::uint32_t expert, std::uint32_t rank) const {
    return std::size_t{expert} * num_ranks_ + rank;
  }

  // Adds or takes back what the token's experts that are alone on their ranks would save elsewhere.
  void count(std::uint32_t token, std::int32_t sign) {
    const std::uint32_t num_topk = layer_.num_topk;
    const ExpertIdx* const chosen = chosen_.data() + std::size_t{token} * num_topk;
    const std::uint32_t* const serving = serving_.data() + std::size_t{token} * num_topk;
    for (std::uint32_t i = 0; i < num_topk; ++i) {
      if (std::count(serving, serving + num_topk, serving[i]) != 1) continue;
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        if (j == i || std::find(serving, serving + j, serving[j]) != serving + j) continue;
        saved_[index(chosen[i], serving[j])] += sign;
      }
    }
  }

  bool add_best() {
    std::int32_t most = 0;
    std::uint32_t expert = 0;
    std::uint32_t rank = 0;
    for (std::uint32_t e = 0; e < layer_.num_experts; ++e) {
      for (std::uint32_t r = 0; r < num_ranks_; ++r) {
        const std::int32_t saved = saved_[index(e, r)];
        if (saved <= most || free_[r] == 0 || hosts_[index(e, r)] != 0) continue;
        if (rank_load_[r] + scale_ * saved > max_load_) continue;
        most = saved;
        expert = e;
        rank = r;
      }
    }
    if (most == 0) return false;
    put(expert, rank);
    for (const std::uint32_t token : tokens_of_[expert]) move(token, expert, rank);
    return true;
  }

  // No place saves a rank: the expert of the highest load per replica, on the lightest rank.
  void add_heaviest() {
    std::vector<std::uint32_t> replicas(layer_.num_experts, 0);
    for (std::uint32_t e = 0; e < layer_.num_experts; ++e) {
      for (std::uint32_t r = 0; r < num_ranks_; ++r) replicas[e] += hosts_[index(e, r)];
    }
    std::optional<std::pair<std::uint32_t, std::uint32_t>> best;
    for (std::uint32_t r = 0; r < num_ranks_; ++r) {
      if (free_[r] == 0 || (best && rank_load_[r] >= rank_load_[best->second])) continue;
      std::optional<std::uint32_t> heaviest;
      for (std::uint32_t e = 0; e < layer_.num_experts; ++e) {
        if (hosts_[index(e, r)] != 0) continue;
        if (!heaviest ||
            layer_.load[e] * replicas[*heaviest] > layer_.load[*heaviest] * replicas[e]) {
          heaviest = e;
        }
      }
      if (heaviest) best = {*heaviest, r};
    }
    if (!best) return;  // every rank with a free slot holds every expert
    put(best->first, best->second);
  }

  void put(std::uint32_t expert, std::uint32_t rank) {
    placement_[rank].push_back(static_cast<ExpertIdx>(expert));
    hosts_[index(expert, rank)] = 1;
    --free_[rank];
  }

  // The token's expert moves to the rank if it is alone where it is and the token goes there
  // anyway.
  void move(std::uint32_t token, std::uint32_t expert, std::uint32_t rank) {
    const std::uint32_t num_topk = layer_.num_topk;
    const ExpertIdx* const chosen = chosen_.data() + std::size_t{token} * num_topk;
    std::uint32_t* const serving = serving_.data() + std::size_t{token} * num_topk;
    const auto i = static_cast<std::size_t>(std::find(chosen, chosen + num_topk, expert) - chosen);
    if (std::count(serving, serving + num_topk, serving[i]) != 1) return;
    if (std::find(serving, serving + num_topk, rank) == serving + num_topk) return;
    count(token, -1);
    rank_load_[serving[i]] -= scale_;
    rank_load_[rank] += scale_;
    serving[i] = rank;
    count(token, 1);
  }

  const LayerTask& layer_;
  std::uint32_t num_ranks_;
  RankExperts placement_;
  std::vector<std::uint8_t> hosts_;  // [num_experts][num_ranks]
  std::vector<std::int32_t> saved_;  // [num_experts][num_ranks] tokens that a replica there saves
  std::vector<std::uint32_t> free_;  // [num_ranks] slots
  std::vector<double> rank_load_;    // [num_ranks] in tokens of the whole training part
  std::vector<std::vector<std::uint32_t>> tokens_of_;  // [num_experts] in the sample
  std::vector<ExpertIdx> chosen_;                      // [tokens of the sample][num_topk]
  std::vector<std::uint32_t> serving_;                 // [tokens of the sample][num_topk]
  double scale_ = 1.0;
  double max_load_ = 0.0;
};

bool meets_caps(const PlacementRequest& request, const ReplicaCounts& counts) {
  return counts.rank_imbalance <= request.max_imbalance.value_or(1e300) &&
         counts.node_imbalance <= request.max_node_imbalance.value_or(1e300);
}

// How far beyond the caps, 1 where both hold.
double excess(const PlacementRequest& request, const ReplicaCounts& counts) {
  return std::max({1.0, counts.rank_imbalance / request.max_imbalance.value_or(1e300),
                   counts.node_imbalance / request.max_node_imbalance.value_or(1e300)});
}

// What may relieve the fullest rank of a placement: an expert with replicas elsewhere makes room, on
// that rank for a lighter one, or on another rank for a replica of one of that rank's; or two
// experts of the two trade places.
class Exchanges {
 public:
  Exchanges(const LayerTask& layer, const Candidate& from) : layer_(layer), from_(from) {
    std::vector<std::uint32_t> by_load(from.rank_load.size());
    std::iota(by_load.begin(), by_load.end(), 0u);
    std::stable_sort(by_load.begin(), by_load.end(), [&](std::uint32_t a, std::uint32_t b) {
      return from.rank_load[a] < from.rank_load[b];
    });
    fullest_ = by_load.back();
    by_load.pop_back();
    count_.assign(layer.num_experts, 0);
    for (const auto& experts : from.placement) {
      for (const ExpertIdx expert : experts) ++count_[expert];
    }
    by_load_.resize(layer.num_experts);
    std::iota(by_load_.begin(), by_load_.end(), ExpertIdx{0});
    std::stable_sort(by_load_.begin(), by_load_.end(),
                     [&](ExpertIdx a, ExpertIdx b) { return share(a) < share(b); });
    for (const ExpertIdx out : from.placement[fullest_]) add_lighter(out);
    for (const std::uint32_t rank : by_load) add_replicas(rank);
    for (const std::uint32_t rank : by_load) add_trades(rank);
  }
  [[nodiscard]] const std::vector<RankExperts>& all() const { return all_; }

 private:
  // Tokens of an expert over its replicas.
  [[nodiscard]] double share(ExpertIdx expert) const {
    return static_cast<double>(layer_.load[expert]) / count_[expert];
  }
  [[nodiscard]] bool holds(std::uint32_t rank, ExpertIdx expert) const {
    return std::binary_search(from_.placement[rank].begin(), from_.placement[rank].end(), expert);
  }
  void add(std::uint32_t rank, ExpertIdx out, ExpertIdx in) {
    all_.push_back(from_.placement);
    std::replace(all_.back()[rank].begin(), all_.back()[rank].end(), out, in);
  }

  void add_lighter(ExpertIdx out) {
    if (count_[out] == 1) return;
    for (const ExpertIdx in : by_load_) {
      if (share(in) >= share(out)) return;
      if (!holds(fullest_, in)) add(fullest_, out, in);
    }
  }
  void add_replicas(std::uint32_t rank) {
    for (const ExpertIdx out : from_.placement[rank]) {
      if (count_[out] == 1 || holds(fullest_, out)) continue;
      for (auto in = by_load_.rbegin(); in != by_load_.rend(); ++in) {
        if (holds(fullest_, *in) && !holds(rank, *in)) add(rank, out, *in);
      }
    }
  }
  void add_trades(std::uint32_t rank) {
    for (const ExpertIdx a : from_.placement[fullest_]) {
      for (const ExpertIdx b : from_.placement[rank]) {
        if (share(b) >= share(a) || holds(fullest_, b) || holds(rank, a)) continue;
        add(fullest_, a, b);
        std::replace(all_.back()[rank].begin(), all_.back()[rank].end(), b, a);
      }
    }
  }

  const LayerTask& layer_;
  const Candidate& from_;
  std::uint32_t fullest_ = 0;
  std::vector<std::uint32_t> count_;  // [num_experts] replicas
  std::vector<ExpertIdx> by_load_;    // by share, ascending
  std::vector<RankExperts> all_;
};

// Exchanges replicas while that brings the placement nearer to the caps, until they hold.
Candidate nearer_to_caps(const LayerTask& layer, Candidate now) {
  std::uint64_t tried = 0;
  for (bool improved = true; improved && !meets_caps(layer.request, now.counts);) {
    improved = false;
    const double excess_now = excess(layer.request, now.counts);
    const Exchanges exchanges(layer, now);
    for (const RankExperts& placement : exchanges.all()) {
      if (++tried > kMaxExchanges) return now;
      Candidate next = make_candidate(layer, placement);
      if (excess(layer.request, next.counts) >= excess_now) continue;
      now = std::move(next);
      improved = true;
      break;
    }
  }
  return now;
}

// Adds replicas to a placement without, one after the other and each counted anew: on the lightest rank
// with a free slot, with `relieve` of one of the fullest rank's experts, heaviest first, if the caps
// still hold with it; else of the lightest expert with which they do, which changes little; else the
// one that exceeds them least.
Candidate add_within_caps(const LayerTask& layer, RankExperts placement, bool relieve) {
  const PlacementRequest& request = layer.request;
  const std::vector<std::uint32_t> capacity =
      rank_capacities(layer.num_experts + request.num_replicas, request.num_ranks);
  const auto lighter = [&](ExpertIdx a, ExpertIdx b) { return layer.load[a] < layer.load[b]; };
  std::vector<ExpertIdx> light_first(layer.num_experts);
  std::iota(light_first.begin(), light_first.end(), ExpertIdx{0});
  std::stable_sort(light_first.begin(), light_first.end(), lighter);
  Candidate now = make_candidate(layer, std::move(placement));
  std::optional<Candidate> added;
  // Whether the caps hold with one of the experts on the rank too.
  const auto add = [&](std::uint32_t rank, const std::vector<ExpertIdx>& experts,
                       std::uint32_t num_tries) {
    for (const ExpertIdx expert : experts) {
      const std::vector<ExpertIdx>& held = now.placement[rank];
      if (std::binary_search(held.begin(), held.end(), expert)) continue;
      if (num_tries-- == 0) break;
      RankExperts grown = now.placement;
      grown[rank].push_back(expert);
      Candidate next = make_candidate(layer, std::move(grown));
      if (added && excess(request, next.counts) >= excess(request, added->counts)) continue;
      added = std::move(next);
      if (meets_caps(request, added->counts)) return true;
    }
    return false;
  };
  for (std::uint32_t i = 0; i < request.num_replicas; ++i) {
    std::vector<std::uint32_t> ranks(request.num_ranks);
    std::iota(ranks.begin(), ranks.end(), 0u);
    std::stable_sort(ranks.begin(), ranks.end(), [&](std::uint32_t a, std::uint32_t b) {
      return now.rank_load[a] < now.rank_load[b];
    });
    std::vector<ExpertIdx> heavy_first = now.placement[ranks.back()];
    std::stable_sort(heavy_first.rbegin(), heavy_first.rend(), lighter);
    std::erase_if(ranks, [&](std::uint32_t r) { return now.placement[r].size() >= capacity[r]; });
    added.reset();
    bool holds = false;
    for (std::size_t r = 0; relieve && !holds && r < ranks.size(); ++r) {
      holds = add(ranks[r], heavy_first, kHeavyTries);
    }
    for (std::size_t r = 0; !holds && r < ranks.size(); ++r) {
      holds = add(ranks[r], light_first, kLightTries);
    }
    if (!added) return now;  // every rank with a free slot holds every expert already
    now = std::move(*added);
  }
  return now;
}

[[noreturn]] void refuse(const LayerTask& layer, const ReplicaCounts& nearest) {
  const PlacementRequest& request = layer.request;
  const bool nodes = nearest.rank_imbalance <= request.max_imbalance.value_or(1e300);
  const double reached = nodes ? nearest.node_imbalance : nearest.rank_imbalance;
  throw InputError(fmt::format(
      "{}: found {}, expected at least {:.3f}, the smallest that was found for layer "
      "{} on {} "
      "with {} and the choice {}",
      nodes ? "max-node-imbalance" : "max-imbalance",
      nodes ? *request.max_node_imbalance : *request.max_imbalance,
      std::ceil(reached * 1e3 - 1e-9) / 1e3, layer.layer, counted(request.num_ranks, "rank"),
      counted(request.num_replicas, "replica"), to_string(request.replica_choice)));
}

}  // namespace

RankExperts place_with_replicas(const LayerTask& layer, RankExperts (*place)(const LayerTask&),
                                bool keep_nodes) {
  const PlacementRequest& request = layer.request;
  if (request.num_replicas == 0) return place(layer);
  const bool locality = request.replica_choice == ReplicaChoice::kLocality;
  const bool depends_on_place = locality || request.replica_choice == ReplicaChoice::kStatic;
  const bool capped = request.max_imbalance || request.max_node_imbalance;

  std::vector<Candidate> candidates;
  // A way that cannot meet a cap is left out; what can be met is said in the end.
  const auto attempt = [&](const auto& way) {
    try {
      candidates.push_back(make_candidate(layer, way()));
    } catch (const InputError&) {
      if (!capped) throw;
    }
  };
  attempt([&] {
    const ReplicaLayer replicas =
        with_counts(layer, replicas_by_load(layer.load, request.num_ranks, request.num_replicas));
    return replicas.unite(place(replicas.task(layer)));
  });
  if (locality) attempt([&] { return GreedyReplicas(layer, place(layer)).run(); });
  if (capped) {
    // Replicas for what is balanced without them: a cap that holds without replicas mostly holds with.
    if (locality) {
      attempt([&] {
        return GreedyReplicas(layer,
                              balance_jointly(layer.load, request.num_ranks, 0, request.seed))
            .run();
      });
    }
    attempt([&] {
      return balance_jointly(layer.load, request.num_ranks, request.num_replicas, request.seed);
    });
    attempt([&] {
      const RankExperts packed =
          balance_jointly(layer.load, request.num_ranks, request.num_replicas, request.seed);
      std::vector<std::uint32_t> count(layer.num_experts, 0);
      for (const auto& experts : packed) {
        for (const ExpertIdx expert : experts) ++count[expert];
      }
      const ReplicaLayer replicas = with_counts(layer, count);
      PartOf parts;
      std::vector<std::uint32_t> next(layer.num_experts, 0);
      for (std::uint32_t e = 1; e < layer.num_experts; ++e) next[e] = next[e - 1] + count[e - 1];
      parts.resize(replicas.replica_of.size());
      for (std::uint32_t rank = 0; rank < packed.size(); ++rank) {
        for (const ExpertIdx expert : packed[rank]) parts[next[expert]++] = rank;
      }
      return refine(layer, replicas, false, kFanOutKicks, parts);
    });
  }

  const auto better = [&](const Candidate& a, const Candidate& b) {
    const double excess_a = excess(request, a.counts);
    const double excess_b = excess(request, b.counts);
    if (excess_a != excess_b) return excess_a < excess_b;
    if (a.counts.fan_out != b.counts.fan_out) return a.counts.fan_out < b.counts.fan_out;
    return a.counts.rank_imbalance < b.counts.rank_imbalance;
  };
  std::optional<Candidate> best;
  const auto settle = [&](Candidate candidate) {
    if (!best || better(candidate, *best)) best = candidate;
    if (!depends_on_place) return;
    for (std::uint32_t round = 0; round < kMaxRounds; ++round) {
      PartOf parts;
      const ReplicaLayer replicas = as_served(layer, candidate, parts);
      Candidate next =
          make_candidate(layer, refine(layer, replicas, keep_nodes, kRoundKicks, parts));
      if (better(next, *best)) best = next;
      if (next.counts.fan_out >= candidate.counts.fan_out &&
          meets_caps(request, candidate.counts)) {
        return;
      }
      candidate = std::move(next);
    }
  };
  for (const Candidate& candidate : candidates) settle(candidate);
  if (!best) {
    // Every way was refused without replicas counted in: the most even packing says what can be.
    throw InputError(
        fmt::format("max-imbalance: found no placement of layer {} on {} with {} "
                    "replicas, expected caps that can be met",
                    layer.layer, counted(request.num_ranks, "rank"), request.num_replicas));
  }
  if (!meets_caps(request, best->counts)) {
    candidates.push_back(*best);
    std::stable_sort(candidates.begin(), candidates.end(), better);
    for (std::size_t i = 0; i < std::min(candidates.size(), kMaxNearer); ++i) {
      if (excess(request, candidates[i].counts) > kNear) break;
      settle(nearer_to_caps(layer, candidates[i]));
    }
  }
  if (!meets_caps(request, best->counts)) {
    // What holds without replicas, and replicas that leave it so.
    std::vector<RankExperts> without;
    try {
      without.push_back(place(layer));
    } catch (const InputError&) {
      // Nor does the strategy meet the cap without.
    }
    without.push_back(balance_jointly(layer.load, request.num_ranks, 0, request.seed));
    for (const RankExperts& placement : without) {
      for (const bool relieve : {true, false}) {
        if (meets_caps(request, best->counts)) break;
        const Candidate grown = add_within_caps(layer, placement, relieve);
        settle(nearer_to_caps(layer, grown));
      }
    }
  }
  if (!meets_caps(request, best->counts)) refuse(layer, best->counts);
  return best->placement;
}

ServedReplicas serve_replicas(const LayerTask& layer, const RankExperts& placement) {
  ServedReplicas result;
  ReplicaLayer served = as_served(layer, make_candidate(layer, placement), result.parts);
  result.replica_of = std::move(served.replica_of);
  result.experts = std::move(served.experts);
  result.load = std::move(served.load);
  return result;
}

std::vector<std::uint32_t> replicas_by_load(std::span<const std::uint64_t> load,
                                            std::uint32_t num_ranks, std::uint32_t num_replicas) {
  const auto num_experts = static_cast<std::uint32_t>(load.size());
  std::vector<std::uint32_t> replicas(num_experts, 1);
  for (std::uint32_t i = 0; i < num_replicas; ++i) {
    std::optional<std::uint32_t> best;
    for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
      if (replicas[expert] == num_ranks) continue;
      // load / replicas, compared without division
      if (!best || load[expert] * replicas[*best] > load[*best] * replicas[expert]) best = expert;
    }
    if (!best) {
      throw InputError(fmt::format(
          "replicas: found {}, expected at most {}: every expert stands on every rank already",
          num_replicas, std::uint64_t{num_experts} * (num_ranks - 1)));
    }
    ++replicas[*best];
  }
  return replicas;
}

}  // namespace coterie
