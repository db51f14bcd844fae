// SGLang's expert-distribution recorder (python/sglang/srt/eplb/expert_distribution.py), torch.save
// files.
//
// Mode `stat` (and stat_approx): logical_count [steps, layers, experts] or [layers, experts],
// choices per logical expert; the steps are added up and the trace holds counts only. Mode
// `per_pass`: `records`, one dict per forward pass with global_physical_count [layers, physical
// experts]; counts too. Mode `per_token`: each record also has topk_ids_of_layer [layers, tokens,
// 8] of *physical* ids, -1 where the model's top-k is smaller, a token is padding or a layer is
// dense or of another pipeline stage. last_physical_to_logical_map [layers, physical experts] maps
// them back. A pass of an idle data-parallel rank has no tokens.
//
// A forward pass is no sequence: it has a chunk of a prompt, or one token of every running request,
// or both. A record's extend_seq_lens and forward_mode say which tokens are of one request; `rids`
// (recorded by some versions) says which request that is, else the tokens' positions are followed.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/torch_file.hpp"

namespace coterie {
namespace {

constexpr std::int64_t kDecode = 2;  // ForwardMode.DECODE: one token of every request

const TorchTensor& tensor_of(const TorchValue* value, const std::string& where) {
  const auto* tensor = value == nullptr ? nullptr : std::get_if<TorchTensor>(&value->value);
  if (tensor == nullptr) throw InputError(where, "no tensor", "one");
  return *tensor;
}

// Choices per (layer, expert) as a trace; layers without any are left out.
Imported counts_trace(const std::vector<std::uint64_t>& sums, std::uint64_t num_layers,
                      std::uint32_t num_experts, const ImportOptions& options,
                      const std::string& where) {
  Imported imported;
  ExpertCounts counts;
  counts.num_experts = resolve_num_experts(num_experts, options, where);
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
    throw InputError(where, fmt::format("only zeros in all {}", counted(num_layers, "layer")),
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
                     fmt::format("at least one layer and 1 to {}", counted(kMaxExperts, "expert")));
  }
  const std::vector<std::int64_t> values = to_integers(array.view, where);
  std::vector<std::uint64_t> sums(num_layers * num_experts, 0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0) throw InputError(where, fmt::format("count {}", values[i]), "none below 0");
    sums[i % sums.size()] += static_cast<std::uint64_t>(values[i]);
  }
  return counts_trace(sums, num_layers, static_cast<std::uint32_t>(num_experts), options, where);
}

// last_physical_to_logical_map.
struct ExpertMap {
  std::uint64_t num_layers = 0;
  std::uint64_t num_physical = 0;
  std::uint32_t num_logical = 0;
  std::vector<std::int64_t> logical;  // [num_layers][num_physical]
};

std::optional<ExpertMap> read_map(const TorchFile& file, const TorchDict& root) {
  const TorchValue* value = find_key(root, "last_physical_to_logical_map");
  if (value == nullptr) return std::nullopt;
  const std::string where = file.name() + ": last_physical_to_logical_map";
  const TorchFile::Array array = file.read(tensor_of(value, where));
  const auto& shape = array.view.shape;
  if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
    throw InputError(where, fmt::format("shape {}", shape_text(shape)),
                     "[layers, physical experts]");
  }
  ExpertMap map{shape[0], shape[1], 0, to_integers(array.view, where)};
  std::int64_t largest = 0;
  for (const std::int64_t logical : map.logical) {
    if (logical < 0 || logical >= static_cast<std::int64_t>(kMaxExperts)) {
      throw InputError(where, fmt::format("expert {}", logical), "logical experts from 0");
    }
    largest = std::max(largest, logical);
  }
  map.num_logical = static_cast<std::uint32_t>(largest + 1);
  return map;
}

const TorchDict& dict_of(const TorchValue& value, const std::string& where) {
  const auto* record = std::get_if<TorchDict>(&value.value);
  if (record == nullptr) throw InputError(where, "no dict", "one forward pass");
  return *record;
}

