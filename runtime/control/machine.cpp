#include "runtime/control/machine.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <fstream>

#include "core/error.hpp"

namespace coterie {
namespace {

constexpr const char* kPretence = "COTERIE_RANKS_PER_MACHINE";

std::string identity_of_kernel() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string identity;
  if (file >> identity) return identity;
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return host.data();
}

}  // namespace

std::string machine_identity(const RankEnvironment& environment, const GetVariable& variable) {
  const std::string identity = identity_of_kernel();
  const std::optional<std::string> text = variable(kPretence);
  if (!text || text->empty()) return identity;
  std::uint32_t ranks = 0;
  const char* const end = text->data() + text->size();
  const auto [at, error] = std::from_chars(text->data(), end, ranks);
  if (error != std::errc() || at != end || ranks == 0) {
    throw InputError(fmt::format("environment variable {}", kPretence),
                     fmt::format("\"{}\"", *text), "a positive integer");
  }
  return fmt::format("{}/{}", identity, environment.local_rank / ranks);
}

std::vector<bool> ranks_of_this_machine(ControlGroup& group, const RankEnvironment& environment) {
  const std::string mine =
      machine_identity(environment, [](const std::string& name) -> std::optional<std::string> {
        const char* const value = std::getenv(name.c_str());
        return value == nullptr ? std::nullopt : std::optional<std::string>(value);
      });
  std::vector<bool> near;
  for (const std::string& theirs : group.all_gather("machines of the ranks", mine)) {
    near.push_back(theirs == mine);
  }
  return near;
}

}  // namespace coterie
