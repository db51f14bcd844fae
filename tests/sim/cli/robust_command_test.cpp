// The program on disks that are full, descriptors that are closed, devices, pipes and damaged
// files: an error with its sentence and exit code, or the right result, and nothing lost. Each case
// says what must happen; none compares with a recorded output.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <string>

#include "tests/sim/cli/program.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

namespace fs = std::filesystem;

const std::string kExamples = COTERIE_SOURCE_DIR "/workloads/examples/";
const std::string kBundledTrace = kExamples + "collaborating.moet";
const std::string kBase = kExamples + "synthetic.yaml";
const std::string kPlace = "place " + kBundledTrace + " --ranks 8 --strategy contiguous -o ";

class Robust : public testing::ProgramTest {
 protected:
  // One sentence on stderr that begins like one of ours and holds `sentence`.
  void refuses(const std::string& arguments, const std::string& sentence) const {
    const testing::Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments << "\n" << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(sentence)) << arguments;
    EXPECT_THAT(outcome.err, HasSubstr("coterie: error: ")) << arguments;
  }
  [[nodiscard]] fs::path path(const std::string& name) const { return folder_ / "work" / name; }
};

// Output ------------------------------------------------------------------------------------------

TEST_F(Robust, ATableThatCannotBeWrittenIsAnError) {
  for (const std::string command : {"topology list", "topology list --json", "topology show star",
                                    "model list", "--help", "--version"}) {
    for (const std::string& command_output : {command + " 1> /dev/full", command + " 1>&-"}) {
      // In a shell of its own, whose redirections come after those of the test.
      const testing::Outcome outcome = run(
          "--version > /dev/null; ( " COTERIE_BINARY_DIR "/bin/coterie " + command_output + " )");
      EXPECT_EQ(outcome.exit_code, 2) << command_output;
      EXPECT_THAT(outcome.err, HasSubstr(command_output.ends_with("full")
                                             ? "standard output: writing failed: No space left"
                                             : "standard output: writing failed: Bad file"))
          << command_output;
    }
  }
}

TEST_F(Robust, ClosedDescriptorsHarmNothing) {
  const std::string simulate = "simulate " + kBase + " --engine simgrid --run dedup -o ";
  EXPECT_EQ(run(simulate + "open").exit_code, 0);
  const testing::Outcome closed = run("--version; " COTERIE_BINARY_DIR "/bin/coterie " + simulate +
                                      "closed <&- 1>&- 2>&-; true");
  EXPECT_EQ(closed.exit_code, 0);
  EXPECT_EQ(text("closed/results.csv"), text("open/results.csv"));
}

TEST_F(Robust, DevicesPipesAndLinksAreWrittenThrough) {
  ASSERT_EQ(run(kPlace + "plain.json").exit_code, 0);
  const std::string expected = text("plain.json");

  fs::create_symlink("target.json", path("link.json"));
  ASSERT_EQ(run(kPlace + "link.json").exit_code, 0);
  EXPECT_TRUE(fs::is_symlink(path("link.json")));
  EXPECT_EQ(text("target.json"), expected);

  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  ASSERT_EQ(run("--version; cat pipe > copy.json & " COTERIE_BINARY_DIR "/bin/coterie " + kPlace +
                "pipe; wait")
                .exit_code,
            0);
  EXPECT_TRUE(fs::is_fifo(path("pipe")));
  EXPECT_EQ(text("copy.json"), expected);

  ASSERT_EQ(run(kPlace + "/dev/stdout").exit_code, 0);
  EXPECT_THAT(read_file(folder_ / "out"), HasSubstr(expected));
  ASSERT_EQ(run(kPlace + "/dev/null").exit_code, 0);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  refuses(kPlace + "/dev/full", "/dev/full: writing failed: No space left on device");
}

TEST_F(Robust, TemporaryFilesOfKilledProcessesGo) {
  ASSERT_EQ(run("--version").exit_code, 0);
  put(".coterie-999999999-0.tmp", "half");  // no such process can be
  put("out/.coterie-999999999-3.tmp", "half");
  put("out/.coterie-x.tmp.json", "somebody's");  // of no form of ours
  fs::remove(path("out/.coterie-x.tmp.json"));
  ASSERT_EQ(run(kPlace + "p.json").exit_code, 0);
  ASSERT_EQ(run("simulate " + kBase + " --engine bound -o out").exit_code, 0);
  EXPECT_FALSE(exists(".coterie-999999999-0.tmp"));
  EXPECT_FALSE(exists("out/.coterie-999999999-3.tmp"));
}

