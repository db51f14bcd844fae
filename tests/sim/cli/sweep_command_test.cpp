// `coterie sweep` as a program: refusals in one sentence, kill -9 and a full disk survived, the
// same table from any number of processes, and commands that repeat a point.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "core/csv.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::string kProgram = std::string(COTERIE_BINARY_DIR) + "/bin/coterie";

struct Output {
  int exit_code = 0;
  std::string text;  // stdout and stderr
};

Output run(const std::string& command) {
  Output out;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  while (std::size_t n = fread(buffer, 1, sizeof(buffer), pipe)) out.text.append(buffer, n);
  out.exit_code = WEXITSTATUS(pclose(pipe));
  return out;
}

class SweepCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              (std::string("coterie_sweep_") + info->name() + std::to_string(getpid()));
    make_folder(folder_);
    write_file(folder_ / "base.yaml",
               "schema_version: 1\ntopology: h100_node\nmodel: deepseek_v2_lite\n"
               "trace: {file: " COTERIE_SOURCE_DIR
               "/workloads/examples/collaborating.moet, train: even, eval: odd}\n"
               "ranks: 8\ntokens_per_rank: 64\npayload: {dispatch: bf16, combine: bf16}\n"
               "engine: flow\nruns:\n"
               "  - {name: standard, placement: contiguous, dispatch: standard}\n"
               "  - {name: placed, placement: collaboration, dispatch: dedup}\n");
    write_sweep(
        "axes:\n  - {key: ranks, values: [2, 4, 8]}\n"
        "  - {key: tokens_per_rank, values: [64, 96, 128, 160, 192, 224, 256, 288]}\n"
        "baseline: {run: standard}\n");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write_sweep(const std::string& body) const {
    write_file(folder_ / "s.yaml", "schema_version: 1\nbase: base.yaml\n" + body);
  }
  // The command that sweeps into folder_/NAME.
  [[nodiscard]] std::string sweep(const std::string& name, const std::string& options = "") const {
    return kProgram + " sweep " + (folder_ / "s.yaml").string() + " -o " + path(name) + " " +
           options;
  }
  [[nodiscard]] std::string path(const std::string& name) const {
    return (folder_ / name).string();
  }
  [[nodiscard]] std::string table(const std::string& name) const {
    return read_file(folder_ / name / "sweep.csv");
  }
  // Ids in all journals of a folder, one per entry.
  [[nodiscard]] std::vector<std::string> recorded(const std::string& name) const {
    std::vector<std::string> ids;
    for (const auto& file : fs::directory_iterator(folder_ / name)) {
      if (file.path().extension() != ".jsonl") continue;
      std::istringstream lines(read_file(file.path()));
      for (std::string line; std::getline(lines, line);) {
        const auto entry = nlohmann::json::parse(line, nullptr, false);
        if (entry.is_object() && entry.contains("id")) ids.push_back(entry["id"]);
      }
    }
    return ids;
  }
  fs::path folder_;
};

TEST_F(SweepCommand, RefusesAxesOfWhichNoPointLoads) {
  const auto refused = [&](const std::string& axes, const std::string& sentence) {
    write_sweep("axes: [" + axes + "]\n");
    const Output out = run(sweep("out"));
    EXPECT_EQ(out.exit_code, 2) << out.text;
    EXPECT_EQ(std::count(out.text.begin(), out.text.end(), '\n'), 1) << out.text;
    EXPECT_THAT(out.text, HasSubstr(sentence));
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  };
  refused("{key: rank, values: [8, 16]}", "none of the 2 points can be loaded; the first: ");
  refused("{key: rank, values: [8]}", "unknown key \"rank\", expected one of chunk, ");
  refused("{key: ranks, values: [many]}", "--set ranks: found \"many\"");
  refused("{key: topology.scale_up.bandwidth, values: [50 GBps]}",
          "expected a bandwidth with its unit");
  refused("{key: topology, values: [h100_nod]}", "h100_nod");
}

TEST_F(SweepCommand, RefusesFoldersThatCannotBeUsed) {
  write_file(folder_ / "file", "");
  EXPECT_THAT(run(sweep("file")).text, HasSubstr("file: the folder cannot be created"));
  EXPECT_THAT(run(sweep("file/x")).text, HasSubstr("file/x: the folder cannot be created"));
  EXPECT_EQ(run(sweep("file")).exit_code, 2);
  ASSERT_EQ(run(sweep("out")).exit_code, 0);
  write_sweep("axes: [{key: ranks, values: [4, 8]}]\n");
  EXPECT_THAT(run(sweep("out")).text, HasSubstr("results of another sweep"));
}

