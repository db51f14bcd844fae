// `nccl`: alpha and rate by message size, a queue of sends per rank and tier, a start per phase.

#include <gtest/gtest.h>

#include "tests/sim/engines/networks.hpp"
#include "tests/sim/transports/phase.hpp"

namespace coterie {
namespace {

using testing::run_phase;
using testing::star;

Cluster with_nccl(Cluster cluster, NcclTier network) {
  cluster.transports = {NcclParameters{std::nullopt, std::move(network)}};
  return cluster;
}

NcclTier make_tier(std::vector<MessageSegment> segments, std::vector<StartCost> start = {}) {
  NcclTier out;
  out.segments = std::move(segments);
  out.start = std::move(start);
  return out;
}

// A segment's bandwidth caps a transfer below its links', its alpha depends on the size, and a
// message of no bytes takes alpha and latency (2 us) alone.
TEST(Nccl, SegmentsSetAlphaAndRate) {
  const Cluster cluster =
      with_nccl(star(3), make_tier({{Bytes{1000}, Seconds{5e-6}, std::nullopt, {}},
                                    {std::nullopt, Seconds{20e-6}, Bandwidth{0.25e9}, {}}}));
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 1, 0.0, 1}}).finish_s(0), 7e-6, 1e-13);
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 1, 1000.0, 1}}).finish_s(0), 7e-6 + 1e-6, 1e-13);
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 1, 1e6, 1}}).finish_s(0), 22e-6 + 4e-3, 1e-12);
  // The cap is each message's own: two move 0.5 GB/s over the link of 1 GB/s.
  const auto two = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {0, 2, 1e6, 1}});
  EXPECT_NEAR(two.execution.makespan_s, 22e-6 + 4e-3, 1e-12);
}

// 16 channels of 0.1 GB/s on links of 1 GB/s. Two ranks have 8 of them, four 4, three as many, since
// 3 * 4 <= 16 < 3 * 8; 20 ranks have one. 1 MB each way between two of four ranks flows at 0.4 GB/s. With 3 MB
// one way and 1 MB back the channels are shared 3 to 1, 0.6 and 0.2 GB/s; with nothing back one direction
// has them alone, 0.8 GB/s. A bandwidth of the message below that counts.
TEST(Nccl, RanksDealTheirChannelsToTheirPeers) {
  EXPECT_EQ(channels_per_peer(16, 2), 8.0);
  EXPECT_EQ(channels_per_peer(16, 3), 4.0);
  EXPECT_EQ(channels_per_peer(16, 4), 4.0);
  EXPECT_EQ(channels_per_peer(16, 20), 1.0);
  NcclTier tier = make_tier({{std::nullopt, Seconds{}, std::nullopt, Bandwidth{0.1e9}}});
  tier.channels = 16;
  const Cluster four = with_nccl(star(4), tier);
  const auto equal = run_phase(four, {}, {{0, 1, 1e6, 1}, {1, 0, 1e6, 1}});
  EXPECT_NEAR(equal.finish_s(0), 2e-6 + 1e6 / 0.4e9, 1e-12);
  EXPECT_NEAR(equal.finish_s(1), 2e-6 + 1e6 / 0.4e9, 1e-12);
  const auto skewed = run_phase(four, {}, {{0, 1, 3e6, 1}, {1, 0, 1e6, 1}});
  EXPECT_NEAR(skewed.finish_s(0), 2e-6 + 3e6 / 0.6e9, 1e-12);
  EXPECT_NEAR(skewed.finish_s(1), 2e-6 + 1e6 / 0.2e9, 1e-12);
  EXPECT_NEAR(run_phase(four, {}, {{0, 1, 1e6, 1}}).finish_s(0), 2e-6 + 1e6 / 0.8e9, 1e-12);
  tier.segments[0].bandwidth = Bandwidth{0.2e9};
  const auto capped = run_phase(with_nccl(star(4), tier), {}, {{0, 1, 1e6, 1}});
  EXPECT_NEAR(capped.finish_s(0), 2e-6 + 1e6 / 0.2e9, 1e-12);
}

