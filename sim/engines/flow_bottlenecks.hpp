#pragma once
// Max-min fair shares that are kept up to date from event to event: what exact runs of the flow
// engine use instead of a solve per event (flow.hpp has the model).
//
// Every flow is held back by one *bottleneck*, a full link on which no flow is faster, and all flows
// that a link holds back have the same rate, the link's *level*. So rates need not be kept: a level
// per link says them all. With own_l the number of flows that link l holds back and taken_l the sum
// of the rates of its other flows,
//
//   level_l = (C_l - taken_l) / own_l                                                          (1)
//
// Progressive filling (flow_maxmin.hpp) fills links in the order of their levels, and a flow's
// bottleneck is the first link of its route in that order. The converse is what this class rests on.
// Take any order of the links, let the first link of each route be the flow's bottleneck, and
// compute (1) from first to last. If the levels never fall along the order, and no link carries more
// than its capacity, then the rates are max-min fair: flow f's bottleneck l is full by (1), and any
// other flow on l has its bottleneck at l or before it, so it is no faster than f. (Such orders are
// the "bottleneck structure" of Ros-Giralt et al., On the bottleneck structure of
// congestion-controlled networks, POMACS 3(3), 2019.)
//
// An event changes a few links. `update` walks the order from the first of them on and computes (1)
// anew. A level that changed by d adds d to what its flows take of their other links; this addition
// is all that happens to a flow whose bottleneck stays. A link whose level now belongs elsewhere
// in the order is moved there, and of its flows those are given to another bottleneck whose first
// link has changed. An update ends when nothing is left to move, which is the condition above. Where
// too much changed at once, all is filled anew.
//
// Finishes need no rates either: link l serves each of its own flows work_l, the integral of
// its level; a flow ends when that reaches the value which a heap per link keeps.
//
// A cap is a link of its own, shared by all flows with the same cap, whose level is the cap.
//
// Cost of an event with L links and F flows: O(L), plus one addition for each flow and further link
// of its route, of the flows whose level changed. Memory: 60 to 100 bytes per flow of two links.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "sim/engines/flow_state.hpp"

namespace coterie::flow {

// A list of link numbers, in two bytes each where they are small: an event reads those of nearly
// all flows, which then stay in nearer caches. kNoLink may be among them.
class LinkList {
 public:
  explicit LinkList(bool small) : small_(small) {}
  [[nodiscard]] std::uint32_t operator[](std::size_t i) const {
    if (!small_) return wide_[i];
    return narrow_[i] == kNoNarrow ? kNoLink : narrow_[i];
  }
  void push_back(std::uint32_t link) {
    if (small_) {
      narrow_.push_back(static_cast<std::uint16_t>(link));
    } else {
      wide_.push_back(link);
    }
  }
  void swap_ranges(std::size_t a, std::size_t b, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      if (small_) {
        std::swap(narrow_[a + i], narrow_[b + i]);
      } else {
        std::swap(wide_[a + i], wide_[b + i]);
      }
    }
  }
  void drop(std::size_t count) {
    if (small_) {
      narrow_.resize(narrow_.size() - count);
    } else {
      wide_.resize(wide_.size() - count);
    }
  }
  // Calls `work(array, none)`: the numbers, and the one that stands for kNoLink.
  template <class Work>
  void read(const Work& work) const {
    if (small_) {
      work(narrow_.data(), kNoNarrow);
    } else {
      work(wide_.data(), kNoLink);
    }
  }
  // The first entries will be read soon.
  void prefetch() const {
    constexpr std::ptrdiff_t kLine = 64;
    const char* const first = small_ ? reinterpret_cast<const char*>(narrow_.data())
                                     : reinterpret_cast<const char*>(wide_.data());
    for (std::ptrdiff_t line = 0; line < 4; ++line) __builtin_prefetch(first + line * kLine);
  }
  // So many links can be told apart in two bytes.
  static constexpr std::size_t kMostSmall = 65535;

 private:
  static constexpr std::uint16_t kNoNarrow = 65535;
  bool small_;
  std::vector<std::uint16_t> narrow_;
  std::vector<std::uint32_t> wide_;
};

class BottleneckOrder {
 public:
  // Bytes per second, or a resource's units, of each link; a route and its cap have at most
  // `max_hops` of them, and there are at most `num_caps` different caps.
  BottleneckOrder(std::span<const double> capacity, std::uint32_t max_hops, std::size_t num_caps);

  // A flow begins; it has a rate from the next update on. The route is not empty. Slots are numbered
  // by the caller, who may use them again when they have ended.
  void start(std::uint32_t slot, std::span<const std::uint32_t> route, double amount, double cap);
  // Ends the flow that finishes next, at next_finish_s(), and returns its slot.
  std::uint32_t end_next();
  // Takes a flow off its links before its end.
  void remove(std::uint32_t slot);
  // Once all flows are removed: none of them waits for its first rate.
  void forget_started() { started_.clear(); }
  // Of its amount. `now` is not before the last update, and its rate has not changed since.
  [[nodiscard]] double left(std::uint32_t slot, double now) const;
  void set_capacity(std::uint32_t link, double capacity);
  // Makes the rates max-min fair from `now` on. Between events nothing else happens to them.
  void update(double now);

