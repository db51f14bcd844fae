#pragma once
// A rank's side of its group: the calls of the main thread, and the I/O thread that keeps the
// connection to the hub, sends heartbeats and ends the process where the main thread cannot.

#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/control/channel.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"
#include "runtime/control/group_protocol.hpp"

namespace coterie {

// Wakes a poll() from another thread.
class Wakeup {
 public:
  Wakeup() : event_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  void signal() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(event_.get(), &one, sizeof one);
  }
  void clear() const {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto ignored = ::read(event_.get(), &count, sizeof count);
  }
  [[nodiscard]] int fd() const { return event_.get(); }

 private:
  Descriptor event_;
};

// Its calls are those of ControlGroup, for one rank.
class GroupClient {
 public:
  GroupClient(const RankEnvironment& environment, GroupOptions options)
      : environment_(environment), options_(std::move(options)) {}
  ~GroupClient();
  GroupClient(const GroupClient&) = delete;
  GroupClient& operator=(const GroupClient&) = delete;

  [[nodiscard]] const RankEnvironment& environment() const { return environment_; }
  [[nodiscard]] const GroupOptions& options() const { return options_; }

  // Connects to the hub and returns once all ranks have joined.
  void join(std::uint16_t port);
  // With `watched` the I/O thread asks for the verdict should the stage last longer than step_s.
  void enter_stage(std::string stage, bool watched);
  void check() const;
  std::vector<std::string> exchange(const std::string& name,
                                    const std::vector<std::string>& to_each);
  [[noreturn]] void report_stuck(double waited_s);
  void fail(const std::string& sentence, ExitCode code);
  void say_goodbye();

 private:
  template <class Ready>
  void wait(const std::string& what, double deadline_s, Ready ready);
  void throw_if_failed() const;
  void loop();
  bool move_outbox();
  void pump();
  void set_failure(Failure failure);
  void post(std::uint32_t type, std::string body);

  const RankEnvironment environment_;
  const GroupOptions options_;
  std::unique_ptr<Channel> channel_;  // used by the I/O thread alone once it runs
  Wakeup wakeup_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::deque<Frame> outbox_;
  bool welcome_ = false;
  std::optional<std::string> result_;
  std::optional<Failure> failure_;
  bool finished_ = false;
  bool leaving_ = false;
  bool stage_changed_ = false;
  std::optional<Clock::time_point> watched_since_;
  std::string stage_ = "rendezvous";
  std::uint64_t progress_ = 0;
  std::uint64_t sequence_ = 0;
  Clock::time_point last_heard_;  // I/O thread
  std::thread thread_;
};

}  // namespace coterie
