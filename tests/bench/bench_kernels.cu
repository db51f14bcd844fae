// How near the row kernels come to the copy bandwidth of the GPU, and what the indexes cost.
//
//   bench_kernels [ROUTING] [--json OUT] [--quick]
//
// ROUTING is a flat file of one layer's recorded routing (flatten_routing.py); without it the
// routing is drawn uniformly and the output says so. One rank of an EP group of 8 is timed:
// as a sender with its N tokens, as a receiver of what 8 such ranks send to it. Contiguous
// placement; the trace is repeated to fill N tokens per rank, every rank starting elsewhere.
//
// floor      the bytes a kernel must move, rows only, over the copy bandwidth (indexes, weights and
//            row words come on top and are not counted):
//              pack     each token read once (BF16), each row written once (payload with scales)
//              expand   each received row read once (payload), each copy written once (BF16)
//              merge    each copy read once, each result row written once (BF16)
//              combine  each returned row read once, each token written once (BF16)
// copy       bytes read + bytes written per second when 2 GiB are read and as many written, by the
//            faster of cudaMemcpyAsync and a plain copy kernel, in this run
// ratio      floor / time: the share of the copy bandwidth
// same-size  time of a copy that moves as many bytes as the floor counts, over the kernel's: what
//            remains of the gap when start-up costs are the same
//
// Times are medians over replays of a CUDA graph of calls that walk through several sets of buffers
// (at least 512 MiB together, so the 60 MB of L2 keep nothing), divided by the calls. The outputs
// are checked on samples before anything is printed; a wrong one ends the program with code 4.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/index.hpp"
#include "kernels/reference.hpp"
#include "kernels/rows.hpp"
#include "tests/bench/copy_vectors.cuh"
#include "tests/bench/random_values.cuh"
#include "tests/bench/time_calls.cuh"

