// The reference predictor: everything that flows is a SimGrid communication, over the modelled links
// and over further links that stand for the resources.
//
// How the semantics of program.hpp are put to SimGrid:
//  - Model CM02 without cross-traffic and without the TCP window bound, so that a communication
//    gets its max-min fair share of the links of its route and nothing else.
//  - CM02 weighs a communication's share by its route's latency. Links therefore have no latency in
//    SimGrid; all silent time passes before the communication starts.
//  - A kernel, which flows over resources of its GPU alone, is a communication between two hosts
//    that both stand for that GPU.
//  - A change of capacity, by a hold or at a given time, is Link::set_bandwidth at that moment.
//    SimGrid's solver passes over links without bandwidth, so that flows would run as if these were
//    not there, and 3.32 counts the time of suspended communications as if they had gone on. Where
//    nothing is left, the link keeps a trillionth of its capacity instead. A run in which all
//    communications crawl so and nothing is due that could end it is stopped.
//  - SimGrid caps a communication for good at the bandwidths that it finds when it starts. Links
//    therefore have the largest capacity that they ever have while one over them starts.
//  - Communications have whole sizes. Where amounts are not whole numbers, all amounts and
//    capacities are multiplied by a power of two first, which changes no time.
//  - No actors: the communications are started from the simulation's own loop, by a timer or by the
//    completion of what they waited for.
//  - SimGrid lets completions that lie within `surf/precision` of each other happen at once and
//    solves the sharing once for all of them. This is what makes it fast; see kDefaultPrecision.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "core/child_process.hpp"
#include "core/error.hpp"
#include "core/module.hpp"
#include "sim/engines/engine.hpp"
#include "sim/engines/resolved.hpp"
#include "sim/engines/schedule.hpp"
#include "sim/engines/simgrid_module.hpp"

namespace coterie {
namespace {

// Of the lower bound on the makespan: with lazy and with full updates. README.md gives their errors
// against exact runs.
constexpr double kDefaultPrecision = 1e-4;
constexpr double kDefaultFullPrecision = 2e-3;
// Flows that share a link while a precision in seconds becomes one in bytes.
constexpr double kSharers = 64.0;
// With more flows on a link the default is finer: each may end so many bytes early, and the errors
// grow a little faster than their number. Measured with 128 (README.md).
constexpr double kSharersExponent = 1.5;
// Of a transfer's mean amount, what it may end early at most: where messages are short and wait for one
// another, what each saves adds up along their queue.
constexpr double kLargestPart = 0.01;

// The power of two by which amounts are multiplied to become whole numbers of enough digits: 1 if
// they are whole, else as large as 62 bits allow.
double scale_of(const Program& program) {
  double largest = 0.0;
  bool whole = true;
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!program.flows(op)) continue;
    largest = std::max(largest, program.amount[op]);
    whole = whole && program.amount[op] == std::floor(program.amount[op]);
  }
  return whole ? 1.0 : std::exp2(62 - std::ceil(std::log2(largest)));
}

// The GPUs of the program as hosts, the links and resources they use, one explicit route per pair in
// use.
//
// SimGrid 3.32 ignores Comm::set_rate between hosts. A rate cap is a link of the kind that is never
// shared (FATPIPE) at the head of the route; a GPU is one source host for every cap and every set of
// resources that it uses.
class Platform {
 public:
  Platform(SimGrid& simgrid, const Program& program, const Routes& routes)
      : simgrid_(simgrid),
        scale_(scale_of(program)),
        routes_(routes),
        links_(routes.capacity.size()),
        source_(program.num_ops(), 0),
        destination_(program.num_ops(), 0) {
    std::set<std::pair<std::uint32_t, std::uint32_t>> routed;
    for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
      // Also for computations: SimGrid refuses a platform without hosts.
      destination_[op] = host(program.dst[op], kUncapped, {});
      if (!program.flows(op)) continue;
      const double rate_cap = routes.rate_cap[op];
      source_[op] = host(program.src[op], rate_cap, program.uses_of(op));
      if (!routed.emplace(source_[op], destination_[op]).second) continue;
      std::vector<std::uint32_t> route;
      if (rate_cap != kUncapped) route.push_back(cap(program.src[op], rate_cap));
      for (const std::uint32_t idx : routes.of(op)) route.push_back(link(idx));
      simgrid_.add_route(source_[op], destination_[op], route);
    }
    simgrid_.seal();
  }

  void start(std::uint32_t op, double amount) const {
    simgrid_.start(source_[op], destination_[op],
                   static_cast<std::uint64_t>(std::llround(amount * scale_)), op);
  }
  // Above zero; no effect on what nothing flows over.
  void set_capacity(std::uint32_t idx, double capacity) const {
    if (links_[idx]) simgrid_.set_bandwidth(*links_[idx], capacity * scale_);
  }

 private:
  static constexpr double kUncapped = std::numeric_limits<double>::infinity();

  std::uint32_t host(std::uint32_t gpu, double rate_cap, std::span<const std::uint32_t> uses) {
    const auto [entry, is_new] =
        hosts_.try_emplace({gpu, rate_cap, {uses.begin(), uses.end()}}, 0U);
    if (is_new) entry->second = simgrid_.add_host();
    return entry->second;
  }
  std::uint32_t link(std::uint32_t idx) {
    if (!links_[idx]) links_[idx] = simgrid_.add_link(routes_.largest[idx] * scale_, true);
    return *links_[idx];
  }
  // One per GPU, so that flows that share nothing stay independent in SimGrid's solver.
  std::uint32_t cap(std::uint32_t gpu, double rate) {
    const auto [entry, is_new] = caps_.try_emplace({gpu, rate}, 0U);
    if (is_new) entry->second = simgrid_.add_link(rate * scale_, false);
    return entry->second;
  }

  SimGrid& simgrid_;
  double scale_;
  const Routes& routes_;
  std::vector<std::optional<std::uint32_t>> links_;  // [num_capacities] none: not in use
  std::map<std::pair<std::uint32_t, double>, std::uint32_t> caps_;
  std::map<std::tuple<std::uint32_t, double, std::vector<std::uint32_t>>, std::uint32_t> hosts_;
  std::vector<std::uint32_t> source_, destination_;  // [num_ops]
};

