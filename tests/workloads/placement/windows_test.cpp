// Traces cut into windows, steps and samples, by hand.

#include "workloads/placement/windows.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "core/error.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

// Top-1 of 100 experts in two layers; token t chooses expert first + t, in the second layer 50 more.
Routing counting_routing(std::vector<std::uint64_t> sequence_begin, ExpertIdx first = 0) {
  Routing routing;
  routing.origin = "counting";
  routing.num_experts = 100;
  routing.num_topk = 1;
  routing.layers = {1, 2};
  routing.sequence_begin = std::move(sequence_begin);
  for (const int offset : {0, 50}) {
    for (std::uint64_t t = 0; t < routing.num_tokens(); ++t) {
      routing.experts.push_back(static_cast<ExpertIdx>(first + t + offset));
    }
  }
  return routing;
}

TEST(Windows, AreWholeSequencesAndTheRestBelongsToTheLast) {
  // Lengths 3, 4, 1, 5, 2: at least 5 tokens make {3, 4}, {1, 5} and the rest of 2.
  const Routing routing = counting_routing({0, 3, 7, 8, 13, 15});
  EXPECT_THAT(sequence_windows(routing, 5), ElementsAre(Pair(0, 2), Pair(2, 5)));
  EXPECT_THAT(sequence_windows(routing, 15), ElementsAre(Pair(0, 5)));
  EXPECT_THROW(sequence_windows(routing, 16), InputError);
}

TEST(Windows, StepsTakeTokensInOrder) {
  const std::vector<Routing> steps = steps_of(counting_routing({0, 3, 9, 11}), 2, 2);
  ASSERT_EQ(steps.size(), 2u);  // 8 of 11 tokens
  EXPECT_THAT(steps[1].sequence_begin, ElementsAre(0, 2, 4));
  EXPECT_THAT(steps[1].experts, ElementsAre(4, 5, 6, 7, 54, 55, 56, 57));
}

TEST(Windows, TracesFollowEachOtherLayerByLayer) {
  const Routing all =
      concatenate(std::vector{counting_routing({0, 1, 2}), counting_routing({0, 1}, 20)});
  EXPECT_THAT(all.sequence_begin, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(all.experts, ElementsAre(0, 1, 20, 50, 51, 70));
  Routing other = counting_routing({0, 1});
  other.layers = {1, 3};
  EXPECT_THROW(concatenate(std::vector{counting_routing({0, 1}), other}), InputError);
}

TEST(Windows, DrawsEveryTokenOnce) {
  const Routing routing = counting_routing({0, 3, 7, 8, 13, 15});
  const Routing all = draw_tokens(routing, 15, 1);
  EXPECT_EQ(std::set<ExpertIdx>(all.experts.begin(), all.experts.end()).size(), 30u);
  const Routing some = draw_tokens(routing, 6, 1);
  EXPECT_EQ(some.num_tokens(), 6u);
  EXPECT_EQ(std::set<ExpertIdx>(some.experts.begin(), some.experts.end()).size(), 12u);
  EXPECT_EQ(some.experts, draw_tokens(routing, 6, 1).experts);
  EXPECT_NE(draw_tokens(routing, 15, 2).experts, all.experts);
}

}  // namespace
}  // namespace coterie