// NCCL's own rule (addP2pToPlan of its src/enqueue.cc), counted by hand. Over NVLink: 32 channels, chunks
// of 512 KiB, so that a channel gets at least 64 KiB, and two ranks have 16 channels until each would
// move more than 16 MiB. Over PCIe: two channels per pair, chunks of 128 KiB; of 8 channels 8 ranks have
// one per pair up to 4 MiB.
TEST(Nccl, MessagesHaveChannelsBySize) {
  const auto channels_of = [](const NcclTier& tier, std::uint32_t num_ranks, double bytes) {
    return deal_message(tier, num_ranks, bytes).channels;
  };
  constexpr double kKiB = 1024.0;
  constexpr double kMiB = 1048576.0;
  NcclTier nvlink;
  nvlink.channels = 32;
  nvlink.chunk = Bytes{524288};
  EXPECT_EQ(channels_of(nvlink, 2, 0.0), 1.0);
  EXPECT_EQ(channels_of(nvlink, 2, 64 * kKiB), 1.0);
  EXPECT_EQ(channels_of(nvlink, 2, 64 * kKiB + 1), 2.0);
  EXPECT_EQ(channels_of(nvlink, 2, kMiB), 16.0);
  EXPECT_EQ(channels_of(nvlink, 2, 256 * kMiB), 16.0);
  EXPECT_EQ(channels_of(nvlink, 2, 256 * kMiB + 1), 32.0);
  EXPECT_EQ(channels_of(nvlink, 4, 256 * kMiB), 16.0);
  EXPECT_EQ(channels_of(nvlink, 8, 64 * kMiB), 4.0);
  EXPECT_EQ(channels_of(nvlink, 8, 1024 * kMiB), 32.0);
  NcclTier pcie;
  pcie.channels = 8;
  pcie.pair_channels = 2;
  pcie.chunk = Bytes{131072};
  EXPECT_EQ(channels_of(pcie, 4, 16 * kKiB), 1.0);
  EXPECT_EQ(channels_of(pcie, 4, 32 * kKiB), 2.0);
  EXPECT_EQ(channels_of(pcie, 8, 4 * kMiB), 1.0);
  EXPECT_EQ(channels_of(pcie, 8, 4 * kMiB + 1), 2.0);
  // Before NCCL 2.29 LL, here up to 32 * 16 KiB, has chunks of 64 KiB, so that a channel gets 8 KiB, and
  // goes by what 32 channels would have.
  NcclTier older = nvlink;
  older.ll_chunk = Bytes{65536};
  older.segments = {{Bytes{16384}, {}, {}, {}}, {}};
  EXPECT_EQ(channels_of(older, 4, 16 * kKiB), 2.0);
  EXPECT_EQ(channels_of(older, 4, 512 * kKiB), 8.0);
  EXPECT_EQ(deal_message(older, 4, 512 * kKiB).protocol_size, 16 * kKiB);
  EXPECT_EQ(channels_of(older, 4, 512 * kKiB + 1), 8.0);
  EXPECT_GT(deal_message(older, 4, 512 * kKiB + 1).protocol_size, 16 * kKiB);
  EXPECT_EQ(channels_of(older, 2, 512 * kKiB + 1), 9.0);
}

// Two ranks, one channel each of 0.5 GB/s, chunks of 1 MB: 4 MB flow for 8 ms. The first chunk takes 2 ms
// on the channel, which the stream has in it, and 0.5 ms more at 2 GB/s. A message of 0.5 MB is one
// chunk: 1 ms, and 0.25 ms more.
TEST(Nccl, FirstChunksAreNotCopiedMeanwhile) {
  NcclTier tier = make_tier({{std::nullopt, Seconds{}, std::nullopt, Bandwidth{0.5e9}}}, {{}});
  tier.channels = 2;
  tier.chunk = Bytes{1000000};
  tier.start[0].first_bandwidth = Bandwidth{2e9};
  const Cluster cluster = with_nccl(star(2), tier);
  const auto large = run_phase(cluster, {}, {{0, 1, 4e6, 1}, {1, 0, 4e6, 1}});
  // 4 MB would be dealt to a second channel only beyond 32 chunks.
  EXPECT_NEAR(large.execution.makespan_s, 0.5e-3 + 2e-6 + 8e-3, 1e-12);
  const auto small = run_phase(cluster, {}, {{0, 1, 0.5e6, 1}, {1, 0, 0.5e6, 1}});
  EXPECT_NEAR(small.execution.makespan_s, 0.25e-3 + 2e-6 + 1e-3, 1e-12);
}

