#include "sim/calibrate/row_exchanges.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "sim/calibrate/point_table.hpp"
#include "workloads/plan/fan_out.hpp"

namespace coterie {
namespace {

constexpr double kNodeRanks = 8.0;  // of the public tables
// TensorRT-LLM's one-sided kernels start one block per token and fill the GPU with them; what its
// table does not say. Costs per token are relative to this number.
constexpr double kOneSidedSms = 148.0;

double fp8_row(double hidden) {
  return hidden + hidden / 128.0 * 4.0;
}
double bf16_row(double hidden) {
  return 2.0 * hidden;
}

using Rows = std::vector<std::vector<std::uint32_t>>;

Rows transposed(const Rows& rows) {
  Rows out = rows;
  for (std::size_t src = 0; src < rows.size(); ++src) {
    for (std::size_t dst = 0; dst < rows.size(); ++dst) out[dst][src] = rows[src][dst];
  }
  return out;
}

Rows read_rows(const PointTable& table, std::size_t row, std::uint32_t num_ranks) {
  const std::string text = table.text(row, "rows_src_dst");
  const auto refuse = [&](const std::string& found) {
    return InputError(table.place(row, "rows_src_dst"), found,
                      fmt::format("{0} lists of {0} whole numbers of rows", num_ranks));
  };
  const auto document = try_parse_json(text);
  if (!document.is_array()) throw refuse(fmt::format("\"{}\"", text.substr(0, 40)));
  if (document.size() != num_ranks) throw refuse(fmt::format("{} lists", document.size()));
  Rows rows;
  std::uint64_t total = 0;
  for (const auto& list : document) {
    if (!list.is_array() || list.size() != num_ranks) throw refuse("a list of another length");
    std::vector<std::uint32_t>& from = rows.emplace_back();
    for (const auto& cell : list) {
      if (!cell.is_number_unsigned() || cell.get<std::uint64_t>() > 1U << 30) {
        throw refuse(json_excerpt(cell));
      }
      from.push_back(cell.get<std::uint32_t>());
      total += from.back();
    }
  }
  if (total == 0) throw refuse("no rows at all");
  return rows;
}

std::string describe(const RowExchange& exchange) {
  return fmt::format("{} B, {} tokens, {} multiprocessors", exchange.row_bytes,
                     exchange.tokens_per_rank, exchange.sms);
}

// Volumes of an exchange whose matrix is given; all ranks may talk to all. What ranks of one GPU have
// for each other crosses no port.
PhaseVolumes volumes_of(const RowExchange& exchange) {
  PhaseVolumes volumes;
  volumes.ranks.resize(exchange.num_ranks);
  volumes.row_bytes = exchange.row_bytes;
  volumes.num_destinations = exchange.num_ranks;
  const std::size_t ranks_per_gpu = exchange.num_ranks / exchange.num_gpus;
  volumes.crosses_nodes = ranks_per_gpu > 1;
  volumes.ranks_per_gpu = static_cast<std::uint32_t>(ranks_per_gpu);
  for (std::size_t src = 0; src < exchange.num_ranks; ++src) {
    for (std::size_t dst = 0; dst < exchange.num_ranks; ++dst) {
      const double rows = exchange.rows[src][dst];
      const double bytes = rows * exchange.row_bytes;
      RankVolume& from = volumes.ranks[src];
      RankVolume& to = volumes.ranks[dst];
      from.rows_out += rows;
      from.bytes_out += bytes;
      const bool same_gpu = src / ranks_per_gpu == dst / ranks_per_gpu;
      double& largest = same_gpu ? from.largest_near : from.largest_out;
      largest = std::max(largest, bytes);
      to.rows_in += rows;
      to.bytes_in += bytes;
      if (src == dst) from.rows_own = rows;
      if (same_gpu) continue;
      from.port_out += bytes;
      to.port_in += bytes;
    }
  }
  for (RankVolume& volume : volumes.ranks) volume.tokens = exchange.tokens_per_rank;
  return volumes;
}

// One rank of `destinations` alike: it sends and receives `rows`, of which `away` cross its port.
PhaseVolumes alike(const RowExchange& exchange, double rows, double away, double destinations) {
  PhaseVolumes volumes;
  RankVolume& rank = volumes.ranks.emplace_back();
  rank.rows_out = rank.rows_in = rows;
  rank.bytes_out = rank.bytes_in = rows * exchange.row_bytes;
  rank.port_out = rank.port_in = away * exchange.row_bytes;
  rank.rows_own = rows / destinations;
  rank.largest_out = rank.largest_near = rank.bytes_out / destinations;
  rank.tokens = exchange.tokens_per_rank;
  volumes.row_bytes = exchange.row_bytes;
  volumes.num_destinations = static_cast<std::uint32_t>(destinations);
  return volumes;
}

// A kernel that sends a token to a rank once has no more rows for it than tokens: those of the source in
// a dispatch, of the destination in a combine. The low-latency kernels send one per expert.
void check_tokens(const PointTable& table, std::size_t row, const RowExchange& exchange) {
  if (exchange.transport == "deepep_low_latency") return;
  for (std::uint32_t src = 0; src < exchange.num_ranks; ++src) {
    for (std::uint32_t dst = 0; dst < exchange.num_ranks; ++dst) {
      if (exchange.rows[src][dst] <= exchange.tokens_per_rank) continue;
      throw InputError(
          table.place(row, "rows_src_dst"),
          fmt::format("{} rows from rank {} to rank {}", exchange.rows[src][dst], src, dst),
          fmt::format("at most one for each of {} tokens_per_rank", exchange.tokens_per_rank));
    }
  }
}

void add_given(const PointTable& table, std::size_t row, std::vector<RowExchange>& out) {
  RowExchange exchange;
  const std::string direction = table.text(row, "direction");
  if (direction != "dispatch" && direction != "combine") {
    throw InputError(table.place(row, "direction"), fmt::format("\"{}\"", direction),
                     "dispatch or combine");
  }
  exchange.direction = direction == "dispatch" ? Direction::kDispatch : Direction::kCombine;
  exchange.transport = table.has("transport") ? table.text(row, "transport") : "deepep_normal";
  exchange.pattern = table.has("pattern") ? table.text(row, "pattern") : "given";
  exchange.num_ranks = exchange.num_gpus = table.count(row, "ranks");
  exchange.sms = table.positive(row, "sms");
  exchange.row_bytes = table.positive(row, "row_bytes");
  exchange.tokens_per_rank = table.positive(row, "tokens_per_rank");
  exchange.rows = read_rows(table, row, exchange.num_ranks);
  check_tokens(table, row, exchange);
  exchange.volumes = volumes_of(exchange);
  exchange.time_s = table.positive(row, "time_us") * 1e-6;
  exchange.name = describe(exchange);
  out.push_back(std::move(exchange));
}

// See RowExchange::spread; from the columns NAME_p10 and NAME_p90 where the table has them.
double spread_of(const PointTable& table, std::size_t row, const std::string& name) {
  const std::string low = name + "_p10";
  const std::string high = name + "_p90";
  if (!table.has(low) || !table.has(high)) return 0.0;
  const double between = table.positive(row, high) - table.positive(row, low);
  if (between < 0.0) {
    throw InputError(table.place(row, high), table.text(row, high),
                     "at least the tenth percentile");
  }
  return 0.5 * between / table.positive(row, name + "_us");
}

void add_routed(const PointTable& table, std::size_t row, std::vector<RowExchange>& out) {
  RowExchange dispatch;
  dispatch.transport = "deepep_normal";
  dispatch.pattern = table.text(row, "routing");
  dispatch.num_ranks = table.count(row, "ranks");
  dispatch.num_gpus = table.count(row, "gpus");
  if (dispatch.num_gpus == 0 || dispatch.num_ranks % dispatch.num_gpus != 0) {
    throw InputError(table.place(row, "gpus"), table.text(row, "gpus"),
                     fmt::format("a divisor of the {} ranks", dispatch.num_ranks));
  }
  dispatch.num_nodes = 1;
  dispatch.sms = table.positive(row, "sms");
  const double hidden = table.positive(row, "hidden");
  const std::string payload = table.text(row, "payload");
  if (payload != "fp8" && payload != "bf16") {
    throw InputError(table.place(row, "payload"), fmt::format("\"{}\"", payload), "bf16 or fp8");
  }
  dispatch.row_bytes = payload == "fp8" ? fp8_row(hidden) : bf16_row(hidden);
  dispatch.tokens_per_rank = table.positive(row, "num_tokens_per_rank");
  dispatch.rows = read_rows(table, row, dispatch.num_ranks);
  dispatch.volumes = volumes_of(dispatch);
  dispatch.time_s = table.positive(row, "dispatch_us") * 1e-6;
  dispatch.name = describe(dispatch);
  dispatch.spread = spread_of(table, row, "dispatch");
  if (table.has("uncached_dispatch_us") && !table.text(row, "uncached_dispatch_us").empty()) {
    dispatch.notify_s = table.positive(row, "uncached_dispatch_us") * 1e-6 - dispatch.time_s;
  }
  RowExchange combine = dispatch;
  combine.direction = Direction::kCombine;
  combine.notify_s.reset();
  combine.row_bytes = bf16_row(hidden);
  combine.rows = transposed(dispatch.rows);
  combine.volumes = volumes_of(combine);
  combine.time_s = table.positive(row, "combine_us") * 1e-6;
  combine.spread = spread_of(table, row, "combine");
  combine.name = describe(combine);
  out.push_back(std::move(dispatch));
  out.push_back(std::move(combine));
}

// The low-latency kernels take as many multiprocessors as there are experts, several experts to one
// where there are more.
double low_latency_sms(double num_experts) {
  constexpr double kMultiprocessors = 132.0;
  return std::ceil(num_experts / std::ceil(num_experts / kMultiprocessors));
}

void add_uniform(const PointTable& table, std::size_t row, std::vector<RowExchange>& out) {
  const double hidden = table.positive(row, "hidden");
  const std::uint32_t topk = table.count(row, "topk");
  const std::uint32_t num_experts = table.count(row, "num_experts");
  const bool normal = table.has("sms");
  for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
    RowExchange exchange;
    exchange.transport = normal ? "deepep_normal" : "deepep_low_latency";
    exchange.machine = table.has("machine") ? table.text(row, "machine") : "";
    exchange.pattern = "uniform";
    exchange.direction = direction;
    exchange.num_ranks = exchange.num_gpus = static_cast<std::uint32_t>(kNodeRanks);
    exchange.sms = normal ? table.positive(row, "sms") : low_latency_sms(num_experts);
    const bool dispatch = direction == Direction::kDispatch;
    exchange.row_bytes = dispatch ? fp8_row(hidden) : bf16_row(hidden);
    exchange.tokens_per_rank = table.positive(row, "num_tokens_per_rank");
    const double fan_out =
        normal ? uniform_fan_out(num_experts, static_cast<std::uint32_t>(kNodeRanks), topk) : topk;
    const double rows = exchange.tokens_per_rank * fan_out;
    exchange.volumes = alike(exchange, rows, rows * (kNodeRanks - 1.0) / kNodeRanks, kNodeRanks);
    exchange.time_s = table.positive(row, dispatch ? "dispatch_us" : "combine_us") * 1e-6;
    exchange.name = fmt::format("hidden {}, top-{} of {}, {} tokens, {} multiprocessors", hidden,
                                topk, num_experts, exchange.tokens_per_rank, exchange.sms);
    out.push_back(std::move(exchange));
  }
}

// Rows go along the rails first, one per token and node, and are passed on inside the nodes.
void add_two_level(const PointTable& table, std::size_t row, std::vector<RowExchange>& out) {
  const double hidden = table.positive(row, "hidden");
  const std::uint32_t topk = table.count(row, "topk");
  const std::uint32_t num_experts = table.count(row, "num_experts");
  const std::uint32_t num_nodes = table.count(row, "node_num");
  const auto num_ranks = num_nodes * static_cast<std::uint32_t>(kNodeRanks);
  for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
    RowExchange exchange;
    exchange.transport = "deepep_normal";
    exchange.pattern = "uniform";
    exchange.direction = direction;
    exchange.num_ranks = exchange.num_gpus = num_ranks;
    exchange.num_nodes = num_nodes;
    exchange.sms = table.positive(row, "sms");
    const bool dispatch = direction == Direction::kDispatch;
    exchange.row_bytes = dispatch ? fp8_row(hidden) : bf16_row(hidden);
    exchange.tokens_per_rank = table.positive(row, "num_tokens_per_rank");
    const double to_nodes =
        exchange.tokens_per_rank * uniform_fan_out(num_experts, num_nodes, topk);
    const double to_ranks =
        exchange.tokens_per_rank * uniform_fan_out(num_experts, num_ranks, topk);
    exchange.volumes = alike(exchange, to_nodes, to_nodes * (num_nodes - 1.0) / num_nodes,
                             static_cast<double>(num_nodes));
    exchange.volumes.crosses_nodes = true;
    exchange.second_hop = alike(exchange, to_ranks, 0.0, kNodeRanks);
    exchange.second_hop->reuses_kernel = true;
    if (!dispatch) std::swap(exchange.volumes, *exchange.second_hop);
    exchange.volumes.reuses_kernel = false;
    exchange.volumes.crosses_nodes = exchange.second_hop->crosses_nodes = true;
    exchange.second_hop->reuses_kernel = true;
    const std::string prefix = dispatch ? "dispatch" : "combine";
    exchange.time_s = table.positive(row, prefix + "_transmit_us") * 1e-6;
    if (dispatch) exchange.notify_s = table.positive(row, "dispatch_notify_us") * 1e-6;
    exchange.name =
        fmt::format("{} nodes, hidden {}, top-{} of {}, {} tokens, {} multiprocessors", num_nodes,
                    hidden, topk, num_experts, exchange.tokens_per_rank, exchange.sms);
    out.push_back(std::move(exchange));
  }
}

