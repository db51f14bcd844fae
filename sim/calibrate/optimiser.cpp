#include "sim/calibrate/optimiser.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/module.hpp"
#include "sim/calibrate/ceres_module.hpp"

namespace coterie {

FitResult solve(const FitProblem& problem) {
  const auto solve_with_ceres =
      reinterpret_cast<SolveWithCeres>(module_symbol("coterie_ceres", "coterie_ceres_solve"));
  FitResult result;
  std::string failure;
  if (!solve_with_ceres(problem, result, failure)) {
    throw CheckError(fmt::format("the fit did not converge: {}", failure));
  }
  return result;
}

}  // namespace coterie
