#include "sim/calibrate/probe_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/mlp_fit.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "sim/calibrate/probe_entry.hpp"
#include "sim/calibrate/uncertainty_scale.hpp"
#include "sim/program/kernels.hpp"
#include "workloads/plan/payload.hpp"

namespace coterie {
namespace {

constexpr std::size_t kFolds = 4;
constexpr std::size_t kFewestPoints = 8;
constexpr double kBf16Bytes = 2.0;
constexpr double kLeastCopyBytes = 64.0 * 1024 * 1024;
constexpr double kIndexBytes = 4.0;  // that an index reads per (token, expert) pair

// What was measured, in texts and numbers that tell entries apart, and how long it took.
using EntryTimes = std::map<std::string, double>;

// What the entries of one case leave for those that follow.
struct KernelCase {
  std::vector<double> gaps;
  double forward_index_s = 0.0, send_index_s = 0.0, event_between_s = 0.0;
  bool with_indices = false;
  EntryTimes alone;  // of all entries that run on one stream and in one round
};

// Ranks of one GPU drift apart along the list of kernels, and then wait for each other's. In the fastest
// sample they ran side by side most nearly, as the kernels of a layer do.
double kernel_s(const ProbeEntry& entry, const GpuProbe& probe) {
  return probe.ranks_per_gpu > 1 ? entry.fastest_s() : entry.time_s();
}

std::string kernel_key(const ProbeEntry& entry, const std::string& kind) {
  return fmt::format("{} {} {} {} {} {}", kind, entry.positive("hidden"), entry.text("type"),
                     entry.positive("num_tokens"), entry.positive("num_rows"),
                     entry.flag("row_per_copy"));
}

// An entry that only means something beside one that ran alone. Nothing where that is not in the list.
void add_beside(double time_s, const EntryTimes& alone, const std::string& key,
                std::vector<double>& longer_s, double parts = 1.0) {
  const auto found = alone.find(key);
  if (found != alone.end()) longer_s.push_back((time_s - found->second) / parts);
}

void add_among_streams(const ProbeEntry& entry, GpuProbe& probe, KernelCase& of_case) {
  const std::string kind = entry.text("kind");
  const double time_s = kernel_s(entry, probe);
  if (kind == "event_between") of_case.event_between_s = time_s;
  if (kind == "round_trip" && of_case.event_between_s > 0.0) {
    probe.join_s.push_back(time_s - of_case.event_between_s);
  }
  for (const char* phase : {"pack_phase", "forward_phase", "expand_phase", "merge", "gather_sum",
                            "sum", "sum_with_shared"}) {
    if (kind != phase) continue;
    add_beside(time_s, of_case.alone, kernel_key(entry, kind), probe.kernel_among_s);
  }
}

void add_rounds(const ProbeEntry& entry, double num_rounds, GpuProbe& probe,
                const KernelCase& of_case) {
  const std::string kind = entry.text("kind");
  const double time_s = kernel_s(entry, probe);
  if (kind == "pack_rounds") {
    add_beside(time_s, of_case.alone, kernel_key(entry, "pack_phase"), probe.pack_again_s,
               num_rounds - 1.0);
  } else if (kind == "send_index_rounds") {
    add_beside(time_s, of_case.alone, kernel_key(entry, "build_send_index"),
               probe.send_index_again_s, num_rounds - 1.0);
  }
}

void add_kernel(const ProbeEntry& entry, GpuProbe& probe, KernelCase& of_case) {
  const std::string kind = entry.text("kind");
  // Where ranks share a GPU, these hold what ranks wait for each other's kernels.
  const bool tells = probe.ranks_per_gpu == 1;
  if (entry.flag("among_streams")) {
    if (tells) add_among_streams(entry, probe, of_case);
    return;
  }
  if (entry.has("num_rounds") && kind != "events") {
    const double num_rounds = entry.positive("num_rounds");
    if (tells) add_rounds(entry, num_rounds, probe, of_case);
    return;
  }
  const double hidden = entry.positive("hidden");
  const PayloadType type = entry.is_fp8() ? PayloadType::kFp8 : PayloadType::kBf16;
  const auto dispatch_row =
      static_cast<double>(row_payload(type, static_cast<std::uint32_t>(hidden)).value);
  const double plain_row = kBf16Bytes * hidden;
  const double tokens = entry.positive("num_tokens");
  const double rows = entry.positive("num_rows");
  const double copies = entry.positive("num_copies");
  const double time_s = kernel_s(entry, probe);
  of_case.alone[kernel_key(entry, kind)] = time_s;
  if (kind == "events") {
    of_case.gaps.push_back(time_s);
    of_case.forward_index_s = of_case.send_index_s = 0.0;
  } else if (kind == "pack_phase") {
    probe.pack.push_back({.bytes = tokens * plain_row + rows * dispatch_row,
                          .rows = rows,
                          .time_s = time_s,
                          .items = tokens,
                          .quantised = entry.is_fp8() ? tokens * plain_row : 0.0});
    // The phase contains the index, which ranks of one GPU begin too far apart when it comes first.
    if (of_case.send_index_s > 0.0) {
      probe.send_index.push_back(
          {kIndexBytes * copies, rows, std::min(of_case.send_index_s, time_s)});
    }
  } else if (kind == "build_forward_index") {
    of_case.forward_index_s = time_s;
    if (of_case.with_indices) {
      probe.forward_index.push_back(
          {kIndexBytes * copies, entry.positive("num_forward_rows"), time_s, copies / rows});
    }
  } else if (kind == "build_send_index") {
    if (of_case.with_indices) of_case.send_index_s = time_s;
  } else if (kind == "forward" && of_case.forward_index_s > 0.0) {
    // Two intervals between events in place of one.
    const double both_s = of_case.forward_index_s + time_s - of_case.gaps.back();
    if (both_s <= 0.0) {
      throw InputError(entry.where(), "an index and a kernel shorter than the empty interval",
                       "times that contain it");
    }
    const double written = entry.positive("num_forward_rows");
    probe.forward.push_back(
        {(rows + written) * dispatch_row, written, both_s, copies / rows, rows});
  } else if (kind == "expand_phase") {
    probe.expand.push_back({rows * dispatch_row + copies * plain_row, copies, time_s, 0.0, rows});
  } else if (kind == "merge") {
    probe.merge.push_back({(copies + rows) * plain_row, copies, time_s, 0.0, rows});
  } else if (kind == "gather_sum") {
    const double read = entry.positive("num_forward_rows");
    probe.gather.push_back({(read + rows) * plain_row, read, time_s, 0.0, rows});
  } else if (kind == "sum") {
    probe.sum.push_back({(rows + tokens) * plain_row, rows, time_s, 0.0, tokens});
  } else if (kind == "sum_with_shared") {
    probe.sum.push_back({(rows + 2.0 * tokens) * plain_row, rows, time_s, 0.0, tokens});
  }
}

// Expansions behind a put, on the rank that has the most to move.
void add_expand_put(const ProbeEntry& entry, GpuProbe& probe) {
  if (entry.text("kind") != "expand") return;
  const bool second = entry.has("forward_rows");
  // Whether it is a matrix of the probe's ranks says who reads the puts.
  const std::size_t num_ranks = entry.ranks_of(second ? "forward_rows" : "rows");
  const auto rows = entry.matrix(second ? "forward_rows" : "rows", num_ranks);
  const auto copies = entry.matrix(second ? "forward_copies" : "copies", num_ranks);
  const double plain_row = kBf16Bytes * entry.positive("hidden");
  const PayloadType type = entry.is_fp8() ? PayloadType::kFp8 : PayloadType::kBf16;
  const auto row_bytes = static_cast<double>(
      row_payload(type, static_cast<std::uint32_t>(entry.positive("hidden"))).value);
  KernelPoint most{.time_s = kernel_s(entry, probe)};
  for (std::size_t receiver = 0; receiver < num_ranks; ++receiver) {
    double num_rows = 0.0, num_copies = 0.0;
    for (std::size_t sender = 0; sender < num_ranks; ++sender) {
      num_rows += rows[sender][receiver];
      num_copies += copies[sender][receiver];
    }
    const double bytes = num_rows * row_bytes + num_copies * plain_row;
    if (bytes <= most.bytes) continue;
    most.bytes = bytes;
    most.rows = num_copies;
    most.items = num_rows;
  }
  if (most.bytes > 0.0) probe.expand_put.push_back(most);
}

void add_mlp(const ProbeEntry& entry, GpuProbe& probe, EntryTimes& alone) {
  const std::string kind = entry.text("kind");
  // Ranks of one GPU work at its expense together: only the last of them tells how long that took.
  const double time_s = probe.ranks_per_gpu > 1 ? entry.time_s() : entry.rank_time_s();
  GroupedMlpPoint point{entry.positive("hidden"), entry.positive("intermediate"), {}, time_s};
  const bool routed = kind == "routed";
  const std::string key =
      fmt::format("{} {} {} {}", kind, point.hidden, entry.text("type"),
                  routed ? fmt::format("{}", fmt::join(entry.counts("expert_rows"), " "))
                         : fmt::format("{}", entry.positive("num_tokens")));
  if (entry.flag("among_streams")) {
    if (probe.ranks_per_gpu > 1) return;
    add_beside(time_s, alone, key,
               !routed          ? probe.shared_among_s
               : entry.is_fp8() ? probe.mlp_fp8_among_s
                                : probe.mlp_among_s);
    return;
  }
  alone[key] = point.time_s;
  if (kind == "routed") {
    point.expert_rows = entry.counts("expert_rows");
    (entry.is_fp8() ? probe.mlp_fp8 : probe.mlp).push_back(std::move(point));
  } else if (kind == "shared" && !entry.is_fp8()) {
    point.expert_rows = {static_cast<std::uint64_t>(entry.positive("num_tokens"))};
    probe.shared_mlp.push_back(std::move(point));
  }
}

// Fits `all`, then without every fourth point in turn. Neighbours in the list differ in one size,
// so every fold holds points between those of the fit.
template <class Costs, class Point, class Fit, class Time>
CostsFit<Costs> fit_in_folds(const std::vector<Point>& all, const Fit& fit, const Time& time_s) {
  CostsFit<Costs> out = fit(all);
  out.held_out.assign(all.size(), 0.0);
  for (std::size_t fold = 0; fold < kFolds; ++fold) {
    std::vector<Point> training;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % kFolds != fold) training.push_back(all[i]);
    }
    const Costs costs = fit(training).costs;
    for (std::size_t i = fold; i < all.size(); i += kFolds) {
      out.held_out[i] = time_s(costs, all[i]) / all[i].time_s - 1.0;
    }
  }
  return out;
}

