#include "sim/program/layer_program.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "sim/program/kernels.hpp"
#include "sim/transports/parts.hpp"
#include "workloads/plan/schedule.hpp"

namespace coterie {
namespace {

constexpr double kIndexBytes = 4.0;  // that an index reads per (token, expert) pair

// One EP group's layer. Events are named for what has happened when they fire; one per rank, or one
// per rank and round.
class GroupBuilder {
 public:
  GroupBuilder(const LayerSetup& setup, const LayerPlan& plan, std::uint32_t first_gpu,
               const Cluster& cluster, LayerProgramBuilder& out)
      : setup_(setup),
        plan_(plan),
        first_gpu_(first_gpu),
        cluster_(cluster),
        out_(out),
        builder_(out.program()),
        dispatch_row_(static_cast<double>(setup.sizes.dispatch_row.value)),
        combine_row_(static_cast<double>(setup.sizes.combine_row.value)) {}

  // `enter[r]` fires when rank r reaches the layer. Returns the events of the ranks' ends.
  std::vector<std::uint32_t> build(const std::vector<std::uint32_t>& enter) {
    count_rows();
    packed_ = out_.events(plan_.num_ranks);
    arrived_ = out_.events(plan_.num_ranks);
    merged_ = out_.events(plan_.num_ranks);
    returned_ = out_.events(plan_.num_ranks);
    if (two_hops()) {
      received_ = out_.events(num_slots());
      forwarded_ = out_.events(num_slots());
      gathered_ = out_.events(num_slots());
      reduced_ = out_.events(num_slots());
      passed_on_ = out_.events(num_slots());
    }
    add_notify_and_pack(enter);
    if (two_hops()) {
      add_dispatch_to_relays();
      add_forwards();
    } else {
      add_flat_dispatch();
    }
    add_experts();
    if (two_hops()) {
      add_gathers();
      add_combine_from_relays();
    } else {
      add_flat_combine();
    }
    return add_sums();
  }

 private:
  // What a rank's kernels move, rows.
  struct RankRows {
    std::uint64_t packed = 0;    // written into send blocks for other ranks
    std::uint64_t arriving = 0;  // for its own experts, local ones included
    std::uint64_t own = 0;       // of these, from its own tokens
    std::uint64_t copies = 0;    // (token, expert) pairs of those
    std::uint64_t summed = 0;    // results it adds up for its own tokens
  };
  // What a relay's kernels move in one round.
  struct RelayRows {
    std::uint64_t received = 0;   // stage-0 rows
    std::uint64_t copies = 0;     // (token, expert) pairs that those serve
    std::uint64_t forwarded = 0;  // stage-1 rows
  };

  [[nodiscard]] bool two_hops() const { return plan_.stages.size() > 1; }
  [[nodiscard]] bool has_kernels() const { return setup_.kernels.has_value(); }
  [[nodiscard]] const Stage& first() const { return plan_.stages.front(); }
  [[nodiscard]] const Stage& last() const { return plan_.stages.back(); }
  [[nodiscard]] std::size_t num_slots() const {
    return std::size_t{plan_.num_ranks} * plan_.num_rounds;
  }
  [[nodiscard]] std::size_t slot(std::uint32_t rank, std::uint32_t round) const {
    return std::size_t{rank} * plan_.num_rounds + round;
  }

  void count_rows() {
    rows_.assign(plan_.num_ranks, {});
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      num_tokens_.push_back(static_cast<std::uint32_t>(plan_.num_tokens(rank)));
    }
    for (std::size_t i = 0; i < first().num_transfers(); ++i) {
      if (first().src[i] != first().dst[i]) rows_[first().src[i]].packed += first().num_rows[i];
      rows_[first().src[i]].summed += first().num_rows[i];
    }
    for (std::size_t i = 0; i < last().num_transfers(); ++i) {
      rows_[last().dst[i]].arriving += last().num_rows[i];
      if (last().src[i] == last().dst[i]) rows_[last().dst[i]].own += last().num_rows[i];
      rows_[last().dst[i]].copies += last().num_copies[i];
    }
    if (!two_hops()) return;
    relay_rows_.assign(num_slots(), {});
    for (std::size_t i = 0; i < first().num_transfers(); ++i) {
      RelayRows& relay = relay_rows_[slot(first().dst[i], first().round[i])];
      relay.received += first().num_rows[i];
      relay.copies += first().num_copies[i];
    }
    for (std::size_t i = 0; i < last().num_transfers(); ++i) {
      relay_rows_[slot(last().src[i], last().round[i])].forwarded += last().num_rows[i];
    }
  }

  // Kernels ---------------------------------------------------------------------------------------

