// Transports whose kernels move the rows, on nodes of GPUs whose ports carry 100 GB/s and whose
// memory is no limit. All latencies are zero.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/sim/engines/networks.hpp"
#include "tests/sim/transports/phase.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;
using testing::run_phase;

constexpr double kRow = 1000.0;  // bytes

Cluster node(std::uint32_t gpus) {
  Cluster cluster = testing::two_tiers(1, gpus, 1e9, 100e9);
  cluster.gpu.num_sms = 100;
  return cluster;
}
Message rows(std::uint32_t src, std::uint32_t dst, std::uint32_t count) {
  return {src, dst, kRow * count, count};
}

// 4 multiprocessors are two channels. A row takes 1 us and 1000 B / 1 GB/s = 2 us in a channel.
DeepepNormalParameters normal() {
  DeepepNormalParameters parameters;
  parameters.sms = 4;
  CopyKernel kernel;
  kernel.fixed = Seconds{50e-6};
  kernel.row = Seconds{1e-6};
  kernel.bandwidth = Bandwidth{1e9};
  kernel.pair_gain = 100.0;
  parameters.dispatch = kernel;
  kernel.fixed = Seconds{80e-6};
  parameters.combine = kernel;
  return parameters;
}
Cluster with(Cluster cluster, TransportParameters parameters) {
  cluster.transports = {std::move(parameters)};
  return cluster;
}

// Rank 0 sends 100 rows to itself and 300 to rank 1: 400 rows in two channels take 200 * 2 us after
// the 50 us of the kernel. Rank 1 receives 300 of them, which is less. Combine starts at 80 us.
TEST(DeepepNormal, RowsThatStayCostAsOthersDo) {
  const Cluster cluster = with(node(2), normal());
  const std::vector<Message> messages{rows(0, 0, 100), rows(0, 1, 300)};
  EXPECT_NEAR(run_phase(cluster, {}, messages).execution.makespan_s, 450e-6, 1e-10);
  EXPECT_NEAR(run_phase(cluster, {}, messages, Direction::kCombine).execution.makespan_s, 480e-6,
              1e-10);
  const std::vector<Message> local{rows(0, 0, 400)};
  EXPECT_NEAR(run_phase(cluster, {}, local).execution.makespan_s, 450e-6, 1e-10);
}

// Twice the multiprocessors, half the time: 50 + 400 / 4 * 2 us.
TEST(DeepepNormal, MoreMultiprocessorsMoveMore) {
  const auto run = run_phase(with(node(2), normal()), {"deepep_normal", {{"sms", "8"}}},
                             {rows(0, 0, 100), rows(0, 1, 300)});
  EXPECT_NEAR(run.execution.makespan_s, 250e-6, 1e-10);
}

// All to one: the receiver of rank 0 gets 3 * 200 rows: 300 per channel, 50 + 600 us; at half the
// sender's time per row, 50 + 300 us, were it not for the senders' 200 rows: 50 + 200 us. So 350.
TEST(DeepepNormal, ReceiversLimitToo) {
  const std::vector<Message> messages{rows(0, 0, 200), rows(1, 0, 200), rows(2, 0, 200)};
  DeepepNormalParameters parameters = normal();
  EXPECT_NEAR(run_phase(with(node(3), parameters), {}, messages).execution.makespan_s, 650e-6,
              1e-10);
  parameters.dispatch.receive_share = 0.5;
  EXPECT_NEAR(run_phase(with(node(3), parameters), {}, messages).execution.makespan_s, 350e-6,
              1e-10);
}

// A pair alone reaches pair_gain / P = 1/4 of a sender: 100 rows take 4 * 50 * 2 us.
TEST(DeepepNormal, APairHasItsShareOfTheWarps) {
  DeepepNormalParameters parameters = normal();
  parameters.dispatch.pair_gain = 1.0;
  const auto run = run_phase(with(node(4), parameters), {}, {rows(0, 2, 100)});
  EXPECT_NEAR(run.execution.makespan_s, 450e-6, 1e-10);
}

