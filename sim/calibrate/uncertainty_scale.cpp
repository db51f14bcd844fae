#include "sim/calibrate/uncertainty_scale.hpp"

#include <algorithm>
#include <cmath>

namespace coterie {
namespace {

constexpr std::size_t kMostSteps = 4;
constexpr double kCoverage = 0.9;

double half_width(const LeftOutPoint& point) {
  return std::abs(1.0 / (1.0 + point.error) - 1.0);
}

}  // namespace

std::vector<LeftOutPoint> left_out_points(const std::vector<double>& errors,
                                          const std::vector<double>& measured_s) {
  std::vector<LeftOutPoint> points;
  for (std::size_t i = 0; i < errors.size(); ++i) {
    points.push_back({measured_s[i] * (1.0 + errors[i]), errors[i]});
  }
  return points;
}

std::vector<UncertaintyStep> uncertainty_scale(std::vector<LeftOutPoint> points,
                                               std::size_t fewest) {
  std::stable_sort(points.begin(), points.end(),
                   [](const auto& a, const auto& b) { return a.predicted_s < b.predicted_s; });
  std::vector<UncertaintyStep> scale;
  if (points.empty()) return scale;
  const std::size_t num_steps = std::clamp<std::size_t>(points.size() / fewest, 1, kMostSteps);
  for (std::size_t step = 0; step < num_steps; ++step) {
    const std::size_t begin = step * points.size() / num_steps;
    const std::size_t end = (step + 1) * points.size() / num_steps;
    std::vector<double> widths;
    for (std::size_t i = begin; i < end; ++i) widths.push_back(half_width(points[i]));
    std::sort(widths.begin(), widths.end());
    const auto n = static_cast<double>(widths.size());
    const auto rank = static_cast<std::size_t>(std::ceil(kCoverage * (n + 1.0)));
    const double width = widths[std::min(rank, widths.size()) - 1];
    UncertaintyStep entry{std::nullopt, std::ceil(width * 1000.0) / 1000.0};
    if (step + 1 < num_steps) {
      // Halfway to the next step's first, on a scale of ratios; whole nanoseconds.
      const double limit_s = std::sqrt(points[end - 1].predicted_s * points[end].predicted_s);
      entry.up_to = Seconds{std::round(limit_s * 1e9) * 1e-9};
      if (!scale.empty() && *entry.up_to <= *scale.back().up_to) continue;
    }
    scale.push_back(entry);
  }
  return scale;
}

}  // namespace coterie
