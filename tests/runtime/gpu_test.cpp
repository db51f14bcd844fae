// The runtime on a GPU that its ranks share. Skips itself where there is none.

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "core/results.hpp"
#include "kernels/cuda.hpp"
#include "kernels/grouped_gemm.hpp"
#include "runtime/session/probe/plan.hpp"
#include "tests/runtime/fixture.hpp"

namespace coterie {
namespace {

using testing::HasSubstr;

class Gpu : public RuntimeFixture {
 protected:
  void SetUp() override {
    if (kernels::num_gpus() == 0) GTEST_SKIP() << "no GPU on this machine";
    RuntimeFixture::SetUp();
  }

  // Rank 2 of four dies, stops or hangs at each of the points of a run with `options` besides: the others
  // end in seconds, with one sentence that names it and no results.
  void expect_the_others_end(const std::vector<std::string>& points, const std::string& options,
                             std::map<std::string, std::string> environment) {
    for (const std::string& point : points) {
      for (const char* action : {"kill", "stop", "hang"}) {
        const std::string fault = fmt::format("2:{}:{}", point, action);
        environment["COTERIE_FAULT"] = fault;
        const Outcome outcome =
            shell(fmt::format("timeout 60 {} launch --ranks 4 -- run experiment.yaml -o out2 "
                              "--iterations 3 --warmup 1 --deadline 6 --silence 3{}",
                              program(), options),
                  environment);
        EXPECT_EQ(outcome.exit_code, 3) << fault << ": " << outcome.err;
        EXPECT_THAT(outcome.err, HasSubstr("rank 2")) << fault;
        EXPECT_EQ(num_error_lines(outcome.err), 1U) << fault << ": " << outcome.err;
        EXPECT_LT(outcome.seconds, 40.0);
        EXPECT_FALSE(std::filesystem::exists(folder_ / "out2/results.json"));
      }
    }
  }
};

// The tolerances are those of runtime/session/run.hpp; the errors come from BF16 rounding, so they
// must not be zero where the summation order differs.
void expect_correct(const RunReport& run) {
  for (const auto& layer : run.provenance.at("correctness").at("layers")) {
    EXPECT_LT(layer.at("reference_error").get<double>(), 1e-2);
    EXPECT_LT(layer.at("standard_contiguous_error").get<double>(), 1e-2);
  }
}

TEST_F(Gpu, AllPoliciesAgreeWithTheReferenceAndEachOther) {
  for (const char* payload : {"bf16", "fp8"}) {
    const Outcome outcome =
        shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out --iterations 3 "
                          "--warmup 1 --set payload.dispatch={}",
                          program(), payload));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const Results results = read_results(folder_ / "out/results.json");
    ASSERT_EQ(results.runs.size(), 4U);
    for (const RunReport& run : results.runs) {
      EXPECT_EQ(run.kind, "measured");
      ASSERT_EQ(run.layers.size(), 2U);
      EXPECT_EQ(run.layers[0].samples_s.size(), 3U);
      EXPECT_GT(run.layers[0].time_s, 0.0);
      expect_correct(run);
      EXPECT_TRUE(std::filesystem::exists(folder_ / ("out/timeline-" + run.name + ".json")));
    }
  }
}

TEST_F(Gpu, Fp8ExpertsAgreeWithTheirReference) {
  if (!kernels::grouped_gemm_available()) GTEST_SKIP() << "FP8 products need CUTLASS and sm_90";
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out --iterations 3 "
                        "--warmup 1 --set payload.dispatch=fp8 --set precision.experts=fp8 "
                        "--set model.hidden=256 --set model.expert_intermediate=256",
                        program()));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Results results = read_results(folder_ / "out/results.json");
  ASSERT_EQ(results.runs.size(), 4U);
  for (const RunReport& run : results.runs) {
    EXPECT_EQ(run.expert_type, "fp8");
    expect_correct(run);
  }
}

// The transport direct carries the same rows by the same plan, and sums them in the same order: its
// output is that of the reference within the same tolerance, and that of `standard` over NCCL to the
// bit where it is `standard` too.
TEST_F(Gpu, DirectMovesWhatNcclMoves) {
  for (const char* payload : {"bf16", "fp8"}) {
    const Outcome outcome =
        shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out --iterations 3 "
                          "--warmup 1 --set payload.dispatch={} --set transport=direct",
                          program(), payload));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const Results results = read_results(folder_ / "out/results.json");
    ASSERT_EQ(results.runs.size(), 4U);
    for (const RunReport& run : results.runs) {
      EXPECT_EQ(run.transport, "direct");
      EXPECT_EQ(run.provenance.at("direct_sms"), 16);
      expect_correct(run);
    }
    for (const auto& layer : results.runs[0].provenance.at("correctness").at("layers")) {
      EXPECT_EQ(layer.at("standard_contiguous_error").get<double>(), 0.0);
    }
  }
}

