#include "runtime/control/group_hub.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

namespace coterie {
namespace {

// Seconds from a death to the verdict, above kTick: by then the others have told their stages.
constexpr double kStageDelay = 0.25;

std::string pack_blobs(std::uint64_t sequence, const std::vector<std::string>& blobs) {
  Packer packer;
  packer.number(sequence);
  for (const std::string& blob : blobs) packer.text(blob);
  return packer.take();
}

}  // namespace

GroupHub::GroupHub(const RankEnvironment& environment, const GroupOptions& options,
                   Descriptor listener)
    : environment_(environment),
      options_(options),
      listener_(std::move(listener)),
      peers_(environment.num_ranks) {
  set_non_blocking(listener_.get());
  thread_ = std::thread([this] { loop(); });
}

GroupHub::~GroupHub() {
  leaving_ = true;
  thread_.join();
}

void GroupHub::loop() {
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

void GroupHub::poll_once() {
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
void GroupHub::greet(std::unique_ptr<Channel>& newcomer) {
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

void GroupHub::serve(std::size_t rank, short events) {
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

void GroupHub::handle(std::uint32_t rank, const Frame& frame) {
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

void GroupHub::submit(std::uint32_t rank, Unpacker& unpacker) {
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
void GroupHub::judge(Clock::time_point start) {
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

std::string GroupHub::who_waited(std::size_t missing_rank) const {
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

void GroupHub::blame_the_slowest(std::uint32_t reporter, double waited_s) {
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

void GroupHub::fail(const std::string& sentence, ExitCode code) {
  if (failed_) return;
  failed_ = true;
  for (Peer& peer : peers_) {
    if (peer.open()) peer.channel->queue(kAbort, pack_failure(code, sentence));
  }
}

}  // namespace coterie
