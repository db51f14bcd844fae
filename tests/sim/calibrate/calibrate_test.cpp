// Calibration: known parameters come back from noisy synthetic measurements, nonsense is refused
// with a sentence, the start costs are what StartCost says, and both engines agree on them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/error.hpp"
#include "core/random.hpp"
#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/compare.hpp"
#include "sim/calibrate/measurements.hpp"
#include "sim/engines/engine.hpp"
#include "sim/program/layer_program.hpp"
#include "topologies/network.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;

// 10 us launches for messages above 16 KiB, 5 us below, 200 ns per peer, 300 GB/s and a bend of 15 us up
// to 8 MB.
VolumeModel known_model() {
  VolumeModel model;
  model.small = {5e-6, 0.2e-6, 6e9};
  model.large = {10e-6, 0.2e-6, 250e9};
  model.line = {1.0 / 300e9, {8e6}, {15e-6}};
  return model;
}

template <class Model>
std::vector<AllToAllPoint> measure(const Model& model, double noise) {
  Random random(7);
  std::vector<AllToAllPoint> points;
  for (const std::uint32_t ranks : {2U, 4U, 8U}) {
    for (double bytes = 512; bytes <= 1e9; bytes *= 2) {
      const double factor = 1.0 + noise * random.normal();
      points.push_back({"m", "d", "v", ranks, bytes, model.time_s(ranks, bytes) * factor});
    }
  }
  return points;
}

