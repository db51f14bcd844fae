#pragma once
// The expert MLP of one rank from measured latencies: the parameters of MlpCosts
// (topologies/cluster.hpp).

#include <string>
#include <vector>

#include "sim/calibrate/measurements.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// Tokens per expert of the most loaded rank, over draws of the load. `balanced` deals the
// (token, expert) pairs evenly, its one draw; `power_law_a` draws a share for every expert from the
// density x^-a between 1 and 0.8 of the tokens (0.01 and 2 where there are fewer pairs than
// experts), scales the shares to the number of pairs and rounds them.
std::vector<std::vector<std::uint64_t>> expert_loads(const MlpPoint& point);

struct MlpFit {
  MlpCosts costs;
  std::vector<std::string> undetermined;
};
MlpFit fit_mlp(const std::vector<MlpPoint>& points);

// The mean over the draws of expert_loads.
double mlp_time_s(const MlpCosts& costs, const MlpPoint& point);

}  // namespace coterie
