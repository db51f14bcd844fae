#include "sim/transports/kernel_phase.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

// Ranks that a sender of this hop may have rows for: the kernels deal their warps to them.
std::uint32_t destinations(const Cluster& cluster, const PhaseTraffic& traffic) {
  const auto num_ranks = static_cast<std::uint32_t>(traffic.ready.size());
  const std::uint32_t per_node = std::min(cluster.gpus_per_node, num_ranks);
  bool inside_node = true;
  bool along_rails = true;
  for (const Message& message : traffic.messages) {
    inside_node &= message.src / cluster.gpus_per_node == message.dst / cluster.gpus_per_node;
    along_rails &= message.src % cluster.gpus_per_node == message.dst % cluster.gpus_per_node;
  }
  if (num_ranks <= per_node || per_node == cluster.ranks_per_gpu) return num_ranks;
  if (along_rails) return (num_ranks + per_node - 1) / per_node;
  return inside_node ? per_node : num_ranks;
}

// Resources of the ranks of a phase. A resource that limits nothing is not made.
class RankResources {
 public:
  RankResources(ProgramBuilder& builder, std::string_view name, std::uint32_t first_gpu)
      : builder_(builder), name_(name), first_gpu_(first_gpu) {}
  void add(double capacity) {
    std::optional<std::uint32_t> resource;
    if (capacity > 0.0) {
      const auto gpu = first_gpu_ + static_cast<std::uint32_t>(resources_.size());
      resource = builder_.add_resource(fmt::format("gpu {} {}", gpu, name_), capacity);
    }
    resources_.push_back(resource);
  }
  // The next rank has the resource of the one before.
  void share() { resources_.push_back(resources_.back()); }
  void use(std::uint32_t rank, std::vector<std::uint32_t>& uses) const {
    if (resources_[rank]) uses.push_back(*resources_[rank]);
  }

 private:
  ProgramBuilder& builder_;
  std::string name_;
  std::uint32_t first_gpu_;
  std::vector<std::optional<std::uint32_t>> resources_;  // [num_ranks]
};

// The most bytes that each rank has for one rank of another GPU and for one of its own, over all
// messages of the pair, and whether there are several.
void set_largest(const Cluster& cluster, const PhaseTraffic& traffic, PhaseVolumes& volumes) {
  std::vector<std::pair<std::uint64_t, double>> pairs;
  pairs.reserve(traffic.messages.size());
  for (const Message& message : traffic.messages) {
    pairs.emplace_back(std::uint64_t{message.src} << 32 | message.dst, message.bytes);
  }
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  double bytes = 0.0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const bool again = i > 0 && pairs[i].first == pairs[i - 1].first;
    volumes.has_rounds |= again;
    bytes = pairs[i].second + (again ? bytes : 0.0);
    const auto src = static_cast<std::uint32_t>(pairs[i].first >> 32);
    const auto dst = static_cast<std::uint32_t>(pairs[i].first);
    RankVolume& from = volumes.ranks[src - traffic.first_gpu];
    double& largest =
        cluster.device_of(src) == cluster.device_of(dst) ? from.largest_near : from.largest_out;
    largest = std::max(largest, bytes);
  }
}

double rate_of(double bytes, double seconds) {
  return bytes > 0.0 && seconds > 0.0 ? bytes / seconds : 0.0;
}

// The makespan without regard of `least_s`, and the largest of that.
double moving_s_of(const KernelModel& model, const PhaseVolumes& volumes, double port_limit) {
  double start_s = 0.0;
  for (const RankVolume& volume : volumes.ranks) {
    start_s = std::max(start_s, model(volumes, volume).start_s);
  }
  return start_s + kernel_flow_s(model, volumes, port_limit);
}
double least_s_of(const KernelModel& model, const PhaseVolumes& volumes) {
  double least_s = 0.0;
  for (const RankVolume& volume : volumes.ranks) {
    least_s = std::max(least_s, model(volumes, volume).least_s);
  }
  return least_s;
}

