#include "core/table.hpp"

#include <algorithm>
#include <string_view>

namespace coterie {
namespace {

constexpr std::string_view kGap = "  ";
constexpr std::size_t kLeastWrapped = 20;  // characters of a line of broken text

// Number of code points, so that "µ" or "±" do not shift a column.
std::size_t display_width(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// The text in lines of at most `width`, broken at spaces; a longer word has a line of its own.
std::vector<std::string> wrap(const std::string& text, std::size_t width) {
  std::vector<std::string> lines(1);
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (lines.back().empty()) {
      lines.back() = word;
    } else if (display_width(lines.back()) + 1 + display_width(word) <= width) {
      lines.back() += " " + word;
    } else {
      lines.push_back(word);
    }
    begin = end + 1;
  }
  return lines;
}

bool is_left_aligned(const Table& table, std::size_t column) {
  return std::find(table.left_aligned.begin(), table.left_aligned.end(), column) !=
         table.left_aligned.end();
}

}  // namespace

std::string render(const Table& table, std::size_t max_width) {
  const std::size_t num_columns = table.header.size();
  std::vector<std::size_t> widths(num_columns, 0);
  const auto for_each_cell = [&](std::size_t column, const auto& visit) {
    visit(table.header[column]);
    for (const auto& row : table.rows) visit(row[column]);
  };
  for (std::size_t i = 0; i < num_columns; ++i) {
    for_each_cell(
        i, [&](const std::string& cell) { widths[i] = std::max(widths[i], display_width(cell)); });
  }
  // Words that do not fit beside the first column are broken into lines.
  std::vector<bool> wrapped(num_columns, false);
  for (std::size_t i = 1; i < num_columns; ++i) {
    const std::size_t taken = widths[0] + kGap.size();
    if (!is_left_aligned(table, i) || taken + widths[i] <= max_width) continue;
    const std::size_t limit = std::max(kLeastWrapped, max_width - std::min(taken, max_width));
    wrapped[i] = true;
    widths[i] = 0;
    for_each_cell(i, [&](const std::string& cell) {
      for (const std::string& line : wrap(cell, limit)) {
        widths[i] = std::max(widths[i], display_width(line));
      }
    });
  }
  std::vector<std::string> rule;
  for (const std::size_t width : widths) rule.emplace_back(width, '-');

  std::string out;
  // One row of a block: the first column, then columns [begin, end).
  const auto print = [&](const std::vector<std::string>& cells, std::size_t begin,
                         std::size_t end) {
    std::vector<std::size_t> columns;
    if (!cells.empty()) columns.push_back(0);
    for (std::size_t i = begin; i < end; ++i) columns.push_back(i);
    std::vector<std::vector<std::string>> lines;  // of each column
    std::size_t num_lines = 1;
    for (const std::size_t i : columns) {
      lines.push_back(wrapped[i] ? wrap(cells[i], widths[i]) : std::vector{cells[i]});
      num_lines = std::max(num_lines, lines.back().size());
    }
    for (std::size_t n = 0; n < num_lines; ++n) {
      std::string line;
      for (std::size_t c = 0; c < columns.size(); ++c) {
        const std::string cell = n < lines[c].size() ? lines[c][n] : "";
        const std::string padding(widths[columns[c]] - display_width(cell), ' ');
        if (c > 0) line += kGap;
        line += is_left_aligned(table, columns[c]) ? cell + padding : padding + cell;
      }
      while (!line.empty() && line.back() == ' ') line.pop_back();
      out += line + "\n";
    }
  };

  std::size_t begin = std::min<std::size_t>(1, num_columns);
  do {
    // As many columns as fit; at least one.
    std::size_t end = begin;
    std::size_t width = widths.empty() ? 0 : widths[0];
    while (end < num_columns && (end == begin || width + kGap.size() + widths[end] <= max_width)) {
      width += kGap.size() + widths[end++];
    }
    if (!out.empty()) out += "\n";
    print(table.header, begin, end);
    print(rule, begin, end);
    for (const auto& row : table.rows) print(row, begin, end);
    begin = end;
  } while (begin < num_columns);
  return out;
}

}  // namespace coterie