std::string sentence(const std::function<void()>& f) {
  try {
    f();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

const char* const kHeader = "machine,device,nccl_version,num_gpus,bytes_per_rank,latency_us\n";

TEST(CalibrateFit, RecoversKnownParametersFromNoisyMeasurements) {
  const VolumeModel known = known_model();
  std::vector<AllToAllPoint> points = measure(known, 0.02);
  points[20].time_s *= 3.0;  // an outlier
  const AllToAllFit fit = fit_alltoall(points, {});
  const auto& fitted = std::get<VolumeModel>(fit.model.form);
  EXPECT_NEAR(fitted.small.launch_s / known.small.launch_s, 1.0, 0.08);
  EXPECT_NEAR(fitted.large.launch_s / known.large.launch_s, 1.0, 0.08);
  EXPECT_NEAR(fitted.line.slope / known.line.slope, 1.0, 0.05);
  // Between the measured sizes and at a count of ranks that was not measured.
  for (const std::uint32_t ranks : {2U, 6U, 8U}) {
    for (double bytes = 700; bytes <= 1e9; bytes *= 3) {
      EXPECT_NEAR(fit.model.time_s(ranks, bytes) / known.time_s(ranks, bytes), 1.0, 0.1)
          << ranks << " ranks, " << bytes << " bytes";
    }
  }
}

// NVLink: launches of 10 and 6 us, 0.6 us for twice the ranks, channels of 19 GB/s and links of 640 GB/s,
// the first chunks at 900 GB/s. Two ranks use 16 of 32 channels (304 GB/s), four 24 (456), eight 28 (532).
ChannelModel channels_model() {
  ChannelModel model;
  model.dealing.channels = 32;
  model.dealing.chunk = Bytes{524288};
  model.dealing.segments = {{Bytes{16384}, {}, {}, {}}, {}};
  model.large = {10e-6, 0.6e-6};
  model.small = {6e-6, 0.6e-6};
  model.ll_rate = 6e9;
  model.slope = 1.0 / 640e9;
  model.copy = ChannelModel::Copy{19e9, 1.0 / 900e9};
  return model;
}

TEST(CalibrateFit, ChannelsTellOneCountOfRanksFromOthers) {
  const ChannelModel known = channels_model();
  EXPECT_NEAR(512e6 / 4 * 3 / known.time_s(4, 512e6), 456e9, 20e9);
  AllToAllOptions options;
  options.nvlink = true;
  options.link_bandwidth = 900e9;
  for (const std::uint32_t left_out : {2U, 4U, 8U}) {
    std::vector<AllToAllPoint> points = measure(known, 0.01);
    std::erase_if(points, [&](const auto& point) { return point.num_ranks == left_out; });
    const AllToAllFit fit = fit_alltoall(points, options);
    EXPECT_NEAR(std::get<ChannelModel>(fit.model.form).copy->rate / 19e9, 1.0, 0.05) << left_out;
    for (double bytes = 512; bytes <= 1e9; bytes *= 3) {
      EXPECT_NEAR(fit.model.time_s(left_out, bytes) / known.time_s(left_out, bytes), 1.0, 0.1)
          << left_out << " ranks, " << bytes << " bytes";
    }
  }
}

// PCIe: GPUs 0 to 3 and 4 to 7 on one socket each with bridges of 12 GB/s, 9 GB/s between the sockets,
// ranks of 22 GB/s; 1.6 times as long between the sockets with one channel of a message. Of 8 channels
// 8 ranks have one per pair up to 4 MiB, 4 ranks two.
ChannelModel sockets_model() {
  ChannelModel model;
  model.dealing.channels = 8;
  model.dealing.pair_channels = 2;
  model.dealing.chunk = Bytes{131072};
  model.dealing.segments = {{Bytes{16384}, {}, {}, {}}, {}};
  model.large = {14e-6, 1.4e-6};
  model.small = {8e-6, 0.8e-6};
  model.ll_rate = 6e9;
  model.slope = 1.0 / 22e9;
  model.shared = ChannelModel::SharedLink{1.0 / 12e9, 2.0 / 12e9};
  model.socket = ChannelModel::SharedLink{1.0 / 9e9, 2.5 / 9e9};
  model.few_channels = 1.6;
  model.shared_group = 2;
  model.socket_gpus = 4;
  return model;
}

// The same ranks, but what two of them behind one switch exchange with others limits them: 60 GB/s, both
// directions together; 4 channels, so that 4 ranks have one per pair too.
ChannelModel switches_model() {
  ChannelModel model = sockets_model();
  model.dealing.channels = 4;
  model.shared = ChannelModel::SharedLink{1.0 / 60e9, 2.0 / 60e9};
  model.socket.reset();
  model.few_channels = 1.2;
  model.socket_gpus = 2;
  return model;
}

TEST(CalibrateFit, CrossValidationTellsWhatRanksShare) {
  AllToAllOptions options;
  options.shared_link = true;
  options.shared_group = 2;
  for (const ChannelModel& known : {sockets_model(), switches_model()}) {
    const AllToAllFit fit = fit_alltoall(measure(known, 0.02), options);
    const auto& fitted = std::get<ChannelModel>(fit.model.form);
    EXPECT_EQ(fitted.socket_gpus, known.socket_gpus);
    EXPECT_EQ(fitted.dealing.channels, known.dealing.channels);
    EXPECT_NEAR(fitted.shared->slope / known.shared->slope, 1.0, 0.05);
    EXPECT_NEAR(fitted.few_channels / known.few_channels, 1.0, 0.1);
  }
}

// By hand: 8 ranks of the sockets model and messages of 8 MiB, two channels each: between the sockets
// move 2 * 4 * 4 messages at 9 GB/s, which takes longer than 4 * (2 + 2 * 4) over a bridge of 12 GB/s.
// Messages of 4 MiB have one channel and take 1.6 times as long for half the bytes.
TEST(CalibrateFit, FewChannelsSlowWhatJoinsSockets) {
  const ChannelModel model = sockets_model();
  const double mebibyte = 1048576.0;
  const double launch_s = 14e-6 + 2.0 * 1.4e-6;
  EXPECT_NEAR(model.time_s(8, 64.0 * mebibyte), launch_s + 32.0 * 8.0 * mebibyte / 9e9, 1e-9);
  EXPECT_NEAR(model.time_s(8, 32.0 * mebibyte), launch_s + 1.6 * 32.0 * 4.0 * mebibyte / 9e9, 1e-9);
}

TEST(CalibrateFit, TimesNeverFallWithTheSize) {
  const AllToAllFit fit = fit_alltoall(measure(known_model(), 0.05), {});
  double last = 0.0;
  for (double bytes = 17.0 * 8 * 1024; bytes <= 1e9; bytes *= 1.1) {
    const double time_s = fit.model.time_s(8, bytes);
    EXPECT_GE(time_s, last);
    last = time_s;
  }
}

TEST(CalibrateFit, SaysWhatTheDataCannotDetermine) {
  // Two ranks alone say nothing about the growth per peer: (n - 2) is zero.
  std::vector<AllToAllPoint> points = measure(known_model(), 0.01);
  std::erase_if(points, [](const AllToAllPoint& point) { return point.num_ranks != 2; });
  EXPECT_THAT(fit_alltoall(points, {}).undetermined, ::testing::Contains("per_peer"));
}

// Three times that the start decides, 58 to 59 us from 1 to 4 MiB: they say what a start costs and
// nothing of the rate, whatever number the fit ends with.
TEST(CalibrateFit, FlatTimesDetermineNoRate) {
  std::vector<AllToAllPoint> points;
  for (const auto& [bytes, time_s] :
       {std::pair{1048576.0, 58.14e-6}, {2097152.0, 58.94e-6}, {4194304.0, 59.35e-6}}) {
    points.push_back({"m", "d", "v", 8, bytes, time_s});
  }
  const AllToAllFit fit = fit_alltoall(points, {});
  EXPECT_THAT(fit.undetermined, ::testing::IsSupersetOf({"per_peer", "sharpness", "bend[0]"}));
  EXPECT_THAT(fit.undetermined,
              ::testing::Contains(fit.parameters.back().name));  // the final slope
  EXPECT_THAT(fit.undetermined, ::testing::Not(::testing::Contains("launch")));
}

TEST(CalibrateMeasurements, RefusesNonsense) {
  const auto parse = [](const std::string& rows) {
    return sentence([&] { (void)parse_alltoall(kHeader + rows, "t.csv"); });
  };
  EXPECT_EQ(parse("m,d,v,2,512,-3\n"),
            "t.csv:2: latency_us: found -3, expected a value above zero");
  EXPECT_EQ(parse("m,d,v,2,512,fast\n"), "t.csv:2: latency_us: found \"fast\", expected a number");
  EXPECT_EQ(parse("m,d,v,1,512,3\n"), "t.csv:2: num_gpus: found 1, expected at least two GPUs");
  EXPECT_EQ(parse("m,d,v,2,512\n"), "t.csv:2: found 5 cells, expected 6, as many as columns");
  EXPECT_EQ(parse(""), "t.csv: found a table without rows, expected measured points");
  EXPECT_THAT(sentence([] { (void)parse_alltoall("a,b\n1,2\n", "t.csv"); }),
              HasSubstr("expected a column machine"));
  EXPECT_THAT(sentence([] { (void)parse_alltoall("{}", "p.json"); }), HasSubstr("curves"));
}

TEST(CalibrateMeasurements, RefusesOnePointMixturesAndImpossibleRates) {
  const std::vector<AllToAllPoint> one{{"m", "d", "v", 2, 512, 1e-5}};
  EXPECT_EQ(sentence([&] { (void)select_machine(one, "", "t"); }),
            "t: found 1 size, expected at least three sizes to fit a curve");
  const std::vector<AllToAllPoint> mixed{{"a", "d", "v", 2, 512, 1e-5},
                                         {"b", "d", "v", 2, 512, 1e-5}};
  EXPECT_EQ(sentence([&] { (void)select_machine(mixed, "", "t"); }),
            "t: found points of 2 machines, expected one machine (name it with --machine: a, b)");
  EXPECT_EQ(sentence([&] { (void)select_machine(mixed, "c", "t"); }),
            "t: found no machine \"c\", expected one of a, b");
  // 2 MB in 1 us is 1 TB/s per rank (half of the buffer leaves).
  const std::vector<AllToAllPoint> fast{{"m", "d", "v", 2, 2e6, 1e-6}};
  EXPECT_EQ(sentence([&] { check_physical(fast, Bandwidth{450e9}, "t"); }),
            "t: found 1 TB/s per rank with 2 ranks at 1.91 MiB, expected at most 450 GB/s, the "
            "physical limit of the link");
}

// The schema of runtime/README.md.
TEST(CalibrateMeasurements, ReadsProbeCurves) {
  const auto points = parse_alltoall(
      R"({"device": "d", "machine": "m", "nccl_version": "2", "num_ranks": 4, "curves": [
          {"bytes_per_pair": 64, "kind": "sendrecv", "median_us": 3.0},
          {"bytes_per_pair": 64, "kind": "alltoall", "median_us": 9.0}]})",
      "curves.json");
  ASSERT_EQ(points.size(), 1U);
  EXPECT_EQ(points[0].bytes_per_rank, 256.0);
  EXPECT_DOUBLE_EQ(points[0].time_s, 9e-6);
}

