// What a search minimises cannot be the maximum over ranks itself: it has no slope where several
// ranks are full, and on other sequences than these the ranks' costs are others. Let the cost of
// rank r there be c[r] plus normal noise of deviation s. Then for every t > 0
//   E max <= ln(sum over r of exp(t c[r])) / t + t s^2 / 2,
// which is least at t = sqrt(2 ln P) / s for P equal costs. The search lowers the first term; as
// exponentials cost time, exp(t c) is taken as (c / m)^(t m) with m the mean cost, whose logarithm
// has the same value and slope there, and t m rounded to a power of two.

#include "workloads/placement/time_search.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "core/random.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kSwapsOfAKick = 3;
constexpr std::uint32_t kMaxSquarings = 7;

// One direction's channels as flat arrays: rates of the nodes whose rows cross each.
struct Channels {
  struct Crossing {
    std::uint32_t node;
    double row_s, relay_s;
  };
  std::vector<double> base_s;
  std::vector<std::uint32_t> begin;    // [num_channels + 1]
  std::vector<Crossing> crossings;     // by channel, nodes ascending
  std::vector<std::uint32_t> of_node;  // [num_channels][num_nodes] position + 1, 0: none
  std::uint32_t num_nodes = 0;

  Channels(const LayerCost::Direction& direction, std::uint32_t nodes) : num_nodes(nodes) {
    begin.push_back(0);
    for (const LayerCost::Channel& channel : direction.channels) {
      base_s.push_back(channel.base_s);
      for (std::uint32_t node = 0; node < nodes; ++node) {
        const double row = channel.row_s.empty() ? 0.0 : channel.row_s[node];
        const double relay = channel.relay_s.empty() ? 0.0 : channel.relay_s[node];
        of_node.push_back(0);
        if (row <= 0.0 && relay <= 0.0) continue;
        crossings.push_back({node, row, relay});
        of_node.back() = static_cast<std::uint32_t>(crossings.size());
      }
      begin.push_back(static_cast<std::uint32_t>(crossings.size()));
    }
  }
  [[nodiscard]] std::size_t size() const { return base_s.size(); }
  [[nodiscard]] double row_s(std::size_t channel, std::uint32_t node) const {
    const std::uint32_t at = of_node[channel * num_nodes + node];
    return at == 0 ? 0.0 : crossings[at - 1].row_s;
  }
  [[nodiscard]] double relay_s(std::size_t channel, std::uint32_t node) const {
    const std::uint32_t at = of_node[channel * num_nodes + node];
    return at == 0 ? 0.0 : crossings[at - 1].relay_s;
  }
};

// Loads of the channels of a direction, seconds, apart from their base.
struct Loads {
  std::vector<double> rows, relays;  // [num_channels]
};

class State {
 public:
  State(const TimeTask& task, const std::vector<std::uint32_t>& parts)
      : cost_(task.cost),
        sample_(task.sample),
        num_experts_(task.sample.num_experts()),
        num_ranks_(task.cost.num_ranks),
        num_nodes_(task.cost.num_nodes()),
        replicas_(replica_task(task)),
        now_(task.sample, parts, num_ranks_, replicas_),
        row_scale_(task.cost.group_tokens /
                   std::max<double>(1.0, static_cast<double>(task.sample.total_weight()))),
        channels_{Channels(task.cost.out, num_nodes_), Channels(task.cost.back, num_nodes_)},
        num_squarings_(task.log2_exponent) {
    const double total =
        static_cast<double>(std::accumulate(task.load.begin(), task.load.end(), std::uint64_t{0}));
    const double scale =
        total > 0.0 ? cost_.group_tokens * static_cast<double>(sample_.num_topk()) / total : 0.0;
    for (std::uint32_t e = 0; e < num_experts_; ++e) {
      tokens_.push_back(static_cast<double>(task.load[e]) * scale);
      expert_s_.push_back(cost_.expert_s ? cost_.expert_s(tokens_.back()) : 0.0);
    }
    for (std::size_t d = 0; d < 2; ++d) {
      node_rows_s_[d].resize(num_nodes_);
      node_relay_s_[d].resize(num_nodes_);
      node_both_s_[d].resize(num_nodes_);
    }
    rank_s_.resize(num_ranks_);
    if (cost_.ranks_per_gpu > 1) turns_s_.resize(num_ranks_);
    per_round_ = 1.0 / cost_.num_rounds;
    if (cost_.relayed) now_.nodes.emplace(task.sample, nodes_of(parts), num_nodes_);
    recount();
    per_unit_ = 1.0 / std::max(mean_cost().first, 1e-12);
  }

