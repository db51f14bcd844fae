#include "workloads/placement/partition.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/random.hpp"
#include "workloads/placement/balance.hpp"

namespace coterie {
namespace {

// The graph's edges as a matrix: the inner loops look up millions of pairs.
class Collaboration {
 public:
  explicit Collaboration(const CoactivationGraph& graph)
      : size_(boost::num_vertices(graph)), weight_(size_ * size_, 0) {
    for (const auto edge : boost::make_iterator_range(boost::edges(graph))) {
      const std::size_t a = boost::source(edge, graph);
      const std::size_t b = boost::target(edge, graph);
      const auto count = static_cast<std::int64_t>(graph[edge].num_tokens);
      weight_[a * size_ + b] = count;
      weight_[b * size_ + a] = count;
    }
  }
  std::int64_t operator()(std::size_t a, std::size_t b) const { return weight_[a * size_ + b]; }

 private:
  std::size_t size_;
  std::vector<std::int64_t> weight_;
};

// Collaboration of every expert with every part's members, kept up to date under moves; and the
// parts' loads.
class PartSums {
 public:
  PartSums(const PartitionTask& task, const Collaboration& weight)
      : task_(task),
        weight_(weight),
        num_parts_(task.num_parts()),
        with_(task.load.size() * num_parts_, 0),
        load_(num_parts_, 0.0),
        node_load_(task.max_node_load.size(), 0.0),
        size_(num_parts_, 0) {}

  void add(std::size_t expert, std::size_t part) { change(expert, part, 1); }
  void remove(std::size_t expert, std::size_t part) { change(expert, part, -1); }
  [[nodiscard]] std::int64_t with(std::size_t expert, std::size_t part) const {
    return with_[expert * num_parts_ + part];
  }
  [[nodiscard]] double load(std::size_t part) const { return load_[part]; }
  [[nodiscard]] double node_load(std::size_t node) const { return node_load_[node]; }
  [[nodiscard]] std::uint32_t size(std::size_t part) const { return size_[part]; }

  // What swapping a and b adds to the collaboration inside parts.
  [[nodiscard]] std::int64_t gain(std::size_t a, std::size_t b, const PartOf& parts) const {
    return with(a, parts[b]) - with(a, parts[a]) + with(b, parts[a]) - with(b, parts[b]) -
           2 * weight_(a, b);
  }
  void swap(std::size_t a, std::size_t b, PartOf& parts) {
    remove(a, parts[a]);
    remove(b, parts[b]);
    std::swap(parts[a], parts[b]);
    add(a, parts[a]);
    add(b, parts[b]);
  }

 private:
  void change(std::size_t expert, std::size_t part, int sign) {
    for (std::size_t other = 0; other < task_.load.size(); ++other) {
      with_[other * num_parts_ + part] += sign * weight_(expert, other);
    }
    load_[part] += sign * static_cast<double>(task_.load[expert]);
    if (!node_load_.empty()) {
      node_load_[task_.node_of[part]] += sign * static_cast<double>(task_.load[expert]);
    }
    size_[part] += static_cast<std::uint32_t>(sign);
  }

