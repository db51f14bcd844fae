// The bound is the Lagrangian dual of a relaxation over pairs of experts.
//
// A token t that chose e has m(t, e) of its experts in the part that serves e. It touches
//   sum over its experts of 1 / m(t, e)
// parts, because the m experts of one part contribute 1/m each. Let x(e, f) be 1 where e and f
// share a part. Then m(t, e) <= 1 + sum of x(e, f) over the other experts f of the token, x is
// symmetric, and row e of x has at most capacity - 1 ones. With replicas, e has r(e) hosts, row e
// at most r(e) (capacity - 1) ones, and the r sum to num_experts + num_replicas.
//
// Write 1/m = 1 - phi(m). The concave phi(m) is at most c(b) + b m for every slope b >= 0, with
// c(b) = max over m = 1..k of phi(m) - b m. Hence for any slopes b(t, e) >= 0 and any antisymmetric
// prices l(e, f), which cancel for symmetric x,
//   sum of phi <= sum of (c(b) + b) + sum over e of the best row of w(e, f) = g(e, f) + l(e, f),
//   g(e, f) = sum of b(t, e) over tokens that chose e and f,
// where the best row takes the largest positive entries that fit: capacity - 1 of them, and under a
// load cap a fractional knapsack, relaxed by one price per row.
//
// Rows alone do not know that sharing a part is transitive. Where all parts have equal capacity c
// and there are no replicas, X = x with ones on the diagonal is c times a projection of rank P that
// keeps the vector of ones, so that for any symmetric Z (with any diagonal)
//   sum over e != f of Z(e, f) x(e, f) <= c (1^T Z 1 / E + the P - 1 largest eigenvalues of Z on
//   the
//                                         complement of 1) - trace of Z
// (Donath and Hoffman 1973; Rendl and Wolkowicz 1995). Hence Z may be taken from the rows, whose
// weights become w - Z, and bounded this way instead. That is the dual of the semidefinite
// relaxation with rows, at the price of an eigenvalue problem of size E per step.
//
// Slopes, prices and Z are found by subgradient steps (Polyak's step length towards the best
// placement known). Every step's value is a valid bound, so the best one is returned; rounding up
// to whole parts costs nothing because fan-out is an integer.

#include "workloads/placement/fan_out_bound.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "workloads/placement/symmetric_eigen.hpp"

namespace coterie {
namespace {

// Operations that a search may take, about a second.
constexpr double kMaxWork = 1e9;
constexpr std::uint32_t kQuickPasses = 8;
constexpr double kQuickReach = 0.06;
constexpr std::uint32_t kMinPasses = 30;
constexpr std::uint32_t kMaxPasses = 400;
constexpr std::uint32_t kMaxSpectralExperts =
    192;  // beyond, eigenvalues would take most of the time

// Whether the eigenvalue bound applies and is worth its time: with few experts per part rows are
// nearly exact.
bool use_spectrum(const FanOutBoundTask& task) {
  return task.effort == BoundEffort::kTight && task.num_replicas == 0 &&
         task.num_experts % task.part_capacity == 0 && task.part_capacity >= 3 &&
         task.num_experts <= kMaxSpectralExperts;
}

class PairDual {
 public:
  explicit PairDual(const FanOutBoundTask& task)
      : task_(task),
        num_experts_(task.num_experts),
        num_topk_(task.num_topk),
        num_tokens_(task.num_topk == 0 ? 0 : task.experts.size() / task.num_topk),
        slope_(task.experts.size(), 0.0F),
        gain_(std::size_t{num_experts_} * num_experts_, 0.0),
        price_(gain_.size(), 0.0),
        together_(gain_.size(), 0),
        taken_(gain_.size(), 0),
        load_(num_experts_, 0.0),
        spectral_(use_spectrum(task)) {
    if (spectral_) {
      shared_.assign(gain_.size(), 0.0);
      projection_.assign(gain_.size(), 0.0);
    }
    for (const ExpertIdx expert : task.experts) load_[expert] += 1.0;
    for (std::size_t i = 0; i < task.experts.size(); ++i) {
      const std::size_t token = i / num_topk_ * num_topk_;
      for (std::uint32_t j = 0; j < num_topk_; ++j) {
        ++together_[std::size_t{task.experts[i]} * num_experts_ + task.experts[token + j]];
      }
    }
    start();
  }

