#include "runtime/session/direct_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/provenance.hpp"
#include "core/result_table.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/gate.hpp"
#include "runtime/device/nvml.hpp"
#include "runtime/executor/direct_transport.hpp"
#include "runtime/executor/gpu_tables.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/session/planning.hpp"
#include "workloads/prepare.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::Event;
using nlohmann::json;

constexpr std::uint32_t kUncounted = 5;  // samples before those that count

const char* const kSpans[] = {"index", "dispatch", "expand", "combine", "wire", "memory"};
constexpr std::size_t kNumSpans = std::size(kSpans);

// What is measured with one number of multiprocessors and one pair of rings.
struct Setting {
  std::uint32_t sms = 0;
  std::string put_ring, pull_ring;  // empty: the kernels' own choice
};

kernels::RingShape ring_of(const std::string& text) {
  if (text.empty()) return {};
  const RingText ring = parse_ring(text);
  return {ring.num_warps, ring.num_slots};
}

// One shape of layer, on this rank.
class BenchLayer {
 public:
  BenchLayer(const DirectBenchOptions& options, const RankEnvironment& environment,
             ControlGroup& group, DirectTransport& transport, const Experiment& experiment)
      : options_(options), group_(group), transport_(transport) {
    const PlannedRun planned =
        plan_run(experiment, experiment.runs.front(), load_trace(experiment), group);
    if (planned.infeasible) throw InputError(*planned.infeasible);
    plan_ = planned.plans.front();
    if (plan_.stages.size() != 1 || plan_.num_rounds != 1) {
      throw InputError(
          experiment.name + ": run " + experiment.runs.front().name,
          fmt::format("a plan of {} hops and {} rounds", plan_.stages.size(), plan_.num_rounds),
          "one hop and one round (a larger chunk)");
    }
    shape_.mlp = {experiment.model.hidden, kIntermediate};
    shape_.dispatch = experiment.dispatch_payload == PayloadType::kFp8 ? kernels::RowType::kFp8
                                                                       : kernels::RowType::kBf16;
    layouts_.push_back(make_rank_layout(plan_, environment.rank));
    tokens_ = DeviceBuffer<Bf16>(std::span<const Bf16>(
        make_tokens(shape_.seed, environment.rank, layout().num_tokens, shape_.mlp.hidden)));
    tables_ = load_alone(transport, shape_, plan_, layouts_, buffers_, tokens_.data());
    // Results are read as they stand; no experts run here.
    check_cuda(cudaMemset(buffers_.hops[0].results.data(), 0,
                          hop().num_recv_rows * std::size_t{shape_.mlp.hidden} * sizeof(Bf16)),
               "cudaMemset");
    next_ = (environment.rank + 1) % environment.num_ranks;
    scratch_ = DeviceBuffer<std::byte>(std::max<std::size_t>(all_bytes(), 1));
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  [[nodiscard]] std::uint32_t remote_rows() const {
    return hop().num_send_rows - hop().rounds[0].send[0].num_rows;
  }
  [[nodiscard]] std::uint32_t rows() const { return hop().num_send_rows; }

  // [span][sample] seconds on this rank.
  std::vector<std::vector<double>> measure(const Setting& setting) {
    transport_.set_sms(setting.sms);
    transport_.put_shape = ring_of(setting.put_ring);
    transport_.pull_shape = ring_of(setting.pull_ring);
    // Behind a closed gate nothing may wait for the device, and every function that is called for
    // the first time loads its code: once without.
    enqueue(0);
    stream_.synchronize();
    group_.watch_stage("a benchmark's samples");
    gate_.close(stream_.get());
    const std::uint32_t count = options_.num_samples + kUncounted;
    for (std::uint32_t i = 0; i < count; ++i) enqueue(i);
    group_.barrier("the opening of a benchmark");
    gate_.open();
    transport_.wait_for(events_[count - 1].back());
    std::vector<std::vector<double>> spans(kNumSpans);
    for (std::uint32_t i = kUncounted; i < count; ++i) {
      for (std::size_t s = 0; s < kNumSpans; ++s) {
        spans[s].push_back(kernels::seconds_between(events_[i][2 * s], events_[i][2 * s + 1]));
      }
    }
    return spans;
  }

 private:
  static constexpr std::uint32_t kIntermediate = 64;  // nothing is computed

  [[nodiscard]] const RankLayout& layout() const { return layouts_.front(); }
  [[nodiscard]] const Hop& hop() const { return layout().hops.front(); }
  [[nodiscard]] std::size_t row_bytes() const {
    return kernels::block_bytes(shape_.dispatch, shape_.mlp.hidden, 1, 0);
  }
  [[nodiscard]] std::size_t all_bytes() const { return rows() * row_bytes(); }

  void enqueue(std::uint32_t sample) {
    while (events_.size() <= sample) events_.emplace_back(2 * kNumSpans);
    const cudaStream_t stream = stream_.get();
    const LayerTables& tables = tables_.front();
    const HopTables& first = tables.hops.front();
    const kernels::SendIndex& index = first.rounds[0].index;
    const kernels::TokenRouting routing{tables.token_slots.data(), tables.token_weights.data(),
                                        layout().num_tokens, layout().num_topk};
    std::size_t at = 0;
    const auto span = [&](const auto& body) {
      events_[sample][at++].record(stream);
      body();
      events_[sample][at++].record(stream);
    };
    transport_.notify(tables, stream);
    span([&] {
      kernels::build_send_index(routing,
                                {first.slot_dest.data(), layout().num_slots(),
                                 static_cast<std::uint32_t>(hop().send_ranks.size()),
                                 hop().first_dest, plan_.policy == DispatchPolicy::kStandard},
                                shape_.dispatch, shape_.mlp.hidden, first.rounds[0].send_buffer,
                                index, buffers_.workspace.data(), stream);
    });
    span([&] { transport_.dispatch(0, 0, tokens_.data(), routing, index, stream); });
    span([&] {
      kernels::ReceivedRows rows = received(shape_, hop(), first);
      if (DirectTransport::keeps_own_rows(layout())) {
        rows.in_place = own_rows_in_place(layout(), tables, tokens_.data());
      }
      kernels::build_receive_index(rows, tables.slot_local.data(),
                                   static_cast<std::uint32_t>(layout().local_experts.size()),
                                   {tables.copy_slot.data(), nullptr, tables.expert_begin.data()},
                                   buffers_.workspace.data(), stream);
      kernels::expand(rows, tables.copy_slot.data(), buffers_.expert_in.data(), stream);
    });
    transport_.notify(tables, stream);
    span([&] {
      transport_.announce_results(0, 0, stream);
      transport_.combine(0, 0, routing, index, tables.output.data(), nullptr, stream);
    });
    transport_.notify(tables, stream);
    span([&] {
      if (group_.num_ranks() == 1) return;
      check_cuda(cudaMemcpyAsync(transport_.own_region_of(next_), scratch_.data(),
                                 std::min(remote_rows() * row_bytes(), transport_.region_bytes()),
                                 cudaMemcpyDefault, stream),
                 "cudaMemcpyAsync to the next rank");
    });
    transport_.notify(tables, stream);
    span([&] {
      check_cuda(cudaMemcpyAsync(buffers_.expert_in.data(), scratch_.data(),
                                 std::min(all_bytes(), std::size_t{hop().num_recv_copies} *
                                                           shape_.mlp.hidden * sizeof(Bf16)),
                                 cudaMemcpyDeviceToDevice, stream),
                 "cudaMemcpyAsync");
    });
  }

  const DirectBenchOptions& options_;
  ControlGroup& group_;
  DirectTransport& transport_;
  LayerPlan plan_;
  LayerShape shape_;
  std::vector<RankLayout> layouts_;
  RunBuffers buffers_;
  std::vector<LayerTables> tables_;
  DeviceBuffer<Bf16> tokens_;
  DeviceBuffer<std::byte> scratch_;
  std::uint32_t next_ = 0;
  kernels::Stream stream_;
  std::vector<std::vector<Event>> events_;
  Gate gate_;
};

// [span][sample], of each sample the slowest rank's; empty at all ranks but 0.
std::vector<std::vector<double>> slowest(ControlGroup& group,
                                         const std::vector<std::vector<double>>& mine) {
  Packer packer;
  for (const auto& samples : mine) packer.numbers(samples);
  std::vector<std::vector<double>> out;
  for (const std::string& bytes : group.gather("collection of the samples", packer.take())) {
    Unpacker unpacker(bytes);
    for (std::size_t s = 0; s < kNumSpans; ++s) {
      const auto samples = unpacker.numbers<double>();
      if (out.size() <= s) out.emplace_back(samples.size(), 0.0);
      for (std::size_t i = 0; i < samples.size(); ++i) out[s][i] = std::max(out[s][i], samples[i]);
    }
  }
  return out;
}

double quantile_us(std::vector<double> samples, double q) {
  std::sort(samples.begin(), samples.end());
  return 1e6 * samples[static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1))];
}

