#include "sim/sweep/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/error.hpp"
#include "core/file.hpp"
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
};

Content parse(const std::filesystem::path& file, const std::string& text,
              const std::string& sweep_id) {
  Content content;
  std::size_t begin = 0;
  for (int number = 1;; ++number) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) return content;  // nothing or an incomplete line is left
    const std::string where = fmt::format("{}:{}", file.string(), number);
    const json line = json::parse(text.substr(begin, end - begin), nullptr, false);
    if (!line.is_object()) throw InputError(where, "a damaged line", "a JSON object");
    if (number == 1) {
      if (line.value("schema_version", 0) != 1 || line.value("coterie", "") != version()) {
        throw InputError(where,
                         fmt::format("results of version {}", line.value("coterie", "unknown")),
                         fmt::format("version {}; use another folder", version()));
      }
      if (line.value("sweep", "") != sweep_id) {
        throw InputError(where, "results of another sweep (its axes or its base have changed)",
                         "an empty folder or one of this very sweep");
      }
      content.has_header = true;
    } else {
      if (!line.contains("id"))
        throw InputError(where, "an entry without \"id\"", "a sweep's entry");
      content.entries[line["id"].get<std::string>()] = line;
    }
    begin = end + 1;
    content.complete_bytes = begin;
  }
}

}  // namespace

std::map<std::string, json> read_journal(const std::filesystem::path& file,
                                         const std::string& sweep_id) {
  if (!std::filesystem::exists(file)) return {};
  return parse(file, read_file(file), sweep_id).entries;
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
    const Content content = parse(file, read_file(file), sweep_id);
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
  for (const json& entry : entries) lines += entry.dump() + "\n";
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
