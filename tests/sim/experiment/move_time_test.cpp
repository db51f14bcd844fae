// Times of moving experts, counted by hand.

#include "sim/experiment/move_time.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/sim/engines/networks.hpp"

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

}  // namespace
}  // namespace coterie
