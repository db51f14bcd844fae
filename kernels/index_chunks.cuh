#pragma once
// What the builders of the send and the receive index have in common.
//
// Both builders sort stably by a small key in two kernels over the same chunks of the input:
//
//   count   counts[key][chunk]
//   place   position = sum of all smaller keys + sum of the key's earlier chunks + rank in the
//           chunk
//
// `place` sums the counts itself (every chunk reads all of them from L2; there are few), which
// costs less than a third kernel. Ranks within a chunk come from bit masks, so that no order of
// atomics matters: OR and integer + have none.

#include <cstdint>
#include <stdexcept>

#include "kernels/layout.hpp"

namespace coterie::kernels {

// A chunk of the send index: items, one per thread of a block.
inline constexpr unsigned kItems = 128;
// A chunk of the receive index: copies, likewise.
inline constexpr unsigned kCopies = 512;

inline void check_rows(RowType type, std::uint32_t hidden) {
  const std::uint32_t unit = type == RowType::kFp8 ? kScaleGroup : 8;
  if (hidden == 0 || hidden % unit != 0) {
    throw std::invalid_argument(
        "build index: hidden must be a positive multiple of 8, of 128 for FP8");
  }
}

}  // namespace coterie::kernels
