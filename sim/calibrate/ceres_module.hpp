#pragma once
// What the fits ask of Ceres Solver, free of its headers. The implementation is a module of its own
// (ceres_module.cpp), loaded by the first fit: Ceres brings some twenty libraries of linear algebra,
// which took a third of the start of every command.

#include <string>

#include "sim/calibrate/optimiser.hpp"

namespace coterie {

// The module's one symbol, "coterie_ceres_solve". False if the solver did not converge, with its
// words in `failure`. Nothing of it throws but what the problem's model throws.
using SolveWithCeres = bool (*)(const FitProblem& problem, FitResult& result, std::string& failure);

}  // namespace coterie