template <class Point>
void check_enough(const std::vector<Point>& points, const char* what) {
  if (points.size() < kFewestPoints) {
    throw InputError(what, fmt::format("{} points", points.size()), "at least eight");
  }
}

// Solves for the logarithms of the parameters of `make`.
template <class Costs, class Point, class Make, class Time>
CostsFit<Costs> solve_for(const std::vector<Point>& points, std::vector<FitParameter> parameters,
                          const Make& make, const Time& time_s) {
  FitProblem problem;
  problem.parameters = std::move(parameters);
  for (const Point& point : points) problem.log_measured.push_back(std::log(point.time_s));
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const Costs costs = make(p);
    for (std::size_t i = 0; i < points.size(); ++i) out[i] = std::log(time_s(costs, points[i]));
  };
  const FitResult result = solve(problem);
  return {make(result.parameters), result.undetermined, {}};
}

// Median times of one kind of `curves` over NCCL, by bytes per pair.
std::map<double, double> curve_of(const nlohmann::json& document, const std::string& name,
                                  const std::string& kind) {
  std::map<double, double> curve;
  read_probe_part(document, name, "curves", [&](const ProbeEntry& entry) {
    if (entry.text("kind") != kind || entry.text("transport") != "nccl") return;
    curve[entry.positive("bytes_per_pair")] = entry.time_s();
  });
  return curve;
}

