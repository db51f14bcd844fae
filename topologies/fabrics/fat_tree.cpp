// fat_tree: the k-ary fat tree (Al-Fares et al., SIGCOMM 2008).
//
//   core:         (k/2)^2 switches; core c*(k/2)+j hangs on aggregation switch c of every pod
//   aggregation:  k pods of k/2
//   edge:         k pods of k/2, each with k/2 NIC ports
//
// Every cable has the bandwidth of one NIC divided by the oversubscription. GPUs fill the edge
// switches in order.

#include <fmt/format.h>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kMaxK = 256;

std::uint64_t gpus_that_fit(std::uint32_t k, std::uint32_t nics_per_gpu) {
  const std::uint64_t half = k / 2;
  return half * k * (half / nics_per_gpu);
}

FabricKind read_fat_tree(LayeredMap& map, const FabricSite& site) {
  FatTreeFabric fabric;
  const YamlValue k = map.required("k");
  if (const auto given = integer_or_word(k, "auto", 2, kMaxK)) {
    if (*given % 2 != 0) throw k.error(k.excerpt(), "an even number");
    fabric.k = *given;
  } else {
    fabric.k = 2;
    while (fabric.k < kMaxK && gpus_that_fit(fabric.k, site.nics_per_gpu) < site.num_gpus()) {
      fabric.k += 2;
    }
  }
  fabric.oversubscription =
      number_or(map, "oversubscription", 0.01, 1000.0, fabric.oversubscription);
  return fabric;
}

void check_fat_tree(const FabricKind& kind, const FabricSite& site, std::string_view where) {
  const auto& fabric = std::get<FatTreeFabric>(kind);
  const std::uint64_t room = gpus_that_fit(fabric.k, site.nics_per_gpu);
  if (room < site.num_gpus()) {
    throw InputError(where,
                     fmt::format("k {}, which has room for {}", fabric.k, counted(room, "GPU")),
                     fmt::format("room for {} of {}", counted(site.num_gpus(), "GPU"),
                                 counted(site.nics_per_gpu, "NIC")));
  }
}

SwitchGraph build_fat_tree(const Cluster& cluster) {
  const auto& fabric = std::get<FatTreeFabric>(cluster.fabric->kind);
  const std::uint32_t k = fabric.k;
  const std::uint32_t half = k / 2;
  SwitchGraph graph;
  add_switches(graph, SwitchKind::kEdge, k * half);
  const std::uint32_t first_aggregation = add_switches(graph, SwitchKind::kAggregation, k * half);
  const std::uint32_t first_core = add_switches(graph, SwitchKind::kCore, half * half);
  const std::uint32_t per_edge = half / cluster.nic->per_gpu;
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    graph.attach.push_back(gpu / per_edge);
  }
  const Bandwidth bandwidth = cluster.nic->bandwidth / fabric.oversubscription;
  const Seconds latency = cluster.fabric->hop_latency;
  for (std::uint32_t pod = 0; pod < k; ++pod) {
    for (std::uint32_t i = 0; i < half; ++i) {
      for (std::uint32_t j = 0; j < half; ++j) {
        graph.cables.push_back(
            {pod * half + i, first_aggregation + pod * half + j, bandwidth, latency});
      }
    }
    for (std::uint32_t j = 0; j < half; ++j) {
      for (std::uint32_t c = 0; c < half; ++c) {
        graph.cables.push_back(
            {first_aggregation + pod * half + j, first_core + j * half + c, bandwidth, latency});
      }
    }
  }
  return graph;
}

FabricKeys keys_fat_tree(const FabricKind& kind) {
  const auto& fabric = std::get<FatTreeFabric>(kind);
  return {{"k", std::to_string(fabric.k)},
          {"oversubscription", fmt::format("{}", fabric.oversubscription)}};
}

}  // namespace

const FabricType kFatTreeType{"fat_tree",     "k-ary fat tree", true,         read_fat_tree,
                              check_fat_tree, build_fat_tree,   keys_fat_tree};

}  // namespace coterie