void add_nvlink(const PointTable& table, std::size_t row, std::vector<RowExchange>& out) {
  if (table.text(row, "kernels") != "NVLinkOneSided") return;
  RowExchange exchange;
  exchange.transport = "nvlink_one_sided";
  exchange.pattern = "uniform";
  const std::string operation = table.text(row, "operation");
  if (operation != "alltoall_dispatch" && operation != "alltoall_combine") return;
  const bool dispatch = operation == "alltoall_dispatch";
  exchange.direction = dispatch ? Direction::kDispatch : Direction::kCombine;
  const double hidden = table.positive(row, "hidden");
  const std::string payload = table.text(row, "payload");
  if (payload != "bfloat16" && payload != "fp8" && payload != "nvfp4") {
    throw InputError(table.place(row, "payload"), fmt::format("\"{}\"", payload),
                     "bfloat16, fp8 or nvfp4");
  }
  // NVFP4: half a byte per value and a one-byte scale per 16; FP8 with a scale for the whole tensor.
  exchange.row_bytes = !dispatch || payload == "bfloat16" ? bf16_row(hidden)
                       : payload == "fp8"                 ? hidden
                                                          : hidden / 2.0 + hidden / 16.0;
  exchange.sms = kOneSidedSms;
  exchange.num_ranks = exchange.num_gpus = table.count(row, "ep_size");
  const std::uint32_t topk = table.count(row, "topk");
  exchange.tokens_per_rank = table.positive(row, "num_tokens_per_rank");
  const double ranks = exchange.num_ranks;
  const double rows = exchange.tokens_per_rank * std::min<double>(topk, ranks);
  exchange.volumes = alike(exchange, rows, rows * (ranks - 1.0) / ranks, ranks);
  exchange.time_s = table.positive(row, "latency_us") * 1e-6;
  exchange.name =
      fmt::format("EP {}, {}, {} tokens", exchange.num_ranks, payload, exchange.tokens_per_rank);
  out.push_back(std::move(exchange));
}

}  // namespace

