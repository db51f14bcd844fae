// The flow engine on small networks written out by hand: known answers, properties, degenerate
// inputs. Agreement with SimGrid is tested in flow_agreement_test.cpp.

#include "sim/engines/flow.hpp"
#include "sim/engines/flow_maxmin.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/sim/engines/flow_reference.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;
using testing::slow_max_min;
using testing::SlowFlow;
using testing::why_infeasible;
using testing::why_not_max_min;

constexpr double kUnlimited = std::numeric_limits<double>::infinity();
constexpr std::uint32_t kNoLimit = 1U << 30;

// A program whose routes, delays and caps are given by hand instead of by a Network. Every GPU
// sends through a queue of `in_flight` places.
struct Case {
  ProgramBuilder builder;
  Routes routes;
  std::vector<std::uint32_t> queue;  // [num_gpus]

  Case(std::uint32_t num_gpus, std::vector<double> link_capacity, std::uint32_t in_flight) {
    routes.begin.push_back(0);
    routes.capacity = routes.largest = std::move(link_capacity);
    for (std::uint32_t gpu = 0; gpu < num_gpus; ++gpu) {
      queue.push_back(builder.add_queue(in_flight));
    }
  }
  std::uint32_t transfer(std::uint32_t src, std::uint32_t dst, double bytes,
                         const std::vector<std::uint32_t>& route, double delay = 0.0,
                         double cap = kUnlimited, std::uint32_t waits_for = kStartEvent,
                         const std::vector<std::uint32_t>& signals = {}) {
    return add({.src = src,
                .dst = dst,
                .duration = delay,
                .amount = bytes,
                .rate_cap = builder.add_rate_cap(cap),
                .queue = queue[src],
                .waits_for = waits_for,
                .signals = signals},
               route, cap);
  }
  std::uint32_t compute(std::uint32_t gpu, double duration, std::uint32_t waits_for,
                        const std::vector<std::uint32_t>& signals) {
    return add(
        {.src = gpu, .dst = gpu, .duration = duration, .waits_for = waits_for, .signals = signals},
        {}, kUnlimited);
  }
  std::uint32_t add(const Operation& operation, const std::vector<std::uint32_t>& route,
                    double cap) {
    routes.links.insert(routes.links.end(), route.begin(), route.end());
    routes.begin.push_back(routes.links.size());
    routes.delay_s.push_back(operation.duration);
    routes.rate_cap.push_back(cap);
    return builder.add(operation);
  }
};

Execution exact(const Program& program, const Case& input) {
  FlowOptions options;
  options.relative_precision = 0.0;
  return simulate_flows(program, input.routes, options);
}

// n GPUs, each with a link out (2g) and a link in (2g + 1) of 1 B/s; every pair exchanges a
// log-normal number of bytes; sizes, link speeds and delays are scaled for the scale tests.
struct AllToAll {
  std::uint32_t num_gpus = 16;
  std::uint32_t in_flight = 4;
  double size = 1.0;
  double sigma = 1.0;
  double bandwidth = 1.0;
  double delay = 0.01;
  double cap = kUnlimited;
  std::uint64_t seed = 1;
};

Case all_to_all(const AllToAll& shape) {
  std::vector<double> capacity(2 * shape.num_gpus, shape.bandwidth);
  Case out(shape.num_gpus, capacity, shape.in_flight);
  Random random(shape.seed);
  for (std::uint32_t src = 0; src < shape.num_gpus; ++src) {
    for (std::uint32_t step = 1; step < shape.num_gpus; ++step) {
      const std::uint32_t dst = (src + step) % shape.num_gpus;
      const double bytes = shape.size * std::exp(shape.sigma * random.normal());
      out.transfer(src, dst, bytes, {2 * src, 2 * dst + 1}, shape.delay, shape.cap);
    }
  }
  return out;
}

double busiest_link_s(const Program& program, const Case& input) {
  std::vector<double> load(input.routes.capacity.size(), 0.0);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    for (const std::uint32_t link : input.routes.of(op)) load[link] += program.amount[op];
  }
  double worst = 0.0;
  for (std::size_t link = 0; link < load.size(); ++link) {
    worst = std::max(worst, load[link] / input.routes.capacity[link]);
  }
  return worst;
}

// --- known answers -----------------------------------------------------------------------------

// 10 B over links of 2 and 5 B/s after 0.5 s of silence: 0.5 + 10 / 2.
TEST(FlowKnownAnswers, OneTransferTakesDelayPlusBytesOverNarrowestLink) {
  Case input(2, {2.0, 5.0}, 8);
  input.transfer(0, 1, 10.0, {0, 1}, 0.5);
  const Program program = std::move(input.builder).finish();
  EXPECT_NEAR(exact(program, input).makespan_s, 5.5, 1e-12);
}

// The rate cap holds although the link is idle: 10 / 0.5.
TEST(FlowKnownAnswers, RateCapHoldsOnAnIdleLink) {
  Case input(2, {2.0}, 8);
  input.transfer(0, 1, 10.0, {0}, 0.0, 0.5);
  const Program program = std::move(input.builder).finish();
  EXPECT_NEAR(exact(program, input).makespan_s, 20.0, 1e-12);
}

