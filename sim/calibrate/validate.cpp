#include "sim/calibrate/validate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <tuple>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/kernel_fit.hpp"
#include "sim/calibrate/measured_runs.hpp"
#include "sim/calibrate/measurements.hpp"
#include "sim/calibrate/mlp_fit.hpp"
#include "sim/calibrate/nvlink_runs.hpp"
#include "sim/calibrate/uncertainty_scale.hpp"
#include "sim/engines/engine.hpp"
#include "sim/experiment/uncertainty.hpp"
#include "sim/program/layer_program.hpp"
#include "topologies/network.hpp"

namespace coterie {
namespace {

std::string size_name(std::uint32_t num_ranks, double bytes) {
  return fmt::format("{} GPUs, {}", num_ranks, format_bytes(bytes));
}

double link_bandwidth(const std::string& preset) {
  return load_cluster(preset).scale_up->bandwidth.value;
}

// What is known of a machine without its measurements: the kind of its links, and their data sheet.
AllToAllOptions options_of(const std::string& machine) {
  AllToAllOptions options;
  if (machine.ends_with("_pcie")) {
    options.shared_link = true;
    options.shared_group = 2;
  }
  static const std::map<std::string, std::string> kPresets{{"a100_sxm", "a100_node"},
                                                           {"b200_sxm", "b200_node"},
                                                           {"gb200", "gb200_nvl72"},
                                                           {"h100_sxm", "h100_node"},
                                                           {"h200_sxm", "h200_node"}};
  if (const auto preset = kPresets.find(machine); preset != kPresets.end()) {
    options.nvlink = true;
    options.link_bandwidth = link_bandwidth(preset->second);
  }
  return options;
}

std::vector<std::string> machines(const std::vector<AllToAllPoint>& points) {
  std::vector<std::string> names;
  for (const AllToAllPoint& point : points) {
    if (std::find(names.begin(), names.end(), point.machine) == names.end()) {
      names.push_back(point.machine);
    }
  }
  return names;
}

// Fits on the points that `left_out` does not hold and predicts those that it does.
void add_alltoall(const std::vector<AllToAllPoint>& points, const std::string& group,
                  const AllToAllOptions& options,
                  const std::function<bool(const AllToAllPoint&)>& left_out,
                  std::vector<ValidationPoint>& out) {
  std::vector<AllToAllPoint> training;
  for (const AllToAllPoint& point : points) {
    if (!left_out(point)) training.push_back(point);
  }
  if (training.size() < 3) return;
  const AllToAllFit fit = fit_alltoall(training, options);
  // What a user's topology would carry: from points that were fitted here, each left out in turn.
  std::vector<double> measured_s;
  for (const AllToAllPoint& point : training) measured_s.push_back(point.time_s);
  const std::vector<UncertaintyStep> scale =
      uncertainty_scale(left_out_points(fit.held_out, measured_s));
  for (const AllToAllPoint& point : points) {
    if (!left_out(point)) continue;
    const double time_s = fit.model.time_s(point.num_ranks, point.bytes_per_rank);
    out.push_back({group, size_name(point.num_ranks, point.bytes_per_rank), point.time_s, time_s,
                   point.bytes_per_rank, relative_at(scale, time_s, 0.0)});
  }
}

// The interval of every point, by the errors of its group's points of other keys: each of them was
// predicted by a fit that had not seen its key, so a point has no part in its own interval. `keys`:
// what was left out together, [num_points].
void add_intervals(const std::vector<std::string>& keys, ValidationSection& section) {
  std::map<std::pair<std::string, std::string>, std::vector<UncertaintyStep>> scales;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    ValidationPoint& point = section.points[i];
    const auto [found, is_new] = scales.try_emplace({point.group, keys[i]});
    if (is_new) {
      std::vector<LeftOutPoint> others;
      for (std::size_t j = 0; j < keys.size(); ++j) {
        const ValidationPoint& other = section.points[j];
        if (other.group == point.group && keys[j] != keys[i]) {
          others.push_back({other.predicted_s, other.error()});
        }
      }
      found->second = uncertainty_scale(std::move(others));
    }
    if (!found->second.empty()) {
      point.relative = relative_at(found->second, point.predicted_s, 0.0);
    }
  }
}

// The points of one machine and GPU count by size.
using Curve = std::map<double, double>;
std::map<std::pair<std::string, std::uint32_t>, Curve> curves(
    const std::vector<AllToAllPoint>& all) {
  std::map<std::pair<std::string, std::uint32_t>, Curve> out;
  for (const std::string& machine : machines(all)) {
    for (const AllToAllPoint& point : select_machine(all, machine, "table")) {
      out[{machine, point.num_ranks}][point.bytes_per_rank] = point.time_s;
    }
  }
  return out;
}

// What needs no model: straight lines in log-log between the neighbouring sizes, level before the
// first and at constant bandwidth after the last.
std::string interpolation_finding(const std::vector<AllToAllPoint>& all,
                                  const std::vector<ValidationPoint>& fitted) {
  std::vector<ValidationPoint> points;
  for (const auto& [key, curve] : curves(all)) {
    const std::vector<std::pair<double, double>> at(curve.begin(), curve.end());
    for (std::size_t i = 0; i < at.size(); ++i) {
      double time_s = 0.0;
      if (i == 0) {
        time_s = at[1].second;
      } else if (i + 1 == at.size()) {
        time_s = at[i - 1].second * at[i].first / at[i - 1].first;
      } else {
        const double share =
            std::log(at[i].first / at[i - 1].first) / std::log(at[i + 1].first / at[i - 1].first);
        time_s = at[i - 1].second * std::pow(at[i + 1].second / at[i - 1].second, share);
      }
      points.push_back({key.first, size_name(key.second, at[i].first), at[i].second, time_s});
    }
  }
  const ErrorSummary summary = summarise(points);
  // What they make of the points that the fit misses by most.
  std::vector<ValidationPoint> worst = fitted;
  std::erase_if(worst, [](const auto& point) { return point.size_bytes < 65536.0; });
  std::stable_sort(worst.begin(), worst.end(), [](const auto& a, const auto& b) {
    return std::abs(a.error()) > std::abs(b.error());
  });
  worst.resize(std::min<std::size_t>(worst.size(), 3));
  std::vector<std::string> of_worst;
  for (const ValidationPoint& missed : worst) {
    for (const ValidationPoint& point : points) {
      if (point.group != missed.group || point.name != missed.name) continue;
      of_worst.push_back(fmt::format("{:+.0f} %", 100.0 * point.error()));
    }
  }
  const auto num_far = std::count_if(fitted.begin(), fitted.end(), [](const auto& point) {
    return point.size_bytes >= 65536.0 && std::abs(point.error()) > 0.15;
  });
  return fmt::format(
      "{} points are off by more than 15 %. For comparison, straight lines in log-log between the "
      "two neighbouring sizes have a median error of {:.1f} % and a worst of {:.0f} % over all "
      "sizes, and {} on the three that are furthest off from 64 KiB on. Chosen in view of these "
      "tables: the form of the model (channels, first chunks, costs by the logarithm of the ranks, "
      "what PCIe ranks may share) and the priors of what machines have in common (a channel's "
      "rate, "
      "LL's rate, the share of a launch that twice the ranks cost). How messages are dealt to "
      "channels and protocols was read in NCCL's source, for the version of each table. Every "
      "parameter of a machine is fitted on its training part alone.",
      num_far, 100.0 * summary.median, 100.0 * summary.worst, fmt::join(of_worst, ", "));
}

// How far single readings lie from the median of their repeats, which is what is predicted.
std::string repeats_finding(const std::vector<AllToAllPoint>& all) {
  std::map<std::tuple<std::string, std::uint32_t, double>, std::vector<double>> cases;
  for (const AllToAllPoint& point : all) {
    cases[{point.machine, point.num_ranks, point.bytes_per_rank}].push_back(point.time_s);
  }
  std::vector<double> few, eight;
  for (const auto& [key, readings] : cases) {
    if (std::get<2>(key) >= 65536.0) continue;
    const double middle = median(readings);
    for (const double time_s : readings) {
      (std::get<1>(key) >= 8 ? eight : few).push_back(std::abs(time_s / middle - 1.0));
    }
  }
  if (few.empty() || eight.empty()) return "";
  const auto tenth = [](std::vector<double> errors) {
    std::sort(errors.begin(), errors.end());
    return 100.0 * errors[(errors.size() - 1) * 9 / 10];
  };
  return fmt::format(
      "Single readings differ from the median of their repeats, which is predicted, by {:.1f} % in "
      "the median with 8 GPUs and by more than {:.0f} % in one of ten; with 2 and 4 GPUs by {:.1f} "
      "and {:.0f} %.",
      100.0 * median(eight), tenth(eight), 100.0 * median(few), tenth(few));
}

// H100 and H200 have the same links, and the tables the same NCCL for both.
std::string host_finding(const std::vector<AllToAllPoint>& all) {
  const auto times = curves(all);
  const auto ratios = [&](std::uint32_t num_ranks) {
    std::vector<double> out;
    const auto slow = times.find({"h200_sxm", num_ranks});
    const auto fast = times.find({"h100_sxm", num_ranks});
    if (slow == times.end() || fast == times.end()) return out;
    for (const auto& [size, time_s] : slow->second) {
      const auto other = fast->second.find(size);
      if (size < 65536.0 && other != fast->second.end()) out.push_back(time_s / other->second);
    }
    return out;
  };
  std::vector<std::string> parts;
  for (const std::uint32_t num_ranks : {2U, 4U, 8U}) {
    const std::vector<double> of_count = ratios(num_ranks);
    if (of_count.empty()) return "";
    parts.push_back(fmt::format("{:.2f} ({} GPUs)", median(of_count), num_ranks));
  }
  double least_s = 1e9;
  double most_s = 0.0;
  for (const AllToAllPoint& point : all) {
    if (point.machine != "h100_sxm" || point.num_ranks != 8 || point.bytes_per_rank != 32768.0) {
      continue;
    }
    least_s = std::min(least_s, point.time_s);
    most_s = std::max(most_s, point.time_s);
  }
  return fmt::format(
      "Out of reach: small messages of h200_sxm with 8 GPUs, and with them those of the counts "
      "that "
      "are predicted from them. Below 64 KiB they take, as medians, {} times as long as those of "
      "h100_sxm, which has the same links and the same NCCL: from 2 and 4 GPUs it does not follow "
      "that this machine's 8 start so late. Nor 32 KiB of h100_sxm with 8 GPUs, whose readings lie "
      "between {:.1f} and {:.1f} us.",
      fmt::join(parts, ", "), 1e6 * least_s, 1e6 * most_s);
}

// For times t1 > t2 at sizes s1 < s2 a curve that never falls is off by at least sqrt(t1 / t2) - 1
// at one of the two.
std::string monotone_finding(const std::vector<AllToAllPoint>& all) {
  std::vector<std::string> parts;
  for (const auto& [key, curve] : curves(all)) {
    double floor = 0.0;
    double slowest = 0.0;
    for (const auto& [size, time_s] : curve) {
      slowest = std::max(slowest, time_s);
      floor = std::max(floor, std::sqrt(slowest / time_s) - 1.0);
    }
    if (floor < 0.03) continue;
    parts.push_back(fmt::format("{} with {} GPUs {:.0f} %", key.first, key.second, 100.0 * floor));
  }
  return fmt::format(
      "Measured times fall with size in places (two sizes that differ four-fold alternate between "
      "two levels), and no curve that never falls can come closer on its worst point, even when "
      "fitted to all of them, than: {}.",
      fmt::join(parts, ", "));
}

ValidationSection alltoall_sizes(const std::vector<AllToAllPoint>& all) {
  ValidationSection section{"All-to-all, every fourth size left out",
                            "Per machine: fitted on all GPU counts without every fourth size, "
                            "predicted on those sizes, for "
                            "each of the four. What PCIe ranks share is chosen inside the fitted "
                            "part. Times are medians of "
                            "the table's repeats.",
                            {},
                            0.05,
                            0.15,
                            {}};
  for (const std::string& machine : machines(all)) {
    const std::vector<AllToAllPoint> points = select_machine(all, machine, "table");
    std::set<double> sizes;
    for (const AllToAllPoint& point : points) sizes.insert(point.bytes_per_rank);
    for (const std::ptrdiff_t fold : {0, 1, 2, 3}) {
      add_alltoall(
          points, machine, options_of(machine),
          [&](const AllToAllPoint& point) {
            return std::distance(sizes.begin(), sizes.find(point.bytes_per_rank)) % 4 == fold;
          },
          section.points);
    }
  }
  return section;
}

// The points of at least, or less than, 64 KiB per rank.
ValidationSection part_by_size(const ValidationSection& section, const std::string& name,
                               const std::string& finding, double target_median,
                               double target_worst, bool large) {
  ValidationSection part = section;
  part.title += ", " + name;
  part.finding = finding;
  part.target_median = target_median;
  part.target_worst = target_worst;
  std::erase_if(part.points, [&](const ValidationPoint& point) {
    return (point.size_bytes >= 65536.0) != large;
  });
  return part;
}

ValidationSection alltoall_counts(const std::vector<AllToAllPoint>& all) {
  ValidationSection section{"All-to-all, a whole GPU count left out",
                            "Per machine: fitted on the other GPU counts, predicted on the one "
                            "left out. PCIe machines are left "
                            "out of it: two counts say little about their shared bottlenecks.",
                            {},
                            0.05,
                            0.15,
                            {}};
  for (const std::string& machine : machines(all)) {
    if (options_of(machine).shared_link) continue;
    const std::vector<AllToAllPoint> points = select_machine(all, machine, "table");
    std::set<std::uint32_t> counts;
    for (const AllToAllPoint& point : points) counts.insert(point.num_ranks);
    for (const std::uint32_t count : counts) {
      add_alltoall(
          points, machine, options_of(machine),
          [&](const AllToAllPoint& point) { return point.num_ranks == count; }, section.points);
    }
  }
  section.finding = host_finding(all);
  return section;
}

// Our probes of one kind of GPU, one count of ranks each: fitted on one, predicted on the other. Nothing
// where they are of one count.
ValidationSection probed_counts(const std::vector<std::filesystem::path>& folders) {
  ValidationSection section{
      "All-to-all of our probes, a whole GPU count left out",
      "Fitted on the all-to-alls of the probe of one GPU count, with the bandwidth of the data "
      "sheet, predicted on those of the other count. Nothing of the model was chosen by its errors "
      "here.",
      {},
      std::nullopt,
      std::nullopt,
      {}};
  static const std::map<std::string, std::string> kPresets{{"NVIDIA H100 80GB HBM3", "h100_node"},
                                                           {"NVIDIA H200", "h200_node"}};
  std::map<std::string, std::vector<AllToAllPoint>> by_device;
  for (const std::filesystem::path& folder : folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with("curves_ep") || !name.ends_with(".json")) continue;
      for (const AllToAllPoint& point : read_alltoall(entry.path())) {
        by_device[point.device].push_back(point);
      }
    }
  }
  for (auto& [device, points] : by_device) {
    const auto preset = kPresets.find(device);
    std::set<std::uint32_t> counts;
    for (const AllToAllPoint& point : points) counts.insert(point.num_ranks);
    if (preset == kPresets.end() || counts.size() < 2) continue;
    std::stable_sort(points.begin(), points.end(), [](const auto& a, const auto& b) {
      return std::pair(a.num_ranks, a.bytes_per_rank) < std::pair(b.num_ranks, b.bytes_per_rank);
    });
    AllToAllOptions options;
    options.nvlink = true;
    options.link_bandwidth = link_bandwidth(preset->second);
    for (const std::uint32_t count : counts) {
      add_alltoall(
          points, device, options,
          [&](const AllToAllPoint& point) { return point.num_ranks == count; }, section.points);
    }
  }
  std::vector<ValidationPoint> large = section.points;
  std::erase_if(large, [](const auto& point) { return point.size_bytes < 65536.0; });
  if (large.empty()) return section;
  const ErrorSummary summary = summarise(large);
  section.finding = fmt::format(
      "From 64 KiB on the median is {:.1f} % and the worst {:.1f} %. One count does not tell what "
      "twice the ranks cost: for small messages the prior decides, a tenth of a launch.",
      100.0 * summary.median, 100.0 * summary.worst);
  return section;
}

