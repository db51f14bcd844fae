#include "sim/calibrate/direct_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>

#include "core/file.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "sim/calibrate/probe_entry.hpp"
#include "sim/calibrate/uncertainty_scale.hpp"
#include "workloads/plan/payload.hpp"

namespace coterie {
namespace {

constexpr std::size_t kDirectFolds = 4;
constexpr std::size_t kFewestDirectPoints = 8;
constexpr std::uint32_t kSms = 16;  // what the runtime takes where nothing else is said
constexpr double kDirectBf16Bytes = 2.0;

// A cluster that says no more than where the ranks of a probe sit.
Cluster places_of(const DirectProbe& probe, std::uint32_t ranks_per_node) {
  Cluster cluster;
  cluster.num_nodes = probe.num_ranks / ranks_per_node;
  cluster.gpus_per_node = ranks_per_node;
  cluster.ranks_per_gpu = probe.ranks_per_gpu;
  return cluster;
}

using Matrix = std::vector<std::vector<std::uint32_t>>;

// The rows of a hop as a put sends them, or as a pull fetches the results.
std::vector<Message> messages_of(const Matrix& rows, const Matrix& copies,
                                 const PayloadSizes& sizes, bool pull) {
  std::vector<Message> messages;
  for (std::uint32_t sender = 0; sender < rows.size(); ++sender) {
    for (std::uint32_t receiver = 0; receiver < rows.size(); ++receiver) {
      const std::uint32_t count = rows[sender][receiver];
      if (count == 0) continue;
      const Bytes bytes =
          pull ? sizes.combine(count) : sizes.dispatch(count, copies[sender][receiver]);
      messages.push_back({pull ? receiver : sender, pull ? sender : receiver,
                          static_cast<double>(bytes.value), count, copies[sender][receiver]});
    }
  }
  return messages;
}

// What a relay has received, row sums over the senders.
std::vector<std::uint32_t> received(const Matrix& rows) {
  std::vector<std::uint32_t> sums(rows.size(), 0);
  for (const std::vector<std::uint32_t>& of_sender : rows) {
    for (std::size_t r = 0; r < of_sender.size(); ++r) sums[r] += of_sender[r];
  }
  return sums;
}

class ListReader {
 public:
  explicit ListReader(DirectProbe& probe) : probe_(probe) {}

  void add(const ProbeEntry& entry) {
    const std::string kind = entry.text("kind");
    if (kind == "synchronise") probe_.synchronise_s = entry.time_s();
    const bool second = kind == "put_forward" || kind == "pull_gather";
    if (!second && kind != "put" && kind != "pull" && kind != "combine") return;
    DirectPoint point = point_of(entry, second, kind != "put" && kind != "put_forward");
    if (kind == "combine") {
      if (!last_pull_) {
        throw InputError(entry.where(), "a combine without a pull before it", "both of each case");
      }
      announcements_.push_back(point.time_s - *last_pull_);
      last_pull_.reset();
    } else if (kind == "put") {
      probe_.puts.push_back(std::move(point));
    } else if (kind == "pull") {
      last_pull_ = point.time_s;
      probe_.pulls.push_back(std::move(point));
    } else {
      (kind == "put_forward" ? probe_.forwards : probe_.gathers).push_back(std::move(point));
    }
  }

  void finish(const std::string& name) {
    const auto require = [&](bool there, const char* kind) {
      if (!there) {
        throw InputError(name, fmt::format("no entry of kind \"{}\" in the list direct", kind),
                         "one at least");
      }
    };
    require(!probe_.puts.empty(), "put");
    require(!probe_.pulls.empty(), "pull");
    require(!announcements_.empty(), "combine");
    require(probe_.synchronise_s > 0.0, "synchronise");
    probe_.announce_s = std::max(0.0, median(std::move(announcements_)));
  }

 private:
  DirectPoint point_of(const ProbeEntry& entry, bool second, bool pull) {
    DirectPoint point{
        entry.text("scope"), entry.text("policy"), entry.text("pattern"), entry.positive("sms"), {},
        entry.time_s()};
    const bool two_hops = point.policy == "hierarchical";
    if (!two_hops && point.policy != "dedup") {
      throw InputError(entry.where(), fmt::format("policy \"{}\"", point.policy),
                       "dedup or hierarchical");
    }
    if (second && !two_hops) {
      throw InputError(entry.where(), "a second hop with the policy dedup", "hierarchical");
    }
    const std::size_t num_ranks = probe_.num_ranks;
    const auto hidden = static_cast<std::uint32_t>(entry.positive("hidden"));
    const bool fp8 = entry.is_fp8();
    const PayloadSizes sizes{row_payload(fp8 ? PayloadType::kFp8 : PayloadType::kBf16, hidden),
                             row_payload(PayloadType::kBf16, hidden)};
    const double plain_row = kDirectBf16Bytes * hidden;
    const Matrix rows = entry.matrix(second ? "forward_rows" : "rows", num_ranks);
    const Matrix copies = entry.matrix(second ? "forward_copies" : "copies", num_ranks);
    const std::vector<Message> messages = messages_of(rows, copies, sizes, pull);
    if (messages.empty()) throw InputError(entry.where(), "no rows", "rows that are moved");
    const std::vector<std::uint32_t> items =
        second ? received(entry.matrix("rows", num_ranks)) : entry.per_rank("tokens", num_ranks);
    const std::vector<std::uint32_t> ready(num_ranks, 0);
    PhaseTraffic traffic{
        pull ? Direction::kCombine : Direction::kDispatch, false, messages, 0, ready, items};
    traffic.item_bytes =
        second && !pull ? static_cast<double>(sizes.dispatch_row.value) : plain_row;
    traffic.quantises = fp8 && !pull && !second;
    traffic.hop = !two_hops ? HopKind::kGroup : second ? HopKind::kNode : HopKind::kRail;
    point.load = direct_step_load(places_of(probe_, ranks_per_node(entry)), traffic);
    return point;
  }

