#include "workloads/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/reference.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

namespace embedded {
extern const std::vector<std::pair<std::string, std::string>> model_presets;
}

namespace {

constexpr std::int64_t kMaxWidth = 1 << 24;

std::uint32_t read_dimension(const YamlValue& value, std::int64_t min, std::int64_t max) {
  return static_cast<std::uint32_t>(value.as_integer(min, max));
}

// Either {first: F, step: S}, up to the last layer, or a list of layer numbers.
std::vector<std::uint32_t> read_layer_list(const YamlValue& value, std::uint32_t num_layers) {
  const std::int64_t last = static_cast<std::int64_t>(num_layers) - 1;
  std::vector<std::uint32_t> layers;
  if (value.is_list()) {
    for (const YamlValue& item : value.as_list()) {
      const std::uint32_t layer = read_dimension(item, 0, last);
      if (!layers.empty() && layer <= layers.back()) {
        throw item.error(item.excerpt(), "ascending layer numbers");
      }
      layers.push_back(layer);
    }
    if (layers.empty()) throw value.error("an empty list", "at least one MoE layer");
    return layers;
  }
  YamlMap map = value.as_map();
  const std::uint32_t first = read_dimension(map.required("first"), 0, last);
  const std::uint32_t step = read_dimension(map.required("step"), 1, num_layers);
  map.finish();
  for (std::uint32_t layer = first; layer < num_layers; layer += step) layers.push_back(layer);
  return layers;
}

// Names all the keys that a model lacks, not only the first.
void require(const YamlValue& document, YamlMap& map) {
  std::vector<std::string> missing;
  for (const char* key :
       {"schema_version", "name", "description", "num_layers", "moe_layers", "hidden",
        "expert_intermediate", "num_experts", "num_topk", "num_shared_experts"}) {
    if (!map.optional(key)) missing.push_back(fmt::format("\"{}\"", key));
  }
  if (missing.size() > 1) {
    throw document.error(fmt::format("no keys {}", fmt::join(missing, ", ")), "them to be given");
  }
}

AttentionShape read_attention(const YamlValue& value, std::uint32_t num_layers) {
  constexpr std::int64_t kMaxDim = 1 << 16;
  YamlMap map = value.as_map();
  AttentionShape shape;
  shape.kind = static_cast<AttentionKind>(map.required("kind").as_choice({"mha", "gqa", "mla"}));
  shape.num_heads = read_dimension(map.required("heads"), 1, kMaxDim);
  const auto dim = [&](const char* key) { return read_dimension(map.required(key), 1, kMaxDim); };
  const auto flag = [&](const char* key) {
    const auto given = map.optional(key);
    return given && given->as_bool();
  };
  shape.num_kv_heads = shape.num_heads;
  if (shape.kind == AttentionKind::kMla) {
    if (const auto rank = map.optional("q_lora_rank")) {
      shape.q_lora_rank = read_dimension(*rank, 1, kMaxDim);
    }
    shape.kv_lora_rank = dim("kv_lora_rank");
    shape.nope_dim = dim("nope_dim");
    shape.rope_dim = dim("rope_dim");
    shape.qk_dim = shape.nope_dim + shape.rope_dim;
    shape.v_dim = dim("value_dim");
  } else {
    shape.qk_dim = shape.v_dim = dim("head_dim");
    shape.qkv_bias = flag("qkv_bias");
    shape.output_bias = flag("output_bias");
    shape.sinks = flag("sinks");
    if (const auto factor = map.optional("rope_concentration")) {
      shape.rope_concentration = factor->as_number(0.1, 10.0);
    }
    if (const auto norm = map.optional("qk_norm")) {
      shape.qk_norm = norm->as_choice({"per_head", "full"}) == 0 ? QkNorm::kPerHead : QkNorm::kFull;
    }
  }
  if (shape.kind == AttentionKind::kGqa) {
    const YamlValue kv_heads = map.required("kv_heads");
    shape.num_kv_heads = read_dimension(kv_heads, 1, shape.num_heads);
    if (shape.num_heads % shape.num_kv_heads != 0) {
      throw kv_heads.error(kv_heads.excerpt(),
                           fmt::format("a divisor of the {} query heads", shape.num_heads));
    }
  }
  if (const auto window = map.optional("window")) {
    shape.window = read_dimension(*window, 1, 1 << 30);
    shape.windowed_layers = read_layer_list(map.required("windowed_layers"), num_layers);
  }
  map.finish();
  return shape;
}

// The keys that whole steps need and single MoE layers do not.
void read_step_shapes(YamlMap& map, ModelShape& model) {
  const auto attention = map.optional("attention");
  const auto vocabulary = map.optional("vocabulary");
  if (attention.has_value() != vocabulary.has_value()) {
    throw(attention ? *attention : *vocabulary)
        .error(attention ? "attention without `vocabulary`" : "vocabulary without `attention`",
               "both, which whole steps need, or neither");
  }
  if (!attention) return;
  model.attention = read_attention(*attention, model.num_layers);
  model.vocabulary = read_dimension(*vocabulary, 1, 1 << 28);
  const auto flag = [&](const char* key) {
    const auto given = map.optional(key);
    return given && given->as_bool();
  };
  model.tied_embeddings = flag("tied_embeddings");
  model.expert_bias = flag("expert_bias");
  if (const auto clamp = map.optional("activation_clamp")) {
    model.activation_clamp = clamp->as_number(1e-6, 1e6);
  }
  model.router_bias = flag("router_bias");
  if (model.num_dense_layers() > 0) {
    model.dense_intermediate = read_dimension(map.required("dense_intermediate"), 1, kMaxWidth);
  }
  if (const auto gate = map.optional("shared_expert_gate")) {
    model.shared_expert_gate = gate->as_bool();
    if (model.num_shared_experts == 0) {
      throw gate->error(gate->excerpt(), "no such key, as there are no shared experts");
    }
  }
  if (const auto mtp = map.optional("num_mtp_layers"))
    model.num_mtp_layers = read_dimension(*mtp, 0, 16);
}

}  // namespace

