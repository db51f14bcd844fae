#pragma once
// What can be said about a cluster before anything is simulated: counts, bandwidth per tier,
// reachability, diameter and bisection bandwidth, all from the Boost.Graph of fabric.hpp.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "topologies/fabric.hpp"

namespace coterie {

// All cables of one kind.
struct CableGroup {
  std::string name;  // "GPU - leaf"
  Tier tier = Tier::kNetwork;
  std::uint64_t num_cables = 0;
  Bandwidth bandwidth;  // of one, each direction
  Seconds latency;
};

struct FabricSummary {
  std::uint32_t num_nodes = 0, num_gpus = 0, num_domains = 0, num_nics = 0;
  std::map<std::string, std::uint32_t> num_switches;  // by kind; scale-up switches not included
  std::vector<CableGroup> cables;                     // scale-up first, then upwards

  // Whether every GPU has a route to every other one.
  bool reachable = true;
  // Links on the longest shortest route from NIC to NIC; inside a domain where there is no network.
  // Changing rails over scale-up adds two more.
  std::uint32_t diameter = 0;
  // Bytes per second and direction between the two halves of the GPUs of a domain (fewest of
  // floor(n/2) ports and the shared bandwidth).
  std::optional<Bandwidth> scale_up_bisection;
  // Between the first floor(D/2) scale-up domains (nodes where there is no scale-up) and the
  // others: the maximum flow over the network alone, each GPU's NICs being able to send and to
  // receive at their full rate. The halves are taken in order of ids; it is not the minimum over
  // all ways to halve the cluster. Rank caps do not count.
  std::optional<Bandwidth> network_bisection;
  // The NIC bandwidth of the first half divided by network_bisection.
  std::optional<double> oversubscription;
};

FabricSummary summarize(const Cluster& cluster);
FabricSummary summarize(const Cluster& cluster, const FabricModel& model);

}  // namespace coterie
