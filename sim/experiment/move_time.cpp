#include "sim/experiment/move_time.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "sim/engines/engine.hpp"
#include "sim/program/layer_program.hpp"

namespace coterie {
namespace {

void add_moves(ProgramBuilder& builder, const MoveCounts& moves, std::uint32_t num_ranks,
               double expert_bytes) {
  for (std::uint32_t src = 0; src < num_ranks; ++src) {
    for (std::uint32_t dst = 0; dst < num_ranks; ++dst) {
      const std::uint64_t experts = moves.pairs[std::size_t{src} * num_ranks + dst];
      if (experts == 0) continue;
      builder.add_transfer(src, dst, static_cast<double>(experts) * expert_bytes, kStartEvent, {});
    }
  }
}

struct Ends {
  double moves_s = 0.0;
  double steps_s = 0.0;
};

}  // namespace

double move_time_s(const Network& network, const MoveCounts& moves, std::uint32_t num_ranks,
                   double expert_bytes) {
  if (num_ranks > network.num_gpus()) {
    throw InputError(fmt::format("topology {}", network.cluster().name),
                     counted(network.num_gpus(), "GPU"),
                     fmt::format("at least {}, one per rank", num_ranks));
  }
  if (moves.total == 0) return 0.0;
  ProgramBuilder builder;
  add_moves(builder, moves, num_ranks, expert_bytes);
  const Program program = std::move(builder).finish();
  return run_engine("flow", resolve(program, network), {}).makespan_s;
}

MoveBesideSteps move_beside_steps(const LayerTimesSetup& setup, const Network& network,
                                  const Routing& step, const Placement& before,
                                  const MoveCounts& moves, double expert_bytes) {
  const RankTokens tokens = deal_tokens(step, setup.num_ranks, setup.tokens_per_rank, setup.deal);
  const PlanRequest request = plan_request(setup, before.replica_choice);
  std::vector<LayerPlan> plans;
  for (std::size_t i = 0; i < step.num_layers(); ++i) {
    plans.push_back(make_plan(step, i, before.layers.at(i), tokens, request));
  }
  const LayerSetup layer{{},
                         {row_payload(setup.dispatch_payload, setup.model.hidden),
                          row_payload(setup.combine_payload, setup.model.hidden)},
                         LayerKernels{setup.model, setup.dispatch_payload, setup.expert_type},
                         setup.transport,
                         {}};
  const auto run = [&](std::uint32_t num_steps, bool moving) {
    LayerProgramBuilder builder(setup.cluster, setup.transport);
    if (moving) add_moves(builder.program(), moves, setup.num_ranks, expert_bytes);
    const std::size_t num_moves = builder.program().num_ops();
    builder.label(Phase::kDispatch);
    std::vector<std::uint32_t> enter;
    for (std::uint32_t s = 0; s < num_steps; ++s) {
      for (const LayerPlan& plan : plans) enter = builder.add_layer(layer, plan, 0, enter);
    }
    const Program program = std::move(builder).finish().program;
    const Execution execution = run_flow(resolve(program, network), {});
    Ends ends;
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      double& end = op < num_moves ? ends.moves_s : ends.steps_s;
      end = std::max(end, execution.finish_s[op]);
    }
    return ends;
  };
  if (moves.total == 0) return {};
  const double alone_s = move_time_s(network, moves, setup.num_ranks, expert_bytes);
  const double one_step_s = run(1, false).steps_s;
  auto num_steps = static_cast<std::uint32_t>(
      std::clamp(1.5 * alone_s / one_step_s, 1.0, double{kMostStepsBeside}));
  for (;;) {
    const Ends ends = run(num_steps, true);
    if (ends.moves_s <= ends.steps_s || num_steps == kMostStepsBeside) {
      return {ends.moves_s, ends.steps_s - run(num_steps, false).steps_s};
    }
    num_steps = std::min(2 * num_steps, kMostStepsBeside);
  }
}

}  // namespace coterie
