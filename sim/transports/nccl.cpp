// `nccl`: grouped sends and receives. Every rank pays a start cost per phase and tier before its
// first send (StartCost in topologies/transports.hpp), and a message needs its receiver's kernel as well:
// a rank that is early waits for those it exchanges with. (What fits into the buffers of a connection, a
// few MB, may leave before; that shortens the later rank's receiving, not the exchange, and is left
// out.) Then every message waits for one of the
// rank's `sends_in_flight` places, is silent for its segment's alpha, and flows no faster than its
// segment's bandwidth, or than the channels that its pair of ranks has. All messages of a rank share what it reaches, each direction and both
// together; those between two ranks what the channels of their connection reach, likewise. While
// kernels on another stream move rows (the second hop's forwards and gathers), their GPU's exchanges get
// what these leave of its memory (beside_kernels). Rows that stay on their rank cost nothing here.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "sim/transports/makers.hpp"
#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

// What one rank moves on one tier in a phase.
struct Volume {
  double bytes = 0.0;
  double received = 0.0;
  double largest = 0.0;
  // What its slowest connection takes, both directions shared, seconds.
  double pair_s = 0.0;
  // Mean of what its largest connection carries there and back.
  double exchanged = 0.0;
  std::uint32_t num_peers = 0;  // that it sends to, in however many messages
  double num_channels = 0.0;    // of its messages, where they are dealt to channels
};

// The one of the segments that a message of `bytes` falls in; the last has no limit.
template <class Segment>
const Segment& by_size(const std::vector<Segment>& segments, double bytes) {
  return *std::find_if(segments.begin(), segments.end(), [&](const Segment& segment) {
    return !segment.up_to || bytes <= static_cast<double>(segment.up_to->value);
  });
}

// How long `volume` bytes take on a ramp, beyond the launch; at `rate` bytes per second after its
// last point, and throughout where it has none.
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

double capped(const NcclTier& tier, const Injection& injection, Bandwidth bandwidth) {
  double rate = bandwidth.value;
  if (tier.rank_bandwidth) rate = std::min(rate, tier.rank_bandwidth->value);
  if (tier.rank_total_bandwidth) rate = std::min(rate, 0.5 * tier.rank_total_bandwidth->value);
  if (const auto cap = injection.rank_bandwidth) rate = std::min(rate, cap->value);
  if (const auto cap = injection.rank_total_bandwidth) rate = std::min(rate, 0.5 * cap->value);
  return rate;
}

// Bytes on a link that several ranks share, what it carries, and how StartCost ramps it.
struct SharedVolume {
  double bytes = 0.0;
  double rate = 1.0;
  std::vector<RampPoint> StartCost::*ramp = &StartCost::shared_ramp;
  bool slower_with_few = false;  // see NcclTier::few_channels
};

// What the channels of a message of `bytes` reach, each direction, in an exchange of equal parts where a
// communicator of `num_ranks` uses the tier.
std::optional<double> dealt_rate(const NcclTier& tier, const MessageSegment& segment,
                                 std::uint32_t num_ranks, double bytes) {
  if (!segment.channel_bandwidth) return std::nullopt;
  return segment.channel_bandwidth->value * deal_message(tier, num_ranks, bytes).channels;
}

// By what segments and starts tell messages apart.
double protocol_size(const NcclTier& tier, std::uint32_t num_ranks, double bytes) {
  return tier.chunk && tier.channels ? deal_message(tier, num_ranks, bytes).protocol_size : bytes;
}

// The ranks of a phase among which the messages of a tier move: those of a scale-up domain, or all.
std::uint32_t tier_ranks(const Cluster& cluster, std::size_t num_ranks, bool inside) {
  const auto all = static_cast<std::uint32_t>(num_ranks);
  if (!inside || !cluster.scale_up) return all;
  return std::min(all, cluster.scale_up->nodes_per_domain * cluster.gpus_per_node);
}

// What the first chunks of a rank's channels cost beyond their part of the stream: see StartCost.
double first_chunks_s(const NcclTier& tier, const StartCost& cost, const MessageSegment& segment,
                      const Volume& volume, double bytes, double rate, double part) {
  if (!cost.first_bandwidth) return 0.0;
  const double channels = std::min(volume.num_channels, static_cast<double>(tier.channels.value()));
  const double first = std::min(part, static_cast<double>(tier.chunk.value().value));
  const double all = std::min(bytes, channels * first);
  const double alone_s = first / segment.channel_bandwidth.value().value;
  return alone_s + all / cost.first_bandwidth->value - std::max(alone_s, all / rate);
}

