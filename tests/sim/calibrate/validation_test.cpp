// VALIDATION.md says what `coterie validate` finds. Needs the measured tables and traces, which are
// not part of the project.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <cstdlib>

#include <cstdlib>
#include <map>
#include <regex>
#include <sstream>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "sim/calibrate/measured_runs.hpp"
#include "sim/calibrate/validate.hpp"
#include "tests/sim/cli/program.hpp"

namespace coterie {
namespace {

class ValidationFile : public testing::ProgramTest {};

// The rows of the page's tables with their numbers: "SECTION / NAME" -> numbers, where the table of
// all protocols has no section.
std::map<std::string, std::vector<double>> table_rows(const std::string& page) {
  std::map<std::string, std::vector<double>> rows;
  std::istringstream lines(page);
  std::string line;
  std::string section;
  static const std::regex kNumber(R"(\| (\d+(\.\d+)?)( %)? (?=\|))");
  bool furthest = false;
  while (std::getline(lines, line)) {
    if (line.starts_with("## ")) section = line.substr(3);
    if (!line.starts_with("|")) furthest = false;
    if (line.starts_with("| furthest off")) furthest = true;
    // Which points are the worst may hang on the last digit.
    if (!line.starts_with("| ") || furthest) continue;
    const std::string name = section + " / " + line.substr(2, line.find(" | ") - 2);
    const std::string cells = line.substr(line.find(" | "));
    for (std::sregex_iterator cell(cells.begin(), cells.end(), kNumber), end; cell != end; ++cell) {
      rows[name].push_back(std::stod((*cell)[1]));
    }
  }
  return rows;
}

// Percentages may differ by rounding and by the solver's last digits, not by more. The table of
// points has as many as the page says, and each row's error is that of its times.
TEST_F(ValidationFile, AgreesWithTheCommand) {
  const std::filesystem::path data = COTERIE_DATA;
  if (!std::filesystem::exists(data / "measurements")) {
    GTEST_SKIP() << "no measured tables: the build's COTERIE_DATA names no folder that has them";
  }
  const auto outcome =
      run("validate --data " + (data / "measurements").string() + " --traces " +
          (data / "traces" / "deepseek-v2-lite-esft").string() +
          " --runs " COTERIE_SOURCE_DIR "/runtime/results/h200_shared" +
          " --nvlink-runs " COTERIE_SOURCE_DIR "/runtime/results/h200_nvlink_2" +
          " --nvlink-runs " COTERIE_SOURCE_DIR "/runtime/results/h200_nvlink_4" +
          " --nvlink-runs " COTERIE_SOURCE_DIR "/runtime/results/h100_nvlink_2" +
          " --nvlink-runs " COTERIE_SOURCE_DIR "/runtime/results/h100_nvlink_4" +
          " --direct-runs " COTERIE_SOURCE_DIR "/runtime/results/h200_direct_2gpu" +
          " --direct-runs " COTERIE_SOURCE_DIR "/runtime/results/h100_direct_2gpu" +
          " -o now.md --points now.csv");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto committed = table_rows(read_file(COTERIE_SOURCE_DIR "/VALIDATION.md"));
  const auto now = table_rows(text("now.md"));
  EXPECT_GE(now.size(), 30U);
  ASSERT_EQ(committed.size(), now.size());
  for (const auto& [name, numbers] : now) {
    ASSERT_EQ(committed.count(name), 1U) << name;
    ASSERT_EQ(committed.at(name).size(), numbers.size()) << name;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      EXPECT_NEAR(committed.at(name)[i], numbers[i], 0.3) << name;
    }
  }