  using Signals = std::initializer_list<std::uint32_t>;

  // The calibrated kernels, where they run: before a transport's own kernels others do.
  [[nodiscard]] const RowKernels* kernels() const {
    return has_kernels() && cluster_.gpu.kernels && out_.transport().runs_with_row_kernels()
               ? &*cluster_.gpu.kernels
               : nullptr;
  }
  // Whether the runtime's own kernels put and pull the rows, so that of the others that move them the
  // indices are left.
  [[nodiscard]] bool puts_rows() const {
    return kernels() != nullptr && out_.transport().moves_tokens();
  }
  // A rank's own rows are read among its tokens and not moved.
  [[nodiscard]] bool own_rows_in_place() const {
    return puts_rows() && !two_hops() && plan_.num_rounds == 1;
  }
  // An event `gap` after `event`, from which on a rank's next phase runs.
  std::uint32_t after_gap(Phase next, std::uint32_t rank, std::uint32_t event) {
    return kernels() == nullptr ? event : after(kernels()->gap, next, rank, event);
  }
  // The same for phases of the main stream that go on behind exchanges: those of two hops have streams of
  // their own.
  std::uint32_t after_exchanges(Phase next, std::uint32_t rank, std::uint32_t event) {
    if (kernels() == nullptr || !two_hops()) return after_gap(next, rank, event);
    return after(kernels()->join.value_or(kernels()->gap), next, rank, event);
  }
  std::uint32_t after(Seconds time, Phase next, std::uint32_t rank, std::uint32_t event) {
    if (time.value <= 0.0) return event;
    const std::uint32_t signals[]{builder_.add_event()};
    builder_.add_compute(first_gpu_ + rank, time.value, event, signals);
    out_.label_between(next);
    return signals[0];
  }
  std::vector<std::uint32_t> after_gap(Phase next, std::vector<std::uint32_t> events) {
    for (std::uint32_t rank = 0; rank < events.size(); ++rank) {
      events[rank] = after_gap(next, rank, events[rank]);
    }
    return events;
  }
  // An exchange's own event, where its step has no kernel: whatever runs from `events` on does so `gap`
  // later. It counts to the phase.
  std::vector<std::uint32_t> with_event(Phase phase, std::vector<std::uint32_t> events) {
    if (kernels() == nullptr || kernels()->gap.value <= 0.0) return events;
    for (std::uint32_t rank = 0; rank < events.size(); ++rank) {
      const std::uint32_t signals[]{builder_.add_event()};
      builder_.add_compute(first_gpu_ + rank, kernels()->gap.value, events[rank], signals);
      events[rank] = signals[0];
    }
    out_.label(phase);
    return events;
  }
  [[nodiscard]] const KernelCosts* kernel_costs(Phase phase) const {
    const RowKernels* all = kernels();
    if (all == nullptr) return nullptr;
    if (puts_rows() && phase == Phase::kPack) {
      return all->send_index ? &*all->send_index : &all->pack;
    }
    if (puts_rows() && phase == Phase::kForward) {
      return all->forward_index ? &*all->forward_index : &all->forward;
    }
    if (puts_rows() && phase == Phase::kExpand && all->expand_put) return &*all->expand_put;
    switch (phase) {
      case Phase::kPack:
        return &all->pack;
      case Phase::kForward:
        return &all->forward;
      case Phase::kExpand:
        return &all->expand;
      case Phase::kMerge:
        return &all->merge;
      case Phase::kGather:
        return &all->gather;
      case Phase::kSum:
        return &all->sum;
      default:
        return nullptr;
    }
  }

  // What a kernel reads and writes together, and the rows that RowKernels counts.
  struct Moved {
    double bytes = 0.0;
    double rows = 0.0;
    std::uint32_t kernels = 1;  // launched one after the other
    double copies_per_row = 0.0;
    std::uint32_t events = 0;  // recorded behind it
    double items = 0.0;        // as RowKernels counts them
    double quantised = 0.0;    // bytes of tokens
  };

  void add_copy(Phase phase, std::uint32_t rank, const Moved& moved, std::uint32_t waits_for,
                std::span<const std::uint32_t> signals, bool launched = false) {
    out_.gpus().add_copy({.gpu = first_gpu_ + rank,
                          .bytes = has_kernels() ? moved.bytes : 0.0,
                          .launched = launched,
                          .costs = kernel_costs(phase),
                          .rows = moved.rows,
                          .copies_per_row = moved.copies_per_row,
                          .items = moved.items,
                          .quantised = moved.quantised,
                          .kernels = moved.kernels,
                          .events = moved.events,
                          .among_streams = two_hops() && !launched,
                          .beside_exchanges = phase == Phase::kForward || phase == Phase::kGather},
                         waits_for, signals);
    out_.label(phase);
  }

