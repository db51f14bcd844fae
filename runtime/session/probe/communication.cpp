// Exchanges over every transport of the machine, and the notify step that begins a layer.

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/session/probe/parts.hpp"

namespace coterie {
namespace {

// A rank's side of a pattern, in buffers that are large enough.
struct Exchange {
  std::vector<Message> sends;
  std::vector<Message> receives;
};

Exchange make_exchange(const CommunicationCase& entry, const ProbeTools& tools, std::byte* send,
                       std::byte* recv) {
  Exchange out;
  const std::uint32_t num_ranks = tools.group.num_ranks();
  const std::uint32_t self = tools.group.rank();
  for (std::uint32_t peer = 0; peer < num_ranks; ++peer) {
    if (peer == self) continue;
    const auto sent = pattern_bytes(entry, num_ranks, tools.num_local_ranks, self, peer);
    const auto received = pattern_bytes(entry, num_ranks, tools.num_local_ranks, peer, self);
    out.sends.push_back({peer, send, sent});
    out.receives.push_back({peer, recv, received});
    send += sent;
    recv += received;
  }
  return out;
}

bool is_ping_pong(Pattern pattern) {
  return pattern == Pattern::kSendRecv || pattern == Pattern::kSendRecvNodes;
}

}  // namespace

std::vector<ProbePoint> probe_communication(ProbeTools& tools,
                                            std::span<const CommunicationCase> cases) {
  std::uint64_t max_bytes = 0;
  for (const CommunicationCase& entry : cases) max_bytes = std::max(max_bytes, entry.num_bytes);
  const std::size_t total = max_bytes * (tools.group.num_ranks() - 1 + kHotFactor - 1);
  kernels::DeviceBuffer<std::byte> send(total);
  kernels::DeviceBuffer<std::byte> recv(total);
  send.fill_bytes(1);
  std::vector<ProbePoint> points;
  for (const CommunicationCase& entry : cases) {
    const Exchange exchange = make_exchange(entry, tools, send.data(), recv.data());
    const TimedWork work{to_string(entry.pattern), [&](cudaStream_t stream) {
                           tools.communicator->exchange(exchange.sends, exchange.receives, stream);
                           if (!is_ping_pong(entry.pattern)) return;
                           // The way back: what was sent out is received again.
                           std::vector<Message> back = exchange.receives;
                           std::vector<Message> again = exchange.sends;
                           tools.communicator->exchange(back, again, stream);
                         }};
    auto samples = tools.sampler.measure(fmt::format("{} of {} B", work.kind, entry.num_bytes),
                                         std::span(&work, 1), {4, tools.num_samples, 0.25, 1});
    if (is_ping_pong(entry.pattern)) {
      for (double& value : samples[0].slowest_us) value *= 0.5;
    }
    points.push_back(
        {{{"kind", work.kind}, {"transport", entry.transport}, {"bytes_per_pair", entry.num_bytes}},
         nlohmann::json::object(),
         std::move(samples[0].slowest_us)});
    if (entry.pattern == Pattern::kHotPair) {
      points.back().facts["bytes_of_hot_pair"] = kHotFactor * entry.num_bytes;
    }
  }
  return points;
}

std::vector<ProbePoint> probe_notify(ProbeTools& tools) {
  constexpr std::size_t kBytes = 2 * sizeof(std::uint32_t);  // rows and copies
  const std::uint32_t num_ranks = tools.group.num_ranks();
  const kernels::DeviceBuffer<std::byte> out(kBytes * num_ranks);
  const kernels::DeviceBuffer<std::byte> in(kBytes * num_ranks);
  std::vector<Message> sends;
  std::vector<Message> receives;
  for (std::uint32_t peer = 0; peer < num_ranks; ++peer) {
    if (peer == tools.group.rank()) continue;
    sends.push_back({peer, out.data() + kBytes * peer, kBytes});
    receives.push_back({peer, in.data() + kBytes * peer, kBytes});
  }
  const auto exchange = [&](cudaStream_t stream) {
    tools.communicator->exchange(sends, receives, stream);
  };
  const std::array<TimedWork, 2> works{{{"notify", exchange}, {"notify_again", exchange}}};
  const auto samples = tools.sampler.measure("the notify step", works, {50, 50, 0.25, 1});
  std::vector<ProbePoint> points;
  const auto add = [&](const std::string& kind, std::vector<double> samples_us) {
    ProbePoint point{nlohmann::json::object(), nlohmann::json::object(), std::move(samples_us)};
    point.key["kind"] = kind;
    point.facts["bytes_per_pair"] = kBytes;
    points.push_back(std::move(point));
  };
  for (std::size_t w = 0; w < works.size(); ++w) {
    std::vector<double> skew_us;
    for (std::size_t i = 0; i < samples[w].slowest_us.size(); ++i) {
      skew_us.push_back(samples[w].slowest_us[i] - samples[w].fastest_us[i]);
    }
    add(works[w].kind, samples[w].slowest_us);
    add(works[w].kind + "_skew", std::move(skew_us));
  }
  return points;
}

}  // namespace coterie
