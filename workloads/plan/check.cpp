#include "workloads/plan/check.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "core/error.hpp"

namespace coterie {
namespace {

// Collects violations; keeps the first kMaxViolations and counts the rest.
class Findings {
 public:
  explicit Findings(PlanCheck& check) : check_(check) {}

  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    ++check_.num_violations;
    if (check_.violations.size() < kMaxViolations) {
      check_.violations.push_back(fmt::format(format, std::forward<Args>(args)...));
    }
  }
  [[nodiscard]] bool none() const { return check_.num_violations == 0; }

 private:
  PlanCheck& check_;
};

class PlanChecker {
 public:
  PlanChecker(const LayerPlan& plan, const PayloadSizes& sizes)
      : plan_(plan), sizes_(sizes), found_(result_) {}

  PlanCheck run() && {
    check_frame();
    // Without sound shapes the indices below would lead astray.
    if (!found_.none()) return std::move(result_);
    check_ids();
    if (!found_.none()) return std::move(result_);
    served_.assign(plan_.experts.size(), 0);
    arrived_.assign(plan_.rank_experts.size(), 0);
    result_.totals.num_tokens = num_tokens_;
    for (std::size_t s = 0; s < plan_.stages.size(); ++s) {
      check_kind(s);
      check_stage(s);
      check_answers(s);
    }
    if (hierarchical()) check_relays();
    check_service();
    return std::move(result_);
  }

 private:
  [[nodiscard]] bool hierarchical() const { return plan_.policy == DispatchPolicy::kHierarchical; }

  // ------------------------------------------------------------ shapes

  // A list of begins: num + 1 entries from 0 to `end`, never descending.
  template <class T>
  bool sound_begins(const std::vector<T>& begins, std::size_t num, std::size_t end) {
    return begins.size() == num + 1 && begins.front() == 0 && begins.back() == end &&
           std::is_sorted(begins.begin(), begins.end());
  }

  void check_frame() {
    const std::size_t num_ranks = plan_.num_ranks;
    if (num_ranks == 0) return found_.add("a plan for 0 ranks");
    if (plan_.ranks_per_node == 0 || num_ranks % plan_.ranks_per_node != 0) {
      found_.add("{} ranks are not whole nodes of {}", num_ranks, plan_.ranks_per_node);
    }
    if (plan_.num_rounds == 0 || (plan_.num_rounds > 1 && !hierarchical())) {
      found_.add("{} rounds, where a plan of one hop has 1 and any other at least 1",
                 plan_.num_rounds);
    }
    if (plan_.num_topk == 0 || plan_.num_topk > 32) {
      found_.add("top-{} is not from 1 to 32", plan_.num_topk);
    }
    num_tokens_ = plan_.token_begin.empty() ? 0 : plan_.token_begin.back();
    if (!sound_begins(plan_.token_begin, num_ranks, num_tokens_)) {
      found_.add("token_begin does not divide the tokens among {} ranks", num_ranks);
    }
    if (plan_.experts.size() != num_tokens_ * plan_.num_topk) {
      found_.add("{} expert ids for {} tokens of top-{}", plan_.experts.size(), num_tokens_,
                 plan_.num_topk);
    }
    if (!plan_.weights.empty() && plan_.weights.size() != plan_.experts.size()) {
      found_.add("{} router weights for {} expert ids", plan_.weights.size(), plan_.experts.size());
    }
    if (!sound_begins(plan_.rank_expert_begin, num_ranks, plan_.rank_experts.size())) {
      found_.add("rank_expert_begin does not divide the hosted experts among {} ranks", num_ranks);
    }
    if (plan_.rank_expert_tokens.size() != plan_.rank_experts.size()) {
      found_.add("{} loads for {} hosted experts", plan_.rank_expert_tokens.size(),
                 plan_.rank_experts.size());
    }
    const std::size_t num_stages = hierarchical() ? 2 : 1;
    if (plan_.stages.size() != num_stages) {
      return found_.add("{} stages, where the policy has {}", plan_.stages.size(), num_stages);
    }
    for (std::size_t s = 0; s < num_stages; ++s) {
      const Stage& stage = plan_.stages[s];
      const std::size_t n = stage.src.size();
      if (stage.dst.size() != n || stage.round.size() != n || stage.num_rows.size() != n ||
          stage.num_copies.size() != n || stage.answer_order.size() != n ||
          stage.parent.size() != (s == 0 ? 0 : n)) {
        found_.add("stage {}: the columns of its {} transfers differ in length", s, n);
      }
      if (!sound_begins(stage.row_begin, n, stage.row_token.size()) ||
          stage.row_mask.size() != stage.row_token.size()) {
        found_.add("stage {}: row_begin does not divide the rows among {} transfers", s, n);
      }
    }
  }

