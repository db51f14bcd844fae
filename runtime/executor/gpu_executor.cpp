// The layers of a run on a GPU. Everything of an iteration is enqueued behind a closed gate, with
// events around every phase; once all ranks have enqueued theirs the gates open, and nothing waits
// for the host between the first event and the last. (The verification runs without a gate: NCCL
// makes its connections there.)
//
// The exchanges are the plan's steps (workloads/plan/schedule.hpp), enqueued in that order. A plan
// of one hop runs on one stream. With two hops every hop has a stream and a communicator of its
// own, so that a round is passed on while the next one arrives:
//
//   main   notify, pack ----------------------------- expand, MLP, merge ------------------ sum
//   hop 0               dispatch 0, 1, 2, ...                            combine 0, 1, ...
//   hop 1                  forward 0, 1, ...                      gather 0, 1, ...
//
//   notify    grouped exchange of the counts with every rank: also the barrier of the layer
//   pack      index of the first hop, token rows into the send blocks
//   dispatch  grouped send/recv of a round's blocks; the rank's own block stays where it was packed
//   forward   index, rows and exchange of the second hop
//   expand    index of the receiver, rows to expert order
//   mlp       the routed experts, then the shared ones on the rank's own tokens
//   merge     results of a row's experts into one row, router-weighted
//   gather    results of the second hop back, summed per received row
//   combine   results of the first hop back
//   sum       one row per token, with the shared experts'
//
// With the transport `direct` the same steps, in the same order and on the same streams, are kernels
// over peer memory (direct_transport.hpp): pack builds the index alone, dispatch reads the tokens and
// writes their rows where they belong, and combine fetches the results and sums them, so that sum
// has nothing left to do. Where ranks are on several machines, NCCL carries the same blocks and
// results between those that are not on the same one, between the two.

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>

#include "core/error.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/gate.hpp"
#include "runtime/device/graph.hpp"
#include "runtime/device/nvml.hpp"
#include "runtime/executor/direct_transport.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/gpu_tables.hpp"
#include "runtime/executor/reference.hpp"
#include "workloads/plan/schedule.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::TransferBlock;

class GpuExecutor final : public Executor {
 public:
  GpuExecutor(ControlGroup& group, const RankEnvironment& environment)
      : group_(group), environment_(environment), share_(share_gpus(environment)) {
    group_.set_stage("selection of the GPU");
    use_gpu(share_, environment);
    main_.emplace();
  }
  // A kernel that waits for a flag may be before one of NCCL's, which an abort waits for.
  ~GpuExecutor() override {
    if (direct_) direct_->stop();
  }
  GpuExecutor(const GpuExecutor&) = delete;
  GpuExecutor& operator=(const GpuExecutor&) = delete;

