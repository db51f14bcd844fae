#include "runtime/executor/direct_transport.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "core/error.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/control/machine.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/device/polling.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::TransferBlock;

// The host's own deadline comes first: it knows more of who is behind.
constexpr double kDeviceGrace_s = 5.0;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kernels::kBlockAlignment - 1) / kernels::kBlockAlignment *
         kernels::kBlockAlignment;
}

template <class T>
DeviceBuffer<T> upload(const std::vector<T>& values) {
  return DeviceBuffer<T>(std::span<const T>(values));
}

std::size_t recv_bytes(const LayerShape& shape, const Hop& hop) {
  std::size_t bytes = 0;
  for (const HopRound& round : hop.rounds) {
    bytes += kernels::blocks_bytes(round.recv, shape.dispatch, shape.mlp.hidden);
  }
  return bytes;
}

std::optional<std::size_t> position(const std::vector<std::uint32_t>& ranks, std::uint32_t rank) {
  const auto at = std::find(ranks.begin(), ranks.end(), rank);
  if (at == ranks.end()) return std::nullopt;
  return static_cast<std::size_t>(at - ranks.begin());
}

}  // namespace

std::string to_string(DirectStep step) {
  switch (step) {
    case DirectStep::kNotify:
      return "the counts";
    case DirectStep::kDispatch:
      return "the rows of the dispatch";
    case DirectStep::kForward:
      return "the rows of the second hop";
    case DirectStep::kReadyGather:
      return "the results of the gather";
    case DirectStep::kReadyCombine:
      return "the results of the combine";
  }
  return "a step";
}

DirectRegion plan_region(const LayerShape& shape, const std::vector<RankLayout>& layouts) {
  DirectRegion region;
  for (std::size_t h = 0; h < 2; ++h) {
    std::size_t recv = 0;
    std::size_t results = 0;
    for (const RankLayout& layout : layouts) {
      if (h >= layout.hops.size()) continue;
      const Hop& hop = layout.hops[h];
      recv = std::max(recv, recv_bytes(shape, hop));
      results = std::max(results, std::size_t{hop.num_recv_rows} * shape.mlp.hidden * sizeof(Bf16));
    }
    region.hops[h].recv = region.num_bytes;
    region.num_bytes += aligned(recv);
    region.hops[h].results = region.num_bytes;
    region.num_bytes += aligned(results);
  }
  return region;
}

std::vector<DirectPlace> places_for(const LayerShape& shape, const std::vector<RankLayout>& layouts,
                                    const DirectRegion& region, std::uint32_t peer) {
  std::vector<DirectPlace> places;
  for (const RankLayout& layout : layouts) {
    for (std::size_t h = 0; h < layout.hops.size(); ++h) {
      const Hop& hop = layout.hops[h];
      const auto source = position(hop.recv_ranks, peer);
      if (!source) continue;
      std::size_t recv = region.hops[h].recv;
      for (const HopRound& round : hop.rounds) {
        const std::vector<TransferBlock> blocks =
            kernels::layout_blocks(round.recv, shape.dispatch, shape.mlp.hidden, nullptr);
        const TransferBlock& block = blocks[*source];
        const std::size_t row = std::size_t{round.recv_row_begin} + block.row_begin;
        places.push_back(
            {recv + static_cast<std::size_t>(block.data - static_cast<std::byte*>(nullptr)),
             region.hops[h].results + row * shape.mlp.hidden * sizeof(Bf16)});
        recv += kernels::blocks_bytes(round.recv, shape.dispatch, shape.mlp.hidden);
      }
    }
  }
  return places;
}

DirectTransport::DirectTransport(ControlGroup& group, const RankEnvironment& environment,
                                 const GpuShare& share)
    : group_(group),
      near_(ranks_of_this_machine(group, environment)),
      flags_(group, "flags of the transport direct", near_),
      memory_(group, "buffers of the transport direct", near_) {
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, share.device),
             "cudaDeviceGetAttribute");
  if (major < 9) {
    throw InputError("transport direct", fmt::format("a GPU of compute capability {}.x", major),
                     "9.0 or later, which has bulk copies");
  }
  check_cuda(cudaHostAlloc(reinterpret_cast<void**>(&state_), sizeof(kernels::WaitState),
                           cudaHostAllocMapped | cudaHostAllocPortable),
             "cudaHostAlloc");
  *state_ = {};
  check_cuda(cudaHostGetDevicePointer(reinterpret_cast<void**>(&device_state_), state_, 0),
             "cudaHostGetDevicePointer");
  flags_.reserve(kernels::flags_bytes(group.num_ranks(), kNumDirectSteps));
  flag_regions_ = upload(flags_.regions());
  std::vector<std::uint32_t> peers;
  for (std::uint32_t r = 0; r < group.num_ranks(); ++r) {
    if (r != group.rank() && !is_far(r)) peers.push_back(r);
  }
  all_peers_ = upload(peers);
}

