#pragma once
// Small clusters for the tests: 1 GB/s NICs of 1 us, so that expected numbers can be read off.

#include <fmt/format.h>

#include <string>

#include "topologies/cluster.hpp"

namespace coterie {

inline const std::string kTestGpu =
    "gpu: {name: G, bf16_peak: 100 TFLOP/s, memory_bandwidth: 1 TB/s, num_sms: 10}";

// Nodes without scale-up links; `fabric` is the YAML of the block's inside.
inline Cluster plain_cluster(std::uint32_t nodes, std::uint32_t gpus_per_node,
                             const std::string& fabric) {
  return load_cluster(fmt::format(
      "{{schema_version: 1, nodes: {}, gpus_per_node: {}, {}, nic: {{bandwidth: 1 GB/s, latency: "
      "1 us}}, fabric: {{{}}}}}",
      nodes, gpus_per_node, kTestGpu, fabric));
}

// Nodes with 10 GB/s scale-up links of 100 ns.
inline Cluster node_cluster(std::uint32_t nodes, std::uint32_t gpus_per_node,
                            const std::string& fabric, const std::string& scale_up = "",
                            const std::string& nic = "") {
  return load_cluster(fmt::format(
      "{{schema_version: 1, nodes: {}, gpus_per_node: {}, {}, scale_up: {{kind: nvlink, bandwidth: "
      "10 GB/s, latency: 100 ns{}}}, nic: {{bandwidth: 1 GB/s, latency: 1 us{}}}, fabric: {{{}}}}}",
      nodes, gpus_per_node, kTestGpu, scale_up, nic, fabric));
}

inline const std::string kDragonfly72 =
    "kind: dragonfly, hop_latency: 1 us, num_groups: 9, routers_per_group: 4, ports_per_router: 2, "
    "global_links_per_router: 2, local_bandwidth: 1 GB/s, global_bandwidth: 1 GB/s";
inline const std::string kRing8 =
    "kind: torus, hop_latency: 1 us, dimensions: [8], link_bandwidth: 1 GB/s";
inline const std::string kFatTree4 = "kind: fat_tree, hop_latency: 1 us, k: 4";
inline const std::string kLeafSpine2 =
    "kind: leaf_spine, hop_latency: 1 us, rail_optimised: false, ports_per_leaf: 4, num_spines: 2, "
    "oversubscription: 2";
// Four switches in a ring, one of whose cables has failed.
inline const std::string kBrokenRing =
    "kind: custom, num_switches: 4, attach: [0, 1, 2, 3], cables: ["
    "{a: 0, b: 1, bandwidth: 1 GB/s, latency: 1 us}, {a: 1, b: 2, bandwidth: 1 GB/s, latency: 1 "
    "us}, {a: 2, b: 3, bandwidth: 1 GB/s, latency: 1 us}, {a: 3, b: 0, bandwidth: 0 GB/s, latency: "
    "1 us}]";

}  // namespace coterie
