#include "workloads/placement/balance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "core/random.hpp"
#include "workloads/placement/partition.hpp"

namespace coterie {
namespace {

// Parts of slots; a slot holds an item, a replica of an expert with a load of its own. Moves swap
// two items of different parts or make an item a replica of another expert. The energy that
// annealing lowers is the sum of eighth powers of the parts' loads over their weights: close to the
// fullest part, but with a slope where several are full.
class Packing {
 public:
  struct Item {
    std::uint32_t expert = 0;
    std::uint32_t part = 0;
    double load = 0.0;
  };

  Packing(std::vector<Item> items, std::uint32_t num_experts, std::vector<double> weight,
          std::uint32_t max_together)
      : items_(std::move(items)),
        weight_(std::move(weight)),
        max_together_(max_together),
        load_(weight_.size(), 0.0),
        held_(std::size_t{num_experts} * weight_.size(), 0),
        replicas_(num_experts) {
    for (std::uint32_t i = 0; i < items_.size(); ++i) {
      load_[items_[i].part] += items_[i].load;
      ++held(items_[i].expert, items_[i].part);
      replicas_[items_[i].expert].push_back(i);
    }
    const double total = std::accumulate(load_.begin(), load_.end(), 0.0);
    const double total_weight = std::accumulate(weight_.begin(), weight_.end(), 0.0);
    for (double& w : weight_) w *= std::max(total, 1.0) / total_weight;  // the even load of a part
  }

  [[nodiscard]] const std::vector<Item>& items() const { return items_; }
  // Load of the fullest part over its even load.
  [[nodiscard]] double fullest() const {
    double most = 0.0;
    for (std::size_t part = 0; part < load_.size(); ++part) {
      most = std::max(most, load_[part] / weight_[part]);
    }
    return most;
  }

  // Lets the loads follow `experts`: may relabel items, each replica of an expert then carries an
  // equal share of its load.
  void share(std::span<const std::uint64_t> experts) { shared_ = experts; }

  void anneal(Random& random, std::uint64_t num_steps) {
    std::vector<Item> best = items_;
    double best_fullest = fullest();
    // From the energy of a whole part down to nothing.
    constexpr double kHot = 1.0;
    constexpr double kCold = 1e-6;
    const double cooling = std::pow(kCold / kHot, 1.0 / static_cast<double>(num_steps));
    double temperature = kHot;
    for (std::uint64_t step = 0; step < num_steps; ++step, temperature *= cooling) {
      const bool relabels = !shared_.empty() && random.index(4) == 0;
      const bool moved =
          relabels ? try_relabel(random, temperature) : try_swap(random, temperature);
      if (!moved) continue;
      const double now = fullest();
      if (now < best_fullest - 1e-12) {
        best_fullest = now;
        best = items_;
      }
    }
    restore(best);
  }

 private:
  std::uint16_t& held(std::uint32_t expert, std::uint32_t part) {
    return held_[std::size_t{expert} * weight_.size() + part];
  }
  [[nodiscard]] double energy(std::uint32_t part, double load) const {
    const double x = load / weight_[part];
    const double x2 = x * x;
    const double x4 = x2 * x2;
    return x4 * x4;
  }
  [[nodiscard]] bool accepts(Random& random, double change, double temperature) const {
    return change <= 0.0 || random.uniform() < std::exp(-change / temperature);
  }

  bool try_swap(Random& random, double temperature) {
    Item& a = items_[random.index(items_.size())];
    Item& b = items_[random.index(items_.size())];
    if (a.part == b.part || a.expert == b.expert) return false;
    if (held(a.expert, b.part) >= max_together_ || held(b.expert, a.part) >= max_together_) {
      return false;
    }
    const double moved = b.load - a.load;
    const double change = energy(a.part, load_[a.part] + moved) - energy(a.part, load_[a.part]) +
                          energy(b.part, load_[b.part] - moved) - energy(b.part, load_[b.part]);
    if (!accepts(random, change, temperature)) return false;
    load_[a.part] += moved;
    load_[b.part] -= moved;
    --held(a.expert, a.part);
    --held(b.expert, b.part);
    std::swap(a.part, b.part);
    ++held(a.expert, a.part);
    ++held(b.expert, b.part);
    return true;
  }

