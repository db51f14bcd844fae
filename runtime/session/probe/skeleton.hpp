#pragma once
// The plain figures of a machine as a topology that `coterie` reads.

#include <cstdint>
#include <string>

namespace coterie {

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