  // What a placement amounts to, for coming back to it: copied faster than swapped.
  struct Reached {
    Reached(const TokenSample& sample, const std::vector<std::uint32_t>& parts,
            std::uint32_t num_ranks, const PartitionTask& replicas)
        : ranks(sample, parts, num_ranks), guard(replicas, parts) {}
    TokenHits ranks;
    std::optional<TokenHits> nodes;  // where rows are relayed
    std::vector<double> rows;        // [num_ranks] X
    std::vector<double> work;        // [num_ranks] seconds of its experts
    double sum_rows = 0.0, sum_nodes = 0.0;
    std::array<Loads, 2> loads;
    ReplicaGuard guard;
  };
  [[nodiscard]] const Reached& now() const { return now_; }
  void restore(const Reached& then) { now_ = then; }

  [[nodiscard]] const std::vector<std::uint32_t>& parts() const { return now_.ranks.parts(); }

  // The two objectives as the placement stands.
  [[nodiscard]] double largest() { return reduce(true); }
  [[nodiscard]] double smooth() { return reduce(false); }

  // Mean over ranks, of all and of what the ranks have of their own.
  [[nodiscard]] std::pair<double, double> mean_cost() {
    nodes_seconds(0);
    nodes_seconds(1);
    set_rank_seconds(0.0);
    double own = 0.0;
    for (const double seconds : rank_s_) own += seconds / num_ranks_;
    return {own + common_s(), own};
  }

  // Of the placement after a swap.
  [[nodiscard]] double smooth_after(std::uint32_t a, std::uint32_t b) {
    const Delta delta = delta_of(a, b);
    apply(delta, 1.0);
    const double value = reduce(false);
    apply(delta, -1.0);
    return value;
  }

  void swap(std::uint32_t a, std::uint32_t b) {
    apply(delta_of(a, b), 1.0);
    const bool crosses = node(parts()[a]) != node(parts()[b]);
    now_.guard.remove(a, parts()[a]);
    now_.guard.remove(b, parts()[b]);
    now_.ranks.swap(a, b);
    now_.guard.add(a, parts()[a]);
    now_.guard.add(b, parts()[b]);
    if (crosses && now_.nodes) now_.nodes->swap(a, b);
    if (++num_swaps_ % 64 == 0) recount();  // free of rounding
  }

  void descend(std::uint64_t& evaluations) {
    double now = smooth();
    for (std::uint32_t unchanged = 0, a = 0; unchanged < num_experts_; a = (a + 1) % num_experts_) {
      double best = now * (1.0 - 1e-9);
      std::uint32_t partner = num_experts_;
      for (std::uint32_t b = 0; b < num_experts_; ++b) {
        if (!may_swap(a, b)) continue;
        ++evaluations;
        const double value = smooth_after(a, b);
        if (value < best) {
          best = value;
          partner = b;
        }
      }
      ++unchanged;
      if (partner == num_experts_) continue;
      swap(a, partner);
      now = smooth();
      unchanged = 0;
    }
  }

  void kick(Random& random) {
    for (std::uint32_t attempt = 0, done = 0; attempt < 20 * kSwapsOfAKick && done < kSwapsOfAKick;
         ++attempt) {
      const auto a = static_cast<std::uint32_t>(random.index(num_experts_));
      const auto b = static_cast<std::uint32_t>(random.index(num_experts_));
      if (!may_swap(a, b)) continue;
      swap(a, b);
      ++done;
    }
  }

