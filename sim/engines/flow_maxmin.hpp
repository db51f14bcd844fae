#pragma once
// Progressive filling on the flow engine's state (Bertsekas and Gallager, Data Networks, 6.5.2).
//
// Raise all rates together from zero. What stops them next is the smallest of
//   - the fair share of a link: the capacity its settled flows leave, over its unsettled flows;
//   - the cap of an unsettled flow.
// The flows concerned are settled at that level, and the others go on. A link's share never falls
// while this goes on (a flow settled elsewhere took no more than the share), so a heap of shares
// may hold outdated keys: they are lower bounds, and a link whose key turns out to be outdated goes
// back with its present share. Each (flow, link) pair is visited twice, each link a few times:
// O(pairs + links log links) per solve in practice.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "sim/engines/flow_state.hpp"

namespace coterie::flow {

// The rate of a settled flow is the smallest of its cap and the levels of its saturated links,
// since those levels only grow. Flows without a cap and with few links are therefore not touched
// while levels are found: their links' lists say which other links they cross (Entry).

// Links by their shares while a solve raises the level: a monotone queue. A share belongs to the
// bucket that its leading bits name, 32 buckets to a doubling; only the links of the lowest bucket
// are kept in a heap. As shares only grow, a link moves up a few times, each in constant time, and
// the heap stays small whatever the number of links.
class ShareQueue {
 public:
  struct Share {
    double level;
    std::uint32_t link;
  };
  // Forgets all. No share below `lowest` will be added, zero apart.
  void start(double lowest, std::size_t num_links);
  void add(double level, std::uint32_t link);
  // Brings the lowest share to the front; false if there is none. `present(link)` is the link's share
  // by now, not below the one it was added with; infinite: it is none any more.
  template <class Present>
  [[nodiscard]] bool settle_front(const Present& present);
  [[nodiscard]] const Share& front() const { return heap_.front(); }
  void pop();

 private:
  static constexpr std::uint32_t kNumBuckets = 1024;  // 32 doublings; the last holds all above
  // Of positive numbers, the larger has the larger bits: 11 of exponent, then 5 of mantissa.
  [[nodiscard]] static std::uint64_t leading_bits(double level) {
    return std::bit_cast<std::uint64_t>(level) >> 47U;
  }
  [[nodiscard]] std::uint32_t bucket_of(double level) const {
    const std::uint64_t bits = std::max(leading_bits(level), base_) - base_;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(bits, kNumBuckets - 1));
  }
  // `bucket` is above the one whose links are in the heap.
  void list(std::uint32_t bucket, double level, std::uint32_t link) {
    const std::uint64_t bit = std::uint64_t{1} << (bucket % 64);
    const bool first = (used_[bucket / 64] & bit) == 0;
    used_[bucket / 64] |= bit;
    listed_[link] = {level, first ? kNoLink : head_[bucket]};
    head_[bucket] = link;
  }
  void sift_down(std::size_t at);
  void sift_up(std::size_t at);

  std::uint64_t base_ = 0;                     // leading bits of the first bucket
  std::uint32_t bucket_ = 0;                   // whose links are in the heap; those below are empty
  std::uint64_t used_[kNumBuckets / 64] = {};  // bit set: the bucket has a list
  std::uint32_t head_[kNumBuckets] = {};       // first of the bucket's list
  struct Listed {
    double level;
    std::uint32_t next;
  };
  std::vector<Listed> listed_;  // [num_links]
  std::vector<Share> heap_;     // by level
};

template <class Present>
bool ShareQueue::settle_front(const Present& present) {
  while (heap_.empty()) {
    std::uint32_t word = bucket_ / 64;
    while (word < kNumBuckets / 64 && used_[word] == 0) ++word;
    if (word == kNumBuckets / 64) return false;
    bucket_ = 64 * word + static_cast<std::uint32_t>(std::countr_zero(used_[word]));
    used_[word] &= used_[word] - 1;
    // Most shares have grown since they were listed, many beyond this bucket: those need no heap.
    for (std::uint32_t link = head_[bucket_]; link != kNoLink;) {
      const std::uint32_t next = listed_[link].next;
      const double level = present(link);
      if (level < kNever) {
        const std::uint32_t bucket = bucket_of(level);
        if (bucket <= bucket_) {
          heap_.push_back({level, link});
        } else {
          list(bucket, level, link);
        }
      }
      link = next;
    }
    for (std::size_t i = heap_.size() / 2; i-- > 0;) sift_down(i);
  }
  return true;
}

class MaxMinSolver {
 public:
  // Sets the rates of all flows that are connected to the links of `seeds` (through common links,
  // transitively) to their max-min fair shares of what the links allow, from `now` on: their capacity,
  // and their credit (flow_repair.hpp), spent over the next `allow_s` seconds, which are more than
  // none. The horizon moves to the end of these, and the caller ends the filing of finishes that this
  // began.
  void solve(FlowState& state, std::span<const std::uint32_t> seeds, double now, double allow_s);
  // The same for all flows. Cheaper than walking from link to link where most of them changed.
  void solve_all(FlowState& state, double now, double allow_s);
  // Links and flows of the last solve.
  [[nodiscard]] std::span<const std::uint32_t> links() const { return links_; }
  [[nodiscard]] std::size_t num_flows() const { return num_flows_; }

 private:
  void start(FlowState& state, double now, double allow_s);
  void visit_link(FlowState& state, std::uint32_t link);
  void visit_flow(FlowState& state, std::uint32_t slot);
  void fill(FlowState& state, std::size_t num_flows);
  void saturate(FlowState& state, std::uint32_t link, double level);
  void settle(FlowState& state, std::uint32_t slot, double level);
  void apply(FlowState& state, std::span<const std::uint32_t> flows);

  std::uint32_t round_ = 0;
  double now_ = 0.0;
  double allow_s_ = 0.0;
  std::vector<std::uint32_t> links_;  // of this solve
  std::vector<std::uint32_t> flows_;  // slots of this solve, if not all
  std::size_t num_flows_ = 0;
  std::size_t num_unsettled_ = 0;
  std::vector<std::uint32_t> mark_;  // [slot] the round that last visited it
  std::vector<double> new_rate_;     // [slot] of flows that are not plain; negative: not settled
  ShareQueue queue_;
  std::vector<std::uint32_t> capped_;  // slots whose cap may bind, by cap
};

}  // namespace coterie::flow
