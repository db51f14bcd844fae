#pragma once
// Measurements as calibration reads them. Every reader refuses what cannot be a measurement (times
// that are not positive, counts below one, cells that are not numbers) with file and line.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/units.hpp"

namespace coterie {

// One uniform all-to-all.
struct AllToAllPoint {
  std::string machine;
  std::string device;
  std::string version;  // of NCCL
  std::uint32_t num_ranks = 2;
  double bytes_per_rank = 0.0;  // the send buffer: every pair exchanges 1/num_ranks of it
  double time_s = 0.0;
  // Bytes that leave the rank, and those of one message.
  [[nodiscard]] double volume() const { return bytes_per_rank * (num_ranks - 1) / num_ranks; }
  [[nodiscard]] double message() const { return bytes_per_rank / num_ranks; }
};

// Any of: CSV with the columns machine, device, nccl_version, num_gpus, bytes_per_rank, latency_us;
// the text output of nccl-tests (alltoall_perf, alltoallv_perf; sendrecv_perf between two ranks) or
// its own JSON report (nccl_log.hpp); the JSON curves of `coterie-runtime probe`. The format is
// recognised by the content. What was left out is appended to `notes`, where they are given.
std::vector<AllToAllPoint> read_alltoall(const std::filesystem::path& path,
                                         std::vector<std::string>* notes = nullptr);
std::vector<AllToAllPoint> parse_alltoall(const std::string& text, const std::string& name,
                                          std::vector<std::string>* notes = nullptr);

// The model of a GPU in a driver's or a topology's name for it, its first word with a digit: H100 of
// "NVIDIA H100 80GB HBM3", A100 of "NVIDIA A100-SXM4-80GB", A6000 of "RTX A6000". Empty without one.
std::string gpu_model(const std::string& name);
// Refuses what was measured on `device`, where its model and that of `gpu`, the topology's GPU, are known
// and differ.
void check_gpu_model(const std::string& device, const std::string& gpu, const std::string& where);

// Points of one machine: the only one of the file, or the one named. Refuses a mixture without a
// name, an unknown name, and fewer than three sizes. Repeated measurements of a size are replaced
// by their median, their versions by the most frequent.
std::vector<AllToAllPoint> select_machine(const std::vector<AllToAllPoint>& points,
                                          const std::string& machine, const std::string& where);

// Refuses points faster than `limit` bytes per second and rank.
void check_physical(const std::vector<AllToAllPoint>& points, Bandwidth limit,
                    const std::string& where);

// The expert MLP of one rank.
struct MlpPoint {
  double num_tokens = 0.0;  // of the whole EP group
  double hidden = 0.0, intermediate = 0.0;
  std::uint32_t topk = 1, num_experts = 1, ep_size = 1;
  std::string load;  // balanced, or power_law_ALPHA
  double time_s = 0.0;
  std::string machine, type, kernel;  // empty where the table does not say
};
// CSV: num_tokens_total, hidden, expert_intermediate, topk, num_experts, ep_size, expert_load,
// latency_ms, and if wanted machine, moe_dtype, kernel_source.
std::vector<MlpPoint> read_mlp(const std::filesystem::path& path);

}  // namespace coterie
