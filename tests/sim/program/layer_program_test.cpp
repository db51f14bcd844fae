// The program of a layer, counted by hand: what every kernel and message costs and what it waits
// for. Hardware, sizes and the cost of the MLP are those of small_layers.hpp; all times are
// nanoseconds.

#include "sim/program/layer_program.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/sim/program/small_layers.hpp"

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::UnorderedElementsAre;

// A phase's messages between ranks, in the order of the program.
std::vector<Timed> messages(const SmallLayer& run, Phase phase) {
  std::vector<Timed> out;
  const Program& program = run.layer().program;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (run.layer().phase[op] != phase || !program.is_transfer(op)) continue;
    out.push_back({program.src[op], program.dst[op], nanoseconds(run.execution().start_s[op]),
                   nanoseconds(run.execution().finish_s[op])});
  }
  return out;
}

// A phase's kernels that take time, likewise; what has nothing to do takes none.
std::vector<Timed> kernels(const SmallLayer& run, Phase phase) {
  std::vector<Timed> out;
  const Program& program = run.layer().program;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (run.layer().phase[op] != phase || program.is_transfer(op)) continue;
    const Timed timed{program.src[op], program.dst[op], nanoseconds(run.execution().start_s[op]),
                      nanoseconds(run.execution().finish_s[op])};
    if (timed.begin != timed.end) out.push_back(timed);
  }
  return out;
}

//                                 rank 0                                 rank 1
// notify                                                            0..3000 both
// pack      2 rows read and written:  4000 B                  1 row: 2000 B
//           500 + 400                          3000..3900     500 + 200            3000..3700
// dispatch  2 * 1004 + 3 * 8 = 2032 B                         1012 B
//           2000 + 2032                        3900..7932     2000 + 1012          3700..6712
// expand    rows a, c to 2 copies: 4000 B                     rows a, b, c to 4: 7000 B
//           500 + 400, from c's arrival        6712..7612     500 + 700            7932..9132
// MLP       expert 0 two tokens, 1 none: 1000 + 5000          2 and 3 two each: 1000 + 10000
//           shared, two tokens: 1000 + 5000                   one token: 1000 + 3204
//                                              7612..19612                         9132..24336
// merge     as expand: 900                    19612..20512    1200                24336..25536
// combine   1 row: 2000 + 1000                20512..23512    2 rows: 2000 + 2000 25536..29536
// sum       3 results to 2 tokens: 5000 B                     2 to 1: 3000 B
//           500 + 500, from 1's results       29536..30536    500 + 300           25536..26336
//
// Rank 1's sum begins with its own merge, the last of its results.
TEST(LayerProgram, TwoRanksWithDeduplication) {
  const SmallLayer run = two_ranks_dedup();
  EXPECT_THAT(kernels(run, Phase::kNotify),
              ElementsAre(Timed{0, 0, 0, 3000}, Timed{1, 1, 0, 3000}));
  EXPECT_THAT(kernels(run, Phase::kPack),
              ElementsAre(Timed{0, 0, 3000, 3900}, Timed{1, 1, 3000, 3700}));
  EXPECT_THAT(messages(run, Phase::kDispatch),
              ElementsAre(Timed{0, 1, 3900, 7932}, Timed{1, 0, 3700, 6712}));
  EXPECT_THAT(kernels(run, Phase::kExpand),
              ElementsAre(Timed{0, 0, 6712, 7612}, Timed{1, 1, 7932, 9132}));
  EXPECT_THAT(kernels(run, Phase::kMlp),
              ElementsAre(Timed{0, 0, 7612, 19612}, Timed{1, 1, 9132, 24336}));
  EXPECT_THAT(kernels(run, Phase::kMerge),
              ElementsAre(Timed{0, 0, 19612, 20512}, Timed{1, 1, 24336, 25536}));
  EXPECT_THAT(messages(run, Phase::kCombine),
              ElementsAre(Timed{0, 1, 20512, 23512}, Timed{1, 0, 25536, 29536}));
  EXPECT_THAT(kernels(run, Phase::kSum),
              ElementsAre(Timed{0, 0, 29536, 30536}, Timed{1, 1, 25536, 26336}));
  EXPECT_EQ(nanoseconds(run.execution().makespan_s), 30536);
}

