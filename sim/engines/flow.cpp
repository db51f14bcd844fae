#include "sim/engines/flow.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <thread>

#include "core/error.hpp"
#include "sim/engines/flow_components.hpp"
#include "sim/engines/flow_maxmin.hpp"
#include "sim/engines/flow_repair.hpp"
#include "sim/engines/flow_routes.hpp"
#include "sim/engines/flow_state.hpp"

namespace coterie {
namespace flow {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// Times closer than this share of the busiest link's time are one event: equal sizes finish
// together although rounding parts them.
constexpr double kSameTime = 1e-12;
// At the default precision, rates are solved anew at the latest when one in `changes_per_solve` of
// the active flows came or went. A solve costs time in proportion to the active flows, so that all
// solves together cost this many visits per transfer. Small programs can afford more of them where
// few flows are active, and need them, because each flow weighs more.
double changes_per_solve(std::size_t num_active, bool small) {
  constexpr double kFewest = 16.0;
  constexpr double kMost = 128.0;
  constexpr double kVisitsBetweenChanges = 65536.0;
  if (!small) return kFewest;
  return std::clamp(kVisitsBetweenChanges / static_cast<double>(num_active + 1), kFewest, kMost);
}
// Small programs can afford a solve at every event while few flows are active. There one flow more
// or less decides who finishes first, and with it what a rank sends next.
constexpr std::size_t kFewFlows = 512;
// With more than 1/kManyLinks of the links changed, all are solved without asking what is
// connected.
constexpr std::size_t kManyLinks = 64;

// What all components share; each touches its own operations, links, queues and events only.
struct Shared {
  Shared(const Program& program_, const Transfers& transfers_, const FlowOptions& options_,
         Execution& out_)
      : program(program_), transfers(transfers_), options(options_), out(out_) {}

  const Program& program;
  const Transfers& transfers;
  const FlowOptions& options;
  Execution& out;
  Waiters waiters;
  BindingRoutes routes;
  std::vector<LinkState> links;
  std::vector<std::uint32_t> pending;     // [num_events] operations that must still finish
  std::vector<std::uint32_t> queue_head;  // [num_queues] first waiting operation or kNone
  std::vector<std::uint32_t> queue_tail;
  std::vector<std::uint32_t> queue_used;  // [num_queues] sends under way
  std::vector<std::uint32_t> queue;       // [num_ops] of transfers; kNone for computations
  std::vector<std::uint32_t> next_op;     // [num_ops] the next operation of the same queue
};

// Runs one component from its first event to its last.
class ComponentRun {
 public:
  ComponentRun(Shared& shared, const Component& component, FlowStats& stats)
      : shared_(shared),
        component_(component),
        stats_(stats),
        state_(shared.links, shared.routes.max_hops),
        precision_(shared.options.relative_precision),
        same_time_(kSameTime * component.busiest_link_s),
        quantum_(precision_ * component.busiest_link_s),
        change_scale_(precision_ / kFlowDefaultPrecision) {
    if (exact()) state_.start_horizon(kNever);
  }

  void run();

 private:
  [[nodiscard]] bool exact() const { return precision_ == 0.0; }
  void make_ready(std::uint32_t event);
  void enqueue_ready();
  void launch_queue(std::uint32_t queue);
  void take_events();
  void finish_slot(std::uint32_t slot);
  void adjust_rates();
  void touch(std::uint32_t link);
  void touch_route(std::uint32_t op);
  void solve();
  void observe(bool solved);

