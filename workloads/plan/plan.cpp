// What all policies share: names, sizes, and the plan around the stages.

#include "workloads/plan/plan.hpp"

#include <algorithm>
#include <limits>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "workloads/plan/host_choice.hpp"
#include "workloads/plan/large_column.hpp"
#include "workloads/plan/policies.hpp"
#include "workloads/plan/schedule.hpp"

namespace coterie {

namespace {

const PolicyEntry& policy_entry(DispatchPolicy policy) {
  for (const PolicyEntry& entry : policy_registry()) {
    if (entry.policy == policy) return entry;
  }
  throw Error(ExitCode::kInternalError, "a dispatch policy is missing from the registry");
}

}  // namespace

std::string to_string(DispatchPolicy policy) {
  return std::string(policy_entry(policy).name);
}

std::optional<DispatchPolicy> parse_policy(std::string_view name) {
  for (const PolicyEntry& entry : policy_registry()) {
    if (entry.name == name) return entry.policy;
  }
  return std::nullopt;
}

std::string to_string(HopKind hop) {
  constexpr const char* kNames[] = {"group", "rail", "node"};
  return kNames[static_cast<std::size_t>(hop)];
}

Bytes dispatch_bytes(const Stage& stage, std::size_t transfer_idx, const PayloadSizes& sizes) {
  return sizes.dispatch(stage.num_rows[transfer_idx], stage.num_copies[transfer_idx]);
}

Bytes combine_bytes(const Stage& stage, std::size_t transfer_idx, const PayloadSizes& sizes) {
  return sizes.combine(stage.num_rows[transfer_idx]);
}

std::uint64_t round_begin(std::span<const std::uint64_t> token_begin, std::uint32_t rank,
                          std::uint32_t round, std::uint32_t num_rounds) {
  const std::uint64_t num_tokens = token_begin[rank + 1] - token_begin[rank];
  return token_begin[rank] + num_tokens * round / num_rounds;
}

namespace {

void check_request(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
                   const RankTokens& tokens, const PlanRequest& request) {
  const std::size_t num_ranks = placement.rank_experts.size();
  if (layer_idx >= routing.num_layers()) {
    throw InputError(
        fmt::format("plan: found layer position {}, expected less than {}, the "
                    "number of layers of the trace",
                    layer_idx, routing.num_layers()));
  }
  if (num_ranks == 0 || tokens.token_begin.size() != num_ranks + 1) {
    throw InputError(
        fmt::format("plan: found a placement over {} and tokens for {}, "
                    "expected the same number of ranks",
                    counted(num_ranks, "rank"),
                    tokens.token_begin.empty() ? 0 : tokens.token_begin.size() - 1));
  }
  if (request.ranks_per_node == 0 || num_ranks % request.ranks_per_node != 0) {
    throw InputError(fmt::format("plan: found {} and {} per node, expected whole nodes",
                                 counted(num_ranks, "rank"),
                                 counted(request.ranks_per_node, "rank")));
  }
  // Rows hold 32-bit token positions.
  if (tokens.token_begin.back() > std::numeric_limits<std::uint32_t>::max()) {
    throw InputError(fmt::format("plan: found {} in one layer, expected at most 2^32 - 1",
                                 counted(tokens.token_begin.back(), "token")));
  }
  if (tokens.trace_token.size() != tokens.token_begin.back() ||
      std::any_of(tokens.trace_token.begin(), tokens.trace_token.end(),
                  [&](std::uint64_t token) { return token >= routing.num_tokens(); })) {
    throw InputError("plan: the ranks' tokens do not fit the trace they were dealt from");
  }
  if (routing.num_topk == 0 || routing.num_topk > kMaxTopk) {
    throw InputError(
        fmt::format("plan: found top-{}, expected 1 to {}", routing.num_topk, kMaxTopk));
  }
}

// The trace's tokens as the ranks own them, [num_tokens][num_topk].
template <class T>
std::vector<T> gather(std::span<const T> layer, const RankTokens& tokens, std::uint32_t num_topk) {
  std::vector<T> result;
  reserve_large(result, tokens.trace_token.size() * num_topk);
  for (const std::uint64_t token : tokens.trace_token) {
    const T* const first = layer.data() + token * num_topk;
    result.insert(result.end(), first, first + num_topk);
  }
  return result;
}

// Chooses the serving rank of every (token, expert) and counts the tokens of every hosted expert.
class Assignment {
 public:
  Assignment(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
             const RankTokens& tokens, const PlanRequest& request, LayerPlan& plan)
      : experts_(routing.layer_experts(layer_idx)),
        hosts_(expert_hosts(placement, routing.num_experts)),
        tokens_(tokens),
        chooser_(hosts_, request.replica_choice, plan.num_ranks, request.ranks_per_node),
        plan_(plan) {
    list_slots(placement);
    reserve_large(serving_, tokens.trace_token.size() * plan.num_topk);
    serving_.resize(tokens.trace_token.size() * plan.num_topk);
    if (hosts_.replicated()) {
      assign_replicated();
    } else {
      assign_single();
    }
  }
  std::vector<std::uint32_t> take() && { return std::move(serving_); }

