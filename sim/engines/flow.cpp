#include "sim/engines/flow.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <map>
#include <numeric>
#include <thread>

#include "core/error.hpp"
#include "sim/engines/engine.hpp"
#include "sim/engines/flow_components.hpp"
#include "sim/engines/flow_maxmin.hpp"
#include "sim/engines/flow_repair.hpp"
#include "sim/engines/flow_routes.hpp"
#include "sim/engines/flow_state.hpp"

namespace coterie {
namespace flow {
namespace {

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

// Runs one component from its first event to its last.
class ComponentRun {
 public:
  struct Observer {
    const std::function<void(const FlowSnapshot&)>& call;
    std::span<const std::uint32_t> ops;    // original numbers of the part's operations
    std::span<const std::uint32_t> links;  // and links
    std::vector<double>& limits;           // [original num_links]
  };
  ComponentRun(const Part& part, bool small, double precision, const Observer* observer)
      : part_(part),
        small_(small),
        observer_(observer),
        state_(part.capacity, part.max_hops),
        precision_(precision),
        change_scale_(precision / kFlowDefaultPrecision),
        pending_(part.event_count),
        queue_head_(part.queue_places.size(), kNone),
        queue_tail_(part.queue_places.size(), kNone),
        queue_used_(part.queue_places.size(), 0),
        next_op_(part.num_ops(), kNone) {
    const double busiest_link_s = part.busiest_link_s();
    same_time_ = kSameTime * busiest_link_s;
    quantum_ = precision * busiest_link_s;
    start_s.assign(part.num_ops(), 0.0);
    finish_s.assign(part.num_ops(), 0.0);
    if (exact()) state_.start_horizon(kNever);
  }

  std::vector<double> start_s;   // [num_ops]
  std::vector<double> finish_s;  // [num_ops]
  FlowStats stats;

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

  const Part& part_;
  bool small_;
  const Observer* observer_;  // may be null
  FlowState state_;
  MaxMinSolver solver_;
  LocalRepair repair_;
  double precision_;
  double same_time_ = 0.0;
  double quantum_ = 0.0;  // seconds between two solves
  double change_scale_;   // of the changes between two solves
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

