// The one-sided kernels. What they move is compared byte for byte with what `pack` and `combine` make
// of the same index, which pipeline_test.cpp compares with the CPU reference; the blocks of other
// ranks are buffers of this process. Outputs are poisoned before.

#include "kernels/direct.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "core/random.hpp"
#include "kernels/rows.hpp"
#include "tests/kernels/gpu.hpp"

namespace coterie::kernels {
namespace {

constexpr std::size_t kSharedOfH100 = 232448;  // CUDA programming guide, compute capability 9.0

// Epochs count modulo 2^32: one step beyond the largest number is zero.
TEST(DirectFlags, EpochsWrapAround) {
  EXPECT_TRUE(has_reached(5, 5));
  EXPECT_TRUE(has_reached(6, 5));
  EXPECT_FALSE(has_reached(4, 5));
  EXPECT_TRUE(has_reached(0, 0xffffffffU));
  EXPECT_FALSE(has_reached(0xffffffffU, 0));
}

// Flags, counters and counts of all channels must not share a word.
TEST(DirectFlags, NothingOverlaps) {
  constexpr std::uint32_t kRanks = 3;
  constexpr std::uint32_t kChannels = 5;
  std::set<std::size_t> words;
  std::size_t num_words = 0;
  const auto add = [&](std::size_t offset) {
    EXPECT_EQ(offset % 4, 0U);
    EXPECT_LT(offset, flags_bytes(kRanks, kChannels));
    words.insert(offset);
    ++num_words;
  };
  for (std::uint32_t c = 0; c < kChannels; ++c) {
    for (std::uint32_t r = 0; r < kRanks; ++r) add(flag_offset(kRanks, c, r));
    add(counter_offset(kRanks, c));
    add(counter_offset(kRanks, c) + 4);
  }
  for (const std::uint32_t epoch : {6U, 7U}) {
    for (std::uint32_t r = 0; r < kRanks; ++r) {
      add(counts_offset(kRanks, kChannels, epoch, r));
      add(counts_offset(kRanks, kChannels, epoch, r) + 4);
    }
  }
  EXPECT_EQ(words.size(), num_words);
}

// 7168 values are 14336 bytes in BF16: 16 rows are 229376 bytes, more than what is left beside 1 KiB
// of barriers and the places would allow for 17.
TEST(DirectRings, FitIntoSharedMemory) {
  const RingShape put = put_ring(RowType::kBf16, 7168, false, 8, kSharedOfH100);
  EXPECT_EQ(put.num_warps * put.num_slots, 16U);
  // Seven steps of 1024 values and 8 scales are 7392 bytes, rounded up to 7424: 31 would fit, 24
  // warps have one each. With hidden 2048, 2176 bytes, there is room for two each.
  const RingShape fp8 = put_ring(RowType::kFp8, 7168, true, 8, kSharedOfH100);
  EXPECT_EQ(fp8.num_warps, 24U);
  EXPECT_EQ(fp8.num_slots, 1U);
  EXPECT_EQ(put_ring(RowType::kFp8, 2048, true, 8, kSharedOfH100).num_slots, 2U);
  // Four chunks of 1792 values, 3584 bytes: 64 of them are 229376 bytes.
  const RingShape pull = pull_ring(7168, 8, kSharedOfH100);
  EXPECT_EQ(pull.num_warps, 16U);
  EXPECT_EQ(pull.num_slots, 4U);
  for (const std::uint32_t hidden : {8U, 128U, 2048U, 5120U, 7168U, 65536U}) {
    const RingShape ring = put_ring(RowType::kBf16, hidden, false, 512, kSharedOfH100);
    EXPECT_GE(ring.num_warps, 1U);
    EXPECT_GE(ring.num_slots, 1U);
    EXPECT_LE(std::size_t{ring.num_warps} * ring.num_slots * hidden * 2, kSharedOfH100);
  }
  // A row of 2^18 bytes fits nowhere.
  EXPECT_THROW(put_ring(RowType::kBf16, 1U << 17, false, 8, kSharedOfH100), std::invalid_argument);
}

// State that the device sees, and flags of `num_ranks` ranks in this process.
class Flags {
 public:
  explicit Flags(std::uint32_t num_ranks) : num_ranks_(num_ranks) {
    check(cudaHostAlloc(reinterpret_cast<void**>(&state), sizeof(WaitState), cudaHostAllocMapped),
          "cudaHostAlloc");
    *state = {};
    check(cudaHostGetDevicePointer(reinterpret_cast<void**>(&device_state_), state, 0),
          "cudaHostGetDevicePointer");
    std::vector<std::byte*> regions;
    for (std::uint32_t r = 0; r < num_ranks; ++r) {
      memory_.emplace_back(flags_bytes(num_ranks, 1));
      memory_.back().fill_bytes(0);
      regions.push_back(memory_.back().data());
      std::vector<std::uint32_t> peers;
      for (std::uint32_t p = 0; p < num_ranks; ++p) {
        if (p != r) peers.push_back(p);
      }
      peers_.emplace_back(std::span<const std::uint32_t>(peers));
    }
    regions_ = DeviceBuffer<std::byte*>(std::span<std::byte* const>(regions));
  }
  ~Flags() { cudaFreeHost(state); }
  Flags(const Flags&) = delete;
  Flags& operator=(const Flags&) = delete;
  [[nodiscard]] FlagChannel of(std::uint32_t rank, std::uint64_t deadline_ns) const {
    return {regions_.data(), peers_[rank].data(), num_ranks_ - 1, rank, num_ranks_, 0, 1,
            device_state_,   deadline_ns};
  }
  // Epoch and blocks that are done.
  [[nodiscard]] std::pair<std::uint32_t, std::uint32_t> counters(std::uint32_t rank) const {
    std::uint32_t words[2];
    check(cudaMemcpy(words, memory_[rank].data() + counter_offset(num_ranks_, 0), sizeof words,
                     cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    return {words[0], words[1]};
  }

  WaitState* state = nullptr;

 private:
  std::uint32_t num_ranks_;
  WaitState* device_state_ = nullptr;
  std::vector<DeviceBuffer<std::byte>> memory_;
  std::vector<DeviceBuffer<std::uint32_t>> peers_;
  DeviceBuffer<std::byte*> regions_;
};

constexpr std::uint64_t kSecond_ns = 1000000000;

bool too_old() {
  int device = 0;
  int major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major < 9;
}
#define COTERIE_NEEDS_BULK_COPIES() \
  COTERIE_NEEDS_GPU();              \
  if (too_old()) GTEST_SKIP() << "no bulk copies before compute capability 9.0"

TEST(Direct, RanksExchangeCounts) {
  COTERIE_NEEDS_GPU();
  const Flags flags(2);
  const Stream streams[2];
  std::vector<DeviceBuffer<std::uint32_t>> out;
  std::vector<DeviceBuffer<std::uint32_t>> in;
  for (std::uint32_t r = 0; r < 2; ++r) {
    const std::vector<std::uint32_t> counts{10 * r, 10 * r + 1, 10 * r + 2, 10 * r + 3};
    out.emplace_back(std::span<const std::uint32_t>(counts));
    in.push_back(poisoned<std::uint32_t>(4));
  }
  for (std::uint32_t epoch = 1; epoch <= 3; ++epoch) {
    for (std::uint32_t r = 0; r < 2; ++r) {
      synchronise(flags.of(r, 10 * kSecond_ns), out[r].data(), in[r].data(), streams[r].get());
    }
    for (const Stream& stream : streams) stream.synchronize();
    EXPECT_EQ(flags.counters(0).first, epoch);
    EXPECT_EQ(flags.counters(1).first, epoch);
  }
  // Rank 0's entry for rank 1 is what rank 1 had for rank 0, and the other way round.
  EXPECT_EQ(in[0].download(), (std::vector<std::uint32_t>{~0U, ~0U, 10, 11}));
  EXPECT_EQ(in[1].download(), (std::vector<std::uint32_t>{2, 3, ~0U, ~0U}));
  EXPECT_EQ(flags.state->fault, 0U);
}

// The epoch is in device memory: a graph of two synchronisations that is launched three times has
// come to epoch 6 at both ranks.
TEST(Direct, ACapturedGraphReplays) {
  COTERIE_NEEDS_GPU();
  const Flags flags(2);
  const Stream streams[2];
  cudaGraphExec_t graphs[2] = {};
  for (std::uint32_t r = 0; r < 2; ++r) {
    check(cudaStreamBeginCapture(streams[r].get(), cudaStreamCaptureModeGlobal),
          "cudaStreamBeginCapture");
    for (int i = 0; i < 2; ++i) {
      synchronise(flags.of(r, 10 * kSecond_ns), nullptr, nullptr, streams[r].get());
    }
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(streams[r].get(), &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&graphs[r], graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  for (int launch = 0; launch < 3; ++launch) {
    for (std::uint32_t r = 0; r < 2; ++r) {
      check(cudaGraphLaunch(graphs[r], streams[r].get()), "cudaGraphLaunch");
    }
  }
  for (const Stream& stream : streams) stream.synchronize();
  EXPECT_EQ(flags.counters(0).first, 6U);
  EXPECT_EQ(flags.counters(1).first, 6U);
  EXPECT_EQ(flags.state->fault, 0U);
  for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
}

TEST(Direct, AWaitGivesUpAtItsDeadlineAndSaysForWhom) {
  COTERIE_NEEDS_GPU();
  const Flags flags(3);
  const Stream stream;
  synchronise(flags.of(1, kSecond_ns / 20), nullptr, nullptr, stream.get());
  stream.synchronize();
  EXPECT_EQ(flags.state->fault, 1U);
  EXPECT_EQ(flags.state->stop, 1U);
  EXPECT_EQ(flags.state->channel, 0U);
  EXPECT_NE(flags.state->peer, 1U);
  EXPECT_LT(flags.state->peer, 3U);
  EXPECT_EQ(flags.state->epoch, 1U);
  EXPECT_EQ(flags.state->seen, 0U);
}

struct Shape {
  RowType type;
  std::uint32_t hidden, num_tokens, num_topk, num_dests, sms;
  bool row_per_copy;
};
class DirectRows : public testing::TestWithParam<Shape> {};

TEST_P(DirectRows, PutWritesWhatPackWritesAndPullSumsWhatCombineSums) {
  COTERIE_NEEDS_BULK_COPIES();
  const Shape shape = GetParam();
  constexpr std::uint32_t kExperts = 64;
  constexpr std::uint32_t kRelayed = 2;  // destinations of a second hop
  const Stream stream;
  Random random(11);
  std::vector<std::uint16_t> experts;
  std::vector<float> weights;
  for (std::uint32_t t = 0; t < shape.num_tokens; ++t) {
    std::vector<std::uint16_t> all(kExperts);
    std::iota(all.begin(), all.end(), std::uint16_t{0});
    for (std::uint32_t j = 0; j < shape.num_topk; ++j) {
      std::swap(all[j], all[j + random.index(kExperts - j)]);
      experts.push_back(all[j]);
      weights.push_back(static_cast<float>(random.uniform()));
    }
  }
  // Experts are dealt to the destinations in turn.
  std::vector<std::uint16_t> dest;
  for (std::uint32_t e = 0; e < kExperts; ++e) {
    dest.push_back(static_cast<std::uint16_t>(e % shape.num_dests));
  }
  std::vector<float> values(std::size_t{shape.num_tokens} * shape.hidden);
  for (float& value : values) value = static_cast<float>(random.normal());
  const DeviceBuffer<Bf16> tokens{std::span<const Bf16>(to_device_type(values))};
  const DeviceBuffer<std::uint16_t> device_experts{std::span<const std::uint16_t>(experts)};
  const DeviceBuffer<float> device_weights{std::span<const float>(weights)};
  const DeviceBuffer<std::uint16_t> device_dest{std::span<const std::uint16_t>(dest)};
  const TokenRouting routing{device_experts.data(), device_weights.data(), shape.num_tokens,
                             shape.num_topk};
  const Targets targets{device_dest.data(), kExperts, shape.num_dests, 1 % shape.num_dests,
                        shape.row_per_copy};
  const std::uint32_t num_copies = shape.num_tokens * shape.num_topk;
  const std::size_t room = std::size_t{num_copies} * block_bytes(shape.type, shape.hidden, 1, 1) +
                           kBlockAlignment * std::max(shape.num_dests, kRelayed);
  struct Built {
    DeviceBuffer<std::byte> buffer;
    DeviceBuffer<TransferBlock> table;
    DeviceBuffer<std::uint32_t> item_rows, row_item;
    DeviceBuffer<std::byte> workspace;
    SendIndex index{};
  };
  const auto make_room = [&](std::uint32_t num_dests) {
    Built built{poisoned<std::byte>(room),
                poisoned<TransferBlock>(num_dests),
                poisoned<std::uint32_t>(num_copies),
                poisoned<std::uint32_t>(num_copies),
                poisoned<std::byte>(index_workspace_bytes(num_copies, num_dests)),
                {}};
    built.index = {built.table.data(), built.item_rows.data(), built.row_item.data(), nullptr};
    return built;
  };
  const auto build = [&] {
    Built built = make_room(shape.num_dests);
    build_send_index(routing, targets, shape.type, shape.hidden, built.buffer.data(), built.index,
                     built.workspace.data(), stream.get());
    return built;
  };
  const Built packed = build();
  pack(tokens.data(), shape.num_tokens, shape.num_topk, shape.hidden, shape.type, packed.index,
       shape.num_dests, stream.get());
  const Built put_from = build();
  stream.synchronize();
  const std::vector<TransferBlock> blocks = packed.table.download();
  const std::vector<TransferBlock> own_blocks = put_from.table.download();

  // Position 0 stays where its index was built.
  std::vector<DeviceBuffer<std::byte>> peers;
  std::vector<std::byte*> places;
  for (std::uint32_t p = 0; p < shape.num_dests; ++p) {
    peers.push_back(poisoned<std::byte>(
        block_stride(shape.type, shape.hidden, blocks[p].num_rows, blocks[p].num_copies) +
        kBlockAlignment));
    places.push_back(p == 0 ? own_blocks[0].data : peers[p].data());
  }
  const DeviceBuffer<std::byte*> device_places{std::span<std::byte* const>(places)};
  const Flags flags(1);
  put(tokens.data(), routing, shape.hidden, shape.type, put_from.index,
      {device_places.data(), shape.num_dests}, flags.of(0, kSecond_ns), shape.sms, stream.get());
  stream.synchronize();
  EXPECT_EQ(flags.counters(0), (std::pair<std::uint32_t, std::uint32_t>{1, 0}));
  const auto bytes_at = [](const std::byte* data, std::size_t size) {
    std::vector<std::byte> bytes(size);
    check(cudaMemcpy(bytes.data(), data, size, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return bytes;
  };
  for (std::uint32_t p = 0; p < shape.num_dests; ++p) {
    const std::size_t size =
        block_bytes(shape.type, shape.hidden, blocks[p].num_rows, blocks[p].num_copies);
    EXPECT_EQ(bytes_at(places[p], size), bytes_at(blocks[p].data, size)) << "block " << p;
    if (p == 0) continue;
    const auto behind = bytes_at(places[p] + size, peers[p].size() - size);
    EXPECT_TRUE(
        std::all_of(behind.begin(), behind.end(), [](std::byte b) { return b == std::byte{0xff}; }))
        << "behind block " << p;
  }

  // Own rows that stay among the tokens: the other blocks are the same, and the expansion makes of the
  // own one what it makes of the packed one. Every copy has the slot of its number.
  const Built kept = build();
  stream.synchronize();
  places[0] = kept.table.download()[0].data;
  for (std::uint32_t p = 1; p < shape.num_dests; ++p) peers[p].fill_bytes(0xff);
  const DeviceBuffer<std::byte*> places_beside{std::span<std::byte* const>(places)};
  put(tokens.data(), routing, shape.hidden, shape.type, kept.index,
      {places_beside.data(), shape.num_dests, true}, flags.of(0, kSecond_ns), shape.sms,
      stream.get());
  stream.synchronize();
  for (std::uint32_t p = 1; p < shape.num_dests; ++p) {
    const std::size_t size =
        block_bytes(shape.type, shape.hidden, blocks[p].num_rows, blocks[p].num_copies);
    EXPECT_EQ(bytes_at(places[p], size), bytes_at(blocks[p].data, size)) << "block " << p;
  }
  std::vector<std::uint32_t> slots(blocks[0].num_copies);
  std::iota(slots.begin(), slots.end(), 0U);
  const DeviceBuffer<std::uint32_t> copy_slot{std::span<const std::uint32_t>(slots)};
  const auto expanded = [&](std::byte* data, const RowsInPlace& in_place) {
    TransferBlock own = blocks[0];
    own.data = data;
    const DeviceBuffer<TransferBlock> table{std::span<const TransferBlock>(&own, 1)};
    const auto rows = poisoned<Bf16>(slots.size() * shape.hidden);
    expand({table.data(), 1, own.num_rows, own.num_copies, shape.type, shape.hidden, in_place},
           copy_slot.data(), rows.data(), stream.get());
    stream.synchronize();
    return to_float(rows.download());
  };
  if (blocks[0].num_rows > 0) {
    EXPECT_EQ(expanded(places[0], {tokens.data(), kept.row_item.data(), 0}),
              expanded(blocks[0].data, {}));
  }

  // A second hop, for which the packed blocks are what has come: a put of it writes what `forward` does.
  std::vector<std::uint16_t> next;
  for (std::uint32_t e = 0; e < kExperts; ++e) {
    next.push_back(static_cast<std::uint16_t>(e / shape.num_dests % kRelayed));
  }
  const DeviceBuffer<std::uint16_t> device_next{std::span<const std::uint16_t>(next)};
  const ReceivedRows arrived{packed.table.data(),
                             shape.num_dests,
                             blocks.back().row_begin + blocks.back().num_rows,
                             num_copies,
                             shape.type,
                             shape.hidden,
                             {}};
  const auto build_second = [&] {
    Built built = make_room(kRelayed);
    build_forward_index(arrived, {device_next.data(), kExperts, kRelayed, 0, false},
                        built.buffer.data(), built.index, built.workspace.data(), stream.get());
    return built;
  };
  const Built forwarded = build_second();
  forward(arrived, forwarded.index, kRelayed, stream.get());
  const Built put_on = build_second();
  stream.synchronize();
  const std::vector<TransferBlock> relayed = forwarded.table.download();
  std::vector<DeviceBuffer<std::byte>> next_peers;
  std::vector<std::byte*> next_places{put_on.table.download()[0].data};
  for (std::uint32_t p = 1; p < kRelayed; ++p) {
    next_peers.push_back(poisoned<std::byte>(
        block_stride(shape.type, shape.hidden, relayed[p].num_rows, relayed[p].num_copies) +
        kBlockAlignment));
    next_places.push_back(next_peers.back().data());
  }
  const DeviceBuffer<std::byte*> device_next_places{std::span<std::byte* const>(next_places)};
  put(arrived, put_on.index, {device_next_places.data(), kRelayed}, flags.of(0, kSecond_ns),
      shape.sms, stream.get());
  stream.synchronize();
  for (std::uint32_t p = 0; p < kRelayed; ++p) {
    const std::size_t size =
        block_bytes(shape.type, shape.hidden, relayed[p].num_rows, relayed[p].num_copies);
    EXPECT_EQ(bytes_at(next_places[p], size), bytes_at(relayed[p].data, size)) << "relayed " << p;
  }

  // Results, where the blocks' rows would be computed.
  const std::uint32_t num_rows = blocks.back().row_begin + blocks.back().num_rows;
  std::vector<float> results(std::size_t{num_rows} * shape.hidden);
  for (float& value : results) value = static_cast<float>(random.normal());
  const DeviceBuffer<Bf16> returned{std::span<const Bf16>(to_device_type(results))};
  std::vector<const Bf16*> from;
  for (const TransferBlock& block : blocks) {
    from.push_back(returned.data() + std::size_t{block.row_begin} * shape.hidden);
  }
  const DeviceBuffer<const Bf16*> device_from{std::span<const Bf16* const>(from)};
  for (const Bf16* addend :
       {static_cast<const Bf16*>(nullptr), static_cast<const Bf16*>(tokens.data())}) {
    const auto expected = poisoned<Bf16>(values.size());
    const auto pulled = poisoned<Bf16>(values.size());
    combine(returned.data(), shape.num_tokens, shape.num_topk, shape.hidden, packed.index.item_rows,
            expected.data(), stream.get(), addend);
    pull(routing, shape.hidden, put_from.index, {device_from.data(), shape.num_dests},
         pulled.data(), addend, shape.sms, stream.get());
    stream.synchronize();
    EXPECT_EQ(to_float(pulled.download()), to_float(expected.download()));
  }
}

// Few and many rows per warp (FP8 rows of which are worked on in parts), slots that are used once and often, odd sizes, one destination, every
// destination, a row for each copy.
INSTANTIATE_TEST_SUITE_P(Shapes, DirectRows,
                         testing::Values(Shape{RowType::kBf16, 128, 1, 1, 1, 1, false},
                                         Shape{RowType::kBf16, 8, 70, 4, 3, 2, false},
                                         Shape{RowType::kBf16, 2048, 333, 6, 4, 3, false},
                                         Shape{RowType::kBf16, 2056, 100, 6, 4, 3, true},
                                         Shape{RowType::kBf16, 7168, 301, 8, 2, 4, false},
                                         Shape{RowType::kFp8, 128, 257, 6, 4, 2, false},
                                         Shape{RowType::kFp8, 2048, 333, 6, 8, 3, true},
                                         Shape{RowType::kFp8, 7168, 301, 8, 2, 4, false},
                                         Shape{RowType::kFp8, 7168, 40, 8, 4, 8, false},
                                         Shape{RowType::kFp8, 4096, 200, 6, 4, 2, false},
                                         Shape{RowType::kFp8, 5120, 200, 6, 4, 2, false},
                                         Shape{RowType::kFp8, 5248, 1, 8, 3, 16, false},
                                         Shape{RowType::kFp8, 1152, 1000, 6, 8, 3, false},
                                         Shape{RowType::kFp8, 20480, 30, 6, 4, 2, false},
                                         Shape{RowType::kBf16, 5120, 64, 31, 16, 8, false}));

}  // namespace
}  // namespace coterie::kernels