ValidationSection mlp_section(const std::vector<MlpPoint>& all) {
  ValidationSection section{
      "Expert MLP (H200, BF16), every other batch size left out",
      "Fitted on the even-numbered token counts of all shapes and loads, predicted on the odd "
      "ones, and the reverse.",
      {},
      0.10,
      std::nullopt,
      {}};
  std::set<double> sizes;
  for (const MlpPoint& point : all) sizes.insert(point.num_tokens);
  for (const std::ptrdiff_t parity : {0, 1}) {
    const auto left_out = [&](const MlpPoint& point) {
      return std::distance(sizes.begin(), sizes.find(point.num_tokens)) % 2 == parity;
    };
    std::vector<MlpPoint> training;
    for (const MlpPoint& point : all) {
      if (!left_out(point)) training.push_back(point);
    }
    const MlpFit fit = fit_mlp(training);
    for (const MlpPoint& point : all) {
      if (!left_out(point)) continue;
      section.points.push_back({point.load,
                                fmt::format("{} tokens, hidden {}, EP {}", point.num_tokens,
                                            point.hidden, point.ep_size),
                                point.time_s, mlp_time_s(fit, point)});
    }
  }
  std::vector<ValidationPoint> one, more;
  for (const ValidationPoint& point : section.points) {
    (point.name.starts_with("1 tokens") ? one : more).push_back(point);
  }
  section.finding = fmt::format(
      "One token has a median error of {:.1f} % and a worst of {:.0f} %, all others have {:.1f} "
      "and "
      "{:.0f} %. That the loop reads the same weights again and again, of which the second-level "
      "cache could keep some, was tried as a cause (random replacement in 50 MB) and explains no "
      "more.",
      100.0 * summarise(one).median, 100.0 * summarise(one).worst, 100.0 * summarise(more).median,
      100.0 * summarise(more).worst);
  return section;
}