  // The bound on the sum of phi that the present slopes and prices prove.
  double evaluate() {
    std::fill(gain_.begin(), gain_.end(), 0.0);
    double total = 0.0;
    for (std::size_t token = 0; token < num_tokens_; ++token) {
      const ExpertIdx* const chosen = task_.experts.data() + token * num_topk_;
      const float* const slope = slope_.data() + token * num_topk_;
      for (std::uint32_t i = 0; i < num_topk_; ++i) {
        const double b = slope[i];
        const auto m = static_cast<double>(best_count(b));
        total += 1.0 - 1.0 / m - b * m + b;
        double* const row = gain_.data() + std::size_t{chosen[i]} * num_experts_;
        for (std::uint32_t j = 0; j < num_topk_; ++j) row[chosen[j]] += b;
      }
    }
    return total + rows() + (spectral_ ? spectrum() : 0.0);
  }

  // One step of the given length (in units of the dual's excess over `target`).
  void step(double value, double target, double length) {
    // Subgradients: 1 + companions of the row - best m for a slope, taken(e, f) - taken(f, e) for
    // a price, projection(e, f) - taken for Z. What belongs to a pair is scaled by how often the
    // pair was chosen together, as it adds to sums over so many slopes.
    double norm = 0.0;
    for (std::size_t token = 0; token < num_tokens_; ++token) {
      for (std::uint32_t i = 0; i < num_topk_; ++i) {
        const double g = slope_gradient(token, i);
        if (g < 0.0 || slope_[token * num_topk_ + i] > 0.0F) norm += g * g;
      }
    }
    for (std::size_t e = 0; e < num_experts_; ++e) {
      for (std::size_t f = e + 1; f < num_experts_; ++f) {
        const double n = together_[e * num_experts_ + f];
        const double g = price_gradient(e, f);
        norm += n * g * g;
        if (spectral_) norm += 2.0 * n * shared_gradient(e, f) * shared_gradient(e, f);
      }
      if (spectral_) norm += diagonal_scale(e) * shared_gradient(e, e) * shared_gradient(e, e);
    }
    if (norm == 0.0) return;
    const double scale = length * (value - target) / norm;
    for (std::size_t token = 0; token < num_tokens_; ++token) {
      for (std::uint32_t i = 0; i < num_topk_; ++i) {
        float& slope = slope_[token * num_topk_ + i];
        slope = std::max(0.0F, slope - static_cast<float>(scale * slope_gradient(token, i)));
      }
    }
    for (std::size_t e = 0; e < num_experts_; ++e) {
      for (std::size_t f = e + 1; f < num_experts_; ++f) {
        const std::size_t ef = e * num_experts_ + f;
        const std::size_t fe = f * num_experts_ + e;
        const double n = together_[ef];
        price_[ef] -= scale * n * price_gradient(e, f);
        price_[fe] = -price_[ef];
        if (!spectral_) continue;
        shared_[ef] -= scale * n * shared_gradient(e, f);
        shared_[fe] = shared_[ef];
      }
      if (!spectral_) continue;
      shared_[e * num_experts_ + e] -= scale * diagonal_scale(e) * shared_gradient(e, e);
    }
  }

 private:
  // Marks the experts most often chosen with each, as many as fit beside it.
  void take_companions() {
    for (std::size_t e = 0; e < num_experts_; ++e) {
      order_.clear();
      for (std::size_t f = 0; f < num_experts_; ++f) {
        if (f != e) order_.push_back(static_cast<std::uint32_t>(f));
      }
      const std::uint32_t* const together = together_.data() + e * num_experts_;
      std::stable_sort(order_.begin(), order_.end(),
                       [&](std::uint32_t a, std::uint32_t b) { return together[a] > together[b]; });
      for (std::size_t i = 0; i + 1 < task_.part_capacity && i < order_.size(); ++i) {
        taken_[e * num_experts_ + order_[i]] = 1;
      }
    }
  }

