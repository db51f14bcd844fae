#include "core/file.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "core/error.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("coterie_file_test_" + std::to_string(::getpid()));
    make_folder(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  [[nodiscard]] std::size_t num_files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}));
  }
  fs::path folder_;
};

TEST_F(FileTest, WritesAndReadsBack) {
  const std::string content("a\0b\n", 4);
  write_file(folder_ / "x", content);
  EXPECT_EQ(read_file(folder_ / "x"), content);
  EXPECT_EQ(num_files(), 1U);  // no temporary name is left
}

TEST_F(FileTest, AFailedWriteKeepsTheOldFileAndLeavesNothingElse) {
  write_file(folder_ / "x", "old");
  EXPECT_THROW(write_file(folder_ / "x",
                          [](std::ostream& out) {
                            out << "half";
                            throw std::runtime_error("interrupted");
                          }),
               std::runtime_error);
  EXPECT_EQ(read_file(folder_ / "x"), "old");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(FileTest, ASignalKeepsTheOldFileAndLeavesNothingElse) {
  write_file(folder_ / "x", "old");
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const auto interrupted_write = [&] {
      remove_unfinished_files_on_signals();
      write_file(folder_ / "x", [&](std::ostream& out) {
        out << "half" << std::flush;
        ::raise(signal);
      });
    };
    EXPECT_EXIT(interrupted_write(), ::testing::KilledBySignal(signal), "");
    EXPECT_EQ(read_file(folder_ / "x"), "old");
    EXPECT_EQ(num_files(), 1U);
  }
}

TEST_F(FileTest, SaysWhatIsWrong) {
  EXPECT_THROW(read_file(folder_ / "missing"), InputError);
  EXPECT_THROW(read_file(folder_), InputError);
  EXPECT_THROW(write_file(folder_ / "no" / "such" / "x", "content"), InputError);
  write_file(folder_ / "x", "content");
  EXPECT_THROW(make_folder(folder_ / "x"), InputError);
}

}  // namespace
}  // namespace coterie
