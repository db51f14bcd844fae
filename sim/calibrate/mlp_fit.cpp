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

constexpr std::size_t kDraws = 5;  // as many as the tables' tool measures
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

// The experts of the rank with the most tokens; the first of several.
Counts most_loaded_rank(const Counts& experts, std::uint32_t num_ranks) {
  const std::size_t per_rank = experts.size() / num_ranks;
  std::size_t best = 0;
  std::uint64_t best_sum = 0;
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    const auto first = experts.begin() + static_cast<std::ptrdiff_t>(rank * per_rank);
    const std::uint64_t sum =
        std::accumulate(first, first + static_cast<std::ptrdiff_t>(per_rank), std::uint64_t{0});
    if (sum > best_sum) {
      best_sum = sum;
      best = rank;
    }
  }
  const auto first = experts.begin() + static_cast<std::ptrdiff_t>(best * per_rank);
  return Counts(first, first + static_cast<std::ptrdiff_t>(per_rank));
}

// Few pairs go to evenly spaced experts, more of them round robin.
Counts balanced(std::uint64_t num_pairs, std::uint32_t num_experts) {
  Counts counts(num_experts, num_pairs / num_experts);
  const std::uint64_t rest = num_pairs % num_experts;
  for (std::uint64_t i = 0; i < rest; ++i) ++counts[i * num_experts / rest];
  return counts;
}

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
  Counts counts(shares.size());
  std::int64_t missing = static_cast<std::int64_t>(pairs);
  for (std::size_t e = 0; e < shares.size(); ++e) {
    counts[e] = static_cast<std::uint64_t>(std::lround(shares[e] / sum * pairs));
    missing -= static_cast<std::int64_t>(counts[e]);
  }
  const std::vector<std::size_t> order = by_falling_count(counts);
  for (std::size_t i = 0; missing != 0; i = (i + 1) % order.size()) {
    std::uint64_t& count = counts[order[i]];
    if (missing > 0) {
      ++count;
      --missing;
    } else if (count > 0) {
      --count;
      ++missing;
    }
  }
  return counts;
}

// A few tokens hit almost as many experts as they have pairs, whatever the load's shape: top-k
// chooses different experts for each.
Counts scattered(const MlpPoint& point, Random& random) {
  std::vector<std::uint32_t> experts(point.num_experts);
  std::iota(experts.begin(), experts.end(), 0U);
  random.shuffle(std::span(experts));
  Counts counts(point.num_experts, 0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(point.num_tokens * point.topk); ++i) {
    ++counts[experts[i]];
  }
  return counts;
}