  void load(RunLayers layers) override {
    group_.set_stage("set-up of the layers");
    graph_.reset();
    // The weights of the previous run make room first.
    tables_.clear();
    layers_ = std::move(layers);
    const LayerShape& shape = layers_.shape;
    for (const RankLayout& layout : layers_.layouts) buffers_.need(shape, layout);
    prepare_transport();
    buffers_.allocate();
    const std::uint32_t num_tokens = layers_.layouts.front().num_tokens;
    if (tokens_.size() != std::size_t{num_tokens} * shape.mlp.hidden) {
      tokens_ = DeviceBuffer<Bf16>(std::span<const Bf16>(
          make_tokens(shape.seed, environment_.rank, num_tokens, shape.mlp.hidden)));
    }
    bool two_hops = false;
    for (std::size_t i = 0; i < layers_.layouts.size(); ++i) {
      tables_.push_back(make_layer_tables(shape, *layers_.plans[i], layers_.layouts[i], buffers_,
                                          tokens_.data()));
      two_hops = two_hops || layers_.layouts[i].hops.size() > 1;
    }
    if (two_hops && !hop_streams_[0]) {
      for (auto& stream : hop_streams_) stream.emplace();
    }
    if (two_hops && uses_nccl() && !second_communicator_) second_communicator_.emplace(group_);
    if (is_direct()) {
      direct_->connect(shape, layers_.layouts, tables_, buffers_, *layers_.direct);
      if (layers_.direct->capture) direct_->require_one_machine("a captured graph");
    }
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  std::vector<LayerTimes> iterate(Iteration kind, std::uint32_t number) override {
    const std::string name = kind == Iteration::kVerification ? "the verification"
                             : kind == Iteration::kWarmUp     ? fmt::format("warm-up {}", number)
                                                              : fmt::format("iteration {}", number);
    group_.watch_stage(fmt::format("start of {}", name));
    if (kind == Iteration::kWarmUp) fault_point(environment_.rank, "warm-up");
    const bool replays = kind != Iteration::kVerification && is_direct() && layers_.direct->capture;
    const bool is_first_replay = replays && !graph_;
    std::vector<std::vector<float>> verified;
    if (is_first_replay) {
      verified = take_outputs();
      capture();
    }
    if (kind != Iteration::kVerification) gate_.close(main());
    if (replays) {
      graph_->launch(main());
      replayed_->record(main());
    } else {
      enqueue_iteration(kind == Iteration::kVerification);
    }
    if (kind != Iteration::kVerification) {
      group_.barrier(fmt::format("the opening of {}", name));
      gate_.open();
    }
    if (kind == Iteration::kTimed) fault_point(environment_.rank, "in-flight");
    if (replays) {
      group_.watch_stage(fmt::format("the graph of {}", name));
      wait_for(*replayed_);
    }
    if (is_first_replay) compare_outputs(verified);
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      for (const PhaseMarks& marks : tables_[i].phases) {
        group_.watch_stage(fmt::format("{} of layer {} in {}", to_string(marks.phase),
                                       layers_.plans[i]->layer, name));
        wait_for(marks.end);
      }
    }
    std::vector<LayerTimes> times;
    for (const LayerTables& layer : tables_) {
      const kernels::Event& start = layer.phases.front().begin;
      LayerTimes entry;
      for (const PhaseMarks& marks : layer.phases) {
        entry.phases.push_back({marks.phase, kernels::seconds_between(start, marks.begin),
                                kernels::seconds_between(start, marks.end)});
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
      kernels::BlockCounts planned{0, 0};
      for (const HopRound& round : hop.rounds) {
        planned.num_rows += round.recv[s].num_rows;
        planned.num_copies += round.recv[s].num_copies;
      }
      if (counts[2 * from] != planned.num_rows || counts[2 * from + 1] != planned.num_copies) {
        return fmt::format(
            "layer {}: rank {} announced {} rows and {} copies, the plan says {} and {}",
            plan.layer, from, counts[2 * from], counts[2 * from + 1], planned.num_rows,
            planned.num_copies);
      }
    }
    if (layer.expert_begin.download() != layout.expert_begin) {
      return fmt::format("layer {}: the rows per expert on the device differ from the plan's",
                         plan.layer);
    }
    // The index numbers the tokens of a round from its first.
    std::vector<std::uint32_t> row_item = layer.hops[0].row_item.download();
    for (std::size_t r = 0; r < hop.rounds.size(); ++r) {
      const HopRound& round = hop.rounds[r];
      for (std::uint32_t i = 0; i < round.num_send_rows; ++i) {
        row_item[round.send_row_begin + i] += layout.round_begin[r];
      }
    }
    return coterie::compare_with_plan(plan, layout, row_item, layer.hops[0].row_mask.download());
  }

  void finish() override {
    if (second_communicator_) second_communicator_->finish();
    if (communicator_) communicator_->finish();
  }

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
    std::map<std::string, nlohmann::json> facts{{"device", std::string(properties.name)},
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
    if (is_direct()) {
      facts["direct_sms"] = direct_->sms();
      facts["direct_beside_nccl"] = direct_->has_far_ranks();
      facts["direct_captured"] = layers_.direct->capture;
    }
    return facts;
  }

 private:
  // One layer as the functions below enqueue it.
  struct Work {
    const LayerPlan& plan;
    const RankLayout& layout;
    LayerTables& tables;
    std::vector<Step> steps;
    std::size_t layer_idx = 0;

    [[nodiscard]] bool two_hops() const { return layout.hops.size() > 1; }
    [[nodiscard]] const kernels::Event& arrived(const Step& step) const {
      const auto at = std::find(steps.begin(), steps.end(), step) - steps.begin();
      return tables.arrived[static_cast<std::size_t>(at)];
    }
  };

  // Whether the loaded layers move over peer memory.
  [[nodiscard]] bool is_direct() const { return layers_.direct.has_value(); }
  // Whether NCCL carries what goes to and comes from a rank; and whether it does so at all.
  [[nodiscard]] bool by_nccl(std::uint32_t rank) const {
    return rank != environment_.rank && (!is_direct() || direct_->is_far(rank));
  }
  [[nodiscard]] bool uses_nccl() const { return !is_direct() || direct_->has_far_ranks(); }
  // Makes what carries the rows, where the runs before did without; collective.
  void prepare_transport() {
    if (!is_direct()) {
      for (HopBuffers& hop : buffers_.hops) {
        hop.recv.place(nullptr);
        hop.results.place(nullptr);
      }
      if (!communicator_) communicator_.emplace(group_);
      return;
    }
    if (!direct_) direct_.emplace(group_, environment_, share_);
    if (uses_nccl() && !communicator_) communicator_.emplace(group_);
    direct_->place_buffers(layers_.shape, layers_.layouts, buffers_);
  }
  void wait_for(const kernels::Event& event) {
    if (!is_direct()) return communicator_->wait_for(event);
    direct_->wait_for(event, [this] {
      if (!uses_nccl()) return;
      communicator_->check("an exchange");
      if (second_communicator_) second_communicator_->check("an exchange");
    });
  }

  [[nodiscard]] const LayerShape& shape() const { return layers_.shape; }
  [[nodiscard]] cudaStream_t main() const { return main_->get(); }
  // Where the exchanges of a hop are enqueued, and over what.
  [[nodiscard]] cudaStream_t stream_of(const Work& work, std::size_t hop) const {
    return work.two_hops() ? hop_streams_[hop]->get() : main();
  }
  Communicator& communicator_of(std::size_t hop) {
    return hop == 0 ? *communicator_ : *second_communicator_;
  }
  static void wait(cudaStream_t stream, const kernels::Event& event) {
    check_cuda(cudaStreamWaitEvent(stream, event.get()), "cudaStreamWaitEvent");
  }

  // How the experts of the loaded layers are computed on this rank: the different ways, in order.
  [[nodiscard]] std::vector<std::string> implementations(bool shared) const {
    std::set<std::string> ways;
    for (const LayerTables& layer : tables_) {
      ways.insert(shared ? layer.shared.implementation() : layer.mlp->implementation());
    }
    return {ways.begin(), ways.end()};
  }

  // A stage of its own: whoever does not get to this launch is behind those that wait in it.
  void announce(Phase phase, std::uint32_t layer) {
    group_.watch_stage(fmt::format("launch of {} of layer {}", to_string(phase), layer));
  }

  // Iterations -----------------------------------------------------------------------------------

  // `may_fail`: pass the fault points, where the other ranks wait for this one inside NCCL.
  void enqueue_iteration(bool may_fail) {
    // An exchange that nobody times lines the ranks up before the first event.
    exchange_counts(tables_.front());
    for (std::size_t i = 0; i < tables_.size(); ++i) enqueue_layer(i, may_fail);
  }
  // The same as a graph. The epochs of the flags are counted in device memory, so that its launches
  // are steps like any others.
  void capture() {
    if (!replayed_) replayed_.emplace();
    captures_ = true;
    graph_.emplace(main(), [this] { enqueue_iteration(false); });
    captures_ = false;
  }
  // The outputs of all layers, which are poisoned then.
  std::vector<std::vector<float>> take_outputs() {
    std::vector<std::vector<float>> outputs;
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      outputs.push_back(output(i));
      tables_[i].output.fill_bytes(0xff);
    }
    return outputs;
  }
  // The kernels of a graph are those that were verified one by one: so are their outputs, to the bit.
  void compare_outputs(const std::vector<std::vector<float>>& verified) {
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      const std::vector<float> replayed = output(i);
      const auto differs =
          std::mismatch(replayed.begin(), replayed.end(), verified[i].begin()).first;
      if (differs == replayed.end()) continue;
      throw DeviceError(
          fmt::format("layer {}: value {} of the replayed graph's output is {}, that of "
                      "the same kernels launched one by one {}",
                      layers_.plans[i]->layer, differs - replayed.begin(), *differs,
                      verified[i][static_cast<std::size_t>(differs - replayed.begin())]));
    }
  }

  // The begin or end of a phase, for its time.
  void record(const kernels::Event& event, cudaStream_t stream) const {
    if (captures_) {
      check_cuda(cudaEventRecordWithFlags(event.get(), stream, cudaEventRecordExternal),
                 "cudaEventRecordWithFlags");
    } else {
      event.record(stream);
    }
  }
  void record_end(const PhaseMarks& marks, cudaStream_t stream) const {
    record(marks.end, stream);
    if (captures_) marks.captured_end.record(stream);
  }
  // What follows on `stream` comes after a phase.
  void wait_for_end(cudaStream_t stream, const PhaseMarks& marks) const {
    wait(stream, captures_ ? marks.captured_end : marks.end);
  }

  // Exchanges ------------------------------------------------------------------------------------

  void exchange_counts(const LayerTables& tables) {
    if (is_direct()) direct_->notify(tables, main());
    if (!uses_nccl()) return;
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::uint32_t r = 0; r < environment_.num_ranks; ++r) {
      if (!by_nccl(r)) continue;
      constexpr std::size_t kBytes = 2 * sizeof(std::uint32_t);
      sends.push_back(
          {r, reinterpret_cast<std::byte*>(tables.counts_out.data() + 2 * r), kBytes});  // NOLINT
      receives.push_back(
          {r, reinterpret_cast<std::byte*>(tables.counts_in.data() + 2 * r), kBytes});  // NOLINT
    }
    communicator_->exchange(sends, receives, main());
  }

  // A round's blocks, in the direction of the dispatch.
  void exchange_blocks(const Work& work, std::size_t h, std::uint32_t r) {
    const Hop& hop = work.layout.hops[h];
    const RoundTables& round = work.tables.hops[h].rounds[r];
    std::vector<Message> sends;
    std::vector<Message> receives;
    const auto bytes = [this](const TransferBlock& block) {
      return block.num_rows == 0 ? 0
                                 : kernels::block_bytes(shape().dispatch, shape().mlp.hidden,
                                                        block.num_rows, block.num_copies);
    };
    for (std::size_t p = 1; p < hop.send_ranks.size(); ++p) {
      if (!by_nccl(hop.send_ranks[p])) continue;
      sends.push_back({hop.send_ranks[p], round.host_send[p].data, bytes(round.host_send[p])});
    }
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      if (!by_nccl(hop.recv_ranks[s])) continue;
      receives.push_back({hop.recv_ranks[s], round.host_recv[s].data, bytes(round.host_recv[s])});
    }
    communicator_of(h).exchange(sends, receives, stream_of(work, h));
  }

  // A round's results, in the direction of the combine: what was received is answered.
  void exchange_results(const Work& work, std::size_t h, std::uint32_t r) {
    const Hop& hop = work.layout.hops[h];
    const HopRound& counts = hop.rounds[r];
    const RoundTables& round = work.tables.hops[h].rounds[r];
    const std::size_t hidden = shape().mlp.hidden;
    Bf16* const results = buffers_.hops[h].results.data() + counts.recv_row_begin * hidden;
    Bf16* const returned = buffers_.hops[h].returned.data() + counts.send_row_begin * hidden;
    const auto message = [hidden](std::uint32_t peer, Bf16* base, const TransferBlock& block) {
      return Message{peer, reinterpret_cast<std::byte*>(base + block.row_begin * hidden),  // NOLINT
                     block.num_rows * hidden * sizeof(Bf16)};
    };
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::size_t s = 0; s < hop.recv_ranks.size(); ++s) {
      if (!by_nccl(hop.recv_ranks[s])) continue;
      sends.push_back(message(hop.recv_ranks[s], results, round.host_recv[s]));
    }
    for (std::size_t p = 1; p < hop.send_ranks.size(); ++p) {
      if (!by_nccl(hop.send_ranks[p])) continue;
      receives.push_back(message(hop.send_ranks[p], returned, round.host_send[p]));
    }
    const cudaStream_t stream = stream_of(work, h);
    communicator_of(h).exchange(sends, receives, stream);
    const TransferBlock& own = round.host_recv[hop.recv_self];
    if (own.num_rows == 0 || is_direct()) return;  // a pull reads them where they stand
    check_cuda(
        cudaMemcpyAsync(returned + round.host_send[0].row_begin * hidden,
                        results + own.row_begin * hidden, own.num_rows * hidden * sizeof(Bf16),
                        cudaMemcpyDeviceToDevice, stream),
        "cudaMemcpyAsync of the own results");
  }

  // Phases ---------------------------------------------------------------------------------------

  // The routing of the tokens of a round.
  static kernels::TokenRouting routing_of(const Work& work, std::uint32_t r) {
    const std::size_t first = work.layout.round_begin[r];
    const std::uint32_t num_topk = work.layout.num_topk;
    return {work.tables.token_slots.data() + first * num_topk,
            work.tables.token_weights.data() + first * num_topk,
            static_cast<std::uint32_t>(work.layout.round_begin[r + 1] - first), num_topk};
  }

  // All rounds: their rows leave one after the other.
  void pack(const Work& work) {
    const Hop& hop = work.layout.hops.front();
    const HopTables& tables = work.tables.hops.front();
    const std::uint32_t hidden = shape().mlp.hidden;
    const std::uint32_t num_topk = work.layout.num_topk;
    const auto num_dests = static_cast<std::uint32_t>(hop.send_ranks.size());
    for (std::uint32_t r = 0; r < work.layout.num_rounds(); ++r) {
      const std::size_t first = work.layout.round_begin[r];
      const auto num_tokens = static_cast<std::uint32_t>(work.layout.round_begin[r + 1] - first);
      // The one-sided kernels read the tables of blocks also where there is nothing to send.
      if (num_tokens == 0 && !is_direct()) continue;
      kernels::build_send_index(routing_of(work, r),
                                {tables.slot_dest.data(), work.layout.num_slots(), num_dests,
                                 hop.first_dest, work.layout.policy == DispatchPolicy::kStandard},
                                shape().dispatch, hidden, tables.rounds[r].send_buffer,
                                tables.rounds[r].index, buffers_.workspace.data(), main());
      if (is_direct()) continue;  // the values go straight to where they belong
      kernels::pack(tokens_.data() + first * hidden, num_tokens, num_topk, hidden, shape().dispatch,
                    tables.rounds[r].index, num_dests, main());
    }
  }

  // Of what a relay received in a round: which blocks of the second hop it goes to.
  void build_forward_index(const Work& work, std::uint32_t r) {
    const Hop& hop = work.layout.hops[1];
    const HopTables& tables = work.tables.hops[1];
    const auto num_dests = static_cast<std::uint32_t>(hop.send_ranks.size());
    kernels::build_forward_index(
        received(shape(), work.layout.hops[0], work.tables.hops[0], r),
        {tables.slot_dest.data(), work.layout.num_slots(), num_dests, hop.first_dest, false},
        tables.rounds[r].send_buffer, tables.rounds[r].index, buffers_.workspace.data(),
        stream_of(work, 1));
  }
  // What a relay received in a round, into the blocks of the second hop.
  void forward(const Work& work, std::uint32_t r) {
    if (work.layout.hops[0].rounds[r].num_recv_rows == 0) return;
    build_forward_index(work, r);
    kernels::forward(received(shape(), work.layout.hops[0], work.tables.hops[0], r),
                     work.tables.hops[1].rounds[r].index,
                     static_cast<std::uint32_t>(work.layout.hops[1].send_ranks.size()),
                     stream_of(work, 1));
  }

  // The results that the second hop brought back in a round, one per row that the first had brought.
  void reduce(const Work& work, std::uint32_t r) {
    const HopRound& first = work.layout.hops[0].rounds[r];
    const HopRound& second = work.layout.hops[1].rounds[r];
    if (first.num_recv_rows == 0) return;
    const std::size_t hidden = shape().mlp.hidden;
    kernels::combine_received(received(shape(), work.layout.hops[0], work.tables.hops[0], r),
                              buffers_.hops[1].returned.data() + second.send_row_begin * hidden,
                              work.tables.hops[1].rounds[r].index.item_rows,
                              buffers_.hops[0].results.data() + first.recv_row_begin * hidden,
                              stream_of(work, 1));
  }

  void expand(const Work& work) {
    const bool in_place = is_direct() && DirectTransport::keeps_own_rows(work.layout);
    enqueue_expand(shape(), work.layout, work.tables, buffers_, in_place ? tokens_.data() : nullptr,
                   main());
  }

  void merge(const Work& work) {
    kernels::merge(received(shape(), work.layout.hops.back(), work.tables.hops.back()),
                   work.tables.copy_slot.data(), buffers_.expert_out.data(),
                   buffers_.hops[work.layout.hops.size() - 1].results.data(), main());
  }

  void sum(const Work& work) {
    if (is_direct()) return;
    const Hop& hop = work.layout.hops.front();
    const std::size_t hidden = shape().mlp.hidden;
    for (std::uint32_t r = 0; r < work.layout.num_rounds(); ++r) {
      const std::size_t first = work.layout.round_begin[r];
      const auto num_tokens = static_cast<std::uint32_t>(work.layout.round_begin[r + 1] - first);
      if (num_tokens == 0) continue;
      const Bf16* const addend = work.tables.shared.outputs();
      kernels::combine(buffers_.hops[0].returned.data() + hop.rounds[r].send_row_begin * hidden,
                       num_tokens, work.layout.num_topk, shape().mlp.hidden,
                       work.tables.hops[0].rounds[r].index.item_rows,
                       work.tables.output.data() + first * hidden, main(),
                       addend == nullptr ? nullptr : addend + first * hidden);
    }
  }

  // One step of the plan. The first and the last round of a stage and direction record when its phase
  // begins and ends.
  void enqueue_step(const Work& work, const Step& step, std::size_t step_idx) {
    const Stage& stage = work.plan.stages[step.stage];
    const Phase phase = phase_of(stage, step.direction);
    const cudaStream_t stream = stream_of(work, step.stage);
    PhaseMarks& marks = work.tables.marks(phase);
    const bool begins = step.round == 0;
    const bool ends = step.round + 1 == work.plan.num_rounds;
    // Own rows are packed, and results merged, on the main stream.
    if (begins && step.stage == 0 && step.direction == Direction::kDispatch) {
      wait_for_end(stream, work.tables.marks(Phase::kPack));
    }
    if (begins && step.stage + 1 == work.plan.stages.size() &&
        step.direction == Direction::kCombine) {
      wait_for_end(stream, work.tables.marks(Phase::kMerge));
    }
    // The last hop's answers come after the merge, which came after the whole dispatch: waiting for
    // it, above, is enough.
    if (step.direction == Direction::kDispatch || step.stage + 1 < work.plan.stages.size()) {
      for (const Step& earlier : prerequisites(work.plan, step)) {
        wait(stream, work.arrived(earlier));
      }
    }
    if (begins) {
      announce(phase, work.plan.layer);
      record(marks.begin, stream);
    }
    if (is_direct()) {
      enqueue_direct(work, step);
    } else if (step.direction == Direction::kDispatch) {
      if (step.stage == 1) forward(work, step.round);
      exchange_blocks(work, step.stage, step.round);
    } else {
      exchange_results(work, step.stage, step.round);
      if (step.stage == 1) reduce(work, step.round);
    }
    work.tables.arrived[step_idx].record(stream);
    if (ends) record_end(marks, stream);
  }

  // The same step over peer memory.
  void enqueue_direct(const Work& work, const Step& step) {
    const std::uint32_t r = step.round;
    const cudaStream_t stream = stream_of(work, step.stage);
    const kernels::SendIndex& index = work.tables.hops[step.stage].rounds[r].index;
    const std::size_t first = work.layout.round_begin[r];
    const std::size_t hidden = shape().mlp.hidden;
    const auto arrived = [&] {
      return received(shape(), work.layout.hops[0], work.tables.hops[0], r);
    };
    if (step.direction == Direction::kDispatch) {
      if (step.stage == 0) {
        direct_->dispatch(work.layer_idx, r, tokens_.data() + first * hidden, routing_of(work, r),
                          index, stream);
      } else {
        build_forward_index(work, r);
        direct_->forward(work.layer_idx, r, arrived(), index, stream);
      }
      if (uses_nccl()) exchange_blocks(work, step.stage, r);
      return;
    }
    // The experts' results of all rounds were merged at once.
    const bool last_stage = step.stage + 1 == work.plan.stages.size();
    if (!last_stage || r == 0) direct_->announce_results(work.layer_idx, step.stage, stream);
    if (uses_nccl()) exchange_results(work, step.stage, r);
    if (step.stage == 1) {
      direct_->gather(
          work.layer_idx, r, arrived(), index,
          buffers_.hops[0].results.data() + work.layout.hops[0].rounds[r].recv_row_begin * hidden,
          stream);
      return;
    }
    const Bf16* const addend = work.tables.shared.outputs();
    direct_->combine(work.layer_idx, r, routing_of(work, r), index,
                     work.tables.output.data() + first * hidden,
                     addend == nullptr ? nullptr : addend + first * hidden, stream);
  }

  void enqueue_steps(const Work& work, Direction direction) {
    for (std::size_t i = 0; i < work.steps.size(); ++i) {
      if (work.steps[i].direction == direction) enqueue_step(work, work.steps[i], i);
    }
  }

  // `may_fail`: pass the fault points, where the other ranks wait for this one inside NCCL.
  void enqueue_layer(std::size_t layer_idx, bool may_fail) {
    const Work work{*layers_.plans[layer_idx], layers_.layouts[layer_idx], tables_[layer_idx],
                    plan_steps(*layers_.plans[layer_idx]), layer_idx};
    const auto on_main = [&](Phase phase, const auto& body) {
      PhaseMarks& marks = work.tables.marks(phase);
      record(marks.begin, main());
      body();
      record_end(marks, main());
    };
    on_main(Phase::kNotify, [&] { exchange_counts(work.tables); });
    on_main(Phase::kPack, [&] { pack(work); });
    if (may_fail) fault_point(environment_.rank, "dispatch");
    enqueue_steps(work, Direction::kDispatch);
    if (work.two_hops()) {
      // Everything for this rank's experts has come by the second hop, and what the first one sent
      // is out of its buffers.
      wait_for_end(main(), work.tables.marks(Phase::kForward));
      wait_for_end(main(), work.tables.marks(Phase::kDispatch));
    }
    on_main(Phase::kExpand, [&] { expand(work); });
    on_main(Phase::kMlp, [&] {
      work.tables.mlp->run(main());
      work.tables.shared.run(main());
    });
    on_main(Phase::kMerge, [&] { merge(work); });
    if (may_fail) fault_point(environment_.rank, "combine");
    enqueue_steps(work, Direction::kCombine);
    if (work.two_hops()) {
      wait_for_end(main(), work.tables.marks(Phase::kGather));
      wait_for_end(main(), work.tables.marks(Phase::kCombine));
    }
    on_main(Phase::kSum, [&] { sum(work); });
  }

  ControlGroup& group_;
  const RankEnvironment environment_;
  const GpuShare share_;
  std::optional<kernels::Stream> main_;
  std::optional<kernels::Stream> hop_streams_[2];
  RunLayers layers_;
  RunBuffers buffers_;
  DeviceBuffer<Bf16> tokens_;
  std::vector<LayerTables> tables_;
  std::optional<DirectTransport> direct_;
  std::optional<Graph> graph_;              // of the loaded layers' iteration
  std::optional<kernels::Event> replayed_;  // of the rank's device
  bool captures_ = false;
  // The last members go first: an abort ends the device's work before its memory goes, and the gate
  // opens before the abort waits for the stream.
  std::optional<Communicator> communicator_;
  std::optional<Communicator> second_communicator_;
  Gate gate_;
};

}  // namespace

std::unique_ptr<Executor> make_gpu_executor(ControlGroup& group,
                                            const RankEnvironment& environment) {
  return std::make_unique<GpuExecutor>(group, environment);
}

}  // namespace coterie
