#include <algorithm>
#include <stdexcept>

#include "kernels/lookup.cuh"
#include "kernels/row_places.cuh"
#include "kernels/rows.hpp"
#include "kernels/values.cuh"

// All kernels here: one block per row or item, grid = number of rows or items. The hardware's
// scheduler then evens out tokens with many and with few destinations, which fixed shares of a
// persistent grid do not (measured on an H200: 5 to 10 percent slower). Block sizes are the
// measured best: those that mostly write (pack, forward) do best with one 16-byte vector per
// thread, so that a row is written in one sweep; those that mostly read with several vectors in
// flight per thread. But for the scales of pack_fp8 nobody synchronises or uses shared memory: a warp
// only talks to itself.

namespace coterie::kernels {
namespace {

constexpr unsigned kMaxThreads = 1024;

// First statement of every kernel: with programmatic dependent launch (lookup.cuh) its blocks are
// in place when the kernel before it ends.
__device__ inline void begin_kernel() {
  wait_for_previous_launch();
  start_dependent_launch();
}

// Writes a row's vectors to all its places; `v` is this thread's first. All threads call it.
__device__ inline void store_rows(const uint4* input, std::uint32_t num_vectors, uint4 v,
                                  unsigned num_rows, const RowPlace& place) {
  for (std::uint32_t first = 0; first < num_vectors; first += blockDim.x) {
    const std::uint32_t i = first + threadIdx.x;
    if (first > 0 && i < num_vectors) v = load_once(input + i);
    for (unsigned r = 0; r < num_rows; ++r) {
      auto* output = reinterpret_cast<uint4*>(values_of(place, r));
      if (i < num_vectors) store_once(output + i, v);
    }
  }
}

// --- pack and forward ---------------------------------------------------------------------------

// values[row] = x[token], BF16. Grid: one block per token; block: pass_threads(hidden / 8).
__global__ void __launch_bounds__(kMaxThreads)
    pack_bf16(const Bf16* tokens, std::uint32_t num_topk, std::uint32_t hidden, SendRows rows) {
  begin_kernel();
  const std::uint32_t num_vectors = hidden / 8;
  const auto* input =
      reinterpret_cast<const uint4*>(tokens) + std::size_t{blockIdx.x} * num_vectors;
  uint4 v{};
  if (threadIdx.x < num_vectors) v = load_once(input + threadIdx.x);
  RowPlace place{};
  const unsigned num_rows =
      row_places(rows.item_rows + std::size_t{blockIdx.x} * num_topk, num_topk, rows.blocks,
                 rows.num_blocks, RowType::kBf16, hidden, place);
  store_rows(input, num_vectors, v, num_rows, place);
}

// scale[row][g] = max |x[token][g*128 .. +127]| / 448 (1 where that maximum is below 2^-100),
// values[row][i] = e4m3(x[token][i] * (1 / scale[row][i/128])). A thread holds 16 values, so a group
// is 8 lanes. Grid: one block per token; block: pass_threads(hidden / 16).
__global__ void __launch_bounds__(kMaxThreads)
    pack_fp8(const Bf16* tokens, std::uint32_t num_topk, std::uint32_t hidden, SendRows rows) {
  __shared__ float scales_of_pass[kMaxThreads / 8];
  begin_kernel();
  const std::uint32_t num_vectors = hidden / 16;  // of output
  const auto* input =
      reinterpret_cast<const uint4*>(tokens) + std::size_t{blockIdx.x} * (hidden / 8);
  RowPlace place{};
  unsigned num_rows = 0;
  for (std::uint32_t first = 0; first < num_vectors; first += blockDim.x) {
    const std::uint32_t i = first + threadIdx.x;
    uint4 v[2] = {};
    if (i < num_vectors) {
      // Both loads have their sectors in common: they may stay in L1.
      v[0] = __ldg(input + 2 * i);
      v[1] = __ldg(input + 2 * i + 1);
    }
    if (first == 0) {
      num_rows = row_places(rows.item_rows + std::size_t{blockIdx.x} * num_topk, num_topk,
                            rows.blocks, rows.num_blocks, RowType::kFp8, hidden, place);
    }
    // The largest magnitude of the group, in both halves of the word.
    std::uint32_t both = largest_of(v[0], v[1]);
#pragma unroll
    for (unsigned step = 1; step < 8; step *= 2) {
      both = larger(both, __shfl_xor_sync(kAllLanes, both, step));
    }
    const float scale = scale_of(unpack(both & 0x7fff7fffU).x);
    const float reciprocal = reciprocal_of(scale);
    float x[2][8];
    unpack8(v[0], x[0]);
    unpack8(v[1], x[1]);
    std::uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float* four = &x[w / 2][4 * (w % 2)];
      words[w] = quantise4(four[0] * reciprocal, four[1] * reciprocal, four[2] * reciprocal,
                           four[3] * reciprocal);
    }
    for (unsigned r = 0; r < num_rows; ++r) {
      auto* output = reinterpret_cast<uint4*>(values_of(place, r));
      if (i < num_vectors) {
        store_once(output + i, make_uint4(words[0], words[1], words[2], words[3]));
      }
    }
    // Scales by whole rows: four at a time, as a warp has them, would be half sectors, which cost
    // memory a read.
    if (threadIdx.x % 8 == 0) scales_of_pass[threadIdx.x / 8] = scale;
    __syncthreads();
    const std::uint32_t num_scales = min(blockDim.x, num_vectors - first) / 8;
    for (unsigned r = threadIdx.x / 32; r < num_rows; r += blockDim.x / 32) {
      float* scales = scales_of(place, r) + first / 8;
      for (std::uint32_t g = threadIdx.x % 32; g < num_scales; g += 32) {
        scales[g] = scales_of_pass[g];
      }
    }
    if (first + blockDim.x < num_vectors) __syncthreads();
  }
}

// values and scales of the rows made from a received row = its own. Grid: one block per item.
__global__ void __launch_bounds__(kMaxThreads) forward_rows(ReceivedRows received, SendRows rows) {
  begin_kernel();
  const std::uint32_t item = blockIdx.x;
  const TransferBlock block = block_of_row(received, item);
  const std::uint32_t local = item - block.row_begin;
  const std::uint32_t word = block_words(block, received.type, received.hidden)[local];
  const RowPlace source = {block.data + local * value_bytes(received.type, received.hidden),
                           block_scales(block, received.type, received.hidden) +
                               std::size_t{local} * (received.hidden / kScaleGroup)};
  RowPlace place{};
  const unsigned num_rows =
      row_places(rows.item_rows + block.copy_begin + word_copy_begin(word), word_num_copies(word),
                 rows.blocks, rows.num_blocks, received.type, received.hidden, place);

  const auto* input = reinterpret_cast<const uint4*>(source.values);
  const auto num_vectors =
      static_cast<std::uint32_t>(value_bytes(received.type, received.hidden) / sizeof(uint4));
  uint4 v{};
  if (threadIdx.x < num_vectors) v = load_once(input + threadIdx.x);
  store_rows(input, num_vectors, v, num_rows, place);
  if (received.type != RowType::kFp8) return;
  const std::uint32_t num_scales = received.hidden / kScaleGroup;
  for (unsigned r = 0; r < num_rows; ++r) {
    float* scales = scales_of(place, r);
    for (std::uint32_t i = threadIdx.x; i < num_scales; i += blockDim.x) {
      scales[i] = source.scales[i];
    }
  }
}

// --- expand -------------------------------------------------------------------------------------

__device__ inline uint4 dequantise8(uint2 eight, float scale) {
  const float2 a = dequantise2(eight.x & 0xffffU);
  const float2 b = dequantise2(eight.x >> 16);
  const float2 c = dequantise2(eight.y & 0xffffU);
  const float2 d = dequantise2(eight.y >> 16);
  return make_uint4(pack_pair(a.x * scale, a.y * scale), pack_pair(b.x * scale, b.y * scale),
                    pack_pair(c.x * scale, c.y * scale), pack_pair(d.x * scale, d.y * scale));
}
// What packing as FP8 and expanding make of a group of 128 (kScaleGroup) values, eight of which each of
// half a warp's lanes holds. All lanes of a warp call it.
__device__ inline uint4 through_fp8(uint4 values) {
  std::uint32_t largest = largest_of(values);
#pragma unroll
  for (unsigned step = 1; step < 16; step *= 2) {
    largest = larger(largest, __shfl_xor_sync(kAllLanes, largest, step));
  }
  const float scale = scale_of(unpack(largest & 0x7fff7fffU).x);
  return dequantise8(quantise8(values, reciprocal_of(scale)), scale);
}

// expert_rows[copy_slot[c]] = dequantised row, for the copies c of the row. Grid: one block per
// row. BF16: a vector is 16 bytes in and 16 out; FP8: 8 bytes in (half a 16-byte access, so that a
// lane writes 16 contiguous bytes) and 16 out.
template <RowType kType, unsigned kThreads, unsigned kUnroll>
__global__ void __launch_bounds__(kThreads)
    expand_rows(ReceivedRows received, const std::uint32_t* copy_slot, Bf16* expert_rows) {
  begin_kernel();
  const std::uint32_t hidden = received.hidden;
  const std::uint32_t b =
      find_block_uniform(received.num_blocks, blockIdx.x, RowBegins{received.blocks});
  const TransferBlock block = received.blocks[b];
  const std::uint32_t local = blockIdx.x - block.row_begin;
  const std::byte* values = block.data + local * value_bytes(kType, hidden);
  const bool in_place = received.in_place.tokens != nullptr && b == received.in_place.block;
  if (in_place) {
    values = static_cast<const std::byte*>(received.in_place.tokens) +
             std::size_t{received.in_place.row_item[local]} * value_bytes(RowType::kBf16, hidden);
  }
  const std::uint32_t num_vectors = hidden / 8;
  const std::uint32_t word = block_words(block, kType, hidden)[local];
  const std::uint32_t num_copies = word_num_copies(word);
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t own_slot = kNoRow;
  if (lane < num_copies) {
    own_slot = copy_slot[block.copy_begin + word_copy_begin(word) + lane];
  }

  for (std::uint32_t first = 0; first < num_vectors; first += kThreads * kUnroll) {
    uint4 v[kUnroll];
#pragma unroll
    for (unsigned u = 0; u < kUnroll; ++u) {
      const std::uint32_t i = first + u * kThreads + threadIdx.x;
      if constexpr (kType == RowType::kFp8) {
        if (in_place) {  // all threads of the block: groups are halves of warps
          const uint4 plain =
              i < num_vectors ? load_once(reinterpret_cast<const uint4*>(values) + i) : uint4{};
          v[u] = through_fp8(plain);
          continue;
        }
      }
      if (i >= num_vectors) continue;
      if constexpr (kType == RowType::kBf16) {
        v[u] = load_once(reinterpret_cast<const uint4*>(values) + i);
      } else {
        const uint2 eight = __ldcs(reinterpret_cast<const uint2*>(values) + i);
        const float scale = block_scales(
            block, kType, hidden)[std::size_t{local} * (hidden / kScaleGroup) + i / 16];
        v[u] = dequantise8(eight, scale);
      }
    }
    for (std::uint32_t c = 0; c < num_copies; ++c) {
      const std::uint32_t slot = __shfl_sync(kAllLanes, own_slot, static_cast<int>(c));
      if (slot == kNoRow) continue;
      auto* output = reinterpret_cast<uint4*>(expert_rows) + std::size_t{slot} * num_vectors;
#pragma unroll
      for (unsigned u = 0; u < kUnroll; ++u) {
        const std::uint32_t i = first + u * kThreads + threadIdx.x;
        if (i < num_vectors) store_once(output + i, v[u]);
      }
    }
  }
}

// --- merge and combine --------------------------------------------------------------------------

// output[:] = sum over the first `length` lanes of a warp, in lane order, of
//             own_weight * inputs[own_row][:], and of addend[:] where it is not null; float,
//             rounded once. kNoRow counts as a row of zeros.
template <unsigned kThreads, unsigned kUnroll, bool kWeighted>
__device__ inline void sum_rows(const Bf16* inputs, std::uint32_t own_row, float own_weight,
                                unsigned length, std::uint32_t hidden, Bf16* output,
                                const Bf16* addend = nullptr) {
  const std::uint32_t num_vectors = hidden / 8;
  for (std::uint32_t first = 0; first < num_vectors; first += kThreads * kUnroll) {
    float sum[kUnroll][8] = {};
#pragma unroll 2
    for (unsigned r = 0; r < length; ++r) {
      const std::uint32_t row = __shfl_sync(kAllLanes, own_row, static_cast<int>(r));
      const float weight =
          kWeighted ? __shfl_sync(kAllLanes, own_weight, static_cast<int>(r)) : 1.0F;
      if (row == kNoRow) continue;
      const auto* input = reinterpret_cast<const uint4*>(inputs) + std::size_t{row} * num_vectors;
      uint4 v[kUnroll];
#pragma unroll
      for (unsigned u = 0; u < kUnroll; ++u) {
        const std::uint32_t i = first + u * kThreads + threadIdx.x;
        if (i < num_vectors) v[u] = load_once(input + i);
      }
#pragma unroll
      for (unsigned u = 0; u < kUnroll; ++u) {
        const std::uint32_t i = first + u * kThreads + threadIdx.x;
        if (i >= num_vectors) continue;
        float x[8];
        unpack8(v[u], x);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          sum[u][e] = kWeighted ? fmaf(weight, x[e], sum[u][e]) : sum[u][e] + x[e];
        }
      }
    }
#pragma unroll
    for (unsigned u = 0; u < kUnroll; ++u) {
      const std::uint32_t i = first + u * kThreads + threadIdx.x;
      if (i >= num_vectors) continue;
      if (addend != nullptr) {
        float x[8];
        unpack8(load_once(reinterpret_cast<const uint4*>(addend) + i), x);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[u][e] += x[e];
      }
      store_once(reinterpret_cast<uint4*>(output) + i, pack8(sum[u]));
    }
  }
}

