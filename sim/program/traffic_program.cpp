#include "sim/program/traffic_program.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <span>

#include "core/error.hpp"
#include "sim/transports/start_costs.hpp"

namespace coterie {
namespace {

using Signals = std::span<const std::uint32_t>;

// Events that fire when a rank's sends of a phase may leave, [rank][tier].
class Starts {
 public:
  Starts(ProgramBuilder& builder, const Cluster* cluster, std::span<const PhaseSend> sends,
         std::span<const std::uint32_t> ready)
      : cluster_(cluster) {
    for (const std::uint32_t event : ready) events_.push_back({event, event});
    if (cluster == nullptr) return;
    const StartDelays delays = start_delays(*cluster, sends);
    for (std::uint32_t rank = 0; rank < std::min(delays.size(), events_.size()); ++rank) {
      for (std::size_t tier = 0; tier < 2; ++tier) {
        if (delays[rank][tier] <= 0.0) continue;
        events_[rank][tier] = builder.add_event();
        builder.add_compute(rank, delays[rank][tier], ready[rank],
                            Signals(&events_[rank][tier], 1));
      }
    }
  }
  [[nodiscard]] std::uint32_t of(std::uint32_t src, std::uint32_t dst) const {
    return events_[src][cluster_ == nullptr ? 0 : tier_index(*cluster_, src, dst)];
  }

 private:
  const Cluster* cluster_;
  std::vector<std::array<std::uint32_t, 2>> events_;
};

// One layer of a plan. Events are held open by a computation of no duration, so that they fire also
// where a rank has nothing to receive.
class LayerBuilder {
 public:
  LayerBuilder(ProgramBuilder& builder, const LayerPlan& plan, const PayloadSizes& sizes,
               const Cluster* cluster)
      : builder_(builder), plan_(plan), sizes_(sizes), cluster_(cluster) {}

  // `enter[r]` fires when rank r reaches the layer. Returns the events of the layer's end.
  std::vector<std::uint32_t> add(const std::vector<std::uint32_t>& enter) {
    const std::vector<std::uint32_t> received = events_after(enter);
    const std::vector<std::uint32_t> done = events_after(received);
    if (plan_.stages.size() == 1) {
      add_flat(plan_.stages[0], enter, received, done);
    } else {
      add_two_level(plan_.stages[0], plan_.stages[1], enter, received, done);
    }
    return done;
  }

 private:
  std::vector<std::uint32_t> events_after(const std::vector<std::uint32_t>& earlier) {
    std::vector<std::uint32_t> events(earlier.size());
    for (std::uint32_t rank = 0; rank < earlier.size(); ++rank) {
      events[rank] = builder_.add_event();
      builder_.add_compute(rank, 0.0, earlier[rank], Signals(&events[rank], 1));
    }
    return events;
  }

  // A transfer, or nothing for rows that stay on their rank.
  void dispatch(const Stage& stage, std::size_t i, std::uint32_t waits_for, Signals signals) {
    if (stage.src[i] == stage.dst[i]) return;
    const auto bytes = static_cast<double>(dispatch_bytes(stage, i, sizes_).value);
    builder_.add_transfer(stage.src[i], stage.dst[i], bytes, waits_for, signals);
  }
  void combine(const Stage& stage, std::size_t i, std::uint32_t waits_for, Signals signals) {
    if (stage.src[i] == stage.dst[i]) return;
    const auto bytes = static_cast<double>(combine_bytes(stage, i, sizes_).value);
    builder_.add_transfer(stage.dst[i], stage.src[i], bytes, waits_for, signals);
  }

  Starts starts(const Stage& stage, bool back, std::span<const std::uint32_t> ready) {
    std::vector<PhaseSend> sends;
    for (std::size_t i = 0; cluster_ != nullptr && i < stage.num_transfers(); ++i) {
      if (stage.src[i] == stage.dst[i]) continue;
      const Bytes bytes = back ? combine_bytes(stage, i, sizes_) : dispatch_bytes(stage, i, sizes_);
      sends.push_back({back ? stage.dst[i] : stage.src[i], back ? stage.src[i] : stage.dst[i],
                       static_cast<double>(bytes.value)});
    }
    return Starts(builder_, cluster_, sends, ready);
  }

  void add_flat(const Stage& stage, const std::vector<std::uint32_t>& enter,
                const std::vector<std::uint32_t>& received,
                const std::vector<std::uint32_t>& done) {
    const Starts out = starts(stage, false, enter);
    const Starts back = starts(stage, true, received);
    for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
      dispatch(stage, i, out.of(stage.src[i], stage.dst[i]), Signals(&received[stage.dst[i]], 1));
    }
    for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
      combine(stage, i, back.of(stage.dst[i], stage.src[i]), Signals(&done[stage.src[i]], 1));
    }
  }