  // Of a plan of two hops; the ranks of a GPU where the entry does not say.
  [[nodiscard]] std::uint32_t ranks_per_node(const ProbeEntry& entry) const {
    if (!entry.has("ranks_per_node")) return probe_.ranks_per_gpu;
    const double found = entry.positive("ranks_per_node");
    const auto count = static_cast<std::uint32_t>(std::min(found, 1e9));
    if (count != found || probe_.num_ranks % count != 0) {
      throw InputError(entry.where(), fmt::format("{} ranks on a node", found),
                       fmt::format("as many on each for {} ranks", probe_.num_ranks));
    }
    return count;
  }

  DirectProbe& probe_;
  std::optional<double> last_pull_;
  std::vector<double> announcements_;
};

// Which of the parameters a set of points can tell anything of.
struct Asked {
  bool peer = false, far = false, near = false, quantise = false;
};
Asked asked_of(const std::vector<DirectPoint>& points) {
  Asked asked;
  for (const DirectPoint& point : points) {
    asked.peer |= point.load.num_peers != points.front().load.num_peers;
    asked.far |= point.load.port_bytes > 0.0;
    asked.near |= point.load.copied_bytes > 0.0;
    for (const DirectLoad& rank : point.load.ranks) asked.quantise |= rank.quantises;
  }
  return asked;
}

struct DirectKernelFit {
  DirectKernel kernel;
  std::vector<std::string> undetermined;
};

// `of_first_hop`: a kernel that shares the ports and copies of another, whose rates are known.
DirectKernelFit fit_kernel(const std::vector<DirectPoint>& points, const Asked& asked,
                           const Cluster& cluster, const DirectKernel* of_first_hop) {
  const double memory = cluster.gpu.memory_bandwidth.value * cluster.gpu.memory_efficiency;
  const double link = cluster.nic        ? cluster.nic->bandwidth.value * cluster.nic->per_gpu
                      : cluster.scale_up ? cluster.scale_up->bandwidth.value
                                         : 0.3 * memory;
  std::vector<FitParameter> parameters{{"fixed", std::log(12e-6), 2.0},
                                       {"token", std::log(1e-8), 2.0},
                                       {"row", std::log(1e-8), 2.0},
                                       {"sm_bandwidth", std::log(60e9), 1.0}};
  if (of_first_hop == nullptr) {
    parameters.push_back({"port_bandwidth", std::log(0.75 * link), 0.5});
  }
  if (asked.peer) parameters.push_back({"peer", std::log(0.3e-6), 2.0});
  if (asked.far) parameters.push_back({"sm_port_bandwidth", std::log(60e9), 1.0});
  if (asked.near && of_first_hop == nullptr) {
    parameters.push_back({"copy_bandwidth", std::log(0.5 * memory), 0.7});
  }
  if (asked.quantise) parameters.push_back({"quantise_bandwidth", std::log(30e9), 1.0});
  const auto make = [asked, of_first_hop](std::span<const double> p) {
    DirectKernel kernel;
    std::size_t next = 0;
    const auto take = [&] { return std::exp(p[next++]); };
    kernel.fixed = Seconds{take()};
    kernel.token = Seconds{take()};
    kernel.row = Seconds{take()};
    kernel.sm_bandwidth = Bandwidth{take()};
    kernel.port_bandwidth = of_first_hop ? of_first_hop->port_bandwidth : Bandwidth{take()};
    if (asked.peer) kernel.peer = Seconds{take()};
    if (asked.far) kernel.sm_port_bandwidth = Bandwidth{take()};
    if (of_first_hop != nullptr) kernel.copy_bandwidth = of_first_hop->copy_bandwidth;
    if (asked.near && of_first_hop == nullptr) kernel.copy_bandwidth = Bandwidth{take()};
    if (asked.quantise) kernel.quantise_bandwidth = Bandwidth{take()};
    return kernel;
  };
  FitProblem problem;
  problem.parameters = std::move(parameters);
  for (const DirectPoint& point : points) problem.log_measured.push_back(std::log(point.time_s));
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const DirectKernel kernel = make(p);
    for (std::size_t i = 0; i < points.size(); ++i) {
      out[i] = std::log(direct_step_s(kernel, points[i].load, points[i].sms));
    }
  };
  const FitResult result = solve(problem);
  return {make(result.parameters), result.undetermined};
}

DirectKernel fit_direct_in_folds(const char* name, const std::vector<DirectPoint>& points,
                                 const Cluster& cluster, std::vector<GpuFit::Part>& parts,
                                 const DirectKernel* of_first_hop = nullptr) {
  if (points.size() < kFewestDirectPoints) {
    throw InputError(fmt::format("fit of {}", name), fmt::format("{} points", points.size()),
                     "at least eight");
  }
  const Asked asked = asked_of(points);
  const DirectKernelFit all = fit_kernel(points, asked, cluster, of_first_hop);
  GpuFit::Part part{name, points.size(), all.undetermined, {}, {}};
  part.held_out.assign(points.size(), 0.0);
  for (const DirectPoint& point : points) part.measured_s.push_back(point.time_s);
  for (std::size_t fold = 0; fold < kDirectFolds; ++fold) {
    std::vector<DirectPoint> training;
    for (std::size_t i = 0; i < points.size(); ++i) {
      if (i % kDirectFolds != fold) training.push_back(points[i]);
    }
    const DirectKernel kernel = fit_kernel(training, asked, cluster, of_first_hop).kernel;
    for (std::size_t i = fold; i < points.size(); i += kDirectFolds) {
      part.held_out[i] =
          direct_step_s(kernel, points[i].load, points[i].sms) / points[i].time_s - 1.0;
    }
  }
  parts.push_back(std::move(part));
  return all.kernel;
}

}  // namespace

