// `coterie simulate`, `trace`, `place` and `analyze` as scripts run them: one sentence and an exit
// code for what is wrong, nothing half-written, the same bytes for the same inputs.

#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <set>
#include <thread>

#include "core/metrics.hpp"
#include "core/results.hpp"
#include "tests/sim/cli/program.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr const char* kExample = COTERIE_SOURCE_DIR "/workloads/examples/synthetic.yaml";
constexpr const char* kTrace = COTERIE_SOURCE_DIR "/workloads/examples/collaborating.moet";
constexpr const char* kWorkload = COTERIE_SOURCE_DIR "/workloads/examples/collaborating.yaml";

std::string simulate(const std::string& more) {
  return std::string("simulate ") + kExample + " " + more;
}

// ------------------------------------------------------------ refusals

struct Case {
  std::string name;
  Refusal refusal;
};

void PrintTo(const Case& row, std::ostream* out) {
  *out << row.name;
}

class RefusedCommand : public ProgramTest, public ::testing::WithParamInterface<Case> {};

TEST_P(RefusedCommand, SaysWhyInOneSentenceAndWritesNothing) {
  put("e.yaml", "schema_version: 1\n");
  put("logits.json", R"({"router_logits": [[[0.5, 1.5, 1.0, 0.7]]]})");
  put("full/notes.txt", "mine");
  const Refusal& refusal = GetParam().refusal;
  const Outcome outcome = run(refusal.arguments);
  EXPECT_EQ(outcome.exit_code, refusal.exit_code);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr("coterie: error: "));
  EXPECT_THAT(outcome.err, HasSubstr(refusal.sentence));
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_THAT(files(), ElementsAre("e.yaml", "full/notes.txt", "logits.json"));
}

std::string on_trace(const std::string& command, const std::string& more) {
  return command + " " + kTrace + " " + more;
}

