#pragma once
// Links that change while a step runs: which have failed when, the epochs between changes, and the networks
// whose routes go around failed links.

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "sim/engines/resolved.hpp"
#include "sim/step/step_times.hpp"

namespace coterie {

// A link without capacity, for a time.
struct Failure {
  std::uint32_t link = 0;
  double from_s = 0.0;
  double until_s = std::numeric_limits<double>::infinity();
  [[nodiscard]] bool lasts_at(double time_s) const { return from_s <= time_s && time_s < until_s; }
  // When routes go around it.
  [[nodiscard]] double rerouted_s(double after_s) const {
    return from_s == 0.0 ? 0.0 : from_s + after_s;
  }
};

std::vector<CapacityChange> by_time(std::vector<CapacityChange> changes);

// Of the changes, by link and time.
std::vector<Failure> failures_of(const std::vector<CapacityChange>& changes);

// Throws Error (a communication failure): `what` stood still for the timeout of the options.
[[noreturn]] void time_out(double failed_at_s, const StepOptions& options, std::string_view what);

// A time of the step in which no link and no route changes, from `begin_s` to the next one's.
struct Epoch {
  double begin_s = 0.0;
  StepOptions options;                    // whose changes, all at zero, are the links of this epoch
  std::vector<std::uint32_t> failed;      // links
  std::shared_ptr<const Network> around;  // with routes around failed links; null: as ever
};

// In order of time. The last one is that of whole links and never comes.
std::vector<Epoch> epochs_of(const Network& network, const StepOptions& options);

// For the comparison of cells: every changed link has a capacity of its own that stands for all that
// happens to it, so that only links with the same history are alike.
std::vector<CapacityChange> marked_links(const Network& network, const StepOptions& options);

// The networks whose routes hold one after the other, the first from the start on: around the links
// that have failed for so long that routes go around them.
class RouteTimes {
 public:
  RouteTimes(const Network& network, const std::vector<Failure>& failures,
             const StepOptions& options);
  [[nodiscard]] std::span<const LaterNetwork> all() const { return all_; }
  [[nodiscard]] const Network& first() const { return *all_.front().network; }
  [[nodiscard]] std::span<const LaterNetwork> later() const { return std::span(all_).subspan(1); }
  [[nodiscard]] double until_s(std::size_t i) const {
    return i + 1 < all_.size() ? all_[i + 1].from_s : std::numeric_limits<double>::infinity();
  }

 private:
  std::vector<LaterNetwork> all_;
  std::vector<std::shared_ptr<const Network>> owned_;
};

}  // namespace coterie
