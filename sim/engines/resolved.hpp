#pragma once
// A program on a network: routes, delays and rate caps of its operations, resolved once and shared
// by the engines and the report, so that all of them see every transfer the same way; and the lower
// bound on its makespan.
//
// Capacities are numbered through: first the network's links, then the program's resources. A
// *route* lists what an operation's amount flows over: the links of its path, then the resources
// it uses besides.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "sim/program/program.hpp"
#include "topologies/network.hpp"

namespace coterie {

// The key by which ECMP hashes a transfer: a function of its two GPUs alone, as with one connection
// per pair. All transfers of a pair take one path, in every engine.
constexpr std::uint64_t flow_key(std::uint32_t src, std::uint32_t dst, std::uint32_t num_gpus) {
  return std::uint64_t{src} * num_gpus + dst;
}

// From `time_s` on, a transfer flows over other links: one that is under way with what is left of it.
struct Detour {
  double time_s = 0.0;
  std::uint32_t op = 0;
  std::vector<std::uint32_t> links;  // its whole new route, the resources that it uses included
  bool operator==(const Detour&) const = default;
};

struct Routes {
  std::vector<std::uint64_t> begin;  // [num_ops + 1], of the routes at the start
  std::vector<std::uint32_t> links;  // capacities in use
  std::vector<double> delay_s;       // [num_ops] silent time: duration, and the path's latency
  std::vector<double> rate_cap;      // [num_ops] per second; infinite where there is none
  std::vector<double> capacity;      // [num_links + num_resources] per second, at the start
  std::vector<double> largest;       // [num_links + num_resources] ever; as capacity if constant
  std::vector<Detour> detours;       // by time, then operation; the silent times stay as they are

  [[nodiscard]] std::uint32_t num_links(const Program& program) const {
    return static_cast<std::uint32_t>(capacity.size() - program.resources.size());
  }
  [[nodiscard]] std::span<const std::uint32_t> of(std::size_t op) const {
    return std::span(links).subspan(begin[op], begin[op + 1] - begin[op]);
  }
};

// A network of the same links whose routes hold from `from_s` on, after the start.
struct LaterNetwork {
  double from_s = 0.0;
  const Network* network = nullptr;
};

// Throws InputError where a transfer's destination cannot be reached, and for a change of a link that
// the network lacks. `later`: by time.
Routes resolve_routes(const Program& program, const Network& network,
                      std::span<const LaterNetwork> later = {});

// A view: program and network must outlive it.
struct ResolvedProgram {
  const Program& program;
  const Network& network;
  Routes routes;
  Execution bound;  // earliest start and finish of every operation; a bound on the makespan
};
// Throws InputError as resolve_routes and check_numbers do.
ResolvedProgram resolve(const Program& program, const Network& network,
                        std::span<const LaterNetwork> later = {});

// Throws InputError for what no engine can work with: amounts, times and capacities that are not
// finite, something that flows over what never has any capacity, an operation that holds more of a
// resource than there is. `links` are for the names in messages and may be missing.
void check_numbers(const Program& program, const Routes& routes, std::span<const Link> links = {});

// The closed-form lower bounds (bound.cpp derives them): earliest start and finish of every
// operation, and the bound on the makespan, which is at least the latest of those finishes. What
// takes detours counts on the links that all its routes share.
// Throws std::logic_error for a program whose operations wait for each other in a circle.
Execution lower_bounds(const Program& program, const Routes& routes);

// Seconds from leaving the queue to the end, were the operation alone, nothing held, and every
// capacity the largest that it ever is.
double uncontended_s(const Program& program, const Routes& routes, std::size_t op);

// For messages: "transfer 3 from GPU 0 to GPU 1", "link 'gpu 0 out'", "'gpu 0 memory'". Without
// `links`, links are numbered.
std::string operation_name(const Program& program, std::uint32_t op);
std::string capacity_name(const Program& program, std::span<const Link> links,
                          std::uint32_t num_links, std::uint32_t capacity);
// Why a program cannot end: a flow that stands still for ever, an operation that waits for ever for
// its hold, events that wait for each other in a circle.
InputError stands_still(const Program& program, const Routes& routes, std::span<const Link> links,
                        std::uint32_t op, std::uint32_t capacity);
InputError never_held(const Program& program, std::uint32_t op, std::uint32_t resource);
InputError never_ready(std::size_t num_ops);

// The operations that wait for each event, ascending: begin[num_events + 1] into ops.
struct Waiters {
  std::vector<std::uint64_t> begin;
  std::vector<std::uint32_t> ops;
  [[nodiscard]] std::span<const std::uint32_t> of(std::uint32_t event) const {
    return std::span(ops).subspan(begin[event], begin[event + 1] - begin[event]);
  }
};
Waiters waiters_of(std::span<const std::uint32_t> waits_for, std::size_t num_events);

}  // namespace coterie
