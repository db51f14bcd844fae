#include "workloads/placement/symmetric_eigen.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.hpp"

namespace coterie {
namespace {

// Q^T A Q = T tridiagonal with diagonal `d` and subdiagonal `e` (e[i] below d[i]). `q` [n][n] gets
// the rows of Q^T, so that later rotations work on rows.
void tridiagonalise(std::vector<double>& a, std::size_t n, std::vector<double>& d,
                    std::vector<double>& e, std::vector<double>& q) {
  std::vector<std::vector<double>>
      reflectors;  // unit vectors v of I - 2 v v^T, zero up to column k
  for (std::size_t k = 0; k + 2 < n; ++k) {
    double norm = 0.0;
    for (std::size_t i = k + 1; i < n; ++i) norm += a[i * n + k] * a[i * n + k];
    norm = std::sqrt(norm);
    std::vector<double> v(n, 0.0);
    if (norm > 0.0) {
      const double x = a[(k + 1) * n + k];
      const double alpha = x > 0.0 ? -norm : norm;
      for (std::size_t i = k + 1; i < n; ++i) v[i] = a[i * n + k];
      v[k + 1] -= alpha;
      double length = 0.0;
      for (std::size_t i = k + 1; i < n; ++i) length += v[i] * v[i];
      length = std::sqrt(length);
      for (std::size_t i = k + 1; i < n; ++i) v[i] /= length;
      // A <- H A H with p = A v, w = p - (v^T p) v: A - 2 v w^T - 2 w v^T.
      std::vector<double> w(n, 0.0);
      double along = 0.0;
      for (std::size_t i = k; i < n; ++i) {
        double sum = 0.0;
        for (std::size_t j = k + 1; j < n; ++j) sum += a[i * n + j] * v[j];
        w[i] = sum;
        along += v[i] * sum;
      }
      for (std::size_t i = k; i < n; ++i) w[i] -= along * v[i];
      for (std::size_t i = k; i < n; ++i) {
        const double vi = 2.0 * v[i];
        const double wi = 2.0 * w[i];
        for (std::size_t j = k; j < n; ++j) a[i * n + j] -= vi * w[j] + wi * v[j];
      }
    }
    reflectors.push_back(std::move(v));
  }
  for (std::size_t i = 0; i < n; ++i) d[i] = a[i * n + i];
  for (std::size_t i = 0; i + 1 < n; ++i) e[i] = a[(i + 1) * n + i];
  // Q^T = H_last ... H_0, so every reflector is applied from the left in turn.
  std::fill(q.begin(), q.end(), 0.0);
  for (std::size_t i = 0; i < n; ++i) q[i * n + i] = 1.0;
  std::vector<double> row(n);
  for (std::size_t k = 0; k < reflectors.size(); ++k) {
    const std::vector<double>& v = reflectors[k];
    std::fill(row.begin(), row.end(), 0.0);
    for (std::size_t i = k + 1; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) row[j] += v[i] * q[i * n + j];
    }
    for (std::size_t i = k + 1; i < n; ++i) {
      const double vi = 2.0 * v[i];
      for (std::size_t j = 0; j < n; ++j) q[i * n + j] -= vi * row[j];
    }
  }
}

// Diagonalises T; the rows of `q` become eigenvectors.
void implicit_ql(std::size_t n, std::vector<double>& d, std::vector<double>& e,
                 std::vector<double>& q) {
  constexpr int kMaxSteps = 60;  // per eigenvalue; a handful is usual
  for (std::size_t l = 0; l < n; ++l) {
    for (int step = 0;; ++step) {
      std::size_t m = l;
      while (m + 1 < n && std::abs(e[m]) > std::numeric_limits<double>::epsilon() *
                                               (std::abs(d[m]) + std::abs(d[m + 1]))) {
        ++m;
      }
      if (m == l) break;
      if (step == kMaxSteps) {
        throw Error(ExitCode::kInternalError, "the eigenvalues of a bound did not converge");
      }
      double g = (d[l + 1] - d[l]) / (2.0 * e[l]);
      double r = std::hypot(g, 1.0);
      g = d[m] - d[l] + e[l] / (g + std::copysign(r, g));
      double s = 1.0;
      double c = 1.0;
      double p = 0.0;
      bool deflated = false;
      for (std::size_t i = m; i-- > l;) {
        const double f = s * e[i];
        const double b = c * e[i];
        r = std::hypot(f, g);
        if (i + 1 < n) e[i + 1] = r;
        if (r == 0.0) {
          d[i + 1] -= p;
          if (m < n) e[m] = 0.0;
          deflated = true;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        double* const lower = q.data() + i * n;
        double* const upper = lower + n;
        for (std::size_t j = 0; j < n; ++j) {
          const double t = upper[j];
          upper[j] = s * lower[j] + c * t;
          lower[j] = c * lower[j] - s * t;
        }
      }
      if (deflated) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0.0;
    }
  }
}

}  // namespace

SymmetricEigen symmetric_eigen(std::vector<double> matrix, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) matrix[i * n + j] = matrix[j * n + i];
  }
  std::vector<double> d(n, 0.0);
  std::vector<double> e(n, 0.0);
  std::vector<double> q(n * n, 0.0);
  tridiagonalise(matrix, n, d, e, q);
  implicit_ql(n, d, e, q);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return d[a] < d[b]; });
  SymmetricEigen result;
  for (const std::size_t i : order) {
    result.values.push_back(d[i]);
    result.vectors.insert(result.vectors.end(), q.begin() + static_cast<std::ptrdiff_t>(i * n),
                          q.begin() + static_cast<std::ptrdiff_t>((i + 1) * n));
  }
  return result;
}

}  // namespace coterie
