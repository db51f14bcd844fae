#pragma once
// `coterie-runtime bench-direct`: how fast the transport `direct` dispatches and combines recorded
// routing, beside what the wire and the memory of the same machine allow in the same run.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/yaml.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"

namespace coterie {

struct DirectBenchOptions {
  std::filesystem::path experiment;  // its trace, ranks, first layer and first run
  std::filesystem::path json;        // empty: the table alone
  std::vector<Override> overrides;
  std::vector<std::uint32_t> hidden{2048, 7168};
  std::vector<std::uint32_t> tokens{128, 4096};
  std::vector<std::uint32_t> sms{8, 16, 24};
  std::vector<std::string> payloads{"bf16", "fp8"};
  // "WARPSxSLOTS": rings to try in place of those that the kernels choose.
  std::vector<std::string> put_rings, pull_rings;
  std::uint32_t num_samples = 30;
  std::string command;
  GroupOptions group;
};

// Collective. Rank 0 prints the table and writes the file. Samples are the slowest rank's, enqueued
// behind a closed gate, one layer's steps after the other:
//
//   index     build_send_index
//   dispatch  put: rows at their destinations, flags included
//   expand    receiver's index, rows to expert order
//   combine   announcement of the results, pull with the sum
//   wire      the dispatch's bytes to the next rank by one copy each, all ranks at once
//   memory    the bytes of all its rows from device memory to device memory of the same GPU
void bench_direct(const DirectBenchOptions& options, const RankEnvironment& environment);

// "5x3": five warps with three slots each. Throws InputError.
struct RingText {
  std::uint32_t num_warps = 0, num_slots = 0;
};
RingText parse_ring(const std::string& text);

}  // namespace coterie
