#pragma once
// The hub of a group of ranks: accepts them, relays their exchanges, and judges who failed (group.hpp
// says when). It belongs to rank 0's process and does everything on a thread of its own.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/control/channel.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"
#include "runtime/control/group_protocol.hpp"

namespace coterie {

class GroupHub {
 public:
  GroupHub(const RankEnvironment& environment, const GroupOptions& options, Descriptor listener);
  // Waits, up to grace_s, for all ranks to close their connections.
  ~GroupHub();
  GroupHub(const GroupHub&) = delete;
  GroupHub& operator=(const GroupHub&) = delete;

 private:
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

  void loop();
  void poll_once();
  void greet(std::unique_ptr<Channel>& newcomer);
  void serve(std::size_t rank, short events);
  void handle(std::uint32_t rank, const Frame& frame);
  void submit(std::uint32_t rank, Unpacker& unpacker);
  void judge(Clock::time_point start);
  [[nodiscard]] std::string who_waited(std::size_t missing_rank) const;
  void blame_the_slowest(std::uint32_t reporter, double waited_s);
  void fail(const std::string& sentence, ExitCode code);

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

}  // namespace coterie
