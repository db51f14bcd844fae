// The dry executor: the same layouts, blocks and hops on the CPU, with the control connection in
// the place of NCCL. It serves to test plans, layouts, launcher and deadlines on machines without a
// GPU. It measures nothing and its times are never reported.
//
// Blocks carry the wire format of kernels/layout.hpp in BF16 (FP8 rows are quantised on packing and
// travel as BF16, which halves nothing here). The experts are those of the reference.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/error.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/executor/shared_experts.hpp"

namespace coterie {
namespace {

using kernels::Copy;

// A row on its way: its values, whom it serves, and the item that it was made from.
struct Row {
  std::vector<float> values;
  std::vector<Copy> copies;
  std::uint32_t item = 0;
};
using Block = std::vector<Row>;

constexpr auto kWire = kernels::RowType::kBf16;

std::string encode(const Block& block, std::uint32_t hidden) {
  std::uint32_t num_copies = 0;
  for (const Row& row : block) num_copies += static_cast<std::uint32_t>(row.copies.size());
  const auto num_rows = static_cast<std::uint32_t>(block.size());
  std::string bytes(kernels::block_bytes(kWire, hidden, num_rows, num_copies), '\0');
  char* value = bytes.data();
  char* copy = bytes.data() + kernels::copies_offset(kWire, hidden, num_rows);
  char* word = bytes.data() + kernels::words_offset(kWire, hidden, num_rows, num_copies);
  std::uint32_t copy_begin = 0;
  for (const Row& row : block) {
    for (const float x : row.values) {
      const kernels::Bf16 rounded = __float2bfloat16(x);
      std::memcpy(value, &rounded, sizeof rounded);
      value += sizeof rounded;
    }
    std::memcpy(copy, row.copies.data(), row.copies.size() * sizeof(Copy));
    copy += row.copies.size() * sizeof(Copy);
    const std::uint32_t packed =
        kernels::row_word(copy_begin, static_cast<std::uint32_t>(row.copies.size()));
    std::memcpy(word, &packed, sizeof packed);
    word += sizeof packed;
    copy_begin += static_cast<std::uint32_t>(row.copies.size());
  }
  return bytes;
}

Block decode(const std::string& bytes, std::uint32_t hidden, const kernels::BlockCounts& counts,
             std::uint32_t from) {
  const auto [num_rows, num_copies] = counts;
  const std::size_t expected =
      num_rows == 0 ? 0 : kernels::block_bytes(kWire, hidden, num_rows, num_copies);
  if (bytes.size() != expected) {
    throw Error(
        ExitCode::kInternalError,
        fmt::format("rank {} sent {} bytes where the plan says {}", from, bytes.size(), expected));
  }
  Block block(num_rows);
  for (std::uint32_t r = 0; r < num_rows; ++r) {
    Row& row = block[r];
    row.values.resize(hidden);
    for (std::uint32_t h = 0; h < hidden; ++h) {
      kernels::Bf16 value;
      std::memcpy(&value, bytes.data() + (std::size_t{r} * hidden + h) * sizeof value,
                  sizeof value);
      row.values[h] = __bfloat162float(value);
    }
    std::uint32_t word = 0;
    std::memcpy(&word,
                bytes.data() + kernels::words_offset(kWire, hidden, num_rows, num_copies) + r * 4U,
                sizeof word);
    row.copies.resize(kernels::word_num_copies(word));
    std::memcpy(row.copies.data(),
                bytes.data() + kernels::copies_offset(kWire, hidden, num_rows) +
                    sizeof(Copy) * kernels::word_copy_begin(word),
                row.copies.size() * sizeof(Copy));
  }
  return block;
}

std::string encode_results(const std::vector<std::vector<float>>& rows) {
  std::string bytes;
  for (const auto& row : rows) {
    for (const float x : row) {
      const kernels::Bf16 rounded = __float2bfloat16(x);
      bytes.append(reinterpret_cast<const char*>(&rounded), sizeof rounded);  // NOLINT
    }
  }
  return bytes;
}

class DryExecutor final : public Executor {
 public:
  explicit DryExecutor(ControlGroup& group) : group_(group) {
    group_.set_stage("communicator initialisation");
  }

