// Placement files: round trips, the maps of EPLB and SGLang, and malformed input.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;

class TemporaryFile {
 public:
  TemporaryFile() {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            (std::string("coterie_") + info->test_suite_name() + "_" + info->name() + ".json");
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

Placement small_placement() {
  Placement placement;
  placement.strategy = "collaboration";
  placement.trained_on = "a \"quoted\" name even 0123456789abcdef";
  placement.num_experts = 4;
  placement.num_ranks = 2;
  placement.ranks_per_node = 2;
  placement.replica_choice = ReplicaChoice::kStatic;
  placement.layers = {{1, {{0, 2}, {1, 3}}}, {3, {{0, 3}, {1, 2}}}};
  return placement;
}

void expect_same(const Placement& a, const Placement& b) {
  EXPECT_EQ(a.strategy, b.strategy);
  EXPECT_EQ(a.trained_on, b.trained_on);
  EXPECT_EQ(a.num_experts, b.num_experts);
  EXPECT_EQ(a.num_ranks, b.num_ranks);
  EXPECT_EQ(a.ranks_per_node, b.ranks_per_node);
  EXPECT_EQ(a.replica_choice, b.replica_choice);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].layer, b.layers[i].layer);
    EXPECT_EQ(a.layers[i].rank_experts, b.layers[i].rank_experts);
  }
}

TEST(PlacementFile, ReadsBackWhatItWrote) {
  const TemporaryFile file;
  write_placement(file.path(), small_placement());
  expect_same(read_placement(file.path()), small_placement());
  expect_same(read_placement(file.path(), 2), small_placement());
}

TEST(PlacementFile, RefusesToWriteAnUnsoundPlacement) {
  const TemporaryFile file;
  Placement placement = small_placement();
  placement.layers[1].rank_experts[0] = {0, 1};
  EXPECT_THROW(write_placement(file.path(), placement), InputError);
  EXPECT_FALSE(std::filesystem::exists(file.path()));
}

// EPLB's README: physical_to_logical_map [layers][slots], slots rank-major.
TEST(PlacementFile, WritesTheMapOfEplb) {
  const TemporaryFile file;
  write_placement(file.path(), small_placement(), PlacementFormat::kEplb);
  EXPECT_EQ(read_file(file.path()),
            "{\"physical_to_logical_map\": [\n[0, 2, 1, 3],\n[0, 3, 1, 2]\n]}\n");
  const Placement read = read_placement(file.path(), 2);
  EXPECT_EQ(read.layers[1].rank_experts, small_placement().layers[1].rank_experts);
  const std::vector<std::uint32_t> layers = {1, 3};
  EXPECT_EQ(select_layers(read, layers).layers[1].layer, 3u);
}

// SGLang wants a row for every layer of the model, dense ones included.
TEST(PlacementFile, WritesTheMapOfSglang) {
  const TemporaryFile file;
  write_placement(file.path(), small_placement(), PlacementFormat::kSglang);
  EXPECT_EQ(read_file(file.path()),
            "{\"physical_to_logical_map\": [\n[0, 1, 2, 3],\n[0, 2, 1, 3],\n[0, 1, 2, 3],\n"
            "[0, 3, 1, 2]\n]}\n");
  const std::vector<std::uint32_t> layers = {1, 3};
  const Placement read = select_layers(read_placement(file.path(), 2), layers);
  EXPECT_EQ(read.layers[0].rank_experts, small_placement().layers[0].rank_experts);
  EXPECT_EQ(read.layers[1].rank_experts, small_placement().layers[1].rank_experts);
}

// Replicas of expert 0 on ranks 0 (twice) and 1: the two on one rank are one host.
TEST(PlacementFile, MergesReplicasOfOneRankInAMap) {
  const Placement read =
      parse_placement("{\"physical_to_logical_map\": [[0, 0, 1, 2, 0, 3]]}", "map.json", 2);
  EXPECT_THAT(read.layers[0].rank_experts, ElementsAre(ElementsAre(0, 1), ElementsAre(0, 2, 3)));
  EXPECT_EQ(read.num_experts, 4u);
}

TEST(PlacementFile, RefusesUnequalRanksInAMap) {
  const TemporaryFile file;
  Placement placement = small_placement();
  placement.num_experts = 5;
  for (LayerPlacement& layer : placement.layers) layer.rank_experts[1].push_back(4);
  EXPECT_THROW(write_placement(file.path(), placement, PlacementFormat::kEplb), InputError);
  EXPECT_FALSE(std::filesystem::exists(file.path()));
}

