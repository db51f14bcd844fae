// The exchanges of a layer over the transport `direct`, as the executor enqueues them: one layer per
// case, planned and laid out like any other. No experts run; results are drawn numbers.

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "kernels/mlp_kernels.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/gate.hpp"
#include "runtime/executor/direct_transport.hpp"
#include "runtime/executor/gpu_tables.hpp"
#include "runtime/session/probe/parts.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::Event;
using nlohmann::json;

constexpr std::uint32_t kUncounted = 2;  // samples before those that count
// More than the cache of any GPU, by all of its ranks together.
constexpr std::size_t kFlushBytes = std::size_t{256} << 20;
constexpr std::uint32_t kIntermediate = 64;  // nothing is computed

// What all cases use.
struct DirectMemory {
  RunBuffers buffers;
  DeviceBuffer<Bf16> tokens;  // of the largest case
  DeviceBuffer<std::byte> flush;
  kernels::Stream stream;
  std::vector<Event> events;
  Gate gate;  // opens before the stream goes
};

// [sender][receiver], of the rows or of the copies of a stage.
json matrix_of(const Stage& stage, const std::vector<std::uint32_t>& counts,
               std::uint32_t num_ranks) {
  std::vector<std::vector<std::uint64_t>> matrix(num_ranks,
                                                 std::vector<std::uint64_t>(num_ranks, 0));
  for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
    matrix[stage.src[t]][stage.dst[t]] += counts[t];
  }
  return matrix;
}

class DirectLayer {
 public:
  DirectLayer(ProbeTools& tools, DirectMemory& memory, const DirectCase& entry)
      : tools_(tools),
        memory_(memory),
        transport_(*tools.direct),
        entry_(entry),
        plan_(make_direct_plan(entry, tools.group.num_ranks(), tools.ranks_per_gpu)) {
    shape_.mlp = {entry.hidden, kIntermediate};
    shape_.dispatch = entry.type;
    layouts_.push_back(make_rank_layout(plan_, tools.group.rank()));
    RunBuffers& buffers = memory.buffers;
    tables_ = load_alone(transport_, shape_, plan_, layouts_, buffers, memory.tokens.data());
    for (std::size_t h = 0; h < layout().hops.size(); ++h) {
      const std::uint32_t num_rows = layout().hops[h].num_recv_rows;
      if (num_rows == 0) continue;
      kernels::draw_weights({entry.hidden, num_rows}, 2, 0, 0, 0, buffers.hops[h].results.data(),
                            nullptr);
    }
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    tools.group.barrier("the buffers of a direct layer");
    // Behind a closed gate nothing may wait for the device, and every function that is called for
    // the first time loads its code: once without.
    tools.group.watch_stage("the first pass of a direct layer");
    enqueue_layer();
    transport_.wait_for(memory_.events[next_ - 1]);
    tools.group.barrier("the first pass of a direct layer");
  }

  // Seconds on this rank, [num_samples][works].
  std::vector<double> measure(std::uint32_t sms, std::uint32_t num_samples) {
    transport_.set_sms(sms);
    next_ = 0;
    return pass(num_samples, [this] { enqueue_layer(); });
  }
  // The same of {events, synchronise}.
  std::vector<double> measure_flags(std::uint32_t num_samples) {
    next_ = 0;
    return pass(num_samples, [this] {
      notify();
      span([] {});
      span([this] { notify(); });
    });
  }

  [[nodiscard]] std::vector<std::string> kinds() const {
    if (two_hops()) return {"put", "put_forward", "expand", "pull_gather", "pull", "combine"};
    return {"put", "expand", "pull", "combine"};
  }
  [[nodiscard]] json facts() const {
    const std::uint32_t num_ranks = plan_.num_ranks;
    std::vector<std::uint64_t> tokens;
    for (std::uint32_t r = 0; r < num_ranks; ++r) tokens.push_back(plan_.num_tokens(r));
    const Stage& first = plan_.stages.front();
    json facts{{"tokens", tokens},
               {"rows", matrix_of(first, first.num_rows, num_ranks)},
               {"copies", matrix_of(first, first.num_copies, num_ranks)}};
    if (two_hops()) {
      const Stage& second = plan_.stages[1];
      facts["forward_rows"] = matrix_of(second, second.num_rows, num_ranks);
      facts["forward_copies"] = matrix_of(second, second.num_copies, num_ranks);
      facts["ranks_per_node"] = plan_.ranks_per_node;
    }
    return facts;
  }

 private:
  [[nodiscard]] const RankLayout& layout() const { return layouts_.front(); }
  [[nodiscard]] bool two_hops() const { return plan_.stages.size() > 1; }
  [[nodiscard]] cudaStream_t stream() const { return memory_.stream.get(); }

  std::vector<double> pass(std::uint32_t num_samples, const std::function<void()>& enqueue) {
    tools_.group.watch_stage("samples of the transport direct");
    memory_.gate.close(stream());
    for (std::uint32_t i = 0; i < num_samples + kUncounted; ++i) {
      enqueue();
      if (i + 1 == kUncounted) next_ = 0;
    }
    tools_.group.barrier("opening of the transport direct");
    memory_.gate.open();
    transport_.wait_for(memory_.events[next_ - 1]);
    std::vector<double> seconds;
    for (std::size_t i = 0; i < next_; i += 2) {
      seconds.push_back(kernels::seconds_between(memory_.events[i], memory_.events[i + 1]));
    }
    return seconds;
  }
  void span(const std::function<void()>& body) {
    while (memory_.events.size() < next_ + 2) memory_.events.emplace_back();
    memory_.events[next_].record(stream());
    body();
    memory_.events[next_ + 1].record(stream());
    next_ += 2;
  }
  void notify() { transport_.notify(tables_.front(), stream()); }
  void flush() {
    check_cuda(cudaMemsetAsync(memory_.flush.data(), 0, memory_.flush.size(), stream()),
               "cudaMemsetAsync");
  }
  [[nodiscard]] kernels::Targets targets(std::size_t h) const {
    const Hop& hop = layout().hops[h];
    return {tables_.front().hops[h].slot_dest.data(), layout().num_slots(),
            static_cast<std::uint32_t>(hop.send_ranks.size()), hop.first_dest, false};
  }

