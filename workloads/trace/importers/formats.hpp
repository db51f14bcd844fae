#pragma once
// The import functions that the registry lists, one file each.

#include "workloads/trace/importer.hpp"

namespace coterie {

Imported import_npz(const std::filesystem::path& path, const ImportOptions& options);
Imported import_npy(const std::filesystem::path& path, const ImportOptions& options);
Imported import_vllm_jsonl(const std::filesystem::path& path, const ImportOptions& options);
Imported import_sglang(const std::filesystem::path& path, const ImportOptions& options);
Imported import_megatron_jsonl(const std::filesystem::path& path, const ImportOptions& options);
Imported import_json(const std::filesystem::path& path, const ImportOptions& options);
Imported import_csv(const std::filesystem::path& path, const ImportOptions& options);
Imported import_hf_json(const std::filesystem::path& path, const ImportOptions& options);

}  // namespace coterie
