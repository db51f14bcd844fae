#include "sim/step/operations.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <utility>

namespace coterie {
namespace {

constexpr double kBf16 = 2.0;  // bytes of an activation between kernels

double d(std::uint64_t count) {
  return static_cast<double>(count);
}

// One forward operation, with what its backward pass needs to know.
struct OperationStage {
  ModelOperation op;
  bool weights = false;         // a product with trained weights: it has a weight gradient
  double backward_bytes = 0.0;  // of memory-bound ones; 0: no kernel in the backward pass
  // Where they are not those of the forward pass.
  std::optional<std::uint32_t> backward_launches{};
  bool cheap = false;   // made again under selective recomputation
  bool latent = false;  // of MLA's up-projections
};
using Stages = std::vector<OperationStage>;

bool is_quantised(Precision precision) {
  return precision != Precision::kBf16 && precision != Precision::kFp32;
}

// The bytes of a product: rows in, weights, rows out in BF16.
double product_bytes(const ModelOperation& op, double weight_bytes, double weights) {
  const double rows = op.kind == OperationKind::kGroupedProduct
                          ? d(std::accumulate(op.rows.begin(), op.rows.end(), std::uint64_t{0}))
                          : d(op.m) * d(op.batch);
  return rows * (d(op.k) * bytes_per_value(op.precision) + d(op.n) * kBf16) +
         weights * weight_bytes;
}

// Collects the stages of one model part.
class StageList {
 public:
  StageList(ModelPart part, PartPrecision types, const StepSpec& step)
      : part_(part), types_(types), step_(step), training_(step.kind == StepKind::kTrain) {}

