#include "sim/engines/flow_components.hpp"

#include <algorithm>
#include <bit>
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

// FNV-1a over 64-bit words, folded: equal parts must meet, unequal ones are told apart by ==.
class Hash {
 public:
  void add(std::uint64_t word) {
    state_ = (state_ ^ word) * 0x9e3779b97f4a7c15ULL;
    state_ ^= state_ >> 32U;
  }
  void add(const std::vector<double>& values) {
    add(values.size());
    for (const double value : values) add(std::bit_cast<std::uint64_t>(value));
  }
  void add(const std::vector<std::uint32_t>& values) {
    add(values.size());
    for (const std::uint32_t value : values) add(std::uint64_t{value});
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325ULL;
};

}  // namespace

std::vector<std::vector<std::uint32_t>> split_components(const Program& program,
                                                         const BindingRoutes& routes,
                                                         std::size_t num_capacities) {
  // Items: links and resources, then queues, then events.
  const auto first_queue = static_cast<std::uint32_t>(num_capacities);
  const auto first_event = static_cast<std::uint32_t>(first_queue + program.queue_places.size());
  DisjointSets sets(first_event + program.event_count.size());

  const auto anchor = [&](std::size_t op) {
    if (const auto route = routes.of(op); !route.empty()) return route.front();
    if (program.queue[op] != kFreeQueue) return first_queue + program.queue[op];
    if (program.waits_for[op] != kStartEvent) return first_event + program.waits_for[op];
    if (program.signal_begin[op] < program.signal_begin[op + 1]) {
      return first_event + program.signals[program.signal_begin[op]];
    }
    return kNone;
  };
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    const std::uint32_t item = anchor(op);
    if (item == kNone) continue;
    for (const std::uint32_t link : routes.of(op)) sets.join(item, link);
    if (program.queue[op] != kFreeQueue) sets.join(item, first_queue + program.queue[op]);
    if (program.waits_for[op] != kStartEvent) sets.join(item, first_event + program.waits_for[op]);
    for (std::uint32_t i = program.signal_begin[op]; i < program.signal_begin[op + 1]; ++i) {
      sets.join(item, first_event + program.signals[i]);
    }
  }

  std::vector<std::vector<std::uint32_t>> components;
  std::vector<std::uint32_t> component_of(first_event + program.event_count.size(), kNone);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    const std::uint32_t item = anchor(op);
    std::uint32_t component = kNone;
    if (item != kNone) component = component_of[sets.find(item)];
    if (component == kNone) {
      component = static_cast<std::uint32_t>(components.size());
      components.emplace_back();
      if (item != kNone) component_of[sets.find(item)] = component;
    }
    components[component].push_back(static_cast<std::uint32_t>(op));
  }
  return components;
}

double Part::busiest_link_s() const {
  std::vector<double> bytes(capacity.size(), 0.0);
  for (std::size_t op = 0; op < num_ops(); ++op) {
    for (const std::uint32_t link : route_of(op)) bytes[link] += amount[op];
  }
  double busiest = 0.0;
  for (std::size_t link = 0; link < bytes.size(); ++link) {
    busiest = std::max(busiest, bytes[link] / capacity[link]);
  }
  return busiest;
}

std::uint64_t Part::hash() const {
  Hash hash;
  for (const auto* values : {&amount, &delay_s, &cap, &capacity}) hash.add(*values);
  for (const auto* values : {&queue, &waits_for, &route_begin, &route, &signal_begin, &signals,
                             &event_count, &queue_places}) {
    hash.add(*values);
  }
  return hash.value();
}

Renumbering::Renumbering(const Program& program, const Routes& all, const BindingRoutes& routes)
    : program_(program),
      all_(all),
      routes_(routes),
      link_(all.capacity.size(), kNone),
      queue_(program.queue_places.size(), kNone),
      event_(program.event_count.size(), kNone) {}

Part Renumbering::part(std::span<const std::uint32_t> ops, std::vector<std::uint32_t>* links) {
  Part out;
  std::vector<std::uint32_t> used_links;
  std::vector<std::uint32_t> used_queues;
  std::vector<std::uint32_t> used_events;
  // The number of `item`, which gets the next one where it has none.
  const auto number = [](std::vector<std::uint32_t>& numbers, std::vector<std::uint32_t>& used,
                         std::uint32_t item) {
    if (numbers[item] == kNone) {
      numbers[item] = static_cast<std::uint32_t>(used.size());
      used.push_back(item);
    }
    return numbers[item];
  };
  const auto event_number = [&](std::uint32_t event) {
    return event == kStartEvent ? 0 : 1 + number(event_, used_events, event);
  };
  for (auto* values : {&out.amount, &out.delay_s, &out.cap}) values->reserve(ops.size());
  for (auto* values : {&out.queue, &out.waits_for}) values->reserve(ops.size());
  for (auto* values : {&out.route_begin, &out.signal_begin}) {
    values->reserve(ops.size() + 1);
    values->push_back(0);
  }
  for (const std::uint32_t op : ops) {
    out.amount.push_back(program_.flows(op) ? program_.amount[op] : 0.0);
    out.delay_s.push_back(all_.delay_s[op]);
    out.cap.push_back(routes_.cap[op]);
    const std::uint32_t queue = program_.queue[op];
    out.queue.push_back(queue == kFreeQueue ? kNone : number(queue_, used_queues, queue));
    out.waits_for.push_back(event_number(program_.waits_for[op]));
    const std::span<const std::uint32_t> route = routes_.of(op);
    for (const std::uint32_t link : route) out.route.push_back(number(link_, used_links, link));
    out.route_begin.push_back(static_cast<std::uint32_t>(out.route.size()));
    out.max_hops = std::max(out.max_hops, static_cast<std::uint32_t>(route.size()));
    for (std::uint32_t i = program_.signal_begin[op]; i < program_.signal_begin[op + 1]; ++i) {
      out.signals.push_back(event_number(program_.signals[i]));
    }
    out.signal_begin.push_back(static_cast<std::uint32_t>(out.signals.size()));
  }
  for (const std::uint32_t link : used_links) {
    out.capacity.push_back(all_.capacity[link]);
    link_[link] = kNone;
  }
  for (const std::uint32_t queue : used_queues) {
    out.queue_places.push_back(program_.queue_places[queue]);
    queue_[queue] = kNone;
  }
  out.event_count.push_back(0);
  for (const std::uint32_t event : used_events) {
    out.event_count.push_back(program_.event_count[event]);
    event_[event] = kNone;
  }
  if (links != nullptr) *links = std::move(used_links);
  return out;
}

}  // namespace coterie::flow