// Starts and segments count the part of one channel: two channels of 16 KiB each send 32 KiB as one
// sends 16, and 33 KiB start 10 us later. 3 destinations cost 1 us more than one, 1 + log2(2).
TEST(Nccl, ProtocolsGoByThePartOfAChannel) {
  NcclTier tier = make_tier({MessageSegment{}}, {{}, {}});
  tier.channels = 8;
  tier.pair_channels = 2;
  tier.chunk = Bytes{131072};
  tier.start[0].up_to = Bytes{16384};
  tier.start[1].launch = Seconds{10e-6};
  for (StartCost& start : tier.start) start.per_doubling = Seconds{1e-6};
  const Cluster cluster = with_nccl(star(4), tier);
  const auto finish_s = [&](double bytes) {
    return run_phase(cluster, {}, {{0, 1, bytes, 1}}).finish_s(0) - bytes / 1e9;
  };
  EXPECT_NEAR(finish_s(16384), 2e-6, 1e-12);
  EXPECT_NEAR(finish_s(32768), 2e-6, 1e-12);
  EXPECT_NEAR(finish_s(33792), 12e-6, 1e-12);
  const auto spread = run_phase(cluster, {}, {{0, 1, 0.0, 1}, {0, 2, 0.0, 1}, {0, 3, 0.0, 1}});
  EXPECT_NEAR(spread.finish_s(0), 3e-6, 1e-12);
}

// Between two sockets lies 1 GB/s. Two messages of 2 MiB cross it; each has one of its pair's two
// channels (4 channels for 4 ranks), and then it takes 1.5 times as long: they start half of their time
// late. Messages of more than 4 MiB, 32 chunks, have both channels, and start at once.
TEST(Nccl, FewChannelsSlowTheSockets) {
  Cluster cluster = testing::two_tiers(1, 4, 1e9, 10e9);
  cluster.scale_up->shared_bandwidth = Bandwidth{4e9};
  cluster.scale_up->num_sockets = 2;
  cluster.scale_up->socket_bandwidth = Bandwidth{1e9};
  NcclTier tier = make_tier({MessageSegment{}}, {{}});
  tier.channels = 4;
  tier.pair_channels = 2;
  tier.chunk = Bytes{131072};
  tier.few_channels = 1.5;
  cluster.transports = {NcclParameters{tier, std::nullopt}};
  const double few = 2.0 * 2097152.0 / 1e9;
  EXPECT_NEAR(
      run_phase(cluster, {}, {{0, 2, 2097152.0, 1}, {3, 1, 2097152.0, 1}}).execution.makespan_s,
      1.5 * few, 1e-12);
  const double many = 2.0 * 5e6 / 1e9;
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 2, 5e6, 1}, {3, 1, 5e6, 1}}).execution.makespan_s, many,
              1e-12);
}

// One place per rank: the second send waits for the first to arrive. alpha 10 us, 2 us of latency.
// Another rank's send waits for nobody.
TEST(Nccl, SendsInFlightQueue) {
  Cluster cluster =
      with_nccl(star(3), make_tier({{std::nullopt, Seconds{10e-6}, std::nullopt, {}}}));
  cluster.nic->injection.sends_in_flight = 1;
  const auto run = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {0, 2, 2e6, 1}, {1, 0, 1e6, 1}});
  EXPECT_NEAR(run.finish_s(0), 1.012e-3, 1e-12);
  EXPECT_NEAR(run.execution.start_s[run.ops[1].value()], 1.012e-3, 1e-12);
  EXPECT_NEAR(run.finish_s(1), 1.012e-3 + 2.012e-3, 1e-12);
  EXPECT_NEAR(run.finish_s(2), 1.012e-3, 1e-12);
}

// Two phases that overlap share the queue of a rank's sends: the second phase's send waits for the
// first phase's to arrive.
TEST(Nccl, PhasesShareTheQueues) {
  Cluster cluster = with_nccl(star(3), {});
  cluster.nic->injection.sends_in_flight = 1;
  const auto transport = make_transport(cluster, {});
  ProgramBuilder builder;
  GpuResources gpus(builder, cluster.gpu);
  const std::vector<std::uint32_t> ready(3, kStartEvent);
  const std::vector<Message> first{{0, 1, 1e6, 1}};
  const std::vector<Message> second{{0, 2, 1e6, 1}};
  for (const auto* messages : {&first, &second}) {
    const auto phase =
        transport->begin(builder, gpus, {Direction::kDispatch, false, *messages, 0, ready});
    ASSERT_TRUE(phase->send(messages->front(), kStartEvent, {}).has_value());
  }
  const Program program = std::move(builder).finish();
  const Network network(cluster);
  const Execution execution = run_flow(resolve(program, network), {.relative_precision = 0.0});
  EXPECT_NEAR(execution.makespan_s, 2.004e-3, 1e-12);
}

