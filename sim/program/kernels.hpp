#pragma once
// What the kernels of a layer cost on one GPU, and how they share it: bytes moved over the reachable
// memory bandwidth, a roofline for the expert MLP, and a fixed launch cost each. The parameters are
// those of GpuModel (peaks, memory bandwidth, the two efficiencies, kernel_launch), so that
// calibration can fit them.

#include <cstdint>
#include <map>
#include <span>

#include "sim/program/program.hpp"
#include "topologies/cluster.hpp"
#include "workloads/model.hpp"
#include "workloads/plan/payload.hpp"

namespace coterie {

// A kernel that reads and writes `bytes` in total. Zero bytes launch nothing and take no time.
Seconds copy_time(const GpuModel& gpu, double bytes);

// The gated MLP of one expert: three matrices [hidden, intermediate], multiplied in the type of the
// dispatched rows (FP8 rows meet FP8 weights at the FP8 peak).
struct MlpShape {
  std::uint32_t hidden = 0;
  std::uint32_t intermediate = 0;
  PayloadType type = PayloadType::kBf16;
};

// The MLP over one rank's experts: the sum over those with tokens of
//   max(flops / (peak * compute_efficiency), bytes / (memory_bandwidth * memory_efficiency))
// with flops = 6 * tokens * hidden * intermediate, and bytes = the weights once, the rows in and
// out, and the intermediate activations written and read once; plus the launches of its two grouped
// multiplications. Zero tokens take no time. Where the GPU has calibrated MlpCosts, those count
// (FP8: mlp_fp8, or `mlp` with its weights and rates scaled by what the peaks say).
Seconds mlp_time(const GpuModel& gpu, const MlpShape& shape,
                 std::span<const std::uint64_t> expert_tokens);

// What the experts compute in: what was `asked` for, else the type of the dispatched rows, or BF16 where
// the runtime's calibrated kernels expand them (RowKernels, which other libraries' kernels go without).
PayloadType expert_payload(const GpuModel& gpu, bool with_row_kernels, PayloadType dispatched,
                           std::optional<PayloadType> asked = {});

// The shared experts of a model, which see all `num_tokens` tokens of a rank: one dense product of all
// of them in BF16 where the GPU has a calibrated shared_mlp, else as many experts of mlp_time.
// `shape` is that of one of the `num_experts`.
Seconds shared_mlp_time(const GpuModel& gpu, const MlpShape& shape, std::uint32_t num_experts,
                        std::uint64_t num_tokens);

// The two resources of every GPU that kernels share, added to a program where they are first used:
// its memory bandwidth (as far as it is reachable) and its multiprocessors. Transports reserve the
// latter with holds.
class GpuResources {
 public:
  // `ranks_per_gpu` neighbours share both.
  GpuResources(ProgramBuilder& builder, const GpuModel& gpu, std::uint32_t ranks_per_gpu = 1)
      : builder_(builder), gpu_(gpu), ranks_per_gpu_(ranks_per_gpu) {}

  std::uint32_t memory(std::uint32_t gpu);
  // Its capacity is the number of multiprocessors: amounts are multiprocessor-seconds.
  std::uint32_t multiprocessors(std::uint32_t gpu);

  // From now on the kernels of a GPU run one after the other, in the order in which they become
  // ready, as on one stream; transports' own operations do not count.
  void use_streams() { streams_on_ = true; }
  // From now on everything that the GPU computes takes `factor` times as long; at least 1.
  void slow_down(std::uint32_t gpu, double factor) { slow_[gpu] = factor; }

