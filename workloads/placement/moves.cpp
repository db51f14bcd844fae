#include "workloads/placement/moves.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "core/counted.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

void expect_same_shape(const Placement& before, const Placement& after) {
  const auto shape = [](const Placement& p) {
    return fmt::format("{} of {} on {} ({} per node)", counted(p.layers.size(), "layer"),
                       counted(p.num_experts, "expert"), counted(p.num_ranks, "rank"),
                       p.ranks_per_node);
  };
  bool same = shape(before) == shape(after);
  for (std::size_t i = 0; same && i < before.layers.size(); ++i) {
    same = before.layers[i].layer == after.layers[i].layer;
  }
  if (!same) {
    throw InputError("placement to move to", shape(after),
                     fmt::format("{} and the same layers, as the one before", shape(before)));
  }
}

// The column of every row that makes the sum of `value` [n][n] largest: shortest augmenting paths
// with potentials, O(n^3) (Kuhn 1955; Jonker and Volgenant 1987).
std::vector<std::size_t> best_assignment(const std::vector<std::int64_t>& value, std::size_t n) {
  constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max();
  std::vector<std::int64_t> row_potential(n + 1, 0), column_potential(n + 1, 0);
  std::vector<std::size_t> row_of(n + 1, n), came_from(n + 1, n);  // column n is the start
  for (std::size_t row = 0; row < n; ++row) {
    row_of[n] = row;
    std::size_t column = n;
    std::vector<std::int64_t> slack(n + 1, kFar);
    std::vector<bool> done(n + 1, false);
    do {
      done[column] = true;
      const std::size_t i = row_of[column];
      std::int64_t least = kFar;
      std::size_t next = n;
      for (std::size_t j = 0; j < n; ++j) {
        if (done[j]) continue;
        const std::int64_t reduced = -value[i * n + j] - row_potential[i] - column_potential[j];
        if (reduced < slack[j]) {
          slack[j] = reduced;
          came_from[j] = column;
        }
        if (slack[j] < least) {
          least = slack[j];
          next = j;
        }
      }
      for (std::size_t j = 0; j <= n; ++j) {
        if (done[j]) {
          row_potential[row_of[j]] += least;
          column_potential[j] -= least;
        } else if (slack[j] != kFar) {
          slack[j] -= least;
        }
      }
      column = next;
    } while (row_of[column] != n);
    while (column != n) {
      row_of[column] = row_of[came_from[column]];
      column = came_from[column];
    }
  }
  std::vector<std::size_t> column_of(n);
  for (std::size_t j = 0; j < n; ++j) column_of[row_of[j]] = j;
  return column_of;
}

// Experts that both lists, ascending, hold.
std::int64_t num_common(const std::vector<ExpertIdx>& a, const std::vector<ExpertIdx>& b) {
  std::int64_t count = 0;
  for (auto i = a.begin(), j = b.begin(); i != a.end() && j != b.end();) {
    if (*i == *j) ++count;
    const bool first = *i <= *j;
    const bool second = *j <= *i;
    if (first) ++i;
    if (second) ++j;
  }
  return count;
}

LayerPlacement renumbered_layer(const LayerPlacement& before, const LayerPlacement& after,
                                std::uint32_t num_ranks, std::uint32_t ranks_per_node) {
  const std::size_t per_node = std::min(num_ranks, ranks_per_node);
  const std::size_t num_nodes = num_ranks / per_node;
  // Equal sums prefer what stays as it is: a common expert counts more than all ranks in place.
  const auto stays = static_cast<std::int64_t>(num_ranks) + 1;
  std::vector<std::int64_t> node_value(num_nodes * num_nodes, 0);
  std::vector<std::vector<std::size_t>> inside(num_nodes * num_nodes);  // [after][before]
  for (std::size_t from = 0; from < num_nodes; ++from) {
    for (std::size_t to = 0; to < num_nodes; ++to) {
      std::vector<std::int64_t> value(per_node * per_node);
      for (std::size_t i = 0; i < per_node; ++i) {
        for (std::size_t j = 0; j < per_node; ++j) {
          const std::size_t a = from * per_node + i;
          const std::size_t b = to * per_node + j;
          value[i * per_node + j] =
              stays * num_common(after.rank_experts[a], before.rank_experts[b]) + (a == b ? 1 : 0);
        }
      }
      std::vector<std::size_t>& columns = inside[from * num_nodes + to];
      columns = best_assignment(value, per_node);
      for (std::size_t i = 0; i < per_node; ++i) {
        node_value[from * num_nodes + to] += value[i * per_node + columns[i]];
      }
    }
  }
  const std::vector<std::size_t> node_of = best_assignment(node_value, num_nodes);
  LayerPlacement layer = after;
  for (std::size_t from = 0; from < num_nodes; ++from) {
    const std::size_t to = node_of[from];
    for (std::size_t i = 0; i < per_node; ++i) {
      layer.rank_experts[to * per_node + inside[from * num_nodes + to][i]] =
          after.rank_experts[from * per_node + i];
    }
  }
  return layer;
}

}  // namespace