  [[nodiscard]] double capacity(std::uint32_t link) const { return links_[link].capacity; }
  // Infinite if no flow moves.
  [[nodiscard]] double next_finish_s();
  [[nodiscard]] std::size_t num_flowing() const { return num_flowing_; }
  [[nodiscard]] bool flowing(std::uint32_t slot) const {
    return slot < flows_.size() && flows_[slot].num_hops > 0;
  }
  // Of a flow that had a rate at the last update.
  [[nodiscard]] double rate(std::uint32_t slot) const { return level_[flows_[slot].bottleneck]; }
  // Since the start: flows whose rate an update set, and updates that filled all anew.
  [[nodiscard]] std::uint64_t num_set_rates() const { return num_set_rates_; }
  [[nodiscard]] std::uint64_t num_refills() const { return num_refills_; }

 private:
  struct Finish {
    double work;  // of the link, at which the flow has had its amount
    std::uint32_t slot;
  };
  struct Link {
    explicit Link(bool small) : others(small) {}
    double capacity = 0.0;
    double work = 0.0;     // at since_s
    double since_s = 0.0;  // when the level last changed
    std::uint32_t own = 0;
    bool is_cap = false;
    bool changed = false;  // by flows or capacity since the last update
    bool listed_idle = false;
    bool touched = false;  // its next finish may have changed in this update
    // Flows over the link, those that it holds back first, and the further links of their routes,
    // num_others_ for each, filled up with kNoLink.
    std::vector<std::uint32_t> slots;
    LinkList others;
    std::vector<Finish> finishes;  // a binary heap, of its own flows
  };
  struct Hop {
    std::uint32_t link;
    std::uint32_t place;  // in Link::slots
  };
  struct Flow {
    double left = 0.0;             // bytes, while it has no bottleneck
    std::uint32_t bottleneck = 0;  // or kNone
    std::uint32_t place = 0;       // in the bottleneck's finishes
    std::uint32_t num_hops = 0;    // a cap included
  };

  [[nodiscard]] std::span<Hop> hops(std::uint32_t slot) {
    return std::span(hops_).subspan(std::size_t{slot} * max_hops_, flows_[slot].num_hops);
  }
  std::uint32_t add_link(double capacity, bool is_cap);
  void mark_changed(std::uint32_t link);
  void touch(std::uint32_t link);
  void bring_to_now(std::uint32_t link);
  void swap_entries(Link& link, std::uint32_t a, std::uint32_t b);
  void erase_entry(Link& link, std::uint32_t place);
  void push_finish(std::uint32_t link, Finish finish);
  void erase_finish(std::uint32_t link, std::uint32_t place);
  void sift_finish(Link& link, std::uint32_t at);
  void refresh_finish(std::uint32_t link);

  [[nodiscard]] std::uint32_t first_link(std::uint32_t slot);
  void give(std::uint32_t slot, std::uint32_t to);
  void add_to_others(const Link& link, double rate);
  void set_level(std::uint32_t link, double level);
  void prefetch_after(std::uint32_t at) const;
  void note_idle(std::uint32_t link);
  void append(std::uint32_t link);
  void erase_from_order(std::uint32_t at);
  void move_in_order(std::uint32_t from, std::uint32_t to);
  [[nodiscard]] double share(std::uint32_t link) const;
  [[nodiscard]] bool overloaded(std::uint32_t link) const { return taken_[link] > limit_[link]; }
  bool walk(std::uint32_t at);
  bool delay(std::uint32_t at, double level);
  std::uint32_t advance(std::uint32_t at);
  [[nodiscard]] double sum_of_others(const Link& link) const;
  void sum_taken();
  [[nodiscard]] bool lost_digits() const;
  void refill();

  std::uint32_t max_hops_;
  bool small_;                // there are few links (LinkList)
  std::uint32_t num_others_;  // max_hops_ - 1, at least 1
  bool any_alone_ = false;    // a flow had fewer further links than that
  std::vector<Link> links_;   // then caps
  std::vector<double> taken_;
  std::vector<double> settled_;  // taken_ that the level was computed from, or less than any
  std::vector<double> limit_;    // of taken_: the capacity and a margin for rounding
  std::vector<double> level_;    // rate of the link's own flows that taken_ counts with
  double largest_rate_ = 0.0;    // of the flows whose rate this update changed, before or after
  std::map<double, std::uint32_t> caps_;
  std::vector<Flow> flows_;  // [slot]
  std::vector<Hop> hops_;    // [slot * max_hops_]

  std::vector<std::uint32_t> order_;  // links that hold flows back, and caps
  std::vector<std::uint32_t> pos_;    // [link] in order_, or kNone
  std::vector<double> peak_;          // [position] highest level up to here
  std::vector<std::uint32_t> idle_;   // other links with flows

  std::vector<double> finish_s_;  // [link] next finish of its own flows
  std::vector<double> block_finish_s_;
  std::vector<char> block_changed_;

  std::vector<std::uint32_t> changed_;
  std::vector<std::uint32_t> touched_;
  std::vector<std::uint32_t> started_;   // slots without a bottleneck
  std::vector<std::uint32_t> given_;     // scratch
  std::vector<double> rates_;            // scratch
  std::vector<std::uint32_t> num_open_;  // scratch
  double now_ = 0.0;
  std::size_t num_flowing_ = 0;
  std::size_t num_entries_ = 0;
  std::size_t scanned_ = 0;  // entries, in this update
  std::uint32_t updates_until_sum_ = 0;
  std::uint64_t num_set_rates_ = 0;
  std::uint64_t num_refills_ = 0;
};

}  // namespace coterie::flow