// By how much the ranks of a phase start later so that it takes no less than `least_s`.
double late_s(const KernelModel& model, const PhaseVolumes& volumes, const Cluster& cluster) {
  const double least_s = least_s_of(model, volumes);
  if (least_s <= 0.0) return 0.0;
  const bool network = !cluster.scale_up || (volumes.crosses_nodes && cluster.nic);
  const double port_limit = network ? cluster.nic->bandwidth.value * cluster.nic->per_gpu
                                    : cluster.scale_up->bandwidth.value;
  return std::max(0.0, least_s - moving_s_of(model, volumes, port_limit));
}

class KernelPhase : public PhaseTransport {
 public:
  // `ends[rank]`: counted down by all messages from and to the rank.
  KernelPhase(ProgramBuilder& builder, GpuResources& gpus, const Cluster& cluster,
              const PhaseTraffic& traffic, const KernelModel& model, const PhaseVolumes& volumes,
              std::vector<std::uint32_t> starts, std::vector<std::uint32_t> ends,
              std::function<Message(const Message&)> adapted)
      : builder_(builder),
        gpus_(gpus),
        cluster_(cluster),
        has_rounds_(volumes.has_rounds),
        crosses_nodes_(volumes.crosses_nodes),
        first_gpu_(traffic.first_gpu),
        starts_(std::move(starts)),
        ends_(std::move(ends)),
        senders_(builder, "sender", first_gpu_),
        receivers_(builder, "receiver", first_gpu_),
        ports_out_(builder, "kernel port out", first_gpu_),
        ports_in_(builder, "kernel port in", first_gpu_),
        adapted_(std::move(adapted)) {
    for (std::size_t rank = 0; rank < volumes.ranks.size(); ++rank) {
      const RankVolume& volume = volumes.ranks[rank];
      const KernelTimes times = model(volumes, volume);
      senders_.add(rate_of(volume.bytes_out, times.send_s));
      receivers_.add(rate_of(volume.bytes_in, times.receive_s));
      add_ports(volumes, rank, times.port_rate);
      pair_caps_.push_back(cap_of(times.pair_rate));
      near_pair_caps_.push_back(cap_of(times.near_pair_rate));
    }
  }

  std::optional<std::uint32_t> send(const Message& planned, std::uint32_t after,
                                    std::span<const std::uint32_t> signals) override {
    const Message message = adapted_(planned);
    const std::uint32_t src = message.src - first_gpu_;
    const std::uint32_t dst = message.dst - first_gpu_;
    std::vector<std::uint32_t> all(signals.begin(), signals.end());
    all.push_back(ends_[src]);
    if (src != dst) all.push_back(ends_[dst]);
    const std::uint32_t leaves = when_both(builder_, message.src, starts_[src], after);
    std::vector<std::uint32_t> uses;
    senders_.use(src, uses);
    receivers_.use(dst, uses);
    uses.push_back(gpus_.memory(message.src));  // rows are read once,
    const bool same_gpu = cluster_.device_of(message.src) == cluster_.device_of(message.dst);
    if (src != dst) {
      if (crosses_nodes_ ? tier_of(cluster_, message.src, message.dst) == Tier::kNetwork
                         : !same_gpu) {
        ports_out_.use(src, uses);
        ports_in_.use(dst, uses);
      }
      uses.push_back(gpus_.memory(message.dst));  // and written once
    } else {
      const std::array<std::uint32_t, 1> memory{gpus_.memory(message.dst)};
      builder_.add({.src = message.src,
                    .dst = message.dst,
                    .amount = message.bytes,
                    .waits_for = leaves,
                    .signals = all,
                    .uses = memory});
    }
    return builder_.add({.src = message.src,
                         .dst = message.dst,
                         .amount = message.bytes,
                         .rate_cap = (same_gpu ? near_pair_caps_ : pair_caps_)[src],
                         .queue = queue_of(message),
                         .waits_for = leaves,
                         .signals = all,
                         .uses = uses});
  }