Imported import_per_pass(const TorchFile& file, const TorchList& records,
                         const std::optional<ExpertMap>& map, const ImportOptions& options) {
  if (!map) {
    throw InputError(file.name(), "counts of physical experts without a map to logical ones",
                     "last_physical_to_logical_map");
  }
  std::vector<std::uint64_t> sums(map->num_layers * map->num_logical, 0);
  for (std::size_t i = 0; i < records.items.size(); ++i) {
    const std::string where = fmt::format("{}: records[{}]: global_physical_count", file.name(), i);
    const TorchDict& record = dict_of(*records.items[i], where);
    const TorchFile::Array array =
        file.read(tensor_of(find_key(record, "global_physical_count"), where));
    const std::vector<std::uint64_t> shape{map->num_layers, map->num_physical};
    if (array.view.shape != shape) {
      throw InputError(where, fmt::format("shape {}", shape_text(array.view.shape)),
                       fmt::format("{} as the map has", shape_text(shape)));
    }
    const std::vector<std::int64_t> values = to_integers(array.view, where);
    for (std::size_t at = 0; at < values.size(); ++at) {
      if (values[at] < 0) {
        throw InputError(where, fmt::format("count {}", values[at]), "none below 0");
      }
      const std::size_t layer = at / map->num_physical;
      sums[layer * map->num_logical + static_cast<std::size_t>(map->logical[at])] +=
          static_cast<std::uint64_t>(values[at]);
    }
  }
  Imported imported = counts_trace(sums, map->num_layers, map->num_logical, options, file.name());
  imported.notes.push_back(fmt::format(
      "mode per_pass has counts only: those of {} passes were added up", records.items.size()));
  return imported;
}

// Whole numbers of a list or tensor; nothing where the key is missing, None, or nested.
std::optional<std::vector<std::int64_t>> integers_of(const TorchFile& file, const TorchDict& record,
                                                     const char* key, const std::string& place) {
  const TorchValue* value = find_key(record, key);
  if (value == nullptr || std::holds_alternative<std::monostate>(value->value)) return std::nullopt;
  const std::string where = place + ": " + key;
  if (const auto* tensor = std::get_if<TorchTensor>(&value->value)) {
    const TorchFile::Array array = file.read(*tensor);
    if (array.view.shape.size() > 1) return std::nullopt;
    return to_integers(array.view, where);
  }
  const auto* list = std::get_if<TorchList>(&value->value);
  if (list == nullptr) throw InputError(where, "neither a list nor a tensor", "whole numbers");
  std::vector<std::int64_t> numbers;
  for (const TorchValue* item : list->items) {
    if (std::holds_alternative<TorchList>(item->value)) return std::nullopt;
    const auto* number = std::get_if<std::int64_t>(&item->value);
    if (number == nullptr) throw InputError(where, "no number", "whole numbers");
    numbers.push_back(*number);
  }
  return numbers;
}

// Names of requests: texts, or numbers written out.
std::optional<std::vector<std::string>> names_of(const TorchDict& record,
                                                 const std::string& where) {
  const TorchValue* value = find_key(record, "rids");
  const auto* list = value == nullptr ? nullptr : std::get_if<TorchList>(&value->value);
  if (list == nullptr) return std::nullopt;
  std::vector<std::string> names;
  for (const TorchValue* item : list->items) {
    if (const auto* text = std::get_if<std::string>(&item->value)) {
      names.push_back(*text);
    } else if (const auto* number = std::get_if<std::int64_t>(&item->value)) {
      names.push_back(fmt::format("{}", *number));
    } else {
      throw InputError(where + ": rids", "no text", "the names of requests");
    }
  }
  return names;
}

// One forward pass.
struct Pass {
  std::uint64_t num_tokens = 0;
  std::uint64_t first_token = 0;        // of all passes' tokens
  std::vector<std::uint64_t> segments;  // tokens of one request each, in order
  std::optional<std::vector<std::int64_t>> positions, inputs;
  std::optional<std::vector<std::string>> rids;  // [segments]
  std::string where;
};

