#include "runtime/session/probe.hpp"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/provenance.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "kernels/cuda.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/gate.hpp"
#include "runtime/device/nvml.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/session/measure.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::Event;

struct CurvePoint {
  std::string kind;
  std::uint64_t bytes_per_pair = 0;
  std::vector<double> samples_us;
};

// Seconds of `body`, enqueued on the stream: the median of `num_samples`.
template <class Body>
double time_of(const kernels::Stream& stream, int num_samples, const Body& body) {
  std::vector<double> seconds;
  for (int i = -2; i < num_samples; ++i) {
    const Event begin;
    const Event end;
    begin.record(stream.get());
    body();
    end.record(stream.get());
    end.synchronize();
    if (i >= 0) seconds.push_back(kernels::seconds_between(begin, end));
  }
  return median(seconds);
}

// Bytes read and written per second by a copy that is far larger than the cache.
double copy_rate(const kernels::Stream& stream) {
  constexpr std::size_t kBytes = std::size_t{2} << 30;
  const DeviceBuffer<std::byte> from(kBytes);
  const DeviceBuffer<std::byte> to(kBytes);
  const double seconds = time_of(stream, 9, [&] {
    check_cuda(
        cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream.get()),
        "cudaMemcpyAsync");
  });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw CudaError(fmt::format("{} failed: {}", call, cublasGetStatusString(status)));
  }
}

