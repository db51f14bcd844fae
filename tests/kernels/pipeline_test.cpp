// Dispatch and combine of one layer for all ranks of a group, on one GPU: where a message would
// travel, the receiver's block table points at the sender's block. After every kernel its whole
// output is compared with the CPU reference; outputs are poisoned before, and the padding between
// blocks must stay poisoned.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "core/random.hpp"
#include "kernels/index.hpp"
#include "kernels/reference.hpp"
#include "kernels/rows.hpp"
#include "tests/kernels/gpu.hpp"

namespace coterie::kernels {
namespace {

struct Scenario {
  std::string name;
  std::uint32_t hidden = 128;
  std::uint32_t num_topk = 6;
  std::uint32_t num_experts = 64;
  std::vector<std::uint32_t> tokens;  // per rank
  std::uint32_t ranks_per_node = 1;
  RowType type = RowType::kBf16;
  bool row_per_copy = false;  // standard
  bool hierarchical = false;
  // Experts at or above this id are never chosen: empty experts, and with few, empty ranks.
  std::uint32_t num_used_experts = 64;
  std::uint64_t seed = 1;
};
std::ostream& operator<<(std::ostream& out, const Scenario& scenario) {
  return out << scenario.name;
}

// One rank's rows of one hop, on the device, with the reference's view of them.
struct Sent {
  reference::SendRows expected;
  DeviceBuffer<std::byte> buffer;
  DeviceBuffer<TransferBlock> table;
  DeviceBuffer<std::uint32_t> item_rows;
  std::vector<TransferBlock> blocks;
  std::vector<std::vector<reference::BlockRow>> rows;  // as decoded from the device, per block
  [[nodiscard]] std::uint32_t num_rows() const {
    return blocks.back().row_begin + blocks.back().num_rows;
  }
};

struct Received {
  DeviceBuffer<TransferBlock> table;
  ReceivedRows view{};
  std::vector<reference::BlockRow> rows;
  std::vector<Copy> copies;
};

bool same_copies(std::span<const Copy> a, std::span<const Copy> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Copy& x, const Copy& y) {
    return x.expert == y.expert && x.weight == y.weight;
  });
}

class Pipeline : public testing::TestWithParam<Scenario> {
 protected:
  void SetUp() override {
    COTERIE_NEEDS_GPU();
    stream_.emplace();
  }
  const Scenario& scenario() const { return GetParam(); }
  std::uint32_t num_ranks() const { return static_cast<std::uint32_t>(scenario().tokens.size()); }
  // Contiguous placement.
  std::uint32_t rank_of(std::uint32_t expert) const {
    return expert * num_ranks() / scenario().num_experts;
  }
  std::vector<std::uint16_t> table_of(auto function) const {
    std::vector<std::uint16_t> table;
    for (std::uint32_t e = 0; e < scenario().num_experts; ++e) {
      table.push_back(static_cast<std::uint16_t>(function(e)));
    }
    return table;
  }
  std::vector<float> draw(std::size_t size) {
    std::vector<float> values(size);
    for (float& value : values) {
      value = reference::round_to_bf16(static_cast<float>(random_.normal()));
    }
    return values;
  }

