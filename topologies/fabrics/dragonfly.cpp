// dragonfly: all-to-all groups of routers, groups joined all-to-all (Kim et al., ISCA 2008).
//
// With g groups of a routers that have h global links each, every pair of groups is joined by
// floor(a*h / (g-1)) cables; ports left over stay unused. Global port q = router*h + port of group
// i leads to group i + 1 + (q mod (g-1)), modulo g, so that the cables of a group are spread over
// its routers. GPUs fill the routers in order.
//
// Routes are minimal in the dragonfly's sense: local, global, local. A global cable costs 3, so
// that a detour over a third group (3 + 3) never beats local + global + local (1 + 3 + 1).

#include <fmt/format.h>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kGlobalCost = 3;

std::uint64_t gpus_per_group(const DragonflyFabric& fabric, std::uint32_t nics_per_gpu) {
  return std::uint64_t{fabric.routers_per_group} * (fabric.ports_per_router / nics_per_gpu);
}

FabricKind read_dragonfly(LayeredMap& map, const FabricSite& site) {
  DragonflyFabric fabric;
  const YamlValue groups = map.required("num_groups");
  fabric.routers_per_group =
      static_cast<std::uint32_t>(map.required("routers_per_group").as_integer(1, 1 << 12));
  fabric.ports_per_router =
      static_cast<std::uint32_t>(map.required("ports_per_router").as_integer(1, 1 << 12));
  fabric.global_links_per_router =
      static_cast<std::uint32_t>(map.required("global_links_per_router").as_integer(1, 1 << 12));
  fabric.local_bandwidth = positive_bandwidth(map.required("local_bandwidth"));
  fabric.global_bandwidth = positive_bandwidth(map.required("global_bandwidth"));
  if (const auto given = integer_or_word(groups, "auto", 1, 1 << 14)) {
    fabric.num_groups = *given;
  } else if (const std::uint64_t per_group = gpus_per_group(fabric, site.nics_per_gpu)) {
    fabric.num_groups = static_cast<std::uint32_t>(divide_up(site.num_gpus(), per_group));
  }
  return fabric;
}

void check_dragonfly(const FabricKind& kind, const FabricSite& site, std::string_view where) {
  const auto& fabric = std::get<DragonflyFabric>(kind);
  const std::uint64_t room = fabric.num_groups * gpus_per_group(fabric, site.nics_per_gpu);
  if (room < site.num_gpus()) {
    throw InputError(
        where,
        fmt::format("{} of {} with {}, which have room for {}", counted(fabric.num_groups, "group"),
                    counted(fabric.routers_per_group, "router"),
                    counted(fabric.ports_per_router, "port"), counted(room, "GPU")),
        fmt::format("room for {} of {}", counted(site.num_gpus(), "GPU"),
                    counted(site.nics_per_gpu, "NIC")));
  }
  const std::uint64_t global =
      std::uint64_t{fabric.routers_per_group} * fabric.global_links_per_router;
  if (global + 1 < fabric.num_groups) {
    throw InputError(where,
                     fmt::format("{} but {} global links per group",
                                 counted(fabric.num_groups, "group"), global),
                     fmt::format("at least {} global links per group, one to every other group",
                                 fabric.num_groups - 1));
  }
}

void add_global_cables(SwitchGraph& graph, const DragonflyFabric& fabric, Seconds latency) {
  const std::uint32_t others = fabric.num_groups - 1;
  if (others == 0) return;
  const std::uint32_t h = fabric.global_links_per_router;
  const std::uint32_t copies = fabric.routers_per_group * h / others;
  for (std::uint32_t copy = 0; copy < copies; ++copy) {
    for (std::uint32_t a = 0; a < fabric.num_groups; ++a) {
      for (std::uint32_t b = a + 1; b < fabric.num_groups; ++b) {
        const std::uint32_t port_a = copy * others + (b - a - 1);
        const std::uint32_t port_b = copy * others + (fabric.num_groups - (b - a) - 1);
        graph.cables.push_back({a * fabric.routers_per_group + port_a / h,
                                b * fabric.routers_per_group + port_b / h, fabric.global_bandwidth,
                                latency, kGlobalCost});
      }
    }
  }
}

SwitchGraph build_dragonfly(const Cluster& cluster) {
  const auto& fabric = std::get<DragonflyFabric>(cluster.fabric->kind);
  SwitchGraph graph;
  const std::uint32_t routers = fabric.routers_per_group;
  add_switches(graph, SwitchKind::kRouter, fabric.num_groups * routers);
  const std::uint32_t per_router = fabric.ports_per_router / cluster.nic->per_gpu;
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    graph.attach.push_back(gpu / per_router);
  }
  const Seconds latency = cluster.fabric->hop_latency;
  for (std::uint32_t group = 0; group < fabric.num_groups; ++group) {
    for (std::uint32_t i = 0; i < routers; ++i) {
      for (std::uint32_t j = i + 1; j < routers; ++j) {
        graph.cables.push_back(
            {group * routers + i, group * routers + j, fabric.local_bandwidth, latency});
      }
    }
  }
  add_global_cables(graph, fabric, latency);
  return graph;
}

FabricKeys keys_dragonfly(const FabricKind& kind) {
  const auto& fabric = std::get<DragonflyFabric>(kind);
  return {{"num_groups", std::to_string(fabric.num_groups)},
          {"routers_per_group", std::to_string(fabric.routers_per_group)},
          {"ports_per_router", std::to_string(fabric.ports_per_router)},
          {"global_links_per_router", std::to_string(fabric.global_links_per_router)},
          {"local_bandwidth", exact(fabric.local_bandwidth)},
          {"global_bandwidth", exact(fabric.global_bandwidth)}};
}

}  // namespace

const FabricType kDragonflyType{"dragonfly",
                                "all-to-all groups of routers, joined all-to-all",
                                true,
                                read_dragonfly,
                                check_dragonfly,
                                build_dragonfly,
                                keys_dragonfly};

}  // namespace coterie
