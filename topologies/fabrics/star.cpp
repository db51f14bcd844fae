// star: one non-blocking switch.
//
//   GPU   GPU   GPU
//     \    |    /
//      switch 0

#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

FabricKind read_star(LayeredMap& /*map*/, const FabricSite& /*site*/) {
  return StarFabric{};
}

void check_star(const FabricKind& /*kind*/, const FabricSite& /*site*/,
                std::string_view /*where*/) {}

SwitchGraph build_star(const Cluster& cluster) {
  SwitchGraph graph;
  add_switches(graph, SwitchKind::kSwitch, 1);
  graph.attach.assign(cluster.num_gpus(), 0);
  return graph;
}

FabricKeys keys_star(const FabricKind& /*kind*/) {
  return {};
}

}  // namespace

const FabricType kStarType{
    "star", "one non-blocking switch", false, read_star, check_star, build_star, keys_star};

}  // namespace coterie
