#pragma once
// The registry of fabrics. A fabric is one file of this folder that defines a FabricType: how its
// YAML keys are read, what must hold, and which switches and cables it stands for. The recipe for
// adding one is in topologies/README.md.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "topologies/cluster.hpp"
#include "topologies/layered_map.hpp"

namespace coterie {

// What a fabric has to connect.
struct FabricSite {
  std::uint32_t num_nodes = 1;
  std::uint32_t gpus_per_node = 1;
  std::uint32_t nics_per_gpu = 1;
  [[nodiscard]] std::uint64_t num_gpus() const { return std::uint64_t{num_nodes} * gpus_per_node; }
  [[nodiscard]] std::uint64_t num_ports() const { return num_gpus() * nics_per_gpu; }
};
FabricSite fabric_site(const Cluster& cluster);

enum class SwitchKind : std::uint8_t {
  kLeaf,
  kSpine,
  kEdge,
  kAggregation,
  kCore,
  kRouter,
  kSwitch
};
std::string to_string(SwitchKind kind);

struct Switch {
  SwitchKind kind = SwitchKind::kSwitch;
  std::uint32_t idx = 0;  // among the switches of its kind
};

// A full-duplex cable between two switches.
struct SwitchCable {
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  Bandwidth bandwidth;
  Seconds latency;
  std::uint32_t cost = 1;  // what shortest routes add up; at most 255
};

// The fabric without its GPUs. All NICs of a GPU end at one switch.
struct SwitchGraph {
  std::vector<Switch> switches;
  std::vector<std::uint32_t> attach;  // [num_gpus] the switch of each GPU's NICs
  std::vector<SwitchCable> cables;
  // Deterministic routes take the first of several equally short cables (dimension order on a
  // torus) instead of spreading destinations over them.
  bool first_cable_first = false;
};

using FabricKeys = std::vector<std::pair<std::string, std::string>>;

struct FabricType {
  std::string_view name;     // `kind` in YAML
  std::string_view summary;  // for lists
  bool has_hop_latency = true;
  FabricKind (*read)(LayeredMap& map, const FabricSite& site);
  // Throws InputError, with `where` in front, for a fabric that cannot connect the site.
  void (*check)(const FabricKind& kind, const FabricSite& site, std::string_view where);
  SwitchGraph (*build)(const Cluster& cluster);
  // The keys of `read` besides `kind` and `hop_latency`, as YAML text.
  FabricKeys (*keys)(const FabricKind& kind);
};

extern const FabricType kStarType, kRailOnlyType, kLeafSpineType, kFatTreeType, kDragonflyType,
    kTorusType, kCustomType;

// In the order of the FabricKind variant.
std::span<const FabricType* const> fabric_types();
const FabricType& fabric_type(const FabricKind& kind);

// Helpers of the fabrics.
std::uint32_t add_switches(SwitchGraph& graph, SwitchKind kind, std::uint32_t count);  // the first
// Quantities as text that reads back to the same value.
std::string exact(Bandwidth bandwidth);
std::string exact(Seconds seconds);
constexpr std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) {
  return (a + b - 1) / b;
}

}  // namespace coterie