// The second version names the transport, and has lists that are not read here.
TEST(CalibrateMeasurements, ReadsProbeCurvesOfTheSecondVersion) {
  const std::string text =
      R"({"schema_version": 2, "device": "d", "machine": "m", "nccl_version": "2", "num_ranks": 4,
          "kernels": [{"kind": "pack", "median_us": 1.0}], "curves": [
          {"bytes_per_pair": 64, "kind": "hot_pair", "transport": "nccl", "median_us": 3.0},
          {"bytes_per_pair": 64, "kind": "alltoall", "transport": "other", "median_us": 5.0},
          {"bytes_per_pair": 64, "kind": "alltoall", "transport": "nccl", "median_us": 9.0}]})";
  const auto points = parse_alltoall(text, "curves.json");
  ASSERT_EQ(points.size(), 1U);
  EXPECT_EQ(points[0].bytes_per_rank, 256.0);
  EXPECT_DOUBLE_EQ(points[0].time_s, 9e-6);
  std::string newer = text;
  newer.replace(newer.find(": 2"), 3, ": 3");
  EXPECT_EQ(sentence([&] { (void)parse_alltoall(newer, "curves.json"); }),
            "curves.json: found schema_version 3, expected 1 or 2");
}

TrafficMatrix uniform(std::uint32_t num_ranks, std::int64_t bytes) {
  TrafficMatrix traffic;
  traffic.num_ranks = num_ranks;
  for (std::uint32_t step = 1; step < num_ranks; ++step) {
    for (std::uint32_t src = 0; src < num_ranks; ++src) {
      traffic.entries.push_back({src, (src + step) % num_ranks, bytes, 0.0});
    }
  }
  return traffic;
}

