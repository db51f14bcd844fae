#pragma once
// The transport `direct`: the runtime's own kernels over peer memory (kernels/direct.hpp). A *put* runs
// where the rows are and writes them to where they are needed; a *pull* runs where results are
// needed and fetches them, once all peers have announced theirs.
//
// What it has that other kernels have not: two tiers below it. Rows for a rank on the same GPU are
// copies inside its memory, which all ranks of the GPU share; rows for other GPUs cross the GPU's
// port, which they share too. Each rank has multiprocessors of its own for its kernel.

#include <vector>

#include "sim/transports/transport.hpp"

namespace coterie {

// What the kernel of one rank moves in a step.
struct DirectLoad {
  double items = 0.0;       // tokens, or rows of the first hop that it sends on or sums up
  double rows = 0.0;        // put or pulled
  double item_bytes = 0.0;  // of all items: what is read (and for a pull written) once per item
  double near_bytes = 0.0;  // of rows from or to its own GPU
  double far_bytes = 0.0;   // of those from or to others
  bool quantises = false;
};
// [num_ranks]. Where `traffic` does not give the items, a rank has as many as its largest message has
// rows, each of a row's bytes.
std::vector<DirectLoad> direct_loads(const Cluster& cluster, const PhaseTraffic& traffic);

// Ranks that take part in a step with each rank, itself not among them.
std::uint32_t direct_peers(const Cluster& cluster, const PhaseTraffic& traffic);

// What a rank's multiprocessors take for its load, by the formula of DirectKernel.
double direct_move_s(const DirectKernel& kernel, const DirectLoad& load, double sms);

// What limits a step whose ranks all begin at once.
struct DirectStepLoad {
  std::vector<DirectLoad> ranks;  // [num_ranks]
  double port_bytes = 0.0;        // the most over one direction of a GPU's port
  double copied_bytes = 0.0;      // the most that stay on one GPU
  std::uint32_t num_peers = 0;
  std::uint32_t num_turns = 1;  // pulls of a GPU's ranks, which start one after the other
};
DirectStepLoad direct_step_load(const Cluster& cluster, const PhaseTraffic& traffic);
// Its duration: the start, and the longest of what multiprocessors, ports and copies within a GPU
// take. Of pulls that start in turn, ports and copies serve the first already, while the last takes as
// long to start as DirectKernel's `fixed` says. What fits minimise; the program shares the same resources
// max-min fairly, with the same end where all are in use throughout.
double direct_step_s(const DirectKernel& kernel, const DirectStepLoad& load, double sms);

}  // namespace coterie