// Joins the passes' segments to requests.
class Requests {
 public:
  void add(const Pass& pass) {
    std::map<std::int64_t, std::uint64_t> at_position;  // segments of this pass that begin there
    std::uint64_t token = 0;
    if (pass.positions) {
      for (const std::uint64_t length : pass.segments) {
        if (length > 0) ++at_position[(*pass.positions)[token]];
        token += length;
      }
    }
    std::optional<std::size_t> unnamed;  // what this pass could not tell apart
    token = 0;
    for (std::size_t s = 0; s < pass.segments.size(); ++s) {
      const std::uint64_t length = pass.segments[s];
      if (length == 0) continue;
      if (pass.rids && (*pass.rids)[s].empty()) {  // padding
        append_closed(pass, open_sequence(), token, length);
      } else if (pass.rids) {
        add_named(pass, (*pass.rids)[s], token, length);
      } else if (pass.positions) {
        any_unnamed_ = true;
        const std::int64_t position = (*pass.positions)[token];
        const auto open = position > 0 ? open_.find(position) : open_.end();
        if (open != open_.end() && open->second.size() == 1 && at_position[position] == 1) {
          const std::size_t sequence = open->second.front();
          open_.erase(open);
          ++num_joined_;
          append(pass, sequence, token, length);
        } else if (length > 1 || (open == open_.end() && at_position[position] == 1)) {
          append(pass, open_sequence(), token, length);
        } else {
          if (!unnamed) unnamed = open_sequence();
          ++num_ambiguous_;
          append_closed(pass, *unnamed, token, length);
        }
      } else {
        any_unnamed_ = true;
        if (length > 1) {
          append(pass, open_sequence(), token, length);
        } else {
          if (!unnamed) unnamed = open_sequence();
          ++num_ambiguous_;
          append_closed(pass, *unnamed, token, length);
        }
      }
      token += length;
    }
  }

  // [sequences][tokens], the tokens by their number over all passes.
  [[nodiscard]] const std::vector<std::vector<std::uint64_t>>& sequences() const { return tokens_; }
  // Of the tokens' ids and positions; nothing where none were recorded.
  [[nodiscard]] std::optional<std::uint64_t> digest() const {
    if (contents_.empty()) return std::nullopt;
    const std::span<const std::int64_t> all(contents_);
    return content_hash({reinterpret_cast<const char*>(all.data()), all.size_bytes()});
  }
  [[nodiscard]] std::uint64_t num_recomputed() const { return num_recomputed_; }
  [[nodiscard]] std::vector<std::string> notes() const {
    std::vector<std::string> notes;
    if (num_recomputed_ > 0) {
      notes.push_back(fmt::format("{} of requests that the scheduler computed again count once",
                                  counted(num_recomputed_, "token")));
    }
    if (!any_unnamed_) return notes;
    std::string text = "requests are not named";
    if (num_joined_ > 0) {
      text += fmt::format(
          ": {} chunks and decode tokens were joined to the one request that had "
          "come to their position",
          num_joined_);
    }
    if (num_ambiguous_ > 0) {
      text += fmt::format(
          "{} {} decode tokens could be of several, those of a pass count as one "
          "sequence",
          num_joined_ > 0 ? ";" : ":", num_ambiguous_);
    }
    notes.push_back(text + "; whether two sequences come from one prompt cannot be known");
    return notes;
  }

 private:
  struct Named {
    std::size_t sequence = 0;
    std::int64_t next = 0;                        // position
    std::map<std::int64_t, std::int64_t> inputs;  // token ids by position
  };

  std::size_t open_sequence() {
    tokens_.emplace_back();
    return tokens_.size() - 1;
  }
  void append_closed(const Pass& pass, std::size_t sequence, std::uint64_t token,
                     std::uint64_t length) {
    for (std::uint64_t t = token; t < token + length; ++t) {
      tokens_[sequence].push_back(pass.first_token + t);
      if (pass.inputs) contents_.push_back((*pass.inputs)[t]);
      if (pass.positions) contents_.push_back((*pass.positions)[t]);
    }
  }
  void append(const Pass& pass, std::size_t sequence, std::uint64_t token, std::uint64_t length) {
    append_closed(pass, sequence, token, length);
    if (pass.positions) open_[(*pass.positions)[token + length - 1] + 1].push_back(sequence);
  }

