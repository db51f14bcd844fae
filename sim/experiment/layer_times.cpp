// How the rates are found. A layer is planned whose tokens choose experts uniformly, and every
// transfer is given the mean rows of its kind, so that only the machine makes ranks differ. Its
// program is built as it is, and again with fewer rows (per hop) and with more copies; what an
// operation takes of a link or resource, amount over capacity, differs by the rate times the rows.
// So whatever a transport does with its rows is in the rates, and none is asked for them.

#include "sim/experiment/layer_times.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/random.hpp"
#include "sim/engines/engine.hpp"
#include "sim/program/layer_program.hpp"
#include "topologies/network.hpp"
#include "workloads/plan/tokens.hpp"

namespace coterie {
namespace {

constexpr std::uint64_t kMaxTimedSteps = 4;
constexpr std::uint64_t kManySequences = 16;  // of a rank
constexpr std::uint64_t kMaxSteps = 64;
constexpr std::uint64_t kQuickBoundTokens = 1 << 16;
constexpr double kSame = 1.02;  // channels whose rates differ less are one

// Tokens that choose experts uniformly, a sequence per rank.
Routing uniform_routing(const ModelShape& model, std::uint32_t num_ranks,
                        std::uint64_t tokens_per_rank) {
  Routing routing;
  routing.num_experts = model.num_experts;
  routing.num_topk = model.num_topk;
  routing.layers = {0};
  Random random(1);
  std::vector<ExpertIdx> experts(model.num_experts);
  for (std::uint32_t e = 0; e < model.num_experts; ++e) experts[e] = static_cast<ExpertIdx>(e);
  for (std::uint32_t rank = 0; rank <= num_ranks; ++rank) {
    routing.sequence_begin.push_back(rank * tokens_per_rank);
  }
  routing.experts.reserve(routing.num_tokens() * model.num_topk);
  for (std::uint64_t token = 0; token < routing.num_tokens(); ++token) {
    for (std::uint32_t j = 0; j < model.num_topk; ++j) {
      std::swap(experts[j], experts[j + random.index(model.num_experts - j)]);
      routing.experts.push_back(experts[j]);
    }
  }
  return routing;
}

LayerPlacement contiguous_layer(std::uint32_t num_experts, std::uint32_t num_ranks) {
  LayerPlacement layer;
  layer.rank_experts.resize(num_ranks);
  for (std::uint32_t e = 0; e < num_experts; ++e) {
    layer.rank_experts[std::uint64_t{e} * num_ranks / num_experts].push_back(
        static_cast<ExpertIdx>(e));
  }
  return layer;
}

// Gives all transfers of a stage that have rows on the wire, and all that stay, their mean rows.
void even_out(Stage& stage, double rows_factor, double copies_factor) {
  double rows = 0.0;
  double copies = 0.0;
  for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
    rows += stage.num_rows[i];
    copies += stage.num_copies[i];
  }
  const auto count = static_cast<double>(std::max<std::size_t>(stage.num_transfers(), 1));
  const auto mean_rows = std::max(2.0, std::round(rows / count));
  const auto mean_copies =
      std::max(mean_rows, std::round(mean_rows * copies / std::max(1.0, rows)));
  std::fill(stage.num_rows.begin(), stage.num_rows.end(),
            static_cast<std::uint32_t>(std::max(1.0, std::round(mean_rows * rows_factor))));
  std::fill(stage.num_copies.begin(), stage.num_copies.end(),
            static_cast<std::uint32_t>(std::round(mean_copies * copies_factor)));
}

double total_rows(const Stage& stage) {
  double sum = 0.0;
  for (const std::uint32_t rows : stage.num_rows) sum += rows;
  return sum;
}
double total_copies(const Stage& stage) {
  double sum = 0.0;
  for (const std::uint32_t copies : stage.num_copies) sum += copies;
  return sum;
}

// What one program takes of every link and resource, by whose rows take it.
class Usage {
 public:
  Usage(const LayerProgram& layer, const Routes& routes, std::uint32_t num_ranks,
        std::uint32_t ranks_per_node, std::uint32_t ranks_per_gpu, bool relayed)
      : ranks_per_node_(ranks_per_node),
        num_nodes_((num_ranks + ranks_per_node - 1) / ranks_per_node),
        num_links_(routes.capacity.size()) {
    for (std::size_t d = 0; d < 2; ++d) {
      rank_s[d].assign(num_links_ * num_nodes_, 0.0);
      relay_s[d].assign(num_links_ * num_nodes_, 0.0);
      only_rank[d].assign(num_links_, kNobody);
      capped_s[d].assign(num_ranks, 0.0);
    }
    const Program& program = layer.program;
    for (std::size_t op = 0; op < program.num_ops(); ++op) {
      const Phase phase = layer.phase[op];
      const bool back = phase == Phase::kCombine || phase == Phase::kGather;
      const bool transfer = back || phase == Phase::kDispatch || phase == Phase::kForward;
      if (!transfer) {
        // Beside other ranks of its GPU a kernel is two operations, of the memory and of its turns.
        const bool shared = ranks_per_gpu > 1;
        if (shared && op > 0 && layer.phase[op - 1] == phase && same_kernel(program, op - 1, op)) {
          continue;
        }
        const double flow = flow_s(program, routes, op);
        const double turns = shared ? flow : 0.0;
        if (phase == Phase::kExpand || phase == Phase::kMerge) {
          serving_s += (program.duration[op] + (flow - turns)) / num_ranks;
          serving_turns_s += turns / num_ranks;
        } else if (phase == Phase::kPack || phase == Phase::kSum) {
          source_s += (program.duration[op] + flow * ranks_per_gpu) / num_ranks;
        }
        continue;
      }
      if (!program.flows(op)) {
        // Starts, and turns of a GPU's ranks, of which the last waits for all.
        const double turns = program.queue[op] == kFreeQueue ? 1.0 : ranks_per_gpu;
        source_s += turns * program.duration[op] / num_ranks;
        continue;
      }
      const std::uint32_t server = back ? program.src[op] : program.dst[op];
      const bool to_relay = relayed && (phase == Phase::kDispatch || phase == Phase::kCombine);
      add(back ? 1 : 0, program, routes, op, server, to_relay);
    }
  }