// What the fit assumes is what both engines compute, on every calibrated preset's kind of link:
// the formulas of alltoall_fit.hpp against the simulated makespan, within 1 percent.
template <class Model>
void expect_fitted_model(Model model, const std::string& preset, std::uint32_t num_ranks = 8) {
  Cluster base = load_cluster(preset);
  model.latency_s = 2.0 * base.scale_up->latency.value;
  const Network network(calibrated_cluster(base, {model}));
  for (const std::int64_t bytes : {2048, 65536, 1 << 20, 16 << 20}) {
    const LayerProgram layer = build_traffic(uniform(num_ranks, bytes), {}, network.cluster());
    const ResolvedProgram program = resolve(layer.program, network);
    const double expected = model.time_s(num_ranks, num_ranks * static_cast<double>(bytes));
    const double flow = run_engine("flow", program, {}).makespan_s;
    const double simgrid = run_engine("simgrid", program, {}).makespan_s;
    EXPECT_NEAR(flow / expected, 1.0, 0.01) << preset << ", " << num_ranks << ", " << bytes;
    EXPECT_NEAR(flow / simgrid, 1.0, 0.01) << preset << ", " << num_ranks << ", " << bytes;
  }
}

TEST(StartCosts, BothEnginesComputeTheFittedModel) {
  expect_fitted_model(known_model(), "h200_node");
  ChannelModel channels = channels_model();
  channels.slope = 1.0 / 330e9;
  for (const std::uint32_t num_ranks : {2U, 4U, 8U}) {
    expect_fitted_model(channels, "h200_node", num_ranks);
    expect_fitted_model(sockets_model(), "l40s_pcie_8", num_ranks);
    expect_fitted_model(switches_model(), "rtx_pro_6000_pcie_8", num_ranks);
  }
  // 4 channels of 9 GB/s to each of 7 peers, 252 GB/s in all, where the links carry 330.
  channels.copy->rate = 9e9;
  expect_fitted_model(channels, "h200_node");
}

TEST(StartCosts, CalibratedClusterSurvivesYaml) {
  const std::vector<AllToAllModel> models{
      {known_model()}, {channels_model()}, {sockets_model()}, {switches_model()}};
  for (const AllToAllModel& model : models) {
    const Cluster cluster = calibrated_cluster(load_cluster("h200_node"), model);
    const std::string text = to_yaml(cluster);
    EXPECT_EQ(to_yaml(read_cluster(parse_yaml(text, "calibrated"))), text);
  }
}

RunReport report(const std::string& name, double time_s, std::vector<double> samples) {
  RunReport run;
  run.name = name;
  run.num_ranks = 2;
  LayerReport layer;
  layer.layer = 1;
  layer.time_s = time_s;
  layer.samples_s = std::move(samples);
  run.layers.push_back(layer);
  return run;
}

// Three runs: a and b differ by far more than their spread and are predicted in the wrong order, a
// and c by less; so one of two ordered pairs (b, c) is right.
TEST(Compare, CountsOrderedWrongAndUnclearPairs) {
  const Results measured{"e",
                         {report("a", 1.0, {0.9, 1.0, 1.1}), report("b", 2.0, {1.9, 2.0, 2.1}),
                          report("c", 1.05, {0.95, 1.05, 1.15})}};
  const Results predicted{"e", {report("a", 2.2, {}), report("b", 2.0, {}), report("c", 1.0, {})}};
  const Comparison comparison = compare(predicted, measured);
  EXPECT_EQ(comparison.num_ordered_pairs, 2U);
  EXPECT_EQ(comparison.num_right_pairs, 1U);
  EXPECT_EQ(comparison.num_unclear_pairs, 1U);
  EXPECT_NEAR(comparison.worst_error(), 1.2, 1e-12);
  EXPECT_TRUE(comparison.times[1].unclear());  // b: no error at all
}

TEST(Compare, RefusesReportsOfDifferentExperiments) {
  const Results a{"e", {report("a", 1.0, {})}};
  const Results b{"e", {report("b", 1.0, {})}};
  EXPECT_THAT(sentence([&] { (void)compare(a, b); }), HasSubstr("no run of the same name"));
  Results other = a;
  other.runs[0].policy = "dedup";
  EXPECT_THAT(sentence([&] { (void)compare(a, other); }), HasSubstr("the same experiment in both"));
}

}  // namespace
}  // namespace coterie
