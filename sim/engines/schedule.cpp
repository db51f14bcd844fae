#include "sim/engines/schedule.hpp"

#include <numeric>

namespace coterie {
namespace {

// Of a resource: what is less is rounding.
constexpr double kNothing = 1e-9;

}  // namespace

Schedule::Schedule(const Input& input)
    : start_s(input.delay_s.size(), 0.0),
      finish_s(input.delay_s.size(), 0.0),
      input_(input),
      waiters_(waiters_of(input.waits_for, input.event_count.size())),
      pending_(input.event_count.begin(), input.event_count.end()),
      queues_(input.queue_places.size()),
      next_(input.delay_s.size(), kNobody),
      num_unfinished_(input.delay_s.size()) {
  const auto first = waiters_.of(kStartEvent);
  ready_.assign(first.begin(), first.end());
  if (input.holds.empty()) return;
  first_hold_.assign(input.delay_s.size() + 1, 0);
  for (std::uint32_t i = 0; i < input.holds.size(); ++i) {
    ++first_hold_[input.holds[i].begin_op + 1];
    hold_ends_.emplace_back(input.holds[i].end_event, i);
  }
  std::partial_sum(first_hold_.begin(), first_hold_.end(), first_hold_.begin());
  std::sort(hold_ends_.begin(), hold_ends_.end());
  active_.assign(input.holds.size(), 0);
  held_.resize(input.capacity.size());
}

void Schedule::finish(std::uint32_t op, double now) {
  finish_s[op] = now;
  --num_unfinished_;
  if (const std::uint32_t queue = input_.queue[op]; queue != kFreeQueue) {
    --queues_[queue].used;
    touch(queue);
  }
  for (std::uint32_t i = input_.signal_begin[op]; i < input_.signal_begin[op + 1]; ++i) {
    const std::uint32_t event = input_.signals[i];
    if (--pending_[event] > 0) continue;
    const auto woken = waiters_.of(event);
    ready_.insert(ready_.end(), woken.begin(), woken.end());
    if (!hold_ends_.empty()) end_holds(event);
  }
}

void Schedule::touch(std::uint32_t queue) {
  if (queues_[queue].touched) return;
  queues_[queue].touched = true;
  touched_.push_back(queue);
}

void Schedule::join(std::uint32_t op) {
  if (input_.queue[op] == kFreeQueue) {
    asking_.push_back(op);
    return;
  }
  Queue& queue = queues_[input_.queue[op]];
  if (queue.first == kNobody) {
    queue.first = op;
  } else {
    next_[queue.last] = op;
  }
  queue.last = op;
  touch(input_.queue[op]);
}

void Schedule::change(std::uint32_t capacity, double amount, bool begins) {
  Held& held = held_[capacity];
  if (begins) {
    held.amount += amount;
    ++held.num_holds;
  } else {
    held.amount -= amount;
    if (--held.num_holds == 0) held.amount = 0.0;  // what is left is rounding
    moving_.push_back(capacity);
  }
  if (held.changed) return;
  held.changed = true;
  changed_.push_back(capacity);
}

void Schedule::end_holds(std::uint32_t event) {
  auto place = std::lower_bound(hold_ends_.begin(), hold_ends_.end(),
                                std::pair<std::uint32_t, std::uint32_t>{event, 0});
  for (; place != hold_ends_.end() && place->first == event; ++place) {
    if (active_[place->second] == 0) continue;
    active_[place->second] = 0;
    const Hold& hold = input_.holds[place->second];
    change(hold.resource, hold.amount, false);
  }
}

void Schedule::join_lines() {
  std::sort(asking_.begin(), asking_.end());
  for (const std::uint32_t op : asking_) {
    for (const Hold& hold : holds_of(op)) {
      std::deque<std::uint32_t>& line = held_[hold.resource].line;
      if (line.empty() || line.back() != op) line.push_back(op);  // once, whatever it holds of it
      moving_.push_back(hold.resource);
    }
  }
  asking_.clear();
}

bool Schedule::may_begin_holds(std::uint32_t op) const {
  const std::span<const Hold> holds = holds_of(op);
  return std::all_of(holds.begin(), holds.end(), [&](const Hold& hold) {
    if (held_[hold.resource].line.front() != op) return false;
    double wanted = held_[hold.resource].amount;
    for (const Hold& other : holds) {
      if (other.resource == hold.resource) wanted += other.amount;
    }
    return wanted <= input_.capacity[hold.resource] * (1.0 + kNothing);
  });
}

void Schedule::begin_holds(std::uint32_t op) {
  for (std::uint32_t i = first_hold_[op]; i < first_hold_[op + 1]; ++i) {
    const Hold& hold = input_.holds[i];
    if (Held& held = held_[hold.resource]; !held.line.empty() && held.line.front() == op) {
      held.line.pop_front();
      moving_.push_back(hold.resource);
    }
    if (pending_[hold.end_event] == 0) continue;  // it has ended before it began
    active_[i] = 1;
    change(hold.resource, hold.amount, true);
  }
}

std::optional<std::uint32_t> Schedule::next_holder() {
  while (!moving_.empty()) {
    const std::deque<std::uint32_t>& line = held_[moving_.back()].line;
    if (!line.empty() && may_begin_holds(line.front())) {
      const std::uint32_t op = line.front();
      begin_holds(op);
      return op;
    }
    moving_.pop_back();
  }
  return std::nullopt;
}

std::vector<std::uint32_t> Schedule::take_changed() {
  for (const std::uint32_t capacity : changed_) held_[capacity].changed = false;
  return std::exchange(changed_, {});
}

double Schedule::left(std::uint32_t capacity) const {
  const double left = input_.capacity[capacity] - held_[capacity].amount;
  return left > kNothing * input_.capacity[capacity] ? left : 0.0;
}

std::optional<Schedule::Waiting> Schedule::first_waiting() const {
  std::optional<Waiting> out;
  for (std::uint32_t capacity = 0; capacity < held_.size(); ++capacity) {
    for (const std::uint32_t op : held_[capacity].line) {
      if (!out || op < out->op) out = Waiting{op, capacity};
    }
  }
  return out;
}

}  // namespace coterie
