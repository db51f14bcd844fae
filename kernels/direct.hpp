#pragma once
// One-sided dispatch and combine: kernels that write rows straight into the memory of the ranks that
// need them, and that fetch results from there. Memory of another rank is *peer memory*: device
// memory of another process, mapped into this one (runtime/device/peer_memory.hpp).
//
//   synchronise  (counts)   every peer knows that this rank has come so far
//   put          dispatch   rows, copies and row words to their blocks at the receivers; then waits
//                           for what the peers put here
//   pull         combine    results from where they were computed, summed into one row per item
//
// Put and pull move rows by bulk copies (cp.async.bulk) through shared memory: every warp drives a
// ring of its own, so rows in flight, not threads, hide the latency of the links. They use `sms`
// blocks that fill a multiprocessor each. A token's row is read once, whatever the number of its
// destinations. Where it leaves as FP8 it is read into registers, one step ahead of the work, and
// quantised; its bulk copies take what has become of it. Quantising takes instructions more than
// anything: up to 24 warps per block work on rows of their own, or on parts of rows where there are few.
//
// Flags. A *channel* is one kind of step that all ranks carry out the same number of times in the
// same order. Each rank counts in its own memory how often it has done so (the epoch), writes the new
// epoch into the memory of its peers (release, system scope, after everything that the step wrote),
// and waits until all of them have written theirs (acquire). The counter is in device memory, so a
// captured graph can be replayed. No wait is without an end: after `deadline_ns`, or as soon as the
// host sets `stop`, it gives up, says so in `WaitState`, and the kernel returns; outputs are then
// undefined.
//
// Residence. Ranks may share a GPU, and a kernel that waits for another rank must not keep that
// rank's kernels from running: only one block of a kernel ever waits, and none of the kernels here
// lets its successor take its place before it ends.
//
// They need compute capability 9.0. All functions only enqueue work on `stream`; wrong arguments
// throw std::invalid_argument before anything is enqueued.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda.hpp"
#include "kernels/index.hpp"
#include "kernels/layout.hpp"