// Incast of n senders takes n * size / bandwidth + latency.
TEST(FlowKnownAnswers, IncastSharesTheReceiversLink) {
  Case input(9, std::vector<double>(9, 1.0), 8);
  for (std::uint32_t src = 0; src < 8; ++src) input.transfer(src, 8, 3.0, {src, 8}, 0.25);
  const Program program = std::move(input.builder).finish();
  EXPECT_NEAR(exact(program, input).makespan_s, 8 * 3.0 + 0.25, 1e-9);
}

// A and B share link 0 (1 B/s), B and C share link 1 (2 B/s), 1 B each. Rates: A = B = 1/2, C =
// 3/2. C ends at 2/3, A and B at 2.
TEST(FlowKnownAnswers, MaxMinIsNotProportional) {
  Case input(4, {1.0, 2.0}, 8);
  input.transfer(0, 3, 1.0, {0});
  input.transfer(1, 3, 1.0, {0, 1});
  input.transfer(2, 3, 1.0, {1});
  const Program program = std::move(input.builder).finish();
  const Execution run = exact(program, input);
  EXPECT_NEAR(run.finish_s[0], 2.0, 1e-12);
  EXPECT_NEAR(run.finish_s[1], 2.0, 1e-12);
  EXPECT_NEAR(run.finish_s[2], 2.0 / 3.0, 1e-12);
}

// Equal all-to-all on a non-blocking star: (n - 1) * size / bandwidth + latency.
TEST(FlowKnownAnswers, EqualAllToAllWithoutLimit) {
  AllToAll shape;
  shape.in_flight = kNoLimit;
  shape.sigma = 0.0;
  Case input = all_to_all(shape);
  const Program program = std::move(input.builder).finish();
  EXPECT_NEAR(exact(program, input).makespan_s, 15.0 + 0.01, 1e-9);
}

// Two sends in flight, three equal transfers to different receivers over the sender's 1 B/s link
// with delay 1: two run from 1 to 3 (1 B each at 1/2), the third leaves the queue at 3, flows from
// 4 to 5.
TEST(FlowKnownAnswers, QueueLimitsSendsInFlight) {
  Case input(4, {1.0}, 2);
  for (std::uint32_t dst = 1; dst <= 3; ++dst) input.transfer(0, dst, 1.0, {0}, 1.0);
  const Program program = std::move(input.builder).finish();
  const Execution run = exact(program, input);
  EXPECT_NEAR(run.finish_s[1], 3.0, 1e-12);
  EXPECT_NEAR(run.start_s[2], 3.0, 1e-12);
  EXPECT_NEAR(run.finish_s[2], 5.0, 1e-12);
}

// compute 2 s -> transfer of 3 B at 1 B/s -> compute 1 s.
TEST(FlowKnownAnswers, DependenciesChain) {
  Case input(2, {1.0}, 8);
  const std::uint32_t computed = input.builder.add_event();
  const std::uint32_t sent = input.builder.add_event();
  input.compute(0, 2.0, kStartEvent, {computed});
  input.transfer(0, 1, 3.0, {0}, 0.0, kUnlimited, computed, {sent});
  input.compute(1, 1.0, sent, {});
  const Program program = std::move(input.builder).finish();
  const Execution run = exact(program, input);
  EXPECT_NEAR(run.start_s[1], 2.0, 1e-12);
  EXPECT_NEAR(run.finish_s[1], 5.0, 1e-12);
  EXPECT_NEAR(run.makespan_s, 6.0, 1e-12);
}

// --- optimality and conservation at every step ---------------------------------------------------

// A random network: `num_links` links of random speed, random routes of 1 to 4 distinct links, some
// capped, random sizes over six orders of magnitude, two rounds joined by an event.
Case random_case(std::uint64_t seed) {
  Random random(seed);
  const auto num_links = static_cast<std::uint32_t>(3 + random.index(20));
  std::vector<double> capacity(num_links);
  for (double& c : capacity) c = std::exp(2.0 * random.normal());
  Case out(8, capacity, static_cast<std::uint32_t>(1 + random.index(6)));
  const std::uint32_t half_way = out.builder.add_event();
  for (int i = 0; i < 120; ++i) {
    std::vector<std::uint32_t> route(num_links);
    for (std::uint32_t link = 0; link < num_links; ++link) route[link] = link;
    random.shuffle(std::span(route));
    route.resize(1 + random.index(std::min(4U, num_links)));
    const auto src = static_cast<std::uint32_t>(random.index(8));
    const std::uint32_t dst = (src + 1 + static_cast<std::uint32_t>(random.index(7))) % 8;
    const double cap = random.index(3) == 0 ? std::exp(random.normal() - 1.0) : kUnlimited;
    const double bytes = random.index(10) == 0 ? 0.0 : std::exp(3.0 * random.normal());
    const bool second = random.index(2) == 0;
    const std::vector<std::uint32_t> signals =
        second ? std::vector<std::uint32_t>{} : std::vector<std::uint32_t>{half_way};
    out.transfer(src, dst, bytes, route, 0.1 * random.uniform(), cap,
                 second ? half_way : kStartEvent, signals);
  }
  return out;
}

