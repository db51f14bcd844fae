#include "topologies/import/machine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "core/counted.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

// NVLink's rate per link and direction, by NVIDIA's data sheets of the GPUs.
struct GpuFamily {
  std::string_view word;  // of gpu.name
  std::uint32_t sm;
  double link_rate;  // B/s
};
constexpr std::array<GpuFamily, 15> kFamilies{{{"V100", 70, 25e9},
                                               {"A100", 80, 25e9},
                                               {"A800", 80, 25e9},
                                               {"A6000", 86, 14.0625e9},
                                               {"A40", 86, 14.0625e9},
                                               {"L40", 89, 0.0},
                                               {"H100", 90, 25e9},
                                               {"H200", 90, 25e9},
                                               {"H800", 90, 25e9},
                                               {"H20", 90, 25e9},
                                               {"GH200", 90, 25e9},
                                               {"B200", 100, 50e9},
                                               {"B300", 103, 50e9},
                                               {"GB300", 103, 50e9},
                                               {"RTX PRO 6000", 120, 0.0}}};
constexpr std::uint32_t kMostLinks = 18;  // of a GPU, up to NVLink 5

const GpuFamily* family_of(const std::string& gpu) {
  const GpuFamily* found = nullptr;
  for (const GpuFamily& family : kFamilies) {
    if (gpu.find(family.word) == std::string::npos) continue;
    if (found == nullptr || family.word.size() > found->word.size()) found = &family;
  }
  return found;
}

struct NvLinks {
  std::uint32_t per_gpu = 0;
  std::optional<std::uint32_t> per_pair;  // of direct links; absent: through a switch
};

bool near(double a, double b) {
  return std::abs(a - b) <= 0.01 * b;
}

// What the NVLinks of a machine amount to; per_gpu 0 where there are none.
NvLinks nvlinks_of(const Machine& machine, const std::string& name, const Cluster& base) {
  if (machine.switch_links) return {*machine.switch_links, std::nullopt};
  std::optional<std::uint32_t> count;
  for (std::uint32_t a = 0; a < machine.num_gpus; ++a) {
    for (std::uint32_t b = 0; b < machine.num_gpus; ++b) {
      if (a == b) continue;
      const std::uint32_t links = machine.links[a][b];
      if (count && *count != links) {
        throw InputError(
            name, fmt::format("{} NVLinks between some GPUs and {} between others", *count, links),
            "as many between all pairs: a domain of the model has one switch");
      }
      count = links;
    }
  }
  const std::uint32_t pair = count.value_or(0);
  if (pair == 0 || machine.num_gpus == 2) return {pair, std::nullopt};
  const std::uint32_t direct = pair * (machine.num_gpus - 1);
  if (direct > kMostLinks) return {pair, std::nullopt};
  // As many links to every other GPU, or as many to a switch: the base's port tells.
  const GpuFamily* family = family_of(base.gpu.name);
  if (family != nullptr && family->link_rate > 0.0 && base.scale_up) {
    const double port = base.scale_up->bandwidth.value;
    if (near(port, direct * family->link_rate)) return {direct, pair};
    if (near(port, pair * family->link_rate)) return {pair, std::nullopt};
  }
  throw InputError(
      name,
      fmt::format("NV{} between every pair of {}, which may be {} direct links of each GPU or "
                  "{} to a switch",
                  pair, counted(machine.num_gpus, "GPU"), direct, pair),
      "a base whose port has the bandwidth of either");
}

void check_base(const Machine& machine, bool nvlink, const std::string& name, const Cluster& base) {
  const GpuFamily* family = family_of(base.gpu.name);
  if (machine.sm && family != nullptr && family->sm != *machine.sm) {
    throw InputError(name, fmt::format("GPUs of compute capability {}", *machine.sm),
                     fmt::format("{} as the {} of the base", family->sm, base.gpu.name));
  }
  if (!base.scale_up || base.scale_up->kind == ScaleUpKind::kSocket) {
    throw InputError(name, fmt::format("GPUs joined by {}", nvlink ? "NVLink" : "PCIe"),
                     "a base with such links in the node");
  }
  if (nvlink != (base.scale_up->kind == ScaleUpKind::kNvlink)) {
    throw InputError(name, fmt::format("GPUs joined by {}", nvlink ? "NVLink" : "PCIe alone"),
                     fmt::format("{} as in the base", nvlink ? "PCIe alone" : "NVLink"));
  }
}

