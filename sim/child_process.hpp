#pragma once
// Work in a process of its own: SimGrid keeps global state (a second simulation in one process
// continues the first one's clock), and its failures end the process.

#include <functional>
#include <string>

namespace coterie {

// Runs `body` in a forked child and returns the bytes it returns. `what` names the work in error
// messages. An exception of the child is rethrown here as an Error with the same exit code and
// sentence; a crash, an abort or a child that runs longer than `timeout_s` (0: no limit) becomes an
// Error with ExitCode::kInternalError. May be called from several threads at once.
std::string run_in_child(const std::string& what, double timeout_s,
                         const std::function<std::string()>& body);

}  // namespace coterie
