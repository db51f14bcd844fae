#pragma once
// What transports have in common: which tier a message crosses, the queues that sends wait in, and
// events that wait for two others.

#include <cstdint>
#include <optional>
#include <vector>

#include "sim/program/program.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// The tier of a message between two GPUs.
[[nodiscard]] Tier tier_of(const Cluster& cluster, std::uint32_t src, std::uint32_t dst);
// The tier's injection limits; null where the cluster has no such tier.
[[nodiscard]] const Injection* injection_of(const Cluster& cluster, Tier tier);

// A queue per (GPU, tier) with the tier's `sends_in_flight` places.
class SendQueues {
 public:
  explicit SendQueues(const Cluster& cluster);
  // kFreeQueue where the tier does not limit the sends.
  std::uint32_t of(ProgramBuilder& builder, std::uint32_t src, Tier tier);

 private:
  std::optional<std::uint32_t> scale_up_places_, network_places_;
  std::vector<std::optional<std::uint32_t>> queues_;  // [2 * gpu + (1: network)], made on first use
};

// An event that fires when both have; `gpu` is where the waiting is done, which costs nothing.
std::uint32_t when_both(ProgramBuilder& builder, std::uint32_t gpu, std::uint32_t first,
                        std::uint32_t second);

}  // namespace coterie
