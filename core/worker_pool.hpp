#pragma once
// Many pieces of work in a few processes that live on: what one process per piece would cost in
// forks, and what a piece leaves in memory for the next, is saved, while a piece that crashes or
// overstays still harms no other.

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "core/error.hpp"

namespace coterie {

// What became of an item.
class WorkResult {
 public:
  explicit WorkResult(std::string bytes) : bytes_(std::move(bytes)) {}
  explicit WorkResult(Error error) : error_(std::move(error)) {}
  // What the body returned. Throws what it threw, as an Error with the same exit code and sentence;
  // a crash or a worker that overstayed is an Error with ExitCode::kInternalError.
  std::string take() {
    if (error_) throw Error(*error_);
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
  std::optional<Error> error_;
};

// Items are numbered from zero.
struct PoolWork {
  std::function<std::string(std::size_t)> name;  // of an item, for messages
  // In a worker: the item's result. Must not depend on the items that the worker did before.
  std::function<std::string(std::size_t)> body;
  // In the calling process, for each item once, in no particular order.
  std::function<void(std::size_t, WorkResult)> done;
  // In the calling process, after one or more calls of `done`, before it waits again.
  std::function<void()> settle = [] {};
};

// Does the items 0 ... count - 1 in at most `num_jobs` worker processes, each forked from the calling
// process, which must have no other threads. A worker that takes longer than `timeout_s` (0: no
// limit) for an item is ended; a worker that ended is replaced and the items that it had not begun
// are given to others. Short items are handed out several at a time. What `done` or `settle` throws
// ends the workers and is passed on.
void run_in_workers(unsigned num_jobs, std::size_t count, double timeout_s, const PoolWork& work);

}  // namespace coterie