// Launch 30 us and 5 us for each destination after the first: rank 0 has two, so it starts at
// 35 us; rank 1 has one and starts at 30 us. Then 2 us, and 1 MB (2 MB over rank 0's port).
TEST(Nccl, AStartIsPaidPerRankAndPhase) {
  const StartCost start{std::nullopt, Seconds{30e-6}, Seconds{5e-6}, {}, {}, {}};
  const Cluster cluster = with_nccl(star(3), make_tier({MessageSegment{}}, {start}));
  const std::vector<Message> messages{{0, 1, 1e6, 1}, {0, 2, 1e6, 1}, {1, 2, 0.0, 1}};
  const auto run = run_phase(cluster, {}, messages);
  EXPECT_NEAR(run.finish_s(0), 35e-6 + 2e-6 + 2e-3, 1e-12);
  EXPECT_NEAR(run.finish_s(2), 30e-6 + 2e-6, 1e-12);
  // The second hop of a phase starts at once.
  const auto continued = run_phase(cluster, {}, messages, Direction::kDispatch, true);
  EXPECT_NEAR(continued.finish_s(2), 2e-6, 1e-12);
}

// What a rank sends and receives shares 1 GB/s, each direction alone has 0.8: 1 MB there and 1 MB back
// take 2 ms together, 1 MB there alone 1.25 ms. The links carry 1 GB/s each way.
TEST(Nccl, BothDirectionsOfARankShareARate) {
  NcclTier tier;
  tier.rank_bandwidth = Bandwidth{0.8e9};
  tier.rank_total_bandwidth = Bandwidth{1e9};
  const Cluster cluster = with_nccl(star(3), tier);
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 1, 1e6, 1}}).finish_s(0), 2e-6 + 1.25e-3, 1e-12);
  const auto both = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {1, 0, 1e6, 1}});
  EXPECT_NEAR(both.execution.makespan_s, 2e-6 + 2e-3, 1e-12);
  // A ring loads both directions of everybody.
  const auto ring = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {1, 2, 1e6, 1}, {2, 0, 1e6, 1}});
  EXPECT_NEAR(ring.execution.makespan_s, 2e-6 + 2e-3, 1e-12);
}

// A connection carries 0.25 GB/s in one direction and 0.4 in both: 1 MB takes 4 ms one way, 5 ms if as
// much comes back. To two ranks at once it still takes 4 ms.
TEST(Nccl, APairIsLimitedByItsChannels) {
  NcclTier tier;
  tier.pair_bandwidth = Bandwidth{0.25e9};
  tier.pair_total_bandwidth = Bandwidth{0.4e9};
  const Cluster cluster = with_nccl(star(3), tier);
  const auto spread = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {0, 2, 1e6, 1}});
  EXPECT_NEAR(spread.execution.makespan_s, 2e-6 + 4e-3, 1e-12);
  const auto both = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {1, 0, 1e6, 1}});
  EXPECT_NEAR(both.execution.makespan_s, 2e-6 + 5e-3, 1e-12);
  // Two messages of a pair share it.
  const auto two = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {0, 1, 1e6, 1}});
  EXPECT_NEAR(two.execution.makespan_s, 2e-6 + 8e-3, 1e-12);
}

// A ramp: 1 MB take 3 ms beyond the launch of 1 ms where the link alone would take 1 ms, so the
// start is 1 + 3 - 1 = 3 ms. Half of it takes half: 1 + 1.5 - 0.5 = 2 ms.
TEST(Nccl, ARampDelaysTheStart) {
  const StartCost start{std::nullopt, Seconds{1e-3}, {}, {{Bytes{1000000}, Seconds{3e-3}}}, {}, {}};
  const Cluster cluster = with_nccl(star(2), make_tier({MessageSegment{}}, {start}));
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 1, 1e6, 1}}).finish_s(0), 3e-3 + 1.002e-3, 1e-12);
  EXPECT_NEAR(run_phase(cluster, {}, {{0, 1, 0.5e6, 1}}).finish_s(0), 2e-3 + 0.502e-3, 1e-12);
}

