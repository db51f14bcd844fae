// Megatron-LM's --moe-routing-trace-path: router_trace_rank<r>.jsonl, one record per (step, block,
// layer) with num_tokens, topk and top_indices [[k]...]. A (step, block) is one sequence. A layer
// that is recorded again with the same choices (activation recomputation) counts once.

#include <fmt/format.h>

#include <fstream>
#include <map>
#include <tuple>

#include "core/error.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

using Block = std::pair<std::int64_t, std::int64_t>;  // step, block

// Numbers the blocks in order of appearance, and remembers what each layer of a block chose.
struct Blocks {
  std::map<Block, std::uint64_t> numbers;
  std::map<std::tuple<std::int64_t, std::int64_t, std::uint32_t>, nlohmann::json> chosen;
};

std::int64_t member_integer(const nlohmann::json& record, const char* key, std::int64_t max,
                            const std::string& where) {
  return json_integer(json_member(record, key, where), 0, max, fmt::format("{}: {}", where, key));
}

}  // namespace

Imported import_megatron_jsonl(const std::filesystem::path& path, const ImportOptions& options) {
  constexpr std::int64_t kMaxNumber = std::int64_t{1} << 40;
  std::ifstream in(path);
  if (!in) throw InputError(fmt::format("{}: cannot be read", path.string()));
  RowTable table;
  Blocks blocks;
  std::uint64_t num_repeated = 0;
  std::string line;
  std::uint64_t line_number = 0;
  while (std::getline(in, line)) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}: line {}", path.string(), line_number);
    const nlohmann::json record = parse_json(line, where);
    const std::int64_t step = member_integer(record, "step", kMaxNumber, where);
    const std::int64_t block = member_integer(record, "block", kMaxNumber, where);
    const auto layer = static_cast<std::uint32_t>(member_integer(record, "layer", 100000, where));
    const std::int64_t num_tokens = member_integer(record, "num_tokens", kMaxNumber, where);
    const std::int64_t topk = member_integer(record, "topk", kMaxTopk, where);
    const nlohmann::json& indices = json_member(record, "top_indices", where);
    if (!indices.is_array() || std::cmp_not_equal(indices.size(), num_tokens)) {
      throw InputError(where + ": top_indices", fmt::format("{} rows", indices.size()),
                       fmt::format("{} as num_tokens says", num_tokens));
    }
    const auto [before, is_new] = blocks.chosen.try_emplace({step, block, layer}, indices);
    if (!is_new) {
      if (before->second != indices) {
        throw InputError(
            where,
            fmt::format("step {}, block {}, layer {} again with other experts", step, block, layer),
            "each layer of a block once");
      }
      num_repeated += indices.size();
      continue;
    }
    const std::uint64_t sequence =
        blocks.numbers.try_emplace({step, block}, blocks.numbers.size()).first->second;
    std::uint64_t token = 0;
    for (const nlohmann::json& row : indices) {
      const auto experts = json_ids(row, where + ": top_indices");
      if (std::cmp_not_equal(experts.size(), topk)) {
        throw InputError(where + ": top_indices", fmt::format("{} experts", experts.size()),
                         fmt::format("{} as topk says", topk));
      }
      table.add(sequence, token++, layer, experts, {}, where);
    }
  }
  Imported imported =
      table.finish(resolve_num_experts({}, options, path.string()), options, path.string());
  if (num_repeated > 0) {
    imported.num_dropped_rows += num_repeated;
    imported.notes.push_back(fmt::format("dropped {} rows recorded twice", num_repeated));
  }
  return imported;
}

}  // namespace coterie
