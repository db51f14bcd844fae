// One-sided dispatch and combine; direct.hpp has the contract.
//
// Order of memory. What a rank writes into peer memory by bulk copies is complete for the thread that
// issued them after cp.async.bulk.wait_group 0; plain stores are in the order of the thread. Each
// block then fences at the scope of the GPU and counts itself done; the last one, having seen all
// counts, fences likewise and stores the epoch into the peers' flags with release at system scope,
// which covers what it has seen of the other blocks (releases are cumulative). The receiver loads the
// flag with acquire at system scope in one block, and whatever reads the rows is a later kernel of
// its stream.

#include <algorithm>
#include <stdexcept>

#include "kernels/direct.hpp"
#include "kernels/lookup.cuh"
#include "kernels/values.cuh"

// Architectures before 9.0 have no bulk copies: the kernels are empty there, and what they call unused.
#pragma nv_diag_suppress 177

namespace coterie::kernels {
namespace {

constexpr std::uint32_t kMaxRingWarps = 16;
constexpr std::uint32_t kMaxRingSlots = 64;  // of all warps of a block
constexpr unsigned kSyncThreads = 128;
// Values that a warp sums at once in pull: eight vectors of eight per lane.
constexpr std::uint32_t kPullVectors = 8;
constexpr std::uint32_t kMaxChunk = kPullVectors * 8 * 32;

constexpr std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// --- flags --------------------------------------------------------------------------------------

__device__ inline std::uint64_t now_ns() {
  std::uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}
__device__ inline std::uint32_t load_acquire(const std::uint32_t* address) {
  std::uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ inline void store_release(std::uint32_t* address, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// [0] the epoch, [1] the blocks that are done, [2] whether a wait has failed.
__device__ inline std::uint32_t* own_counters(const FlagChannel& c) {
  return reinterpret_cast<std::uint32_t*>(c.flags[c.rank] + counter_offset(c.num_ranks, c.channel));
}
__device__ inline std::uint32_t* counts_at(const FlagChannel& c, std::uint32_t owner,
                                           std::uint32_t epoch, std::uint32_t from) {
  return reinterpret_cast<std::uint32_t*>(c.flags[owner] +
                                          counts_offset(c.num_ranks, c.num_channels, epoch, from));
}

// Until the peer's flag has reached the epoch, the deadline has passed, or the host says stop.
__device__ inline void await(const FlagChannel& c, std::uint32_t peer, std::uint32_t epoch) {
  const auto* flag = reinterpret_cast<const std::uint32_t*>(
      c.flags[c.rank] + flag_offset(c.num_ranks, c.channel, peer));
  // The host's word lies across the bus: it is looked at now and then.
  constexpr unsigned kPollsPerLook = 256;
  std::uint64_t start = 0;
  for (unsigned polls = 1;; ++polls) {
    const std::uint32_t seen = load_acquire(flag);
    if (has_reached(seen, epoch)) return;
    if (polls % kPollsPerLook != 0) continue;
    const std::uint64_t now = now_ns();
    if (start == 0) start = now;
    volatile WaitState* state = c.state;
    if (state->stop != 0) return;
    if (now - start < c.deadline_ns) continue;
    // One thread tells; the lock is in device memory, since atomics on the host's are not for every
    // machine.
    if (atomicExch(own_counters(c) + 2, 1U) == 0U) {
      state->channel = c.channel;
      state->peer = peer;
      state->epoch = epoch;
      state->seen = seen;
      __threadfence_system();
      state->fault = 1;
    }
    state->stop = 1;
    return;
  }
}

// The end of a step: tells the peers, then waits for them. All threads of one block call it, after the
// block has synchronised with everything that the step wrote: the release makes it known.
__device__ inline void announce_and_await(const FlagChannel& c, std::uint32_t epoch) {
  for (std::uint32_t i = threadIdx.x; i < c.num_peers; i += blockDim.x) {
    store_release(reinterpret_cast<std::uint32_t*>(c.flags[c.peers[i]] +
                                                   flag_offset(c.num_ranks, c.channel, c.rank)),
                  epoch);
  }
  for (std::uint32_t i = threadIdx.x; i < c.num_peers; i += blockDim.x) {
    await(c, c.peers[i], epoch);
  }
  __syncthreads();
}

// Launch: one block.
__global__ void __launch_bounds__(kSyncThreads)
    synchronise_ranks(FlagChannel c, const std::uint32_t* counts_out, std::uint32_t* counts_in) {
  wait_for_previous_launch();
  std::uint32_t* counters = own_counters(c);
  const std::uint32_t epoch = counters[0] + 1;
  if (counts_out != nullptr) {
    for (std::uint32_t i = threadIdx.x; i < c.num_peers; i += blockDim.x) {
      const std::uint32_t peer = c.peers[i];
      std::uint32_t* theirs = counts_at(c, peer, epoch, c.rank);
      theirs[0] = counts_out[2 * peer];
      theirs[1] = counts_out[2 * peer + 1];
    }
  }
  __syncthreads();
  announce_and_await(c, epoch);
  if (counts_out != nullptr) {
    for (std::uint32_t i = threadIdx.x; i < c.num_peers; i += blockDim.x) {
      const std::uint32_t peer = c.peers[i];
      const std::uint32_t* mine = counts_at(c, c.rank, epoch, peer);
      counts_in[2 * peer] = __ldcv(mine);
      counts_in[2 * peer + 1] = __ldcv(mine + 1);
    }
  }
  if (threadIdx.x == 0) counters[0] = epoch;
}

// --- bulk copies --------------------------------------------------------------------------------

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ inline void init_barrier(std::uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ inline void expect_bytes(std::uint64_t* barrier, std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline void wait_barrier(std::uint64_t* barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}
__device__ inline void load_bulk(void* to, const void* from, std::uint32_t bytes,
                                 std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
__device__ inline void store_bulk(void* to, const void* from, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ inline void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until shared memory has been read by all of this thread's stores but the last kPending groups.
template <int kPending>
__device__ inline void await_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// Until all of this thread's stores have been written.
__device__ inline void await_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// Between plain accesses of this thread and bulk copies.
__device__ inline void fence_shared_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void fence_proxy() {
  asm volatile("fence.proxy.async;" ::: "memory");
}
#endif

// --- items --------------------------------------------------------------------------------------

// What rows are made from: its vector, and the list of its rows. All lanes of a warp call the
// functions with the same item.
struct TokenItems {
  const std::byte* values;  // [num_items][hidden] BF16
  const std::uint32_t* item_rows;
  std::uint32_t num_items;
  std::uint32_t num_topk;
  std::uint32_t row_bytes;

  __device__ const std::byte* source(std::uint32_t item) const {
    return values + std::size_t{item} * row_bytes;
  }
  __device__ const float* scales(std::uint32_t /*item*/) const { return nullptr; }
  // The item's row of this lane, or kNoRow.
  __device__ std::uint32_t row(std::uint32_t item, unsigned lane) const {
    return lane < num_topk ? item_rows[std::size_t{item} * num_topk + lane] : kNoRow;
  }
};

struct ReceivedItems {
  ReceivedRows received;
  const std::uint32_t* item_rows;

  __device__ TransferBlock block(std::uint32_t item) const {
    return received
        .blocks[find_block_uniform(received.num_blocks, item, RowBegins{received.blocks})];
  }
  __device__ const std::byte* source(std::uint32_t item) const {
    const TransferBlock b = block(item);
    return b.data + std::size_t{item - b.row_begin} * value_bytes(received.type, received.hidden);
  }
  __device__ const float* scales(std::uint32_t item) const {
    const TransferBlock b = block(item);
    return block_scales(b, received.type, received.hidden) +
           std::size_t{item - b.row_begin} * (received.hidden / kScaleGroup);
  }
  __device__ std::uint32_t row(std::uint32_t item, unsigned lane) const {
    const TransferBlock b = block(item);
    const std::uint32_t word = block_words(b, received.type, received.hidden)[item - b.row_begin];
    return lane < word_num_copies(word) ? item_rows[b.copy_begin + word_copy_begin(word) + lane]
                                        : kNoRow;
  }
};

// The items of one warp of a grid: dealt in turn, so that neighbours move at the same time.
struct Share {
  std::uint32_t first, step, count;
  __device__ explicit Share(std::uint32_t num_items) {
    first = blockIdx.x + gridDim.x * (threadIdx.x / 32);
    step = gridDim.x * (blockDim.x / 32);
    count = first < num_items ? (num_items - first + step - 1) / step : 0;
  }
  __device__ std::uint32_t item(std::uint32_t n) const { return first + n * step; }
};

// A destination as put and pull see it, in shared memory.
struct Place {
  std::byte* values;
  float* scales;
  std::uint32_t row_begin;
};
struct PlaceBegins {
  const Place* places;
  __device__ std::uint32_t operator()(std::uint32_t p) const { return places[p].row_begin; }
};

// --- put ----------------------------------------------------------------------------------------

constexpr std::uint32_t kMaxQuantiseWarps = 28;
constexpr std::uint32_t kStepValues = 1024;  // that a warp quantises at once
COTERIE_HOST_DEVICE constexpr std::uint32_t steps_of(std::uint32_t hidden) {
  return (hidden + kStepValues - 1) / kStepValues;
}

struct PutLaunch {
  std::uint32_t num_slots;   // per warp
  std::uint32_t slot_bytes;  // a row, and its scales where they are made here
  std::uint32_t store_bytes;
  std::uint32_t hidden;
  RowType type;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// Plain copy of words that lie alike at both ends, by `num_threads` threads of which this is one.
__device__ void copy_words(std::byte* to, const std::byte* from, std::size_t bytes,
                           std::size_t thread, std::size_t num_threads) {
  const std::size_t head = min(bytes, (16 - reinterpret_cast<std::uintptr_t>(from) % 16) % 16);
  const std::size_t num_vectors = (bytes - head) / 16;
  const auto* vectors_from = reinterpret_cast<const uint4*>(from + head);
  auto* vectors_to = reinterpret_cast<uint4*>(to + head);
#pragma unroll 4
  for (std::size_t i = thread; i < num_vectors; i += num_threads) {
    vectors_to[i] = vectors_from[i];
  }
  const std::size_t tail = head + 16 * num_vectors;
  const std::size_t num_words = (head + bytes - tail) / 4;
  if (thread < num_words) {
    const std::size_t at = thread < head / 4 ? 4 * thread : tail + 4 * (thread - head / 4);
    *reinterpret_cast<std::uint32_t*>(to + at) = *reinterpret_cast<const std::uint32_t*>(from + at);
  }
}

// Copies and row words of the blocks that go to others. The warps of the grid are dealt to the
// destinations in turn, so that the destinations do not wait for each other.
__device__ void copy_lists(const TransferBlock* send_blocks, const PutBlocks& blocks, RowType type,
                           std::uint32_t hidden) {
  const std::uint32_t num_others = blocks.num_dests - 1;
  if (num_others == 0) return;
  const std::uint32_t num_warps = gridDim.x * (blockDim.x / 32);
  const std::uint32_t warp = blockIdx.x + gridDim.x * (threadIdx.x / 32);
  for (std::uint32_t other = warp % num_others; other < num_others; other += num_warps) {
    const std::uint32_t p = other + 1;
    const TransferBlock block = send_blocks[p];
    std::byte* const to = blocks.data[p];
    if (block.num_rows == 0 || to == block.data) continue;
    const std::size_t copies = copies_offset(type, hidden, block.num_rows);
    const std::size_t words = words_offset(type, hidden, block.num_rows, block.num_copies);
    const std::uint32_t members =
        num_warps > num_others ? (num_warps - 1 - other) / num_others + 1 : 1;
    const std::size_t thread = warp / num_others * 32 + threadIdx.x % 32;
    copy_words(to + copies, block.data + copies, std::size_t{8} * block.num_copies, thread,
               std::size_t{members} * 32);
    copy_words(to + words, block.data + words, std::size_t{4} * block.num_rows, thread,
               std::size_t{members} * 32);
  }
}

__device__ void fill_places(Place* places, const TransferBlock* send_blocks,
                            const PutBlocks& blocks, const PutLaunch& launch) {
  for (std::uint32_t p = threadIdx.x; p < blocks.num_dests; p += blockDim.x) {
    TransferBlock block = send_blocks[p];
    block.data = blocks.data[p];
    places[p] = {block.data, block_scales(block, launch.type, launch.hidden), block.row_begin};
  }
}

// The end of a put, by all threads of all blocks.
__device__ void finish_put(const FlagChannel& channel) {
  __shared__ bool last;
  await_stores();
  fence_proxy();
  __threadfence();
  __syncthreads();
  std::uint32_t* const counters = own_counters(channel);
  if (threadIdx.x == 0) {
    last = atomicAdd(counters + 1, 1U) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  const std::uint32_t epoch = counters[0] + 1;
  __syncthreads();
  announce_and_await(channel, epoch);
  if (threadIdx.x == 0) {
    counters[0] = epoch;
    counters[1] = 0;
  }
}

#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// The scales of an FP8 row, of a hidden size of up to 16,384 in a warp's registers: read one row ahead,
// as otherwise every row would wait for memory before the next one is fetched.
struct RowScales {
  static constexpr std::uint32_t kPerLane = 4;
  float of_lane[kPerLane];
};
__device__ inline RowScales load_scales(const float* scales, std::uint32_t num_scales) {
  RowScales held{};
#pragma unroll
  for (std::uint32_t k = 0; k < RowScales::kPerLane; ++k) {
    const std::uint32_t i = 32 * k + threadIdx.x % 32;
    if (i < num_scales) held.of_lane[k] = scales[i];
  }
  return held;
}
// `from()`: where they were loaded from, for those that do not fit.
template <class From>
__device__ inline void store_scales(float* to, const RowScales& held, const From& from,
                                    std::uint32_t num_scales) {
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (std::uint32_t k = 0; k < RowScales::kPerLane; ++k) {
    if (32 * k + lane < num_scales) to[32 * k + lane] = held.of_lane[k];
  }
  constexpr std::uint32_t kHeld = 32 * RowScales::kPerLane;
  if (num_scales <= kHeld) return;
  const float* const scales = from();
  for (std::uint32_t i = kHeld + lane; i < num_scales; i += 32) to[i] = scales[i];
}
#endif

// Grid: at most `sms` blocks. Shared memory: the rings of the warps, then the places.
template <class Items>
__global__ void __launch_bounds__(kMaxRingWarps * 32)
    put_rows(Items items, std::uint32_t num_items, const TransferBlock* send_blocks,
             PutBlocks blocks, PutLaunch launch, FlagChannel channel) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ std::uint64_t barriers[kMaxRingSlots];
  wait_for_previous_launch();
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  const std::uint32_t num_slots = launch.num_slots;
  std::byte* const ring = shared + std::size_t{warp} * num_slots * launch.slot_bytes;
  std::uint64_t* const full = barriers + warp * num_slots;
  auto* const places = reinterpret_cast<Place*>(shared + std::size_t{blockDim.x / 32} * num_slots *
                                                             launch.slot_bytes);

  fill_places(places, send_blocks, blocks, launch);
  if (lane == 0) {
    for (std::uint32_t s = 0; s < num_slots; ++s) init_barrier(&full[s]);
    fence_shared_proxy();
  }
  __syncthreads();

  const Share share(num_items);
  const std::uint32_t ahead = num_slots > 1 ? num_slots - 1 : 1;
  const auto load = [&](std::uint32_t n) {
    const std::byte* from = items.source(share.item(n));
    if (lane == 0) {
      const std::uint32_t slot = n % num_slots;
      expect_bytes(&full[slot], launch.store_bytes);
      load_bulk(ring + std::size_t{slot} * launch.slot_bytes, from, launch.store_bytes,
                &full[slot]);
    }
  };
  for (std::uint32_t n = 0; n < min(ahead, share.count); ++n) load(n);
  std::uint32_t next_row = share.count > 0 ? items.row(share.item(0), lane) : kNoRow;

  // While the first rows are on their way.
  copy_lists(send_blocks, blocks, launch.type, launch.hidden);

  const bool scaled = launch.type == RowType::kFp8;
  const std::uint32_t num_scales = launch.hidden / kScaleGroup;
  RowScales next_scales{};
  if (scaled && share.count > 0) next_scales = load_scales(items.scales(share.item(0)), num_scales);
  for (std::uint32_t n = 0; n < share.count; ++n) {
    const std::uint32_t row = next_row;
    const RowScales row_scales = next_scales;
    if (n + 1 < share.count) {
      next_row = items.row(share.item(n + 1), lane);
      if (scaled) next_scales = load_scales(items.scales(share.item(n + 1)), num_scales);
    }
    const std::uint32_t slot = n % num_slots;
    std::byte* const values = ring + std::size_t{slot} * launch.slot_bytes;
    const std::uint32_t p = find_block(blocks.num_dests, row, PlaceBegins{places});
    const auto num_rows = static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, row != kNoRow)));
    wait_barrier(&full[slot], n / num_slots % 2);
    if (row != kNoRow && (p != 0 || !blocks.own_in_place)) {
      const Place place = places[p];
      const std::size_t local = row - place.row_begin;
      store_bulk(place.values + local * launch.store_bytes, values, launch.store_bytes);
    }
    commit_stores();
    if (scaled) {
      float* const own_scales =
          row == kNoRow ? nullptr
                        : places[p].scales + std::size_t{row - places[p].row_begin} * num_scales;
      for (unsigned r = 0; r < num_rows; ++r) {
        auto* to = reinterpret_cast<float*>(
            __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(own_scales), r));
        store_scales(
            to, row_scales, [&] { return items.scales(share.item(n)); }, num_scales);
      }
    }
    // The slot of the next load must have been read by its stores.
    const std::uint32_t next = n + ahead;
    if (next < share.count) {
      if (num_slots > 1) {
        await_stores_read<1>();
      } else {
        await_stores_read<0>();
      }
      __syncwarp();
      load(next);
    }
  }

  finish_put(channel);
#endif
}

// --- put, quantised -------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// A warp's step: 1,024 values of a row, two runs of 512. A lane has 16 neighbouring values of each,
// so eight lanes share a group of 128, and the maxima of the two runs travel in one word.
constexpr std::uint32_t kRuns = 2;
struct StepValues {
  uint4 v[kRuns][2];
};
__device__ inline StepValues load_step(const uint4* row, std::uint32_t step, std::uint32_t hidden) {
  StepValues values;
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (unsigned r = 0; r < kRuns; ++r) {
    const std::uint32_t first = step * kStepValues + 512 * r + 16 * lane;
    const bool inside = first < hidden;
    values.v[r][0] = inside ? __ldg(row + first / 8) : uint4{};
    values.v[r][1] = inside ? __ldg(row + first / 8 + 1) : uint4{};
  }
  return values;
}
// The step's values and scales, as pack_fp8 (rows.cu) makes them, into shared memory.
__device__ inline void quantise_step(const StepValues& values, std::byte* output, float* scales) {
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t largest = __byte_perm(largest_of(values.v[0][0], values.v[0][1]),
                                      largest_of(values.v[1][0], values.v[1][1]), 0x7610);
#pragma unroll
  for (unsigned step = 1; step < 8; step *= 2) {
    largest = larger(largest, __shfl_xor_sync(kAllLanes, largest, step));
  }
  const float2 of_runs = unpack(largest & 0x7fff7fffU);
#pragma unroll
  for (unsigned r = 0; r < kRuns; ++r) {
    const float scale = scale_of(r == 0 ? of_runs.x : of_runs.y);
    const float reciprocal = reciprocal_of(scale);
    const uint2 low = quantise8(values.v[r][0], reciprocal);
    const uint2 high = quantise8(values.v[r][1], reciprocal);
    reinterpret_cast<uint4*>(output)[32 * r + lane] = make_uint4(low.x, low.y, high.x, high.y);
    if (lane % 8 == 0) scales[4 * r + lane / 8] = scale;
  }
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// A warp's quantised values [first, first + num_values) of an item, and their scales, from a slot to all
// rows of the item (`row`: the lane's). Commits one group of stores.
__device__ inline void store_quantised(std::byte* slot, const float* scales, std::uint32_t row,
                                       std::uint32_t first, std::uint32_t num_values,
                                       std::uint32_t hidden, const Place* places,
                                       const PutBlocks& blocks) {
  const unsigned lane = threadIdx.x % 32;
  fence_shared_proxy();
  __syncwarp();
  const std::uint32_t p = find_block(blocks.num_dests, row, PlaceBegins{places});
  float* to_scales = nullptr;
  if (row != kNoRow && (p != 0 || !blocks.own_in_place)) {
    const Place place = places[p];
    const std::size_t local = row - place.row_begin;
    store_bulk(place.values + local * hidden + first, slot, num_values);
    to_scales = place.scales + local * (hidden / kScaleGroup) + first / kScaleGroup;
  }
  commit_stores();
  const auto num_rows = static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, row != kNoRow)));
  for (unsigned r = 0; r < num_rows; ++r) {
    auto* to = reinterpret_cast<float*>(
        __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(to_scales), r));
    if (to == nullptr) continue;
    for (std::uint32_t i = lane; i < num_values / kScaleGroup; i += 32) to[i] = scales[i];
  }
}
// What the kernels that quantise begin with: a warp's slots, and the destinations, for all threads.
struct QuantisingWarp {
  std::byte* ring;  // [num_slots]
  Place* places;    // [num_dests]
};
__device__ inline QuantisingWarp enter_quantised(const TransferBlock* send_blocks,
                                                 const PutBlocks& blocks, const PutLaunch& launch) {
  extern __shared__ __align__(128) std::byte shared[];
  wait_for_previous_launch();
  const std::size_t ring_bytes = std::size_t{launch.num_slots} * launch.slot_bytes;
  const QuantisingWarp warp{shared + threadIdx.x / 32 * ring_bytes,
                            reinterpret_cast<Place*>(shared + blockDim.x / 32 * ring_bytes)};
  fill_places(warp.places, send_blocks, blocks, launch);
  __syncthreads();
  return warp;
}
// Until a slot that was stored `num_slots` groups ago may be written again.
__device__ inline void await_slot(std::uint32_t num_slots) {
  if (num_slots > 1) {
    await_stores_read<1>();
  } else {
    await_stores_read<0>();
  }
  __syncwarp();
}
#endif

// BF16 tokens of kSteps * 1,024 values that leave as FP8, a row per warp at a time. Values go from
// memory to registers, one step ahead of the work, and only what leaves is staged in shared memory.
// Grid: at most `sms` blocks. Shared memory: the slots of the warps, then the places.
template <std::uint32_t kSteps>
__global__ void __launch_bounds__(kMaxQuantiseWarps * 32)
    put_whole_rows(TokenItems items, std::uint32_t num_items, const TransferBlock* send_blocks,
                   PutBlocks blocks, PutLaunch launch, FlagChannel channel) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr std::uint32_t kHidden = kSteps * kStepValues;
  const unsigned lane = threadIdx.x % 32;
  const QuantisingWarp warp = enter_quantised(send_blocks, blocks, launch);