// The same with the calibrated kernels of our runtime (with_row_kernels), which pack own rows too, and
// 100 ns between any two phases of a rank. An exchange records an event of its own: 100 ns more, which
// stand before it.
//                                 rank 0                                 rank 1
// notify                                                            0..3000 both
// pack      2 tokens, 3 rows: 5000 B                          1 token, 2 rows: 3000 B
//           1000 + 30 + 500                    3100..4630     1000 + 20 + 300      3100..4420
// dispatch  100, then 2000 + 2032              4730..8862     100, 2000 + 1012     4520..7632
// expand    2 rows to 2 copies: 1000 + 20 + 400, and 3 to 4: 1000 + 40 + 700
//                                              7732..9152                          8962..10702
// MLP                                          9252..21252                        10802..26006
// merge     as expand                         21352..22772                        26106..27846
// combine   100, then 2000 + 1000             22872..25972    100, 2000 + 2000    27946..32046
//           one own row each, when all of a rank's messages are there: 200 + 200
//                                             32046..32446                        32046..32446
// sum       3 results, 2 tokens, 2 shared     32546..34276    2, 1, 1             32546..33966
TEST(LayerProgram, CalibratedKernelsAndEvents) {
  const SmallLayer run = two_ranks_dedup(with_row_kernels(small_cluster(2, 1)));
  EXPECT_THAT(kernels(run, Phase::kPack),
              UnorderedElementsAre(Timed{0, 0, 3100, 4630}, Timed{1, 1, 3100, 4420},
                                   Timed{0, 0, 3000, 3100}, Timed{1, 1, 3000, 3100}));
  EXPECT_THAT(messages(run, Phase::kDispatch),
              ElementsAre(Timed{0, 1, 4830, 8862}, Timed{1, 0, 4620, 7632}));
  EXPECT_THAT(messages(run, Phase::kCombine),
              ElementsAre(Timed{0, 1, 22972, 25972}, Timed{1, 0, 28046, 32046}));
  const std::vector<Timed> combine = kernels(run, Phase::kCombine);
  EXPECT_THAT(combine, IsSupersetOf({Timed{0, 0, 22872, 22972}, Timed{1, 1, 27946, 28046},
                                     Timed{0, 0, 32046, 32446}, Timed{1, 1, 32046, 32446}}));
  EXPECT_THAT(kernels(run, Phase::kSum),
              IsSupersetOf({Timed{0, 0, 32546, 34276}, Timed{1, 1, 32546, 33966}}));
  EXPECT_EQ(nanoseconds(run.execution().makespan_s), 34276);
}

