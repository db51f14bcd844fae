#pragma once
// Measured exchanges of rows: what a dispatch library's kernels took for a matrix of rows. What the
// kernel transports are fitted to.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/phase.hpp"
#include "sim/transports/kernel_phase.hpp"

namespace coterie {

struct RowExchange {
  std::string transport;  // whose kernels: deepep_normal, deepep_low_latency, nvlink_one_sided
  std::string machine;    // empty where the table does not say
  std::string pattern;    // "uniform", "all to rank 0"
  std::string name;       // "7392 B, 4096 tokens, 24 multiprocessors"
  Direction direction = Direction::kDispatch;
  std::uint32_t num_ranks = 1, num_gpus = 1, num_nodes = 1;
  double sms = 1.0;
  double row_bytes = 0.0;
  double tokens_per_rank = 0.0;
  // [num_ranks][num_ranks] rows from source to destination in the direction of travel; empty for
  // uniform routing, whose expected rows need not be whole.
  std::vector<std::vector<std::uint32_t>> rows;
  PhaseVolumes volumes;                    // one rank stands for all under uniform routing
  std::optional<PhaseVolumes> second_hop;  // inside the nodes, of an exchange between nodes
  double time_s = 0.0;
  // Half of what lies between the tenth and the ninetieth percentile of its samples, over their
  // median; zero where the table does not say.
  double spread = 0.0;
  std::optional<double> notify_s;  // of a dispatch, measured with the exchange of counts before it
};

// CSV tables, told apart by their columns:
//
//   direction, ranks, sms, row_bytes, tokens_per_rank, rows_src_dst, time_us [, pattern] [, transport]
//     anybody's measurements: `rows_src_dst` is the matrix of rows in the direction of travel, own
//     rank included, as JSON ("[[10, 3], [4, 9]]"); transport defaults to deepep_normal
//   ranks, gpus, routing, ..., rows_src_dst, dispatch_us, combine_us
//     DeepEP's normal kernels on given routing; combine returns the rows of the dispatch
//   hidden, num_tokens_per_rank, topk, num_experts [, sms], dispatch_us, combine_us
//     DeepEP under uniform routing on one node of 8 ranks: the normal kernels where `sms` is given,
//     else the low-latency kernels
//   node_num, ..., dispatch_transmit_us, dispatch_notify_us, combine_transmit_us
//     DeepEP's normal kernels between nodes of 8 ranks
//   kernels, operation, payload, ..., ep_size, latency_us
//     TensorRT-LLM's NVLink kernels, of which NVLinkOneSided are read; every token goes to
//     min(topk, ep_size) ranks, round robin
//
// Rows are FP8 with a scale per 128 values in DeepEP's dispatches that do not say otherwise, BF16 in
// combines. Throws InputError.
std::vector<RowExchange> read_row_exchanges(const std::filesystem::path& path);
std::vector<RowExchange> parse_row_exchanges(const std::string& text, const std::string& name);

// The messages of an exchange whose matrix is given, in the order in which ranks send: to
// themselves first, then upwards.
std::vector<Message> messages_of(const RowExchange& exchange);

}  // namespace coterie
