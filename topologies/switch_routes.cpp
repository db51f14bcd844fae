#include "topologies/switch_routes.hpp"

#include <algorithm>
#include <limits>

namespace coterie {
namespace {

constexpr std::uint32_t kUnreached = std::numeric_limits<std::uint32_t>::max();
// An entry: bit 31 clear: 16 bits of first cable, 15 bits of count; set: place in spelled_out.
constexpr std::uint32_t kSpelledOut = 1U << 31;
constexpr std::uint32_t kMaxFirst = (1U << 16) - 1;
constexpr std::uint32_t kMaxCount = (1U << 15) - 1;

}  // namespace

SwitchRoutes::SwitchRoutes(const FabricModel& model, std::span<const std::uint8_t> failed) {
  const auto n = static_cast<std::uint32_t>(model.switches.switches.size());
  begin_.reserve(n + 1);
  begin_.push_back(0);
  for (std::uint32_t i = 0; i < n; ++i) {
    for (const auto& edge :
         boost::make_iterator_range(boost::out_edges(model.switch_vertex(i), model.graph))) {
      const auto to = static_cast<std::uint32_t>(boost::target(edge, model.graph));
      if (model.graph[to].kind != VertexKind::kSwitch) continue;
      const FabricEdge& cable = model.graph[edge];
      // The two directions of a cable are numbered side by side.
      if (!failed.empty() && (failed[cable.link] != 0 || failed[cable.link ^ 1U] != 0)) continue;
      hops_.push_back({model.graph[to].idx, cable.link});
      cost_.push_back(cable.cost);
      max_cost_ = std::max(max_cost_, cable.cost);
    }
    begin_.push_back(static_cast<std::uint32_t>(hops_.size()));
  }
  made_ = std::make_unique<std::once_flag[]>(n);
  tables_.resize(n);
}

// Cables cost the same in both directions, so the search runs outwards from `dst`.
SwitchRoutes::Distances SwitchRoutes::distances_to(std::uint32_t dst) const {
  Distances found;
  found.cost.assign(num_switches(), kUnreached);
  found.hops.assign(num_switches(), 0);
  std::vector<std::vector<std::uint32_t>> buckets(max_cost_ + 1);  // by cost, modulo their number
  found.cost[dst] = 0;
  buckets[0].push_back(dst);
  std::size_t waiting = 1;
  for (std::uint32_t cost = 0; waiting > 0; ++cost) {
    std::vector<std::uint32_t> bucket;
    bucket.swap(buckets[cost % buckets.size()]);
    waiting -= bucket.size();
    for (const std::uint32_t at : bucket) {
      if (found.cost[at] != cost) continue;  // reached more cheaply before
      for (std::uint32_t i = begin_[at]; i < begin_[at + 1]; ++i) {
        const std::uint32_t to = hops_[i].to;
        const std::uint32_t its_cost = cost + cost_[i];
        if (its_cost > found.cost[to]) continue;
        if (its_cost < found.cost[to]) {
          found.cost[to] = its_cost;
          found.hops[to] = 0;
          buckets[its_cost % buckets.size()].push_back(to);
          ++waiting;
        }
        found.hops[to] = std::max(found.hops[to], found.hops[at] + 1);
      }
    }
  }
  return found;
}

SwitchRoutes::Table SwitchRoutes::make_table(std::uint32_t dst) const {
  const std::vector<std::uint32_t> cost = distances_to(dst).cost;
  Table table;
  table.entries.assign(num_switches(), 0);
  std::vector<std::uint32_t> shortest;
  for (std::uint32_t at = 0; at < num_switches(); ++at) {
    if (at == dst || cost[at] == kUnreached) continue;
    shortest.clear();
    for (std::uint32_t i = begin_[at]; i < begin_[at + 1]; ++i) {
      const std::uint32_t rest = cost[hops_[i].to];
      if (rest != kUnreached && rest + cost_[i] == cost[at]) shortest.push_back(i);
    }
    const auto count = static_cast<std::uint32_t>(shortest.size());
    const std::uint32_t first = shortest.front() - begin_[at];
    if (shortest.back() - shortest.front() + 1 == count && first <= kMaxFirst &&
        count <= kMaxCount) {
      table.entries[at] = first << 15 | count;
    } else {
      table.entries[at] = kSpelledOut | static_cast<std::uint32_t>(table.spelled_out.size());
      table.spelled_out.push_back({count, 0});
      for (const std::uint32_t i : shortest) table.spelled_out.push_back(hops_[i]);
    }
  }
  return table;
}

std::span<const SwitchHop> SwitchRoutes::next_hops(std::uint32_t at, std::uint32_t dst) const {
  std::call_once(made_[dst], [&] { tables_[dst] = make_table(dst); });
  const Table& table = tables_[dst];
  const std::uint32_t entry = table.entries[at];
  if ((entry & kSpelledOut) != 0) {
    const SwitchHop* list = table.spelled_out.data() + (entry & ~kSpelledOut);
    return {list + 1, list->to};
  }
  return {hops_.data() + begin_[at] + (entry >> 15), entry & kMaxCount};
}

std::uint32_t SwitchRoutes::longest_to(std::uint32_t dst,
                                       std::span<const std::uint32_t> sources) const {
  const Distances found = distances_to(dst);
  std::uint32_t longest = 0;
  for (const std::uint32_t source : sources) {
    if (found.cost[source] != kUnreached) longest = std::max(longest, found.hops[source]);
  }
  return longest;
}

}  // namespace coterie
