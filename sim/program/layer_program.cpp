#include "sim/program/layer_program.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "core/error.hpp"
#include "sim/program/kernel_costs.hpp"
#include "sim/transports/start_costs.hpp"

namespace coterie {
namespace {

// The part of `total` that falls to piece `idx` of `count` equal ones; the pieces sum to `total`.
std::uint32_t share(std::uint32_t total, std::uint32_t idx, std::uint32_t count) {
  const auto upto = [&](std::uint64_t i) { return std::uint64_t{total} * i / count; };
  return static_cast<std::uint32_t>(upto(idx + 1) - upto(idx));
}
std::int64_t share(std::int64_t total, std::uint32_t idx, std::uint32_t count) {
  const auto upto = [&](std::int64_t i) { return total / count * i + total % count * i / count; };
  return upto(std::int64_t{idx} + 1) - upto(idx);
}

// Builds the operations of one EP group.
class GroupBuilder {
 public:
  GroupBuilder(const LayerSetup& setup, const Cluster& cluster, const LayerPlan& plan,
               std::uint32_t first_gpu, ProgramBuilder& builder, LayerProgram& out)
      : setup_(setup),
        cluster_(cluster),
        plan_(plan),
        sizes_{row_payload(setup.dispatch_payload, setup.model.hidden),
               row_payload(setup.combine_payload, setup.model.hidden)},
        first_gpu_(first_gpu),
        builder_(builder),
        out_(out) {}

  void build() {
    count_rows();
    packed_ = events();
    arrived_ = events();
    merged_ = events();
    returned_ = events();
    add_notify_and_pack();
    if (hierarchical()) {
      count_chunks();
      add_chunked_dispatch();
    } else {
      add_flat_dispatch();
    }
    add_mlp();
    if (hierarchical()) {
      add_gathers();
      add_chunked_combine();
    } else {
      add_flat_combine();
    }
    add_sums();
  }

 private:
  // What a rank moves, rows.
  struct RankRows {
    std::uint64_t packed = 0;    // sent to another rank in stage 0
    std::uint64_t arriving = 0;  // for its own experts, local ones included
    std::uint64_t copies = 0;    // (token, expert) pairs of those
    std::uint64_t summed = 0;    // results it adds up for its own tokens
  };

  [[nodiscard]] bool hierarchical() const { return plan_.stages.size() > 1; }
  [[nodiscard]] const Stage& first() const { return plan_.stages.front(); }
  [[nodiscard]] const Stage& last() const { return plan_.stages.back(); }

  std::vector<std::uint32_t> events() {
    std::vector<std::uint32_t> out(plan_.num_ranks);
    for (std::uint32_t& event : out) event = builder_.add_event();
    return out;
  }

  void compute(Phase phase, std::uint32_t rank, Seconds duration, std::uint32_t waits_for,
               std::initializer_list<std::uint32_t> signals) {
    builder_.add_compute(first_gpu_ + rank, duration.value, waits_for, signals);
    out_.phase.push_back(phase);
    out_.num_rows.push_back(0);
  }

  struct Send {
    std::uint32_t src, dst;  // ranks of the group
    std::int64_t bytes;
    std::uint32_t num_rows;
  };
  void transfer(Phase phase, const Send& send, std::uint32_t waits_for,
                std::span<const std::uint32_t> signals) {
    builder_.add_transfer(first_gpu_ + send.src, first_gpu_ + send.dst,
                          static_cast<double>(send.bytes), waits_for, signals);
    out_.phase.push_back(phase);
    out_.num_rows.push_back(send.num_rows);
  }

