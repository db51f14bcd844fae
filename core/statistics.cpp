#include "core/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace coterie {
namespace {

void require_values(const std::vector<double>& values) {
  if (values.empty()) throw std::invalid_argument("statistics of no values");
}

}  // namespace

double mean(const std::vector<double>& values) {
  require_values(values);
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double quantile(std::vector<double> values, double q) {
  require_values(values);
  if (!(q >= 0.0 && q <= 1.0)) throw std::invalid_argument("a quantile outside 0 to 1");
  std::sort(values.begin(), values.end());
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return std::lerp(values[below], values[above], position - static_cast<double>(below));
}

double median(std::vector<double> values) {
  return quantile(std::move(values), 0.5);
}

std::size_t median_position(const std::vector<double>& values) {
  require_values(values);
  // Among sorted values the lower of the middle two is as near as any, and never the higher one.
  std::vector<double> sorted = values;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((sorted.size() - 1) / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return static_cast<std::size_t>(std::find(values.begin(), values.end(), *middle) -
                                  values.begin());
}

double relative_spread(const std::vector<double>& values) {
  const double middle = median(values);
  if (middle == 0.0) return 0.0;
  return 0.5 * (quantile(values, 0.9) - quantile(values, 0.1)) / middle;
}

}  // namespace coterie