  const Share share(num_items);
  const auto source = [&](std::uint32_t n) {
    return reinterpret_cast<const uint4*>(items.source(share.item(n)));
  };
  const uint4* from = source(0);
  StepValues now{};
  if (share.count > 0) now = load_step(from, 0, kHidden);
  // While the first values are on their way.
  copy_lists(send_blocks, blocks, launch.type, kHidden);
  std::byte* slot = warp.ring;
  for (std::uint32_t n = 0; n < share.count; ++n) {
    const std::uint32_t row = items.row(share.item(n), lane);
    // Behind the last row its own beginning is read once more, and left.
    const uint4* const next = n + 1 < share.count ? source(n + 1) : from;
    auto* const scales = reinterpret_cast<float*>(slot + kHidden);
    await_slot(launch.num_slots);
#pragma unroll
    for (std::uint32_t step = 0; step < kSteps; ++step) {
      const StepValues ahead =
          step + 1 < kSteps ? load_step(from, step + 1, kHidden) : load_step(next, 0, kHidden);
      quantise_step(now, slot + step * kStepValues, scales + 8 * step);
      now = ahead;
    }
    from = next;
    store_quantised(slot, scales, row, 0, kHidden, kHidden, warp.places, blocks);
    slot = slot == warp.ring && launch.num_slots > 1 ? warp.ring + launch.slot_bytes : warp.ring;
  }
  finish_put(channel);
#endif
}

// The same for rows of any length, and where there are fewer rows than warps: a warp's unit of work is
// one of `num_parts` parts of a row.
// Grid: at most `sms` blocks. Shared memory: the slots of the warps, then the places.
__global__ void __launch_bounds__(kMaxQuantiseWarps * 32)
    put_quantised(TokenItems items, std::uint32_t num_items, std::uint32_t num_parts,
                  const TransferBlock* send_blocks, PutBlocks blocks, PutLaunch launch,
                  FlagChannel channel) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const unsigned lane = threadIdx.x % 32;
  const QuantisingWarp warp = enter_quantised(send_blocks, blocks, launch);