// BF16 product of random matrices (zeros run faster than data does).
double gemm_rate(const kernels::Stream& stream) {
  constexpr int kSize = 8192;
  const DeviceBuffer<Bf16> a(std::span<const Bf16>(make_tokens(1, 0, kSize, kSize)));
  const DeviceBuffer<Bf16> b(std::span<const Bf16>(make_tokens(2, 0, kSize, kSize)));
  const DeviceBuffer<Bf16> c(std::size_t{kSize} * kSize);
  cublasHandle_t raw = nullptr;
  check_cublas(cublasCreate(&raw), "cublasCreate");
  const std::unique_ptr<cublasContext, decltype(&cublasDestroy)> handle(raw, cublasDestroy);
  check_cublas(cublasSetStream(raw, stream.get()), "cublasSetStream");
  const float one = 1.0F;
  const float zero = 0.0F;
  const double seconds = time_of(stream, 9, [&] {
    check_cublas(cublasGemmEx(raw, CUBLAS_OP_N, CUBLAS_OP_N, kSize, kSize, kSize, &one, a.data(),
                              CUDA_R_16BF, kSize, b.data(), CUDA_R_16BF, kSize, &zero, c.data(),
                              CUDA_R_16BF, kSize, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                 "cublasGemmEx");
  });
  return 2.0 * kSize * kSize * kSize / seconds;
}

double launch_cost(const kernels::Stream& stream) {
  constexpr int kMany = 200;
  const DeviceBuffer<std::byte> target(256);
  return time_of(stream, 9,
                 [&] {
                   for (int i = 0; i < kMany; ++i) {
                     check_cuda(cudaMemsetAsync(target.data(), i, target.size(), stream.get()),
                                "cudaMemsetAsync");
                   }
                 }) /
         kMany;
}

class Curves {
 public:
  Curves(const ProbeOptions& options, ControlGroup& group, Communicator& communicator,
         const kernels::Stream& stream)
      : options_(options), group_(group), communicator_(communicator), stream_(stream) {}

  // Every rank to every other at once; the time of the slowest rank.
  CurvePoint all_to_all(std::uint64_t bytes) {
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::uint32_t peer = 0; peer < group_.num_ranks(); ++peer) {
      if (peer == group_.rank()) continue;
      sends.push_back({peer, send_.data() + sends.size() * bytes, bytes});
      receives.push_back({peer, recv_.data() + receives.size() * bytes, bytes});
    }
    return measure("alltoall", bytes, 1.0,
                   [&] { communicator_.exchange(sends, receives, stream_.get()); });
  }

  // Ping and pong between two ranks, the others idle: half the time of a round trip.
  CurvePoint pair(const std::string& kind, std::uint64_t bytes, std::uint32_t far_rank) {
    return measure(kind, bytes, 0.5, [&] {
      const std::array<Message, 1> out{{{group_.rank() == 0 ? far_rank : 0, send_.data(), bytes}}};
      const std::array<Message, 1> in{{{group_.rank() == 0 ? far_rank : 0, recv_.data(), bytes}}};
      if (group_.rank() == 0) {
        communicator_.exchange(out, {}, stream_.get());
        communicator_.exchange({}, in, stream_.get());
      } else if (group_.rank() == far_rank) {
        communicator_.exchange({}, in, stream_.get());
        communicator_.exchange(out, {}, stream_.get());
      }
    });
  }

  void allocate(std::uint64_t max_bytes) {
    const std::size_t total = max_bytes * std::max(group_.num_ranks() - 1, 1U);
    send_ = DeviceBuffer<std::byte>(total);
    recv_ = DeviceBuffer<std::byte>(total);
    send_.fill_bytes(1);
    line_up_ = DeviceBuffer<std::byte>(2 * std::size_t{group_.num_ranks()});
    line_up_.fill_bytes(0);
  }

 private:
  template <class Body>
  CurvePoint measure(const std::string& kind, std::uint64_t bytes, double factor,
                     const Body& body) {
    const std::string stage = fmt::format("{} of {} B", kind, bytes);
    CurvePoint point{kind, bytes, {}};
    // Two warm-ups, then as many samples as fit about a second.
    std::uint32_t num_samples = 3;
    std::vector<double> mine;
    for (std::uint32_t i = 0; i < num_samples; ++i) {
      // The first use of a connection waits for the device, so the gate stays open there.
      const double seconds = once(body, i > 0);
      if (i < 2) {
        if (i == 1) num_samples = 2 + agree_on_samples(seconds);
        continue;
      }
      mine.push_back(seconds);
    }
    const auto all = group_.gather(stage, Packer().numbers(mine).take());
    if (group_.rank() == 0) {
      point.samples_us.assign(mine.size(), 0.0);
      for (const std::string& blob : all) {
        const auto seconds = Unpacker(blob).numbers<double>();
        for (std::size_t i = 0; i < seconds.size(); ++i) {
          point.samples_us[i] = std::max(point.samples_us[i], seconds[i] * factor * 1e6);
        }
      }
    }
    return point;
  }

  template <class Body>
  double once(const Body& body, bool gated) {
    group_.watch_stage("a sample of the curves");
    if (gated) gate_.close(stream_.get());
    // A small exchange that nobody times lines the ranks up.
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::uint32_t peer = 0; peer < group_.num_ranks(); ++peer) {
      if (peer == group_.rank()) continue;
      sends.push_back({peer, line_up_.data() + peer, 1});
      receives.push_back({peer, line_up_.data() + group_.num_ranks() + peer, 1});
    }
    communicator_.exchange(sends, receives, stream_.get());
    begin_.record(stream_.get());
    body();
    end_.record(stream_.get());
    if (gated) {
      group_.barrier("opening of a sample");
      gate_.open();
    }
    communicator_.wait_for(end_);
    return kernels::seconds_between(begin_, end_);
  }

  std::uint32_t agree_on_samples(double seconds) {
    constexpr double kBudget_s = 0.8;
    const auto wanted = static_cast<std::uint32_t>(
        std::clamp(kBudget_s / std::max(seconds, 1e-6), 4.0,
                   static_cast<double>(std::max(options_.num_samples, 4U))));
    return static_cast<std::uint32_t>(
        std::stoul(group_.broadcast("number of samples", std::to_string(wanted))));
  }

  const ProbeOptions& options_;
  ControlGroup& group_;
  Communicator& communicator_;
  const kernels::Stream& stream_;
  DeviceBuffer<std::byte> send_, recv_, line_up_;
  const Event begin_, end_;
  Gate gate_;
};