// The errors of the points whose number `keep` accepts, in words.
template <class Keep>
std::string errors_where(const std::vector<ValidationPoint>& points, const Keep& keep) {
  std::vector<ValidationPoint> some;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (keep(i)) some.push_back(points[i]);
  }
  const ErrorSummary summary = summarise(some);
  return fmt::format("{} points, median error {:.1f} %, worst {:.0f} %", summary.num_points,
                     100.0 * summary.median, 100.0 * summary.worst);
}

// Points whose loads are equal though their names differ: how far their times are apart.
std::vector<double> equal_load_differences(const std::vector<MlpPoint>& points) {
  using Key =
      std::tuple<std::string, std::string, std::string, double, double, std::uint32_t,
                 std::uint32_t, std::uint32_t, double, std::vector<std::vector<std::uint64_t>>>;
  std::map<Key, double> times;
  std::vector<double> differences;
  for (const MlpPoint& point : points) {
    if (point.load == "balanced" || point.num_tokens > 4.0) continue;
    const auto [found, is_new] = times.try_emplace(
        Key{point.machine, point.type, point.kernel, point.hidden, point.intermediate, point.topk,
            point.num_experts, point.ep_size, point.num_tokens, expert_loads(point)},
        point.time_s);
    if (!is_new) differences.push_back(std::abs(point.time_s / found->second - 1.0));
  }
  return differences;
}

// Steps from one batch of a balanced load to the next larger one, and by how much the time falls in those
// where it does by more than 3 %: kernels that were chosen for single sizes.
struct Falls {
  std::size_t num_steps = 0;
  std::vector<double> falls;
};
Falls falling_times(const std::vector<MlpPoint>& points) {
  using Key = std::tuple<std::string, std::string, std::string, double, double, std::uint32_t,
                         std::uint32_t, std::uint32_t>;
  std::map<Key, std::map<double, double>> curves;  // seconds by tokens
  for (const MlpPoint& point : points) {
    if (point.load != "balanced") continue;
    curves[Key{point.machine, point.type, point.kernel, point.hidden, point.intermediate,
               point.topk, point.num_experts, point.ep_size}][point.num_tokens] = point.time_s;
  }
  Falls found;
  for (const auto& [key, curve] : curves) {
    for (auto at = curve.begin(); std::next(at) != curve.end(); ++at) {
      ++found.num_steps;
      const double fall = 1.0 - std::next(at)->second / at->second;
      if (fall > 0.03) found.falls.push_back(fall);
    }
  }
  return found;
}

// What of the errors of left-out shapes comes from where. `scatters` are those of drawn loads.
std::string mlp_shapes_finding(const std::vector<ValidationPoint>& points,
                               const std::vector<double>& tokens,
                               const std::vector<double>& scatters,
                               const std::vector<MlpPoint>& all) {
  const auto within = [&](double least, double most) {
    return errors_where(points,
                        [&](std::size_t i) { return tokens[i] >= least && tokens[i] <= most; });
  };
  std::string text = fmt::format(
      "Batches of up to 4 tokens: {}. More tokens: {}. {} of {} points are off by more than 30 "
      "%. Loads are dealt as the tables' tool deals them, the fullest rank first, so that the "
      "experts that few tokens hit are known; DeepSeek-V3's router limits tokens to four groups "
      "of experts. Triton's kernels choose their tile by the tokens of the whole group, by "
      "vLLM's own rules for BF16 and for blocks of FP8; where a table names no kernel, what the "
      "H200's names on Hopper GPUs. No product ends before a block has multiplied its values one "
      "after the other; the index has tiles for every expert of the group that has tokens, "
      "grouped products go through all experts of the rank, and a CUDA graph is started once per "
      "draw of a balanced load and once for five of others. These forms were found with all "
      "points of the tables in view, their parameters are fitted on the other shapes alone.",
      within(0.0, 4.0), within(4.5, 1e12),
      std::count_if(points.begin(), points.end(),
                    [](const ValidationPoint& point) { return std::abs(point.error()) > 0.3; }),
      points.size());
  if (!scatters.empty()) {
    text += fmt::format(
        " What no formula of the table's columns can know: a drawn load is the mean of five "
        "draws that are not recorded, and the mean over five others differs by {:.1f} % in the "
        "median (one standard deviation) and {:.0f} % at most.",
        100.0 * median(scatters), 100.0 * *std::max_element(scatters.begin(), scatters.end()));
  }
  const std::vector<double> differences = equal_load_differences(all);
  if (!differences.empty()) {
    text += fmt::format(
        " {} pairs of points have equal loads under different names: their times differ by "
        "{:.1f} % in the median and {:.0f} % at most.",
        differences.size(), 100.0 * median(differences),
        100.0 * *std::max_element(differences.begin(), differences.end()));
  }
  const Falls falls = falling_times(all);
  if (!falls.falls.empty()) {
    text += fmt::format(
        " In {} of {} steps from one batch of a balanced load to the next larger one the "
        "measured time falls by more than 3 %, by up to {:.0f} %: libraries choose kernels for "
        "single sizes, and no formula that only grows with the tokens meets both sides of such a "
        "step.",
        falls.falls.size(), falls.num_steps,
        100.0 * *std::max_element(falls.falls.begin(), falls.falls.end()));
  }
  return text;
}

