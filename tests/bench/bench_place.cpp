// How fast placements are counted and learnt.
//
//   bench_place
//
// Counting: fan_out against the same counts by one std::set per token, on one core; an entry is one
// (token, layer, expert). Learning: seconds per layer of every strategy. Medians of several runs.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <set>

#include "core/statistics.hpp"
#include "core/table.hpp"
#include "tests/workloads/placement/routings.hpp"
#include "workloads/plan/fan_out.hpp"

namespace coterie {
namespace {

double median_seconds(int runs, const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return median(std::move(seconds));
}

// The baseline: distinct ranks and nodes of every token with sets.
double naive_fan_out(const Routing& routing, const ExpertHosts& hosts,
                     std::uint32_t ranks_per_node) {
  std::uint64_t ranks_hit = 0;
  std::uint64_t nodes_hit = 0;
  const auto experts = routing.layer_experts(0);
  for (std::size_t begin = 0; begin < experts.size(); begin += routing.num_topk) {
    std::set<std::uint32_t> ranks;
    std::set<std::uint32_t> nodes;
    for (std::uint32_t j = 0; j < routing.num_topk; ++j) {
      const std::uint32_t rank = hosts.ranks[experts[begin + j]];
      ranks.insert(rank);
      nodes.insert(rank / ranks_per_node);
    }
    ranks_hit += ranks.size();
    nodes_hit += nodes.size();
  }
  return static_cast<double>(ranks_hit + nodes_hit) / static_cast<double>(routing.num_tokens());
}

struct Shape {
  std::uint32_t num_experts, num_topk, num_ranks;
};

void bench_counting() {
  Table table{{"experts / top-k / ranks", "entries/s", "sets: entries/s", "ratio"}, {}};
  for (const Shape& shape :
       {Shape{64, 6, 8}, Shape{256, 8, 64}, Shape{256, 8, 256}, Shape{1024, 8, 1024}}) {
    const Routing routing =
        testing::uniform_routing({shape.num_experts, shape.num_topk, 500'000, 256, 1}, 1);
    PlacementRequest request;
    request.strategy = "contiguous";
    request.num_ranks = shape.num_ranks;
    const LayerPlacement layer = make_placement(routing, request).layers[0];
    const ExpertHosts hosts = expert_hosts(layer, shape.num_experts);
    const RankTokens tokens =
        deal_tokens(routing, shape.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
    const auto entries = static_cast<double>(routing.experts.size());
    double checksum = 0.0;
    const double fast =
        median_seconds(7, [&] { checksum += fan_out(routing, 0, layer, 8, tokens).fanout_ranks; });
    const double naive = median_seconds(3, [&] { checksum += naive_fan_out(routing, hosts, 8); });
    table.rows.push_back({fmt::format("{} / {} / {}{}", shape.num_experts, shape.num_topk,
                                      shape.num_ranks, checksum > 0.0 ? "" : " (empty)"),
                          fmt::format("{:.0f} M", entries / fast * 1e-6),
                          fmt::format("{:.1f} M", entries / naive * 1e-6),
                          fmt::format("{:.1f}x", naive / fast)});
  }
  fmt::print("fan_out, one core, against one std::set per token\n\n{}\n", render(table));
}

void bench_learning() {
  Table table{{"strategy", "64 experts, 8 ranks: s/layer", "256 experts, 64 ranks: s/layer",
               "fan-out over contiguous"},
              {}};
  const Routing small = testing::planted_routing({64, 6, 16'384, 64, 1}, 8, 0.6, 2);
  const Routing large = testing::planted_routing({256, 8, 16'384, 64, 1}, 32, 0.6, 2);
  const auto tokens = deal_tokens(large, 64, std::nullopt, SequenceDeal::kRoundRobin);
  double contiguous = 0.0;
  for (const std::string& strategy : placement_strategies()) {
    PlacementRequest request;
    request.strategy = strategy;
    request.ranks_per_node = 8;
    request.num_ranks = 8;
    const double small_s = median_seconds(3, [&] { make_placement(small, request); });
    request.num_ranks = 64;
    Placement placement;
    const double large_s = median_seconds(3, [&] { placement = make_placement(large, request); });
    const double counted = fan_out(large, 0, placement.layers[0], 8, tokens).fanout_ranks;
    if (strategy == "contiguous") contiguous = counted;
    table.rows.push_back({strategy, fmt::format("{:.4f}", small_s), fmt::format("{:.4f}", large_s),
                          fmt::format("{:.3f}", counted / contiguous)});
  }
  fmt::print("Learning one layer from 16,384 tokens of planted groups, one core\n\n{}",
             render(table));
}

}  // namespace
}  // namespace coterie

int main() {
  coterie::bench_counting();
  coterie::bench_learning();
}
