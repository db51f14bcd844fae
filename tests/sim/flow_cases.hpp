#pragma once
// The cases on which the flow engine is compared with SimGrid: by the test of their agreement and
// by the benchmark's table of errors.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "core/random.hpp"
#include "sim/program/traffic_program.hpp"
#include "topologies/network.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/plan/plan_file.hpp"
#include "workloads/trace/generate.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie::testing {

enum class Pattern : std::uint8_t {
  kEqual,         // every pair the same size
  kLogNormal,     // sigma 1
  kSkewed,        // log-normal, and receivers of log-normal popularity: hot ranks
  kIncast,        // everybody to rank 0, log-normal
  kUnequal,       // sizes spread over eight orders of magnitude, a third of the pairs silent
  kGroups,        // groups of 8 ranks, interleaved over the cluster, log-normal
  kDedup,         // dispatch and combine of a planned layer
  kHierarchical,  // the same in two levels
  kTrace,         // dispatch and combine of one layer of a real trace, dedup
  kTraceTwoLevel  // the same in two levels
};

struct FlowCase {
  std::string topology;
  std::vector<std::string> overrides;
  std::uint32_t num_ranks = 8;
  Pattern pattern = Pattern::kLogNormal;
  double mean_bytes = 1e6;
  [[nodiscard]] std::string name() const {
    constexpr const char* kNames[] = {"equal",   "log-normal",      "skewed", "incast",
                                      "unequal", "groups",          "dedup",  "hierarchical",
                                      "trace",   "trace, two-level"};
    std::string text = topology;
    for (const std::string& item : overrides) text += " " + item;
    return text + ", " + std::to_string(num_ranks) + " ranks, " +
           kNames[static_cast<std::size_t>(pattern)];
  }
};

inline void PrintTo(const FlowCase& item, std::ostream* out) {
  *out << item.name();
}

inline TrafficMatrix make_traffic(Pattern pattern, std::uint32_t num_ranks, double mean_bytes,
                                  std::uint64_t seed) {
  TrafficMatrix traffic;
  traffic.num_ranks = num_ranks;
  Random random(seed);
  std::vector<double> popularity(num_ranks, 1.0);
  if (pattern == Pattern::kSkewed) {
    for (double& p : popularity) p = std::exp(0.7 * random.normal());
  }
  const std::uint32_t num_groups = std::max(1U, num_ranks / 8);
  for (std::uint32_t src = 0; src < num_ranks; ++src) {
    for (std::uint32_t step = 1; step < num_ranks; ++step) {
      const std::uint32_t dst = (src + step) % num_ranks;
      double bytes = mean_bytes;
      if (pattern != Pattern::kEqual) bytes *= std::exp(random.normal()) * popularity[dst];
      if (pattern == Pattern::kUnequal) {
        bytes = mean_bytes * std::pow(10.0, -7.0 + 8.0 * random.uniform());
        if (random.index(3) == 0) continue;
      }
      if (pattern == Pattern::kIncast && dst != 0) continue;
      if (pattern == Pattern::kGroups && src % num_groups != dst % num_groups) continue;
      traffic.entries.push_back({src, dst, std::max<std::int64_t>(1, std::llround(bytes)), 0.0});
    }
  }
  return traffic;
}

// One layer of DeepSeek-V2-Lite's shape: 64 experts, top-6, hidden 2048, contiguous placement.
inline DispatchPlan plan_one_layer(const Routing& routing, std::uint32_t num_ranks,
                                   DispatchPolicy policy) {
  LayerPlacement placement;
  placement.layer = routing.layers[0];
  placement.rank_experts.resize(num_ranks);
  for (std::uint32_t expert = 0; expert < routing.num_experts; ++expert) {
    placement.rank_experts[std::uint64_t{expert} * num_ranks / routing.num_experts].push_back(
        static_cast<ExpertIdx>(expert));
  }
  const RankTokens tokens = deal_tokens(routing, num_ranks, 512, SequenceDeal::kRoundRobin);
  DispatchPlan plan;
  plan.hidden = 2048;
  plan.layers.push_back(make_plan(routing, 0, placement, tokens, {policy, 8, PlanDetail::kCounts}));
  return plan;
}

inline Routing synthetic_routing() {
  WorkloadSpec spec;
  spec.name = "zipf";
  spec.seed = 7;
  spec.num_experts = 64;
  spec.num_topk = 6;
  spec.layers = {1};
  spec.num_sequences = 128;
  spec.min_tokens = 32;
  spec.max_tokens = 256;
  spec.kind = ZipfKind{0.6};
  return generate(spec);
}

// Nothing where the recorded trace is not there.
inline std::optional<Routing> recorded_routing(const std::filesystem::path& shared_data) {
  const auto path = shared_data / "traces/deepseek-v2-lite-esft/law.npz";
  if (!std::filesystem::exists(path)) return std::nullopt;
  const std::vector<std::filesystem::path> inputs{path};
  return std::get<Routing>(import_traces(inputs, "npz", {}).trace);
}