  const PartitionTask& task_;
  const Collaboration& weight_;
  std::size_t num_parts_;
  std::vector<std::int64_t> with_;  // [num_experts][num_parts]
  std::vector<double> load_;        // [num_parts]
  std::vector<double> node_load_;   // [num_nodes] with a cap on nodes
  std::vector<std::uint32_t> size_;
};

// Tokens beyond the caps that a swap of a and b leaves on their two parts and nodes, and had
// before.
struct Excess {
  double before;
  double after;
};
Excess swap_excess(const PartitionTask& task, const PartSums& sums, const PartOf& parts,
                   std::size_t a, std::size_t b) {
  const double moved = static_cast<double>(task.load[b]) - static_cast<double>(task.load[a]);
  const auto over = [&](std::size_t part, double load) {
    return std::max(0.0, load - task.max_load[part]);
  };
  const double load_a = sums.load(parts[a]);
  const double load_b = sums.load(parts[b]);
  Excess excess{over(parts[a], load_a) + over(parts[b], load_b),
                over(parts[a], load_a + moved) + over(parts[b], load_b - moved)};
  if (!task.max_node_load.empty()) {
    const std::size_t node_a = task.node_of[parts[a]];
    const std::size_t node_b = task.node_of[parts[b]];
    if (node_a != node_b) {
      const auto node_over = [&](std::size_t node, double more) {
        return std::max(0.0, sums.node_load(node) + more - task.max_node_load[node]);
      };
      excess.before += node_over(node_a, 0.0) + node_over(node_b, 0.0);
      excess.after += node_over(node_a, moved) + node_over(node_b, -moved);
    }
  }
  return excess;
}

bool may_swap(const PartitionTask& task, const ReplicaGuard& guard, const PartOf& parts,
              std::uint32_t a, std::uint32_t b) {
  return parts[a] != parts[b] && task.swap_zone[parts[a]] == task.swap_zone[parts[b]] &&
         guard.allows_swap(a, b, parts);
}

// Keeps the guard true under PartSums::swap.
void swap_guarded(PartSums& sums, ReplicaGuard& guard, std::uint32_t a, std::uint32_t b,
                  PartOf& parts) {
  guard.remove(a, parts[a]);
  guard.remove(b, parts[b]);
  sums.swap(a, b, parts);
  guard.add(a, parts[a]);
  guard.add(b, parts[b]);
}

// Fullest part over its cap times the cap that was asked for: the cap that `parts` would meet.
double met_cap(const PartitionTask& task, const PartOf& parts, double asked) {
  std::vector<double> load(task.num_parts(), 0.0);
  for (std::uint32_t expert = 0; expert < task.num_experts(); ++expert) {
    load[parts[expert]] += static_cast<double>(task.load[expert]);
  }
  double worst = 0.0;
  for (std::uint32_t part = 0; part < task.num_parts(); ++part) {
    worst = std::max(worst, load[part] / task.max_load[part]);
  }
  return std::ceil(asked * worst * 1e3 - 1e-9) / 1e3;  // rounded down it would be refused
}

}  // namespace

PartOf parts_of(const RankExperts& placement, std::uint32_t num_experts) {
  PartOf parts(num_experts, 0);
  for (std::uint32_t rank = 0; rank < placement.size(); ++rank) {
    for (const ExpertIdx expert : placement[rank]) parts[expert] = rank;
  }
  return parts;
}

ReplicaGuard::ReplicaGuard(const PartitionTask& task, const PartOf& parts) : task_(&task) {
  if (task.replica_of.empty()) return;
  const std::size_t num_logical =
      std::size_t{*std::max_element(task.replica_of.begin(), task.replica_of.end())} + 1;
  count_.assign(num_logical * task.num_parts(), 0);
  for (std::uint32_t expert = 0; expert < task.num_experts(); ++expert) {
    if (parts[expert] < task.num_parts()) add(expert, parts[expert]);
  }
}

bool separate_replicas(const PartitionTask& task, PartOf& parts) {
  ReplicaGuard guard(task, parts);
  for (std::uint32_t a = 0; a < task.num_experts(); ++a) {
    if (!guard.crowded(a, parts[a])) continue;
    std::uint32_t partner = task.num_experts();
    for (std::uint32_t b = 0; b < task.num_experts() && partner == task.num_experts(); ++b) {
      if (parts[a] != parts[b] && task.swap_zone[parts[a]] == task.swap_zone[parts[b]] &&
          guard.allows_swap(a, b, parts)) {
        partner = b;
      }
    }
    if (partner == task.num_experts()) return false;
    guard.remove(a, parts[a]);
    guard.remove(partner, parts[partner]);
    std::swap(parts[a], parts[partner]);
    guard.add(a, parts[a]);
    guard.add(partner, parts[partner]);
  }
  return true;
}

PartitionTask rank_task(const LayerTask& layer) {
  PartitionTask task;
  task.experts = layer.experts;
  task.num_topk = layer.num_topk;
  task.token_weight = layer.token_weight;
  task.load = layer.load;
  task.capacity = rank_capacities(layer.num_experts, layer.request.num_ranks);
  const auto total =
      static_cast<double>(std::accumulate(layer.load.begin(), layer.load.end(), std::uint64_t{0}));
  const double cap = layer.request.max_imbalance
                         ? *layer.request.max_imbalance * total / layer.request.num_ranks
                         : std::numeric_limits<double>::infinity();
  task.max_load.assign(task.num_parts(), cap);
  task.swap_zone.assign(task.num_parts(), 0);
  task.replica_of = layer.replica_of;
  return task;
}

void cap_nodes(const LayerTask& layer, PartitionTask& ranks) {
  const PlacementRequest& request = layer.request;
  if (!request.max_node_imbalance) return;
  const std::uint32_t num_nodes =
      (request.num_ranks + request.ranks_per_node - 1) / request.ranks_per_node;
  const auto total =
      static_cast<double>(std::accumulate(layer.load.begin(), layer.load.end(), std::uint64_t{0}));
  ranks.node_of.clear();
  for (std::uint32_t rank = 0; rank < request.num_ranks; ++rank) {
    ranks.node_of.push_back(rank / request.ranks_per_node);
  }
  ranks.max_node_load.assign(num_nodes, *request.max_node_imbalance * total / num_nodes);
}

PartOf greedy_partition(const PartitionTask& task, const CoactivationGraph& graph) {
  const Collaboration weight(graph);
  const std::uint32_t num_experts = task.num_experts();
  const std::uint32_t num_parts = task.num_parts();
  const std::uint32_t open = num_parts;
  PartOf parts(num_experts, open);
  PartSums sums(task, weight);
  ReplicaGuard guard(task, parts);
  const auto put = [&](std::uint32_t expert, std::uint32_t part) {
    parts[expert] = part;
    sums.add(expert, part);
    guard.add(expert, part);
  };

  std::uint32_t first = 0;
  std::int64_t most = -1;
  for (std::uint32_t a = 0; a < num_experts; ++a) {
    for (std::uint32_t b = a + 1; b < num_experts; ++b) {
      if (weight(a, b) > most) {
        most = weight(a, b);
        first = task.load[b] > task.load[a] ? b : a;
      }
    }
  }
  put(first, 0);
  for (std::uint32_t part = 1; part < num_parts; ++part) {
    std::uint32_t seed = open;
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
      if (parts[expert] != open) continue;
      std::int64_t with_seeds = 0;
      for (std::uint32_t p = 0; p < part; ++p) with_seeds += sums.with(expert, p);
      if (with_seeds < least) {
        least = with_seeds;
        seed = expert;
      }
    }
    put(seed, part);
  }
  for (std::uint32_t placed = num_parts; placed < num_experts;) {
    for (std::uint32_t part = 0; part < num_parts; ++part) {
      if (sums.size(part) == task.capacity[part]) continue;
      std::uint32_t best = num_experts;
      bool best_fits = false;
      bool best_allowed = false;
      for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
        if (parts[expert] != open) continue;
        const bool allowed = guard.allows(expert, part);
        if (best != num_experts && best_allowed && !allowed) continue;
        const bool fits =
            sums.load(part) + static_cast<double>(task.load[expert]) <= task.max_load[part];
        // All candidates of a part share the number of members, so sums order like means.
        const bool better =
            best == num_experts || (allowed && !best_allowed) || (fits && !best_fits) ||
            (fits == best_fits && (fits ? sums.with(expert, part) > sums.with(best, part)
                                        : task.load[expert] < task.load[best]));
        if (better) {
          best = expert;
          best_fits = fits;
          best_allowed = allowed;
        }
      }
      put(best, part);
      ++placed;
    }
  }
  separate_replicas(task, parts);
  return parts;
}

