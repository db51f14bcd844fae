#include "sim/calibrate/measurements.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <tuple>

#include "core/counted.hpp"
#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/nccl_log.hpp"
#include "sim/calibrate/point_table.hpp"

namespace coterie {
namespace {

std::vector<AllToAllPoint> from_csv(const std::string& text, const std::string& name) {
  const PointTable table(text, name);
  std::vector<AllToAllPoint> points;
  for (std::size_t row = 0; row < table.num_rows(); ++row) {
    AllToAllPoint point;
    point.machine = table.text(row, "machine");
    point.device = table.text(row, "device");
    point.version = table.text(row, "nccl_version");
    point.num_ranks = table.count(row, "num_gpus");
    if (point.num_ranks < 2) {
      throw InputError(table.place(row, "num_gpus"), table.text(row, "num_gpus"),
                       "at least two GPUs");
    }
    point.bytes_per_rank = table.positive(row, "bytes_per_rank");
    point.time_s = table.positive(row, "latency_us") * 1e-6;
    points.push_back(point);
  }
  return points;
}

// The curves of coterie-runtime probe (runtime/README.md): the entries of kind "alltoall" by NCCL.
// Version 1 had no other transport and did not name it.
std::vector<AllToAllPoint> from_probe(const std::string& text, const std::string& name) {
  const nlohmann::json document = parse_json(text, name, "a probe report");
  const auto positive = [](const nlohmann::json& parent, const char* key,
                           const std::string& where) {
    if (!parent.is_object() || !parent.contains(key) || !parent[key].is_number() ||
        parent[key].get<double>() <= 0.0) {
      throw InputError(where, fmt::format("no {} above zero", key), "a number above zero");
    }
    return parent[key].get<double>();
  };
  if (!document.is_object() || !document.contains("curves") || !document["curves"].is_array()) {
    throw InputError(name, "JSON without a list \"curves\"", "the curves of coterie-runtime probe");
  }
  const auto version = document.value("schema_version", nlohmann::json(1));
  if (version != 1 && version != 2) {
    throw InputError(name, fmt::format("schema_version {}", json_excerpt(version)), "1 or 2");
  }
  AllToAllPoint common;
  common.device = document.value("device", "");
  common.machine = document.value("machine", common.device);
  common.version = document.value("nccl_version", "");
  const double num_ranks = positive(document, "num_ranks", name);
  if (num_ranks < 2.0) throw InputError(name, "one rank", "at least two");
  common.num_ranks = static_cast<std::uint32_t>(num_ranks);
  std::vector<AllToAllPoint> points;
  std::size_t idx = 0;
  for (const auto& entry : document["curves"]) {
    const std::string where = fmt::format("{}: curves[{}]", name, idx++);
    if (!entry.is_object() || entry.value("kind", "") != "alltoall") continue;
    if (entry.value("transport", "nccl") != "nccl") continue;
    AllToAllPoint point = common;
    point.bytes_per_rank = positive(entry, "bytes_per_pair", where) * num_ranks;
    point.time_s = positive(entry, "median_us", where) * 1e-6;
    points.push_back(point);
  }
  return points;
}

}  // namespace

std::vector<AllToAllPoint> parse_alltoall(const std::string& text, const std::string& name,
                                          std::vector<std::string>* notes) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) throw InputError(name, "an empty file", "measured points");
  const std::string unread = unread_nccl_output(text);
  if (!unread.empty()) {
    throw InputError(name, unread, "the text that nccl-tests prints, or its own report (-J)");
  }
  std::vector<AllToAllPoint> points;
  if (is_nccl_report(text)) {
    points = read_nccl_report(text, name);
  } else if (text[first] == '{') {
    points = from_probe(text, name);
  } else if (is_nccl_log(text) || text[first] == '#') {
    points = read_nccl_log(text, name, notes);
  } else {
    points = from_csv(text, name);
  }
  if (points.empty()) throw InputError(name, "no measured points", "at least three");
  return points;
}

std::vector<AllToAllPoint> read_alltoall(const std::filesystem::path& path,
                                         std::vector<std::string>* notes) {
  return parse_alltoall(read_file(path), path.string(), notes);
}

std::string gpu_model(const std::string& name) {
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find_first_of(" -", begin), name.size());
    const std::string word = name.substr(begin, end - begin);
    if (word.find_first_of("0123456789") != std::string::npos) return word;
    begin = end + 1;
  }
  return "";
}

