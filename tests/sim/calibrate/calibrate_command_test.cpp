// `coterie calibrate fit` on a recorded probe (runtime/results): what it refuses, in one sentence, and how
// far off it says that it was.

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "core/statistics.hpp"
#include "core/yaml.hpp"
#include "sim/calibrate/measurements.hpp"
#include "sim/calibrate/probe_fit.hpp"
#include "tests/sim/cli/program.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

const std::string kResults = COTERIE_SOURCE_DIR "/runtime/results/";
const std::string kProbe = kResults + "h200_nvlink_2/curves_ep2.json";
const std::string kBase = " --base " + kResults + "h200_nvlink_2/topology_ep2.yaml -o fitted.yaml";

class CalibrateCommand : public testing::ProgramTest {
 protected:
  // Exit code 2, one sentence that holds `parts`, and no file.
  void refuses(const std::string& arguments, const std::vector<std::string>& parts) {
    const auto outcome = run("calibrate fit " + arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments << "\n" << outcome.err;
    const std::size_t begin = outcome.err.find("coterie: error: ");
    ASSERT_NE(begin, std::string::npos) << outcome.err;
    const std::string sentence = outcome.err.substr(begin);
    EXPECT_EQ(std::count(sentence.begin(), sentence.end(), '\n'), 1) << sentence;
    for (const std::string& part : parts) EXPECT_THAT(sentence, HasSubstr(part)) << arguments;
    EXPECT_FALSE(exists("fitted.yaml"));
  }
  void refuses_changed(const std::function<void(json&)>& change,
                       const std::vector<std::string>& parts) {
    json probe = json::parse(read_file(kProbe));
    change(probe);
    put("probe.json", probe.dump());
    refuses("--probe probe.json" + kBase, parts);
  }
};

TEST_F(CalibrateCommand, RefusesProbesThatAreNotWhole) {
  const std::string text = read_file(kProbe);
  put("cut.json", text.substr(0, text.size() / 2));
  refuses("--probe cut.json" + kBase, {"cut.json", "damaged or truncated"});
  refuses_changed([](json& probe) { probe["schema_version"] = 1; }, {"schema_version 1", "2"});
  refuses_changed([](json& probe) { probe["schema_version"] = 3; }, {"schema_version 3"});
  for (const char* part : {"expert_mlp", "kernels", "curves", "notify"}) {
    refuses_changed([&](json& probe) { probe.erase(part); }, {fmt::format("\"{}\"", part)});
  }
}

TEST_F(CalibrateCommand, RefusesTimesThatAreNone) {
  for (const double time : {0.0, -3.0}) {
    for (const char* part : {"expert_mlp", "kernels", "curves", "overlap"}) {
      refuses_changed([&](json& probe) { probe[part][3]["median_us"] = time; },
                      {fmt::format("{}[3]", part), "above zero"});
    }
  }
}

TEST_F(CalibrateCommand, RefusesProbesOfMixedMachines) {
  const std::string other = kResults + "h100_nvlink_2/";
  refuses("--probe " + kProbe + " --alltoall " + other + "curves_ep2.json" + kBase,
          {"2 machines", "h100_nvlink_2, h200_nvlink_2"});
  // The other machine's all-to-alls, named.
  refuses("--probe " + kProbe + " --alltoall " + other + "curves_ep2.json --machine h100_nvlink_2" +
              kBase,
          {"--machine", "\"h100_nvlink_2\"", "h200_nvlink_2"});
  refuses("--probe " + kProbe + " --base " + other + "topology_ep2.yaml -o fitted.yaml",
          {"the skeleton of machine h100_nvlink_2", "h200_nvlink_2"});
  json probe = json::parse(read_file(kProbe));
  probe["num_ranks"] = 4;
  put("four.json", probe.dump());
  refuses("--probe four.json" + kBase, {"4 ranks", "2 GPUs"});
}

// Devices as their drivers name them; the preset's GPU is an "H200 SXM". Of a GPU that names no model,
// nothing can be said.
TEST_F(CalibrateCommand, RefusesMeasurementsOfAnotherGpu) {
  const std::string h100 = kResults + "h100_nvlink_2/curves_ep2.json";
  const std::string expected =
      "found measurements of NVIDIA H100 80GB HBM3, expected measurements "
      "of the topology's GPU, H200 SXM";
  for (const char* option : {"--probe ", "--alltoall "}) {
    refuses(option + h100 + " --base h200_node -o fitted.yaml", {h100 + ": " + expected});
  }
  EXPECT_EQ(run("calibrate fit --alltoall " + h100 + " --base h100_node").exit_code, 0);
  for (const auto& [name, model] :
       std::map<std::string, std::string>{{"NVIDIA H100 80GB HBM3", "H100"},
                                          {"NVIDIA A100-SXM4-80GB", "A100"},
                                          {"NVIDIA RTX A6000", "A6000"},
                                          {"H200 SXM", "H200"},
                                          {"Tesla V100-SXM2-16GB", "V100"},
                                          {"ours", ""},
                                          {"", ""}}) {
    EXPECT_EQ(gpu_model(name), model);
  }
  EXPECT_NO_THROW(check_gpu_model("NVIDIA H200", "ours", "probe"));
}

// The first line of a report is all of it: the sentence shows its beginning.
TEST_F(CalibrateCommand, ShowsTheBeginningOfALineThatIsNoTable) {
  put("report.json", "{\"a\":[" + std::string(5000, '1') + "]}");
  const auto outcome = run("calibrate fit --base h200_node --gemm report.json -o fitted.yaml");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("report.json: found the columns {"));
  EXPECT_LT(outcome.err.size(), 400U) << outcome.err;
}

