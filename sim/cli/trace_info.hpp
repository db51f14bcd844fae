#pragma once
// `coterie trace info`, apart from the other trace commands because of its tables.

#include <CLI/CLI.hpp>
#include <string>

#include "workloads/trace/moet.hpp"

namespace coterie {

// What a trace holds, in one line.
std::string trace_summary(const Trace& trace);
void add_trace_info(CLI::App& trace);

}  // namespace coterie