  // A request's tokens in order of position. What the scheduler retracts and computes again has
  // positions that the request has been at, with the same token ids.
  void add_named(const Pass& pass, const std::string& rid, std::uint64_t token,
                 std::uint64_t length) {
    auto found = named_.find(rid);
    if (found == named_.end()) {
      found = named_.emplace(rid, Named{open_sequence(), 0, {}}).first;
    }
    Named& request = found->second;
    for (std::uint64_t t = token; t < token + length; ++t) {
      const std::int64_t position = pass.positions ? (*pass.positions)[t] : request.next;
      const std::int64_t input = pass.inputs ? (*pass.inputs)[t] : 0;
      if (position < request.next) {
        const auto before = request.inputs.find(position);
        if (before == request.inputs.end() || before->second != input) {
          throw InputError(
              pass.where,
              fmt::format("request {} at position {} again with another token", rid, position),
              "every request under a name of its own");
        }
        ++num_recomputed_;
        continue;
      }
      append_closed(pass, request.sequence, t, 1);
      request.inputs[position] = input;
      request.next = position + 1;
    }
  }

  std::vector<std::vector<std::uint64_t>> tokens_;
  std::map<std::int64_t, std::vector<std::size_t>> open_;  // sequences by their next position
  std::map<std::string, Named> named_;
  std::vector<std::int64_t> contents_;
  bool any_unnamed_ = false;
  std::uint64_t num_joined_ = 0, num_ambiguous_ = 0, num_recomputed_ = 0;
};

// Lengths of the runs of tokens that are of one request each.
std::vector<std::uint64_t> segments_of(const Pass& pass,
                                       const std::optional<std::vector<std::int64_t>>& lengths,
                                       std::optional<std::int64_t> mode) {
  std::vector<std::uint64_t> segments;
  std::uint64_t covered = 0;
  if (lengths && !lengths->empty()) {
    for (const std::int64_t length : *lengths) {
      if (length < 0) {
        throw InputError(pass.where + ": extend_seq_lens", fmt::format("{}", length),
                         "lengths from 0");
      }
      if (static_cast<std::uint64_t>(length) > pass.num_tokens - covered) {
        throw InputError(pass.where + ": extend_seq_lens", "more tokens than the record has",
                         fmt::format("at most {}", pass.num_tokens));
      }
      covered += static_cast<std::uint64_t>(length);
      segments.push_back(static_cast<std::uint64_t>(length));
    }
    // What the lengths do not cover is padding of the pass.
    if (covered < pass.num_tokens) segments.push_back(pass.num_tokens - covered);
    return segments;
  }
  if (mode == kDecode || (pass.rids && pass.rids->size() == pass.num_tokens)) {
    return std::vector<std::uint64_t>(pass.num_tokens, 1);
  }
  if (!pass.positions) return {pass.num_tokens};
  for (std::uint64_t token = 0; token < pass.num_tokens; ++token) {
    const bool continues =
        token > 0 && (*pass.positions)[token] == (*pass.positions)[token - 1] + 1;
    if (continues) {
      ++segments.back();
    } else {
      segments.push_back(1);
    }
  }
  return segments;
}

class PerToken {
 public:
  PerToken(const TorchFile& file, const std::optional<ExpertMap>& map) : file_(file), map_(map) {}

  void add_record(const TorchDict& record, const std::string& where) {
    const std::string place = where + ": topk_ids_of_layer";
    const TorchFile::Array array =
        file_.read(tensor_of(find_key(record, "topk_ids_of_layer"), place));
    const auto& shape = array.view.shape;
    if (shape.size() != 3 || shape[0] == 0 || shape[2] == 0) {
      throw InputError(place, fmt::format("shape {}", shape_text(shape)), "[layers, tokens, k]");
    }
    if (num_layers_ == 0) {
      num_layers_ = shape[0];
      num_topk_ = shape[2];
    }
    if (shape[0] != num_layers_ || shape[2] != num_topk_) {
      throw InputError(
          place, fmt::format("shape {}", shape_text(shape)),
          fmt::format("[{}, tokens, {}] as in the records before", num_layers_, num_topk_));
    }
    if (map_ && map_->num_layers != num_layers_) {
      throw InputError(file_.name() + ": last_physical_to_logical_map",
                       counted(map_->num_layers, "layer"),
                       fmt::format("[{}, physical experts]", num_layers_));
    }
    note_rank(record);
    if (shape[1] == 0) return;  // an idle rank's pass
    const std::vector<std::int64_t> ids = to_integers(array.view, where);
    check_counts(record, ids, shape[1], where);
    add_ids(ids, shape[1], where);
    requests_.add(read_pass(record, shape[1], where));
    num_tokens_ += shape[1];
  }

