#pragma once
// `coterie-runtime probe`: what this machine's GPUs and links can do, as a topology skeleton that
// `coterie` reads and as curves that calibration starts from (schema in runtime/README.md).

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"

namespace coterie {

struct ProbeOptions {
  std::filesystem::path output;
  std::uint64_t max_bytes = std::uint64_t{64} << 20;  // per pair
  std::uint32_t num_samples = 15;                     // per size; fewer where one takes long
  bool append = false;  // as a further restart in the curves that are there
  std::string machine;  // a name for the machine; the host's where empty
  std::string command;
  GroupOptions group;
};

// Collective. Rank 0 writes curves.json and topology.yaml into the output folder.
void run_probe(const ProbeOptions& options, const RankEnvironment& environment);

// The sizes of a curve: 1 B and every fourth multiple (1, 4, 16, ...) up to `max_bytes`.
std::vector<std::uint64_t> curve_sizes(std::uint64_t max_bytes);

struct ProbeFacts {
  std::string machine;
  std::string device;
  std::string driver;
  std::string nccl;
  std::uint32_t num_sms = 0;
  std::uint32_t num_nodes = 1;
  std::uint32_t ranks_per_node = 1;
  std::uint32_t ranks_per_gpu = 1;
  std::string link_kind;          // nvlink, pcie or socket, between ranks of a node
  double copy_bytes_per_s = 0.0;  // device memory, reads and writes together
  double gemm_flop_per_s = 0.0;   // BF16, 8192 cubed
  double launch_s = 0.0;          // from one small operation of a stream to the next
  // Of the largest messages; zero where there is no such pair.
  double pair_bytes_per_s = 0.0;        // one pair of a node alone
  double pair_latency_s = 0.0;          // the smallest message of that pair
  double all_to_all_bytes_per_s = 0.0;  // all ranks at once, sum of all bytes over the time
  double far_bytes_per_s = 0.0;         // one pair across nodes
  double far_latency_s = 0.0;
};

// A topology of one GPU per rank with these figures: plain alpha and bandwidth, uncalibrated.
std::string topology_skeleton(const ProbeFacts& facts);

}  // namespace coterie
