// Experiments: what a good file means, and the sentence for every kind of bad one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "core/file.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/plan/check.hpp"
#include "workloads/prepare.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Line numbers count from the first line.
constexpr const char* kGood =
    "schema_version: 1\n"                                                              // 1
    "topology: h100_node\n"                                                            // 2
    "model: model.yaml\n"                                                              // 3
    "trace: {file: a.moet, train: even, eval: odd}\n"                                  // 4
    "ranks: 8\n"                                                                       // 5
    "tokens_per_rank: 32\n"                                                            // 6
    "payload: {dispatch: fp8, combine: bf16}\n"                                        // 7
    "engine: bound\n"                                                                  // 8
    "runs:\n"                                                                          // 9
    "  - {name: standard, placement: contiguous, dispatch: standard}\n"                // 10
    "  - {name: learnt, placement: collaboration, dispatch: hierarchical}\n"           // 11
    "  - {name: balanced, placement: load_balanced, dispatch: dedup, replicas: 8}\n";  // 12

constexpr const char* kModel =
    "schema_version: 1\n"
    "name: small\n"
    "description: for tests\n"
    "num_layers: 4\n"
    "moe_layers: {first: 0, step: 1}\n"
    "hidden: 256\n"
    "expert_intermediate: 128\n"
    "num_experts: 16\n"
    "num_topk: 3\n"
    "num_shared_experts: 0\n"
    "routing: softmax\n";

class ExperimentFile : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    write_moet(folder_ / "a.moet",
               random_routing(16, 3, {1, 2}, {40, 30, 20, 50, 10, 25}, /*weighted=*/true));
    write_file(folder_ / "model.yaml", kModel);
  }
  Experiment load(const std::string& text, const std::vector<std::string>& sets = {}) const {
    write_file(folder_ / "e.yaml", text);
    std::vector<Override> overrides;
    for (const std::string& set : sets) overrides.push_back(parse_override(set));
    return load_experiment(folder_ / "e.yaml", overrides);
  }
  // The error without the folder's name.
  template <class Call>
  std::string refusal(const Call& call) const {
    try {
      call();
    } catch (const InputError& error) {
      std::string text = error.what();
      const std::string prefix = folder_.string() + "/";
      for (std::size_t at = 0; (at = text.find(prefix)) != std::string::npos;) {
        text.erase(at, prefix.size());
      }
      return text;
    }
    return "accepted";
  }
};

TEST_F(ExperimentFile, HoldsWhatItSays) {
  const Experiment experiment = load(kGood);
  EXPECT_EQ(experiment.name, "e");
  EXPECT_EQ(experiment.topology, "h100_node");
  EXPECT_EQ(experiment.cluster.num_gpus(), 8u);
  EXPECT_EQ(experiment.model.num_experts, 16u);
  EXPECT_EQ(experiment.trace.file, folder_ / "a.moet");
  EXPECT_EQ(experiment.num_ranks, 8u);
  EXPECT_EQ(experiment.num_groups, 1u);
  EXPECT_EQ(experiment.tokens_per_rank, 32u);
  EXPECT_EQ(experiment.dispatch_payload, PayloadType::kFp8);
  EXPECT_EQ(experiment.combine_payload, PayloadType::kBf16);
  EXPECT_EQ(experiment.engine, "bound");
  ASSERT_EQ(experiment.runs.size(), 3u);
  EXPECT_EQ(experiment.runs[1].policy, DispatchPolicy::kHierarchical);
  EXPECT_EQ(experiment.runs[2].num_replicas, 8u);
}

TEST_F(ExperimentFile, SaysWhatTheExpertsMultiplyIn) {
  EXPECT_EQ(load(kGood).expert_type, std::nullopt);
  EXPECT_EQ(load(kGood, {"precision.experts=fp8"}).expert_type, PayloadType::kFp8);
}