// The same over the transport `direct`, without latencies: of pack the index is left (400 ns, 10 per row and
// 4 B/ns of 4 B per pair), own rows are read among the tokens, and the combine sums.  A put or pull
// starts in 1100 ns and moves 2 B/ns on its two multiprocessors. Rank 0 has its row at 4834 but expands
// behind its own put, on whose stream it does.
//                                 rank 0                                 rank 1
// notify    2000
// pack      3 rows, 4 pairs: 434              2100..2534     2 rows, 2 pairs: 422  2100..2522
// dispatch  100, 1100, then 2 tokens and the rows, which the NIC passes on at 1 B/ns: 2032; 1012
//                                             3834..5866                           3822..4834
// expand    as above                          5966..7386                           5966..7706
// MLP                                         7486..19486                          7806..23010
// merge                                       19586..21006                         23110..24850
// combine   100, then 300 from when both are ready (25050) and 1100; 3 results of 1000 B, and for 2 tokens
//           the sum and what the shared expert adds: 7000 B; 2 results, 1 token: 4000 B
//                                             26450..29950                         26450..28450
// sum       its events                        30050..30150
TEST(LayerProgram, DirectPutsAndPullsBesideTheCalibratedKernels) {
  Cluster cluster = with_row_kernels(small_cluster(2, 1));
  cluster.nic->latency = Seconds{};
  cluster.gpu.kernels->send_index =
      KernelCosts{Seconds{400e-9}, Seconds{10e-9}, {}, Bandwidth{4e9}, {}, {}};
  DirectKernel kernel;
  kernel.fixed = Seconds{1000e-9};
  kernel.peer = Seconds{100e-9};
  kernel.sm_bandwidth = Bandwidth{1e9};
  kernel.port_bandwidth = Bandwidth{100e9};
  cluster.transports = {
      DirectParameters{2, Seconds{2000e-9}, Seconds{300e-9}, kernel, kernel, {}, {}}};
  const SmallLayer run = two_ranks_dedup(cluster, {"direct", {}});
  EXPECT_THAT(kernels(run, Phase::kPack),
              UnorderedElementsAre(Timed{0, 0, 2100, 2534}, Timed{1, 1, 2100, 2522},
                                   Timed{0, 0, 2000, 2100}, Timed{1, 1, 2000, 2100}));
  EXPECT_THAT(messages(run, Phase::kDispatch),
              UnorderedElementsAre(Timed{0, 1, 3834, 5866}, Timed{1, 0, 3822, 4834}));
  EXPECT_THAT(kernels(run, Phase::kExpand),
              IsSupersetOf({Timed{0, 0, 5966, 7386}, Timed{1, 1, 5966, 7706}}));
  EXPECT_THAT(kernels(run, Phase::kMlp),
              IsSupersetOf({Timed{0, 0, 7486, 19486}, Timed{1, 1, 7806, 23010}}));
  EXPECT_THAT(messages(run, Phase::kCombine),
              UnorderedElementsAre(Timed{0, 1, 26450, 28450}, Timed{1, 0, 26450, 29950}));
  EXPECT_THAT(kernels(run, Phase::kSum), IsSupersetOf({Timed{0, 0, 30050, 30150}}));
  EXPECT_EQ(nanoseconds(run.execution().makespan_s), 30150);
}

// As two_ranks_dedup over `direct`, dispatched in FP8 rows of 600 B. In one round a rank's own row is left among
// the tokens, in BF16, and the expansion rounds it:
//   rank 0   one row of 600 B, its own of 1000 B, 2 copies of 1000 B: 1000 + 20 + 360
//   rank 1   two rows of 600 B, its own, 4 copies:                    1000 + 40 + 620
// On the way over a relay, which each rank is here of its own node, own rows are put, too, and stand in FP8:
//   rank 0   two rows: 1000 + 20 + 320         rank 1   three rows: 1000 + 40 + 580
TEST(LayerProgram, ExpansionReadsOwnTokensOfAnFp8DispatchInBf16) {
  Cluster cluster = with_row_kernels(small_cluster(2, 1));
  DirectKernel kernel;
  kernel.fixed = Seconds{1000e-9};
  kernel.sm_bandwidth = Bandwidth{1e9};
  kernel.port_bandwidth = Bandwidth{100e9};
  cluster.transports = {
      DirectParameters{2, Seconds{2000e-9}, Seconds{300e-9}, kernel, kernel, {}, {}}};
  const auto expanded_ns = [&](DispatchPolicy policy) {
    const SmallLayer run({small_plan({{{0, 2}, {2, 3}}, {{0, 3}}}, policy, 1)}, cluster,
                         small_model(), {}, {"direct", {}}, PayloadType::kFp8, Bytes{600});
    const Program& program = run.layer().program;
    std::vector<long long> out(2, 0);
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      if (run.layer().phase[op] != Phase::kExpand || !program.flows(op)) continue;
      out[program.src[op]] +=
          nanoseconds(run.execution().finish_s[op] - run.execution().start_s[op]);
    }
    return out;
  };
  EXPECT_THAT(expanded_ns(DispatchPolicy::kDedup), ElementsAre(1380, 1660));
  EXPECT_THAT(expanded_ns(DispatchPolicy::kHierarchical), ElementsAre(1340, 1620));
}