void refine_collaboration(const PartitionTask& task, const CoactivationGraph& graph,
                          PartOf& parts) {
  const Collaboration weight(graph);
  PartSums sums(task, weight);
  ReplicaGuard guard(task, parts);
  const std::uint32_t num_experts = task.num_experts();
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) sums.add(expert, parts[expert]);
  // Every swap raises an integer that is bounded, so this ends.
  for (std::uint32_t unchanged = 0, a = 0; unchanged < num_experts; a = (a + 1) % num_experts) {
    std::int64_t best_gain = 0;
    std::uint32_t partner = num_experts;
    for (std::uint32_t b = 0; b < num_experts; ++b) {
      if (!may_swap(task, guard, parts, a, b)) continue;
      const std::int64_t gain = sums.gain(a, b, parts);
      if (gain <= best_gain) continue;
      const Excess excess = swap_excess(task, sums, parts, a, b);
      if (excess.after > excess.before) continue;
      best_gain = gain;
      partner = b;
    }
    ++unchanged;
    if (partner == num_experts) continue;
    swap_guarded(sums, guard, a, partner, parts);
    unchanged = 0;
  }
}

bool repair_balance(const PartitionTask& task, const CoactivationGraph& graph, PartOf& parts) {
  const Collaboration weight(graph);
  PartSums sums(task, weight);
  ReplicaGuard guard(task, parts);
  const std::uint32_t num_experts = task.num_experts();
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) sums.add(expert, parts[expert]);
  const auto part_over = [&](std::uint32_t part) {
    return sums.load(part) > task.max_load[part] ||
           (!task.max_node_load.empty() &&
            sums.node_load(task.node_of[part]) > task.max_node_load[task.node_of[part]]);
  };
  const auto over = [&] {
    for (std::uint32_t part = 0; part < task.num_parts(); ++part) {
      if (part_over(part)) return true;
    }
    return false;
  };
  // Every swap lowers the total excess, which takes finitely many values.
  while (over()) {
    double best_score = 0.0;
    std::uint32_t best_a = num_experts;
    std::uint32_t best_b = num_experts;
    for (std::uint32_t a = 0; a < num_experts; ++a) {
      if (!part_over(parts[a])) continue;
      for (std::uint32_t b = 0; b < num_experts; ++b) {
        if (!may_swap(task, guard, parts, a, b)) continue;
        const Excess excess = swap_excess(task, sums, parts, a, b);
        const double relief = excess.before - excess.after;
        if (relief <= 0.0) continue;
        // Relief per collaboration lost.
        const auto lost = static_cast<double>(std::max<std::int64_t>(0, -sums.gain(a, b, parts)));
        const double score = relief / (1.0 + lost);
        if (score > best_score) {
          best_score = score;
          best_a = a;
          best_b = b;
        }
      }
    }
    if (best_a == num_experts) return false;
    swap_guarded(sums, guard, best_a, best_b, parts);
  }
  return true;
}

