// Traffic matrices: readers, writers and what they refuse.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "core/file.hpp"
#include "tests/workloads/plan/plan_samples.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/plan/matrix.hpp"

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;

const PayloadSizes kSizes{Bytes{100}, Bytes{200}};

// The dedup plan of plan_test.cpp: rows of 104 B and 8 B per copy there, 200 B back.
TEST(TrafficMatrix, OfAPlan) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kDedup);
  const TrafficMatrix there = stage_traffic(plan, 0, Direction::kDispatch, kSizes);
  EXPECT_EQ(format_matrix(there),
            "112 120 120 112\n"
            "0 0 0 0\n"
            "112 0 112 112\n"
            "120 112 0 0\n");
  const TrafficMatrix back = stage_traffic(plan, 0, Direction::kCombine, kSizes);
  EXPECT_EQ(format_matrix(back),
            "200 0 200 200\n"
            "200 0 0 200\n"
            "200 0 200 0\n"
            "200 0 200 0\n");
  EXPECT_THROW(stage_traffic(plan, 1, Direction::kDispatch, kSizes), InputError);
}

TEST(TrafficMatrix, HtsimLeavesOutWhatStaysOnItsRank) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kDedup);
  EXPECT_EQ(format_htsim(stage_traffic(plan, 0, Direction::kDispatch, kSizes)),
            "Nodes 4\nConnections 7\n"
            "0->1 id 1 start 0 size 120\n"
            "0->2 id 2 start 0 size 120\n"
            "0->3 id 3 start 0 size 112\n"
            "2->3 id 4 start 0 size 112\n"
            "2->0 id 5 start 0 size 112\n"
            "3->0 id 6 start 0 size 120\n"
            "3->1 id 7 start 0 size 112\n");
}

// Two nodes of two ranks. By hand from the hierarchical known answer of plan_test.cpp: remote are
// 0->2 (two rows, three copies: 232 B), 2->0 (112), 3->1 (one row, three copies: 128), then from
// the relays 0->1 (t1: 120, its parent local), 1->0 (t3: 120, after 3->1), 2->3 (t1: 112, after
// 0->2) and 2->3 (t2: 112, its parent local).
TEST(TrafficMatrix, GoalHoldsTheDependencies) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kHierarchical);
  EXPECT_EQ(format_goal(plan, Direction::kDispatch, kSizes),
            "num_ranks 4\n"
            "\nrank 0 {\n"
            "l1: send 232b to 2 tag 0\n"
            "l2: recv 112b from 2 tag 1\n"
            "l3: send 120b to 1 tag 3\n"
            "l4: recv 120b from 1 tag 4\n"
            "}\n"
            "\nrank 1 {\n"
            "l1: recv 128b from 3 tag 2\n"
            "l2: recv 120b from 0 tag 3\n"
            "l3: send 120b to 0 tag 4\n"
            "l3 requires l1\n"
            "}\n"
            "\nrank 2 {\n"
            "l1: recv 232b from 0 tag 0\n"
            "l2: send 112b to 0 tag 1\n"
            "l3: send 112b to 3 tag 5\n"
            "l3 requires l1\n"
            "l4: send 112b to 3 tag 6\n"
            "}\n"
            "\nrank 3 {\n"
            "l1: send 128b to 1 tag 2\n"
            "l2: recv 112b from 2 tag 5\n"
            "l3: recv 112b from 2 tag 6\n"
            "}\n");
}

// Backwards, 200 B a row: 1->0 (t1) for transfer 0->0; 0->1 (t3) for 3->1; 3->2 (t1) for 0->2; 3->2
// (t2) for 2->2. The relays then answer 2->0 (two rows, after 3->2's t1), 0->2 and 1->3 (after
// 0->1).
TEST(TrafficMatrix, GoalOfTheCombineRunsBackwards) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kHierarchical);
  EXPECT_EQ(format_goal(plan, Direction::kCombine, kSizes),
            "num_ranks 4\n"
            "\nrank 0 {\n"
            "l1: recv 200b from 1 tag 0\n"
            "l2: send 200b to 1 tag 1\n"
            "l3: recv 400b from 2 tag 4\n"
            "l4: send 200b to 2 tag 5\n"
            "}\n"
            "\nrank 1 {\n"
            "l1: send 200b to 0 tag 0\n"
            "l2: recv 200b from 0 tag 1\n"
            "l3: send 200b to 3 tag 6\n"
            "l3 requires l2\n"
            "}\n"
            "\nrank 2 {\n"
            "l1: recv 200b from 3 tag 2\n"
            "l2: recv 200b from 3 tag 3\n"
            "l3: send 400b to 0 tag 4\n"
            "l3 requires l1\n"
            "l4: recv 200b from 0 tag 5\n"
            "}\n"
            "\nrank 3 {\n"
            "l1: send 200b to 2 tag 2\n"
            "l2: send 200b to 2 tag 3\n"
            "l3: recv 200b from 1 tag 6\n"
            "}\n");
}

TEST(TrafficMatrix, MatrixRoundTrip) {
  const std::string text = "5 1 2\n0 0 7\n4 3 0\n";
  const TrafficMatrix traffic = parse_traffic(text, "m", MatrixFormat::kMatrix);
  EXPECT_EQ(traffic.num_ranks, 3u);
  // From each rank itself upwards and around.
  EXPECT_THAT(traffic.entries, ElementsAre(TrafficEntry{0, 0, 5, 0.0}, TrafficEntry{0, 1, 1, 0.0},
                                           TrafficEntry{0, 2, 2, 0.0}, TrafficEntry{1, 2, 7, 0.0},
                                           TrafficEntry{2, 0, 4, 0.0}, TrafficEntry{2, 1, 3, 0.0}));
  EXPECT_EQ(format_matrix(traffic), text);
}

