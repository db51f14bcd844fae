// The CPU references themselves, without a GPU: what everything on the GPU is measured by must
// stand on published figures and hand counts, not on the code under test.

#include "kernels/reference.hpp"

#include <cuda_fp8.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/random.hpp"
#include "kernels/layout.hpp"

namespace coterie::kernels {
namespace {

using reference::from_e4m3;
using reference::to_e4m3;
using testing::ElementsAre;

// OCP 8-bit Floating Point Specification 1.0, table 1 (E4M3).
TEST(E4m3, SpecifiedValues) {
  EXPECT_EQ(from_e4m3(0x7e), 448.0F);                // largest
  EXPECT_EQ(from_e4m3(0x08), std::ldexp(1.0F, -6));  // smallest normal
  EXPECT_EQ(from_e4m3(0x01), std::ldexp(1.0F, -9));  // smallest subnormal
  EXPECT_EQ(from_e4m3(0x07), 0.875F * std::ldexp(1.0F, -6));
  EXPECT_EQ(from_e4m3(0x38), 1.0F);
  EXPECT_EQ(from_e4m3(0xb8), -1.0F);
  EXPECT_TRUE(std::isnan(from_e4m3(0x7f)));
}

// Between 16 and 32 the values are 2 apart: ties go to the even mantissa.
TEST(E4m3, RoundsTiesToEvenAndSaturates) {
  EXPECT_EQ(from_e4m3(to_e4m3(17.0F)), 16.0F);
  EXPECT_EQ(from_e4m3(to_e4m3(19.0F)), 20.0F);
  EXPECT_EQ(from_e4m3(to_e4m3(17.01F)), 18.0F);
  EXPECT_EQ(from_e4m3(to_e4m3(-1000.0F)), -448.0F);
  EXPECT_EQ(from_e4m3(to_e4m3(std::ldexp(1.0F, -10))), 0.0F);  // half of the smallest: tie to 0
}

// NVIDIA's conversion, an independent implementation that also runs on the host.
TEST(E4m3, AgreesWithCudaOnAllCodesAndRandomValues) {
  for (int code = 0; code < 0x7f; ++code) {
    EXPECT_EQ(to_e4m3(from_e4m3(static_cast<std::uint8_t>(code))), code);
  }
  Random random(7);
  for (int i = 0; i < 100000; ++i) {
    const auto value = static_cast<float>(random.normal() * std::exp2(random.uniform() * 20 - 10));
    ASSERT_EQ(to_e4m3(value), __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)) << value;
  }
}

TEST(Bf16, RoundsToNearestEven) {
  // BF16 has 8 significant bits: 1 + 2^-8 is halfway between 1 and 1 + 2^-7.
  EXPECT_EQ(reference::round_to_bf16(1.0F + std::ldexp(1.0F, -8)), 1.0F);
  EXPECT_EQ(reference::round_to_bf16(1.0F + 3 * std::ldexp(1.0F, -8)), 1.0F + std::ldexp(1.0F, -6));
  Random random(8);
  for (int i = 0; i < 100000; ++i) {
    const auto value = static_cast<float>(random.normal());
    ASSERT_EQ(reference::round_to_bf16(value), __bfloat162float(__float2bfloat16_rn(value)));
  }
}

// E4M3 keeps 4 significant bits: the rounding error of a normal value is at most 2^-4 of it, so is
// the norm's; a group of zeros stays zeros.
TEST(Quantise, ErrorIsWithinHalfAStep) {
  Random random(9);
  std::vector<float> row(384);
  for (std::size_t i = 0; i < 256; ++i) row[i] = static_cast<float>(random.normal());
  const auto quantised = reference::quantise(row);
  ASSERT_EQ(quantised.scales.size(), 3U);
  EXPECT_EQ(quantised.scales[2], 1.0F);
  const double error = reference::relative_error(reference::dequantise(quantised), row);
  EXPECT_GT(error, 1e-3);  // it is a lossy format: an exact copy would be a bug too
  EXPECT_LT(error, 1.0 / 16);
}

TEST(RelativeError, NeverPassesWhatIsNotANumber) {
  const std::vector<float> good = {3.0F, 4.0F};
  EXPECT_NEAR(reference::relative_error(std::vector{3.0F, 4.5F}, good), 0.1, 1e-12);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isinf(reference::relative_error(std::vector{3.0F, nan}, good)));
  EXPECT_TRUE(std::isinf(reference::relative_error(std::vector{3.0F}, good)));
}

