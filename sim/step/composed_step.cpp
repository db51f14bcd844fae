#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <tuple>

#include "core/error.hpp"
#include "sim/step/changing_links.hpp"
#include "sim/step/execution.hpp"
#include "sim/step/parallel.hpp"
#include "sim/step/step_times.hpp"

namespace coterie {
namespace {

// Serving blocks of up to so many operations are simulated whole, larger ones layer by layer.
constexpr std::uint64_t kWholeChainOps = 400'000;

// What takes so many times as long as with whole links stands still.
constexpr double kStandsStill = 100.0;

// When each stage's part of a collective of all stages is over, and what it costs the GPUs.
struct SyncTimes {
  std::vector<double> stage_s;  // [num_stages]
  double scale_up_bytes = 0.0;
  double network_bytes = 0.0;
};

class Composition {
 public:
  Composition(const StepSetup& setup, const Network& network, const StepOptions& options)
      : setup_(setup),
        network_(network),
        options_(options),
        parallel_(setup.step.parallel),
        shape_(pipeline_shape(setup.step)),
        cell_(cell_gpus(parallel_)),
        stage_size_(stage_gpus(parallel_)),
        cells_per_stage_(stage_size_ / cell_),
        num_parts_(parallel_.pp * parallel_.vp),
        epochs_(epochs_of(network, options)) {
    tell_cells_apart();
    for (std::uint32_t part = 0; part < num_parts_; ++part) {
      layers_.push_back(chunk_layers(setup.model, setup.step, part));
    }
    slowness_.assign(parallel_.num_ranks() / cell_, 1.0);
    if (!setup.slow.empty()) {
      const std::vector<double> loads = relative_loads();
      for (const auto& [gpu, factor] : setup.slow) {
        if (gpu / cell_ >= slowness_.size()) continue;
        const double counts = factor * loads[gpu % cell_];
        slowness_[gpu / cell_] = std::max(slowness_[gpu / cell_], counts);
        if (counts <= slowest_) continue;
        slowest_ = counts;
        slowest_cell_ = gpu / cell_;
      }
    }
  }

  StepTimes run() {
    if (setup_.step.kind != StepKind::kTrain && parallel_.pp == 1) return serve();
    if (trains()) {
      gradients_ = synced(true);
      if (setup_.step.distributed_optimizer) parameters_ = synced(false);
    }
    return schedule();
  }

 private:
  [[nodiscard]] bool trains() const { return setup_.step.kind == StepKind::kTrain; }

  // What the GPUs of a cell compute, of what the one with most to do computes. A slow GPU with few
  // rows may be done before the others.
  [[nodiscard]] std::vector<double> relative_loads() const {
    std::vector<double> loads(cell_, 0.0);
    for (const auto& layers : layers_) {
      for (const std::uint32_t layer : layers) {
        for (const bool backward : {false, true}) {
          if (backward && !trains()) continue;
          for (std::uint32_t micro = 0; micro < setup_.costs.num_routings(); ++micro) {
            const LayerCosts& costs =
                backward ? setup_.costs.backward(layer, micro) : setup_.costs.forward(layer, micro);
            const double alike =
                (costs.attention + costs.dense + costs.router + costs.shared + costs.recompute)
                    .total.value;
            for (std::uint32_t i = 0; i < cell_; ++i) {
              loads[i] += alike;
              if (!costs.experts_s.empty()) loads[i] += costs.experts_s[i % costs.experts_s.size()];
            }
          }
        }
      }
    }
    const double most = *std::max_element(loads.begin(), loads.end());
    for (double& load : loads) load = most > 0.0 ? load / most : 1.0;
    return loads;
  }

  // Classes of cells with the routes of every epoch, and which cells are alike in all of them.
  void tell_cells_apart() {
    const std::uint32_t num_cells = parallel_.num_ranks() / cell_;
    const std::vector<CapacityChange> marks = marked_links(network_, options_);
    std::map<const Network*, std::shared_ptr<const CellClasses>> known;
    for (const Epoch& epoch : epochs_) {
      const Network* const network = epoch.around ? epoch.around.get() : &network_;
      std::shared_ptr<const CellClasses>& classes = known[network];
      if (!classes) {
        classes =
            std::make_shared<const CellClasses>(cell_classes(*network, num_cells, cell_, marks));
        distinct_classes_.push_back(classes.get());
      }
      classes_.push_back(classes);
    }
    std::map<std::vector<std::uint32_t>, std::uint32_t> kinds;
    for (std::uint32_t cell = 0; cell < num_cells; ++cell) {
      std::vector<std::uint32_t> key;
      for (const CellClasses* classes : distinct_classes_) {
        key.push_back(classes->class_of[cell]);
        key.push_back(classes->position_of[cell]);
      }
      kind_of_.push_back(kinds.try_emplace(std::move(key), static_cast<std::uint32_t>(kinds.size()))
                             .first->second);
    }
  }
  // Of the epoch at hand.
  [[nodiscard]] const Network& network() const {
    const Epoch& epoch = epochs_[epoch_];
    return epoch.around ? *epoch.around : network_;
  }
  [[nodiscard]] const CellClasses& classes() const { return *classes_[epoch_]; }