namespace coterie::kernels {
namespace {

constexpr std::uint32_t kRanks = 8;

// --- routing ------------------------------------------------------------------------------------

struct Routing {
  std::uint32_t num_tokens = 0;
  std::uint32_t num_topk = 0;
  std::uint32_t num_experts = 0;
  std::vector<std::uint16_t> experts;  // [num_tokens][num_topk]
  std::vector<float> weights;
  std::string origin;
};

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

Routing read_flat(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::uint32_t header[4] = {};
  file.read(reinterpret_cast<char*>(header), sizeof(header));
  constexpr std::uint32_t kMagic = 0x54554f52;  // "ROUT"
  if (!file || header[0] != kMagic) throw std::runtime_error(path + ": not a flat routing file");
  Routing routing{header[1], header[2], header[3], {}, {}, path};
  routing.experts.resize(std::size_t{routing.num_tokens} * routing.num_topk);
  routing.weights.resize(routing.experts.size());
  file.read(reinterpret_cast<char*>(routing.experts.data()),
            static_cast<std::streamsize>(routing.experts.size() * 2));
  file.read(reinterpret_cast<char*>(routing.weights.data()),
            static_cast<std::streamsize>(routing.weights.size() * 4));
  if (!file) throw std::runtime_error(path + ": shorter than its header says");
  return routing;
}

Routing draw_uniform() {
  Routing routing{8192, 6, 64, {}, {}, "synthetic, uniform"};
  for (std::uint64_t t = 0; t < routing.num_tokens; ++t) {
    std::uint16_t ids[64];
    for (std::uint16_t e = 0; e < 64; ++e) ids[e] = e;
    for (std::uint64_t j = 0; j < 6; ++j) {
      std::swap(ids[j], ids[j + mix(t * 64 + j) % (64 - j)]);
      routing.experts.push_back(ids[j]);
      routing.weights.push_back(static_cast<float>(1 + mix(t * 64 + 32 + j) % 100) / 600.0F);
    }
  }
  return routing;
}

// N tokens of rank `rank`.
Routing tile(const Routing& trace, std::uint32_t rank, std::uint32_t num_tokens) {
  Routing routing{num_tokens, trace.num_topk, trace.num_experts, {}, {}, trace.origin};
  for (std::uint64_t t = 0; t < num_tokens; ++t) {
    const std::uint64_t from =
        (std::uint64_t{rank} * trace.num_tokens / kRanks + t) % trace.num_tokens;
    for (std::uint64_t j = 0; j < trace.num_topk; ++j) {
      routing.experts.push_back(trace.experts[from * trace.num_topk + j]);
      routing.weights.push_back(trace.weights[from * trace.num_topk + j]);
    }
  }
  return routing;
}

std::vector<BlockCounts> count_blocks(const Routing& routing, std::uint32_t rank) {
  std::vector<BlockCounts> counts(kRanks, {0, 0});
  for (std::size_t t = 0; t < routing.num_tokens; ++t) {
    std::uint32_t seen = 0;
    for (std::size_t j = 0; j < routing.num_topk; ++j) {
      const std::uint32_t dest =
          routing.experts[t * routing.num_topk + j] * kRanks / routing.num_experts;
      BlockCounts& count = counts[(dest + kRanks - rank) % kRanks];
      ++count.num_copies;
      if ((seen >> dest & 1U) == 0) ++count.num_rows;
      seen |= 1U << dest;
    }
  }
  return counts;
}

// --- device helpers -----------------------------------------------------------------------------

DeviceBuffer<Bf16> random_rows(std::size_t count, std::uint64_t seed) {
  return random_values(count, seed, 1.75F);
}
template <class T>
DeviceBuffer<T> upload(const std::vector<T>& host) {
  return DeviceBuffer<T>(std::span<const T>(host));
}
template <class T>
std::vector<T> fetch(const T* data, std::size_t count) {
  std::vector<T> host(count);
  check(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "fetch");
  return host;
}

// The fastest known way to copy bytes_moved / 2 bytes: cudaMemcpyAsync (outside a graph, where some
// drivers use another engine) or a plain copy kernel.
double time_copy(const Stream& stream, int replays, std::size_t bytes_moved) {
  const std::size_t half = std::max<std::size_t>(bytes_moved / 32 * 16, 16);
  const std::size_t sets = (std::size_t{512} << 20) / bytes_moved + 1;
  std::vector<DeviceBuffer<std::byte>> from;
  std::vector<DeviceBuffer<std::byte>> to;
  for (std::size_t i = 0; i < sets; ++i) {
    from.emplace_back(half);
    to.emplace_back(half);
    fill_random<<<2048, 256>>>(reinterpret_cast<Bf16*>(from.back().data()), half / 2, i, 1.75F);
  }
  check(cudaDeviceSynchronize(), "fill_random");
  const int calls = static_cast<int>(std::max<std::size_t>(sets, 4));
  const double by_kernel = time_calls(stream, replays, calls, [&](std::size_t i, cudaStream_t s) {
    const std::uint64_t count = half / 16;
    copy_vectors<<<static_cast<unsigned>((count + 1023) / 1024), 256, 0, s>>>(
        reinterpret_cast<const uint4*>(from[i % sets].data()),
        reinterpret_cast<uint4*>(to[i % sets].data()), count);
  });
  const Event begin;
  const Event end;
  std::vector<double> times;
  for (int replay = -1; replay < replays; ++replay) {
    begin.record(stream.get());
    for (int i = 0; i < calls; ++i) {
      const std::size_t set = static_cast<std::size_t>(i) % sets;
      check(cudaMemcpyAsync(to[set].data(), from[set].data(), half, cudaMemcpyDeviceToDevice,
                            stream.get()),
            "cudaMemcpyAsync");
    }
    end.record(stream.get());
    stream.synchronize();
    if (replay >= 0) times.push_back(seconds_between(begin, end) / calls);
  }
  std::sort(times.begin(), times.end());
  return std::min(by_kernel, times[times.size() / 2]);
}

// --- one case -----------------------------------------------------------------------------------

// Everything one rank holds while it serves a layer.
struct Buffers {
  DeviceBuffer<Bf16> tokens;     // [N][hidden]
  DeviceBuffer<std::byte> send;  // blocks
  DeviceBuffer<TransferBlock> send_table;
  DeviceBuffer<std::byte> receive;  // blocks
  DeviceBuffer<TransferBlock> receive_table;
  ReceivedRows received{};
  DeviceBuffer<Bf16> expert_rows;     // [copies][hidden]
  DeviceBuffer<Bf16> expert_outputs;  // [copies][hidden]
  DeviceBuffer<Bf16> results;         // [received rows][hidden]
  DeviceBuffer<Bf16> returned;        // [sent rows][hidden]
  DeviceBuffer<Bf16> outputs;         // [N][hidden]
  DeviceBuffer<std::uint32_t> item_rows;
  DeviceBuffer<std::uint32_t> copy_slot;
  DeviceBuffer<std::uint32_t> slot_copy;
  DeviceBuffer<std::uint32_t> expert_begin;
};

struct Line {
  std::string kernel;
  std::uint32_t hidden;
  std::uint32_t num_tokens;
  double bytes;
  double time_s;
  double copy_s;  // of as many bytes; 0 for the indexes
};

void expect(bool good, const std::string& what) {
  if (good) return;
  std::fprintf(stderr, "bench_kernels: error: wrong output: %s\n", what.c_str());
  std::exit(4);
}

class Case {
 public:
  Case(const Routing& trace, std::uint32_t hidden, std::uint32_t num_tokens, RowType type)
      : hidden_(hidden), type_(type), num_tokens_(num_tokens), num_topk_(trace.num_topk) {
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
      routing_.push_back(tile(trace, rank, num_tokens));
      counts_.push_back(count_blocks(routing_.back(), rank));
      experts_.push_back(upload(routing_.back().experts));
      weights_.push_back(upload(routing_.back().weights));
    }
    std::vector<std::uint16_t> dest;
    std::vector<std::uint16_t> local;
    for (std::uint32_t e = 0; e < trace.num_experts; ++e) {
      dest.push_back(static_cast<std::uint16_t>(e * kRanks / trace.num_experts));
      if (dest.back() == 0) num_local_ = e + 1;
      local.push_back(static_cast<std::uint16_t>(dest.back() == 0 ? e : 0xffff));
    }
    num_experts_ = trace.num_experts;
    expert_dest_ = upload(dest);
    expert_local_ = upload(local);
    for (const BlockCounts& count : counts_[0]) num_sent_ += count.num_rows;
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
      receive_counts_.push_back(counts_[rank][(kRanks - rank) % kRanks]);
      num_received_ += receive_counts_.back().num_rows;
      num_copies_ += receive_counts_.back().num_copies;
    }
    workspace_ = DeviceBuffer<std::byte>(index_workspace_bytes(
        std::max(num_copies_, num_tokens * trace.num_topk), std::max(kRanks, num_local_)));
    const double smallest =
        std::min({pack_bytes(), expand_bytes(), merge_bytes(), combine_bytes()});
    const auto num_sets = std::max<std::size_t>(
        2, static_cast<std::size_t>(std::ceil(512.0 * 1024 * 1024 / smallest)));
    for (std::size_t i = 0; i < num_sets; ++i) sets_.push_back(make_set(i));
    fill_received();
  }

