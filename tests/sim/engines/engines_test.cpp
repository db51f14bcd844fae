// The simgrid engine and the lower bound against known answers and properties. Every simulation
// runs in a child process of its own, as SimGrid allows one per process.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/random.hpp"
#include "sim/engines/engine.hpp"
#include "tests/sim/engines/networks.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;
using testing::star;

constexpr EngineOptions kSolvedExactly{.relative_precision = 0.0};

double simgrid(const Program& program, const Network& network) {
  return run_simgrid(resolve(program, network), kSolvedExactly).makespan_s;
}
double lower_bound(const Program& program, const Network& network) {
  return resolve(program, network).bound.makespan_s;
}

struct Send {
  std::uint32_t src, dst;
  double bytes;
};

Program sends(const std::vector<Send>& list) {
  ProgramBuilder builder;
  for (const Send& send : list) {
    builder.add_transfer(send.src, send.dst, send.bytes, kStartEvent, {});
  }
  return std::move(builder).finish();
}

// As SimGrid's manual counts it: 1 MB over two links of 1 GB/s and 1 us.
TEST(SimGrid, OneTransferTakesLatencyPlusSizeOverBandwidth) {
  const Network network(star(2));
  EXPECT_NEAR(simgrid(sends({{0, 1, 1e6}}), network), 1.002e-3, 1e-12);
}

// Two senders share the receiver's link: 2 MB at 1 GB/s after 2 us.
TEST(SimGrid, TwoSendersShareTheReceiversLink) {
  const Network network(star(3));
  EXPECT_NEAR(simgrid(sends({{0, 2, 1e6}, {1, 2, 1e6}}), network), 2.002e-3, 1e-12);
}

// n * size / bandwidth + latency.
TEST(SimGrid, Incast) {
  const std::uint32_t n = 12;
  const Network network(star(n + 1));
  std::vector<Send> list;
  for (std::uint32_t i = 0; i < n; ++i) list.push_back({i, n, 3e5});
  EXPECT_NEAR(simgrid(sends(list), network), n * 3e5 / 1e9 + 2e-6, 1e-11);
}

// (n - 1) * size / bandwidth + latency.
TEST(SimGrid, AllToAllOfEqualSizesOnAStar) {
  const std::uint32_t n = 8;
  const Network network(star(n));
  std::vector<Send> list;
  for (std::uint32_t i = 0; i < n; ++i) {
    for (std::uint32_t k = 1; k < n; ++k) list.push_back({i, (i + k) % n, 1e6});
  }
  EXPECT_NEAR(simgrid(sends(list), network), (n - 1) * 1e6 / 1e9 + 2e-6, 1e-10);
}

// An oversubscribed spine divides by its ratio. Two leaves of four nodes and one spine; each of the
// four nodes of leaf 0 sends to one of leaf 1, and the uplink carries 4 * 1 GB/s / 4.
TEST(SimGrid, OversubscribedSpineDividesByItsRatio) {
  Cluster cluster = star(8, 1e9, 0.0);
  LeafSpineFabric fabric;
  fabric.rail_optimised = false;
  fabric.ports_per_leaf = 4;
  fabric.num_spines = 1;
  fabric.oversubscription = 4.0;
  cluster.fabric = Fabric{fabric, Seconds{0.0}};
  const Network network(cluster);
  EXPECT_NEAR(simgrid(sends({{0, 4, 1e6}, {1, 5, 1e6}, {2, 6, 1e6}, {3, 7, 1e6}}), network), 4e-3,
              1e-11);
}

// Unequal latencies must not mean unequal shares, as CM02 would have it: with 1 s on the way of the
// first transfer, its bytes flow from 1 s on. The second (4 GB, latency 0) has moved 1 GB by then;
// at 0.5 GB/s each both have 3 GB and 1 GB left: the first ends at 3 s, the second moves 1 GB by
// then, and its last 2 GB take 2 s more.
TEST(SimGrid, SharesDoNotDependOnLatency) {
  Cluster cluster = star(3, 1e9, 0.0);
  CustomFabric fabric;
  fabric.num_switches = 2;
  fabric.attach = {0, 1, 1};  // GPU 0 behind a slow cable
  fabric.cables = {{0, 1, Bandwidth{1e12}, Seconds{1.0}}};
  cluster.fabric = Fabric{fabric, Seconds{0.0}};
  const Network network(cluster);
  ProgramBuilder builder;
  builder.add_transfer(0, 2, 1e9, kStartEvent, {});
  builder.add_transfer(1, 2, 4e9, kStartEvent, {});
  const Program program = std::move(builder).finish();
  const Execution execution = run_simgrid(resolve(program, network), kSolvedExactly);
  EXPECT_NEAR(execution.finish_s[0], 3.0, 1e-6);
  EXPECT_NEAR(execution.finish_s[1], 5.0, 1e-6);
}

