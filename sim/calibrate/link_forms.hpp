#pragma once
// The forms that links of one node may have, between which fit_alltoall chooses by cross-validation
// (the models stand in alltoall_fit.hpp).

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/optimiser.hpp"

namespace coterie {

// A form's parameters with priors and starting values read from points, and the model that a vector of
// them (logarithms) stands for. The problem's points and its model are left to the caller.
struct PreparedForm {
  FitProblem problem;
  std::function<AllToAllModel(std::span<const double>)> model;
};
using LinkForm = std::function<PreparedForm(const std::vector<AllToAllPoint>&)>;

// `points` decide which forms they can tell apart.
std::vector<LinkForm> volume_forms(const std::vector<AllToAllPoint>& points,
                                   const AllToAllOptions& options);
std::vector<LinkForm> channel_forms(const std::vector<AllToAllPoint>& points,
                                    const AllToAllOptions& options);

}  // namespace coterie
