#pragma once
// The flow engine's working state: active flows and the links they cross, as flat arrays that are
// reused from event to event. Only the flow engine includes this file.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "sim/engines/schedule.hpp"

namespace coterie::flow {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

// Links with more flows than this are not repaired between solves (flow_repair.hpp).
inline constexpr std::size_t kRepairFlows = 64;

// In Entry::other: no further link; and a flow that must be looked up.
inline constexpr std::uint32_t kNoLink = std::numeric_limits<std::uint32_t>::max();
inline constexpr std::uint32_t kLookUp = kNoLink - 1;

// What a solve needs of a link: small, so that all links of a solve stay in the nearest caches.
struct alignas(32) LinkShare {
  double open = 0.0;        // capacity not yet given to a settled flow
  double open_flows = 0.0;  // flows through it that are not settled; a count
  double level = kNever;    // the share at which the last solve saturated it; never: it did not
  std::uint32_t mark = 0;   // the solve that last visited it
};

// One flow as one of its links sees it. A plain flow, without a cap and with at most four links,
// all different, is settled when one of its links is, so that a solve reads no more of it than
// this.
struct Entry {
  std::uint32_t key;       // (slot << hop_bits) | hop
  std::uint32_t other[3];  // plain: its other links, then kNoLink; else kLookUp first
};

struct LinkState {
  double capacity = 0.0;  // bytes per second
  // Coarse runs (flow_repair.hpp): bytes that flows which ended or slowed down leave unused if the
  // next solve is at the horizon, the sum of the rates they gave up, and the rate above capacity
  // that older credit pays for.
  double credit = 0.0;
  double freed = 0.0;
  double extra = 0.0;
  double limit = 0.0;       // capacity + extra at the last solve
  std::uint32_t dirty = 0;  // engine: the interval in which it was last touched
  std::vector<Entry> entries;
};

// Slots ordered by the time of their next event: a 4-ary heap that knows where each slot stands.
class EventHeap {
 public:
  [[nodiscard]] bool empty() const { return nodes_.empty(); }
  [[nodiscard]] double top_time() const { return nodes_.front().time; }
  [[nodiscard]] std::uint32_t top_slot() const { return nodes_.front().slot; }

  [[nodiscard]] bool contains(std::uint32_t slot) const {
    return slot < place_.size() && place_[slot] != kAbsent;
  }
  // Inserts the slot or moves it to another time.
  void set(std::uint32_t slot, double time) {
    if (slot >= place_.size()) place_.resize(std::size_t{slot} + 1, kAbsent);
    std::uint32_t at = place_[slot];
    if (at == kAbsent) {
      at = static_cast<std::uint32_t>(nodes_.size());
      nodes_.push_back({time, slot});
      sift_up(at, {time, slot});
    } else if (time < nodes_[at].time) {
      sift_up(at, {time, slot});
    } else {
      sift_down(at, {time, slot});
    }
  }

  // Removes all.
  void clear() {
    for (const Node& node : nodes_) place_[node.slot] = kAbsent;
    nodes_.clear();
  }
  // Adds a slot that is absent; the order is restored by `heapify` alone.
  void append(std::uint32_t slot, double time) {
    if (slot >= place_.size()) place_.resize(std::size_t{slot} + 1, kAbsent);
    place_[slot] = static_cast<std::uint32_t>(nodes_.size());
    nodes_.push_back({time, slot});
  }
  void heapify() {
    for (std::size_t i = (nodes_.size() + 2) / 4; i-- > 0;) sift_down(i, nodes_[i]);
  }

  void pop() {
    place_[nodes_.front().slot] = kAbsent;
    const Node last = nodes_.back();
    nodes_.pop_back();
    if (!nodes_.empty()) {
      sift_down(0, last);
    } else {
      if (nodes_.capacity() > kManyEntries) release(nodes_);
    }
  }

 private:
  struct Node {
    double time;
    std::uint32_t slot;
  };
  static constexpr std::uint32_t kAbsent = std::numeric_limits<std::uint32_t>::max();