// Ranks that act as if they were on two machines of two, or on four of one: NCCL carries what crosses,
// the kernels put and pull the rest. A pull sums the same rows in the same order wherever they come
// from, so that every error of the output is the same to the bit.
TEST_F(Gpu, DirectMovesTheSameBetweenMachines) {
  for (const char* payload : {"bf16", "fp8"}) {
    std::vector<nlohmann::json> on_one_machine;
    for (const char* ranks_per_machine : {"4", "2", "1"}) {
      const Outcome outcome =
          shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out --iterations 3 "
                            "--warmup 1 --set payload.dispatch={} --set transport=direct",
                            program(), payload),
                {{"COTERIE_RANKS_PER_MACHINE", ranks_per_machine}});
      ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
      const Results results = read_results(folder_ / "out/results.json");
      ASSERT_EQ(results.runs.size(), 4U);
      std::vector<nlohmann::json> correctness;
      for (const RunReport& run : results.runs) {
        EXPECT_EQ(run.provenance.at("direct_beside_nccl"), *ranks_per_machine != '4');
        expect_correct(run);
        correctness.push_back(run.provenance.at("correctness"));
      }
      if (on_one_machine.empty()) on_one_machine = correctness;
      EXPECT_EQ(correctness, on_one_machine) << ranks_per_machine << " ranks per machine";
    }
  }
}

// Iterations that are launches of one graph. The executor itself compares the output of the first with
// that of the same kernels one by one, to the bit; ten more keep the epochs of all ranks in step.
TEST_F(Gpu, DirectReplaysAsAGraph) {
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out --iterations 10 "
                        "--warmup 1 --set transport=direct --capture",
                        program()));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Results results = read_results(folder_ / "out/results.json");
  ASSERT_EQ(results.runs.size(), 4U);
  for (const RunReport& run : results.runs) {
    EXPECT_EQ(run.provenance.at("direct_captured"), true);
    ASSERT_EQ(run.layers.size(), 2U);
    EXPECT_EQ(run.layers[0].samples_s.size(), 10U);
    EXPECT_GT(run.layers[0].time_s, 0.0);
    for (const PhaseTimes& phase : run.layers[0].phases) {
      for (std::size_t rank = 0; rank < phase.begin_s.size(); ++rank) {
        EXPECT_LE(phase.begin_s[rank], phase.end_s[rank]) << to_string(phase.phase);
      }
    }
  }
}

// "dispatch": the others wait for a flag or inside NCCL, behind which pulls wait.
TEST_F(Gpu, ARankThatDiesEndsThoseOfOtherMachines) {
  expect_the_others_end({"dispatch", "in-flight"}, " --set transport=direct",
                        {{"COTERIE_RANKS_PER_MACHINE", "2"}});
}

TEST_F(Gpu, ARankThatDiesAtAnyStageEndsTheOthersOverPeerMemoryToo) {
  expect_the_others_end({"dispatch", "combine", "in-flight"}, " --set transport=direct", {});
}

// "dispatch": the others wait inside NCCL for a rank that never sends. "in-flight": its kernels and
// NCCL's threads go while they are at work.
TEST_F(Gpu, ARankThatDiesAtAnyStageEndsTheOthers) {
  expect_the_others_end({"init", "dispatch", "in-flight"}, "", {});
}

// Sizes 1 to 4096 in steps of 4 are 7, of the pair and of the all-to-all; 1024 and 4096 are 2, of
// each of four skewed patterns. Two kinds and their skews of the notify step.
TEST_F(Gpu, TheProbeWritesCurvesAndATopology) {
  const auto probe = [&](const std::string& options) {
    const Outcome outcome = shell(fmt::format(
        "{} launch --ranks 2 -- probe -o probe --max-bytes 4096 {}", program(), options));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.err;
  };
  const auto document = [&] {
    return nlohmann::json::parse(read_file(folder_ / "probe/curves.json"));
  };
  probe("--parts communication");
  EXPECT_EQ(document().at("num_ranks"), 2);
  ASSERT_EQ(document().at("curves").size(), 22U);
  // What is there is not measured again.
  const auto first = document().at("curves");
  probe("--parts communication,notify");
  EXPECT_EQ(document().at("curves"), first);
  EXPECT_EQ(document().at("notify").size(), 4U);
  EXPECT_THAT(probe("--parts communication,notify"), HasSubstr("--append adds another start"));
  probe("--parts communication,notify --append");
  EXPECT_EQ(document().at("curves")[0].at("restarts"), 2);
  EXPECT_EQ(document().at("parts").at("notify").at("starts"), 2);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "probe/topology.yaml"));
}

// Two points for the flags, and for every case and number of multiprocessors one for each of its
// kinds: four with one hop, six with two (runtime/README.md). The plan is made here for what the
// file says of the machine.
TEST_F(Gpu, TheProbeMeasuresTheTransportDirect) {
  const Outcome outcome = shell(
      fmt::format("{} launch --ranks 4 -- probe -o probe --parts direct --samples 4", program()));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(read_file(folder_ / "probe/curves.json"));
  ProbeSetting setting;
  setting.num_ranks = setting.num_local_ranks = 4;
  setting.ranks_per_gpu = document.at("ranks_per_gpu").get<std::uint32_t>();
  setting.direct = true;
  std::size_t expected = 2;
  for (const DirectCase& entry : plan_probe(setting).direct) {
    const std::size_t kinds = entry.policy == DispatchPolicy::kHierarchical ? 6 : 4;
    expected += kinds * std::size(kDirectSms);
  }
  EXPECT_EQ(document.at("direct").size(), expected);
}

}  // namespace
}  // namespace coterie
