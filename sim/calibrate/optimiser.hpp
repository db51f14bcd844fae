#pragma once
// Robust least squares, on Ceres Solver, which only ceres_module.cpp knows.
//
// Minimises sum_i rho((log model_i - log measured_i) / scale) + sum_j ((p_j - prior_j) /
// prior_width_j)^2 with rho the soft L1 loss: quadratic up to `scale`, linear beyond, so that an
// outlier of the measurements pulls with bounded force. Parameters are logarithms of positive
// quantities; the weak prior decides only what the data leave open.

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace coterie {

struct FitParameter {
  std::string name;
  double prior = 0.0;        // log of the quantity
  double prior_width = 1.0;  // standard deviation, in log units
  double min = -60.0, max = 60.0;
  std::optional<double> start{};  // absent: the prior
};

struct FitProblem {
  std::vector<FitParameter> parameters;
  std::vector<double> log_measured;  // [num_points]
  // log of the model's value for each point.
  std::function<void(std::span<const double> parameters, std::span<double> log_model)> model;
  double scale = 0.04;
  // [num_points] factors of `scale`, for points that scatter more; empty: one each.
  std::vector<double> scatter;
  // Differences of neighbouring parameters that are pulled to zero: (first, second, width).
  struct Smooth {
    std::size_t first, second;
    double width;
  };
  std::vector<Smooth> smooth;
};

struct FitResult {
  std::vector<double> parameters;
  std::vector<double> standard_error;  // of each, log units; from the data and the prior together
  // Names of parameters that the data do not determine: their spread is still that of the prior, or
  // a factor of e (three nearly equal times of different sizes tell a rate no better).
  std::vector<std::string> undetermined;
};

// Throws CheckError if the solver does not converge.
FitResult solve(const FitProblem& problem);

}  // namespace coterie
