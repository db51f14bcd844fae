#include "sim/sweep/runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/progress.hpp"
#include "core/provenance.hpp"
#include "core/worker_pool.hpp"
#include "sim/sweep/parquet.hpp"

namespace coterie {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::filesystem::path journal_path(const std::filesystem::path& folder, int rank) {
  return folder / fmt::format("points.{}.jsonl", rank);
}

// {"id", "status": "ok", "rows": a list of maps as text} or {"id", "status": "failed", "error",
// "exit_code"}, with the values that the tables need.
bool is_entry(const json& line) {
  const auto is_text = [&](const char* key) { return line.contains(key) && line[key].is_string(); };
  if (!line.is_object() || !is_text("id") || !is_text("status")) return false;
  const auto is_code = [](const json& map) {
    return map.contains("exit_code") && map["exit_code"].is_number_integer();
  };
  if (line["status"] == "failed") return is_text("error") && is_code(line);
  if (line["status"] != "ok" || !is_text("rows")) return false;
  const json rows = try_parse_json(line["rows"].get_ref<const std::string&>());
  if (!rows.is_array()) return false;
  return std::all_of(rows.begin(), rows.end(), [&](const json& row) {
    if (!row.is_object()) return false;
    for (const auto& [key, value] : row.items()) {
      if (value.is_structured()) return false;
      const bool text = key == "run" || key == "error";
      if (text && !value.is_string()) return false;
      if (key == "layer_time_s" && !value.is_number()) return false;
    }
    return !row.contains("error") || is_code(row);
  });
}

// The entries of all ranks' journals, of this start and of earlier ones with other numbers of
// ranks.
std::map<std::string, json> all_entries(const std::filesystem::path& folder,
                                        const std::string& sweep_id) {
  std::vector<std::filesystem::path> files;
  if (is_folder(folder)) files = list_folder(folder);
  std::erase_if(files, [](const std::filesystem::path& file) {
    const std::string name = file.filename().string();
    return !name.starts_with("points.") || !name.ends_with(".jsonl");
  });
  std::map<std::string, json> entries;
  for (const auto& file : files) {
    for (auto& [id, entry] : read_journal(file, sweep_id, is_entry)) {
      // A point that failed once and worked later counts as done.
      auto& known = entries[id];
      if (known.is_null() || known.at("status") != "ok") known = std::move(entry);
    }
  }
  return entries;
}

// This process's part of the pending points, in the order of the sweep. Ids are hashes: dealing the
// points in the order of their ids gives every process about as much of each axis value.
std::vector<const SweepPoint*> share_of(std::vector<const SweepPoint*> pending,
                                        const SweepOptions& options) {
  std::vector<const SweepPoint*> dealt = pending;
  std::sort(dealt.begin(), dealt.end(),
            [](const SweepPoint* a, const SweepPoint* b) { return a->id < b->id; });
  std::set<const SweepPoint*> own;
  for (std::size_t i = static_cast<std::size_t>(options.rank); i < dealt.size();
       i += static_cast<std::size_t>(options.size)) {
    own.insert(dealt[i]);
  }
  std::erase_if(pending, [&](const SweepPoint* point) { return own.count(point) == 0; });
  return pending;
}

// The journal's entry of a point that is done.
json finish_point(const SweepSpec& spec, const SweepPoint& point, WorkResult result) {
  json entry{{"id", point.id}};
  try {
    // Kept as text: the order of the columns is the writer's, and json would sort them.
    entry["rows"] = result.take();
    entry["status"] = "ok";
  } catch (const Error& error) {
    entry["status"] = "failed";
    entry["error"] = error.what();
    entry["exit_code"] = static_cast<int>(error.exit_code());
  }
  entry["command"] = command_of(spec, point);
  return entry;
}

std::string cell_text(const ordered_json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : dump_json(value);
}

struct Row {
  const SweepPoint* point = nullptr;
  std::string status;
  std::string error;
  ordered_json columns = ordered_json::object();
};

std::string run_of(const Row& row) {
  return row.columns.value("run", "");
}

// The identity of a row once the baseline's keys are replaced by the baseline's values.
std::string baseline_key(const Row& row, const Settings& baseline, bool replace) {
  Settings key = row.point->settings;
  key.emplace_back("run", run_of(row));
  std::string text;
  for (auto& [name, value] : key) {
    for (const auto& [base_name, base_value] : baseline) {
      if (replace && base_name == name) value = base_value;
    }
    text += name + "=" + value + "\n";
  }
  return text;
}

// The table column by column; axis values are texts, as they stand in the sweep.
std::vector<ParquetColumn> as_columns(const SweepSpec& spec, const std::vector<Row>& rows,
                                      const std::vector<std::string>& result_columns) {
  std::vector<ParquetColumn> table;
  const auto add = [&](const std::string& name, const auto& value_of) {
    ParquetColumn column{name, {}};
    for (const Row& row : rows) column.values.push_back(value_of(row));
    table.push_back(std::move(column));
  };
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? ordered_json(nullptr) : ordered_json(text);
  };
  add("point", [](const Row& row) -> ordered_json { return row.point->id; });
  for (std::size_t idx = 0; idx < spec.keys.size(); ++idx) {
    add("set." + spec.keys[idx],
        [&](const Row& row) -> ordered_json { return row.point->settings[idx].second; });
  }
  add("status", [](const Row& row) -> ordered_json { return row.status; });
  add("error", [&](const Row& row) { return text_or_null(row.error); });
  for (const std::string& name : result_columns) {
    add(name, [&](const Row& row) {
      return row.columns.contains(name) ? row.columns.at(name) : ordered_json(nullptr);
    });
  }
  return table;
}