 private:
  std::uint32_t cap_of(double rate) { return rate > 0.0 ? builder_.add_rate_cap(rate) : kNoCap; }
  // Ranks of a GPU share its port, which is made where any of them uses it.
  void add_ports(const PhaseVolumes& volumes, std::size_t rank, double port_rate) {
    if (rank % volumes.ranks_per_gpu != 0) {
      ports_out_.share();
      ports_in_.share();
      return;
    }
    double out = 0.0;
    double in = 0.0;
    const std::size_t end = std::min(rank + volumes.ranks_per_gpu, volumes.ranks.size());
    for (std::size_t other = rank; other < end; ++other) {
      out += volumes.ranks[other].port_out;
      in += volumes.ranks[other].port_in;
    }
    ports_out_.add(out > 0.0 ? port_rate : 0.0);
    ports_in_.add(in > 0.0 ? port_rate : 0.0);
  }
  // Rows of a pair go through one buffer, in order: a round is there before the next one's rows.
  std::uint32_t queue_of(const Message& message) {
    if (!has_rounds_) return kFreeQueue;
    const auto [found, is_new] = queues_.try_emplace({message.src, message.dst}, kFreeQueue);
    if (is_new) found->second = builder_.add_queue(1);
    return found->second;
  }

  ProgramBuilder& builder_;
  GpuResources& gpus_;
  const Cluster& cluster_;
  bool has_rounds_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> queues_;
  bool crosses_nodes_;
  std::uint32_t first_gpu_;
  std::vector<std::uint32_t> starts_, ends_;  // [num_ranks] events
  RankResources senders_, receivers_, ports_out_, ports_in_;
  std::vector<std::uint32_t> pair_caps_, near_pair_caps_;  // [num_ranks] of the sender
  std::function<Message(const Message&)> adapted_;
};

}  // namespace

PhaseVolumes phase_volumes(const Cluster& cluster, const PhaseTraffic& traffic) {
  PhaseVolumes volumes;
  volumes.ranks.resize(traffic.ready.size());
  volumes.num_destinations = destinations(cluster, traffic);
  volumes.reuses_kernel = traffic.continues;
  volumes.crosses_nodes = !cluster.scale_up;
  if (cluster.scale_up) {
    const std::uint32_t domain = cluster.scale_up->nodes_per_domain * cluster.gpus_per_node;
    const auto num_ranks = static_cast<std::uint32_t>(traffic.ready.size());
    volumes.crosses_nodes =
        traffic.first_gpu / domain != (traffic.first_gpu + num_ranks - 1) / domain;
  }
  volumes.ranks_per_gpu = cluster.ranks_per_gpu;
  const bool over_network = volumes.crosses_nodes && cluster.nic;
  volumes.link_s = over_network       ? cluster.nic->latency.value
                   : cluster.scale_up ? cluster.scale_up->latency.value
                                      : 0.0;
  set_largest(cluster, traffic, volumes);
  double bytes = 0.0;
  double rows = 0.0;
  for (const Message& message : traffic.messages) {
    const auto num_rows = static_cast<double>(message.num_rows);
    RankVolume& from = volumes.ranks[message.src - traffic.first_gpu];
    RankVolume& to = volumes.ranks[message.dst - traffic.first_gpu];
    from.rows_out += num_rows;
    from.bytes_out += message.bytes;
    to.rows_in += num_rows;
    to.bytes_in += message.bytes;
    if (message.src == message.dst) from.rows_own += num_rows;
    rows += num_rows;
    bytes += message.bytes;
    const Tier tier = tier_of(cluster, message.src, message.dst);
    const bool same_gpu = cluster.device_of(message.src) == cluster.device_of(message.dst);
    if (tier == Tier::kNetwork || (!same_gpu && !volumes.crosses_nodes)) {
      from.port_out += message.bytes;
      to.port_in += message.bytes;
    }
    RankVolume& owner = traffic.direction == Direction::kDispatch ? from : to;
    if (traffic.num_tokens.empty()) owner.tokens = std::max(owner.tokens, num_rows);
  }
  for (std::size_t rank = 0; rank < traffic.num_tokens.size(); ++rank) {
    volumes.ranks[rank].tokens = traffic.num_tokens[rank];
  }
  volumes.row_bytes = rows > 0.0 ? bytes / rows : 0.0;
  return volumes;
}

