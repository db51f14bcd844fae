#pragma once
// Plain-text tables for stdout: first column left-aligned, the others right-aligned.

#include <string>
#include <vector>

namespace coterie {

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // every row has header.size() cells
};

// Rendered with two spaces between columns and a rule under the header; ends with a newline.
std::string render(const Table& table);

}  // namespace coterie