std::optional<DirectProbe> parse_direct_probe(const std::string& text, const std::string& name) {
  constexpr const char* kExpected = "the curves.json of coterie-runtime probe";
  const nlohmann::json document = parse_json(text, name, kExpected);
  if (!document.is_object()) throw InputError(name, json_excerpt(document), kExpected);
  if (!document.contains("direct")) return std::nullopt;
  const ProbeEntry header(document, name);
  DirectProbe probe;
  probe.num_ranks = static_cast<std::uint32_t>(header.positive("num_ranks"));
  if (document.contains("ranks_per_gpu")) {
    probe.ranks_per_gpu = static_cast<std::uint32_t>(header.positive("ranks_per_gpu"));
  }
  if (probe.ranks_per_gpu == 0 || probe.num_ranks % probe.ranks_per_gpu != 0) {
    throw InputError(name,
                     fmt::format("{} ranks, {} on each GPU", probe.num_ranks, probe.ranks_per_gpu),
                     "as many on every GPU");
  }
  ListReader reader(probe);
  read_probe_part(document, name, "direct", [&](const ProbeEntry& entry) { reader.add(entry); });
  reader.finish(name);
  return probe;
}

std::optional<DirectProbe> read_direct_probe(const std::filesystem::path& path) {
  return parse_direct_probe(read_file(path), path.string());
}

DirectFit fit_direct(const Cluster& cluster, const DirectProbe& probe) {
  if (cluster.ranks_per_gpu != probe.ranks_per_gpu) {
    throw InputError("topology " + cluster.name,
                     fmt::format("{} ranks on each GPU (ranks_per_gpu)", cluster.ranks_per_gpu),
                     fmt::format("{} as in the probe", probe.ranks_per_gpu));
  }
  DirectFit fit;
  fit.parameters.sms = kSms;
  fit.parameters.notify = Seconds{probe.synchronise_s};
  fit.parameters.announce = Seconds{probe.announce_s};
  // Where ranks share a GPU the second hop stays on it and its rows tell most of what the GPU's copies carry:
  // one fit of both hops.
  const bool second_hop_apart = probe.ranks_per_gpu == 1;
  const auto with = [&](std::vector<DirectPoint> first, const std::vector<DirectPoint>& second) {
    if (!second_hop_apart) first.insert(first.end(), second.begin(), second.end());
    return first;
  };
  fit.parameters.dispatch =
      fit_direct_in_folds("direct.put", with(probe.puts, probe.forwards), cluster, fit.parts);
  fit.parameters.combine =
      fit_direct_in_folds("direct.pull", with(probe.pulls, probe.gathers), cluster, fit.parts);
  if (second_hop_apart && probe.forwards.size() >= kFewestDirectPoints) {
    fit.parameters.forward = fit_direct_in_folds("direct.forward", probe.forwards, cluster,
                                                 fit.parts, &fit.parameters.dispatch);
  }
  if (second_hop_apart && probe.gathers.size() >= kFewestDirectPoints) {
    fit.parameters.gather = fit_direct_in_folds("direct.gather", probe.gathers, cluster, fit.parts,
                                                &fit.parameters.combine);
  }
  return fit;
}

void set_direct_uncertainty(const DirectFit& fit, Cluster& cluster) {
  std::vector<LeftOutPoint> points;
  for (const GpuFit::Part& part : fit.parts) {
    const auto of_part = left_out_points(part.held_out, part.measured_s);
    points.insert(points.end(), of_part.begin(), of_part.end());
  }
  cluster.uncertainty.scale_up = uncertainty_scale(std::move(points));
  cluster.uncertainty.network = cluster.uncertainty.scale_up;
}

}  // namespace coterie