// The fit on the points of this kernel that are of another shape.
MlpFit fit_without(const std::vector<MlpPoint>& points, MlpKernel kernel,
                   const std::function<bool(const MlpPoint&)>& is_left_out) {
  std::vector<MlpPoint> training;
  for (const MlpPoint& point : points) {
    if (kernel_of(point) == kernel && !is_left_out(point)) training.push_back(point);
  }
  // A few parameters need no thousands of points.
  constexpr std::size_t kEnough = 160;
  const std::size_t stride = (training.size() + kEnough - 1) / kEnough;
  std::vector<MlpPoint> some;
  for (std::size_t i = 0; i < training.size(); i += stride) some.push_back(training[i]);
  return fit_mlp(some);
}

// Per machine, type and kernel: fitted on the other shapes, predicted on the one left out.
ValidationSection mlp_shapes(const std::vector<MlpPoint>& all, const std::string& title) {
  ValidationSection section{title,
                            "Per machine, type of the products and kernel: fitted on the other "
                            "model shapes (evenly spaced points where there are more than 160), "
                            "predicted on every fourth point of the one left out, for each.",
                            {},
                            0.08,
                            0.30,
                            {}};
  std::map<std::string, std::vector<MlpPoint>> groups;
  for (const MlpPoint& point : all) {
    const std::string machine = point.machine.empty() ? "h200_sxm" : point.machine;
    const std::string kernel = point.kernel.empty() ? "" : ", " + point.kernel;
    groups[fmt::format("{}, {}{}", machine, point.type, kernel)].push_back(point);
  }
  const auto shape = [](const MlpPoint& point) {
    return fmt::format("hidden {}, intermediate {}, top-{} of {}", point.hidden, point.intermediate,
                       point.topk, point.num_experts);
  };
  std::vector<std::string> keys;
  std::vector<double> tokens, scatters;
  for (const auto& [group, points] : groups) {
    std::set<std::string> shapes;
    for (const MlpPoint& point : points) shapes.insert(shape(point));
    if (shapes.size() < 2) continue;
    for (const std::string& left_out : shapes) {
      const auto is_left_out = [&](const MlpPoint& point) { return shape(point) == left_out; };
      std::map<MlpKernel, MlpFit> fits;  // a library may run one table's sizes in several kernels
      std::size_t num_met = 0;
      for (const MlpPoint& point : points) {
        if (!is_left_out(point) || num_met++ % 4 != 0) continue;
        const MlpKernel kernel = kernel_of(point);
        auto fit = fits.find(kernel);
        if (fit == fits.end()) {
          fit = fits.emplace(kernel, fit_without(points, kernel, is_left_out)).first;
        }
        section.points.push_back({group,
                                  fmt::format("{}, EP {}, {} tokens, {}", left_out, point.ep_size,
                                              point.num_tokens, point.load),
                                  point.time_s, mlp_time_s(fit->second, point)});
        keys.push_back(left_out);
        tokens.push_back(point.num_tokens);
        if (point.load != "balanced") scatters.push_back(mlp_draw_scatter(fit->second, point));
      }
    }
  }
  add_intervals(keys, section);
  section.finding = mlp_shapes_finding(section.points, tokens, scatters, all);
  return section;
}

// Dispatch libraries -----------------------------------------------------------------------------

std::string direction_name(Direction direction) {
  return direction == Direction::kDispatch ? "dispatch" : "combine";
}

// Seconds of an exchange by a kernel fitted to others of its direction.
class FittedKernel {
 public:
  // `known`: what is known of either direction; kernels are fitted to those of `direction`.
  FittedKernel(const std::vector<RowExchange>& known, Direction direction, double port_limit)
      : port_limit_(port_limit) {
    std::vector<RowExchange> training;
    for (const RowExchange& exchange : known) {
      if (exchange.direction == direction) training.push_back(exchange);
    }
    if (training.at(0).transport == "deepep_normal") {
      copy_ = fit_copy_kernel(training, port_limit).kernel;
    } else {
      put_ = fit_put_kernel(training, port_limit, assumed_token(known, port_limit)).kernel;
    }
  }
  [[nodiscard]] double time_s(const RowExchange& exchange) const {
    return copy_ ? copy_kernel_s(*copy_, exchange, port_limit_)
                 : put_kernel_s(*put_, exchange, port_limit_);
  }
  [[nodiscard]] const CopyKernel& copy() const { return copy_.value(); }

 private:
  double port_limit_;
  std::optional<CopyKernel> copy_;
  std::optional<PutKernel> put_;
};

struct KernelProtocol {
  std::string title, protocol;
  std::optional<double> target_median, target_worst;
  std::function<std::string(const RowExchange&)> key;  // what is left out together
  std::function<bool(const RowExchange&)> counts;      // whose errors the section shows
};

// Fits on all exchanges but those of one key, for each key in turn.
ValidationSection left_out_section(const std::vector<RowExchange>& all, double port_limit,
                                   const KernelProtocol& protocol) {
  ValidationSection section{protocol.title,         protocol.protocol,     {},
                            protocol.target_median, protocol.target_worst, {}};
  std::set<std::string> machines_there;
  std::set<std::string> keys;
  std::vector<std::string> key_of_point;
  for (const RowExchange& exchange : all) {
    machines_there.insert(exchange.machine);
    keys.insert(protocol.key(exchange));
  }
  for (const std::string& machine : machines_there) {
    for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
      for (const std::string& key : keys) {
        std::vector<RowExchange> known, test;
        std::size_t num_training = 0;
        for (const RowExchange& exchange : all) {
          if (exchange.machine != machine) continue;
          const bool of_direction = exchange.direction == direction;
          if (protocol.key(exchange) != key) {
            known.push_back(exchange);
            num_training += of_direction ? 1 : 0;
          } else if (of_direction && protocol.counts(exchange)) {
            test.push_back(exchange);
          }
        }
        if (num_training < 8 || test.empty()) continue;
        const FittedKernel kernel(known, direction, port_limit);
        for (const RowExchange& exchange : test) {
          section.points.push_back({machine.empty() ? direction_name(direction)
                                                    : machine + ", " + direction_name(direction),
                                    exchange.name, exchange.time_s, kernel.time_s(exchange)});
          key_of_point.push_back(key);
        }
      }
    }
  }
  add_intervals(key_of_point, section);
  return section;
}