// Two ranks of one node, each with one token for its own two experts: nothing crosses a link. The calibrated
// MLP launches in 1000 ns and takes, per expert with one token, 30000 B of weights at 10 B/ns and then
// 30000 flop at 12 flop/ns: 3000 + 2500; the shared expert launches in 500 ns and takes as much.
//
// Own rows are not packed.
//
// A GPU each:    expand    500 + 3000 B                                         3000..3800
//                MLP       1000 + 2 * 5500 + 500 + 5500                         3800..21800
// One GPU for both: copies share its memory, and of the MLPs the launches pass side by side while what
// multiplies takes turns.
//                expand    500 + 6000 B                                         3000..4100
//                MLP       1500, then 2 * 16500                                 4100..38600
TEST(LayerProgram, LaunchesOfAnMlpPassWhileAnotherRankHasTheGpu) {
  Cluster cluster = small_cluster(1, 2);
  MlpCosts costs;
  costs.launch = Seconds{1000e-9};
  costs.weight_bandwidth = Bandwidth{10e9};
  costs.compute_rate = ComputeRate{12e9};
  costs.batch_bandwidth = Bandwidth{1e12};
  costs.sharpness = 1.0;
  cluster.gpu.mlp = costs;
  costs.launch = Seconds{500e-9};
  cluster.gpu.shared_mlp = costs;
  ModelShape model = small_model();
  model.num_shared_experts = 1;
  model.shared_intermediate = 10;
  const std::vector<LayerPlan> plans{small_plan({{{0, 1}}, {{2, 3}}}, DispatchPolicy::kDedup, 2)};
  EXPECT_THAT(kernels(SmallLayer(plans, cluster, model), Phase::kMlp),
              ElementsAre(Timed{0, 0, 3800, 21800}, Timed{1, 1, 3800, 21800}));
  cluster.ranks_per_gpu = 2;
  EXPECT_THAT(kernels(SmallLayer(plans, cluster, model), Phase::kMlp),
              ElementsAre(Timed{0, 0, 4100, 38600}, Timed{1, 1, 4100, 38600}));
}

// Every round of a relay has a kernel and an event of its own.
//   forward   a, at rank 0 and at rank 2: 1 row to 1, one copy: 1000 + 10 + 50 + 200 + 100 = 1360
//             b: 1 row to 2, two copies: 1000 + 20 + 100 + 300 + 100 = 1520
//   gather    a: 1 result to 1: 1000 + 10 + 200 + 100 = 1310; b: 2 to 1: 1000 + 20 + 300 + 100 = 1420
//             rank 2's own result of b is copied: 200 + 200 = 400
TEST(LayerProgram, RoundsOfARelayHaveEvents) {
  const SmallLayer run = relay_with_two_rounds(with_row_kernels(small_cluster(2, 2)));
  const auto lengths = [&](Phase phase) {
    std::vector<long long> out;
    for (const Timed& timed : kernels(run, phase)) {
      if (timed.end - timed.begin > 100) out.push_back(timed.end - timed.begin);
    }
    return out;
  };
  EXPECT_THAT(lengths(Phase::kForward), ElementsAre(1360, 1360, 1520));
  EXPECT_THAT(lengths(Phase::kGather), UnorderedElementsAre(400, 1310, 1310, 1420));
  // The second hop has a stream of its own, which begins with an event: 100 ns after a has come to rank
  // 2, and so does the first hop's combine, 100 ns after rank 2 has summed the result of a.
  const auto first = [](const std::vector<Timed>& all, const auto& matches) {
    Timed found;
    for (const Timed& timed : all) {
      if (matches(timed) && (found.end == 0 || timed.end < found.end)) found = timed;
    }
    return found;
  };
  const Timed a = first(messages(run, Phase::kDispatch),
                        [](const Timed& timed) { return timed.src == 0 && timed.dst == 2; });
  EXPECT_THAT(kernels(run, Phase::kForward),
              IsSupersetOf({Timed{2, 2, a.end + 100, a.end + 1460}}));
  const Timed summed = first(kernels(run, Phase::kGather), [](const Timed& timed) {
    return timed.src == 2 && timed.end - timed.begin == 1310;
  });
  const Timed home = first(messages(run, Phase::kCombine),
                           [](const Timed& timed) { return timed.src == 2 && timed.dst == 0; });
  // The exchange's own event, 100 ns, stands before it too.
  EXPECT_EQ(home.begin, summed.end + 200);
}

