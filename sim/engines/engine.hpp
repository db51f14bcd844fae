#pragma once
// The engines: what executes a program. Each is one file and one line of the registry, from which
// every list of their names (help, errors, checks) is made.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sim/engines/resolved.hpp"
#include "sim/program/program.hpp"

namespace coterie {

struct EngineOptions {
  // simgrid: completions closer than this share of the bound happen at once (0: as exact as
  // SimGrid's arithmetic allows). flow: width of a completion batch relative to the bound. Absent:
  // the engine's documented default.
  std::optional<double> relative_precision{};
  unsigned num_threads = 1;
  std::optional<double> timeout_s{};  // simgrid: its process is stopped after this time
};

// All are deterministic. They throw InputError for programs whose numbers they cannot work with,
// Error where they fail. `simgrid` runs in a child process of its own.
Execution run_bound(const ResolvedProgram& program, const EngineOptions& options = {});
Execution run_simgrid(const ResolvedProgram& program, const EngineOptions& options);
Execution run_flow(const ResolvedProgram& program, const EngineOptions& options);

std::vector<std::string> engine_names();
// The version of SimGrid that the engine was built with, like 3.32.
std::string simgrid_version();
// Throws InputError for a name that no engine has.
Execution run_engine(std::string_view engine, const ResolvedProgram& program,
                     const EngineOptions& options);

}  // namespace coterie
