#pragma once
// Layers so small that every time in them is counted by hand, in whole nanoseconds. The tests of
// the layer program derive the times; those of the report read them.
//
// Hardware, per GPU:
//   memory        10 B/ns reachable (20 GB/s at an efficiency of one half); a launch takes 500 ns
//   products      12 flop/ns
//   NIC           1 B/ns each way; a route is two links of 1000 ns
//   NVLink        2 B/ns each way; likewise two links of 1000 ns
//   notify        3000 ns
//
// Rows have 500 values in BF16, 1000 B both ways. In the dispatch a row carries 4 B and every copy
// that it serves 8 B more: 1012 B for one copy, 1020 B for two.
//
// An expert's MLP has intermediate size 10: 6 * 500 * 10 = 30000 flop per token, thus 2500 ns, and
// 3 * 500 * 10 * 2 = 30000 B of weights, 2000 B of rows and 2 * 10 * 2 = 40 B of activations per
// token over the memory. The larger counts:
//   one token     2500 ns of arithmetic, 32040 B = 3204 ns of memory    3204 ns
//   two tokens    5000 ns,               34080 B = 3408 ns              5000 ns
// and the two launches of the grouped products, 1000 ns, once.

#include <cmath>
#include <ostream>
#include <vector>

#include "sim/engines/engine.hpp"
#include "sim/program/layer_program.hpp"
#include "tests/sim/engines/networks.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie::testing {

inline ModelShape small_model() {
  ModelShape model;
  model.name = "small";
  model.hidden = 500;
  model.expert_intermediate = 10;
  model.num_experts = 4;
  model.num_topk = 2;
  return model;
}

inline GpuModel small_gpu() {
  GpuModel gpu;
  gpu.name = "small";
  gpu.bf16_peak = ComputeRate{24e9};
  gpu.fp8_peak = ComputeRate{48e9};
  gpu.compute_efficiency = 0.5;
  gpu.memory_bandwidth = Bandwidth{20e9};
  gpu.memory_efficiency = 0.5;
  gpu.num_sms = 4;
  gpu.kernel_launch = Seconds{500e-9};
  return gpu;
}

// Nodes of one or two GPUs. Of a rank's messages one is under way at a time on each tier.
inline Cluster small_cluster(std::uint32_t num_nodes, std::uint32_t gpus_per_node) {
  Cluster cluster = two_tiers(num_nodes, gpus_per_node, 1e9, 2e9, 1e-6);
  cluster.gpu = small_gpu();
  cluster.nic->injection.sends_in_flight = 1;
  cluster.scale_up->injection.sends_in_flight = 1;
  if (gpus_per_node == 1) cluster.scale_up.reset();
  cluster.overheads.notify = Seconds{3000e-9};
  return cluster;
}

// Expert e stands on rank e * num_ranks / 4. `tokens` are the experts of every rank's tokens.
inline LayerPlan small_plan(const std::vector<std::vector<std::vector<ExpertIdx>>>& tokens,
                            DispatchPolicy policy, std::uint32_t ranks_per_node,
                            std::optional<std::uint32_t> rows_per_round = std::nullopt) {
  const auto num_ranks = static_cast<std::uint32_t>(tokens.size());
  Routing routing;
  routing.num_experts = 4;
  routing.num_topk = static_cast<std::uint32_t>(tokens.front().front().size());
  routing.layers = {7};
  RankTokens owned;
  owned.token_begin = {0};
  for (const auto& of_rank : tokens) {
    for (const std::vector<ExpertIdx>& experts : of_rank) {
      owned.trace_token.push_back(owned.trace_token.size());
      routing.experts.insert(routing.experts.end(), experts.begin(), experts.end());
    }
    owned.token_begin.push_back(owned.trace_token.size());
  }
  routing.sequence_begin = {0, owned.trace_token.size()};
  LayerPlacement placement;
  placement.layer = 7;
  placement.rank_experts.resize(num_ranks);
  for (std::uint32_t expert = 0; expert < 4; ++expert) {
    placement.rank_experts[expert * num_ranks / 4].push_back(static_cast<ExpertIdx>(expert));
  }
  return make_plan(routing, 0, placement, owned,
                   {policy, ranks_per_node, PlanDetail::kRows, rows_per_round});
}

