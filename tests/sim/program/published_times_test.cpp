// Hierarchical dispatch and combine against the times that DeepEP publishes for its normal kernels
// on H800 nodes (its README: 4,096 tokens per GPU, hidden 7168, top-8 of 256 experts on at most
// 4 nodes, FP8 dispatch, BF16 combine): 43, 58 and 51 GB/s for the dispatch at EP 16,
// 32 and 64, and 43, 57 and 50 GB/s for the combine. These are logical bandwidths: the rows of every
// node that a token touches, its own included, over the time.
//
// Two constants describe the hardware, both physical rates that DeepEP reports: 134 GB/s over NVLink
// and 44 GB/s per NIC. Nothing is fitted.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "sim/engines/engine.hpp"
#include "sim/program/layer_program.hpp"
#include "topologies/network.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/trace/generate.hpp"

namespace coterie::testing {
namespace {

constexpr std::uint32_t kTokens = 4096;
constexpr std::uint32_t kHidden = 7168;

struct Published {
  std::uint32_t num_ranks;
  double dispatch_rate, combine_rate;  // bytes per second, logical
};

class DeepEp : public ::testing::TestWithParam<Published> {};

// As its test draws it (tests/test_internode.py): the nodes are the groups, of which a token uses the
// best 4 at most, judged by their best expert.
Routing routing(std::uint32_t num_nodes) {
  WorkloadSpec spec;
  spec.name = "published times";
  spec.seed = 1;
  spec.num_experts = 256;
  spec.num_topk = 8;
  spec.layers = {3};
  spec.num_sequences = 64;
  spec.min_tokens = spec.max_tokens = kTokens;
  spec.kind = GroupLimitedKind{num_nodes, std::min(num_nodes, 4U), GroupScore::kBestOne};
  return generate(spec);
}

struct Times {
  double dispatch_s = 0.0;  // until the last row has arrived
  double combine_s = 0.0;   // from then on
};
Times simulate(const LayerPlan& plan, const PayloadSizes& sizes, const Network& network) {
  const LayerSetup setup{{&plan, 1}, sizes, std::nullopt, {}, {}};
  const LayerProgram program = build_layer(setup, network.cluster());
  const Execution execution = run_engine("flow", resolve(program.program, network), {});
  Times times;
  for (std::size_t op = 0; op < program.phase.size(); ++op) {
    if (program.phase[op] == Phase::kDispatch || program.phase[op] == Phase::kForward) {
      times.dispatch_s = std::max(times.dispatch_s, execution.finish_s[op]);
    }
  }
  times.combine_s = execution.makespan_s - times.dispatch_s;
  return times;
}

TEST_P(DeepEp, PublishedTimes) {
  const std::uint32_t num_ranks = GetParam().num_ranks;
  const Routing trace = routing(num_ranks / 8);
  LayerPlacement placement;
  placement.layer = 3;
  placement.rank_experts.resize(num_ranks);
  for (std::uint32_t expert = 0; expert < 256; ++expert) {
    placement.rank_experts[expert * num_ranks / 256].push_back(static_cast<ExpertIdx>(expert));
  }
  const RankTokens tokens = deal_tokens(trace, num_ranks, kTokens, SequenceDeal::kRoundRobin);
  const Bytes fp8 = row_payload(PayloadType::kFp8, kHidden);
  const Bytes bf16 = row_payload(PayloadType::kBf16, kHidden);
  // Rounds of about 1 MiB, the default of an experiment.
  const auto rows_per_round = static_cast<std::uint32_t>((1 << 20) / fp8.value);
  const LayerPlan plan =
      make_plan(trace, 0, placement, tokens,
                {DispatchPolicy::kHierarchical, 8, PlanDetail::kCounts, rows_per_round});
  const Network network(load_cluster(
      "{extends: h800_rail_optimised, scale_up: {injection: {rank_bandwidth: 134 GB/s}},"
      " nic: {injection: {rank_bandwidth: 44 GB/s}}}",
      {}, num_ranks));

  const double rows = fan_out(trace, 0, placement, 8, tokens).fanout_nodes * kTokens;
  const double published_dispatch =
      rows * static_cast<double>(fp8.value) / GetParam().dispatch_rate;
  const double published_combine = rows * static_cast<double>(bf16.value) / GetParam().combine_rate;
  // One direction each. Ranks whose rows are all there would start their combine while others still
  // wait; with rows of no bytes on the way out, all start at nearly the same time.
  const double dispatch = simulate(plan, {fp8, bf16}, network).dispatch_s;
  const double combine = simulate(plan, {Bytes{0}, bf16}, network).combine_s;
  RecordProperty("dispatch", std::to_string(dispatch / published_dispatch - 1.0));
  RecordProperty("combine", std::to_string(combine / published_combine - 1.0));
  std::printf(
      "EP %u: dispatch %.0f us, published %.0f (%+.1f %%); combine %.0f us, %.0f (%+.1f %%)\n",
      num_ranks, dispatch * 1e6, published_dispatch * 1e6,
      100.0 * (dispatch / published_dispatch - 1.0), combine * 1e6, published_combine * 1e6,
      100.0 * (combine / published_combine - 1.0));
  // A relay waits for a round of all its sources, where DeepEP forwards each source's tokens.
  EXPECT_NEAR(dispatch / published_dispatch, 1.0, 0.12);
  EXPECT_NEAR(combine / published_combine, 1.0, 0.10);
}

INSTANTIATE_TEST_SUITE_P(H800, DeepEp,
                         ::testing::Values(Published{16, 43e9, 43e9}, Published{32, 58e9, 57e9},
                                           Published{64, 51e9, 50e9}),
                         [](const auto& instance) {
                           return "Ep" + std::to_string(instance.param.num_ranks);
                         });

}  // namespace
}  // namespace coterie::testing
