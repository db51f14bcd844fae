// Local search on the true objective, the number of distinct parts per token summed over tokens.
//
// What a swap of experts a (in part A) and b (in part B) changes is read off three tables:
//   hits[e][P]   tokens of e that hit part P
//   alone[e]     tokens of e in whose choice e is the only expert of its part
//   left[e][f]   those of them that chose f as well
// A token of a (not b) hits B newly unless it hit B before, and leaves A if a was alone there; a
// token of both keeps its parts. Hence
//   change = (load[a] - hits[a][B]) + (load[b] - hits[b][A]) - (alone[a] - left[a][b])
//                                                            - (alone[b] - left[b][a]).
// A token with both is in hits[a][B] and in hits[b][A], so only the alone terms need correcting.
// Evaluating a swap is O(1); applying one updates the tables for the tokens of a and b, O(k^2)
// each.

#include <algorithm>
#include <numeric>

#include "core/random.hpp"
#include "workloads/placement/partition.hpp"

namespace coterie {
namespace {

// Tokens that the search looks at; longer training parts are thinned out evenly. A swap costs time
// in proportion, and the sampling error of a mean fan-out over so many tokens is below 0.5 percent.
constexpr std::size_t kMaxTokens = 1 << 16;
constexpr std::uint32_t kKickSwaps = 3;

class Search {
 public:
  Search(const PartitionTask& task, const PartOf& parts)
      : task_(task),
        num_experts_(task.num_experts()),
        num_parts_(task.num_parts()),
        num_topk_(task.num_topk),
        parts_(parts),
        hits_(std::size_t{num_experts_} * num_parts_, 0),
        alone_(num_experts_, 0),
        left_(std::size_t{num_experts_} * num_experts_, 0),
        part_load_(num_parts_, 0.0),
        node_load_(task.max_node_load.size(), 0.0),
        guard_(task, parts) {
    sample_tokens();
    for (std::size_t token = 0; token < num_tokens_; ++token) count_token(chosen(token));
    for (std::uint32_t expert = 0; expert < num_experts_; ++expert) {
      add_load(parts_[expert], static_cast<double>(task_.load[expert]));
    }
  }

  [[nodiscard]] const PartOf& parts() const { return parts_; }
  [[nodiscard]] std::int64_t fan_out() const { return fan_out_; }

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
      for (std::uint32_t b = a + 1; b < num_experts_ && parts_[a] != parts[a]; ++b) {
        if (parts_[b] == parts[a] && parts_[b] != parts[b]) swap(a, b);
      }
    }
  }

 private:
  void add_load(std::uint32_t part, double tokens) {
    part_load_[part] += tokens;
    if (!node_load_.empty()) node_load_[task_.node_of[part]] += tokens;
  }

