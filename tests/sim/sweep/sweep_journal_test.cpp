#include "sim/sweep/journal.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class JournalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = fs::temp_directory_path() / ("coterie_journal_" + std::to_string(::getpid()));
    fs::remove(file_);
  }
  void TearDown() override { fs::remove(file_); }
  [[nodiscard]] std::string error_of(const std::string& sweep_id) const {
    try {
      const Journal journal(file_, sweep_id);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }
  fs::path file_;
};

TEST_F(JournalTest, KeepsEntriesAcrossStarts) {
  {
    Journal journal(file_, "s");
    journal.append({{"id", "a"}, {"value", 1}});
  }
  Journal(file_, "s").append({{"id", "b"}, {"value", 2}});
  const auto entries = read_journal(file_, "s");
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries.at("a").at("value"), 1);
}

// Whatever prefix of the file a crash leaves, the next start finds all complete lines and goes on.
TEST_F(JournalTest, SurvivesACutAtEveryByte) {
  {
    Journal journal(file_, "s");
    journal.append({{"id", "a"}});
    journal.append({{"id", "b"}});
  }
  const std::string whole = read_file(file_);
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    write_file(file_, whole.substr(0, size));
    Journal(file_, "s").append({{"id", "c"}});
    const auto entries = read_journal(file_, "s");
    const std::string kept = whole.substr(0, size);
    const auto num_lines = std::count(kept.begin(), kept.end(), '\n');
    EXPECT_EQ(static_cast<long>(entries.size()), std::max(0L, num_lines - 1) + 1) << size;
    EXPECT_TRUE(entries.contains("c"));
  }
}

TEST_F(JournalTest, RefusesForeignAndBusyFiles) {
  { Journal journal(file_, "s"); }
  EXPECT_NE(error_of("t").find("results of another sweep"), std::string::npos);
  const Journal open(file_, "s");
  EXPECT_NE(error_of("s").find("a sweep that is still running on it"), std::string::npos);
}

TEST_F(JournalTest, RefusesAnotherVersionAndDamage) {
  write_file(file_, "{\"schema_version\":1,\"coterie\":\"0.0.1\",\"sweep\":\"s\"}\n");
  EXPECT_NE(error_of("s").find("found results of version 0.0.1"), std::string::npos);
  write_file(file_, "garbage\n");
  EXPECT_NE(error_of("s").find(":1: found a damaged line"), std::string::npos);
  write_file(file_, "{\"schema_version\":\"1\"}\n");
  EXPECT_NE(error_of("s").find(":1: found schema_version \"1\", expected"), std::string::npos);
  write_file(file_, "{\"coterie\":1}\n");
  EXPECT_NE(error_of("s").find(":1: found no schema_version, expected"), std::string::npos);
  write_file(file_, "{\"schema_version\":1,\"coterie\":7}\n");
  EXPECT_NE(error_of("s").find(":1: found results of version unknown"), std::string::npos);
}

// A damaged entry is a point that was not done: those around it count.
TEST_F(JournalTest, LeavesDamagedEntriesAside) {
  Journal(file_, "s").append({{"id", "a"}, {"value", 1}});
  const std::string sound = read_file(file_);
  for (const std::string damaged :
       {"garbage", "[]", "{}", "{\"id\":1}", "{\"id\":\"x\",\"value\":[]}"}) {
    write_file(file_, sound + damaged + "\n");
    Journal(file_, "s").append({{"id", "b"}, {"value", 2}});
    const auto entries =
        read_journal(file_, "s", [](const json& entry) { return entry.at("value").is_number(); });
    EXPECT_EQ(entries.size(), 2U) << damaged;
    EXPECT_TRUE(entries.contains("a") && entries.contains("b")) << damaged;
  }
}

// A file-size limit stands for a full disk: the append fails with a sentence, and what was complete
// stays readable.
TEST_F(JournalTest, AFullDiskLosesNothing) {
  { Journal(file_, "s").append({{"id", "a"}}); }
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const auto size = static_cast<rlim_t>(fs::file_size(file_));
    const rlimit limit{size + 10, size + 10};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      Journal(file_, "s").append({{"id", "b"}, {"text", std::string(100, 'x')}});
    } catch (const InputError&) {
      ::_exit(7);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  Journal(file_, "s").append({{"id", "c"}});
  const auto entries = read_journal(file_, "s");
  EXPECT_EQ(entries.size(), 2U);
  EXPECT_TRUE(entries.contains("a") && entries.contains("c"));
}

}  // namespace
}  // namespace coterie
