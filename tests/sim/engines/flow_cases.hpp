#pragma once
// The cases on which the flow engine is compared with SimGrid: by the test of their agreement and
// by the benchmark's table of errors.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/random.hpp"
#include "sim/program/layer_program.hpp"
#include "sim/program/program.hpp"
#include "topologies/network.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/plan/payload.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/plan/plan_file.hpp"
#include "workloads/trace/generate.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie::testing {

enum class Pattern : std::uint8_t {
  kEqual,          // every pair the same size
  kLogNormal,      // sigma 1
  kSkewed,         // log-normal, and receivers of log-normal popularity: hot ranks
  kIncast,         // everybody to rank 0, log-normal
  kUnequal,        // sizes spread over eight orders of magnitude, a third of the pairs silent
  kGroups,         // groups of 8 ranks, interleaved over the cluster, log-normal
  kDedup,          // dispatch and combine of a planned layer
  kHierarchical,   // the same in two levels
  kTrace,          // dispatch and combine of one layer of a real trace, dedup
  kTraceTwoLevel,  // the same in two levels
  kOverlap,        // log-normal, beside kernels of the same GPUs (overlapping_program)
  kFailing         // log-normal, while links fail and recover
};

// What every transfer of a case costs besides its links: a silent time that depends on its size, a
// cap on small ones, and a queue per GPU and tier. The values are of the size that libraries show;
// they need only be the same for all engines.
struct SendRules {
  std::uint32_t places = kUnlimitedPlaces;
  double small_s = 0.0;                                        // silent time up to 64 KiB
  double large_s = 0.0;                                        // and above
  double small_cap = std::numeric_limits<double>::infinity();  // bytes per second, up to 64 KiB
};
inline constexpr SendRules kBare{};
inline constexpr SendRules kBareQueue{8};
inline constexpr SendRules kTypical{8, 5e-6, 10e-6};
inline constexpr SendRules kCapped{8, 5e-6, 10e-6, 2e10};

