#pragma once
// A small experiment on disk, and coterie-runtime as a child process.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include "core/file.hpp"
#include "core/random.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {

// Tokens prefer a group of experts, so that placements differ; ids distinct per token.
inline Routing small_routing() {
  Routing routing;
  routing.model = "small";
  routing.origin = "test";
  routing.num_experts = 16;
  routing.num_topk = 4;
  routing.layers = {1, 2};
  routing.sequence_begin = {0};
  for (std::uint64_t s = 0; s < 12; ++s) {
    routing.sequence_begin.push_back(routing.sequence_begin.back() + 10 + 3 * s);
  }
  Random random(7);
  for (std::size_t i = 0; i < routing.num_layers() * routing.num_tokens(); ++i) {
    const std::uint64_t group = random.index(4);
    std::vector<ExpertIdx> chosen;
    while (chosen.size() < routing.num_topk) {
      // Three of four from the group {g, g + 4, g + 8, g + 12}.
      const std::uint64_t expert =
          chosen.size() < 3 ? group + 4 * random.index(4) : random.index(16);
      const auto id = static_cast<ExpertIdx>(expert);
      if (std::find(chosen.begin(), chosen.end(), id) == chosen.end()) chosen.push_back(id);
    }
    routing.experts.insert(routing.experts.end(), chosen.begin(), chosen.end());
    for (std::uint32_t j = 0; j < routing.num_topk; ++j) {
      routing.weights.push_back(static_cast<float>(0.1 + 0.3 * random.uniform()));
    }
  }
  return routing;
}

// Layer 2 of it on 8 ranks in two nodes, 50 tokens each, 9 rows per round.
inline constexpr std::uint32_t kSmallRanks = 8;
inline LayerPlan small_plan(DispatchPolicy policy, const std::string& strategy = "contiguous",
                            std::uint32_t num_replicas = 0) {
  const Routing routing = small_routing();
  PlacementRequest request;
  request.strategy = strategy;
  request.num_ranks = kSmallRanks;
  request.ranks_per_node = 4;
  request.num_replicas = num_replicas;
  const Placement placement = make_placement(routing, request);
  const RankTokens tokens = deal_tokens(routing, kSmallRanks, 50, SequenceDeal::kRoundRobin);
  return make_plan(routing, 1, placement.layers[1], tokens, {policy, 4, PlanDetail::kRows, 9});
}

struct Outcome {
  int exit_code = 0;
  std::string out, err;
  double seconds = 0.0;
};

class RuntimeFixture : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "coterie-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    write_moet(folder_ / "small.moet", small_routing());
    write_experiment(4);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // `ranks` ranks on nodes of two.
  void write_experiment(int ranks, int hidden = 128, int intermediate = 32) {
    write_file(
        folder_ / "model.yaml",
        fmt::format("schema_version: 1\nname: small\ndescription: test\nnum_layers: 3\n"
                    "moe_layers: {{first: 1, step: 1}}\nhidden: {}\nexpert_intermediate: {}\n"
                    "num_experts: 16\nnum_topk: 4\nnum_shared_experts: 2\n"
                    "shared_intermediate: 24\n"
                    "routing: \"test\"\n",
                    hidden, intermediate));
    write_file(
        folder_ / "experiment.yaml",
        fmt::format(
            "schema_version: 1\n"
            "topology: {{extends: star, gpus_per_node: 2, scale_up: {{kind: socket, "
            "bandwidth: 4 GB/s, latency: 10 us}}}}\n"
            "model: model.yaml\ntrace: {{file: small.moet, train: even, eval: odd}}\n"
            "ranks: {}\ntokens_per_rank: 37\npayload: {{dispatch: bf16, combine: bf16}}\nruns:\n"
            "  - {{name: standard, placement: contiguous, dispatch: standard}}\n"
            "  - {{name: dedup, placement: contiguous, dispatch: dedup}}\n"
            "  - {{name: collaboration, placement: collaboration, dispatch: dedup}}\n"
            "  - {{name: two-level, placement: collaboration, dispatch: hierarchical}}\n",
            ranks));
  }

  [[nodiscard]] static std::string program() {
    return std::string(COTERIE_BINARY_DIR) + "/bin/coterie-runtime";
  }

  // Runs a shell command in the folder with extra environment variables.
  Outcome shell(const std::string& command,
                const std::map<std::string, std::string>& variables = {}) {
    std::string text = fmt::format("cd '{}' && env -u RANK -u WORLD_SIZE", folder_.string());
    for (const auto& [name, value] : variables) text += fmt::format(" {}='{}'", name, value);
    text += fmt::format(" {} >stdout.txt 2>stderr.txt", command);
    const auto start = std::chrono::steady_clock::now();
    const int status = std::system(text.c_str());
    Outcome outcome;
    outcome.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = read_file(folder_ / "stdout.txt");
    outcome.err = read_file(folder_ / "stderr.txt");
    return outcome;
  }

  std::filesystem::path folder_;
};

// Lines that report an error.
inline std::size_t num_error_lines(const std::string& text) {
  std::size_t count = 0;
  for (std::size_t at = text.find(": error: "); at != std::string::npos;
       at = text.find(": error: ", at + 1)) {
    ++count;
  }
  return count;
}

}  // namespace coterie
