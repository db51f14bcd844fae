// Import and analysis speed on one core, in (token, layer, expert) entries per second.
//
//   cmake --build --preset release --target bench_import && build/release/bin/bench_import
//
// Import is reading the .npz (inflate, checksum), transposing and checking; analysis is load, pairs
// and fan-out of every layer, as `coterie trace info` does. Baselines, measured in the same run: a
// plain zlib inflate of the same members, which any reader of the file must at least do, and one
// pass over the ids in memory. Medians of 7 rounds, in processor time.

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "core/statistics.hpp"
#include "workloads/trace/archive.hpp"
#include "workloads/trace/describe.hpp"
#include "workloads/trace/importer.hpp"
#include "workloads/trace/moet.hpp"

namespace {

using namespace coterie;

// Processor time, so that a busy machine does not count against a program that uses one core.
double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median_seconds(const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int round = 0; round < 7; ++round) {
    const double begin = processor_seconds();
    work();
    seconds.push_back(processor_seconds() - begin);
  }
  return median(std::move(seconds));
}

// Deflates a member's content again, so that the baseline inflates the same data with zlib.
std::string deflate_with_zlib(std::span<const std::byte> content) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, content.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

void inflate_with_zlib(const std::string& packed, std::string& out) {
  z_stream stream{};
  inflateInit2(&stream, -15);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
}

void measure(const std::filesystem::path& path) {
  const std::vector<std::filesystem::path> inputs{path};
  const Trace trace = import_traces(inputs, "npz", {}).trace;
  const auto& routing = std::get<Routing>(trace);
  const auto entries = static_cast<double>(routing.experts.size());
  const std::vector<std::uint32_t> ranks{4, 8, 16};

  std::vector<std::string> packed;
  std::vector<std::string> plain;
  const Archive archive(path);
  for (const char* member : {"routed_experts.npy", "topk_weights.npy"}) {
    const Buffer content = archive.read(member);
    packed.push_back(deflate_with_zlib(content.bytes()));
    plain.emplace_back(content.bytes().size(), '\0');
  }
  const double inflate_s = median_seconds([&] {
    for (std::size_t i = 0; i < packed.size(); ++i) inflate_with_zlib(packed[i], plain[i]);
  });
  volatile std::uint64_t sink = 0;
  const double pass_s = median_seconds([&] {
    std::uint64_t sum = 0;
    for (const ExpertIdx id : routing.experts) sum += id;
    sink = sum;
  });
  const double import_s = median_seconds([&] { import_traces(inputs, "npz", {}); });
  const double analyse_s = median_seconds([&] { describe(routing, ranks, 3); });
  const auto moet = std::filesystem::temp_directory_path() / "bench_import.moet";
  write_moet(moet, trace);
  const double read_s = median_seconds([&] { read_moet(moet); });
  const double bytes_s = median_seconds([&] { read_file(moet); });
  std::filesystem::remove(moet);

  const auto line = [&](const char* what, double seconds, const std::string& ratio) {
    fmt::print("  {:28} {:8.1f} ms {:9.1f} M entries/s  {}\n", what, 1e3 * seconds,
               entries / seconds / 1e6, ratio);
  };
  fmt::print("{}: {:.2f} M entries\n", path.filename().string(), entries / 1e6);
  line("baseline: zlib inflate", inflate_s, "");
  line("import .npz", import_s,
       fmt::format("{:.2f} of the inflate baseline's time", import_s / inflate_s));
  line("baseline: one pass over ids", pass_s, "");
  line("analyse", analyse_s, fmt::format("{:.1f} passes", analyse_s / pass_s));
  line("import and analyse", import_s + analyse_s, "target: 20 M entries/s");
  line("baseline: read_file of .moet", bytes_s, "");
  line("read .moet", read_s,
       fmt::format("{:.2f} of the file-reading baseline's time", read_s / bytes_s));
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> paths(argv + 1, argv + argc);
  if (paths.empty()) {
    const std::filesystem::path traces = std::filesystem::path(COTERIE_DATA) / "traces";
    paths = {traces / "deepseek-v2-lite-esft/law.npz", traces / "gpt-oss-20b/decode.npz"};
  }
  for (const std::filesystem::path& path : paths) {
    if (std::filesystem::exists(path)) {
      measure(path);
    } else {
      fmt::print("{} is not there; give .npz traces as arguments\n", path.string());
    }
  }
}
