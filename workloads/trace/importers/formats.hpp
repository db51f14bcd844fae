#pragma once
// The import functions that the registry lists, one file each, and how each tells its files.

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
Imported import_esft(const std::filesystem::path& path, const ImportOptions& options);
Imported import_gpt_oss_json(const std::filesystem::path& path, const ImportOptions& options);
Imported import_trtllm(const std::filesystem::path& path, const ImportOptions& options);

bool is_npz(const FileHead& head);
bool is_npy(const FileHead& head);
bool is_vllm_jsonl(const FileHead& head);
bool is_sglang(const FileHead& head);
bool is_megatron_jsonl(const FileHead& head);
bool is_json_dump(const FileHead& head);
bool is_csv(const FileHead& head);
bool is_hf_json(const FileHead& head);
bool is_esft(const FileHead& head);
bool is_gpt_oss_json(const FileHead& head);
bool is_trtllm(const FileHead& head);

}  // namespace coterie
