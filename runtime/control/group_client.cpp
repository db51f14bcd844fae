#include "runtime/control/group_client.hpp"

#include <fmt/format.h>
#include <poll.h>

namespace coterie {

GroupClient::~GroupClient() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  wakeup_.signal();
  if (thread_.joinable()) thread_.join();
}

// ------------------------------------------------------------ the main thread

// Waits under the lock for `ready`; the margin leaves the verdict to the hub.
template <class Ready>
void GroupClient::wait(const std::string& what, double deadline_s, Ready ready) {
  std::unique_lock lock(mutex_);
  const double margin_s = options_.silence_s + 2.0;
  const bool in_time = changed_.wait_for(lock, std::chrono::duration<double>(deadline_s + margin_s),
                                         [&] { return ready() || failure_.has_value(); });
  throw_if_failed();
  if (!in_time) {
    throw PeerError(
        ExitCode::kDeviceFailure,
        fmt::format("rank 0 gave no answer to \"{}\" within {:g} s", what, deadline_s + margin_s));
  }
}

void GroupClient::throw_if_failed() const {
  if (failure_) throw PeerError(failure_->code, failure_->sentence);
}

void GroupClient::set_failure(Failure failure) {
  if (!failure_) failure_ = std::move(failure);
  changed_.notify_all();
}

void GroupClient::post(std::uint32_t type, std::string body) {
  {
    const std::lock_guard lock(mutex_);
    outbox_.push_back({type, std::move(body)});
  }
  wakeup_.signal();
}

