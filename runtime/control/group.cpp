#include "runtime/control/group.hpp"

#include <fmt/format.h>

#include "runtime/control/channel.hpp"
#include "runtime/control/group_client.hpp"
#include "runtime/control/group_hub.hpp"

namespace coterie {

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
    hub_ = std::make_unique<GroupHub>(environment, options, std::move(listener));
  }
  client_ = std::make_unique<GroupClient>(mine, std::move(options));
  client_->join(port);
}

ControlGroup::~ControlGroup() {
  client_.reset();
  hub_.reset();
}

std::uint32_t ControlGroup::rank() const {
  return client_->environment().rank;
}
std::uint32_t ControlGroup::num_ranks() const {
  return client_->environment().num_ranks;
}
const GroupOptions& ControlGroup::options() const {
  return client_->options();
}

void ControlGroup::set_stage(std::string stage) {
  client_->enter_stage(std::move(stage), false);
}

void ControlGroup::watch_stage(std::string stage) {
  client_->enter_stage(std::move(stage), true);
}

void ControlGroup::check() const {
  client_->check();
}

std::vector<std::string> ControlGroup::exchange(const std::string& name,
                                                std::vector<std::string> to_each) {
  if (to_each.size() != num_ranks()) {
    throw Error(ExitCode::kInternalError, "an exchange needs one message per rank");
  }
  return client_->exchange(name, to_each);
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
  client_->report_stuck(waited_s);
}

void ControlGroup::fail(const std::string& sentence, ExitCode code) {
  client_->fail(sentence, code);
}

void ControlGroup::finish() {
  barrier("finish");
  client_->say_goodbye();
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
