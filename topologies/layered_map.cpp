#include "topologies/layered_map.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace coterie {

std::optional<YamlValue> LayeredMap::optional(const std::string& key) {
  std::optional<YamlValue> found;
  for (YamlMap& layer : layers_) {
    auto value = layer.optional(key);  // asked of all layers: a hidden key is still a known one
    if (value && !found) found = std::move(value);
  }
  return found;
}

YamlValue LayeredMap::required(const std::string& key) {
  if (auto value = optional(key)) return *value;
  return layers_[0].required(key);  // throws, at the place of the topmost layer
}

std::optional<LayeredMap> LayeredMap::block(const std::string& key) {
  std::vector<YamlMap> blocks;
  std::optional<std::string> kind;
  bool closed = false;
  for (YamlMap& layer : layers_) {
    const auto value = layer.optional(key);
    if (!value || closed) continue;
    if (says(*value, "none")) {
      closed = true;
      continue;
    }
    YamlMap map = value->as_map();
    if (map.has("kind")) {
      const std::string its_kind = map.required("kind").as_string();
      if (kind && *kind != its_kind) {
        closed = true;
        continue;
      }
      kind = its_kind;
      map = value->as_map();  // forgets that `kind` was asked for
    }
    blocks.push_back(std::move(map));
  }
  if (blocks.empty()) return std::nullopt;
  return LayeredMap(std::move(blocks));
}

std::vector<std::string> LayeredMap::keys() const {
  std::vector<std::string> keys;
  for (const YamlMap& layer : layers_) {
    for (std::string& key : layer.keys()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(std::move(key));
    }
  }
  return keys;
}

bool LayeredMap::has(const std::string& key) const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [&](const YamlMap& layer) { return layer.has(key); });
}

void LayeredMap::finish() const {
  for (const YamlMap& layer : layers_) layer.finish();
}

bool says(const YamlValue& value, std::string_view word) {
  return value.is_scalar() && value.excerpt() == fmt::format("\"{}\"", word);
}

std::optional<std::uint32_t> integer_or_word(const YamlValue& value, std::string_view word,
                                             std::uint32_t min, std::uint32_t max) {
  if (says(value, word)) return std::nullopt;
  try {
    return static_cast<std::uint32_t>(value.as_integer(min, max));
  } catch (const InputError&) {
    throw value.error(value.excerpt(),
                      fmt::format("{} or a whole number from {} to {}", word, min, max));
  }
}

std::uint32_t integer_or(LayeredMap& map, const std::string& key, std::uint32_t min,
                         std::uint32_t max, std::uint32_t fallback) {
  const auto value = map.optional(key);
  return value ? static_cast<std::uint32_t>(value->as_integer(min, max)) : fallback;
}

double number_or(LayeredMap& map, const std::string& key, double min, double max, double fallback) {
  const auto value = map.optional(key);
  return value ? value->as_number(min, max) : fallback;
}

Bandwidth positive_bandwidth(const YamlValue& value) {
  const Bandwidth bandwidth = value.as_bandwidth();
  if (bandwidth.value <= 0.0) throw value.error(value.excerpt(), "a bandwidth above zero");
  return bandwidth;
}

}  // namespace coterie
