#pragma once
// Predicted times for the placements that are learnt by time (workloads/placement/layer_times.hpp):
// the flow engine's prediction of a layer, and rates read off the program of a layer whose tokens
// spread evenly.

#include <cstdint>
#include <memory>
#include <optional>

#include "topologies/cluster.hpp"
#include "topologies/transports.hpp"
#include "workloads/experiment.hpp"
#include "workloads/placement/layer_times.hpp"
#include "workloads/plan/payload.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

// One EP group on the first GPUs of a cluster.
struct LayerTimesSetup {
  Cluster cluster;
  ModelShape model;
  std::uint32_t num_ranks = 1;
  DispatchPolicy policy = DispatchPolicy::kDedup;
  TransportChoice transport;
  PayloadType dispatch_payload = PayloadType::kBf16;
  PayloadType combine_payload = PayloadType::kBf16;
  std::optional<PayloadType> expert_type;  // of Experiment
  Bytes chunk{1 << 20};
  SequenceDeal deal = SequenceDeal::kRoundRobin;
  std::optional<std::uint32_t> tokens_per_rank;  // absent: every token of the routing once
  std::uint64_t training_tokens = 0;             // what a rank's tokens follow from then
};

// How such layers are planned.
PlanRequest plan_request(const LayerTimesSetup& setup, ReplicaChoice choice);

// Throws InputError where the ranks or the transport do not fit on the cluster.
std::shared_ptr<const LayerTimes> make_layer_times(LayerTimesSetup setup);

// Of a run of an experiment, for a placement learnt on `training`.
std::shared_ptr<const LayerTimes> layer_times_of(const Experiment& experiment, const RunSpec& run,
                                                 const Routing& training);

}  // namespace coterie