// By hand. 2 tokens, 3 experts each; experts 0,1 on destination 0, 2,3 on 1, 4,5 on 2; own is 1, so
// the send order is 1, 2, 0.
//   token 0: experts 4 0 5 -> destination 2 (copies 0, 2), destination 0 (copy 1)
//   token 1: experts 2 1 3 -> destination 1 (copies 0, 2), destination 0 (copy 1)
TEST(SendRows, HandCounted) {
  const std::vector<std::uint16_t> experts = {4, 0, 5, 2, 1, 3};
  const std::vector<float> weights = {0.1F, 0.2F, 0.3F, 0.4F, 0.5F, 0.6F};
  const auto items = reference::token_items(experts, weights, 3);
  const auto sent = reference::send_rows(items, {{0, 0, 1, 1, 2, 2}, 3, 1, false});
  ASSERT_EQ(sent.blocks.size(), 3U);
  ASSERT_EQ(sent.blocks[0].size(), 1U);  // destination 1
  EXPECT_EQ(sent.blocks[0][0].item, 1U);
  EXPECT_EQ(sent.blocks[0][0].mask, 0b101U);
  ASSERT_EQ(sent.blocks[1].size(), 1U);  // destination 2
  EXPECT_EQ(sent.blocks[1][0].item, 0U);
  EXPECT_EQ(sent.blocks[1][0].mask, 0b101U);
  EXPECT_EQ(sent.blocks[1][0].copies[1].weight, 0.3F);
  ASSERT_EQ(sent.blocks[2].size(), 2U);  // destination 0
  EXPECT_EQ(sent.blocks[2][1].item, 1U);
  EXPECT_THAT(sent.item_rows, ElementsAre(1, 2, kNoRow, 0, 3, kNoRow));

  const auto copies = reference::send_rows(items, {{0, 0, 1, 1, 2, 2}, 3, 1, true});
  EXPECT_EQ(copies.blocks[0].size(), 2U);
  EXPECT_THAT(copies.item_rows, ElementsAre(2, 4, 3, 0, 5, 1));
}

// Fan-out under uniform routing, P (1 - C(E - E/P, k) / C(E, k)): E = 64, k = 8 gives 3.66, 5.43
// and 6.75 at 4, 8 and 16 ranks.
TEST(SendRows, UniformFanOutIsHypergeometric) {
  constexpr std::uint32_t kTokens = 20000;
  Random random(10);
  std::vector<std::uint16_t> ids(64);
  for (std::uint16_t e = 0; e < 64; ++e) ids[e] = e;
  std::vector<std::uint16_t> experts;
  for (std::uint32_t t = 0; t < kTokens; ++t) {
    random.shuffle(std::span(ids));
    experts.insert(experts.end(), ids.begin(), ids.begin() + 8);
  }
  const auto items = reference::token_items(experts, std::vector<float>(experts.size()), 8);
  const std::pair<std::uint32_t, double> known[] = {{4, 3.66}, {8, 5.43}, {16, 6.75}};
  for (const auto& [ranks, expected] : known) {
    reference::Targets targets{{}, ranks, 0, false};
    for (std::uint32_t e = 0; e < 64; ++e) {
      targets.expert_dest.push_back(static_cast<std::uint16_t>(e * ranks / 64));
    }
    std::size_t rows = 0;
    for (const auto& block : reference::send_rows(items, targets).blocks) rows += block.size();
    EXPECT_NEAR(static_cast<double>(rows) / kTokens, expected, 0.02);
  }
}

TEST(ReceiveSlots, HandCounted) {
  const std::vector<Copy> copies = {{7, 0.0F}, {5, 0.0F}, {7, 0.0F}, {6, 0.0F}, {5, 0.0F}};
  const std::vector<std::uint16_t> local = {9, 9, 9, 9, 9, 0, 1, 2};
  const auto slots = reference::receive_slots(copies, local, 4);
  EXPECT_THAT(slots.copy_slot, ElementsAre(3, 0, 4, 2, 1));
  EXPECT_THAT(slots.slot_copy, ElementsAre(1, 4, 3, 0, 2));
  EXPECT_THAT(slots.expert_begin, ElementsAre(0, 2, 3, 5, 5));
}

// Known answers: FP8 at hidden 7168 is 7392 B of payload per row, metadata is 4 B per row and 8 B
// per copy; BF16 is 2 B per value.
TEST(Layout, BytesAreWhatAPlanCounts) {
  EXPECT_EQ(block_bytes(RowType::kFp8, 7168, 1, 1), 7392U + 4 + 8);
  EXPECT_EQ(block_bytes(RowType::kFp8, 7168, 10, 23), 10 * (7392U + 4) + 23 * 8);
  EXPECT_EQ(block_bytes(RowType::kBf16, 2048, 3, 5), 3 * (4096U + 4) + 5 * 8);
  EXPECT_EQ(block_stride(RowType::kBf16, 2048, 0, 0), 0U);
  EXPECT_EQ(block_stride(RowType::kBf16, 2048, 1, 1) % kBlockAlignment, 0U);
}

TEST(Layout, BlocksAreNumberedThrough) {
  const std::vector<BlockCounts> counts = {{2, 3}, {0, 0}, {1, 1}};
  const auto blocks = layout_blocks(counts, RowType::kBf16, 64, nullptr);
  // 2 rows of 128 B + 3 copies of 8 B + 2 words of 4 B = 288 B, to the next multiple of 128.
  EXPECT_EQ(blocks[2].data - blocks[0].data, 384);
  EXPECT_EQ(blocks[1].data, blocks[2].data);
  EXPECT_EQ(blocks[2].row_begin, 2U);
  EXPECT_EQ(blocks[2].copy_begin, 3U);
  EXPECT_EQ(blocks_bytes(counts, RowType::kBf16, 64), 384U + 256);  // 128 + 8 + 4 -> 256
  EXPECT_THROW(layout_blocks(std::vector<BlockCounts>{{2, 1}}, RowType::kBf16, 64, nullptr),
               std::invalid_argument);
}

TEST(Layout, RowWordsHoldTheirLimits) {
  const std::uint32_t word = row_word(kMaxBlockCopies - 32, 32);
  EXPECT_EQ(word_copy_begin(word), kMaxBlockCopies - 32);
  EXPECT_EQ(word_num_copies(word), 32U);
}

}  // namespace
}  // namespace coterie::kernels