// Delay of a rank: see StartCost.
double delay_s(const NcclTier& tier, const Injection& injection, const Volume& volume, double rate,
               std::uint32_t num_ranks, std::span<const SharedVolume> shared) {
  if (tier.start.empty() || volume.num_peers == 0) return 0.0;
  const double size = protocol_size(tier, num_ranks, volume.largest);
  const StartCost& cost = by_size(tier.start, size);
  const MessageSegment& segment = by_size(tier.segments, size);
  const double dealt_channels =
      tier.channels ? deal_message(tier, num_ranks, volume.largest).channels : 1.0;
  const double single =
      std::max(volume.pair_s, segment.bandwidth ? volume.largest / segment.bandwidth->value : 0.0);
  const std::optional<double> channels = dealt_rate(tier, segment, num_ranks, volume.exchanged);
  const double dealt = channels ? volume.exchanged / *channels : 0.0;
  const bool both = injection.rank_total_bandwidth || tier.rank_total_bandwidth;
  const double bytes = both ? 0.5 * (volume.bytes + volume.received) : volume.bytes;
  double ramped =
      std::max(single, ramp_time_s(cost.ramp, bytes, rate) + std::max(0.0, dealt - bytes / rate) +
                           first_chunks_s(tier, cost, segment, volume, bytes, rate,
                                          volume.largest / dealt_channels));
  const bool few =
      tier.few_channels && dealt_channels < tier.pair_channels.value_or(*tier.channels);
  double links = std::max({single, dealt, bytes / rate});
  for (const SharedVolume& on : shared) {
    if (on.bytes <= 0.0) continue;
    const bool slower = few && on.slower_with_few && (cost.*on.ramp).empty();
    ramped = std::max(ramped, ramp_time_s(cost.*on.ramp, on.bytes, on.rate) *
                                  (slower ? *tier.few_channels : 1.0));
    links = std::max(links, on.bytes / on.rate);
  }
  return std::max(0.0, cost.launch.value + cost.per_peer.value * (volume.num_peers - 1) +
                           cost.per_doubling.value * std::log2(0.5 * (volume.num_peers + 1.0)) +
                           ramped - links);
}

// Bytes from every rank to every other, [num_ranks][num_ranks].
class PairBytes {
 public:
  explicit PairBytes(std::size_t num_ranks)
      : num_ranks_(num_ranks), bytes_(num_ranks * num_ranks, 0.0) {}
  double& operator()(std::size_t src, std::size_t dst) { return bytes_[src * num_ranks_ + dst]; }

 private:
  std::size_t num_ranks_;
  std::vector<double> bytes_;
};

// What the connection of two ranks takes for what they exchange.
double pair_time_s(const NcclTier& tier, double there, double back) {
  double time_s = 0.0;
  if (tier.pair_bandwidth) time_s = std::max(there, back) / tier.pair_bandwidth->value;
  if (tier.pair_total_bandwidth) {
    time_s = std::max(time_s, (there + back) / tier.pair_total_bandwidth->value);
  }
  return time_s;
}

