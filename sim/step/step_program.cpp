#include "sim/step/step_program.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "sim/step/memory.hpp"
#include "sim/step/parallel.hpp"
#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

StepPart part_of(Phase phase) {
  switch (phase) {
    case Phase::kNotify:
      return StepPart::kNotify;
    case Phase::kDispatch:
      return StepPart::kDispatch;
    case Phase::kCombine:
      return StepPart::kCombine;
    case Phase::kMlp:
      return StepPart::kExperts;
    default:
      return StepPart::kPermute;
  }
}

}  // namespace

std::uint32_t cell_gpus(const ParallelSizes& parallel) {
  return std::lcm(parallel.ep, parallel.tp * parallel.cp);
}

std::uint32_t stage_gpus(const ParallelSizes& parallel) {
  return parallel.num_ranks() / parallel.pp;
}

std::vector<std::uint32_t> chunk_layers(const ModelShape& model, const StepSpec& step,
                                        std::uint32_t part) {
  const std::vector<LayerRange> ranges = deal_layers(model.num_layers, step.parallel);
  std::vector<std::uint32_t> layers(ranges[part].num);
  std::iota(layers.begin(), layers.end(), ranges[part].first);
  if (part + 1 == ranges.size() && step.kind == StepKind::kTrain) {
    layers.insert(layers.end(), step.mtp_layers, model.num_layers - 1);
  }
  return layers;
}

PipelineShape pipeline_shape(const StepSpec& step) {
  const bool trains = step.kind == StepKind::kTrain;
  return {.num_stages = step.parallel.pp,
          .num_chunks = step.parallel.vp,
          .num_micro_batches = step.num_micro_batches(),
          .paired = trains && step.overlap.micro_batches > 1,
          .backward = trains};
}

SyncBytes sync_bytes(const ModelShape& model, const StepSpec& step, std::uint32_t stage) {
  const StageParameters parameters = stage_parameters(model, step, stage);
  const double gradient = bytes_per_value(step.precision.gradients);
  SyncBytes bytes{parameters.dense * gradient, parameters.experts * gradient, 0.0, 0.0};
  if (step.distributed_optimizer) {
    constexpr double kBf16Bytes = 2.0;  // gathered as the optimizer casts them
    bytes.dense_parameters = kBf16Bytes * parameters.dense;
    bytes.expert_parameters = kBf16Bytes * parameters.experts;
  }
  return bytes;
}

// StepBuilder ------------------------------------------------------------------------------------

StepBuilder::StepBuilder(const StepSetup& setup)
    : setup_(setup),
      cell_(cell_gpus(setup.step.parallel)),
      builder_(setup.cluster, setup.transport) {
  builder_.gpus().use_streams();
  for (const auto& [gpu, factor] : setup.slow) builder_.gpus().slow_down(gpu, factor);
}

// What was added since the last call belongs to this part.
void StepBuilder::label(StepPart part) {
  builder_.label(Phase::kMlp);  // keeps the layers' labels in step
  part_.resize(builder_.program().num_ops(), part);
}

void StepBuilder::begin_work(StepWork work) {
  work_.resize(builder_.program().num_ops(), static_cast<std::uint32_t>(works_.size() - 1));
  works_.push_back(std::move(work));
}

std::uint32_t StepBuilder::both(std::uint32_t gpu, std::uint32_t first, std::uint32_t second) {
  const std::uint32_t event = when_both(builder_.program(), gpu, first, second);
  label(StepPart::kWait);
  return event;
}

StepBuilder::Events StepBuilder::both(std::uint32_t first_gpu, const Events& first,
                                      const Events& second) {
  Events out(cell_);
  for (std::uint32_t i = 0; i < cell_; ++i) out[i] = both(first_gpu + i, first[i], second[i]);
  return out;
}

StepBuilder::Events StepBuilder::kernels(std::uint32_t first_gpu, const OperationTime& time,
                                         StepPart part, const Events& enter) {
  if (time.total.value <= 0.0) return enter;
  const Events out = builder_.events(cell_);
  const Seconds launch{std::min(time.launch.value, time.total.value)};
  for (std::uint32_t i = 0; i < cell_; ++i) {
    builder_.gpus().add_work(first_gpu + i, Seconds{time.total.value - launch.value}, enter[i],
                             std::span(&out[i], 1), launch);
  }
  label(part);
  return out;
}

