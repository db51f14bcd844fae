#include "sim/engines/resolved.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace coterie {
namespace {

void check_operation(const Program& program, const Routes& routes, std::span<const Link> links,
                     std::uint32_t op) {
  if (!std::isfinite(program.amount[op]) || program.amount[op] < 0.0) {
    throw InputError(operation_name(program, op),
                     fmt::format("an amount of {}", program.amount[op]),
                     "a finite amount of at least 0");
  }
  if (!std::isfinite(routes.delay_s[op]) || routes.delay_s[op] < 0.0) {
    throw InputError(operation_name(program, op),
                     fmt::format("a silent time of {} s", routes.delay_s[op]),
                     "a finite time of at least 0");
  }
  if (!(routes.rate_cap[op] > 0.0)) {
    throw InputError(operation_name(program, op),
                     fmt::format("a rate cap of {} per second", routes.rate_cap[op]),
                     "a rate above 0");
  }
  const std::span<const std::uint32_t> route = routes.of(op);
  if (program.is_transfer(op) && route.empty()) {
    throw InputError(operation_name(program, op), "no links", "a route");
  }
  for (const std::uint32_t used : route) {
    if (routes.capacity[used] >= 0.0 && routes.largest[used] > 0.0 &&
        std::isfinite(routes.largest[used])) {
      continue;
    }
    throw InputError(operation_name(program, op),
                     fmt::format("{} of {} per second on its way",
                                 capacity_name(program, links, routes.num_links(program), used),
                                 routes.capacity[used]),
                     "a finite capacity above 0 at some time");
  }
}

// The operations that begin holds, each with all of its holds.
void check_holds(const Program& program) {
  std::vector<double> wanted(program.holds.empty() ? 0 : program.resources.size(), 0.0);
  for (std::size_t first = 0; first < program.holds.size();) {
    const std::uint32_t op = program.holds[first].begin_op;
    std::size_t end = first;
    for (; end < program.holds.size() && program.holds[end].begin_op == op; ++end) {
      wanted[program.holds[end].resource] += program.holds[end].amount;
    }
    for (std::size_t i = first; i < end; ++i) {
      const Resource& resource = program.resources[program.holds[i].resource];
      if (!std::isfinite(resource.capacity) ||
          wanted[program.holds[i].resource] > resource.capacity * (1.0 + 1e-9)) {
        throw InputError(
            operation_name(program, op),
            fmt::format("a hold of {} of \"{}\"", wanted[program.holds[i].resource], resource.name),
            fmt::format("at most its capacity, {}, which is finite", resource.capacity));
      }
    }
    for (std::size_t i = first; i < end; ++i) wanted[program.holds[i].resource] = 0.0;
    first = end;
  }
}

// What the routes of the network have other than what held before it.
void add_detours(const Program& program, const LaterNetwork& later,
                 std::vector<std::vector<std::uint32_t>>& current, std::vector<Detour>& out) {
  const auto num_links = static_cast<std::uint32_t>(later.network->links().size());
  const std::uint32_t num_gpus = later.network->num_gpus();
  std::vector<LinkId> path;
  std::vector<std::uint32_t> route;
  for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op)) continue;
    const GpuId src{program.src[op]};
    const GpuId dst{program.dst[op]};
    path.clear();
    route.clear();
    later.network->append_route(src, dst, flow_key(src.value, dst.value, num_gpus), path);
    for (const LinkId link : path) route.push_back(link.value);
    for (const std::uint32_t resource : program.uses_of(op)) route.push_back(num_links + resource);
    if (route == current[op]) continue;
    current[op] = route;
    out.push_back({later.from_s, op, route});
  }
}

// The routes with those links alone that every route of an operation has.
Routes shared_links(const Routes& routes) {
  std::vector<std::vector<const Detour*>> of_op(routes.begin.size() - 1);
  for (const Detour& detour : routes.detours) of_op[detour.op].push_back(&detour);
  Routes out = routes;
  out.links.clear();
  out.begin.assign(1, 0);
  for (std::size_t op = 0; op < of_op.size(); ++op) {
    for (const std::uint32_t link : routes.of(op)) {
      const bool everywhere =
          std::all_of(of_op[op].begin(), of_op[op].end(), [&](const Detour* detour) {
            return std::find(detour->links.begin(), detour->links.end(), link) !=
                   detour->links.end();
          });
      if (everywhere) out.links.push_back(link);
    }
    out.begin.push_back(out.links.size());
  }
  return out;
}

}  // namespace

