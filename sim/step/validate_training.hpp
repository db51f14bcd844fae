#pragma once
// Predicted training steps against published ones: the table has one step per line, and every step an
// experiment with its configuration (workloads/examples/training/).

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace coterie {

struct TrainingPoint {
  std::string name;          // of the experiment
  std::string system;        // DGX-H100
  double measured_s = 0.0;   // of a step
  double predicted_s = 0.0;  // by data sheets and calibrated costs alone
  // With one factor on the rates of all kernels per system, fitted to its other steps; absent for a system's
  // only step.
  std::optional<double> fitted_s;
  double efficiency = 1.0;  // that factor
  std::optional<std::string> failure;

  [[nodiscard]] double error() const { return predicted_s / measured_s - 1.0; }
  [[nodiscard]] double fitted_error() const { return *fitted_s / measured_s - 1.0; }
};

struct TrainingValidation {
  std::vector<TrainingPoint> points;  // in the order of the table
  // Pairs of steps of one system and model that are predicted in the published order of their tokens per
  // second, and all such pairs.
  std::uint32_t num_ordered = 0, num_pairs = 0;
};

// `table`: columns release, model, system, gpus, pp, ep, step_s and tokens_per_s_per_gpu at least. The experiment of a
// line is `experiments`/MODEL_SYSTEM_GPUS_ppP_epE_RELEASE.yaml, where the system loses "DGX-". Throws InputError
// for a table without these columns, and where an experiment is missing.
TrainingValidation validate_training(const std::filesystem::path& table,
                                     const std::filesystem::path& experiments);

}  // namespace coterie
