// The JSONL dialect of vLLM routing loggers: a `meta` line (model_id, top_k, layers_logged), then
// one `route` line per (request, token, layer) with topk_ids and topk_weights.
//
// Loggers also record the engine's warm-up: dummy batches in which all tokens are equal, so that
// each layer's rows at the start of the file repeat its first one. Such a start is dropped if it
// holds at least kMinWarmUp rows per layer; real text does not repeat itself that way.

#include <fmt/format.h>

#include <map>
#include <set>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

constexpr std::uint64_t kMinWarmUp = 16;

struct Route {
  std::string request;
  std::uint64_t token = 0;
  std::uint32_t layer = 0;
  std::vector<std::int64_t> experts;
  std::vector<float> weights;
};

Route read_route(const nlohmann::json& record, const std::string& where) {
  Route route;
  const nlohmann::json& request = json_member(record, "req_id", where);
  route.request = request.is_string() ? request.get<std::string>() : json_excerpt(request, 200);
  route.token = static_cast<std::uint64_t>(json_integer(
      json_member(record, "token_idx", where), 0, std::int64_t{1} << 40, where + ": token_idx"));
  route.layer = static_cast<std::uint32_t>(
      json_integer(json_member(record, "layer", where), 0, 100000, where + ": layer"));
  route.experts = json_ids(json_member(record, "topk_ids", where), where + ": topk_ids");
  if (record.contains("topk_weights") && !record["topk_weights"].is_null()) {
    route.weights = json_numbers(record["topk_weights"], where + ": topk_weights");
  }
  return route;
}

// The rows of the start that repeat their layer's first row.
class WarmUp {
 public:
  // Whether the row still belongs to the start.
  bool holds(const Route& route) {
    const auto [first, is_new] = first_.try_emplace(route.layer, route.experts);
    return is_new || first->second == route.experts;
  }
  [[nodiscard]] bool is_real(std::uint64_t num_rows) const {
    return num_rows >= kMinWarmUp * first_.size();
  }

 private:
  std::map<std::uint32_t, std::vector<std::int64_t>> first_;
};

// Which sequence a row belongs to: a request's tokens, until a (token, layer) comes again, which
// begins a new pass.
class Sequences {
 public:
  std::uint64_t of(const Route& route) {
    Open& open = open_[route.request];
    if (open.number == 0 || !open.seen.insert({route.token, route.layer}).second) {
      open.number = ++count_;
      open.seen = {{route.token, route.layer}};
    }
    return open.number;
  }

 private:
  struct Open {
    std::uint64_t number = 0;
    std::set<std::pair<std::uint64_t, std::uint32_t>> seen;
  };
  std::map<std::string, Open> open_;
  std::uint64_t count_ = 0;
};

}  // namespace

bool is_vllm_jsonl(const FileHead& head) {
  const std::string_view line = std::string_view(head.text).substr(0, head.text.find('\n'));
  const nlohmann::json record = try_parse_json(line);
  return record.is_object() && record.contains("type") &&
         (record["type"] == "meta" || (record["type"] == "route" && record.contains("topk_ids")));
}

Imported import_vllm_jsonl(const std::filesystem::path& path, const ImportOptions& options) {
  LineFile in(path);
  std::string model;
  std::optional<std::uint32_t> num_experts;
  std::optional<std::size_t> top_k;
  RowTable table;
  Sequences sequences;
  WarmUp warm_up;
  std::vector<Route> start;  // rows held back until the warm-up is known to end
  bool starting = true;
  std::uint64_t num_dropped = 0;
  std::string line;

  const auto keep = [&](const Route& route, const std::string& where) {
    table.add(sequences.of(route), route.token, route.layer, route.experts, route.weights, where);
  };
  const auto end_start = [&] {
    starting = false;
    if (warm_up.is_real(start.size())) {
      num_dropped = start.size();
    } else {
      for (const Route& route : start) keep(route, path.string());
    }
    start.clear();
  };
  while (in.next(line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}: line {}", path.string(), in.number());
    const nlohmann::json record = parse_json(line, where);
    const nlohmann::json& type = json_member(record, "type", where);
    if (type == "meta") {
      if (record.contains("model_id") && record["model_id"].is_string()) {
        model = record["model_id"].get<std::string>();
      }
      if (record.contains("num_experts") && record["num_experts"].is_number()) {
        num_experts = static_cast<std::uint32_t>(
            json_integer(record["num_experts"], 1, kMaxExperts, where + ": num_experts"));
      }
      if (record.contains("top_k")) {
        top_k =
            static_cast<std::size_t>(json_integer(record["top_k"], 1, kMaxTopk, where + ": top_k"));
      }
      continue;
    }
    if (type != "route")
      throw InputError(where, "type " + json_excerpt(type), "\"meta\" or \"route\"");
    Route route = read_route(record, where);
    if (top_k && route.experts.size() != *top_k) {
      throw InputError(where, counted(route.experts.size(), "expert"),
                       fmt::format("{} as the meta line says", *top_k));
    }
    if (starting && warm_up.holds(route)) {
      start.push_back(std::move(route));
      continue;
    }
    if (starting) end_start();
    keep(route, where);
  }
  if (starting) end_start();
  Imported imported = table.finish(resolve_num_experts(num_experts, options, path.string()),
                                   options, path.string());
  std::get<Routing>(imported.trace).model = model;
  if (num_dropped > 0) {
    imported.num_dropped_rows += num_dropped;
    imported.notes.push_back(fmt::format("dropped {} warm-up rows at the start", num_dropped));
  }
  return imported;
}

}  // namespace coterie
