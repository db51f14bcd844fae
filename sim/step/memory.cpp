#include "sim/step/memory.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/units.hpp"
#include "sim/step/operations.hpp"

namespace coterie {
namespace {

constexpr double kBytesOfBf16 = 2.0;
constexpr double kFp32 = 4.0;
// CUDA context, libraries' workspaces, NCCL's channels and the allocator's fragments: what a GPU
// loses before the model's own tensors, as frameworks show it.
constexpr double kRuntimeBytes = 3.0 * (1 << 30);

double real(std::uint64_t count) {
  return static_cast<double>(count);
}

// Parameters on one GPU by the precision that they have.
struct PartParameters {
  double attention = 0.0;
  double dense = 0.0;  // dense MLPs and shared experts
  double head = 0.0;   // embedding and LM head
  double experts = 0.0;
  double other = 0.0;  // norms and routers, in BF16

  PartParameters& operator+=(const PartParameters& more) {
    attention += more.attention;
    dense += more.dense;
    head += more.head;
    experts += more.experts;
    other += more.other;
    return *this;
  }
};

// One layer's attention on one of tp ranks. MLA's down-projections and norms are not split.
double attention_on_rank(const ModelShape& model, std::uint32_t tp) {
  const AttentionShape& shape = *model.attention;
  const double hidden = model.hidden;
  const double all = real(attention_parameters(model));
  if (shape.kind == AttentionKind::kMla) {
    const double q_rank = shape.q_lora_rank;
    const double kv_rank = shape.kv_lora_rank;
    const double whole = hidden * q_rank + q_rank + hidden * (kv_rank + shape.rope_dim) + kv_rank;
    return whole + (all - whole) / tp;
  }
  // Key and value heads are repeated where tp is larger than their number.
  const double copied = tp > shape.num_kv_heads ? real(tp) / shape.num_kv_heads : 1.0;
  const double kv = hidden * real(shape.num_kv_heads) * (shape.qk_dim + shape.v_dim);
  return (all - kv + kv * copied) / tp;
}

PartParameters layer_parameters(const ModelShape& model, const StepSpec& step, bool moe,
                                std::uint32_t num_replicas) {
  const std::uint32_t tp = step.parallel.tp;
  const double hidden = model.hidden;
  PartParameters sum;
  sum.attention = attention_on_rank(model, tp);
  sum.other = 2.0 * hidden;
  if (!moe) {
    sum.dense = 3.0 * hidden * model.dense_intermediate / tp;
    return sum;
  }
  sum.other += real(model.num_experts) * (hidden + (model.router_bias ? 1.0 : 0.0));
  sum.dense = 3.0 * hidden * model.num_shared_experts * model.shared_intermediate / tp;
  if (model.shared_expert_gate) sum.other += hidden;
  sum.experts =
      real(expert_parameters(model)) * (model.num_experts + num_replicas) / step.parallel.ep;
  return sum;
}

// The layers of a stage, chunk by chunk.
std::vector<LayerRange> stage_chunks(const ModelShape& model, const StepSpec& step,
                                     std::uint32_t stage) {
  const std::vector<LayerRange> all = deal_layers(model.num_layers, step.parallel);
  std::vector<LayerRange> chunks;
  for (std::size_t c = stage; c < all.size(); c += step.parallel.pp) chunks.push_back(all[c]);
  return chunks;
}

PartParameters parameters_of_stage(const ModelShape& model, const StepSpec& step,
                                   std::uint32_t stage, std::uint32_t num_replicas) {
  PartParameters sum;
  for (const LayerRange& chunk : stage_chunks(model, step, stage)) {
    for (std::uint32_t layer = chunk.first; layer < chunk.first + chunk.num; ++layer) {
      sum += layer_parameters(model, step, model.is_moe_layer(layer), num_replicas);
    }
  }
  const bool first = stage == 0;
  const bool last = stage + 1 == step.parallel.pp;
  const double hidden = model.hidden;
  const double table = hidden * model.vocabulary / step.parallel.tp;
  if (first) sum.head += table;
  // Tied embeddings are kept twice where first and last stage differ.
  if (last && !(first && model.tied_embeddings)) sum.head += table;
  if (last) {
    sum.other += hidden;
    for (std::uint32_t i = 0; i < step.mtp_layers; ++i) {
      sum += layer_parameters(model, step, true, num_replicas);
      sum.other += 3.0 * hidden;
      sum.dense += 2.0 * hidden * hidden / step.parallel.tp;
    }
  }
  return sum;
}

// Training keeps a quantised weight twice, by rows for the forward pass and by columns for the
// backward pass, and beside NVFP4 the BF16 weight that it is made from.
double weight_bytes(PartPrecision types, bool training) {
  const double bytes = bytes_per_value(types.weights);
  if (!training || types.weights == Precision::kBf16) return bytes;
  return 2.0 * bytes + (types.weights == Precision::kNvfp4 ? kBytesOfBf16 : 0.0);
}

// Of one layer and micro-batch, by what selective recomputation leaves out.
struct LayerActivations {
  double input = 0.0;   // the layer's own, kept in any case
  double kept = 0.0;    // by `selective` too
  double cheap = 0.0;   // made again by `selective`
  double latent = 0.0;  // of it, by `latent`
};

LayerActivations attention_activations(const ModelShape& model, const StepSpec& step,
                                       const LayerWork& work) {
  const AttentionShape& shape = *model.attention;
  const double own = real(work.own_tokens());
  const double tokens = real(work.tokens());
  const double stored = bytes_per_value(step.precision.attention.compute);
  const double heads = real(shape.num_heads) / work.tp;
  const double kv_heads = std::max(1.0, real(shape.num_kv_heads) / work.tp);
  LayerActivations sum;
  sum.input = kBytesOfBf16 * own * model.hidden;
  sum.cheap = stored * own * model.hidden;  // the norm's output
  const double queries = kBytesOfBf16 * tokens * heads * shape.qk_dim;
  if (shape.kind == AttentionKind::kMla) {
    const double latent = shape.q_lora_rank + shape.kv_lora_rank;
    sum.kept += kBytesOfBf16 * own * (latent + shape.rope_dim);
    sum.cheap += stored * own * latent;  // normalised
    sum.latent = queries + kBytesOfBf16 * tokens * heads * (shape.qk_dim + shape.v_dim);
    sum.cheap += sum.latent;
  } else {
    sum.kept += queries + kBytesOfBf16 * tokens * kv_heads * (shape.qk_dim + shape.v_dim);
  }
  // The attention product's result and the logarithm of each row's sum.
  sum.kept += kBytesOfBf16 * tokens * heads * shape.v_dim + kFp32 * tokens * heads;
  if (stored < kBytesOfBf16) sum.kept += stored * tokens * heads * shape.v_dim;
  return sum;
}

// A gated MLP on `rows` rows, its input apart.
void add_mlp(LayerActivations& sum, double rows, double width, PartPrecision types) {
  sum.kept += 2.0 * kBytesOfBf16 * rows * width;  // gate and up
  sum.cheap += bytes_per_value(types.compute) * rows * width;
}

LayerActivations layer_activations(const ModelShape& model, const StepSpec& step,
                                   const LayerWork& work, bool moe, double rows) {
  LayerActivations sum = attention_activations(model, step, work);
  const StepPrecision& types = step.precision;
  const double own = real(work.own_tokens());
  const double tokens = real(work.tokens());
  const double hidden = model.hidden;
  sum.kept += kBytesOfBf16 * own * hidden;  // what the second norm reads
  if (!moe) {
    sum.cheap += bytes_per_value(types.dense.compute) * own * hidden;
    add_mlp(sum, tokens, real(model.dense_intermediate) / work.tp, types.dense);
    return sum;
  }
  sum.cheap += kBytesOfBf16 * own * hidden;
  sum.kept += kFp32 * own * model.num_experts;
  sum.kept += bytes_per_value(types.experts.compute) * rows * hidden;  // dispatched
  add_mlp(sum, rows, model.expert_intermediate, types.experts);
  if (model.num_shared_experts > 0) {
    add_mlp(sum, tokens, real(model.num_shared_experts) * model.shared_intermediate / work.tp,
            types.dense);
  }
  return sum;
}

double kept_bytes(const LayerActivations& sum, Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone:
      return sum.input + sum.kept + sum.cheap;
    case Recompute::kSelective:
      return sum.input + sum.kept;
    case Recompute::kFull:
      return sum.input;
    case Recompute::kLatent:
      return sum.input + sum.kept + sum.cheap - sum.latent;
  }
  return 0.0;
}

double balanced_rows(const ModelShape& model, const LayerWork& work, double max_over_mean) {
  return real(work.own_tokens()) * model.num_topk * max_over_mean;
}

double kv_cache_bytes(const ModelShape& model, const StepSpec& step) {
  const AttentionShape& shape = *model.attention;
  LayerWork work = layer_work(step);
  const double sequences = real(work.sequences) * step.overlap.micro_batches;
  // MLA's latent is whole on every tp rank; heads are split. cp ranks have parts of a sequence.
  const double values = shape.kind == AttentionKind::kMla
                            ? shape.cached_values()
                            : std::max(1.0, real(shape.num_kv_heads) / step.parallel.tp) *
                                  (shape.qk_dim + shape.v_dim);
  const double split = step.parallel.cp;
  double tokens = 0.0;
  for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
    const bool windowed = model.is_windowed_layer(layer);
    tokens += windowed ? std::min(real(work.kv_length), real(shape.window)) : real(work.kv_length);
  }
  return sequences * tokens / split * values * bytes_per_value(step.precision.kv_cache);
}

