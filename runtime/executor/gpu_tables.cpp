#include "runtime/executor/gpu_tables.hpp"

#include <stdexcept>

#include "workloads/plan/schedule.hpp"

namespace coterie {
namespace {

using kernels::DeviceBuffer;
using kernels::TransferBlock;

template <class T>
DeviceBuffer<T> upload(const std::vector<T>& values) {
  return DeviceBuffer<T>(std::span<const T>(values));
}

// Bytes of the blocks of all rounds of a hop.
std::size_t send_bytes(const LayerShape& shape, const Hop& hop) {
  std::size_t bytes = 0;
  for (const HopRound& round : hop.rounds) {
    bytes += kernels::blocks_bytes(round.send, shape.dispatch, shape.mlp.hidden);
  }
  return bytes;
}
std::size_t recv_bytes(const LayerShape& shape, const Hop& hop) {
  std::size_t bytes = 0;
  for (const HopRound& round : hop.rounds) {
    bytes += kernels::blocks_bytes(round.recv, shape.dispatch, shape.mlp.hidden);
  }
  return bytes;
}

// `item_begin[r]`: where the copies of the items of round r begin among all items' copies.
HopTables make_hop_tables(const LayerShape& shape, const Hop& hop, const HopBuffers& buffers,
                          const std::vector<std::size_t>& item_begin) {
  HopTables tables;
  tables.slot_dest = upload(hop.slot_dest);
  tables.item_rows = DeviceBuffer<std::uint32_t>(item_begin.back());
  tables.row_item = DeviceBuffer<std::uint32_t>(hop.num_send_rows);
  tables.row_mask = DeviceBuffer<std::uint32_t>(hop.num_send_rows);
  std::byte* send = buffers.send.data();
  std::byte* recv = buffers.recv.data();
  std::vector<TransferBlock> all;
  for (std::size_t r = 0; r < hop.rounds.size(); ++r) {
    const HopRound& round = hop.rounds[r];
    RoundTables entry;
    entry.send_buffer = send;
    entry.host_send = kernels::layout_blocks(round.send, shape.dispatch, shape.mlp.hidden, send);
    entry.host_recv = kernels::layout_blocks(round.recv, shape.dispatch, shape.mlp.hidden, recv);
    // Send position 0 is the rank itself: its rows are read where they were packed.
    entry.host_recv[hop.recv_self].data = entry.host_send[0].data;
    entry.recv_blocks = upload(entry.host_recv);
    entry.send_blocks = DeviceBuffer<TransferBlock>(round.send.size());
    entry.index = {entry.send_blocks.data(), tables.item_rows.data() + item_begin[r],
                   tables.row_item.data() + round.send_row_begin,
                   tables.row_mask.data() + round.send_row_begin};
    for (TransferBlock block : entry.host_recv) {
      block.row_begin += round.recv_row_begin;
      block.copy_begin += round.recv_copy_begin;
      all.push_back(block);
    }
    send += kernels::blocks_bytes(round.send, shape.dispatch, shape.mlp.hidden);
    recv += kernels::blocks_bytes(round.recv, shape.dispatch, shape.mlp.hidden);
    tables.rounds.push_back(std::move(entry));
  }
  tables.all_recv_blocks = upload(all);
  return tables;
}

std::vector<Phase> phases_of(const LayerPlan& plan) {
  const bool two_hops = plan.stages.size() > 1;
  std::vector<Phase> phases{Phase::kNotify, Phase::kPack, Phase::kDispatch};
  if (two_hops) phases.push_back(Phase::kForward);
  phases.insert(phases.end(), {Phase::kExpand, Phase::kMlp, Phase::kMerge});
  if (two_hops) phases.push_back(Phase::kGather);
  phases.insert(phases.end(), {Phase::kCombine, Phase::kSum});
  return phases;
}

}  // namespace

void RunBuffers::need(const LayerShape& shape, const RankLayout& layout) {
  const std::size_t hidden = shape.mlp.hidden;
  std::size_t scratch = 0;
  for (std::size_t h = 0; h < layout.hops.size(); ++h) {
    const Hop& hop = layout.hops[h];
    hops[h].send.need(send_bytes(shape, hop));
    hops[h].recv.need(recv_bytes(shape, hop));
    hops[h].results.need(hop.num_recv_rows * hidden);
    hops[h].returned.need(hop.num_send_rows * hidden);
    const auto num_dests = static_cast<std::uint32_t>(hop.send_ranks.size());
    scratch = std::max(scratch, kernels::index_workspace_bytes(hop.num_send_copies, num_dests));
  }
  const std::uint32_t copies = layout.hops.back().num_recv_copies;
  const auto num_experts = static_cast<std::uint32_t>(layout.local_experts.size());
  workspace.need(std::max(scratch, kernels::index_workspace_bytes(copies, num_experts)));
  expert_in.need(copies * hidden);
  expert_out.need(copies * hidden);
}

void RunBuffers::allocate() {
  for (HopBuffers& hop : hops) {
    hop.send.allocate();
    hop.recv.allocate();
    hop.results.allocate();
    hop.returned.allocate();
  }
  expert_in.allocate();
  expert_out.allocate();
  workspace.allocate();
}

PhaseMarks& LayerTables::marks(Phase phase) {
  for (PhaseMarks& entry : phases) {
    if (entry.phase == phase) return entry;
  }
  throw std::logic_error("the layer has no such phase");
}

LayerTables make_layer_tables(const LayerShape& shape, const LayerPlan& plan,
                              const RankLayout& layout, const RunBuffers& buffers,
                              const kernels::Bf16* tokens) {
  LayerTables tables;
  tables.token_slots = upload(layout.token_slots);
  tables.token_weights = upload(layout.token_weights);
  tables.slot_local = upload(layout.slot_local);
  // The items of the first hop are the rank's tokens, those of the second the rows that the first
  // one brought.
  std::vector<std::size_t> item_begin;
  for (const std::uint32_t token : layout.round_begin) {
    item_begin.push_back(std::size_t{token} * layout.num_topk);
  }
  for (std::size_t h = 0; h < layout.hops.size(); ++h) {
    const Hop& hop = layout.hops[h];
    tables.hops.push_back(make_hop_tables(shape, hop, buffers.hops[h], item_begin));
    item_begin.clear();
    for (const HopRound& round : hop.rounds) item_begin.push_back(round.recv_copy_begin);
    item_begin.push_back(hop.num_recv_copies);
  }
  tables.copy_slot = DeviceBuffer<std::uint32_t>(layout.hops.back().num_recv_copies);
  tables.expert_begin = DeviceBuffer<std::uint32_t>(layout.expert_begin.size());

  std::vector<std::uint32_t> counts(2 * std::size_t{plan.num_ranks}, 0);
  const Hop& first = layout.hops.front();
  for (const HopRound& round : first.rounds) {
    for (std::size_t p = 0; p < round.send.size(); ++p) {
      counts[2 * first.send_ranks[p]] += round.send[p].num_rows;
      counts[2 * first.send_ranks[p] + 1] += round.send[p].num_copies;
    }
  }
  tables.counts_out = upload(counts);
  tables.counts_in = DeviceBuffer<std::uint32_t>(counts.size());
  tables.counts_in.fill_bytes(0xff);
  tables.output = DeviceBuffer<kernels::Bf16>(std::size_t{layout.num_tokens} * shape.mlp.hidden);
  tables.output.fill_bytes(0xff);

  tables.mlp.emplace(shape.mlp, shape.seed, plan.layer, layout.local_experts,
                     std::max(layout.hops.back().num_recv_copies, 1U),
                     kernels::MlpOptions{kernels::GemmMethod::kAuto, shape.experts, std::nullopt});
  tables.mlp->prepare(layout.expert_begin, buffers.expert_in.data(), buffers.expert_out.data());
  tables.shared = SharedExperts(shape, plan.layer, tokens, layout.num_tokens);

  for (const Phase phase : phases_of(plan)) {
    tables.phases.emplace_back();
    tables.phases.back().phase = phase;
  }
  tables.arrived = std::vector<kernels::Event>(plan_steps(plan).size());
  return tables;
}

kernels::ReceivedRows received(const LayerShape& shape, const Hop& hop, const HopTables& tables,
                               std::uint32_t round) {
  return {tables.rounds[round].recv_blocks.data(),
          static_cast<std::uint32_t>(hop.recv_ranks.size()),
          hop.rounds[round].num_recv_rows,
          hop.rounds[round].num_recv_copies,
          shape.dispatch,
          shape.mlp.hidden};
}

kernels::ReceivedRows received(const LayerShape& shape, const Hop& hop, const HopTables& tables) {
  return {tables.all_recv_blocks.data(),
          static_cast<std::uint32_t>(hop.recv_ranks.size() * hop.rounds.size()),
          hop.num_recv_rows,
          hop.num_recv_copies,
          shape.dispatch,
          shape.mlp.hidden};
}

kernels::RowsInPlace own_rows_in_place(const RankLayout& layout, const LayerTables& tables,
                                       const kernels::Bf16* tokens) {
  return {tokens, tables.hops.front().row_item.data(),
          static_cast<std::uint32_t>(layout.hops.front().recv_self)};
}

void enqueue_expand(const LayerShape& shape, const RankLayout& layout, const LayerTables& tables,
                    const RunBuffers& buffers, const kernels::Bf16* tokens_in_place,
                    cudaStream_t stream) {
  kernels::ReceivedRows rows = received(shape, layout.hops.back(), tables.hops.back());
  if (tokens_in_place != nullptr) {
    rows.in_place = own_rows_in_place(layout, tables, tokens_in_place);
  }
  kernels::build_receive_index(rows, tables.slot_local.data(),
                               static_cast<std::uint32_t>(layout.local_experts.size()),
                               {tables.copy_slot.data(), nullptr, tables.expert_begin.data()},
                               buffers.workspace.data(), stream);
  kernels::expand(rows, tables.copy_slot.data(), buffers.expert_in.data(), stream);
}

}  // namespace coterie
