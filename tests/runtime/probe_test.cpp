// What the probe measures and what it writes, without a GPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/yaml.hpp"
#include "runtime/session/probe/file.hpp"
#include "runtime/session/probe/plan.hpp"
#include "runtime/session/probe/skeleton.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(Probe, SizesAscendByFours) {
  const auto sizes = curve_sizes(std::uint64_t{64} << 20);
  EXPECT_EQ(sizes.front(), 1U);
  EXPECT_EQ(sizes.back(), std::uint64_t{64} << 20);
  EXPECT_EQ(sizes.size(), 14U);
}

// What the probe writes is what the topology reader takes, on one node and on several.
TEST(Probe, TheSkeletonIsATopology) {
  ProbeFacts facts;
  facts.machine = "a";
  facts.device = "NVIDIA H200";
  facts.driver = "580.1";
  facts.nccl = "2.28.3";
  facts.num_sms = 132;
  facts.ranks_per_node = 8;
  facts.ranks_per_gpu = 8;
  facts.link_kind = "socket";
  facts.copy_bytes_per_s = 4.2e12;
  facts.gemm_flop_per_s = 783e12;
  facts.launch_s = 1e-6;
  facts.pair_bytes_per_s = 4.2e9;
  facts.pair_latency_s = 30e-6;
  facts.all_to_all_bytes_per_s = 17e9;
  const Cluster one = read_cluster(parse_yaml(topology_skeleton(facts), "skeleton"));
  EXPECT_EQ(one.num_gpus(), 8U);
  EXPECT_EQ(one.name, "a_ep8");
  // An eighth of 4.2 TB/s, for eight ranks share the GPU.
  EXPECT_DOUBLE_EQ(one.gpu.memory_bandwidth.value, 4.2e12 / 8);
  ASSERT_TRUE(one.scale_up.has_value());
  EXPECT_EQ(one.scale_up->kind, ScaleUpKind::kSocket);
  EXPECT_DOUBLE_EQ(one.scale_up->bandwidth.value, 4.2e9);
  ASSERT_TRUE(one.scale_up->shared_bandwidth.has_value());
  ASSERT_EQ(one.transports.size(), 1U);
  const auto& nccl = std::get<NcclParameters>(one.transports[0]);
  EXPECT_DOUBLE_EQ(nccl.scale_up.value().segments[0].alpha.value, 30e-6);
  EXPECT_FALSE(nccl.network.has_value());

  facts.num_nodes = 2;
  facts.link_kind = "nvlink";
  facts.far_bytes_per_s = 40e9;
  facts.far_latency_s = 20e-6;
  const Cluster two = read_cluster(parse_yaml(topology_skeleton(facts), "skeleton"));
  EXPECT_EQ(two.num_gpus(), 16U);
  ASSERT_TRUE(two.nic.has_value());
  EXPECT_DOUBLE_EQ(two.nic->bandwidth.value, 40e9);
  EXPECT_DOUBLE_EQ(
      std::get<NcclParameters>(two.transports.at(0)).network.value().segments[0].alpha.value,
      20e-6);
}

// 14 sizes from 1 B to 64 MiB for the pair and the all-to-all, 9 from 1 KiB for each of the four
// skewed patterns.
TEST(ProbePlan, TwoRanksOfOneNodeMeasureEveryPatternOverSizes) {
  ProbeSetting setting;
  setting.num_ranks = 2;
  setting.num_local_ranks = 2;
  const ProbePlan plan = plan_probe(setting);
  EXPECT_EQ(plan.communication.size(), 2 * 14 + 4 * 9U);
  std::set<std::string> patterns;
  for (const CommunicationCase& entry : plan.communication) {
    EXPECT_EQ(entry.transport, "nccl");
    patterns.insert(to_string(entry.pattern));
  }
  EXPECT_EQ(patterns, (std::set<std::string>{"sendrecv", "alltoall", "all_to_one", "one_to_all",
                                             "shift", "hot_pair"}));
  EXPECT_EQ(plan.parts().size(), 5U);
  // FP8 products only where they can be computed: 30 cells (11 balanced, 9 skewed, 9 mixed, one among
  // streams) of 3 numbers of experts and 2 shapes; 7 sizes of the shared experts of 2 shapes, and one
  // of each among streams.
  EXPECT_EQ(plan.expert_mlp.size(), 30 * 3 * 2 + 8 * 2U);
  setting.fp8_products = true;
  EXPECT_EQ(plan_probe(setting).expert_mlp.size(), 30 * 3 * 2 * 2 + 8 * 2U);
}

