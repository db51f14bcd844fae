#include "sim/transports/parts.hpp"

#include <array>

namespace coterie {

Tier tier_of(const Cluster& cluster, std::uint32_t src, std::uint32_t dst) {
  if (src == dst) return Tier::kLocal;
  if (!cluster.scale_up) return Tier::kNetwork;
  const std::uint32_t domain = cluster.scale_up->nodes_per_domain * cluster.gpus_per_node;
  return src / domain == dst / domain ? Tier::kScaleUp : Tier::kNetwork;
}

const Injection* injection_of(const Cluster& cluster, Tier tier) {
  if (tier == Tier::kScaleUp && cluster.scale_up) return &cluster.scale_up->injection;
  if (tier == Tier::kNetwork && cluster.nic) return &cluster.nic->injection;
  return nullptr;
}

SendQueues::SendQueues(const Cluster& cluster) : queues_(std::size_t{2} * cluster.num_gpus()) {
  const auto places = [&](Tier tier) -> std::optional<std::uint32_t> {
    const Injection* injection = injection_of(cluster, tier);
    if (injection == nullptr || injection->sends_in_flight == kUnlimitedSends) return std::nullopt;
    return injection->sends_in_flight;
  };
  scale_up_places_ = places(Tier::kScaleUp);
  network_places_ = places(Tier::kNetwork);
}

std::uint32_t SendQueues::of(ProgramBuilder& builder, std::uint32_t src, Tier tier) {
  const auto& places = tier == Tier::kNetwork ? network_places_ : scale_up_places_;
  if (tier == Tier::kLocal || !places) return kFreeQueue;
  auto& queue = queues_[std::size_t{2} * src + (tier == Tier::kNetwork ? 1 : 0)];
  if (!queue) queue = builder.add_queue(*places);
  return *queue;
}

std::uint32_t when_both(ProgramBuilder& builder, std::uint32_t gpu, std::uint32_t first,
                        std::uint32_t second) {
  if (first == kStartEvent || first == second) return second;
  if (second == kStartEvent) return first;
  const std::array<std::uint32_t, 1> both{builder.add_event()};
  builder.add_compute(gpu, 0.0, first, both);
  builder.add_compute(gpu, 0.0, second, both);
  return both[0];
}

}  // namespace coterie