  // Epochs ----------------------------------------------------------------------------------------

  template <class Of>
  BlockTimes in_epoch(std::size_t epoch, const Of& of) {
    epoch_ = epoch;
    const BlockTimes times = of();
    epoch_ = 0;
    return times;
  }

  // What begins at `start_s` and takes of() with the links as they are in an epoch: of every epoch
  // that it lives through it does as much as the epoch has time for, and none while it stands still.
  template <class Of>
  BlockTimes through(double start_s, const Of& of) {
    BlockTimes sum;
    double left = 1.0;
    double stall_s = 0.0;
    for (std::size_t e = 0;; ++e) {
      const double end_s = epochs_[e + 1].begin_s;
      if (start_s >= end_s) continue;
      const BlockTimes here = in_epoch(e, of);
      const bool stands = !epochs_[e].failed.empty() &&
                          here.time_s > kStandsStill * in_epoch(epochs_.size() - 1, of).time_s;
      if (!stands) {
        stall_s = 0.0;
        if (start_s + left * here.time_s <= end_s) return sum += here * left;
        const double share = (end_s - start_s) / here.time_s;
        sum += here * share;
        left -= share;
      } else {
        const double began_s = start_s - stall_s;
        stall_s += end_s - start_s;
        if (stall_s > options_.timeout_s) time_out(began_s, options_, failed_links(e));
        if (std::isinf(stall_s)) throw InputError(failed_links(e), "no end of it", "a timeout");
        longest_stall_s_ = std::max(longest_stall_s_, stall_s);
        sum.time_s += end_s - start_s;
        sum.parts[static_cast<std::size_t>(StepPart::kWait)] += end_s - start_s;
      }
      start_s = end_s;
    }
  }
  [[nodiscard]] std::string failed_links(std::size_t epoch) const {
    const std::vector<std::uint32_t>& failed = epochs_[epoch].failed;
    const std::string& name = network_.links()[failed.front()].name;
    if (failed.size() == 1) return fmt::format("what crosses the failed link \"{}\"", name);
    return fmt::format("what crosses the failed links (\"{}\" and {} more)", name,
                       failed.size() - 1);
  }
  template <class Of>
  double duration_s(double start_s, const Of& of) {
    return through(start_s,
                   [&] {
                     BlockTimes times;
                     times.time_s = of();
                     return times;
                   })
        .time_s;
  }

  BlockTimes slot_from(std::uint32_t cell, std::uint32_t stage, const PipelineSlot& slot,
                       double start_s) {
    return through(start_s, [&] { return slot_times(cell, stage, slot); });
  }

  const SyncTimes& synced(bool gradients) {
    const std::pair key{gradients, epoch_};
    const auto found = synced_.find(key);
    if (found != synced_.end()) return found->second;
    return synced_.emplace(key, sync(gradients)).first->second;
  }

  // Blocks ----------------------------------------------------------------------------------------

  // Executes a block on the component that stands for a class of cells and measures one of them.
  template <class Add>
  BlockTimes block(std::uint32_t cell, bool slow, const Add& add) {
    const CellClass& cells = classes().classes[classes().class_of[cell]];
    StepSetup setup = setup_;
    setup.slow.clear();
    if (slow) {
      // GPU by GPU as slow as the slowest cell.
      for (std::uint32_t i = 0; i < cell_; ++i) {
        const auto found = setup_.slow.find(slowest_cell_ * cell_ + i);
        if (found == setup_.slow.end()) continue;
        for (const std::uint32_t first : cells.first_gpus) setup.slow[first + i] = found->second;
      }
    }
    StepBuilder builder(setup);
    for (const std::uint32_t first : cells.first_gpus) add(builder, first);
    const Executed executed =
        execute(std::move(builder).finish(), network(), epochs_[epoch_].options);
    ++num_blocks_;
    num_operations_ += executed.block.program.num_ops();
    return measure_block(executed.block, executed.execution, setup_.cluster,
                         cells.first_gpus[classes().position_of[cell]], cell_);
  }

