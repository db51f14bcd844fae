#pragma once
// Comma-separated values (RFC 4180), as the results are written in.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace coterie {

struct CsvTable {
  std::vector<std::string> columns;            // names of the first line, each once
  std::vector<std::vector<std::string>> rows;  // every row has columns.size() cells

  [[nodiscard]] std::optional<std::size_t> find(std::string_view column) const;
  // The cell's text; empty for a column that the table does not have.
  [[nodiscard]] std::string text(std::size_t row, std::string_view column) const;
  // Absent for an empty cell or one that is no number.
  [[nodiscard]] std::optional<double> number(std::size_t row, std::string_view column) const;
};

// Throws InputError with `name` and the line: no header, a row of another length, an open quote, a
// column twice.
CsvTable parse_csv(std::string_view text, const std::string& name);

}  // namespace coterie
