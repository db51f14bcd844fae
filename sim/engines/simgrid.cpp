// The reference predictor: every transfer is a SimGrid communication over the modelled links.
//
// How the semantics of program.hpp are put to SimGrid:
//  - Model CM02 without cross-traffic and without the TCP window bound, so that a communication
//    gets its max-min fair share of the links of its route and nothing else.
//  - CM02 weighs a communication's share by its route's latency. Links therefore have no latency in
//    SimGrid; alpha and route latency are a silent time before the communication starts.
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
#include <unordered_map>

#include "core/child_process.hpp"
#include "core/error.hpp"
#include "sim/engines/engine.hpp"
#include "sim/engines/resolved.hpp"

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

// The GPUs of the program as hosts, the links they use, one explicit route per pair in use.
//
// SimGrid 3.32 ignores Comm::set_rate between hosts. A rate cap is a link of the kind that is never
// shared (FATPIPE) at the head of the route; a GPU is one source host for every cap it sends under.
class Platform {
 public:
  Platform(sg::Engine& engine, const Program& program, const Routes& routes)
      : zone_(root_zone(engine)),
        capacity_(routes.capacity),
        links_(routes.capacity.size(), nullptr),
        source_(program.num_ops(), nullptr),
        destination_(program.num_ops(), nullptr) {
    std::set<std::pair<sg::Host*, sg::Host*>> routed;
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      // Also for computations: SimGrid refuses a platform without hosts.
      destination_[op] = host(program.dst[op], kUncapped);
      if (!program.flows(op)) continue;
      source_[op] = host(program.src[op], routes.rate_cap[op]);
      if (!routed.emplace(source_[op], destination_[op]).second) continue;
      std::vector<sg::LinkInRoute> route;
      if (routes.rate_cap[op] != kUncapped) {
        route.emplace_back(cap(program.src[op], routes.rate_cap[op]));
      }
      for (const std::uint32_t idx : routes.of(op)) route.emplace_back(link(idx));
      add_route(zone_, source_[op], destination_[op], route);
    }
    zone_->seal();
  }

  // Of a transfer.
  [[nodiscard]] sg::Host* source(std::size_t op) const { return source_[op]; }
  [[nodiscard]] sg::Host* destination(std::size_t op) const { return destination_[op]; }

 private:
  static constexpr double kUncapped = std::numeric_limits<double>::infinity();

  sg::Host* host(std::uint32_t gpu, double rate_cap) {
    sg::Host*& entry = hosts_[{gpu, rate_cap}];
    if (entry == nullptr) entry = add_host(zone_, fmt::format("{} {}", gpu, rate_cap));
    return entry;
  }
  sg::Link* link(std::uint32_t idx) {
    if (links_[idx] == nullptr) {
      links_[idx] = add_link(zone_, std::to_string(idx), capacity_[idx]);
      links_[idx]->set_latency(0.0);
      links_[idx]->seal();
    }
    return links_[idx];
  }
  // One per GPU, so that transfers that share nothing stay independent in SimGrid's solver.
  sg::Link* cap(std::uint32_t gpu, double rate) {
    sg::Link*& entry = caps_[{gpu, rate}];
    if (entry == nullptr) {
      entry = add_link(zone_, fmt::format("cap {} {}", gpu, rate), rate);
      entry->set_latency(0.0);
      entry->set_sharing_policy(sg::Link::SharingPolicy::FATPIPE);
      entry->seal();
    }
    return entry;
  }

  sg::NetZone* zone_;
  std::span<const double> capacity_;
  std::vector<sg::Link*> links_;  // null: not in use
  std::map<std::pair<std::uint32_t, double>, sg::Link*> caps_;
  std::map<std::pair<std::uint32_t, double>, sg::Host*> hosts_;
  std::vector<sg::Host*> source_, destination_;  // [num_ops]
};

// Drives SimGrid through one program.
//
// Everything that happens at one instant is collected first and settled then, so that ties are
// broken by operation index and not by the order in which SimGrid reports completions.
class Run {
 public:
  Run(const Program& program, const Routes& routes, const Platform& platform)
      : program_(program),
        routes_(routes),
        platform_(platform),
        waiters_(waiters_of(program.waits_for, program.event_count.size())),
        remaining_(program.event_count),
        queues_(program.queue_places.size()),
        in_flight_(program.queue_places.size(), 0) {
    execution_.start_s.assign(program.num_ops(), 0.0);
    execution_.finish_s.assign(program.num_ops(), 0.0);
    comms_.reserve(program.num_ops());
  }

  Execution execute(sg::Engine& engine) {
    sg::Comm::on_completion_cb([this](const auto& activity) {
      const auto found = operation_of_.find(&activity);
      if (found == operation_of_.end()) return;
      const std::uint32_t op = found->second;
      operation_of_.erase(found);
      finish(op);
      wake_at(sg::Engine::get_clock());
    });
    for (const std::uint32_t op : waiters_.of(kStartEvent)) ready_.push_back(op);
    settle();
    engine.run();
    if (num_finished_ != program_.num_ops()) {
      throw Error(ExitCode::kInternalError,
                  fmt::format("simgrid: {} of {} operations never became ready",
                              program_.num_ops() - num_finished_, program_.num_ops()));
    }
    return std::move(execution_);
  }

