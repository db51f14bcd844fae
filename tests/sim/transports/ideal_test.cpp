// `ideal`: the wires alone, on a star whose routes are two links of 1 GB/s and 1 us.

#include <gtest/gtest.h>

#include "tests/sim/engines/networks.hpp"
#include "tests/sim/transports/phase.hpp"

namespace coterie {
namespace {

using testing::run_phase;
using testing::star;

// 1 MB over two links: 2 us and 1 ms. What stays on its GPU costs nothing.
TEST(Ideal, TakesWhatTheLinksTake) {
  const auto run = run_phase(star(2), {"ideal", {}}, {{0, 1, 1e6, 1}, {0, 0, 1e6, 1}});
  EXPECT_NEAR(run.finish_s(0), 2e-6 + 1e-3, 1e-12);
  EXPECT_FALSE(run.ops[1].has_value());
  EXPECT_NEAR(run.execution.makespan_s, 2e-6 + 1e-3, 1e-12);
}

// One place: the second message waits for the first. 1.002 ms, then 2.002 ms more.
TEST(Ideal, KeepsToTheSendsInFlight) {
  Cluster cluster = star(3);
  cluster.nic->injection.sends_in_flight = 1;
  const auto run = run_phase(cluster, {}, {{0, 1, 1e6, 1}, {0, 2, 2e6, 1}});
  EXPECT_NEAR(run.finish_s(0), 1.002e-3, 1e-12);
  EXPECT_NEAR(run.finish_s(1), 3.004e-3, 1e-12);
}

// A message that waits for its rank and for an event of its own leaves with the later of the two.
TEST(Ideal, LeavesWithTheLaterOfTwoEvents) {
  const Cluster cluster = star(2);
  const auto transport = make_transport(cluster, {});
  ProgramBuilder builder;
  GpuResources gpus(builder, cluster.gpu);
  const std::uint32_t early[]{builder.add_event()};
  const std::uint32_t late[]{builder.add_event()};
  builder.add_compute(0, 1e-3, kStartEvent, early);
  builder.add_compute(0, 5e-3, kStartEvent, late);
  const std::vector<Message> messages{{0, 1, 1e6, 1}};
  for (const bool rank_is_late : {false, true}) {
    const std::uint32_t ready[]{rank_is_late ? late[0] : early[0], kStartEvent};
    const auto phase =
        transport->begin(builder, gpus, {Direction::kDispatch, false, messages, 0, ready});
    ASSERT_TRUE(phase->send(messages[0], rank_is_late ? early[0] : late[0], {}).has_value());
  }
  const Program program = std::move(builder).finish();
  const Network network(cluster);
  const Execution execution = run_flow(resolve(program, network), {.relative_precision = 0.0});
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op)) continue;
    EXPECT_NEAR(execution.start_s[op], 5e-3, 1e-12);
  }
}

}  // namespace
}  // namespace coterie