TEST_F(ExperimentFile, OverridesReachTheTopologyAndTheModel) {
  const Experiment experiment =
      load(kGood, {"ranks=4", "topology.gpus_per_node=4", "model.hidden=512",
                   "runs.0.dispatch=dedup", "seed=9"});
  EXPECT_EQ(experiment.num_ranks, 4u);
  EXPECT_EQ(experiment.cluster.gpus_per_node, 4u);
  EXPECT_EQ(experiment.model.hidden, 512u);
  EXPECT_EQ(experiment.runs[0].policy, DispatchPolicy::kDedup);
  EXPECT_EQ(experiment.seed, 9u);
}

TEST_F(ExperimentFile, TopologyMayBeAMapThatExtendsAPreset) {
  std::string text = kGood;
  text.replace(text.find("h100_node"), 9, "{extends: h100_node, gpus_per_node: 4}");
  EXPECT_EQ(load(text, {"ranks=4"}).cluster.gpus_per_node, 4u);
}

// What --set names lies beside the caller, what the file names lies beside the file.
TEST_F(ExperimentFile, PathsGivenWithSetAreRelativeToTheWorkingDirectory) {
  const std::string here = "coterie_experiment_test_topology.yaml";
  write_file(here, "extends: h100_node\nname: here\n");
  EXPECT_EQ(load(kGood, {"topology=" + here}).cluster.name, "here");
  EXPECT_EQ(load(kGood, {"topology={extends: " + here + "}"}).cluster.name, "here");
  std::filesystem::remove(here);
  write_file(folder_ / "there.yaml", "extends: h100_node\nname: there\n");
  EXPECT_THAT(refusal([&] { (void)load(kGood, {"topology=there.yaml"}); }),
              HasSubstr("--set topology: found \"there.yaml\""));
  std::string text = kGood;
  text.replace(text.find("h100_node"), 9, "there.yaml");
  EXPECT_EQ(load(text).cluster.name, "there");
}

TEST_F(ExperimentFile, TheOldWordNamesTheNewOne) {
  EXPECT_EQ(refusal([&] { (void)load(kGood, {"topology.base=star"}); }),
            "--set topology.base: found the key \"base\", expected its new name \"extends\"");
}

TEST_F(ExperimentFile, TransportsAreKeptAsData) {
  std::string text = kGood;
  text += "  - {name: own, placement: contiguous, dispatch: dedup, transport: nccl}\n";
  const Experiment experiment = load(
      text + "transport: {name: deepep_normal, sms: 24, a: {b: 3 us}}\n", {"transport.sms=20"});
  EXPECT_EQ(experiment.transport.name, "deepep_normal");
  const auto& settings = experiment.transport.settings;
  ASSERT_EQ(settings.size(), 3u);
  EXPECT_EQ(settings[0].key + "=" + settings[0].value, "sms=24");
  EXPECT_EQ(settings[1].key + "=" + settings[1].value, "a.b=3 us");
  EXPECT_EQ(settings[2].key + "=" + settings[2].value, "sms=20");
  EXPECT_EQ(experiment.transport_of(experiment.runs[0]).name, "deepep_normal");
  EXPECT_EQ(experiment.transport_of(experiment.runs[3]).name, "nccl");
  EXPECT_TRUE(experiment.transport_of(experiment.runs[3]).settings.empty());
  EXPECT_FALSE(load(kGood).transport.name.has_value());
  // The effective configuration says the same.
  write_file(folder_ / "again.yaml", experiment.effective_yaml);
  const Experiment again = load_experiment(folder_ / "again.yaml");
  EXPECT_EQ(again.transport.name, "deepep_normal");
  ASSERT_GE(again.transport.settings.size(), 2u);
  EXPECT_EQ(again.transport.settings[0].value, "20");
  EXPECT_EQ(again.transport_of(again.runs[3]).name, "nccl");
}

TEST_F(ExperimentFile, GrowsPresetsToItsRanksAndGroups) {
  const Experiment experiment = load(kGood, {"topology=star", "groups=3"});
  EXPECT_EQ(experiment.cluster.num_gpus(), 24u);
}