struct Collected {
  std::vector<SlowFlow> flows;
  std::vector<double> rate;
  std::vector<double> limit;
};

Collected collect(const FlowSnapshot& snapshot, const Case& input) {
  Collected out;
  out.limit.assign(snapshot.link_limit.begin(), snapshot.link_limit.end());
  for (const FlowRate& flow : snapshot.flows) {
    const auto route = input.routes.of(flow.op);
    out.flows.push_back({{route.begin(), route.end()}, input.routes.rate_cap[flow.op]});
    out.rate.push_back(flow.rate);
  }
  return out;
}

// Every solve of exact and coarse runs gives the rates of the slow solver; every repair in between
// stays feasible. With one component the snapshot is the whole network.
TEST(FlowProperties, RatesAreMaxMinFairAtEverySolveAndFeasibleAlways) {
  int num_checked = 0;
  int num_repairs = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    for (const auto& [precision, num_exact] :
         {std::pair(0.0, 0.0), {0.01, 0.0}, {0.2, 0.0}, {0.2, 4.0}}) {
      Case input =
          seed % 4 == 0 ? all_to_all({.num_gpus = 8, .cap = 0.4, .seed = seed}) : random_case(seed);
      const Program program = std::move(input.builder).finish();
      FlowOptions options;
      options.relative_precision = precision;
      options.exact_visits = num_exact * static_cast<double>(program.num_ops());
      options.observer = [&](const FlowSnapshot& snapshot) {
        const Collected now = collect(snapshot, input);
        if (!snapshot.solved) {
          ++num_repairs;
          ASSERT_EQ(why_infeasible(now.flows, now.rate, now.limit), "") << "seed " << seed;
          return;
        }
        ++num_checked;
        ASSERT_EQ(why_not_max_min(now.flows, now.rate, now.limit), "")
            << "seed " << seed << " t " << snapshot.time_s;
        const std::vector<double> slow = slow_max_min(now.flows, now.limit);
        for (std::size_t i = 0; i < slow.size(); ++i) {
          ASSERT_NEAR(now.rate[i], slow[i], 1e-9 * slow[i]) << "seed " << seed;
        }
      };
      const Execution run = simulate_flows(program, input.routes, options);
      EXPECT_GE(run.makespan_s, busiest_link_s(program, input) * (1.0 - 1e-9));
    }
  }
  EXPECT_GT(num_checked, 10000);
  EXPECT_GT(num_repairs, 1000);
}

// The slow solver against the textbook's criterion, so that the reference itself is checked.
TEST(FlowProperties, SlowSolverIsMaxMinFair) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Case input = random_case(seed);
    std::vector<SlowFlow> flows;
    for (std::size_t op = 0; op < 60; ++op) {
      const auto route = input.routes.of(op);
      flows.push_back({{route.begin(), route.end()}, input.routes.rate_cap[op]});
    }
    EXPECT_EQ(
        why_not_max_min(flows, slow_max_min(flows, input.routes.capacity), input.routes.capacity),
        "");
  }
}

// Work conservation: the integral of the observed rates of every transfer is its size. The rates
// hold from one observation to the next, the last until the flow has left.
TEST(FlowProperties, EveryByteIsDeliveredOnce) {
  // With 20 exact flows the last run passes from exact to coarse rates and back.
  for (const auto& [precision, num_exact] :
       {std::pair(0.0, 0.0), {0.01, 0.0}, {0.1, 0.0}, {0.1, 20.0}}) {
    Case input = all_to_all({.num_gpus = 12});
    const Program program = std::move(input.builder).finish();
    std::vector<double> delivered(program.num_ops(), 0.0);
    std::map<std::uint32_t, double> rate;
    double since = 0.0;
    const auto advance = [&](double until) {
      for (const auto& [op, r] : rate) delivered[op] += r * (until - since);
      since = until;
    };
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = num_exact * static_cast<double>(program.num_ops());
    options.observer = [&](const FlowSnapshot& snapshot) {
      advance(snapshot.time_s);
      rate.clear();
      for (const FlowRate& flow : snapshot.flows) rate[flow.op] = flow.rate;
    };
    const Execution run = simulate_flows(program, input.routes, options);
    advance(run.makespan_s);
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      EXPECT_NEAR(delivered[op], program.amount[op], 1e-6 * program.amount[op] + 1e-9) << op;
    }
  }
}

// Adds to every link what flows at these rates carry over it in `seconds`.
void carry(const std::vector<FlowRate>& rates, const Routes& routes, double seconds,
           std::vector<double>& carried) {
  for (const FlowRate& flow : rates) {
    for (const std::uint32_t link : routes.of(flow.op)) carried[link] += flow.rate * seconds;
  }
}

