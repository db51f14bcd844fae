#include "runtime/session/transport.hpp"

#include <fmt/format.h>

#include <charconv>

#include "core/error.hpp"

namespace coterie {
namespace {

constexpr const char* kDirect = "direct";

}  // namespace

std::optional<DirectOptions> chosen_direct(const Cluster& cluster, const TransportChoice& choice) {
  if (choice.name != kDirect) return std::nullopt;
  DirectOptions options;
  bool described = false;
  for (const TransportParameters& parameters : cluster.transports) {
    if (const auto* known = std::get_if<DirectParameters>(&parameters)) {
      options.sms = known->sms;
      described = true;
    }
  }
  for (const Override& setting : choice.settings) {
    if (setting.key != "sms") {
      if (described) {  // a cost of the simulator's, if anything
        (void)chosen_transport(cluster, choice);
        continue;
      }
      throw InputError(setting.where(setting.key), fmt::format("the key \"{}\"", setting.key),
                       "sms alone, where the topology does not describe the transport direct");
    }
    const char* const end = setting.value.data() + setting.value.size();
    const auto [stop, error] = std::from_chars(setting.value.data(), end, options.sms);
    if (error != std::errc{} || stop != end || options.sms == 0 ||
        options.sms > cluster.gpu.num_sms) {
      throw InputError(setting.where(setting.key), fmt::format("\"{}\"", setting.value),
                       fmt::format("1 to {}, the multiprocessors of a {}", cluster.gpu.num_sms,
                                   cluster.gpu.name));
    }
  }
  return options;
}

std::string executed_transport(const TransportChoice& choice) {
  return choice.name == kDirect ? kDirect : "nccl";
}

}  // namespace coterie