  // [m, k] x [k, n] with weights. In low precision the rows are quantised before.
  OperationStage& product(std::string name, std::uint64_t m, std::uint64_t n, std::uint64_t k) {
    quantise(name, d(m) * d(k));
    OperationStage& stage = add(std::move(name), OperationKind::kMatrixProduct);
    ModelOperation& op = stage.op;
    op.precision = types_.compute;
    op.m = m;
    op.n = n;
    op.k = k;
    op.flops = 2.0 * d(m) * d(n) * d(k);
    op.bytes = product_bytes(op, bytes_per_value(types_.weights), d(n) * d(k));
    stage.weights = true;
    return stage;
  }
  // The same per expert; experts without rows read no weights.
  OperationStage& grouped(std::string name, std::span<const std::uint64_t> rows, std::uint64_t n,
                          std::uint64_t k) {
    const std::uint64_t all = std::accumulate(rows.begin(), rows.end(), std::uint64_t{0});
    // Serving dispatches quantised rows and quantises in the activation's kernel.
    const auto launches = training_ ? static_cast<std::uint32_t>(rows.size()) : 1U;
    if (training_) quantise(name, d(all) * d(k), launches);
    OperationStage& stage = add(std::move(name), OperationKind::kGroupedProduct);
    ModelOperation& op = stage.op;
    op.launches = launches;
    op.precision = types_.compute;
    op.n = n;
    op.k = k;
    op.rows.assign(rows.begin(), rows.end());
    op.flops = 2.0 * d(all) * d(n) * d(k);
    const auto used = std::count_if(rows.begin(), rows.end(), [](auto r) { return r > 0; });
    op.bytes =
        product_bytes(op, bytes_per_value(types_.weights), static_cast<double>(used) * d(n) * d(k));
    stage.weights = true;
    return stage;
  }
  // `batch` products of activations with a weight slice each (MLA's absorbed projections).
  void batched(std::string name, std::uint64_t batch, std::uint64_t m, std::uint64_t n,
               std::uint64_t k) {
    OperationStage& stage = add(std::move(name), OperationKind::kMatrixProduct);
    ModelOperation& op = stage.op;
    op.batch = batch;
    op.m = m;
    op.n = n;
    op.k = k;
    op.flops = 2.0 * d(batch) * d(m) * d(n) * d(k);
    op.bytes = d(batch) * (kBf16 * d(m) * (d(n) + d(k)) + kBf16 * d(n) * d(k));
  }
  OperationStage& memory(std::string name, double bytes, double backward_bytes) {
    OperationStage& stage = add(std::move(name), OperationKind::kMemoryBound);
    stage.op.bytes = bytes;
    stage.backward_bytes = backward_bytes;
    return stage;
  }
  // Reads the rows, writes them normalised; backward reads rows and gradient, writes a gradient.
  void norm(std::string name, double values) {
    memory(std::move(name), 2.0 * kBf16 * values, 3.0 * kBf16 * values).cheap = true;
  }
  // silu(gate) * up on `values` results: reads two, writes one; backward reads three, writes two.
  void gated_activation(double values) {
    memory("activation", 3.0 * kBf16 * values, 5.0 * kBf16 * values).cheap = true;
  }
  // Gate and up results, `values` in all, to a range: Megatron Core does so in front of the fused
  // activation (weighted_bias_quick_geglu_impl). Each half is clamped (reads 2, writes 2 bytes per
  // value) and both are joined (the same); backward each clamp reads gradient and result and writes
  // one (6), and the halves' gradients are joined (4). Then it makes a number on the GPU out of one of
  // the host's, a copy that the host waits for.
  void clamp(double values) {
    OperationStage& stage = memory("activation clamp", 8.0 * values, 10.0 * values);
    stage.cheap = true;
    stage.op.launches = 3;
    stage.op.host_waits = true;
  }
  // The experts' biases, times each row's weight, onto the result of their second product: Megatron
  // Core does so outside the product, expert by expert (TEGroupedMLP._apply_bias). Per value in
  // bytes, BF16 rows in and out and FP32 between:
  //
  //   forward    bias * weight writes 4; the sum reads 2 + 4, writes 4; both per expert.
  //              All rows joined: reads 4, writes 4; cast: reads 4, writes 2                      28
  //   backward   cast: reads 2, writes 4. Per expert the rows' gradient is cast back (4 + 2), the
  //              bias's multiplied and summed (4 + 4, 4), the weight's likewise (4 + 4, 4), the
  //              bias's added to its sum. All rows joined: reads 2, writes 2                      40
  void expert_bias(double values, std::uint32_t num_experts) {
    OperationStage& stage = memory("expert bias", 28.0 * values, 40.0 * values);
    stage.op.launches = 2 * num_experts + 2;
    stage.backward_launches = 6 * num_experts + 2;
  }
  // Norms of queries and keys where there are any, and their rotary positions. Serving does both in a
  // kernel; training has one each for queries and for keys. No fused kernel takes YaRN's factor, and
  // Megatron Core computes such positions by plain operations (apply_rotary_pos_emb: "mscale is not
  // supported by TE's fused RoPE"; pull request 2038 of Megatron-LM), in bytes per value:
  //
  //   forward    t cos (4); half of t negated (2) and joined with the other half (4); times sin
  //              (4); both added (6); joined with the values that do not rotate, of which there
  //              are none (4)                                                                  24
  //   backward   gradient times cos (4) and times sin (4); half of the latter negated (2), both
  //              halves joined (4), added to the former (6); zeros for the values that do not
  //              rotate (2), added (6)                                                         28
  //
  // each for queries and for keys, with six small kernels that make cosines and sines.
  void query_key_kernels(double values, const AttentionShape& shape) {
    const bool norm = shape.qk_norm != QkNorm::kNone;
    if (!training_) {
      memory("rotary positions", 2.0 * kBf16 * values, 0.0);
      return;
    }
    if (norm) {
      memory("query and key norms", 2.0 * kBf16 * values, 3.0 * kBf16 * values).op.launches = 2;
    }
    if (shape.rope_concentration == 1.0) {
      memory("rotary positions", 2.0 * kBf16 * values, 2.0 * kBf16 * values).op.launches = 2;
      return;
    }
    OperationStage& stage = memory("rotary positions", 24.0 * values, 28.0 * values);
    stage.op.launches = 2 * 12;
    stage.backward_launches = 2 * 7;
  }
  // x + f(x); in the backward pass the two gradients add up.
  void residual(double values) { memory("residual", 3.0 * kBf16 * values, 3.0 * kBf16 * values); }

