#pragma once
// `coterie-runtime probe`: what this machine's GPUs and links can do, as a topology skeleton that
// `coterie` reads and as the measurements that calibration starts from (schema in
// runtime/README.md). What is measured stands in probe/plan.hpp.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"

namespace coterie {

struct ProbeOptions {
  std::filesystem::path output;
  // Per pair; absent: kNvlinkMaxBytes over NVLink, otherwise kLeastMaxBytes (probe/plan.hpp).
  std::optional<std::uint64_t> max_bytes;
  std::uint32_t num_samples = 15;  // per size; fewer where one takes long
  std::vector<std::string> parts;  // all where empty
  bool append = false;  // one more start of every part, where the file has as many of each
  std::string machine;  // a name for the machine; the host's where empty
  std::string command;
  GroupOptions group;
};

// Collective. Rank 0 writes curves.json, anew after every part, and topology.yaml into the output
// folder. Parts that the file has, of the same machine and ranks, are not measured again. Throws
// InputError for unknown parts and for a file that is damaged or of another probe.
void run_probe(const ProbeOptions& options, const RankEnvironment& environment);

}  // namespace coterie