  // A layer of a micro-batch forward, backward, or both side by side.
  struct LayerOf {
    std::uint32_t layer = 0;
    std::uint32_t micro_batch = 0;
  };
  using Layer = std::optional<LayerOf>;
  BlockTimes layer_block(std::uint32_t cell, bool slow, Layer forward, Layer backward) {
    const auto class_of = [&](const Layer& layer) {
      return layer ? static_cast<int>(setup_.costs.layer_class(layer->layer, layer->micro_batch))
                   : -1;
    };
    const auto key = std::make_tuple(classes().class_of[cell], classes().position_of[cell], slow,
                                     class_of(forward), class_of(backward), epoch_);
    const auto found = blocks_.find(key);
    if (found != blocks_.end()) return found->second;
    const BlockTimes times = block(cell, slow, [&](StepBuilder& builder, std::uint32_t first) {
      const auto add = [&](const LayerOf& one, bool back) {
        (void)builder.add_layer(first, one.layer, one.micro_batch, back, builder.start());
      };
      if (forward) add(*forward, false);
      if (backward) add(*backward, true);
    });
    return blocks_.emplace(key, times).first->second;
  }

  [[nodiscard]] BlockTimes kernel(double seconds) const {
    BlockTimes times;
    times.time_s = times.compute_s = seconds;
    times.parts[static_cast<std::size_t>(StepPart::kEmbedding)] = seconds;
    return times;
  }

  // A part of the model and a micro-batch.
  struct PartOf {
    std::uint32_t part = 0;
    std::uint32_t micro_batch = 0;
  };
  BlockTimes slot_block(std::uint32_t cell, bool slow, const std::optional<PartOf>& forward,
                        const std::optional<PartOf>& backward) {
    BlockTimes sum;
    LaunchClock clock;
    const bool launches = setup_.step.launch.per_kernel.value > 0.0;
    const StepCosts& costs = setup_.costs;
    const double factor = slow ? slowest_ : 1.0;
    const auto end = [&](double seconds, double host_s) {
      sum += kernel(seconds * factor);
      clock.add(host_s, seconds * factor);
    };
    // Embedding or LM head before the layers, or behind them.
    const auto ends = [&](const std::optional<PartOf>& pass, bool back, bool at_start) {
      if (!pass) return;
      if (pass->part == 0 && at_start != back) {
        end(costs.embedding_s(back), costs.embedding_host_s(back));
      }
      if (pass->part + 1 == num_parts_ && at_start == back) {
        end(costs.head_s(back), costs.head_host_s(back));
      }
    };
    ends(forward, false, true);
    ends(backward, true, true);
    const std::vector<std::uint32_t> none;
    const auto& front = forward ? layers_[forward->part] : none;
    const auto& back = backward ? layers_[backward->part] : none;
    // Both together layer by layer, the backward pass from its end.
    for (std::size_t i = 0; i < std::max(front.size(), back.size()); ++i) {
      Layer f, b;
      if (i < front.size()) f = LayerOf{front[i], forward->micro_batch};
      if (i < back.size()) b = LayerOf{back[back.size() - 1 - i], backward->micro_batch};
      const BlockTimes times = layer_block(cell, slow, f, b);
      sum += times;
      if (launches) launch_layer(clock, f, b, times.time_s, factor);
    }
    ends(forward, false, false);
    ends(backward, true, false);
    // While the host is behind, the GPU waits.
    if (launches && clock.now_s() > sum.time_s) {
      sum.parts[static_cast<std::size_t>(StepPart::kWait)] += clock.now_s() - sum.time_s;
      sum.time_s = clock.now_s();
    }
    return sum;
  }

  // One host launches a layer forward and one backward whose kernels take `block_s` together, in the
  // order in which StepBuilder::add_layer adds them.
  void launch_layer(LaunchClock& clock, const Layer& forward, const Layer& backward, double block_s,
                    double factor) const {
    const StepCosts& costs = setup_.costs;
    double left_s = block_s;
    const auto attention = [&](const LayerCosts& layer) {
      const double seconds = std::min(left_s, layer.attention_s() * factor);
      left_s -= seconds;
      clock.add(layer.host_attention_s, seconds);
    };
    double host_s = 0.0;
    const auto front = [&](const LayerCosts& layer) {
      attention(layer);
      if (layer.experts_s.empty()) return;
      clock.wait();
      host_s += layer.host_experts_s;
    };
    if (forward) front(costs.forward(forward->layer, forward->micro_batch));
    if (!backward) {
      clock.add(host_s, left_s);
      return;
    }
    const LayerCosts& back = costs.backward(backward->layer, backward->micro_batch);
    if (back.recompute_layer) front(costs.forward(backward->layer, backward->micro_batch));
    // The backward pass's attention comes last.
    const double last_s = std::min(left_s, back.attention_s() * factor);
    clock.add(host_s + back.host_experts_s, left_s - last_s);
    clock.add(back.host_attention_s, last_s);
  }

