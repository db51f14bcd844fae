#pragma once
// What one GPU computes of a model: lists of matrix products, attention products and memory-bound
// kernels, with their shapes, floating-point operations and bytes. Times are operation_times.hpp's
// business; communication is not in here.
//
// A layer of one micro-batch on one rank, forward:
//
//   attention   norm, projections, attention product, output projection, residual
//   dense_mlp   norm, gated MLP, residual       (layers without experts)
//   router      norm, router product, choice    (MoE layers)
//   experts     gated MLP of the rank's routed experts on the rows they get  (expert_operations)
//   shared      gated MLP of the shared experts on the rank's own tokens
//
// Tensor parallelism splits heads and intermediate sizes of attention, dense MLP and shared experts
// over tp ranks; norms, router and routed experts see the rank's share of the tokens (sequence
// parallelism). Context parallelism splits each sequence evenly in work (a causal rank's share is
// the mean).

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "workloads/model.hpp"
#include "workloads/step.hpp"

namespace coterie {

enum class OperationKind : std::uint8_t {
  kMatrixProduct,   // [m, k] x [k, n], `batch` of them
  kGroupedProduct,  // one product [rows_e, k] x [k, n] per expert, in one kernel
  kAttention,       // softmax(Q K^T) V of `attention`
  kMemoryBound,     // reads and writes `bytes`
};

enum class ModelPart : std::uint8_t {
  kEmbedding,
  kNorm,
  kAttention,  // projections and the attention product
  kRouter,
  kExperts,  // routed
  kSharedExperts,
  kDenseMlp,
  kLmHead,
  kLoss,
  kOptimizer,
};
std::string_view to_string(ModelPart part);  // embedding, norm, attention, router, experts, ...

// Of an operation list. Weight gradients are apart from input gradients: schedules delay or overlap
// them.
enum class Pass : std::uint8_t { kForward, kBackwardInput, kBackwardWeight, kRecompute };

// One attention product: `sequences` times `query_length` queries against `kv_length` keys each
// (causal among the last query_length), on `num_heads` heads of this rank. `window` as in
// AttentionShape.
struct AttentionCall {
  std::uint64_t sequences = 0;
  std::uint64_t query_length = 0;
  std::uint64_t kv_length = 0;
  std::uint32_t num_heads = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t qk_dim = 0;
  std::uint32_t v_dim = 0;
  std::uint32_t window = 0;
  std::uint32_t cp = 1;  // this rank has one part in cp of the queries, with its share of the work
  // MLA in its absorbed form, as decoding does: all heads share one key of kv_lora_rank + rope_dim
  // values, whose first kv_lora_rank are the value.
  bool latent = false;

  // Pairs of a query and a key that it attends to, over all sequences, on this rank and one head.
  [[nodiscard]] double pairs() const;
};

struct ModelOperation {
  std::string name;  // "query down projection", unique within its list
  ModelPart part = ModelPart::kNorm;
  OperationKind kind = OperationKind::kMemoryBound;
  Precision precision = Precision::kBf16;  // the product's
  std::uint64_t m = 0, n = 0, k = 0;       // of products; m is 0 for grouped ones
  std::uint64_t batch = 1;                 // equal products in one kernel
  std::vector<std::uint64_t> rows;         // kGroupedProduct: rows of each expert
  // kGroupedProduct of a weight gradient: [n, rows_e] x [rows_e, k] per expert.
  bool weight_gradient = false;
  AttentionCall attention;  // kAttention
  bool backward = false;    // kAttention: the gradient's five products instead of two
  double flops = 0.0;       // multiplications and additions
  double bytes = 0.0;       // read and written in device memory
  // Kernels that the host launches for it without CUDA graphs. Products of experts in training, and
  // the quantisation of their rows: one per expert, as Transformer Engine's grouped layers do.
  std::uint32_t launches = 1;
  // Train, forward: the host copies a value to the GPU behind it and goes on when that is there.
  bool host_waits = false;
};
std::uint64_t total_launches(std::span<const ModelOperation> operations);
double total_flops(std::span<const ModelOperation> operations);
double total_bytes(std::span<const ModelOperation> operations);

// What a rank computes of one layer for one micro-batch.
struct LayerWork {
  std::uint64_t sequences = 0;     // of the micro-batch that the tp and cp ranks work on together
  std::uint64_t query_length = 0;  // tokens per sequence, before cp
  std::uint64_t kv_length = 0;     // keys per sequence: query_length + cached
  std::uint32_t tp = 1;
  std::uint32_t cp = 1;
  bool decode = false;  // MLA absorbs its up-projections
  // Training keeps and reads activations in BF16 and quantises on the way into low-precision
  // products.
  bool training = false;

  // Token rows that all tp ranks work on together, and this rank's share of them.
  [[nodiscard]] std::uint64_t tokens() const { return sequences * query_length / cp; }
  [[nodiscard]] std::uint64_t own_tokens() const { return tokens() / tp; }
};
// The work of a micro-batch of a step. Serving: a step of overlap.micro_batches (two-batch overlap)
// or pp micro-batches has equal parts of the batch.
LayerWork layer_work(const StepSpec& step);

struct LayerOperations {
  std::vector<ModelOperation> attention;
  std::vector<ModelOperation>
      dense_mlp;                       // empty in MoE layers, unless they have a dense MLP beside
  std::vector<ModelOperation> router;  // empty in layers without experts
  std::vector<ModelOperation> shared;  // empty without shared experts
};
// `layer` tells dense from MoE layers and windowed from full attention. kRecompute: what the step's
// recompute setting makes again before the backward pass; empty with `none`.
LayerOperations layer_operations(const ModelShape& model, const StepSpec& step,
                                 const LayerWork& work, std::uint32_t layer, Pass pass);

// The rank's routed experts: `rows` of each, [experts on the rank].
std::vector<ModelOperation> expert_operations(const ModelShape& model, const StepSpec& step,
                                              std::span<const std::uint64_t> rows, Pass pass);

// On the first and the last chunk of layers. Serving: the head sees the last token of every
// sequence (prefill) or all rows (decode).
std::vector<ModelOperation> embedding_operations(const ModelShape& model, const StepSpec& step,
                                                 const LayerWork& work, Pass pass);
std::vector<ModelOperation> head_operations(const ModelShape& model, const StepSpec& step,
                                            const LayerWork& work, Pass pass);
// A multi-token prediction module without its layer: two norms, the projection [2 * hidden,
// hidden], and the shared LM head with its loss.
std::vector<ModelOperation> mtp_operations(const ModelShape& model, const StepSpec& step,
                                           const LayerWork& work, Pass pass);
// One Adam update of `parameters` values that this rank's shard of the optimizer holds:
// memory-bound.
std::vector<ModelOperation> optimizer_operations(const StepSpec& step, double parameters);

// Model FLOPs of one token of a step, as papers count them (no recomputation; a training step is
// three forward passes): 2 per active weight of every product and token, and causal attention
// products over half the square. `mtp` counts multi-token prediction modules.
double model_flops_per_token(const ModelShape& model, const StepSpec& step, bool mtp);

}  // namespace coterie
