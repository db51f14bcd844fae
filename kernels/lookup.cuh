#pragma once
// Device-side access to transfer blocks, shared by the .cu files of this folder.

#include <cstdint>

#include "kernels/cuda.hpp"
#include "kernels/layout.hpp"

namespace coterie::kernels {

// The last block that begins at or before `row` (`copy`): the one that holds it, because blocks
// without rows begin where their successor does. Every lane searches by itself.
template <class Begin>
__device__ inline std::uint32_t last_beginning_at_or_before(const TransferBlock* blocks,
                                                            std::uint32_t num_blocks,
                                                            std::uint32_t position, Begin begin) {
  std::uint32_t low = 0;
  std::uint32_t high = num_blocks;  // blocks[low] begins at or before, blocks[high] after
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    if (begin(blocks[middle]) <= position) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}
__device__ inline std::uint32_t find_block_of_row(const TransferBlock* blocks,
                                                  std::uint32_t num_blocks, std::uint32_t row) {
  return last_beginning_at_or_before(blocks, num_blocks, row,
                                     [](const TransferBlock& b) { return b.row_begin; });
}
__device__ inline std::uint32_t find_block_of_row(const ReceivedRows& received, std::uint32_t row) {
  return find_block_of_row(received.blocks, received.num_blocks, row);
}
__device__ inline std::uint32_t find_block_of_copy(const ReceivedRows& received,
                                                   std::uint32_t copy) {
  return last_beginning_at_or_before(received.blocks, received.num_blocks, copy,
                                     [](const TransferBlock& b) { return b.copy_begin; });
}

__device__ inline Copy* block_copies(const TransferBlock& block, RowType type,
                                     std::uint32_t hidden) {
  return reinterpret_cast<Copy*>(block.data + copies_offset(type, hidden, block.num_rows));
}
__device__ inline float* block_scales(const TransferBlock& block, RowType type,
                                      std::uint32_t hidden) {
  return reinterpret_cast<float*>(block.data +
                                  scales_offset(type, hidden, block.num_rows, block.num_copies));
}
__device__ inline std::uint32_t* block_words(const TransferBlock& block, RowType type,
                                             std::uint32_t hidden) {
  return reinterpret_cast<std::uint32_t*>(
      block.data + words_offset(type, hidden, block.num_rows, block.num_copies));
}

// Lets a kernel use `bytes` of dynamic shared memory; throws CudaError where the device has less.
inline void allow_shared(const void* kernel, std::size_t bytes) {
  if (bytes <= std::size_t{48} * 1024) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
}

}  // namespace coterie::kernels
