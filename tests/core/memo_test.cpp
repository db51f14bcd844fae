// Results kept by what they were computed from: each once, forgotten in the order of their last use.

#include "core/memo.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace coterie {
namespace {

class MemoTest : public ::testing::Test {
 protected:
  // A value of ten bytes, as far as the memo knows.
  std::string ask(const std::string& key) {
    const auto make = [&] {
      made_ += key;
      return key + "!";
    };
    return *memo_.get(key, make, [](const std::string&) { return std::size_t{10}; });
  }
  Memo memo_{25};
  std::string made_;  // keys in the order in which they were computed
};

TEST_F(MemoTest, ComputesOnce) {
  EXPECT_EQ(ask("a"), "a!");
  EXPECT_EQ(ask("a"), "a!");
  EXPECT_EQ(made_, "a");
  EXPECT_EQ(memo_.num_bytes(), 10U);
}

// Room for two: c takes the place of b, because a was asked for after it.
TEST_F(MemoTest, ForgetsWhatWasNotAskedForLongest) {
  for (const char* key : {"a", "b", "a", "c", "a", "b"})
    EXPECT_EQ(ask(key), key + std::string("!"));
  EXPECT_EQ(made_, "abcb");
  EXPECT_EQ(memo_.num_bytes(), 20U);
}

TEST_F(MemoTest, KeepsNothingTooLargeAndNoFailure) {
  const auto large = [&] {
    made_ += "l";
    return 1;
  };
  const auto too_large = [](int) { return std::size_t{26}; };
  EXPECT_EQ(*memo_.get("l", large, too_large), 1);
  EXPECT_EQ(*memo_.get("l", large, too_large), 1);
  EXPECT_EQ(made_, "ll");
  const auto fails = []() -> int { throw std::runtime_error("no"); };
  EXPECT_THROW(memo_.get("f", fails, too_large), std::runtime_error);
  EXPECT_EQ(memo_.num_bytes(), 0U);
}

// One key, two types: the second is computed and takes the place of the first.
TEST_F(MemoTest, TellsTypesApart) {
  const auto size = [](const auto&) { return std::size_t{1}; };
  EXPECT_EQ(*memo_.get(
                "k", [] { return 1; }, size),
            1);
  EXPECT_EQ(*memo_.get(
                "k", [] { return std::string("x"); }, size),
            "x");
  EXPECT_EQ(memo_.num_bytes(), 1U);
}

TEST(Remember, ComputesWithoutAMemo) {
  const auto size = [](int) { return std::size_t{1}; };
  EXPECT_EQ(*remember(
                nullptr, "k", [] { return 7; }, size),
            7);
}

}  // namespace
}  // namespace coterie