  // In FP8, training quantises queries, keys and values before the product and the gradient of its
  // result behind it (BF16 read, a byte written), as Transformer Engine does; serving gets them so.
  void attention(const AttentionCall& call) {
    if (training_ && is_quantised(step_.precision.attention_core)) {
      const double rows = d(call.sequences) * d(call.query_length) / call.cp;
      const double queries = rows * call.num_heads * call.qk_dim;
      const double keys = rows * call.num_kv_heads * (call.qk_dim + call.v_dim);
      const double bytes = kBf16 + bytes_per_value(step_.precision.attention_core);
      memory("attention quantisation", bytes * (queries + keys),
             bytes * rows * call.num_heads * call.v_dim);
    }
    OperationStage& stage = add("attention product", OperationKind::kAttention);
    stage.op.attention = call;
    stage.op.precision = step_.precision.attention_core;
  }

  Stages take() && { return std::move(stages_); }

 private:
  OperationStage& add(std::string name, OperationKind kind) {
    OperationStage stage;
    stage.op.name = std::move(name);
    stage.op.part = part_;
    stage.op.kind = kind;
    stages_.push_back(std::move(stage));
    return stages_.back();
  }
  // BF16 rows are read, quantised ones written. Training writes rows and columns apart, as the
  // weight gradient reads the other order; backward does the same to the gradient of the product's
  // result, which costs about as much. FP8 in training is scaled by what a tensor holds now: a kernel
  // reads it for its largest value before another one converts it (Transformer Engine's
  // Float8CurrentScalingQuantizer). One call launches both: they count as one launch.
  void quantise(const std::string& name, double values, std::uint32_t launches = 1) {
    if (!is_quantised(types_.compute)) return;
    const bool current_scaling = training_ && types_.compute == Precision::kFp8;
    const double copies = training_ ? 2.0 : 1.0;
    const double bytes =
        values * ((current_scaling ? 2.0 : 1.0) * kBf16 + copies * bytes_per_value(types_.compute));
    memory(name + " quantisation", bytes, bytes).op.launches = launches;
  }

