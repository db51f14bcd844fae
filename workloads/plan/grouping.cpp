#include "workloads/plan/grouping.hpp"

#include "workloads/plan/large_column.hpp"

namespace coterie {
namespace {

// Target of each rank; a table, because a division per copy would cost more than all the rest.
std::vector<std::uint32_t> target_of_rank(const Deliveries& deliveries, const GroupBy& by) {
  std::vector<std::uint32_t> target(deliveries.num_ranks);
  for (std::uint32_t rank = 0; rank < deliveries.num_ranks; ++rank) {
    target[rank] = rank / by.ranks_per_target;
  }
  return target;
}

}  // namespace

Groups group(const Deliveries& deliveries, const GroupBy& by) {
  const std::uint32_t num_ranks = deliveries.num_ranks;
  const std::uint32_t num_topk = deliveries.num_topk;
  const std::uint32_t num_targets = num_ranks / by.ranks_per_target;
  const std::vector<std::uint32_t> target_of = target_of_rank(deliveries, by);

  struct Counter {
    std::uint64_t last_token = ~std::uint64_t{0};
    std::uint32_t num_rows = 0;
    std::uint32_t num_copies = 0;
  };
  std::vector<Counter> counters(num_targets);
  Groups groups;
  const std::size_t num_parts = deliveries.part_begin.size() - 1;
  groups.part_begin.reserve(num_parts + 1);
  groups.part_begin.push_back(0);
  for (std::size_t part = 0; part < num_parts; ++part) {
    const std::uint64_t end = deliveries.part_begin[part + 1];
    for (std::uint64_t token = deliveries.part_begin[part]; token < end; ++token) {
      const std::uint32_t* const serving = deliveries.serving.data() + token * num_topk;
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        Counter& counter = counters[target_of[serving[j]]];
        counter.num_rows += counter.last_token != token ? 1 : 0;
        counter.last_token = token;
        ++counter.num_copies;
      }
    }
    const std::uint32_t own = target_of[part / deliveries.num_rounds];
    for (std::uint32_t step = 0; step < num_targets; ++step) {
      const std::uint32_t target = own + step < num_targets ? own + step : own + step - num_targets;
      Counter& counter = counters[target];
      if (counter.num_copies == 0) continue;
      groups.target.push_back(target);
      groups.num_rows.push_back(by.merge ? counter.num_rows : counter.num_copies);
      groups.num_copies.push_back(counter.num_copies);
      counter = {};
    }
    groups.part_begin.push_back(groups.target.size());
  }
  return groups;
}

void fill_rows(const Deliveries& deliveries, const GroupBy& by, const Groups& groups,
               std::span<const std::uint32_t> transfer_of_group, Stage& stage) {
  const std::uint32_t num_ranks = deliveries.num_ranks;
  const std::uint32_t num_topk = deliveries.num_topk;
  const std::vector<std::uint32_t> target_of = target_of_rank(deliveries, by);

  stage.row_begin.resize(stage.num_rows.size() + 1);
  for (std::size_t i = 0; i < stage.num_rows.size(); ++i) {
    stage.row_begin[i + 1] = stage.row_begin[i] + stage.num_rows[i];
  }
  // Where transfers are in the order of the groups, the columns grow part by part: what a
  // resize zeroes is then still in cache when the rows are written.
  const bool in_order = transfer_of_group.empty();
  reserve_large(stage.row_token, stage.row_begin.back());
  reserve_large(stage.row_mask, stage.row_begin.back());
  const auto grow_to = [&](std::uint64_t num_rows) {
    stage.row_token.resize(num_rows);
    stage.row_mask.resize(num_rows);
  };
  if (!in_order) grow_to(stage.row_begin.back());

  struct Cursor {
    std::uint64_t last_token = ~std::uint64_t{0};
    std::uint64_t next_row = 0;
  };
  std::vector<Cursor> cursors(num_ranks / by.ranks_per_target);
  for (std::size_t part = 0; part + 1 < groups.part_begin.size(); ++part) {
    if (in_order) grow_to(stage.row_begin[groups.part_begin[part + 1]]);
    for (std::uint64_t i = groups.part_begin[part]; i < groups.part_begin[part + 1]; ++i) {
      const std::uint64_t transfer = in_order ? i : transfer_of_group[i];
      cursors[groups.target[i]].next_row = stage.row_begin[transfer];
    }
    const std::uint64_t end = deliveries.part_begin[part + 1];
    for (std::uint64_t token = deliveries.part_begin[part]; token < end; ++token) {
      const std::uint32_t* const serving = deliveries.serving.data() + token * num_topk;
      for (std::uint32_t j = 0; j < num_topk; ++j) {
        Cursor& cursor = cursors[target_of[serving[j]]];
        if (by.merge && cursor.last_token == token) {
          stage.row_mask[cursor.next_row - 1] |= 1u << j;
          continue;
        }
        cursor.last_token = token;
        stage.row_token[cursor.next_row] = static_cast<std::uint32_t>(token);
        stage.row_mask[cursor.next_row] = 1u << j;
        ++cursor.next_row;
      }
    }
  }
}

}  // namespace coterie
