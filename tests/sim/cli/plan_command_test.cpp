// `coterie plan` as scripts use it: outputs and exit codes.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/file.hpp"
#include "tests/workloads/plan/plan_samples.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/plan/plan_file.hpp"

namespace coterie::testing {
namespace {

class PlanCommand : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    plan_.model = "tiny";
    plan_.hidden = 128;
    plan_.layers = {tiny_plan(DispatchPolicy::kDedup)};
    write_plan(folder_ / "a.plan", plan_);
  }
  // Runs in the test's folder; stdout and stderr land in files there.
  int run(const std::string& arguments) const {
    const std::string command = "cd '" + folder_.string() +
                                "' && " COTERIE_BINARY_DIR "/bin/coterie plan " + arguments +
                                " > out 2> err";
    return WEXITSTATUS(std::system(command.c_str()));
  }
  std::string out() const { return read_file(folder_ / "out"); }
  std::string err() const { return read_file(folder_ / "err"); }
  DispatchPlan plan_;
};

TEST_F(PlanCommand, SoundPlanExitsWithZero) {
  EXPECT_EQ(run("check a.plan"), 0);
  EXPECT_NE(out().find("sound: every (token, expert) is served once"), std::string::npos);
  EXPECT_EQ(run("check a.plan --json"), 0);
  const auto document = nlohmann::json::parse(out());
  EXPECT_EQ(document["copies"], 12);
  EXPECT_EQ(document["num_violations"], 0);
}

TEST_F(PlanCommand, UnsoundPlanExitsWithFour) {
  plan_.layers[0].rank_expert_tokens[3] = 5;
  write_plan(folder_ / "b.plan", plan_);
  EXPECT_EQ(run("check b.plan"), 4);
  EXPECT_EQ(out(), "layer 0: rank 1: expert 3 is said to serve 5 tokens, 1 arrive\n");
  EXPECT_EQ(
      err(),
      "coterie: error: b.plan: 1 violation(s), the first: layer 0: rank 1: expert 3 is said to "
      "serve 5 tokens, 1 arrive\n");
  EXPECT_EQ(run("check b.plan --json"), 4);
  EXPECT_EQ(nlohmann::json::parse(out())["num_violations"], 1);
}

TEST_F(PlanCommand, DamagedAndMissingFilesExitWithTwo) {
  const std::string whole = read_file(folder_ / "a.plan");
  write_file(folder_ / "c.plan", whole.substr(0, whole.size() / 2));
  EXPECT_EQ(run("check c.plan"), 2);
  EXPECT_EQ(run("check missing.plan"), 2);
  EXPECT_EQ(run("export a.plan --format pcap"), 2);
  EXPECT_EQ(run("export a.plan --format matrix --stage 1"), 2);
  EXPECT_EQ(err(),
            "coterie: error: stage: found 1, expected less than 1, the stages of a dedup "
            "plan\n");
  EXPECT_EQ(run("build missing.yaml --run x -o x.plan"), 2);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.plan"));
}

// Rows of 256 B and 4 B, copies of 8 B: the matrix of matrix_test.cpp with another payload.
TEST_F(PlanCommand, ExportWritesTheFormats) {
  EXPECT_EQ(run("export a.plan --format matrix"), 0);
  EXPECT_EQ(out(), "268 276 276 268\n0 0 0 0\n268 0 268 268\n276 268 0 0\n");
  EXPECT_EQ(run("export a.plan --format matrix --direction combine -o m"), 0);
  EXPECT_EQ(read_file(folder_ / "m"), "256 0 256 256\n256 0 0 256\n256 0 256 0\n256 0 256 0\n");
  EXPECT_EQ(run("export a.plan --format matrix --direction combine --unit KiB"), 0);
  EXPECT_EQ(out().substr(0, 19), "0.25 0 0.25 0.25\n0.");
  EXPECT_EQ(run("export a.plan --format htsim"), 0);
  EXPECT_EQ(out().substr(0, 23), "Nodes 4\nConnections 7\n0");
  EXPECT_EQ(run("export a.plan --format goal"), 0);
  EXPECT_EQ(out().substr(0, 12), "num_ranks 4\n");
  // The name of the output says the format where no option does.
  EXPECT_EQ(run("export a.plan -o a.cm"), 0);
  EXPECT_EQ(read_file(folder_ / "a.cm").substr(0, 7), "Nodes 4");
  EXPECT_EQ(run("export a.plan -o a.goal"), 0);
  EXPECT_EQ(read_file(folder_ / "a.goal").substr(0, 12), "num_ranks 4\n");
  EXPECT_EQ(run("export a.plan"), 0);
  EXPECT_EQ(out(), "268 276 276 268\n0 0 0 0\n268 0 268 268\n276 268 0 0\n");
}

}  // namespace
}  // namespace coterie::testing
