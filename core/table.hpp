#pragma once
// Plain-text tables for stdout.

#include <cstddef>
#include <string>
#include <vector>

namespace coterie {

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;   // every row has header.size() cells
  std::vector<std::size_t> left_aligned = {0};  // columns of words; the others are right-aligned
};

inline constexpr std::size_t kTableWidth = 100;  // characters

// Rendered with two spaces between columns and a rule under the header; ends with a newline. A table
// that is wider than `max_width` folds: the columns that do not fit follow in further blocks, each
// after an empty line and behind the first column, which names the rows. Words in a left-aligned
// column that do not fit even so are broken at spaces into lines below each other.
std::string render(const Table& table, std::size_t max_width = kTableWidth);

}  // namespace coterie