StepBuilder::Events StepBuilder::add_kernels(std::uint32_t first_gpu, double seconds, StepPart part,
                                             const Events& enter) {
  OperationTime time;
  time.total = Seconds{seconds};
  return kernels(first_gpu, time, part, enter);
}

StepBuilder::Events StepBuilder::add_host(std::uint32_t first_gpu, double seconds,
                                          const Events& enter) {
  const Events out = builder_.events(cell_);
  for (std::uint32_t i = 0; i < cell_; ++i) {
    builder_.program().add_compute(first_gpu + i, seconds, enter[i], std::span(&out[i], 1));
  }
  label(StepPart::kWait);
  return out;
}

void StepBuilder::add_send(std::uint32_t src, std::uint32_t dst, std::uint32_t waits_for,
                           std::uint32_t arrived) {
  const std::uint32_t signals[]{arrived};
  if (src == dst) {
    builder_.program().add_compute(src, 0.0, waits_for, signals);
  } else {
    builder_.program().add_transfer(src, dst, setup_.costs.activation_bytes, waits_for, signals);
  }
  label(StepPart::kPipeline);
}

std::uint32_t StepBuilder::add_group(CollectiveKind kind, std::span<const std::uint32_t> gpus,
                                     double bytes, StepPart part,
                                     std::span<const std::uint32_t> enter) {
  const std::uint32_t barrier[]{builder_.program().add_event()};
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    builder_.program().add_compute(gpus[i], 0.0, enter[i], barrier);
  }
  label(StepPart::kWait);
  const std::uint32_t done[]{builder_.program().add_event()};
  add_collective(builder_.program(), builder_.gpus(), setup_.cluster,
                 plan_collective(setup_.cluster, kind, gpus, bytes), gpus, barrier[0], done);
  label(part);
  return done[0];
}

StepBuilder::Events StepBuilder::tensor(std::uint32_t first_gpu, CollectiveKind kind,
                                        const Events& enter) {
  const std::uint32_t tp = setup_.step.parallel.tp;
  if (tp == 1) return enter;
  Events out(cell_);
  for (std::uint32_t first = 0; first < cell_; first += tp) {
    std::vector<std::uint32_t> gpus(tp);
    std::iota(gpus.begin(), gpus.end(), first_gpu + first);
    const std::uint32_t done = add_group(kind, gpus, setup_.costs.tensor_bytes, StepPart::kTensor,
                                         std::span(enter).subspan(first, tp));
    std::fill_n(out.begin() + first, tp, done);
  }
  return out;
}

StepBuilder::Events StepBuilder::context(std::uint32_t first_gpu, const Events& enter) {
  const std::uint32_t tp = setup_.step.parallel.tp;
  const std::uint32_t cp = setup_.step.parallel.cp;
  if (cp == 1) return enter;
  Events out(cell_);
  for (std::uint32_t first = 0; first < cell_; first += tp * cp) {
    for (std::uint32_t t = 0; t < tp; ++t) {
      std::vector<std::uint32_t> gpus, begins;
      for (std::uint32_t c = 0; c < cp; ++c) {
        gpus.push_back(first_gpu + first + c * tp + t);
        begins.push_back(enter[first + c * tp + t]);
      }
      const std::uint32_t done = add_group(CollectiveKind::kAllGather, gpus,
                                           setup_.costs.context_bytes, StepPart::kTensor, begins);
      for (std::uint32_t c = 0; c < cp; ++c) out[first + c * tp + t] = done;
    }
  }
  return out;
}

StepBuilder::Events StepBuilder::attention(std::uint32_t first_gpu, const LayerCosts& costs,
                                           bool backward, Events enter) {
  // Backward, what was scattered is gathered and the other way round: the same bytes.
  enter = tensor(first_gpu, CollectiveKind::kAllGather, enter);
  if (!backward) enter = context(first_gpu, enter);
  enter = kernels(first_gpu, costs.attention, StepPart::kAttention, enter);
  if (backward) enter = context(first_gpu, enter);
  return tensor(first_gpu, CollectiveKind::kReduceScatter, enter);
}

StepBuilder::Events StepBuilder::dense(std::uint32_t first_gpu, const LayerCosts& costs,
                                       Events enter) {
  if (costs.dense.total.value <= 0.0) return enter;
  enter = tensor(first_gpu, CollectiveKind::kAllGather, enter);
  enter = kernels(first_gpu, costs.dense, StepPart::kDenseMlp, enter);
  return tensor(first_gpu, CollectiveKind::kReduceScatter, enter);
}

