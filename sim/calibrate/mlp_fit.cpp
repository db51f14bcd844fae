#include "sim/calibrate/mlp_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <utility>

#include "core/random.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "sim/program/kernels.hpp"

namespace coterie {
namespace {

constexpr int kToolDraws = 5;       // of which the tables' tool gives the mean
constexpr std::size_t kDraws = 20;  // for the mean over what it might have drawn
constexpr std::uint64_t kSeed = 1;

using Counts = std::vector<std::uint64_t>;

// Positions, the highest count first; of equal ones the first.
std::vector<std::size_t> by_falling_count(const Counts& counts) {
  std::vector<std::size_t> order(counts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return counts[a] > counts[b]; });
  return order;
}

double exponent_of(const MlpPoint& point) {
  return std::stod(point.load.substr(point.load.rfind('_') + 1));
}

// Gives each of the ranks in turn one pair for its expert with the fewest of less than `limit`, or takes
// one from its expert with the most, `num_pairs` times in all.
class Dealer {
 public:
  Dealer(Counts& counts, std::uint32_t num_ranks)
      : counts_(counts), per_rank_(counts.size() / num_ranks) {}
  void give(std::uint64_t num_pairs, std::uint64_t limit) {
    deal(
        num_pairs, [&](std::uint64_t count) { return count < limit; },
        [](std::uint64_t a, std::uint64_t b) { return a < b; }, 1);
  }
  void take(std::uint64_t num_pairs) {
    deal(
        num_pairs, [](std::uint64_t count) { return count > 0; },
        [](std::uint64_t a, std::uint64_t b) { return a > b; }, -1);
  }

 private:
  template <class MayChange, class Before>
  void deal(std::uint64_t num_pairs, const MayChange& may_change, const Before& before, int step) {
    const auto later = [&](std::size_t a, std::size_t b) {
      return counts_[a] == counts_[b] ? a > b : before(counts_[b], counts_[a]);
    };
    std::vector<std::vector<std::size_t>> ranks;  // heaps of experts, the next to change on top
    for (std::size_t expert = 0; expert < counts_.size(); ++expert) {
      if (expert % per_rank_ == 0) ranks.emplace_back();
      if (may_change(counts_[expert])) ranks.back().push_back(expert);
    }
    for (auto& rank : ranks) std::make_heap(rank.begin(), rank.end(), later);
    for (bool changed = true; changed && num_pairs > 0;) {
      changed = false;
      for (auto& rank : ranks) {
        if (rank.empty() || num_pairs == 0) continue;
        std::pop_heap(rank.begin(), rank.end(), later);
        std::uint64_t& count = counts_[rank.back()];
        count = step > 0 ? count + 1 : count - 1;
        if (may_change(count)) {
          std::push_heap(rank.begin(), rank.end(), later);
        } else {
          rank.pop_back();
        }
        --num_pairs;
        changed = true;
      }
    }
  }