// The file system ---------------------------------------------------------------------------------

TEST_F(Robust, FailuresOfTheFileSystemNamePathAndCause) {
  ASSERT_EQ(run("--version").exit_code, 0);
  fs::create_symlink("loop", path("loop"));
  const std::string engine = " --engine bound";
  refuses("simulate " + kBase + engine + " -o loop", "loop: ");
  refuses("simulate loop -o out" + engine,
          "loop: cannot be read: Too many levels of symbolic links");
  refuses("report loop", "Too many levels of symbolic links");
  const std::string name(300, 'n');
  refuses("simulate " + kBase + engine + " -o " + name, "File name too long");
  refuses(kPlace + name, "File name too long");
  refuses("simulate " + kBase + engine + " -o out --set topology=" + name, "File name too long");
  // Before anything is simulated.
  refuses("simulate " + kBase + engine + " -o " + kBundledTrace + "/out",
          "/out: the folder cannot be created: Not a directory");
  refuses("simulate " + kBase + engine + " -o ''", "output folder: found no name");
  refuses(kPlace + "''", "output file: found no name, expected a file's name");
  refuses("simulate '' -o out", "'': cannot be read");
  refuses("report ''", "folder: found no name");
  refuses("analyze . --ranks 8 --strategy contiguous", ".: found a folder, expected a file");
  refuses("trace import . --format csv --num-experts 4 -o x.moet", ".: found a folder");
  refuses(kPlace + ".", ": cannot be written: Is a directory");
  // A name of 255 bytes is as long as names may be: the temporary one beside it fits too.
  EXPECT_EQ(run(kPlace + std::string(255, 'n')).exit_code, 0);
}

TEST_F(Robust, NamesNeedNotBeUtf8) {
  put("\xff.yaml", read_file(kBase));
  fs::copy_file(kBundledTrace, path("collaborating.moet"));
  const testing::Outcome outcome = run("simulate $'\\xff.yaml' -o out --engine bound --json");
  (void)outcome;  // dash knows no $'': the name goes in as it is
  EXPECT_EQ(run("simulate '\xff.yaml' -o out --engine bound --json").exit_code, 0);
  EXPECT_TRUE(exists("out/results.json"));
}

TEST_F(Robust, PipesAreReadLikeFiles) {
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  const auto through_a_pipe = [&](const std::string& file, const std::string& arguments) {
    return run("--version > /dev/null; { cat '" + file +
               "' > ../pipe & " COTERIE_BINARY_DIR "/bin/coterie " + arguments +
               "; code=$?; wait; exit $code; }");
  };
  const std::string expected = run("trace info " + kBundledTrace + " --json").out;
  EXPECT_EQ(through_a_pipe(kBundledTrace, "trace info ../pipe --json").out, expected);
  put("rows.csv", "layer,token,expert\n0,0,1\n0,0,2\n0,1,3\n0,1,1\n");
  EXPECT_EQ(through_a_pipe("rows.csv", "trace import ../pipe --num-experts 4 -o x.moet").exit_code,
            0);
  EXPECT_TRUE(exists("x.moet"));
  refuses("trace import /dev/zero --format csv --num-experts 4 -o y.moet",
          "/dev/zero: found more than 1024 MiB");
}

// Hostile documents -------------------------------------------------------------------------------

