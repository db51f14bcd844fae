#include "sim/step/pipeline.hpp"

#include <algorithm>
#include <stdexcept>

namespace coterie {
namespace {

// The k-th pass of a stage in a direction: chunks in turn, p micro-batches at a time.
ChunkPass nth_pass(const PipelineShape& shape, std::uint32_t k, bool backward) {
  const std::uint32_t p = shape.num_stages;
  const std::uint32_t round = p * shape.num_chunks;
  // A last round may be short where there is a single chunk.
  if (shape.num_chunks == 1) return {k, 0};
  const std::uint32_t chunk = k % round / p;
  return {k / round * p + k % p, backward ? shape.num_chunks - 1 - chunk : chunk};
}

std::uint32_t warm_up_passes(const PipelineShape& shape, std::uint32_t stage) {
  const std::uint32_t p = shape.num_stages;
  const std::uint32_t total = shape.num_micro_batches * shape.num_chunks;
  std::uint32_t passes = p - stage - 1;
  // A pass that goes round the pipeline and meets itself coming back half-way: with chunks, and in
  // pairs, where a stage needs the gradients of one micro-batch when it begins the next one forward.
  if (shape.num_chunks > 1 || shape.paired) passes = 2 * passes + (shape.num_chunks - 1) * p;
  if (shape.paired) ++passes;
  return std::min(passes, total);
}

class Scheduler {
 public:
  Scheduler(const PipelineShape& shape, const PipelineCosts& costs)
      : shape_(shape),
        costs_(costs),
        num_parts_(shape.num_stages * shape.num_chunks),
        forward_(std::size_t{num_parts_} * shape.num_micro_batches),
        backward_(forward_.size()) {}

  PipelineTimes run() {
    for (std::uint32_t stage = 0; stage < shape_.num_stages; ++stage) {
      out_.first.push_back(out_.slots.size());
      for (const PipelineSlot& slot : stage_slots(shape_, stage)) {
        out_.slots.push_back({stage, slot, 0.0, 0.0, std::nullopt});
      }
    }
    out_.first.push_back(out_.slots.size());
    std::vector<std::size_t> next(out_.first.begin(), out_.first.end() - 1);
    std::size_t num_done = 0;
    while (num_done < out_.slots.size()) {
      const std::size_t before = num_done;
      for (std::uint32_t stage = 0; stage < shape_.num_stages; ++stage) {
        while (next[stage] < out_.first[stage + 1] && place(next[stage])) {
          ++next[stage];
          ++num_done;
        }
      }
      if (num_done == before) throw std::logic_error("pipeline stages wait for each other");
    }
    double busy_s = 0.0;
    for (const SlotTime& slot : out_.slots) {
      out_.makespan_s = std::max(out_.makespan_s, slot.finish_s);
      busy_s += slot.finish_s - slot.start_s;
    }
    out_.bubble_s = out_.makespan_s - busy_s / shape_.num_stages;
    return std::move(out_);
  }

 private:
  // The position of a pass: part of the model, then micro-batch.
  [[nodiscard]] std::size_t at(std::uint32_t stage, const ChunkPass& pass) const {
    return std::size_t{part(stage, pass)} * shape_.num_micro_batches + pass.micro_batch;
  }
  [[nodiscard]] std::uint32_t part(std::uint32_t stage, const ChunkPass& pass) const {
    return pass.chunk * shape_.num_stages + stage;
  }

  struct Need {
    double time_s = 0.0;
    std::optional<std::size_t> slot;
  };
  // Takes what the slot `from` sends into account; false if that is not known yet.
  bool need(const std::optional<std::size_t>& from, std::uint32_t stage, bool forward,
            Need& latest) const {
    if (!from) return false;
    const SlotTime& sender = out_.slots[*from];
    const double send_s =
        sender.stage == stage ? 0.0 : costs_.send_s(sender.stage, stage, forward, sender.finish_s);
    if (const double time_s = sender.finish_s + send_s; time_s > latest.time_s) {
      latest = {time_s, from};
    }
    return true;
  }

  // Sets the times of a slot if all that it needs has been placed.
  bool place(std::size_t idx) {
    SlotTime& item = out_.slots[idx];
    Need latest;
    if (idx > out_.first[item.stage]) latest = {out_.slots[idx - 1].finish_s, idx - 1};
    const std::size_t stride = shape_.num_micro_batches;
    if (const auto& pass = item.slot.forward; pass && part(item.stage, *pass) > 0) {
      if (!need(forward_[at(item.stage, *pass) - stride], item.stage, true, latest)) return false;
    }
    if (const auto& pass = item.slot.backward) {
      const bool last = part(item.stage, *pass) + 1 == num_parts_;
      const auto& from =
          last ? forward_[at(item.stage, *pass)] : backward_[at(item.stage, *pass) + stride];
      if (!need(from, item.stage, false, latest)) return false;
    }
    item.start_s = latest.time_s;
    item.waited_for = latest.slot;
    item.finish_s = item.start_s + costs_.slot_s(item.stage, item.slot, item.start_s);
    if (const auto& pass = item.slot.forward) forward_[at(item.stage, *pass)] = idx;
    if (const auto& pass = item.slot.backward) backward_[at(item.stage, *pass)] = idx;
    return true;
  }

  const PipelineShape& shape_;
  const PipelineCosts& costs_;
  std::uint32_t num_parts_;
  // [num_parts][num_micro_batches] the slot of a pass, once it is placed
  std::vector<std::optional<std::size_t>> forward_, backward_;
  PipelineTimes out_;
};

}  // namespace

std::vector<PipelineSlot> stage_slots(const PipelineShape& shape, std::uint32_t stage) {
  if (shape.num_chunks > 1 && shape.num_micro_batches % shape.num_stages != 0) {
    throw std::logic_error("interleaved schedules take multiples of the stages");
  }
  const std::uint32_t total = shape.num_micro_batches * shape.num_chunks;
  std::vector<PipelineSlot> slots;
  const auto forward = [&](std::uint32_t k) { return nth_pass(shape, k, false); };
  const auto backward = [&](std::uint32_t k) { return nth_pass(shape, k, true); };
  if (!shape.backward) {
    for (std::uint32_t k = 0; k < total; ++k) slots.push_back({forward(k), std::nullopt});
    return slots;
  }
  const std::uint32_t ahead = warm_up_passes(shape, stage);
  for (std::uint32_t k = 0; k < ahead; ++k) slots.push_back({forward(k), std::nullopt});
  for (std::uint32_t k = 0; k + ahead < total; ++k) {
    if (shape.paired) {
      slots.push_back({forward(k + ahead), backward(k)});
    } else {
      slots.push_back({forward(k + ahead), std::nullopt});
      slots.push_back({std::nullopt, backward(k)});
    }
  }
  for (std::uint32_t k = total - ahead; k < total; ++k) {
    slots.push_back({std::nullopt, backward(k)});
  }
  return slots;
}

PipelineTimes schedule_pipeline(const PipelineShape& shape, const PipelineCosts& costs) {
  return Scheduler(shape, costs).run();
}

}  // namespace coterie
