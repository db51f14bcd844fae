#pragma once
// Bytes of device memory that a step needs on a GPU, by kind.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "topologies/cluster.hpp"
#include "workloads/model.hpp"
#include "workloads/step.hpp"

namespace coterie {

struct MemoryBytes {
  double weights = 0.0;    // as stored for the products
  double gradients = 0.0;  // train: one buffer of every parameter on the GPU
  double optimizer = 0.0;  // train: main weights and two moments, this GPU's shard
  double activations =
      // kept for the backward pass, of all micro-batches under way; serving: the largest layer's
      0.0;
  double kv_cache = 0.0;   // serving
  double buffers = 0.0;    // communication buffers, logits, workspace, and what the runtime takes
  double available = 0.0;  // the GPU's memory; 0: the topology does not say

  [[nodiscard]] double total() const {
    return weights + gradients + optimizer + activations + kv_cache + buffers;
  }
  [[nodiscard]] bool fits() const { return available == 0.0 || total() <= available; }
};

// Parameters that one GPU of pipeline stage `stage` holds, [0] split over tp only (attention,
// dense, embedding, ...) and [1] routed experts split over ep.
struct StageParameters {
  double dense = 0.0;
  double experts = 0.0;
};
StageParameters stage_parameters(const ModelShape& model, const StepSpec& step, std::uint32_t stage,
                                 std::uint32_t num_replicas = 0);

// Bytes kept for the backward pass per micro-batch and layer on one rank: none, selective or full
// recomputation. `rows`: rows that the rank's experts receive (top-k * tokens where balanced).
double layer_activation_bytes(const ModelShape& model, const StepSpec& step, std::uint32_t layer,
                              double rows);

// Micro-batches whose activations a stage keeps at once, in units of one chunk: 1F1B keeps min(num
// micro-batches, pp - stage); interleaved ones (pp - stage - 1) * 2 + (vp - 1) * pp + 1 chunks.
std::uint32_t chunks_in_flight(const StepSpec& step, std::uint32_t stage);

// Of one stage, and the fullest stage. `rows_per_token_max`: how much more than its share the hot
// rank receives (1: balanced).
MemoryBytes stage_memory(const ModelShape& model, const StepSpec& step, const GpuModel& gpu,
                         std::uint32_t stage, std::uint32_t num_replicas = 0,
                         double rank_load_max_over_mean = 1.0);
MemoryBytes memory_per_gpu(const ModelShape& model, const StepSpec& step, const GpuModel& gpu,
                           std::uint32_t num_replicas = 0, double rank_load_max_over_mean = 1.0);

// The largest micro-batch (train), tokens_per_gpu (prefill) or sequences_per_gpu (decode) that
// fits, all else unchanged; 0 if not even 1 does; absent if the topology does not say how much
// memory there is.
std::optional<std::uint32_t> largest_batch(const ModelShape& model, const StepSpec& step,
                                           const GpuModel& gpu, std::uint32_t num_replicas = 0);

// "needs 93.1 GB of 80 GB: weights 40.2 GB, ...": what a refusal says.
std::string memory_sentence(const MemoryBytes& memory);

}  // namespace coterie
