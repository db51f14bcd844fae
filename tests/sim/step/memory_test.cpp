// Memory of a step against published checkpoint and cache sizes, and hand counts.

#include "sim/step/memory.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coterie {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

StepSpec decode_step(std::uint32_t sequences, std::uint32_t context) {
  StepSpec step;
  step.kind = StepKind::kDecode;
  step.decode = {sequences, context};
  return step;
}

GpuModel gpu_of(const char* topology) {
  return load_cluster(topology).gpu;
}

// Checkpoints: gpt-oss model card (arXiv 2508.10925, table 1), experts in MXFP4: 60.8 and 12.8
// GiB. DeepSeek-V3's files on Hugging Face have 688.6 GB with the multi-token prediction module,
// whose 14 billion values are left out here. Qwen3-30B-A3B in BF16: 61.1 GB.
TEST(Weights, AreAsLargeAsThePublishedCheckpoints) {
  StepSpec step = decode_step(1, 1);
  const GpuModel gpu = gpu_of("h200_node");
  step.precision.experts.weights = Precision::kMxfp4;
  EXPECT_NEAR(memory_per_gpu(load_model("gpt_oss_120b"), step, gpu).weights, 60.8 * kGiB,
              0.005 * 60.8 * kGiB);
  EXPECT_NEAR(memory_per_gpu(load_model("gpt_oss_20b"), step, gpu).weights, 12.8 * kGiB,
              0.005 * 12.8 * kGiB);
  step.precision.experts.weights = Precision::kBf16;
  EXPECT_NEAR(memory_per_gpu(load_model("qwen3_30b_a3b"), step, gpu).weights, 61.1e9, 0.1e9);
  for (PartPrecision* part :
       {&step.precision.experts, &step.precision.attention, &step.precision.dense}) {
    *part = {Precision::kFp8, Precision::kFp8};
  }
  // Its scales are one float per 128 x 128 block, ours one per 128 values: 3 percent more.
  const double without_module = 688.6e9 - 13.6e9;
  const double weights = memory_per_gpu(load_model("deepseek_v3"), step, gpu).weights;
  EXPECT_GT(weights, without_module);
  EXPECT_LT(weights, 1.035 * without_module);
}

// Every rank's share adds up to the whole.
TEST(Weights, AreSplitOverTheRanks) {
  const ModelShape model = load_model("deepseek_v3");
  StepSpec step = decode_step(1, 1);
  const StageParameters whole = stage_parameters(model, step, 0);
  const ParameterCounts counts = count_parameters(model);
  EXPECT_EQ(whole.experts, static_cast<double>(counts.experts));
  EXPECT_EQ(whole.dense, static_cast<double>(counts.total() - counts.experts));
  step.parallel.ep = 64;
  EXPECT_EQ(stage_parameters(model, step, 0).experts * 64.0, whole.experts);
  EXPECT_EQ(stage_parameters(model, step, 0).dense, whole.dense);
  // 256 experts and 32 replicas on 72 ranks: four per rank and layer.
  step.parallel.ep = 72;
  EXPECT_EQ(stage_parameters(model, step, 0, 32).experts, 58.0 * 4 * 3 * 7168 * 2048);

  StepSpec train;
  train.train = {256, 1, 4096};
  train.parallel = {.pp = 16, .dp = 2, .loss_layers = 3};
  double dense = 0.0, experts = 0.0;
  for (std::uint32_t stage = 0; stage < 16; ++stage) {
    dense += stage_parameters(model, train, stage).dense;
    experts += stage_parameters(model, train, stage).experts;
  }
  EXPECT_EQ(dense, whole.dense);
  EXPECT_EQ(experts, whole.experts);
}

// "Insights into DeepSeek-V3" (arXiv 2505.09343), table 1: 70.272 KB per token in BF16.
TEST(Cache, HasThePublishedSizePerToken) {
  const ModelShape model = load_model("deepseek_v3");
  const StepSpec step = decode_step(4, 9999);
  EXPECT_EQ(memory_per_gpu(model, step, gpu_of("h200_node")).kv_cache, 4.0 * 10000.0 * 70272.0);
}

// Windowed layers keep the window alone: half of gpt-oss-20b's 24 layers keep 128 tokens. Per token
// and layer: 2 x 8 heads x 64 values in BF16.
TEST(Cache, IsBoundedByTheWindow) {
  const StepSpec step = decode_step(1, 999);
  EXPECT_EQ(memory_per_gpu(load_model("gpt_oss_20b"), step, gpu_of("h200_node")).kv_cache,
            (12.0 * 1000.0 + 12.0 * 128.0) * 2048.0);
}