  // A slot on a cell that is `slowness` times as slow: between the times of a cell of full speed and
  // of the slowest one.
  const BlockTimes& slot_times(std::uint32_t cell, std::uint32_t stage, const PipelineSlot& slot) {
    const auto part_of = [&](const std::optional<ChunkPass>& pass) -> std::optional<PartOf> {
      if (!pass) return std::nullopt;
      return PartOf{pass->chunk * parallel_.pp + stage, setup_.costs.routing_of(pass->micro_batch)};
    };
    const auto forward = part_of(slot.forward);
    const auto backward = part_of(slot.backward);
    const auto place = [&](const std::optional<PartOf>& part) {
      return part ? part->part * setup_.costs.num_routings() + part->micro_batch
                  : num_parts_ * setup_.costs.num_routings();
    };
    const auto key = std::make_tuple(classes().class_of[cell], classes().position_of[cell],
                                     slowness_[cell], place(forward), place(backward), epoch_);
    const auto found = slots_.find(key);
    if (found != slots_.end()) return found->second;
    BlockTimes times = slot_block(cell, false, forward, backward);
    if (slowness_[cell] > 1.0) {
      const double share = (slowness_[cell] - 1.0) / (slowest_ - 1.0);
      times = times * (1.0 - share) + slot_block(cell, true, forward, backward) * share;
    }
    return slots_.emplace(key, times).first->second;
  }

  // Between two neighbouring stages, all their GPUs at once.
  double send_s(std::uint32_t from, std::uint32_t to) {
    StepBuilder builder(setup_);
    const std::uint32_t arrived = builder.add_event();
    for (std::uint32_t rank = 0; rank < stage_size_; ++rank) {
      builder.add_send(from * stage_size_ + rank, to * stage_size_ + rank, kStartEvent, arrived);
    }
    const Executed executed =
        execute(std::move(builder).finish(), network(), epochs_[epoch_].options);
    ++num_blocks_;
    num_operations_ += executed.block.program.num_ops();
    return executed.execution.makespan_s;
  }

  // Gradients or parameters of all stages at once.
  SyncTimes sync(bool gradients) {
    SyncTimes out;
    StepBuilder builder(setup_);
    const CollectiveKind kind = !gradients                          ? CollectiveKind::kAllGather
                                : setup_.step.distributed_optimizer ? CollectiveKind::kReduceScatter
                                                                    : CollectiveKind::kAllReduce;
    const StepPart part = gradients ? StepPart::kGradients : StepPart::kParameters;
    std::vector<std::size_t> end_op;  // [num_stages] operations up to the stage's last
    for (std::uint32_t stage = 0; stage < parallel_.pp; ++stage) {
      const SyncBytes bytes = sync_bytes(setup_.model, setup_.step, stage);
      const auto run = [&](std::uint32_t stride, double amount) {
        if (amount <= 0.0 || stage_size_ / stride < 2) return;
        for (std::uint32_t group = 0; group < stride; ++group) {
          std::vector<std::uint32_t> gpus;
          for (std::uint32_t rank = group; rank < stage_size_; rank += stride) {
            gpus.push_back(stage * stage_size_ + rank);
          }
          const std::vector<std::uint32_t> enter(gpus.size(), kStartEvent);
          (void)builder.add_group(kind, gpus, amount, part, enter);
        }
      };
      run(parallel_.tp, gradients ? bytes.dense_gradients : bytes.dense_parameters);
      run(parallel_.ep, gradients ? bytes.expert_gradients : bytes.expert_parameters);
      end_op.push_back(builder.program().num_ops());
    }
    const Executed executed =
        execute(std::move(builder).finish(), network(), epochs_[epoch_].options);
    ++num_blocks_;
    num_operations_ += executed.block.program.num_ops();
    std::size_t op = 0;
    for (const std::size_t end : end_op) {
      double last_s = 0.0;
      for (; op < end; ++op) last_s = std::max(last_s, executed.execution.finish_s[op]);
      out.stage_s.push_back(last_s);
    }
    const BlockTimes times =
        measure_block(executed.block, executed.execution, setup_.cluster, 0, parallel_.num_ranks());
    out.scale_up_bytes = times.scale_up_bytes;
    out.network_bytes = times.network_bytes;
    return out;
  }