StepBuilder::Events StepBuilder::experts(std::uint32_t first_gpu, const LayerCosts& costs,
                                         bool backward, Events enter) {
  if (costs.experts_s.empty()) return enter;
  const auto shared = [&](Events begin) {
    if (costs.shared.total.value <= 0.0) return begin;
    begin = tensor(first_gpu, CollectiveKind::kAllGather, begin);
    begin = kernels(first_gpu, costs.shared, StepPart::kSharedExperts, begin);
    return tensor(first_gpu, CollectiveKind::kReduceScatter, begin);
  };
  const bool beside = setup_.step.overlap.shared_expert;
  const LayerPlan& plan = setup_.plans[costs.plan];
  const LayerSetup layer{
      {},
      backward ? setup_.backward_rows : setup_.forward_rows,
      LayerKernels{setup_.model, backward ? PayloadType::kBf16 : setup_.dispatch_payload},
      setup_.transport,
      {},
      costs.experts_s,
      !backward};
  Events out;
  for (std::uint32_t first = 0; first < cell_; first += plan.num_ranks) {
    const auto from = enter.begin() + first;
    const Events ended =
        builder_.add_layer(layer, plan, first_gpu + first, {from, from + plan.num_ranks});
    out.insert(out.end(), ended.begin(), ended.end());
    for (std::size_t op = part_.size(); op < builder_.phases().size(); ++op) {
      part_.push_back(part_of(builder_.phases()[op]));
    }
  }
  if (beside) {
    out = both(first_gpu, out, shared(enter));
  } else {
    out = shared(out);
  }
  return out;
}

StepBuilder::Events StepBuilder::add_layer(std::uint32_t first_gpu, std::uint32_t layer,
                                           std::uint32_t micro_batch, bool backward, Events enter,
                                           Events* host) {
  const LayerCosts& forward = setup_.costs.forward(layer, micro_batch);
  const auto run_forward = [&](const Events& begin) {
    const Events routed =
        launched(first_gpu, forward.host_attention_s, begin, host, [&](const Events& at) {
          return kernels(first_gpu, forward.router, StepPart::kRouter,
                         dense(first_gpu, forward, attention(first_gpu, forward, false, at)));
        });
    if (forward.experts_s.empty()) return routed;
    if (host != nullptr) *host = both(first_gpu, *host, routed);
    return launched(first_gpu, forward.host_experts_s, routed, host,
                    [&](const Events& at) { return experts(first_gpu, forward, false, at); });
  };
  if (!backward) return run_forward(enter);
  const LayerCosts& costs = setup_.costs.backward(layer, micro_batch);
  if (costs.recompute_layer) enter = run_forward(enter);
  enter = launched(first_gpu, costs.host_experts_s, enter, host, [&](const Events& at) {
    return experts(first_gpu, costs, true,
                   kernels(first_gpu, costs.recompute, StepPart::kAttention, at));
  });
  return launched(first_gpu, costs.host_attention_s, enter, host, [&](const Events& at) {
    const Events routed = kernels(first_gpu, costs.router, StepPart::kRouter, at);
    return attention(first_gpu, costs, true, dense(first_gpu, costs, routed));
  });
}

StepProgram StepBuilder::finish() && {
  label(StepPart::kWait);
  begin_work({});
  return {std::move(builder_).finish().program, std::move(part_), std::move(work_),
          std::move(works_)};
}

// The whole step ---------------------------------------------------------------------------------

namespace {

class WholeStep {
 public:
  using Events = StepBuilder::Events;

  explicit WholeStep(const StepSetup& setup)
      : setup_(setup),
        parallel_(setup.step.parallel),
        shape_(pipeline_shape(setup.step)),
        cell_(cell_gpus(parallel_)),
        stage_size_(stage_gpus(parallel_)),
        num_parts_(parallel_.pp * parallel_.vp),
        builder_(setup) {}

  StepProgram build() && {
    arrived_forward_.resize(std::size_t{num_parts_} * shape_.num_micro_batches * stage_size_);
    arrived_backward_.resize(arrived_forward_.size());
    const std::uint32_t num_slots = static_cast<std::uint32_t>(arrived_forward_.size());
    for (std::uint32_t i = 0; i < num_slots; ++i) {
      arrived_forward_[i] = builder_.add_event();
      arrived_backward_[i] = builder_.add_event();
    }
    if (lanes_together()) {
      for (std::uint32_t cell = 0; cell < stage_size_; cell += cell_) serve(cell);
      return std::move(builder_).finish();
    }
    for (std::uint32_t stage = 0; stage < parallel_.pp; ++stage) {
      layer_ends_.assign(stage_size_, {});
      parameters_.clear();
      Events ends;
      builder_.begin_work({});
      if (trains() && setup_.step.overlap.gradient_reduction) gather_parameters(stage, {});
      for (std::uint32_t cell = 0; cell < stage_size_; cell += cell_) {
        const Events of_cell = run_stage(stage, cell);
        ends.insert(ends.end(), of_cell.begin(), of_cell.end());
      }
      builder_.begin_work({});
      if (trains()) synchronise(stage, ends);
    }
    return std::move(builder_).finish();
  }