  Imported finish(const ImportOptions& options) {
    if (num_tokens_ == 0) throw InputError(file_.name() + ": records", "no tokens", "at least one");
    TokenMajor input;
    std::vector<std::int32_t> ids;
    ids.reserve(ids_.size());
    const std::size_t stride = num_layers_ * num_topk_;
    for (const auto& sequence : requests_.sequences()) {
      for (const std::uint64_t token : sequence) {
        const auto from = ids_.begin() + static_cast<std::ptrdiff_t>(token * stride);
        ids.insert(ids.end(), from, from + static_cast<std::ptrdiff_t>(stride));
      }
      if (!sequence.empty()) input.sequence_lengths.push_back(sequence.size());
    }
    input.experts.type = NumberType::kI32;
    input.experts.data = std::as_bytes(std::span(ids));
    input.experts.shape = {ids.size() / stride, num_layers_, num_topk_};
    if (map_) input.num_experts = map_->num_logical;
    Imported imported = assemble(input, options, file_.name());
    imported.num_dropped_rows += requests_.num_recomputed() * num_layers_;
    std::vector<std::string> notes = requests_.notes();
    if (!map_) {
      notes.emplace_back("no physical-to-logical map: the recorded ids are taken as logical ones");
    }
    imported.notes.insert(imported.notes.begin(), notes.begin(), notes.end());
    imported.tokens_digest = requests_.digest();
    imported.rank = rank_;
    return imported;
  }

 private:
  void note_rank(const TorchDict& record) {
    const TorchValue* value = find_key(record, "rank");
    const auto* rank = value == nullptr ? nullptr : std::get_if<std::int64_t>(&value->value);
    if (rank != nullptr && *rank >= 0 && *rank < (std::int64_t{1} << 31)) {
      rank_ = static_cast<std::uint32_t>(*rank);
    }
  }

  // The recorder counts the same choices beside the ids; the two must agree.
  void check_counts(const TorchDict& record, const std::vector<std::int64_t>& ids,
                    std::uint64_t num_tokens, const std::string& where) {
    const TorchValue* value = find_key(record, "global_physical_count");
    if (value == nullptr || !map_) return;
    const std::string place = where + ": global_physical_count";
    const TorchFile::Array array = file_.read(tensor_of(value, place));
    const std::vector<std::uint64_t> shape{num_layers_, map_->num_physical};
    if (array.view.shape != shape) {
      throw InputError(place, fmt::format("shape {}", shape_text(array.view.shape)),
                       shape_text(shape));
    }
    const std::vector<std::int64_t> recorded = to_integers(array.view, place);
    std::vector<std::int64_t> counted(recorded.size(), 0);
    for (std::size_t at = 0; at < ids.size(); ++at) {
      const std::size_t layer = at / (num_tokens * num_topk_);
      if (ids[at] < 0 || static_cast<std::uint64_t>(ids[at]) >= map_->num_physical) continue;
      ++counted[layer * map_->num_physical + static_cast<std::size_t>(ids[at])];
    }
    for (std::size_t at = 0; at < counted.size(); ++at) {
      if (counted[at] == recorded[at]) continue;
      throw InputError(
          fmt::format("{}, layer {}", place, at / map_->num_physical),
          fmt::format("{} choices of physical expert {}", recorded[at], at % map_->num_physical),
          fmt::format("{} as topk_ids_of_layer has", counted[at]));
    }
  }

  // Appends [tokens][layers][k] of logical ids. Ids behind the physical experts are fused shared
  // experts, which `assemble` cuts off where they are nothing else.
  void add_ids(const std::vector<std::int64_t>& ids, std::uint64_t num_tokens,
               const std::string& where) {
    for (std::uint64_t token = 0; token < num_tokens; ++token) {
      for (std::uint64_t layer = 0; layer < num_layers_; ++layer) {
        for (std::size_t i = 0; i < num_topk_; ++i) {
          const std::int64_t id = ids[(layer * num_tokens + token) * num_topk_ + i];
          const auto bound =
              static_cast<std::int64_t>(map_ && i == 0 ? map_->num_physical : kMaxExperts / 2);
          if (id < -1 || id >= bound) {
            throw InputError(fmt::format("{}: layer {}, token {}", where, layer, token),
                             fmt::format("physical expert {}", id),
                             fmt::format("an id below {}, or -1", bound));
          }
          ids_.push_back(logical(id, layer));
        }
      }
    }
  }
  [[nodiscard]] std::int32_t logical(std::int64_t physical, std::uint64_t layer) const {
    if (physical < 0 || !map_) return static_cast<std::int32_t>(physical);
    const auto column = static_cast<std::uint64_t>(physical);
    if (column >= map_->num_physical) {
      return static_cast<std::int32_t>(map_->num_logical + (column - map_->num_physical));
    }
    return static_cast<std::int32_t>(map_->logical[layer * map_->num_physical + column]);
  }