// results[r] = sum of weight[c] * expert_outputs[copy_slot[c]]. Grid: one block per received row.
template <unsigned kThreads, unsigned kUnroll>
__global__ void __launch_bounds__(kThreads)
    merge_rows(ReceivedRows received, const std::uint32_t* copy_slot, const Bf16* expert_outputs,
               Bf16* results) {
  begin_kernel();
  const TransferBlock block = block_of_row(received, blockIdx.x);
  const std::uint32_t word =
      block_words(block, received.type, received.hidden)[blockIdx.x - block.row_begin];
  const std::uint32_t num_copies = word_num_copies(word);
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t slot = kNoRow;
  float weight = 0.0F;
  if (lane < num_copies) {
    const std::uint32_t copy = word_copy_begin(word) + lane;
    slot = copy_slot[block.copy_begin + copy];
    weight = block_copies(block, received.type, received.hidden)[copy].weight;
  }
  sum_rows<kThreads, kUnroll, true>(expert_outputs, slot, weight, num_copies, received.hidden,
                                    results + std::size_t{blockIdx.x} * received.hidden);
}

// outputs[t] = sum of returned[item_rows[t]], and addend[t] where there is one. Grid: one block per
// token.
template <unsigned kThreads, unsigned kUnroll>
__global__ void __launch_bounds__(kThreads)
    combine_tokens(const Bf16* returned, std::uint32_t num_topk, std::uint32_t hidden,
                   const std::uint32_t* item_rows, const Bf16* addend, Bf16* outputs) {
  begin_kernel();
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t row =
      lane < num_topk ? item_rows[std::size_t{blockIdx.x} * num_topk + lane] : kNoRow;
  const auto length = static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, row != kNoRow)));
  const std::size_t at = std::size_t{blockIdx.x} * hidden;
  sum_rows<kThreads, kUnroll, false>(returned, row, 1.0F, length, hidden, outputs + at,
                                     addend == nullptr ? nullptr : addend + at);
}

