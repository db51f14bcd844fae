#pragma once
// Which of its hosts serves a replicated expert: the one place that planning, counting and the
// learning of placements share. An expert with one host goes there. A replicated one goes,
//
//   locality     to the token's own rank if that hosts it, else to a host in the token's own node
//                (one the token goes to anyway if there is one, else by hash), else to a rank that
//                the token goes to anyway (the lowest), else to one by hash of token and expert.
//                Experts with one host, and those served in the own rank or node, are settled
//                first, so that "anyway" does not depend on the router order more than it must.
//   static       as SGLang with --ep-dispatch-algorithm static: every rank has one host of every
//                expert for all its tokens, itself if it is one, else the first host in its node;
//                the ranks that are left share the hosts evenly, in an order shuffled per expert
//                with a fixed seed (SGLang shuffles with Python's generator, so which rank gets
//                which host differs, the shares do not).
//   random       as SGLang's dynamic: to one by hash of token, choice and expert.
//   round_robin  as vLLM: to host (position * k + choice) modulo the number of hosts, where
//                `position` counts the tokens of the token's own rank and `choice` the experts of
//                the token in router order; vLLM numbers the flattened ids of a batch so.

#include <cstdint>
#include <span>
#include <vector>

#include "core/random.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {

// A token as the rule sees it.
struct TokenPlace {
  std::uint64_t token = 0;     // in RankTokens
  std::uint64_t position = 0;  // among the tokens of its rank
  std::uint32_t rank = 0;
};

// One layer's rule over its hosts. Holds a reference to `hosts`.
class HostChooser {
 public:
  HostChooser(const ExpertHosts& hosts, ReplicaChoice choice, std::uint32_t num_ranks,
              std::uint32_t ranks_per_node);

  // Writes the serving rank of each of a token's experts to `ranks` ([num_topk], as `experts`).
  void choose(std::span<const ExpertIdx> experts, const TokenPlace& place,
              std::span<std::uint32_t> ranks) const {
    switch (choice_) {
      case ReplicaChoice::kLocality:
        choose_near(experts, place, ranks);
        return;
      case ReplicaChoice::kStatic:
        for (std::size_t j = 0; j < experts.size(); ++j) {
          ranks[j] = static_host_[std::size_t{place.rank} * num_experts_ + experts[j]];
        }
        return;
      case ReplicaChoice::kRandom:
        for (std::size_t j = 0; j < experts.size(); ++j) {
          const auto hosts = hosts_of(experts[j]);
          ranks[j] =
              hosts[mix64(mix64(place.token * experts.size() + j) + experts[j]) % hosts.size()];
        }
        return;
      case ReplicaChoice::kRoundRobin:
        for (std::size_t j = 0; j < experts.size(); ++j) {
          const auto hosts = hosts_of(experts[j]);
          ranks[j] = hosts[(place.position * experts.size() + j) % hosts.size()];
        }
        return;
    }
  }

 private:
  [[nodiscard]] std::span<const std::uint32_t> hosts_of(ExpertIdx expert) const {
    return std::span(hosts_.ranks)
        .subspan(hosts_.begin[expert], hosts_.begin[expert + 1] - hosts_.begin[expert]);
  }
  void fill_static(std::uint32_t num_ranks);
  void choose_near(std::span<const ExpertIdx> experts, const TokenPlace& place,
                   std::span<std::uint32_t> ranks) const;

  const ExpertHosts& hosts_;
  ReplicaChoice choice_;
  std::uint32_t ranks_per_node_;
  std::size_t num_experts_;
  std::vector<std::uint32_t> static_host_;  // [num_ranks][num_experts], with kStatic only
};

}  // namespace coterie
