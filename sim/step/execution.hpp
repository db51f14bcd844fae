#pragma once
// What executed and composed steps share: a program of a step, or of a block of it, on an engine.

#include <span>
#include <string>

#include "sim/engines/resolved.hpp"
#include "sim/step/step_program.hpp"
#include "sim/step/step_times.hpp"

namespace coterie {

struct Executed {
  StepProgram block;
  Execution execution;
};

// Throws InputError for an engine that has no schedule.
void expect_times(const std::string& engine);

// Executes the program with the links as the options change them, on the routes of `network` and of those
// that follow it.
Executed execute(StepProgram block, const Network& network, const StepOptions& options,
                 std::span<const LaterNetwork> later = {});

// The times of a step that is one block.
StepTimes times_of(const BlockTimes& block, const Cluster& cluster);

// Seconds for which bytes keep a GPU's port of the tier busy, each direction.
double scale_up_s(const Cluster& cluster, double bytes);
double network_s(const Cluster& cluster, double bytes);

}  // namespace coterie
