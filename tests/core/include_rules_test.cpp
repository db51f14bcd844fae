// Which folder may include what. The compiler cannot tell, because every library's headers are
// visible everywhere on Debian.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/file.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

// What each folder may use besides itself and the standard library.
const std::map<std::string, Names>& allowed() {
  static const Names kCore{"core", "fmt", "spdlog", "yaml-cpp", "nlohmann-json", "xxhash"};
  static const auto kTable = [] {
    const auto with = [](Names base, const Names& more) {
      base.insert(more.begin(), more.end());
      return base;
    };
    std::map<std::string, Names> table;
    // Above core, yaml-cpp and xxHash stay behind core's own interfaces.
    const Names core_users{"core", "fmt", "spdlog", "nlohmann-json"};
    table["core"] = kCore;
    table["topologies"] = with(core_users, {"boost", "pugixml"});
    table["workloads"] =
        with(core_users, {"topologies", "boost", "protobuf", "zlib", "libzip", "libdeflate"});
    table["sim"] =
        with(core_users, {"topologies", "workloads", "simgrid", "mpi", "CLI11", "ceres", "eigen"});
    table["kernels"] = {"cuda", "cutlass"};
    table["runtime"] =
        with(core_users, {"topologies", "workloads", "kernels", "cuda", "nccl", "CLI11"});
    return table;
  }();
  return kTable;
}

// The folder or library that an include names; empty for the standard library and the system's C
// headers.
std::string owner(const std::string& header) {
  static const std::vector<std::pair<std::string, std::string>> kPrefixes{
      {"core/", "core"},
      {"topologies/", "topologies"},
      {"workloads/", "workloads"},
      {"sim/", "sim"},
      {"kernels/", "kernels"},
      {"runtime/", "runtime"},
      {"tests/", "tests"},
      {"boost/", "boost"},
      {"pugixml", "pugixml"},
      {"simgrid", "simgrid"},
      {"xbt", "simgrid"},
      {"yaml-cpp/", "yaml-cpp"},
      {"nlohmann/", "nlohmann-json"},
      {"fmt/", "fmt"},
      {"spdlog/", "spdlog"},
      {"xxhash", "xxhash"},
      {"CLI/", "CLI11"},
      {"google/protobuf", "protobuf"},
      {"mpi.h", "mpi"},
      {"nccl", "nccl"},
      {"cuda", "cuda"},
      {"cub", "cuda"},
      {"thrust/", "cuda"},
      {"cutlass/", "cutlass"},
      {"cute/", "cutlass"},
      {"zip.h", "libzip"},
      {"zlib.h", "zlib"},
      {"libdeflate", "libdeflate"},
      {"ceres/", "ceres"},
      {"Eigen/", "eigen"},
      {"gtest/", "gtest"},
      {"gmock/", "gtest"},
      {"benchmark/", "google-benchmark"}};
  for (const auto& [prefix, name] : kPrefixes) {
    if (header.starts_with(prefix)) return name;
  }
  if (header.ends_with(".pb.h")) return "protobuf";
  return "";
}

std::vector<std::string> violations(const std::string& folder, const std::string& file,
                                    const std::string& text) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  std::vector<std::string> found;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::smatch match;
    if (!std::regex_search(line, match, kInclude)) continue;
    const std::string name = owner(match[1]);
    if (name.empty() || name == folder || allowed().at(folder).contains(name)) continue;
    found.push_back(fmt::format("{}:{}: {}/ may not include {} ({})", file, number, folder,
                                match[1].str(), name));
  }
  return found;
}

bool is_source(const fs::path& path) {
  static const Names kEndings{".hpp", ".cpp", ".cu", ".cuh", ".h"};
  return kEndings.contains(path.extension().string());
}

TEST(IncludeRules, EveryFolderKeepsToTheTable) {
  std::vector<std::string> all;
  int num_files = 0;
  for (const auto& [folder, names] : allowed()) {
    for (const auto& entry :
         fs::recursive_directory_iterator(fs::path(COTERIE_SOURCE_DIR) / folder)) {
      if (!entry.is_regular_file() || !is_source(entry.path())) continue;
      ++num_files;
      const std::string name = fs::relative(entry.path(), COTERIE_SOURCE_DIR).generic_string();
      const auto found = violations(folder, name, read_file(entry.path()));
      all.insert(all.end(), found.begin(), found.end());
    }
  }
  EXPECT_GT(num_files, 20);  // the folders were found
  EXPECT_TRUE(all.empty()) << fmt::format("{}", fmt::join(all, "\n"));
}

TEST(IncludeRules, SimGridStaysInAFewFiles) {
  Names files;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(COTERIE_SOURCE_DIR) / "sim")) {
    if (!entry.is_regular_file() || !is_source(entry.path())) continue;
    if (read_file(entry.path()).find("<simgrid/") != std::string::npos) {
      files.insert(entry.path().filename().string());
    }
  }
  EXPECT_LE(files.size(), 3U) << fmt::format("{}", fmt::join(files, ", "));
}

TEST(IncludeRules, TheCheckSeesViolations) {
  EXPECT_EQ(violations("runtime", "r.cpp", "#include <vector>\n#include \"sim/program.hpp\"\n"),
            std::vector<std::string>{"r.cpp:2: runtime/ may not include sim/program.hpp (sim)"});
  EXPECT_EQ(violations("core", "c.cpp", "# include <simgrid/s4u.hpp>\n").size(), 1U);
  EXPECT_EQ(violations("workloads", "w.cpp", "#include <xxhash.h>\n").size(), 1U);
  EXPECT_TRUE(
      violations("kernels", "k.cu", "#include <cuda_runtime.h>\n#include \"kernels/a.hpp\"\n")
          .empty());
}

}  // namespace
}  // namespace coterie
