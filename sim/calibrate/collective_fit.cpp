#include "sim/calibrate/collective_fit.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "core/counted.hpp"
#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/optimiser.hpp"

namespace coterie {
namespace {

constexpr std::size_t kMinSizes = 12;
constexpr std::size_t kCollectiveFolds = 4;
constexpr double kShortest_s = 1e-9;  // stands for no set-up

// Of an NVLink machine: the orders of magnitude of LL, LL128 and Simple, and what NCCL's tuner
// assumes for a step between nodes.
CollectiveParameters usual_costs() {
  CollectiveParameters costs;
  costs.launch = Seconds{4e-6};
  costs.hop = Seconds{0.8e-6};
  costs.copy_bandwidth = Bandwidth{800e9};
  costs.sms = 16;
  costs.protocols = {{"ll", Seconds{0.0}, Seconds{2.7e-6}, Bandwidth{60e9}},
                     {"ll128", Seconds{2e-6}, Seconds{4e-6}, Bandwidth{200e9}},
                     {"simple", Seconds{15e-6}, Seconds{14e-6}, Bandwidth{350e9}}};
  return costs;
}

// The quantities that are fitted, in the order of the parameters.
std::vector<std::pair<std::string, double*>> quantities(CollectiveParameters& costs,
                                                        bool multicast) {
  std::vector<std::pair<std::string, double*>> out{{"launch", &costs.launch.value},
                                                   {"hop", &costs.hop.value}};
  if (costs.copy_bandwidth) out.emplace_back("copy_bandwidth", &costs.copy_bandwidth->value);
  for (CollectiveProtocol& protocol : costs.protocols) {
    // The first protocol's set-up is the launch.
    if (&protocol != costs.protocols.data()) {
      out.emplace_back(protocol.name + ".setup", &protocol.setup.value);
    }
    out.emplace_back(protocol.name + ".bandwidth", &protocol.bandwidth.value);
  }
  if (multicast) {
    out.emplace_back("multicast.setup", &costs.multicast->setup.value);
    out.emplace_back("multicast.bandwidth", &costs.multicast->bandwidth.value);
  }
  return out;
}

double predicted_s(const Cluster& cluster, const CollectivePoint& point) {
  std::vector<std::uint32_t> gpus(point.num_gpus);
  std::iota(gpus.begin(), gpus.end(), 0U);
  // To the switch and from it.
  return plan_collective(cluster, point.kind, gpus, point.bytes).estimate_s +
         2.0 * cluster.scale_up->latency.value;
}

FitResult fit_points(const Cluster& cluster, const CollectiveParameters& prior, bool multicast,
                     const std::vector<CollectivePoint>& points) {
  FitProblem problem;
  CollectiveParameters start = prior;
  // What a GPU can inject bounds every protocol: beyond, its bandwidth changes nothing.
  double most = cluster.scale_up->bandwidth.value;
  if (const auto cap = cluster.scale_up->injection.rank_bandwidth) {
    most = std::min(most, cap->value);
  }
  for (const auto& [name, value] : quantities(start, multicast)) {
    const bool wire = name.ends_with(".bandwidth");
    const double at = std::log(std::clamp(*value, kShortest_s, wire ? 0.9 * most : 1e30));
    problem.parameters.push_back(
        {name, at, 1.0, std::log(kShortest_s), wire ? std::log(most) : 60.0});
  }
  for (const CollectivePoint& point : points) {
    problem.log_measured.push_back(std::log(point.time_s));
  }
  problem.scale = 0.05;
  Cluster tried = cluster;
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    tried.collectives = prior;
    const auto values = quantities(*tried.collectives, multicast);
    for (std::size_t i = 0; i < values.size(); ++i) *values[i].second = std::exp(p[i]);
    for (std::size_t i = 0; i < points.size(); ++i) {
      out[i] = std::log(predicted_s(tried, points[i]));
    }
  };
  return solve(problem);
}

// As many as a table of times can tell.
double four_digits(double value) {
  return std::stod(fmt::format("{:.4g}", value));
}

CollectiveParameters collective_costs(CollectiveParameters prior, bool multicast,
                                      const FitResult& fit) {
  const auto values = quantities(prior, multicast);
  for (std::size_t i = 0; i < values.size(); ++i) {
    *values[i].second = four_digits(std::exp(fit.parameters[i]));
  }
  return prior;
}

}  // namespace

