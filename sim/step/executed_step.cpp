#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/error.hpp"
#include "sim/step/changing_links.hpp"
#include "sim/step/execution.hpp"
#include "sim/step/parallel.hpp"
#include "sim/step/step_times.hpp"

namespace coterie {
namespace {

std::string joined(std::string_view part, const std::string& pass) {
  return pass.empty() ? std::string(part) : fmt::format("{} {}", part, pass);
}

// What the first ranks do: kernels on a track of their own, and for every kind of communication a track
// with the times in which the rank sends or receives anything of it.
Timeline rank_timeline(const StepProgram& block, const Execution& execution,
                       std::uint32_t num_ranks) {
  constexpr std::uint32_t kMostRanks = 64;
  const std::uint32_t shown = std::min(num_ranks, kMostRanks);
  Timeline out;
  using Interval = std::pair<double, double>;
  // By rank, part and pass.
  std::map<std::tuple<std::uint32_t, StepPart, std::uint32_t>, std::vector<Interval>> transfers;
  for (std::size_t op = 0; op < block.program.num_ops(); ++op) {
    const StepPart part = block.part[op];
    if (part == StepPart::kWait) continue;
    const Interval interval{execution.start_s[op], execution.finish_s[op]};
    if (interval.second <= interval.first) continue;
    const std::uint32_t src = block.program.src[op];
    const std::uint32_t dst = block.program.dst[op];
    const std::uint32_t work = block.work[op];
    if (computes(part)) {
      if (src >= shown) continue;
      out.spans.push_back({"ranks", fmt::format("rank {}", src),
                           joined(to_string(part), block.works[work].name), interval.first,
                           interval.second});
      continue;
    }
    if (src < shown) transfers[{src, part, work}].push_back(interval);
    if (dst < shown && dst != src) transfers[{dst, part, work}].push_back(interval);
  }
  for (auto& [key, intervals] : transfers) {
    std::sort(intervals.begin(), intervals.end());
    const auto& [rank, part, work] = key;
    const StepWork& pass = block.works[work];
    const std::string track = fmt::format("rank {} {}", rank, joined(to_string(part), pass.lane));
    const std::string name = joined(to_string(part), pass.name);
    const auto add = [&](const Interval& all) {
      out.spans.push_back({"communication", track, name, all.first, all.second});
    };
    Interval all = intervals.front();
    for (const Interval& next : intervals) {
      if (next.first > all.second) {
        add(all);
        all = next;
      }
      all.second = std::max(all.second, next.second);
    }
    add(all);
  }
  return out;
}

// For which a transfer stood still on a failed link. Ends the step where a timeout does.
double longest_stall(const Executed& executed, const RouteTimes& routes,
                     const std::vector<Failure>& failures, const StepOptions& options) {
  if (failures.empty()) return 0.0;
  std::map<std::uint32_t, std::vector<Failure>> by_link;
  for (const Failure& failure : failures) by_link[failure.link].push_back(failure);
  double longest_s = 0.0;
  std::optional<std::pair<double, std::string>> first;  // that times out: when, and what
  const Program& program = executed.block.program;
  std::vector<LinkId> route;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op)) continue;
    const GpuId src{program.src[op]};
    const GpuId dst{program.dst[op]};
    for (std::size_t i = 0; i < routes.all().size(); ++i) {
      // While it is under way and has these routes.
      const Network& network = *routes.all()[i].network;
      const double begin_s = std::max(executed.execution.start_s[op], routes.all()[i].from_s);
      const double end_s = std::min(executed.execution.finish_s[op], routes.until_s(i));
      if (begin_s >= end_s) continue;
      route.clear();
      network.append_route(src, dst, flow_key(src.value, dst.value, network.num_gpus()), route);
      for (const LinkId link : route) {
        const auto found = by_link.find(link.value);
        if (found == by_link.end()) continue;
        for (const Failure& failure : found->second) {
          const double from_s = std::max(begin_s, failure.from_s);
          const double stall_s = std::min(end_s, failure.until_s) - from_s;
          longest_s = std::max(longest_s, stall_s);
          if (stall_s <= options.timeout_s || (first && first->first <= from_s)) continue;
          first.emplace(from_s,
                        fmt::format("a transfer from GPU {} to GPU {} over the failed link \"{}\"",
                                    src.value, dst.value, network.links()[link.value].name));
        }
      }
    }
  }
  if (first) time_out(first->first, options, first->second);
  return longest_s;
}

}  // namespace

bool reroutes_under_way(const StepOptions& options) {
  if (!options.reroute_after_s) return false;
  const std::vector<Failure> failures = failures_of(options.changes);
  return std::any_of(failures.begin(), failures.end(), [](const Failure& failure) {
    return failure.from_s > 0.0 || !std::isinf(failure.until_s);
  });
}

StepTimes execute_step(const StepSetup& setup, const Network& network, const StepOptions& options) {
  expect_times(options.engine);
  if (reroutes_under_way(options) && options.engine != "flow") {
    throw InputError(
        "disturbances.reroute",
        fmt::format("engine {} for an executed step whose routes change under way", options.engine),
        "engine flow, the composed method, or failures of the whole step");
  }
  std::vector<Failure> failures = failures_of(options.changes);
  const RouteTimes routes(network, failures, options);
  StepOptions with_ends = options;
  for (Failure& failure : failures) {
    if (!std::isinf(failure.until_s) || std::isinf(options.timeout_s)) continue;
    // Longer than anything may wait, so that the execution ends.
    failure.until_s = failure.from_s + 2.0 * options.timeout_s;
    with_ends.changes.push_back(
        {failure.until_s, failure.link, network.links()[failure.link].bandwidth.value});
  }
  const Executed executed = execute(build_step(setup), routes.first(), with_ends, routes.later());
  const double stall_s = longest_stall(executed, routes, failures, options);
  const std::uint32_t num_ranks = setup.step.parallel.num_ranks();
  const BlockTimes times =
      measure_block(executed.block, executed.execution, setup.cluster, 0, num_ranks);
  StepTimes out = times_of(times, setup.cluster);
  out.longest_stall_s = stall_s;
  // In a pipeline the wait is mostly that for other stages.
  if (setup.step.parallel.pp > 1) {
    std::swap(out.parts[static_cast<std::size_t>(StepPart::kBubble)],
              out.parts[static_cast<std::size_t>(StepPart::kWait)]);
  }
  out.bubble_s = out.parts[static_cast<std::size_t>(StepPart::kBubble)];
  for (std::size_t i = 0; i < kNumStepParts; ++i) {
    if (out.parts[i] <= 0.0) continue;
    out.critical_path.push_back(
        {std::string(to_string(static_cast<StepPart>(i))), out.parts[i], 1});
  }
  if (options.timeline) {
    out.timeline = rank_timeline(executed.block, executed.execution, num_ranks);
  }
  out.num_blocks = 1;
  out.num_operations = executed.block.program.num_ops();
  return out;
}

}  // namespace coterie
