#pragma once
// curves.json: the probe's measurements (schema_version 2, runtime/README.md). Written anew after
// every part, read again to go on where an earlier start was interrupted, or to add a start.

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/session/probe/parts.hpp"
#include "runtime/session/probe/plan.hpp"
#include "runtime/session/probe/skeleton.hpp"

namespace coterie {

inline constexpr int kProbeSchemaVersion = 2;

// The list of a part's entries: "curves" for communication, otherwise the part's name.
std::string list_of(ProbePart part);

// Parses and checks: the version, every part's number of points and starts, every time. Throws
// InputError naming `name`, the entry, what was found and what was expected.
nlohmann::json parse_probe(const std::string& text, const std::string& name);
// One entry per line.
std::string probe_text(const nlohmann::json& document);

// Throws InputError unless the document is of the same program, machine, ranks and sizes as
// `header` describes.
void check_same_probe(const nlohmann::json& document, const nlohmann::json& header,
                      const std::string& name);

// How often the document has the part; 0 where it is missing.
std::uint32_t num_starts(const nlohmann::json& document, ProbePart part);

// Which of `wanted` to measure now. Without `append`: those that are missing. With it: where all
// have been measured equally often, all once more; otherwise those that are behind, so that an
// interrupted start is completed first.
std::vector<ProbePart> parts_to_measure(const nlohmann::json& document,
                                        std::span<const ProbePart> wanted, bool append);

// Adds one start of a part, which took `seconds`. Facts are those of the last start. Throws
// InputError where the points differ from those of earlier starts.
void add_start(nlohmann::json& document, ProbePart part, const std::vector<ProbePoint>& points,
               double seconds);

// Whether the document has the rates of a GPU: copy_bytes_per_s, gemm_flop_per_s, launch_s.
bool has_rates(const nlohmann::json& document);
// What the curves of `nccl` say about the links, for the skeleton.
void fill_links(const nlohmann::json& document, ProbeFacts& facts);

}  // namespace coterie
