#pragma once
// The cluster as a value: what the YAML files describe. One `Cluster` is plain data; the graph and
// the routes that follow from it live in fabric.hpp and network.hpp.
//
//   GPU --(scale-up port)-- scale-up switch          one per domain (a node, or a rack of NVL72)
//    |
//   (NIC port)
//    |
//   leaf -- spine -- leaf ...                        the fabric: joins the nodes
//
// Every link is full duplex; a bandwidth is per direction.

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/units.hpp"
#include "core/yaml.hpp"
#include "topologies/collectives.hpp"
#include "topologies/transports.hpp"

namespace coterie {

// What a byte crosses. kLocal never leaves the GPU.
enum class Tier : std::uint8_t { kLocal, kScaleUp, kNetwork };
std::string to_string(Tier tier);  // local, scale_up, network

// A shape of tile that a grouped product may use: it computes whole tiles of so many rows.
struct MlpTile {
  std::uint32_t rows = 1;
  ComputeRate compute_rate;
  // What a block takes for one of the values that a product sums over: it multiplies one after the
  // other, so that no product of k values ends before k * value_time.
  Seconds value_time = {};
  // Kernels that choose by the tokens of their batch take the first tile that these tokens do not exceed,
  // or the last, which has no such number. None of the tiles has one where the fastest is taken.
  std::optional<std::uint32_t> up_to_tokens = std::nullopt;
};

// A calibrated grouped expert MLP of one rank, in BF16, with the tile whose larger terms are least (or
// that the batch's tokens choose):
//   launch + num_experts * expert + (hidden + intermediate) * value_time of the tile
//          + sum_e ((bytes_e / weight_bandwidth)^q + (flops_e / compute_rate)^q)^(1/q)
//          + sum_e tokens_e * bytes of a row / row_bandwidth
//          + batch_copies * bytes of a row / batch_bandwidth
// num_experts counts the rank's experts, with tokens or without: kernels that take a list of products go
// through all of it. row_bandwidth is that of kernels beside the products (permutation, activation,
// quantisation), if they are counted. The sums are over the experts e with tokens:
//   flops_e  of tokens_e rounded up to whole tiles, and tile_padding more. A product of n columns over k
//            values counts 2 * n * (k + tile_depth) per row: a tile begins and ends as slowly as it
//            multiplies tile_depth values
//   bytes_e  weights, and where reads_rows the rows of all products: 2 * (2 * hidden + 3 * intermediate)
//            bytes of a row, without what stays in registers and caches
// batch_copies are the (token, expert) pairs of the whole EP group, for kernels that touch all of them
// wherever they are served; with a dispatch before the kernel there are none.
struct MlpCosts {
  Seconds launch;
  Bandwidth weight_bandwidth;
  ComputeRate compute_rate;
  Bandwidth batch_bandwidth;
  double tile_padding = 0.0;
  std::uint32_t tile_rows = 1;  // of the one tile of compute_rate, where `tiles` is empty
  double sharpness = 2.0;       // q >= 1: how sharply the larger of the two terms wins
  // In ascending order of rows; compute_rate is then the highest of theirs.
  std::vector<MlpTile> tiles;
  double tile_depth = 0.0;
  bool reads_rows = false;
  Seconds expert = {};
  std::optional<Bandwidth> row_bandwidth = std::nullopt;
  Seconds among_streams = {};  // more than `launch`, in a plan of two hops: see RowKernels
};

// A calibrated kernel that moves rows, with the kernel that builds its index where it has one:
//   launch + copies per row * copy + rows * row + quantised / quantise_bandwidth
//          + sqrt((bytes / bandwidth)^2 + (bytes / items / item_bandwidth)^2)
// A block of threads reads an item's rows one after the other: however few items there are, the kernel
// takes as long as one of them, and many cover that time up.
struct KernelCosts {
  Seconds launch;
  Seconds row;  // of each row's place in the index
  Seconds
      copy;  // of each (token, expert) pair of one row, which its index reads one after the other
  Bandwidth bandwidth;
  std::optional<Bandwidth> item_bandwidth;  // of one block; absent: no item takes long
  // What the tokens of a dispatch in FP8, as BF16 bytes, are quantised at; absent: no slower than moved.
  std::optional<Bandwidth> quantise_bandwidth;
  // Instead of `launch`, of each further one where several run between the same two events, one for each
  // round of a dispatch; absent: `launch` less what passes between two events.
  std::optional<Seconds> again = std::nullopt;
};
// The kernels of our runtime (kernels/rows.hpp), one per phase. What they move:
//   phase    items          rows                     bytes
//   pack     tokens         written, own included    every token once in BF16, every row
//   forward  rows received  written                  every received row once, every row
//   expand   rows received  (token, expert) copies   every received row, every copy in BF16
//   merge    rows received  (token, expert) copies   every copy, every result
//   gather   rows received  read                     every result read and written
//   sum      tokens         read                     every result, every token; with shared experts
//                                                    their output
// Experts find BF16 rows, whatever was dispatched, and compute in BF16. Every round of a hierarchical
// dispatch or combine has kernels and a grouped exchange of its own. `gap` passes between two phases
// of a rank: the events that time them. Each round of an exchange, with its kernel if it has one, ends
// with an event of its own, for those who wait for its rows: another `gap`. `own_copy` moves a rank's
// own results behind the exchange of a combine (each read and written); absent: kernel_launch and the
// memory's reachable rate.
struct RowKernels {
  KernelCosts pack, forward, expand, merge, gather, sum;
  std::optional<KernelCosts> own_copy;
  // The indices of pack and of forward alone, before a transport that moves the rows itself. They read
  // four bytes per (token, expert) pair; rows as above. Absent: those of `pack` and `forward`.
  std::optional<KernelCosts> send_index, forward_index;
  Seconds gap;
  // `expand` behind such a transport, whose rows it finds in the caches; absent: `expand`.
  std::optional<KernelCosts> expand_put = std::nullopt;
  // In a plan of two hops the hops have streams of their own, which wait beside the main one. Work that is
  // enqueued behind a wait makes each launch on another stream take longer: `among_streams` of a phase of
  // these kernels. `join` passes instead of `gap` where the main stream goes on behind those of the hops,
  // before expand and sum; absent: `gap`.
  Seconds among_streams = {};
  std::optional<Seconds> join = std::nullopt;
};

// What operations of one kind cost:
//   launch + ((flops / (peak * compute))^q + (bytes / (memory_bandwidth * memory))^q)^(1/q)
// with the peak of their precision. Of a memory-bound kernel only the bytes count.
struct OperationCosts {
  Seconds launch;
  double compute = 0.7;      // reachable share of the peak
  double memory = 0.85;      // reachable share of the memory bandwidth
  double sharpness = 100.0;  // q >= 1: how sharply the larger of the two terms wins
};
// The kinds that may be calibrated (gpu.operations): dense matrix products, those of experts, and
// attention by its pass and form. The rest follows from the two efficiencies and kernel_launch
// (sim/step/operation_times.hpp).
inline constexpr std::array kOperationKinds{
    "product_bf16",       "product_fp8",      "product_mxfp8",    "product_fp4", "grouped_bf16",
    "grouped_fp8",        "grouped_mxfp8",    "grouped_fp4",      "attention",   "attention_mla",
    "attention_backward", "attention_decode", "attention_latent", "memory"};

struct GpuModel {
  std::string name;
  ComputeRate bf16_peak;        // dense
  ComputeRate fp8_peak;         // dense, MXFP8 too; the BF16 rate where FP8 is not supported
  ComputeRate fp4_peak;         // dense (NVFP4, MXFP4); the FP8 rate where FP4 is not supported
  std::optional<Bytes> memory;  // device memory, for models that must fit
  Bandwidth memory_bandwidth;   // device memory, reads and writes together
  std::uint32_t num_sms = 0;
  double compute_efficiency = 0.7;  // reachable share of the peaks in a large grouped GEMM
  double memory_efficiency = 0.85;  // reachable share of the memory bandwidth in a copy
  Seconds kernel_launch;            // fixed cost of each kernel
  std::optional<MlpCosts> mlp;      // calibrated expert MLP; absent: a roofline per expert
  // The same on FP8 rows and weights; absent: `mlp`, scaled by what the peaks say.
  std::optional<MlpCosts> mlp_fp8;
  // The shared experts as one dense MLP in BF16; absent: each an expert of `mlp`.
  std::optional<MlpCosts> shared_mlp;
  std::optional<RowKernels> kernels;  // absent: kernel_launch and bytes over the reachable memory
  std::map<std::string, OperationCosts> operations;  // by kind, see kOperationKinds
};

// `sends_in_flight` without a limit.
inline constexpr std::uint32_t kUnlimitedSends = 0xffffffff;

// Limits of what a rank puts on a tier, whatever the transport.
struct Injection {
  std::uint32_t sends_in_flight = 8;        // per rank; further sends wait in order
  std::optional<Bandwidth> rank_bandwidth;  // cap of one rank's traffic, each direction
  // Cap of what a rank sends and receives together: where one thread of the host moves both (NCCL's
  // socket transport).
  std::optional<Bandwidth> rank_total_bandwidth;
};

// Links inside a scale-up domain.
enum class ScaleUpKind : std::uint8_t { kNvlink, kPcie, kSocket };
struct ScaleUp {
  ScaleUpKind kind = ScaleUpKind::kNvlink;
  Bandwidth bandwidth;                 // per GPU, each direction
  Seconds latency;                     // of each of the two links GPU -> switch -> GPU
  std::uint32_t nodes_per_domain = 1;  // > 1: a rack-scale domain of several nodes
  // All traffic of a socket's GPUs together (host bridge, memory).
  std::optional<Bandwidth> shared_bandwidth;
  // GPUs behind one switch, whose traffic among each other stays off the shared link (PCIe).
  std::uint32_t shared_group = 1;
  // CPU sockets of a domain, or its switches: its GPUs in equal parts on them in order of ids. Each has
  // a shared link of its own; traffic between two crosses both, and what joins the sockets.
  std::uint32_t num_sockets = 1;
  std::optional<Bandwidth> socket_bandwidth;  // between sockets, both directions together
  Injection injection;
};

struct Nic {
  std::uint32_t per_gpu = 1;  // bonded: their bandwidths add up
  Bandwidth bandwidth;        // one NIC, each direction
  Seconds latency;            // GPU to leaf
  bool pxn = true;  // cross-rail traffic first moves to the rail peer over scale-up, if both can be
  Injection injection;
};

// Fabrics. `latency` is that of one hop between switches.
struct StarFabric {  // one non-blocking switch
};
struct RailOnlyFabric {  // one switch plane per rail (local GPU index); no path between rails
};
struct LeafSpineFabric {
  bool rail_optimised = true;  // GPU i of every node of a pod on leaf i; else whole nodes on a leaf
  std::uint32_t ports_per_leaf = 32;  // NIC ports (downlinks) of a leaf
  std::uint32_t num_spines = 8;
  double oversubscription = 1.0;  // downlink to uplink bandwidth of a leaf
};
struct FatTreeFabric {  // k-ary: k pods of k/2 edge and k/2 aggregation switches, k^2/4 cores
  std::uint32_t k = 8;
  double oversubscription = 1.0;  // at the edge switches
};
struct DragonflyFabric {  // all-to-all groups of routers, groups joined all-to-all
  std::uint32_t num_groups = 9;
  std::uint32_t routers_per_group = 4;
  std::uint32_t ports_per_router = 8;  // NIC ports
  Bandwidth local_bandwidth;           // between two routers of a group
  Bandwidth global_bandwidth;          // each of the links between groups
  std::uint32_t global_links_per_router = 2;
};
struct TorusFabric {  // one router per node (all its NICs attach there), nearest neighbours joined
  std::vector<std::uint32_t> dimensions;
  Bandwidth link_bandwidth;
};
// An explicit graph: vertices are switches; node n attaches to switch attach[n].
struct CustomFabric {
  struct Cable {
    std::uint32_t a = 0, b = 0;  // switches
    Bandwidth bandwidth;
    Seconds latency;
  };
  std::uint32_t num_switches = 0;
  std::vector<std::uint32_t> attach;  // [num_nodes]
  std::vector<Cable> cables;
};
using FabricKind = std::variant<StarFabric, RailOnlyFabric, LeafSpineFabric, FatTreeFabric,
                                DragonflyFabric, TorusFabric, CustomFabric>;
struct Fabric {
  FabricKind kind;
  Seconds hop_latency;
};

// Fixed costs of the dispatch machinery.
struct Overheads {
  Seconds notify;  // exchange of counts and barrier before a dispatch, on top of the ranks' skew
};

// How far predictions of one kind may be off: `relative` for what takes up to `up_to`; the last has
// no limit. Nine of ten points that the fit did not see lie within.
struct UncertaintyStep {
  std::optional<Seconds> up_to;
  double relative = 0.0;
};
// Scales per tier and per part of a layer; an empty one says nothing of its kind.
struct Uncertainty {
  std::vector<UncertaintyStep> scale_up, network, kernels, mlp;
};

struct Cluster {
  std::string name;
  std::string description;
  std::uint32_t num_nodes = 1;
  std::uint32_t gpus_per_node = 8;
  // Neighbours that stand for ranks on one physical GPU (under MPS): they share its memory bandwidth, its
  // multiprocessors and its NICs, and `gpu` describes the whole of it. Divides gpus_per_node.
  std::uint32_t ranks_per_gpu = 1;
  GpuModel gpu;
  std::optional<ScaleUp> scale_up;  // absent: GPUs of a node talk through their NICs
  std::optional<Nic> nic;           // absent: a single domain
  std::optional<Fabric> fabric;     // present exactly when `nic` is
  Overheads overheads;
  std::vector<TransportParameters> transports;  // each name once; the first is the default
  // Absent: collectives cost what the links take.
  std::optional<CollectiveParameters> collectives;
  // Calibrated topologies: relative half-width of the interval that predictions carry (by size where
  // `uncertainty` has a scale), and where the numbers come from.
  std::optional<double> relative_uncertainty;
  Uncertainty uncertainty;
  std::vector<std::pair<std::string, std::string>> provenance;

