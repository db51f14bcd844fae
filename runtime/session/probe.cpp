#include "runtime/session/probe.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/provenance.hpp"
#include "core/table.hpp"
#include "kernels/grouped_gemm.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/nvml.hpp"
#include "runtime/executor/direct_transport.hpp"
#include "runtime/session/probe/file.hpp"
#include "runtime/session/probe/parts.hpp"
#include "runtime/session/probe/plan.hpp"
#include "runtime/session/probe/rates.hpp"
#include "runtime/session/probe/sampler.hpp"
#include "runtime/session/probe/skeleton.hpp"

namespace coterie {
namespace {

using nlohmann::json;

// What connects the GPUs of two ranks of this machine.
std::string link_kind(const GpuShare& share) {
  if (share.ranks_per_gpu > 1 || share.num_gpus < 2) return "socket";
  std::array<char, 32> bus_id{};
  check_cuda(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), share.device),
             "cudaDeviceGetPCIBusId");
  if (has_nvlink(bus_id.data())) return "nvlink";
  return "pcie";
}

// Whether the transport direct can run: all ranks on one machine, GPUs with bulk copies.
bool can_use_direct(const RankEnvironment& environment, const GpuShare& share) {
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, share.device),
             "cudaDeviceGetAttribute");
  return environment.num_ranks > 1 && environment.num_local_ranks == environment.num_ranks &&
         major >= 9;
}

std::uint64_t max_bytes(const ProbeOptions& options, const ProbeFacts& facts) {
  return options.max_bytes.value_or(facts.link_kind == "nvlink" ? kNvlinkMaxBytes : kLeastMaxBytes);
}

std::string host_name() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return host.data();
}

ProbeFacts find_facts(const ProbeOptions& options, const RankEnvironment& environment,
                      const GpuShare& share) {
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
  return facts;
}

json make_header(const ProbeOptions& options, const RankEnvironment& environment,
                 const GpuShare& share, const ProbeFacts& facts) {
  return {{"schema_version", kProbeSchemaVersion},
          {"machine", facts.machine},
          {"device", facts.device},
          {"driver", facts.driver},
          {"nccl_version", facts.nccl},
          {"num_gpus", share.num_gpus},
          {"num_sms", facts.num_sms},
          {"num_nodes", facts.num_nodes},
          {"num_ranks", environment.num_ranks},
          {"ranks_per_gpu", share.ranks_per_gpu},
          {"mps", std::getenv("COTERIE_MPS") != nullptr},
          {"link_kind", facts.link_kind},
          {"max_bytes", max_bytes(options, facts)},
          {"transports", can_use_direct(environment, share) ? json::array({"nccl", "direct"})
                                                            : json::array({"nccl"})},
          {"cutlass", kernels::cutlass_version()},
          {"version", version()},
          {"command", options.command},
          {"parts", json::object()}};
}

// At rank 0: the file with its past, or the header alone.
json open_document(const std::filesystem::path& path, const json& header) {
  if (!path_exists(path)) return header;
  json document = parse_probe(read_file(path), path.string());
  check_same_probe(document, header, path.string());
  document["command"] = header.at("command");
  return document;
}

std::vector<ProbePart> wanted_parts(const ProbeOptions& options, const ProbePlan& plan) {
  std::vector<ProbePart> chosen;
  for (const std::string& name : options.parts) chosen.push_back(probe_part(name));
  std::vector<ProbePart> parts;
  for (const ProbePart part : plan.parts()) {
    if (chosen.empty() || std::find(chosen.begin(), chosen.end(), part) != chosen.end()) {
      parts.push_back(part);
    }
  }
  if (parts.empty()) {
    throw InputError("--parts", "only parts that exchange", "at least two ranks for these");
  }
  return parts;
}

std::vector<ProbePoint> measure_part(ProbeTools& tools, const ProbePlan& plan, ProbePart part) {
  switch (part) {
    case ProbePart::kCommunication:
      return probe_communication(tools, plan.communication);
    case ProbePart::kNotify:
      return probe_notify(tools);
    case ProbePart::kKernels:
      return probe_kernels(tools, plan.kernels);
    case ProbePart::kExpertMlp:
      return probe_expert_mlp(tools, plan.expert_mlp);
    case ProbePart::kOverlap:
      return probe_overlap(tools, plan.overlap);
    case ProbePart::kDirect:
      return probe_direct(tools, plan.direct);
  }
  throw std::logic_error("no such part");
}

void print_curves(const json& document) {
  if (!document.contains("curves")) return;
  Table table{{"kind", "bytes/pair", "median us", "starts"}, {}};
  for (const auto& curve : document.at("curves")) {
    table.rows.push_back({curve.at("kind").get<std::string>(),
                          std::to_string(curve.at("bytes_per_pair").get<std::uint64_t>()),
                          fmt::format("{:.1f}", curve.at("median_us").get<double>()),
                          std::to_string(curve.at("restarts").get<std::uint32_t>())});
  }
  fmt::print("{}", render(table));
}

// The rates of a whole GPU, at rank 0: measured once per file.
void find_rates(ControlGroup& group, json& document) {
  if (group.rank() == 0 && !has_rates(document)) {
    group.set_stage("copy, GEMM and launch rates");
    const kernels::Stream stream;
    document["copy_bytes_per_s"] = copy_rate(stream);
    document["gemm_flop_per_s"] = gemm_rate(stream);
    document["launch_s"] = launch_cost(stream);
  }
  group.barrier("end of the device measurements");
}

