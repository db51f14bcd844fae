#pragma once
// Importers: from other programs' recordings to a trace. One file per format in importers/, one
// line in the registry (importer.cpp); workloads/TRACES.md has the recipe.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "workloads/model.hpp"
#include "workloads/trace/moet.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// What the user knows and the input may not say. What both say must agree: num_experts, num_topk
// and the model's shape are held against the data.
struct ImportOptions {
  std::optional<std::uint32_t> num_experts;
  std::optional<std::uint32_t> num_topk;  // experts per token
  std::vector<std::uint32_t> layers;      // numbers of the MoE layers, for inputs without them
  std::optional<ModelShape> model;        // stands in for all three
  // hf-json: how the selection is redone (softmax_topk, topk_softmax, sigmoid_group).
  std::string selection;
};

struct Imported {
  Trace trace;
  // Rows that were left out: padding, warm-up passes; one row is one (token, layer).
  std::uint64_t num_dropped_rows = 0;
  std::vector<std::string> notes;  // what was left out or assumed, a sentence each
  // What relates the files of one recording to each other, where the recorder wrote it: a digest
  // of the recorded tokens themselves (ids, positions), and the rank that wrote the file.
  std::optional<std::uint64_t> tokens_digest;
  std::optional<std::uint32_t> rank;
};

// The beginning of a file, from which its format may be told.
struct FileHead {
  std::filesystem::path path;
  std::string text;                  // the first 64 KiB
  std::vector<std::string> members;  // of a zip archive; empty for other files
};

struct Importer {
  std::string name;
  std::string description;
  Imported (*import_file)(const std::filesystem::path& path, const ImportOptions& options);
  // Whether the file is certainly of this format, by what only this format has (a key, a magic, a
  // header), never by the shape of its numbers.
  bool (*recognises)(const FileHead& head);
};

// In the order of the documentation.
const std::vector<Importer>& importers();
// Throws InputError listing the known formats.
const Importer& find_importer(const std::string& name);

// The one format that recognises every input. Throws InputError naming --format where none or more
// than one does, or the inputs differ.
const Importer& infer_importer(std::span<const std::filesystem::path> inputs);

// Imports every file and combines them (combine.hpp): sequences in the order of the inputs, counts
// added up, layers of pipeline stages merged, repeated files counted once. An empty `format` is
// inferred. Throws InputError for bad input, for inputs that do not fit together or contradict the
// options, and for traces that break an invariant or hold nothing but zeros.
Imported import_traces(std::span<const std::filesystem::path> inputs, const std::string& format,
                       const ImportOptions& options);

}  // namespace coterie
