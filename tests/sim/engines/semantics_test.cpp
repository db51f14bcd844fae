// Every rule of program.hpp, on programs small enough to be counted by hand, in every engine that
// simulates time: simgrid, flow (exact and at its default precision) and the slow engine of these
// tests. GPUs are on a star of links of 1 GB/s without latency, so that times are round numbers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "core/error.hpp"
#include "core/random.hpp"
#include "sim/engines/engine.hpp"
#include "sim/engines/flow.hpp"
#include "tests/sim/engines/networks.hpp"
#include "tests/sim/engines/slow_engine.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;
using testing::SlowEngine;
using testing::star;

constexpr EngineOptions kExact{.relative_precision = 0.0};

struct Named {
  std::string name;
  std::function<Execution(const ResolvedProgram&)> run;
  double tolerance;  // relative; simgrid's own precision is 1e-9 of the bound
};
std::vector<Named> engines() {
  return {
      {"slow",
       [](const ResolvedProgram& program) {
         return SlowEngine(program.program, program.routes).run();
       },
       1e-12},
      {"flow, exact", [](const ResolvedProgram& program) { return run_flow(program, kExact); },
       1e-12},
      {"flow", [](const ResolvedProgram& program) { return run_flow(program, {}); }, 1e-12},
      {"simgrid", [](const ResolvedProgram& program) { return run_simgrid(program, kExact); },
       1e-8},
  };
}

// A program under construction, with what its operations are expected to do.
struct Expected {
  double start_s, finish_s;
};
struct Sketch {
  ProgramBuilder builder;
  std::vector<Expected> expected;
  Network network{star(4, 1e9, 0.0)};

  // `event` is signalled, if given.
  std::uint32_t add(Operation operation, Expected times,
                    std::optional<std::uint32_t> event = std::nullopt) {
    if (event) operation.signals = std::span(&*event, 1);
    expected.push_back(times);
    return builder.add(operation);
  }
  // The position of the link over which a GPU sends.
  [[nodiscard]] std::uint32_t link_out_of(std::uint32_t gpu) const {
    std::vector<LinkId> route;
    network.append_route(GpuId{gpu}, GpuId{gpu == 0 ? 1U : 0U}, 0, route);
    return route.front().value;
  }
  // Runs all engines. `bound_s`: what the bound must be, where it is tight.
  void check(std::optional<double> bound_s = std::nullopt) {
    const Program program = std::move(builder).finish();
    const ResolvedProgram resolved = resolve(program, network);
    if (bound_s) {
      EXPECT_NEAR(resolved.bound.makespan_s, *bound_s, 1e-12 * *bound_s);
    }
    for (const Named& engine : engines()) {
      const Execution run = engine.run(resolved);
      for (std::size_t op = 0; op < expected.size(); ++op) {
        const double tolerance = engine.tolerance * (1.0 + expected[op].finish_s);
        EXPECT_NEAR(run.start_s[op], expected[op].start_s, tolerance) << engine.name << " " << op;
        EXPECT_NEAR(run.finish_s[op], expected[op].finish_s, tolerance) << engine.name << " " << op;
      }
      EXPECT_LE(resolved.bound.makespan_s, run.makespan_s * (1.0 + 1e-8)) << engine.name;
    }
  }
  // All engines refuse the program with a sentence that holds `part`.
  void check_refused(const std::string& part) {
    const Program program = std::move(builder).finish();
    const ResolvedProgram resolved = resolve(program, network);
    EXPECT_THROW(SlowEngine(program, resolved.routes).run(), std::runtime_error);
    for (const Named& engine : engines()) {
      if (engine.name == "slow") continue;
      try {
        engine.run(resolved);
        ADD_FAILURE() << engine.name << " ran it";
      } catch (const InputError& error) {
        EXPECT_THAT(error.what(), HasSubstr(part)) << engine.name;
      }
    }
  }
};