  ModelPart part_;
  PartPrecision types_;
  const StepSpec& step_;
  bool training_;
  Stages stages_;
};

// Floating-point operations and bytes of an attention product, forward or backward.
void price_attention(ModelOperation& op, const StepSpec& step) {
  const AttentionCall& call = op.attention;
  const double heads = call.num_heads;
  // Backward: scores again, and the gradients of probabilities, values, queries and keys.
  const double per_pair =
      op.backward ? 2.0 * (3.0 * call.qk_dim + 2.0 * call.v_dim) : 2.0 * (call.qk_dim + call.v_dim);
  op.flops = heads * call.pairs() * per_pair;
  const double queries = d(call.sequences) * d(call.query_length) / call.cp;
  double keys = d(call.sequences) * d(call.kv_length);
  if (call.window > 0) {
    keys = std::min(keys, d(call.sequences) * (d(call.query_length) + call.window));
  }
  // A latent key holds its value.
  const double cached =
      call.latent ? call.qk_dim : d(call.num_kv_heads) * (call.qk_dim + call.v_dim);
  const bool serving = step.kind != StepKind::kTrain;
  const double key_bytes =
      serving && call.query_length == 1 ? bytes_per_value(step.precision.kv_cache) : kBf16;
  const double query_bytes = kBf16 * queries * heads * (call.qk_dim + call.v_dim);
  // Backward reads queries, results and their gradients and writes gradients of queries; keys and
  // values are read and their gradients written.
  op.bytes = op.backward ? 2.0 * query_bytes + 2.0 * keys * cached * key_bytes
                         : query_bytes + keys * cached * key_bytes;
}

bool in_pass(const OperationStage& stage, Pass pass, Recompute recompute) {
  if (pass == Pass::kForward) return true;
  if (pass != Pass::kRecompute) return false;
  return recompute == Recompute::kFull || (recompute == Recompute::kSelective && stage.cheap) ||
         (recompute == Recompute::kLatent && stage.latent);
}

// [m, n] x [n, k]: the gradient of the rows.
ModelOperation input_gradient(const OperationStage& stage) {
  ModelOperation op = stage.op;
  op.name += " input gradient";
  std::swap(op.n, op.k);
  return op;
}

// [n, m] x [m, k], added to the gradient of the weights.
ModelOperation weight_gradient(const OperationStage& stage, const StepSpec& step) {
  ModelOperation op = stage.op;
  op.name += " weight gradient";
  const double gradients = bytes_per_value(step.precision.gradients);
  const double values = bytes_per_value(op.precision);
  if (op.kind == OperationKind::kGroupedProduct) {
    op.weight_gradient = true;
    const double rows = d(std::accumulate(op.rows.begin(), op.rows.end(), std::uint64_t{0}));
    const auto used = std::count_if(op.rows.begin(), op.rows.end(), [](auto r) { return r > 0; });
    op.bytes = rows * (d(op.n) + d(op.k)) * values +
               2.0 * gradients * static_cast<double>(used) * d(op.n) * d(op.k);
    return op;
  }
  op.bytes = d(op.m) * (d(op.n) + d(op.k)) * values + 2.0 * gradients * d(op.n) * d(op.k);
  const std::uint64_t rows = op.m;
  op.m = op.n;
  op.n = op.k;
  op.k = rows;
  return op;
}

std::vector<ModelOperation> of_pass(const Stages& stages, const StepSpec& step, Pass pass) {
  std::vector<ModelOperation> list;
  if (pass == Pass::kForward || pass == Pass::kRecompute) {
    for (const OperationStage& stage : stages) {
      if (!in_pass(stage, pass, step.recompute)) continue;
      list.push_back(stage.op);
      if (stage.op.kind == OperationKind::kAttention) price_attention(list.back(), step);
    }
    return list;
  }
  for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
    if (pass == Pass::kBackwardWeight) {
      if (stage->weights) list.push_back(weight_gradient(*stage, step));
      continue;
    }
    switch (stage->op.kind) {
      case OperationKind::kMatrixProduct:
      case OperationKind::kGroupedProduct:
        list.push_back(input_gradient(*stage));
        break;
      case OperationKind::kAttention:
        list.push_back(stage->op);
        list.back().name += " gradient";
        list.back().backward = true;
        price_attention(list.back(), step);
        break;
      case OperationKind::kMemoryBound:
        if (stage->backward_bytes == 0.0) break;
        list.push_back(stage->op);
        list.back().name += " gradient";
        list.back().bytes = stage->backward_bytes;
        list.back().launches = stage->backward_launches.value_or(stage->op.launches);
        break;
    }
  }
  return list;
}

AttentionCall attention_call(const ModelShape& model, const LayerWork& work, std::uint32_t layer) {
  const AttentionShape& shape = *model.attention;
  AttentionCall call;
  call.sequences = work.sequences;
  call.query_length = work.query_length;
  call.kv_length = work.kv_length;
  call.num_heads = shape.num_heads / work.tp;
  call.num_kv_heads = std::max(1U, shape.num_kv_heads / work.tp);
  call.qk_dim = shape.qk_dim;
  call.v_dim = shape.v_dim;
  call.window = model.is_windowed_layer(layer) ? shape.window : 0;
  call.cp = work.cp;
  if (shape.kind == AttentionKind::kMla && work.decode) {
    call.latent = true;
    call.num_kv_heads = 1;
    call.qk_dim = shape.kv_lora_rank + shape.rope_dim;
    call.v_dim = shape.kv_lora_rank;
  }
  return call;
}

// Multi-head or grouped-query attention.
void grouped_query_stages(StageList& list, const ModelShape& model, const LayerWork& work,
                          std::uint32_t layer) {
  const AttentionShape& shape = *model.attention;
  const AttentionCall call = attention_call(model, work, layer);
  const std::uint64_t query_key = (call.num_heads + call.num_kv_heads) * shape.qk_dim;
  const std::uint64_t values = call.num_kv_heads * shape.v_dim;
  const std::uint64_t tokens = work.tokens();
  list.product("query, key and value product", tokens, query_key + values, model.hidden);
  list.query_key_kernels(d(tokens) * d(query_key), shape);
  list.attention(call);
  list.product("output product", tokens, model.hidden, std::uint64_t{call.num_heads} * shape.v_dim);
}

// Multi-head latent attention. Down-projections are not split over tp: every rank makes those of
// its own tokens.
void latent_stages(StageList& list, const ModelShape& model, const LayerWork& work,
                   std::uint32_t layer) {
  const AttentionShape& shape = *model.attention;
  const AttentionCall call = attention_call(model, work, layer);
  const std::uint64_t tokens = work.tokens();
  const std::uint64_t own = work.own_tokens();
  const std::uint64_t heads = call.num_heads;
  const std::uint64_t latent = shape.kv_lora_rank + shape.rope_dim;
  const std::uint64_t query_values = heads * shape.qk_dim;
  const auto again = [](OperationStage& stage) { stage.cheap = stage.latent = true; };
  if (shape.q_lora_rank > 0) {
    list.product("query and latent down product", own, shape.q_lora_rank + latent, model.hidden);
    list.norm("latent norms", d(own) * (shape.q_lora_rank + shape.kv_lora_rank));
    again(list.product("query up product", tokens, query_values, shape.q_lora_rank));
  } else {
    list.product("query product", tokens, query_values, model.hidden);
    list.product("latent down product", own, latent, model.hidden);
    list.norm("latent norms", d(own) * shape.kv_lora_rank);
  }
  if (work.decode) {
    list.batched("query absorption", heads, tokens, shape.kv_lora_rank, shape.nope_dim);
    list.memory("rotary positions", 2.0 * kBf16 * d(tokens) * d(heads * shape.rope_dim), 0.0);
    list.attention(call);
    list.batched("value absorption", heads, tokens, shape.v_dim, shape.kv_lora_rank);
  } else {
    // With cached context the keys and values of all of it are made from the latents.
    const std::uint64_t keys = work.sequences * work.kv_length / work.cp;
    again(list.product("key and value up product", keys, heads * (shape.nope_dim + shape.v_dim),
                       shape.kv_lora_rank));
    const double assembled =
        2.0 * kBf16 * (d(tokens) * d(query_values) + d(keys) * d(heads * shape.qk_dim));
    OperationStage& rotary = list.memory("rotary positions", assembled, assembled);
    if (work.training) rotary.op.launches = 2;
    again(rotary);
    list.attention(call);
  }
  list.product("output product", tokens, model.hidden, heads * shape.v_dim);
}

void mlp_stages(StageList& list, std::uint64_t tokens, std::uint64_t hidden, std::uint64_t width) {
  list.product("gate and up product", tokens, 2 * width, hidden);
  list.gated_activation(d(tokens) * d(width));
  list.product("down product", tokens, hidden, width);
}

constexpr PartPrecision kPlain{Precision::kBf16, Precision::kBf16};

}  // namespace

