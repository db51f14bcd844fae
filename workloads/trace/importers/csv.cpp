// llama.cpp-style CSV: one line `layer,"space separated ids"` per (token, layer). A layer's lines
// in order are the tokens in order; one file is one sequence. A header line is skipped.

#include <fmt/format.h>

#include <charconv>
#include <fstream>
#include <map>
#include <string_view>

#include "core/error.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

template <class T>
T parse_integer(std::string_view text, const std::string& where, std::string_view expected) {
  T value{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) {
    throw InputError(where, fmt::format("\"{}\"", text), expected);
  }
  return value;
}

std::string_view trim(std::string_view text, std::string_view unwanted) {
  const std::size_t begin = text.find_first_not_of(unwanted);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(unwanted) - begin + 1);
}

}  // namespace

Imported import_csv(const std::filesystem::path& path, const ImportOptions& options) {
  std::ifstream in(path);
  if (!in) throw InputError(fmt::format("{}: cannot be read", path.string()));
  RowTable table;
  std::map<std::uint32_t, std::uint64_t> num_tokens;  // so far, per layer
  std::string line;
  std::uint64_t line_number = 0;
  while (std::getline(in, line)) {
    ++line_number;
    const std::string where = fmt::format("{}: line {}", path.string(), line_number);
    const std::string_view text = trim(line, " \t\r");
    if (text.empty()) continue;
    const std::size_t comma = text.find(',');
    if (comma == std::string_view::npos) {
      throw InputError(where, fmt::format("\"{}\"", text.substr(0, 60)),
                       "layer,\"space separated ids\"");
    }
    const std::string_view layer_text = trim(text.substr(0, comma), " \t\"");
    if (line_number == 1 && layer_text.find_first_of("0123456789") == std::string_view::npos) {
      continue;
    }
    const auto layer = parse_integer<std::uint32_t>(layer_text, where, "a layer number");
    std::vector<std::int64_t> experts;
    std::string_view rest = trim(text.substr(comma + 1), " \t\"");
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find(' '), rest.size());
      experts.push_back(parse_integer<std::int64_t>(rest.substr(0, end), where, "an expert id"));
      rest = trim(rest.substr(end), " ");
    }
    table.add(0, num_tokens[layer]++, layer, experts, {}, where);
  }
  return table.finish(resolve_num_experts({}, options, path.string()), options, path.string());
}

}  // namespace coterie