// --- resources ---------------------------------------------------------------------------------

// Memory of 100 B/s. The first kernel (150 B) has it alone for 1 s, the launch of the second (300
// B): 50 B left. At 50 B/s each it ends at 2 s; the second has moved 50 B and ends 250 / 100 later.
TEST(Resources, TwoKernelsShareMemoryBandwidth) {
  Sketch sketch;
  const std::uint32_t memory = sketch.builder.add_resource("memory", 100.0);
  const std::uint32_t uses[]{memory};
  sketch.add({.amount = 150.0, .uses = uses}, {0.0, 2.0});
  sketch.add({.duration = 1.0, .amount = 300.0, .uses = uses}, {0.0, 4.5});
  sketch.check(4.5);
}

// One kernel is capped at 20 B/s (40 B: 2 s), the other takes the 80 B/s that it leaves: 160 B in
// 2 s, then its last 40 B at 100 B/s.
TEST(Resources, ARateCapLeavesTheRestToOthers) {
  Sketch sketch;
  const std::uint32_t memory = sketch.builder.add_resource("memory", 100.0);
  const std::uint32_t uses[]{memory};
  sketch.add({.amount = 40.0, .rate_cap = sketch.builder.add_rate_cap(20.0), .uses = uses},
             {0.0, 2.0});
  sketch.add({.amount = 200.0, .uses = uses}, {0.0, 2.4});
  sketch.check(2.4);
}

// A transfer of 0.4 GB also uses the memory of both ends, 0.4 GB/s at the source. There a kernel of
// 0.2 GB takes half: it ends at 1 s, and the transfer's other 0.2 GB take 0.5 s.
TEST(Resources, ATransferUsesMemoryAtBothEnds) {
  Sketch sketch;
  const std::uint32_t uses[]{sketch.builder.add_resource("memory 0", 4e8),
                             sketch.builder.add_resource("memory 1", 1e9)};
  sketch.add({.src = 0, .dst = 1, .amount = 4e8, .uses = uses}, {0.0, 1.5});
  sketch.add({.src = 0, .dst = 0, .amount = 2e8, .uses = std::span(uses, 1)}, {0.0, 1.0});
  sketch.check(1.5);
}

// Max-min over two resources: A uses the first (1/s), B both, C the second (2/s), 1 each. A = B =
// 1/2, C = 3/2: C ends at 2/3, the others at 2. Amounts below one must not be rounded.
TEST(Resources, SharesAreMaxMinFair) {
  Sketch sketch;
  const std::uint32_t uses[]{sketch.builder.add_resource("first", 1.0),
                             sketch.builder.add_resource("second", 2.0)};
  sketch.add({.amount = 1.0, .uses = std::span(uses, 1)}, {0.0, 2.0});
  sketch.add({.amount = 1.0, .uses = uses}, {0.0, 2.0});
  sketch.add({.amount = 1.0, .uses = std::span(uses + 1, 1)}, {0.0, 2.0 / 3.0});
  sketch.add({.src = 1,
              .dst = 1,
              .amount = 0.3,
              .rate_cap = sketch.builder.add_rate_cap(0.1),
              .uses = std::span(uses + 1, 1)},
             {0.0, 0.0});
  sketch.expected.back() = {0.0, 3.0};
  // C then has 2 - 1/2 - 1/10 = 1.4 per second: 1 / 1.4.
  sketch.expected[2].finish_s = 1.0 / 1.4;
  sketch.check();
}

// An amount of zero, and an amount of a computation that uses nothing: the silent time alone.
TEST(Resources, WhatDoesNotFlowTakesItsSilentTime) {
  Sketch sketch;
  const std::uint32_t uses[]{sketch.builder.add_resource("memory", 100.0)};
  sketch.add({.duration = 0.25, .uses = uses}, {0.0, 0.25});
  sketch.add({.duration = 0.5, .amount = 7.0}, {0.0, 0.5});
  sketch.add({.src = 0, .dst = 1, .duration = 0.75}, {0.0, 0.75});
  sketch.check(0.75);
}

