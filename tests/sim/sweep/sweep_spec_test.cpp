#include "sim/sweep/spec.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

class SweepSpecTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("coterie_sweep_spec_" + std::to_string(::getpid()));
    make_folder(folder_);
    write_file(folder_ / "base.yaml",
               "schema_version: 1\nruns: [{name: standard}, {name: dedup}]\n");
  }
  void TearDown() override { fs::remove_all(folder_); }
  // The "bandwidth x ranks" sweep with a filter, and how many of its 12 points remain.
  [[nodiscard]] std::size_t remaining(const std::string& filter) const {
    return load(
               "axes:\n  - {key: ranks, values: [8, 16, 32, 64]}\n"
               "  - {key: nic, values: [100 Gb/s, 400 Gb/s, 1600 Gb/s]}\nskip: [" +
               filter + "]\n")
        .points.size();
  }
  [[nodiscard]] SweepSpec load(const std::string& body) const {
    write_file(folder_ / "s.yaml", "schema_version: 1\nbase: base.yaml\n" + body);
    return load_sweep(folder_ / "s.yaml");
  }
  [[nodiscard]] std::string error_of(const std::string& body) const {
    try {
      (void)load(body);
    } catch (const InputError& error) {
      // The folder differs from run to run: only what follows the file's name counts.
      const std::string message = error.what();
      return message.substr(message.find("s.yaml"));
    }
    return "(nothing was thrown)";
  }
  fs::path folder_;
};

TEST_F(SweepSpecTest, CrossesAxesTheFirstSlowest) {
  const SweepSpec spec = load(
      "axes:\n  - {key: ranks, values: [8, 16]}\n"
      "  - {key: topology.nic.bandwidth, values: [200 Gb/s, 400 Gb/s]}\n");
  ASSERT_EQ(spec.points.size(), 4U);
  EXPECT_EQ(spec.points[1].settings,
            (Settings{{"ranks", "8"}, {"topology.nic.bandwidth", "400 Gb/s"}}));
  EXPECT_EQ(spec.points[2].settings,
            (Settings{{"ranks", "16"}, {"topology.nic.bandwidth", "200 Gb/s"}}));
  std::set<std::string> ids;
  for (const SweepPoint& point : spec.points) ids.insert(point.id);
  EXPECT_EQ(ids.size(), 4U);
  EXPECT_EQ(command_of(spec, spec.points[1]).find("coterie simulate "), 0U);
  EXPECT_NE(command_of(spec, spec.points[1]).find("--set 'topology.nic.bandwidth=400 Gb/s'"),
            std::string::npos);
}

TEST_F(SweepSpecTest, ZipsAndSkips) {
  const SweepSpec spec = load(
      "axes:\n  - zip:\n      - {key: ranks, values: [8, 16, 32]}\n"
      "      - {key: tokens_per_rank, values: [64, 64, 32]}\n"
      "  - {key: seed, values: [1, 2]}\n"
      "skip: [{ranks: 8, seed: 2}]\nbaseline: {ranks: 8, run: dedup}\n");
  EXPECT_EQ(spec.points.size(), 5U);  // 3 * 2 - 1
  EXPECT_EQ(spec.keys, (std::vector<std::string>{"ranks", "tokens_per_rank", "seed"}));
  EXPECT_EQ(spec.baseline, (Settings{{"ranks", "8"}, {"run", "dedup"}}));
}

TEST_F(SweepSpecTest, FiltersTakeListsAndComparisons) {
  EXPECT_EQ(remaining("{ranks: 8}"), 9U);
  EXPECT_EQ(remaining("{ranks: [8, 64]}"), 6U);
  EXPECT_EQ(remaining("{ranks: \"> 16\"}"), 6U);
  EXPECT_EQ(remaining("{ranks: \">= 16\"}"), 3U);
  EXPECT_EQ(remaining("{ranks: \"!= 8\"}"), 3U);
  EXPECT_EQ(remaining("{ranks: [\"< 16\", 64]}"), 6U);
  EXPECT_EQ(remaining("{nic: \"<= 400 Gb/s\"}"), 4U);
  EXPECT_EQ(remaining("{ranks: \"> 8\", nic: \"!= 400 Gb/s\"}"), 6U);
}

