// The dry executor: the same layouts, blocks and hops on the CPU, with the control connection in
// the place of NCCL. It serves to test plans, layouts, launcher and deadlines on machines without a
// GPU. It measures nothing and its times are never reported.
//
// Blocks carry the wire format of kernels/layout.hpp in BF16 (FP8 rows are quantised on packing and
// travel as BF16, which halves nothing here). The experts are those of the reference.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/error.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/executor/shared_experts.hpp"
#include "workloads/plan/schedule.hpp"

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
using Values = std::vector<float>;  // [hidden]

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
  DryExecutor(ControlGroup& group, ExecutionLog* log) : group_(group), log_(log) {
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
    std::vector<Block> blocks(hop.send_ranks.size());
    for (std::uint32_t i = 0; i < items.size(); ++i) {
      std::vector<std::size_t> open(hop.send_ranks.size(), 0);  // 1 + row number within the block
      for (const Copy& copy : items[i].copies) {
        const std::size_t position =
            (hop.slot_dest[copy.expert] + hop.send_ranks.size() - hop.first_dest) %
            hop.send_ranks.size();
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

  // A layer on its way through the steps of its plan.
  struct Run {
    const LayerPlan& plan;
    const RankLayout& layout;
    std::vector<Row> tokens;                      // the rank's own, as items of the first hop
    std::vector<std::vector<Row>> received[2];    // [hop][round] in the order of the sources
    std::vector<std::vector<Block>> sent[2];      // [hop][round] by send position
    std::vector<std::vector<Values>> results[2];  // [hop][round] by received row
    std::vector<Values> sums;                     // [num_tokens]
    std::vector<Step> done;

    [[nodiscard]] std::size_t last() const { return layout.hops.size() - 1; }
  };

  void record(const Run& run, const Step& step, std::uint32_t peer, std::uint32_t num_rows,
              std::size_t num_bytes) {
    if (log_ == nullptr || num_rows == 0 || peer == run.layout.rank) return;
    log_->push_back(
        {step, run.layout.rank, peer, num_rows, num_bytes, prerequisites(run.plan, step)});
  }

  // The rows that a round of a hop is made from.
  static std::vector<Row> items_of(const Run& run, std::size_t hop, std::uint32_t round) {
    if (hop > 0) return run.received[hop - 1][round];
    const auto begin = run.tokens.begin();
    return {begin + run.layout.round_begin[round], begin + run.layout.round_begin[round + 1]};
  }

  // Over the control connection.
  void send_rows(Run& run, const Step& step, const std::string& name) {
    const Hop& hop = run.layout.hops[step.stage];
    const std::vector<Block> blocks = distribute(items_of(run, step.stage, step.round), hop,
                                                 run.layout.policy == DispatchPolicy::kStandard);
    std::vector<std::string> to_each(group_.num_ranks());
    for (std::size_t p = 0; p < blocks.size(); ++p) {
      if (blocks[p].empty()) continue;
      std::string& bytes = to_each[hop.send_ranks[p]];
      bytes = encode(blocks[p], hidden());
      record(run, step, hop.send_ranks[p], static_cast<std::uint32_t>(blocks[p].size()),
             bytes.size());
    }
    const auto from_each = group_.exchange(name, std::move(to_each));
    std::vector<Row>& rows = run.received[step.stage][step.round];
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      for (Row& row : decode(from_each[hop.recv_ranks[s]], hidden(), hop.rounds[step.round].recv[s],
                             hop.recv_ranks[s])) {
        rows.push_back(std::move(row));
      }
    }
    run.sent[step.stage][step.round] = blocks;
  }

  // The other way: results by received row, answered to their sources and summed per item.
  void send_results(Run& run, const Step& step, const std::string& name) {
    const Hop& hop = run.layout.hops[step.stage];
    const HopRound& round = hop.rounds[step.round];
    const std::vector<Values>& results = run.results[step.stage][step.round];
    std::vector<std::string> to_each(group_.num_ranks());
    std::size_t begin = 0;
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      const std::size_t end = begin + round.recv[s].num_rows;
      std::string& bytes = to_each[hop.recv_ranks[s]];
      bytes = encode_results({results.begin() + static_cast<std::ptrdiff_t>(begin),
                              results.begin() + static_cast<std::ptrdiff_t>(end)});
      begin = end;
    }
    // In send order: the own position first, then ascending and around.
    for (std::size_t p = 0; p < hop.recv_ranks.size(); ++p) {
      const std::size_t s = (hop.recv_self + p) % hop.recv_ranks.size();
      record(run, step, hop.recv_ranks[s], round.recv[s].num_rows,
             to_each[hop.recv_ranks[s]].size());
    }
    const auto from_each = group_.exchange(name, std::move(to_each));
    const std::vector<Block>& sent = run.sent[step.stage][step.round];
    const std::uint32_t first_token = run.layout.round_begin[step.round];
    std::vector<Values>& sums =
        step.stage == 0 ? run.sums : run.results[step.stage - 1][step.round];
    for (std::size_t p = 0; p < sent.size(); ++p) {
      const std::string& bytes = from_each[hop.send_ranks[p]];
      if (bytes.size() != sent[p].size() * hidden() * sizeof(kernels::Bf16)) {
        throw Error(ExitCode::kInternalError,
                    fmt::format("rank {} answered with {} bytes for {} rows", hop.send_ranks[p],
                                bytes.size(), sent[p].size()));
      }
      std::size_t at = 0;
      for (const Row& row : sent[p]) {
        for (float& sum : sums[row.item + (step.stage == 0 ? first_token : 0)]) {
          kernels::Bf16 value;
          std::memcpy(&value, bytes.data() + at, sizeof value);
          at += sizeof value;
          sum += __bfloat162float(value);
        }
      }
    }
  }

  // The experts' results of all rows that the last hop brought.
  void compute_experts(Run& run) {
    std::vector<TokenRequest> requests;
    for (const std::vector<Row>& round : run.received[run.last()]) {
      for (const Row& row : round) {
        TokenRequest request;
        request.values = row.values;
        for (const Copy& copy : row.copies) {
          if (copy.expert - run.layout.first_local_slot >= run.layout.local_experts.size()) {
            throw Error(ExitCode::kInternalError, "a row reached a rank without its expert");
          }
          request.experts.push_back(run.layout.slot_expert[copy.expert]);
          request.weights.push_back(copy.weight);
        }
        requests.push_back(std::move(request));
      }
    }
    std::vector<Values> results = reference_outputs(
        layers_.shape.mlp, layers_.shape.seed, run.plan.layer, requests, layers_.shape.experts);
    auto next = results.begin();
    for (std::size_t r = 0; r < run.received[run.last()].size(); ++r) {
      const auto end = next + static_cast<std::ptrdiff_t>(run.received[run.last()][r].size());
      run.results[run.last()][r].assign(std::make_move_iterator(next),
                                        std::make_move_iterator(end));
      next = end;
    }
    // What relays sum up, they start from zero.
    if (run.last() == 0) return;
    for (std::size_t r = 0; r < run.received[0].size(); ++r) {
      run.results[0][r].assign(run.received[0][r].size(), Values(hidden(), 0.0F));
    }
  }

  void run_step(Run& run, const Step& step) {
    for (const Step& earlier : prerequisites(run.plan, step)) {
      if (std::find(run.done.begin(), run.done.end(), earlier) == run.done.end()) {
        throw Error(ExitCode::kInternalError, "a step of the plan comes before what it waits for");
      }
    }
    const Phase phase = phase_of(run.plan.stages[step.stage], step.direction);
    const std::string name =
        fmt::format("{} round {} of layer {}", to_string(phase), step.round, run.plan.layer);
    if (step.direction == Direction::kDispatch) {
      send_rows(run, step, name);
    } else {
      send_results(run, step, name);
    }
    run.done.push_back(step);
  }

  void run_layer(std::size_t layer_idx, bool may_fail) {
    const RankLayout& layout = layers_.layouts[layer_idx];
    Run run{*layers_.plans[layer_idx], layout, {}, {}, {}, {}, {}, {}};
    const auto tokens = make_tokens(layers_.shape.seed, group_.rank(), layout.num_tokens, hidden());
    run.tokens.resize(layout.num_tokens);
    for (std::size_t t = 0; t < run.tokens.size(); ++t) {
      run.tokens[t].values =
          wire_values(std::span(tokens).subspan(t * hidden(), hidden()), layers_.shape.dispatch);
      for (std::size_t j = 0; j < layout.num_topk; ++j) {
        const std::size_t at = t * layout.num_topk + j;
        run.tokens[t].copies.push_back({layout.token_slots[at], layout.token_weights[at]});
      }
    }
    run.sums.assign(layout.num_tokens, Values(hidden(), 0.0F));
    for (std::size_t h = 0; h < layout.hops.size(); ++h) {
      run.received[h].resize(layout.num_rounds());
      run.sent[h].resize(layout.num_rounds());
      run.results[h].resize(layout.num_rounds());
    }
    group_.barrier(fmt::format("notify of layer {}", run.plan.layer));
    if (may_fail) fault_point(group_.rank(), "dispatch");
    const std::vector<Step> steps = plan_steps(run.plan);
    for (const Step& step : steps) {
      if (step.direction == Direction::kDispatch) run_step(run, step);
    }
    keep_first_hop(layer_idx, run);
    compute_experts(run);
    if (may_fail) fault_point(group_.rank(), "combine");
    for (const Step& step : steps) {
      if (step.direction == Direction::kCombine) run_step(run, step);
    }
    std::vector<std::span<const kernels::Bf16>> own_rows;
    for (std::size_t t = 0; t < layout.num_tokens; ++t) {
      own_rows.push_back(std::span(tokens).subspan(t * hidden(), hidden()));
    }
    add_shared_outputs(layers_.shape, run.plan.layer, own_rows, run.sums);
    outputs_[layer_idx].clear();
    for (const Values& row : run.sums) {
      outputs_[layer_idx].insert(outputs_[layer_idx].end(), row.begin(), row.end());
    }
  }

  // What compare_with_plan looks at: the rows of the first hop, items numbered through all rounds.
  void keep_first_hop(std::size_t layer_idx, const Run& run) {
    std::vector<Row>& kept = first_hop_rows_[layer_idx];
    kept.clear();
    for (std::size_t r = 0; r < run.sent[0].size(); ++r) {
      for (const Block& block : run.sent[0][r]) {
        for (const Row& row : block) {
          kept.push_back(row);
          kept.back().item += run.layout.round_begin[r];
        }
      }
    }
  }

  ControlGroup& group_;
  ExecutionLog* log_;  // may be null
  RunLayers layers_;
  std::vector<std::vector<float>> outputs_;
  std::vector<std::vector<Row>> first_hop_rows_;
};

}  // namespace

std::unique_ptr<Executor> make_dry_executor(ControlGroup& group, ExecutionLog* log) {
  return std::make_unique<DryExecutor>(group, log);
}

}  // namespace coterie