const Case kRefused[] = {
    {"no_command", {"", "A subcommand is required"}},
    {"unknown_command",
     {"simulat", "command: found \"simulat\", expected one of simulate, sweep,"}},
    {"unknown_command_of_a_command",
     {"trace check", "trace command: found \"check\", expected one of import,"}},
    {"unknown_option", {simulate("-o out --engin flow"), "--engin"}},
    {"no_experiment", {"simulate -o out", "EXPERIMENT is required"}},
    {"missing_experiment", {"simulate nowhere.yaml -o out", "nowhere.yaml: cannot be read"}},
    {"experiment_is_a_folder", {"simulate full -o out", "full: found a folder, expected a file"}},
    {"experiment_without_keys",
     {"simulate e.yaml -o out", "e.yaml:1:1: found no key \"ranks\", expected it to be given"}},
    {"no_output", {std::string("simulate ") + kExample, "--output is required"}},
    {"output_is_a_file",
     {simulate("-o e.yaml"), "e.yaml: found a file, expected a folder for the results"}},
    {"output_holds_other_files",
     {simulate("-o full"),
      "full: found a folder that holds \"notes.txt\", expected a new or empty"}},
    {"unknown_engine",
     {simulate("-o out --engine ns3"),
      "--set engine: found \"ns3\", expected one of simgrid, flow, bound"}},
    {"unknown_run",
     {simulate("-o out --run best"), "found no run \"best\", expected one of standard, dedup,"}},
    {"no_jobs", {simulate("-o out --jobs 0"), "--jobs: found 0, expected a number from 1 to 4096"}},
    {"coarse_precision",
     {simulate("-o out --precision 2"), "--precision: found 2, expected a number from 0 to 0.1"}},
    {"precision_that_is_no_number",
     {simulate("-o out --precision nan"), "--precision: found \"nan\", expected a finite number"}},
    {"place_with_a_negative_seed",
     {on_trace("place", "--ranks 8 --strategy random --seed -1 -o p.json"),
      "--seed: found \"-1\", expected a whole number of 0 or more"}},
    {"place_with_a_seed_too_large",
     {on_trace("place", "--ranks 8 --strategy random --seed 18446744073709551616 -o p.json"),
      "--seed: found \"18446744073709551616\", expected a smaller number"}},
    {"place_without_bound",
     {on_trace("place", "--ranks 8 --strategy collaboration --max-imbalance inf -o p.json"),
      "--max-imbalance: found \"inf\", expected a finite number"}},
    {"compare_with_no_bound",
     {"compare a b --max-error nan", "--max-error: found \"nan\", expected a finite number"}},
    {"transport_before_the_trace",  // which is no trace: the transport is refused before it is opened
     {simulate("-o out --set trace.file=$PWD/e.yaml --set transport.sms=4"),
      "--set transport.sms: found unknown key \"sms\", expected one of network, scale_up"}},
    {"set_without_value", {simulate("-o out --set seed"), "seed"}},
    {"set_unknown_key", {simulate("-o out --set rank=4"), "found unknown key \"rank\""}},
    {"set_bad_value", {simulate("-o out --set ranks=few"), "--set ranks: found \"few\""}},
    {"too_few_gpus", {simulate("-o out --set ranks=16"), "found 8 GPUs, expected at least 16"}},
    {"trace_of_another_model", {simulate("-o out --set model=olmoe_1b_7b"), "expected the same"}},
    {"damaged_trace",
     {simulate("-o out --set trace.file=$PWD/e.yaml"), "found a file of another kind"}},
    {"import_without_format",
     {"trace import e.yaml -o a.moet",
      "e.yaml: found a format that is not certain, expected --format with one of npz"}},
    {"import_of_unknown_format",
     {"trace import e.yaml --format xml -o a.moet",
      "--format: found \"xml\", expected one of npz"}},
    {"import_of_no_archive",
     {"trace import e.yaml --format npz -o a.moet",
      "e.yaml: found 18 bytes that are no whole zip"}},
    {"import_of_a_missing_file",
     {"trace import nowhere.csv --format csv --num-experts 8 -o a.moet", "nowhere.csv"}},
    {"import_with_unknown_selection",
     {"trace import logits.json --format hf-json --num-topk 2 --selection best -o a.moet",
      "--selection: found \"best\", expected softmax_topk, topk_softmax or sigmoid_group"}},
    {"generate_from_nothing", {"trace generate nowhere.yaml -o a.moet", "nowhere.yaml"}},
    {"generate_with_unknown_key",
     {std::string("trace generate --set seeds=1 ") + kWorkload + " -o a.moet",
      "found unknown key \"seeds\""}},
    {"info_of_another_file", {"trace info e.yaml", "e.yaml: found a file of another kind"}},
    {"info_of_no_ranks", {on_trace("trace info", "--ranks 0"), "--ranks: "}},
    {"place_without_strategy",
     {on_trace("place", "--ranks 8 -o p.json"), "--strategy is required"}},
    {"place_with_unknown_strategy",
     {on_trace("place", "--ranks 8 --strategy best -o p.json"),
      "placement strategy: found \"best\", expected one of contiguous"}},
    {"place_on_no_ranks", {on_trace("place", "--ranks 0 --strategy random -o p.json"), "ranks"}},
    {"place_on_too_many_ranks",
     {on_trace("place", "--ranks 65 --strategy random -o p.json"),
      "ranks: found 65, expected at most 64, the experts of a layer"}},
    {"place_with_a_cap_below_one",
     {on_trace("place", "--ranks 8 --strategy collaboration --max-imbalance 0.9 -o p.json"),
      "max-imbalance: found 0.9"}},
    {"place_with_a_cap_on_random",
     {on_trace("place", "--ranks 8 --strategy random --max-imbalance 1.2 -o p.json"), "random"}},
    {"place_into_nowhere",
     {on_trace("place", "--ranks 8 --strategy random -o no/such/p.json"),
      "no/such/p.json: cannot be written: No such file or directory"}},
    {"place_in_unknown_format",
     {on_trace("place", "--ranks 8 --strategy random --format xml -o p.json"), "xml"}},
    {"analyze_without_placement",
     {on_trace("analyze", "--ranks 8"),
      "--placement and --strategy: found neither, expected one of them"}},
    {"analyze_with_both",
     {on_trace("analyze", "--ranks 8 --strategy random --placement e.yaml"), "--strategy"}},
    {"analyze_on_the_training_part",
     {on_trace("analyze", "--ranks 8 --strategy collaboration --train odd --eval odd"),
      "--eval: found odd, expected sequences that the placement was not learnt on"}},
    {"analyze_with_another_file_as_placement",
     {on_trace("analyze", "--ranks 8 --placement e.yaml"),
      "e.yaml:1:1: found text that is not JSON, expected a placement in JSON"}},
    {"analyze_of_an_unknown_part",
     {on_trace("analyze", "--ranks 8 --strategy random --eval third"), "third"}},
};
INSTANTIATE_TEST_SUITE_P(Table, RefusedCommand, ::testing::ValuesIn(kRefused),
                         [](const auto& instance) { return instance.param.name; });