// The effective configuration loads to the same experiment, from another folder too.
TEST_F(ExperimentFile, EffectiveConfigurationIsTheSameExperiment) {
  const Experiment first = load(kGood, {"ranks=4", "topology.gpus_per_node=4", "seed=3"});
  make_folder(folder_ / "results");
  write_file(folder_ / "results" / "other.yaml", first.effective_yaml);
  const Experiment second = load_experiment(folder_ / "results" / "other.yaml");
  EXPECT_EQ(second.name, "e");
  EXPECT_EQ(second.num_ranks, 4u);
  EXPECT_EQ(second.seed, 3u);
  EXPECT_EQ(second.cluster.gpus_per_node, 4u);
  EXPECT_EQ(second.model.hidden, first.model.hidden);
  EXPECT_EQ(second.trace.file, first.trace.file);
  EXPECT_EQ(second.runs.size(), first.runs.size());
  EXPECT_EQ(second.effective_yaml, first.effective_yaml);
}

// ------------------------------------------------------------ runs

TEST_F(ExperimentFile, RunsArePreparedSoThatTheirPlansAreSound) {
  const Experiment experiment = load(kGood);
  const TraceParts trace = load_trace(experiment);
  for (const RunSpec& spec : experiment.runs) {
    const PreparedRun run = prepare_run(experiment, spec, trace);
    EXPECT_TRUE(run.exact);
    EXPECT_EQ(run.routing->num_tokens(), 30u + 50 + 25);  // the odd sequences
    EXPECT_EQ(run.tokens().token_begin.back(), 8u * 32);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      EXPECT_EQ(run.placement.layers[layer].layer, run.routing->layers[layer]);
      const LayerPlan plan =
          make_plan(*run.routing, layer, run.placement.layers[layer], run.tokens(),
                    {spec.policy, experiment.ranks_per_node(), PlanDetail::kRows});
      EXPECT_EQ(check_plan(plan, {Bytes{264}, Bytes{512}}).num_violations, 0u);
    }
  }
}

TEST_F(ExperimentFile, PreparingTwiceGivesTheSame) {
  const Experiment experiment = load(kGood);
  const TraceParts trace = load_trace(experiment);
  const PreparedRun a = prepare_run(experiment, experiment.runs[1], trace);
  const PreparedRun b = prepare_run(experiment, experiment.runs[1], trace);
  EXPECT_EQ(a.placement.layers[0].rank_experts, b.placement.layers[0].rank_experts);
  // The parts of the trace and the tokens are shared, not copied.
  EXPECT_EQ(a.routing.get(), trace.eval.get());
  EXPECT_EQ(b.routing.get(), trace.eval.get());
  EXPECT_EQ(&a.tokens(), &b.tokens());
}

TEST_F(ExperimentFile, PlacementFilesAreRead) {
  const Experiment first = load(kGood);
  const PreparedRun learnt = prepare_run(first, first.runs[1], load_trace(first));
  write_placement(folder_ / "p.json", learnt.placement);
  const Experiment second =
      load(kGood, {"runs.0.placement=" + (folder_ / "p.json").string(), "layers=[2]"});
  const PreparedRun run = prepare_run(second, second.runs[0], load_trace(second));
  ASSERT_EQ(run.placement.layers.size(), 1u);
  EXPECT_EQ(run.placement.layers[0].rank_experts, learnt.placement.layers[1].rank_experts);

  const Experiment fewer = load(kGood, {"runs.0.placement=" + (folder_ / "p.json").string(),
                                        "topology.gpus_per_node=4", "ranks=4"});
  EXPECT_THAT(refusal([&] { prepare_run(fewer, fewer.runs[0], load_trace(fewer)); }),
              HasSubstr("p.json"));
}

