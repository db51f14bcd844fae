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
        sample_(task.experts, task.num_topk, num_experts_, task.token_weight),
        now_{{sample_, parts, task.num_parts()},
             std::vector<double>(task.num_parts(), 0.0),
             std::vector<double>(task.max_node_load.size(), 0.0),
             {task, parts}} {
    for (std::uint32_t expert = 0; expert < num_experts_; ++expert) {
      add_load(parts[expert], static_cast<double>(task_.load[expert]));
    }
  }

  // What a partition amounts to, for coming back to it: copied faster than swapped.
  struct Reached {
    TokenHits hits;
    std::vector<double> part_load;  // [num_parts], of the whole training part
    std::vector<double> node_load;  // [num_nodes] with a cap on nodes
    ReplicaGuard guard;
  };
  [[nodiscard]] const Reached& now() const { return now_; }
  void restore(const Reached& then) { now_ = then; }

  [[nodiscard]] const PartOf& parts() const { return now_.hits.parts(); }
  [[nodiscard]] std::int64_t fan_out() const { return now_.hits.fan_out(); }

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

 private:
  void add_load(std::uint32_t part, double tokens) {
    now_.part_load[part] += tokens;
    if (!now_.node_load.empty()) now_.node_load[task_.node_of[part]] += tokens;
  }

  [[nodiscard]] std::uint32_t part_of(std::uint32_t expert) const { return parts()[expert]; }

  [[nodiscard]] bool may_swap(std::uint32_t a, std::uint32_t b) const {
    return part_of(a) != part_of(b) && task_.swap_zone[part_of(a)] == task_.swap_zone[part_of(b)] &&
           now_.guard.allows_swap(a, b, parts());
  }

  [[nodiscard]] bool keeps_balance(std::uint32_t a, std::uint32_t b) const {
    const double moved = static_cast<double>(task_.load[b]) - static_cast<double>(task_.load[a]);
    if (moved == 0.0) return true;
    const std::uint32_t grows = moved > 0.0 ? part_of(a) : part_of(b);
    const std::uint32_t shrinks = moved > 0.0 ? part_of(b) : part_of(a);
    if (now_.part_load[grows] + std::abs(moved) > task_.max_load[grows]) return false;
    if (now_.node_load.empty() || task_.node_of[grows] == task_.node_of[shrinks]) return true;
    const std::uint32_t node = task_.node_of[grows];
    return now_.node_load[node] + std::abs(moved) <= task_.max_node_load[node];
  }

  [[nodiscard]] std::int32_t swap_change(std::uint32_t a, std::uint32_t b) const {
    const TokenHits::Change change = now_.hits.swap_change(a, b);
    return change.at_a + change.at_b;
  }

  void swap(std::uint32_t a, std::uint32_t b) {
    const double moved = static_cast<double>(task_.load[b]) - static_cast<double>(task_.load[a]);
    add_load(part_of(a), moved);
    add_load(part_of(b), -moved);
    now_.guard.remove(a, part_of(a));
    now_.guard.remove(b, part_of(b));
    now_.hits.swap(a, b);
    now_.guard.add(a, part_of(a));
    now_.guard.add(b, part_of(b));
  }

  const PartitionTask& task_;
  std::uint32_t num_experts_;
  TokenSample sample_;
  Reached now_;
};

}  // namespace

void refine_fan_out(const PartitionTask& task, const FanOutSearch& search, PartOf& parts) {
  if (task.num_parts() < 2 || task.experts.empty()) return;
  Search state(task, parts);
  state.descend();
  const Search::Reached first = state.now();
  PartOf best = state.parts();
  std::int64_t best_fan_out = state.fan_out();
  for (std::uint32_t start = 0; start < search.num_starts; ++start) {
    if (start > 0) state.restore(first);
    Search::Reached reached = first;
    Random random(search.seed + start);
    for (std::uint32_t kick = 0; kick < search.num_kicks; ++kick) {
      state.kick(random);
      state.descend();
      if (state.fan_out() <= reached.hits.fan_out()) {
        reached = state.now();
      } else {
        state.restore(reached);
      }
    }
    if (reached.hits.fan_out() < best_fan_out) {
      best_fan_out = reached.hits.fan_out();
      best = reached.hits.parts();
    }
  }
  parts = best;
}

}  // namespace coterie