struct FlowCase {
  std::string topology;
  SendRules rules;
  std::uint32_t num_ranks = 8;
  Pattern pattern = Pattern::kLogNormal;
  double mean_bytes = 1e6;
  [[nodiscard]] std::string name() const {
    constexpr const char* kNames[] = {"equal",   "log-normal",       "skewed",  "incast",
                                      "unequal", "groups",           "dedup",   "hierarchical",
                                      "trace",   "trace, two-level", "overlap", "failing"};
    std::string text = topology;
    if (rules.places != kUnlimitedPlaces)
      text += ", " + std::to_string(rules.places) + " in flight";
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

// Adds transfers under one set of rules.
class Sender {
 public:
  Sender(ProgramBuilder& builder, const Network& network, const SendRules& rules)
      : builder_(builder), network_(network), rules_(rules) {}

  void send(std::uint32_t src, std::uint32_t dst, double bytes, std::uint32_t waits_for,
            std::span<const std::uint32_t> signals, std::span<const std::uint32_t> uses = {}) {
    const bool small = bytes <= 65536.0;
    Operation transfer{.src = src, .dst = dst, .amount = bytes};
    transfer.duration = small ? rules_.small_s : rules_.large_s;
    if (small) transfer.rate_cap = builder_.add_rate_cap(rules_.small_cap);
    transfer.queue = queue(src, network_.tier(GpuId{src}, GpuId{dst}));
    transfer.waits_for = waits_for;
    transfer.signals = signals;
    transfer.uses = uses;
    builder_.add(transfer);
  }

 private:
  std::uint32_t queue(std::uint32_t gpu, Tier tier) {
    if (rules_.places == kUnlimitedPlaces) return kFreeQueue;
    const std::size_t slot = 2 * std::size_t{gpu} + (tier == Tier::kNetwork ? 1 : 0);
    queues_.resize(std::max(queues_.size(), slot + 1), kFreeQueue);
    if (queues_[slot] == kFreeQueue) queues_[slot] = builder_.add_queue(rules_.places);
    return queues_[slot];
  }

  ProgramBuilder& builder_;
  const Network& network_;
  SendRules rules_;
  std::vector<std::uint32_t> queues_;  // [2 * GPU + tier]
};

// All entries leave at the start.
inline Program traffic_of(const TrafficMatrix& traffic, const Network& network,
                          const SendRules& rules) {
  ProgramBuilder builder;
  Sender sender(builder, network, rules);
  for (const TrafficEntry& entry : traffic.entries) {
    if (entry.src == entry.dst) continue;
    sender.send(entry.src, entry.dst, static_cast<double>(entry.bytes), kStartEvent, {});
  }
  return std::move(builder).finish();
}

// Dispatch and combine of one layer whose rank r is GPU first_gpu + r. A rank combines when all
// that was dispatched to it is there; in two levels rows are forwarded when their transfer between
// the nodes has arrived, and return when all results for it are together. Computations of no
// duration hold events open where a rank has nothing to receive.
inline void add_layer(ProgramBuilder& builder, Sender& sender, const LayerPlan& plan,
                      const PayloadSizes& sizes, std::uint32_t first_gpu) {
  using Signals = std::span<const std::uint32_t>;
  const auto gpu = [&](std::uint32_t rank) { return first_gpu + rank; };
  const auto out = [&](const Stage& stage, std::size_t i, std::uint32_t after, Signals signals) {
    const auto bytes = static_cast<double>(dispatch_bytes(stage, i, sizes).value);
    if (stage.src[i] == stage.dst[i]) {
      builder.add_compute(gpu(stage.src[i]), 0.0, after, signals);
    } else {
      sender.send(gpu(stage.src[i]), gpu(stage.dst[i]), bytes, after, signals);
    }
  };
  const auto back = [&](const Stage& stage, std::size_t i, std::uint32_t after, Signals signals) {
    const auto bytes = static_cast<double>(combine_bytes(stage, i, sizes).value);
    if (stage.src[i] == stage.dst[i]) {
      builder.add_compute(gpu(stage.src[i]), 0.0, after, signals);
    } else {
      sender.send(gpu(stage.dst[i]), gpu(stage.src[i]), bytes, after, signals);
    }
  };
  std::vector<std::uint32_t> received(plan.num_ranks);
  for (std::uint32_t rank = 0; rank < plan.num_ranks; ++rank) {
    received[rank] = builder.add_event();
    builder.add_compute(gpu(rank), 0.0, kStartEvent, Signals(&received[rank], 1));
  }
  const Stage& first = plan.stages[0];
  if (plan.stages.size() == 1) {
    for (std::size_t i = 0; i < first.num_transfers(); ++i) {
      out(first, i, kStartEvent, Signals(&received[first.dst[i]], 1));
    }
    for (std::size_t i = 0; i < first.num_transfers(); ++i) {
      back(first, i, received[first.dst[i]], {});
    }
    return;
  }
  const Stage& second = plan.stages[1];
  std::vector<std::uint32_t> arrived(first.num_transfers());
  std::vector<std::uint32_t> gathered(first.num_transfers());
  for (std::size_t i = 0; i < first.num_transfers(); ++i) {
    arrived[i] = builder.add_event();
    gathered[i] = builder.add_event();
    const std::uint32_t signals[]{arrived[i], received[first.dst[i]]};
    out(first, i, kStartEvent, signals);
    builder.add_compute(gpu(first.dst[i]), 0.0, arrived[i], Signals(&gathered[i], 1));
  }
  for (std::size_t i = 0; i < second.num_transfers(); ++i) {
    out(second, i, arrived[second.parent[i]], Signals(&received[second.dst[i]], 1));
  }
  for (std::size_t i = 0; i < second.num_transfers(); ++i) {
    back(second, i, received[second.dst[i]], Signals(&gathered[second.parent[i]], 1));
  }
  for (std::size_t i = 0; i < first.num_transfers(); ++i) back(first, i, gathered[i], {});
}

// Transfers that load the memories of both GPUs, beside a chain of kernels on each. A kernel moves
// bytes and occupies multiprocessors, in two parallel parts. Until all that a GPU sends has arrived,
// its sends hold 24 of 132 multiprocessors; each kernel in four holds 90 for itself and takes a
// while, and so waits for others of its kind.
inline Program overlapping_program(const TrafficMatrix& traffic, const Network& network,
                                   const SendRules& rules) {
  ProgramBuilder builder;
  Sender sender(builder, network, rules);
  Random random(traffic.num_ranks);
  std::vector<std::uint32_t> memory, sms, sent;
  for (std::uint32_t gpu = 0; gpu < traffic.num_ranks; ++gpu) {
    memory.push_back(builder.add_resource(fmt::format("gpu {} memory", gpu), 1e11));
    sms.push_back(builder.add_resource(fmt::format("gpu {} multiprocessors", gpu), 132.0));
    sent.push_back(builder.add_event());
    builder.add_hold(
        {sms[gpu], 24.0, builder.add_compute(gpu, 1e-6, kStartEvent, {{sent[gpu]}}), sent[gpu]});
  }
  for (const TrafficEntry& entry : traffic.entries) {
    const std::uint32_t uses[]{memory[entry.src], memory[entry.dst]};
    sender.send(entry.src, entry.dst, static_cast<double>(entry.bytes), kStartEvent,
                {{sent[entry.src]}}, uses);
  }
  for (std::uint32_t gpu = 0; gpu < traffic.num_ranks; ++gpu) {
    std::uint32_t ready = kStartEvent;
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t done = builder.add_event();
      Operation part{.src = gpu, .dst = gpu, .duration = 3e-6, .waits_for = ready};
      part.signals = std::span(&done, 1);
      if (i % 4 == 0) {
        part.duration = 2e-5 * random.uniform();
        builder.add_hold({sms[gpu], 90.0, builder.add(part), done});
      } else {
        part.amount = std::round(1e7 * random.uniform());
        part.uses = std::span(&memory[gpu], 1);
        builder.add(part);
        part.amount = 132.0 * 5e-5 * random.uniform();
        part.uses = std::span(&sms[gpu], 1);
        builder.add(part);
      }
      if (i % 2 == 1) ready = done;  // two at a time
    }
  }
  return std::move(builder).finish();
}

// One link in eight fails at some time and has half its bandwidth when it is back.
inline Program failing_program(const TrafficMatrix& traffic, const Network& network,
                               const SendRules& rules) {
  ProgramBuilder builder;
  Sender sender(builder, network, rules);
  Random random(traffic.num_ranks);
  for (const TrafficEntry& entry : traffic.entries) {
    sender.send(entry.src, entry.dst, static_cast<double>(entry.bytes), kStartEvent, {});
  }
  for (std::uint32_t link = 0; link < network.links().size(); ++link) {
    if (random.index(8) != 0) continue;
    const double down_s = 5e-4 * random.uniform();
    builder.add_change({down_s, link, 0.0});
    builder.add_change({down_s + 2e-4, link, 0.5 * network.links()[link].bandwidth.value});
  }
  return std::move(builder).finish();
}

inline std::optional<Program> make_program(const FlowCase& item, const Network& network,
                                           const std::filesystem::path& shared_data) {
  const auto planned = [&](const Routing& routing, DispatchPolicy policy) {
    ProgramBuilder builder;
    Sender sender(builder, network, item.rules);
    const DispatchPlan plan = plan_one_layer(routing, item.num_ranks, policy);
    add_layer(builder, sender, plan.layers[0], plan.sizes(), 0);
    return std::move(builder).finish();
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
    case Pattern::kOverlap:
      return overlapping_program(
          make_traffic(item.pattern, item.num_ranks, item.mean_bytes, item.num_ranks), network,
          item.rules);
    case Pattern::kFailing:
      return failing_program(
          make_traffic(item.pattern, item.num_ranks, item.mean_bytes, item.num_ranks), network,
          item.rules);
    default:
      return traffic_of(make_traffic(item.pattern, item.num_ranks, item.mean_bytes, item.num_ranks),
                        network, item.rules);
  }
}

inline Network make_network(const FlowCase& item) {
  return Network(load_cluster(item.topology, {}, item.num_ranks));
}

// All fabrics, flat and two-level, equal, log-normal, skewed and real sizes, incast,
// oversubscription and groups, 8 to 128 ranks.
inline std::vector<FlowCase> flow_cases() {
  using enum Pattern;
  return {
      {"star", kBare, 8, kEqual},
      {"star", kBare, 8, kLogNormal},
      {"star", kBare, 16, kSkewed},
      {"star", kBare, 32, kLogNormal},
      {"star", kBare, 32, kIncast},
      {"star", kBare, 32, kUnequal},
      {"star", kBare, 48, kSkewed},
      {"star", kBareQueue, 32, kLogNormal},
      {"star", kBareQueue, 64, kLogNormal},
      {"star", kBareQueue, 64, kSkewed},
      {"star", kBareQueue, 64, kGroups},
      {"star", kBareQueue, 128, kIncast},
      {"star", kBareQueue, 128, kGroups},
      {"h100_node", kTypical, 8, kEqual},
      {"h100_node", kTypical, 8, kLogNormal},
      {"h100_node", kCapped, 8, kSkewed, 1e4},
      {"b200_node", kTypical, 8, kUnequal},
      {"a6000_pcie_4", kTypical, 4, kLogNormal},
      {"l40s_pcie_8", kTypical, 8, kLogNormal},
      {"l40s_pcie_8", kCapped, 8, kSkewed, 3e4},
      {"gb200_nvl72", kTypical, 64, kLogNormal},
      {"nvl72_multi_rack", kTypical, 64, kDedup},
      {"h100_rail_8x8", kTypical, 64, kLogNormal},
      {"h100_rail_8x8", kTypical, 64, kDedup},
      {"h100_rail_8x8", kTypical, 64, kHierarchical},
      {"h100_rail_8x8", kTypical, 64, kGroups},
      {"h100_rail_8x8", kTypical, 64, kTrace},
      {"h100_rail_8x8", kTypical, 64, kTraceTwoLevel},
      {"h100_rail_optimised", kTypical, 16, kLogNormal},
      {"h100_rail_optimised", kTypical, 32, kSkewed},
      {"h100_rail_optimised", kTypical, 64, kIncast},
      {"h100_rail_optimised", kTypical, 64, kEqual},
      {"h100_rail_optimised", kTypical, 32, kTrace},
      {"h100_rail_only", kTypical, 32, kHierarchical},
      {"h100_rail_only", kTypical, 32, kLogNormal},
      {"h100_leaf_spine_2to1", kTypical, 32, kLogNormal},
      {"h100_leaf_spine_2to1", kTypical, 64, kDedup},
      {"h100_leaf_spine_2to1", kTypical, 64, kHierarchical},
      {"h100_leaf_spine_2to1", kTypical, 128, kGroups},
      {"h100_fat_tree", kTypical, 32, kLogNormal},
      {"h100_fat_tree", kTypical, 64, kSkewed},
      {"h100_fat_tree", kTypical, 64, kTraceTwoLevel},
      {"h100_dragonfly", kTypical, 32, kLogNormal},
      {"h100_dragonfly", kTypical, 64, kGroups},
      {"h100_dragonfly", kTypical, 64, kTrace},
      {"h100_torus", kTypical, 32, kLogNormal},
      {"h100_torus", kTypical, 64, kHierarchical},
      {"h100_torus", kTypical, 64, kSkewed},
      {"b200_rail_optimised", kTypical, 32, kTraceTwoLevel},
      {"h100_rail_optimised", kTypical, 128, kHierarchical},
      {"h100_fat_tree", kTypical, 128, kGroups, 1e5},
      {"star", kBare, 16, kOverlap},
      {"star", kBareQueue, 32, kFailing},
      {"h100_node", kTypical, 8, kOverlap},
      {"h100_node", kCapped, 8, kFailing, 3e7},
      {"h100_rail_optimised", kTypical, 32, kOverlap},
      {"h100_leaf_spine_2to1", kTypical, 64, kOverlap, 1e5},
      {"h100_leaf_spine_2to1", kTypical, 64, kFailing},
      {"h100_fat_tree", kTypical, 32, kFailing},
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