TEST_F(CalibrateCommand, RefusesRowsThatCannotBe) {
  const std::string head = "direction,ranks,sms,row_bytes,tokens_per_rank,rows_src_dst,time_us\n";
  const std::string base = " --base h200_nvlink_2_calibrated -o fitted.yaml";
  const auto row = [&](const std::string& sms, const std::string& bytes, const std::string& rows,
                       const std::string& time) {
    put("rows.csv", head + fmt::format("dispatch,2,{},{},128,\"{}\",{}\n", sms, bytes, rows, time));
    return "--rows rows.csv" + base;
  };
  const std::string rows = "[[64, 64], [64, 64]]";
  refuses(row("24", "4096", rows, "0"), {"rows.csv:2: time_us", "above zero"});
  refuses(row("24", "0", rows, "30"), {"rows.csv:2: row_bytes", "above zero"});
  refuses(row("24", "4096", "[[64, 64]]", "30"), {"rows.csv:2: rows_src_dst", "2 lists"});
  refuses(row("24", "4096", "[[64, 164], [64, 64]]", "30"),
          {"164 rows from rank 0 to rank 1", "128 tokens_per_rank"});
  // More own rows than tokens, too.
  refuses(row("24", "4096", "[[64, 64], [64, 129]]", "30"), {"129 rows from rank 1 to rank 1"});
  refuses(row("133", "4096", rows, "30"), {"133 multiprocessors", "at most the 132"});
}

// A second fit on what a first one wrote says the same once: the file can be read, which refuses keys that
// come twice, and holds each fit's latest words.
TEST_F(CalibrateCommand, ASecondFitReplacesWhatTheFirstSaid) {
  std::string rows = "direction,ranks,sms,row_bytes,tokens_per_rank,rows_src_dst,time_us\n";
  for (const int tokens : {128, 256, 512, 1024, 2048, 4096, 8192, 16384}) {
    for (const char* direction : {"dispatch", "combine"}) {
      rows += fmt::format("{0},2,24,4096,{1},\"[[{2}, {2}], [{2}, {2}]]\",{3}\n", direction, tokens,
                          tokens / 2, 30.0 + 0.05 * tokens);
    }
  }
  put("rows.csv", rows);
  const auto fit = [&](const std::string& base, const std::string& source) {
    const auto outcome = run(fmt::format(
        "calibrate fit --rows rows.csv --alltoall {} --base {} --source {} -o fitted.yaml", kProbe,
        base, source));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return load_cluster((folder_ / "work" / "fitted.yaml").string()).provenance;
  };
  const auto first = fit(kResults + "h200_nvlink_2/topology_ep2.yaml", "first");
  const auto second = fit("fitted.yaml", "second");
  EXPECT_EQ(first.size(), second.size());
  const std::map<std::string, std::string> facts(second.begin(), second.end());
  EXPECT_EQ(facts.size(), second.size());
  EXPECT_THAT(facts.at("deepep_normal"), HasSubstr("second"));
}

