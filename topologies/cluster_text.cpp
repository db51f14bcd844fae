#include <fmt/format.h>

#include <iterator>

#include "topologies/cluster.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

// Texts of users may hold anything: double quotes with JSON's escapes, which YAML shares.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string exact(ComputeRate rate) {
  return fmt::format("{} FLOP/s", rate.value);
}

std::string injection_text(const Injection& injection) {
  std::string text = "  injection:\n    sends_in_flight: ";
  text += injection.sends_in_flight == kUnlimitedSends ? "unlimited"
                                                       : std::to_string(injection.sends_in_flight);
  if (injection.rank_bandwidth) {
    text += "\n    rank_bandwidth: " + exact(*injection.rank_bandwidth);
  }
  if (injection.rank_total_bandwidth) {
    text += "\n    rank_total_bandwidth: " + exact(*injection.rank_total_bandwidth);
  }
  return text + "\n";
}

std::string mlp_text(const char* key, const std::optional<MlpCosts>& mlp) {
  if (!mlp) return "";
  std::string text = fmt::format(
      "  {}:\n    launch: {}\n    weight_bandwidth: {}\n    compute_rate: {}\n"
      "    batch_bandwidth: {}\n    tile_padding: {}\n    sharpness: {}\n",
      key, exact(mlp->launch), exact(mlp->weight_bandwidth), exact(mlp->compute_rate),
      exact(mlp->batch_bandwidth), mlp->tile_padding, mlp->sharpness);
  if (mlp->tile_rows > 1) text += fmt::format("    tile_rows: {}\n", mlp->tile_rows);
  if (!mlp->tiles.empty()) text += "    tiles:\n";
  for (const MlpTile& tile : mlp->tiles) {
    text +=
        fmt::format("      - {{rows: {}, compute_rate: {}", tile.rows, exact(tile.compute_rate));
    if (tile.value_time.value > 0.0) text += ", value_time: " + exact(tile.value_time);
    if (tile.up_to_tokens) text += fmt::format(", up_to_tokens: {}", *tile.up_to_tokens);
    text += "}\n";
  }
  if (mlp->tile_depth > 0.0) text += fmt::format("    tile_depth: {}\n", mlp->tile_depth);
  if (mlp->reads_rows) text += "    reads_rows: true\n";
  if (mlp->expert.value > 0.0) text += fmt::format("    expert: {}\n", exact(mlp->expert));
  if (mlp->row_bandwidth) {
    text += fmt::format("    row_bandwidth: {}\n", exact(*mlp->row_bandwidth));
  }
  if (mlp->among_streams.value > 0.0) {
    text += fmt::format("    among_streams: {}\n", exact(mlp->among_streams));
  }
  return text;
}

std::string kernel_text(const char* phase, const KernelCosts& costs) {
  const std::string copy =
      costs.copy.value > 0.0 ? fmt::format(", copy: {}", exact(costs.copy)) : "";
  std::string more;
  if (costs.item_bandwidth) {
    more += fmt::format(", item_bandwidth: {}", exact(*costs.item_bandwidth));
  }
  if (costs.quantise_bandwidth) {
    more += fmt::format(", quantise_bandwidth: {}", exact(*costs.quantise_bandwidth));
  }
  if (costs.again) more += fmt::format(", again: {}", exact(*costs.again));
  return fmt::format("    {}: {{launch: {}, row: {}{}, bandwidth: {}{}}}\n", phase,
                     exact(costs.launch), exact(costs.row), copy, exact(costs.bandwidth), more);
}

std::string gpu_text(const GpuModel& gpu) {
  std::string text = fmt::format(
      "gpu:\n  name: {}\n  bf16_peak: {}\n  fp8_peak: {}\n  memory_bandwidth: {}\n  num_sms: {}\n"
      "  compute_efficiency: {}\n  memory_efficiency: {}\n  kernel_launch: {}\n",
      quoted(gpu.name), exact(gpu.bf16_peak), exact(gpu.fp8_peak), exact(gpu.memory_bandwidth),
      gpu.num_sms, gpu.compute_efficiency, gpu.memory_efficiency, exact(gpu.kernel_launch));
  if (gpu.fp4_peak != gpu.fp8_peak) text += fmt::format("  fp4_peak: {}\n", exact(gpu.fp4_peak));
  if (gpu.memory) text += fmt::format("  memory: {} B\n", gpu.memory->value);
  text += mlp_text("mlp", gpu.mlp);
  text += mlp_text("mlp_fp8", gpu.mlp_fp8);
  text += mlp_text("shared_mlp", gpu.shared_mlp);
  if (gpu.kernels) {
    text += "  kernels:\n";
    text += kernel_text("pack", gpu.kernels->pack);
    text += kernel_text("forward", gpu.kernels->forward);
    text += kernel_text("expand", gpu.kernels->expand);
    text += kernel_text("merge", gpu.kernels->merge);
    text += kernel_text("gather", gpu.kernels->gather);
    text += kernel_text("sum", gpu.kernels->sum);
    if (gpu.kernels->own_copy) text += kernel_text("own_copy", *gpu.kernels->own_copy);
    if (gpu.kernels->send_index) text += kernel_text("send_index", *gpu.kernels->send_index);
    if (gpu.kernels->forward_index) {
      text += kernel_text("forward_index", *gpu.kernels->forward_index);
    }
    if (gpu.kernels->expand_put) text += kernel_text("expand_put", *gpu.kernels->expand_put);
    text += fmt::format("    gap: {}\n", exact(gpu.kernels->gap));
    if (gpu.kernels->among_streams.value > 0.0) {
      text += fmt::format("    among_streams: {}\n", exact(gpu.kernels->among_streams));
    }
    if (gpu.kernels->join) text += fmt::format("    join: {}\n", exact(*gpu.kernels->join));
  }
  if (!gpu.operations.empty()) text += "  operations:\n";
  for (const auto& [kind, costs] : gpu.operations) {
    text +=
        fmt::format("    {}: {{launch: {}, memory: {}", kind, exact(costs.launch), costs.memory);
    if (kind != "memory") {
      text += fmt::format(", compute: {}, sharpness: {}", costs.compute, costs.sharpness);
    }
    text += "}\n";
  }
  return text;
}

