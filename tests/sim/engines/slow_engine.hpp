#pragma once
// A slow, obvious engine that executes programs as program.hpp says, one event after the other,
// with the textbook's max-min solver. Shares no code with the engines that it checks. Takes time in
// proportion to events times operations.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "sim/engines/resolved.hpp"
#include "sim/program/program.hpp"
#include "tests/sim/engines/flow_reference.hpp"

namespace coterie::testing {

class SlowEngine {
 public:
  SlowEngine(const Program& program, const Routes& routes)
      : program_(program),
        routes_(routes),
        num_links_(routes.capacity.size() - program.resources.size()),
        state_(program.num_ops(), State::kBlocked),
        until_(program.num_ops(), 0.0),
        remaining_(program.amount),
        pending_(program.event_count),
        queue_(program.queue_places.size()),
        used_(program.queue_places.size(), 0),
        active_(program.holds.size(), false),
        capacity_(routes.capacity) {
    out_.start_s.assign(program.num_ops(), -1.0);
    out_.finish_s.assign(program.num_ops(), -1.0);
  }

  // Throws std::runtime_error if the program cannot end.
  Execution run() {
    settle();
    while (std::any_of(state_.begin(), state_.end(), [](State s) { return s != State::kDone; })) {
      step();
    }
    for (const double finish : out_.finish_s) out_.makespan_s = std::max(out_.makespan_s, finish);
    return out_;
  }

 private:
  enum class State { kBlocked, kWaiting, kSilent, kFlowing, kDone };

  bool fired(std::uint32_t event) const { return pending_[event] == 0; }
  bool holds(std::uint32_t op) const {
    return std::any_of(program_.holds.begin(), program_.holds.end(),
                       [&](const Hold& hold) { return hold.begin_op == op; });
  }
  double left(std::uint32_t resource) const {
    double left = program_.resources[resource].capacity;
    for (std::size_t i = 0; i < program_.holds.size(); ++i) {
      if (active_[i] && program_.holds[i].resource == resource) left -= program_.holds[i].amount;
    }
    return left > 1e-9 * program_.resources[resource].capacity ? left : 0.0;
  }

  void finish(std::uint32_t op) {
    state_[op] = State::kDone;
    out_.finish_s[op] = now_;
    if (program_.queue[op] != kFreeQueue) --used_[program_.queue[op]];
    for (std::uint32_t i = program_.signal_begin[op]; i < program_.signal_begin[op + 1]; ++i) {
      --pending_[program_.signals[i]];
    }
    for (std::size_t i = 0; i < program_.holds.size(); ++i) {
      if (fired(program_.holds[i].end_event)) active_[i] = false;
    }
  }
  void speak(std::uint32_t op) {  // the silent time is over
    if (program_.flows(op)) {
      state_[op] = State::kFlowing;
    } else {
      finish(op);
    }
  }
  void begin(std::uint32_t op) {
    out_.start_s[op] = now_;
    for (std::size_t i = 0; i < program_.holds.size(); ++i) {
      const Hold& hold = program_.holds[i];
      if (hold.begin_op == op && !fired(hold.end_event)) active_[i] = true;
    }
    state_[op] = State::kSilent;
    until_[op] = now_ + routes_.delay_s[op];
    if (routes_.delay_s[op] == 0.0) speak(op);
  }

  bool share_a_resource(std::uint32_t a, std::uint32_t b) const {
    for (const Hold& x : program_.holds) {
      for (const Hold& y : program_.holds) {
        if (x.begin_op == a && y.begin_op == b && x.resource == y.resource) return true;
      }
    }
    return false;
  }
  bool fits(std::uint32_t op) const {
    for (std::uint32_t resource = 0; resource < program_.resources.size(); ++resource) {
      double wanted = 0.0;
      for (const Hold& hold : program_.holds) {
        if (hold.begin_op == op && hold.resource == resource) wanted += hold.amount;
      }
      if (wanted > left(resource) + 1e-9 * program_.resources[resource].capacity) return false;
    }
    return true;
  }

