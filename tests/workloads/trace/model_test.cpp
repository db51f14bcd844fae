// The model presets against the published shapes.

#include "workloads/model.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.hpp"

namespace coterie {
namespace {

struct Shape {
  const char* name;
  std::uint32_t layers, moe, hidden, intermediate, experts, topk, shared;
  double routed_billions;  // 3 * hidden * intermediate * experts * MoE layers, for orientation
};

class Presets : public ::testing::TestWithParam<Shape> {};

// Source: the models' config.json on Hugging Face.
TEST_P(Presets, HaveThePublishedShape) {
  const Shape& shape = GetParam();
  const ModelShape model = load_model(shape.name);
  EXPECT_EQ(model.name, shape.name);
  EXPECT_EQ(model.num_layers, shape.layers);
  EXPECT_EQ(model.moe_layers.size(), shape.moe);
  EXPECT_LT(model.moe_layers.back(), shape.layers);
  EXPECT_EQ(model.hidden, shape.hidden);
  EXPECT_EQ(model.expert_intermediate, shape.intermediate);
  EXPECT_EQ(model.num_experts, shape.experts);
  EXPECT_EQ(model.num_topk, shape.topk);
  EXPECT_EQ(model.num_shared_experts, shape.shared);
  const double billions = 3e-9 * model.hidden * model.expert_intermediate * model.num_experts *
                          static_cast<double>(model.moe_layers.size());
  EXPECT_NEAR(billions, shape.routed_billions, 0.06 * shape.routed_billions);
}

// The last column is checked against the parameter counts in the models' names or reports where
// the routed experts dominate (DeepSeek-V3 671 billion, Kimi-K2 1 trillion, Mixtral 46.7 billion):
// the routed part must be a little below them.
INSTANTIATE_TEST_SUITE_P(
    All, Presets,
    ::testing::Values(Shape{"olmoe_1b_7b", 16, 16, 2048, 1024, 64, 8, 0, 6.4},
                      Shape{"qwen1_5_moe_a2_7b", 24, 24, 2048, 1408, 60, 4, 1, 12.5},
                      Shape{"deepseek_moe_16b", 28, 27, 2048, 1408, 64, 6, 2, 14.9},
                      Shape{"deepseek_v2_lite", 27, 26, 2048, 1408, 64, 6, 2, 14.4},
                      Shape{"deepseek_v2", 60, 59, 5120, 1536, 160, 6, 2, 222.0},
                      Shape{"deepseek_v3", 61, 58, 7168, 2048, 256, 8, 1, 654.0},
                      Shape{"mixtral_8x7b", 32, 32, 4096, 14336, 8, 2, 0, 45.1},
                      Shape{"mixtral_8x22b", 56, 56, 6144, 16384, 8, 2, 0, 135.0},
                      Shape{"qwen3_30b_a3b", 48, 48, 2048, 768, 128, 8, 0, 29.0},
                      Shape{"qwen3_235b_a22b", 94, 94, 4096, 1536, 128, 8, 0, 227.0},
                      Shape{"gpt_oss_20b", 24, 24, 2880, 2880, 32, 4, 0, 19.1},
                      Shape{"gpt_oss_120b", 36, 36, 2880, 2880, 128, 4, 0, 115.0},
                      Shape{"kimi_k2", 61, 60, 7168, 2048, 384, 8, 1, 1015.0},
                      Shape{"glm_4_5", 92, 89, 5120, 1536, 160, 8, 1, 336.0},
                      Shape{"glm_4_5_air", 46, 45, 4096, 1408, 128, 8, 1, 100.0},
                      Shape{"llama_4_maverick", 48, 24, 5120, 8192, 128, 1, 1, 387.0},
                      Shape{"phi_3_5_moe", 32, 32, 4096, 6400, 16, 2, 0, 40.3},
                      Shape{"dbrx", 40, 40, 6144, 10752, 16, 4, 0, 127.0},
                      Shape{"minimax_m2_5", 62, 62, 3072, 1536, 256, 8, 0, 225.0}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ModelPresets, AreAllListed) {
  EXPECT_EQ(model_presets().size(), 19U);
}

TEST(ModelPresets, CarryTheGroupLimits) {
  EXPECT_EQ(load_model("deepseek_v3").num_groups, 8U);
  EXPECT_EQ(load_model("deepseek_v3").num_topk_groups, 4U);
  EXPECT_EQ(load_model("deepseek_v2").num_topk_groups, 3U);
  EXPECT_EQ(load_model("deepseek_v3").moe_layers.front(), 3U);
  EXPECT_EQ(load_model("llama_4_maverick").moe_layers[1], 3U);
  EXPECT_EQ(load_model("qwen1_5_moe_a2_7b").shared_intermediate, 5632U);
  EXPECT_EQ(load_model("deepseek_v2_lite").shared_intermediate, 1408U);
}

struct Published {
  const char* name;
  double parameters;  // total
  double parameters_tolerance;
  double active_billions;  // 0: not checked
};
class PublishedCounts : public ::testing::TestWithParam<Published> {};

TEST_P(PublishedCounts, FollowFromTheShapes) {
  const ParameterCounts counts = count_parameters(load_model(GetParam().name));
  const double total = static_cast<double>(counts.total());
  EXPECT_NEAR(total, GetParam().parameters,
              GetParam().parameters_tolerance * GetParam().parameters);
  // Reports round to whole or tenths of billions, and differ in whether the embedding counts, which
  // is looked up and not multiplied; GLM-4.5's counts neither that nor the LM head.
  const double with = 1e-9 * static_cast<double>(counts.active());
  const double without = with - 1e-9 * static_cast<double>(counts.embedding + counts.lm_head);
  EXPECT_LE(without - 0.2, GetParam().active_billions) << without << " to " << with;
  EXPECT_GE(with + 0.2, GetParam().active_billions) << without << " to " << with;
}

// Totals: the parameter counts of the safetensors files on Hugging Face where they are exact (BF16
// checkpoints, or DeepSeek-V3's without its multi-token prediction module), else those of the model
// cards and reports. Active: model cards and reports.
INSTANTIATE_TEST_SUITE_P(All, PublishedCounts,
                         ::testing::Values(Published{"olmoe_1b_7b", 6919161856.0, 0.0, 1.3},
                                           Published{"qwen1_5_moe_a2_7b", 14315784192.0, 0.0, 2.7},
                                           Published{"deepseek_moe_16b", 16375728128.0, 0.0, 2.8},
                                           Published{"deepseek_v2_lite", 15706484224.0, 0.0, 2.4},
                                           Published{"deepseek_v2", 235741434880.0, 0.0, 21.0},
                                           Published{"deepseek_v3", 671026419200.0, 0.0, 37.0},
                                           Published{"mixtral_8x7b", 46702792704.0, 0.0, 12.9},
                                           Published{"mixtral_8x22b", 140.6e9, 0.001, 39.0},
                                           Published{"qwen3_30b_a3b", 30532122624.0, 0.0, 3.3},
                                           Published{"qwen3_235b_a22b", 235093634560.0, 0.0, 22.0},
                                           Published{"gpt_oss_20b", 20914757184.0, 0.0, 3.6},
                                           Published{"gpt_oss_120b", 116829156672.0, 0.0, 5.1},
                                           Published{"kimi_k2", 1.04e12, 0.015, 32.0},
                                           Published{"glm_4_5", 355e9, 0.015, 32.0},
                                           Published{"glm_4_5_air", 106e9, 0.015, 12.0},
                                           Published{"llama_4_maverick", 400e9, 0.01, 17.0},
                                           Published{"phi_3_5_moe", 41.9e9, 0.005, 6.6},
                                           Published{"dbrx", 132e9, 0.005, 36.0},
                                           Published{"minimax_m2_5", 229e9, 0.005, 10.0}),
                         [](const auto& test) { return std::string(test.param.name); });

// DeepSeek-V3's checkpoint of 685 billion holds the module with a copy of embedding and LM head.
TEST(MultiTokenPrediction, CompletesTheCheckpoint) {
  const ParameterCounts counts = count_parameters(load_model("deepseek_v3"));
  EXPECT_NEAR(static_cast<double>(counts.total() + counts.mtp + 2 * counts.embedding), 684.5e9,
              0.1e9);
}

TEST(ModelFiles, NameAllTheKeysTheyLack) {
  try {
    (void)read_model(parse_yaml("schema_version: 1\nname: m\nhidden: 64\nnum_topk: 2\n", "m.yaml"));
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(
        error.what(),
        "m.yaml:1:1: found no keys \"description\", \"num_layers\", \"moe_layers\", "
        "\"expert_intermediate\", \"num_experts\", \"num_shared_experts\", expected them to be "
        "given");
  }
}

struct BadModel {
  const char* name;
  const char* override_;
  const char* sentence;
};
class BadModels : public ::testing::TestWithParam<BadModel> {};

TEST_P(BadModels, AreRefusedWithTheKey) {
  try {
    load_model("deepseek_v3", {parse_override(GetParam().override_)});
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(), GetParam().sentence);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadModels,
    ::testing::Values(
        BadModel{"topk", "num_topk=300",
                 "--set num_topk: found \"300\", expected a whole number from 1 to 32"},
        BadModel{"groups", "num_groups=7",
                 "--set num_groups: found \"7\", expected a divisor of the 256 experts"},
        BadModel{"topk_groups", "num_topk_groups=9",
                 "--set num_topk_groups: found \"9\", expected a whole number from 1 to 8"},
        BadModel{"layers", "moe_layers=[3, 61]",
                 "--set moe_layers.1: found \"61\", expected a whole number from 0 to 60"},
        BadModel{"order", "moe_layers=[5, 3]",
                 "--set moe_layers.1: found \"3\", expected ascending layer numbers"},
        BadModel{"no_vocabulary", "attention={kind: mqa, heads: 128}",
                 "--set attention.kind: found \"mqa\", expected one of mha, gqa, mla"},
        BadModel{"kv_heads", "attention={kind: gqa, heads: 32, kv_heads: 5, head_dim: 128}",
                 "--set attention.kv_heads: found \"5\", expected a divisor of the 32 query heads"},
        BadModel{"unknown", "attention={kind: mha, heads: 32, head_dim: 128, kv_lora_rank: 4}",
                 "--set attention: found unknown key \"kv_lora_rank\", expected one of "
                 "head_dim, heads, kind, output_bias, qk_norm, qkv_bias, rope_concentration, "
                 "sinks, window"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(LoadModel, NamesThePresets) {
  EXPECT_THROW(load_model("deepseek_v9"), InputError);
}

}  // namespace
}  // namespace coterie
