#pragma once
// From dispatch plans to the program of one MoE layer: every rank's kernels and transfers with
// their dependencies. Ranks wait for what they need and for nothing else; the one barrier is the
// notify step, within each EP group.
//
//   notify -> pack -> dispatch ------------------> expand -> mlp -> merge -> combine -> sum
//                        \-> forward (chunks) ->/                \-> gather ->/
//
//  - expand of a rank starts when all rows for it have arrived; sum when all its results are back.
//  - forward and gather exist under the hierarchical policy: an inter-node transfer travels in
//    chunks, a chunk's arrival releases its forwards inside the node, and on the way back a chunk
//    leaves as soon as the results it sums are together.
//  - Kernels of one rank that the dependencies do not order never compete; see sim/README.md for
//    what else is left out.

#include <cstdint>
#include <span>
#include <vector>

#include "core/report.hpp"
#include "sim/program/program.hpp"
#include "workloads/model.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

struct LayerSetup {
  // One plan per EP group, equal numbers of ranks; rank r of group g is GPU g * num_ranks + r.
  std::span<const LayerPlan> groups;
  const ModelShape& model;
  PayloadType dispatch_payload = PayloadType::kBf16;
  PayloadType combine_payload = PayloadType::kBf16;
  Bytes chunk{1 << 20};
  // When each rank reaches the layer, seconds, [num_groups * num_ranks]; empty: all at zero.
  std::vector<double> ready_s;
};

struct LayerProgram {
  Program program;
  std::vector<Phase> phase;             // [num_ops]
  std::vector<std::uint32_t> num_rows;  // [num_ops] rows a transfer carries
};

// Throws InputError where the groups do not fit on the cluster.
LayerProgram build_layer(const LayerSetup& setup, const Cluster& cluster);

}  // namespace coterie
