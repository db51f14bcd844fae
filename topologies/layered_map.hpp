#pragma once
// A YAML map laid over the maps of the presets it extends: a key is taken from the topmost layer
// that gives it. Every layer stays strict: finish() refuses the keys nobody asked for, each with
// its own file and line.

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/yaml.hpp"

namespace coterie {

class LayeredMap {
 public:
  // Topmost layer first; not empty.
  explicit LayeredMap(std::vector<YamlMap> layers) : layers_(std::move(layers)) {}

  [[nodiscard]] std::optional<YamlValue> optional(const std::string& key);
  [[nodiscard]] YamlValue required(const std::string& key);
  // A nested block. Absent where no layer gives it or the topmost that does says `none`. A layer
  // whose block names another `kind` than the layers above hides nothing of itself below: it and
  // everything under it is left out, so that replacing a kind starts from an empty block.
  [[nodiscard]] std::optional<LayeredMap> block(const std::string& key);
  // All keys, those of the topmost layer first, each layer's in file order.
  [[nodiscard]] std::vector<std::string> keys() const;
  // Whether any layer gives the key.
  [[nodiscard]] bool has(const std::string& key) const;
  // Whether the topmost layer itself gives the key.
  [[nodiscard]] bool given_on_top(const std::string& key) const { return layers_[0].has(key); }

  void finish() const;
  // The place of the topmost layer.
  [[nodiscard]] const YamlValue& place() const { return layers_[0].value(); }

 private:
  std::vector<YamlMap> layers_;
};

// A whole number, or nothing for the word (`auto`, `unlimited`).
std::optional<std::uint32_t> integer_or_word(const YamlValue& value, std::string_view word,
                                             std::uint32_t min, std::uint32_t max);
// Whether the value is this word.
bool says(const YamlValue& value, std::string_view word);
// A whole number of the map, or `fallback` where no layer gives it.
std::uint32_t integer_or(LayeredMap& map, const std::string& key, std::uint32_t min,
                         std::uint32_t max, std::uint32_t fallback);
double number_or(LayeredMap& map, const std::string& key, double min, double max, double fallback);
// A bandwidth above zero.
Bandwidth positive_bandwidth(const YamlValue& value);

}  // namespace coterie
