#include "workloads/trace/combine.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"

namespace coterie {
namespace {

// Tokens of a sequence's beginning by which shared prompts are told, and the fewest for which equal
// choices are no accident.
constexpr std::uint64_t kPromptTokens = 16;
constexpr std::uint64_t kFewestOfPrompt = 4;

template <class T>
std::string_view bytes_of(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

const std::vector<std::uint32_t>& layers_of(const Imported& imported) {
  return std::visit(
      [](const auto& trace) -> const auto& { return trace.layers; }, imported.trace);
}

std::uint64_t digest_of(const Imported& imported) {
  const auto* routing = std::get_if<Routing>(&imported.trace);
  return routing != nullptr
             ? content_hash(bytes_of(std::span(routing->experts)))
             : content_hash(bytes_of(std::span(std::get<ExpertCounts>(imported.trace).counts)));
}

bool same_content(const Imported& a, const Imported& b) {
  if (a.trace.index() != b.trace.index() || layers_of(a) != layers_of(b)) return false;
  if (a.tokens_digest && b.tokens_digest && *a.tokens_digest != *b.tokens_digest) return false;
  if (const auto* one = std::get_if<Routing>(&a.trace)) {
    const auto& other = std::get<Routing>(b.trace);
    return one->num_topk == other.num_topk && one->sequence_begin == other.sequence_begin &&
           one->experts == other.experts;
  }
  return std::get<ExpertCounts>(a.trace).counts == std::get<ExpertCounts>(b.trace).counts;
}

// Leaves out files that repeat an earlier one.
std::vector<ImportedFile> drop_repeated(std::vector<ImportedFile> files, Imported& all) {
  std::vector<ImportedFile> kept;
  std::multimap<std::uint64_t, std::size_t> by_digest;
  for (ImportedFile& file : files) {
    const std::uint64_t digest = digest_of(file.imported);
    const auto [begin, end] = by_digest.equal_range(digest);
    const auto twin = std::find_if(begin, end, [&](const auto& entry) {
      return same_content(kept[entry.second].imported, file.imported);
    });
    if (twin == end) {
      by_digest.emplace(digest, kept.size());
      kept.push_back(std::move(file));
      continue;
    }
    all.notes.push_back(
        fmt::format("{}: holds the same routing as {} (another rank of its tensor-parallel group, "
                    "or the file again): counted once",
                    file.name, kept[twin->second].name));
  }
  return kept;
}

std::string layers_text(const std::vector<std::uint32_t>& layers) {
  if (layers.size() > 2 && layers.back() - layers.front() + 1 == layers.size()) {
    return fmt::format("layers {} to {}", layers.front(), layers.back());
  }
  return fmt::format("layer{} {}", layers.size() == 1 ? "" : "s", fmt::join(layers, ", "));
}

std::string shape_text(const Routing& routing) {
  return fmt::format("{}, top-{} of {}, {} weights", layers_text(routing.layers), routing.num_topk,
                     routing.num_experts, routing.weights.empty() ? "no" : "with");
}

// The files by the layers they hold. Throws unless the groups share no layer and are equally many.
using Group = std::vector<ImportedFile>;
std::vector<Group> group_by_layers(std::vector<ImportedFile> files) {
  std::vector<Group> groups;
  for (ImportedFile& file : files) {
    const auto& layers = layers_of(file.imported);
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
      return layers_of(group.front().imported) == layers;
    });
    if (same != groups.end()) {
      same->push_back(std::move(file));
      continue;
    }
    for (const Group& group : groups) {
      for (const std::uint32_t layer : layers_of(group.front().imported)) {
        if (std::find(layers.begin(), layers.end(), layer) == layers.end()) continue;
        throw InputError(
            file.name, layers_text(layers),
            fmt::format("{} as in {}, or none of them (a further pipeline stage)",
                        layers_text(layers_of(group.front().imported)), group.front().name));
      }
    }
    groups.emplace_back();
    groups.back().push_back(std::move(file));
  }
  std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
    return layers_of(a.front().imported).front() < layers_of(b.front().imported).front();
  });
  for (Group& group : groups) {
    if (group.size() != groups.front().size()) {
      throw InputError(
          group.front().name,
          fmt::format("{} with {}", counted(group.size(), "file"),
                      layers_text(layers_of(group.front().imported))),
          fmt::format("{} as with {}: one of each pipeline stage", groups.front().size(),
                      layers_text(layers_of(groups.front().front().imported))));
    }
    if (std::all_of(group.begin(), group.end(),
                    [](const ImportedFile& file) { return file.imported.rank.has_value(); })) {
      std::stable_sort(group.begin(), group.end(), [](const auto& a, const auto& b) {
        return *a.imported.rank < *b.imported.rank;
      });
    }
  }
  return groups;
}

