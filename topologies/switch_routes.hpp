#pragma once
// Next hops between the switches of a fabric. A table is made per destination switch on its first
// use (one breadth-first search, or Dial's bucket form of Dijkstra where cables have costs), so
// that a cluster of 100,000 GPUs starts at once and holds only what its traffic touches.
//
// The equally short next hops of a switch nearly always stand side by side in its list of cables
// ("all uplinks"); a table entry is then a range of that list, 4 bytes. Others are spelled out.

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "topologies/fabric.hpp"

namespace coterie {

struct SwitchHop {
  std::uint32_t to = 0;    // switch
  std::uint32_t link = 0;  // LinkId
};

class SwitchRoutes {
 public:
  // `failed`: by link, whether no route takes it; empty: all are well. A cable of which one direction
  // has failed is not taken in either, as its switches see it down.
  explicit SwitchRoutes(const FabricModel& model, std::span<const std::uint8_t> failed = {});

  [[nodiscard]] std::uint32_t num_switches() const {
    return static_cast<std::uint32_t>(begin_.size() - 1);
  }
  // The hops out of `at` that lie on a shortest route to `dst`, in cable order; empty if there is
  // none. at != dst. Thread-safe.
  [[nodiscard]] std::span<const SwitchHop> next_hops(std::uint32_t at, std::uint32_t dst) const;
  // Hops of the longest shortest route to `dst` from any of `sources` that has one.
  [[nodiscard]] std::uint32_t longest_to(std::uint32_t dst,
                                         std::span<const std::uint32_t> sources) const;

 private:
  struct Table {
    std::vector<std::uint32_t> entries;  // [num_switches]
    std::vector<SwitchHop> spelled_out;  // {count, 0} and the hops, where an entry points here
  };
  struct Distances {
    std::vector<std::uint32_t> cost;  // [num_switches]
    std::vector<std::uint32_t> hops;  // most hops among the routes of that cost
  };
  [[nodiscard]] Distances distances_to(std::uint32_t dst) const;
  [[nodiscard]] Table make_table(std::uint32_t dst) const;

  std::vector<std::uint32_t> begin_;  // [num_switches + 1] into hops_
  std::vector<SwitchHop> hops_;
  std::vector<std::uint32_t> cost_;  // parallel to hops_
  std::uint32_t max_cost_ = 1;
  std::unique_ptr<std::once_flag[]> made_;  // [num_switches]
  mutable std::vector<Table> tables_;       // [num_switches], guarded by made_
};

}  // namespace coterie