  double row() const { return 2.0 * hidden_; }
  double payload() const {
    return type_ == RowType::kFp8 ? hidden_ + 4.0 * hidden_ / kScaleGroup : row();
  }
  double pack_bytes() const { return num_tokens_ * row() + num_sent_ * payload(); }
  double expand_bytes() const { return num_received_ * payload() + num_copies_ * row(); }
  double merge_bytes() const { return (num_copies_ + num_received_) * row(); }
  double combine_bytes() const { return (num_sent_ + num_tokens_) * row(); }

  std::vector<Line> run(const Stream& stream, int replays) {
    const int calls = std::max(4, static_cast<int>(sets_.size()));
    const auto timed = [&](const std::string& name, double bytes, auto call) {
      const double time = time_calls(stream, replays, calls, [&](std::size_t i, cudaStream_t s) {
        call(sets_[i % sets_.size()], s);
      });
      const double copy =
          bytes > 0 ? time_copy(stream, replays, static_cast<std::size_t>(bytes)) : 0.0;
      return Line{name, hidden_, num_tokens_, bytes, time, copy};
    };
    const std::string suffix = type_ == RowType::kFp8 ? " fp8" : " bf16";
    std::vector<Line> lines;
    lines.push_back(timed("index send", 0, [&](const Buffers& b, cudaStream_t s) { index(b, s); }));
    lines.push_back(
        timed("index receive", 0, [&](const Buffers& b, cudaStream_t s) { receive_index(b, s); }));
    lines.push_back(timed("pack" + suffix, pack_bytes(),
                          [&](const Buffers& b, cudaStream_t s) { run_pack(b, s); }));
    lines.push_back(timed("expand" + suffix, expand_bytes(), [&](const Buffers& b, cudaStream_t s) {
      expand(b.received, b.copy_slot.data(), b.expert_rows.data(), s);
    }));
    if (type_ == RowType::kBf16) {
      lines.push_back(timed("merge", merge_bytes(), [&](const Buffers& b, cudaStream_t s) {
        merge(b.received, b.copy_slot.data(), b.expert_outputs.data(), b.results.data(), s);
      }));
      lines.push_back(timed("combine", combine_bytes(), [&](const Buffers& b, cudaStream_t s) {
        combine(b.returned.data(), num_tokens_, num_topk_, hidden_, b.item_rows.data(),
                b.outputs.data(), s);
      }));
    }
    check_samples(sets_[sets_.size() - 1]);
    return lines;
  }

