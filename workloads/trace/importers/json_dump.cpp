// A JSON dump of one prefill and its decode steps: a list whose first entry maps layer numbers to
// null (dense) or a list of k ids per prompt token, and whose further entries do so for one decoded
// token each. One file is one sequence.

#include <fmt/format.h>

#include <charconv>
#include <map>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

std::uint32_t layer_number(const std::string& key, const std::string& where) {
  std::uint32_t layer = 0;
  const auto [end, status] = std::from_chars(key.data(), key.data() + key.size(), layer);
  if (status != std::errc{} || end != key.data() + key.size()) {
    throw InputError(where, fmt::format("key \"{}\"", key), "a layer number");
  }
  return layer;
}

}  // namespace

bool is_json_dump(const FileHead& head) {  // [{"0": null, or [{"1": [[
  std::string start;
  for (const char c : head.text.substr(0, 4096)) {
    if (c != ' ' && c != '\t' && c != '\r' && c != '\n') start += c;
  }
  if (!start.starts_with("[{\"")) return false;
  const std::size_t end = start.find_first_not_of("0123456789", 3);
  return end > 3 && end != std::string::npos &&
         (start.compare(end, 6, "\":null") == 0 || start.compare(end, 4, "\":[[") == 0);
}

Imported import_json(const std::filesystem::path& path, const ImportOptions& options) {
  const nlohmann::json steps = parse_json(read_file(path), path.string());
  if (!steps.is_array() || steps.empty()) {
    throw InputError(path.string(), steps.is_array() ? "an empty list" : "no list",
                     "a list of one prefill and its decode steps");
  }
  RowTable table;
  std::uint64_t first_token = 0;
  for (std::size_t step = 0; step < steps.size(); ++step) {
    const std::string where = fmt::format("{}: entry {}", path.string(), step);
    if (!steps[step].is_object()) throw InputError(where, "no object", "a map from layer to rows");
    std::uint64_t num_tokens = 0;
    for (const auto& [key, rows] : steps[step].items()) {
      if (rows.is_null()) continue;
      const std::uint32_t layer = layer_number(key, where);
      const std::string place = fmt::format("{}, layer {}", where, layer);
      if (!rows.is_array()) throw InputError(place, "no list", "a list of k ids per token or null");
      // A decode step may hold its one row without the outer list.
      const bool bare = !rows.empty() && rows.front().is_number();
      const std::size_t count = bare ? 1 : rows.size();
      if (num_tokens != 0 && count != num_tokens) {
        throw InputError(place, counted(count, "token"),
                         fmt::format("{} as in the layers before", num_tokens));
      }
      num_tokens = count;
      for (std::size_t token = 0; token < count; ++token) {
        table.add(0, first_token + token, layer, json_ids(bare ? rows : rows[token], place), {},
                  place);
      }
    }
    first_token += num_tokens;
  }
  return table.finish(resolve_num_experts({}, options, path.string()), options, path.string());
}

}  // namespace coterie
