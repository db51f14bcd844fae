// Lower bounds on what any engine can predict, in closed form.
//
// Notation: an operation i has a release r_i (the earliest time its bytes can flow, or it can
// compute), a processing time and a tail q_i (the least time from its finish to the end of the
// program). Releases are a longest path forwards over the dependencies, tails one backwards; an
// operation alone takes its duration, or its silent delay plus bytes / (slowest link or rate cap).
//
// Three facts make these tight where a resource is shared. For any set S of transfers:
//  (1) over one link of bandwidth B: the last byte of S passes no earlier than
//        min r_i + sum bytes_i / B,
//      since no byte of S passes before min r_i and at most B pass per second, however the link is
//      shared; the program then ends no earlier than that plus min q_i.
//  (2) over one queue of w places: a transfer holds its place for at least the time it takes alone,
//      so S needs at least (sum of those) / w after the earliest start, and min q_i on top.
//  (3) an event that waits for all of S fires no earlier than (1) and (2) say without the q_i; and
//      from an event that S waits for, the end is at least (sum bytes_i / B) + min q_i away.
// The largest value of (1) over all subsets S of a link's transfers is the makespan of Jackson's
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

// A transfer as one resource sees it, seconds.
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
  Bounds(const Program& program, const Transfers& transfers, std::span<const Link> links)
      : program_(program),
        transfers_(transfers),
        links_(links),
        waiters_(waiters_of(program.waits_for, program.event_count.size())),
        alone_s_(program.num_ops()),
        tail_s_(program.num_ops(), 0.0),
        per_link_(links.size()),
        per_queue_(transfers.num_queues()) {
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      alone_s_[op] = program.is_transfer(op) ? uncontended_s(program, transfers, links, op)
                                             : program.duration[op];
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
    shared_links();
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
      if (!program_.is_transfer(op)) continue;
      per_queue_.add(transfers_.queue[op], alone_s_[op], bounds_.start_s[op]);
      for (const std::uint32_t link : transfers_.route(op)) {
        per_link_.add(link, program_.bytes[op], bounds_.start_s[op] + transfers_.delay_s[op]);
      }
    }
    per_queue_.drain([&](std::uint32_t queue, double seconds, double release) {
      fired_s = std::max(fired_s, release + seconds / transfers_.in_flight[queue]);
    });
    per_link_.drain([&](std::uint32_t link, double bytes, double release) {
      fired_s = std::max(fired_s, release + bytes / links_[link].bandwidth.value);
    });
    return fired_s;
  }

  // Fact (3), backwards. The delay before the first byte is left out of the sums over links: it is
  // counted where the transfer is alone.
  void backwards() {
    std::vector<double> event_tail_s(program_.event_count.size(), 0.0);
    for (auto event = event_order_.rbegin(); event != event_order_.rend(); ++event) {
      double longest_s = 0.0;
      for (const std::uint32_t op : waiters_.of(*event)) {
        double tail_s = 0.0;
        for (std::uint32_t s = program_.signal_begin[op]; s < program_.signal_begin[op + 1]; ++s) {
          tail_s = std::max(tail_s, event_tail_s[program_.signals[s]]);
        }
        tail_s_[op] = tail_s;
        longest_s = std::max(longest_s, alone_s_[op] + tail_s);
        if (!program_.is_transfer(op)) continue;
        per_queue_.add(transfers_.queue[op], alone_s_[op], tail_s);
        for (const std::uint32_t link : transfers_.route(op)) {
          per_link_.add(link, program_.bytes[op], tail_s);
        }
      }
      per_queue_.drain([&](std::uint32_t queue, double seconds, double tail) {
        longest_s = std::max(longest_s, seconds / transfers_.in_flight[queue] + tail);
      });
      per_link_.drain([&](std::uint32_t link, double bytes, double tail) {
        longest_s = std::max(longest_s, bytes / links_[link].bandwidth.value + tail);
      });
      event_tail_s[*event] = longest_s;
    }
  }

  // Fact (1) for every link, over all subsets.
  void shared_links() {
    std::vector<std::uint64_t> begin(links_.size() + 1, 0);
    for (const std::uint32_t link : transfers_.route_links) ++begin[link + 1];
    for (std::size_t link = 0; link < links_.size(); ++link) begin[link + 1] += begin[link];
    std::vector<std::uint32_t> ops(transfers_.route_links.size());
    std::vector<std::uint64_t> next(begin.begin(), begin.end() - 1);
    for (std::uint32_t op = 0; op < program_.num_ops(); ++op) {
      for (const std::uint32_t link : transfers_.route(op)) ops[next[link]++] = op;
    }
    std::vector<Job> jobs;
    for (std::size_t link = 0; link < links_.size(); ++link) {
      jobs.clear();
      for (std::uint64_t i = begin[link]; i < begin[link + 1]; ++i) {
        const std::uint32_t op = ops[i];
        jobs.push_back({bounds_.start_s[op] + transfers_.delay_s[op],
                        program_.bytes[op] / links_[link].bandwidth.value, tail_s_[op]});
      }
      bounds_.makespan_s = std::max(bounds_.makespan_s, one_machine_bound(jobs));
    }
  }

  // Fact (2) for every queue.
  void shared_queues() {
    std::vector<std::vector<Job>> jobs(transfers_.num_queues());
    for (std::size_t op = 0; op < program_.num_ops(); ++op) {
      if (!program_.is_transfer(op)) continue;
      jobs[transfers_.queue[op]].push_back({bounds_.start_s[op], alone_s_[op], tail_s_[op]});
    }
    for (std::size_t queue = 0; queue < jobs.size(); ++queue) {
      if (jobs[queue].empty()) continue;
      bounds_.makespan_s =
          std::max(bounds_.makespan_s, queue_bound(jobs[queue], transfers_.in_flight[queue]));
    }
  }

  const Program& program_;
  const Transfers& transfers_;
  std::span<const Link> links_;
  Waiters waiters_;
  std::vector<std::uint64_t> signaller_begin_;  // [num_events + 1]
  std::vector<std::uint32_t> signallers_;       // operations an event waits for
  std::vector<std::uint32_t> event_order_;      // events after all those they depend on
  std::vector<double> alone_s_;                 // [num_ops] time of the operation on its own
  std::vector<double> tail_s_;                  // [num_ops] q
  Sums per_link_;
  Sums per_queue_;
  Execution bounds_;
};

}  // namespace

Execution lower_bounds(const Program& program, const Transfers& transfers,
                       std::span<const Link> links) {
  return Bounds(program, transfers, links).compute();
}

Execution run_bound(const Program& program, const Network& network) {
  return lower_bounds(program, resolve_transfers(program, network), network.links());
}

double lower_bound(const Program& program, const Network& network) {
  return run_bound(program, network).makespan_s;
}

}  // namespace coterie
