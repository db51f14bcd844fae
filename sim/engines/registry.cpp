// The engines by name. README.md has the recipe for a new one.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "core/error.hpp"
#include "sim/engines/engine.hpp"

namespace coterie {
namespace {

struct Engine {
  const char* name;
  Execution (*run)(const ResolvedProgram&, const EngineOptions&);
};

constexpr std::array kEngines{
    Engine{"simgrid", &run_simgrid},
    Engine{"flow", &run_flow},
    Engine{"bound", &run_bound},
};

}  // namespace

std::vector<std::string> engine_names() {
  std::vector<std::string> names;
  for (const Engine& engine : kEngines) names.emplace_back(engine.name);
  return names;
}

Execution run_engine(std::string_view name, const ResolvedProgram& program,
                     const EngineOptions& options) {
  for (const Engine& engine : kEngines) {
    if (engine.name == name) return engine.run(program, options);
  }
  throw InputError("engine", fmt::format("\"{}\"", name),
                   fmt::format("one of {}", fmt::join(engine_names(), ", ")));
}

}  // namespace coterie
