#include "sim/engines/flow_bottlenecks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <queue>
#include <utility>

#include "sim/engines/flow_components.hpp"

namespace coterie::flow {
namespace {

// A level that is lower than one before it by less is not out of order: equal links differ by
// rounding.
constexpr double kTie = 1e-12;
// Levels that differ by less are the same: setting them again would only add rounding errors.
constexpr double kSameLevel = 1e-14;
// In settled_: unequal to all sums of rates.
constexpr double kUnsettled = -kNever;
// A rate that is so many times another leaves, when it comes and goes, too much rounding in the sums
// that the other is computed from: then all is filled anew. (Links "without a limit" have 1e30 B/s.)
constexpr double kManyTimes = 1e6;
// taken_ is a sum of many differences; it is summed up anew after so many updates.
constexpr std::uint32_t kUpdatesUntilSum = 256;
// All is filled anew if one in kManyChanged links, and more than a few, changed at once, or when moving links has taken the
// time of so many visits of every flow.
constexpr std::size_t kManyChanged = 4;
constexpr std::size_t kFewChanged = 16;
constexpr std::size_t kManyVisits = 4;
// Flows of one link, which lie together, are seen so much faster than those of many.
constexpr std::size_t kSequential = 8;
// So many links without flows of their own are many.
constexpr std::size_t kManyIdle = 64;
// Links whose next finishes are searched together.
constexpr std::size_t kBlock = 64;

double limit_of(double capacity) {
  return capacity * (1.0 + kTie);
}

// Sixteen bytes of numbers that are compared at once, and what a comparison of them gives.
template <class Number>
using Several [[gnu::vector_size(16)]] = Number;

template <class Number>
Several<Number> read_several(const Number* numbers) {
  Several<Number> out;
  std::memcpy(&out, numbers, sizeof(out));
  return out;
}

template <class Mask>
bool any_set(const Mask& mask) {
  std::uint64_t halves[2];
  std::memcpy(halves, &mask, sizeof(halves));
  return (halves[0] | halves[1]) != 0;
}

// Calls `work(i)` for every i < count with numbers[i] = wanted, ascending.
template <class Number, class Work>
void find_all(const Number* numbers, std::size_t count, std::uint32_t wanted, const Work& work) {
  constexpr std::size_t kTogether = 16 / sizeof(Number);
  const auto number = static_cast<Number>(wanted);
  const Several<Number> all = Several<Number>{} + number;
  std::size_t i = 0;
  for (; i + kTogether <= count; i += kTogether) {
    if (!any_set(read_several(numbers + i) == all)) continue;
    for (std::size_t j = i; j < i + kTogether; ++j) {
      if (numbers[j] == number) work(j);
    }
  }
  for (; i < count; ++i) {
    if (numbers[i] == number) work(i);
  }
}

// Whether a value is larger than its limit.
bool any_above(std::span<const double> values, std::span<const double> limits) {
  auto above = Several<double>{} > Several<double>{};  // none
  std::size_t i = 0;
  for (; i + 2 <= values.size(); i += 2) {
    above |= read_several(values.data() + i) > read_several(limits.data() + i);
  }
  return any_set(above) || (i < values.size() && values[i] > limits[i]);
}

}  // namespace

BottleneckOrder::BottleneckOrder(std::span<const double> capacity, std::uint32_t max_hops,
                                 std::size_t num_caps)
    : max_hops_(max_hops),
      small_(capacity.size() + num_caps <= LinkList::kMostSmall),
      num_others_(std::max(2U, max_hops) - 1) {
  for (const double c : capacity) add_link(c, false);
}

std::uint32_t BottleneckOrder::add_link(double capacity, bool is_cap) {
  const auto link = static_cast<std::uint32_t>(links_.size());
  links_.emplace_back(small_);
  links_.back().capacity = capacity;
  links_.back().is_cap = is_cap;
  taken_.push_back(0.0);
  settled_.push_back(kUnsettled);
  limit_.push_back(is_cap ? kNever : limit_of(capacity));
  level_.push_back(is_cap ? capacity : 0.0);
  pos_.push_back(kNone);
  finish_s_.push_back(kNever);
  if (finish_s_.size() > kBlock * block_finish_s_.size()) {
    block_finish_s_.push_back(kNever);
    block_changed_.push_back(0);
  }
  return link;
}

void BottleneckOrder::mark_changed(std::uint32_t link) {
  settled_[link] = kUnsettled;
  if (links_[link].changed) return;
  links_[link].changed = true;
  changed_.push_back(link);
}

void BottleneckOrder::touch(std::uint32_t link) {
  if (links_[link].touched) return;
  links_[link].touched = true;
  touched_.push_back(link);
}

void BottleneckOrder::bring_to_now(std::uint32_t link_id) {
  Link& link = links_[link_id];
  if (link.since_s < now_) {
    if (link.own > 0) link.work += level_[link_id] * (now_ - link.since_s);
    link.since_s = now_;
  }
}

// --- the flows of a link -------------------------------------------------------------------------

void BottleneckOrder::swap_entries(Link& link, std::uint32_t a, std::uint32_t b) {
  if (a == b) return;
  const std::uint32_t link_id = static_cast<std::uint32_t>(&link - links_.data());
  // A route that crosses the link twice has two hops here, which their places tell apart.
  const auto hop_at = [&](std::uint32_t place) {
    for (Hop& hop : hops(link.slots[place])) {
      if (hop.link == link_id && hop.place == place) return &hop;
    }
    return static_cast<Hop*>(nullptr);
  };
  Hop* const hop_a = hop_at(a);
  Hop* const hop_b = hop_at(b);
  hop_a->place = b;
  hop_b->place = a;
  std::swap(link.slots[a], link.slots[b]);
  link.others.swap_ranges(std::size_t{a} * num_others_, std::size_t{b} * num_others_, num_others_);
}

void BottleneckOrder::erase_entry(Link& link, std::uint32_t place) {
  if (place < link.own) {
    --link.own;
    swap_entries(link, place, link.own);
    place = link.own;
  }
  swap_entries(link, place, static_cast<std::uint32_t>(link.slots.size() - 1));
  link.slots.pop_back();
  link.others.drop(num_others_);
  --num_entries_;
}

void BottleneckOrder::sift_finish(Link& link, std::uint32_t at) {
  std::vector<Finish>& heap = link.finishes;
  const Finish moved = heap[at];
  while (at > 0 && moved.work < heap[(at - 1) / 2].work) {
    heap[at] = heap[(at - 1) / 2];
    flows_[heap[at].slot].place = at;
    at = (at - 1) / 2;
  }
  for (std::size_t child = 2 * std::size_t{at} + 1; child < heap.size();
       child = 2 * std::size_t{at} + 1) {
    if (child + 1 < heap.size() && heap[child + 1].work < heap[child].work) ++child;
    if (heap[child].work >= moved.work) break;
    heap[at] = heap[child];
    flows_[heap[at].slot].place = at;
    at = static_cast<std::uint32_t>(child);
  }
  heap[at] = moved;
  flows_[moved.slot].place = at;
}

void BottleneckOrder::push_finish(std::uint32_t link_id, Finish finish) {
  Link& link = links_[link_id];
  link.finishes.push_back(finish);
  sift_finish(link, static_cast<std::uint32_t>(link.finishes.size() - 1));
}

void BottleneckOrder::erase_finish(std::uint32_t link_id, std::uint32_t place) {
  Link& link = links_[link_id];
  const Finish last = link.finishes.back();
  link.finishes.pop_back();
  if (place == link.finishes.size()) return;
  link.finishes[place] = last;
  sift_finish(link, place);
}

// --- flows come and go ---------------------------------------------------------------------------

void BottleneckOrder::start(std::uint32_t slot, std::span<const std::uint32_t> route, double amount,
                            double cap) {
  if (slot >= flows_.size()) {
    flows_.resize(std::size_t{slot} + 1);
    hops_.resize(flows_.size() * max_hops_);
  }
  Flow& flow = flows_[slot];
  flow = {
      .left = amount, .bottleneck = kNone, .num_hops = static_cast<std::uint32_t>(route.size())};
  Hop* const hop = &hops_[std::size_t{slot} * max_hops_];
  for (std::uint32_t i = 0; i < route.size(); ++i) hop[i].link = route[i];
  if (cap < kNever) {
    const auto [place, is_new] = caps_.try_emplace(cap, 0);
    if (is_new) place->second = add_link(cap, true);
    hop[flow.num_hops++].link = place->second;
  }
  for (std::uint32_t i = 0; i < flow.num_hops; ++i) {
    Link& link = links_[hop[i].link];
    hop[i].place = static_cast<std::uint32_t>(link.slots.size());
    link.slots.push_back(slot);
    // What a change of the link's level adds to. A link that a route crosses twice has two entries;
    // the first of them speaks for both.
    bool is_first = true;
    for (std::uint32_t j = 0; j < i; ++j) is_first = is_first && hop[j].link != hop[i].link;
    std::uint32_t num_others = 0;
    for (std::uint32_t j = 0; is_first && j < flow.num_hops; ++j) {
      if (hop[j].link == hop[i].link) continue;
      link.others.push_back(hop[j].link);
      ++num_others;
    }
    any_alone_ = any_alone_ || num_others < num_others_;
    for (; num_others < num_others_; ++num_others) link.others.push_back(kNoLink);
    if (pos_[hop[i].link] == kNone) {
      if (link.is_cap) {
        append(hop[i].link);
      } else {
        note_idle(hop[i].link);
      }
    }
    mark_changed(hop[i].link);
  }
  num_entries_ += flow.num_hops;
  ++num_flowing_;
  started_.push_back(slot);
}

std::uint32_t BottleneckOrder::end_next() {
  const double next = next_finish_s();
  std::size_t block = 0;
  while (block_finish_s_[block] > next) ++block;
  std::size_t link = block * kBlock;
  while (finish_s_[link] > next) ++link;
  const std::uint32_t slot = links_[link].finishes.front().slot;
  remove(slot);
  refresh_finish(static_cast<std::uint32_t>(link));
  return slot;
}

void BottleneckOrder::remove(std::uint32_t slot) {
  Flow& flow = flows_[slot];
  double rate = 0.0;
  if (flow.bottleneck != kNone) {
    rate = level_[flow.bottleneck];
    erase_finish(flow.bottleneck, flow.place);
  }
  for (const Hop& hop : hops(slot)) {
    if (hop.link != flow.bottleneck) taken_[hop.link] -= rate;
    erase_entry(links_[hop.link], hop.place);
    mark_changed(hop.link);
  }
  flow.num_hops = 0;
  --num_flowing_;
}

double BottleneckOrder::left(std::uint32_t slot, double now) const {
  const Flow& flow = flows_[slot];
  if (flow.bottleneck == kNone) return flow.left;
  const Link& link = links_[flow.bottleneck];
  const double work = link.work + level_[flow.bottleneck] * (now - link.since_s);
  return std::max(0.0, link.finishes[flow.place].work - work);
}

void BottleneckOrder::set_capacity(std::uint32_t link, double capacity) {
  links_[link].capacity = capacity;
  limit_[link] = limit_of(capacity);
  mark_changed(link);
}

// --- finishes ------------------------------------------------------------------------------------

void BottleneckOrder::refresh_finish(std::uint32_t link_id) {
  const Link& link = links_[link_id];
  double finish = kNever;
  if (!link.finishes.empty()) {
    const double left = link.finishes.front().work - link.work;
    if (left <= 0.0) {
      finish = link.since_s;
    } else if (level_[link_id] > 0.0) {
      finish = link.since_s + left / level_[link_id];
    }
  }
  finish_s_[link_id] = finish;
  block_changed_[link_id / kBlock] = 1;
}

double BottleneckOrder::next_finish_s() {
  double next = kNever;
  for (std::size_t block = 0; block < block_finish_s_.size(); ++block) {
    if (block_changed_[block] != 0) {
      block_changed_[block] = 0;
      const std::size_t end = std::min(finish_s_.size(), (block + 1) * kBlock);
      double first = kNever;
      for (std::size_t i = block * kBlock; i < end; ++i) first = std::min(first, finish_s_[i]);
      block_finish_s_[block] = first;
    }
    next = std::min(next, block_finish_s_[block]);
  }
  return next;
}

// --- the order -----------------------------------------------------------------------------------

// Links with flows that hold none of them back are in idle_, with others that no longer are such.
void BottleneckOrder::note_idle(std::uint32_t link) {
  if (links_[link].listed_idle) return;
  links_[link].listed_idle = true;
  idle_.push_back(link);
}

void BottleneckOrder::append(std::uint32_t link) {
  settled_[link] = kUnsettled;
  pos_[link] = static_cast<std::uint32_t>(order_.size());
  order_.push_back(link);
  peak_.push_back(0.0);
}

void BottleneckOrder::erase_from_order(std::uint32_t at) {
  pos_[order_[at]] = kNone;
  note_idle(order_[at]);
  order_.erase(order_.begin() + at);
  for (std::uint32_t i = at; i < order_.size(); ++i) pos_[order_[i]] = i;
  peak_.pop_back();
}

void BottleneckOrder::move_in_order(std::uint32_t from, std::uint32_t to) {
  const auto begin = order_.begin();
  if (from < to) {
    std::rotate(begin + from, begin + from + 1, begin + to + 1);
  } else {
    std::rotate(begin + to, begin + from, begin + from + 1);
  }
  for (std::uint32_t i = std::min(from, to); i <= std::max(from, to); ++i) pos_[order_[i]] = i;
}

// The link of its route that is first in the order; the first of the route if none is there.
std::uint32_t BottleneckOrder::first_link(std::uint32_t slot) {
  const std::span<Hop> all = hops(slot);
  std::uint32_t first = all[0].link;
  for (const Hop& hop : all) {
    if (pos_[hop.link] < pos_[first]) first = hop.link;
  }
  return first;
}

// Makes link `to` the flow's bottleneck.
void BottleneckOrder::give(std::uint32_t slot, std::uint32_t to) {
  Flow& flow = flows_[slot];
  const std::uint32_t from = flow.bottleneck;
  const double new_rate = level_[to];
  largest_rate_ = std::max(largest_rate_, new_rate);
  double old_rate = 0.0;
  double left = flow.left;
  bring_to_now(to);
  if (from != kNone) {
    bring_to_now(from);
    old_rate = level_[from];
    largest_rate_ = std::max(largest_rate_, old_rate);
    left = std::max(0.0, links_[from].finishes[flow.place].work - links_[from].work);
    erase_finish(from, flow.place);
    touch(from);
    settled_[from] = kUnsettled;
  }
  for (Hop& hop : hops(slot)) {
    Link& link = links_[hop.link];
    if (hop.link == from) {
      --link.own;
      swap_entries(link, hop.place, link.own);
      taken_[hop.link] += new_rate;
    } else if (hop.link == to) {
      swap_entries(link, hop.place, link.own);
      ++link.own;
      taken_[hop.link] -= old_rate;
    } else {
      taken_[hop.link] += new_rate - old_rate;
    }
  }
  settled_[to] = kUnsettled;
  flow.bottleneck = to;
  push_finish(to, {links_[to].work + left, slot});
  touch(to);
}

double BottleneckOrder::share(std::uint32_t link_id) const {
  const Link& link = links_[link_id];
  // Of a link of no capacity, taken_ is rounding.
  if (link.is_cap || link.capacity == 0.0) return link.capacity;
  return std::max(0.0, (link.capacity - taken_[link_id]) / static_cast<double>(link.own));
}

// Adds the rate, once for each of the link's own flows, to what their further links lose to them.
void BottleneckOrder::add_to_others(const Link& link, double rate) {
  double* const taken = taken_.data();
  link.others.read([&](const auto* other, auto none) {
    const auto* const end = other + std::size_t{link.own} * num_others_;
    if (!any_alone_) {  // a tight loop: nearly all time of large exact runs is spent here
      for (; end - other >= 4; other += 4) {
        taken[other[0]] += rate;
        taken[other[1]] += rate;
        taken[other[2]] += rate;
        taken[other[3]] += rate;
      }
      for (; other != end; ++other) taken[*other] += rate;
      return;
    }
    for (; other != end; other += num_others_) {
      for (std::uint32_t j = 0; j < num_others_ && other[j] != none; ++j) taken[other[j]] += rate;
    }
  });
}

void BottleneckOrder::set_level(std::uint32_t link_id, double level) {
  const double change = level - level_[link_id];
  if (std::abs(change) <= kSameLevel * level) return;
  bring_to_now(link_id);
  const Link& link = links_[link_id];
  if (link.own > 0) largest_rate_ = std::max({largest_rate_, level, level_[link_id]});
  level_[link_id] = level;
  touch(link_id);
  num_set_rates_ += link.own;
  add_to_others(link, change);
}

// A walk goes on from this position: what it reads of the next links comes into the nearest cache
// while it is busy with the flows of this one.
void BottleneckOrder::prefetch_after(std::uint32_t at) const {
  if (at + 2 >= order_.size()) return;
  const auto* const second = reinterpret_cast<const char*>(&links_[order_[at + 2]]);
  __builtin_prefetch(second);
  __builtin_prefetch(second + sizeof(Link) / 2);
  links_[order_[at + 1]].others.prefetch();
}

// The level of the link at this position rose so that it may belong behind others: moves it there,
// and gives flows to links that are now before it. Their levels are those before this update; what
// that gets wrong, `advance` mends. False if it stays.
bool BottleneckOrder::delay(std::uint32_t at, double level) {
  const std::uint32_t link_id = order_[at];
  Link& link = links_[link_id];
  // Rates that its flows would have without it.
  rates_.clear();
  for (std::uint32_t i = 0; i < link.own; ++i) {
    double rate = kNever;
    for (std::uint32_t j = 0; j < num_others_; ++j) {
      const std::uint32_t other = link.others[std::size_t{i} * num_others_ + j];
      if (other == kNoLink) break;
      if (pos_[other] != kNone) rate = std::min(rate, level_[other]);
    }
    if (rate < kNever) rates_.push_back(rate);
  }
  scanned_ += link.own;
  // Flows slower than the level leave, which raises the level, until none is slower.
  for (std::size_t num_slower = 0;;) {
    double open = link.capacity - taken_[link_id];
    std::size_t now_slower = 0;
    for (const double rate : rates_) {
      if (rate >= level) continue;
      open -= rate;
      ++now_slower;
    }
    if (now_slower == num_slower) break;
    num_slower = now_slower;
    level = num_slower < link.own
                ? std::max(level, open / static_cast<double>(link.own - num_slower))
                : kNever;
  }
  std::uint32_t to = at;
  while (to + 1 < order_.size() && level_[order_[to + 1]] < level) ++to;
  if (to == at) return false;
  move_in_order(at, to);
  given_.clear();
  for (std::uint32_t i = 0; i < link.own; ++i) {
    for (std::uint32_t j = 0; j < num_others_; ++j) {
      const std::uint32_t other = link.others[std::size_t{i} * num_others_ + j];
      if (other == kNoLink) break;
      if (pos_[other] < to) given_.push_back(link.slots[i]);
    }
  }
  for (const std::uint32_t slot : given_) {
    if (flows_[slot].bottleneck == link_id) give(slot, first_link(slot));
  }
  return true;
}

// The link at this position has a lower level than links before it, or carries too much: moves it
// before them, and gives it the flows of which it is now the first link. Returns its position.
std::uint32_t BottleneckOrder::advance(std::uint32_t at) {
  const std::uint32_t link_id = order_[at];
  Link& link = links_[link_id];
  double open = link.capacity - taken_[link_id];
  std::uint32_t num_own = link.own;
  double level = num_own > 0 || link.is_cap ? share(link_id) : 0.0;
  given_.clear();
  const auto take = [&](double rate) {
    if (link.is_cap) return;
    open += rate;
    ++num_own;
    level = std::max(0.0, open) / static_cast<double>(num_own);
  };
  // Usually it overtakes few links. Then its flows are found among theirs.
  std::uint32_t to = at;
  std::size_t num_seen = 0;
  for (; to > 0 && peak_[to - 1] > level && num_seen <= kSequential * link.slots.size(); --to) {
    const std::uint32_t passed_id = order_[to - 1];
    const Link& passed = links_[passed_id];
    num_seen += passed.own;
    passed.others.read([&](const auto* others, auto) {
      find_all(others, std::size_t{passed.own} * num_others_, link_id, [&](std::size_t i) {
        given_.push_back(passed.slots[i / num_others_]);
        take(level_[passed_id]);
      });
    });
  }
  scanned_ += num_seen / kSequential + 1;
  if (to > 0 && peak_[to - 1] > level) {  // many links: its flows are asked who holds them back
    scanned_ += link.slots.size();
    given_.clear();
    rates_.clear();
    open = link.capacity - taken_[link_id];
    num_own = link.own;
    level = num_own > 0 || link.is_cap ? share(link_id) : 0.0;
    for (std::uint32_t i = link.own; i < link.slots.size(); ++i) {
      const std::uint32_t bottleneck = flows_[link.slots[i]].bottleneck;
      if (level_[bottleneck] > level) rates_.push_back(level_[bottleneck]);
    }
    std::sort(rates_.begin(), rates_.end(), std::greater<>());
    for (const double rate : rates_) {
      if (rate <= level) break;
      take(rate);
    }
    to = at;
    while (to > 0 && peak_[to - 1] > level) --to;
    for (std::uint32_t i = link.own; i < link.slots.size(); ++i) {
      const std::uint32_t slot = link.slots[i];
      if (pos_[flows_[slot].bottleneck] >= to) given_.push_back(slot);
    }
  }
  if (to < at) move_in_order(at, to);
  if (link.own == 0 && !link.is_cap) level_[link_id] = level;
  for (const std::uint32_t slot : given_) {
    if (flows_[slot].bottleneck != link_id) give(slot, link_id);
  }
  if (link.own == 0) taken_[link_id] = sum_of_others(link);  // it was rounding
  return to;
}

// Levels from this position on, until they never fall and no link carries too much. False if that
// takes too long.
bool BottleneckOrder::walk(std::uint32_t at) {
  const std::size_t most_scanned = kManyVisits * num_entries_ + 1024;
  for (;;) {
    while (at < order_.size()) {
      const std::uint32_t link_id = order_[at];
      const double before = at > 0 ? peak_[at - 1] : 0.0;
      if (taken_[link_id] == settled_[link_id] && level_[link_id] >= before) {
        peak_[at++] = level_[link_id];  // nothing happened to it
        continue;
      }
      Link& link = links_[link_id];
      bool out_of_order = false;
      if (link.own == 0 && !link.is_cap) {
        if (!overloaded(link_id)) {
          link.changed = false;
          erase_from_order(at);
          continue;
        }
        out_of_order = true;
      } else {
        const double level = share(link_id);
        if (link.changed && !link.is_cap) {
          link.changed = false;
          if (at + 1 < order_.size() && level > level_[order_[at + 1]] && delay(at, level))
            continue;
        }
        out_of_order = level < before * (1.0 - kTie);
        if (!out_of_order) {
          prefetch_after(at);
          settled_[link_id] = taken_[link_id];
          set_level(link_id, level);
        }
      }
      if (out_of_order) {
        const std::uint32_t to = advance(at);
        if (++scanned_ > most_scanned || to == at) return false;
        at = to;
        continue;
      }
      peak_[at] = std::max(before, level_[link_id]);
      ++at;
    }
    // With many idle links it is faster to look at all links, which lie one behind the other, first.
    if (idle_.size() > kManyIdle && !any_above(taken_, limit_)) return true;
    for (const std::uint32_t link : idle_) {
      if (overloaded(link) && pos_[link] == kNone) append(link);
    }
    if (at == order_.size()) return true;
  }
}

// Of the rates of the flows that other links hold back.
double BottleneckOrder::sum_of_others(const Link& link) const {
  double sum = 0.0;
  for (std::size_t i = link.own; i < link.slots.size(); ++i) {
    const std::uint32_t bottleneck = flows_[link.slots[i]].bottleneck;
    if (bottleneck != kNone) sum += level_[bottleneck];
  }
  return sum;
}

// Of all links with flows; forgets those in idle_ that have none or are in the order.
void BottleneckOrder::sum_taken() {
  updates_until_sum_ = kUpdatesUntilSum;
  std::erase_if(idle_, [&](std::uint32_t link) {
    links_[link].listed_idle = pos_[link] == kNone && !links_[link].slots.empty();
    return !links_[link].listed_idle;
  });
  for (const std::uint32_t link : order_) taken_[link] = 0.0;
  for (const std::uint32_t link : idle_) taken_[link] = 0.0;
  for (const std::uint32_t link : order_) add_to_others(links_[link], level_[link]);
}

// Progressive filling of all links.
void BottleneckOrder::refill() {
  ++num_refills_;
  std::vector<std::uint32_t> with_flows;
  for (const std::uint32_t link : order_) pos_[link] = kNone;
  for (const std::uint32_t link : order_) note_idle(link);
  order_.clear();
  peak_.clear();
  for (const std::uint32_t link : idle_) {
    links_[link].listed_idle = false;
    if (!links_[link].slots.empty()) with_flows.push_back(link);
  }
  idle_.clear();
  // Amounts are with the flows while they have no bottleneck.
  for (const std::uint32_t link_id : with_flows) {
    Link& link = links_[link_id];
    bring_to_now(link_id);
    for (const Finish& finish : link.finishes) {
      flows_[finish.slot].left = std::max(0.0, finish.work - link.work);
      flows_[finish.slot].bottleneck = kNone;
    }
    link.finishes.clear();
    link.own = 0;
    link.work = 0.0;
    touch(link_id);
  }

  using Share = std::pair<double, std::uint32_t>;
  std::priority_queue<Share, std::vector<Share>, std::greater<>> queue;
  std::vector<double>& open = taken_;  // what settled flows leave; summed up below
  num_open_.resize(links_.size());
  const auto share_of = [&](std::uint32_t link) {
    if (links_[link].is_cap) return links_[link].capacity;
    return std::max(0.0, open[link]) / static_cast<double>(num_open_[link]);
  };
  for (const std::uint32_t link : with_flows) {
    open[link] = links_[link].capacity;
    num_open_[link] = static_cast<std::uint32_t>(links_[link].slots.size());
    queue.emplace(share_of(link), link);
  }
  double peak = 0.0;
  while (!queue.empty()) {
    const auto [known, link_id] = queue.top();
    queue.pop();
    Link& link = links_[link_id];
    if (num_open_[link_id] == 0 && !link.is_cap) {
      note_idle(link_id);
      continue;
    }
    const double level = share_of(link_id);
    if (level > known) {  // shares only grow while others are settled
      queue.emplace(level, link_id);
      continue;
    }
    append(link_id);
    peak_.back() = peak = std::max(peak, level);
    level_[link_id] = level;
    for (const std::uint32_t slot : link.slots) {
      Flow& flow = flows_[slot];
      if (flow.bottleneck != kNone) continue;
      flow.bottleneck = link_id;
      for (const Hop& hop : hops(slot)) {
        open[hop.link] -= level;
        --num_open_[hop.link];
      }
    }
  }
  for (const std::uint32_t link_id : order_) {
    Link& link = links_[link_id];
    for (std::uint32_t i = 0; i < link.slots.size(); ++i) {
      if (flows_[link.slots[i]].bottleneck == link_id) swap_entries(link, i, link.own++);
    }
    num_set_rates_ += link.own;
    // A flow that crosses the link twice is there twice, and finishes once.
    for (std::uint32_t i = 0; i < link.own; ++i) {
      const std::uint32_t slot = link.slots[i];
      for (const Hop& hop : hops(slot)) {
        if (hop.link != link_id) continue;
        if (hop.place == i) link.finishes.push_back({flows_[slot].left, slot});
        break;
      }
    }
    std::sort(link.finishes.begin(), link.finishes.end(), [](const Finish& a, const Finish& b) {
      return a.work != b.work ? a.work < b.work : a.slot < b.slot;
    });
    for (std::uint32_t i = 0; i < link.finishes.size(); ++i) {
      flows_[link.finishes[i].slot].place = i;
    }
  }
  sum_taken();
}

// Whether rates that this update added and took away are too large for sums beside the smallest.
bool BottleneckOrder::lost_digits() const {
  for (const std::uint32_t link : order_) {  // the first has the lowest level
    if (links_[link].own == 0 || links_[link].capacity == 0.0) continue;
    return largest_rate_ > kManyTimes * level_[link];
  }
  return false;
}

void BottleneckOrder::update(double now) {
  now_ = now;
  scanned_ = 0;
  largest_rate_ = 0.0;
  bool done = false;
  if (changed_.size() <= std::max<std::size_t>(kFewChanged, order_.size() / kManyChanged)) {
    if (updates_until_sum_ == 0) sum_taken();
    --updates_until_sum_;
    for (const std::uint32_t slot : started_) {
      const std::uint32_t first = first_link(slot);
      if (pos_[first] == kNone) append(first);
      give(slot, first);
    }
    auto at = static_cast<std::uint32_t>(order_.size());
    for (const std::uint32_t link : changed_) at = std::min(at, pos_[link]);
    done = walk(at) && !lost_digits();
  }
  if (!done) refill();
  started_.clear();
  for (const std::uint32_t link : changed_) {
    links_[link].changed = false;
    touch(link);
  }
  changed_.clear();
  for (const std::uint32_t link : touched_) {
    links_[link].touched = false;
    refresh_finish(link);
  }
  touched_.clear();
}

}  // namespace coterie::flow