// Two sends of one queue with one place, silent for 10 us.
Program one_at_a_time() {
  ProgramBuilder builder;
  const std::uint32_t queue = builder.add_queue(1);
  Operation send{.src = 0, .dst = 1, .duration = 10e-6, .amount = 1e6, .queue = queue};
  builder.add(send);
  send.dst = 2;
  send.amount = 2e6;
  builder.add(send);
  return std::move(builder).finish();
}

// The second waits for the first to arrive; 10 us of silence, 2 us of latency.
TEST(SimGrid, SendsInFlightQueue) {
  const Network network(star(3));
  const Program program = one_at_a_time();
  const Execution execution = run_simgrid(resolve(program, network), kSolvedExactly);
  EXPECT_NEAR(execution.finish_s[0], 1.012e-3, 1e-12);
  EXPECT_NEAR(execution.start_s[1], 1.012e-3, 1e-12);
  EXPECT_NEAR(execution.finish_s[1], 1.012e-3 + 2.012e-3, 1e-12);
}

// A rate cap holds below the links' capacity, and a transfer of no bytes takes its silent time and
// the latency alone.
TEST(SimGrid, RateCapsAndSilentTimes) {
  const Network network(star(2));
  const auto capped = [](double bytes, int count) {
    ProgramBuilder builder;
    for (int i = 0; i < count; ++i) {
      builder.add({.src = 0,
                   .dst = 1,
                   .duration = 20e-6,
                   .amount = bytes,
                   .rate_cap = builder.add_rate_cap(0.25e9)});
    }
    return std::move(builder).finish();
  };
  EXPECT_NEAR(simgrid(capped(0.0, 1), network), 22e-6, 1e-15);
  EXPECT_NEAR(simgrid(capped(1e6, 1), network), 22e-6 + 4e-3, 1e-12);
  // The cap is each transfer's own: two of them move 0.5 GB/s over the link of 1 GB/s.
  EXPECT_NEAR(simgrid(capped(1e6, 2), network), 22e-6 + 4e-3, 1e-12);
}

// compute 1 ms -> transfer 1.002 ms -> compute 2 ms beside a computation of 0.5 ms; the event waits
// for both.
TEST(SimGrid, DependenciesAreKept) {
  const Network network(star(2));
  ProgramBuilder builder;
  const std::uint32_t packed = builder.add_event();
  const std::uint32_t arrived = builder.add_event();
  builder.add_compute(0, 1e-3, kStartEvent, {{packed}});
  builder.add_transfer(0, 1, 1e6, packed, {{arrived}});
  builder.add_compute(1, 0.5e-3, kStartEvent, {{arrived}});
  builder.add_compute(1, 2e-3, arrived, {});
  const Program program = std::move(builder).finish();
  const Execution execution = run_simgrid(resolve(program, network), kSolvedExactly);
  EXPECT_NEAR(execution.start_s[1], 1e-3, 1e-15);
  EXPECT_NEAR(execution.start_s[3], 2.002e-3, 1e-12);
  EXPECT_NEAR(execution.makespan_s, 4.002e-3, 1e-12);
}

TEST(Bound, IsReachedWhereOneResourceDecides) {
  const Network network(star(13));
  EXPECT_NEAR(lower_bound(sends({{0, 1, 1e6}}), network), 1.002e-3, 1e-15);
  std::vector<Send> list;
  for (std::uint32_t i = 0; i < 12; ++i) list.push_back({i, 12, 3e5});
  EXPECT_NEAR(lower_bound(sends(list), network), 12 * 3e5 / 1e9 + 2e-6, 1e-15);
}

