// Which rank does what, against Megatron-LM's order written out by hand.

#include "sim/step/parallel.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace coterie {
namespace {

using Groups = std::vector<std::vector<std::uint32_t>>;

// Megatron-LM's own example (parallel_state.py): 16 GPUs, tp 2, pp 4, so dp 2.
TEST(Parallel, FollowsMegatronsExample) {
  const ParallelSizes sizes{.tp = 2, .pp = 4, .dp = 2};
  EXPECT_EQ(groups_of(sizes, GroupKind::kTensor),
            (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}));
  EXPECT_EQ(groups_of(sizes, GroupKind::kPipeline),
            (Groups{{0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15}}));
  EXPECT_EQ(groups_of(sizes, GroupKind::kData),
            (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}, {8, 10}, {9, 11}, {12, 14}, {13, 15}}));
}

// tp 2, cp 2, dp 2 on 8 ranks, ep 4: experts span tensor and context ranks.
TEST(Parallel, ExpertGroupsAreConsecutive) {
  const ParallelSizes sizes{.tp = 2, .cp = 2, .ep = 4, .dp = 2};
  EXPECT_EQ(groups_of(sizes, GroupKind::kContext), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
  EXPECT_EQ(groups_of(sizes, GroupKind::kDataContext), (Groups{{0, 2, 4, 6}, {1, 3, 5, 7}}));
  EXPECT_EQ(groups_of(sizes, GroupKind::kExpert), (Groups{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(groups_of(sizes, GroupKind::kExpertData), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
}

// Property: every rank is in one group of each kind, coordinates and ranks are inverse.
TEST(Parallel, EveryRankIsInOneGroupOfEachKind) {
  const ParallelSizes sizes{.tp = 2, .pp = 3, .cp = 2, .ep = 8, .dp = 6};
  for (std::uint32_t rank = 0; rank < sizes.num_ranks(); ++rank) {
    EXPECT_EQ(rank_of(sizes, coordinates_of(sizes, rank)), rank);
  }
  for (const GroupKind kind :
       {GroupKind::kTensor, GroupKind::kContext, GroupKind::kData, GroupKind::kDataContext,
        GroupKind::kExpert, GroupKind::kExpertData, GroupKind::kPipeline, GroupKind::kEmbedding}) {
    std::vector<std::uint32_t> all;
    for (const auto& group : groups_of(sizes, kind)) {
      EXPECT_TRUE(std::is_sorted(group.begin(), group.end()));
      for (const std::uint32_t rank : group) EXPECT_EQ(group_of(sizes, kind, rank), group);
      all.insert(all.end(), group.begin(), group.end());
    }
    std::sort(all.begin(), all.end());
    std::vector<std::uint32_t> expected(sizes.num_ranks());
    std::iota(expected.begin(), expected.end(), 0U);
    EXPECT_EQ(all, expected);
  }
}

}  // namespace
}  // namespace coterie
