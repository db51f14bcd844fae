#include "sim/engines/flow_components.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace coterie::flow {
namespace {

// Disjoint sets with path halving; the smaller index represents a set.
class DisjointSets {
 public:
  explicit DisjointSets(std::size_t size) : parent_(size) {
    std::iota(parent_.begin(), parent_.end(), 0U);
  }
  std::uint32_t find(std::uint32_t item) {
    while (parent_[item] != item) {
      parent_[item] = parent_[parent_[item]];
      item = parent_[item];
    }
    return item;
  }
  void join(std::uint32_t a, std::uint32_t b) {
    a = find(a);
    b = find(b);
    if (a != b) parent_[std::max(a, b)] = std::min(a, b);
  }

 private:
  std::vector<std::uint32_t> parent_;
};

}  // namespace

std::vector<Component> split_components(const Program& program, const Transfers& transfers,
                                        const BindingRoutes& routes,
                                        std::span<const double> capacity) {
  // Items: links, then queues, then events.
  const auto first_queue = static_cast<std::uint32_t>(capacity.size());
  const auto first_event = static_cast<std::uint32_t>(first_queue + transfers.num_queues());
  DisjointSets sets(first_event + program.event_count.size());
  constexpr std::uint32_t kFree = std::numeric_limits<std::uint32_t>::max();

  const auto anchor = [&](std::size_t op) {
    if (program.is_transfer(op)) return first_queue + transfers.queue[op];
    if (program.waits_for[op] != kStartEvent) return first_event + program.waits_for[op];
    if (program.signal_begin[op] < program.signal_begin[op + 1]) {
      return first_event + program.signals[program.signal_begin[op]];
    }
    return kFree;
  };
  std::vector<double> link_s(capacity.size(), 0.0);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    const std::uint32_t item = anchor(op);
    if (item == kFree) continue;
    for (const std::uint32_t link : routes.of(op)) {
      sets.join(item, link);
      link_s[link] += program.bytes[op] / capacity[link];
    }
    if (program.waits_for[op] != kStartEvent) sets.join(item, first_event + program.waits_for[op]);
    for (std::uint32_t i = program.signal_begin[op]; i < program.signal_begin[op + 1]; ++i) {
      sets.join(item, first_event + program.signals[i]);
    }
  }

  std::vector<Component> components;
  std::vector<std::uint32_t> component_of(first_event + program.event_count.size(), kFree);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    const std::uint32_t item = anchor(op);
    std::uint32_t component = kFree;
    if (item != kFree) component = component_of[sets.find(item)];
    if (component == kFree) {
      component = static_cast<std::uint32_t>(components.size());
      components.emplace_back();
      if (item != kFree) component_of[sets.find(item)] = component;
    }
    components[component].ops.push_back(static_cast<std::uint32_t>(op));
  }
  for (std::uint32_t link = 0; link < capacity.size(); ++link) {
    const std::uint32_t component = component_of[sets.find(link)];
    if (component == kFree) continue;  // nobody crosses it
    components[component].links.push_back(link);
    components[component].busiest_link_s =
        std::max(components[component].busiest_link_s, link_s[link]);
  }
  return components;
}

}  // namespace coterie::flow