  // When each rank's sends of a phase may leave, per tier: `ready`, or after the start cost of a
  // calibrated topology. Under the hierarchical policy the kernel that sends also forwards, so that
  // a start is paid once each way.
  using Starts = std::vector<std::array<std::uint32_t, 2>>;
  Starts starts(Phase phase, std::span<const PhaseSend> sends,
                const std::vector<std::uint32_t>& ready) {
    Starts out(plan_.num_ranks);
    const StartDelays delays = start_delays(cluster_, sends);
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      out[rank] = {ready[rank], ready[rank]};
      const std::uint32_t gpu = first_gpu_ + rank;
      if (gpu >= delays.size()) continue;
      for (std::size_t tier = 0; tier < 2; ++tier) {
        if (delays[gpu][tier] <= 0.0) continue;
        out[rank][tier] = builder_.add_event();
        compute(phase, rank, Seconds{delays[gpu][tier]}, ready[rank], {out[rank][tier]});
      }
    }
    return out;
  }
  [[nodiscard]] std::uint32_t start_of(const Starts& starts, std::uint32_t src,
                                       std::uint32_t dst) const {
    return starts[src][tier_index(cluster_, first_gpu_ + src, first_gpu_ + dst)];
  }
  // The sends of a stage that cross a link, in either direction.
  std::vector<PhaseSend> stage_sends(const Stage& stage, bool back) const {
    std::vector<PhaseSend> sends;
    for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
      const std::uint32_t src = first_gpu_ + (back ? stage.dst[i] : stage.src[i]);
      const std::uint32_t dst = first_gpu_ + (back ? stage.src[i] : stage.dst[i]);
      const Bytes bytes = back ? combine_bytes(stage, i, sizes_) : dispatch_bytes(stage, i, sizes_);
      if (src != dst) sends.push_back({src, dst, static_cast<double>(bytes.value)});
    }
    return sends;
  }

  void count_rows() {
    rows_.assign(plan_.num_ranks, {});
    const Stage& to_hosts = last();
    for (std::size_t i = 0; i < to_hosts.num_transfers(); ++i) {
      rows_[to_hosts.dst[i]].arriving += to_hosts.num_rows[i];
      rows_[to_hosts.dst[i]].copies += to_hosts.num_copies[i];
    }
    for (std::size_t i = 0; i < first().num_transfers(); ++i) {
      const std::uint32_t src = first().src[i];
      const bool local = src == first().dst[i];
      if (!local) rows_[src].packed += first().num_rows[i];
      // Results from another node come back summed; those of the own node rank by rank.
      if (!local || !hierarchical()) rows_[src].summed += first().num_rows[i];
    }
    if (!hierarchical()) return;
    for (std::size_t i = 0; i < to_hosts.num_transfers(); ++i) {
      const std::uint32_t parent = to_hosts.parent[i];
      if (first().src[parent] == first().dst[parent]) {
        rows_[first().src[parent]].summed += to_hosts.num_rows[i];
        if (to_hosts.src[i] != to_hosts.dst[i]) {
          rows_[to_hosts.src[i]].packed += to_hosts.num_rows[i];
        }
      }
    }
  }