  static constexpr std::uint32_t kNobody = 0xffffffff;
  static constexpr std::uint32_t kSeveral = 0xfffffffe;

  // Seconds, by direction.
  std::array<std::vector<double>, 2> rank_s;   // [num_links][num_nodes] of rows to ranks of a node
  std::array<std::vector<double>, 2> relay_s;  // [num_links][num_nodes] of rows to a node's relays
  std::array<std::vector<std::uint32_t>, 2> only_rank;  // [num_links] the one rank whose rows cross
  std::array<std::vector<double>, 2> capped_s;          // [num_ranks] of its most held-up message
  // Of expand and merge, mean rank; apart, what takes turns with the other ranks of the GPU.
  double serving_s = 0.0, serving_turns_s = 0.0;
  double source_s = 0.0;  // of pack, sum and starts, mean rank

  [[nodiscard]] std::size_t num_links() const { return num_links_; }

 private:
  static double flow_s(const Program& program, const Routes& routes, std::size_t op) {
    double most = 0.0;
    for (const std::uint32_t link : routes.of(op)) {
      most = std::max(most, program.amount[op] / routes.capacity[link]);
    }
    return most;
  }
  // Operations that need several resources in different proportions are one per resource.
  static bool same_kernel(const Program& program, std::size_t a, std::size_t b) {
    return program.flows(a) && program.flows(b) && program.src[a] == program.src[b] &&
           program.waits_for[a] == program.waits_for[b];
  }

  void add(std::size_t d, const Program& program, const Routes& routes, std::size_t op,
           std::uint32_t server, bool to_relay) {
    const std::uint32_t node = server / ranks_per_node_;
    for (const std::uint32_t link : routes.of(op)) {
      const double seconds = program.amount[op] / routes.capacity[link];
      (to_relay ? relay_s : rank_s)[d][link * num_nodes_ + node] += seconds;
      std::uint32_t& only = only_rank[d][link];
      const std::uint32_t who = to_relay ? kSeveral : server;
      only = only == kNobody || only == who ? who : kSeveral;
    }
    if (!to_relay && std::isfinite(routes.rate_cap[op])) {
      capped_s[d][server] = std::max(capped_s[d][server], program.amount[op] / routes.rate_cap[op]);
    }
  }