double kernel_flow_s(const KernelModel& model, const PhaseVolumes& volumes, double port_limit) {
  double flow_s = 0.0;
  double out = 0.0;  // bytes of the ranks of a GPU so far
  double in = 0.0;
  for (std::size_t rank = 0; rank < volumes.ranks.size(); ++rank) {
    const RankVolume& volume = volumes.ranks[rank];
    const KernelTimes times = model(volumes, volume);
    const double port = times.port_rate > 0.0 ? std::min(times.port_rate, port_limit) : port_limit;
    if (rank % volumes.ranks_per_gpu == 0) out = in = 0.0;
    out += volume.port_out;
    in += volume.port_in;
    flow_s = std::max({flow_s, times.send_s, times.receive_s, std::max(out, in) / port});
    if (times.pair_rate > 0.0) flow_s = std::max(flow_s, volume.largest_out / times.pair_rate);
    if (times.near_pair_rate > 0.0) {
      flow_s = std::max(flow_s, volume.largest_near / times.near_pair_rate);
    }
  }
  return flow_s;
}

double kernel_phase_s(const KernelModel& model, const PhaseVolumes& volumes, double port_limit) {
  const double moving_s = moving_s_of(model, volumes, port_limit);
  return std::max(moving_s, least_s_of(model, volumes));
}

std::unique_ptr<PhaseTransport> KernelTransport::begin(ProgramBuilder& builder, GpuResources& gpus,
                                                       const PhaseTraffic& traffic) {
  kernel_ends_.resize(cluster_.num_gpus(), kStartEvent);
  std::vector<Message> messages;
  for (const Message& message : traffic.messages) messages.push_back(adapted(message));
  PhaseTraffic moved = traffic;
  moved.messages = messages;
  const PhaseVolumes volumes = phase_volumes(cluster_, moved);
  const KernelModel times_of = model(traffic.direction, volumes);
  const auto num_ranks = static_cast<std::uint32_t>(traffic.ready.size());
  std::vector<std::uint32_t> starts(traffic.ready.begin(), traffic.ready.end());
  const double later_s = traffic.continues ? 0.0 : late_s(times_of, volumes, cluster_);
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    const std::uint32_t gpu = traffic.first_gpu + rank;
    std::uint32_t& end = kernel_ends_[gpu];
    if (traffic.continues && end != kStartEvent) continue;  // the kernel of the hop before runs on
    end = builder.add_event();
    const double start_s =
        traffic.continues ? 0.0 : later_s + times_of(volumes, volumes.ranks[rank]).start_s;
    const std::array<std::uint32_t, 2> signals{builder.add_event(), end};
    const std::uint32_t launch = builder.add_compute(gpu, start_s, traffic.ready[rank], signals);
    starts[rank] = signals[0];
    builder.add_hold({gpus.multiprocessors(gpu), static_cast<double>(sms_), launch, end});
  }
  const auto first = kernel_ends_.begin() + traffic.first_gpu;
  return std::make_unique<KernelPhase>(builder, gpus, cluster_, traffic, times_of, volumes,
                                       std::move(starts),
                                       std::vector<std::uint32_t>(first, first + num_ranks),
                                       [this](const Message& message) { return adapted(message); });
}

}  // namespace coterie