  // A copy that a transport whose kernels take rows from the tokens makes itself.
  void add_row_copy(Phase phase, std::uint32_t rank, const Moved& moved, std::uint32_t waits_for,
                    std::span<const std::uint32_t> signals, bool launched = false) {
    add_copy(phase, rank, out_.transport().moves_tokens() ? Moved{} : moved, waits_for, signals,
             launched);
  }

  // What packing moves: the tokens once more as send blocks; before kernels that take the tokens
  // themselves, what it takes to quantise them.
  [[nodiscard]] Moved packed(std::uint32_t rank) const {
    if (!has_kernels()) return {};
    const double token_bytes = 2.0 * setup_.kernels->model.hidden;
    if (puts_rows()) {
      const auto copies = static_cast<double>(plan_.num_tokens(rank) * plan_.num_topk);
      return {copies * kIndexBytes, static_cast<double>(rows_[rank].summed), plan_.num_rounds};
    }
    if (kernels() != nullptr) {
      const auto written = static_cast<double>(rows_[rank].summed);  // those for itself included
      const auto tokens = static_cast<double>(plan_.num_tokens(rank));
      const bool fp8 = setup_.kernels->dispatch_payload == PayloadType::kFp8;
      return {.bytes = tokens * token_bytes + written * dispatch_row_,
              .rows = written,
              .kernels = plan_.num_rounds,
              .items = tokens,
              .quantised = fp8 ? tokens * token_bytes : 0.0};
    }
    const double rows = !out_.transport().moves_tokens() ? static_cast<double>(rows_[rank].packed)
                        : setup_.kernels->dispatch_payload == PayloadType::kFp8
                            ? static_cast<double>(plan_.num_tokens(rank))
                            : 0.0;
    return {rows * (token_bytes + dispatch_row_), rows};
  }

