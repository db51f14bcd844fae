#pragma once
// From errors on points that a fit did not see to the scale that predictions carry.

#include <cstddef>
#include <vector>

#include "topologies/cluster.hpp"

namespace coterie {

// One point that a fit did not see.
struct LeftOutPoint {
  double predicted_s = 0.0;
  double error = 0.0;  // predicted / measured - 1
};
// `errors` of points whose measured times are known.
std::vector<LeftOutPoint> left_out_points(const std::vector<double>& errors,
                                          const std::vector<double>& measured_s);

// A scale whose steps, by predicted time, hold about equally many of the points: as many steps as have
// at least `fewest` points each, four at most. `relative` holds nine of ten of a step's points: the
// measured time of a point, predicted / (1 + error), lies within predicted * (1 -+ relative). It is
// their order statistic ceil(0.9 (n + 1)), the largest where n is below nine (split conformal
// prediction: a further point lies within it with probability 0.9 at least). Empty for no points.
std::vector<UncertaintyStep> uncertainty_scale(std::vector<LeftOutPoint> points,
                                               std::size_t fewest = 12);

}  // namespace coterie