  Shared& shared_;
  const Component& component_;
  FlowStats& stats_;
  FlowState state_;
  MaxMinSolver solver_;
  LocalRepair repair_;
  double precision_;
  double same_time_;
  double quantum_;       // seconds between two solves
  double change_scale_;  // of the changes between two solves
  std::size_t num_changes_ = 0;
  double now_ = 0.0;
  std::uint32_t interval_ = 1;           // between solves, for LinkState::dirty
  std::vector<std::uint32_t> touched_;   // links whose flows changed since the last solve
  std::vector<std::uint32_t> ready_;     // operations whose event fired
  std::vector<std::uint32_t> finished_;  // operations, of this event
  std::vector<std::uint32_t> started_;   // slots whose bytes begin to flow at this event
  std::vector<std::uint32_t> ended_;     // operations whose bytes ended at this event
  std::vector<std::uint32_t> slack_;     // links on which flows made room
  std::vector<FlowRate> snapshot_;
  std::vector<double> limits_;
};

void ComponentRun::make_ready(std::uint32_t event) {
  for (const std::uint32_t op : shared_.waiters.of(event)) ready_.push_back(op);
}

// Ready operations join their queues in order of their index; computations start at once.
void ComponentRun::enqueue_ready() {
  std::sort(ready_.begin(), ready_.end());
  for (const std::uint32_t op : ready_) {
    if (shared_.queue[op] == kNone) {
      shared_.out.start_s[op] = now_;
      state_.heap().set(state_.open_slot(op), now_ + shared_.program.duration[op]);
      continue;
    }
    const std::uint32_t queue = shared_.queue[op];
    shared_.next_op[op] = kNone;
    if (shared_.queue_head[queue] == kNone) {
      shared_.queue_head[queue] = op;
    } else {
      shared_.next_op[shared_.queue_tail[queue]] = op;
    }
    shared_.queue_tail[queue] = op;
  }
  for (const std::uint32_t op : ready_) {
    if (shared_.queue[op] != kNone) launch_queue(shared_.queue[op]);
  }
  ready_.clear();
}

void ComponentRun::launch_queue(std::uint32_t queue) {
  while (shared_.queue_head[queue] != kNone &&
         shared_.queue_used[queue] < shared_.transfers.in_flight[queue]) {
    const std::uint32_t op = shared_.queue_head[queue];
    shared_.queue_head[queue] = shared_.next_op[op];
    ++shared_.queue_used[queue];
    shared_.out.start_s[op] = now_;
    state_.heap().set(state_.open_slot(op), now_ + shared_.transfers.delay_s[op]);
  }
}

void ComponentRun::touch(std::uint32_t link_id) {
  LinkState& link = state_.link(link_id);
  if (link.dirty == interval_) return;
  link.dirty = interval_;
  touched_.push_back(link_id);
}

void ComponentRun::touch_route(std::uint32_t op) {
  for (const std::uint32_t link : shared_.routes.of(op)) touch(link);
}

void ComponentRun::finish_slot(std::uint32_t slot) {
  finished_.push_back(state_.op(slot));
  state_.close_slot(slot);
}

// All events of this moment: silent transfers begin to flow, flows and computations finish.
void ComponentRun::take_events() {
  EventHeap& heap = state_.heap();
  started_.clear();
  finished_.clear();
  ended_.clear();
  const double until = heap.top_time() + same_time_;
  if (!exact()) {
    // The first change since the last solve sets the time of the next.
    const double next_solve = until + quantum_;
    if (state_.num_flowing() == 0) {
      touched_.clear();
      ++interval_;
      state_.start_horizon(next_solve);
    } else if (touched_.empty() && state_.horizon() > next_solve) {
      state_.start_horizon(next_solve);
    }
  }
  while (!heap.empty() && heap.top_time() <= until) {
    now_ = heap.top_time();  // the last of them, so that nothing finishes early
    const std::uint32_t slot = heap.top_slot();
    heap.pop();
    const std::uint32_t op = state_.op(slot);
    if (state_.flowing(slot)) {
      ended_.push_back(op);
      state_.detach(slot, now_);
      finish_slot(slot);
    } else if (shared_.queue[op] != kNone && shared_.program.bytes[op] > 0.0) {
      started_.push_back(slot);
    } else {
      finish_slot(slot);
    }
  }
  ++stats_.num_events;
  for (const std::uint32_t slot : started_) {
    const std::uint32_t op = state_.op(slot);
    state_.attach(slot, shared_.routes.of(op), shared_.program.bytes[op], shared_.routes.cap[op],
                  now_);
  }
}

void ComponentRun::solve() {
  if (touched_.size() * kManyLinks > component_.links.size()) {
    solver_.solve_all(state_, component_.links, now_, quantum_);
  } else {
    solver_.solve(state_, touched_, now_, quantum_);
  }
  touched_.clear();
  num_changes_ = 0;
  ++interval_;
  if (!exact()) {
    for (const std::uint32_t link : solver_.links()) {
      if (state_.link(link).extra > 0.0) touch(link);  // the credit is spent at the next solve
    }
    state_.set_horizon(now_ + quantum_, touched_.empty(), quantum_);
  }
  ++stats_.num_solves;
  stats_.num_solved_flows += solver_.num_flows();
  observe(true);
}

// New rates after the events of this moment.
void ComponentRun::adjust_rates() {
  if (started_.empty() && ended_.empty()) return;
  for (const std::uint32_t op : ended_) touch_route(op);
  for (const std::uint32_t slot : started_) touch_route(state_.op(slot));
  num_changes_ += started_.size() + ended_.size();
  const auto num_active = static_cast<double>(state_.num_flowing());
  const bool small = shared_.program.num_ops() <= shared_.options.small_program;
  const double changes =
      static_cast<double>(num_changes_) * changes_per_solve(state_.num_flowing(), small);
  if (exact() || (small && state_.num_flowing() <= kFewFlows) ||
      changes > change_scale_ * num_active) {
    solve();
    return;
  }
  slack_.clear();
  for (const std::uint32_t slot : started_) repair_.insert(state_, slot, now_, slack_);
  for (const std::uint32_t op : ended_) {
    for (const std::uint32_t link : shared_.routes.of(op)) repair_.raise(state_, link, now_);
  }
  for (const std::uint32_t link : slack_) {
    touch(link);
    repair_.raise(state_, link, now_);
  }
  observe(false);
}

void ComponentRun::run() {
  for (const std::uint32_t op : component_.ops) {
    if (shared_.program.waits_for[op] == kStartEvent) ready_.push_back(op);
  }
  std::size_t num_unfinished = component_.ops.size();
  enqueue_ready();
  EventHeap& heap = state_.heap();
  while (!heap.empty() || state_.num_flowing() > 0) {
    if (state_.num_flowing() > 0 && (heap.empty() || heap.top_time() > state_.horizon())) {
      now_ = state_.horizon();
      if (touched_.empty()) {
        if (!state_.set_horizon(now_ + quantum_, true, quantum_)) {
          throw std::logic_error("no flow has a rate after a solve");
        }
      } else {
        solve();
      }
      continue;
    }
    if (heap.top_time() == kNever) throw std::logic_error("no flow has a rate after a solve");
    take_events();
    num_unfinished -= finished_.size();
    for (const std::uint32_t op : finished_) {
      shared_.out.finish_s[op] = now_;
      for (std::uint32_t i = shared_.program.signal_begin[op];
           i < shared_.program.signal_begin[op + 1]; ++i) {
        const std::uint32_t event = shared_.program.signals[i];
        if (--shared_.pending[event] == 0) make_ready(event);
      }
    }
    for (const std::uint32_t op : finished_) {
      if (shared_.queue[op] != kNone) --shared_.queue_used[shared_.queue[op]];
    }
    enqueue_ready();
    std::sort(finished_.begin(), finished_.end());
    for (const std::uint32_t op : finished_) {
      if (shared_.queue[op] != kNone) launch_queue(shared_.queue[op]);
    }
    adjust_rates();
  }
  if (num_unfinished > 0) {
    throw InputError(fmt::format(
        "program: found {} operations that never become ready, expected events that do not wait "
        "for each other in a circle",
        num_unfinished));
  }
}

void ComponentRun::observe(bool solved) {
  if (!shared_.options.observer) return;
  snapshot_.clear();
  for (std::uint32_t slot = 0; slot < state_.num_slots(); ++slot) {
    if (state_.flowing(slot)) snapshot_.push_back({state_.op(slot), state_.rate(slot)});
  }
  limits_.clear();
  for (const LinkState& link : shared_.links) limits_.push_back(link.limit);
  shared_.options.observer({now_, solved, snapshot_, limits_});
}

void check_inputs(const Program& program, const Transfers& transfers,
                  std::span<const double> capacity) {
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.is_transfer(op)) {
      if (!std::isfinite(program.duration[op]) || program.duration[op] < 0.0) {
        throw InputError(fmt::format("computation {} on GPU {}", op, program.src[op]),
                         fmt::format("a duration of {} s", program.duration[op]),
                         "a finite time of at least 0");
      }
      continue;
    }
    const auto where = [&] {
      return fmt::format("transfer {} from GPU {} to GPU {}", op, program.src[op], program.dst[op]);
    };
    if (!std::isfinite(program.bytes[op]) || program.bytes[op] < 0.0) {
      throw InputError(where(), fmt::format("{} bytes", program.bytes[op]), "a finite size");
    }
    if (!std::isfinite(transfers.delay_s[op]) || transfers.delay_s[op] < 0.0) {
      throw InputError(where(), fmt::format("a latency of {} s", transfers.delay_s[op]),
                       "a finite time of at least 0");
    }
    if (transfers.route(op).empty()) throw InputError(where(), "no links", "a route");
    if (!(transfers.rate_cap[op] > 0.0)) {
      throw InputError(where(), fmt::format("a message segment of {} B/s", transfers.rate_cap[op]),
                       "a bandwidth above 0");
    }
    for (const std::uint32_t link : transfers.route(op)) {
      if (!(capacity[link] > 0.0) || !std::isfinite(capacity[link])) {
        throw InputError(where(),
                         fmt::format("link {} of {} B/s on its route", link, capacity[link]),
                         "a finite bandwidth above 0");
      }
    }
  }
}