  const std::uint32_t num_steps = steps_of(launch.hidden);
  const Share share(num_items * num_parts);
  // Where the next load is, and where the work is: unit of the share, and step of the row.
  struct Cursor {
    std::uint32_t n = 0, item = 0, step = 0, first = 0, end = 0;
  };
  const auto enter = [&](Cursor& at) {
    if (at.n >= share.count) return;
    const std::uint32_t unit = share.item(at.n);
    at.item = num_parts == 1 ? unit : unit / num_parts;
    const std::uint32_t part = unit - at.item * num_parts;
    at.step = at.first = part * num_steps / num_parts;
    at.end = (part + 1) * num_steps / num_parts;
  };
  const auto advance = [&](Cursor& at) {
    if (++at.step < at.end) return;
    ++at.n;
    enter(at);
  };
  Cursor ahead;
  Cursor now;
  enter(ahead);
  enter(now);
  const auto load = [&](StepValues& values) {
    if (ahead.n >= share.count) return;
    values = load_step(reinterpret_cast<const uint4*>(items.source(ahead.item)), ahead.step,
                       launch.hidden);
    advance(ahead);
  };
  std::uint32_t slot = 0;
  std::uint32_t row = kNoRow;  // this lane's, of the unit's item
  const auto work = [&](const StepValues& values) {
    std::byte* const output = warp.ring + std::size_t{slot} * launch.slot_bytes;
    float* const scales = reinterpret_cast<float*>(output + num_steps * kStepValues);
    if (now.step == now.first) {
      row = items.row(now.item, lane);
      await_slot(launch.num_slots);
    }
    quantise_step(values, output + (now.step - now.first) * kStepValues,
                  scales + 8 * (now.step - now.first));
    if (now.step + 1 == now.end) {
      const std::uint32_t first = now.first * kStepValues;
      const std::uint32_t num_values = min(launch.hidden, now.end * kStepValues) - first;
      store_quantised(output, scales, row, first, num_values, launch.hidden, warp.places, blocks);
      if (++slot == launch.num_slots) slot = 0;
    }
    advance(now);
  };
  StepValues even{};
  StepValues odd{};
  load(even);
  // While the first values are on their way.
  copy_lists(send_blocks, blocks, launch.type, launch.hidden);
  while (now.n < share.count) {
    load(odd);
    work(even);
    if (now.n >= share.count) break;
    load(even);
    work(odd);
  }
  finish_put(channel);
#endif
}

