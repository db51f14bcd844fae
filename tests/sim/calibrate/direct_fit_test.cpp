// The transport `direct` from a probe: kernels that wrote synthetic measurements come back, on ranks that
// share GPUs, and lists that cannot be measurements are refused.

#include "sim/calibrate/direct_fit.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "tests/sim/engines/networks.hpp"

namespace coterie {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr std::uint32_t kRanks = 4;

Cluster machine() {
  Cluster cluster = testing::two_tiers(2, 2, 450e9, 1400e9);
  cluster.ranks_per_gpu = 2;
  cluster.gpu.memory_bandwidth = Bandwidth{3.35e12};
  cluster.gpu.memory_efficiency = 0.85;
  return cluster;
}

DirectKernel known_put() {
  DirectKernel kernel;
  kernel.fixed = Seconds{14e-6};
  kernel.peer = Seconds{0.8e-6};
  kernel.token = Seconds{60e-9};
  kernel.row = Seconds{40e-9};
  kernel.sm_bandwidth = Bandwidth{75e9};
  kernel.sm_port_bandwidth = Bandwidth{50e9};
  kernel.quantise_bandwidth = Bandwidth{28e9};
  kernel.port_bandwidth = Bandwidth{330e9};
  kernel.copy_bandwidth = Bandwidth{700e9};
  return kernel;
}
DirectKernel known_pull() {
  DirectKernel kernel = known_put();
  kernel.fixed = Seconds{9e-6};
  kernel.sm_bandwidth = Bandwidth{60e9};
  kernel.sm_port_bandwidth = Bandwidth{35e9};
  kernel.quantise_bandwidth.reset();
  kernel.port_bandwidth = Bandwidth{310e9};
  kernel.copy_bandwidth = Bandwidth{900e9};
  return kernel;
}

// Which ranks a sender's rows go to: those of its GPU, those of the other, or all.
bool in_scope(const std::string& scope, std::uint32_t src, std::uint32_t dst) {
  const bool near = src / 2 == dst / 2;
  return src != dst && (scope == "all" || near == (scope == "own_gpu"));
}

json entry_of(const char* kind, const char* policy, const std::string& scope, bool fp8,
              std::uint32_t hidden, std::uint32_t sms, std::uint32_t tokens,
              std::uint32_t rows_per_pair) {
  json rows = json::array();
  json forward = json::array();
  for (std::uint32_t src = 0; src < kRanks; ++src) {
    json of_src = json::array();
    json of_relay = json::array();
    for (std::uint32_t dst = 0; dst < kRanks; ++dst) {
      const bool rail = src % 2 == dst % 2;
      const bool node = src / 2 == dst / 2;
      const bool hierarchical = std::string(policy) == "hierarchical";
      of_src.push_back((hierarchical ? rail : in_scope(scope, src, dst)) ? rows_per_pair : 0);
      of_relay.push_back(node ? 2 * rows_per_pair : 0);
    }
    rows.push_back(of_src);
    forward.push_back(of_relay);
  }
  json entry{{"kind", kind},
             {"transport", "direct"},
             {"policy", policy},
             {"scope", scope},
             {"sms", sms},
             {"pattern", "alltoall"},
             {"hidden", hidden},
             {"type", fp8 ? "fp8" : "bf16"},
             {"num_topk", 8},
             {"num_tokens", tokens},
             {"tokens", json::array({tokens, tokens, tokens, tokens})},
             {"rows", rows},
             {"copies", rows}};
  if (std::string(policy) == "hierarchical")
    entry["forward_rows"] = entry["forward_copies"] = forward;
  return entry;
}

// What a kernel of these costs takes for an entry, told by the formula and not by the reader: per rank
// the tokens and rows that it moves, and the bytes of its GPU's port and copies. The second of a GPU's two pulls
// starts behind `fixed`, the first, which ports and copies serve already, behind half of it.
double time_us(const json& entry, const DirectKernel& kernel, bool pull, bool second) {
  const double hidden = entry.at("hidden");
  const bool fp8 = entry.at("type") == "fp8";
  // A row has values, and in a dispatch 4 bytes and 8 for each copy, of which there is one.
  const double values = fp8 && !pull ? hidden + 4.0 * hidden / 128.0 : 2.0 * hidden;
  const double wire = pull ? values : values + 12.0;
  const json& rows = entry.at(second ? "forward_rows" : "rows");
  double longest = 0.0;
  double out[2]{};
  double in[2]{};
  double copied[2]{};
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
    double near = 0.0;
    double far = 0.0;
    double received = 0.0;
    for (std::uint32_t peer = 0; peer < kRanks; ++peer) {
      const double count = rows[rank][peer];
      received += entry.at("rows")[peer][rank].get<double>();
      (rank / 2 == peer / 2 ? near : far) += count;
      if (rank / 2 == peer / 2) {
        copied[rank / 2] += count * wire;
      } else {
        out[rank / 2] += count * wire;
        in[peer / 2] += count * wire;
      }
    }
    const double items = second ? received : entry.at("tokens")[rank].get<double>();
    const double item_bytes = second && !pull && fp8 ? values : 2.0 * hidden;
    double moves = items * kernel.token.value + (near + far) * kernel.row.value +
                   (items * item_bytes + near * wire) / kernel.sm_bandwidth.value +
                   far * wire / kernel.sm_port_bandwidth->value;
    if (fp8 && !pull && !second) moves += items * 2.0 * hidden / kernel.quantise_bandwidth->value;
    longest = std::max(longest, moves / entry.at("sms").get<double>());
  }
  longest += kernel.fixed.value;
  const double first = pull ? kernel.fixed.value / 2.0 : kernel.fixed.value;
  for (const std::uint32_t gpu : {0, 1}) {
    longest = std::max({longest, first + out[gpu] / kernel.port_bandwidth.value,
                        first + in[gpu] / kernel.port_bandwidth.value,
                        first + copied[gpu] / kernel.copy_bandwidth->value});
  }
  const double peers = entry.at("policy") == "hierarchical" ? 1.0 : 3.0;
  return 1e6 * (peers * kernel.peer.value + longest);
}

