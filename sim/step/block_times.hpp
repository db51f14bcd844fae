#pragma once
// What the execution of a step's program, or of a block of one, says of the rank that ends last.

#include <span>

#include "sim/engines/resolved.hpp"
#include "sim/step/step_program.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

struct BlockTimes {
  double time_s = 0.0;
  // What the rank that ends last is at; they add up to time_s. While it computes, that counts;
  // while it only communicates, that; else it waits.
  StepParts parts{};
  double compute_s = 0.0;        // while it computes
  double communication_s = 0.0;  // while it communicates
  double exposed_s = 0.0;        // while it communicates and computes nothing
  // Of the GPU that sends or receives most, bytes.
  double scale_up_bytes = 0.0;
  double network_bytes = 0.0;

  BlockTimes& operator+=(const BlockTimes& other);
};
BlockTimes operator*(BlockTimes times, double factor);
BlockTimes operator+(BlockTimes a, const BlockTimes& b);

// Over the GPUs [first_gpu, first_gpu + num_gpus).
BlockTimes measure_block(const StepProgram& block, const Execution& execution,
                         const Cluster& cluster, std::uint32_t first_gpu, std::uint32_t num_gpus);

}  // namespace coterie
