#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>

#include "sim/calibrate/link_forms.hpp"

namespace coterie {
namespace {

// NCCL's own: bytes of one channel's part up to which it sends with LL, chunks of Simple over NVLink and
// over PCIe, and how many channels a communicator has over NVLink (NCCL 2.27 to 2.29: src/enqueue.cc,
// src/init.cc, src/graph/paths.cc).
constexpr std::int64_t kLlPart = 16384;
constexpr std::int64_t kLlChunk = 65536;  // before NCCL 2.29
constexpr std::int64_t kNvlinkChunk = 524288;
constexpr std::int64_t kPcieChunk = 131072;
constexpr std::uint32_t kNvlinkChannels = 32;
constexpr std::uint32_t kPciePairChannels = 2;

// What is known before any measurement, with widths in log units. NCCL's all-to-alls reach about 72 % of
// an NVLink port's data sheet, their first chunks all of it, one channel about 18 GB/s, and one of LL,
// which waits for every line to come in, about 6 GB/s on every machine.
constexpr double kLinkShare = 0.72;
constexpr double kLinkShareWidth = 0.1;
constexpr double kFirstShareWidth = 0.15;
constexpr double kChannelRate = 18e9;
constexpr double kChannelRateWidth = 0.3;
constexpr double kLlRate = 6e9;
constexpr double kLlRateWidth = 0.2;
// Of a launch: what twice the ranks cost, who start later by chance.
constexpr double kDoublingShare = 0.1;
constexpr double kDoublingWidth = 0.4;
// LL sends a flag with every value.
constexpr double kLlBytes = 2.0;
constexpr double kFewChannels = 1.2;
constexpr double kFewChannelsWidth = 1.0;  // of what is beyond one

// Bytes over the shared link of one socket, where every rank sends `message` to every other. Ranks of one
// group do not use it; what goes to another socket uses both sockets' links.
double shared_bytes(const ChannelModel& model, std::uint32_t num_ranks, double message) {
  const double group = model.shared_group;
  if (!model.shared || num_ranks <= model.shared_group) return 0.0;
  if (!model.socket_gpus || num_ranks <= *model.socket_gpus) {
    return num_ranks * message * (num_ranks - group);
  }
  const double here = *model.socket_gpus;
  return here * message * ((here - group) + 2.0 * (num_ranks - here));
}

// Bytes between the sockets, both directions together.
double socket_bytes(const ChannelModel& model, std::uint32_t num_ranks, double message) {
  if (!model.socket || !model.socket_gpus || num_ranks <= *model.socket_gpus) return 0.0;
  return 2.0 * *model.socket_gpus * (num_ranks - *model.socket_gpus) * message;
}

// What the points show at a glance, in SI.
struct Glance {
  double least_s = 1e9;        // of all
  double least_large_s = 1e9;  // of messages that are not sent with LL
  double rank_rate = 0.0, shared_rate = 0.0, socket_rate = 0.0;

  Glance(const std::vector<AllToAllPoint>& points, const ChannelModel& structure) {
    double most_rate = 0.0;
    for (const AllToAllPoint& point : points) {
      const double message = point.message();
      const double shared = shared_bytes(structure, point.num_ranks, message);
      const double between = socket_bytes(structure, point.num_ranks, message);
      least_s = std::min(least_s, point.time_s);
      if (deal_message(structure.dealing, point.num_ranks, message).protocol_size >
          static_cast<double>(kLlPart)) {
        least_large_s = std::min(least_large_s, point.time_s);
      }
      most_rate = std::max(most_rate, point.volume() / point.time_s);
      if (between > 0.0) {
        socket_rate = std::max(socket_rate, between / point.time_s);
      } else if (shared > 0.0) {
        shared_rate = std::max(shared_rate, shared / point.time_s);
      } else {
        rank_rate = std::max(rank_rate, point.volume() / point.time_s);
      }
    }
    if (rank_rate == 0.0) rank_rate = most_rate;
    if (shared_rate == 0.0) shared_rate = rank_rate;
    if (socket_rate == 0.0) socket_rate = shared_rate;
    if (least_large_s > 1e3) least_large_s = least_s;
  }
};

class ChannelForm {
 public:
  ChannelForm(ChannelModel structure, std::optional<double> link_bandwidth)
      : structure_(std::move(structure)), link_bandwidth_(link_bandwidth) {}

  PreparedForm operator()(const std::vector<AllToAllPoint>& points) const {
    const Glance seen(points, structure_);
    PreparedForm form;
    const auto add = [&](const char* name, double value, double width) {
      form.problem.parameters.push_back({name, std::log(value), width});
    };
    const double doubling = kDoublingShare * seen.least_s;
    const auto launch = [&](double time_s) {
      return std::max(time_s - structure_.latency_s, 0.2 * time_s);
    };
    add("launch", 0.7 * launch(seen.least_large_s), 2.0);
    add("per_doubling", doubling, kDoublingWidth);
    add("small.launch", launch(seen.least_s), 2.0);
    add("small.per_doubling", doubling, kDoublingWidth);
    add("small.ll_rate", kLlRate, kLlRateWidth);
    if (structure_.copy) {
      const double bandwidth = link_bandwidth_.value_or(seen.rank_rate / kLinkShare);
      add("slope", 1.0 / (kLinkShare * bandwidth), kLinkShareWidth);
      add("channel_rate", kChannelRate, kChannelRateWidth);
      add("first_slope", 1.0 / bandwidth, kFirstShareWidth);
    } else {
      add("slope", 1.0 / seen.rank_rate, 2.0);
    }
    if (structure_.shared) {
      add("shared_slope", 1.0 / seen.shared_rate, 2.0);
      add("small.shared_slope", kLlBytes / seen.shared_rate, 1.0);
      add("few_channels", kFewChannels - 1.0, kFewChannelsWidth);
    }
    if (structure_.socket) {
      add("socket_slope", 1.0 / seen.socket_rate, 2.0);
      add("small.socket_slope", kLlBytes / seen.socket_rate, 1.0);
    }
    form.model = [structure = structure_](std::span<const double> p) {
      return AllToAllModel{read(structure, p)};
    };
    return form;
  }

