#include "sim/calibrate/token_kernel_fit.hpp"

#include <cmath>

#include "sim/calibrate/optimiser.hpp"
#include "workloads/plan/fan_out.hpp"

namespace coterie {
namespace {

double row_bytes(TokenKernel kernel, double hidden) {
  // FP8 with one float scale per 128 values out, BF16 back.
  return kernel == TokenKernel::kDispatch ? hidden + hidden / 128.0 * 4.0 : 2.0 * hidden;
}

TokenKernelCosts costs_from(std::span<const double> p) {
  return {std::exp(p[0]), std::exp(p[1]),       std::exp(p[2]), std::exp(p[3]),
          std::exp(p[4]), 1.0 + std::exp(p[5]), std::exp(p[6])};
}

}  // namespace

double token_kernel_time_s(const TokenKernelCosts& costs, TokenKernel kernel,
                           const TokenKernelPoint& point) {
  const double rows =
      point.tokens_per_rank * uniform_fan_out(point.num_experts, point.num_ranks, point.topk);
  const double bytes = rows * (row_bytes(kernel, point.hidden) + costs.row_overhead);
  const double q = costs.sharpness;
  const double rate =
      std::pow(std::pow(point.sms * costs.sm_rate, -q) + std::pow(costs.cap, -q), -1.0 / q);
  const double fill_s = costs.fill_rows * row_bytes(kernel, point.hidden) / costs.sm_rate;
  return costs.launch_s + fill_s + bytes / rate +
         point.tokens_per_rank * costs.token_cost_s / point.sms;
}

TokenKernelCosts fit_token_kernel(const std::vector<TokenKernelPoint>& points, TokenKernel kernel) {
  FitProblem problem;
  problem.scale = 0.05;
  problem.parameters = {{"launch", std::log(30e-6), 3.0},    {"sm_rate", std::log(2e10), 3.0},
                        {"cap", std::log(4.5e11), 1.0},      {"row_overhead", std::log(100.0), 3.0},
                        {"token_cost", std::log(1e-7), 3.0}, {"sharpness", 0.7, 1.0},
                        {"fill_rows", std::log(10.0), 3.0}};
  for (const TokenKernelPoint& point : points) {
    problem.log_measured.push_back(
        std::log(kernel == TokenKernel::kDispatch ? point.dispatch_s : point.combine_s));
  }
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const TokenKernelCosts costs = costs_from(p);
    for (std::size_t i = 0; i < points.size(); ++i) {
      out[i] = std::log(token_kernel_time_s(costs, kernel, points[i]));
    }
  };
  return costs_from(solve(problem).parameters);
}

}  // namespace coterie