  std::uint32_t ranks_per_node_, num_nodes_;
  std::size_t num_links_;
};

bool covers(const std::vector<double>& larger, const std::vector<double>& smaller) {
  for (std::size_t n = 0; n < smaller.size(); ++n) {
    if (smaller[n] > kSame * larger[n]) return false;
    if (larger[n] > 0.0 && smaller[n] <= 0.0) return false;  // others wait for it
  }
  return true;
}

// Leaves out channels that another one, crossed by the same rows, is never faster than.
void keep_slowest(std::vector<LayerCost::Channel>& channels) {
  std::vector<LayerCost::Channel> kept;
  for (const LayerCost::Channel& channel : channels) {
    const auto hides = [&](const LayerCost::Channel& other) {
      return other.base_s * kSame >= channel.base_s && covers(other.row_s, channel.row_s) &&
             covers(other.relay_s, channel.relay_s);
    };
    if (std::any_of(kept.begin(), kept.end(), hides)) continue;
    kept.push_back(channel);
  }
  // Again backwards, for those that a later one hides.
  std::vector<LayerCost::Channel> result;
  for (auto channel = kept.rbegin(); channel != kept.rend(); ++channel) {
    const auto hides = [&](const LayerCost::Channel& other) {
      return other.base_s * kSame >= channel->base_s && covers(other.row_s, channel->row_s) &&
             covers(other.relay_s, channel->relay_s);
    };
    if (std::any_of(result.begin(), result.end(), hides)) continue;
    result.push_back(*channel);
  }
  channels.assign(result.rbegin(), result.rend());
}

class PredictedTimes : public LayerTimes {
 public:
  explicit PredictedTimes(LayerTimesSetup setup)
      : setup_(std::move(setup)), network_(setup_.cluster) {
    if (setup_.num_ranks > setup_.cluster.num_gpus()) {
      throw InputError(fmt::format("topology {}", setup_.cluster.name),
                       counted(setup_.cluster.num_gpus(), "GPU"),
                       fmt::format("at least {}, one per rank", setup_.num_ranks));
    }
    ContentHash hash;
    hash.add(to_yaml(setup_.cluster));
    const ModelShape& model = setup_.model;
    hash.add(fmt::format(
        "{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", model.hidden, model.expert_intermediate,
        model.shared_intermediate, model.num_shared_experts, model.num_experts, model.num_topk,
        setup_.num_ranks, to_string(setup_.policy), to_string(setup_.dispatch_payload),
        to_string(setup_.combine_payload), setup_.chunk.value, static_cast<int>(setup_.deal),
        setup_.tokens_per_rank.value_or(0), setup_.training_tokens,
        setup_.transport.name.value_or(""), setup_.transport.settings.size()));
    if (setup_.expert_type) hash.add(to_string(*setup_.expert_type));
    for (const Override& setting : setup_.transport.settings) {
      hash.add(setting.key + "=" + setting.value);
    }
    key_ = hex64(hash.digest());
    find_rates();
  }

  [[nodiscard]] const LayerCost& cost() const override { return cost_; }
  [[nodiscard]] const std::string& key() const override { return key_; }

  [[nodiscard]] double predict_s(const Routing& routing, std::size_t layer_idx,
                                 const LayerPlacement& placement,
                                 ReplicaChoice choice) const override {
    const std::uint64_t steps = num_timed_steps(routing);
    double sum_s = 0.0;
    for (std::uint64_t step = 0; step < steps; ++step) {
      sum_s += makespan_s(
          make_plan(routing, layer_idx, placement, deal(routing, step, steps), request(choice)));
    }
    return sum_s / static_cast<double>(steps);
  }

  [[nodiscard]] std::vector<std::uint64_t> occurrences(const Routing& routing) const override {
    if (!setup_.tokens_per_rank) return std::vector<std::uint64_t>(routing.num_tokens(), 1);
    const std::uint64_t steps = std::clamp(num_steps(routing), num_timed_steps(routing), kMaxSteps);
    std::vector<std::uint64_t> count(routing.num_tokens(), 0);
    for (std::uint64_t step = 0; step < steps; ++step) {
      for (const std::uint64_t token : deal(routing, step, steps).trace_token) ++count[token];
    }
    return count;
  }

  // Rank r ends no earlier than notify + out[r] + work[r] + back[r], since its experts wait for all of its
  // rows and its results for them; the largest over the ranks is at least the mean. Where ranks share
  // a GPU it ends no earlier than notify and the turns of all of them, either. The sum of the
  // work is known but for the rows. What crosses the links of the ranks, in or out, is at least
  //   F - T rows in all     (F: distinct ranks over all tokens, T: tokens; one row per token stays)
  //   N - T rows over NICs  (N: distinct nodes)
  // at the rate of the widest link. F and N are bounded (fan_out_bound). Of relayed rows it is not
  // known whose waiting they are: the largest of the three means counts.
  [[nodiscard]] double bound_s(const Routing& routing, std::size_t layer_idx,
                               std::uint32_t part_capacity, std::uint32_t num_replicas,
                               BoundEffort effort) const override {
    const std::uint64_t steps = num_timed_steps(routing);
    FanOutBoundTask task;
    task.num_topk = routing.num_topk;
    task.num_experts = routing.num_experts;
    task.part_capacity = part_capacity;
    task.num_replicas = num_replicas;
    task.effort = effort;
    ServingBound serving;
    double sum_s = 0.0;
    for (std::uint64_t step = 0; step < steps; ++step) {
      const RankTokens tokens = deal(routing, step, steps);
      // Without a size of their own all steps have every token once.
      if (step == 0 || setup_.tokens_per_rank) {
        serving = serving_bound(routing.layer_experts(layer_idx), tokens, task);
      }
      const Kernels least = least_kernels(tokens, serving.load);
      sum_s += notify_s_ + std::max(least.own_s + serving.mean_s, least.turns_s + serving.turns_s);
    }
    return sum_s / static_cast<double>(steps);
  }