 private:
  [[nodiscard]] bool trains() const { return setup_.step.kind == StepKind::kTrain; }
  // Serving without pipeline: all micro-batches of a rank run at once.
  [[nodiscard]] bool lanes_together() const { return !trains() && parallel_.pp == 1; }
  // An arrival per part of the model, micro-batch and rank of a stage.
  [[nodiscard]] std::size_t at(std::uint32_t part, std::uint32_t micro_batch,
                               std::uint32_t rank) const {
    return (std::size_t{part} * shape_.num_micro_batches + micro_batch) * stage_size_ + rank;
  }

  void serve(std::uint32_t cell) {
    const std::uint32_t lanes = setup_.step.overlap.micro_batches;
    for (std::uint32_t lane = 0; lane < lanes; ++lane) {
      const std::string name = lanes > 1 ? fmt::format("half {}", lane + 1) : "";
      builder_.begin_work({name, name});
      Events at_layer = builder_.add_kernels(cell, setup_.costs.embedding_s(false),
                                             StepPart::kEmbedding, builder_.start());
      for (const std::uint32_t layer : chunk_layers(setup_.model, setup_.step, 0)) {
        at_layer = builder_.add_layer(cell, layer, lane, false, std::move(at_layer));
      }
      (void)builder_.add_kernels(cell, setup_.costs.head_s(false), StepPart::kEmbedding, at_layer);
    }
  }

  Events run_stage(std::uint32_t stage, std::uint32_t cell) {
    Events end = builder_.start();
    for (const PipelineSlot& slot : stage_slots(shape_, stage)) {
      // Both passes of a pair begin when what either needs is there.
      Events begin = end;
      if (slot.forward) begin = when_arrived(stage, cell, *slot.forward, false, begin);
      if (slot.backward) begin = when_arrived(stage, cell, *slot.backward, true, begin);
      // One host launches both.
      host_.reset();
      if (setup_.step.launch.per_kernel.value > 0.0) host_ = begin;
      std::vector<PassUnderWay> passes;
      if (slot.forward) passes.push_back(open(stage, cell, *slot.forward, false, begin));
      if (slot.backward) passes.push_back(open(stage, cell, *slot.backward, true, begin));
      std::size_t num_layers = 0;
      for (const PassUnderWay& pass : passes) num_layers = std::max(num_layers, pass.layers.size());
      for (std::size_t i = 0; i < num_layers; ++i) {
        // A pair goes on layer by layer, as its kernels are launched.
        if (passes.size() == 2) {
          passes[0].now = passes[1].now =
              builder_.both(passes[0].first_gpu, passes[0].now, passes[1].now);
        }
        for (PassUnderWay& pass : passes) add_layer(pass, i);
      }
      for (PassUnderWay& pass : passes) close(pass);
      end = passes.size() == 2 ? builder_.both(passes[0].first_gpu, passes[0].now, passes[1].now)
                               : passes[0].now;
    }
    return end;
  }

  // What a pass gets from the stage before it is there, and the cell is free.
  Events when_arrived(std::uint32_t stage, std::uint32_t cell, const ChunkPass& pass, bool backward,
                      const Events& free) {
    const std::uint32_t part = pass.chunk * parallel_.pp + stage;
    if (part == (backward ? num_parts_ - 1 : 0)) return free;
    const auto& arrived = backward ? arrived_backward_ : arrived_forward_;
    const auto from =
        arrived.begin() + static_cast<std::ptrdiff_t>(at(part, pass.micro_batch, cell));
    return builder_.both(stage * stage_size_ + cell, free, Events(from, from + cell_));
  }

  // One chunk of one micro-batch in one direction, on a cell.
  struct PassUnderWay {
    std::uint32_t stage = 0;
    std::uint32_t cell = 0;
    std::uint32_t first_gpu = 0;
    std::uint32_t part = 0;  // of the model
    std::uint32_t micro_batch = 0;
    bool backward = false;
    std::vector<std::uint32_t> layers;  // in the order of the pass
    std::size_t position = 0;           // of its first layer among the stage's
    Events now;
  };

