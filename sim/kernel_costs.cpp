#include "sim/kernel_costs.hpp"

#include <algorithm>

namespace coterie {
namespace {

constexpr double kBf16Bytes = 2.0;
constexpr double kMlpLaunches = 2.0;  // gate and up with the activation, then down

double memory_rate(const GpuModel& gpu) {
  return gpu.memory_bandwidth.value * gpu.memory_efficiency;
}

}  // namespace

Seconds copy_time(const GpuModel& gpu, double bytes) {
  if (bytes <= 0.0) return {};
  return gpu.kernel_launch + Seconds{bytes / memory_rate(gpu)};
}

Seconds mlp_time(const GpuModel& gpu, const MlpShape& shape,
                 std::span<const std::uint64_t> expert_tokens) {
  const bool fp8 = shape.type == PayloadType::kFp8;
  const double hidden = shape.hidden;
  const double intermediate = shape.intermediate;
  const double value_bytes = fp8 ? 1.0 : kBf16Bytes;
  const double flop_rate = (fp8 ? gpu.fp8_peak : gpu.bf16_peak).value * gpu.compute_efficiency;
  const double row_in = static_cast<double>(row_payload(shape.type, shape.hidden).value);
  const double row_out = kBf16Bytes * hidden;

  double seconds = 0.0;
  for (const std::uint64_t count : expert_tokens) {
    if (count == 0) continue;
    const auto tokens = static_cast<double>(count);
    const double flops = 6.0 * tokens * hidden * intermediate;
    const double bytes = 3.0 * hidden * intermediate * value_bytes +
                         tokens * (row_in + row_out + 2.0 * intermediate * value_bytes);
    seconds += std::max(flops / flop_rate, bytes / memory_rate(gpu));
  }
  if (seconds == 0.0) return {};
  return kMlpLaunches * gpu.kernel_launch + Seconds{seconds};
}

}  // namespace coterie
