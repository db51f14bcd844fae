// Every importer on small files written by hand; the expected ids are read off the input.

#include "workloads/trace/importer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.hpp"
#include "tests/workloads/trace/fixtures.hpp"
#include "tests/workloads/trace/sample.hpp"

namespace coterie {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<ExpertIdx>;
using Begins = std::vector<std::uint64_t>;

class ImporterTest : public testing::FolderTest {
 protected:
  Imported import_text(const std::string& format, const std::string& content,
                       const ImportOptions& options = {}) {
    return import_texts(format, {content}, options);
  }
  Imported import_texts(const std::string& format, const std::vector<std::string>& contents,
                        const ImportOptions& options = {}) {
    std::vector<std::filesystem::path> paths;
    for (const std::string& content : contents) {
      paths.push_back(folder_ / ("input" + std::to_string(paths.size())));
      write_file(paths.back(), content);
    }
    return import_traces(paths, format, options);
  }
  template <class F>
  static void expect_refused(const F& import, const std::string& sentence) {
    try {
      import();
      FAIL() << "accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(sentence));
    }
  }
  static ImportOptions experts(std::uint32_t num_experts) {
    ImportOptions options;
    options.num_experts = num_experts;
    return options;
  }
};
const Routing& routing_of(const Imported& imported) {
  return std::get<Routing>(imported.trace);
}

// 2 tokens, 3 layers (the first dense, so zeros), k = 2; and a third token of padding zeros.
const std::vector<std::int32_t> kVllmIds{0, 0, 1, 2, 3, 4, 0, 0, 5, 6, 7, 1, 0, 0, 0, 0, 0, 0};

TEST_F(ImporterTest, NpyDropsDenseLayersAndPadding) {
  const Imported imported = import_text("npy", npy("<i4", "(3, 3, 2)", raw(kVllmIds)), experts(8));
  const Routing& routing = routing_of(imported);
  EXPECT_EQ(routing.layers, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(routing.experts, (Ids{1, 2, 5, 6, 3, 4, 7, 1}));
  EXPECT_EQ(routing.sequence_begin, (Begins{0, 2}));
  EXPECT_TRUE(routing.weights.empty());
  // Three rows of the dense layer, two of the padding token in the other layers.
  EXPECT_EQ(imported.num_dropped_rows, 5U);
  EXPECT_EQ(imported.notes.size(), 2U);
}

TEST_F(ImporterTest, NpyTakesEveryIntegerType) {
  for (const auto& [descr, data] :
       {std::pair{"|i1", raw(std::vector<std::int8_t>{1, 2, -1, -1})},
        std::pair{"|u1", raw(std::vector<std::uint8_t>{1, 2, 3, 3})},
        std::pair{"<i2", raw(std::vector<std::int16_t>{1, 2, -1, -1})},
        std::pair{"<i8", raw(std::vector<std::int64_t>{1, 2, -1, -1})},
        std::pair{"<u4", raw(std::vector<std::uint32_t>{1, 2, 3, 3})}}) {
    const Imported imported = import_text("npy", npy(descr, "(2, 1, 2)", data), experts(8));
    EXPECT_EQ(routing_of(imported).experts, (Ids{1, 2})) << descr;
  }
}

// vllm-project/vllm 00bd149, vllm/v1/core/sched/scheduler.py: `num_tokens = request.num_tokens - 1`
// rows, as the last output token was not fed to the model; routed_experts_capturer.py allots
// num_hidden_layers layers, zeros where none is an MoE layer.
std::string vllm_archive(const std::vector<std::int32_t>& ids, std::size_t num_rows,
                         std::int32_t num_prompt, std::int32_t first_output) {
  const auto list = [](std::int32_t count, std::int32_t first) {
    std::vector<std::int32_t> tokens;
    for (std::int32_t t = 0; t < count; ++t) tokens.push_back(first + t);
    return npy("<i4", "(" + std::to_string(count) + ",)", raw(tokens));
  };
  const auto num_output = static_cast<std::int32_t>(num_rows) + 1 - num_prompt;
  return zip(
      {{"request_id.npy", npy("<i4", "()", raw(7))},
       {"prompt_token_ids.npy", list(num_prompt, 11)},
       {"output_token_ids.npy", list(num_output, first_output)},
       {"routed_experts.npy", npy("<i4", "(" + std::to_string(num_rows) + ", 3, 2)", raw(ids))}});
}

TEST_F(ImporterTest, VllmArchivesConcatenate) {
  const Imported imported = import_texts(
      "npz", {vllm_archive(kVllmIds, 3, 2, 50), vllm_archive({0, 0, 6, 7, 2, 1}, 1, 1, 60)},
      experts(8));
  const Routing& routing = routing_of(imported);
  EXPECT_EQ(routing.experts, (Ids{1, 2, 5, 6, 6, 7, 3, 4, 7, 1, 2, 1}));
  EXPECT_EQ(routing.sequence_begin, (Begins{0, 2, 3}));
  EXPECT_EQ(routing.origin, "input0, input1");
}

TEST_F(ImporterTest, VllmArchivesWithOtherTokensThanRowsAreRefused) {
  std::string archive = vllm_archive(kVllmIds, 3, 2, 50);
  archive = zip({{"prompt_token_ids.npy", npy("<i4", "(1,)", raw(11))},
                 {"output_token_ids.npy", npy("<i4", "(1,)", raw(12))},
                 {"routed_experts.npy", npy("<i4", "(3, 3, 2)", raw(kVllmIds))}});
  expect_refused([&] { import_text("npz", archive, experts(8)); },
                 "found 3 rows, expected 1 or 2, as there are 1 prompt and 1 output tokens");
}

// The same choices for other tokens are another request; the same request again is counted once.
TEST_F(ImporterTest, ARequestGivenTwiceCountsOnce) {
  const std::string one = vllm_archive(kVllmIds, 3, 2, 50);
  const Imported twice = import_texts("npz", {one, one}, experts(8));
  EXPECT_EQ(routing_of(twice).num_tokens(), 2U);
  EXPECT_THAT(twice.notes.back(), HasSubstr("counted once"));
  const Imported other = import_texts("npz", {one, vllm_archive(kVllmIds, 3, 2, 70)}, experts(8));
  EXPECT_EQ(routing_of(other).num_tokens(), 4U);
}

TEST_F(ImporterTest, NpzReadsSequencesLayersAndWeights) {
  const Imported imported = import_text(
      "npz", zip({{"routed_experts.npy",
                   npy("<i4", "(2, 2, 2)", raw(std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7, 0}))},
                  {"topk_weights.npy",
                   npy("<f4", "(2, 2, 2)", raw(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}))},
                  {"seq_len.npy", npy("<i4", "(2,)", raw(std::vector<std::int32_t>{1, 1}))},
                  {"layers.npy", npy("<i4", "(2,)", raw(std::vector<std::int32_t>{3, 9}))},
                  {"num_experts.npy", npy("<i4", "()", raw(8))}}));
  const Routing& routing = routing_of(imported);
  EXPECT_EQ(routing.experts, (Ids{1, 2, 5, 6, 3, 4, 7, 0}));
  EXPECT_EQ(routing.weights, (std::vector<float>{1, 2, 5, 6, 3, 4, 7, 8}));
  EXPECT_EQ(routing.layers, (std::vector<std::uint32_t>{3, 9}));
  EXPECT_EQ(routing.sequence_begin, (Begins{0, 1, 2}));
  EXPECT_EQ(routing.num_experts, 8U);
}

