#pragma once
// The ranks of a run as a group with deadlines: rendezvous, small exchanges, heartbeats, and one
// sentence for everybody when a rank dies, hangs or fails.
//
// Every rank keeps one TCP connection to the hub, a thread of rank 0's process; rank 0's own main
// thread is a client like the others. An I/O thread per process sends heartbeats that carry the
// stage the main thread is in and how many stages it has passed, so the hub can name the rank that
// is behind. The hub declares a failure when
//   - a connection closes without a goodbye         (the rank died),
//   - no heartbeat comes for `silence_s`            (the process is stopped, its machine gone),
//   - a rank does not join, or submit to an exchange, before its deadline,
//   - a rank reports that it waited too long on its device, or that it failed,
// and sends the sentence to all ranks, where every call throws PeerError. A process whose main
// thread does not react within `grace_s` is ended by its I/O thread through `last_resort`.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "runtime/control/environment.hpp"

namespace coterie {

// Another rank failed, or this one was told to stop. Exit code: that of the failure.
class PeerError : public Error {
 public:
  using Error::Error;
};

struct GroupOptions {
  double rendezvous_s = 60.0;  // for all ranks to join
  double step_s = 60.0;        // for all ranks to reach an exchange, and for each device wait
  double silence_s = 5.0;      // without a heartbeat
  double grace_s = 3.0;        // from a failure to the forced end of this process
  // Must not return. Called on the I/O thread.
  std::function<void(const std::string& sentence, ExitCode code)> last_resort;
};

// The two ends of its connections: group_hub.hpp, group_client.hpp.
class GroupHub;
class GroupClient;

class ControlGroup {
 public:
  // Returns once all ranks have joined. Throws PeerError naming the ranks that did not.
  ControlGroup(const RankEnvironment& environment, GroupOptions options);
  // Leaves the group; without `finish` or `fail` the others take it as this rank's death.
  ~ControlGroup();
  ControlGroup(const ControlGroup&) = delete;
  ControlGroup& operator=(const ControlGroup&) = delete;

  [[nodiscard]] std::uint32_t rank() const;
  [[nodiscard]] std::uint32_t num_ranks() const;
  [[nodiscard]] const GroupOptions& options() const;

  // Names what this rank does next. All ranks pass the same sequence of stages. Throws PeerError
  // once the group has failed.
  void set_stage(std::string stage);
  // The same for a stage in which the main thread may be caught inside a driver call: should it
  // last longer than `step_s`, the I/O thread asks for the verdict in its place.
  void watch_stage(std::string stage);
  // Throws PeerError once the group has failed. Cheap.
  void check() const;

  // Collective: to_each[d] goes to rank d; the result holds what each rank sent here.
  std::vector<std::string> exchange(const std::string& name, std::vector<std::string> to_each);
  std::vector<std::string> all_gather(const std::string& name, const std::string& mine);
  // At rank 0 what each rank sent; empty elsewhere.
  std::vector<std::string> gather(const std::string& name, const std::string& mine);
  std::string broadcast(const std::string& name, const std::string& from_rank_0);
  void barrier(const std::string& name);

  // This rank waited `waited_s` for its device in the current stage: asks the hub who is behind and
  // throws PeerError with the verdict.
  [[noreturn]] void report_stuck(double waited_s);
  // Tells the others that this rank failed.
  void fail(const std::string& sentence, ExitCode code);
  // Collective: the orderly end.
  void finish();

 private:
  std::unique_ptr<GroupHub> hub_;  // rank 0 only
  std::unique_ptr<GroupClient> client_;
};

// Runs `body`; an error that it throws is told to the other ranks before it goes on.
void run_in_group(ControlGroup& group, const std::function<void()>& body);

}  // namespace coterie
