#include "sim/calibrate/operation_fit.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/error.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "sim/step/operation_tables.hpp"

namespace coterie {
namespace {

constexpr std::size_t kMinPoints = 8;
constexpr std::size_t kPointFolds = 4;
// Decoding kernels read keys in tiles; shorter sequences take the time of a tile.
constexpr std::uint64_t kMinKeys = 128;

using Points = std::vector<const MeasuredOperations*>;

// Shares stay below what a topology file takes.
OperationCosts costs_from(std::span<const double> p) {
  return {{std::exp(p[0])}, std::min(1.0, std::exp(p[1])), std::exp(p[2]), 1.0 + std::exp(p[3])};
}

// Sizes that a step has: prompts of more than one token, and more keys than a tile.
bool is_typical(const MeasuredOperations& point) {
  const AttentionCall& call = point.operations.front().attention;
  if (point.kind == "attention") return call.query_length > 1;
  if (point.kind == "attention_decode") return call.kv_length >= kMinKeys;
  return true;
}

double time_of(const GpuModel& gpu, const MeasuredOperations& point) {
  return OperationTimes(gpu).time(point.operations).total.value;
}

FitResult fit_operation_points(const GpuModel& gpu, const std::string& kind, const Points& points) {
  FitProblem problem;
  problem.parameters = {{"launch", std::log(5e-6), 2.0, std::log(1e-7), std::log(1e-3)},
                        {"compute", std::log(0.6), 1.0, std::log(0.01), 0.0},
                        {"memory", std::log(0.7), 1.0, std::log(0.01), std::log(2.0)},
                        {"sharpness", 0.5, 1.0, -3.0, std::log(99.0)}};
  for (const MeasuredOperations* point : points) {
    problem.log_measured.push_back(std::log(point->time_s));
  }
  problem.scale = 0.1;
  problem.model = [&gpu, &kind, &points](std::span<const double> p, std::span<double> out) {
    GpuModel tried = gpu;
    tried.operations[kind] = costs_from(p);
    const OperationTimes times(tried);
    for (std::size_t i = 0; i < points.size(); ++i) {
      out[i] = std::log(times.time(points[i]->operations).total.value);
    }
  };
  return solve(problem);
}

OperationFit fit_kind(const GpuModel& gpu, const std::string& kind, const Points& points) {
  if (points.size() < kMinPoints) {
    throw InputError("calibrate fit", fmt::format("{} measured times of {}", points.size(), kind),
                     fmt::format("at least {}", kMinPoints));
  }
  OperationFit fit;
  fit.kind = kind;
  const FitResult result = fit_operation_points(gpu, kind, points);
  fit.costs = costs_from(result.parameters);
  fit.undetermined = result.undetermined;
  fit.held_out.resize(points.size());
  for (std::size_t fold = 0; fold < kPointFolds; ++fold) {
    Points kept;
    for (std::size_t i = 0; i < points.size(); ++i) {
      if (i % kPointFolds != fold) kept.push_back(points[i]);
    }
    GpuModel tried = gpu;
    tried.operations[kind] = costs_from(fit_operation_points(gpu, kind, kept).parameters);
    for (std::size_t i = fold; i < points.size(); i += kPointFolds) {
      fit.held_out[i] = time_of(tried, *points[i]) / points[i]->time_s - 1.0;
    }
  }
  return fit;
}

}  // namespace

std::vector<OperationFit> fit_operations(const GpuModel& gpu, const OperationTableFiles& files) {
  const std::vector<MeasuredOperations> measured = read_measured_operations(files);
  GpuModel fitted = gpu;
  std::vector<OperationFit> fits;
  // In the order of kOperationKinds: products come before the modules that hold them.
  for (const char* kind : kOperationKinds) {
    Points points;
    for (const MeasuredOperations& point : measured) {
      if (point.kind == kind && is_typical(point)) points.push_back(&point);
    }
    if (points.empty()) continue;
    fits.push_back(fit_kind(fitted, kind, points));
    fitted.operations[kind] = fits.back().costs;
  }
  return fits;
}

}  // namespace coterie
