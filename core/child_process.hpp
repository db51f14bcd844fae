#pragma once
// Work in a process of its own: SimGrid keeps global state (a second simulation in one process
// continues the first one's clock), and its failures end the process.

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace coterie {

// A forked child that computes bytes. A program without other threads may have any number of them
// at once; see wait_for_any.
class ChildProcess {
 public:
  // Starts `body` in a child. `what` names the work in error messages. A child that runs longer
  // than `timeout_s` (0: no limit) is ended. Throws Error with ExitCode::kInternalError if none can
  // be started.
  ChildProcess(std::string what, double timeout_s, const std::function<std::string()>& body);
  ~ChildProcess();  // ends a child that still runs
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Takes over what the child has written, without waiting. True once it has ended or overstayed.
  bool done();
  // What `body` returned. An exception of the child is rethrown here as an Error with the same exit
  // code and sentence; a crash, an abort or a child that overstayed becomes an Error with
  // ExitCode::kInternalError. Once only, after done().
  std::string result();

  [[nodiscard]] int descriptor() const { return read_end_; }
  // Milliseconds until the child has overstayed; -1: no limit.
  [[nodiscard]] int milliseconds_left() const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  double timeout_s_;
  Clock::time_point start_ = Clock::now();
  int read_end_ = -1;
  int log_ = -1;  // what the child prints
  int pid_ = -1;  // -1 once it was waited for
  bool closed_ = false;
  std::string bytes_;
};

// Sleeps until one of the children may be done.
void wait_for_any(const std::vector<const ChildProcess*>& children);

// What a number of children do; items are numbered from zero.
struct ChildWork {
  std::function<std::string(std::size_t)> name;  // of an item, for messages
  std::function<std::string(std::size_t)> body;  // in the child: the item's result
  // In the parent, as each ends, in no particular order: takes child.result(), which may throw.
  std::function<void(std::size_t, ChildProcess&)> done;
};

// Does the items 0 ... count - 1, at most `num_jobs` at once, each in a child of its own. The calling
// thread forks them all and starts no other: a fork of a program with threads copies locks that they
// hold. What `done` throws ends the children that still run and is passed on.
void run_in_children(unsigned num_jobs, std::size_t count, double timeout_s, const ChildWork& work);

// Runs `body` in a child, waits for it and returns its result(). May be called from several threads
// at once as far as the allocator supports forks of programs with threads (glibc's does, that of
// the address sanitizer does not).
std::string run_in_child(const std::string& what, double timeout_s,
                         const std::function<std::string()>& body);

}  // namespace coterie
