#include "core/json.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/json_fault.hpp"

namespace coterie {
namespace {

// The word at which a parser stopped, where it is one of the numbers that Python's json.dump writes
// and JSON does not have; else empty.
std::string_view unwritable_number(std::string_view text, std::size_t byte) {
  const std::size_t from = text.find_last_of(" \t\r\n,[:{", byte > 1 ? byte - 2 : 0);
  const std::string_view word = text.substr(from == std::string_view::npos ? 0 : from + 1, 9);
  for (const std::string_view number : {"-Infinity", "Infinity", "NaN"}) {
    if (word.starts_with(number)) return number;
  }
  return {};
}

template <class Json>
Json parse_checked(std::string_view text, const std::string& where, std::string_view expected,
                   const typename Json::parser_callback_t& callback) {
  if (const auto problem = too_deep(text)) {
    throw InputError(fmt::format("{}: byte {}", where, problem->byte), problem->found, expected);
  }
  try {
    return Json::parse(text, callback);
  } catch (const nlohmann::json::parse_error& error) {
    const std::string place = fmt::format("{}: byte {}", where, error.byte);
    const std::string_view number = unwritable_number(text, error.byte);
    if (!number.empty()) {
      throw InputError(place,
                       fmt::format("{}, which Python writes for a number that is not finite and "
                                   "JSON does not have",
                                   number),
                       "finite numbers (for router logits: those before a mask sets experts to "
                       "-inf)");
    }
    throw InputError(place, "text that is not JSON (damaged or truncated)", expected);
  } catch (const nlohmann::json::out_of_range& error) {
    throw InputError(where, beyond_double(error), "numbers within double precision");
  }
}

// Appends a value's text until `out` is longer than `length`. Levels are bounded by what it shows:
// each adds at least one character.
void append_excerpt(const nlohmann::json& value, std::size_t length, std::string& out) {
  if (out.size() > length) return;
  if (value.is_array() || value.is_object()) {
    out += value.is_array() ? '[' : '{';
    bool first = true;
    for (const auto& entry : value.items()) {
      if (out.size() > length) return;
      if (!first) out += ',';
      first = false;
      if (value.is_object()) {
        out += fmt::format("\"{}\":", entry.key().substr(0, length));
      }
      append_excerpt(entry.value(), length, out);
    }
    out += value.is_array() ? ']' : '}';
  } else if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    out += nlohmann::json(text.substr(0, length + 1))
               .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  } else {
    out += value.dump();
  }
}

}  // namespace

std::optional<JsonProblem> too_deep(std::string_view text) {
  std::size_t depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) {
        return JsonProblem{
            fmt::format("lists and maps more than {} levels inside each other", kMaxJsonDepth),
            i + 1};
      }
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return std::nullopt;
}

std::string beyond_double(const nlohmann::json::out_of_range& error) {
  // "[json.exception.out_of_range.406] number overflow parsing '1e999'"
  const std::string message = error.what();
  const std::size_t quote = message.find('\'');
  if (quote == std::string::npos) return "a number beyond its type";
  const std::string number = message.substr(quote);
  return fmt::format("the number {}", number.size() <= 60 ? number : number.substr(0, 57) + "...'");
}

std::string json_fault(const nlohmann::json::exception& error) {
  // "[json.exception.out_of_range.403] key 'x' not found"
  const std::string_view text = error.what();
  const std::size_t id = text.find("] ");
  const std::string_view fault = id == std::string_view::npos ? text : text.substr(id + 2);
  constexpr std::string_view kKey = "key '", kMissing = "' not found";
  if (fault.starts_with(kKey) && fault.ends_with(kMissing)) {
    const std::size_t length = fault.size() - kKey.size() - kMissing.size();
    return fmt::format("no key \"{}\"", fault.substr(kKey.size(), length));
  }
  constexpr std::string_view kMust = "type must be ", kIs = ", but is ";
  if (const std::size_t is = fault.find(kIs);
      fault.starts_with(kMust) && is != std::string_view::npos) {
    return fmt::format("{} in place of {}", fault.substr(is + kIs.size()),
                       fault.substr(kMust.size(), is - kMust.size()));
  }
  constexpr std::string_view kNoMap = "cannot use at() with ";
  if (fault.starts_with(kNoMap)) {
    return fmt::format("{} in place of object", fault.substr(kNoMap.size()));
  }
  return fmt::format("\"{}\"", fault);
}

nlohmann::json parse_json(std::string_view text, const std::string& where,
                          std::string_view expected) {
  return parse_checked<nlohmann::json>(text, where, expected, nullptr);
}

nlohmann::json parse_json(std::string_view text, const std::string& where,
                          std::string_view expected,
                          const nlohmann::json::parser_callback_t& callback) {
  return parse_checked<nlohmann::json>(text, where, expected, callback);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& where,
                                          std::string_view expected) {
  return parse_checked<nlohmann::ordered_json>(text, where, expected, nullptr);
}

nlohmann::json try_parse_json(std::string_view text) {
  if (too_deep(text)) return nlohmann::json(nlohmann::json::value_t::discarded);
  return nlohmann::json::parse(text, nullptr, false);
}

std::string json_excerpt(const nlohmann::json& value, std::size_t length) {
  std::string out;
  append_excerpt(value, length, out);
  if (out.size() > length) out = out.substr(0, length) + "...";
  return out;
}

std::string dump_json(const nlohmann::json& document, int indent) {
  return document.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string dump_json(const nlohmann::ordered_json& document, int indent) {
  return document.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace coterie
