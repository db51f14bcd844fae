#pragma once
// Splits a program into parts that cannot influence each other: no common link, resource, queue or event
// (the start event apart). Each part is then renumbered by itself, in the order in which its
// operations first name a thing. A run of the renumbered part depends on nothing else, so parts
// that are equal number for number (groups with the same plan on the same kind of nodes) need one
// run for all of them, to the last digit, and a part's data lies together whatever the size of the
// cluster.

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "sim/engines/flow_routes.hpp"
#include "sim/engines/resolved.hpp"
#include "sim/program/program.hpp"

namespace coterie::flow {

inline constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// The operations of every component, ascending; components in the order of their first operations.
std::vector<std::vector<std::uint32_t>> split_components(const Program& program, const Routes& all,
                                                         const BindingRoutes& routes);

// A component with operations, links, queues and events numbered from zero.
struct Part {
  // [num_ops]
  std::vector<double> amount;                        // that flows; zero: nothing does
  std::vector<double> delay_s;                       // silent time
  std::vector<double> cap;                           // per second
  std::vector<std::uint32_t> queue;                  // kFreeQueue: no limit
  std::vector<std::uint32_t> waits_for;              // event; 0 is the start
  std::vector<std::uint32_t> route_begin, route;     // [num_ops + 1], links
  std::vector<std::uint32_t> signal_begin, signals;  // [num_ops + 1], events
  std::vector<std::uint32_t> event_count;
  std::vector<std::uint32_t> queue_places;  // [num_queues]
  std::vector<double> capacity;             // [num_links] of links and resources, at the start
  std::vector<Hold> holds;                  // by begin_op; `resource` is a position in capacity
  std::vector<CapacityChange> changes;      // by time
  std::vector<Detour> detours;              // by time, then op
  std::uint32_t max_hops = 1;

  [[nodiscard]] std::size_t num_ops() const { return amount.size(); }
  [[nodiscard]] std::span<const std::uint32_t> route_of(std::size_t op) const {
    return std::span(route).subspan(route_begin[op], route_begin[op + 1] - route_begin[op]);
  }
  [[nodiscard]] std::size_t num_caps() const;  // different finite ones
  // Largest amount / capacity of its links, with the largest capacity that they ever have.
  [[nodiscard]] double busiest_link_s() const;
  [[nodiscard]] std::uint64_t hash() const;
  bool operator==(const Part&) const = default;
};

// Renumbers components. Components share no numbers, so threads may renumber different ones at
// once.
class Renumbering {
 public:
  Renumbering(const Program& program, const Routes& all, const BindingRoutes& routes);
  // `links`, if given, receives the original number of each link.
  Part part(std::span<const std::uint32_t> ops, std::vector<std::uint32_t>* links = nullptr);

 private:
  void add_changes(std::uint32_t link, std::uint32_t number,
                   std::vector<CapacityChange>& out) const;

  const Program& program_;
  const Routes& all_;
  const BindingRoutes& routes_;
  std::vector<CapacityChange> changes_;  // by link, then time
  std::vector<Detour> detours_;          // by op, then time
  std::vector<std::uint32_t> link_;      // [num_links] number within its component
  std::vector<std::uint32_t> queue_;     // [num_queues]
  std::vector<std::uint32_t> event_;     // [num_events]
};

}  // namespace coterie::flow
