#pragma once
// The two-way indexes that drive every other kernel, built on the GPU from the routing (Occult,
// arXiv 2505.13345, calls its own BRIM).
//
//   sender    item -> its rows in the send blocks     rows in the order of the dispatch plan
//   receiver  copy -> its slot in expert order        slots sorted by expert, stable
//
// An *item* is what rows are made from: a token of this rank, or, on the second hop of the
// hierarchical policy, a received row. Every result is a function of the inputs alone: no atomic
// decides an order. All functions only enqueue work on `stream`; device pointers must stay valid
// until it has run. Wrong arguments throw std::invalid_argument before anything is enqueued.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/layout.hpp"

namespace coterie::kernels {

// The routing of this rank's tokens, device memory, router order.
struct TokenRouting {
  const std::uint16_t* experts;  // [num_tokens][num_topk], distinct per token
  const float* weights;          // [num_tokens][num_topk]
  std::uint32_t num_tokens;
  std::uint32_t num_topk;  // 1 to kMaxTopk
};

// Where copies go. Destinations are numbered 0 to num_dests - 1 (EP ranks, or nodes, or the ranks
// of this node) and take the send positions first_dest, first_dest + 1, ... modulo num_dests, as
// a plan orders its transfers. Replicated experts: number the replicas as experts of their own.
struct Targets {
  const std::uint16_t* expert_dest;  // device, [num_experts] destination of each expert; at or
                                     // above num_dests: its copies are dropped
  std::uint32_t num_experts;
  std::uint32_t num_dests;   // 1 to kMaxDests
  std::uint32_t first_dest;  // this rank's (or node's) own number
  bool row_per_copy;         // standard policy: a row of its own for every (token, expert) copy
};
inline constexpr std::uint32_t kMaxDests = 512;

// What a sender's index consists of, device memory of the caller.
struct SendIndex {
  // [num_dests] by send position, destinations without rows included.
  TransferBlock* blocks;
  // The rows of every item, at the places of the item's copies: token t's at [t*k, t*k + k), a
  // received row's from its first copy's number on. Ordered by the first of the item's experts that
  // the row serves; kNoRow behind the last.
  std::uint32_t* item_rows;  // [num_copies]
  // Optional (null: not wanted), the other direction, as the plan lists it.
  std::uint32_t* row_item;  // [num_rows] ascending within a block
  std::uint32_t* row_mask;  // [num_rows] bit j: the row serves the item's j-th copy
};

// Scratch memory for either builder, in bytes.
std::size_t index_workspace_bytes(std::uint32_t num_copies, std::uint32_t num_dests_or_experts);

// Builds the index of the first hop and writes the copies and row words (not the values and scales:
// that is `pack`) into the blocks, which it lays out from `send_buffer` on as `layout_blocks` does.
// The buffer must hold them: num_tokens * num_topk rows of one copy are an upper bound. Rows within
// a block ascend by token; under row_per_copy a token's rows by expert position.
// Result: row r of the block of destination d serves token t with copies {j : dest(experts[t][j])
// == d}; for row_per_copy with one such j.
void build_send_index(const TokenRouting& routing, const Targets& targets, RowType type,
                      std::uint32_t hidden, std::byte* send_buffer, const SendIndex& index,
                      void* workspace, cudaStream_t stream);

// The same for a second hop: the items are received rows, their copies the row's copies. Rows keep
// their type. Rows within a block ascend by the number of the received row, which is the plan's
// order (by parent transfer, then token) where the received blocks ascend by source rank.
void build_forward_index(const ReceivedRows& received, const Targets& targets,
                         std::byte* send_buffer, const SendIndex& index, void* workspace,
                         cudaStream_t stream);

// A receiver's index. Copies are numbered through all received blocks.
struct ReceiveIndex {
  std::uint32_t* copy_slot;     // [num_copies] a permutation
  std::uint32_t* slot_copy;     // [num_copies] its inverse, or null
  std::uint32_t* expert_begin;  // [num_local_experts + 1] first slot of each local expert
};
inline constexpr std::uint32_t kMaxLocalExperts = 1024;

// slot(c) = |{c' : local(c') < local(c) or (local(c') == local(c) and c' < c)}|, where local(c) =
// expert_local[expert of copy c] < num_local_experts. A copy of an expert that is not hosted here
// is a caller's error; it is caught by no kernel but by comparing expert_begin's last entry with
// num_copies.
void build_receive_index(const ReceivedRows& received,
                         const std::uint16_t* expert_local,  // device, [num_experts]
                         std::uint32_t num_local_experts, const ReceiveIndex& index,
                         void* workspace, cudaStream_t stream);

}  // namespace coterie::kernels