  void check_ids() {
    for (std::uint64_t token = 0; token < num_tokens_; ++token) {
      for (std::uint32_t j = 0; j < plan_.num_topk; ++j) {
        const std::uint32_t expert = plan_.experts[token * plan_.num_topk + j];
        if (expert >= plan_.num_experts) {
          found_.add("token {}: expert {} is not below {}", token, expert, plan_.num_experts);
        }
        for (std::uint32_t i = 0; i < j; ++i) {
          if (plan_.experts[token * plan_.num_topk + i] == expert) {
            found_.add("token {}: expert {} is chosen twice", token, expert);
          }
        }
      }
    }
    for (std::size_t i = 0; i < plan_.weights.size(); ++i) {
      if (!std::isfinite(plan_.weights[i])) {
        found_.add("token {}: a router weight is not finite", i / plan_.num_topk);
      }
    }
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      for (std::uint32_t i = plan_.rank_expert_begin[rank]; i < plan_.rank_expert_begin[rank + 1];
           ++i) {
        if (plan_.rank_experts[i] >= plan_.num_experts) {
          found_.add("rank {}: hosted expert {} is not below {}", rank, plan_.rank_experts[i],
                     plan_.num_experts);
        }
        if (i > plan_.rank_expert_begin[rank] &&
            plan_.rank_experts[i - 1] >= plan_.rank_experts[i]) {
          found_.add("rank {}: its hosted experts are not ascending", rank);
        }
      }
    }
    for (std::size_t s = 0; s < plan_.stages.size(); ++s) {
      const Stage& stage = plan_.stages[s];
      for (std::size_t i = 0; i < stage.src.size(); ++i) {
        if (stage.src[i] >= plan_.num_ranks || stage.dst[i] >= plan_.num_ranks) {
          found_.add("stage {}, transfer {}: rank {} or {} is not below {}", s, i, stage.src[i],
                     stage.dst[i], plan_.num_ranks);
        }
        if (stage.round[i] >= plan_.num_rounds) {
          found_.add("stage {}, transfer {}: round {} is not below {}", s, i, stage.round[i],
                     plan_.num_rounds);
        }
        if (stage.answer_order[i] >= stage.src.size()) {
          found_.add("stage {}: an answer to transfer {}, which does not exist", s,
                     stage.answer_order[i]);
        }
        if (s > 0 && stage.parent[i] >= plan_.stages[0].src.size()) {
          found_.add("stage {}, transfer {}: parent {} does not exist", s, i, stage.parent[i]);
        }
      }
      for (std::size_t row = 0; row < stage.row_token.size(); ++row) {
        if (stage.row_token[row] >= num_tokens_) {
          found_.add("stage {}, row {}: token {} is not below {}", s, row, stage.row_token[row],
                     num_tokens_);
        }
        const std::uint64_t allowed = (std::uint64_t{1} << plan_.num_topk) - 1;
        if (stage.row_mask[row] == 0 || (stage.row_mask[row] & ~allowed) != 0) {
          found_.add("stage {}, row {}: mask {:#x} names no expert or one beyond top-{}", s, row,
                     stage.row_mask[row], plan_.num_topk);
        }
      }
    }
  }

  // ------------------------------------------------------------ transfers

  [[nodiscard]] std::string name(std::size_t s, std::size_t i) const {
    return fmt::format("stage {}, transfer {} (rank {} to {})", s, i, plan_.stages[s].src[i],
                       plan_.stages[s].dst[i]);
  }

  void check_stage(std::size_t s) {
    const Stage& stage = plan_.stages[s];
    for (std::size_t i = 0; i < stage.src.size(); ++i) {
      check_order(s, i);
      check_amounts(s, i);
      check_ends(s, i);
      const bool last = s + 1 == plan_.stages.size();
      for (std::size_t row = stage.row_begin[i]; row < stage.row_begin[i + 1]; ++row) {
        if (s == 0) check_owner(i, row);
        if (last) serve(s, i, row);
      }
    }
  }