json whole_probe() {
  json list = json::array();
  list.push_back({{"kind", "events"}, {"median_us", 2.0}});
  list.push_back({{"kind", "synchronise"}, {"median_us", 6.5}});
  const auto add = [&](json entry, const DirectKernel& kernel, bool pull, bool second) {
    entry["median_us"] = time_us(entry, kernel, pull, second);
    list.push_back(entry);
    if (entry["kind"] != "pull") return;
    entry["kind"] = "combine";
    entry["median_us"] = entry["median_us"].get<double>() + 4.5;
    list.push_back(entry);
  };
  for (const std::uint32_t hidden : {2048, 7168}) {
    for (const std::uint32_t sms : {8, 16, 24}) {
      for (const std::uint32_t tokens : {16, 128, 1024, 4096}) {
        for (const std::string scope : {"own_gpu", "other_gpus", "all"}) {
          for (const std::uint32_t share : {1, 3}) {
            for (const bool fp8 : {false, true}) {
              const auto entry = [&](const char* kind) {
                return entry_of(kind, "dedup", scope, fp8, hidden, sms, tokens, tokens * share / 3);
              };
              add(entry("put"), known_put(), false, false);
              add(entry("pull"), known_pull(), true, false);
            }
          }
        }
        const auto two_hops = [&](const char* kind) {
          return entry_of(kind, "hierarchical", "all", false, hidden, sms, tokens, tokens / 2);
        };
        add(two_hops("put"), known_put(), false, false);
        add(two_hops("put_forward"), known_put(), false, true);
        add(two_hops("pull_gather"), known_pull(), true, true);
        add(two_hops("pull"), known_pull(), true, false);
      }
    }
  }
  return {{"schema_version", 2},
          {"device", "NVIDIA H100"},
          {"num_ranks", kRanks},
          {"ranks_per_gpu", 2},
          {"direct", list}};
}

void expect_found(const DirectKernel& found, const DirectKernel& known) {
  EXPECT_NEAR(found.fixed.value / known.fixed.value, 1.0, 0.02);
  EXPECT_NEAR(found.peer.value / known.peer.value, 1.0, 0.1);
  EXPECT_NEAR(found.token.value / known.token.value, 1.0, 0.1);
  EXPECT_NEAR(found.row.value / known.row.value, 1.0, 0.1);
  EXPECT_NEAR(found.sm_bandwidth / known.sm_bandwidth, 1.0, 0.02);
  EXPECT_NEAR(*found.sm_port_bandwidth / *known.sm_port_bandwidth, 1.0, 0.02);
  EXPECT_NEAR(found.port_bandwidth / known.port_bandwidth, 1.0, 0.02);
  EXPECT_NEAR(*found.copy_bandwidth / *known.copy_bandwidth, 1.0, 0.02);
  ASSERT_EQ(found.quantise_bandwidth.has_value(), known.quantise_bandwidth.has_value());
  if (known.quantise_bandwidth) {
    EXPECT_NEAR(*found.quantise_bandwidth / *known.quantise_bandwidth, 1.0, 0.02);
  }
}

