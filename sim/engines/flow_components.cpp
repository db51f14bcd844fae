#include "sim/engines/flow_components.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "core/hash.hpp"

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

std::vector<std::vector<std::uint32_t>> split_components(const Program& program, const Routes& all,
                                                         const BindingRoutes& routes) {
  // Items: links and resources, then queues, then events.
  const auto first_queue = static_cast<std::uint32_t>(all.capacity.size());
  const auto first_event = static_cast<std::uint32_t>(first_queue + program.queue_places.size());
  DisjointSets sets(first_event + program.event_count.size());

  const std::uint32_t num_links = all.num_links(program);
  const auto holds = [&](std::size_t op) {
    const auto range =
        std::equal_range(program.holds.begin(), program.holds.end(),
                         Hold{.begin_op = static_cast<std::uint32_t>(op)},
                         [](const Hold& x, const Hold& y) { return x.begin_op < y.begin_op; });
    return std::span(range.first, range.second);
  };
  // Something that the operation shares with others, by which its set is found.
  const auto anchor = [&](std::size_t op) {
    if (const auto route = routes.of(op); !route.empty()) return route.front();
    if (program.queue[op] != kFreeQueue) return first_queue + program.queue[op];
    if (program.waits_for[op] != kStartEvent) return first_event + program.waits_for[op];
    if (program.signal_begin[op] < program.signal_begin[op + 1]) {
      return first_event + program.signals[program.signal_begin[op]];
    }
    const auto held = holds(op);
    return held.empty() ? kNone : num_links + held.front().resource;
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
    for (const Hold& hold : holds(op)) {
      sets.join(item, num_links + hold.resource);
      sets.join(item, first_event + hold.end_event);
    }
  }

  for (const Detour& detour : all.detours) {
    const std::uint32_t item = anchor(detour.op);
    for (const std::uint32_t link : detour.links) sets.join(item, link);
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

std::size_t Part::num_caps() const {
  std::set<double> caps(cap.begin(), cap.end());
  caps.erase(std::numeric_limits<double>::infinity());
  return caps.size();
}

double Part::busiest_link_s() const {
  std::vector<double> amounts(capacity.size(), 0.0);
  for (std::size_t op = 0; op < num_ops(); ++op) {
    for (const std::uint32_t link : route_of(op)) amounts[link] += amount[op];
  }
  std::vector<double> largest = capacity;
  for (const CapacityChange& change : changes) {
    largest[change.link] = std::max(largest[change.link], change.capacity);
  }
  double busiest = 0.0;
  for (std::size_t link = 0; link < amounts.size(); ++link) {
    if (amounts[link] > 0.0) busiest = std::max(busiest, amounts[link] / largest[link]);
  }
  return busiest;
}

std::uint64_t Part::hash() const {
  ContentHash hash;
  for (const auto* values : {&amount, &delay_s, &cap, &capacity}) hash.add(*values);
  for (const auto* values : {&queue, &waits_for, &route_begin, &route, &signal_begin, &signals,
                             &event_count, &queue_places}) {
    hash.add(*values);
  }
  // Member by member: structures have padding, which has no defined bytes.
  std::vector<std::uint32_t> places;
  std::vector<double> values;
  for (const Hold& hold : holds) {
    places.insert(places.end(), {hold.resource, hold.begin_op, hold.end_event});
    values.push_back(hold.amount);
  }
  for (const CapacityChange& change : changes) {
    places.push_back(change.link);
    values.insert(values.end(), {change.time_s, change.capacity});
  }
  for (const Detour& detour : detours) {
    places.push_back(detour.op);
    places.push_back(static_cast<std::uint32_t>(detour.links.size()));
    places.insert(places.end(), detour.links.begin(), detour.links.end());
    values.push_back(detour.time_s);
  }
  return hash.add(places).add(values).digest();
}

Renumbering::Renumbering(const Program& program, const Routes& all, const BindingRoutes& routes)
    : program_(program),
      all_(all),
      routes_(routes),
      link_(all.capacity.size(), kNone),
      queue_(program.queue_places.size(), kNone),
      event_(program.event_count.size(), kNone) {
  changes_ = program.changes;
  std::stable_sort(
      changes_.begin(), changes_.end(),
      [](const CapacityChange& a, const CapacityChange& b) { return a.link < b.link; });
  detours_ = all.detours;
  std::stable_sort(detours_.begin(), detours_.end(),
                   [](const Detour& a, const Detour& b) { return a.op < b.op; });
}

void Renumbering::add_changes(std::uint32_t link, std::uint32_t number,
                              std::vector<CapacityChange>& out) const {
  auto change = std::lower_bound(
      changes_.begin(), changes_.end(), link,
      [](const CapacityChange& a, std::uint32_t wanted) { return a.link < wanted; });
  for (; change != changes_.end() && change->link == link; ++change) {
    out.push_back({change->time_s, number, change->capacity});
  }
}

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
    out.queue.push_back(queue == kFreeQueue ? kFreeQueue : 1 + number(queue_, used_queues, queue));
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
  const std::uint32_t num_links = all_.num_links(program_);
  auto hold = program_.holds.begin();
  for (std::uint32_t i = 0; i < ops.size() && hold != program_.holds.end(); ++i) {
    hold = std::lower_bound(hold, program_.holds.end(), ops[i],
                            [](const Hold& a, std::uint32_t op) { return a.begin_op < op; });
    for (; hold != program_.holds.end() && hold->begin_op == ops[i]; ++hold) {
      out.holds.push_back({number(link_, used_links, num_links + hold->resource), hold->amount, i,
                           event_number(hold->end_event)});
    }
  }
  auto detour = detours_.begin();
  for (std::uint32_t i = 0; i < ops.size() && detour != detours_.end(); ++i) {
    detour = std::lower_bound(detour, detours_.end(), ops[i],
                              [](const Detour& a, std::uint32_t op) { return a.op < op; });
    for (; detour != detours_.end() && detour->op == ops[i]; ++detour) {
      Detour& own = out.detours.emplace_back(Detour{detour->time_s, i, {}});
      for (const std::uint32_t link : detour->links) {
        own.links.push_back(number(link_, used_links, link));
      }
      out.max_hops = std::max(out.max_hops, static_cast<std::uint32_t>(own.links.size()));
    }
  }
  std::stable_sort(out.detours.begin(), out.detours.end(),
                   [](const Detour& a, const Detour& b) { return a.time_s < b.time_s; });
  for (const std::uint32_t link : used_links) {
    out.capacity.push_back(all_.capacity[link]);
    if (!changes_.empty()) add_changes(link, link_[link], out.changes);
  }
  for (const std::uint32_t link : used_links) link_[link] = kNone;
  std::stable_sort(
      out.changes.begin(), out.changes.end(),
      [](const CapacityChange& a, const CapacityChange& b) { return a.time_s < b.time_s; });
  out.queue_places.push_back(kUnlimitedPlaces);
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