// --- queues ------------------------------------------------------------------------------------

// One place, computations of 5 s. Ready at 2 s, 1 s, 1 s: the two of 1 s come first, by index, then
// the one of 2 s.
TEST(Queues, AreInOrderOfReadinessThenIndex) {
  Sketch sketch;
  const std::uint32_t queue = sketch.builder.add_queue(1);
  const std::uint32_t late = sketch.builder.add_event();
  const std::uint32_t early = sketch.builder.add_event();
  sketch.add({.duration = 5.0, .queue = queue, .waits_for = late}, {11.0, 16.0});
  sketch.add({.duration = 5.0, .queue = queue, .waits_for = early}, {1.0, 6.0});
  sketch.add({.duration = 5.0, .queue = queue, .waits_for = early}, {6.0, 11.0});
  sketch.add({.duration = 2.0}, {0.0, 2.0}, late);
  sketch.add({.duration = 1.0}, {0.0, 1.0}, early);
  sketch.check(16.0);
}

// What becomes ready at one moment through an operation of no duration is ready at that moment: of
// two that are ready at 1 s, the first by index leads although the other's event fired directly.
TEST(Queues, OperationsOfNoDurationDoNotDelay) {
  Sketch sketch;
  const std::uint32_t queue = sketch.builder.add_queue(1);
  const std::uint32_t direct = sketch.builder.add_event();
  const std::uint32_t detour = sketch.builder.add_event();
  sketch.add({.duration = 1.0}, {0.0, 1.0}, direct);
  sketch.add({.waits_for = direct}, {1.0, 1.0}, detour);
  sketch.add({.duration = 3.0, .queue = queue, .waits_for = detour}, {1.0, 4.0});
  sketch.add({.duration = 3.0, .queue = queue, .waits_for = direct}, {4.0, 7.0});
  sketch.check();
}

// A kernel, a transfer and a computation in one queue of two places: the kernel (100 B at 100 B/s)
// and the transfer (2 GB at 1 GB/s) start, the computation takes the kernel's place at 1 s.
TEST(Queues, HoldAllKindsOfOperations) {
  Sketch sketch;
  const std::uint32_t queue = sketch.builder.add_queue(2);
  const std::uint32_t uses[]{sketch.builder.add_resource("memory", 100.0)};
  sketch.add({.amount = 100.0, .queue = queue, .uses = uses}, {0.0, 1.0});
  sketch.add({.src = 0, .dst = 1, .amount = 2e9, .queue = queue}, {0.0, 2.0});
  sketch.add({.duration = 4.0, .queue = queue}, {1.0, 5.0});
  sketch.check();
}

// --- holds -------------------------------------------------------------------------------------

// 132 multiprocessors. The first computation holds 100 for 2 s, the second wants 40 and waits. The
// third wants 20, which are there, but stands behind the second. Both start at 2 s.
TEST(Holds, DelayWhatWaitsAndWhatStandsBehindIt) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("multiprocessors", 132.0);
  const double wanted[]{100.0, 40.0, 20.0};
  const Expected times[]{{0.0, 2.0}, {2.0, 3.0}, {2.0, 5.0}};
  const double duration[]{2.0, 1.0, 3.0};
  for (std::uint32_t i = 0; i < 3; ++i) {
    const std::uint32_t end = sketch.builder.add_event();
    const std::uint32_t op = sketch.add({.duration = duration[i]}, times[i], end);
    sketch.builder.add_hold({sms, wanted[i], op, end});
  }
  sketch.check();
}