 private:
  // What a guard of replicas has to know.
  static PartitionTask replica_task(const TimeTask& task) {
    PartitionTask result;
    result.load = task.load;
    result.capacity.resize(task.cost.num_ranks);
    result.replica_of = task.replica_of;
    return result;
  }
  [[nodiscard]] bool may_swap(std::uint32_t a, std::uint32_t b) const {
    return parts()[a] != parts()[b] && now_.guard.allows_swap(a, b, parts());
  }

  struct Delta {
    std::uint32_t rank_a = 0, rank_b = 0;
    double rows_a = 0.0, rows_b = 0.0;    // X
    double work_a = 0.0, work_b = 0.0;    // seconds
    double nodes_a = 0.0, nodes_b = 0.0;  // N
  };

  [[nodiscard]] std::uint32_t node(std::uint32_t rank) const { return rank / cost_.ranks_per_node; }
  [[nodiscard]] std::vector<std::uint32_t> nodes_of(const std::vector<std::uint32_t>& parts) const {
    std::vector<std::uint32_t> result;
    for (const std::uint32_t rank : parts) result.push_back(node(rank));
    return result;
  }

  [[nodiscard]] Delta delta_of(std::uint32_t a, std::uint32_t b) const {
    Delta delta{parts()[a], parts()[b]};
    delta.work_a = expert_s_[b] - expert_s_[a];
    delta.work_b = -delta.work_a;
    if (cost_.rows_are_copies) {
      delta.rows_a = tokens_[b] - tokens_[a];
      delta.rows_b = -delta.rows_a;
    } else {
      const TokenHits::Change change = now_.ranks.swap_change(a, b);
      delta.rows_a = row_scale_ * change.at_a;
      delta.rows_b = row_scale_ * change.at_b;
    }
    if (now_.nodes && node(delta.rank_a) != node(delta.rank_b)) {
      const TokenHits::Change change = now_.nodes->swap_change(a, b);
      delta.nodes_a = row_scale_ * change.at_a;
      delta.nodes_b = row_scale_ * change.at_b;
    }
    return delta;
  }

  void apply(const Delta& delta, double sign) {
    const std::uint32_t node_a = node(delta.rank_a);
    const std::uint32_t node_b = node(delta.rank_b);
    now_.rows[delta.rank_a] += sign * delta.rows_a;
    now_.rows[delta.rank_b] += sign * delta.rows_b;
    now_.work[delta.rank_a] += sign * delta.work_a;
    now_.work[delta.rank_b] += sign * delta.work_b;
    now_.sum_rows += sign * (delta.rows_a + delta.rows_b);
    now_.sum_nodes += sign * (delta.nodes_a + delta.nodes_b);
    for (std::size_t d = 0; d < 2; ++d) {
      for (std::size_t c = 0; c < channels_[d].size(); ++c) {
        now_.loads[d].rows[c] += sign * (channels_[d].row_s(c, node_a) * delta.rows_a +
                                         channels_[d].row_s(c, node_b) * delta.rows_b);
        if (!cost_.relayed) continue;
        now_.loads[d].relays[c] += sign * (channels_[d].relay_s(c, node_a) * delta.nodes_a +
                                           channels_[d].relay_s(c, node_b) * delta.nodes_b);
      }
    }
  }

