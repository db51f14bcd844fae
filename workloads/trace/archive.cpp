#include "workloads/trace/archive.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#ifdef COTERIE_HAS_LIBZIP
#include <zip.h>
#endif
#ifdef COTERIE_HAS_LIBDEFLATE
#include <libdeflate.h>
#endif

namespace coterie {

std::uint32_t crc32_of(std::span<const std::byte> bytes) {
#ifdef COTERIE_HAS_LIBDEFLATE
  return libdeflate_crc32(0, bytes.data(), bytes.size());
#else
  return static_cast<std::uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
#endif
}

std::string Archive::where(const std::string& name) const {
  return fmt::format("{}: member {}", path_.string(), name);
}

bool Archive::has(const std::string& name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

#ifdef COTERIE_HAS_LIBZIP

struct Archive::Handle {
  zip_t* zip = nullptr;
  std::uint64_t file_size = 0;
  ~Handle() {
    if (zip != nullptr) zip_discard(zip);
  }
};

namespace {

struct FileCloser {
  void operator()(zip_file_t* file) const { zip_fclose(file); }
};
using ZipFile = std::unique_ptr<zip_file_t, FileCloser>;

// A deflated block cannot expand further than this (RFC 1951: 258 bytes from two bits).
constexpr std::uint64_t kMaxExpansion = 1032;

// Reads exactly `size` bytes of an open member.
void read_member(zip_file_t* file, std::byte* out, std::uint64_t size, const std::string& where) {
  std::uint64_t done = 0;
  while (done < size) {
    const zip_int64_t got = zip_fread(file, out + done, size - done);
    if (got <= 0) {
      throw InputError(where,
                       fmt::format("damaged or truncated data after {} ({})", counted(done, "byte"),
                                   got < 0 ? zip_file_strerror(file) : "end of data"),
                       counted(size, "byte"));
    }
    done += static_cast<std::uint64_t>(got);
  }
}

// What all members together may inflate to: recordings of routing shrink to a tenth, padded ones to
// a fiftieth; an archive that claims more than this was made to fill the memory.
constexpr std::uint64_t kMaxTotalExpansion = 100;
constexpr std::uint64_t kAlwaysAllowed = std::uint64_t{64} << 20;

// Members may overlap in the file, so that only the sum of what they claim says what they cost.
void check_total_size(zip_t* zip, std::uint64_t file_size, const std::string& where) {
  const std::uint64_t limit = std::max(kAlwaysAllowed, kMaxTotalExpansion * file_size);
  std::uint64_t total = 0;
  const zip_int64_t count = zip_get_num_entries(zip, 0);
  for (zip_int64_t i = 0; i < count; ++i) {
    zip_stat_t stat;
    zip_stat_init(&stat);
    if (zip_stat_index(zip, static_cast<zip_uint64_t>(i), 0, &stat) != 0) continue;
    if ((stat.valid & ZIP_STAT_SIZE) == 0) continue;
    if (stat.size > limit - total) {
      throw InputError(
          where, fmt::format("members that inflate to more than {} MiB", limit >> 20),
          fmt::format("at most {} times the {} of the archive (and 64 MiB in any case)",
                      kMaxTotalExpansion, counted(file_size, "byte")));
    }
    total += stat.size;
  }
}

#ifdef COTERIE_HAS_LIBDEFLATE
void inflate_whole(std::span<const std::byte> packed, std::byte* out, std::size_t size,
                   const std::string& where) {
  struct Free {
    void operator()(libdeflate_decompressor* d) const { libdeflate_free_decompressor(d); }
  };
  const std::unique_ptr<libdeflate_decompressor, Free> decompressor(
      libdeflate_alloc_decompressor());
  if (!decompressor) throw std::bad_alloc();
  if (libdeflate_deflate_decompress(decompressor.get(), packed.data(), packed.size(), out, size,
                                    nullptr) != LIBDEFLATE_SUCCESS) {
    throw InputError(where, "damaged deflate data",
                     fmt::format("{} that inflate to {}", counted(packed.size(), "byte"), size));
  }
}
#endif

}  // namespace

Archive::Archive(const std::filesystem::path& path)
    : path_(path), handle_(std::make_unique<Handle>()) {
  const std::filesystem::path place = reopenable(path);
  std::error_code status;
  handle_->file_size = std::filesystem::file_size(place, status);
  if (status) {
    throw InputError(fmt::format("{}: cannot be read: {}", path.string(), status.message()));
  }
  int code = 0;
  handle_->zip = zip_open(place.c_str(), ZIP_RDONLY, &code);
  if (handle_->zip == nullptr) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    throw InputError(path.string(),
                     fmt::format("{} that are no whole zip archive ({})",
                                 counted(handle_->file_size, "byte"), reason),
                     "a zip archive with its directory at the end");
  }
  const zip_int64_t count = zip_get_num_entries(handle_->zip, 0);
  for (zip_int64_t i = 0; i < count; ++i) {
    const char* name = zip_get_name(handle_->zip, static_cast<zip_uint64_t>(i), ZIP_FL_ENC_RAW);
    names_.emplace_back(name == nullptr ? "" : name);
  }
  check_total_size(handle_->zip, handle_->file_size, path.string());
}

Archive::~Archive() = default;

Buffer Archive::read(const std::string& name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  if (found == names_.end()) throw InputError(where(name), "no such member", "it to be there");
  const auto index = static_cast<zip_uint64_t>(found - names_.begin());
  zip_stat_t stat;
  zip_stat_init(&stat);
  constexpr zip_uint64_t kNeeded =
      ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_CRC;
  if (zip_stat_index(handle_->zip, index, 0, &stat) != 0 || (stat.valid & kNeeded) != kNeeded) {
    throw InputError(where(name), "no sizes and checksum in the directory", "a complete entry");
  }
  if ((stat.valid & ZIP_STAT_ENCRYPTION_METHOD) != 0 && stat.encryption_method != ZIP_EM_NONE) {
    throw InputError(where(name), "an encrypted member", "plain data");
  }
  if (stat.comp_method != ZIP_CM_STORE && stat.comp_method != ZIP_CM_DEFLATE) {
    throw InputError(where(name), fmt::format("compression method {}", stat.comp_method),
                     "stored or deflated data");
  }
  // What the directory claims must fit what the file holds, before memory is asked for.
  if (stat.comp_size > handle_->file_size) {
    throw InputError(where(name), fmt::format("{} packed bytes claimed", stat.comp_size),
                     fmt::format("no more than the file's {}", handle_->file_size));
  }
  if (stat.size > stat.comp_size * (stat.comp_method == ZIP_CM_STORE ? 1 : kMaxExpansion)) {
    throw InputError(where(name), fmt::format("{} claimed", counted(stat.size, "byte")),
                     fmt::format("what {} packed bytes can hold", stat.comp_size));
  }
  zip_flags_t flags = 0;
  std::uint64_t read_size = stat.size;
#ifdef COTERIE_HAS_LIBDEFLATE
  flags = ZIP_FL_COMPRESSED;
  read_size = stat.comp_size;
#endif
  const ZipFile file(zip_fopen_index(handle_->zip, index, flags));
  if (!file) {
    throw InputError(where(name), zip_error_strerror(zip_get_error(handle_->zip)),
                     "a readable member");
  }
  Buffer content(read_size);
  read_member(file.get(), content.data(), read_size, where(name));
#ifdef COTERIE_HAS_LIBDEFLATE
  if (stat.comp_method == ZIP_CM_DEFLATE) {
    Buffer inflated(stat.size);
    inflate_whole(content.bytes(), inflated.data(), stat.size, where(name));
    content = std::move(inflated);
  }
#endif
  const std::uint32_t crc = crc32_of(content.bytes());
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  stat.crc = crc;
#endif
  if (crc != stat.crc) {
    throw InputError(where(name), fmt::format("checksum {:08x}", crc),
                     fmt::format("{:08x} as in the archive's directory", stat.crc));
  }
  return content;
}

#else  // without libzip

struct Archive::Handle {};

Archive::Archive(const std::filesystem::path& path) : path_(path) {
  throw InputError(
      fmt::format("{}: this build cannot read zip archives (.npz, .pt) because libzip was not "
                  "found when it was configured; install libzip (Debian: libzip-dev) and rebuild",
                  path.string()));
}
Archive::~Archive() = default;
Buffer Archive::read(const std::string& /*name*/) const {
  return {};
}

#endif

}  // namespace coterie