// Dispatches to one other rank, whose cost per token the port hides at all other sizes.
std::string hidden_cost_finding(const std::vector<RowExchange>& all, double port_limit) {
  const FittedKernel kernel(all, Direction::kDispatch, port_limit);
  std::vector<ValidationPoint> points;
  std::vector<RowExchange> without_two;
  for (const RowExchange& exchange : all) {
    if (exchange.num_ranks != 2) without_two.push_back(exchange);
    if (exchange.direction != Direction::kDispatch || exchange.num_ranks != 2) continue;
    points.push_back({"", exchange.name, exchange.time_s, kernel.time_s(exchange)});
  }
  const ErrorSummary summary = summarise(points);
  return fmt::format(
      "Dispatches of EP 2 show what a token costs its kernel, 11 ns. With more ranks the port "
      "takes longer than that (18 ns a token at EP 4, 42 at EP 8), so that no other EP size shows "
      "this cost: where EP 2 is left out it is only known to be no more than what a token takes "
      "over the port at EP 4, and it matters from what one row takes there. {:.1f} ns, the "
      "harmonic mean of the two, stand in, which are off least wherever it lies between. Fitted to "
      "all EP sizes, dispatches of EP 2 are off by {:.1f} % in the median and {:.1f} % at most. "
      "The model's form (that mean, rows to the own rank that wait for no link, pulls whose "
      "waiting other pulls hide) was chosen in view of these points.",
      1e9 * assumed_token(without_two, port_limit).value / all.at(0).sms, 100.0 * summary.median,
      100.0 * summary.worst);
}

// "hidden 7168, top-8 of 256".
std::string shape_of(const RowExchange& exchange) {
  const std::size_t first = exchange.name.find(',');
  return exchange.name.substr(0, exchange.name.find(',', first + 1));
}

bool from_64_tokens(const RowExchange& exchange) {
  return exchange.tokens_per_rank >= 64.0;
}

// Exchanges that took longer than the same one of more tokens, by more than a tenth: no model of what a
// kernel moves explains them. With and without them, the errors of `points`, which are some of `all`.
std::string falling_finding(const std::vector<RowExchange>& all,
                            const std::vector<ValidationPoint>& points) {
  using Series = std::tuple<std::string, Direction, std::string, double>;
  const auto series_of = [](const RowExchange& exchange) {
    return Series{exchange.machine, exchange.direction, shape_of(exchange), exchange.sms};
  };
  std::map<Series, std::vector<const RowExchange*>> series;
  for (const RowExchange& exchange : all) series[series_of(exchange)].push_back(&exchange);
  std::set<std::pair<std::string, std::string>> falling;  // by group and name
  double most = 1.0;
  // How many readings of its shape the table has before each, and how many that fall are the first two.
  std::map<std::tuple<std::string, Direction, std::string>, std::size_t> num_before;
  std::size_t num_first = 0;
  for (const RowExchange& exchange : all) {
    const std::size_t before =
        num_before[{exchange.machine, exchange.direction, shape_of(exchange)}]++;
    double least_s = exchange.time_s;
    for (const RowExchange* other : series.at(series_of(exchange))) {
      if (other->tokens_per_rank > exchange.tokens_per_rank) {
        least_s = std::min(least_s, other->time_s);
      }
    }
    const std::string group = exchange.machine + ", " + direction_name(exchange.direction);
    const bool shown = std::any_of(points.begin(), points.end(), [&](const auto& point) {
      return point.group == group && point.name == exchange.name;
    });
    if (!shown || exchange.time_s < 1.1 * least_s) continue;
    most = std::max(most, exchange.time_s / least_s);
    falling.emplace(group, exchange.name);
    num_first += before < 2 ? 1 : 0;
  }
  return fmt::format(
      "{} of these points took more than a tenth longer than the same exchange of more tokens, up "
      "to {:.2f} times as long: single readings of a table without repeats, {} of them among the "
      "first two of their model shape, when the benchmark has just begun with it (most shapes' "
      "first readings are not longer, so that no term for a cold start tells which are). A "
      "prediction that does not fall as the tokens grow is off by at least {:.1f} % at one of "
      "them. All others: {}.",
      falling.size(), most, num_first, 100.0 * (most - 1.0) / (most + 1.0),
      errors_where(points, [&](std::size_t i) {
        return !falling.contains({points[i].group, points[i].name});
      }));
}

void add_one_node(const std::filesystem::path& path, Validation& validation) {
  const std::vector<RowExchange> all = read_row_exchanges(path);
  const std::string protocol =
      "Uniform routing on one node of 8 GPUs. Per machine: fitted on the other model shapes, "
      "predicted on the one left out, for each; 4 to 24 multiprocessors together.";
  validation.sections.push_back(left_out_section(all, link_bandwidth("h200_node"),
                                                 {"DeepEP normal kernels, one node, from 64 tokens",
                                                  protocol, 0.05, 0.20, shape_of, from_64_tokens}));
  validation.sections.push_back(left_out_section(
      all, link_bandwidth("h200_node"),
      {"DeepEP normal kernels, one node, below 64 tokens", protocol, 0.15, 0.30, shape_of,
       [](const RowExchange& exchange) { return !from_64_tokens(exchange); }}));
  ValidationSection& few = validation.sections.back();
  few.finding = falling_finding(all, few.points);
}

// Ranks on fewer GPUs, all joined by NVLink.
Cluster shared_gpus(std::uint32_t num_ranks, std::uint32_t num_gpus) {
  const std::vector<Override> wires{{"scale_up.injection.rank_bandwidth", "none"},
                                    {"scale_up.latency", "0 s"}};
  if (num_ranks == num_gpus) {
    std::vector<Override> overrides = wires;
    overrides.push_back({"gpus_per_node", std::to_string(num_ranks)});
    return load_cluster("h200_node", overrides);
  }
  const Cluster whole = load_cluster("h200_node", wires);
  Cluster cluster = whole;
  cluster.num_nodes = num_gpus;
  cluster.gpus_per_node = cluster.ranks_per_gpu = num_ranks / num_gpus;
  // Inside a GPU its memory is the link.
  cluster.scale_up->bandwidth = whole.gpu.memory_bandwidth * (1.0 / cluster.ranks_per_gpu);
  cluster.nic = Nic{};
  cluster.nic->bandwidth = whole.scale_up->bandwidth;
  cluster.nic->latency = load_cluster("h200_node").scale_up->latency;
  cluster.nic->pxn = false;
  cluster.nic->injection = whole.scale_up->injection;
  cluster.fabric = Fabric{StarFabric{}, {}};
  return cluster;
}

// How errors grow with what the samples of a point scatter.
std::string spread_finding(const std::vector<ValidationPoint>& points,
                           const std::vector<double>& spreads) {
  const auto within = [&](double least, double most) {
    return errors_where(points,
                        [&](std::size_t i) { return spreads[i] >= least && spreads[i] < most; });
  };
  return fmt::format(
      "Errors follow the scatter of the samples (half of what lies between their tenth and "
      "ninetieth percentile, over the median). Up to 2 %: {}. 2 to 10 %: {}. Above: {}; most of "
      "these are of few tokens.",
      within(0.0, 0.02), within(0.02, 0.10), within(0.10, 1e9));
}

// How far one prediction must be from two measurements of the same: a combine carries BF16 whatever
// its dispatch did, so that a table of both payloads holds each combine twice. For times t1 > t2 their
// harmonic mean is off by (t1 - t2) / (t1 + t2) from both, and every other number by more from one.
std::string repeats_finding(const std::vector<RowExchange>& tested) {
  using RepeatKey =
      std::tuple<std::uint32_t, std::string, std::string, std::vector<std::vector<std::uint32_t>>>;
  std::map<RepeatKey, std::vector<const RowExchange*>> repeats;
  for (const RowExchange& exchange : tested) {
    if (exchange.direction != Direction::kCombine) continue;
    repeats[{exchange.num_gpus, exchange.pattern, exchange.name, exchange.rows}].push_back(
        &exchange);
  }
  std::vector<double> few, many;  // up to 512 tokens, more
  for (const auto& [key, points] : repeats) {
    if (points.size() < 2) continue;
    const auto [least, most] = std::minmax_element(
        points.begin(), points.end(),
        [](const RowExchange* a, const RowExchange* b) { return a->time_s < b->time_s; });
    (points[0]->tokens_per_rank <= 512.0 ? few : many)
        .push_back(((*most)->time_s - (*least)->time_s) / ((*most)->time_s + (*least)->time_s));
  }
  if (few.empty() || many.empty()) return "";
  const auto words = [](const std::vector<double>& floors) {
    return fmt::format("{:.1f} % in the median and {:.0f} % at worst", 100.0 * median(floors),
                       100.0 * *std::max_element(floors.begin(), floors.end()));
  };
  return fmt::format(
      " Every combine was measured twice, as it carries BF16 whatever the dispatch did: a "
      "prediction that is as near to both as it can be is off by {} up to 512 tokens, by {} above.",
      words(few), words(many));
}