 private:
  Targets targets(std::uint32_t rank) const {
    return {expert_dest_.data(), num_experts_, kRanks, rank, false};
  }
  SendIndex send_index(const Buffers& b) const {
    return {b.send_table.data(), b.item_rows.data(), nullptr, nullptr};
  }
  void index(const Buffers& b, cudaStream_t s) const {
    build_send_index({experts_[0].data(), weights_[0].data(), num_tokens_, num_topk_}, targets(0),
                     type_, hidden_, b.send.data(), send_index(b), workspace_.data(), s);
  }
  void receive_index(const Buffers& b, cudaStream_t s) const {
    build_receive_index(b.received, expert_local_.data(), num_local_,
                        {b.copy_slot.data(), b.slot_copy.data(), b.expert_begin.data()},
                        workspace_.data(), s);
  }
  void run_pack(const Buffers& b, cudaStream_t s) const {
    pack(b.tokens.data(), num_tokens_, num_topk_, hidden_, type_, send_index(b), kRanks, s);
  }

  Buffers make_set(std::size_t i) const {
    Buffers b;
    const std::size_t h = hidden_;
    b.tokens = random_rows(num_tokens_ * h, 7 * i + 1);
    b.send = DeviceBuffer<std::byte>(blocks_bytes(counts_[0], type_, hidden_));
    b.send_table = DeviceBuffer<TransferBlock>(kRanks);
    b.receive = DeviceBuffer<std::byte>(blocks_bytes(receive_counts_, type_, hidden_));
    b.receive_table = upload(layout_blocks(receive_counts_, type_, hidden_, b.receive.data()));
    b.received = {b.receive_table.data(), kRanks, num_received_, num_copies_, type_, hidden_};
    b.expert_rows = DeviceBuffer<Bf16>(num_copies_ * h);
    b.expert_outputs = random_rows(type_ == RowType::kBf16 ? num_copies_ * h : 0, 7 * i + 2);
    b.results = DeviceBuffer<Bf16>(type_ == RowType::kBf16 ? num_received_ * h : 0);
    b.returned = random_rows(type_ == RowType::kBf16 ? num_sent_ * h : 0, 7 * i + 3);
    b.outputs = DeviceBuffer<Bf16>(type_ == RowType::kBf16 ? num_tokens_ * h : 0);
    b.item_rows = DeviceBuffer<std::uint32_t>(std::size_t{num_tokens_} * num_topk_);
    b.copy_slot = DeviceBuffer<std::uint32_t>(num_copies_);
    b.slot_copy = DeviceBuffer<std::uint32_t>(num_copies_);
    b.expert_begin = DeviceBuffer<std::uint32_t>(num_local_ + 1);
    return b;
  }