  Counts& counts_;
  std::size_t per_rank_;
};

Counts power_law(const MlpPoint& point, double alpha, Random& random) {
  const double pairs = point.num_tokens * point.topk;
  const bool many = pairs > point.num_experts;
  const double low = std::pow(many ? 1.0 : 0.01, 1.0 - alpha);
  const double high = std::pow(many ? 0.8 * point.num_tokens : 2.0, 1.0 - alpha);
  std::vector<double> shares(point.num_experts);
  for (double& share : shares) {
    share = std::pow((high - low) * random.uniform() + low, 1.0 / (1.0 - alpha));
  }
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  const auto limit = static_cast<std::uint64_t>(point.num_tokens);
  Counts counts(shares.size());
  std::uint64_t excess = 0;
  for (std::size_t e = 0; e < shares.size(); ++e) {
    const auto wanted = static_cast<std::uint64_t>(std::lround(shares[e] / sum * pairs));
    counts[e] = std::min(wanted, limit);
    excess += wanted - counts[e];
  }
  Dealer dealer(counts, point.ep_size);
  dealer.give(excess, limit);
  const std::uint64_t dealt = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  const auto all = static_cast<std::uint64_t>(pairs);
  if (dealt < all) dealer.give(all - dealt, limit);
  if (dealt > all) dealer.take(dealt - all);
  return counts;
}

// The tables' tool asks for a load by the logits of a router, and the shape of DeepSeek-V3 has a router
// that limits a token to four of eight groups of experts. Logits are one where the load wants the
// token, else zero, and of equal ones the first wins: so groups that are asked for as often are taken
// from the front, and what is missing of eight experts is taken from the front of these groups. A
// balanced load then uses half of the experts, and the first four for every token. (That much shows in
// the table: the weights of all 256 could not be read in the times it holds.)
constexpr std::size_t kGroups = 8;
constexpr std::size_t kGroupsPerToken = 4;

bool is_group_limited(const MlpPoint& point) {
  return point.num_experts == 256 && point.topk == 8 && point.hidden == 7168.0;
}

// Adds what `num_tokens` tokens choose that want these experts.
void route_in_groups(const std::vector<std::size_t>& wanted, std::uint64_t num_tokens,
                     Counts& counts) {
  const std::size_t num_experts = counts.size();
  const std::size_t per_group = num_experts / kGroups;
  Counts logits(num_experts, 0);
  for (const std::size_t expert : wanted) ++logits[expert];
  Counts best(kGroups, 0);
  for (std::size_t e = 0; e < num_experts; ++e) {
    best[e / per_group] = std::max(best[e / per_group], logits[e]);
  }
  std::vector<std::size_t> open;  // experts of the groups taken
  std::vector<std::size_t> groups = by_falling_count(best);
  groups.resize(kGroupsPerToken);
  std::sort(groups.begin(), groups.end());
  Counts open_logits;
  for (const std::size_t group : groups) {
    for (std::size_t e = group * per_group; e < (group + 1) * per_group; ++e) {
      open.push_back(e);
      open_logits.push_back(logits[e]);
    }
  }
  const std::vector<std::size_t> order = by_falling_count(open_logits);
  for (std::size_t i = 0; i < wanted.size(); ++i) counts[open[order[i]]] += num_tokens;
}

// Rank 0 gets what the fullest rank had; that rank gets rank 0's.
void swap_fullest_to_front(Counts& counts, std::uint32_t num_ranks) {
  const std::size_t per_rank = counts.size() / num_ranks;
  const auto sum_of = [&](std::size_t rank) {
    const auto first = counts.begin() + static_cast<std::ptrdiff_t>(rank * per_rank);
    return std::accumulate(first, first + static_cast<std::ptrdiff_t>(per_rank), std::uint64_t{0});
  };
  std::size_t fullest = 0;
  for (std::size_t rank = 1; rank < num_ranks; ++rank) {
    if (sum_of(rank) > sum_of(fullest)) fullest = rank;
  }
  for (std::size_t e = 0; fullest > 0 && e < per_rank; ++e) {
    std::swap(counts[e], counts[fullest * per_rank + e]);
  }
}

// Every token wants the expert at its own place in each of topk columns of a list that holds the experts
// as often as they are wanted, the most wanted first.
Counts routed_in_groups(const Counts& wanted, const MlpPoint& point) {
  const auto num_tokens = static_cast<std::uint64_t>(point.num_tokens);
  const std::vector<std::size_t> order = by_falling_count(wanted);
  std::vector<std::uint64_t> ends;
  std::set<std::uint64_t> breaks{0, num_tokens};  // tokens where what is wanted changes
  for (const std::size_t expert : order) {
    ends.push_back((ends.empty() ? 0 : ends.back()) + wanted[expert]);
    breaks.insert(ends.back() % num_tokens);
  }
  Counts counts(wanted.size(), 0);
  for (auto at = breaks.begin(); std::next(at) != breaks.end(); ++at) {
    std::vector<std::size_t> experts;
    for (std::uint64_t column = 0; column < point.topk; ++column) {
      const auto found = std::upper_bound(ends.begin(), ends.end(), column * num_tokens + *at);
      experts.push_back(order[static_cast<std::size_t>(found - ends.begin())]);
    }
    route_in_groups(experts, *std::next(at) - *at, counts);
  }
  return counts;
}

// The experts that each token of a balanced load wants.
Counts balanced(const MlpPoint& point) {
  const auto num_tokens = static_cast<std::uint64_t>(point.num_tokens);
  const std::uint64_t num_experts = point.num_experts;
  const std::uint64_t stride = (num_experts + point.topk - 1) / point.topk;
  Counts counts(num_experts, 0), starts(num_experts, 0);
  for (std::uint64_t token = 0; token < num_tokens; ++token) {
    ++starts[(num_tokens >= stride ? token : token * stride / num_tokens) % num_experts];
  }
  std::vector<std::size_t> experts(point.topk);
  for (std::uint64_t first = 0; first < num_experts; ++first) {
    if (starts[first] == 0) continue;
    for (std::uint64_t i = 0; i < point.topk; ++i) experts[i] = (first + i * stride) % num_experts;
    if (is_group_limited(point)) {
      route_in_groups(experts, starts[first], counts);
    } else {
      for (const std::size_t expert : experts) counts[expert] += starts[first];
    }
  }
  return counts;
}

// How many experts have how many tokens, as a mean over the draws: equal ones are computed once. Above 64
// rows, so are those within 2 %.
struct Loaded {
  const MlpPoint* point;
  std::vector<ExpertRows> experts;
};

std::size_t size_class(std::uint64_t rows) {
  constexpr std::uint64_t kExact = 64;
  if (rows <= kExact) return rows;
  return kExact +
         static_cast<std::size_t>(std::log(static_cast<double>(rows) / kExact) / std::log(1.02));
}

Loaded load(const MlpPoint& point, std::span<const Counts> draws) {
  std::map<std::size_t, ExpertRows> experts;  // by size class; rows are sums
  const double share = 1.0 / static_cast<double>(draws.size());
  for (const Counts& counts : draws) {
    for (const std::uint64_t tokens : counts) {
      if (tokens == 0) continue;
      ExpertRows& like =
          experts.try_emplace(size_class(tokens), ExpertRows{0.0, 0.0}).first->second;
      like.rows += share * static_cast<double>(tokens);
      like.experts += share;
    }
  }
  Loaded loaded{&point, {}};
  for (const auto& [size, like] : experts) {
    loaded.experts.push_back({like.rows / like.experts, like.experts});
  }
  return loaded;
}

Loaded load(const MlpPoint& point) {
  return load(point, expert_loads(point));
}

constexpr double kTokenValueBytes = 2.0;

double mean_time_s(const MlpFit& fit, const Loaded& loaded) {
  const MlpPoint& point = *loaded.point;
  const double pairs = point.num_tokens * point.topk;
  const double batch_s =
      point.num_tokens * kTokenValueBytes * point.hidden / fit.token_bandwidth.value;
  const double index_s =
      fit.group_expert.value * std::min(pairs, static_cast<double>(point.num_experts));
  const double replay_s = fit.replay.value / (point.load == "balanced" ? 1 : kToolDraws);
  const double num_experts = point.num_experts / point.ep_size;
  return batch_s + index_s + replay_s +
         mean_mlp_time(fit.costs, point.hidden, point.intermediate, loaded.experts,
                       {pairs, point.num_tokens, num_experts})
             .value;
}

// Tiles of the kernels of the published tables: rows, and up to which tokens each is taken.
struct TileRule {
  std::vector<std::uint32_t> rows, up_to_tokens;  // up_to_tokens has one less, or none
};
TileRule tile_rule(MlpKernel kernel) {
  switch (kernel) {
    case MlpKernel::kTritonBf16:
      return {{16, 32, 64, 128}, {32, 96, 512}};
    case MlpKernel::kTritonFp8:
      return {{16, 64}, {64}};
    case MlpKernel::kFastest:
      break;
  }
  return {{16, 64, 128}, {}};
}

// A block of 128 columns on one of 132 multiprocessors: what one value of k costs it at the rate of all,
// of which loads that are under way cover up some.
constexpr double kBlockShare = 0.7 * 2.0 * 128.0 * 132.0;

std::vector<FitParameter> fit_parameters(const TileRule& rule) {
  std::vector<FitParameter> parameters{
      {"launch", std::log(30e-6), 3.0},
      {"weight_bandwidth", std::log(4e12), 1.5},
      {"batch_bandwidth", std::log(2e12), 1.5},
      {"tile_depth", std::log(200.0), 1.5},
      {"sharpness", std::log(2.0), 1.5},
      {"token_bandwidth", std::log(2e12), 2.0},
      {"row_bandwidth", std::log(3e12), 1.5},
      {"group_expert", std::log(10e-9), 1.5},
      {"replay", std::log(2e-6), 1.0},
      // Memory answers after some 0.7 us, and a pipeline has four or five times 128 values on their way.
      {"value_time", std::log(1.2e-9), 0.6}};
  if (rule.up_to_tokens.empty()) {
    parameters.push_back({"expert", std::log(50e-9), 1.5});
    add_tile_rates(rule.rows, 7e14, parameters);
    return parameters;
  }
  parameters.push_back({"value_time per tile", std::log(kBlockShare), 0.5});
  for (const std::uint32_t rows : rule.rows) {
    parameters.push_back(
        {fmt::format("compute_rate[{}]", rows), std::log(7e14 * std::pow(rows / 128.0, 0.6)), 1.0});
  }
  return parameters;
}

MlpFit mlp_fit_from(const TileRule& rule, std::span<const double> p) {
  MlpFit fit;
  MlpCosts& costs = fit.costs;
  costs.launch = {std::exp(p[0])};
  costs.weight_bandwidth = {std::exp(p[1])};
  costs.batch_bandwidth = {std::exp(p[2])};
  costs.tile_depth = std::exp(p[3]);
  costs.sharpness = 1.0 + std::exp(p[4]);
  fit.token_bandwidth = {std::exp(p[5])};
  costs.row_bandwidth = Bandwidth{std::exp(p[6])};
  fit.group_expert = {std::exp(p[7])};
  fit.replay = {std::exp(p[8])};
  costs.reads_rows = true;
  const Seconds value_time{std::exp(p[9])};
  const double last = std::exp(p[10]);
  const std::span<const double> rates = p.subspan(11);
  if (rule.up_to_tokens.empty()) {
    costs.expert = {last};
    set_tile_rates(rule.rows, rates, costs);
    for (MlpTile& tile : costs.tiles) tile.value_time = value_time;
    return fit;
  }
  costs.compute_rate = {0.0};
  for (std::size_t i = 0; i < rule.rows.size(); ++i) {
    const ComputeRate rate{std::exp(rates[i])};
    costs.tiles.push_back(
        {rule.rows[i], rate, value_time + Seconds{last * rule.rows[i] / rate.value}});
    if (i < rule.up_to_tokens.size()) costs.tiles[i].up_to_tokens = rule.up_to_tokens[i];
    costs.compute_rate = std::max(costs.compute_rate, rate);
  }
  return fit;
}

}  // namespace

