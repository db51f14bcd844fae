#pragma once
// Whole steps of a small model, for the tests of this folder.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/report.hpp"
#include "sim/experiment/simulate.hpp"
#include "workloads/experiment.hpp"

namespace coterie {

// A small model of four layers whose parts all take some of the time on H100 nodes.
inline constexpr const char* kStepModel = R"(
schema_version: 1
name: small
description: four MoE layers
num_layers: 4
moe_layers: {first: 0, step: 1}
hidden: 2048
expert_intermediate: 1024
num_experts: 32
num_topk: 4
num_shared_experts: 1
routing: softmax
attention: {kind: gqa, heads: 16, kv_heads: 4, head_dim: 128}
vocabulary: 1024
)";

struct Case {
  std::uint32_t ranks = 8;
  std::string topology = "h100_rail_optimised";
  std::string parallel = "{pp: 1, ep: 8}";
  std::string batch = "{global: 16, micro: 1, sequence: 2048}";
  std::string overlap = "{}";
  std::string extra{};  // further lines of the experiment
  std::string kind = "train";
  std::string routing = "balanced";
  std::string engine = "flow";
  std::string placement = "contiguous";
};

class WholeSteps : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        std::filesystem::path(::testing::TempDir()) / fmt::format("coterie_step_{}", info->name());
    std::filesystem::create_directories(folder_);
    write_file(folder_ / "model.yaml", kStepModel);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Experiment load(const Case& c) const {
    const std::string text = fmt::format(
        "schema_version: 1\ntopology: {}\nmodel: model.yaml\nranks: {}\nengine: {}\n"
        "payload: {{dispatch: bf16, combine: bf16}}\n"
        "step:\n  kind: {}\n  parallel: {}\n  batch: {}\n  precision: bf16\n  overlap: {}\n"
        "  routing: {}\n{}\nruns:\n  - {{name: dedup, placement: {}, dispatch: dedup}}\n",
        c.topology, c.ranks, c.engine, c.kind, c.parallel, c.batch, c.overlap, c.routing, c.extra,
        c.placement);
    write_file(folder_ / "step.yaml", text);
    return load_experiment(folder_ / "step.yaml");
  }

  StepReport run(const Case& c, StepMethod method) const {
    SimulateOptions options;
    options.step_method = method;
    options.relative_precision = 0.0;
    return *simulate(load(c), options).front().report.step;
  }

  RunReport run_report(const Case& c, StepMethod method) const {
    SimulateOptions options;
    options.step_method = method;
    options.relative_precision = 0.0;
    return simulate(load(c), options).front().report;
  }
  // The sentence with which the experiment is refused; empty: it is not.
  std::string refusal(const Case& c, StepMethod method = StepMethod::kComposed) const {
    try {
      (void)run_report(c, method);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

inline double part(const StepReport& step, const std::string& name) {
  const auto found = std::find_if(step.parts.begin(), step.parts.end(),
                                  [&](const auto& item) { return item.first == name; });
  return found->second;
}

}  // namespace coterie
