// What `pack` spends its time on in FP8: the kernel with one thing less at a time, and with its loads
// and stores done otherwise. `pack` is the library's, which writes the scales by whole rows.
//
//   bench_pack [--json OUT]
//
// Routing: 6 of 64 experts, drawn uniformly, 8 destinations of 8 experts each. Every variant reads the
// same tokens and writes the same rows; what it leaves out stands in its name. `ratio` is its bytes
// (those that the variant itself moves) over the time and over the rate of a plain copy of 1 GiB in
// the same run. Times are medians of 15 replays of graphs that walk through 1 GiB of buffers.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/index.hpp"
#include "kernels/row_places.cuh"
#include "kernels/rows.hpp"
#include "tests/bench/copy_vectors.cuh"
#include "tests/bench/random_values.cuh"
#include "tests/bench/time_calls.cuh"

namespace coterie::kernels {
namespace {

constexpr std::uint32_t kDests = 8;
constexpr std::uint32_t kExperts = 64;
constexpr std::uint32_t kTopk = 6;
constexpr int kReplays = 15;

struct Variant {
  bool read = true;      // otherwise values follow from the thread's number
  bool quantise = true;  // otherwise half of the bytes that were read are written
  bool divide = false;   // quotients instead of products with the reciprocal
  bool values = true;    // written
  bool scales = true;    // written
  bool lookup = true;    // otherwise row r of a token lies at r * num_tokens + token of one buffer
  bool cached = false;   // loads may stay in L1: a thread's two loads share their sectors
  bool apart = false;    // a thread's two loads are 32 vectors apart: a warp's are contiguous,
                         // its stores of 8 bytes per thread
};

template <class V>
__global__ void __launch_bounds__(1024)
    pack_variant(const Bf16* tokens, std::uint32_t hidden, SendRows rows, std::byte* plain, V tag) {
  constexpr Variant kV = V::value;
  (void)tag;
  wait_for_previous_launch();
  start_dependent_launch();
  const std::uint32_t num_vectors = hidden / 16;
  const unsigned lane = threadIdx.x % 32;
  const auto* input =
      reinterpret_cast<const uint4*>(tokens) + std::size_t{blockIdx.x} * (hidden / 8);
  const std::uint32_t i = threadIdx.x;
  const bool inside = i < num_vectors;
  const std::uint32_t first = kV.apart ? (i - lane) * 2 + lane : 2 * i;
  const std::uint32_t second = kV.apart ? first + 32 : first + 1;
  uint4 v[2] = {};
  const auto load = [&](std::uint32_t at) {
    if (!kV.read) return make_uint4(at, at + 0x3f803f80U, at, 0x40004000U);
    return kV.cached ? __ldg(input + at) : load_once(input + at);
  };
  if (first < 2 * num_vectors) v[0] = load(first);
  if (second < 2 * num_vectors) v[1] = load(second);
  RowPlace place{};
  unsigned num_rows = 0;
  if constexpr (kV.lookup) {
    num_rows = row_places(rows.item_rows + std::size_t{blockIdx.x} * kTopk, kTopk, rows.blocks,
                          rows.num_blocks, RowType::kFp8, hidden, place);
  } else {
    num_rows = rows.item_rows[std::size_t{blockIdx.x} * kTopk + kTopk - 1] == kNoRow ? 4 : 5;
  }
  uint2 half[2];
  float scale[2];
  if constexpr (kV.quantise) {
    std::uint32_t word;
    if constexpr (kV.apart) {
      // 16 lanes share a group; the maxima of a thread's two travel in one word.
      const std::uint32_t a = larger(larger(v[0].x, v[0].y), larger(v[0].z, v[0].w));
      const std::uint32_t b = larger(larger(v[1].x, v[1].y), larger(v[1].z, v[1].w));
      word = __byte_perm(larger(a, __funnelshift_l(a, a, 16)), larger(b, __funnelshift_l(b, b, 16)),
                         0x7610);
    } else {
      word = largest_of(v[0], v[1]);
    }
#pragma unroll
    for (unsigned step = 1; step < (kV.apart ? 16 : 8); step *= 2) {
      word = larger(word, __shfl_xor_sync(kAllLanes, word, step));
    }
    const float2 largest = unpack(word & 0x7fff7fffU);
#pragma unroll
    for (unsigned h = 0; h < 2; ++h) {
      scale[h] = h == 1 && !kV.apart ? scale[0] : scale_of(h == 0 ? largest.x : largest.y);
      const float reciprocal = reciprocal_of(scale[h]);
      float x[8];
      unpack8(v[h], x);
#pragma unroll
      for (float& value : x) {
        value = kV.divide ? divide(value, scale[h], reciprocal) : value * reciprocal;
      }
      half[h] = make_uint2(quantise4(x[0], x[1], x[2], x[3]), quantise4(x[4], x[5], x[6], x[7]));
    }
  } else {
    half[0] = make_uint2(v[0].x ^ v[0].z, v[0].y ^ v[0].w);
    half[1] = make_uint2(v[1].x ^ v[1].z, v[1].y ^ v[1].w);
    scale[0] = scale[1] = 1.0F;
  }
  if constexpr (!kV.values) {
    // Never true, but the compiler does not know.
    if (half[0].x == 0x7f7f7f7fU && half[0].y == 0x12345678U && half[1].y == 0x9abcdef0U) {
      plain[i] = std::byte{1};
    }
  } else {
    for (unsigned r = 0; r < num_rows; ++r) {
      std::byte* output = nullptr;
      float* scales = nullptr;
      if constexpr (kV.lookup) {
        output = values_of(place, r);
        scales = scales_of(place, r);
      } else {
        output = plain + (std::size_t{r} * gridDim.x + blockIdx.x) * hidden;
        scales = reinterpret_cast<float*>(plain + std::size_t{kTopk} * gridDim.x * hidden) +
                 (std::size_t{r} * gridDim.x + blockIdx.x) * (hidden / kScaleGroup);
      }
      if constexpr (kV.apart) {
        auto* to = reinterpret_cast<uint2*>(output);
        if (first < 2 * num_vectors) to[first] = half[0];
        if (second < 2 * num_vectors) to[second] = half[1];
        if (kV.scales && lane % 16 == 0) {
          if (first < 2 * num_vectors) scales[first / 16] = scale[0];
          if (second < 2 * num_vectors) scales[second / 16] = scale[1];
        }
      } else if (inside) {
        store_once(reinterpret_cast<uint4*>(output) + i,
                   make_uint4(half[0].x, half[0].y, half[1].x, half[1].y));
        if (kV.scales && i % 8 == 0) scales[i / 8] = scale[0];
      }
    }
  }
}

template <std::size_t kIndex>
struct Tag;
#define COTERIE_VARIANT(index, ...)               \
  template <>                                     \
  struct Tag<index> {                             \
    static constexpr Variant value = __VA_ARGS__; \
  }
COTERIE_VARIANT(0, Variant{});
COTERIE_VARIANT(1, Variant{.divide = true});
COTERIE_VARIANT(2, Variant{.scales = false});
COTERIE_VARIANT(3, Variant{.quantise = false});
COTERIE_VARIANT(4, Variant{.read = false});
COTERIE_VARIANT(5, Variant{.values = false});
COTERIE_VARIANT(6, Variant{.lookup = false});
COTERIE_VARIANT(7, Variant{.read = false, .quantise = false, .scales = false, .lookup = false});
COTERIE_VARIANT(8, Variant{.cached = true});
COTERIE_VARIANT(9, Variant{.apart = true});
COTERIE_VARIANT(10, Variant{.quantise = false, .scales = false, .cached = true});
const char* const kNames[] = {"scales by fours",  "with quotients",      "no scales",
                              "not quantised",    "nothing read",        "nothing written",
                              "no lookup",        "constant rows alone", "loads cached in L1",
                              "loads contiguous", "copies, cached in L1"};
constexpr std::size_t kNumVariants = std::size(kNames);

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

struct Set {
  DeviceBuffer<Bf16> tokens;
  DeviceBuffer<std::byte> send;
  DeviceBuffer<TransferBlock> blocks;
  DeviceBuffer<std::uint32_t> item_rows;
};

class Case {
 public:
  Case(std::uint32_t hidden, std::uint32_t num_tokens) : hidden_(hidden), num_tokens_(num_tokens) {
    std::vector<std::uint16_t> experts;
    std::vector<float> weights(std::size_t{num_tokens} * kTopk, 1.0F / kTopk);
    std::vector<std::uint16_t> dest;
    for (std::uint32_t e = 0; e < kExperts; ++e) {
      dest.push_back(static_cast<std::uint16_t>(e * kDests / kExperts));
    }
    for (std::uint64_t t = 0; t < num_tokens; ++t) {
      std::uint16_t ids[kExperts];
      for (std::uint16_t e = 0; e < kExperts; ++e) ids[e] = e;
      std::uint32_t seen = 0;
      for (std::uint64_t j = 0; j < kTopk; ++j) {
        std::swap(ids[j], ids[j + mix(t * kExperts + j) % (kExperts - j)]);
        experts.push_back(ids[j]);
        seen |= 1U << dest[ids[j]];
      }
      while (seen != 0) {
        num_rows_ += seen & 1U;
        seen >>= 1;
      }
    }
    const DeviceBuffer<std::uint16_t> device_experts{std::span<const std::uint16_t>(experts)};
    const DeviceBuffer<float> device_weights{std::span<const float>(weights)};
    const DeviceBuffer<std::uint16_t> device_dest{std::span<const std::uint16_t>(dest)};
    const DeviceBuffer<std::byte> workspace(index_workspace_bytes(num_tokens * kTopk, kDests));
    // Room for six rows of every token, as the variant without a lookup writes them.
    const std::size_t room =
        std::size_t{num_tokens} * kTopk * block_bytes(RowType::kFp8, hidden, 1, 1) +
        kDests * kBlockAlignment;
    const std::size_t count = std::max<std::size_t>(2, (std::size_t{1} << 30) / room + 1);
    for (std::size_t i = 0; i < count; ++i) {
      sets_.push_back({random_values(std::size_t{num_tokens} * hidden, i + 1, 1.75F),
                       DeviceBuffer<std::byte>(room), DeviceBuffer<TransferBlock>(kDests),
                       DeviceBuffer<std::uint32_t>(std::size_t{num_tokens} * kTopk)});
      const Set& set = sets_.back();
      build_send_index({device_experts.data(), device_weights.data(), num_tokens, kTopk},
                       {device_dest.data(), kExperts, kDests, 0, false}, RowType::kFp8, hidden,
                       set.send.data(), index_of(set), workspace.data(), nullptr);
      check(cudaDeviceSynchronize(), "build_send_index");
    }
  }