TEST_F(SweepSpecTest, RefusesContradictions) {
  const std::string axes =
      "axes: [{key: ranks, values: [8, 16]}, {key: nic, values: [1 GB/s, 4 GB/s]}]\n";
  EXPECT_EQ(
      error_of(axes + "skip: [{ranks: \"> 16\"}]\n"),
      "s.yaml:4:16: key \"skip.0.ranks\": found \"> 16\", expected what holds for at least one "
      "value of that axis");
  EXPECT_EQ(error_of(axes + "skip: [{nic: \"> 2 GiB/s\"}]\n"),
            "s.yaml:4:14: key \"skip.0.nic\": found \"2 GiB/s\", expected what compares with "
            "\"1 GB/s\": a number in its unit");
  EXPECT_EQ(
      error_of(axes + "skip: [{ranks: \"=> 8\"}]\n"),
      "s.yaml:4:16: key \"skip.0.ranks\": found \"=> 8\", expected one of that axis's values, "
      "or one after <, <=, >, >= or !=");
  const std::string zipped =
      "axes:\n  - zip: [{key: a, values: [1, 2]}, {key: b, values: [3, 4]}]\n";
  EXPECT_EQ(
      error_of(zipped + "skip: [{a: 1, b: 4}]\n"),
      "s.yaml:5:8: key \"skip.0\": found a filter that no point fits, expected conditions that "
      "occur together");
  EXPECT_EQ(error_of(axes + "skip: [{ranks: 8}]\nbaseline: {ranks: 8}\n"),
            "s.yaml:5:11: key \"baseline\": found a baseline that `skip` or `zip` leaves out, "
            "expected values that occur together in a point");
  EXPECT_EQ(
      error_of(axes + "baseline: {run: nothing}\n"),
      "s.yaml:4:11: key \"baseline\": found no run \"nothing\", expected one of standard, dedup");
  EXPECT_EQ(
      error_of(axes + "runs: [dedup, nothing]\n"),
      "s.yaml:4:15: key \"runs.1\": found no run \"nothing\", expected one of standard, dedup");
}

TEST_F(SweepSpecTest, OnePointThatLoadsIsEnough) {
  const SweepSpec spec = load("axes: [{key: a, values: [1, 2, 3]}]\n");
  const auto check = [&](const std::string& good) {
    check_some_point_loads(spec, "s.yaml", [&](const SweepPoint& point) {
      const std::string& value = point.settings[0].second;
      if (value != good) throw InputError(value + " is bad");
    });
  };
  EXPECT_NO_THROW(check("3"));
  try {
    check("4");
    ADD_FAILURE() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(), "s.yaml: none of the 3 points can be loaded; the first: 1 is bad");
  }
}

TEST_F(SweepSpecTest, IdsChangeWithTheBaseAndNotWithTheOrderOfLoading) {
  const std::string body = "axes: [{key: ranks, values: [8]}]\n";
  const SweepSpec first = load(body);
  EXPECT_EQ(load(body).id, first.id);
  write_file(folder_ / "base.yaml", "schema_version: 1\nseed: 3\n");
  EXPECT_NE(load(body).id, first.id);
  EXPECT_NE(load(body).points[0].id, first.points[0].id);
}

TEST_F(SweepSpecTest, RefusesWhatMakesNoSense) {
  EXPECT_EQ(error_of("axes: [{key: a, values: []}]\n"),
            "s.yaml:3:25: key \"axes.0.values\": found an empty list, expected at least one value");
  EXPECT_EQ(
      error_of("axes: [{key: a, values: [1, 1]}]\n"),
      "s.yaml:3:29: key \"axes.0.values.1\": found \"1\" a second time, expected each value once");
  EXPECT_EQ(
      error_of("axes: [{key: a, values: [1]}, {key: a, values: [2]}]\n"),
      "s.yaml:3:31: key \"axes.1\": found a second axis for \"a\", expected one axis per key");
  EXPECT_EQ(
      error_of("axes: [{key: a, values: [1]}]\nskip: [{b: 1}]\n"),
      "s.yaml:4:12: key \"skip.0.b\": found a key that is no axis, expected one of the axes' keys");
  EXPECT_EQ(
      error_of("axes: [{key: a, values: [1]}]\nskip: [{a: 2}]\n"),
      "s.yaml:4:12: key \"skip.0.a\": found \"2\", expected one of that axis's values, or one "
      "after <, <=, >, >= or !=");
  EXPECT_EQ(error_of("axes: [{key: a, values: [1]}]\nskip: [{a: 1}]\n"),
            "s.yaml:4:7: key \"skip\": found filters that leave out every one of 1 point, expected "
            "at least one "
            "point to remain");
  EXPECT_EQ(
      error_of("axes: [{key: a, values: [1]}]\nskipp: []\n").find("s.yaml:4:1: found unknown key"),
      0U);
  EXPECT_EQ(
      error_of("axes:\n  - zip: [{key: a, values: [1, 2]}, {key: b, values: [1]}]\n"),
      "s.yaml:4:37: key \"axes.0.zip.1\": found 1 value, expected 2 as in the first zipped axis");
}

}  // namespace
}  // namespace coterie