// How far predictions must be from measurements that contradict each other: of two exchanges, one that
// asks no more than the other (asks_no_more) and took longer by a factor f, at least one is off by
// (f - 1) / (f + 1) or more, unless the one that asks no more is said to take longer.
std::string contradictions_finding(const std::vector<RowExchange>& tested) {
  constexpr double kTarget = 0.20;
  double worst = 0.0;
  const RowExchange* longer = nullptr;
  const RowExchange* shorter = nullptr;
  std::set<const RowExchange*> beyond;  // in a pair that cannot reach the target
  for (const RowExchange& exchange : tested) {
    for (const RowExchange& other : tested) {
      if (exchange.time_s <= other.time_s || !asks_no_more(exchange, other, 0.0)) continue;
      const double least = (exchange.time_s - other.time_s) / (exchange.time_s + other.time_s);
      if (least > kTarget) beyond.insert({&exchange, &other});
      if (least <= worst) continue;
      worst = least;
      longer = &exchange;
      shorter = &other;
    }
  }
  if (longer == nullptr) return "";
  return fmt::format(
      " No prediction that gives an exchange no more time than one that asks for more (of any "
      "pair's rows, of bytes or of tokens, on as many multiprocessors or fewer) can be within "
      "{:.1f} % of all: a {} of {} took {:.1f} us ({}), one of {} {:.1f} us ({}). {} points are "
      "in pairs of which one must be off by more than {:.0f} %.",
      100.0 * worst, direction_name(longer->direction), longer->name, 1e6 * longer->time_s,
      longer->pattern, shorter->name, 1e6 * shorter->time_s, shorter->pattern, beyond.size(),
      100.0 * kTarget);
}

// Fitted on the routing that says least of skew, tested on the rest through the flow engine.
ValidationSection skewed_section(const std::vector<RowExchange>& all, const std::string& title) {
  ValidationSection section{
      title,
      "Fitted on uniform routing and on the patterns in which every row crosses NVLink, predicted "
      "on recorded routing, on all rows to one rank and on rows that stay, through the transport "
      "and the flow engine. Groups of ranks and GPUs are fitted each on its own; ranks that share "
      "a GPU are a node, whose port NVLink they share. Points whose samples scatter count less in "
      "the fit, and an exchange that took longer than one that asks for more counts as that one: "
      "what disturbs an exchange only adds to its time.",
      {},
      0.08,
      0.20,
      {}};
  std::vector<double> spreads;  // of section.points
  std::vector<RowExchange> tested;
  std::vector<std::string> hosts;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<RowExchange>> groups;
  for (const RowExchange& exchange : all) {
    groups[{exchange.num_ranks, exchange.num_gpus}].push_back(exchange);
  }
  for (const auto& [key, exchanges] : groups) {
    Cluster cluster = shared_gpus(key.first, key.second);
    const auto trains = [](const RowExchange& exchange) {
      return exchange.pattern == "uniform" || exchange.pattern.starts_with("shift");
    };
    std::vector<RowExchange> training;
    std::copy_if(exchanges.begin(), exchanges.end(), std::back_inserter(training), trains);
    const double limit = (cluster.nic ? cluster.nic->bandwidth : cluster.scale_up->bandwidth).value;
    DeepepNormalParameters parameters;
    parameters.dispatch = FittedKernel(training, Direction::kDispatch, limit).copy();
    parameters.combine = FittedKernel(training, Direction::kCombine, limit).copy();
    // Less than that is within what the points scatter.
    const auto shows = [](const CopyKernel& kernel) {
      return kernel.least.value > 1.25 * kernel.fixed.value;
    };
    if (shows(parameters.dispatch) && shows(parameters.combine)) {
      hosts.push_back(fmt::format(
          "{:.0f} us of a dispatch and {:.0f} us of a combine of {} ranks, whose kernels start in "
          "{:.0f} and {:.0f} us",
          1e6 * parameters.dispatch.least.value, 1e6 * parameters.combine.least.value, key.first,
          1e6 * parameters.dispatch.fixed.value, 1e6 * parameters.combine.fixed.value));
    }
    for (const RowExchange& exchange : exchanges) {
      if (trains(exchange)) continue;
      spreads.push_back(exchange.spread);
      tested.push_back(exchange);
      parameters.sms = static_cast<std::uint32_t>(exchange.sms);
      cluster.transports = {parameters};
      const double time_s = predicted_exchange_s(cluster, exchange);
      section.points.push_back({fmt::format("{} ranks on {} GPUs, {}, {}", key.first, key.second,
                                            exchange.pattern, direction_name(exchange.direction)),
                                exchange.name, exchange.time_s, time_s});
    }
  }
  section.finding = spread_finding(section.points, spreads) + repeats_finding(tested) +
                    contradictions_finding(tested);
  if (!hosts.empty()) {
    section.finding += fmt::format(
        " Short exchanges last as long as the host takes to start the next one: the fit finds {}.",
        fmt::join(hosts, ", "));
  }
  section.finding +=
      " That disturbances only add, that ranks share a port, and that rows within a GPU do not "
      "wait for its links was put into the model in view of these points.";
  return section;
}

TrafficMatrix all_to_all(std::uint32_t num_ranks, std::int64_t bytes, bool skewed) {
  TrafficMatrix traffic;
  traffic.num_ranks = num_ranks;
  for (std::uint32_t step = 1; step < num_ranks; ++step) {
    for (std::uint32_t src = 0; src < num_ranks; ++src) {
      const std::uint32_t dst = (src + step) % num_ranks;
      // Skewed: rank 0 receives four times as much, odd ranks send half.
      const std::int64_t factor = skewed ? (dst == 0 ? 8 : 2) / (src % 2 == 1 ? 2 : 1) : 2;
      traffic.entries.push_back({src, dst, bytes / 2 * factor, 0.0});
    }
  }
  return traffic;
}

}  // namespace

double predicted_exchange_s(const Cluster& cluster, const RowExchange& exchange) {
  TrafficMatrix traffic;
  traffic.num_ranks = exchange.num_ranks;
  for (const Message& message : messages_of(exchange)) {
    traffic.entries.push_back(
        {message.src, message.dst, static_cast<std::int64_t>(std::llround(message.bytes)), 0.0});
  }
  TrafficSetup setup;
  setup.direction = exchange.direction;
  setup.row_bytes = exchange.row_bytes;
  setup.tokens_per_rank = static_cast<std::uint32_t>(exchange.tokens_per_rank);
  const LayerProgram program = build_traffic(traffic, setup, cluster);
  const Network network(cluster);
  return run_engine("flow", resolve(program.program, network), {}).makespan_s;
}