// 450 us of kernel and rows; a host that needs 500 us between two starts makes it 500, one that needs
// 300 us changes nothing.
TEST(DeepepNormal, NoExchangeTakesLessThanTheHostNeeds) {
  DeepepNormalParameters parameters = normal();
  const std::vector<Message> messages{rows(0, 0, 100), rows(0, 1, 300)};
  parameters.dispatch.least = Seconds{500e-6};
  EXPECT_NEAR(run_phase(with(node(2), parameters), {}, messages).execution.makespan_s, 500e-6,
              1e-10);
  parameters.dispatch.least = Seconds{300e-6};
  EXPECT_NEAR(run_phase(with(node(2), parameters), {}, messages).execution.makespan_s, 450e-6,
              1e-10);
}

// Two rounds of 100 rows between the same ranks go one after the other: 50 + 100 us, and 100 us more.
TEST(DeepepNormal, RoundsOfAPairKeepTheirOrder) {
  const auto run = run_phase(with(node(2), normal()), {}, {rows(0, 1, 100), rows(0, 1, 100)});
  EXPECT_NEAR(run.finish_s(0), 150e-6, 1e-10);
  EXPECT_NEAR(run.finish_s(1), 250e-6, 1e-10);
}

// The kernel's port carries 1 GB/s: 300 rows of 1000 B to other ranks take 300 us; the 400 rows of
// the sender in 20 channels take 40 us. Rows that stay cross no port.
TEST(DeepepNormal, ThePortLimitsWhatLeaves) {
  DeepepNormalParameters parameters = normal();
  parameters.sms = 40;
  parameters.dispatch.port_bandwidth = Bandwidth{1e9};
  const auto run = run_phase(with(node(2), parameters), {}, {rows(0, 0, 100), rows(0, 1, 300)});
  EXPECT_NEAR(run.execution.makespan_s, 350e-6, 1e-10);
}

// Two ranks on each of two GPUs, whose ports carry 1 GB/s: 100 rows of 1000 B each from ranks 0 and 1 to
// ranks 2 and 3 share one port, 200 us. Were they GPUs of their own, each would have its port: 100 us.
TEST(DeepepNormal, RanksOfOneGpuShareItsPort) {
  DeepepNormalParameters parameters = normal();
  parameters.sms = 40;
  parameters.dispatch.port_bandwidth = Bandwidth{1e9};
  Cluster cluster = testing::two_tiers(2, 2, 100e9, 100e9);
  cluster.gpu.num_sms = 100;
  const std::vector<Message> messages{rows(0, 2, 100), rows(1, 3, 100)};
  EXPECT_NEAR(run_phase(with(cluster, parameters), {}, messages).execution.makespan_s, 150e-6,
              1e-10);
  cluster.ranks_per_gpu = 2;
  EXPECT_NEAR(run_phase(with(cluster, parameters), {}, messages).execution.makespan_s, 250e-6,
              1e-10);
}

// Of four ranks a pair's warps take 4 * 2 us for a row of a channel. Rows to another GPU wait for the
// link's 3 us there and back behind every chunk of 6; those within a GPU do not: 50 rows of a channel
// take 400 us, or 50 * (8 - 1) us. The link's own latency comes once.
TEST(DeepepNormal, RowsWithinAGpuDoNotWaitForTheLinks) {
  DeepepNormalParameters parameters = normal();
  parameters.dispatch.pair_gain = 1.0;
  Cluster cluster = testing::two_tiers(2, 2, 100e9, 100e9);
  cluster.gpu.num_sms = 100;
  cluster.ranks_per_gpu = 2;
  cluster.nic->latency = Seconds{3e-6};
  const auto time = [&](const Message& message) {
    return run_phase(with(cluster, parameters), {}, {message}).execution.makespan_s;
  };
  EXPECT_NEAR(time(rows(0, 1, 100)), 50e-6 + 350e-6, 1e-9);
  EXPECT_NEAR(time(rows(0, 2, 100)), 50e-6 + 400e-6, 7e-6);
}