std::vector<ExpertMove> expert_moves(const Placement& before, const Placement& after) {
  expect_same_shape(before, after);
  const std::uint32_t per_node = after.ranks_per_node;
  struct Wanted {
    ExpertMove move;
    std::vector<std::uint32_t> sources;
  };
  std::vector<Wanted> wanted;
  for (std::uint32_t i = 0; i < after.layers.size(); ++i) {
    const ExpertHosts hosts = expert_hosts(before.layers[i], before.num_experts);
    for (std::uint32_t rank = 0; rank < after.num_ranks; ++rank) {
      for (const ExpertIdx expert : after.layers[i].rank_experts[rank]) {
        std::vector<std::uint32_t> all(hosts.ranks.begin() + hosts.begin[expert],
                                       hosts.ranks.begin() + hosts.begin[expert + 1U]);
        if (std::binary_search(all.begin(), all.end(), rank)) continue;
        std::vector<std::uint32_t> near;
        for (const std::uint32_t host : all) {
          if (host / per_node == rank / per_node) near.push_back(host);
        }
        wanted.push_back({{i, expert, 0, rank}, near.empty() ? all : near});
      }
    }
  }
  std::stable_sort(wanted.begin(), wanted.end(), [](const Wanted& a, const Wanted& b) {
    return a.sources.size() < b.sources.size();
  });
  std::vector<std::uint64_t> sent(before.num_ranks, 0);
  std::vector<ExpertMove> moves;
  for (Wanted& want : wanted) {
    want.move.src =
        *std::min_element(want.sources.begin(), want.sources.end(),
                          [&](std::uint32_t a, std::uint32_t b) { return sent[a] < sent[b]; });
    ++sent[want.move.src];
    moves.push_back(want.move);
  }
  std::sort(moves.begin(), moves.end(), [](const ExpertMove& a, const ExpertMove& b) {
    return std::tie(a.layer_idx, a.dst, a.expert) < std::tie(b.layer_idx, b.dst, b.expert);
  });
  return moves;
}

Placement renumbered_to_stay(const Placement& before, const Placement& after) {
  expect_same_shape(before, after);
  Placement result = after;
  for (std::size_t i = 0; i < result.layers.size(); ++i) {
    result.layers[i] =
        renumbered_layer(before.layers[i], after.layers[i], after.num_ranks, after.ranks_per_node);
  }
  return result;
}

MoveCounts count_moves(const std::vector<ExpertMove>& moves, std::uint32_t num_ranks,
                       std::uint32_t ranks_per_node) {
  MoveCounts counts;
  counts.pairs.assign(std::size_t{num_ranks} * num_ranks, 0);
  std::vector<std::uint64_t> sent(num_ranks, 0), received(num_ranks, 0);
  for (const ExpertMove& move : moves) {
    ++counts.total;
    if (move.src / ranks_per_node != move.dst / ranks_per_node) ++counts.between_nodes;
    ++counts.pairs[std::size_t{move.src} * num_ranks + move.dst];
    counts.most_sent = std::max(counts.most_sent, ++sent[move.src]);
    counts.most_received = std::max(counts.most_received, ++received[move.dst]);
  }
  return counts;
}

}  // namespace coterie
