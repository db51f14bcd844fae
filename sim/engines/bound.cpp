// Lower bounds on what any engine can predict, in closed form.
//
// Notation: an operation i has a release r_i (the earliest time its amount can flow), a processing
// time and a tail q_i (the least time from its finish to the end of the program). Releases are a
// longest path forwards over the dependencies, tails one backwards; an operation alone takes its
// silent time plus amount / (narrowest capacity or rate cap). Where a capacity changes during the
// run, C below is the largest value that it ever has.
//
// Four facts make these tight where something is shared. For any set S of operations:
//  (1) over one link or resource of capacity C: the last of S has passed no earlier than
//        min r_i + sum amount_i / C,
//      since nothing of S passes before min r_i and at most C passes per second, however it is
//      shared; the program then ends no earlier than that plus min q_i.
//  (2) over one queue of w places: an operation keeps its place for at least the time it takes
//      alone, so S needs at least (sum of those) / w after the earliest start, and min q_i on top.
//  (3) an event that waits for all of S fires no earlier than (1) and (2) say without the q_i; and
//      from an event that S waits for, the end is at least (sum amount_i / C) + min q_i away.
//  (4) a hold of h of a resource keeps h * d from everybody else, d being the least time from the
//      start of the operation that begins it to the event that ends it. It counts in (1) as an
//      amount of h * d, released when that operation can start, with the tail of that event.
// The largest value of (1) over all subsets S of a link's users is the makespan of Jackson's
// preemptive schedule (always serve the available transfer with the longest tail; Carlier 1982),
// which takes O(n log n). For (2) the subsets {i : r_i >= r} are enough to be useful.

#include <algorithm>
#include <limits>
#include <queue>
#include <stdexcept>
#include <utility>

#include "sim/engines/engine.hpp"

namespace coterie {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// An operation as one link, resource or queue sees it, seconds.
struct Job {
  double release;
  double length;
  double tail;
};

// max over all subsets S of (min release + sum length + min tail): Jackson's preemptive schedule.
double one_machine_bound(std::vector<Job>& jobs) {
  std::sort(jobs.begin(), jobs.end(),
            [](const Job& a, const Job& b) { return a.release < b.release; });
  std::priority_queue<std::pair<double, double>> available;  // tail, length left
  double now = 0.0;
  double bound = 0.0;
  std::size_t next = 0;
  while (next < jobs.size() || !available.empty()) {
    if (available.empty()) now = std::max(now, jobs[next].release);
    while (next < jobs.size() && jobs[next].release <= now) {
      available.emplace(jobs[next].tail, jobs[next].length);
      ++next;
    }
    const auto [tail, left] = available.top();
    available.pop();
    const double until = next < jobs.size() ? jobs[next].release : kInfinity;
    if (now + left <= until) {
      now += left;
      bound = std::max(bound, now + tail);
    } else {
      available.emplace(tail, left - (until - now));
      now = until;
    }
  }
  return bound;
}

// max over release thresholds of (threshold + sum length / places + min tail).
double queue_bound(std::vector<Job>& jobs, double places) {
  std::sort(jobs.begin(), jobs.end(),
            [](const Job& a, const Job& b) { return a.release > b.release; });
  double bound = 0.0;
  double sum = 0.0;
  double tail = kInfinity;
  for (const Job& job : jobs) {
    sum += job.length;
    tail = std::min(tail, job.tail);
    bound = std::max(bound, job.release + sum / places + tail);
  }
  return bound;
}

// Sums over the members of a group (links, queues) that is small beside all there are.
class Sums {
 public:
  explicit Sums(std::size_t size) : sum_(size, 0.0), least_(size, kInfinity) {}
  void add(std::uint32_t key, double amount, double value) {
    if (least_[key] == kInfinity) keys_.push_back(key);
    sum_[key] += amount;
    least_[key] = std::min(least_[key], value);
  }
  // Calls f(key, sum of amounts, least value) for every key and forgets them.
  template <class F>
  void drain(F f) {
    for (const std::uint32_t key : keys_) {
      f(key, sum_[key], least_[key]);
      sum_[key] = 0.0;
      least_[key] = kInfinity;
    }
    keys_.clear();
  }

 private:
  std::vector<double> sum_;
  std::vector<double> least_;
  std::vector<std::uint32_t> keys_;
};

class Bounds {
 public:
  Bounds(const Program& program, const Routes& routes)
      : program_(program),
        routes_(routes),
        waiters_(waiters_of(program.waits_for, program.event_count.size())),
        alone_s_(program.num_ops()),
        tail_s_(program.num_ops(), 0.0),
        per_capacity_(routes.capacity.size()),
        per_queue_(program.queue_places.size()) {
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      alone_s_[op] = uncontended_s(program, routes, op);
    }
    collect_signallers();
  }