 private:
  // What the mean rank takes at least for its rows, products and results; the mean GPU for what its
  // ranks take turns with; and the experts' loads.
  struct ServingBound {
    double mean_s = 0.0, turns_s = 0.0;
    std::vector<double> load;  // [num_experts]
  };
  [[nodiscard]] ServingBound serving_bound(std::span<const ExpertIdx> layer,
                                           const RankTokens& tokens, FanOutBoundTask task) const {
    ServingBound result;
    result.load.assign(task.num_experts, 0.0);
    std::vector<ExpertIdx> experts;
    experts.reserve(tokens.trace_token.size() * task.num_topk);
    for (const std::uint64_t token : tokens.trace_token) {
      for (std::uint32_t j = 0; j < task.num_topk; ++j) {
        experts.push_back(layer[token * task.num_topk + j]);
        result.load[experts.back()] += 1.0;
      }
    }
    task.experts = experts;
    // The quick search's passes over many tokens would no longer be quick.
    if (task.effort == BoundEffort::kQuick) {
      task.max_passes = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(
          kQuickBoundTokens / std::max<std::size_t>(1, tokens.trace_token.size()), 1, 8));
    }
    const auto num_tokens = static_cast<double>(tokens.trace_token.size());
    const auto ranks = static_cast<double>(fan_out_bound(task));
    double nodes = num_tokens;
    if (cost_.num_nodes() > 1) {
      task.part_capacity *= cost_.ranks_per_node;
      nodes = static_cast<double>(fan_out_bound(task));
    }
    const double copies = num_tokens * task.num_topk;
    const double rows = cost_.rows_are_copies ? copies : ranks;
    double turns = cost_.turn_row_s * rows;
    for (const double count : result.load) turns += cost_.expert_s(count);
    const double work = cost_.row_s * rows + turns;
    result.turns_s = (turns - copy_silent_s_ * copies) / num_gpus();
    const double out = wire_s(0, ranks - num_tokens, nodes - num_tokens);
    const double back = wire_s(1, ranks - num_tokens, nodes - num_tokens);
    result.mean_s =
        (cost_.relayed ? std::max({work, out, back}) : work + out + back) / setup_.num_ranks;
    return result;
  }

 private:
  [[nodiscard]] double num_gpus() const {
    return (setup_.num_ranks + cost_.ranks_per_gpu - 1) / cost_.ranks_per_gpu;
  }

  // What every rank computes whatever it serves: the shared experts of its own tokens, and the launches
  // of the kernels, where it serves anything, as it must if all experts are chosen. And what the mean
  // GPU computes of the former in turns.
  struct Kernels {
    double own_s = 0.0, turns_s = 0.0;
  };
  [[nodiscard]] Kernels least_kernels(const RankTokens& tokens,
                                      const std::vector<double>& load) const {
    std::uint64_t fewest = tokens.trace_token.size();
    for (std::size_t r = 0; r + 1 < tokens.token_begin.size(); ++r) {
      fewest = std::min(fewest, tokens.token_begin[r + 1] - tokens.token_begin[r]);
    }
    const ModelShape& model = setup_.model;
    const double shared_s =
        shared_mlp_time(setup_.cluster.gpu, {model.hidden, model.shared_intermediate, mlp_type_},
                        model.num_shared_experts, fewest)
            .value;
    const bool all_chosen =
        std::all_of(load.begin(), load.end(), [](double count) { return count > 0.0; });
    const auto& costs = setup_.cluster.gpu.shared_mlp;
    const double in_turns = std::max(0.0, shared_s - (costs ? costs->launch.value : 0.0));
    return {shared_s + (all_chosen ? launches_s_ : 0.0), in_turns * setup_.num_ranks / num_gpus()};
  }

  // Seconds, summed over the ranks, that rows between ranks take of the links at the ranks, `network_rows`
  // of them of NICs. A rank is as slow as the slower of its NVLink port and its NIC, and the rows may
  // be shared out between them as suits best.
  [[nodiscard]] double wire_s(std::size_t d, double rows, double network_rows) const {
    const Wire& wire = wires_[d];
    const double network =
        wire.all_cross_nics ? std::max(0.0, network_rows) * wire.network_row_s : 0.0;
    if (cost_.relayed || !wire.all_counted) return network;
    const double a = wire.scale_up_row_s;
    const double b = wire.network_row_s;
    // A tier that no row crosses takes none.
    const double shared = a > 0.0 && b > 0.0 ? a * b / (a + b) : a + b;
    return std::max(network, std::max(0.0, rows) * shared);
  }

