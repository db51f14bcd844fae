// Fixtures written the way the recorders' own code writes them; the repository, commit and file
// stand beside each. The expected ids are read off the fixtures.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "tests/workloads/trace/fixtures.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie {
namespace {

using namespace testing;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using RecordedIds = std::vector<ExpertIdx>;
using RecordedBegins = std::vector<std::uint64_t>;
using Layers = std::vector<std::uint32_t>;

class RecorderTest : public testing::FolderTest {
 protected:
  // Files by name, in the order given.
  using Files = std::vector<std::pair<std::string, std::string>>;
  Imported import_files(const std::string& format, const Files& files,
                        const ImportOptions& options = {}) {
    std::vector<std::filesystem::path> paths;
    for (const auto& [name, content] : files) {
      paths.push_back(folder_ / name);
      write_file(paths.back(), content);
    }
    return import_traces(paths, format, options);
  }
  Imported import_text(const std::string& format, const std::string& content,
                       const ImportOptions& options = {}) {
    return import_files(format, {{"input", content}}, options);
  }
  std::string error_of(const std::string& format, const Files& files,
                       const ImportOptions& options = {}) {
    try {
      import_files(format, files, options);
    } catch (const InputError& error) {
      return error.what();
    }
    return "accepted";
  }
  static ImportOptions options(std::optional<std::uint32_t> num_experts,
                               std::optional<std::uint32_t> num_topk = std::nullopt) {
    ImportOptions options;
    options.num_experts = num_experts;
    options.num_topk = num_topk;
    return options;
  }
};
const Routing& recorded_routing(const Imported& imported) {
  return std::get<Routing>(imported.trace);
}

// SGLang ----------------------------------------------------------------------------------------
// sgl-project/sglang 02295fe, python/sglang/srt/eplb/expert_distribution.py. A record is
//   dict(forward_pass_id, rank, gatherer_key, input_ids, positions, extend_seq_lens, forward_mode,
//        topk_ids_of_layer, misc_objects, global_physical_count)
// with topk_ids_of_layer int32 [layers, tokens, _TOP_K_NUM = 8], a view of a larger buffer that
// reset() fills with -1; a file is dict(records, last_physical_to_logical_map). `rids` is commented
// out there and written by versions that enable it. ForwardMode: 1 extend, 2 decode, 4 idle.

constexpr int kSglangTopk = 8;

struct SglangPass {
  std::vector<std::vector<std::vector<int>>> ids;  // [layers][tokens][k], physical; {} dense
  std::vector<int> positions, inputs;
  std::optional<std::vector<int>> extend_seq_lens;
  int forward_mode = 1;
  std::vector<std::string> rids;
};

std::string p_int_list(const std::vector<int>& values) {
  std::vector<std::string> items;
  for (const int value : values) items.push_back(p_int(value));
  return p_list(items);
}

std::string sglang_file(const std::vector<SglangPass>& passes, const std::vector<std::int64_t>& map,
                        int num_layers, int rank = 0) {
  const auto num_physical = static_cast<int>(map.size()) / num_layers;
  std::vector<std::string> records;
  std::vector<std::string> storages;
  for (std::size_t p = 0; p < passes.size(); ++p) {
    const SglangPass& pass = passes[p];
    const auto num_tokens = static_cast<int>(pass.positions.size());
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> counts(map.size(), 0);
    for (int layer = 0; layer < num_layers; ++layer) {
      for (int token = 0; token < num_tokens; ++token) {
        const auto& layer_ids = pass.ids[static_cast<std::size_t>(layer)];
        for (int i = 0; i < kSglangTopk; ++i) {
          std::int32_t id = -1;
          if (!layer_ids.empty()) {
            const auto& row = layer_ids[static_cast<std::size_t>(token)];
            if (i < static_cast<int>(row.size())) id = row[static_cast<std::size_t>(i)];
          }
          ids.push_back(id);
          if (id >= 0) ++counts[static_cast<std::size_t>(layer * num_physical + id)];
        }
      }
    }
    const std::string ids_key = std::to_string(storages.size());
    storages.push_back(raw(ids));
    const std::string counts_key = std::to_string(storages.size());
    storages.push_back(raw(counts));
    Items items{
        {"forward_pass_id", p_int(static_cast<int>(p))},
        {"rank", p_int(rank)},
        {"gatherer_key", p_text("primary")},
        {"input_ids", p_int_list(pass.inputs.empty() ? pass.positions : pass.inputs)},
        {"positions", p_int_list(pass.positions)},
        {"extend_seq_lens", pass.extend_seq_lens ? p_int_list(*pass.extend_seq_lens) : "N"},
        {"forward_mode", p_int(pass.forward_mode)},
        {"topk_ids_of_layer", p_tensor("IntStorage", ids_key, static_cast<int>(ids.size()),
                                       {num_layers, num_tokens, kSglangTopk},
                                       // As torch has it for a tensor without elements too.
                                       {std::max(num_tokens, 1) * kSglangTopk, kSglangTopk, 1})},
        {"misc_objects", p_list({})},
        {"global_physical_count",
         p_tensor("IntStorage", counts_key, static_cast<int>(counts.size()),
                  {num_layers, num_physical}, {num_physical, 1})}};
    if (!pass.rids.empty()) {
      std::vector<std::string> names;
      for (const std::string& rid : pass.rids) names.push_back(p_text(rid));
      items.emplace_back("rids", p_list(names));
    }
    records.push_back(p_dict(items));
  }
  const std::string map_key = std::to_string(storages.size());
  storages.push_back(raw(map));
  return torch_file(p_dict({{"records", p_list(records)},
                            {"last_physical_to_logical_map",
                             p_tensor("LongStorage", map_key, static_cast<int>(map.size()),
                                      {num_layers, num_physical}, {num_physical, 1})}}),
                    storages);
}

// Layer 0 dense, layer 1 with physical expert p = logical 3 - p.
const std::vector<std::int64_t> kMap{0, 1, 2, 3, 3, 2, 1, 0};

TEST_F(RecorderTest, SglangCutsThePaddedTopkAxisAndSkipsIdlePasses) {
  const SglangPass prefill{
      {{}, {{0, 1}, {2, 3}, {1, 0}}}, {0, 1, 2}, {}, std::vector<int>{3}, 1, {}};
  const SglangPass idle{{{}, {}}, {}, {}, std::nullopt, 4, {}};
  const SglangPass decode{{{}, {{3, 1}}}, {3}, {}, std::nullopt, 2, {}};
  const Imported imported = import_text("", sglang_file({idle, prefill, idle, decode}, kMap, 2));
  const Routing& routing = recorded_routing(imported);
  EXPECT_EQ(routing.num_topk, 2U);
  EXPECT_EQ(routing.layers, (Layers{1}));
  EXPECT_EQ(routing.experts, (RecordedIds{3, 2, 1, 0, 2, 3, 0, 2}));
  // The decoded token continues the one request that had come to position 3.
  EXPECT_EQ(routing.sequence_begin, (RecordedBegins{0, 4}));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("1 chunks and decode tokens were joined")));
}

