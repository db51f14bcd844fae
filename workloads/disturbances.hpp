#pragma once
// What goes wrong during a step: the `disturbances` block of an experiment.
//
//   disturbances:
//     slow: [{gpu: 3, factor: 1.3}]                  # its kernels take 1.3 times as long
//     speed_spread: 0.02                             # every GPU: 1 + 0.02 |z|, z normal, seeded
//     links: [{name: "gpu 3 nic out", share: 0.5}]   # half of its bandwidth is left
//     nodes: [{node: 2, share: 0.5}]                 # of all NIC ports of the node's GPUs
//     rails: [{rail: 3, share: 0}]                   # of the NIC ports of every node's GPU 3
//     reroute: {after: 2 ms}                         # failed links are routed around after so long
//     timeout: 30 s                                  # what stands still for so long ends the step
//
// A link, node or rail may say `from` and `until` (times in the step; without, during the whole step);
// share 0 is a failure. What crosses a failed link waits until it recovers. With `reroute`, routes go
// around it `after` it failed, where another path exists, until it recovers; what failed before the
// step (from 0) is routed around from its start. What has stood still for `timeout` ends the step,
// as a collective library's watchdog does.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/yaml.hpp"

namespace coterie {

struct LinkDisturbance {
  std::string link;  // its name; empty: all NIC ports of `node` or `rail`
  std::optional<std::uint32_t> node, rail;
  double share = 1.0;  // of the bandwidth that is left, 0 to 1
  double from_s = 0.0;
  std::optional<double> until_s;  // absent: to the end
};

// NCCL's watchdog in PyTorch ends a job whose collective has stood still for ten minutes.
inline constexpr double kTransferTimeout = 600.0;

struct Disturbances {
  std::map<std::uint32_t, double> slow;  // by GPU, at least 1
  double speed_spread = 0.0;
  std::vector<LinkDisturbance> links;
  std::optional<double> reroute_after_s;  // absent: nothing is re-routed
  double timeout_s = kTransferTimeout;

  [[nodiscard]] bool any() const { return !slow.empty() || speed_spread > 0.0 || !links.empty(); }
  // How many times as long the kernels of every GPU take: `slow`, and the seeded spread; GPUs of full
  // speed are left out.
  [[nodiscard]] std::map<std::uint32_t, double> slowness(std::uint32_t num_gpus,
                                                         std::uint64_t seed) const;
};

// Throws InputError, also for GPUs, nodes and rails beyond the cluster's.
Disturbances read_disturbances(const YamlValue& value, std::uint32_t num_gpus,
                               std::uint32_t num_nodes, std::uint32_t gpus_per_node);

}  // namespace coterie
