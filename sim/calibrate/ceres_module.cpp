// The fits' one use of Ceres Solver, as a module (ceres_module.hpp).

#include "sim/calibrate/ceres_module.hpp"

#include <ceres/ceres.h>

#include <algorithm>
#include <cmath>
#include <memory>

namespace coterie {
namespace {

// In log units: a parameter that may as well be 2.7 times larger or smaller is not known.
constexpr double kLargestError = 1.0;

// Points with equal weight need a loss each, but the model is evaluated for all points at once: the
// soft L1 loss enters as the signed square root of rho.
double robust(double residual) {
  const double rho = 2.0 * (std::sqrt(1.0 + residual * residual) - 1.0);
  return std::copysign(std::sqrt(rho), residual);
}

class Residuals {
 public:
  explicit Residuals(const FitProblem& problem) : problem_(problem) {}

  [[nodiscard]] std::size_t size() const {
    return problem_.log_measured.size() + problem_.parameters.size() + problem_.smooth.size();
  }

  void evaluate(std::span<const double> p, double* out) const {
    const std::size_t num_points = problem_.log_measured.size();
    problem_.model(p, std::span(out, num_points));
    for (std::size_t i = 0; i < num_points; ++i) {
      const double scatter = problem_.scatter.empty() ? 1.0 : problem_.scatter[i];
      out[i] = robust((out[i] - problem_.log_measured[i]) / (problem_.scale * scatter));
    }
    double* next = out + num_points;
    for (std::size_t j = 0; j < p.size(); ++j) {
      const FitParameter& parameter = problem_.parameters[j];
      *next++ = (p[j] - parameter.prior) / parameter.prior_width;
    }
    for (const FitProblem::Smooth& pair : problem_.smooth) {
      *next++ = (p[pair.first] - p[pair.second]) / pair.width;
    }
  }

  bool operator()(double const* const* blocks, double* out) const {
    evaluate({blocks[0], problem_.parameters.size()}, out);
    for (std::size_t i = 0; i < size(); ++i) {
      if (!std::isfinite(out[i])) return false;
    }
    return true;
  }

 private:
  const FitProblem& problem_;
};

}  // namespace

}  // namespace coterie

extern "C" bool coterie_ceres_solve(const coterie::FitProblem& problem, coterie::FitResult& result,
                                    std::string& failure);

bool coterie_ceres_solve(const coterie::FitProblem& problem, coterie::FitResult& result,
                         std::string& failure) {
  using namespace coterie;
  const Residuals residuals(problem);
  const int num_parameters = static_cast<int>(problem.parameters.size());
  for (const FitParameter& parameter : problem.parameters) {
    result.parameters.push_back(parameter.start.value_or(parameter.prior));
  }
  double* values = result.parameters.data();

  auto cost = std::make_unique<ceres::DynamicNumericDiffCostFunction<Residuals, ceres::CENTRAL>>(
      &residuals, ceres::DO_NOT_TAKE_OWNERSHIP);
  cost->AddParameterBlock(num_parameters);
  cost->SetNumResiduals(static_cast<int>(residuals.size()));
  ceres::Problem ceres_problem;
  ceres_problem.AddResidualBlock(cost.release(), nullptr, values);
  for (int j = 0; j < num_parameters; ++j) {
    const FitParameter& parameter = problem.parameters[static_cast<std::size_t>(j)];
    ceres_problem.SetParameterLowerBound(values, j, parameter.min);
    ceres_problem.SetParameterUpperBound(values, j, parameter.max);
  }
  ceres::Solver::Options options;
  options.linear_solver_type = ceres::DENSE_QR;
  options.max_num_iterations = 300;
  options.function_tolerance = 1e-10;
  options.logging_type = ceres::SILENT;
  options.num_threads = 1;
  ceres::Solver::Summary summary;
  ceres::Solve(options, &ceres_problem, &summary);
  if (!summary.IsSolutionUsable()) {
    failure = summary.message;
    return false;
  }

  ceres::Covariance::Options covariance_options;
  covariance_options.algorithm_type = ceres::DENSE_SVD;
  covariance_options.null_space_rank = -1;
  ceres::Covariance covariance(covariance_options);
  const std::vector<const double*> blocks{values};
  const std::size_t n = problem.parameters.size();
  std::vector<double> matrix(n * n, 0.0);
  if (covariance.Compute(blocks, &ceres_problem)) {
    covariance.GetCovarianceMatrix(blocks, matrix.data());
  }
  for (std::size_t j = 0; j < n; ++j) {
    const double error = std::sqrt(std::max(0.0, matrix[j * n + j]));
    result.standard_error.push_back(error);
    if (error > std::min(0.7 * problem.parameters[j].prior_width, kLargestError)) {
      result.undetermined.push_back(problem.parameters[j].name);
    }
  }
  return true;
}
