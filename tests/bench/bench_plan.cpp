// Plans one layer for 1,024 ranks x 4,096 tokens x top-8 of 1,024 experts (33.5 million entries)
// with every policy, on one core. Baseline, measured in the same run: one pass that sums the
// routing's bytes, the least that any planner must do. Prints medians of the given number of
// repetitions (default 5) and the peak of the process's memory, routing included.
//
//   build/release/bin/bench_plan [REPETITIONS]

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <vector>

#include "core/random.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "workloads/plan/plan.hpp"

namespace {

using namespace coterie;

constexpr std::uint32_t kNumRanks = 1024;
constexpr std::uint32_t kTokensPerRank = 4096;
constexpr std::uint32_t kNumExperts = 1024;
constexpr std::uint32_t kNumTopk = 8;
constexpr std::uint32_t kRanksPerNode = 8;

Routing uniform_routing() {
  Routing routing;
  routing.num_experts = kNumExperts;
  routing.num_topk = kNumTopk;
  routing.layers = {0};
  const std::uint64_t num_tokens = std::uint64_t{kNumRanks} * kTokensPerRank;
  for (std::uint32_t rank = 0; rank <= kNumRanks; ++rank) {
    routing.sequence_begin.push_back(std::uint64_t{rank} * kTokensPerRank);
  }
  routing.experts.resize(num_tokens * kNumTopk);
  Random random(1);
  for (std::uint64_t token = 0; token < num_tokens; ++token) {
    ExpertIdx* const experts = routing.experts.data() + token * kNumTopk;
    for (std::uint32_t j = 0; j < kNumTopk;) {
      const auto expert = static_cast<ExpertIdx>(random.index(kNumExperts));
      if (std::find(experts, experts + j, expert) == experts + j) experts[j++] = expert;
    }
  }
  return routing;
}

struct Cost {
  double wall_s = 0.0;
  double cpu_s = 0.0;  // what counts on a machine that others use too; all work is on one thread
};

template <class Work>
Cost median_cost(int repetitions, const Work& work) {
  std::vector<double> wall, cpu;
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t cpu_start = std::clock();
    work();
    cpu.push_back(static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
    wall.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return {median(std::move(wall)), median(std::move(cpu))};
}

double peak_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1024.0 * 1024.0);  // Linux counts KiB
}

}  // namespace

int main(int argc, char** argv) {
  const int repetitions = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
  const Routing routing = uniform_routing();
  LayerPlacement placement;
  placement.rank_experts.resize(kNumRanks);
  for (std::uint32_t expert = 0; expert < kNumExperts; ++expert) {
    placement.rank_experts[expert * kNumRanks / kNumExperts].push_back(
        static_cast<ExpertIdx>(expert));
  }
  const RankTokens tokens = deal_tokens(routing, kNumRanks, std::nullopt, SequenceDeal::kInOrder);

  std::uint64_t sum = 0;
  const Cost baseline = median_cost(repetitions, [&] {
    const auto bytes = std::as_bytes(std::span(routing.experts));
    std::uint64_t pass = 0;
    for (const std::byte byte : bytes) pass += static_cast<std::uint64_t>(byte);
    sum += pass;
  });

  coterie::Table table{{"plan", "wall", "CPU", "entries/s (CPU)", "x baseline", "peak so far"}, {}};
  const double entries = static_cast<double>(routing.experts.size());
  const auto add = [&](const std::string& name, const Cost& cost) {
    table.rows.push_back({name, fmt::format("{:.3f} s", cost.wall_s),
                          fmt::format("{:.3f} s", cost.cpu_s),
                          fmt::format("{:.1f} M", entries / cost.cpu_s / 1e6),
                          fmt::format("{:.1f}", cost.cpu_s / baseline.cpu_s),
                          fmt::format("{:.2f} GiB", peak_gib())});
  };
  add("one pass over the routing", baseline);
  std::size_t num_transfers = 0;
  for (const PlanDetail detail : {PlanDetail::kCounts, PlanDetail::kRows}) {
    for (const DispatchPolicy policy :
         {DispatchPolicy::kDedup, DispatchPolicy::kHierarchical, DispatchPolicy::kStandard}) {
      const Cost cost = median_cost(repetitions, [&] {
        const LayerPlan plan =
            make_plan(routing, 0, placement, tokens, {policy, kRanksPerNode, detail});
        num_transfers = plan.stages[0].num_transfers();
      });
      add(to_string(policy) + (detail == PlanDetail::kRows ? "" : ", counts only"), cost);
    }
  }
  fmt::print("{} ranks x {} tokens x top-{} of {} experts; median of {}\n\n{}", kNumRanks,
             kTokensPerRank, kNumTopk, kNumExperts, repetitions, coterie::render(table));
  return sum > 0 && num_transfers > 0 ? 0 : 1;
}
