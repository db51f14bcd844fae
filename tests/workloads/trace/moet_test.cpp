// The trace format: what is written is read back, and whatever is damaged is refused with its
// position.

#include "workloads/trace/moet.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/workloads/trace/sample.hpp"

namespace coterie {
namespace {

using testing::expect_equal;
using testing::random_routing;

class MoetTest : public testing::FolderTest {};

TEST_F(MoetTest, ReadsBackWhatWasWritten) {
  // One and two bytes per id, with and without weights, one and several chunks (a chunk holds about
  // 1 MiB: 60,000 tokens of 4 layers x top-8 with weights are 9.6 MB).
  for (const Routing& routing :
       {random_routing(8, 2, {0}, {1}, false), random_routing(64, 6, {1, 3, 4}, {5, 1, 7}, true),
        random_routing(256, 8, {3, 4, 5, 6}, {1, 40000, 20000}, true),
        random_routing(384, 8, {1, 2}, {30000, 3}, false)}) {
    write_moet(folder_ / "x.moet", routing);
    expect_equal(read_routing(folder_ / "x.moet"), routing);
  }
}

TEST_F(MoetTest, CountsReadBack) {
  ExpertCounts counts{"m", "o", 3, 0, {3, 5}, {1, 2, 3, 4, 5, 1ULL << 40}};
  write_moet(folder_ / "c.moet", counts);
  const Trace trace = read_moet(folder_ / "c.moet");
  const auto& back = std::get<ExpertCounts>(trace);
  EXPECT_EQ(back.layers, counts.layers);
  EXPECT_EQ(back.counts, counts.counts);
  EXPECT_EQ(back.num_experts, 3U);
  EXPECT_THROW(read_routing(folder_ / "c.moet"), InputError);
}

TEST_F(MoetTest, EqualTracesAreEqualBytes) {
  const Routing routing = random_routing(64, 6, {1, 2}, {100, 50}, true);
  write_moet(folder_ / "a.moet", routing);
  write_moet(folder_ / "b.moet", routing);
  EXPECT_EQ(read_file(folder_ / "a.moet"), read_file(folder_ / "b.moet"));
}

// Every proper prefix and every flipped byte is noticed: CRC-32 finds any change within 32 bits.
TEST_F(MoetTest, EveryTruncationAndEveryFlippedByteIsRefused) {
  write_moet(folder_ / "x.moet", random_routing(16, 2, {0, 1}, {3, 4}, true));
  const std::string whole = read_file(folder_ / "x.moet");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_file(folder_ / "t.moet", whole.substr(0, size));
    EXPECT_THROW(read_moet(folder_ / "t.moet"), InputError) << "cut to " << size;
  }
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    write_file(folder_ / "d.moet", damaged);
    EXPECT_THROW(read_moet(folder_ / "d.moet"), InputError) << "byte " << at;
  }
}

TEST_F(MoetTest, RefusesToWriteAnUnsoundTrace) {
  Routing routing = random_routing(16, 2, {0}, {3}, false);
  routing.experts[1] = routing.experts[0];
  EXPECT_THROW(write_moet(folder_ / "x.moet", routing), InputError);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.moet"));
}

TEST(Check, NamesEveryViolation) {
  Routing routing = random_routing(70, 2, {4, 5}, {2, 1}, true);
  EXPECT_TRUE(check(routing).empty());
  routing.experts[0] = 70;                    // layer 4, token 0
  routing.experts[11] = routing.experts[10];  // layer 5, token 2
  routing.weights[3] = std::numeric_limits<float>::infinity();
  routing.layers = {5, 5};
  EXPECT_THAT(check(routing),
              ::testing::ElementsAre(
                  "found layer 5 after layer 5, expected ascending layer numbers",
                  "layer 5, token 0: found expert 70, expected an id below 70",
                  ::testing::MatchesRegex(
                      "layer 5, token 2: found expert [0-9]+ twice, expected distinct experts"),
                  "router weight 3 is inf, expected a finite number"));
}

TEST(Select, EvenAndOddSequencesPartitionTheTokens) {
  const Routing all = random_routing(16, 2, {0, 7}, {3, 1, 4, 2, 5}, true);
  const Routing even = select(all, SequencePart::kEven);
  const Routing odd = select(all, SequencePart::kOdd);
  EXPECT_EQ(even.sequence_begin, (std::vector<std::uint64_t>{0, 3, 7, 12}));
  EXPECT_EQ(odd.sequence_begin, (std::vector<std::uint64_t>{0, 1, 3}));
  EXPECT_TRUE(check(even).empty());
  // Token 3 of the trace is the odd part's first; layer 1 of the odd part begins after 3 tokens.
  EXPECT_EQ(odd.layer_experts(1)[0], all.layer_experts(1)[3 * 2]);
  EXPECT_EQ(odd.layer_weights(1)[1], all.layer_weights(1)[3 * 2 + 1]);
  EXPECT_EQ(even.layer_experts(1)[3 * 2], all.layer_experts(1)[4 * 2]);
  expect_equal(select(all, SequencePart::kAll), all);
}

TEST(Select, LayersByPosition) {
  const Routing all = random_routing(16, 2, {0, 7, 9}, {3, 1}, true);
  const std::vector<std::size_t> wanted{2, 0};
  const Routing some = select_layers(all, wanted);
  EXPECT_EQ(some.layers, (std::vector<std::uint32_t>{9, 0}));
  EXPECT_TRUE(std::ranges::equal(some.layer_experts(0), all.layer_experts(2)));
  EXPECT_TRUE(std::ranges::equal(some.layer_weights(1), all.layer_weights(0)));
}

}  // namespace
}  // namespace coterie
