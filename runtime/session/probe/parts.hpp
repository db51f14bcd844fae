#pragma once
// The measurements of the probe's parts, one file each. All are collective and return their points
// at rank 0 (elsewhere points without samples).

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/session/probe/plan.hpp"
#include "runtime/session/probe/sampler.hpp"

namespace coterie {

class DirectTransport;

// An entry of curves.json (runtime/README.md).
struct ProbePoint {
  nlohmann::json key;    // object: what was measured; no two points of a part have the same
  nlohmann::json facts;  // object: what follows from the key, or was chosen on the way
  std::vector<double> samples_us;  // of the slowest rank
  std::vector<double> ranks_us =
      {};  // [num_ranks] each rank's median, where ranks work on their own
};

// What the parts share.
struct ProbeTools {
  ControlGroup& group;
  Communicator* communicator;  // null for a single rank
  Sampler& sampler;
  std::uint32_t num_local_ranks;
  std::uint32_t num_samples;  // at most, per point of an exchange
  std::uint32_t ranks_per_gpu;
  DirectTransport* direct;  // null where it cannot run, and unless its part is measured
};

std::vector<ProbePoint> probe_communication(ProbeTools& tools,
                                            std::span<const CommunicationCase> cases);
// The exchange of the counts that begins a layer.
std::vector<ProbePoint> probe_notify(ProbeTools& tools);
std::vector<ProbePoint> probe_kernels(ProbeTools& tools, std::span<const KernelCase> cases);
std::vector<ProbePoint> probe_expert_mlp(ProbeTools& tools, std::span<const MlpCase> cases);
// `tools.direct` must be there.
std::vector<ProbePoint> probe_direct(ProbeTools& tools, std::span<const DirectCase> cases);
std::vector<ProbePoint> probe_overlap(ProbeTools& tools, std::span<const OverlapCase> cases);

}  // namespace coterie
