#pragma once
// JSON read within stated limits and written whatever the texts hold.
//
// The library's own parser throws for numbers that no double holds, and printing or copying a value
// recurses once per level: a file of 100,000 brackets would end the process. Everything that reads a
// file goes through here instead.

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace coterie {

// Lists and maps inside each other, at most. No format of the project needs more than eight.
inline constexpr std::size_t kMaxJsonDepth = 64;

// Why a text is no document, and at which byte of it, from 1.
struct JsonProblem {
  std::string found;
  std::size_t byte = 0;
};

// The text's first level deeper than kMaxJsonDepth, or nothing. Looks at brackets and strings only.
std::optional<JsonProblem> too_deep(std::string_view text);

// "the number '1e999'": what the library's exception says of a number that no double holds.
std::string beyond_double(const nlohmann::json::out_of_range& error);

// The document. Throws InputError at "WHERE: byte N" for text that is no JSON or is cut short, for
// nesting beyond kMaxJsonDepth and for numbers beyond double precision (1e999).
nlohmann::json parse_json(std::string_view text, const std::string& where,
                          std::string_view expected = "a JSON value");
// The same with the library's callback, which sees values while they are parsed and may drop them.
nlohmann::json parse_json(std::string_view text, const std::string& where,
                          std::string_view expected,
                          const nlohmann::json::parser_callback_t& callback);

// The document, or the library's "discarded" value for a text that parse_json refuses.
nlohmann::json try_parse_json(std::string_view text);

// Keeps the order of keys as they were written.
nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& where,
                                          std::string_view expected = "a JSON value");

// A value as text of at most about `length` characters, for messages. Visits no more of the value
// than it shows.
std::string json_excerpt(const nlohmann::json& value, std::size_t length = 60);

// The document as text. Bytes that are not UTF-8 (a file's name may hold any) are written as U+FFFD.
std::string dump_json(const nlohmann::json& document, int indent = -1);
std::string dump_json(const nlohmann::ordered_json& document, int indent = -1);

}  // namespace coterie