TEST(LayerProgram, WaitingStreamsOfTwoHopsCostLaunchesAndJoins) {
  Cluster cluster = with_row_kernels(small_cluster(2, 2));
  const SmallLayer run = relay_with_two_rounds(cluster);
  // 50 ns for each of pack, forward, expand, merge, gather and sum, and 200 before expand and sum.
  cluster.gpu.kernels->among_streams = Seconds{50e-9};
  cluster.gpu.kernels->join = Seconds{300e-9};
  const SmallLayer among = relay_with_two_rounds(cluster);
  const auto makespan_ns = [](const SmallLayer& layer) {
    return nanoseconds(layer.execution().makespan_s);
  };
  EXPECT_EQ(makespan_ns(among) - makespan_ns(run), 6 * 50 + 2 * 200);
  // A plan of one hop has one stream.
  EXPECT_EQ(makespan_ns(two_ranks_dedup(cluster)),
            makespan_ns(two_ranks_dedup(with_row_kernels(small_cluster(2, 2)))));
}

// Packs of several rounds: the second takes 300 ns where the first takes 1000, or 900 without an event of its
// own, which is what stands for it where nothing is said.
TEST(LayerProgram, FurtherRoundsOfAPackTakeWhatTheyWereMeasuredToTake) {
  Cluster cluster = with_row_kernels(small_cluster(2, 2));
  const auto packed_ns = [&] {
    long long longest = 0;
    for (const Timed& timed : kernels(relay_with_two_rounds(cluster), Phase::kPack)) {
      longest = std::max(longest, timed.end - timed.begin);
    }
    return longest;
  };
  const long long before = packed_ns();
  cluster.gpu.kernels->pack.again = Seconds{300e-9};
  EXPECT_EQ(before - packed_ns(), 900 - 300);
}

// Rows of the same messages: what the report counts.
TEST(LayerProgram, KnowsTheRowsOfItsMessages) {
  const SmallLayer run = two_ranks_dedup();
  std::vector<std::uint32_t> rows;
  for (std::size_t op = 0; op < run.layer().phase.size(); ++op) {
    if (run.layer().program.is_transfer(op)) rows.push_back(run.layer().num_rows[op]);
  }
  EXPECT_THAT(rows, ElementsAre(2U, 1U, 1U, 2U));  // dispatch from 0 and 1, combine from 0 and 1
}

