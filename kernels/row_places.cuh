#pragma once
// Where the rows of an item lie in the blocks, as the kernels of rows.cu look it up.

#include "kernels/layout.hpp"
#include "kernels/lookup.cuh"
#include "kernels/values.cuh"

namespace coterie::kernels {

// What a kernel that writes rows is given of the send index.
struct SendRows {
  const std::uint32_t* item_rows;
  const TransferBlock* blocks;
  std::uint32_t num_blocks;
};

struct RowPlace {
  std::byte* values;
  float* scales;
};
__device__ inline RowPlace place_of(const TransferBlock& block, RowType type, std::uint32_t hidden,
                                    std::uint32_t row) {
  const std::uint32_t local = row - block.row_begin;
  return {block.data + local * value_bytes(type, hidden),
          block_scales(block, type, hidden) + std::size_t{local} * (hidden / kScaleGroup)};
}

__device__ inline TransferBlock block_of_row(const ReceivedRows& received, std::uint32_t row) {
  return received.blocks[find_block_uniform(received.num_blocks, row, RowBegins{received.blocks})];
}

// The places of an item's rows, one per lane; returns how many.
__device__ inline unsigned row_places(const std::uint32_t* list, std::uint32_t length,
                                      const TransferBlock* blocks, std::uint32_t num_blocks,
                                      RowType type, std::uint32_t hidden, RowPlace& place) {
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t row = lane < length ? list[lane] : kNoRow;
  const std::uint32_t b = find_block(num_blocks, row, RowBegins{blocks});
  if (row != kNoRow) place = place_of(blocks[b], type, hidden, row);
  return static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, row != kNoRow)));
}
__device__ inline std::byte* values_of(const RowPlace& place, unsigned lane) {
  return reinterpret_cast<std::byte*>(
      __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(place.values), lane));
}
__device__ inline float* scales_of(const RowPlace& place, unsigned lane) {
  return reinterpret_cast<float*>(
      __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(place.scales), lane));
}

}  // namespace coterie::kernels