TEST(PlacementFile, SaysWhichLayerIsMissing) {
  const std::vector<std::uint32_t> layers = {1, 2};
  try {
    select_layers(small_placement(), layers);
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "placement: found no layer 2, expected every layer of the trace (2 layers, 1 to "
                 "2)");
  }
}

struct Malformed {
  std::string name;
  std::string text;
  std::string sentence;
};

std::string document(const std::string& header, const std::string& layers) {
  return "{\"schema_version\": 1, \"strategy\": \"s\", \"trained_on\": \"\", " + header +
         ", \"layers\": " + layers + "}";
}
const std::string kHeader = "\"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": 2";

class MalformedPlacement : public ::testing::TestWithParam<Malformed> {};

TEST_P(MalformedPlacement, GetsItsSentence) {
  try {
    parse_placement(GetParam().text, "p.json", 2);
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what()), GetParam().sentence);
    EXPECT_EQ(error.exit_code(), ExitCode::kBadInput);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Files, MalformedPlacement,
    ::testing::ValuesIn(std::vector<Malformed>{
        Malformed{"Empty", "",
                  "p.json:1:1: found the end of the file, expected a placement in JSON"},
        Malformed{"Truncated", "{\"schema_version\": 1,\n  \"strategy\": \"s",
                  "p.json:2:17: found the end of the file, expected a placement in JSON"},
        Malformed{"NotJson", "layers:\n  - 1\n",
                  "p.json:1:1: found text that is not JSON, expected a placement in JSON"},
        Malformed{"BareRowWithoutAnExpert", "[1, 2]", "p.json: layer 0: expert 0 is on no rank"},
        Malformed{"DuplicateKey", "{\"strategy\": \"a\", \"strategy\": \"b\"}",
                  "p.json: found the key \"strategy\" twice, expected every key once"},
        Malformed{
            "MissingKey", "{\"schema_version\": 1, \"strategy\": \"s\", \"trained_on\": \"\"}",
            "p.json: found no key \"num_experts\", expected the keys schema_version, strategy, "
            "trained_on, num_experts, num_ranks, ranks_per_node, layers"},
        Malformed{
            "UnknownKey", document(kHeader + ", \"seed\": 3", "[]"),
            "p.json: found the key \"seed\", expected only the keys schema_version, strategy, "
            "trained_on, num_experts, num_ranks, ranks_per_node, layers"},
        Malformed{"FutureSchema",
                  "{\"schema_version\": 2, \"strategy\": \"s\", \"trained_on\": \"\", " + kHeader +
                      ", \"layers\": []}",
                  "p.json: schema_version: found 2, expected an integer from 1 to 1"},
        Malformed{"StrategyNotAString",
                  "{\"schema_version\": 1, \"strategy\": 7, \"trained_on\": \"\", " + kHeader +
                      ", \"layers\": []}",
                  "p.json: strategy: found 7, expected a string"},
        Malformed{"NegativeRanks",
                  document("\"num_experts\": 4, \"num_ranks\": -2, \"ranks_per_node\": 2", "[]"),
                  "p.json: num_ranks: found -2, expected an integer from 1 to 1048576"},
        Malformed{"FractionalRanks",
                  document("\"num_experts\": 4, \"num_ranks\": 2.0, \"ranks_per_node\": 2", "[]"),
                  "p.json: num_ranks: found 2.0, expected an integer from 1 to 1048576"},
        Malformed{"OtherRanks",
                  document("\"num_experts\": 4, \"num_ranks\": 4, \"ranks_per_node\": 2", "[]"),
                  "p.json: num_ranks: found 4, expected 2, as asked for"},
        Malformed{"TooManyExperts",
                  document("\"num_experts\": 70000, \"num_ranks\": 2, \"ranks_per_node\": 2", "[]"),
                  "p.json: num_experts: found 70000, expected an integer from 1 to 65535"},
        Malformed{"NoLayers", document(kHeader, "[]"),
                  "p.json: layers: found an empty list, expected at least one layer"},
        Malformed{"LayersNotAList", document(kHeader, "{}"),
                  "p.json: layers: found {}, expected a list"},
        Malformed{"LayersOutOfOrder",
                  document(kHeader,
                           "[{\"layer\": 2, \"rank_experts\": [[0, 1], [2, 3]]},"
                           " {\"layer\": 2, \"rank_experts\": [[0, 1], [2, 3]]}]"),
                  "p.json: layers[1].layer: found 2, expected a layer after 2"},
        Malformed{"FewerRanksThanSaid",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1, 2, 3]]}]"),
                  "p.json: layers[0].rank_experts: found 1 rank, expected 2, as num_ranks says"},
        Malformed{"ExpertOutOfRange",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 4]]}]"),
                  "p.json: layers[0].rank_experts[1][1]: found 4, expected an integer from 0 to 3"},
        Malformed{
            "ExpertNotANumber",
            document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, \"1\"], [2, 3]]}]"),
            "p.json: layers[0].rank_experts[0][1]: found \"1\", expected an integer from 0 to "
            "3"},
        Malformed{"ExpertMissing",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1], [1, 2]]}]"),
                  "p.json: layer 1: expert 3 is on no rank"},
        Malformed{"ExpertTwiceOnARank",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 0, 1], [2, 3]]}]"),
                  "p.json: layer 1: rank 0: expert 0 stands there twice"},
        Malformed{"UnequalCounts",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1, 2], [3]]}]"),
                  "p.json: layer 1: found between 1 and 3 experts per rank, expected counts that "
                  "differ by at most one"},
        Malformed{"MapSlotsDoNotDivide", "{\"physical_to_logical_map\": [[0, 1, 2]]}",
                  "p.json: physical_to_logical_map[0]: found 3 slots, expected a multiple of the 2 "
                  "ranks"},
        Malformed{"MapRowsDiffer", "{\"physical_to_logical_map\": [[0, 1], [0, 1, 0, 1]]}",
                  "p.json: physical_to_logical_map[1]: found 4 slots, expected 2, as in the first "
                  "layer"},
        Malformed{"MapNegativeExpert", "{\"physical_to_logical_map\": [[0, -1]]}",
                  "p.json: physical_to_logical_map[0][1]: found -1, expected an integer from 0 to "
                  "65534"},
        Malformed{"MapExpertMissing", "{\"physical_to_logical_map\": [[0, 2]]}",
                  "p.json: layer 0: expert 1 is on no rank"},
        Malformed{"MapEmpty", "{\"physical_to_logical_map\": []}",
                  "p.json: physical_to_logical_map: found an empty list, expected at least one "
                  "layer"},
        Malformed{"TextAfterTheDocument",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]} {"),
                  "p.json:1:173: found text that is not JSON, expected a placement in JSON"},
        Malformed{"TrailingComma",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}],"),
                  "p.json:1:172: found text that is not JSON, expected a placement in JSON"},
        Malformed{"SingleQuotes",
                  "{\"schema_version\": 1, \"strategy\": 's', \"trained_on\": \"\", "
                  "\"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": 2, \"layers\": "
                  "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]}",
                  "p.json:1:35: found text that is not JSON, expected a placement in JSON"},
        Malformed{"ControlCharacter",
                  "{\"schema_version\": 1, \"strategy\": \"s\n\", \"trained_on\": \"\", "
                  "\"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": 2, \"layers\": "
                  "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]}",
                  "p.json:1:37: found text that is not JSON, expected a placement in JSON"},
        Malformed{
            "NotUtf8",
            "{\"schema_version\": 1, \"strategy\": \"\xff"
            "\", \"trained_on\": \"\", \"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": "
            "2, \"layers\": [{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]}",
            "p.json:1:36: found text that is not JSON, expected a placement in JSON"},
        Malformed{"Null", "null", "p.json: found null, expected a map"},
        Malformed{"Number", "17", "p.json: found 17, expected a map"},
        Malformed{"NoSchemaVersion",
                  "{\"strategy\": \"s\", \"trained_on\": \"\", \"num_experts\": 4, \"num_ranks\": "
                  "2, \"ranks_per_node\": 2, \"layers\": [{\"layer\": 1, \"rank_experts\": [[0, "
                  "1], [2, 3]]}]}",
                  "p.json: found no key \"schema_version\", expected the keys schema_version, "
                  "strategy, trained_on, num_experts, num_ranks, ranks_per_node, layers"},
        Malformed{"SchemaInWords",
                  "{\"schema_version\": \"1\", \"strategy\": \"s\", \"trained_on\": \"\", "
                  "\"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": 2, \"layers\": "
                  "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]}",
                  "p.json: schema_version: found \"1\", expected an integer from 1 to 1"},
        Malformed{"TrainedOnNotAString",
                  "{\"schema_version\": 1, \"strategy\": \"s\", \"trained_on\": [], "
                  "\"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": 2, \"layers\": "
                  "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]}",
                  "p.json: trained_on: found [], expected a string"},
        Malformed{"NoExperts",
                  document("\"num_experts\": 0, \"num_ranks\": 2, \"ranks_per_node\": 2",
                           "[{\"layer\": 1, \"rank_experts\": [[], []]}]"),
                  "p.json: num_experts: found 0, expected an integer from 1 to 65535"},
        Malformed{"ZeroRanks",
                  document("\"num_experts\": 4, \"num_ranks\": 0, \"ranks_per_node\": 2", "[]"),
                  "p.json: num_ranks: found 0, expected an integer from 1 to 1048576"},
        Malformed{"ZeroRanksPerNode",
                  document("\"num_experts\": 4, \"num_ranks\": 2, \"ranks_per_node\": 0",
                           "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]]}]"),
                  "p.json: ranks_per_node: found 0, expected an integer from 1 to 1048576"},
        Malformed{
            "HugeRanks",
            document(
                "\"num_experts\": 4, \"num_ranks\": 18446744073709551616, \"ranks_per_node\": 2",
                "[]"),
            "p.json: num_ranks: found 1.8446744073709552e+19, expected an integer from 1 to "
            "1048576"},
        Malformed{"LayerIsAList", document(kHeader, "[[[0, 1], [2, 3]]]"),
                  "p.json: layers[0]: found [[0,1],[2,3]], expected a map"},
        Malformed{
            "LayerWithoutNumber", document(kHeader, "[{\"rank_experts\": [[0, 1], [2, 3]]}]"),
            "p.json: layers[0]: found no key \"layer\", expected the keys layer, rank_experts"},
        Malformed{
            "LayerWithUnknownKey",
            document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1], [2, 3]], \"load\": 2}]"),
            "p.json: layers[0]: found the key \"load\", expected only the keys layer, "
            "rank_experts"},
        Malformed{"NegativeLayer",
                  document(kHeader, "[{\"layer\": -1, \"rank_experts\": [[0, 1], [2, 3]]}]"),
                  "p.json: layers[0].layer: found -1, expected an integer from 0 to 1048576"},
        Malformed{
            "RanksAreAMap",
            document(kHeader, "[{\"layer\": 1, \"rank_experts\": {\"0\": [0, 1], \"1\": [2, 3]}}]"),
            "p.json: layers[0].rank_experts: found {\"0\":[0,1],\"1\":[2,3]}, expected a list"},
        Malformed{"MoreRanksThanSaid",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0], [1], [2, 3]]}]"),
                  "p.json: layers[0].rank_experts: found 3 ranks, expected 2, as num_ranks says"},
        Malformed{"RankIsANumber",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [0, [2, 3]]}]"),
                  "p.json: layers[0].rank_experts[0]: found 0, expected a list"},
        Malformed{
            "FractionalExpert",
            document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1.5], [2, 3]]}]"),
            "p.json: layers[0].rank_experts[0][1]: found 1.5, expected an integer from 0 to 3"},
        Malformed{
            "NegativeExpert",
            document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, -1], [2, 3]]}]"),
            "p.json: layers[0].rank_experts[0][1]: found -1, expected an integer from 0 to 3"},
        Malformed{"EmptyRank",
                  document(kHeader, "[{\"layer\": 1, \"rank_experts\": [[0, 1, 2, 3], []]}]"),
                  "p.json: layer 1: found between 0 and 4 experts per rank, expected counts that "
                  "differ by at most one"},
        Malformed{
            "DuplicateKeyInALayer",
            document(kHeader, "[{\"layer\": 1, \"layer\": 2, \"rank_experts\": [[0, 1], [2, 3]]}]"),
            "p.json: found the key \"layer\" twice, expected every key once"},
        Malformed{"MapNotAList", "{\"physical_to_logical_map\": {}}",
                  "p.json: physical_to_logical_map: found {}, expected a list"},
        Malformed{"MapRowNotAList", "{\"physical_to_logical_map\": [[0, 1], 7]}",
                  "p.json: physical_to_logical_map[1]: found 7, expected a list"},
        Malformed{
            "UnknownChoice", document(kHeader + ", \"replica_choice\": \"near\"", "[]"),
            "p.json: replica_choice: found \"near\", expected one of locality, static, random, "
            "round_robin"},
        Malformed{
            "CountsOnly", "{\"logical_count\": [[3, 4]]}",
            "p.json: found logical_count, which is how often each expert was chosen, expected "
            "a placement: physical_to_logical_map (coterie trace import reads counts)"},
        Malformed{
            "TwoModels", "{\"model_maps\": {\"A\": {}, \"B\": {}}}",
            "p.json: model_maps: found 2 models: A, B, expected the map of one model in a file "
            "of its own"},
        Malformed{"AscendLayerCount", "{\"moe_layer_count\": 2, \"layer_list\": [{}]}",
                  "p.json: layer_list: found 1 layer, expected 2, as moe_layer_count says"},
        Malformed{
            "AscendDeviceOutOfOrder",
            "{\"layer_list\": [{\"device_list\": [{\"device_id\": 1, \"device_expert\": [0]}, "
            "{\"device_expert\": [1]}]}]}",
            "p.json: layer_list[0].device_list[0].device_id: found 1, expected 0, its place in "
            "the list"},
        Malformed{"AscendOtherRanks",
                  "{\"layer_list\": [{\"device_list\": [{\"device_expert\": [0]}]}]}",
                  "p.json: layer_list[0].device_list: found 1 device, expected 2, as asked for"},
        Malformed{
            "TrtllmSlots", "initial_global_assignments: {1: [0, 1]}\nnum_slots: 4\n",
            "p.json:1:33: key \"initial_global_assignments.1\": found 2 slots, expected 4, as "
            "num_slots says"},
        Malformed{
            "TrtllmLayer", "initial_global_assignments: {first: [0, 1]}\n",
            "p.json:1:37: key \"initial_global_assignments.first\": found the layer \"first\", "
            "expected a layer's number in the model"},
        Malformed{"MapRowEmpty", "{\"physical_to_logical_map\": [[]]}",
                  "p.json: physical_to_logical_map[0]: found 0 slots, expected a multiple of the 2 "
                  "ranks"},
        Malformed{"MapExpertInWords", "{\"physical_to_logical_map\": [[\"a\", 1]]}",
                  "p.json: physical_to_logical_map[0][0]: found \"a\", expected an integer from 0 "
                  "to 65534"},
        Malformed{"MapHugeExpert", "{\"physical_to_logical_map\": [[0, 70000]]}",
                  "p.json: physical_to_logical_map[0][1]: found 70000, expected an integer from 0 "
                  "to 65534"}}),
    [](const auto& row) { return row.param.name; });

