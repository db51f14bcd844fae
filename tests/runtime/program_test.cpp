// coterie-runtime as its users call it, without a GPU.

#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/runtime/fixture.hpp"

namespace coterie {
namespace {

using testing::HasSubstr;

class Program : public RuntimeFixture {
 protected:
  static constexpr const char* kDryRun =
      "run experiment.yaml -o out --dry-run --iterations 1 --warmup 1";

  // A stand-in for nvidia-cuda-mps-control: -d leaves a process behind in a session of its own,
  // "quit" on the standard input ends it.
  std::string fake_mps() {
    const auto path = folder_ / "fake-mps";
    write_file(path,
               "#!/bin/bash\n"
               "if [ \"$1\" = -d ]; then\n"
               "  echo start >>" +
                   (folder_ / "mps.log").string() +
                   "\n"
                   "  echo \"$CUDA_MPS_PIPE_DIRECTORY\" >" +
                   (folder_ / "mps.dir").string() +
                   "\n"
                   "  setsid sleep 1000 </dev/null >/dev/null 2>&1 &\n"
                   "  echo $! >\"$CUDA_MPS_PIPE_DIRECTORY/pid\"\n"
                   "else\n"
                   "  read line; echo \"$line\" >>" +
                   (folder_ / "mps.log").string() +
                   "\n"
                   "  kill $(cat \"$CUDA_MPS_PIPE_DIRECTORY/pid\")\n"
                   "fi\n");
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path.string();
  }
  // The daemon was started and ended, and its folder is gone.
  void expect_mps_gone() {
    std::string folder = read_file(folder_ / "mps.dir");
    folder.pop_back();
    EXPECT_THAT(folder, HasSubstr("coterie-mps-"));
    // The guardian of a killed launcher works on its own time.
    for (int i = 0; i < 100 && std::filesystem::exists(folder); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    EXPECT_FALSE(std::filesystem::exists(folder)) << folder;
    EXPECT_EQ(read_file(folder_ / "mps.log"), "start\nquit\n");
  }
};

TEST_F(Program, EveryCommandHasHelpWithAnExample) {
  for (const char* command : {"launch", "run", "probe"}) {
    const Outcome outcome = shell(fmt::format("{} {} --help", program(), command));
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("Example:"));
  }
}

// All policies and placements give the output of standard + contiguous, and that of the reference.
TEST_F(Program, ADryRunExecutesThePlansExactly) {
  const Outcome outcome = shell(fmt::format("{} launch --ranks 4 -- {}", program(), kDryRun));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("nothing measured"));
  const auto document = nlohmann::json::parse(read_file(folder_ / "out/dry_run.json"));
  EXPECT_EQ(document.at("kind"), "dry_run");
  ASSERT_EQ(document.at("runs").size(), 4U);
  for (const auto& run : document.at("runs")) {
    EXPECT_TRUE(run.at("correctness").at("passed").get<bool>());
    for (const auto& layer : run.at("correctness").at("layers")) {
      // Results are rounded to BF16 once or twice on their way: 2^-9 relative at most, each.
      EXPECT_LT(layer.at("reference_error").get<double>(), 4e-3);
      EXPECT_GT(layer.at("reference_error").get<double>(), 1e-5);
      EXPECT_LT(layer.at("standard_contiguous_error").get<double>(), 4e-3);
    }
  }
  // A dry run never looks like a measurement.
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/results.json"));
}

// DeepSeek-V3's rows and experts on 4 ranks of 256 tokens, in FP8: at full size some 6 * 10^12
// operations on the CPU, at 128 and 64 values a 1,800th of that. The plan stays the full one: a row
// of 7392 B fits 141 times into a round's MiB, a rank has at most 256 * 2 / 2 rows for a node, so
// that there are two rounds. Cut by the reduced row (132 B) there would be one.
TEST_F(Program, ADryRunOfALargeModelTakesSeconds) {
  write_experiment(4, 7168, 2048);
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out --dry-run "
                        "--set tokens_per_rank=256 --set payload.dispatch=fp8",
                        program()));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_LT(outcome.seconds, 60.0);
  EXPECT_THAT(outcome.err, HasSubstr("dry run: rows of 128 values instead of 7168, expert "
                                     "intermediates of 64 instead of 2048"));
  const auto document = nlohmann::json::parse(read_file(folder_ / "out/dry_run.json"));
  EXPECT_EQ(document.at("size"), nlohmann::json::parse(R"({"reduced": true, "hidden": 128,
      "expert_intermediate": 64, "shared_intermediate_total": 48, "model_hidden": 7168,
      "model_expert_intermediate": 2048, "model_shared_intermediate_total": 48})"));
  EXPECT_EQ(document.at("iterations"), 1);  // nothing is timed
  const auto& hierarchical = document.at("runs").at(3);
  EXPECT_TRUE(hierarchical.at("correctness").at("passed").get<bool>());
  EXPECT_EQ(hierarchical.at("correctness").at("layers").at(0).at("rounds"), 2);
}

