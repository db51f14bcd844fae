#include "runtime/executor/layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/error.hpp"
#include "workloads/plan/schedule.hpp"

namespace coterie {
namespace {

constexpr std::uint16_t kUnserved = std::numeric_limits<std::uint16_t>::max();

Hop make_hop(const LayerPlan& plan, std::uint32_t rank, std::size_t stage_idx) {
  const Stage& stage = plan.stages[stage_idx];
  const HopPeers peers = hop_peers(plan, stage.hop, rank);
  Hop hop;
  hop.first_dest = peers.own;
  hop.recv_self = peers.own;
  for (std::uint32_t p = 0; p < peers.num_peers; ++p) {
    hop.send_ranks.push_back(peers.rank_of((peers.own + p) % peers.num_peers));
    hop.recv_ranks.push_back(peers.rank_of(p));
  }
  const std::vector<kernels::BlockCounts> none(peers.num_peers, {0, 0});
  hop.rounds.resize(plan.num_rounds);
  for (HopRound& round : hop.rounds) round.send = round.recv = none;
  const auto number_of = [&](std::uint32_t other) {
    const auto number = peers.number_of(other);
    if (!number) {
      throw InputError(fmt::format("dispatch plan, layer {}, stage {}", plan.layer, stage_idx),
                       fmt::format("a transfer between ranks {} and {}", rank, other),
                       fmt::format("transfers that a hop of kind {} has", to_string(stage.hop)));
    }
    return *number;
  };
  for (const PlanMessage& message : stage_messages(stage, Direction::kDispatch)) {
    HopRound& round = hop.rounds[message.round];
    if (message.src == rank) {
      const std::uint32_t number = number_of(message.dst);
      const std::uint32_t place = (number + peers.num_peers - peers.own) % peers.num_peers;
      round.send[place] = {message.num_rows, message.num_copies};
      round.num_send_rows += message.num_rows;
      round.num_send_copies += message.num_copies;
    }
    if (message.dst == rank) {
      round.recv[number_of(message.src)] = {message.num_rows, message.num_copies};
      round.num_recv_rows += message.num_rows;
      round.num_recv_copies += message.num_copies;
    }
  }
  for (HopRound& round : hop.rounds) {
    round.send_row_begin = hop.num_send_rows;
    round.send_copy_begin = hop.num_send_copies;
    round.recv_row_begin = hop.num_recv_rows;
    round.recv_copy_begin = hop.num_recv_copies;
    hop.num_send_rows += round.num_send_rows;
    hop.num_send_copies += round.num_send_copies;
    hop.num_recv_rows += round.num_recv_rows;
    hop.num_recv_copies += round.num_recv_copies;
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

namespace {

// The number under which a hop addresses the rows for `host`. It is the same at all ranks that can
// send them there: on a rail the host's node stands for it.
std::uint16_t destination_of(const LayerPlan& plan, HopKind hop, std::uint32_t host) {
  return static_cast<std::uint16_t>(hop_peers(plan, hop, host).own);
}

}  // namespace

RankLayout make_rank_layout(const LayerPlan& plan, std::uint32_t rank) {
  if (!plan.has_rows()) {
    throw InputError(fmt::format("dispatch plan, layer {}", plan.layer), "counts only",
                     "a plan with rows");
  }
  if (plan.num_ranks % plan.ranks_per_node != 0) {
    throw InputError(fmt::format("dispatch plan, layer {}", plan.layer),
                     fmt::format("{} ranks on nodes of {}", plan.num_ranks, plan.ranks_per_node),
                     "full nodes");
  }
  RankLayout layout;
  layout.rank = rank;
  layout.policy = plan.policy;
  layout.num_tokens =
      static_cast<std::uint32_t>(plan.token_begin[rank + 1] - plan.token_begin[rank]);
  layout.num_topk = plan.num_topk;
  for (std::uint32_t round = 0; round <= plan.num_rounds; ++round) {
    layout.round_begin.push_back(static_cast<std::uint32_t>(
        round_begin(plan.token_begin, rank, round, plan.num_rounds) - plan.token_begin[rank]));
  }
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
      for (std::size_t h = 0; h < layout.hops.size(); ++h) {
        layout.hops[h].slot_dest.push_back(destination_of(plan, plan.stages[h].hop, host));
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
  const auto first_token = static_cast<std::uint32_t>(plan.token_begin[layout.rank]);
  // The plan lists the rank's rows in the order in which the device builds them: round by round, in
  // a round by send position.
  std::size_t built = 0;
  for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
    if (stage.src[t] != layout.rank) continue;
    for (std::uint64_t row = stage.row_begin[t]; row < stage.row_begin[t + 1]; ++row, ++built) {
      if (row_item[built] + first_token == stage.row_token[row] &&
          row_mask[built] == stage.row_mask[row]) {
        continue;
      }
      return fmt::format(
          "layer {}: row {} from rank {} to rank {} in round {} is token {} mask {:#x} on the "
          "device, but token {} mask {:#x} in the plan",
          plan.layer, row - stage.row_begin[t], layout.rank, stage.dst[t], stage.round[t],
          row_item[built] + first_token, row_mask[built], stage.row_token[row],
          stage.row_mask[row]);
    }
  }
  return std::nullopt;
}

}  // namespace coterie