// Six experts on two ranks of four slots, experts 0 and 3 on both; two layers of a model of five.
Placement replicated_placement(ReplicaChoice choice) {
  Placement placement;
  placement.strategy = "collaboration";
  placement.num_experts = 6;
  placement.num_ranks = 2;
  placement.ranks_per_node = 2;
  placement.replica_choice = choice;
  placement.layers = {{2, {{0, 1, 2, 3}, {0, 3, 4, 5}}}, {3, {{0, 2, 3, 4}, {0, 1, 3, 5}}}};
  return placement;
}

struct EngineFile {
  PlacementFormat format;
  std::string name;
  std::string extension;
  ReplicaChoice choice;
  std::string text;
};

class EngineFormat : public ::testing::TestWithParam<EngineFile> {};

// The text is written out by hand from what the engine reads; what comes back is what went in.
TEST_P(EngineFormat, WritesWhatTheEngineReadsAndReadsItBack) {
  const EngineFile& row = GetParam();
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("coterie_engine_" + row.name + row.extension);
  const Placement written = replicated_placement(row.choice);
  const ModelLayers model{5, {2, 3}};
  write_placement(path, written, row.format, model);
  EXPECT_EQ(read_file(path), row.text);
  const std::vector<std::uint32_t> layers = {2, 3};
  const Placement read = select_layers(read_placement(path, 2), layers);
  std::filesystem::remove(path);
  ASSERT_EQ(read.layers.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(read.layers[i].layer, layers[i]);
    EXPECT_EQ(read.layers[i].rank_experts, written.layers[i].rank_experts);
  }
  EXPECT_EQ(read.num_experts, 6u);
}

