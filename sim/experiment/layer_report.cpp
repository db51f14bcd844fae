#include "sim/experiment/layer_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "core/metrics.hpp"
#include "workloads/run_report.hpp"

namespace coterie {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool is_transfer_phase(Phase phase) {
  return phase == Phase::kDispatch || phase == Phase::kForward || phase == Phase::kGather ||
         phase == Phase::kCombine;
}

std::uint32_t num_ranks(const LayerRun& run) {
  std::uint32_t sum = 0;
  for (const LayerPlan& plan : run.setup.groups) sum += plan.num_ranks;
  return sum;
}

std::vector<PhaseTimes> phase_times(const LayerRun& run) {
  const Program& program = run.layer.program;
  const std::size_t ranks = num_ranks(run);
  std::vector<PhaseTimes> phases(kNumPhases);
  for (int i = 0; i < kNumPhases; ++i) {
    PhaseTimes& times = phases[static_cast<std::size_t>(i)];
    times.phase = static_cast<Phase>(i);
    times.begin_s.assign(ranks, kInfinity);
    times.end_s.assign(ranks, -kInfinity);
  }
  const auto extend = [&](PhaseTimes& times, std::uint32_t rank, std::size_t op) {
    times.begin_s[rank] = std::min(times.begin_s[rank], run.execution.start_s[op] + run.shift_s);
    times.end_s[rank] = std::max(times.end_s[rank], run.execution.finish_s[op] + run.shift_s);
  };
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (run.layer.between[op]) continue;
    PhaseTimes& times = phases[static_cast<std::size_t>(run.layer.phase[op])];
    // The wait for the barrier is part of the notify step: from the rank's arrival on.
    extend(times, program.src[op], op);
    if (program.is_transfer(op)) extend(times, program.dst[op], op);
  }
  // Where ranks come late, the first operation is their arrival, which lasts from zero.
  PhaseTimes& notify = phases[static_cast<std::size_t>(Phase::kNotify)];
  for (std::size_t rank = 0; rank < run.setup.ready_s.size(); ++rank) {
    notify.begin_s[rank] = run.setup.ready_s[rank] + run.shift_s;
  }
  // A rank that skips a phase passes it at the end of the one before.
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    double last_s = 0.0;
    for (PhaseTimes& times : phases) {
      if (times.begin_s[rank] > times.end_s[rank]) {
        times.begin_s[rank] = times.end_s[rank] = last_s;
      }
      last_s = times.end_s[rank];
    }
  }
  const bool two_level = std::any_of(run.setup.groups.begin(), run.setup.groups.end(),
                                     [](const LayerPlan& plan) { return plan.stages.size() > 1; });
  if (!two_level) {
    std::erase_if(phases, [](const PhaseTimes& times) {
      return times.phase == Phase::kForward || times.phase == Phase::kGather;
    });
  }
  return phases;
}

// Rows that stay on their rank are in the plan but may not be in the program.
void add_local_rows(const LayerRun& run, TransferSums& sums) {
  const PayloadSizes& sizes = run.setup.sizes;
  std::uint32_t first_gpu = 0;
  for (const LayerPlan& plan : run.setup.groups) {
    for (const Stage& stage : plan.stages) {
      for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
        if (stage.src[i] != stage.dst[i]) continue;
        const std::uint32_t gpu = first_gpu + stage.src[i];
        const auto add = [&](Phase phase, Bytes bytes) {
          sums.add(
              {phase, to_string(Tier::kLocal), gpu, gpu, stage.num_rows[i], bytes.value, {}, {}});
        };
        add(stage.out, dispatch_bytes(stage, i, sizes));
        add(stage.back, combine_bytes(stage, i, sizes));
      }
    }
    first_gpu += plan.num_ranks;
  }
}

std::vector<TransferGroup> transfer_groups(const LayerRun& run) {
  const Program& program = run.layer.program;
  TransferSums sums(num_ranks(run));
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op)) continue;
    const Tier tier = run.resolved.network.tier(GpuId{program.src[op]}, GpuId{program.dst[op]});
    TransferSums::Transfer transfer{run.layer.phase[op],
                                    to_string(tier),
                                    program.src[op],
                                    program.dst[op],
                                    run.layer.num_rows[op],
                                    std::llround(program.amount[op]),
                                    {},
                                    {}};
    if (run.times_known) {
      transfer.begin_s = run.execution.start_s[op] + run.shift_s;
      transfer.end_s = run.execution.finish_s[op] + run.shift_s;
    }
    sums.add(transfer);
  }
  add_local_rows(run, sums);
  return sums.take();
}

// The links among the capacities that an operation's amount flows over: they come first.
std::span<const std::uint32_t> links_of(const LayerRun& run, std::size_t op) {
  const std::span<const std::uint32_t> route = run.resolved.routes.of(op);
  const auto num_links = static_cast<std::uint32_t>(run.resolved.network.links().size());
  const auto end = std::find_if(route.begin(), route.end(),
                                [&](std::uint32_t capacity) { return capacity >= num_links; });
  return route.first(static_cast<std::size_t>(end - route.begin()));
}

std::vector<double> link_bytes(const LayerRun& run) {
  std::vector<double> bytes(run.resolved.network.links().size(), 0.0);
  for (std::size_t op = 0; op < run.layer.program.num_ops(); ++op) {
    for (const std::uint32_t link : links_of(run, op)) {
      bytes[link] += run.layer.program.amount[op];
    }
  }
  return bytes;
}

