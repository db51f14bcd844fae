#include "workloads/placement/json_value.hpp"

#include <set>

namespace coterie {

using nlohmann::json;

json parse_placement_json(std::string_view text, const std::string& name) {
  std::vector<std::set<std::string>> open_maps;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_maps.emplace_back();
    if (event == json::parse_event_t::object_end) open_maps.pop_back();
    if (event == json::parse_event_t::key &&
        !open_maps.back().insert(parsed.get<std::string>()).second) {
      throw InputError(name, fmt::format("the key '{}' twice", parsed.get<std::string>()),
                       "every key once");
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    const std::size_t end = std::min(error.byte, text.size() + 1);
    const std::string_view before = text.substr(0, end > 0 ? end - 1 : 0);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const std::size_t column = before.size() - (before.rfind('\n') + 1) + 1;
    throw InputError(fmt::format("{}:{}:{}", name, line, column),
                     error.byte > text.size() ? "the end of the file" : "text that is not JSON",
                     "a placement in JSON");
  }
}

}  // namespace coterie