  // Item `i` becomes a replica of another expert.
  bool try_relabel(Random& random, double temperature) {
    const auto i = static_cast<std::uint32_t>(random.index(items_.size()));
    const std::uint32_t from = items_[i].expert;
    const auto to = static_cast<std::uint32_t>(random.index(replicas_.size()));
    if (from == to || replicas_[from].size() == 1) return false;
    if (held(to, items_[i].part) >= max_together_) return false;
    const std::vector<double> before = load_;
    const auto total = [&] {
      double sum = 0.0;
      for (std::uint32_t part = 0; part < load_.size(); ++part) sum += energy(part, load_[part]);
      return sum;
    };
    const double energy_before = total();
    relabel(i, to);
    if (accepts(random, total() - energy_before, temperature)) return true;
    relabel(i, from);
    load_ = before;  // free of rounding
    return false;
  }

  void relabel(std::uint32_t i, std::uint32_t to) {
    const std::uint32_t from = items_[i].expert;
    std::vector<std::uint32_t>& leaving = replicas_[from];
    leaving.erase(std::find(leaving.begin(), leaving.end(), i));
    replicas_[to].push_back(i);
    --held(from, items_[i].part);
    ++held(to, items_[i].part);
    items_[i].expert = to;
    for (const std::uint32_t expert : {from, to}) {
      const double load =
          static_cast<double>(shared_[expert]) / static_cast<double>(replicas_[expert].size());
      for (const std::uint32_t j : replicas_[expert]) {
        load_[items_[j].part] += load - items_[j].load;
        items_[j].load = load;
      }
    }
  }

  void restore(const std::vector<Item>& items) {
    items_ = items;
    std::fill(load_.begin(), load_.end(), 0.0);
    std::fill(held_.begin(), held_.end(), std::uint16_t{0});
    for (auto& replicas : replicas_) replicas.clear();
    for (std::uint32_t i = 0; i < items_.size(); ++i) {
      load_[items_[i].part] += items_[i].load;
      ++held(items_[i].expert, items_[i].part);
      replicas_[items_[i].expert].push_back(i);
    }
  }

  std::vector<Item> items_;
  std::vector<double> weight_;  // [num_parts]
  std::uint32_t max_together_;
  std::vector<double> load_;                          // [num_parts]
  std::vector<std::uint16_t> held_;                   // [num_experts][num_parts] items
  std::vector<std::vector<std::uint32_t>> replicas_;  // [num_experts] its items
  std::span<const std::uint64_t> shared_;             // loads of experts, where items may relabel
};

// Anneals several times from the same start and keeps the first of the best.
std::vector<Packing::Item> best_of(const Packing& start, std::uint64_t seed) {
  constexpr std::uint64_t kRuns = 6;
  const std::uint64_t num_steps =
      std::clamp<std::uint64_t>(std::uint64_t{2000} * start.items().size(), 60'000, 200'000);
  std::vector<Packing::Item> best = start.items();
  double best_fullest = start.fullest();
  for (std::uint64_t run = 0; run < kRuns; ++run) {
    Packing packing = start;
    Random random(seed, run);
    packing.anneal(random, num_steps);
    if (packing.fullest() < best_fullest - 1e-12) {
      best_fullest = packing.fullest();
      best = packing.items();
    }
  }
  return best;
}

}  // namespace

RankExperts pack_by_load(std::span<const std::uint64_t> load, const BalanceSearch& search) {
  const auto num_experts = static_cast<std::uint32_t>(load.size());
  const auto num_parts = static_cast<std::uint32_t>(search.capacity.size());
  const auto expert_of = [&](std::uint32_t i) -> std::uint32_t {
    return search.replica_of.empty() ? i : search.replica_of[i];
  };
  std::vector<double> weight;
  for (std::uint32_t part = 0; part < num_parts; ++part) {
    weight.push_back(std::isfinite(search.max_load[part]) ? search.max_load[part] : 1.0);
  }
  // Heaviest first to the part that stays furthest below its cap.
  std::vector<std::uint32_t> order(num_experts);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return load[a] > load[b]; });
  std::vector<Packing::Item> items(num_experts);
  std::vector<double> part_load(num_parts, 0.0);
  std::vector<std::uint32_t> size(num_parts, 0);
  PartitionTask guard_task;
  guard_task.load = load;
  guard_task.capacity.assign(search.capacity.begin(), search.capacity.end());
  guard_task.swap_zone.assign(num_parts, 0);
  guard_task.replica_of = search.replica_of;
  guard_task.max_together = search.max_together;
  PartOf parts(num_experts, num_parts);
  ReplicaGuard guard(guard_task, parts);
  for (const std::uint32_t i : order) {
    std::uint32_t best = num_parts;
    bool best_allowed = false;
    for (std::uint32_t part = 0; part < num_parts; ++part) {
      if (size[part] == search.capacity[part]) continue;
      const bool allowed = guard.allows(i, part);
      if (best == num_parts || (allowed && !best_allowed) ||
          (allowed == best_allowed &&
           part_load[part] / weight[part] < part_load[best] / weight[best])) {
        best = part;
        best_allowed = allowed;
      }
    }
    parts[i] = best;
    guard.add(i, best);
    ++size[best];
    part_load[best] += static_cast<double>(load[i]);
  }
  separate_replicas(guard_task, parts);
  std::uint32_t num_logical = 0;
  for (std::uint32_t i = 0; i < num_experts; ++i) {
    items[i] = {expert_of(i), parts[i], static_cast<double>(load[i])};
    num_logical = std::max(num_logical, expert_of(i) + 1);
  }
  const Packing start(std::move(items), num_logical, weight, search.max_together);
  RankExperts result(num_parts);
  const std::vector<Packing::Item> found = best_of(start, search.seed);
  for (std::uint32_t i = 0; i < num_experts; ++i) {
    result[found[i].part].push_back(static_cast<ExpertIdx>(i));
  }
  return result;
}

