#pragma once
// One clock for the ranks of a measured layer. Every rank times its phases from its own start of the
// layer, and one that comes early waits in the notify step for the others, so the same moment reads
// differently on each. All of them leave the notify step together: there their clocks can be set.

#include <vector>

#include "core/report.hpp"

namespace coterie {

// How much earlier than the last rank each one began, [num_ranks]: its end of the notify step less the
// least of all.
std::vector<double> clock_leads(const std::vector<double>& notify_end_s);

// Sets the ranks' clocks: zero is the start of the rank that came last, as in a prediction, and the
// notify step of earlier ones begins before it. time_s becomes the end of the last rank. Reports
// whose clocks are set stay as they are, and so do those without a notify step. combine_ready_s,
// which compares ranks, must be derived anew.
void align_clocks(LayerReport& layer);

}  // namespace coterie