  PassUnderWay open(std::uint32_t stage, std::uint32_t cell, const ChunkPass& chunk, bool backward,
                    Events now) {
    PassUnderWay pass{.stage = stage,
                      .cell = cell,
                      .first_gpu = stage * stage_size_ + cell,
                      .part = chunk.chunk * parallel_.pp + stage,
                      .micro_batch = chunk.micro_batch,
                      .backward = backward,
                      .layers = {},
                      .position = first_layer(chunk.chunk, stage),
                      .now = std::move(now)};
    pass.layers = chunk_layers(setup_.model, setup_.step, pass.part);
    if (backward) std::reverse(pass.layers.begin(), pass.layers.end());
    begin_work(pass);
    add_ends(pass, true);
    return pass;
  }

  [[nodiscard]] Events* host() { return host_ ? &*host_ : nullptr; }

  void begin_work(const PassUnderWay& pass) {
    const char* const lane = pass.backward ? "backward" : "forward";
    builder_.begin_work({lane, fmt::format("{} {}", lane, pass.micro_batch)});
  }

  // Embedding or LM head, where the pass begins or ends with them.
  void add_ends(PassUnderWay& pass, bool at_start) {
    const StepCosts& costs = setup_.costs;
    const auto add = [&](double seconds, double host_s) {
      pass.now = builder_.launched(pass.first_gpu, host_s, pass.now, host(), [&](const Events& at) {
        return builder_.add_kernels(pass.first_gpu, seconds, StepPart::kEmbedding, at);
      });
    };
    if (pass.part == 0 && at_start != pass.backward) {
      add(costs.embedding_s(pass.backward), costs.embedding_host_s(pass.backward));
    }
    if (pass.part + 1 == num_parts_ && at_start == pass.backward) {
      add(costs.head_s(pass.backward), costs.head_host_s(pass.backward));
    }
  }

  void add_layer(PassUnderWay& pass, std::size_t idx) {
    if (idx >= pass.layers.size()) return;
    begin_work(pass);
    if (!pass.backward && pass.micro_batch == 0 && !parameters_.empty()) {
      const Events& gathered = parameters_[pass.position + idx];
      const auto from = gathered.begin() + pass.cell;
      pass.now = builder_.both(pass.first_gpu, pass.now, Events(from, from + cell_));
    }
    pass.now = builder_.add_layer(pass.first_gpu, pass.layers[idx], pass.micro_batch, pass.backward,
                                  std::move(pass.now), host());
    if (pass.backward && pass.micro_batch + 1 == shape_.num_micro_batches) {
      for (std::uint32_t i = 0; i < cell_; ++i) {
        layer_ends_[pass.cell + i].push_back(pass.now[i]);
      }
    }
  }

  // The end of a pass, and the send of what it made.
  void close(PassUnderWay& pass) {
    begin_work(pass);
    add_ends(pass, false);
    if (pass.part == (pass.backward ? 0 : num_parts_ - 1)) return;
    const std::uint32_t to = pass.backward ? pass.part - 1 : pass.part + 1;
    for (std::uint32_t i = 0; i < cell_; ++i) {
      const std::uint32_t rank = pass.cell + i;
      builder_.add_send(
          pass.stage * stage_size_ + rank, to % parallel_.pp * stage_size_ + rank, pass.now[i],
          (pass.backward ? arrived_backward_ : arrived_forward_)[at(to, pass.micro_batch, rank)]);
    }
  }

  // Layers of the stage's chunks before this one.
  [[nodiscard]] std::size_t first_layer(std::uint32_t chunk, std::uint32_t stage) const {
    std::size_t before = 0;
    for (std::uint32_t c = 0; c < chunk; ++c) {
      before += chunk_layers(setup_.model, setup_.step, c * parallel_.pp + stage).size();
    }
    return before;
  }

