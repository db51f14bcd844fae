#pragma once
// What calibrated topologies charge a rank before its first send of a phase (StartCost in
// topologies/cluster.hpp). Programs realise it as a computation that the sends wait for, so that
// every engine treats it alike.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "topologies/cluster.hpp"

namespace coterie {

struct PhaseSend {
  std::uint32_t src = 0, dst = 0;  // GPUs, different
  double bytes = 0.0;
};

// Seconds, [src][0: scale-up, 1: network]; as long as the largest `src` needs.
using StartDelays = std::vector<std::array<double, 2>>;

// The delays of one phase, given all its sends of an EP group. Empty where the cluster has none.
StartDelays start_delays(const Cluster& cluster, std::span<const PhaseSend> sends);

// The position in StartDelays' inner array of a send between two GPUs.
std::size_t tier_index(const Cluster& cluster, std::uint32_t src, std::uint32_t dst);

// How long `volume` bytes take on a ramp, beyond the launch; at `rate` bytes per second after its
// last point, and throughout where it has none.
double ramp_time_s(std::span<const RampPoint> ramp, double volume, double rate);

}  // namespace coterie
