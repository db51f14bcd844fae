// The page of a sweep: every row of sweep.csv, and what explains the columns.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/json_fault.hpp"
#include "sim/report/pages.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t kMaxDrawings = 8;
constexpr std::string_view kAxisPrefix = "set.";

CsvTable read_rows(const fs::path& path) {
  CsvTable table = parse_csv(read_file(path), path.string());
  // A sweep whose points all failed has no columns of results.
  constexpr std::array kAlways{"point", "status", "error"};
  constexpr std::array kResults{
      "run",      "policy",       "placement", "exact",           "topology_name",
      "num_gpus", "layer_time_s", "mlp_s",     "communication_s", "num_layers"};
  const auto require = [&](const char* column) {
    if (table.find(column)) return;
    throw InputError(path.string(), fmt::format("no column \"{}\"", column),
                     "the columns that coterie sweep of this version writes");
  };
  for (const char* column : kAlways) require(column);
  bool any_ok = false;
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    if (table.text(row, "status") != "ok") continue;
    any_ok = true;
    break;
  }
  if (any_ok) {
    for (const char* column : kResults) require(column);
  }
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    if (table.text(row, "status") == "ok" && !table.number(row, "layer_time_s")) {
      throw InputError(fmt::format("{}:{}", path.string(), table.lines[row]),
                       fmt::format("layer_time_s \"{}\"", table.text(row, "layer_time_s")),
                       "a number");
    }
  }
  if (table.rows.empty()) throw InputError(path.string(), "no rows", "at least one point");
  return table;
}

// sweep.json; null where the folder has none (a table that was copied alone).
json read_facts(const fs::path& path) {
  if (!path_exists(path)) return nullptr;
  json facts = parse_json(read_file(path), path.string(), "a sweep's facts");
  if (!facts.is_object()) throw InputError(path.string(), json_excerpt(facts), "a sweep's facts");
  if (const auto version = facts.value("schema_version", json(nullptr)); version != 1) {
    throw InputError(path.string(), fmt::format("schema_version {}", json_excerpt(version)),
                     "schema_version 1");
  }
  try {
    (void)facts.at("base").get<std::string>();
    (void)facts.at("base_yaml").get<std::string>();
    (void)facts.at("overrides").get<std::vector<std::string>>();
    (void)facts.at("baseline").get<std::map<std::string, std::string>>();
    (void)facts.at("points").get<std::size_t>();
  } catch (const json::exception& error) {
    throw InputError(path.string(), json_fault(error), "a sweep's facts of schema_version 1");
  }
  return facts;
}

// A column as its distinct texts and positions among them, or as it is where most differ.
ordered_json column_json(const CsvTable& table, std::size_t column) {
  std::map<std::string, std::size_t> position;
  std::vector<std::string> values;
  std::vector<std::size_t> indices;
  std::vector<std::string> cells;
  for (const std::vector<std::string>& row : table.rows) {
    const auto [found, added] = position.try_emplace(row[column], values.size());
    if (added) values.push_back(row[column]);
    indices.push_back(found->second);
    cells.push_back(row[column]);
  }
  ordered_json out{{"name", table.columns[column]}};
  if (values.size() * 2 < cells.size()) {
    out["values"] = values;
    out["indices"] = indices;
  } else {
    out["cells"] = cells;
  }
  return out;
}

// Commands by point: each line holds "-o POINT".
ordered_json commands_json(const fs::path& path) {
  ordered_json out = ordered_json::object();
  if (!path_exists(path)) return out;
  const std::string text = read_file(path);
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    if (const std::size_t option = line.find(" -o "); option != std::string::npos) {
      const std::size_t id = option + 4;
      out[line.substr(id, line.find(' ', id) - id)] = line;
    }
    begin = end + 1;
  }
  return out;
}

// One drawing for each topology of the rows, at its largest number of GPUs.
std::vector<Drawing> draw_topologies(const CsvTable& table, const json& facts) {
  if (facts.is_null()) {
    return {{"not drawn", "", "The topologies cannot be drawn: the folder holds no sweep.json."}};
  }
  std::map<std::string, std::size_t> largest;  // topology -> row
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    if (table.text(row, "status") != "ok") continue;
    const auto [found, added] = largest.try_emplace(table.text(row, "topology_name"), row);
    const auto gpus = [&](std::size_t r) { return table.number(r, "num_gpus").value_or(0.0); };
    if (gpus(row) > gpus(found->second)) found->second = row;
  }
  std::vector<Drawing> drawings;
  for (const auto& [name, row] : largest) {
    if (drawings.size() == kMaxDrawings) {
      drawings.push_back(
          {"more topologies", "",
           fmt::format("{} more topologies are not drawn.", largest.size() - kMaxDrawings)});
      break;
    }
    std::vector<Override> overrides;
    for (const std::string& text : facts["overrides"].get<std::vector<std::string>>()) {
      overrides.push_back(parse_override(text));
    }
    for (const std::string& column : table.columns) {
      if (!column.starts_with(kAxisPrefix)) continue;
      overrides.push_back({column.substr(kAxisPrefix.size()), table.text(row, column)});
    }
    drawings.push_back(draw_topology(facts["base_yaml"].get<std::string>(),
                                     facts["base"].get<std::string>(), overrides));
    if (!drawings.back().svg.empty()) {
      drawings.back().title += fmt::format(" (point {})", table.text(row, "point"));
    }
  }
  return drawings;
}

std::string axes_text(const CsvTable& table) {
  std::string text;
  for (const std::string& column : table.columns) {
    if (!column.starts_with(kAxisPrefix)) continue;
    std::set<std::string> values;
    for (std::size_t row = 0; row < table.rows.size(); ++row)
      values.insert(table.text(row, column));
    text +=
        fmt::format("{}{} ({} value{})", text.empty() ? "" : ", ",
                    column.substr(kAxisPrefix.size()), values.size(), values.size() > 1 ? "s" : "");
  }
  return text;
}

}  // namespace

Page sweep_page(const fs::path& folder) {
  const CsvTable table = read_rows(folder / "sweep.csv");
  const json facts = read_facts(folder / "sweep.json");
  Page page;
  const fs::path name = fs::absolute(folder).lexically_normal();
  page.title = (name.has_filename() ? name : name.parent_path()).filename().string() + " (sweep)";
  if (!facts.is_null()) {
    page.title = fs::path(facts["base"].get<std::string>()).stem().string() + " (sweep)";
  }
  page.subtitle = "axes: " + axes_text(table);
  page.summary = sweep_summary(table, facts);
  page.drawings = draw_topologies(table, facts);
  page.script = "sweep.js";
  page.data["kind"] = "sweep";
  page.data["columns"] = ordered_json::array();
  for (std::size_t column = 0; column < table.columns.size(); ++column) {
    page.data["columns"].push_back(column_json(table, column));
  }
  page.data["baseline"] = facts.is_null() ? ordered_json(nullptr) : ordered_json(facts["baseline"]);
  page.data["base"] = facts.is_null() ? "" : facts["base"].get<std::string>();
  page.data["configuration"] = facts.is_null() ? "" : facts["base_yaml"].get<std::string>();
  page.data["commands"] = commands_json(folder / "commands.txt");
  return page;
}

}  // namespace coterie
