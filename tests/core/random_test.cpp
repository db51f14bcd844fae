#include "core/random.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

namespace coterie {
namespace {

TEST(Random, SeedsAndStreamsDiffer) {
  std::set<std::uint64_t> first;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (std::uint64_t stream = 0; stream < 20; ++stream) first.insert(Random(seed, stream).bits());
  }
  EXPECT_EQ(first.size(), 400U);
  EXPECT_EQ(Random(7).bits(), Random(7).bits());
}

TEST(Random, IndexIsUniform) {
  // Chi-square with 9 degrees of freedom: 27.9 is the 0.1 percent point. The seed is fixed.
  Random random(1);
  std::array<int, 10> counts{};
  constexpr int kDraws = 100'000;
  for (int i = 0; i < kDraws; ++i) ++counts.at(random.index(10));
  double chi_square = 0.0;
  for (const int count : counts) {
    const double difference = count - kDraws / 10.0;
    chi_square += difference * difference / (kDraws / 10.0);
  }
  EXPECT_LT(chi_square, 27.9);
}

TEST(Random, NormalHasItsMoments) {
  // Standard error of the mean 0.0032, of the variance 0.0045; four of each.
  Random random(2);
  constexpr int kDraws = 100'000;
  double sum = 0.0;
  double squares = 0.0;
  for (int i = 0; i < kDraws; ++i) {
    const double draw = random.normal();
    sum += draw;
    squares += draw * draw;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 0.013);
  EXPECT_NEAR(squares / kDraws, 1.0, 0.018);
}

TEST(Random, ShuffleIsAPermutation) {
  std::vector<int> items(100);
  std::iota(items.begin(), items.end(), 0);
  Random(3).shuffle(std::span<int>(items));
  EXPECT_FALSE(std::is_sorted(items.begin(), items.end()));
  std::sort(items.begin(), items.end());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(items[static_cast<std::size_t>(i)], i);
}

}  // namespace
}  // namespace coterie
