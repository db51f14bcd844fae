#include "sim/step/operation_times.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "sim/program/kernels.hpp"
#include "sim/step/operation_tables.hpp"

namespace coterie {
namespace {

// Attention kernels reach less of the peak than matrix products: FlashAttention-3 states up to 75
// percent forward at long sequences and less backward (arXiv 2407.08608); these shares are what
// remains over the lengths in use.
constexpr double kAttentionCompute = 0.6;
constexpr double kAttentionBackwardCompute = 0.5;

std::string_view type_suffix(Precision precision) {
  switch (precision) {
    case Precision::kFp8:
      return "fp8";
    case Precision::kMxfp8:
      return "mxfp8";
    case Precision::kNvfp4:
      return "fp4";
    case Precision::kFp32:
    case Precision::kBf16:
    case Precision::kMxfp4:
      return "bf16";
  }
  return "bf16";
}

std::string kind_of(const ModelOperation& op) {
  switch (op.kind) {
    case OperationKind::kMatrixProduct:
      return fmt::format("product_{}", type_suffix(op.precision));
    case OperationKind::kGroupedProduct:
      return fmt::format("grouped_{}", type_suffix(op.precision));
    case OperationKind::kAttention:
      return op.backward                                 ? "attention_backward"
             : op.attention.latent                       ? "attention_latent"
             : op.attention.query_length == 1            ? "attention_decode"
             : op.attention.qk_dim != op.attention.v_dim ? "attention_mla"
                                                         : "attention";
    case OperationKind::kMemoryBound:
      return "memory";
  }
  return "memory";
}

OperationCosts default_costs(const GpuModel& gpu, const std::string& kind) {
  OperationCosts costs{gpu.kernel_launch, gpu.compute_efficiency, gpu.memory_efficiency, 100.0};
  if (kind.starts_with("attention")) {
    costs.compute = kind == "attention_backward" ? kAttentionBackwardCompute : kAttentionCompute;
  }
  return costs;
}

// A calibrated kind, or what is nearest to it: MXFP8 takes the costs of FP8, grouped products those
// of dense ones.
const OperationCosts* calibrated_costs(const GpuModel& gpu, const std::string& kind) {
  const auto found = gpu.operations.find(kind);
  if (found != gpu.operations.end()) return &found->second;
  if (kind == "product_mxfp8" || kind == "grouped_mxfp8") {
    return calibrated_costs(gpu, kind.substr(0, kind.find('_')) + "_fp8");
  }
  if (kind == "attention_mla") return calibrated_costs(gpu, "attention");
  if (kind.starts_with("grouped_")) return calibrated_costs(gpu, "product_" + kind.substr(8));
  return nullptr;
}

OperationCosts costs_of(const GpuModel& gpu, const std::string& kind) {
  const OperationCosts* const costs = calibrated_costs(gpu, kind);
  return costs != nullptr ? *costs : default_costs(gpu, kind);
}

// The longer of both terms, rounded at their corner.
double blend(double a, double b, double sharpness) {
  const double larger = std::max(a, b);
  if (larger == 0.0) return 0.0;
  const double ratio = std::min(a, b) / larger;
  return larger * std::pow(1.0 + std::pow(ratio, sharpness), 1.0 / sharpness);
}

OperationTime roofline(const GpuModel& gpu, const ModelOperation& op) {
  const OperationCosts costs = costs_of(gpu, kind_of(op));
  const double compute = op.flops / (peak_rate(gpu, op.precision).value * costs.compute);
  const double memory = op.bytes / (gpu.memory_bandwidth.value * costs.memory);
  const double body = blend(compute, memory, costs.sharpness);
  OperationTime time;
  time.launch = costs.launch;
  time.total = {costs.launch.value + body};
  // What bounds it takes the whole body; the other resource is used as far as it goes.
  time.compute = {compute >= memory ? body : compute};
  time.memory_bytes =
      compute >= memory ? op.bytes : body * gpu.memory_bandwidth.value * gpu.memory_efficiency;
  return time;
}

// One of an expert MLP's two grouped products by the calibrated formula, which is homogeneous: both
// together cost what the MLP does.
std::optional<OperationTime> calibrated_grouped(const GpuModel& gpu, const ModelOperation& op) {
  if (op.weight_gradient || !gpu.mlp) return std::nullopt;
  MlpCosts costs = *gpu.mlp;
  const double scale =
      peak_rate(gpu, op.precision).value / gpu.bf16_peak.value;  // of the arithmetic
  double weight_bytes = 2.0;
  if (gpu.mlp_fp8 && peak_rate(gpu, op.precision) == gpu.fp8_peak &&
      op.precision != Precision::kBf16) {
    costs = *gpu.mlp_fp8;
  } else if (op.precision != Precision::kBf16) {
    costs = with_faster_products(std::move(costs), scale);
    weight_bytes = bytes_per_value(op.precision);
  }
  const auto n = static_cast<double>(op.n);
  const auto k = static_cast<double>(op.k);
  const double body =
      grouped_products_time(costs, {n * k, n, n + k, weight_bytes, k}, op.rows).value;
  OperationTime time;
  time.launch = (costs.launch + costs.expert * static_cast<double>(op.rows.size())) / 2.0;
  time.total = {time.launch.value + body};
  time.compute = {body};
  time.memory_bytes = std::min(op.bytes, body * gpu.memory_bandwidth.value * gpu.memory_efficiency);
  return time;
}

}  // namespace

OperationTime operator+(const OperationTime& a, const OperationTime& b) {
  return {a.total + b.total, a.launch + b.launch, a.compute + b.compute,
          a.memory_bytes + b.memory_bytes};
}

ComputeRate peak_rate(const GpuModel& gpu, Precision precision) {
  switch (precision) {
    case Precision::kFp8:
    case Precision::kMxfp8:
      return gpu.fp8_peak;
    case Precision::kNvfp4:
      return gpu.fp4_peak;
    case Precision::kFp32:
    case Precision::kBf16:
    case Precision::kMxfp4:
      return gpu.bf16_peak;
  }
  return gpu.bf16_peak;
}

OperationTimes::OperationTimes(GpuModel gpu, std::shared_ptr<const OperationTables> tables)
    : gpu_(std::move(gpu)), tables_(std::move(tables)) {}

std::set<std::string> kinds_without_fit(const GpuModel& gpu,
                                        std::span<const ModelOperation> operations) {
  std::set<std::string> out;
  for (const ModelOperation& op : operations) {
    if (op.kind == OperationKind::kMemoryBound || op.backward) continue;
    if (op.kind == OperationKind::kGroupedProduct && gpu.mlp) continue;
    const std::string kind = kind_of(op);
    if (calibrated_costs(gpu, kind) == nullptr) out.insert(kind);
  }
  return out;
}

OperationTime OperationTimes::time(const ModelOperation& operation) const {
  if (operation.flops <= 0.0 && operation.bytes <= 0.0) return {};
  if (operation.kind == OperationKind::kGroupedProduct) {
    if (const auto calibrated = calibrated_grouped(gpu_, operation)) return *calibrated;
  }
  OperationTime time = roofline(gpu_, operation);
  if (!tables_) return time;
  const std::optional<double> factor = tables_->over_reference(operation, gpu_);
  if (!factor) return time;
  const double measured = *factor * reference_time(operation, gpu_);
  // The table's time holds the launch; resources are used in the roofline's proportions.
  const double body = std::max(0.0, measured - time.launch.value);
  const double before = time.total.value - time.launch.value;
  time.total = {measured};
  time.launch = {measured - body};
  if (before > 0.0) {
    time.compute = time.compute * (body / before);
    time.memory_bytes *= std::min(1.0, body / before);
  }
  return time;
}

OperationTime OperationTimes::time(std::span<const ModelOperation> operations) const {
  OperationTime sum;
  for (const ModelOperation& operation : operations) sum = sum + time(operation);
  return sum;
}

}  // namespace coterie