ErrorSummary summarise(const std::vector<ValidationPoint>& points) {
  ErrorSummary summary;
  std::vector<double> errors;
  for (const ValidationPoint& point : points) errors.push_back(std::abs(point.error()));
  if (errors.empty()) return summary;
  std::sort(errors.begin(), errors.end());
  const std::size_t n = errors.size();
  summary.num_points = n;
  summary.median = median(errors);
  summary.worst = errors.back();
  summary.within_10 =
      static_cast<double>(std::upper_bound(errors.begin(), errors.end(), 0.10) - errors.begin()) /
      static_cast<double>(n);
  std::vector<double> widths;
  std::size_t num_covered = 0;
  for (const ValidationPoint& point : points) {
    if (!point.relative) return summary;
    widths.push_back(*point.relative);
    num_covered += point.is_covered() ? 1 : 0;
  }
  summary.covered = static_cast<double>(num_covered) / static_cast<double>(n);
  summary.relative = median(std::move(widths));
  return summary;
}

Validation validate(const ValidationInputs& inputs) {
  Validation validation;
  const auto with = [&](const char* file, const auto& use) {
    if (is_input_file(inputs.tables / file)) {
      use(inputs.tables / file);
    } else {
      validation.skipped.push_back((inputs.tables / file).string());
    }
  };
  with("nccl_alltoall_repeats.csv", [&](const std::filesystem::path& path) {
    const std::vector<AllToAllPoint> points = read_alltoall(path);
    ValidationSection sizes = alltoall_sizes(points);
    validation.sections.push_back(
        part_by_size(sizes, "from 64 KiB",
                     interpolation_finding(points, sizes.points) + " " + monotone_finding(points),
                     0.05, 0.15, true));
    validation.sections.push_back(
        part_by_size(sizes, "below 64 KiB", repeats_finding(points), 0.10, 0.30, false));
    validation.sections.push_back(alltoall_counts(points));
  });
  with("expert_mlp_h200_bf16.csv", [&](const std::filesystem::path& path) {
    validation.sections.push_back(mlp_section(read_mlp(path)));
  });
  with("expert_mlp_h200.csv", [&](const std::filesystem::path& path) {
    validation.sections.push_back(
        mlp_shapes(read_mlp(path), "Expert MLP (H200), a whole shape left out"));
  });
  with("expert_mlp_other_machines.csv", [&](const std::filesystem::path& path) {
    validation.sections.push_back(
        mlp_shapes(read_mlp(path), "Expert MLP (H100, B200, GB200), a whole shape left out"));
  });
  with("deepep_normal_one_node.csv",
       [&](const std::filesystem::path& path) { add_one_node(path, validation); });
  with("deepep_normal_h100_two_nodes.csv", [&](const std::filesystem::path& path) {
    validation.sections.push_back(left_out_section(
        read_row_exchanges(path), 50e9,
        {"DeepEP normal kernels, two nodes",
         "Uniform routing over 16 GPUs, without the notify steps. Fitted on the other token counts "
         "and predicted on the one left out, for each.",
         0.12, 0.30,
         [](const RowExchange& exchange) { return fmt::format("{}", exchange.tokens_per_rank); },
         [](const RowExchange&) { return true; }}));
  });
  with("deepep_low_latency_h200_ep8.csv", [&](const std::filesystem::path& path) {
    validation.sections.push_back(left_out_section(
        read_row_exchanges(path), link_bandwidth("h200_node"),
        {"DeepEP low-latency kernels, one node",
         "Fitted on the other model shapes, predicted on the one left out, for each.", std::nullopt,
         std::nullopt, shape_of, [](const RowExchange&) { return true; }}));
  });
  with("nvlink_alltoall_gb200_nvl72.csv", [&](const std::filesystem::path& path) {
    const std::vector<RowExchange> exchanges = read_row_exchanges(path);
    validation.sections.push_back(left_out_section(
        exchanges, link_bandwidth("gb200_nvl72"),
        {"One-sided NVLink kernels (GB200 NVL72), a whole EP size left out",
         "Fitted on the other EP sizes, predicted on the one left out, for each.", 0.08, 0.25,
         [](const RowExchange& exchange) { return std::to_string(exchange.num_ranks); },
         [](const RowExchange&) { return true; }}));
    validation.sections.back().finding =
        hidden_cost_finding(exchanges, link_bandwidth("gb200_nvl72"));
  });
  for (const char* file : {"dispatch_skewed_2xh200.csv", "dispatch_skewed_4xh200.csv"}) {
    with(file, [&](const std::filesystem::path& path) {
      validation.sections.push_back(skewed_section(
          read_row_exchanges(path), fmt::format("DeepEP normal kernels on skewed routing, {}",
                                                std::string(file).substr(16, 6))));
    });
  }
  if (!is_folder(inputs.runs / "reports")) {
    validation.skipped.push_back((inputs.runs / "reports").string());
  } else if (!is_folder(inputs.traces)) {
    validation.skipped.push_back(inputs.traces.string());
  } else {
    MeasuredRuns runs = predict_measured_runs(inputs.runs, inputs.traces);
    runs.layer.finding = fmt::format(
        "Of {} pairs of runs whose starts do not overlap, {} are predicted in the measured order "
        "({:.1f} %; target 95 %).",
        runs.num_ordered_pairs, runs.num_right_pairs,
        100.0 * static_cast<double>(runs.num_right_pairs) /
            static_cast<double>(std::max<std::size_t>(runs.num_ordered_pairs, 1)));
    for (ValidationSection* section : {&runs.dispatch, &runs.combine, &runs.layer}) {
      validation.sections.push_back(std::move(*section));
    }
  }
  // Those of the folders that are there; the others are named.
  const auto with_reports = [&](const std::vector<std::filesystem::path>& folders) {
    std::vector<std::filesystem::path> there;
    for (const std::filesystem::path& folder : folders) {
      if (is_folder(folder / "reports")) {
        there.push_back(folder);
      } else {
        validation.skipped.push_back((folder / "reports").string());
      }
    }
    return there;
  };
  const auto nvlink_runs = with_reports(inputs.nvlink_runs);
  const auto direct_runs = with_reports(inputs.direct_runs);
  if (ValidationSection probed = probed_counts(nvlink_runs); !probed.points.empty()) {
    validation.sections.push_back(std::move(probed));
  }
  const bool traced = is_folder(inputs.traces);
  auto& skipped = validation.skipped;
  const std::string traces = inputs.traces.string();
  if (!traced && !(nvlink_runs.empty() && direct_runs.empty()) &&
      std::find(skipped.begin(), skipped.end(), traces) == skipped.end()) {
    skipped.push_back(traces);
  }
  if (!nvlink_runs.empty() && traced) {
    NvlinkRuns runs = predict_nvlink_runs(nvlink_runs, inputs.traces);
    for (ValidationSection* section :
         {&runs.layer, &runs.dispatch, &runs.combine, &runs.mlp, &runs.kernels}) {
      validation.sections.push_back(std::move(*section));
    }
  }
  if (!direct_runs.empty() && traced) {
    NvlinkRuns runs = predict_direct_runs(direct_runs, inputs.traces);
    for (ValidationSection* section : {&runs.layer, &runs.dispatch, &runs.combine, &runs.mlp}) {
      validation.sections.push_back(std::move(*section));
    }
  }
  validation.sections.push_back(multi_node_section());
  return validation;
}

