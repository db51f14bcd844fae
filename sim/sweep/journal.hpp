#pragma once
// The durable record of a sweep: one line of JSON per finished point, flushed to disk as soon as the
// point is known to be done. A crash, `kill -9` or a full disk costs at most the lines being written,
// of which the next start keeps the complete ones.

#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

namespace coterie {

class Journal {
 public:
  // Opens or creates FILE for the sweep `sweep_id` and takes its lock. Cuts off an incomplete last
  // line. Throws InputError if the file belongs to another sweep, another schema version or another
  // version of the program, or is being written by another process.
  Journal(const std::filesystem::path& file, const std::string& sweep_id);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Appends the entries and waits until they are on disk. Throws InputError if that fails (a full
  // disk); what was written before stays. Thread-safe.
  void append_all(std::span<const nlohmann::json> entries);
  void append(const nlohmann::json& entry) { append_all(std::span(&entry, 1)); }

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
  std::mutex mutex_;
};

// The entries of a journal by their "id", the last one of each; every one of them is whole. Ignores
// an incomplete last line, and with a warning that names file and line a damaged one, whose point is
// done again. Throws like the constructor. A missing file has no entries.
// `is_sound` says which entries are whole; without it all that have an id.
using EntryCheck = std::function<bool(const nlohmann::json&)>;
std::map<std::string, nlohmann::json> read_journal(const std::filesystem::path& file,
                                                   const std::string& sweep_id,
                                                   const EntryCheck& is_sound = {});

}  // namespace coterie