// What connects the GPUs of two ranks of this machine.
std::string link_kind(const GpuShare& share) {
  if (share.ranks_per_gpu > 1 || share.num_gpus < 2) return "socket";
  std::array<char, 32> bus_id{};
  check_cuda(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), share.device),
             "cudaDeviceGetPCIBusId");
  if (has_nvlink(bus_id.data())) return "nvlink";
  return "pcie";
}

// Appends the points to what an earlier start left in the file.
nlohmann::json merge_curves(const std::filesystem::path& path, bool append, nlohmann::json header,
                            const std::vector<CurvePoint>& points) {
  nlohmann::json document = std::move(header);
  document["curves"] = nlohmann::json::array();
  if (append && std::filesystem::exists(path)) {
    nlohmann::json old = nlohmann::json::parse(read_file(path), nullptr, false);
    for (const char* key : {"machine", "device", "nccl_version", "num_ranks", "ranks_per_gpu"}) {
      if (old.is_discarded() || !old.contains(key) || old.at(key) != document.at(key)) {
        throw InputError(path.string(), fmt::format("curves of another \"{}\"", key),
                         "curves of this machine and number of ranks to append to");
      }
    }
    document["curves"] = std::move(old.at("curves"));
  }
  for (const CurvePoint& point : points) {
    nlohmann::json* entry = nullptr;
    for (nlohmann::json& curve : document["curves"]) {
      if (curve.at("kind") == point.kind && curve.at("bytes_per_pair") == point.bytes_per_pair) {
        entry = &curve;
      }
    }
    if (entry == nullptr) {
      document["curves"].push_back({{"kind", point.kind},
                                    {"bytes_per_pair", point.bytes_per_pair},
                                    {"samples_us", nlohmann::json::array()}});
      entry = &document["curves"].back();
    }
    std::vector<double> rounded;
    for (const double value : point.samples_us) rounded.push_back(std::round(value * 100) / 100);
    (*entry)["samples_us"].push_back(rounded);
    (*entry)["restarts"] = (*entry)["samples_us"].size();
    std::vector<double> medians;
    for (const auto& samples : (*entry)["samples_us"]) {
      medians.push_back(median(samples.get<std::vector<double>>()));
    }
    (*entry)["median_us"] = median(medians);
  }
  return document;
}

void print_curves(const nlohmann::json& document) {
  Table table{{"kind", "bytes/pair", "median us", "lowest start", "highest start", "starts"}, {}};
  for (const auto& curve : document.at("curves")) {
    std::vector<double> medians;
    for (const auto& samples : curve.at("samples_us")) {
      medians.push_back(median(samples.get<std::vector<double>>()));
    }
    table.rows.push_back({curve.at("kind").get<std::string>(),
                          std::to_string(curve.at("bytes_per_pair").get<std::uint64_t>()),
                          fmt::format("{:.1f}", curve.at("median_us").get<double>()),
                          fmt::format("{:.1f}", *std::min_element(medians.begin(), medians.end())),
                          fmt::format("{:.1f}", *std::max_element(medians.begin(), medians.end())),
                          std::to_string(medians.size())});
  }
  fmt::print("{}", render(table));
}

std::string host_name() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return host.data();
}