// 128 ranks are more than the experts, "many" is no number, and 8 work.
TEST_F(SweepCommand, RecordsAFailedPointWithItsSentence) {
  write_sweep("axes: [{key: ranks, values: [128, many, 8]}, {key: topology, values: [star]}]\n");
  const Output out = run(sweep("out"));
  // The others are written; the exit code is that of the first that failed, now and on every further start.
  EXPECT_EQ(out.exit_code, 2) << out.text;
  EXPECT_THAT(out.text, HasSubstr(" failed: ranks: found 128, expected at most 64"));
  const Output again = run(sweep("out"));
  EXPECT_EQ(again.exit_code, 2) << again.text;
  EXPECT_THAT(again.text, HasSubstr("3                     3        0       2"));
  EXPECT_THAT(table("out"), HasSubstr(",128,star,failed,\"ranks: found 128, expected at most 64"));
  EXPECT_THAT(table("out"), HasSubstr(",many,star,failed,\"'--set ranks: found \"\"many\"\""));
  EXPECT_THAT(table("out"), HasSubstr(",8,star,ok,"));
}

// A cap of 1.0 cannot be met by co-activation on 8 ranks, one of 4.0 can: only one run of one point
// fails, and its row says who and why.
TEST_F(SweepCommand, ARunThatFailsLeavesTheOthersOfItsPoint) {
  write_sweep("axes: [{key: runs.1.max_imbalance, values: [1.0, 4.0]}]\n");
  const Output out = run(sweep("out"));
  EXPECT_EQ(out.exit_code, 2) << out.text;
  EXPECT_THAT(out.text, ::testing::ContainsRegex(
                            "error: run placed of point [0-9a-f]+ failed: max-imbalance: found 1"));
  const CsvTable rows = parse_csv(table("out"), "sweep.csv");
  ASSERT_EQ(rows.rows.size(), 4U);
  for (std::size_t row = 0; row < 4; ++row) {
    const bool fails = rows.text(row, "run") == "placed" &&
                       rows.text(row, "set.runs.1.max_imbalance").starts_with("1");
    EXPECT_EQ(rows.text(row, "status"), fails ? "failed" : "ok");
    EXPECT_EQ(rows.text(row, "error").starts_with("max-imbalance: found 1"), fails);
    EXPECT_EQ(rows.number(row, "layer_time_s").has_value(), !fails);
    EXPECT_EQ(rows.text(row, "policy"), rows.text(row, "run") == "placed" ? "dedup" : "standard");
  }
}

TEST_F(SweepCommand, AnAxisMayHoldWholeBlocks) {
  write_sweep(
      "axes:\n  - {key: topology, values: [h100_rail_optimised]}\n  - {key: ranks, values: [16]}\n"
      "  - {key: topology.fabric, values: [{kind: rail_only}, {kind: star}]}\n");
  ASSERT_EQ(run(sweep("out")).exit_code, 0);
  EXPECT_THAT(table("out"), HasSubstr(",16,{kind: rail_only},ok,"));
  EXPECT_THAT(table("out"), HasSubstr(",16,{kind: star},ok,"));
}

TEST_F(SweepCommand, GoesOnAfterKillMinusNine) {
  ASSERT_EQ(run(sweep("whole")).exit_code, 0);
  // One job and SimGrid's child per layer make the sweep last long enough to be hit.
  int kills = 0;
  for (int attempt = 0; attempt < 12; ++attempt) {
    const pid_t child = ::fork();
    if (child == 0) {
      if (::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(9);
      ::execl(kProgram.c_str(), kProgram.c_str(), "sweep", path("s.yaml").c_str(), "-o",
              path("killed").c_str(), "--jobs", "1", nullptr);
      ::_exit(9);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + 7 * attempt));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    kills += WIFSIGNALED(status) ? 1 : 0;
  }
  EXPECT_GT(kills, 0);
  ASSERT_EQ(run(sweep("killed")).exit_code, 0);
  EXPECT_EQ(table("killed"), table("whole"));
  const auto ids = recorded("killed");
  EXPECT_EQ(ids.size(), 24U);
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 24U);
}