// The credit rule (flow_repair.hpp) on links with many flows, as the flows dwindle from 99 to none
// per link: no link ever carries more bytes by any time than its capacity allows, and no run ends
// before the busiest link could. Fails if a repair uses bandwidth that the credit also counts.
TEST(FlowProperties, NoLinkCarriesMoreThanItsCapacityAllowsByAnyTime) {
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    for (const double precision : {0.01, 0.05}) {
      Case input = all_to_all({.num_gpus = 100, .in_flight = kNoLimit, .delay = 0.0, .seed = seed});
      const Program program = std::move(input.builder).finish();
      std::vector<double> carried(input.routes.capacity.size(), 0.0);
      std::vector<FlowRate> rates;
      double since = 0.0;
      double worst = 0.0;
      FlowOptions options;
      options.relative_precision = precision;
      options.exact_visits = 0.0;
      options.observer = [&](const FlowSnapshot& snapshot) {
        carry(rates, input.routes, snapshot.time_s - since, carried);
        since = snapshot.time_s;
        rates.assign(snapshot.flows.begin(), snapshot.flows.end());
        for (std::size_t link = 0; link < carried.size(); ++link) {
          worst = std::max(worst, carried[link] - input.routes.capacity[link] * since);
        }
      };
      const Execution run = simulate_flows(program, input.routes, options);
      const double bound = busiest_link_s(program, input);
      EXPECT_LE(worst, 1e-9 * bound) << seed << " " << precision;
      EXPECT_GE(run.makespan_s, bound * (1.0 - 1e-9)) << seed << " " << precision;
    }
  }
}

// The same while links fail, recover and lose capacity: what a link has carried by any time is never
// more than the integral of its capacity until then, in spite of the credit for idle time.
TEST(FlowProperties, NoLinkCarriesMoreThanItsChangingCapacityAllows) {
  for (const std::uint64_t seed : {1U, 2U}) {
    double exact_s = 0.0;
    for (const double precision : {0.01, 0.05}) {
      Case input = all_to_all({.num_gpus = 70, .in_flight = kNoLimit, .delay = 0.0, .seed = seed});
      Random random(seed);
      for (int i = 0; i < 40; ++i) {
        const auto link = static_cast<std::uint32_t>(random.index(140));
        const double down_s = 60.0 * random.uniform();
        input.builder.add_change({down_s, link, random.index(2) == 0 ? 0.0 : 0.5});
        input.builder.add_change({down_s + 20.0 * random.uniform(), link, 1.0});
      }
      const Program program = std::move(input.builder).finish();
      std::vector<double> carried(140, 0.0);
      std::vector<double> allowed(140, 0.0);
      std::vector<double> capacity = input.routes.capacity;
      std::size_t next_change = 0;
      const auto allow_until = [&](double from, double until) {
        for (;;) {
          const bool changes =
              next_change < program.changes.size() && program.changes[next_change].time_s < until;
          const double end = changes ? std::max(from, program.changes[next_change].time_s) : until;
          for (std::size_t link = 0; link < 140; ++link) {
            allowed[link] += capacity[link] * (end - from);
          }
          if (!changes) return;
          capacity[program.changes[next_change].link] = program.changes[next_change].capacity;
          ++next_change;
          from = end;
        }
      };
      std::vector<FlowRate> rates;
      double since = 0.0;
      double worst = 0.0;
      FlowOptions options;
      options.relative_precision = precision;
      options.exact_visits = 0.0;
      options.observer = [&](const FlowSnapshot& snapshot) {
        carry(rates, input.routes, snapshot.time_s - since, carried);
        allow_until(since, snapshot.time_s);
        since = snapshot.time_s;
        rates.assign(snapshot.flows.begin(), snapshot.flows.end());
        for (std::size_t link = 0; link < 140; ++link) {
          worst = std::max(worst, carried[link] - allowed[link]);
        }
      };
      const Execution run = simulate_flows(program, input.routes, options);
      EXPECT_GT(next_change, 40U) << "the changes must come while flows run";
      EXPECT_LE(worst, 1e-9 * run.makespan_s) << seed << " " << precision;
      if (exact_s == 0.0) exact_s = exact(program, input).makespan_s;
      EXPECT_NEAR(run.makespan_s, exact_s, 0.02 * exact_s) << seed << " " << precision;
    }
  }
}

// Components that are equal number for number run once for all of them, with their holds and
// changes; one whose link fails at another time runs by itself. Each GPU sends 10 B over its own
// link of 1 B/s to the next, which is down from 2 s to 3 s (11 s), of the last pair from 2 s to 5 s
// (13 s); the kernel of 4 at 2 per second beside it meets a hold of all until 1 s (3 s).
TEST(FlowProperties, EqualComponentsWithHoldsAndChangesRunOnce) {
  Case input(8, {1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0}, 8);
  for (std::uint32_t pair = 0; pair < 4; ++pair) {
    const std::uint32_t gpu = 2 * pair;
    const std::uint32_t uses[]{input.builder.add_resource("sms", 2.0)};
    const std::uint32_t held = input.builder.add_event();
    const std::uint32_t done = input.builder.add_event();
    const std::uint32_t first = input.compute(gpu, 1.0, kStartEvent, {held, done});
    input.builder.add_hold({uses[0], 2.0, first, held});
    input.transfer(gpu, gpu + 1, 10.0, {pair}, 0.0, kUnlimited, kStartEvent, {done});
    input.add({.src = gpu, .dst = gpu, .amount = 4.0, .uses = uses}, {4 + pair}, kUnlimited);
    input.builder.add_change({2.0, pair, 0.0});
    input.builder.add_change({pair == 3 ? 5.0 : 3.0, pair, 1.0});
  }
  const Program program = std::move(input.builder).finish();
  FlowOptions options;
  FlowStats stats;
  const Execution run = simulate_flows(program, input.routes, options, &stats);
  EXPECT_EQ(stats.num_components, 4U);
  EXPECT_EQ(stats.num_runs, 2U);
  for (std::uint32_t pair = 0; pair < 4; ++pair) {
    EXPECT_NEAR(run.finish_s[3 * pair + 1], pair == 3 ? 13.0 : 11.0, 1e-12);
    EXPECT_NEAR(run.finish_s[3 * pair + 2], 3.0, 1e-12);
  }
}

