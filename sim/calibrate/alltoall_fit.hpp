#pragma once
// Links of one node from measured uniform all-to-alls. The model is exactly what the simulator
// computes for a uniform all-to-all over n ranks on the calibrated cluster (StartCost in
// topologies/transports.hpp): with x bytes leaving each rank, m bytes per message, and X bytes over
// the shared link,
//
//   dealt = m / (channels_per_peer(n) * channel rate)
//   links = max(x/B, X/S, m / message rate, dealt)
//   start = max(0, launch + per_peer * (n - 2)
//                    + max(ramp(x) + max(0, dealt - x/B), shared_ramp(X), m / message rate) - links)
//   time  = start + latency + links
//
// The large messages of NVLink have channels, of which a peer gets fewer the more peers there are (a
// pair then takes longer per byte than x/B: B200 in 2 GPUs reaches 344 GB/s, in 8 587), all others a
// message rate.
//
// with one set of launch, per_peer and message rate for messages up to the protocol threshold (NCCL
// sends up to 16 KiB per channel with its LL protocol, and opens two channels over PCIe) and one
// above. Volumes hide behind the launch until they take as long (Y bytes between two sockets enter as
// X does, over a link of their own):
//
//   ramp(x) = (launch^q + line(x)^q)^(1/q) - launch,   line(x) = x / B + bend(x)
//
// The bend is what channels lose while their pipelines fill. A larger message is cut into larger
// parts, whose first chunk has to arrive before it can be copied out, up to a largest chunk: the bend
// grows with the logarithm of the volume, and ends. Times never fall. Its knots are chosen by
// cross-validation. The cluster holds the ramp as a table.

#include <optional>
#include <string>
#include <vector>

#include "sim/calibrate/measurements.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// volume * slope, and a bend that grows up to each knot by its part of `bends`: in proportion to the
// volume up to the first, to its logarithm between two.
struct VolumeLine {
  double slope = 0.0;         // seconds per byte
  std::vector<double> knots;  // bytes, ascending
  std::vector<double> bends;  // seconds, one per knot

  [[nodiscard]] double time_s(double volume) const;
};

// slopes[i], seconds per byte, up to knots[i] bytes, the last beyond: a link that many ranks share
// reaches more or less the more channels work on it.
struct SharedLine {
  std::vector<double> knots;   // bytes, ascending
  std::vector<double> slopes;  // one more

  [[nodiscard]] double time_s(double volume) const;
};

struct AllToAllModel {
  // NCCL's P2P threshold between LL and Simple; zero: one protocol only.
  double threshold = 16384.0;
  struct Protocol {
    double launch_s = 0.0;
    double per_peer_s = 0.0;
    std::optional<double>
        message_rate;  // bytes per second; of one channel where there are channels
  };
  Protocol small, large;
  VolumeLine line;
  double sharpness = 4.0;  // q
  // The same over X, and the one slope of small messages. Absent: no shared link.
  std::optional<SharedLine> shared;
  double small_shared_slope = 0.0;
  // The same over what crosses between sockets; absent unless socket_gpus is given.
  std::optional<SharedLine> socket;
  double small_socket_slope = 0.0;
  std::uint32_t shared_group = 1;
  std::optional<std::uint32_t> socket_gpus;  // GPUs with a shared link of their own; absent: all
  double latency_s = 0.0;                    // of the two links between two GPUs
  // Of a communicator (NcclTier), for large messages; zero: not limited by them.
  std::uint32_t channels = 0;
  bool rank_total = false;  // a rank's two directions share 2 / line.slope (socket transports)

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
  bool nvlink = false;  // a channel's rate limits messages, and a rank has few channels
  double latency_s = 0.0;
  std::optional<double> link_bandwidth;  // of the data sheet, bytes per second; absent: not known
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