// ------------------------------------------------------------ what they write

class Command : public ProgramTest {};

TEST_F(Command, HelpExitsWithZeroAndShowsAnExample) {
  for (const char* command :
       {"simulate", "sweep", "report", "place", "analyze", "drift", "trace import",
        "trace generate", "trace info", "plan build", "plan check", "plan export", "predict",
        "topology show", "topology list", "model list", "model show", "calibrate fit", "compare"}) {
    const Outcome outcome = run(std::string(command) + " --help");
    EXPECT_EQ(outcome.exit_code, 0) << command;
    EXPECT_THAT(outcome.out, HasSubstr("Example")) << command;
    EXPECT_EQ(outcome.err, "") << command;
  }
}

TEST_F(Command, SimulateWritesItsFilesAndPrintsATableOnStdout) {
  const Outcome outcome = run(simulate("-o out --engine flow"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(files(), ElementsAre("out/command.txt", "out/effective.yaml", "out/results.csv",
                                   "out/results.json", "out/timeline-collaboration.json",
                                   "out/timeline-dedup.json", "out/timeline-load-balanced.json",
                                   "out/timeline-pruned-2.json", "out/timeline-refined.json",
                                   "out/timeline-standard.json"));
  EXPECT_THAT(outcome.out, HasSubstr("vs dedup+contiguous"));
  EXPECT_THAT(outcome.out, HasSubstr("pruned-2 is not exact: experts with "));
  EXPECT_THAT(text("out/results.csv"), HasSubstr(",weight_lost,top1_changed\n"));
  const auto document = nlohmann::json::parse(text("out/results.json"));
  EXPECT_EQ(document["runs"].size(), 6U);
  EXPECT_EQ(document["runs"][1]["speedup_over_dedup_contiguous"], 1.0);
}

// stdout has the document that results.json has, and nothing else.
TEST_F(Command, JsonOfSimulateIsTheResultFile) {
  const auto printed = json_of(simulate("-o out --engine bound --no-timelines"));
  EXPECT_EQ(printed, nlohmann::json::parse(text("out/results.json")));
  EXPECT_THAT(files(), ElementsAre("out/command.txt", "out/effective.yaml", "out/results.csv",
                                   "out/results.json"));
}

// The results do not depend on the number of threads, the folder or the run; with another seed the
// random placement is another one.
TEST_F(Command, EqualInputsGiveEqualBytes) {
  for (const char* engine : {"simgrid", "flow", "bound"}) {
    const std::string base = simulate(
        std::string("--set runs.2.placement=random --set layers=[2,3] --engine ") + engine);
    const std::string out = std::string(engine) + "-";
    ASSERT_EQ(run(base + " -o " + out + "1 --jobs 1").exit_code, 0);
    ASSERT_EQ(run(base + " -o " + out + "2 --jobs 4").exit_code, 0);
    ASSERT_EQ(run(base + " -o " + out + "3 --jobs 1 --set seed=7").exit_code, 0);
    for (const char* name : {"/results.csv", "/timeline-standard.json", "/effective.yaml"}) {
      // A bound has no timeline.
      ASSERT_EQ(exists(out + "1" + name), exists(out + "2" + name)) << engine << name;
      if (!exists(out + "1" + name)) continue;
      EXPECT_EQ(text(out + "1" + name), text(out + "2" + name)) << engine << name;
    }
    EXPECT_NE(text(out + "1/results.csv"), text(out + "3/results.csv")) << engine;
  }
}

// `effective.yaml` repeats the run, from any folder.
TEST_F(Command, TheEffectiveConfigurationRepeatsTheRun) {
  ASSERT_EQ(
      run(simulate("-o a --engine flow --set ranks=4 --set topology.gpus_per_node=4")).exit_code,
      0);
  ASSERT_EQ(run("simulate a/effective.yaml -o b").exit_code, 0);
  EXPECT_EQ(text("a/results.csv"), text("b/results.csv"));
}

TEST_F(Command, AFolderOfEarlierResultsIsReplacedWhole) {
  ASSERT_EQ(run(simulate("-o out --engine bound")).exit_code, 0);
  ASSERT_EQ(run(simulate("-o out --engine flow --run dedup")).exit_code, 0);
  EXPECT_THAT(files(), ElementsAre("out/command.txt", "out/effective.yaml", "out/results.csv",
                                   "out/results.json", "out/timeline-dedup.json"));
}

// Into a folder of another experiment nothing is written, and nothing there is removed.
TEST_F(Command, AFolderOfAnotherExperimentIsLeftAlone) {
  ASSERT_EQ(run(simulate("-o out --engine flow --run dedup")).exit_code, 0);
  const std::string results = text("out/results.json");
  const auto before = files();
  const Outcome outcome = run(simulate("-o out --engine flow --set name=other"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("found predicted results of experiment synthetic, expected "));
  EXPECT_EQ(files(), before);
  EXPECT_EQ(text("out/results.json"), results);
}

// 64 experts on 8 ranks cannot be placed by co-activation without any imbalance. The run is a failed
// row with its sentence, the others are simulated and written, and the exit code says so; in threads
// and in child processes alike. Alone it leaves nothing.
TEST_F(Command, ARunThatCannotBeCarriedOutFailsAlone) {
  const std::string capped =
      "--set runs.3.max_imbalance=1.0 --set layers=[2] --set tokens_per_rank=64 --jobs 2 ";
  for (const char* engine : {"flow", "simgrid"}) {
    const Outcome outcome = run(simulate(capped + "-o out --engine " + engine));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.err,
                HasSubstr("coterie: error: run collaboration failed: max-imbalance: "));
    EXPECT_THAT(outcome.out,
                HasSubstr("collaboration failed: max-imbalance: found 1, expected at"));
    const auto results = read_results(folder_ / "work" / "out" / "results.json");
    ASSERT_EQ(results.runs.size(), 6U);
    for (const RunReport& report : results.runs) {
      EXPECT_EQ(report.failure.has_value(), report.name == "collaboration");
      EXPECT_EQ(report.layers.size(), report.failure ? 0U : 1U);
    }
    EXPECT_FALSE(exists("out/timeline-collaboration.json"));
    EXPECT_TRUE(exists("out/timeline-dedup.json"));
  }
  const Outcome alone = run(simulate(capped + "-o alone --engine flow --run collaboration"));
  EXPECT_EQ(alone.exit_code, 2);
  EXPECT_FALSE(exists("alone"));
}

// The parts of the critical rank add up to the layer, whatever engine says when things happen.
TEST_F(Command, PartsOfTheCriticalRankAddUp) {
  for (const char* engine : {"flow", "simgrid"}) {
    ASSERT_EQ(run(simulate(std::string("-o out --set layers=[2] --engine ") + engine)).exit_code,
              0);
    for (const RunReport& report : read_results(folder_ / "work" / "out" / "results.json").runs) {
      const auto critical = critical_rank(report.layers.front());
      ASSERT_TRUE(critical);
      EXPECT_NEAR(critical->parts.total_s(), report.time_s(), 1e-12) << engine << report.name;
      EXPECT_GT(critical->parts[Part::kMlp], 0.0);
      EXPECT_LE(combine_s(report.layers.front()), combine_span_s(report.layers.front()) + 1e-12);
    }
  }
}

// The odd sequences of the bundled trace hold 1,147 tokens; 8 * 4,096 = 32,768 = 28.6 * 1,147.
TEST_F(Command, AStretchedTraceIsWarnedOf) {
  const std::string sentence =
      "the 1,147 evaluated tokens of collaborating.moet stand for 32,768, so each repeats 29 times";
  EXPECT_THAT(run(simulate("-o out --engine bound")).out, HasSubstr("warning: " + sentence));
  EXPECT_THAT(text("out/results.json"), HasSubstr(sentence));
  ASSERT_EQ(run("report out").exit_code, 0);
  EXPECT_THAT(text("out/report.html"), HasSubstr(sentence));
  EXPECT_THAT(run(simulate("-o few --engine bound --set tokens_per_rank=64")).out,
              Not(HasSubstr("warning")));
}

TEST_F(Command, SetTakesOneValueAndMayStandBeforeTheFile) {
  const std::string file = std::string(" ") + kWorkload;
  ASSERT_EQ(run("trace generate --set seed=5" + file + " -o a.moet").exit_code, 0);
  ASSERT_EQ(run("trace generate" + file + " -o b.moet --set seed=5").exit_code, 0);
  ASSERT_EQ(run("trace generate" + file + " -o c.moet --set seed=6").exit_code, 0);
  EXPECT_TRUE(text("a.moet") == text("b.moet"));
  EXPECT_FALSE(text("a.moet") == text("c.moet"));
}

// The bundled trace is what its description gives; weights up to the last bit of another libm.
TEST_F(Command, TheBundledTraceComesFromItsDescription) {
  ASSERT_EQ(run(std::string("trace generate ") + kWorkload + " -o a.moet").exit_code, 0);
  const auto generated = std::get<Routing>(read_moet(folder_ / "work" / "a.moet"));
  const auto bundled = std::get<Routing>(read_moet(kTrace));
  EXPECT_TRUE(generated.experts == bundled.experts);
  EXPECT_EQ(generated.sequence_begin, bundled.sequence_begin);
  ASSERT_EQ(generated.weights.size(), bundled.weights.size());
  for (std::size_t i = 0; i < bundled.weights.size(); ++i) {
    ASSERT_NEAR(generated.weights[i], bundled.weights[i], 1e-6);
  }
}

TEST_F(Command, AnalyzeOfAPlacementFileIsThatOfItsStrategy) {
  ASSERT_EQ(run(on_trace("place", "--ranks 8 --strategy collaboration -o p.json")).exit_code, 0);
  ASSERT_EQ(run(on_trace("place", "--ranks 8 --strategy collaboration -o q.json")).exit_code, 0);
  EXPECT_EQ(text("p.json"), text("q.json"));
  const auto direct = json_of(on_trace("analyze", "--ranks 8 --strategy collaboration"));
  const auto filed = json_of(on_trace("analyze", "--ranks 8 --placement p.json"));
  EXPECT_EQ(direct["mean"], filed["mean"]);
  EXPECT_EQ(direct["schema_version"], 1);
  for (const char* key : {"copies", "fanout_ranks", "remote_fanout_ranks", "fanout_nodes",
                          "remote_fanout_nodes", "rank_load_max_over_mean"}) {
    EXPECT_TRUE(direct["mean"].contains(key)) << key;
  }
}

// SGLang chooses among replicas by a rule that its file does not name: what is counted says by which.
TEST_F(Command, AnalyzeSaysByWhichRuleReplicasAreChosen) {
  const char* const place =
      "--ranks 8 --strategy load_balanced --replicas 8 --format sglang -o p.json";
  ASSERT_EQ(run(on_trace("place", place)).exit_code, 0);
  const Outcome assumed = run(on_trace("analyze", "--ranks 8 --placement p.json --no-bound"));
  EXPECT_NE(assumed.err.find("--replica-choice"), std::string::npos) << assumed.err;
  EXPECT_NE(assumed.out.find("8 replicas per layer, chosen by locality"), std::string::npos);
  const Outcome told =
      run(on_trace("analyze", "--ranks 8 --placement p.json --replica-choice static --no-bound"));
  EXPECT_EQ(told.err.find("--replica-choice"), std::string::npos) << told.err;
  EXPECT_NE(told.out.find("8 replicas per layer, chosen by static"), std::string::npos);
}

// ------------------------------------------------------------ interruption

class Interrupted : public ProgramTest {
 protected:
  // Starts the program, sends the signal once `ready` holds, and returns the signal that ended it;
  // 0 if it ended by itself.
  int interrupt(const std::string& arguments, int signal, const std::function<bool()>& ready) {
    make_folder(folder_ / "work");
    const std::string command = "cd '" + (folder_ / "work").string() +
                                "' && exec " COTERIE_BINARY_DIR "/bin/coterie " + arguments +
                                " > ../out 2> ../err";
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
    int status = 0;
    while (!ready() && ::waitpid(pid, &status, WNOHANG) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (::kill(pid, signal) == 0) ::waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }
};

// A simulation that takes many seconds, stopped after a moment: no folder, no file.
TEST_F(Interrupted, SimulateLeavesNothing) {
  const auto start = std::chrono::steady_clock::now();
  const auto after_a_moment = [&] {
    return std::chrono::steady_clock::now() - start > std::chrono::milliseconds(700);
  };
  const std::string slow = simulate(
      "-o out --run standard --set topology=h100_rail_8x8 --set ranks=64 --set "
      "tokens_per_rank=4096 --precision "
      "0");
  for (const int signal : {SIGINT, SIGTERM}) {
    EXPECT_EQ(interrupt(slow, signal, after_a_moment), signal);
    EXPECT_THAT(files(), IsEmpty());
  }
}

}  // namespace
}  // namespace coterie::testing
