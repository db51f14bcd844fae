// The kernels that make, move and sum rows, called as the executor calls them. The blocks that a
// rank has packed stand for those that it receives: of as many sources, with as many rows.

#include <fmt/format.h>

#include <algorithm>

#include "kernels/index.hpp"
#include "kernels/mlp_kernels.hpp"
#include "kernels/rows.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/session/probe/parts.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::BlockCounts;
using kernels::DeviceBuffer;
using kernels::TransferBlock;

// More than the cache of any GPU: written before every sample, so that each begins with its inputs
// in memory, as the tokens of a layer are.
constexpr std::size_t kFlushBytes = std::size_t{256} << 20;

template <class T>
DeviceBuffer<T> upload(const std::vector<T>& host) {
  return DeviceBuffer<T>(std::span<const T>(host));
}

BlockCounts sum_of(const std::vector<BlockCounts>& counts) {
  BlockCounts sum{0, 0};
  for (const BlockCounts& entry : counts) {
    sum.num_rows += entry.num_rows;
    sum.num_copies += entry.num_copies;
  }
  return sum;
}

// Blocks of one hop with their index.
struct HopMemory {
  DeviceBuffer<std::byte> buffer;
  DeviceBuffer<TransferBlock> blocks;
  DeviceBuffer<std::uint32_t> item_rows, row_item, row_mask;

  HopMemory(const std::vector<BlockCounts>& counts, const KernelCase& entry)
      : buffer(kernels::blocks_bytes(counts, entry.type, entry.hidden)),
        blocks(counts.size()),
        item_rows(std::size_t{entry.num_tokens} * entry.num_topk),
        row_item(sum_of(counts).num_rows),
        row_mask(sum_of(counts).num_rows) {}
  [[nodiscard]] kernels::SendIndex index() const {
    return {blocks.data(), item_rows.data(), row_item.data(), row_mask.data()};
  }
};

