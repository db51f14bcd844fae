#include "sim/calibrate/kernel_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

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

// Of what the links carry, before the data: what puts reach.
constexpr double kPutPortShare = 0.7;

// A parameter, what is thought of it before the data, and how sure that is (in units of e).
struct Parameter {
  std::string name;
  double prior = 1.0;
  double width = 2.0;
  std::optional<double> start{};  // absent: the prior
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
    if (parameter.start) problem.parameters.back().start = std::log(*parameter.start);
  }
  for (const RowExchange& exchange : undisturbed(exchanges)) {
    problem.log_measured.push_back(std::log(exchange.time_s));
    // A median of samples that scatter says less.
    problem.scatter.push_back(std::max(1.0, exchange.spread / problem.scale));
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

// What the hardware's links carry per rank and direction.
double port_limit_of(const Cluster& cluster, bool between) {
  if (between && cluster.nic) return cluster.nic->bandwidth.value * cluster.nic->per_gpu;
  return cluster.scale_up ? cluster.scale_up->bandwidth.value : cluster.nic->bandwidth.value;
}

std::vector<RowExchange> of_kind(const std::vector<RowExchange>& exchanges, Direction direction,
                                 bool between) {
  std::vector<RowExchange> out;
  for (const RowExchange& exchange : exchanges) {
    if (exchange.direction == direction && (exchange.num_nodes > 1) == between) {
      out.push_back(exchange);
    }
  }
  return out;
}

// Errors of every fourth exchange, were it left out, for each of the four.
template <class Fit, class Time>
void add_held_out(const std::vector<RowExchange>& exchanges, const Fit& fit_of, const Time& time_s,
                  std::vector<double>& errors) {
  constexpr std::size_t kFolds = 4;
  std::vector<double> found(exchanges.size(), 0.0);
  for (std::size_t fold = 0; fold < kFolds; ++fold) {
    std::vector<RowExchange> training;
    for (std::size_t i = 0; i < exchanges.size(); ++i) {
      if (i % kFolds != fold) training.push_back(exchanges[i]);
    }
    if (training.size() < 8) return;
    const auto kernel = fit_of(training).kernel;
    for (std::size_t i = fold; i < exchanges.size(); i += kFolds) {
      found[i] = time_s(kernel, exchanges[i]) / exchanges[i].time_s - 1.0;
    }
  }
  errors.insert(errors.end(), found.begin(), found.end());
}

// Fits one kernel of a transport where there are exchanges of it. Returns whether there were.
template <class Kernel>
bool fit_one(const Cluster& cluster, const std::vector<RowExchange>& all, Direction direction,
             bool between, Kernel& kernel, TransportFit& out) {
  const std::vector<RowExchange> exchanges = of_kind(all, direction, between);
  if (exchanges.empty()) return false;
  // Ranks that share a GPU are a node: their port leads to other nodes.
  // A cluster that describes them as GPUs of their own (without ranks_per_gpu) gives each its part.
  const double parts = std::max(
      1.0, static_cast<double>(exchanges[0].volumes.ranks_per_gpu) / cluster.ranks_per_gpu);
  const double limit =
      parts * port_limit_of(cluster, between || exchanges[0].volumes.crosses_nodes);
  const Seconds token = assumed_token(all, limit);
  const auto fit_of = [&](const std::vector<RowExchange>& points) {
    if constexpr (std::is_same_v<Kernel, CopyKernel>) return fit_copy_kernel(points, limit);
    if constexpr (std::is_same_v<Kernel, PutKernel>) return fit_put_kernel(points, limit, token);
  };
  const auto time_s = [&](const Kernel& costs, const RowExchange& exchange) {
    if constexpr (std::is_same_v<Kernel, CopyKernel>) return copy_kernel_s(costs, exchange, limit);
    if constexpr (std::is_same_v<Kernel, PutKernel>) return put_kernel_s(costs, exchange, limit);
  };
  const auto fitted = fit_of(exchanges);
  kernel = fitted.kernel;
  if constexpr (std::is_same_v<Kernel, CopyKernel>) {
    kernel.port_bandwidth = *kernel.port_bandwidth * (1.0 / parts);
  }
  const std::string name =
      fmt::format("{}{}.", direction == Direction::kDispatch ? "dispatch" : "combine",
                  between ? "_between" : "");
  for (const std::string& parameter : fitted.undetermined) {
    out.undetermined.push_back(name + parameter);
  }
  add_held_out(exchanges, fit_of, time_s, out.held_out);
  return true;
}

// The transport's parameters on the cluster, if it knows any.
template <class Parameters>
std::optional<Parameters> known(const Cluster& cluster) {
  for (const TransportParameters& parameters : cluster.transports) {
    if (const auto* found = std::get_if<Parameters>(&parameters)) return *found;
  }
  return std::nullopt;
}

std::uint32_t most_sms(const std::vector<RowExchange>& exchanges) {
  double sms = 1.0;
  for (const RowExchange& exchange : exchanges) sms = std::max(sms, exchange.sms);
  return static_cast<std::uint32_t>(sms);
}

template <class Parameters>
void fit_both(const Cluster& cluster, const std::vector<RowExchange>& exchanges,
              Parameters& parameters, TransportFit& out) {
  const bool knows = known<Parameters>(cluster).has_value();
  if (!knows) parameters.sms = most_sms(exchanges);
  for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
    auto& kernel = direction == Direction::kDispatch ? parameters.dispatch : parameters.combine;
    if (!fit_one(cluster, exchanges, direction, false, kernel, out) && !knows) {
      throw InputError("fit of transport " + exchanges[0].transport,
                       fmt::format("no {} inside a node",
                                   direction == Direction::kDispatch ? "dispatch" : "combine"),
                       "both directions, or a topology that knows the transport already");
    }
  }
}

}  // namespace