std::string route(const std::string& request, int token, int layer, const std::string& ids) {
  return "{\"type\": \"route\", \"req_id\": \"" + request +
         "\", \"token_idx\": " + std::to_string(token) + ", \"layer\": " + std::to_string(layer) +
         ", \"topk_ids\": [" + ids + "], \"topk_weights\": [0.75, 0.25]}\n";
}
const std::string kMeta =
    "{\"type\": \"meta\", \"model_id\": \"m\", \"top_k\": 2, \"layers_logged\": [0, 1]}\n";

TEST_F(ImporterTest, VllmJsonlDropsTheWarmUpAndSaysHowMuch) {
  std::string text = kMeta;
  // 20 equal dummy tokens in both layers, then two requests whose rows are mixed.
  for (int token = 0; token < 20; ++token) text += route("d", token, 0, "1, 2");
  for (int token = 0; token < 20; ++token) text += route("d", token, 1, "3, 0");
  text += route("a", 0, 0, "4, 5") + route("b", 0, 0, "6, 7") + route("a", 1, 0, "0, 3");
  text += route("a", 0, 1, "5, 6") + route("b", 0, 1, "2, 1") + route("a", 1, 1, "3, 7");
  const Imported imported = import_text("vllm-jsonl", text, experts(8));
  const Routing& routing = routing_of(imported);
  EXPECT_EQ(imported.num_dropped_rows, 40U);
  ASSERT_EQ(imported.notes.size(), 1U);
  EXPECT_THAT(imported.notes[0], HasSubstr("dropped 40 warm-up rows"));
  EXPECT_EQ(routing.experts, (Ids{4, 5, 0, 3, 6, 7, 5, 6, 3, 7, 2, 1}));
  EXPECT_EQ(routing.sequence_begin, (Begins{0, 2, 3}));
  EXPECT_EQ(routing.weights[0], 0.75F);
  EXPECT_EQ(routing.model, "m");
}

