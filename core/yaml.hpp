#pragma once
// Strict YAML: every key is asked for exactly once, everything else is an error with file, line and
// column. Values are read through typed accessors, quantities with their units.
//
//   const YamlValue root = load_yaml(path, overrides);
//   YamlMap map = root.as_map();
//   const auto ranks = map.required("ranks").as_integer(1, 1 << 20);
//   if (const auto seed = map.optional("seed")) { ... }
//   map.finish();   // throws if the file holds a key nobody asked for

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "core/units.hpp"

namespace coterie {

class YamlMap;

// One node of a document, with its place in the file.
class YamlValue {
 public:
  struct Node;  // wraps yaml-cpp, which stays out of this header
  explicit YamlValue(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

  [[nodiscard]] bool is_map() const;
  [[nodiscard]] bool is_list() const;
  [[nodiscard]] bool is_scalar() const;

  [[nodiscard]] YamlMap as_map() const;
  [[nodiscard]] std::vector<YamlValue> as_list() const;
  [[nodiscard]] std::string as_string() const;  // any scalar; not empty
  [[nodiscard]] bool as_bool() const;           // true or false
  [[nodiscard]] std::int64_t as_integer(std::int64_t min, std::int64_t max) const;
  [[nodiscard]] double as_number(double min, double max) const;  // a plain number, no unit
  [[nodiscard]] Seconds as_seconds() const;
  [[nodiscard]] Bytes as_bytes() const;
  [[nodiscard]] Bandwidth as_bandwidth() const;
  [[nodiscard]] ComputeRate as_compute_rate() const;
  // One of `choices`, returned as its index.
  [[nodiscard]] std::size_t as_choice(const std::vector<std::string>& choices) const;

  // "FILE:LINE:COLUMN: key a.b.c", or what the override that gave it says of its place.
  [[nodiscard]] std::string where() const;
  // "FILE:LINE:COLUMN"; the file alone for what overrides added.
  [[nodiscard]] std::string position() const;
  [[nodiscard]] const std::string& file() const;
  [[nodiscard]] const std::string& path() const;  // the dotted keys that lead here
  [[nodiscard]] bool is_overridden() const;       // an override gave it
  // InputError at this place.
  [[nodiscard]] InputError error(std::string_view found, std::string_view expected) const;
  // The value as compact text, for error messages.
  [[nodiscard]] std::string excerpt() const;

 private:
  friend class YamlMap;
  friend std::string dump_yaml(const YamlValue& value);
  std::shared_ptr<const Node> node_;
};

// A map whose keys must all be asked for. Duplicates are refused on construction.
class YamlMap {
 public:
  explicit YamlMap(YamlValue value);

  [[nodiscard]] YamlValue required(const std::string& key);
  [[nodiscard]] std::optional<YamlValue> optional(const std::string& key);
  [[nodiscard]] bool has(const std::string& key) const;
  [[nodiscard]] std::vector<std::string> keys() const;  // in file order
  // Throws InputError for the first key that was never asked for, listing the known ones.
  void finish() const;
  [[nodiscard]] const YamlValue& value() const { return value_; }

 private:
  YamlValue value_;
  std::vector<std::pair<std::string, YamlValue>> entries_;
  std::vector<YamlValue> key_places_;  // parallel to entries_
  std::set<std::string> asked_;
};

// "KEY=VALUE" from --set: KEY is a dotted path ("fabric.oversubscription", "runs.0.dispatch"),
// VALUE is YAML text. Missing maps on the way are created; the reader then applies its checks.
struct Override {
  std::string key;
  std::string value;
  // Where it was given, for messages. A document may hold overrides of another, which then stand
  // below a key of its own: `parent` is that key with its point ("topology."), `position` the
  // FILE:LINE:COLUMN there. Both are empty for --set and a key of the document itself.
  std::string parent = {};
  std::string position = {};

  // How messages name a key of the overridden document that this override gave, such as `key`.
  [[nodiscard]] std::string where(std::string_view path) const;
  // Whether both set the same, wherever they were given.
  bool operator==(const Override& other) const { return key == other.key && value == other.value; }
};
Override parse_override(std::string_view text);

// Parses a document and applies the overrides. Throws InputError for unreadable files, syntax
// errors (with line and column), empty documents, and overrides that do not fit the document.
YamlValue load_yaml(const std::filesystem::path& path, const std::vector<Override>& overrides = {});
YamlValue parse_yaml(std::string_view text, const std::string& name,
                     const std::vector<Override>& overrides = {});

// The document as YAML text with the overrides in place: the effective configuration.
std::string dump_yaml(const YamlValue& value);

}  // namespace coterie
