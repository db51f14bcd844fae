#pragma once
// What decides when operations start, for the engines that simulate time: events, queues and holds
// (program.hpp has the semantics). An engine reports the operations that finish at a moment and is
// told which ones start then; between two moments it moves amounts at the rates of its own model.
//
// Everything that happens at one moment is settled together, so that nothing depends on the order
// in which an engine reports it:
//   1. Ready operations that neither queue nor hold start. Those that take no time finish at once
//      and may make others ready; this is repeated until no more come.
//   2. The other ready ones join their queues, by index.
//   3. Queues give their free places away.
//   4. Operations that begin a hold join the lines of all resources that they hold, by index.
//      Whoever is first in all its lines starts once everything that it holds is there.
//   5. If this made an operation finish, the same again.
//
// Amounts held are compared to a billionth of the resource, so that 0.1 + 0.2 fits beside 0.7.

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sim/engines/resolved.hpp"
#include "sim/program/program.hpp"

namespace coterie {

// Lists with room for more entries than this give it back when they are empty: at the start of a large
// program all operations are in them, and later a few.
inline constexpr std::size_t kManyEntries = 65536;
template <class T>
void release(std::vector<T>& list) {
  std::vector<T>().swap(list);
}

class Schedule {
 public:
  // A program or a part of one, as its arrays. They must outlive the schedule.
  struct Input {
    // [num_ops]
    std::span<const double> delay_s;  // silent time
    std::span<const double> amount;   // that flows; zero: nothing does
    std::span<const std::uint32_t> queue;
    std::span<const std::uint32_t> waits_for;
    std::span<const std::uint32_t> signal_begin, signals;  // [num_ops + 1]
    std::span<const std::uint32_t> event_count;
    std::span<const std::uint32_t> queue_places;  // [0] is no limit
    std::span<const double> capacity;             // [num_capacities], without holds
    std::span<const Hold> holds;                  // by begin_op; `resource` is a capacity
  };
  explicit Schedule(const Input& input);

  void finish(std::uint32_t op, double now);
  // Calls `start(op)` for the operations that start now and take time; those that take none finish.
  template <class Start>
  void settle(double now, const Start& start);

  // Capacities whose holds changed since this was last called, each once.
  [[nodiscard]] std::vector<std::uint32_t> take_changed();
  [[nodiscard]] bool any_changed() const { return !changed_.empty(); }
  // What holds leave of a capacity that has holds.
  [[nodiscard]] double left(std::uint32_t capacity) const;

  [[nodiscard]] std::size_t num_unfinished() const { return num_unfinished_; }
  // The first operation, by index, that waits for a hold, and the capacity in question.
  struct Waiting {
    std::uint32_t op, capacity;
  };
  [[nodiscard]] std::optional<Waiting> first_waiting() const;

  std::vector<double> start_s;   // [num_ops]
  std::vector<double> finish_s;  // [num_ops]

 private:
  static constexpr std::uint32_t kNobody = ~std::uint32_t{0};
  struct Queue {
    std::uint32_t first = kNobody;  // that waits
    std::uint32_t last = kNobody;
    std::uint32_t used = 0;  // places
    bool touched = false;    // listed in touched_
  };
  // A resource with holds.
  struct Held {
    double amount = 0.0;
    std::uint32_t num_holds = 0;
    bool changed = false;  // listed in changed_
    std::deque<std::uint32_t> line;
  };

  [[nodiscard]] std::span<const Hold> holds_of(std::uint32_t op) const {
    if (first_hold_.empty()) return {};
    return input_.holds.subspan(first_hold_[op], first_hold_[op + 1] - first_hold_[op]);
  }
  // Most lists come sorted.
  static void sort(std::vector<std::uint32_t>& items) {
    if (!std::is_sorted(items.begin(), items.end())) std::sort(items.begin(), items.end());
  }
  static void release_if_many(std::vector<std::uint32_t>& empty) {
    if (empty.capacity() > kManyEntries) release(empty);
  }
  void join(std::uint32_t op);
  void touch(std::uint32_t queue);
  void change(std::uint32_t capacity, double amount, bool begins);
  void end_holds(std::uint32_t event);
  void join_lines();
  [[nodiscard]] bool may_begin_holds(std::uint32_t op) const;
  void begin_holds(std::uint32_t op);
  // The next operation whose holds are all there, off its lines; nothing if there is none.
  std::optional<std::uint32_t> next_holder();

  Input input_;
  Waiters waiters_;
  std::vector<std::uint32_t> pending_;  // [num_events] operations that must still finish
  std::vector<Queue> queues_;
  std::vector<std::uint32_t> next_;     // [num_ops] behind it in its queue
  std::vector<std::uint32_t> ready_;    // at this moment
  std::vector<std::uint32_t> batch_;    // of ready_
  std::vector<std::uint32_t> joining_;  // ready, of a queue or with a hold
  std::vector<std::uint32_t> touched_;  // queues that may give a place
  std::vector<std::uint32_t> giving_;   // queues that do now
  std::size_t num_unfinished_;

  // Empty where the program has no holds.
  std::vector<std::uint32_t> first_hold_;                           // [num_ops + 1]
  std::vector<std::pair<std::uint32_t, std::uint32_t>> hold_ends_;  // event, hold; ascending
  std::vector<std::uint8_t> active_;                                // [num_holds]
  std::vector<Held> held_;                                          // [num_capacities]
  std::vector<std::uint32_t> asking_;   // operations that will join lines
  std::vector<std::uint32_t> moving_;   // capacities whose lines may move
  std::vector<std::uint32_t> changed_;  // capacities
};

template <class Start>
void Schedule::settle(double now, const Start& start) {
  const auto begin = [&](std::uint32_t op) {
    start_s[op] = now;
    if (input_.delay_s[op] > 0.0 || input_.amount[op] > 0.0) {
      start(op);
    } else {
      finish(op, now);
    }
  };
  while (!ready_.empty() || !touched_.empty() || !moving_.empty()) {
    joining_.clear();
    while (!ready_.empty()) {
      batch_.swap(ready_);
      ready_.clear();
      sort(batch_);
      for (const std::uint32_t op : batch_) {
        if (input_.queue[op] == kFreeQueue && holds_of(op).empty()) {
          begin(op);
        } else {
          joining_.push_back(op);
        }
      }
    }
    batch_.clear();
    release_if_many(batch_);
    release_if_many(ready_);
    sort(joining_);
    for (const std::uint32_t op : joining_) join(op);
    joining_.clear();
    release_if_many(joining_);
    giving_.swap(touched_);
    touched_.clear();
    sort(giving_);
    for (const std::uint32_t id : giving_) {
      Queue& queue = queues_[id];
      queue.touched = false;
      while (queue.first != kNobody && queue.used < input_.queue_places[id]) {
        const std::uint32_t op = queue.first;
        queue.first = next_[op];
        ++queue.used;
        if (holds_of(op).empty()) {
          begin(op);
        } else {
          asking_.push_back(op);
        }
      }
    }
    if (held_.empty()) continue;
    join_lines();
    while (const std::optional<std::uint32_t> op = next_holder()) begin(*op);
  }
}

}  // namespace coterie
