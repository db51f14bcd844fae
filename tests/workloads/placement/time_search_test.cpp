// The search by time: its rates against a slow reference, and placements whose best time is worked
// out by hand or found by trying all.

#include "workloads/placement/time_search.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/workloads/placement/routings.hpp"
#include "workloads/placement/layer_times.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {
namespace {

using Parts = std::vector<std::uint32_t>;

std::vector<std::uint64_t> loads_of(const std::vector<ExpertIdx>& experts,
                                    std::uint32_t num_experts) {
  std::vector<std::uint64_t> load(num_experts, 0);
  for (const ExpertIdx expert : experts) ++load[expert];
  return load;
}

// Rates that count what the ranks compute, and rows with `row_s`.
LayerCost compute_cost(std::uint32_t num_ranks, double num_tokens, double row_s) {
  LayerCost cost;
  cost.num_ranks = num_ranks;
  cost.ranks_per_node = num_ranks;
  cost.group_tokens = num_tokens;
  cost.row_s = row_s;
  cost.expert_s = [](double tokens) { return tokens; };
  for (LayerCost::Direction* direction : {&cost.out, &cost.back}) {
    direction->own_base_s.assign(num_ranks, 0.0);
    direction->own_row_s.assign(num_ranks, 0.0);
  }
  return cost;
}

// The formula of layer_times.hpp, word for word, with sets.
double slow_cost_s(const std::vector<ExpertIdx>& experts, std::uint32_t num_topk,
                   const LayerCost& cost, const Parts& parts) {
  const std::size_t num_tokens = experts.size() / num_topk;
  const double scale = cost.group_tokens / static_cast<double>(num_tokens);
  std::vector<double> rows(cost.num_ranks, 0.0);
  std::vector<double> tokens(parts.size(), 0.0);
  std::vector<double> relays(cost.num_nodes(), 0.0);
  for (std::size_t t = 0; t < num_tokens; ++t) {
    std::set<std::uint32_t> ranks;
    std::set<std::uint32_t> nodes;
    for (std::uint32_t j = 0; j < num_topk; ++j) {
      const ExpertIdx expert = experts[t * num_topk + j];
      tokens[expert] += scale;
      ranks.insert(parts[expert]);
      nodes.insert(parts[expert] / cost.ranks_per_node);
      if (cost.rows_are_copies) rows[parts[expert]] += scale;
    }
    for (const std::uint32_t rank : ranks) rows[rank] += cost.rows_are_copies ? 0.0 : scale;
    for (const std::uint32_t node : nodes) relays[node] += scale;
  }
  std::vector<double> node_rows(cost.num_nodes(), 0.0);
  for (std::uint32_t r = 0; r < cost.num_ranks; ++r) {
    node_rows[r / cost.ranks_per_node] += rows[r];
  }
  const auto direction_s = [&](const LayerCost::Direction& direction, std::uint32_t rank) {
    const std::uint32_t node = rank / cost.ranks_per_node;
    double row_s = direction.own_base_s[rank] + direction.own_row_s[rank] * rows[rank];
    double relay_s = 0.0;
    double both_s = 0.0;
    for (const LayerCost::Channel& channel : direction.channels) {
      const bool rows_cross = channel.row_s[node] > 0.0;
      const bool relays_cross = cost.relayed && channel.relay_s[node] > 0.0;
      double by_rows = channel.base_s;
      double by_relays = channel.base_s;
      for (std::uint32_t n = 0; n < cost.num_nodes(); ++n) {
        by_rows += channel.row_s[n] * node_rows[n];
        if (cost.relayed) by_relays += channel.relay_s[n] * relays[n];
      }
      if (rows_cross) row_s = std::max(row_s, by_rows);
      if (relays_cross) relay_s = std::max(relay_s, by_relays);
      if (rows_cross || relays_cross)
        both_s = std::max(both_s, by_rows + by_relays - channel.base_s);
    }
    if (!cost.relayed) return row_s;
    return std::max(both_s, std::max(row_s, relay_s) + std::min(row_s, relay_s) / cost.num_rounds);
  };
  std::vector<double> turns(cost.num_ranks, 0.0);  // [gpu]
  for (std::uint32_t r = 0; r < cost.num_ranks; ++r) {
    turns[r / cost.ranks_per_gpu] += cost.turn_row_s * rows[r];
  }
  for (std::size_t e = 0; e < parts.size(); ++e) {
    turns[parts[e] / cost.ranks_per_gpu] += cost.expert_s(tokens[e]);
  }
  double most = 0.0;
  for (std::uint32_t r = 0; r < cost.num_ranks; ++r) {
    const double work = cost.row_s * rows[r] + turns[r / cost.ranks_per_gpu];
    most = std::max(most, direction_s(cost.out, r) + work + direction_s(cost.back, r));
  }
  const std::vector<double>& sent = cost.relayed ? relays : rows;
  return cost.fixed_s + most +
         cost.source_row_s * std::accumulate(sent.begin(), sent.end(), 0.0) / cost.num_ranks;
}

// All assignments of experts to ranks with room for them, by recursion.
void each_assignment(Parts& parts, std::uint32_t expert, std::vector<std::uint32_t>& room,
                     const std::function<void()>& visit) {
  if (expert == parts.size()) {
    visit();
    return;
  }
  for (std::uint32_t rank = 0; rank < room.size(); ++rank) {
    if (room[rank] == 0) continue;
    --room[rank];
    parts[expert] = rank;
    each_assignment(parts, expert + 1, room, visit);
    ++room[rank];
  }
}

// Tokens of one expert each, 40, 30, 20 and 10: the ranks {0, 1} and {2, 3} end after 70 and 30.
// The best is {0, 3} and {1, 2}, 50 each.
TEST(TimeSearch, BalancesWhatIsComputed) {
  std::vector<ExpertIdx> experts;
  for (const auto& [expert, count] : {std::pair{0, 40}, {1, 30}, {2, 20}, {3, 10}}) {
    experts.insert(experts.end(), static_cast<std::size_t>(count), static_cast<ExpertIdx>(expert));
  }
  const TokenSample sample(experts, 1, 4);
  const auto load = loads_of(experts, 4);
  const LayerCost cost = compute_cost(2, 100.0, 0.0);
  const TimeTask task{sample, load, cost};
  Parts parts{0, 0, 1, 1};
  EXPECT_DOUBLE_EQ(layer_cost_s(task, parts), 70.0);
  refine_time(task, {}, parts);
  EXPECT_DOUBLE_EQ(layer_cost_s(task, parts), 50.0);
}

// The same four experts, one on each of four ranks, two ranks on a GPU: on GPUs of their own the ranks
// end after 40 however they stand, but two on one GPU take turns, and with 0 and 1 on the first it is
// busy for 70. With 0 and 3 there both are for 50. A row that takes turns, 1 s per token here, makes
// that 100; one that does not is its rank's own, 40 of them on the fullest: 90.
TEST(TimeSearch, BalancesGpusWhoseRanksTakeTurns) {
  std::vector<ExpertIdx> experts;
  for (const auto& [expert, count] : {std::pair{0, 40}, {1, 30}, {2, 20}, {3, 10}}) {
    experts.insert(experts.end(), static_cast<std::size_t>(count), static_cast<ExpertIdx>(expert));
  }
  const TokenSample sample(experts, 1, 4);
  const auto load = loads_of(experts, 4);
  LayerCost cost = compute_cost(4, 100.0, 0.0);
  Parts parts{0, 1, 2, 3};
  EXPECT_DOUBLE_EQ(layer_cost_s({sample, load, cost}, parts), 40.0);
  cost.ranks_per_gpu = 2;
  EXPECT_DOUBLE_EQ(layer_cost_s({sample, load, cost}, parts), 70.0);
  refine_time({sample, load, cost}, {}, parts);
  EXPECT_DOUBLE_EQ(layer_cost_s({sample, load, cost}, parts), 50.0);
  EXPECT_EQ(parts[0] / 2, parts[3] / 2);
  EXPECT_EQ(parts[1] / 2, parts[2] / 2);
  cost.turn_row_s = 1.0;
  EXPECT_DOUBLE_EQ(layer_cost_s({sample, load, cost}, parts), 100.0);
  cost.turn_row_s = 0.0;
  cost.row_s = 1.0;
  EXPECT_DOUBLE_EQ(layer_cost_s({sample, load, cost}, parts), 90.0);
}

// Three tokens choose experts 0 and 1, one chooses 2 and 3. Experts 0 and 1 on one rank make it
// serve 3 rows and 6 copies, 3 r + 6 seconds at r seconds per row; apart, both ranks serve all 4
// tokens with 4 copies, 4 r + 4. Together is better from r = 2 on.
TEST(TimeSearch, WeighsRowsAgainstBalance) {
  const std::vector<ExpertIdx> experts{0, 1, 0, 1, 0, 1, 2, 3};
  const TokenSample sample(experts, 2, 4);
  const auto load = loads_of(experts, 4);
  for (const auto& [row_s, best_s] : {std::pair{1.0, 8.0}, {3.0, 15.0}}) {
    const LayerCost cost = compute_cost(2, 4.0, row_s);
    const TimeTask task{sample, load, cost, 6};
    for (const Parts& start : {Parts{0, 0, 1, 1}, Parts{0, 1, 0, 1}}) {
      Parts parts = start;
      refine_time(task, {1000, 5, 1}, parts);
      EXPECT_DOUBLE_EQ(layer_cost_s(task, parts), best_s);
    }
  }
}

// A machine of 2 nodes of 2 ranks with every kind of rate.
LayerCost varied_cost(bool relayed, bool copies) {
  LayerCost cost = compute_cost(4, 500.0, 0.02);
  cost.ranks_per_node = 2;
  cost.relayed = relayed;
  cost.num_rounds = 4;
  cost.rows_are_copies = copies;
  cost.source_row_s = 0.01;
  cost.fixed_s = 3.0;
  cost.expert_s = [](double tokens) { return std::max(2.0, 0.05 * tokens); };
  cost.out.own_row_s = {0.1, 0.1, 0.2, 0.1};
  cost.out.own_base_s = {0.0, 1.0, 0.0, 0.0};
  cost.out.channels.push_back({0.5, {0.06, 0.0}, {0.0, 0.01}});
  cost.out.channels.push_back({0.0, {0.0, 0.05}, {0.2, 0.2}});
  cost.back.own_row_s = {0.05, 0.05, 0.05, 0.3};
  cost.back.channels.push_back({0.25, {0.04, 0.04}, {0.1, 0.0}});
  return cost;
}

// Costs kept up to date swap by swap are those of counting anew: a search ends with what the slow
// formula gives, for every combination of what rates can be.
TEST(TimeSearch, KeepsCostsExact) {
  const Routing routing = testing::planted_routing({16, 4, 500, 25, 1}, 4, 0.7, 3);
  const auto load = loads_of(routing.experts, 16);
  const TokenSample sample(routing.experts, 4, 16);
  for (const bool relayed : {false, true}) {
    for (const auto& [copies, ranks_per_gpu] :
         {std::pair{false, 1u}, {true, 1u}, {false, 2u}, {true, 2u}}) {
      LayerCost cost = varied_cost(relayed, copies);
      cost.ranks_per_gpu = ranks_per_gpu;
      if (ranks_per_gpu > 1) cost.turn_row_s = 0.03;
      const TimeTask task{sample, load, cost, 4};
      Parts parts(16);
      for (std::uint32_t e = 0; e < 16; ++e) parts[e] = e % 4;
      const double before_s = layer_cost_s(task, parts);
      EXPECT_NEAR(before_s, slow_cost_s(routing.experts, 4, cost, parts), 1e-9 * before_s);
      const double expected_before_s = expected_cost_s(task, parts);
      refine_time(task, {100'000, 10, 5}, parts);
      EXPECT_LT(expected_cost_s(task, parts), expected_before_s);
      const double after_s = layer_cost_s(task, parts);
      EXPECT_NEAR(after_s, slow_cost_s(routing.experts, 4, cost, parts), 1e-9 * after_s);
      for (std::uint32_t rank = 0; rank < 4; ++rank) {
        EXPECT_EQ(std::count(parts.begin(), parts.end(), rank), 4);
      }
    }
  }
}

// A token of weight w counts as w equal tokens, in all that a search sees and does.
TEST(TimeSearch, WeightsStandForTokens) {
  const Routing routing = testing::planted_routing({16, 4, 300, 15, 1}, 4, 0.7, 5);
  std::vector<std::uint32_t> weight;
  std::vector<ExpertIdx> repeated;
  for (std::uint32_t t = 0; t < 300; ++t) {
    weight.push_back(1 + t % 3);
    for (std::uint32_t i = 0; i < weight.back(); ++i) {
      repeated.insert(repeated.end(), routing.experts.begin() + 4 * t,
                      routing.experts.begin() + 4 * (t + 1));
    }
  }
  const auto load = loads_of(repeated, 16);
  const TokenSample weighted(routing.experts, 4, 16, weight);
  const TokenSample all(repeated, 4, 16);
  EXPECT_EQ(weighted.total_weight(), 600);
  for (std::uint32_t e = 0; e < 16; ++e) EXPECT_EQ(weighted.load(e), all.load(e));
  const LayerCost cost = varied_cost(true, false);
  Parts parts(16);
  for (std::uint32_t e = 0; e < 16; ++e) parts[e] = e % 4;
  Parts parts_of_all = parts;
  refine_time({weighted, load, cost, 4}, {100'000, 10, 5}, parts);
  refine_time({all, load, cost, 4}, {100'000, 10, 5}, parts_of_all);
  EXPECT_EQ(parts, parts_of_all);
  EXPECT_NEAR(layer_cost_s({weighted, load, cost, 4}, parts), slow_cost_s(repeated, 4, cost, parts),
              1e-9);
}

// Experts of 60, 10, 50 and 40 tokens: {0, 1} and {2, 3} end after 70 and 90. Where 0 and 1 are
// replicas of one, which never share a rank, the best is {0, 3} and {1, 2} with 100 and 60.
TEST(TimeSearch, KeepsReplicasApart) {
  std::vector<ExpertIdx> experts;
  for (const auto& [expert, count] : {std::pair{0, 60}, {1, 10}, {2, 50}, {3, 40}}) {
    experts.insert(experts.end(), static_cast<std::size_t>(count), static_cast<ExpertIdx>(expert));
  }
  const TokenSample sample(experts, 1, 4);
  const auto load = loads_of(experts, 4);
  const LayerCost cost = compute_cost(2, 160.0, 0.0);
  const std::vector<ExpertIdx> replica_of{0, 0, 1, 2};
  TimeTask task{sample, load, cost};
  Parts parts{0, 1, 0, 1};
  refine_time(task, {}, parts);
  EXPECT_DOUBLE_EQ(layer_cost_s(task, parts), 90.0);
  EXPECT_EQ(parts[0], parts[1]);
  task.replica_of = replica_of;
  parts = {0, 1, 0, 1};
  refine_time(task, {1000, 20, 1}, parts);
  EXPECT_DOUBLE_EQ(layer_cost_s(task, parts), 100.0);
  EXPECT_NE(parts[0], parts[1]);
}

// 8 experts on 4 ranks: the least expected cost of all 2520 assignments is found.
TEST(TimeSearch, FindsTheBestOfAll) {
  const Routing routing = testing::planted_routing({8, 2, 200, 10, 1}, 4, 0.7, 9);
  const auto load = loads_of(routing.experts, 8);
  const TokenSample sample(routing.experts, 2, 8);
  for (const bool relayed : {false, true}) {
    const LayerCost cost = varied_cost(relayed, false);
    const TimeTask task{sample, load, cost, 5};
    Parts parts(8);
    std::vector<std::uint32_t> room(4, 2);
    double best_s = 1e9;
    each_assignment(parts, 0, room,
                    [&] { best_s = std::min(best_s, expected_cost_s(task, parts)); });
    for (std::uint32_t e = 0; e < 8; ++e) parts[e] = e / 2;
    refine_time(task, {1'000'000, 100, 1}, parts);
    EXPECT_NEAR(expected_cost_s(task, parts), best_s, 1e-9 * best_s);
  }
}

// P = 8 ranks whose cost strays by a tenth: sqrt(2 ln 8) / 0.1 = 20.4, between 2^4 and 2^4.5 = 22.6.
// By a hundredth it is 204, the power 128 at most.
TEST(TimeSearch, SharpensWithCertainty) {
  const std::vector<ExpertIdx> experts{0, 1, 2, 3, 4, 5, 6, 7};
  const TokenSample sample(experts, 1, 8);
  const auto load = loads_of(experts, 8);
  const LayerCost cost = compute_cost(8, 8.0, 0.0);
  const TimeTask task{sample, load, cost};
  const Parts parts{0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(noise_exponent(task, parts, 0.1), 4u);
  EXPECT_EQ(noise_exponent(task, parts, 0.01), 7u);
}

TEST(TimeAware, NeedsSomethingThatPredictsTimes) {
  const Routing routing = testing::planted_routing({8, 2, 200, 10, 1}, 4, 0.7, 9);
  PlacementRequest request;
  request.strategy = "time_aware";
  request.num_ranks = 4;
  request.ranks_per_node = 4;
  try {
    make_placement(routing, request);
    FAIL() << "a placement by time without times";
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what()),
              "strategy time_aware: found no cluster to predict times on, expected one: it is "
              "placed for a topology, a transport and a dispatch policy (`coterie place "
              "--topology`)");
  }
}

}  // namespace
}  // namespace coterie