// --- pull ---------------------------------------------------------------------------------------

struct PullLaunch {
  std::uint32_t num_slots;  // per warp
  std::uint32_t chunk;      // values; a slot holds a chunk of a row
  std::uint32_t num_chunks;
  std::uint32_t hidden;
};

// Grid: at most `sms` blocks. Shared memory: the rings of the warps, then the places. A warp fetches
// the items of its share one after the other, each in chunks of its columns, and of each chunk row
// after row; a slot's mark says what its chunk is to the sum.
template <class Items>
__global__ void __launch_bounds__(kMaxRingWarps * 32)
    pull_rows(Items items, std::uint32_t num_items, const TransferBlock* send_blocks,
              PullBlocks blocks, PullLaunch launch, const Bf16* addend, Bf16* outputs) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ std::uint64_t barriers[kMaxRingSlots];
  __shared__ std::uint8_t marks[kMaxRingSlots];
  constexpr std::uint8_t kFirst = 1;  // begins a sum
  constexpr std::uint8_t kLast = 2;   // ends it
  constexpr std::uint8_t kEmpty = 4;  // an item without rows
  wait_for_previous_launch();
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  const std::uint32_t num_slots = launch.num_slots;
  const std::uint32_t slot_bytes = launch.chunk * 2;
  std::byte* const ring = shared + std::size_t{warp} * num_slots * slot_bytes;
  std::uint64_t* const full = barriers + warp * num_slots;
  std::uint8_t* const mark = marks + warp * num_slots;
  auto* const places =
      reinterpret_cast<Place*>(shared + std::size_t{blockDim.x / 32} * num_slots * slot_bytes);
  for (std::uint32_t p = threadIdx.x; p < blocks.num_dests; p += blockDim.x) {
    places[p] = {reinterpret_cast<std::byte*>(const_cast<Bf16*>(blocks.results[p])), nullptr,
                 send_blocks[p].row_begin};
  }
  if (lane == 0) {
    for (std::uint32_t s = 0; s < num_slots; ++s) init_barrier(&full[s]);
    fence_shared_proxy();
  }
  __syncthreads();

  const Share share(num_items);
  const auto chunk_values = [&](std::uint32_t chunk) {
    return min(launch.chunk, launch.hidden - chunk * launch.chunk);
  };

  // What is fetched next: item `n` of the share, chunk, and row of its list.
  std::uint32_t n = 0;
  std::uint32_t chunk = 0;
  std::uint32_t r = 0;
  unsigned num_rows = 0;            // of the item, the addend included
  const std::byte* from = nullptr;  // per lane: the row of the lane's number
  std::uint32_t next_row = share.count > 0 ? items.row(share.item(0), lane) : kNoRow;
  const auto enter = [&] {
    const std::uint32_t row = next_row;
    if (n + 1 < share.count) next_row = items.row(share.item(n + 1), lane);
    const std::uint32_t p = find_block(blocks.num_dests, row, PlaceBegins{places});
    from = row == kNoRow
               ? nullptr
               : places[p].values + std::size_t{row - places[p].row_begin} * launch.hidden * 2;
    num_rows = static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, row != kNoRow)));
    if (addend != nullptr) {
      if (lane == num_rows) {
        from =
            reinterpret_cast<const std::byte*>(addend + std::size_t{share.item(n)} * launch.hidden);
      }
      ++num_rows;
    }
  };
  if (share.count > 0) enter();
  const auto fetch = [&](std::uint32_t slot) {
    const auto* row = reinterpret_cast<const std::byte*>(
        __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(from), static_cast<int>(r)));
    if (lane == 0) {
      mark[slot] = static_cast<std::uint8_t>(
          (r == 0 ? kFirst : 0) | (r + 1 >= num_rows ? kLast : 0) | (num_rows == 0 ? kEmpty : 0));
      const std::uint32_t bytes = num_rows == 0 ? 0 : chunk_values(chunk) * 2;
      expect_bytes(&full[slot], bytes);
      if (bytes > 0) {
        load_bulk(ring + std::size_t{slot} * slot_bytes, row + std::size_t{chunk} * slot_bytes,
                  bytes, &full[slot]);
      }
    }
    if (++r < num_rows) return;
    r = 0;
    if (++chunk < launch.num_chunks) return;
    chunk = 0;
    if (++n < share.count) enter();
  };
  for (std::uint32_t s = 0; s < num_slots && n < share.count; ++s) fetch(s);
  __syncwarp();

  std::uint32_t slot = 0;
  std::uint32_t parity = 0;
  float sum[kPullVectors][8];
  // What is summed: item `m` of the share, and its chunk.
  for (std::uint32_t m = 0; m < share.count; ++m) {
    auto* const output =
        reinterpret_cast<uint4*>(outputs + std::size_t{share.item(m)} * launch.hidden);
    for (std::uint32_t c = 0; c < launch.num_chunks; ++c) {
      const std::uint32_t num_vectors = chunk_values(c) / 8;
      std::uint8_t what = 0;
      while ((what & kLast) == 0) {
        wait_barrier(&full[slot], parity);
        what = mark[slot];
        if ((what & kFirst) != 0) {
#pragma unroll
          for (unsigned u = 0; u < kPullVectors; ++u) {
#pragma unroll
            for (int e = 0; e < 8; ++e) sum[u][e] = 0.0F;
          }
        }
        if ((what & kEmpty) == 0) {
          const auto* values =
              reinterpret_cast<const uint4*>(ring + std::size_t{slot} * slot_bytes);
#pragma unroll
          for (unsigned u = 0; u < kPullVectors; ++u) {
            const std::uint32_t i = u * 32 + lane;
            if (i >= num_vectors) continue;
            float x[8];
            unpack8(values[i], x);
#pragma unroll
            for (int e = 0; e < 8; ++e) sum[u][e] += x[e];
          }
        }
        __syncwarp();  // everybody has read the slot and its mark
        if (n < share.count) fetch(slot);
        __syncwarp();
        if (++slot == num_slots) {
          slot = 0;
          parity ^= 1;
        }
      }
#pragma unroll
      for (unsigned u = 0; u < kPullVectors; ++u) {
        const std::uint32_t i = u * 32 + lane;
        if (i < num_vectors) store_once(output + c * (launch.chunk / 8) + i, pack8(sum[u]));
      }
    }
  }
