// The sender's index, of the first hop and of the second.

#include <algorithm>
#include <stdexcept>

#include "kernels/cuda.hpp"
#include "kernels/index.hpp"
#include "kernels/index_chunks.cuh"
#include "kernels/lookup.cuh"

namespace coterie::kernels {
namespace {

constexpr unsigned kWords = kItems / 32;  // words of a bit mask over a chunk's items

// Binary digits of a number of copies.
constexpr std::uint32_t planes_for(std::uint32_t max_copies) {
  std::uint32_t planes = 0;
  while (max_copies >> planes != 0) ++planes;
  return planes;
}

// Items, as the threads of a block load them. All threads call `load`, also those beyond the last
// item; `max_copies` bounds what an item holds.

// The items of build_send_index: tokens.
template <unsigned kMaxCopies>
struct TokenItems {
  static constexpr unsigned max_copies = kMaxCopies;
  static constexpr unsigned num_planes = planes_for(kMaxCopies);
  TokenRouting routing;
  struct Item {
    std::uint32_t num_copies = 0;
    std::uint32_t list_begin = 0;
  };
  __device__ Item load(std::uint32_t i) const {
    if (i >= routing.num_tokens) return {};
    return {routing.num_topk, i * routing.num_topk};
  }
  __device__ std::uint32_t expert(const Item& item, std::uint32_t j) const {
    return routing.experts[item.list_begin + j];
  }
  __device__ float weight(const Item& item, std::uint32_t j) const {
    return routing.weights[item.list_begin + j];
  }
};

// The items of build_forward_index: received rows.
struct ReceivedItems {
  static constexpr unsigned max_copies = kMaxTopk;
  static constexpr unsigned num_planes = planes_for(kMaxTopk);
  ReceivedRows received;
  struct Item {
    std::uint32_t num_copies = 0;
    std::uint32_t list_begin = 0;
    const Copy* copies = nullptr;
  };
  __device__ Item load(std::uint32_t i) const {
    const std::uint32_t b = find_block(received.num_blocks, i, RowBegins{received.blocks});
    if (i >= received.num_rows) return {};
    const TransferBlock block = received.blocks[b];
    const std::uint32_t word =
        block_words(block, received.type, received.hidden)[i - block.row_begin];
    return {word_num_copies(word), block.copy_begin + word_copy_begin(word),
            block_copies(block, received.type, received.hidden) + word_copy_begin(word)};
  }
  __device__ std::uint32_t expert(const Item& item, std::uint32_t j) const {
    return item.copies[j].expert;
  }
  __device__ float weight(const Item& item, std::uint32_t j) const { return item.copies[j].weight; }
};

// What one chunk knows about its items, in shared memory.
//   plane[p][b] of words  bit of item i: binary digit b of the number of i's copies to position p
//   prefix[p][w]         rows (low half) and copies (high half) of the chunk before word w
struct Chunk {
  std::uint32_t* plane;
  std::uint32_t* prefix;
};
constexpr std::uint32_t kDropped = 0xffff;  // position of a copy that goes nowhere

// Where the chunk's first row to a position goes.
struct Base {
  std::uint32_t* words;
  Copy* copies;
  std::uint32_t row;   // number among all rows
  std::uint32_t copy;  // number within the block
};
// Shared memory of a chunk, after the blocks and bases of the positions.
struct SharedLayout {
  std::uint32_t num_planes;
  std::uint32_t num_dests;
  __host__ __device__ std::size_t base_bytes() const {
    return std::size_t{num_dests} * (sizeof(TransferBlock) + sizeof(Base));
  }
  __host__ __device__ std::size_t plane_words() const {
    return std::size_t{num_dests} * num_planes * kWords;
  }
  __host__ __device__ std::size_t bytes() const {
    return base_bytes() + 4 * (plane_words() + std::size_t{num_dests} * kWords);
  }
};

__device__ Chunk carve(std::byte* memory, const SharedLayout& layout) {
  Chunk chunk{};
  chunk.plane = reinterpret_cast<std::uint32_t*>(memory + layout.base_bytes());
  chunk.prefix = chunk.plane + layout.plane_words();
  return chunk;
}

// An item in registers: every loop over its copies is unrolled to max_copies and left early, so
// that the positions are indexed by constants and all loads are in flight at once.
template <class Items>
struct LoadedItem {
  typename Items::Item item;
  std::uint32_t expert[Items::max_copies];
  std::uint32_t position[Items::max_copies];  // send position of each copy, or kDropped