// Two waves over one link with a computation of 5 ms between: 1 ms, 5 ms and 2 ms add up, though
// the link itself is busy for 3 ms only.
TEST(Bound, CountsWhatLiesBetweenTwoUsesOfALink) {
  const Network network(star(3, 1e9, 0.0));
  ProgramBuilder builder;
  const std::uint32_t arrived = builder.add_event();
  const std::uint32_t computed = builder.add_event();
  builder.add_transfer(0, 2, 0.5e6, kStartEvent, {{arrived}});
  builder.add_transfer(1, 2, 0.5e6, kStartEvent, {{arrived}});
  builder.add_compute(2, 5e-3, arrived, {{computed}});
  builder.add_transfer(0, 2, 1e6, computed, {});
  builder.add_transfer(1, 2, 1e6, computed, {});
  EXPECT_NEAR(lower_bound(std::move(builder).finish(), network), 8e-3, 1e-15);
}

// One place in the queue: the delays of both sends count.
TEST(Bound, CountsTheQueue) {
  const Network network(star(3));
  EXPECT_NEAR(lower_bound(one_at_a_time(), network), 3.024e-3, 1e-15);
}

TEST(Bound, RefusesACircle) {
  const Network network(star(2));
  ProgramBuilder builder;
  const std::uint32_t event = builder.add_event();
  builder.add_compute(0, 1.0, event, {{event}});
  const Program program = std::move(builder).finish();
  EXPECT_THROW(lower_bound(program, network), std::logic_error);
}

// Random programs: `num_waves` of transfers between random GPUs, a computation on every GPU between
// waves. GPU i of the program runs on GPU map[i].
Program scaled_random_program(std::uint64_t seed, std::uint32_t num_gpus, double scale = 1.0,
                              const std::vector<std::uint32_t>& map = {}) {
  Random random(seed);
  const auto place = [&](std::uint64_t gpu) {
    return map.empty() ? static_cast<std::uint32_t>(gpu) : map[gpu];
  };
  ProgramBuilder builder;
  std::vector<std::uint32_t> queue(num_gpus);  // two sends in flight
  for (std::uint32_t& id : queue) id = builder.add_queue(2);
  std::vector<std::uint32_t> ready(num_gpus, kStartEvent);
  for (int wave = 0; wave < 3; ++wave) {
    std::vector<std::uint32_t> arrived(num_gpus);
    for (std::uint32_t& event : arrived) event = builder.add_event();
    for (std::uint32_t gpu = 0; gpu < num_gpus; ++gpu) {
      builder.add_compute(place(gpu), scale * 1e-4 * random.uniform(), ready[gpu],
                          {{arrived[gpu]}});
      for (std::uint32_t i = 0; i < 5; ++i) {
        const std::uint64_t dst = (gpu + 1 + random.index(num_gpus - 1)) % num_gpus;
        builder.add({.src = place(gpu),
                     .dst = place(dst),
                     .amount = std::round(1e6 * random.uniform()) * scale,
                     .queue = queue[gpu],
                     .waits_for = ready[gpu],
                     .signals = std::span(&arrived[dst], 1)});
      }
    }
    ready = arrived;
  }
  return std::move(builder).finish();
}

Cluster small_cluster(double latency = 1e-6) {
  Cluster cluster = testing::two_tiers(2, 4, 1e9, 4e9, latency);
  cluster.nic->pxn = false;
  return cluster;
}

// Property: no engine is faster than the bound. The default precision may let each of a few
// completions in a row come early by its width (1e-4 of the bound).
TEST(Property, NoEngineIsBelowTheBound) {
  const Network network(small_cluster());
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const Program program = scaled_random_program(seed, 8);
    const double bound = lower_bound(program, network);
    EXPECT_GE(simgrid(program, network), bound * (1 - 1e-9)) << "seed " << seed;
    EXPECT_GE(run_simgrid(resolve(program, network), {}).makespan_s, bound * (1 - 5e-3))
        << "seed " << seed;
  }
}

// Property: the default precision stays within 1 percent of the exact time.
TEST(Property, DefaultPrecisionIsWithinOnePercent) {
  const Network network(small_cluster());
  for (std::uint64_t seed = 20; seed < 28; ++seed) {
    const Program program = scaled_random_program(seed, 8);
    const double exact = simgrid(program, network);
    EXPECT_NEAR(run_simgrid(resolve(program, network), {}).makespan_s, exact, exact * 1e-2);
  }
}