// The same for received rows as items.
template <unsigned kThreads, unsigned kUnroll>
__global__ void __launch_bounds__(kThreads)
    combine_rows(ReceivedRows received, const Bf16* returned, const std::uint32_t* item_rows,
                 Bf16* results) {
  begin_kernel();
  const TransferBlock block = block_of_row(received, blockIdx.x);
  const std::uint32_t word =
      block_words(block, received.type, received.hidden)[blockIdx.x - block.row_begin];
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t row = lane < word_num_copies(word)
                                ? item_rows[block.copy_begin + word_copy_begin(word) + lane]
                                : kNoRow;
  const auto length = static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, row != kNoRow)));
  sum_rows<kThreads, kUnroll, false>(returned, row, 1.0F, length, received.hidden,
                                     results + std::size_t{blockIdx.x} * received.hidden);
}

// --- launching ----------------------------------------------------------------------------------

void check_hidden(RowType type, std::uint32_t hidden) {
  const std::uint32_t unit = type == RowType::kFp8 ? kScaleGroup : 8;
  if (hidden == 0 || hidden % unit != 0) {
    throw std::invalid_argument("rows: hidden must be a positive multiple of 8, of 128 for FP8");
  }
}

// Threads that hold `num_vectors` in one pass, if a block can.
unsigned pass_threads(std::uint32_t num_vectors) {
  return std::min(kMaxThreads, (num_vectors + 31) / 32 * 32);
}