// Bytes per second and pair between the two largest sizes; nothing where fewer were measured, or
// where times do not grow.
std::optional<double> last_rate(const std::map<double, double>& curve) {
  if (curve.size() < 2) return std::nullopt;
  const auto& [bytes, time_s] = *curve.rbegin();
  const auto& [bytes_before, time_before_s] = *std::next(curve.rbegin());
  if (time_s <= time_before_s) return std::nullopt;
  return (bytes - bytes_before) / (time_s - time_before_s);
}

template <class Point>
std::vector<double> times_of(const std::vector<Point>& points) {
  std::vector<double> times;
  for (const Point& point : points) times.push_back(point.time_s);
  return times;
}

double grouped_mlp_s(const MlpCosts& costs, const GroupedMlpPoint& point) {
  return calibrated_mlp_time(costs, point.hidden, point.intermediate, point.expert_rows, 0.0).value;
}

// How many times as long an exchange takes beside a copy, from the copies that it did not outlast: the
// median over the sizes of both.
std::optional<double> slowed_by_copies(const nlohmann::json& document, const std::string& name) {
  struct Beside {
    double alone_s = 0.0, exchange_s = 0.0, copy_s = 0.0;
  };
  std::map<std::pair<double, double>, Beside> cases;  // by bytes of a pair and of the copy
  read_probe_part(document, name, "overlap", [&](const ProbeEntry& entry) {
    if (entry.text("work") != "copy") return;
    Beside& times = cases[{entry.positive("bytes_per_pair"), entry.positive("copy_bytes")}];
    const std::string kind = entry.text("kind");
    if (kind == "exchange_alone") times.alone_s = entry.time_s();
    if (kind == "exchange_beside_work") times.exchange_s = entry.time_s();
    if (kind == "work_beside_exchange") times.copy_s = entry.time_s();
  });
  std::vector<double> factors;
  for (const auto& [sizes, times] : cases) {
    if (times.alone_s <= 0.0 || times.exchange_s <= 0.0 || times.copy_s < times.exchange_s)
      continue;
    factors.push_back(times.exchange_s / times.alone_s);
  }
  if (factors.empty()) return std::nullopt;
  return median(std::move(factors));
}

}  // namespace

