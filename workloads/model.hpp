#pragma once
// Shapes of MoE models: what sets payloads, expert counts and the MLP's arithmetic.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/yaml.hpp"

namespace coterie {

// How a layer attends. Multi-head attention (kMha) is grouped-query attention (kGqa) with one key
// and value head per query head. Multi-head latent attention (kMla, DeepSeek-V2, arXiv 2405.04434)
// keeps one latent vector of `kv_lora_rank` values and one rotary key of `rope_dim` values per
// token instead of keys and values.
enum class AttentionKind : std::uint8_t { kMha, kGqa, kMla };
std::string to_string(AttentionKind kind);  // mha, gqa, mla

// Norms of queries and keys: none, one set of weights for all heads, or weights for every head's
// values apart.
enum class QkNorm : std::uint8_t { kNone, kPerHead, kFull };

struct AttentionShape {
  AttentionKind kind = AttentionKind::kMha;
  std::uint32_t num_heads = 0;
  std::uint32_t num_kv_heads = 0;  // kMla: equal to num_heads once expanded; 1 latent in the cache
  // Values per head of queries and keys (qk_dim), and of values (v_dim). kMla: qk_dim = nope_dim +
  // rope_dim; else rope_dim and nope_dim are 0.
  std::uint32_t qk_dim = 0;
  std::uint32_t v_dim = 0;
  std::uint32_t nope_dim = 0;
  std::uint32_t rope_dim = 0;
  std::uint32_t q_lora_rank = 0;   // kMla; 0: queries are projected from the hidden values directly
  std::uint32_t kv_lora_rank = 0;  // kMla
  bool qkv_bias = false;
  bool output_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  bool sinks = false;  // one learned logit per head
  // YaRN's factor on cosines and sines of rotary positions, 0.1 ln(scaling) + 1; 1: none.
  double rope_concentration = 1.0;
  // Sliding window: the layers in `windowed_layers` (ascending) attend to the last `window` tokens,
  // their own included; 0: none does.
  std::uint32_t window = 0;
  std::vector<std::uint32_t> windowed_layers;

  // Values per token and layer that a cache keeps: 2 * kv heads * dim, or the latent and rotary
  // key.
  [[nodiscard]] std::uint32_t cached_values() const {
    return kind == AttentionKind::kMla ? kv_lora_rank + rope_dim : num_kv_heads * (qk_dim + v_dim);
  }
};

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

  // What whole steps need besides (MoE layers alone do without). A file gives all or none of
  // `attention`, `vocabulary` and, where there are layers without experts, `dense_intermediate`.
  std::optional<AttentionShape> attention;
  std::uint32_t vocabulary = 0;          // rows of the embedding; 0: not given
  bool tied_embeddings = false;          // the LM head shares the embedding's weights
  std::uint32_t dense_intermediate = 0;  // of the gated MLP in layers without experts
  bool expert_bias = false;              // experts and router have biases
  // To which the experts' gate and up results are clamped before the activation; 0: they are not.
  double activation_clamp = 0.0;
  bool router_bias = false;          // one selection bias per expert, no gradient
  bool shared_expert_gate = false;   // one sigmoid gate of `hidden` weights
  std::uint32_t num_mtp_layers = 0;  // multi-token prediction modules, each one layer and more

  // Whether whole steps can be built of it.
  [[nodiscard]] bool has_step_shapes() const { return attention.has_value() && vocabulary > 0; }
  [[nodiscard]] std::uint32_t num_dense_layers() const {
    return num_layers - static_cast<std::uint32_t>(moe_layers.size());
  }
  [[nodiscard]] bool is_moe_layer(std::uint32_t layer) const;
  [[nodiscard]] bool is_windowed_layer(std::uint32_t layer) const;
};

// Trainable parameters by model part, of the whole model. Multi-token prediction modules are not
// in `total()`, as published counts leave them out.
struct ParameterCounts {
  std::uint64_t embedding = 0;  // vocabulary * hidden
  std::uint64_t lm_head = 0;    // the same again; 0 with tied embeddings
  std::uint64_t attention = 0;  // projections, their norms and biases, of all layers
  std::uint64_t norms = 0;      // two per layer and the last one
  std::uint64_t router = 0;
  std::uint64_t experts = 0;         // routed, all of them
  std::uint64_t shared_experts = 0;  // with their gate
  std::uint64_t dense_mlp = 0;       // of layers without experts
  std::uint64_t mtp = 0;             // multi-token prediction modules
  std::uint64_t active_experts = 0;  // of `experts`, what one token uses: top-k of every layer

  [[nodiscard]] std::uint64_t total() const {
    return embedding + lm_head + attention + norms + router + experts + shared_experts + dense_mlp;
  }
  // What one token activates, embedding and LM head included.
  [[nodiscard]] std::uint64_t active() const { return total() - experts + active_experts; }
};
std::uint64_t attention_parameters(const ModelShape& model);  // of one layer
std::uint64_t expert_parameters(const ModelShape& model);     // of one routed expert
// Throws InputError if the model has no step shapes.
ParameterCounts count_parameters(const ModelShape& model);

ModelShape read_model(const YamlValue& document);
// A preset's name or the path of a YAML file, with overrides. Throws InputError.
ModelShape load_model(const std::string& name_or_path, const std::vector<Override>& overrides = {});

struct ModelPreset {
  std::string name;
  std::string text;
};
const std::vector<ModelPreset>& model_presets();

}  // namespace coterie
