// Results files: what is written is read back, and the table has one line per run and layer.

#include "core/results.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

// What is said against it; empty where nothing is.
std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

Results example_results() {
  RunReport run;
  run.kind = "measured";
  run.engine = "nccl";
  run.name = "a, \"quoted\" run";
  run.policy = "dedup";
  run.placement = "contiguous";
  run.topology = "star";
  run.model = "tiny";
  run.num_ranks = 2;
  run.dispatch_payload = run.combine_payload = "bf16";
  LayerReport layer;
  layer.layer = 3;
  layer.time_s = 0.3;
  layer.phases.push_back({Phase::kDispatch, {0.0, 0.1}, {0.25, 0.3}, {0.2, 0.25}});
  TransferGroup group;
  group.tier = "network";
  group.bytes = 42;
  layer.groups = {group, group};
  run.layers = {layer, layer};
  run.exact = false;
  run.weight_lost = 0.25;
  run.top1_changed = 0.0;
  return {"example", {run}};
}

TEST(Results, RoundTrip) {
  const Results original = example_results();
  const Results read = results_from_json(to_json(original), "here");
  EXPECT_EQ(to_json(read), to_json(original));
}

TEST(Results, OtherDocumentsAreRefused) {
  EXPECT_THROW((void)results_from_json({{"schema_version", 2}}, "here"), InputError);
  EXPECT_THROW((void)results_from_json(nlohmann::json::array(), "here"), InputError);
}

// Expected by hand: a header and two layers; the slowest dispatch is max(0.25 - 0, 0.3 - 0.1); the
// two groups of 42 bytes add up. Rank 1 ends last: it waits 0.1 s and dispatches 0.2 s.
TEST(Results, CsvHasOneLinePerRunAndLayer) {
  const CsvTable table = parse_csv(to_csv(example_results().runs), "results.csv");
  ASSERT_EQ(table.rows.size(), 2U);
  for (const auto& [column, value] :
       std::map<std::string, std::string>{{"run", "a, \"quoted\" run"},
                                          {"status", "ok"},
                                          {"error", ""},
                                          {"engine", "nccl"},
                                          {"layer", "3"},
                                          {"layer_time_s", "0.3"},
                                          {"layer_low_s", ""},
                                          {"dispatch_slowest_rank_s", "0.25"},
                                          {"mlp_slowest_rank_s", "0"},
                                          {"dispatch_s", "0.25"},
                                          {"critical_rank", "1"},
                                          {"critical_wait_s", "0.1"},
                                          {"critical_dispatch_s", "0.19999999999999998"},
                                          {"dispatch_network_bytes", "84"},
                                          {"combine_network_bytes", "0"},
                                          {"busiest_link", ""},
                                          {"weight_lost", "0.25"},
                                          {"top1_changed", "0"}}) {
    ASSERT_TRUE(table.find(column)) << column;
    EXPECT_EQ(table.text(0, column), value) << column;
  }
}

// A run that failed has one line: who it is and why; nothing that looks like a number.
TEST(Results, FailedRunsHaveALine) {
  Results results = example_results();
  RunReport failed;
  failed.kind = "measured";
  failed.name = "capped";
  failed.policy = "dedup";
  failed.failure = "no placement keeps to 1.0, expected one that does";
  results.runs.push_back(failed);
  const CsvTable table = parse_csv(to_csv(results.runs), "results.csv");
  ASSERT_EQ(table.rows.size(), 3U);
  EXPECT_EQ(table.text(2, "status"), "failed");
  EXPECT_EQ(table.text(2, "error"), *failed.failure);
  EXPECT_EQ(table.text(2, "layer_time_s"), "");
  const Results read = results_from_json(to_json(results), "here");
  EXPECT_EQ(read.runs.back().failure, failed.failure);
}

// ------------------------------------------------------------ the folder

class ResultsFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("coterie_results_test_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  [[nodiscard]] std::set<std::string> names() const {
    std::set<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      out.insert(entry.path().filename().string());
    }
    return out;
  }
  static ResultFiles files(const std::string& experiment, const std::string& run) {
    ResultFiles out{example_results(), {}, "name: " + experiment + "\n", "coterie simulate"};
    out.results.experiment = experiment;
    out.results.runs.front().name = run;
    out.timelines.push_back({run, {{{"ranks", "rank 0", "dispatch", 0.0, 1.0}}, {}}});
    out.timelines.push_back({"empty", {}});
    return out;
  }
  fs::path folder_;
};

TEST_F(ResultsFolder, IsReplacedWholeByTheSameExperiment) {
  write_results(folder_, "measured", files("a", "first"));
  EXPECT_EQ(names(), (std::set<std::string>{"command.txt", "effective.yaml", "results.csv",
                                            "results.json", "timeline-first.json"}));
  write_results(folder_, "measured", files("a", "second"));
  EXPECT_EQ(names(), (std::set<std::string>{"command.txt", "effective.yaml", "results.csv",
                                            "results.json", "timeline-second.json"}));
  EXPECT_EQ(read_results(folder_ / "results.json").runs.front().name, "second");
}

TEST_F(ResultsFolder, OfSomebodyElseIsRefusedAndLeftAlone) {
  write_results(folder_, "measured", files("a", "first"));
  const std::set<std::string> before = names();
  EXPECT_EQ(refusal([&] { write_results(folder_, "measured", files("b", "second")); }),
            folder_.string() +
                ": found measured results of experiment a, expected a new or empty folder, or "
                "measured results of b");
  EXPECT_EQ(refusal([&] { write_results(folder_, "predicted", files("a", "second")); }),
            folder_.string() +
                ": found measured results of experiment a, expected a new or empty folder, or "
                "predicted results of a");
  EXPECT_EQ(names(), before);
  // Interrupted before results.json: effective.yaml tells whose the folder is.
  fs::remove(folder_ / "results.json");
  EXPECT_NE(refusal([&] { check_results_folder(folder_, "b", "measured"); }), "");
  EXPECT_EQ(refusal([&] { check_results_folder(folder_, "a", "measured"); }), "");
  fs::remove(folder_ / "effective.yaml");
  EXPECT_NE(refusal([&] { check_results_folder(folder_, "a", "measured"); }), "");
  write_file(folder_ / "notes.txt", "mine");
  EXPECT_NE(refusal([&] { check_results_folder(folder_, "a", "measured"); }).find("notes.txt"),
            std::string::npos);
}

}  // namespace
}  // namespace coterie
