#pragma once
// Small clusters with round numbers, for tests whose results are worked out by hand.

#include "topologies/cluster.hpp"
#include "topologies/network.hpp"

namespace coterie::testing {

// n GPUs on a non-blocking star, each with one link in each direction. Kernels cost nothing to
// speak of.
inline Cluster star(std::uint32_t n, double bandwidth = 1e9, double latency = 1e-6) {
  Cluster cluster;
  cluster.name = "test star";
  cluster.num_nodes = n;
  cluster.gpus_per_node = 1;
  cluster.gpu.name = "test GPU";
  cluster.gpu.bf16_peak = ComputeRate{1e30};
  cluster.gpu.fp8_peak = ComputeRate{1e30};
  cluster.gpu.memory_bandwidth = Bandwidth{1e30};
  cluster.gpu.compute_efficiency = 1.0;
  cluster.gpu.memory_efficiency = 1.0;
  cluster.gpu.num_sms = 1;
  Nic nic;
  nic.bandwidth = Bandwidth{bandwidth};
  nic.latency = Seconds{latency};
  nic.injection.sends_in_flight = kUnlimitedSends;
  cluster.nic = nic;
  cluster.fabric = Fabric{StarFabric{}, Seconds{0.0}};
  return cluster;
}

// The star's NICs with `gpus` GPUs per node, which talk over a scale-up switch of their own.
inline Cluster two_tiers(std::uint32_t nodes, std::uint32_t gpus, double network_bandwidth,
                         double scale_up_bandwidth, double latency = 0.0) {
  Cluster cluster = star(nodes, network_bandwidth, latency);
  cluster.gpus_per_node = gpus;
  ScaleUp scale_up;
  scale_up.bandwidth = Bandwidth{scale_up_bandwidth};
  scale_up.latency = Seconds{latency};
  cluster.scale_up = scale_up;
  return cluster;
}

}  // namespace coterie::testing
