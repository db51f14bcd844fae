// VALIDATION.md says what `coterie validate` finds. Needs the measured tables and traces, which are
// not part of the project.

#include <gmock/gmock.h>

#include <map>
#include <regex>
#include <sstream>

#include "core/error.hpp"
#include "sim/calibrate/measured_runs.hpp"
#include "tests/sim/cli/program.hpp"

namespace coterie {
namespace {

class ValidationFile : public testing::ProgramTest {};

// The rows of the summary: name -> numbers.
std::map<std::string, std::vector<double>> summary_rows(const std::string& text) {
  std::map<std::string, std::vector<double>> rows;
  std::istringstream lines(text);
  std::string line;
  std::string protocol;
  static const std::regex kNumber(R"(\| (\d+(\.\d+)?)( %)? )");
  while (std::getline(lines, line) && !line.starts_with("## ")) {
    if (line.starts_with("| **")) protocol = line.substr(0, line.find(" | "));
    if (!line.starts_with("| **") && !line.starts_with("| ...")) continue;
    const std::string name = protocol + line.substr(0, line.find(" | "));
    const std::string cells = line.substr(line.find(" | "));
    for (std::sregex_iterator cell(cells.begin(), cells.end(), kNumber), end; cell != end; ++cell) {
      rows[name].push_back(std::stod((*cell)[1]));
    }
  }
  return rows;
}

// Percentages may differ by rounding and by the solver's last digits, not by more.
TEST_F(ValidationFile, AgreesWithTheCommand) {
  const std::filesystem::path data = COTERIE_SHARED_DATA;
  if (!std::filesystem::exists(data / "measurements")) {
    GTEST_SKIP() << "no measured tables in " << data;
  }
  const auto outcome = run("validate --data " + (data / "measurements").string() + " --traces " +
                           (data / "traces" / "deepseek-v2-lite-esft").string() +
                           " --runs " COTERIE_SOURCE_DIR "/runtime/results/h200_shared -o now.md");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto committed = summary_rows(read_file(COTERIE_SOURCE_DIR "/VALIDATION.md"));
  const auto now = summary_rows(text("now.md"));
  EXPECT_GE(now.size(), 30U);
  ASSERT_EQ(committed.size(), now.size());
  for (const auto& [name, numbers] : now) {
    ASSERT_EQ(committed.count(name), 1U) << name;
    ASSERT_EQ(committed.at(name).size(), numbers.size()) << name;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      EXPECT_NEAR(committed.at(name)[i], numbers[i], 0.3) << name;
    }
  }
}

TEST_F(ValidationFile, MissingMeasurementsAreNamedAndSkipped) {
  const auto outcome = run("validate --data none --runs none --traces none --preset star");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const char* file : {"none/nccl_alltoall_one_node.csv", "none/expert_mlp_h200_bf16.csv",
                           "none/deepep_normal_h200_ep8.csv", "none/reports"}) {
    EXPECT_THAT(outcome.err, ::testing::HasSubstr(std::string("skipped: no file ") + file));
  }
  EXPECT_THAT(outcome.out, ::testing::HasSubstr("incast of 8 nodes"));
}

// Reports without the runs of each other, and a folder without reports.
TEST_F(ValidationFile, RefusesReportsThatDoNotFitTogether) {
  put("runs/reports/notes.txt", "");
  EXPECT_THROW((void)predict_measured_runs(folder_ / "work" / "runs", "none"), InputError);
}

}  // namespace
}  // namespace coterie