INSTANTIATE_TEST_SUITE_P(
    Files, EngineFormat,
    ::testing::Values(
        EngineFile{PlacementFormat::kEplb, "eplb", ".json", ReplicaChoice::kLocality,
                   "{\"physical_to_logical_map\": [\n[0, 1, 2, 3, 0, 3, 4, 5],\n"
                   "[0, 2, 3, 4, 0, 1, 3, 5]\n]}\n"},
        // A row per layer of the model: slot modulo experts for layers 0, 1 and 4.
        EngineFile{PlacementFormat::kSglang, "sglang", ".json", ReplicaChoice::kStatic,
                   "{\"physical_to_logical_map\": [\n[0, 1, 2, 3, 4, 5, 0, 1],\n"
                   "[0, 1, 2, 3, 4, 5, 0, 1],\n[0, 1, 2, 3, 0, 3, 4, 5],\n"
                   "[0, 2, 3, 4, 0, 1, 3, 5],\n[0, 1, 2, 3, 4, 5, 0, 1]\n]}\n"},
        EngineFile{PlacementFormat::kTrtllm, "trtllm", ".yaml", ReplicaChoice::kRoundRobin,
                   "num_slots: 8\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n"
                   "  2: [0, 1, 2, 3, 0, 3, 4, 5]\n  3: [0, 2, 3, 4, 0, 1, 3, 5]\n"},
        EngineFile{PlacementFormat::kVllmAscend, "ascend", ".json", ReplicaChoice::kStatic,
                   "{\"moe_layer_count\": 2, \"layer_list\": [\n"
                   "{\"layer_id\": 0, \"device_count\": 2, \"device_list\": ["
                   "{\"device_id\": 0, \"device_expert\": [0, 1, 2, 3]}, "
                   "{\"device_id\": 1, \"device_expert\": [0, 3, 4, 5]}]},\n"
                   "{\"layer_id\": 1, \"device_count\": 2, \"device_list\": ["
                   "{\"device_id\": 0, \"device_expert\": [0, 2, 3, 4]}, "
                   "{\"device_id\": 1, \"device_expert\": [0, 1, 3, 5]}]}\n]}\n"}),
    [](const auto& row) { return row.param.name; });