GpuProbe parse_gpu_probe(const std::string& text, const std::string& name) {
  constexpr const char* kExpected = "the curves.json of coterie-runtime probe";
  const nlohmann::json document = parse_json(text, name, kExpected);
  if (!document.is_object()) throw InputError(name, json_excerpt(document), kExpected);
  const auto version = document.value("schema_version", nlohmann::json(1));
  if (version != 2) {
    throw InputError(name, fmt::format("schema_version {}", json_excerpt(version)),
                     "2, which holds kernels and MLP too");
  }
  const ProbeEntry header(document, name);
  GpuProbe probe;
  if (document.contains("machine")) probe.machine = header.text("machine");
  probe.device = header.text("device");
  probe.num_ranks = static_cast<std::uint32_t>(header.positive("num_ranks"));
  read_probe_part(document, name, "notify", [&](const ProbeEntry& entry) {
    if (entry.text("kind") == "notify") probe.notify_s = entry.time_s();
  });
  if (probe.notify_s == 0.0) throw InputError(name, "no entry of kind \"notify\"", "one");
  if (document.contains("ranks_per_gpu")) {
    probe.ranks_per_gpu = static_cast<std::uint32_t>(header.positive("ranks_per_gpu"));
  }
  KernelCase of_case;
  of_case.with_indices = document.contains("direct");
  read_probe_part(document, name, "kernels",
                  [&](const ProbeEntry& entry) { add_kernel(entry, probe, of_case); });
  if (of_case.gaps.empty()) throw InputError(name, "no entry of kind \"events\"", "one");
  probe.gap_s = median(std::move(of_case.gaps));
  EntryTimes mlps;
  read_probe_part(document, name, "expert_mlp",
                  [&](const ProbeEntry& entry) { add_mlp(entry, probe, mlps); });
  if (document.contains("direct") && !document.at("direct").empty()) {
    read_probe_part(document, name, "direct",
                    [&](const ProbeEntry& entry) { add_expand_put(entry, probe); });
  }
  if (document.contains("overlap")) {
    read_probe_part(document, name, "overlap", [&](const ProbeEntry& entry) {
      const double time_s = entry.time_s();  // a time that is none is refused, used or not
      if (entry.text("kind") != "work_alone" || entry.text("work") != "copy") return;
      // Repeated copies of less are in the caches, where a layer's results are in part at best.
      if (entry.positive("copy_bytes") < kLeastCopyBytes) return;
      probe.own_copy.push_back({2.0 * entry.positive("copy_bytes"), 0.0, time_s});
    });
  }
  return probe;
}

