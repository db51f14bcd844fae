#pragma once
// Validation on our own runs: MoE layers that coterie-runtime measured, predicted on topologies
// that were fitted to the probe's uniform all-to-alls of the same ranks and to nothing else.

#include <filesystem>
#include <string>
#include <vector>

#include "sim/calibrate/validate.hpp"

namespace coterie {

struct MeasuredRuns {
  ValidationSection dispatch, combine, layer;
  // Pairs of runs of one experiment whose starts do not overlap, and how many of them the
  // prediction orders alike.
  std::size_t num_ordered_pairs = 0;
  std::size_t num_right_pairs = 0;
};

// `folder` as runtime/run_on_gpu_machine.sh leaves it after condensing: curves_epN.json,
// topology_epN.yaml, epN.yaml and reports/TRACE-epN-tT-startI.json. `traces` holds TRACE.npz or
// TRACE.moet. Times of several starts are replaced by their median. "dispatch" is a rank's time
// from its first dispatch to its last forward, "combine" from its first gather to the end of the
// combine, each on the slowest rank and summed over the layers. Throws InputError for files that do
// not fit together. Deterministic.
MeasuredRuns predict_measured_runs(const std::filesystem::path& folder,
                                   const std::filesystem::path& traces);

}  // namespace coterie