  Waiters waiters_;
  std::vector<std::uint32_t> pending_;     // [num_events] operations that must still finish
  std::vector<std::uint32_t> queue_head_;  // [num_queues] first waiting operation or kNone
  std::vector<std::uint32_t> queue_tail_;
  std::vector<std::uint32_t> queue_used_;  // [num_queues] sends under way
  std::vector<std::uint32_t> next_op_;     // [num_ops] the next operation of the same queue
};

void ComponentRun::make_ready(std::uint32_t event) {
  for (const std::uint32_t op : waiters_.of(event)) ready_.push_back(op);
}

// Ready operations join their queues in order of their index; those without one start at once.
void ComponentRun::enqueue_ready() {
  std::sort(ready_.begin(), ready_.end());
  for (const std::uint32_t op : ready_) {
    if (part_.queue[op] == kNone) {
      start_s[op] = now_;
      state_.timers().set(state_.open_slot(op), now_ + part_.delay_s[op]);
      continue;
    }
    const std::uint32_t queue = part_.queue[op];
    next_op_[op] = kNone;
    if (queue_head_[queue] == kNone) {
      queue_head_[queue] = op;
    } else {
      next_op_[queue_tail_[queue]] = op;
    }
    queue_tail_[queue] = op;
  }
  for (const std::uint32_t op : ready_) {
    if (part_.queue[op] != kNone) launch_queue(part_.queue[op]);
  }
  ready_.clear();
}

void ComponentRun::launch_queue(std::uint32_t queue) {
  while (queue_head_[queue] != kNone && queue_used_[queue] < part_.queue_places[queue]) {
    const std::uint32_t op = queue_head_[queue];
    queue_head_[queue] = next_op_[op];
    ++queue_used_[queue];
    start_s[op] = now_;
    state_.timers().set(state_.open_slot(op), now_ + part_.delay_s[op]);
  }
}

void ComponentRun::touch(std::uint32_t link_id) {
  LinkState& link = state_.link(link_id);
  if (link.dirty == interval_) return;
  link.dirty = interval_;
  touched_.push_back(link_id);
}

void ComponentRun::touch_route(std::uint32_t op) {
  for (const std::uint32_t link : part_.route_of(op)) touch(link);
}

void ComponentRun::finish_slot(std::uint32_t slot) {
  finished_.push_back(state_.op(slot));
  state_.close_slot(slot);
}

// All events of this moment: silent transfers begin to flow, flows and computations finish.
void ComponentRun::take_events() {
  started_.clear();
  finished_.clear();
  ended_.clear();
  const double until = state_.next_event_s() + same_time_;
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
  EventHeap& finishes = state_.finishes();
  double last = 0.0;  // of these events, so that nothing finishes early
  while (!finishes.empty() && finishes.top_time() <= until) {
    now_ = last = finishes.top_time();
    const std::uint32_t slot = finishes.top_slot();
    finishes.pop();
    ended_.push_back(state_.op(slot));
    state_.detach(slot, now_);
    finish_slot(slot);
  }
  EventHeap& timers = state_.timers();
  while (!timers.empty() && timers.top_time() <= until) {
    now_ = timers.top_time();
    const std::uint32_t slot = timers.top_slot();
    timers.pop();
    const std::uint32_t op = state_.op(slot);
    if (part_.amount[op] > 0.0) {
      started_.push_back(slot);
    } else {
      finish_slot(slot);
    }
  }
  now_ = std::max(now_, last);
  ++stats.num_events;
  for (const std::uint32_t slot : started_) {
    const std::uint32_t op = state_.op(slot);
    state_.attach(slot, part_.route_of(op), part_.amount[op], part_.cap[op], now_);
  }
}

void ComponentRun::solve() {
  if (touched_.size() * kManyLinks > part_.capacity.size()) {
    solver_.solve_all(state_, now_, quantum_);
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
    state_.end_filing(touched_.empty(), quantum_);
  }
  ++stats.num_solves;
  stats.num_solved_flows += solver_.num_flows();
  observe(true);
}

// New rates after the events of this moment.
void ComponentRun::adjust_rates() {
  if (started_.empty() && ended_.empty()) return;
  for (const std::uint32_t op : ended_) touch_route(op);
  for (const std::uint32_t slot : started_) touch_route(state_.op(slot));
  num_changes_ += started_.size() + ended_.size();
  const auto num_active = static_cast<double>(state_.num_flowing());
  const double changes =
      static_cast<double>(num_changes_) * changes_per_solve(state_.num_flowing(), small_);
  if (exact() || (small_ && state_.num_flowing() <= kFewFlows) ||
      changes > change_scale_ * num_active) {
    solve();
    return;
  }
  slack_.clear();
  for (const std::uint32_t slot : started_) repair_.insert(state_, slot, now_, slack_);
  for (const std::uint32_t op : ended_) {
    for (const std::uint32_t link : part_.route_of(op)) repair_.raise(state_, link, now_);
  }
  for (const std::uint32_t link : slack_) {
    touch(link);
    repair_.raise(state_, link, now_);
  }
  observe(false);
}

void ComponentRun::run() {
  waiters_ = waiters_of(part_.waits_for, part_.event_count.size());
  for (std::uint32_t op = 0; op < part_.num_ops(); ++op) {
    if (part_.waits_for[op] == kStartEvent) ready_.push_back(op);
  }
  std::size_t num_unfinished = part_.num_ops();
  enqueue_ready();
  for (;;) {
    const double next = state_.next_event_s();
    if (next == kNever && state_.num_flowing() == 0) break;
    if (state_.num_flowing() > 0 && next > state_.horizon()) {
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
    if (next == kNever) throw std::logic_error("no flow has a rate after a solve");
    take_events();
    num_unfinished -= finished_.size();
    for (const std::uint32_t op : finished_) {
      finish_s[op] = now_;
      for (std::uint32_t i = part_.signal_begin[op]; i < part_.signal_begin[op + 1]; ++i) {
        const std::uint32_t event = part_.signals[i];
        if (--pending_[event] == 0) make_ready(event);
      }
    }
    for (const std::uint32_t op : finished_) {
      if (part_.queue[op] != kNone) --queue_used_[part_.queue[op]];
    }
    enqueue_ready();
    std::sort(finished_.begin(), finished_.end());
    for (const std::uint32_t op : finished_) {
      if (part_.queue[op] != kNone) launch_queue(part_.queue[op]);
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
  if (observer_ == nullptr) return;
  snapshot_.clear();
  for (std::uint32_t slot = 0; slot < state_.num_slots(); ++slot) {
    if (state_.flowing(slot)) {
      snapshot_.push_back({observer_->ops[state_.op(slot)], state_.rate(slot)});
    }
  }
  for (std::size_t link = 0; link < state_.links().size(); ++link) {
    observer_->limits[observer_->links[link]] = state_.links()[link].limit;
  }
  observer_->call({now_, solved, snapshot_, observer_->limits});
}

void check_inputs(const Program& program, const Routes& routes) {
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    const auto where = [&] {
      return program.is_transfer(op) ? fmt::format("transfer {} from GPU {} to GPU {}", op,
                                                   program.src[op], program.dst[op])
                                     : fmt::format("computation {} on GPU {}", op, program.src[op]);
    };
    if (!std::isfinite(program.amount[op]) || program.amount[op] < 0.0) {
      throw InputError(where(), fmt::format("an amount of {}", program.amount[op]),
                       "a finite amount of at least 0");
    }
    if (!std::isfinite(routes.delay_s[op]) || routes.delay_s[op] < 0.0) {
      throw InputError(where(), fmt::format("a silent time of {} s", routes.delay_s[op]),
                       "a finite time of at least 0");
    }
    if (!(routes.rate_cap[op] > 0.0)) {
      throw InputError(where(), fmt::format("a rate cap of {} per second", routes.rate_cap[op]),
                       "a rate above 0");
    }
    if (program.is_transfer(op) && routes.of(op).empty()) {
      throw InputError(where(), "no links", "a route");
    }
    for (const std::uint32_t link : routes.of(op)) {
      if (!(routes.capacity[link] > 0.0) || !std::isfinite(routes.capacity[link])) {
        throw InputError(where(),
                         fmt::format("link {} of {} B/s on its route", link, routes.capacity[link]),
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

// Components by what their renumbered parts hash to, in order of their first members.
std::vector<std::vector<std::uint32_t>> equal_candidates(
    const std::vector<std::vector<std::uint32_t>>& components, Renumbering& renumbering,
    const FlowOptions& options) {
  std::vector<std::uint64_t> hash(components.size());
  if (options.share_equal_components && components.size() > 1) {
    in_parallel(components.size(), options.num_threads,
                [&](std::size_t i) { hash[i] = renumbering.part(components[i]).hash(); });
  } else {
    std::iota(hash.begin(), hash.end(), 0U);
  }
  std::map<std::uint64_t, std::size_t> family_of;
  std::vector<std::vector<std::uint32_t>> families;
  for (std::uint32_t i = 0; i < components.size(); ++i) {
    const auto [place, is_new] = family_of.try_emplace(hash[i], families.size());
    if (is_new) families.emplace_back();
    families[place->second].push_back(i);
  }
  return families;
}

}  // namespace
}  // namespace flow

Execution simulate_flows(const Program& program, const Routes& all, const FlowOptions& options,
                         FlowStats* stats) {
  using namespace flow;
  if (!(options.relative_precision >= 0.0) || !std::isfinite(options.relative_precision)) {
    throw InputError("flow engine", fmt::format("a precision of {}", options.relative_precision),
                     "a number of at least 0");
  }
  check_inputs(program, all);
  const std::size_t num_ops = program.num_ops();
  Execution out;
  out.start_s.assign(num_ops, 0.0);
  out.finish_s.assign(num_ops, 0.0);

  const BindingRoutes routes = binding_routes(all);
  const std::vector<std::vector<std::uint32_t>> components =
      split_components(program, routes, all.capacity.size());
  Renumbering renumbering(program, all, routes);
  const bool small = num_ops <= options.small_program;
  const auto give = [&](const ComponentRun& run, std::size_t component) {
    const std::vector<std::uint32_t>& ops = components[component];
    for (std::size_t i = 0; i < ops.size(); ++i) {
      out.start_s[ops[i]] = run.start_s[i];
      out.finish_s[ops[i]] = run.finish_s[i];
    }
  };
  std::vector<FlowStats> component_stats(components.size());
  if (options.observer) {
    std::vector<double> limits(all.capacity);
    for (std::size_t i = 0; i < components.size(); ++i) {
      std::vector<std::uint32_t> links;
      const Part part = renumbering.part(components[i], &links);
      const ComponentRun::Observer observer{options.observer, components[i], links, limits};
      ComponentRun run(part, small, options.relative_precision, &observer);
      run.run();
      give(run, i);
      component_stats[i] = run.stats;
      for (const std::uint32_t link : links) limits[link] = all.capacity[link];
    }
  } else {
    const std::vector<std::vector<std::uint32_t>> families =
        equal_candidates(components, renumbering, options);
    in_parallel(families.size(), options.num_threads, [&](std::size_t i) {
      const std::uint32_t first = families[i].front();
      const Part part = renumbering.part(components[first]);
      ComponentRun run(part, small, options.relative_precision, nullptr);
      run.run();
      give(run, first);
      component_stats[first] = run.stats;
      for (const std::uint32_t other : std::span(families[i]).subspan(1)) {
        const Part other_part = renumbering.part(components[other]);
        if (other_part == part) {
          give(run, other);
          continue;
        }
        ComponentRun other_run(other_part, small, options.relative_precision, nullptr);
        other_run.run();
        give(other_run, other);
        component_stats[other] = other_run.stats;
      }
    });
  }

  for (const double finish : out.finish_s) out.makespan_s = std::max(out.makespan_s, finish);
  if (stats != nullptr) {
    *stats = {};
    stats->num_components = components.size();
    for (const FlowStats& part : component_stats) stats->num_runs += part.num_events > 0 ? 1 : 0;
    for (const FlowStats& part : component_stats) {
      stats->num_events += part.num_events;
      stats->num_solves += part.num_solves;
      stats->num_solved_flows += part.num_solved_flows;
    }
  }
  return out;
}

Execution run_flow(const ResolvedProgram& program, const EngineOptions& options) {
  FlowOptions flow_options;
  flow_options.relative_precision = options.relative_precision.value_or(kFlowDefaultPrecision);
  flow_options.num_threads = options.num_threads;
  return simulate_flows(program.program, program.routes, flow_options);
}

}  // namespace coterie
