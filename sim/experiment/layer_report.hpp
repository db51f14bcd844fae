#pragma once
// What an execution of a layer's program says: times per rank and phase, transfers per tier, the
// busiest link, and the layer's part of the timeline.

#include <vector>

#include "core/report.hpp"
#include "sim/engines/resolved.hpp"
#include "sim/program/layer_program.hpp"
#include "topologies/network.hpp"

namespace coterie {

struct LayerRun {
  const LayerSetup& setup;
  const LayerProgram& layer;
  const ResolvedProgram& resolved;
  const Execution& execution;
  // False for lower bounds: the makespan's is one of the layer's time, but those of single operations
  // say nothing of when they happen.
  bool times_known = true;
  // Added to every time, so that the layer starts at zero where its ranks do not.
  double shift_s = 0.0;
};

// Phases, transfer groups, busiest link and time_s, with phases and times left out where they are
// not known; the counts of rows per token, the bound and the interval are left for the caller.
LayerReport report_layer(const LayerRun& run);

// When each rank ends the layer, seconds, [num_groups * num_ranks]; shifted.
std::vector<double> rank_ends(const LayerRun& run);

// The ranks' phases as spans (kernels on one track, every phase of transfers on one of its own, for
// they may overlap) and the load of the `num_links` busiest links as samples over `num_bins` bins.
Timeline layer_timeline(const LayerRun& run, const LayerReport& report, std::size_t num_links,
                        std::size_t num_bins);

}  // namespace coterie