// What exceeds the number of tokens goes to the next of the most loaded experts: a token chooses different
// ones.
void limit_to_tokens(Counts& counts, std::uint64_t num_tokens) {
  std::uint64_t rest = 0;
  for (std::uint64_t& count : counts) {
    if (count <= num_tokens) continue;
    rest += count - num_tokens;
    count = num_tokens;
  }
  for (const std::size_t expert : by_falling_count(counts)) {
    const std::uint64_t more = std::min(rest, num_tokens - counts[expert]);
    counts[expert] += more;
    rest -= more;
  }
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

std::vector<Counts> group_limited_loads(const MlpPoint& point) {
  std::vector<Counts> draws;
  const auto num_tokens = static_cast<std::uint64_t>(point.num_tokens);
  const auto first_rank = [&](Counts counts) {
    counts.resize(point.num_experts / point.ep_size);
    draws.push_back(std::move(counts));
  };
  if (point.load == "balanced") {
    // Token t wants t, t + 32, t + 64 and so on; few tokens are spread over the 32.
    Counts counts(point.num_experts, 0), starts(point.num_experts, 0);
    const std::uint64_t stride = point.num_experts / point.topk;
    for (std::uint64_t token = 0; token < num_tokens; ++token) {
      ++starts[(num_tokens >= stride ? token : token * stride / num_tokens) % point.num_experts];
    }
    for (std::uint64_t first = 0; first < point.num_experts; ++first) {
      if (starts[first] == 0) continue;
      std::vector<std::size_t> experts;
      for (std::uint64_t i = 0; i < point.topk; ++i) {
        experts.push_back((first + i * stride) % point.num_experts);
      }
      route_in_groups(experts, starts[first], counts);
    }
    first_rank(std::move(counts));
    return draws;
  }
  Random random(kSeed);
  for (std::size_t draw = 0; draw < kDraws; ++draw) {
    Counts wanted = power_law(point, exponent_of(point), random);
    swap_fullest_to_front(wanted, point.ep_size);
    first_rank(routed_in_groups(wanted, point));
  }
  return draws;
}

// How many experts have how many tokens, as a mean over the draws: equal ones are computed once.
struct Loaded {
  const MlpPoint* point;
  std::vector<ExpertRows> experts;
};

Loaded load(const MlpPoint& point) {
  const std::vector<Counts> draws = expert_loads(point);
  std::map<std::uint64_t, double> experts;  // by tokens
  for (const Counts& counts : draws) {
    for (const std::uint64_t tokens : counts) {
      if (tokens > 0) experts[tokens] += 1.0 / static_cast<double>(draws.size());
    }
  }
  Loaded loaded{&point, {}};
  for (const auto& [tokens, count] : experts) {
    loaded.experts.push_back({static_cast<double>(tokens), count});
  }
  return loaded;
}

constexpr double kTokenValueBytes = 2.0;

double mean_time_s(const MlpFit& fit, const Loaded& loaded) {
  const MlpPoint& point = *loaded.point;
  const double batch_s =
      point.num_tokens * kTokenValueBytes * point.hidden / fit.token_bandwidth.value;
  return batch_s + mean_mlp_time(fit.costs, point.hidden, point.intermediate, loaded.experts,
                                 point.num_tokens * point.topk)
                       .value;
}

// Heights of tiles of the kernels of the published tables.
constexpr std::array<std::uint32_t, 3> kTileRows{16, 64, 128};

MlpFit mlp_fit_from(std::span<const double> p) {
  MlpFit fit;
  MlpCosts& costs = fit.costs;
  costs.launch = {std::exp(p[0])};
  costs.weight_bandwidth = {std::exp(p[1])};
  costs.batch_bandwidth = {std::exp(p[2])};
  costs.tile_depth = std::exp(p[3]);
  costs.sharpness = 1.0 + std::exp(p[4]);
  fit.token_bandwidth = {std::exp(p[5])};
  costs.reads_rows = true;
  set_tile_rates(kTileRows, p.subspan(6), costs);
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

std::vector<std::vector<std::uint64_t>> expert_loads(const MlpPoint& point) {
  if (is_group_limited(point)) return group_limited_loads(point);
  const auto num_pairs = static_cast<std::uint64_t>(point.num_tokens * point.topk);
  if (point.load == "balanced") {
    return {most_loaded_rank(balanced(num_pairs, point.num_experts), point.ep_size)};
  }
  Random random(kSeed);
  std::vector<Counts> draws;
  for (std::size_t draw = 0; draw < kDraws; ++draw) {
    const bool few = num_pairs <= point.num_experts / 4;
    Counts counts = few ? scattered(point, random) : power_law(point, exponent_of(point), random);
    limit_to_tokens(counts, static_cast<std::uint64_t>(point.num_tokens));
    draws.push_back(most_loaded_rank(counts, point.ep_size));
  }
  return draws;
}

double mlp_time_s(const MlpFit& fit, const MlpPoint& point) {
  return mean_time_s(fit, load(point));
}

MlpFit fit_mlp(const std::vector<MlpPoint>& points) {
  std::vector<Loaded> loaded;
  FitProblem problem;
  problem.scale = 0.05;
  for (const MlpPoint& point : points) {
    loaded.push_back(load(point));
    problem.log_measured.push_back(std::log(point.time_s));
  }
  problem.parameters = {
      {"launch", std::log(30e-6), 3.0},         {"weight_bandwidth", std::log(4e12), 1.5},
      {"batch_bandwidth", std::log(2e12), 1.5}, {"tile_depth", std::log(200.0), 1.5},
      {"sharpness", std::log(2.0), 1.5},        {"token_bandwidth", std::log(2e12), 2.0}};
  add_tile_rates(kTileRows, 7e14, problem.parameters);
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const MlpFit fit = mlp_fit_from(p);
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      out[i] = std::log(mean_time_s(fit, loaded[i]));
    }
  };
  const FitResult result = solve(problem);
  MlpFit fit = mlp_fit_from(result.parameters);
  fit.undetermined = result.undetermined;
  return fit;
}

}  // namespace coterie
