// Times of moving experts, counted by hand.

#include "sim/experiment/move_time.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/sim/engines/networks.hpp"
#include "tests/sim/program/small_layers.hpp"

namespace coterie {
namespace {

// Two nodes of two GPUs, 1 B/ns over a NIC and 2 B/ns over NVLink, no latency. Experts of 1000 B:
// rank 0 sends two to its neighbour, 1000 ns; one of rank 1 goes to the other node, 1000 ns; rank 3
// sends two to rank 0, 2000 ns, which is the whole time.
TEST(MoveTime, IsThatOfTheMostLoadedLink) {
  const Network network(testing::two_tiers(2, 2, 1e9, 2e9));
  const MoveCounts counts =
      count_moves({{0, 0, 0, 1}, {1, 0, 0, 1}, {0, 1, 1, 2}, {0, 2, 3, 0}, {1, 2, 3, 0}}, 4, 2);
  EXPECT_NEAR(move_time_s(network, counts, 4, 1000.0), 2000e-9, 1e-12);
  EXPECT_EQ(move_time_s(network, count_moves({}, 4, 2), 4, 1000.0), 0.0);
  EXPECT_THROW(move_time_s(network, counts, 5, 1000.0), InputError);
}

// Two ranks, each a node, 1 B/ns between them. All 64 tokens choose an expert of the other rank, or
// all one of their own. Experts of 10 MB change places: 10 ms each way
// and two links of 1 us.
class MoveBeside : public ::testing::Test {
 protected:
  MoveBeside() {
    setup_.cluster = testing::small_cluster(2, 1);
    setup_.model = testing::small_model();
    setup_.num_ranks = 2;
    setup_.transport.name = "ideal";
    setup_.tokens_per_rank = 32;
    step_.num_experts = setup_.model.num_experts;
    step_.num_topk = 1;
    setup_.model.num_topk = 1;
    step_.layers = {1};
    step_.sequence_begin = {0, 32, 64};
    before_.num_experts = step_.num_experts;
    before_.num_ranks = 2;
    LayerPlacement layer{1, {{}, {}}};
    for (ExpertIdx e = 0; e < step_.num_experts; ++e) layer.rank_experts[e % 2].push_back(e);
    before_.layers = {layer};
  }
  MoveBesideSteps move(bool remote) {
    step_.experts.assign(64, remote ? 1 : 0);
    std::fill(step_.experts.begin() + 32, step_.experts.end(), remote ? 0 : 1);
    const MoveCounts counts = count_moves({{0, 0, 0, 1}, {0, 1, 1, 0}}, 2, 1);
    return move_beside_steps(setup_, Network(setup_.cluster), step_, before_, counts, 1e7);
  }
  LayerTimesSetup setup_;
  Routing step_;
  Placement before_;
};

// Nothing but weights on the wires: neither waits for the other.
TEST_F(MoveBeside, LocalRowsDelayNothing) {
  const MoveBesideSteps beside = move(false);
  EXPECT_NEAR(beside.moved_s, 10.002e-3, 1e-9);
  EXPECT_NEAR(beside.delay_s, 0.0, 1e-9);
}

// At any time a link in either direction carries weights, alone or at half of the speed beside rows.
// While they share, rows take twice as long and weights lose what rows win: the weights' delay is
// the time that rows would have taken alone, and so is the rows', as both halve. Rows that are sent
// after the weights have arrived cost nothing more.
TEST_F(MoveBeside, SharedLinksDelayBothAlike) {
  const MoveBesideSteps beside = move(true);
  EXPECT_GT(beside.delay_s, 1e-3);
  EXPECT_NEAR(beside.delay_s, beside.moved_s - 10.002e-3, 50e-6);
}

}  // namespace
}  // namespace coterie
