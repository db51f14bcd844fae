// Ranks killed, stopped, hung and failing at every stage of a run: the others end within seconds
// with code 3 and one sentence that names the rank, and no process stays behind. Without a GPU the
// dry executor passes the same stages.

#include <gmock/gmock.h>

#include <fstream>

#include "tests/runtime/fixture.hpp"

namespace coterie {
namespace {

using testing::HasSubstr;

struct Fault {
  int rank;
  std::string point;
  std::string action;
};
void PrintTo(const Fault& fault, std::ostream* out) {
  *out << fault.rank << ":" << fault.point << ":" << fault.action;
}

class Faults : public RuntimeFixture, public testing::WithParamInterface<Fault> {
 protected:
  // Processes that were started in this test's folder.
  [[nodiscard]] std::vector<std::string> left_behind() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      std::error_code error;
      const auto where = std::filesystem::read_symlink(entry.path() / "cwd", error);
      if (!error && where == folder_) found.push_back(entry.path().filename());
    }
    return found;
  }
};

TEST_P(Faults, EndEverybodyWithOneSentence) {
  const Fault& fault = GetParam();
  const Outcome outcome =
      shell(fmt::format("timeout 60 {} launch --ranks 4 -- run experiment.yaml -o out --dry-run "
                        "--iterations 1 --warmup 1 --deadline 3 --silence 2",
                        program()),
            {{"COTERIE_FAULT", fmt::format("{}:{}:{}", fault.rank, fault.point, fault.action)}});
  EXPECT_EQ(outcome.exit_code, 3) << outcome.err;
  EXPECT_EQ(num_error_lines(outcome.err), 1U) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr(fmt::format("rank {}", fault.rank)));
  // The deadline or the silence, then the launcher's grace for the rest, on a slow machine.
  EXPECT_LT(outcome.seconds, 25.0);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/dry_run.json"));
  EXPECT_THAT(left_behind(), testing::IsEmpty());
}

std::vector<Fault> all_faults() {
  std::vector<Fault> faults;
  for (const char* point :
       {"rendezvous", "init", "dispatch", "combine", "warm-up", "in-flight", "report"}) {
    for (const char* action : {"kill", "stop", "hang", "throw", "exit"}) {
      faults.push_back({2, point, action});
    }
  }
  // Rank 0 holds the hub.
  for (const char* action : {"kill", "stop", "hang"}) faults.push_back({0, "dispatch", action});
  faults.push_back({0, "report", "kill"});
  // Before the rendezvous only the launcher can tell.
  faults.push_back({2, "start", "kill"});
  faults.push_back({0, "start", "kill"});
  return faults;
}

INSTANTIATE_TEST_SUITE_P(EveryStage, Faults, testing::ValuesIn(all_faults()),
                         [](const auto& instance) {
                           std::string point = instance.param.point;
                           std::erase(point, '-');
                           return fmt::format("rank{}_{}_{}", instance.param.rank, point,
                                              instance.param.action);
                         });

}  // namespace
}  // namespace coterie
