#include "runtime/control/group.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "runtime/control/channel.hpp"

namespace coterie {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr std::uint32_t kProtocolVersion = 1;
constexpr auto kTick = std::chrono::milliseconds(100);
constexpr double kHeartbeatPeriod = 0.25;
constexpr double kStageDelay = 0.25;  // above kTick: every stage has been told by then

enum Message : std::uint32_t {
  kHello = 1,  // version, job, rank, num_ranks
  kWelcome,    // all ranks have joined
  kHeartbeat,  // to the hub: progress, stage; from the hub: empty
  kSubmit,     // sequence number, name, deadline, one blob per rank
  kResult,     // sequence number, one blob per rank
  kStuck,      // seconds waited
  kFail,       // exit code, sentence
  kAbort,      // exit code, sentence
  kBye,
};

std::string pack_blobs(std::uint64_t sequence, const std::vector<std::string>& blobs) {
  Packer packer;
  packer.number(sequence);
  for (const std::string& blob : blobs) packer.text(blob);
  return packer.take();
}

std::string pack_failure(ExitCode code, const std::string& sentence) {
  return Packer().number(static_cast<std::int32_t>(code)).text(sentence).take();
}

struct Failure {
  ExitCode code = ExitCode::kDeviceFailure;
  std::string sentence;
};

Failure unpack_failure(const std::string& body) {
  Unpacker unpacker(body);
  const auto code = static_cast<ExitCode>(unpacker.number<std::int32_t>());
  return {code, unpacker.text()};
}

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

}  // namespace

// The hub: accepts the ranks, relays exchanges, judges failures. Everything runs on its own thread.
struct ControlGroup::Hub {
  struct Peer {
    std::unique_ptr<Channel> channel;
    bool said_bye = false;
    std::optional<Clock::time_point> died_at;  // closed its connection without a goodbye
    Clock::time_point last_heard;
    std::uint64_t progress = 0;
    std::string stage = "rendezvous";
    [[nodiscard]] bool open() const { return channel && channel->open(); }
  };
  struct Exchange {
    std::uint64_t sequence = 0;
    std::string name;
    double deadline_s = 0.0;
    Clock::time_point start;
    std::vector<std::optional<std::vector<std::string>>> blobs;  // [num_ranks]
    std::uint32_t num_submitted = 0;
  };

  Hub(const RankEnvironment& environment, const GroupOptions& options, Descriptor listener)
      : environment_(environment),
        options_(options),
        listener_(std::move(listener)),
        peers_(environment.num_ranks) {
    set_non_blocking(listener_.get());
    thread_ = std::thread([this] { loop(); });
  }
  ~Hub() {
    leaving_ = true;
    thread_.join();
  }
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  void loop() {
    const Clock::time_point start = Clock::now();
    Clock::time_point last_ping = start;
    Clock::time_point last_round = start;
    std::optional<Clock::time_point> leaving_since;
    while (true) {
      poll_once();
      const Clock::time_point now = Clock::now();
      if (now - last_round > std::chrono::seconds(1)) {
        // This very process was stopped or starved: it heard nobody, which says nothing of them.
        for (Peer& peer : peers_) peer.last_heard = now;
      }
      last_round = now;
      if (std::chrono::duration<double>(now - last_ping).count() > kHeartbeatPeriod) {
        last_ping = now;
        for (Peer& peer : peers_) {
          if (peer.open()) peer.channel->queue(kHeartbeat, "");
        }
      }
      if (!failed_) judge(start);
      if (leaving_ && !leaving_since) leaving_since = now;
      if (leaving_) {
        const bool all_gone =
            std::none_of(peers_.begin(), peers_.end(), [](const Peer& p) { return p.open(); });
        if (all_gone || seconds_since(*leaving_since) > options_.grace_s) return;
      }
    }
  }

