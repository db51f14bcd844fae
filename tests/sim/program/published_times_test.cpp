// Hierarchical dispatch and combine against the times that DeepEP publishes for its normal kernels
// on H800 nodes (its README: 4,096 tokens per GPU, hidden 7168, top-8 of 256 experts in 8 groups of
// which a token uses 4, FP8 dispatch, BF16 combine): 43, 58 and 51 GB/s for the dispatch at EP 16,
// 32 and 64, and 43, 57 and 50 GB/s for the combine. These are logical bandwidths: the rows of every
// node that a token touches, its own included, over the time.
//
// Two constants describe the hardware, both physical rates that DeepEP reports: 134 GB/s over NVLink
// and 44 GB/s per NIC. Nothing is fitted.

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>

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

Routing routing() {
  WorkloadSpec spec;
  spec.name = "DeepEP's own test: the best 4 of 8 groups by their best expert";
  spec.seed = 1;
  spec.num_experts = 256;
  spec.num_topk = 8;
  spec.layers = {3};
  spec.num_sequences = 64;
  spec.min_tokens = spec.max_tokens = kTokens;
  spec.kind = GroupLimitedKind{8, 4, GroupScore::kBestOne};
  return generate(spec);
}

double seconds(const LayerPlan& plan, const PayloadSizes& sizes, const Network& network) {
  LayerSetup setup{{&plan, 1}, sizes, std::nullopt, {}, {}};
  const LayerProgram program = build_layer(setup, network.cluster());
  return run_engine("flow", resolve(program.program, network), {}).makespan_s;
}

TEST_P(DeepEp, PublishedTimes) {
  const std::uint32_t num_ranks = GetParam().num_ranks;
  const Routing trace = routing();
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

  const double rows =
      fan_out(trace, 0, placement, 8, tokens).fanout_nodes * kTokens;
  const double published_dispatch =
      rows * static_cast<double>(fp8.value) / GetParam().dispatch_rate;
  const double published_combine =
      rows * static_cast<double>(bf16.value) / GetParam().combine_rate;
  // One direction each: rows of no bytes the other way leave metadata alone, 0.2 percent.
  const double dispatch = seconds(plan, {fp8, Bytes{0}}, network);
  const double combine = seconds(plan, {Bytes{0}, bf16}, network);
  RecordProperty("dispatch", std::to_string(dispatch / published_dispatch - 1.0));
  RecordProperty("combine", std::to_string(combine / published_combine - 1.0));
  std::printf("EP %u: dispatch %.0f us, published %.0f (%+.1f %%); combine %.0f us, %.0f (%+.1f %%)\n",
              num_ranks, dispatch * 1e6, published_dispatch * 1e6,
              100.0 * (dispatch / published_dispatch - 1.0), combine * 1e6,
              published_combine * 1e6, 100.0 * (combine / published_combine - 1.0));
  EXPECT_NEAR(dispatch / published_dispatch, 1.0, 0.10);
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
