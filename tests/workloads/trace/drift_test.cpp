// Experts that exchange their roles.

#include "workloads/trace/drift.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "workloads/trace/balanced.hpp"

namespace coterie {
namespace {

using ::testing::UnorderedElementsAreArray;

std::vector<ExpertIdx> identity(std::uint32_t num_experts) {
  std::vector<ExpertIdx> out(num_experts);
  std::iota(out.begin(), out.end(), ExpertIdx{0});
  return out;
}

// One exchange of a quarter of 64 experts changes exactly 16 roles and permutes them; none and one
// expert change nothing; all change where all are drawn.
TEST(Drift, ExchangesAsManyRolesAsItSays) {
  const auto changed = [](double share, std::uint32_t num_exchanges) {
    const std::vector<ExpertIdx> roles = drifted_roles(64, 5, share, num_exchanges, 3);
    EXPECT_THAT(roles, UnorderedElementsAreArray(identity(64)));
    std::size_t count = 0;
    for (std::size_t i = 0; i < roles.size(); ++i) count += roles[i] != i ? 1 : 0;
    return count;
  };
  EXPECT_EQ(changed(0.25, 0), 0U);
  EXPECT_EQ(changed(0.0, 7), 0U);
  EXPECT_EQ(changed(1.0 / 64.0, 7), 0U);
  EXPECT_EQ(changed(0.25, 1), 16U);
  EXPECT_EQ(changed(1.0, 1), 64U);
  EXPECT_GT(changed(0.25, 3), 16U);
}

TEST(Drift, DiffersByLayerAndSeedAndIsSeeded) {
  const auto roles = drifted_roles(64, 5, 0.5, 2, 3);
  EXPECT_EQ(roles, drifted_roles(64, 5, 0.5, 2, 3));
  EXPECT_NE(roles, drifted_roles(64, 6, 0.5, 2, 3));
  EXPECT_NE(roles, drifted_roles(64, 5, 0.5, 2, 4));
}

// A trace keeps its tokens: expert e's become those of roles[e], and it stays sound.
TEST(Drift, RenamesTheExpertsOfATrace) {
  const Routing before = balanced_routing({16, 4, 2, 3, 40, 1});
  const Routing after = drifted(before, 0.5, 1, 9);
  const std::vector<ExpertIdx> roles = drifted_roles(16, 2, 0.5, 1, 9);
  ASSERT_EQ(after.experts.size(), before.experts.size());
  for (std::size_t i = 0; i < before.experts.size(); ++i) {
    EXPECT_EQ(after.experts[i], roles[before.experts[i]]);
  }
  EXPECT_TRUE(check(after).empty());
  EXPECT_EQ(after.sequence_begin, before.sequence_begin);
}

}  // namespace
}  // namespace coterie