// One file with the layers of all `stages`, which recorded the same tokens.
ImportedFile merge_stages(std::vector<ImportedFile> stages) {
  ImportedFile merged = std::move(stages.front());
  auto& all = std::get<Routing>(merged.imported.trace);
  struct Part {
    std::uint32_t layer;
    const Routing* routing;
    std::size_t layer_idx;
  };
  std::vector<Part> parts;
  const Routing first = all;
  for (std::size_t i = 0; i < first.num_layers(); ++i)
    parts.push_back({first.layers[i], &first, i});
  std::string names = fmt::format("{} ({})", merged.name, layers_text(first.layers));
  for (std::size_t s = 1; s < stages.size(); ++s) {
    const ImportedFile& stage = stages[s];
    const auto& routing = std::get<Routing>(stage.imported.trace);
    if (routing.num_topk != first.num_topk || routing.num_experts != first.num_experts ||
        routing.weights.empty() != first.weights.empty()) {
      throw InputError(
          stage.name, shape_text(routing),
          fmt::format("{} as in {}, but for the layers", shape_text(first), merged.name));
    }
    if (routing.sequence_begin != first.sequence_begin) {
      throw InputError(stage.name,
                       fmt::format("{} in {}", counted(routing.num_tokens(), "token"),
                                   counted(routing.num_sequences(), "sequence")),
                       fmt::format("the {} in {} of {}, whose other layers it "
                                   "would continue",
                                   counted(first.num_tokens(), "token"),
                                   counted(first.num_sequences(), "sequence"), merged.name));
    }
    if (stage.imported.tokens_digest && merged.imported.tokens_digest &&
        *stage.imported.tokens_digest != *merged.imported.tokens_digest) {
      throw InputError(
          stage.name, "other tokens (by their ids and positions)",
          fmt::format("those of {}, whose other layers it would continue", merged.name));
    }
    for (std::size_t i = 0; i < routing.num_layers(); ++i) {
      parts.push_back({routing.layers[i], &routing, i});
    }
    names += fmt::format(", {} ({})", stage.name, layers_text(routing.layers));
    all.origin += ", " + routing.origin;
    merged.imported.num_dropped_rows += stage.imported.num_dropped_rows;
  }
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.layer < b.layer; });
  all.layers.clear();
  all.experts.clear();
  all.weights.clear();
  for (const Part& part : parts) {
    all.layers.push_back(part.layer);
    const auto ids = part.routing->layer_experts(part.layer_idx);
    all.experts.insert(all.experts.end(), ids.begin(), ids.end());
    const auto weights = part.routing->layer_weights(part.layer_idx);
    all.weights.insert(all.weights.end(), weights.begin(), weights.end());
  }
  merged.name = std::move(names);
  return merged;
}

ExpertCounts add_counts(std::vector<ImportedFile> files) {
  std::map<std::uint32_t, std::vector<std::uint64_t>> rows;
  auto all = std::get<ExpertCounts>(std::move(files.front().imported.trace));
  for (std::size_t f = 0; f < files.size(); ++f) {
    const ExpertCounts& one = f == 0 ? all : std::get<ExpertCounts>(files[f].imported.trace);
    if (one.num_experts != all.num_experts) {
      throw InputError(files[f].name, counted(one.num_experts, "expert"),
                       fmt::format("{} as in {}", all.num_experts, files.front().name));
    }
    for (std::size_t l = 0; l < one.layers.size(); ++l) {
      auto& row = rows[one.layers[l]];
      row.resize(one.num_experts, 0);
      for (std::size_t e = 0; e < row.size(); ++e) row[e] += one.counts[l * row.size() + e];
    }
    if (f > 0) all.origin += ", " + one.origin;
  }
  all.layers.clear();
  all.counts.clear();
  for (const auto& [layer, row] : rows) {
    all.layers.push_back(layer);
    all.counts.insert(all.counts.end(), row.begin(), row.end());
  }
  return all;
}

// The routings one after the other; all of the same layers.
Routing concatenate(const std::vector<ImportedFile>& files) {
  Routing all;
  const auto& first = std::get<Routing>(files.front().imported.trace);
  all.model = first.model;
  all.num_experts = first.num_experts;
  all.num_topk = first.num_topk;
  all.layers = first.layers;
  all.sequence_begin.push_back(0);
  std::size_t num_ids = 0;
  for (const ImportedFile& file : files) {
    const auto& part = std::get<Routing>(file.imported.trace);
    if (part.num_experts != all.num_experts || part.num_topk != all.num_topk ||
        part.weights.empty() != first.weights.empty()) {
      throw InputError(file.name, shape_text(part),
                       fmt::format("{} as in {}", shape_text(first), files.front().name));
    }
    const std::uint64_t offset = all.sequence_begin.back();
    for (std::size_t s = 1; s < part.sequence_begin.size(); ++s) {
      all.sequence_begin.push_back(offset + part.sequence_begin[s]);
    }
    num_ids += part.experts.size();
    all.origin += (all.origin.empty() ? "" : ", ") + part.origin;
  }
  all.experts.reserve(num_ids);
  if (!first.weights.empty()) all.weights.reserve(num_ids);
  for (std::size_t layer_idx = 0; layer_idx < all.num_layers(); ++layer_idx) {
    for (const ImportedFile& file : files) {
      const auto& part = std::get<Routing>(file.imported.trace);
      const auto ids = part.layer_experts(layer_idx);
      all.experts.insert(all.experts.end(), ids.begin(), ids.end());
      const auto weights = part.layer_weights(layer_idx);
      all.weights.insert(all.weights.end(), weights.begin(), weights.end());
    }
  }
  return all;
}