  // Lets every rank build and pack, and "sends" the block for rank 0 to every set's receive buffer.
  void fill_received() const {
    const Stream stream;
    const auto layout = layout_blocks(receive_counts_, type_, hidden_, nullptr);
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
      const DeviceBuffer<std::byte> send(blocks_bytes(counts_[rank], type_, hidden_));
      const DeviceBuffer<TransferBlock> table(kRanks);
      const DeviceBuffer<std::uint32_t> item_rows(std::size_t{num_tokens_} * num_topk_);
      const SendIndex rank_index{table.data(), item_rows.data(), nullptr, nullptr};
      build_send_index({experts_[rank].data(), weights_[rank].data(), num_tokens_, num_topk_},
                       targets(rank), type_, hidden_, send.data(), rank_index, workspace_.data(),
                       stream.get());
      pack(sets_[0].tokens.data(), num_tokens_, num_topk_, hidden_, type_, rank_index, kRanks,
           stream.get());
      stream.synchronize();
      const auto blocks = table.download();
      const TransferBlock& block = blocks[(kRanks - rank) % kRanks];
      expect(block.num_rows == receive_counts_[rank].num_rows &&
                 block.num_copies == receive_counts_[rank].num_copies,
             "index send: counts");
      for (const Buffers& b : sets_) {
        check(cudaMemcpy(b.receive.data() + reinterpret_cast<std::uintptr_t>(layout[rank].data),
                         block.data, block_bytes(type_, hidden_, block.num_rows, block.num_copies),
                         cudaMemcpyDeviceToDevice),
              "send");
        check(cudaStreamSynchronize(nullptr), "send");
      }
    }
    for (const Buffers& b : sets_) {
      index(b, stream.get());
      receive_index(b, stream.get());
    }
    stream.synchronize();
  }

  std::vector<float> row_of(const Bf16* rows, std::size_t row) const {
    std::vector<float> values;
    for (const Bf16 v : fetch(rows + row * hidden_, hidden_)) values.push_back(__bfloat162float(v));
    return values;
  }

  // Recomputes a few rows of every output on the CPU.
  void check_samples(const Buffers& b) const {
    const auto item_rows = b.item_rows.download();
    const auto table = b.send_table.download();
    for (std::uint32_t sample = 0; sample < 16; ++sample) {
      const std::size_t token = mix(sample) % num_tokens_;
      const auto x = row_of(b.tokens.data(), token);
      std::vector<double> sum(hidden_, 0.0);
      for (std::size_t j = 0; j < num_topk_; ++j) {
        const std::uint32_t row = item_rows[token * num_topk_ + j];
        if (row == kNoRow) continue;
        const auto& block = *std::find_if(table.begin(), table.end(), [&](const TransferBlock& t) {
          return row >= t.row_begin && row < t.row_begin + t.num_rows;
        });
        const auto bytes = fetch(block.data + (row - block.row_begin) * value_bytes(type_, hidden_),
                                 value_bytes(type_, hidden_));
        if (type_ == RowType::kBf16) {
          std::vector<float> packed(hidden_);
          for (std::size_t i = 0; i < hidden_; ++i) {
            std::uint16_t bits;
            std::memcpy(&bits, &bytes[2 * i], 2);
            const std::uint32_t wide = std::uint32_t{bits} << 16;
            std::memcpy(&packed[i], &wide, 4);
          }
          expect(packed == x, "pack");
          const auto y = row_of(b.returned.data(), row);
          for (std::size_t i = 0; i < hidden_; ++i) sum[i] += static_cast<double>(y[i]);
        } else {
          const auto expected = reference::quantise(x);
          std::size_t different = 0;
          for (std::size_t i = 0; i < hidden_; ++i) {
            if (std::to_integer<std::uint8_t>(bytes[i]) != expected.values[i]) ++different;
          }
          expect(different == 0, "pack fp8");
        }
      }
      if (type_ == RowType::kBf16) {
        const std::vector<float> expected(sum.begin(), sum.end());
        expect(reference::relative_error(row_of(b.outputs.data(), token), expected) < 1.0 / 256,
               "combine");
      }
    }
    const auto copy_slot = b.copy_slot.download();
    const auto blocks = b.receive_table.download();
    for (const TransferBlock& block : blocks) {
      if (block.num_rows == 0) continue;
      const auto bytes =
          fetch(block.data, block_bytes(type_, hidden_, block.num_rows, block.num_copies));
      for (std::uint32_t sample = 0; sample < 4; ++sample) {
        const auto row = static_cast<std::uint32_t>(mix(sample) % block.num_rows);
        std::uint32_t word;
        std::memcpy(
            &word, &bytes[words_offset(type_, hidden_, block.num_rows, block.num_copies) + 4 * row],
            4);
        std::vector<double> sum(hidden_, 0.0);
        for (std::uint32_t c = 0; c < word_num_copies(word); ++c) {
          const std::uint32_t copy = word_copy_begin(word) + c;
          const std::uint32_t slot = copy_slot[block.copy_begin + copy];
          const auto expanded = row_of(b.expert_rows.data(), slot);
          if (type_ == RowType::kBf16) {
            std::vector<float> values;
            for (std::size_t i = 0; i < hidden_; ++i) {
              std::uint16_t bits;
              std::memcpy(&bits, &bytes[(std::size_t{row} * hidden_ + i) * 2], 2);
              const std::uint32_t wide = std::uint32_t{bits} << 16;
              float value;
              std::memcpy(&value, &wide, 4);
              values.push_back(value);
            }
            expect(values == expanded, "expand");
            Copy entry;
            std::memcpy(
                &entry,
                &bytes[copies_offset(type_, hidden_, block.num_rows) + 8 * std::size_t{copy}], 8);
            const auto y = row_of(b.expert_outputs.data(), slot);
            for (std::size_t i = 0; i < hidden_; ++i) {
              sum[i] += static_cast<double>(entry.weight) * static_cast<double>(y[i]);
            }
          } else {
            std::vector<float> values;
            for (std::size_t i = 0; i < hidden_; ++i) {
              float scale;
              std::memcpy(
                  &scale,
                  &bytes[scales_offset(type_, hidden_, block.num_rows, block.num_copies) +
                         4 * (std::size_t{row} * (hidden_ / kScaleGroup) + i / kScaleGroup)],
                  4);
              values.push_back(
                  reference::round_to_bf16(reference::from_e4m3(std::to_integer<std::uint8_t>(
                                               bytes[std::size_t{row} * hidden_ + i])) *
                                           scale));
            }
            expect(values == expanded, "expand fp8");
          }
        }
        if (type_ == RowType::kBf16) {
          const std::vector<float> expected(sum.begin(), sum.end());
          expect(reference::relative_error(row_of(b.results.data(), block.row_begin + row),
                                           expected) < 1.0 / 256,
                 "merge");
        }
      }
    }
  }

  std::uint32_t hidden_;
  RowType type_;
  std::uint32_t num_tokens_;
  std::uint32_t num_topk_;
  std::uint32_t num_experts_ = 0;
  std::uint32_t num_local_ = 0;
  std::uint32_t num_sent_ = 0;
  std::uint32_t num_received_ = 0;
  std::uint32_t num_copies_ = 0;
  std::vector<Routing> routing_;                  // [kRanks]
  std::vector<std::vector<BlockCounts>> counts_;  // [kRanks][position]
  std::vector<BlockCounts> receive_counts_;       // [kRanks]
  std::vector<DeviceBuffer<std::uint16_t>> experts_;
  std::vector<DeviceBuffer<float>> weights_;
  DeviceBuffer<std::uint16_t> expert_dest_;
  DeviceBuffer<std::uint16_t> expert_local_;
  DeviceBuffer<std::byte> workspace_;
  std::vector<Buffers> sets_;
};

