#pragma once
// The import functions that the registry lists, one file each.

#include "workloads/trace/importer.hpp"

namespace coterie {

Imported import_npz(const std::filesystem::path& path, const ImportOptions& options);

}  // namespace coterie
