#include "runtime/session/probe/file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/statistics.hpp"

namespace coterie {
namespace {

using nlohmann::json;

// What two starts of one file must have in common.
constexpr const char* kIdentity[] = {"machine",       "device",    "driver",    "nccl_version",
                                     "version",       "num_ranks", "num_nodes", "num_gpus",
                                     "ranks_per_gpu", "mps",       "max_bytes", "cutlass"};
// Of a GPU; measured once per file.
constexpr const char* kRates[] = {"copy_bytes_per_s", "gemm_flop_per_s", "launch_s"};
// A key that every entry has beside those that say what was measured.
constexpr const char* kSamples = "samples_us";

// Differences of times, and the time of nothing, may be zero.
bool may_be_zero(const std::string& kind) {
  return kind == "events" || kind.ends_with("_skew");
}

bool is_count(const json& parent, const char* key) {
  return parent.is_object() && parent.contains(key) && parent.at(key).is_number_unsigned() &&
         parent.at(key).get<std::uint64_t>() > 0;
}

void check_time(const json& value, bool zero_allowed, const std::string& where) {
  const bool is_time = value.is_number() && std::isfinite(value.get<double>()) &&
                       (value.get<double>() > 0.0 || (zero_allowed && value.get<double>() == 0.0));
  if (!is_time) throw InputError(where, json_excerpt(value), "a time above zero in microseconds");
}

void check_entry(const json& entry, std::uint64_t starts, const std::string& where) {
  if (!entry.is_object() || !entry.contains("kind") || !entry.at("kind").is_string()) {
    throw InputError(where, "an entry without a kind", "an object with \"kind\"");
  }
  if (!entry.contains(kSamples) || !entry.at(kSamples).is_array() ||
      entry.at(kSamples).size() != starts) {
    throw InputError(where,
                     entry.contains(kSamples)
                         ? fmt::format("{} lists of samples", entry.at(kSamples).size())
                         : std::string("no samples_us"),
                     fmt::format("one list for each of {} starts", starts));
  }
  const bool zero_allowed = may_be_zero(entry.at("kind").get<std::string>());
  for (const json& samples : entry.at(kSamples)) {
    if (!samples.is_array() || samples.empty()) {
      throw InputError(where + ".samples_us", "a start without samples", "at least one");
    }
    for (const json& value : samples) check_time(value, zero_allowed, where + ".samples_us");
  }
  if (!entry.contains("median_us")) throw InputError(where, "no median_us", "the median");
  check_time(entry.at("median_us"), zero_allowed, where + ".median_us");
}

void check_part(const json& document, ProbePart part, const std::string& name) {
  const std::string list = list_of(part);
  const json& summary = document.at("parts").at(to_string(part));
  const std::string where = fmt::format("{}: parts.{}", name, to_string(part));
  if (!is_count(summary, "starts") || !is_count(summary, "points")) {
    throw InputError(where, json_excerpt(summary), "the numbers of \"starts\" and \"points\"");
  }
  if (!document.contains(list) || !document.at(list).is_array()) {
    throw InputError(name, fmt::format("no list \"{}\"", list),
                     fmt::format("the measurements of the part {}", to_string(part)));
  }
  const auto points = summary.at("points").get<std::uint64_t>();
  if (document.at(list).size() != points) {
    throw InputError(fmt::format("{}: {}", name, list),
                     fmt::format("{} entries", document.at(list).size()),
                     fmt::format("the {} that were measured", points));
  }
  const auto starts = summary.at("starts").get<std::uint64_t>();
  for (std::size_t i = 0; i < points; ++i) {
    const json& entry = document.at(list)[i];
    const std::string place = fmt::format("{}: {}[{}]", name, list, i);
    check_entry(entry, starts, place);
    if (part != ProbePart::kCommunication) continue;
    if (!is_count(entry, "bytes_per_pair") || !entry.contains("transport")) {
      throw InputError(place, "an exchange without a size or a transport",
                       "\"bytes_per_pair\" above zero and \"transport\"");
    }
  }
}

double median_of_starts(const json& samples) {
  std::vector<double> medians;
  for (const json& start : samples) medians.push_back(median(start.get<std::vector<double>>()));
  return median(medians);
}

}  // namespace

std::string list_of(ProbePart part) {
  return part == ProbePart::kCommunication ? "curves" : to_string(part);
}

json parse_probe(const std::string& text, const std::string& name) {
  json document = parse_json(text, name, "the measurements of coterie-runtime probe");
  if (!document.is_object() || !document.contains("schema_version")) {
    throw InputError(name, "no schema_version", "the measurements of coterie-runtime probe");
  }
  if (document.at("schema_version") != kProbeSchemaVersion) {
    throw InputError(name,
                     fmt::format("schema_version {}", json_excerpt(document.at("schema_version"))),
                     fmt::format("{}; a probe of another version cannot be continued, choose "
                                 "another folder",
                                 kProbeSchemaVersion));
  }
  for (const char* key : kRates) {
    if (!document.contains(key)) continue;
    const json& rate = document.at(key);
    if (!rate.is_number() || !(rate.get<double>() > 0.0)) {
      throw InputError(fmt::format("{}: {}", name, key), json_excerpt(rate), "a number above zero");
    }
  }
  if (!document.contains("parts") || !document.at("parts").is_object()) {
    throw InputError(name, "no object \"parts\"", "which parts were measured");
  }
  for (const auto& [part, summary] : document.at("parts").items()) {
    const bool known = std::any_of(std::begin(kProbeParts), std::end(kProbeParts),
                                   [&](ProbePart p) { return to_string(p) == part; });
    if (!known) throw InputError(name, fmt::format("a part \"{}\"", part), "the probe's own parts");
  }
  for (const ProbePart part : kProbeParts) {
    if (document.at("parts").contains(to_string(part))) {
      check_part(document, part, name);
    } else if (document.contains(list_of(part)) && !document.at(list_of(part)).empty()) {
      throw InputError(name,
                       fmt::format("a list \"{}\" that \"parts\" does not name", list_of(part)),
                       "both or neither");
    }
  }
  return document;
}

std::string probe_text(const json& document) {
  std::string out = "{";
  const char* comma = "";
  for (const auto& [key, value] : document.items()) {
    const bool is_list = value.is_array() && !value.empty() && value.front().is_object();
    out += fmt::format("{}\n {}: ", comma, json(key).dump());
    comma = ",";
    if (!is_list) {
      out += value.dump();
      continue;
    }
    out += "[";
    for (std::size_t i = 0; i < value.size(); ++i) {
      out += fmt::format("{}\n  {}", i == 0 ? "" : ",", value[i].dump());
    }
    out += "\n ]";
  }
  return out + "\n}\n";
}

void check_same_probe(const json& document, const json& header, const std::string& name) {
  for (const char* key : kIdentity) {
    const json found = document.value(key, json());
    if (found != header.at(key)) {
      throw InputError(fmt::format("{}: {}", name, key), found.dump(),
                       fmt::format("{}, for one file holds one machine, program and number of "
                                   "ranks; choose another folder",
                                   header.at(key).dump()));
    }
  }
}

std::uint32_t num_starts(const json& document, ProbePart part) {
  if (!document.contains("parts")) return 0;
  const json& parts = document.at("parts");
  const auto at = parts.find(to_string(part));
  return at == parts.end() ? 0 : at->at("starts").get<std::uint32_t>();
}

std::vector<ProbePart> parts_to_measure(const json& document, std::span<const ProbePart> wanted,
                                        bool append) {
  std::uint32_t least = ~0U;
  std::uint32_t most = 0;
  for (const ProbePart part : wanted) {
    least = std::min(least, num_starts(document, part));
    most = std::max(most, num_starts(document, part));
  }
  const std::uint32_t target = !append ? 1 : std::max(least == most ? most + 1 : most, 1U);
  std::vector<ProbePart> parts;
  for (const ProbePart part : wanted) {
    if (num_starts(document, part) < target) parts.push_back(part);
  }
  return parts;
}

void add_start(json& document, ProbePart part, const std::vector<ProbePoint>& points,
               double seconds) {
  json& list = document[list_of(part)];
  json& summary = document["parts"][to_string(part)];
  const std::uint32_t starts = summary.is_null() ? 0 : summary.at("starts").get<std::uint32_t>();
  if (starts == 0) {
    list = json::array();
    for (const ProbePoint& point : points) {
      list.push_back(point.key);
      list.back()[kSamples] = json::array();
    }
    summary = {{"starts", 0}, {"points", points.size()}, {"seconds", json::array()}};
  }
  const auto contains = [](const json& entry, const json& key) {
    return std::all_of(key.items().begin(), key.items().end(), [&](const auto& item) {
      return entry.contains(item.key()) && entry.at(item.key()) == item.value();
    });
  };
  for (std::size_t i = 0; i < std::max(points.size(), list.size()); ++i) {
    if (i < points.size() && i < list.size() && contains(list[i], points[i].key)) continue;
    throw InputError(fmt::format("{}[{}]", list_of(part), i),
                     i < list.size() ? "a point of another kind or size" : "no such point",
                     i < points.size() ? points[i].key.dump() : "none");
  }
  for (std::size_t i = 0; i < points.size(); ++i) {
    json& entry = list[i];
    std::vector<double> rounded;
    for (const double value : points[i].samples_us) {
      rounded.push_back(std::round(value * 100) / 100);
    }
    entry.update(points[i].facts);
    entry[kSamples].push_back(rounded);
    if (!points[i].ranks_us.empty()) {
      json ranks = json::array();
      for (const double value : points[i].ranks_us) ranks.push_back(std::round(value * 100) / 100);
      entry["ranks_us"].push_back(std::move(ranks));
    }
    entry["restarts"] = starts + 1;
    entry["median_us"] = median_of_starts(entry[kSamples]);
  }
  summary["starts"] = starts + 1;
  summary["seconds"].push_back(std::round(seconds * 10) / 10);
}

bool has_rates(const json& document) {
  return std::all_of(std::begin(kRates), std::end(kRates),
                     [&](const char* key) { return document.contains(key); });
}

void fill_links(const json& document, ProbeFacts& facts) {
  if (!document.contains("curves")) return;
  const double num_ranks = document.at("num_ranks").get<double>();
  const double pairs = num_ranks * (num_ranks - 1);
  for (const json& entry : document.at("curves")) {
    if (entry.at("transport") != "nccl") continue;
    const auto kind = entry.at("kind").get<std::string>();
    const double seconds = entry.at("median_us").get<double>() * 1e-6;
    const auto bytes = entry.at("bytes_per_pair").get<double>();
    if (bytes == 1.0) {
      if (kind == "sendrecv") facts.pair_latency_s = seconds;
      if (kind == "sendrecv_nodes") facts.far_latency_s = seconds;
    }
    // Entries ascend in size, so the largest stays.
    if (kind == "sendrecv") facts.pair_bytes_per_s = bytes / seconds;
    if (kind == "sendrecv_nodes") facts.far_bytes_per_s = bytes / seconds;
    if (kind == "alltoall") facts.all_to_all_bytes_per_s = bytes * pairs / seconds;
  }
}

}  // namespace coterie