// Seconds, [rank][0: scale-up, 1: network], of a phase over `num_ranks` ranks.
std::vector<std::array<double, 2>> start_delays(const Cluster& cluster,
                                                const NcclParameters& parameters,
                                                const PhaseTraffic& traffic) {
  const std::size_t num_ranks = traffic.ready.size();
  std::vector<std::array<Volume, 2>> volumes(num_ranks);
  // Volumes on the sockets' shared links; a single "socket" where there is no scale-up.
  const std::uint32_t socket_gpus = cluster.scale_up
                                        ? cluster.scale_up->nodes_per_domain *
                                              cluster.gpus_per_node / cluster.scale_up->num_sockets
                                        : cluster.num_gpus();
  std::vector<double> shared(cluster.num_gpus() / socket_gpus, 0.0);
  std::vector<bool> met(num_ranks * num_ranks, false);
  PairBytes pairs(num_ranks);
  // And between the sockets of a domain.
  const std::uint32_t num_sockets = cluster.scale_up ? cluster.scale_up->num_sockets : 1;
  std::vector<double> between(shared.size() / num_sockets, 0.0);
  for (const Message& message : traffic.messages) {
    if (message.src == message.dst) continue;
    const bool inside = tier_of(cluster, message.src, message.dst) == Tier::kScaleUp;
    Volume& volume = volumes[message.src - traffic.first_gpu][inside ? 0 : 1];
    volume.bytes += message.bytes;
    volume.largest = std::max(volume.largest, message.bytes);
    const std::size_t pair = std::size_t{message.src - traffic.first_gpu} * num_ranks +
                             (message.dst - traffic.first_gpu);
    if (!met[pair]) ++volume.num_peers;
    met[pair] = true;
    const auto& tier = inside ? parameters.scale_up : parameters.network;
    if (tier && tier->channels) {
      volume.num_channels +=
          deal_message(*tier, tier_ranks(cluster, num_ranks, inside), message.bytes).channels;
    }
    pairs(message.src - traffic.first_gpu, message.dst - traffic.first_gpu) += message.bytes;
    volumes[message.dst - traffic.first_gpu][inside ? 0 : 1].received += message.bytes;
    if (!inside || !cluster.scale_up->shared_bandwidth) continue;
    const std::uint32_t group = cluster.scale_up->shared_group;
    if (message.src / group == message.dst / group) continue;
    const std::uint32_t from = message.src / socket_gpus;
    const std::uint32_t to = message.dst / socket_gpus;
    shared[from] += message.bytes;
    if (to == from) continue;
    shared[to] += message.bytes;
    between[from / num_sockets] += message.bytes;
  }
  for (std::uint32_t a = 0; a < num_ranks; ++a) {
    for (std::uint32_t b = 0; b < a; ++b) {
      if (!met[std::size_t{a} * num_ranks + b] && !met[std::size_t{b} * num_ranks + a]) continue;
      const bool inside =
          tier_of(cluster, traffic.first_gpu + a, traffic.first_gpu + b) == Tier::kScaleUp;
      const auto& tier = inside ? parameters.scale_up : parameters.network;
      if (!tier) continue;
      const double time_s = pair_time_s(*tier, pairs(a, b), pairs(b, a));
      for (const std::uint32_t rank : {a, b}) {
        Volume& volume = volumes[rank][inside ? 0 : 1];
        volume.pair_s = std::max(volume.pair_s, time_s);
        volume.exchanged = std::max(volume.exchanged, 0.5 * (pairs(a, b) + pairs(b, a)));
      }
    }
  }
  std::vector<std::array<double, 2>> delays(num_ranks, {0.0, 0.0});
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    if (const auto& scale_up = cluster.scale_up; scale_up && parameters.scale_up) {
      const std::uint32_t socket = (traffic.first_gpu + rank) / socket_gpus;
      const auto rate_of = [](const std::optional<Bandwidth>& rate) {
        return rate ? rate->value : std::numeric_limits<double>::infinity();
      };
      const std::array<SharedVolume, 2> links{
          SharedVolume{shared[socket], rate_of(scale_up->shared_bandwidth), &StartCost::shared_ramp,
                       !scale_up->socket_bandwidth},
          SharedVolume{between[socket / num_sockets], rate_of(scale_up->socket_bandwidth),
                       &StartCost::socket_ramp, true}};
      delays[rank][0] =
          delay_s(*parameters.scale_up, scale_up->injection, volumes[rank][0],
                  capped(*parameters.scale_up, scale_up->injection, scale_up->bandwidth),
                  tier_ranks(cluster, num_ranks, true), links);
    }
    if (const auto& nic = cluster.nic; nic && parameters.network) {
      delays[rank][1] =
          delay_s(*parameters.network, nic->injection, volumes[rank][1],
                  capped(*parameters.network, nic->injection, nic->bandwidth * nic->per_gpu),
                  tier_ranks(cluster, num_ranks, false), {});
    }
  }
  return delays;
}

// What every rank's messages reach together on a tier, and what a pair of ranks does: resources per
// GPU or pair of GPUs, made on first use and shared by all phases.
class Rates {
 public:
  explicit Rates(const NcclParameters& parameters) : parameters_(parameters) {}