DirectTransport::~DirectTransport() {
  if (state_ == nullptr) return;
  // A kernel that waits for a rank that is gone must end before its memory does.
  stop();
  cudaDeviceSynchronize();
  cudaFreeHost(state_);
}

void DirectTransport::stop() {
  *const_cast<volatile std::uint32_t*>(&state_->stop) = 1;
}

bool DirectTransport::has_far_ranks() const {
  return std::find(near_.begin(), near_.end(), false) != near_.end();
}

void DirectTransport::require_one_machine(const std::string& what) const {
  if (!has_far_ranks()) return;
  throw InputError(
      "transport direct",
      fmt::format("{} of {} ranks on the machine of rank {}",
                  std::count(near_.begin(), near_.end(), true), near_.size(), group_.rank()),
      "all ranks on one machine for " + what);
}

void DirectTransport::place_buffers(const LayerShape& shape, const std::vector<RankLayout>& layouts,
                                    RunBuffers& buffers) {
  layers_.clear();
  own_in_place_.clear();
  shape_ = shape;
  region_ = plan_region(shape, layouts);
  memory_.reserve(region_.num_bytes);
  for (std::size_t h = 0; h < 2; ++h) {
    buffers.hops[h].recv.place(memory_.own() + region_.hops[h].recv);
    buffers.hops[h].results.place(
        reinterpret_cast<Bf16*>(memory_.own() + region_.hops[h].results));  // NOLINT
  }
}

void DirectTransport::connect(const LayerShape& shape, const std::vector<RankLayout>& layouts,
                              const std::vector<LayerTables>& tables, const RunBuffers& buffers,
                              const DirectOptions& options) {
  options_ = options;
  std::vector<std::string> to_each;
  for (std::uint32_t peer = 0; peer < group_.num_ranks(); ++peer) {
    Packer packer;
    for (const DirectPlace& place : places_for(shape, layouts, region_, peer)) {
      packer.number(place.recv).number(place.results);
    }
    to_each.push_back(packer.take());
  }
  const std::vector<std::string> from_each =
      group_.exchange("exchange of the places of the blocks", std::move(to_each));
  std::vector<Unpacker> read(from_each.begin(), from_each.end());
  for (std::size_t l = 0; l < layouts.size(); ++l) {
    LayerTargets layer;
    for (std::size_t h = 0; h < layouts[l].hops.size(); ++h) {
      const Hop& hop = layouts[l].hops[h];
      HopTargets targets;
      std::vector<std::uint32_t> peers;
      std::copy_if(hop.send_ranks.begin() + 1, hop.send_ranks.end(), std::back_inserter(peers),
                   [this](std::uint32_t rank) { return !is_far(rank); });
      targets.peers = upload(peers);
      std::vector<std::vector<std::byte*>> blocks(hop.rounds.size());
      std::vector<std::vector<const Bf16*>> results(hop.rounds.size());
      for (std::size_t p = 0; p < hop.send_ranks.size(); ++p) {
        const std::uint32_t dest = hop.send_ranks[p];
        for (std::size_t r = 0; r < hop.rounds.size(); ++r) {
          const TransferBlock& block = tables[l].hops[h].rounds[r].host_send[p];
          if (is_far(dest)) {
            const std::size_t row = std::size_t{hop.rounds[r].send_row_begin} + block.row_begin;
            blocks[r].push_back(block.data);
            results[r].push_back(buffers.hops[h].returned.data() + row * shape.mlp.hidden);
            continue;
          }
          const auto recv = read[dest].number<std::uint64_t>();
          const auto result = read[dest].number<std::uint64_t>();
          // The own rows stay where the index is built.
          blocks[r].push_back(p == 0 ? block.data : memory_.of(dest) + recv);
          results[r].push_back(reinterpret_cast<const Bf16*>(memory_.of(dest) + result));  // NOLINT
        }
      }
      for (std::size_t r = 0; r < hop.rounds.size(); ++r) {
        targets.rounds.push_back({upload(blocks[r]), upload(results[r])});
      }
      layer.push_back(std::move(targets));
    }
    layers_.push_back(std::move(layer));
    own_in_place_.push_back(keeps_own_rows(layouts[l]));
  }
  group_.barrier("connection of the peer memory");
}

