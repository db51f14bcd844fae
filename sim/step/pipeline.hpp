#pragma once
// Pipeline schedules: in which order a stage computes its micro-batches, and when, given how long
// each takes. Stages and chunks are numbered as in Megatron-LM (Narayanan et al., "Efficient
// large-scale language model training on GPU clusters using Megatron-LM", SC 2021): with p stages and
// v chunks per stage, chunk c of stage s is the (c * p + s)-th part of the model.
//
//   1F1B, p = 3, m = 4 (digits: forward of a micro-batch; letters a..d: its backward)
//
//     stage 0  1 2 3 . . a 4 b . c . d
//     stage 1  . 1 2 . a 3 b 4 c . d .      (forward and backward drawn equally long)
//     stage 2  . . 1 a 2 b 3 c 4 d . .
//
// Interleaved, every stage goes through its chunks in turn, p micro-batches at a time, which cuts
// the bubble by v. Without communication and with forward + backward = t per chunk, a stage of either
// is idle for (p - 1) * t, a share of (p-1)/(v m + p - 1) of the step.

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace coterie {

struct PipelineShape {
  std::uint32_t num_stages = 1;
  std::uint32_t num_chunks = 1;  // of a stage
  std::uint32_t num_micro_batches = 1;
  // A forward pass and the backward pass of another micro-batch run together, so that the
  // communication of one hides under the computation of the other (1F1B with expert overlap). Stage
  // s of p then is 2(p - s - 1) + 1 forward passes ahead, and (v - 1)p more with v chunks.
  bool paired = false;
  bool backward = true;  // false: forward passes alone (serving)
};

struct ChunkPass {
  std::uint32_t micro_batch = 0;
  std::uint32_t chunk = 0;  // of the stage
  bool operator==(const ChunkPass&) const = default;
};

// What a stage does at a time: a forward pass, a backward pass, or both together.
struct PipelineSlot {
  std::optional<ChunkPass> forward, backward;
  bool operator==(const PipelineSlot&) const = default;
};

// The slots of a stage in order. Throws std::logic_error for interleaved schedules whose micro-batches
// are no multiple of the stages.
std::vector<PipelineSlot> stage_slots(const PipelineShape& shape, std::uint32_t stage);

struct SlotTime {
  std::uint32_t stage = 0;
  PipelineSlot slot;
  double start_s = 0.0;
  double finish_s = 0.0;
  // The slot that it waited for last, position in PipelineTimes::slots: the one before on its stage, or
  // the neighbour whose activations or gradients it needed. Absent: it started at zero.
  std::optional<std::size_t> waited_for;
};

struct PipelineCosts {
  // How long a slot takes on a stage that starts at a time, when everything is there.
  std::function<double(std::uint32_t stage, const PipelineSlot& slot, double start_s)> slot_s;
  // How long activations (forward) or gradients take from a stage to its neighbour. A stage does not
  // wait for its sends.
  std::function<double(std::uint32_t from, std::uint32_t to, bool forward, double start_s)> send_s;
};

struct PipelineTimes {
  std::vector<SlotTime> slots;     // by stage, then in order
  std::vector<std::size_t> first;  // [num_stages + 1] into slots
  double makespan_s = 0.0;
  // Mean over the stages: makespan less what their slots take.
  double bubble_s = 0.0;
};

// When every slot starts: as soon as its stage is free and what it needs has arrived.
PipelineTimes schedule_pipeline(const PipelineShape& shape, const PipelineCosts& costs);

}  // namespace coterie