json entry_of(const BenchLayer& layer, const Experiment& experiment, const Setting& setting,
              const std::vector<std::vector<double>>& spans) {
  json entry{{"hidden", experiment.model.hidden},
             {"tokens_per_rank", experiment.tokens_per_rank.value_or(0)},
             {"payload", to_string(experiment.dispatch_payload)},
             {"sms", setting.sms},
             {"rows", layer.rows()},
             {"remote_rows", layer.remote_rows()}};
  if (!setting.put_ring.empty()) entry["put_ring"] = setting.put_ring;
  if (!setting.pull_ring.empty()) entry["pull_ring"] = setting.pull_ring;
  for (std::size_t s = 0; s < kNumSpans; ++s) {
    entry[kSpans[s]] = {{"median_us", quantile_us(spans[s], 0.5)},
                        {"p10_us", quantile_us(spans[s], 0.1)},
                        {"p90_us", quantile_us(spans[s], 0.9)}};
  }
  return entry;
}

Table table_of(const json& entries) {
  Table table{{"hidden", "tokens", "payload", "sms", "rings", "rows out", "index", "dispatch",
               "expand", "combine", "wire", "memory"},
              {}};
  for (const json& entry : entries) {
    const auto number = [&](const char* key) {
      return std::to_string(entry.at(key).get<std::uint64_t>());
    };
    std::vector<std::string> row{
        number("hidden"),
        number("tokens_per_rank"),
        entry.at("payload").get<std::string>(),
        number("sms"),
        fmt::format("{}/{}", entry.value("put_ring", "-"), entry.value("pull_ring", "-")),
        number("remote_rows")};
    for (const char* span : kSpans) {
      row.push_back(fmt::format("{:.1f}", entry.at(span).at("median_us").get<double>()));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::vector<Setting> settings_of(const DirectBenchOptions& options) {
  const std::vector<std::string> own{""};
  std::vector<Setting> settings;
  for (const std::uint32_t sms : options.sms) {
    for (const std::string& put : options.put_rings.empty() ? own : options.put_rings) {
      settings.push_back({sms, put, options.pull_rings.empty() ? "" : options.pull_rings.front()});
    }
    for (std::size_t i = 1; i < options.pull_rings.size(); ++i) {
      settings.push_back({sms, "", options.pull_rings[i]});
    }
  }
  return settings;
}

}  // namespace

RingText parse_ring(const std::string& text) {
  RingText ring;
  const std::size_t cross = text.find('x');
  const auto number = [&](std::size_t begin, std::size_t end, std::uint32_t& value) {
    const char* const stop = text.data() + end;
    const auto [at, error] = std::from_chars(text.data() + begin, stop, value);
    return error == std::errc{} && at == stop && value > 0;
  };
  if (cross == std::string::npos || !number(0, cross, ring.num_warps) ||
      !number(cross + 1, text.size(), ring.num_slots)) {
    throw InputError("ring", fmt::format("\"{}\"", text), "WARPSxSLOTS, as in 5x3");
  }
  return ring;
}

void bench_direct(const DirectBenchOptions& options, const RankEnvironment& environment) {
  for (const auto& rings : {options.put_rings, options.pull_rings}) {
    for (const std::string& ring : rings) (void)parse_ring(ring);
  }
  ControlGroup group(environment, options.group);
  const auto body = [&] {
    group.barrier("rendezvous");
    group.set_stage("initialisation of the device");
    const GpuShare share = share_gpus(environment);
    use_gpu(share, environment);
    DirectTransport transport(group, environment, share);
    transport.require_one_machine("its benchmark");
    json entries = json::array();
    for (const std::uint32_t hidden : options.hidden) {
      for (const std::uint32_t tokens : options.tokens) {
        for (const std::string& payload : options.payloads) {
          std::vector<Override> overrides = options.overrides;
          overrides.push_back({"model.hidden", std::to_string(hidden)});
          overrides.push_back({"tokens_per_rank", std::to_string(tokens)});
          overrides.push_back({"payload.dispatch", payload});
          const Experiment experiment = load_experiment(options.experiment, overrides);
          if (experiment.num_ranks != environment.num_ranks) {
            throw InputError(experiment.name + ": ranks",
                             fmt::format("{} ranks", experiment.num_ranks),
                             fmt::format("{}, the number of processes", environment.num_ranks));
          }
          BenchLayer layer(options, environment, group, transport, experiment);
          for (const Setting& setting : settings_of(options)) {
            const auto spans = slowest(group, layer.measure(setting));
            if (group.rank() == 0) entries.push_back(entry_of(layer, experiment, setting, spans));
          }
          group.barrier("end of a benchmark");
        }
      }
    }
    if (group.rank() == 0) {
      cudaDeviceProp properties{};
      check_cuda(cudaGetDeviceProperties(&properties, share.device), "cudaGetDeviceProperties");
      fmt::print("{}, {} ranks, {} per GPU; medians in us of the slowest rank, {} samples\n",
                 properties.name, group.num_ranks(), share.ranks_per_gpu, options.num_samples);
      fmt::print("{}", render(table_of(entries)));
      if (!options.json.empty()) {
        const json document{{"schema_version", 1},
                            {"kind", "bench_direct"},
                            {"device", properties.name},
                            {"driver", driver_version()},
                            {"version", version()},
                            {"command", options.command},
                            {"num_ranks", group.num_ranks()},
                            {"ranks_per_gpu", share.ranks_per_gpu},
                            {"num_samples", options.num_samples},
                            {"entries", entries}};
        write_file(options.json, dump_json(document, 2) + "\n");
      }
    }
    group.finish();
  };
  run_in_group(group, [&] { with_device_errors(body); });
}

}  // namespace coterie
