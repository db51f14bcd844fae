#pragma once
// How a child process tells its parent what became of its work. Only core's own process code
// includes this file.

#include <functional>
#include <string>
#include <string_view>

#include "core/error.hpp"

namespace coterie {

// Writes all bytes to a descriptor; false if that fails.
bool write_all(int fd, std::string_view bytes);

// In the child: what `body` returned or threw, as one message.
std::string child_message(const std::function<std::string()>& body);

// In the parent: what `body` returned. Throws what it threw, as an Error.
std::string child_result(std::string message);

// In the child, once: it must not outlive an interrupted parent, and what a library prints about a
// failure goes to `log`, for the one sentence that the user gets.
void settle_in_child(int parent, int log);

// Why a child ended without a message. `status` is that of waitpid.
Error child_ended(const std::string& what, int status, int log);
Error child_overstayed(const std::string& what, double timeout_s);

// waitpid without interruptions.
int wait_for(int pid);

}  // namespace coterie
