#pragma once
// How long a model's operations take on a GPU: from calibrated tables where the user gives them,
// else a roofline with the GPU's stated peaks and efficiencies.
//
//   time = launch + ((flops / (peak * compute))^q + (bytes / (memory bandwidth * memory))^q)^(1/q)
//
// with the OperationCosts of the operation's kind (gpu.operations). Kinds that a topology does not
// give take its compute_efficiency (attention: 0.6, backward 0.5), memory_efficiency and
// kernel_launch, and the longer of both terms. Grouped products of experts use the GPU's calibrated
// MlpCosts where a topology has them.

#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/units.hpp"
#include "sim/step/operations.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// Time of an operation alone on its GPU, and what it takes of the GPU's two shared resources: for
// programs in which operations compete. total = launch + the longer of both at full rate.
struct OperationTime {
  Seconds total;
  Seconds launch;             // silent
  Seconds compute;            // on all multiprocessors
  double memory_bytes = 0.0;  // over the reachable memory bandwidth
};
OperationTime operator+(const OperationTime& a, const OperationTime& b);  // one after the other

// Tables of measured operations of one machine, CSV files with these columns:
//   gemm                machine, gemm_dtype (bfloat16, fp8, nvfp4), m, n, k, latency_us
//   attention_prefill   batch_size, isl, num_heads, num_key_value_heads, head_dim, latency_us
//   attention_decode    batch_size, kv_length, num_heads, num_key_value_heads, head_dim, latency_us
//   mla_prefill         gemm_type (bfloat16, fp8_block), num_heads, batch_size, isl, latency_us
//   mla_decode          gemm_type, num_heads, batch_size, kv_length, latency_us
// The last two hold whole modules of DeepSeek-V3's latent attention with their projections: they
// serve fits alone (sim/calibrate/operation_fit.hpp). Of the others, ratios to a roofline are
// interpolated in the logarithms of the sizes (operation_tables.hpp). Grouped products have no
// table: they are calibrated (gpu.mlp, gpu.operations).
class OperationTables;
struct OperationTableFiles {
  std::string machine;  // the table's own name of it (h100_sxm); other machines are skipped
  std::optional<std::filesystem::path> gemm;
  std::optional<std::filesystem::path> attention_prefill;
  std::optional<std::filesystem::path> attention_decode;
  std::optional<std::filesystem::path> mla_prefill;
  std::optional<std::filesystem::path> mla_decode;
};
// `gpu`: whose tables they are. Throws InputError for a file without a needed column, a size or
// time that is no positive number, or a table of products without that machine.
std::shared_ptr<const OperationTables> load_operation_tables(const OperationTableFiles& files,
                                                             const GpuModel& gpu);

class OperationTimes {
 public:
  explicit OperationTimes(GpuModel gpu, std::shared_ptr<const OperationTables> tables = nullptr);
  [[nodiscard]] OperationTime time(const ModelOperation& operation) const;
  // One after the other on one stream.
  [[nodiscard]] OperationTime time(std::span<const ModelOperation> operations) const;
  [[nodiscard]] const GpuModel& gpu() const { return gpu_; }

 private:
  GpuModel gpu_;
  std::shared_ptr<const OperationTables> tables_;
};

// Kinds of products and attention (forward) among `operations` that the topology has no fit for: they
// take the usual shares of the data sheet's peak.
std::set<std::string> kinds_without_fit(const GpuModel& gpu,
                                        std::span<const ModelOperation> operations);

// The data sheet's dense rate of a type: FP8 and MXFP8 share one; where the GPU has no such rate,
// that of the next wider type. MXFP4 weights meet BF16 rows.
ComputeRate peak_rate(const GpuModel& gpu, Precision precision);

}  // namespace coterie