double train_activations(const ModelShape& model, const StepSpec& step, std::uint32_t stage,
                         double rows) {
  const std::vector<LayerRange> chunks = stage_chunks(model, step, stage);
  double all = 0.0;
  for (const LayerRange& chunk : chunks) {
    for (std::uint32_t layer = chunk.first; layer < chunk.first + chunk.num; ++layer) {
      all += layer_activation_bytes(model, step, layer, rows);
    }
  }
  double bytes = all / real(chunks.size()) * chunks_in_flight(step, stage);
  const LayerWork work = layer_work(step);
  if (step.recompute == Recompute::kFull) {
    // The layer that is being made again.
    const bool moe = !model.moe_layers.empty();
    bytes += kept_bytes(layer_activations(model, step, work, moe, rows), Recompute::kNone);
  }
  if (stage + 1 == step.parallel.pp) {
    // LM head and multi-token prediction run backward right after their forward pass.
    const LayerActivations layer = layer_activations(model, step, work, true, rows);
    bytes += step.mtp_layers * (kept_bytes(layer, step.recompute) +
                                3.0 * kBytesOfBf16 * real(work.own_tokens()) * model.hidden);
  }
  return bytes;
}

// The largest of what one layer of a serving step keeps at a time.
double serving_activations(const ModelShape& model, const LayerWork& work, double rows) {
  const AttentionShape& shape = *model.attention;
  const double own = real(work.own_tokens());
  const double tokens = real(work.tokens());
  const double hidden = model.hidden;
  const double residual = 2.0 * kBytesOfBf16 * own * hidden;
  const double heads = real(shape.num_heads) / work.tp;
  const double attention = kBytesOfBf16 * tokens * heads * (2.0 * shape.qk_dim + 2.0 * shape.v_dim);
  const double experts = kBytesOfBf16 * rows * (2.0 * hidden + 3.0 * model.expert_intermediate);
  const double dense = kBytesOfBf16 * tokens * 3.0 * model.dense_intermediate / work.tp;
  return residual + std::max({attention, experts, dense});
}

