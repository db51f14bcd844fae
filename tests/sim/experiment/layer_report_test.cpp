// What the report says of the layers whose times layer_program_test.cpp derives; nanoseconds.

#include "sim/experiment/layer_report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/metrics.hpp"
#include "tests/sim/program/small_layers.hpp"

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;

LayerReport report_of(const SmallLayer& run, double shift_s = 0.0) {
  return report_layer({run.setup(), run.layer(), run.resolved(), run.execution(), true, shift_s});
}

// Begin and end of a phase on every rank; empty for a phase that the report leaves out.
std::vector<std::pair<long long, long long>> phase(const LayerReport& report, Phase wanted) {
  std::vector<std::pair<long long, long long>> out;
  for (const PhaseTimes& times : report.phases) {
    if (times.phase != wanted) continue;
    for (std::size_t rank = 0; rank < times.begin_s.size(); ++rank) {
      out.emplace_back(nanoseconds(times.begin_s[rank]), nanoseconds(times.end_s[rank]));
    }
  }
  return out;
}
using Spans = std::vector<std::pair<long long, long long>>;

std::vector<long long> all_nanoseconds(std::span<const double> seconds) {
  std::vector<long long> out;
  for (const double s : seconds) out.push_back(nanoseconds(s));
  return out;
}

// A phase of transfers counts what a rank sends and what it receives: both dispatch from rank 1's
// first byte at 3700 to rank 0's last at 7932, and combine from 20512 to 29536.
TEST(LayerReport, PhasesOfTwoRanks) {
  const SmallLayer run = two_ranks_dedup();
  const LayerReport report = report_of(run);
  EXPECT_EQ(report.layer, 7U);
  EXPECT_EQ(nanoseconds(report.time_s), 30536);
  EXPECT_EQ(phase(report, Phase::kNotify), (Spans{{0, 3000}, {0, 3000}}));
  EXPECT_EQ(phase(report, Phase::kPack), (Spans{{3000, 3900}, {3000, 3700}}));
  EXPECT_EQ(phase(report, Phase::kDispatch), (Spans{{3700, 7932}, {3700, 7932}}));
  EXPECT_EQ(phase(report, Phase::kExpand), (Spans{{6712, 7612}, {7932, 9132}}));
  EXPECT_EQ(phase(report, Phase::kMlp), (Spans{{7612, 19612}, {9132, 24336}}));
  EXPECT_EQ(phase(report, Phase::kMerge), (Spans{{19612, 20512}, {24336, 25536}}));
  EXPECT_EQ(phase(report, Phase::kCombine), (Spans{{20512, 29536}, {20512, 29536}}));
  EXPECT_EQ(phase(report, Phase::kSum), (Spans{{29536, 30536}, {25536, 26336}}));
  // One hop: no forwards and no gathers.
  EXPECT_TRUE(phase(report, Phase::kForward).empty());
  EXPECT_TRUE(phase(report, Phase::kGather).empty());
  // Each needs results of both; rank 1 has them at 25536.
  EXPECT_THAT(all_nanoseconds(report.combine_ready_s), ElementsAre(25536, 25536));
  EXPECT_THAT(
      all_nanoseconds(rank_ends({run.setup(), run.layer(), run.resolved(), run.execution()})),
      ElementsAre(30536, 26336));
}

// On their own: dispatch 7932 - 3700, MLP of rank 1 15204, combine 29536 - 25536. Rank 0 ends the
// layer, after 3000 notify, 900 pack, 2812 dispatch (3900 until its expand at 6712), 900 expand,
// 12000 MLP, 900 merge, 4000 combine and 1000 sum; it waits from 20512 to 25536 for rank 1.
TEST(LayerReport, MetricsOfTwoRanks) {
  const LayerReport report = report_of(two_ranks_dedup());
  EXPECT_EQ(nanoseconds(dispatch_s(report)), 4232);
  EXPECT_EQ(nanoseconds(mlp_s(report)), 15204);
  EXPECT_EQ(nanoseconds(combine_s(report)), 4000);
  EXPECT_EQ(nanoseconds(combine_span_s(report)), 9024);
  const auto critical = critical_rank(report);
  ASSERT_TRUE(critical);
  EXPECT_EQ(critical->rank, 0U);
  EXPECT_THAT(all_nanoseconds(critical->parts.seconds),
              ElementsAre(3000, 900, 2812, 900, 12000, 900, 4000, 1000, 5024));
}

using Key = std::pair<Phase, std::string>;
std::map<Key, TransferGroup> groups_of(const LayerReport& report) {
  std::map<Key, TransferGroup> out;
  for (const TransferGroup& group : report.groups) out[{group.phase, group.tier}] = group;
  EXPECT_EQ(out.size(), report.groups.size());
  return out;
}