void GroupClient::join(std::uint16_t port) {
  const Clock::time_point start = Clock::now();
  std::string reason;
  Descriptor socket;
  while (!socket.open()) {
    socket = try_connect(environment_.address, port, 2.0, reason);
    if (socket.open()) break;
    if (seconds_since(start) > options_.rendezvous_s) {
      throw PeerError(
          ExitCode::kDeviceFailure,
          fmt::format("rank 0 cannot be reached at {}:{} after {:g} s ({}); rank {} waited for "
                      "the rendezvous",
                      environment_.address, port, options_.rendezvous_s, reason,
                      environment_.rank));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  channel_ = std::make_unique<Channel>(std::move(socket));
  channel_->queue(kHello, Packer()
                              .number(kProtocolVersion)
                              .text(environment_.job)
                              .number(environment_.rank)
                              .number(environment_.num_ranks)
                              .take());
  last_heard_ = Clock::now();
  thread_ = std::thread([this] { loop(); });
  // The hub's own deadline comes first and names the missing ranks.
  wait("rendezvous", options_.rendezvous_s, [this] { return welcome_; });
}

void GroupClient::enter_stage(std::string stage, bool watched) {
  // The I/O thread tells the hub on its next round: a stage is not worth waking it.
  const std::lock_guard lock(mutex_);
  throw_if_failed();
  stage_ = std::move(stage);
  ++progress_;
  stage_changed_ = true;
  watched_since_ = watched ? std::optional(Clock::now()) : std::nullopt;
}

void GroupClient::check() const {
  const std::lock_guard lock(mutex_);
  throw_if_failed();
}

std::vector<std::string> GroupClient::exchange(const std::string& name,
                                               const std::vector<std::string>& to_each) {
  enter_stage(name, false);
  Packer packer;
  packer.number(++sequence_).text(name).number(options_.step_s);
  for (const std::string& blob : to_each) packer.text(blob);
  {
    const std::lock_guard lock(mutex_);
    result_.reset();
  }
  post(kSubmit, packer.take());
  wait(name, options_.step_s, [this] { return result_.has_value(); });
  std::string body;
  {
    const std::lock_guard lock(mutex_);
    body = std::move(*result_);
    result_.reset();
  }
  Unpacker unpacker(body);
  unpacker.number<std::uint64_t>();
  std::vector<std::string> from_each(environment_.num_ranks);
  for (std::string& blob : from_each) blob = unpacker.text();
  return from_each;
}

void GroupClient::report_stuck(double waited_s) {
  post(kStuck, Packer().number(waited_s).take());
  wait("the verdict on a device that does not finish", 0.0, [] { return false; });
  throw PeerError(ExitCode::kDeviceFailure, "the device does not finish");
}

void GroupClient::fail(const std::string& sentence, ExitCode code) {
  post(kFail, pack_failure(code, sentence));
}

void GroupClient::say_goodbye() {
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
  }
  post(kBye, "");
}

// ------------------------------------------------------------ the I/O thread

void GroupClient::loop() {
  Clock::time_point last_sent;
  Clock::time_point last_round = Clock::now();
  std::optional<Clock::time_point> failed_at;
  std::optional<Clock::time_point> leaving_since;
  while (true) {
    const bool sending = move_outbox();
    pollfd waiting[2] = {{wakeup_.fd(), POLLIN, 0}, {-1, 0, 0}};
    if (channel_->open()) {
      const int events = POLLIN | (sending ? POLLOUT : 0);
      waiting[1] = {channel_->fd(), static_cast<short>(events), 0};
    }
    ::poll(waiting, 2, static_cast<int>(kTick.count()));
    wakeup_.clear();
    move_outbox();
    if (channel_->open()) pump();

    const Clock::time_point now = Clock::now();
    if (now - last_round > std::chrono::seconds(1)) last_heard_ = now;  // this process slept
    last_round = now;
    const std::unique_lock lock(mutex_);
    if (channel_->open() && std::chrono::duration<double>(now - last_sent).count() >
                                (stage_changed_ ? 0.02 : kHeartbeatPeriod)) {
      last_sent = now;
      stage_changed_ = false;
      channel_->queue(kHeartbeat, Packer().number(progress_).text(stage_).take());
    }
    // The main thread's own deadline comes first, where it still can.
    constexpr double kMargin_s = 1.0;
    if (watched_since_ && seconds_since(*watched_since_) > options_.step_s + kMargin_s) {
      channel_->queue(kStuck, Packer().number(seconds_since(*watched_since_)).take());
      watched_since_.reset();
    }
    if (!failure_ && !finished_ && seconds_since(last_heard_) > options_.silence_s) {
      set_failure({ExitCode::kDeviceFailure,
                   fmt::format("rank 0 stopped answering {:g} s ago; rank {} was waiting for it "
                               "in \"{}\"",
                               options_.silence_s, environment_.rank, stage_)});
    }
    if (leaving_) {
      if (!leaving_since) leaving_since = now;
      // The last words may have come into the outbox since it was emptied above.
      const bool all_sent = outbox_.empty() && !channel_->wants_to_send();
      if (!channel_->open() || all_sent || seconds_since(*leaving_since) > 1.0) {
        channel_->close();
        return;
      }
    } else if (failure_) {
      if (!failed_at) failed_at = now;
      if (seconds_since(*failed_at) > options_.grace_s && options_.last_resort) {
        options_.last_resort(failure_->sentence, failure_->code);
      }
    }
  }
}

// Messages of the main thread into the channel; true if the channel has something to send.
bool GroupClient::move_outbox() {
  const std::lock_guard lock(mutex_);
  while (!outbox_.empty()) {
    if (channel_->open()) channel_->queue(outbox_.front().type, outbox_.front().body);
    outbox_.pop_front();
  }
  return channel_->open() && channel_->wants_to_send();
}

void GroupClient::pump() {
  bool alive = channel_->send_some();
  alive = channel_->receive_some() && alive;
  std::string broken;
  try {
    while (auto frame = channel_->next()) {
      const std::lock_guard lock(mutex_);
      last_heard_ = Clock::now();
      if (frame->type == kWelcome) {
        welcome_ = true;
      } else if (frame->type == kResult) {
        result_ = std::move(frame->body);
      } else if (frame->type == kAbort) {
        set_failure(unpack_failure(frame->body));
      }
      changed_.notify_all();
    }
  } catch (const Error& error) {
    broken = error.what();
    alive = false;
  }
  if (alive) return;
  channel_->close();
  const std::lock_guard lock(mutex_);
  if (!finished_) {
    set_failure({ExitCode::kDeviceFailure,
                 fmt::format("rank 0 died (its connection closed{}{}); rank {} was waiting for "
                             "it in \"{}\"",
                             broken.empty() ? "" : ": ", broken, environment_.rank, stage_)});
  }
}

}  // namespace coterie
