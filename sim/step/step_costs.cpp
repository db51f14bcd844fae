#include "sim/step/step_costs.hpp"

#include <algorithm>
#include <iterator>

#include "sim/step/operations.hpp"

namespace coterie {
namespace {

constexpr double kBf16Bytes = 2.0;
constexpr std::array<std::string_view, kNumStepParts> kPartNames{
    "embedding", "attention", "dense_mlp",  "router",   "experts", "shared_experts",
    "permute",   "optimizer", "notify",     "dispatch", "combine", "tensor",
    "pipeline",  "gradients", "parameters", "bubble",   "wait"};

// The operations of several passes of a list, one after the other.
using List = std::vector<ModelOperation> LayerOperations::*;

class LayerPricer {
 public:
  LayerPricer(const ModelShape& model, const StepSpec& step, const OperationTimes& times)
      : model_(model), step_(step), times_(times), work_(layer_work(step)) {}

  [[nodiscard]] LayerCosts price(std::uint32_t layer, std::span<const Pass> passes,
                                 const LayerPlan* plan) const {
    LayerCosts costs;
    for (const Pass pass : passes) {
      const LayerOperations operations = layer_operations(model_, step_, work_, layer, pass);
      costs.attention = costs.attention + times_.time(operations.attention);
      costs.dense = costs.dense + times_.time(operations.dense_mlp);
      costs.router = costs.router + times_.time(operations.router);
      costs.shared = costs.shared + times_.time(operations.shared);
    }
    if (plan == nullptr) return costs;
    for (std::uint32_t rank = 0; rank < plan->num_ranks; ++rank) {
      const std::vector<std::uint64_t> rows(
          plan->rank_expert_tokens.begin() + plan->rank_expert_begin[rank],
          plan->rank_expert_tokens.begin() + plan->rank_expert_begin[rank + 1]);
      double seconds = 0.0;
      for (const Pass pass : passes) {
        seconds += times_.time(expert_operations(model_, step_, rows, pass)).total.value;
      }
      costs.experts_s.push_back(seconds);
    }
    return costs;
  }

  [[nodiscard]] OperationTime recompute(std::uint32_t layer) const {
    const LayerOperations operations =
        layer_operations(model_, step_, work_, layer, Pass::kRecompute);
    return times_.time(operations.attention) + times_.time(operations.dense_mlp) +
           times_.time(operations.router) + times_.time(operations.shared);
  }

  [[nodiscard]] double head_s(std::span<const Pass> passes) const {
    double seconds = 0.0;
    for (const Pass pass : passes) {
      seconds += times_.time(head_operations(model_, step_, work_, pass)).total.value;
      for (std::uint32_t i = 0; i < step_.mtp_layers; ++i) {
        seconds += times_.time(mtp_operations(model_, step_, work_, pass)).total.value;
      }
    }
    return seconds;
  }
  [[nodiscard]] double embedding_s(std::span<const Pass> passes) const {
    double seconds = 0.0;
    for (const Pass pass : passes) {
      seconds += times_.time(embedding_operations(model_, step_, work_, pass)).total.value;
    }
    return seconds;
  }
  [[nodiscard]] const LayerWork& work() const { return work_; }

 private:
  const ModelShape& model_;
  const StepSpec& step_;
  const OperationTimes& times_;
  LayerWork work_;
};

constexpr std::array kForward{Pass::kForward};
constexpr std::array kBackward{Pass::kBackwardInput, Pass::kBackwardWeight};

}  // namespace

std::string_view to_string(StepPart part) {
  return kPartNames[static_cast<std::size_t>(part)];
}

StepCosts::StepCosts(const ModelShape& model, const StepSpec& step, const OperationTimes& times,
                     std::span<const LayerPlan> plans) {
  const LayerPricer pricer(model, step, times);
  const bool trains = step.kind == StepKind::kTrain;
  // What tells layers apart: experts, the window, and whose rows they get.
  std::map<std::tuple<bool, bool, std::uint32_t>, std::uint32_t> classes;
  std::uint32_t num_moe = 0;
  for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
    const bool moe = model.is_moe_layer(layer);
    const auto plan = moe ? static_cast<std::uint32_t>(num_moe++ % plans.size()) : 0U;
    const auto [entry, added] = classes.try_emplace({moe, model.is_windowed_layer(layer), plan},
                                                    static_cast<std::uint32_t>(forward_.size()));
    class_of_.push_back(entry->second);
    if (!added) continue;
    representative_.push_back(layer);
    forward_.push_back(pricer.price(layer, kForward, moe ? &plans[plan] : nullptr));
    forward_.back().plan = plan;
    backward_.emplace_back();
    if (!trains) continue;
    LayerCosts& backward = backward_.back();
    backward = pricer.price(layer, kBackward, moe ? &plans[plan] : nullptr);
    backward.plan = plan;
    // Full recomputation runs the layer's forward pass again, communication included.
    backward.recompute_layer = step.recompute == Recompute::kFull;
    if (step.recompute == Recompute::kSelective) backward.recompute = pricer.recompute(layer);
  }
  embedding_s_ = {pricer.embedding_s(kForward), trains ? pricer.embedding_s(kBackward) : 0.0};
  head_s_ = {pricer.head_s(kForward), trains ? pricer.head_s(kBackward) : 0.0};
  const LayerWork& work = pricer.work();
  activation_bytes = kBf16Bytes * model.hidden * static_cast<double>(work.own_tokens());
  tensor_bytes = kBf16Bytes * model.hidden * static_cast<double>(work.tokens());
  if (model.attention) {
    context_bytes = kBf16Bytes * model.attention->cached_values() *
                    static_cast<double>(work.tokens()) * step.parallel.cp;
  }
}

const LayerCosts& StepCosts::forward(std::uint32_t layer) const {
  return forward_[class_of_[layer]];
}

const LayerCosts& StepCosts::backward(std::uint32_t layer) const {
  return backward_[class_of_[layer]];
}

}  // namespace coterie
