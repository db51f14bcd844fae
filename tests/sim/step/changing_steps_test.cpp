// Steps whose routing or links change: micro-batches with tokens of their own, series of steps with
// drifting routing, links that fail and are routed around or time out.

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>

#include "core/random.hpp"
#include "core/results.hpp"
#include "tests/sim/step/whole_steps.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;

class ChangingSteps : public WholeSteps {
 protected:
  // Sequences of `length` tokens over four layers of 32 experts, top-4; sequence i prefers the eight
  // experts from `first[i]` on.
  Routing make_trace(const std::vector<std::uint32_t>& first, std::uint32_t length) const {
    Routing routing;
    routing.model = "small";
    routing.origin = "test";
    routing.num_experts = 32;
    routing.num_topk = 4;
    routing.layers = {0, 1, 2, 3};
    routing.sequence_begin = {0};
    for (std::size_t i = 0; i < first.size(); ++i) {
      routing.sequence_begin.push_back(routing.sequence_begin.back() + length);
    }
    Random random(7);
    for (std::size_t layer = 0; layer < 4; ++layer) {
      for (const std::uint32_t begin : first) {
        for (std::uint32_t token = 0; token < length; ++token) {
          const auto two = static_cast<std::uint32_t>(random.index(4));
          const auto far = static_cast<std::uint32_t>(random.index(16));
          for (const std::uint32_t expert : {two, 4 + (two + far) % 4, 8 + far, 24 + far % 8}) {
            routing.experts.push_back(static_cast<ExpertIdx>((begin + expert) % 32));
          }
        }
      }
    }
    return routing;
  }

  // An experiment on a trace that is written for it.
  Case traced(const char* name, const Routing& routing, const char* parts) const {
    write_moet(folder_ / name, routing);
    return {.batch = "{global: 8, micro: 1, sequence: 2048}",
            .extra = fmt::format("trace: {{file: {}, {}}}", name, parts),
            .routing = "trace"};
  }

  static constexpr const char* kAll = "train: all, eval: all, evaluate_on_training: true";
};

double rest_s(const StepReport& step) {
  return part(step, "gradients") + part(step, "optimizer") + part(step, "parameters");
}

// Eight ranks have two sequences of 2,048 tokens each, dealt round robin: one per micro-batch. Without
// pipeline and overlap the step is the passes of the first micro-batch, those of the second, and what
// follows all passes; alone, each of them is a step with that rest.
TEST_F(ChangingSteps, MicroBatchesRouteTheirOwnTokens) {
  std::vector<std::uint32_t> first(16, 0);
  for (std::uint32_t i = 8; i < 16; ++i) first[i] = 3 * i;  // spread: a lighter micro-batch
  const Routing both = make_trace(first, 2048);
  const Case front = traced("front.moet", select_window(both, 0, 8), kAll);
  const Case back = traced("back.moet", select_window(both, 8, 16), kAll);
  Case all = traced("both.moet", both, kAll);
  all.batch = "{global: 16, micro: 1, sequence: 2048}";
  const Case shared = all;
  all.routing = "trace\n  routing_per: micro_batch";
  for (const StepMethod method : {StepMethod::kComposed, StepMethod::kExecuted}) {
    const StepReport a = run(front, method);
    const StepReport b = run(back, method);
    EXPECT_GT(a.time_s, 1.05 * b.time_s);  // its fullest rank has more rows
    const double tolerance = method == StepMethod::kComposed ? 1e-9 : 0.01;
    EXPECT_NEAR(run(all, method).time_s, a.time_s + b.time_s - rest_s(a), tolerance * a.time_s);
    // Without it both micro-batches have the first one's tokens.
    EXPECT_NEAR(run(shared, method).time_s, 2.0 * a.time_s - rest_s(a), tolerance * a.time_s);
  }
}

// Micro-batches with equal tokens are as if they shared them, in pipelines too.
TEST_F(ChangingSteps, EqualMicroBatchesAreShared) {
  const Routing one = make_trace(std::vector<std::uint32_t>(8, 0), 512);
  Case c = traced("one.moet", one, kAll);
  c.parallel = "{pp: 2, ep: 4}";
  c.batch = "{global: 16, micro: 1, sequence: 512}";
  c.overlap = "{micro_batches: 2}";
  Routing same = one;
  // All sequences are the first one.
  for (std::size_t layer = 0; layer < 4; ++layer) {
    const auto begin = same.experts.begin() + static_cast<std::ptrdiff_t>(layer * 8 * 512 * 4);
    for (std::ptrdiff_t i = 1; i < 8; ++i) std::copy_n(begin, 512 * 4, begin + i * 512 * 4);
  }
  write_moet(folder_ / "one.moet", same);
  const double shared = run(c, StepMethod::kComposed).time_s;
  c.routing = "trace\n  routing_per: micro_batch";
  EXPECT_NEAR(run(c, StepMethod::kComposed).time_s, shared, 1e-9 * shared);
}

