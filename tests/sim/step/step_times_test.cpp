// Whole steps: both methods against each other, both engines, and what must hold of bubbles, exposed
// communication, slow GPUs and failing links.

#include "sim/step/step_times.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/results.hpp"
#include "sim/step/step_costs.hpp"
#include "tests/sim/step/whole_steps.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The composition leaves out what its header lists. Measured on these cases it is off by 0.0 percent where
// nothing overlaps, -0.4 percent with chunks or two stages and overlapped gradients, +1.4 percent with one
// stage and overlapped gradients, -1.0 to +0.9 percent with paired micro-batches and -2.6 percent
// where their chunks are a single layer.
TEST_F(WholeSteps, ComposedAgreesWithExecuted) {
  struct Expected {
    Case step;
    double tolerance;
  };
  const std::vector<Expected> cases{
      {{}, 0.02},
      {{.parallel = "{pp: 2, ep: 4}"}, 0.02},
      {{.parallel = "{pp: 4, ep: 2}", .batch = "{global: 32, micro: 1, sequence: 2048}"}, 0.02},
      {{.parallel = "{pp: 2, vp: 2, ep: 4}"}, 0.02},
      {{.parallel = "{tp: 2, pp: 1, ep: 8}"}, 0.02},
      {{.ranks = 16, .parallel = "{pp: 1, ep: 16}"}, 0.02},
      {{.ranks = 16, .parallel = "{pp: 2, ep: 8}", .overlap = "{gradient_reduction: true}"}, 0.02},
      {{.ranks = 16, .parallel = "{pp: 1, ep: 8}", .overlap = "{gradient_reduction: true}"}, 0.02},
      {{.ranks = 16,
        .parallel = "{pp: 2, ep: 8}",
        .overlap = "{micro_batches: 2, gradient_reduction: true, shared_expert: true}"},
       0.02},
      // Many pairs follow each other: four and sixteen micro-batches on two stages, and chunks.
      {{.ranks = 16,
        .parallel = "{pp: 2, ep: 8}",
        .batch = "{global: 32, micro: 1, sequence: 2048}",
        .overlap = "{micro_batches: 2, gradient_reduction: true, shared_expert: true}"},
       0.02},
      {{.ranks = 16,
        .parallel = "{pp: 2, ep: 8}",
        .batch = "{global: 128, micro: 1, sequence: 2048}",
        .overlap = "{micro_batches: 2, gradient_reduction: true, shared_expert: true}"},
       0.02},
      {{.ranks = 16,
        .parallel = "{pp: 2, vp: 2, ep: 8}",
        .batch = "{global: 64, micro: 1, sequence: 2048}",
        .overlap = "{micro_batches: 2, gradient_reduction: true, shared_expert: true}"},
       0.04},
      // With a host that is about as slow as the GPU.
      {{.extra = "  launch: {per_kernel: 25 us}"}, 0.02},
      {{.extra = "  launch: {per_kernel: 25 us}\n  recompute: full"}, 0.02},
      {{.ranks = 16,
        .parallel = "{pp: 2, ep: 8}",
        .overlap = "{micro_batches: 2, gradient_reduction: true, shared_expert: true}",
        .extra = "  launch: {per_kernel: 25 us}"},
       0.03},
      {{.ranks = 64,
        .parallel = "{pp: 2, ep: 16}",
        .batch = "{global: 64, micro: 1, sequence: 512}"},
       0.02},
  };
  for (const Expected& expected : cases) {
    const Case& c = expected.step;
    const double executed = run(c, StepMethod::kExecuted).time_s;
    const double composed = run(c, StepMethod::kComposed).time_s;
    RecordProperty(fmt::format("{} {} {}", c.ranks, c.parallel, c.overlap),
                   fmt::format("{:+.4f}", composed / executed - 1.0));
    EXPECT_NEAR(composed / executed, 1.0, expected.tolerance)
        << c.ranks << " GPUs, " << c.parallel << ", overlap " << c.overlap;
  }
}

TEST_F(WholeSteps, EnginesAgree) {
  for (const char* overlap : {"{}", "{micro_batches: 2, gradient_reduction: true}"}) {
    Case c{.ranks = 16, .parallel = "{pp: 2, ep: 8}", .overlap = overlap};
    const double flow = run(c, StepMethod::kExecuted).time_s;
    c.engine = "simgrid";
    EXPECT_NEAR(run(c, StepMethod::kExecuted).time_s / flow, 1.0, 0.01) << overlap;
  }
  // Over eight nodes, whose groups share spines.
  Case many{.ranks = 64,
            .topology = "{extends: h100_rail_optimised, fabric: {oversubscription: 2}}",
            .parallel = "{ep: 32}",
            .batch = "{tokens_per_gpu: 512, sequence: 512}",
            .kind = "prefill"};
  const double flow = run(many, StepMethod::kExecuted).time_s;
  many.engine = "simgrid";
  EXPECT_NEAR(run(many, StepMethod::kExecuted).time_s / flow, 1.0, 0.01);
}