  // Slopes of phi at a token's counts in the known placement. A quick search is nowhere near it
  // unless that is good: it starts from the counts of the best rows, found without slopes.
  void start() {
    if (task_.effort == BoundEffort::kQuick) {
      take_companions();
      for (std::size_t token = 0; token < num_tokens_; ++token) {
        const ExpertIdx* const chosen = task_.experts.data() + token * num_topk_;
        for (std::uint32_t i = 0; i < num_topk_; ++i) {
          const std::uint8_t* const row = taken_.data() + std::size_t{chosen[i]} * num_experts_;
          double m = 1.0;
          for (std::uint32_t j = 0; j < num_topk_; ++j) m += row[chosen[j]];
          slope_[token * num_topk_ + i] = static_cast<float>(1.0 / (m * (m + 1.0)));
        }
      }
      return;
    }
    for (std::size_t token = 0; token < num_tokens_; ++token) {
      const ExpertIdx* const chosen = task_.experts.data() + token * num_topk_;
      for (std::uint32_t i = 0; i < num_topk_; ++i) {
        double m = 0.0;
        if (task_.known.empty()) {
          m = 2.0;
        } else {
          for (std::uint32_t j = 0; j < num_topk_; ++j) {
            m += task_.known[chosen[i]] == task_.known[chosen[j]] ? 1.0 : 0.0;
          }
        }
        slope_[token * num_topk_ + i] = static_cast<float>(1.0 / (m * (m + 1.0)));
      }
    }
  }

  // The m in 1..k that maximises phi(m) - b m: phi rises by 1 / (m (m + 1)) from m to m + 1.
  [[nodiscard]] std::uint32_t best_count(double b) const {
    std::uint32_t m = 1;
    while (m < num_topk_ && 1.0 > b * static_cast<double>(m) * static_cast<double>(m + 1)) ++m;
    return m;
  }

  [[nodiscard]] double slope_gradient(std::size_t token, std::uint32_t i) const {
    const ExpertIdx* const chosen = task_.experts.data() + token * num_topk_;
    const std::uint8_t* const row = taken_.data() + std::size_t{chosen[i]} * num_experts_;
    std::uint32_t companions = 1;
    for (std::uint32_t j = 0; j < num_topk_; ++j) companions += row[chosen[j]];
    return static_cast<double>(companions) -
           static_cast<double>(best_count(slope_[token * num_topk_ + i]));
  }

  [[nodiscard]] double price_gradient(std::size_t e, std::size_t f) const {
    return static_cast<double>(taken_[e * num_experts_ + f]) -
           static_cast<double>(taken_[f * num_experts_ + e]);
  }
  [[nodiscard]] double shared_gradient(std::size_t e, std::size_t f) const {
    const double x = projection_[e * num_experts_ + f];
    if (e == f) return x - 1.0;
    return x - 0.5 * (static_cast<double>(taken_[e * num_experts_ + f]) +
                      static_cast<double>(taken_[f * num_experts_ + e]));
  }
  [[nodiscard]] double diagonal_scale(std::size_t e) const { return load_[e] / 8.0; }

  // The eigenvalue bound on Z; leaves the X that attains it in projection_.
  double spectrum() {
    const std::size_t n = num_experts_;
    const double c = task_.part_capacity;
    const std::size_t num_parts = n / task_.part_capacity;
    // Z on the complement of the vector of ones, which itself is moved below all other eigenvalues.
    std::vector<double> mean(n, 0.0);
    double trace = 0.0;
    double size = 1.0;
    for (std::size_t e = 0; e < n; ++e) {
      trace += shared_[e * n + e];
      for (std::size_t f = 0; f < n; ++f) {
        mean[e] += shared_[e * n + f] / static_cast<double>(n);
        size += std::abs(shared_[e * n + f]);
      }
    }
    double all = 0.0;
    for (const double m : mean) all += m / static_cast<double>(n);
    std::vector<double> inside(n * n);
    for (std::size_t e = 0; e < n; ++e) {
      for (std::size_t f = 0; f < n; ++f) {
        inside[e * n + f] =
            shared_[e * n + f] - mean[e] - mean[f] + all - 2.0 * size / static_cast<double>(n);
      }
    }
    const SymmetricEigen eigen = symmetric_eigen(std::move(inside), n);
    double sum = all * static_cast<double>(n);  // 1^T Z 1 / E
    std::fill(projection_.begin(), projection_.end(), c / static_cast<double>(n));
    for (std::size_t i = n - (num_parts - 1); i < n; ++i) {
      sum += eigen.values[i];
      const double* const v = eigen.vectors.data() + i * n;
      for (std::size_t e = 0; e < n; ++e) {
        for (std::size_t f = 0; f < n; ++f) projection_[e * n + f] += c * v[e] * v[f];
      }
    }
    // The eigenvalues are exact to rounding, which is paid for here.
    constexpr double kRounding = 1e-13;
    return c * sum - trace + kRounding * static_cast<double>(n) * c * size;
  }