  void add_notify_and_pack(const std::vector<std::uint32_t>& enter) {
    std::uint32_t barrier = kStartEvent;
    if (!setup_.ready_s.empty()) {
      barrier = builder_.add_event();
      for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
        const std::uint32_t signals[]{barrier};
        builder_.add_compute(first_gpu_ + rank, setup_.ready_s[first_gpu_ + rank], kStartEvent,
                             signals);
      }
    }
    const Seconds notify =
        setup_.notify ? out_.transport().notify().value_or(cluster_.overheads.notify) : Seconds{};
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      const std::uint32_t signals[]{builder_.add_event()};
      builder_.add_compute(first_gpu_ + rank, has_kernels() ? notify.value : 0.0,
                           enter.empty() ? barrier : enter[rank], signals);
      out_.label(Phase::kNotify);
      // What a rank packs for itself has arrived where it stands.
      std::vector<std::uint32_t> ready{packed_[rank], arrived_[rank]};
      for (std::uint32_t round = 0; two_hops() && round < plan_.num_rounds; ++round) {
        ready.push_back(received_[slot(rank, round)]);
      }
      add_copy(Phase::kPack, rank, packed(rank), after_gap(Phase::kPack, rank, signals[0]), ready);
    }
  }

  [[nodiscard]] PayloadType expert_type() const {
    return expert_payload(cluster_.gpu, out_.transport().runs_with_row_kernels(),
                          setup_.kernels->dispatch_payload, setup_.kernels->experts);
  }

  // One part of the calibrated MLPs that a rank runs, summed: of the routed experts where they have rows, and
  // of the shared ones where the rank has tokens.
  [[nodiscard]] Seconds sum_over_mlps(std::uint32_t rank, Seconds MlpCosts::*part) const {
    const GpuModel& gpu = cluster_.gpu;
    const auto& routed = expert_type() == PayloadType::kFp8 && gpu.mlp_fp8 ? gpu.mlp_fp8 : gpu.mlp;
    Seconds sum;
    if (routed && rows_[rank].copies > 0) sum += (*routed).*part;
    if (gpu.shared_mlp && setup_.kernels->model.num_shared_experts > 0 &&
        plan_.num_tokens(rank) > 0) {
      sum += (*gpu.shared_mlp).*part;
    }
    return sum;
  }

  // What an MLP takes longer beside the waiting streams of two hops. Durations that were given hold it.
  [[nodiscard]] Seconds mlp_among_streams(std::uint32_t rank) const {
    if (!two_hops() || kernels() == nullptr || !setup_.mlp_s.empty()) return {};
    return sum_over_mlps(rank, &MlpCosts::among_streams);
  }

  // Of an MLP's duration what passes while another rank's kernels have the GPU: the launches. On a GPU
  // of its own nobody else is there.
  [[nodiscard]] Seconds shared_launch(std::uint32_t rank, Seconds duration) const {
    if (cluster_.ranks_per_gpu == 1 || !has_kernels() || !setup_.mlp_s.empty()) return {};
    return Seconds{std::min(sum_over_mlps(rank, &MlpCosts::launch).value, duration.value)};
  }

  void add_experts() {
    std::vector<std::uint64_t> tokens;
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      const auto arriving = static_cast<double>(rows_[rank].arriving);
      const auto copies = static_cast<double>(rows_[rank].copies);
      const std::uint32_t expanded[]{builder_.add_event()};
      const double expert_row =
          kernels() != nullptr ? 2.0 * setup_.kernels->model.hidden : dispatch_row_;
      // Own rows in place are tokens still.
      const double in_place = own_rows_in_place() ? static_cast<double>(rows_[rank].own) : 0.0;
      const double read = (arriving - in_place) * dispatch_row_ + in_place * expert_row;
      add_copy(Phase::kExpand, rank,
               {.bytes = read + copies * expert_row, .rows = copies, .items = arriving},
               after_exchanges(Phase::kExpand, rank, arrived_[rank]), expanded);
      const std::uint32_t multiplied[]{builder_.add_event()};
      Seconds duration;
      if (!setup_.mlp_s.empty()) {
        duration = Seconds{setup_.mlp_s[rank]};
      } else if (has_kernels()) {
        // The routed experts this rank hosts, and the shared ones, whole, for its own tokens.
        const ModelShape& model = setup_.kernels->model;
        const PayloadType type = expert_type();
        tokens.assign(plan_.rank_expert_tokens.begin() + plan_.rank_expert_begin[rank],
                      plan_.rank_expert_tokens.begin() + plan_.rank_expert_begin[rank + 1]);
        duration = mlp_time(cluster_.gpu, {model.hidden, model.expert_intermediate, type}, tokens);
        duration += shared_mlp_time(cluster_.gpu, {model.hidden, model.shared_intermediate, type},
                                    model.num_shared_experts, plan_.num_tokens(rank));
      }
      duration += mlp_among_streams(rank);
      const Seconds launch = shared_launch(rank, duration);
      out_.gpus().add_work(first_gpu_ + rank, Seconds{duration.value - launch.value},
                           after_gap(Phase::kMlp, rank, expanded[0]), multiplied, launch);
      out_.label(Phase::kMlp);
      std::vector<std::uint32_t> ready{merged_[rank], returned_[rank]};
      for (std::uint32_t round = 0; two_hops() && round < plan_.num_rounds; ++round) {
        ready.push_back(gathered_[slot(rank, round)]);
      }
      add_copy(Phase::kMerge, rank,
               {.bytes = (copies + arriving) * combine_row_, .rows = copies, .items = arriving},
               after_gap(Phase::kMerge, rank, multiplied[0]), ready);
    }
  }

  std::vector<std::uint32_t> add_sums() {
    const std::vector<std::uint32_t> done = out_.events(plan_.num_ranks);
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      const auto summed = static_cast<double>(rows_[rank].summed);
      const auto tokens = static_cast<double>(plan_.num_tokens(rank));
      // The shared experts' output is added where the runtime's kernels sum.
      const bool adds_shared = kernels() != nullptr && setup_.kernels->model.num_shared_experts > 0;
      const double outputs = adds_shared ? 2.0 * tokens : tokens;
      if (puts_rows()) {
        // The combine has summed: what is left are the events of the phase.
        builder_.add_compute(first_gpu_ + rank, kernels()->gap.value,
                             after_exchanges(Phase::kSum, rank, returned_[rank]),
                             std::span(&done[rank], 1));
        out_.label(Phase::kSum);
        continue;
      }
      add_row_copy(Phase::kSum, rank,
                   {.bytes = (summed + outputs) * combine_row_,
                    .rows = summed,
                    .kernels = kernels() != nullptr ? plan_.num_rounds : 1,
                    .items = tokens},
                   after_exchanges(Phase::kSum, rank, returned_[rank]), std::span(&done[rank], 1));
    }
    return done;
  }

  // Messages --------------------------------------------------------------------------------------

  // Adds the messages of one stage in one direction. `ready`: from when on each rank may send.
  // `after(m)` fires when message m may leave besides, `signal(m)` is told of its arrival.
  template <class After, class Signal>
  void add_messages(const Stage& stage, Direction direction, bool continues,
                    const std::vector<std::uint32_t>& ready, const After& after,
                    const Signal& signal) {
    std::vector<PlanMessage> messages = stage_messages(stage, direction);
    std::vector<Message> sends;
    sends.reserve(messages.size());
    if (direction == Direction::kDispatch && own_rows_in_place()) {
      std::erase_if(messages, [](const PlanMessage& m) { return m.src == m.dst; });
    }
    for (const PlanMessage& m : messages) {
      sends.push_back({first_gpu_ + m.src, first_gpu_ + m.dst,
                       static_cast<double>(m.bytes(direction, setup_.sizes).value), m.num_rows,
                       m.num_copies});
    }
    const Phase phase = phase_of(stage, direction);
    if (kernels() != nullptr &&
        (two_hops() || direction == Direction::kCombine || out_.transport().moves_tokens())) {
      add_rounds(stage, direction, messages, sends, ready, after, signal);
      return;
    }
    const std::vector<std::uint32_t> begins = with_event(phase, ready);
    const std::unique_ptr<PhaseTransport> transport = out_.transport().begin(
        builder_, out_.gpus(), {direction, continues, sends, first_gpu_, begins, num_tokens_});
    out_.label(phase);
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const std::uint32_t signals[]{signal(messages[i])};
      out_.label(phase, transport->send(sends[i], after(messages[i]), signals), sends[i].num_rows);
    }
  }

  // Every round as a grouped exchange of its own: a rank begins it when its exchange of the round
  // before is over (a relay also when it has summed that round's results) and everything of this round
  // may leave, and pays a start each time. Behind it a
  // rank's own results are copied to where those of others arrive; own rows of a dispatch stay.
  template <class After, class Signal>
  void add_rounds(const Stage& stage, Direction direction, const std::vector<PlanMessage>& messages,
                  const std::vector<Message>& sends, std::vector<std::uint32_t> ready,
                  const After& after, const Signal& signal) {
    const Phase phase = phase_of(stage, direction);
    for (std::uint32_t round = 0; round < plan_.num_rounds; ++round) {
      std::vector<Message> of_round;
      std::vector<std::size_t> idx;
      for (std::size_t i = 0; i < messages.size(); ++i) {
        if (messages[i].round != round) continue;
        of_round.push_back(sends[i]);
        idx.push_back(i);
      }
      // A rank's messages of a round wait for the same event: see `after` of the callers.
      std::vector<std::uint32_t> begins = ready;
      std::vector<bool> takes_part(plan_.num_ranks, false);
      for (const std::size_t i : idx) {
        const PlanMessage& m = messages[i];
        if (m.src != m.dst) takes_part[m.src] = takes_part[m.dst] = true;
        const std::uint32_t may_leave = after(m);
        if (may_leave == kStartEvent || begins[m.src] != ready[m.src]) continue;
        begins[m.src] = builder_.add_event();
        const std::uint32_t signals[]{begins[m.src]};
        for (const std::uint32_t event : {ready[m.src], may_leave}) {
          builder_.add_compute(first_gpu_ + m.src, 0.0, event, signals);
        }
        out_.label_between(phase);
      }
      for (std::uint32_t rank = 0; phase == Phase::kGather && round > 0 && rank < begins.size();
           ++rank) {
        begins[rank] =
            when_both(builder_, first_gpu_ + rank, begins[rank], reduced_[slot(rank, round - 1)]);
        out_.label_between(phase);
      }
      if (phase == Phase::kDispatch || phase == Phase::kCombine ||
          (phase == Phase::kGather && puts_rows())) {
        begins = with_event(phase, std::move(begins));
      }
      const std::vector<std::uint32_t> items = items_of(stage, round);
      PhaseTraffic traffic{direction, false, of_round, first_gpu_, begins, items};
      describe_items(stage, direction, round, traffic);
      const std::unique_ptr<PhaseTransport> transport =
          out_.transport().begin(builder_, out_.gpus(), traffic);
      out_.label(phase);
      for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
        if (takes_part[rank]) ready[rank] = builder_.add_event();
        if (phase != Phase::kForward) continue;
        const std::uint32_t signals[]{passed_on_[slot(rank, round)]};
        builder_.add_compute(first_gpu_ + rank, 0.0,
                             takes_part[rank] ? ready[rank] : forwarded_[slot(rank, round)],
                             signals);
        out_.label_between(phase);
      }
      for (const std::size_t i : idx) {
        const PlanMessage& m = messages[i];
        std::vector<std::uint32_t> signals{signal(m)};
        if (m.src != m.dst) signals.insert(signals.end(), {ready[m.src], ready[m.dst]});
        if (m.src != m.dst && direction == Direction::kDispatch && puts_rows()) {
          // What a rank does with the rows that it gets comes on its stream behind its own put.
          PlanMessage to_itself = m;
          to_itself.dst = m.src;
          signals.push_back(signal(to_itself));
        }
        out_.label(phase, transport->send(sends[i], after(m), signals), sends[i].num_rows);
      }
      if (direction == Direction::kDispatch || puts_rows()) continue;
      for (const std::size_t i : idx) {
        const PlanMessage& m = messages[i];
        if (m.src != m.dst || m.num_rows == 0) continue;
        const std::uint32_t over = takes_part[m.src] ? ready[m.src] : begins[m.src];
        ready[m.src] = builder_.add_event();
        const std::uint32_t signals[]{signal(m), ready[m.src]};
        const auto& own_copy = kernels()->own_copy;
        out_.gpus().add_copy({.gpu = first_gpu_ + m.src,
                              .bytes = 2.0 * sends[i].bytes,
                              .costs = own_copy ? &*own_copy : nullptr,
                              .beside_exchanges = phase == Phase::kGather},
                             over, signals);
        out_.label(phase);
      }
    }
  }

  // What the rows of a round are read from: tokens, or what a relay has received, [num_ranks].
  [[nodiscard]] std::vector<std::uint32_t> items_of(const Stage& stage, std::uint32_t round) const {
    std::vector<std::uint32_t> items;
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      if (two_hops() && &stage == &last()) {
        items.push_back(static_cast<std::uint32_t>(relay_rows_[slot(rank, round)].received));
        continue;
      }
      const auto begin = [&](std::uint32_t of_round) {
        return round_begin(plan_.token_begin, rank, of_round, plan_.num_rounds);
      };
      items.push_back(static_cast<std::uint32_t>(begin(round + 1) - begin(round)));
    }
    return items;
  }

  // What the runtime's own puts and pulls move per item besides their rows: a token is read in BF16 and a
  // received row as it came; a pull writes a sum, and reads what the shared experts add to a token's.
  void describe_items(const Stage& stage, Direction direction, std::uint32_t round,
                      PhaseTraffic& traffic) const {
    if (!puts_rows()) return;
    const bool second = two_hops() && &stage == &last();
    const double token = 2.0 * setup_.kernels->model.hidden;
    const bool fp8 = setup_.kernels->dispatch_payload == PayloadType::kFp8;
    traffic.hop = stage.hop;
    if (direction == Direction::kDispatch) {
      traffic.item_bytes = second ? dispatch_row_ : token;
      traffic.quantises = fp8 && !second;
      return;
    }
    const bool adds_shared = !second && setup_.kernels->model.num_shared_experts > 0;
    traffic.item_bytes = adds_shared ? 2.0 * token : token;
    // The results of the last hop stand when the merge is over: one announcement for all rounds.
    traffic.announced = round > 0 && &stage == &last();
  }

  static std::uint32_t at_once(const PlanMessage&) { return kStartEvent; }

  void add_flat_dispatch() {
    add_messages(first(), Direction::kDispatch, false, after_gap(Phase::kDispatch, packed_),
                 at_once, [this](const PlanMessage& m) { return arrived_[m.dst]; });
  }

  void add_flat_combine() {
    add_messages(first(), Direction::kCombine, false, after_gap(Phase::kCombine, merged_), at_once,
                 [this](const PlanMessage& m) { return returned_[m.dst]; });
  }

  void add_dispatch_to_relays() {
    add_messages(first(), Direction::kDispatch, false, after_gap(Phase::kDispatch, packed_),
                 at_once, [this](const PlanMessage& m) { return received_[slot(m.dst, m.round)]; });
  }

  // When a relay may forward a round: its rows are there, and the runtime's stream of the second hop has
  // passed on the round before. That stream's first round begins with an event of its own.
  std::uint32_t next_on_stream(std::uint32_t rank, std::uint32_t round) {
    const std::uint32_t received = received_[slot(rank, round)];
    if (round == 0) return after_gap(Phase::kForward, rank, received);
    if (kernels() == nullptr) return received;
    const std::uint32_t both =
        when_both(builder_, first_gpu_ + rank, received, passed_on_[slot(rank, round - 1)]);
    out_.label_between(Phase::kForward);
    return both;
  }

  // A round's rows are copied from what a relay received to what it sends on, by one kernel that
  // runs on from round to round.
  void add_forwards() {
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      for (std::uint32_t round = 0; round < plan_.num_rounds; ++round) {
        const RelayRows& relay = relay_rows_[slot(rank, round)];
        const auto rows = static_cast<double>(relay.forwarded);
        // The relay's own rows stand where they are copied to.
        const std::uint32_t signals[]{forwarded_[slot(rank, round)], arrived_[rank]};
        // The runtime's kernel reads a row once for all that it is sent on to.
        const auto received = static_cast<double>(relay.received);
        const double read = kernels() != nullptr ? received : rows;
        const double copies_per_row =
            relay.received == 0 ? 0.0 : static_cast<double>(relay.copies) / received;
        if (puts_rows()) {
          add_copy(Phase::kForward, rank,
                   {static_cast<double>(relay.copies) * kIndexBytes, rows, 1, copies_per_row},
                   next_on_stream(rank, round), signals);
          continue;
        }
        add_row_copy(Phase::kForward, rank,
                     {.bytes = (rows + read) * dispatch_row_,
                      .rows = rows,
                      .copies_per_row = copies_per_row,
                      .events = 1,
                      .items = received},
                     next_on_stream(rank, round), signals,
                     /*launched=*/round > 0);
      }
    }
    add_messages(
        last(), Direction::kDispatch, true, packed_,
        [this](const PlanMessage& m) { return forwarded_[slot(m.src, m.round)]; },
        [this](const PlanMessage& m) { return arrived_[m.dst]; });
  }

  void add_gathers() {
    add_messages(last(), Direction::kCombine, false, after_gap(Phase::kGather, merged_), at_once,
                 [this](const PlanMessage& m) { return gathered_[slot(m.dst, m.round)]; });
  }

  // A relay sums a round's results per row that it had received and sends them home, on the stream of
  // the first hop, whose first round begins with an event of its own.
  void add_combine_from_relays() {
    std::vector<std::uint32_t> begins = reduced_;
    for (std::uint32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      for (std::uint32_t round = 0; round < plan_.num_rounds; ++round) {
        const RelayRows& rows = relay_rows_[slot(rank, round)];
        const std::uint32_t signals[]{reduced_[slot(rank, round)], returned_[rank]};
        add_row_copy(Phase::kGather, rank,
                     {.bytes = static_cast<double>(rows.forwarded + rows.received) * combine_row_,
                      .rows = static_cast<double>(rows.forwarded),
                      .events = 1,
                      .items = static_cast<double>(rows.received)},
                     gathered_[slot(rank, round)], signals,
                     /*launched=*/round > 0);
      }
      std::uint32_t& first_begin = begins[slot(rank, 0)];
      first_begin = after_gap(Phase::kCombine, rank, first_begin);
    }
    add_messages(
        first(), Direction::kCombine, true, merged_,
        [this, &begins](const PlanMessage& m) { return begins[slot(m.src, m.round)]; },
        [this](const PlanMessage& m) { return returned_[m.dst]; });
  }

  const LayerSetup& setup_;
  const LayerPlan& plan_;
  std::uint32_t first_gpu_;
  const Cluster& cluster_;
  LayerProgramBuilder& out_;
  ProgramBuilder& builder_;
  double dispatch_row_, combine_row_;      // bytes
  std::vector<RankRows> rows_;             // [num_ranks]
  std::vector<std::uint32_t> num_tokens_;  // [num_ranks]
  std::vector<RelayRows> relay_rows_;      // [num_ranks][num_rounds]
  // Events, [num_ranks].
  std::vector<std::uint32_t> packed_;    // its rows may leave
  std::vector<std::uint32_t> arrived_;   // all rows for its experts are there
  std::vector<std::uint32_t> merged_;    // its results may leave
  std::vector<std::uint32_t> returned_;  // all results for its tokens are back
  // Events of relays, [num_ranks][num_rounds].
  std::vector<std::uint32_t> received_;   // the round's rows are there
  std::vector<std::uint32_t> forwarded_;  // and may leave
  std::vector<std::uint32_t> gathered_;   // the round's results are there
  std::vector<std::uint32_t> reduced_;    // summed, they may leave
  std::vector<std::uint32_t> passed_on_;  // the round's exchange of the second hop is over
};

}  // namespace