std::string to_string(AttentionKind kind) {
  switch (kind) {
    case AttentionKind::kMha:
      return "mha";
    case AttentionKind::kGqa:
      return "gqa";
    case AttentionKind::kMla:
      return "mla";
  }
  return "";
}

bool ModelShape::is_moe_layer(std::uint32_t layer) const {
  return std::binary_search(moe_layers.begin(), moe_layers.end(), layer);
}

bool ModelShape::is_windowed_layer(std::uint32_t layer) const {
  return attention && std::binary_search(attention->windowed_layers.begin(),
                                         attention->windowed_layers.end(), layer);
}

std::uint64_t attention_parameters(const ModelShape& model) {
  const AttentionShape& shape = *model.attention;
  const std::uint64_t hidden = model.hidden;
  const std::uint64_t heads = shape.num_heads;
  const std::uint64_t q_values = heads * shape.qk_dim;
  const std::uint64_t output = heads * shape.v_dim * hidden;
  if (shape.kind == AttentionKind::kMla) {
    const std::uint64_t q_rank = shape.q_lora_rank;
    const std::uint64_t kv_rank = shape.kv_lora_rank;
    const std::uint64_t queries =
        q_rank > 0 ? hidden * q_rank + q_rank + q_rank * q_values : hidden * q_values;
    return queries + hidden * (kv_rank + shape.rope_dim) + kv_rank +
           kv_rank * heads * (shape.nope_dim + shape.v_dim) + output;
  }
  const std::uint64_t kv_heads = shape.num_kv_heads;
  const std::uint64_t qkv_values = q_values + kv_heads * (shape.qk_dim + shape.v_dim);
  std::uint64_t sum = hidden * qkv_values + output;
  if (shape.qkv_bias) sum += qkv_values;
  if (shape.output_bias) sum += hidden;
  if (shape.sinks) sum += heads;
  if (shape.qk_norm == QkNorm::kPerHead) sum += 2 * shape.qk_dim;
  if (shape.qk_norm == QkNorm::kFull) sum += (heads + kv_heads) * shape.qk_dim;
  return sum;
}

