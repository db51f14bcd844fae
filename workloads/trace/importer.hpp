#pragma once
// Importers: from other programs' recordings to a trace. One file per format in importers/, one
// line in the registry (importer.cpp); workloads/README.md has the recipe.

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

// What the user knows and the input may not say.
struct ImportOptions {
  std::optional<std::uint32_t> num_experts;
  std::optional<std::uint32_t> num_topk;
  std::vector<std::uint32_t> layers;  // numbers of the MoE layers, for inputs without them
  std::optional<ModelShape> model;    // stands in for all three
  // hf-json: how the selection is redone (softmax_topk, topk_softmax, sigmoid_group).
  std::string selection;
};

struct Imported {
  Trace trace;
  // Rows that were left out: padding, warm-up passes; one row is one (token, layer).
  std::uint64_t num_dropped_rows = 0;
  std::vector<std::string> notes;  // what was left out or assumed, a sentence each
};

struct Importer {
  std::string name;
  std::string description;
  Imported (*import_file)(const std::filesystem::path& path, const ImportOptions& options);
};

// In the order of the documentation.
const std::vector<Importer>& importers();
// Throws InputError listing the known formats.
const Importer& find_importer(const std::string& name);

// Imports every file and concatenates: sequences in the order of the inputs, counts added up.
// Throws InputError for bad input, for inputs that do not fit together, and for traces that break
// an invariant or hold nothing but zeros.
Imported import_traces(std::span<const std::filesystem::path> inputs, const std::string& format,
                       const ImportOptions& options);

}  // namespace coterie