// A kernel needs 30 of 10 per second. From 1 s to 3 s a computation holds `held`.
void one_kernel_beside_a_hold(double held, double finish_s) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("multiprocessors", 10.0);
  const std::uint32_t uses[]{sms};
  const std::uint32_t begin = sketch.builder.add_event();
  const std::uint32_t end = sketch.builder.add_event();
  sketch.add({.amount = 30.0, .uses = uses}, {0.0, finish_s});
  sketch.add({.duration = 1.0}, {0.0, 1.0}, begin);
  const std::uint32_t op = sketch.add({.duration = 2.0, .waits_for = begin}, {1.0, 3.0}, end);
  sketch.builder.add_hold({sms, held, op, end});
  sketch.check(3.0 + 0.2 * held);  // the same sum: 30 and 2 s of the hold, 10 per second
}
// 10 in the first second, 5 in each of the next two, then the last 10 in one: 4 s.
TEST(Holds, SlowWhatFlows) {
  one_kernel_beside_a_hold(5.0, 4.0);
}
// 10 in the first second, nothing for two, then 20 in two: 5 s.
TEST(Holds, OfAWholeResourceStopWhatFlows) {
  one_kernel_beside_a_hold(10.0, 5.0);
}

// A communication kernel holds its multiprocessors until its transfers, 1 GB and 3 GB one after the
// other, have arrived: from 0 s to 4 s. The computation that needs all waits for that.
TEST(Holds, LastUntilTheirEvent) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("multiprocessors", 132.0);
  const std::uint32_t queue = sketch.builder.add_queue(1);
  const std::uint32_t started = sketch.builder.add_event();
  const std::uint32_t arrived = sketch.builder.add_event();
  const std::uint32_t computed = sketch.builder.add_event();
  const std::uint32_t kernel = sketch.add({}, {0.0, 0.0}, started);
  sketch.add({.src = 0, .dst = 1, .amount = 1e9, .queue = queue, .waits_for = started}, {0.0, 1.0},
             arrived);
  sketch.add({.src = 0, .dst = 2, .amount = 3e9, .queue = queue, .waits_for = started}, {1.0, 4.0},
             arrived);
  const std::uint32_t all = sketch.add({.duration = 2.0}, {4.0, 6.0}, computed);
  sketch.builder.add_hold({sms, 20.0, kernel, arrived});
  sketch.builder.add_hold({sms, 132.0, all, computed});
  sketch.check();
}

// An operation keeps its place in the queue while it waits for its hold. The second of the queue
// (0.5 s long) waits for the resource until 3 s; the third cannot start before 3.5 s.
TEST(Holds, AreWaitedForInAPlaceOfTheQueue) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("multiprocessors", 2.0);
  const std::uint32_t queue = sketch.builder.add_queue(1);
  const std::uint32_t first = sketch.builder.add_event();
  const std::uint32_t second = sketch.builder.add_event();
  const std::uint32_t holder = sketch.add({.duration = 3.0}, {0.0, 3.0}, first);
  const std::uint32_t waiter = sketch.add({.duration = 0.5, .queue = queue}, {3.0, 3.5}, second);
  sketch.add({.duration = 1.0, .queue = queue}, {3.5, 4.5});
  sketch.builder.add_hold({sms, 2.0, holder, first});
  sketch.builder.add_hold({sms, 1.0, waiter, second});
  sketch.check();
}

// Several holds of one operation are taken together. A holds the first resource for 2 s; B wants
// both and waits; C wants the second alone and stands behind B, although it is free. At 2 s B takes
// both for 1 s, C follows at 3 s.
TEST(Holds, OfSeveralResourcesAreTakenTogether) {
  Sketch sketch;
  const std::uint32_t one = sketch.builder.add_resource("one", 1.0);
  const std::uint32_t two = sketch.builder.add_resource("two", 1.0);
  std::uint32_t end[3];
  for (std::uint32_t& event : end) event = sketch.builder.add_event();
  const std::uint32_t a = sketch.add({.duration = 2.0}, {0.0, 2.0}, end[0]);
  const std::uint32_t b = sketch.add({.duration = 1.0}, {2.0, 3.0}, end[1]);
  const std::uint32_t c = sketch.add({.duration = 1.0}, {3.0, 4.0}, end[2]);
  sketch.builder.add_hold({one, 1.0, a, end[0]});
  sketch.builder.add_hold({one, 1.0, b, end[1]});
  sketch.builder.add_hold({two, 1.0, b, end[1]});
  sketch.builder.add_hold({two, 1.0, c, end[2]});
  sketch.check();
}

