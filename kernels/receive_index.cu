// The receiver's index.

#include <algorithm>
#include <stdexcept>

#include "kernels/cuda.hpp"
#include "kernels/index.hpp"
#include "kernels/index_chunks.cuh"
#include "kernels/lookup.cuh"

namespace coterie::kernels {
namespace {

constexpr unsigned kWarps = kCopies / 32;

struct CopyRank {
  std::uint32_t key;   // local expert, or kNoRow
  std::uint32_t rank;  // among the copies of that expert in this warp
};

// Counts the copies of every expert per warp:
// warp_count[expert][warp] becomes the copies of the expert in that warp. All threads call it.
__device__ CopyRank rank_copies(const ReceivedRows& received, const std::uint16_t* expert_local,
                                std::uint32_t num_local_experts, std::uint16_t* warp_count,
                                std::uint32_t copy) {
  for (std::uint32_t i = threadIdx.x; i < num_local_experts * kWarps; i += kCopies) {
    warp_count[i] = 0;
  }
  CopyRank result{kNoRow, 0};
  const std::uint32_t b = find_block(received.num_blocks, copy, CopyBegins{received.blocks});
  if (copy < received.num_copies) {
    const TransferBlock block = received.blocks[b];
    const std::uint32_t expert =
        block_copies(block, received.type, received.hidden)[copy - block.copy_begin].expert;
    const std::uint32_t local = expert_local[expert];
    if (local < num_local_experts) result.key = local;
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  const unsigned peers = __match_any_sync(0xffffffffU, result.key);
  result.rank = static_cast<std::uint32_t>(__popc(peers & ((1U << lane) - 1)));
  if (result.key != kNoRow && result.rank == 0) {
    warp_count[result.key * kWarps + warp] = static_cast<std::uint16_t>(__popc(peers));
  }
  __syncthreads();
  return result;
}

// Exclusive scan of warp_count over the warps, 16 lanes per expert; emit(expert, copies in the
// chunk).
static_assert(kWarps == 16);
template <class Emit>
__device__ void scan_warps(std::uint32_t num_local_experts, std::uint16_t* warp_count, Emit emit) {
  const std::uint32_t per_pass = kCopies / kWarps;
  const std::uint32_t rounded = (num_local_experts + per_pass - 1) / per_pass * per_pass;
  for (std::uint32_t e = threadIdx.x / kWarps; e < rounded; e += per_pass) {
    const unsigned w = threadIdx.x % kWarps;
    const std::uint32_t own = e < num_local_experts ? warp_count[e * kWarps + w] : 0U;
    std::uint32_t sum = own;
    for (unsigned step = 1; step < kWarps; step *= 2) {
      const std::uint32_t left = __shfl_up_sync(0xffffffffU, sum, step, kWarps);
      if (w >= step) sum += left;
    }
    if (e < num_local_experts) {
      warp_count[e * kWarps + w] = static_cast<std::uint16_t>(sum - own);
      if (w == kWarps - 1) emit(e, sum);
    }
  }
}

// counts[expert][chunk]. Launch: one block of kCopies per chunk.
__global__ void __launch_bounds__(kCopies)
    count_copies(ReceivedRows received, const std::uint16_t* expert_local,
                 std::uint32_t num_local_experts, std::uint32_t* counts) {
  extern __shared__ __align__(16) std::byte shared[];
  wait_for_previous_launch();
  start_dependent_launch();
  auto* warp_count = reinterpret_cast<std::uint16_t*>(shared);
  rank_copies(received, expert_local, num_local_experts, warp_count,
              blockIdx.x * kCopies + threadIdx.x);
  scan_warps(num_local_experts, warp_count, [&](std::uint32_t expert, std::uint32_t total) {
    counts[std::size_t{expert} * gridDim.x + blockIdx.x] = total;
  });
}

// Slots of all copies. The same launch.
__global__ void __launch_bounds__(kCopies)
    place_copies(ReceivedRows received, const std::uint16_t* expert_local,
                 std::uint32_t num_local_experts, const std::uint32_t* counts, ReceiveIndex index) {
  extern __shared__ __align__(16) std::byte shared[];
  auto* total = reinterpret_cast<std::uint32_t*>(shared);  // then the expert's first slot
  std::uint32_t* before = total + num_local_experts;       // in earlier chunks
  auto* warp_count = reinterpret_cast<std::uint16_t*>(before + num_local_experts);
  const std::uint32_t copy = blockIdx.x * kCopies + threadIdx.x;
  const CopyRank rank = rank_copies(received, expert_local, num_local_experts, warp_count, copy);
  scan_warps(num_local_experts, warp_count, [](std::uint32_t, std::uint32_t) {});
  wait_for_previous_launch();
  start_dependent_launch();

  const unsigned lane = threadIdx.x % 32;
  for (std::uint32_t e = threadIdx.x / 32; e < num_local_experts; e += kWarps) {
    std::uint32_t sum = 0;
    std::uint32_t sum_before = 0;
    for (std::uint32_t c = lane; c < gridDim.x; c += 32) {
      const std::uint32_t count = counts[std::size_t{e} * gridDim.x + c];
      sum += count;
      if (c < blockIdx.x) sum_before += count;
    }
    sum = __reduce_add_sync(0xffffffffU, sum);
    sum_before = __reduce_add_sync(0xffffffffU, sum_before);
    if (lane == 0) {
      total[e] = sum;
      before[e] = sum_before;
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    std::uint32_t begin = 0;
    for (std::uint32_t first = 0; first < num_local_experts; first += 32) {
      const std::uint32_t e = first + lane;
      const std::uint32_t own = e < num_local_experts ? total[e] : 0;
      std::uint32_t sum = own;
      for (unsigned step = 1; step < 32; step *= 2) {
        const std::uint32_t left = __shfl_up_sync(0xffffffffU, sum, step);
        if (lane >= step) sum += left;
      }
      if (e < num_local_experts) {
        total[e] = begin + sum - own;
        if (blockIdx.x == 0) index.expert_begin[e] = begin + sum - own;
      }
      begin += __shfl_sync(0xffffffffU, sum, 31);
    }
    if (blockIdx.x == 0 && lane == 0) index.expert_begin[num_local_experts] = begin;
  }
  __syncthreads();

  if (copy >= received.num_copies) return;
  if (rank.key == kNoRow) {
    index.copy_slot[copy] = kNoRow;
    return;
  }
  const std::uint32_t slot = total[rank.key] + before[rank.key] +
                             warp_count[rank.key * kWarps + threadIdx.x / 32] + rank.rank;
  index.copy_slot[copy] = slot;
  if (index.slot_copy != nullptr) index.slot_copy[slot] = copy;
}

}  // namespace

void build_receive_index(const ReceivedRows& received, const std::uint16_t* expert_local,
                         std::uint32_t num_local_experts, const ReceiveIndex& index,
                         void* workspace, cudaStream_t stream) {
  check_rows(received.type, received.hidden);
  if (num_local_experts == 0 || num_local_experts > kMaxLocalExperts) {
    throw std::invalid_argument("build_receive_index: num_local_experts must be 1 to 1024");
  }
  const std::uint32_t num_chunks = std::max(1U, (received.num_copies + kCopies - 1) / kCopies);
  const std::size_t warp_counts = std::size_t{2} * kWarps * num_local_experts;
  const std::size_t bases = std::size_t{8} * num_local_experts;
  auto* counts = static_cast<std::uint32_t*>(workspace);
  launch_dependent(&count_copies, num_chunks, kCopies, warp_counts, stream, received, expert_local,
                   num_local_experts, counts);
  launch_dependent(&place_copies, num_chunks, kCopies, bases + warp_counts, stream, received,
                   expert_local, num_local_experts, counts, index);
}

}  // namespace coterie::kernels
