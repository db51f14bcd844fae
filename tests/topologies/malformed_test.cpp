// Every file in malformed/ says in its first line which sentence it must be refused with; a line
// "# ranks: N" asks for that many ranks. A sentence that ends in "..." is compared up to there.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "core/file.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

constexpr std::string_view kExpect = "# expect: ";
constexpr std::string_view kRanks = "# ranks: ";

std::vector<std::filesystem::path> malformed_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(COTERIE_SOURCE_DIR) / "tests/topologies/malformed")) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

class MalformedCluster : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(MalformedCluster, IsRefusedWithOneSentence) {
  const std::string text = read_file(GetParam());
  ASSERT_TRUE(text.starts_with(kExpect));
  const std::size_t end = text.find('\n');
  const std::string expected = text.substr(kExpect.size(), end - kExpect.size());
  std::optional<std::uint32_t> ranks;
  if (text.compare(end + 1, kRanks.size(), kRanks) == 0) {
    ranks = static_cast<std::uint32_t>(std::stoul(text.substr(end + 1 + kRanks.size())));
  }
  std::string said = "(nothing was thrown)";
  try {
    (void)read_cluster(parse_yaml(text, GetParam().filename().string()), ranks);
  } catch (const InputError& error) {
    said = error.what();
  }
  if (expected.ends_with("...")) {
    EXPECT_EQ(said.substr(0, expected.size() - 3), expected.substr(0, expected.size() - 3));
  } else {
    EXPECT_EQ(said, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, MalformedCluster, testing::ValuesIn(malformed_files()),
                         [](const auto& test) { return test.param.stem().string(); });

}  // namespace
}  // namespace coterie