inline std::optional<Program> make_program(const FlowCase& item,
                                           const std::filesystem::path& shared_data) {
  const auto planned = [&](const Routing& routing, DispatchPolicy policy) {
    return plan_communication(plan_one_layer(routing, item.num_ranks, policy));
  };
  switch (item.pattern) {
    case Pattern::kDedup:
      return planned(synthetic_routing(), DispatchPolicy::kDedup);
    case Pattern::kHierarchical:
      return planned(synthetic_routing(), DispatchPolicy::kHierarchical);
    case Pattern::kTrace:
    case Pattern::kTraceTwoLevel: {
      const std::optional<Routing> routing = recorded_routing(shared_data);
      if (!routing) return std::nullopt;
      return planned(*routing, item.pattern == Pattern::kTrace ? DispatchPolicy::kDedup
                                                               : DispatchPolicy::kHierarchical);
    }
    default:
      return traffic_program(
          make_traffic(item.pattern, item.num_ranks, item.mean_bytes, item.num_ranks));
  }
}

inline Network make_network(const FlowCase& item) {
  std::vector<Override> overrides;
  for (const std::string& text : item.overrides) overrides.push_back(parse_override(text));
  return Network(load_cluster(item.topology, overrides, item.num_ranks));
}

// All fabrics, flat and two-level, equal, log-normal, skewed and real sizes, incast,
// oversubscription and groups, 8 to 128 ranks.
inline std::vector<FlowCase> flow_cases() {
  using enum Pattern;
  const std::string w8 = "nic.injection.sends_in_flight=8";
  return {
      {"star", {}, 8, kEqual},
      {"star", {}, 8, kLogNormal},
      {"star", {}, 16, kSkewed},
      {"star", {}, 32, kLogNormal},
      {"star", {}, 32, kIncast},
      {"star", {}, 32, kUnequal},
      {"star", {}, 48, kSkewed},
      {"star", {w8}, 32, kLogNormal},
      {"star", {w8}, 64, kLogNormal},
      {"star", {w8}, 64, kSkewed},
      {"star", {w8}, 64, kGroups},
      {"star", {w8}, 128, kIncast},
      {"star", {w8}, 128, kGroups},
      {"h100_node", {}, 8, kEqual},
      {"h100_node", {}, 8, kLogNormal},
      {"h100_node", {}, 8, kSkewed, 1e4},
      {"b200_node", {}, 8, kUnequal},
      {"a6000_pcie_4", {}, 4, kLogNormal},
      {"l40s_pcie_8", {}, 8, kLogNormal},
      {"l40s_pcie_8", {}, 8, kSkewed, 3e4},
      {"gb200_nvl72", {}, 64, kLogNormal},
      {"nvl72_multi_rack", {}, 64, kDedup},
      {"h100_rail_8x8", {}, 64, kLogNormal},
      {"h100_rail_8x8", {}, 64, kDedup},
      {"h100_rail_8x8", {}, 64, kHierarchical},
      {"h100_rail_8x8", {}, 64, kGroups},
      {"h100_rail_8x8", {}, 64, kTrace},
      {"h100_rail_8x8", {}, 64, kTraceTwoLevel},
      {"h100_rail_optimised", {}, 16, kLogNormal},
      {"h100_rail_optimised", {}, 32, kSkewed},
      {"h100_rail_optimised", {}, 64, kIncast},
      {"h100_rail_optimised", {}, 64, kEqual},
      {"h100_rail_optimised", {}, 32, kTrace},
      {"h100_rail_only", {}, 32, kHierarchical},
      {"h100_rail_only", {}, 32, kLogNormal},
      {"h100_leaf_spine_2to1", {}, 32, kLogNormal},
      {"h100_leaf_spine_2to1", {}, 64, kDedup},
      {"h100_leaf_spine_2to1", {}, 64, kHierarchical},
      {"h100_leaf_spine_2to1", {}, 128, kGroups},
      {"h100_fat_tree", {}, 32, kLogNormal},
      {"h100_fat_tree", {}, 64, kSkewed},
      {"h100_fat_tree", {}, 64, kTraceTwoLevel},
      {"h100_dragonfly", {}, 32, kLogNormal},
      {"h100_dragonfly", {}, 64, kGroups},
      {"h100_dragonfly", {}, 64, kTrace},
      {"h100_torus", {}, 32, kLogNormal},
      {"h100_torus", {}, 64, kHierarchical},
      {"h100_torus", {}, 64, kSkewed},
      {"b200_rail_optimised", {}, 32, kTraceTwoLevel},
      {"h100_rail_optimised", {}, 128, kHierarchical},
      {"h100_fat_tree", {}, 128, kGroups, 1e5},
  };
}

struct Difference {
  double makespan = 0.0;  // relative, signed
  double rank = 0.0;      // largest relative difference of a rank's finish
};

inline Difference compare(const Program& program, const Execution& run, const Execution& reference,
                          std::uint32_t num_ranks) {
  const std::vector<double> a = rank_finish_s(program, run, num_ranks);
  const std::vector<double> b = rank_finish_s(program, reference, num_ranks);
  Difference out;
  if (reference.makespan_s > 0.0) out.makespan = run.makespan_s / reference.makespan_s - 1.0;
  for (std::size_t rank = 0; rank < b.size(); ++rank) {
    if (b[rank] > 0.0) out.rank = std::max(out.rank, std::abs(a[rank] / b[rank] - 1.0));
  }
  return out;
}

}  // namespace coterie::testing
