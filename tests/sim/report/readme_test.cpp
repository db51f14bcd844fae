// The README's first table is what the program prints for the bundled example.

#include <gmock/gmock.h>

#include <sstream>

#include "tests/sim/cli/program.hpp"

namespace coterie {
namespace {

class Readme : public testing::ProgramTest {};

TEST_F(Readme, ShowsWhatQuickstartPrints) {
  const std::string readme = read_file(COTERIE_SOURCE_DIR "/README.md");
  const auto outcome =
      run("simulate " COTERIE_SOURCE_DIR "/workloads/examples/quickstart.yaml -o out");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::istringstream printed(outcome.out);
  std::string line;
  int num_rows = 0;
  while (std::getline(printed, line) && !line.starts_with("results in")) {
    EXPECT_THAT(readme, ::testing::HasSubstr(line + "\n"));
    ++num_rows;
  }
  EXPECT_GE(num_rows, 9);  // title, header and the six runs
}

}  // namespace
}  // namespace coterie
