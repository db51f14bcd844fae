#include "runtime/executor/layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/error.hpp"

namespace coterie {
namespace {

constexpr std::uint16_t kUnserved = std::numeric_limits<std::uint16_t>::max();

// How the ranks of a hop number their destinations.
struct Numbering {
  std::uint32_t num_dests = 1;
  std::uint32_t own = 0;     // this rank's own destination number
  std::uint32_t stride = 1;  // rank = first + number * stride
  std::uint32_t first = 0;
  [[nodiscard]] std::uint32_t rank_of(std::uint32_t number) const {
    return first + number * stride;
  }
};

Numbering numbering(const LayerPlan& plan, std::uint32_t rank, std::size_t stage_idx) {
  if (plan.policy != DispatchPolicy::kHierarchical) return {plan.num_ranks, rank, 1, 0};
  const std::uint32_t node = rank / plan.ranks_per_node;
  const std::uint32_t local = rank % plan.ranks_per_node;
  if (stage_idx == 0) {
    return {plan.num_ranks / plan.ranks_per_node, node, plan.ranks_per_node, local};
  }
  return {plan.ranks_per_node, local, 1, node * plan.ranks_per_node};
}

Hop make_hop(const LayerPlan& plan, std::uint32_t rank, std::size_t stage_idx) {
  const Numbering numbers = numbering(plan, rank, stage_idx);
  Hop hop;
  hop.first_dest = numbers.own;
  for (std::uint32_t p = 0; p < numbers.num_dests; ++p) {
    hop.send_ranks.push_back(numbers.rank_of((numbers.own + p) % numbers.num_dests));
    hop.recv_ranks.push_back(numbers.rank_of(p));
  }
  hop.recv_self = numbers.own;
  hop.send.resize(numbers.num_dests);
  hop.recv.resize(numbers.num_dests);
  const auto number_of = [&](std::uint32_t other) {
    const std::uint32_t number = (other - numbers.first) / numbers.stride;
    if (other < numbers.first || number >= numbers.num_dests || numbers.rank_of(number) != other) {
      throw InputError(fmt::format("dispatch plan, layer {}, stage {}", plan.layer, stage_idx),
                       fmt::format("a transfer between ranks {} and {}", rank, other),
                       "transfers between ranks that this policy connects");
    }
    return number;
  };
  const auto add = [&](kernels::BlockCounts& counts, const Stage& stage, std::size_t t) {
    counts.num_rows += stage.num_rows[t];
    counts.num_copies += stage.num_copies[t];
  };
  const Stage& stage = plan.stages[stage_idx];
  for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
    if (stage.src[t] == rank) {
      const std::uint32_t number = number_of(stage.dst[t]);
      add(hop.send[(number + numbers.num_dests - numbers.own) % numbers.num_dests], stage, t);
      hop.num_send_rows += stage.num_rows[t];
      hop.num_send_copies += stage.num_copies[t];
    }
    if (stage.dst[t] == rank) {
      add(hop.recv[number_of(stage.src[t])], stage, t);
      hop.num_recv_rows += stage.num_rows[t];
      hop.num_recv_copies += stage.num_copies[t];
    }
  }
  return hop;
}

// The last stage's rows name the rank that serves each copy of this rank's tokens.
void assign_slots(const LayerPlan& plan, RankLayout& layout) {
  const std::uint64_t first_token = plan.token_begin[layout.rank];
  const std::uint64_t last_token = plan.token_begin[layout.rank + 1];
  layout.token_slots.assign(std::size_t{layout.num_tokens} * layout.num_topk, kUnserved);
  const Stage& stage = plan.stages.back();
  for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
    const std::uint32_t host = stage.dst[t];
    const auto begin = plan.rank_experts.begin() + plan.rank_expert_begin[host];
    const auto end = plan.rank_experts.begin() + plan.rank_expert_begin[host + 1];
    for (std::uint64_t row = stage.row_begin[t]; row < stage.row_begin[t + 1]; ++row) {
      const std::uint64_t token = stage.row_token[row];
      if (token < first_token || token >= last_token) continue;
      for (std::uint32_t j = 0; j < plan.num_topk; ++j) {
        if (((stage.row_mask[row] >> j) & 1U) == 0) continue;
        const ExpertIdx expert = plan.experts[token * plan.num_topk + j];
        const auto at = std::lower_bound(begin, end, expert);
        if (at == end || *at != expert) {
          throw InputError(fmt::format("dispatch plan, layer {}", plan.layer),
                           fmt::format("a copy for expert {} sent to rank {}", expert, host),
                           "a rank that hosts the expert");
        }
        layout.token_slots[(token - first_token) * plan.num_topk + j] =
            static_cast<std::uint16_t>(at - plan.rank_experts.begin());
      }
    }
  }
  if (std::find(layout.token_slots.begin(), layout.token_slots.end(), kUnserved) !=
      layout.token_slots.end()) {
    throw InputError(
        fmt::format("dispatch plan, layer {}", plan.layer),
        fmt::format("a token of rank {} with an expert that no row serves", layout.rank),
        "every expert of every token served");
  }
}

}  // namespace