  void add_notify_and_pack() {
    std::uint32_t barrier = kStartEvent;
    if (!setup_.ready_s.empty()) {
      barrier = builder_.add_event();
      for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
        compute(Phase::kNotify, rank, Seconds{setup_.ready_s[first_gpu_ + rank]}, kStartEvent,
                {barrier});
      }
    }
    const double row_in = 2.0 * setup_.model.hidden;  // the token's BF16 activations
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      const std::uint32_t notified = builder_.add_event();
      compute(Phase::kNotify, rank, cluster_.overheads.notify, barrier, {notified});
      const double bytes = static_cast<double>(rows_[rank].packed) *
                           (row_in + static_cast<double>(sizes_.dispatch_row.value));
      compute(Phase::kPack, rank, copy_time(cluster_.gpu, bytes), notified,
              {packed_[rank], arrived_[rank]});
    }
  }

  void add_flat_dispatch() {
    const Starts starts_at = starts(Phase::kDispatch, stage_sends(first(), false), packed_);
    for (std::size_t i = 0; i < first().num_transfers(); ++i) {
      const std::uint32_t src = first().src[i];
      const std::uint32_t dst = first().dst[i];
      if (src == dst) continue;
      const std::uint32_t signals[]{arrived_[dst]};
      transfer(Phase::kDispatch,
               {src, dst, dispatch_bytes(first(), i, sizes_).value, first().num_rows[i]},
               start_of(starts_at, src, dst), signals);
    }
  }

  void add_mlp() {
    const MlpShape shape{setup_.model.hidden, setup_.model.expert_intermediate,
                         setup_.dispatch_payload};
    const MlpShape shared{setup_.model.hidden, setup_.model.shared_intermediate,
                          setup_.dispatch_payload};
    const auto dispatch_row = static_cast<double>(sizes_.dispatch_row.value);
    const auto combine_row = static_cast<double>(sizes_.combine_row.value);
    std::vector<std::uint64_t> tokens;
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      const auto arriving = static_cast<double>(rows_[rank].arriving);
      const auto copies = static_cast<double>(rows_[rank].copies);
      const std::uint32_t expanded = builder_.add_event();
      compute(Phase::kExpand, rank, copy_time(cluster_.gpu, (arriving + copies) * dispatch_row),
              arrived_[rank], {expanded});

      // The routed experts this rank hosts, and the shared ones, whole, for its own tokens.
      tokens.assign(plan_.rank_expert_tokens.begin() + plan_.rank_expert_begin[rank],
                    plan_.rank_expert_tokens.begin() + plan_.rank_expert_begin[rank + 1]);
      Seconds duration = mlp_time(cluster_.gpu, shape, tokens);
      tokens.assign(setup_.model.num_shared_experts,
                    plan_.token_begin[rank + 1] - plan_.token_begin[rank]);
      duration += mlp_time(cluster_.gpu, shared, tokens);
      const std::uint32_t multiplied = builder_.add_event();
      compute(Phase::kMlp, rank, duration, expanded, {multiplied});
      compute(Phase::kMerge, rank, copy_time(cluster_.gpu, (copies + arriving) * combine_row),
              multiplied, {merged_[rank], returned_[rank]});
    }
  }

  // The order in which `rank` should send to `peer`: the next rank first, so that no destination is
  // everybody's first.
  [[nodiscard]] std::uint32_t turn(std::uint32_t rank, std::uint32_t peer) const {
    return peer >= rank ? peer - rank : peer + plan_.num_ranks - rank;
  }

  void add_flat_combine() {
    const Starts starts_at = starts(Phase::kCombine, stage_sends(first(), true), merged_);
    std::vector<std::uint32_t> order(first().num_transfers());
    for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto key = [&](std::uint32_t i) {
      return std::pair(first().dst[i], turn(first().dst[i], first().src[i]));
    };
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return key(a) < key(b); });
    for (const std::uint32_t i : order) {
      const std::uint32_t src = first().src[i];
      const std::uint32_t dst = first().dst[i];
      if (src == dst) continue;
      const std::uint32_t signals[]{returned_[src]};
      transfer(Phase::kCombine,
               {dst, src, combine_bytes(first(), i, sizes_).value, first().num_rows[i]},
               start_of(starts_at, dst, src), signals);
    }
  }

  void add_sums() {
    const auto row = static_cast<double>(sizes_.combine_row.value);
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      const auto tokens =
          static_cast<double>(plan_.token_begin[rank + 1] - plan_.token_begin[rank]);
      const auto summed = static_cast<double>(rows_[rank].summed);
      compute(Phase::kSum, rank, copy_time(cluster_.gpu, (summed + tokens) * row), returned_[rank],
              {});
    }
  }

  // Hierarchical ---------------------------------------------------------------------------------

  // How many chunks every inter-node transfer travels in, and which forwards it feeds.
  void count_chunks() {
    const std::size_t num_parents = first().num_transfers();
    num_chunks_.assign(num_parents, 1);
    for (std::size_t i = 0; i < num_parents; ++i) {
      if (first().src[i] == first().dst[i]) continue;
      const std::int64_t bytes = dispatch_bytes(first(), i, sizes_).value;
      const std::int64_t chunks = (bytes + setup_.chunk.value - 1) / setup_.chunk.value;
      num_chunks_[i] = static_cast<std::uint32_t>(
          std::clamp<std::int64_t>(chunks, 1, std::max(1U, first().num_rows[i])));
    }
    child_begin_.assign(num_parents + 1, 0);
    for (const std::uint32_t parent : last().parent) ++child_begin_[parent + 1];
    for (std::size_t i = 0; i < num_parents; ++i) child_begin_[i + 1] += child_begin_[i];
    children_.resize(last().num_transfers());
    std::vector<std::uint32_t> next(child_begin_.begin(), child_begin_.end() - 1);
    for (std::uint32_t i = 0; i < children_.size(); ++i) {
      children_[next[last().parent[i]]++] = i;
    }
  }

  [[nodiscard]] std::span<const std::uint32_t> children(std::size_t parent) const {
    return std::span(children_).subspan(child_begin_[parent],
                                        child_begin_[parent + 1] - child_begin_[parent]);
  }

  // Positions of stage-0 transfers [begin, end) of each source rank.
  [[nodiscard]] std::vector<std::uint32_t> source_begin() const {
    std::vector<std::uint32_t> begin(plan_.num_ranks + 1, 0);
    for (const std::uint32_t src : first().src) ++begin[src + 1];
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) begin[rank + 1] += begin[rank];
    return begin;
  }

  void add_chunked_dispatch() {
    chunk_starts_ = starts(Phase::kDispatch, stage_sends(first(), false), packed_);
    const std::vector<std::uint32_t> begin = source_begin();
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      // Chunk by chunk over all destinations, not destination by destination.
      bool more = true;
      for (std::uint32_t chunk = 0; more; ++chunk) {
        more = false;
        for (std::uint32_t i = begin[rank]; i < begin[rank + 1]; ++i) {
          if (chunk >= num_chunks_[i]) continue;
          add_dispatch_chunk(i, chunk);
          more = more || chunk + 1 < num_chunks_[i];
        }
      }
    }
  }

  // Whether the chunk holds rows for the relay's own experts.
  [[nodiscard]] bool feeds_relay(std::uint32_t parent, std::uint32_t chunk) const {
    for (const std::uint32_t child : children(parent)) {
      if (last().dst[child] == first().dst[parent] &&
          share(last().num_rows[child], chunk, num_chunks_[parent]) > 0) {
        return true;
      }
    }
    return false;
  }

  // One chunk between nodes and the forwards that it releases.
  void add_dispatch_chunk(std::uint32_t parent, std::uint32_t chunk) {
    const std::uint32_t src = first().src[parent];
    const std::uint32_t relay = first().dst[parent];
    const std::uint32_t count = num_chunks_[parent];
    std::uint32_t here = packed_[src];
    if (src != relay) {
      here = builder_.add_event();
      std::vector<std::uint32_t> signals{here};
      if (feeds_relay(parent, chunk)) signals.push_back(arrived_[relay]);
      transfer(Phase::kDispatch,
               {src, relay, share(dispatch_bytes(first(), parent, sizes_).value, chunk, count),
                share(first().num_rows[parent], chunk, count)},
               start_of(chunk_starts_, src, relay), signals);
    }
    for (const std::uint32_t child : children(parent)) {
      const std::uint32_t dst = last().dst[child];
      const std::uint32_t num_rows = share(last().num_rows[child], chunk, count);
      if (dst == relay || num_rows == 0) continue;
      const std::uint32_t signals[]{arrived_[dst]};
      transfer(
          Phase::kForward,
          {relay, dst, share(dispatch_bytes(last(), child, sizes_).value, chunk, count), num_rows},
          here, signals);
    }
  }

  // Results inside each node, back to the relay that brought the rows.
  void add_gathers() {
    gathered_.assign(first().num_transfers(), {});
    std::vector<std::uint32_t> order;
    for (std::uint32_t parent = 0; parent < first().num_transfers(); ++parent) {
      if (first().src[parent] != first().dst[parent]) {
        for (std::uint32_t chunk = 0; chunk < num_chunks_[parent]; ++chunk) {
          gathered_[parent].push_back(builder_.add_event());
        }
      }
      for (const std::uint32_t child : children(parent)) order.push_back(child);
    }
    const auto key = [&](std::uint32_t child) {
      const std::uint32_t host = last().dst[child];
      const std::uint32_t relay = last().src[child];
      return std::tuple(host, turn(host, relay), turn(relay, first().src[last().parent[child]]));
    };
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return key(a) < key(b); });
    chunk_starts_ = starts(Phase::kGather, stage_sends(last(), true), merged_);
    for (const std::uint32_t child : order) add_gather(child);
  }

  void add_gather(std::uint32_t child) {
    const std::uint32_t parent = last().parent[child];
    const std::uint32_t relay = last().src[child];
    const std::uint32_t host = last().dst[child];
    if (host == relay) return;
    const std::uint32_t count = num_chunks_[parent];
    const std::int64_t bytes = combine_bytes(last(), child, sizes_).value;
    for (std::uint32_t chunk = 0; chunk < count; ++chunk) {
      const std::uint32_t num_rows = share(last().num_rows[child], chunk, count);
      if (num_rows == 0) continue;
      // Of the own node: the relay is the source, which sums what comes back.
      const std::uint32_t signals[]{first().src[parent] == relay ? returned_[relay]
                                                                 : gathered_[parent][chunk]};
      transfer(Phase::kGather, {host, relay, share(bytes, chunk, count), num_rows},
               start_of(chunk_starts_, host, relay), signals);
    }
  }

  void add_chunked_combine() {
    std::vector<std::uint32_t> order;
    for (std::uint32_t i = 0; i < first().num_transfers(); ++i) {
      if (first().src[i] != first().dst[i]) order.push_back(i);
    }
    const auto key = [&](std::uint32_t i) {
      return std::pair(first().dst[i], turn(first().dst[i], first().src[i]));
    };
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return key(a) < key(b); });
    for (const std::uint32_t parent : order) {
      for (std::uint32_t chunk = 0; chunk < num_chunks_[parent]; ++chunk) {
        add_combine_chunk(parent, chunk);
      }
    }
  }

  // The relay sums a chunk's results and sends them home. Its own share of them is ready when its
  // merge is, which is when every rank of the node may first send: the event below.
  void add_combine_chunk(std::uint32_t parent, std::uint32_t chunk) {
    const std::uint32_t src = first().src[parent];
    const std::uint32_t relay = first().dst[parent];
    const std::uint32_t count = num_chunks_[parent];
    const std::uint32_t num_rows = share(first().num_rows[parent], chunk, count);
    const auto row = static_cast<double>(sizes_.combine_row.value);
    std::uint64_t summed = 0;
    bool any_sent = false;
    for (const std::uint32_t child : children(parent)) {
      const std::uint32_t child_rows = share(last().num_rows[child], chunk, count);
      summed += child_rows;
      any_sent = any_sent || (child_rows > 0 && last().dst[child] != relay);
    }
    // Wait for the gathered results, for the relay's own merge, or for both.
    std::uint32_t ready = any_sent ? gathered_[parent][chunk] : merged_[relay];
    if (any_sent && feeds_relay(parent, chunk)) {
      compute(Phase::kGather, relay, Seconds{}, merged_[relay], {ready});
    }
    const std::uint32_t reduced = builder_.add_event();
    const double bytes = static_cast<double>(summed + num_rows) * row;
    // One persistent kernel sums all chunks: no launch for each.
    const Seconds duration{bytes /
                           (cluster_.gpu.memory_bandwidth.value * cluster_.gpu.memory_efficiency)};
    compute(Phase::kGather, relay, duration, ready, {reduced});
    const std::uint32_t signals[]{returned_[src]};
    transfer(
        Phase::kCombine,
        {relay, src, share(combine_bytes(first(), parent, sizes_).value, chunk, count), num_rows},
        reduced, signals);
  }

  const LayerSetup& setup_;
  const Cluster& cluster_;
  const LayerPlan& plan_;
  PayloadSizes sizes_;
  std::uint32_t first_gpu_;
  ProgramBuilder& builder_;
  LayerProgram& out_;
  std::vector<RankRows> rows_;                         // [num_ranks]
  std::vector<std::uint32_t> packed_;                  // [num_ranks] events
  std::vector<std::uint32_t> arrived_;                 // all rows for the rank's experts are there
  std::vector<std::uint32_t> merged_;                  // its results can leave
  std::vector<std::uint32_t> returned_;                // all results for its tokens are back
  std::vector<std::uint32_t> num_chunks_;              // [stage-0 transfers]
  std::vector<std::uint32_t> child_begin_, children_;  // stage-1 transfers of each of them
  Starts chunk_starts_;                                // of the phase under construction
  std::vector<std::vector<std::uint32_t>> gathered_;   // [stage-0 transfers][chunk] events
};

}  // namespace

LayerProgram build_layer(const LayerSetup& setup, const Cluster& cluster) {
  std::uint64_t num_gpus = 0;
  for (const LayerPlan& plan : setup.groups) num_gpus += plan.num_ranks;
  if (num_gpus > cluster.num_gpus()) {
    throw InputError(fmt::format("topology {}", cluster.name),
                     fmt::format("{} GPUs", cluster.num_gpus()),
                     fmt::format("at least {} for {} EP groups", num_gpus, setup.groups.size()));
  }
  LayerProgram out;
  ProgramBuilder builder;
  std::uint32_t first_gpu = 0;
  for (const LayerPlan& plan : setup.groups) {
    GroupBuilder(setup, cluster, plan, first_gpu, builder, out).build();
    first_gpu += plan.num_ranks;
  }
  out.program = std::move(builder).finish();
  return out;
}

}  // namespace coterie