// --- detours --------------------------------------------------------------------------------------

// Two ways of 10 and 5 B/s. A moves 100 B over the first: 40 by 4 s, when it fails; nothing until 6 s,
// when the detour begins. B moves 30 B over the second from the start on and ends at 6 s. From there on
// A has the 5 B/s for itself: its last 60 B take 12 s. C begins to wait at 7 s (a kernel) for the first
// way and takes the second as well: A and C share it until C's 5 B are over at 9 s, and A, with 50 B
// left then, ends at 19 s. At 30 s all go back: D, 20 B from 30.5 s on, has the first way again,
// which is whole since 20 s.
TEST(FlowDetours, WhatIsUnderWayGoesOnWithWhatIsLeft) {
  Case input(3, {10.0, 5.0}, kNoLimit);
  const std::uint32_t at_7 = input.builder.add_event();
  const std::uint32_t at_30 = input.builder.add_event();
  const std::uint32_t a = input.transfer(0, 1, 100.0, {0});
  const std::uint32_t b = input.transfer(1, 2, 30.0, {1});
  input.compute(2, 7.0, kStartEvent, {at_7});
  input.compute(2, 30.5, kStartEvent, {at_30});
  const std::uint32_t c = input.transfer(0, 1, 5.0, {0}, 0.0, kUnlimited, at_7);
  const std::uint32_t d = input.transfer(0, 1, 20.0, {0}, 0.0, kUnlimited, at_30);
  input.builder.add_change({4.0, 0, 0.0});
  input.builder.add_change({20.0, 0, 10.0});
  const Program program = std::move(input.builder).finish();
  for (const std::uint32_t op : {a, c, d}) input.routes.detours.push_back({6.0, op, {1}});
  for (const std::uint32_t op : {a, c, d}) input.routes.detours.push_back({30.0, op, {0}});
  // Exact, exact by smallness, and coarse with quanta of a thousandth of a second.
  for (const auto& [precision, visits] :
       {std::pair{0.0, 0.0}, {1e-2, kFlowExactVisits}, {1e-4, 0.0}}) {
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = visits;
    const Execution run = simulate_flows(program, input.routes, options);
    EXPECT_NEAR(run.finish_s[a], 19.0, 1e-2) << precision;
    EXPECT_NEAR(run.finish_s[b], 6.0, 1e-2) << precision;
    EXPECT_NEAR(run.finish_s[c], 9.0, 1e-2) << precision;
    EXPECT_NEAR(run.finish_s[d], 32.5, 1e-2) << precision;
    if (precision > 0.0 && visits == 0.0) continue;
    EXPECT_NEAR(run.finish_s[a], 19.0, 1e-12) << precision;
    EXPECT_NEAR(run.finish_s[c], 9.0, 1e-12) << precision;
  }
}

// All receivers of an all-to-all move to other links, some in the middle of everything, from and to
// links of the same capacity, exact and coarse: with every transfer of a receiver on the new link the
// bytes are as they were, so that the end is within the precision of that without detours. (The new
// link is free: it takes over what the old one had left to do.)
TEST(FlowDetours, ToALinkOfItsOwnChangeNothing) {
  for (const double visits : {0.0, kFlowExactVisits}) {
    Case plain = all_to_all({.num_gpus = 70, .in_flight = kNoLimit, .delay = 0.0, .seed = 5});
    Case moved = all_to_all({.num_gpus = 70, .in_flight = kNoLimit, .delay = 0.0, .seed = 5});
    const Program plain_program = std::move(plain.builder).finish();
    const Program program = std::move(moved.builder).finish();
    moved.routes.capacity.resize(210, 1.0);
    moved.routes.largest.resize(210, 1.0);
    for (const double time_s : {20.0, 40.0}) {
      for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
        const std::uint32_t dst = program.dst[op];
        if (dst % 2 == (time_s > 30.0 ? 0U : 1U)) continue;
        moved.routes.detours.push_back({time_s, op, {2 * program.src[op], 140 + dst}});
      }
    }
    FlowOptions options;
    options.exact_visits = visits;
    const Execution before = simulate_flows(plain_program, plain.routes, options);
    const Execution after = simulate_flows(program, moved.routes, options);
    EXPECT_GT(before.makespan_s, 80.0) << "the detours must come while flows run";
    EXPECT_NEAR(after.makespan_s, before.makespan_s, 0.02 * before.makespan_s) << visits;
    for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
      EXPECT_GE(after.finish_s[op], plain_program.amount[op] * (1.0 - 1e-9));
    }
  }
}

