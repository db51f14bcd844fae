#pragma once
// The one step that all policies are made of: sort the copies of every source rank by where they
// go.
//
// A *target* is what the copies are grouped by: a rank, or a node. Two counting-sort sweeps over
// the tokens: `group` counts, `fill_rows` writes every row to its place. The keys of a sweep are
// the copies of one source and round, so its counters and the rows it writes stay in cache.

#include <cstdint>
#include <span>
#include <vector>

#include "workloads/plan/policies.hpp"

namespace coterie {

struct GroupBy {
  std::uint32_t ranks_per_target = 1;  // 1: targets are ranks; ranks_per_node: nodes
  // One row per token and target; false: one row per copy.
  bool merge = true;
};

// The non-empty (part, target) groups, by part (source and round), within a part from the source's
// own target upwards (modulo the number of targets).
struct Groups {
  std::vector<std::uint64_t> part_begin;  // [num_parts + 1]
  std::vector<std::uint32_t> target;      // [num_groups]
  std::vector<std::uint32_t> num_rows;    // [num_groups]
  std::vector<std::uint32_t> num_copies;  // [num_groups]

  [[nodiscard]] std::size_t size() const { return target.size(); }
};
Groups group(const Deliveries& deliveries, const GroupBy& by);

// Writes the rows of every group to `stage.row_token` and `stage.row_mask`, whose `num_rows` are
// set; group i becomes transfer `transfer_of_group[i]` (empty: transfer i).
void fill_rows(const Deliveries& deliveries, const GroupBy& by, const Groups& groups,
               std::span<const std::uint32_t> transfer_of_group, Stage& stage);

}  // namespace coterie
