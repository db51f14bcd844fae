// `coterie report`: its refusals, its bytes, and the page as a headless browser shows it. Numbers
// on the page are compared with those of the CSV, which other tests hold against their sources.

#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <map>
#include <regex>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "tests/sim/cli/program.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kExample = COTERIE_SOURCE_DIR "/workloads/examples/synthetic.yaml";

class ReportCommand : public testing::ProgramTest {
 protected:
  void simulate() const {
    const auto outcome = run(std::string("simulate ") + kExample + " -o out --engine flow");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  }
  // 6 points, of which those with 64 ranks on a node of 8 fail; 6 runs each.
  void sweep() const {
    put("sweep.yaml", std::string("schema_version: 1\nbase: ") + kExample +
                          "\naxes:\n"
                          "  - {key: engine, values: [flow]}\n"
                          "  - {key: ranks, values: [4, 8, 64]}\n"
                          "  - {key: tokens_per_rank, values: [64, 256]}\n");
    const auto outcome = run("sweep sweep.yaml -o out --jobs 1");
    ASSERT_THAT(outcome.err + outcome.out, HasSubstr("sweep.csv"));
  }
};

// The page's tables as the browser holds them after its scripts ran.
struct Shown {
  std::string document;  // the DOM as HTML
  std::string console;   // what the page and the browser printed
};

std::string browser() {
  for (const char* name : {"chromium", "chromium-browser", "google-chrome"}) {
    const std::string probe = std::string(name) +
                              " --headless --no-sandbox --disable-gpu --dump-dom about:blank "
                              "2>/dev/null | grep -q '<html'";
    if (std::system(probe.c_str()) == 0) return name;
  }
  return "";
}

class ReportPage : public ReportCommand {
 protected:
  void SetUp() override {
    ReportCommand::SetUp();
    static const std::string found = browser();
    if (found.empty()) GTEST_SKIP() << "no browser that runs headless (apt install chromium)";
    browser_ = found;
  }
  // Opens a page of the working folder; `script` runs after those of the page.
  Shown open(const std::string& page, const std::string& script = "") const {
    std::string html = text(page);
    const std::size_t end = html.rfind("</body>");
    html.insert(end, "<script>" + script + "</script>");
    put("opened.html", html);
    const std::string command =
        "cd '" + (folder_ / "work").string() + "' && " + browser_ +
        " --headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 "
        "--user-data-dir=../profile --virtual-time-budget=10000 --dump-dom opened.html "
        "> ../dom 2> ../console";
    EXPECT_EQ(std::system(command.c_str()), 0);
    return {read_file(folder_ / "dom"), read_file(folder_ / "console")};
  }
  std::string browser_;
};

// The cells of the big table, row by row: their unrounded text stands in their titles.
std::vector<std::map<std::string, std::string>> table_of(const std::string& document) {
  static const std::regex kCell("<td[^>]* title=\"([^\"]*)\" data-column=\"([^\"]*)\"");
  std::vector<std::map<std::string, std::string>> rows;
  for (std::sregex_iterator cell(document.begin(), document.end(), kCell), end; cell != end;
       ++cell) {
    if (rows.empty() || rows.back().count((*cell)[2])) rows.emplace_back();
    rows.back()[(*cell)[2]] = (*cell)[1];
  }
  return rows;
}

void expect_shows(const Shown& shown, const CsvTable& table, std::size_t num_rows) {
  EXPECT_THAT(shown.document, HasSubstr("data-ready=\"yes\""));
  EXPECT_THAT(shown.console, Not(HasSubstr("CONSOLE")));
  EXPECT_THAT(shown.document, Not(HasSubstr("src=\"http")));
  const auto rows = table_of(shown.document);
  ASSERT_EQ(rows.size(), num_rows);
  for (std::size_t row = 0; row < num_rows; ++row) {
    for (std::size_t c = 0; c < table.columns.size(); ++c) {
      std::string expected = table.rows[row][c];
      expected = std::regex_replace(expected, std::regex("\""), "&quot;");
      EXPECT_EQ(rows[row].at(table.columns[c]), expected) << table.columns[c] << ", row " << row;
    }
  }
}

TEST_F(ReportPage, OfAnExperimentShowsTheNumbersOfItsCsv) {
  simulate();
  ASSERT_EQ(run("report out").exit_code, 0);
  const Shown shown = open("out/report.html");
  const CsvTable table = parse_csv(text("out/results.csv"), "results.csv");
  ASSERT_EQ(table.rows.size(), 24U);  // 6 runs of 4 layers
  expect_shows(shown, table, 24);

  // The mean over layers of the first run, as the run table shows it.
  double sum = 0.0;
  for (std::size_t row = 0; row < 4; ++row) sum += *table.number(row, "layer_time_s");
  const std::regex mean("data-run=\"standard\">.*?data-value=\"([^\"]*)\"");
  std::smatch match;
  ASSERT_TRUE(std::regex_search(shown.document, match, mean));
  EXPECT_NEAR(std::stod(match[1]), sum / 4.0, 1e-12);
  EXPECT_THAT(shown.document, HasSubstr("<span class=\"warn\"> not exact</span>"));
  EXPECT_THAT(shown.document, HasSubstr("href=\"timeline-dedup.json\""));
  EXPECT_THAT(shown.document, HasSubstr("aria-label=\"load of links over time\""));
}