// Calls launch(shape) with the block size and unroll for rows of `hidden`: the first for rows of up
// to 2048 values, the second for longer ones.
template <unsigned kThreadCount, unsigned kUnrollCount>
struct Shape {
  static constexpr unsigned threads = kThreadCount;
  static constexpr unsigned unroll = kUnrollCount;
};
template <class Short, class Long, class Launch>
void with_shape(std::uint32_t hidden, const Launch& launch) {
  if (hidden <= 2048) {
    launch(Short{});
  } else {
    launch(Long{});
  }
}

}  // namespace

void pack(const Bf16* tokens, std::uint32_t num_tokens, std::uint32_t num_topk,
          std::uint32_t hidden, RowType type, const SendIndex& index, std::uint32_t num_dests,
          cudaStream_t stream) {
  check_hidden(type, hidden);
  if (num_topk == 0 || num_topk > kMaxTopk) {
    throw std::invalid_argument("pack: num_topk must be 1 to 32");
  }
  if (num_tokens == 0) return;
  const SendRows rows{index.item_rows, index.blocks, num_dests};
  if (type == RowType::kBf16) {
    launch_dependent(&pack_bf16, num_tokens, pass_threads(hidden / 8), 0, stream, tokens, num_topk,
                     hidden, rows);
  } else {
    launch_dependent(&pack_fp8, num_tokens, pass_threads(hidden / 16), 0, stream, tokens, num_topk,
                     hidden, rows);
  }
}