// Links and resources whose capacity varies during the run: what they have now, and which
// communications cross them.
class VaryingCapacities {
 public:
  VaryingCapacities(const ResolvedProgram& resolved, const Platform& platform)
      : routes_(resolved.routes), platform_(platform) {
    const Program& program = resolved.program;
    if (program.changes.empty() && program.holds.empty()) return;
    entries_.resize(routes_.capacity.size());
    const auto vary = [&](std::uint32_t idx) {
      entries_[idx].varies = true;
      set(idx, routes_.capacity[idx]);
    };
    for (const CapacityChange& change : program.changes) vary(change.link);
    for (const Hold& hold : program.holds) vary(routes_.num_links(program) + hold.resource);
  }

  void set(std::uint32_t idx, double capacity) {
    entries_[idx].now = capacity;
    apply(idx);
  }
  // Starts the communication of an operation.
  void start(std::uint32_t op, double amount) {
    if (entries_.empty()) {
      platform_.start(op, amount);
      return;
    }
    for (const std::uint32_t idx : routes_.of(op)) {
      if (entries_[idx].varies) platform_.set_capacity(idx, routes_.largest[idx]);
    }
    platform_.start(op, amount);
    for (const std::uint32_t idx : routes_.of(op)) {
      if (entries_[idx].varies) apply(idx);
    }
    running_.insert(op);
  }
  // To be called when its communication has ended.
  void remove(std::uint32_t op) { running_.erase(op); }

  struct Blocked {
    std::uint32_t op, capacity;
  };
  // If all communications stand still, the first of them and a capacity of which nothing is left.
  [[nodiscard]] std::optional<Blocked> all_blocked() const {
    std::optional<Blocked> first;
    for (const std::uint32_t op : running_) {
      const std::span<const std::uint32_t> route = routes_.of(op);
      const auto empty = std::find_if(route.begin(), route.end(), [&](std::uint32_t idx) {
        return entries_[idx].varies && entries_[idx].now == 0.0;
      });
      if (empty == route.end()) return std::nullopt;
      if (!first) first = Blocked{op, *empty};
    }
    return first;
  }

 private:
  // Of the largest capacity: what a link keeps of which nothing is left.
  static constexpr double kCrawl = 1e-12;

  void apply(std::uint32_t idx) {
    platform_.set_capacity(
        idx, entries_[idx].now > 0.0 ? entries_[idx].now : kCrawl * routes_.largest[idx]);
  }

  struct Entry {
    bool varies = false;
    double now = 0.0;
  };
  const Routes& routes_;
  const Platform& platform_;
  std::vector<Entry> entries_;       // [num_capacities], or empty if none varies
  std::set<std::uint32_t> running_;  // operations with a communication, if any capacity varies
};

// What the schedule of the whole program works on.
struct ScheduleInput {
  explicit ScheduleInput(const ResolvedProgram& resolved)
      : amount(resolved.program.amount), holds(resolved.program.holds) {
    for (std::size_t op = 0; op < amount.size(); ++op) {
      if (!resolved.program.flows(op)) amount[op] = 0.0;
    }
    for (Hold& hold : holds) hold.resource += resolved.routes.num_links(resolved.program);
  }
  [[nodiscard]] Schedule::Input view(const ResolvedProgram& resolved) const {
    const Program& program = resolved.program;
    return {resolved.routes.delay_s,
            amount,
            program.queue,
            program.waits_for,
            program.signal_begin,
            program.signals,
            program.event_count,
            program.queue_places,
            resolved.routes.capacity,
            holds};
  }
  std::vector<double> amount;  // [num_ops] zero where nothing flows
  std::vector<Hold> holds;     // of capacities
};