#endif
}

// --- launching ----------------------------------------------------------------------------------

// Shared memory of a block besides its rings.
std::size_t places_bytes(std::uint32_t num_dests) {
  return std::size_t{num_dests} * sizeof(Place);
}
constexpr std::size_t kStaticShared = 1024;  // barriers, marks, and what the system keeps

std::uint32_t put_slot_bytes(std::uint32_t hidden, RowType type, bool quantise) {
  // Whole steps, each with the scales of its eight groups.
  const std::size_t row =
      quantise ? std::size_t{steps_of(hidden)} * (kStepValues + 8 * 4) : value_bytes(type, hidden);
  return static_cast<std::uint32_t>(round_up(row, 128));
}

std::uint32_t pull_chunk(std::uint32_t hidden) {
  const std::uint32_t num_chunks = (hidden + kMaxChunk - 1) / kMaxChunk;
  return static_cast<std::uint32_t>(round_up((hidden + num_chunks - 1) / num_chunks, 64));
}

// At most `warps`, each with at least `least` slots where there is room for as many.
RingShape share_slots(std::size_t slots, std::uint32_t warps, std::uint32_t least) {
  if (slots == 0) throw std::invalid_argument("direct: a row does not fit into shared memory");
  slots = std::min<std::size_t>(slots, kMaxRingSlots);
  RingShape shape;
  shape.num_warps = static_cast<std::uint32_t>(std::clamp<std::size_t>(slots / least, 1, warps));
  shape.num_slots = static_cast<std::uint32_t>(slots / shape.num_warps);
  return shape;
}

