// The `step` block: what is read, and the sentence for everything that does not fit.

#include "workloads/step.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace coterie {
namespace {

constexpr const char* kTrain =
    "kind: train\n"
    "parallel: {tp: 1, pp: 8, vp: 2, ep: 32, loss_layers: 3}\n"
    "batch: {global: 4096, micro: 1, sequence: 4096}\n"
    "precision: mxfp8\n"
    "recompute: selective\n"
    "mtp_layers: 1\n"
    "routing: balanced\n"
    "overlap: {micro_batches: 2, gradient_reduction: true, shared_expert: true}\n";
constexpr const char* kDecode =
    "kind: decode\n"
    "parallel: {ep: 72}\n"
    "batch: {sequences_per_gpu: 256, context: 2000}\n"
    "precision: {default: fp8, experts: mxfp4, kv_cache: fp8}\n";

StepSpec read(const std::string& text, const char* model = "deepseek_v3", std::uint32_t ranks = 256,
              const std::vector<Override>& overrides = {}) {
  return read_step(parse_yaml(text, "step.yaml", overrides), load_model(model), ranks);
}

TEST(Step, IsReadAsWritten) {
  const StepSpec step = read(kTrain);
  EXPECT_EQ(step.kind, StepKind::kTrain);
  EXPECT_EQ(step.parallel.dp, 32U);  // 256 / 8
  EXPECT_EQ(step.parallel.edp(), 1U);
  EXPECT_EQ(step.num_micro_batches(), 128U);  // 4096 / 32
  EXPECT_EQ(step.tokens_per_rank(), 4096U);
  EXPECT_EQ(step.precision.experts.compute, Precision::kMxfp8);
  EXPECT_EQ(step.precision.lm_head.compute, Precision::kBf16);
  EXPECT_EQ(step.recompute, Recompute::kSelective);
  EXPECT_EQ(step.routing, StepRouting::kBalanced);
  EXPECT_TRUE(step.overlap.gradient_reduction);

  const StepSpec decode = read(kDecode, "deepseek_v3", 72);
  EXPECT_EQ(decode.parallel.dp, 72U);
  EXPECT_EQ(decode.tokens_per_rank(), 256U);
  // 4-bit weights meet BF16 rows.
  EXPECT_EQ(decode.precision.experts.weights, Precision::kMxfp4);
  EXPECT_EQ(decode.precision.experts.compute, Precision::kBf16);
  EXPECT_EQ(decode.precision.attention.compute, Precision::kFp8);
}

// Bits per value of the OCP microscaling formats (version 1.0: 8 bits of scale per 32 values) and
// of NVFP4 (8 bits per 16 values).
TEST(Step, PrecisionsHaveTheirBits) {
  EXPECT_EQ(8.0 * bytes_per_value(Precision::kMxfp8), 8.25);
  EXPECT_EQ(8.0 * bytes_per_value(Precision::kMxfp4), 4.25);
  EXPECT_EQ(8.0 * bytes_per_value(Precision::kNvfp4), 4.5);
  EXPECT_EQ(128.0 * bytes_per_value(Precision::kFp8), 132.0);  // as row_payload counts it
}

// DeepSeek-V3 over pp 8 x vp 2 = 16 chunks: 15 of 4 layers and a last one with 1 layer, as
// Megatron Bridge lays it out (61 layers, multi-token prediction and loss on the last chunk).
TEST(Step, LayersAreDealtInOrder) {
  const StepSpec step = read(kTrain);
  const std::vector<LayerRange> chunks = deal_layers(61, step.parallel);
  ASSERT_EQ(chunks.size(), 16U);
  std::uint32_t next = 0;
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    EXPECT_EQ(chunks[c].first, next);
    EXPECT_EQ(chunks[c].num, c == 15 ? 1U : 4U);
    next += chunks[c].num;
  }
  EXPECT_EQ(next, 61U);
}

struct Bad {
  const char* name;
  const char* text;
  const char* override_;
  const char* sentence;
};
class BadSteps : public ::testing::TestWithParam<Bad> {};

