#include "workloads/step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/counted.hpp"

namespace coterie {
namespace {

constexpr std::array kPrecisionNames{"fp32", "bf16", "fp8", "mxfp8", "nvfp4", "mxfp4"};

std::uint32_t read_count(const YamlValue& value, std::int64_t min, std::int64_t max) {
  return static_cast<std::uint32_t>(value.as_integer(min, max));
}

std::uint32_t count_or(YamlMap& map, const char* key, std::int64_t min, std::int64_t max,
                       std::uint32_t fallback) {
  const auto value = map.optional(key);
  return value ? read_count(*value, min, max) : fallback;
}

void require_divisor(const YamlValue& value, std::uint64_t whole, std::uint64_t divisor,
                     const std::string& what) {
  if (whole % divisor == 0) return;
  throw value.error(value.excerpt(), what);
}

ParallelSizes read_parallel(const YamlValue& value, const ModelShape& model,
                            std::uint32_t num_ranks, StepKind kind) {
  YamlMap map = value.as_map();
  ParallelSizes sizes;
  const auto read = [&](const char* key, std::uint32_t& size) {
    const auto given = map.optional(key);
    if (given) size = read_count(*given, 1, 1 << 20);
    return given.value_or(value);
  };
  const YamlValue tp = read("tp", sizes.tp);
  const YamlValue pp = read("pp", sizes.pp);
  const YamlValue vp = read("vp", sizes.vp);
  const YamlValue cp = read("cp", sizes.cp);
  const YamlValue ep = read("ep", sizes.ep);
  sizes.embedding_layers = count_or(map, "embedding_layers", 0, 1000, 0);
  sizes.loss_layers = count_or(map, "loss_layers", 0, 1000, 0);
  map.finish();

  const AttentionShape& attention = *model.attention;
  require_divisor(tp, attention.num_heads, sizes.tp,
                  fmt::format("a divisor of the {} attention heads", attention.num_heads));
  if (attention.kind != AttentionKind::kMla && attention.num_kv_heads % sizes.tp != 0 &&
      sizes.tp % attention.num_kv_heads != 0) {
    throw tp.error(tp.excerpt(),
                   fmt::format("a divisor or a multiple of the {} key and value heads",
                               attention.num_kv_heads));
  }
  if (model.num_dense_layers() > 0) {
    require_divisor(tp, model.dense_intermediate, sizes.tp,
                    fmt::format("a divisor of the dense layers' intermediate size {}",
                                model.dense_intermediate));
  }
  if (model.num_shared_experts > 0) {
    const std::uint64_t width = std::uint64_t{model.num_shared_experts} * model.shared_intermediate;
    require_divisor(tp, width, sizes.tp,
                    fmt::format("a divisor of the shared experts' intermediate size {}", width));
  }
  if (kind != StepKind::kTrain) {
    if (sizes.pp != 1) throw pp.error(pp.excerpt(), "1, as only training has pipeline stages");
    if (kind == StepKind::kDecode && sizes.cp != 1) {
      throw cp.error(cp.excerpt(), "1, as decoding does not split the context");
    }
  }
  if (sizes.vp > 1 && sizes.pp == 1) {
    throw vp.error(vp.excerpt(), "1, as chunks of layers need at least two pipeline stages (pp)");
  }
  const std::uint64_t model_ranks = std::uint64_t{sizes.tp} * sizes.cp * sizes.pp;
  if (num_ranks % model_ranks != 0) {
    throw value.error(fmt::format("tp {} x cp {} x pp {} = {} per model", sizes.tp, sizes.cp,
                                  sizes.pp, counted(model_ranks, "rank")),
                      fmt::format("a divisor of the {}", counted(num_ranks, "rank")));
  }
  sizes.dp = static_cast<std::uint32_t>(num_ranks / model_ranks);
  const std::uint32_t stage_ranks = num_ranks / sizes.pp;
  require_divisor(
      ep, stage_ranks, sizes.ep,
      fmt::format("a divisor of the {} of a pipeline stage", counted(stage_ranks, "rank")));
  const std::uint32_t chunks = sizes.pp * sizes.vp;
  const std::uint32_t layers = model.num_layers + sizes.embedding_layers + sizes.loss_layers;
  if (layers % chunks != 0) {
    const std::string all = layers == model.num_layers
                                ? counted(layers, "layer")
                                : fmt::format("{}, {} of them for embedding and loss",
                                              counted(layers, "layer"), layers - model.num_layers);
    throw(sizes.vp > 1 ? vp : pp)
        .error(
            fmt::format("pp {} x vp {} = {} chunks of layers", sizes.pp, sizes.vp, chunks),
            fmt::format("a divisor of the {} (embedding_layers and loss_layers may fill up)", all));
  }
  const std::uint32_t per_chunk = layers / chunks;
  if (chunks == 1 && layers != model.num_layers) {
    throw value.error("embedding_layers or loss_layers without pipeline stages",
                      "none, as all layers are on one stage");
  }
  if (sizes.embedding_layers > per_chunk || sizes.loss_layers > per_chunk) {
    throw value.error(fmt::format("embedding_layers {} and loss_layers {}", sizes.embedding_layers,
                                  sizes.loss_layers),
                      fmt::format("at most the {} of a chunk", counted(per_chunk, "layer")));
  }
  return sizes;
}

void read_train_batch(const YamlValue& value, StepSpec& step) {
  YamlMap map = value.as_map();
  const YamlValue global = map.required("global");
  const YamlValue sequence = map.required("sequence");
  step.train.global = read_count(global, 1, 1 << 30);
  step.train.micro = count_or(map, "micro", 1, 1 << 20, 1);
  step.train.sequence = read_count(sequence, 1, 1 << 26);
  map.finish();
  const ParallelSizes& sizes = step.parallel;
  const std::uint64_t replicas = std::uint64_t{step.train.micro} * sizes.dp;
  require_divisor(global, step.train.global, replicas,
                  fmt::format("a multiple of micro {} x dp {} = {}", step.train.micro, sizes.dp,
                              counted(replicas, "sequence")));
  require_divisor(sequence, step.train.sequence, std::uint64_t{sizes.tp} * sizes.cp,
                  fmt::format("a multiple of tp {} x cp {}", sizes.tp, sizes.cp));
  const std::uint32_t num_micro = step.train.num_micro_batches(sizes);
  if (sizes.vp > 1 && num_micro % sizes.pp != 0) {
    throw global.error(fmt::format("{} micro-batches per pipeline", num_micro),
                       fmt::format("a multiple of pp {}, as the interleaved schedule (vp {}) needs",
                                   sizes.pp, sizes.vp));
  }
}

void read_serving_batch(const YamlValue& value, StepSpec& step) {
  YamlMap map = value.as_map();
  const bool prefill = step.kind == StepKind::kPrefill;
  const YamlValue per_gpu = map.required(prefill ? "tokens_per_gpu" : "sequences_per_gpu");
  const std::uint32_t rows = read_count(per_gpu, 1, 1 << 26);
  if (prefill) {
    step.prefill.tokens_per_gpu = rows;
    const YamlValue sequence = map.required("sequence");
    step.prefill.sequence = read_count(sequence, 1, 1 << 26);
    step.prefill.cached = count_or(map, "cached", 0, 1 << 26, 0);
    const std::uint64_t group = std::uint64_t{step.parallel.tp} * step.parallel.cp;
    require_divisor(sequence, step.prefill.sequence, step.parallel.cp,
                    fmt::format("a multiple of cp {}", step.parallel.cp));
    const std::uint64_t tokens = rows * group;
    require_divisor(
        per_gpu, tokens, step.prefill.sequence,
        fmt::format(
            "whole prompts of {} on each {}", counted(step.prefill.sequence, "token"),
            group == 1 ? std::string("GPU") : fmt::format("group of {}", counted(group, "GPU"))));
    require_divisor(
        per_gpu, tokens / step.prefill.sequence, step.overlap.micro_batches,
        fmt::format("prompts that fill {} equal micro-batches", step.overlap.micro_batches));
  } else {
    step.decode.sequences_per_gpu = rows;
    step.decode.context = read_count(map.required("context"), 1, 1 << 26);
    require_divisor(per_gpu, rows, step.overlap.micro_batches,
                    fmt::format("a multiple of the {} micro-batches", step.overlap.micro_batches));
  }
  map.finish();
}

Precision read_precision_of(const YamlValue& value, const std::vector<Precision>& allowed) {
  const auto precision = parse_precision(value.as_string());
  if (precision && std::find(allowed.begin(), allowed.end(), *precision) != allowed.end()) {
    return *precision;
  }
  std::vector<std::string> names;
  for (const Precision one : allowed) names.push_back(to_string(one));
  throw value.error(value.excerpt(), fmt::format("one of {}", fmt::join(names, ", ")));
}

PartPrecision part_precision(Precision type) {
  if (type == Precision::kMxfp4) return {Precision::kBf16, Precision::kMxfp4};
  return {type, type};
}

StepPrecision read_precisions(const YamlValue& value, StepKind kind) {
  const std::vector<Precision> whole{Precision::kBf16, Precision::kFp8, Precision::kMxfp8,
                                     Precision::kNvfp4};
  std::vector<Precision> part = whole;
  if (kind != StepKind::kTrain) part.push_back(Precision::kMxfp4);
  StepPrecision types;
  const auto set_all = [&](Precision type) {
    types.attention = types.experts = types.dense = part_precision(type);
  };
  if (!value.is_map()) {
    set_all(read_precision_of(value, whole));
    return types;
  }
  YamlMap map = value.as_map();
  if (const auto given = map.optional("default")) set_all(read_precision_of(*given, whole));
  const auto read_part = [&](const char* key, PartPrecision& out) {
    if (const auto given = map.optional(key)) out = part_precision(read_precision_of(*given, part));
  };
  const auto read_type = [&](const char* key, Precision& out,
                             const std::vector<Precision>& allowed) {
    if (const auto given = map.optional(key)) out = read_precision_of(*given, allowed);
  };
  read_part("attention", types.attention);
  read_part("experts", types.experts);
  read_part("dense", types.dense);
  read_part("lm_head", types.lm_head);
  read_type("attention_core", types.attention_core, {Precision::kBf16, Precision::kFp8});
  if (kind == StepKind::kTrain) {
    read_type("gradients", types.gradients, {Precision::kFp32, Precision::kBf16});
    read_type("moments", types.moments, {Precision::kFp32, Precision::kBf16, Precision::kFp8});
    read_type("main_weights", types.main_weights, {Precision::kFp32, Precision::kBf16});
  } else {
    read_type("kv_cache", types.kv_cache, {Precision::kBf16, Precision::kFp8});
  }
  map.finish();
  return types;
}

StepOverlap read_overlap(const YamlValue& value, StepKind kind) {
  YamlMap map = value.as_map();
  StepOverlap overlap;
  overlap.micro_batches = count_or(map, "micro_batches", 1, 2, 1);
  if (const auto given = map.optional("gradient_reduction")) {
    overlap.gradient_reduction = given->as_bool();
    if (kind != StepKind::kTrain) {
      throw given->error(given->excerpt(), "no such key, as only training has gradients");
    }
  }
  if (const auto given = map.optional("shared_expert")) overlap.shared_expert = given->as_bool();
  map.finish();
  return overlap;
}

void read_routing(const YamlValue& value, StepSpec& step) {
  if (value.is_map()) {
    YamlMap map = value.as_map();
    step.routing = StepRouting::kSkewed;
    step.routing_skew = map.required("skew").as_number(0.0, 10.0);
    map.finish();
    return;
  }
  const std::string name = value.as_string();
  if (name != "trace" && name != "balanced") {
    throw value.error(value.excerpt(), "trace, balanced or {skew: EXPONENT}");
  }
  step.routing = name == "trace" ? StepRouting::kTrace : StepRouting::kBalanced;
}

void read_routing_per(const YamlValue& value, StepSpec& step) {
  step.routing_per_micro_batch = value.as_choice({"step", "micro_batch"}) == 1;
  if (step.routing_per_micro_batch && step.routing == StepRouting::kBalanced) {
    throw value.error(
        "micro_batch beside balanced routing",
        "routing: trace or {skew: EXPONENT}, as balanced micro-batches are all alike");
  }
}

StepSeries read_series(const YamlValue& value, const StepSpec& step) {
  YamlMap map = value.as_map();
  StepSeries series;
  series.num_steps = read_count(map.required("steps"), 2, 10'000);
  if (const auto drift = map.optional("drift")) series.drift = drift->as_number(0.0, 1.0);
  map.finish();
  if (step.routing == StepRouting::kBalanced) {
    throw value.error("a series beside balanced routing",
                      "routing: trace or {skew: EXPONENT}, as balanced routing does not drift");
  }
  if (step.routing == StepRouting::kSkewed && !series.drift) {
    throw value.error("a series of skewed routing without \"drift\"",
                      "drift: SHARE, of the experts that exchange their roles between two steps");
  }
  return series;
}

StepLaunch read_launch(const YamlValue& value) {
  StepLaunch launch;
  launch.per_kernel = kHostLaunch;
  if (!value.is_map()) {
    const std::string name = value.as_string();
    if (name != "host" && name != "graph") {
      throw value.error(value.excerpt(), "host, graph or {per_kernel: TIME, graphs: [PARTS]}");
    }
    if (name == "graph") launch.per_kernel = {};
    return launch;
  }
  YamlMap map = value.as_map();
  if (const auto given = map.optional("per_kernel")) launch.per_kernel = given->as_seconds();
  if (const auto graphs = map.optional("graphs")) {
    for (const YamlValue& part : graphs->as_list()) {
      bool* const captured[]{&launch.graph_attention, &launch.graph_router,
                             &launch.graph_preprocess};
      *captured[part.as_choice({"attention", "router", "preprocess"})] = true;
    }
  }
  map.finish();
  return launch;
}

}  // namespace

std::string to_string(StepKind kind) {
  return kind == StepKind::kTrain ? "train" : kind == StepKind::kPrefill ? "prefill" : "decode";
}

std::string to_string(Precision precision) {
  return kPrecisionNames[static_cast<std::size_t>(precision)];
}

std::string to_string(Recompute recompute) {
  return recompute == Recompute::kNone        ? "none"
         : recompute == Recompute::kSelective ? "selective"
         : recompute == Recompute::kLatent    ? "latent"
                                              : "full";
}

std::optional<Precision> parse_precision(std::string_view name) {
  for (std::size_t i = 0; i < kPrecisionNames.size(); ++i) {
    if (name == kPrecisionNames[i]) return static_cast<Precision>(i);
  }
  return std::nullopt;
}

double bytes_per_value(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return 4.0;
    case Precision::kBf16:
      return 2.0;
    case Precision::kFp8:
      return 1.0 + 4.0 / 128.0;
    case Precision::kMxfp8:
      return 1.0 + 1.0 / 32.0;
    case Precision::kNvfp4:
      return 0.5 + 1.0 / 16.0;
    case Precision::kMxfp4:
      return 0.5 + 1.0 / 32.0;
  }
  return 0.0;
}

std::uint32_t StepSpec::num_micro_batches() const {
  return kind == StepKind::kTrain ? train.num_micro_batches(parallel) : overlap.micro_batches;
}

std::uint32_t StepSpec::tokens_per_rank() const {
  switch (kind) {
    case StepKind::kTrain:
      return train.micro * (train.sequence / (parallel.tp * parallel.cp));
    case StepKind::kPrefill:
      return prefill.tokens_per_gpu / overlap.micro_batches;
    case StepKind::kDecode:
      return decode.sequences_per_gpu / overlap.micro_batches;
  }
  return 0;
}

std::vector<LayerRange> deal_layers(std::uint32_t num_layers, const ParallelSizes& parallel) {
  const std::uint32_t chunks = parallel.pp * parallel.vp;
  const std::uint32_t per_chunk =
      (num_layers + parallel.embedding_layers + parallel.loss_layers) / chunks;
  std::vector<LayerRange> ranges;
  std::uint32_t first = 0;
  for (std::uint32_t c = 0; c < chunks; ++c) {
    std::uint32_t num = per_chunk;
    if (c == 0) num -= parallel.embedding_layers;
    if (c + 1 == chunks) num -= parallel.loss_layers;
    ranges.push_back({first, num});
    first += num;
  }
  return ranges;
}

StepSpec read_step(const YamlValue& value, const ModelShape& model, std::uint32_t num_ranks) {
  YamlMap map = value.as_map();
  if (!model.has_step_shapes()) {
    throw value.error(
        fmt::format("the model {}, whose file has no attention and vocabulary", model.name),
        "a model with the keys `attention` and `vocabulary`, which a step needs");
  }
  StepSpec step;
  step.kind = static_cast<StepKind>(map.required("kind").as_choice({"train", "prefill", "decode"}));
  const bool train = step.kind == StepKind::kTrain;
  step.parallel = read_parallel(map.required("parallel"), model, num_ranks, step.kind);
  if (const auto overlap = map.optional("overlap")) {
    step.overlap = read_overlap(*overlap, step.kind);
  }
  const YamlValue batch = map.required("batch");
  train ? read_train_batch(batch, step) : read_serving_batch(batch, step);
  step.precision = read_precisions(map.required("precision"), step.kind);
  const auto only_train = [&](const char* key) {
    const auto given = map.optional(key);
    if (given && !train) {
      throw given->error(given->excerpt(), fmt::format("no key `{}` when serving", key));
    }
    return given;
  };
  if (const auto recompute = only_train("recompute")) {
    step.recompute =
        static_cast<Recompute>(recompute->as_choice({"none", "selective", "full", "latent"}));
    if (step.recompute == Recompute::kLatent && model.attention->kind != AttentionKind::kMla) {
      throw recompute->error(
          recompute->excerpt(),
          fmt::format("none, selective or full, as {} has no latent attention", model.name));
    }
  }
  if (const auto mtp = only_train("mtp_layers")) {
    step.mtp_layers = read_count(*mtp, 0, 16);
    if (step.mtp_layers > model.num_mtp_layers) {
      throw mtp->error(mtp->excerpt(),
                       fmt::format("at most the {} multi-token prediction layers of {}",
                                   model.num_mtp_layers, model.name));
    }
  }
  if (const auto sharded = only_train("distributed_optimizer")) {
    step.distributed_optimizer = sharded->as_bool();
  }
  if (const auto launch = only_train("launch")) step.launch = read_launch(*launch);
  if (const auto routing = map.optional("routing")) read_routing(*routing, step);
  if (const auto per = map.optional("routing_per")) read_routing_per(*per, step);
  if (const auto series = map.optional("series")) step.series = read_series(*series, step);
  if (const auto allowed = map.optional("allow_out_of_memory")) {
    step.allow_out_of_memory = allowed->as_bool();
  }
  map.finish();
  return step;
}

void check_experts(const StepSpec& step, const ModelShape& model, std::uint32_t num_replicas,
                   const YamlValue& where) {
  const std::uint32_t slots = model.num_experts + num_replicas;
  if (slots % step.parallel.ep == 0) return;
  throw where.error(
      num_replicas == 0
          ? fmt::format("{} on ep {}", counted(slots, "expert"), counted(step.parallel.ep, "rank"))
          : fmt::format("{} and {} on ep {}", counted(model.num_experts, "expert"),
                        counted(num_replicas, "replica"), counted(step.parallel.ep, "rank")),
      "a number of experts and replicas together that the EP ranks share equally");
}

}  // namespace coterie