std::string refusal(PlacementFormat format, const std::string& path, ReplicaChoice choice,
                    const std::optional<ModelLayers>& model = std::nullopt) {
  try {
    write_placement(path, replicated_placement(choice), format, model);
  } catch (const InputError& error) {
    return error.what();
  }
  std::filesystem::remove(path);
  return "no error";
}

// SGLang's compute_initial_expert_location_metadata parses a name without .json as JSON itself, and
// knows static and dynamic; TensorRT-LLM raises KeyError for a layer that its YAML lacks.
TEST(EngineFormats, RefuseWhatTheEngineCannotLoad) {
  EXPECT_EQ(
      refusal(PlacementFormat::kSglang, "location.txt", ReplicaChoice::kStatic),
      "location.txt: found the ending \".txt\", expected .json: SGLang takes any other name for "
      "the JSON itself");
  EXPECT_EQ(
      refusal(PlacementFormat::kSglang, "location.json", ReplicaChoice::kLocality),
      "replica choice: found locality, expected static or random (its dynamic): SGLang has no "
      "other rule, so that the placement would not do there what it was made for");
  EXPECT_EQ(
      refusal(PlacementFormat::kTrtllm, "t.yaml", ReplicaChoice::kRoundRobin,
              ModelLayers{5, {2, 3, 4}}),
      "found no layer 4, expected all 3 MoE layers of the model: trtllm stops at a layer that "
      "the file lacks");
  EXPECT_FALSE(std::filesystem::exists("location.json"));
}