void check_gpu_model(const std::string& device, const std::string& gpu, const std::string& where) {
  const std::string measured = gpu_model(device);
  const std::string expected = gpu_model(gpu);
  if (measured.empty() || expected.empty() || measured == expected) return;
  throw InputError(where, fmt::format("measurements of {}", device),
                   fmt::format("measurements of the topology's GPU, {}", gpu));
}

namespace {

// The first of those that equally many have.
std::string most_frequent_version(const std::vector<AllToAllPoint>& points) {
  std::map<std::string, std::size_t> counts;
  for (const AllToAllPoint& point : points) ++counts[point.version];
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

}  // namespace

std::vector<AllToAllPoint> select_machine(const std::vector<AllToAllPoint>& points,
                                          const std::string& machine, const std::string& where) {
  std::set<std::string> machines;
  for (const AllToAllPoint& point : points) machines.insert(point.machine);
  if (machine.empty() && machines.size() > 1) {
    throw InputError(
        where, fmt::format("points of {} machines", machines.size()),
        fmt::format("one machine (name it with --machine: {})", fmt::join(machines, ", ")));
  }
  const std::string& wanted = machine.empty() ? *machines.begin() : machine;
  if (!machines.contains(wanted)) {
    throw InputError(where, fmt::format("no machine \"{}\"", wanted),
                     fmt::format("one of {}", fmt::join(machines, ", ")));
  }
  std::map<std::pair<std::uint32_t, double>, std::vector<AllToAllPoint>> groups;
  std::set<double> volumes;
  for (const AllToAllPoint& point : points) {
    if (point.machine != wanted) continue;
    groups[{point.num_ranks, point.bytes_per_rank}].push_back(point);
    volumes.insert(point.bytes_per_rank);
  }
  if (volumes.size() < 3) {
    throw InputError(where,
                     fmt::format("{} size{}", volumes.size(), volumes.size() == 1 ? "" : "s"),
                     "at least three sizes to fit a curve");
  }
  std::vector<AllToAllPoint> out;
  for (auto& [key, repeats] : groups) {
    std::vector<double> times;
    for (const AllToAllPoint& point : repeats) times.push_back(point.time_s);
    out.push_back(repeats.front());
    out.back().version = most_frequent_version(repeats);
    out.back().time_s = median(std::move(times));
  }
  return out;
}

void check_physical(const std::vector<AllToAllPoint>& points, Bandwidth limit,
                    const std::string& where) {
  for (const AllToAllPoint& point : points) {
    const Bandwidth rate{point.volume() / point.time_s};
    if (rate > limit) {
      throw InputError(
          where,
          fmt::format("{} per rank with {} at {}", format_bandwidth(rate),
                      counted(point.num_ranks, "rank"), format_bytes(point.bytes_per_rank)),
          fmt::format("at most {}, the physical limit of the link", format_bandwidth(limit)));
    }
  }
}

std::vector<MlpPoint> read_mlp(const std::filesystem::path& path) {
  const PointTable table(read_file(path), path.string());
  std::vector<MlpPoint> points;
  for (std::size_t row = 0; row < table.num_rows(); ++row) {
    MlpPoint point;
    point.num_tokens = table.positive(row, "num_tokens_total");
    point.hidden = table.positive(row, "hidden");
    point.intermediate = table.positive(row, "expert_intermediate");
    point.topk = table.count(row, "topk");
    point.num_experts = table.count(row, "num_experts");
    point.ep_size = table.count(row, "ep_size");
    if (point.num_experts % point.ep_size != 0) {
      throw InputError(table.place(row, "ep_size"), table.text(row, "ep_size"),
                       fmt::format("a divisor of the {}", counted(point.num_experts, "expert")));
    }
    point.load = table.text(row, "expert_load");
    if (point.load != "balanced" &&
        !(point.load.starts_with("power_law_") && parse_number(point.load.substr(10)))) {
      throw InputError(table.place(row, "expert_load"), fmt::format("\"{}\"", point.load),
                       "balanced or power_law_EXPONENT");
    }
    point.time_s = table.positive(row, "latency_ms") * 1e-3;
    const auto text = [&](const char* column) {
      return table.has(column) ? table.text(row, column) : std::string();
    };
    point.machine = text("machine");
    point.type = text("moe_dtype");
    point.kernel = text("kernel_source");
    points.push_back(point);
  }
  return points;
}

}  // namespace coterie
