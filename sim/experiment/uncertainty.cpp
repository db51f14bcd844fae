#include "sim/experiment/uncertainty.hpp"

#include <algorithm>
#include <cmath>

#include "core/metrics.hpp"

namespace coterie {
namespace {

bool is_link(Part part) {
  return part == Part::kNotify || part == Part::kDispatch || part == Part::kCombine;
}

bool is_mlp(Part part) {
  return part == Part::kMlp || part == Part::kWait;
}

const std::vector<UncertaintyStep>& scale_of(const Uncertainty& scales, Part part, bool network) {
  if (is_link(part)) return network ? scales.network : scales.scale_up;
  return is_mlp(part) ? scales.mlp : scales.kernels;
}

bool has_scales(const Uncertainty& scales) {
  return !scales.scale_up.empty() || !scales.network.empty() || !scales.kernels.empty() ||
         !scales.mlp.empty();
}

}  // namespace

double relative_at(const std::vector<UncertaintyStep>& scale, double time_s, double otherwise) {
  for (const UncertaintyStep& step : scale) {
    if (!step.up_to || time_s <= step.up_to->value) return step.relative;
  }
  return otherwise;
}

std::map<std::string, double> part_uncertainties(const Cluster& cluster, const LayerReport& layer) {
  const Uncertainty& scales = cluster.uncertainty;
  std::map<std::string, double> out;
  const std::optional<CriticalRank> critical = critical_rank(layer);
  if (!has_scales(scales) || !critical) return out;
  const bool network =
      std::any_of(layer.groups.begin(), layer.groups.end(),
                  [](const TransferGroup& group) { return group.tier == "network"; });
  const double otherwise = cluster.relative_uncertainty.value_or(0.0);
  for (std::size_t i = 0; i < kNumParts; ++i) {
    const auto part = static_cast<Part>(i);
    const double time_s = critical->parts[part];
    if (time_s <= 0.0) continue;
    out[to_string(part)] = relative_at(scale_of(scales, part, network), time_s, otherwise);
  }
  return out;
}

std::optional<double> layer_uncertainty(const Cluster& cluster, const LayerReport& layer) {
  const std::map<std::string, double> parts = part_uncertainties(cluster, layer);
  const std::optional<CriticalRank> critical = critical_rank(layer);
  if (parts.empty() || layer.time_s <= 0.0) return cluster.relative_uncertainty;
  // The wait is for another rank's MLP, and off with it. All else is off in its own direction.
  double mlp_s = 0.0, sum_of_squares = 0.0;
  for (std::size_t i = 0; i < kNumParts; ++i) {
    const auto part = static_cast<Part>(i);
    const auto found = parts.find(to_string(part));
    if (found == parts.end()) continue;
    const double off_s = critical->parts[part] * found->second;
    if (is_mlp(part)) {
      mlp_s += off_s;
    } else {
      sum_of_squares += off_s * off_s;
    }
  }
  sum_of_squares += mlp_s * mlp_s;
  return std::sqrt(sum_of_squares) / layer.time_s;
}

std::optional<double> traffic_uncertainty(const Cluster& cluster, double time_s, bool network) {
  const auto& scale = network ? cluster.uncertainty.network : cluster.uncertainty.scale_up;
  if (scale.empty()) return cluster.relative_uncertainty;
  return relative_at(scale, time_s, 0.0);
}

}  // namespace coterie