TEST_F(ExperimentFile, APlacementFileIsNotEvaluatedOnWhatItLearnt) {
  const Experiment first = load(kGood);
  const TraceParts trace = load_trace(first);
  Placement placement = prepare_run(first, first.runs[1], trace).placement;
  placement.trained_on = training_label(read_routing(first.trace.file), first.trace.eval);
  write_placement(folder_ / "p.json", placement);
  const Experiment second = load(kGood, {"runs.0.placement=" + (folder_ / "p.json").string()});
  EXPECT_THAT(refusal([&] { prepare_run(second, second.runs[0], trace); }),
              HasSubstr("p.json: found a placement learnt on sequences that the experiment "
                        "evaluates"));
  placement.trained_on = training_label(read_routing(first.trace.file), first.trace.train);
  write_placement(folder_ / "p.json", placement);
  EXPECT_NO_THROW(prepare_run(second, second.runs[0], trace));
  // Reducing the experiment to some layers does not hide it.
  placement.trained_on = training_label(read_routing(first.trace.file), first.trace.eval);
  write_placement(folder_ / "p.json", placement);
  const Experiment layer =
      load(kGood, {"runs.0.placement=" + (folder_ / "p.json").string(), "layers=[2]"});
  EXPECT_THAT(refusal([&] { prepare_run(layer, layer.runs[0], load_trace(layer)); }),
              HasSubstr("learnt on sequences that the experiment evaluates"));
}

TEST_F(ExperimentFile, LearntPlacementsComeFromTheCache) {
  Experiment experiment = load(kGood);
  const TraceParts trace = load_trace(experiment);
  const Placement fresh = prepare_run(experiment, experiment.runs[1], trace).placement;
  const PrepareOptions options{folder_};
  const auto num_cached = [&] {
    return std::count_if(std::filesystem::directory_iterator(folder_), {}, [](const auto& entry) {
      return entry.path().filename().string().starts_with("placement-");
    });
  };
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Placement placement =
        prepare_run(experiment, experiment.runs[1], trace, options).placement;
    for (std::size_t layer = 0; layer < fresh.layers.size(); ++layer) {
      EXPECT_EQ(placement.layers[layer].rank_experts, fresh.layers[layer].rank_experts);
    }
    EXPECT_EQ(num_cached(), 1);
  }
  experiment.seed += 1;  // decides what is learnt, so it gets an entry of its own
  prepare_run(experiment, experiment.runs[1], trace, options);
  EXPECT_EQ(num_cached(), 2);
}

TEST_F(ExperimentFile, PrunedRunsAreNotExact) {
  const Experiment experiment = load(kGood, {"runs.0.prune={method: router_score, devices: 2}"});
  const PreparedRun run = prepare_run(experiment, experiment.runs[0], load_trace(experiment));
  EXPECT_FALSE(run.exact);
  EXPECT_TRUE(run.weight_lost.has_value());
}

TEST_F(ExperimentFile, TraceAndModelMustAgree) {
  const Experiment experts = load(kGood, {"model.num_experts=32"});
  EXPECT_EQ(refusal([&] { load_trace(experts); }),
            "trace a.moet and model small: found 16 experts in the trace and 32 in the model, "
            "expected the same number");
  const Experiment topk = load(kGood, {"model.num_topk=4"});
  EXPECT_EQ(refusal([&] { load_trace(topk); }),
            "trace a.moet and model small: found top-3 in the trace and top-4 in the model, "
            "expected the same");
  const Experiment layers = load(kGood, {"layers=[1, 7]"});
  EXPECT_EQ(refusal([&] { load_trace(layers); }),
            "experiment e: key \"layers\": found layer 7, expected layers of the trace a.moet, "
            "which has 1 to 2");
}

// ------------------------------------------------------------ malformed files

struct Malformed {
  std::string name;
  std::string find, replace;  // in kGood
  std::string expected;
};
void PrintTo(const Malformed& malformed, std::ostream* out) {
  *out << malformed.name;
}
class MalformedExperiment : public ExperimentFile,
                            public ::testing::WithParamInterface<Malformed> {};

TEST_P(MalformedExperiment, IsRefusedWithItsPlace) {
  std::string text = kGood;
  const std::size_t at = text.find(GetParam().find);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, GetParam().find.size(), GetParam().replace);
  EXPECT_EQ(refusal([&] { load(text); }), GetParam().expected);
}