  Pass read_pass(const TorchDict& record, std::uint64_t num_tokens,
                 const std::string& where) const {
    Pass pass;
    pass.where = where;
    pass.num_tokens = num_tokens;
    pass.first_token = num_tokens_;
    pass.positions = integers_of(file_, record, "positions", where);
    pass.inputs = integers_of(file_, record, "input_ids", where);
    pass.rids = names_of(record, where);
    for (const auto* list : {&pass.positions, &pass.inputs}) {
      if (*list && (*list)->size() != num_tokens) {
        throw InputError(where,
                         fmt::format("{} {}", (*list)->size(),
                                     list == &pass.positions ? "positions" : "input_ids"),
                         fmt::format("{} as topk_ids_of_layer has tokens", num_tokens));
      }
    }
    const auto lengths = integers_of(file_, record, "extend_seq_lens", where);
    const TorchValue* value = find_key(record, "forward_mode");
    const auto* mode = value == nullptr ? nullptr : std::get_if<std::int64_t>(&value->value);
    pass.segments =
        segments_of(pass, lengths, mode == nullptr ? std::nullopt : std::optional(*mode));
    if (pass.rids) {
      // Padding behind the last request has no name.
      const std::size_t named = pass.rids->size();
      if (named + 1 == pass.segments.size() && lengths && lengths->size() == named) {
        pass.rids->emplace_back();
      }
      if (pass.rids->size() != pass.segments.size()) {
        throw InputError(where + ": rids", counted(named, "request"),
                         fmt::format("{}, as the pass has", pass.segments.size()));
      }
    }
    return pass;
  }

  const TorchFile& file_;
  const std::optional<ExpertMap>& map_;
  std::uint64_t num_layers_ = 0;
  std::uint64_t num_topk_ = 0;
  std::uint64_t num_tokens_ = 0;
  std::vector<std::int32_t> ids_;  // [tokens][layers][k] in order of the passes
  Requests requests_;
  std::optional<std::uint32_t> rank_;
};

}  // namespace

bool is_sglang(const FileHead& head) {
  return std::any_of(head.members.begin(), head.members.end(), [](const std::string& name) {
    return name == "data.pkl" || name.ends_with("/data.pkl");
  });
}

Imported import_sglang(const std::filesystem::path& path, const ImportOptions& options) {
  const TorchFile file(path);
  const auto* root = std::get_if<TorchDict>(&file.root().value);
  if (root == nullptr) throw InputError(path.string(), "no dict at the top", "a recorder's dump");
  if (const TorchValue* counts = find_key(*root, "logical_count")) {
    return import_stat(file, tensor_of(counts, path.string() + ": logical_count"), options);
  }
  const TorchValue* records = find_key(*root, "records");
  if (records == nullptr) {
    throw InputError(path.string(), "neither logical_count nor records",
                     "the dump of SGLang's recorder in mode stat, per_pass or per_token");
  }
  const auto* list = std::get_if<TorchList>(&records->value);
  if (list == nullptr) throw InputError(path.string() + ": records", "no list", "one");
  if (list->items.empty()) {
    throw InputError(path.string() + ": records", "no passes", "at least one");
  }
  const std::optional<ExpertMap> map = read_map(file, *root);
  const TorchDict& first = dict_of(*list->items.front(), path.string() + ": records[0]");
  if (find_key(first, "topk_ids_of_layer") == nullptr &&
      find_key(first, "global_physical_count") != nullptr) {
    return import_per_pass(file, *list, map, options);
  }
  PerToken passes(file, map);
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const std::string where = fmt::format("{}: records[{}]", file.name(), i);
    passes.add_record(dict_of(*list->items[i], where), where);
  }
  return passes.finish(options);
}

}  // namespace coterie
