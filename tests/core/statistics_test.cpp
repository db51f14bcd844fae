#include "core/statistics.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

namespace coterie {
namespace {

// By hand: sorted 1 2 3 4; the positions of the quantiles 0, 0.1, 0.5 and 1 are 0, 0.3, 1.5 and 3.
TEST(Statistics, QuantilesInterpolateBetweenNeighbours) {
  const std::vector<double> values{4.0, 1.0, 3.0, 2.0};
  EXPECT_EQ(quantile(values, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(quantile(values, 0.1), 1.3);
  EXPECT_DOUBLE_EQ(median(values), 2.5);
  EXPECT_EQ(quantile(values, 1.0), 4.0);
  EXPECT_EQ(median({3.0, 1.0, 2.0}), 2.0);
  EXPECT_EQ(median({7.0}), 7.0);
  EXPECT_DOUBLE_EQ(mean(values), 2.5);
}

// 2 and 3 are equally near to 2.5: the lower one, which stands at position 3. The median of three is
// a value itself, and the first of two equal ones counts.
TEST(Statistics, AMemberStandsForTheSample) {
  EXPECT_EQ(median_position({4.0, 1.0, 3.0, 2.0}), 3U);
  EXPECT_EQ(median_position({5.0, 2.0, 2.0}), 1U);
}

// Sorted 1 2 3 4 5: the quantiles 0.1 and 0.9 stand at positions 0.4 and 3.6, so at 1.4 and 4.6;
// half their distance is 1.6, the median 3.
TEST(Statistics, SpreadIsHalfOfTheCentralEightyPercent) {
  EXPECT_DOUBLE_EQ(relative_spread({5.0, 1.0, 2.0, 4.0, 3.0}), 1.6 / 3.0);
  EXPECT_EQ(relative_spread({2.0}), 0.0);
  EXPECT_EQ(relative_spread({0.0, 0.0}), 0.0);
}

TEST(Statistics, OfNothingIsMisuse) {
  EXPECT_THROW((void)median({}), std::invalid_argument);
  EXPECT_THROW((void)mean({}), std::invalid_argument);
  EXPECT_THROW((void)median_position({}), std::invalid_argument);
  EXPECT_THROW((void)quantile({1.0}, 1.5), std::invalid_argument);
}

}  // namespace
}  // namespace coterie