class KernelRun {
 public:
  explicit KernelRun(const KernelCase& entry)
      : entry_(entry),
        routing_(make_probe_routing(entry, 1)),
        rows_(sum_of(routing_.first)),
        second_rows_(sum_of(routing_.second)),
        experts_(upload(routing_.experts)),
        weights_(upload(routing_.weights)),
        expert_dest_(upload(routing_.expert_dest)),
        expert_local_(upload(routing_.expert_local)),
        second_dest_(upload(routing_.second_dest)),
        tokens_(std::size_t{entry.num_tokens} * entry.hidden),
        first_(routing_.first, entry),
        second_(routing_.second, entry),
        received_blocks_(upload(kernels::layout_blocks(routing_.first, entry.type, entry.hidden,
                                                       first_.buffer.data()))),
        copy_slot_(rows_.num_copies),
        expert_begin_(routing_.experts_per_dest + 1),
        expert_rows_(std::size_t{rows_.num_copies} * entry.hidden),
        results_(std::size_t{rows_.num_rows} * entry.hidden),
        returned_(std::size_t{second_rows_.num_rows} * entry.hidden),
        output_(tokens_.size()),
        workspace_(kernels::index_workspace_bytes(
            rows_.num_copies, std::max(entry.num_dests, routing_.experts_per_dest))) {
    kernels::draw_weights({entry.hidden, entry.num_tokens}, 1, 0, 0, 0, tokens_.data(), nullptr);
    if (returned_.size() > 0) returned_.fill_bytes(0);
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  [[nodiscard]] std::vector<TimedWork> works() const {
    using Function = void (KernelRun::*)(cudaStream_t) const;
    std::vector<TimedWork> works;
    const auto add = [&](const char* kind, std::initializer_list<Function> functions) {
      works.push_back({kind, [this, list = std::vector<Function>(functions)](cudaStream_t stream) {
                         for (const Function function : list) (this->*function)(stream);
                       }});
    };
    add("events", {});
    if (entry_.num_rounds > 1) {
      add("send_index_rounds", {&KernelRun::build_send_rounds});
      add("pack_rounds", {&KernelRun::pack_rounds});
      return works;
    }
    if (entry_.among_streams) {
      add("event_between", {&KernelRun::event_between});
      add("round_trip", {&KernelRun::round_trip});
    }
    add("build_send_index", {&KernelRun::build_send});
    add("pack", {&KernelRun::pack});
    if (!entry_.row_per_copy) {
      add("build_forward_index", {&KernelRun::build_forward});
      add("forward", {&KernelRun::forward});
    }
    add("build_receive_index", {&KernelRun::build_receive});
    add("expand", {&KernelRun::expand});
    add("merge", {&KernelRun::merge});
    if (!entry_.row_per_copy) add("gather_sum", {&KernelRun::gather_sum});
    add("sum", {&KernelRun::sum});
    add("sum_with_shared", {&KernelRun::sum_with_shared});
    // As the phases have them: index and rows between one pair of events.
    add("pack_phase", {&KernelRun::build_send, &KernelRun::pack});
    if (!entry_.row_per_copy) {
      add("forward_phase", {&KernelRun::build_forward, &KernelRun::forward});
    }
    add("expand_phase", {&KernelRun::build_receive, &KernelRun::expand});
    return works;
  }

  [[nodiscard]] nlohmann::json facts() const {
    nlohmann::json facts{{"num_rows", rows_.num_rows},
                         {"num_copies", rows_.num_copies},
                         {"num_local_experts", routing_.experts_per_dest}};
    if (!entry_.row_per_copy) facts["num_forward_rows"] = second_rows_.num_rows;
    return facts;
  }

 private:
  void event_between(cudaStream_t stream) const { left_.record(stream); }
  // The same with another stream's event behind it, and a third's from before, for both of which this one
  // waits: what stands between the phases of the main stream and those of the hops.
  void round_trip(cudaStream_t stream) const {
    back_[0].record(streams_[0].get());
    left_.record(stream);
    check_cuda(cudaStreamWaitEvent(streams_[1].get(), left_.get()), "cudaStreamWaitEvent");
    back_[1].record(streams_[1].get());
    for (const kernels::Event& event : back_) {
      check_cuda(cudaStreamWaitEvent(stream, event.get()), "cudaStreamWaitEvent");
    }
  }
  // The index of a round's tokens, and with `rows` these themselves, round after round.
  void rounds(cudaStream_t stream, bool rows) const {
    const std::uint32_t num_tokens = entry_.num_tokens / entry_.num_rounds;
    for (std::uint32_t r = 0; r < entry_.num_rounds; ++r) {
      const std::size_t first = std::size_t{r} * num_tokens;
      kernels::build_send_index(
          {experts_.data() + first * entry_.num_topk, weights_.data() + first * entry_.num_topk,
           num_tokens, entry_.num_topk},
          {expert_dest_.data(), routing_.num_experts, entry_.num_dests, 0, entry_.row_per_copy},
          entry_.type, entry_.hidden, first_.buffer.data(), first_.index(), workspace_.data(),
          stream);
      if (!rows) continue;
      kernels::pack(tokens_.data() + first * entry_.hidden, num_tokens, entry_.num_topk,
                    entry_.hidden, entry_.type, first_.index(), entry_.num_dests, stream);
    }
  }
  void build_send_rounds(cudaStream_t stream) const { rounds(stream, false); }
  void pack_rounds(cudaStream_t stream) const { rounds(stream, true); }
  [[nodiscard]] kernels::ReceivedRows received() const {
    return {received_blocks_.data(), entry_.num_dests, rows_.num_rows,
            rows_.num_copies,        entry_.type,      entry_.hidden};
  }
  void build_send(cudaStream_t stream) const {
    kernels::build_send_index(
        {experts_.data(), weights_.data(), entry_.num_tokens, entry_.num_topk},
        {expert_dest_.data(), routing_.num_experts, entry_.num_dests, 0, entry_.row_per_copy},
        entry_.type, entry_.hidden, first_.buffer.data(), first_.index(), workspace_.data(),
        stream);
  }
  void pack(cudaStream_t stream) const {
    kernels::pack(tokens_.data(), entry_.num_tokens, entry_.num_topk, entry_.hidden, entry_.type,
                  first_.index(), entry_.num_dests, stream);
  }
  void build_forward(cudaStream_t stream) const {
    kernels::build_forward_index(
        received(), {second_dest_.data(), routing_.num_experts, entry_.num_dests, 0, false},
        second_.buffer.data(), second_.index(), workspace_.data(), stream);
  }
  void forward(cudaStream_t stream) const {
    kernels::forward(received(), second_.index(), entry_.num_dests, stream);
  }
  void build_receive(cudaStream_t stream) const {
    kernels::build_receive_index(received(), expert_local_.data(), routing_.experts_per_dest,
                                 {copy_slot_.data(), nullptr, expert_begin_.data()},
                                 workspace_.data(), stream);
  }
  void expand(cudaStream_t stream) const {
    kernels::expand(received(), copy_slot_.data(), expert_rows_.data(), stream);
  }
  void merge(cudaStream_t stream) const {
    kernels::merge(received(), copy_slot_.data(), expert_rows_.data(), results_.data(), stream);
  }
  void gather_sum(cudaStream_t stream) const {
    kernels::combine_received(received(), returned_.data(), second_.item_rows.data(),
                              results_.data(), stream);
  }
  void sum(cudaStream_t stream) const {
    kernels::combine(results_.data(), entry_.num_tokens, entry_.num_topk, entry_.hidden,
                     first_.item_rows.data(), output_.data(), stream);
  }
  void sum_with_shared(cudaStream_t stream) const {
    kernels::combine(results_.data(), entry_.num_tokens, entry_.num_topk, entry_.hidden,
                     first_.item_rows.data(), output_.data(), stream, tokens_.data());
  }

  KernelCase entry_;
  ProbeRouting routing_;
  BlockCounts rows_;
  BlockCounts second_rows_;
  DeviceBuffer<std::uint16_t> experts_;
  DeviceBuffer<float> weights_;
  DeviceBuffer<std::uint16_t> expert_dest_, expert_local_, second_dest_;
  DeviceBuffer<Bf16> tokens_;
  HopMemory first_;
  HopMemory second_;
  DeviceBuffer<TransferBlock> received_blocks_;
  DeviceBuffer<std::uint32_t> copy_slot_, expert_begin_;
  DeviceBuffer<Bf16> expert_rows_, results_, returned_, output_;
  DeviceBuffer<std::byte> workspace_;
  kernels::Stream streams_[2];
  kernels::Event left_;
  kernels::Event back_[2];
};

}  // namespace

