#pragma once
// The recorded traces that benchmarks of placements learn on and measure on, and how they time them.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/parallel.hpp"
#include "workloads/placement/layer_times.hpp"
#include "workloads/trace/importer.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

struct RecordedParts {
  std::string name;
  Routing training, evaluated;  // even and odd sequences
};

// FOLDER/NAME.npz below `traces` with at most `num_layers` layers, spread over the model. Nothing,
// and a line that says so, where there is no such file.
inline std::optional<RecordedParts> load_recorded(const std::filesystem::path& traces,
                                                  const std::string& folder,
                                                  const std::string& name, std::size_t num_layers) {
  const std::filesystem::path path = traces / folder / (name + ".npz");
  if (!std::filesystem::exists(path)) {
    fmt::print("no recorded trace {}\n", path.string());
    return std::nullopt;
  }
  const std::vector<std::filesystem::path> inputs = {path};
  const auto trace = std::get<Routing>(import_traces(inputs, "npz", {}).trace);
  std::vector<std::size_t> layers;
  const std::size_t wanted = std::min(num_layers, trace.num_layers());
  for (std::size_t i = 0; i < wanted; ++i) layers.push_back(i * trace.num_layers() / wanted);
  return RecordedParts{name, select_layers(select(trace, SequencePart::kEven), layers),
                       select_layers(select(trace, SequencePart::kOdd), layers)};
}

inline constexpr unsigned kBenchJobs = 2;  // threads that place and predict

// Predicted seconds, summed over the layers of a routing.
inline double seconds_on(const LayerTimes& times, const Routing& routing,
                         const Placement& placement) {
  std::vector<double> layers(routing.num_layers());
  parallel_for(kBenchJobs, layers.size(), [&](std::size_t i) {
    layers[i] = times.predict_s(routing, i, placement.layers[i], placement.replica_choice);
  });
  double sum = 0.0;
  for (const double seconds : layers) sum += seconds;
  return sum;
}

}  // namespace coterie