// nccl-tests' alltoallv multiplies every value by 1024 and reads fractions.
TEST(TrafficMatrix, KiBValuesAreExact) {
  TrafficMatrix traffic{2, {{0, 1, 7392, 0.0}, {1, 0, 2048, 0.0}}};
  EXPECT_EQ(format_matrix(traffic, 1024), "0 7.21875\n2 0\n");
}

TEST(TrafficMatrix, HtsimReadsAnyOrderOfKeys) {
  const TrafficMatrix traffic = parse_traffic(
      "Nodes 4\nConnections 2\nTriggers 0\n0->3 id 1 start 2500000 size 10\n2->1 size 20 start 0\n",
      "c", MatrixFormat::kHtsim);
  EXPECT_EQ(traffic.num_ranks, 4u);
  ASSERT_EQ(traffic.entries.size(), 2u);
  EXPECT_EQ(traffic.entries[0].bytes, 10);
  EXPECT_DOUBLE_EQ(traffic.entries[0].start_s, 2.5e-6);  // picoseconds
  EXPECT_EQ(traffic.entries[1], (TrafficEntry{2, 1, 20, 0.0}));
}

class TrafficFile : public FolderTest {};

TEST_F(TrafficFile, TheFormatIsSeenFromTheFirstWord) {
  write_file(folder_ / "a", "# two ranks\n\n0 1\n1 0\n");
  write_file(folder_ / "b", "Nodes 2\nConnections 1\n1->0 id 1 start 0 size 9\n");
  EXPECT_EQ(read_traffic(folder_ / "a").entries.size(), 2u);
  EXPECT_THAT(read_traffic(folder_ / "b").entries, ElementsAre(TrafficEntry{1, 0, 9, 0.0}));
}

struct MalformedText {
  MatrixFormat format;
  std::string text;
  std::string expected;
};
class MalformedTraffic : public ::testing::TestWithParam<MalformedText> {};

TEST_P(MalformedTraffic, IsRefusedWithItsPlace) {
  try {
    parse_traffic(GetParam().text, "t", GetParam().format);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_EQ(error.what(), GetParam().expected);
  }
}

constexpr auto kMatrix = MatrixFormat::kMatrix;
constexpr auto kHtsim = MatrixFormat::kHtsim;
INSTANTIATE_TEST_SUITE_P(
    Table, MalformedTraffic,
    ::testing::Values(
        MalformedText{kMatrix, "", "t: found an empty file, expected a row of bytes per rank"},
        MalformedText{kMatrix, "0 1\n1 x\n",
                      "t:2:3: found \"x\", expected a whole number of bytes up to 2^50"},
        MalformedText{kMatrix, "0 -1\n1 0\n",
                      "t:1:3: found \"-1\", expected a whole number of bytes up to 2^50"},
        MalformedText{kMatrix, "0 1.5\n1 0\n",
                      "t:1:3: found \"1.5\", expected a whole number of bytes up to 2^50"},
        MalformedText{
            kMatrix, "0 99999999999999999999\n1 0\n",
            "t:1:3: found \"99999999999999999999\", expected a whole number of bytes up to "
            "2^50"},
        MalformedText{kMatrix, "0 1\n1\n", "t:2: found 1 value, expected 2, as in the first row"},
        MalformedText{kMatrix, "0 1\n", "t:1: found 1 row, expected 2, as many as columns"},
        MalformedText{
            kMatrix, "0 1\n1 0\n1 1\n",
            "t:3:1: found \"1\", expected the end: the 2 rows of a 2 x 2 matrix stand above"},
        MalformedText{kHtsim, "Knots 4\n",
                      "t:1:1: found \"Knots\", expected \"Nodes n\" with n from 1 to 1048576"},
        MalformedText{kHtsim, "Nodes 0\n",
                      "t:1:7: found \"0\", expected \"Nodes n\" with n from 1 to 1048576"},
        MalformedText{kHtsim, "Nodes 4\n",
                      "t:1: found the end of the file, expected \"Connections m\""},
        MalformedText{kHtsim, "Nodes 4\nConnections 2\n0->1 id 1 start 0 size 4\n",
                      "t:3: found 1 connections, expected 2, as the header says"},
        MalformedText{
            kHtsim, "Nodes 4\nConnections 0\n0->1 id 1 start 0 size 4\n",
            "t:3:1: found \"0->1\", expected the end: the 0 connections of the header stand "
            "above"},
        MalformedText{kHtsim, "Nodes 4\nConnections 1\n0->4 id 1 start 0 size 4\n",
                      "t:3:1: found \"0->4\", expected SRC->DST with ranks below 4"},
        MalformedText{kHtsim, "Nodes 4\nConnections 1\n0-1 id 1 start 0 size 4\n",
                      "t:3:1: found \"0-1\", expected SRC->DST with ranks below 4"},
        MalformedText{kHtsim, "Nodes 4\nConnections 1\n0->1 id 1 start 0 size 0\n",
                      "t:3:24: found \"0\", expected a whole number of bytes from 1 to 2^50"},
        MalformedText{kHtsim, "Nodes 4\nConnections 1\n0->1 id 1 trigger 3 size 4\n",
                      "t:3:11: found \"trigger\", expected id, start or size: triggers are not "
                      "supported"},
        MalformedText{kHtsim, "Nodes 4\nConnections 1\n0->1 id 1 size 4\n",
                      "t:3: found a connection without start, expected \"start PICOSECONDS\""},
        MalformedText{kHtsim, "Nodes 4\nConnections 1\n0->1 id 1 start 0 size\n",
                      "t:3:19: found \"size\", expected a value after it"}));

}  // namespace
}  // namespace coterie::testing