// A step of a series is the step that a trace of its window alone gives, with the placement learnt for
// it or for the first one; what all report is the mean.
TEST_F(ChangingSteps, SeriesFollowsTheWindowsOfTheTrace) {
  std::vector<std::uint32_t> first;
  for (std::uint32_t i = 0; i < 48; ++i) first.push_back(i < 16 ? 0 : i < 32 ? 5 : 13);
  const Routing all = make_trace(first, 1024);
  Case c = traced("all.moet", all, "train: even, eval: odd");
  c.placement = "load_balanced";
  c.routing = "trace\n  series: {steps: 3}";
  const StepReport series = run(c, StepMethod::kComposed);
  ASSERT_EQ(series.series.size(), 3U);
  double sum_s = 0.0;
  double anew_s = 0.0;
  for (std::size_t i = 0; i < 3; ++i) {
    Case window =
        traced("window.moet", select_window(all, 16 * i, 16 * (i + 1)), "train: even, eval: odd");
    window.placement = "load_balanced";
    EXPECT_DOUBLE_EQ(*series.series[i].relearnt_time_s, run(window, StepMethod::kComposed).time_s);
    sum_s += series.series[i].time_s;
    anew_s += *series.series[i].relearnt_time_s;
  }
  EXPECT_DOUBLE_EQ(series.series[0].time_s, *series.series[0].relearnt_time_s);
  EXPECT_GT(series.series[1].time_s, *series.series[1].relearnt_time_s);
  EXPECT_GT(series.series[2].time_s, *series.series[2].relearnt_time_s);
  EXPECT_NEAR(series.time_s, sum_s / 3.0, 1e-12);
  EXPECT_NEAR(*series.static_loss(), sum_s / anew_s - 1.0, 1e-12);
  double parts_s = 0.0;
  for (const auto& [name, seconds] : series.parts) parts_s += seconds;
  EXPECT_NEAR(parts_s, series.time_s, 1e-9);
  // Results keep it.
  const Experiment experiment = load(c);
  const Results results = results_of(experiment, simulate(experiment, {}));
  const std::string text = to_json(results).dump();
  EXPECT_EQ(to_json(results_from_json(nlohmann::json::parse(text), "text")).dump(), text);
  EXPECT_THAT(text, HasSubstr("static_loss"));
}

// Where no expert changes its role all steps are the first. Where a third of them do, tokens and loads are
// those of the first step under other names: a placement learnt anew does as well as the first one did,
// but for ties of its search, and the first one no longer does.
TEST_F(ChangingSteps, DriftCostsAPlacementWhatItKnew) {
  const auto series = [&](const char* drift) {
    return run({.batch = "{global: 8, micro: 1, sequence: 2048}",
                .routing = fmt::format("{{skew: 0.6}}\n  series: {{steps: 4, drift: {}}}", drift),
                .placement = "load_balanced"},
               StepMethod::kComposed);
  };
  const StepReport still = series("0");
  const StepReport alone = run({.batch = "{global: 8, micro: 1, sequence: 2048}",
                                .routing = "{skew: 0.6}",
                                .placement = "load_balanced"},
                               StepMethod::kComposed);
  for (const auto& step : still.series) {
    EXPECT_DOUBLE_EQ(step.time_s, alone.time_s);
    EXPECT_DOUBLE_EQ(*step.relearnt_time_s, alone.time_s);
  }
  EXPECT_DOUBLE_EQ(*still.static_loss(), 0.0);
  const StepReport drifting = series("0.34");
  for (std::size_t i = 0; i < drifting.series.size(); ++i) {
    const auto& step = drifting.series[i];
    EXPECT_NEAR(*step.relearnt_time_s, alone.time_s, 0.03 * alone.time_s) << i;
    if (i == 0) continue;
    EXPECT_GT(step.time_s, 1.02 * alone.time_s) << i;
  }
  EXPECT_GT(*drifting.static_loss(), 0.02);
  // Seeded.
  EXPECT_EQ(drifting.time_s, series("0.34").time_s);
}