  // All that starts now, and what follows from it at once.
  void settle() {
    for (bool again = true; again;) {
      again = false;
      std::vector<std::uint32_t> joining;
      for (bool more = true; more;) {
        more = false;
        for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
          if (state_[op] != State::kBlocked || !fired(program_.waits_for[op])) continue;
          state_[op] = State::kWaiting;
          again = more = true;
          if (program_.queue[op] == kFreeQueue && !holds(op)) {
            begin(op);
          } else {
            joining.push_back(op);
          }
        }
      }
      std::sort(joining.begin(), joining.end());
      std::vector<std::uint32_t> asking;
      for (const std::uint32_t op : joining) {
        auto& place = program_.queue[op] == kFreeQueue ? asking : queue_[program_.queue[op]];
        place.push_back(op);
      }
      for (std::size_t queue = 1; queue < queue_.size(); ++queue) {
        while (!queue_[queue].empty() && used_[queue] < program_.queue_places[queue]) {
          const std::uint32_t op = queue_[queue].front();
          queue_[queue].erase(queue_[queue].begin());
          ++used_[queue];
          again = true;
          if (holds(op)) {
            asking.push_back(op);
          } else {
            begin(op);
          }
        }
      }
      std::sort(asking.begin(), asking.end());
      line_.insert(line_.end(), asking.begin(), asking.end());
      for (std::size_t i = 0; i < line_.size();) {
        const std::uint32_t op = line_[i];
        bool first = true;
        for (std::size_t j = 0; j < i; ++j) first = first && !share_a_resource(op, line_[j]);
        if (!first || !fits(op)) {
          ++i;
          continue;
        }
        line_.erase(line_.begin() + static_cast<std::ptrdiff_t>(i));
        begin(op);
        again = true;
        i = 0;
      }
    }
  }

  void step() {
    std::vector<std::uint32_t> ops;
    std::vector<SlowFlow> flows;
    for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
      if (state_[op] != State::kFlowing) continue;
      const auto route = routes_.of(op);
      ops.push_back(op);
      flows.push_back({{route.begin(), route.end()}, routes_.rate_cap[op]});
    }
    std::vector<double> capacity = capacity_;
    for (std::uint32_t resource = 0; resource < program_.resources.size(); ++resource) {
      capacity[num_links_ + resource] = left(resource);
    }
    const std::vector<double> rate = slow_max_min(flows, capacity);

    double next = std::numeric_limits<double>::infinity();
    if (change_ < program_.changes.size()) next = program_.changes[change_].time_s;
    for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
      if (state_[op] == State::kSilent) next = std::min(next, until_[op]);
    }
    std::vector<double> end(ops.size(), std::numeric_limits<double>::infinity());
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (rate[i] > 0.0) end[i] = now_ + remaining_[ops[i]] / rate[i];
      next = std::min(next, end[i]);
    }
    if (next == std::numeric_limits<double>::infinity()) throw std::runtime_error("stuck");

    for (std::size_t i = 0; i < ops.size(); ++i) remaining_[ops[i]] -= rate[i] * (next - now_);
    const double until = next * (1.0 + 1e-12);  // equal times but for rounding
    now_ = next;
    std::vector<std::uint32_t> silent;
    for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
      if (state_[op] == State::kSilent && until_[op] <= until) silent.push_back(op);
    }
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (end[i] <= until) finish(ops[i]);
    }
    for (const std::uint32_t op : silent) speak(op);
    for (; change_ < program_.changes.size() && program_.changes[change_].time_s <= until;
         ++change_) {
      capacity_[program_.changes[change_].link] = program_.changes[change_].capacity;
    }
    settle();
  }

  const Program& program_;
  const Routes& routes_;
  std::size_t num_links_;
  std::vector<State> state_;
  std::vector<double> until_, remaining_;
  std::vector<std::uint32_t> pending_;
  std::vector<std::vector<std::uint32_t>> queue_;  // who waits for a place, in order
  std::vector<std::uint32_t> used_;
  std::vector<std::uint32_t> line_;  // who waits for a hold, in order
  std::vector<bool> active_;         // holds
  std::vector<double> capacity_;     // without holds
  std::size_t change_ = 0;
  double now_ = 0.0;
  Execution out_;
};

}  // namespace coterie::testing