// A hold whose event fired before the operation starts takes nothing: the kernel (10 of 10 per
// second, from 1 s on) is not slowed by it.
TEST(Holds, ThatEndedBeforeTheyBeganTakeNothing) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("multiprocessors", 10.0);
  const std::uint32_t uses[]{sms};
  const std::uint32_t over = sketch.builder.add_event();
  sketch.add({.duration = 1.0}, {0.0, 1.0}, over);
  const std::uint32_t op = sketch.add({.duration = 2.0, .waits_for = over}, {1.0, 3.0});
  sketch.add({.duration = 1.0, .amount = 10.0, .uses = uses}, {0.0, 2.0});
  sketch.builder.add_hold({sms, 5.0, op, over});
  sketch.check(3.0);
}

// Tenths do not add up in binary: 0.1, 0.2 and 0.7 together fit a resource of 1, and leave nothing
// of it. The kernel (2 at 1 per second) stands still while they last, from 0 s to 1 s.
TEST(Holds, ThatFillAResourceButForRoundingFillIt) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("share", 1.0);
  const std::uint32_t uses[]{sms};
  for (const double part : {0.1, 0.2, 0.7}) {
    const std::uint32_t end = sketch.builder.add_event();
    const std::uint32_t op = sketch.add({.duration = 1.0}, {0.0, 1.0}, end);
    sketch.builder.add_hold({sms, part, op, end});
  }
  sketch.add({.amount = 2.0, .uses = uses}, {0.0, 3.0});
  sketch.check(3.0);
}

// --- capacities that change --------------------------------------------------------------------

// 3 GB over 1 GB/s: 1 GB by 1 s, when the sender's link fails; from 2 s on 0.5 GB/s, by 4 s one GB
// more; then it has 2 GB/s, the receiver's link still 1 GB/s: the last GB ends at 5 s.
TEST(Changes, ALinkFailsAndRecovers) {
  Sketch sketch;
  const std::uint32_t link = sketch.link_out_of(0);
  sketch.builder.add_change({1.0, link, 0.0});
  sketch.builder.add_change({2.0, link, 0.5e9});
  sketch.builder.add_change({4.0, link, 2e9});
  sketch.add({.src = 0, .dst = 1, .amount = 3e9}, {0.0, 5.0});
  sketch.check();
}

// Two senders to one receiver, 1 GB and 2 GB, half of the receiver's 1 GB/s each. At 1 s the first
// sender's link fails, with 0.5 GB left: the second has the receiver alone, its last 1.5 GB take
// until 2.5 s. At 3 s the link is back, and 0.5 GB take 0.5 s.
TEST(Changes, WhatAFailedLinkLeavesGoesToOthers) {
  Sketch sketch;
  const std::uint32_t link = sketch.link_out_of(0);
  sketch.builder.add_change({1.0, link, 0.0});
  sketch.builder.add_change({3.0, link, 1e9});
  sketch.add({.src = 0, .dst = 3, .amount = 1e9}, {0.0, 3.5});
  sketch.add({.src = 1, .dst = 3, .amount = 2e9}, {0.0, 2.5});
  sketch.check();
}