Routes resolve_routes(const Program& program, const Network& network,
                      std::span<const LaterNetwork> later) {
  Routes out;
  const std::size_t num_ops = program.num_ops();
  const std::uint32_t num_gpus = network.num_gpus();
  const auto num_links = static_cast<std::uint32_t>(network.links().size());
  out.capacity.reserve(num_links + program.resources.size());
  for (const Link& link : network.links()) out.capacity.push_back(link.bandwidth.value);
  for (const Resource& resource : program.resources) out.capacity.push_back(resource.capacity);
  out.largest = out.capacity;
  for (const CapacityChange& change : program.changes) {
    if (change.link >= num_links) {
      throw InputError("capacity change", fmt::format("link {}", change.link),
                       fmt::format("a link of the network, which has {}", num_links));
    }
    out.largest[change.link] = std::max(out.largest[change.link], change.capacity);
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
  if (later.empty()) return out;
  std::vector<std::vector<std::uint32_t>> current(num_ops);
  for (std::size_t op = 0; op < num_ops; ++op) {
    const std::span<const std::uint32_t> route = out.of(op);
    current[op].assign(route.begin(), route.end());
  }
  for (const LaterNetwork& one : later) add_detours(program, one, current, out.detours);
  return out;
}

ResolvedProgram resolve(const Program& program, const Network& network,
                        std::span<const LaterNetwork> later) {
  ResolvedProgram out{program, network, resolve_routes(program, network, later), {}};
  check_numbers(program, out.routes, network.links());
  out.bound =
      lower_bounds(program, out.routes.detours.empty() ? out.routes : shared_links(out.routes));
  return out;
}

void check_numbers(const Program& program, const Routes& routes, std::span<const Link> links) {
  for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
    check_operation(program, routes, links, op);
  }
  check_holds(program);
  for (const Detour& detour : routes.detours) {
    for (const std::uint32_t link : detour.links) {
      if (link < routes.capacity.size() && routes.largest[link] > 0.0) continue;
      throw InputError(operation_name(program, detour.op),
                       fmt::format("a detour over {}",
                                   capacity_name(program, links, routes.num_links(program), link)),
                       "links with a capacity above 0 at some time");
    }
    if (!detour.links.empty() && std::isfinite(detour.time_s)) continue;
    throw InputError(
        operation_name(program, detour.op),
        fmt::format("a detour over {} links at {} s", detour.links.size(), detour.time_s),
        "at least one link and a finite time");
  }
  for (const CapacityChange& change : program.changes) {
    if (std::isfinite(change.time_s) && std::isfinite(change.capacity)) continue;
    throw InputError(fmt::format("capacity change of {}",
                                 capacity_name(program, links, change.link + 1, change.link)),
                     fmt::format("{} per second at {} s", change.capacity, change.time_s),
                     "a finite capacity and time");
  }
}

std::string operation_name(const Program& program, std::uint32_t op) {
  if (program.is_transfer(op)) {
    return fmt::format("transfer {} from GPU {} to GPU {}", op, program.src[op], program.dst[op]);
  }
  return fmt::format("{} {} on GPU {}", program.uses_of(op).empty() ? "computation" : "kernel", op,
                     program.src[op]);
}

std::string capacity_name(const Program& program, std::span<const Link> links,
                          std::uint32_t num_links, std::uint32_t capacity) {
  if (capacity >= num_links) {
    return fmt::format("\"{}\"", program.resources[capacity - num_links].name);
  }
  if (capacity < links.size()) return fmt::format("link \"{}\"", links[capacity].name);
  return fmt::format("link {}", capacity);
}

InputError stands_still(const Program& program, const Routes& routes, std::span<const Link> links,
                        std::uint32_t op, std::uint32_t capacity) {
  return InputError("program",
                    fmt::format("{} that stands still for ever, because nothing is left of {}",
                                operation_name(program, op),
                                capacity_name(program, links, routes.num_links(program), capacity)),
                    "capacity on its way at some time");
}

InputError never_held(const Program& program, std::uint32_t op, std::uint32_t resource) {
  return InputError("program",
                    fmt::format("{} that waits for ever to hold a part of \"{}\"",
                                operation_name(program, op), program.resources[resource].name),
                    "holds that end without those that wait for them");
}

InputError never_ready(std::size_t num_ops) {
  return InputError("program", fmt::format("{} operations that never become ready", num_ops),
                    "events that do not wait for each other in a circle");
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
