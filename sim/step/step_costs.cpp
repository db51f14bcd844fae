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

// Kernels of a MoE layer that move rows: counts, pack, dispatch, expand, merge, combine, sum. A graph
// holds counts and pack together.
constexpr std::uint32_t kRowKernels = 7;

// Of each expert of the rank.
std::vector<std::uint64_t> rows_of(const LayerPlan& plan, std::uint32_t rank) {
  return {plan.rank_expert_tokens.begin() + plan.rank_expert_begin[rank],
          plan.rank_expert_tokens.begin() + plan.rank_expert_begin[rank + 1]};
}

class LayerPricer {
 public:
  LayerPricer(const ModelShape& model, const StepSpec& step, const OperationTimes& times)
      : model_(model), step_(step), times_(times), work_(layer_work(step)) {}

  [[nodiscard]] LayerCosts price(std::uint32_t layer, std::span<const Pass> passes,
                                 const LayerPlan* plan) const {
    LayerCosts costs;
    add_host(costs, layer, passes, plan);
    for (const Pass pass : passes) {
      const LayerOperations operations = layer_operations(model_, step_, work_, layer, pass);
      costs.attention = costs.attention + times_.time(operations.attention);
      costs.dense = costs.dense + times_.time(operations.dense_mlp);
      costs.router = costs.router + times_.time(operations.router);
      costs.shared = costs.shared + times_.time(operations.shared);
    }
    if (plan == nullptr) return costs;
    for (std::uint32_t rank = 0; rank < plan->num_ranks; ++rank) {
      const std::vector<std::uint64_t> rows = rows_of(*plan, rank);
      double seconds = 0.0;
      for (const Pass pass : expert_passes(passes)) {
        const auto operations = expert_operations(model_, step_, rows, pass);
        seconds +=
            pass == Pass::kForward ? launched_s(operations) : times_.time(operations).total.value;
      }
      costs.experts_s.push_back(seconds);
    }
    return costs;
  }

  // Selective recomputation makes the activation's result again in front of the backward pass.
  [[nodiscard]] std::vector<Pass> expert_passes(std::span<const Pass> passes) const {
    std::vector<Pass> all(passes.begin(), passes.end());
    if (passes.front() != Pass::kForward && step_.recompute == Recompute::kSelective) {
      all.insert(all.begin(), Pass::kRecompute);
    }
    return all;
  }

  // Of a list in which the host waits for the GPU once: what comes behind that takes at least until
  // it is launched.
  [[nodiscard]] double launched_s(std::span<const ModelOperation> operations) const {
    auto waits = operations.begin();
    while (waits != operations.end() && !waits->host_waits) ++waits;
    if (waits == operations.end()) return times_.time(operations).total.value;
    const std::span<const ModelOperation> before(operations.begin(), waits + 1);
    const std::span<const ModelOperation> behind(waits + 1, operations.end());
    const double launches_s =
        static_cast<double>(total_launches(behind)) * step_.launch.per_kernel.value;
    return times_.time(before).total.value + std::max(times_.time(behind).total.value, launches_s);
  }

  [[nodiscard]] OperationTime recompute(std::uint32_t layer) const {
    const LayerOperations operations =
        layer_operations(model_, step_, work_, layer, Pass::kRecompute);
    return times_.time(operations.attention) + times_.time(operations.dense_mlp) +
           times_.time(operations.router) + times_.time(operations.shared);
  }

  // A list's kernels of a pass. A graph holds those of all passes of a direction: one launch.
  static std::uint64_t launches(std::span<const ModelOperation> operations, bool graph, Pass pass) {
    if (!graph) return total_launches(operations);
    return operations.empty() || pass == Pass::kBackwardWeight ? 0 : 1;
  }

