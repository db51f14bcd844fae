// The engines by name. A new one: its function in program.hpp, its file here, its line below.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "core/error.hpp"
#include "sim/program/program.hpp"

namespace coterie {
namespace {

struct Engine {
  const char* name;
  Execution (*run)(const Program&, const Network&, const EngineOptions&);
};

constexpr std::array kEngines{
    Engine{"simgrid", &run_simgrid},
    Engine{"flow", &run_flow},
    Engine{"bound", [](const Program& program, const Network& network,
                       const EngineOptions&) { return run_bound(program, network); }},
};

}  // namespace

std::vector<std::string> engine_names() {
  std::vector<std::string> names;
  for (const Engine& engine : kEngines) names.emplace_back(engine.name);
  return names;
}

Execution run_engine(std::string_view name, const Program& program, const Network& network,
                     const EngineOptions& options) {
  for (const Engine& engine : kEngines) {
    if (engine.name == name) return engine.run(program, network, options);
  }
  throw InputError("engine", fmt::format("'{}'", name),
                   fmt::format("one of {}", fmt::join(engine_names(), ", ")));
}

}  // namespace coterie