  // Steps begin with other sequences. Who is dealt which matters where each rank is dealt few: then
  // there are several steps even if one has the whole routing.
  [[nodiscard]] std::uint64_t num_timed_steps(const Routing& routing) const {
    const std::uint64_t num_sequences = std::max<std::uint64_t>(1, routing.num_sequences());
    const std::uint64_t of_few =
        (kManySequences * setup_.num_ranks + num_sequences - 1) / num_sequences;
    return std::min({kMaxTimedSteps, num_sequences, std::max(num_steps(routing), of_few)});
  }
  // Where a step has a small part of the routing, as many steps as make up the whole.
  [[nodiscard]] std::uint64_t num_steps(const Routing& routing) const {
    if (!setup_.tokens_per_rank) return 1;
    const std::uint64_t step_tokens = std::uint64_t{*setup_.tokens_per_rank} * setup_.num_ranks;
    return std::max<std::uint64_t>(1, routing.num_tokens() / step_tokens);
  }
  [[nodiscard]] RankTokens deal(const Routing& routing, std::uint64_t step,
                                std::uint64_t num_steps) const {
    return deal_tokens(routing, setup_.num_ranks, setup_.tokens_per_rank, setup_.deal,
                       routing.num_sequences() * step / num_steps);
  }

  [[nodiscard]] std::uint32_t ranks_per_node() const {
    return std::min(setup_.cluster.gpus_per_node, setup_.num_ranks);
  }

  [[nodiscard]] PlanRequest request(ReplicaChoice choice) const {
    return plan_request(setup_, choice);
  }

  [[nodiscard]] LayerProgram program_of(const LayerPlan& plan) const {
    const LayerSetup setup{std::span(&plan, 1),
                           {row_payload(setup_.dispatch_payload, setup_.model.hidden),
                            row_payload(setup_.combine_payload, setup_.model.hidden)},
                           LayerKernels{setup_.model, setup_.dispatch_payload, setup_.expert_type},
                           setup_.transport,
                           {}};
    return build_layer(setup, setup_.cluster);
  }

  [[nodiscard]] double makespan_s(const LayerPlan& plan) const {
    const LayerProgram layer = program_of(plan);
    return run_flow(resolve(layer.program, network_), {}).makespan_s;
  }

  [[nodiscard]] Usage usage_of(const LayerPlan& plan) const {
    const LayerProgram layer = program_of(plan);
    return {layer,
            resolve_routes(layer.program, network_),
            setup_.num_ranks,
            ranks_per_node(),
            cost_.ranks_per_gpu,
            plan.stages.size() > 1};
  }

