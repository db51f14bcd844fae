// The runtime's dry execution against the simulator's program of the same plan: the same messages
// per rank, in the same order, of the same size, after the same arrivals.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <thread>
#include <tuple>

#include "runtime/control/channel.hpp"
#include "runtime/executor/executor.hpp"
#include "sim/program/layer_program.hpp"
#include "tests/runtime/fixture.hpp"
#include "workloads/plan/schedule.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kRanks = kSmallRanks;
constexpr std::uint32_t kHidden = 64;

// A message as both sides can name it; rows that stay on their rank are left out.
struct Sent {
  Direction direction;
  std::size_t stage;
  std::uint32_t round, src, dst, num_rows;
  std::int64_t num_bytes;
  friend auto operator<=>(const Sent&, const Sent&) = default;
};
void PrintTo(const Sent& sent, std::ostream* out) {
  *out << fmt::format("{} stage {} round {}: {} -> {}, {} rows, {} B",
                      sent.direction == Direction::kDispatch ? "dispatch" : "combine", sent.stage,
                      sent.round, sent.src, sent.dst, sent.num_rows, sent.num_bytes);
}
struct SentAfter {
  Sent sent;
  std::set<Sent> after;  // what had to arrive at the sender
};
// By rank, direction and stage, in the order of sending.
using Trace = std::map<std::tuple<std::uint32_t, Direction, std::size_t>, std::vector<SentAfter>>;

// ------------------------------------------------------------ the runtime

