#pragma once
// Comma-separated values (RFC 4180), read and written by one pair of functions.
//
// Cells are quoted where a comma, a quote or a line break asks for it. A text that a spreadsheet
// would take for a formula (it begins with = + - @ or a control character and is not a number) is
// quoted with an apostrophe in front, which spreadsheets show and do not evaluate; reading takes
// the apostrophe off again, so that what was written comes back.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace coterie {

struct CsvTable {
  std::vector<std::string> columns;            // names of the first line, each once
  std::vector<std::vector<std::string>> rows;  // every row has columns.size() cells
  std::vector<std::size_t> lines;              // line on which each row begins, from 1

  [[nodiscard]] std::optional<std::size_t> find(std::string_view column) const;
  // The cell's text; empty for a column that the table does not have.
  [[nodiscard]] std::string text(std::size_t row, std::string_view column) const;
  // Absent for an empty cell or one that is no finite number.
  [[nodiscard]] std::optional<double> number(std::size_t row, std::string_view column) const;
};

// A finite decimal number and nothing else.
std::optional<double> parse_number(std::string_view text);

// Blank lines are skipped. Throws InputError with `name` and the line: no header, a row of another
// length, an open quote, a column twice.
CsvTable parse_csv(std::string_view text, const std::string& name);

// One record with its line break.
std::string csv_line(const std::vector<std::string>& cells);

}  // namespace coterie
