#include "topologies/fabrics/fabric_type.hpp"

#include <fmt/format.h>

#include <array>

namespace coterie {

FabricSite fabric_site(const Cluster& cluster) {
  return {cluster.num_nodes, cluster.gpus_per_node, cluster.nic ? cluster.nic->per_gpu : 1};
}

std::string to_string(SwitchKind kind) {
  switch (kind) {
    case SwitchKind::kLeaf:
      return "leaf";
    case SwitchKind::kSpine:
      return "spine";
    case SwitchKind::kEdge:
      return "edge";
    case SwitchKind::kAggregation:
      return "aggregation";
    case SwitchKind::kCore:
      return "core";
    case SwitchKind::kRouter:
      return "router";
    case SwitchKind::kSwitch:
      break;
  }
  return "switch";
}

std::span<const FabricType* const> fabric_types() {
  static constexpr std::array<const FabricType*, std::variant_size_v<FabricKind>> kTypes{
      &kStarType,      &kRailOnlyType, &kLeafSpineType, &kFatTreeType,
      &kDragonflyType, &kTorusType,    &kCustomType};
  return kTypes;
}

const FabricType& fabric_type(const FabricKind& kind) {
  return *fabric_types()[kind.index()];
}

std::string exact(Bandwidth bandwidth) {
  return fmt::format("{} B/s", bandwidth.value);
}
std::string exact(Seconds seconds) {
  return fmt::format("{} s", seconds.value);
}

std::uint32_t add_switches(SwitchGraph& graph, SwitchKind kind, std::uint32_t count) {
  const auto first = static_cast<std::uint32_t>(graph.switches.size());
  for (std::uint32_t i = 0; i < count; ++i) graph.switches.push_back({kind, i});
  return first;
}

}  // namespace coterie