  void add_two_level(const Stage& between, const Stage& inside,
                     const std::vector<std::uint32_t>& enter,
                     const std::vector<std::uint32_t>& received,
                     const std::vector<std::uint32_t>& done) {
    // Per transfer between nodes: its rows are there; the results they gave are back there. The
    // latter is also held open by the former, so that it fires where nothing went further.
    std::vector<std::uint32_t> arrived(between.num_transfers());
    std::vector<std::uint32_t> gathered(between.num_transfers());
    const Starts out = starts(between, false, enter);
    const Starts back = starts(inside, true, received);
    for (std::size_t i = 0; i < between.num_transfers(); ++i) {
      gathered[i] = builder_.add_event();
      arrived[i] = enter[between.src[i]];
      if (between.src[i] != between.dst[i]) {
        arrived[i] = builder_.add_event();
        const std::array<std::uint32_t, 2> signals{arrived[i], received[between.dst[i]]};
        dispatch(between, i, out.of(between.src[i], between.dst[i]), signals);
      }
      builder_.add_compute(between.dst[i], 0.0, arrived[i], Signals(&gathered[i], 1));
    }
    for (std::size_t i = 0; i < inside.num_transfers(); ++i) {
      dispatch(inside, i, arrived[inside.parent[i]], Signals(&received[inside.dst[i]], 1));
    }
    for (std::size_t i = 0; i < inside.num_transfers(); ++i) {
      const Signals parent(&gathered[inside.parent[i]], 1);
      if (inside.src[i] == inside.dst[i]) {
        builder_.add_compute(inside.src[i], 0.0, received[inside.dst[i]], parent);
      } else {
        combine(inside, i, back.of(inside.dst[i], inside.src[i]), parent);
      }
    }
    for (std::size_t i = 0; i < between.num_transfers(); ++i) {
      const Signals end(&done[between.src[i]], 1);
      if (between.src[i] == between.dst[i]) {
        builder_.add_compute(between.src[i], 0.0, gathered[i], end);
      } else {
        combine(between, i, gathered[i], end);
      }
    }
  }

  ProgramBuilder& builder_;
  const LayerPlan& plan_;
  const PayloadSizes& sizes_;
  const Cluster* cluster_;
};

}  // namespace

Program traffic_program(const TrafficMatrix& traffic, const Cluster* cluster) {
  ProgramBuilder builder;
  builder.reserve(traffic.entries.size(), 0);
  std::map<double, std::vector<PhaseSend>> sends;
  for (const TrafficEntry& entry : traffic.entries) {
    if (entry.src == entry.dst) continue;
    sends[entry.start_s].push_back({entry.src, entry.dst, static_cast<double>(entry.bytes)});
  }
  std::map<double, Starts> starts;
  for (const auto& [start_s, phase] : sends) {
    std::uint32_t event = kStartEvent;
    if (start_s > 0.0) {
      event = builder.add_event();
      builder.add_compute(phase.front().src, start_s, kStartEvent, Signals(&event, 1));
    }
    const std::vector<std::uint32_t> ready(traffic.num_ranks, event);
    starts.emplace(start_s, Starts(builder, cluster, phase, ready));
  }
  for (const TrafficEntry& entry : traffic.entries) {
    if (entry.src == entry.dst) continue;
    builder.add_transfer(entry.src, entry.dst, static_cast<double>(entry.bytes),
                         starts.at(entry.start_s).of(entry.src, entry.dst), {});
  }
  return std::move(builder).finish();
}

Program plan_communication(const DispatchPlan& plan, const Cluster* cluster) {
  ProgramBuilder builder;
  const PayloadSizes sizes = plan.sizes();
  std::vector<std::uint32_t> enter;
  for (const LayerPlan& layer : plan.layers) {
    if (enter.empty()) enter.assign(layer.num_ranks, kStartEvent);
    if (enter.size() != layer.num_ranks) {
      throw InputError(fmt::format("plan, layer {}", layer.layer),
                       fmt::format("{} ranks", layer.num_ranks),
                       fmt::format("{} as in its first layer", enter.size()));
    }
    enter = LayerBuilder(builder, layer, sizes, cluster).add(enter);
  }
  return std::move(builder).finish();
}

std::vector<double> rank_finish_s(const Program& program, const Execution& execution,
                                  std::uint32_t num_ranks) {
  std::vector<double> finish(num_ranks, 0.0);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op)) continue;
    for (const std::uint32_t rank : {program.src[op], program.dst[op]}) {
      finish[rank] = std::max(finish[rank], execution.finish_s[op]);
    }
  }
  return finish;
}

}  // namespace coterie
