// The layers of a run on a GPU. Everything of an iteration is enqueued on one stream behind a
// closed gate, with an event after every phase; once all ranks have enqueued theirs the gates open,
// and nothing waits for the host between the first event and the last. (The verification runs
// without a gate: NCCL makes its connections there.)
//
//   notify    grouped exchange of the counts with every rank: also the barrier of the layer
//   pack      index of the first hop, token rows into the send blocks
//   dispatch  grouped send/recv of the blocks; the rank's own block stays where it was packed
//   forward   hierarchical: index, rows and exchange of the second hop
//   expand    index of the receiver, rows to expert order
//   mlp       the routed experts, then the shared ones on the rank's own tokens
//   merge
//   gather    hierarchical: results of the second hop back, summed per received row
//   combine   results of the first hop back
//   sum       one row per token, with the shared experts'

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>

#include "core/error.hpp"
#include "kernels/cuda.hpp"
#include "kernels/index.hpp"
#include "kernels/rows.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/gate.hpp"
#include "runtime/device/nvml.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/executor/shared_experts.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::TransferBlock;

// A buffer that several layers use in turn: grows to the largest request.
template <class T>
class SharedBuffer {
 public:
  void need(std::size_t size) { size_ = std::max(size_, size); }
  // Allocates what was asked for since the last call, if that is more than there is.
  void allocate() {
    if (size_ > buffer_.size()) {
      buffer_ = DeviceBuffer<T>();
      buffer_ = DeviceBuffer<T>(size_);
    }
  }
  [[nodiscard]] T* data() const { return buffer_.data(); }

 private:
  std::size_t size_ = 0;
  DeviceBuffer<T> buffer_;
};

// Buffers of one hop; the layers of a run share them.
struct HopBuffers {
  SharedBuffer<std::byte> send, recv;
  SharedBuffer<Bf16> results;   // by received row
  SharedBuffer<Bf16> returned;  // by sent row
};

// Tables of one hop of one layer.
struct HopTables {
  DeviceBuffer<std::uint16_t> slot_dest;
  DeviceBuffer<TransferBlock> send_blocks;  // written by the index kernels
  DeviceBuffer<TransferBlock> recv_blocks;
  std::vector<TransferBlock> host_send, host_recv;
  DeviceBuffer<std::uint32_t> item_rows, row_item, row_mask;

  [[nodiscard]] kernels::SendIndex index() const {
    return {send_blocks.data(), item_rows.data(), row_item.data(), row_mask.data()};
  }
};

struct LayerTables {
  DeviceBuffer<std::uint16_t> token_slots, slot_local;
  DeviceBuffer<float> token_weights;
  std::vector<HopTables> hops;
  DeviceBuffer<std::uint32_t> copy_slot, expert_begin;
  DeviceBuffer<std::uint32_t> counts_out, counts_in;  // [num_ranks][2] rows and copies
  DeviceBuffer<Bf16> output;
  std::optional<kernels::ExpertMlp> mlp;
  SharedExperts shared;
  std::vector<Phase> phases;
  std::vector<kernels::Event> events;  // phases.size() + 1
};

class GpuExecutor final : public Executor {
 public:
  GpuExecutor(ControlGroup& group, const RankEnvironment& environment)
      : group_(group), environment_(environment), share_(share_gpus(environment)) {
    group_.set_stage("selection of the GPU");
    use_gpu(share_, environment);
    stream_.emplace();
    communicator_.emplace(group);
  }

