#pragma once
// How token rows lie in memory on their way between ranks: the wire format.
//
// All rows that one rank sends to one other in one stage of a plan (one *transfer*) form one
// contiguous block, so that a transfer is one message:
//
//   section        bytes                        one element
//   values         rows * hidden * 2 (BF16)     row-major [rows][hidden]
//                  rows * hidden     (FP8)
//   copies         copies * 8                   Copy {expert, weight}, rows in order, within a row
//                                               in the order of the token's k experts
//   scales         rows * hidden/128 * 4        FP8 only: float [rows][hidden/128]
//   row words      rows * 4                     where the row's copies begin, and how many
//
// This is exactly what a plan counts: payload, 4 bytes per row and 8 per (token, expert) copy.
// A block starts at a multiple of kBlockAlignment; the padding between blocks is never sent.
//
// Results (combine direction) need no format: they are BF16 [rows][hidden], in the order in which
// the rows came.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#ifdef __CUDACC__
#define COTERIE_HOST_DEVICE __host__ __device__
#else
#define COTERIE_HOST_DEVICE
#endif

namespace coterie::kernels {

enum class RowType : std::uint8_t {
  kBf16,  // hidden must be a multiple of 8
  kFp8,   // e4m3, hidden must be a multiple of 128; value = q * scale of its group of 128
};
inline constexpr std::uint32_t kScaleGroup = 128;
inline constexpr std::uint32_t kMaxTopk = 32;
inline constexpr std::size_t kBlockAlignment = 128;
// In lists of rows that have fewer entries than places, the places behind the last entry.
inline constexpr std::uint32_t kNoRow = 0xffffffffU;

// One (token, expert) pair that a row serves at its destination.
struct Copy {
  std::uint32_t expert;  // as in the routing that the index was built from
  float weight;          // the router's
};
static_assert(sizeof(Copy) == 8);

// Row word: position of the row's first copy within its block (27 bits) and copies - 1 (5 bits).
inline constexpr std::uint32_t kMaxBlockCopies = 1U << 27;
COTERIE_HOST_DEVICE constexpr std::uint32_t row_word(std::uint32_t copy_begin,
                                                     std::uint32_t num_copies) {
  return (copy_begin << 5) | (num_copies - 1);
}
COTERIE_HOST_DEVICE constexpr std::uint32_t word_copy_begin(std::uint32_t word) {
  return word >> 5;
}
COTERIE_HOST_DEVICE constexpr std::uint32_t word_num_copies(std::uint32_t word) {
  return (word & 31U) + 1;
}

// One transfer's block. Tables of blocks number the rows and copies of all their blocks through:
// row_begin and copy_begin are the exclusive prefix sums of num_rows and num_copies.
struct TransferBlock {
  std::byte* data;  // 16-byte aligned device memory; unused where num_rows is 0
  std::uint32_t row_begin;
  std::uint32_t copy_begin;
  std::uint32_t num_rows;
  std::uint32_t num_copies;
};

COTERIE_HOST_DEVICE constexpr std::size_t value_bytes(RowType type, std::uint32_t hidden) {
  return type == RowType::kFp8 ? hidden : std::size_t{2} * hidden;
}
COTERIE_HOST_DEVICE constexpr std::size_t copies_offset(RowType type, std::uint32_t hidden,
                                                        std::uint32_t num_rows) {
  return num_rows * value_bytes(type, hidden);
}
COTERIE_HOST_DEVICE constexpr std::size_t scales_offset(RowType type, std::uint32_t hidden,
                                                        std::uint32_t num_rows,
                                                        std::uint32_t num_copies) {
  return copies_offset(type, hidden, num_rows) + std::size_t{8} * num_copies;
}
COTERIE_HOST_DEVICE constexpr std::size_t words_offset(RowType type, std::uint32_t hidden,
                                                       std::uint32_t num_rows,
                                                       std::uint32_t num_copies) {
  return scales_offset(type, hidden, num_rows, num_copies) +
         (type == RowType::kFp8 ? std::size_t{4} * num_rows * (hidden / kScaleGroup) : 0);
}
// The bytes that cross the wire for a transfer.
COTERIE_HOST_DEVICE constexpr std::size_t block_bytes(RowType type, std::uint32_t hidden,
                                                      std::uint32_t num_rows,
                                                      std::uint32_t num_copies) {
  return words_offset(type, hidden, num_rows, num_copies) + std::size_t{4} * num_rows;
}
// The distance to the next block of the same buffer.
COTERIE_HOST_DEVICE constexpr std::size_t block_stride(RowType type, std::uint32_t hidden,
                                                       std::uint32_t num_rows,
                                                       std::uint32_t num_copies) {
  return (block_bytes(type, hidden, num_rows, num_copies) + kBlockAlignment - 1) / kBlockAlignment *
         kBlockAlignment;
}

struct BlockCounts {
  std::uint32_t num_rows;
  std::uint32_t num_copies;
};
// The table of blocks that lie one after the other in `buffer` (which may be null: the offsets are
// then `data - nullptr`). The index kernels lay out send buffers by the same rule, so a plan's
// counts give the offsets without asking the device.
std::vector<TransferBlock> layout_blocks(std::span<const BlockCounts> counts, RowType type,
                                         std::uint32_t hidden, std::byte* buffer);
// Size of a buffer for these blocks.
std::size_t blocks_bytes(std::span<const BlockCounts> counts, RowType type, std::uint32_t hidden);

// A rank's own rows that were not packed: the values of the rows of one block are still those of its
// tokens, in BF16, whatever the type of the others. Only `expand` reads values there, and makes of them
// what packing and expanding would have; the block holds copies and row words as usual.
struct RowsInPlace {
  const void* tokens = nullptr;             // BF16 [num_tokens][hidden]; null: every block is whole
  const std::uint32_t* row_item = nullptr;  // the token of each of the block's rows
  std::uint32_t block = 0;                  // its number in the table
};

// Rows as a rank received them: one block per transfer (blocks without rows are allowed), in any
// number of buffers, so a rank's own rows may stay where they were packed.
struct ReceivedRows {
  const TransferBlock* blocks;  // device, [num_blocks]
  std::uint32_t num_blocks;
  std::uint32_t num_rows;    // of all blocks
  std::uint32_t num_copies;  // of all blocks
  RowType type;
  std::uint32_t hidden;
  RowsInPlace in_place = {};
};

}  // namespace coterie::kernels