// A log that was given twice holds every size twice; neither the fit nor the reader is left in doubt.
TEST_F(CalibrateCommand, SaysThatRepeatedSizesCountOnce) {
  std::string points = "machine,device,nccl_version,num_gpus,bytes_per_rank,latency_us\n";
  for (const auto& [bytes, us] : {std::pair{1 << 16, 20}, {1 << 20, 30}, {1 << 24, 90}}) {
    points += fmt::format("m,NVIDIA H200,2.27,2,{},{}\n", bytes, us);
  }
  put("points.csv", points);
  const std::string fit = "calibrate fit --base h200_node -o fitted.yaml --alltoall points.csv";
  const auto once = run(fit);
  const auto fitted = text("fitted.yaml");
  const auto twice = run(fit + " --alltoall points.csv");
  ASSERT_EQ(twice.exit_code, 0) << twice.err;
  EXPECT_THAT(once.err, ::testing::Not(HasSubstr("repeats")));
  EXPECT_THAT(twice.err,
              HasSubstr("all-to-alls: 6 measurements for 3 pairs of ranks and bytes; the median of "
                        "its repeats counts"));
  EXPECT_EQ(text("fitted.yaml"), fitted);
}

// The errors in the file, and in every run predicted with it, are those of the fit's left-out points.
TEST_F(CalibrateCommand, HeldOutErrorsFollowThePrediction) {
  const auto outcome = run("calibrate fit --probe " + kProbe + kBase);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Cluster fitted = load_cluster((folder_ / "work" / "fitted.yaml").string());
  std::map<std::string, std::string> facts(fitted.provenance.begin(), fitted.provenance.end());
  for (const GpuFit::Part& part : fit_gpu(fitted, read_gpu_probe(kProbe)).parts) {
    std::vector<double> errors;
    for (const double error : part.held_out) errors.push_back(std::abs(error));
    const double worst = *std::max_element(errors.begin(), errors.end());
    EXPECT_THAT(facts.at("gpu_held_out_error"),
                HasSubstr(fmt::format("{} {:.1f} % / {:.1f} %", part.name,
                                      100.0 * median(std::move(errors)), 100.0 * worst)));
  }

  ASSERT_EQ(run("trace generate " COTERIE_SOURCE_DIR "/workloads/examples/uniform.yaml -o t.moet")
                .exit_code,
            0);
  put("experiment.yaml",
      "schema_version: 1\ntopology: fitted.yaml\nmodel: olmoe_1b_7b\n"
      "trace: {file: t.moet, train: even, eval: odd}\nranks: 2\ntokens_per_rank: 256\n"
      "layers: [1]\nruns:\n  - {name: dedup, placement: contiguous, dispatch: dedup}\n");
  const auto simulated = run("simulate experiment.yaml -o out --engine flow");
  ASSERT_EQ(simulated.exit_code, 0) << simulated.err;
  const json found = json::parse(text("out/results.json"))["runs"][0]["provenance"];
  EXPECT_EQ(found["calibration_gpu_held_out_error"], facts.at("gpu_held_out_error"));
  EXPECT_EQ(found["calibration_links_held_out_error"], facts.at("links_held_out_error"));
  // A preset that nobody measured says nothing of errors.
  ASSERT_EQ(run("simulate experiment.yaml -o plain --engine flow --set topology=star").exit_code,
            0);
  const json plain = json::parse(text("plain/results.json"))["runs"][0]["provenance"];
  for (const auto& [key, value] : plain.items()) {
    EXPECT_THAT(key, ::testing::Not(HasSubstr("held_out_error"))) << value;
  }
}

}  // namespace
}  // namespace coterie
