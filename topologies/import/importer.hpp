#pragma once
// Clusters from what machines and other simulators say about themselves. One file per format here,
// one line in the registry (importer.cpp).
//
// No such description has everything that a `Cluster` needs: the rates of a GPU, fixed costs and
// caps of transfers, and mostly the network are not in them. These come from a base, a preset of
// the same GPU, and every such value is listed.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "topologies/cluster.hpp"

namespace coterie {

struct TopologyImportOptions {
  std::string base;                        // a preset or file: what the input cannot know
  std::optional<std::uint32_t> num_nodes;  // nodes of the same kind; needs the base's NICs, fabric
};

struct ImportedTopology {
  Cluster cluster;
  std::vector<std::string> read;       // what the input says, a sentence each
  std::vector<std::string> not_known;  // what it does not, and what stands for it
};

struct TopologyImporter {
  std::string name;
  std::string description;
  // By what only this format has.
  bool (*recognises)(const std::string& text);
  // `name` is the file's, for messages; the base is loaded.
  ImportedTopology (*import_text)(const std::string& text, const std::string& name,
                                  const Cluster& base, const TopologyImportOptions& options);
};
const std::vector<TopologyImporter>& topology_importers();

// Reads the file with the one importer that recognises it. The cluster passes every check of
// read_cluster. Throws InputError for unknown formats (naming those of other simulators), for
// machines that the model cannot describe, and for a base of another kind.
ImportedTopology import_topology(const std::filesystem::path& path,
                                 const TopologyImportOptions& options);
ImportedTopology import_topology_text(const std::string& text, const std::string& name,
                                      const TopologyImportOptions& options);

}  // namespace coterie
