// torus: one router per node, nearest neighbours joined in every dimension, with wrap-around.
//
// Routers are numbered with the last dimension running fastest. A dimension of size 2 has one cable
// between its two routers, not two; one of size 1 has none. Deterministic routes are
// dimension-ordered, because the cables of a router are laid dimension by dimension.

#include <fmt/format.h>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

// The three factors of n that are nearest to a cube, largest first, without ones.
std::vector<std::uint32_t> near_cube(std::uint32_t n) {
  std::vector<std::uint32_t> best{n, 1, 1};
  for (std::uint32_t a = 1; std::uint64_t{a} * a * a <= n; ++a) {
    if (n % a != 0) continue;
    for (std::uint32_t b = a; std::uint64_t{a} * b * b <= n; ++b) {
      if (n / a % b != 0) continue;
      const std::uint32_t c = n / a / b;
      if (a + b + c < best[0] + best[1] + best[2]) best = {c, b, a};
    }
  }
  while (best.size() > 1 && best.back() == 1) best.pop_back();
  return best;
}

FabricKind read_torus(LayeredMap& map, const FabricSite& site) {
  TorusFabric fabric;
  const YamlValue dimensions = map.required("dimensions");
  if (says(dimensions, "auto")) {
    fabric.dimensions = near_cube(site.num_nodes);
  } else {
    for (const YamlValue& size : dimensions.as_list()) {
      fabric.dimensions.push_back(static_cast<std::uint32_t>(size.as_integer(1, 1 << 20)));
    }
    if (fabric.dimensions.empty()) {
      throw dimensions.error("an empty list", "the size of at least one dimension");
    }
  }
  fabric.link_bandwidth = positive_bandwidth(map.required("link_bandwidth"));
  return fabric;
}

void check_torus(const FabricKind& kind, const FabricSite& site, std::string_view where) {
  const auto& fabric = std::get<TorusFabric>(kind);
  std::uint64_t product = 1;
  for (const std::uint32_t size : fabric.dimensions) {
    product = product > (1U << 24) ? product : product * size;
  }
  if (product != site.num_nodes) {
    throw InputError(where,
                     fmt::format("dimensions [{}] of {}", fmt::join(fabric.dimensions, ", "),
                                 counted(product, "router")),
                     fmt::format("as many routers as nodes, {}", site.num_nodes));
  }
}

SwitchGraph build_torus(const Cluster& cluster) {
  const auto& fabric = std::get<TorusFabric>(cluster.fabric->kind);
  SwitchGraph graph;
  graph.first_cable_first = true;
  add_switches(graph, SwitchKind::kRouter, cluster.num_nodes);
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    graph.attach.push_back(gpu / cluster.gpus_per_node);
  }
  std::uint32_t stride = cluster.num_nodes;
  for (const std::uint32_t size : fabric.dimensions) {
    stride /= size;
    if (size == 1) continue;
    for (std::uint32_t router = 0; router < cluster.num_nodes; ++router) {
      const std::uint32_t at = router / stride % size;
      if (size == 2 && at == 1) continue;
      const std::uint32_t next = router - at * stride + (at + 1) % size * stride;
      graph.cables.push_back({router, next, fabric.link_bandwidth, cluster.fabric->hop_latency});
    }
  }
  return graph;
}

FabricKeys keys_torus(const FabricKind& kind) {
  const auto& fabric = std::get<TorusFabric>(kind);
  return {{"dimensions", fmt::format("[{}]", fmt::join(fabric.dimensions, ", "))},
          {"link_bandwidth", exact(fabric.link_bandwidth)}};
}

}  // namespace

const FabricType kTorusType{
    "torus",   "one router per node, neighbours joined", true, read_torus, check_torus, build_torus,
    keys_torus};

}  // namespace coterie