// The parts, and the segments of the critical path, are a partition of the step.
TEST_F(WholeSteps, PartsAddUp) {
  for (const StepMethod method : {StepMethod::kExecuted, StepMethod::kComposed}) {
    for (const char* overlap : {"{}", "{micro_batches: 2, gradient_reduction: true}"}) {
      const StepReport step =
          run({.ranks = 16, .parallel = "{pp: 2, ep: 8}", .overlap = overlap}, method);
      double sum = 0.0;
      for (const auto& [name, seconds] : step.parts) {
        EXPECT_GE(seconds, -1e-12) << name;
        sum += seconds;
      }
      EXPECT_NEAR(sum, step.time_s, 1e-9);
      EXPECT_LE(step.exposed_communication_s, step.communication_s + 1e-12);
    }
  }
}

// Launches of the small model in BF16 on 8 ranks, 4 experts each, counted by hand:
//
//   forward    attention 7 (norm, product, positions of queries and of keys, attention, product,
//              residual), router 4 (norm, product, choice, residual), shared 3, experts 4 + 1 + 4,
//              rows 7                                                                    30 a layer
//   backward   gradients of inputs 7 + 4 + 3 + 9, rows 6 (counts are known), of weights
//              2 + 1 + 2 + 8                                                             42 a layer
//   ends       embedding 1 and 1, LM head with norm and loss 3 and 4                      9
//
// 4 * (30 + 42) + 9 = 297 per micro-batch. A host that is far slower than the GPU sets the passes:
// what is twice as slow takes 2 micro-batches * 297 launches * 10 ms more.
TEST_F(WholeSteps, SlowHostSetsThePasses) {
  for (const StepMethod method : {StepMethod::kExecuted, StepMethod::kComposed}) {
    const auto time = [&](const char* launch) {
      return run({.extra = fmt::format("  launch: {}", launch)}, method).time_s;
    };
    EXPECT_NEAR(time("{per_kernel: 20 ms}") - time("{per_kernel: 10 ms}"), 5.94, 1e-6);
    // Graphs of parts: a layer forward 1 + 1 + 3 + 9 and rows 6, backward 1 + 1 + 3 + 9, rows 6 and
    // 2 + 8 gradients of weights: 4 * (20 + 30) + 9 = 209.
    EXPECT_NEAR(time("{per_kernel: 20 ms, graphs: [attention, router, preprocess]}") -
                    time("{per_kernel: 10 ms, graphs: [attention, router, preprocess]}"),
                4.18, 1e-6);
  }
}

// Counted by hand. A list whose launches take 3 s and whose kernels take 1 s ends with the last launch, at
// 3 s; the next one, launched by 4 s, is computed from there on: 3 + 5 = 8 s, the sum of the longer of
// each and not the longer sum of 6 s. In the other order the host is ahead: 5 s, or 1 + 3 s, and 1 s more.
// After the host has waited for the GPU, it is ahead of nothing.
TEST(LaunchClock, AddsUpWhatComesInTurn) {
  LaunchClock host_first;
  host_first.add(3.0, 1.0);
  EXPECT_DOUBLE_EQ(host_first.now_s(), 3.0);
  host_first.add(1.0, 5.0);
  EXPECT_DOUBLE_EQ(host_first.now_s(), 8.0);
  LaunchClock gpu_first;
  gpu_first.add(1.0, 5.0);
  gpu_first.add(3.0, 1.0);
  EXPECT_DOUBLE_EQ(gpu_first.now_s(), 6.0);
  LaunchClock waits;
  waits.add(1.0, 5.0);
  waits.wait();
  waits.add(3.0, 1.0);
  EXPECT_DOUBLE_EQ(waits.now_s(), 8.0);
}

TEST_F(WholeSteps, FastHostAndGraphsCostNothing) {
  for (const StepMethod method : {StepMethod::kExecuted, StepMethod::kComposed}) {
    const double device = run({}, method).time_s;
    EXPECT_DOUBLE_EQ(run({.extra = "  launch: graph"}, method).time_s, device);
    EXPECT_NEAR(run({.extra = "  launch: {per_kernel: 1 ns}"}, method).time_s, device,
                1e-9 * device);
    EXPECT_GT(run({.extra = "  launch: {per_kernel: 1 ms}"}, method).time_s, device);
  }
}