void enforce_balance(const LayerTask& layer, const PartitionTask& task,
                     const CoactivationGraph& graph, PartOf& parts) {
  if (repair_balance(task, graph, parts)) return;
  const BalanceSearch search{task.capacity, task.max_load, task.replica_of, task.max_together,
                             mix64(layer.request.seed) ^ layer.layer};
  parts = parts_of(pack_by_load(task.load, search), task.num_experts());
  if (repair_balance(task, graph, parts)) return;
  const bool nodes = task.num_parts() < layer.request.num_ranks;
  const bool node_cap = nodes && layer.request.max_node_imbalance &&
                        (!layer.request.max_imbalance ||
                         *layer.request.max_node_imbalance <= *layer.request.max_imbalance);
  const double asked =
      node_cap ? *layer.request.max_node_imbalance : layer.request.max_imbalance.value_or(1.0);
  throw InputError(fmt::format(
      "{}: found {}, expected at least {:.3f}, the smallest that was found for layer {} on {} {} "
      "(none can be below {:.3f})",
      node_cap ? "max-node-imbalance" : "max-imbalance", asked, met_cap(task, parts, asked),
      layer.layer, task.num_parts(), nodes ? "nodes" : "ranks",
      least_imbalance(task.load, task.capacity)));
}

void gather_in_nodes(const LayerTask& layer, const PartitionTask& task,
                     const CoactivationGraph& graph, PartOf& parts) {
  const std::uint32_t ranks_per_node = layer.request.ranks_per_node;
  const std::uint32_t num_ranks = task.num_parts();
  if (ranks_per_node == 1 || num_ranks <= ranks_per_node) return;
  std::vector<std::uint64_t> load(num_ranks, 0);
  for (std::uint32_t expert = 0; expert < task.num_experts(); ++expert) {
    load[parts[expert]] += task.load[expert];
  }
  std::vector<std::uint64_t> between(std::size_t{num_ranks} * num_ranks, 0);
  for (const auto edge : boost::make_iterator_range(boost::edges(graph))) {
    const std::uint32_t a = parts[boost::source(edge, graph)];
    const std::uint32_t b = parts[boost::target(edge, graph)];
    between[std::size_t{std::min(a, b)} * num_ranks + std::max(a, b)] += graph[edge].num_tokens;
  }
  CoactivationGraph ranks(num_ranks);
  for (std::uint32_t a = 0; a < num_ranks; ++a) {
    for (std::uint32_t b = a + 1; b < num_ranks; ++b) {
      const std::uint64_t weight = between[std::size_t{a} * num_ranks + b];
      if (weight > 0) boost::add_edge(a, b, CollaborationEdge{weight}, ranks);
    }
  }
  const std::uint32_t num_nodes = (num_ranks + ranks_per_node - 1) / ranks_per_node;
  PartitionTask nodes;
  nodes.load = load;
  nodes.capacity.assign(num_nodes, ranks_per_node);
  nodes.capacity.back() = num_ranks - (num_nodes - 1) * ranks_per_node;
  PartitionTask caps = task;
  cap_nodes(layer, caps);
  nodes.max_load = caps.max_node_load;
  nodes.max_load.resize(num_nodes, std::numeric_limits<double>::infinity());
  nodes.swap_zone.assign(num_nodes, 0);
  PartOf node_of = greedy_partition(nodes, ranks);
  if (layer.request.max_node_imbalance && !repair_balance(nodes, ranks, node_of)) {
    const BalanceSearch search{nodes.capacity, nodes.max_load, {}, 1, layer.request.seed};
    node_of = parts_of(pack_by_load(nodes.load, search), num_ranks);
  }
  refine_collaboration(nodes, ranks, node_of);

  std::vector<std::uint32_t> next(num_nodes);
  for (std::uint32_t node = 0; node < num_nodes; ++node) next[node] = node * ranks_per_node;
  std::vector<std::uint32_t> label(num_ranks);
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) label[rank] = next[node_of[rank]]++;
  for (std::uint32_t& part : parts) part = label[part];
}