  void sample_tokens() {
    const std::size_t available = task_.experts.size() / num_topk_;
    num_tokens_ = std::min(available, kMaxTokens);
    chosen_.reserve(num_tokens_ * num_topk_);
    for (std::size_t i = 0; i < num_tokens_; ++i) {
      const auto token = task_.experts.subspan(i * available / num_tokens_ * num_topk_, num_topk_);
      chosen_.insert(chosen_.end(), token.begin(), token.end());
    }
    posting_begin_.assign(num_experts_ + 1, 0);
    for (const ExpertIdx expert : chosen_) ++posting_begin_[expert + 1u];
    std::partial_sum(posting_begin_.begin(), posting_begin_.end(), posting_begin_.begin());
    postings_.resize(chosen_.size());
    std::vector<std::uint32_t> next(posting_begin_.begin(), posting_begin_.end() - 1);
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      postings_[next[chosen_[i]]++] = static_cast<std::uint32_t>(i / num_topk_);
    }
  }

  [[nodiscard]] const ExpertIdx* chosen(std::size_t token) const {
    return chosen_.data() + token * num_topk_;
  }

  // The token hits the part (sign 1), or no longer does (-1).
  void count_hit(const ExpertIdx* chosen, std::uint32_t part, std::int32_t sign) {
    fan_out_ += sign;
    for (std::uint32_t j = 0; j < num_topk_; ++j) {
      hits_[std::size_t{chosen[j]} * num_parts_ + part] += sign;
    }
  }

  // The expert is alone in its part in the token (sign 1), or no longer is (-1).
  void count_alone(const ExpertIdx* chosen, ExpertIdx expert, std::int32_t sign) {
    alone_[expert] += sign;
    std::int32_t* const left = left_.data() + std::size_t{expert} * num_experts_;
    for (std::uint32_t j = 0; j < num_topk_; ++j) left[chosen[j]] += sign;
  }

  // A token's experts in one part: their number, and one of them other than `except`.
  struct Members {
    std::uint32_t count = 0;
    ExpertIdx other = 0;
  };
  [[nodiscard]] Members members(const ExpertIdx* chosen, std::uint32_t part,
                                std::uint32_t except) const {
    Members result;
    for (std::uint32_t j = 0; j < num_topk_; ++j) {
      if (parts_[chosen[j]] != part) continue;
      ++result.count;
      if (chosen[j] != except) result.other = chosen[j];
    }
    return result;
  }

  void count_token(const ExpertIdx* chosen) {
    for (std::uint32_t i = 0; i < num_topk_; ++i) {
      const std::uint32_t part = parts_[chosen[i]];
      bool first = true;
      for (std::uint32_t j = 0; j < i; ++j) first = first && parts_[chosen[j]] != part;
      if (first) count_hit(chosen, part, 1);
      if (members(chosen, part, chosen[i]).count == 1) count_alone(chosen, chosen[i], 1);
    }
  }

  // The tables after `expert` of this token moves to `target`. parts_ is still the old one.
  void move_in_token(const ExpertIdx* chosen, ExpertIdx expert, std::uint32_t target) {
    const Members left = members(chosen, parts_[expert], expert);
    const Members joined = members(chosen, target, expert);
    if (left.count == 1) {
      count_hit(chosen, parts_[expert], -1);
      count_alone(chosen, expert, -1);
    } else if (left.count == 2) {
      count_alone(chosen, left.other, 1);
    }
    if (joined.count == 0) {
      count_hit(chosen, target, 1);
      count_alone(chosen, expert, 1);
    } else if (joined.count == 1) {
      count_alone(chosen, joined.other, -1);
    }
  }

  // The tables after two experts of this token trade places: only who is alone changes.
  void trade_in_token(const ExpertIdx* chosen, ExpertIdx a, ExpertIdx b) {
    const bool a_alone = members(chosen, parts_[a], a).count == 1;
    const bool b_alone = members(chosen, parts_[b], b).count == 1;
    if (a_alone == b_alone) return;
    count_alone(chosen, a, a_alone ? -1 : 1);
    count_alone(chosen, b, b_alone ? -1 : 1);
  }

  [[nodiscard]] std::int32_t sampled_load(std::uint32_t expert) const {
    return static_cast<std::int32_t>(posting_begin_[expert + 1] - posting_begin_[expert]);
  }

  [[nodiscard]] bool may_swap(std::uint32_t a, std::uint32_t b) const {
    return parts_[a] != parts_[b] && task_.swap_zone[parts_[a]] == task_.swap_zone[parts_[b]] &&
           guard_.allows_swap(a, b, parts_);
  }

  [[nodiscard]] bool keeps_balance(std::uint32_t a, std::uint32_t b) const {
    const double moved = static_cast<double>(task_.load[b]) - static_cast<double>(task_.load[a]);
    if (moved == 0.0) return true;
    const std::uint32_t grows = moved > 0.0 ? parts_[a] : parts_[b];
    const std::uint32_t shrinks = moved > 0.0 ? parts_[b] : parts_[a];
    if (part_load_[grows] + std::abs(moved) > task_.max_load[grows]) return false;
    if (node_load_.empty() || task_.node_of[grows] == task_.node_of[shrinks]) return true;
    const std::uint32_t node = task_.node_of[grows];
    return node_load_[node] + std::abs(moved) <= task_.max_node_load[node];
  }

  [[nodiscard]] std::int32_t swap_change(std::uint32_t a, std::uint32_t b) const {
    return sampled_load(a) - hits_[std::size_t{a} * num_parts_ + parts_[b]] + sampled_load(b) -
           hits_[std::size_t{b} * num_parts_ + parts_[a]] - alone_[a] +
           left_[std::size_t{a} * num_experts_ + b] - alone_[b] +
           left_[std::size_t{b} * num_experts_ + a];
  }

  void swap(std::uint32_t a, std::uint32_t b) {
    const auto expert_a = static_cast<ExpertIdx>(a);
    const auto expert_b = static_cast<ExpertIdx>(b);
    // Merge of the two lists of tokens.
    std::uint32_t i = posting_begin_[a];
    std::uint32_t j = posting_begin_[b];
    const std::uint32_t end_a = posting_begin_[a + 1];
    const std::uint32_t end_b = posting_begin_[b + 1];
    while (i < end_a || j < end_b) {
      if (i < end_a && j < end_b && postings_[i] == postings_[j]) {
        trade_in_token(chosen(postings_[i]), expert_a, expert_b);
        ++i;
        ++j;
      } else if (j == end_b || (i < end_a && postings_[i] < postings_[j])) {
        move_in_token(chosen(postings_[i++]), expert_a, parts_[b]);
      } else {
        move_in_token(chosen(postings_[j++]), expert_b, parts_[a]);
      }
    }
    const double moved = static_cast<double>(task_.load[b]) - static_cast<double>(task_.load[a]);
    add_load(parts_[a], moved);
    add_load(parts_[b], -moved);
    guard_.remove(a, parts_[a]);
    guard_.remove(b, parts_[b]);
    std::swap(parts_[a], parts_[b]);
    guard_.add(a, parts_[a]);
    guard_.add(b, parts_[b]);
  }

  const PartitionTask& task_;
  std::uint32_t num_experts_;
  std::uint32_t num_parts_;
  std::uint32_t num_topk_;
  PartOf parts_;
  std::size_t num_tokens_ = 0;
  std::vector<ExpertIdx> chosen_;             // [num_tokens][num_topk], the sample
  std::vector<std::uint32_t> posting_begin_;  // [num_experts + 1]
  std::vector<std::uint32_t> postings_;       // tokens of each expert, ascending
  std::vector<std::int32_t> hits_;            // [num_experts][num_parts]
  std::vector<std::int32_t> alone_;           // [num_experts]
  std::vector<std::int32_t> left_;            // [num_experts][num_experts]; diagonal = alone_
  std::vector<double> part_load_;             // [num_parts], of the whole training part
  std::vector<double> node_load_;             // [num_nodes] with a cap on nodes
  ReplicaGuard guard_;
  std::int64_t fan_out_ = 0;
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