TEST_F(RecorderTest, SglangJoinsChunksOfNamedRequests) {
  // Request a in chunks of 2 and 1, the second in one pass with all of b; then a decode of both,
  // listed the other way round.
  const SglangPass first{{{}, {{0, 1}, {0, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {"a"}};
  const SglangPass second{{{}, {{0, 3}, {1, 0}, {1, 2}}}, {2, 0, 1}, {},
                          std::vector<int>{1, 2},         1,         {"a", "b"}};
  const SglangPass decode{{{}, {{1, 3}, {2, 0}}}, {2, 3}, {}, std::nullopt, 2, {"b", "a"}};
  const Imported imported = import_text("", sglang_file({first, second, decode}, kMap, 2));
  const Routing& routing = recorded_routing(imported);
  // Physical to logical: 3 - p. a: 01 02 03 20, b: 10 12 13.
  EXPECT_EQ(routing.experts, (RecordedIds{3, 2, 3, 1, 3, 0, 1, 3, 2, 3, 2, 1, 2, 0}));
  EXPECT_EQ(routing.sequence_begin, (RecordedBegins{0, 4, 7}));
  EXPECT_THAT(imported.notes, Not(Contains(HasSubstr("not named"))));
}

TEST_F(RecorderTest, SglangFollowsPositionsWhereRequestsAreNotNamed) {
  // Chunks of 2 + 1 tokens, then another prompt of 2.
  const SglangPass first{{{}, {{0, 1}, {0, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {}};
  const SglangPass second{{{}, {{0, 3}}}, {2}, {}, std::vector<int>{1}, 1, {}};
  const SglangPass third{{{}, {{1, 0}, {1, 2}}}, {0, 1}, {7, 8}, std::vector<int>{2}, 1, {}};
  const Imported imported = import_text("", sglang_file({first, second, third}, kMap, 2));
  EXPECT_EQ(recorded_routing(imported).sequence_begin, (RecordedBegins{0, 3, 5}));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("come from one prompt cannot be known")));
}

TEST_F(RecorderTest, SglangDoesNotGuessBetweenRequestsAtTheSamePosition) {
  const SglangPass prefill{
      {{}, {{0, 1}, {0, 2}, {1, 2}, {1, 3}}}, {0, 1, 0, 1}, {}, std::vector<int>{2, 2}, 1, {}};
  const SglangPass decode{{{}, {{1, 3}, {2, 0}}}, {2, 2}, {}, std::nullopt, 2, {}};
  const Imported imported = import_text("", sglang_file({prefill, decode}, kMap, 2));
  EXPECT_EQ(recorded_routing(imported).sequence_begin, (RecordedBegins{0, 2, 4, 6}));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("2 decode tokens could be of several")));
}

TEST_F(RecorderTest, SglangCountsRecomputedTokensOfARetractedRequestOnce) {
  const SglangPass prefill{{{}, {{0, 1}, {0, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {"a"}};
  const SglangPass again{
      {{}, {{0, 1}, {0, 2}, {0, 3}}}, {0, 1, 2}, {}, std::vector<int>{3}, 1, {"a"}};
  const Imported imported = import_text("", sglang_file({prefill, again}, kMap, 2));
  EXPECT_EQ(recorded_routing(imported).num_tokens(), 3U);
  EXPECT_THAT(imported.notes, Contains(HasSubstr("2 tokens of requests")));
  // The same name for another text is no recomputation.
  const SglangPass other{{{}, {{0, 1}}}, {0}, {99}, std::vector<int>{1}, 1, {"a"}};
  EXPECT_THAT(error_of("sglang", {{"input", sglang_file({prefill, other}, kMap, 2)}}),
              HasSubstr("request a at position 0 again with another token"));
}

TEST_F(RecorderTest, SglangTensorParallelRanksCountOnceAndDataParallelOnesAdd) {
  const SglangPass pass{{{}, {{0, 1}, {0, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {}};
  const SglangPass other{{{}, {{2, 1}, {3, 2}}}, {0, 1}, {5, 6}, std::vector<int>{2}, 1, {}};
  const Imported imported = import_files("", {{"r0.pt", sglang_file({pass}, kMap, 2, 0)},
                                              {"r1.pt", sglang_file({pass}, kMap, 2, 1)},
                                              {"r2.pt", sglang_file({other}, kMap, 2, 2)}});
  EXPECT_EQ(recorded_routing(imported).num_tokens(), 4U);
  EXPECT_THAT(imported.notes, Contains(HasSubstr("r1.pt: holds the same routing as")));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("files of ranks 0, 2 hold the same layers")));
}

TEST_F(RecorderTest, SglangPipelineStagesAreMergedByLayer) {
  const SglangPass stage0{{{{0, 1}, {0, 2}}, {}}, {0, 1}, {}, std::vector<int>{2}, 1, {}};
  const SglangPass stage1{{{}, {{2, 1}, {3, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {}};
  const Imported imported = import_files("", {{"pp1.pt", sglang_file({stage1}, kMap, 2, 1)},
                                              {"pp0.pt", sglang_file({stage0}, kMap, 2, 0)}});
  const Routing& routing = recorded_routing(imported);
  EXPECT_EQ(routing.layers, (Layers{0, 1}));
  EXPECT_EQ(routing.experts, (RecordedIds{0, 1, 0, 2, 1, 2, 0, 1}));
  EXPECT_EQ(routing.num_tokens(), 2U);
  EXPECT_THAT(imported.notes, Contains(HasSubstr("merged by layer")));
  // Stages of other tokens, and files that share some layers only, do not fit together.
  const SglangPass elsewhere{{{}, {{2, 1}, {3, 2}}}, {0, 1}, {7, 8}, std::vector<int>{2}, 1, {}};
  EXPECT_THAT(error_of("sglang", {{"pp0.pt", sglang_file({stage0}, kMap, 2)},
                                  {"pp1.pt", sglang_file({elsewhere}, kMap, 2)}}),
              HasSubstr("found other tokens (by their ids and positions), expected those of"));
  const SglangPass both{
      {{{0, 1}, {0, 2}}, {{2, 1}, {3, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {}};
  EXPECT_THAT(error_of("sglang", {{"pp0.pt", sglang_file({stage0}, kMap, 2)},
                                  {"all.pt", sglang_file({both}, kMap, 2)}}),
              HasSubstr("found layers 0, 1, expected layer 0 as in"));
}

TEST_F(RecorderTest, SglangPerPassHasCountsOnly) {
  // 2 layers of 4 physical experts, of which 3 is a second replica of logical expert 0.
  const std::vector<std::int64_t> map{0, 1, 2, 0, 0, 1, 2, 0};
  const auto record = [](const std::string& key) {
    return p_dict({{"forward_pass_id", p_int(1)},
                   {"rank", p_int(0)},
                   {"gatherer_key", p_text("primary")},
                   {"global_physical_count", p_tensor("IntStorage", key, 8, {2, 4}, {4, 1})}});
  };
  const std::string text = torch_file(
      p_dict({{"records", p_list({record("0"), record("1")})},
              {"last_physical_to_logical_map", p_tensor("LongStorage", "2", 8, {2, 4}, {4, 1})}}),
      {raw(std::vector<std::int32_t>{0, 0, 0, 0, 1, 2, 3, 4}),
       raw(std::vector<std::int32_t>{0, 0, 0, 0, 5, 0, 1, 1}), raw(map)});
  const Imported imported = import_text("", text);
  const auto& counts = std::get<ExpertCounts>(imported.trace);
  EXPECT_EQ(counts.layers, (Layers{1}));
  EXPECT_EQ(counts.counts, (std::vector<std::uint64_t>{11, 2, 4}));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("mode per_pass has counts only")));
}

TEST_F(RecorderTest, SglangIdsMustAgreeWithItsOwnCounts) {
  SglangPass pass{{{}, {{0, 1}, {0, 2}}}, {0, 1}, {}, std::vector<int>{2}, 1, {}};
  std::string text = sglang_file({pass}, kMap, 2);
  // The counts stand in member data/1: as another pass's.
  pass.ids[1] = {{0, 1}, {0, 3}};
  const std::string other = sglang_file({pass}, kMap, 2);
  std::vector<std::int32_t> ids;
  for (int row = 0; row < 2; ++row) ids.insert(ids.end(), 8, -1);
  for (const int second : {1, 2}) {
    ids.insert(ids.end(), {0, second, -1, -1, -1, -1, -1, -1});
  }
  const std::string forged = torch_file(
      p_dict({{"records",
               p_list({p_dict(
                   {{"topk_ids_of_layer", p_tensor("IntStorage", "0", 32, {2, 2, 8}, {16, 8, 1})},
                    {"global_physical_count", p_tensor("IntStorage", "1", 8, {2, 4}, {4, 1})}})})},
              {"last_physical_to_logical_map", p_tensor("LongStorage", "2", 8, {2, 4}, {4, 1})}}),
      {raw(ids), raw(std::vector<std::int32_t>{0, 0, 0, 0, 2, 1, 0, 1}), raw(kMap)});
  EXPECT_THAT(error_of("sglang", {{"input", forged}}),
              HasSubstr("global_physical_count, layer 1: found 0 choices of physical expert 2, "
                        "expected 1 as topk_ids_of_layer has"));
  EXPECT_EQ(recorded_routing(import_text("sglang", text)).num_tokens(), 2U);
}

// Shared experts that an engine fuses with the routed ones have ids behind them, in the last
// columns (sglang, DeepseekV2MoE with num_fused_shared_experts).
TEST_F(RecorderTest, FusedSharedExpertsAreLeftOut) {
  // 2 tokens, 1 layer, 4 routed experts, top-2 and a shared expert of id 4.
  const std::string text =
      zip({{"routed_experts.npy",
            npy("<i2", "(2, 1, 3)", raw(std::vector<std::int16_t>{0, 3, 4, 2, 1, 4}))},
           {"topk_weights.npy",
            npy("<f4", "(2, 1, 3)", raw(std::vector<float>{.6F, .4F, 1, .7F, .3F, 1}))}});
  const Imported imported = import_text("", text, options(4));
  EXPECT_EQ(recorded_routing(imported).experts, (RecordedIds{0, 3, 2, 1}));
  EXPECT_EQ(recorded_routing(imported).weights, (std::vector<float>{.6F, .4F, .7F, .3F}));
  EXPECT_THAT(imported.notes, ElementsAre(HasSubstr("shared experts fused with the routed ones")));
  // Not where the rest is not the top-k that was asked for, nor where one token lacks it.
  EXPECT_THAT(error_of("npz", {{"input", text}}, options(4, 1)),
              HasSubstr("routed_experts[0, 0, 2]: found expert 4, expected an id below 4"));
  const std::string ragged =
      zip({{"routed_experts.npy",
            npy("<i2", "(2, 1, 3)", raw(std::vector<std::int16_t>{0, 3, 4, 2, 1, 3}))}});
  EXPECT_THAT(error_of("npz", {{"input", ragged}}, options(4)), HasSubstr("found expert 4"));
}

TEST_F(RecorderTest, AnExpertThatEveryTokenChoosesIsNamed) {
  std::vector<std::int16_t> ids;
  for (std::int16_t token = 0; token < 20; ++token) {
    ids.insert(ids.end(), {static_cast<std::int16_t>(token % 4), 4});
  }
  const std::string text = zip({{"routed_experts.npy", npy("<i2", "(20, 1, 2)", raw(ids))}});
  EXPECT_THAT(import_text("", text, options(5)).notes,
              Contains(HasSubstr("expert 4 is chosen by every token in every layer")));
}

// Megatron-LM -----------------------------------------------------------------------------------
// NVIDIA/Megatron-LM 059f0f5, megatron/core/transformer/moe/router_trace.py: the keys of
// _make_index_record and _flush_records_to_disk in their order. `block` is "decoder" or "mtp", the
// latter with mtp_idx; a boolean routing map's nonzero() gives ascending ids.
std::string megatron(int step, const std::string& block, int layer, const std::string& rows,
                     int rank = 0, std::optional<int> mtp_idx = std::nullopt) {
  const auto indices = nlohmann::json::parse("[" + rows + "]");
  nlohmann::ordered_json record{{"step", step},
                                {"stage", "pre_dispatch"},
                                {"block", block},
                                {"layer", layer},
                                {"rank", rank},
                                {"num_tokens", indices.size()},
                                {"topk", indices.front().size()}};
  if (mtp_idx) record["mtp_idx"] = *mtp_idx;
  record["top_indices"] = indices;
  return record.dump() + "\n";
}

TEST_F(RecorderTest, MegatronMicrobatchesAreSequencesAndMtpIsLeftOut) {
  // Two microbatches in step 0, of which the first is recomputed; one in step 1.
  const std::string text =
      megatron(0, "decoder", 1, "[0, 1], [2, 3]") + megatron(0, "decoder", 4, "[4, 5], [6, 7]") +
      megatron(0, "mtp", 1, "[0, 7], [2, 5]", 0, 0) + megatron(0, "decoder", 1, "[1, 2], [0, 3]") +
      megatron(0, "decoder", 4, "[5, 6], [4, 7]") + megatron(0, "decoder", 1, "[0, 1], [2, 3]") +
      megatron(1, "decoder", 1, "[3, 4]") + megatron(1, "decoder", 4, "[0, 2]");
  const Imported imported = import_text("", text, options(8));
  const Routing& routing = recorded_routing(imported);
  EXPECT_EQ(routing.layers, (Layers{1, 4}));
  EXPECT_EQ(routing.experts,
            (RecordedIds{0, 1, 2, 3, 1, 2, 0, 3, 3, 4, 4, 5, 6, 7, 5, 6, 4, 7, 0, 2}));
  EXPECT_EQ(routing.sequence_begin, (RecordedBegins{0, 2, 4, 5}));
  EXPECT_EQ(imported.num_dropped_rows, 2U);
  EXPECT_THAT(imported.notes, Contains(HasSubstr("left out 1 record of multi-token prediction")));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("dropped 2 rows recorded twice")));
  EXPECT_THAT(imported.notes,
              Contains(HasSubstr("whether two sequences share one cannot be known")));
}

TEST_F(RecorderTest, MegatronWithoutBlocksOrWithNumberedOnes) {
  nlohmann::json record = nlohmann::json::parse(megatron(0, "decoder", 1, "[0, 1]"));
  record.erase("block");
  nlohmann::json second = record;
  second["top_indices"] = {{2, 3}};
  EXPECT_EQ(recorded_routing(import_text("", record.dump() + "\n" + second.dump(), options(8)))
                .sequence_begin,
            (RecordedBegins{0, 1, 2}));
  record["block"] = 0;
  second["block"] = 1;
  EXPECT_EQ(recorded_routing(import_text("", record.dump() + "\n" + second.dump(), options(8)))
                .sequence_begin,
            (RecordedBegins{0, 1, 2}));
}

TEST_F(RecorderTest, MegatronStagesAreMergedAndPairedByRank) {
  // Two pipeline stages of two data-parallel ranks; the files come in the shell's order, in which
  // rank 10 stands before rank 2.
  const Imported imported =
      import_files("",
                   {{"router_trace_rank0.jsonl", megatron(0, "decoder", 1, "[0, 1]", 0)},
                    {"router_trace_rank10.jsonl", megatron(0, "decoder", 2, "[6, 7]", 10)},
                    {"router_trace_rank1.jsonl", megatron(0, "decoder", 1, "[2, 3]", 1)},
                    {"router_trace_rank2.jsonl", megatron(0, "decoder", 2, "[4, 5]", 2)}},
                   options(8));
  EXPECT_EQ(recorded_routing(imported).layers, (Layers{1, 2}));
  EXPECT_EQ(recorded_routing(imported).experts, (RecordedIds{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("they were paired in order")));
  // A stage that is missing for one rank.
  EXPECT_THAT(error_of("megatron-jsonl",
                       {{"a", megatron(0, "decoder", 1, "[0, 1]", 0)},
                        {"b", megatron(0, "decoder", 1, "[2, 3]", 1)},
                        {"c", megatron(0, "decoder", 2, "[4, 5]", 2)}},
                       options(8)),
              HasSubstr("found 1 file with layer 2, expected 2 as with layer 1"));
  // And one whose microbatches are of other lengths.
  EXPECT_THAT(error_of("megatron-jsonl",
                       {{"a", megatron(0, "decoder", 1, "[0, 1]", 0)},
                        {"b", megatron(0, "decoder", 2, "[4, 5], [1, 2]", 2)}},
                       options(8)),
              HasSubstr("found 2 tokens in 1 sequence, expected the 1 token in 1 sequence of"));
}

TEST_F(RecorderTest, AscendingIdsAreNoted) {
  // 20 tokens whose two ids ascend: by chance once in 2^20.
  std::string rows;
  for (int token = 0; token < 21; ++token) {
    rows += std::string(token == 0 ? "" : ", ") + "[" + std::to_string(token % 4) + ", " +
            std::to_string(4 + token % 3) + "]";
  }
  EXPECT_THAT(import_text("", megatron(0, "decoder", 1, rows), options(8)).notes,
              Contains(HasSubstr("the ids of every token ascend")));
  EXPECT_THAT(import_text("", megatron(0, "decoder", 1, rows + ", [7, 0]"), options(8)).notes,
              Not(Contains(HasSubstr("ascend"))));
}

// Tables ----------------------------------------------------------------------------------------

TEST_F(RecorderTest, CsvOfLists) {
  const std::string text = "layer,experts\n1,\"1 2\"\n1,\"3 4\"\r\n2,\"5  6\"\n\n2,7 0\n";
  const std::string spreadsheet = "\xef\xbb\xbfLayer,Experts" + text.substr(text.find('\n'));
  for (const std::string& content : {text, text.substr(text.find('\n') + 1), spreadsheet}) {
    const Routing routing = recorded_routing(import_text("", content, options(8)));
    EXPECT_EQ(routing.layers, (Layers{1, 2}));
    EXPECT_EQ(routing.experts, (RecordedIds{1, 2, 3, 4, 5, 6, 7, 0}));
  }
}

// One line per (token, layer, rank of choice): what an evaluation callback prints that walks
// llama.cpp's tensor ffn_moe_topk-LAYER [k, tokens] (ggml-org/llama.cpp, src/llama-graph.cpp,
// build_moe_ffn). llama.cpp itself has no recorder.
TEST_F(RecorderTest, CsvOfOneChoicePerLine) {
  const std::string text = "layer,expert\n0,5\n0,1\n0,2\n0,7\n1,3\n1,0\n1,6\n1,4\n";
  const Imported imported = import_text("", text, options(8, 2));
  EXPECT_EQ(recorded_routing(imported).experts, (RecordedIds{5, 1, 2, 7, 3, 0, 6, 4}));
  EXPECT_EQ(recorded_routing(imported).num_topk, 2U);
  EXPECT_THAT(imported.notes, Contains(HasSubstr("cannot be known")));
  EXPECT_THAT(error_of("csv", {{"input", text}}, options(8, 3)),
              HasSubstr("layer 0: found 1 choices after the last whole token, expected 3"));
  // With the token's number the lines may come in any order.
  const std::string numbered = "token,layer,expert\n1,0,2\n0,0,5\n0,0,1\n1,0,7\n";
  EXPECT_EQ(recorded_routing(import_text("", numbered, options(8))).experts,
            (RecordedIds{5, 1, 2, 7}));
}

// sgl-project/sglang 70e157a, python/sglang/srt/managers/expert_distribution.py: dump_record
// writes layer_id,expert_id,count in order of first choice, without experts that nobody chose.
TEST_F(RecorderTest, CsvOfCounts) {
  const std::string text = "layer_id,expert_id,count\n3,2,5\n3,0,1\n4,1,7\n";
  const Imported imported = import_files(
      "", {{"rank0.csv", text}, {"rank1.csv", "layer_id,expert_id,count\n3,2,1\n"}}, options(4));
  const auto& counts = std::get<ExpertCounts>(imported.trace);
  EXPECT_EQ(counts.layers, (Layers{3, 4}));
  EXPECT_EQ(counts.counts, (std::vector<std::uint64_t>{1, 0, 6, 0, 0, 7, 0, 0}));
  // Complete rows say how many experts there are.
  const Imported whole = import_text("", "layer_id,expert_id,count\n0,0,1\n0,1,0\n1,1,2\n1,0,3\n");
  EXPECT_EQ(std::get<ExpertCounts>(whole.trace).num_experts, 2U);
  ImportOptions one_layer = options(2);
  one_layer.layers = {9};
  EXPECT_EQ(std::get<ExpertCounts>(import_text("", "expert_id,count\n0,4\n1,2\n", one_layer).trace)
                .layers,
            (Layers{9}));
}

// Hugging Face ----------------------------------------------------------------------------------
// huggingface/transformers: router_logits is a tuple over layers, None for those without a router.
TEST_F(RecorderTest, HuggingFaceNullLayersAreDense) {
  ImportOptions softmax;
  softmax.selection = "softmax_topk";
  const Imported imported = import_text(
      "",
      R"({"router_logits": [null, [[0, 2, 1]], null, [[3, 0, 1]]], "top_k": 2, "seq_len": [1]})",
      softmax);
  EXPECT_EQ(recorded_routing(imported).layers, (Layers{1, 3}));
  EXPECT_EQ(recorded_routing(imported).experts, (RecordedIds{1, 2, 0, 2}));
  EXPECT_THAT(imported.notes, ElementsAre(HasSubstr("left out 2 layers whose logits are null")));
}

// ESFT ------------------------------------------------------------------------------------------
// deepseek-ai/ESFT 18d2350, results/expert_scores/TASK/expert_weights_LAYER.txt, as
// scripts/get_expert_scores.py reads them: one sequence per line, ids, an empty cell, weights.
TEST_F(RecorderTest, EsftFilesAreLayers) {
  const Imported imported = import_files(
      "",
      {{"expert_weights_2.txt", "7\t1\t0\t3\t\t0.5\t0.25\t0.75\t0.125\n2\t6\t\t0.5\t0.25\n"},
       {"expert_weights_1.txt", "0\t1\t2\t3\t\t0.1\t0.2\t0.3\t0.4\n4\t5\t\t0.5\t0.6\n"}},
      options(8, 2));
  const Routing& routing = recorded_routing(imported);
  EXPECT_EQ(routing.layers, (Layers{1, 2}));
  EXPECT_EQ(routing.experts, (RecordedIds{0, 1, 2, 3, 4, 5, 7, 1, 0, 3, 2, 6}));
  EXPECT_EQ(routing.weights[1], 0.2F);
  EXPECT_EQ(routing.sequence_begin, (RecordedBegins{0, 2, 3}));
  EXPECT_THAT(
      error_of("esft", {{"expert_weights_1.txt", "0\t1\t2\t\t0.1\t0.2\t0.3\n"}}, options(8, 2)),
      HasSubstr("line 1: found 3 ids, expected a multiple of 2, as many as a token has"));
  EXPECT_THAT(error_of("esft", {{"expert_weights_1.txt", "0\t1\t\t0.1\n"}}, options(8, 2)),
              HasSubstr("line 1: found 1 router weights, expected 2, one per id"));
  EXPECT_THAT(error_of("esft", {{"scores.txt", "0\t1\t\t0.1\t0.1\n"}}, options(8, 2)),
              HasSubstr("found a name without the layer"));
}

// gpt-oss ---------------------------------------------------------------------------------------
// AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting 10b26cb (expert_recorder.py writes router_data),
// 3f3803a (cleaner.py removes full_scores; data/**/*_examples.json).
TEST_F(RecorderTest, GptOssFingerprints) {
  const auto layer = [](const std::string& experts) {
    return R"({"selected_experts": [)" + experts + R"(], "selected_probs": [0.75, 0.25]})";
  };
  const std::string text =
      R"({"row_index": 3, "dataset": "d", "finished_successfully": true, "original_prompt": "p",
          "full_text": ["a", "b", "c"], "generated_only": ["b", "c"], "router_data": [
            {"token_191": {"layer_0": )" +
      layer("3, 1") + R"(, "layer_1": )" + layer("0, 2") + R"(}},
            {"token_192": {"layer_0": )" +
      layer("1, 2") + R"(, "layer_1": )" + layer("3, 0") + "}}]}";
  const Imported imported = import_files(
      "", {{"a_examples.json", text}, {"b_examples.json", "[" + text + "]"}}, options(4));
  // The second file holds the same routing and counts once.
  EXPECT_EQ(recorded_routing(imported).experts, (RecordedIds{3, 1, 1, 2, 0, 2, 3, 0}));
  EXPECT_EQ(recorded_routing(imported).weights[0], 0.75F);
  EXPECT_EQ(recorded_routing(imported).sequence_begin, (RecordedBegins{0, 2}));
  EXPECT_THAT(imported.notes, Contains(HasSubstr("generated tokens only")));
}

// TensorRT-LLM ----------------------------------------------------------------------------------
// NVIDIA/TensorRT-LLM 0fccc5b, tensorrt_llm/_torch/expert_statistic.py: torch.bincount (int64) per
// f"{iter}_{layer}" and meta_info.json of rank 0, in the layout of safetensors.
std::string safetensors(const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& all,
                        const std::string& dtype = "I64") {
  nlohmann::ordered_json header;
  std::string data;
  for (const auto& [key, counts] : all) {
    header[key] = {{"dtype", dtype},
                   {"shape", {counts.size()}},
                   {"data_offsets", {data.size(), data.size() + 8 * counts.size()}}};
    data += raw(counts);
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  return raw(static_cast<std::uint64_t>(text.size())) + text + data;
}

TEST_F(RecorderTest, TensorRtLlmCountsAreAddedUp) {
  const std::string rank0 =
      safetensors({{"50_3", {1, 0, 2}}, {"51_3", {3, 3, 3}}, {"50_4", {0, 0, 6}}});
  const std::string rank2 = safetensors({{"50_3", {1, 1, 1}}, {"50_4", {1, 1, 1}}});
  write_file(folder_ / "meta_info.json", R"({"num_experts": 3, "num_experts_per_token": 2})");
  const Imported imported = import_files(
      "",
      {{"rank0.safetensors", rank0}, {"rank1.safetensors", rank0}, {"rank2.safetensors", rank2}});
  const auto& counts = std::get<ExpertCounts>(imported.trace);
  EXPECT_EQ(counts.layers, (Layers{3, 4}));
  EXPECT_EQ(counts.counts, (std::vector<std::uint64_t>{5, 4, 6, 1, 1, 7}));
  EXPECT_EQ(counts.num_topk, 2U);
  EXPECT_THAT(imported.notes, ElementsAre(HasSubstr("rank1.safetensors: holds the same routing")));

  const auto refused = [&](const std::string& content) {
    return error_of("trtllm", {{"rank0.safetensors", content}});
  };
  EXPECT_THAT(refused(safetensors({{"lm_head.weight", {1, 2}}})),
              HasSubstr("found a tensor \"lm_head.weight\", expected ITERATION_LAYER"));
  EXPECT_THAT(refused(safetensors({{"50_3", {1, 2}}})),
              HasSubstr("found 2 experts, expected 3 as meta_info.json says"));
  EXPECT_THAT(refused(safetensors({{"50_3", {1, 2, 3}}, {"51_3", {1, 2}}})),
              HasSubstr("51_3: found 2 experts, expected 3 as before"));
  EXPECT_THAT(refused(safetensors({{"50_3", {1, -2, 3}}})), HasSubstr("found count -2"));
  EXPECT_THAT(refused(safetensors({{"50_3", {1, 2, 3}}}, "F64")), HasSubstr("found dtype \"F64\""));
  EXPECT_THAT(refused(rank0.substr(0, rank0.size() - 1)),
              HasSubstr("expected 24 bytes inside the file"));
  EXPECT_THAT(refused(rank0.substr(0, 20)), HasSubstr("expected a whole safetensors file"));
  EXPECT_THAT(refused(""), HasSubstr("found a header of 0 bytes in a file of 0"));
}

// What holds for all ----------------------------------------------------------------------------

TEST_F(RecorderTest, TopkIsHeldAgainstTheOptionsAndTheModel) {
  const std::string ids = npy("<i4", "(1, 1, 2)", raw(std::vector<std::int32_t>{1, 2}));
  EXPECT_THAT(error_of("npy", {{"input", ids}}, options(8, 3)),
              HasSubstr("found top-2, expected top-3 as --num-topk says"));
  ImportOptions model;
  model.model = load_model("qwen3_30b_a3b");
  std::vector<std::int32_t> row(48 * 4);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::int32_t>(i % 4);
  EXPECT_THAT(error_of("npy", {{"input", npy("<i4", "(1, 48, 4)", raw(row))}}, model),
              HasSubstr("found top-4, expected top-8 as qwen3_30b_a3b has"));
  EXPECT_THAT(error_of("npy", {{"input", npy("<i4", "(48, 1, 4)", raw(row))}}, model),
              HasSubstr("whose first axis has as many entries as qwen3_30b_a3b has layers"));
}

TEST_F(RecorderTest, SharedPromptsAreNoted) {
  // Three sequences of 20 tokens; the second begins with the first one's 16 tokens.
  Routing routing = random_routing(16, 2, {0}, {20, 20, 20}, false);
  std::copy_n(routing.experts.begin(), 32, routing.experts.begin() + 40);
  std::vector<std::int32_t> ids(routing.experts.begin(), routing.experts.end());
  const std::string text =
      zip({{"routed_experts.npy", npy("<i4", "(60, 1, 2)", raw(ids))},
           {"seq_len.npy", npy("<i4", "(3,)", raw(std::vector<std::int32_t>{20, 20, 20}))}});
  EXPECT_THAT(import_text("", text, options(16)).notes,
              ElementsAre(HasSubstr("1 of 3 sequences begin with the routing of an earlier one")));
}

TEST_F(RecorderTest, FormatsAreInferredWhereTheyAreCertain) {
  EXPECT_EQ(recorded_routing(import_text("", R"([{"0": null, "1": [[1, 2]]}])", options(8))).layers,
            (Layers{1}));
  EXPECT_EQ(
      recorded_routing(
          import_text(
              "",
              R"({"type": "meta", "top_k": 1})"
              "\n"
              R"({"type": "route", "req_id": 0, "token_idx": 0, "layer": 2, "topk_ids": [3]})",
              options(8)))
          .layers,
      (Layers{2}));
}

TEST_F(RecorderTest, OtherFilesAskForTheFormat) {
  EXPECT_THAT(error_of("", {{"input", "3 4 5\n"}}),
              HasSubstr("found a format that is not certain, expected --format with one of npz, "));
  EXPECT_THAT(error_of("", {{"a", R"([{"1": [[1, 2]]}])"}, {"b", "layer,experts\n1,\"1 2\"\n"}},
                       options(8)),
              HasSubstr("found a file of format csv, expected json as in"));
}

}  // namespace
}  // namespace coterie