  void load(RunLayers layers) override {
    layers_ = std::move(layers);
    outputs_.assign(layers_.plans.size(), {});
    first_hop_rows_.assign(layers_.plans.size(), {});
  }

  std::vector<LayerTimes> iterate(Iteration kind, std::uint32_t number) override {
    group_.set_stage(fmt::format("start of dry iteration {}", number));
    if (kind == Iteration::kWarmUp) fault_point(group_.rank(), "warm-up");
    if (kind == Iteration::kTimed) fault_point(group_.rank(), "in-flight");
    for (std::size_t i = 0; i < layers_.plans.size(); ++i) {
      run_layer(i, kind == Iteration::kVerification);
    }
    return std::vector<LayerTimes>(layers_.plans.size());
  }

  std::vector<float> output(std::size_t layer_idx) override { return outputs_[layer_idx]; }

  std::optional<std::string> compare_with_plan(std::size_t layer_idx) override {
    std::vector<std::uint32_t> items;
    std::vector<std::uint32_t> masks;
    const RankLayout& layout = layers_.layouts[layer_idx];
    for (const Row& row : first_hop_rows_[layer_idx]) {
      items.push_back(row.item);
      std::uint32_t mask = 0;
      for (const Copy& copy : row.copies) {
        for (std::uint32_t j = 0; j < layout.num_topk; ++j) {
          if (layout.token_slots[std::size_t{row.item} * layout.num_topk + j] == copy.expert) {
            mask |= 1U << j;
          }
        }
      }
      masks.push_back(mask);
    }
    return coterie::compare_with_plan(*layers_.plans[layer_idx], layout, items, masks);
  }

  void finish() override {}

  [[nodiscard]] std::map<std::string, nlohmann::json> facts() const override {
    return {{"device", "none"}, {"dry_run", true}};
  }

 private:
  [[nodiscard]] std::uint32_t hidden() const { return layers_.shape.mlp.hidden; }

  // Items to blocks, by send position: one row per item and destination, or per copy.
  static std::vector<Block> distribute(const std::vector<Row>& items, const Hop& hop,
                                       bool row_per_copy) {
    std::vector<Block> blocks(hop.send.size());
    for (std::uint32_t i = 0; i < items.size(); ++i) {
      std::vector<std::size_t> open(hop.send.size(), 0);  // 1 + row number within the block
      for (const Copy& copy : items[i].copies) {
        const std::size_t position =
            (hop.slot_dest[copy.expert] + hop.send.size() - hop.first_dest) % hop.send.size();
        Block& block = blocks[position];
        if (open[position] == 0 || row_per_copy) {
          block.push_back({items[i].values, {}, i});
          open[position] = block.size();
        }
        block[open[position] - 1].copies.push_back(copy);
      }
    }
    return blocks;
  }

  // Over the control connection; the received rows in the order of the sources.
  std::vector<Row> exchange_blocks(const std::string& name, const Hop& hop,
                                   const std::vector<Block>& blocks) {
    std::vector<std::string> to_each(group_.num_ranks());
    for (std::size_t p = 0; p < blocks.size(); ++p) {
      if (!blocks[p].empty()) to_each[hop.send_ranks[p]] = encode(blocks[p], hidden());
    }
    const auto from_each = group_.exchange(name, std::move(to_each));
    std::vector<Row> rows;
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      for (Row& row :
           decode(from_each[hop.recv_ranks[s]], hidden(), hop.recv[s], hop.recv_ranks[s])) {
        rows.push_back(std::move(row));
      }
    }
    return rows;
  }

  // The other way: results by received row, answered to their sources and summed per item.
  std::vector<std::vector<float>> return_results(const std::string& name, const Hop& hop,
                                                 const std::vector<Block>& sent,
                                                 const std::vector<std::vector<float>>& results,
                                                 std::size_t num_items) {
    std::vector<std::string> to_each(group_.num_ranks());
    std::size_t begin = 0;
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      const std::size_t end = begin + hop.recv[s].num_rows;
      to_each[hop.recv_ranks[s]] =
          encode_results({results.begin() + static_cast<std::ptrdiff_t>(begin),
                          results.begin() + static_cast<std::ptrdiff_t>(end)});
      begin = end;
    }
    const auto from_each = group_.exchange(name, std::move(to_each));
    std::vector<std::vector<float>> sums(num_items, std::vector<float>(hidden(), 0.0F));
    for (std::size_t p = 0; p < sent.size(); ++p) {
      const std::string& bytes = from_each[hop.send_ranks[p]];
      if (bytes.size() != sent[p].size() * hidden() * sizeof(kernels::Bf16)) {
        throw Error(ExitCode::kInternalError,
                    fmt::format("rank {} answered with {} bytes for {} rows", hop.send_ranks[p],
                                bytes.size(), sent[p].size()));
      }
      std::size_t at = 0;
      for (const Row& row : sent[p]) {
        for (float& sum : sums[row.item]) {
          kernels::Bf16 value;
          std::memcpy(&value, bytes.data() + at, sizeof value);
          at += sizeof value;
          sum += __bfloat162float(value);
        }
      }
    }
    return sums;
  }