TEST(EngineFormats, LaunchFlagsNameTheFileAndTheRedundantExperts) {
  EXPECT_EQ(launch_flags(replicated_placement(ReplicaChoice::kRandom), PlacementFormat::kSglang,
                         "location.json"),
            "# SGLang (python -m sglang.launch_server)\n--ep-size 2 --ep-num-redundant-experts 2 "
            "--init-expert-location location.json --ep-dispatch-algorithm dynamic\n");
  EXPECT_EQ(launch_flags(replicated_placement(ReplicaChoice::kLocality), PlacementFormat::kEplb,
                         "map.json"),
            "");
}

// The forms that forks and their users keep: bare rows, one row for all layers, maps by model,
// other keys beside the map. All say that rank 0 hosts {0, 1} and rank 1 {2, 3}.
TEST(EngineFormats, ReadsBareRowsAndMapsByModel) {
  const std::vector<std::uint32_t> layers = {4, 7};
  for (const char* const text :
       {"[[1, 0, 2, 3], [0, 1, 3, 2]]", "[0, 1, 2, 3]",
        "{\"version\": 2, \"model_maps\": {\"X\": {\"physical_to_logical_map\": [0, 1, 3, 2]}}}",
        "{\"physical_to_logical_map\": [[0, 1, 2, 3], [0, 1, 2, 3]], \"logical_count\": []}",
        "initial_global_assignments:\n  4: [1, 0, 2, 3]\n  7: [0, 1, 2, 3]\n"}) {
    const Placement read = select_layers(parse_placement(text, "map", 2), layers);
    ASSERT_EQ(read.layers.size(), 2u) << text;
    for (const LayerPlacement& layer : read.layers) {
      EXPECT_THAT(layer.rank_experts, ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3))) << text;
    }
    EXPECT_EQ(read.layers[1].layer, 7u);
  }
  const Placement read = parse_placement(
      "{\"physical_to_logical_map\": [[0, 1]], \"logical_count\": []}", "map.json", 2);
  EXPECT_THAT(read.keys_left_aside, ElementsAre("logical_count"));
}

