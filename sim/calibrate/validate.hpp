#pragma once
// Validation: what calibrated models say about measurements that their fit never saw. All errors
// are signed and relative: predicted / measured - 1.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace coterie {

struct ValidationPoint {
  std::string group;  // "h200_sxm", "balanced", "dispatch"
  std::string name;   // "8 GPUs, 512 KiB"
  double measured_s = 0.0;
  double predicted_s = 0.0;
  [[nodiscard]] double error() const { return predicted_s / measured_s - 1.0; }
};

// One protocol: what was left out of the fit, and how the points fared.
struct ValidationSection {
  std::string title;
  std::string protocol;
  std::vector<ValidationPoint> points;
  double target_median = 0.0;
  std::optional<double> target_worst;
};

// Median and largest absolute error. Points may be empty: both zero.
struct ErrorSummary {
  std::size_t num_points = 0;
  double median = 0.0;
  double worst = 0.0;
  double within_10 = 0.0;  // share of points within 10 percent
};
ErrorSummary summarise(const std::vector<ValidationPoint>& points);

// The sections for the tables in `folder` (nccl_alltoall_one_node.csv, expert_mlp_h200_bf16.csv,
// deepep_normal_h200_ep8.csv); tables that are missing are named in `skipped`. Deterministic.
struct Validation {
  std::vector<ValidationSection> sections;
  std::vector<std::string> skipped;
};
Validation validate(const std::filesystem::path& folder);

// Calibrated presets through both engines: a uniform and a skewed all-to-all each; the point's
// "measured" time is simgrid's.
ValidationSection compare_engines(const std::vector<std::string>& presets);

// The sections as Markdown: a summary table, then every point.
std::string to_markdown(const Validation& validation);

}  // namespace coterie