  // What hop and phases the policy's stages have.
  void check_kind(std::size_t s) {
    const Stage& stage = plan_.stages[s];
    const HopKind hop = !hierarchical() ? HopKind::kGroup
                        : s == 0        ? HopKind::kRail
                                        : HopKind::kNode;
    const Phase out = s == 0 ? Phase::kDispatch : Phase::kForward;
    const Phase back = s == 0 ? Phase::kCombine : Phase::kGather;
    if (stage.hop != hop || stage.out != out || stage.back != back) {
      found_.add("stage {}: hop {} with {} and {}, where the policy has {} with {} and {}", s,
                 to_string(stage.hop), to_string(stage.out), to_string(stage.back), to_string(hop),
                 to_string(out), to_string(back));
    }
  }

  [[nodiscard]] std::uint64_t steps(std::uint32_t from, std::uint32_t to) const {
    return (to + std::uint64_t{plan_.num_ranks} - from) % plan_.num_ranks;
  }

  // Every transfer is answered once: answering ranks ascending, each round by round, in a round
  // from itself upwards and around, parents ascending.
  void check_answers(std::size_t s) {
    const Stage& stage = plan_.stages[s];
    const auto place = [&](std::size_t position) {
      const std::uint32_t i = stage.answer_order[position];
      return std::tuple(stage.dst[i], stage.round[i], steps(stage.dst[i], stage.src[i]),
                        s == 0 ? 0 : stage.parent[i]);
    };
    // Strictly ascending places name every transfer at most once, and there are as many as those.
    for (std::size_t position = 1; position < stage.answer_order.size(); ++position) {
      if (!(place(position - 1) < place(position))) {
        found_.add("{}: its answer is out of order, or a second one",
                   name(s, stage.answer_order[position]));
      }
    }
  }

  // Sources ascending, each round by round, in a round from itself upwards and around, parents
  // ascending.
  void check_order(std::size_t s, std::size_t i) {
    const Stage& stage = plan_.stages[s];
    const auto place = [&](std::size_t t) {
      return std::tuple(stage.src[t], stage.round[t], steps(stage.src[t], stage.dst[t]),
                        s == 0 ? 0 : stage.parent[t]);
    };
    if (i > 0 && !(place(i - 1) < place(i))) {
      found_.add("{}: it is out of send order, or a second one of its kind", name(s, i));
    }
    const bool repeats = plan_.policy == DispatchPolicy::kStandard;
    for (std::size_t row = stage.row_begin[i] + 1; row < stage.row_begin[i + 1]; ++row) {
      const std::uint32_t before = stage.row_token[row - 1];
      const std::uint32_t token = stage.row_token[row];
      if (token < before) found_.add("{}: token {} comes after {}", name(s, i), token, before);
      if (token == before && !repeats) {
        found_.add("{}: token {} is sent twice over the same hop", name(s, i), token);
      }
    }
  }

  void check_amounts(std::size_t s, std::size_t i) {
    const Stage& stage = plan_.stages[s];
    const std::uint64_t rows = stage.row_begin[i + 1] - stage.row_begin[i];
    std::uint64_t copies = 0;
    for (std::size_t row = stage.row_begin[i]; row < stage.row_begin[i + 1]; ++row) {
      copies += static_cast<std::uint64_t>(std::popcount(stage.row_mask[row]));
    }
    if (rows == 0) found_.add("{}: it carries no rows", name(s, i));
    if (stage.num_rows[i] != rows) {
      found_.add("{}: {} rows are counted, {} are listed", name(s, i), stage.num_rows[i], rows);
    }
    if (stage.num_copies[i] != copies) {
      found_.add("{}: {} copies are counted, {} are listed", name(s, i), stage.num_copies[i],
                 copies);
    }
    if (plan_.policy == DispatchPolicy::kStandard && rows != copies) {
      found_.add("{}: a row of a standard plan serves more than one expert", name(s, i));
    }
    // On the wire, per row a token index of 4 bytes, per copy an expert id of 4 and a weight of 4.
    const auto signed_rows = static_cast<std::int64_t>(rows);
    const auto signed_copies = static_cast<std::int64_t>(copies);
    const std::int64_t there =
        signed_rows * sizes_.dispatch_row.value + 4 * signed_rows + 8 * signed_copies;
    const std::int64_t back = signed_rows * sizes_.combine_row.value;
    const std::int64_t said_there = dispatch_bytes(stage, i, sizes_).value;
    const std::int64_t said_back = combine_bytes(stage, i, sizes_).value;
    if (said_there != there || said_back != back) {
      found_.add("{}: {} bytes there and {} back are accounted for, its rows are {} and {}",
                 name(s, i), said_there, said_back, there, back);
    }
    result_.totals.num_rows += rows;
    if (stage.src[i] != stage.dst[i]) {
      result_.totals.num_remote_rows += rows;
      result_.totals.dispatch_bytes += there;
      result_.totals.combine_bytes += back;
    }
  }