  // The copies that go where the j-th goes.
  __device__ std::uint32_t group_mask(unsigned j) const {
    std::uint32_t mask = 0;
#pragma unroll
    for (unsigned i = 0; i < Items::max_copies; ++i) {
      if (i >= item.num_copies) break;
      mask |= static_cast<std::uint32_t>(position[i] == position[j]) << i;
    }
    return mask;
  }
};

// Fills the chunk's masks and prefixes; returns this thread's item. All threads call it.
template <class Items>
__device__ LoadedItem<Items> fill_chunk(const Items& items, const Targets& targets,
                                        const Chunk& chunk, std::uint32_t item_idx) {
  const std::uint32_t num_plane_words = targets.num_dests * Items::num_planes * kWords;
  for (std::uint32_t i = threadIdx.x; i < num_plane_words; i += kItems) chunk.plane[i] = 0;

  LoadedItem<Items> loaded;
  loaded.item = items.load(item_idx);
#pragma unroll
  for (unsigned j = 0; j < Items::max_copies; ++j) {
    if (j >= loaded.item.num_copies) break;
    loaded.expert[j] = items.expert(loaded.item, j);
  }
#pragma unroll
  for (unsigned j = 0; j < Items::max_copies; ++j) {
    if (j >= loaded.item.num_copies) break;
    const std::uint32_t expert = loaded.expert[j];
    const std::uint32_t dest =
        expert < targets.num_experts ? targets.expert_dest[expert] : kDropped;
    const std::uint32_t position = dest >= targets.first_dest
                                       ? dest - targets.first_dest
                                       : dest + targets.num_dests - targets.first_dest;
    loaded.position[j] = dest < targets.num_dests ? position : kDropped;
  }
  __syncthreads();  // the planes are zero

  const std::uint32_t word = threadIdx.x / 32;
  const std::uint32_t bit = 1U << (threadIdx.x % 32);
#pragma unroll
  for (unsigned j = 0; j < Items::max_copies; ++j) {
    if (j >= loaded.item.num_copies) break;
    const std::uint32_t mask = loaded.group_mask(j);
    const bool first = (mask & ((1U << j) - 1)) == 0;
    if (!first || loaded.position[j] == kDropped) continue;
    const auto count = static_cast<std::uint32_t>(__popc(mask));
#pragma unroll
    for (std::uint32_t digit = 0; digit < Items::num_planes; ++digit) {
      if ((count >> digit & 1U) != 0) {
        atomicOr(&chunk.plane[(loaded.position[j] * Items::num_planes + digit) * kWords + word],
                 bit);
      }
    }
  }
  __syncthreads();

  // Exclusive scan over the words of each position: kWords lanes per position.
  static_assert(kItems / kWords == 32);
  const std::uint32_t rounded = (targets.num_dests + 31) / 32 * 32;
  for (std::uint32_t p = threadIdx.x / kWords; p < rounded; p += kItems / kWords) {
    const std::uint32_t w = threadIdx.x % kWords;
    std::uint32_t any = 0;
    std::uint32_t copies = 0;
    if (p < targets.num_dests) {
#pragma unroll
      for (std::uint32_t digit = 0; digit < Items::num_planes; ++digit) {
        const std::uint32_t plane = chunk.plane[(p * Items::num_planes + digit) * kWords + w];
        any |= plane;
        copies += static_cast<std::uint32_t>(__popc(plane)) << digit;
      }
    }
    const std::uint32_t rows =
        targets.row_per_copy ? copies : static_cast<std::uint32_t>(__popc(any));
    // At most 128 items of 32 copies: 4096 fits 16 bits.
    const std::uint32_t own = rows | copies << 16;
    std::uint32_t sum = own;
    for (unsigned step = 1; step < kWords; step *= 2) {
      const std::uint32_t left = __shfl_up_sync(0xffffffffU, sum, step, kWords);
      if (w >= step) sum += left;
    }
    if (p < targets.num_dests) chunk.prefix[p * kWords + w] = sum - own;
  }
  __syncthreads();
  return loaded;
}

// Rows (x) and copies (y) of the chunk to `position` by items before this thread's.
template <class Items>
__device__ uint2 before_this_item(const Chunk& chunk, std::uint32_t position, bool row_per_copy) {
  const std::uint32_t word = threadIdx.x / 32;
  const std::uint32_t lower = (1U << (threadIdx.x % 32)) - 1;
  std::uint32_t any = 0;
  std::uint32_t copies = 0;
#pragma unroll
  for (std::uint32_t digit = 0; digit < Items::num_planes; ++digit) {
    const std::uint32_t plane =
        chunk.plane[(position * Items::num_planes + digit) * kWords + word] & lower;
    any |= plane;
    copies += static_cast<std::uint32_t>(__popc(plane)) << digit;
  }
  const std::uint32_t rows = row_per_copy ? copies : static_cast<std::uint32_t>(__popc(any));
  const std::uint32_t prefix = chunk.prefix[position * kWords + word];
  return make_uint2((prefix & 0xffffU) + rows, (prefix >> 16) + copies);
}

// counts[position][chunk] = (rows, copies). Launch: one block of kItems per chunk.
template <class Items>
__global__ void __launch_bounds__(kItems) count_rows(Items items, Targets targets, uint2* counts) {
  extern __shared__ __align__(16) std::byte shared[];
  wait_for_previous_launch();
  start_dependent_launch();
  const SharedLayout layout{Items::num_planes, targets.num_dests};
  const Chunk chunk = carve(shared, layout);
  fill_chunk(items, targets, chunk, blockIdx.x * kItems + threadIdx.x);
  for (std::uint32_t p = threadIdx.x; p < targets.num_dests; p += kItems) {
    constexpr unsigned kLast = kWords - 1;
    std::uint32_t any = 0;
    std::uint32_t copies = 0;
#pragma unroll
    for (std::uint32_t digit = 0; digit < Items::num_planes; ++digit) {
      const std::uint32_t plane = chunk.plane[(p * Items::num_planes + digit) * kWords + kLast];
      any |= plane;
      copies += static_cast<std::uint32_t>(__popc(plane)) << digit;
    }
    const std::uint32_t rows =
        targets.row_per_copy ? copies : static_cast<std::uint32_t>(__popc(any));
    const std::uint32_t prefix = chunk.prefix[p * kWords + kLast];
    counts[std::size_t{p} * gridDim.x + blockIdx.x] =
        make_uint2((prefix & 0xffffU) + rows, (prefix >> 16) + copies);
  }
}

// Lays out the blocks and writes all that SendIndex, copies and row words hold. The same launch,
// after count_rows.
template <class Items>
__global__ void __launch_bounds__(kItems)
    place_rows(Items items, Targets targets, const uint2* counts, RowType type,
               std::uint32_t hidden, std::byte* send_buffer, SendIndex index) {
  extern __shared__ __align__(16) std::byte shared[];
  const SharedLayout layout{Items::num_planes, targets.num_dests};
  auto* blocks = reinterpret_cast<TransferBlock*>(shared);
  auto* bases = reinterpret_cast<Base*>(blocks + targets.num_dests);
  const Chunk chunk = carve(shared, layout);

  const std::uint32_t item_idx = blockIdx.x * kItems + threadIdx.x;
  const LoadedItem<Items> loaded = fill_chunk(items, targets, chunk, item_idx);
  const typename Items::Item& item = loaded.item;
  float weight[Items::max_copies];
#pragma unroll
  for (unsigned j = 0; j < Items::max_copies; ++j) {
    if (j >= item.num_copies) break;
    weight[j] = items.weight(item, j);
  }
  wait_for_previous_launch();
  start_dependent_launch();

  // Per position, a warp sums the counts of all chunks and of those before this one.
  const unsigned lane = threadIdx.x % 32;
  for (std::uint32_t p = threadIdx.x / 32; p < targets.num_dests; p += kItems / 32) {
    uint2 before = make_uint2(0, 0);
    uint2 total = make_uint2(0, 0);
#pragma unroll 4
    for (std::uint32_t c = lane; c < gridDim.x; c += 32) {
      const uint2 count = counts[std::size_t{p} * gridDim.x + c];
      total.x += count.x;
      total.y += count.y;
      before.x += c < blockIdx.x ? count.x : 0;
      before.y += c < blockIdx.x ? count.y : 0;
    }
    before.x = __reduce_add_sync(0xffffffffU, before.x);
    before.y = __reduce_add_sync(0xffffffffU, before.y);
    total.x = __reduce_add_sync(0xffffffffU, total.x);
    total.y = __reduce_add_sync(0xffffffffU, total.y);
    if (lane == 0) {
      bases[p].row = before.x;
      bases[p].copy = before.y;
      blocks[p].num_rows = total.x;
      blocks[p].num_copies = total.y;
    }
  }
  __syncthreads();

  // The layout of the blocks: exclusive scans over the positions, by the first warp.
  if (threadIdx.x < 32) {
    std::uint32_t rows_before = 0;
    std::uint32_t copies_before = 0;
    std::uint64_t bytes_before = 0;
    for (std::uint32_t first = 0; first < targets.num_dests; first += 32) {
      const std::uint32_t p = first + lane;
      const bool valid = p < targets.num_dests;
      TransferBlock block = valid ? blocks[p] : TransferBlock{};
      const std::uint64_t own_bytes = block_stride(type, hidden, block.num_rows, block.num_copies);
      std::uint32_t rows = block.num_rows;
      std::uint32_t copies = block.num_copies;
      std::uint64_t bytes = own_bytes;
      for (unsigned step = 1; step < 32; step *= 2) {
        const std::uint32_t left_rows = __shfl_up_sync(0xffffffffU, rows, step);
        const std::uint32_t left_copies = __shfl_up_sync(0xffffffffU, copies, step);
        const std::uint64_t left_bytes = __shfl_up_sync(0xffffffffU, bytes, step);
        if (lane >= step) {
          rows += left_rows;
          copies += left_copies;
          bytes += left_bytes;
        }
      }
      if (valid) {
        block.row_begin = rows_before + rows - block.num_rows;
        block.copy_begin = copies_before + copies - block.num_copies;
        block.data = send_buffer + bytes_before + bytes - own_bytes;
        if (blockIdx.x == 0) index.blocks[p] = block;
        bases[p].words = block_words(block, type, hidden) + bases[p].row;
        bases[p].copies = block_copies(block, type, hidden) + bases[p].copy;
        bases[p].row += block.row_begin;
      }
      rows_before += __shfl_sync(0xffffffffU, rows, 31);
      copies_before += __shfl_sync(0xffffffffU, copies, 31);
      bytes_before += __shfl_sync(0xffffffffU, bytes, 31);
    }
  }
  __syncthreads();

  std::uint32_t num_rows = 0;
#pragma unroll
  for (unsigned j = 0; j < Items::max_copies; ++j) {
    if (j >= item.num_copies) break;
    const std::uint32_t position = loaded.position[j];
    if (position == kDropped) continue;
    const std::uint32_t group = loaded.group_mask(j);
    const auto before_in_item = static_cast<std::uint32_t>(__popc(group & ((1U << j) - 1)));
    uint2 before = before_this_item<Items>(chunk, position, targets.row_per_copy);
    before.y += before_in_item;
    if (targets.row_per_copy) before.x += before_in_item;
    const Base base = bases[position];
    base.copies[before.y] = {loaded.expert[j], weight[j]};
    if (before_in_item > 0 && !targets.row_per_copy) continue;  // the row stands already

    const std::uint32_t mask = targets.row_per_copy ? 1U << j : group;
    const std::uint32_t row = base.row + before.x;
    base.words[before.x] = row_word(base.copy + before.y, static_cast<std::uint32_t>(__popc(mask)));
    index.item_rows[item.list_begin + num_rows++] = row;
    if (index.row_item != nullptr) index.row_item[row] = item_idx;
    if (index.row_mask != nullptr) index.row_mask[row] = mask;
  }
  for (std::uint32_t j = num_rows; j < item.num_copies; ++j) {
    index.item_rows[item.list_begin + j] = kNoRow;
  }
}

void check_targets(const Targets& targets) {
  if (targets.num_dests == 0 || targets.num_dests > kMaxDests) {
    throw std::invalid_argument("build index: num_dests must be 1 to 512");
  }
  if (targets.first_dest >= targets.num_dests) {
    throw std::invalid_argument("build index: first_dest must be less than num_dests");
  }
}

template <class Items>
void build_rows(const Items& items, std::uint32_t num_items, const Targets& targets, RowType type,
                std::uint32_t hidden, std::byte* send_buffer, const SendIndex& index,
                void* workspace, cudaStream_t stream) {
  const std::uint32_t num_chunks = std::max(1U, (num_items + kItems - 1) / kItems);
  const std::size_t shared = SharedLayout{Items::num_planes, targets.num_dests}.bytes();
  auto* counts = static_cast<uint2*>(workspace);
  allow_shared(reinterpret_cast<const void*>(&count_rows<Items>), shared);
  allow_shared(reinterpret_cast<const void*>(&place_rows<Items>), shared);
  launch_dependent(&count_rows<Items>, num_chunks, kItems, shared, stream, items, targets, counts);
  launch_dependent(&place_rows<Items>, num_chunks, kItems, shared, stream, items, targets, counts,
                   type, hidden, send_buffer, index);
}

}  // namespace

std::size_t index_workspace_bytes(std::uint32_t num_copies, std::uint32_t num_dests_or_experts) {
  // Send: at most one item per copy in chunks of kItems; receive: chunks of kCopies.
  const std::size_t num_chunks = (std::size_t{num_copies} + kItems - 1) / kItems + 1;
  return num_chunks * num_dests_or_experts * sizeof(uint2);
}

void build_send_index(const TokenRouting& routing, const Targets& targets, RowType type,
                      std::uint32_t hidden, std::byte* send_buffer, const SendIndex& index,
                      void* workspace, cudaStream_t stream) {
  check_targets(targets);
  check_rows(type, hidden);
  if (routing.num_topk == 0 || routing.num_topk > kMaxTopk) {
    throw std::invalid_argument("build_send_index: num_topk must be 1 to 32");
  }
  if (std::uint64_t{routing.num_tokens} * routing.num_topk > kMaxBlockCopies) {
    throw std::invalid_argument("build_send_index: more than 2^27 copies");
  }
  const auto build = [&](auto items) {
    build_rows(items, routing.num_tokens, targets, type, hidden, send_buffer, index, workspace,
               stream);
  };
  if (routing.num_topk <= 8) {
    build(TokenItems<8>{routing});
  } else {
    build(TokenItems<kMaxTopk>{routing});
  }
}

void build_forward_index(const ReceivedRows& received, const Targets& targets,
                         std::byte* send_buffer, const SendIndex& index, void* workspace,
                         cudaStream_t stream) {
  check_targets(targets);
  check_rows(received.type, received.hidden);
  if (received.num_copies > kMaxBlockCopies) {
    throw std::invalid_argument("build_forward_index: more than 2^27 copies");
  }
  build_rows(ReceivedItems{received}, received.num_rows, targets, received.type, received.hidden,
             send_buffer, index, workspace, stream);
}

}  // namespace coterie::kernels