std::vector<ProbePoint> probe_kernels(ProbeTools& tools, std::span<const KernelCase> cases) {
  const DeviceBuffer<std::byte> flush(kFlushBytes);
  std::vector<ProbePoint> points;
  for (const KernelCase& entry : cases) {
    const KernelRun run(entry);
    const auto works = run.works();
    auto samples = tools.sampler.measure(
        fmt::format("the kernels for {} tokens of {}", entry.num_tokens, entry.hidden), works,
        {3, 8, 0.1, 4, 0.0, entry.among_streams}, [&](cudaStream_t stream) {
          check_cuda(cudaMemsetAsync(flush.data(), 0, flush.size(), stream), "cudaMemsetAsync");
        });
    for (std::size_t w = 0; w < works.size(); ++w) {
      nlohmann::json key{{"kind", works[w].kind},
                         {"hidden", entry.hidden},
                         {"type", entry.type == kernels::RowType::kFp8 ? "fp8" : "bf16"},
                         {"num_tokens", entry.num_tokens},
                         {"num_topk", entry.num_topk},
                         {"rows_per_token", entry.rows_per_token},
                         {"row_per_copy", entry.row_per_copy},
                         {"num_dests", entry.num_dests}};
      if (entry.among_streams) key["among_streams"] = true;
      if (entry.num_rounds > 1) key["num_rounds"] = entry.num_rounds;
      points.push_back({std::move(key), run.facts(), std::move(samples[w].slowest_us)});
    }
  }
  return points;
}

}  // namespace coterie
