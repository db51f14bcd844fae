// `direct`: the formula stands at DirectKernel in topologies/transports.hpp. In the program a rank's
// kernel starts, holds its multiprocessors, and moves its messages as flows through
//
//   its multiprocessors   as fast as they move the whole of its load
//   far rows              the ports of the two GPUs, out and in, each shared by the GPU's ranks
//   near rows             the GPU's copies and its memory, shared likewise
//
// A put tells a peer of its rows when all of its rows are written, so that nothing counts as arrived
// before its sender has ended. A pull begins when every peer has announced its results; between them
// pass the announcement and the flags.
//
// A pull waits for nobody else, so that its start is its launch, and launches of the ranks that share a GPU
// pass one after the other: probes find twice the start with four ranks on a GPU of that with two. Of S
// pulls that are ready at once the last starts after `fixed`, each of them `fixed` / S after the one before.
// A put's start holds the flags for which all of its ranks wait, and is the same for all.

#include "sim/transports/direct.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "sim/transports/makers.hpp"
#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

bool is_put(const PhaseTraffic& traffic) {
  return traffic.direction == Direction::kDispatch;
}

// The rank of a message whose kernel moves it.
std::uint32_t mover(const PhaseTraffic& traffic, const Message& message) {
  return (is_put(traffic) ? message.src : message.dst) - traffic.first_gpu;
}

std::uint32_t ranks_of(const PhaseTraffic& traffic) {
  return static_cast<std::uint32_t>(traffic.ready.size());
}

std::uint32_t ranks_per_node(const Cluster& cluster, const PhaseTraffic& traffic) {
  return std::min(cluster.gpus_per_node, ranks_of(traffic));
}

// Ranks with the same number take part in a step with each other.
std::uint32_t circle_of(const Cluster& cluster, const PhaseTraffic& traffic, std::uint32_t rank) {
  const std::uint32_t per_node = ranks_per_node(cluster, traffic);
  switch (traffic.hop) {
    case HopKind::kRail:
      return rank % per_node;
    case HopKind::kNode:
      return rank / per_node;
    case HopKind::kGroup:
      break;
  }
  return 0;
}

// The ranks of a GPU whose kernels start one after the other.
std::uint32_t turns_of(const Cluster& cluster, const PhaseTraffic& traffic) {
  return is_put(traffic) ? 1 : std::min(cluster.ranks_per_gpu, ranks_of(traffic));
}

double direct_rate_of(double bytes, double seconds) {
  return bytes > 0.0 && seconds > 0.0 ? bytes / seconds : 0.0;
}

// Resources that a GPU's ranks share in all steps of one direction.
struct GpuPorts {
  std::uint32_t out = 0, in = 0, copies = 0;
};

class DirectStep final : public PhaseTransport {
 public:
  struct Setup {
    std::vector<std::uint32_t> starts;  // [num_ranks] events: the kernel moves rows from then on
    std::vector<std::uint32_t> ends;    // [num_ranks] counted down by the rows that it moves
    std::vector<std::uint32_t> move_shares;   // [num_ranks] resources; kNone: not limited
    std::map<std::uint32_t, GpuPorts> ports;  // by physical GPU
  };
  static constexpr std::uint32_t kNone = 0xffffffff;

  DirectStep(ProgramBuilder& builder, GpuResources& gpus, const Cluster& cluster,
             const PhaseTraffic& traffic, Setup setup)
      : builder_(builder),
        gpus_(gpus),
        cluster_(cluster),
        is_put_(is_put(traffic)),
        first_gpu_(traffic.first_gpu),
        setup_(std::move(setup)) {}

  std::optional<std::uint32_t> send(const Message& message, std::uint32_t after,
                                    std::span<const std::uint32_t> signals) override {
    const std::uint32_t rank = (is_put_ ? message.src : message.dst) - first_gpu_;
    const std::uint32_t from = cluster_.device_of(message.src);
    const std::uint32_t to = cluster_.device_of(message.dst);
    std::vector<std::uint32_t> uses;
    if (setup_.move_shares[rank] != kNone) uses.push_back(setup_.move_shares[rank]);
    uses.push_back(gpus_.memory(message.src));
    if (from != to) {
      uses.push_back(setup_.ports.at(from).out);
      uses.push_back(setup_.ports.at(to).in);
      uses.push_back(gpus_.memory(message.dst));
    } else {
      uses.push_back(setup_.ports.at(from).copies);
    }
    // Rows count as there when all of their mover's are.
    const std::array<std::uint32_t, 1> moved{setup_.ends[rank]};
    const std::uint32_t op = builder_.add({.src = message.src,
                                           .dst = message.dst,
                                           .amount = message.bytes,
                                           .waits_for = when_all(rank, after),
                                           .signals = moved,
                                           .uses = uses});
    builder_.add_compute(message.dst, 0.0, setup_.ends[rank], signals);
    return op;
  }

 private:
  // A pull waits for the announcements of all its peers, and `after` came before its own rank's.
  std::uint32_t when_all(std::uint32_t rank, std::uint32_t after) {
    return is_put_ ? when_both(builder_, first_gpu_ + rank, setup_.starts[rank], after)
                   : setup_.starts[rank];
  }

