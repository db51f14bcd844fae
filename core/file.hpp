#pragma once
// Files: whole reads with clear errors, and writes that leave nothing half-written behind.

#include <filesystem>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>

namespace coterie {

// The whole file. Throws InputError naming the path and the reason.
std::string read_file(const std::filesystem::path& path);

// Writes through a temporary name in the same folder, flushes it to disk and renames it over
// `path`; on any failure the temporary file is removed and InputError is thrown.
void write_file(const std::filesystem::path& path, std::string_view content);
// The same for large outputs that are produced piece by piece.
void write_file(const std::filesystem::path& path,
                const std::function<void(std::ostream&)>& writer);

// From now on SIGINT, SIGTERM and SIGHUP remove the temporary names of writes in progress and then
// end the process as they would have. For programs' `main`.
void remove_unfinished_files_on_signals();

// Creates the folder and its parents; throws InputError if that fails or a file stands there.
void make_folder(const std::filesystem::path& path);

}  // namespace coterie
