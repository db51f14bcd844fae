// Files of one folder are compiled together where COTERIE_UNITY is on (core/unity.cmake), those of the
// tests, too. Their unnamed namespaces are then one: two classes of one name do not compile, and of two
// functions of one name with different parameters a call could silently take the other file's. So names
// are kept apart.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
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

// Names of types, constants and functions in the unnamed namespaces of a file that clang-format wrote:
// what is declared there begins in the first column.
std::set<std::string> internal_names(const std::string& text) {
  static const std::regex kType(
      R"(^(?:template.*> )?(?:struct|class|enum class|enum|union|using(?= \w+ =)) (\w+))");
  static const std::regex kConstant(R"(^(?:constexpr|const|inline)\b[^=(]*\b(k[A-Z]\w*)\s*[={\[])");
  static const std::regex kFunction(R"(^[A-Za-z_\[][^=]*?\b(\w+)\()");
  static const std::regex kMacro(R"(^(?:static_assert|TEST|TYPED_TEST|INSTANTIATE_TEST))");
  std::set<std::string> names;
  std::istringstream lines(text);
  std::string line;
  bool inside = false;
  while (std::getline(lines, line)) {
    if (line == "namespace {") inside = true;
    if (line == "}  // namespace") inside = false;
    std::smatch match;
    if (!inside || std::regex_search(line, kMacro) ||
        !(std::regex_search(line, match, kType) || std::regex_search(line, match, kConstant) ||
          std::regex_search(line, match, kFunction))) {
      continue;
    }
    // GoogleTest asks for printers of this name, which differ in the type that they print.
    if (match[1] != "PrintTo") names.insert(match[1]);
  }
  return names;
}

// Types that a header declares: of these, too, a folder's files have one each.
std::set<std::string> declared_types(const std::string& text) {
  static const std::regex kType(R"(^(?:struct|class|enum class) (\w+))");
  std::set<std::string> names;
  std::istringstream lines(text);
  std::string line;
  std::smatch match;
  while (std::getline(lines, line)) {
    if (std::regex_search(line, match, kType)) names.insert(match[1]);
  }
  return names;
}

TEST(UnityRules, FilesOfAFolderShareNoInternalNames) {
  std::map<std::pair<std::string, std::string>, std::set<std::string>> files;  // by folder, name
  int num_files = 0;
  for (const char* library : {"core", "topologies", "workloads", "sim", "tests"}) {
    for (const auto& entry :
         fs::recursive_directory_iterator(fs::path(COTERIE_SOURCE_DIR) / library)) {
      const std::string file = entry.path().filename().string();
      const bool header = entry.path().extension() == ".hpp";
      // Modules are libraries, and benchmarks programs, of their own.
      if ((entry.path().extension() != ".cpp" && !header) || file.ends_with("_module.cpp") ||
          file.starts_with("bench_")) {
        continue;
      }
      ++num_files;
      const std::string folder = entry.path().parent_path().string();
      const std::string text = read_file(entry.path());
      for (const std::string& name : header ? declared_types(text) : internal_names(text)) {
        files[{folder, name}].insert(file);
      }
    }
  }
  EXPECT_GT(num_files, 250);  // the folders were found
  for (const auto& [key, names] : files) {
    const bool internal = std::any_of(
        names.begin(), names.end(), [](const std::string& name) { return name.ends_with(".cpp"); });
    EXPECT_TRUE(names.size() == 1 || !internal)
        << fmt::format("{}: {} stands in the unnamed namespaces, or headers, of {}", key.first,
                       key.second, fmt::join(names, ", "));
  }
}

TEST(UnityRules, TheCheckSeesNames) {
  EXPECT_EQ(internal_names("int outside(int);\n"
                           "namespace {\n"
                           "struct Row {\n"
                           "  int member(int);\n"
                           "};\n"
                           "using Key = std::pair<int, int>;\n"
                           "constexpr std::array<int, 2> kSizes{1, 2};\n"
                           "constexpr double kBytes = 2.0;\n"
                           "std::vector<std::pair<int, int>> pairs_of(const Row& row,\n"
                           "                                          int more) {\n"
                           "  return other(kBytes);\n"
                           "}\n"
                           "[[noreturn]] void fail(int code);\n"
                           "static_assert(sizeof(int) == 4);\n"
                           "TEST(Suite, Name) {\n"
                           "INSTANTIATE_TEST_SUITE_P(Table, Suite, ::testing::ValuesIn(kSizes));\n"
                           "void PrintTo(const Row& row, std::ostream* out) {\n"
                           "}  // namespace\n"
                           "int after(int);\n"),
            (std::set<std::string>{"Row", "Key", "kSizes", "kBytes", "pairs_of", "fail"}));
}

}  // namespace
}  // namespace coterie
