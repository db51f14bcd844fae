// SGLang's expert-distribution recorder (torch.save files).
//
// Mode `stat`: logical_count [steps, layers, experts] or [layers, experts], choices per logical
// expert; the steps are added up and the trace holds counts only.
// Mode `per_token`: `records`, one dict per forward pass with topk_ids_of_layer [layers, tokens, k]
// of *physical* ids, padded with -1; last_physical_to_logical_map [layers, physical experts] maps
// them back. extend_seq_lens cuts a prefill pass into sequences; a decode pass does not say which
// request a token belongs to and counts as one sequence.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/error.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/torch_file.hpp"

namespace coterie {
namespace {

const TorchTensor& tensor_of(const TorchValue* value, const std::string& where) {
  const auto* tensor = value == nullptr ? nullptr : std::get_if<TorchTensor>(&value->value);
  if (tensor == nullptr) throw InputError(where, "no tensor", "one");
  return *tensor;
}

Imported import_stat(const TorchFile& file, const TorchTensor& tensor,
                     const ImportOptions& options) {
  const std::string where = file.name() + ": logical_count";
  const TorchFile::Array array = file.read(tensor);
  const auto& shape = array.view.shape;
  if (shape.size() != 2 && shape.size() != 3) {
    throw InputError(where, fmt::format("shape {}", shape_text(shape)),
                     "[layers, experts] or [steps, layers, experts]");
  }
  const std::uint64_t num_layers = shape[shape.size() - 2];
  const std::uint64_t num_experts = shape.back();
  if (num_layers == 0 || num_experts == 0 || num_experts > kMaxExperts) {
    throw InputError(where, fmt::format("shape {}", shape_text(shape)),
                     fmt::format("at least one layer and 1 to {} experts", kMaxExperts));
  }
  const std::vector<std::int64_t> values = to_integers(array.view, where);
  std::vector<std::uint64_t> sums(num_layers * num_experts, 0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0) throw InputError(where, fmt::format("count {}", values[i]), "none below 0");
    sums[i % sums.size()] += static_cast<std::uint64_t>(values[i]);
  }
  Imported imported;
  ExpertCounts counts;
  counts.num_experts = resolve_num_experts(static_cast<std::uint32_t>(num_experts), options, where);
  if (options.model) counts.num_topk = options.model->num_topk;
  if (options.num_topk) counts.num_topk = *options.num_topk;
  std::vector<std::uint32_t> empty;
  for (std::uint32_t layer = 0; layer < num_layers; ++layer) {
    const auto begin = sums.begin() + static_cast<std::ptrdiff_t>(layer * num_experts);
    const auto end = begin + static_cast<std::ptrdiff_t>(num_experts);
    if (std::all_of(begin, end, [](std::uint64_t count) { return count == 0; })) {
      empty.push_back(layer);
      continue;
    }
    counts.layers.push_back(layer);
    counts.counts.insert(counts.counts.end(), begin, end);
  }
  if (counts.layers.empty()) {
    throw InputError(where, fmt::format("only zeros in all {} layers", num_layers),
                     "a recording in which at least one token was routed");
  }
  if (!empty.empty()) {
    imported.num_dropped_rows = empty.size();
    imported.notes.push_back(fmt::format("left out {} layer{} without routing: {}", empty.size(),
                                         empty.size() == 1 ? "" : "s", fmt::join(empty, ", ")));
  }
  imported.trace = std::move(counts);
  return imported;
}

// Where the passes' tokens are gathered, token by token, each with all its layers.
struct Passes {
  std::uint64_t num_layers = 0;
  std::uint64_t num_topk = 0;
  std::vector<std::int32_t> ids;  // [tokens][layers][k]
  std::vector<std::uint64_t> sequence_lengths;
  bool cut_by_pass = false;
};

std::vector<std::uint64_t> lengths_of(const TorchFile& file, const TorchValue* value,
                                      const std::string& where) {
  std::vector<std::uint64_t> lengths;
  const auto add = [&](std::int64_t length) {
    if (length < 0) throw InputError(where, fmt::format("{}", length), "lengths from 0");
    lengths.push_back(static_cast<std::uint64_t>(length));
  };
  if (value == nullptr || std::holds_alternative<std::monostate>(value->value)) return lengths;
  if (const auto* tensor = std::get_if<TorchTensor>(&value->value)) {
    const TorchFile::Array array = file.read(*tensor);
    for (const std::int64_t length : to_integers(array.view, where)) add(length);
  } else if (const auto* list = std::get_if<TorchList>(&value->value)) {
    for (const TorchValue* item : list->items) {
      const auto* length = std::get_if<std::int64_t>(&item->value);
      if (length == nullptr) throw InputError(where, "no number", "lengths");
      add(*length);
    }
  } else {
    throw InputError(where, "neither a list nor a tensor", "lengths");
  }
  return lengths;
}

void add_pass(const TorchFile& file, const TorchDict& record, const std::string& where,
              Passes& passes) {
  const std::string place = where + ": topk_ids_of_layer";
  const TorchFile::Array array = file.read(tensor_of(find_key(record, "topk_ids_of_layer"), place));
  const auto& shape = array.view.shape;
  if (shape.size() != 3) {
    throw InputError(place, fmt::format("shape {}", shape_text(shape)), "[layers, tokens, k]");
  }
  if (passes.num_layers == 0) {
    passes.num_layers = shape[0];
    passes.num_topk = shape[2];
  }
  if (shape[0] != passes.num_layers || shape[2] != passes.num_topk) {
    throw InputError(where + ": topk_ids_of_layer", fmt::format("shape {}", shape_text(shape)),
                     fmt::format("[{}, tokens, {}] as in the records before", passes.num_layers,
                                 passes.num_topk));
  }
  const std::vector<std::int64_t> ids = to_integers(array.view, where);
  const std::uint64_t num_tokens = shape[1];
  const std::size_t k = passes.num_topk;
  for (std::uint64_t token = 0; token < num_tokens; ++token) {
    for (std::uint64_t layer = 0; layer < passes.num_layers; ++layer) {
      for (std::size_t i = 0; i < k; ++i) {
        const std::int64_t id = ids[(layer * num_tokens + token) * k + i];
        if (id < -1 || id >= static_cast<std::int64_t>(kMaxExperts)) {
          throw InputError(fmt::format("{}: layer {}, token {}", where, layer, token),
                           fmt::format("expert {}", id), "a physical expert or -1");
        }
        passes.ids.push_back(static_cast<std::int32_t>(id));
      }
    }
  }
  const std::vector<std::uint64_t> lengths =
      lengths_of(file, find_key(record, "extend_seq_lens"), where + ": extend_seq_lens");
  std::uint64_t sum = 0;
  for (const std::uint64_t length : lengths) {
    if (length > num_tokens - sum) {
      throw InputError(where + ": extend_seq_lens", "more tokens than the record has",
                       fmt::format("at most {}", num_tokens));
    }
    sum += length;
    if (length > 0) passes.sequence_lengths.push_back(length);
  }
  // What the lengths do not cover is padding of the pass, or a pass without them.
  if (sum < num_tokens) {
    passes.sequence_lengths.push_back(num_tokens - sum);
    passes.cut_by_pass |= lengths.empty();
  }
}

// Physical to logical ids, in place; returns the number of logical experts.
std::uint32_t map_to_logical(const TorchFile& file, const TorchTensor& tensor, Passes& passes) {
  const std::string where = file.name() + ": last_physical_to_logical_map";
  const TorchFile::Array array = file.read(tensor);
  const auto& shape = array.view.shape;
  if (shape.size() != 2 || shape[0] != passes.num_layers || shape[1] == 0) {
    throw InputError(where, fmt::format("shape {}", shape_text(shape)),
                     fmt::format("[{}, physical experts]", passes.num_layers));
  }
  const std::vector<std::int64_t> map = to_integers(array.view, where);
  std::int64_t largest = 0;
  for (const std::int64_t logical : map) {
    if (logical < 0 || logical >= static_cast<std::int64_t>(kMaxExperts)) {
      throw InputError(where, fmt::format("expert {}", logical), "logical experts from 0");
    }
    largest = std::max(largest, logical);
  }
  for (std::size_t i = 0; i < passes.ids.size(); ++i) {
    if (passes.ids[i] < 0) continue;
    const std::size_t layer = i / passes.num_topk % passes.num_layers;
    const auto physical = static_cast<std::uint64_t>(passes.ids[i]);
    if (physical >= shape[1]) {
      throw InputError(fmt::format("{}: records, layer {}", file.name(), layer),
                       fmt::format("physical expert {}", physical),
                       fmt::format("an id below {}", shape[1]));
    }
    passes.ids[i] = static_cast<std::int32_t>(map[layer * shape[1] + physical]);
  }
  return static_cast<std::uint32_t>(largest + 1);
}

Imported import_per_token(const TorchFile& file, const TorchDict& root, const TorchList& records,
                          const ImportOptions& options) {
  Passes passes;
  for (std::size_t i = 0; i < records.items.size(); ++i) {
    const std::string where = fmt::format("{}: records[{}]", file.name(), i);
    const auto* record = std::get_if<TorchDict>(&records.items[i]->value);
    if (record == nullptr) throw InputError(where, "no dict", "one forward pass");
    add_pass(file, *record, where, passes);
  }
  if (passes.ids.empty()) {
    throw InputError(file.name() + ": records", "no tokens", "at least one");
  }
  TokenMajor input;
  std::vector<std::string> notes;
  if (const TorchValue* map = find_key(root, "last_physical_to_logical_map")) {
    input.num_experts = map_to_logical(
        file, tensor_of(map, file.name() + ": last_physical_to_logical_map"), passes);
  } else {
    notes.emplace_back("no physical-to-logical map: the recorded ids are taken as logical ones");
  }
  if (passes.cut_by_pass) {
    notes.emplace_back(
        "decode passes do not name their requests: each pass counts as one sequence");
  }
  input.experts.type = NumberType::kI32;
  input.experts.data = std::as_bytes(std::span(passes.ids));
  input.experts.shape = {passes.ids.size() / (passes.num_layers * passes.num_topk),
                         passes.num_layers, passes.num_topk};
  input.sequence_lengths = std::move(passes.sequence_lengths);
  Imported imported = assemble(input, options, file.name());
  imported.notes.insert(imported.notes.begin(), notes.begin(), notes.end());
  return imported;
}

}  // namespace

Imported import_sglang(const std::filesystem::path& path, const ImportOptions& options) {
  const TorchFile file(path);
  const auto* root = std::get_if<TorchDict>(&file.root().value);
  if (root == nullptr) throw InputError(path.string(), "no dict at the top", "a recorder's dump");
  if (const TorchValue* counts = find_key(*root, "logical_count")) {
    return import_stat(file, tensor_of(counts, path.string() + ": logical_count"), options);
  }
  if (const TorchValue* records = find_key(*root, "records")) {
    const auto* list = std::get_if<TorchList>(&records->value);
    if (list == nullptr) throw InputError(path.string() + ": records", "no list", "one");
    return import_per_token(file, *root, *list, options);
  }
  throw InputError(path.string(), "neither logical_count nor records",
                   "the dump of SGLang's recorder in mode stat or per_token");
}

}  // namespace coterie