GpuProbe read_gpu_probe(const std::filesystem::path& path) {
  return parse_gpu_probe(read_file(path), path.string());
}

PatternRates parse_pattern_rates(const std::string& text, const std::string& name) {
  const auto document = nlohmann::json::parse(text, nullptr, false);
  if (document.is_discarded() || !document.is_object()) {
    throw InputError(name, "text that is not JSON, or cut short",
                     "the curves.json of coterie-runtime probe");
  }
  const double peers = ProbeEntry(document, name).positive("num_ranks") - 1.0;
  const auto rate = [&](const char* kind) { return last_rate(curve_of(document, name, kind)); };
  PatternRates out;
  // The slower of the two directions.
  for (const char* kind : {"all_to_one", "one_to_all"}) {
    const auto found = rate(kind);
    if (found) out.rank_one_way = std::min(out.rank_one_way.value_or(1e30), peers * *found);
  }
  out.pair_one_way = rate("sendrecv");
  const std::map<double, double> shift = curve_of(document, name, "shift");
  if (const auto found = last_rate(shift)) out.pair_both_ways = 2.0 * *found;
  constexpr double kRamping = 1.5;
  for (const auto& [bytes, time_s] : shift) {
    if (peers < 2.0 || !out.pair_both_ways) continue;
    if (time_s > kRamping * 2.0 * bytes / *out.pair_both_ways) out.pair_times[bytes] = time_s;
  }
  if (document.contains("overlap")) out.beside_kernels = slowed_by_copies(document, name);
  return out;
}

namespace {

// Seconds of a pair beyond the launch of its size, never falling: linear between the points of
// `pair_times`.
double beyond_launch_s(const std::map<double, double>& pair_times,
                       const std::vector<StartCost>& start, double bytes) {
  const auto launch_s = [&](double size) {
    for (const StartCost& cost : start) {
      if (!cost.up_to || size <= static_cast<double>(cost.up_to->value)) return cost.launch.value;
    }
    return 0.0;
  };
  double before = 0.0;
  double before_s = 0.0;
  for (const auto& [size, time_s] : pair_times) {
    const double beyond_s = std::max(before_s, time_s - launch_s(size));
    if (bytes <= size) {
      return before_s + (beyond_s - before_s) * (bytes - before) / (size - before);
    }
    before = size;
    before_s = beyond_s;
  }
  return before_s;
}

// What a single message reaches by its size; without a limit after the last of `pair_times`.
std::vector<MessageSegment> segments_of(const std::map<double, double>& pair_times,
                                        const std::vector<StartCost>& start) {
  std::vector<MessageSegment> segments;
  if (!pair_times.empty() && !start.empty()) {
    const double last = pair_times.rbegin()->first;
    for (double size = pair_times.begin()->first; size <= 1.01 * last; size *= std::sqrt(2.0)) {
      const double bytes = std::min(std::round(size), last);
      const double time_s = beyond_launch_s(pair_times, start, bytes);
      if (time_s <= 0.0) continue;
      segments.push_back(
          {Bytes{static_cast<std::int64_t>(bytes)}, Seconds{}, Bandwidth{bytes / time_s}, {}});
    }
  }
  segments.push_back({});
  return segments;
}

}  // namespace