TEST(DirectFit, FindsTheKernelsThatWroteTheProbe) {
  const auto probe = parse_direct_probe(whole_probe().dump(), "curves.json");
  ASSERT_TRUE(probe.has_value());
  const DirectFit fit = fit_direct(machine(), *probe);
  EXPECT_DOUBLE_EQ(fit.parameters.notify->value, 6.5e-6);
  EXPECT_NEAR(fit.parameters.announce.value, 4.5e-6, 1e-12);
  EXPECT_EQ(fit.parameters.sms, 16U);
  expect_found(fit.parameters.dispatch, known_put());
  expect_found(fit.parameters.combine, known_pull());
  ASSERT_EQ(fit.parts.size(), 2U);
  for (const GpuFit::Part& part : fit.parts) {
    EXPECT_TRUE(part.undetermined.empty()) << fmt::format("{}", fmt::join(part.undetermined, ", "));
    for (const double error : part.held_out) EXPECT_LT(std::abs(error), 0.03);
  }
  Cluster cluster = machine();
  set_direct_uncertainty(fit, cluster);
  EXPECT_FALSE(cluster.uncertainty.network.empty());
}

// Where each rank has a GPU of its own, kernels of the second hop are fitted apart, at the port of the first. Four
// ranks in two nodes: a put has n rows for each of three others; of T rows that a first hop brought, half stay
// and half go to the neighbour. Nothing is as slow as the port.
TEST(DirectFit, SecondHopsOfRanksWithTheirOwnGpuHaveKernelsOfTheirOwn) {
  const DirectKernel put = known_put();
  DirectKernel forward = put;
  forward.fixed = Seconds{11e-6};
  forward.token = Seconds{150e-9};
  json list = json::array();
  list.push_back({{"kind", "synchronise"}, {"median_us", 6.5}});
  const auto matrix = [](double own, double neighbour, double others) {
    json rows = json::array();
    for (std::uint32_t src = 0; src < kRanks; ++src) {
      json of_src = json::array();
      for (std::uint32_t dst = 0; dst < kRanks; ++dst) {
        const double count = src == dst ? own : src / 2 == dst / 2 ? neighbour : others;
        of_src.push_back(static_cast<std::uint32_t>(count));
      }
      rows.push_back(of_src);
    }
    return rows;
  };
  for (const double hidden : {2048.0, 7168.0}) {
    for (const double sms : {8.0, 12.0, 16.0}) {
      for (const double tokens : {128.0, 1024.0, 4096.0}) {
        for (const double share : {0.25, 1.0}) {
          const double rows = tokens * share;
          json entry{{"kind", "put"},
                     {"policy", "dedup"},
                     {"scope", "all"},
                     {"sms", sms},
                     {"pattern", "alltoall"},
                     {"hidden", hidden},
                     {"type", "bf16"},
                     {"tokens", json::array({tokens, tokens, tokens, tokens})},
                     {"rows", matrix(0.0, rows, rows)},
                     {"copies", matrix(0.0, rows, rows)}};
          for (json& count : entry["tokens"]) count = static_cast<std::uint32_t>(tokens);
          const auto us = [&](const DirectKernel& kernel, double items, double near, double far,
                              double wire) {
            return 1e6 * (kernel.fixed.value +
                          (items * kernel.token.value + (near + far) * kernel.row.value +
                           (items * 2.0 * hidden + near * wire) / kernel.sm_bandwidth.value +
                           far * wire / kernel.sm_port_bandwidth->value) /
                              sms);
          };
          entry["median_us"] = us(put, tokens, 0.0, 3.0 * rows, 2.0 * hidden + 12.0) + 3.0 * 0.8;
          list.push_back(entry);
          for (const char* kind : {"pull", "combine"}) {
            entry["kind"] = kind;
            entry["median_us"] = us(put, tokens, 0.0, 3.0 * rows, 2.0 * hidden) + 3.0 * 0.8;
            list.push_back(entry);
          }
          entry["kind"] = "put_forward";
          entry["policy"] = "hierarchical";
          entry["ranks_per_node"] = 2;
          entry["rows"] = entry["copies"] = matrix(tokens, 0.0, 0.0);
          entry["forward_rows"] = entry["forward_copies"] = matrix(rows / 2.0, rows / 2.0, 0.0);
          entry["median_us"] =
              us(forward, tokens, rows / 2.0, rows / 2.0, 2.0 * hidden + 12.0) + 0.8;
          list.push_back(entry);
        }
      }
    }
  }
  const json document{{"schema_version", 2},
                      {"device", "NVIDIA H200"},
                      {"num_ranks", kRanks},
                      {"ranks_per_gpu", 1},
                      {"direct", list}};
  const auto probe = parse_direct_probe(document.dump(), "curves.json");
  ASSERT_TRUE(probe.has_value());
  Cluster cluster = machine();
  cluster.ranks_per_gpu = 1;
  const DirectFit fit = fit_direct(cluster, *probe);
  ASSERT_EQ(fit.parts.size(), 3U);
  EXPECT_EQ(fit.parts[2].name, "direct.forward");
  ASSERT_TRUE(fit.parameters.forward.has_value());
  EXPECT_FALSE(fit.parameters.gather.has_value());
  EXPECT_DOUBLE_EQ(fit.parameters.forward->port_bandwidth.value,
                   fit.parameters.dispatch.port_bandwidth.value);
  for (const double error : fit.parts[2].held_out) EXPECT_LT(std::abs(error), 0.03);
  // One peer's time counts to the start, as no other number of peers was measured.
  EXPECT_NEAR(fit.parameters.forward->fixed.value + fit.parameters.forward->peer.value, 11.8e-6,
              0.3e-6);
  EXPECT_GT(fit.parameters.forward->token.value, 1.5 * fit.parameters.dispatch.token.value);
}

