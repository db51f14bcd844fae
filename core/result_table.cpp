#include "core/result_table.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/metrics.hpp"
#include "core/units.hpp"

namespace coterie {
namespace {

// Bounds know no phases: nothing was executed.
bool is_bound(const RunReport& run) {
  return run.engine == "bound";
}

std::string name_text(const RunReport& run) {
  return run.exact ? run.name : run.name + " (not exact)";
}

std::string metric_text(const RunReport& run, double (*metric)(const LayerReport&)) {
  if (run.layers.front().phases.empty()) return "-";
  return format_seconds(Seconds{layer_mean(run, metric)});
}

std::string tier_text(const RunReport& run, const std::string& tier) {
  const double bytes =
      static_cast<double>(run.tier_bytes(tier)) / static_cast<double>(run.layers.size());
  return bytes > 0.0 ? format_bytes(bytes) : "-";
}

std::string ratio_text(const std::optional<double>& ratio) {
  return ratio ? fmt::format("{:.2f}x", *ratio) : "-";
}

std::string link_text(const RunReport& run) {
  const LinkLoad* busiest = busiest_link(run);
  if (busiest == nullptr) return "-";
  if (!busiest->utilization) return busiest->name;
  return fmt::format("{} ({:.0f}%)", busiest->name, 100.0 * *busiest->utilization);
}

std::string pruning_note(const RunReport& run) {
  return fmt::format(
      "{} is not exact: experts with {:.1f}% of the router weight are replaced, the top-1 expert "
      "of "
      "{:.1f}% of the tokens",
      run.name, 100.0 * *run.weight_lost, 100.0 * run.top1_changed.value_or(0.0));
}

}  // namespace

std::string time_text(const RunReport& run) {
  const std::string time = format_seconds(Seconds{layer_time_s(run)});
  if (is_bound(run)) return ">= " + time;
  const std::optional<double> width = relative_uncertainty(run);
  if (!width) return time;
  return fmt::format("{} +-{:.{}f}%", time, 100.0 * *width, run.kind == "measured" ? 1 : 0);
}

Table result_table(std::span<const RunReport> runs) {
  Table table;
  table.header = {"run",           "layer time",   "dispatch",    "MLP",
                  "combine",       "fan-out",      "scale-up",    "network",
                  "load max/mean", "busiest link", "vs standard", "vs dedup+contiguous"};
  for (const RunReport& run : runs) {
    std::vector<std::string>& row = table.rows.emplace_back();
    if (run.layers.empty()) {
      row.assign(table.header.size(), "-");
      row[0] = run.name;
      row[1] = "failed";
      continue;
    }
    const Speedups ratios = speedups(runs, run);
    row = {name_text(run),
           time_text(run),
           metric_text(run, dispatch_s),
           metric_text(run, mlp_s),
           metric_text(run, combine_s),
           fmt::format("{:.2f}", layer_mean(run, &LayerReport::fanout_ranks)),
           tier_text(run, "scale_up"),
           tier_text(run, "network"),
           fmt::format("{:.2f}", layer_mean(run, &LayerReport::rank_load_max_over_mean)),
           link_text(run),
           ratio_text(ratios.over_standard),
           ratio_text(ratios.over_dedup_contiguous)};
  }
  return table;
}

Table breakdown_table(std::span<const RunReport> runs) {
  Table table;
  table.header = {"run"};
  for (std::size_t i = 0; i < kNumParts; ++i) {
    const auto part = static_cast<Part>(i);
    table.header.push_back(part == Part::kMlp ? "MLP" : to_string(part));
  }
  table.header.emplace_back("layer time");
  for (const RunReport& run : runs) {
    const std::optional<PartTimes> parts = critical_parts(run);
    if (!parts) continue;
    const auto text = [&](double sum_s) {
      return format_seconds(Seconds{sum_s / static_cast<double>(run.layers.size())});
    };
    std::vector<std::string>& row = table.rows.emplace_back();
    row.push_back(name_text(run));
    for (const double seconds : parts->seconds) row.push_back(text(seconds));
    row.push_back(text(parts->total_s()));
  }
  return table;
}

std::vector<std::string> result_notes(std::span<const RunReport> runs) {
  std::vector<std::string> notes;
  const auto add = [&](const std::string& note) {
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
  };
  for (const RunReport& run : runs) {
    if (run.failure) add(fmt::format("{} failed: {}", run.name, *run.failure));
  }
  for (const RunReport& run : runs) {
    if (run.weight_lost) add(pruning_note(run));
  }
  for (const RunReport& run : runs) {
    for (const std::string& warning : run.warnings) add("warning: " + warning);
  }
  if (std::any_of(runs.begin(), runs.end(), is_bound)) {
    add("bound gives lower bounds of the layer times and ratios of these; phases and the use of "
        "links over time are not known");
  }
  return notes;
}

Table step_table(std::span<const RunReport> runs) {
  Table table;
  table.header = {"run",     "step",   "tokens/s/GPU", "model TFLOP/s", "communication",
                  "exposed", "bubble", "memory",       "vs standard",   "vs dedup contiguous"};
  for (const RunReport& run : runs) {
    if (!run.step) {
      std::vector<std::string> row(table.header.size(), "-");
      row[0] = run.name;
      row[1] = "failed";
      table.rows.push_back(std::move(row));
      continue;
    }
    const StepReport& step = *run.step;
    const Speedups ratios = speedups(runs, run);
    const auto seconds = [](double value) { return format_seconds(Seconds{value}); };
    std::string time = seconds(step.time_s);
    if (step.high_s) {
      time += fmt::format(" +-{:.0f}%", 100.0 * (*step.high_s / step.time_s - 1.0));
    }
    double memory = 0.0;
    for (const auto& [name, bytes] : step.memory_bytes) {
      if (name == "total") memory = bytes;
    }
    table.rows.push_back({run.name, time, fmt::format("{:.0f}", step.tokens_per_s_per_gpu),
                          fmt::format("{:.1f}", step.model_flops_per_s_per_gpu / 1e12),
                          seconds(step.communication_s), seconds(step.exposed_communication_s),
                          seconds(step.bubble_s), memory > 0.0 ? format_bytes(memory) : "-",
                          ratio_text(ratios.over_standard),
                          ratio_text(ratios.over_dedup_contiguous)});
  }
  return table;
}

Table step_parts_table(std::span<const RunReport> runs) {
  Table table;
  table.header = {"part"};
  std::vector<const StepReport*> steps;
  for (const RunReport& run : runs) {
    if (!run.step) continue;
    steps.push_back(&*run.step);
    table.header.push_back(run.name);
  }
  if (steps.empty()) return {};
  for (std::size_t i = 0; i < steps.front()->parts.size(); ++i) {
    std::vector<std::string> row{steps.front()->parts[i].first};
    bool any = false;
    for (const StepReport* step : steps) {
      const double seconds = step->parts[i].second;
      any = any || seconds > 0.0;
      row.push_back(seconds > 0.0 ? format_seconds(Seconds{seconds}) : "-");
    }
    if (any) table.rows.push_back(std::move(row));
  }
  std::vector<std::string> sum{"step"};
  for (const StepReport* step : steps) sum.push_back(format_seconds(Seconds{step->time_s}));
  table.rows.push_back(std::move(sum));
  return table;
}

Table step_series_table(std::span<const RunReport> runs) {
  Table table;
  table.header = {"run", "step", "time", "placed anew", "loss", "fullest rank"};
  for (const RunReport& run : runs) {
    if (!run.step) continue;
    for (std::size_t i = 0; i < run.step->series.size(); ++i) {
      const StepReport::SeriesStep& one = run.step->series[i];
      const std::optional<double>& anew = one.relearnt_time_s;
      table.rows.push_back(
          {run.name, std::to_string(i + 1), format_seconds(Seconds{one.time_s}),
           anew ? format_seconds(Seconds{*anew}) : "-",
           anew ? fmt::format("{:+.1f} %", 100.0 * (one.time_s / *anew - 1.0)) : "-",
           fmt::format("{:.2f}", one.rank_load_max_over_mean)});
    }
  }
  return table;
}

}  // namespace coterie
