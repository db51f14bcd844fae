// The npz importer on recorded traces (workloads/REPRODUCING.md); skipped where they are missing.

#include <gtest/gtest.h>

#include "tests/workloads/trace/sample.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie {
namespace {

const std::filesystem::path kTraces = std::filesystem::path(COTERIE_DATA) / "traces";

Routing import_one(const std::filesystem::path& path) {
  const std::vector<std::filesystem::path> inputs{path};
  return std::get<Routing>(import_traces(inputs, "npz", {}).trace);
}

// Token counts and shapes: those of the recordings (workloads/REPRODUCING.md).
TEST(NpzImporter, ReadsTheDeepSeekTraces) {
  const auto path = kTraces / "deepseek-v2-lite-esft" / "law.npz";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const Routing routing = import_one(path);
  EXPECT_EQ(routing.num_tokens(), 8327U);
  EXPECT_EQ(routing.num_layers(), 26U);
  EXPECT_EQ(routing.layers.front(), 1U);
  EXPECT_EQ(routing.num_experts, 64U);
  EXPECT_EQ(routing.num_topk, 6U);
  EXPECT_EQ(routing.weights.size(), routing.experts.size());
  EXPECT_EQ(routing.origin, "law.npz");
  // Router weights are softmax probabilities in descending order of the experts.
  for (std::size_t row = 0; row < routing.weights.size(); row += 6) {
    float sum = 0.0F;
    for (std::size_t i = 0; i < 6; ++i) sum += routing.weights[row + i];
    ASSERT_LE(sum, 1.0001F);
    ASSERT_GT(sum, 0.0F);
  }
}

TEST(NpzImporter, ReadsTheGptOssTrace) {
  const auto path = kTraces / "gpt-oss-20b" / "decode.npz";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const Routing routing = import_one(path);
  EXPECT_EQ(routing.num_tokens(), 56526U);
  EXPECT_EQ(routing.num_layers(), 24U);
  EXPECT_EQ(routing.num_experts, 32U);
  EXPECT_EQ(routing.num_topk, 4U);
}

}  // namespace
}  // namespace coterie