// Calls `work(i)` for i < count from `num_threads` threads; rethrows the first failure by index.
template <class Work>
void in_parallel(std::size_t count, unsigned num_threads, const Work& work) {
  std::atomic<std::size_t> next{0};
  std::vector<std::exception_ptr> failures(count);
  const auto loop = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        failures[i] = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> threads;
  const std::size_t wanted = std::min<std::size_t>(std::max(1U, num_threads), count);
  for (std::size_t i = 1; i < wanted; ++i) threads.emplace_back(loop);
  loop();
  threads.clear();  // joins
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace
}  // namespace flow

Execution simulate_flows(const Program& program, const Transfers& transfers,
                         std::span<const double> capacity, const FlowOptions& options,
                         FlowStats* stats) {
  using namespace flow;
  if (!(options.relative_precision >= 0.0) || !std::isfinite(options.relative_precision)) {
    throw InputError("flow engine", fmt::format("a precision of {}", options.relative_precision),
                     "a number of at least 0");
  }
  check_inputs(program, transfers, capacity);
  const std::size_t num_ops = program.num_ops();
  Execution out;
  out.start_s.assign(num_ops, 0.0);
  out.finish_s.assign(num_ops, 0.0);

  Shared shared(program, transfers, options, out);
  shared.waiters = waiters_of(program);
  shared.routes = binding_routes(program, transfers, capacity);
  shared.links.resize(capacity.size());
  for (std::size_t link = 0; link < capacity.size(); ++link) {
    LinkState& state = shared.links[link];
    state.capacity = state.residual = state.limit = capacity[link];
  }
  shared.pending = program.event_count;
  shared.queue_head.assign(transfers.num_queues(), kNone);
  shared.queue_tail.assign(transfers.num_queues(), kNone);
  shared.queue_used.assign(transfers.num_queues(), 0);
  shared.next_op.assign(num_ops, kNone);
  shared.queue.resize(num_ops);
  for (std::size_t op = 0; op < num_ops; ++op) {
    shared.queue[op] = program.is_transfer(op) ? transfers.queue[op] : kNone;
  }

  const std::vector<Component> components =
      split_components(program, transfers, shared.routes, capacity);
  std::vector<FlowStats> component_stats(components.size());
  in_parallel(components.size(), options.observer ? 1 : options.num_threads, [&](std::size_t i) {
    ComponentRun(shared, components[i], component_stats[i]).run();
  });

  for (const double finish : out.finish_s) out.makespan_s = std::max(out.makespan_s, finish);
  if (stats != nullptr) {
    *stats = {};
    stats->num_components = components.size();
    for (const FlowStats& part : component_stats) {
      stats->num_events += part.num_events;
      stats->num_solves += part.num_solves;
      stats->num_solved_flows += part.num_solved_flows;
    }
  }
  return out;
}

Execution run_flow(const Program& program, const Network& network, const EngineOptions& options) {
  std::vector<double> capacity;
  capacity.reserve(network.links().size());
  for (const Link& link : network.links()) capacity.push_back(link.bandwidth.value);
  FlowOptions flow_options;
  if (options.relative_precision >= 0.0) {
    flow_options.relative_precision = options.relative_precision;
  }
  flow_options.num_threads = options.num_threads;
  return simulate_flows(program, resolve_transfers(program, network), capacity, flow_options);
}

}  // namespace coterie