// Megatron-LM's documentation of the distributed optimizer: with BF16 weights and FP32 gradients 18
// bytes per parameter, or 6 + 12 / d when sharded over d ranks.
TEST(Optimizer, HasMegatronsBytesPerParameter) {
  const ModelShape model = load_model("mixtral_8x7b");
  StepSpec step;
  step.train = {64, 1, 4096};
  step.parallel = {.ep = 8, .dp = 32};
  const StageParameters parameters = stage_parameters(model, step, 0);
  const auto state = [&] {
    const MemoryBytes memory = memory_per_gpu(model, step, gpu_of("h100_node"));
    return memory.weights + memory.gradients + memory.optimizer;
  };
  // Experts are sharded over the 4 ranks that hold the same ones.
  EXPECT_NEAR(state(), parameters.dense * (6.0 + 12.0 / 32) + parameters.experts * (6.0 + 12.0 / 4),
              1.0);
  step.distributed_optimizer = false;
  EXPECT_NEAR(state(), 18.0 * (parameters.dense + parameters.experts), 1.0);
}

// One layer of Mixtral's shape at 100 tokens without any parallelism, counted by hand in values
// (BF16, 2 bytes each): the layer's and the MLP's input and their norms 4 x 4096; queries 4096,
// keys and values 2 x 1024, the result 4096; 200 rows of 4096 dispatched, gate, up and activation 3
// x 14336 each. In FP32: 32 sums of attention rows and 8 scores.
TEST(Activations, AreThoseOfAHandCount) {
  const ModelShape model = load_model("mixtral_8x7b");
  StepSpec step;
  step.train = {1, 1, 100};
  const double per_token = 4 * 4096 + 4096 + 2 * 1024 + 4096;
  const double per_row = 4096 + 3 * 14336;
  EXPECT_EQ(layer_activation_bytes(model, step, 0, 200.0),
            2.0 * (100 * per_token + 200 * per_row) + 4.0 * 100 * (32 + 8));
  step.recompute = Recompute::kSelective;  // without norms and the activation's result
  EXPECT_EQ(layer_activation_bytes(model, step, 0, 200.0),
            2.0 * (100 * (per_token - 2 * 4096) + 200 * (per_row - 14336)) + 4.0 * 100 * (32 + 8));
  step.recompute = Recompute::kFull;
  EXPECT_EQ(layer_activation_bytes(model, step, 0, 200.0), 2.0 * 100 * 4096);
}

// 1F1B (arXiv 2104.04473): stage s of p keeps p - s micro-batches, never more than there are;
// interleaved with v chunks: 2 (p - s - 1) + (v - 1) p warm-up passes and one more.
TEST(InFlight, IsThatOf1F1B) {
  StepSpec step;
  step.train = {8, 1, 4096};
  step.parallel = {.pp = 4, .dp = 1};
  EXPECT_EQ(chunks_in_flight(step, 0), 4U);
  EXPECT_EQ(chunks_in_flight(step, 3), 1U);
  // In pairs: 2 (p - s - 1) + 1 warm-up passes, and the one that runs beside a backward pass.
  step.overlap.micro_batches = 2;
  EXPECT_EQ(chunks_in_flight(step, 0), 8U);
  EXPECT_EQ(chunks_in_flight(step, 3), 2U);
  step.overlap.micro_batches = 1;
  step.train.global = 2;
  EXPECT_EQ(chunks_in_flight(step, 0), 2U);
  step.train.global = 8;
  step.parallel.vp = 2;
  EXPECT_EQ(chunks_in_flight(step, 0), 11U);
  EXPECT_EQ(chunks_in_flight(step, 3), 5U);
}

// The largest batch fits and the next one does not, for each kind of step.
TEST(LargestBatch, FitsAndTheNextDoesNot) {
  const GpuModel gpu = gpu_of("h100_node");
  const ModelShape model = load_model("deepseek_v3");
  StepSpec decode = decode_step(1, 4096);
  decode.parallel.ep = decode.parallel.dp = 64;
  for (PartPrecision* part :
       {&decode.precision.experts, &decode.precision.attention, &decode.precision.dense}) {
    *part = {Precision::kFp8, Precision::kFp8};
  }
  const auto sequences = largest_batch(model, decode, gpu);
  ASSERT_TRUE(sequences.has_value());
  ASSERT_GT(*sequences, 0U);
  decode.decode.sequences_per_gpu = *sequences;
  EXPECT_TRUE(memory_per_gpu(model, decode, gpu).fits());
  decode.decode.sequences_per_gpu = *sequences + 1;
  const MemoryBytes over = memory_per_gpu(model, decode, gpu);
  EXPECT_FALSE(over.fits());
  // Weights: 58 layers x 4 experts x 44 million values, and all the rest, at about a byte each.
  EXPECT_THAT(memory_sentence(over),
              ::testing::HasSubstr(" of 79.6 GiB per GPU: weights 28 GiB, activations "));

  // All of DeepSeek-V3 does not fit on one GPU at any batch.
  decode.parallel.ep = decode.parallel.dp = 1;
  EXPECT_EQ(largest_batch(model, decode, gpu), 0U);
  GpuModel unknown = gpu;
  unknown.memory.reset();
  EXPECT_FALSE(largest_batch(model, decode, unknown).has_value());
}

}  // namespace
}  // namespace coterie
