#include "sim/step/validate_training.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <map>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "sim/experiment/simulate.hpp"
#include "workloads/experiment.hpp"

namespace coterie {
namespace {

constexpr std::array kEfficiencies{0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3};

// A step and its predicted times with every efficiency.
struct Row {
  TrainingPoint point;
  std::string model;
  double tokens_per_s = 0.0;  // published, per GPU
  std::array<double, kEfficiencies.size()> times_s{};
};

// All kernels run at `efficiency` times their rates.
void scale(GpuModel& gpu, double efficiency) {
  gpu.bf16_peak = gpu.bf16_peak * efficiency;
  gpu.fp8_peak = gpu.fp8_peak * efficiency;
  gpu.fp4_peak = gpu.fp4_peak * efficiency;
  gpu.memory_bandwidth = gpu.memory_bandwidth * efficiency;
  for (auto* mlp : {&gpu.mlp, &gpu.mlp_fp8, &gpu.shared_mlp}) {
    if (!*mlp) continue;
    (*mlp)->compute_rate = (*mlp)->compute_rate * efficiency;
    (*mlp)->weight_bandwidth = (*mlp)->weight_bandwidth * efficiency;
  }
}

double step_s(Experiment experiment, double efficiency) {
  scale(experiment.cluster.gpu, efficiency);
  // What recipes keep in memory is not all known: the published step did fit.
  experiment.step->allow_out_of_memory = true;
  SimulateOptions options;
  options.timelines = false;
  options.step_method = StepMethod::kComposed;
  return simulate(experiment, options).front().report.time_s();
}

std::string experiment_name(const CsvTable& table, std::size_t row) {
  std::string system = table.text(row, "system");
  if (system.starts_with("DGX-")) system.erase(0, 4);
  std::string release = table.text(row, "release");
  std::replace(release.begin(), release.end(), '.', '_');
  std::transform(system.begin(), system.end(), system.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return fmt::format("{}_{}_{}_pp{}_ep{}_{}", table.text(row, "model"), system,
                     table.text(row, "gpus"), table.text(row, "pp"), table.text(row, "ep"),
                     release);
}

// The time at an efficiency between those of the grid.
double time_at(const Row& row, double efficiency) {
  std::size_t i = 1;
  while (i + 1 < kEfficiencies.size() && kEfficiencies[i] < efficiency) ++i;
  const double share =
      (efficiency - kEfficiencies[i - 1]) / (kEfficiencies[i] - kEfficiencies[i - 1]);
  return row.times_s[i - 1] * (1.0 - share) + row.times_s[i] * share;
}

// The one efficiency with the least mean error, in logarithms, over the other steps of the system.
std::optional<double> fitted_efficiency(const std::vector<Row>& rows, const Row& left_out) {
  std::optional<double> best;
  double least = 0.0;
  for (double efficiency = kEfficiencies.front(); efficiency <= kEfficiencies.back();
       efficiency += 0.005) {
    double sum = 0.0;
    bool any = false;
    for (const Row& row : rows) {
      if (&row == &left_out || row.point.system != left_out.point.system || row.point.failure) {
        continue;
      }
      any = true;
      sum += std::abs(std::log(time_at(row, efficiency) / row.point.measured_s));
    }
    if (any && (!best || sum < least)) {
      best = efficiency;
      least = sum;
    }
  }
  return best;
}

}  // namespace

TrainingValidation validate_training(const std::filesystem::path& file,
                                     const std::filesystem::path& experiments) {
  const CsvTable table = parse_csv(read_file(file), file.string());
  for (const char* column :
       {"release", "model", "system", "gpus", "pp", "ep", "step_s", "tokens_per_s_per_gpu"}) {
    if (!table.find(column)) {
      throw InputError(file.string(), fmt::format("no column \"{}\"", column),
                       "a table of published training steps");
    }
  }
  std::vector<Row> rows;
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    Row row;
    row.point.name = experiment_name(table, i);
    row.point.system = table.text(i, "system");
    row.model = table.text(i, "model");
    const auto measured = table.number(i, "step_s");
    const auto rate = table.number(i, "tokens_per_s_per_gpu");
    if (!measured || *measured <= 0.0 || !rate || *rate <= 0.0) {
      throw InputError(fmt::format("{}:{}", file.string(), table.lines[i]),
                       "no step_s or tokens_per_s_per_gpu", "positive numbers");
    }
    row.point.measured_s = *measured;
    row.tokens_per_s = *rate;
    const std::filesystem::path path = experiments / (row.point.name + ".yaml");
    if (!std::filesystem::exists(path)) {
      throw InputError(fmt::format("{}:{}", file.string(), table.lines[i]),
                       fmt::format("a step without the experiment {}", path.string()),
                       "one experiment for every line");
    }
    const Experiment experiment = load_experiment(path);
    if (!experiment.step) throw InputError(path.string(), "no \"step\" block", "a training step");
    try {
      row.point.predicted_s = step_s(experiment, 1.0);
      for (std::size_t e = 0; e < kEfficiencies.size(); ++e) {
        row.times_s[e] = step_s(experiment, kEfficiencies[e]);
      }
    } catch (const InputError& error) {
      row.point.failure = error.what();
    }
    rows.push_back(std::move(row));
  }
  TrainingValidation out;
  for (Row& row : rows) {
    if (row.point.failure) continue;
    if (const auto efficiency = fitted_efficiency(rows, row)) {
      row.point.efficiency = *efficiency;
      row.point.fitted_s = time_at(row, *efficiency);
    }
    for (const Row& other : rows) {
      if (&other <= &row || other.point.system != row.point.system || other.model != row.model ||
          other.point.failure) {
        continue;
      }
      ++out.num_pairs;
      const auto predicted_rate = [](const Row& r) {
        return r.tokens_per_s * r.point.measured_s / r.point.predicted_s;
      };
      if ((row.tokens_per_s < other.tokens_per_s) ==
          (predicted_rate(row) < predicted_rate(other))) {
        ++out.num_ordered;
      }
    }
  }
  for (Row& row : rows) out.points.push_back(std::move(row.point));
  return out;
}

}  // namespace coterie