  // A collective of all groups of a stage for a share of the bytes. `enter`: by rank of the stage;
  // returns when each rank's dense and expert groups are both done.
  Events sync(std::uint32_t stage, CollectiveKind kind, double dense_bytes, double expert_bytes,
              StepPart part, const Events& enter) {
    Events out = enter;
    const std::uint32_t base = stage * stage_size_;
    const auto run = [&](std::uint32_t num_groups, bool dense, double bytes) {
      for (std::uint32_t group = 0; group < num_groups && bytes > 0.0; ++group) {
        // Dense: ranks of equal tp index; experts: of equal ep index.
        std::vector<std::uint32_t> ranks, gpus, begins;
        const std::uint32_t stride = dense ? parallel_.tp : parallel_.ep;
        for (std::uint32_t rank = group; rank < stage_size_; rank += stride) {
          ranks.push_back(rank);
          gpus.push_back(base + rank);
          begins.push_back(enter[rank]);
        }
        if (ranks.size() < 2) continue;
        const std::uint32_t done = builder_.add_group(kind, gpus, bytes, part, begins);
        for (const std::uint32_t rank : ranks) {
          out[rank] = out[rank] == enter[rank] ? done : builder_.both(base + rank, out[rank], done);
        }
      }
    };
    run(parallel_.tp, true, dense_bytes);
    run(parallel_.ep, false, expert_bytes);
    return out;
  }

  void gather_parameters(std::uint32_t stage, Events enter) {
    const SyncBytes bytes = sync_bytes(setup_.model, setup_.step, stage);
    if (bytes.dense_parameters <= 0.0) return;
    const std::size_t num_layers = first_layer(parallel_.vp, stage);
    if (enter.empty()) enter.assign(stage_size_, kStartEvent);
    for (std::size_t i = 0; i < num_layers; ++i) {
      enter = sync(stage, CollectiveKind::kAllGather,
                   bytes.dense_parameters / static_cast<double>(num_layers),
                   bytes.expert_parameters / static_cast<double>(num_layers), StepPart::kParameters,
                   enter);
      parameters_.push_back(enter);
    }
  }

  // Gradients, the optimizer, and, where nothing hides it, the parameters.
  void synchronise(std::uint32_t stage, const Events& ends) {
    const SyncBytes bytes = sync_bytes(setup_.model, setup_.step, stage);
    const CollectiveKind kind = setup_.step.distributed_optimizer ? CollectiveKind::kReduceScatter
                                                                  : CollectiveKind::kAllReduce;
    Events now = ends;
    if (setup_.step.overlap.gradient_reduction) {
      // A layer's gradients follow those of the layer before as soon as they are there.
      const std::size_t num_layers = layer_ends_.front().size();
      Events last;
      for (std::size_t i = 0; i < num_layers; ++i) {
        Events ready(stage_size_);
        for (std::uint32_t rank = 0; rank < stage_size_; ++rank) {
          const std::uint32_t gpu = stage * stage_size_ + rank;
          ready[rank] = last.empty() ? layer_ends_[rank][i]
                                     : builder_.both(gpu, layer_ends_[rank][i], last[rank]);
        }
        last = sync(stage, kind, bytes.dense_gradients / static_cast<double>(num_layers),
                    bytes.expert_gradients / static_cast<double>(num_layers), StepPart::kGradients,
                    ready);
      }
      for (std::uint32_t rank = 0; rank < stage_size_; ++rank) {
        now[rank] = builder_.both(stage * stage_size_ + rank, ends[rank], last[rank]);
      }
    } else {
      now = sync(stage, kind, bytes.dense_gradients, bytes.expert_gradients, StepPart::kGradients,
                 now);
    }
    for (std::uint32_t cell = 0; cell < stage_size_; cell += cell_) {
      const Events updated =
          builder_.add_kernels(stage * stage_size_ + cell, setup_.optimizer_s, StepPart::kOptimizer,
                               Events(now.begin() + cell, now.begin() + cell + cell_));
      std::copy(updated.begin(), updated.end(), now.begin() + cell);
    }
    if (setup_.step.overlap.gradient_reduction) return;
    (void)sync(stage, CollectiveKind::kAllGather, bytes.dense_parameters, bytes.expert_parameters,
               StepPart::kParameters, now);
  }

  const StepSetup& setup_;
  const ParallelSizes& parallel_;
  PipelineShape shape_;
  std::uint32_t cell_, stage_size_, num_parts_;
  StepBuilder builder_;
  Events arrived_forward_, arrived_backward_;  // see at()
  std::optional<Events>
      host_;  // [GPUs of the cell] when it is free; of the slot under construction
  // Of the stage under construction.
  std::vector<Events> layer_ends_;  // [rank][layers, last first] of the last micro-batch
  std::vector<Events> parameters_;  // [layers][rank] when they are gathered; empty: they are there
};

}  // namespace

StepProgram build_step(const StepSetup& setup) {
  return WholeStep(setup).build();
}

}  // namespace coterie