ValidationSection multi_node_section() {
  ValidationSection section{
      "Several nodes, from data sheets and published behaviour",
      "No multi-node measurement of ours stands behind this. \"measured\" is published behaviour "
      "(GB/s of one 4 MB message between two nodes) or a closed form; predicted with flow on "
      "uncalibrated H100 presets: 400 Gb/s ports of which 46 GB/s carry payload, 12 us of start "
      "cost, a non-blocking fabric unless stated.",
      {},
      std::nullopt,
      std::nullopt,
      "Published cross-rail traffic reaches half of rail-aligned traffic. The model does not "
      "reproduce that by itself: on a non-blocking fabric with ideal routing a rail change costs "
      "only latency. Half comes out where the spine is oversubscribed 2:1 and all rails cross it; "
      "collisions of hashed routes and congestion control, which fluid links do not have, are the "
      "other candidates. Treat cross-rail predictions on 1:1 fabrics as optimistic by up to 2x."};
  const auto predict = [](const std::string& preset, std::uint32_t num_ranks,
                          const std::vector<Override>& overrides, const auto& entries) {
    TrafficMatrix traffic;
    traffic.num_ranks = num_ranks;
    traffic.entries = entries;
    const Network network(load_cluster(preset, overrides, num_ranks));
    const LayerProgram program = build_traffic(traffic, {}, network.cluster());
    return run_engine("flow", resolve(program.program, network), {}).makespan_s;
  };
  using Entries = std::vector<TrafficEntry>;
  constexpr std::int64_t kMessage = 4'000'000;
  const auto shifted = [&](std::uint32_t shift) {  // rank g of node 0 to rank g + shift of node 1
    Entries entries;
    for (std::uint32_t g = 0; g < 8; ++g)
      entries.push_back({g, 8 + (g + shift) % 8, kMessage, 0.0});
    return entries;
  };
  const std::string rails = "h100_rail_optimised";
  const auto add = [&](const char* group, const char* name, double measured_s, double predicted_s) {
    section.points.push_back({group, name, measured_s, predicted_s});
  };
  add("published", "rail-aligned, 44 GB/s", kMessage / 44e9, predict(rails, 16, {}, shifted(0)));
  add("published", "cross-rail, 20 GB/s, 1:1 spine", kMessage / 20e9,
      predict(rails, 16, {}, shifted(1)));
  add("published", "cross-rail, 20 GB/s, all rails over a 2:1 spine", kMessage / 20e9,
      predict(rails, 64,
              {{"fabric.oversubscription", "2"},
               {"fabric.ports_per_leaf", "4"},
               {"fabric.num_spines", "1"}},
              [&] {
                Entries entries;  // every rank of nodes 0 to 3 to another rail of nodes 4 to 7
                for (std::uint32_t g = 0; g < 32; ++g) {
                  entries.push_back({g, 32 + g / 8 * 8 + (g + 1) % 8, kMessage, 0.0});
                }
                return entries;
              }()));
  Entries incast;
  for (std::uint32_t node = 1; node <= 8; ++node) incast.push_back({8 * node, 0, kMessage, 0.0});
  // n * size / bandwidth, start cost, two links of 1 us.
  add("closed form", "incast of 8 nodes into one GPU", 8 * kMessage / 46e9 + 12e-6 + 2e-6,
      predict(rails, 128, {}, incast));
  return section;
}

ValidationSection compare_engines(const std::vector<std::string>& presets) {
  ValidationSection section{
      "flow against simgrid on the calibrated presets",
      "One all-to-all each over 8 GPUs, uniform and skewed; \"measured\" is simgrid.",
      {},
      0.01,
      0.01,
      {}};
  for (const std::string& preset : presets) {
    const Network network(load_cluster(preset));
    for (const bool skewed : {false, true}) {
      for (const std::int64_t bytes : {std::int64_t{4} << 10, std::int64_t{1} << 20}) {
        const LayerProgram program = build_traffic(
            all_to_all(network.cluster().num_gpus(), bytes, skewed), {}, network.cluster());
        const ResolvedProgram resolved = resolve(program.program, network);
        const double simgrid = run_engine("simgrid", resolved, {}).makespan_s;
        const double flow = run_engine("flow", resolved, {}).makespan_s;
        section.points.push_back({preset,
                                  fmt::format("{}, {} per pair", skewed ? "skewed" : "uniform",
                                              format_bytes(static_cast<double>(bytes))),
                                  simgrid, flow});
      }
    }
  }
  return section;
}

namespace {

constexpr std::size_t kWorstPoints = 3;

std::string share_text(double share) {
  return fmt::format("{:.1f} %", 100.0 * share);
}

std::string summary_row(const std::string& name, const std::vector<ValidationPoint>& points) {
  const ErrorSummary summary = summarise(points);
  return fmt::format("| {} | {} | {} | {} | {} |", name, summary.num_points,
                     share_text(summary.median), share_text(summary.worst),
                     share_text(summary.within_10));
}

std::string target_cells(const ValidationSection& section) {
  const auto cell = [](const std::optional<double>& target) {
    return target ? share_text(*target) : "none";
  };
  return fmt::format(" {} | {} |", cell(section.target_median), cell(section.target_worst));
}

// With what the intervals hold, where predictions carry some.
std::string groups_table(const ValidationSection& section) {
  std::map<std::string, std::vector<ValidationPoint>> groups;
  for (const ValidationPoint& point : section.points) groups[point.group].push_back(point);
  const bool intervals = summarise(section.points).covered.has_value();
  if (groups.size() < 2 && !intervals) return "";
  std::string text = "| group | points | median error | worst error | within 10 % |";
  std::string line = "|---|---|---|---|---|";
  if (intervals) {
    text += " within interval | interval, median |";
    line += "---|---|";
  }
  text += "\n" + line + "\n";
  for (const auto& [group, points] : groups) {
    text += summary_row(group, points);
    const ErrorSummary summary = summarise(points);
    if (intervals) {
      text +=
          fmt::format(" {} | +-{} |", share_text(*summary.covered), share_text(*summary.relative));
    }
    text += "\n";
  }
  return text + "\n";
}

// The points that are furthest off; of equal ones the earlier.
std::string worst_table(const ValidationSection& section) {
  std::vector<ValidationPoint> points = section.points;
  std::stable_sort(points.begin(), points.end(),
                   [](const ValidationPoint& a, const ValidationPoint& b) {
                     return std::abs(a.error()) > std::abs(b.error());
                   });
  points.resize(std::min(points.size(), kWorstPoints));
  std::string text =
      "| furthest off | point | measured | predicted | error |\n|---|---|---|---|---|\n";
  for (const ValidationPoint& point : points) {
    text += fmt::format("| {} | {} | {} | {} | {:+.1f} % |\n", point.group, point.name,
                        format_seconds({point.measured_s}), format_seconds({point.predicted_s}),
                        100.0 * point.error());
  }
  return text;
}

}  // namespace

std::string to_markdown(const Validation& validation) {
  std::string text =
      "| protocol | points | median error | worst error | within 10 % | target, median | target, "
      "worst |\n|---|---|---|---|---|---|---|\n";
  for (const ValidationSection& section : validation.sections) {
    text += summary_row(section.title, section.points) + target_cells(section) + "\n";
  }
  for (const ValidationSection& section : validation.sections) {
    text +=
        fmt::format("\n## {}\n\n{}\n\n{}", section.title, section.protocol, groups_table(section));
    if (!section.finding.empty()) text += section.finding + "\n\n";
    text += worst_table(section);
  }
  return text;
}

std::string to_csv(const Validation& validation) {
  std::string text = csv_line({"protocol", "group", "point", "measured_s", "predicted_s", "error"});
  for (const ValidationSection& section : validation.sections) {
    const ValidationPoint* above = nullptr;
    for (const ValidationPoint& point : section.points) {
      text += csv_line({above != nullptr ? "" : section.title,
                        above != nullptr && above->group == point.group ? "" : point.group,
                        point.name, fmt::format("{:.3g}", point.measured_s),
                        fmt::format("{:.3g}", point.predicted_s),
                        fmt::format("{:.3f}", point.error())});
      above = &point;
    }
  }
  return text;
}

}  // namespace coterie
