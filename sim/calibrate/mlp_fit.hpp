#pragma once
// The expert MLP of one rank from measured latencies: the parameters of MlpCosts
// (topologies/cluster.hpp).

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "sim/calibrate/measurements.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// Tokens per expert of the most loaded rank, over draws of the load. `balanced` deals the
// (token, expert) pairs evenly, its one draw; `power_law_a` draws a share for every expert from the
// density x^-a between 1 and 0.8 of the tokens (0.01 and 2 where there are fewer pairs than
// experts), scales the shares to the number of pairs, rounds them, and leaves no expert more than the
// tokens there are. Of DeepSeek-V3's shape (hidden 7168, top-8 of 256) both loads go through its router,
// which limits tokens to four of eight groups; the rank is then the first, as in the tables' tool.
std::vector<std::vector<std::uint64_t>> expert_loads(const MlpPoint& point);

// One parameter per tile, for a fit: that of the highest is the logarithm of its rate, of the others by
// how much the next is faster. Low tiles read as many weights for fewer rows, so that rates rise.
void add_tile_rates(std::span<const std::uint32_t> rows, double highest,
                    std::vector<FitParameter>& parameters);
// The tiles, and compute_rate, from values of these parameters.
void set_tile_rates(std::span<const std::uint32_t> rows, std::span<const double> parameters,
                    MlpCosts& costs);

// What the tables' kernels spend on the tokens of the whole EP group before they look at experts, once
// per token (its values in BF16) whatever its top-k: a batch of B tokens takes
// B * 2 * hidden / token_bandwidth beyond the formula of MlpCosts, whose batch_bandwidth counts
// (token, expert) pairs. Ranks of a dispatch hold no such batch, so that no topology carries it.
struct MlpFit {
  MlpCosts costs;
  Bandwidth token_bandwidth;
  std::vector<std::string> undetermined;
};
MlpFit fit_mlp(const std::vector<MlpPoint>& points);

// The mean over the draws of expert_loads.
double mlp_time_s(const MlpFit& fit, const MlpPoint& point);

}  // namespace coterie
