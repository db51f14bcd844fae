#pragma once
// How long a step takes: by execution of its whole program, or, for clusters of any size, composed
// of blocks that an engine executes once each.
//
// The composition has two levels.
//
//  1. *Blocks*: one layer of one micro-batch forward, backward, or forward beside the backward pass of
//     another one, on one cell (step_program.hpp), with all cells that share links with it doing the same
//     at the same time; the reduction of all gradients and the gathering of all parameters, of all
//     stages at the same time. Each distinct block is simulated once: layers of the same class, and
//     cells that cannot be told apart (symmetry.hpp), are the same block.
//  2. *Schedule*: a slot of a stage takes the sum of its blocks, or what the host takes to launch
//     their kernels where that is longer. Slots start as pipeline.hpp says.
//     Gradients follow the last backward pass layer by layer where they overlap; what both send at the
//     same time delays both by as long.
//
// Where links change during the step, blocks are simulated with the links of every *epoch* between two
// changes, and a slot, send or reduction that lives through several does of each as much as its time
// allows. While a link is down, what crosses it makes no progress, its kernels included.
//
// What this assumes, and full execution does not: the ranks of a cell meet at the end of every layer
// (rather than at its dispatch), blocks of different kinds do not share links, and sends between stages
// meet no other traffic. Tests compare both on up to 64 GPUs.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/report.hpp"
#include "sim/engines/engine.hpp"
#include "sim/step/block_times.hpp"
#include "sim/step/symmetry.hpp"

namespace coterie {

// Time of a step by name, seconds; they add up to the step along its critical path.
struct CriticalSegment {
  std::string name;  // "stage 3 forward", "send from stage 2 to 3", "gradients"
  double seconds = 0.0;
  std::uint32_t count = 0;
};

struct StepTimes {
  double time_s = 0.0;
  // Of the stage with most to do (composed), or of the rank that ends last (executed); they add up
  // to time_s.
  StepParts parts{};
  double communication_s = 0.0;
  double exposed_s = 0.0;
  double bubble_s = 0.0;
  double compute_s = 0.0;
  // Seconds of the step in which the busiest GPU of that stage uses its ports, each direction: bytes over
  // bandwidth.
  double scale_up_busy_s = 0.0;
  double network_busy_s = 0.0;
  std::vector<CriticalSegment> critical_path;  // longest first
  Timeline timeline;
  // How much was simulated: blocks, and the operations of all their programs.
  std::uint64_t num_blocks = 0;
  std::uint64_t num_operations = 0;
};

struct StepOptions {
  std::string engine = "flow";
  std::optional<double> relative_precision;
  bool timeline = false;
  // Links that have another capacity from a time on.
  std::vector<CapacityChange> changes;
};

// Executes the whole program.
StepTimes execute_step(const StepSetup& setup, const Network& network, const StepOptions& options);
// Composes the step of blocks.
StepTimes compose_step(const StepSetup& setup, const Network& network, const StepOptions& options);

}  // namespace coterie