  // Runs `build` (which fills buffer, table, lists) and checks the index against the reference.
  template <class Build>
  Sent build_index(std::span<const reference::Item> items, reference::Targets targets,
                   const Build& build) {
    Sent sent;
    sent.expected = reference::send_rows(items, targets);
    std::vector<BlockCounts> counts;
    std::vector<std::uint32_t> row_item;
    std::vector<std::uint32_t> row_mask;
    for (const auto& block : sent.expected.blocks) {
      BlockCounts count{static_cast<std::uint32_t>(block.size()), 0};
      for (const auto& row : block) {
        count.num_copies += static_cast<std::uint32_t>(row.copies.size());
        row_item.push_back(row.item);
        row_mask.push_back(row.mask);
      }
      counts.push_back(count);
    }
    const auto num_copies = static_cast<std::uint32_t>(sent.expected.item_rows.size());
    sent.buffer =
        poisoned<std::byte>(blocks_bytes(counts, scenario().type, scenario().hidden) + 128);
    sent.table = poisoned<TransferBlock>(targets.num_dests);
    sent.item_rows = poisoned<std::uint32_t>(num_copies);
    auto device_row_item = poisoned<std::uint32_t>(row_item.size());
    auto device_row_mask = poisoned<std::uint32_t>(row_mask.size());
    const auto workspace =
        poisoned<std::byte>(index_workspace_bytes(num_copies, targets.num_dests));
    const DeviceBuffer<std::uint16_t> expert_dest{
        std::span<const std::uint16_t>(targets.expert_dest)};
    build(Targets{expert_dest.data(), scenario().num_experts, targets.num_dests, targets.first_dest,
                  targets.row_per_copy},
          sent.buffer.data(),
          SendIndex{sent.table.data(), sent.item_rows.data(), device_row_item.data(),
                    device_row_mask.data()},
          workspace.data());
    stream_->synchronize();

    sent.blocks = sent.table.download();
    const auto expected =
        layout_blocks(counts, scenario().type, scenario().hidden, sent.buffer.data());
    for (std::size_t p = 0; p < expected.size(); ++p) {
      EXPECT_EQ(sent.blocks[p].data, expected[p].data) << p;
      EXPECT_EQ(sent.blocks[p].row_begin, expected[p].row_begin) << p;
      EXPECT_EQ(sent.blocks[p].copy_begin, expected[p].copy_begin) << p;
      EXPECT_EQ(sent.blocks[p].num_rows, expected[p].num_rows) << p;
      EXPECT_EQ(sent.blocks[p].num_copies, expected[p].num_copies) << p;
    }
    EXPECT_EQ(sent.item_rows.download(), sent.expected.item_rows);
    EXPECT_EQ(device_row_item.download(), row_item);
    EXPECT_EQ(device_row_mask.download(), row_mask);
    return sent;
  }

  // Takes the filled send buffer apart and checks the copies and the padding.
  void decode(Sent& sent) {
    const auto bytes = sent.buffer.download();
    std::vector<char> covered(bytes.size(), 0);
    for (std::size_t p = 0; p < sent.blocks.size(); ++p) {
      const TransferBlock& block = sent.blocks[p];
      const auto offset = static_cast<std::size_t>(block.data - sent.buffer.data());
      const std::size_t size =
          block_bytes(scenario().type, scenario().hidden, block.num_rows, block.num_copies);
      std::fill_n(covered.begin() + static_cast<std::ptrdiff_t>(offset), size, 1);
      sent.rows.push_back(reference::decode_block(std::span(bytes).subspan(offset, size),
                                                  block.num_rows, scenario().type,
                                                  scenario().hidden));
      for (std::size_t r = 0; r < block.num_rows; ++r) {
        EXPECT_TRUE(same_copies(sent.rows[p][r].copies, sent.expected.blocks[p][r].copies))
            << "block " << p << " row " << r;
      }
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (covered[i] == 0) {
        ASSERT_EQ(bytes[i], std::byte{0xff}) << "padding at " << i;
      }
    }
  }

  // The table of a receiver of these blocks, and its content as sent.
  Received receive(std::span<const std::pair<const Sent*, std::size_t>> sources) {
    Received received;
    std::vector<TransferBlock> table;
    std::uint32_t num_rows = 0;
    std::uint32_t num_copies = 0;
    for (const auto& [sent, position] : sources) {
      TransferBlock block = sent->blocks[position];
      block.row_begin = num_rows;
      block.copy_begin = num_copies;
      num_rows += block.num_rows;
      num_copies += block.num_copies;
      table.push_back(block);
      for (const auto& row : sent->rows[position]) {
        received.rows.push_back(row);
        received.copies.insert(received.copies.end(), row.copies.begin(), row.copies.end());
      }
    }
    received.table = DeviceBuffer<TransferBlock>(std::span<const TransferBlock>(table));
    received.view = {received.table.data(),
                     static_cast<std::uint32_t>(table.size()),
                     num_rows,
                     num_copies,
                     scenario().type,
                     scenario().hidden};
    return received;
  }