// A placement that learns nothing has nothing to learn anew.
TEST_F(ChangingSteps, ContiguousIsNotLearntAnew) {
  const StepReport step = run({.batch = "{global: 8, micro: 1, sequence: 512}",
                               .routing = "{skew: 0.6}\n  series: {steps: 2, drift: 0.5}"},
                              StepMethod::kComposed);
  ASSERT_EQ(step.series.size(), 2U);
  EXPECT_FALSE(step.series[1].relearnt_time_s.has_value());
  EXPECT_FALSE(step.static_loss().has_value());
}

TEST_F(ChangingSteps, BadSeriesAreRefused) {
  EXPECT_THAT(refusal({.routing = "balanced\n  series: {steps: 4, drift: 0.1}"}),
              HasSubstr("balanced routing does not drift"));
  EXPECT_THAT(refusal({.routing = "{skew: 1}\n  series: {steps: 4}"}), HasSubstr("drift: SHARE"));
  EXPECT_THAT(refusal({.routing = "{skew: 1}\n  series: {steps: 1, drift: 0.1}"}), HasSubstr("1"));
  EXPECT_THAT(refusal({.routing = "{skew: 1}\n  series: {steps: 4, drift: 1.5}"}),
              HasSubstr("1.5"));
  EXPECT_THAT(refusal({.routing = "balanced\n  routing_per: micro_batch"}),
              HasSubstr("balanced micro-batches are all alike"));
  EXPECT_THAT(refusal({.routing = "{skew: 1}\n  routing_per: layer"}), HasSubstr("micro_batch"));
  Case few = traced("few.moet", make_trace({0, 1, 2}, 64), "train: even, eval: odd");
  few.routing = "trace\n  series: {steps: 2}";
  EXPECT_THAT(refusal(few), HasSubstr("3 sequences, expected at least 2 for each of the 2 steps"));
}

// Links --------------------------------------------------------------------------------------------

// Two nodes of 8 GPUs on two leaves with two spines each; leaf l's cable to spine s carries a quarter
// of the leaf's ports.
constexpr const char* kTwoSpines =
    "{{extends: h100_rail_optimised, nodes: 2, nic: {{pxn: false}}, fabric: {{kind: leaf_spine, "
    "rail_optimised: false, ports_per_leaf: 8, num_spines: {}, oversubscription: {}}}}}";

Case on_spines(int num_spines, double oversubscription, const std::string& failures = "") {
  return {.ranks = 16,
          .topology = fmt::format(fmt::runtime(kTwoSpines), num_spines, oversubscription),
          .parallel = "{ep: 16}",
          .batch = "{tokens_per_gpu: 4096, sequence: 2048}",
          .extra = failures.empty() ? "" : "disturbances: " + failures,
          .kind = "prefill"};
}

// All cables of spine 1.
std::string spine_fails(const std::string& when, const std::string& further) {
  std::string links;
  for (const char* name :
       {"leaf 0 -> spine 1", "spine 1 -> leaf 0", "leaf 1 -> spine 1", "spine 1 -> leaf 1"}) {
    links += fmt::format("{}{{name: \"{}\", share: 0{}}}", links.empty() ? "" : ", ", name, when);
  }
  return fmt::format("{{links: [{}]{}}}", links, further);
}

// A spine that has failed before the step leaves the fabric of the other one alone: half of the cables,
// each as wide as before.
TEST_F(ChangingSteps, FailedSpineIsRoutedAround) {
  const std::string rerouted = spine_fails("", ", reroute: {after: 5 ms}");
  for (const StepMethod method : {StepMethod::kExecuted, StepMethod::kComposed}) {
    const double half = run(on_spines(1, 4.0), method).time_s;
    EXPECT_GT(half, 1.05 * run(on_spines(2, 2.0), method).time_s);
    EXPECT_NEAR(run(on_spines(2, 2.0, rerouted), method).time_s, half, 1e-9 * half);
  }
}