LayerProgramBuilder::LayerProgramBuilder(const Cluster& cluster, const TransportChoice& transport)
    : cluster_(cluster),
      transport_(make_transport(cluster, transport)),
      gpus_(builder_, cluster.gpu, cluster.ranks_per_gpu) {}

std::vector<std::uint32_t> LayerProgramBuilder::add_layer(const LayerSetup& setup,
                                                          const LayerPlan& plan,
                                                          std::uint32_t first_gpu,
                                                          const std::vector<std::uint32_t>& enter) {
  return GroupBuilder(setup, plan, first_gpu, cluster_, *this).build(enter);
}

std::vector<std::uint32_t> LayerProgramBuilder::events(std::size_t count) {
  std::vector<std::uint32_t> out(count);
  for (std::uint32_t& event : out) event = builder_.add_event();
  return out;
}

void LayerProgramBuilder::label(Phase phase) {
  out_.phase.resize(builder_.num_ops(), phase);
  out_.num_rows.resize(builder_.num_ops(), 0);
  out_.between.resize(builder_.num_ops(), false);
}

void LayerProgramBuilder::label_between(Phase next) {
  const std::size_t first = out_.phase.size();
  label(next);
  std::fill(out_.between.begin() + static_cast<std::ptrdiff_t>(first), out_.between.end(), true);
}