const Malformed kMalformed[] = {
    {"version", "schema_version: 1", "schema_version: 2",
     "e.yaml:1:17: key \"schema_version\": found \"2\", expected 1"},
    {"no_version", "schema_version: 1\n", "",
     "e.yaml:1:1: found no key \"schema_version\", expected it to be given"},
    {"unknown_key", "ranks: 8", "ranks: 8\nrank: 8",
     "e.yaml:6:1: found unknown key \"rank\", expected one of chunk, deal, decode_pool, "
     "disturbances, engine, groups, layers, model, name, payload, precision, ranks, runs, "
     "schema_version, seed, step, tokens_per_rank, topology, trace, transport"},
    {"key_twice", "ranks: 8", "ranks: 8\nranks: 4",
     "e.yaml:6:1: found a second key \"ranks\", expected each key once"},
    {"unknown_topology", "h100_node", "h9000",
     "e.yaml:2:11: key \"topology\": found \"h9000\", expected a preset's name (`coterie topology "
     "list`) or the path of a topology file"},
    {"missing_topology", "h100_node", "{extends: nowhere/h9000.yaml}",
     "e.yaml:2:21: key \"topology.extends\": found \"nowhere/h9000.yaml\", which does not exist, "
     "expected a preset's name (`coterie topology list`) or the path of a topology file"},
    {"topology_is_a_folder", "h100_node", "/",
     "e.yaml:2:11: key \"topology\": found \"/\", which is a folder, expected a preset's name "
     "(`coterie topology list`) or the path of a topology file"},
    {"unknown_model", "model.yaml", "gpt-9",
     "e.yaml:3:8: key \"model\": found \"gpt-9\", expected a preset's name (`coterie model list`) "
     "or "
     "the path of a model file"},
    {"missing_trace", "a.moet", "b.moet",
     "e.yaml:4:15: key \"trace.file\": found \"b.moet\", which does not exist, expected a .moet "
     "trace (`coterie trace import` makes one)"},
    {"unknown_part", "eval: odd", "eval: third",
     "e.yaml:4:42: key \"trace.eval\": found \"third\", expected one of all, even, odd"},
    {"same_part", "eval: odd", "eval: even",
     "e.yaml:4:8: key \"trace\": found train: even and eval: even, which overlap, expected "
     "separate "
     "parts (even and odd), or evaluate_on_training: true"},
    {"overlapping_parts", "train: even", "train: all",
     "e.yaml:4:8: key \"trace\": found train: all and eval: odd, which overlap, expected separate "
     "parts (even and odd), or evaluate_on_training: true"},
    {"too_many_ranks", "ranks: 8", "ranks: 16",
     "preset h100_node:6:1: found 8 GPUs, expected at least 16, the number of ranks (set "
     "\"nodes\")"},
    {"too_many_groups", "ranks: 8", "ranks: 4\ngroups: 3",
     "preset h100_node:6:1: found 8 GPUs, expected at least 12, the number of ranks (set "
     "\"nodes\")"},
    {"groups_across_nodes", "ranks: 8", "ranks: 3\ngroups: 2",
     "e.yaml:5:8: key \"ranks\": found 3 ranks per group on nodes of 8 GPUs, expected groups of "
     "whole nodes, or several whole groups per node"},
    {"no_ranks", "ranks: 8", "ranks: 0",
     "e.yaml:5:8: key \"ranks\": found \"0\", expected a whole number from 1 to 1048576"},
    {"no_tokens", "tokens_per_rank: 32", "tokens_per_rank: few",
     "e.yaml:6:18: key \"tokens_per_rank\": found \"few\", expected a whole number from 1 to "
     "16777216"},
    {"payload", "dispatch: fp8", "dispatch: fp4",
     "e.yaml:7:21: key \"payload.dispatch\": found \"fp4\", expected one of bf16, fp8"},
    {"payload_key", "combine: bf16", "gather: bf16",
     "e.yaml:7:26: key \"payload\": found unknown key \"gather\", expected one of combine, "
     "dispatch"},
    {"engine", "engine: bound", "engine: ns3",
     "e.yaml:8:9: key \"engine\": found \"ns3\", expected one of simgrid, flow, bound"},
    {"chunk_without_unit", "engine: bound", "chunk: 1024",
     "e.yaml:8:8: key \"chunk\": found \"1024\", expected a size with its unit, such as \"4 KiB\""},
    {"deal", "engine: bound", "deal: shuffled",
     "e.yaml:8:7: key \"deal\": found \"shuffled\", expected one of round_robin, in_order"},
    {"layers", "engine: bound", "layers: [2, 1]",
     "e.yaml:8:13: key \"layers.1\": found \"1\", expected layer numbers in ascending order"},
    {"name_twice", "name: learnt", "name: standard",
     "e.yaml:11:5: key \"runs.1\": found a second run named \"standard\", expected a name of its "
     "own "
     "for every run"},
    {"name_of_a_path", "name: learnt", "name: ../learnt",
     "e.yaml:11:12: key \"runs.1.name\": found \"../learnt\", expected letters, digits and . _ + "
     "-, "
     "as the files of the run carry its name"},
    {"placement", "placement: contiguous", "placement: contigous",
     "e.yaml:10:33: key \"runs.0.placement\": found \"contigous\", expected one of contiguous, "
     "round_robin, random, load_balanced, load_balanced_joint, collaboration, "
     "collaboration_refined, collaboration_two_level, time_aware, or a placement file"},
    {"policy", "dispatch: standard", "dispatch: standart",
     "e.yaml:10:55: key \"runs.0.dispatch\": found \"standart\", expected one of standard, dedup, "
     "hierarchical"},
    {"prune_devices", "dispatch: standard",
     "dispatch: dedup, prune: {method: similarity, devices: 9}",
     "e.yaml:10:99: key \"runs.0.prune.devices\": found \"9\", expected a whole number from 1 to "
     "8"},
    {"prune_method", "dispatch: standard", "dispatch: dedup, prune: {method: best, devices: 1}",
     "e.yaml:10:78: key \"runs.0.prune.method\": found \"best\", expected one of router_score, "
     "similarity"},
    {"replicas", "dispatch: standard", "dispatch: standard, replicas: 2",
     "e.yaml:10:75: key \"runs.0.replicas\": found replicas with the placement contiguous, "
     "expected "
     "none: only the strategies that learn replicate experts"},
    {"imbalance", "dispatch: standard", "dispatch: standard, max_imbalance: 1.2",
     "e.yaml:10:80: key \"runs.0.max_imbalance\": found a balance cap with the placement "
     "contiguous, "
     "expected none: only the collaboration strategies take one"},
    {"run_key", "replicas: 8", "replica: 8",
     "e.yaml:12:65: key \"runs.2\": found unknown key \"replica\", expected one of dispatch, "
     "max_imbalance, max_node_imbalance, name, placement, prune, replica_choice, replicas, "
     "transport"},
    {"runs_not_a_list", "runs:\n", "runs: {}\nunused:\n",
     "e.yaml:9:7: key \"runs\": found a map, expected a list"},
    {"ranks_missing", "ranks: 8\n", "",
     "e.yaml:1:1: found no key \"ranks\", expected it to be given"},
    {"topology_missing", "topology: h100_node\n", "",
     "e.yaml:1:1: found no key \"topology\", expected it to be given"},
    {"model_missing", "model: model.yaml\n", "",
     "e.yaml:1:1: found no key \"model\", expected it to be given"},
    {"trace_missing_block", "trace: {file: a.moet, train: even, eval: odd}\n", "",
     "e.yaml:1:1: found no key \"trace\", expected it to be given"},
    {"trace_without_file", "file: a.moet, ", "",
     "e.yaml:4:8: key \"trace\": found no key \"file\", expected it to be given"},
    {"trace_key", "eval: odd", "evaluate: odd",
     "e.yaml:4:36: key \"trace\": found unknown key \"evaluate\", expected one of eval, "
     "evaluate_on_training, file, train"},
    {"run_without_name", "name: standard, ", "",
     "e.yaml:10:5: key \"runs.0\": found no key \"name\", expected it to be given"},
    {"run_without_dispatch", ", dispatch: standard}", "}",
     "e.yaml:10:5: key \"runs.0\": found no key \"dispatch\", expected it to be given"},
    {"run_without_placement", "placement: contiguous, ", "",
     "e.yaml:10:5: key \"runs.0\": found no key \"placement\", expected it to be given"},
    {"run_not_a_map", "- {name: standard, placement: contiguous, dispatch: standard}", "- standard",
     "e.yaml:10:5: key \"runs.0\": found \"standard\", expected a map of keys and values"},
    {"negative_seed", "engine: bound", "seed: -1",
     "e.yaml:8:7: key \"seed\": found \"-1\", expected a whole number from 0 to "
     "9223372036854775807"},
    {"fractional_ranks", "ranks: 8", "ranks: 8.5",
     "e.yaml:5:8: key \"ranks\": found \"8.5\", expected a whole number from 1 to 1048576"},
    {"huge_ranks", "ranks: 8", "ranks: 99999999999999999999",
     "e.yaml:5:8: key \"ranks\": found \"99999999999999999999\", expected a whole number from 1 to "
     "1048576"},
    {"no_groups", "ranks: 8", "ranks: 8\ngroups: 0",
     "e.yaml:6:9: key \"groups\": found \"0\", expected a whole number from 1 to 1048576"},
    {"empty_layers", "engine: bound", "layers: []",
     "e.yaml:8:9: key \"layers\": found an empty list, expected layer numbers, or no key `layers`"},
    {"layer_in_words", "engine: bound", "layers: [one]",
     "e.yaml:8:10: key \"layers.0\": found \"one\", expected a whole number from 0 to 1048576"},
    {"chunk_of_nothing", "engine: bound", "chunk: 0 B",
     "e.yaml:8:8: key \"chunk\": found \"0 B\", expected at least 1 B"},
    {"chunk_in_seconds", "engine: bound", "chunk: 3 us",
     "e.yaml:8:8: key \"chunk\": found \"3 us\", expected a size with its unit, such as \"4 KiB\""},
    {"precision", "payload: {dispatch: fp8, combine: bf16}", "precision: {experts: mxfp4}",
     "e.yaml:7:22: key \"precision.experts\": found \"mxfp4\", expected one of bf16, fp8"},
    {"precision_key", "payload: {dispatch: fp8, combine: bf16}",
     "precision: {experts: fp8, router: fp8}",
     "e.yaml:7:27: key \"precision\": found unknown key \"router\", expected one of experts"},
    {"payload_not_a_map", "payload: {dispatch: fp8, combine: bf16}", "payload: fp8",
     "e.yaml:7:10: key \"payload\": found \"fp8\", expected a map of keys and values"},
    {"imbalance_below_one", "dispatch: hierarchical", "dispatch: hierarchical, max_imbalance: 0.5",
     "e.yaml:11:85: key \"runs.1.max_imbalance\": found \"0.5\", expected a number from 1 to "
     "1000000"},
    {"imbalance_not_a_number", "dispatch: hierarchical",
     "dispatch: hierarchical, max_imbalance: nan",
     "e.yaml:11:85: key \"runs.1.max_imbalance\": found \"nan\", expected a number from 1 to "
     "1000000"},
    {"prune_without_devices", "dispatch: standard", "dispatch: dedup, prune: {method: similarity}",
     "e.yaml:10:69: key \"runs.0.prune\": found no key \"devices\", expected it to be given"},
    {"prune_key", "dispatch: standard",
     "dispatch: dedup, prune: {method: similarity, devices: 2, budget: 1}",
     "e.yaml:10:102: key \"runs.0.prune\": found unknown key \"budget\", expected one of devices, "
     "method"},
    {"prune_of_no_device", "dispatch: standard",
     "dispatch: dedup, prune: {method: similarity, devices: 0}",
     "e.yaml:10:99: key \"runs.0.prune.devices\": found \"0\", expected a whole number from 1 to "
     "8"},
    {"topology_map_that_extends_nothing", "topology: h100_node", "topology: {nodes: 4}",
     "e.yaml:2:11: key \"topology\": found no key \"extends\", expected it to be given"},
    {"topology_base", "topology: h100_node", "topology: {base: h100_node, nodes: 4}",
     "e.yaml:2:18: key \"topology.base\": found the key \"base\", expected its new name "
     "\"extends\""},
    {"topology_bad_value", "topology: h100_node", "topology: {extends: h100_node, nodes: none}",
     "e.yaml:2:39: key \"topology.nodes\": found \"none\", expected auto or a whole number "
     "from 1 to 1048576"},
    {"model_key_in_map", "model: model.yaml", "model: {extends: model.yaml, experts: 4}",
     "e.yaml:3:39: key \"model.experts\": found unknown key \"experts\", expected one of "
     "attention, description, expert_intermediate, hidden, moe_layers, name, num_experts, "
     "num_groups, "
     "num_layers, num_shared_experts, num_topk, num_topk_groups, routing, schema_version, "
     "shared_intermediate, vocabulary"},
    {"model_more_topk_than_experts", "model: model.yaml",
     "model: {extends: model.yaml, num_topk: 17}",
     "e.yaml:3:40: key \"model.num_topk\": found \"17\", expected a whole number from 1 to "
     "16"},
    {"evaluate_flag", "eval: odd", "eval: odd, evaluate_on_training: maybe",
     "e.yaml:4:69: key \"trace.evaluate_on_training\": found \"maybe\", expected true or false"},
    {"deal_is_a_list", "engine: bound", "deal: [a]",
     "e.yaml:8:7: key \"deal\": found a list, expected one of round_robin, in_order"},
    {"name_of_dots", "name: learnt", "name: .learnt",
     "e.yaml:11:12: key \"runs.1.name\": found \".learnt\", expected letters, digits and . _ + -, "
     "as the files of the run carry its name"},
    {"empty_name", "name: learnt", "name: \"\"",
     "e.yaml:11:12: key \"runs.1.name\": found \"\", expected a text"},
    {"no_runs", "runs:\n", "runs: []\nunused:\n",
     "e.yaml:9:7: key \"runs\": found an empty list, expected at least one run"},
    {"runs_absent", "runs:\n", "run:\n",
     "e.yaml:1:1: found no key \"runs\", expected it to be given"},
};
INSTANTIATE_TEST_SUITE_P(Table, MalformedExperiment, ::testing::ValuesIn(kMalformed),
                         [](const auto& instance) { return instance.param.name; });

