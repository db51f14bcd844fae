#pragma once
// The interval that a prediction carries on a calibrated topology: how far the fits of its parts were
// off on points that they had not seen, by what is predicted and how long it takes.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/report.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// The step of a scale that a time falls in; `otherwise` for an empty scale.
double relative_at(const std::vector<UncertaintyStep>& scale, double time_s, double otherwise);

// Half-width of the interval of a whole layer, as a share of its time. Every part of its critical rank
// may be off by its own scale. Dispatch, combine and notify count as links (of the slowest tier that the
// layer uses), the wait for others as MLP; what else runs are kernels, one fit each. MLP and wait add up,
// the wait being for another rank's MLP. All others are independent, so that their squares add up: over
// NVLink the errors of dispatch and combine, though of one fit, correlate by 0.2 only. Absent
// where the cluster has neither scales nor a relative_uncertainty; the latter alone where the layer's
// phases are not known.
std::optional<double> layer_uncertainty(const Cluster& cluster, const LayerReport& layer);

// The scales that the parts of the critical rank fall in, by the part's name ("dispatch", "mlp"), those
// that take time; empty where layer_uncertainty has no scales or phases to go by.
std::map<std::string, double> part_uncertainties(const Cluster& cluster, const LayerReport& layer);

// Of messages alone that take `time_s`; `network`: some cross it. Absent as above.
std::optional<double> traffic_uncertainty(const Cluster& cluster, double time_s, bool network);

}  // namespace coterie
