// What kernels cost, and how those of one GPU share it: known answers on the GPU of
// small_layers.hpp, which reaches 10 B/ns of its memory and 12 flop/ns, and launches in 500 ns.

#include "sim/program/kernels.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "tests/sim/program/small_layers.hpp"

namespace coterie::testing {
namespace {

// What was asked for, whoever moves the rows; else what they are expanded to, or what they are.
TEST(ExpertPayload, IsWhatTheExperimentSaysOrWhatTheRowsAre) {
  GpuModel plain;
  GpuModel expanding;
  expanding.kernels.emplace();
  const PayloadType bf16 = PayloadType::kBf16;
  const PayloadType fp8 = PayloadType::kFp8;
  EXPECT_EQ(expert_payload(plain, true, fp8), fp8);
  EXPECT_EQ(expert_payload(expanding, true, fp8), bf16);
  EXPECT_EQ(expert_payload(expanding, false, fp8), fp8);
  EXPECT_EQ(expert_payload(expanding, true, bf16, fp8), fp8);
  EXPECT_EQ(expert_payload(plain, true, fp8, bf16), bf16);
}

TEST(KernelCosts, ACopyIsItsLaunchAndItsBytes) {
  // 4000 B at 10 B/ns after 500 ns.
  EXPECT_EQ(nanoseconds(copy_time(small_gpu(), 4000.0).value), 900);
  EXPECT_EQ(copy_time(small_gpu(), 0.0).value, 0.0);
}

// One token: 32040 B of memory, 3204 ns. Two: 60000 flop, 5000 ns. An expert without tokens costs
// nothing; the two launches are paid once.
TEST(KernelCosts, TheMlpIsARooflinePerExpert) {
  const MlpShape shape{500, 10, PayloadType::kBf16};
  const auto ns = [&](const std::vector<std::uint64_t>& tokens) {
    return nanoseconds(mlp_time(small_gpu(), shape, tokens).value);
  };
  EXPECT_EQ(ns({1}), 1000 + 3204);
  EXPECT_EQ(ns({2}), 1000 + 5000);
  EXPECT_EQ(ns({1, 0, 2}), 1000 + 3204 + 5000);
  EXPECT_EQ(ns({0, 0}), 0);
  EXPECT_EQ(ns({}), 0);
}

// FP8 at hidden 1280: a row has 1280 B and 10 scales of 4 B. With intermediate size 10 the weights
// are 3 * 1280 * 10 = 38400 B; a token moves 1320 B in, 2560 B out and 2 * 10 B of activations. One
// token: 42300 B, 4230 ns, against 6 * 1280 * 10 = 76800 flop at 24 flop/ns, 3200 ns. Two: 6400 ns
// of arithmetic against 46200 B, 4620 ns.
TEST(KernelCosts, Fp8HalvesTheWeightsAndDoublesTheRate) {
  const MlpShape shape{1280, 10, PayloadType::kFp8};
  const std::uint64_t one[]{1};
  const std::uint64_t two[]{2};
  EXPECT_EQ(nanoseconds(mlp_time(small_gpu(), shape, one).value), 1000 + 4230);
  EXPECT_EQ(nanoseconds(mlp_time(small_gpu(), shape, two).value), 1000 + 6400);
}

// Weights of one expert: 3 * 500 * 10 * 2 = 30000 B at 10 B/ns, 3000 ns. A token: 30000 flop at 30
// flop/ns, 1000 ns. With two rows of padding two tokens count as four: 4000 ns. At a sharpness of 2
// the two add up like the sides of a right triangle: 5000 ns, and once more for the next expert.
// 100 copies of the batch: 100 * 2 * (2 * 500 + 3 * 10) B at 50 B/ns, 4120 ns. The launch: 700 ns.
TEST(KernelCosts, ACalibratedMlpCountsPaddingAndBatch) {
  MlpCosts costs;
  costs.launch = Seconds{700e-9};
  costs.weight_bandwidth = Bandwidth{10e9};
  costs.compute_rate = ComputeRate{30e9};
  costs.batch_bandwidth = Bandwidth{50e9};
  costs.tile_padding = 2.0;
  costs.sharpness = 2.0;
  const std::vector<std::uint64_t> tokens{2, 0, 2};
  EXPECT_EQ(nanoseconds(calibrated_mlp_time(costs, 500, 10, tokens, 100.0).value),
            700 + 2 * 5000 + 4120);
  EXPECT_EQ(calibrated_mlp_time(costs, 500, 10, {}, 0.0).value, 0.0);

  // On a GPU that carries these costs they replace the roofline; a dispatched batch has no copies.
  GpuModel gpu = small_gpu();
  gpu.mlp = costs;
  EXPECT_EQ(nanoseconds(mlp_time(gpu, {500, 10, PayloadType::kBf16}, tokens).value),
            700 + 2 * 5000);
  // FP8 reads the weights in half the time, 1500 ns, and multiplies at twice the rate, 2000 ns:
  // together 2500.
  EXPECT_EQ(nanoseconds(mlp_time(gpu, {500, 10, PayloadType::kFp8}, tokens).value), 700 + 2 * 2500);
}

// One expert of 500 * 10, sharpness so high that the larger term alone counts, weights of 30000 B at 1000
// B/ns (30 ns). Three rows are one tile of 4 (at 40 flop/ns) or of 16 (at 120): 4 * 30000 / 40 = 3000 ns
// against 4000. Twelve rows are three tiles of 4 (9000 ns) or one of 16. A tile depth of 4 values counts
// 2 * 4 * (2 * 10 + 500) = 4160 flop more per row: 4 * 34160 / 40 = 3416 ns. Rows move 2 * (2 * 500 + 3 * 10)
// = 2060 B each, once asked for: at 1 B/ns with the weights 30000 + 3 * 2060 ns.
TEST(KernelCosts, ACalibratedMlpTakesItsBestTile) {
  MlpCosts costs;
  costs.weight_bandwidth = Bandwidth{1000e9};
  costs.batch_bandwidth = Bandwidth{1e9};
  costs.sharpness = 100.0;
  costs.tiles = {{4, ComputeRate{40e9}}, {16, ComputeRate{120e9}}};
  const auto time = [&](std::uint64_t rows) {
    const std::uint64_t experts[]{rows};
    return nanoseconds(calibrated_mlp_time(costs, 500, 10, experts, 0.0).value);
  };
  EXPECT_EQ(time(3), 3000);
  EXPECT_EQ(time(12), 4000);
  costs.tile_depth = 4.0;
  EXPECT_EQ(time(3), 3416);
  costs.reads_rows = true;
  costs.weight_bandwidth = Bandwidth{1e9};
  EXPECT_EQ(time(3), 30000 + 3 * 2060);
  // As many experts as a mean over draws has.
  const ExpertRows half[]{{3.0, 0.5}};
  EXPECT_EQ(nanoseconds(mean_mlp_time(costs, 500, 10, half, {}).value), (30000 + 3 * 2060) / 2);
}

// One expert of 500 * 10: a block of a tile of 4 rows takes 1 ns for each of the 500 values of gate and up
// and of the 10 of down, one of 16 rows 2 ns. Three rows: 4 * 30000 / 40 + 510 = 3510 ns in tiles of 4 and
// 16 * 30000 / 120 + 1020 = 5020 in those of 16. Where up to three tokens take the small tile, two experts
// of two rows take the large one: 2 * 4000 + 1020 ns instead of 2 * 3000 + 510.
TEST(KernelCosts, ATileTakesItsValuesOneAfterTheOther) {
  MlpCosts costs;
  costs.weight_bandwidth = Bandwidth{1000e9};
  costs.batch_bandwidth = Bandwidth{1e9};
  costs.sharpness = 100.0;
  costs.tiles = {{4, ComputeRate{40e9}, Seconds{1e-9}}, {16, ComputeRate{120e9}, Seconds{2e-9}}};
  const auto time = [&](const std::vector<std::uint64_t>& rows) {
    return nanoseconds(calibrated_mlp_time(costs, 500, 10, rows, 0.0).value);
  };
  EXPECT_EQ(time({3}), 3510);
  EXPECT_EQ(time({2, 2}), 6510);
  costs.tiles[0].up_to_tokens = 3;
  EXPECT_EQ(time({3}), 3510);
  EXPECT_EQ(time({2, 2}), 9020);
  EXPECT_EQ(time({12}), 5020);
  // Every expert of the rank costs 100 ns, with rows or without; a row moves 2060 B at 1 B/ns.
  costs.expert = Seconds{100e-9};
  costs.row_bandwidth = Bandwidth{1e9};
  EXPECT_EQ(time({0, 3, 0}), 3510 + 3 * 100 + 3 * 2060);
  EXPECT_EQ(time({0, 0}), 0);
}

// When the kernels that `add` adds end, on two GPUs; all are ready at the start.
std::vector<long long> ends(void (*add)(GpuResources&), std::uint32_t ranks_per_gpu = 1) {
  const Network network(small_cluster(2, 1));
  ProgramBuilder builder;
  GpuResources gpus(builder, network.cluster().gpu, ranks_per_gpu);
  add(gpus);
  const Program program = std::move(builder).finish();
  const Execution execution = run_flow(resolve(program, network), {.relative_precision = 0.0});
  std::vector<long long> out;
  for (const double finish_s : execution.finish_s) out.push_back(nanoseconds(finish_s));
  return out;
}

// Both launch until 500 and share 10 B/ns: 2000 B at 5 B/ns end at 900; the other has then moved
// 2000 of its 4000 B and moves the rest alone, until 1100. A third on the other GPU is alone all the
// time, and without a launch where its kernel runs already.
TEST(KernelCosts, CopiesOfOneGpuShareItsMemory) {
  const auto finish = ends([](GpuResources& gpus) {
    gpus.add_copy({0, 4000.0}, kStartEvent, {});
    gpus.add_copy({0, 2000.0}, kStartEvent, {});
    gpus.add_copy({1, 4000.0, true}, kStartEvent, {});
    gpus.add_copy({1, 0.0}, kStartEvent, {});
  });
  EXPECT_EQ(finish, (std::vector<long long>{1100, 900, 400, 0}));
}

// A block moves its item of 400 B in 300 ns; all ten of them share 10 B/ns and take 400: 500 together. Twice as
// many as two kernels are 500 twice, and a second launch. 3000 B are quantised at 30 B/ns in another 100 ns.
TEST(KernelCosts, NoBlockIsFasterThanItsItem) {
  static const KernelCosts costs{Seconds{500e-9}, {}, {}, Bandwidth{10e9}, Bandwidth{4e9 / 3.0},
                                 Bandwidth{30e9}};
  const auto of_tokens = ends([](GpuResources& gpus) {
    gpus.add_copy({.gpu = 0, .bytes = 4000.0, .costs = &costs}, kStartEvent, {});
    gpus.add_copy({.gpu = 1, .bytes = 4000.0, .costs = &costs, .items = 10.0}, kStartEvent, {});
  });
  EXPECT_EQ(of_tokens, (std::vector<long long>{900, 1000}));
  const auto of_parts = ends([](GpuResources& gpus) {
    gpus.add_copy({.gpu = 0, .bytes = 8000.0, .costs = &costs, .items = 20.0, .kernels = 2},
                  kStartEvent, {});
    gpus.add_copy({.gpu = 1, .bytes = 4000.0, .costs = &costs, .quantised = 3000.0}, kStartEvent,
                  {});
  });
  EXPECT_EQ(of_parts, (std::vector<long long>{2000, 1000}));
}

// An exchange of 4000 B begins to flow at 400, at 10 B/ns. From 500 to 900 a kernel beside it moves its bytes
// and leaves it a quarter: 1000 B until 500, 1000 until 900, the rest until 1100. The launch before takes
// nothing from it; a GPU without exchanges has nothing to give way.
TEST(KernelCosts, ExchangesGiveWayToKernelsBesideThem) {
  const Network network(small_cluster(2, 1));
  ProgramBuilder builder;
  GpuResources gpus(builder, network.cluster().gpu);
  const std::uint32_t exchanges[]{builder.add_resource("exchanges", 10e9)};
  gpus.set_exchanges(0, exchanges[0], 7.5e9);
  builder.add({.duration = 400e-9, .amount = 4000.0, .uses = exchanges});
  gpus.add_copy({.gpu = 0, .bytes = 4000.0, .beside_exchanges = true}, kStartEvent, {});
  gpus.add_copy({.gpu = 1, .bytes = 4000.0, .beside_exchanges = true}, kStartEvent, {});
  const Program program = std::move(builder).finish();
  const Execution execution = run_flow(resolve(program, network), {.relative_precision = 0.0});
  std::vector<long long> finish;
  for (const double finish_s : execution.finish_s) finish.push_back(nanoseconds(finish_s));
  EXPECT_EQ(finish, (std::vector<long long>{1100, 500, 900, 900}));
}

// Two works of 3000 and 1000 ns on all multiprocessors: at half of them each the shorter ends at
// 2000 with 2000 of the longer's 3000 left, which then takes them alone. The copy beside them needs
// memory only: 500 + 400.
TEST(KernelCosts, WorkSharesTheMultiprocessorsAndNotTheMemory) {
  const auto finish = ends([](GpuResources& gpus) {
    gpus.add_work(0, Seconds{3000e-9}, kStartEvent, {});
    gpus.add_work(0, Seconds{1000e-9}, kStartEvent, {});
    gpus.add_copy({0, 4000.0}, kStartEvent, {});
  });
  EXPECT_EQ(finish, (std::vector<long long>{4000, 2000, 900}));
}

// A work launches until 1000 while the other has the multiprocessors alone, 500 of whose 1500 are left
// then; at half of them both those end at 2000. The first then has 1500 of its 2000 to go.
TEST(KernelCosts, ALaunchPassesWhileOthersWork) {
  const auto finish = ends(
      [](GpuResources& gpus) {
        gpus.add_work(0, Seconds{2000e-9}, kStartEvent, {}, Seconds{1000e-9});
        gpus.add_work(1, Seconds{1500e-9}, kStartEvent, {});
      },
      2);
  EXPECT_EQ(finish, (std::vector<long long>{3500, 2000}));
}

// Two ranks on one GPU: works of 3000 and 1000 ns share the multiprocessors as above, whichever rank's they
// are, and a copy of 2000 B takes turns with them: 200 ns on all of them, a third of which it has from
// its launch at 500 on, so that it is over at 1100. By then each work has 250 + 200 ns of its time;
// the shorter's last 550 take until 2200, and the longer's 2000 from then on until 4200. With nothing
// beside it the copy would end at 700.
TEST(KernelCosts, RanksOfAGpuShareIt) {
  const auto finish = ends(
      [](GpuResources& gpus) {
        gpus.add_work(0, Seconds{3000e-9}, kStartEvent, {});
        gpus.add_work(1, Seconds{1000e-9}, kStartEvent, {});
        gpus.add_copy({1, 2000.0}, kStartEvent, {});
      },
      2);
  EXPECT_EQ(finish, (std::vector<long long>{4200, 2200, 700, 1100}));
  // Two copies share the memory too.
  const auto copies = ends(
      [](GpuResources& gpus) {
        gpus.add_copy({0, 4000.0}, kStartEvent, {});
        gpus.add_copy({1, 2000.0}, kStartEvent, {});
      },
      2);
  EXPECT_EQ(copies, (std::vector<long long>{1100, 1100, 900, 900}));
}

}  // namespace
}  // namespace coterie::testing
