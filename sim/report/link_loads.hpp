#pragma once
// The load of the busiest links over time, read back from a run's timeline.

#include <filesystem>
#include <string>
#include <vector>

#include "core/report.hpp"

namespace coterie {

inline constexpr std::size_t kLoadBins = 100;  // per layer, as simulate writes them

struct LinkLoads {
  std::string link;
  std::vector<double> gbps;  // [kLoadBins] GB/s
};
struct LayerLoads {
  double begin_s = 0.0;  // from the start of the layer's clock; negative where ranks were early
  double end_s = 0.0;
  std::vector<LinkLoads> links;  // busiest first; empty: nothing recorded
};

// One entry per layer of the report. Throws InputError for a file that is no timeline of it.
std::vector<LayerLoads> read_link_loads(const std::filesystem::path& timeline,
                                        const RunReport& report);

}  // namespace coterie
