#include "sim/report/csv.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "core/error.hpp"

namespace coterie {
namespace {

// One record from `position` on, which moves behind its line break.
std::vector<std::string> read_record(std::string_view text, std::size_t& position,
                                     std::size_t& line, const std::string& name) {
  std::vector<std::string> cells(1);
  const std::size_t first_line = line;
  bool quoted = false;
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
    } else if (c == '"' && cells.back().empty()) {
      quoted = true;
    } else if (c == ',') {
      cells.emplace_back();
    } else if (c == '\n') {
      return cells;
    } else if (c != '\r') {
      cells.back() += c;
    }
  }
  if (quoted) {
    throw InputError(fmt::format("{}:{}", name, first_line), "a quote that is not closed",
                     "a quote at the end of the cell");
  }
  return cells;
}

}  // namespace

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
  const std::string cell = text(row, column);
  double value = 0.0;
  const auto [end, status] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (cell.empty() || status != std::errc{} || end != cell.data() + cell.size()) {
    return std::nullopt;
  }
  return value;
}

CsvTable parse_csv(std::string_view text, const std::string& name) {
  CsvTable table;
  std::size_t position = 0;
  std::size_t line = 1;
  if (text.empty()) throw InputError(name, "an empty file", "a line of column names");
  table.columns = read_record(text, position, line, name);
  for (const std::string& column : table.columns) {
    if (std::count(table.columns.begin(), table.columns.end(), column) > 1) {
      throw InputError(name + ":1", fmt::format("the column \"{}\" twice", column), "each once");
    }
  }
  while (position < text.size()) {
    const std::string where = fmt::format("{}:{}", name, line);
    std::vector<std::string> cells = read_record(text, position, line, name);
    if (cells.size() != table.columns.size()) {
      throw InputError(where, fmt::format("{} cells", cells.size()),
                       fmt::format("{}, as many as columns", table.columns.size()));
    }
    table.rows.push_back(std::move(cells));
  }
  return table;
}

}  // namespace coterie