// Out:
//   pack      rank 0: a and b for node 1, 4000 B: 500 + 400                      3000..3900
//             the others have nothing to pack                                    3000
//   dispatch  0 -> 2 a: 2000 + 1012                                              3900..6912
//             0 -> 2 b: one at a time, then 2000 + 1020                          6912..9932
//   forward   rank 0 copies a's row, 2000 B: 500 + 200                           3900..4600
//             rank 2 copies a's row: 500 + 200, when a is there                  6912..7612
//             rank 2 copies b's two rows, 4000 B; its kernel runs already: 400   9932..10332
//             0 -> 1 a: 1012 B at 2 B/ns: 2000 + 506                             4600..7106
//             2 -> 3 a: the same, while b is still on its way                    7612..10118
//             2 -> 3 b: the same                                                10332..12838
// Experts:
//   expand    rank 1: one row to one copy, 2000 B: 500 + 200, at a               7106..7806
//             rank 2: the same, when the last of its rows, b, is copied         10332..11032
//             rank 3: two rows to two copies: 500 + 400, at b                   12838..13738
//   MLP       ranks 1 and 2, one token: 1000 + 3204                    7806..12010, 11032..15236
//             rank 3, two: 1000 + 5000                                          13738..19738
//   merge     as expand: 700, 700, 900              12010..12710, 15236..15936, 19738..20638
// Back:
//   gather    1 -> 0 a: 1000 B: 2000 + 500                                      12710..15210
//             3 -> 2 a, then b: the same, one at a time           20638..23138, 23138..25638
//             rank 0 adds up a: one result in, one out, 2000 B: 500 + 200       15210..15910
//             rank 2 adds up a: the same, before b's are there                  23138..23838
//             rank 2 adds up b: two in, one out, 3000 B, running already: 300   25638..25938
//   combine   2 -> 0 a: 2000 + 1000                                             23838..26838
//             2 -> 0 b: ready at 25938, one at a time                           26838..29838
//   sum       rank 0: three results to two tokens, 5000 B: 500 + 500            29838..30838
//
// With a relay that waited for both rounds, 2 -> 3 a could not begin before 9932, and 2 -> 0 a not
// before 25638.
TEST(LayerProgram, ARelayPassesRoundsOn) {
  const SmallLayer run = relay_with_two_rounds();
  ASSERT_EQ(run.setup().groups.front().num_rounds, 2U);
  EXPECT_THAT(kernels(run, Phase::kPack), ElementsAre(Timed{0, 0, 3000, 3900}));
  EXPECT_THAT(messages(run, Phase::kDispatch),
              ElementsAre(Timed{0, 2, 3900, 6912}, Timed{0, 2, 6912, 9932}));
  EXPECT_THAT(
      kernels(run, Phase::kForward),
      ElementsAre(Timed{0, 0, 3900, 4600}, Timed{2, 2, 6912, 7612}, Timed{2, 2, 9932, 10332}));
  EXPECT_THAT(
      messages(run, Phase::kForward),
      ElementsAre(Timed{0, 1, 4600, 7106}, Timed{2, 3, 7612, 10118}, Timed{2, 3, 10332, 12838}));
  EXPECT_THAT(
      kernels(run, Phase::kExpand),
      ElementsAre(Timed{1, 1, 7106, 7806}, Timed{2, 2, 10332, 11032}, Timed{3, 3, 12838, 13738}));
  EXPECT_THAT(
      kernels(run, Phase::kMlp),
      ElementsAre(Timed{1, 1, 7806, 12010}, Timed{2, 2, 11032, 15236}, Timed{3, 3, 13738, 19738}));
  EXPECT_THAT(
      kernels(run, Phase::kMerge),
      ElementsAre(Timed{1, 1, 12010, 12710}, Timed{2, 2, 15236, 15936}, Timed{3, 3, 19738, 20638}));
  EXPECT_THAT(
      messages(run, Phase::kGather),
      ElementsAre(Timed{1, 0, 12710, 15210}, Timed{3, 2, 20638, 23138}, Timed{3, 2, 23138, 25638}));
  EXPECT_THAT(
      kernels(run, Phase::kGather),
      ElementsAre(Timed{0, 0, 15210, 15910}, Timed{2, 2, 23138, 23838}, Timed{2, 2, 25638, 25938}));
  EXPECT_THAT(messages(run, Phase::kCombine),
              ElementsAre(Timed{2, 0, 23838, 26838}, Timed{2, 0, 26838, 29838}));
  EXPECT_THAT(kernels(run, Phase::kSum), ElementsAre(Timed{0, 0, 29838, 30838}));
}

