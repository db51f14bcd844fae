#pragma once
// Statistics of a handful of numbers: one convention for every program, report and test.
//
// The quantile q of n values is taken from the sorted values x[0] ... x[n - 1] at the position
// q (n - 1), interpolated linearly between its two neighbours (type 7 of Hyndman and Fan, "Sample
// quantiles in statistical packages", 1996; the default of NumPy and R). The median of an even
// number of values is thus the mean of the two in the middle. Values must be finite and at least
// one; misuse throws std::invalid_argument.

#include <cstddef>
#include <vector>

namespace coterie {

double mean(const std::vector<double>& values);

// `q` between 0 (the least) and 1 (the greatest).
double quantile(std::vector<double> values, double q);
double median(std::vector<double> values);

// The position of the value nearest to the median; of equally near ones the lower value, of equal
// values the first. What stands for a sample where one of its members is wanted whole.
std::size_t median_position(const std::vector<double>& values);

// How far measurements scatter: half the distance between the quantiles 0.1 and 0.9, relative to
// the median. Zero where the median is zero.
double relative_spread(const std::vector<double>& values);

}  // namespace coterie