// A limit on the size of files stands for the full disk: the journal cannot grow beyond it. (The
// trap keeps the signal that the limit raises from ending the program: a full disk raises none.)
TEST_F(SweepCommand, GoesOnAfterAFullDisk) {
  ASSERT_EQ(run(sweep("whole")).exit_code, 0);
  const Output full = run("bash -c \"trap '' XFSZ; ulimit -f 24; " + sweep("full") + "\"");
  EXPECT_EQ(full.exit_code, 2);
  EXPECT_THAT(full.text, HasSubstr("free the cause and start again, nothing finished is lost"));
  const std::size_t kept = recorded("full").size();
  EXPECT_GT(kept, 0U);
  EXPECT_LT(kept, 24U);
  const Output resumed = run(sweep("full", "--json"));
  EXPECT_EQ(nlohmann::json::parse(resumed.text).at("reused"), kept);
  EXPECT_EQ(table("full"), table("whole"));
  EXPECT_EQ(recorded("full").size(), 24U);
}

TEST_F(SweepCommand, SpreadsOverTheRanksOfMpirun) {
  if (run("mpirun --version").exit_code != 0) GTEST_SKIP() << "no mpirun";
  ASSERT_EQ(run(sweep("whole")).exit_code, 0);
  // Open MPI's plug-ins leak; with the address sanitizer that would count as a failure.
  const std::string launcher =
      "ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
      "mpirun --oversubscribe -n 2 ";
  const Output out = run(launcher + sweep("spread"));
  ASSERT_EQ(out.exit_code, 0) << out.text;
  EXPECT_EQ(table("spread"), table("whole"));
  EXPECT_EQ(recorded("spread").size(), 24U);
  // The header and about half of the points each.
  for (const std::string name : {"points.0.jsonl", "points.1.jsonl"}) {
    const std::string text = read_file(folder_ / "spread" / name);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 13) << name;
  }
  // A lone process goes on where two left off.
  EXPECT_EQ(nlohmann::json::parse(run(sweep("spread", "--json")).text).at("reused"), 24);
  // Both ranks find the same fault; one of them says it.
  write_sweep("axes: [{key: rank, values: [8]}]\n");
  const Output refused = run(launcher + sweep("refused"));
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_EQ(refused.text.find("coterie: error:"), refused.text.rfind("coterie: error:"));
}

TEST_F(SweepCommand, CommandsRepeatAPoint) {
  write_sweep("runs: [placed]\naxes: [{key: ranks, values: [4]}]\n");
  ASSERT_EQ(run(sweep("out")).exit_code, 0);
  std::string command = read_file(folder_ / "out" / "commands.txt");
  command.pop_back();
  const std::string id = recorded("out").at(0);
  const Output out = run("cd " + folder_.string() + " && PATH=" + COTERIE_BINARY_DIR +
                         "/bin:$PATH && " + command + " --json");
  ASSERT_EQ(out.exit_code, 0) << command << "\n" << out.text;
  const auto results = nlohmann::json::parse(read_file(folder_ / id / "results.json"));
  ASSERT_EQ(results.at("runs").size(), 1U);
  EXPECT_THAT(table("out"), HasSubstr(results["runs"][0].at("time_s").dump()));
}

// The trace is part of what decides the results: with another one under the same name, results of
// the old one do not count.
TEST_F(SweepCommand, ResultsOfAnotherTraceDoNotCount) {
  const std::string trace = COTERIE_SOURCE_DIR "/workloads/examples/collaborating.moet";
  std::string base = read_file(folder_ / "base.yaml");
  base.replace(base.find(trace), trace.size(), "t.moet");
  write_file(folder_ / "base.yaml", base);
  fs::copy_file(trace, folder_ / "t.moet");
  ASSERT_EQ(run(sweep("out")).exit_code, 0);
  ASSERT_EQ(
      run(kProgram + " trace generate " COTERIE_SOURCE_DIR "/workloads/examples/uniform.yaml -o " +
          path("t.moet"))
          .exit_code,
      0);
  EXPECT_THAT(run(sweep("out")).text, HasSubstr("results of another sweep"));
}

