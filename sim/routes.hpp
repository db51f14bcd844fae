#pragma once
// What a program's transfers do to the network: routes, delays, rate caps and queues, resolved once
// and shared by the engines, so that all of them send every transfer the same way.

#include <cstdint>
#include <span>
#include <vector>

#include "sim/program.hpp"
#include "topologies/network.hpp"

namespace coterie {

// The key by which ECMP hashes a transfer: a function of its two GPUs alone, as with one connection
// per pair. All transfers of a pair take one path, in every engine.
constexpr std::uint64_t flow_key(std::uint32_t src, std::uint32_t dst, std::uint32_t num_gpus) {
  return std::uint64_t{src} * num_gpus + dst;
}

struct Transfers {
  // Links of each operation's route, as positions in Network::links(); none for computations.
  std::vector<std::uint64_t> route_begin;  // [num_ops + 1]
  std::vector<std::uint32_t> route_links;
  std::vector<double> delay_s;           // [num_ops] alpha + route latency; 0 for computations
  std::vector<double> rate_cap;          // [num_ops] bytes/s of its segment; infinite where none
  std::vector<std::uint32_t> queue;      // [num_ops] source rank and tier; 0 for computations
  std::vector<std::uint32_t> in_flight;  // [num_queues] sends a queue keeps under way

  [[nodiscard]] std::span<const std::uint32_t> route(std::size_t op) const {
    return std::span(route_links).subspan(route_begin[op], route_begin[op + 1] - route_begin[op]);
  }
  [[nodiscard]] std::size_t num_queues() const { return in_flight.size(); }
};

// Throws InputError where a transfer's destination cannot be reached.
Transfers resolve_transfers(const Program& program, const Network& network);

// Seconds from leaving the queue to the last byte, were the transfer alone on the network.
double uncontended_s(const Program& program, const Transfers& transfers,
                     std::span<const Link> links, std::size_t op);

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
