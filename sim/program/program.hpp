#pragma once
// The program an engine executes: operations with their dependencies, as flat arrays. Builders make
// it (layer_program.hpp); every engine executes it alike and knows nothing of MoE.
//
// An operation is silent for `duration` seconds and then moves `amount` over its resources:
//
//   computation  src == dst, uses nothing: takes `duration`
//   kernel       src == dst, uses resources of its GPU (memory bandwidth, multiprocessors): after
//                `duration`, its launch, `amount` flows over them
//   transfer     src != dst: after `duration` and its route's latency, `amount` bytes flow over all
//                links of the route and all resources that it uses besides
//
// Semantics, the same for all engines:
//
//  - An operation becomes *ready* when its event has fired. Events fire once all the operations
//    that signal them have finished; event 0 has fired at the start.
//  - A ready operation waits in its queue, in order of readiness, ties by operation index. At most
//    `queue_places` operations of a queue are under way; an operation leaves its place when it
//    finishes. Queue 0 holds nobody back.
//  - An operation that begins a *hold* (below) then waits until the resource has that much left,
//    behind all that wait for the same resource already. It starts once it has it; one with several
//    holds takes them together, when it is the first in all its lines. A hold whose event has fired
//    by then takes nothing.
//  - The amount flows at the operation's max-min fair share of everything it uses, never above its
//    rate cap. An amount of zero takes the silent time alone.
//  - A hold takes part of a resource's capacity away from everybody else, from the start of an
//    operation until an event fires: a communication kernel keeps its multiprocessors so. What
//    holds leave is what flows share; where nothing is left, they stand still.
//  - Capacities may change at times given beforehand (links that fail or recover).
//
// An operation that needs several resources in different proportions is several operations, one per
// resource, that signal the same event: it ends with the last of them.

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "topologies/network.hpp"

namespace coterie {

// Something besides the network's links that operations share.
struct Resource {
  std::string name;       // "gpu 3 memory", for messages and reports
  double capacity = 0.0;  // per second, in the unit of the amounts that flow over it
};

// `amount` of `resource` belongs to `begin_op` from its start until `end_event` fires.
struct Hold {
  std::uint32_t resource = 0;
  double amount = 0.0;
  std::uint32_t begin_op = 0;
  std::uint32_t end_event = 0;
  bool operator==(const Hold&) const = default;
};

// From `time_s` on, a link of the network has this capacity. Zero: nothing passes.
struct CapacityChange {
  double time_s = 0.0;
  std::uint32_t link = 0;  // position in Network::links()
  double capacity = 0.0;   // bytes per second
  bool operator==(const CapacityChange&) const = default;
};

inline constexpr std::uint32_t kStartEvent = 0;
inline constexpr std::uint32_t kFreeQueue = 0;  // queue 0: no limit
inline constexpr std::uint32_t kNoCap = 0;      // rate cap 0: infinite
inline constexpr std::uint32_t kUnlimitedPlaces = std::numeric_limits<std::uint32_t>::max();

struct Program {
  // Operations, [num_ops].
  std::vector<std::uint32_t> src;           // GPU
  std::vector<std::uint32_t> dst;           // GPU
  std::vector<double> duration;             // seconds; of transfers without the route's latency
  std::vector<double> amount;               // bytes, or the unit of the resources in use
  std::vector<std::uint32_t> rate_cap;      // position in rate_caps
  std::vector<std::uint32_t> queue;         // position in queue_places
  std::vector<std::uint32_t> waits_for;     // event that makes it ready
  std::vector<std::uint32_t> signal_begin;  // [num_ops + 1] events it counts down at its end
  std::vector<std::uint32_t> signals;
  std::vector<std::uint32_t> use_begin;  // [num_ops + 1] resources it uses besides its route
  std::vector<std::uint32_t> uses;

  std::vector<double> rate_caps;            // per second; [0] is infinite
  std::vector<std::uint32_t> queue_places;  // [0] is kUnlimitedPlaces
  std::vector<std::uint32_t> event_count;   // operations that signal each event; [0] is 0
  std::vector<Resource> resources;
  std::vector<Hold> holds;              // by begin_op, ascending
  std::vector<CapacityChange> changes;  // by time, ascending

  [[nodiscard]] std::size_t num_ops() const { return src.size(); }
  [[nodiscard]] bool is_transfer(std::size_t op) const { return src[op] != dst[op]; }
  [[nodiscard]] std::span<const std::uint32_t> uses_of(std::size_t op) const {
    return std::span(uses).subspan(use_begin[op], use_begin[op + 1] - use_begin[op]);
  }
  // Whether anything flows after the silent time.
  [[nodiscard]] bool flows(std::size_t op) const {
    return amount[op] > 0.0 && (is_transfer(op) || use_begin[op] != use_begin[op + 1]);
  }
};

// When every operation started (left its queue and had its holds) and finished, seconds.
struct Execution {
  std::vector<double> start_s;   // [num_ops]
  std::vector<double> finish_s;  // [num_ops]
  double makespan_s = 0.0;
};

// What one operation is; see Program.
struct Operation {
  std::uint32_t src = 0, dst = 0;
  double duration = 0.0;
  double amount = 0.0;
  std::uint32_t rate_cap = kNoCap;
  std::uint32_t queue = kFreeQueue;
  std::uint32_t waits_for = kStartEvent;
  std::span<const std::uint32_t> signals{};
  std::span<const std::uint32_t> uses{};
};

// Builds programs; checks what an engine relies on. Misuse throws std::logic_error.
class ProgramBuilder {
 public:
  ProgramBuilder();
  // An event that fires when all operations added with it as a signal have finished.
  std::uint32_t add_event();
  // At most `places` operations of the queue are under way; at least 1.
  std::uint32_t add_queue(std::uint32_t places);
  // The position of a cap of `rate` per second; equal caps have one position.
  std::uint32_t add_rate_cap(double rate);
  std::uint32_t add_resource(std::string name, double capacity);
  // Returns the operation's index.
  std::uint32_t add(const Operation& operation);
  // The two kinds that need no resources: a computation, and a transfer over its route alone.
  std::uint32_t add_compute(std::uint32_t gpu, double duration_s, std::uint32_t waits_for,
                            std::span<const std::uint32_t> signals);
  std::uint32_t add_transfer(std::uint32_t src, std::uint32_t dst, double bytes,
                             std::uint32_t waits_for, std::span<const std::uint32_t> signals);
  void add_hold(const Hold& hold);
  void add_change(const CapacityChange& change);
  void reserve(std::size_t num_ops, std::size_t num_signals);
  [[nodiscard]] std::size_t num_ops() const { return program_.num_ops(); }
  // Throws std::logic_error if an operation waits for, or a hold ends with, an event that nothing
  // signals.
  [[nodiscard]] Program finish() &&;

 private:
  Program program_;
};

}  // namespace coterie
