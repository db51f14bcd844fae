// Tables and numbers of stdout: counted by hand.

#include "core/table.hpp"

#include <gtest/gtest.h>

#include "core/counted.hpp"

namespace coterie {
namespace {

const Table kTable{{"run", "time", "fan-out"}, {{"standard", "1 ms", "4.5"}, {"x", "12 ms", "1"}}};

TEST(Counted, HasOneThingInTheSingular) {
  EXPECT_EQ(counted(0, "token"), "0 tokens");
  EXPECT_EQ(counted(1U, "token"), "1 token");
  EXPECT_EQ(counted(std::uint64_t{2}, "token"), "2 tokens");
}

TEST(Table, AlignsWordsLeftAndNumbersRight) {
  EXPECT_EQ(render(kTable),
            "run        time  fan-out\n"
            "--------  -----  -------\n"
            "standard   1 ms      4.5\n"
            "x         12 ms        1\n");
}

// 8 + 2 + 5 + 2 + 7 = 24 characters: one less, and the last column goes to a block of its own, which
// the first one leads.
TEST(Table, FoldsWhereItIsTooWide) {
  EXPECT_EQ(render(kTable, 24), render(kTable));
  EXPECT_EQ(render(kTable, 23),
            "run        time\n"
            "--------  -----\n"
            "standard   1 ms\n"
            "x         12 ms\n"
            "\n"
            "run       fan-out\n"
            "--------  -------\n"
            "standard      4.5\n"
            "x               1\n");
}

// The words get 100 - 4 - 2 characters, of which 29 are used; where 26 are allowed, 26 - 6 = 20 are left,
// which hold four words of four with their spaces (19). A number is never broken.
TEST(Table, BreaksWordsThatDoNotFit) {
  const Table table{
      {"name", "text"}, {{"a", "aaaa bbbb cccc dddd eeee ffff"}, {"b", "gggg"}}, {0, 1}};
  EXPECT_EQ(render(table),
            "name  text\n"
            "----  -----------------------------\n"
            "a     aaaa bbbb cccc dddd eeee ffff\n"
            "b     gggg\n");
  EXPECT_EQ(render(table, 26),
            "name  text\n"
            "----  -------------------\n"
            "a     aaaa bbbb cccc dddd\n"
            "      eeee ffff\n"
            "b     gggg\n");
}

TEST(Table, KeepsAColumnThatIsWiderThanAllowed) {
  const Table wide{{"a", "b"}, {{"1", "a long cell"}}};
  EXPECT_EQ(render(wide, 4), render(wide));
}

TEST(Table, CountsCodePointsAndHoldsOneColumn) {
  const Table table{{"\u00b5s"}, {{"1"}}};
  EXPECT_EQ(render(table), "\u00b5s\n--\n1\n");
}

}  // namespace
}  // namespace coterie