  const std::string committed_points =
      read_file(COTERIE_SOURCE_DIR "/notebooks/results/validation.csv");
  const CsvTable before = parse_csv(committed_points, "validation.csv");
  const CsvTable points = parse_csv(text("now.csv"), "now.csv");
  ASSERT_EQ(before.rows.size(), points.rows.size());
  std::map<std::string, double> num_points;
  std::string protocol;
  for (std::size_t row = 0; row < points.rows.size(); ++row) {
    const std::string named = points.text(row, "protocol");
    if (!named.empty()) protocol = named;
    ++num_points[protocol];
    for (const char* column : {"protocol", "group", "point"}) {
      EXPECT_EQ(before.text(row, column), points.text(row, column));
    }
    const double ratio = *points.number(row, "predicted_s") / *points.number(row, "measured_s");
    // Three digits of each: half a percent of either, twice.
    EXPECT_NEAR(*points.number(row, "error"), ratio - 1.0, 0.011 * ratio);
    EXPECT_NEAR(*before.number(row, "error"), *points.number(row, "error"), 0.004);
  }
  for (const auto& [title, count] : num_points) {
    EXPECT_EQ(now.at(" / " + title).front(), count) << title;
  }
}

// Names stand in the first line that they hold for, and a protocol's first line names both. Written out
// by hand; 12.5 us over 10 is a quarter too long.
TEST(ValidationTable, NamesStandOnceUntilTheyChange) {
  const auto point = [](const char* group, const char* name, double predicted_s) {
    return ValidationPoint{
        .group = group, .name = name, .measured_s = 1e-5, .predicted_s = predicted_s};
  };
  Validation validation;
  validation.sections.resize(2);
  validation.sections[0].title = "sizes, left out";
  validation.sections[0].points = {point("two", "a", 1e-5), point("two", "b", 1.25e-5),
                                   point("four", "a", 1e-5)};
  validation.sections[1].title = "shapes";
  validation.sections[1].points = {point("four", "a", 1e-5)};
  EXPECT_EQ(to_csv(validation),
            "protocol,group,point,measured_s,predicted_s,error\n"
            "\"sizes, left out\",two,a,1e-05,1e-05,0.000\n"
            ",,b,1e-05,1.25e-05,0.250\n"
            ",four,a,1e-05,1e-05,0.000\n"
            "shapes,four,a,1e-05,1e-05,0.000\n");
}

TEST_F(ValidationFile, MissingMeasurementsAreNamedAndSkipped) {
  make_folder(folder_ / "work" / "none");
  const auto outcome = run("validate --data none --runs none --traces none --preset star");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const char* file : {"none/nccl_alltoall_repeats.csv", "none/expert_mlp_h200_bf16.csv",
                           "none/deepep_normal_one_node.csv", "none/reports"}) {
    EXPECT_THAT(outcome.err, ::testing::HasSubstr(std::string("skipped: no file ") + file));
  }
  EXPECT_THAT(outcome.out, ::testing::HasSubstr("incast of 8 nodes"));
}

// Runs without the traces that they were of are left out, and one sentence names what is missing.
TEST_F(ValidationFile, RunsWithoutTracesAreNamedAndSkipped) {
  make_folder(folder_ / "work" / "none");
  // Not those that may lie where this machine keeps its data.
  ASSERT_EQ(::setenv("COTERIE_DATA", (folder_ / "work" / "none").c_str(), 1), 0);
  const auto outcome =
      run("validate --data none --runs none --preset star --nvlink-runs " COTERIE_SOURCE_DIR
          "/runtime/results/h100_nvlink_4 --direct-runs " COTERIE_SOURCE_DIR
          "/runtime/results/h100_direct_2gpu");
  EXPECT_EQ(outcome.exit_code, 0);
  const std::string sentence = "skipped: no file ";
  const std::string traces = "traces/deepseek-v2-lite-esft\n";
  const std::size_t found = outcome.err.find(traces);
  ASSERT_NE(found, std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find(traces, found + 1), std::string::npos) << outcome.err;
  EXPECT_THAT(outcome.err.substr(0, found), ::testing::HasSubstr(sentence));
}

TEST_F(ValidationFile, RefusesNamedFoldersThatAreNotThere) {
  put("file", "");
  for (const char* option : {"--data", "--runs", "--nvlink-runs", "--direct-runs", "--traces"}) {
    for (const char* folder : {"none", "file"}) {
      const auto outcome = run(fmt::format("validate {} {} --preset star", option, folder));
      EXPECT_EQ(outcome.exit_code, 2) << option;
      EXPECT_THAT(outcome.err, ::testing::HasSubstr(fmt::format(
                                   "{}: found \"{}\", which is no folder, expected a folder, or no "
                                   "such option",
                                   option, folder)));
    }
  }
}

// A folder of runs must say what was run: its experiments, and one probe with its skeleton.
TEST_F(ValidationFile, RefusesNvlinkFoldersThatAreNotWhole) {
  make_folder(folder_ / "work" / "traces");
  make_folder(folder_ / "work" / "none");
  put("traces/law.moet", "");
  const std::string source = COTERIE_SOURCE_DIR "/runtime/results/h100_nvlink_4/";
  const std::string report = "reports/law-h2048-t128-fp8-ep4-start1.json";
  put("h100/" + report, read_file(source + report));
  const std::string command =
      "validate --data none --runs none --traces traces --nvlink-runs h100 --preset star";
  EXPECT_THAT(run(command).err, ::testing::HasSubstr("0 files of curves, 0 of topologies"));
  put("h100/curves_ep4.json", read_file(source + "curves_ep4.json"));
  put("h100/topology_ep4.yaml", read_file(source + "topology_ep4.yaml"));
  const auto outcome = run(command);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, ::testing::HasSubstr("h100/ep4_h2048.yaml"));
}

// Reports without the runs of each other, and a folder without reports.
TEST_F(ValidationFile, RefusesReportsThatDoNotFitTogether) {
  put("runs/reports/notes.txt", "");
  EXPECT_THROW((void)predict_measured_runs(folder_ / "work" / "runs", "none"), InputError);
}

}  // namespace
}  // namespace coterie
