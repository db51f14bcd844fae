#include "core/table.hpp"

#include <algorithm>
#include <string_view>

namespace coterie {
namespace {

constexpr std::string_view kGap = "  ";

// Number of code points, so that "µ" or "±" do not shift a column.
std::size_t display_width(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string render(const Table& table, std::size_t max_width) {
  std::vector<std::size_t> widths(table.header.size(), 0);
  const auto widen = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      widths[i] = std::max(widths[i], display_width(cells[i]));
    }
  };
  widen(table.header);
  for (const auto& row : table.rows) widen(row);
  std::vector<std::string> rule;
  for (const std::size_t width : widths) rule.emplace_back(width, '-');

  std::string out;
  // One line of a block: the first column, then columns [begin, end).
  const auto print = [&](const std::vector<std::string>& cells, std::size_t begin,
                         std::size_t end) {
    std::string line;
    const auto add = [&](std::size_t i) {
      const std::string padding(widths[i] - display_width(cells[i]), ' ');
      if (i > 0) line += kGap;
      const bool left = std::find(table.left_aligned.begin(), table.left_aligned.end(), i) !=
                        table.left_aligned.end();
      line += left ? cells[i] + padding : padding + cells[i];
    };
    if (!cells.empty()) add(0);
    for (std::size_t i = begin; i < end; ++i) add(i);
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + "\n";
  };

  std::size_t begin = std::min<std::size_t>(1, widths.size());
  do {
    // As many columns as fit; at least one.
    std::size_t end = begin;
    std::size_t width = widths.empty() ? 0 : widths[0];
    while (end < widths.size() &&
           (end == begin || width + kGap.size() + widths[end] <= max_width)) {
      width += kGap.size() + widths[end++];
    }
    if (!out.empty()) out += "\n";
    print(table.header, begin, end);
    print(rule, begin, end);
    for (const auto& row : table.rows) print(row, begin, end);
    begin = end;
  } while (begin < widths.size());
  return out;
}

}  // namespace coterie
