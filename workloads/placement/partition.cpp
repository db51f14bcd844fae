#include "workloads/placement/partition.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"

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
        size_(num_parts_, 0) {}

  void add(std::size_t expert, std::size_t part) { change(expert, part, 1); }
  void remove(std::size_t expert, std::size_t part) { change(expert, part, -1); }
  [[nodiscard]] std::int64_t with(std::size_t expert, std::size_t part) const {
    return with_[expert * num_parts_ + part];
  }
  [[nodiscard]] double load(std::size_t part) const { return load_[part]; }
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
    size_[part] += static_cast<std::uint32_t>(sign);
  }

  const PartitionTask& task_;
  const Collaboration& weight_;
  std::size_t num_parts_;
  std::vector<std::int64_t> with_;  // [num_experts][num_parts]
  std::vector<double> load_;
  std::vector<std::uint32_t> size_;
};

// Tokens beyond the cap that a swap of a and b leaves on their two parts, and had before.
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
  return {over(parts[a], load_a) + over(parts[b], load_b),
          over(parts[a], load_a + moved) + over(parts[b], load_b - moved)};
}

bool may_swap(const PartitionTask& task, const PartOf& parts, std::size_t a, std::size_t b) {
  return parts[a] != parts[b] && task.swap_zone[parts[a]] == task.swap_zone[parts[b]];
}

}  // namespace

PartitionTask rank_task(const LayerTask& layer) {
  PartitionTask task;
  task.experts = layer.experts;
  task.num_topk = layer.num_topk;
  task.load = layer.load;
  task.capacity = rank_capacities(layer.num_experts, layer.request.num_ranks);
  const auto total =
      static_cast<double>(std::accumulate(layer.load.begin(), layer.load.end(), std::uint64_t{0}));
  const double cap = layer.request.max_imbalance
                         ? *layer.request.max_imbalance * total / layer.request.num_ranks
                         : std::numeric_limits<double>::infinity();
  task.max_load.assign(task.num_parts(), cap);
  task.swap_zone.assign(task.num_parts(), 0);
  return task;
}

PartOf greedy_partition(const PartitionTask& task, const CoactivationGraph& graph) {
  const Collaboration weight(graph);
  const std::uint32_t num_experts = task.num_experts();
  const std::uint32_t num_parts = task.num_parts();
  const std::uint32_t open = num_parts;
  PartOf parts(num_experts, open);
  PartSums sums(task, weight);
  const auto put = [&](std::uint32_t expert, std::uint32_t part) {
    parts[expert] = part;
    sums.add(expert, part);
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
      for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
        if (parts[expert] != open) continue;
        const bool fits =
            sums.load(part) + static_cast<double>(task.load[expert]) <= task.max_load[part];
        // All candidates of a part share the number of members, so sums order like means.
        const bool better =
            best == num_experts || (fits && !best_fits) ||
            (fits == best_fits && (fits ? sums.with(expert, part) > sums.with(best, part)
                                        : task.load[expert] < task.load[best]));
        if (better) {
          best = expert;
          best_fits = fits;
        }
      }
      put(best, part);
      ++placed;
    }
  }
  return parts;
}

void refine_collaboration(const PartitionTask& task, const CoactivationGraph& graph,
                          PartOf& parts) {
  const Collaboration weight(graph);
  PartSums sums(task, weight);
  const std::uint32_t num_experts = task.num_experts();
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) sums.add(expert, parts[expert]);
  // Every swap raises an integer that is bounded, so this ends.
  for (std::uint32_t unchanged = 0, a = 0; unchanged < num_experts; a = (a + 1) % num_experts) {
    std::int64_t best_gain = 0;
    std::uint32_t partner = num_experts;
    for (std::uint32_t b = 0; b < num_experts; ++b) {
      if (!may_swap(task, parts, a, b)) continue;
      const std::int64_t gain = sums.gain(a, b, parts);
      if (gain <= best_gain) continue;
      const Excess excess = swap_excess(task, sums, parts, a, b);
      if (excess.after > excess.before) continue;
      best_gain = gain;
      partner = b;
    }
    ++unchanged;
    if (partner == num_experts) continue;
    sums.swap(a, partner, parts);
    unchanged = 0;
  }
}