  // Where transfers of the two-level policy may lead.
  void check_ends(std::size_t s, std::size_t i) {
    if (!hierarchical()) return;
    const Stage& stage = plan_.stages[s];
    const std::uint32_t size = plan_.ranks_per_node;
    if (s == 0 && stage.src[i] % size != stage.dst[i] % size) {
      found_.add("{}: it leaves its rail", name(s, i));
    }
    if (s == 1 && stage.src[i] / size != stage.dst[i] / size) {
      found_.add("{}: it leaves its node", name(s, i));
    }
  }

  void check_owner(std::size_t i, std::size_t row) {
    const Stage& stage = plan_.stages[0];
    const std::uint32_t token = stage.row_token[row];
    const std::uint32_t src = stage.src[i];
    if (token < plan_.token_begin[src] || token >= plan_.token_begin[src + 1]) {
      return found_.add("{}: token {} is not the source's own", name(0, i), token);
    }
    // Round c of n has the tokens [T c / n, T (c + 1) / n) of the source's T.
    const std::uint64_t num_tokens = plan_.token_begin[src + 1] - plan_.token_begin[src];
    const std::uint64_t own = token - plan_.token_begin[src];
    const std::uint64_t round = stage.round[i];
    if (own < num_tokens * round / plan_.num_rounds ||
        own >= num_tokens * (round + 1) / plan_.num_rounds) {
      found_.add("{}: token {} does not belong to round {} of {}", name(0, i), token, round,
                 plan_.num_rounds);
    }
  }

  // ------------------------------------------------------------ rows

  // The row is at its last rank: serve its copies there.
  void serve(std::size_t s, std::size_t i, std::size_t row) {
    const Stage& stage = plan_.stages[s];
    const std::uint32_t dst = stage.dst[i];
    const std::uint32_t token = stage.row_token[row];
    const auto first = plan_.rank_experts.begin() + plan_.rank_expert_begin[dst];
    const auto last = plan_.rank_experts.begin() + plan_.rank_expert_begin[dst + 1];
    for (std::uint32_t j = 0; j < plan_.num_topk; ++j) {
      if ((stage.row_mask[row] >> j & 1u) == 0) continue;
      const std::size_t copy = std::size_t{token} * plan_.num_topk + j;
      ++served_[copy];
      ++result_.totals.num_copies;
      const auto slot = std::lower_bound(first, last, plan_.experts[copy]);
      if (slot == last || *slot != plan_.experts[copy]) {
        found_.add("{}: token {} goes there for expert {}, which the rank does not host",
                   name(s, i), token, plan_.experts[copy]);
      } else {
        ++arrived_[static_cast<std::size_t>(slot - plan_.rank_experts.begin())];
      }
    }
  }