TEST(FlowDetours, OverNothingAreRefused) {
  Case input(2, {10.0}, kNoLimit);
  const std::uint32_t op = input.transfer(0, 1, 100.0, {0});
  const Program program = std::move(input.builder).finish();
  input.routes.detours = {{1.0, op, {}}};
  try {
    (void)simulate_flows(program, input.routes, {});
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("a detour over 0 links at 1 s, expected at least one link"));
  }
}

// Between events a saturated network never idles: with no delay and no limit, the receiver of an
// incast of unequal sizes is busy from the first to the last byte, in exact and coarse runs.
TEST(FlowProperties, IncastKeepsTheReceiverBusy) {
  for (const double precision : {0.0, 0.01}) {
    Case input(41, std::vector<double>(41, 1.0), kNoLimit);
    Random random(5);
    double total = 0.0;
    for (std::uint32_t src = 0; src < 40; ++src) {
      const double bytes = std::exp(random.normal());
      total += bytes;
      input.transfer(src, 40, bytes, {src, 40});
    }
    const Program program = std::move(input.builder).finish();
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = 0.0;
    EXPECT_NEAR(simulate_flows(program, input.routes, options).makespan_s, total, 0.002 * total);
  }
}

// Scale invariance. Bytes and bandwidths times f: nothing changes. Bytes and delays times f: all
// times are f-fold. Powers of two, so that the arithmetic is the same digit for digit.
TEST(FlowProperties, ScalingSizesAndBandwidthsChangesNothing) {
  for (const double precision : {0.0, 0.01}) {
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = 0.0;
    Case base = all_to_all({});
    const Program base_program = std::move(base.builder).finish();
    const Execution expected = simulate_flows(base_program, base.routes, options);

    Case wider = all_to_all({.size = 0x1p30, .bandwidth = 0x1p30});
    const Program wider_program = std::move(wider.builder).finish();
    EXPECT_EQ(simulate_flows(wider_program, wider.routes, options).finish_s, expected.finish_s);

    Case longer = all_to_all({.size = 0x1p20, .delay = 0.01 * 0x1p20});
    const Program longer_program = std::move(longer.builder).finish();
    const Execution scaled = simulate_flows(longer_program, longer.routes, options);
    for (std::size_t op = 0; op < expected.finish_s.size(); ++op) {
      EXPECT_EQ(scaled.finish_s[op], expected.finish_s[op] * 0x1p20);
    }
  }
}

// Eight groups that share nothing: the same digits for any number of threads, and the same as each
// group alone.
TEST(FlowProperties, ThreadsChangeNothing) {
  Case together(64, std::vector<double>(128, 1.0), 3);
  Random random(9);
  for (std::uint32_t group = 0; group < 8; ++group) {
    for (std::uint32_t i = 0; i < 56; ++i) {
      const std::uint32_t src = 8 * group + i / 7;
      const std::uint32_t dst = 8 * group + (i / 7 + 1 + i % 7) % 8;
      together.transfer(src, dst, std::exp(random.normal()), {2 * src, 2 * dst + 1}, 0.02);
    }
  }
  const Program program = std::move(together.builder).finish();
  FlowOptions options;
  FlowStats stats;
  const Execution one = simulate_flows(program, together.routes, options, &stats);
  EXPECT_EQ(stats.num_components, 8U);
  for (const unsigned threads : {2U, 3U, 16U}) {
    options.num_threads = threads;
    const Execution many = simulate_flows(program, together.routes, options);
    EXPECT_EQ(one.finish_s, many.finish_s) << threads;
    EXPECT_EQ(one.start_s, many.start_s) << threads;
  }
}

// The knob: a coarse run stays within a few times its precision of the exact one.
TEST(FlowProperties, CoarseRunsStayCloseToExactOnes) {
  for (const std::uint32_t in_flight : {2U, 8U, kNoLimit}) {
    for (const double sigma : {0.0, 1.0, 2.0}) {
      Case input = all_to_all({.num_gpus = 32, .in_flight = in_flight, .sigma = sigma, .seed = 3});
      const Program program = std::move(input.builder).finish();
      const double reference = exact(program, input).makespan_s;
      FlowOptions options;
      options.exact_visits = 0.0;
      const double coarse = simulate_flows(program, input.routes, options).makespan_s;
      EXPECT_NEAR(coarse, reference, 0.01 * reference) << in_flight << " " << sigma;
      EXPECT_GE(coarse, busiest_link_s(program, input));
    }
  }
}

