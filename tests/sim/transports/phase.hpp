#pragma once
// Runs the messages of one phase through a transport and an engine, for known answers.

#include <vector>

#include "sim/engines/engine.hpp"
#include "sim/transports/transport.hpp"

namespace coterie::testing {

// One phase whose ranks are ready at the start; all messages may leave at once.
struct PhaseRun {
  Program program;
  Execution execution;
  std::vector<std::optional<std::uint32_t>> ops;  // what send() returned, per message

  [[nodiscard]] double finish_s(std::size_t message) const {
    return execution.finish_s[ops[message].value()];
  }
};

inline PhaseRun run_phase(const Cluster& cluster, const TransportChoice& choice,
                          const std::vector<Message>& messages,
                          Direction direction = Direction::kDispatch, bool continues = false) {
  const auto transport = make_transport(cluster, choice);
  PhaseRun run;
  ProgramBuilder builder;
  const std::vector<std::uint32_t> ready(cluster.num_gpus(), kStartEvent);
  const auto phase = transport->begin(builder, {direction, continues, messages, 0, ready});
  for (const Message& message : messages) {
    run.ops.push_back(phase->send(message, kStartEvent, {}));
  }
  run.program = std::move(builder).finish();
  const Network network(cluster);
  run.execution = run_flow(resolve(run.program, network), {.relative_precision = 0.0});
  return run;
}

}  // namespace coterie::testing