TEST_F(ReportPage, OfASweepShowsTheNumbersOfItsCsvAndWhatFailed) {
  sweep();
  ASSERT_EQ(run("report out").exit_code, 0);
  const Shown shown = open("out/report.html");
  const CsvTable table = parse_csv(text("out/sweep.csv"), "sweep.csv");
  ASSERT_EQ(table.rows.size(), 26U);  // 4 points of 6 runs, 2 that failed
  expect_shows(shown, table, 26);
  EXPECT_THAT(shown.document, HasSubstr("found 8 GPUs, expected at least 64"));
  EXPECT_THAT(shown.document, HasSubstr("2 failed"));
  // Both failed for one reason, which is said once beside their number.
  EXPECT_THAT(shown.document, HasSubstr("<table id=\"failed\">"));
  EXPECT_THAT(shown.document, HasSubstr("<td>2</td><td class=\"text sentence\">"));
  EXPECT_THAT(shown.document, HasSubstr("id=\"heat-map\""));
}

// Twice on a header sorts downwards; a click on a row shows the command that repeats its point.
TEST_F(ReportPage, TablesSortAndRowsGiveTheirCommand) {
  sweep();
  ASSERT_EQ(run("report out").exit_code, 0);
  const Shown shown =
      open("out/report.html",
           "const head = [...document.querySelectorAll('#rows thead th')].find((th) "
           "=> th.textContent === 'layer_time_s'); head.click(); head.click();"
           "document.querySelector('#rows tbody tr:last-child').click();");
  const auto rows = table_of(shown.document);
  ASSERT_EQ(rows.size(), 26U);
  double last = std::numeric_limits<double>::infinity();
  for (const auto& row : rows) {
    const std::string& cell = row.at("layer_time_s");
    const double value = cell.empty() ? std::numeric_limits<double>::infinity() : std::stod(cell);
    EXPECT_LE(value, last);
    last = value;
  }
  EXPECT_THAT(shown.document, HasSubstr("<pre id=\"command\">coterie simulate"));
}

TEST_F(ReportCommand, SameResultsSameBytes) {
  simulate();
  ASSERT_EQ(run("report out -o a.html").exit_code, 0);
  ASSERT_EQ(run("report out -o b.html").exit_code, 0);
  EXPECT_EQ(text("a.html"), text("b.html"));
  EXPECT_THAT(text("a.html"), HasSubstr("de-duplication gives"));
  EXPECT_THAT(text("a.html"), HasSubstr("<svg"));
  EXPECT_THAT(text("a.html"), HasSubstr("out/timeline-dedup.json"));
}

// A measured report of 10 iterations. Sorted, the first are 0.09357542 and 0.09736371 s, the last
// 0.10484224 and 0.12486688 s; percentiles stand at positions 0.45 and 8.55 of 0 to 9.
TEST_F(ReportCommand, IntervalsOfMeasurementsArePercentiles) {
  put("out/results.json",
      read_file(COTERIE_SOURCE_DIR
                "/runtime/results/h200_shared/reports/law-ep8-t4096-start1.json"));
  const auto outcome = run("report out");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::string page = text("out/report.html");
  EXPECT_THAT(page, HasSubstr("from the 5th to the 95th percentile of a layer's iterations"));
  std::smatch match;
  ASSERT_TRUE(std::regex_search(page, match, std::regex(R"x("low_s":([^,]*),"high_s":([^,]*),)x")));
  EXPECT_NEAR(std::stod(match[1]), 0.09357542 + 0.45 * (0.09736371 - 0.09357542), 1e-9);
  EXPECT_NEAR(std::stod(match[2]), 0.10484224 + 0.55 * (0.12486688 - 0.10484224), 1e-9);
}

TEST_F(ReportCommand, RefusesWithOneSentence) {
  simulate();
  put("empty/x.txt", "");
  put("version/results.json", "{\"schema_version\": 9}");
  put("broken/results.json", "{\"schema_version\": ");
  put("rows/sweep.csv", "point,status,error,run\n1,ok\n");
  put("columns/sweep.csv", "point,status,error\n1,ok,\n");
  put("facts/sweep.csv", "point,status,error\n1,failed,no\n");
  put("facts/sweep.json", "{\"schema_version\": 2}");
  put("unfinished/points.0.jsonl", "");
  const std::vector<testing::Refusal> refusals{
      {"report nowhere", "nowhere: found nothing there, expected a folder that coterie"},
      {"report out/results.csv", "found a file, expected a folder"},
      {"report empty", "found neither results.json nor sweep.csv"},
      {"report version", "schema_version"},
      {"report broken", "results.json"},
      {"report rows", "rows/sweep.csv:2: found 2 cells, expected 4"},
      {"report columns", "columns/sweep.csv: found no column \"run\""},
      {"report facts", "facts/sweep.json: found schema_version 2, expected schema_version 1"},
      {"report unfinished", "found a sweep that has not ended"},
      {"report out -o nowhere/report.html", "nowhere"}};
  for (const testing::Refusal& refusal : refusals) {
    const auto outcome = run(refusal.arguments);
    EXPECT_EQ(outcome.exit_code, refusal.exit_code) << refusal.arguments;
    EXPECT_THAT(outcome.err, HasSubstr(refusal.sentence)) << refusal.arguments;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_EQ(outcome.out, "") << refusal.arguments;
  }
  EXPECT_FALSE(exists("nowhere"));
}

}  // namespace
}  // namespace coterie