  void use(ProgramBuilder& builder, GpuResources& gpus, std::uint32_t src, std::uint32_t dst,
           bool inside, std::vector<std::uint32_t>& uses) {
    const auto& tier = inside ? parameters_.scale_up : parameters_.network;
    if (!tier) return;
    const char* name = inside ? "scale_up" : "network";
    const auto add = [&](Kind kind, std::uint32_t a, std::uint32_t b,
                         const std::optional<Bandwidth>& rate, const char* label) {
      if (!rate) return;
      const auto [found, is_new] = resources_.try_emplace({kind, inside, a, b}, 0);
      if (is_new) {
        const bool pair = kind == Kind::kPair || kind == Kind::kPairTotal;
        const std::string who =
            pair ? fmt::format("gpu {} {} {}", a, label, b) : fmt::format("gpu {} {}", a, label);
        found->second = builder.add_resource(fmt::format("{} nccl {}", who, name), rate->value);
      }
      uses.push_back(found->second);
    };
    add(Kind::kOut, src, 0, tier->rank_bandwidth, "out");
    add(Kind::kIn, dst, 0, tier->rank_bandwidth, "in");
    add(Kind::kTotal, src, 0, tier->rank_total_bandwidth, "both ways");
    add(Kind::kTotal, dst, 0, tier->rank_total_bandwidth, "both ways");
    add(Kind::kPair, src, dst, tier->pair_bandwidth, "to");
    add(Kind::kPairTotal, std::min(src, dst), std::max(src, dst), tier->pair_total_bandwidth,
        "and");
    if (!tier->beside_kernels || !tier->rank_bandwidth) return;
    // Both directions: what is left beside a kernel is that part of all that the GPU exchanges.
    const double rate =
        tier->rank_total_bandwidth.value_or(Bandwidth{2.0 * tier->rank_bandwidth->value}).value;
    for (const std::uint32_t gpu : {src, dst}) {
      add(Kind::kBeside, gpu, 0, Bandwidth{rate}, "beside kernels");
      gpus.set_exchanges(gpu, uses.back(), rate * (1.0 - 1.0 / *tier->beside_kernels));
    }
  }

 private:
  enum class Kind : std::uint8_t { kOut, kIn, kTotal, kPair, kPairTotal, kBeside };
  const NcclParameters& parameters_;
  // By kind, tier and GPUs.
  std::map<std::tuple<Kind, bool, std::uint32_t, std::uint32_t>, std::uint32_t> resources_;
};

class NcclPhase : public PhaseTransport {
 public:
  NcclPhase(ProgramBuilder& builder, GpuResources& gpus, const Cluster& cluster,
            const NcclParameters& parameters, SendQueues& queues, Rates& rates,
            const PhaseTraffic& traffic)
      : builder_(builder),
        gpus_(gpus),
        cluster_(cluster),
        parameters_(parameters),
        queues_(queues),
        rates_(rates),
        first_gpu_(traffic.first_gpu) {
    for (const std::uint32_t event : traffic.ready) starts_.push_back({event, event});
    meets_ = may_meet(traffic);
    add_exchanged(traffic);
    if (traffic.continues) return;
    const auto delays = start_delays(cluster, parameters, traffic);
    for (std::uint32_t rank = 0; rank < starts_.size(); ++rank) {
      for (std::size_t tier = 0; tier < 2; ++tier) {
        if (delays[rank][tier] <= 0.0) continue;
        const std::array<std::uint32_t, 1> started{builder.add_event()};
        builder.add_compute(first_gpu_ + rank, delays[rank][tier], traffic.ready[rank], started);
        starts_[rank][tier] = started[0];
      }
    }
  }

  std::optional<std::uint32_t> send(const Message& message, std::uint32_t after,
                                    std::span<const std::uint32_t> signals) override {
    if (message.src == message.dst) return std::nullopt;
    const Tier tier = tier_of(cluster_, message.src, message.dst);
    const bool inside = tier == Tier::kScaleUp;
    Operation transfer{.src = message.src,
                       .dst = message.dst,
                       .amount = message.bytes,
                       .queue = queues_.of(builder_, message.src, tier),
                       .signals = signals};
    if (const auto& costs = inside ? parameters_.scale_up : parameters_.network) {
      const std::uint32_t num_ranks = tier_ranks(cluster_, starts_.size(), inside);
      const MessageSegment& segment =
          by_size(costs->segments, protocol_size(*costs, num_ranks, message.bytes));
      transfer.duration = segment.alpha.value;
      auto rate = dealt_rate(*costs, segment, num_ranks, message.bytes);
      if (rate) *rate *= share_of_pair(message);
      if (segment.bandwidth) {
        rate = std::min(rate.value_or(segment.bandwidth->value), segment.bandwidth->value);
      }
      if (rate) transfer.rate_cap = builder_.add_rate_cap(*rate);
    }
    transfer.waits_for =
        when_both(builder_, message.src, meeting(message.src, message.dst, inside ? 0 : 1), after);
    std::vector<std::uint32_t> uses;
    rates_.use(builder_, gpus_, message.src, message.dst, inside, uses);
    transfer.uses = uses;
    return builder_.add(transfer);
  }

