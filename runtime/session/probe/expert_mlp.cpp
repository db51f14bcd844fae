// The expert MLP over rows per expert, experts and skew, and the shared experts over tokens.

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "kernels/expert_mlp.hpp"
#include "kernels/mlp_kernels.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/executor/shared_experts.hpp"
#include "runtime/session/probe/parts.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;

DeviceBuffer<Bf16> draw_rows(std::uint32_t num_rows, std::uint32_t hidden) {
  DeviceBuffer<Bf16> rows(std::size_t{num_rows} * hidden);
  kernels::draw_weights({hidden, num_rows}, 1, 0, 0, 0, rows.data(), nullptr);
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return rows;
}

// Beside its products a layer moves rows for a quarter of its time, or more.
constexpr double kRest = 1.0 / 3.0;

bool same_experts(const MlpCase& a, const MlpCase& b) {
  return a.shared == b.shared && a.hidden == b.hidden && a.intermediate == b.intermediate &&
         a.type == b.type && a.num_experts == b.num_experts;
}

// Consecutive cases with the same weights.
void probe_routed(ProbeTools& tools, std::span<const MlpCase> cases,
                  std::vector<ProbePoint>& points) {
  const MlpCase& first = cases.front();
  std::uint32_t max_rows = 0;
  for (const MlpCase& entry : cases) {
    max_rows = std::max(max_rows, entry.num_experts * entry.rows_per_expert);
  }
  const kernels::MlpShape shape{first.hidden, first.intermediate};
  std::vector<std::uint32_t> experts(first.num_experts);
  std::iota(experts.begin(), experts.end(), 0U);
  kernels::MlpOptions options;
  options.type = first.type;
  kernels::ExpertMlp mlp(shape, 1, 0, experts, max_rows, options);
  const DeviceBuffer<Bf16> inputs = draw_rows(max_rows, first.hidden);
  const DeviceBuffer<Bf16> outputs(inputs.size());
  for (const MlpCase& entry : cases) {
    const std::vector<std::uint32_t> rows = expert_rows(entry);
    std::vector<std::uint32_t> begin{0};
    for (const std::uint32_t count : rows) begin.push_back(begin.back() + count);
    mlp.prepare(begin, inputs.data(), outputs.data());
    const TimedWork work{"routed", [&](cudaStream_t stream) { mlp.run(stream); }};
    // One product per expert is two launches each, so few samples fit behind a gate.
    auto samples =
        tools.sampler.measure(fmt::format("the MLP of {} experts with {} rows each",
                                          entry.num_experts, entry.rows_per_expert),
                              std::span(&work, 1), {3, 8, 0.05, 2, kRest, entry.among_streams});
    nlohmann::json key{{"kind", "routed"},
                       {"hidden", entry.hidden},
                       {"intermediate", entry.intermediate},
                       {"type", entry.type == kernels::GemmType::kFp8 ? "fp8" : "bf16"},
                       {"num_experts", entry.num_experts},
                       {"load", to_string(entry.load)},
                       {"rows_per_expert", entry.rows_per_expert}};
    if (entry.among_streams) key["among_streams"] = true;
    points.push_back({std::move(key),
                      {{"expert_rows", rows}, {"implementation", mlp.implementation()}},
                      std::move(samples[0].slowest_us),
                      std::move(samples[0].ranks_us)});
  }
}

void probe_shared(ProbeTools& tools, const MlpCase& entry, std::vector<ProbePoint>& points) {
  LayerShape shape;
  shape.mlp = {entry.hidden, entry.intermediate};
  shape.shared_intermediate = entry.intermediate;
  const DeviceBuffer<Bf16> tokens = draw_rows(entry.rows_per_expert, entry.hidden);
  SharedExperts shared(shape, 0, tokens.data(), entry.rows_per_expert);
  const TimedWork work{"shared", [&](cudaStream_t stream) { shared.run(stream); }};
  auto samples =
      tools.sampler.measure(fmt::format("the shared experts of {} tokens", entry.rows_per_expert),
                            std::span(&work, 1), {3, 8, 0.05, 4, kRest, entry.among_streams});
  nlohmann::json key{{"kind", "shared"},
                     {"hidden", entry.hidden},
                     {"intermediate", entry.intermediate},
                     {"type", "bf16"},
                     {"num_tokens", entry.rows_per_expert}};
  if (entry.among_streams) key["among_streams"] = true;
  points.push_back({std::move(key),
                    {{"implementation", shared.implementation()}},
                    std::move(samples[0].slowest_us),
                    std::move(samples[0].ranks_us)});
}

}  // namespace

std::vector<ProbePoint> probe_expert_mlp(ProbeTools& tools, std::span<const MlpCase> cases) {
  std::vector<ProbePoint> points;
  for (std::size_t begin = 0; begin < cases.size();) {
    std::size_t end = begin + 1;
    while (end < cases.size() && same_experts(cases[begin], cases[end])) ++end;
    if (cases[begin].shared) {
      for (std::size_t i = begin; i < end; ++i) probe_shared(tools, cases[i], points);
    } else {
      probe_routed(tools, cases.subspan(begin, end - begin), points);
    }
    begin = end;
  }
  return points;
}

}  // namespace coterie