 private:
  static ChannelModel read(ChannelModel model, std::span<const double> p) {
    std::size_t next = 0;
    const auto take = [&] { return std::exp(p[next++]); };
    model.large.launch_s = take();
    model.large.per_doubling_s = take();
    model.small.launch_s = take();
    model.small.per_doubling_s = take();
    model.ll_rate = take();
    model.slope = take();
    if (model.copy) {
      model.copy->rate = take();
      model.copy->first_slope = take();
    }
    if (model.shared) {
      model.shared->slope = take();
      model.shared->small_slope = take();
      model.few_channels = 1.0 + take();
    }
    if (model.socket) {
      model.socket->slope = take();
      model.socket->small_slope = take();
    }
    return model;
  }

  ChannelModel structure_;
  std::optional<double> link_bandwidth_;
};

}  // namespace

double ChannelModel::time_s(std::uint32_t num_ranks, double bytes_per_rank) const {
  const double message = bytes_per_rank / num_ranks;
  const double volume = message * (num_ranks - 1);
  const auto [channels, size] = deal_message(dealing, num_ranks, message);
  const double part = message / channels;
  const bool is_small = size <= static_cast<double>(kLlPart);
  const Protocol& protocol = is_small ? small : large;
  double moved = volume * slope;
  const double rate = is_small ? ll_rate : copy ? copy->rate : 0.0;
  if (rate > 0.0) moved = std::max(moved, part / rate);
  if (copy) {
    const double in_use = std::min<double>(dealing.channels.value(), channels * (num_ranks - 1));
    const double chunk = std::min(part, static_cast<double>(dealing.chunk.value().value));
    const double chunks = std::min(volume, in_use * chunk);
    moved += chunk / rate + chunks * copy->first_slope * (is_small ? kLlBytes : 1.0) -
             std::max(chunk / rate, chunks * slope);
  }
  const bool few = channels < dealing.pair_channels.value_or(dealing.channels.value());
  const auto take = [&](const std::optional<SharedLink>& link, double bytes, bool slower) {
    if (!link || bytes <= 0.0) return;
    const double large_slope = link->slope * (slower && few ? few_channels : 1.0);
    moved = std::max(moved, bytes * (is_small ? link->small_slope : large_slope));
  };
  take(shared, shared_bytes(*this, num_ranks, message), !socket);
  take(socket, socket_bytes(*this, num_ranks, message), true);
  return protocol.launch_s + protocol.per_doubling_s * std::log2(0.5 * num_ranks) + latency_s +
         moved;
}

namespace {

// Whether most of the points are of an NCCL that deals LL by chunks of its own. Where nothing says, not.
bool before_2_29(const std::vector<AllToAllPoint>& points) {
  std::size_t num_before = 0;
  for (const AllToAllPoint& point : points) {
    unsigned major = 0;
    unsigned minor = 0;
    const bool read = std::sscanf(point.version.c_str(), "%u.%u", &major, &minor) == 2;
    num_before += read && (major < 2 || (major == 2 && minor < 29)) ? 1 : 0;
  }
  return 2 * num_before > points.size();
}

}  // namespace

std::vector<LinkForm> channel_forms(const std::vector<AllToAllPoint>& points,
                                    const AllToAllOptions& options) {
  std::set<std::uint32_t> counts;
  for (const AllToAllPoint& point : points) counts.insert(point.num_ranks);
  std::vector<LinkForm> forms;
  ChannelModel model;
  model.latency_s = options.latency_s;
  model.dealing.segments = {{Bytes{kLlPart}, {}, {}, {}}, {}};
  if (before_2_29(points)) model.dealing.ll_chunk = Bytes{kLlChunk};
  if (options.nvlink) {
    // One count of ranks cannot tell channels from links, unless the data sheet does.
    if (counts.size() < 2 && !options.link_bandwidth) return forms;
    model.dealing.channels = kNvlinkChannels;
    model.dealing.chunk = Bytes{kNvlinkChunk};
    model.copy.emplace();
    forms.push_back(ChannelForm(model, options.link_bandwidth));
    return forms;
  }
  if (!options.shared_link) return forms;
  model.shared_group = options.shared_group;
  model.dealing.pair_channels = kPciePairChannels;
  model.dealing.chunk = Bytes{kPcieChunk};
  const bool shares = !counts.empty() && *counts.rbegin() > options.shared_group;
  // An uplink per switch; one bridge per socket of 4 GPUs, which 4 and more GPUs can tell from one for
  // all; or that one.
  std::vector<std::optional<std::uint32_t>> sockets;
  if (shares && options.shared_group > 1) sockets.emplace_back(options.shared_group);
  if (shares && counts.contains(4) && *counts.rbegin() > 4) {
    sockets.emplace_back(4);
  } else {
    sockets.emplace_back(std::nullopt);
  }
  for (const std::uint32_t channels : {4U, 8U}) {
    for (const auto& socket_gpus : sockets) {
      model.dealing.channels = channels;
      model.socket_gpus = socket_gpus;
      model.shared.reset();
      model.socket.reset();
      if (shares) model.shared.emplace();
      const bool joined =
          socket_gpus && *socket_gpus > options.shared_group && *counts.rbegin() > *socket_gpus;
      if (joined) model.socket.emplace();
      forms.push_back(ChannelForm(model, options.link_bandwidth));
    }
  }
  return forms;
}

}  // namespace coterie
