#pragma once
// A step as a program: what every rank computes and sends, in the order that schedules and
// dependencies give, for the engines to execute.
//
// The GPUs of a pipeline stage fall into *cells*: the smallest sets of consecutive GPUs that hold
// whole EP, tensor and context groups. Within a pass of a layer only GPUs of a cell wait for each
// other; cells meet where gradients are reduced. Kernels of a GPU run one after the other, in the
// order in which they become ready; communication runs beside them and may hold multiprocessors.
//
//   forward    gather, attention, scatter -> router -> dispatch, experts, combine   shared experts
//   backward   dispatch of gradients, experts, their way back -> router, attention  beside or after
//
// Without CUDA graphs the host launches the kernels of a pass while the GPU runs them (LaunchClock). In
// the forward pass of a MoE layer it waits for the router, as it needs the counts of rows for what
// follows; with the next pass it begins when the GPU has done this one.
//
// Approximations: a GPU's kernels compete for its multiprocessors with communication kernels that
// hold some, but their memory traffic does not slow transfers; all EP groups route the same rows, and
// so do all micro-batches unless `routing_per: micro_batch` gives them tokens of their own.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "sim/program/layer_program.hpp"
#include "sim/step/collectives.hpp"
#include "sim/step/pipeline.hpp"
#include "sim/step/step_costs.hpp"

namespace coterie {

struct StepSetup {
  const Cluster& cluster;
  const ModelShape& model;
  const StepSpec& step;
  const StepCosts& costs;
  std::span<const LayerPlan> plans;  // of one EP group, as StepCosts has them
  PayloadSizes forward_rows;
  PayloadSizes backward_rows;
  PayloadType dispatch_payload = PayloadType::kBf16;
  TransportChoice transport;
  std::map<std::uint32_t, double> slow{};  // by GPU: how many times as long its kernels take
  double optimizer_s = 0.0;                // of the fullest stage
};

// GPUs of a cell and of a stage.
std::uint32_t cell_gpus(const ParallelSizes& parallel);
std::uint32_t stage_gpus(const ParallelSizes& parallel);
// The layers of a chunk; the last one computes those of multi-token prediction once more.
std::vector<std::uint32_t> chunk_layers(const ModelShape& model, const StepSpec& step,
                                        std::uint32_t part);
PipelineShape pipeline_shape(const StepSpec& step);

// The pass that operations belong to, for those who look at them: what runs one after the other
// ("forward", "half 2"), and which of these it is ("forward 3"). Empty: no pass.
struct StepWork {
  std::string lane;
  std::string name;
};

struct StepProgram {
  Program program;
  std::vector<StepPart> part;       // [num_ops]
  std::vector<std::uint32_t> work;  // [num_ops] into `works`
  std::vector<StepWork> works;
};

// Adds passes of layers, sends and collectives of groups. Events come and go by rank of a cell.
class StepBuilder {
 public:
  // `setup` must outlive it. Throws InputError for a transport that does not fit the cluster.
  explicit StepBuilder(const StepSetup& setup);
  using Events = std::vector<std::uint32_t>;  // [GPUs of the cell]

  [[nodiscard]] Events start() const { return Events(cell_, kStartEvent); }
  // What is added from now on belongs to `work`.
  void begin_work(StepWork work);
  // `host`: when the host of every GPU is free, and then is again; null: graphs hold all kernels.
  Events add_layer(std::uint32_t first_gpu, std::uint32_t layer, std::uint32_t micro_batch,
                   bool backward, Events enter, Events* host = nullptr);
  // What `add` adds from its argument on, launched by the host in `host_s`.
  template <class Add>
  Events launched(std::uint32_t first_gpu, double host_s, const Events& enter, Events* host,
                  const Add& add) {
    if (host == nullptr) return add(enter);
    const Events begin = both(first_gpu, enter, *host);
    *host = add_host(first_gpu, host_s, *host);
    return both(first_gpu, add(begin), *host);
  }
  // `seconds` on every GPU of the cell.
  Events add_kernels(std::uint32_t first_gpu, double seconds, StepPart part, const Events& enter);
  // The host of every GPU of the cell is busy for `seconds`, beside the GPU's kernels.
  Events add_host(std::uint32_t first_gpu, double seconds, const Events& enter);
  void add_send(std::uint32_t src, std::uint32_t dst, std::uint32_t waits_for,
                std::uint32_t arrived);
  // The event fires when every one of `gpus` has reached `enter[i]` and the collective is over.
  std::uint32_t add_group(CollectiveKind kind, std::span<const std::uint32_t> gpus, double bytes,
                          StepPart part, std::span<const std::uint32_t> enter);
  // Fires when both have; costs nothing.
  std::uint32_t both(std::uint32_t gpu, std::uint32_t first, std::uint32_t second);
  Events both(std::uint32_t first_gpu, const Events& first, const Events& second);
  std::uint32_t add_event() { return builder_.program().add_event(); }
  ProgramBuilder& program() { return builder_.program(); }
  StepProgram finish() &&;

 private:
  void label(StepPart part);
  Events kernels(std::uint32_t first_gpu, const OperationTime& time, StepPart part,
                 const Events& enter);
  Events tensor(std::uint32_t first_gpu, CollectiveKind kind, const Events& enter);
  Events context(std::uint32_t first_gpu, const Events& enter);
  Events attention(std::uint32_t first_gpu, const LayerCosts& costs, bool backward, Events enter);
  Events dense(std::uint32_t first_gpu, const LayerCosts& costs, Events enter);
  Events experts(std::uint32_t first_gpu, const LayerCosts& costs, bool backward, Events enter);

  const StepSetup& setup_;
  std::uint32_t cell_;
  LayerProgramBuilder builder_;
  std::vector<StepPart> part_;
  std::vector<std::uint32_t> work_;
  std::vector<StepWork> works_{{}};
};

// The whole step of all ranks. Operations grow with GPUs, layers and micro-batches: for up to a few
// hundred GPUs.
StepProgram build_step(const StepSetup& setup);

// What gradients and parameters of a stage take: bytes of a dense rank and of an expert rank that
// are reduced, and gathered.
struct SyncBytes {
  double dense_gradients = 0.0, expert_gradients = 0.0;
  double dense_parameters = 0.0, expert_parameters = 0.0;  // zero without a distributed optimizer
};
SyncBytes sync_bytes(const ModelShape& model, const StepSpec& step, std::uint32_t stage);

}  // namespace coterie