 private:
  // Bytes from rank to rank, where the channels of pairs matter.
  void add_exchanged(const PhaseTraffic& traffic) {
    const auto deals = [](const std::optional<NcclTier>& tier) { return tier && tier->channels; };
    if (!deals(parameters_.scale_up) && !deals(parameters_.network)) return;
    for (const Message& message : traffic.messages) {
      if (message.src == message.dst) continue;
      const bool inside = tier_of(cluster_, message.src, message.dst) == Tier::kScaleUp;
      if (!deals(inside ? parameters_.scale_up : parameters_.network)) continue;
      exchanged_[{message.src, message.dst}] += message.bytes;
    }
  }

  // A channel's block moves what comes and what goes: the direction of more bytes gets more of it. One in
  // an exchange of equal parts, two where nothing comes back.
  [[nodiscard]] double share_of_pair(const Message& message) const {
    const auto bytes = [&](std::uint32_t src, std::uint32_t dst) {
      const auto found = exchanged_.find({src, dst});
      return found == exchanged_.end() ? 0.0 : found->second;
    };
    const double there = bytes(message.src, message.dst);
    const double back = bytes(message.dst, message.src);
    return there > 0.0 ? 2.0 * there / (there + back) : 1.0;
  }

  // Whether messages may leave in the order in which pairs of ranks have started: where a rank's messages
  // wait for places, or come in rounds, the order in which they were added decides, and they wait for
  // their sender alone.
  [[nodiscard]] bool may_meet(const PhaseTraffic& traffic) const {
    std::vector<std::uint32_t> sends(traffic.ready.size(), 0);
    std::set<std::pair<std::uint32_t, std::uint32_t>> pairs;
    for (const Message& message : traffic.messages) {
      if (message.src == message.dst) continue;
      if (!pairs.emplace(message.src, message.dst).second) return false;
      const Injection* injection =
          injection_of(cluster_, tier_of(cluster_, message.src, message.dst));
      const std::uint32_t places = injection ? injection->sends_in_flight : kUnlimitedSends;
      if (++sends[message.src - first_gpu_] > places) return false;
    }
    return true;
  }

  // From when on two ranks exchange: both kernels run.
  std::uint32_t meeting(std::uint32_t src, std::uint32_t dst, std::size_t tier) {
    if (!meets_) return starts_[src - first_gpu_][tier];
    const auto [found, is_new] =
        meetings_.try_emplace({std::min(src, dst), std::max(src, dst), tier}, kStartEvent);
    if (is_new) {
      found->second = when_both(builder_, src, starts_[src - first_gpu_][tier],
                                starts_[dst - first_gpu_][tier]);
    }
    return found->second;
  }

  ProgramBuilder& builder_;
  GpuResources& gpus_;
  const Cluster& cluster_;
  const NcclParameters& parameters_;
  SendQueues& queues_;
  Rates& rates_;
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::size_t>, std::uint32_t> meetings_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, double> exchanged_;  // by GPUs
  bool meets_ = false;
  std::uint32_t first_gpu_;
  std::vector<std::array<std::uint32_t, 2>> starts_;  // [rank][0: scale-up, 1: network]
};

class Nccl : public Transport {
 public:
  Nccl(const Cluster& cluster, NcclParameters parameters)
      : cluster_(cluster),
        parameters_(std::move(parameters)),
        queues_(cluster),
        rates_(parameters_) {}
  std::unique_ptr<PhaseTransport> begin(ProgramBuilder& builder, GpuResources& gpus,
                                        const PhaseTraffic& traffic) override {
    return std::make_unique<NcclPhase>(builder, gpus, cluster_, parameters_, queues_, rates_,
                                       traffic);
  }

 private:
  const Cluster& cluster_;
  NcclParameters parameters_;
  SendQueues queues_;
  Rates rates_;
};

}  // namespace

std::unique_ptr<Transport> make(const Cluster& cluster, const NcclParameters& parameters) {
  return std::make_unique<Nccl>(cluster, parameters);
}

}  // namespace coterie
