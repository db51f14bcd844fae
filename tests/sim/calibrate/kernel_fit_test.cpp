// Kernels of dispatch libraries: the formulas come back from synthetic exchanges, the simulator
// computes what the fit assumes, and tables that cannot be measurements are refused.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/random.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/kernel_fit.hpp"
#include "sim/calibrate/validate.hpp"
#include "sim/transports/deepep_normal.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;

constexpr double kPort = 450e9;

// 25 us, 0.1 us per token and channel, 20 ns and 40 GB/s per row and channel, 300 GB/s per port.
CopyKernel known_kernel() {
  CopyKernel kernel;
  kernel.fixed = Seconds{25e-6};
  kernel.first_row = Bandwidth{1e9};
  kernel.fill = Seconds{8e-6};
  kernel.fill_tokens = 30.0;
  kernel.token = Seconds{0.1e-6};
  kernel.row = Seconds{20e-9};
  kernel.bandwidth = Bandwidth{40e9};
  kernel.receive_share = 0.8;
  kernel.pair_gain = 1.2;
  kernel.port_bandwidth = Bandwidth{300e9};
  return kernel;
}

// A table as anybody may write it: four ranks, uniform and shifted rows.
std::string table_of(const CopyKernel& kernel, double noise) {
  Random random(3);
  std::string text = "direction,ranks,sms,row_bytes,tokens_per_rank,rows_src_dst,time_us,pattern\n";
  for (const double sms : {4.0, 8.0, 16.0, 24.0}) {
    for (const double row : {2048.0, 7392.0, 14336.0}) {
      for (std::uint32_t tokens = 16; tokens <= 16384; tokens *= 4) {
        for (const bool shift : {false, true}) {
          std::string rows;
          for (std::uint32_t src = 0; src < 4; ++src) {
            std::string list;
            for (std::uint32_t dst = 0; dst < 4; ++dst) {
              const std::uint32_t count = !shift                 ? tokens * 3 / 4
                                          : dst == (src + 1) % 4 ? tokens
                                                                 : 0;
              list += fmt::format("{}{}", dst == 0 ? "" : ", ", count);
            }
            rows += fmt::format("{}[{}]", src == 0 ? "" : ", ", list);
          }
          const auto line = [&](double time_us) {
            return fmt::format("dispatch,4,{},{},{},\"[{}]\",{},{}\n", sms, row, tokens, rows,
                               time_us, shift ? "shift" : "uniform");
          };
          const std::string head = text.substr(0, text.find('\n') + 1);
          const RowExchange exchange = parse_row_exchanges(head + line(1.0), "t")[0];
          text +=
              line(copy_kernel_s(kernel, exchange, kPort) * 1e6 * (1.0 + noise * random.normal()));
        }
      }
    }
  }
  return text;
}

// The times come back within the noise of 2 percent, though not every parameter does.
TEST(KernelFit, FindsTheTimesOfAKnownKernel) {
  const std::vector<RowExchange> noisy = parse_row_exchanges(table_of(known_kernel(), 0.02), "t");
  const std::vector<RowExchange> exact = parse_row_exchanges(table_of(known_kernel(), 0.0), "t");
  const CopyKernel found = fit_copy_kernel(noisy, kPort).kernel;
  for (const RowExchange& exchange : exact) {
    EXPECT_NEAR(copy_kernel_s(found, exchange, kPort) / exchange.time_s, 1.0, 0.04)
        << exchange.pattern << " " << exchange.name;
  }
  EXPECT_NEAR(found.fixed.value, 25e-6, 5e-6);
  EXPECT_NEAR(found.port_bandwidth.value().value / 300e9, 1.0, 0.05);
}

// Exchanges of few rows take 25 to 50 us on this kernel; where the host takes 70 us to start one, 70.
TEST(KernelFit, FindsWhatTheHostTakes) {
  CopyKernel kernel = known_kernel();
  kernel.least = Seconds{70e-6};
  const CopyKernel found =
      fit_copy_kernel(parse_row_exchanges(table_of(kernel, 0.02), "t"), kPort).kernel;
  EXPECT_NEAR(found.least.value, 70e-6, 3e-6);
  // Without such a host nothing that was measured is held up.
  const std::vector<RowExchange> fast = parse_row_exchanges(table_of(known_kernel(), 0.02), "t");
  const CopyKernel free = fit_copy_kernel(fast, kPort).kernel;
  for (const RowExchange& exchange : fast) EXPECT_LT(free.least.value, exchange.time_s * 1.1);
}