kernels::FlagChannel DirectTransport::channel(DirectStep step,
                                              const DeviceBuffer<std::uint32_t>& peers) const {
  const double deadline_s = group_.options().step_s + kDeviceGrace_s;
  return {flag_regions_.data(), peers.data(),       static_cast<std::uint32_t>(peers.size()),
          group_.rank(),        group_.num_ranks(), static_cast<std::uint32_t>(step),
          kNumDirectSteps,      device_state_,      static_cast<std::uint64_t>(deadline_s * 1e9)};
}

void DirectTransport::notify(const LayerTables& tables, cudaStream_t stream) {
  kernels::synchronise(channel(DirectStep::kNotify, all_peers_), tables.counts_out.data(),
                       tables.counts_in.data(), stream);
}

void DirectTransport::dispatch(std::size_t layer_idx, std::uint32_t round, const Bf16* tokens,
                               const kernels::TokenRouting& routing,
                               const kernels::SendIndex& index, cudaStream_t stream) {
  const HopTargets& targets = hop(layer_idx, 0);
  const DeviceBuffer<std::byte*>& blocks = targets.rounds[round].blocks;
  kernels::put(tokens, routing, shape_.mlp.hidden, shape_.dispatch, index,
               {blocks.data(), static_cast<std::uint32_t>(blocks.size()), own_in_place_[layer_idx]},
               channel(DirectStep::kDispatch, targets.peers), options_.sms, stream, put_shape);
}

void DirectTransport::forward(std::size_t layer_idx, std::uint32_t round,
                              const kernels::ReceivedRows& received,
                              const kernels::SendIndex& index, cudaStream_t stream) {
  const HopTargets& targets = hop(layer_idx, 1);
  const DeviceBuffer<std::byte*>& blocks = targets.rounds[round].blocks;
  kernels::put(received, index, {blocks.data(), static_cast<std::uint32_t>(blocks.size())},
               channel(DirectStep::kForward, targets.peers), options_.sms, stream);
}

void DirectTransport::announce_results(std::size_t layer_idx, std::size_t h, cudaStream_t stream) {
  kernels::synchronise(channel(h == 0 ? DirectStep::kReadyCombine : DirectStep::kReadyGather,
                               hop(layer_idx, h).peers),
                       nullptr, nullptr, stream);
}

void DirectTransport::gather(std::size_t layer_idx, std::uint32_t round,
                             const kernels::ReceivedRows& received, const kernels::SendIndex& index,
                             Bf16* results, cudaStream_t stream) {
  const DeviceBuffer<const Bf16*>& rows = hop(layer_idx, 1).rounds[round].results;
  kernels::pull(received, index, {rows.data(), static_cast<std::uint32_t>(rows.size())}, results,
                options_.sms, stream, pull_shape);
}

void DirectTransport::combine(std::size_t layer_idx, std::uint32_t round,
                              const kernels::TokenRouting& routing, const kernels::SendIndex& index,
                              Bf16* outputs, const Bf16* addend, cudaStream_t stream) {
  const DeviceBuffer<const Bf16*>& rows = hop(layer_idx, 0).rounds[round].results;
  kernels::pull(routing, shape_.mlp.hidden, index,
                {rows.data(), static_cast<std::uint32_t>(rows.size())}, outputs, addend,
                options_.sms, stream, pull_shape);
}

void DirectTransport::look_at_state() {
  const volatile kernels::WaitState* state = state_;
  if (state->fault == 0) return;
  group_.watch_stage(fmt::format("wait for {} of rank {}",
                                 to_string(static_cast<DirectStep>(state->channel)), state->peer));
  group_.report_stuck(group_.options().step_s + kDeviceGrace_s);
}

void DirectTransport::wait_for(const kernels::Event& event, const std::function<void()>& look) {
  try {
    poll_until(
        group_, [&] { return event.done(); },
        [&] {
          look_at_state();
          look();
        });
  } catch (const kernels::CudaError&) {
    await_verdict(group_);
    throw;
  } catch (const NcclError&) {  // of `look`
    await_verdict(group_);
    throw;
  }
  look_at_state();
}

std::vector<LayerTables> load_alone(DirectTransport& transport, const LayerShape& shape,
                                    const LayerPlan& plan, const std::vector<RankLayout>& layouts,
                                    RunBuffers& buffers, const Bf16* tokens) {
  buffers.need(shape, layouts.front());
  transport.place_buffers(shape, layouts, buffers);
  buffers.allocate();
  std::vector<LayerTables> tables;
  tables.push_back(make_layer_tables(shape, plan, layouts.front(), buffers, tokens));
  transport.connect(shape, layouts, tables, buffers, {});
  return tables;
}

}  // namespace coterie
