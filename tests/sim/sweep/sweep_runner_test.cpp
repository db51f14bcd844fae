#include "sim/sweep/runner.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// 12 points over two axes. Evaluating a point leaves a mark on disk, so that repetition shows.
class SweepRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("coterie_sweep_runner_" + std::to_string(::getpid()));
    make_folder(folder_);
    write_file(folder_ / "base.yaml", "schema_version: 1\nruns: [{name: x}, {name: y}]\n");
    write_file(
        folder_ / "s.yaml",
        "schema_version: 1\nbase: base.yaml\nbaseline: {ranks: 1, run: x}\n"
        "axes:\n  - {key: ranks, values: [1, 2, 3, 4]}\n  - {key: seed, values: [1, 2, 3]}\n");
    spec_ = load_sweep(folder_ / "s.yaml");
    options_.folder = folder_ / "out";
    options_.num_jobs = 2;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Rows for runs x and y: time = 12 / ranks, half of it for y.
  [[nodiscard]] EvaluatePoint evaluate() const {
    return [marks = folder_ / "marks"](const SweepPoint& point) {
      std::ofstream(marks, std::ios::app) << point.id + "\n";
      const double time = 12.0 / std::stod(point.settings[0].second);
      return ordered_json::array(
          {{{"run", "x"}, {"layer_time_s", time}}, {{"run", "y"}, {"layer_time_s", time / 2}}});
    };
  }
  [[nodiscard]] long num_marks() const {
    const std::string text = fs::exists(folder_ / "marks") ? read_file(folder_ / "marks") : "";
    return std::count(text.begin(), text.end(), '\n');
  }
  fs::path folder_;
  SweepSpec spec_;
  SweepOptions options_;
};

TEST_F(SweepRunnerTest, RunsEveryPointOnceAndThenNothing) {
  const SweepCounts first = run_points(spec_, options_, evaluate());
  EXPECT_EQ(first.done, 12U);
  const SweepCounts second = run_points(spec_, options_, evaluate());
  EXPECT_EQ(second.done, 0U);
  EXPECT_EQ(second.reused, 12U);
  EXPECT_EQ(num_marks(), 12);
}

TEST_F(SweepRunnerTest, WritesTheSameTablesForAnyNumberOfJobs) {
  run_points(spec_, options_, evaluate());
  write_sweep_tables(spec_, collect(spec_, options_.folder), options_.folder);
  const std::string csv = read_file(options_.folder / "sweep.csv");
  EXPECT_EQ(csv.substr(0, csv.find('\n')),
            "point,set.ranks,set.seed,status,error,run,layer_time_s,speedup_over_baseline");
  // ranks 4, run y: 12 s at ranks 1 run x against 1.5 s.
  EXPECT_NE(csv.find(",4,3,ok,,y,1.5,8.0"), std::string::npos) << csv;
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 25);

  SweepOptions alone = options_;
  alone.folder = folder_ / "alone";
  alone.num_jobs = 1;
  run_points(spec_, alone, evaluate());
  write_sweep_tables(spec_, collect(spec_, alone.folder), alone.folder);
  EXPECT_EQ(read_file(alone.folder / "sweep.csv"), csv);
}

TEST_F(SweepRunnerTest, AFailedPointIsRecordedAndTheOthersGoOn) {
  const auto failing = [&](const SweepPoint& point) -> ordered_json {
    if (point.settings[0].second == "2") throw InputError("no such cluster");
    if (point.settings[0].second == "3") std::abort();
    return evaluate()(point);
  };
  const SweepCounts counts = run_points(spec_, options_, failing);
  EXPECT_EQ(counts.done, 12U);
  EXPECT_EQ(counts.failed, 6U);
  write_sweep_tables(spec_, collect(spec_, options_.folder), options_.folder);
  EXPECT_NE(read_file(options_.folder / "sweep.csv").find(",2,1,failed,no such cluster"),
            std::string::npos);
  const auto first = first_failure(collect(spec_, options_.folder));
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->sentence.ends_with(" failed: no such cluster")) << first->sentence;
  EXPECT_EQ(first->code, ExitCode::kBadInput);

  options_.retry_failed = true;
  EXPECT_EQ(run_points(spec_, options_, evaluate()).done, 6U);
  EXPECT_EQ(run_points(spec_, options_, evaluate()).failed, 0U);
  EXPECT_FALSE(first_failure(collect(spec_, options_.folder)));
}

TEST_F(SweepRunnerTest, RanksShareTheWork) {
  for (int rank = 0; rank < 3; ++rank) {
    options_.rank = rank;
    options_.size = 3;
    // All ranks of a job see the same folder; here they run one after the other, so each sees what
    // the earlier ones recorded and must still leave nothing out.
    run_points(spec_, options_, evaluate());
  }
  options_.rank = 0;
  options_.size = 1;
  run_points(spec_, options_, evaluate());
  EXPECT_EQ(num_marks(), 12);
  EXPECT_EQ(collect(spec_, options_.folder).size(), 12U);
}

// Killed with SIGKILL at arbitrary moments and started again, it loses nothing that was recorded
// and repeats only the points that were under way.
TEST_F(SweepRunnerTest, GoesOnAfterKill) {
  const auto slow = [&](const SweepPoint& point) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return evaluate()(point);
  };
  int kills = 0;
  for (int attempt = 0; attempt < 40; ++attempt) {
    const pid_t child = ::fork();
    if (child == 0) {
      run_points(spec_, options_, slow);
      ::_exit(0);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(60 + 10 * attempt));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status)) break;
    ++kills;
  }
  EXPECT_GT(kills, 0);
  const SweepCounts last = run_points(spec_, options_, evaluate());
  EXPECT_EQ(last.reused + last.done, 12U);
  EXPECT_EQ(collect(spec_, options_.folder).size(), 12U);
  EXPECT_LE(num_marks(), 12 + 2 * kills);  // two points at most were under way at each kill
}

}  // namespace
}  // namespace coterie