  void find_rates() {
    const std::uint64_t tokens_per_rank = std::max<std::uint64_t>(
        1, setup_.tokens_per_rank
               ? *setup_.tokens_per_rank
               : (setup_.training_tokens + setup_.num_ranks - 1) / setup_.num_ranks);
    const Routing routing = uniform_routing(setup_.model, setup_.num_ranks, tokens_per_rank);
    const RankTokens tokens =
        deal_tokens(routing, setup_.num_ranks, std::nullopt, SequenceDeal::kInOrder);
    const LayerPlan uniform =
        make_plan(routing, 0, contiguous_layer(setup_.model.num_experts, setup_.num_ranks), tokens,
                  request(ReplicaChoice::kLocality));
    const auto varied = [&](double first_rows, double last_rows, double copies) {
      LayerPlan plan = uniform;
      even_out(plan.stages.back(), last_rows, copies);
      if (plan.stages.size() > 1) even_out(plan.stages.front(), first_rows, copies);
      std::fill(plan.rank_expert_tokens.begin(), plan.rank_expert_tokens.end(),
                routing.num_tokens() * routing.num_topk / routing.num_experts);
      return plan;
    };
    constexpr double kFewer = 2.0 / 3.0;
    constexpr double kMore = 1.5;
    cost_.ranks_per_gpu = std::min(setup_.cluster.ranks_per_gpu, setup_.num_ranks);
    const LayerPlan base = varied(1.0, 1.0, 1.0);
    const LayerPlan fewer = varied(1.0, kFewer, 1.0);
    const LayerPlan more = varied(1.0, 1.0, kMore);
    const bool relayed = base.stages.size() > 1;
    const Usage at_base = usage_of(base);
    const Usage at_fewer = usage_of(fewer);
    const Usage at_more = usage_of(more);
    // Rows, and copies, that all ranks serve.
    const double rows = total_rows(base.stages.back());
    const double fewer_rows = rows - total_rows(fewer.stages.back());
    const double copies = total_copies(base.stages.back());
    const double more_copies = total_copies(more.stages.back()) - copies;

    cost_.num_ranks = setup_.num_ranks;
    cost_.ranks_per_node = ranks_per_node();
    cost_.relayed = relayed;
    cost_.num_rounds = base.num_rounds;
    cost_.group_tokens = static_cast<double>(routing.num_tokens());
    const auto total = [](const Usage& usage) {
      double sum = 0.0;
      for (std::size_t d = 0; d < 2; ++d) {
        for (const double seconds : usage.rank_s[d]) sum += seconds;
      }
      return sum;
    };
    const double by_rows = (total(at_base) - total(at_fewer)) / fewer_rows * rows;
    const double by_copies = (total(at_more) - total(at_base)) / more_copies * copies;
    cost_.rows_are_copies = setup_.policy == DispatchPolicy::kStandard || by_copies > by_rows;

    // The counts that rates of rows refer to, and the variation that they come from.
    const Usage& other = by_copies > by_rows ? at_more : at_fewer;
    const double change = by_copies > by_rows ? more_copies : fewer_rows;
    const double sign = by_copies > by_rows ? -1.0 : 1.0;
    const double counted = by_copies > by_rows ? copies : rows;
    const Usage at_relay = relayed ? usage_of(varied(kFewer, 1.0, 1.0)) : at_base;
    const double first_rows = total_rows(base.stages.front());
    const double fewer_first =
        relayed ? first_rows - total_rows(varied(kFewer, 1.0, 1.0).stages.front()) : 1.0;
    // Evened-out counts differ a little from those of the uniform plan: N and X are counted in its
    // units, which are those of a search.
    for (std::size_t d = 0; d < 2; ++d) {
      LayerCost::Direction& direction = d == 0 ? cost_.out : cost_.back;
      set_channels({d, at_base, other, at_relay, sign * change, counted, fewer_first, first_rows},
                   direction);
    }
    cost_.row_s =
        std::max(0.0, (at_base.serving_s - at_fewer.serving_s) / (fewer_rows / setup_.num_ranks));
    cost_.turn_row_s = std::max(0.0, (at_base.serving_turns_s - at_fewer.serving_turns_s) /
                                         (fewer_rows / setup_.num_ranks));
    copy_silent_s_ =
        std::max(0.0, (at_more.serving_s - at_base.serving_s) / (more_copies / setup_.num_ranks));
    const double copy_turns_s = std::max(0.0, (at_more.serving_turns_s - at_base.serving_turns_s) /
                                                  (more_copies / setup_.num_ranks));
    // What an expert's copies take beside other ranks' kernels is little, and counts with the turns.
    set_expert_times(copy_silent_s_ + copy_turns_s);
    launches_s_ += std::max(
        0.0, at_base.serving_s - (cost_.row_s * rows + copy_silent_s_ * copies) / setup_.num_ranks);
    if (cost_.rows_are_copies && setup_.policy != DispatchPolicy::kStandard) {
      cost_.row_s = cost_.turn_row_s = 0.0;
    }
    const double source_rows = (relayed ? first_rows : rows) / setup_.num_ranks;
    const double source_change = (relayed ? fewer_first : fewer_rows) / setup_.num_ranks;
    const Usage& source_other = relayed ? at_relay : at_fewer;
    cost_.source_row_s = std::max(0.0, (at_base.source_s - source_other.source_s) / source_change);

    // The rest does not depend on the placement: what the prediction of this layer has beyond.
    const double served = cost_.rows_are_copies ? copies : rows;
    const double modelled =
        cost_.source_row_s * source_rows + direction_s(cost_.out, served, first_rows) +
        direction_s(cost_.back, served, first_rows) + cost_.row_s * served / setup_.num_ranks +
        cost_.ranks_per_gpu * cost_.turn_row_s * served / setup_.num_ranks +
        cost_.ranks_per_gpu *
            cost_.expert_s(cost_.group_tokens * setup_.model.num_topk / setup_.model.num_experts) *
            setup_.model.num_experts / setup_.num_ranks;
    cost_.fixed_s = std::max(0.0, makespan_s(base) - modelled);
  }

  struct Variation {
    std::size_t d;
    const Usage& base;
    const Usage& other;
    const Usage& relay;
    double change;        // rows (or copies) that `base` has more than `other`, all ranks
    double rows;          // of `base`, all ranks
    double relay_change;  // the same of rows to relays
    double relay_rows;
  };

