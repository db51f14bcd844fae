#include "sim/routes.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace coterie {
namespace {

// Queues are numbered GPU by GPU, one per tier that leaves the GPU.
constexpr std::uint32_t kTiersPerGpu = 2;

std::uint32_t queue_of(std::uint32_t gpu, Tier tier) {
  return gpu * kTiersPerGpu + (tier == Tier::kNetwork ? 1U : 0U);
}

}  // namespace

Transfers resolve_transfers(const Program& program, const Network& network) {
  Transfers out;
  const std::size_t num_ops = program.num_ops();
  const std::uint32_t num_gpus = network.num_gpus();
  out.route_begin.assign(1, 0);
  out.route_begin.reserve(num_ops + 1);
  out.delay_s.assign(num_ops, 0.0);
  out.rate_cap.assign(num_ops, std::numeric_limits<double>::infinity());
  out.queue.assign(num_ops, 0);
  // A queue that no transfer joins keeps no send under way; its rules may not even exist.
  out.in_flight.assign(std::size_t{num_gpus} * kTiersPerGpu, 0);

  std::vector<LinkId> route;
  for (std::size_t op = 0; op < num_ops; ++op) {
    if (program.is_transfer(op)) {
      const GpuId src{program.src[op]};
      const GpuId dst{program.dst[op]};
      route.clear();
      network.append_route(src, dst, flow_key(src.value, dst.value, num_gpus), route);
      for (const LinkId link : route) out.route_links.push_back(link.value);

      const Tier tier = network.tier(src, dst);
      const Bytes bytes{std::llround(program.bytes[op])};
      const MessageSegment& segment = network.segment(tier, bytes);
      out.delay_s[op] = segment.alpha.value + network.route_latency(route).value;
      if (segment.bandwidth) out.rate_cap[op] = segment.bandwidth->value;
      out.queue[op] = queue_of(src.value, tier);
      out.in_flight[out.queue[op]] = std::max(1U, network.injection(tier).sends_in_flight);
    }
    out.route_begin.push_back(out.route_links.size());
  }
  return out;
}

double uncontended_s(const Program& program, const Transfers& transfers,
                     std::span<const Link> links, std::size_t op) {
  double rate = transfers.rate_cap[op];
  for (const std::uint32_t link : transfers.route(op)) {
    rate = std::min(rate, links[link].bandwidth.value);
  }
  return transfers.delay_s[op] + program.bytes[op] / rate;
}

Waiters waiters_of(std::span<const std::uint32_t> waits_for, std::size_t num_events) {
  Waiters out;
  out.begin.assign(num_events + 1, 0);
  for (const std::uint32_t event : waits_for) ++out.begin[event + 1];
  for (std::size_t event = 0; event < num_events; ++event) {
    out.begin[event + 1] += out.begin[event];
  }
  out.ops.resize(waits_for.size());
  std::vector<std::uint64_t> next(out.begin.begin(), out.begin.end() - 1);
  for (std::size_t op = 0; op < waits_for.size(); ++op) {
    out.ops[next[waits_for[op]]++] = static_cast<std::uint32_t>(op);
  }
  return out;
}

}  // namespace coterie
