#pragma once
// What the parts of a step are called, and what each layer of a model costs a rank: computation in
// seconds, communication in bytes. Built once per run and read by everything that makes programs.

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include "sim/step/operation_times.hpp"
#include "workloads/model.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/step.hpp"

namespace coterie {

// What a rank can be at during a step. The first ones compute, those from kNotify on communicate.
enum class StepPart : std::uint8_t {
  kEmbedding,  // embedding, and LM head with its loss
  kAttention,
  kDenseMlp,
  kRouter,
  kExperts,
  kSharedExperts,
  kPermute,  // kernels that move rows: pack, forward, expand, merge, sum
  kOptimizer,
  kNotify,
  kDispatch,  // of rows, and of gradients on the way back
  kCombine,
  kTensor,      // tensor and context parallelism
  kPipeline,    // activations and gradients between stages
  kGradients,   // reduction
  kParameters,  // gathering
  kBubble,      // a pipeline stage without anything to do
  kWait,        // nothing of the above: for slower ranks, the host, or a resource that is held
};
inline constexpr std::size_t kNumStepParts = 17;
std::string_view to_string(StepPart part);  // embedding, attention, ...
constexpr bool computes(StepPart part) {
  return part <= StepPart::kOptimizer;
}
constexpr bool communicates(StepPart part) {
  return part >= StepPart::kNotify && part <= StepPart::kParameters;
}
using StepParts = std::array<double, kNumStepParts>;  // seconds

// One layer, one micro-batch, one direction, on one rank.
struct LayerCosts {
  OperationTime attention;
  OperationTime dense;   // zero without a dense MLP
  OperationTime router;  // zero without experts
  OperationTime shared;
  std::vector<double> experts_s;  // [EP ranks]; empty without experts
  std::uint32_t plan = 0;         // of the EP group's rows; with experts only
  // Made again before a backward pass: the kernels' time, and whether dispatch and combine run again.
  OperationTime recompute;
  bool recompute_layer = false;
  // What the host takes to launch the kernels of attention, dense MLP, router and the counts of rows,
  // and of experts, rows, shared experts and what is made again, on the rank with most; zero with
  // CUDA graphs.
  double host_attention_s = 0.0;
  double host_experts_s = 0.0;

  // Of attention, dense MLP and router on the GPU.
  [[nodiscard]] double attention_s() const { return (attention + dense + router).total.value; }
};

// A host that launches kernels while the GPU runs them. Kernels come in lists, of which the GPU begins
// with the first as soon as it is launched and cannot end before the last is:
//
//   GPU done = max(max(GPU done, host free) + time of the list, host free + launches of the list)
//
// A host that is ahead does not matter, one that is behind delays the GPU; where a list that takes the
// host long comes before one that takes the GPU long, both times add up.
class LaunchClock {
 public:
  void add(double host_s, double gpu_s) {
    gpu_s_ = std::max(std::max(gpu_s_, host_s_) + gpu_s, host_s_ + host_s);
    host_s_ += host_s;
  }
  // The host needs what the GPU computes.
  void wait() { host_s_ = std::max(host_s_, gpu_s_); }
  [[nodiscard]] double now_s() const { return gpu_s_; }

 private:
  double host_s_ = 0.0;  // it is free
  double gpu_s_ = 0.0;   // it is done
};

class StepCosts {
 public:
  // `plans`: of one EP group, [num_routings][num_plans]: for each micro-batch with tokens of its own
  // (StepSpec::num_routings) one per recorded MoE layer; the i-th MoE layer of the model takes the
  // (i mod num_plans)-th. All but `plans` may go away.
  StepCosts(const ModelShape& model, const StepSpec& step, const OperationTimes& times,
            std::span<const LayerPlan> plans);

  [[nodiscard]] const LayerCosts& forward(std::uint32_t layer, std::uint32_t micro_batch) const;
  [[nodiscard]] const LayerCosts& backward(std::uint32_t layer, std::uint32_t micro_batch) const;
  // Layers of equal class cost the same in both directions.
  [[nodiscard]] std::uint32_t layer_class(std::uint32_t layer, std::uint32_t micro_batch) const {
    return class_of_[routing_of(micro_batch) * num_layers_ + layer];
  }
  // Micro-batches of equal routing cost the same.
  [[nodiscard]] std::uint32_t routing_of(std::uint32_t micro_batch) const {
    return num_routings_ > 1 ? micro_batch : 0;
  }
  [[nodiscard]] std::uint32_t num_routings() const { return num_routings_; }
  [[nodiscard]] std::uint32_t num_classes() const {
    return static_cast<std::uint32_t>(forward_.size());
  }
  [[nodiscard]] std::uint32_t representative(std::uint32_t layer_class) const {
    return representative_[layer_class];
  }
  // Of the first chunk, and of the last one with multi-token prediction.
  [[nodiscard]] double embedding_s(bool backward) const { return embedding_s_[backward ? 1 : 0]; }
  [[nodiscard]] double head_s(bool backward) const { return head_s_[backward ? 1 : 0]; }
  // What the host takes to launch their kernels.
  [[nodiscard]] double embedding_host_s(bool backward) const {
    return embedding_host_s_[backward ? 1 : 0];
  }
  [[nodiscard]] double head_host_s(bool backward) const { return head_host_s_[backward ? 1 : 0]; }

  // Bytes of the activations of a micro-batch that one rank holds, in BF16: what a stage passes on.
  double activation_bytes = 0.0;
  // The same of all its tp ranks together: what they gather and scatter.
  double tensor_bytes = 0.0;
  // Keys and values that the cp ranks gather, of all of them together.
  double context_bytes = 0.0;

 private:
  std::uint32_t num_layers_ = 0, num_routings_ = 1;
  std::vector<std::uint32_t> class_of_;         // [num_routings][num_layers]
  std::vector<std::uint32_t> representative_;   // [num_classes] a layer of it
  std::vector<LayerCosts> forward_, backward_;  // [num_classes]
  std::array<double, 2> embedding_s_{}, head_s_{};
  std::array<double, 2> embedding_host_s_{}, head_host_s_{};
};

}  // namespace coterie
