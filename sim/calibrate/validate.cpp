#include "sim/calibrate/validate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "core/error.hpp"
#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/measurements.hpp"
#include "sim/calibrate/mlp_fit.hpp"
#include "sim/calibrate/token_kernel_fit.hpp"
#include "sim/traffic_program.hpp"
#include "topologies/network.hpp"

namespace coterie {
namespace {

std::string size_name(std::uint32_t num_ranks, double bytes) {
  return fmt::format("{} GPUs, {}", num_ranks, format_bytes(bytes));
}

// What is known of a machine without its measurements: the kind of its links.
AllToAllOptions options_of(const std::string& machine) {
  AllToAllOptions options;
  if (machine.ends_with("_pcie")) {
    options.shared_link = true;
    options.shared_group = 2;
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
  const AllToAllModel model = fit_alltoall(training, options).model;
  for (const AllToAllPoint& point : points) {
    if (!left_out(point)) continue;
    out.push_back({group, size_name(point.num_ranks, point.bytes_per_rank), point.time_s,
                   model.time_s(point.num_ranks, point.bytes_per_rank)});
  }
}

ValidationSection alltoall_sizes(const std::vector<AllToAllPoint>& all) {
  ValidationSection section{
      "All-to-all, every other size left out",
      "Per machine: fitted on the even-numbered sizes of all GPU counts, predicted on the odd "
      "ones, "
      "and the reverse. The number of knots is chosen inside the fitted half.",
      {},
      0.05,
      0.15};
  for (const std::string& machine : machines(all)) {
    const std::vector<AllToAllPoint> points = select_machine(all, machine, "table");
    std::set<double> sizes;
    for (const AllToAllPoint& point : points) sizes.insert(point.bytes_per_rank);
    for (const std::ptrdiff_t parity : {0, 1}) {
      add_alltoall(
          points, machine, options_of(machine),
          [&](const AllToAllPoint& point) {
            return std::distance(sizes.begin(), sizes.find(point.bytes_per_rank)) % 2 == parity;
          },
          section.points);
    }
  }
  return section;
}

ValidationSection alltoall_counts(const std::vector<AllToAllPoint>& all) {
  ValidationSection section{
      "All-to-all, a whole GPU count left out",
      "Per machine: fitted on one GPU count, predicted on the other. With two counts in the table "
      "this extrapolates from a single one; the growth per peer then stays at its prior. PCIe "
      "machines are left out of it: one count says nothing about their shared bottleneck.",
      {},
      0.05,
      0.15};
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
  return section;
}

ValidationSection mlp_section(const std::vector<MlpPoint>& all) {
  ValidationSection section{
      "Expert MLP (H200, BF16), every other batch size left out",
      "Fitted on the even-numbered token counts of all shapes and loads, predicted on the odd "
      "ones, and the reverse.",
      {},
      0.10,
      std::nullopt};
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
    const MlpCosts costs = fit_mlp(training).costs;
    for (const MlpPoint& point : all) {
      if (!left_out(point)) continue;
      section.points.push_back({point.load,
                                fmt::format("{} tokens, hidden {}, EP {}", point.num_tokens,
                                            point.hidden, point.ep_size),
                                point.time_s, mlp_time_s(costs, point)});
    }
  }
  return section;
}

std::string config_name(const TokenKernelPoint& point) {
  return fmt::format("hidden {}, top-{}, {} experts", point.hidden, point.topk, point.num_experts);
}

// `key` says which points are left out together.
ValidationSection token_kernel_section(
    const std::vector<TokenKernelPoint>& all, const std::string& title, const std::string& protocol,
    const std::function<std::string(const TokenKernelPoint&)>& key) {
  ValidationSection section{title, protocol, {}, 0.10, std::nullopt};
  std::set<std::string> keys;
  for (const TokenKernelPoint& point : all) keys.insert(key(point));
  for (const TokenKernel kernel : {TokenKernel::kDispatch, TokenKernel::kCombine}) {
    for (const std::string& out : keys) {
      std::vector<TokenKernelPoint> training;
      for (const TokenKernelPoint& point : all) {
        if (key(point) != out) training.push_back(point);
      }
      if (training.empty()) continue;
      const TokenKernelCosts costs = fit_token_kernel(training, kernel);
      for (const TokenKernelPoint& point : all) {
        if (key(point) != out) continue;
        const bool dispatch = kernel == TokenKernel::kDispatch;
        section.points.push_back(
            {fmt::format("{}, {} SMs", dispatch ? "dispatch" : "combine", point.sms),
             fmt::format("{}, {} tokens", config_name(point), point.tokens_per_rank),
             dispatch ? point.dispatch_s : point.combine_s,
             token_kernel_time_s(costs, kernel, point)});
      }
    }
  }
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

ErrorSummary summarise(const std::vector<ValidationPoint>& points) {
  ErrorSummary summary;
  std::vector<double> errors;
  for (const ValidationPoint& point : points) errors.push_back(std::abs(point.error()));
  if (errors.empty()) return summary;
  std::sort(errors.begin(), errors.end());
  const std::size_t n = errors.size();
  summary.num_points = n;
  summary.median = n % 2 == 1 ? errors[n / 2] : 0.5 * (errors[n / 2 - 1] + errors[n / 2]);
  summary.worst = errors.back();
  summary.within_10 =
      static_cast<double>(std::upper_bound(errors.begin(), errors.end(), 0.10) - errors.begin()) /
      static_cast<double>(n);
  return summary;
}

Validation validate(const std::filesystem::path& folder) {
  Validation validation;
  const auto with = [&](const char* file, const auto& use) {
    if (std::filesystem::is_regular_file(folder / file)) {
      use(folder / file);
    } else {
      validation.skipped.push_back((folder / file).string());
    }
  };
  with("nccl_alltoall_one_node.csv", [&](const std::filesystem::path& path) {
    const std::vector<AllToAllPoint> points = read_alltoall(path);
    validation.sections.push_back(alltoall_sizes(points));
    validation.sections.push_back(alltoall_counts(points));
  });
  with("expert_mlp_h200_bf16.csv", [&](const std::filesystem::path& path) {
    validation.sections.push_back(mlp_section(read_mlp(path)));
  });
  with("deepep_normal_h200_ep8.csv", [&](const std::filesystem::path& path) {
    const std::vector<TokenKernelPoint> points = read_token_kernels(path);
    validation.sections.push_back(token_kernel_section(
        points, "DeepEP normal kernels (one H200 node), a whole model shape left out",
        "Fitted on the other shapes, predicted on the one that was left out, for each.",
        config_name));
    std::set<double> sizes;
    for (const TokenKernelPoint& point : points) sizes.insert(point.tokens_per_rank);
    validation.sections.push_back(token_kernel_section(
        points, "DeepEP normal kernels (one H200 node), every other batch size left out",
        "Fitted on the even-numbered token counts, predicted on the odd ones, and the reverse; 8 "
        "and 24 SMs together.",
        [sizes](const TokenKernelPoint& point) {
          return std::to_string(std::distance(sizes.begin(), sizes.find(point.tokens_per_rank)) %
                                2);
        }));
  });
  return validation;
}

ValidationSection compare_engines(const std::vector<std::string>& presets) {
  ValidationSection section{
      "flow against simgrid on the calibrated presets",
      "One all-to-all each over 8 GPUs, uniform and skewed; \"measured\" is simgrid.",
      {},
      0.01,
      0.01};
  for (const std::string& preset : presets) {
    const Network network(load_cluster(preset));
    for (const bool skewed : {false, true}) {
      for (const std::int64_t bytes : {std::int64_t{4} << 10, std::int64_t{1} << 20}) {
        const Program program = traffic_program(
            all_to_all(network.cluster().num_gpus(), bytes, skewed), &network.cluster());
        const double simgrid = run_engine("simgrid", program, network, {}).makespan_s;
        const double flow = run_engine("flow", program, network, {}).makespan_s;
        section.points.push_back({preset,
                                  fmt::format("{}, {} per pair", skewed ? "skewed" : "uniform",
                                              format_bytes(static_cast<double>(bytes))),
                                  simgrid, flow});
      }
    }
  }
  return section;
}

std::string to_markdown(const Validation& validation) {
  std::string text =
      "| protocol | points | median abs. error | target | worst | target | within 10 % |\n"
      "|---|---|---|---|---|---|---|\n";
  const auto percent = [](double share) { return fmt::format("{:.1f} %", 100.0 * share); };
  const auto row = [&](const std::string& name, const std::vector<ValidationPoint>& points,
                       const ValidationSection& section) {
    const ErrorSummary summary = summarise(points);
    return fmt::format(
        "| {} | {} | {} | {} | {} | {} | {} |\n", name, summary.num_points, percent(summary.median),
        percent(section.target_median), percent(summary.worst),
        section.target_worst ? percent(*section.target_worst) : "", percent(summary.within_10));
  };
  for (const ValidationSection& section : validation.sections) {
    text += row("**" + section.title + "**", section.points, section);
    std::map<std::string, std::vector<ValidationPoint>> groups;
    for (const ValidationPoint& point : section.points) groups[point.group].push_back(point);
    if (groups.size() < 2) continue;
    for (const auto& [group, points] : groups) text += row("... " + group, points, section);
  }
  for (const ValidationSection& section : validation.sections) {
    text += fmt::format(
        "\n## {}\n\n{}\n\n| group | point | measured | predicted | error |\n"
        "|---|---|---|---|---|\n",
        section.title, section.protocol);
    for (const ValidationPoint& point : section.points) {
      text += fmt::format("| {} | {} | {} | {} | {:+.1f} % |\n", point.group, point.name,
                          format_seconds({point.measured_s}), format_seconds({point.predicted_s}),
                          100.0 * point.error());
    }
  }
  return text;
}

}  // namespace coterie
