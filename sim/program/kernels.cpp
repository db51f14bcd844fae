#include "sim/program/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include <fmt/format.h>

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

namespace {

GroupedProducts mlp_products(double hidden, double intermediate) {
  return {3.0 * hidden * intermediate, 2.0 * intermediate + hidden,
          3.0 * intermediate + 2.0 * hidden, kBf16Bytes, hidden + intermediate};
}

double rows_of(const ExpertRows& expert) {
  return expert.rows;
}
double rows_of(std::uint64_t rows) {
  return static_cast<double>(rows);
}
double experts_of(const ExpertRows& expert) {
  return expert.experts;
}
double experts_of(std::uint64_t /*rows*/) {
  return 1.0;
}

// What the experts e of one tile take: memory_s(e) and compute_s(e), for `sum` to add up.
template <class Expert, class Sum>
double over_experts(const MlpCosts& costs, const MlpTile& tile, const GroupedProducts& products,
                    std::span<const Expert> experts, const Sum& sum) {
  const double bandwidth = costs.weight_bandwidth.value;
  const double weights_s = products.weights * products.weight_bytes / bandwidth;
  const double row_s = costs.reads_rows ? products.row_values * kBf16Bytes / bandwidth : 0.0;
  const double flops = 2.0 * (products.weights + products.columns * costs.tile_depth);
  const double token_s = flops / tile.compute_rate.value;
  const double tile_rows = tile.rows;
  double seconds = 0.0;
  for (const Expert& expert : experts) {
    const double rows = rows_of(expert);
    if (rows <= 0.0) continue;
    const double computed = std::ceil(rows / tile_rows) * tile_rows + costs.tile_padding;
    seconds += experts_of(expert) * sum(weights_s + rows * row_s, computed * token_s);
  }
  return seconds;
}

template <class Expert>
MlpTile chosen_tile(const MlpCosts& costs, const GroupedProducts& products,
                    std::span<const Expert> experts, double batch_tokens) {
  if (costs.tiles.empty()) return {costs.tile_rows, costs.compute_rate, {}};
  if (costs.tiles.front().up_to_tokens) {
    const auto fits = [&](const MlpTile& tile) {
      return !tile.up_to_tokens || batch_tokens <= *tile.up_to_tokens;
    };
    return *std::find_if(costs.tiles.begin(), costs.tiles.end() - 1, fits);
  }
  MlpTile best;
  double least_s = std::numeric_limits<double>::infinity();
  for (const MlpTile& tile : costs.tiles) {
    const auto larger = [](double memory_s, double compute_s) {
      return std::max(memory_s, compute_s);
    };
    const double time_s = products.depth * tile.value_time.value +
                          over_experts(costs, tile, products, experts, larger);
    if (time_s >= least_s) continue;
    least_s = time_s;
    best = tile;
  }
  return best;
}

// Zero where no expert has rows.
template <class Expert>
Seconds products_time(const MlpCosts& costs, const GroupedProducts& products,
                      std::span<const Expert> experts, double batch_tokens) {
  double rows = 0.0;
  for (const Expert& expert : experts) rows += experts_of(expert) * rows_of(expert);
  if (rows <= 0.0) return {};
  const MlpTile tile = chosen_tile(costs, products, experts, batch_tokens);
  const double q = costs.sharpness;
  const double blended_s =
      over_experts(costs, tile, products, experts, [q](double memory_s, double compute_s) {
        const auto [smaller, larger] = std::minmax(memory_s, compute_s);
        return larger * std::pow(1.0 + std::pow(smaller / larger, q), 1.0 / q);
      });
  const double beside_s = costs.row_bandwidth
                              ? rows * products.row_values * kBf16Bytes / costs.row_bandwidth->value
                              : 0.0;
  return {products.depth * tile.value_time.value + blended_s + beside_s};
}

template <class Expert>
Seconds whole_mlp_time(const MlpCosts& costs, double hidden, double intermediate,
                       std::span<const Expert> experts, const MlpBatch& batch) {
  const GroupedProducts products = mlp_products(hidden, intermediate);
  const Seconds time = products_time(costs, products, experts, batch.tokens);
  if (time.value == 0.0 && batch.copies == 0.0) return {};
  return costs.launch + costs.expert * batch.num_experts + time +
         Seconds{batch.copies * products.row_values * kBf16Bytes / costs.batch_bandwidth.value};
}

double sum_of(std::span<const std::uint64_t> rows) {
  return static_cast<double>(std::accumulate(rows.begin(), rows.end(), std::uint64_t{0}));
}

}  // namespace

