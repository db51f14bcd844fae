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

#include <simgrid/kernel/Timer.hpp>
#include <simgrid/s4u.hpp>

// Not self-contained in 3.32: needs the headers above.
#include <simgrid/version.h>

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
#include <unordered_map>
#include <utility>

#include "core/child_process.hpp"
#include "core/error.hpp"
#include "sim/engines/engine.hpp"
#include "sim/engines/resolved.hpp"
#include "sim/engines/schedule.hpp"

namespace coterie {
namespace {

namespace sg = simgrid::s4u;

// Of the lower bound on the makespan. sim/README.md gives its error against exact runs.
constexpr double kDefaultPrecision = 1e-4;

// SimGrid 4 renamed the setting and moved the constructors of zones and hosts into their parents.
#if SIMGRID_VERSION >= 40000
constexpr const char* kPrecisionSetting = "precision/timing";
#else
constexpr const char* kPrecisionSetting = "surf/precision";
#endif

template <class EngineT>
auto* root_zone(EngineT& engine) {
  if constexpr (requires { engine.get_netzone_root()->add_netzone_full("gpus"); }) {
    return engine.get_netzone_root()->add_netzone_full("gpus");
  } else {
    return sg::create_full_zone("gpus");
  }
}
template <class ZoneT>
sg::Host* add_host(ZoneT* zone, const std::string& name) {
  if constexpr (requires { zone->add_host(name, 1.0); }) {
    return zone->add_host(name, 1.0);
  } else {
    return zone->create_host(name, 1.0);
  }
}
template <class ZoneT>
sg::Link* add_link(ZoneT* zone, const std::string& name, double bandwidth) {
  if constexpr (requires { zone->add_link(name, bandwidth); }) {
    return zone->add_link(name, bandwidth);
  } else {
    return zone->create_link(name, bandwidth);
  }
}
template <class ZoneT>
void add_route(ZoneT* zone, sg::Host* src, sg::Host* dst,
               const std::vector<sg::LinkInRoute>& links) {
  if constexpr (requires { zone->add_route(src, dst, links, false); }) {
    zone->add_route(src, dst, links, false);
  } else {
    zone->add_route(src->get_netpoint(), dst->get_netpoint(), nullptr, nullptr, links, false);
  }
}

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
  Platform(sg::Engine& engine, const Program& program, const Routes& routes)
      : zone_(root_zone(engine)),
        scale_(scale_of(program)),
        routes_(routes),
        links_(routes.capacity.size(), nullptr),
        source_(program.num_ops(), nullptr),
        destination_(program.num_ops(), nullptr) {
    std::set<std::pair<sg::Host*, sg::Host*>> routed;
    for (std::uint32_t op = 0; op < program.num_ops(); ++op) {
      // Also for computations: SimGrid refuses a platform without hosts.
      destination_[op] = host(program.dst[op], kUncapped, {});
      if (!program.flows(op)) continue;
      const double rate_cap = routes.rate_cap[op];
      source_[op] = host(program.src[op], rate_cap, program.uses_of(op));
      if (!routed.emplace(source_[op], destination_[op]).second) continue;
      std::vector<sg::LinkInRoute> route;
      if (rate_cap != kUncapped) route.emplace_back(cap(program.src[op], rate_cap));
      for (const std::uint32_t idx : routes.of(op)) route.emplace_back(link(idx));
      add_route(zone_, source_[op], destination_[op], route);
    }
    zone_->seal();
  }

  [[nodiscard]] sg::CommPtr communication(std::uint32_t op, double amount) const {
    sg::CommPtr comm = sg::Comm::sendto_init(source_[op], destination_[op]);
    comm->set_payload_size(static_cast<std::uint64_t>(std::llround(amount * scale_)));
    return comm;
  }
  // Above zero; no effect on what nothing flows over.
  void set_capacity(std::uint32_t idx, double capacity) const {
    if (links_[idx] != nullptr) links_[idx]->set_bandwidth(capacity * scale_);
  }

 private:
  static constexpr double kUncapped = std::numeric_limits<double>::infinity();

  sg::Host* host(std::uint32_t gpu, double rate_cap, std::span<const std::uint32_t> uses) {
    sg::Host*& entry = hosts_[{gpu, rate_cap, {uses.begin(), uses.end()}}];
    if (entry == nullptr) entry = add_host(zone_, fmt::format("host {}", hosts_.size()));
    return entry;
  }
  sg::Link* link(std::uint32_t idx) {
    if (links_[idx] == nullptr) {
      links_[idx] = add_link(zone_, std::to_string(idx), routes_.largest[idx] * scale_);
      links_[idx]->set_latency(0.0);
      links_[idx]->seal();
    }
    return links_[idx];
  }
  // One per GPU, so that flows that share nothing stay independent in SimGrid's solver.
  sg::Link* cap(std::uint32_t gpu, double rate) {
    sg::Link*& entry = caps_[{gpu, rate}];
    if (entry == nullptr) {
      entry = add_link(zone_, fmt::format("cap {} {}", gpu, rate), rate * scale_);
      entry->set_latency(0.0);
      entry->set_sharing_policy(sg::Link::SharingPolicy::FATPIPE);
      entry->seal();
    }
    return entry;
  }