TEST_F(Program, ADryRunComputesAtFullSizeWhereAsked) {
  write_experiment(4, 256, 72);
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 -- {} --full-size", program(), kDryRun));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, testing::Not(HasSubstr("dry run: rows of")));
  const auto document = nlohmann::json::parse(read_file(folder_ / "out/dry_run.json"));
  EXPECT_FALSE(document.at("size").at("reduced").get<bool>());
  EXPECT_EQ(document.at("size").at("hidden"), 256);
  EXPECT_EQ(document.at("size").at("expert_intermediate"), 72);
}

TEST_F(Program, Fp8AndUnevenTokensAreExactToo) {
  const Outcome outcome = shell(
      fmt::format("{} launch --ranks 4 -- {} --set payload.dispatch=fp8 --set tokens_per_rank=1",
                  program(), kDryRun));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

// The reduced intermediate of FP8 experts holds one block of their scales.
TEST_F(Program, Fp8ExpertsAreExactToo) {
  write_experiment(4, 256, 256);
  const Outcome outcome = shell(
      fmt::format("{} launch --ranks 4 -- {} --set precision.experts=fp8", program(), kDryRun));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(read_file(folder_ / "out/dry_run.json"));
  EXPECT_EQ(document.at("size").at("expert_intermediate"), 128);
}

// One wrong value on one rank: every run is reported as failed, nothing is timed, code 4.
TEST_F(Program, WrongOutputIsRefused) {
  const Outcome outcome = shell(fmt::format("{} launch --ranks 4 -- {}", program(), kDryRun),
                                {{"COTERIE_FAULT", "3:output:corrupt"}});
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.err, HasSubstr("run standard: layer 1 is off the CPU reference"));
  EXPECT_EQ(num_error_lines(outcome.err), 1U) << outcome.err;
  const auto document = nlohmann::json::parse(read_file(folder_ / "out/dry_run.json"));
  for (const auto& run : document.at("runs")) {
    EXPECT_FALSE(run.at("correctness").at("passed").get<bool>());
  }
}

// Pruned routing has an output of its own: it is held against the reference for that routing, and
// not against standard + contiguous.
TEST_F(Program, PrunedRunsAreCheckedAgainstTheirOwnRouting) {
  const Outcome outcome = shell(fmt::format(
      "{} launch --ranks 4 -- {} --set 'runs=[{{name: pruned, placement: collaboration, dispatch: "
      "dedup, prune: {{method: router_score, devices: 1}}}}]'",
      program(), kDryRun));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(read_file(folder_ / "out/dry_run.json"));
  const auto& layer = document.at("runs")[0].at("correctness").at("layers")[0];
  EXPECT_LT(layer.at("reference_error").get<double>(), 4e-3);
  EXPECT_FALSE(layer.contains("standard_contiguous_error"));
}

TEST_F(Program, RunsUnderMpirun) {
  if (shell("mpirun --version").exit_code != 0) GTEST_SKIP() << "no mpirun";
  const Outcome outcome = shell(
      fmt::format("mpirun --allow-run-as-root --oversubscribe -n 4 {} {}", program(), kDryRun));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_TRUE(std::filesystem::exists(folder_ / "out/dry_run.json"));
}