void write_skeleton(const ProbeOptions& options, const json& document, ProbeFacts facts) {
  facts.copy_bytes_per_s = document.at("copy_bytes_per_s").get<double>();
  facts.gemm_flop_per_s = document.at("gemm_flop_per_s").get<double>();
  facts.launch_s = document.at("launch_s").get<double>();
  fill_links(document, facts);
  write_file(options.output / "topology.yaml", topology_skeleton(facts));
  fmt::print("{}: {}, driver {}, NCCL {}, {} ranks, {} per GPU, links: {}\n", facts.machine,
             facts.device, facts.driver, facts.nccl, document.at("num_ranks").get<int>(),
             facts.ranks_per_gpu, facts.link_kind);
  fmt::print("copy {:.2f} TB/s (read + write), BF16 GEMM {:.0f} TFLOP/s, launch {:.2f} us\n",
             facts.copy_bytes_per_s * 1e-12, facts.gemm_flop_per_s * 1e-12, facts.launch_s * 1e6);
  print_curves(document);
}

// Rank 0's answers to what all ranks must do alike.
struct Agreement {
  bool fp8_products = false;
  bool direct = false;
  std::uint32_t ranks_per_gpu = 1;
  std::uint64_t max_bytes = kLeastMaxBytes;
  std::vector<ProbePart> parts;
};

Agreement agree(const ProbeOptions& options, const RankEnvironment& environment,
                ControlGroup& group, const Agreement& mine, const json& document) {
  ProbeSetting setting{environment.num_ranks, environment.num_local_ranks, mine.ranks_per_gpu,
                       mine.max_bytes,        mine.fp8_products,           mine.direct};
  Packer packer;
  if (group.rank() == 0) {
    const auto wanted = wanted_parts(options, plan_probe(setting));
    packer.number<std::uint8_t>(mine.fp8_products ? 1 : 0)
        .number<std::uint8_t>(mine.direct ? 1 : 0)
        .number(mine.ranks_per_gpu)
        .number(mine.max_bytes);
    std::vector<std::uint8_t> numbers;
    for (const ProbePart part : parts_to_measure(document, wanted, options.append)) {
      numbers.push_back(static_cast<std::uint8_t>(part));
    }
    packer.numbers(numbers);
  }
  const std::string blob = group.broadcast("what to measure", packer.take());
  Unpacker unpacker(blob);
  Agreement agreed;
  agreed.fp8_products = unpacker.number<std::uint8_t>() != 0;
  agreed.direct = unpacker.number<std::uint8_t>() != 0;
  agreed.ranks_per_gpu = unpacker.number<std::uint32_t>();
  agreed.max_bytes = unpacker.number<std::uint64_t>();
  for (const std::uint8_t number : unpacker.numbers<std::uint8_t>()) {
    agreed.parts.push_back(static_cast<ProbePart>(number));
  }
  return agreed;
}

void probe(const ProbeOptions& options, const RankEnvironment& environment, ControlGroup& group) {
  group.set_stage("selection of the GPU");
  const GpuShare share = share_gpus(environment);
  use_gpu(share, environment);
  const ProbeFacts facts = find_facts(options, environment, share);
  const auto path = options.output / "curves.json";
  json document;
  if (environment.rank == 0) {
    document = open_document(path, make_header(options, environment, share, facts));
  }
  const Agreement agreed = agree(options, environment, group,
                                 {kernels::grouped_gemm_available(),
                                  can_use_direct(environment, share),
                                  share.ranks_per_gpu,
                                  max_bytes(options, facts),
                                  {}},
                                 document);
  const ProbePlan plan =
      plan_probe({environment.num_ranks, environment.num_local_ranks, agreed.ranks_per_gpu,
                  agreed.max_bytes, agreed.fp8_products, agreed.direct});
  if (environment.rank == 0 && agreed.parts.empty()) {
    spdlog::info("{} has all parts; --append adds another start", path.string());
  }

  find_rates(group, document);
  if (!agreed.parts.empty()) {
    const auto is_direct = [](ProbePart part) { return part == ProbePart::kDirect; };
    const bool any_direct = std::any_of(agreed.parts.begin(), agreed.parts.end(), is_direct);
    const bool only_direct = std::all_of(agreed.parts.begin(), agreed.parts.end(), is_direct);
    std::optional<Communicator> communicator;
    if (group.num_ranks() > 1 && !only_direct) communicator.emplace(group);
    std::optional<DirectTransport> direct;
    if (any_direct) {
      direct.emplace(group, environment, share);
      direct->require_one_machine("its probe");
    }
    Sampler sampler(group, communicator ? &*communicator : nullptr);
    ProbeTools tools{group,
                     communicator ? &*communicator : nullptr,
                     sampler,
                     environment.num_local_ranks,
                     options.num_samples,
                     agreed.ranks_per_gpu,
                     direct ? &*direct : nullptr};
    for (std::size_t i = 0; i < agreed.parts.size(); ++i) {
      const std::string name = to_string(agreed.parts[i]);
      if (environment.rank == 0) {
        spdlog::info("probe: {} ({} of {})", name, i + 1, agreed.parts.size());
      }
      const auto begin = std::chrono::steady_clock::now();
      const auto points = measure_part(tools, plan, agreed.parts[i]);
      const double seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (environment.rank == 0) {
        add_start(document, agreed.parts[i], points, seconds);
        write_file(path, probe_text(document));
        spdlog::info("probe: {} took {:.1f} s, {} points", name, seconds, points.size());
      }
      group.barrier(fmt::format("end of the part {}", name));
    }
    if (communicator) communicator->finish();
  }
  fault_point(environment.rank, "report");
  group.barrier("start of the report");
  if (environment.rank == 0) write_skeleton(options, document, facts);
}

}  // namespace

void run_probe(const ProbeOptions& options, const RankEnvironment& environment) {
  fault_point(environment.rank, "start");
  for (const std::string& name : options.parts) (void)probe_part(name);
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
