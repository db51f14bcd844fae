#pragma once
// `coterie-runtime run`: an experiment carried out on the ranks of a group, checked, measured and
// reported in the same schema as a prediction.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/yaml.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"

namespace coterie {

struct RunOptions {
  std::filesystem::path experiment;
  std::filesystem::path output;
  std::vector<Override> overrides;
  std::vector<std::uint32_t> layers;  // model layer numbers; empty: those of the experiment
  std::uint32_t num_warm_up = 5;
  std::uint32_t num_iterations = 20;
  std::uint32_t num_check_tokens = 4;  // per rank, recomputed on the CPU
  bool capture = false;                // replay what moves over `direct` as a CUDA graph
  bool dry_run = false;                // exchange over the control connection, without GPUs
  bool full_size = false;  // dry runs: compute at the model's own sizes, not at reduced ones
  std::string command;     // for the provenance
  GroupOptions group;
};

// Collective over the processes that `environment` tells of. Rank 0 prints the table and writes the
// files. A run that cannot be carried out, or whose output was wrong, is reported as failed and the
// others go on; the error of the first such run is thrown after everything is written (code 2 or 4).
void run_experiment(const RunOptions& options, const RankEnvironment& environment);

}  // namespace coterie
