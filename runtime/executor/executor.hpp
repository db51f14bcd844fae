#pragma once
// What carries out the layers of a run on one rank: the GPU executor over NCCL or over peer memory,
// and the dry one, which moves the same blocks over the control connection on machines without a GPU.

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/report.hpp"
#include "kernels/expert_mlp.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"
#include "runtime/executor/layout.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/plan/schedule.hpp"

namespace coterie {

struct LayerShape {
  kernels::MlpShape mlp{0, 0};
  std::uint32_t shared_intermediate = 0;  // of all shared experts together; 0 without
  kernels::RowType dispatch = kernels::RowType::kBf16;
  // Of the routed experts' products; the shared ones compute in BF16.
  kernels::GemmType experts = kernels::GemmType::kBf16;
  std::uint64_t seed = 0;
};

// The transport `direct`: one-sided kernels over peer memory (direct_transport.hpp).
struct DirectOptions {
  std::uint32_t sms = 16;  // multiprocessors that each of its kernels may use
  // An iteration is captured as a CUDA graph and replayed. Needs all ranks on one machine.
  bool capture = false;
};

// The layers of a run, in sequence. The plans must outlive their use.
struct RunLayers {
  LayerShape shape;
  std::optional<DirectOptions> direct;  // absent: NCCL moves the rows
  std::vector<const LayerPlan*> plans;
  std::vector<RankLayout> layouts;  // parallel to plans
};
RunLayers make_run_layers(const LayerShape& shape, const std::vector<LayerPlan>& plans,
                          std::uint32_t rank, const std::optional<DirectOptions>& direct = {});

// When a phase ran on this rank, seconds from the start of its layer. Phases that the policy does
// not have are missing.
struct PhaseSpan {
  Phase phase = Phase::kNotify;
  double begin_s = 0.0;
  double end_s = 0.0;
};
struct LayerTimes {
  std::vector<PhaseSpan> phases;
  [[nodiscard]] double time_s() const { return phases.empty() ? 0.0 : phases.back().end_s; }
};

// The kinds of iteration, for the names of stages and the fault points.
enum class Iteration : std::uint8_t { kVerification, kWarmUp, kTimed };

class Executor {
 public:
  Executor() = default;
  virtual ~Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Makes ready to execute these layers; replaces the previous ones.
  virtual void load(RunLayers layers) = 0;
  // Collective: all layers once. Times are empty for the dry executor.
  virtual std::vector<LayerTimes> iterate(Iteration kind, std::uint32_t number) = 0;
  // [num_tokens][hidden] of the last iteration.
  virtual std::vector<float> output(std::size_t layer_idx) = 0;
  // What the device built and received in the last iteration against the plan: the first
  // difference, or nothing.
  virtual std::optional<std::string> compare_with_plan(std::size_t layer_idx) = 0;
  // Collective: the orderly end.
  virtual void finish() = 0;
  // What a report says about the machine: device, driver, NCCL version, sharing, ...
  [[nodiscard]] virtual std::map<std::string, nlohmann::json> facts() const = 0;
};

std::unique_ptr<Executor> make_gpu_executor(ControlGroup& group,
                                            const RankEnvironment& environment);

// A message that a rank sent, as the dry executor keeps it: in the order of sending, those that
// stay on their rank left out.
struct ExecutedMessage {
  Step step;
  std::uint32_t src = 0, dst = 0;
  std::uint32_t num_rows = 0;
  std::size_t num_bytes = 0;
  std::vector<Step> after;  // the exchanges that had to bring their messages first
};
using ExecutionLog = std::vector<ExecutedMessage>;
// `log`, where given, grows with every iteration; it must outlive the executor.
std::unique_ptr<Executor> make_dry_executor(ControlGroup& group, ExecutionLog* log = nullptr);

}  // namespace coterie
