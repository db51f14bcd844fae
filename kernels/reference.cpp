#include "kernels/reference.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace coterie::kernels::reference {
namespace {

// Unaligned reads, so that decoding depends on nothing but the byte offsets.
template <class T>
T read_at(std::span<const std::byte> bytes, std::size_t offset) {
  if (offset + sizeof(T) > bytes.size()) throw std::out_of_range("decode_block: block too short");
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

float bf16_bits(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace

double relative_error(std::span<const float> out, std::span<const float> expected) {
  constexpr double kBad = std::numeric_limits<double>::infinity();
  if (out.size() != expected.size()) return kBad;
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double d = static_cast<double>(out[i]) - static_cast<double>(expected[i]);
    difference += d * d;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  if (!std::isfinite(difference) || !std::isfinite(norm)) return kBad;
  if (norm > 0.0) return std::sqrt(difference / norm);
  return difference > 0.0 ? kBad : 0.0;
}

float round_to_bf16(float value) {
  if (!std::isfinite(value)) return value;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t odd = bits >> 16 & 1U;
  return std::bit_cast<float>((bits + 0x7fffU + odd) & 0xffff0000U);
}

float from_e4m3(std::uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const float sign = (code & 0x80) != 0 ? -1.0F : 1.0F;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

std::uint8_t to_e4m3(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return static_cast<std::uint8_t>(sign | 0x7f);
  const float magnitude = std::abs(value);
  // The codes 0 to 0x7e ascend with the value: the nearest of all, the even code on a tie.
  std::uint8_t best = 0;
  float best_distance = magnitude;
  for (std::uint8_t code = 1; code <= 0x7e; ++code) {
    const float distance = std::abs(magnitude - from_e4m3(code));
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
      best = code;
      best_distance = distance;
    }
  }
  return static_cast<std::uint8_t>(sign | best);
}

QuantisedRow quantise(std::span<const float> row) {
  QuantisedRow result;
  for (std::size_t first = 0; first < row.size(); first += kScaleGroup) {
    const auto group = row.subspan(first, kScaleGroup);
    float largest = 0.0F;
    for (const float value : group) largest = std::max(largest, std::abs(value));
    const float scale = largest >= std::ldexp(1.0F, -100) ? largest / 448.0F : 1.0F;
    result.scales.push_back(scale);
    const float reciprocal = 1.0F / scale;
    for (const float value : group) result.values.push_back(to_e4m3(value * reciprocal));
  }
  return result;
}

std::vector<float> dequantise(const QuantisedRow& row) {
  std::vector<float> values;
  for (std::size_t i = 0; i < row.values.size(); ++i) {
    values.push_back(round_to_bf16(from_e4m3(row.values[i]) * row.scales[i / kScaleGroup]));
  }
  return values;
}

std::vector<Item> token_items(std::span<const std::uint16_t> experts,
                              std::span<const float> weights, std::uint32_t num_topk) {
  std::vector<Item> items(experts.size() / num_topk);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    items[i / num_topk].copies.push_back({experts[i], weights[i]});
  }
  return items;
}

SendRows send_rows(std::span<const Item> items, const Targets& targets) {
  SendRows result;
  result.blocks.resize(targets.num_dests);
  // Rows of every item in the order of their first copies: (send position, row within the block).
  std::vector<std::vector<std::pair<std::uint32_t, std::uint32_t>>> rows_of(items.size());
  for (std::uint32_t i = 0; i < items.size(); ++i) {
    std::vector<Row*> open(targets.num_dests, nullptr);
    for (std::uint32_t j = 0; j < items[i].copies.size(); ++j) {
      const std::uint32_t dest = targets.expert_dest.at(items[i].copies[j].expert);
      if (dest >= targets.num_dests) continue;
      const std::uint32_t position =
          (dest + targets.num_dests - targets.first_dest) % targets.num_dests;
      if (open[position] == nullptr || targets.row_per_copy) {
        auto& block = result.blocks[position];
        rows_of[i].emplace_back(position, static_cast<std::uint32_t>(block.size()));
        block.push_back({i, 0, {}});
        open[position] = &block.back();
      }
      open[position]->mask |= 1U << j;
      open[position]->copies.push_back(items[i].copies[j]);
    }
  }
  std::vector<std::uint32_t> row_begin(targets.num_dests, 0);
  for (std::size_t p = 1; p < targets.num_dests; ++p) {
    row_begin[p] = row_begin[p - 1] + static_cast<std::uint32_t>(result.blocks[p - 1].size());
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    for (std::size_t j = 0; j < items[i].copies.size(); ++j) {
      result.item_rows.push_back(
          j < rows_of[i].size() ? row_begin[rows_of[i][j].first] + rows_of[i][j].second : kNoRow);
    }
  }
  return result;
}

Slots receive_slots(std::span<const Copy> copies, std::span<const std::uint16_t> expert_local,
                    std::uint32_t num_local_experts) {
  Slots slots;
  const auto local = [&](std::uint32_t copy) { return expert_local[copies[copy].expert]; };
  for (std::uint32_t c = 0; c < copies.size(); ++c) {
    if (local(c) < num_local_experts) slots.slot_copy.push_back(c);
  }
  std::stable_sort(slots.slot_copy.begin(), slots.slot_copy.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return local(a) < local(b); });
  slots.copy_slot.assign(copies.size(), kNoRow);
  slots.expert_begin.assign(num_local_experts + 1, 0);
  for (std::uint32_t s = 0; s < slots.slot_copy.size(); ++s) {
    slots.copy_slot[slots.slot_copy[s]] = s;
    ++slots.expert_begin[local(slots.slot_copy[s]) + 1U];
  }
  std::partial_sum(slots.expert_begin.begin(), slots.expert_begin.end(),
                   slots.expert_begin.begin());
  return slots;
}

std::vector<BlockRow> decode_block(std::span<const std::byte> bytes, std::uint32_t num_rows,
                                   RowType type, std::uint32_t hidden) {
  const bool fp8 = type == RowType::kFp8;
  const std::size_t row_bytes = fp8 ? hidden : std::size_t{2} * hidden;
  const std::size_t num_scales = fp8 ? hidden / 128 : 0;
  // The row words stand at the end; what is left between them, the scales and the values are
  // copies.
  const std::size_t words = bytes.size() - std::size_t{4} * num_rows;
  const std::size_t scales = words - 4 * num_scales * num_rows;
  const std::size_t copies = row_bytes * num_rows;
  std::vector<BlockRow> rows(num_rows);
  for (std::size_t r = 0; r < num_rows; ++r) {
    const auto word = read_at<std::uint32_t>(bytes, words + 4 * r);
    for (std::size_t c = 0; c < (word & 31U) + 1; ++c) {
      rows[r].copies.push_back(read_at<Copy>(bytes, copies + 8 * ((word >> 5) + c)));
    }
    for (std::size_t i = 0; i < hidden; ++i) {
      if (fp8) {
        const auto code = read_at<std::uint8_t>(bytes, r * row_bytes + i);
        const auto scale = read_at<float>(bytes, scales + 4 * (r * num_scales + i / 128));
        rows[r].values.push_back(round_to_bf16(from_e4m3(code) * scale));
      } else {
        rows[r].values.push_back(bf16_bits(read_at<std::uint16_t>(bytes, r * row_bytes + 2 * i)));
      }
    }
  }
  return rows;
}

Matrix expand(std::span<const BlockRow> rows, std::span<const std::uint32_t> copy_slot,
              std::uint32_t hidden) {
  Matrix result(copy_slot.size() * hidden);
  std::size_t copy = 0;
  for (const BlockRow& row : rows) {
    for (std::size_t c = 0; c < row.copies.size(); ++c) {
      const std::size_t slot = copy_slot[copy++];
      std::copy(row.values.begin(), row.values.end(),
                result.begin() + static_cast<std::ptrdiff_t>(slot * hidden));
    }
  }
  return result;
}

Matrix merge(std::span<const BlockRow> rows, std::span<const std::uint32_t> copy_slot,
             const Matrix& expert_outputs, std::uint32_t hidden) {
  Matrix result;
  std::size_t copy = 0;
  for (const BlockRow& row : rows) {
    std::vector<double> sum(hidden, 0.0);
    for (const Copy& c : row.copies) {
      const std::size_t slot = copy_slot[copy++];
      for (std::size_t i = 0; i < hidden; ++i) {
        sum[i] +=
            static_cast<double>(c.weight) * static_cast<double>(expert_outputs[slot * hidden + i]);
      }
    }
    for (const double value : sum) result.push_back(static_cast<float>(value));
  }
  return result;
}

Matrix combine(std::span<const Item> items, std::span<const std::uint32_t> item_rows,
               const Matrix& returned, std::uint32_t hidden) {
  Matrix result;
  std::size_t place = 0;
  for (const Item& item : items) {
    std::vector<double> sum(hidden, 0.0);
    for (std::size_t j = 0; j < item.copies.size(); ++j) {
      const std::uint32_t row = item_rows[place++];
      if (row == kNoRow) continue;
      for (std::size_t i = 0; i < hidden; ++i) {
        sum[i] += static_cast<double>(returned[std::size_t{row} * hidden + i]);
      }
    }
    for (const double value : sum) result.push_back(static_cast<float>(value));
  }
  return result;
}

std::vector<float> expert_mlp(const MlpExpert& expert, std::span<const float> x,
                              std::uint32_t intermediate) {
  const auto product = [](std::span<const float> w, std::span<const float> v, std::size_t row) {
    double sum = 0.0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      sum += static_cast<double>(w[row * v.size() + i]) * static_cast<double>(v[i]);
    }
    return round_to_bf16(static_cast<float>(sum));
  };
  std::vector<float> inner(intermediate);
  for (std::size_t i = 0; i < intermediate; ++i) {
    const float gate = product(expert.weights[0], x, i);
    const float up = product(expert.weights[1], x, i);
    inner[i] = round_to_bf16(gate / (1.0F + std::exp(-gate)) * up);
  }
  std::vector<float> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = product(expert.weights[2], inner, i);
  return y;
}

}  // namespace coterie::kernels::reference
