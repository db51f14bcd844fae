#include "sim/step/symmetry.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <numeric>

#include "sim/engines/resolved.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

std::uint32_t root_of(std::vector<std::uint32_t>& parent, std::uint32_t cell) {
  while (parent[cell] != cell) cell = parent[cell] = parent[parent[cell]];
  return cell;
}

class Comparison {
 public:
  Comparison(const Network& network, std::uint32_t num_cells, std::uint32_t cell_gpus,
             std::span<const CapacityChange> changes)
      : network_(network), num_cells_(num_cells), cell_gpus_(cell_gpus) {
    for (const Link& link : network.links()) capacity_.push_back(link.bandwidth.value);
    for (const CapacityChange& change : changes) capacity_[change.link] = change.capacity;
  }

  CellClasses run() {
    CellClasses out;
    out.class_of.resize(num_cells_);
    out.position_of.resize(num_cells_);
    std::map<std::vector<std::uint64_t>, std::uint32_t> known;
    for (const std::vector<std::uint32_t>& cells : components()) {
      const auto [entry, added] =
          known.try_emplace(signature(cells), static_cast<std::uint32_t>(out.classes.size()));
      if (added) {
        out.classes.emplace_back();
        for (const std::uint32_t cell : cells) {
          out.classes.back().first_gpus.push_back(cell * cell_gpus_);
        }
      }
      ++out.classes[entry->second].num_components;
      for (std::uint32_t i = 0; i < cells.size(); ++i) {
        out.class_of[cells[i]] = entry->second;
        out.position_of[cells[i]] = i;
      }
    }
    return out;
  }

 private:
  // Calls `f(route)` for all ordered pairs of a cell.
  template <class F>
  void for_routes(std::uint32_t cell, const F& f) {
    for (std::uint32_t a = 0; a < cell_gpus_; ++a) {
      for (std::uint32_t b = 0; b < cell_gpus_; ++b) {
        if (a == b) continue;
        const std::uint32_t src = cell * cell_gpus_ + a;
        const std::uint32_t dst = cell * cell_gpus_ + b;
        route_.clear();
        network_.append_route(GpuId{src}, GpuId{dst}, flow_key(src, dst, network_.num_gpus()),
                              route_);
        f(route_);
      }
    }
  }

  // Cells that share links, directly or through others, in order.
  std::vector<std::vector<std::uint32_t>> components() {
    std::vector<std::uint32_t> parent(num_cells_);
    std::iota(parent.begin(), parent.end(), 0U);
    std::vector<std::uint32_t> user(network_.links().size(), kNone);
    for (std::uint32_t cell = 0; cell < num_cells_; ++cell) {
      for_routes(cell, [&](const std::vector<LinkId>& route) {
        for (const LinkId link : route) {
          std::uint32_t& first = user[link.value];
          if (first == kNone) first = cell;
          if (first == cell) continue;
          const std::uint32_t a = root_of(parent, first);
          const std::uint32_t b = root_of(parent, cell);
          parent[std::max(a, b)] = std::min(a, b);
        }
      });
    }
    std::map<std::uint32_t, std::vector<std::uint32_t>> by_root;
    for (std::uint32_t cell = 0; cell < num_cells_; ++cell) {
      by_root[root_of(parent, cell)].push_back(cell);
    }
    std::vector<std::vector<std::uint32_t>> out;
    for (auto& [root, cells] : by_root) out.push_back(std::move(cells));
    return out;
  }

  // All routes of the cells, with links numbered as they come up first.
  std::vector<std::uint64_t> signature(const std::vector<std::uint32_t>& cells) {
    number_.resize(network_.links().size(), kNone);
    std::vector<std::uint64_t> out{cells.size()};
    std::vector<std::uint32_t> numbered;
    for (const std::uint32_t cell : cells) {
      for_routes(cell, [&](const std::vector<LinkId>& route) {
        out.push_back(route.size());
        for (const LinkId link : route) {
          std::uint32_t& number = number_[link.value];
          if (number == kNone) {
            number = static_cast<std::uint32_t>(numbered.size());
            numbered.push_back(link.value);
            out.push_back(std::bit_cast<std::uint64_t>(capacity_[link.value]));
            out.push_back(std::bit_cast<std::uint64_t>(network_.links()[link.value].latency.value));
          }
          out.push_back(number);
        }
      });
    }
    for (const std::uint32_t link : numbered) number_[link] = kNone;
    return out;
  }

  const Network& network_;
  std::uint32_t num_cells_, cell_gpus_;
  std::vector<double> capacity_;       // [num_links]
  std::vector<std::uint32_t> number_;  // [num_links] within the component at hand
  std::vector<LinkId> route_;
};

}  // namespace

CellClasses cell_classes(const Network& network, std::uint32_t num_cells, std::uint32_t cell_gpus,
                         std::span<const CapacityChange> changes) {
  return Comparison(network, num_cells, cell_gpus, changes).run();
}

}  // namespace coterie