std::string scale_up_text(const ScaleUp& scale_up) {
  const char* kind = scale_up.kind == ScaleUpKind::kNvlink ? "nvlink"
                     : scale_up.kind == ScaleUpKind::kPcie ? "pcie"
                                                           : "socket";
  std::string text = fmt::format(
      "scale_up:\n  kind: {}\n  bandwidth: {}\n  latency: {}\n  nodes_per_domain: {}\n", kind,
      exact(scale_up.bandwidth), exact(scale_up.latency), scale_up.nodes_per_domain);
  if (scale_up.shared_bandwidth) {
    text += fmt::format("  shared_bandwidth: {}\n  shared_group: {}\n",
                        exact(*scale_up.shared_bandwidth), scale_up.shared_group);
  }
  if (scale_up.num_sockets > 1) text += fmt::format("  sockets: {}\n", scale_up.num_sockets);
  if (scale_up.socket_bandwidth) {
    text += fmt::format("  socket_bandwidth: {}\n", exact(*scale_up.socket_bandwidth));
  }
  return text + injection_text(scale_up.injection);
}

std::string fabric_text(const Fabric& fabric) {
  const FabricType& type = fabric_type(fabric.kind);
  std::string text = fmt::format("fabric:\n  kind: {}\n", type.name);
  if (type.has_hop_latency) text += fmt::format("  hop_latency: {}\n", exact(fabric.hop_latency));
  for (const auto& [key, value] : type.keys(fabric.kind)) {
    text += fmt::format("  {}: {}\n", key, value);
  }
  return text;
}

std::string uncertainty_text(const Uncertainty& uncertainty) {
  std::string text;
  const auto add = [&text](const char* key, const std::vector<UncertaintyStep>& steps) {
    if (steps.empty()) return;
    text += fmt::format("  {}:\n", key);
    for (const UncertaintyStep& step : steps) {
      const std::string up_to = step.up_to ? fmt::format("up_to: {}, ", exact(*step.up_to)) : "";
      text += fmt::format("    - {{{}relative: {}}}\n", up_to, step.relative);
    }
  };
  add("scale_up", uncertainty.scale_up);
  add("network", uncertainty.network);
  add("kernels", uncertainty.kernels);
  add("mlp", uncertainty.mlp);
  return text.empty() ? text : "uncertainty:\n" + text;
}

}  // namespace

std::string to_yaml(const Cluster& cluster) {
  std::string text = fmt::format("schema_version: 1\nname: {}\n", quoted(cluster.name));
  if (!cluster.description.empty()) {
    text += fmt::format("description: {}\n", quoted(cluster.description));
  }
  text += fmt::format("nodes: {}\ngpus_per_node: {}\n", cluster.num_nodes, cluster.gpus_per_node);
  if (cluster.ranks_per_gpu > 1) {
    text += fmt::format("ranks_per_gpu: {}\n", cluster.ranks_per_gpu);
  }
  text += gpu_text(cluster.gpu);
  if (cluster.scale_up) text += scale_up_text(*cluster.scale_up);
  if (const auto& nic = cluster.nic) {
    text += fmt::format("nic:\n  per_gpu: {}\n  bandwidth: {}\n  latency: {}\n  pxn: {}\n",
                        nic->per_gpu, exact(nic->bandwidth), exact(nic->latency), nic->pxn);
    text += injection_text(nic->injection);
  }
  if (cluster.fabric) text += fabric_text(*cluster.fabric);
  text += fmt::format("overheads:\n  notify: {}\n", exact(cluster.overheads.notify));
  if (cluster.collectives) text += collectives_text(*cluster.collectives);
  text += transports_text(cluster.transports);
  if (cluster.relative_uncertainty) {
    text += fmt::format("relative_uncertainty: {}\n", *cluster.relative_uncertainty);
  }
  text += uncertainty_text(cluster.uncertainty);
  if (!cluster.provenance.empty()) text += "provenance:\n";
  for (const auto& [key, value] : cluster.provenance) {
    text += fmt::format("  {}: {}\n", quoted(key), quoted(value));
  }
  return text;
}

}  // namespace coterie