void LayerProgramBuilder::label(Phase phase, std::optional<std::uint32_t> op,
                                std::uint32_t num_rows) {
  label(phase);
  if (op) out_.num_rows[*op] = num_rows;
}

LayerProgram LayerProgramBuilder::finish() && {
  out_.program = std::move(builder_).finish();
  return std::move(out_);
}

LayerProgram build_layer(const LayerSetup& setup, const Cluster& cluster) {
  std::uint64_t num_gpus = 0;
  for (const LayerPlan& plan : setup.groups) num_gpus += plan.num_ranks;
  if (num_gpus > cluster.num_gpus()) {
    throw InputError(fmt::format("topology {}", cluster.name), counted(cluster.num_gpus(), "GPU"),
                     fmt::format("at least {} for {} EP groups", num_gpus, setup.groups.size()));
  }
  LayerProgramBuilder out(cluster, setup.transport);
  std::uint32_t first_gpu = 0;
  for (const LayerPlan& plan : setup.groups) {
    (void)out.add_layer(setup, plan, first_gpu, {});
    first_gpu += plan.num_ranks;
  }
  return std::move(out).finish();
}

LayerProgram build_communication(const DispatchPlan& plan, const Cluster& cluster,
                                 const TransportChoice& transport) {
  LayerProgramBuilder out(cluster, transport);
  const LayerSetup setup{{}, plan.sizes(), std::nullopt, transport, {}, {}, true};
  std::vector<std::uint32_t> enter;
  for (const LayerPlan& layer : plan.layers) {
    if (!enter.empty() && enter.size() != layer.num_ranks) {
      throw InputError(fmt::format("plan, layer {}", layer.layer), counted(layer.num_ranks, "rank"),
                       fmt::format("{} as in its first layer", enter.size()));
    }
    enter = out.add_layer(setup, layer, 0, enter);
  }
  return std::move(out).finish();
}

