#pragma once
// The import functions that the registry lists.

#include "topologies/import/importer.hpp"

namespace coterie {

bool is_nvidia_smi(const std::string& text);
ImportedTopology import_nvidia_smi(const std::string& text, const std::string& name,
                                   const Cluster& base, const TopologyImportOptions& options);
bool is_nccl_xml(const std::string& text);
ImportedTopology import_nccl_xml(const std::string& text, const std::string& name,
                                 const Cluster& base, const TopologyImportOptions& options);
bool is_simgrid_xml(const std::string& text);
ImportedTopology import_simgrid_xml(const std::string& text, const std::string& name,
                                    const Cluster& base, const TopologyImportOptions& options);

}  // namespace coterie