// Of each hidden size and type one case among streams, of the smallest size, which also stands in the list
// without them, and two sizes in rounds that divide their tokens.
TEST(ProbePlan, KernelsRunAmongStreamsAndInRoundsToo) {
  ProbeSetting setting;
  setting.num_ranks = setting.num_local_ranks = 4;
  const std::vector<KernelCase> cases = plan_probe(setting).kernels;
  std::size_t among = 0, in_rounds = 0;
  for (const KernelCase& entry : cases) {
    in_rounds += entry.num_rounds > 1 ? 1 : 0;
    EXPECT_EQ(entry.num_tokens % entry.num_rounds, 0U);
    if (!entry.among_streams) continue;
    ++among;
    EXPECT_TRUE(std::any_of(cases.begin(), cases.end(), [&](const KernelCase& other) {
      return !other.among_streams && other.num_rounds == 1 && !other.row_per_copy &&
             other.hidden == entry.hidden && other.type == entry.type &&
             other.num_tokens == entry.num_tokens && other.rows_per_token == entry.rows_per_token;
    }));
  }
  EXPECT_EQ(among, 2 * 2U);
  EXPECT_EQ(in_rounds, 2 * 2 * 2U);
}

TEST(ProbePlan, ASingleRankExchangesNothingAndTwoNodesHaveAFarPair) {
  const ProbePlan one = plan_probe({});
  EXPECT_TRUE(one.communication.empty());
  EXPECT_EQ(one.parts(), (std::vector<ProbePart>{ProbePart::kKernels, ProbePart::kExpertMlp}));
  ProbeSetting setting;
  setting.num_ranks = 4;
  setting.num_local_ranks = 2;
  const ProbePlan two = plan_probe(setting);
  EXPECT_EQ(std::count_if(two.communication.begin(), two.communication.end(),
                          [](const CommunicationCase& entry) {
                            return entry.pattern == Pattern::kSendRecvNodes;
                          }),
            14);
}