namespace coterie::kernels {

// Pinned host memory that the device sees: how a wait ended that should not have.
struct WaitState {
  std::uint32_t stop;     // set by the host, and by the device with a fault: no wait goes on
  std::uint32_t fault;    // 1: a wait passed its deadline; the rest says which (of one at least)
  std::uint32_t channel;  // in which step
  std::uint32_t peer;     // for which rank
  std::uint32_t epoch;    // the epoch that was waited for
  std::uint32_t seen;     // the epoch that the peer had written
};

// The flags of one rank, in peer memory, all zero in the beginning. Per channel a line of 32 bytes
// for each rank that writes here and one for the rank's own counters; behind them the counts that
// came with a synchronisation, for an even and an odd epoch: [2][num_ranks][2].
inline constexpr std::size_t kFlagStride = 32;
COTERIE_HOST_DEVICE constexpr std::size_t flag_offset(std::uint32_t num_ranks,
                                                      std::uint32_t channel, std::uint32_t from) {
  return (std::size_t{channel} * (num_ranks + 1) + from) * kFlagStride;
}
COTERIE_HOST_DEVICE constexpr std::size_t counter_offset(std::uint32_t num_ranks,
                                                         std::uint32_t channel) {
  return flag_offset(num_ranks, channel, num_ranks);
}
COTERIE_HOST_DEVICE constexpr std::size_t counts_offset(std::uint32_t num_ranks,
                                                        std::uint32_t num_channels,
                                                        std::uint32_t epoch, std::uint32_t from) {
  return flag_offset(num_ranks, num_channels, 0) +
         (std::size_t{epoch % 2} * num_ranks + from) * 2 * sizeof(std::uint32_t);
}
COTERIE_HOST_DEVICE constexpr std::size_t flags_bytes(std::uint32_t num_ranks,
                                                      std::uint32_t num_channels) {
  return counts_offset(num_ranks, num_channels, 1, num_ranks);
}
// Whether a flag has reached an epoch; both count modulo 2^32.
COTERIE_HOST_DEVICE constexpr bool has_reached(std::uint32_t flag, std::uint32_t epoch) {
  return static_cast<std::int32_t>(flag - epoch) >= 0;
}

// One channel between this rank and its peers.
struct FlagChannel {
  std::byte* const* flags;     // device, [num_ranks]: every rank's flags as this one sees them
  const std::uint32_t* peers;  // device, [num_peers]: ranks, this one not among them
  std::uint32_t num_peers;
  std::uint32_t rank;
  std::uint32_t num_ranks;
  std::uint32_t channel;
  std::uint32_t num_channels;
  WaitState* state;  // as the device sees it
  std::uint64_t deadline_ns;
};

// Tells all peers that this rank's work on `stream` has come here, and waits until they have said the
// same. With counts, [num_ranks][2] device memory: peer p gets counts_out[p], and counts_in[p]
// becomes what p sent here; entries of ranks that are no peers are left alone.
void synchronise(const FlagChannel& channel, const std::uint32_t* counts_out,
                 std::uint32_t* counts_in, cudaStream_t stream);

// How the blocks of put and pull use their shared memory; zero: chosen by the size of a row.
struct RingShape {
  std::uint32_t num_warps = 0;
  std::uint32_t num_slots = 0;  // per warp
};

// Where a sender's blocks lie at their receivers: [num_dests] by send position, device memory. The
// own block (position 0) is the one that the index was built into; so may others be, which something
// else carries to their receivers.
struct PutBlocks {
  std::byte* const* data;
  std::uint32_t num_dests;
  // Tokens only: the values of the own rows are not copied; RowsInPlace tells where they are.
  bool own_in_place = false;
};

// Dispatch of tokens. Values (and scales) of every row of every token's list to its place in the
// receiver's block, quantised as `pack` does it; copies and row words from the blocks that
// build_send_index laid out. The blocks are complete at the peers of `channel` once they have seen
// its epoch, and those of the peers are complete here when the kernel ends.
void put(const Bf16* tokens, const TokenRouting& routing, std::uint32_t hidden, RowType type,
         const SendIndex& index, const PutBlocks& blocks, const FlagChannel& channel,
         std::uint32_t sms, cudaStream_t stream, const RingShape& shape = {});
// The second hop: received rows as they are.
void put(const ReceivedRows& received, const SendIndex& index, const PutBlocks& blocks,
         const FlagChannel& channel, std::uint32_t sms, cudaStream_t stream,
         const RingShape& shape = {});

// Where the results of a sender's rows lie: [num_dests] by send position, device memory; each the
// first of the block's rows, [num_rows][hidden].
struct PullBlocks {
  const Bf16* const* results;
  std::uint32_t num_dests;
};

// Combine: outputs[t][:] = sum over the rows r of token t, in the order of item_rows, of r's result,
// and of addend[t][:] last where there is one; in float, rounded once; bit for bit what `combine`
// makes of returned rows. Peers must have announced their results before (synchronise).
// A token may have 31 copies where there is an addend, else kMaxTopk.
void pull(const TokenRouting& routing, std::uint32_t hidden, const SendIndex& index,
          const PullBlocks& blocks, Bf16* outputs, const Bf16* addend, std::uint32_t sms,
          cudaStream_t stream, const RingShape& shape = {});
// The same for received rows as items: what `combine_received` makes of returned rows.
void pull(const ReceivedRows& received, const SendIndex& index, const PullBlocks& blocks,
          Bf16* results, std::uint32_t sms, cudaStream_t stream, const RingShape& shape = {});

// The rings that put and pull choose. Throws std::invalid_argument for rows that do not fit into the
// `shared_bytes` that a block may have.
RingShape put_ring(RowType type, std::uint32_t hidden, bool quantise, std::uint32_t num_dests,
                   std::size_t shared_bytes);
RingShape pull_ring(std::uint32_t hidden, std::uint32_t num_dests, std::size_t shared_bytes);

}  // namespace coterie::kernels
