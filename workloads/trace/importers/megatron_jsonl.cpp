// Megatron-LM's --moe-routing-trace-path (megatron/core/transformer/moe/router_trace.py):
// router_trace_rank<r>.jsonl, one record per call of a router, with step, block, layer, rank,
// num_tokens, topk and top_indices [[k]...].
//
// - `block` is "decoder" or "mtp" (then with mtp_idx); it may be absent, or a number where other
//   writers cut a step up. Routers of multi-token prediction have layer numbers of their own and
//   see shifted tokens: their records are left out and counted.
// - In training a step runs several microbatches, so a (step, layer) comes several times: the n-th
//   record of every layer is the n-th microbatch, and each is one sequence. A record that repeats
//   an earlier one of its (step, layer) exactly was recomputed for the backward pass and counts
//   once.
// - top_indices come from a boolean map of the choice, so that a token's ids ascend: the order of
//   choice is lost.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

constexpr std::int64_t kMaxNumber = std::int64_t{1} << 40;

std::int64_t member_integer(const nlohmann::json& record, const char* key, std::int64_t max,
                            const std::string& where) {
  return json_integer(json_member(record, key, where), 0, max, fmt::format("{}: {}", where, key));
}

using BlockOfStep = std::pair<std::int64_t, std::int64_t>;  // step, numbered block

class MegatronReader {
 public:
  void read_record(const nlohmann::json& record, const std::string& where) {
    const std::int64_t step = member_integer(record, "step", kMaxNumber, where);
    if (record.contains("mtp_idx") && !record["mtp_idx"].is_null()) {
      ++num_mtp_;
      return;
    }
    std::int64_t block = 0;
    if (const auto found = record.find("block"); found != record.end() && !found->is_null()) {
      if (*found == "mtp") {
        ++num_mtp_;
        return;
      }
      if (found->is_string() && *found != "decoder") {
        throw InputError(where + ": block", found->dump(), "\"decoder\" or \"mtp\"");
      }
      if (!found->is_string()) block = member_integer(record, "block", kMaxNumber, where);
    }
    note_rank(record, where);
    add(record, {step, block}, where);
  }

  Imported finish(const ImportOptions& options, const std::string& name) {
    if (table_.num_rows() == 0 && num_mtp_ > 0) {
      throw InputError(
          name, fmt::format("only {} of multi-token prediction", counted(num_mtp_, "record")),
          "records of the decoder's routers");
    }
    Imported imported = table_.finish(resolve_num_experts({}, options, name), options, name);
    if (!several_ranks_) imported.rank = rank_;
    if (num_mtp_ > 0) {
      imported.notes.push_back(fmt::format("left out {} of multi-token prediction (block mtp)",
                                           counted(num_mtp_, "record")));
    }
    if (num_repeated_ > 0) {
      imported.num_dropped_rows += num_repeated_;
      imported.notes.push_back(
          fmt::format("dropped {} recorded twice (recomputed for the "
                      "backward pass)",
                      counted(num_repeated_, "row")));
    }
    // Less likely than one in a million if ids were in order of choice.
    if (all_ascend_ && log2_orders_ > 20.0) {
      imported.notes.emplace_back(
          "the ids of every token ascend: their order of choice was not recorded, so that none is "
          "known to be a token's best");
    }
    imported.notes.emplace_back(
        "a sequence is what one router call of one rank saw (a microbatch, or an inference step): "
        "which documents it holds is not recorded, so whether two sequences share one cannot be "
        "known");
    return imported;
  }

 private:
  void note_rank(const nlohmann::json& record, const std::string& where) {
    if (!record.contains("rank")) return;
    const auto rank =
        static_cast<std::uint32_t>(member_integer(record, "rank", std::int64_t{1} << 30, where));
    several_ranks_ = several_ranks_ || (rank_ && *rank_ != rank);
    rank_ = rank;
  }

  void add(const nlohmann::json& record, BlockOfStep pass, const std::string& where) {
    const auto layer = static_cast<std::uint32_t>(member_integer(record, "layer", 100000, where));
    const std::int64_t num_tokens = member_integer(record, "num_tokens", kMaxNumber, where);
    const std::int64_t topk = member_integer(record, "topk", kMaxTopk, where);
    const nlohmann::json& indices = json_member(record, "top_indices", where);
    if (!indices.is_array() || std::cmp_not_equal(indices.size(), num_tokens)) {
      throw InputError(where + ": top_indices", counted(indices.size(), "row"),
                       fmt::format("{} as num_tokens says", num_tokens));
    }
    auto& microbatches = chosen_[{pass, layer}];
    if (std::find(microbatches.begin(), microbatches.end(), indices) != microbatches.end()) {
      num_repeated_ += indices.size();
      return;
    }
    const std::size_t microbatch = microbatches.size();
    microbatches.push_back(indices);
    const std::uint64_t sequence =
        sequences_.try_emplace({pass, microbatch}, sequences_.size()).first->second;
    std::uint64_t token = 0;
    for (const nlohmann::json& row : indices) {
      const auto experts = json_ids(row, where + ": top_indices");
      if (std::cmp_not_equal(experts.size(), topk)) {
        throw InputError(where + ": top_indices", counted(experts.size(), "expert"),
                         fmt::format("{} as topk says", topk));
      }
      all_ascend_ = all_ascend_ && std::is_sorted(experts.begin(), experts.end());
      log2_orders_ += std::lgamma(static_cast<double>(experts.size()) + 1.0) / std::log(2.0);
      table_.add(sequence, token++, layer, experts, {}, where);
    }
  }

  RowTable table_;
  std::map<std::pair<BlockOfStep, std::uint32_t>, std::vector<nlohmann::json>> chosen_;
  std::map<std::pair<BlockOfStep, std::size_t>, std::uint64_t>
      sequences_;  // in order of appearance
  std::optional<std::uint32_t> rank_;
  bool several_ranks_ = false;
  std::uint64_t num_mtp_ = 0;
  std::uint64_t num_repeated_ = 0;  // rows
  bool all_ascend_ = true;
  double log2_orders_ = 0.0;  // of the number of orders that the ids of all tokens could have
};

}  // namespace

bool is_megatron_jsonl(const FileHead& head) {
  const std::string_view line = std::string_view(head.text).substr(0, head.text.find('\n'));
  return line.starts_with('{') && line.find("\"top_indices\"") != std::string_view::npos &&
         line.find("\"num_tokens\"") != std::string_view::npos;
}

Imported import_megatron_jsonl(const std::filesystem::path& path, const ImportOptions& options) {
  LineFile in(path);
  MegatronReader reader;
  std::string line;
  while (in.next(line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}: line {}", path.string(), in.number());
    const nlohmann::json record = parse_json(line, where);
    if (!record.is_object()) throw InputError(where, "no object", "one record of the router trace");
    reader.read_record(record, where);
  }
  return reader.finish(options, path.string());
}

}  // namespace coterie