// Older probes, and machines that cannot run the transport.
TEST(DirectFit, FilesWithoutTheListSayNothing) {
  EXPECT_FALSE(parse_direct_probe(R"({"schema_version": 2, "num_ranks": 2})", "old").has_value());
}

std::string direct_refusal(const json& probe) {
  try {
    const auto found = parse_direct_probe(probe.dump(), "curves.json");
    (void)fit_direct(machine(), *found);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(DirectFit, RefusesListsThatCannotBeMeasurements) {
  const auto changed = [](const auto& change) {
    json probe = whole_probe();
    change(probe);
    return direct_refusal(probe);
  };
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["rows"].erase(3); }),
              HasSubstr("curves.json: direct[2]: rows: found no matrix of as many rows as ranks"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["rows"][1][2] = -4; }),
              HasSubstr("direct[2]: rows: found -4, expected whole numbers"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["rows"][1].push_back(1); }),
              HasSubstr("expected a row of 4 numbers"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["tokens"].erase(0); }),
              HasSubstr("direct[2]: found no list \"tokens\" of 4 numbers"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["policy"] = "standard"; }),
              HasSubstr("found policy \"standard\", expected dedup or hierarchical"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["kind"] = "put_forward"; }),
              HasSubstr("found a second hop with the policy dedup, expected hierarchical"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["sms"] = 0; }),
              HasSubstr("direct[2]: sms: found 0, expected a number above zero"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"][2]["median_us"] = "fast"; }),
              HasSubstr("direct[2]: found no number \"median_us\""));
  EXPECT_THAT(changed([](json& probe) {
                for (auto& row : probe["direct"][2]["rows"]) row = {0, 0, 0, 0};
              }),
              HasSubstr("direct[2]: found no rows, expected rows that are moved"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"].erase(1); }),
              HasSubstr("no entry of kind \"synchronise\" in the list direct"));
  EXPECT_THAT(changed([](json& probe) { probe["direct"].erase(3); }),
              HasSubstr("found a combine without a pull before it"));
  EXPECT_THAT(changed([](json& probe) { probe["num_ranks"] = 5; }),
              HasSubstr("found 5 ranks, 2 on each GPU, expected as many on every GPU"));
  EXPECT_THAT(changed([](json& probe) { probe["ranks_per_gpu"] = 4; }),
              HasSubstr("found 2 ranks on each GPU (ranks_per_gpu), expected 4 as in the probe"));
  EXPECT_THAT(changed([](json& probe) {
                probe["direct"].erase(probe["direct"].begin() + 20, probe["direct"].end());
              }),
              HasSubstr("fit of direct.put: found 6 points, expected at least eight"));
}

}  // namespace
}  // namespace coterie
