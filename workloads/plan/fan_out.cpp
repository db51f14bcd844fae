// What a placement makes of a routing, counted without planning it: one pass over the tokens.
//
// Up to 64 ranks a token's destinations are the OR of one mask per expert and the counts are
// population counts. Beyond, ranks and nodes carry the number of the last token that hit them, so
// that a first hit is one comparison. Replicated experts take the second way with the host chosen
// per token.

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/plan/host_choice.hpp"

namespace coterie {
namespace {

// Sums over all tokens.
struct Totals {
  std::uint64_t ranks = 0;            // distinct ranks
  std::uint64_t own_rank = 0;         // tokens that hit their own rank
  std::uint64_t own_node_ranks = 0;   // distinct ranks inside the own node
  std::uint64_t rail_ranks = 0;       // distinct ranks of the own local index, own rank included
  std::uint64_t nodes = 0;            // distinct nodes
  std::uint64_t own_node = 0;         // tokens that hit their own node
  std::uint64_t copies_own_rank = 0;  // (token, expert) pairs
  std::uint64_t copies_own_node = 0;
  std::uint64_t copies_rail = 0;         // on ranks of the own local index
  std::vector<std::uint64_t> rank_load;  // [num_ranks]
};

struct Job {
  std::span<const ExpertIdx> experts;  // [trace tokens][num_topk]
  std::uint32_t num_experts;
  std::uint32_t num_topk;
  std::uint32_t num_ranks;
  std::uint32_t ranks_per_node;
  const RankTokens& tokens;
  const ExpertHosts& hosts;
  const HostChooser& chooser;
};

// Adds the pairs of one source rank, counted per expert. Experts with one host only.
void add_copies(const Job& job, std::uint32_t rank, std::span<const std::uint64_t> expert_count,
                Totals& totals) {
  for (std::uint32_t expert = 0; expert < job.num_experts; ++expert) {
    const std::uint64_t count = expert_count[expert];
    const std::uint32_t host = job.hosts.ranks[expert];
    totals.rank_load[host] += count;
    if (host == rank) totals.copies_own_rank += count;
    if (host / job.ranks_per_node == rank / job.ranks_per_node) totals.copies_own_node += count;
    if (host % job.ranks_per_node == rank % job.ranks_per_node) totals.copies_rail += count;
  }
}

// `kTopk` > 0 fixes the number of experts per token at compile time, so that the loop unrolls.
// Inlined, so that it is compiled for the instructions of the function that calls it.
template <std::uint32_t kTopk>
[[gnu::always_inline]] inline Totals count_masks(const Job& job) {
  const std::uint32_t num_topk = kTopk > 0 ? kTopk : job.num_topk;
  struct Masks {
    std::uint64_t rank;
    std::uint64_t node;
  };
  std::vector<Masks> masks(job.num_experts);
  for (std::uint32_t expert = 0; expert < job.num_experts; ++expert) {
    const std::uint32_t rank = job.hosts.ranks[expert];
    masks[expert] = {std::uint64_t{1} << rank, std::uint64_t{1} << (rank / job.ranks_per_node)};
  }
  Totals totals;
  totals.rank_load.assign(job.num_ranks, 0);
  // Two histograms in turn: equal neighbours would otherwise wait for each other's store.
  std::vector<std::uint64_t> counts(2 * std::size_t{job.num_experts});
  for (std::uint32_t rank = 0; rank < job.num_ranks; ++rank) {
    const std::uint32_t node = rank / job.ranks_per_node;
    const std::uint64_t own = std::uint64_t{1} << rank;
    std::uint64_t own_node = 0;
    std::uint64_t rail = 0;
    for (std::uint32_t other = 0; other < job.num_ranks; ++other) {
      if (other / job.ranks_per_node == node) own_node |= std::uint64_t{1} << other;
      if (other % job.ranks_per_node == rank % job.ranks_per_node) {
        rail |= std::uint64_t{1} << other;
      }
    }
    std::fill(counts.begin(), counts.end(), 0);
    std::uint64_t* const even = counts.data();
    std::uint64_t* const odd = counts.data() + job.num_experts;
    const std::uint64_t end = job.tokens.token_begin[rank + 1];
    for (std::uint64_t t = job.tokens.token_begin[rank]; t < end; ++t) {
      const ExpertIdx* const chosen = job.experts.data() + job.tokens.trace_token[t] * num_topk;
      Masks hit{0, 0};
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        const ExpertIdx expert = chosen[j];
        hit.rank |= masks[expert].rank;
        hit.node |= masks[expert].node;
        ++((t & 1) != 0 ? odd : even)[expert];
      }
      const auto count = [](std::uint64_t mask) {
        return static_cast<std::uint64_t>(std::popcount(mask));
      };
      totals.ranks += count(hit.rank);
      totals.own_rank += (hit.rank & own) != 0 ? 1 : 0;
      totals.own_node_ranks += count(hit.rank & own_node);
      totals.rail_ranks += count(hit.rank & rail);
      totals.nodes += count(hit.node);
      totals.own_node += (hit.node >> node) & 1;
    }
    for (std::uint32_t expert = 0; expert < job.num_experts; ++expert) {
      even[expert] += odd[expert];
    }
    add_copies(job, rank, std::span(counts).first(job.num_experts), totals);
  }
  return totals;
}

template <std::uint32_t kTopk>
Totals count_with_masks(const Job& job) {
  return count_masks<kTopk>(job);
}

// The same with the processor's population count, which the oldest processors of the architecture
// lack, so that the compiler must not use it unasked.
#if defined(__x86_64__) && defined(__GNUC__)
bool has_population_count() {
  return __builtin_cpu_supports("popcnt") != 0;
}
template <std::uint32_t kTopk>
[[gnu::target("popcnt")]] Totals count_with_popcnt(const Job& job) {
  return count_masks<kTopk>(job);
}
#else
bool has_population_count() {
  return false;
}
template <std::uint32_t kTopk>
Totals count_with_popcnt(const Job& job) {
  return count_masks<kTopk>(job);
}
#endif

template <std::uint32_t kTopk>
Totals count_up_to_64_ranks(const Job& job) {
  static const bool kHardware = has_population_count();
  return kHardware ? count_with_popcnt<kTopk>(job) : count_with_masks<kTopk>(job);
}

template <bool kReplicated>
Totals count_with_stamps(const Job& job) {
  Totals totals;
  totals.rank_load.assign(job.num_ranks, 0);
  const std::uint32_t num_nodes = (job.num_ranks + job.ranks_per_node - 1) / job.ranks_per_node;
  std::vector<std::uint64_t> rank_stamp(job.num_ranks, 0);  // token + 1 of the last hit
  std::vector<std::uint64_t> node_stamp(num_nodes, 0);
  std::vector<std::uint32_t> node_of(job.num_ranks);
  for (std::uint32_t rank = 0; rank < job.num_ranks; ++rank) {
    node_of[rank] = rank / job.ranks_per_node;
  }
  std::vector<std::uint64_t> counts(job.num_experts);
  std::vector<std::uint32_t> served(job.num_topk);
  for (std::uint32_t rank = 0; rank < job.num_ranks; ++rank) {
    const std::uint32_t node = node_of[rank];
    if constexpr (!kReplicated) std::fill(counts.begin(), counts.end(), 0);
    const std::uint64_t end = job.tokens.token_begin[rank + 1];
    for (std::uint64_t t = job.tokens.token_begin[rank]; t < end; ++t) {
      const auto chosen =
          job.experts.subspan(job.tokens.trace_token[t] * job.num_topk, job.num_topk);
      if constexpr (kReplicated) {
        job.chooser.choose(chosen, {t, t - job.tokens.token_begin[rank], rank}, served);
      }
      for (std::uint32_t j = 0; j < job.num_topk; ++j) {
        const std::uint32_t host = kReplicated ? served[j] : job.hosts.ranks[chosen[j]];
        const std::uint64_t first_rank = rank_stamp[host] != t + 1 ? 1 : 0;
        const std::uint64_t first_node = node_stamp[node_of[host]] != t + 1 ? 1 : 0;
        rank_stamp[host] = t + 1;
        node_stamp[node_of[host]] = t + 1;
        totals.ranks += first_rank;
        totals.nodes += first_node;
        totals.own_node_ranks += node_of[host] == node ? first_rank : 0;
        const bool on_rail =
            host - node_of[host] * job.ranks_per_node == rank - node * job.ranks_per_node;
        totals.rail_ranks += on_rail ? first_rank : 0;
        if constexpr (kReplicated) {
          ++totals.rank_load[host];
          totals.copies_own_rank += host == rank ? 1 : 0;
          totals.copies_own_node += node_of[host] == node ? 1 : 0;
          totals.copies_rail += on_rail ? 1 : 0;
        } else {
          ++counts[chosen[j]];
        }
      }
      totals.own_rank += rank_stamp[rank] == t + 1 ? 1 : 0;
      totals.own_node += node_stamp[node] == t + 1 ? 1 : 0;
    }
    if constexpr (!kReplicated) add_copies(job, rank, counts, totals);
  }
  return totals;
}

Totals count(const Job& job) {
  if (job.hosts.replicated()) return count_with_stamps<true>(job);
  if (job.num_ranks > 64) return count_with_stamps<false>(job);
  switch (job.num_topk) {
    case 2:
      return count_up_to_64_ranks<2>(job);
    case 4:
      return count_up_to_64_ranks<4>(job);
    case 6:
      return count_up_to_64_ranks<6>(job);
    case 8:
      return count_up_to_64_ranks<8>(job);
    default:
      return count_up_to_64_ranks<0>(job);
  }
}

}  // namespace

