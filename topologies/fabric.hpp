#pragma once
// The cluster as a Boost.Graph: GPUs, scale-up switches and the fabric's switches as vertices, one
// directed edge per direction of every cable. What can be said about a cluster before anything is
// simulated comes from here.

#include <boost/graph/adjacency_list.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "topologies/cluster.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {

enum class VertexKind : std::uint8_t { kGpu, kScaleUpSwitch, kSwitch };

struct FabricVertex {
  VertexKind kind = VertexKind::kGpu;
  SwitchKind switch_kind = SwitchKind::kSwitch;  // of a kSwitch
  std::uint32_t idx = 0;  // GPU id, domain, or position in SwitchGraph::switches
};
struct FabricEdge {
  Bandwidth bandwidth;
  Seconds latency;
  Tier tier = Tier::kNetwork;
  std::uint32_t cost = 1;  // what shortest routes add up
  std::uint32_t link = 0;  // its LinkId in the cluster's Network
};
using FabricGraph = boost::adjacency_list<boost::vecS, boost::vecS, boost::bidirectionalS,
                                          FabricVertex, FabricEdge>;

struct FabricModel {
  FabricGraph graph;
  // Vertices are numbered in blocks: GPUs, scale-up switches (one per domain), fabric switches.
  // Edges are numbered in pairs, away from the GPU (or from cable end a) first: per GPU its
  // scale-up port, then its NIC port; after all GPUs the cables.
  std::uint32_t num_gpus = 0;
  std::uint32_t num_domains = 0;
  SwitchGraph switches;
  [[nodiscard]] std::uint32_t domain_vertex(std::uint32_t domain) const {
    return num_gpus + domain;
  }
  [[nodiscard]] std::uint32_t switch_vertex(std::uint32_t idx) const {
    return num_gpus + num_domains + idx;
  }
};

// Throws InputError for a fabric that cannot connect the cluster.
FabricModel build_fabric(const Cluster& cluster);

// "leaf 3".
std::string switch_name(const Switch& item);

}  // namespace coterie
