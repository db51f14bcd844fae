#pragma once
// Which of its hosts serves a replicated expert: the one rule that planning and counting share.

#include <cstdint>
#include <span>

#include "core/random.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {

// Writes the serving rank of each of a token's experts to `ranks` ([num_topk], as `experts`).
//
// An expert with one host goes there. A replicated one goes to the token's own rank if that hosts
// it, else to a host in the token's own node (one the token goes to anyway if there is one, else by
// hash), else to a rank that the token goes to anyway (the lowest), else to one by hash of token
// and expert. Experts with one host, and those served in the own rank or node, are settled first,
// so that "anyway" does not depend on the router order more than it must; the rest follow in router
// order. `token` is the position in RankTokens.
inline void choose_hosts(const ExpertHosts& hosts, std::span<const ExpertIdx> experts,
                         std::uint64_t token, std::uint32_t own_rank, std::uint32_t ranks_per_node,
                         std::span<std::uint32_t> ranks) {
  constexpr std::uint32_t kOpen = 0xffffffffu;
  const auto of = [&](ExpertIdx expert) {
    return std::span(hosts.ranks)
        .subspan(hosts.begin[expert], hosts.begin[expert + 1] - hosts.begin[expert]);
  };
  const auto goes_to = [&](std::uint32_t rank) {
    for (const std::uint32_t taken : ranks) {
      if (taken == rank) return true;
    }
    return false;
  };
  const auto hash = [&](ExpertIdx expert, std::size_t num_choices) {
    return static_cast<std::size_t>(mix64(mix64(token) + expert) % num_choices);
  };

  bool open = false;
  for (std::size_t j = 0; j < experts.size(); ++j) {
    const auto choices = of(experts[j]);
    ranks[j] = choices.size() == 1 ? choices[0] : kOpen;
    for (const std::uint32_t rank : choices) {
      if (rank == own_rank) ranks[j] = own_rank;
    }
    open = open || ranks[j] == kOpen;
  }
  if (!open) return;

  const std::uint32_t node_begin = own_rank / ranks_per_node * ranks_per_node;
  for (std::size_t j = 0; j < experts.size(); ++j) {
    if (ranks[j] != kOpen) continue;
    // Hosts are ascending, so those of the own node are consecutive.
    const auto choices = of(experts[j]);
    std::size_t first = 0;
    while (first < choices.size() && choices[first] < node_begin) ++first;
    std::size_t last = first;
    while (last < choices.size() && choices[last] < node_begin + ranks_per_node) ++last;
    if (first == last) continue;
    std::uint32_t chosen = choices[first + hash(experts[j], last - first)];
    for (std::size_t i = last; i > first; --i) {
      if (goes_to(choices[i - 1])) chosen = choices[i - 1];
    }
    ranks[j] = chosen;
  }
  for (std::size_t j = 0; j < experts.size(); ++j) {
    if (ranks[j] != kOpen) continue;
    const auto choices = of(experts[j]);
    std::uint32_t chosen = choices[hash(experts[j], choices.size())];
    for (std::size_t i = choices.size(); i > 0; --i) {
      if (goes_to(choices[i - 1])) chosen = choices[i - 1];
    }
    ranks[j] = chosen;
  }
}

}  // namespace coterie