  void set_channels(const Variation& v, LayerCost::Direction& direction) const {
    const std::size_t num_nodes = cost_.num_nodes();
    const double ranks = setup_.num_ranks;
    const double nodes = static_cast<double>(num_nodes);
    direction.own_base_s.assign(setup_.num_ranks, 0.0);
    direction.own_row_s.assign(setup_.num_ranks, 0.0);
    const auto set_own = [&](std::uint32_t rank, double base_s, double other_s) {
      const double rate = std::max(0.0, (base_s - other_s) / (v.change / ranks));
      const double fixed = std::max(0.0, base_s - rate * v.rows / ranks);
      const double known = direction.own_base_s[rank] + direction.own_row_s[rank] * v.rows / ranks;
      if (base_s <= known) return;
      direction.own_base_s[rank] = fixed;
      direction.own_row_s[rank] = rate;
    };
    for (std::size_t link = 0; link < v.base.num_links(); ++link) {
      const std::uint32_t only = v.base.only_rank[v.d][link];
      if (only == Usage::kNobody) continue;
      const auto sum = [&](const Usage& usage) {
        double seconds = 0.0;
        for (std::size_t n = 0; n < num_nodes; ++n) {
          seconds += usage.rank_s[v.d][link * num_nodes + n];
        }
        return seconds;
      };
      if (only != Usage::kSeveral) {
        set_own(only, sum(v.base), sum(v.other));
        continue;
      }
      LayerCost::Channel channel;
      double modelled = 0.0;
      double seconds = sum(v.base);
      for (std::size_t n = 0; n < num_nodes; ++n) {
        const std::size_t at = link * num_nodes + n;
        const double size = std::min<double>(cost_.ranks_per_node,
                                             ranks - static_cast<double>(n) * cost_.ranks_per_node);
        const double rate = std::max(
            0.0, (v.base.rank_s[v.d][at] - v.other.rank_s[v.d][at]) / (v.change * size / ranks));
        channel.row_s.push_back(rate);
        modelled += rate * v.rows * size / ranks;
        if (!cost_.relayed) continue;
        const double relay = std::max(
            0.0, (v.base.relay_s[v.d][at] - v.relay.relay_s[v.d][at]) / (v.relay_change / nodes));
        channel.relay_s.push_back(relay);
        modelled += relay * v.relay_rows / nodes;
        seconds += v.base.relay_s[v.d][at];
      }
      channel.base_s = std::max(0.0, seconds - modelled);
      direction.channels.push_back(std::move(channel));
    }
    for (std::uint32_t rank = 0; rank < setup_.num_ranks; ++rank) {
      set_own(rank, v.base.capped_s[v.d][rank], v.other.capped_s[v.d][rank]);
    }
    keep_slowest(direction.channels);
  }

  // What a row takes of the links at the rank that serves it.
  void set_wires(const LayerPlan& plan, const Usage& usage) {
    const LayerProgram layer = program_of(plan);
    const Routes routes = resolve_routes(layer.program, network_);
    notify_s_ = make_transport(setup_.cluster, setup_.transport)
                    ->notify()
                    .value_or(setup_.cluster.overheads.notify)
                    .value;
    const std::span<const Link> links = network_.links();
    const std::array<double, 2> row_bytes{
        static_cast<double>(row_payload(setup_.dispatch_payload, setup_.model.hidden).value),
        static_cast<double>(row_payload(setup_.combine_payload, setup_.model.hidden).value)};
    std::array<std::array<double, 2>, 2> widest{};  // [direction][0: scale-up, 1: network]
    for (std::size_t op = 0; op < layer.program.num_ops(); ++op) {
      if (!layer.program.is_transfer(op)) continue;
      const Phase phase = layer.phase[op];
      const std::size_t d = phase == Phase::kCombine || phase == Phase::kGather ? 1 : 0;
      const std::uint32_t server = d == 1 ? layer.program.src[op] : layer.program.dst[op];
      std::array<double, 2> narrowest{};
      bool crosses_network = false;
      for (const std::uint32_t link : routes.of(op)) {
        if (link >= links.size()) continue;
        const bool network = links[link].tier == Tier::kNetwork;
        crosses_network |= network;
        if (cost_.relayed ? !network : usage.only_rank[d][link] != server) continue;
        double& capacity = narrowest[network ? 1 : 0];
        capacity = capacity > 0.0 ? std::min(capacity, routes.largest[link]) : routes.largest[link];
      }
      const std::size_t tier = narrowest[1] > 0.0 ? 1 : 0;
      if (narrowest[tier] <= 0.0) wires_[d].all_counted = false;
      if (crosses_network && tier == 0) wires_[d].all_cross_nics = false;
      widest[d][tier] = std::max(widest[d][tier], narrowest[tier]);
    }
    for (std::size_t d = 0; d < 2; ++d) {
      if (widest[d][0] > 0.0) wires_[d].scale_up_row_s = row_bytes[d] / widest[d][0];
      if (widest[d][1] > 0.0) wires_[d].network_row_s = row_bytes[d] / widest[d][1];
    }
  }