  void recount() {
    now_.rows.assign(num_ranks_, 0.0);
    now_.work.assign(num_ranks_, 0.0);
    std::vector<double> node_rows(num_nodes_, 0.0);
    std::vector<double> node_tokens(num_nodes_, 0.0);
    for (std::uint32_t e = 0; e < num_experts_; ++e) {
      now_.work[parts()[e]] += expert_s_[e];
      if (cost_.rows_are_copies) now_.rows[parts()[e]] += tokens_[e];
    }
    now_.sum_rows = now_.sum_nodes = 0.0;
    for (std::uint32_t rank = 0; rank < num_ranks_; ++rank) {
      if (!cost_.rows_are_copies) {
        now_.rows[rank] = row_scale_ * static_cast<double>(now_.ranks.part_tokens()[rank]);
      }
      node_rows[node(rank)] += now_.rows[rank];
      now_.sum_rows += now_.rows[rank];
    }
    for (std::uint32_t n = 0; now_.nodes && n < num_nodes_; ++n) {
      node_tokens[n] = row_scale_ * static_cast<double>(now_.nodes->part_tokens()[n]);
      now_.sum_nodes += node_tokens[n];
    }
    for (std::size_t d = 0; d < 2; ++d) {
      Loads& loads = now_.loads[d];
      loads.rows.assign(channels_[d].size(), 0.0);
      loads.relays.assign(channels_[d].size(), 0.0);
      for (std::size_t c = 0; c < channels_[d].size(); ++c) {
        for (std::uint32_t n = 0; n < num_nodes_; ++n) {
          loads.rows[c] += channels_[d].row_s(c, n) * node_rows[n];
          loads.relays[c] += channels_[d].relay_s(c, n) * node_tokens[n];
        }
      }
    }
  }

  // The time of each node's slowest channels in one direction.
  void nodes_seconds(std::size_t d) {
    std::fill(node_rows_s_[d].begin(), node_rows_s_[d].end(), 0.0);
    std::fill(node_relay_s_[d].begin(), node_relay_s_[d].end(), 0.0);
    std::fill(node_both_s_[d].begin(), node_both_s_[d].end(), 0.0);
    const Channels& channels = channels_[d];
    for (std::size_t c = 0; c < channels.size(); ++c) {
      const double base = channels.base_s[c];
      const double rows = base + now_.loads[d].rows[c];
      const double relays = base + now_.loads[d].relays[c];
      const double both = rows + relays - base;
      for (std::uint32_t i = channels.begin[c]; i < channels.begin[c + 1]; ++i) {
        const Channels::Crossing& crossing = channels.crossings[i];
        double& row_s = node_rows_s_[d][crossing.node];
        double& both_s = node_both_s_[d][crossing.node];
        if (crossing.row_s > 0.0) row_s = std::max(row_s, rows);
        both_s = std::max(both_s, both);
        if (crossing.relay_s <= 0.0) continue;
        double& relay_s = node_relay_s_[d][crossing.node];
        relay_s = std::max(relay_s, relays);
      }
    }
  }

  // Of a rank of node n in direction d.
  [[nodiscard]] double direction_s(std::size_t d, const LayerCost::Direction& direction,
                                   std::uint32_t n, std::uint32_t rank) const {
    const double own = direction.own_base_s[rank] + direction.own_row_s[rank] * now_.rows[rank];
    const double rows = std::max(own, node_rows_s_[d][n]);
    if (!cost_.relayed) return rows;
    const double relays = node_relay_s_[d][n];
    return std::max(node_both_s_[d][n],
                    std::max(rows, relays) + std::min(rows, relays) * per_round_);
  }

  // [num_ranks] what each rank's GPU computes, one of its ranks after the other.
  [[nodiscard]] const std::vector<double>& turns() {
    if (cost_.ranks_per_gpu == 1) return now_.work;
    for (std::uint32_t begin = 0; begin < num_ranks_; begin += cost_.ranks_per_gpu) {
      const std::uint32_t end = std::min(begin + cost_.ranks_per_gpu, num_ranks_);
      double sum = 0.0;
      for (std::uint32_t rank = begin; rank < end; ++rank) {
        sum += cost_.turn_row_s * now_.rows[rank] + now_.work[rank];
      }
      for (std::uint32_t rank = begin; rank < end; ++rank) turns_s_[rank] = sum;
    }
    return turns_s_;
  }

