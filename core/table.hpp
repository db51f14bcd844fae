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

// Rendered with two spaces between columns and a rule under the header; ends with a newline.
std::string render(const Table& table);

}  // namespace coterie