  // Schedule --------------------------------------------------------------------------------------

  // One chain of cells, one per stage.
  struct Pipeline {
    PipelineTimes times;
    std::vector<std::uint32_t> cells;  // [num_stages]
  };
  [[nodiscard]] std::uint32_t cell_of(std::uint32_t stage, std::uint32_t pipeline) const {
    return stage * cells_per_stage_ + pipeline;
  }

  Pipeline run_pipeline(std::uint32_t idx) {
    Pipeline out;
    for (std::uint32_t stage = 0; stage < parallel_.pp; ++stage) {
      out.cells.push_back(cell_of(stage, idx));
    }
    const PipelineCosts costs{
        [&](std::uint32_t stage, const PipelineSlot& slot, double start_s) {
          return slot_from(out.cells[stage], stage, slot, start_s).time_s;
        },
        [&](std::uint32_t from, std::uint32_t to, bool /*forward*/, double start_s) {
          return duration_s(start_s, [&] { return hop_s(from, to); });
        }};
    out.times = schedule_pipeline(shape_, costs);
    return out;
  }

  double hop_s(std::uint32_t from, std::uint32_t to) {
    const auto key = std::make_tuple(from, to, epoch_);
    const auto found = send_s_.find(key);
    if (found != send_s_.end()) return found->second;
    return send_s_.emplace(key, send_s(from, to)).first->second;
  }

  // What a stage ends with, relative to the start of the step.
  struct StageEnd {
    double passes_s = 0.0;     // the last backward pass
    double gradients_s = 0.0;  // they are reduced
    double stretch_s = 0.0;    // by which reduction and passes delay each other
  };

  // A stage's gradients go layer by layer as the last backward passes make them: a server that takes
  // layers in order, each for its part of the time of all. While it works, passes that communicate and it
  // share the links: what both do at the same time takes both twice as long.
  StageEnd stage_end(const Pipeline& pipeline, std::uint32_t stage) {
    StageEnd end;
    const auto& slots = pipeline.times.slots;
    const std::size_t last = pipeline.times.first[stage + 1];
    end.passes_s = slots[last - 1].finish_s;
    if (!trains()) return end;
    const auto reduction_s = [&](double start_s) {
      return duration_s(start_s, [&] { return synced(true).stage_s[stage]; });
    };
    if (!setup_.step.overlap.gradient_reduction) {
      end.gradients_s = end.passes_s + reduction_s(end.passes_s);
      return end;
    }
    std::vector<double> ready;
    double communication_s = 0.0;
    double passes_s = 0.0;
    for (std::size_t i = pipeline.times.first[stage]; i < last; ++i) {
      const auto& pass = slots[i].slot.backward;
      if (!pass || pass->micro_batch + 1 != shape_.num_micro_batches) continue;
      const std::size_t num = layers_[pass->chunk * parallel_.pp + stage].size();
      const double span_s = slots[i].finish_s - slots[i].start_s;
      for (std::size_t layer = 1; layer <= num; ++layer) {
        ready.push_back(slots[i].start_s +
                        span_s * static_cast<double>(layer) / static_cast<double>(num));
      }
      passes_s += span_s;
      communication_s +=
          slot_from(pipeline.cells[stage], stage, slots[i].slot, slots[i].start_s).communication_s;
    }
    const double sync_s = ready.empty() ? 0.0 : reduction_s(ready.front());
    double free_s = 0.0;
    double beside_s = 0.0;  // that it works before the passes end
    for (const double ready_s : ready) {
      const double begin_s = std::max(free_s, ready_s);
      free_s = begin_s + sync_s / static_cast<double>(ready.size());
      beside_s += std::max(0.0, std::min(free_s, end.passes_s) - begin_s);
    }
    if (passes_s > 0.0) end.stretch_s = beside_s * communication_s / passes_s;
    end.passes_s += end.stretch_s;
    end.gradients_s = std::max(end.passes_s, free_s + end.stretch_s);
    return end;
  }

  // By how much the first forward pass comes later because parameters are gathered under it.
  double parameters_delay_s(const Pipeline& pipeline) {
    if (parameters_.stage_s.empty() || !setup_.step.overlap.gradient_reduction) return 0.0;
    double delay_s = 0.0;
    for (std::uint32_t stage = 0; stage < parallel_.pp; ++stage) {
      const SlotTime& first = pipeline.times.slots[pipeline.times.first[stage]];
      const auto num = static_cast<double>(layers_[stage].size());
      if (num == 0.0) continue;
      // All chunks' layers are gathered one by one, those of the first chunk first.
      double all = 0.0;
      for (std::uint32_t c = 0; c < parallel_.vp; ++c) {
        all += static_cast<double>(layers_[c * parallel_.pp + stage].size());
      }
      const double part_s = parameters_.stage_s[stage] / all;
      const double layer_s = (first.finish_s - first.start_s) / num;
      // The last of its layers is there after num parts, the first after one.
      const double late_s = std::max(part_s, num * part_s - (num - 1.0) * layer_s);
      delay_s = std::max(delay_s, late_s - first.start_s);
    }
    return std::max(0.0, delay_s);
  }