  // The best rows; marks what they take.
  double rows() {
    std::fill(taken_.begin(), taken_.end(), std::uint8_t{0});
    double total = 0.0;
    extra_.clear();
    for (std::size_t e = 0; e < num_experts_; ++e) {
      weight_.assign(num_experts_, 0.0);
      order_.clear();
      for (std::size_t f = 0; f < num_experts_; ++f) {
        if (f == e) continue;
        weight_[f] = gain_[e * num_experts_ + f] + price_[e * num_experts_ + f] -
                     (spectral_ ? shared_[e * num_experts_ + f] : 0.0);
        if (weight_[f] > 0.0) order_.push_back(static_cast<std::uint32_t>(f));
      }
      total += task_.max_load && task_.num_replicas == 0 ? capped_row(e) : best_row(e, 0.0, 0.0);
      if (task_.num_replicas > 0) list_extra(e);
    }
    // The gains of one expert's further hosts fall with their number, so the largest of all are
    // what num_replicas hosts can add.
    std::sort(extra_.begin(), extra_.end(), [](const ExtraHost& a, const ExtraHost& b) {
      return a.gain != b.gain ? a.gain > b.gain
                              : std::tie(a.expert, a.companions) < std::tie(b.expert, b.companions);
    });
    for (std::size_t i = 0; i < std::min<std::size_t>(extra_.size(), task_.num_replicas); ++i) {
      total += extra_[i].gain;
      for (const std::uint32_t f : extra_[i].companions) {
        taken_[std::size_t{extra_[i].expert} * num_experts_ + f] = 1;
      }
    }
    return total;
  }

  // The largest positive w - price * load; marks them and adds price * room.
  double best_row(std::size_t e, double price, double room) {
    std::uint8_t* const row = taken_.data() + e * num_experts_;
    std::fill(row, row + num_experts_, std::uint8_t{0});
    const auto worth = [&](std::uint32_t f) { return weight_[f] - price * load_[f]; };
    const std::size_t fits = std::min<std::size_t>(order_.size(), task_.part_capacity - 1);
    const auto better = [&](std::uint32_t a, std::uint32_t b) {
      return worth(a) != worth(b) ? worth(a) > worth(b) : a < b;
    };
    if (fits < order_.size()) {
      std::nth_element(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(fits),
                       order_.end(), better);
    }
    double total = price * room;
    for (std::size_t i = 0; i < fits; ++i) {
      if (worth(order_[i]) <= 0.0) continue;
      total += worth(order_[i]);
      row[order_[i]] = 1;
    }
    return total;
  }

  // Least over the price of load: every price >= 0 is valid, so a coarse search does.
  double capped_row(std::size_t e) {
    const double room = std::max(0.0, *task_.max_load - load_[e]);
    const auto used = [&] {
      double sum = 0.0;
      for (std::size_t f = 0; f < num_experts_; ++f) {
        sum += taken_[e * num_experts_ + f] != 0 ? load_[f] : 0.0;
      }
      return sum;
    };
    double best = best_row(e, 0.0, room);
    if (used() <= room) return best;
    double low = 0.0;
    double high = 0.0;
    for (const std::uint32_t f : order_) {
      if (load_[f] > 0.0) high = std::max(high, weight_[f] / load_[f]);
    }
    double best_price = 0.0;
    for (int i = 0; i < 12; ++i) {
      const double price = 0.5 * (low + high);
      const double value = best_row(e, price, room);
      if (value < best) {
        best = value;
        best_price = price;
      }
      (used() > room ? low : high) = price;
    }
    return best_row(e, best_price, room);
  }

  // What the 2nd, 3rd, ... host of the present row's expert may add: the next capacity - 1 entries.
  void list_extra(std::size_t e) {
    const std::size_t width = task_.part_capacity - 1;
    if (width == 0) return;
    std::sort(order_.begin(), order_.end(), [&](std::uint32_t a, std::uint32_t b) {
      return weight_[a] != weight_[b] ? weight_[a] > weight_[b] : a < b;
    });
    for (std::size_t begin = width; begin < order_.size(); begin += width) {
      ExtraHost& host = extra_.emplace_back();
      host.expert = static_cast<std::uint32_t>(e);
      for (std::size_t i = begin; i < std::min(begin + width, order_.size()); ++i) {
        host.gain += weight_[order_[i]];
        host.companions.push_back(order_[i]);
      }
    }
  }

  // A further host of an expert and the companions it would find there.
  struct ExtraHost {
    double gain = 0.0;
    std::uint32_t expert = 0;
    std::vector<std::uint32_t> companions;
  };

