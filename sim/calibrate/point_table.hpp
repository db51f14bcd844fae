#pragma once
// A CSV table of measured points; cells are asked for with what they must be, and what cannot be a
// measurement is refused with file, line and column.

#include <cstdint>
#include <string>

#include "core/csv.hpp"

namespace coterie {

class PointTable {
 public:
  // Throws InputError, also for a table without rows.
  PointTable(const std::string& text, std::string name);

  [[nodiscard]] std::size_t num_rows() const { return table_.rows.size(); }
  [[nodiscard]] bool has(const std::string& column) const {
    return table_.find(column).has_value();
  }
  // Throws InputError for a column that the table does not have.
  [[nodiscard]] std::string text(std::size_t row, const std::string& column) const;
  // "FILE:LINE: COLUMN".
  [[nodiscard]] std::string place(std::size_t row, const std::string& column) const;
  // A number above zero.
  [[nodiscard]] double positive(std::size_t row, const std::string& column) const;
  // A whole number above zero.
  [[nodiscard]] std::uint32_t count(std::size_t row, const std::string& column) const;

 private:
  std::string name_;
  CsvTable table_;
};

}  // namespace coterie