  StepTimes schedule() {
    // Equal pipelines, cell for cell, take equal times.
    std::map<std::vector<std::pair<std::uint32_t, double>>, Pipeline> pipelines;
    for (std::uint32_t idx = 0; idx < cells_per_stage_; ++idx) {
      std::vector<std::pair<std::uint32_t, double>> key;
      for (std::uint32_t stage = 0; stage < parallel_.pp; ++stage) {
        const std::uint32_t cell = cell_of(stage, idx);
        key.emplace_back(kind_of_[cell], slowness_[cell]);
      }
      if (!pipelines.contains(key)) pipelines.emplace(std::move(key), run_pipeline(idx));
    }
    // Gradients of a stage wait for the slowest pipeline.
    StepTimes out;
    double end_s = -1.0;
    const Pipeline* critical = nullptr;
    std::uint32_t critical_stage = 0;
    StageEnd critical_end;
    for (std::uint32_t stage = 0; stage < parallel_.pp; ++stage) {
      StageEnd latest;
      const Pipeline* of_latest = nullptr;
      for (const auto& [key, pipeline] : pipelines) {
        const StageEnd end = stage_end(pipeline, stage);
        const double here_s = std::max(end.passes_s, end.gradients_s);
        if (of_latest == nullptr || here_s > std::max(latest.passes_s, latest.gradients_s)) {
          latest = end;
          of_latest = &pipeline;
        }
      }
      double finish_s = std::max(latest.passes_s, latest.gradients_s);
      if (trains()) {
        finish_s += setup_.optimizer_s * slowest_;
        if (!setup_.step.overlap.gradient_reduction && !parameters_.stage_s.empty()) {
          finish_s += duration_s(finish_s, [&] { return synced(false).stage_s[stage]; });
        }
      }
      if (finish_s > end_s) {
        end_s = finish_s;
        critical = of_latest;
        critical_stage = stage;
        critical_end = latest;
      }
    }
    report(out, *critical, critical_stage, critical_end, end_s);
    return out;
  }

  [[nodiscard]] BlockTimes stage_sum(const Pipeline& pipeline, std::uint32_t stage) {
    BlockTimes sum;
    const auto& times = pipeline.times;
    for (std::size_t i = times.first[stage]; i < times.first[stage + 1]; ++i) {
      sum += slot_from(pipeline.cells[stage], stage, times.slots[i].slot, times.slots[i].start_s);
    }
    return sum;
  }

  // The parts are those of the stage with most to do, which the others wait for; behind its passes
  // it waits for `stage`, which ends last.
  void report(StepTimes& out, const Pipeline& pipeline, std::uint32_t stage, const StageEnd& end,
              double end_s) {
    const double delay_s = parameters_delay_s(pipeline);
    BlockTimes sum;
    const auto& times = pipeline.times;
    for (std::uint32_t s = 0; s < parallel_.pp; ++s) {
      if (const BlockTimes here = stage_sum(pipeline, s); here.time_s > sum.time_s) sum = here;
    }
    out.time_s = end_s + delay_s;
    out.parts = sum.parts;
    const auto add = [&](StepPart part, double seconds) {
      out.parts[static_cast<std::size_t>(part)] += seconds;
    };
    const double passes_s = end.passes_s - end.stretch_s;
    out.bubble_s = passes_s - sum.time_s;
    add(StepPart::kBubble, out.bubble_s);
    out.compute_s = sum.compute_s;
    out.communication_s = sum.communication_s;
    out.exposed_s = sum.exposed_s;
    double scale_up_bytes = sum.scale_up_bytes;
    double network_bytes = sum.network_bytes;
    if (trains()) {
      const double gradients_s = end.gradients_s - passes_s;
      add(StepPart::kGradients, gradients_s);
      const double optimizer_s = setup_.optimizer_s * slowest_;
      add(StepPart::kOptimizer, optimizer_s);
      const double rest_s = out.time_s - end.gradients_s - optimizer_s;
      add(StepPart::kParameters, rest_s);
      out.compute_s += optimizer_s;
      out.communication_s += gradients_.stage_s[stage];
      if (!parameters_.stage_s.empty()) out.communication_s += parameters_.stage_s[stage];
      out.exposed_s += gradients_s + rest_s;
      scale_up_bytes += gradients_.scale_up_bytes + parameters_.scale_up_bytes;
      network_bytes += gradients_.network_bytes + parameters_.network_bytes;
      path_.push_back({"gradients", gradients_s, 1});
      path_.push_back({"optimizer", optimizer_s, 1});
      path_.push_back({"parameters", rest_s, 1});
    }
    out.scale_up_busy_s = scale_up_s(setup_.cluster, scale_up_bytes);
    out.network_busy_s = network_s(setup_.cluster, network_bytes);
    follow(times, times.first[stage + 1] - 1);
    out.critical_path = critical_path();
    if (options_.timeline) out.timeline = timeline(times, delay_s);
    out.longest_stall_s = longest_stall_s_;
    out.num_blocks = num_blocks_;
    out.num_operations = num_operations_;
  }

