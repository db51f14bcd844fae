#pragma once
// JSON of placement files with the place of every value, for messages.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "core/json.hpp"

namespace coterie {

// A value with its place: "p.json: layers[3].rank_experts".
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, std::string where)
      : value_(&value), where_(std::move(where)) {}

  [[nodiscard]] std::size_t size() const { return value_->size(); }

  [[nodiscard]] InputError error(std::string_view found, std::string_view expected) const {
    return InputError(where_, found, expected);
  }

  [[nodiscard]] std::string excerpt() const { return json_excerpt(*value_, 40); }

  [[nodiscard]] JsonValue at(std::size_t i) const {
    return {(*value_)[i], fmt::format("{}[{}]", where_, i)};
  }

  void expect_list() const {
    if (!value_->is_array()) throw error(excerpt(), "a list");
  }

  void expect_map() const {
    if (!value_->is_object()) throw error(excerpt(), "a map");
  }

  // A map with exactly these keys.
  void expect_keys(const std::vector<std::string>& keys) const {
    expect_map();
    for (const auto& entry : value_->items()) {
      if (std::find(keys.begin(), keys.end(), entry.key()) == keys.end()) {
        throw error(fmt::format("the key \"{}\"", entry.key()),
                    fmt::format("only the keys {}", fmt::join(keys, ", ")));
      }
    }
    for (const std::string& key : keys) {
      if (!value_->contains(key)) {
        throw error(fmt::format("no key \"{}\"", key),
                    fmt::format("the keys {}", fmt::join(keys, ", ")));
      }
    }
  }

  [[nodiscard]] JsonValue key(const std::string& name) const {
    return {value_->at(name), fmt::format("{}{}{}", where_, top_ ? ": " : ".", name)};
  }

  // The same for a map that may lack it.
  [[nodiscard]] JsonValue required(const std::string& name) const {
    if (!value_->contains(name)) {
      throw error(fmt::format("no key \"{}\"", name), fmt::format("the key {}", name));
    }
    return key(name);
  }

  [[nodiscard]] std::vector<std::string> keys() const {
    std::vector<std::string> names;
    for (const auto& entry : value_->items()) names.push_back(entry.key());
    return names;
  }

  [[nodiscard]] bool is_list() const { return value_->is_array(); }
  [[nodiscard]] bool is_number() const { return value_->is_number(); }

  [[nodiscard]] std::uint32_t integer(std::uint32_t min, std::uint32_t max) const {
    const bool fits = value_->is_number_unsigned() && value_->get<std::uint64_t>() >= min &&
                      value_->get<std::uint64_t>() <= max;
    if (!fits) throw error(excerpt(), fmt::format("an integer from {} to {}", min, max));
    return value_->get<std::uint32_t>();
  }

  [[nodiscard]] std::string string() const {
    if (!value_->is_string()) throw error(excerpt(), "a string");
    return value_->get<std::string>();
  }

  [[nodiscard]] bool has(const std::string& name) const {
    return value_->is_object() && value_->contains(name);
  }

  JsonValue& mark_top() {
    top_ = true;
    return *this;
  }

 private:
  const nlohmann::json* value_;
  std::string where_;
  bool top_ = false;
};

// Parses a document; `name` stands for the file. Throws InputError with line and column, and for
// duplicate keys, which the library would silently overwrite.
nlohmann::json parse_placement_json(std::string_view text, const std::string& name);

}  // namespace coterie
