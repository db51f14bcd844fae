#include "sim/step/changing_links.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "core/error.hpp"

namespace coterie {
namespace {

// What a link that has failed still carries of its bandwidth: what crosses it makes no progress.
constexpr double kFailedShare = 1e-6;

// The failed links that routes go around at a time.
std::vector<std::uint32_t> rerouted(const std::vector<Failure>& failures,
                                    const StepOptions& options, double time_s) {
  std::vector<std::uint32_t> links;
  for (const Failure& failure : failures) {
    if (options.reroute_after_s && failure.lasts_at(time_s) &&
        failure.rerouted_s(*options.reroute_after_s) <= time_s) {
      links.push_back(failure.link);
    }
  }
  return links;
}

// Networks with routes around links, each made once.
class Detours {
 public:
  explicit Detours(const Network& network) : network_(network) {}

  // Null where there is nothing to go around.
  std::shared_ptr<const Network> around(const std::vector<std::uint32_t>& links) {
    if (links.empty()) return nullptr;
    std::shared_ptr<const Network>& made = made_[links];
    if (!made) made = std::make_shared<const Network>(network_.cluster(), links);
    return made;
  }

 private:
  const Network& network_;
  std::map<std::vector<std::uint32_t>, std::shared_ptr<const Network>> made_;
};

}  // namespace

std::vector<CapacityChange> by_time(std::vector<CapacityChange> changes) {
  std::stable_sort(changes.begin(), changes.end(),
                   [](const auto& a, const auto& b) { return a.time_s < b.time_s; });
  return changes;
}

std::vector<Failure> failures_of(const std::vector<CapacityChange>& changes) {
  std::map<std::uint32_t, std::vector<Failure>> by_link;
  for (const CapacityChange& change : by_time(changes)) {
    std::vector<Failure>& of_link = by_link[change.link];
    const bool down = !of_link.empty() && std::isinf(of_link.back().until_s);
    if (down && change.capacity > 0.0) of_link.back().until_s = change.time_s;
    if (!down && change.capacity <= 0.0) of_link.push_back({change.link, change.time_s});
  }
  std::vector<Failure> out;
  for (const auto& [link, failures] : by_link) {
    out.insert(out.end(), failures.begin(), failures.end());
  }
  return out;
}

[[noreturn]] void time_out(double failed_at_s, const StepOptions& options, std::string_view what) {
  throw Error(
      ExitCode::kDeviceFailure,
      fmt::format("the step ends at {:g} s: {} stood still for {:g} s, which is the timeout",
                  failed_at_s + options.timeout_s, what, options.timeout_s));
}

std::vector<Epoch> epochs_of(const Network& network, const StepOptions& options) {
  const std::vector<CapacityChange> changes = by_time(options.changes);
  const std::vector<Failure> failures = failures_of(changes);
  std::vector<double> begins{0.0};
  for (const CapacityChange& change : changes) begins.push_back(change.time_s);
  for (const Failure& failure : failures) {
    if (!options.reroute_after_s) break;
    const double begin_s = failure.rerouted_s(*options.reroute_after_s);
    if (begin_s < failure.until_s) begins.push_back(begin_s);
  }
  std::sort(begins.begin(), begins.end());
  begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
  Detours detours(network);
  std::vector<Epoch> epochs;
  for (const double begin_s : begins) {
    std::map<std::uint32_t, double> capacity;
    for (const CapacityChange& change : changes) {
      if (change.time_s > begin_s) break;
      capacity[change.link] =
          std::max(change.capacity, kFailedShare * network.links()[change.link].bandwidth.value);
    }
    Epoch epoch{begin_s, options, {}, nullptr};
    epoch.options.changes.clear();
    for (const auto& [link, bandwidth] : capacity) {
      epoch.options.changes.push_back({0.0, link, bandwidth});
    }
    for (const Failure& failure : failures) {
      if (failure.lasts_at(begin_s)) epoch.failed.push_back(failure.link);
    }
    epoch.around = detours.around(rerouted(failures, options, begin_s));
    epochs.push_back(std::move(epoch));
  }
  epochs.push_back({std::numeric_limits<double>::infinity(), options, {}, nullptr});
  epochs.back().options.changes.clear();
  return epochs;
}

std::vector<CapacityChange> marked_links(const Network& network, const StepOptions& options) {
  std::map<std::uint32_t, std::vector<std::pair<double, double>>> histories;
  for (const CapacityChange& change : options.changes) {
    histories[change.link].emplace_back(
        change.time_s, change.capacity / network.links()[change.link].bandwidth.value);
  }
  std::map<std::vector<std::pair<double, double>>, double> marks;
  std::vector<CapacityChange> out;
  for (auto& [link, history] : histories) {
    history.emplace_back(-1.0, network.links()[link].bandwidth.value);
    const double mark =
        marks.try_emplace(history, -1.0 - static_cast<double>(marks.size())).first->second;
    out.push_back({0.0, link, mark});
  }
  return out;
}

RouteTimes::RouteTimes(const Network& network, const std::vector<Failure>& failures,
                       const StepOptions& options) {
  std::vector<double> times{0.0};
  if (options.reroute_after_s) {
    for (const Failure& failure : failures) {
      const double from_s = failure.rerouted_s(*options.reroute_after_s);
      if (from_s >= failure.until_s) continue;
      times.push_back(from_s);
      if (!std::isinf(failure.until_s)) times.push_back(failure.until_s);
    }
  }
  std::sort(times.begin(), times.end());
  times.erase(std::unique(times.begin(), times.end()), times.end());
  Detours detours(network);
  for (const double time_s : times) {
    const std::shared_ptr<const Network> own = detours.around(rerouted(failures, options, time_s));
    if (own) owned_.push_back(own);
    const Network* const at = own ? own.get() : &network;
    if (at != (all_.empty() ? nullptr : all_.back().network)) all_.push_back({time_s, at});
  }
}

}  // namespace coterie