// --- report -------------------------------------------------------------------------------------

void write_json(const std::string& path, const Routing& trace, double copy_bandwidth,
                const std::vector<Line>& lines, const std::string& command) {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const std::string temporary = path + ".tmp";
  std::FILE* file = std::fopen(temporary.c_str(), "w");
  if (file == nullptr) throw std::runtime_error(temporary + ": cannot be written");
  const std::string name = trace.origin.substr(trace.origin.find_last_of('/') + 1);
  std::fprintf(file,
               "{\n  \"schema_version\": 1,\n  \"gpu\": \"%s\",\n  \"multiprocessors\": %d,\n"
               "  \"l2_bytes\": %d,\n  \"cuda_driver_api\": %d,\n  \"cuda_runtime\": %d,\n"
               "  \"nvcc\": \"%d.%d.%d\",\n  \"command\": \"%s\",\n  \"routing\": \"%s\",\n"
               "  \"routing_tokens\": %u,\n  \"num_topk\": %u,\n  \"num_experts\": %u,\n"
               "  \"ranks\": %u,\n  \"copy_bytes_per_s\": %.6g,\n  \"rows\": [\n",
               device.name, device.multiProcessorCount, device.l2CacheSize, driver, runtime,
               __CUDACC_VER_MAJOR__, __CUDACC_VER_MINOR__, __CUDACC_VER_BUILD__, command.c_str(),
               name.c_str(), trace.num_tokens, trace.num_topk, trace.num_experts, kRanks,
               copy_bandwidth);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Line& line = lines[i];
    std::fprintf(file,
                 "    {\"kernel\": \"%s\", \"hidden\": %u, \"tokens\": %u, \"bytes\": %.0f, "
                 "\"floor_s\": %.6g, \"time_s\": %.6g, \"same_size_copy_s\": %.6g}%s\n",
                 line.kernel.c_str(), line.hidden, line.num_tokens, line.bytes,
                 line.bytes / copy_bandwidth, line.time_s, line.copy_s,
                 i + 1 < lines.size() ? "," : "");
  }
  std::fprintf(file, "  ]\n}\n");
  if (std::fclose(file) != 0 || std::rename(temporary.c_str(), path.c_str()) != 0) {
    throw std::runtime_error(path + ": cannot be written");
  }
}

