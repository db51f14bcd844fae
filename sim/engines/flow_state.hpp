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

namespace coterie::flow {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

// Links with more flows than this are not repaired between solves (flow_repair.hpp).
inline constexpr std::size_t kRepairFlows = 64;

// A link. Links are shared between components only in memory, never in use.
struct LinkState {
  double capacity = 0.0;  // bytes per second
  double residual = 0.0;  // capacity that no flow uses
  double level = kNever;  // the share at which the last solve saturated it; never: it did not
  // Coarse runs (flow_repair.hpp): bytes that flows which ended or slowed down leave unused if the
  // next solve is at the horizon, the sum of the rates they gave up, and the rate above capacity
  // that older credit pays for.
  double credit = 0.0;
  double freed = 0.0;
  double extra = 0.0;
  double limit = 0.0;                  // capacity + extra at the last solve
  double open = 0.0;                   // solver: capacity not yet given to a settled flow
  std::uint32_t open_flows = 0;        // solver: flows through it that are not settled
  std::uint32_t mark = 0;              // solver: the solve that last visited it
  std::uint32_t dirty = 0;             // engine: the interval in which it was last touched
  std::vector<std::uint32_t> entries;  // its flows: (slot << hop_bits) | hop
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

  void pop() {
    place_[nodes_.front().slot] = kAbsent;
    const Node last = nodes_.back();
    nodes_.pop_back();
    if (!nodes_.empty()) sift_down(0, last);
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

// The operations under way (computations, silent transfers and flows), each in a slot that is
// reused, and the links of the flows. What is used together lies together: with a million flows
// every event and every solve is bound by cache misses.
class FlowState {
 public:
  FlowState(std::span<LinkState> links, std::uint32_t max_hops) : links_(links) {
    while ((1U << hop_bits_) < max_hops) ++hop_bits_;
  }

  // A free slot for an operation that is not on any link yet.
  std::uint32_t open_slot(std::uint32_t op) {
    std::uint32_t slot = 0;
    if (free_.empty()) {
      slot = num_slots();
      slots_.push_back({op, 0});
      flows_.emplace_back();
      hops_.resize(slots_.size() << hop_bits_);
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
    flows_[slot] = {0.0, bytes, now, cap};
    slots_[slot].num_hops = static_cast<std::uint32_t>(route.size());
    ++num_flowing_;
    for (std::uint32_t hop = 0; hop < route.size(); ++hop) {
      const std::uint32_t entry = (slot << hop_bits_) | hop;
      LinkState& link = links_[route[hop]];
      link.credit = link.freed = 0.0;  // what others left is not for newcomers
      link.residual -= link.extra;
      link.extra = 0.0;
      hops_[entry] = {route[hop], static_cast<std::uint32_t>(link.entries.size())};
      link.entries.push_back(entry);
    }
  }

  // Takes the slot off its links and returns its rate to them.
  void detach(std::uint32_t slot, double now) {
    const double rate = flows_[slot].rate;
    for (const Hop& hop : hops(slot)) {
      LinkState& link = links_[hop.link];
      const std::uint32_t moved = link.entries.back();
      link.entries[hop.place] = moved;
      hops_[moved].place = hop.place;
      link.entries.pop_back();
      give_back(link, rate, now);
      if (link.entries.empty()) {
        link.residual = link.limit = link.capacity;
        link.credit = link.freed = link.extra = 0.0;
      }
    }
    slots_[slot].num_hops = 0;
    flows_[slot].rate = 0.0;
    --num_flowing_;
  }

  // Flows on the link gave up `rate` in all (or took it, where negative): what stays unused until
  // the horizon becomes credit.
  void give_back(LinkState& link, double rate, double now) const {
    link.residual += rate;
    if (horizon_ < kNever) {
      link.credit += rate * (horizon_ - now);
      link.freed += rate;
    }
  }

  // Gives a flow another rate from now on and files its new finish. Leaves the residuals alone.
  void set_rate(std::uint32_t slot, double rate, double now) {
    change_rate(slot, rate, now);
    file(slot);
  }
  // The same without filing, for callers that move the horizon afterwards.
  void change_rate(std::uint32_t slot, double rate, double now) {
    Flow& flow = flows_[slot];
    flow.remaining = std::max(0.0, flow.remaining - flow.rate * (now - flow.since_s));
    flow.since_s = now;
    flow.rate = rate;
  }

  // Moves the horizon and files the flows that end before it. With `may_skip`, a horizon before the
  // first finish moves on behind that. False if no flow will ever end at the present rates.
  bool set_horizon(double horizon, bool may_skip, double margin) {
    horizon_ = horizon;
    double first = kNever;
    for (std::uint32_t slot = 0; slot < num_slots(); ++slot) {
      if (!flowing(slot)) continue;
      const double finish = finish_s(slot);
      first = std::min(first, finish);
      if (finish <= horizon || heap_.contains(slot)) heap_.set(slot, finish);
    }
    if (may_skip && first > horizon && first < kNever) {
      horizon_ = first + margin;
      for (std::uint32_t slot = 0; slot < num_slots(); ++slot) {
        if (flowing(slot)) file(slot);
      }
    }
    return first < kNever;
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
  [[nodiscard]] std::uint32_t slot_of(std::uint32_t entry) const { return entry >> hop_bits_; }
  // Starts loading what a solve needs of a flow.
  void prefetch_hops(std::uint32_t slot) const {
    __builtin_prefetch(&hops_[std::size_t{slot} << hop_bits_]);
  }
  [[nodiscard]] std::uint32_t num_slots() const {
    return static_cast<std::uint32_t>(slots_.size());
  }
  [[nodiscard]] std::uint32_t op(std::uint32_t slot) const { return slots_[slot].op; }
  [[nodiscard]] double rate(std::uint32_t slot) const { return flows_[slot].rate; }
  [[nodiscard]] double cap(std::uint32_t slot) const { return flows_[slot].cap; }
  [[nodiscard]] bool flowing(std::uint32_t slot) const { return slots_[slot].num_hops > 0; }
  [[nodiscard]] LinkState& link(std::uint32_t link) { return links_[link]; }
  [[nodiscard]] EventHeap& heap() { return heap_; }
  [[nodiscard]] std::size_t num_flowing() const { return num_flowing_; }

 private:
  [[nodiscard]] double finish_s(std::uint32_t slot) const {
    const Flow& flow = flows_[slot];
    return flow.rate > 0.0 ? flow.since_s + flow.remaining / flow.rate : kNever;
  }
  // Files the finish of a flow if it may come before the horizon; other flows sleep.
  void file(std::uint32_t slot) {
    const double finish = finish_s(slot);
    if (finish <= horizon_ || heap_.contains(slot)) heap_.set(slot, finish);
  }

  std::span<LinkState> links_;
  std::uint32_t hop_bits_ = 0;
  struct Slot {
    std::uint32_t op;
    std::uint32_t num_hops;  // 0: not on any link
  };
  struct Flow {
    double rate = 0.0;       // bytes per second
    double remaining = 0.0;  // bytes, at since_s
    double since_s = 0.0;
    double cap = kNever;
  };
  std::vector<Slot> slots_;          // [num_slots]
  std::vector<Flow> flows_;          // [num_slots]
  std::vector<Hop> hops_;            // [num_slots << hop_bits]
  std::vector<std::uint32_t> free_;  // slots
  EventHeap heap_;
  double horizon_ = 0.0;  // flows that end later need not be in the heap
  std::size_t num_flowing_ = 0;
};

}  // namespace coterie::flow
