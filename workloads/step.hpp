#pragma once
// The `step` block of an experiment: a whole training, prefill or decode step instead of single MoE
// layers.
//
//   step:
//     kind: train                      # train | prefill | decode
//     parallel: {tp: 1, pp: 8, vp: 2, cp: 1, ep: 32}
//     batch: {global: 4096, micro: 1, sequence: 4096}
//     precision: mxfp8
//     recompute: none
//     overlap: {micro_batches: 2, gradient_reduction: true, shared_expert: true}
//     routing: balanced
//     routing_per: step                # step | micro_batch
//     series: {steps: 8, drift: 0.1}   # so many steps with routing that drifts
//     launch: host                     # graph | host | {per_kernel: 40 us, graphs: [attention]}

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/units.hpp"
#include "core/yaml.hpp"
#include "workloads/model.hpp"

namespace coterie {

enum class StepKind : std::uint8_t { kTrain, kPrefill, kDecode };
std::string to_string(StepKind kind);  // train, prefill, decode

// Number formats, and what a matrix product in them is.
enum class Precision : std::uint8_t {
  kFp32,   // gradients, optimizer states
  kBf16,   // 2 bytes per value
  kFp8,    // 1 byte, scaled by tensor or by block of 128 (a float per 128 values)
  kMxfp8,  // 1 byte and one byte of scale per 32 values
  kNvfp4,  // half a byte and one byte of scale per 16 values
  kMxfp4,  // half a byte and one byte of scale per 32 values; as weights only: products are in BF16
};
std::string to_string(Precision precision);  // fp32, bf16, fp8, mxfp8, nvfp4, mxfp4
std::optional<Precision> parse_precision(std::string_view name);
// Bytes per value, scales included: 4, 2, 1 + 4/128, 1 + 1/32, 0.5 + 1/16, 0.5 + 1/32.
double bytes_per_value(Precision precision);

// The types of one model part: what its matrix products compute in and what its weights are stored
// in. They differ for MXFP4 weights only (BF16 products) and in training, where a BF16 copy of the
// weights is kept beside the quantised one.
struct PartPrecision {
  Precision compute = Precision::kBf16;
  Precision weights = Precision::kBf16;
  bool operator==(const PartPrecision&) const = default;
};

// `precision: T` gives attention projections, dense MLPs, shared and routed experts the type T;
// embedding, LM head, router, norms and the attention product stay in BF16 (as Megatron's recipes
// and the published checkpoints do). A map overrides parts:
//   precision: {default: fp8, experts: mxfp4, lm_head: bf16, attention_core: fp8, kv_cache: fp8,
//               gradients: bf16, moments: bf16}
struct StepPrecision {
  PartPrecision attention;                      // the projections
  PartPrecision experts;                        // routed
  PartPrecision dense;                          // dense MLPs and shared experts
  PartPrecision lm_head;                        // embedding and LM head
  Precision attention_core = Precision::kBf16;  // the products with keys and values
  Precision kv_cache = Precision::kBf16;
  Precision gradients = Precision::kFp32;     // accumulated and reduced in: fp32 or bf16
  Precision moments = Precision::kFp32;       // each of Adam's two: fp32, bf16 or fp8
  Precision main_weights = Precision::kFp32;  // the optimizer's copy: fp32 or bf16
};

// Sizes of the parallel dimensions (names as in Megatron-LM). `ranks` of the experiment is the
// number of GPUs: dp = ranks / (tp * cp * pp); the EP groups of a pipeline stage are ranks / (pp *
// ep) (expert data parallelism); experts are not split by tp.
struct ParallelSizes {
  std::uint32_t tp = 1;  // tensor
  std::uint32_t pp = 1;  // pipeline stages
  std::uint32_t vp = 1;  // chunks of layers (virtual stages) per pipeline stage
  std::uint32_t cp = 1;  // context
  std::uint32_t ep = 1;  // expert
  std::uint32_t dp = 1;  // data; follows
  // What the embedding on the first chunk, and LM head and loss (with multi-token prediction) on
  // the last one, count as, in layers, when layers are dealt to the pp * vp chunks in equal parts.
  std::uint32_t embedding_layers = 0;
  std::uint32_t loss_layers = 0;