std::string_view to_string(ModelPart part) {
  constexpr std::array<std::string_view, 10> kNames{
      "embedding",      "norm",      "attention", "router", "experts",
      "shared_experts", "dense_mlp", "lm_head",   "loss",   "optimizer"};
  return kNames[static_cast<std::size_t>(part)];
}

double AttentionCall::pairs() const {
  // Query i of q, counted from 0, sees kv_length - q + i + 1 keys, or the last `window` of them.
  const double q = d(query_length);
  const double before = d(kv_length) - q;
  double per_sequence = q * before + 0.5 * q * (q + 1.0);
  if (window > 0 && d(kv_length) > window) {
    const double growing = std::max(0.0, window - before);  // queries that see fewer than `window`
    per_sequence = growing * before + 0.5 * growing * (growing + 1.0) + (q - growing) * d(window);
  }
  return d(sequences) * per_sequence / cp;
}

std::uint64_t total_launches(std::span<const ModelOperation> operations) {
  std::uint64_t sum = 0;
  for (const ModelOperation& op : operations) sum += op.launches;
  return sum;
}

double total_flops(std::span<const ModelOperation> operations) {
  double sum = 0.0;
  for (const ModelOperation& op : operations) sum += op.flops;
  return sum;
}

double total_bytes(std::span<const ModelOperation> operations) {
  double sum = 0.0;
  for (const ModelOperation& op : operations) sum += op.bytes;
  return sum;
}

LayerWork layer_work(const StepSpec& step) {
  LayerWork work;
  work.tp = step.parallel.tp;
  work.cp = step.parallel.cp;
  const std::uint64_t group = std::uint64_t{work.tp} * work.cp;
  switch (step.kind) {
    case StepKind::kTrain:
      work.sequences = step.train.micro;
      work.query_length = work.kv_length = step.train.sequence;
      work.training = true;
      break;
    case StepKind::kPrefill:
      work.sequences =
          step.prefill.tokens_per_gpu * group / step.prefill.sequence / step.overlap.micro_batches;
      work.query_length = step.prefill.sequence;
      work.kv_length = work.query_length + step.prefill.cached;
      break;
    case StepKind::kDecode:
      work.sequences = step.decode.sequences_per_gpu * group / step.overlap.micro_batches;
      work.query_length = 1;
      work.kv_length = std::uint64_t{step.decode.context} + 1;
      work.decode = true;
      break;
  }
  return work;
}