// What the fit assumes is what the transport and the engine make of the same exchange: exactly where
// all ranks do the same, and never less, as rows that share a sender may hold each other up.
TEST(KernelFit, TheSimulatorComputesTheFittedModel) {
  DeepepNormalParameters parameters;
  parameters.dispatch = parameters.combine = known_kernel();
  Cluster cluster = load_cluster("h200_node", {{"gpus_per_node", "4"},
                                               {"scale_up.injection.rank_bandwidth", "none"},
                                               {"scale_up.latency", "0 s"}});
  for (const RowExchange& exchange : parse_row_exchanges(table_of(known_kernel(), 0.0), "t")) {
    parameters.sms = static_cast<std::uint32_t>(exchange.sms);
    cluster.transports = {parameters};
    EXPECT_NEAR(predicted_exchange_s(cluster, exchange) / exchange.time_s, 1.0, 1e-3)
        << exchange.pattern << " " << exchange.name;
  }
}

// A dispatch of 16 tokens took 100 us, one of 32 tokens and more rows 90 us: the first was held up and
// counts as 90 us. One of 9 rows for rank 1 took 95 us: it asks for more than that of 8. On 32
// multiprocessors 93 us are within 4 % of 90. Nothing compares with the combine.
TEST(KernelFit, WhatAsksNoMoreTakesNoLonger) {
  const std::string text =
      "direction,ranks,sms,row_bytes,tokens_per_rank,rows_src_dst,time_us\n"
      "dispatch,2,24,4096,16,\"[[9, 3], [4, 9]]\",100\n"
      "dispatch,2,24,4096,32,\"[[9, 8], [4, 9]]\",90\n"
      "dispatch,2,24,4096,32,\"[[9, 9], [4, 9]]\",95\n"
      "dispatch,2,32,4096,32,\"[[9, 8], [4, 9]]\",93\n"
      "combine,2,24,4096,16,\"[[9, 3], [4, 9]]\",200\n";
  const auto exchanges = undisturbed(parse_row_exchanges(text, "t"));
  const std::vector<double> expected{90.0, 90.0, 95.0, 93.0, 200.0};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_DOUBLE_EQ(exchanges[i].time_s * 1e6, expected[i]) << i;
  }
  EXPECT_TRUE(asks_no_more(exchanges[1], exchanges[2], 0.0));
  EXPECT_FALSE(asks_no_more(exchanges[2], exchanges[1], 0.0));
  EXPECT_TRUE(asks_no_more(exchanges[2], exchanges[1], 0.125));
}

// Ports of 900 GB/s, of which 630 GB/s are assumed. A token's row of 6300 B takes 10 ns over one; to three
// other ranks 30 ns. A block's cost that neither shows lies between 10 and 30 ns: 15 ns, of which 148
// multiprocessors make 2.22 us each.
TEST(KernelFit, AssumesAHiddenCostBetweenItsBounds) {
  RowExchange exchange;
  exchange.transport = "nvlink_one_sided";
  exchange.sms = 148.0;
  exchange.volumes.row_bytes = 6300.0;
  exchange.volumes.ranks.resize(1);
  exchange.volumes.ranks[0].tokens = 100.0;
  exchange.volumes.ranks[0].port_out = 300.0 * 6300.0;
  EXPECT_NEAR(assumed_token({exchange}, 900e9).value, 148.0 * 15e-9, 1e-12);
  exchange.transport = "deepep_low_latency";
  EXPECT_DOUBLE_EQ(assumed_token({exchange}, 900e9).value, 1e-6);
}

TEST(KernelFit, FillsATransportAndSaysHowFarItIsOff) {
  const std::string dispatch = table_of(known_kernel(), 0.02);
  std::string combine = dispatch;
  for (std::size_t at = 0; (at = combine.find("\ndispatch,", at)) != std::string::npos; ++at) {
    combine.replace(at + 1, 8, "combine");
  }
  std::vector<RowExchange> all = parse_row_exchanges(dispatch, "t");
  const Cluster cluster = load_cluster("h200_node");
  EXPECT_THROW((void)fit_transport(cluster, all), InputError);  // no combine
  for (RowExchange& exchange : parse_row_exchanges(combine, "t")) all.push_back(exchange);
  const TransportFit fit = fit_transport(cluster, all);
  const auto& parameters = std::get<DeepepNormalParameters>(fit.parameters);
  EXPECT_EQ(parameters.sms, 24U);
  EXPECT_FALSE(parameters.dispatch_between.has_value());
  ASSERT_EQ(fit.held_out.size(), all.size());
  // The noise is 2 percent; the few smallest exchanges, where left out, are off by more.
  std::vector<double> errors;
  for (const double error : fit.held_out) errors.push_back(std::abs(error));
  EXPECT_LT(*std::max_element(errors.begin(), errors.end()), 0.3);
  EXPECT_LT(median(errors), 0.03);
}

