#pragma once
// The kernels that move rows. One layer on one rank:
//
//   pack -> (wire) -> [forward -> (wire) ->] expand -> expert MLP -> merge -> (wire) ->
//   [combine_received -> (wire) ->] combine
//
// All are bound by memory: each reads every input row once and writes every output row once. They
// only enqueue on `stream` (one block per row or item, 16-byte accesses) and synchronise nothing;
// on sm_90 and later a kernel's blocks are put in place while the one before it in the stream ends,
// and wait for its end before they touch memory. Pointers are device memory, 16-byte aligned;
// outputs never overlap inputs. Wrong arguments throw std::invalid_argument before anything is
// enqueued. Sums are in float, in the order of the index, and rounded once, so a result does not
// change from run to run.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda.hpp"
#include "kernels/index.hpp"
#include "kernels/layout.hpp"

namespace coterie::kernels {

// values[row][:] = x[item][:] for every row of every item's list; BF16 as it is, FP8 as
// q = e4m3(x * (1 / s)), s = max |x| over the group of 128 / 448, or 1 where that maximum is below
// 2^-100 (such a group becomes zeros: a scale needs a reciprocal); every operation in float, rounded
// once.
// `tokens` is [num_tokens][hidden]; `index` comes from build_send_index with the same type and
// hidden. Each token is read (and quantised) once and written once per row.
void pack(const Bf16* tokens, std::uint32_t num_tokens, std::uint32_t num_topk,
          std::uint32_t hidden, RowType type, const SendIndex& index, std::uint32_t num_dests,
          cudaStream_t stream);

// Second hop: the values and scales of received rows, bit for bit, to the rows of the forward
// index. Items are the received rows.
void forward(const ReceivedRows& received, const SendIndex& index, std::uint32_t num_dests,
             cudaStream_t stream);

// expert_rows[copy_slot[c]][:] = dequantised values of the row that holds copy c.
// `expert_rows` is [received.num_copies][hidden].
void expand(const ReceivedRows& received, const std::uint32_t* copy_slot, Bf16* expert_rows,
            cudaStream_t stream);

// results[r][:] = sum over the copies c of received row r, in order, of
//                 weight[c] * expert_outputs[copy_slot[c]][:]
// `results` is [received.num_rows][hidden], by the received rows' numbers.
void merge(const ReceivedRows& received, const std::uint32_t* copy_slot, const Bf16* expert_outputs,
           Bf16* results, cudaStream_t stream);

// outputs[t][:] = sum over the rows r of token t, in the order of item_rows, of returned[r][:]
// `returned` is [num_rows][hidden] by the send index's row numbers, `outputs` [num_tokens][hidden].
// A token without rows gets zeros. With `addend`, [num_tokens][hidden], its row of that is added
// last, before the sum is rounded.
void combine(const Bf16* returned, std::uint32_t num_tokens, std::uint32_t num_topk,
             std::uint32_t hidden, const std::uint32_t* item_rows, Bf16* outputs,
             cudaStream_t stream, const Bf16* addend = nullptr);

// The same on the intermediate rank of a hierarchical combine: items are the received rows,
// `returned` is by the forward index's row numbers, `results` [received.num_rows][hidden].
void combine_received(const ReceivedRows& received, const Bf16* returned,
                      const std::uint32_t* item_rows, Bf16* results, cudaStream_t stream);

}  // namespace coterie::kernels