TEST_F(WholeSteps, BadLaunchesAreRefused) {
  const auto message = [&](const Case& c) -> std::string {
    try {
      (void)load(c);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({.extra = "  launch: device"}),
              HasSubstr("host, graph or {per_kernel: TIME, graphs: [PARTS]}"));
  EXPECT_THAT(message({.extra = "  launch: {graphs: [experts]}"}), HasSubstr("preprocess"));
  EXPECT_THAT(message({.batch = "{tokens_per_gpu: 2048, sequence: 2048}",
                       .extra = "  launch: host",
                       .kind = "prefill"}),
              HasSubstr("no key `launch` when serving"));
}

// A pipeline of p equal stages and m micro-batches without communication is idle for
// (p-1)/(m+p-1) of the passes' time. Embedding and head of 1,024 tokens are negligible.
TEST_F(WholeSteps, BubbleHasItsKnownShare) {
  const Case c{.topology =
                   "{extends: h100_rail_optimised, scale_up: {bandwidth: 1e9 GB/s, "
                   "latency: 0 s, injection: {rank_bandwidth: none}}, nic: {bandwidth: 1e9 "
                   "GB/s, latency: 0 s, injection: {rank_bandwidth: none}}, fabric: "
                   "{hop_latency: 0 s}, overheads: {notify: 0 s}}",
               .parallel = "{pp: 4, ep: 2}",
               .batch = "{global: 16, micro: 1, sequence: 2048}",
               .extra = "transport: ideal"};
  const StepReport step = run(c, StepMethod::kComposed);
  const double passes =
      step.time_s - part(step, "gradients") - part(step, "optimizer") - part(step, "parameters");
  EXPECT_NEAR(step.bubble_s / passes, 3.0 / (8.0 + 3.0), 0.02);
}

// With infinite links and no fixed costs nothing is exposed.
TEST_F(WholeSteps, InfiniteLinksExposeNothing) {
  const Case c{.topology =
                   "{extends: h100_rail_optimised, scale_up: {bandwidth: 1e9 GB/s, "
                   "latency: 0 s, injection: {rank_bandwidth: none}}, nic: {bandwidth: "
                   "1e9 GB/s, latency: 0 s, injection: {rank_bandwidth: none}}, fabric: "
                   "{hop_latency: 0 s}, overheads: {notify: 0 s}, collectives: none}",
               .extra = "transport: ideal"};
  for (const StepMethod method : {StepMethod::kExecuted, StepMethod::kComposed}) {
    const StepReport step = run(c, method);
    EXPECT_LT(step.exposed_communication_s, 1e-6 * step.time_s);
  }
}

// All passes wait for the slowest GPU of their cell: most of what is no communication (three quarters
// of this step) takes twice as long.
TEST_F(WholeSteps, OneSlowGpuIsEverybodysTime) {
  const StepReport plain = run({}, StepMethod::kExecuted);
  const Case c{.extra = "disturbances: {slow: [{gpu: 3, factor: 2}]}"};
  const StepReport executed = run(c, StepMethod::kExecuted);
  EXPECT_GT(executed.time_s, 1.5 * plain.time_s);
  EXPECT_LT(executed.time_s, 2.0 * plain.time_s);
  EXPECT_NEAR(run(c, StepMethod::kComposed).time_s / executed.time_s, 1.0, 0.05);
}

// The expected maximum of n half-normal draws grows like sqrt(2 ln n), and with it the step.
TEST_F(WholeSteps, SpreadCostsMoreWithMoreGpus) {
  double last = 1.0;
  for (const std::uint32_t ranks : {8U, 64U, 512U}) {
    Case c{.ranks = ranks, .batch = fmt::format("{{global: {}, sequence: 2048}}", 2 * ranks)};
    const double plain = run(c, StepMethod::kComposed).time_s;
    c.extra = "disturbances: {speed_spread: 0.05}";
    const double growth = run(c, StepMethod::kComposed).time_s / plain;
    EXPECT_GT(growth, last) << ranks;
    EXPECT_LT(growth, 1.0 + 0.05 * 5.0) << ranks;
    last = growth;
  }
}

// A NIC at a tenth from the start slows a step whose EP groups cross it, in both methods; while it is down
// for 5 ms what crosses it waits.
TEST_F(WholeSteps, LinksDegradeAndFail) {
  Case c{.ranks = 16, .parallel = "{pp: 1, ep: 16}"};
  const double plain = run(c, StepMethod::kExecuted).time_s;
  c.extra = "disturbances: {nodes: [{node: 1, share: 0.1}]}";
  const double executed = run(c, StepMethod::kExecuted).time_s;
  EXPECT_GT(executed, 1.5 * plain);
  EXPECT_NEAR(run(c, StepMethod::kComposed).time_s / executed, 1.0, 0.05);
  c.extra = "disturbances: {nodes: [{node: 1, share: 0, from: 1 ms, until: 6 ms}]}";
  const double failed = run(c, StepMethod::kExecuted).time_s;
  EXPECT_GT(failed, plain + 2e-3);
  EXPECT_LT(failed, plain + 6e-3);
  // A composed step stalls for about as long, also with a pipeline under way: kernels that an executed
  // step runs while it waits are at most a layer's. Outside the step a failure costs nothing.
  EXPECT_NEAR(run(c, StepMethod::kComposed).time_s / failed, 1.0, 0.1);
  const Case pipeline{
      .ranks = 32,
      .parallel = "{pp: 2, ep: 16}",
      .extra = "disturbances: {nodes: [{node: 1, share: 0, from: 4 ms, until: 12 ms}]}"};
  EXPECT_NEAR(
      run(pipeline, StepMethod::kComposed).time_s / run(pipeline, StepMethod::kExecuted).time_s,
      1.0, 0.1);
  c.extra = "disturbances: {nodes: [{node: 1, share: 0, from: 10 s, until: 20 s}]}";
  EXPECT_DOUBLE_EQ(run(c, StepMethod::kComposed).time_s,
                   run({.ranks = 16, .parallel = "{pp: 1, ep: 16}"}, StepMethod::kComposed).time_s);
}

// Two micro-batches at once hide dispatch and combine under each other's computation.
TEST_F(WholeSteps, TwoBatchOverlapHidesCommunication) {
  Case c{
      .parallel = "{ep: 8}", .batch = "{tokens_per_gpu: 8192, sequence: 2048}", .kind = "prefill"};
  const StepReport alone = run(c, StepMethod::kComposed);
  c.overlap = "{micro_batches: 2}";
  const StepReport both = run(c, StepMethod::kComposed);
  EXPECT_LT(both.time_s, alone.time_s);
  EXPECT_LT(both.exposed_communication_s, 0.6 * alone.exposed_communication_s);
  EXPECT_NEAR(run(c, StepMethod::kExecuted).time_s / both.time_s, 1.0, 0.02);
  EXPECT_EQ(both.ttft_s, both.time_s);
}

// B200's preset has fits of products and of no attention, as no measured table holds any; H100's has
// both; a data sheet has none and says nothing.
TEST_F(WholeSteps, WhatHasNoFitIsNamed) {
  const auto warnings = [&](const char* topology) {
    SimulateOptions options;
    options.step_method = StepMethod::kComposed;
    return simulate(load({.topology = topology}), options).front().report.warnings;
  };
  EXPECT_THAT(warnings("b200_rail_optimised"),
              ElementsAre(HasSubstr("no fit of attention: they take the usual share")));
  EXPECT_THAT(warnings("h100_rail_optimised"), IsEmpty());
  EXPECT_THAT(warnings("{extends: a100_node, nodes: 1}"), IsEmpty());
}

// Prefill on one node, whose keys and values go to another one over NICs of which a GPU fills 46 GB/s: 8,192 tokens of
// 2 * 4 * 128 values in BF16 and 4 layers are 67.1 MB per GPU, 1.459 ms. Half as many receivers take
// twice as long. The step hides what it can: all but the last layer's quarter.
TEST_F(WholeSteps, KeysAndValuesGoToTheDecodePool) {
  Case c{.batch = "{tokens_per_gpu: 8192, sequence: 2048}", .kind = "prefill"};
  const auto run_with = [&](int pool) {
    c.extra = fmt::format("decode_pool: {}", pool);
    SimulateOptions options;
    options.step_method = StepMethod::kExecuted;
    return simulate(load(c), options).front().report;
  };
  const RunReport equal = run_with(8);
  const double kv_s = equal.provenance.at("step").at("kv_transfer_s").get<double>();
  EXPECT_NEAR(kv_s, 8192.0 * 2 * 4 * 128 * 2 * 4 / 46e9, 0.02 * kv_s);
  const StepReport& step = *equal.step;
  const double hidden_s = 0.75 * step.time_s;
  EXPECT_DOUBLE_EQ(*step.ttft_s, step.time_s + std::max(kv_s / 4.0, kv_s - hidden_s));
  const RunReport half = run_with(4);
  EXPECT_NEAR(half.provenance.at("step").at("kv_transfer_s").get<double>(), 2.0 * kv_s,
              0.02 * kv_s);
  EXPECT_EQ(half.step->time_s, step.time_s);
}

// The timeline of an executed step shows kernels one after the other, and communication as long as the
// report says that rank 0 communicates: both are unions of the same intervals.
TEST_F(WholeSteps, TimelineShowsKernelsAndCommunication) {
  SimulateOptions options;
  options.step_method = StepMethod::kExecuted;
  options.timelines = true;
  const SimulatedRun run = simulate(load({.overlap = "{micro_batches: 2}"}), options).front();
  std::vector<std::pair<double, double>> kernels, transfers;
  for (const auto& span : run.timeline.spans) {
    if (span.track == "rank 0") kernels.emplace_back(span.begin_s, span.end_s);
    if (span.track.starts_with("rank 0 ")) transfers.emplace_back(span.begin_s, span.end_s);
  }
  ASSERT_FALSE(kernels.empty());
  ASSERT_FALSE(transfers.empty());
  std::sort(kernels.begin(), kernels.end());
  for (std::size_t i = 1; i < kernels.size(); ++i) {
    EXPECT_GE(kernels[i].first, kernels[i - 1].second - 1e-12);
  }
  std::sort(transfers.begin(), transfers.end());
  double sum = 0.0;
  double until = 0.0;
  for (const auto& [start, finish] : transfers) {
    sum += std::max(0.0, finish - std::max(start, until));
    until = std::max(until, finish);
  }
  // The report is of the rank that ends last; all ranks do the same here.
  EXPECT_NEAR(sum, run.report.step->communication_s, 0.02 * sum);
}

// The example in the repository, and what is written of it: JSON that reads back to the same, and a table
// whose columns have names of their own.
TEST_F(WholeSteps, ExampleIsWrittenAndReadBack) {
  const Experiment experiment = load_experiment(std::filesystem::path(COTERIE_SOURCE_DIR) /
                                                "workloads/examples/training_step.yaml");
  const Results results = results_of(experiment, simulate(experiment, {}));
  ASSERT_EQ(results.runs.size(), 2U);
  EXPECT_LT(results.runs[1].time_s(), results.runs[0].time_s());
  const std::string text = to_json(results).dump();
  EXPECT_EQ(to_json(results_from_json(nlohmann::json::parse(text), "text")).dump(), text);
  const CsvTable table = parse_csv(to_csv(results.runs), "results.csv");
  EXPECT_EQ(table.rows.size(), 2U);
  EXPECT_NEAR(*table.number(0, "step_time_s"), results.runs[0].time_s(), 1e-9);
}

TEST_F(WholeSteps, WhatDoesNotFitIsRefused) {
  const Case c{.batch = "{global: 1024, micro: 128, sequence: 4096}"};
  try {
    (void)run(c, StepMethod::kComposed);
    FAIL() << "it fits";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("does not fit"));
    EXPECT_THAT(error.what(), HasSubstr("activations"));
  }
}

