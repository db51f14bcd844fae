#pragma once
// A machine with GPUs as its own tools see it, and the cluster that follows from it and a base.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "topologies/import/importer.hpp"

namespace coterie {

struct Machine {
  std::uint32_t num_gpus = 0;   // of one node
  std::uint32_t num_nodes = 1;  // that share an NVLink domain
  // NVLink. `links[a][b]` joins GPUs a and b (0: none), directly or through a switch, which some
  // tools do not tell; `switch_links` are those of each GPU to switches, where the tool tells.
  std::vector<std::vector<std::uint32_t>> links;
  std::optional<std::uint32_t> switch_links;
  std::optional<std::uint32_t> sm;           // compute capability, 90 for Hopper
  std::vector<std::uint32_t> pcie_group;     // [num_gpus] GPUs under one PCIe switch share a number
  std::optional<std::uint32_t> num_sockets;  // with equally many GPUs each, in order of ids
  std::optional<Bandwidth> pcie;             // raw rate of a GPU's PCIe link, each direction
  // Network ports that are near GPUs (in the reach of their PCIe switches, else all), and their
  // rate where it is known and the same for all.
  std::uint32_t num_nics = 0;
  std::optional<Bandwidth> nic_bandwidth;
};

// Fills in the base. Throws InputError naming `name` where the model has no such machine: unequal
// NVLinks, or links that may be direct or through a switch; and where the base contradicts it.
ImportedTopology describe(const Machine& machine, const std::string& name, const Cluster& base,
                          const TopologyImportOptions& options);

}  // namespace coterie