double buffer_bytes(const ModelShape& model, const StepSpec& step, const LayerWork& work,
                    std::uint32_t stage, double rows) {
  double bytes = kRuntimeBytes;
  // Rows on their way out and in, in both directions of the exchange.
  const double sent = real(work.own_tokens()) * model.num_topk;
  bytes += (sent + rows) * model.hidden * kBytesOfBf16 * step.overlap.micro_batches;
  if (stage + 1 == step.parallel.pp) {
    const double positions =
        step.kind == StepKind::kPrefill ? real(work.sequences) : real(work.tokens());
    bytes += positions * model.vocabulary / step.parallel.tp * (kBytesOfBf16 + kFp32);
  }
  return bytes;
}

}  // namespace

StageParameters stage_parameters(const ModelShape& model, const StepSpec& step, std::uint32_t stage,
                                 std::uint32_t num_replicas) {
  const PartParameters sum = parameters_of_stage(model, step, stage, num_replicas);
  return {sum.attention + sum.dense + sum.head + sum.other, sum.experts};
}

double layer_activation_bytes(const ModelShape& model, const StepSpec& step, std::uint32_t layer,
                              double rows) {
  const LayerActivations sum =
      layer_activations(model, step, layer_work(step), model.is_moe_layer(layer), rows);
  return kept_bytes(sum, step.recompute);
}

std::uint32_t chunks_in_flight(const StepSpec& step, std::uint32_t stage) {
  if (step.kind != StepKind::kTrain) return 1;
  const ParallelSizes& sizes = step.parallel;
  const std::uint32_t all = step.num_micro_batches() * sizes.vp;
  const std::uint32_t behind = sizes.pp - stage - 1;
  const bool paired = step.overlap.micro_batches > 1;
  const std::uint32_t warm_up =
      sizes.vp > 1 || paired ? 2 * behind + (sizes.vp - 1) * sizes.pp : behind;
  // Pairing a forward with another micro-batch's backward pass keeps one more.
  return std::min(all, warm_up + step.overlap.micro_batches);
}