// The default precision is one in bytes for every flow, which is finer where many share a link: of
// 1,024 flows into one GPU each may end with 2e-3 / 64 / (1024 / 64)^1.5 of the link's bytes left, all
// together with 5e-4 of them. The exact time is that of all bytes over that link; two hops of 1 us.
TEST(SimGrid, DefaultPrecisionHoldsWhereManyFlowsShareALink) {
  constexpr std::uint32_t kFlows = 1024;
  const Network network(star(5));
  Random random(7);
  std::vector<Send> list;
  double num_bytes = 0.0;
  for (std::uint32_t i = 0; i < kFlows; ++i) {
    const double bytes = std::floor(1e6 * -std::log1p(-random.uniform()));
    list.push_back({1 + i % 4, 0, bytes});
    num_bytes += bytes;
  }
  const double exact = num_bytes / 1e9 + 2e-6;
  const double predicted = run_simgrid(resolve(sends(list), network), {}).makespan_s;
  EXPECT_NEAR(predicted, exact, 1e-3 * exact);
}

// Property: every operation starts no earlier than the bound allows.
TEST(Property, OperationsStartNoEarlierThanTheirBound) {
  const Network network(small_cluster());
  const Program program = scaled_random_program(3, 8);
  const Execution bound = run_bound(resolve(program, network));
  const Execution execution = run_simgrid(resolve(program, network), kSolvedExactly);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    EXPECT_GE(execution.start_s[op], bound.start_s[op] * (1 - 1e-9)) << op;
    EXPECT_GE(execution.finish_s[op], bound.finish_s[op] * (1 - 1e-9)) << op;
  }
}

// Property: with zero latency (and alpha), doubling all sizes and computations doubles the time.
TEST(Property, ZeroLatencyScalesWithSize) {
  const Network network(small_cluster(0.0));
  for (std::uint64_t seed = 40; seed < 44; ++seed) {
    const double once = simgrid(scaled_random_program(seed, 8), network);
    const double twice = simgrid(scaled_random_program(seed, 8, 2.0), network);
    EXPECT_NEAR(twice, 2.0 * once, 1e-6 * once) << "seed " << seed;
    EXPECT_NEAR(lower_bound(scaled_random_program(seed, 8, 2.0), network),
                2.0 * lower_bound(scaled_random_program(seed, 8), network), 1e-9 * once);
  }
}

// Property: relabelling by a symmetry of the cluster (swap the nodes, reverse the GPUs inside)
// changes nothing. Deterministic routes, since ECMP hashes ids.
TEST(Property, SymmetricRelabellingChangesNothing) {
  const Network network(small_cluster(), RouteChoice::kDeterministic);
  const std::vector<std::uint32_t> mirror{7, 6, 5, 4, 3, 2, 1, 0};
  for (std::uint64_t seed = 60; seed < 64; ++seed) {
    const double straight = simgrid(scaled_random_program(seed, 8), network);
    const double mirrored = simgrid(scaled_random_program(seed, 8, 1.0, mirror), network);
    EXPECT_NEAR(mirrored, straight, 1e-6 * straight) << "seed " << seed;
  }
}

TEST(Determinism, TwoRunsGiveTheSameBits) {
  const Network network(small_cluster());
  const Program program = scaled_random_program(99, 8);
  const Execution first = run_simgrid(resolve(program, network), {});
  const Execution second = run_simgrid(resolve(program, network), {});
  EXPECT_EQ(first.start_s, second.start_s);
  EXPECT_EQ(first.finish_s, second.finish_s);
}

TEST(SimGrid, ProgramsWithoutTransfers) {
  const Network network(star(2));
  ProgramBuilder builder;
  builder.add_compute(1, 0.5, kStartEvent, {});
  EXPECT_DOUBLE_EQ(simgrid(std::move(builder).finish(), network), 0.5);
  EXPECT_EQ(simgrid(ProgramBuilder().finish(), network), 0.0);
}

TEST(Registry, NamesEnginesAndRefusesOthers) {
  EXPECT_THAT(engine_names(), ::testing::IsSupersetOf({"simgrid", "bound"}));
  const Network network(star(2));
  const Program program = sends({{0, 1, 1e6}});
  EXPECT_NEAR(run_engine("bound", resolve(program, network), {}).makespan_s, 1.002e-3, 1e-12);
  try {
    run_engine("ns3", resolve(program, network), {});
    FAIL() << "expected an InputError";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("found \"ns3\", expected one of simgrid"));
  }
}

}  // namespace
}  // namespace coterie