void add_tile_rates(std::span<const std::uint32_t> rows, double highest,
                    std::vector<FitParameter>& parameters) {
  for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
    const double ratio = std::sqrt(static_cast<double>(rows[i + 1]) / rows[i]);
    parameters.push_back(
        {fmt::format("compute_rate[{}]", rows[i]), std::log(0.5 * (ratio - 1.0)), 1.5});
  }
  parameters.push_back({fmt::format("compute_rate[{}]", rows.back()), std::log(highest), 1.5});
}

void set_tile_rates(std::span<const std::uint32_t> rows, std::span<const double> p,
                    MlpCosts& costs) {
  costs.tiles.resize(rows.size());
  double rate = std::exp(p[rows.size() - 1]);
  costs.compute_rate = {rate};
  for (std::size_t i = rows.size(); i-- > 0;) {
    if (i + 1 < rows.size()) rate /= 1.0 + std::exp(p[i]);
    costs.tiles[i] = {rows[i], {rate}};
  }
}

MlpKernel kernel_of(const MlpPoint& point) {
  const bool is_bf16 = point.type.empty() || point.type == "bfloat16";
  if (point.kernel.find("triton") != std::string::npos) {
    return is_bf16 ? MlpKernel::kTritonBf16 : MlpKernel::kTritonFp8;
  }
  const bool is_hopper = point.machine.empty() || point.machine.starts_with("h");
  if (!point.kernel.empty() || !is_hopper) return MlpKernel::kFastest;
  if (is_bf16) return MlpKernel::kTritonBf16;
  return point.type == "fp8_block" && point.ep_size == 1 ? MlpKernel::kTritonFp8
                                                         : MlpKernel::kFastest;
}