  void put(std::size_t at, const Node& node) {
    nodes_[at] = node;
    place_[node.slot] = static_cast<std::uint32_t>(at);
  }
  void sift_up(std::size_t at, const Node node) {
    while (at > 0) {
      const std::size_t parent = (at - 1) / 4;
      if (nodes_[parent].time <= node.time) break;
      put(at, nodes_[parent]);
      at = parent;
    }
    put(at, node);
  }
  void sift_down(std::size_t at, const Node node) {
    const std::size_t size = nodes_.size();
    for (;;) {
      const std::size_t first = 4 * at + 1;
      if (first >= size) break;
      const std::size_t last = first + 4 < size ? first + 4 : size;
      std::size_t least = first;
      for (std::size_t child = first + 1; child < last; ++child) {
        if (nodes_[child].time < nodes_[least].time) least = child;
      }
      if (nodes_[least].time >= node.time) break;
      put(at, nodes_[least]);
      at = least;
    }
    put(at, node);
  }

  std::vector<Node> nodes_;
  std::vector<std::uint32_t> place_;  // [slot]
};

// The operations under way, silent or flowing, each in a slot that is reused, and the links of the
// flows. What is used together lies together: with a million flows every event and every solve is
// bound by cache misses.
class FlowState {
 public:
  FlowState(std::span<const double> capacity, std::uint32_t max_hops)
      : links_(capacity.size()),
        residual_(capacity.begin(), capacity.end()),
        shares_(capacity.size()) {
    while ((1U << hop_bits_) < max_hops) ++hop_bits_;
    for (std::size_t i = 0; i < capacity.size(); ++i) {
      links_[i].capacity = links_[i].limit = capacity[i];
    }
  }

  // A free slot for an operation that is not on any link yet.
  std::uint32_t open_slot(std::uint32_t op) {
    std::uint32_t slot = 0;
    if (free_.empty()) {
      slot = num_slots();
      slots_.push_back({op, 0, false, false});
    } else {
      slot = free_.back();
      free_.pop_back();
      slots_[slot].op = op;
    }
    return slot;
  }
  void close_slot(std::uint32_t slot) { free_.push_back(slot); }

  // Puts the slot on its links at rate zero. The route is not empty.
  void attach(std::uint32_t slot, std::span<const std::uint32_t> route, double bytes, double cap,
              double now) {
    if (slot >= flows_.size()) {
      flows_.resize(slots_.size());
      narrow_.resize(slots_.size(), kNoLink);
      hops_.resize(slots_.size() << hop_bits_);
    }
    flows_[slot] = {0.0, bytes, now, cap};
    Slot& place = slots_[slot];
    place.num_hops = static_cast<std::uint16_t>(route.size());
    place.plain = cap == kNever && route.size() <= 4 && distinct(route);
    if (!place.listed) {
      place.listed = true;
      active_.push_back(slot);
    }
    ++num_flowing_;
    narrow_[slot] = route.front();
    if (!place.plain) ++num_looked_up_;
    for (std::uint32_t hop = 0; hop < route.size(); ++hop) {
      Entry entry{(slot << hop_bits_) | hop, {place.plain ? kNoLink : kLookUp, kNoLink, kNoLink}};
      if (place.plain) {
        std::uint32_t num_others = 0;
        for (std::uint32_t i = 0; i < route.size(); ++i) {
          if (i != hop) entry.other[num_others++] = route[i];
        }
      }
      LinkState& link = links_[route[hop]];
      link.credit = link.freed = 0.0;  // what others left is not for newcomers
      residual_[route[hop]] -= link.extra;
      link.extra = 0.0;
      hops_[entry.key] = {route[hop], static_cast<std::uint32_t>(link.entries.size())};
      link.entries.push_back(entry);
    }
  }

  // Takes the slot off its links and returns its rate to them.
  void detach(std::uint32_t slot, double now) {
    const double rate = flows_[slot].rate;
    for (const Hop& hop : hops(slot)) {
      LinkState& link = links_[hop.link];
      const Entry moved = link.entries.back();
      link.entries[hop.place] = moved;
      hops_[moved.key].place = hop.place;
      link.entries.pop_back();
      give_back(hop.link, rate, now);
      if (link.entries.empty()) {
        residual_[hop.link] = link.limit = link.capacity;
        link.credit = link.freed = link.extra = 0.0;
      }
    }
    if (!slots_[slot].plain) --num_looked_up_;
    slots_[slot].num_hops = 0;
    flows_[slot].rate = 0.0;
    --num_flowing_;
  }