void forward(const ReceivedRows& received, const SendIndex& index, std::uint32_t num_dests,
             cudaStream_t stream) {
  check_hidden(received.type, received.hidden);
  if (received.num_rows == 0) return;
  const SendRows rows{index.item_rows, index.blocks, num_dests};
  const auto num_vectors =
      static_cast<std::uint32_t>(value_bytes(received.type, received.hidden) / sizeof(uint4));
  launch_dependent(&forward_rows, received.num_rows, pass_threads(num_vectors), 0, stream, received,
                   rows);
}

void expand(const ReceivedRows& received, const std::uint32_t* copy_slot, Bf16* expert_rows,
            cudaStream_t stream) {
  check_hidden(received.type, received.hidden);
  if (received.num_rows == 0) return;
  with_shape<Shape<128, 2>, Shape<256, 2>>(received.hidden, [&](auto shape) {
    constexpr unsigned kThreads = decltype(shape)::threads;
    constexpr unsigned kUnroll = decltype(shape)::unroll;
    if (received.type == RowType::kBf16) {
      launch_dependent(&expand_rows<RowType::kBf16, kThreads, kUnroll>, received.num_rows, kThreads,
                       0, stream, received, copy_slot, expert_rows);
    } else {
      launch_dependent(&expand_rows<RowType::kFp8, kThreads, kUnroll>, received.num_rows, kThreads,
                       0, stream, received, copy_slot, expert_rows);
    }
  });
}

void merge(const ReceivedRows& received, const std::uint32_t* copy_slot, const Bf16* expert_outputs,
           Bf16* results, cudaStream_t stream) {
  check_hidden(received.type, received.hidden);
  if (received.num_rows == 0) return;
  with_shape<Shape<64, 4>, Shape<128, 4>>(received.hidden, [&](auto shape) {
    constexpr unsigned kThreads = decltype(shape)::threads;
    launch_dependent(&merge_rows<kThreads, decltype(shape)::unroll>, received.num_rows, kThreads, 0,
                     stream, received, copy_slot, expert_outputs, results);
  });
}

void combine(const Bf16* returned, std::uint32_t num_tokens, std::uint32_t num_topk,
             std::uint32_t hidden, const std::uint32_t* item_rows, Bf16* outputs,
             cudaStream_t stream, const Bf16* addend) {
  check_hidden(RowType::kBf16, hidden);
  if (num_topk == 0 || num_topk > kMaxTopk) {
    throw std::invalid_argument("combine: num_topk must be 1 to 32");
  }
  if (num_tokens == 0) return;
  with_shape<Shape<128, 2>, Shape<128, 4>>(hidden, [&](auto shape) {
    constexpr unsigned kThreads = decltype(shape)::threads;
    launch_dependent(&combine_tokens<kThreads, decltype(shape)::unroll>, num_tokens, kThreads, 0,
                     stream, returned, num_topk, hidden, item_rows, addend, outputs);
  });
}

void combine_received(const ReceivedRows& received, const Bf16* returned,
                      const std::uint32_t* item_rows, Bf16* results, cudaStream_t stream) {
  check_hidden(received.type, received.hidden);
  if (received.num_rows == 0) return;
  with_shape<Shape<128, 2>, Shape<128, 4>>(received.hidden, [&](auto shape) {
    constexpr unsigned kThreads = decltype(shape)::threads;
    launch_dependent(&combine_rows<kThreads, decltype(shape)::unroll>, received.num_rows, kThreads,
                     0, stream, received, returned, item_rows, results);
  });
}

}  // namespace coterie::kernels
