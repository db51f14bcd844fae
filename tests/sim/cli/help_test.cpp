// What `--help` says of every command: each option that takes a value either must be given, or says what
// holds without it.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "core/csv.hpp"
#include "tests/sim/cli/program.hpp"

namespace coterie::testing {
namespace {

// The options and subcommands that a help page lists, one text each.
struct HelpPage {
  std::vector<std::string> options, subcommands;
};

HelpPage read_help(const std::string& text) {
  static const std::regex kEntry("^  (\\S+)(.*)$");
  static const std::regex kHeading("^(\\S[^:]*):$");
  HelpPage page;
  std::istringstream lines(text);
  std::string line, section;
  while (std::getline(lines, line)) {
    std::smatch match;
    if (line.empty()) {
      section.clear();
    } else if (std::regex_match(line, match, kHeading)) {
      section = match[1];
    } else if (section == "Options" && std::regex_match(line, match, kEntry)) {
      if (line.starts_with("  -")) {
        page.options.push_back(line.substr(2));
      } else if (!page.options.empty()) {
        page.options.back() += " " + line.substr(line.find_first_not_of(' '));
      }
    } else if (section == "Options" && !page.options.empty()) {
      page.options.back() += " " + line.substr(line.find_first_not_of(' '));
    } else if (section == "Subcommands" && std::regex_match(line, match, kEntry)) {
      page.subcommands.push_back(match[1]);
    }
  }
  return page;
}

// Whether the option takes no value, must be given, or names its default: CLI11 writes one that it knows
// behind the type, as in UINT=4; others are said in words. Lists begin empty where they are repeatable.
bool names_its_default(const std::string& option) {
  static const std::regex kTakesValue(R"(^\S+ (TEXT|UINT|INT|FLOAT|BOOLEAN|ENUM)\b)");
  static const std::regex kKnown(
      R"(^\S+ (TEXT|UINT|INT|FLOAT)(:\{[^}]*\}|:\S+ in \[[^\]]*\]|:[^\s=]+)?=\S)");
  static const std::regex kSaid(R"(\bdefault\b|\(repeatable| REQUIRED)");
  return !std::regex_search(option, kTakesValue) || std::regex_search(option, kKnown) ||
         std::regex_search(option, kSaid);
}

class HelpTest : public ProgramTest {
 protected:
  // Walks the command and those below it; returns how many options it saw.
  std::size_t check(const std::string& command) const {
    const Outcome outcome = run(command + " --help");
    EXPECT_EQ(outcome.exit_code, 0) << command << "\n" << outcome.err;
    const HelpPage page = read_help(outcome.out);
    EXPECT_FALSE(page.options.empty()) << command;
    for (const std::string& option : page.options) {
      EXPECT_TRUE(names_its_default(option)) << "coterie " << command << ": " << option;
    }
    std::size_t seen = page.options.size();
    for (const std::string& name : page.subcommands) {
      seen += check(command.empty() ? name : command + " " + name);
    }
    return seen;
  }
};

TEST_F(HelpTest, EveryOptionNamesItsDefault) {
  EXPECT_GT(check(""), 150U);  // all commands were found
}

// Lines as CLI11 2.3 prints them.
TEST_F(HelpTest, TheCheckSeesOptionsWithoutADefault) {
  EXPECT_FALSE(names_its_default("--svg TEXT                  Draw the cluster to this file"));
  EXPECT_FALSE(names_its_default("--ranks UINT:UINT in [1 - 4194304] GPUs to hold"));
  EXPECT_FALSE(names_its_default("--timeout FLOAT:NONNEGATIVE Seconds; 0: no limit"));
  EXPECT_TRUE(names_its_default("--timeout FLOAT:NONNEGATIVE=0 Seconds that one point may take"));
  EXPECT_TRUE(names_its_default("--starts UINT:UINT in [1 - 65536]=4 Searches"));
  EXPECT_TRUE(names_its_default("--mps TEXT:{auto,on,off}=auto Private MPS daemon"));
  EXPECT_TRUE(names_its_default("--train TEXT=even           Sequences to learn on"));
  EXPECT_TRUE(names_its_default("--ranks UINT REQUIRED       EP ranks"));
  EXPECT_TRUE(names_its_default("--set TEXT ...              KEY=VALUE (repeatable)"));
  EXPECT_TRUE(names_its_default("--json                      Print JSON only"));
  const HelpPage page = read_help(
      "Says something\nUsage: x\n\nOptions:\n  --a TEXT                    One thing\n"
      "  --long UINT:UINT in [1 - 4194304]\n                              Another\n\n"
      "Subcommands:\n  list                        Lists\n\nExample:\n  x list\n");
  EXPECT_EQ(page.options.size(), 2U);
  EXPECT_EQ(page.subcommands, std::vector<std::string>{"list"});
}

// The sweep that its help shows is one: two batch sizes by two payloads, of which one point is skipped,
// and two of the experiment's three runs.
TEST_F(HelpTest, TheSweepInTheHelpRuns) {
  std::istringstream lines(run("sweep --help").out);
  std::string line, sweep;
  while (std::getline(lines, line) && !line.starts_with("  schema_version")) {
  }
  for (; !line.empty(); std::getline(lines, line)) sweep += line.substr(2) + "\n";
  put("sweep.yaml", sweep);
  put("experiment.yaml",
      "schema_version: 1\ntopology: h100_node\nmodel: deepseek_v2_lite\n"
      "trace: {file: " COTERIE_SOURCE_DIR
      "/workloads/examples/collaborating.moet, train: even, eval: odd}\n"
      "ranks: 8\ntokens_per_rank: 64\nengine: flow\nruns:\n"
      "  - {name: standard, placement: contiguous, dispatch: standard}\n"
      "  - {name: dedup, placement: contiguous, dispatch: dedup}\n"
      "  - {name: random, placement: random, dispatch: dedup}\n");
  const Outcome outcome = run("sweep sweep.yaml -o out --jobs 1");
  ASSERT_EQ(outcome.exit_code, 0) << sweep << outcome.err;
  const CsvTable table = parse_csv(text("out/sweep.csv"), "sweep.csv");
  EXPECT_EQ(table.rows.size(), 3U * 2U) << text("out/sweep.csv");
}

}  // namespace
}  // namespace coterie::testing