// Links by the time their bytes take, longest first, ties by position; those in use only.
std::vector<std::uint32_t> busiest_links(const LayerRun& run, const std::vector<double>& bytes) {
  std::vector<std::uint32_t> order;
  for (std::uint32_t link = 0; link < bytes.size(); ++link) {
    if (bytes[link] > 0.0) order.push_back(link);
  }
  const auto seconds = [&](std::uint32_t link) {
    return bytes[link] / run.resolved.network.links()[link].bandwidth.value;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return seconds(a) > seconds(b); });
  return order;
}

// Length of the union of the times in which transfers are under way.
double time_with_traffic(const LayerRun& run) {
  std::vector<std::pair<double, double>> spans;
  for (std::size_t op = 0; op < run.layer.program.num_ops(); ++op) {
    if (run.layer.program.is_transfer(op)) {
      spans.emplace_back(run.execution.start_s[op], run.execution.finish_s[op]);
    }
  }
  std::sort(spans.begin(), spans.end());
  double sum = 0.0;
  double until = -kInfinity;
  for (const auto& [begin, end] : spans) {
    sum += std::max(0.0, end - std::max(begin, until));
    until = std::max(until, end);
  }
  return sum;
}

std::optional<LinkLoad> busiest_link(const LayerRun& run) {
  const std::vector<double> bytes = link_bytes(run);
  const std::vector<std::uint32_t> order = busiest_links(run, bytes);
  if (order.empty()) return std::nullopt;
  const Link& link = run.resolved.network.links()[order.front()];
  LinkLoad load;
  load.name = link.name;
  load.tier = to_string(link.tier);
  load.bytes = std::llround(bytes[order.front()]);
  const double seconds = run.times_known ? time_with_traffic(run) : 0.0;
  if (seconds > 0.0) load.utilization = bytes[order.front()] / (link.bandwidth.value * seconds);
  return load;
}

}  // namespace

LayerReport report_layer(const LayerRun& run) {
  LayerReport report;
  report.layer = run.setup.groups.front().layer;
  report.time_s = run.execution.makespan_s + run.shift_s;
  if (run.times_known) {
    report.phases = phase_times(run);
    for (const PhaseTimes& times : report.phases) {
      if (times.phase != Phase::kMerge) continue;
      report.combine_ready_s = combine_ready_s(run.setup.groups, times.end_s);
    }
  }
  report.groups = transfer_groups(run);
  report.busiest_link = busiest_link(run);
  return report;
}

std::vector<double> rank_ends(const LayerRun& run) {
  std::vector<double> ends(num_ranks(run), -kInfinity);
  const Program& program = run.layer.program;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (run.layer.phase[op] == Phase::kSum) {
      double& end_s = ends[program.src[op]];
      end_s = std::max(end_s, run.execution.finish_s[op] + run.shift_s);
    }
  }
  return ends;
}

Timeline layer_timeline(const LayerRun& run, const LayerReport& report, std::size_t num_links,
                        std::size_t num_bins) {
  Timeline timeline;
  const std::size_t ranks = num_ranks(run);
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    for (const PhaseTimes& times : report.phases) {
      if (times.end_s[rank] <= times.begin_s[rank]) continue;
      const std::string name = to_string(times.phase);
      const std::string track = is_transfer_phase(times.phase)
                                    ? fmt::format("rank {} {}", rank, name)
                                    : fmt::format("rank {}", rank);
      timeline.spans.push_back({"ranks", track, name, times.begin_s[rank], times.end_s[rank]});
    }
  }

  std::vector<std::uint32_t> links = busiest_links(run, link_bytes(run));
  links.resize(std::min(links.size(), num_links));
  std::vector<std::size_t> row_of(run.resolved.network.links().size(), links.size());
  for (std::size_t row = 0; row < links.size(); ++row) row_of[links[row]] = row;
  const double first_s = run.shift_s;
  const double bin_s = run.execution.makespan_s / static_cast<double>(num_bins);
  if (links.empty() || bin_s <= 0.0) return timeline;
  std::vector<double> bytes(links.size() * num_bins, 0.0);
  const Program& program = run.layer.program;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op) || program.amount[op] <= 0.0) continue;
    // Evenly from the end of its silence to its last byte; its rate in between is not recorded.
    const double finish_s = run.execution.finish_s[op];
    const double begin_s =
        std::min(run.execution.start_s[op] + run.resolved.routes.delay_s[op], finish_s);
    const double length_s = std::max(finish_s - begin_s, 1e-15);
    const auto bin_of = [&](double time_s) {
      return std::min(static_cast<std::size_t>(std::max(time_s, 0.0) / bin_s), num_bins - 1);
    };
    for (const std::uint32_t link : links_of(run, op)) {
      if (row_of[link] == links.size()) continue;
      for (std::size_t bin = bin_of(begin_s); bin <= bin_of(finish_s); ++bin) {
        const double from = std::max(begin_s, static_cast<double>(bin) * bin_s);
        const double to = std::min(begin_s + length_s, static_cast<double>(bin + 1) * bin_s);
        if (to > from) {
          bytes[row_of[link] * num_bins + bin] += program.amount[op] * (to - from) / length_s;
        }
      }
    }
  }
  for (std::size_t row = 0; row < links.size(); ++row) {
    const std::string& name = run.resolved.network.links()[links[row]].name;
    double last = -1.0;
    for (std::size_t bin = 0; bin < num_bins; ++bin) {
      const double value = bytes[row * num_bins + bin] / bin_s * 1e-9;
      if (value == last) continue;  // a counter keeps its value
      last = value;
      timeline.samples.push_back(
          {"links", name, first_s + static_cast<double>(bin) * bin_s, value, "GB/s"});
    }
    timeline.samples.push_back({"links", name, first_s + run.execution.makespan_s, 0.0, "GB/s"});
  }
  return timeline;
}

}  // namespace coterie
