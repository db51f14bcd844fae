#include "core/csv.hpp"

#include <gmock/gmock.h>

#include "core/error.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;

TEST(Csv, ReadsQuotedCellsAndRefusesDamage) {
  const CsvTable table = parse_csv("a,b\n\"x, \"\"y\"\"\",2.5\r\n\n,\n", "t.csv");
  ASSERT_EQ(table.rows.size(), 2U);
  EXPECT_THAT(table.lines, ElementsAre(2U, 4U));  // line 3 is blank
  EXPECT_EQ(table.text(0, "a"), "x, \"y\"");
  EXPECT_EQ(table.number(0, "b"), 2.5);
  EXPECT_FALSE(table.number(0, "a"));
  EXPECT_FALSE(table.number(1, "b"));
  EXPECT_EQ(table.text(0, "c"), "");
  for (const char* damaged : {"", "\n", "a,a\n1,2\n", "a,b\n1\n", "a\n\"open\n"}) {
    EXPECT_THROW((void)parse_csv(damaged, "t.csv"), InputError) << damaged;
  }
  try {
    (void)parse_csv("a,b\n1,2\n\"x\ny\"\n", "t.csv");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(), "t.csv:3: found 1 cell, expected 2, as many as columns");
  }
}

TEST(Csv, NumbersAreWholeAndFinite) {
  EXPECT_EQ(parse_number("-1.5e3"), -1500.0);
  for (const char* text : {"", " 1", "1x", "inf", "nan", "0x1"}) {
    EXPECT_FALSE(parse_number(text)) << text;
  }
}

// What a spreadsheet would evaluate stands behind an apostrophe; negative numbers are no formulas.
TEST(Csv, FormulasAreDefused) {
  EXPECT_EQ(csv_line({"=1+1", "-2.5", "-x", "@a", "plain"}),
            "\"'=1+1\",-2.5,\"'-x\",\"'@a\",plain\n");
}

TEST(Csv, WhatIsWrittenComesBack) {
  const std::vector<std::string> cells{"a, b",   "\"quoted\"", "two\nlines", "=SUM(A1)", "'=x",
                                       "''+y,z", "it's",       "",           "-1",       "'a,b"};
  std::string text = "c0,c1,c2,c3,c4,c5,c6,c7,c8,c9\n" + csv_line(cells);
  EXPECT_EQ(parse_csv(text, "t.csv").rows.at(0), cells);
  // A lone empty cell is no blank line.
  EXPECT_EQ(parse_csv("a\n" + csv_line({""}), "t.csv").rows.size(), 1U);
}

}  // namespace
}  // namespace coterie