  void poll_once() {
    std::vector<pollfd> waiting;
    std::vector<std::size_t> rank_of;
    waiting.push_back({listener_.get(), POLLIN, 0});
    for (std::size_t p = 0; p < newcomers_.size(); ++p) {
      waiting.push_back({newcomers_[p]->fd(), POLLIN, 0});
    }
    for (std::size_t r = 0; r < peers_.size(); ++r) {
      if (!peers_[r].open()) continue;
      const int events = POLLIN | (peers_[r].channel->wants_to_send() ? POLLOUT : 0);
      waiting.push_back({peers_[r].channel->fd(), static_cast<short>(events), 0});
      rank_of.push_back(r);
    }
    ::poll(waiting.data(), waiting.size(), static_cast<int>(kTick.count()));
    const std::size_t num_newcomers = newcomers_.size();
    for (std::size_t i = 0; i < rank_of.size(); ++i) {
      const short events = waiting[1 + num_newcomers + i].revents;
      if (events != 0) serve(rank_of[i], events);
    }
    for (auto& newcomer : newcomers_) greet(newcomer);
    std::erase_if(newcomers_, [](const auto& newcomer) { return !newcomer || !newcomer->open(); });
    if ((waiting[0].revents & POLLIN) != 0) {
      Descriptor accepted(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (accepted.open()) {
        set_non_blocking(accepted.get());
        newcomers_.push_back(std::make_unique<Channel>(std::move(accepted)));
      }
    }
  }

  // A connection becomes a rank by a proper hello; others (port scanners, ranks of another job)
  // are closed.
  void greet(std::unique_ptr<Channel>& newcomer) {
    if (!newcomer) return;
    try {
      const bool alive = newcomer->receive_some();
      const auto frame = newcomer->next();
      if (!frame) {
        if (!alive) newcomer->close();
        return;
      }
      Unpacker unpacker(frame->body);
      if (frame->type != kHello || unpacker.number<std::uint32_t>() != kProtocolVersion ||
          unpacker.text() != environment_.job) {
        newcomer->close();
        return;
      }
      const auto rank = unpacker.number<std::uint32_t>();
      const auto num_ranks = unpacker.number<std::uint32_t>();
      if (num_ranks != environment_.num_ranks || rank >= num_ranks || peers_[rank].channel) {
        newcomer->queue(
            kAbort,
            pack_failure(ExitCode::kBadInput,
                         fmt::format("rank {} of {} is not expected by rank 0, which "
                                     "counts {} ranks with that one {}",
                                     rank, num_ranks, environment_.num_ranks,
                                     rank < peers_.size() && peers_[rank].channel ? "already there"
                                                                                  : "missing")));
        newcomer->send_some();
        newcomer->close();
        return;
      }
      peers_[rank].channel = std::move(newcomer);
      peers_[rank].last_heard = Clock::now();
      ++num_joined_;
      if (num_joined_ == environment_.num_ranks) {
        for (Peer& peer : peers_) {
          if (peer.open()) peer.channel->queue(kWelcome, "");
        }
      }
    } catch (const Error&) {
      newcomer->close();
    }
  }

  void serve(std::size_t rank, short events) {
    Peer& peer = peers_[rank];
    bool alive = true;
    if ((events & POLLOUT) != 0) alive = peer.channel->send_some();
    if ((events & (POLLIN | POLLHUP | POLLERR)) != 0) alive = peer.channel->receive_some() && alive;
    try {
      while (const auto frame = peer.channel->next())
        handle(static_cast<std::uint32_t>(rank), *frame);
    } catch (const Error& error) {
      fail(fmt::format("rank {} broke the control protocol: {}", rank, error.what()),
           ExitCode::kDeviceFailure);
      alive = false;
    }
    if (alive) return;
    peer.channel->close();
    if (!peer.said_bye && !peer.died_at) peer.died_at = Clock::now();
  }

  void handle(std::uint32_t rank, const Frame& frame) {
    Peer& peer = peers_[rank];
    peer.last_heard = Clock::now();
    Unpacker unpacker(frame.body);
    switch (frame.type) {
      case kHeartbeat:
        peer.progress = unpacker.number<std::uint64_t>();
        peer.stage = unpacker.text();
        break;
      case kSubmit:
        submit(rank, unpacker);
        break;
      case kStuck:
        if (!failed_) blame_the_slowest(rank, unpacker.number<double>());
        break;
      case kFail: {
        const Failure failure = unpack_failure(frame.body);
        fail(fmt::format("rank {} failed in \"{}\": {}", rank, peer.stage, failure.sentence),
             failure.code);
        break;
      }
      case kBye:
        peer.said_bye = true;
        break;
      default:
        throw DeviceError(fmt::format("unknown message {}", frame.type));
    }
  }

  void submit(std::uint32_t rank, Unpacker& unpacker) {
    if (failed_) return;
    const auto sequence = unpacker.number<std::uint64_t>();
    std::string name = unpacker.text();
    const auto deadline_s = unpacker.number<double>();
    if (exchange_.num_submitted == 0) {
      exchange_ = {sequence, name, deadline_s, Clock::now(), {}, 0};
      exchange_.blobs.resize(peers_.size());
    }
    if (exchange_.sequence != sequence || exchange_.name != name) {
      fail(fmt::format("rank {} is at \"{}\" while the others are at \"{}\"", rank, name,
                       exchange_.name),
           ExitCode::kInternalError);
      return;
    }
    std::vector<std::string> blobs(peers_.size());
    for (std::string& blob : blobs) blob = unpacker.text();
    exchange_.blobs[rank] = std::move(blobs);
    peers_[rank].stage = name;
    if (++exchange_.num_submitted < peers_.size()) return;
    for (std::size_t to = 0; to < peers_.size(); ++to) {
      std::vector<std::string> from_each(peers_.size());
      for (std::size_t from = 0; from < peers_.size(); ++from) {
        from_each[from] = std::move((*exchange_.blobs[from])[to]);
      }
      if (peers_[to].open()) peers_[to].channel->queue(kResult, pack_blobs(sequence, from_each));
    }
    exchange_ = {};
  }

  // Deadlines and silence.
  void judge(Clock::time_point start) {
    if (num_joined_ < peers_.size()) {
      if (seconds_since(start) > options_.rendezvous_s) {
        std::vector<std::size_t> missing;
        for (std::size_t r = 0; r < peers_.size(); ++r) {
          if (!peers_[r].channel) missing.push_back(r);
        }
        fail(fmt::format("rank {} did not join the rendezvous within {:g} s",
                         fmt::join(missing, ", "), options_.rendezvous_s),
             ExitCode::kDeviceFailure);
        return;
      }
    }
    for (std::size_t r = 0; r < peers_.size(); ++r) {
      // A moment later the others have told which stage they wait in.
      if (peers_[r].died_at && seconds_since(*peers_[r].died_at) > kStageDelay) {
        fail(fmt::format("rank {} died (its connection closed), last seen in \"{}\"; {}", r,
                         peers_[r].stage, who_waited(r)),
             ExitCode::kDeviceFailure);
        return;
      }
      if (!peers_[r].open() || peers_[r].said_bye) continue;
      if (seconds_since(peers_[r].last_heard) > options_.silence_s) {
        fail(fmt::format("rank {} stopped answering {:g} s ago, last seen in \"{}\"; {}", r,
                         options_.silence_s, peers_[r].stage, who_waited(r)),
             ExitCode::kDeviceFailure);
        return;
      }
    }
    if (exchange_.num_submitted > 0 && seconds_since(exchange_.start) > exchange_.deadline_s) {
      std::vector<std::size_t> missing;
      for (std::size_t r = 0; r < peers_.size(); ++r) {
        if (!exchange_.blobs[r]) missing.push_back(r);
      }
      fail(fmt::format("rank {} hangs in \"{}\": it did not reach \"{}\", where the others waited "
                       "{:g} s for it",
                       fmt::join(missing, ", "), peers_[missing.front()].stage, exchange_.name,
                       exchange_.deadline_s),
           ExitCode::kDeviceFailure);
    }
  }

  [[nodiscard]] std::string who_waited(std::size_t missing_rank) const {
    if (exchange_.num_submitted > 0 && !exchange_.blobs[missing_rank]) {
      return fmt::format("the others were waiting for it in \"{}\"", exchange_.name);
    }
    for (std::size_t r = 0; r < peers_.size(); ++r) {
      if (r != missing_rank && peers_[r].open()) {
        return fmt::format("rank {} was waiting for it in \"{}\"", r, peers_[r].stage);
      }
    }
    return "nobody else was left";
  }

  void blame_the_slowest(std::uint32_t reporter, double waited_s) {
    std::size_t slowest = reporter;
    for (std::size_t r = 0; r < peers_.size(); ++r) {
      if (peers_[r].progress < peers_[slowest].progress) slowest = r;
    }
    const std::string& stage = peers_[reporter].stage;
    if (slowest == reporter) {
      fail(fmt::format("rank {} waited {:.1f} s for \"{}\", although no other rank is behind it",
                       reporter, waited_s, stage),
           ExitCode::kDeviceFailure);
    } else {
      fail(fmt::format("rank {} hangs in \"{}\": rank {} waited {:.1f} s for it in \"{}\"", slowest,
                       peers_[slowest].stage, reporter, waited_s, stage),
           ExitCode::kDeviceFailure);
    }
  }

  void fail(const std::string& sentence, ExitCode code) {
    if (failed_) return;
    failed_ = true;
    for (Peer& peer : peers_) {
      if (peer.open()) peer.channel->queue(kAbort, pack_failure(code, sentence));
    }
  }

  const RankEnvironment environment_;
  const GroupOptions options_;
  Descriptor listener_;
  std::vector<std::unique_ptr<Channel>> newcomers_;
  std::vector<Peer> peers_;
  std::uint32_t num_joined_ = 0;
  Exchange exchange_;
  bool failed_ = false;
  std::atomic<bool> leaving_{false};
  std::thread thread_;
};

// A rank's side: the main thread's calls and the I/O thread.
struct ControlGroup::Client {
  Client(const RankEnvironment& environment, GroupOptions options)
      : environment_(environment), options_(std::move(options)) {}