  ProgramBuilder& builder_;
  GpuResources& gpus_;
  const Cluster& cluster_;
  bool is_put_;
  std::uint32_t first_gpu_;
  Setup setup_;
};

class DirectTransportModel final : public Transport {
 public:
  DirectTransportModel(const Cluster& cluster, const DirectParameters& parameters)
      : cluster_(cluster), parameters_(parameters) {}

  [[nodiscard]] bool moves_tokens() const override { return true; }
  [[nodiscard]] bool runs_with_row_kernels() const override { return true; }
  [[nodiscard]] std::optional<Seconds> notify() const override { return parameters_.notify; }

  std::unique_ptr<PhaseTransport> begin(ProgramBuilder& builder, GpuResources& gpus,
                                        const PhaseTraffic& traffic) override {
    const DirectKernel& kernel = kernel_of(traffic);
    const std::vector<DirectLoad> loads = direct_loads(cluster_, traffic);
    const std::vector<std::uint32_t> ready = announced(builder, traffic);
    const std::uint32_t num_turns = turns_of(cluster_, traffic);
    const double turn_s = num_turns > 1 ? kernel.fixed.value / num_turns : 0.0;
    const double start_s = direct_peers(cluster_, traffic) * kernel.peer.value +
                           (num_turns > 1 ? 0.0 : kernel.fixed.value);
    DirectStep::Setup setup;
    std::vector<bool> moves(ranks_of(traffic), false);
    for (const Message& message : traffic.messages) moves[mover(traffic, message)] = true;
    for (std::uint32_t rank = 0; rank < ranks_of(traffic); ++rank) {
      const std::uint32_t gpu = traffic.first_gpu + rank;
      const std::array<std::uint32_t, 2> signals{builder.add_event(), builder.add_event()};
      const std::uint32_t launch = builder.add_compute(
          gpu, start_s, behind_turn(builder, gpu, turn_s, ready[rank]), signals);
      setup.starts.push_back(signals[0]);
      setup.ends.push_back(signals[1]);
      if (moves[rank]) {
        builder.add_hold({gpus.multiprocessors(gpu), static_cast<double>(parameters_.sms), launch,
                          setup.ends.back()});
      }
      const double rate = direct_rate_of(loads[rank].near_bytes + loads[rank].far_bytes,
                                         direct_move_s(kernel, loads[rank], parameters_.sms));
      setup.move_shares.push_back(
          rate > 0.0 ? builder.add_resource(
                           fmt::format("gpu {} {}", gpu, is_put(traffic) ? "put" : "pull"), rate)
                     : DirectStep::kNone);
      add_ports(builder, cluster_.device_of(gpu),
                is_put(traffic) ? parameters_.dispatch : parameters_.combine,
                ports_[is_put(traffic) ? 0 : 1]);
    }
    setup.ports = ports_[is_put(traffic) ? 0 : 1];
    return std::make_unique<DirectStep>(builder, gpus, cluster_, traffic, std::move(setup));
  }

 private:
  [[nodiscard]] const DirectKernel& kernel_of(const PhaseTraffic& traffic) const {
    const bool second = traffic.hop == HopKind::kNode;
    if (is_put(traffic)) {
      return second && parameters_.forward ? *parameters_.forward : parameters_.dispatch;
    }
    return second && parameters_.gather ? *parameters_.gather : parameters_.combine;
  }
  // From when on each rank's kernel may start: a pull's when all of its circle have announced.
  std::vector<std::uint32_t> announced(ProgramBuilder& builder, const PhaseTraffic& traffic) {
    std::vector<std::uint32_t> ready(traffic.ready.begin(), traffic.ready.end());
    if (is_put(traffic) || traffic.announced) return ready;
    std::map<std::uint32_t, std::uint32_t> all_there;  // by circle
    for (std::uint32_t rank = 0; rank < ready.size(); ++rank) {
      std::uint32_t& event = all_there[circle_of(cluster_, traffic, rank)];
      if (event == kStartEvent) event = builder.add_event();
      const std::array<std::uint32_t, 1> signals{event};
      builder.add_compute(traffic.first_gpu + rank, parameters_.announce.value, ready[rank],
                          signals);
      ready[rank] = event;
    }
    return ready;
  }

  // When a kernel of rank `gpu` that is ready at `ready` has had its turn among those of its GPU.
  std::uint32_t behind_turn(ProgramBuilder& builder, std::uint32_t gpu, double turn_s,
                            std::uint32_t ready) {
    if (turn_s <= 0.0) return ready;
    const auto [queue, is_new] = turns_.try_emplace(cluster_.device_of(gpu), 0);
    if (is_new) queue->second = builder.add_queue(1);
    const std::array<std::uint32_t, 1> signals{builder.add_event()};
    builder.add({.src = gpu,
                 .dst = gpu,
                 .duration = turn_s,
                 .queue = queue->second,
                 .waits_for = ready,
                 .signals = signals});
    return signals[0];
  }

