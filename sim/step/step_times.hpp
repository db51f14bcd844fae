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
//  2. *Schedule*: a slot of a stage takes the sum of its blocks, and longer where the host is behind
//     with launching their kernels (LaunchClock). Slots start as pipeline.hpp says.
//     Gradients follow the last backward pass layer by layer where they overlap; what both send at the
//     same time delays both by as long.
//
// Where links change during the step, blocks are simulated with the links of every *epoch* between two
// changes, and a slot, send or reduction that lives through several does of each as much as its time
// allows. While a link is down, what crosses it makes no progress, its kernels included. An epoch in
// which failed links are routed around has routes, cells and blocks of its own.
//
// What this assumes, and full execution does not: the ranks of a cell meet at the end of every layer
// (rather than at its dispatch), blocks of different kinds do not share links, and sends between stages
// meet no other traffic. Tests compare both on up to 64 GPUs.

#include <cstdint>
#include <limits>
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
  double longest_stall_s = 0.0;  // for which something stood still on a failed link
  // How much was simulated: blocks, and the operations of all their programs.
  std::uint64_t num_blocks = 0;
  std::uint64_t num_operations = 0;

  // For means over steps: all times but those of the timeline and the longest stall, which are those of
  // the first step and of the longest; segments of equal names are one.
  void scale(double factor);
  void add(const StepTimes& other, double factor);
};

struct StepOptions {
  std::string engine = "flow";
  std::optional<double> relative_precision;
  bool timeline = false;
  // Links that have another capacity from a time on; at zero they have failed.
  std::vector<CapacityChange> changes;
  // Failed links are routed around after so long, and those that have failed at zero from the start;
  // absent: never.
  std::optional<double> reroute_after_s;
  // What stands still for so long ends the step, infinite: nothing does.
  double timeout_s = std::numeric_limits<double>::infinity();
};

// Whether routes change while the step is under way. An executed step has that with the engine flow only.
bool reroutes_under_way(const StepOptions& options);

// Both throw Error (a communication failure) for a step that a timeout ends.
// Executes the whole program. Throws InputError where routes change under way and the engine cannot.
StepTimes execute_step(const StepSetup& setup, const Network& network, const StepOptions& options);
// Composes the step of blocks.
StepTimes compose_step(const StepSetup& setup, const Network& network, const StepOptions& options);

}  // namespace coterie