// `coterie recommend` for tokens whose experts are popular by Zipf's law.
class RecommendCommand : public SweepCommand {
 protected:
  [[nodiscard]] std::string recommend(const std::string& name, const std::string& more) const {
    write_file(folder_ / "step.yaml",
               "schema_version: 1\ntopology: h100_node\nmodel: deepseek_v2_lite\nranks: 8\n"
               "payload: {dispatch: fp8, combine: bf16}\nengine: flow\n"
               "step:\n  kind: decode\n  parallel: {ep: 8}\n"
               "  batch: {sequences_per_gpu: 64, context: 1024}\n  precision: fp8\n"
               "  routing: {skew: 1.0}\n"
               "runs:\n  - {name: standard, placement: contiguous, dispatch: standard}\n");
    return kProgram + " recommend " + (folder_ / "step.yaml").string() + " -o " + path(name) + " " +
           more;
  }
  [[nodiscard]] nlohmann::json result(const std::string& name) const {
    return nlohmann::json::parse(read_file(folder_ / name / "recommend.json"));
  }
};

// The contiguous rank of the hot experts has more rows than any rank of a placement that balances them:
// with the same sizes the step is no longer with that.
TEST_F(RecommendCommand, TriesPlacementsAndReplicasAndSaysWhatBinds) {
  const std::string options = "--price 2.5 --max-points 12 --jobs ";
  const Output out = run(recommend("out", options + "2"));
  ASSERT_EQ(out.exit_code, 0) << out.text;
  EXPECT_THAT(out.text, HasSubstr("placement +replicas"));
  const nlohmann::json json = result("out");
  EXPECT_EQ(json.at("simulated"), 12);
  EXPECT_EQ(json.at("failed"), 0);
  std::set<std::string> placements;
  std::set<int> replicas;
  const auto sizes = [](const nlohmann::json& one) {
    nlohmann::json settings = one.at("settings");
    settings.erase("runs");
    return settings;
  };
  int num_pairs = 0;
  for (const auto& one : json.at("candidates")) {
    placements.insert(one.at("placement").get<std::string>());
    replicas.insert(one.at("replicas").get<int>());
    EXPECT_FALSE(one.at("binds").get<std::string>().empty());
    EXPECT_TRUE(one.at("cost_per_million_tokens").is_number());
    if (one.at("placement") != "load_balanced" || one.at("replicas") != 0) continue;
    for (const auto& other : json.at("candidates")) {
      if (other.at("placement") != "contiguous" || sizes(other) != sizes(one)) continue;
      ++num_pairs;
      EXPECT_LE(one.at("time_s").get<double>(), 1.001 * other.at("time_s").get<double>());
    }
  }
  EXPECT_GT(num_pairs, 0);
  EXPECT_GT(placements.size(), 1U);
  EXPECT_GT(replicas.size(), 1U);
  EXPECT_TRUE(fs::exists(folder_ / "out" / "pareto.svg"));
  EXPECT_THAT(read_file(folder_ / "out" / "placements.yaml"), HasSubstr("load_balanced"));

  // The same bytes from one job, and from a start that finds all that it needs.
  const std::string first = read_file(folder_ / "out" / "recommend.json");
  ASSERT_EQ(run(recommend("one", options + "1")).exit_code, 0);
  EXPECT_EQ(read_file(folder_ / "one" / "recommend.json"), first);
  ASSERT_EQ(run(recommend("out", options + "2")).exit_code, 0);
  EXPECT_EQ(read_file(folder_ / "out" / "recommend.json"), first);
}

TEST_F(RecommendCommand, SearchesWhatItIsTold) {
  const Output out = run(recommend(
      "out", "--max-points 6 --placements load_balanced,random --replicas 0,8 --memory 40GB"));
  ASSERT_EQ(out.exit_code, 0) << out.text;
  const nlohmann::json document = result("out");
  for (const auto& one : document.at("candidates")) {
    const auto placement = one.at("placement").get<std::string>();
    EXPECT_TRUE(placement == "load_balanced" || (placement == "random" && one.at("replicas") == 0))
        << placement;
    EXPECT_LE(one.at("memory_share").get<double>(), 40e9 / 80e9);
  }
  const Output wrong = run(recommend("wrong", "--placements colaboration"));
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.text, HasSubstr("--placements: found \"colaboration\", expected one of"));
  const Output memory = run(recommend("memory", "--memory 1MB"));
  EXPECT_EQ(memory.exit_code, 2);
  EXPECT_THAT(memory.text, HasSubstr("not fit in memory"));
}

}  // namespace
}  // namespace coterie
