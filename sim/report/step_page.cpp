// The page of an experiment of whole steps: its runs, where their time goes, a timeline, memory.

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json_fault.hpp"
#include "core/metrics.hpp"
#include "core/units.hpp"
#include "sim/report/pages.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// As many spans as a page shows; the timeline's file has all.
constexpr std::size_t kMostSpans = 20'000;

ordered_json pairs_json(const std::vector<std::pair<std::string, double>>& pairs) {
  ordered_json out = ordered_json::array();
  for (const auto& [name, value] : pairs) out.push_back({name, value});
  return out;
}

ordered_json step_json(const StepReport& step) {
  ordered_json out;
  out["time_s"] = step.time_s;
  out["tokens_per_s_per_gpu"] = step.tokens_per_s_per_gpu;
  out["model_flops_per_s_per_gpu"] = step.model_flops_per_s_per_gpu;
  out["communication_s"] = step.communication_s;
  out["exposed_communication_s"] = step.exposed_communication_s;
  out["bubble_s"] = step.bubble_s;
  out["parts"] = pairs_json(step.parts);
  out["memory_bytes"] = pairs_json(step.memory_bytes);
  out["critical_path"] = ordered_json::array();
  for (const StepReport::Segment& segment : step.critical_path) {
    out["critical_path"].push_back({segment.name, segment.seconds, segment.count});
  }
  // [time, time with a placement learnt for the step or null, load of the fullest rank]
  out["series"] = ordered_json::array();
  for (const StepReport::SeriesStep& one : step.series) {
    out["series"].push_back(
        {one.time_s,
         one.relearnt_time_s ? ordered_json(*one.relearnt_time_s) : ordered_json(nullptr),
         one.rank_load_max_over_mean});
  }
  return out;
}

// [track, name, begin, end] of every span of a timeline's file.
ordered_json spans_json(const fs::path& file) {
  ordered_json out = ordered_json::array();
  try {
    const nlohmann::json document = nlohmann::json::parse(read_file(file));
    std::map<int, std::string> tracks;
    for (const auto& event : document.at("traceEvents")) {
      if (event.at("ph") == "M" && event.at("name") == "thread_name") {
        tracks[event.at("tid").get<int>()] = event.at("args").at("name").get<std::string>();
      }
      if (event.at("ph") != "X" || out.size() == kMostSpans) continue;
      const double begin_s = event.at("ts").get<double>() * 1e-6;
      out.push_back({tracks[event.at("tid").get<int>()], event.at("name").get<std::string>(),
                     begin_s, begin_s + event.at("dur").get<double>() * 1e-6});
    }
  } catch (const nlohmann::json::exception& error) {
    throw InputError(file.string(), json_fault(error), "a timeline of coterie simulate");
  }
  return out;
}

std::vector<std::string> summary(const std::vector<RunReport>& all) {
  std::vector<std::string> out;
  const RunReport* fastest = nullptr;
  for (const RunReport& run : all) {
    if (run.step && (fastest == nullptr || run.time_s() < fastest->time_s())) fastest = &run;
  }
  const StepReport& step = *fastest->step;
  const auto largest =
      std::max_element(step.parts.begin(), step.parts.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto percent = [&](double seconds) {
    return fmt::format("{:.0f} percent", 100.0 * seconds / step.time_s);
  };
  std::string part = largest->first;
  std::replace(part.begin(), part.end(), '_', ' ');
  out.push_back(
      fmt::format("<b>{}</b> takes {} per {} step, {:.0f} tokens per second and GPU. Communication "
                  "that nothing "
                  "hides takes {} of it, pipeline bubbles {}; the largest part is {} with {}.",
                  escape_html(fastest->name), format_seconds(Seconds{step.time_s}), step.kind,
                  step.tokens_per_s_per_gpu, percent(step.exposed_communication_s),
                  percent(step.bubble_s), part, percent(largest->second)));
  if (step.method == "composed") {
    out.push_back(
        "The step is composed of blocks that were simulated once each and stand for all equal "
        "ones.");
  }
  for (const RunReport& run : all) {
    if (!run.step || !run.step->static_loss()) continue;
    out.push_back(fmt::format(
        "Over the {} of the series <b>{}</b> takes {:.1f} percent longer with the placement "
        "of "
        "the first step than with one learnt for each.",
        counted(run.step->series.size(), "step"), escape_html(run.name),
        100.0 * *run.step->static_loss()));
  }
  for (const RunReport& run : all) {
    if (run.failure) {
      out.push_back(
          fmt::format("<b>{}</b> failed: {}.", escape_html(run.name), escape_html(*run.failure)));
    }
  }
  return out;
}

}  // namespace

Page step_page(const fs::path& folder, const fs::path& output, const Results& results) {
  std::vector<RunReport> runs;
  for (const RunReport& run : results.runs) {
    if (run.step) runs.push_back(run);
  }
  const RunReport& first = runs.front();
  const auto optional_file = [&](const char* name) -> std::string {
    return fs::exists(folder / name) ? read_file(folder / name) : "";
  };
  const fs::path output_folder = fs::absolute(output).parent_path().lexically_normal();
  Page page;
  page.title = results.experiment;
  page.subtitle = fmt::format("{} step of {} on {} · {} ({}) · {} by {}", first.step->kind,
                              first.model, first.topology, counted(first.step->num_gpus, "GPU"),
                              first.step->parallel, first.kind, first.engine);
  page.summary = summary(results.runs);
  page.script = "step.js";
  const std::string configuration = optional_file("effective.yaml");
  if (!configuration.empty()) {
    page.drawings.push_back(draw_topology(configuration, folder / "effective.yaml", {}));
  }
  page.data["kind"] = "step";
  page.data["experiment"] = results.experiment;
  page.data["command"] = optional_file("command.txt");
  page.data["configuration"] = configuration;
  page.data["provenance"] = ordered_json(first.provenance);
  page.data["runs"] = ordered_json::array();
  for (const RunReport& run : runs) {
    const Speedups ratios = speedups(runs, run);
    const auto number = [](const std::optional<double>& value) {
      return value ? ordered_json(*value) : ordered_json(nullptr);
    };
    ordered_json out;
    out["name"] = run.name;
    out["speedup_over_standard"] = number(ratios.over_standard);
    out["speedup_over_dedup_contiguous"] = number(ratios.over_dedup_contiguous);
    out["step"] = step_json(*run.step);
    const fs::path timeline = folder / timeline_name(run.name);
    const bool there = fs::exists(timeline);
    // Run names need no encoding in an address.
    out["timeline"] =
        there ? ordered_json(
                    fs::absolute(timeline).lexically_relative(output_folder).generic_string())
              : ordered_json(nullptr);
    out["spans"] = there ? spans_json(timeline) : ordered_json::array();
    page.data["runs"].push_back(std::move(out));
  }
  const CsvTable table = parse_csv(to_csv(results.runs), "results.csv");
  page.data["csv"] = {{"columns", table.columns}, {"rows", table.rows}};
  return page;
}

}  // namespace coterie
