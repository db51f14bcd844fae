// The transport `direct` on two GPUs that two ranks share each: GPU 0 has ranks 0 and 1, GPU 1 ranks 2
// and 3. The memory is no limit, links carry 100 GB/s, all latencies are zero.

#include "sim/transports/direct.hpp"

#include <gtest/gtest.h>

#include "tests/sim/engines/networks.hpp"
#include "tests/sim/transports/phase.hpp"

namespace coterie {
namespace {

using testing::run_phase;

constexpr double kRowBytes = 1000.0;  // bytes
constexpr double kTolerance = 1e-10;

// 10 us and 1 us per peer; multiprocessors that move 1 TB/s each; a port of 10 GB/s, copies of 20 GB/s.
DirectKernel kernel() {
  DirectKernel out;
  out.fixed = Seconds{10e-6};
  out.peer = Seconds{1e-6};
  out.sm_bandwidth = Bandwidth{1e12};
  out.port_bandwidth = Bandwidth{10e9};
  out.copy_bandwidth = Bandwidth{20e9};
  return out;
}
Cluster machine(const DirectKernel& costs, std::uint32_t ranks_per_gpu = 2) {
  Cluster cluster = testing::two_tiers(2, 2, 100e9, 1e12);
  cluster.ranks_per_gpu = ranks_per_gpu;
  cluster.gpu.num_sms = 100;
  cluster.transports = {DirectParameters{8, {}, Seconds{5e-6}, costs, costs, {}, {}}};
  return cluster;
}
Message put_rows(std::uint32_t src, std::uint32_t dst, std::uint32_t count) {
  return {src, dst, kRowBytes * count, count};
}
double put_s(const Cluster& cluster, const std::vector<Message>& messages,
             const std::vector<std::uint32_t>& tokens = {}) {
  return run_phase(cluster, {}, messages, Direction::kDispatch, false, tokens).execution.makespan_s;
}

// 500 tokens of 1000 B are read once and 100 and 300 rows written: 900 kB at 1 GB/s on each of 8
// multiprocessors, 112.5 us, behind 10 us and 3 peers. 2 us per token and 1 us per row more are 1400 us
// over 8. Far rows that a multiprocessor moves at half the rate: 300 kB more.
TEST(Direct, MultiprocessorsMoveItemsAndRows) {
  DirectKernel costs = kernel();
  costs.sm_bandwidth = Bandwidth{1e9};
  const std::vector<Message> messages{put_rows(0, 1, 100), put_rows(0, 2, 300)};
  const std::vector<std::uint32_t> tokens{500, 0, 0, 0};
  EXPECT_NEAR(put_s(machine(costs), messages, tokens), 13e-6 + 112.5e-6, kTolerance);
  costs.token = Seconds{2e-6};
  costs.row = Seconds{1e-6};
  EXPECT_NEAR(put_s(machine(costs), messages, tokens), 13e-6 + 287.5e-6, kTolerance);
  costs.sm_port_bandwidth = Bandwidth{0.5e9};
  EXPECT_NEAR(put_s(machine(costs), messages, tokens), 13e-6 + 325e-6, kTolerance);
}

// Both ranks of GPU 0 send 1 MB to GPU 1: 2 MB over one port of 10 GB/s. On four GPUs each has a port.
TEST(Direct, RanksOfAGpuShareItsPort) {
  const std::vector<Message> messages{put_rows(0, 2, 1000), put_rows(1, 3, 1000)};
  EXPECT_NEAR(put_s(machine(kernel()), messages), 13e-6 + 200e-6, kTolerance);
  EXPECT_NEAR(put_s(machine(kernel(), 1), messages), 13e-6 + 100e-6, kTolerance);
  // Into one rank from both: one port in, whether the senders share theirs or not.
  const std::vector<Message> incast{put_rows(0, 2, 1000), put_rows(1, 2, 1000)};
  EXPECT_NEAR(put_s(machine(kernel()), incast), 13e-6 + 200e-6, kTolerance);
  EXPECT_NEAR(put_s(machine(kernel(), 1), incast), 13e-6 + 200e-6, kTolerance);
}

// 1 MB each way within GPU 0 at 20 GB/s for both, beside 1 MB over the port.
TEST(Direct, RowsWithinAGpuShareItsCopies) {
  const std::vector<Message> near{put_rows(0, 1, 1000), put_rows(1, 0, 1000)};
  EXPECT_NEAR(put_s(machine(kernel()), near), 13e-6 + 100e-6, kTolerance);
  const std::vector<Message> both{put_rows(0, 1, 1000), put_rows(1, 0, 1000), put_rows(0, 2, 500)};
  EXPECT_NEAR(put_s(machine(kernel()), both), 13e-6 + 100e-6, kTolerance);
}

// A phase whose ranks are ready at different times, and when its one signal fires.
double arrival_s(const Cluster& cluster, const std::vector<Message>& messages,
                 const std::vector<double>& ready_s, Direction direction, HopKind hop,
                 bool announced, std::size_t watched) {
  const auto transport = make_transport(cluster, {});
  ProgramBuilder builder;
  GpuResources gpus(builder, cluster.gpu, cluster.ranks_per_gpu);
  std::vector<std::uint32_t> ready;
  for (std::uint32_t rank = 0; rank < ready_s.size(); ++rank) {
    const std::uint32_t signals[]{builder.add_event()};
    builder.add_compute(rank, ready_s[rank], kStartEvent, signals);
    ready.push_back(signals[0]);
  }
  PhaseTraffic traffic{direction, false, messages, 0, ready};
  traffic.hop = hop;
  traffic.announced = announced;
  const auto phase = transport->begin(builder, gpus, traffic);
  const std::uint32_t arrived[]{builder.add_event()};
  for (std::size_t i = 0; i < messages.size(); ++i) {
    using Signals = std::span<const std::uint32_t>;
    (void)phase->send(messages[i], kStartEvent, i == watched ? Signals(arrived) : Signals());
  }
  const std::uint32_t after = builder.add_compute(0, 0.0, arrived[0], {});
  const Program program = std::move(builder).finish();
  const Network network(cluster);
  return run_flow(resolve(program, network), {.relative_precision = 0.0}).finish_s[after];
}

// Rank 0 fetches 1 MB from rank 2, 100 us over the port. Rank 3, which has nothing for it, is ready at
// 500 us: then 5 us for the announcements, 5 us for the first turn of GPU 0 and 3 us until the pull moves.
// Announced before, it need not wait; and along the rails rank 2 is the only peer, 5 us, 5 us and 1 us.
TEST(Direct, APullWaitsForTheAnnouncementsOfAllItsPeers) {
  const Cluster cluster = machine(kernel());
  const std::vector<Message> messages{put_rows(2, 0, 1000)};
  const std::vector<double> ready{0.0, 0.0, 0.0, 500e-6};
  const auto pull_s = [&](HopKind hop, bool announced) {
    return arrival_s(cluster, messages, ready, Direction::kCombine, hop, announced, 0);
  };
  EXPECT_NEAR(pull_s(HopKind::kGroup, false), 613e-6, kTolerance);
  EXPECT_NEAR(pull_s(HopKind::kGroup, true), 108e-6, kTolerance);
  EXPECT_NEAR(pull_s(HopKind::kRail, false), 111e-6, kTolerance);
}

// Pulls of two ranks on each GPU, announced before, that are ready at once: a turn is half of 10 us.
//   first     rank 0 fetches 1 MB from rank 2, 100 us over the port, from 5 + 3 us on
//   second    rank 1 fetches it from rank 3: from 10 + 3 us on
//   both      2 MB over the port, which serves rank 0 from 8 us on
//   slow      as `both` by multiprocessors that take 1 ms for it: rank 1's begin at 13 us
// The closed form says the same of `both` and `slow`. A rank
// that is ready later waits for nobody: 50 + 5 + 3 + 100 us. With a GPU each nobody takes turns.
TEST(Direct, PullsOfAGpuStartInTurn) {
  const auto pull_s = [&](const Cluster& cluster, const std::vector<Message>& messages,
                          std::vector<double> ready, std::size_t watched) {
    return arrival_s(cluster, messages, ready, Direction::kCombine, HopKind::kGroup, true, watched);
  };
  const auto closed_s = [&](const DirectKernel& costs, const std::vector<Message>& messages) {
    const Cluster cluster = machine(costs);
    const std::vector<std::uint32_t> ready(4, kStartEvent);
    const PhaseTraffic traffic{Direction::kCombine, false, messages, 0, ready};
    return direct_step_s(costs, direct_step_load(cluster, traffic), 8.0);
  };
  const std::vector<double> at_once(4, 0.0);
  DirectKernel costs = kernel();
  const std::vector<Message> both{put_rows(2, 0, 1000), put_rows(3, 1, 1000)};
  EXPECT_NEAR(pull_s(machine(costs), {put_rows(2, 0, 1000)}, at_once, 0), 108e-6, kTolerance);
  EXPECT_NEAR(pull_s(machine(costs), {put_rows(3, 1, 1000)}, at_once, 0), 113e-6, kTolerance);
  EXPECT_NEAR(pull_s(machine(costs), both, at_once, 1), 208e-6, kTolerance);
  EXPECT_NEAR(closed_s(costs, both), 208e-6, kTolerance);
  EXPECT_NEAR(pull_s(machine(costs), {put_rows(3, 1, 1000)}, {0.0, 50e-6, 0.0, 0.0}, 0), 158e-6,
              kTolerance);
  EXPECT_NEAR(pull_s(machine(costs, 1), {put_rows(3, 1, 1000)}, at_once, 0), 113e-6, kTolerance);
  costs.sm_bandwidth = Bandwidth{0.25e9};  // 1 MB of rows and 1 MB of sums, on 8 of them: 1 ms
  EXPECT_NEAR(pull_s(machine(costs), both, at_once, 1), 1013e-6, kTolerance);
  EXPECT_NEAR(closed_s(costs, both), 1013e-6, kTolerance);
}

// Rank 0 has 100 rows for rank 1 and 1000 for rank 2, which take 100 us over the port. It tells of
// either when both are written.
TEST(Direct, RowsCountAsThereWhenTheirSenderHasEnded) {
  const Cluster cluster = machine(kernel());
  const std::vector<Message> messages{put_rows(0, 1, 100), put_rows(0, 2, 1000)};
  const std::vector<double> ready(4, 0.0);
  for (const std::size_t watched : {0, 1}) {
    EXPECT_NEAR(
        arrival_s(cluster, messages, ready, Direction::kDispatch, HopKind::kGroup, false, watched),
        113e-6, kTolerance);
  }
}

// Rank 0 puts 1 MB to the other GPU, from 13 us on and until 113 us, and holds 8 of the 100 multiprocessors
// all that time. Rank 1, on the same GPU, expands meanwhile: a copy that takes 100 us of memory and takes
// turns on the 92 that are left, 108.7 us. One that takes 200 us has done 92 * 113 us of its turns by 113
// and has all 100 then: 113 + 200 - 0.92 * 113 us. Where the ranks have a GPU each nothing is held from it.
TEST(Direct, APutLeavesAnExpansionTheOtherMultiprocessors) {
  const std::vector<Message> messages{put_rows(0, 2, 1000)};
  const auto expanded_s = [&](std::uint32_t ranks_per_gpu, double alone_s) {
    Cluster cluster = machine(kernel(), ranks_per_gpu);
    const auto transport = make_transport(cluster, {});
    ProgramBuilder builder;
    cluster.gpu.kernel_launch = Seconds{};
    cluster.gpu.memory_bandwidth = Bandwidth{100e12};
    GpuResources gpus(builder, cluster.gpu, cluster.ranks_per_gpu);
    const std::vector<std::uint32_t> ready(4, kStartEvent);
    const auto phase =
        transport->begin(builder, gpus, {Direction::kDispatch, false, messages, 0, ready});
    (void)phase->send(messages[0], kStartEvent, {});
    const std::uint32_t expanded[]{builder.add_event()};
    gpus.add_copy({1, alone_s * cluster.gpu.memory_bandwidth.value}, kStartEvent, expanded);
    const std::uint32_t after = builder.add_compute(1, 0.0, expanded[0], {});
    const Program program = std::move(builder).finish();
    const Network network(cluster);
    return run_flow(resolve(program, network), {.relative_precision = 0.0}).finish_s[after];
  };
  EXPECT_NEAR(expanded_s(2, 100e-6), 100e-6 * 100 / 92, kTolerance);
  EXPECT_NEAR(expanded_s(2, 200e-6), 113e-6 + 200e-6 - 0.92 * 113e-6, kTolerance);
  EXPECT_NEAR(expanded_s(1, 200e-6), 200e-6, kTolerance);
}

// The closed form that fits use, against the program: an exchange of all four ranks, limited in turn by
// the port (2 ranks * 2 rows * 1 MB / 10 GB/s), the copies (2 MB / 2 GB/s) and multiprocessors
// (1000 items, 3000 rows of 1000 B at 1 GB/s over 8).
TEST(Direct, ClosedFormIsThatOfTheProgram) {
  std::vector<Message> messages;
  for (std::uint32_t src = 0; src < 4; ++src) {
    for (std::uint32_t dst = 0; dst < 4; ++dst) {
      if (src != dst) messages.push_back(put_rows(src, dst, 1000));
    }
  }
  const auto both = [&](const DirectKernel& costs, double expected_s) {
    const Cluster cluster = machine(costs);
    const std::vector<std::uint32_t> ready(4, kStartEvent);
    const PhaseTraffic traffic{Direction::kDispatch, false, messages, 0, ready};
    EXPECT_NEAR(direct_step_s(costs, direct_step_load(cluster, traffic), 8.0), expected_s,
                kTolerance);
    EXPECT_NEAR(put_s(cluster, messages), expected_s, kTolerance);
  };
  DirectKernel costs = kernel();
  both(costs, 13e-6 + 400e-6);
  costs.copy_bandwidth = Bandwidth{2e9};
  both(costs, 13e-6 + 1000e-6);
  costs.copy_bandwidth = Bandwidth{20e9};
  costs.sm_bandwidth = Bandwidth{1e9};
  both(costs, 13e-6 + 500e-6);
}

}  // namespace
}  // namespace coterie