// One piece of a composed prefill step: until the failure it goes at the pace of both spines, stands
// still until it is routed around, and goes on at the pace of one:
//   T = t + after + (1 - t / T(two spines)) T(one spine).
TEST_F(ChangingSteps, FailureUnderWayIsRoutedAround) {
  const double two = run(on_spines(2, 2.0), StepMethod::kComposed).time_s;
  const double one = run(on_spines(1, 4.0), StepMethod::kComposed).time_s;
  const double fails_s = 1e-3;
  ASSERT_GT(two, 2.0 * fails_s);
  const auto with = [&](const char* further) {
    return run_report(on_spines(2, 2.0, spine_fails(", from: 1 ms", further)),
                      StepMethod::kComposed);
  };
  const RunReport rerouted = with(", reroute: {after: 2 ms}");
  EXPECT_NEAR(rerouted.step->time_s, fails_s + 2e-3 + (1.0 - fails_s / two) * one, 1e-9);
  EXPECT_NEAR(rerouted.provenance.at("step").at("longest_stall_s").get<double>(), 2e-3, 1e-12);
  ASSERT_FALSE(rerouted.warnings.empty());
  EXPECT_THAT(rerouted.warnings.back(), HasSubstr("stood still for up to 2 ms"));
  // At once, and back on the own routes once it recovers.
  EXPECT_NEAR(with(", reroute: {after: 0 s}").step->time_s, fails_s + (1.0 - fails_s / two) * one,
              1e-9);
  const RunReport recovers = run_report(
      on_spines(2, 2.0, spine_fails(", from: 1 ms, until: 2 ms", ", reroute: {after: 0 s}")),
      StepMethod::kComposed);
  EXPECT_NEAR(recovers.step->time_s, 2e-3 + (1.0 - fails_s / two - 1e-3 / one) * two, 1e-9);
}

// Without another path, or without re-routing, what crosses the links waits: a composed step for
// exactly as long as they are down, an executed one for less, as its kernels go on.
TEST_F(ChangingSteps, FailureIsWaitedFor) {
  const double plain = run(on_spines(2, 2.0), StepMethod::kComposed).time_s;
  const Case waits = on_spines(2, 2.0, spine_fails(", from: 1 ms, until: 11 ms", ""));
  EXPECT_NEAR(run(waits, StepMethod::kComposed).time_s, plain + 10e-3, 1e-9);
  const RunReport executed = run_report(waits, StepMethod::kExecuted);
  EXPECT_GT(executed.step->time_s, plain + 8e-3);
  EXPECT_LT(executed.step->time_s, plain + 10.1e-3);
  const double stall_s = executed.provenance.at("step").at("longest_stall_s").get<double>();
  EXPECT_GT(stall_s, 9e-3);
  EXPECT_LE(stall_s, 10e-3);
  // A star has one path.
  Case star = on_spines(2, 2.0,
                        "{links: [{name: \"gpu 3 nic out\", share: 0, from: 1 ms, until: 11 ms}], "
                        "reroute: {after: 1 ms}}");
  star.topology = "{extends: star, nodes: 16}";
  Case whole = star;
  whole.extra = "";
  EXPECT_NEAR(run(star, StepMethod::kComposed).time_s,
              run(whole, StepMethod::kComposed).time_s + 10e-3, 1e-9);
}

// What has stood still for the timeout ends the step, at the time of the failure and the timeout.
TEST_F(ChangingSteps, TimeoutEndsTheStep) {
  const Case c = on_spines(2, 2.0, spine_fails(", from: 1 ms", ", timeout: 5 s"));
  for (const StepMethod method : {StepMethod::kComposed, StepMethod::kExecuted}) {
    try {
      (void)run(c, method);
      FAIL() << "it ends";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kDeviceFailure);
      EXPECT_THAT(error.what(), HasSubstr("the step ends at 5.00"));
      EXPECT_THAT(error.what(), HasSubstr("\"leaf 0 -> spine 1\""));
      EXPECT_THAT(error.what(), HasSubstr("stood still for 5 s, which is the timeout"));
    }
  }
  // Ten minutes without one.
  EXPECT_THAT(refusal(on_spines(2, 2.0, spine_fails("", ""))), HasSubstr("stood still for 600 s"));
  // A failure that nobody meets times nobody out.
  Case nobody = on_spines(2, 2.0);
  nobody.parallel = "{ep: 8}";
  const double plain = run(nobody, StepMethod::kComposed).time_s;
  nobody.extra = "disturbances: " + spine_fails("", ", timeout: 5 s");
  EXPECT_DOUBLE_EQ(run(nobody, StepMethod::kComposed).time_s, plain);
  EXPECT_DOUBLE_EQ(run(nobody, StepMethod::kExecuted).time_s, run(
                                                                  [&] {
                                                                    Case same = nobody;
                                                                    same.extra = "";
                                                                    return same;
                                                                  }(),
                                                                  StepMethod::kExecuted)
                                                                  .time_s);
}