void expect_group(const TransferGroup& group, std::uint64_t transfers, std::uint64_t rows,
                  std::int64_t bytes, std::int64_t most_sent, std::int64_t most_received) {
  EXPECT_EQ(group.num_transfers, transfers);
  EXPECT_EQ(group.num_rows, rows);
  EXPECT_EQ(group.bytes, bytes);
  EXPECT_EQ(group.max_rank_send, most_sent);
  EXPECT_EQ(group.max_rank_receive, most_received);
}

// Dispatch: 2 rows and 3 copies one way, 2032 B; one row the other way, 1012 B; one row of one copy
// stays on each rank. Combine: 1000 B a row, the other way round.
TEST(LayerReport, TransferGroupsOfTwoRanks) {
  const auto groups = groups_of(report_of(two_ranks_dedup()));
  ASSERT_EQ(groups.size(), 4U);
  const TransferGroup& out = groups.at({Phase::kDispatch, "network"});
  expect_group(out, 2, 3, 2032 + 1012, 2032, 2032);
  EXPECT_EQ(nanoseconds(out.begin_s.value()), 3700);
  EXPECT_EQ(nanoseconds(out.end_s.value()), 7932);
  const TransferGroup& back = groups.at({Phase::kCombine, "network"});
  expect_group(back, 2, 3, 3000, 2000, 2000);
  EXPECT_EQ(nanoseconds(back.begin_s.value()), 20512);
  EXPECT_EQ(nanoseconds(back.end_s.value()), 29536);
  expect_group(groups.at({Phase::kDispatch, "local"}), 2, 2, 2024, 1012, 1012);
  expect_group(groups.at({Phase::kCombine, "local"}), 2, 2, 2000, 1000, 1000);
  EXPECT_FALSE(groups.at({Phase::kDispatch, "local"}).begin_s);
}

// Rank 0's outgoing and rank 1's incoming link carry 2032 + 1000 B, the other two 1012 + 2000; of
// equals the first counts. Messages are under way from 3700 to 7932, from 20512 to 23512 and from
// 25536 to 29536: 11232 ns, in which a link of 1 B/ns could have carried 11232 B.
TEST(LayerReport, BusiestLinkOfTwoRanks) {
  const LayerReport report = report_of(two_ranks_dedup());
  ASSERT_TRUE(report.busiest_link);
  EXPECT_EQ(report.busiest_link->name, "gpu 0 nic out");
  EXPECT_EQ(report.busiest_link->tier, "network");
  EXPECT_EQ(report.busiest_link->bytes, 3032);
  EXPECT_NEAR(report.busiest_link->utilization.value(), 3032.0 / 11232.0, 1e-9);
}

// Forwards and gathers are phases of their own, each with its kernels (a relay's copy) and messages.
// Rank 0 serves nothing: it passes expand, MLP and merge at 4600, when its own forward is copied.
// Ranks 1 and 3 take no part in the dispatch to relays, and pass it where their pack ended.
TEST(LayerReport, PhasesOfARelay) {
  const LayerReport report = report_of(relay_with_two_rounds());
  EXPECT_EQ(phase(report, Phase::kPack),
            (Spans{{3000, 3900}, {3000, 3000}, {3000, 3000}, {3000, 3000}}));
  EXPECT_EQ(phase(report, Phase::kDispatch),
            (Spans{{3900, 9932}, {3000, 3000}, {3900, 9932}, {3000, 3000}}));
  EXPECT_EQ(phase(report, Phase::kExpand),
            (Spans{{4600, 4600}, {7106, 7806}, {10332, 11032}, {12838, 13738}}));
  EXPECT_EQ(phase(report, Phase::kMlp),
            (Spans{{4600, 4600}, {7806, 12010}, {11032, 15236}, {13738, 19738}}));
  EXPECT_EQ(phase(report, Phase::kMerge),
            (Spans{{4600, 4600}, {12010, 12710}, {15236, 15936}, {19738, 20638}}));
  EXPECT_EQ(phase(report, Phase::kCombine)[0], (std::pair{23838LL, 29838LL}));
  EXPECT_EQ(phase(report, Phase::kSum)[0], (std::pair{29838LL, 30838LL}));
  // Ends of the phases with both kernels and messages: the last message of rank 0 and of rank 3,
  // which forward nothing later; rank 2 adds up b's results until 25938.
  const Spans forward = phase(report, Phase::kForward);
  EXPECT_EQ(forward[0].second, 7106);
  EXPECT_EQ(forward[2].second, 12838);
  EXPECT_EQ(forward[3].second, 12838);
  const Spans gather = phase(report, Phase::kGather);
  EXPECT_EQ(gather[0].second, 15910);
  EXPECT_EQ(gather[2].second, 25938);
  EXPECT_EQ(gather[3].second, 25638);
}

