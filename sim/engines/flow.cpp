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
#include "sim/engines/flow_bottlenecks.hpp"
#include "sim/engines/flow_components.hpp"
#include "sim/engines/flow_maxmin.hpp"
#include "sim/engines/flow_repair.hpp"
#include "sim/engines/flow_routes.hpp"
#include "sim/engines/flow_state.hpp"
#include "sim/engines/schedule.hpp"

namespace coterie {
namespace flow {
namespace {

// Times closer than this share of the busiest link's time are one event: equal sizes finish
// together although rounding parts them.
constexpr double kSameTime = 1e-12;
// Exact runs refuse times at which this share of the busiest link's time is lost to rounding.
constexpr double kStep = 1e-3;
// Coarse runs solve anew at the latest when one in so many of the active flows came or went, at the
// default precision. A solve costs time in proportion to the active flows, so that all solves
// together cost this many visits per transfer. Small programs can afford more of them where few flows
// are active, and need them, because each flow weighs more.
double changes_per_solve(std::size_t num_active, double exact_flows) {
  constexpr double kFewest = 16.0;
  constexpr double kMost = 128.0;
  constexpr double kVisitsBetweenChanges = 65536.0;
  return std::clamp(kVisitsBetweenChanges / static_cast<double>(num_active + 1), kFewest,
                    std::clamp(exact_flows / 4.0, kFewest, kMost));
}
// With more than 1/kManyLinks of the links changed, all are solved without asking what is
// connected.
constexpr std::size_t kManyLinks = 64;

// Why a component cannot end, in its own numbers.
struct Stuck {
  enum class Why : std::uint8_t { kStandsStill, kNeverHeld, kNeverReady, kTooLate };
  Why why = Why::kNeverReady;
  std::uint32_t op = 0;
  std::uint32_t capacity = 0;
  std::size_t num_ops = 0;
  double time_s = 0.0;
  double step_s = 0.0;
};

// Runs one component from its first event to its last. Throws Stuck.
class ComponentRun {
 public:
  struct Observer {
    const std::function<void(const FlowSnapshot&)>& call;
    std::span<const std::uint32_t> ops;    // original numbers of the part's operations
    std::span<const std::uint32_t> links;  // and links
    std::vector<double>& limits;           // [original num_links]
  };
  ComponentRun(const Part& part, double exact_flows, double precision, const Observer* observer)
      : part_(part),
        exact_flows_(exact_flows),
        observer_(observer),
        state_(part.capacity, part.max_hops),
        bottlenecks_(part.capacity, part.max_hops + (part.num_caps() > 0 ? 1 : 0), part.num_caps()),
        precision_(precision),
        exact_(precision == 0.0 || exact_flows >= 1.0),
        change_scale_(precision / kFlowDefaultPrecision),
        schedule_({part.delay_s, part.amount, part.queue, part.waits_for, part.signal_begin,
                   part.signals, part.event_count, part.queue_places, part.capacity, part.holds}) {
    const double busiest_link_s = part.busiest_link_s();
    same_time_ = kSameTime * busiest_link_s;
    quantum_ = precision * busiest_link_s;
    step_ = precision == 0.0 ? kStep * busiest_link_s : quantum_;
  }

  void run();
  [[nodiscard]] Schedule& schedule() { return schedule_; }
  FlowStats stats;

 private:
  [[nodiscard]] double next_change_s() const {
    return next_change_ < part_.changes.size() ? part_.changes[next_change_].time_s : kNever;
  }
  [[nodiscard]] double next_detour_s() const {
    return next_detour_ < part_.detours.size() ? part_.detours[next_detour_].time_s : kNever;
  }
  // As it is now.
  [[nodiscard]] std::span<const std::uint32_t> route_of(std::uint32_t op) const {
    if (detour_of_.empty() || detour_of_[op] == kNone) return part_.route_of(op);
    return part_.detours[detour_of_[op]].links;
  }
  void take_detours(double until);
  [[nodiscard]] double next_finish_s();
  [[nodiscard]] double next_event_s();
  std::uint32_t end_next();
  [[nodiscard]] bool flowing(std::uint32_t slot) const {
    return exact_ ? bottlenecks_.flowing(slot) : state_.flowing(slot);
  }
  [[nodiscard]] double rate(std::uint32_t slot) const {
    return exact_ ? bottlenecks_.rate(slot) : state_.rate(slot);
  }
  [[nodiscard]] double capacity(std::uint32_t link) const { return state_.links()[link].capacity; }
  void leave_exact();
  void enter_exact();
  void start_ready();
  void take_events();
  void set_capacity(std::uint32_t link, double capacity);
  void pass_horizon(double next);
  void check_time() const;
  void finish_slot(std::uint32_t slot);
  void adjust_rates();
  void touch(std::uint32_t link);
  void touch_route(std::uint32_t op);
  void solve();
  void observe(bool solved);
  [[nodiscard]] Stuck why_stuck();

