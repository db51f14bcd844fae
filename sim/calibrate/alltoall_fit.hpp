#pragma once
// Links of one node from measured uniform all-to-alls. The models are exactly what the simulator
// computes for a uniform all-to-all over n ranks on the calibrated cluster (StartCost in
// topologies/transports.hpp). x: bytes that leave each rank, m: bytes of one message, X: bytes over a
// link that ranks share, Y: bytes between two sockets.
//
// ChannelModel is what NCCL does where all know how it deals messages to its channels, blocks of
// threads that copy: over NVLink and over PCIe. A message has k channels (deal_message; k depends on m,
// n and the version of NCCL), each a part p = m / k of it. Small messages (parts of up to 16 KiB;
// before NCCL 2.29 those of up to 16 KiB for every channel of a pair, however many it uses) are sent
// with the protocol LL, which adds as many bytes of flags. A part fits into its buffer: nothing
// overlaps, and over NVLink
//
//   time = launch + per_doubling * log2(n / 2) + latency + p / LL's rate + 2 * x / first rate
//
// over PCIe with max(p / LL's rate, x / B, LL's slope * X, LL's slope * Y) after the latency. Larger
// ones are sent with the protocol Simple, chunk by chunk:
//
//   time = launch + per_doubling * log2(n / 2) + latency
//            + max(max(p / channel rate, x / B) + first, few * X / S, few * Y / T)
//
// Every rank waits for the last of n: that costs more by the logarithm of n. A channel copies a chunk
// into the receiver's buffer while the receiver copies the one before out of it, at the channel's
// rate or that of the rank's links. Nobody copies the first chunk meanwhile (a part of up to one chunk
// not at all): with q = min(p, chunk), c channels in use and Q = c * q,
//
//   first = q / channel rate + Q / first rate - max(q / channel rate, Q / B)
//
// Over PCIe x / B alone is fitted (no channel rate, no `first`). There a pair of
// ranks has two channels at most, and with fewer less is on its way at once over the longest of the
// shared links: `few`, one or more, while a message has one. What ranks share is one bridge, or one per
// socket of 4 GPUs and what joins the sockets, or the uplink of each switch with 2 GPUs; which of them,
// and of how many channels, cross-validation chooses.
//
// VolumeModel is for what says nothing of its channels: one count of ranks, and sockets.
//
//   links = max(x/B, m / message rate)
//   start = max(0, launch + per_peer * (n - 2) + max(ramp(x), m / message rate) - links)
//   time  = start + latency + links
//
// with one set of launch, per_peer and message rate for messages up to the protocol threshold (NCCL
// sends up to 16 KiB per channel with LL) and one above. Volumes hide behind the launch until they take
// as long:
//
//   ramp(x) = (launch^q + line(x)^q)^(1/q) - launch,   line(x) = x / B + bend(x)
//
// The bend is what channels lose while their pipelines fill. A larger message is cut into larger
// parts, whose first chunk has to arrive before it can be copied out, up to a largest chunk: the bend
// grows with the logarithm of the volume, and ends. Times never fall. Its knots are chosen by
// cross-validation. The cluster holds the ramp as a table.

#include <optional>
#include <string>
#include <variant>
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

struct VolumeModel {
  // NCCL's P2P threshold between LL and Simple; zero: one protocol only.
  double threshold = 16384.0;
  struct Protocol {
    double launch_s = 0.0;
    double per_peer_s = 0.0;
    std::optional<double> message_rate;  // bytes per second
  };
  Protocol small, large;
  VolumeLine line;
  double sharpness = 4.0;   // q
  double latency_s = 0.0;   // of the two links between two GPUs
  bool rank_total = false;  // a rank's two directions share 2 / line.slope (socket transports)

  [[nodiscard]] double time_s(std::uint32_t num_ranks, double bytes_per_rank) const;
  // The ramp of StartCost, seconds beyond the launch.
  [[nodiscard]] double ramp_s(double volume) const;
};

struct ChannelModel {
  // How messages are dealt, segments with `up_to` included; the rest is written by calibrated_cluster.
  NcclTier dealing;
  struct Protocol {
    double launch_s = 0.0;
    double per_doubling_s = 0.0;
  };
  Protocol small, large;
  double ll_rate = 0.0;  // of one channel, bytes per second
  double slope = 0.0;    // of a rank's links, seconds per byte
  // What a channel copies; absent: more than the links.
  struct Copy {
    double rate = 0.0;         // of one channel, bytes per second
    double first_slope = 0.0;  // seconds per byte
  };
  std::optional<Copy> copy;
  struct SharedLink {
    double slope = 0.0, small_slope = 0.0;  // seconds per byte of large and small messages
  };
  std::optional<SharedLink> shared, socket;
  double few_channels = 1.0;
  std::uint32_t shared_group = 1;
  std::optional<std::uint32_t> socket_gpus;  // GPUs with a shared link of their own; absent: all
  double latency_s = 0.0;                    // of the two links between two GPUs

  [[nodiscard]] double time_s(std::uint32_t num_ranks, double bytes_per_rank) const;
};

struct AllToAllModel {
  std::variant<VolumeModel, ChannelModel> form;
  [[nodiscard]] double time_s(std::uint32_t num_ranks, double bytes_per_rank) const;
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
