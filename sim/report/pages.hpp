#pragma once
// The parts of a report's page, and what puts them together with the template, the style, the
// scripts and the plotting library that are compiled in.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/csv.hpp"
#include "core/results.hpp"
#include "core/yaml.hpp"

namespace coterie {

// A cluster drawn, or why it is not.
struct Drawing {
  std::string title;
  std::string svg;      // empty: not drawn
  std::string problem;  // the sentence then
};

struct Page {
  std::string title;
  std::string subtitle;
  std::vector<std::string> summary;  // paragraphs of HTML
  std::vector<Drawing> drawings;
  nlohmann::ordered_json data;  // what the scripts show
  std::string script;           // experiment.js or sweep.js
};

// The HTML document.
std::string render(const Page& page);

// Throw InputError for files that are missing, damaged or of another version.
Page experiment_page(const std::filesystem::path& folder, const std::filesystem::path& output);
// Of results of whole steps, of which at least one succeeded.
Page step_page(const std::filesystem::path& folder, const std::filesystem::path& output,
               const Results& results);
Page sweep_page(const std::filesystem::path& folder);

// What the results say, in words.
std::vector<std::string> experiment_summary(const Results& results);
std::vector<std::string> sweep_summary(const CsvTable& table, const nlohmann::json& facts);

// Draws the cluster of an experiment given as YAML text, which may name a topology file relative to
// `where`. Never throws for a topology that cannot be read: a report is still worth having then.
Drawing draw_topology(const std::string& yaml, const std::filesystem::path& where,
                      const std::vector<Override>& overrides);

std::string escape_html(std::string_view text);

}  // namespace coterie