// 400 tokens of rank 0, of which 100 go to each of two ranks: every one is looked at for 1 us,
// 200 us in a channel, and 200 rows take 200 us. Combine adds 400 tokens up at 1000 B / 2 GB/s each,
// 100 us in a channel, beside the 200 us of the rows that come back.
TEST(DeepepNormal, TokensAreScannedAndAddedUp) {
  DeepepNormalParameters parameters = normal();
  parameters.dispatch.token = Seconds{1e-6};
  parameters.combine.token_bandwidth = Bandwidth{2e9};
  const Cluster cluster = with(node(2), parameters);
  const std::vector<std::uint32_t> tokens{400, 0};
  EXPECT_NEAR(run_phase(cluster, {}, {rows(0, 0, 100), rows(0, 1, 100)}, Direction::kDispatch,
                        false, tokens)
                  .execution.makespan_s,
              450e-6, 1e-10);
  const std::vector<Message> back{rows(0, 0, 100), rows(1, 0, 100)};
  EXPECT_NEAR(run_phase(cluster, {}, back, Direction::kCombine, false, tokens).execution.makespan_s,
              380e-6, 1e-10);
  // With a quarter of the rows' time, 150 us; the senders' 100 rows each take 100 us.
  parameters.combine.receive_share = 0.25;
  EXPECT_NEAR(run_phase(with(node(2), parameters), {}, back, Direction::kCombine, false, tokens)
                  .execution.makespan_s,
              230e-6, 1e-10);
}

// The kernel holds its multiprocessors from its launch to the end of its last row (450 us): work
// that takes 100 us on all 100 of them has 96 until it is done.
TEST(DeepepNormal, HoldsItsMultiprocessors) {
  const Cluster cluster = with(node(2), normal());
  const auto transport = make_transport(cluster, {});
  ProgramBuilder builder;
  GpuResources gpus(builder, cluster.gpu);
  const std::vector<std::uint32_t> ready(2, kStartEvent);
  const std::vector<Message> messages{rows(0, 0, 400)};
  const auto phase =
      transport->begin(builder, gpus, {Direction::kDispatch, false, messages, 0, ready});
  ASSERT_TRUE(phase->send(messages[0], kStartEvent, {}).has_value());
  const auto work = static_cast<std::uint32_t>(builder.num_ops());
  gpus.add_work(0, Seconds{100e-6}, kStartEvent, {});
  const Program program = std::move(builder).finish();
  const Network network(cluster);
  const Execution execution = run_flow(resolve(program, network), {.relative_precision = 0.0});
  EXPECT_NEAR(execution.finish_s[work], 100e-6 * 100 / 96, 1e-10);
  EXPECT_NEAR(execution.makespan_s, 450e-6, 1e-10);
}

// Two nodes of two: rank 0's rows for node 1 go to its relay, rank 2, which passes them on. Both
// hops are one kernel: the second starts no new one, and each has a sender of its own.
TEST(DeepepNormal, ASecondHopRunsInTheSameKernel) {
  Cluster cluster = testing::two_tiers(2, 2, 100e9, 100e9);
  cluster.gpu.num_sms = 100;
  DeepepNormalParameters parameters = normal();
  parameters.dispatch_between = parameters.dispatch;
  parameters.dispatch_between->fixed = Seconds{70e-6};
  cluster.transports = {parameters};
  const auto transport = make_transport(cluster, {});
  ProgramBuilder builder;
  GpuResources gpus(builder, cluster.gpu);
  const std::vector<std::uint32_t> ready(4, kStartEvent);
  const std::vector<Message> first{rows(0, 2, 100)};
  const std::vector<Message> second{rows(2, 3, 100)};
  const std::uint32_t arrived[]{builder.add_event()};
  const auto hop = transport->begin(builder, gpus, {Direction::kDispatch, false, first, 0, ready});
  ASSERT_TRUE(hop->send(first[0], kStartEvent, arrived).has_value());
  const auto next = transport->begin(builder, gpus, {Direction::kDispatch, true, second, 0, ready});
  ASSERT_TRUE(next->send(second[0], arrived[0], {}).has_value());
  const Program program = std::move(builder).finish();
  EXPECT_EQ(program.holds.size(), 4U);  // one kernel per rank
  const Network network(cluster);
  const Execution execution = run_flow(resolve(program, network), {.relative_precision = 0.0});
  EXPECT_NEAR(execution.makespan_s, 70e-6 + 100e-6 + 100e-6, 1e-10);
}

