#pragma once
// The flow engine's working state: active flows and the links they cross, as flat arrays that are
// reused from event to event. Only the flow engine includes this file.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace coterie::flow {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

// A link. Links are shared between components only in memory, never in use.
struct LinkState {
  double capacity = 0.0;  // bytes per second
  double residual = 0.0;  // capacity that no flow uses
  double level = kNever;  // the share at which the last solve saturated it; never: it did not
  double open = 0.0;      // solver: capacity not yet given to a settled flow
  std::uint32_t open_flows = 0;        // solver: flows through it that are not settled
  std::uint32_t mark = 0;              // solver: the solve that last visited it
  std::uint32_t dirty = 0;             // engine: the interval in which it was last touched
  std::vector<std::uint32_t> entries;  // its flows: (slot << hop_bits) | hop
};

// An operation under way: a computation, a silent transfer or a flow, in a slot that is reused.
struct Flow {
  double rate = 0.0;
  double remaining = 0.0;  // bytes, at since_s
  double since_s = 0.0;
  double cap = kNever;
  std::uint32_t op = 0;
  std::uint32_t num_hops = 0;
  std::uint32_t mark = 0;     // solver: the solve that last visited it
  std::uint32_t settled = 0;  // solver: the solve that last settled it
  bool flowing = false;       // on its links
};

// Slots ordered by the time of their next event: a 4-ary heap that knows where each slot stands.
class EventHeap {
 public:
  [[nodiscard]] bool empty() const { return nodes_.empty(); }
  [[nodiscard]] double top_time() const { return nodes_.front().time; }
  [[nodiscard]] std::uint32_t top_slot() const { return nodes_.front().slot; }

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

// Slots and links with the bookkeeping that joins them.
class FlowState {
 public:
  FlowState(std::span<LinkState> links, std::uint32_t max_hops) : links_(links) {
    while ((1U << hop_bits_) < max_hops) ++hop_bits_;
  }

  // A free slot for an operation that is not on any link yet.
  std::uint32_t open_slot(std::uint32_t op) {
    std::uint32_t slot = 0;
    if (free_.empty()) {
      slot = static_cast<std::uint32_t>(flows_.size());
      flows_.emplace_back();
      hops_.resize(flows_.size() << hop_bits_);
      places_.resize(flows_.size() << hop_bits_);
    } else {
      slot = free_.back();
      free_.pop_back();
    }
    Flow& flow = flows_[slot];
    flow.op = op;
    flow.rate = flow.remaining = 0.0;
    flow.num_hops = 0;
    flow.flowing = false;
    return slot;
  }
  void close_slot(std::uint32_t slot) { free_.push_back(slot); }

  // Puts the slot on its links at rate zero.
  void attach(std::uint32_t slot, std::span<const std::uint32_t> route, double bytes, double cap,
              double now) {
    Flow& flow = flows_[slot];
    flow.remaining = bytes;
    flow.rate = 0.0;
    flow.since_s = now;
    flow.cap = cap;
    flow.num_hops = static_cast<std::uint32_t>(route.size());
    flow.flowing = true;
    ++num_flowing_;
    for (std::uint32_t hop = 0; hop < flow.num_hops; ++hop) {
      const std::uint32_t entry = (slot << hop_bits_) | hop;
      std::vector<std::uint32_t>& entries = links_[route[hop]].entries;
      hops_[entry] = route[hop];
      places_[entry] = static_cast<std::uint32_t>(entries.size());
      entries.push_back(entry);
    }
  }

  // Takes the slot off its links and returns its rate to them.
  void detach(std::uint32_t slot) {
    Flow& flow = flows_[slot];
    for (std::uint32_t hop = 0; hop < flow.num_hops; ++hop) {
      const std::uint32_t entry = (slot << hop_bits_) | hop;
      LinkState& link = links_[hops_[entry]];
      link.residual += flow.rate;
      const std::uint32_t moved = link.entries.back();
      link.entries[places_[entry]] = moved;
      places_[moved] = places_[entry];
      link.entries.pop_back();
      if (link.entries.empty()) link.residual = link.capacity;
    }
    flow.flowing = false;
    flow.rate = 0.0;
    --num_flowing_;
  }

  // Gives a flow another rate from now on and files its new finish. Leaves the residuals alone.
  void set_rate(std::uint32_t slot, double rate, double now) {
    Flow& flow = flows_[slot];
    flow.remaining -= flow.rate * (now - flow.since_s);
    if (flow.remaining < 0.0) flow.remaining = 0.0;
    flow.since_s = now;
    flow.rate = rate;
    heap_.set(slot, rate > 0.0 ? now + flow.remaining / rate : kNever);
  }

  [[nodiscard]] std::span<const std::uint32_t> hops(std::uint32_t slot) const {
    return std::span(hops_).subspan(std::size_t{slot} << hop_bits_, flows_[slot].num_hops);
  }
  [[nodiscard]] std::uint32_t slot_of(std::uint32_t entry) const { return entry >> hop_bits_; }
  [[nodiscard]] Flow& flow(std::uint32_t slot) { return flows_[slot]; }
  [[nodiscard]] const Flow& flow(std::uint32_t slot) const { return flows_[slot]; }
  [[nodiscard]] LinkState& link(std::uint32_t link) { return links_[link]; }
  [[nodiscard]] std::span<const Flow> slots() const { return flows_; }
  [[nodiscard]] EventHeap& heap() { return heap_; }
  [[nodiscard]] std::size_t num_flowing() const { return num_flowing_; }

 private:
  std::span<LinkState> links_;
  std::uint32_t hop_bits_ = 0;
  std::vector<Flow> flows_;            // [num_slots]
  std::vector<std::uint32_t> hops_;    // [num_slots << hop_bits] link of each hop
  std::vector<std::uint32_t> places_;  // [num_slots << hop_bits] position in that link's entries
  std::vector<std::uint32_t> free_;
  EventHeap heap_;
  std::size_t num_flowing_ = 0;
};

}  // namespace coterie::flow
