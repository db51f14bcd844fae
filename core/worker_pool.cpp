#include "core/worker_pool.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/child_message.hpp"

namespace coterie {
namespace {

using Clock = std::chrono::steady_clock;

// A worker gets as many items ahead as it needs for this time, so that it need not wait for the
// caller, who may be waiting for a disk.
constexpr double kAheadSeconds = 0.02;
constexpr std::size_t kMostAhead = 64;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// What precedes a result's message.
struct Header {
  std::uint64_t num_bytes = 0;
  double seconds = 0.0;  // that the item took
};

bool read_all(int fd, void* bytes, std::size_t count) {
  auto* next = static_cast<char*>(bytes);
  while (count > 0) {
    const ssize_t step = ::read(fd, next, count);
    if (step < 0 && errno == EINTR) continue;
    if (step <= 0) return false;
    next += step;
    count -= static_cast<std::size_t>(step);
  }
  return true;
}

[[noreturn]] void serve(int socket, int log, int parent, const PoolWork& work) {
  settle_in_child(parent, log);
  std::uint64_t item = 0;
  while (read_all(socket, &item, sizeof item)) {
    // What earlier items printed says nothing of this one.
    std::fflush(stdout);
    (void)::lseek(log, 0, SEEK_SET);
    if (::ftruncate(log, 0) != 0) ::_exit(1);
    const Clock::time_point begin = Clock::now();
    const std::string message = child_message([&] { return work.body(item); });
    const Header header{message.size(), seconds_since(begin)};
    std::string frame(reinterpret_cast<const char*>(&header), sizeof header);
    frame += message;
    if (!write_all(socket, frame)) ::_exit(1);
  }
  // No destructors of the parent's objects, no flushing of its buffers.
  ::_exit(0);
}

// A process, and what it was given and has not answered, in that order: it works on the first.
class Worker {
 public:
  explicit Worker(const PoolWork& work) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) fail("open a socket");
    log_ = ::memfd_create("coterie-worker", MFD_CLOEXEC);
    socket_ = ends[0];
    const int parent = ::getpid();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(ends[0]);
      serve(ends[1], log_, parent, work);
    }
    const int reason = errno;
    ::close(ends[1]);
    if (pid_ < 0) {
      close_all();
      errno = reason;
      fail("start a process");
    }
  }
  ~Worker() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      wait_for(pid_);
    }
    close_all();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void give(std::uint64_t item) {
    if (items_.empty()) begin_ = Clock::now();
    items_.push_back(item);
    // A worker that is gone is noticed when its answer is awaited.
    (void)::send(socket_, &item, sizeof item, MSG_NOSIGNAL);
  }

  // Takes over what it has written, without waiting; true at its end.
  bool closed() {
    char buffer[1 << 16];
    for (;;) {
      const ssize_t count = ::recv(socket_, buffer, sizeof buffer, MSG_DONTWAIT);
      if (count > 0) {
        received_.append(buffer, static_cast<std::size_t>(count));
      } else if (count == 0 || (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)) {
        return true;
      } else if (errno != EINTR) {
        return false;
      }
    }
  }
  struct Answer {
    std::uint64_t item;
    double seconds;
    std::string message;
  };
  std::optional<Answer> answer() {
    Header header;
    if (received_.size() < sizeof header) return std::nullopt;
    std::memcpy(&header, received_.data(), sizeof header);
    if (received_.size() < sizeof header + header.num_bytes) return std::nullopt;
    Answer out{items_.front(), header.seconds, received_.substr(sizeof header, header.num_bytes)};
    received_.erase(0, sizeof header + header.num_bytes);
    items_.pop_front();
    begin_ = Clock::now();
    return out;
  }

  // Ends the worker; the error of the item that it worked on.
  Error end(const std::string& name) {
    const int status = wait_for(std::exchange(pid_, -1));
    return child_ended(name, status, log_);
  }

  [[nodiscard]] int socket() const { return socket_; }
  [[nodiscard]] const std::deque<std::uint64_t>& items() const { return items_; }
  [[nodiscard]] double seconds_left(double timeout_s) const {
    return timeout_s - seconds_since(begin_);
  }

 private:
  [[noreturn]] static void fail(const char* what) {
    throw Error(ExitCode::kInternalError,
                fmt::format("workers: cannot {}: {}", what, std::strerror(errno)));
  }
  void close_all() const {
    if (socket_ >= 0) ::close(socket_);
    if (log_ >= 0) ::close(log_);
  }

  int socket_ = -1;
  int log_ = -1;  // what the worker prints
  int pid_ = -1;  // -1 once it was waited for
  std::deque<std::uint64_t> items_;
  std::string received_;
  Clock::time_point begin_;  // of the first of items_
};