std::vector<RowExchange> parse_row_exchanges(const std::string& text, const std::string& name) {
  const PointTable table(text, name);
  const auto add = table.has("direction")              ? add_given
                   : table.has("rows_src_dst")         ? add_routed
                   : table.has("dispatch_transmit_us") ? add_two_level
                   : table.has("kernels")              ? add_nvlink
                                                       : add_uniform;
  std::vector<RowExchange> exchanges;
  for (std::size_t row = 0; row < table.num_rows(); ++row) add(table, row, exchanges);
  if (exchanges.empty()) throw InputError(name, "no exchange of rows", "measured points");
  return exchanges;
}

std::vector<RowExchange> read_row_exchanges(const std::filesystem::path& path) {
  return parse_row_exchanges(read_file(path), path.string());
}

std::vector<Message> messages_of(const RowExchange& exchange) {
  std::vector<Message> messages;
  for (std::uint32_t src = 0; src < exchange.num_ranks; ++src) {
    for (std::uint32_t step = 0; step < exchange.num_ranks; ++step) {
      const std::uint32_t dst = (src + step) % exchange.num_ranks;
      const std::uint32_t rows = exchange.rows[src][dst];
      if (rows == 0) continue;
      messages.push_back({src, dst, rows * exchange.row_bytes, rows, 0});
    }
  }
  return messages;
}

}  // namespace coterie