  // Flows on the link gave up `rate` in all (or took it, where negative): what stays unused until
  // the horizon becomes credit.
  void give_back(std::uint32_t link_id, double rate, double now) {
    residual_[link_id] += rate;
    if (horizon_ < kNever) {
      LinkState& link = links_[link_id];
      link.credit += rate * (horizon_ - now);
      link.freed += rate;
    }
  }

  // From now on the link has this capacity. The next solve must see it before anything else happens:
  // until then the rates may be too high. What older flows left unused is forgotten.
  void set_capacity(std::uint32_t link_id, double capacity) {
    LinkState& link = links_[link_id];
    residual_[link_id] += capacity - link.capacity - link.extra;
    link.capacity = capacity;
    link.credit = link.freed = link.extra = 0.0;
    if (link.entries.empty()) residual_[link_id] = link.limit = capacity;
  }

  // Gives a flow another rate from now on and files its new finish. Leaves the residuals alone.
  void set_rate(std::uint32_t slot, double rate, double now) {
    change_rate(slot, rate, now);
    const double finish = finish_s(slot);
    if (finish <= horizon_ || finishes_.contains(slot)) finishes_.set(slot, finish);
  }
  // The same without filing, for callers that move the horizon.
  void change_rate(std::uint32_t slot, double rate, double now) {
    Flow& flow = flows_[slot];
    flow.remaining = std::max(0.0, flow.remaining - flow.rate * (now - flow.since_s));
    flow.since_s = now;
    flow.rate = rate;
  }

  // Moves the horizon and files the flows that end before it: `begin_filing`, `file` for each flow,
  // `end_filing`. With `may_skip`, a horizon before the first finish moves on to `margin` behind
  // that. The last returns false if no flow will ever end at the present rates.
  void begin_filing(double horizon) {
    horizon_ = horizon;
    finishes_.clear();
  }
  void file(std::uint32_t slot) {
    // A product is cheaper than the quotient, which only flows near the horizon need.
    constexpr double kRounding = 1.0 + 1e-9;
    const Flow& flow = flows_[slot];
    if (flow.remaining > flow.rate * (horizon_ - flow.since_s) * kRounding) return;
    const double finish = finish_s(slot);
    if (finish <= horizon_) finishes_.append(slot, finish);
  }
  bool end_filing(bool may_skip, double margin) {
    finishes_.heapify();
    if (!finishes_.empty()) return true;
    double first = kNever;
    for (const std::uint32_t slot : active()) first = std::min(first, finish_s(slot));
    if (may_skip && first < kNever) {
      begin_filing(first + margin);
      for (const std::uint32_t slot : active()) file(slot);
      finishes_.heapify();
    }
    return first < kNever;
  }
  bool set_horizon(double horizon, bool may_skip, double margin) {
    begin_filing(horizon);
    for (const std::uint32_t slot : active()) file(slot);
    return end_filing(may_skip, margin);
  }
  // Takes all flows off their links; `take` gets the slot and what is left of each.
  template <class Take>
  void detach_all(double now, const Take& take) {
    begin_filing(kNever);
    for (const std::uint32_t slot : active()) {
      const Flow& flow = flows_[slot];
      const double left = std::max(0.0, flow.remaining - flow.rate * (now - flow.since_s));
      detach(slot, now);
      take(slot, left);
    }
  }
  // Gives back the memory of flows, where that is much. No flow is on any link.
  void release_flows() {
    if (slots_.size() <= kManyEntries) return;
    release(flows_);
    release(narrow_);
    release(hops_);
    for (LinkState& link : links_) release(link.entries);
  }
  // Only for a time before which no sleeping flow ends.
  void start_horizon(double horizon) { horizon_ = horizon; }
  [[nodiscard]] double horizon() const { return horizon_; }