class Pool {
 public:
  Pool(unsigned num_jobs, std::size_t count, double timeout_s, const PoolWork& work)
      : num_jobs_(std::max(1U, num_jobs)), timeout_s_(timeout_s), work_(work) {
    for (std::size_t item = 0; item < count; ++item) pending_.push_back(item);
  }

  void run() {
    while (!pending_.empty() || any_busy()) {
      hand_out();
      wait();
      bool any = false;
      for (std::unique_ptr<Worker>& worker : workers_) any = collect(worker) || any;
      std::erase(workers_, nullptr);
      if (any) work_.settle();
    }
  }

 private:
  [[nodiscard]] bool any_busy() const {
    return std::any_of(workers_.begin(), workers_.end(),
                       [](const auto& worker) { return !worker->items().empty(); });
  }

  // Items that a worker may have at once.
  [[nodiscard]] std::size_t depth() const {
    if (!mean_s_) return 1;
    return static_cast<std::size_t>(
        std::clamp(kAheadSeconds / std::max(*mean_s_, 1e-9), 1.0, double{kMostAhead}));
  }

  void hand_out() {
    while (workers_.size() < std::min<std::size_t>(num_jobs_, pending_.size() + workers_.size())) {
      workers_.push_back(std::make_unique<Worker>(work_));
      give_next(*workers_.back());
    }
    const std::size_t most = depth();
    for (std::size_t share = 1; share <= most; ++share) {
      for (const auto& worker : workers_) {
        if (pending_.empty()) return;
        if (worker->items().size() < share) give_next(*worker);
      }
    }
  }
  void give_next(Worker& worker) {
    if (pending_.empty()) return;
    worker.give(pending_.front());
    pending_.pop_front();
  }

  // Until a worker says something or has overstayed.
  void wait() const {
    std::vector<pollfd> pollers;
    double left_s = 1e6;
    for (const auto& worker : workers_) {
      pollers.push_back({worker->socket(), POLLIN, 0});
      if (!worker->items().empty()) left_s = std::min(left_s, worker->seconds_left(timeout_s_));
    }
    // One more, so that it has overstayed when the sleep is over.
    const int wait_ms = timeout_s_ > 0.0 ? static_cast<int>(std::max(0.0, left_s) * 1e3) + 1 : -1;
    (void)::poll(pollers.data(), pollers.size(), wait_ms);  // interrupted: looks and returns
  }

  // Takes the worker's answers. One that ended, or overstayed, is removed. True if items are done.
  bool collect(std::unique_ptr<Worker>& worker) {
    const bool closed = worker->closed();
    bool any = false;
    while (auto answer = worker->answer()) {
      mean_s_ = mean_s_ ? 0.75 * *mean_s_ + 0.25 * answer->seconds : answer->seconds;
      work_.done(answer->item, result_of(std::move(answer->message)));
      any = true;
    }
    const bool busy = !worker->items().empty();
    const bool late = busy && timeout_s_ > 0.0 && worker->seconds_left(timeout_s_) <= 0.0;
    if (!closed && !late) return any;
    if (busy) {
      const std::uint64_t item = worker->items().front();
      const std::string name = work_.name(item);
      // What it had not begun goes back to where it was taken from.
      pending_.insert(pending_.begin(), worker->items().begin() + 1, worker->items().end());
      work_.done(item, WorkResult(closed ? worker->end(name) : child_overstayed(name, timeout_s_)));
    }
    worker.reset();
    return busy || any;
  }

  static WorkResult result_of(std::string message) {
    try {
      return WorkResult(child_result(std::move(message)));
    } catch (const Error& error) {
      return WorkResult(error);
    }
  }

  unsigned num_jobs_;
  double timeout_s_;
  const PoolWork& work_;
  std::deque<std::uint64_t> pending_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::optional<double> mean_s_;  // of the latest items
};

}  // namespace

void run_in_workers(unsigned num_jobs, std::size_t count, double timeout_s, const PoolWork& work) {
  Pool(num_jobs, count, timeout_s, work).run();
}

}  // namespace coterie
