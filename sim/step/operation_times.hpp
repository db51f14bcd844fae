#pragma once
// How long a model's operations take on a GPU: from calibrated tables where the user gives them,
// else a roofline with the GPU's stated peaks and efficiencies.
//
//   time = launch + max(flops / (peak * efficiency of its kind), bytes / (memory * efficiency))
//
// Grouped products of experts use the GPU's calibrated MlpCosts where a topology has them.

#include <filesystem>
#include <memory>
#include <optional>
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

// Tables of measured operations of one machine, CSV with the columns that its documentation names
// (sim/step/README.md). Interpolated in the logarithms of sizes; beyond the table scaled by what
// the roofline says. Throws InputError for a file without a needed column, a value that is no
// positive number, or a machine or type that the table does not have.
class OperationTables;
struct OperationTableFiles {
  std::string
      machine;  // rows of other machines are skipped, where the table has a column `machine`
  std::optional<std::filesystem::path> gemm;
  std::optional<std::filesystem::path> attention_prefill;
  std::optional<std::filesystem::path> attention_decode;
  std::optional<std::filesystem::path> mla_prefill;
  std::optional<std::filesystem::path> mla_decode;
  std::optional<std::filesystem::path> expert_mlp;
};
std::shared_ptr<const OperationTables> load_operation_tables(const OperationTableFiles& files);

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

// The data sheet's dense rate of a type: FP8 and MXFP8 share one; where the GPU has no such rate,
// that of the next wider type. MXFP4 weights meet BF16 rows.
ComputeRate peak_rate(const GpuModel& gpu, Precision precision);

}  // namespace coterie