int run(int argc, char** argv) {
  std::string routing_path;
  std::string json_path;
  bool quick = false;
  std::string command = "bench_kernels";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::string shown = argument.substr(argument.find_last_of('/') + 1);
    command += " " + shown;
    if (argument == "--json" && i + 1 < argc) {
      json_path = argv[++i];
      command += " " + json_path.substr(json_path.find_last_of('/') + 1);
    } else if (argument == "--quick") {
      quick = true;
    } else if (argument == "--help" || argument.starts_with("-")) {
      std::fprintf(stderr, "usage: bench_kernels [ROUTING] [--json OUT] [--quick]\n");
      return argument == "--help" ? 0 : 2;
    } else {
      routing_path = argument;
    }
  }
  if (num_gpus() == 0) {
    std::fprintf(stderr, "bench_kernels: no GPU on this machine: skipped\n");
    return 0;
  }
  const Routing trace = routing_path.empty() ? draw_uniform() : read_flat(routing_path);
  const Stream stream;
  const int replays = quick ? 5 : 15;
  const double copied = static_cast<double>(std::size_t{4} << 30);
  const double copy_bandwidth = copied / time_copy(stream, replays, std::size_t{4} << 30);

  std::vector<Line> lines;
  for (const std::uint32_t hidden : {2048U, 4096U, 7168U}) {
    for (const std::uint32_t num_tokens : {4096U, 8192U, 16384U, 32768U}) {
      if (quick && num_tokens != 4096 && num_tokens != 16384) continue;
      for (const RowType type : {RowType::kBf16, RowType::kFp8}) {
        const auto more = Case(trace, hidden, num_tokens, type).run(stream, replays);
        lines.insert(lines.end(), more.begin(), more.end());
      }
    }
  }
  if (!json_path.empty()) write_json(json_path, trace, copy_bandwidth, lines, command);

  std::printf("routing %s: %u tokens, top-%u of %u experts; %u ranks, contiguous\n",
              trace.origin.c_str(), trace.num_tokens, trace.num_topk, trace.num_experts, kRanks);
  std::printf("copy bandwidth (2 GiB read, 2 GiB written): %.0f GB/s\n", copy_bandwidth * 1e-9);
  std::printf("%-14s %6s %6s %9s %9s %9s %6s %9s\n", "kernel", "hidden", "tokens", "MB", "floor us",
              "time us", "ratio", "same-size");
  double lowest = 1e9;
  for (const Line& line : lines) {
    if (line.bytes > 0) {
      const double ratio = line.bytes / copy_bandwidth / line.time_s;
      lowest = std::min(lowest, ratio);
      std::printf("%-14s %6u %6u %9.1f %9.1f %9.1f %6.3f %9.3f\n", line.kernel.c_str(), line.hidden,
                  line.num_tokens, line.bytes * 1e-6, line.bytes / copy_bandwidth * 1e6,
                  line.time_s * 1e6, ratio, line.copy_s / line.time_s);
    } else {
      // Against the pack that follows in the list with the same size.
      const Line* pack_line = &line;
      while (!pack_line->kernel.starts_with("pack")) ++pack_line;
      std::printf("%-14s %6u %6u %9s %9s %9.1f %6.3f of %s\n", line.kernel.c_str(), line.hidden,
                  line.num_tokens, "", "", line.time_s * 1e6, line.time_s / pack_line->time_s,
                  pack_line->kernel.c_str());
    }
  }
  std::printf("lowest ratio: %.3f\n", lowest);
  return 0;
}

}  // namespace
}  // namespace coterie::kernels

int main(int argc, char** argv) {
  try {
    return coterie::kernels::run(argc, argv);
  } catch (const coterie::kernels::CudaError& error) {
    std::fprintf(stderr, "bench_kernels: error: %s\n", error.what());
    return 3;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_kernels: error: %s\n", error.what());
    return 2;
  }
}