  static std::string slot_name(const PipelineSlot& slot) {
    if (slot.forward && slot.backward) return "forward and backward";
    return slot.forward ? "forward" : "backward";
  }

  // Back from a slot along what each waited for.
  void follow(const PipelineTimes& times, std::size_t at) {
    for (;;) {
      const SlotTime& slot = times.slots[at];
      path_.push_back({fmt::format("stage {} {}", slot.stage, slot_name(slot.slot)),
                       slot.finish_s - slot.start_s, 1});
      if (!slot.waited_for) return;
      const SlotTime& before = times.slots[*slot.waited_for];
      if (before.stage != slot.stage) {
        path_.push_back({fmt::format("send from stage {} to {}", before.stage, slot.stage),
                         slot.start_s - before.finish_s, 1});
      }
      at = *slot.waited_for;
    }
  }

  std::vector<CriticalSegment> critical_path() const {
    std::map<std::string, CriticalSegment> sums;
    for (const CriticalSegment& segment : path_) {
      CriticalSegment& sum = sums[segment.name];
      sum.name = segment.name;
      sum.seconds += segment.seconds;
      sum.count += segment.count;
    }
    std::vector<CriticalSegment> out;
    for (auto& [name, sum] : sums) {
      if (sum.seconds > 0.0) out.push_back(std::move(sum));
    }
    std::stable_sort(out.begin(), out.end(),
                     [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
    return out;
  }

  [[nodiscard]] Timeline timeline(const PipelineTimes& times, double shift_s) const {
    Timeline out;
    for (const SlotTime& slot : times.slots) {
      std::string name;
      if (const auto& pass = slot.slot.forward) {
        name = fmt::format("forward {}", pass->micro_batch);
        if (parallel_.vp > 1) name += fmt::format(" chunk {}", pass->chunk);
      }
      if (const auto& pass = slot.slot.backward) {
        name += fmt::format("{}backward {}", name.empty() ? "" : " + ", pass->micro_batch);
        if (parallel_.vp > 1) name += fmt::format(" chunk {}", pass->chunk);
      }
      out.spans.push_back({"stages", fmt::format("stage {}", slot.stage), name,
                           slot.start_s + shift_s, slot.finish_s + shift_s});
    }
    return out;
  }

  // Serving without pipeline ----------------------------------------------------------------------

  // All lanes through the layers [0, num_layers) of the chunk.
  BlockTimes chain(std::uint32_t cell, bool slow, std::size_t num_layers) {
    return block(cell, slow, [&](StepBuilder& builder, std::uint32_t first) {
      for (std::uint32_t lane = 0; lane < setup_.step.overlap.micro_batches; ++lane) {
        StepBuilder::Events at = builder.add_kernels(first, setup_.costs.embedding_s(false),
                                                     StepPart::kEmbedding, builder.start());
        for (std::size_t i = 0; i < num_layers; ++i) {
          at = builder.add_layer(first, layers_[0][i], lane, false, std::move(at));
        }
        (void)builder.add_kernels(first, setup_.costs.head_s(false), StepPart::kEmbedding, at);
      }
    });
  }

  // Long chains: what the layers beyond the simulated ones take is what those of the second half of
  // the simulated ones with experts took each.
  const BlockTimes& serve_cell(std::uint32_t cell, bool slow) {
    const auto key =
        std::make_tuple(classes().class_of[cell], classes().position_of[cell], slow, epoch_);
    const auto found = served_.find(key);
    if (found != served_.end()) return found->second;
    return served_.emplace(key, simulate_serving(cell, slow)).first->second;
  }
  BlockTimes simulate_serving(std::uint32_t cell, bool slow) {
    const std::size_t all = layers_[0].size();
    const std::uint64_t cells = classes().classes[classes().class_of[cell]].first_gpus.size();
    // Hierarchical plans have many rounds of messages; all go there and back.
    std::uint64_t messages = 0;
    for (const LayerPlan& plan : setup_.plans) {
      std::uint64_t of_plan = 0;
      for (const Stage& stage : plan.stages) of_plan += stage.num_transfers();
      messages = std::max(messages, of_plan);
    }
    const std::uint64_t ep = parallel_.ep;
    const std::uint64_t layer_ops =
        cells * (cell_ / ep) * (2 * messages + 20 * ep) * setup_.step.overlap.micro_batches;
    const std::size_t dense = setup_.model.num_dense_layers();
    const std::size_t most = std::max<std::size_t>(
        std::min(all, dense + 3), static_cast<std::size_t>(kWholeChainOps / layer_ops));
    if (most >= all) return chain(cell, slow, all);
    const std::size_t half = most - std::max<std::size_t>(1, (most - dense) / 2);
    const BlockTimes whole = chain(cell, slow, most);
    const BlockTimes start = chain(cell, slow, half);
    const double further = static_cast<double>(all - most) / static_cast<double>(most - half);
    return whole * (1.0 + further) + start * -further;
  }

  StepTimes serve() {
    BlockTimes slowest;
    std::map<std::pair<std::uint32_t, double>, BlockTimes> known;
    for (std::uint32_t cell = 0; cell < cells_per_stage_; ++cell) {
      const std::pair key{kind_of_[cell], slowness_[cell]};
      if (known.contains(key)) continue;
      const BlockTimes times = through(0.0, [&] {
        if (slowness_[cell] <= 1.0) return serve_cell(cell, false);
        const double share = (slowness_[cell] - 1.0) / (slowest_ - 1.0);
        return serve_cell(cell, false) * (1.0 - share) + serve_cell(cell, true) * share;
      });
      if (times.time_s > slowest.time_s) slowest = times;
      known.emplace(key, times);
    }
    StepTimes out = times_of(slowest, setup_.cluster);
    for (std::size_t i = 0; i < kNumStepParts; ++i) {
      if (out.parts[i] <= 0.0) continue;
      path_.push_back({std::string(to_string(static_cast<StepPart>(i))), out.parts[i], 1});
    }
    out.critical_path = critical_path();
    out.longest_stall_s = longest_stall_s_;
    out.num_blocks = num_blocks_;
    out.num_operations = num_operations_;
    return out;
  }

  const StepSetup& setup_;
  const Network& network_;
  const StepOptions& options_;
  const ParallelSizes& parallel_;
  PipelineShape shape_;
  std::uint32_t cell_, stage_size_, cells_per_stage_, num_parts_;
  std::vector<Epoch> epochs_;
  std::size_t epoch_ = 0;                                    // in which blocks are simulated
  std::vector<std::shared_ptr<const CellClasses>> classes_;  // [num_epochs]
  std::vector<const CellClasses*> distinct_classes_;
  std::vector<std::uint32_t> kind_of_;  // [num_cells] equal: alike in every epoch
  double longest_stall_s_ = 0.0;
  // [num_cells] how many times as long the GPU that is done last computes as one of full speed would
  // that has most to do; at least 1.
  std::vector<double> slowness_;
  double slowest_ = 1.0;
  std::uint32_t slowest_cell_ = 0;
  std::vector<std::vector<std::uint32_t>> layers_;  // [num_parts]
  using BlockKey = std::tuple<std::uint32_t, std::uint32_t, bool, int, int, std::size_t>;
  std::map<BlockKey, BlockTimes> blocks_;
  using SlotKey =
      std::tuple<std::uint32_t, std::uint32_t, double, std::uint32_t, std::uint32_t, std::size_t>;
  std::map<SlotKey, BlockTimes> slots_;
  std::map<std::tuple<std::uint32_t, std::uint32_t, bool, std::size_t>, BlockTimes> served_;
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::size_t>, double> send_s_;
  std::map<std::pair<bool, std::size_t>, SyncTimes> synced_;
  SyncTimes gradients_, parameters_;  // with the links as at the start
  std::vector<CriticalSegment> path_;
  std::uint64_t num_blocks_ = 0;
  std::uint64_t num_operations_ = 0;
};

}  // namespace

StepTimes compose_step(const StepSetup& setup, const Network& network, const StepOptions& options) {
  expect_times(options.engine);
  return Composition(setup, network, options).run();
}

}  // namespace coterie