RankExperts balance_jointly(std::span<const std::uint64_t> load, std::uint32_t num_ranks,
                            std::uint32_t num_replicas, std::uint64_t seed) {
  const auto num_experts = static_cast<std::uint32_t>(load.size());
  PlacementRequest request;
  request.num_ranks = num_ranks;
  request.num_replicas = num_replicas;
  const RankExperts greedy = place_load_balanced({0, num_experts, 0, {}, load, request});
  std::vector<std::uint32_t> count(num_experts, 0);
  for (const auto& experts : greedy) {
    for (const ExpertIdx expert : experts) ++count[expert];
  }
  std::vector<Packing::Item> items;
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    for (const ExpertIdx expert : greedy[rank]) {
      items.push_back({expert, rank, static_cast<double>(load[expert]) / count[expert]});
    }
  }
  Packing start(std::move(items), num_experts, std::vector<double>(num_ranks, 1.0), 1);
  if (num_replicas > 0) start.share(load);
  RankExperts result(num_ranks);
  for (const Packing::Item& item : best_of(start, seed)) {
    result[item.part].push_back(static_cast<ExpertIdx>(item.expert));
  }
  return result;
}

double least_imbalance(std::span<const std::uint64_t> load,
                       std::span<const std::uint32_t> capacity) {
  const auto total =
      static_cast<double>(std::accumulate(load.begin(), load.end(), std::uint64_t{0}));
  if (total == 0.0 || load.empty()) return 1.0;
  std::vector<std::uint64_t> sorted(load.begin(), load.end());
  std::sort(sorted.begin(), sorted.end());
  // The heaviest expert shares its part with at least capacity - 1 others.
  const std::uint32_t fewest = *std::min_element(capacity.begin(), capacity.end());
  double with_lightest = static_cast<double>(sorted.back());
  for (std::uint32_t i = 0; i + 1 < fewest; ++i) with_lightest += static_cast<double>(sorted[i]);
  return std::max(1.0, with_lightest * static_cast<double>(capacity.size()) / total);
}

// Replicas and packing chosen together: greedy replication followed by greedy packing, as
// load_balanced does it, first fixes how many replicas each expert gets and cannot go back when
// they do not fit together.
RankExperts place_load_balanced_joint(const LayerTask& task) {
  return balance_jointly(task.load, task.request.num_ranks, task.request.num_replicas,
                         mix64(task.request.seed) ^ task.layer);
}

}  // namespace coterie