void check_hidden(RowType type, std::uint32_t hidden) {
  const std::uint32_t unit = type == RowType::kFp8 ? kScaleGroup : 8;
  if (hidden == 0 || hidden % unit != 0) {
    throw std::invalid_argument("direct: hidden must be a positive multiple of 8, of 128 for FP8");
  }
}
void check_launch_arguments(std::uint32_t num_dests, std::uint32_t sms) {
  if (num_dests == 0 || num_dests > kMaxDests) {
    throw std::invalid_argument("direct: num_dests must be 1 to 512");
  }
  if (sms == 0) throw std::invalid_argument("direct: sms must be at least 1");
}
void check_ring(const RingShape& shape, std::uint32_t max_warps = kMaxRingWarps) {
  if (shape.num_warps == 0 || shape.num_warps > max_warps || shape.num_slots == 0 ||
      shape.num_warps * shape.num_slots > kMaxRingSlots) {
    throw std::invalid_argument(
        "direct: a ring of 1 to 16 warps (28 where rows are quantised) and 1 to 64 slots in all");
  }
}

std::size_t shared_limit() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes);
}

void check_room(std::size_t bytes) {
  if (bytes + kStaticShared <= shared_limit()) return;
  throw std::invalid_argument("direct: a ring that is larger than the shared memory of a block");
}

