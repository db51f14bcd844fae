// Local search on the true objective, the number of distinct parts per token summed over tokens
// (token_hits.hpp says how a swap is evaluated).

#include <cmath>

#include "core/random.hpp"
#include "workloads/placement/partition.hpp"
#include "workloads/placement/token_hits.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kKickSwaps = 3;

class Search {
 public:
  Search(const PartitionTask& task, const PartOf& parts)
      : task_(task),
        num_experts_(task.num_experts()),
        sample_(task.experts, task.num_topk, num_experts_),
        hits_(sample_, parts, task.num_parts()),
        part_load_(task.num_parts(), 0.0),
        node_load_(task.max_node_load.size(), 0.0),
        guard_(task, parts) {
    for (std::uint32_t expert = 0; expert < num_experts_; ++expert) {
      add_load(parts[expert], static_cast<double>(task_.load[expert]));
    }
  }

  [[nodiscard]] const PartOf& parts() const { return hits_.parts(); }
  [[nodiscard]] std::int64_t fan_out() const { return hits_.fan_out(); }

  // Takes the best swap of each expert in turn until no expert has one.
  void descend() {
    for (std::uint32_t unchanged = 0, a = 0; unchanged < num_experts_; a = (a + 1) % num_experts_) {
      std::int32_t best = 0;
      std::uint32_t partner = num_experts_;
      for (std::uint32_t b = 0; b < num_experts_; ++b) {
        if (!may_swap(a, b)) continue;
        const std::int32_t change = swap_change(a, b);
        if (change < best && keeps_balance(a, b)) {
          best = change;
          partner = b;
        }
      }
      ++unchanged;
      if (partner == num_experts_) continue;
      swap(a, partner);
      unchanged = 0;
    }
  }

  // A few random swaps that the cap allows.
  void kick(Random& random) {
    std::uint32_t done = 0;
    for (std::uint32_t attempt = 0; attempt < 50 * kKickSwaps && done < kKickSwaps; ++attempt) {
      const auto a = static_cast<std::uint32_t>(random.index(num_experts_));
      const auto b = static_cast<std::uint32_t>(random.index(num_experts_));
      if (!may_swap(a, b) || !keeps_balance(a, b)) continue;
      swap(a, b);
      ++done;
    }
  }

  // Back to `parts`, swap by swap.
  void restore(const PartOf& parts) {
    for (std::uint32_t a = 0; a < num_experts_; ++a) {
      for (std::uint32_t b = a + 1; b < num_experts_ && part_of(a) != parts[a]; ++b) {
        if (part_of(b) == parts[a] && part_of(b) != parts[b]) swap(a, b);
      }
    }
  }

 private:
  void add_load(std::uint32_t part, double tokens) {
    part_load_[part] += tokens;
    if (!node_load_.empty()) node_load_[task_.node_of[part]] += tokens;
  }

  [[nodiscard]] std::uint32_t part_of(std::uint32_t expert) const { return parts()[expert]; }

  [[nodiscard]] bool may_swap(std::uint32_t a, std::uint32_t b) const {
    return part_of(a) != part_of(b) && task_.swap_zone[part_of(a)] == task_.swap_zone[part_of(b)] &&
           guard_.allows_swap(a, b, parts());
  }

  [[nodiscard]] bool keeps_balance(std::uint32_t a, std::uint32_t b) const {
    const double moved = static_cast<double>(task_.load[b]) - static_cast<double>(task_.load[a]);
    if (moved == 0.0) return true;
    const std::uint32_t grows = moved > 0.0 ? part_of(a) : part_of(b);
    const std::uint32_t shrinks = moved > 0.0 ? part_of(b) : part_of(a);
    if (part_load_[grows] + std::abs(moved) > task_.max_load[grows]) return false;
    if (node_load_.empty() || task_.node_of[grows] == task_.node_of[shrinks]) return true;
    const std::uint32_t node = task_.node_of[grows];
    return node_load_[node] + std::abs(moved) <= task_.max_node_load[node];
  }

  [[nodiscard]] std::int32_t swap_change(std::uint32_t a, std::uint32_t b) const {
    const TokenHits::Change change = hits_.swap_change(a, b);
    return change.at_a + change.at_b;
  }

  void swap(std::uint32_t a, std::uint32_t b) {
    const double moved = static_cast<double>(task_.load[b]) - static_cast<double>(task_.load[a]);
    add_load(part_of(a), moved);
    add_load(part_of(b), -moved);
    guard_.remove(a, part_of(a));
    guard_.remove(b, part_of(b));
    hits_.swap(a, b);
    guard_.add(a, part_of(a));
    guard_.add(b, part_of(b));
  }

  const PartitionTask& task_;
  std::uint32_t num_experts_;
  TokenSample sample_;
  TokenHits hits_;
  std::vector<double> part_load_;  // [num_parts], of the whole training part
  std::vector<double> node_load_;  // [num_nodes] with a cap on nodes
  ReplicaGuard guard_;
};

}  // namespace

void refine_fan_out(const PartitionTask& task, const FanOutSearch& search, PartOf& parts) {
  if (task.num_parts() < 2 || task.experts.empty()) return;
  Search state(task, parts);
  state.descend();
  const PartOf first = state.parts();
  PartOf best = first;
  std::int64_t best_fan_out = state.fan_out();
  for (std::uint32_t start = 0; start < search.num_starts; ++start) {
    if (start > 0) state.restore(first);
    PartOf reached = first;
    std::int64_t reached_fan_out = state.fan_out();
    Random random(search.seed + start);
    for (std::uint32_t kick = 0; kick < search.num_kicks; ++kick) {
      state.kick(random);
      state.descend();
      if (state.fan_out() <= reached_fan_out) {
        reached_fan_out = state.fan_out();
        reached = state.parts();
      } else {
        state.restore(reached);
      }
    }
    if (reached_fan_out < best_fan_out) {
      best_fan_out = reached_fan_out;
      best = reached;
    }
  }
  parts = best;
}

}  // namespace coterie