TEST_P(BadSteps, AreRefusedWithOneSentence) {
  const bool decode = std::string(GetParam().text) == kDecode;
  try {
    read(GetParam().text, "deepseek_v3", decode ? 72 : 256, {parse_override(GetParam().override_)});
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(), GetParam().sentence);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSteps,
    ::testing::Values(
        Bad{"ranks", kTrain, "parallel.pp=3",
            "step.yaml:2:11: key \"parallel\": found tp 1 x cp 1 x pp 3 = 3 ranks per model, "
            "expected a divisor of the 256 ranks"},
        Bad{"heads", kTrain, "parallel.tp=3",
            "--set parallel.tp: found \"3\", expected a divisor of the 128 attention heads"},
        Bad{"ep", kTrain, "parallel.ep=64",
            "--set parallel.ep: found \"64\", expected a divisor of the 32 ranks of a pipeline "
            "stage"},
        Bad{"layers", kTrain, "parallel.loss_layers=2",
            "step.yaml:2:30: key \"parallel.vp\": found pp 8 x vp 2 = 16 chunks of layers, "
            "expected "
            "a divisor of the 63 layers, 2 of them for embedding and loss (embedding_layers and "
            "loss_layers may fill up)"},
        Bad{"vp", kTrain, "parallel={vp: 2}",
            "--set parallel.vp: found \"2\", expected 1, as chunks of layers need at least two "
            "pipeline stages (pp)"},
        Bad{"global", kTrain, "batch.global=4010",
            "--set batch.global: found \"4010\", expected a multiple of micro 1 x dp 32 = 32 "
            "sequences"},
        Bad{"interleaved", kTrain, "batch.global=32",
            "--set batch.global: found 1 micro-batches per pipeline, expected a multiple of pp 8, "
            "as the interleaved schedule (vp 2) needs"},
        Bad{"precision", kTrain, "precision=int8",
            "--set precision: found \"int8\", expected one of bf16, fp8, mxfp8, nvfp4"},
        Bad{"weights_only", kTrain, "precision={experts: mxfp4}",
            "--set precision.experts: found \"mxfp4\", expected one of bf16, fp8, mxfp8, nvfp4"},
        Bad{"kind", kTrain, "kind=finetune",
            "--set kind: found \"finetune\", expected one of train, prefill, decode"},
        Bad{"mtp", kTrain, "mtp_layers=2",
            "--set mtp_layers: found \"2\", expected at most the 1 multi-token prediction layers "
            "of "
            "deepseek_v3"},
        Bad{"routing", kTrain, "routing=random",
            "--set routing: found \"random\", expected trace, balanced or {skew: EXPONENT}"},
        Bad{"unknown_key", kTrain, "batch.context=5",
            "--set batch.context: found unknown key \"context\", expected one of global, "
            "micro, "
            "sequence"},
        Bad{"serving_pp", kDecode, "parallel.pp=2",
            "--set parallel.pp: found \"2\", expected 1, as only training has pipeline stages"},
        Bad{"serving_recompute", kDecode, "recompute=full",
            "--set recompute: found \"full\", expected no key `recompute` when serving"},
        Bad{"serving_gradients", kDecode, "precision.gradients=bf16",
            "--set precision.gradients: found unknown key \"gradients\", expected one of "
            "attention, "
            "attention_core, default, dense, experts, kv_cache, lm_head"},
        Bad{"halves", kDecode, "batch.sequences_per_gpu=0",
            "--set batch.sequences_per_gpu: found \"0\", expected a whole number from 1 to "
            "67108864"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Step, NeedsTheModelsShapes) {
  ModelShape model = load_model("deepseek_v3");
  model.attention.reset();
  try {
    read_step(parse_yaml(kTrain, "step.yaml"), model, 256);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "step.yaml:1:1: found the model deepseek_v3, whose file has no attention and "
                 "vocabulary, expected a model with the keys `attention` and `vocabulary`, which a "
                 "step needs");
  }
}

// 256 experts on 72 ranks need 32 replicas (4 slots each), as SGLang's deployment has.
// `latent` makes the up-projections of latent attention again, which Qwen3 does not have.
TEST(Step, RecomputesLatentsOfLatentAttentionAlone) {
  const std::vector<Override> latent{{"recompute", "latent"}};
  EXPECT_EQ(read(kTrain, "deepseek_v3", 256, latent).recompute, Recompute::kLatent);
  EXPECT_EQ(to_string(Recompute::kLatent), "latent");
  try {
    (void)read(
        "kind: train\nparallel: {ep: 8}\nbatch: {global: 8, micro: 1, sequence: 64}\n"
        "precision: bf16\nrecompute: latent\n",
        "qwen3_30b_a3b", 8);
    FAIL() << "was read";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "step.yaml:5:12: key \"recompute\": found \"latent\", expected none, selective or "
                 "full, as qwen3_30b_a3b has no latent attention");
  }
}

TEST(Step, ExpertsAndReplicasShareTheRanks) {
  const StepSpec step = read(kDecode, "deepseek_v3", 72);
  const ModelShape model = load_model("deepseek_v3");
  const YamlValue where = parse_yaml(kDecode, "run.yaml");
  EXPECT_NO_THROW(check_experts(step, model, 32, where));
  try {
    check_experts(step, model, 0, where);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "run.yaml:1:1: found 256 experts on ep 72 ranks, expected a number of experts and "
                 "replicas together that the EP ranks share equally");
  }
}

}  // namespace
}  // namespace coterie
