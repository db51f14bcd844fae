#pragma once
// Transports: how a library moves a plan's rows over the hardware. A transport turns the messages
// of a phase into operations of a program; the engines know nothing of it. One file each
// (README.md has the recipe).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "core/phase.hpp"
#include "sim/program/kernels.hpp"
#include "sim/program/program.hpp"
#include "topologies/cluster.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

// One message: rows from one GPU to another, or rows that stay on their GPU (src == dst), which
// cross no link but may cost memory traffic and multiprocessors.
struct Message {
  std::uint32_t src = 0, dst = 0;  // GPUs
  double bytes = 0.0;
  std::uint32_t num_rows = 0;
  std::uint32_t num_copies = 0;  // (token, expert) pairs that the rows serve; 0: one per row
};

// What a transport is told before it sends: all messages of one phase of one EP group.
struct PhaseTraffic {
  Direction direction = Direction::kDispatch;
  // Whether the kernel that sends runs already (the second hop of a hierarchical dispatch, the
  // second of its combine): a start is paid once each way.
  bool continues = false;
  std::span<const Message> messages;
  std::uint32_t first_gpu = 0;
  // [num_ranks] the event from which on each rank of the group may send; rank r is GPU
  // first_gpu + r.
  std::span<const std::uint32_t> ready;
  // [num_ranks] tokens of each rank, whose rows (or results) these are; empty: not known.
  std::span<const std::uint32_t> num_tokens{};
  // Of kernels that read their rows from items (those tokens, or rows that a first hop brought): the
  // bytes that each rank moves per item besides the rows, and whether it quantises them. Absent: a row's.
  std::optional<double> item_bytes{};
  bool quantises = false;
  HopKind hop = HopKind::kGroup;  // which ranks take part with each other
  bool announced = false;         // an earlier phase has said that all its results stand
};

// One phase of one EP group under construction.
class PhaseTransport {
 public:
  PhaseTransport() = default;
  virtual ~PhaseTransport() = default;
  PhaseTransport(const PhaseTransport&) = delete;
  PhaseTransport& operator=(const PhaseTransport&) = delete;

  // Adds the operations of one message. It leaves when its rank's phase has started and `after` has
  // fired (kStartEvent: nothing more to wait for), and all `signals` are counted down when it has
  // arrived. Returns the operation that crosses the links; nothing for a message that stays and
  // costs nothing, whose signals are then not counted.
  virtual std::optional<std::uint32_t> send(const Message& message, std::uint32_t after,
                                            std::span<const std::uint32_t> signals) = 0;
};

// Parameters of one transport on one machine, and what an experiment overrides of them.
class Transport {
 public:
  Transport() = default;
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  // All phases of a program are begun with one object and one builder: what outlives a phase (the
  // queues of a GPU's sends, its kernels) is shared by them. The builder must outlive what is
  // returned. Operations that belong to the phase as a whole (a start cost, a kernel's hold) are
  // added here.
  virtual std::unique_ptr<PhaseTransport> begin(ProgramBuilder& builder, GpuResources& gpus,
                                                const PhaseTraffic& traffic) = 0;
  // Whether its kernels take the rows from where the tokens are and add up what comes back, so that
  // nothing is packed before a dispatch and nothing summed after a combine.
  [[nodiscard]] virtual bool moves_tokens() const { return false; }
  // Whether the runtime's other kernels (RowKernels) run beside it, and phases as the runtime times
  // them; of transports that move tokens only the runtime's own.
  [[nodiscard]] virtual bool runs_with_row_kernels() const { return !moves_tokens(); }
  // The exchange of counts before a dispatch; absent: what the cluster's overheads say.
  [[nodiscard]] virtual std::optional<Seconds> notify() const { return std::nullopt; }
};

// The parameters come from the cluster's `transports` block (chosen_transport in
// topologies/transports.hpp). Throws InputError for a name that no transport has, for one whose
// parameters the cluster lacks, and for settings that do not fit. The cluster must outlive what is
// returned.
std::unique_ptr<Transport> make_transport(const Cluster& cluster, const TransportChoice& choice);

}  // namespace coterie
