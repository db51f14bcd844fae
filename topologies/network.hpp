#pragma once
// The cluster as links and routes: what every predictor consumes. Built once per cluster from the
// fabric's Boost.Graph (fabric.hpp); flat arrays, no graph in the hot path.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/ids.hpp"
#include "core/units.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// One direction of a cable, a port, or a shared bottleneck.
struct Link {
  std::string name;  // "gpu 3 scale-up out", "leaf 0 -> spine 2"
  Tier tier = Tier::kScaleUp;
  Bandwidth bandwidth;
  Seconds latency;
};

// How equal-cost routes are chosen.
enum class RouteChoice : std::uint8_t {
  kDeterministic,  // the same path for every flow of a pair (destination-based)
  kEcmp,           // by hash of (source, destination, flow key), as switches do
};

class Network {
 public:
  explicit Network(const Cluster& cluster, RouteChoice choice = RouteChoice::kEcmp);
  // The same links, but routes go around `failed`, by position in links(), where another path exists:
  // over other cables, through the NIC of another GPU of the same scale-up domain on either side, or,
  // for a scale-up port, over the NICs. Where none exists the route is as if nothing had failed.
  Network(const Cluster& cluster, std::span<const std::uint32_t> failed,
          RouteChoice choice = RouteChoice::kEcmp);
  ~Network();
  Network(Network&&) noexcept;
  Network& operator=(Network&&) noexcept;

  [[nodiscard]] const Cluster& cluster() const;
  [[nodiscard]] std::span<const Link> links() const;
  [[nodiscard]] std::uint32_t num_gpus() const;

  [[nodiscard]] Tier tier(GpuId src, GpuId dst) const;
  // Appends the links from src to dst to `out` in order. Nothing for src == dst. A transfer
  // occupies all of them at once at one rate. Throws InputError if dst cannot be reached.
  // Thread-safe; takes O(path length).
  void append_route(GpuId src, GpuId dst, std::uint64_t flow_key, std::vector<LinkId>& out) const;
  [[nodiscard]] Seconds route_latency(std::span<const LinkId> route) const;
  // The injection limits of the tier.
  [[nodiscard]] const Injection& injection(Tier tier) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace coterie