bool repair_balance(const PartitionTask& task, const CoactivationGraph& graph, PartOf& parts) {
  const Collaboration weight(graph);
  PartSums sums(task, weight);
  const std::uint32_t num_experts = task.num_experts();
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) sums.add(expert, parts[expert]);
  const auto over = [&] {
    for (std::uint32_t part = 0; part < task.num_parts(); ++part) {
      if (sums.load(part) > task.max_load[part]) return true;
    }
    return false;
  };
  // Every swap lowers the total excess, which takes finitely many values.
  while (over()) {
    double best_score = 0.0;
    std::uint32_t best_a = num_experts;
    std::uint32_t best_b = num_experts;
    for (std::uint32_t a = 0; a < num_experts; ++a) {
      if (sums.load(parts[a]) <= task.max_load[parts[a]]) continue;
      for (std::uint32_t b = 0; b < num_experts; ++b) {
        if (!may_swap(task, parts, a, b)) continue;
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
    sums.swap(best_a, best_b, parts);
  }
  return true;
}

void enforce_balance(const LayerTask& layer, const PartitionTask& task,
                     const CoactivationGraph& graph, PartOf& parts) {
  if (repair_balance(task, graph, parts)) return;
  // Heaviest first to the part that stays furthest below its cap.
  std::vector<std::uint32_t> order(task.num_experts());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return task.load[a] > task.load[b]; });
  std::vector<double> load(task.num_parts(), 0.0);
  std::vector<std::uint32_t> size(task.num_parts(), 0);
  for (const std::uint32_t expert : order) {
    std::uint32_t best = task.num_parts();
    for (std::uint32_t part = 0; part < task.num_parts(); ++part) {
      if (size[part] == task.capacity[part]) continue;
      if (best == task.num_parts() ||
          load[part] / task.max_load[part] < load[best] / task.max_load[best]) {
        best = part;
      }
    }
    parts[expert] = best;
    ++size[best];
    load[best] += static_cast<double>(task.load[expert]);
  }
  if (repair_balance(task, graph, parts)) return;
  load.assign(task.num_parts(), 0.0);
  for (std::uint32_t expert = 0; expert < task.num_experts(); ++expert) {
    load[parts[expert]] += static_cast<double>(task.load[expert]);
  }
  double worst = 0.0;
  for (std::uint32_t part = 0; part < task.num_parts(); ++part) {
    worst = std::max(worst, load[part] / task.max_load[part]);
  }
  const double asked = layer.request.max_imbalance.value_or(1.0);
  const double reachable =
      std::ceil(asked * worst * 1e3) / 1e3;  // rounded down it would be refused
  throw InputError(
      fmt::format("max-imbalance: found {}, expected at least {:.3f}, the best that "
                  "was found for layer {} on {} ranks without replicas",
                  asked, reachable, layer.layer, layer.request.num_ranks));
}

void gather_in_nodes(const PartitionTask& task, const CoactivationGraph& graph,
                     std::uint32_t ranks_per_node, PartOf& parts) {
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
  nodes.max_load.assign(num_nodes, std::numeric_limits<double>::infinity());
  nodes.swap_zone.assign(num_nodes, 0);
  PartOf node_of = greedy_partition(nodes, ranks);
  refine_collaboration(nodes, ranks, node_of);

  std::vector<std::uint32_t> next(num_nodes);
  for (std::uint32_t node = 0; node < num_nodes; ++node) next[node] = node * ranks_per_node;
  std::vector<std::uint32_t> label(num_ranks);
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) label[rank] = next[node_of[rank]]++;
  for (std::uint32_t& part : parts) part = label[part];
}

RankExperts to_rank_experts(const PartOf& parts, std::uint32_t num_parts) {
  RankExperts result(num_parts);
  for (std::size_t expert = 0; expert < parts.size(); ++expert) {
    result[parts[expert]].push_back(static_cast<ExpertIdx>(expert));
  }
  return result;
}

}  // namespace coterie
