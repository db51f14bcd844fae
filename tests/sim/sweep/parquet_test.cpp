#include "sim/sweep/parquet.hpp"

#include <gtest/gtest.h>

namespace coterie {
namespace {

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    text += kDigits[static_cast<unsigned char>(byte) >> 4];
    text += kDigits[static_cast<unsigned char>(byte) & 15];
  }
  return text;
}

// The bytes of one page, worked out from the format's documents. (That whole files are read by
// others is tested with pyarrow, in notebooks/test_coterie_figures.py.)
TEST(Parquet, APageOfTwoIntegersOneOfThemMissing) {
  const std::string file = parquet_file({{"a", {7, nullptr}}});
  // Content: 4 bytes of length, then the levels 1 (a run of one: varint 1 << 1, level 1) and 0,
  // then 7 in eight bytes: 16 bytes in all.
  const std::string content =
      "04000000"
      "0201"
      "0200"
      "0700000000000000";
  // Header: fields 1 (i32: delta 1, type 5) data page 0; 2 and 3 the sizes, 16 in zigzag is 0x20;
  // 5 (delta 2, struct: type 12) with 1: two values (zigzag 4), 2: PLAIN 0, 3 and 4: RLE 3 (6).
  const std::string header =
      "1500"
      "1520"
      "1520"
      "2c"
      "1504"
      "1500"
      "1506"
      "1506"
      "00"
      "00";
  EXPECT_EQ(hex(file.substr(4, 17 + 16)), header + content);
}

TEST(Parquet, StandsBetweenItsMagicAndTheFootersLength) {
  const std::string file = parquet_file({{"text", {"a", "b"}}, {"flag", {true, nullptr}}});
  EXPECT_EQ(file.substr(0, 4), "PAR1");
  EXPECT_EQ(file.substr(file.size() - 4), "PAR1");
  const auto* tail = reinterpret_cast<const unsigned char*>(file.data() + file.size() - 8);
  const std::size_t length = tail[0] | tail[1] << 8 | tail[2] << 16;
  // The footer begins with field 1 (i32), version 1 in zigzag.
  EXPECT_EQ(hex(file.substr(file.size() - 8 - length, 2)), "1502");
}

TEST(Parquet, BooleansArePackedFromTheLowestBit) {
  // Nine values 1 0 1 0 0 0 0 0 1: the bytes 5 and 1, at the end of the page.
  const std::string file =
      parquet_file({{"b", {true, false, true, false, false, false, false, false, true}}});
  // Levels: one run of nine, 4 + 2 bytes; the page's header is 17 bytes as above.
  EXPECT_EQ(hex(file.substr(4 + 17 + 6, 2)), "0501");
}

}  // namespace
}  // namespace coterie