// Drives SimGrid through one program.
//
// Everything that happens at one instant is collected first and settled then, so that ties are
// broken by operation index and not by the order in which SimGrid reports completions.
class Run {
 public:
  Run(SimGrid& simgrid, const ResolvedProgram& resolved, const Platform& platform)
      : simgrid_(simgrid),
        resolved_(resolved),
        input_(resolved),
        schedule_(input_.view(resolved)),
        varying_(resolved, platform) {}

  Execution execute() {
    wake();
    simgrid_.run([this](std::uint32_t op) {
      varying_.remove(op);
      schedule_.finish(op, simgrid_.now_s());
      wake_at(simgrid_.now_s());
    });
    if (schedule_.num_unfinished() > 0) throw why_stuck();
    Execution out;
    out.start_s = schedule_.start_s;
    out.finish_s = schedule_.finish_s;
    for (const double finish : out.finish_s) out.makespan_s = std::max(out.makespan_s, finish);
    return out;
  }

 private:
  // What is due at a time that we know: the end of an operation's silence.
  struct Due {
    double time_s;
    std::uint32_t op;
    bool operator>(const Due& other) const {
      return time_s != other.time_s ? time_s > other.time_s : op > other.op;
    }
  };

  // Makes SimGrid's loop call `wake` at that time.
  void wake_at(double time_s) {
    if (next_wake_ && *next_wake_ <= time_s) return;
    next_wake_ = time_s;
    simgrid_.at(time_s, [this, time_s] {
      if (next_wake_ == time_s) wake();  // else an earlier call took its place
    });
  }

  // All that happens at this moment besides completions.
  void wake() {
    next_wake_.reset();
    const double now = simgrid_.now_s();
    const std::vector<CapacityChange>& changes = resolved_.program.changes;
    for (; next_change_ < changes.size() && changes[next_change_].time_s <= now; ++next_change_) {
      varying_.set(changes[next_change_].link, changes[next_change_].capacity);
    }
    while (!due_.empty() && due_.top().time_s <= now) {
      const std::uint32_t op = due_.top().op;
      due_.pop();
      if (input_.amount[op] > 0.0) {
        varying_.start(op, input_.amount[op]);
      } else {
        schedule_.finish(op, now);
      }
    }
    schedule_.settle(now, [&](std::uint32_t op) {
      if (resolved_.routes.delay_s[op] > 0.0) {
        due_.push({now + resolved_.routes.delay_s[op], op});
      } else {
        varying_.start(op, input_.amount[op]);
      }
    });
    for (const std::uint32_t idx : schedule_.take_changed()) {
      varying_.set(idx, schedule_.left(idx));
    }
    if (!due_.empty()) wake_at(due_.top().time_s);
    if (next_change_ < changes.size() && schedule_.num_unfinished() > 0) {
      wake_at(changes[next_change_].time_s);
    }
    if (!next_wake_ && varying_.all_blocked()) throw why_stuck();
  }

  [[nodiscard]] InputError why_stuck() const {
    const Program& program = resolved_.program;
    if (const auto blocked = varying_.all_blocked()) {
      return stands_still(program, resolved_.routes, resolved_.network.links(), blocked->op,
                          blocked->capacity);
    }
    if (const auto waiting = schedule_.first_waiting()) {
      return never_held(program, waiting->op,
                        waiting->capacity - resolved_.routes.num_links(program));
    }
    return never_ready(schedule_.num_unfinished());
  }

  SimGrid& simgrid_;
  const ResolvedProgram& resolved_;
  ScheduleInput input_;
  Schedule schedule_;
  VaryingCapacities varying_;
  std::size_t next_change_ = 0;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::optional<double> next_wake_;
};

StartSimGrid load_simgrid() {
  return reinterpret_cast<StartSimGrid>(module_symbol("coterie_simgrid", "coterie_simgrid_start"));
}

Execution simulate(SimGrid& simgrid, const ResolvedProgram& resolved) {
  const Platform platform(simgrid, resolved.program, resolved.routes);
  return Run(simgrid, resolved, platform).execute();
}

