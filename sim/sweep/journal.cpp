#include "sim/sweep/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <thread>
#include <utility>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/provenance.hpp"

namespace coterie {
namespace {

using nlohmann::json;

json header(const std::string& sweep_id) {
  return {{"schema_version", 1}, {"coterie", version()}, {"sweep", sweep_id}};
}

// Children of a sweep that was killed hold its lock until they, too, are gone: milliseconds later.
bool lock_within_a_second(int descriptor) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

struct Content {
  std::map<std::string, json> entries;
  std::size_t complete_bytes = 0;  // up to the last complete line
  bool has_header = false;
  std::vector<std::string> damaged_lines;  // "FILE:LINE"
};

bool has_id(const json& line) {
  return line.is_object() && line.contains("id") && line["id"].is_string();
}

Content parse(const std::filesystem::path& file, const std::string& text,
              const std::string& sweep_id, const EntryCheck& is_sound) {
  Content content;
  std::size_t begin = 0;
  for (int number = 1;; ++number) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) return content;  // nothing or an incomplete line is left
    const std::string where = fmt::format("{}:{}", file.string(), number);
    const json line = try_parse_json(std::string_view(text).substr(begin, end - begin));
    if (number == 1) {
      if (!line.is_object()) throw InputError(where, "a damaged line", "a sweep's first line");
      const auto text_of = [&](const char* key) {
        const auto found = line.find(key);
        return found != line.end() && found->is_string() ? found->get<std::string>() : "unknown";
      };
      const auto schema = line.find("schema_version");
      if (schema == line.end() || *schema != 1) {
        throw InputError(
            where,
            schema == line.end() ? "no schema_version" : "schema_version " + json_excerpt(*schema),
            "schema_version 1, as a sweep's first line has");
      }
      if (text_of("coterie") != version()) {
        throw InputError(where, fmt::format("results of version {}", text_of("coterie")),
                         fmt::format("version {}; use another folder", version()));
      }
      if (text_of("sweep") != sweep_id) {
        throw InputError(where, "results of another sweep (its axes or its base have changed)",
                         "an empty folder or one of this very sweep");
      }
      content.has_header = true;
    } else {
      // A damaged entry is a point that was not done.
      if (has_id(line) && (!is_sound || is_sound(line))) {
        content.entries[line["id"].get<std::string>()] = line;
      } else {
        content.damaged_lines.push_back(where);
      }
    }
    begin = end + 1;
    content.complete_bytes = begin;
  }
}

}  // namespace

std::map<std::string, json> read_journal(const std::filesystem::path& file,
                                         const std::string& sweep_id, const EntryCheck& is_sound) {
  if (!path_exists(file)) return {};
  Content content = parse(file, read_file(file), sweep_id, is_sound);
  static std::set<std::string> told;
  for (const std::string& where : content.damaged_lines) {
    if (!told.insert(where).second) continue;
    spdlog::warn("{}: found a damaged entry, which is left aside: its point counts as not done",
                 where);
  }
  return std::move(content.entries);
}

Journal::Journal(const std::filesystem::path& file, const std::string& sweep_id) : file_(file) {
  descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    throw InputError(fmt::format("{}: cannot be written: {}", file.string(), std::strerror(errno)));
  }
  try {
    if (!lock_within_a_second(descriptor_)) {
      throw InputError(file.string(), "a sweep that is still running on it", "a folder of its own");
    }
    const Content content = parse(file, read_file(file), sweep_id, {});
    if (::ftruncate(descriptor_, static_cast<off_t>(content.complete_bytes)) != 0) {
      throw InputError(fmt::format("{}: cannot be cut to its complete lines: {}", file.string(),
                                   std::strerror(errno)));
    }
    if (!content.has_header) append(header(sweep_id));
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

Journal::~Journal() {
  ::close(descriptor_);
}

void Journal::append_all(std::span<const json> entries) {
  std::string lines;
  for (const json& entry : entries) lines += dump_json(entry) + "\n";
  const std::lock_guard guard(mutex_);
  std::size_t written = 0;
  while (written < lines.size()) {
    const ssize_t step = ::write(descriptor_, lines.data() + written, lines.size() - written);
    if (step < 0 && errno == EINTR) continue;
    if (step < 0) {
      throw InputError(
          fmt::format("{}: writing failed: {}; free the cause and start again, nothing "
                      "finished is lost",
                      file_.string(), std::strerror(errno)));
    }
    written += static_cast<std::size_t>(step);
  }
  if (::fdatasync(descriptor_) != 0) {
    throw InputError(fmt::format("{}: writing failed: {}", file_.string(), std::strerror(errno)));
  }
}

}  // namespace coterie
