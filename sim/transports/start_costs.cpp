#include "sim/transports/start_costs.hpp"

#include <algorithm>
#include <optional>

namespace coterie {
namespace {

// What one rank sends on one tier.
struct Volume {
  double bytes = 0.0;
  double received = 0.0;
  double largest = 0.0;
  std::uint32_t num_sends = 0;
};

// The one of the segments that a message of `bytes` falls in; the last has no limit.
template <class Segment>
const Segment& by_size(const std::vector<Segment>& segments, double bytes) {
  return *std::find_if(segments.begin(), segments.end(), [&](const Segment& segment) {
    return !segment.up_to || bytes <= static_cast<double>(segment.up_to->value);
  });
}

double capped(const Injection& injection, Bandwidth bandwidth) {
  double rate = bandwidth.value;
  if (const auto cap = injection.rank_bandwidth) rate = std::min(rate, cap->value);
  if (const auto cap = injection.rank_total_bandwidth) rate = std::min(rate, 0.5 * cap->value);
  return rate;
}

// Delay of a rank: see StartCost. `shared` is the volume on the domain's shared link.
double delay_s(const Injection& injection, const Volume& volume, double rate, double shared,
               double shared_rate) {
  if (injection.start.empty() || volume.num_sends == 0) return 0.0;
  const StartCost& cost = by_size(injection.start, volume.largest);
  const std::optional<Bandwidth> cap = by_size(injection.segments, volume.largest).bandwidth;
  const double single = cap ? volume.largest / cap->value : 0.0;
  const double bytes =
      injection.rank_total_bandwidth ? 0.5 * (volume.bytes + volume.received) : volume.bytes;
  double ramped = std::max(single, ramp_time_s(cost.ramp, bytes, rate));
  double links = std::max(single, bytes / rate);
  if (shared > 0.0) {
    ramped = std::max(ramped, ramp_time_s(cost.shared_ramp, shared, shared_rate));
    links = std::max(links, shared / shared_rate);
  }
  return std::max(
      0.0, cost.launch.value + cost.per_peer.value * (volume.num_sends - 1) + ramped - links);
}

}  // namespace

double ramp_time_s(std::span<const RampPoint> ramp, double volume, double rate) {
  double from = 0.0;
  double time_s = 0.0;
  for (const RampPoint& point : ramp) {
    const auto to = static_cast<double>(point.volume.value);
    if (volume <= to) {
      return time_s + (point.time.value - time_s) * (volume - from) / (to - from);
    }
    from = to;
    time_s = point.time.value;
  }
  return time_s + (volume - from) / rate;
}

std::size_t tier_index(const Cluster& cluster, std::uint32_t src, std::uint32_t dst) {
  if (!cluster.scale_up) return 1;
  const std::uint32_t domain = cluster.scale_up->nodes_per_domain * cluster.gpus_per_node;
  return src / domain == dst / domain ? 0 : 1;
}

StartDelays start_delays(const Cluster& cluster, std::span<const PhaseSend> sends) {
  const bool inside = cluster.scale_up && !cluster.scale_up->injection.start.empty();
  const bool between = cluster.nic && !cluster.nic->injection.start.empty();
  if (!(inside || between) || sends.empty()) return {};

  std::uint32_t num_gpus = 0;
  for (const PhaseSend& send : sends) num_gpus = std::max({num_gpus, send.src + 1, send.dst + 1});
  std::vector<std::array<Volume, 2>> volumes(num_gpus);
  const std::uint32_t domain_gpus =
      cluster.scale_up ? cluster.scale_up->nodes_per_domain * cluster.gpus_per_node : 1;
  std::vector<double> shared(num_gpus / domain_gpus + 1, 0.0);
  for (const PhaseSend& send : sends) {
    const std::size_t tier = tier_index(cluster, send.src, send.dst);
    Volume& volume = volumes[send.src][tier];
    volume.bytes += send.bytes;
    volume.largest = std::max(volume.largest, send.bytes);
    ++volume.num_sends;
    volumes[send.dst][tier].received += send.bytes;
    if (tier == 0 && cluster.scale_up->shared_bandwidth) {
      const std::uint32_t group = cluster.scale_up->shared_group;
      if (send.src / group != send.dst / group) shared[send.src / domain_gpus] += send.bytes;
    }
  }
  StartDelays delays(num_gpus, {0.0, 0.0});
  for (std::uint32_t gpu = 0; gpu < num_gpus; ++gpu) {
    if (const auto& scale_up = cluster.scale_up) {
      const double shared_rate =
          scale_up->shared_bandwidth ? scale_up->shared_bandwidth->value : 1.0;
      delays[gpu][0] = delay_s(scale_up->injection, volumes[gpu][0],
                               capped(scale_up->injection, scale_up->bandwidth),
                               shared[gpu / domain_gpus], shared_rate);
    }
    if (const auto& nic = cluster.nic) {
      delays[gpu][1] = delay_s(nic->injection, volumes[gpu][1],
                               capped(nic->injection, nic->bandwidth * nic->per_gpu), 0.0, 1.0);
    }
  }
  return delays;
}

}  // namespace coterie