  void load(RunLayers layers) override {
    group_.set_stage("set-up of the layers");
    // The weights of the previous run make room first.
    tables_.clear();
    layers_ = std::move(layers);
    const LayerShape& shape = layers_.shape;
    for (const RankLayout& layout : layers_.layouts) need_buffers(layout);
    for (HopBuffers& buffers : hop_buffers_) {
      buffers.send.allocate();
      buffers.recv.allocate();
      buffers.results.allocate();
      buffers.returned.allocate();
    }
    expert_in_.allocate();
    expert_out_.allocate();
    workspace_.allocate();
    const std::uint32_t num_tokens = layers_.layouts.front().num_tokens;
    if (tokens_.size() != std::size_t{num_tokens} * shape.mlp.hidden) {
      tokens_ = DeviceBuffer<Bf16>(std::span<const Bf16>(
          make_tokens(shape.seed, environment_.rank, num_tokens, shape.mlp.hidden)));
    }
    for (std::size_t i = 0; i < layers_.layouts.size(); ++i) {
      tables_.push_back(make_tables(*layers_.plans[i], layers_.layouts[i]));
    }
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  std::vector<LayerTimes> iterate(Iteration kind, std::uint32_t number) override {
    const std::string name = kind == Iteration::kVerification ? "the verification"
                             : kind == Iteration::kWarmUp     ? fmt::format("warm-up {}", number)
                                                              : fmt::format("iteration {}", number);
    group_.watch_stage(fmt::format("start of {}", name));
    if (kind == Iteration::kWarmUp) fault_point(environment_.rank, "warm-up");
    if (kind != Iteration::kVerification) gate_.close(stream());
    // An exchange that nobody times lines the ranks up before the first event.
    exchange_counts(tables_.front());
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      enqueue_layer(i, kind == Iteration::kVerification);
    }
    if (kind != Iteration::kVerification) {
      group_.barrier(fmt::format("the opening of {}", name));
      gate_.open();
    }
    if (kind == Iteration::kTimed) fault_point(environment_.rank, "in-flight");
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      for (std::size_t p = 0; p < tables_[i].phases.size(); ++p) {
        group_.watch_stage(fmt::format("{} of layer {} in {}", to_string(tables_[i].phases[p]),
                                       layers_.plans[i]->layer, name));
        communicator_->wait_for(tables_[i].events[p + 1]);
      }
    }
    std::vector<LayerTimes> times;
    for (const LayerTables& layer : tables_) {
      LayerTimes entry;
      for (std::size_t p = 0; p < layer.phases.size(); ++p) {
        entry.phases.push_back({layer.phases[p],
                                kernels::seconds_between(layer.events[0], layer.events[p]),
                                kernels::seconds_between(layer.events[0], layer.events[p + 1])});
      }
      times.push_back(std::move(entry));
    }
    return times;
  }

  std::vector<float> output(std::size_t layer_idx) override {
    const std::vector<Bf16> values = tables_[layer_idx].output.download();
    std::vector<float> out(values.size());
    std::transform(values.begin(), values.end(), out.begin(),
                   [](Bf16 value) { return __bfloat162float(value); });
    return out;
  }

  std::optional<std::string> compare_with_plan(std::size_t layer_idx) override {
    const LayerTables& layer = tables_[layer_idx];
    const RankLayout& layout = layers_.layouts[layer_idx];
    const LayerPlan& plan = *layers_.plans[layer_idx];
    const std::vector<std::uint32_t> counts = layer.counts_in.download();
    const Hop& hop = layout.hops[0];
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      const std::uint32_t from = hop.recv_ranks[s];
      if (from == layout.rank) continue;
      if (counts[2 * from] != hop.recv[s].num_rows ||
          counts[2 * from + 1] != hop.recv[s].num_copies) {
        return fmt::format(
            "layer {}: rank {} announced {} rows and {} copies, the plan says {} "
            "and {}",
            plan.layer, from, counts[2 * from], counts[2 * from + 1], hop.recv[s].num_rows,
            hop.recv[s].num_copies);
      }
    }
    if (layer.expert_begin.download() != layout.expert_begin) {
      return fmt::format("layer {}: the rows per expert on the device differ from the plan's",
                         plan.layer);
    }
    return coterie::compare_with_plan(plan, layout, layer.hops[0].row_item.download(),
                                      layer.hops[0].row_mask.download());
  }

  void finish() override { communicator_->finish(); }

  [[nodiscard]] std::map<std::string, nlohmann::json> facts() const override {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, share_.device), "cudaGetDeviceProperties");
    int driver = 0;
    int toolkit = 0;
    check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check_cuda(cudaRuntimeGetVersion(&toolkit), "cudaRuntimeGetVersion");
    const auto version = [](int number) {
      return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
    };
    return {{"device", std::string(properties.name)},
            {"num_gpus", share_.num_gpus},
            {"ranks_per_gpu", share_.ranks_per_gpu},
            {"mps", std::getenv("COTERIE_MPS") != nullptr},
            {"driver", driver_version()},
            {"cuda_driver_api", version(driver)},
            {"cuda_toolkit", version(toolkit)},
            {"nccl_version", nccl_version()},
            {"expert_mlp", implementations(false)},
            {"shared_experts", implementations(true)},
            {"launcher", environment_.source}};
  }

 private:
  [[nodiscard]] const LayerShape& shape() const { return layers_.shape; }

  // How the experts of the loaded layers are computed on this rank: the different ways, in order.
  [[nodiscard]] std::vector<std::string> implementations(bool shared) const {
    std::set<std::string> ways;
    for (const LayerTables& layer : tables_) {
      ways.insert(shared ? layer.shared.implementation() : layer.mlp->implementation());
    }
    return {ways.begin(), ways.end()};
  }

  void need_buffers(const RankLayout& layout) {
    const std::size_t hidden = shape().mlp.hidden;
    std::size_t workspace = 0;
    for (std::size_t h = 0; h < layout.hops.size(); ++h) {
      const Hop& hop = layout.hops[h];
      hop_buffers_[h].send.need(
          kernels::blocks_bytes(hop.send, shape().dispatch, shape().mlp.hidden));
      hop_buffers_[h].recv.need(
          kernels::blocks_bytes(hop.recv, shape().dispatch, shape().mlp.hidden));
      hop_buffers_[h].results.need(hop.num_recv_rows * hidden);
      hop_buffers_[h].returned.need(hop.num_send_rows * hidden);
      const auto num_dests = static_cast<std::uint32_t>(hop.send.size());
      workspace =
          std::max(workspace, kernels::index_workspace_bytes(hop.num_send_copies, num_dests));
    }
    const std::uint32_t copies = layout.hops.back().num_recv_copies;
    workspace =
        std::max(workspace, kernels::index_workspace_bytes(
                                copies, static_cast<std::uint32_t>(layout.local_experts.size())));
    workspace_.need(workspace);
    expert_in_.need(copies * hidden);
    expert_out_.need(copies * hidden);
  }

  template <class T>
  static DeviceBuffer<T> upload(const std::vector<T>& values) {
    return DeviceBuffer<T>(std::span<const T>(values));
  }

  HopTables make_hop_tables(const Hop& hop, const HopBuffers& buffers,
                            std::size_t num_items_copies) {
    HopTables tables;
    tables.slot_dest = upload(hop.slot_dest);
    tables.host_send =
        kernels::layout_blocks(hop.send, shape().dispatch, shape().mlp.hidden, buffers.send.data());
    tables.host_recv =
        kernels::layout_blocks(hop.recv, shape().dispatch, shape().mlp.hidden, buffers.recv.data());
    // Send position 0 is the rank itself: its rows are read where they were packed.
    tables.host_recv[hop.recv_self].data = tables.host_send[0].data;
    tables.recv_blocks = upload(tables.host_recv);
    tables.send_blocks = DeviceBuffer<TransferBlock>(hop.send.size());
    tables.item_rows = DeviceBuffer<std::uint32_t>(num_items_copies);
    tables.row_item = DeviceBuffer<std::uint32_t>(hop.num_send_rows);
    tables.row_mask = DeviceBuffer<std::uint32_t>(hop.num_send_rows);
    return tables;
  }

  LayerTables make_tables(const LayerPlan& plan, const RankLayout& layout) {
    LayerTables tables;
    tables.token_slots = upload(layout.token_slots);
    tables.token_weights = upload(layout.token_weights);
    tables.slot_local = upload(layout.slot_local);
    // The items of the second hop are the rows that the first one brought.
    std::size_t num_item_copies = layout.token_slots.size();
    for (std::size_t h = 0; h < layout.hops.size(); ++h) {
      tables.hops.push_back(make_hop_tables(layout.hops[h], hop_buffers_[h], num_item_copies));
      num_item_copies = layout.hops[h].num_recv_copies;
    }
    tables.copy_slot = DeviceBuffer<std::uint32_t>(num_item_copies);
    tables.expert_begin = DeviceBuffer<std::uint32_t>(layout.expert_begin.size());

    std::vector<std::uint32_t> counts(2 * std::size_t{plan.num_ranks}, 0);
    for (std::size_t p = 0; p < layout.hops[0].send.size(); ++p) {
      const std::uint32_t to = layout.hops[0].send_ranks[p];
      counts[2 * to] = layout.hops[0].send[p].num_rows;
      counts[2 * to + 1] = layout.hops[0].send[p].num_copies;
    }
    tables.counts_out = upload(counts);
    tables.counts_in = DeviceBuffer<std::uint32_t>(counts.size());
    tables.counts_in.fill_bytes(0xff);
    tables.output = DeviceBuffer<Bf16>(std::size_t{layout.num_tokens} * shape().mlp.hidden);
    tables.output.fill_bytes(0xff);

    tables.mlp.emplace(shape().mlp, shape().seed, plan.layer, layout.local_experts,
                       std::max(layout.hops.back().num_recv_copies, 1U));
    tables.mlp->prepare(layout.expert_begin, expert_in_.data(), expert_out_.data());
    tables.shared = SharedExperts(shape(), plan.layer, tokens_.data(), layout.num_tokens);

    tables.phases = {Phase::kNotify, Phase::kPack, Phase::kDispatch};
    if (layout.hops.size() > 1) tables.phases.push_back(Phase::kForward);
    tables.phases.insert(tables.phases.end(), {Phase::kExpand, Phase::kMlp, Phase::kMerge});
    if (layout.hops.size() > 1) tables.phases.push_back(Phase::kGather);
    tables.phases.insert(tables.phases.end(), {Phase::kCombine, Phase::kSum});
    tables.events = std::vector<kernels::Event>(tables.phases.size() + 1);
    return tables;
  }

  void exchange_counts(const LayerTables& tables) {
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::uint32_t r = 0; r < environment_.num_ranks; ++r) {
      if (r == environment_.rank) continue;
      constexpr std::size_t kBytes = 2 * sizeof(std::uint32_t);
      sends.push_back(
          {r, reinterpret_cast<std::byte*>(tables.counts_out.data() + 2 * r), kBytes});  // NOLINT
      receives.push_back(
          {r, reinterpret_cast<std::byte*>(tables.counts_in.data() + 2 * r), kBytes});  // NOLINT
    }
    communicator_->exchange(sends, receives, stream());
  }

  // A stage of its own: whoever does not get to this launch is behind those that wait in it.
  void announce(const char* launch, std::uint32_t layer) {
    group_.watch_stage(fmt::format("launch of {} of layer {}", launch, layer));
  }

  // The blocks of a hop, in the direction of the dispatch.
  void exchange_blocks(const Hop& hop, const HopTables& tables) {
    std::vector<Message> sends;
    std::vector<Message> receives;
    const auto bytes = [this](const TransferBlock& block) {
      return block.num_rows == 0 ? 0
                                 : kernels::block_bytes(shape().dispatch, shape().mlp.hidden,
                                                        block.num_rows, block.num_copies);
    };
    for (std::size_t p = 1; p < hop.send.size(); ++p) {
      sends.push_back({hop.send_ranks[p], tables.host_send[p].data, bytes(tables.host_send[p])});
    }
    for (std::size_t s = 0; s < hop.recv.size(); ++s) {
      if (s == hop.recv_self) continue;
      receives.push_back({hop.recv_ranks[s], tables.host_recv[s].data, bytes(tables.host_recv[s])});
    }
    communicator_->exchange(sends, receives, stream());
  }

  // The results of a hop, in the direction of the combine: what was received is answered.
  void exchange_results(const Hop& hop, const HopTables& tables, const HopBuffers& buffers) {
    const std::size_t hidden = shape().mlp.hidden;
    const auto message = [hidden](std::uint32_t peer, Bf16* base, const TransferBlock& block) {
      return Message{peer, reinterpret_cast<std::byte*>(base + block.row_begin * hidden),  // NOLINT
                     block.num_rows * hidden * sizeof(Bf16)};
    };
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::size_t s = 0; s < hop.recv.size(); ++s) {
      if (s == hop.recv_self) continue;
      sends.push_back(message(hop.recv_ranks[s], buffers.results.data(), tables.host_recv[s]));
    }
    for (std::size_t p = 1; p < hop.send.size(); ++p) {
      receives.push_back(message(hop.send_ranks[p], buffers.returned.data(), tables.host_send[p]));
    }
    communicator_->exchange(sends, receives, stream());
    const TransferBlock& own = tables.host_recv[hop.recv_self];
    if (own.num_rows > 0) {
      check_cuda(
          cudaMemcpyAsync(buffers.returned.data() + tables.host_send[0].row_begin * hidden,
                          buffers.results.data() + own.row_begin * hidden,
                          own.num_rows * hidden * sizeof(Bf16), cudaMemcpyDeviceToDevice, stream()),
          "cudaMemcpyAsync of the own results");
    }
  }

  [[nodiscard]] kernels::ReceivedRows received(const Hop& hop, const HopTables& tables) const {
    return {tables.recv_blocks.data(), static_cast<std::uint32_t>(hop.recv.size()),
            hop.num_recv_rows,         hop.num_recv_copies,
            shape().dispatch,          shape().mlp.hidden};
  }

  // `may_fail`: pass the fault points, where the other ranks wait for this one inside NCCL.
  void enqueue_layer(std::size_t layer_idx, bool may_fail) {
    const RankLayout& layout = layers_.layouts[layer_idx];
    LayerTables& tables = tables_[layer_idx];
    const std::uint32_t layer = layers_.plans[layer_idx]->layer;
    std::size_t next_event = 0;
    const auto mark = [&] { tables.events[next_event++].record(stream()); };
    const std::uint32_t hidden = shape().mlp.hidden;
    const std::uint32_t num_slots = layout.num_slots();
    const Hop& first = layout.hops.front();
    const Hop& last = layout.hops.back();
    const HopTables& first_tables = tables.hops.front();
    const HopTables& last_tables = tables.hops.back();
    const bool two_hops = layout.hops.size() > 1;
    HopBuffers& last_buffers = hop_buffers_[layout.hops.size() - 1];

    mark();
    exchange_counts(tables);
    mark();

    const kernels::TokenRouting routing{tables.token_slots.data(), tables.token_weights.data(),
                                        layout.num_tokens, layout.num_topk};
    const auto num_dests = static_cast<std::uint32_t>(first.send.size());
    kernels::build_send_index(routing,
                              {first_tables.slot_dest.data(), num_slots, num_dests,
                               first.first_dest, layout.policy == DispatchPolicy::kStandard},
                              shape().dispatch, hidden, hop_buffers_[0].send.data(),
                              first_tables.index(), workspace_.data(), stream());
    kernels::pack(tokens_.data(), layout.num_tokens, layout.num_topk, hidden, shape().dispatch,
                  first_tables.index(), num_dests, stream());
    mark();

    if (may_fail) fault_point(environment_.rank, "dispatch");
    announce("dispatch", layer);
    exchange_blocks(first, first_tables);
    mark();

    if (two_hops) {
      const auto num_forward = static_cast<std::uint32_t>(last.send.size());
      const kernels::ReceivedRows arrived = received(first, first_tables);
      kernels::build_forward_index(
          arrived, {last_tables.slot_dest.data(), num_slots, num_forward, last.first_dest, false},
          last_buffers.send.data(), last_tables.index(), workspace_.data(), stream());
      kernels::forward(arrived, last_tables.index(), num_forward, stream());
      announce("forward", layer);
      exchange_blocks(last, last_tables);
      mark();
    }

    const kernels::ReceivedRows rows = received(last, last_tables);
    kernels::build_receive_index(rows, tables.slot_local.data(),
                                 static_cast<std::uint32_t>(layout.local_experts.size()),
                                 {tables.copy_slot.data(), nullptr, tables.expert_begin.data()},
                                 workspace_.data(), stream());
    kernels::expand(rows, tables.copy_slot.data(), expert_in_.data(), stream());
    mark();
    tables.mlp->run(stream());
    tables.shared.run(stream());
    mark();
    kernels::merge(rows, tables.copy_slot.data(), expert_out_.data(), last_buffers.results.data(),
                   stream());
    mark();

    if (two_hops) {
      announce("gather", layer);
      exchange_results(last, last_tables, last_buffers);
      kernels::combine_received(received(first, first_tables), last_buffers.returned.data(),
                                last_tables.item_rows.data(), hop_buffers_[0].results.data(),
                                stream());
      mark();
    }
    if (may_fail) fault_point(environment_.rank, "combine");
    announce("combine", layer);
    exchange_results(first, first_tables, hop_buffers_[0]);
    mark();
    kernels::combine(hop_buffers_[0].returned.data(), layout.num_tokens, layout.num_topk, hidden,
                     first_tables.item_rows.data(), tables.output.data(), stream(),
                     tables.shared.outputs());
    mark();
  }

  [[nodiscard]] cudaStream_t stream() const { return stream_->get(); }

  ControlGroup& group_;
  const RankEnvironment environment_;
  const GpuShare share_;
  std::optional<kernels::Stream> stream_;
  RunLayers layers_;
  HopBuffers hop_buffers_[2];
  SharedBuffer<Bf16> expert_in_, expert_out_;
  SharedBuffer<std::byte> workspace_;
  DeviceBuffer<Bf16> tokens_;
  std::vector<LayerTables> tables_;
  // The last members go first: an abort ends the device's work before its memory goes, and the gate
  // opens before the abort waits for the stream.
  std::optional<Communicator> communicator_;
  Gate gate_;
};

}  // namespace

std::unique_ptr<Executor> make_gpu_executor(ControlGroup& group,
                                            const RankEnvironment& environment) {
  return std::make_unique<GpuExecutor>(group, environment);
}

}  // namespace coterie