// Layers 1 and 2 of a model of three, whose map may have a row for the dense layer 0 and for an MTP
// layer 3. Row i hosts expert i on rank 0.
TEST(EngineFormats, FindsTheRowsOfMoeLayers) {
  const std::vector<std::uint32_t> layers = {1, 2};
  const auto rows = [&](const std::string& text) {
    const Placement read = select_layers(parse_placement(text, "map.json", 4), layers);
    return std::vector<ExpertIdx>{read.layers[0].rank_experts[0][0],
                                  read.layers[1].rank_experts[0][0]};
  };
  const std::string r0 = "[0, 1, 2, 3]";
  const std::string r1 = "[1, 0, 2, 3]";
  const std::string r2 = "[2, 0, 1, 3]";
  const std::string r3 = "[3, 0, 1, 2]";
  EXPECT_THAT(rows("[" + r1 + "," + r2 + "]"), ElementsAre(1, 2));
  EXPECT_THAT(rows("[" + r0 + "," + r1 + "," + r2 + "]"), ElementsAre(1, 2));
  EXPECT_THAT(rows("[" + r0 + "," + r1 + "," + r2 + "," + r3 + "]"), ElementsAre(1, 2));
  // Of layers 2 and 3, three rows cannot be a row per layer of the model: the third is an MTP
  // layer.
  const std::vector<std::uint32_t> later = {2, 3};
  const Placement read =
      select_layers(parse_placement("[" + r1 + "," + r2 + "," + r3 + "]", "map.json", 4), later);
  EXPECT_EQ(read.layers[1].rank_experts[0][0], 2);
  EXPECT_THROW(select_layers(parse_placement("[" + r1 + "]", "map.json", 4), later), InputError);
}

// An engine's map does not say how many experts there are; the trace does.
TEST(EngineFormats, NamesTheExpertThatTheEndOfAMapLacks) {
  const Placement read = parse_placement("[[0, 1, 2, 0]]", "map.json", 2);
  try {
    expect_experts(read, 4, "map.json");
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_STREQ(
        error.what(),
        "map.json: found no slot of expert 3, expected every one of the trace's 4 experts");
  }
  EXPECT_NO_THROW(expect_experts(read, 3, "map.json"));
}

TEST(PlacementFile, MapNeedsTheNumberOfRanks) {
  try {
    parse_placement("{\"physical_to_logical_map\": [[0, 1]]}", "p.json");
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "p.json: found a physical_to_logical_map, expected the number of ranks beside it "
                 "(--ranks)");
  }
}

}  // namespace
}  // namespace coterie