TEST_F(ImporterTest, VllmJsonlKeepsAShortRepetitionAndStartsAPassOnRepeatedTokens) {
  const std::string text =
      kMeta + route("a", 0, 0, "1, 2") + route("a", 1, 0, "1, 2") + route("a", 0, 0, "4, 2");
  const Imported imported = import_text("vllm-jsonl", text, experts(8));
  EXPECT_EQ(imported.num_dropped_rows, 0U);
  EXPECT_EQ(routing_of(imported).sequence_begin, (Begins{0, 2, 3}));
}

TEST_F(ImporterTest, JsonDumpsOfPrefillAndDecode) {
  const std::string text =
      R"([{"0": null, "1": [[1, 2], [3, 4]], "2": [[5, 6], [7, 0]]},
          {"0": null, "1": [[2, 1]], "2": [6, 5]}])";
  const Routing routing = routing_of(import_text("json", text, experts(8)));
  EXPECT_EQ(routing.layers, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(routing.experts, (Ids{1, 2, 3, 4, 2, 1, 5, 6, 7, 0, 6, 5}));
  EXPECT_EQ(routing.sequence_begin, (Begins{0, 3}));
}

TEST_F(ImporterTest, HuggingFaceLogitsAreSelectedAsTheModelDoes) {
  // exp(logits) are 1, 4, 3, 2: softmax 0.1, 0.4, 0.3, 0.2.
  const std::string text =
      R"({"top_k": 2, "router_logits": [[[0.0, 1.38629436, 1.09861229, 0.69314718]]]})";
  ImportOptions options;
  options.selection = "softmax_topk";
  Routing routing = routing_of(import_text("hf-json", text, options));
  EXPECT_EQ(routing.experts, (Ids{1, 2}));
  EXPECT_NEAR(routing.weights[0], 0.4F, 1e-6F);
  EXPECT_NEAR(routing.weights[1], 0.3F, 1e-6F);
  options.selection = "topk_softmax";
  routing = routing_of(import_text("hf-json", text, options));
  EXPECT_NEAR(routing.weights[0], 4.0F / 7.0F, 1e-6F);
  // Sigmoid with a bias that lifts expert 0 above all; its weight stays its own sigmoid, 0.5
  // against 0.8, so 0.5/1.3.
  options.selection = "sigmoid_group";
  const std::string biased =
      text.substr(0, text.size() - 1) + R"(, "e_score_correction_bias": [[1.0, 0, 0, 0]]})";
  routing = routing_of(import_text("hf-json", biased, options));
  EXPECT_EQ(routing.experts, (Ids{0, 1}));
  EXPECT_NEAR(routing.weights[0], 0.5F / 1.3F, 1e-6F);
  // No bias in the input, and no sequence lengths.
  EXPECT_EQ(import_text("hf-json", text, options).notes.size(), 2U);
}

TEST_F(ImporterTest, HuggingFaceGroupLimit) {
  // DeepSeek-V3's rule: 256 experts in 8 groups of 32. Group g's two best logits are g and g, so
  // groups 4 to 7 are taken, and expert 0's huge logit counts only with its group's second best:
  // sigmoid(50) + sigmoid(-50) = 1 < 2 sigmoid(4) = 1.96. Eight experts: the two best of each.
  std::string row;
  for (int e = 0; e < 256; ++e) {
    const double logit = e == 0 ? 50.0 : (e / 32 > 0 && e % 32 < 2 ? e / 32 : -50.0);
    row += (e == 0 ? "" : ", ") + std::to_string(logit);
  }
  ImportOptions options;
  options.model = load_model("deepseek_v3");
  options.layers = {3};
  const Routing routing = routing_of(
      import_text("hf-json", R"({"layers": [3], "router_logits": [[[)" + row + "]]]}", options));
  EXPECT_EQ(routing.experts, (Ids{224, 225, 192, 193, 160, 161, 128, 129}));
}

