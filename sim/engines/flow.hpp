#pragma once
// The flow engine: a max-min fair fluid model of a program, made for dispatch traffic
// of thousands of ranks. This header is what the engine offers to tests and benchmarks; everybody
// else calls `run_flow` (engine.hpp).
//
// Between two events every flow f moves its amount at a constant rate r_f. With C_l the capacity of
// link or resource l (below, all are called links), less what is held of it, and c_f f's own rate cap, the rates are *feasible* when
//
//   sum over f through l of r_f <= C_l   for every link l,      0 <= r_f <= c_f,
//
// and *max-min fair* when no r_f can grow without shrinking some r_g <= r_f. Equivalently
// (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2): every flow is at its cap or
// crosses a *bottleneck*, a saturated link on which no other flow is faster. The allocation is
// unique, which is why this engine and SimGrid's (Casanova, Legrand, Quinson et al., "Versatile,
// scalable, and accurate simulation of distributed applications and platforms", JPDC 74(10), 2014;
// Velho, Schnorr, Casanova and Legrand, "On the validity of flow-level TCP network models for grid
// and cloud simulations", TOMACS 23(4), 2013) agree by construction where both solve at every
// event.
//
// What makes it fast:
//  1. Links, queues and events that no operation joins are independent: such *components* run one
//     by one, or in parallel, without changing a digit. Equal ones run once (flow_components.hpp).
//  2. Exact rates follow from event to event: what an event does not change is not computed again
//     (flow_bottlenecks.hpp).
//  3. With a precision p > 0 and many active flows (exact_flows) all is solved once per quantum, p
//     times the time the busiest link needs, over the links and flows that are connected to a
//     change (flow_maxmin.hpp); in between a local rule moves the bandwidth that finishing flows
//     leave behind to their successors and neighbours (flow_repair.hpp). The rates stay feasible at
//     all times, so no result is ever below the bound, and they are max-min fair at every quantum.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sim/engines/resolved.hpp"
#include "sim/program/program.hpp"

namespace coterie {

// The default of EngineOptions::relative_precision; sim/BENCHMARKS.md has the measured error.
inline constexpr double kFlowDefaultPrecision = 0.01;

// The default of FlowOptions::exact_visits: some milliseconds.
inline constexpr double kFlowExactVisits = 16777216.0;

// How many active flows of a component keep its rates exact whatever the precision, in a program of
// so many operations. In small programs one flow more or less decides who finishes first, and with
// it what a rank sends next; in large ones that evens out. An event of m active flows sets at most m
// rates, so the number times the operations is limited: it falls as one over the operations, and
// neither the time nor the error of a run has a step in the size of its program.
double exact_flows(std::size_t num_ops, double exact_visits = kFlowExactVisits);

struct FlowRate {
  std::uint32_t op = 0;
  double rate = 0.0;  // bytes per second
};

// The flows of a component right after their rates were set.
struct FlowSnapshot {
  double time_s = 0.0;
  bool solved =
      false;  // true: max-min fair; false: only feasible (a local repair inside a quantum)
  std::span<const FlowRate> flows;
  // [num_links] what the last solve shared out: the capacity, or more where a link makes up for
  // bytes it could not carry in the quantum before.
  std::span<const double> link_limit;
};

struct FlowStats {
  std::uint64_t num_components = 0;
  std::uint64_t num_runs = 0;    // components that were run; the others equal one of them
  std::uint64_t num_events = 0;  // distinct event times
  std::uint64_t num_solves = 0;
  std::uint64_t num_solved_flows = 0;  // sum over the solves
};

struct FlowOptions {
  double relative_precision = kFlowDefaultPrecision;  // 0: exact at every event
  // With a precision above zero, rates are nevertheless exact while at most exact_flows flows are
  // active: what that costs in the whole program, as rates set anew. Zero: never.
  double exact_visits = kFlowExactVisits;
  unsigned num_threads = 1;
  // Components that are equal but for the numbers of their GPUs, links and events run once.
  bool share_equal_components = true;
  std::span<const Link> links;  // for the names in messages; may be missing
  // For tests: called whenever rates have changed; forces one thread.
  std::function<void(const FlowSnapshot&)> observer;
};

// Throws InputError as check_numbers does (resolved.hpp), for a program that cannot end (operations
// that wait for each other, a flow that stands still for ever), and for times so large beside the
// steps of the run that double precision does not tell them apart.
Execution simulate_flows(const Program& program, const Routes& routes, const FlowOptions& options,
                         FlowStats* stats = nullptr);

}  // namespace coterie