// Rank 0 owns two tokens, both for experts 2 and 3 of rank 1, which owns none.
//   rank 0: pack 2 rows: 900                        3000..3900
//           dispatch 2 * 1004 + 4 * 8 = 2040 B      3900..7940
//   rank 1: expand 2 rows to 4 copies, 6000 B: 1100 7940..9040
//           MLP, two experts of two tokens: 11000   9040..20040
//           merge: 1100                            20040..21140
//           combine 2 rows: 2000 + 2000            21140..25140
//   rank 0: sum, 2 results to 2 tokens, 4000 B: 900 25140..26040
// No kernel of rank 0 belongs to experts, none of rank 1 to tokens; both take part in the notify.
TEST(LayerProgram, RanksThatServeOrOwnNothing) {
  const SmallLayer run({small_plan({{{2, 3}, {2, 3}}, {}}, DispatchPolicy::kDedup, 1)},
                       small_cluster(2, 1));
  EXPECT_THAT(kernels(run, Phase::kNotify),
              ElementsAre(Timed{0, 0, 0, 3000}, Timed{1, 1, 0, 3000}));
  EXPECT_THAT(kernels(run, Phase::kPack), ElementsAre(Timed{0, 0, 3000, 3900}));
  EXPECT_THAT(messages(run, Phase::kDispatch), ElementsAre(Timed{0, 1, 3900, 7940}));
  EXPECT_THAT(kernels(run, Phase::kExpand), ElementsAre(Timed{1, 1, 7940, 9040}));
  EXPECT_THAT(kernels(run, Phase::kMlp), ElementsAre(Timed{1, 1, 9040, 20040}));
  EXPECT_THAT(kernels(run, Phase::kMerge), ElementsAre(Timed{1, 1, 20040, 21140}));
  EXPECT_THAT(messages(run, Phase::kCombine), ElementsAre(Timed{1, 0, 21140, 25140}));
  EXPECT_THAT(kernels(run, Phase::kSum), ElementsAre(Timed{0, 0, 25140, 26040}));
}

// Every row stays on its rank: no message, and the layer takes what its kernels take. Rank 0 owns
// one token for its experts 0 and 1: expand 1 row to 2 copies, 3000 B: 800; MLP 1000 + 2 * 3204;
// merge 800; sum 1 result to 1 token, 2000 B: 700.
TEST(LayerProgram, RowsThatStayCrossNothing) {
  const SmallLayer run({small_plan({{{0, 1}}, {}}, DispatchPolicy::kDedup, 1)},
                       small_cluster(2, 1));
  EXPECT_THAT(messages(run, Phase::kDispatch), IsEmpty());
  EXPECT_THAT(messages(run, Phase::kCombine), IsEmpty());
  EXPECT_EQ(nanoseconds(run.execution().makespan_s), 3000 + 800 + 7408 + 800 + 700);
}

// Rank 1 reaches the layer at 2500, rank 0 at 1000: both pass the barrier at 2500, and all of the
// first test follows from there.
TEST(LayerProgram, TheBarrierWaitsForTheLastRank) {
  const SmallLayer run({small_plan({{{0, 2}, {2, 3}}, {{0, 3}}}, DispatchPolicy::kDedup, 1)},
                       small_cluster(2, 1), small_model(), {1000e-9, 2500e-9});
  // The ranks' ways to the barrier, then the notify itself.
  EXPECT_THAT(kernels(run, Phase::kNotify),
              ElementsAre(Timed{0, 0, 0, 1000}, Timed{1, 1, 0, 2500}, Timed{0, 0, 2500, 5500},
                          Timed{1, 1, 2500, 5500}));
  EXPECT_THAT(messages(run, Phase::kDispatch),
              ElementsAre(Timed{0, 1, 6400, 10432}, Timed{1, 0, 6200, 9212}));
}

// Two EP groups of one rank each: the second has the GPU behind the first's, and a barrier of its
// own. Its token's experts take 3204 longer (two instead of one).
TEST(LayerProgram, GroupsAreIndependent) {
  const SmallLayer run({small_plan({{{0}}}, DispatchPolicy::kDedup, 1),
                        small_plan({{{0, 1}}}, DispatchPolicy::kDedup, 1)},
                       small_cluster(2, 1), small_model(), {0.0, 9000e-9});
  EXPECT_THAT(kernels(run, Phase::kMlp),
              ElementsAre(Timed{0, 0, 3700, 3700 + 4204}, Timed{1, 1, 12800, 12800 + 7408}));
}

TEST(LayerProgram, RefusesGroupsThatDoNotFit) {
  const std::vector<LayerPlan> plans(2, small_plan({{{0, 2}}, {}}, DispatchPolicy::kDedup, 1));
  const LayerSetup setup{plans, {Bytes{1000}, Bytes{1000}}, std::nullopt, {"ideal", {}}, {}};
  EXPECT_THROW((void)build_layer(setup, small_cluster(3, 1)), InputError);
}

}  // namespace
}  // namespace coterie::testing