  // Expands, lets "experts" answer with random rows, merges: returns the results of the rows.
  DeviceBuffer<Bf16> serve(const Received& received, std::uint32_t rank) {
    std::vector<std::uint32_t> hosted;
    for (std::uint32_t e = 0; e < scenario().num_experts; ++e) {
      if (rank_of(e) == rank) hosted.push_back(e);
    }
    std::vector<std::uint16_t> local(scenario().num_experts, 0xffff);
    for (std::size_t i = 0; i < hosted.size(); ++i) {
      local[hosted[i]] = static_cast<std::uint16_t>(i);
    }
    const auto num_local = static_cast<std::uint32_t>(hosted.size());
    const auto slots = reference::receive_slots(received.copies, local, num_local);

    const std::uint32_t num_copies = received.view.num_copies;
    const std::size_t hidden = scenario().hidden;
    const DeviceBuffer<std::uint16_t> device_local{std::span<const std::uint16_t>(local)};
    auto copy_slot = poisoned<std::uint32_t>(num_copies);
    auto slot_copy = poisoned<std::uint32_t>(num_copies);
    auto expert_begin = poisoned<std::uint32_t>(num_local + 1);
    const auto workspace = poisoned<std::byte>(index_workspace_bytes(num_copies, num_local));
    build_receive_index(received.view, device_local.data(), num_local,
                        {copy_slot.data(), slot_copy.data(), expert_begin.data()}, workspace.data(),
                        stream_->get());
    auto expert_rows = poisoned<Bf16>(num_copies * hidden);
    expand(received.view, copy_slot.data(), expert_rows.data(), stream_->get());
    stream_->synchronize();
    EXPECT_EQ(copy_slot.download(), slots.copy_slot);
    EXPECT_EQ(slot_copy.download(), slots.slot_copy);
    EXPECT_EQ(expert_begin.download(), slots.expert_begin);
    // Copies and slots are exact, and both sides dequantise by one product and one rounding.
    EXPECT_EQ(reference::relative_error(
                  to_float(expert_rows.download()),
                  reference::expand(received.rows, slots.copy_slot, scenario().hidden)),
              0.0);

    const auto answers = draw(num_copies * hidden);
    const DeviceBuffer<Bf16> outputs{std::span<const Bf16>(to_device_type(answers))};
    auto results = poisoned<Bf16>(received.view.num_rows * hidden);
    merge(received.view, copy_slot.data(), outputs.data(), results.data(), stream_->get());
    stream_->synchronize();
    // One rounding to BF16 (at most 2^-9 relative) after sums in float.
    EXPECT_LT(reference::relative_error(
                  to_float(results.download()),
                  reference::merge(received.rows, slots.copy_slot, answers, scenario().hidden)),
              1.0 / 256);
    return results;
  }

  // Copies rows [begin, begin + count) of `results` to where `returned` expects them.
  void give_back(const DeviceBuffer<Bf16>& results, std::size_t begin, const TransferBlock& block,
                 const DeviceBuffer<Bf16>& returned) {
    const std::size_t hidden = scenario().hidden;
    if (block.num_rows == 0) return;
    check(cudaMemcpy(returned.data() + block.row_begin * hidden, results.data() + begin * hidden,
                     block.num_rows * hidden * sizeof(Bf16), cudaMemcpyDeviceToDevice),
          "give back");
    check(cudaStreamSynchronize(nullptr), "give back");  // device-to-device copies return early
  }

  Random random_{GetParam().seed};
  std::optional<Stream> stream_;
};

