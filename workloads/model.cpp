#include "workloads/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <utility>

#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

namespace embedded {
extern const std::vector<std::pair<std::string, std::string>> model_presets;
}

namespace {

std::uint32_t read_count(const YamlValue& value, std::int64_t min, std::int64_t max) {
  return static_cast<std::uint32_t>(value.as_integer(min, max));
}

// Either {first: F, step: S}, up to the last layer, or a list of layer numbers.
std::vector<std::uint32_t> read_layers(const YamlValue& value, std::uint32_t num_layers) {
  const std::int64_t last = static_cast<std::int64_t>(num_layers) - 1;
  std::vector<std::uint32_t> layers;
  if (value.is_list()) {
    for (const YamlValue& item : value.as_list()) {
      const std::uint32_t layer = read_count(item, 0, last);
      if (!layers.empty() && layer <= layers.back()) {
        throw item.error(item.excerpt(), "ascending layer numbers");
      }
      layers.push_back(layer);
    }
    if (layers.empty()) throw value.error("an empty list", "at least one MoE layer");
    return layers;
  }
  YamlMap map = value.as_map();
  const std::uint32_t first = read_count(map.required("first"), 0, last);
  const std::uint32_t step = read_count(map.required("step"), 1, num_layers);
  map.finish();
  for (std::uint32_t layer = first; layer < num_layers; layer += step) layers.push_back(layer);
  return layers;
}

}  // namespace

ModelShape read_model(const YamlValue& document) {
  constexpr std::int64_t kMaxWidth = 1 << 24;
  YamlMap map = document.as_map();
  ModelShape model;
  (void)map.required("schema_version").as_integer(1, 1);
  model.name = map.required("name").as_string();
  model.description = map.required("description").as_string();
  model.num_layers = read_count(map.required("num_layers"), 1, 100000);
  model.moe_layers = read_layers(map.required("moe_layers"), model.num_layers);
  model.hidden = read_count(map.required("hidden"), 1, kMaxWidth);
  model.expert_intermediate = read_count(map.required("expert_intermediate"), 1, kMaxWidth);
  model.num_experts = read_count(map.required("num_experts"), 1, kMaxExperts);
  model.num_topk =
      read_count(map.required("num_topk"), 1, std::min<std::int64_t>(kMaxTopk, model.num_experts));
  model.num_shared_experts = read_count(map.required("num_shared_experts"), 0, 1024);
  model.shared_intermediate = model.num_shared_experts > 0 ? model.expert_intermediate : 0;
  if (const auto width = map.optional("shared_intermediate")) {
    if (model.num_shared_experts == 0) {
      throw width->error(width->excerpt(), "no such key, as there are no shared experts");
    }
    model.shared_intermediate = read_count(*width, 1, kMaxWidth);
  }
  if (const auto groups = map.optional("num_groups")) {
    model.num_groups = read_count(*groups, 1, model.num_experts);
    if (model.num_experts % model.num_groups != 0) {
      throw groups->error(groups->excerpt(),
                          fmt::format("a divisor of the {} experts", model.num_experts));
    }
  }
  if (const auto groups = map.optional("num_topk_groups")) {
    model.num_topk_groups = read_count(*groups, 1, model.num_groups);
    if (model.num_experts / model.num_groups * model.num_topk_groups < model.num_topk) {
      throw groups->error(groups->excerpt(),
                          fmt::format("groups that hold at least {} experts", model.num_topk));
    }
  } else {
    model.num_topk_groups = model.num_groups;
  }
  model.routing = map.required("routing").as_string();
  map.finish();
  return model;
}

ModelShape load_model(const std::string& name_or_path, const std::vector<Override>& overrides) {
  std::string known;
  for (const ModelPreset& preset : model_presets()) {
    if (preset.name == name_or_path) {
      return read_model(parse_yaml(preset.text, "model " + preset.name, overrides));
    }
    known += (known.empty() ? "" : ", ") + preset.name;
  }
  if (!is_input_file(name_or_path)) {
    throw InputError("model", fmt::format("\"{}\"", name_or_path),
                     "a YAML file or one of " + known);
  }
  return read_model(load_yaml(name_or_path, overrides));
}

const std::vector<ModelPreset>& model_presets() {
  static const std::vector<ModelPreset> kPresets = [] {
    std::vector<ModelPreset> presets;
    for (const auto& [name, text] : embedded::model_presets) presets.push_back({name, text});
    return presets;
  }();
  return kPresets;
}

}  // namespace coterie
