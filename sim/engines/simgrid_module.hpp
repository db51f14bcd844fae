#pragma once
// What the engine `simgrid` asks of SimGrid, free of SimGrid's own headers. The implementation is a
// module of its own (simgrid_module.cpp), loaded when the first program is simulated: SimGrid and
// what it needs take longer to load than most commands take altogether. It is also the one place
// that knows how SimGrid's interface changed between 3.32 and 4.

#include <cstdint>
#include <functional>
#include <span>

namespace coterie {

struct SimGridSettings {
  // Lazy updates: completions closer than this, in seconds, happen at once.
  double precision_s = 0.0;
  // Above zero: full updates instead, where a communication ends once no more than this is left of
  // it, bytes.
  double completion_bytes = 0.0;
};

// One simulation; SimGrid allows one per process. Things are numbered in the order of their making.
// Nothing of it throws but what the callbacks throw.
class SimGrid {
 public:
  virtual ~SimGrid() = default;

  virtual std::uint32_t add_host() = 0;
  // A link without latency. One that is not `shared` gives every communication its whole bandwidth.
  virtual std::uint32_t add_link(double bandwidth, bool shared) = 0;
  virtual void add_route(std::uint32_t src, std::uint32_t dst,
                         std::span<const std::uint32_t> links) = 0;
  virtual void seal() = 0;  // no more of these

  virtual void set_bandwidth(std::uint32_t link, double bandwidth) = 0;
  // Starts a communication; `id` names it in on_completion.
  virtual void start(std::uint32_t src, std::uint32_t dst, std::uint64_t num_bytes,
                     std::uint32_t id) = 0;
  // Calls `f` at that time.
  virtual void at(double time_s, std::function<void()> f) = 0;
  [[nodiscard]] virtual double now_s() const = 0;
  virtual void run(const std::function<void(std::uint32_t)>& on_completion) = 0;
};

// The module's one symbol, "coterie_simgrid_start": makes the process's simulation, which lives as
// long as the process.
using StartSimGrid = SimGrid* (*)(const SimGridSettings&);

}  // namespace coterie