  void set_expert_times(double copy_s) {
    const std::unique_ptr<Transport> transport = make_transport(setup_.cluster, setup_.transport);
    mlp_type_ = expert_payload(setup_.cluster.gpu, transport->runs_with_row_kernels(),
                               setup_.dispatch_payload, setup_.expert_type);
    const MlpShape shape{setup_.model.hidden, setup_.model.expert_intermediate, mlp_type_};
    const std::array<std::uint64_t, 2> two{1000, 1000};
    launches_s_ =
        std::max(0.0, 2.0 * mlp_time(setup_.cluster.gpu, shape, std::span(two).first(1)).value -
                          mlp_time(setup_.cluster.gpu, shape, two).value);
    // Two of the same expert less one: without the launches.
    cost_.expert_s = [gpu = setup_.cluster.gpu, shape, copy_s](double tokens) {
      const auto count = static_cast<std::uint64_t>(std::llround(std::max(0.0, tokens)));
      const std::array<std::uint64_t, 2> counts{count, count};
      return mlp_time(gpu, shape, counts).value -
             mlp_time(gpu, shape, std::span(counts).first(1)).value + copy_s * tokens;
    };
  }

  // Of the rank with the slowest direction, rows and relays spread evenly.
  [[nodiscard]] double direction_s(const LayerCost::Direction& direction, double rows,
                                   double relays) const {
    const double per_rank = rows / setup_.num_ranks;
    const double nodes = cost_.num_nodes();
    double most_rows = 0.0;
    double most_relays = 0.0;
    for (std::uint32_t rank = 0; rank < setup_.num_ranks; ++rank) {
      most_rows =
          std::max(most_rows, direction.own_base_s[rank] + direction.own_row_s[rank] * per_rank);
    }
    for (const LayerCost::Channel& channel : direction.channels) {
      double rows_s = channel.base_s;
      double relays_s = channel.base_s;
      for (std::size_t n = 0; n < channel.row_s.size(); ++n) {
        rows_s += channel.row_s[n] * rows / nodes;
        if (cost_.relayed) relays_s += channel.relay_s[n] * relays / nodes;
      }
      most_rows = std::max(most_rows, rows_s);
      if (cost_.relayed) most_relays = std::max(most_relays, relays_s);
    }
    if (!cost_.relayed) return most_rows;
    return std::max(most_rows, most_relays) + std::min(most_rows, most_relays) / cost_.num_rounds;
  }

  LayerTimesSetup setup_;
  Network network_;
  LayerCost cost_;
  double notify_s_ = 0.0;
  double launches_s_ = 0.0;     // of expand, products and merge
  double copy_silent_s_ = 0.0;  // of a copy's expand and merge, what takes no turns
  PayloadType mlp_type_ = PayloadType::kBf16;
  struct Wire {
    double scale_up_row_s = 0.0, network_row_s = 0.0;  // of a row that crosses the tier
    bool all_counted = true;     // every row crosses a link that only rows of its rank cross
    bool all_cross_nics = true;  // rows between nodes cross the NIC of their rank
  };
  std::array<Wire, 2> wires_;  // by direction
  std::string key_;
};

}  // namespace

PlanRequest plan_request(const LayerTimesSetup& setup, ReplicaChoice choice) {
  PlanRequest request;
  request.policy = setup.policy;
  request.ranks_per_node = std::min(setup.cluster.gpus_per_node, setup.num_ranks);
  request.detail = PlanDetail::kCounts;
  request.rows_per_round =
      rows_per_round(setup.chunk, row_payload(setup.dispatch_payload, setup.model.hidden));
  request.replica_choice = choice;
  return request;
}

std::shared_ptr<const LayerTimes> make_layer_times(LayerTimesSetup setup) {
  return std::make_shared<PredictedTimes>(std::move(setup));
}

std::shared_ptr<const LayerTimes> layer_times_of(const Experiment& experiment, const RunSpec& run,
                                                 const Routing& training) {
  LayerTimesSetup setup;
  setup.cluster = experiment.cluster;
  setup.model = experiment.model;
  setup.num_ranks = experiment.num_ranks;
  setup.policy = run.policy;
  setup.transport = experiment.transport_of(run);
  setup.dispatch_payload = experiment.dispatch_payload;
  setup.combine_payload = experiment.combine_payload;
  setup.expert_type = experiment.expert_type;
  if (experiment.step) {
    // The kernels of a layer know BF16 and FP8: the nearest to what the step computes in.
    setup.expert_type = experiment.step->precision.experts.compute == Precision::kBf16
                            ? PayloadType::kBf16
                            : PayloadType::kFp8;
  }
  setup.chunk = experiment.chunk;
  setup.deal = experiment.deal;
  setup.tokens_per_rank = experiment.tokens_per_rank;
  setup.training_tokens = training.num_tokens();
  return make_layer_times(std::move(setup));
}

}  // namespace coterie