// Two ranks exchange when both have started: rank 0 starts after 3 ms, so the 0.5 MB of rank 1, which
// could leave after 2 ms, leave then too. Rank 2 starts after 2 ms and need not wait for rank 0 to
// exchange with rank 3.
TEST(Nccl, RanksExchangeWhenBothHaveStarted) {
  const StartCost start{std::nullopt, Seconds{1e-3}, {}, {{Bytes{1000000}, Seconds{3e-3}}}, {}, {}};
  const Cluster cluster = with_nccl(star(4), make_tier({MessageSegment{}}, {start}));
  const auto run = run_phase(
      cluster, {}, {{0, 1, 1e6, 1}, {1, 0, 0.5e6, 1}, {2, 3, 0.5e6, 1}, {3, 2, 0.5e6, 1}});
  EXPECT_NEAR(run.finish_s(0), 3e-3 + 1.002e-3, 1e-12);
  EXPECT_NEAR(run.finish_s(1), 3e-3 + 0.502e-3, 1e-12);
  EXPECT_NEAR(run.finish_s(2), 2e-3 + 0.502e-3, 1e-12);
}

// Shared links: GPUs 0 and 1 of a domain send 1 MB each over a bridge of 1 GB/s (ports 10 GB/s).
// The shared ramp gives 2 MB 5 ms where the bridge alone takes 2 ms: both start 3 ms late.
TEST(Nccl, ASharedRampCountsTheWholeSocket) {
  Cluster cluster = testing::two_tiers(1, 4, 1e9, 10e9);
  cluster.scale_up->shared_bandwidth = Bandwidth{1e9};
  StartCost start;
  start.shared_ramp = {{Bytes{2000000}, Seconds{5e-3}}};
  cluster.transports = {NcclParameters{make_tier({MessageSegment{}}, {start}), std::nullopt}};
  const auto run = run_phase(cluster, {}, {{0, 2, 1e6, 1}, {1, 3, 1e6, 1}});
  EXPECT_NEAR(run.execution.makespan_s, 3e-3 + 2e-3, 1e-12);
  // On a socket of its own, the second pair's bytes are not the first one's business: 1 MB on each
  // bridge, which the ramp gives 2.5 ms.
  cluster.scale_up->num_sockets = 2;
  const auto apart = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {2, 3, 1e6, 1}});
  EXPECT_NEAR(apart.execution.makespan_s, 2.5e-3, 1e-12);
}

// A rank's messages reach 0.5 GB/s together, though the links carry 1 GB/s: two of 1 MB take 4 ms.
TEST(Nccl, ARankHasARateOfItsOwn) {
  NcclTier capped;
  capped.rank_bandwidth = Bandwidth{0.5e9};
  const Cluster cluster = with_nccl(star(3), capped);
  const auto out = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {0, 2, 1e6, 1}});
  EXPECT_NEAR(out.execution.makespan_s, 2e-6 + 4e-3, 1e-12);
  const auto in = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {2, 1, 1e6, 1}});
  EXPECT_NEAR(in.execution.makespan_s, 2e-6 + 4e-3, 1e-12);
}

// Between two sockets lies 1 GB/s, both directions together (ports 10 GB/s, bridges 4 GB/s): 1 MB
// each way take 2 ms, and the ramp gives 2 MB 5 ms, so both start 3 ms late.
TEST(Nccl, ASocketRampCountsBothDirections) {
  Cluster cluster = testing::two_tiers(1, 4, 1e9, 10e9);
  cluster.scale_up->shared_bandwidth = Bandwidth{4e9};
  cluster.scale_up->num_sockets = 2;
  cluster.scale_up->socket_bandwidth = Bandwidth{1e9};
  StartCost start;
  start.socket_ramp = {{Bytes{2000000}, Seconds{5e-3}}};
  cluster.transports = {NcclParameters{make_tier({MessageSegment{}}, {start}), std::nullopt}};
  const auto run = run_phase(cluster, {}, {{0, 2, 1e6, 1}, {3, 1, 1e6, 1}});
  EXPECT_NEAR(run.execution.makespan_s, 3e-3 + 2e-3, 1e-12);
}

}  // namespace
}  // namespace coterie
