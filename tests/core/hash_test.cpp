#include "core/hash.hpp"

#include <gtest/gtest.h>

namespace coterie {
namespace {

// The first is the published value of XXH3_64bits for no bytes (xxhsum's sanity table), so that a
// digest written by one build is read by every other one.
TEST(Hash, IsThatOfXxh3) {
  EXPECT_EQ(hex64(content_hash("")), "2d06800538d394c2");
  EXPECT_EQ(content_hash("coterie"), content_hash("coterie"));
  EXPECT_NE(content_hash("a"), content_hash("b"));
  EXPECT_EQ(hex64(255), "00000000000000ff");
}

TEST(Hash, PartsAreToldApart) {
  const auto digest = [](const std::vector<std::string>& parts) {
    ContentHash hash;
    for (const std::string& part : parts) hash.add(part);
    return hash.digest();
  };
  EXPECT_EQ(digest({"ab", "c"}), digest({"ab", "c"}));
  EXPECT_NE(digest({"ab", "c"}), digest({"a", "bc"}));
  EXPECT_NE(digest({"ab", ""}), digest({"ab"}));
}

// Numbers count by their bytes: two 16-bit ones in a row are those of the text beside them.
TEST(Hash, NumbersCountByTheirBytes) {
  const std::vector<std::uint16_t> numbers{0x6261, 0x6463};
  EXPECT_EQ(ContentHash().add(numbers).digest(), ContentHash().add("abcd").digest());
}

}  // namespace
}  // namespace coterie
