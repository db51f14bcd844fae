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

// Tokens per expert of the first rank, over draws of the load, as the tables' tool deals them.
// `balanced`, its one draw: a token wants every (experts / topk)-th expert, the next token those behind;
// tokens that are fewer than experts / topk are spread over these. `power_law_a` draws a share for every
// expert from the density x^-a between 1 and 0.8 of the tokens (0.01 and 2 where there are no more pairs
// than experts), scales the shares to the number of (token, expert) pairs, rounds them, and leaves no
// expert more than the tokens there are; what exceeds or is missing goes to the ranks one after the other,
// there to the expert that has the least, and what is too much is taken likewise from the one that has the
// most. So few tokens, whose shares all round to zero, are spread as evenly as a balanced load. The fullest
// rank, of several the first, changes places with the first. Of DeepSeek-V3's shape (hidden 7168, top-8 of
// 256) both loads go through its router, which limits tokens to four of eight groups.
std::vector<std::vector<std::uint64_t>> expert_loads(const MlpPoint& point);

// How a kernel of the tables chooses its tile.
enum class MlpKernel {
  kFastest,  // among 16, 64 and 128 rows; grouped products that go through all experts of the rank
  kTritonBf16,  // Triton's, by vLLM's rule for BF16: 16 rows up to 32 tokens, 32 to 96, 64 to 512, 128
  kTritonFp8,  // by its rule for blocks of FP8: 16 rows up to 64 tokens, then 64
};
// Where a table names no kernel, what the table of the H200 shows of Hopper GPUs: BF16 runs in Triton's
// kernel, and blocks of FP8 do at EP 1. A point without a machine is of an H200, without a type BF16.
MlpKernel kernel_of(const MlpPoint& point);

// One parameter per tile, for a fit: that of the highest is the logarithm of its rate, of the others by
// how much the next is faster. Low tiles read as many weights for fewer rows, so that rates rise.
void add_tile_rates(std::span<const std::uint32_t> rows, double highest,
                    std::vector<FitParameter>& parameters);
// The tiles, and compute_rate, from values of these parameters.
void set_tile_rates(std::span<const std::uint32_t> rows, std::span<const double> parameters,
                    MlpCosts& costs);

// What the tables' measurements hold beyond the formula of MlpCosts, whose batch_bandwidth counts (token,
// expert) pairs. Ranks of a dispatch hold no batch of the whole EP group, and nobody else measures in the
// tool's loop, so that no topology carries it:
//   token_bandwidth  values of the batch in BF16, once per token whatever its top-k
//   group_expert     of every expert of the whole group that has tokens (as many as there are pairs, until
//                    all have): the index has tiles for each
//   replay           starting one CUDA graph, which holds the one draw of a balanced load, or five of others
struct MlpFit {
  MlpCosts costs;
  Bandwidth token_bandwidth;
  Seconds group_expert;
  Seconds replay;
  std::vector<std::string> undetermined;
};
// The points are of one kernel_of; at least one.
MlpFit fit_mlp(const std::vector<MlpPoint>& points);

// The mean over the draws of expert_loads.
double mlp_time_s(const MlpFit& fit, const MlpPoint& point);
// By how much the mean over five draws, as many as the tool makes, scatters (one standard deviation, over
// the mean): what no formula of the table's columns can know. Zero for loads of one draw.
double mlp_draw_scatter(const MlpFit& fit, const MlpPoint& point);

}  // namespace coterie