struct BadTable {
  std::string from, to, sentence;
};
// Two ranks on each of two GPUs. Rank 0 sends 3 rows to its GPU's other rank and 4 to the other GPU: only
// those cross its port, 4 * 4096 B in BF16. Samples of the dispatch from 80 to 120 us around 100: a
// spread of 0.2.
TEST(RowExchanges, RanksOfOneGpuDoNotCrossItsPort) {
  const std::string header =
      "ranks,gpus,routing,num_tokens_per_rank,hidden,payload,sms,rows_src_dst,dispatch_us,"
      "dispatch_p10,dispatch_p90,combine_us\n";
  const std::string row =
      "law,9,2048,bf16,8,\"[[2,3,4,0],[0,0,0,0],[0,0,0,0],[0,0,0,0]]\",100,80,120,90\n";
  const auto exchanges = parse_row_exchanges(header + "4,2," + row, "table.csv");
  ASSERT_EQ(exchanges.size(), 2U);
  const PhaseVolumes& volumes = exchanges[0].volumes;
  EXPECT_TRUE(volumes.crosses_nodes);
  EXPECT_DOUBLE_EQ(volumes.ranks[0].rows_out, 9.0);
  EXPECT_DOUBLE_EQ(volumes.ranks[0].port_out, 4.0 * 4096);
  EXPECT_DOUBLE_EQ(volumes.ranks[1].port_in, 0.0);
  EXPECT_DOUBLE_EQ(volumes.ranks[2].port_in, 4.0 * 4096);
  EXPECT_DOUBLE_EQ(exchanges[0].spread, 0.2);
  EXPECT_DOUBLE_EQ(exchanges[1].spread, 0.0);
  const auto apart = parse_row_exchanges(header + "4,4," + row, "table.csv");
  EXPECT_DOUBLE_EQ(apart[0].volumes.ranks[0].port_out, 7.0 * 4096);
  for (const char* gpus : {"3", "0"}) {
    try {
      (void)parse_row_exchanges(header + "4," + gpus + "," + row, "table.csv");
      FAIL() << gpus << " accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("table.csv"));
    }
  }
}

TEST(RowExchanges, RefusesWhatCannotBeAMeasurement) {
  const std::string good =
      "direction,ranks,sms,row_bytes,tokens_per_rank,rows_src_dst,time_us\n"
      "combine,2,24,4096,16,\"[[10, 3], [4, 9]]\",31.5\n";
  const RowExchange exchange = parse_row_exchanges(good, "t.csv").at(0);
  EXPECT_EQ(exchange.direction, Direction::kCombine);
  EXPECT_EQ(exchange.volumes.ranks[0].rows_out, 13.0);
  EXPECT_EQ(exchange.volumes.ranks[0].rows_in, 14.0);
  EXPECT_EQ(exchange.volumes.ranks[1].port_out, 4.0 * 4096);
  EXPECT_EQ(messages_of(exchange).size(), 4U);
  const std::vector<BadTable> cases{
      {"31.5", "-1", "t.csv:2: time_us: found -1, expected a value above zero"},
      {"31.5", "0", "t.csv:2: time_us: found 0, expected a value above zero"},
      {"31.5", "fast", "t.csv:2: time_us: found \"fast\", expected a number"},
      {"combine", "gather", "t.csv:2: direction: found \"gather\", expected dispatch or combine"},
      {"[[10, 3], [4, 9]]", "[[10, 3]]",
       "t.csv:2: rows_src_dst: found 1 lists, expected 2 lists of 2 whole numbers of rows"},
      {"[[10, 3], [4, 9]]", "[[10, 3], [4]]", "found a list of another length"},
      {"[[10, 3], [4, 9]]", "[[10, 3], [4, -9]]", "found -9, expected 2 lists"},
      {"[[10, 3], [4, 9]]", "[[0, 0], [0, 0]]", "found no rows at all"},
      {"[[10, 3], [4, 9]]", "10 3 4 9", "found \"10 3 4 9\""},
      {",row_bytes", ",bytes", "expected a column row_bytes"},
  };
  for (const BadTable& bad : cases) {
    std::string text = good;
    text.replace(text.find(bad.from), bad.from.size(), bad.to);
    try {
      (void)parse_row_exchanges(text, "t.csv");
      ADD_FAILURE() << bad.to << " was accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(bad.sentence));
    }
  }
}

}  // namespace
}  // namespace coterie