  // Hierarchical: every copy that a relay received is sent on exactly once, and nothing else is.
  void check_relays() {
    const Stage& first = plan_.stages[0];
    const Stage& second = plan_.stages[1];
    std::vector<std::uint32_t> sent_on(first.row_token.size(), 0);
    for (std::size_t i = 0; i < second.src.size(); ++i) {
      const std::uint32_t parent = second.parent[i];
      if (first.dst[parent] != second.src[i]) {
        found_.add("{}: its parent brings rows to rank {}", name(1, i), first.dst[parent]);
        continue;
      }
      if (first.round[parent] != second.round[i]) {
        found_.add("{}: its parent travels in round {}, it in round {}", name(1, i),
                   first.round[parent], second.round[i]);
      }
      std::size_t at = first.row_begin[parent];
      const std::size_t end = first.row_begin[parent + 1];
      for (std::size_t row = second.row_begin[i]; row < second.row_begin[i + 1]; ++row) {
        const std::uint32_t token = second.row_token[row];
        while (at < end && first.row_token[at] < token) ++at;
        if (at == end || first.row_token[at] != token) {
          found_.add("{}: token {} was not brought by its parent", name(1, i), token);
          continue;
        }
        if ((second.row_mask[row] & ~first.row_mask[at]) != 0) {
          found_.add("{}: token {} serves experts that its parent's row does not", name(1, i),
                     token);
        }
        if ((second.row_mask[row] & sent_on[at]) != 0) {
          found_.add("{}: a copy of token {} is sent on twice", name(1, i), token);
        }
        sent_on[at] |= second.row_mask[row];
      }
    }
    for (std::size_t i = 0; i < first.src.size(); ++i) {
      for (std::size_t row = first.row_begin[i]; row < first.row_begin[i + 1]; ++row) {
        if ((first.row_mask[row] & ~sent_on[row]) != 0) {
          found_.add("{}: a copy of token {} is not sent on", name(0, i), first.row_token[row]);
        }
      }
    }
  }

  void check_service() {
    for (std::size_t copy = 0; copy < served_.size(); ++copy) {
      if (served_[copy] == 1) continue;
      found_.add("token {}: expert {} is served {} times", copy / plan_.num_topk,
                 plan_.experts[copy], served_[copy]);
    }
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      for (std::uint32_t i = plan_.rank_expert_begin[rank]; i < plan_.rank_expert_begin[rank + 1];
           ++i) {
        if (plan_.rank_expert_tokens[i] != arrived_[i]) {
          found_.add("rank {}: expert {} is said to serve {} tokens, {} arrive", rank,
                     plan_.rank_experts[i], plan_.rank_expert_tokens[i], arrived_[i]);
        }
      }
    }
  }

  const LayerPlan& plan_;
  const PayloadSizes& sizes_;
  PlanCheck result_;
  Findings found_;
  std::uint64_t num_tokens_ = 0;
  std::vector<std::uint32_t> served_;   // [num_tokens][num_topk] times
  std::vector<std::uint64_t> arrived_;  // [hosted experts] tokens
};

}  // namespace

PlanCheck check_plan(const LayerPlan& plan, const PayloadSizes& sizes) {
  return PlanChecker(plan, sizes).run();
}

PlanCheck check_plan(const DispatchPlan& plan) {
  const auto row_bytes = [&](PayloadType type) {
    std::int64_t bytes = 0;
    for (std::uint32_t first = 0; first < plan.hidden; first += 128) {
      const std::int64_t values = std::min<std::uint32_t>(128, plan.hidden - first);
      bytes += type == PayloadType::kFp8 ? values + 4 : 2 * values;
    }
    return Bytes{bytes};
  };
  const PayloadSizes sizes{row_bytes(plan.dispatch_payload), row_bytes(plan.combine_payload)};
  PlanCheck result;
  Findings found(result);
  if (plan.hidden == 0) found.add("a hidden size of 0");
  if (plan.layers.empty()) found.add("no layers");
  if (plan.sizes().dispatch_row != sizes.dispatch_row ||
      plan.sizes().combine_row != sizes.combine_row) {
    found.add("rows of {} and {} bytes, where hidden size {} makes {} and {}",
              plan.sizes().dispatch_row.value, plan.sizes().combine_row.value, plan.hidden,
              sizes.dispatch_row.value, sizes.combine_row.value);
  }
  for (const LayerPlan& layer : plan.layers) {
    const PlanCheck one = check_plan(layer, sizes);
    for (const std::string& violation : one.violations) {
      if (result.violations.size() == kMaxViolations) break;
      result.violations.push_back(fmt::format("layer {}: {}", layer.layer, violation));
    }
    result.num_violations += one.num_violations;
    result.totals.num_tokens += one.totals.num_tokens;
    result.totals.num_copies += one.totals.num_copies;
    result.totals.num_rows += one.totals.num_rows;
    result.totals.num_remote_rows += one.totals.num_remote_rows;
    result.totals.dispatch_bytes += one.totals.dispatch_bytes;
    result.totals.combine_bytes += one.totals.combine_bytes;
  }
  return result;
}

}  // namespace coterie