std::vector<ExecutionLog> dry_run(const LayerPlan& plan) {
  Descriptor listener = listen_on("127.0.0.1", 0);
  const std::uint16_t port = bound_port(listener);
  std::vector<ExecutionLog> logs(kRanks);
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
    RankEnvironment environment{"test", rank, kRanks, rank, kRanks, "127.0.0.1", port, "job", {}};
    if (rank == 0) environment.listen_fd = listener.release();
    threads.emplace_back([&logs, &plan, environment] {
      ControlGroup group(environment, GroupOptions{});
      run_in_group(group, [&] {
        const auto executor = make_dry_executor(group, &logs[environment.rank]);
        const std::vector<LayerPlan> plans{plan};
        LayerShape shape;
        shape.mlp = {kHidden, 16};
        executor->load(make_run_layers(shape, plans, environment.rank));
        executor->iterate(Iteration::kVerification, 0);
        executor->finish();
        group.finish();
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return logs;
}

Trace runtime_trace(const LayerPlan& plan) {
  const std::vector<ExecutionLog> logs = dry_run(plan);
  std::map<std::tuple<Direction, std::size_t, std::uint32_t, std::uint32_t>, std::set<Sent>> to;
  const auto name = [](const ExecutedMessage& m) {
    return Sent{m.step.direction,
                m.step.stage,
                m.step.round,
                m.src,
                m.dst,
                m.num_rows,
                static_cast<std::int64_t>(m.num_bytes)};
  };
  for (const ExecutionLog& log : logs) {
    for (const ExecutedMessage& m : log) {
      to[{m.step.direction, m.step.stage, m.step.round, m.dst}].insert(name(m));
    }
  }
  // What has to be at a rank before it may carry out a step: the messages of the exchanges that the
  // step comes after, and what the rank's own part of those exchanges had to wait for.
  const auto needs = [&](const auto& self, const std::vector<Step>& after,
                         std::uint32_t rank) -> std::set<Sent> {
    std::set<Sent> all;
    for (const Step& step : after) {
      const auto here = to.find({step.direction, step.stage, step.round, rank});
      if (here != to.end()) all.insert(here->second.begin(), here->second.end());
      all.merge(self(self, prerequisites(plan, step), rank));
    }
    return all;
  };
  Trace trace;
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
    for (const ExecutedMessage& m : logs[rank]) {
      EXPECT_EQ(m.src, rank);
      trace[{rank, m.step.direction, m.step.stage}].push_back(
          {name(m), needs(needs, m.after, rank)});
    }
  }
  return trace;
}

// ------------------------------------------------------------ the simulator

Trace simulator_trace(const LayerPlan& plan) {
  const PayloadSizes sizes{row_payload(PayloadType::kBf16, kHidden),
                           row_payload(PayloadType::kBf16, kHidden)};
  const LayerSetup setup{{&plan, 1}, sizes, std::nullopt, {"ideal", {}}, {}};
  const Cluster cluster = load_cluster(
      "{extends: star, gpus_per_node: 4, scale_up: {kind: nvlink, bandwidth: 100 GB/s, latency: 1 "
      "us}}",
      {}, kRanks);
  const LayerProgram layer = build_layer(setup, cluster);
  const Program& program = layer.program;

  // The plan's messages that cross a link, by phase, in the order of the program's transfers.
  std::map<std::uint32_t, Sent> sent_of;  // by operation
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
      std::uint32_t op = 0;
      for (const PlanMessage& m : stage_messages(plan.stages[s], direction)) {
        if (m.src == m.dst) continue;
        const Phase phase = phase_of(plan.stages[s], direction);
        while (op < program.num_ops() && !(program.is_transfer(op) && layer.phase[op] == phase)) {
          ++op;
        }
        if (op == program.num_ops()) {
          ADD_FAILURE() << "a message without an operation";
          return {};
        }
        EXPECT_EQ(program.src[op], m.src);
        EXPECT_EQ(program.dst[op], m.dst);
        EXPECT_EQ(layer.num_rows[op], m.num_rows);
        sent_of[op] = {direction,
                       s,
                       m.round,
                       m.src,
                       m.dst,
                       m.num_rows,
                       static_cast<std::int64_t>(program.amount[op])};
        ++op;
      }
    }
  }
  std::vector<std::vector<std::uint32_t>> signallers(program.event_count.size());
  std::uint32_t num_transfers = 0;
  for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
    num_transfers += program.is_transfer(op) ? 1 : 0;
    for (std::uint32_t i = program.signal_begin[op]; i < program.signal_begin[op + 1]; ++i) {
      signallers[program.signals[i]].push_back(op);
    }
  }
  EXPECT_EQ(num_transfers, sent_of.size());

  // The transfers that an operation waits for, directly or through kernels of its GPU.
  const auto arrivals = [&](std::uint32_t op) {
    std::set<Sent> all;
    std::set<std::uint32_t> seen;
    std::vector<std::uint32_t> events{program.waits_for[op]};
    while (!events.empty()) {
      const std::uint32_t event = events.back();
      events.pop_back();
      if (!seen.insert(event).second) continue;
      for (const std::uint32_t before : signallers[event]) {
        if (program.is_transfer(before)) {
          EXPECT_EQ(program.dst[before], program.src[op]);
          all.insert(sent_of.at(before));
        } else {
          EXPECT_EQ(program.src[before], program.src[op]);
          events.push_back(program.waits_for[before]);
        }
      }
    }
    return all;
  };
  Trace trace;
  for (const auto& [op, sent] : sent_of) {
    trace[{sent.src, sent.direction, sent.stage}].push_back({sent, arrivals(op)});
  }
  return trace;
}

class Schedules : public testing::TestWithParam<DispatchPolicy> {};

TEST_P(Schedules, TheRuntimeDoesWhatTheSimulatorSays) {
  const LayerPlan plan = small_plan(GetParam(), "collaboration");
  if (GetParam() == DispatchPolicy::kHierarchical) {
    ASSERT_GT(plan.num_rounds, 2U);
  }
  const Trace executed = runtime_trace(plan);
  const Trace simulated = simulator_trace(plan);
  ASSERT_EQ(executed.size(), simulated.size());
  std::size_t num_waits = 0;
  for (const auto& [key, messages] : simulated) {
    const auto found = executed.find(key);
    ASSERT_NE(found, executed.end());
    ASSERT_EQ(found->second.size(), messages.size());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      EXPECT_EQ(found->second[i].sent, messages[i].sent);
      EXPECT_EQ(found->second[i].after, messages[i].after)
          << testing::PrintToString(messages[i].sent);
      num_waits += messages[i].after.size();
    }
  }
  EXPECT_GT(num_waits, 0U);
}

INSTANTIATE_TEST_SUITE_P(Policies, Schedules,
                         testing::Values(DispatchPolicy::kStandard, DispatchPolicy::kDedup,
                                         DispatchPolicy::kHierarchical),
                         [](const auto& instance) { return to_string(instance.param); });

}  // namespace
}  // namespace coterie