PatternRates read_pattern_rates(const std::filesystem::path& path) {
  return parse_pattern_rates(read_file(path), path.string());
}

void set_pattern_rates(const PatternRates& rates, Cluster& cluster) {
  for (TransportParameters& parameters : cluster.transports) {
    auto* nccl = std::get_if<NcclParameters>(&parameters);
    if (nccl == nullptr || !nccl->scale_up || !nccl->scale_up->rank_bandwidth) continue;
    NcclTier& tier = *nccl->scale_up;
    const double both_ways = 2.0 * tier.rank_bandwidth->value;
    const double one_way = rates.rank_one_way.value_or(0.0);
    if (one_way > tier.rank_bandwidth->value) {
      tier.rank_total_bandwidth = Bandwidth{both_ways};
      tier.rank_bandwidth = Bandwidth{one_way};
      cluster.scale_up->bandwidth = std::max(cluster.scale_up->bandwidth, Bandwidth{one_way});
    }
    if (rates.beside_kernels.value_or(1.0) > 1.0) tier.beside_kernels = rates.beside_kernels;
    if (!rates.pair_times.empty()) tier.segments = segments_of(rates.pair_times, tier.start);
    // Less by a tenth is more than these rates scatter.
    if (rates.pair_one_way && *rates.pair_one_way < 0.9 * tier.rank_bandwidth->value) {
      tier.pair_bandwidth = Bandwidth{*rates.pair_one_way};
    }
    if (rates.pair_both_ways && *rates.pair_both_ways < 0.9 * both_ways) {
      tier.pair_total_bandwidth = Bandwidth{*rates.pair_both_ways};
    }
  }
}

double kernel_time_s(const KernelCosts& costs, const KernelPoint& point) {
  return costs.launch.value + point.copies_per_row * costs.copy.value +
         point.rows * costs.row.value + point.bytes / costs.bandwidth.value +
         item_latency_s(costs, point.bytes, point.items) +
         (costs.quantise_bandwidth ? point.quantised / costs.quantise_bandwidth->value : 0.0);
}

CostsFit<KernelCosts> fit_row_kernel(const std::vector<KernelPoint>& points, double memory_rate) {
  check_enough(points, "fit of a kernel that moves rows");
  const auto has = [&](double KernelPoint::*quantity) {
    return std::any_of(points.begin(), points.end(),
                       [&](const KernelPoint& point) { return point.*quantity > 0.0; });
  };
  // Only what the points contain is asked for.
  const bool rows = has(&KernelPoint::rows);
  const bool copies = has(&KernelPoint::copies_per_row);
  const bool items = has(&KernelPoint::items);
  const bool quantises = has(&KernelPoint::quantised);
  std::vector<FitParameter> parameters{{"launch", std::log(8e-6), 2.0},
                                       {"bandwidth", std::log(memory_rate), 1.0}};
  if (rows) parameters.push_back({"row", std::log(1e-10), 2.0});
  if (copies) parameters.push_back({"copy", std::log(2e-6), 2.0});
  if (items) parameters.push_back({"item_bandwidth", std::log(15e9), 1.0});
  if (quantises) parameters.push_back({"quantise_bandwidth", std::log(3.0 * memory_rate), 1.0});
  const auto make = [=](std::span<const double> p) {
    KernelCosts costs;
    std::size_t next = 0;
    const auto take = [&] { return std::exp(p[next++]); };
    costs.launch = Seconds{take()};
    costs.bandwidth = Bandwidth{take()};
    if (rows) costs.row = Seconds{take()};
    if (copies) costs.copy = Seconds{take()};
    if (items) costs.item_bandwidth = Bandwidth{take()};
    if (quantises) costs.quantise_bandwidth = Bandwidth{take()};
    return costs;
  };
  return fit_in_folds<KernelCosts>(
      points,
      [&](const std::vector<KernelPoint>& some) {
        return solve_for<KernelCosts>(some, parameters, make, kernel_time_s);
      },
      kernel_time_s);
}

