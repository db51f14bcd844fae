#pragma once
// Runs the built `coterie` as scripts run it: in a folder of its own, with stdout and stderr apart.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "tests/workloads/trace/sample.hpp"

namespace coterie::testing {

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

class ProgramTest : public FolderTest {
 protected:
  // The arguments go through the shell; the working folder is folder_/work, which holds nothing
  // that the test or the program did not put there.
  Outcome run(const std::string& arguments) const {
    make_folder(folder_ / "work");
    const std::string command = "cd '" + (folder_ / "work").string() +
                                "' && " COTERIE_BINARY_DIR "/bin/coterie " + arguments +
                                " > ../out 2> ../err";
    const int status = std::system(command.c_str());
    return {WEXITSTATUS(status), read_file(folder_ / "out"), read_file(folder_ / "err")};
  }
  // The same, for a run that must succeed; its JSON.
  nlohmann::json json_of(const std::string& arguments) const {
    const Outcome outcome = run(arguments + " --json");
    EXPECT_EQ(outcome.exit_code, 0) << arguments << "\n" << outcome.err;
    return nlohmann::json::parse(outcome.out, nullptr, false);
  }
  std::string text(const std::string& name) const { return read_file(folder_ / "work" / name); }
  void put(const std::string& name, const std::string& content) const {
    const std::filesystem::path path = folder_ / "work" / name;
    std::filesystem::create_directories(path.parent_path());
    write_file(path, content);
  }
  bool exists(const std::string& name) const {
    return std::filesystem::exists(folder_ / "work" / name);
  }
  // Files of the working folder, sorted, folders left out.
  std::vector<std::string> files(const std::string& below = "") const {
    std::vector<std::string> names;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(folder_ / "work" / below)) {
      if (entry.is_regular_file()) {
        names.push_back(entry.path().lexically_relative(folder_ / "work").string());
      }
    }
    std::sort(names.begin(), names.end());
    return names;
  }
};

// A bad command line, and what its one sentence on stderr must hold.
struct Refusal {
  std::string arguments;
  std::string sentence;
  int exit_code = 2;
};

}  // namespace coterie::testing