 private:
  // What is due at a time that we know: the end of a computation or of a transfer's silence.
  struct Due {
    double time_s;
    std::uint32_t op;
    bool operator>(const Due& other) const {
      return time_s != other.time_s ? time_s > other.time_s : op > other.op;
    }
  };

  void finish(std::uint32_t op) {
    execution_.finish_s[op] = sg::Engine::get_clock();
    execution_.makespan_s = std::max(execution_.makespan_s, execution_.finish_s[op]);
    ++num_finished_;
    if (const std::uint32_t queue = program_.queue[op]; queue != kFreeQueue) {
      --in_flight_[queue];
      touched_.push_back(queue);
    }
    for (std::uint32_t i = program_.signal_begin[op]; i < program_.signal_begin[op + 1]; ++i) {
      const std::uint32_t event = program_.signals[i];
      if (--remaining_[event] > 0) continue;
      const auto woken = waiters_.of(event);
      ready_.insert(ready_.end(), woken.begin(), woken.end());
    }
  }

  // Starts what has become ready. Computations first, because those of no length may free more.
  void settle() {
    const double now = sg::Engine::get_clock();
    std::vector<std::uint32_t> sends;
    while (!ready_.empty()) {
      const std::vector<std::uint32_t> ready = std::exchange(ready_, {});
      for (const std::uint32_t op : ready) {
        if (program_.is_transfer(op) || program_.queue[op] != kFreeQueue) {
          sends.push_back(op);
          continue;
        }
        execution_.start_s[op] = now;
        if (routes_.delay_s[op] > 0.0) {
          due_.push({now + routes_.delay_s[op], op});
        } else {
          finish(op);
        }
      }
    }
    std::sort(sends.begin(), sends.end());
    for (const std::uint32_t op : sends) {
      queues_[program_.queue[op]].push(op);
      touched_.push_back(program_.queue[op]);
    }
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    for (const std::uint32_t queue : touched_) {
      while (in_flight_[queue] < program_.queue_places[queue] && !queues_[queue].empty()) {
        const std::uint32_t op = queues_[queue].front();
        queues_[queue].pop();
        ++in_flight_[queue];
        execution_.start_s[op] = now;
        if (routes_.delay_s[op] > 0.0 || program_.amount[op] <= 0.0) {
          due_.push({now + routes_.delay_s[op], op});
        } else {
          communicate(op);
        }
      }
    }
    touched_.clear();
    if (!due_.empty()) wake_at(due_.top().time_s);
  }

  void communicate(std::uint32_t op) {
    sg::CommPtr comm = sg::Comm::sendto_init(platform_.source(op), platform_.destination(op));
    comm->set_payload_size(static_cast<std::uint64_t>(std::llround(program_.amount[op])));
    operation_of_.emplace(comm.get(), op);
    comm->start();
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

  void wake() {
    next_wake_.reset();
    const double now = sg::Engine::get_clock();
    while (!due_.empty() && due_.top().time_s <= now) {
      const std::uint32_t op = due_.top().op;
      due_.pop();
      if (program_.flows(op)) {
        communicate(op);
      } else {
        finish(op);
      }
    }
    settle();
  }

  const Program& program_;
  const Routes& routes_;
  const Platform& platform_;
  Waiters waiters_;
  std::vector<std::uint32_t> remaining_;  // [num_events] operations each event still waits for
  std::vector<std::queue<std::uint32_t>> queues_;
  std::vector<std::uint32_t> in_flight_;  // [num_queues]
  std::vector<std::uint32_t> ready_;      // became ready at this instant
  std::vector<std::uint32_t> touched_;    // queues that may start a send at this instant
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::optional<double> next_wake_;
  std::unordered_map<const void*, std::uint32_t> operation_of_;
  std::vector<sg::CommPtr> comms_;
  std::size_t num_finished_ = 0;
  Execution execution_;
};

Execution simulate(const Program& program, const Routes& routes, double precision_s) {
  std::vector<std::string> arguments{"coterie", "--log=root.thresh:critical"};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int argc = static_cast<int>(argv.size());
  sg::Engine engine(&argc, argv.data());
  sg::Engine::set_config("network/model", std::string("CM02"));
  sg::Engine::set_config("network/crosstraffic", false);
  sg::Engine::set_config("network/TCP-gamma", 1e30);
  sg::Engine::set_config(kPrecisionSetting, precision_s);
  const Platform platform(engine, program, routes);
  return Run(program, routes, platform).execute(engine);
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

  const std::string bytes = run_in_child("simgrid", options.timeout_s.value_or(0.0), [&] {
    const Execution execution = simulate(program, resolved.routes, precision_s);
    std::string out;
    out.reserve((2 * program.num_ops() + 1) * sizeof(double));
    append(out, execution.start_s);
    append(out, execution.finish_s);
    append(out, {execution.makespan_s});
    return out;
  });

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