// A link that is down from the start: the transfer begins to flow at 2 s. One that fails at the
// moment at which a transfer ends, or after the end, changes nothing.
TEST(Changes, AtTheEdgesOfATransfer) {
  Sketch sketch;
  sketch.builder.add_change({0.0, sketch.link_out_of(0), 0.0});
  sketch.builder.add_change({2.0, sketch.link_out_of(0), 1e9});
  sketch.builder.add_change({1.0, sketch.link_out_of(2), 0.0});
  sketch.builder.add_change({50.0, sketch.link_out_of(2), 1e9});
  sketch.add({.src = 0, .dst = 1, .amount = 1e9}, {0.0, 3.0});
  sketch.add({.src = 2, .dst = 3, .amount = 1e9}, {0.0, 1.0});
  sketch.check();
}

// A link wider than its feeders would be left out of the flow engine's routes; not when it fails. 1
// GB, with the sender's link (10 GB/s beside the receiver's 1 GB/s) down from 0.5 s to 1.5 s.
TEST(Changes, OfALinkThatElseNeverLimits) {
  Sketch sketch;
  sketch.builder.add_change({0.0, sketch.link_out_of(0), 1e10});
  sketch.builder.add_change({0.5, sketch.link_out_of(0), 0.0});
  sketch.builder.add_change({1.5, sketch.link_out_of(0), 1e10});
  sketch.add({.src = 0, .dst = 1, .amount = 1e9}, {0.0, 2.0});
  sketch.check(1.0);
}

// --- programs that cannot end ------------------------------------------------------------------

TEST(Stuck, ALinkThatStaysDownIsNamed) {
  Sketch sketch;
  sketch.builder.add_change({0.5, sketch.link_out_of(0), 0.0});
  sketch.add({.src = 2, .dst = 1, .amount = 1e6}, {});
  sketch.add({.src = 0, .dst = 1, .amount = 1e9}, {});
  const std::string name = sketch.network.links()[sketch.link_out_of(0)].name;
  sketch.check_refused(
      "program: found transfer 1 from GPU 0 to GPU 1 that stands still for ever, because nothing "
      "is left of link \"" +
      name + "\", expected capacity on its way at some time");
}

TEST(Stuck, AKernelBesideAHoldThatWaitsForItIsNamed) {
  Sketch sketch;
  const std::uint32_t uses[]{sketch.builder.add_resource("gpu 0 memory", 10.0)};
  const std::uint32_t end = sketch.builder.add_event();
  const std::uint32_t op = sketch.add({.amount = 5.0, .uses = uses}, {}, end);
  sketch.builder.add_hold({uses[0], 10.0, op, end});
  sketch.check_refused(
      "found kernel 0 on GPU 0 that stands still for ever, because nothing is left of \"gpu 0 "
      "memory\"");
}

TEST(Stuck, HoldsThatWaitForEachOtherAreNamed) {
  Sketch sketch;
  const std::uint32_t sms = sketch.builder.add_resource("gpu 0 multiprocessors", 10.0);
  const std::uint32_t first = sketch.builder.add_event();
  const std::uint32_t end = sketch.builder.add_event();
  const std::uint32_t a = sketch.add({.duration = 1.0}, {}, first);
  const std::uint32_t b = sketch.add({.duration = 1.0, .waits_for = first}, {}, end);
  sketch.builder.add_hold({sms, 6.0, a, end});
  sketch.builder.add_hold({sms, 6.0, b, end});
  sketch.check_refused(
      "found computation 1 on GPU 0 that waits for ever to hold a part of \"gpu 0 "
      "multiprocessors\"");
}