CostsFit<MlpCosts> fit_grouped_mlp(const std::vector<GroupedMlpPoint>& points,
                                   const MlpFitOptions& options) {
  check_enough(points, "fit of the expert MLP");
  std::vector<FitParameter> parameters{{"launch", std::log(20e-6), 2.0},
                                       {"weight_bandwidth", std::log(options.memory_rate), 1.0},
                                       {"sharpness", std::log(2.0), 1.0}};
  if (options.tile_rows.empty()) {
    parameters.push_back({"compute_rate", std::log(0.7 * options.peak), 1.0});
  } else {
    parameters.push_back({"tile_depth", std::log(200.0), 1.0});
    add_tile_rates(options.tile_rows, 0.9 * options.peak, parameters);
  }
  const auto make = [&options](std::span<const double> p) {
    MlpCosts costs;
    costs.launch = {std::exp(p[0])};
    costs.weight_bandwidth = {std::exp(p[1])};
    costs.sharpness = 1.0 + std::exp(p[2]);
    costs.reads_rows = true;
    if (options.tile_rows.empty()) {
      costs.compute_rate = {std::exp(p[3])};
    } else {
      costs.tile_depth = std::exp(p[3]);
    }
    if (!options.tile_rows.empty()) set_tile_rates(options.tile_rows, p.subspan(4), costs);
    // No kernel here touches rows of other ranks: whatever is written, it counts nothing.
    costs.batch_bandwidth = {options.memory_rate};
    return costs;
  };
  return fit_in_folds<MlpCosts>(
      points,
      [&](const std::vector<GroupedMlpPoint>& some) {
        return solve_for<MlpCosts>(some, parameters, make, grouped_mlp_s);
      },
      grouped_mlp_s);
}

