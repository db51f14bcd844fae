#pragma once
// The program an engine executes: computations and transfers with their dependencies, as flat
// arrays. Built from dispatch plans (layer_program.hpp) or from raw traffic matrices, executed
// alike by every engine; an engine knows nothing of MoE.
//
// Semantics, the same for all engines:
//  - An operation becomes *ready* when its event has fired (events fire once all the operations
//  they
//    wait for have finished; event 0 has fired at the start).
//  - A computation starts when it is ready and takes `duration`.
//  - A ready transfer waits in the queue of its source rank and tier, in order of readiness, ties
//  by
//    operation index. At most `sends_in_flight` transfers of a queue are under way.
//  - Once it leaves the queue, a transfer is silent for its segment's alpha plus its route's
//  latency,
//    then its bytes flow over all links of its route at once, at its max-min fair share, never
//    above its segment's bandwidth. It leaves its place in the queue when the last byte arrives.
//  - A transfer of zero bytes takes its alpha and latency.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/ids.hpp"
#include "topologies/network.hpp"

namespace coterie {

struct Program {
  // Operations, [num_ops]. Computations have src == dst and duration; transfers have src != dst.
  std::vector<std::uint32_t> src;           // GPU
  std::vector<std::uint32_t> dst;           // GPU
  std::vector<double> bytes;                // transfers
  std::vector<double> duration;             // computations, seconds
  std::vector<std::uint32_t> waits_for;     // event that makes it ready
  std::vector<std::uint32_t> signal_begin;  // [num_ops + 1] events it counts down when it finishes
  std::vector<std::uint32_t> signals;

  // Events: number of operations that must finish before each fires. Event 0 has zero.
  std::vector<std::uint32_t> event_count;

  [[nodiscard]] std::size_t num_ops() const { return src.size(); }
  [[nodiscard]] bool is_transfer(std::size_t op) const { return src[op] != dst[op]; }
};

// When every operation started (left its queue) and finished, seconds.
struct Execution {
  std::vector<double> start_s;
  std::vector<double> finish_s;
  double makespan_s = 0.0;
};

inline constexpr std::uint32_t kStartEvent = 0;

// Builds programs; checks what an engine relies on.
class ProgramBuilder {
 public:
  ProgramBuilder();
  // An event that fires when all operations added with it as a signal have finished.
  std::uint32_t add_event();
  // Both return the operation's index. `signals` may be empty.
  std::uint32_t add_compute(std::uint32_t gpu, double duration_s, std::uint32_t waits_for,
                            std::span<const std::uint32_t> signals);
  std::uint32_t add_transfer(std::uint32_t src, std::uint32_t dst, double bytes,
                             std::uint32_t waits_for, std::span<const std::uint32_t> signals);
  void reserve(std::size_t num_ops, std::size_t num_signals);
  // Throws std::logic_error if an operation waits for an event that nothing signals.
  [[nodiscard]] Program finish() &&;

 private:
  Program program_;
};

// The engines. All are deterministic; `simgrid` runs in a child process of its own.
struct EngineOptions {
  // simgrid: completions closer than this share of the bound happen at once (0: as exact as
  // SimGrid's arithmetic allows). flow: width of a completion batch relative to the bound.
  double relative_precision = -1.0;  // negative: the engine's documented default
  unsigned num_threads = 1;
  double timeout_s = 0.0;  // simgrid: its process is stopped after this many seconds; 0: never
};
Execution run_bound(const Program& program, const Network& network);
Execution run_simgrid(const Program& program, const Network& network, const EngineOptions& options);
Execution run_flow(const Program& program, const Network& network, const EngineOptions& options);

// The lower bound on the makespan of any engine (sim/README.md derives it).
double lower_bound(const Program& program, const Network& network);

std::vector<std::string> engine_names();
Execution run_engine(std::string_view engine, const Program& program, const Network& network,
                     const EngineOptions& options);

}  // namespace coterie