std::vector<std::vector<std::uint64_t>> expert_loads(const MlpPoint& point) {
  const auto of_first_rank = [&](Counts counts) {
    counts.resize(point.num_experts / point.ep_size);
    return counts;
  };
  if (point.load == "balanced") return {of_first_rank(balanced(point))};
  Random random(kSeed);
  std::vector<Counts> draws;
  for (std::size_t draw = 0; draw < kDraws; ++draw) {
    Counts wanted = power_law(point, exponent_of(point), random);
    swap_fullest_to_front(wanted, point.ep_size);
    draws.push_back(
        of_first_rank(is_group_limited(point) ? routed_in_groups(wanted, point) : wanted));
  }
  return draws;
}

double mlp_time_s(const MlpFit& fit, const MlpPoint& point) {
  return mean_time_s(fit, load(point));
}

double mlp_draw_scatter(const MlpFit& fit, const MlpPoint& point) {
  const std::vector<Counts> draws = expert_loads(point);
  if (draws.size() < 2) return 0.0;
  double sum = 0.0, squares = 0.0;
  for (const Counts& draw : draws) {
    const double time_s = mean_time_s(fit, load(point, std::span(&draw, 1)));
    sum += time_s;
    squares += time_s * time_s;
  }
  const auto n = static_cast<double>(draws.size());
  const double mean = sum / n;
  const double variance = std::max(0.0, squares / n - mean * mean) * n / (n - 1.0);
  return std::sqrt(variance / kToolDraws) / mean;
}

MlpFit fit_mlp(const std::vector<MlpPoint>& points) {
  const TileRule rule = tile_rule(kernel_of(points.front()));
  std::vector<Loaded> loaded;
  FitProblem problem;
  problem.scale = 0.05;
  for (const MlpPoint& point : points) {
    loaded.push_back(load(point));
    problem.log_measured.push_back(std::log(point.time_s));
  }
  problem.parameters = fit_parameters(rule);
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const MlpFit fit = mlp_fit_from(rule, p);
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      out[i] = std::log(mean_time_s(fit, loaded[i]));
    }
  };
  const FitResult result = solve(problem);
  MlpFit fit = mlp_fit_from(rule, result.parameters);
  fit.undetermined = result.undetermined;
  return fit;
}

}  // namespace coterie