TEST_F(ExperimentFile, DocumentsThatAreNoMapAreRefused) {
  EXPECT_EQ(refusal([&] { load(""); }), "e.yaml: found an empty document, expected keys");
  EXPECT_EQ(refusal([&] { load("- 1\n- 2\n"); }),
            "e.yaml:1:1: found a list, expected a map of keys and values");
  // What the parser says after the place depends on its version.
  EXPECT_THAT(refusal([&] { load("ranks: 8\nruns:\n\t- {name: a}\n"); }),
              HasSubstr("e.yaml:3:2: not valid YAML: "));
  EXPECT_THAT(refusal([&] { load("schema_version: [1\nranks: 8\n"); }),
              HasSubstr("not valid YAML: "));
}

TEST_F(ExperimentFile, OverrideIsNamedInItsError) {
  EXPECT_EQ(refusal([&] { load(kGood, {"runs.0.dispatch=both"}); }),
            "--set runs.0.dispatch: found \"both\", expected one of standard, dedup, hierarchical");
  EXPECT_THAT(refusal([&] { load(kGood, {"rank=3"}); }),
              HasSubstr("--set rank: found unknown key \"rank\""));
  EXPECT_THAT(refusal([&] { load(kGood, {"topology.nodes=none"}); }),
              StartsWith("--set topology.nodes: found \"none\", expected auto or a whole number"));
  EXPECT_THAT(refusal([&] { load(kGood, {"topology.node=4"}); }),
              StartsWith("--set topology.node: found unknown key \"node\", expected one of "));
  EXPECT_THAT(
      refusal([&] { load(kGood, {"model.num_topk=17"}); }),
      StartsWith("--set model.num_topk: found \"17\", expected a whole number from 1 to 16"));
}

}  // namespace
}  // namespace coterie::testing