// What no engine can work with is refused before any runs.
TEST(Stuck, WhatCannotFitOrNeverHasCapacityIsRefusedAtOnce) {
  const auto refused = [](const std::function<void(Sketch&)>& fill, const std::string& part) {
    Sketch sketch;
    fill(sketch);
    const Program program = std::move(sketch.builder).finish();
    try {
      resolve(program, sketch.network);
      ADD_FAILURE() << part;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  };
  refused(
      [](Sketch& sketch) {
        const std::uint32_t sms = sketch.builder.add_resource("sms", 10.0);
        const std::uint32_t end = sketch.builder.add_event();
        const std::uint32_t op = sketch.add({.duration = 1.0}, {}, end);
        for (int i = 0; i < 2; ++i) sketch.builder.add_hold({sms, 6.0, op, end});
      },
      "computation 0 on GPU 0: found a hold of 12 of \"sms\", expected at most its capacity, 10");
  refused(
      [](Sketch& sketch) {
        const std::uint32_t uses[]{sketch.builder.add_resource("memory", 0.0)};
        sketch.add({.amount = 1.0, .uses = uses}, {});
      },
      "kernel 0 on GPU 0: found \"memory\" of 0 per second on its way");
  refused(
      [](Sketch& sketch) {
        sketch.builder.add_change({1.0, 99, 0.0});
      },
      "capacity change: found link 99, expected a link of the network, which has 8");
  refused(
      [](Sketch& sketch) {
        sketch.builder.add_change({std::numeric_limits<double>::infinity(), 0, 0.0});
      },
      "found 0 per second at inf s, expected a finite capacity and time");
}

// --- random programs ---------------------------------------------------------------------------

// Waves of kernels, transfers and computations on eight GPUs of two nodes, some capped, some in
// queues, with holds and links that fail and recover. Every GPU has a memory, which flows use, and
// multiprocessors, which kernels use and holds take. Whatever holds multiprocessors never waits for
// what uses them, so that every program ends.
Program random_program(std::uint64_t seed, const Network& network) {
  constexpr std::uint32_t kNumGpus = 8;
  Random random(seed);
  ProgramBuilder builder;
  const auto gpu = [&] { return static_cast<std::uint32_t>(random.index(kNumGpus)); };
  std::vector<std::uint32_t> memory, sms, queue;
  for (std::uint32_t g = 0; g < kNumGpus; ++g) {
    memory.push_back(builder.add_resource(fmt::format("memory {}", g), 2e9));
    sms.push_back(builder.add_resource(fmt::format("sms {}", g), 4.0));
    queue.push_back(builder.add_queue(static_cast<std::uint32_t>(1 + random.index(2))));
  }
  const auto links = static_cast<std::uint32_t>(network.links().size());
  for (int i = 0; i < 6; ++i) {
    const auto link = static_cast<std::uint32_t>(random.index(links));
    const double down = 4e-3 * random.uniform();
    const double up = down + 1e-3 * random.uniform();
    const double usual = network.links()[link].bandwidth.value;
    builder.add_change({down, link, random.index(2) == 0 ? 0.0 : 0.3 * usual});
    builder.add_change({up, link, usual * (0.5 + random.uniform())});
  }
  std::uint32_t ready = kStartEvent;
  for (int wave = 0; wave < 3; ++wave) {
    const std::uint32_t done = builder.add_event();
    for (int i = 0; i < 30; ++i) {
      Operation op{.waits_for = ready, .signals = std::span(&done, 1)};
      op.src = op.dst = gpu();
      if (random.index(3) == 0) op.queue = queue[op.src];
      if (random.index(4) == 0) op.rate_cap = builder.add_rate_cap(1e8 * (1.0 + random.uniform()));
      if (random.index(2) == 0) op.duration = 1e-4 * random.uniform();
      std::vector<std::uint32_t> uses;
      const std::uint64_t kind = random.index(5);
      if (kind < 2) {  // a transfer, which may load the memories at its ends
        op.dst = (op.src + 1 + static_cast<std::uint32_t>(random.index(kNumGpus - 1))) % kNumGpus;
        if (random.index(2) == 0) uses = {memory[op.src], memory[op.dst]};
        op.amount = 1e6 * random.uniform();
      } else if (kind == 2) {  // a kernel that moves bytes
        uses = {memory[op.src]};
        op.amount = 1e6 * random.uniform();
      } else if (kind == 3) {  // a kernel that computes
        uses = {sms[op.src]};
        op.amount = 4e-3 * random.uniform();
        op.rate_cap = kNoCap;
      } else {  // something that holds multiprocessors, until its follower ends or by itself
        const std::uint32_t end = builder.add_event();
        const std::uint32_t signals[]{end, done};
        op.duration = 1e-3 * random.uniform();
        op.signals = signals;
        const std::uint32_t first = builder.add(op);
        const auto part = static_cast<double>(1 + random.index(4));
        builder.add_hold({sms[op.src], part, first, end});
        if (random.index(3) == 0) builder.add_hold({sms[(op.src + 1) % kNumGpus], 1.0, first, end});
        if (random.index(2) == 0) {
          const std::uint32_t started = builder.add_event();
          builder.add_compute(op.src, 2e-4 * random.uniform(), ready, {{started}});
          builder.add_transfer(op.src, (op.src + 1) % kNumGpus, 1e6 * random.uniform(), started,
                               {{end}});
        }
        continue;
      }
      op.uses = uses;
      builder.add(op);
    }
    ready = done;
  }
  return std::move(builder).finish();
}

void expect_same(const Execution& run, const Execution& reference, double tolerance_s,
                 const std::string& what) {
  for (std::size_t op = 0; op < reference.start_s.size(); ++op) {
    ASSERT_NEAR(run.start_s[op], reference.start_s[op], tolerance_s) << what << " start of " << op;
    ASSERT_NEAR(run.finish_s[op], reference.finish_s[op], tolerance_s) << what << " end of " << op;
  }
}

class RandomPrograms : public ::testing::Test {
 protected:
  Network network_{testing::two_tiers(2, 4, 1e9, 4e9, 1e-6)};
};

TEST_F(RandomPrograms, FlowDoesAsTheSlowEngine) {
  int num_waited = 0;
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    const Program program = random_program(seed, network_);
    const ResolvedProgram resolved = resolve(program, network_);
    const Execution slow = SlowEngine(program, resolved.routes).run();
    expect_same(run_flow(resolved, kExact), slow, 1e-9 * slow.makespan_s,
                fmt::format("seed {}", seed));
    EXPECT_GE(slow.makespan_s, resolved.bound.makespan_s * (1.0 - 1e-9)) << seed;
    for (const Hold& hold : program.holds) {
      num_waited += slow.start_s[hold.begin_op] > resolved.bound.start_s[hold.begin_op] ? 1 : 0;
    }
    FlowOptions coarse;
    coarse.exact_visits = 0.0;
    EXPECT_GE(simulate_flows(program, resolved.routes, coarse).makespan_s,
              resolved.bound.makespan_s * (1.0 - 1e-9))
        << seed;
  }
  EXPECT_GT(num_waited, 500);  // the programs are not too tame to tell
}

TEST_F(RandomPrograms, SimgridDoesAsTheSlowEngine) {
  for (std::uint64_t seed = 1000; seed < 1040; ++seed) {
    const Program program = random_program(seed, network_);
    const ResolvedProgram resolved = resolve(program, network_);
    const Execution slow = SlowEngine(program, resolved.routes).run();
    expect_same(run_simgrid(resolved, kExact), slow, 1e-6 * slow.makespan_s,
                fmt::format("seed {}", seed));
  }
}

// Every operation starts and ends no earlier than its bound.
TEST_F(RandomPrograms, NothingIsBelowItsBound) {
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    const Program program = random_program(seed, network_);
    const ResolvedProgram resolved = resolve(program, network_);
    const Execution run = run_flow(resolved, kExact);
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      ASSERT_GE(run.start_s[op], resolved.bound.start_s[op] - 1e-9 * run.makespan_s);
      ASSERT_GE(run.finish_s[op], resolved.bound.finish_s[op] - 1e-9 * run.makespan_s);
    }
  }
}

}  // namespace
}  // namespace coterie