std::uint64_t expert_parameters(const ModelShape& model) {
  const std::uint64_t hidden = model.hidden;
  const std::uint64_t width = model.expert_intermediate;
  return 3 * hidden * width + (model.expert_bias ? 2 * width + hidden : 0);
}

ParameterCounts count_parameters(const ModelShape& model) {
  if (!model.has_step_shapes()) {
    throw InputError("model " + model.name, "no attention and vocabulary",
                     "the keys `attention` and `vocabulary`, which whole steps need");
  }
  const std::uint64_t hidden = model.hidden;
  const std::uint64_t layers = model.num_layers;
  const std::uint64_t moe = model.moe_layers.size();
  const std::uint64_t router =
      model.num_experts * (hidden + (model.router_bias ? std::uint64_t{1} : 0));
  const std::uint64_t shared = 3 * hidden * model.num_shared_experts * model.shared_intermediate +
                               (model.shared_expert_gate ? hidden : 0);
  ParameterCounts counts;
  counts.embedding = std::uint64_t{model.vocabulary} * hidden;
  counts.lm_head = model.tied_embeddings ? 0 : counts.embedding;
  counts.attention = layers * attention_parameters(model);
  counts.norms = (2 * layers + 1) * hidden;
  counts.router = moe * router;
  counts.experts = moe * model.num_experts * expert_parameters(model);
  counts.active_experts = moe * model.num_topk * expert_parameters(model);
  counts.shared_experts = moe * shared;
  counts.dense_mlp = model.num_dense_layers() * 3 * hidden * model.dense_intermediate;
  // Two norms before the projection [2 * hidden, hidden], a layer with its two norms, a last norm.
  counts.mtp =
      model.num_mtp_layers * (5 * hidden + 2 * hidden * hidden + attention_parameters(model) +
                              router + shared + model.num_experts * expert_parameters(model));
  return counts;
}

ModelShape read_model(const YamlValue& document) {
  YamlMap map = document.as_map();
  ModelShape model;
  require(document, map);
  (void)map.required("schema_version").as_integer(1, 1);
  model.name = map.required("name").as_string();
  model.description = map.required("description").as_string();
  model.num_layers = read_dimension(map.required("num_layers"), 1, 100000);
  model.moe_layers = read_layer_list(map.required("moe_layers"), model.num_layers);
  model.hidden = read_dimension(map.required("hidden"), 1, kMaxWidth);
  model.expert_intermediate = read_dimension(map.required("expert_intermediate"), 1, kMaxWidth);
  model.num_experts = read_dimension(map.required("num_experts"), 1, kMaxExperts);
  model.num_topk = read_dimension(map.required("num_topk"), 1,
                                  std::min<std::int64_t>(kMaxTopk, model.num_experts));
  model.num_shared_experts = read_dimension(map.required("num_shared_experts"), 0, 1024);
  model.shared_intermediate = model.num_shared_experts > 0 ? model.expert_intermediate : 0;
  if (const auto width = map.optional("shared_intermediate")) {
    if (model.num_shared_experts == 0) {
      throw width->error(width->excerpt(), "no such key, as there are no shared experts");
    }
    model.shared_intermediate = read_dimension(*width, 1, kMaxWidth);
  }
  if (const auto groups = map.optional("num_groups")) {
    model.num_groups = read_dimension(*groups, 1, model.num_experts);
    if (model.num_experts % model.num_groups != 0) {
      throw groups->error(groups->excerpt(),
                          fmt::format("a divisor of the {}", counted(model.num_experts, "expert")));
    }
  }
  if (const auto groups = map.optional("num_topk_groups")) {
    model.num_topk_groups = read_dimension(*groups, 1, model.num_groups);
    if (model.num_experts / model.num_groups * model.num_topk_groups < model.num_topk) {
      throw groups->error(groups->excerpt(), fmt::format("groups that hold at least {}",
                                                         counted(model.num_topk, "expert")));
    }
  } else {
    model.num_topk_groups = model.num_groups;
  }
  model.routing = map.required("routing").as_string();
  read_step_shapes(map, model);
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
    throw InputError("model", missing_reference(name_or_path, name_or_path),
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
