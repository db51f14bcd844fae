#include "runtime/session/probe/skeleton.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace coterie {

std::string topology_skeleton(const ProbeFacts& facts) {
  const std::uint32_t num_ranks = facts.num_nodes * facts.ranks_per_node;
  // Each of R ranks that work on one GPU at once has 1/R of it.
  const double share = 1.0 / facts.ranks_per_gpu;
  std::string out = fmt::format(
      "# Skeleton written by `coterie-runtime probe`: plain figures of this machine, "
      "uncalibrated.\n"
      "# Efficiencies are 1 because the rates are what a large GEMM and copy reached. A GPU that\n"
      "# several ranks share counts as as many GPUs with equal parts of it.\n"
      "schema_version: 1\n"
      "name: {}_ep{}\n"
      "description: \"{} ranks on {} ({} per GPU), probed\"\n"
      "nodes: {}\n"
      "gpus_per_node: {}\n"
      "gpu:\n"
      "  name: {}\n"
      "  bf16_peak: {:.1f} TFLOP/s\n"
      "  memory_bandwidth: {:.1f} GB/s\n"
      "  num_sms: {}\n"
      "  compute_efficiency: 1\n"
      "  memory_efficiency: 1\n"
      "  kernel_launch: {:.2f} us\n",
      facts.machine, num_ranks, num_ranks, facts.device, facts.ranks_per_gpu, facts.num_nodes,
      facts.ranks_per_node, facts.device, facts.gemm_flop_per_s * 1e-12 * share,
      facts.copy_bytes_per_s * 1e-9 * share, std::max(facts.num_sms / facts.ranks_per_gpu, 1U),
      facts.launch_s * 1e6);
  if (facts.pair_bytes_per_s > 0.0) {
    out += fmt::format(
        "scale_up:\n"
        "  kind: {}\n"
        "  bandwidth: {:.3f} GB/s\n"
        "  latency: 0 us\n",
        facts.link_kind, facts.pair_bytes_per_s * 1e-9);
    // Ranks that share one GPU or one host bridge share its bandwidth too.
    if (facts.link_kind != "nvlink" && facts.num_nodes == 1) {
      out += fmt::format("  shared_bandwidth: {:.3f} GB/s\n", facts.all_to_all_bytes_per_s * 1e-9);
    }
  }
  if (facts.far_bytes_per_s > 0.0) {
    out += fmt::format(
        "nic:\n"
        "  bandwidth: {:.3f} GB/s\n"
        "  latency: 0 us\n"
        "fabric:\n"
        "  kind: star\n",
        facts.far_bytes_per_s * 1e-9);
  }
  if (facts.pair_bytes_per_s > 0.0 || facts.far_bytes_per_s > 0.0) {
    out += "transports:\n  nccl:\n";
  }
  const auto add_tier = [&out](const char* tier, double alpha_s) {
    out += fmt::format("    {}: {{segments: [{{alpha: {:.2f} us}}]}}\n", tier, alpha_s * 1e6);
  };
  if (facts.pair_bytes_per_s > 0.0) add_tier("scale_up", facts.pair_latency_s);
  if (facts.far_bytes_per_s > 0.0) add_tier("network", facts.far_latency_s);
  out += fmt::format(
      "provenance:\n"
      "  machine: {}\n"
      "  device: {}\n"
      "  driver: \"{}\"\n"
      "  nccl: \"{}\"\n",
      facts.machine, facts.device, facts.driver, facts.nccl);
  return out;
}

}  // namespace coterie