// As torchrun sets them; the ranks start by hand, the last one after the others.
TEST_F(Program, RunsWithTorchrunsVariables) {
  std::string command = "bash -c '";
  for (int rank = 3; rank >= 0; --rank) {
    command += fmt::format(
        "RANK={} WORLD_SIZE=4 LOCAL_RANK={} LOCAL_WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 "
        "MASTER_PORT={} {} {} & ",
        rank, rank, 20000 + ::getpid() % 10000, program(), kDryRun);
  }
  const Outcome outcome = shell(command + "wait'");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_TRUE(std::filesystem::exists(folder_ / "out/dry_run.json")) << outcome.err;
}

TEST_F(Program, BadInputIsOneSentenceAndCode2) {
  for (const char* arguments :
       {"launch --ranks 3 -- run experiment.yaml -o out --dry-run",
        "launch --ranks 4 -- run missing.yaml -o out --dry-run",
        "launch --ranks 4 -- run experiment.yaml -o out --dry-run --set payload.combine=fp8",
        "launch --ranks 4 -- run experiment.yaml -o out --dry-run --set precision.experts=fp8 "
        "--set model.expert_intermediate=72",
        "nothing experiment.yaml", "run experiment.yaml -o out --dry-run --deadline nan",
        "launch --ranks 4", "launch --ranks 4 --mps maybe -- run experiment.yaml -o out",
        "run experiment.yaml -o out --dry-run --layers 99",
        "launch --ranks 4 -- run experiment.yaml -o out --full-size"}) {
    const Outcome outcome = shell(fmt::format("{} {}", program(), arguments));
    EXPECT_EQ(outcome.exit_code, 2) << arguments << ": " << outcome.err;
    EXPECT_EQ(num_error_lines(outcome.err), 1U) << arguments << ": " << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out/dry_run.json"));
  }
}

TEST_F(Program, WithoutAGpuARunSaysSo) {
  if (shell(fmt::format("{} launch --ranks 1 -- probe -o p --max-bytes 1", program())).exit_code ==
      0) {
    GTEST_SKIP() << "this machine has a GPU";
  }
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 -- run experiment.yaml -o out", program()));
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_THAT(outcome.err, HasSubstr("no CUDA device"));
  EXPECT_EQ(num_error_lines(outcome.err), 1U) << outcome.err;
}

TEST_F(Program, ThePrivateMpsDaemonIsStartedAndEnded) {
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 --mps on -- {}", program(), kDryRun),
            {{"COTERIE_MPS_CONTROL", fake_mps()}});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  expect_mps_gone();
}

TEST_F(Program, TheDaemonIsEndedWhenARankDies) {
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 4 --mps on -- {}", program(), kDryRun),
            {{"COTERIE_MPS_CONTROL", fake_mps()}, {"COTERIE_FAULT", "1:dispatch:kill"}});
  EXPECT_EQ(outcome.exit_code, 3) << outcome.err;
  expect_mps_gone();
}

TEST_F(Program, TheDaemonIsEndedWhenTheLauncherIsTerminated) {
  const Outcome outcome =
      shell(fmt::format("timeout -s TERM 2 {} launch --ranks 4 --mps on -- {}", program(), kDryRun),
            {{"COTERIE_MPS_CONTROL", fake_mps()}, {"COTERIE_FAULT", "1:dispatch:hang"}});
  EXPECT_EQ(outcome.exit_code, 124) << outcome.err;  // timeout's own
  EXPECT_THAT(outcome.err, HasSubstr("signal 15"));
  expect_mps_gone();
}

TEST_F(Program, TheDaemonIsEndedWhenTheLauncherIsKilled) {
  const Outcome outcome =
      shell(fmt::format("timeout -s KILL 2 {} launch --ranks 4 --mps on -- {}", program(), kDryRun),
            {{"COTERIE_MPS_CONTROL", fake_mps()}, {"COTERIE_FAULT", "1:dispatch:hang"}});
  EXPECT_EQ(outcome.exit_code, 137);
  expect_mps_gone();
}

TEST_F(Program, ADaemonThatDoesNotStartIsReported) {
  const Outcome outcome =
      shell(fmt::format("{} launch --ranks 2 --mps on -- {}", program(), kDryRun),
            {{"COTERIE_MPS_CONTROL", "/bin/false"}});
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_THAT(outcome.err, HasSubstr("MPS daemon did not start"));
}

}  // namespace
}  // namespace coterie
