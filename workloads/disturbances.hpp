#pragma once
// What goes wrong during a step: the `disturbances` block of an experiment.
//
//   disturbances:
//     slow: [{gpu: 3, factor: 1.3}]                  # its kernels take 1.3 times as long
//     speed_spread: 0.02                             # every GPU: 1 + 0.02 |z|, z normal, seeded
//     links: [{name: "gpu 3 nic out", share: 0.5}]   # half of its bandwidth is left
//     nodes: [{node: 2, share: 0.5}]                 # of all NIC ports of the node's GPUs
//
// A link or node may say `from` and `until` (times in the step; without, during the whole step); share 0
// is a failure, during which what crosses the link waits.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/yaml.hpp"

namespace coterie {

struct LinkDisturbance {
  std::string link;  // its name; empty: all NIC ports of `node`
  std::optional<std::uint32_t> node;
  double share = 1.0;  // of the bandwidth that is left, 0 to 1
  double from_s = 0.0;
  std::optional<double> until_s;  // absent: to the end
};

struct Disturbances {
  std::map<std::uint32_t, double> slow;  // by GPU, at least 1
  double speed_spread = 0.0;
  std::vector<LinkDisturbance> links;

  [[nodiscard]] bool any() const { return !slow.empty() || speed_spread > 0.0 || !links.empty(); }
  // How many times as long the kernels of every GPU take: `slow`, and the seeded spread; GPUs of full
  // speed are left out.
  [[nodiscard]] std::map<std::uint32_t, double> slowness(std::uint32_t num_gpus,
                                                         std::uint64_t seed) const;
};

// Throws InputError, also for GPUs and nodes beyond the cluster's.
Disturbances read_disturbances(const YamlValue& value, std::uint32_t num_gpus,
                               std::uint32_t num_nodes);

}  // namespace coterie