// Whether a transfer waits for one that is not of its own queue, as in dispatch over several hops.
bool forwards(const Program& program) {
  std::vector<char> is_arrival(program.event_count.size(), 0);
  const auto crosses_links = [&](std::size_t op) {
    return program.flows(op) && program.src[op] != program.dst[op];
  };
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (!crosses_links(op)) continue;
    for (std::uint32_t i = program.signal_begin[op]; i < program.signal_begin[op + 1]; ++i) {
      is_arrival[program.signals[i]] = 1;
    }
  }
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    const std::uint32_t event = program.waits_for[op];
    if (crosses_links(op) && event != kStartEvent && is_arrival[event] != 0) return true;
  }
  return false;
}

// Full updates look at every communication at every event, lazy ones at those whose rates changed.
// Where transfers wait for nothing but their queue, all are connected and change together, and full
// updates are faster; they are also more exact, because what they end early is a number of bytes
// and not whatever ends at about the same time.
SimGridSettings settings_of(const ResolvedProgram& resolved, std::optional<double> precision) {
  const Program& program = resolved.program;
  SimGridSettings settings;
  // Exact means as fine as SimGrid's arithmetic carries: its times are doubles, and a precision
  // below their rounding would leave flows that never end.
  const double lazy = std::max(precision.value_or(kDefaultPrecision), 1e-9);
  settings.precision_s = lazy * resolved.bound.makespan_s;
  const bool varies = !program.changes.empty() || !program.holds.empty();
  if (precision == 0.0 || varies || forwards(program)) return settings;
  double slowest = std::numeric_limits<double>::infinity();
  double bytes = 0.0, transfers = 0.0;
  std::vector<std::uint32_t> num_flows(resolved.routes.largest.size(), 0);
  for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
    if (program.flows(op)) {
      bytes += program.amount[op];
      ++transfers;
    }
    for (const std::uint32_t idx : resolved.routes.of(op)) {
      slowest = std::min(slowest, resolved.routes.largest[idx]);
      ++num_flows[idx];
    }
  }
  if (slowest == std::numeric_limits<double>::infinity()) return settings;
  settings.completion_bytes = precision.value_or(kDefaultFullPrecision) *
                              resolved.bound.makespan_s * slowest / kSharers * scale_of(program);
  if (precision) return settings;
  // The most flows of a link, as many fewer as it is faster than the slowest: bytes cost it less time.
  double sharers = kSharers;
  for (std::size_t idx = 0; idx < num_flows.size(); ++idx) {
    if (num_flows[idx] == 0) continue;
    sharers = std::max(sharers, num_flows[idx] * slowest / resolved.routes.largest[idx]);
  }
  settings.completion_bytes *= std::pow(kSharers / sharers, kSharersExponent);
  settings.completion_bytes =
      std::min(settings.completion_bytes, kLargestPart * bytes / transfers * scale_of(program));
  return settings;
}

void append(std::string& bytes, const std::vector<double>& values) {
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
}

void extract(const std::string& bytes, std::size_t& position, std::vector<double>& values) {
  std::memcpy(values.data(), bytes.data() + position, values.size() * sizeof(double));
  position += values.size() * sizeof(double);
}

}  // namespace

std::string simgrid_version() {
  return COTERIE_SIMGRID_VERSION;
}

Execution run_simgrid(const ResolvedProgram& resolved, const EngineOptions& options) {
  const Program& program = resolved.program;
  if (program.num_ops() == 0) return {};
  if (!resolved.routes.detours.empty()) {
    throw InputError("engine", "simgrid for transfers whose routes change under way",
                     "flow: a communication of SimGrid keeps the route that it began on");
  }
  // Loaded here, so that the children of later calls have it already.
  const StartSimGrid start_simgrid = load_simgrid();
  std::string bytes;
  try {
    bytes = run_in_child("simgrid", options.timeout_s.value_or(0.0), [&] {
      const Execution execution =
          simulate(*start_simgrid(settings_of(resolved, options.relative_precision)), resolved);
      std::string out;
      out.reserve((2 * program.num_ops() + 1) * sizeof(double));
      append(out, execution.start_s);
      append(out, execution.finish_s);
      append(out, {execution.makespan_s});
      return out;
    });
  } catch (const Error& error) {
    if (error.exit_code() == ExitCode::kBadInput) throw InputError(error.what());
    throw;
  }

  Execution execution;
  execution.start_s.resize(program.num_ops());
  execution.finish_s.resize(program.num_ops());
  std::vector<double> makespan(1);
  if (bytes.size() != (2 * program.num_ops() + 1) * sizeof(double)) {
    throw Error(ExitCode::kInternalError, "simgrid: its process returned an incomplete result");
  }
  std::size_t position = 0;
  extract(bytes, position, execution.start_s);
  extract(bytes, position, execution.finish_s);
  extract(bytes, position, makespan);
  execution.makespan_s = makespan[0];
  return execution;
}

}  // namespace coterie