LayerProgram build_traffic(const TrafficMatrix& traffic, const TrafficSetup& setup,
                           const Cluster& cluster) {
  LayerProgramBuilder out(cluster, setup.transport);
  std::map<double, std::vector<Message>> phases;  // by start time
  for (const TrafficEntry& entry : traffic.entries) {
    const auto bytes = static_cast<double>(entry.bytes);
    const double rows = setup.row_bytes ? std::max(1.0, bytes / *setup.row_bytes) : 1.0;
    phases[entry.start_s].push_back(
        {entry.src, entry.dst, bytes, static_cast<std::uint32_t>(std::llround(rows))});
  }
  std::vector<std::uint32_t> num_tokens;
  if (setup.tokens_per_rank) num_tokens.assign(traffic.num_ranks, *setup.tokens_per_rank);
  const Phase phase = setup.direction == Direction::kDispatch ? Phase::kDispatch : Phase::kCombine;
  for (const auto& [start_s, messages] : phases) {
    std::uint32_t event = kStartEvent;
    if (start_s > 0.0) {
      const std::uint32_t signals[]{event = out.program().add_event()};
      out.program().add_compute(messages.front().src, start_s, kStartEvent, signals);
    }
    const std::vector<std::uint32_t> ready(traffic.num_ranks, event);
    const std::unique_ptr<PhaseTransport> transport = out.transport().begin(
        out.program(), out.gpus(), {setup.direction, false, messages, 0, ready, num_tokens});
    out.label(phase);
    for (const Message& message : messages) {
      out.label(phase, transport->send(message, kStartEvent, {}), message.num_rows);
    }
  }
  return std::move(out).finish();
}

std::vector<double> rank_finish_s(const Program& program, const Execution& execution,
                                  std::uint32_t num_ranks) {
  std::vector<double> finish(num_ranks, 0.0);
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    for (const std::uint32_t rank : {program.src[op], program.dst[op]}) {
      finish[rank] = std::max(finish[rank], execution.finish_s[op]);
    }
  }
  return finish;
}

}  // namespace coterie
