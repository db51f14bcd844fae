#pragma once
// Validation: what calibrated models say about measurements that their fit never saw. All errors
// are signed and relative: predicted / measured - 1.

#include <cmath>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "sim/calibrate/row_exchanges.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

struct ValidationPoint {
  std::string group;  // "h200_sxm", "balanced", "dispatch"
  std::string name;   // "8 GPUs, 512 KiB"
  double measured_s = 0.0;
  double predicted_s = 0.0;
  double size_bytes = 0.0;  // of all-to-alls: what a rank sends; zero elsewhere
  // Half width of the interval that the prediction carries, over predicted_s. The point itself had no
  // part in it.
  std::optional<double> relative = std::nullopt;
  [[nodiscard]] double error() const { return predicted_s / measured_s - 1.0; }
  [[nodiscard]] bool is_covered() const {
    return std::abs(measured_s / predicted_s - 1.0) <= relative.value_or(0.0);
  }
};

// One protocol: what was left out of the fit, and how the points fared.
struct ValidationSection {
  std::string title;
  std::string protocol;
  std::vector<ValidationPoint> points;
  std::optional<double> target_median;
  std::optional<double> target_worst;
  std::string finding;  // what explains a miss, computed from the same points; may be empty
};

// Median and largest absolute error. Points may be empty: both zero.
struct ErrorSummary {
  std::size_t num_points = 0;
  double median = 0.0;
  double worst = 0.0;
  double within_10 = 0.0;  // share of points within 10 percent
  // Share of points within their intervals, and the median half width of these; absent unless all have one.
  std::optional<double> covered, relative;
};
ErrorSummary summarise(const std::vector<ValidationPoint>& points);

// Where the measurements are. Files that are missing are named in Validation::skipped.
struct ValidationInputs {
  // nccl_alltoall_repeats.csv, expert_mlp_h200_bf16.csv, deepep_normal_one_node.csv, ...
  std::filesystem::path tables;
  std::filesystem::path runs;                      // see measured_runs.hpp
  std::filesystem::path traces;                    // likewise
  std::vector<std::filesystem::path> nvlink_runs;  // see nvlink_runs.hpp
  std::vector<std::filesystem::path> direct_runs;  // likewise
};
struct Validation {
  std::vector<ValidationSection> sections;
  std::vector<std::string> skipped;
};
// All protocols but compare_engines, in the order of the report. Deterministic.
Validation validate(const ValidationInputs& inputs);

// Seconds of an exchange whose matrix is given, by the cluster's first transport and the flow
// engine.
double predicted_exchange_s(const Cluster& cluster, const RowExchange& exchange);

// What the presets say about several nodes, against published behaviour and closed forms.
ValidationSection multi_node_section();

// Calibrated presets through both engines: a uniform and a skewed all-to-all each; the point's
// "measured" time is simgrid's.
ValidationSection compare_engines(const std::vector<std::string>& presets);

// The page for readers: a table of all protocols, then for each what was left out, its groups, the
// causes of what was missed, and its worst points.
std::string to_markdown(const Validation& validation);

// Every point, for figures and for those who doubt the page: columns protocol, group, point,
// measured_s, predicted_s (seconds, three digits) and error (predicted / measured - 1, of all digits,
// three decimals). An empty protocol or group is that of the line above: names stand once, which
// makes half the table.
std::string to_csv(const Validation& validation);

}  // namespace coterie