void describe_nvlink(const Machine& machine, const NvLinks& links, ImportedTopology& out) {
  ScaleUp& scale_up = *out.cluster.scale_up;
  const std::string how = links.per_pair
                              ? fmt::format("{} NVLinks between every pair", *links.per_pair)
                              : fmt::format("{} NVLinks per GPU", links.per_gpu);
  out.read.push_back(how);
  const GpuFamily* family = family_of(out.cluster.gpu.name);
  if (family == nullptr || family->link_rate <= 0.0) {
    out.not_known.push_back(fmt::format("the rate of an NVLink: {} per GPU as in the base",
                                        format_bandwidth(scale_up.bandwidth)));
  } else {
    const double before = scale_up.bandwidth.value;
    scale_up.bandwidth = Bandwidth{links.per_gpu * family->link_rate};
    out.not_known.push_back(
        fmt::format("what a link carries: {} each direction by the data sheet of {}, {} per GPU",
                    format_bandwidth({family->link_rate}), out.cluster.gpu.name,
                    format_bandwidth(scale_up.bandwidth)));
    // Caps of the base were measured at its links' rate.
    if (scale_up.injection.rank_bandwidth && !near(before, scale_up.bandwidth.value)) {
      scale_up.injection.rank_bandwidth->value *= scale_up.bandwidth.value / before;
      out.not_known.emplace_back("what a rank reaches of its links: the base's share of them");
    }
    if (links.per_pair) {
      const Bandwidth pair{*links.per_pair * family->link_rate};
      for (TransportParameters& transport : out.cluster.transports) {
        auto* nccl = std::get_if<NcclParameters>(&transport);
        if (nccl == nullptr || !nccl->scale_up) continue;
        for (MessageSegment& segment : nccl->scale_up->segments) {
          segment.bandwidth = std::min(segment.bandwidth.value_or(pair), pair);
        }
      }
    }
  }
  scale_up.nodes_per_domain = machine.num_nodes;
}

void describe_pcie(const Machine& machine, ImportedTopology& out) {
  ScaleUp& scale_up = *out.cluster.scale_up;
  out.read.emplace_back("no NVLink");
  if (machine.pcie && machine.pcie->value < scale_up.bandwidth.value) {
    scale_up.bandwidth = *machine.pcie;
    out.read.push_back(fmt::format("PCIe links of {}", format_bandwidth(*machine.pcie)));
  } else {
    out.not_known.push_back(fmt::format("what a PCIe link reaches: {} as in the base",
                                        format_bandwidth(scale_up.bandwidth)));
  }
  std::map<std::uint32_t, std::uint32_t> sizes;
  for (const std::uint32_t group : machine.pcie_group) ++sizes[group];
  const std::uint32_t size = sizes.empty() ? 1 : sizes.begin()->second;
  const bool equal = std::all_of(sizes.begin(), sizes.end(),
                                 [&](const auto& entry) { return entry.second == size; });
  scale_up.shared_group = 1;
  if (!equal) {
    out.not_known.emplace_back(
        "how PCIe switches of unequally many GPUs act: no traffic stays off the host bridge");
  } else if (size > 1 && size < machine.num_gpus) {
    out.read.push_back(fmt::format("{} under each PCIe switch", counted(size, "GPU")));
    if (scale_up.shared_bandwidth) {
      scale_up.shared_group = size;
    } else {
      out.not_known.emplace_back("what the host bridge carries: the base has no limit");
    }
  }
  if (machine.num_sockets && *machine.num_sockets != scale_up.num_sockets) {
    if (*machine.num_sockets > 1) {
      out.not_known.push_back(
          fmt::format("what joins the {} sockets: one host bridge stands for them, as in the base",
                      *machine.num_sockets));
    }
    scale_up.num_sockets = 1;
    scale_up.socket_bandwidth.reset();
  } else if (scale_up.num_sockets > 1) {
    out.read.push_back(fmt::format("{} sockets", scale_up.num_sockets));
  }
  if (scale_up.shared_bandwidth) {
    out.not_known.push_back(fmt::format("what the host bridge carries: {} as in the base",
                                        format_bandwidth(*scale_up.shared_bandwidth)));
  }
}

