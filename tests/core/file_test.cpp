#include "core/file.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

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

std::string sentence(const std::function<void()>& attempt) {
  try {
    attempt();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(FileTest, EveryFailureNamesPathAndCause) {
  fs::create_symlink("loop", folder_ / "loop");
  const std::string loop = (folder_ / "loop").string();
  EXPECT_EQ(sentence([&] { (void)path_exists(loop); }),
            loop + ": cannot be looked at: Too many levels of symbolic links");
  EXPECT_EQ(sentence([&] { (void)read_file(loop); }),
            loop + ": cannot be read: Too many levels of symbolic links");
  EXPECT_EQ(sentence([&] { write_file(loop, "x"); }),
            loop + ": cannot be written: Too many levels of symbolic links");
  const fs::path name = folder_ / std::string(300, 'n');
  EXPECT_EQ(sentence([&] { (void)is_folder(name); }),
            name.string() + ": cannot be looked at: File name too long");
  EXPECT_EQ(sentence([&] { write_file(name, "x"); }),
            name.string() + ": cannot be written: File name too long");
  EXPECT_EQ(
      sentence([&] { (void)list_folder(folder_ / "none"); }),
      (folder_ / "none").string() + ": the folder cannot be listed: No such file or directory");
  EXPECT_NE(sentence([&] {
              (void)path_exists(std::string("a\0b", 3));
            }).find("a name that goes on after a zero byte"),
            std::string::npos);
  EXPECT_FALSE(path_exists(folder_ / "none"));
}

TEST_F(FileTest, RefusesFilesAboveTheLimitBeforeReadingThem) {
  write_file(folder_ / "x", "12345");
  EXPECT_EQ(read_file(folder_ / "x", 5), "12345");
  EXPECT_EQ(sentence([&] { (void)read_file(folder_ / "x", 4); }),
            (folder_ / "x").string() + ": found 5 bytes, expected at most 4");
  // A file of a terabyte without a block on disk.
  write_file(folder_ / "holes", "");
  fs::resize_file(folder_ / "holes", std::uintmax_t{1} << 40);
  EXPECT_NE(sentence([&] { (void)read_file(folder_ / "holes"); }).find("found 1099511627776 bytes"),
            std::string::npos);
}

TEST_F(FileTest, APipeIsReadOnceAndOpensAgain) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { write_file(pipe, "first\nsecond"); });
  LineFile lines(pipe);
  writer.join();
  std::string line;
  EXPECT_TRUE(lines.next(line));
  EXPECT_EQ(line, "first");
  EXPECT_TRUE(lines.next(line));
  EXPECT_EQ(line, "second");
  EXPECT_EQ(lines.number(), 2U);
  EXPECT_FALSE(lines.next(line));
  EXPECT_EQ(read_file(pipe), "first\nsecond");  // nobody writes any more
  EXPECT_TRUE(fs::is_fifo(pipe));
}

TEST_F(FileTest, ALinkStaysAndItsTargetIsReplaced) {
  fs::create_directory(folder_ / "below");
  fs::create_symlink("below/target", folder_ / "link");
  fs::create_symlink("link", folder_ / "link_to_link");
  write_file(folder_ / "link_to_link", "content");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_TRUE(fs::is_symlink(folder_ / "link_to_link"));
  EXPECT_EQ(read_file(folder_ / "below" / "target"), "content");
  fs::permissions(folder_ / "below" / "target", fs::perms::owner_read | fs::perms::owner_write);
  write_file(folder_ / "link", "other");
  EXPECT_EQ(fs::status(folder_ / "below" / "target").permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(FileTest, RemovesWhatDeadWritersLeftAndNothingElse) {
  // No process has the number; another is this one, whose file is young.
  const std::string dead = ".coterie-999999999-4.tmp";
  const std::string living = ".coterie-" + std::to_string(::getpid()) + "-77777.tmp";
  for (const std::string& name :
       {dead, living, std::string("x.tmp12"), std::string(".coterie.tmp")}) {
    std::ofstream(folder_ / name) << "half";
  }
  remove_stale_temporaries(folder_);
  EXPECT_FALSE(fs::exists(folder_ / dead));
  EXPECT_TRUE(fs::exists(folder_ / living));
  EXPECT_TRUE(fs::exists(folder_ / "x.tmp12"));
  EXPECT_TRUE(fs::exists(folder_ / ".coterie.tmp"));
  EXPECT_TRUE(is_temporary_name(folder_ / living));
  EXPECT_FALSE(is_temporary_name(folder_ / ".coterie-1x-2.tmp"));
}

}  // namespace
}  // namespace coterie