RankLayout make_rank_layout(const LayerPlan& plan, std::uint32_t rank) {
  if (!plan.has_rows()) {
    throw InputError(fmt::format("dispatch plan, layer {}", plan.layer), "counts only",
                     "a plan with rows");
  }
  if (plan.policy == DispatchPolicy::kHierarchical && plan.num_ranks % plan.ranks_per_node != 0) {
    throw InputError(fmt::format("dispatch plan, layer {}", plan.layer),
                     fmt::format("{} ranks on nodes of {}", plan.num_ranks, plan.ranks_per_node),
                     "full nodes for the hierarchical policy");
  }
  RankLayout layout;
  layout.rank = rank;
  layout.policy = plan.policy;
  layout.num_tokens =
      static_cast<std::uint32_t>(plan.token_begin[rank + 1] - plan.token_begin[rank]);
  layout.num_topk = plan.num_topk;
  assign_slots(plan, layout);
  if (plan.weights.empty()) {
    layout.token_weights.assign(layout.token_slots.size(),
                                1.0F / static_cast<float>(plan.num_topk));
  } else {
    const auto begin =
        plan.weights.begin() + static_cast<std::ptrdiff_t>(plan.token_begin[rank] * plan.num_topk);
    layout.token_weights.assign(begin,
                                begin + static_cast<std::ptrdiff_t>(layout.token_slots.size()));
  }

  for (std::size_t stage_idx = 0; stage_idx < plan.stages.size(); ++stage_idx) {
    layout.hops.push_back(make_hop(plan, rank, stage_idx));
  }
  for (std::uint32_t host = 0; host < plan.num_ranks; ++host) {
    for (std::uint32_t slot = plan.rank_expert_begin[host]; slot < plan.rank_expert_begin[host + 1];
         ++slot) {
      layout.slot_expert.push_back(plan.rank_experts[slot]);
      layout.slot_local.push_back(static_cast<std::uint16_t>(slot - plan.rank_expert_begin[host]));
      if (plan.policy == DispatchPolicy::kHierarchical) {
        layout.hops[0].slot_dest.push_back(static_cast<std::uint16_t>(host / plan.ranks_per_node));
        layout.hops[1].slot_dest.push_back(static_cast<std::uint16_t>(host % plan.ranks_per_node));
      } else {
        layout.hops[0].slot_dest.push_back(static_cast<std::uint16_t>(host));
      }
    }
  }
  layout.first_local_slot = plan.rank_expert_begin[rank];
  layout.expert_begin.push_back(0);
  for (std::uint32_t slot = plan.rank_expert_begin[rank]; slot < plan.rank_expert_begin[rank + 1];
       ++slot) {
    layout.local_experts.push_back(plan.rank_experts[slot]);
    layout.expert_begin.push_back(layout.expert_begin.back() +
                                  static_cast<std::uint32_t>(plan.rank_expert_tokens[slot]));
  }
  if (layout.expert_begin.back() != layout.hops.back().num_recv_copies) {
    throw InputError(
        fmt::format("dispatch plan, layer {}", plan.layer),
        fmt::format("{} copies that reach rank {} but {} that its experts serve",
                    layout.hops.back().num_recv_copies, rank, layout.expert_begin.back()),
        "equal numbers");
  }
  return layout;
}

std::optional<std::string> compare_with_plan(const LayerPlan& plan, const RankLayout& layout,
                                             const std::vector<std::uint32_t>& row_item,
                                             const std::vector<std::uint32_t>& row_mask) {
  const Stage& stage = plan.stages.front();
  const Hop& hop = layout.hops.front();
  std::vector<std::size_t> block_begin{0};
  for (const kernels::BlockCounts& counts : hop.send) {
    block_begin.push_back(block_begin.back() + counts.num_rows);
  }
  const auto first_token = static_cast<std::uint32_t>(plan.token_begin[layout.rank]);
  for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
    if (stage.src[t] != layout.rank) continue;
    const auto position = static_cast<std::size_t>(
        std::find(hop.send_ranks.begin(), hop.send_ranks.end(), stage.dst[t]) -
        hop.send_ranks.begin());
    for (std::uint64_t i = 0; i < stage.num_rows[t]; ++i) {
      const std::uint64_t row = stage.row_begin[t] + i;
      const std::size_t built = block_begin[position] + i;
      if (row_item[built] + first_token == stage.row_token[row] &&
          row_mask[built] == stage.row_mask[row]) {
        continue;
      }
      return fmt::format(
          "layer {}: row {} from rank {} to rank {} is token {} mask {:#x} on the device, but "
          "token "
          "{} mask {:#x} in the plan",
          plan.layer, i, layout.rank, stage.dst[t], row_item[built] + first_token, row_mask[built],
          stage.row_token[row], stage.row_mask[row]);
    }
  }
  return std::nullopt;
}

}  // namespace coterie
