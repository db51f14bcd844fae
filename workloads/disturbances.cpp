#include "workloads/disturbances.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/random.hpp"

namespace coterie {
namespace {

std::uint32_t read_index(const YamlValue& value, std::uint32_t count) {
  return static_cast<std::uint32_t>(value.as_integer(0, static_cast<std::int64_t>(count) - 1));
}

LinkDisturbance read_times(YamlMap& map) {
  LinkDisturbance out;
  out.share = map.required("share").as_number(0.0, 1.0);
  if (const auto from = map.optional("from")) out.from_s = from->as_seconds().value;
  if (const auto until = map.optional("until")) {
    out.until_s = until->as_seconds().value;
    if (*out.until_s <= out.from_s) {
      throw until->error(until->excerpt(), fmt::format("a time after {} s", out.from_s));
    }
  }
  return out;
}

}  // namespace

std::map<std::uint32_t, double> Disturbances::slowness(std::uint32_t num_gpus,
                                                       std::uint64_t seed) const {
  std::map<std::uint32_t, double> out = slow;
  for (std::uint32_t gpu = 0; speed_spread > 0.0 && gpu < num_gpus; ++gpu) {
    // A stream per GPU: more GPUs leave the others' speeds as they are.
    Random random(seed, gpu);
    const double factor = 1.0 + speed_spread * std::abs(random.normal());
    double& total = out.try_emplace(gpu, 1.0).first->second;
    total *= factor;
  }
  return out;
}

Disturbances read_disturbances(const YamlValue& value, std::uint32_t num_gpus,
                               std::uint32_t num_nodes, std::uint32_t gpus_per_node) {
  YamlMap map = value.as_map();
  Disturbances out;
  if (const auto list = map.optional("slow")) {
    for (const YamlValue& item : list->as_list()) {
      YamlMap entry = item.as_map();
      const std::uint32_t gpu = read_index(entry.required("gpu"), num_gpus);
      const double factor = entry.required("factor").as_number(1.0, 1000.0);
      entry.finish();
      if (!out.slow.emplace(gpu, factor).second) {
        throw item.error(fmt::format("GPU {} a second time", gpu), "every GPU once");
      }
    }
  }
  if (const auto spread = map.optional("speed_spread")) {
    out.speed_spread = spread->as_number(0.0, 10.0);
  }
  if (const auto list = map.optional("links")) {
    for (const YamlValue& item : list->as_list()) {
      YamlMap entry = item.as_map();
      const std::string name = entry.required("name").as_string();
      LinkDisturbance disturbance = read_times(entry);
      disturbance.link = name;
      entry.finish();
      out.links.push_back(disturbance);
    }
  }
  if (const auto list = map.optional("nodes")) {
    for (const YamlValue& item : list->as_list()) {
      YamlMap entry = item.as_map();
      const std::uint32_t node = read_index(entry.required("node"), num_nodes);
      LinkDisturbance disturbance = read_times(entry);
      disturbance.node = node;
      entry.finish();
      out.links.push_back(disturbance);
    }
  }
  if (const auto list = map.optional("rails")) {
    for (const YamlValue& item : list->as_list()) {
      YamlMap entry = item.as_map();
      const std::uint32_t rail = read_index(entry.required("rail"), gpus_per_node);
      LinkDisturbance disturbance = read_times(entry);
      disturbance.rail = rail;
      entry.finish();
      out.links.push_back(disturbance);
    }
  }
  const auto fails = [](const LinkDisturbance& one) { return one.share == 0.0; };
  const bool any_fails = std::any_of(out.links.begin(), out.links.end(), fails);
  if (const auto reroute = map.optional("reroute")) {
    YamlMap entry = reroute->as_map();
    out.reroute_after_s = entry.required("after").as_seconds().value;
    entry.finish();
    if (!any_fails) {
      throw reroute->error("reroute without a failure",
                           "a link, node or rail with a share of 0 beside it");
    }
  }
  if (const auto timeout = map.optional("timeout")) {
    out.timeout_s = timeout->as_seconds().value;
    if (out.timeout_s <= 0.0) throw timeout->error(timeout->excerpt(), "a time above 0");
    if (!any_fails) {
      throw timeout->error("timeout without a failure",
                           "a link, node or rail with a share of 0 beside it");
    }
  }
  map.finish();
  return out;
}

}  // namespace coterie
