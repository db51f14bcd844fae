#pragma once
// What the engines share beyond program.hpp.

#include <span>

#include "sim/program.hpp"
#include "sim/routes.hpp"
#include "topologies/network.hpp"

namespace coterie {

// The closed-form lower bounds (bound.cpp derives them): earliest start and finish of every
// operation, and the bound on the makespan, which is at least the latest of those finishes.
// Throws std::logic_error for a program whose operations wait for each other in a circle.
Execution lower_bounds(const Program& program, const Transfers& transfers,
                       std::span<const Link> links);

}  // namespace coterie
