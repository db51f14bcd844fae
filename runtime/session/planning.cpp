#include "runtime/session/planning.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/hash.hpp"

namespace coterie {
namespace {

PlannedRun plan_layers(const Experiment& experiment, const RunSpec& spec, const TraceParts& trace) {
  PlannedRun planned{prepare_run(experiment, spec, trace), {}, {}};
  const PlanRequest request = plan_request(experiment, planned.prepared, PlanDetail::kRows);
  for (std::size_t i = 0; i < planned.prepared.routing->num_layers(); ++i) {
    planned.plans.push_back(make_plan(*planned.prepared.routing, i,
                                      planned.prepared.placement.layers[i],
                                      planned.prepared.tokens(), request));
  }
  return planned;
}

// A rank with other inputs would send what nobody expects.
void compare_across_ranks(const PlannedRun& planned, ControlGroup& group) {
  ContentHash hash;
  for (const LayerPlan& layer : planned.plans) {
    for (const Stage& stage : layer.stages) {
      hash.add(stage.src).add(stage.dst).add(stage.round).add(stage.parent);
      hash.add(stage.row_token).add(stage.row_mask);
    }
    hash.add(layer.rank_experts).add(layer.weights);
  }
  const auto digests = group.all_gather("comparison of the plans",
                                        planned.infeasible ? "infeasible" : hex64(hash.digest()));
  for (std::size_t r = 1; r < digests.size(); ++r) {
    if (digests[r] != digests[0]) {
      throw InputError("dispatch plans", fmt::format("another plan on rank {} than on rank 0", r),
                       "the same experiment and trace files on all ranks");
    }
  }
}

}  // namespace

PlannedRun plan_run(const Experiment& experiment, const RunSpec& spec, const TraceParts& trace,
                    ControlGroup& group) {
  group.set_stage(fmt::format("planning of run {}", spec.name));
  PlannedRun planned;
  try {
    planned = plan_layers(experiment, spec, trace);
  } catch (const InputError& error) {
    planned.infeasible = error.what();
  }
  compare_across_ranks(planned, group);
  return planned;
}

}  // namespace coterie