TEST_F(ImporterTest, SglangStatAddsTheSteps) {
  // 2 steps, 3 layers (the first dense), 2 experts.
  const std::vector<std::int64_t> counts{0, 0, 1, 2, 3, 4, 0, 0, 10, 20, 30, 40};
  const std::string text =
      torch_file(p_dict({{"rank", p_int(0)},
                         {"logical_count", p_tensor("LongStorage", "0", 12, {2, 3, 2}, {6, 2, 1})},
                         {"average_utilization_rate_over_window", "N"}}),
                 {raw(counts)});
  const Imported imported = import_text("sglang", text);
  const auto& trace = std::get<ExpertCounts>(imported.trace);
  EXPECT_EQ(trace.layers, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(trace.counts, (std::vector<std::uint64_t>{11, 22, 33, 44}));
  EXPECT_EQ(imported.num_dropped_rows, 1U);
  // Counts of several recordings add up; the same one given twice counts once.
  std::vector<std::int64_t> more(12, 0);
  more[2] = 5;
  const std::string second = torch_file(
      p_dict({{"logical_count", p_tensor("LongStorage", "0", 12, {2, 3, 2}, {6, 2, 1})}}),
      {raw(more)});
  const Imported all = import_texts("sglang", {text, second, text});
  EXPECT_EQ(std::get<ExpertCounts>(all.trace).counts, (std::vector<std::uint64_t>{16, 22, 33, 44}));
}

TEST_F(ImporterTest, SglangPerTokenMapsPhysicalToLogical) {
  // A prefill pass of 3 tokens in sequences of 2 and 1, padded to 4; a decode pass of 1 token. Two
  // layers, k = 2; physical expert p is logical 3 - p in layer 0 and p in layer 1. The ids tensor
  // of the first record is transposed in memory ([tokens, layers, k]) to exercise the strides.
  const std::vector<std::int32_t> prefill{0, 1, 0, 1, 2, 3, 2, 3, 1, 0, 3, 0, -1, -1, -1, -1};
  const std::vector<std::int32_t> decode{3, 1, 1, 2};
  const std::vector<std::int64_t> map{3, 2, 1, 0, 0, 1, 2, 3};
  const std::string text = torch_file(
      p_dict({{"records", p_list({p_dict({{"topk_ids_of_layer",
                                           p_tensor("IntStorage", "0", 16, {2, 4, 2}, {2, 4, 1})},
                                          {"extend_seq_lens", p_list({p_int(2), p_int(1)})},
                                          {"forward_pass_id", p_int(1)},
                                          {"rank", p_int(0)}}),
                                  p_dict({{"topk_ids_of_layer",
                                           p_tensor("IntStorage", "1", 4, {2, 1, 2}, {2, 2, 1})},
                                          {"extend_seq_lens", "N"}})})},
              {"last_physical_to_logical_map", p_tensor("LongStorage", "2", 8, {2, 4}, {4, 1})}}),
      {raw(prefill), raw(decode), raw(map)});
  const Imported imported = import_text("sglang", text);
  const Routing& routing = routing_of(imported);
  EXPECT_EQ(routing.num_experts, 4U);
  EXPECT_EQ(routing.experts, (Ids{3, 2, 1, 0, 2, 3, 0, 2, 0, 1, 2, 3, 3, 0, 1, 2}));
  EXPECT_EQ(routing.sequence_begin, (Begins{0, 2, 3, 4}));
  EXPECT_EQ(imported.num_dropped_rows, 2U);
}

// An independent count of the dump's tensors: counts of 8.39 million tokens, layers 0 to 2 dense, max/mean about 23.
TEST(SglangImporter, ReadsTheRecordedDump) {
  const std::vector<std::filesystem::path> inputs{
      std::filesystem::path(COTERIE_DATA) /
      "traces/deepseek-r1-sglang/expert_distribution_8k1k.pt"};
  if (!std::filesystem::exists(inputs[0])) GTEST_SKIP() << inputs[0] << " is not there";
  const Imported imported = import_traces(inputs, "sglang", {});
  const auto& counts = std::get<ExpertCounts>(imported.trace);
  EXPECT_EQ(counts.num_experts, 256U);
  EXPECT_EQ(counts.layers.size(), 58U);
  EXPECT_EQ(counts.layers.front(), 3U);
  std::uint64_t total = 0;
  for (std::size_t e = 0; e < 256; ++e) total += counts.counts[e];
  EXPECT_NEAR(static_cast<double>(total) / 8, 8.39e6, 0.01e6);  // top-8
}

TEST(SglangImporter, RefusesTheAllZeroDump) {
  const std::vector<std::filesystem::path> inputs{
      std::filesystem::path(COTERIE_DATA) /
      "traces/deepseek-r1-sglang/expert_distribution_all_zero.pt"};
  if (!std::filesystem::exists(inputs[0])) GTEST_SKIP() << inputs[0] << " is not there";
  try {
    import_traces(inputs, "sglang", {});
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("found only zeros in all 61 layers, expected a recording"));
  }
}

}  // namespace
}  // namespace coterie
