#pragma once
// Which cells of a cluster cannot be told apart, so that one simulation stands for many. Nothing is
// assumed: the routes of every pair of GPUs of every cell are compared.
//
// Cells that share a link influence each other and form one *component*. Two components are equal if
// their cells, taken in order, have the same routes but for the numbers of the links: pair by pair as
// many links, the same ones shared, with equal capacities and latencies. An engine then computes the
// same times for both, whatever the cells send inside themselves, as long as they send the same.

#include <cstdint>
#include <span>
#include <vector>

#include "sim/program/program.hpp"
#include "topologies/network.hpp"

namespace coterie {

struct CellClass {
  // Of the component that stands for the class: the first GPU of each of its cells.
  std::vector<std::uint32_t> first_gpus;
  std::uint32_t num_components = 0;
};

struct CellClasses {
  std::vector<CellClass> classes;
  std::vector<std::uint32_t> class_of;     // [num_cells]
  std::vector<std::uint32_t> position_of;  // [num_cells] in the first_gpus of its class
};

// Cell i is GPUs [i * cell_gpus, (i + 1) * cell_gpus). `changes`: capacities that differ from the
// network's from the start on. Takes time in proportion to cells and to the pairs of a cell.
CellClasses cell_classes(const Network& network, std::uint32_t num_cells, std::uint32_t cell_gpus,
                         std::span<const CapacityChange> changes = {});

}  // namespace coterie
