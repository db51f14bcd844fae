#include "sim/program.hpp"

#include <stdexcept>

#include "core/error.hpp"

namespace coterie {

ProgramBuilder::ProgramBuilder() {
  program_.event_count.push_back(0);
  program_.signal_begin.push_back(0);
}

std::uint32_t ProgramBuilder::add_event() {
  program_.event_count.push_back(0);
  return static_cast<std::uint32_t>(program_.event_count.size() - 1);
}

namespace {

std::uint32_t append(Program& program, std::uint32_t src, std::uint32_t dst, double bytes,
                     double duration, std::uint32_t waits_for,
                     std::span<const std::uint32_t> signals) {
  if (waits_for >= program.event_count.size()) throw std::logic_error("unknown event");
  program.src.push_back(src);
  program.dst.push_back(dst);
  program.bytes.push_back(bytes);
  program.duration.push_back(duration);
  program.waits_for.push_back(waits_for);
  for (const std::uint32_t event : signals) {
    if (event == kStartEvent || event >= program.event_count.size()) {
      throw std::logic_error("an operation cannot signal this event");
    }
    program.signals.push_back(event);
    ++program.event_count[event];
  }
  program.signal_begin.push_back(static_cast<std::uint32_t>(program.signals.size()));
  return static_cast<std::uint32_t>(program.num_ops() - 1);
}

}  // namespace

std::uint32_t ProgramBuilder::add_compute(std::uint32_t gpu, double duration_s,
                                          std::uint32_t waits_for,
                                          std::span<const std::uint32_t> signals) {
  if (!(duration_s >= 0.0)) throw std::logic_error("a computation takes no negative time");
  return append(program_, gpu, gpu, 0.0, duration_s, waits_for, signals);
}

std::uint32_t ProgramBuilder::add_transfer(std::uint32_t src, std::uint32_t dst, double bytes,
                                           std::uint32_t waits_for,
                                           std::span<const std::uint32_t> signals) {
  if (src == dst) throw std::logic_error("a transfer joins two GPUs");
  if (!(bytes >= 0.0)) throw std::logic_error("a transfer has no negative size");
  return append(program_, src, dst, bytes, 0.0, waits_for, signals);
}

void ProgramBuilder::reserve(std::size_t num_ops, std::size_t num_signals) {
  program_.src.reserve(num_ops);
  program_.dst.reserve(num_ops);
  program_.bytes.reserve(num_ops);
  program_.duration.reserve(num_ops);
  program_.waits_for.reserve(num_ops);
  program_.signal_begin.reserve(num_ops + 1);
  program_.signals.reserve(num_signals);
}

Program ProgramBuilder::finish() && {
  for (const std::uint32_t event : program_.waits_for) {
    if (event != kStartEvent && program_.event_count[event] == 0) {
      throw std::logic_error("an operation waits for an event that nothing signals");
    }
  }
  return std::move(program_);
}

}  // namespace coterie
