#include "kernels/layout.hpp"

#include <stdexcept>

namespace coterie::kernels {

std::vector<TransferBlock> layout_blocks(std::span<const BlockCounts> counts, RowType type,
                                         std::uint32_t hidden, std::byte* buffer) {
  std::vector<TransferBlock> blocks;
  blocks.reserve(counts.size());
  // Integer arithmetic, because a null buffer is allowed.
  auto address = reinterpret_cast<std::uintptr_t>(buffer);
  std::uint32_t row_begin = 0;
  std::uint32_t copy_begin = 0;
  for (const auto [num_rows, num_copies] : counts) {
    if (num_copies < num_rows || num_copies > kMaxBlockCopies) {
      throw std::invalid_argument(
          "layout_blocks: a block needs at least one copy per row and at "
          "most 2^27 copies");
    }
    blocks.push_back(
        {reinterpret_cast<std::byte*>(address), row_begin, copy_begin, num_rows, num_copies});
    row_begin += num_rows;
    copy_begin += num_copies;
    address += block_stride(type, hidden, num_rows, num_copies);
  }
  return blocks;
}

std::size_t blocks_bytes(std::span<const BlockCounts> counts, RowType type, std::uint32_t hidden) {
  std::size_t bytes = 0;
  for (const auto [num_rows, num_copies] : counts) {
    bytes += block_stride(type, hidden, num_rows, num_copies);
  }
  return bytes;
}

}  // namespace coterie::kernels