  struct Hop {
    std::uint32_t link;
    std::uint32_t place;  // in the link's entries
  };
  [[nodiscard]] std::span<const Hop> hops(std::uint32_t slot) const {
    return std::span(hops_).subspan(std::size_t{slot} << hop_bits_, slots_[slot].num_hops);
  }
  [[nodiscard]] std::uint32_t slot_of(const Entry& entry) const { return entry.key >> hop_bits_; }
  [[nodiscard]] std::uint32_t num_slots() const {
    return static_cast<std::uint32_t>(slots_.size());
  }
  // Slots with flows, in an order that depends on the events so far alone. Drops those that ended.
  [[nodiscard]] std::span<const std::uint32_t> active() {
    if (active_.size() != num_flowing_) {
      std::erase_if(active_, [&](std::uint32_t slot) {
        if (flowing(slot)) return false;
        slots_[slot].listed = false;
        return true;
      });
    }
    return active_;
  }
  [[nodiscard]] std::uint32_t op(std::uint32_t slot) const { return slots_[slot].op; }
  [[nodiscard]] bool plain(std::uint32_t slot) const { return slots_[slot].plain; }
  [[nodiscard]] double rate(std::uint32_t slot) const { return flows_[slot].rate; }
  [[nodiscard]] double cap(std::uint32_t slot) const { return flows_[slot].cap; }
  [[nodiscard]] bool flowing(std::uint32_t slot) const { return slots_[slot].num_hops > 0; }
  [[nodiscard]] LinkState& link(std::uint32_t link) { return links_[link]; }
  [[nodiscard]] const std::vector<LinkState>& links() const { return links_; }
  // Of the link: capacity that no flow uses.
  [[nodiscard]] double& residual(std::uint32_t link) { return residual_[link]; }
  [[nodiscard]] double residual(std::uint32_t link) const { return residual_[link]; }
  // A link of the slot's route that had little left when somebody last looked.
  void set_narrow(std::uint32_t slot, std::uint32_t link) { narrow_[slot] = link; }
  // All of either, by link and by slot.
  [[nodiscard]] std::span<const double> residuals() const { return residual_; }
  [[nodiscard]] std::span<const std::uint32_t> narrow_links() const { return narrow_; }
  [[nodiscard]] LinkShare& share(std::uint32_t link) { return shares_[link]; }
  [[nodiscard]] double level(std::uint32_t link) const { return shares_[link].level; }
  [[nodiscard]] std::size_t num_flowing() const { return num_flowing_; }
  [[nodiscard]] bool all_plain() const { return num_looked_up_ == 0; }

  // When the silent time of a slot ends.
  [[nodiscard]] EventHeap& timers() { return timers_; }
  // When flows end, of those that end before the horizon.
  [[nodiscard]] EventHeap& finishes() { return finishes_; }

 private:
  // Of at most four links.
  [[nodiscard]] static bool distinct(std::span<const std::uint32_t> route) {
    for (std::size_t i = 1; i < route.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (route[i] == route[j]) return false;
      }
    }
    return true;
  }
  [[nodiscard]] double finish_s(std::uint32_t slot) const {
    const Flow& flow = flows_[slot];
    if (flow.rate > 0.0) return flow.since_s + flow.remaining / flow.rate;
    return flow.remaining > 0.0 ? kNever : flow.since_s;
  }
  std::vector<LinkState> links_;
  std::vector<double>
      residual_;  // [num_links] apart from the rest, because repairs read little else
  std::vector<LinkShare> shares_;  // [num_links]
  std::uint32_t hop_bits_ = 0;
  struct Slot {
    std::uint32_t op;
    std::uint16_t num_hops;  // 0: not on any link
    bool listed;             // in active_
    bool plain;              // see Entry
  };
  struct Flow {
    double rate = 0.0;       // bytes per second
    double remaining = 0.0;  // bytes, at since_s
    double since_s = 0.0;
    double cap = kNever;
  };
  std::vector<Slot> slots_;            // [num_slots]
  std::vector<Flow> flows_;            // [num_slots]
  std::vector<Hop> hops_;              // [num_slots << hop_bits]
  std::vector<std::uint32_t> narrow_;  // [num_slots]
  std::vector<std::uint32_t> free_;    // slots
  std::vector<std::uint32_t> active_;  // slots: all with flows, some that ended
  EventHeap timers_;
  EventHeap finishes_;
  double horizon_ = 0.0;  // flows that end later need not be filed
  std::size_t num_flowing_ = 0;
  std::size_t num_looked_up_ = 0;  // of them, not plain
};

}  // namespace coterie::flow