  // A kernel that reads and writes `bytes` in total: its launch, then its bytes over the memory.
  // With `launched` it continues a kernel that runs already; calibrated ones are launched anew in
  // every round, each between events of its own. Zero bytes take no time.
  struct Copy {
    std::uint32_t gpu = 0;
    double bytes = 0.0;
    bool launched = false;
    // The costs of a calibrated kernel and the rows that they count; absent: kernel_launch and the
    // memory's rate.
    const KernelCosts* costs = nullptr;
    double rows = 0.0;
    double copies_per_row = 0.0;  // of a calibrated kernel whose index reads them
    double items = 0.0;          // of calibrated kernels, all of `kernels` together; 0: none counts
    double quantised = 0.0;      // bytes, as KernelCosts counts them
    std::uint32_t kernels = 1;   // as many launches, one after the other
    std::uint32_t events = 0;    // recorded behind it, each a gap of RowKernels
    bool among_streams = false;  // of a plan of two hops: RowKernels
    // On a stream of its own, so that exchanges run beside it: they give way while it moves its bytes.
    bool beside_exchanges = false;
  };
  // All exchanges of a GPU flow over `resource`; kernels beside them take `taken` of it, one kernel at a
  // time.
  void set_exchanges(std::uint32_t gpu, std::uint32_t resource, double taken) {
    exchanges_[gpu] = {resource, taken};
  }
  void add_copy(const Copy& copy, std::uint32_t waits_for, std::span<const std::uint32_t> signals);
  // Work that takes `seconds` on all multiprocessors, and longer on fewer, after the silent time
  // `launch`; zero takes no time.
  void add_work(std::uint32_t gpu, Seconds duration, std::uint32_t waits_for,
                std::span<const std::uint32_t> signals, Seconds launch = {});

 private:
  struct Exchanges {
    std::uint32_t resource = 0;
    double taken = 0.0;
  };
  std::uint32_t stream(std::uint32_t gpu);
  [[nodiscard]] double slowness(std::uint32_t gpu) const;

  ProgramBuilder& builder_;
  const GpuModel& gpu_;
  std::uint32_t ranks_per_gpu_;
  std::map<std::uint32_t, std::uint32_t> memory_, multiprocessors_;  // by physical GPU
  std::map<std::uint32_t, std::uint32_t> streams_;                   // by GPU
  std::map<std::uint32_t, double> slow_;                             // by GPU
  std::map<std::uint32_t, Exchanges> exchanges_;                     // by GPU
  bool streams_on_ = false;
};

// What a calibrated kernel takes, beyond bytes / bandwidth, because no block is faster than its item
// of `bytes` / `items`; seconds. None where the costs do not say so, or for zero items.
double item_latency_s(const KernelCosts& costs, double bytes, double items);

// What grouped products compute for a row of an expert, summed over the products of n columns over k
// values: n * k, n, and n + k. An MLP's gate, up and down are {3 h i, 2 i + h, 3 i + 2 h}.
struct GroupedProducts {
  double weights = 0.0, columns = 0.0, row_values = 0.0;
  double weight_bytes = 2.0;  // of a value
  double depth = 0.0;         // k, over the kernels: gate and up are one, h + i with down
};
// So many experts have so many rows; means over draws need not be whole.
struct ExpertRows {
  double rows = 0.0;
  double experts = 1.0;
};
// The terms of the formula of MlpCosts that depend on rows of the experts, by its best tile; tiles by
// tokens take the rows for these, which count a token once for each of its experts here.
Seconds grouped_products_time(const MlpCosts& costs, const GroupedProducts& products,
                              std::span<const std::uint64_t> expert_rows);
// All tiles that much faster.
MlpCosts with_faster_products(MlpCosts costs, double factor);

// The formula of MlpCosts, in BF16.
struct MlpBatch {
  double copies = 0.0;       // batch_copies
  double tokens = 0.0;       // that choose the tile
  double num_experts = 0.0;  // of the rank
};
Seconds mean_mlp_time(const MlpCosts& costs, double hidden, double intermediate,
                      std::span<const ExpertRows> experts, const MlpBatch& batch);
// The rank's experts are those of `expert_tokens`; their sum are the tokens.
Seconds calibrated_mlp_time(const MlpCosts& costs, double hidden, double intermediate,
                            std::span<const std::uint64_t> expert_tokens, double batch_copies);

}  // namespace coterie
