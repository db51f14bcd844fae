#pragma once
// From an array [tokens][layers][k], the order in which recorders write, to a Routing; shared by
// the importers of such arrays.

#include <optional>
#include <string>
#include <vector>

#include "workloads/trace/importer.hpp"
#include "workloads/trace/npy.hpp"

namespace coterie {

struct TokenMajor {
  ArrayView experts;                            // integers [tokens, layers, k]; -1 marks padding
  std::optional<ArrayView> weights;             // floats of the same shape
  std::vector<std::uint32_t> layers;            // [layers] numbers in the model; empty: not known
  std::vector<std::uint64_t> sequence_lengths;  // empty: one sequence
  std::optional<std::uint32_t> num_experts;     // as the input says
};

// Transposes to [layers][tokens][k] in one pass, and drops what no router chose: layers whose rows
// all hold k equal ids (dense layers read as zeros), tokens that are so in every layer (padding),
// last columns of -1 (a k axis wider than the model's top-k) and of shared experts fused with the
// routed ones. `where` names the input. Throws InputError for wrong shapes and ids out of range,
// naming the position.
Imported assemble(const TokenMajor& input, const ImportOptions& options, const std::string& where);

// The number of experts: from the input, else the options, which must not contradict it.
std::uint32_t resolve_num_experts(const std::optional<std::uint32_t>& recorded,
                                  const ImportOptions& options, const std::string& where);

// Layer numbers for `count` recorded layers: the options' or the model's MoE layers if there are as
// many, every layer of the model if there are that many, else 0, 1, ... Throws InputError for
// fewer layers than the options name, and for a number that the model does not have.
std::vector<std::uint32_t> resolve_layers(std::size_t count, const ImportOptions& options,
                                          const std::string& where);

// Removes dense layers, padding tokens and padded columns from a routing whose padding ids read
// 65535; used by assemble and by importers that build a Routing themselves. Layers in `options`
// decide which are MoE layers; a layer among them without any routing is left out too (another
// pipeline stage has it). Throws InputError for padding that is left inside a row.
void drop_unrouted(Imported& imported, const ImportOptions& options, const std::string& where);

}  // namespace coterie
