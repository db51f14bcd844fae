// Kernels and MLPs from a probe: parameters that wrote synthetic points come back, bytes and rows
// are those of the formula, and files that are no whole probe are refused.

#include "sim/calibrate/probe_fit.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/yaml.hpp"
#include "sim/program/kernels.hpp"

namespace coterie {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kMemoryRate = 4.0e12;

json kernel_entry(const char* kind, const char* type) {
  return {{"kind", kind},    {"type", type},      {"hidden", 2048},          {"num_tokens", 100},
          {"num_rows", 300}, {"num_copies", 800}, {"num_forward_rows", 500}, {"median_us", 20.0}};
}

json small_probe() {
  json kernels = json::array();
  for (const char* kind :
       {"events", "build_forward_index", "forward", "pack_phase", "forward_phase", "expand_phase",
        "merge", "gather_sum", "sum", "sum_with_shared"}) {
    kernels.push_back(kernel_entry(kind, "fp8"));
  }
  kernels[0]["median_us"] = 3.0;
  return {{"schema_version", 2},
          {"device", "NVIDIA H200"},
          {"num_ranks", 2},
          {"notify", {{{"kind", "notify"}, {"median_us", 9.5}}}},
          {"kernels", kernels},
          {"expert_mlp",
           {{{"kind", "routed"},
             {"type", "bf16"},
             {"hidden", 2048},
             {"intermediate", 1408},
             {"expert_rows", {3, 5}},
             {"median_us", 60.0}},
            {{"kind", "shared"},
             {"type", "bf16"},
             {"hidden", 2048},
             {"intermediate", 2816},
             {"num_tokens", 100},
             {"median_us", 22.0}}}}};
}

std::string refusal(const json& probe) {
  try {
    (void)parse_gpu_probe(probe.dump(), "curves.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(GpuProbe, CountsRowsAndBytesOfEveryPhase) {
  const GpuProbe probe = parse_gpu_probe(small_probe().dump(), "curves.json");
  // A BF16 row of 2048 values has 4096 bytes, an FP8 one 2048 and 16 scales of 4 bytes: 2112.
  const auto expect = [](const KernelPoint& point, double bytes, double rows, double items) {
    EXPECT_DOUBLE_EQ(point.bytes, bytes);
    EXPECT_DOUBLE_EQ(point.rows, rows);
    EXPECT_DOUBLE_EQ(point.items, items);
    EXPECT_DOUBLE_EQ(point.time_s, 20e-6);
  };
  ASSERT_EQ(probe.pack.size(), 1U);
  // 100 tokens, quantised, into 300 rows; all kernels behind the exchange run over those.
  expect(probe.pack[0], 100.0 * 4096 + 300.0 * 2112, 300, 100);
  EXPECT_DOUBLE_EQ(probe.pack[0].quantised, 100.0 * 4096);
  // Index and rows were timed apart, 20 us each, and are one phase: one pair of events less.
  ASSERT_EQ(probe.forward.size(), 1U);
  EXPECT_DOUBLE_EQ(probe.forward[0].bytes, (300.0 + 500.0) * 2112);
  EXPECT_DOUBLE_EQ(probe.forward[0].rows, 500);
  EXPECT_DOUBLE_EQ(probe.forward[0].time_s, 37e-6);
  EXPECT_DOUBLE_EQ(probe.forward[0].copies_per_row, 800.0 / 300.0);
  EXPECT_DOUBLE_EQ(probe.forward[0].items, 300);
  expect(probe.expand.at(0), 300.0 * 2112 + 800.0 * 4096, 800, 300);
  expect(probe.merge.at(0), (800.0 + 300.0) * 4096, 800, 300);
  expect(probe.gather.at(0), (500.0 + 300.0) * 4096, 500, 300);
  ASSERT_EQ(probe.sum.size(), 2U);
  expect(probe.sum[0], (300.0 + 100.0) * 4096, 300, 100);
  expect(probe.sum[1], (300.0 + 200.0) * 4096, 300, 100);
  EXPECT_THAT(probe.mlp.at(0).expert_rows, ElementsAre(3, 5));
  EXPECT_THAT(probe.shared_mlp.at(0).expert_rows, ElementsAre(100));
  EXPECT_TRUE(probe.mlp_fp8.empty());
  EXPECT_DOUBLE_EQ(probe.notify_s, 9.5e-6);
  EXPECT_DOUBLE_EQ(probe.gap_s, 3e-6);
  EXPECT_TRUE(probe.own_copy.empty());
}

TEST(GpuProbe, OwnCopiesAreTheCopiesAloneOfTheOverlaps) {
  json probe = small_probe();
  probe["overlap"] = {
      {{"kind", "work_alone"}, {"work", "product"}, {"product_size", 2048}, {"median_us", 28.0}},
      {{"kind", "work_beside_exchange"},
       {"work", "copy"},
       {"copy_bytes", 100000000},
       {"median_us", 9.0}},
      {{"kind", "work_alone"}, {"work", "copy"}, {"copy_bytes", 100000000}, {"median_us", 50.0}},
      // In the caches.
      {{"kind", "work_alone"}, {"work", "copy"}, {"copy_bytes", 1000000}, {"median_us", 5.0}}};
  const GpuProbe read = parse_gpu_probe(probe.dump(), "curves.json");
  ASSERT_EQ(read.own_copy.size(), 1U);
  EXPECT_DOUBLE_EQ(read.own_copy[0].bytes, 2e8);  // read and written
  EXPECT_DOUBLE_EQ(read.own_copy[0].time_s, 50e-6);
  probe["overlap"][2]["copy_bytes"] = 0;
  EXPECT_THAT(refusal(probe), HasSubstr("overlap[2]: copy_bytes"));
}

json pattern(const char* kind, double bytes, double median_us) {
  return {
      {"kind", kind}, {"transport", "nccl"}, {"bytes_per_pair", bytes}, {"median_us", median_us}};
}

// Three ranks. Between the two largest sizes 1 MB more per pair take: 20 us from all to one (2 MB, 100
// GB/s), 25 us from one to all (80 GB/s, the slower), 10 us for one pair alone (100 GB/s), 20 us for
// two neighbours that both send (50 GB/s each, 100 together).
json pattern_probe() {
  json probe{{"num_ranks", 3}, {"curves", json::array()}};
  for (const auto& [kind, more_us] : std::initializer_list<std::pair<const char*, double>>{
           {"all_to_one", 20.0}, {"one_to_all", 25.0}, {"sendrecv", 10.0}, {"shift", 20.0}}) {
    probe["curves"].push_back(pattern(kind, 1024, 8.0));
    probe["curves"].push_back(pattern(kind, 1e6, 30.0));
    probe["curves"].push_back(pattern(kind, 2e6, 30.0 + more_us));
  }
  return probe;
}

// Beside waiting streams kernels of 20 us take 20.9, an MLP of 60 takes 63.5 and a shared one of 22 takes
// 25; a round trip over another stream of 12 us holds two gaps, 6, of a stream alone. Four rounds of a pack of
// 20 us take 44: 8 for each further one. Where ranks share a GPU nothing of this tells them apart.
TEST(GpuProbe, KnowsWhatLaunchesTakeAmongStreamsAndInRounds) {
  json probe = small_probe();
  const auto add = [&](const char* list, json entry, const char* kind, double us) {
    entry["kind"] = kind;
    entry["median_us"] = us;
    probe[list].push_back(entry);
  };
  json among = kernel_entry("", "fp8");
  among["among_streams"] = true;
  add("kernels", among, "events", 3.0);
  add("kernels", among, "event_between", 6.0);
  add("kernels", among, "round_trip", 12.0);
  add("kernels", among, "merge", 20.9);
  add("kernels", among, "expand_phase", 20.9);
  json rounds = kernel_entry("", "fp8");
  rounds["num_rounds"] = 4;
  add("kernels", rounds, "pack_rounds", 44.0);
  for (const std::size_t i : {0, 1}) {
    json mlp = probe["expert_mlp"][i];
    mlp["among_streams"] = true;
    mlp["median_us"] = i == 0 ? 63.5 : 25.0;
    probe["expert_mlp"].push_back(mlp);
  }
  const GpuProbe read = parse_gpu_probe(probe.dump(), "curves.json");
  EXPECT_EQ(read.merge.size(), 1U);
  EXPECT_EQ(read.mlp.size(), 1U);
  ASSERT_EQ(read.kernel_among_s.size(), 2U);
  EXPECT_NEAR(read.kernel_among_s[0], 0.9e-6, 1e-12);
  ASSERT_EQ(read.join_s.size(), 1U);
  EXPECT_NEAR(read.join_s[0], 6e-6, 1e-12);
  ASSERT_EQ(read.pack_again_s.size(), 1U);
  EXPECT_NEAR(read.pack_again_s[0], 8e-6, 1e-12);
  ASSERT_EQ(read.mlp_among_s.size(), 1U);
  EXPECT_NEAR(read.mlp_among_s[0], 3.5e-6, 1e-12);
  ASSERT_EQ(read.shared_among_s.size(), 1U);
  EXPECT_NEAR(read.shared_among_s[0], 3e-6, 1e-12);

  probe["ranks_per_gpu"] = 2;
  for (json& entry : probe["kernels"]) {
    entry["samples_us"] = json::array({json::array({entry.at("median_us")})});
  }
  const GpuProbe sharing = parse_gpu_probe(probe.dump(), "curves.json");
  EXPECT_TRUE(sharing.kernel_among_s.empty());
  EXPECT_TRUE(sharing.join_s.empty());
  EXPECT_TRUE(sharing.pack_again_s.empty());
  EXPECT_TRUE(sharing.mlp_among_s.empty());
  EXPECT_EQ(sharing.mlp.size(), 1U);
  probe["kernels"].back()["num_rounds"] = 0;
  EXPECT_THAT(refusal(probe), HasSubstr("num_rounds: found 0, expected a number above zero"));
}

// A rank's MLP takes as long as the ranks' did in the mean; the slowest's time is that of a probe that
// does not know the others', and of ranks that share a GPU.
TEST(GpuProbe, AnMlpIsThatOfARankLikeAnyOther) {
  json probe = small_probe();
  probe["expert_mlp"][0]["ranks_us"] = {{56.0, 60.0}, {58.0, 62.0}};
  EXPECT_DOUBLE_EQ(parse_gpu_probe(probe.dump(), "curves.json").mlp.at(0).time_s, 59e-6);
  probe["expert_mlp"][0]["ranks_us"] = {{56.0, 0.0}};
  EXPECT_THAT(refusal(probe), HasSubstr("ranks_us: found 0.0, expected times above zero"));
  probe["expert_mlp"][0]["ranks_us"] = json::array();
  EXPECT_THAT(refusal(probe), HasSubstr("ranks_us"));
}

// Of two ranks the second gets 30 rows of 2112 bytes with 90 copies of 4096, the first 10 with 20.
TEST(GpuProbe, ExpansionsBehindAPutAreThoseOfTheFullestRank) {
  json probe = small_probe();
  json entry{{"kind", "expand"},           {"type", "fp8"},     {"hidden", 2048},
             {"rows", {{0, 30}, {10, 0}}}, {"median_us", 18.0}, {"copies", {{0, 90}, {20, 0}}}};
  probe["direct"] = json::array({entry});
  const GpuProbe read = parse_gpu_probe(probe.dump(), "curves.json");
  ASSERT_EQ(read.expand_put.size(), 1U);
  EXPECT_DOUBLE_EQ(read.expand_put[0].bytes, 30.0 * 2112 + 90.0 * 4096);
  EXPECT_DOUBLE_EQ(read.expand_put[0].rows, 90.0);
  EXPECT_DOUBLE_EQ(read.expand_put[0].items, 30.0);
  EXPECT_DOUBLE_EQ(read.expand_put[0].time_s, 18e-6);
  probe["direct"][0]["rows"] = {{0, 30}};
  EXPECT_THAT(refusal(probe), HasSubstr("direct[0]: rows: found [0,30], expected a row of 1"));
}

TEST(PatternRates, AreSlopesBetweenTheTwoLargestSizes) {
  json probe = pattern_probe();
  PatternRates rates = parse_pattern_rates(probe.dump(), "curves.json");
  EXPECT_NEAR(rates.rank_one_way.value(), 80e9, 1.0);
  EXPECT_NEAR(rates.pair_one_way.value(), 100e9, 1.0);
  EXPECT_NEAR(rates.pair_both_ways.value(), 100e9, 1.0);
  // At that rate 1 MB each way take 20 us: 29 are not half as long again, 8 us for 1 KiB are.
  probe["curves"][10]["median_us"] = 29.0;
  probe["curves"][11]["median_us"] = 49.0;
  rates = parse_pattern_rates(probe.dump(), "curves.json");
  EXPECT_EQ(rates.pair_times, (std::map<double, double>{{1024.0, 8e-6}}));
  // Times that fall say nothing, and neither do kinds that were not measured.
  probe["curves"][8]["median_us"] = 29.0;
  probe["curves"].erase(9);
  probe["curves"].erase(9);
  probe["curves"].erase(9);
  rates = parse_pattern_rates(probe.dump(), "curves.json");
  EXPECT_FALSE(rates.pair_one_way);
  EXPECT_FALSE(rates.pair_both_ways);
  probe["curves"][2]["median_us"] = -1.0;
  EXPECT_THROW((void)parse_pattern_rates(probe.dump(), "curves.json"), InputError);
  EXPECT_THROW((void)parse_pattern_rates("{", "curves.json"), InputError);
}

// 20 us alone and 70 beside a copy that ends later are 3.5 times as long, 30 and 75 us 2.5 times; the mean
// of these two is their median. 40 us beside a copy of 36 were beside nothing in the end, and products
// take multiprocessors rather than memory.
TEST(PatternRates, ExchangesBesideCopiesThatOutlastThem) {
  json probe = pattern_probe();
  EXPECT_FALSE(parse_pattern_rates(probe.dump(), "curves.json").beside_kernels);
  const auto add = [&](const char* work, double copy_bytes, double alone_us, double exchange_us,
                       double work_us) {
    for (const auto& [kind, time_us] : std::initializer_list<std::pair<const char*, double>>{
             {"exchange_alone", alone_us},
             {"exchange_beside_work", exchange_us},
             {"work_beside_exchange", work_us}}) {
      probe["overlap"].push_back({{"kind", kind},
                                  {"work", work},
                                  {"bytes_per_pair", 1e6},
                                  {"copy_bytes", copy_bytes},
                                  {"median_us", time_us}});
    }
  };
  add("copy", 1e6, 20.0, 40.0, 36.0);
  EXPECT_FALSE(parse_pattern_rates(probe.dump(), "curves.json").beside_kernels);
  add("copy", 1e8, 20.0, 70.0, 90.0);
  add("copy", 1e9, 30.0, 75.0, 500.0);
  add("product", 2048, 20.0, 22.0, 90.0);
  const PatternRates rates = parse_pattern_rates(probe.dump(), "curves.json");
  EXPECT_DOUBLE_EQ(rates.beside_kernels.value(), 3.0);
  Cluster cluster = load_cluster("h200_node");
  NcclTier tier;
  tier.rank_bandwidth = Bandwidth{300e9};
  cluster.transports = {NcclParameters{tier, std::nullopt}};
  set_pattern_rates(rates, cluster);
  const Cluster back = read_cluster(parse_yaml(to_yaml(cluster), "written"));
  EXPECT_DOUBLE_EQ(
      std::get<NcclParameters>(back.transports[0]).scale_up.value().beside_kernels.value(), 3.0);
  probe["overlap"][2]["median_us"] = 0.0;
  EXPECT_THROW((void)parse_pattern_rates(probe.dump(), "curves.json"), InputError);
}

TEST(PatternRates, LimitWhatUniformExchangesCannotShow) {
  Cluster cluster = load_cluster("h200_node");
  NcclTier tier;
  tier.rank_bandwidth = Bandwidth{300e9};
  cluster.transports = {NcclParameters{tier, std::nullopt}};
  const auto fitted = [&](const PatternRates& rates) {
    Cluster out = cluster;
    set_pattern_rates(rates, out);
    return std::get<NcclParameters>(out.transports[0]).scale_up.value();
  };
  const NcclTier four = fitted({360e9, 260e9, 320e9});
  EXPECT_DOUBLE_EQ(four.rank_bandwidth->value, 360e9);
  EXPECT_DOUBLE_EQ(four.rank_total_bandwidth->value, 600e9);
  EXPECT_DOUBLE_EQ(four.pair_bandwidth->value, 260e9);
  EXPECT_DOUBLE_EQ(four.pair_total_bandwidth->value, 320e9);
  // A pair that reaches what its ranks do has no limit of its own, and a rank that reaches no more in
  // one direction than in both has no shared one.
  const NcclTier two = fitted({290e9, 295e9, 590e9});
  EXPECT_DOUBLE_EQ(two.rank_bandwidth->value, 300e9);
  EXPECT_FALSE(two.rank_total_bandwidth);
  EXPECT_FALSE(two.pair_bandwidth);
  EXPECT_FALSE(two.pair_total_bandwidth);
}

// 360 GB/s to one rank from all others are more than the 300 GB/s that a skeleton's links got from
// uniform exchanges; links that carry more stay as they are.
TEST(PatternRates, WidenLinks) {
  for (const auto& [links, expected] : std::initializer_list<std::pair<const char*, double>>{
           {"300 GB/s", 360e9}, {"450 GB/s", 450e9}}) {
    Cluster cluster = load_cluster("h200_node", {{"scale_up.bandwidth", links}});
    NcclTier tier;
    tier.rank_bandwidth = Bandwidth{300e9};
    cluster.transports = {NcclParameters{tier, std::nullopt}};
    set_pattern_rates({360e9, 260e9, 320e9}, cluster);
    EXPECT_DOUBLE_EQ(cluster.scale_up->bandwidth.value, expected);
  }
}

// A launch of 5 us leaves 3.1 us of the 8.1 for 512 B, as many for 1 KiB, whose time is not allowed to fall,
// and 6 of the 11 us for 4 KiB; 2 KiB lie a third of the way from 1 to 4 KiB. Messages beyond the last
// have no limit.
TEST(PatternRates, LimitSingleMessages) {
  NcclTier tier;
  tier.rank_bandwidth = Bandwidth{300e9};
  StartCost start;
  start.launch = Seconds{5e-6};
  tier.start = {start};
  Cluster cluster = load_cluster("h200_node");
  cluster.transports = {NcclParameters{tier, std::nullopt}};
  PatternRates rates{360e9, 260e9, 320e9};
  rates.pair_times = {{512.0, 8.1e-6}, {1024.0, 8e-6}, {4096.0, 11e-6}};
  set_pattern_rates(rates, cluster);
  const auto& fitted = std::get<NcclParameters>(cluster.transports[0]).scale_up.value();
  const auto rate_of = [&](std::int64_t bytes) {
    for (const MessageSegment& segment : fitted.segments) {
      if (segment.up_to && segment.up_to->value == bytes) return segment.bandwidth.value().value;
    }
    return 0.0;
  };
  ASSERT_EQ(fitted.segments.size(), 8U);  // 512 to 4096 in steps of half an octave, and the rest
  EXPECT_NEAR(rate_of(512), 512.0 / 3.1e-6, 1.0);
  EXPECT_NEAR(rate_of(1024), 1024.0 / 3.1e-6, 1.0);
  EXPECT_NEAR(rate_of(2048), 2048.0 / (3.1e-6 + 2.9e-6 / 3.0), 1.0);
  EXPECT_NEAR(rate_of(4096), 4096.0 / 6e-6, 1.0);
  EXPECT_FALSE(fitted.segments.back().up_to);
  EXPECT_FALSE(fitted.segments.back().bandwidth);
}

TEST(GpuProbe, RefusesWhatIsNoWholeProbe) {
  EXPECT_EQ(refusal(small_probe()), "accepted");
  json probe = small_probe();
  probe["schema_version"] = 1;
  EXPECT_THAT(refusal(probe), HasSubstr("schema_version 1"));
  probe = small_probe();
  probe.erase("kernels");
  EXPECT_THAT(refusal(probe), HasSubstr("no measurements of the part \"kernels\""));
  probe = small_probe();
  probe["kernels"][3]["median_us"] = -1.0;
  EXPECT_THAT(refusal(probe), HasSubstr("curves.json: kernels[3]: median_us"));
  probe["kernels"][3]["median_us"] = 0.0;
  EXPECT_THAT(refusal(probe), HasSubstr("a number above zero"));
  probe = small_probe();
  probe["kernels"][2].erase("num_forward_rows");
  EXPECT_THAT(refusal(probe), HasSubstr("no number \"num_forward_rows\""));
  probe = small_probe();
  probe["kernels"][0]["type"] = "fp4";
  EXPECT_THAT(refusal(probe), HasSubstr("type \"fp4\""));
  probe = small_probe();
  probe["expert_mlp"][0]["expert_rows"] = {3, -5};
  EXPECT_THAT(refusal(probe), HasSubstr("expert_mlp[0]: expert_rows"));
  probe = small_probe();
  probe["notify"][0]["kind"] = "notify_skew";
  EXPECT_THAT(refusal(probe), HasSubstr("no entry of kind \"notify\""));
  const std::string whole = small_probe().dump();
  EXPECT_THROW((void)parse_gpu_probe(whole.substr(0, whole.size() / 2), "cut.json"), InputError);
}

std::vector<KernelPoint> kernel_points(const KernelCosts& costs) {
  std::vector<KernelPoint> points;
  for (const double hidden : {2048.0, 7168.0}) {
    for (double rows = 128; rows <= 131072; rows *= 4) {
      for (const double tokens : {rows, rows / 2, rows / 8}) {
        points.push_back({.bytes = (rows + tokens) * 2.0 * hidden, .rows = rows});
        if (costs.item_bandwidth) points.back().items = tokens;
        points.back().time_s = kernel_time_s(costs, points.back());
      }
    }
  }
  return points;
}

TEST(ProbeFit, FindsTheKernelThatWroteThePoints) {
  const KernelCosts known{{12e-6}, {2e-10}, {}, {3.6e12}, {}, {}};
  const auto fit = fit_row_kernel(kernel_points(known), kMemoryRate);
  EXPECT_NEAR(fit.costs.launch.value / known.launch.value, 1.0, 0.01);
  EXPECT_NEAR(fit.costs.row.value / known.row.value, 1.0, 0.05);
  EXPECT_NEAR(fit.costs.bandwidth.value / known.bandwidth.value, 1.0, 0.01);
  EXPECT_TRUE(fit.undetermined.empty());
  for (const double error : fit.held_out) EXPECT_LT(std::abs(error), 0.01);
}

TEST(ProbeFit, FindsWhatTheCopiesOfARowCost) {
  const KernelCosts known{{10e-6}, {2e-11}, {2e-6}, {3.6e12}, {}, {}};
  std::vector<KernelPoint> points = kernel_points(known);
  for (std::size_t i = 0; i < points.size(); ++i) {
    points[i].copies_per_row = static_cast<double>(1U << (i % 4));
    points[i].time_s = kernel_time_s(known, points[i]);
  }
  // 10 us, 4 copies of 2 us, 128 rows, and the bytes.
  EXPECT_DOUBLE_EQ(kernel_time_s(known, {.bytes = 3.6e6, .rows = 128.0, .copies_per_row = 4.0}),
                   10e-6 + 8e-6 + 128 * 2e-11 + 1e-6);
  const auto fit = fit_row_kernel(points, kMemoryRate);
  EXPECT_NEAR(fit.costs.copy.value / 2e-6, 1.0, 0.02);
  EXPECT_NEAR(fit.costs.launch.value / 10e-6, 1.0, 0.02);
}

// A token's eight rows of 7168 values and their sum are 9 * 14336 B, which a block of threads moves at 12 GB/s
// in 10.752 us: more than the 128 * 129024 B at 4 TB/s of all of them, 4.128768 us.
TEST(ProbeFit, FindsHowLongOneItemTakes) {
  const KernelCosts known{{5e-6}, {}, {}, {4e12}, Bandwidth{12e9}, {}};
  const KernelPoint few{.bytes = 128 * 129024.0, .rows = 1024.0, .items = 128.0};
  EXPECT_NEAR(kernel_time_s(known, few), 5e-6 + std::hypot(4.128768e-6, 10.752e-6), 1e-12);
  const auto fit = fit_row_kernel(kernel_points(known), kMemoryRate);
  EXPECT_NEAR(fit.costs.item_bandwidth.value().value / 12e9, 1.0, 0.02);
  EXPECT_NEAR(fit.costs.launch.value / 5e-6, 1.0, 0.02);
  EXPECT_NEAR(fit.costs.bandwidth.value / 4e12, 1.0, 0.01);
  EXPECT_FALSE(fit.costs.quantise_bandwidth.has_value());
}

// Every other point in FP8, whose tokens (half of the bytes) take as long again at 8 TB/s.
TEST(ProbeFit, FindsWhatQuantisingTakes) {
  const KernelCosts known{{10e-6}, {2e-11}, {}, {4e12}, {}, Bandwidth{8e12}};
  std::vector<KernelPoint> points = kernel_points(known);
  for (std::size_t i = 0; i < points.size(); i += 2) {
    points[i].quantised = points[i].bytes / 2.0;
    points[i].time_s = kernel_time_s(known, points[i]);
  }
  EXPECT_DOUBLE_EQ(kernel_time_s(known, {.bytes = 4e6, .quantised = 8e6}), 12e-6);
  const auto fit = fit_row_kernel(points, kMemoryRate);
  EXPECT_NEAR(fit.costs.quantise_bandwidth.value().value / 8e12, 1.0, 0.02);
  EXPECT_NEAR(fit.costs.bandwidth.value / 4e12, 1.0, 0.01);
}

TEST(ProbeFit, NamesWhatSmallSizesLeaveOpen) {
  // All of one small size: launch, index and bytes cannot be told apart.
  std::vector<KernelPoint> points(12, {.bytes = 128.0 * 4096, .rows = 128.0});
  for (KernelPoint& point : points) point.time_s = 10e-6;
  const auto fit = fit_row_kernel(points, kMemoryRate);
  EXPECT_THAT(fit.undetermined, ElementsAre("bandwidth", "row"));
  EXPECT_THROW((void)fit_row_kernel({points.begin(), points.begin() + 7}, kMemoryRate), InputError);
}

TEST(ProbeFit, FindsTheMlpThatWroteThePoints) {
  MlpCosts known;
  known.launch = {25e-6};
  known.weight_bandwidth = {4.1e12};
  known.compute_rate = {6.5e14};
  known.batch_bandwidth = {1e12};
  known.tiles = {{64, {4e14}}, {256, {6.5e14}}};
  known.tile_depth = 150.0;
  known.reads_rows = true;
  known.sharpness = 2.5;
  std::vector<GroupedMlpPoint> points;
  for (const double hidden : {2048.0, 7168.0}) {
    for (const std::size_t experts : {8, 16, 32}) {
      for (std::uint64_t rows = 1; rows <= 4096; rows *= 2) {
        points.push_back({hidden, 1408, std::vector<std::uint64_t>(experts, rows), 0.0});
        points.back().time_s =
            calibrated_mlp_time(known, hidden, 1408, points.back().expert_rows, 0.0).value;
      }
    }
  }
  const auto fit = fit_grouped_mlp(points, {9.89e14, kMemoryRate, {64, 256}});
  EXPECT_NEAR(fit.costs.weight_bandwidth.value / 4.1e12, 1.0, 0.02);
  ASSERT_EQ(fit.costs.tiles.size(), 2U);
  EXPECT_NEAR(fit.costs.tiles[0].compute_rate.value / 4e14, 1.0, 0.05);
  EXPECT_NEAR(fit.costs.tiles[1].compute_rate.value / 6.5e14, 1.0, 0.02);
  EXPECT_EQ(fit.costs.compute_rate.value, fit.costs.tiles[1].compute_rate.value);
  EXPECT_NEAR(fit.costs.tile_depth / 150.0, 1.0, 0.1);
  for (const double error : fit.held_out) EXPECT_LT(std::abs(error), 0.03);
}

// Two ranks on a GPU measured at once: each saw half of its memory, and the GPU has twice what they fitted.
// A launch is each rank's own.
TEST(ProbeFit, RanksThatSharedAGpuSawTheirPartOfIt) {
  const KernelCosts half{{12e-6}, {2e-10}, {}, {1.5e12}, {}, {}};
  GpuProbe probe;
  probe.ranks_per_gpu = 2;
  for (auto* points : {&probe.pack, &probe.forward, &probe.expand, &probe.merge, &probe.gather,
                       &probe.sum, &probe.send_index}) {
    *points = kernel_points(half);
  }
  const std::string shared = "{extends: h200_node, gpus_per_node: 4, ranks_per_gpu: 2}";
  const GpuFit fit = fit_gpu(load_cluster(shared), probe);
  const RowKernels& kernels = *fit.cluster.gpu.kernels;
  EXPECT_NEAR(kernels.expand.bandwidth.value / 3e12, 1.0, 0.01);
  EXPECT_NEAR(kernels.send_index->bandwidth.value / 3e12, 1.0, 0.01);
  EXPECT_NEAR(kernels.expand.launch.value / 12e-6, 1.0, 0.01);
  EXPECT_FALSE(kernels.forward_index.has_value());
  probe.ranks_per_gpu = 4;
  try {
    (void)fit_gpu(load_cluster(shared), probe);
    FAIL() << "a probe of four ranks per GPU was taken for one of two";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("found 2 ranks on each GPU (ranks_per_gpu), expected 4"));
  }
}

// Of ranks that share a GPU the fastest sample of a kernel counts; indices are read where the list
// `direct` is there, the send index no longer than the phase that contains it.
TEST(GpuProbe, KernelsOfSharedGpusAreThoseOfTheFastestSample) {
  json probe = small_probe();
  probe["ranks_per_gpu"] = 2;
  probe["direct"] = json::array();
  json index = kernel_entry("build_send_index", "fp8");
  index["samples_us"] = {{50.0, 40.0}, {45.0}};
  probe["kernels"].insert(probe["kernels"].begin() + 1, index);
  for (auto& entry : probe["kernels"]) {
    if (!entry.contains("samples_us")) entry["samples_us"] = {{17.0, 90.0}};
    if (entry["kind"] == "events") entry["samples_us"] = {{3.0}};
  }
  const GpuProbe read = parse_gpu_probe(probe.dump(), "curves.json");
  EXPECT_DOUBLE_EQ(read.merge.front().time_s, 17e-6);
  ASSERT_EQ(read.send_index.size(), 1U);
  EXPECT_DOUBLE_EQ(read.send_index.front().time_s, 17e-6);
  EXPECT_DOUBLE_EQ(read.send_index.front().bytes, 4.0 * 800);
  ASSERT_EQ(read.forward_index.size(), 1U);
  EXPECT_DOUBLE_EQ(read.forward_index.front().copies_per_row, 800.0 / 300.0);
  probe["kernels"][3].erase("samples_us");
  EXPECT_THAT(refusal(probe), HasSubstr("kernels[3]: found no list \"samples_us\""));
}

TEST(ProbeFit, TopologyFileReadsBackTheSame) {
  const MlpCosts mlp{{25e-6}, {4.1e12}, {6.5e14}, {1e12}, 30.0, 128, 2.5, {}, 0.0, false};
  Cluster cluster = load_cluster("h200_node");
  cluster.gpu.mlp = {{25e-6}, {4.1e12}, {6.5e14}, {1e12},
                     0.0,     1,        2.5,      {{64, {4e14}}, {256, {6.5e14}}},
                     150.0,   true};
  cluster.gpu.mlp_fp8 = mlp;
  cluster.gpu.shared_mlp = mlp;
  cluster.gpu.kernels = RowKernels{{{1e-6}, {1e-10}, {}, {1e12}, {}, Bandwidth{1e13}},
                                   {{2e-6}, {2e-10}, {2e-6}, {2e12}, {}, {}},
                                   {{3e-6}, {3e-10}, {}, {3e12}, {}, {}},
                                   {{4e-6}, {4e-10}, {}, {4e12}, Bandwidth{4e10}, {}},
                                   {{5e-6}, {5e-10}, {}, {5e12}, {}, {}},
                                   {{6e-6}, {0.0}, {}, {6e12}, {}, {}},
                                   KernelCosts{{7e-6}, {}, {}, {7e12}, {}, {}},
                                   KernelCosts{{8e-6}, {}, {}, {8e12}, {}, {}},
                                   KernelCosts{{9e-6}, {}, {9e-9}, {9e12}, {}, {}},
                                   {3e-6}};
  cluster.gpu.kernels->expand_put = KernelCosts{{3.5e-6}, {}, {}, {5e12}, {}, {}};
  cluster.gpu.kernels->pack.again = Seconds{0.7e-6};
  cluster.gpu.kernels->among_streams = Seconds{0.9e-6};
  cluster.gpu.kernels->join = Seconds{5.5e-6};
  cluster.gpu.shared_mlp->among_streams = Seconds{3.1e-6};
  DirectParameters direct;
  direct.dispatch.fixed = direct.combine.fixed = Seconds{12e-6};
  for (DirectKernel* kernel : {&direct.dispatch, &direct.combine}) {
    kernel->sm_bandwidth = kernel->port_bandwidth = Bandwidth{6e10};
  }
  direct.forward = direct.dispatch;
  direct.forward->token = Seconds{9e-8};
  cluster.transports.emplace_back(direct);
  cluster.uncertainty.scale_up = {{Seconds{20e-6}, 0.2}, {std::nullopt, 0.05}};
  cluster.uncertainty.mlp = {{std::nullopt, 0.1}};
  const std::string text = to_yaml(cluster);
  const Cluster back = read_cluster(parse_yaml(text, "written"));
  EXPECT_EQ(to_yaml(back), text);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->gather.bandwidth.value, 5e12);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->expand_put->launch.value, 3.5e-6);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->pack.again->value, 0.7e-6);
  EXPECT_FALSE(back.gpu.kernels->sum.again.has_value());
  EXPECT_DOUBLE_EQ(back.gpu.kernels->among_streams.value, 0.9e-6);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->join->value, 5.5e-6);
  EXPECT_DOUBLE_EQ(back.gpu.shared_mlp->among_streams.value, 3.1e-6);
  const auto& of_direct = std::get<DirectParameters>(back.transports.back());
  EXPECT_DOUBLE_EQ(of_direct.forward->token.value, 9e-8);
  EXPECT_FALSE(of_direct.gather.has_value());
  EXPECT_DOUBLE_EQ(back.gpu.kernels->pack.quantise_bandwidth.value().value, 1e13);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->merge.item_bandwidth.value().value, 4e10);
  EXPECT_FALSE(back.gpu.kernels->sum.item_bandwidth.has_value());
  EXPECT_DOUBLE_EQ(back.gpu.mlp_fp8->tile_padding, 30.0);
  EXPECT_EQ(back.gpu.shared_mlp->tile_rows, 128U);
  ASSERT_EQ(back.gpu.mlp->tiles.size(), 2U);
  EXPECT_EQ(back.gpu.mlp->tiles[1].rows, 256U);
  EXPECT_DOUBLE_EQ(back.gpu.mlp->tiles[0].compute_rate.value, 4e14);
  EXPECT_DOUBLE_EQ(back.gpu.mlp->tile_depth, 150.0);
  EXPECT_TRUE(back.gpu.mlp->reads_rows);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->gap.value, 3e-6);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->forward.copy.value, 2e-6);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->own_copy->bandwidth.value, 7e12);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->send_index->launch.value, 8e-6);
  EXPECT_DOUBLE_EQ(back.gpu.kernels->forward_index->copy.value, 9e-9);
  ASSERT_EQ(back.uncertainty.scale_up.size(), 2U);
  EXPECT_DOUBLE_EQ(back.uncertainty.scale_up[0].up_to->value, 20e-6);
  EXPECT_DOUBLE_EQ(back.uncertainty.mlp.at(0).relative, 0.1);
  for (const char* scale : {"[{up_to: 20 us, relative: 0.1}]", "[]", "[{relative: -1}]",
                            "[{relative: 0.1}, {relative: 0.2}]",
                            "[{up_to: 9 us, relative: 0.1}, {up_to: 9 us, relative: 0.1}, "
                            "{relative: 0.1}]"}) {
    EXPECT_THROW(
        (void)load_cluster(fmt::format("{{extends: h200_node, uncertainty: {{mlp: {}}}}}", scale)),
        InputError)
        << scale;
  }
  EXPECT_THROW(
      (void)load_cluster("{extends: h200_node, gpu: {kernels: {pack: {launch: 1 us, row: 0 s, "
                         "bandwidth: 1 TB/s}}}}"),
      InputError);
}

TEST(SharedMlp, IsOneDenseProductWhereCalibrated) {
  GpuModel gpu = load_cluster("h200_node").gpu;
  gpu.shared_mlp = MlpCosts{{10e-6}, {4e12}, {5e14}, {1e12}, 0.0, 1, 50.0, {}, 0.0, false};
  // 6 * 4096 tokens * 2048 * (2 * 1408) / 5e14 = 283.5 us, far above the weights' 8.7 us.
  EXPECT_NEAR(shared_mlp_time(gpu, {2048, 1408, PayloadType::kBf16}, 2, 4096).value, 293.5e-6,
              1e-7);
  EXPECT_EQ(shared_mlp_time(gpu, {2048, 1408, PayloadType::kBf16}, 0, 4096).value, 0.0);
}

}  // namespace
}  // namespace coterie