 private:
  // The slots of the plan (rank, hosted expert), and the slot of every entry of hosts_.ranks.
  void list_slots(const LayerPlacement& placement) {
    slot_of_host_.resize(hosts_.ranks.size());
    std::vector<std::uint32_t> next(hosts_.begin.begin(), hosts_.begin.end() - 1);
    plan_.rank_expert_begin.push_back(0);
    for (const std::vector<ExpertIdx>& experts : placement.rank_experts) {
      for (const ExpertIdx expert : experts) {
        // Ranks come in ascending order here as in the list of an expert's hosts.
        slot_of_host_[next[expert]++] = static_cast<std::uint32_t>(plan_.rank_experts.size());
        plan_.rank_experts.push_back(expert);
      }
      plan_.rank_expert_begin.push_back(static_cast<std::uint32_t>(plan_.rank_experts.size()));
    }
    plan_.rank_expert_tokens.resize(plan_.rank_experts.size());
    for (std::uint32_t expert = 0; expert < plan_.num_experts; ++expert) {
      if (hosts_.begin[expert] == hosts_.begin[expert + 1]) {
        throw InputError(
            fmt::format("plan of layer {}: expert {} is hosted by no rank, expected "
                        "at least one",
                        plan_.layer, expert));
      }
    }
  }

  const ExpertIdx* experts_of(std::uint64_t token) const {
    const ExpertIdx* const experts = experts_.data() + tokens_.trace_token[token] * plan_.num_topk;
    for (std::uint32_t j = 0; j < plan_.num_topk; ++j) {
      if (experts[j] >= plan_.num_experts) {
        throw InputError(
            fmt::format("plan of layer {}: token {} chooses expert {}, expected less "
                        "than {}",
                        plan_.layer, tokens_.trace_token[token], experts[j], plan_.num_experts));
      }
    }
    return experts;
  }

  void assign_single() {
    const std::uint32_t num_topk = plan_.num_topk;
    // Two histograms in turn: equal neighbours would otherwise wait for each other's store.
    std::vector<std::uint64_t> histograms(std::size_t{2} * plan_.num_experts);
    for (std::uint64_t token = 0; token < tokens_.trace_token.size(); ++token) {
      const ExpertIdx* const experts = experts_of(token);
      std::uint64_t* const counts = histograms.data() + (token % 2) * plan_.num_experts;
      std::uint32_t* const serving = serving_.data() + token * num_topk;
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        serving[j] = hosts_.ranks[experts[j]];
        ++counts[experts[j]];
      }
    }
    for (std::uint32_t expert = 0; expert < plan_.num_experts; ++expert) {
      plan_.rank_expert_tokens[slot_of_host_[expert]] =
          histograms[expert] + histograms[plan_.num_experts + expert];
    }
  }

  void assign_replicated() {
    const std::uint32_t num_topk = plan_.num_topk;
    for (std::uint32_t source = 0; source < plan_.num_ranks; ++source) {
      const std::uint64_t end = plan_.token_begin[source + 1];
      for (std::uint64_t token = plan_.token_begin[source]; token < end; ++token) {
        const std::span experts(experts_of(token), num_topk);
        const std::span serving = std::span(serving_).subspan(token * num_topk, num_topk);
        chooser_.choose(experts, {token, token - plan_.token_begin[source], source}, serving);
        for (std::uint32_t j = 0; j < num_topk; ++j) {
          std::uint32_t host = hosts_.begin[experts[j]];
          while (hosts_.ranks[host] != serving[j]) ++host;
          ++plan_.rank_expert_tokens[slot_of_host_[host]];
        }
      }
    }
  }

  std::span<const ExpertIdx> experts_;
  ExpertHosts hosts_;
  const RankTokens& tokens_;
  HostChooser chooser_;
  LayerPlan& plan_;
  std::vector<std::uint32_t> slot_of_host_;
  std::vector<std::uint32_t> serving_;
};

}  // namespace

std::uint32_t rows_per_round(Bytes chunk, Bytes row) {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(
      chunk.value / (row.value + kRowMetadataBytes), 1, std::numeric_limits<std::uint32_t>::max()));
}

LayerPlan make_plan(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
                    const RankTokens& tokens, const PlanRequest& request) {
  check_request(routing, layer_idx, placement, tokens, request);
  LayerPlan plan;
  plan.policy = request.policy;
  plan.layer = routing.layers[layer_idx];
  plan.num_ranks = static_cast<std::uint32_t>(placement.rank_experts.size());
  plan.ranks_per_node = request.ranks_per_node;
  plan.num_experts = routing.num_experts;
  plan.num_topk = routing.num_topk;
  plan.token_begin = tokens.token_begin;

  const std::vector<std::uint32_t> serving =
      Assignment(routing, layer_idx, placement, tokens, request, plan).take();
  const PolicyEntry& policy = policy_entry(request.policy);
  if (policy.num_rounds != nullptr) plan.num_rounds = policy.num_rounds(plan, request);
  std::vector<std::uint64_t> part_begin;
  for (std::uint32_t rank = 0; rank < plan.num_ranks; ++rank) {
    for (std::uint32_t round = 0; round < plan.num_rounds; ++round) {
      part_begin.push_back(round_begin(plan.token_begin, rank, round, plan.num_rounds));
    }
  }
  part_begin.push_back(plan.num_tokens());
  plan.stages = policy.plan({plan.num_ranks, plan.ranks_per_node, plan.num_topk, plan.num_rounds,
                             request.detail, part_begin, serving});
  for (Stage& stage : plan.stages) order_answers(plan.num_ranks, plan.num_rounds, stage);
  if (request.detail == PlanDetail::kRows) {
    plan.experts = gather(routing.layer_experts(layer_idx), tokens, plan.num_topk);
    if (!routing.weights.empty()) {
      plan.weights = gather(routing.layer_weights(layer_idx), tokens, plan.num_topk);
    }
  }
  return plan;
}

}  // namespace coterie
