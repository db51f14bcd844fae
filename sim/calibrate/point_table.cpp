#include "sim/calibrate/point_table.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/error.hpp"
#include "core/excerpt.hpp"

namespace coterie {

PointTable::PointTable(const std::string& text, std::string name)
    : name_(std::move(name)), table_(parse_csv(text, name_)) {
  if (table_.rows.empty()) throw InputError(name_, "a table without rows", "measured points");
}

std::string PointTable::text(std::size_t row, const std::string& column) const {
  if (!table_.find(column)) {
    throw InputError(name_ + ":1",
                     "the columns " + excerpt(fmt::format("{}", fmt::join(table_.columns, ", "))),
                     fmt::format("a column {}", column));
  }
  return table_.text(row, column);
}

std::string PointTable::place(std::size_t row, const std::string& column) const {
  return fmt::format("{}:{}: {}", name_, table_.lines[row], column);
}

double PointTable::positive(std::size_t row, const std::string& column) const {
  const std::string cell = text(row, column);
  const std::optional<double> value = parse_number(cell);
  if (!value) throw InputError(place(row, column), fmt::format("\"{}\"", cell), "a number");
  if (*value <= 0.0) throw InputError(place(row, column), cell, "a value above zero");
  return *value;
}

std::uint32_t PointTable::count(std::size_t row, const std::string& column) const {
  const double value = positive(row, column);
  if (value != std::floor(value) || value > 1e9) {
    throw InputError(place(row, column), text(row, column), "a whole number");
  }
  return static_cast<std::uint32_t>(value);
}

}  // namespace coterie