Seconds grouped_products_time(const MlpCosts& costs, const GroupedProducts& products,
                              std::span<const std::uint64_t> expert_rows) {
  return products_time(costs, products, expert_rows, sum_of(expert_rows));
}

MlpCosts with_faster_products(MlpCosts costs, double factor) {
  costs.compute_rate = costs.compute_rate * factor;
  for (MlpTile& tile : costs.tiles) tile.compute_rate = tile.compute_rate * factor;
  return costs;
}

Seconds mean_mlp_time(const MlpCosts& costs, double hidden, double intermediate,
                      std::span<const ExpertRows> experts, const MlpBatch& batch) {
  return whole_mlp_time(costs, hidden, intermediate, experts, batch);
}

Seconds calibrated_mlp_time(const MlpCosts& costs, double hidden, double intermediate,
                            std::span<const std::uint64_t> expert_tokens, double batch_copies) {
  const MlpBatch batch{batch_copies, sum_of(expert_tokens),
                       static_cast<double>(expert_tokens.size())};
  return whole_mlp_time(costs, hidden, intermediate, expert_tokens, batch);
}

Seconds mlp_time(const GpuModel& gpu, const MlpShape& shape,
                 std::span<const std::uint64_t> expert_tokens) {
  const bool fp8 = shape.type == PayloadType::kFp8;
  if (fp8 && gpu.mlp_fp8) {
    return calibrated_mlp_time(*gpu.mlp_fp8, shape.hidden, shape.intermediate, expert_tokens, 0.0);
  }
  if (gpu.mlp) {
    MlpCosts costs = *gpu.mlp;
    if (fp8) {
      costs = with_faster_products(std::move(costs), gpu.fp8_peak / gpu.bf16_peak);
      costs.weight_bandwidth = costs.weight_bandwidth * 2.0;
    }
    return calibrated_mlp_time(costs, shape.hidden, shape.intermediate, expert_tokens, 0.0);
  }
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

PayloadType expert_payload(const GpuModel& gpu, bool with_row_kernels, PayloadType dispatched,
                           std::optional<PayloadType> asked) {
  if (asked) return *asked;
  return gpu.kernels && with_row_kernels ? PayloadType::kBf16 : dispatched;
}

Seconds shared_mlp_time(const GpuModel& gpu, const MlpShape& shape, std::uint32_t num_experts,
                        std::uint64_t num_tokens) {
  if (gpu.shared_mlp) {
    const std::uint64_t tokens[]{num_experts == 0 ? 0 : num_tokens};
    return calibrated_mlp_time(*gpu.shared_mlp, shape.hidden,
                               static_cast<double>(num_experts) * shape.intermediate, tokens, 0.0);
  }
  return mlp_time(gpu, shape, std::vector<std::uint64_t>(num_experts, num_tokens));
}

std::uint32_t GpuResources::memory(std::uint32_t gpu) {
  gpu /= ranks_per_gpu_;
  const auto [found, is_new] = memory_.try_emplace(gpu, 0);
  if (is_new) {
    found->second = builder_.add_resource(fmt::format("gpu {} memory", gpu), memory_rate(gpu_));
  }
  return found->second;
}

std::uint32_t GpuResources::multiprocessors(std::uint32_t gpu) {
  gpu /= ranks_per_gpu_;
  const auto [found, is_new] = multiprocessors_.try_emplace(gpu, 0);
  if (is_new) {
    found->second = builder_.add_resource(fmt::format("gpu {} multiprocessors", gpu), gpu_.num_sms);
  }
  return found->second;
}

std::uint32_t GpuResources::stream(std::uint32_t gpu) {
  if (!streams_on_) return kFreeQueue;
  const auto [found, is_new] = streams_.try_emplace(gpu, 0);
  if (is_new) found->second = builder_.add_queue(1);
  return found->second;
}

double GpuResources::slowness(std::uint32_t gpu) const {
  const auto found = slow_.find(gpu);
  return found == slow_.end() ? 1.0 : found->second;
}

double item_latency_s(const KernelCosts& costs, double bytes, double items) {
  if (!costs.item_bandwidth || items <= 0.0) return 0.0;
  const double moving_s = bytes / costs.bandwidth.value;
  return std::hypot(moving_s, bytes / items / costs.item_bandwidth->value) - moving_s;
}

void GpuResources::add_copy(const Copy& copy, std::uint32_t waits_for,
                            std::span<const std::uint32_t> signals) {
  if (copy.bytes <= 0.0) {
    builder_.add_compute(copy.gpu, 0.0, waits_for, signals);
    return;
  }
  const std::uint32_t uses[]{memory(copy.gpu)};
  double launches_s = copy.launched ? 0.0 : gpu_.kernel_launch.value;
  if (copy.costs) {
    // Several kernels of one copy run between the same pair of events.
    const double gap_s = gpu_.kernels ? gpu_.kernels->gap.value : 0.0;
    const double again_s = copy.costs->again ? copy.costs->again->value
                                             : std::max(0.0, copy.costs->launch.value - gap_s);
    launches_s = copy.costs->launch.value + (copy.kernels - 1.0) * again_s + copy.events * gap_s;
    if (copy.among_streams && gpu_.kernels) launches_s += gpu_.kernels->among_streams.value;
  }
  double index_s = 0.0;
  if (copy.costs) {
    index_s = copy.rows * copy.costs->row.value + copy.copies_per_row * copy.costs->copy.value;
    if (copy.costs->quantise_bandwidth) {
      index_s += copy.quantised / copy.costs->quantise_bandwidth->value;
    }
    // Every one of the kernels has an equal part of bytes and items.
    index_s += copy.kernels *
               item_latency_s(*copy.costs, copy.bytes / copy.kernels, copy.items / copy.kernels);
  }
  // A kernel that reaches less than the memory's rate keeps the memory for as long as it moves.
  const double memory_share = copy.costs ? memory_rate(gpu_) / copy.costs->bandwidth.value : 1.0;
  const double duration_s = (launches_s + index_s) * slowness(copy.gpu);
  const double amount = copy.bytes * memory_share * slowness(copy.gpu);
  const auto beside = exchanges_.find(copy.gpu);
  if (copy.beside_exchanges && beside != exchanges_.end() && ranks_per_gpu_ == 1) {
    const std::uint32_t launched[]{builder_.add_event()};
    builder_.add({.src = copy.gpu,
                  .dst = copy.gpu,
                  .duration = duration_s,
                  .queue = stream(copy.gpu),
                  .waits_for = waits_for,
                  .signals = launched});
    std::vector<std::uint32_t> over(signals.begin(), signals.end());
    over.push_back(builder_.add_event());
    const std::uint32_t moving = builder_.add({.src = copy.gpu,
                                               .dst = copy.gpu,
                                               .amount = amount,
                                               .queue = stream(copy.gpu),
                                               .waits_for = launched[0],
                                               .signals = over,
                                               .uses = uses});
    builder_.add_hold({beside->second.resource, beside->second.taken, moving, over.back()});
    return;
  }
  builder_.add({.src = copy.gpu,
                .dst = copy.gpu,
                .duration = duration_s,
                .amount = amount,
                .queue = stream(copy.gpu),
                .waits_for = waits_for,
                .signals = signals,
                .uses = uses});
  if (ranks_per_gpu_ == 1) return;
  // Beside another rank's kernels it takes its turns on the multiprocessors, which either would fill.
  const std::uint32_t turns[]{multiprocessors(copy.gpu)};
  builder_.add({.src = copy.gpu,
                .dst = copy.gpu,
                .duration = duration_s,
                .amount = amount / memory_rate(gpu_) * gpu_.num_sms,
                .waits_for = waits_for,
                .signals = signals,
                .uses = turns});
}

void GpuResources::add_work(std::uint32_t gpu, Seconds duration, std::uint32_t waits_for,
                            std::span<const std::uint32_t> signals, Seconds launch) {
  if (duration.value + launch.value <= 0.0) {
    builder_.add_compute(gpu, 0.0, waits_for, signals);
    return;
  }
  const std::uint32_t uses[]{multiprocessors(gpu)};
  builder_.add({.src = gpu,
                .dst = gpu,
                .duration = launch.value * slowness(gpu),
                .amount = duration.value * gpu_.num_sms * slowness(gpu),
                .queue = stream(gpu),
                .waits_for = waits_for,
                .signals = signals,
                .uses = uses});
}

}  // namespace coterie