bool asks_no_more(const RowExchange& exchange, const RowExchange& other, double tolerance) {
  if (exchange.direction != other.direction || exchange.num_gpus != other.num_gpus ||
      exchange.rows.size() != other.rows.size() || exchange.rows.empty() ||
      exchange.row_bytes > other.row_bytes || exchange.tokens_per_rank > other.tokens_per_rank ||
      exchange.sms < other.sms) {
    return false;
  }
  for (std::size_t src = 0; src < exchange.rows.size(); ++src) {
    for (std::size_t dst = 0; dst < exchange.rows.size(); ++dst) {
      if (exchange.rows[src][dst] > other.rows[src][dst] * (1.0 + tolerance)) return false;
    }
  }
  return true;
}

std::vector<RowExchange> undisturbed(std::vector<RowExchange> exchanges) {
  constexpr double kScatter = 0.04;
  std::vector<double> times;
  for (const RowExchange& exchange : exchanges) {
    double time_s = exchange.time_s;
    for (const RowExchange& other : exchanges) {
      if (other.time_s * (1.0 + kScatter) < exchange.time_s &&
          asks_no_more(exchange, other, kScatter)) {
        time_s = std::min(time_s, other.time_s);
      }
    }
    times.push_back(time_s);
  }
  for (std::size_t i = 0; i < times.size(); ++i) exchanges[i].time_s = times[i];
  return exchanges;
}

double copy_kernel_s(const CopyKernel& kernel, const RowExchange& exchange, double port_limit) {
  return exchange_s(copy_kernel_model(kernel, exchange.direction, exchange.sms), exchange,
                    port_limit);
}
double put_kernel_s(const PutKernel& kernel, const RowExchange& exchange, double port_limit) {
  return exchange_s(put_kernel_model(kernel, exchange.direction, exchange.sms,
                                     exchange.transport == "nvlink_one_sided"),
                    exchange, port_limit);
}

