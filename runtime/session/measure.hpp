#pragma once
// From the times that the ranks measured to a run report.

#include <cstdint>
#include <vector>

#include "core/report.hpp"
#include "runtime/executor/executor.hpp"
#include "topologies/network.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

// [iteration][layer] of one rank, as one message and back.
using RankTimes = std::vector<std::vector<LayerTimes>>;
std::string pack_times(const RankTimes& times);
RankTimes unpack_times(const std::string& bytes);

// The measured half of a layer's report: per iteration the maximum over ranks, whose clocks are set
// where they leave the notify step together (core/clocks.hpp); the layer's time and
// the begin and end of its phases are those of the iteration nearest to the median of these (the
// lower of two), so that the phases add up to the time.
void fill_times(const std::vector<RankTimes>& ranks, std::size_t layer_idx, LayerReport& report);

// All transfers of the plan by phase and tier; their times come from the report's phases.
std::vector<TransferGroup> transfer_groups(const LayerPlan& plan, const Network& network,
                                           const PayloadSizes& sizes, const LayerReport& report);

// One track per rank, the layers one after the other.
Timeline make_timeline(const RunReport& report);

}  // namespace coterie