MemoryBytes stage_memory(const ModelShape& model, const StepSpec& step, const GpuModel& gpu,
                         std::uint32_t stage, std::uint32_t num_replicas,
                         double rank_load_max_over_mean) {
  const PartParameters parts = parameters_of_stage(model, step, stage, num_replicas);
  const StepPrecision& types = step.precision;
  const bool training = step.kind == StepKind::kTrain;
  const LayerWork work = layer_work(step);
  const double rows = balanced_rows(model, work, rank_load_max_over_mean);
  MemoryBytes memory;
  memory.weights = parts.attention * weight_bytes(types.attention, training) +
                   parts.dense * weight_bytes(types.dense, training) +
                   parts.head * weight_bytes(types.lm_head, training) +
                   parts.experts * weight_bytes(types.experts, training) +
                   parts.other * kBytesOfBf16;
  if (training) {
    const double dense = parts.attention + parts.dense + parts.head + parts.other;
    memory.gradients = (dense + parts.experts) * bytes_per_value(types.gradients);
    const double state = bytes_per_value(types.main_weights) + 2.0 * bytes_per_value(types.moments);
    const bool sharded = step.distributed_optimizer;
    const double dense_shards = sharded ? real(step.parallel.dp) * step.parallel.cp : 1.0;
    const double expert_shards = sharded ? step.parallel.edp() : 1.0;
    memory.optimizer = state * (dense / dense_shards + parts.experts / expert_shards);
    memory.activations = train_activations(model, step, stage, rows);
  } else {
    memory.activations = serving_activations(model, work, rows);
    memory.kv_cache = kv_cache_bytes(model, step);
  }
  memory.buffers = buffer_bytes(model, step, work, stage, rows);
  if (gpu.memory) memory.available = static_cast<double>(gpu.memory->value);
  return memory;
}

MemoryBytes memory_per_gpu(const ModelShape& model, const StepSpec& step, const GpuModel& gpu,
                           std::uint32_t num_replicas, double rank_load_max_over_mean) {
  MemoryBytes fullest;
  for (std::uint32_t stage = 0; stage < step.parallel.pp; ++stage) {
    const MemoryBytes memory =
        stage_memory(model, step, gpu, stage, num_replicas, rank_load_max_over_mean);
    if (stage == 0 || memory.total() > fullest.total()) fullest = memory;
  }
  return fullest;
}

std::optional<std::uint32_t> largest_batch(const ModelShape& model, const StepSpec& step,
                                           const GpuModel& gpu, std::uint32_t num_replicas) {
  if (!gpu.memory) return std::nullopt;
  // Batches are whole units: sequences, or prompts on a group of GPUs.
  StepSpec tried = step;
  std::uint32_t unit = 1;
  std::uint32_t limit = 1U << 20;
  if (step.kind == StepKind::kTrain) {
    limit = step.train.global / step.parallel.dp;
  } else if (step.kind == StepKind::kPrefill) {
    const std::uint32_t group = step.parallel.tp * step.parallel.cp;
    unit = std::max(1U, step.prefill.sequence * step.overlap.micro_batches / group);
    limit = (1U << 26) / unit;
  } else {
    unit = step.overlap.micro_batches;
  }
  const auto fits = [&](std::uint32_t units) {
    const std::uint32_t batch = units * unit;
    if (step.kind == StepKind::kTrain) tried.train.micro = batch;
    if (step.kind == StepKind::kPrefill) tried.prefill.tokens_per_gpu = batch;
    if (step.kind == StepKind::kDecode) tried.decode.sequences_per_gpu = batch;
    return memory_per_gpu(model, tried, gpu, num_replicas).fits();
  };
  if (limit == 0 || !fits(1)) return 0;
  std::uint32_t good = 1, bad = limit + 1;
  while (bad - good > 1) {
    const std::uint32_t middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return good * unit;
}

std::string memory_sentence(const MemoryBytes& memory) {
  std::string text = fmt::format("needs {} of {} per GPU:", format_bytes(memory.total()),
                                 format_bytes(memory.available));
  const auto add = [&](const char* name, double bytes, const char* separator) {
    if (bytes > 0.0) text += fmt::format("{} {} {}", separator, name, format_bytes(bytes));
  };
  add("weights", memory.weights, "");
  add("gradients", memory.gradients, ",");
  add("optimizer", memory.optimizer, ",");
  add("activations", memory.activations, ",");
  add("KV cache", memory.kv_cache, ",");
  add("buffers", memory.buffers, ",");
  return text;
}

}  // namespace coterie
