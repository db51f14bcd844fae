// leaf_spine: every leaf is joined to every spine.
//
//   spine 0   spine 1  ...
//     |   \  /   |
//   leaf 0    leaf 1   ...
//
// rail_optimised: a pod is as many nodes as a leaf has room for; GPU i of each of its nodes ends at
// leaf i of the pod. Otherwise whole nodes end at a leaf. A leaf's uplinks carry together its
// downlink bandwidth (all ports_per_leaf, used or not) divided by the oversubscription, in equal
// parts to the spines.

#include <fmt/format.h>

#include "core/error.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

FabricKind read_leaf_spine(LayeredMap& map, const FabricSite& /*site*/) {
  LeafSpineFabric fabric;
  if (const auto value = map.optional("rail_optimised")) fabric.rail_optimised = value->as_bool();
  fabric.ports_per_leaf = integer_or(map, "ports_per_leaf", 1, 1 << 16, fabric.ports_per_leaf);
  fabric.num_spines = integer_or(map, "num_spines", 1, 1 << 14, fabric.num_spines);
  fabric.oversubscription =
      number_or(map, "oversubscription", 0.01, 1000.0, fabric.oversubscription);
  return fabric;
}

// Nodes that share a leaf (and, rail-optimised, a pod).
std::uint32_t nodes_per_leaf(const LeafSpineFabric& fabric, const FabricSite& site) {
  const std::uint32_t node_ports =
      fabric.rail_optimised ? site.nics_per_gpu : site.nics_per_gpu * site.gpus_per_node;
  return fabric.ports_per_leaf / node_ports;
}

void check_leaf_spine(const FabricKind& kind, const FabricSite& site, std::string_view where) {
  const auto& fabric = std::get<LeafSpineFabric>(kind);
  if (nodes_per_leaf(fabric, site) > 0) return;
  const std::string needed =
      fabric.rail_optimised
          ? fmt::format("at least {}, the NICs of a GPU", site.nics_per_gpu)
          : fmt::format("at least {}, the NICs of a node", site.nics_per_gpu * site.gpus_per_node);
  throw InputError(where, fmt::format("ports_per_leaf {}", fabric.ports_per_leaf), needed);
}

SwitchGraph build_leaf_spine(const Cluster& cluster) {
  const auto& fabric = std::get<LeafSpineFabric>(cluster.fabric->kind);
  const std::uint32_t per_leaf = nodes_per_leaf(fabric, fabric_site(cluster));
  const auto groups = static_cast<std::uint32_t>(divide_up(cluster.num_nodes, per_leaf));
  const std::uint32_t leaves_per_group = fabric.rail_optimised ? cluster.gpus_per_node : 1;
  SwitchGraph graph;
  const std::uint32_t num_leaves = groups * leaves_per_group;
  add_switches(graph, SwitchKind::kLeaf, num_leaves);
  const std::uint32_t first_spine = add_switches(graph, SwitchKind::kSpine, fabric.num_spines);
  for (std::uint32_t node = 0; node < cluster.num_nodes; ++node) {
    for (std::uint32_t local = 0; local < cluster.gpus_per_node; ++local) {
      graph.attach.push_back(node / per_leaf * leaves_per_group +
                             (fabric.rail_optimised ? local : 0));
    }
  }
  const Bandwidth uplink = cluster.nic->bandwidth * fabric.ports_per_leaf /
                           (fabric.oversubscription * fabric.num_spines);
  for (std::uint32_t leaf = 0; leaf < num_leaves; ++leaf) {
    for (std::uint32_t spine = 0; spine < fabric.num_spines; ++spine) {
      graph.cables.push_back({leaf, first_spine + spine, uplink, cluster.fabric->hop_latency});
    }
  }
  return graph;
}

FabricKeys keys_leaf_spine(const FabricKind& kind) {
  const auto& fabric = std::get<LeafSpineFabric>(kind);
  return {{"rail_optimised", fabric.rail_optimised ? "true" : "false"},
          {"ports_per_leaf", std::to_string(fabric.ports_per_leaf)},
          {"num_spines", std::to_string(fabric.num_spines)},
          {"oversubscription", fmt::format("{}", fabric.oversubscription)}};
}

}  // namespace

const FabricType kLeafSpineType{"leaf_spine",
                                "leaves joined by spines, rail-optimised or not",
                                true,
                                read_leaf_spine,
                                check_leaf_spine,
                                build_leaf_spine,
                                keys_leaf_spine};

}  // namespace coterie