void probe(const ProbeOptions& options, const RankEnvironment& environment, ControlGroup& group) {
  group.set_stage("selection of the GPU");
  const GpuShare share = share_gpus(environment);
  use_gpu(share, environment);
  ProbeFacts facts;
  facts.machine = options.machine.empty() ? host_name() : options.machine;
  facts.driver = driver_version();
  facts.nccl = nccl_version();
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, share.device), "cudaGetDeviceProperties");
  facts.device = properties.name;
  facts.num_sms = static_cast<std::uint32_t>(properties.multiProcessorCount);
  facts.ranks_per_node = environment.num_local_ranks;
  facts.num_nodes =
      (environment.num_ranks + environment.num_local_ranks - 1) / environment.num_local_ranks;
  facts.ranks_per_gpu = share.ranks_per_gpu;
  facts.link_kind = link_kind(share);

  const kernels::Stream stream;
  if (environment.rank == 0) {
    group.set_stage("copy, GEMM and launch rates");
    facts.copy_bytes_per_s = copy_rate(stream);
    facts.gemm_flop_per_s = gemm_rate(stream);
    facts.launch_s = launch_cost(stream);
  }
  group.barrier("end of the device measurements");

  std::vector<CurvePoint> points;
  if (group.num_ranks() > 1) {
    Communicator communicator(group);
    Curves curves(options, group, communicator, stream);
    curves.allocate(options.max_bytes);
    const bool near_pair = environment.num_local_ranks > 1;
    const bool far_pair = facts.num_nodes > 1;
    for (const std::uint64_t bytes : curve_sizes(options.max_bytes)) {
      if (near_pair) points.push_back(curves.pair("sendrecv", bytes, 1));
      if (far_pair) {
        points.push_back(curves.pair("sendrecv_nodes", bytes, environment.num_local_ranks));
      }
      points.push_back(curves.all_to_all(bytes));
    }
    communicator.finish();
  }
  fault_point(environment.rank, "report");
  group.barrier("start of the report");
  if (environment.rank != 0) return;

  const double pairs = static_cast<double>(group.num_ranks()) * (group.num_ranks() - 1);
  for (const CurvePoint& point : points) {
    const double seconds = median(point.samples_us) * 1e-6;
    const auto bytes = static_cast<double>(point.bytes_per_pair);
    if (point.bytes_per_pair == 1) {
      if (point.kind == "sendrecv") facts.pair_latency_s = seconds;
      if (point.kind == "sendrecv_nodes") facts.far_latency_s = seconds;
    }
    // Points ascend in size, so the largest stays.
    if (point.kind == "sendrecv") facts.pair_bytes_per_s = bytes / seconds;
    if (point.kind == "sendrecv_nodes") facts.far_bytes_per_s = bytes / seconds;
    if (point.kind == "alltoall") facts.all_to_all_bytes_per_s = bytes * pairs / seconds;
  }
  const nlohmann::json header{{"schema_version", 1},
                              {"machine", facts.machine},
                              {"device", facts.device},
                              {"driver", facts.driver},
                              {"nccl_version", facts.nccl},
                              {"num_gpus", share.num_gpus},
                              {"num_nodes", facts.num_nodes},
                              {"num_ranks", environment.num_ranks},
                              {"ranks_per_gpu", share.ranks_per_gpu},
                              {"mps", std::getenv("COTERIE_MPS") != nullptr},
                              {"link_kind", facts.link_kind},
                              {"copy_bytes_per_s", facts.copy_bytes_per_s},
                              {"gemm_flop_per_s", facts.gemm_flop_per_s},
                              {"launch_s", facts.launch_s},
                              {"version", version()},
                              {"command", options.command}};
  const auto path = options.output / "curves.json";
  const nlohmann::json document = merge_curves(path, options.append, header, points);
  write_file(path, document.dump(1) + "\n");
  write_file(options.output / "topology.yaml", topology_skeleton(facts));
  fmt::print("{}: {}, driver {}, NCCL {}, {} ranks, {} per GPU, links: {}\n", facts.machine,
             facts.device, facts.driver, facts.nccl, environment.num_ranks, share.ranks_per_gpu,
             facts.link_kind);
  fmt::print("copy {:.2f} TB/s (read + write), BF16 GEMM {:.0f} TFLOP/s, launch {:.2f} us\n",
             facts.copy_bytes_per_s * 1e-12, facts.gemm_flop_per_s * 1e-12, facts.launch_s * 1e6);
  print_curves(document);
}

}  // namespace

std::vector<std::uint64_t> curve_sizes(std::uint64_t max_bytes) {
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t bytes = 1; bytes <= max_bytes; bytes *= 4) sizes.push_back(bytes);
  return sizes;
}