constexpr std::uint32_t kQuantiseWarps = 24;
// Of all multiprocessors together. Measured between two H200s (kernels/results/direct_2xh200.md): more
// rows in flight hinder each other, long ones sooner.
constexpr std::uint32_t most_quantising_warps(std::uint32_t hidden) {
  return hidden > 4096 ? 192 : 320;
}

// What both kernels of put are launched with.
struct PutSetup {
  PutLaunch launch{};
  RingShape shape;
  std::size_t shared_bytes = 0;
};
PutSetup set_up_put(RowType type, std::uint32_t hidden, bool quantise, std::uint32_t num_dests,
                    std::uint32_t sms, RingShape shape) {
  check_hidden(type, hidden);
  check_launch_arguments(num_dests, sms);
  if (shape.num_warps == 0) {
    shape = put_ring(type, hidden, quantise, num_dests, shared_limit());
    if (quantise) {
      const std::uint32_t num_slots = shape.num_warps * shape.num_slots;
      shape.num_warps =
          std::min(shape.num_warps, std::max(most_quantising_warps(hidden) / sms, 8U));
      shape.num_slots = num_slots / shape.num_warps;
    }
  }
  if (quantise) shape.num_slots = std::min(shape.num_slots, 2U);
  check_ring(shape, quantise ? kMaxQuantiseWarps : kMaxRingWarps);
  PutSetup setup;
  setup.shape = shape;
  setup.launch.num_slots = shape.num_slots;
  setup.launch.slot_bytes = put_slot_bytes(hidden, type, quantise);
  setup.launch.store_bytes = static_cast<std::uint32_t>(value_bytes(type, hidden));
  setup.launch.hidden = hidden;
  setup.launch.type = type;
  setup.shared_bytes = std::size_t{shape.num_warps} * shape.num_slots * setup.launch.slot_bytes +
                       places_bytes(num_dests);
  check_room(setup.shared_bytes);
  return setup;
}

template <class Items>
void launch_put(const Items& items, std::uint32_t num_items, RowType type, std::uint32_t hidden,
                const SendIndex& index, const PutBlocks& blocks, const FlagChannel& channel,
                std::uint32_t sms, cudaStream_t stream, const RingShape& shape) {
  const PutSetup setup = set_up_put(type, hidden, false, blocks.num_dests, sms, shape);
  allow_shared(reinterpret_cast<const void*>(&put_rows<Items>), setup.shared_bytes);
  launch_dependent(&put_rows<Items>, sms, setup.shape.num_warps * 32, setup.shared_bytes, stream,
                   items, num_items, index.blocks, blocks, setup.launch, channel);
}

void launch_put_quantised(const TokenItems& items, std::uint32_t num_items, std::uint32_t hidden,
                          const SendIndex& index, const PutBlocks& blocks,
                          const FlagChannel& channel, std::uint32_t sms, cudaStream_t stream,
                          const RingShape& shape) {
  const PutSetup setup = set_up_put(RowType::kFp8, hidden, true, blocks.num_dests, sms, shape);
  const std::uint32_t num_warps = sms * setup.shape.num_warps;
  const std::uint32_t num_parts =
      std::clamp((num_warps + 1) / std::max(num_items, 1U), 1U, steps_of(hidden));
  if (num_parts == 1 && hidden % kStepValues == 0) {
    const auto launch_whole = [&](auto kernel) {
      allow_shared(reinterpret_cast<const void*>(kernel), setup.shared_bytes);
      launch_dependent(kernel, sms, setup.shape.num_warps * 32, setup.shared_bytes, stream, items,
                       num_items, index.blocks, blocks, setup.launch, channel);
    };
    switch (hidden / kStepValues) {
      case 2:
        return launch_whole(&put_whole_rows<2>);
      case 4:
        return launch_whole(&put_whole_rows<4>);
      case 5:
        return launch_whole(&put_whole_rows<5>);
      case 7:
        return launch_whole(&put_whole_rows<7>);
      default:
        break;
    }
  }
  allow_shared(reinterpret_cast<const void*>(&put_quantised), setup.shared_bytes);
  launch_dependent(&put_quantised, sms, setup.shape.num_warps * 32, setup.shared_bytes, stream,
                   items, num_items, num_parts, index.blocks, blocks, setup.launch, channel);
}