  [[nodiscard]] double bytes(const Variant& v) const {
    const double scales = 4.0 * hidden_ / kScaleGroup;
    return (v.read ? 2.0 * hidden_ * num_tokens_ : 0.0) +
           (v.values ? num_rows_ * (hidden_ + (v.scales ? scales : 0.0)) : 0.0);
  }
  [[nodiscard]] int calls() const { return std::max(4, static_cast<int>(sets_.size())); }
  [[nodiscard]] double library(const Stream& stream) const {
    return time_calls(stream, kReplays, calls(), [&](std::size_t i, cudaStream_t s) {
      const Set& set = sets_[i % sets_.size()];
      pack(set.tokens.data(), num_tokens_, kTopk, hidden_, RowType::kFp8, index_of(set), kDests, s);
    });
  }
  template <std::size_t kIndex>
  [[nodiscard]] double variant(const Stream& stream) const {
    return time_calls(stream, kReplays, calls(), [&](std::size_t i, cudaStream_t s) {
      const Set& set = sets_[i % sets_.size()];
      launch_dependent(&pack_variant<Tag<kIndex>>, num_tokens_, (hidden_ / 16 + 31) / 32 * 32, 0, s,
                       set.tokens.data(), hidden_,
                       SendRows{set.item_rows.data(), set.blocks.data(), kDests}, set.send.data(),
                       Tag<kIndex>{});
    });
  }
  // Whether a variant writes what the library writes.
  template <std::size_t kIndex>
  [[nodiscard]] bool agrees(const Stream& stream) {
    Set& set = sets_[0];
    set.send.fill_bytes(0xff);
    pack(set.tokens.data(), num_tokens_, kTopk, hidden_, RowType::kFp8, index_of(set), kDests,
         stream.get());
    stream.synchronize();
    const auto expected = set.send.download();
    set.send.fill_bytes(0xff);
    launch_dependent(&pack_variant<Tag<kIndex>>, num_tokens_, (hidden_ / 16 + 31) / 32 * 32, 0,
                     stream.get(), set.tokens.data(), hidden_,
                     SendRows{set.item_rows.data(), set.blocks.data(), kDests}, set.send.data(),
                     Tag<kIndex>{});
    stream.synchronize();
    return set.send.download() == expected;
  }