// A rail is the NIC ports of every node's GPU of that position: eight rails at half are all NICs at
// half. With its rail down a GPU sends over the NIC of the next one.
TEST_F(ChangingSteps, RailsDegradeAndFail) {
  const auto with = [&](const std::string& disturbances) {
    return run({.ranks = 16,
                .parallel = "{ep: 16}",
                .batch = "{tokens_per_gpu: 4096, sequence: 2048}",
                .extra = disturbances,
                .kind = "prefill"},
               StepMethod::kComposed)
        .time_s;
  };
  std::string rails, nodes;
  for (int i = 0; i < 8; ++i) rails += fmt::format("{}{{rail: {}, share: 0.5}}", i ? ", " : "", i);
  EXPECT_DOUBLE_EQ(with("disturbances: {rails: [" + rails + "]}"),
                   with("disturbances: {nodes: [{node: 0, share: 0.5}, {node: 1, share: 0.5}]}"));
  const double plain = with("");
  const double rerouted =
      with("disturbances: {rails: [{rail: 3, share: 0}], reroute: {after: 0 s}}");
  EXPECT_GT(rerouted, 1.02 * plain);
  EXPECT_LT(rerouted, 2.0 * plain);
}

// Routes of an executed step change under way. A failure before the first message is that of the
// whole step; one after the last changes nothing; in between the step takes as long as parts of both.
// What stood still did so until it was routed around, which a timeout may not wait for, and the
// recovered spine is used again.
TEST_F(ChangingSteps, ExecutedStepsAreReroutedUnderWay) {
  const auto executed = [&](const std::string& when, const std::string& further) {
    return run_report(on_spines(2, 2.0, spine_fails(when, further)), StepMethod::kExecuted);
  };
  const double two = run(on_spines(2, 2.0), StepMethod::kExecuted).time_s;
  const double one = run(on_spines(1, 4.0), StepMethod::kExecuted).time_s;
  ASSERT_GT(one, 1.05 * two);
  const std::string at_once = ", reroute: {after: 0 s}";
  EXPECT_NEAR(executed(", from: 1 ns", at_once).step->time_s, one, 1e-3 * one);
  EXPECT_NEAR(executed(", from: 10 s", at_once).step->time_s, two, 1e-12 * two);
  for (const double share : {0.25, 0.5, 0.75}) {
    const double time_s = executed(fmt::format(", from: {} s", share * two), at_once).step->time_s;
    EXPECT_GT(time_s, two);
    EXPECT_LT(time_s, 1.001 * one);
  }
  // How long the step is in all does not follow from that of its parts: ranks that wait use the links
  // while others compute.
  const std::string middle = fmt::format(", from: {} s", 0.5 * two);
  const RunReport waits = executed(middle, ", reroute: {after: 2 ms}");
  EXPECT_GT(waits.step->time_s, two + 1e-3);
  const double stall_s = waits.provenance.at("step").at("longest_stall_s").get<double>();
  EXPECT_GT(stall_s, 1e-3);
  EXPECT_LE(stall_s, 2e-3 * (1.0 + 1e-9));
  EXPECT_THAT(
      refusal(on_spines(2, 2.0, spine_fails(middle, ", reroute: {after: 2 ms}, timeout: 1 ms")),
              StepMethod::kExecuted),
      HasSubstr("which is the timeout"));
  // Back after a millisecond: shorter than if it stayed away.
  const std::string back = fmt::format(", from: {} s, until: {} s", 0.25 * two, 0.25 * two + 1e-3);
  const double recovered = executed(back, at_once).step->time_s;
  EXPECT_GT(recovered, two);
  EXPECT_LT(recovered, executed(fmt::format(", from: {} s", 0.25 * two), at_once).step->time_s);
  // Twice the same bits.
  EXPECT_DOUBLE_EQ(executed(back, at_once).step->time_s, recovered);
  // A communication of SimGrid keeps its route.
  Case simgrid = on_spines(2, 2.0, spine_fails(", from: 1 ms", at_once));
  simgrid.engine = "simgrid";
  EXPECT_THAT(refusal(simgrid, StepMethod::kExecuted), HasSubstr("expected engine flow"));
}

// A placement that is learnt by the time of the layers on the tokens that the step has makes no step
// longer than one that knows nothing: experts that go together sit on one rank.
TEST_F(ChangingSteps, PlacementsAreLearntByTime) {
  Case c = traced("time.moet", make_trace(std::vector<std::uint32_t>(16, 0), 512), kAll);
  c.kind = "prefill";
  c.parallel = "{ep: 8}";
  c.batch = "{tokens_per_gpu: 1024, sequence: 512}";
  const double plain = run(c, StepMethod::kExecuted).time_s;
  c.placement = "time_aware";
  EXPECT_LT(run(c, StepMethod::kExecuted).time_s, 0.99 * plain);
}

}  // namespace
}  // namespace coterie