  [[nodiscard]] std::uint32_t num_gpus() const { return num_nodes * gpus_per_node; }
  // The physical GPU of a rank's GPU.
  [[nodiscard]] std::uint32_t device_of(std::uint32_t rank) const { return rank / ranks_per_gpu; }
};

// Reads a cluster from YAML; `ranks` (where given) grows or shrinks `nodes: auto` presets to hold
// that many GPUs. `extends` names a preset or a file, relative to the working directory here and
// to the extending file in load_cluster. Checks everything that can be checked without the graph.
// Throws InputError. topologies/README.md lists all keys.
Cluster read_cluster(const YamlValue& document, std::optional<std::uint32_t> ranks = std::nullopt);

// `name_or_path`: a preset's name (see topology_presets), the path of a YAML file, or YAML itself
// in braces ("{extends: h100_rail_optimised, nodes: 2048}"). Throws InputError, also where the
// cluster holds fewer than `ranks` GPUs.
Cluster load_cluster(const std::string& name_or_path, const std::vector<Override>& overrides = {},
                     std::optional<std::uint32_t> ranks = std::nullopt);

// A YAML file that reads back to the same cluster: everything spelled out, nothing extended.
// Numbers are exact, in base units. What calibration writes.
std::string to_yaml(const Cluster& cluster);

struct Preset {
  std::string name;
  std::string text;  // the YAML file
};
// All presets, by name. They are compiled in, so that a program needs no data folder.
const std::vector<Preset>& topology_presets();

}  // namespace coterie
