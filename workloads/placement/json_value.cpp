#include "workloads/placement/json_value.hpp"

#include <set>

#include "core/json.hpp"

namespace coterie {

using nlohmann::json;

json parse_placement_json(std::string_view text, const std::string& name) {
  std::vector<std::set<std::string>> open_maps;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_maps.emplace_back();
    if (event == json::parse_event_t::object_end) open_maps.pop_back();
    if (event == json::parse_event_t::key &&
        !open_maps.back().insert(parsed.get<std::string>()).second) {
      throw InputError(name, fmt::format("the key \"{}\" twice", parsed.get<std::string>()),
                       "every key once");
    }
    return true;
  };
  const auto place = [&](std::size_t byte) {
    const std::size_t end = std::min(byte, text.size() + 1);
    const std::string_view before = text.substr(0, end > 0 ? end - 1 : 0);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const std::size_t column = before.size() - (before.rfind('\n') + 1) + 1;
    return fmt::format("{}:{}:{}", name, line, column);
  };
  constexpr const char* kExpected = "a placement in JSON";
  if (const auto problem = too_deep(text)) {
    throw InputError(place(problem->byte), problem->found, kExpected);
  }
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    throw InputError(place(error.byte),
                     error.byte > text.size() ? "the end of the file" : "text that is not JSON",
                     kExpected);
  } catch (const json::out_of_range& error) {
    throw InputError(name, beyond_double(error), "numbers within double precision");
  }
}

}  // namespace coterie
