#include "sim/calibrate/mlp_fit.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <span>

#include "core/random.hpp"
#include "sim/calibrate/optimiser.hpp"
#include "sim/program/kernels.hpp"

namespace coterie {
namespace {

constexpr std::size_t kDraws = 8;
constexpr std::uint64_t kSeed = 1;

using Counts = std::vector<std::uint64_t>;

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
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return counts[a] > counts[b]; });
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

// How many experts have how many tokens, over all draws: equal ones are computed once.
struct Loaded {
  const MlpPoint* point;
  std::map<std::uint64_t, double> experts;  // by tokens; as a mean over the draws
};

Loaded load(const MlpPoint& point) {
  const std::vector<Counts> draws = expert_loads(point);
  Loaded loaded{&point, {}};
  for (const Counts& counts : draws) {
    for (const std::uint64_t tokens : counts) {
      if (tokens > 0) loaded.experts[tokens] += 1.0 / static_cast<double>(draws.size());
    }
  }
  return loaded;
}

// The formula is a sum over experts, beside what all of them share.
double mean_time_s(const MlpCosts& costs, const Loaded& loaded) {
  const MlpPoint& point = *loaded.point;
  const auto time_s = [&](std::span<const std::uint64_t> experts, double batch_copies) {
    return calibrated_mlp_time(costs, point.hidden, point.intermediate, experts, batch_copies)
        .value;
  };
  double sum = time_s({}, point.num_tokens * point.topk);
  for (const auto& [tokens, num_experts] : loaded.experts) {
    const std::uint64_t one[]{tokens};
    sum += num_experts * (time_s(one, 0.0) - costs.launch.value);
  }
  return sum;
}

MlpCosts costs_from(std::span<const double> p) {
  MlpCosts costs;
  costs.launch = {std::exp(p[0])};
  costs.weight_bandwidth = {std::exp(p[1])};
  costs.compute_rate = {std::exp(p[2])};
  costs.batch_bandwidth = {std::exp(p[3])};
  costs.tile_padding = std::exp(p[4]);
  costs.sharpness = 1.0 + std::exp(p[5]);
  return costs;
}

}  // namespace

std::vector<std::vector<std::uint64_t>> expert_loads(const MlpPoint& point) {
  const auto num_pairs = static_cast<std::uint64_t>(point.num_tokens * point.topk);
  if (point.load == "balanced") {
    return {most_loaded_rank(balanced(num_pairs, point.num_experts), point.ep_size)};
  }
  const double alpha = std::stod(point.load.substr(point.load.rfind('_') + 1));
  Random random(kSeed);
  std::vector<Counts> draws;
  for (std::size_t draw = 0; draw < kDraws; ++draw) {
    const bool few = num_pairs <= point.num_experts / 4;
    draws.push_back(most_loaded_rank(
        few ? scattered(point, random) : power_law(point, alpha, random), point.ep_size));
  }
  return draws;
}

double mlp_time_s(const MlpCosts& costs, const MlpPoint& point) {
  return mean_time_s(costs, load(point));
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
      {"launch", std::log(30e-6), 3.0},      {"weight_bandwidth", std::log(3e12), 3.0},
      {"compute_rate", std::log(5e14), 3.0}, {"batch_bandwidth", std::log(1e12), 3.0},
      {"tile_padding", std::log(16.0), 3.0}, {"sharpness", std::log(2.0), 1.5}};
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const MlpCosts costs = costs_from(p);
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      out[i] = std::log(mean_time_s(costs, loaded[i]));
    }
  };
  const FitResult result = solve(problem);
  return {costs_from(result.parameters), result.undetermined};
}

}  // namespace coterie