KernelFit<CopyKernel> fit_copy_kernel(const std::vector<RowExchange>& exchanges,
                                      double port_limit) {
  const bool between = !exchanges.empty() && exchanges[0].num_nodes > 1;  // over one NIC each
  // What uniform routing leaves open (the receiver's part, one pair alone) stays near what skewed
  // exchanges of four GPUs showed.
  const bool combine = !exchanges.empty() && exchanges[0].direction == Direction::kCombine;
  // Nor do few shapes (measured matrices, unlike published tables) tell a combine's senders from
  // its receivers; nodes of eight H100 or H200 show 42 to 45 GB/s in published tables.
  const bool few_shapes = combine && !exchanges[0].rows.empty();
  const double shortest = shortest_s(exchanges);
  std::vector<Parameter> parameters{
      {"fixed", 0.8 * shortest, 1.0},
      // From where the data feel it: below all times it says nothing of any.
      {"least", 0.5 * shortest, 1.0, shortest},
      {"first_row", combine ? 1e9 : 1e11, 2.0},
      {"first_rows", combine ? 5e9 : 1e12, 2.0},
      {"fill", 5e-6, 2.0},
      {"fill_tokens", 30.0, 1.5},
      {"token", 1e-7, 2.0},
      {"row", 2e-8, 2.0},
      {"row_floor", 7e-8, 1.5},
      {"bandwidth", few_shapes ? 4.5e10 : 5e10, few_shapes ? 0.5 : 2.0},
      {"receive_share", combine ? 0.35 : 0.8, 0.15},
      {"pair_gain", 1.15, 0.1},
      {"port_bandwidth", std::min(port_limit, between ? 4.5e10 : 3e11), 0.5},
  };
  if (combine) parameters.push_back({"token_bandwidth", 1.2e10, 1.5});
  const auto make = [combine](std::span<const double> p) {
    CopyKernel kernel;
    std::size_t next = 0;
    const auto take = [&] { return std::exp(p[next++]); };
    kernel.fixed = Seconds{take()};
    kernel.least = Seconds{take()};
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

Seconds assumed_token(const std::vector<RowExchange>& exchanges, double port_limit) {
  double least_bytes = 0.0;  // of one row
  double most_bytes = 0.0;   // of a token's rows that cross the port
  double sms = 1.0;
  for (const RowExchange& exchange : exchanges) {
    if (exchange.transport != "nvlink_one_sided") continue;
    for (const RankVolume& volume : exchange.volumes.ranks) {
      const bool dispatch = exchange.direction == Direction::kDispatch;
      const double bytes = dispatch ? volume.port_out : volume.port_in;
      if (bytes <= 0.0 || volume.tokens <= 0.0) continue;
      const double row = exchange.volumes.row_bytes;
      least_bytes = least_bytes > 0.0 ? std::min(least_bytes, row) : row;
      const double token = std::max(row, bytes / volume.tokens);
      most_bytes = most_bytes > 0.0 ? std::min(most_bytes, token) : token;
      sms = exchange.sms;
    }
  }
  if (least_bytes <= 0.0) return Seconds{1e-6};
  const double mean_bytes = 2.0 * least_bytes * most_bytes / (least_bytes + most_bytes);
  return Seconds{sms * mean_bytes / (kPutPortShare * port_limit)};
}

KernelFit<PutKernel> fit_put_kernel(const std::vector<RowExchange>& exchanges, double port_limit,
                                    Seconds token) {
  const std::vector<Parameter> parameters{
      {"fixed", 0.7 * shortest_s(exchanges), 1.0},
      {"peer", 1e-7, 1.5},
      {"token_row", 5e-7, 1.5},
      {"token", token.value, 2.0},
      {"row", 1e-9, 2.0},
      {"port_bandwidth", kPutPortShare * port_limit, 0.7},
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

TransportFit fit_transport(const Cluster& cluster, const std::vector<RowExchange>& exchanges) {
  TransportFit out;
  const std::string& transport = exchanges.at(0).transport;
  if (transport == "deepep_normal") {
    auto parameters = known<DeepepNormalParameters>(cluster).value_or(DeepepNormalParameters{});
    fit_both(cluster, exchanges, parameters, out);
    CopyKernel between;
    if (fit_one(cluster, exchanges, Direction::kDispatch, true, between, out)) {
      parameters.dispatch_between = between;
    }
    if (fit_one(cluster, exchanges, Direction::kCombine, true, between, out)) {
      parameters.combine_between = between;
    }
    if (const auto notify = notify_of(exchanges)) parameters.notify = Seconds{*notify};
    out.parameters = parameters;
  } else if (transport == "deepep_low_latency") {
    auto parameters =
        known<DeepepLowLatencyParameters>(cluster).value_or(DeepepLowLatencyParameters{});
    fit_both(cluster, exchanges, parameters, out);
    for (const RowExchange& exchange : exchanges) {
      parameters.max_tokens_per_rank = std::max(
          parameters.max_tokens_per_rank, static_cast<std::uint32_t>(exchange.tokens_per_rank));
    }
    out.parameters = parameters;
  } else if (transport == "nvlink_one_sided") {
    auto parameters = known<NvlinkOneSidedParameters>(cluster).value_or(NvlinkOneSidedParameters{});
    fit_both(cluster, exchanges, parameters, out);
    out.parameters = parameters;
  } else {
    throw InputError("fit of a transport", fmt::format("\"{}\"", transport),
                     "deepep_normal, deepep_low_latency or nvlink_one_sided");
  }
  return out;
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