// Bytes of every pattern between three ranks, counted by hand: [src][dst].
TEST(ProbePlan, PatternsAreWhatTheirNamesSay) {
  const auto matrix = [](Pattern pattern) {
    std::vector<std::uint64_t> bytes;
    for (std::uint32_t src = 0; src < 3; ++src) {
      for (std::uint32_t dst = 0; dst < 3; ++dst) {
        bytes.push_back(pattern_bytes({"nccl", pattern, 10}, 3, 2, src, dst));
      }
    }
    return bytes;
  };
  using Bytes = std::vector<std::uint64_t>;
  EXPECT_EQ(matrix(Pattern::kSendRecv), (Bytes{0, 10, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(matrix(Pattern::kSendRecvNodes), (Bytes{0, 0, 10, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(matrix(Pattern::kAllToAll), (Bytes{0, 10, 10, 10, 0, 10, 10, 10, 0}));
  EXPECT_EQ(matrix(Pattern::kAllToOne), (Bytes{0, 0, 0, 10, 0, 0, 10, 0, 0}));
  EXPECT_EQ(matrix(Pattern::kOneToAll), (Bytes{0, 10, 10, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(matrix(Pattern::kShift), (Bytes{0, 10, 0, 0, 0, 10, 10, 0, 0}));
  EXPECT_EQ(matrix(Pattern::kHotPair), (Bytes{0, 40, 10, 10, 0, 10, 10, 10, 0}));
}

// The scopes of two GPUs with two ranks each, counted by hand: ranks 0 and 1 share a GPU, as do 2
// and 3. Six tokens; rows [sender][receiver].
TEST(ProbePlan, DirectPatternsAreWhatTheirNamesSay) {
  using Rows = std::vector<std::uint32_t>;
  const auto rows = [](Pattern pattern, DirectScope scope, std::uint32_t rows_per_token) {
    DirectCase entry;
    entry.pattern = pattern;
    entry.scope = scope;
    entry.num_tokens = 6;
    entry.rows_per_token = rows_per_token;
    Rows out(16, 0);
    for (std::uint32_t r = 0; r < 4; ++r) {
      for (std::uint32_t t = 0; t < direct_tokens(entry, 4, 2, r); ++t) {
        for (const std::uint32_t d : direct_destinations(entry, 4, 2, r, t)) ++out[4 * r + d];
      }
    }
    return out;
  };
  using S = DirectScope;
  EXPECT_EQ(rows(Pattern::kAllToAll, S::kAll, 1),
            (Rows{0, 2, 2, 2, 2, 0, 2, 2, 2, 2, 0, 2, 2, 2, 2, 0}));
  EXPECT_EQ(rows(Pattern::kAllToAll, S::kAll, 3),
            (Rows{0, 6, 6, 6, 6, 0, 6, 6, 6, 6, 0, 6, 6, 6, 6, 0}));
  EXPECT_EQ(rows(Pattern::kAllToAll, S::kOtherGpus, 1),
            (Rows{0, 0, 3, 3, 0, 0, 3, 3, 3, 3, 0, 0, 3, 3, 0, 0}));
  EXPECT_EQ(rows(Pattern::kAllToAll, S::kOwnGpu, 1),
            (Rows{0, 6, 0, 0, 6, 0, 0, 0, 0, 0, 0, 6, 0, 0, 6, 0}));
  EXPECT_EQ(rows(Pattern::kAllToOne, S::kAll, 1),
            (Rows{0, 0, 0, 0, 6, 0, 0, 0, 6, 0, 0, 0, 6, 0, 0, 0}));
  EXPECT_EQ(rows(Pattern::kAllToOne, S::kOtherGpus, 1),
            (Rows{0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 6, 0, 0, 0}));
  EXPECT_EQ(rows(Pattern::kOneToAll, S::kOtherGpus, 1),
            (Rows{0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(rows(Pattern::kShift, S::kAll, 1),
            (Rows{0, 6, 0, 0, 0, 0, 6, 0, 0, 0, 0, 6, 6, 0, 0, 0}));
  // The ranks of the other GPU after rank 1 are 2 and 3, after rank 3 they are 0 and 1.
  EXPECT_EQ(rows(Pattern::kShift, S::kOtherGpus, 1),
            (Rows{0, 0, 6, 0, 0, 0, 6, 0, 6, 0, 0, 0, 6, 0, 0, 0}));
  // Rank 0's tokens go 1, 1, 1, 1, 2, 3.
  EXPECT_EQ(rows(Pattern::kHotPair, S::kAll, 1),
            (Rows{0, 4, 1, 1, 2, 0, 2, 2, 2, 2, 0, 2, 2, 2, 2, 0}));
}

// Where each rank has a GPU of its own, half of the ranks are a node: of four ranks, each relays for one
// other; of two or three none does.
TEST(ProbePlan, HalfOfTheGpusAreANodeForTheSecondHop) {
  EXPECT_EQ(direct_ranks_per_node(2, 1), 0U);
  EXPECT_EQ(direct_ranks_per_node(3, 1), 0U);
  EXPECT_EQ(direct_ranks_per_node(4, 1), 2U);
  EXPECT_EQ(direct_ranks_per_node(8, 1), 4U);
  EXPECT_EQ(direct_ranks_per_node(8, 4), 4U);
  EXPECT_EQ(direct_ranks_per_node(4, 4), 0U);
  ProbeSetting setting;
  setting.num_ranks = setting.num_local_ranks = 4;
  setting.direct = true;
  std::size_t two_hops = 0;
  for (const DirectCase& entry : plan_probe(setting).direct) {
    EXPECT_EQ(entry.scope, DirectScope::kAll);
    if (entry.policy != DispatchPolicy::kHierarchical || entry.num_tokens > 128) continue;
    ++two_hops;
    const LayerPlan layer = make_direct_plan(entry, 4, 1);
    EXPECT_EQ(layer.ranks_per_node, 2U);
    // Every token of the all-to-all goes to three ranks in turn, so that some are passed on.
    bool passes_on = false;
    for (std::size_t i = 0; i < layer.stages.at(1).num_transfers(); ++i) {
      passes_on |= layer.stages[1].src[i] != layer.stages[1].dst[i];
    }
    EXPECT_TRUE(passes_on);
  }
  EXPECT_GT(two_hops, 0U);
}

// What is planned for the transport direct on 2, 4 and 8 ranks of two GPUs: with one rank per GPU
// there is one scope and nothing to forward; every case has a plan that passes the plan checker, no
// row of one hop stays at home, and no two cases have the same key.
TEST(ProbePlan, DirectCasesArePlannedForEveryTier) {
  for (const std::uint32_t ranks_per_gpu : {1U, 2U, 4U}) {
    ProbeSetting setting;
    setting.num_ranks = setting.num_local_ranks = 2 * ranks_per_gpu;
    setting.ranks_per_gpu = ranks_per_gpu;
    EXPECT_TRUE(plan_probe(setting).direct.empty());
    setting.direct = true;
    const ProbePlan plan = plan_probe(setting);
    ASSERT_FALSE(plan.direct.empty());
    EXPECT_EQ(plan.parts().back(), ProbePart::kDirect);
    std::set<DirectScope> scopes;
    std::set<DispatchPolicy> policies;
    std::set<std::vector<std::uint32_t>> keys;
    for (DirectCase entry : plan.direct) {
      scopes.insert(entry.scope);
      policies.insert(entry.policy);
      keys.insert({static_cast<std::uint32_t>(entry.pattern),
                   static_cast<std::uint32_t>(entry.scope),
                   static_cast<std::uint32_t>(entry.policy), entry.hidden,
                   static_cast<std::uint32_t>(entry.type), entry.num_tokens, entry.rows_per_token});
      if (entry.num_tokens > 128) continue;
      const LayerPlan layer = make_direct_plan(entry, setting.num_ranks, ranks_per_gpu);
      EXPECT_EQ(layer.stages.size(), entry.policy == DispatchPolicy::kHierarchical ? 2U : 1U);
      for (std::size_t i = 0; layer.stages.size() == 1 && i < layer.stages[0].src.size(); ++i) {
        EXPECT_NE(layer.stages[0].src[i], layer.stages[0].dst[i]);
      }
    }
    EXPECT_EQ(keys.size(), plan.direct.size());
    EXPECT_EQ(scopes.size(), ranks_per_gpu == 1 ? 1U : 3U);
    EXPECT_EQ(policies.size(), ranks_per_gpu == 1 ? 1U : 2U);
  }
}

// Total 4 * 12 = 48 in proportion to 1 : 1/2 : 1/3 : 1/4, whose sum is 25/12: 23.04, 11.52, 7.68,
// 5.76, rounded down to 46 with one more for the first two.
TEST(ProbePlan, SkewedExpertsHaveAsManyRowsInAll) {
  MlpCase entry;
  entry.num_experts = 4;
  entry.rows_per_expert = 12;
  EXPECT_EQ(expert_rows(entry), (std::vector<std::uint32_t>{12, 12, 12, 12}));
  entry.load = ExpertLoad::kSkewed;
  EXPECT_EQ(expert_rows(entry), (std::vector<std::uint32_t>{24, 12, 7, 5}));
}

// Expert e of eight has 1/2 + (5 e mod 8) / 7 of 16 rows: 8, 19.4, 12.6, 24, 17.1, 10.3, 21.7, 14.9, rounded
// down to 125 of 128 with one more for the first three.
TEST(ProbePlan, MixedExpertsHaveAsManyRowsInAll) {
  MlpCase entry;
  entry.num_experts = 8;
  entry.rows_per_expert = 16;
  entry.load = ExpertLoad::kMixed;
  EXPECT_EQ(expert_rows(entry), (std::vector<std::uint32_t>{9, 20, 13, 24, 17, 10, 21, 14}));
}

// The rows are recounted from the experts that were drawn.
TEST(ProbePlan, EveryTokenHasTheWantedNumberOfRows) {
  for (const bool row_per_copy : {false, true}) {
    const KernelCase entry{2048,        kernels::RowType::kBf16, 100, 8, row_per_copy ? 8U : 2U, 4,
                           row_per_copy};
    const ProbeRouting routing = make_probe_routing(entry, 1);
    EXPECT_EQ(routing.num_experts, 64U);
    std::vector<std::uint32_t> rows(4, 0), copies(4, 0), second_rows(4, 0), second_copies(4, 0);
    for (std::uint32_t t = 0; t < 100; ++t) {
      std::set<std::uint16_t> experts, dests;
      std::set<std::pair<std::uint16_t, std::uint16_t>> passed;
      for (std::uint32_t j = 0; j < 8; ++j) {
        const std::uint16_t expert = routing.experts[t * 8 + j];
        const auto dest = routing.expert_dest[expert];
        EXPECT_EQ(dest * 16 + routing.expert_local[expert], expert);
        experts.insert(expert);
        dests.insert(dest);
        passed.insert({dest, routing.second_dest[expert]});
        ++copies[dest];
        ++second_copies[routing.second_dest[expert]];
        if (row_per_copy) ++rows[dest];
      }
      EXPECT_EQ(experts.size(), 8U);
      EXPECT_EQ(dests.size(), row_per_copy ? 4U : 2U);
      if (!row_per_copy) {
        for (const auto dest : dests) ++rows[dest];
      }
      for (const auto& [first, second] : passed) ++second_rows[second];
    }
    for (std::size_t d = 0; d < 4; ++d) {
      EXPECT_EQ(routing.first[d].num_rows, rows[d]);
      EXPECT_EQ(routing.first[d].num_copies, copies[d]);
      if (row_per_copy) continue;
      EXPECT_EQ(routing.second[d].num_rows, second_rows[d]);
      EXPECT_EQ(routing.second[d].num_copies, second_copies[d]);
    }
    EXPECT_EQ(routing.second.empty(), row_per_copy);
  }
}

TEST(ProbePlan, NamesOfPartsAreKnown) {
  for (const ProbePart part : kProbeParts) EXPECT_EQ(probe_part(to_string(part)), part);
  try {
    (void)probe_part("kernel");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "--parts: found \"kernel\", expected some of communication, notify, kernels, "
                 "expert_mlp, overlap, direct");
  }
}

// Files ----------------------------------------------------------------------------------------

json header() {
  return {{"schema_version", kProbeSchemaVersion},
          {"machine", "m"},
          {"device", "d"},
          {"driver", "1"},
          {"nccl_version", "2"},
          {"version", "0"},
          {"num_ranks", 2},
          {"num_nodes", 1},
          {"num_gpus", 2},
          {"ranks_per_gpu", 1},
          {"mps", false},
          {"max_bytes", 64},
          {"cutlass", "CUTLASS 4.2.0"},
          {"parts", json::object()}};
}

ProbePoint exchange(const std::string& kind, std::uint64_t bytes, std::vector<double> samples_us) {
  return {{{"kind", kind}, {"transport", "nccl"}, {"bytes_per_pair", bytes}},
          json::object(),
          std::move(samples_us)};
}

// Two starts of two points. Medians of the starts of the first: 3 and 5, so 4 in all.
json two_starts() {
  json document = header();
  add_start(document, ProbePart::kCommunication,
            {exchange("sendrecv", 1, {2.0, 3.0, 9.0}), exchange("alltoall", 64, {8.0})}, 1.26);
  add_start(document, ProbePart::kCommunication,
            {exchange("sendrecv", 1, {5.0}), exchange("alltoall", 64, {8.0})}, 1.0);
  return document;
}

TEST(ProbeFile, StartsAddUpAndSurviveTheFile) {
  const json document = two_starts();
  const json back = parse_probe(probe_text(document), "curves.json");
  EXPECT_EQ(back, document);
  EXPECT_EQ(probe_text(back), probe_text(document));
  const json& first = back.at("curves")[0];
  EXPECT_EQ(first.at("samples_us"), json::parse("[[2.0, 3.0, 9.0], [5.0]]"));
  EXPECT_EQ(first.at("median_us"), 4.0);
  EXPECT_EQ(first.at("restarts"), 2);
  EXPECT_EQ(back.at("parts").at("communication"),
            json::parse(R"({"starts": 2, "points": 2, "seconds": [1.3, 1.0]})"));
  EXPECT_NO_THROW(check_same_probe(back, header(), "curves.json"));
}

// The example that runtime/README.md names is a file that the probe would go on with, and its rows are
// those of the plans. Its hierarchical layer of 128 tokens, each to one of three ranks in turn: rank
// 0 has 43 for its neighbour, which keep to its GPU and so to itself on the first hop, and 43 + 42
// for the other GPU, which go to rank 2; rank 1 has its 43 + 43 for ranks 2 and 3 at rank 3.
TEST(ProbeFile, TheExampleOfThePartDirectIsOne) {
  const std::string path = COTERIE_SOURCE_DIR "/tests/runtime/probe_direct.json";
  const json document = parse_probe(read_file(path), path);
  EXPECT_EQ(num_starts(document, ProbePart::kDirect), 1U);
  EXPECT_EQ(probe_text(document), read_file(path));
  std::size_t checked = 0;
  for (const json& entry : document.at("direct")) {
    if (!entry.contains("rows")) continue;
    DirectCase layer;
    layer.num_tokens = entry.at("num_tokens");
    layer.hidden = entry.at("hidden");
    layer.rows_per_token = entry.at("rows_per_token");
    if (entry.at("pattern") == "all_to_one") layer.pattern = Pattern::kAllToOne;
    if (entry.at("scope") == "other_gpus") layer.scope = DirectScope::kOtherGpus;
    if (entry.at("policy") == "hierarchical") layer.policy = DispatchPolicy::kHierarchical;
    const LayerPlan plan = make_direct_plan(layer, 4, 2);
    for (std::size_t hop = 0; hop < plan.stages.size(); ++hop) {
      std::vector<std::vector<std::uint32_t>> rows(4, std::vector<std::uint32_t>(4, 0));
      auto copies = rows;
      const Stage& stage = plan.stages[hop];
      for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
        rows[stage.src[t]][stage.dst[t]] += stage.num_rows[t];
        copies[stage.src[t]][stage.dst[t]] += stage.num_copies[t];
      }
      EXPECT_EQ(entry.at(hop == 0 ? "rows" : "forward_rows"), json(rows));
      EXPECT_EQ(entry.at(hop == 0 ? "copies" : "forward_copies"), json(copies));
      ++checked;
    }
    if (plan.stages.size() == 2) {
      EXPECT_EQ(entry.at("ranks_per_node"), 2);
      EXPECT_EQ(entry.at("rows"),
                json({{43, 0, 85, 0}, {0, 42, 0, 86}, {85, 0, 43, 0}, {0, 86, 0, 42}}));
    }
  }
  // Three multiprocessor counts: four kinds of two layers, and six kinds of two hops.
  EXPECT_EQ(checked, 3U * (4 + 4 + 2 * 6));
}

TEST(ProbeFile, FactsAreThoseOfTheLastStart) {
  json document = header();
  for (const char* way : {"grouped", "per expert"}) {
    ProbePoint point{json::object(), json::object(), {1.0}};
    point.key["kind"] = "routed";
    point.facts["implementation"] = way;
    add_start(document, ProbePart::kExpertMlp, {point}, 1.0);
  }
  EXPECT_EQ(document.at("expert_mlp")[0].at("implementation"), "per expert");
}

// An interrupted start is completed before another begins.
TEST(ProbeFile, WhatIsMissingIsMeasured) {
  const std::vector<ProbePart> wanted{ProbePart::kCommunication, ProbePart::kKernels};
  using Parts = std::vector<ProbePart>;
  EXPECT_EQ(parts_to_measure(header(), wanted, false), wanted);
  EXPECT_EQ(parts_to_measure(header(), wanted, true), wanted);
  json document = header();
  add_start(document, ProbePart::kCommunication, {exchange("alltoall", 1, {1.0})}, 1.0);
  EXPECT_EQ(parts_to_measure(document, wanted, false), Parts{ProbePart::kKernels});
  EXPECT_EQ(parts_to_measure(document, wanted, true), Parts{ProbePart::kKernels});
  ProbePoint kernel{json::object(), json::object(), {1.0}};
  kernel.key["kind"] = "pack";
  add_start(document, ProbePart::kKernels, {kernel}, 1.0);
  EXPECT_EQ(parts_to_measure(document, wanted, false), Parts{});
  EXPECT_EQ(parts_to_measure(document, wanted, true), wanted);
}

std::string sentence(const std::function<void()>& body) {
  try {
    body();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ProbeFile, DamagedFilesAreRefusedWithTheirPlace) {
  const std::string text = probe_text(two_starts());
  const auto parse = [](const std::string& damaged) {
    return sentence([&] { (void)parse_probe(damaged, "c.json"); });
  };
  const auto with = [](const char* pointer, const json& value) {
    json document = two_starts();
    document[json::json_pointer(pointer)] = value;
    return document.dump();
  };
  // Cut at every byte: never accepted (the last two are the closing brace and the newline).
  for (std::size_t length = 0; length + 2 < text.size(); ++length) {
    EXPECT_THAT(parse(text.substr(0, length)), HasSubstr("text that is not JSON"));
  }
  EXPECT_EQ(parse(with("/schema_version", 1)),
            "c.json: found schema_version 1, expected 2; a probe of another version cannot be "
            "continued, choose another folder");
  EXPECT_THAT(parse("{}"), HasSubstr("found no schema_version"));
  EXPECT_THAT(parse("[]"), HasSubstr("found no schema_version"));
  EXPECT_EQ(parse(with("/curves/1/samples_us/0/0", -8.0)),
            "c.json: curves[1].samples_us: found -8.0, expected a time above zero in microseconds");
  EXPECT_THAT(parse(with("/curves/1/samples_us/0/0", 0.0)), HasSubstr("found 0.0, expected"));
  EXPECT_THAT(parse(with("/curves/1/samples_us/0/0", "x")), HasSubstr("found \"x\", expected"));
  EXPECT_THAT(parse(with("/curves/0/median_us", 0)), HasSubstr("curves[0].median_us: found 0"));
  EXPECT_THAT(parse(with("/curves/0/samples_us", json::array())),
              HasSubstr("found 0 lists of samples, expected one list for each of 2 starts"));
  EXPECT_THAT(parse(with("/curves/0/bytes_per_pair", -1)), HasSubstr("without a size"));
  EXPECT_EQ(parse(with("/curves", json::array())),
            "c.json: curves: found 0 entries, expected the 2 that were measured");
  EXPECT_THAT(parse(with("/curves", "x")), HasSubstr("found no list \"curves\""));
  EXPECT_THAT(parse(with("/parts", json::object())),
              HasSubstr("a list \"curves\" that \"parts\" does not name"));
  EXPECT_THAT(parse(with("/parts/notify", 1)), HasSubstr("c.json: parts.notify: found 1"));
  EXPECT_THAT(parse(with("/parts/other", 1)), HasSubstr("found a part \"other\""));
  EXPECT_THAT(parse(with("/launch_s", 0)), HasSubstr("c.json: launch_s: found 0"));
}

TEST(ProbeFile, MixedMachinesAndPlansAreRefused) {
  for (const char* key :
       {"machine", "device", "driver", "nccl_version", "version", "num_ranks", "num_nodes",
        "num_gpus", "ranks_per_gpu", "mps", "max_bytes", "cutlass"}) {
    json other = header();
    other[key] = "another";
    EXPECT_THAT(sentence([&] { check_same_probe(two_starts(), other, "c.json"); }),
                HasSubstr(fmt::format("c.json: {}: found {}, expected \"another\"", key,
                                      header().at(key).dump())));
  }
  json document = two_starts();
  EXPECT_THAT(sentence([&] {
                add_start(document, ProbePart::kCommunication,
                          {exchange("sendrecv", 2, {5.0}), exchange("alltoall", 64, {8.0})}, 1.0);
              }),
              HasSubstr("curves[0]: found a point of another kind or size"));
  EXPECT_THAT(sentence([&] {
                add_start(document, ProbePart::kCommunication, {exchange("sendrecv", 1, {5.0})},
                          1.0);
              }),
              HasSubstr("curves[1]"));
}

// 64 B per pair in 8 us, 2 pairs: 16 MB/s in all; the pair's own size is 1 B, in 4 us.
TEST(ProbeFile, TheLinksOfTheSkeletonComeFromTheCurves) {
  ProbeFacts facts;
  fill_links(two_starts(), facts);
  EXPECT_DOUBLE_EQ(facts.pair_latency_s, 4e-6);
  EXPECT_DOUBLE_EQ(facts.pair_bytes_per_s, 1 / 4e-6);
  EXPECT_DOUBLE_EQ(facts.all_to_all_bytes_per_s, 128 / 8e-6);
  EXPECT_EQ(facts.far_bytes_per_s, 0.0);
}

}  // namespace
}  // namespace coterie
