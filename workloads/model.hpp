#pragma once
// Shapes of MoE models: what sets payloads, expert counts and the MLP's arithmetic.

#include <cstdint>
#include <string>
#include <vector>

#include "core/yaml.hpp"

namespace coterie {

struct ModelShape {
  std::string name;
  std::string description;
  std::uint32_t num_layers = 0;
  std::vector<std::uint32_t> moe_layers;  // layer numbers in the model, ascending
  std::uint32_t hidden = 0;
  std::uint32_t expert_intermediate = 0;
  std::uint32_t num_experts = 0;  // routed, per layer
  std::uint32_t num_topk = 0;
  std::uint32_t num_shared_experts = 0;
  std::uint32_t shared_intermediate = 0;  // of each shared expert; 0 without shared experts
  std::uint32_t num_groups = 1;           // expert groups of group-limited routing
  std::uint32_t num_topk_groups = 1;      // groups a token may use
  std::string routing;                    // a note: softmax, sigmoid, renormalised, ...
};

ModelShape read_model(const YamlValue& document);
// A preset's name or the path of a YAML file, with overrides. Throws InputError.
ModelShape load_model(const std::string& name_or_path, const std::vector<Override>& overrides = {});

struct ModelPreset {
  std::string name;
  std::string text;
};
const std::vector<ModelPreset>& model_presets();

}  // namespace coterie