  const Part& part_;
  double exact_flows_;        // see exact_flows in flow.hpp
  const Observer* observer_;  // may be null
  FlowState state_;
  BottleneckOrder bottlenecks_;  // has the flows while rates are exact; else state_ has them
  MaxMinSolver solver_;
  LocalRepair repair_;
  double precision_;
  bool exact_;
  double same_time_ = 0.0;
  double quantum_ = 0.0;  // seconds between two solves
  double step_ = 0.0;     // that times must tell apart
  double change_scale_;   // of the changes between two solves
  std::size_t num_changes_ = 0;
  double now_ = 0.0;
  std::uint32_t interval_ = 1;           // between solves, for LinkState::dirty
  std::vector<std::uint32_t> touched_;   // links whose flows changed since the last solve
  std::vector<std::uint32_t> finished_;  // operations, of this event
  std::vector<std::uint32_t> started_;   // slots whose bytes begin to flow at this event
  std::vector<std::uint32_t> ended_;     // operations whose bytes ended at this event
  std::vector<std::uint32_t> slack_;     // links on which flows made room
  std::vector<FlowRate> snapshot_;

  Schedule schedule_;
  std::size_t next_change_ = 0;           // of part_.changes
  std::size_t next_detour_ = 0;           // of part_.detours
  std::vector<std::uint32_t> detour_of_;  // [num_ops] the last one taken; empty: none ever
  bool must_solve_ = false;               // a capacity changed under a flow
};

// What may start now is silent first. Holds that began or ended change what flows share.
void ComponentRun::start_ready() {
  schedule_.settle(now_, [this](std::uint32_t op) {
    state_.timers().set(state_.open_slot(op), now_ + part_.delay_s[op]);
  });
  if (!schedule_.any_changed()) return;
  for (const std::uint32_t link : schedule_.take_changed()) {
    set_capacity(link, schedule_.left(link));
  }
}

void ComponentRun::set_capacity(std::uint32_t link, double capacity) {
  bottlenecks_.set_capacity(link, capacity);
  state_.set_capacity(link, capacity);
  if (exact_) {
    must_solve_ = true;
  } else if (!state_.link(link).entries.empty()) {
    touch(link);
    must_solve_ = true;
  }
}

void ComponentRun::touch(std::uint32_t link_id) {
  LinkState& link = state_.link(link_id);
  if (link.dirty == interval_) return;
  link.dirty = interval_;
  touched_.push_back(link_id);
}

void ComponentRun::touch_route(std::uint32_t op) {
  for (const std::uint32_t link : route_of(op)) touch(link);
}

void ComponentRun::finish_slot(std::uint32_t slot) {
  finished_.push_back(state_.op(slot));
  state_.close_slot(slot);
}

// All events of this moment: silent operations begin to flow, flows and those that do not flow
// finish, capacities change.
void ComponentRun::take_events() {
  started_.clear();
  finished_.clear();
  ended_.clear();
  const double until = next_event_s() + same_time_;
  if (!exact_) {
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
  double last = 0.0;  // of these events, so that nothing finishes early
  while (next_finish_s() <= until) {
    now_ = last = next_finish_s();
    const std::uint32_t slot = end_next();
    ended_.push_back(state_.op(slot));
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
  for (; next_change_s() <= until; ++next_change_) {
    now_ = std::max(now_, next_change_s());
    set_capacity(part_.changes[next_change_].link, part_.changes[next_change_].capacity);
  }
  if (next_detour_s() <= until) take_detours(until);
  ++stats.num_events;
  if (!started_.empty()) check_time();
  if (exact_ && precision_ > 0.0 &&
      static_cast<double>(bottlenecks_.num_flowing() + started_.size()) > 2.0 * exact_flows_) {
    leave_exact();
  }
  for (const std::uint32_t slot : started_) {
    const std::uint32_t op = state_.op(slot);
    if (exact_) {
      bottlenecks_.start(slot, route_of(op), part_.amount[op], part_.cap[op]);
    } else {
      state_.attach(slot, route_of(op), part_.amount[op], part_.cap[op], now_);
    }
  }
}

// Ends the flow that finishes next and returns its slot.
std::uint32_t ComponentRun::end_next() {
  if (exact_) return bottlenecks_.end_next();
  EventHeap& finishes = state_.finishes();
  const std::uint32_t slot = finishes.top_slot();
  finishes.pop();
  state_.detach(slot, now_);
  return slot;
}

double ComponentRun::next_finish_s() {
  if (exact_) return bottlenecks_.next_finish_s();
  return state_.finishes().empty() ? kNever : state_.finishes().top_time();
}

double ComponentRun::next_event_s() {
  const double timer = state_.timers().empty() ? kNever : state_.timers().top_time();
  return std::min({timer, next_finish_s(), next_change_s(), next_detour_s()});
}

// From here on rates are as exact as the precision asks for.
void ComponentRun::leave_exact() {
  exact_ = false;
  touched_.clear();
  ++interval_;
  state_.start_horizon(now_ + quantum_);
  must_solve_ = bottlenecks_.num_flowing() > 0;
  for (std::uint32_t slot = 0; slot < state_.num_slots(); ++slot) {
    if (!bottlenecks_.flowing(slot)) continue;
    const std::uint32_t op = state_.op(slot);
    const double left = bottlenecks_.left(slot, now_);
    bottlenecks_.remove(slot);
    state_.attach(slot, route_of(op), left, part_.cap[op], now_);
    touch_route(op);
  }
  bottlenecks_.forget_started();
}

// What is under way goes on over its new links with what is left of it; what begins later, or is
// silent, finds its route changed. Those under way are put there with exact rates, which the caller
// leaves where there are too many.
void ComponentRun::take_detours(double until) {
  if (detour_of_.empty()) detour_of_.assign(part_.num_ops(), kNone);
  const std::size_t first = next_detour_;
  for (; next_detour_s() <= until; ++next_detour_) {
    now_ = std::max(now_, next_detour_s());
    if (exact_) continue;
    detour_of_[part_.detours[next_detour_].op] = static_cast<std::uint32_t>(next_detour_);
  }
  must_solve_ = true;
  if (!exact_) {
    enter_exact();
    return;
  }
  std::vector<std::uint8_t> moves(part_.num_ops(), 0);
  for (std::size_t i = first; i < next_detour_; ++i) {
    detour_of_[part_.detours[i].op] = static_cast<std::uint32_t>(i);
    moves[part_.detours[i].op] = 1;
  }
  for (std::uint32_t slot = 0; slot < state_.num_slots(); ++slot) {
    if (!bottlenecks_.flowing(slot) || moves[state_.op(slot)] == 0) continue;
    const std::uint32_t op = state_.op(slot);
    const double left = bottlenecks_.left(slot, now_);
    bottlenecks_.remove(slot);
    bottlenecks_.start(slot, route_of(op), left, part_.cap[op]);
  }
}

// From here on rates are max-min fair at every event.
void ComponentRun::enter_exact() {
  exact_ = true;
  std::vector<std::pair<std::uint32_t, double>> flows;  // slot, what is left
  state_.detach_all(now_, [&](std::uint32_t slot, double left) { flows.emplace_back(slot, left); });
  state_.release_flows();
  for (const auto& [slot, left] : flows) {
    const std::uint32_t op = state_.op(slot);
    bottlenecks_.start(slot, route_of(op), left, part_.cap[op]);
  }
}

void ComponentRun::solve() {
  ++stats.num_solves;
  must_solve_ = false;
  if (exact_) {
    const std::uint64_t before = bottlenecks_.num_set_rates();
    bottlenecks_.update(now_);
    stats.num_solved_flows += bottlenecks_.num_set_rates() - before;
    observe(true);
    return;
  }
  if (touched_.size() * kManyLinks > part_.capacity.size()) {
    solver_.solve_all(state_, now_, quantum_);
  } else {
    solver_.solve(state_, touched_, now_, quantum_);
  }
  touched_.clear();
  num_changes_ = 0;
  ++interval_;
  for (const std::uint32_t link : solver_.links()) {
    if (state_.link(link).extra > 0.0) touch(link);  // the credit is spent at the next solve
  }
  state_.end_filing(touched_.empty(), quantum_);
  stats.num_solved_flows += solver_.num_flows();
  observe(true);
}

// New rates after the events of this moment.
void ComponentRun::adjust_rates() {
  if (started_.empty() && ended_.empty() && !must_solve_) return;
  if (!exact_ && static_cast<double>(state_.num_flowing()) <= exact_flows_) enter_exact();
  if (exact_) return solve();
  for (const std::uint32_t op : ended_) touch_route(op);
  for (const std::uint32_t slot : started_) touch_route(state_.op(slot));
  num_changes_ += started_.size() + ended_.size();
  const auto num_active = static_cast<double>(state_.num_flowing());
  const double changes =
      static_cast<double>(num_changes_) * changes_per_solve(state_.num_flowing(), exact_flows_);
  if (must_solve_ || changes > change_scale_ * num_active) {
    solve();
    return;
  }
  slack_.clear();
  repair_.begin(part_.capacity.size());
  for (const std::uint32_t slot : started_) repair_.insert(state_, slot, now_, slack_);
  for (const std::uint32_t op : ended_) {
    for (const std::uint32_t link : route_of(op)) repair_.raise(state_, link, now_);
  }
  for (const std::uint32_t link : slack_) {
    touch(link);
    repair_.raise(state_, link, now_);
  }
  observe(false);
}

// The horizon comes before the next event.
void ComponentRun::pass_horizon(double next) {
  now_ = state_.horizon();
  check_time();
  if (!touched_.empty()) {
    solve();
  } else if (!state_.set_horizon(now_ + quantum_, true, quantum_)) {
    if (next == kNever) throw why_stuck();
    state_.start_horizon(next);  // nothing moves before
  }
}

void ComponentRun::check_time() const {
  if (now_ + step_ > now_ && now_ + step_ < kNever) return;
  throw Stuck{.why = Stuck::Why::kTooLate, .time_s = now_, .step_s = step_};
}

void ComponentRun::run() {
  if (step_ > 0.0) check_time();
  start_ready();
  while (schedule_.num_unfinished() > 0) {
    const double next = next_event_s();
    if (state_.num_flowing() > 0 && next > state_.horizon()) {
      pass_horizon(next);
      continue;
    }
    if (next == kNever) throw why_stuck();
    take_events();
    for (const std::uint32_t op : finished_) schedule_.finish(op, now_);
    start_ready();
    adjust_rates();
  }
}

Stuck ComponentRun::why_stuck() {
  Stuck out{.op = kNone, .num_ops = schedule_.num_unfinished(), .time_s = now_};
  for (std::uint32_t slot = 0; slot < state_.num_slots(); ++slot) {
    if (!flowing(slot) || state_.op(slot) > out.op) continue;
    out.op = state_.op(slot);
    out.why = Stuck::Why::kTooLate;  // it moves, but never ends
    out.step_s = part_.amount[out.op] / rate(slot);
    for (const std::uint32_t link : route_of(out.op)) {
      if (capacity(link) > 0.0) continue;
      out.why = Stuck::Why::kStandsStill;
      out.capacity = link;
    }
  }
  if (out.op != kNone) return out;
  if (const auto waiting = schedule_.first_waiting()) {
    out.why = Stuck::Why::kNeverHeld;
    out.op = waiting->op;
    out.capacity = waiting->capacity;
  }
  return out;
}

void ComponentRun::observe(bool solved) {
  if (observer_ == nullptr) return;
  snapshot_.clear();
  for (std::uint32_t slot = 0; slot < state_.num_slots(); ++slot) {
    if (flowing(slot)) snapshot_.push_back({observer_->ops[state_.op(slot)], rate(slot)});
  }
  for (std::uint32_t link = 0; link < state_.links().size(); ++link) {
    observer_->limits[observer_->links[link]] =
        exact_ ? capacity(link) : state_.links()[link].limit;
  }
  observer_->call({now_, solved, snapshot_, observer_->limits});
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

// Runs a component; `ops` and `links` are the original numbers of its operations and links.
class Runner {
 public:
  Runner(const Program& program, const Routes& routes, const FlowOptions& options)
      : program_(program), routes_(routes), options_(options) {}

  FlowStats run(const Part& part, std::span<const std::uint32_t> ops,
                std::span<const std::uint32_t> links, const ComponentRun::Observer* observer,
                Execution& out) const {
    ComponentRun component(part, exact_flows(program_.num_ops(), options_.exact_visits),
                           options_.relative_precision, observer);
    try {
      component.run();
    } catch (const Stuck& stuck) {
      throw error(stuck, ops, links);
    }
    Schedule& schedule = component.schedule();
    if (ops.size() == program_.num_ops()) {  // all: they have their own numbers
      out.start_s = std::move(schedule.start_s);
      out.finish_s = std::move(schedule.finish_s);
      return component.stats;
    }
    for (std::size_t i = 0; i < ops.size(); ++i) {
      out.start_s[ops[i]] = schedule.start_s[i];
      out.finish_s[ops[i]] = schedule.finish_s[i];
    }
    return component.stats;
  }

 private:
  [[nodiscard]] InputError error(const Stuck& stuck, std::span<const std::uint32_t> ops,
                                 std::span<const std::uint32_t> links) const {
    switch (stuck.why) {
      case Stuck::Why::kStandsStill:
        return stands_still(program_, routes_, options_.links, ops[stuck.op],
                            links[stuck.capacity]);
      case Stuck::Why::kNeverHeld:
        return never_held(program_, ops[stuck.op],
                          links[stuck.capacity] - routes_.num_links(program_));
      case Stuck::Why::kTooLate:
        return InputError("flow engine",
                          fmt::format("steps of {:g} s at {:g} s", stuck.step_s, stuck.time_s),
                          "times that double precision tells apart");
      case Stuck::Why::kNeverReady:
        break;
    }
    return never_ready(stuck.num_ops);
  }

  const Program& program_;
  const Routes& routes_;
  const FlowOptions& options_;
};

}  // namespace

Execution simulate_checked(const Program& program, const Routes& all, const FlowOptions& options,
                           FlowStats* stats);

}  // namespace flow

double exact_flows(std::size_t num_ops, double exact_visits) {
  return exact_visits / static_cast<double>(std::max<std::size_t>(1, num_ops));
}

Execution simulate_flows(const Program& program, const Routes& routes, const FlowOptions& options,
                         FlowStats* stats) {
  check_numbers(program, routes, options.links);
  return flow::simulate_checked(program, routes, options, stats);
}

namespace flow {

Execution simulate_checked(const Program& program, const Routes& all, const FlowOptions& options,
                           FlowStats* stats) {
  if (!(options.relative_precision >= 0.0) || !std::isfinite(options.relative_precision)) {
    throw InputError("flow engine", fmt::format("a precision of {}", options.relative_precision),
                     "a number of at least 0");
  }
  const std::size_t num_ops = program.num_ops();
  Execution out;
  BindingRoutes routes = binding_routes(program, all);
  const std::vector<std::vector<std::uint32_t>> components = split_components(program, all, routes);
  if (components.size() != 1) {  // a single one brings its own
    out.start_s.assign(num_ops, 0.0);
    out.finish_s.assign(num_ops, 0.0);
  }
  Renumbering renumbering(program, all, routes);
  const Runner runner(program, all, options);
  std::vector<FlowStats> component_stats(components.size());
  if (options.observer) {
    std::vector<double> limits(all.capacity);
    for (std::size_t i = 0; i < components.size(); ++i) {
      std::vector<std::uint32_t> links;
      const Part part = renumbering.part(components[i], &links);
      const ComponentRun::Observer observer{options.observer, components[i], links, limits};
      component_stats[i] = runner.run(part, components[i], links, &observer, out);
      for (const std::uint32_t link : links) limits[link] = all.capacity[link];
    }
  } else {
    const std::vector<std::vector<std::uint32_t>> families =
        equal_candidates(components, renumbering, options);
    in_parallel(families.size(), options.num_threads, [&](std::size_t i) {
      const std::vector<std::uint32_t>& first = components[families[i].front()];
      std::vector<std::uint32_t> links;
      const Part part = renumbering.part(first, &links);
      if (components.size() == 1) routes = {};  // of a large program it is a tenth of the memory
      component_stats[families[i].front()] = runner.run(part, first, links, nullptr, out);
      for (const std::uint32_t other : std::span(families[i]).subspan(1)) {
        const std::vector<std::uint32_t>& ops = components[other];
        const Part other_part = renumbering.part(ops, &links);
        if (other_part != part) {
          component_stats[other] = runner.run(other_part, ops, links, nullptr, out);
          continue;
        }
        for (std::size_t op = 0; op < ops.size(); ++op) {
          out.start_s[ops[op]] = out.start_s[first[op]];
          out.finish_s[ops[op]] = out.finish_s[first[op]];
        }
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

}  // namespace flow

Execution run_flow(const ResolvedProgram& program, const EngineOptions& options) {
  FlowOptions flow_options;
  flow_options.relative_precision = options.relative_precision.value_or(kFlowDefaultPrecision);
  flow_options.num_threads = options.num_threads;
  flow_options.links = program.network.links();
  return flow::simulate_checked(program.program, program.routes, flow_options, nullptr);
}

}  // namespace coterie
