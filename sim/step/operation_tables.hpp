#pragma once
// Measured times of matrix products and attention products, interpolated between their sizes.
//
// A table holds for each measured size the time over a *reference*, a roofline at the data sheet's
// peaks plus 3 us. That ratio varies slowly with the sizes, so that it is what gets interpolated:
// linearly in the logarithms of the sizes where the table has all corners around a size, else as
// the mean of the eight nearest sizes, weighted by the inverse square of their distance. Beyond
// the table the ratio at its edge counts.

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/step/operation_times.hpp"

namespace coterie {

// What was measured together: one operation, or the operations of a module one after the other.
struct MeasuredOperations {
  std::string kind;  // the key of gpu.operations that it says most about
  std::vector<ModelOperation> operations;
  double time_s = 0.0;
};
// All rows of the files that are of the machine and of known types. Throws InputError as
// load_operation_tables does.
std::vector<MeasuredOperations> read_measured_operations(const OperationTableFiles& files);

// The roofline that ratios refer to, seconds.
double reference_time(const ModelOperation& operation, const GpuModel& gpu);

// Points in a space of log sizes.
class ScatteredTable {
 public:
  static constexpr std::size_t kMaxDims = 5;
  using Point = std::array<double, kMaxDims>;  // logs; unused dimensions are 0

  // Of equal points the last one counts.
  void add(const Point& at, double log_ratio);
  // At least one point must be there.
  [[nodiscard]] double at(const Point& where) const;
  [[nodiscard]] bool empty() const { return values_.empty(); }
  [[nodiscard]] std::size_t size() const { return values_.size(); }

 private:
  std::map<Point, double> values_;
  std::array<std::vector<double>, kMaxDims> axes_;  // ascending
};

class OperationTables {
 public:
  // Measured over reference time; absent for what no table has.
  [[nodiscard]] std::optional<double> over_reference(const ModelOperation& operation,
                                                     const GpuModel& gpu) const;

 private:
  friend std::shared_ptr<const OperationTables> load_operation_tables(
      const OperationTableFiles& files, const GpuModel& gpu);
  std::map<Precision, ScatteredTable> products_;  // m, n, k
  // Sequences, queries or keys per sequence, heads, KV heads, head dimension.
  ScatteredTable prefill_, decode_;
};

}  // namespace coterie
