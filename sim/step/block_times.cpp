#include "sim/step/block_times.hpp"

#include <algorithm>

#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

// A part begins or ends.
struct Change {
  double time_s = 0.0;
  StepPart part = StepPart::kWait;
  int by = 0;
};

}  // namespace

BlockTimes& BlockTimes::operator+=(const BlockTimes& other) {
  time_s += other.time_s;
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i] += other.parts[i];
  compute_s += other.compute_s;
  communication_s += other.communication_s;
  exposed_s += other.exposed_s;
  scale_up_bytes += other.scale_up_bytes;
  network_bytes += other.network_bytes;
  return *this;
}

BlockTimes operator+(BlockTimes a, const BlockTimes& b) {
  return a += b;
}

BlockTimes operator*(BlockTimes times, double factor) {
  times.time_s *= factor;
  for (double& part : times.parts) part *= factor;
  times.compute_s *= factor;
  times.communication_s *= factor;
  times.exposed_s *= factor;
  times.scale_up_bytes *= factor;
  times.network_bytes *= factor;
  return times;
}

BlockTimes measure_block(const StepProgram& block, const Execution& execution,
                         const Cluster& cluster, std::uint32_t first_gpu, std::uint32_t num_gpus) {
  const Program& program = block.program;
  const auto inside = [&](std::uint32_t gpu) {
    return gpu >= first_gpu && gpu < first_gpu + num_gpus;
  };
  BlockTimes out;
  std::uint32_t critical = first_gpu;
  std::vector<double> sent[2], received[2];
  for (auto* list : {sent, received}) {
    for (std::size_t tier = 0; tier < 2; ++tier) list[tier].assign(num_gpus, 0.0);
  }
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    for (const std::uint32_t gpu : {program.src[op], program.dst[op]}) {
      if (!inside(gpu)) continue;
      const double finish_s = execution.finish_s[op];
      if (finish_s > out.time_s || (finish_s == out.time_s && gpu < critical)) {
        out.time_s = finish_s;
        critical = gpu;
      }
    }
    if (!program.is_transfer(op)) continue;
    const std::size_t tier =
        tier_of(cluster, program.src[op], program.dst[op]) == Tier::kScaleUp ? 0 : 1;
    if (inside(program.src[op])) sent[tier][program.src[op] - first_gpu] += program.amount[op];
    if (inside(program.dst[op])) received[tier][program.dst[op] - first_gpu] += program.amount[op];
  }
  const auto most = [&](std::size_t tier) {
    return num_gpus == 0
               ? 0.0
               : std::max(*std::max_element(sent[tier].begin(), sent[tier].end()),
                          *std::max_element(received[tier].begin(), received[tier].end()));
  };
  out.scale_up_bytes = most(0);
  out.network_bytes = most(1);

  std::vector<Change> changes;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (program.src[op] != critical && program.dst[op] != critical) continue;
    const StepPart part = block.part[op];
    if (part == StepPart::kWait || execution.finish_s[op] <= execution.start_s[op]) continue;
    changes.push_back({execution.start_s[op], part, 1});
    changes.push_back({execution.finish_s[op], part, -1});
  }
  std::stable_sort(changes.begin(), changes.end(),
                   [](const Change& a, const Change& b) { return a.time_s < b.time_s; });
  std::array<int, kNumStepParts> active{};
  double now_s = 0.0;
  const auto pass = [&](double until_s) {
    const double span_s = until_s - now_s;
    now_s = until_s;
    if (span_s <= 0.0) return;
    std::size_t part = static_cast<std::size_t>(StepPart::kWait);
    bool any_compute = false;
    bool any_communication = false;
    for (std::size_t i = active.size(); i-- > 0;) {
      if (active[i] <= 0) continue;
      part = i;  // computing parts come first and win
      any_compute = any_compute || computes(static_cast<StepPart>(i));
      any_communication = any_communication || communicates(static_cast<StepPart>(i));
    }
    out.parts[part] += span_s;
    if (any_compute) out.compute_s += span_s;
    if (any_communication) out.communication_s += span_s;
    if (any_communication && !any_compute) out.exposed_s += span_s;
  };
  for (const Change& change : changes) {
    pass(change.time_s);
    active[static_cast<std::size_t>(change.part)] += change.by;
  }
  pass(out.time_s);
  return out;
}

}  // namespace coterie