// Sequences whose first tokens chose the same experts as those of an earlier one share a prompt, or
// its beginning: routing is a function of the text so far. The first layer tells: deeper ones
// differ now and then between two runs of the same text, by rounding.
void note_shared_prompts(const Routing& routing, std::vector<std::string>& notes) {
  std::set<std::pair<std::uint64_t, std::uint64_t>> seen;  // tokens, digest
  std::uint64_t num_shared = 0;
  for (std::size_t s = 0; s < routing.num_sequences(); ++s) {
    const std::uint64_t begin = routing.sequence_begin[s];
    const std::uint64_t length = std::min(kPromptTokens, routing.sequence_begin[s + 1] - begin);
    if (length < kFewestOfPrompt) continue;
    const auto ids =
        routing.layer_experts(0).subspan(begin * routing.num_topk, length * routing.num_topk);
    if (!seen.insert({length, content_hash(bytes_of(ids))}).second) ++num_shared;
  }
  if (num_shared == 0) return;
  notes.push_back(fmt::format(
      "{} of {} begin with the routing of an earlier one (their first {}, or all "
      "of a shorter one): they share a prompt or its beginning, so parts of this trace that a "
      "placement is learnt and measured on have these tokens in common",
      num_shared, counted(routing.num_sequences(), "sequence"), counted(kPromptTokens, "token")));
}

// Files of several ranks with other tokens: said, because stages of a pipeline that number their
// layers from 0 anew look the same.
void note_ranks(const std::vector<ImportedFile>& files, Imported& all) {
  std::set<std::uint32_t> ranks;
  for (const ImportedFile& file : files) {
    if (file.imported.rank) ranks.insert(*file.imported.rank);
  }
  if (ranks.size() < 2) return;
  all.notes.push_back(fmt::format(
      "files of ranks {} hold the same layers and other choices: they count as data-parallel "
      "ranks' (stages of a pipeline whose layers are numbered from 0 anew would look so too)",
      fmt::join(ranks, ", ")));
}

void check_one_kind(const std::vector<ImportedFile>& files) {
  for (const ImportedFile& file : files) {
    if (file.imported.trace.index() != files.front().imported.trace.index()) {
      throw InputError(file.name,
                       "expert counts among recordings of tokens, or the other way round",
                       "inputs of one kind");
    }
  }
}

}  // namespace

Imported combine(std::vector<ImportedFile> files) {
  check_one_kind(files);
  Imported all;
  // Every stage of a pipeline says the same about its sequences: once is enough.
  std::map<std::string, std::vector<std::string>> files_of_note;
  std::vector<std::string> order;
  for (const ImportedFile& file : files) {
    all.num_dropped_rows += file.imported.num_dropped_rows;
    for (const std::string& note : file.imported.notes) {
      auto& names = files_of_note[note];
      if (names.empty()) order.push_back(note);
      names.push_back(file.name);
    }
  }
  for (const std::string& note : order) {
    const auto& names = files_of_note[note];
    all.notes.push_back(names.size() == 1 ? fmt::format("{}: {}", names.front(), note)
                                          : fmt::format("{} and {} more: {}", names.front(),
                                                        names.size() - 1, note));
  }
  files = drop_repeated(std::move(files), all);
  if (std::holds_alternative<ExpertCounts>(files.front().imported.trace)) {
    all.trace = add_counts(std::move(files));
    return all;
  }
  std::vector<Group> groups = group_by_layers(std::move(files));
  if (groups.size() > 1) {
    const std::size_t num_files = groups.front().size();
    std::vector<ImportedFile> merged;
    for (std::size_t i = 0; i < num_files; ++i) {
      std::vector<ImportedFile> stages;
      for (Group& group : groups) stages.push_back(std::move(group[i]));
      merged.push_back(merge_stages(std::move(stages)));
      all.notes.push_back("merged by layer: " + merged.back().name);
    }
    if (num_files > 1) {
      all.notes.push_back(
          "which files of the stages belong together is not recorded: they were paired in order");
    }
    files = std::move(merged);
  } else {
    files = std::move(groups.front());
    note_ranks(files, all);
  }
  all.trace = files.size() == 1 ? std::move(files.front().imported.trace) : concatenate(files);
  note_shared_prompts(std::get<Routing>(all.trace), all.notes);
  return all;
}

}  // namespace coterie