TEST_F(Robust, DocumentsWithoutEndAreRefused) {
  const auto refuses_text = [&](const std::string& content, const std::string& arguments,
                                const std::string& sentence) {
    put("in", content);
    refuses(arguments, sentence);
  };
  const std::string deep(200000, '[');
  const std::string levels = "more than 64 levels inside each other";
  for (const std::string format : {"hf-json --selection softmax_topk", "json", "vllm-jsonl",
                                   "megatron-jsonl", "gpt-oss-json"}) {
    const std::string import = "trace import in --num-experts 8 -o x.moet --format " + format;
    refuses_text(deep, import, levels);
    refuses_text("[{\"0\":" + deep + "}]", import, levels);
    refuses_text("{\"type\": 1e999}", import, "the number '1e999'");
  }
  const std::string analyze = "analyze " + kBundledTrace + " --ranks 8 --placement in";
  refuses_text(deep, analyze, levels);
  refuses_text("[1e999]", analyze, "in: found the number '1e999'");
  const std::string simulate = "simulate in -o out --engine bound";
  refuses_text("topology: &t {extends: star, x: *t}\n", simulate,
               "an alias inside of what it names");
  refuses_text("&t [*t]\n", simulate, "an alias inside of what it names");
  std::string laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'j'; ++c) {
    const std::string before(1, static_cast<char>(c - 1));
    laughs += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) laughs += (i > 0 ? ", *" : "*") + before;
    laughs += "]\n";
  }
  refuses_text(laughs, simulate, "more than 1000000 values once aliases are written out");
  refuses_text("[[", simulate, "not valid YAML");
  refuses(
      simulate.substr(0, 9) + kBase + " -o out --engine bound --set 'topology=&t {extends: *t}'",
      "an alias inside of what it names");
}

TEST_F(Robust, QuantitiesStayWithinWhatCanBeComputed) {
  for (const std::string value :
       {"bandwidth=1e-308 B/s", "bandwidth=1e-300 B/s", "bandwidth=1e308 TB/s",
        "bandwidth=1e19 B/s", "latency=1e12 s", "latency=1e300 s"}) {
    refuses("simulate " + kBase + " -o out --engine flow --set 'topology.scale_up." + value + "'",
            "expected 0, or from ");
    refuses("topology show h100_node --set 'scale_up." + value + "'", "expected 0, or from ");
  }
}

// Damaged results ---------------------------------------------------------------------------------

TEST_F(Robust, ADamagedJournalEntryIsDoneAgain) {
  put("sweep.yaml", "schema_version: 1\nbase: " + kBase +
                        "\naxes:\n  - {key: tokens_per_rank, values: [64, 128]}\nruns: [dedup]\n");
  const std::string sweep = "sweep sweep.yaml -o out --set engine=bound";
  ASSERT_EQ(run(sweep).exit_code, 0);
  const std::string table = text("out/sweep.csv");
  const std::string journal = text("out/points.0.jsonl");
  const std::size_t second = journal.find('\n') + 1;
  const std::size_t third = journal.find('\n', second) + 1;
  for (const std::string damaged :
       {"{\"id\": 1}", "[]", "{}", "garbage", "{\"id\":\"a\",\"status\":\"ok\",\"rows\":\"[1]\"}",
        "{\"id\":\"a\",\"status\":\"ok\"}", "{\"id\":\"a\",\"status\":\"failed\"}"}) {
    put("out/points.0.jsonl", journal.substr(0, second) + damaged + "\n" + journal.substr(third));
    const testing::Outcome outcome = run(sweep);
    EXPECT_EQ(outcome.exit_code, 0) << damaged << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("points.0.jsonl:2: found a damaged entry")) << damaged;
    EXPECT_EQ(text("out/sweep.csv"), table) << damaged;
  }
  put("out/points.0.jsonl", "{\"schema_version\":1,\"coterie\":7}\n");
  refuses(sweep, "points.0.jsonl:1: found results of version unknown");
}

TEST_F(Robust, DamagedResultsAreRefusedByName) {
  ASSERT_EQ(run("--version").exit_code, 0);
  fs::create_directory(path("out"));
  for (const auto& [damaged, sentence] : std::map<std::string, std::string>{
           {"", "byte 1: found text that is not JSON"},
           {"{\"schema_version\": 1, \"runs", "found text that is not JSON"},
           {"{\"schema_version\": 1, \"runs\": []}", "found no key \"experiment\", "},
           {"{\"schema_version\": 1e999}", "found the number '1e999'"}}) {
    put("out/results.json", damaged);
    refuses("report out", sentence);
    refuses("report out", "out/results.json: ");
  }
}

}  // namespace
}  // namespace coterie
