#include "sim/calibrate/kernel_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "sim/transports/deepep_normal.hpp"
#include "sim/transports/put_kernels.hpp"

namespace coterie {
namespace {

double exchange_s(const KernelModel& model, const RowExchange& exchange, double port_limit) {
  if (!exchange.second_hop) return kernel_phase_s(model, exchange.volumes, port_limit);
  // Both hops run at once; the start is the first one's.
  const double flow_s = kernel_flow_s(model, exchange.volumes, port_limit);
  const double second_s = kernel_flow_s(model, *exchange.second_hop, port_limit);
  return kernel_phase_s(model, exchange.volumes, port_limit) + std::max(0.0, second_s - flow_s);
}

// A parameter, what is thought of it before the data, and how sure that is (in units of e).
struct Parameter {
  std::string name;
  double prior = 1.0;
  double width = 2.0;
};

template <class Kernel, class Make, class Time>
KernelFit<Kernel> fit(const std::vector<RowExchange>& exchanges,
                      const std::vector<Parameter>& parameters, const Make& make,
                      const Time& time_s) {
  if (exchanges.size() < 8) {
    throw InputError("fit of a transport's kernels", fmt::format("{} exchanges", exchanges.size()),
                     "at least eight");
  }
  FitProblem problem;
  for (const Parameter& parameter : parameters) {
    problem.parameters.push_back({parameter.name, std::log(parameter.prior), parameter.width});
  }
  for (const RowExchange& exchange : exchanges) {
    problem.log_measured.push_back(std::log(exchange.time_s));
  }
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const Kernel kernel = make(p);
    for (std::size_t i = 0; i < exchanges.size(); ++i) {
      out[i] = std::log(time_s(kernel, exchanges[i]));
    }
  };
  const FitResult result = solve(problem);
  return {make(result.parameters), result.undetermined};
}

double shortest_s(const std::vector<RowExchange>& exchanges) {
  double time_s = 1.0;
  for (const RowExchange& exchange : exchanges) time_s = std::min(time_s, exchange.time_s);
  return time_s;
}

}  // namespace

double copy_kernel_s(const CopyKernel& kernel, const RowExchange& exchange, double port_limit) {
  return exchange_s(copy_kernel_model(kernel, exchange.direction, exchange.sms), exchange,
                    port_limit);
}
double put_kernel_s(const PutKernel& kernel, const RowExchange& exchange, double port_limit) {
  return exchange_s(put_kernel_model(kernel, exchange.direction, exchange.sms), exchange,
                    port_limit);
}

KernelFit<CopyKernel> fit_copy_kernel(const std::vector<RowExchange>& exchanges,
                                      double port_limit) {
  // What uniform routing leaves open (the receiver's part, one pair alone) stays near what skewed
  // exchanges of four GPUs showed.
  const bool combine = !exchanges.empty() && exchanges[0].direction == Direction::kCombine;
  std::vector<Parameter> parameters{
      {"fixed", 0.8 * shortest_s(exchanges), 1.0},
      {"first_row", combine ? 1e9 : 1e11, 2.0},
      {"first_rows", combine ? 5e9 : 1e12, 2.0},
      {"fill", 5e-6, 2.0},
      {"fill_tokens", 30.0, 1.5},
      {"token", 1e-7, 2.0},
      {"row", 2e-8, 2.0},
      {"row_floor", 7e-8, 1.5},
      {"bandwidth", 5e10, 2.0},
      {"receive_share", combine ? 0.35 : 0.8, 0.15},
      {"pair_gain", 1.15, 0.1},
      {"port_bandwidth", std::min(port_limit, 3e11), 0.5},
  };
  if (combine) parameters.push_back({"token_bandwidth", 1.2e10, 1.5});
  const auto make = [combine](std::span<const double> p) {
    CopyKernel kernel;
    std::size_t next = 0;
    const auto take = [&] { return std::exp(p[next++]); };
    kernel.fixed = Seconds{take()};
    kernel.first_row = Bandwidth{take()};
    kernel.first_rows = Bandwidth{take()};
    kernel.fill = Seconds{take()};
    kernel.fill_tokens = take();
    kernel.token = Seconds{take()};
    kernel.row = Seconds{take()};
    kernel.row_floor = Seconds{take()};
    kernel.bandwidth = Bandwidth{take()};
    kernel.receive_share = take();
    kernel.pair_gain = take();
    kernel.port_bandwidth = Bandwidth{take()};
    if (combine) kernel.token_bandwidth = Bandwidth{take()};
    return kernel;
  };
  return fit<CopyKernel>(exchanges, parameters, make,
                         [&](const CopyKernel& kernel, const RowExchange& exchange) {
                           return copy_kernel_s(kernel, exchange, port_limit);
                         });
}

KernelFit<PutKernel> fit_put_kernel(const std::vector<RowExchange>& exchanges, double port_limit) {
  const std::vector<Parameter> parameters{
      {"fixed", 0.7 * shortest_s(exchanges), 1.0},
      {"peer", 1e-7, 1.5},
      {"token_row", 5e-7, 1.5},
      {"token", 1e-6, 2.0},
      {"row", 1e-9, 2.0},
      {"port_bandwidth", 0.7 * port_limit, 0.7},
  };
  const auto make = [](std::span<const double> p) {
    PutKernel kernel;
    kernel.fixed = Seconds{std::exp(p[0])};
    kernel.peer = Seconds{std::exp(p[1])};
    kernel.token_row = Seconds{std::exp(p[2])};
    kernel.token = Seconds{std::exp(p[3])};
    kernel.row = Seconds{std::exp(p[4])};
    kernel.port_bandwidth = Bandwidth{std::exp(p[5])};
    return kernel;
  };
  return fit<PutKernel>(exchanges, parameters, make,
                        [&](const PutKernel& kernel, const RowExchange& exchange) {
                          return put_kernel_s(kernel, exchange, port_limit);
                        });
}

std::optional<double> notify_of(const std::vector<RowExchange>& exchanges) {
  std::vector<double> times;
  for (const RowExchange& exchange : exchanges) {
    if (exchange.notify_s && *exchange.notify_s > 0.0) times.push_back(*exchange.notify_s);
  }
  if (times.empty()) return std::nullopt;
  return median(std::move(times));
}

}  // namespace coterie