// A layer executed.
class SmallLayer {
 public:
  SmallLayer(std::vector<LayerPlan> plans, Cluster cluster, ModelShape model = small_model(),
             std::vector<double> ready_s = {}, TransportChoice transport = {"ideal", {}},
             PayloadType dispatched = PayloadType::kBf16, Bytes dispatch_row = Bytes{1000})
      : plans_(std::move(plans)),
        model_(std::move(model)),
        network_(std::move(cluster)),
        setup_{plans_,
               {dispatch_row, Bytes{1000}},
               LayerKernels{model_, dispatched},
               std::move(transport),
               std::move(ready_s)},
        layer_(build_layer(setup_, network_.cluster())),
        resolved_(resolve(layer_.program, network_)),
        execution_(run_flow(resolved_, {.relative_precision = 0.0})) {}
  SmallLayer(const SmallLayer&) = delete;
  SmallLayer& operator=(const SmallLayer&) = delete;

  [[nodiscard]] const LayerSetup& setup() const { return setup_; }
  [[nodiscard]] const LayerProgram& layer() const { return layer_; }
  [[nodiscard]] const ResolvedProgram& resolved() const { return resolved_; }
  [[nodiscard]] const Execution& execution() const { return execution_; }

 private:
  const std::vector<LayerPlan> plans_;
  const ModelShape model_;
  const Network network_;
  const LayerSetup setup_;
  const LayerProgram layer_;
  const ResolvedProgram resolved_;
  const Execution execution_;
};

inline long long nanoseconds(double seconds) {
  const double ns = seconds * 1e9;
  EXPECT_NEAR(ns, std::round(ns), 1e-3) << "not a whole number of nanoseconds";
  return std::llround(ns);
}

// An operation with its times, nanoseconds.
struct Timed {
  std::uint32_t src = 0, dst = 0;
  long long begin = 0, end = 0;
  friend bool operator==(const Timed&, const Timed&) = default;
};
inline void PrintTo(const Timed& timed, std::ostream* out) {
  *out << timed.src << "->" << timed.dst << " " << timed.begin << ".." << timed.end;
}

// Calibrated kernels of our runtime: 1000 ns, 10 ns per row, 50 ns per copy of a row where an index
// reads them, 10 B/ns; 100 ns for every event; own results copied in 200 ns and at 10 B/ns.
inline Cluster with_row_kernels(Cluster cluster) {
  const KernelCosts kernel{
      Seconds{1000e-9}, Seconds{10e-9}, Seconds{50e-9}, Bandwidth{10e9}, {}, {}};
  const KernelCosts own_copy{Seconds{200e-9}, {}, {}, Bandwidth{10e9}, {}, {}};
  cluster.gpu.kernels =
      RowKernels{kernel, kernel, kernel, kernel, kernel, kernel, own_copy, {}, {}, Seconds{100e-9}};
  return cluster;
}

// Two ranks on two nodes, de-duplicated. Rank 0 hosts experts 0 and 1 and owns tokens a {0, 2} and
// b {2, 3}; rank 1 hosts 2 and 3 and owns c {0, 3}.
//   rows        0 -> 0: a            0 -> 1: a, b (three copies)
//               1 -> 1: c            1 -> 0: c
// One shared expert, computed by every rank for its own tokens.
inline SmallLayer two_ranks_dedup(const Cluster& cluster = small_cluster(2, 1),
                                  const TransportChoice& transport = {"ideal", {}}) {
  ModelShape model = small_model();
  model.num_shared_experts = 1;
  model.shared_intermediate = 10;
  return SmallLayer({small_plan({{{0, 2}, {2, 3}}, {{0, 3}}}, DispatchPolicy::kDedup, 1)}, cluster,
                    model, {}, transport);
}

// Two nodes of two ranks, one expert on each rank, hierarchical in two rounds of one token. Rank 0
// owns both: a {1, 3} goes in round 0, b {2, 3} in round 1. Rank 0 serves nothing; the others own
// nothing. Rank 2 is the relay of node 1, rank 0 that of its own.
//   to relays   0 -> 0 round 0: a    0 -> 2 round 0: a    0 -> 2 round 1: b (two copies)
//   forwarded   0 -> 1 round 0: a    2 -> 3 round 0: a    2 -> 2 and 2 -> 3 round 1: b
inline SmallLayer relay_with_two_rounds(const Cluster& cluster = small_cluster(2, 2)) {
  return SmallLayer(
      {small_plan({{{1, 3}, {2, 3}}, {}, {}, {}}, DispatchPolicy::kHierarchical, 2, 1)}, cluster);
}

}  // namespace coterie::testing
