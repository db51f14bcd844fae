#include "core/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/json_fault.hpp"
#include "core/metrics.hpp"

namespace coterie {
namespace {

constexpr std::array<const char*, kNumPhases> kPhaseNames{
    "notify", "pack", "dispatch", "forward", "expand", "mlp", "merge", "gather", "combine", "sum"};

using nlohmann::json;

json to_json(const PhaseTimes& times) {
  json out{{"phase", to_string(times.phase)},
           {"slowest_s", times.slowest_s()},
           {"begin_s", times.begin_s},
           {"end_s", times.end_s}};
  if (!times.samples_s.empty()) out["samples_s"] = times.samples_s;
  return out;
}

template <class T>
void write_if(json& out, const char* key, const std::optional<T>& value) {
  if (value) out[key] = *value;
}

json to_json(const TransferGroup& group) {
  json out{{"phase", to_string(group.phase)},
           {"tier", group.tier},
           {"num_transfers", group.num_transfers},
           {"num_rows", group.num_rows},
           {"bytes", group.bytes},
           {"max_rank_send_bytes", group.max_rank_send},
           {"max_rank_receive_bytes", group.max_rank_receive}};
  write_if(out, "begin_s", group.begin_s);
  write_if(out, "end_s", group.end_s);
  return out;
}

json to_json(const LayerReport& layer) {
  json out{{"layer", layer.layer},
           {"time_s", layer.time_s},
           {"bound_s", layer.bound_s},
           {"copies", layer.copies},
           {"fanout_ranks", layer.fanout_ranks},
           {"remote_fanout_ranks", layer.remote_fanout_ranks},
           {"fanout_nodes", layer.fanout_nodes},
           {"remote_fanout_nodes", layer.remote_fanout_nodes},
           {"rank_load_max_over_mean", layer.rank_load_max_over_mean}};
  write_if(out, "low_s", layer.low_s);
  write_if(out, "high_s", layer.high_s);
  if (!layer.samples_s.empty()) out["samples_s"] = layer.samples_s;
  out["phases"] = json::array();
  for (const PhaseTimes& times : layer.phases) out["phases"].push_back(to_json(times));
  if (!layer.combine_ready_s.empty()) out["combine_ready_s"] = layer.combine_ready_s;
  if (const std::optional<CriticalRank> critical = critical_rank(layer)) {
    json& entry = out["critical_rank"] = {{"rank", critical->rank}};
    for (std::size_t i = 0; i < kNumParts; ++i) {
      entry[to_string(static_cast<Part>(i)) + "_s"] = critical->parts.seconds[i];
    }
    out["dispatch_s"] = dispatch_s(layer);
    out["mlp_s"] = mlp_s(layer);
    out["combine_s"] = combine_s(layer);
  }
  out["groups"] = json::array();
  for (const TransferGroup& group : layer.groups) out["groups"].push_back(to_json(group));
  if (layer.busiest_link) {
    out["busiest_link"] = {{"name", layer.busiest_link->name},
                           {"tier", layer.busiest_link->tier},
                           {"bytes", layer.busiest_link->bytes}};
    write_if(out["busiest_link"], "utilization", layer.busiest_link->utilization);
  }
  return out;
}

Phase phase_from(const json& document) {
  const auto name = document.at("phase").get<std::string>();
  if (const auto phase = parse_phase(name)) return *phase;
  throw std::invalid_argument(fmt::format("unknown phase \"{}\"", name));
}

template <class T>
void read_if(const json& document, const char* key, T& target) {
  if (document.contains(key)) document.at(key).get_to(target);
}
template <class T>
void read_if(const json& document, const char* key, std::optional<T>& target) {
  if (document.contains(key)) target = document.at(key).get<T>();
}

// Whole numbers from zero; their sums over a report stay exact in 64 bits and in double.
template <class T>
void read_count(const json& document, const char* key, T& target) {
  constexpr std::int64_t kMost = std::int64_t{1} << 50;
  const json& value = document.at(key);
  const std::int64_t number = value.is_number_integer() ? value.get<std::int64_t>() : -1;
  const bool fits = value.is_number_unsigned() || number >= 0;
  if (!fits || number < 0 || number > kMost ||
      std::cmp_greater(number, std::numeric_limits<T>::max())) {
    throw std::invalid_argument(fmt::format("{} {}", key, json_excerpt(value)));
  }
  target = static_cast<T>(number);
}

// Seconds of zero or more.
void read_time(const json& document, const char* key, double& target) {
  document.at(key).get_to(target);
  if (target < 0.0) throw std::invalid_argument(fmt::format("{} {}", key, target));
}

LayerReport layer_from(const json& document) {
  LayerReport layer;
  read_count(document, "layer", layer.layer);
  read_time(document, "time_s", layer.time_s);
  read_if(document, "bound_s", layer.bound_s);
  read_if(document, "low_s", layer.low_s);
  read_if(document, "high_s", layer.high_s);
  read_if(document, "samples_s", layer.samples_s);
  read_if(document, "copies", layer.copies);
  read_if(document, "fanout_ranks", layer.fanout_ranks);
  read_if(document, "remote_fanout_ranks", layer.remote_fanout_ranks);
  read_if(document, "fanout_nodes", layer.fanout_nodes);
  read_if(document, "remote_fanout_nodes", layer.remote_fanout_nodes);
  read_if(document, "rank_load_max_over_mean", layer.rank_load_max_over_mean);
  for (const json& entry : document.at("phases")) {
    PhaseTimes times;
    times.phase = phase_from(entry);
    entry.at("begin_s").get_to(times.begin_s);
    entry.at("end_s").get_to(times.end_s);
    if (times.begin_s.size() != times.end_s.size()) {
      throw std::invalid_argument(fmt::format("{} begins and {} ends of phase {}",
                                              times.begin_s.size(), times.end_s.size(),
                                              to_string(times.phase)));
    }
    read_if(entry, "samples_s", times.samples_s);
    layer.phases.push_back(std::move(times));
  }
  read_if(document, "combine_ready_s", layer.combine_ready_s);
  for (const json& entry : document.at("groups")) {
    TransferGroup group;
    group.phase = phase_from(entry);
    entry.at("tier").get_to(group.tier);
    read_count(entry, "num_transfers", group.num_transfers);
    read_count(entry, "num_rows", group.num_rows);
    read_count(entry, "bytes", group.bytes);
    read_count(entry, "max_rank_send_bytes", group.max_rank_send);
    read_count(entry, "max_rank_receive_bytes", group.max_rank_receive);
    read_if(entry, "begin_s", group.begin_s);
    read_if(entry, "end_s", group.end_s);
    layer.groups.push_back(std::move(group));
  }
  if (document.contains("busiest_link")) {
    const json& entry = document.at("busiest_link");
    LinkLoad load;
    entry.at("name").get_to(load.name);
    entry.at("tier").get_to(load.tier);
    entry.at("bytes").get_to(load.bytes);
    read_if(entry, "utilization", load.utilization);
    layer.busiest_link = std::move(load);
  }
  return layer;
}

}  // namespace

std::string to_string(Phase phase) {
  return kPhaseNames.at(static_cast<std::size_t>(phase));
}

std::optional<Phase> parse_phase(std::string_view name) {
  for (std::size_t i = 0; i < kPhaseNames.size(); ++i) {
    if (name == kPhaseNames[i]) return static_cast<Phase>(i);
  }
  return std::nullopt;
}

double PhaseTimes::slowest_s() const {
  double slowest = 0.0;
  for (std::size_t r = 0; r < begin_s.size(); ++r) {
    slowest = std::max(slowest, end_s[r] - begin_s[r]);
  }
  return slowest;
}

double RunReport::time_s() const {
  double sum = step ? step->time_s : 0.0;
  for (const LayerReport& layer : layers) sum += layer.time_s;
  return sum;
}

double RunReport::phase_slowest_s(Phase phase) const {
  double sum = 0.0;
  for (const LayerReport& layer : layers) {
    for (const PhaseTimes& times : layer.phases) {
      if (times.phase == phase) sum += times.slowest_s();
    }
  }
  return sum;
}

std::int64_t RunReport::tier_bytes(std::string_view tier) const {
  std::int64_t sum = 0;
  for (const LayerReport& layer : layers) {
    for (const TransferGroup& group : layer.groups) {
      if (group.tier == tier) sum += group.bytes;
    }
  }
  return sum;
}

namespace {

using NamedNumbers = std::vector<std::pair<std::string, double>>;

json numbers_json(const NamedNumbers& numbers) {
  json out = json::object();
  for (const auto& [name, value] : numbers) out[name] = value;
  return out;
}

// JSON objects are read in the order of their keys; the order shown is kept beside.
json names_json(const NamedNumbers& numbers) {
  json out = json::array();
  for (const auto& [name, value] : numbers) out.push_back(name);
  return out;
}

NamedNumbers numbers_from(const json& document, const json& names) {
  NamedNumbers out;
  for (const json& name : names) {
    out.emplace_back(name.get<std::string>(), document.at(name.get<std::string>()).get<double>());
  }
  return out;
}

json step_json(const StepReport& step) {
  json out{{"kind", step.kind},
           {"method", step.method},
           {"num_gpus", step.num_gpus},
           {"parallel", step.parallel},
           {"time_s", step.time_s},
           {"tokens_per_s_per_gpu", step.tokens_per_s_per_gpu},
           {"model_flops_per_s_per_gpu", step.model_flops_per_s_per_gpu},
           {"communication_s", step.communication_s},
           {"exposed_communication_s", step.exposed_communication_s},
           {"bubble_s", step.bubble_s},
           {"parts", numbers_json(step.parts)},
           {"busy", numbers_json(step.busy)},
           {"memory_bytes", numbers_json(step.memory_bytes)},
           {"order",
            {{"parts", names_json(step.parts)},
             {"busy", names_json(step.busy)},
             {"memory_bytes", names_json(step.memory_bytes)}}}};
  write_if(out, "low_s", step.low_s);
  write_if(out, "high_s", step.high_s);
  write_if(out, "tpot_s", step.tpot_s);
  write_if(out, "ttft_s", step.ttft_s);
  write_if(out, "rank_load_max_over_mean", step.rank_load_max_over_mean);
  out["critical_path"] = json::array();
  for (const StepReport::Segment& segment : step.critical_path) {
    out["critical_path"].push_back(
        {{"name", segment.name}, {"seconds", segment.seconds}, {"count", segment.count}});
  }
  if (step.series.empty()) return out;
  out["series"] = json::array();
  for (const StepReport::SeriesStep& one : step.series) {
    json item{{"time_s", one.time_s}, {"rank_load_max_over_mean", one.rank_load_max_over_mean}};
    write_if(item, "relearnt_time_s", one.relearnt_time_s);
    out["series"].push_back(std::move(item));
  }
  write_if(out, "static_loss", step.static_loss());
  return out;
}

StepReport step_from(const json& document) {
  StepReport step;
  document.at("kind").get_to(step.kind);
  document.at("method").get_to(step.method);
  document.at("num_gpus").get_to(step.num_gpus);
  document.at("parallel").get_to(step.parallel);
  read_time(document, "time_s", step.time_s);
  document.at("tokens_per_s_per_gpu").get_to(step.tokens_per_s_per_gpu);
  document.at("model_flops_per_s_per_gpu").get_to(step.model_flops_per_s_per_gpu);
  document.at("communication_s").get_to(step.communication_s);
  document.at("exposed_communication_s").get_to(step.exposed_communication_s);
  document.at("bubble_s").get_to(step.bubble_s);
  const json& order = document.at("order");
  step.parts = numbers_from(document.at("parts"), order.at("parts"));
  step.busy = numbers_from(document.at("busy"), order.at("busy"));
  step.memory_bytes = numbers_from(document.at("memory_bytes"), order.at("memory_bytes"));
  read_if(document, "low_s", step.low_s);
  read_if(document, "high_s", step.high_s);
  read_if(document, "tpot_s", step.tpot_s);
  read_if(document, "ttft_s", step.ttft_s);
  read_if(document, "rank_load_max_over_mean", step.rank_load_max_over_mean);
  for (const json& segment : document.at("critical_path")) {
    step.critical_path.push_back({segment.at("name").get<std::string>(),
                                  segment.at("seconds").get<double>(),
                                  segment.at("count").get<std::uint32_t>()});
  }
  if (!document.contains("series")) return step;
  for (const json& item : document.at("series")) {
    StepReport::SeriesStep one;
    item.at("time_s").get_to(one.time_s);
    item.at("rank_load_max_over_mean").get_to(one.rank_load_max_over_mean);
    read_if(item, "relearnt_time_s", one.relearnt_time_s);
    step.series.push_back(one);
  }
  return step;
}

}  // namespace

std::optional<double> StepReport::static_loss() const {
  double placed_once_s = 0.0;
  double relearnt_s = 0.0;
  for (const SeriesStep& one : series) {
    if (!one.relearnt_time_s) return std::nullopt;
    placed_once_s += one.time_s;
    relearnt_s += *one.relearnt_time_s;
  }
  if (relearnt_s <= 0.0) return std::nullopt;
  return placed_once_s / relearnt_s - 1.0;
}

json to_json(const RunReport& report) {
  json out{
      {"schema_version", 1},
      {"kind", report.kind},
      {"engine", report.engine},
      {"name", report.name},
      {"policy", report.policy},
      {"placement", report.placement},
      {"exact", report.exact},
      {"topology", report.topology},
      {"transport", report.transport},
      {"model", report.model},
      {"trace", report.trace},
      {"num_ranks", report.num_ranks},
      {"num_groups", report.num_groups},
      {"tokens_per_rank", report.tokens_per_rank},
      {"payload", {{"dispatch", report.dispatch_payload}, {"combine", report.combine_payload}}},
      {"time_s", report.time_s()},
      {"provenance", report.provenance}};
  if (report.expert_type) out["precision"] = {{"experts", *report.expert_type}};
  write_if(out, "weight_lost", report.weight_lost);
  write_if(out, "top1_changed", report.top1_changed);
  write_if(out, "token_repeats", report.token_repeats);
  write_if(out, "failure", report.failure);
  if (!report.warnings.empty()) out["warnings"] = report.warnings;
  if (report.step) out["step"] = step_json(*report.step);
  out["layers"] = json::array();
  for (const LayerReport& layer : report.layers) out["layers"].push_back(to_json(layer));
  return out;
}

RunReport report_from_json(const json& document, const std::string& where) {
  try {
    if (const int version = document.at("schema_version").get<int>(); version != 1) {
      throw InputError(where, fmt::format("schema_version {}", version), "schema_version 1");
    }
    RunReport report;
    document.at("kind").get_to(report.kind);
    document.at("engine").get_to(report.engine);
    document.at("name").get_to(report.name);
    document.at("policy").get_to(report.policy);
    document.at("placement").get_to(report.placement);
    document.at("exact").get_to(report.exact);
    document.at("topology").get_to(report.topology);
    read_if(document, "transport", report.transport);
    document.at("model").get_to(report.model);
    read_if(document, "trace", report.trace);
    read_count(document, "num_ranks", report.num_ranks);
    if (document.contains("num_groups")) read_count(document, "num_groups", report.num_groups);
    if (document.contains("tokens_per_rank")) {
      read_count(document, "tokens_per_rank", report.tokens_per_rank);
    }
    document.at("payload").at("dispatch").get_to(report.dispatch_payload);
    document.at("payload").at("combine").get_to(report.combine_payload);
    if (document.contains("precision")) {
      report.expert_type = document.at("precision").at("experts").get<std::string>();
    }
    read_if(document, "provenance", report.provenance);
    read_if(document, "weight_lost", report.weight_lost);
    read_if(document, "top1_changed", report.top1_changed);
    read_if(document, "token_repeats", report.token_repeats);
    read_if(document, "failure", report.failure);
    read_if(document, "warnings", report.warnings);
    if (document.contains("step")) report.step = step_from(document.at("step"));
    for (const json& layer : document.at("layers")) report.layers.push_back(layer_from(layer));
    return report;
  } catch (const json::exception& error) {
    throw InputError(where, json_fault(error), "a run report of schema_version 1");
  } catch (const std::invalid_argument& error) {
    throw InputError(where, error.what(), "a run report of schema_version 1");
  }
}

std::string pack_layer(const LayerReport& layer, const Timeline& timeline) {
  json spans = json::array();
  for (const TimelineSpan& span : timeline.spans) {
    spans.push_back({span.process, span.track, span.name, span.begin_s, span.end_s});
  }
  json samples = json::array();
  for (const TimelineSample& sample : timeline.samples) {
    samples.push_back({sample.process, sample.track, sample.time_s, sample.value, sample.unit});
  }
  std::string bytes;
  json::to_cbor({{"layer", to_json(layer)}, {"spans", spans}, {"samples", samples}}, bytes);
  return bytes;
}

std::pair<LayerReport, Timeline> unpack_layer(const std::string& bytes) {
  const json document = json::from_cbor(bytes);
  Timeline timeline;
  for (const json& span : document.at("spans")) {
    timeline.spans.push_back({span[0], span[1], span[2], span[3], span[4]});
  }
  for (const json& sample : document.at("samples")) {
    timeline.samples.push_back({sample[0], sample[1], sample[2], sample[3], sample[4]});
  }
  return {layer_from(document.at("layer")), std::move(timeline)};
}

void write_timeline(const std::filesystem::path& path, const Timeline& timeline) {
  // Trace-event ids are numbers: number processes and tracks in order of appearance.
  std::map<std::string, int> processes;
  std::map<std::pair<int, std::string>, int> tracks;
  json events = json::array();
  const auto process_id = [&](const std::string& name) {
    const auto [entry, added] = processes.try_emplace(name, static_cast<int>(processes.size()) + 1);
    if (added) {
      events.push_back({{"ph", "M"},
                        {"name", "process_name"},
                        {"pid", entry->second},
                        {"args", {{"name", name}}}});
    }
    return entry->second;
  };
  for (const TimelineSpan& span : timeline.spans) {
    const int process = process_id(span.process);
    const auto [track, added] =
        tracks.try_emplace({process, span.track}, static_cast<int>(tracks.size()) + 1);
    if (added) {
      events.push_back({{"ph", "M"},
                        {"name", "thread_name"},
                        {"pid", process},
                        {"tid", track->second},
                        {"args", {{"name", span.track}}}});
      events.push_back({{"ph", "M"},
                        {"name", "thread_sort_index"},
                        {"pid", process},
                        {"tid", track->second},
                        {"args", {{"sort_index", track->second}}}});
    }
    events.push_back({{"ph", "X"},
                      {"name", span.name},
                      {"pid", process},
                      {"tid", track->second},
                      {"ts", span.begin_s * 1e6},
                      {"dur", (span.end_s - span.begin_s) * 1e6}});
  }
  for (const TimelineSample& sample : timeline.samples) {
    events.push_back({{"ph", "C"},
                      {"name", sample.track},
                      {"pid", process_id(sample.process)},
                      {"ts", sample.time_s * 1e6},
                      {"args", {{sample.unit, sample.value}}}});
  }
  write_file(path, dump_json(json{{"traceEvents", events}, {"displayTimeUnit", "ns"}}) + "\n");
}

}  // namespace coterie
