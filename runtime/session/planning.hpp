#pragma once
// A run of an experiment as the ranks carry it out: prepared and planned on every rank alike.

#include <optional>
#include <string>
#include <vector>

#include "runtime/control/group.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/prepare.hpp"

namespace coterie {

struct PlannedRun {
  PreparedRun prepared;
  std::vector<LayerPlan> plans;           // parallel to the layers of the evaluated routing
  std::optional<std::string> infeasible;  // why the run cannot be carried out, on all ranks alike
};

// Collective. Every rank plans on its own; throws InputError where their plans differ.
PlannedRun plan_run(const Experiment& experiment, const RunSpec& spec, const TraceParts& trace,
                    ControlGroup& group);

}  // namespace coterie
