#pragma once
// Slow, obvious CPU versions of everything the GPU does, straight from the contracts and sharing no
// code with the kernels: what the tests compare with. Sums are in double. No GPU needed.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/layout.hpp"

namespace coterie::kernels::reference {

// ||out - expected|| / ||expected||; infinity where sizes differ, where anything is not finite, or
// where the expected norm is 0 and the other is not.
double relative_error(std::span<const float> out, std::span<const float> expected);

// --- number formats -----------------------------------------------------------------------------

float round_to_bf16(float value);  // to nearest, ties to even
// OCP 8-bit floating point E4M3 (finite values up to 448, one NaN code): to nearest, ties to even,
// saturating.
std::uint8_t to_e4m3(float value);
float from_e4m3(std::uint8_t code);

struct QuantisedRow {
  std::vector<std::uint8_t> values;  // [hidden]
  std::vector<float> scales;         // [hidden / 128]
};
// As pack() says (rows.hpp).
QuantisedRow quantise(std::span<const float> row);
std::vector<float> dequantise(const QuantisedRow& row);  // rounded to BF16

// --- indexes ------------------------------------------------------------------------------------

// What rows are made from, with the copies it carries.
struct Item {
  std::vector<Copy> copies;
};
std::vector<Item> token_items(std::span<const std::uint16_t> experts,
                              std::span<const float> weights, std::uint32_t num_topk);

struct Row {
  std::uint32_t item;
  std::uint32_t mask;        // of the item's copies
  std::vector<Copy> copies;  // those in the mask
};
struct SendRows {
  std::vector<std::vector<Row>> blocks;  // [num_dests] by send position
  std::vector<std::uint32_t> item_rows;  // as SendIndex::item_rows
};
struct Targets {
  std::vector<std::uint16_t> expert_dest;
  std::uint32_t num_dests;
  std::uint32_t first_dest;
  bool row_per_copy;
};
SendRows send_rows(std::span<const Item> items, const Targets& targets);

struct Slots {
  std::vector<std::uint32_t> copy_slot;
  std::vector<std::uint32_t> slot_copy;
  std::vector<std::uint32_t> expert_begin;
};
Slots receive_slots(std::span<const Copy> copies, std::span<const std::uint16_t> expert_local,
                    std::uint32_t num_local_experts);

// A block's bytes, taken apart by the text of layout.hpp.
struct BlockRow {
  std::vector<Copy> copies;
  std::vector<float> values;  // BF16 as they are; FP8 dequantised, rounded to BF16
};
std::vector<BlockRow> decode_block(std::span<const std::byte> bytes, std::uint32_t num_rows,
                                   RowType type, std::uint32_t hidden);

// --- rows ---------------------------------------------------------------------------------------

using Matrix = std::vector<float>;  // row-major [rows][hidden]

// expert_rows[copy_slot[c]] = values of the row that holds copy c.
Matrix expand(std::span<const BlockRow> rows, std::span<const std::uint32_t> copy_slot,
              std::uint32_t hidden);
// results[r] = sum of weight[c] * expert_outputs[copy_slot[c]] over the row's copies.
Matrix merge(std::span<const BlockRow> rows, std::span<const std::uint32_t> copy_slot,
             const Matrix& expert_outputs, std::uint32_t hidden);
// outputs[i] = sum of returned[row] over the item's rows.
Matrix combine(std::span<const Item> items, std::span<const std::uint32_t> item_rows,
               const Matrix& returned, std::uint32_t hidden);

// --- expert MLP ---------------------------------------------------------------------------------

// W_down (silu(W_gate x) * (W_up x)) of one row, weights by expert_weight; the two products and the
// activation are rounded to BF16 where the GPU stores them.
struct MlpExpert {
  std::array<std::vector<float>, 3> weights;  // gate, up, down
};
std::vector<float> expert_mlp(const MlpExpert& expert, std::span<const float> x,
                              std::uint32_t intermediate);

}  // namespace coterie::kernels::reference