  // rank_s_: what the ranks have of their own, and `common` on top. By nodes, so that the inner loop
  // is one over arrays.
  void set_rank_seconds(double common) {
    const std::vector<double>& turns_s = turns();
    for (std::uint32_t n = 0, begin = 0; begin < num_ranks_; ++n, begin += cost_.ranks_per_node) {
      const std::uint32_t end = std::min(begin + cost_.ranks_per_node, num_ranks_);
      for (std::uint32_t rank = begin; rank < end; ++rank) {
        rank_s_[rank] = common + direction_s(0, cost_.out, n, rank) +
                        cost_.row_s * now_.rows[rank] + turns_s[rank] +
                        direction_s(1, cost_.back, n, rank);
      }
    }
  }

  [[nodiscard]] double common_s() const {
    return cost_.fixed_s +
           cost_.source_row_s * (cost_.relayed ? now_.sum_nodes : now_.sum_rows) / num_ranks_;
  }

  double reduce(bool largest) {
    nodes_seconds(0);
    nodes_seconds(1);
    set_rank_seconds(common_s());
    if (largest) return *std::max_element(rank_s_.begin(), rank_s_.end());
    for (double& seconds : rank_s_) seconds *= per_unit_;
    for (std::uint32_t i = 0; i < num_squarings_; ++i) {
      for (double& power : rank_s_) power *= power;
    }
    double sum = 0.0;
    for (const double power : rank_s_) sum += power;
    return std::pow(sum / num_ranks_, 1.0 / static_cast<double>(1u << num_squarings_)) / per_unit_;
  }

  const LayerCost& cost_;
  const TokenSample& sample_;
  std::uint32_t num_experts_, num_ranks_, num_nodes_;
  PartitionTask replicas_;
  Reached now_;
  double row_scale_;
  std::array<Channels, 2> channels_;
  std::vector<double> tokens_;    // [num_experts] L
  std::vector<double> expert_s_;  // [num_experts]
  std::vector<double> rank_s_;    // [num_ranks] of set_rank_seconds
  std::vector<double> turns_s_;   // [num_ranks] of turns, where ranks share GPUs
  // [direction][num_nodes] seconds of the slowest channel that the node's rows cross.
  std::array<std::vector<double>, 2> node_rows_s_, node_relay_s_, node_both_s_;
  double per_unit_ = 1.0;
  double per_round_ = 1.0;
  std::uint32_t num_squarings_;
  std::uint64_t num_swaps_ = 0;
};

}  // namespace

std::uint32_t noise_exponent(const TimeTask& task, const std::vector<std::uint32_t>& parts,
                             double relative_noise) {
  const auto [mean_s, own_s] = State(task, parts).mean_cost();
  const double deviation_s = std::max(relative_noise * own_s, 1e-15);
  const double exponent =
      std::sqrt(2.0 * std::log(std::max(2.0, 1.0 * task.cost.num_ranks))) * mean_s / deviation_s;
  std::uint32_t log2_exponent = 0;
  while (log2_exponent < kMaxSquarings && std::exp2(log2_exponent + 0.5) < exponent) {
    ++log2_exponent;
  }
  return log2_exponent;
}

double layer_cost_s(const TimeTask& task, const std::vector<std::uint32_t>& parts) {
  return State(task, parts).largest();
}

double expected_cost_s(const TimeTask& task, const std::vector<std::uint32_t>& parts) {
  return State(task, parts).smooth();
}

void refine_time(const TimeTask& task, const TimeSearch& search,
                 std::vector<std::uint32_t>& parts) {
  if (task.cost.num_ranks < 2 || task.sample.num_tokens() == 0) return;
  State state(task, parts);
  std::uint64_t evaluations = 0;
  state.descend(evaluations);
  State::Reached best = state.now();
  double best_s = state.smooth();
  Random random(search.seed);
  for (std::uint32_t kick = 0; kick < search.num_kicks && evaluations < search.max_evaluations;
       ++kick) {
    state.kick(random);
    state.descend(evaluations);
    const double now_s = state.smooth();
    if (now_s <= best_s) {
      best_s = now_s;
      best = state.now();
    } else {
      state.restore(best);
    }
  }
  parts = best.ranks.parts();
}

}  // namespace coterie
