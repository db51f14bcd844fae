#pragma once
// What happens to the rates between two solves, when only a few flows came or went.
//
//   finish   a flow's links get its rate back; `raise` hands it to the flows that still cross them,
//            slowest first (water-filling), each as far as its other links have room;
//   start    `insert` gives the newcomer the smallest of its links' fair shares and takes it, on
//            each full link, from the fastest flows there: the level L with
//            sum over flows of min(r, L) + newcomer = C.
//
// Both keep every link within its capacity; what they leave to the next solve is the second-order
// effect on links further away.
//
// Links with more than kRepairFlows flows are not repaired: there a newcomer takes what finished
// flows left, at most the share of the last solve. The bytes that such a link leaves unused because
// flows ended are remembered (`credit`), and the next solve spends them over the following quantum
// on top of the link's capacity (`extra`). At any time a link has then carried no more than its
// capacity allows since its present flows began (an arriving flow voids the credit), so that no
// bound on the finish of any set of transfers is undercut, and no capacity is lost for longer than
// two quanta.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sim/engines/flow_state.hpp"

namespace coterie::flow {

class LocalRepair {
 public:
  // A round: any number of `insert`, then any number of `raise`.
  void begin(std::size_t num_links);
  void raise(FlowState& state, std::uint32_t link, double now);
  // `slot` is on its links at rate zero. Appends the links that the flows which made room also
  // cross to `slack`.
  void insert(FlowState& state, std::uint32_t slot, double now, std::vector<std::uint32_t>& slack);

 private:
  struct Candidate {
    double rate;
    std::uint32_t slot;
  };
  void gather_rates(const FlowState& state, const LinkState& link, std::uint32_t newcomer);
  double newcomer_share(FlowState& state, std::uint32_t link, std::uint32_t slot);
  void make_room(FlowState& state, std::uint32_t link, std::uint32_t newcomer, double needed,
                 double now, std::vector<std::uint32_t>& slack);

  std::uint32_t round_ = 0;
  std::vector<std::uint32_t> nobody_;  // [link] the round in which no flow of it had room
  std::vector<Candidate> candidates_;
  std::vector<double> rates_;
};

}  // namespace coterie::flow
