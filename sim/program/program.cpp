#include "sim/program/program.hpp"

#include <algorithm>
#include <stdexcept>

namespace coterie {

ProgramBuilder::ProgramBuilder() {
  program_.event_count.push_back(0);
  program_.signal_begin.push_back(0);
  program_.use_begin.push_back(0);
  program_.rate_caps.push_back(std::numeric_limits<double>::infinity());
  program_.queue_places.push_back(kUnlimitedPlaces);
}

std::uint32_t ProgramBuilder::add_event() {
  program_.event_count.push_back(0);
  return static_cast<std::uint32_t>(program_.event_count.size() - 1);
}

std::uint32_t ProgramBuilder::add_queue(std::uint32_t places) {
  if (places == 0) throw std::logic_error("a queue without places never empties");
  program_.queue_places.push_back(places);
  return static_cast<std::uint32_t>(program_.queue_places.size() - 1);
}

std::uint32_t ProgramBuilder::add_rate_cap(double rate) {
  if (!(rate > 0.0)) throw std::logic_error("a rate cap is positive");
  // The last ones first: builders ask for the same few again and again.
  const auto& caps = program_.rate_caps;
  const auto found = std::find(caps.rbegin(), caps.rend(), rate);
  if (found != caps.rend()) return static_cast<std::uint32_t>(caps.rend() - found - 1);
  program_.rate_caps.push_back(rate);
  return static_cast<std::uint32_t>(caps.size() - 1);
}

std::uint32_t ProgramBuilder::add_resource(std::string name, double capacity) {
  if (!(capacity >= 0.0)) throw std::logic_error("a resource has no negative capacity");
  program_.resources.push_back({std::move(name), capacity});
  return static_cast<std::uint32_t>(program_.resources.size() - 1);
}

std::uint32_t ProgramBuilder::add(const Operation& operation) {
  Program& program = program_;
  if (!(operation.duration >= 0.0)) throw std::logic_error("an operation takes no negative time");
  if (!(operation.amount >= 0.0)) throw std::logic_error("an operation has no negative amount");
  if (operation.waits_for >= program.event_count.size()) throw std::logic_error("unknown event");
  if (operation.rate_cap >= program.rate_caps.size()) throw std::logic_error("unknown rate cap");
  if (operation.queue >= program.queue_places.size()) throw std::logic_error("unknown queue");
  program.src.push_back(operation.src);
  program.dst.push_back(operation.dst);
  program.duration.push_back(operation.duration);
  program.amount.push_back(operation.amount);
  program.rate_cap.push_back(operation.rate_cap);
  program.queue.push_back(operation.queue);
  program.waits_for.push_back(operation.waits_for);
  for (const std::uint32_t event : operation.signals) {
    if (event == kStartEvent || event >= program.event_count.size()) {
      throw std::logic_error("an operation cannot signal this event");
    }
    program.signals.push_back(event);
    ++program.event_count[event];
  }
  program.signal_begin.push_back(static_cast<std::uint32_t>(program.signals.size()));
  for (const std::uint32_t resource : operation.uses) {
    if (resource >= program.resources.size()) throw std::logic_error("unknown resource");
    program.uses.push_back(resource);
  }
  program.use_begin.push_back(static_cast<std::uint32_t>(program.uses.size()));
  return static_cast<std::uint32_t>(program.num_ops() - 1);
}

std::uint32_t ProgramBuilder::add_compute(std::uint32_t gpu, double duration_s,
                                          std::uint32_t waits_for,
                                          std::span<const std::uint32_t> signals) {
  return add(
      {.src = gpu, .dst = gpu, .duration = duration_s, .waits_for = waits_for, .signals = signals});
}

std::uint32_t ProgramBuilder::add_transfer(std::uint32_t src, std::uint32_t dst, double bytes,
                                           std::uint32_t waits_for,
                                           std::span<const std::uint32_t> signals) {
  if (src == dst) throw std::logic_error("a transfer joins two GPUs");
  return add({.src = src, .dst = dst, .amount = bytes, .waits_for = waits_for, .signals = signals});
}

void ProgramBuilder::add_hold(const Hold& hold) {
  if (hold.resource >= program_.resources.size()) throw std::logic_error("unknown resource");
  if (hold.begin_op >= program_.num_ops()) throw std::logic_error("unknown operation");
  if (hold.end_event == kStartEvent || hold.end_event >= program_.event_count.size()) {
    throw std::logic_error("a hold ends with an event of its own");
  }
  if (!(hold.amount >= 0.0) || hold.amount > program_.resources[hold.resource].capacity) {
    throw std::logic_error("a hold takes at most the whole resource");
  }
  program_.holds.push_back(hold);
}

void ProgramBuilder::add_change(const CapacityChange& change) {
  if (!(change.time_s >= 0.0) || !(change.capacity >= 0.0)) {
    throw std::logic_error("capacities change at a time, to at least zero");
  }
  program_.changes.push_back(change);
}

void ProgramBuilder::reserve(std::size_t num_ops, std::size_t num_signals) {
  for (auto* column :
       {&program_.src, &program_.dst, &program_.rate_cap, &program_.queue, &program_.waits_for}) {
    column->reserve(num_ops);
  }
  program_.duration.reserve(num_ops);
  program_.amount.reserve(num_ops);
  program_.signal_begin.reserve(num_ops + 1);
  program_.use_begin.reserve(num_ops + 1);
  program_.signals.reserve(num_signals);
}

Program ProgramBuilder::finish() && {
  const auto signalled = [&](std::uint32_t event) {
    return event == kStartEvent || program_.event_count[event] > 0;
  };
  if (!std::all_of(program_.waits_for.begin(), program_.waits_for.end(), signalled)) {
    throw std::logic_error("an operation waits for an event that nothing signals");
  }
  for (const Hold& hold : program_.holds) {
    if (!signalled(hold.end_event)) {
      throw std::logic_error("a hold ends with an event that nothing signals");
    }
  }
  std::stable_sort(program_.holds.begin(), program_.holds.end(),
                   [](const Hold& a, const Hold& b) { return a.begin_op < b.begin_op; });
  std::stable_sort(
      program_.changes.begin(), program_.changes.end(),
      [](const CapacityChange& a, const CapacityChange& b) { return a.time_s < b.time_s; });
  return std::move(program_);
}

}  // namespace coterie
