#pragma once
// What happens to the rates between two solves, when only a few flows came or went.
//
//   finish   a flow's links get its rate back; `raise` hands it to the flows that still cross them,
//            slowest first (water-filling), each as far as its other links have room;
//   start    `insert` gives the newcomer the smallest of its links' fair shares and takes it, on
//            each full link, from the fastest flows there: the level L with
//            sum over flows of min(r, L) + newcomer = C.
//
// Both keep every link within its capacity, so a plan never finishes before its bound; what they
// leave to the next solve is the second-order effect on links further away. Links with more than
// kRepairFlows flows are left alone: there a newcomer takes what finished flows left, at most the
// share of the last solve.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sim/engines/flow_state.hpp"

namespace coterie::flow {

inline constexpr std::size_t kRepairFlows = 64;

class LocalRepair {
 public:
  void raise(FlowState& state, std::uint32_t link, double now);
  // `slot` is on its links at rate zero. Appends the links that the flows which made room also
  // cross to `slack`.
  void insert(FlowState& state, std::uint32_t slot, double now, std::vector<std::uint32_t>& slack);

 private:
  struct Candidate {
    double rate;
    std::uint32_t slot;
  };
  double newcomer_share(const FlowState& state, const LinkState& link, std::uint32_t slot) const;
  void make_room(FlowState& state, std::uint32_t link, std::uint32_t newcomer, double needed,
                 double now, std::vector<std::uint32_t>& slack);

  std::vector<Candidate> candidates_;
};

}  // namespace coterie::flow