TEST_P(Pipeline, AgreesWithTheReference) {
  const std::uint32_t hidden = scenario().hidden;
  const std::uint32_t k = scenario().num_topk;
  const std::uint32_t group = scenario().hierarchical ? scenario().ranks_per_node : 1;
  const std::uint32_t num_nodes = num_ranks() / group;  // "nodes" of one rank where there are none

  // First hop: to ranks, or to nodes.
  std::vector<std::vector<reference::Item>> items(num_ranks());
  std::vector<Sent> first;
  for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
    const std::uint32_t num_tokens = scenario().tokens[rank];
    std::vector<std::uint16_t> experts;
    std::vector<float> weights;
    std::vector<std::uint16_t> ids(scenario().num_used_experts);
    std::iota(ids.begin(), ids.end(), std::uint16_t{0});
    for (std::uint32_t t = 0; t < num_tokens; ++t) {
      random_.shuffle(std::span(ids));
      experts.insert(experts.end(), ids.begin(), ids.begin() + k);
      for (std::uint32_t j = 0; j < k; ++j)
        weights.push_back(static_cast<float>(random_.uniform()));
    }
    items[rank] = reference::token_items(experts, weights, k);
    const DeviceBuffer<std::uint16_t> device_experts{std::span<const std::uint16_t>(experts)};
    const DeviceBuffer<float> device_weights{std::span<const float>(weights)};
    Sent sent = build_index(
        items[rank],
        {table_of([&](std::uint32_t e) { return rank_of(e) / group; }), num_nodes, rank / group,
         scenario().row_per_copy},
        [&](const Targets& targets, std::byte* buffer, const SendIndex& index, void* workspace) {
          build_send_index({device_experts.data(), device_weights.data(), num_tokens, k}, targets,
                           scenario().type, hidden, buffer, index, workspace, stream_->get());
        });
    if (HasFailure()) return;

    const auto tokens = draw(std::size_t{num_tokens} * hidden);
    const DeviceBuffer<Bf16> device_tokens{std::span<const Bf16>(to_device_type(tokens))};
    pack(device_tokens.data(), num_tokens, k, hidden, scenario().type,
         {sent.table.data(), sent.item_rows.data(), nullptr, nullptr}, num_nodes, stream_->get());
    stream_->synchronize();
    decode(sent);
    std::vector<float> packed;
    std::vector<float> expected;
    for (std::size_t p = 0; p < sent.blocks.size(); ++p) {
      for (std::size_t r = 0; r < sent.rows[p].size(); ++r) {
        const auto& values = sent.rows[p][r].values;
        packed.insert(packed.end(), values.begin(), values.end());
        const auto token = std::span(tokens).subspan(
            std::size_t{sent.expected.blocks[p][r].item} * hidden, hidden);
        const auto row = scenario().type == RowType::kFp8
                             ? reference::dequantise(reference::quantise(token))
                             : std::vector<float>(token.begin(), token.end());
        expected.insert(expected.end(), row.begin(), row.end());
      }
    }
    // BF16 is copied. FP8: scale, reciprocal and product are rounded once each, as the reference's.
    EXPECT_EQ(packed, expected);
    first.push_back(std::move(sent));
    if (HasFailure()) return;
  }

  // Every rank receives from the ranks of its own local index, ascending.
  std::vector<Received> arrived;
  for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
    std::vector<std::pair<const Sent*, std::size_t>> sources;
    for (std::uint32_t node = 0; node < num_nodes; ++node) {
      sources.emplace_back(&first[node * group + rank % group],
                           (rank / group + num_nodes - node) % num_nodes);
    }
    arrived.push_back(receive(sources));
  }

  std::vector<DeviceBuffer<Bf16>> results;  // by rank, of the rows in `arrived`
  if (!scenario().hierarchical) {
    for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
      results.push_back(serve(arrived[rank], rank));
      if (HasFailure()) return;
    }
  } else {
    std::vector<Sent> second;
    std::vector<std::vector<reference::Item>> second_items(num_ranks());
    for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
      const std::uint32_t node = rank / group;
      for (const auto& row : arrived[rank].rows) second_items[rank].push_back({row.copies});
      Sent sent = build_index(
          second_items[rank],
          {table_of([&](std::uint32_t e) {
             return rank_of(e) / group == node ? rank_of(e) % group : 0xffffU;
           }),
           group, rank % group, false},
          [&](const Targets& targets, std::byte* buffer, const SendIndex& index, void* workspace) {
            build_forward_index(arrived[rank].view, targets, buffer, index, workspace,
                                stream_->get());
          });
      if (HasFailure()) return;
      forward(arrived[rank].view, {sent.table.data(), sent.item_rows.data(), nullptr, nullptr},
              group, stream_->get());
      stream_->synchronize();
      decode(sent);
      for (std::size_t p = 0; p < sent.blocks.size(); ++p) {
        for (std::size_t r = 0; r < sent.rows[p].size(); ++r) {
          ASSERT_EQ(sent.rows[p][r].values,
                    arrived[rank].rows[sent.expected.blocks[p][r].item].values);
        }
      }
      second.push_back(std::move(sent));
    }
    std::vector<DeviceBuffer<Bf16>> returned;
    for (const Sent& sent : second) {
      returned.push_back(poisoned<Bf16>(std::size_t{sent.num_rows()} * hidden));
    }
    for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
      const std::uint32_t node_first = rank / group * group;
      std::vector<std::pair<const Sent*, std::size_t>> sources;
      for (std::uint32_t l = 0; l < group; ++l) {
        sources.emplace_back(&second[node_first + l], (rank % group + group - l) % group);
      }
      const Received received = receive(sources);
      const auto served = serve(received, rank);
      if (HasFailure()) return;
      std::size_t row = 0;
      for (std::uint32_t l = 0; l < group; ++l) {
        const TransferBlock& block = sources[l].first->blocks[sources[l].second];
        give_back(served, row, block, returned[node_first + l]);
        row += block.num_rows;
      }
    }
    for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
      auto sums = poisoned<Bf16>(std::size_t{arrived[rank].view.num_rows} * hidden);
      combine_received(arrived[rank].view, returned[rank].data(), second[rank].item_rows.data(),
                       sums.data(), stream_->get());
      stream_->synchronize();
      EXPECT_LT(reference::relative_error(
                    to_float(sums.download()),
                    reference::combine(second_items[rank], second[rank].expected.item_rows,
                                       to_float(returned[rank].download()), hidden)),
                1.0 / 256);
      results.push_back(std::move(sums));
    }
  }

  for (std::uint32_t rank = 0; rank < num_ranks(); ++rank) {
    const Sent& sent = first[rank];
    auto returned = poisoned<Bf16>(std::size_t{sent.num_rows()} * hidden);
    for (std::uint32_t position = 0; position < num_nodes; ++position) {
      const std::uint32_t node = (rank / group + position) % num_nodes;
      const std::uint32_t peer = node * group + rank % group;
      // The rows of all sources before this one.
      std::size_t begin = 0;
      for (std::uint32_t n = 0; n < rank / group; ++n) {
        begin +=
            first[n * group + rank % group].blocks[(node + num_nodes - n) % num_nodes].num_rows;
      }
      give_back(results[peer], begin, sent.blocks[position], returned);
    }
    auto outputs = poisoned<Bf16>(std::size_t{scenario().tokens[rank]} * hidden);
    combine(returned.data(), scenario().tokens[rank], k, hidden, sent.item_rows.data(),
            outputs.data(), stream_->get());
    stream_->synchronize();
    EXPECT_LT(reference::relative_error(to_float(outputs.download()),
                                        reference::combine(items[rank], sent.expected.item_rows,
                                                           to_float(returned.download()), hidden)),
              1.0 / 256);

    // The same with a row to add to every token, here the results turned round.
    auto addend_rows = to_float(outputs.download());
    std::reverse(addend_rows.begin(), addend_rows.end());
    const DeviceBuffer<Bf16> addend{std::span<const Bf16>(to_device_type(addend_rows))};
    std::vector<float> sums = reference::combine(items[rank], sent.expected.item_rows,
                                                 to_float(returned.download()), hidden);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += addend_rows[i];
    combine(returned.data(), scenario().tokens[rank], k, hidden, sent.item_rows.data(),
            outputs.data(), stream_->get(), addend.data());
    stream_->synchronize();
    EXPECT_LT(reference::relative_error(to_float(outputs.download()), sums), 1.0 / 256);
  }
}

