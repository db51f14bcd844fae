#include "workloads/plan/host_choice.hpp"

#include <algorithm>

namespace coterie {

HostChooser::HostChooser(const ExpertHosts& hosts, ReplicaChoice choice, std::uint32_t num_ranks,
                         std::uint32_t ranks_per_node)
    : hosts_(hosts),
      choice_(choice),
      ranks_per_node_(ranks_per_node),
      num_experts_(hosts.begin.size() - 1) {
  if (choice == ReplicaChoice::kStatic) fill_static(num_ranks);
}

void HostChooser::fill_static(std::uint32_t num_ranks) {
  constexpr std::uint64_t kSeed = 42;  // SGLang's
  constexpr std::uint32_t kOpen = 0xffffffffu;
  static_host_.assign(std::size_t{num_ranks} * num_experts_, kOpen);
  for (std::size_t expert = 0; expert < num_experts_; ++expert) {
    const auto hosts = hosts_of(static_cast<ExpertIdx>(expert));
    std::vector<std::uint32_t> far;  // ranks without a host in their node
    for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
      std::uint32_t& host = static_host_[rank * num_experts_ + expert];
      for (const std::uint32_t candidate : hosts) {
        const bool near = candidate / ranks_per_node_ == rank / ranks_per_node_;
        if (candidate == rank || (near && host == kOpen)) host = candidate;
      }
      if (host == kOpen) far.push_back(rank);
    }
    // Every host as often as the others, the rest drawn without repetition, all in random order.
    Random random(kSeed, expert);
    std::vector<std::uint32_t> rest(hosts.begin(), hosts.end());
    random.shuffle(std::span(rest));
    std::vector<std::uint32_t> shares;
    for (std::size_t i = 0; i < far.size(); ++i) shares.push_back(rest[i % rest.size()]);
    random.shuffle(std::span(shares));
    for (std::size_t i = 0; i < far.size(); ++i) {
      static_host_[far[i] * num_experts_ + expert] = shares[i];
    }
  }
}

void HostChooser::choose_near(std::span<const ExpertIdx> experts, const TokenPlace& place,
                              std::span<std::uint32_t> ranks) const {
  constexpr std::uint32_t kOpen = 0xffffffffu;
  const auto goes_to = [&](std::uint32_t rank) {
    return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
  };
  const auto hash = [&](ExpertIdx expert, std::size_t num_choices) {
    return static_cast<std::size_t>(mix64(mix64(place.token) + expert) % num_choices);
  };

  bool open = false;
  for (std::size_t j = 0; j < experts.size(); ++j) {
    const auto choices = hosts_of(experts[j]);
    ranks[j] = choices.size() == 1 ? choices[0] : kOpen;
    for (const std::uint32_t rank : choices) {
      if (rank == place.rank) ranks[j] = place.rank;
    }
    open = open || ranks[j] == kOpen;
  }
  if (!open) return;

  const std::uint32_t node_begin = place.rank / ranks_per_node_ * ranks_per_node_;
  for (std::size_t j = 0; j < experts.size(); ++j) {
    if (ranks[j] != kOpen) continue;
    // Hosts are ascending, so those of the own node are consecutive.
    const auto choices = hosts_of(experts[j]);
    std::size_t first = 0;
    while (first < choices.size() && choices[first] < node_begin) ++first;
    std::size_t last = first;
    while (last < choices.size() && choices[last] < node_begin + ranks_per_node_) ++last;
    if (first == last) continue;
    std::uint32_t chosen = choices[first + hash(experts[j], last - first)];
    for (std::size_t i = last; i > first; --i) {
      if (goes_to(choices[i - 1])) chosen = choices[i - 1];
    }
    ranks[j] = chosen;
  }
  for (std::size_t j = 0; j < experts.size(); ++j) {
    if (ranks[j] != kOpen) continue;
    const auto choices = hosts_of(experts[j]);
    std::uint32_t chosen = choices[hash(experts[j], choices.size())];
    for (std::size_t i = choices.size(); i > 0; --i) {
      if (goes_to(choices[i - 1])) chosen = choices[i - 1];
    }
    ranks[j] = chosen;
  }
}

}  // namespace coterie