// Shares come out in ascending order although links come back with higher ones, others grow or go
// meanwhile without telling the queue, and there are ties and more doublings than the queue has
// buckets for. Against a search of all present shares.
TEST(FlowShareQueue, YieldsAscendingShares) {
  constexpr double kGone = std::numeric_limits<double>::infinity();
  Random random(5);
  for (const double spread : {0.0, 1.0, 200.0}) {
    flow::ShareQueue queue;
    std::vector<double> share(300);
    const auto above = [&](double lowest) {
      return lowest * std::exp2(std::floor(8.0 * spread * random.uniform()) / 8.0);
    };
    queue.start(1e-30, share.size());
    for (std::uint32_t link = 0; link < share.size(); ++link) {
      share[link] = above(1e-30);
      queue.add(share[link], link);
    }
    while (queue.settle_front([&](std::uint32_t link) { return share[link]; })) {
      const flow::ShareQueue::Share front = queue.front();
      queue.pop();
      if (share[front.link] == kGone) continue;
      if (share[front.link] > front.level) {
        queue.add(share[front.link], front.link);
        continue;
      }
      ASSERT_EQ(front.level, *std::min_element(share.begin(), share.end()));
      share[front.link] = kGone;
      if (random.index(3) == 0) {
        share[front.link] = above(front.level);
        queue.add(share[front.link], front.link);
      }
      double& other = share[random.index(300)];
      if (other < kGone) other = random.index(4) == 0 ? kGone : above(other);
    }
    EXPECT_EQ(*std::min_element(share.begin(), share.end()), kGone);
  }
}

// --- degenerate inputs ---------------------------------------------------------------------------

TEST(FlowDegenerate, EmptyProgramTakesNoTime) {
  Case input(2, {1.0}, 8);
  const Program program = std::move(input.builder).finish();
  EXPECT_EQ(exact(program, input).makespan_s, 0.0);
}

// program.hpp: a transfer of zero bytes takes its silent time alone.
TEST(FlowDegenerate, ZeroBytesTakeTheDelayOnly) {
  Case input(2, {1.0}, 8);
  input.transfer(0, 1, 0.0, {0}, 0.75);
  input.transfer(0, 1, 0.0, {0}, 0.0);
  const Program program = std::move(input.builder).finish();
  const Execution run = exact(program, input);
  EXPECT_EQ(run.finish_s[0], 0.75);
  EXPECT_EQ(run.finish_s[1], 0.0);
}

// Two pairs that share nothing, and two ranks that neither send nor receive: each transfer takes
// the time it would take alone, 3 B at 1 B/s and 8 B at 2 B/s, at any precision.
TEST(FlowDegenerate, DisconnectedRanksDoNotMeet) {
  for (const double precision : {0.0, 0.01, 0.5}) {
    Case input(6, {1.0, 2.0, 4.0}, 8);
    input.transfer(0, 1, 3.0, {0});
    input.transfer(2, 3, 8.0, {1});
    const Program program = std::move(input.builder).finish();
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = 0.0;
    FlowStats stats;
    const Execution run = simulate_flows(program, input.routes, options, &stats);
    EXPECT_DOUBLE_EQ(run.finish_s[0], 3.0);
    EXPECT_DOUBLE_EQ(run.finish_s[1], 4.0);
    EXPECT_EQ(stats.num_components, 2U);
  }
}

// A transfer that crosses a link of 1 B/s twice loads it twice: 4 B at 1/2 B/s. With two more of 2
// B over the same link, which then has four places: all at 1/4 B/s until the two end at 8 s; then 2
// B are left of the first, at 1/2 B/s. With and without batches.
TEST(FlowDegenerate, ALinkCrossedTwiceIsLoadedTwice) {
  for (const double precision : {0.0, 0.01}) {
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = 0.0;
    Case alone(2, {1.0}, 8);
    alone.transfer(0, 1, 4.0, {0, 0});
    const Program one = std::move(alone.builder).finish();
    EXPECT_NEAR(simulate_flows(one, alone.routes, options).finish_s[0], 8.0, 1e-9);
    Case input(2, {1.0}, 8);
    input.transfer(0, 1, 4.0, {0, 0});
    input.transfer(0, 1, 2.0, {0});
    input.transfer(0, 1, 2.0, {0});
    const Program three = std::move(input.builder).finish();
    const Execution run = simulate_flows(three, input.routes, options);
    EXPECT_NEAR(run.finish_s[1], 8.0, 1e-9);
    EXPECT_NEAR(run.finish_s[2], 8.0, 1e-9);
    EXPECT_NEAR(run.finish_s[0], 12.0, precision == 0.0 ? 1e-9 : 0.1);
  }
}

// One byte, alone, over links of any speed: 1 B / 1 B/s, 1 B / 1e12 B/s.
TEST(FlowDegenerate, ASingleByteTakesItsTime) {
  for (const double capacity : {1e-12, 1.0, 1e12}) {
    for (const double precision : {0.0, 0.01}) {
      Case input(2, {capacity}, 8);
      input.transfer(0, 1, 1.0, {0});
      const Program program = std::move(input.builder).finish();
      FlowOptions options;
      options.relative_precision = precision;
      options.exact_visits = 0.0;
      EXPECT_DOUBLE_EQ(simulate_flows(program, input.routes, options).makespan_s, 1.0 / capacity);
    }
  }
}