std::vector<Scenario> scenarios() {
  std::vector<Scenario> all;
  const auto add = [&](std::string name, auto change) {
    Scenario scenario;
    scenario.name = std::move(name);
    scenario.seed = all.size() + 1;
    scenario.tokens = {61, 0, 130, 1};  // an empty rank, odd sizes
    change(scenario);
    all.push_back(scenario);
  };
  for (const RowType type : {RowType::kBf16, RowType::kFp8}) {
    const std::string suffix = type == RowType::kFp8 ? "Fp8" : "Bf16";
    for (const std::uint32_t hidden : {128U, 896U, 2048U, 4096U, 7168U}) {
      add("Hidden" + std::to_string(hidden) + suffix, [&](Scenario& s) {
        s.hidden = hidden;
        s.type = type;
        if (hidden > 1000) s.tokens = {31, 0, 50, 1};
      });
    }
    for (const std::uint32_t k : {1U, 8U, 32U}) {
      add("Topk" + std::to_string(k) + suffix, [&](Scenario& s) {
        s.num_topk = k;
        s.type = type;
        s.hidden = 384;
      });
    }
    add("Standard" + suffix, [&](Scenario& s) {
      s.row_per_copy = true;
      s.type = type;
      s.hidden = 640;
    });
    add("Hierarchical" + suffix, [&](Scenario& s) {
      s.hierarchical = true;
      s.type = type;
      s.hidden = 640;
      s.num_topk = 8;
      s.ranks_per_node = 4;
      s.tokens = {61, 0, 130, 1, 40, 77, 256, 300};
    });
    // 6 experts chosen of 64: five of eight ranks receive nothing, most experts serve nothing.
    add("EmptyRanksAndExperts" + suffix, [&](Scenario& s) {
      s.num_used_experts = 6;
      s.type = type;
      s.tokens = {10, 0, 0, 259, 0, 1, 0, 33};
    });
  }
  // Several chunks of the index kernels (256 items, 512 copies), neither full.
  add("ManyChunks", [](Scenario& s) { s.tokens = {1500, 257, 256, 2049}; });
  add("ManyChunksStandard", [](Scenario& s) {
    s.tokens = {1500, 257, 256, 2049};
    s.row_per_copy = true;
  });
  add("OneRank", [](Scenario& s) { s.tokens = {300}; });
  add("NoTokens", [](Scenario& s) { s.tokens = {0, 0}; });
  // More destinations than a warp has lanes, and experts that do not divide evenly.
  add("FortyRanks", [](Scenario& s) {
    s.num_experts = 384;
    s.num_used_experts = 384;
    s.num_topk = 8;
    s.tokens.assign(40, 37);
    s.tokens[7] = 0;
  });
  add("HierarchicalFortyRanks", [](Scenario& s) {
    s.num_experts = 384;
    s.num_used_experts = 384;
    s.num_topk = 8;
    s.hierarchical = true;
    s.ranks_per_node = 8;
    s.tokens.assign(40, 37);
    s.tokens[7] = 0;
  });
  // BF16 needs multiples of 8 only (gpt-oss has 2880).
  add("Hidden2880", [](Scenario& s) {
    s.hidden = 2880;
    s.tokens = {31, 0, 50, 1};
  });
  add("Hidden40", [](Scenario& s) { s.hidden = 40; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Scenarios, Pipeline, testing::ValuesIn(scenarios()),
                         [](const auto& instance) { return instance.param.name; });

// A group below 2^-100 has scale 1 and becomes zeros; a group with one large value keeps that
// value.
TEST(PackFp8, ZeroGroupsAndOutliers) {
  COTERIE_NEEDS_GPU();
  constexpr std::uint32_t kHidden = 256;
  std::vector<float> token(kHidden, 0.0F);
  token[5] = 0x1p-101F;
  token[130] = 1024.0F;
  token[131] = -3.0F;
  const std::vector<std::uint16_t> experts = {0};
  const std::vector<float> weights = {1.0F};
  const std::vector<std::uint16_t> dest = {0};
  const DeviceBuffer<Bf16> tokens{std::span<const Bf16>(to_device_type(token))};
  const DeviceBuffer<std::uint16_t> device_experts{std::span<const std::uint16_t>(experts)};
  const DeviceBuffer<float> device_weights{std::span<const float>(weights)};
  const DeviceBuffer<std::uint16_t> device_dest{std::span<const std::uint16_t>(dest)};
  const auto buffer = poisoned<std::byte>(1024);
  const auto table = poisoned<TransferBlock>(1);
  const auto item_rows = poisoned<std::uint32_t>(1);
  const auto workspace = poisoned<std::byte>(index_workspace_bytes(1, 1));
  const Stream stream;
  const SendIndex index{table.data(), item_rows.data(), nullptr, nullptr};
  build_send_index({device_experts.data(), device_weights.data(), 1, 1},
                   {device_dest.data(), 1, 1, 0, false}, RowType::kFp8, kHidden, buffer.data(),
                   index, workspace.data(), stream.get());
  pack(tokens.data(), 1, 1, kHidden, RowType::kFp8, index, 1, stream.get());
  stream.synchronize();
  const auto bytes = buffer.download();
  const auto rows = reference::decode_block(
      std::span(bytes).first(block_bytes(RowType::kFp8, kHidden, 1, 1)), 1, RowType::kFp8, kHidden);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].values, reference::dequantise(reference::quantise(token)));
  EXPECT_EQ(rows[0].values[130], 1024.0F);
  EXPECT_EQ(rows[0].values[5], 0.0F);
}

TEST(Arguments, ThatCannotWorkAreRefused) {
  COTERIE_NEEDS_GPU();
  const Stream stream;
  EXPECT_THROW(pack(nullptr, 1, 6, 100, RowType::kBf16, {}, 1, stream.get()),
               std::invalid_argument);
  EXPECT_THROW(pack(nullptr, 1, 6, 192, RowType::kFp8, {}, 1, stream.get()), std::invalid_argument);
  EXPECT_THROW(build_send_index({nullptr, nullptr, 1, 33}, {nullptr, 1, 1, 0, false},
                                RowType::kBf16, 128, nullptr, {}, nullptr, stream.get()),
               std::invalid_argument);
  EXPECT_THROW(build_send_index({nullptr, nullptr, 1, 6}, {nullptr, 1, 4, 4, false}, RowType::kBf16,
                                128, nullptr, {}, nullptr, stream.get()),
               std::invalid_argument);
}

}  // namespace
}  // namespace coterie::kernels
