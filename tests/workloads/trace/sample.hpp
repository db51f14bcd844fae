#pragma once
// Small traces made by hand for the tests, and a folder that vanishes with the test.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "core/file.hpp"
#include "core/random.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie::testing {

class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(info->test_suite_name()) + "_" + info->name();
    for (char& c : name) c = c == '/' ? '_' : c;
    folder_ = std::filesystem::temp_directory_path() /
              ("coterie_trace_" + name + "_" + std::to_string(::getpid()));
    make_folder(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

// Random routing with distinct experts per token: sequences of the given lengths.
inline Routing random_routing(std::uint32_t num_experts, std::uint32_t num_topk,
                              std::vector<std::uint32_t> layers,
                              const std::vector<std::uint64_t>& lengths, bool weighted,
                              std::uint64_t seed = 1) {
  Routing routing;
  routing.model = "sample";
  routing.origin = "random_routing";
  routing.num_experts = num_experts;
  routing.num_topk = num_topk;
  routing.layers = std::move(layers);
  routing.sequence_begin.push_back(0);
  for (const std::uint64_t length : lengths) {
    routing.sequence_begin.push_back(routing.sequence_begin.back() + length);
  }
  Random random(seed);
  std::vector<ExpertIdx> all(num_experts);
  for (std::uint32_t e = 0; e < num_experts; ++e) all[e] = static_cast<ExpertIdx>(e);
  for (std::uint64_t row = 0; row < routing.num_layers() * routing.num_tokens(); ++row) {
    for (std::uint32_t i = 0; i < num_topk; ++i) {
      std::swap(all[i], all[i + random.index(num_experts - i)]);
      routing.experts.push_back(all[i]);
      if (weighted) routing.weights.push_back(static_cast<float>(random.uniform()));
    }
  }
  return routing;
}

inline void expect_equal(const Routing& a, const Routing& b) {
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.origin, b.origin);
  EXPECT_EQ(a.num_experts, b.num_experts);
  EXPECT_EQ(a.num_topk, b.num_topk);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.sequence_begin, b.sequence_begin);
  EXPECT_EQ(a.experts, b.experts);
  EXPECT_EQ(a.weights, b.weights);
}

}  // namespace coterie::testing