  [[nodiscard]] std::uint32_t num_ranks() const { return tp * cp * dp * pp; }
  // Expert data parallelism: ranks of a stage that hold the same experts.
  [[nodiscard]] std::uint32_t edp() const { return tp * cp * dp / ep; }
};

// train
struct TrainBatch {
  std::uint32_t global = 0;    // sequences of a step, over all replicas
  std::uint32_t micro = 0;     // sequences of a micro-batch of one data-parallel rank
  std::uint32_t sequence = 0;  // tokens per sequence
  // Micro-batches per pipeline and step: global / (micro * dp).
  [[nodiscard]] std::uint32_t num_micro_batches(const ParallelSizes& parallel) const {
    return global / (micro * parallel.dp);
  }
};
// prefill: every GPU computes `tokens_per_gpu` prompt tokens (tp and cp ranks share theirs:
// together they have tokens_per_gpu * tp * cp), in prompts of `sequence` tokens, after `cached`
// tokens of context.
struct PrefillBatch {
  std::uint32_t tokens_per_gpu = 0;
  std::uint32_t sequence = 0;
  std::uint32_t cached = 0;
};
// decode: one token for each of `sequences_per_gpu` sequences (tp ranks: together sequences_per_gpu
// * tp) that have `context` tokens in the cache each.
struct DecodeBatch {
  std::uint32_t sequences_per_gpu = 0;
  std::uint32_t context = 0;
};

enum class Recompute : std::uint8_t {
  kNone,
  kSelective,  // what is cheap to make again: norms, activation functions, MLA's up-projections
  kFull,       // every layer's forward pass; its input alone is kept
  kLatent,     // MLA's up-projections alone (mla_up_proj of Megatron Core)
};
std::string to_string(Recompute recompute);  // none, selective, full, latent

struct StepOverlap {
  std::uint32_t micro_batches = 1;  // 2: communication of one under computation of the other
  bool gradient_reduction = false;  // gradient reduction and parameter gathering under the passes
  bool shared_expert = false;       // shared experts beside dispatch and combine
};

// Train: what the host takes to launch kernels. Without CUDA graphs it launches them one by one, and
// a pass of a micro-batch takes at least what it takes for all of them (`launch: host`). With graphs
// of the whole step it takes nothing (`launch: graph`, the default). `graphs` names the parts of a
// layer that are captured while the rest is not, each of which then is one launch per pass:
// attention, router, preprocess (counts of rows and packing, before their dispatch).
struct StepLaunch {
  Seconds per_kernel;  // zero: graphs of the whole step
  bool graph_attention = false;
  bool graph_router = false;
  bool graph_preprocess = false;
};
// Of `launch: host`: see sim/step/README.md, "What the host takes".
inline constexpr Seconds kHostLaunch{45e-6};

// Where the experts of a token come from.
enum class StepRouting : std::uint8_t {
  kTrace,     // recorded layers, cycled by depth
  kBalanced,  // every expert of a layer is chosen equally often, as published training runs force
  kSkewed,    // the generator's Zipf popularity with exponent `routing_skew`
};

// Several steps, one after the other, whose routing drifts.
struct StepSeries {
  std::uint32_t num_steps = 2;
  // Absent: step i routes the i-th of `num_steps` windows of the trace, whole sequences that follow
  // each other. Else all steps have the same tokens, but before each one but the first this share of
  // a layer's experts, drawn by the seed, exchange their roles: a token that chose one of them now
  // chooses another. At 0 all steps are the same.
  std::optional<double> drift;
};

struct StepSpec {
  StepKind kind = StepKind::kTrain;
  ParallelSizes parallel;
  TrainBatch train;      // of kTrain
  PrefillBatch prefill;  // of kPrefill
  DecodeBatch decode;    // of kDecode
  StepPrecision precision;
  Recompute recompute = Recompute::kNone;
  StepOverlap overlap;
  StepRouting routing = StepRouting::kTrace;
  double routing_skew = 0.0;
  // Each micro-batch routes tokens of its own, in the order in which its ranks own them; else all
  // micro-batches route the same ones.
  bool routing_per_micro_batch = false;
  std::optional<StepSeries> series;
  StepLaunch launch;
  std::uint32_t mtp_layers = 0;  // train: multi-token prediction modules beside LM head and loss
  bool distributed_optimizer = true;  // shards the optimizer over dp (edp for experts)
  bool allow_out_of_memory = false;   // simulate although it does not fit

  // Token rows that one rank routes per micro-batch (train) or step: what stands in the
  // experiment's tokens_per_rank. train: micro * sequence / (tp * cp); prefill: tokens_per_gpu;
  // decode: sequences_per_gpu.
  [[nodiscard]] std::uint32_t tokens_per_rank() const;
  // Micro-batches of a pipeline and step; 1 when serving without pipeline stages, else
  // overlap.micro_batches.
  [[nodiscard]] std::uint32_t num_micro_batches() const;
  // Micro-batches with tokens of their own.
  [[nodiscard]] std::uint32_t num_routings() const {
    return routing_per_micro_batch ? num_micro_batches() : 1;
  }
};

// The layers of one chunk: [first, first + num).
struct LayerRange {
  std::uint32_t first = 0;
  std::uint32_t num = 0;
  bool operator==(const LayerRange&) const = default;
};
// Chunks in model order, [pp * vp]; chunk c is on stage c % pp (interleaved schedule). The
// embedding belongs to the first one, LM head and loss to the last.
std::vector<LayerRange> deal_layers(std::uint32_t num_layers, const ParallelSizes& parallel);

// Reads and checks the block. `num_ranks` are the GPUs. Throws InputError with one sentence for
// sizes that do not divide the ranks, layers, heads, sequence or batch, unknown precisions, a model
// without step shapes. Whether the experts divide over `ep` depends on a run's replicas:
// check_experts.
StepSpec read_step(const YamlValue& value, const ModelShape& model, std::uint32_t num_ranks);
// `where` is the run's place. Throws InputError unless experts and replicas together divide by ep.
void check_experts(const StepSpec& step, const ModelShape& model, std::uint32_t num_replicas,
                   const YamlValue& where);

}  // namespace coterie