  const FanOutBoundTask& task_;
  std::size_t num_experts_;
  std::uint32_t num_topk_;
  std::size_t num_tokens_;
  std::vector<float> slope_;             // [num_tokens][num_topk] b(t, e)
  std::vector<double> gain_;             // [num_experts][num_experts] g(e, f)
  std::vector<double> price_;            // [num_experts][num_experts] l(e, f), antisymmetric
  std::vector<std::uint32_t> together_;  // [num_experts][num_experts] tokens that chose both
  std::vector<std::uint8_t> taken_;      // [num_experts][num_experts] the best rows
  std::vector<double> load_;             // [num_experts]
  bool spectral_;
  std::vector<double> shared_;        // [num_experts][num_experts] Z
  std::vector<double> projection_;    // [num_experts][num_experts] X
  std::vector<double> weight_;        // [num_experts] one row, scratch
  std::vector<std::uint32_t> order_;  // experts of positive weight, scratch
  std::vector<ExtraHost> extra_;      // with replicas
};

std::uint64_t known_fan_out(const FanOutBoundTask& task) {
  std::uint64_t total = 0;
  for (std::size_t begin = 0; begin < task.experts.size(); begin += task.num_topk) {
    for (std::uint32_t i = 0; i < task.num_topk; ++i) {
      bool first = true;
      for (std::uint32_t j = 0; j < i; ++j) {
        first = first && task.known[task.experts[begin + j]] != task.known[task.experts[begin + i]];
      }
      total += first ? 1 : 0;
    }
  }
  return total;
}

}  // namespace

std::uint64_t fan_out_bound(const FanOutBoundTask& task) {
  if (task.num_topk == 0 || task.experts.empty()) return 0;
  const std::size_t num_pairs = task.experts.size();
  const std::size_t num_tokens = num_pairs / task.num_topk;
  const std::uint64_t simple =
      num_tokens * ((task.num_topk + task.part_capacity - 1) / task.part_capacity);
  if (task.part_capacity >= task.num_experts) return num_tokens;
  const double size = task.num_experts;
  const double work = static_cast<double>(num_pairs) * task.num_topk * 2.0 +
                      (use_spectrum(task) ? 9.0 * size * size * size : 0.0);
  const auto tight = static_cast<std::uint32_t>(
      std::clamp(kMaxWork / work, double{kMinPasses}, double{kMaxPasses}));
  const std::uint32_t passes =
      task.max_passes.value_or(task.effort == BoundEffort::kTight ? tight : kQuickPasses);
  PairDual dual(task);
  // The dual is at least the sum of phi of any placement.
  const std::uint64_t known = task.known_fan_out   ? *task.known_fan_out
                              : task.known.empty() ? simple
                                                   : known_fan_out(task);
  const double target = static_cast<double>(num_pairs) - static_cast<double>(known);
  double best = static_cast<double>(num_pairs);
  double length = 1.0;
  std::uint32_t since_best = 0;
  for (std::uint32_t pass = 0; pass < passes; ++pass) {
    const double value = dual.evaluate();
    if (value < best) {
      since_best = value < best - 1e-4 * std::abs(best - target) ? 0 : since_best + 1;
      best = value;
    } else {
      ++since_best;
    }
    if (value - target < 0.5 || length < 1e-3) break;
    if (since_best >= 10) {
      length *= 0.75;
      since_best = 0;
    }
    // A few steps cannot reach a placement that is far off: they aim at what is near.
    const double aim =
        task.effort == BoundEffort::kQuick ? std::max(target, (1.0 - kQuickReach) * value) : target;
    dual.step(value, aim, length);
  }
  // Sums of some 1e7 terms of size 1 in double and slopes in float, which are exact as given.
  const double proven = static_cast<double>(num_pairs) - best;
  const double tolerance = 1e-9 * static_cast<double>(num_pairs) + 1e-6;
  std::uint64_t bound =
      std::max(simple, static_cast<std::uint64_t>(std::max(0.0, std::ceil(proven - tolerance))));
  // The many passes, which aim far, may have come less high than a few that aim near.
  if (task.effort == BoundEffort::kTight && !task.max_passes) {
    FanOutBoundTask quick = task;
    quick.effort = BoundEffort::kQuick;
    bound = std::max(bound, fan_out_bound(quick));
  }
  return bound;
}

}  // namespace coterie