  Execution compute() {
    forwards();
    backwards();
    bounds_.makespan_s = 0.0;
    for (std::size_t op = 0; op < program_.num_ops(); ++op) {
      bounds_.makespan_s = std::max(bounds_.makespan_s, bounds_.finish_s[op] + tail_s_[op]);
    }
    shared_capacities();
    shared_queues();
    return std::move(bounds_);
  }

 private:
  void collect_signallers() {
    signaller_begin_.assign(program_.event_count.size() + 1, 0);
    for (const std::uint32_t event : program_.signals) ++signaller_begin_[event + 1];
    for (std::size_t e = 1; e < signaller_begin_.size(); ++e) {
      signaller_begin_[e] += signaller_begin_[e - 1];
    }
    signallers_.resize(program_.signals.size());
    std::vector<std::uint64_t> next(signaller_begin_.begin(), signaller_begin_.end() - 1);
    for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
      for (std::uint32_t i = program_.signal_begin[op]; i < program_.signal_begin[op + 1]; ++i) {
        signallers_[next[program_.signals[i]]++] = op;
      }
    }
  }

  [[nodiscard]] std::span<const std::uint32_t> signallers(std::uint32_t event) const {
    return std::span(signallers_)
        .subspan(signaller_begin_[event], signaller_begin_[event + 1] - signaller_begin_[event]);
  }

  void forwards() {
    bounds_.start_s.assign(program_.num_ops(), 0.0);
    bounds_.finish_s.assign(program_.num_ops(), 0.0);
    event_order_.push_back(kStartEvent);
    std::vector<std::uint32_t> remaining = program_.event_count;
    std::size_t num_reached = 0;
    for (std::size_t i = 0; i < event_order_.size(); ++i) {
      const std::uint32_t event = event_order_[i];
      const double fired_s = earliest_firing(event);
      for (const std::uint32_t op : waiters_.of(event)) {
        ++num_reached;
        bounds_.start_s[op] = fired_s;
        bounds_.finish_s[op] = fired_s + alone_s_[op];
        for (std::uint32_t s = program_.signal_begin[op]; s < program_.signal_begin[op + 1]; ++s) {
          if (--remaining[program_.signals[s]] == 0) event_order_.push_back(program_.signals[s]);
        }
      }
    }
    if (num_reached != program_.num_ops()) {
      throw std::logic_error("operations of the program wait for each other in a circle");
    }
  }

  // Fact (3), forwards.
  double earliest_firing(std::uint32_t event) {
    double fired_s = 0.0;
    for (const std::uint32_t op : signallers(event)) {
      fired_s = std::max(fired_s, bounds_.finish_s[op]);
      if (program_.queue[op] != kFreeQueue) {
        per_queue_.add(program_.queue[op], alone_s_[op], bounds_.start_s[op]);
      }
      if (!program_.flows(op)) continue;
      for (const std::uint32_t link : routes_.of(op)) {
        per_capacity_.add(link, program_.amount[op], bounds_.start_s[op] + routes_.delay_s[op]);
      }
    }
    per_queue_.drain([&](std::uint32_t queue, double seconds, double release) {
      fired_s = std::max(fired_s, release + seconds / program_.queue_places[queue]);
    });
    per_capacity_.drain([&](std::uint32_t link, double amount, double release) {
      fired_s = std::max(fired_s, release + amount / routes_.largest[link]);
    });
    return fired_s;
  }

  // Fact (3), backwards. The silent time is left out of the sums over links: it is counted where the
  // operation is alone.
  void backwards() {
    event_tail_s_.assign(program_.event_count.size(), 0.0);
    for (auto event = event_order_.rbegin(); event != event_order_.rend(); ++event) {
      double longest_s = 0.0;
      for (const std::uint32_t op : waiters_.of(*event)) {
        double tail_s = 0.0;
        for (std::uint32_t s = program_.signal_begin[op]; s < program_.signal_begin[op + 1]; ++s) {
          tail_s = std::max(tail_s, event_tail_s_[program_.signals[s]]);
        }
        tail_s_[op] = tail_s;
        longest_s = std::max(longest_s, alone_s_[op] + tail_s);
        if (program_.queue[op] != kFreeQueue) {
          per_queue_.add(program_.queue[op], alone_s_[op], tail_s);
        }
        if (!program_.flows(op)) continue;
        for (const std::uint32_t link : routes_.of(op)) {
          per_capacity_.add(link, program_.amount[op], tail_s);
        }
      }
      per_queue_.drain([&](std::uint32_t queue, double seconds, double tail) {
        longest_s = std::max(longest_s, seconds / program_.queue_places[queue] + tail);
      });
      per_capacity_.drain([&](std::uint32_t link, double amount, double tail) {
        longest_s = std::max(longest_s, amount / routes_.largest[link] + tail);
      });
      event_tail_s_[*event] = longest_s;
    }
  }

  // The least time for which a hold lasts: from its first operation to the event that ends it, where
  // that operation signals the event itself or releases one that does. Zero where it is further.
  double least_hold_s(const Hold& hold) const {
    const auto signals = [&](std::uint32_t op) {
      return std::span(program_.signals)
          .subspan(program_.signal_begin[op],
                   program_.signal_begin[op + 1] - program_.signal_begin[op]);
    };
    const auto ends_it = [&](std::uint32_t op) {
      const auto events = signals(op);
      return std::find(events.begin(), events.end(), hold.end_event) != events.end();
    };
    double longest_s = ends_it(hold.begin_op) ? alone_s_[hold.begin_op] : 0.0;
    for (const std::uint32_t event : signals(hold.begin_op)) {
      for (const std::uint32_t op : waiters_.of(event)) {
        if (ends_it(op)) longest_s = std::max(longest_s, alone_s_[hold.begin_op] + alone_s_[op]);
      }
    }
    return longest_s;
  }

  // Facts (1) and (4) for every link and resource, over all subsets.
  void shared_capacities() {
    const std::size_t num_capacities = routes_.capacity.size();
    const std::size_t num_links = num_capacities - program_.resources.size();
    std::vector<std::uint64_t> begin(num_capacities + 1, 0);
    for (const std::uint32_t link : routes_.links) ++begin[link + 1];
    for (std::size_t link = 0; link < num_capacities; ++link) begin[link + 1] += begin[link];
    std::vector<std::uint32_t> ops(routes_.links.size());
    std::vector<std::uint64_t> next(begin.begin(), begin.end() - 1);
    for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
      for (const std::uint32_t link : routes_.of(op)) ops[next[link]++] = op;
    }
    std::vector<std::vector<Job>> held(program_.holds.empty() ? 0 : program_.resources.size());
    for (const Hold& hold : program_.holds) {
      if (hold.amount <= 0.0) continue;
      const double share = hold.amount / routes_.largest[num_links + hold.resource];
      held[hold.resource].push_back({bounds_.start_s[hold.begin_op], share * least_hold_s(hold),
                                     event_tail_s_[hold.end_event]});
    }
    std::vector<Job> jobs;
    for (std::size_t link = 0; link < num_capacities; ++link) {
      jobs.clear();
      if (!held.empty() && link >= num_links) jobs = std::move(held[link - num_links]);
      for (std::uint64_t i = begin[link]; i < begin[link + 1]; ++i) {
        const std::uint32_t op = ops[i];
        jobs.push_back({bounds_.start_s[op] + routes_.delay_s[op],
                        program_.amount[op] / routes_.largest[link], tail_s_[op]});
      }
      bounds_.makespan_s = std::max(bounds_.makespan_s, one_machine_bound(jobs));
    }
  }

  // Fact (2) for every queue.
  void shared_queues() {
    std::vector<std::vector<Job>> jobs(program_.queue_places.size());
    for (std::size_t op = 0; op < program_.num_ops(); ++op) {
      if (program_.queue[op] == kFreeQueue) continue;
      jobs[program_.queue[op]].push_back({bounds_.start_s[op], alone_s_[op], tail_s_[op]});
    }
    for (std::size_t queue = 0; queue < jobs.size(); ++queue) {
      if (jobs[queue].empty()) continue;
      bounds_.makespan_s =
          std::max(bounds_.makespan_s, queue_bound(jobs[queue], program_.queue_places[queue]));
    }
  }

  const Program& program_;
  const Routes& routes_;
  Waiters waiters_;
  std::vector<std::uint64_t> signaller_begin_;  // [num_events + 1]
  std::vector<std::uint32_t> signallers_;       // operations an event waits for
  std::vector<std::uint32_t> event_order_;      // events after all those they depend on
  std::vector<double> alone_s_;                 // [num_ops] time of the operation on its own
  std::vector<double> tail_s_;                  // [num_ops] q
  std::vector<double> event_tail_s_;            // [num_events] least time from firing to the end
  Sums per_capacity_;
  Sums per_queue_;
  Execution bounds_;
};

}  // namespace

Execution lower_bounds(const Program& program, const Routes& routes) {
  return Bounds(program, routes).compute();
}

Execution run_bound(const ResolvedProgram& program, const EngineOptions&) {
  return program.bound;
}

}  // namespace coterie