void describe_network(const Machine& machine, const std::string& name,
                      const TopologyImportOptions& options, ImportedTopology& out) {
  Cluster& cluster = out.cluster;
  cluster.num_nodes = options.num_nodes.value_or(machine.num_nodes);
  const std::string ports = machine.num_nics == 0
                                ? "no network ports"
                                : fmt::format("{} network ports", machine.num_nics);
  if (cluster.num_nodes == machine.num_nodes) {
    cluster.nic.reset();
    cluster.fabric.reset();
    if (machine.num_nics > 0) out.read.push_back(ports + ", of no use to a single domain");
    return;
  }
  if (!cluster.nic || !cluster.fabric) {
    throw InputError(name, fmt::format("{} asked for", counted(cluster.num_nodes, "node")),
                     "a base with NICs and a fabric, which no machine's own view has");
  }
  if (machine.num_nics == 0) {
    out.not_known.push_back(fmt::format("network ports: {} of {} per GPU as in the base",
                                        cluster.nic->per_gpu,
                                        format_bandwidth(cluster.nic->bandwidth)));
  } else {
    out.read.push_back(ports);
    if (machine.nic_bandwidth) {
      cluster.nic->bandwidth = *machine.nic_bandwidth;
      out.read.push_back(fmt::format("of {} each", format_bandwidth(*machine.nic_bandwidth)));
    } else {
      out.not_known.push_back(fmt::format("a port's rate: {} as in the base",
                                          format_bandwidth(cluster.nic->bandwidth)));
    }
    if (machine.num_nics % machine.num_gpus == 0) {
      cluster.nic->per_gpu = machine.num_nics / machine.num_gpus;
    } else if (machine.num_gpus % machine.num_nics == 0) {
      const std::uint32_t sharers = machine.num_gpus / machine.num_nics;
      cluster.nic->per_gpu = 1;
      cluster.nic->bandwidth.value /= sharers;
      out.not_known.push_back(fmt::format(
          "how {} share a port: each has its part of it, as NICs of the model are of one GPU",
          counted(sharers, "GPU")));
    } else {
      throw InputError(name,
                       fmt::format("{} network ports near {}", machine.num_nics,
                                   counted(machine.num_gpus, "GPU")),
                       "as many for every GPU, or as many GPUs for every port");
    }
  }
  out.not_known.emplace_back("how nodes are joined: the base's fabric");
}

}  // namespace

ImportedTopology describe(const Machine& machine, const std::string& name, const Cluster& base,
                          const TopologyImportOptions& options) {
  if (machine.num_gpus == 0) throw InputError(name, "no GPUs", "at least one");
  const NvLinks links = nvlinks_of(machine, name, base);
  check_base(machine, links.per_gpu > 0, name, base);
  ImportedTopology out;
  out.cluster = base;
  out.cluster.gpus_per_node = machine.num_gpus;
  out.cluster.relative_uncertainty.reset();
  out.cluster.provenance.clear();
  out.read.push_back(
      fmt::format("{} GPU{} in a node", machine.num_gpus, machine.num_gpus == 1 ? "" : "s"));
  if (machine.num_nodes > 1) {
    out.read.push_back(fmt::format("{} in one NVLink domain", counted(machine.num_nodes, "node")));
  }
  if (machine.num_gpus == 1) {
    out.not_known.emplace_back(
        "other GPUs of the node: the process that was asked saw one (CUDA_VISIBLE_DEVICES, or a "
        "container); give them with --set gpus_per_node");
  }
  if (links.per_gpu > 0) {
    describe_nvlink(machine, links, out);
  } else {
    describe_pcie(machine, out);
  }
  describe_network(machine, name, options, out);
  out.not_known.push_back(fmt::format(
      "what the GPUs compute and what transfers cost before their first byte: the base's ({})",
      base.gpu.name));
  out.cluster.description =
      fmt::format("{} x {} per node, imported", machine.num_gpus, base.gpu.name);
  return out;
}

}  // namespace coterie