void enforce_node_balance(const LayerTask& layer, const PartitionTask& ranks,
                          const CoactivationGraph& graph, const FanOutSearch* search,
                          PartOf& parts) {
  if (!layer.request.max_node_imbalance) return;
  PartitionTask task = ranks;
  cap_nodes(layer, task);
  if (!repair_balance(task, graph, parts)) {
    // From the most balanced packing, whose nodes are filled heaviest rank first.
    const BalanceSearch search_ranks{task.capacity, task.max_load, task.replica_of,
                                     task.max_together, layer.request.seed};
    PartOf packed = parts_of(pack_by_load(task.load, search_ranks), task.num_experts());
    gather_in_nodes(layer, task, graph, packed);
    parts = packed;
    if (!repair_balance(task, graph, parts)) {
      std::vector<double> load(task.max_node_load.size(), 0.0);
      std::vector<std::uint32_t> capacity(load.size(), 0);
      for (std::uint32_t expert = 0; expert < task.num_experts(); ++expert) {
        load[task.node_of[parts[expert]]] += static_cast<double>(task.load[expert]);
      }
      for (std::uint32_t rank = 0; rank < task.num_parts(); ++rank) {
        capacity[task.node_of[rank]] += task.capacity[rank];
      }
      const double asked = *layer.request.max_node_imbalance;
      const double fullest = *std::max_element(load.begin(), load.end());
      if (fullest <= task.max_node_load[0]) {
        throw InputError(fmt::format(
            "max-imbalance: found {} with max-node-imbalance {}, expected caps that can be met "
            "together: for layer {} the search met the one of nodes only",
            layer.request.max_imbalance.value_or(1.0), asked, layer.layer));
      }
      throw InputError(fmt::format(
          "max-node-imbalance: found {}, expected at least {:.3f}, the smallest that was found "
          "for layer {} on {} (none can be below {:.3f})",
          asked, std::ceil(asked * fullest / task.max_node_load[0] * 1e3 - 1e-9) / 1e3, layer.layer,
          counted(load.size(), "node"), least_imbalance(task.load, capacity)));
    }
  }
  refine_collaboration(task, graph, parts);
  if (search != nullptr) refine_fan_out(task, *search, parts);
}

RankExperts to_rank_experts(const PartOf& parts, std::uint32_t num_parts) {
  RankExperts result(num_parts);
  for (std::size_t expert = 0; expert < parts.size(); ++expert) {
    result[parts[expert]].push_back(static_cast<ExpertIdx>(expert));
  }
  return result;
}

}  // namespace coterie