// The table as sweep.csv and as sweep.parquet.
void write_table(const std::filesystem::path& folder, const std::vector<ParquetColumn>& table) {
  std::vector<std::string> cells;
  for (const ParquetColumn& column : table) cells.push_back(column.name);
  std::string csv = csv_line(cells);
  for (std::size_t row = 0; row < table.front().values.size(); ++row) {
    for (std::size_t idx = 0; idx < table.size(); ++idx) {
      cells[idx] = cell_text(table[idx].values[row]);
    }
    csv += csv_line(cells);
  }
  write_file(folder / "sweep.csv", csv);
  write_file(folder / "sweep.parquet", parquet_file(table));
}

void add_baseline_ratios(std::vector<Row>& rows, const Settings& baseline) {
  std::map<std::string, double> time_of;
  for (const Row& row : rows) {
    if (row.columns.contains("layer_time_s")) {
      time_of[baseline_key(row, baseline, false)] = row.columns["layer_time_s"].get<double>();
    }
  }
  for (Row& row : rows) {
    const auto found = time_of.find(baseline_key(row, baseline, true));
    if (!row.columns.contains("layer_time_s") || found == time_of.end()) continue;
    row.columns["speedup_over_baseline"] =
        found->second / row.columns["layer_time_s"].get<double>();
  }
}

// What the rows do not say about themselves.
ordered_json facts_of(const SweepSpec& spec) {
  ordered_json facts{{"schema_version", 1},
                     {"coterie", version()},
                     {"sweep", spec.id},
                     {"base", spec.base.string()},
                     {"base_yaml", read_file(spec.base)}};
  facts["overrides"] = ordered_json::array();
  for (const Override& override_ : spec.base_overrides) {
    facts["overrides"].push_back(override_.key + "=" + override_.value);
  }
  facts["axes"] = spec.keys;
  facts["baseline"] = ordered_json::object();
  for (const auto& [key, value] : spec.baseline) facts["baseline"][key] = value;
  facts["points"] = spec.points.size();
  return facts;
}

}  // namespace