  void run_layer(std::size_t layer_idx, bool may_fail) {
    const RankLayout& layout = layers_.layouts[layer_idx];
    const LayerPlan& plan = *layers_.plans[layer_idx];
    const std::string suffix = fmt::format(" of layer {}", plan.layer);
    const auto tokens = make_tokens(layers_.shape.seed, group_.rank(), layout.num_tokens, hidden());
    std::vector<Row> items(layout.num_tokens);
    for (std::size_t t = 0; t < items.size(); ++t) {
      items[t].values =
          wire_values(std::span(tokens).subspan(t * hidden(), hidden()), layers_.shape.dispatch);
      for (std::size_t j = 0; j < layout.num_topk; ++j) {
        const std::size_t at = t * layout.num_topk + j;
        items[t].copies.push_back({layout.token_slots[at], layout.token_weights[at]});
      }
    }
    group_.barrier("notify" + suffix);
    if (may_fail) fault_point(group_.rank(), "dispatch");

    std::vector<std::vector<Block>> sent;
    std::vector<std::size_t> num_items;
    for (std::size_t h = 0; h < layout.hops.size(); ++h) {
      num_items.push_back(items.size());
      sent.push_back(distribute(items, layout.hops[h], layout.policy == DispatchPolicy::kStandard));
      if (h == 0) {
        first_hop_rows_[layer_idx].clear();
        for (const Block& block : sent[0]) {
          first_hop_rows_[layer_idx].insert(first_hop_rows_[layer_idx].end(), block.begin(),
                                            block.end());
        }
      }
      items = exchange_blocks((h == 0 ? "dispatch" : "forward") + suffix, layout.hops[h], sent[h]);
    }

    std::vector<TokenRequest> requests(items.size());
    for (std::size_t r = 0; r < items.size(); ++r) {
      requests[r].values = items[r].values;
      for (const Copy& copy : items[r].copies) {
        if (copy.expert - layout.first_local_slot >= layout.local_experts.size()) {
          throw Error(ExitCode::kInternalError, "a row reached a rank without its expert");
        }
        requests[r].experts.push_back(layout.slot_expert[copy.expert]);
        requests[r].weights.push_back(copy.weight);
      }
    }
    std::vector<std::vector<float>> results =
        reference_outputs(layers_.shape.mlp, layers_.shape.seed, plan.layer, requests);

    if (may_fail) fault_point(group_.rank(), "combine");
    for (std::size_t h = layout.hops.size(); h-- > 0;) {
      results = return_results((h == 0 ? "combine" : "gather") + suffix, layout.hops[h], sent[h],
                               results, num_items[h]);
    }
    std::vector<std::span<const kernels::Bf16>> own_rows;
    for (std::size_t t = 0; t < layout.num_tokens; ++t) {
      own_rows.push_back(std::span(tokens).subspan(t * hidden(), hidden()));
    }
    add_shared_outputs(layers_.shape, plan.layer, own_rows, results);
    outputs_[layer_idx].clear();
    for (const auto& row : results) {
      outputs_[layer_idx].insert(outputs_[layer_idx].end(), row.begin(), row.end());
    }
  }

  ControlGroup& group_;
  RunLayers layers_;
  std::vector<std::vector<float>> outputs_;
  std::vector<std::vector<Row>> first_hop_rows_;
};

}  // namespace

std::unique_ptr<Executor> make_dry_executor(ControlGroup& group) {
  return std::make_unique<DryExecutor>(group);
}

}  // namespace coterie