template <class Items>
void launch_pull(const Items& items, std::uint32_t num_items, std::uint32_t hidden,
                 const SendIndex& index, const PullBlocks& blocks, Bf16* outputs,
                 const Bf16* addend, std::uint32_t sms, cudaStream_t stream, RingShape shape) {
  check_hidden(RowType::kBf16, hidden);
  check_launch_arguments(blocks.num_dests, sms);
  if (num_items == 0) return;
  if (shape.num_warps == 0) shape = pull_ring(hidden, blocks.num_dests, shared_limit());
  check_ring(shape);
  PullLaunch launch{};
  launch.num_slots = shape.num_slots;
  launch.chunk = pull_chunk(hidden);
  launch.num_chunks = (hidden + launch.chunk - 1) / launch.chunk;
  launch.hidden = hidden;
  const std::size_t bytes = std::size_t{shape.num_warps} * shape.num_slots * launch.chunk * 2 +
                            places_bytes(blocks.num_dests);
  check_room(bytes);
  allow_shared(reinterpret_cast<const void*>(&pull_rows<Items>), bytes);
  launch_dependent(&pull_rows<Items>, sms, shape.num_warps * 32, bytes, stream, items, num_items,
                   index.blocks, blocks, launch, addend, outputs);
}

}  // namespace

RingShape put_ring(RowType type, std::uint32_t hidden, bool quantise, std::uint32_t num_dests,
                   std::size_t shared_bytes) {
  const std::size_t fixed = kStaticShared + places_bytes(num_dests);
  const std::size_t room = shared_bytes > fixed ? shared_bytes - fixed : 0;
  const std::size_t slots = room / put_slot_bytes(hidden, type, quantise);
  if (!quantise) return share_slots(slots, 8, 2);
  // Quantising wants warps; what a warp does while its row is read for its store is little.
  RingShape shape = share_slots(slots, kQuantiseWarps, 1);
  shape.num_slots = std::min(shape.num_slots, 2U);
  return shape;
}
RingShape pull_ring(std::uint32_t hidden, std::uint32_t num_dests, std::size_t shared_bytes) {
  const std::size_t fixed = kStaticShared + places_bytes(num_dests);
  const std::size_t room = shared_bytes > fixed ? shared_bytes - fixed : 0;
  return share_slots(room / (std::size_t{2} * pull_chunk(hidden)), kMaxRingWarps, 3);
}

void synchronise(const FlagChannel& channel, const std::uint32_t* counts_out,
                 std::uint32_t* counts_in, cudaStream_t stream) {
  if ((counts_out == nullptr) != (counts_in == nullptr)) {
    throw std::invalid_argument("synchronise: counts go out and come in, or neither");
  }
  launch_dependent(&synchronise_ranks, 1, kSyncThreads, 0, stream, channel, counts_out, counts_in);
}

void put(const Bf16* tokens, const TokenRouting& routing, std::uint32_t hidden, RowType type,
         const SendIndex& index, const PutBlocks& blocks, const FlagChannel& channel,
         std::uint32_t sms, cudaStream_t stream, const RingShape& shape) {
  if (routing.num_topk == 0 || routing.num_topk > kMaxTopk) {
    throw std::invalid_argument("put: num_topk must be 1 to 32");
  }
  const TokenItems items{reinterpret_cast<const std::byte*>(tokens), index.item_rows,
                         routing.num_tokens, routing.num_topk, 2 * hidden};
  if (type == RowType::kBf16) {
    launch_put(items, routing.num_tokens, type, hidden, index, blocks, channel, sms, stream, shape);
  } else {
    launch_put_quantised(items, routing.num_tokens, hidden, index, blocks, channel, sms, stream,
                         shape);
  }
}

void put(const ReceivedRows& received, const SendIndex& index, const PutBlocks& blocks,
         const FlagChannel& channel, std::uint32_t sms, cudaStream_t stream,
         const RingShape& shape) {
  launch_put(ReceivedItems{received, index.item_rows}, received.num_rows, received.type,
             received.hidden, index, blocks, channel, sms, stream, shape);
}

void pull(const TokenRouting& routing, std::uint32_t hidden, const SendIndex& index,
          const PullBlocks& blocks, Bf16* outputs, const Bf16* addend, std::uint32_t sms,
          cudaStream_t stream, const RingShape& shape) {
  if (routing.num_topk == 0 || routing.num_topk + (addend != nullptr ? 1 : 0) > kMaxTopk) {
    throw std::invalid_argument("pull: num_topk must be 1 to 32, with an addend to 31");
  }
  const TokenItems items{nullptr, index.item_rows, routing.num_tokens, routing.num_topk,
                         2 * hidden};
  launch_pull(items, routing.num_tokens, hidden, index, blocks, outputs, addend, sms, stream,
              shape);
}

void pull(const ReceivedRows& received, const SendIndex& index, const PullBlocks& blocks,
          Bf16* results, std::uint32_t sms, cudaStream_t stream, const RingShape& shape) {
  launch_pull(ReceivedItems{received, index.item_rows}, received.num_rows, received.hidden, index,
              blocks, results, nullptr, sms, stream, shape);
}

}  // namespace coterie::kernels
