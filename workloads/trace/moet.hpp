#pragma once
// The `.moet` trace file: a streaming sequence of length-delimited Protobuf messages (trace.proto).
// See workloads/TRACES.md for the layout.

#include <filesystem>
#include <functional>
#include <variant>

#include "workloads/trace/routing.hpp"

namespace coterie {

using Trace = std::variant<Routing, ExpertCounts>;

// Throws InputError for unreadable, truncated, corrupted or foreign files.
Trace read_moet(const std::filesystem::path& path);
void write_moet(const std::filesystem::path& path, const Trace& trace);

// `read_moet` for callers that need tokens: refuses count-only traces.
Routing read_routing(const std::filesystem::path& path);

}  // namespace coterie
