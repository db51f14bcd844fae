#pragma once
// Links of one node from measured uniform all-to-alls. The model is exactly what the simulator
// computes for a uniform all-to-all over n ranks on the calibrated cluster (StartCost in
// topologies/transports.hpp): with x bytes leaving each rank, m bytes per message, and X bytes over
// the shared link,
//
//   links = max(x/B, X/S, m / message rate)
//   start = max(0, launch + per_peer * (n - 2)
//                    + max(ramp(x), shared_ramp(X), m / message rate) - links)
//   time  = start + latency + links
//
// with one set of launch, per_peer and message rate for messages up to the protocol threshold (NCCL
// sends up to 16 KiB per peer with its LL protocol) and one above. Volumes hide behind the launch
// until they take as long (Y bytes between two sockets enter as X does, over a link of their own):
//
//   ramp(x) = (launch^q + line(x)^q)^(1/q) - launch
//
// with a line of few segments whose slopes are positive, so that times never fall; the knots are
// chosen by cross-validation. The cluster holds the ramp as a table.

#include <optional>
#include <string>
#include <vector>

#include "sim/calibrate/measurements.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

struct AllToAllModel {
  // NCCL's P2P threshold between LL and Simple; zero: one protocol only.
  double threshold = 16384.0;
  struct Protocol {
    double launch_s = 0.0;
    double per_peer_s = 0.0;
    std::optional<double> message_rate;  // bytes per second
  };
  Protocol small, large;
  // Time slopes, seconds per byte: slopes[i] up to knots[i] bytes, the last beyond.
  std::vector<double> knots, slopes;
  double sharpness = 4.0;  // q
  // The same over X, and the one slope of small messages. Empty: no shared link.
  std::vector<double> shared_knots, shared_slopes;
  double small_shared_slope = 0.0;
  // The same over what crosses between sockets; empty unless socket_gpus is given.
  std::vector<double> socket_knots, socket_slopes;
  double small_socket_slope = 0.0;
  std::uint32_t shared_group = 1;
  std::optional<std::uint32_t> socket_gpus;  // GPUs with a shared link of their own; absent: all
  double latency_s = 0.0;                    // of the two links between two GPUs
  bool rank_total = false;  // a rank's two directions share 2 / slopes.back() (socket transports)

  [[nodiscard]] double time_s(std::uint32_t num_ranks, double bytes_per_rank) const;
  // The ramps of StartCost, seconds beyond the launch.
  [[nodiscard]] double ramp_s(double volume) const;
  [[nodiscard]] double shared_ramp_s(double volume) const;
  [[nodiscard]] double small_shared_ramp_s(double volume) const;
  [[nodiscard]] double socket_ramp_s(double volume) const;
  [[nodiscard]] double small_socket_ramp_s(double volume) const;
};

struct AllToAllOptions {
  bool socket = false;       // knots for links of a few GB/s
  bool shared_link = false;  // fit a bottleneck between groups of `shared_group` GPUs
  std::uint32_t shared_group = 1;
  double latency_s = 0.0;
};

struct AllToAllFit {
  AllToAllModel model;
  struct Parameter {
    std::string name;
    double value = 0.0;           // SI
    double relative_error = 0.0;  // standard error
  };
  std::vector<Parameter> parameters;
  std::vector<std::string> undetermined;
  // Signed relative errors of points in folds that were left out, in the order of the points.
  std::vector<double> held_out;
};

// `points` as select_machine returns them. Deterministic.
AllToAllFit fit_alltoall(const std::vector<AllToAllPoint>& points, const AllToAllOptions& options);

// `base` with the fitted scale-up links; the scale-up costs of its transport `nccl` are replaced.
Cluster calibrated_cluster(const Cluster& base, const AllToAllModel& model);

// The links of a probe's skeleton carry what one pair of ranks reached alone, which is no physical
// limit: all ranks together may reach more. Raises the bandwidth to what the points show; returns
// whether they show more.
bool widen_links(const std::vector<AllToAllPoint>& points, Cluster& cluster);

// The options that a cluster's kind of link asks for: a shared link between pairs of GPUs on PCIe,
// none on NVLink; a socket transport is limited per rank (by its proxy thread).
AllToAllOptions alltoall_options(const Cluster& base);

}  // namespace coterie
