#pragma once
// Files: reads with clear errors and limits, and writes that leave nothing half-written behind.
//
// Every failure of the file system is an InputError that names the path and the cause. Paths may be
// any bytes; what can be read once only (pipes, process substitution) is kept in memory, so that
// readers may open it again.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace coterie {

// What one file may hold: text that is read whole, and what comes through a pipe or a device, which
// cannot be asked for its size.
inline constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 32;
inline constexpr std::uint64_t kMaxPipeBytes = std::uint64_t{1} << 30;
inline constexpr std::size_t kMaxLineBytes = std::size_t{1} << 28;

// What stands at a path, symbolic links followed.
enum class PathKind { kNothing, kFile, kFolder, kSpecial };  // special: a pipe, a device, a socket
// Throws InputError where that cannot be told: a folder that may not be searched, a loop of links, a
// name that is too long.
PathKind kind_of(const std::filesystem::path& path);
// Something is there that may be opened for reading: anything but a folder.
bool is_input_file(const std::filesystem::path& path);
bool path_exists(const std::filesystem::path& path);
bool is_folder(const std::filesystem::path& path);

// The path from the root, without "." and "..". Throws InputError where the working directory is
// gone.
std::filesystem::path absolute_path(const std::filesystem::path& path);

// A path under which the input can be opened, again and again, and knows its size: the path itself
// for a regular file; for a pipe or a device what is left of it, kept in memory from the first call
// on. Throws InputError for folders, for what cannot be opened, and for more than kMaxPipeBytes from
// something that is no regular file.
std::filesystem::path reopenable(const std::filesystem::path& path);

// The whole file. Throws InputError naming the path and the reason, for files of more than
// `max_bytes` before they are read.
std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes = kMaxFileBytes);

// A stream of the file from its beginning. Throws InputError as reopenable does.
std::ifstream open_input(const std::filesystem::path& path);

// Reads a text line by line, without the line breaks.
class LineFile {
 public:
  // Throws InputError as open_input does.
  explicit LineFile(const std::filesystem::path& path);
  // False at the end. Throws InputError for a line of more than kMaxLineBytes and for a read that
  // fails.
  bool next(std::string& line);
  [[nodiscard]] std::uint64_t number() const { return number_; }  // of the line read last, from 1

 private:
  std::string name_;
  std::ifstream in_;
  std::uint64_t number_ = 0;
};

// The entries of a folder in the order of their names. Throws InputError.
std::vector<std::filesystem::path> list_folder(const std::filesystem::path& folder);

// Writes through a temporary name in the same folder, flushes it to disk and renames it over
// `path`; on any failure the temporary file is removed and InputError is thrown. A symbolic link is
// followed: what it names is replaced, and the link stays. A device, a pipe or an open descriptor
// (/dev/stdout, /dev/fd/N, process substitution) is written to as it is. Temporary files that a
// process which is gone left in the folder are removed.
void write_file(const std::filesystem::path& path, std::string_view content);
// The same for large outputs that are produced piece by piece.
void write_file(const std::filesystem::path& path,
                const std::function<void(std::ostream&)>& writer);

// Whether the name is one that write_file gives to a file in the making.
bool is_temporary_name(const std::filesystem::path& path);
// Removes the temporary files in a folder whose writers are gone. Says nothing of what it cannot.
void remove_stale_temporaries(const std::filesystem::path& folder);

// Removes a file if it is there. Throws InputError if that fails.
void remove_file(const std::filesystem::path& path);

// From now on SIGINT, SIGTERM and SIGHUP remove the temporary names of writes in progress and then
// end the process as they would have. For programs' `main`.
void remove_unfinished_files_on_signals();

// Creates the folder and its parents; throws InputError if that fails or a file stands there.
void make_folder(const std::filesystem::path& path);

}  // namespace coterie
