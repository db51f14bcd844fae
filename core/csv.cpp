#include "core/csv.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/counted.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

// Apostrophes in front count as part of the mark, so that texts which begin with one come back.
bool looks_like_formula(std::string_view text) {
  const std::size_t first = text.find_first_not_of('\'');
  return first != std::string_view::npos &&
         std::string_view("=+-@\t\r").find(text[first]) != std::string_view::npos &&
         !parse_number(text);
}

struct Record {
  std::vector<std::string> cells{""};
  bool blank = true;  // nothing but the line break
};

// One record from `position` on, which moves behind its line break.
Record read_record(std::string_view text, std::size_t& position, std::size_t& line,
                   const std::string& name) {
  Record record;
  std::vector<std::string>& cells = record.cells;
  const std::size_t first_line = line;
  bool quoted = false;
  bool was_quoted = false;  // the current cell
  const auto end_cell = [&] {
    std::string& cell = cells.back();
    if (was_quoted && !cell.empty() && cell.front() == '\'' && looks_like_formula(cell)) {
      cell.erase(0, 1);
    }
    was_quoted = false;
  };
  while (position < text.size()) {
    const char c = text[position++];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        cells.back() += c;
      } else if (position < text.size() && text[position] == '"') {
        cells.back() += '"';
        ++position;
      } else {
        quoted = false;
      }
    } else if (c == '"' && cells.back().empty() && !was_quoted) {
      quoted = was_quoted = true;
      record.blank = false;
    } else if (c == ',') {
      end_cell();
      cells.emplace_back();
      record.blank = false;
    } else if (c == '\n') {
      break;
    } else if (c != '\r') {
      cells.back() += c;
      record.blank = false;
    }
  }
  if (quoted) {
    throw InputError(fmt::format("{}:{}", name, first_line), "a quote that is not closed",
                     "a quote at the end of the cell");
  }
  end_cell();
  return record;
}

std::string csv_cell(const std::string& text) {
  const bool formula = looks_like_formula(text);
  if (!formula && text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = formula ? "\"'" : "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
  return out;
}

}  // namespace

std::optional<double> parse_number(std::string_view text) {
  double value = 0.0;
  const char* const end = text.data() + text.size();
  const auto [last, status] = std::from_chars(text.data(), end, value);
  if (text.empty() || status != std::errc{} || last != end || !std::isfinite(value)) {
    return std::nullopt;
  }
  return value;
}

std::optional<std::size_t> CsvTable::find(std::string_view column) const {
  const auto found = std::find(columns.begin(), columns.end(), column);
  if (found == columns.end()) return std::nullopt;
  return static_cast<std::size_t>(found - columns.begin());
}

std::string CsvTable::text(std::size_t row, std::string_view column) const {
  const auto idx = find(column);
  return idx ? rows[row][*idx] : "";
}

std::optional<double> CsvTable::number(std::size_t row, std::string_view column) const {
  const auto idx = find(column);
  return idx ? parse_number(rows[row][*idx]) : std::nullopt;
}

CsvTable parse_csv(std::string_view text, const std::string& name) {
  CsvTable table;
  std::size_t position = 0;
  std::size_t line = 1;
  while (position < text.size()) {
    const std::size_t first_line = line;
    Record record = read_record(text, position, line, name);
    if (record.blank) continue;
    const std::string where = fmt::format("{}:{}", name, first_line);
    if (table.columns.empty()) {
      table.columns = std::move(record.cells);
      for (const std::string& column : table.columns) {
        if (std::count(table.columns.begin(), table.columns.end(), column) > 1) {
          throw InputError(where, fmt::format("the column \"{}\" twice", column), "each once");
        }
      }
      continue;
    }
    if (record.cells.size() != table.columns.size()) {
      throw InputError(where, counted(record.cells.size(), "cell"),
                       fmt::format("{}, as many as columns", table.columns.size()));
    }
    table.rows.push_back(std::move(record.cells));
    table.lines.push_back(first_line);
  }
  if (table.columns.empty()) throw InputError(name, "an empty file", "a line of column names");
  return table;
}

std::string csv_line(const std::vector<std::string>& cells) {
  // A lone empty cell would read as a blank line.
  if (cells.size() == 1 && cells.front().empty()) return "\"\"\n";
  std::string out;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (i > 0) out += ',';
    out += csv_cell(cells[i]);
  }
  out += '\n';
  return out;
}

}  // namespace coterie