LayerOperations layer_operations(const ModelShape& model, const StepSpec& step,
                                 const LayerWork& work, std::uint32_t layer, Pass pass) {
  const double own_values = d(work.own_tokens()) * model.hidden;
  LayerOperations operations;
  StageList attention(ModelPart::kAttention, step.precision.attention, step);
  attention.norm("attention norm", own_values);
  if (model.attention->kind == AttentionKind::kMla) {
    latent_stages(attention, model, work, layer);
  } else {
    grouped_query_stages(attention, model, work, layer);
  }
  attention.residual(own_values);
  operations.attention = of_pass(std::move(attention).take(), step, pass);

  if (!model.is_moe_layer(layer)) {
    StageList dense(ModelPart::kDenseMlp, step.precision.dense, step);
    dense.norm("MLP norm", own_values);
    mlp_stages(dense, work.tokens(), model.hidden, model.dense_intermediate / work.tp);
    dense.residual(own_values);
    operations.dense_mlp = of_pass(std::move(dense).take(), step, pass);
    return operations;
  }
  StageList router(ModelPart::kRouter, kPlain, step);
  router.norm("MLP norm", own_values);
  router.product("router product", work.own_tokens(), model.num_experts, model.hidden);
  // Scores in FP32, read for the choice, and the chosen weights.
  const double scores = d(work.own_tokens()) * model.num_experts;
  router.memory("expert choice", 2.0 * 4.0 * scores, 2.0 * 4.0 * scores);
  router.residual(own_values);
  operations.router = of_pass(std::move(router).take(), step, pass);
  if (model.num_shared_experts > 0) {
    StageList shared(ModelPart::kSharedExperts, step.precision.dense, step);
    mlp_stages(shared, work.tokens(), model.hidden,
               std::uint64_t{model.num_shared_experts} * model.shared_intermediate / work.tp);
    operations.shared = of_pass(std::move(shared).take(), step, pass);
  }
  return operations;
}

std::vector<ModelOperation> expert_operations(const ModelShape& model, const StepSpec& step,
                                              std::span<const std::uint64_t> rows, Pass pass) {
  const std::uint64_t all = std::accumulate(rows.begin(), rows.end(), std::uint64_t{0});
  if (all == 0) return {};
  StageList list(ModelPart::kExperts, step.precision.experts, step);
  list.grouped("gate and up product", rows, 2 * std::uint64_t{model.expert_intermediate},
               model.hidden);
  if (model.activation_clamp > 0.0 && step.kind == StepKind::kTrain) {
    list.clamp(2.0 * d(all) * model.expert_intermediate);
  }
  list.gated_activation(d(all) * model.expert_intermediate);
  list.grouped("down product", rows, model.hidden, model.expert_intermediate);
  if (model.expert_bias && step.kind == StepKind::kTrain) {
    list.expert_bias(d(all) * model.hidden, static_cast<std::uint32_t>(rows.size()));
  }
  return of_pass(std::move(list).take(), step, pass);
}

std::vector<ModelOperation> embedding_operations(const ModelShape& model, const StepSpec& step,
                                                 const LayerWork& work, Pass pass) {
  StageList list(ModelPart::kEmbedding, kPlain, step);
  const double values = d(work.own_tokens()) * model.hidden;
  // Backward adds the rows' gradients to those of the table.
  const double gradients = bytes_per_value(step.precision.gradients);
  list.memory("embedding", 2.0 * kBf16 * values, (kBf16 + 2.0 * gradients) * values);
  if (pass == Pass::kRecompute) return {};
  // The table's gradient is a weight gradient; no gradient goes further back.
  if (pass == Pass::kBackwardInput) return {};
  return of_pass(std::move(list).take(), step,
                 pass == Pass::kBackwardWeight ? Pass::kBackwardInput : pass);
}