TEST_F(WholeSteps, BadDisturbancesAreRefused) {
  const auto message = [&](const std::string& extra) -> std::string {
    try {
      (void)run({.extra = "disturbances: " + extra}, StepMethod::kComposed);
    } catch (const InputError& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_THAT(message("{slow: [{gpu: 8000, factor: 2}]}"), HasSubstr("8000"));
  EXPECT_THAT(message("{slow: [{gpu: 1, factor: 0.5}]}"), HasSubstr("0.5"));
  EXPECT_THAT(message("{links: [{name: nowhere, share: 0.5}]}"), HasSubstr("no link \"nowhere\""));
  EXPECT_THAT(message("{nodes: [{node: 0, share: 0, from: 2 s, until: 1 s}]}"),
              HasSubstr("a time after 2 s"));
  EXPECT_THAT(message("{rails: [{rail: 8, share: 0}]}"), HasSubstr("8"));
  EXPECT_THAT(message("{nodes: [{node: 0, share: 0.5}], reroute: {after: 1 ms}}"),
              HasSubstr("reroute without a failure"));
  EXPECT_THAT(message("{timeout: 1 s}"), HasSubstr("timeout without a failure"));
  EXPECT_THAT(message("{nodes: [{node: 0, share: 0}], timeout: 0 s}"), HasSubstr("above 0"));
}

}  // namespace
}  // namespace coterie
