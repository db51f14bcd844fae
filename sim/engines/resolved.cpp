#include "sim/engines/resolved.hpp"

#include <algorithm>

namespace coterie {

Routes resolve_routes(const Program& program, const Network& network) {
  Routes out;
  const std::size_t num_ops = program.num_ops();
  const std::uint32_t num_gpus = network.num_gpus();
  const auto num_links = static_cast<std::uint32_t>(network.links().size());
  out.capacity.reserve(num_links + program.resources.size());
  for (const Link& link : network.links()) out.capacity.push_back(link.bandwidth.value);
  for (const Resource& resource : program.resources) out.capacity.push_back(resource.capacity);
  out.largest = out.capacity;
  for (const CapacityChange& change : program.changes) {
    out.largest.at(change.link) = std::max(out.largest.at(change.link), change.capacity);
  }
  out.begin.assign(1, 0);
  out.begin.reserve(num_ops + 1);
  out.delay_s = program.duration;
  out.rate_cap.reserve(num_ops);

  std::vector<LinkId> path;
  for (std::size_t op = 0; op < num_ops; ++op) {
    out.rate_cap.push_back(program.rate_caps[program.rate_cap[op]]);
    if (program.is_transfer(op)) {
      const GpuId src{program.src[op]};
      const GpuId dst{program.dst[op]};
      path.clear();
      network.append_route(src, dst, flow_key(src.value, dst.value, num_gpus), path);
      for (const LinkId link : path) out.links.push_back(link.value);
      out.delay_s[op] += network.route_latency(path).value;
    }
    for (const std::uint32_t resource : program.uses_of(op)) {
      out.links.push_back(num_links + resource);
    }
    out.begin.push_back(out.links.size());
  }
  return out;
}

ResolvedProgram resolve(const Program& program, const Network& network) {
  ResolvedProgram out{program, network, resolve_routes(program, network), {}};
  out.bound = lower_bounds(program, out.routes);
  return out;
}

double uncontended_s(const Program& program, const Routes& routes, std::size_t op) {
  if (!program.flows(op)) return routes.delay_s[op];
  double rate = routes.rate_cap[op];
  for (const std::uint32_t link : routes.of(op)) rate = std::min(rate, routes.largest[link]);
  return routes.delay_s[op] + program.amount[op] / rate;
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