// 10 us, 1 us for the peer, 2 us for the row of a token that leaves its rank; then 200 rows at 1 us each
// are slower than 100 tokens of 4 us on 8 multiprocessors (50 us) and 100 kB at 10 GB/s (10 us).
TEST(PutKernels, TheSlowestOfMessagesTokensAndBytes) {
  PutKernel kernel;
  kernel.fixed = Seconds{10e-6};
  kernel.peer = Seconds{1e-6};
  kernel.token_row = Seconds{2e-6};
  kernel.token = Seconds{4e-6};
  kernel.row = Seconds{1e-6};
  kernel.port_bandwidth = Bandwidth{10e9};
  const std::vector<Message> messages{rows(0, 0, 100), rows(0, 1, 100)};
  const std::vector<std::uint32_t> tokens{100, 0};
  const auto time = [&] {
    const Cluster cluster = with(node(2), NvlinkOneSidedParameters{8, kernel, kernel});
    return run_phase(cluster, {}, messages, Direction::kDispatch, false, tokens)
        .execution.makespan_s;
  };
  EXPECT_NEAR(time(), 13e-6 + 200e-6, 1e-10);
  kernel.row = Seconds{};
  EXPECT_NEAR(time(), 13e-6 + 50e-6, 1e-10);
  kernel.token = Seconds{};
  EXPECT_NEAR(time(), 13e-6 + 10e-6, 1e-10);
}

// 10 us and 1 us for the peer. The tokens of both ranks get a row each from the other and wait 8 us on the
// links: one token alone takes that long, 100 of them as long as their 100 kB at 10 GB/s (10 us), beside which
// the waiting is hidden. The low-latency kernels put, and wait at the end: 8 us and 10 us.
TEST(PutKernels, PullsHideWhatTheLinksTake) {
  PutKernel kernel;
  kernel.fixed = Seconds{10e-6};
  kernel.peer = Seconds{1e-6};
  kernel.token_row = Seconds{8e-6};
  kernel.port_bandwidth = Bandwidth{10e9};
  const auto time = [](const TransportParameters& parameters, std::uint32_t count) {
    const std::vector<Message> messages{rows(1, 0, count), rows(0, 1, count)};
    return run_phase(with(node(2), parameters), {}, messages, Direction::kCombine, false,
                     {count, count})
        .execution.makespan_s;
  };
  const NvlinkOneSidedParameters one_sided{8, kernel, kernel};
  EXPECT_NEAR(time(one_sided, 1), 11e-6 + 8e-6, 1e-10);
  EXPECT_NEAR(time(one_sided, 100), 11e-6 + 10e-6, 1e-10);
  const DeepepLowLatencyParameters low_latency{8, 128, kernel, kernel};
  EXPECT_NEAR(time(low_latency, 100), 11e-6 + 8e-6 + 10e-6, 1e-10);
}

// 100 rows that serve 300 (token, expert) pairs are 300 puts: 300 kB at 1 GB/s.
TEST(PutKernels, LowLatencyKnowsNoDeduplication) {
  PutKernel kernel;
  kernel.port_bandwidth = Bandwidth{1e9};
  DeepepLowLatencyParameters parameters{8, 128, kernel, kernel};
  const std::vector<Message> messages{{0, 1, kRow * 100, 100, 300}};
  const std::vector<std::uint32_t> tokens{100, 0};
  const Cluster cluster = with(node(2), parameters);
  EXPECT_NEAR(
      run_phase(cluster, {}, messages, Direction::kDispatch, false, tokens).execution.makespan_s,
      300e-6, 1e-10);
  try {
    (void)run_phase(cluster, {}, messages, Direction::kDispatch, false, {129, 0});
    FAIL() << "129 tokens were accepted";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("found 129 tokens of a rank, expected at most 128"));
  }
}

// More multiprocessors than the GPU has, and half a channel.
TEST(DeepepNormal, RefusesMultiprocessorsThatAreNotThere) {
  const Cluster cluster = with(node(2), normal());
  const auto message = [&](const std::string& sms) {
    try {
      (void)make_transport(cluster, {{}, {{"sms", sms}}});
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(message("102"),
              HasSubstr("found 102 multiprocessors (sms), expected at most the 100"));
  EXPECT_THAT(message("5"), HasSubstr("--set transport.sms: found \"5\", expected an even number"));
  EXPECT_THAT(message("0"), HasSubstr("expected a whole number from 1"));
}

}  // namespace
}  // namespace coterie
