#pragma once
// The files in which serving engines keep placements. What each engine reads was taken from its
// source (SGLang's expert_location.py, TensorRT-LLM's MoeLoadBalancerConfig, vLLM-Ascend's
// eplb_utils.py). Plain vLLM has no option that reads a placement.

#include <optional>
#include <ostream>
#include <string>
#include <string_view>

#include "workloads/placement/json_value.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {

// Whether a JSON document is an engine's, by what it holds.
bool is_engine_json(const JsonValue& root);
// Rows of slots, model_maps, or vLLM-Ascend's list of devices. Throws InputError.
Placement read_engine_json(const JsonValue& root, const std::string& name,
                           std::optional<std::uint32_t> num_ranks);

// TensorRT-LLM's YAML, told apart by its key initial_global_assignments.
bool is_trtllm_yaml(std::string_view text);
Placement read_trtllm_yaml(std::string_view text, const std::string& name,
                           std::optional<std::uint32_t> num_ranks);

// Any format but our own. The placement has no loading_problems.
void write_engine_format(std::ostream& out, const Placement& placement, PlacementFormat format,
                         const std::optional<ModelLayers>& model);

}  // namespace coterie
