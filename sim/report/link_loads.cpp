#include "sim/report/link_loads.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/json_fault.hpp"

namespace coterie {
namespace {

using nlohmann::json;

struct Sample {
  std::string link;
  double time_s = 0.0;
  double gbps = 0.0;
};

// The counters of the timeline in file order. Spans, the bulk of the file, are dropped while it is
// parsed.
std::vector<Sample> read_samples(const std::filesystem::path& timeline) {
  const auto keep_counters = [](int depth, json::parse_event_t event, json& value) {
    return depth != 2 || event != json::parse_event_t::object_end ||
           (value.is_object() && value.contains("ph") && value["ph"] == "C");
  };
  std::vector<Sample> samples;
  try {
    const json document =
        parse_json(read_file(timeline), timeline.string(), "a timeline", keep_counters);
    for (const json& event : document.at("traceEvents")) {
      if (!event.at("args").contains("GB/s")) continue;
      samples.push_back({event.at("name").get<std::string>(), event.at("ts").get<double>() * 1e-6,
                         event.at("args").at("GB/s").get<double>()});
    }
  } catch (const json::exception& error) {
    throw InputError(timeline.string(), json_fault(error), "a timeline of coterie simulate");
  }
  return samples;
}

// A counter keeps its value until the next sample; the last one closes the window.
LinkLoads fill_bins(std::span<const Sample> samples) {
  LinkLoads loads{samples.front().link, std::vector<double>(kLoadBins, 0.0)};
  const double begin_s = samples.front().time_s;
  const double bin_s = (samples.back().time_s - begin_s) / static_cast<double>(kLoadBins);
  if (!(bin_s > 0.0)) return loads;  // nothing passed
  const auto bin_of = [&](const Sample& sample) {
    const double bin = std::round((sample.time_s - begin_s) / bin_s);
    return std::min(static_cast<std::size_t>(std::max(bin, 0.0)), kLoadBins);
  };
  for (std::size_t i = 0; i + 1 < samples.size(); ++i) {
    const std::size_t from = bin_of(samples[i]);
    const std::size_t to = std::max(from, bin_of(samples[i + 1]));
    std::fill(loads.gbps.begin() + static_cast<std::ptrdiff_t>(from),
              loads.gbps.begin() + static_cast<std::ptrdiff_t>(to), samples[i].gbps);
  }
  return loads;
}

}  // namespace

std::vector<LayerLoads> read_link_loads(const std::filesystem::path& timeline,
                                        const RunReport& report) {
  const std::vector<Sample> samples = read_samples(timeline);
  std::vector<double> start_s{0.0};
  for (const LayerReport& layer : report.layers) start_s.push_back(start_s.back() + layer.time_s);
  const double tolerance_s = 1e-7 * start_s.back() + 1e-15;

  // The layers follow each other, in each the links, in each its samples up to the layer's end.
  std::vector<LayerLoads> layers(report.layers.size());
  std::size_t layer = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    std::size_t ending = layer;
    while (ending < layers.size() &&
           std::abs(samples[i].time_s - start_s[ending + 1]) > tolerance_s) {
      ++ending;
    }
    const bool same_link = samples[i].link == samples[begin].link;
    if (!same_link || (ending == layers.size() && i + 1 == samples.size())) {
      throw InputError(timeline.string(), "link loads that do not end with a layer",
                       "the timeline of the results beside it");
    }
    if (ending == layers.size() || samples[i].gbps != 0.0 || i == begin) continue;
    layer = ending;
    LayerLoads& loads = layers[layer];
    loads.begin_s = samples[begin].time_s - start_s[layer];
    loads.end_s = samples[i].time_s - start_s[layer];
    loads.links.push_back(fill_bins(std::span(samples).subspan(begin, i + 1 - begin)));
    begin = i + 1;
  }
  return layers;
}

}  // namespace coterie
