#pragma once
// Traffic matrices: bytes from every rank to every other, as a sparse list. What raw-traffic
// predictions start from, and what a stage of a plan becomes for other simulators and benchmarks.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "workloads/plan/plan.hpp"

namespace coterie {

// One message; src == dst never crosses a link.
struct TrafficEntry {
  std::uint32_t src = 0;
  std::uint32_t dst = 0;
  std::int64_t bytes = 0;  // > 0
  double start_s = 0.0;    // earliest start; only the htsim format carries it
  friend bool operator==(const TrafficEntry&, const TrafficEntry&) = default;
};

struct TrafficMatrix {
  std::uint32_t num_ranks = 0;
  std::vector<TrafficEntry> entries;  // in the file's order: a rank sends in this order
};

// The two text formats (workloads/PLANS.md).
//   matrix: num_ranks lines of num_ranks byte counts; '#' starts a comment. A rank sends to itself
//           first, then to the ranks above it, modulo num_ranks.
//   htsim:  "Nodes n", "Connections m", then m lines "src->dst id i start t size bytes", where t is
//           in picoseconds. Triggers and failures are refused.
enum class MatrixFormat : std::uint8_t { kMatrix, kHtsim };
// Throws InputError with `name`, line and column.
TrafficMatrix parse_traffic(std::string_view text, const std::string& name, MatrixFormat format);
// Tells the two apart by the first word.
TrafficMatrix read_traffic(const std::filesystem::path& path);

// One direction of one stage of a plan, a transfer an entry; rows that stay on their rank are
// entries with src == dst. Combine entries are in the order of the dispatch transfers they answer.
TrafficMatrix stage_traffic(const LayerPlan& plan, std::size_t stage_idx, Direction direction,
                            const PayloadSizes& sizes);

// Texts of the formats. `matrix` adds up the entries of a pair and divides by `unit` (1024 for
// nccl-tests, whose alltoallv takes KiB); `htsim` leaves out src == dst.
std::string format_matrix(const TrafficMatrix& traffic, std::int64_t unit = 1);
std::string format_htsim(const TrafficMatrix& traffic);
// GOAL, the input of LogGOPSim and ATLAHS: all stages of one direction with their dependencies.
// Rows that stay on their rank are left out.
std::string format_goal(const LayerPlan& plan, Direction direction, const PayloadSizes& sizes);

}  // namespace coterie