  // Until the host has launched the layer's kernels, in these passes and on the rank with most.
  void add_host(LayerCosts& costs, std::uint32_t layer, std::span<const Pass> passes,
                const LayerPlan* plan) const {
    const StepLaunch& launch = step_.launch;
    const bool back = passes.front() != Pass::kForward;
    const ParallelSizes& sizes = step_.parallel;
    std::uint64_t attention = 0, experts = 0, most = 0;
    for (const Pass pass : passes) {
      const LayerOperations operations = layer_operations(model_, step_, work_, layer, pass);
      attention += launches(operations.attention, launch.graph_attention, pass) +
                   launches(operations.router, launch.graph_router, pass) +
                   total_launches(operations.dense_mlp);
      experts += total_launches(operations.shared);
      // A gather and a scatter around each part that tensor ranks share.
      if (sizes.tp > 1 && pass != Pass::kBackwardWeight) {
        attention += 2 * ((operations.attention.empty() ? 0U : 1U) +
                          (operations.dense_mlp.empty() ? 0U : 1U));
        experts += operations.shared.empty() ? 0 : 2;
      }
      if (sizes.cp > 1 && pass != Pass::kBackwardWeight) ++attention;
    }
    if (plan != nullptr) {
      // Counts (forward); dispatch and combine, pack, expand, merge and sum.
      if (!back) ++attention;
      experts += kRowKernels - 1 - (!back && launch.graph_preprocess ? 1 : 0);
      for (std::uint32_t rank = 0; rank < plan->num_ranks; ++rank) {
        std::uint64_t here = 0;
        for (const Pass pass : expert_passes(passes)) {
          here += total_launches(expert_operations(model_, step_, rows_of(*plan, rank), pass));
        }
        most = std::max(most, here);
      }
    }
    costs.host_attention_s = static_cast<double>(attention) * launch.per_kernel.value;
    costs.host_experts_s = static_cast<double>(experts + most) * launch.per_kernel.value;
  }

  [[nodiscard]] double recompute_host_s(std::uint32_t layer) const {
    const LayerOperations operations =
        layer_operations(model_, step_, work_, layer, Pass::kRecompute);
    // What a graph holds is made again within it.
    const std::uint64_t sum =
        (step_.launch.graph_attention ? 0 : total_launches(operations.attention)) +
        (step_.launch.graph_router ? 0 : total_launches(operations.router)) +
        total_launches(operations.dense_mlp) + total_launches(operations.shared);
    return static_cast<double>(sum) * step_.launch.per_kernel.value;
  }

  [[nodiscard]] double head_host_s(std::span<const Pass> passes) const {
    std::uint64_t sum = 0;
    for (const Pass pass : passes) {
      sum += total_launches(head_operations(model_, step_, work_, pass));
      sum += step_.mtp_layers * total_launches(mtp_operations(model_, step_, work_, pass));
    }
    return static_cast<double>(sum) * step_.launch.per_kernel.value;
  }
  [[nodiscard]] double embedding_host_s(std::span<const Pass> passes) const {
    std::uint64_t sum = 0;
    for (const Pass pass : passes) {
      sum += total_launches(embedding_operations(model_, step_, work_, pass));
    }
    return static_cast<double>(sum) * step_.launch.per_kernel.value;
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
  num_layers_ = model.num_layers;
  num_routings_ = step.num_routings();
  const std::size_t num_plans = plans.size() / num_routings_;
  // What tells layers apart: experts, the window, and whose rows they get.
  std::map<std::tuple<bool, bool, std::uint32_t>, std::uint32_t> classes;
  for (std::uint32_t routing = 0; routing < num_routings_; ++routing) {
    std::uint32_t num_moe = 0;
    for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
      const bool moe = model.is_moe_layer(layer);
      const auto plan =
          moe ? static_cast<std::uint32_t>(routing * num_plans + num_moe++ % num_plans) : 0U;
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
      if (step.recompute == Recompute::kSelective || step.recompute == Recompute::kLatent) {
        backward.recompute = pricer.recompute(layer);
        backward.host_experts_s += pricer.recompute_host_s(layer);
      }
    }
  }
  embedding_s_ = {pricer.embedding_s(kForward), trains ? pricer.embedding_s(kBackward) : 0.0};
  head_s_ = {pricer.head_s(kForward), trains ? pricer.head_s(kBackward) : 0.0};
  embedding_host_s_ = {pricer.embedding_host_s(kForward),
                       trains ? pricer.embedding_host_s(kBackward) : 0.0};
  head_host_s_ = {pricer.head_host_s(kForward), trains ? pricer.head_host_s(kBackward) : 0.0};
  const LayerWork& work = pricer.work();
  activation_bytes = kBf16Bytes * model.hidden * static_cast<double>(work.own_tokens());
  tensor_bytes = kBf16Bytes * model.hidden * static_cast<double>(work.tokens());
  if (model.attention) {
    context_bytes = kBf16Bytes * model.attention->cached_values() *
                    static_cast<double>(work.tokens()) * step.parallel.cp;
  }
}

const LayerCosts& StepCosts::forward(std::uint32_t layer, std::uint32_t micro_batch) const {
  return forward_[layer_class(layer, micro_batch)];
}

const LayerCosts& StepCosts::backward(std::uint32_t layer, std::uint32_t micro_batch) const {
  return backward_[layer_class(layer, micro_batch)];
}

}  // namespace coterie