// Between nodes: a and b to rank 2, 1012 + 1020 B, and their two results. Inside nodes: 0 -> 1 and
// twice 2 -> 3 with 1012 B each. Staying: a's row for node 0 with rank 0 on the first hop, b's with
// rank 2 on the second. The NIC's way out of rank 0 takes 2032 ns, longer than any NVLink port.
TEST(LayerReport, TransfersOfARelay) {
  const LayerReport report = report_of(relay_with_two_rounds());
  const auto groups = groups_of(report);
  ASSERT_EQ(groups.size(), 8U);
  expect_group(groups.at({Phase::kDispatch, "network"}), 2, 2, 2032, 2032, 2032);
  expect_group(groups.at({Phase::kForward, "scale_up"}), 3, 3, 3036, 2024, 2024);
  expect_group(groups.at({Phase::kGather, "scale_up"}), 3, 3, 3000, 2000, 2000);
  expect_group(groups.at({Phase::kCombine, "network"}), 2, 2, 2000, 2000, 2000);
  expect_group(groups.at({Phase::kDispatch, "local"}), 1, 1, 1012, 1012, 1012);
  expect_group(groups.at({Phase::kForward, "local"}), 1, 1, 1012, 1012, 1012);
  expect_group(groups.at({Phase::kGather, "local"}), 1, 1, 1000, 1000, 1000);
  expect_group(groups.at({Phase::kCombine, "local"}), 1, 1, 1000, 1000, 1000);
  ASSERT_TRUE(report.busiest_link);
  EXPECT_EQ(report.busiest_link->tier, "network");
  EXPECT_EQ(report.busiest_link->bytes, 2032);
}

// Ranks that arrive at 1000 and 2500 begin their notify there and end it together at 5500. With a
// shift of -1000 the layer starts at zero.
TEST(LayerReport, TheWaitForTheBarrierBelongsToTheNotify) {
  const SmallLayer run({small_plan({{{0, 2}, {2, 3}}, {{0, 3}}}, DispatchPolicy::kDedup, 1)},
                       small_cluster(2, 1), small_model(), {1000e-9, 2500e-9});
  EXPECT_EQ(phase(report_of(run), Phase::kNotify), (Spans{{1000, 5500}, {2500, 5500}}));
  EXPECT_EQ(phase(report_of(run, -1000e-9), Phase::kNotify), (Spans{{0, 4500}, {1500, 4500}}));
}

// Of a lower bound only counts and the time are known.
TEST(LayerReport, OfABoundSaysNothingOfWhen) {
  const SmallLayer run = two_ranks_dedup();
  const LayerReport report =
      report_layer({run.setup(), run.layer(), run.resolved(), run.resolved().bound, false});
  EXPECT_TRUE(report.phases.empty());
  EXPECT_TRUE(report.combine_ready_s.empty());
  const auto groups = groups_of(report);
  expect_group(groups.at({Phase::kDispatch, "network"}), 2, 3, 3044, 2032, 2032);
  EXPECT_FALSE(groups.at({Phase::kDispatch, "network"}).begin_s);
  EXPECT_FALSE(report.busiest_link->utilization);
}

// The timeline's kernels are on the rank's track and its transfers on one per phase. Of four bins of
// 7634 ns the first holds the dispatch until then: 0's 2032 B flow from 5900 to 7932, so 1734 B.
TEST(LayerReport, TimelineOfTwoRanks) {
  const SmallLayer run = two_ranks_dedup();
  const LayerRun layer_run{run.setup(), run.layer(), run.resolved(), run.execution()};
  const Timeline timeline = layer_timeline(layer_run, report_layer(layer_run), 1, 4);
  const auto has = [&](const std::string& track, const std::string& name, long long begin,
                       long long end) {
    return std::any_of(timeline.spans.begin(), timeline.spans.end(), [&](const auto& span) {
      return span.track == track && span.name == name && nanoseconds(span.begin_s) == begin &&
             nanoseconds(span.end_s) == end;
    });
  };
  EXPECT_TRUE(has("rank 0", "mlp", 7612, 19612));
  EXPECT_TRUE(has("rank 1 dispatch", "dispatch", 3700, 7932));
  ASSERT_FALSE(timeline.samples.empty());
  EXPECT_EQ(timeline.samples.front().track, "gpu 0 nic out");
  EXPECT_NEAR(timeline.samples.front().value, 1734.0 / 7634.0, 1e-6);  // GB/s, as B/ns
}

}  // namespace
}  // namespace coterie::testing