GpuFit fit_gpu(const Cluster& cluster, const GpuProbe& probe) {
  if (cluster.ranks_per_gpu > 1 && cluster.ranks_per_gpu != probe.ranks_per_gpu) {
    throw InputError("topology " + cluster.name,
                     fmt::format("{} ranks on each GPU (ranks_per_gpu)", cluster.ranks_per_gpu),
                     fmt::format("{} as in the probe", probe.ranks_per_gpu));
  }
  GpuFit out;
  out.cluster = cluster;
  GpuModel& gpu = out.cluster.gpu;
  // All ranks of a GPU ran at once, each with its share of the memory and of the peaks.
  const double sharers = cluster.ranks_per_gpu;
  const double memory_rate = gpu.memory_bandwidth.value * gpu.memory_efficiency / sharers;
  RowKernels kernels;
  const auto kernel = [&](const char* name, const std::vector<KernelPoint>& points,
                          KernelCosts& costs) {
    CostsFit<KernelCosts> fit = fit_row_kernel(points, memory_rate);
    costs = fit.costs;
    costs.bandwidth = costs.bandwidth * sharers;
    out.parts.push_back({name, points.size(), std::move(fit.undetermined), std::move(fit.held_out),
                         times_of(points)});
  };
  kernel("kernels.pack", probe.pack, kernels.pack);
  kernel("kernels.forward", probe.forward, kernels.forward);
  kernel("kernels.expand", probe.expand, kernels.expand);
  kernel("kernels.merge", probe.merge, kernels.merge);
  kernel("kernels.gather", probe.gather, kernels.gather);
  kernel("kernels.sum", probe.sum, kernels.sum);
  if (probe.own_copy.size() >= kFewestPoints) {
    kernel("kernels.own_copy", probe.own_copy, kernels.own_copy.emplace());
    // Copies run behind an exchange, without events of their own.
    Seconds& launch = kernels.own_copy->launch;
    launch = Seconds{std::max(0.0, launch.value - probe.gap_s)};
  }
  if (probe.send_index.size() >= kFewestPoints) {
    kernel("kernels.send_index", probe.send_index, kernels.send_index.emplace());
  }
  if (probe.forward_index.size() >= kFewestPoints) {
    kernel("kernels.forward_index", probe.forward_index, kernels.forward_index.emplace());
  }
  if (probe.expand_put.size() >= kFewestPoints) {
    kernel("kernels.expand_put", probe.expand_put, kernels.expand_put.emplace());
  }
  const auto longer = [](const std::vector<double>& times_s) {
    return Seconds{times_s.empty() ? 0.0 : std::max(0.0, median(times_s))};
  };
  if (!probe.pack_again_s.empty()) kernels.pack.again = longer(probe.pack_again_s);
  if (kernels.send_index && !probe.send_index_again_s.empty()) {
    kernels.send_index->again = longer(probe.send_index_again_s);
  }
  kernels.gap = {probe.gap_s};
  kernels.among_streams = longer(probe.kernel_among_s);
  if (!probe.join_s.empty()) kernels.join = longer(probe.join_s);
  gpu.kernels = kernels;
  const auto mlp = [&](const char* name, const std::vector<GroupedMlpPoint>& points,
                       const MlpFitOptions& options, std::optional<MlpCosts>& costs) {
    if (points.empty()) return;
    CostsFit<MlpCosts> fit = fit_grouped_mlp(points, options);
    costs = with_faster_products(fit.costs, sharers);
    costs->weight_bandwidth = costs->weight_bandwidth * sharers;
    costs->batch_bandwidth = costs->batch_bandwidth * sharers;
    out.parts.push_back({name, points.size(), std::move(fit.undetermined), std::move(fit.held_out),
                         times_of(points)});
  };
  // The heights of the runtime's tiles.
  mlp("mlp", probe.mlp, {gpu.bf16_peak.value / sharers, memory_rate, {64, 128, 256}}, gpu.mlp);
  mlp("mlp_fp8", probe.mlp_fp8, {gpu.fp8_peak.value / sharers, 2.0 * memory_rate, {64, 128}},
      gpu.mlp_fp8);
  mlp("shared_mlp", probe.shared_mlp, {gpu.bf16_peak.value / sharers, memory_rate, {}},
      gpu.shared_mlp);
  if (gpu.mlp) gpu.mlp->among_streams = longer(probe.mlp_among_s);
  if (gpu.mlp_fp8) gpu.mlp_fp8->among_streams = longer(probe.mlp_fp8_among_s);
  if (gpu.shared_mlp) gpu.shared_mlp->among_streams = longer(probe.shared_among_s);
  out.cluster.overheads.notify = {probe.notify_s};
  return out;
}

void set_gpu_uncertainty(const GpuFit& fit, Cluster& cluster) {
  std::vector<LeftOutPoint> kernels, mlps;
  for (const GpuFit::Part& part : fit.parts) {
    auto& all = part.name.starts_with("kernels.") ? kernels : mlps;
    const auto of_part = left_out_points(part.held_out, part.measured_s);
    all.insert(all.end(), of_part.begin(), of_part.end());
  }
  cluster.uncertainty.kernels = uncertainty_scale(std::move(kernels));
  cluster.uncertainty.mlp = uncertainty_scale(std::move(mlps));
}

}  // namespace coterie