std::vector<CollectivePoint> read_collective_points(const std::filesystem::path& file,
                                                    const std::string& machine) {
  const CsvTable table = parse_csv(read_file(file), file.string());
  for (const char* column : {"machine", "op_name", "num_gpus", "message_bytes", "latency_us"}) {
    if (table.find(column)) continue;
    throw InputError(file.string(), fmt::format("no column \"{}\"", column),
                     "machine, op_name, num_gpus, message_bytes and latency_us");
  }
  std::set<std::string> machines;
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    machines.insert(table.text(row, "machine"));
  }
  if (machine.empty() && machines.size() > 1) {
    throw InputError(
        file.string(), fmt::format("points of {} machines", machines.size()),
        fmt::format("one machine (name it with --machine: {})", fmt::join(machines, ", ")));
  }
  if (!machine.empty() && !machines.contains(machine)) {
    throw InputError(file.string(), fmt::format("no machine \"{}\"", machine),
                     fmt::format("one of {}", fmt::join(machines, ", ")));
  }
  std::vector<CollectivePoint> points;
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    if (!machine.empty() && table.text(row, "machine") != machine) continue;
    const std::string where = fmt::format("{}:{}", file.string(), table.lines[row]);
    const std::string op = table.text(row, "op_name");
    const auto kind = parse_collective(op);
    if (!kind || *kind == CollectiveKind::kAllToAll) {
      throw InputError(where, fmt::format("op_name \"{}\"", op),
                       "all_reduce, reduce_scatter or all_gather");
    }
    const auto gpus = table.number(row, "num_gpus");
    const auto bytes = table.number(row, "message_bytes");
    const auto latency_us = table.number(row, "latency_us");
    if (!gpus || *gpus < 2.0 || *gpus > 1e6 || std::floor(*gpus) != *gpus) {
      throw InputError(where, fmt::format("num_gpus \"{}\"", table.text(row, "num_gpus")),
                       "a whole number, at least 2");
    }
    if (!bytes || *bytes <= 0.0 || !latency_us || *latency_us <= 0.0) {
      throw InputError(where, "no message_bytes or latency_us", "positive numbers");
    }
    points.push_back({*kind, static_cast<std::uint32_t>(*gpus), *bytes, *latency_us * 1e-6});
  }
  return points;
}

CollectiveFit fit_collectives(const Cluster& cluster, const std::vector<CollectivePoint>& points) {
  const std::uint32_t domain_gpus =
      cluster.scale_up ? cluster.gpus_per_node * cluster.scale_up->nodes_per_domain : 1;
  std::map<std::tuple<CollectiveKind, std::uint32_t, double>, std::size_t> sizes;
  for (const CollectivePoint& point : points) {
    if (point.num_gpus > domain_gpus) {
      throw InputError(
          "calibrate fit", fmt::format("collectives of {}", counted(point.num_gpus, "GPU")),
          fmt::format("groups within the {} of a scale-up domain", counted(domain_gpus, "GPU")));
    }
    sizes.try_emplace({point.kind, point.num_gpus, point.bytes}, 0);
  }
  if (sizes.size() < kMinSizes) {
    throw InputError("calibrate fit",
                     fmt::format("{} of collectives", counted(sizes.size(), "size")),
                     fmt::format("at least {}", kMinSizes));
  }
  std::size_t next = 0;
  for (auto& [key, position] : sizes) position = next++;
  // The median of a size's repeats.
  std::vector<CollectivePoint> medians;
  for (const auto& [key, position] : sizes) {
    CollectivePoint point{std::get<0>(key), std::get<1>(key), std::get<2>(key), 0.0};
    std::vector<double> times_s;
    for (const CollectivePoint& other : points) {
      if (std::tie(other.kind, other.num_gpus, other.bytes) == key) times_s.push_back(other.time_s);
    }
    point.time_s = median(times_s);
    medians.push_back(point);
  }
  const auto fold_of = [&](const CollectivePoint& point) {
    return sizes.at({point.kind, point.num_gpus, point.bytes}) % kCollectiveFolds;
  };
  const CollectiveParameters prior = cluster.collectives.value_or(usual_costs());
  // Only groups that may reduce in the switches tell what that costs.
  const bool multicast =
      prior.multicast && std::any_of(points.begin(), points.end(), [&](const auto& point) {
        return point.kind == CollectiveKind::kAllReduce &&
               point.num_gpus >= prior.multicast->min_gpus;
      });
  CollectiveFit out;
  const FitResult all = fit_points(cluster, prior, multicast, medians);
  out.parameters = collective_costs(prior, multicast, all);
  out.undetermined = all.undetermined;
  out.held_out.resize(points.size());
  for (std::size_t fold = 0; fold < kCollectiveFolds; ++fold) {
    std::vector<CollectivePoint> kept;
    for (const CollectivePoint& point : medians) {
      if (fold_of(point) != fold) kept.push_back(point);
    }
    Cluster tried = cluster;
    tried.collectives =
        collective_costs(prior, multicast, fit_points(cluster, prior, multicast, kept));
    for (std::size_t i = 0; i < points.size(); ++i) {
      if (fold_of(points[i]) != fold) continue;
      out.held_out[i] = predicted_s(tried, points[i]) / points[i].time_s - 1.0;
    }
  }
  return out;
}

}  // namespace coterie