  void enqueue_layer() {
    const LayerTables& tables = tables_.front();
    const RoundTables& first = tables.hops.front().rounds[0];
    const kernels::TokenRouting routing{tables.token_slots.data(), tables.token_weights.data(),
                                        layout().num_tokens, layout().num_topk};
    void* const workspace = memory_.buffers.workspace.data();
    const auto pull = [&] {
      transport_.combine(0, 0, routing, first.index, tables.output.data(), nullptr, stream());
    };
    // As in a layer: the index stands between the last step that joins the ranks and the put, and
    // lets those of a GPU drift apart.
    flush();
    notify();
    kernels::build_send_index(routing, targets(0), entry_.type, entry_.hidden, first.send_buffer,
                              first.index, workspace, stream());
    span([&] { transport_.dispatch(0, 0, memory_.tokens.data(), routing, first.index, stream()); });
    const auto expand = [&] {
      enqueue_expand(shape_, layout(), tables, memory_.buffers, nullptr, stream());
    };
    if (two_hops()) {
      const RoundTables& second = tables.hops[1].rounds[0];
      const kernels::ReceivedRows rows = received(shape_, layout().hops[0], tables.hops[0], 0);
      notify();
      kernels::build_forward_index(rows, targets(1), second.send_buffer, second.index, workspace,
                                   stream());
      span([&] { transport_.forward(0, 0, rows, second.index, stream()); });
      span(expand);
      flush();
      transport_.announce_results(0, 1, stream());
      notify();
      span([&] {
        transport_.gather(0, 0, rows, second.index, memory_.buffers.hops[0].results.data(),
                          stream());
      });
    } else {
      span(expand);
    }
    flush();
    transport_.announce_results(0, 0, stream());
    notify();
    span(pull);
    flush();
    notify();
    span([&] {
      transport_.announce_results(0, 0, stream());
      pull();
    });
  }

  ProbeTools& tools_;
  DirectMemory& memory_;
  DirectTransport& transport_;
  DirectCase entry_;
  LayerPlan plan_;
  LayerShape shape_;
  std::vector<RankLayout> layouts_;
  std::vector<LayerTables> tables_;
  std::size_t next_ = 0;  // event
};

// The slowest rank's microseconds, [works][num_samples]; at rank 0 only, empty lists elsewhere.
std::vector<std::vector<double>> slowest(ControlGroup& group, const std::vector<double>& mine,
                                         std::size_t num_works) {
  const auto all = group.gather("times of the transport direct", Packer().numbers(mine).take());
  std::vector<std::vector<double>> samples(num_works);
  if (group.rank() != 0) return samples;
  for (auto& list : samples) list.assign(mine.size() / num_works, 0.0);
  for (const std::string& blob : all) {
    const auto seconds = Unpacker(blob).numbers<double>();
    for (std::size_t i = 0; i < seconds.size(); ++i) {
      double& slot = samples[i % num_works][i / num_works];
      slot = std::max(slot, seconds[i] * 1e6);
    }
  }
  return samples;
}

json key_of(const DirectCase& entry, const std::string& kind, std::uint32_t sms) {
  return {{"kind", kind},
          {"transport", "direct"},
          {"sms", sms},
          {"policy", to_string(entry.policy)},
          {"pattern", to_string(entry.pattern)},
          {"scope", to_string(entry.scope)},
          {"hidden", entry.hidden},
          {"type", entry.type == kernels::RowType::kFp8 ? "fp8" : "bf16"},
          {"num_tokens", entry.num_tokens},
          {"num_topk", kDirectTopk},
          {"rows_per_token", entry.rows_per_token}};
}

}  // namespace

std::vector<ProbePoint> probe_direct(ProbeTools& tools, std::span<const DirectCase> cases) {
  DirectMemory memory;
  std::size_t num_values = 0;
  for (const DirectCase& entry : cases) {
    num_values = std::max(num_values, std::size_t{entry.num_tokens} * entry.hidden);
  }
  memory.tokens = DeviceBuffer<Bf16>(num_values);
  kernels::draw_weights({1, static_cast<std::uint32_t>(num_values)}, 1, 0, 0, 0,
                        memory.tokens.data(), nullptr);
  memory.flush = DeviceBuffer<std::byte>(kFlushBytes / tools.ranks_per_gpu);
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  const std::uint32_t num_samples = std::max(tools.num_samples, 1U);
  std::vector<ProbePoint> points;
  for (std::size_t c = 0; c < cases.size(); ++c) {
    DirectLayer layer(tools, memory, cases[c]);
    if (c == 0) {
      auto samples = slowest(tools.group, layer.measure_flags(num_samples), 2);
      points.push_back({{{"kind", "events"}}, json::object(), std::move(samples[0])});
      points.push_back({{{"kind", "synchronise"}}, json::object(), std::move(samples[1])});
    }
    const auto kinds = layer.kinds();
    for (const std::uint32_t sms : kDirectSms) {
      auto samples = slowest(tools.group, layer.measure(sms, num_samples), kinds.size());
      for (std::size_t k = 0; k < kinds.size(); ++k) {
        points.push_back({key_of(cases[c], kinds[k], sms), layer.facts(), std::move(samples[k])});
      }
    }
    tools.group.barrier("end of a direct layer");
  }
  return points;
}

}  // namespace coterie