// Twenty orders of magnitude in one program: 1e-9 B to 1e12 B over 1 B/s links.
TEST(FlowDegenerate, VeryUnequalSizesEnd) {
  for (const double precision : {0.0, 0.01}) {
    Case input(8, std::vector<double>(16, 1.0), 2);
    double size = 1e-9;
    for (std::uint32_t src = 0; src < 8; ++src) {
      for (std::uint32_t step = 1; step < 8; ++step) {
        const std::uint32_t dst = (src + step) % 8;
        input.transfer(src, dst, size, {2 * src, 2 * dst + 1});
        size = size >= 1e12 ? 1e-9 : size * 10.0;
      }
    }
    const Program program = std::move(input.builder).finish();
    FlowOptions options;
    options.relative_precision = precision;
    options.exact_visits = 0.0;
    const double makespan = simulate_flows(program, input.routes, options).makespan_s;
    EXPECT_GE(makespan, busiest_link_s(program, input) * (1.0 - 1e-9));
    EXPECT_LE(makespan, 8.0 * busiest_link_s(program, input));
  }
}

TEST(FlowDegenerate, LinkWithoutCapacityIsRefused) {
  for (const double capacity : {0.0, -1.0, std::nan(""), kUnlimited}) {
    Case input(2, {1.0, capacity}, 8);
    input.transfer(0, 1, 1.0, {0, 1});
    const Program program = std::move(input.builder).finish();
    try {
      exact(program, input);
      FAIL() << capacity;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("transfer 0 from GPU 0 to GPU 1"));
      EXPECT_THAT(error.what(), HasSubstr("link 1"));
    }
  }
}

// Times of which double precision cannot tell the steps of a run apart: a latency or a late start of
// 1e30 s before transfers of 1 s. An engine that went on would not move, or lose all of them.
TEST(FlowDegenerate, TimesBeyondDoublePrecisionAreRefused) {
  for (const bool late : {false, true}) {
    for (const double precision : {0.0, 0.01}) {
      Case input(4, {1.0, 1.0}, 8);
      const std::uint32_t start = input.builder.add_event();
      input.compute(0, late ? 1e30 : 0.0, kStartEvent, {start});
      for (std::uint32_t dst = 1; dst < 4; ++dst) {
        input.transfer(0, dst, 1.0 + dst, {0}, late ? 0.0 : 1e30, kUnlimited, start, {});
      }
      const Program program = std::move(input.builder).finish();
      FlowOptions options;
      options.relative_precision = precision;
      options.exact_visits = 0.0;
      try {
        simulate_flows(program, input.routes, options);
        FAIL() << late << " " << precision;
      } catch (const InputError& error) {
        EXPECT_THAT(error.what(),
                    HasSubstr("1e+30 s, expected times that double precision tells apart"));
      }
    }
  }
}

// 1e300 B at 1e-10 B/s take longer than any double.
TEST(FlowDegenerate, TransfersThatNeverEndAreRefused) {
  for (const double precision : {0.0, 0.01}) {
    Case input(2, {1e-10}, 8);
    input.transfer(0, 1, 1e300, {0});
    const Program program = std::move(input.builder).finish();
    FlowOptions options;
    options.relative_precision = precision;
    EXPECT_THROW(simulate_flows(program, input.routes, options), InputError);
  }
}

// Threads change neither the result nor the sentence of a program that cannot end.
TEST(FlowDegenerate, TheFirstComponentThatIsStuckIsNamedWhateverTheThreads) {
  for (const unsigned threads : {1U, 4U}) {
    Case input(8, {1.0, 1.0, 1.0, 1.0}, 8);
    for (std::uint32_t pair = 0; pair < 4; ++pair) {
      input.transfer(2 * pair, 2 * pair + 1, 2.0 + pair, {pair});
      if (pair > 0) input.builder.add_change({1.0, pair, 0.0});
    }
    const Program program = std::move(input.builder).finish();
    FlowOptions options;
    options.num_threads = threads;
    try {
      simulate_flows(program, input.routes, options);
      FAIL();
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("transfer 1 from GPU 2 to GPU 3 that stands still"));
      EXPECT_THAT(error.what(), HasSubstr("nothing is left of link 1"));
    }
  }
}

TEST(FlowDegenerate, InfiniteSizeIsRefused) {
  Case input(2, {1.0}, 8);
  input.transfer(0, 1, kUnlimited, {0});
  const Program program = std::move(input.builder).finish();
  EXPECT_THROW(exact(program, input), InputError);
}

TEST(FlowDegenerate, CircularDependenciesAreRefused) {
  Case input(2, {1.0}, 8);
  const std::uint32_t a = input.builder.add_event();
  const std::uint32_t b = input.builder.add_event();
  input.transfer(0, 1, 1.0, {0}, 0.0, kUnlimited, a, {b});
  input.transfer(0, 1, 1.0, {0}, 0.0, kUnlimited, b, {a});
  const Program program = std::move(input.builder).finish();
  try {
    exact(program, input);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("2 operations"));
  }
}

TEST(FlowDegenerate, NegativePrecisionIsRefused) {
  Case input(2, {1.0}, 8);
  const Program program = std::move(input.builder).finish();
  FlowOptions options;
  options.relative_precision = -0.5;
  EXPECT_THROW(simulate_flows(program, input.routes, options), InputError);
}

}  // namespace
}  // namespace coterie