  sg::NetZone* zone_;
  double scale_;
  const Routes& routes_;
  std::vector<sg::Link*> links_;  // [num_capacities] null: not in use
  std::map<std::pair<std::uint32_t, double>, sg::Link*> caps_;
  std::map<std::tuple<std::uint32_t, double, std::vector<std::uint32_t>>, sg::Host*> hosts_;
  std::vector<sg::Host*> source_, destination_;  // [num_ops]
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
  void start(std::uint32_t op, const sg::CommPtr& comm) {
    if (entries_.empty()) {
      comm->start();
      return;
    }
    for (const std::uint32_t idx : routes_.of(op)) {
      if (entries_[idx].varies) platform_.set_capacity(idx, routes_.largest[idx]);
    }
    comm->start();
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
  Run(const ResolvedProgram& resolved, const Platform& platform)
      : resolved_(resolved),
        platform_(platform),
        input_(resolved),
        schedule_(input_.view(resolved)),
        varying_(resolved, platform) {
    comms_.reserve(resolved.program.num_ops());
  }

  Execution execute(sg::Engine& engine) {
    sg::Comm::on_completion_cb([this](const auto& activity) {
      const auto found = operation_of_.find(&activity);
      if (found == operation_of_.end()) return;
      const std::uint32_t op = found->second;
      operation_of_.erase(found);
      varying_.remove(op);
      schedule_.finish(op, sg::Engine::get_clock());
      wake_at(sg::Engine::get_clock());
    });
    wake();
    engine.run();
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

  void communicate(std::uint32_t op) {
    sg::CommPtr comm = platform_.communication(op, input_.amount[op]);
    operation_of_.emplace(comm.get(), op);
    varying_.start(op, comm);
    // SimGrid touches a communication after its completion was reported; it must live on.
    comms_.push_back(std::move(comm));
  }

  // Makes SimGrid's loop call `wake` at that time.
  void wake_at(double time_s) {
    if (next_wake_ && *next_wake_ <= time_s) return;
    next_wake_ = time_s;
    simgrid::kernel::timer::Timer::set(time_s, [this, time_s] {
      if (next_wake_ == time_s) wake();  // else an earlier call took its place
    });
  }

  // All that happens at this moment besides completions.
  void wake() {
    next_wake_.reset();
    const double now = sg::Engine::get_clock();
    const std::vector<CapacityChange>& changes = resolved_.program.changes;
    for (; next_change_ < changes.size() && changes[next_change_].time_s <= now; ++next_change_) {
      varying_.set(changes[next_change_].link, changes[next_change_].capacity);
    }
    while (!due_.empty() && due_.top().time_s <= now) {
      const std::uint32_t op = due_.top().op;
      due_.pop();
      if (input_.amount[op] > 0.0) {
        communicate(op);
      } else {
        schedule_.finish(op, now);
      }
    }
    schedule_.settle(now, [&](std::uint32_t op) {
      if (resolved_.routes.delay_s[op] > 0.0) {
        due_.push({now + resolved_.routes.delay_s[op], op});
      } else {
        communicate(op);
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

  const ResolvedProgram& resolved_;
  const Platform& platform_;
  ScheduleInput input_;
  Schedule schedule_;
  VaryingCapacities varying_;
  std::size_t next_change_ = 0;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::optional<double> next_wake_;
  std::unordered_map<const void*, std::uint32_t> operation_of_;
  std::vector<sg::CommPtr> comms_;
};

Execution simulate(const ResolvedProgram& resolved, double precision_s) {
  std::vector<std::string> arguments{"coterie", "--log=root.thresh:critical"};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int argc = static_cast<int>(argv.size());
  sg::Engine engine(&argc, argv.data());
  sg::Engine::set_config("network/model", std::string("CM02"));
  sg::Engine::set_config("network/crosstraffic", false);
  sg::Engine::set_config("network/TCP-gamma", 1e30);
  sg::Engine::set_config(kPrecisionSetting, precision_s);
  const Platform platform(engine, resolved.program, resolved.routes);
  return Run(resolved, platform).execute(engine);
}

void append(std::string& bytes, const std::vector<double>& values) {
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
}

void extract(const std::string& bytes, std::size_t& position, std::vector<double>& values) {
  std::memcpy(values.data(), bytes.data() + position, values.size() * sizeof(double));
  position += values.size() * sizeof(double);
}

}  // namespace

Execution run_simgrid(const ResolvedProgram& resolved, const EngineOptions& options) {
  const Program& program = resolved.program;
  if (program.num_ops() == 0) return {};
  const double relative = options.relative_precision.value_or(kDefaultPrecision);
  // Exact means as fine as SimGrid's arithmetic carries: its times are doubles, and a precision
  // below their rounding would leave flows that never end.
  const double precision_s = std::max(relative, 1e-9) * resolved.bound.makespan_s;

  std::string bytes;
  try {
    bytes = run_in_child("simgrid", options.timeout_s.value_or(0.0), [&] {
      const Execution execution = simulate(resolved, precision_s);
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
