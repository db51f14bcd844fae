#pragma once
// All eigenvalues and eigenvectors of a small dense symmetric matrix.

#include <cstddef>
#include <vector>

namespace coterie {

struct SymmetricEigen {
  std::vector<double> values;   // [n] ascending
  std::vector<double> vectors;  // [n][n] row i: the unit eigenvector of values[i]
};

// `matrix` is [n][n]; only its lower triangle is read. Householder reduction to tridiagonal form,
// then implicit QL with Wilkinson's shift (Golub and Van Loan, Matrix Computations, 8.3): errors of
// the order of machine precision times the largest eigenvalue. Takes about 9 n^3 operations.
SymmetricEigen symmetric_eigen(std::vector<double> matrix, std::size_t n);

}  // namespace coterie