  void add_ports(ProgramBuilder& builder, std::uint32_t device, const DirectKernel& kernel,
                 std::map<std::uint32_t, GpuPorts>& ports) {
    const auto [found, is_new] = ports.try_emplace(device);
    if (!is_new) return;
    const double copies = kernel.copy_bandwidth ? kernel.copy_bandwidth->value
                                                : 0.5 * cluster_.gpu.memory_bandwidth.value *
                                                      cluster_.gpu.memory_efficiency;
    found->second = {
        builder.add_resource(fmt::format("gpu {} port out", device), kernel.port_bandwidth.value),
        builder.add_resource(fmt::format("gpu {} port in", device), kernel.port_bandwidth.value),
        builder.add_resource(fmt::format("gpu {} copies", device), copies)};
  }

  const Cluster& cluster_;
  DirectParameters parameters_;
  std::array<std::map<std::uint32_t, GpuPorts>, 2> ports_;  // of puts and of pulls, by physical GPU
  std::map<std::uint32_t, std::uint32_t> turns_;            // queues, by physical GPU
};

}  // namespace

std::vector<DirectLoad> direct_loads(const Cluster& cluster, const PhaseTraffic& traffic) {
  std::vector<DirectLoad> loads(ranks_of(traffic));
  std::vector<double> largest(loads.size(), 0.0);
  double bytes = 0.0;
  double rows = 0.0;
  for (const Message& message : traffic.messages) {
    const std::uint32_t rank = mover(traffic, message);
    DirectLoad& load = loads[rank];
    const bool near = cluster.device_of(message.src) == cluster.device_of(message.dst);
    (near ? load.near_bytes : load.far_bytes) += message.bytes;
    load.rows += message.num_rows;
    largest[rank] = std::max(largest[rank], static_cast<double>(message.num_rows));
    bytes += message.bytes;
    rows += message.num_rows;
  }
  const double row_bytes = rows > 0.0 ? bytes / rows : 0.0;
  for (std::size_t rank = 0; rank < loads.size(); ++rank) {
    DirectLoad& load = loads[rank];
    load.items = traffic.num_tokens.empty() ? largest[rank] : traffic.num_tokens[rank];
    load.item_bytes = load.items * traffic.item_bytes.value_or(row_bytes);
    load.quantises = traffic.quantises;
  }
  return loads;
}

std::uint32_t direct_peers(const Cluster& cluster, const PhaseTraffic& traffic) {
  const std::uint32_t per_node = ranks_per_node(cluster, traffic);
  if (traffic.hop == HopKind::kNode) return per_node - 1;
  if (traffic.hop == HopKind::kRail) return (ranks_of(traffic) + per_node - 1) / per_node - 1;
  return ranks_of(traffic) - 1;
}

double direct_move_s(const DirectKernel& kernel, const DirectLoad& load, double sms) {
  double all_s = load.items * kernel.token.value + load.rows * kernel.row.value +
                 (load.item_bytes + load.near_bytes) / kernel.sm_bandwidth.value +
                 load.far_bytes / kernel.sm_port_bandwidth.value_or(kernel.sm_bandwidth).value;
  if (load.quantises && kernel.quantise_bandwidth) {
    all_s += load.item_bytes / kernel.quantise_bandwidth->value;
  }
  return all_s / sms;
}

DirectStepLoad direct_step_load(const Cluster& cluster, const PhaseTraffic& traffic) {
  struct GpuBytes {
    double out = 0.0, in = 0.0, copied = 0.0;
  };
  std::map<std::uint32_t, GpuBytes> gpus;
  for (const Message& message : traffic.messages) {
    const std::uint32_t from = cluster.device_of(message.src);
    const std::uint32_t to = cluster.device_of(message.dst);
    if (from == to) {
      gpus[from].copied += message.bytes;
    } else {
      gpus[from].out += message.bytes;
      gpus[to].in += message.bytes;
    }
  }
  DirectStepLoad load{direct_loads(cluster, traffic), 0.0, 0.0, direct_peers(cluster, traffic),
                      turns_of(cluster, traffic)};
  for (const auto& [device, bytes] : gpus) {
    load.port_bytes = std::max({load.port_bytes, bytes.out, bytes.in});
    load.copied_bytes = std::max(load.copied_bytes, bytes.copied);
  }
  return load;
}

double direct_step_s(const DirectKernel& kernel, const DirectStepLoad& load, double sms) {
  double shared_s = load.port_bytes / kernel.port_bandwidth.value;
  if (kernel.copy_bandwidth) {
    shared_s = std::max(shared_s, load.copied_bytes / kernel.copy_bandwidth->value);
  }
  double longest_s = kernel.fixed.value / load.num_turns + shared_s;
  for (const DirectLoad& rank : load.ranks) {
    const double moves_s = rank.rows > 0.0 ? direct_move_s(kernel, rank, sms) : 0.0;
    longest_s = std::max(longest_s, kernel.fixed.value + moves_s);
  }
  return load.num_peers * kernel.peer.value + longest_s;
}

std::unique_ptr<Transport> make(const Cluster& cluster, const DirectParameters& parameters) {
  return std::make_unique<DirectTransportModel>(cluster, parameters);
}

}  // namespace coterie
