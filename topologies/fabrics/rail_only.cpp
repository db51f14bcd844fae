// rail_only: one non-blocking switch per rail (GPU index inside a node), no path between rails.
//
//   node 0: GPU 0   GPU 1     node 1: GPU 0   GPU 1
//             |       |                 |       |
//             |       +------ leaf 1 ---|-------+
//             +-------------- leaf 0 ---+
//
// Cross-rail traffic changes rails over scale-up first.

#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

FabricKind read_rail_only(LayeredMap& /*map*/, const FabricSite& /*site*/) {
  return RailOnlyFabric{};
}

void check_rail_only(const FabricKind& /*kind*/, const FabricSite& /*site*/,
                     std::string_view /*where*/) {}

SwitchGraph build_rail_only(const Cluster& cluster) {
  SwitchGraph graph;
  add_switches(graph, SwitchKind::kLeaf, cluster.gpus_per_node);
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    graph.attach.push_back(gpu % cluster.gpus_per_node);
  }
  return graph;
}

FabricKeys keys_rail_only(const FabricKind& /*kind*/) {
  return {};
}

}  // namespace

const FabricType kRailOnlyType{"rail_only",     "one switch per rail, rails not joined",
                               false,           read_rail_only,
                               check_rail_only, build_rail_only,
                               keys_rail_only};

}  // namespace coterie
