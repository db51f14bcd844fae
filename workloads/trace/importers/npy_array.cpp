// A bare .npy of expert ids [tokens, layers, k], as numpy.save writes vLLM's routed_experts.

#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"

namespace coterie {

bool is_npy(const FileHead& head) {
  return head.text.starts_with("\x93NUMPY");
}

Imported import_npy(const std::filesystem::path& path, const ImportOptions& options) {
  const std::string content = read_file(path);
  TokenMajor input;
  input.experts = parse_npy(std::as_bytes(std::span(content)), path.string());
  return assemble(input, options, path.string());
}

}  // namespace coterie