std::string topology_skeleton(const ProbeFacts& facts) {
  const std::uint32_t num_ranks = facts.num_nodes * facts.ranks_per_node;
  // Each of R ranks that work on one GPU at once has 1/R of it.
  const double share = 1.0 / facts.ranks_per_gpu;
  std::string out = fmt::format(
      "# Skeleton written by `coterie-runtime probe`: plain figures of this machine, "
      "uncalibrated.\n"
      "# Efficiencies are 1 because the rates are what a large GEMM and copy reached. A GPU that\n"
      "# several ranks share counts as as many GPUs with equal parts of it.\n"
      "schema_version: 1\n"
      "name: {}_ep{}\n"
      "description: \"{} ranks on {} ({} per GPU), probed\"\n"
      "nodes: {}\n"
      "gpus_per_node: {}\n"
      "gpu:\n"
      "  name: {}\n"
      "  bf16_peak: {:.1f} TFLOP/s\n"
      "  memory_bandwidth: {:.1f} GB/s\n"
      "  num_sms: {}\n"
      "  compute_efficiency: 1\n"
      "  memory_efficiency: 1\n"
      "  kernel_launch: {:.2f} us\n",
      facts.machine, num_ranks, num_ranks, facts.device, facts.ranks_per_gpu, facts.num_nodes,
      facts.ranks_per_node, facts.device, facts.gemm_flop_per_s * 1e-12 * share,
      facts.copy_bytes_per_s * 1e-9 * share, std::max(facts.num_sms / facts.ranks_per_gpu, 1U),
      facts.launch_s * 1e6);
  if (facts.pair_bytes_per_s > 0.0) {
    out += fmt::format(
        "scale_up:\n"
        "  kind: {}\n"
        "  bandwidth: {:.3f} GB/s\n"
        "  latency: 0 us\n",
        facts.link_kind, facts.pair_bytes_per_s * 1e-9);
    // Ranks that share one GPU or one host bridge share its bandwidth too.
    if (facts.link_kind != "nvlink" && facts.num_nodes == 1) {
      out += fmt::format("  shared_bandwidth: {:.3f} GB/s\n", facts.all_to_all_bytes_per_s * 1e-9);
    }
  }
  if (facts.far_bytes_per_s > 0.0) {
    out += fmt::format(
        "nic:\n"
        "  bandwidth: {:.3f} GB/s\n"
        "  latency: 0 us\n"
        "fabric:\n"
        "  kind: star\n",
        facts.far_bytes_per_s * 1e-9);
  }
  if (facts.pair_bytes_per_s > 0.0 || facts.far_bytes_per_s > 0.0) {
    out += "transports:\n  nccl:\n";
  }
  const auto add_tier = [&out](const char* tier, double alpha_s) {
    out += fmt::format("    {}: {{segments: [{{alpha: {:.2f} us}}]}}\n", tier, alpha_s * 1e6);
  };
  if (facts.pair_bytes_per_s > 0.0) add_tier("scale_up", facts.pair_latency_s);
  if (facts.far_bytes_per_s > 0.0) add_tier("network", facts.far_latency_s);
  out += fmt::format(
      "provenance:\n"
      "  machine: {}\n"
      "  device: {}\n"
      "  driver: \"{}\"\n"
      "  nccl: \"{}\"\n",
      facts.machine, facts.device, facts.driver, facts.nccl);
  return out;
}

void run_probe(const ProbeOptions& options, const RankEnvironment& environment) {
  fault_point(environment.rank, "start");
  if (environment.rank == 0) make_folder(options.output);
  ControlGroup group(environment, options.group);
  run_in_group(group, [&] {
    with_device_errors([&] {
      group.barrier("rendezvous");
      fault_point(environment.rank, "rendezvous");
      probe(options, environment, group);
      group.finish();
    });
  });
}

}  // namespace coterie
