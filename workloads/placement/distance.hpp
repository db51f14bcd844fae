#pragma once
// How far a placement is from what is possible, layer by layer.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "workloads/placement/fan_out_bound.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {

struct FanOutDistance {
  double reached = 0.0;  // mean distinct ranks per token, own rank included
  double bound = 0.0;    // no placement of as many slots has fewer on these tokens (fan_out_bound)
  // By how much `reached` may exceed the least possible, at most.
  [[nodiscard]] double excess() const { return bound > 0.0 ? reached / bound - 1.0 : 0.0; }
};

// One per layer of the placement, which are the routing's, in its order. `max_imbalance` is a cap
// that the compared placements must meet on these tokens; `reached` [layers] what was counted, as
// fan_out gives it. Layers are shared out to `num_jobs` threads (0: as many as cores).
std::vector<FanOutDistance> fan_out_distance(const Routing& routing, const Placement& placement,
                                             const std::vector<double>& reached,
                                             std::optional<double> max_imbalance,
                                             BoundEffort effort, unsigned num_jobs);
// Of all layers together: both sides averaged.
FanOutDistance mean_distance(const std::vector<FanOutDistance>& layers);

// Calls body(0) ... body(num_layers - 1) on up to `num_jobs` threads (0: as many as cores), in no
// particular order; the error of the lowest layer is thrown.
void for_each_layer(unsigned num_jobs, std::size_t num_layers,
                    const std::function<void(std::size_t)>& body);

}  // namespace coterie
