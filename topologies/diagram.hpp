#pragma once
// A picture of a cluster that a person can read at 8 GPUs and at 16,384: repeated parts are drawn
// a few times and then counted ("62 more").

#include <string>

#include "topologies/fabric_summary.hpp"

namespace coterie {

// An SVG document.
std::string draw_svg(const Cluster& cluster, const FabricModel& model,
                     const FabricSummary& summary);

}  // namespace coterie
