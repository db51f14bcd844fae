#pragma once
// What the kernels of a layer cost on one GPU: bytes moved over the reachable memory bandwidth, a
// roofline for the expert MLP, and a fixed launch cost each. The parameters are those of GpuModel
// (peaks, memory bandwidth, the two efficiencies, kernel_launch), so that calibration can fit them.

#include <cstdint>
#include <span>

#include "topologies/cluster.hpp"
#include "workloads/model.hpp"
#include "workloads/plan/payload.hpp"

namespace coterie {

// A kernel that reads and writes `bytes` in total. Zero bytes launch nothing and take no time.
Seconds copy_time(const GpuModel& gpu, double bytes);

// The gated MLP of one expert: three matrices [hidden, intermediate], multiplied in the type of the
// dispatched rows (FP8 rows meet FP8 weights at the FP8 peak).
struct MlpShape {
  std::uint32_t hidden = 0;
  std::uint32_t intermediate = 0;
  PayloadType type = PayloadType::kBf16;
};

// The MLP over one rank's experts: the sum over those with tokens of
//   max(flops / (peak * compute_efficiency), bytes / (memory_bandwidth * memory_efficiency))
// with flops = 6 * tokens * hidden * intermediate, and bytes = the weights once, the rows in and
// out, and the intermediate activations written and read once; plus the launches of its two grouped
// multiplications. Zero tokens take no time. Where the GPU has calibrated MlpCosts, those count
// (FP8 scales their weights and rates by what the peaks say).
Seconds mlp_time(const GpuModel& gpu, const MlpShape& shape,
                 std::span<const std::uint64_t> expert_tokens);

// The formula of MlpCosts, in BF16.
Seconds calibrated_mlp_time(const MlpCosts& costs, double hidden, double intermediate,
                            std::span<const std::uint64_t> expert_tokens, double batch_copies);

}  // namespace coterie