std::vector<ModelOperation> head_operations(const ModelShape& model, const StepSpec& step,
                                            const LayerWork& work, Pass pass) {
  if (pass == Pass::kRecompute) return {};
  // Prefill: the last token of each prompt.
  const std::uint64_t rows = step.kind == StepKind::kPrefill ? work.sequences : work.tokens();
  const std::uint64_t vocabulary = (model.vocabulary + work.tp - 1) / work.tp;
  StageList head(ModelPart::kLmHead, step.precision.lm_head, step);
  head.norm("last norm", step.kind == StepKind::kPrefill ? d(rows) * model.hidden
                                                         : d(work.own_tokens()) * model.hidden);
  head.product("LM head", rows, vocabulary, model.hidden);
  std::vector<ModelOperation> operations;
  StageList loss(ModelPart::kLoss, kPlain, step);
  const double logits = d(rows) * d(vocabulary);
  // Training: largest and sum read the logits, a third pass writes their gradient in place.
  // Serving: two passes to sample.
  if (step.kind == StepKind::kTrain) {
    loss.memory("cross entropy", 4.0 * kBf16 * logits, 2.0 * kBf16 * logits);
  } else {
    loss.memory("sampling", 2.0 * kBf16 * logits, 0.0);
  }
  const auto append = [&](std::vector<ModelOperation> more) {
    operations.insert(operations.end(), more.begin(), more.end());
  };
  const Stages head_stages = std::move(head).take();
  const Stages loss_stages = std::move(loss).take();
  if (pass == Pass::kForward) {
    append(of_pass(head_stages, step, pass));
    append(of_pass(loss_stages, step, pass));
  } else {
    append(of_pass(loss_stages, step, pass));
    append(of_pass(head_stages, step, pass));
  }
  return operations;
}

std::vector<ModelOperation> mtp_operations(const ModelShape& model, const StepSpec& step,
                                           const LayerWork& work, Pass pass) {
  if (pass == Pass::kRecompute) return {};
  StageList list(ModelPart::kLmHead, step.precision.dense, step);
  const double values = d(work.own_tokens()) * model.hidden;
  list.norm("hidden and embedding norms", 2.0 * values);
  list.product("prediction projection", work.tokens(), model.hidden / work.tp,
               2 * std::uint64_t{model.hidden});
  std::vector<ModelOperation> operations = of_pass(std::move(list).take(), step, pass);
  const std::vector<ModelOperation> head = head_operations(model, step, work, pass);
  operations.insert(pass == Pass::kForward ? operations.end() : operations.begin(), head.begin(),
                    head.end());
  return operations;
}

std::vector<ModelOperation> optimizer_operations(const StepSpec& step, double parameters) {
  const StepPrecision& types = step.precision;
  ModelOperation op;
  op.name = "Adam update";
  op.part = ModelPart::kOptimizer;
  // The gradient is read for its norm and for the update; main weights and moments are read and
  // written, the weights written.
  op.bytes = parameters *
             (2.0 * bytes_per_value(types.gradients) + 2.0 * bytes_per_value(types.main_weights) +
              4.0 * bytes_per_value(types.moments) + kBf16);
  return {op};
}

double model_flops_per_token(const ModelShape& model, const StepSpec& step, bool mtp) {
  // One unsplit sequence of the step's kind; rows spread over experts in any way have equal FLOPs.
  StepSpec whole = step;
  whole.parallel.tp = whole.parallel.cp = 1;
  whole.overlap.micro_batches = 1;
  LayerWork work = layer_work(step);
  work.tp = work.cp = 1;
  const std::array rows{work.tokens() * model.num_topk};
  double moe_layer = 0.0;
  double sum = total_flops(head_operations(model, whole, work, Pass::kForward));
  for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
    const LayerOperations ops = layer_operations(model, whole, work, layer, Pass::kForward);
    const double flops = total_flops(ops.attention) + total_flops(ops.dense_mlp) +
                         total_flops(ops.router) + total_flops(ops.shared);
    sum += flops;
    if (!model.is_moe_layer(layer)) continue;
    const double experts = total_flops(expert_operations(model, whole, rows, Pass::kForward));
    sum += experts;
    moe_layer = flops + experts;
  }
  if (mtp) {
    sum += model.num_mtp_layers *
           (moe_layer + total_flops(mtp_operations(model, whole, work, Pass::kForward)));
  }
  return (step.kind == StepKind::kTrain ? 3.0 : 1.0) * sum / d(work.tokens());
}

}  // namespace coterie
