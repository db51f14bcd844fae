#pragma once
// Validation on our own runs over NVLink: MoE layers that coterie-runtime measured, predicted from the
// probe of the same machine and from nothing else.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "sim/calibrate/validate.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// `base` (a probe's skeleton) with everything that its probe says: links, rates of patterns, kernels,
// expert MLPs, notify, the transport `direct` where it was measured, and the scales of uncertainty. Where
// ranks share GPUs (ranks_per_gpu) the links stay those of `base`. Throws InputError for what is no whole probe.
Cluster calibrate_from_probe(const std::filesystem::path& curves, const Cluster& base);

// Pairs of runs of one report that differ by more than twice their samples' deviations together, and how
// many of them the prediction orders alike.
struct OrderedPairs {
  std::size_t num_pairs = 0, num_right = 0;
};

// How predictions and measurements compare.
struct NvlinkRuns {
  // Per run and layer: its time; dispatch and combine of at least 20 us; the slowest rank's MLP; the
  // slowest rank's time in every kernel of at least 20 us (`forward` and `gather` contain the exchange
  // of the second hop).
  ValidationSection layer, dispatch, combine, mlp, kernels;
  std::map<std::string, OrderedPairs> pairs;  // by machine
  // Of all pairs, those whose ratio the prediction gives within three points.
  std::size_t num_close = 0;
  // Of these, the pairs of one run in one hop and one in two.
  std::size_t num_mixed = 0, num_mixed_close = 0;
  // Standard deviation of every layer's samples over its time; and of every point of a section (by its
  // title) that has several starts, the difference of the longest and the shortest over their median.
  std::vector<double> deviations;
  std::map<std::string, std::vector<double>> starts;
};

// `folders`, one machine each, with
//   curves_epN.json, topology_epN.yaml   a probe
//   epN_hHIDDEN.yaml                     experiments: what was run; trace, tokens and payload say the reports
//   reports/NAME-startI.json             what coterie-runtime wrote; starts of one NAME count together
//   placements/                          files that reports name in provenance.placement_file
// `traces` holds what the reports name (TRACE.moet, or TRACE.npz). Throws InputError for reports whose
// plans are not those of the prediction. Deterministic.
NvlinkRuns predict_nvlink_runs(const std::vector<std::filesystem::path>& folders,
                               const std::filesystem::path& traces);

// The same of layers over the transport `direct`, on ranks that share GPUs. Each of `folders` holds for every
// number of ranks N that its reports have
//   curves_epN.json, topology_epN.yaml   a probe with its list `direct`; the machine with its
//                                        ranks_per_gpu
// (reports of other numbers of ranks, and of a GPU for every rank, are left out)
// and experiments, reports and placements as above. Deterministic.
NvlinkRuns predict_direct_runs(const std::vector<std::filesystem::path>& folders,
                               const std::filesystem::path& traces);

}  // namespace coterie