 private:
  static SendIndex index_of(const Set& set) {
    return {set.blocks.data(), set.item_rows.data(), nullptr, nullptr};
  }
  std::uint32_t hidden_;
  std::uint32_t num_tokens_;
  std::uint32_t num_rows_ = 0;
  std::vector<Set> sets_;
};

double copy_rate(const Stream& stream) {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  const DeviceBuffer<std::byte> from(kBytes);
  const DeviceBuffer<std::byte> to(kBytes);
  const double seconds = time_calls(stream, kReplays, 4, [&](std::size_t, cudaStream_t s) {
    copy_vectors<<<kBytes / 16 / 1024, 256, 0, s>>>(reinterpret_cast<const uint4*>(from.data()),
                                                    reinterpret_cast<uint4*>(to.data()),
                                                    kBytes / 16);
  });
  return 2.0 * kBytes / seconds;
}

template <std::size_t... kIndexes>
std::vector<double> times_of(const Case& one, const Stream& stream,
                             std::index_sequence<kIndexes...>) {
  return {one.variant<kIndexes>(stream)...};
}
template <std::size_t... kIndexes>
std::vector<Variant> variants(std::index_sequence<kIndexes...>) {
  return {Tag<kIndexes>::value...};
}

int main_of(const std::string& json) {
  const Stream stream;
  const double copy = copy_rate(stream);
  std::printf("copy %.2f TB/s (read + write)\n", copy * 1e-12);
  std::string out;
  constexpr auto kAll = std::make_index_sequence<kNumVariants>{};
  for (const std::uint32_t hidden : {2048U, 7168U}) {
    for (const std::uint32_t tokens : {4096U, 16384U}) {
      Case one(hidden, tokens);
      if (tokens > 4096) {
        // Checked with fewer.
      } else if (!one.agrees<0>(stream) || !one.agrees<8>(stream) || !one.agrees<9>(stream)) {
        std::printf("hidden %u, %u tokens: a variant writes something else\n", hidden, tokens);
        return 4;
      }
      const auto kinds = variants(kAll);
      const auto times = times_of(one, stream, kAll);
      const auto print = [&](const std::string& name, double bytes, double seconds) {
        std::printf("%5u %6u  %-22s %8.1f us  %7.1f MB  %5.2f\n", hidden, tokens, name.c_str(),
                    seconds * 1e6, bytes * 1e-6, bytes / seconds / copy);
        char line[256];
        std::snprintf(line, sizeof line,
                      "%s\n  {\"hidden\":%u,\"num_tokens\":%u,\"variant\":\"%s\",\"bytes\":%.0f,"
                      "\"us\":%.2f,\"ratio\":%.4f}",
                      out.empty() ? "" : ",", hidden, tokens, name.c_str(), bytes, seconds * 1e6,
                      bytes / seconds / copy);
        out += line;
      };
      print("pack", one.bytes(Variant{}), one.library(stream));
      for (std::size_t v = 0; v < times.size(); ++v)
        print(kNames[v], one.bytes(kinds[v]), times[v]);
    }
  }
  if (json.empty()) return 0;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::ofstream(json) << "{\"device\":\"" << properties.name << "\",\"copy_bytes_per_s\":" << copy
                      << ",\"entries\":[" << out << "\n]}\n";
  return 0;
}

}  // namespace
}  // namespace coterie::kernels

int main(int argc, char** argv) {
  std::string json;
  if (argc == 3 && std::strcmp(argv[1], "--json") == 0) {
    json = argv[2];
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: bench_pack [--json OUT]\n");
    return 2;
  }
  return coterie::kernels::main_of(json);
}