SweepCounts run_points(const SweepSpec& spec, const SweepOptions& options,
                       const EvaluatePoint& evaluate) {
  make_folder(options.folder);
  const auto recorded = all_entries(options.folder, spec.id);
  SweepCounts counts;
  counts.total = spec.points.size();
  std::vector<const SweepPoint*> pending;
  for (const SweepPoint& point : spec.points) {
    const auto found = recorded.find(point.id);
    const bool failed = found != recorded.end() && found->second.at("status") != "ok";
    if (found != recorded.end() && !(failed && options.retry_failed)) {
      ++counts.reused;
      if (failed) ++counts.failed;
      continue;
    }
    pending.push_back(&point);
  }
  options.synchronise();
  pending = share_of(std::move(pending), options);

  Journal journal(journal_path(options.folder, options.rank), spec.id);
  Progress progress("points", pending.size());
  PoolWork work;
  std::vector<json> finished;  // and not yet in the journal
  work.name = [&](std::size_t item) { return "point " + pending[item]->id; };
  work.body = [&](std::size_t item) { return dump_json(evaluate(*pending[item])); };
  work.done = [&](std::size_t item, WorkResult result) {
    finished.push_back(finish_point(spec, *pending[item], std::move(result)));
  };
  work.settle = [&] {
    journal.append_all(finished);
    for (const json& entry : finished) {
      ++counts.done;
      if (entry.at("status") != "ok") ++counts.failed;
      progress.advance();
    }
    finished.clear();
  };
  run_in_workers(options.num_jobs, pending.size(), options.timeout_s, work);
  return counts;
}

std::vector<json> collect(const SweepSpec& spec, const std::filesystem::path& folder) {
  const auto entries = all_entries(folder, spec.id);
  std::vector<json> ordered;
  for (const SweepPoint& point : spec.points) {
    const auto found = entries.find(point.id);
    if (found != entries.end()) ordered.push_back(found->second);
  }
  return ordered;
}

std::optional<SweepFailure> first_failure(const std::vector<json>& entries) {
  const auto failure = [](const std::string& what, const json& map) {
    return SweepFailure{fmt::format("{} failed: {}", what, map.at("error").get<std::string>()),
                        static_cast<ExitCode>(map.at("exit_code").get<int>())};
  };
  for (const json& entry : entries) {
    const std::string point = "point " + entry.at("id").get<std::string>();
    if (entry.at("status") != "ok") return failure(point, entry);
    const json rows = try_parse_json(entry.at("rows").get_ref<const std::string&>());
    for (const json& row : rows) {
      if (!row.contains("error")) continue;
      return failure(fmt::format("run {} of {}", row.value("run", ""), point), row);
    }
  }
  return std::nullopt;
}

void write_sweep_tables(const SweepSpec& spec, const std::vector<json>& entries,
                        const std::filesystem::path& folder) {
  std::map<std::string, const SweepPoint*> point_of;
  for (const SweepPoint& point : spec.points) point_of[point.id] = &point;

  std::vector<Row> rows;
  std::string commands;
  for (const json& entry : entries) {
    const SweepPoint* point = point_of.at(entry.at("id").get<std::string>());
    commands += command_of(spec, *point) + "\n";
    if (entry.at("status") == "ok") {
      for (const ordered_json& columns : parse_ordered_json(entry.at("rows").get<std::string>(),
                                                            folder.string(), "a sweep's rows")) {
        const std::string error = columns.value("error", "");
        rows.push_back({point, error.empty() ? "ok" : "failed", error, columns});
        rows.back().columns.erase("error");
        rows.back().columns.erase("exit_code");
      }
    } else {
      rows.push_back({point, "failed", entry.at("error").get<std::string>(), {}});
      rows.back().columns = ordered_json::object();
    }
  }
  if (!spec.baseline.empty()) add_baseline_ratios(rows, spec.baseline);

  // The union of the rows' columns, in the order of their first appearance.
  std::vector<std::string> columns;
  for (const Row& row : rows) {
    for (const auto& item : row.columns.items()) {
      if (std::find(columns.begin(), columns.end(), item.key()) == columns.end()) {
        columns.push_back(item.key());
      }
    }
  }
  write_table(folder, as_columns(spec, rows, columns));
  write_file(folder / "commands.txt", commands);
  write_file(folder / "sweep.json", dump_json(facts_of(spec), 1) + "\n");
}

}  // namespace coterie
