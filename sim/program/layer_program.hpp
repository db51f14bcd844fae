#pragma once
// From dispatch plans to programs: the kernels and messages of every rank, with their dependencies.
// The order of the messages and what each waits for come from the plan (workloads/plan/schedule.hpp);
// how a message moves is the transport's business; what a kernel costs is in kernels.hpp.
//
//   notify -> pack -> dispatch -> [forward ->] expand -> MLP -> merge -> [gather ->] combine -> sum
//
// Ranks wait for what they need and for nothing else; the one barrier is the notify step, within
// each EP group. Under the hierarchical policy a relay forwards a round once all of it has arrived,
// and sends a round's results home once all of them are together and summed. Kernels of one GPU
// that no dependency orders share its memory bandwidth and its multiprocessors.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/phase.hpp"
#include "sim/program/program.hpp"
#include "sim/transports/transport.hpp"
#include "workloads/model.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/plan/plan_file.hpp"

namespace coterie {

// What the GPUs compute besides moving rows.
struct LayerKernels {
  const ModelShape& model;
  PayloadType dispatch_payload = PayloadType::kBf16;
  std::optional<PayloadType> experts = {};  // what the experts multiply in; absent: as they get it
};

struct LayerSetup {
  // One plan per EP group, equal numbers of ranks; rank r of group g is GPU g * num_ranks + r.
  std::span<const LayerPlan> groups;
  PayloadSizes sizes;
  std::optional<LayerKernels> kernels;  // absent: communication alone
  TransportChoice transport;
  // When each rank reaches the layer, seconds, [num_groups * num_ranks]; empty: all at zero.
  std::vector<double> ready_s;
  // Layers that are added one by one (add_layer): seconds of each rank's expert MLP, [num_ranks],
  // instead of what `kernels` says of routed and shared experts; empty: as `kernels` says.
  std::span<const double> mlp_s{};
  bool notify = true;  // false: the counts are known, as in a backward pass
};

struct LayerProgram {
  Program program;
  std::vector<Phase> phase;             // [num_ops]
  std::vector<bool> between;            // [num_ops] passes before the phase begins
  std::vector<std::uint32_t> num_rows;  // [num_ops] rows that a transfer carries
};

// A program under construction to which layers are added between operations of others. The cluster
// must outlive it.
class LayerProgramBuilder {
 public:
  // Throws InputError for a transport that does not fit the cluster.
  LayerProgramBuilder(const Cluster& cluster, const TransportChoice& transport);

  // One layer of one EP group on the GPUs from `first_gpu` on. Rank r reaches it when `enter[r]`
  // fires; empty: at ready_s. Returns the events of the ranks' ends. `setup.groups` is not read.
  std::vector<std::uint32_t> add_layer(const LayerSetup& setup, const LayerPlan& plan,
                                       std::uint32_t first_gpu,
                                       const std::vector<std::uint32_t>& enter);

  ProgramBuilder& program() { return builder_; }
  GpuResources& gpus() { return gpus_; }
  Transport& transport() { return *transport_; }
  [[nodiscard]] const Cluster& cluster() const { return cluster_; }
  std::vector<std::uint32_t> events(std::size_t count);

  // What was added since the last call belongs to this phase.
  void label(Phase phase);
  // Time between two phases: it belongs to none of them.
  void label_between(Phase next);
  void label(Phase phase, std::optional<std::uint32_t> op, std::uint32_t num_rows);
  [[nodiscard]] std::span<const Phase> phases() const { return out_.phase; }  // labelled so far

  LayerProgram finish() &&;

 private:
  const Cluster& cluster_;
  ProgramBuilder builder_;
  std::unique_ptr<Transport> transport_;
  GpuResources gpus_;
  LayerProgram out_;
};

// Throws InputError where the groups do not fit on the cluster, or the transport not to it.
LayerProgram build_layer(const LayerSetup& setup, const Cluster& cluster);

// The communication of all layers of a plan, one after the other: a rank enters a layer when it
// has ended the one before. Throws InputError for layers of different numbers of ranks.
LayerProgram build_communication(const DispatchPlan& plan, const Cluster& cluster,
                                 const TransportChoice& transport);

// A raw traffic matrix: messages in the order of its entries, which are those of one phase in one
// direction where they start at the same time. Rank r is GPU r.
struct TrafficSetup {
  Direction direction = Direction::kDispatch;
  std::optional<double> row_bytes;  // for transports that count rows; absent: one row per message
  std::optional<std::uint32_t> tokens_per_rank;  // absent: see phase_volumes in kernel_phase.hpp
  TransportChoice transport;
};
LayerProgram build_traffic(const TrafficMatrix& traffic, const TrafficSetup& setup,
                           const Cluster& cluster);

// When the last operation of each rank ends, [num_ranks]; zero for ranks without any.
std::vector<double> rank_finish_s(const Program& program, const Execution& execution,
                                  std::uint32_t num_ranks);

}  // namespace coterie