double uniform_fan_out(std::uint32_t num_experts, std::uint32_t num_ranks, std::uint32_t num_topk) {
  double sum = 0.0;
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    const std::uint32_t hosted =
        num_experts / num_ranks + (rank < num_experts % num_ranks ? 1u : 0u);
    double missed = 1.0;  // C(E - e, k) / C(E, k)
    for (std::uint32_t j = 0; j < num_topk && missed > 0.0; ++j) {
      missed *= num_experts >= hosted + j ? static_cast<double>(num_experts - hosted - j) /
                                                static_cast<double>(num_experts - j)
                                          : 0.0;
    }
    sum += 1.0 - missed;
  }
  return sum;
}

FanOut fan_out(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
               std::uint32_t ranks_per_node, const RankTokens& tokens, ReplicaChoice choice) {
  const std::size_t num_ranks = placement.rank_experts.size();
  if (num_ranks + 1 != tokens.token_begin.size()) {
    throw InputError(fmt::format("placement of layer {}: found {}, expected {} as the tokens",
                                 placement.layer, counted(num_ranks, "rank"),
                                 tokens.token_begin.size() - 1));
  }
  if (layer_idx >= routing.num_layers()) {
    throw InputError(fmt::format("layer position {}: the trace has {}", layer_idx,
                                 counted(routing.num_layers(), "layer")));
  }
  if (ranks_per_node == 0) throw InputError("ranks per node: found 0, expected at least 1");
  const ExpertHosts hosts = expert_hosts(placement, routing.num_experts);
  const HostChooser chooser(hosts, choice, static_cast<std::uint32_t>(num_ranks), ranks_per_node);
  const Job job{routing.layer_experts(layer_idx),
                routing.num_experts,
                routing.num_topk,
                static_cast<std::uint32_t>(num_ranks),
                ranks_per_node,
                tokens,
                hosts,
                chooser};
  const std::uint64_t num_tokens = tokens.token_begin.back();
  if (num_tokens == 0) return {};
  const Totals totals = count(job);

  const auto per_token = [&](std::uint64_t sum) {
    return static_cast<double>(sum) / static_cast<double>(num_tokens);
  };
  const std::uint64_t copies = num_tokens * routing.num_topk;
  FanOut result;
  result.copies = static_cast<double>(routing.num_topk);
  result.fanout_ranks = per_token(totals.ranks);
  result.remote_fanout_ranks = per_token(totals.ranks - totals.own_rank);
  result.fanout_nodes = per_token(totals.nodes);
  result.remote_fanout_nodes = per_token(totals.nodes - totals.own_node);
  const std::uint64_t max_load =
      *std::max_element(totals.rank_load.begin(), totals.rank_load.end());
  result.rank_load_max_over_mean =
      static_cast<double>(max_load) * static_cast<double>(num_ranks) / static_cast<double>(copies);
  result.standard = {per_token(totals.copies_own_rank),
                     per_token(totals.copies_own_node - totals.copies_own_rank),
                     per_token(copies - totals.copies_own_node)};
  result.dedup = {per_token(totals.own_rank), per_token(totals.own_node_ranks - totals.own_rank),
                  per_token(totals.ranks - totals.own_node_ranks)};
  // Stage 0 brings one row to each node, at the rank of the own local index; stage 1 moves on to
  // every rank of another local index.
  const std::uint64_t remote_nodes = totals.nodes - totals.own_node;
  result.hierarchical = {per_token(totals.own_node + totals.rail_ranks),
                         per_token(totals.ranks - totals.rail_ranks), per_token(remote_nodes)};
  result.hierarchical_copies = {per_token(totals.copies_own_node + totals.copies_rail),
                                per_token(copies - totals.copies_rail), result.standard.network};
  return result;
}

}  // namespace coterie