  ~Client() {
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
    }
    wakeup_.signal();
    if (thread_.joinable()) thread_.join();
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void join(std::uint16_t port) {
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

  // Waits under the lock for `ready`; the margin leaves the verdict to the hub.
  template <class Ready>
  void wait(const std::string& what, double deadline_s, Ready ready) {
    std::unique_lock lock(mutex_);
    const double margin_s = options_.silence_s + 2.0;
    const bool in_time =
        changed_.wait_for(lock, std::chrono::duration<double>(deadline_s + margin_s),
                          [&] { return ready() || failure_.has_value(); });
    throw_if_failed();
    if (!in_time) {
      throw PeerError(ExitCode::kDeviceFailure,
                      fmt::format("rank 0 gave no answer to \"{}\" within {:g} s", what,
                                  deadline_s + margin_s));
    }
  }

  void throw_if_failed() const {
    if (failure_) throw PeerError(failure_->code, failure_->sentence);
  }

  void loop() {
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
        if (!channel_->open() || !channel_->wants_to_send() ||
            seconds_since(*leaving_since) > 1.0) {
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
  bool move_outbox() {
    const std::lock_guard lock(mutex_);
    while (!outbox_.empty()) {
      if (channel_->open()) channel_->queue(outbox_.front().type, outbox_.front().body);
      outbox_.pop_front();
    }
    return channel_->open() && channel_->wants_to_send();
  }

  void pump() {
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

  // Under the lock.
  void enter(std::string stage, bool watched) {
    stage_ = std::move(stage);
    ++progress_;
    stage_changed_ = true;
    watched_since_ = watched ? std::optional(Clock::now()) : std::nullopt;
  }

  void set_failure(Failure failure) {
    if (!failure_) failure_ = std::move(failure);
    changed_.notify_all();
  }

  void post(std::uint32_t type, std::string body) {
    {
      const std::lock_guard lock(mutex_);
      outbox_.push_back({type, std::move(body)});
    }
    wakeup_.signal();
  }

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

ControlGroup::ControlGroup(const RankEnvironment& environment, GroupOptions options) {
  std::uint16_t port = environment.port;
  RankEnvironment mine = environment;
  if (environment.rank == 0) {
    Descriptor listener;
    if (environment.listen_fd) {
      listener = Descriptor(*environment.listen_fd);
    } else if (environment.num_local_ranks == environment.num_ranks) {
      // Nobody outside this machine is meant to connect.
      listener = listen_on("127.0.0.1", environment.num_ranks == 1 ? 0 : port);
    } else {
      listener = listen_on("", port);
    }
    port = bound_port(listener);
    mine.address =
        environment.num_local_ranks == environment.num_ranks ? "127.0.0.1" : environment.address;
    hub_ = std::make_unique<Hub>(environment, options, std::move(listener));
  }
  client_ = std::make_unique<Client>(mine, std::move(options));
  client_->join(port);
}

ControlGroup::~ControlGroup() {
  client_.reset();
  hub_.reset();
}

std::uint32_t ControlGroup::rank() const {
  return client_->environment_.rank;
}
std::uint32_t ControlGroup::num_ranks() const {
  return client_->environment_.num_ranks;
}
const GroupOptions& ControlGroup::options() const {
  return client_->options_;
}

void ControlGroup::set_stage(std::string stage) {
  // The I/O thread tells the hub on its next round: a stage is not worth waking it.
  const std::lock_guard lock(client_->mutex_);
  client_->throw_if_failed();
  client_->enter(std::move(stage), false);
}

void ControlGroup::watch_stage(std::string stage) {
  const std::lock_guard lock(client_->mutex_);
  client_->throw_if_failed();
  client_->enter(std::move(stage), true);
}

void ControlGroup::check() const {
  const std::lock_guard lock(client_->mutex_);
  client_->throw_if_failed();
}

std::vector<std::string> ControlGroup::exchange(const std::string& name,
                                                std::vector<std::string> to_each) {
  if (to_each.size() != num_ranks()) {
    throw Error(ExitCode::kInternalError, "an exchange needs one message per rank");
  }
  set_stage(name);
  Packer packer;
  packer.number(++client_->sequence_).text(name).number(options().step_s);
  for (const std::string& blob : to_each) packer.text(blob);
  {
    const std::lock_guard lock(client_->mutex_);
    client_->result_.reset();
  }
  client_->post(kSubmit, packer.take());
  client_->wait(name, options().step_s, [this] { return client_->result_.has_value(); });
  std::string body;
  {
    const std::lock_guard lock(client_->mutex_);
    body = std::move(*client_->result_);
    client_->result_.reset();
  }
  Unpacker unpacker(body);
  unpacker.number<std::uint64_t>();
  std::vector<std::string> from_each(num_ranks());
  for (std::string& blob : from_each) blob = unpacker.text();
  return from_each;
}

std::vector<std::string> ControlGroup::all_gather(const std::string& name,
                                                  const std::string& mine) {
  return exchange(name, std::vector<std::string>(num_ranks(), mine));
}

std::vector<std::string> ControlGroup::gather(const std::string& name, const std::string& mine) {
  std::vector<std::string> to_each(num_ranks());
  to_each[0] = mine;
  auto from_each = exchange(name, std::move(to_each));
  if (rank() != 0) from_each.clear();
  return from_each;
}

std::string ControlGroup::broadcast(const std::string& name, const std::string& from_rank_0) {
  const std::string empty;
  return exchange(name,
                  std::vector<std::string>(num_ranks(), rank() == 0 ? from_rank_0 : empty))[0];
}

void ControlGroup::barrier(const std::string& name) {
  exchange(name, std::vector<std::string>(num_ranks()));
}

void ControlGroup::report_stuck(double waited_s) {
  client_->post(kStuck, Packer().number(waited_s).take());
  client_->wait("the verdict on a device that does not finish", 0.0, [] { return false; });
  throw PeerError(ExitCode::kDeviceFailure, "the device does not finish");
}

void ControlGroup::fail(const std::string& sentence, ExitCode code) {
  client_->post(kFail, pack_failure(code, sentence));
}

void ControlGroup::finish() {
  barrier("finish");
  {
    const std::lock_guard lock(client_->mutex_);
    client_->finished_ = true;
  }
  client_->post(kBye, "");
}

void run_in_group(ControlGroup& group, const std::function<void()>& body) {
  try {
    body();
  } catch (const PeerError&) {
    throw;
  } catch (const Error& error) {
    group.fail(error.what(), error.exit_code());
    if (error.exit_code() != ExitCode::kDeviceFailure) throw;
    throw PeerError(error.exit_code(),
                    fmt::format("rank {} failed: {}", group.rank(), error.what()));
  } catch (const std::exception& error) {
    group.fail(error.what(), ExitCode::kInternalError);
    throw;
  }
}

}  // namespace coterie
