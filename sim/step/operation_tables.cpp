#include "sim/step/operation_tables.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/excerpt.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

constexpr double kReferenceLaunch = 3e-6;  // seconds
constexpr double kMicro = 1e-6;
constexpr std::size_t kNearest = 8;

// A measured table whose needed columns are there.
class MeasuredTable {
 public:
  MeasuredTable(const std::filesystem::path& file, const std::vector<std::string>& columns)
      : name_(file.string()), table_(parse_csv(read_file(file), name_)) {
    for (const std::string& column : columns) {
      if (!table_.find(column)) {
        throw InputError(
            name_, "the columns " + excerpt(fmt::format("{}", fmt::join(table_.columns, ", "))),
            fmt::format("a column \"{}\"", column));
      }
    }
  }
  [[nodiscard]] std::size_t num_rows() const { return table_.rows.size(); }
  [[nodiscard]] std::string text(std::size_t row, const char* column) const {
    return table_.text(row, column);
  }
  [[nodiscard]] std::string place(std::size_t row) const {
    return fmt::format("{}:{}", name_, table_.lines[row]);
  }
  [[nodiscard]] double positive(std::size_t row, const char* column) const {
    const auto number = table_.number(row, column);
    if (!number || *number <= 0.0) {
      throw InputError(place(row), fmt::format("{} \"{}\"", column, table_.text(row, column)),
                       "a number above zero");
    }
    return *number;
  }
  [[nodiscard]] std::uint64_t count(std::size_t row, const char* column) const {
    return static_cast<std::uint64_t>(std::llround(positive(row, column)));
  }
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
  CsvTable table_;
};

ScatteredTable::Point product_point(const ModelOperation& op) {
  const auto log_of = [](std::uint64_t count) { return std::log(static_cast<double>(count)); };
  return {log_of(op.m * op.batch), log_of(op.n), log_of(op.k)};
}

ScatteredTable::Point attention_point(const AttentionCall& call) {
  const auto log_of = [](double count) { return std::log(std::max(1.0, count)); };
  const bool decode = call.query_length == 1;
  return {log_of(static_cast<double>(call.sequences)),
          log_of(static_cast<double>(decode ? call.kv_length : call.query_length) / call.cp),
          log_of(call.num_heads), log_of(call.num_kv_heads), log_of(call.qk_dim)};
}

ModelOperation product_operation(std::uint64_t m, std::uint64_t n, std::uint64_t k,
                                 Precision precision) {
  ModelOperation op;
  op.kind = OperationKind::kMatrixProduct;
  op.precision = precision;
  op.m = m;
  op.n = n;
  op.k = k;
  const double rows = static_cast<double>(m), columns = static_cast<double>(n),
               inner = static_cast<double>(k);
  op.flops = 2.0 * rows * columns * inner;
  op.bytes = bytes_per_value(precision) * inner * (rows + columns) + 2.0 * rows * columns;
  return op;
}

// The kernels of the tables find BF16 rows and quantise them first: one pass for the largest value
// of a row, one that writes the quantised values.
ModelOperation quantisation_of(const ModelOperation& product) {
  ModelOperation op;
  op.name = "quantisation";
  op.kind = OperationKind::kMemoryBound;
  op.bytes = static_cast<double>(product.m) * static_cast<double>(product.k) *
             (2.0 * 2.0 + bytes_per_value(product.precision));
  return op;
}

ModelOperation attention_operation(const AttentionCall& call) {
  ModelOperation op;
  op.kind = OperationKind::kAttention;
  op.attention = call;
  op.flops = call.num_heads * call.pairs() * 2.0 * (call.qk_dim + call.v_dim);
  const double queries = static_cast<double>(call.sequences * call.query_length);
  const double keys = static_cast<double>(call.sequences * call.kv_length);
  op.bytes =
      2.0 * (call.qk_dim + call.v_dim) * (queries * call.num_heads + keys * call.num_kv_heads);
  return op;
}

void read_attention(const std::filesystem::path& file, bool decode,
                    std::vector<MeasuredOperations>& out) {
  const char* length = decode ? "kv_length" : "isl";
  const MeasuredTable rows(
      file, {"batch_size", length, "num_heads", "num_key_value_heads", "head_dim", "latency_us"});
  for (std::size_t row = 0; row < rows.num_rows(); ++row) {
    AttentionCall call;
    call.sequences = rows.count(row, "batch_size");
    call.kv_length = rows.count(row, length);
    call.query_length = decode ? 1 : call.kv_length;
    call.num_heads = static_cast<std::uint32_t>(rows.count(row, "num_heads"));
    call.num_kv_heads = static_cast<std::uint32_t>(rows.count(row, "num_key_value_heads"));
    call.qk_dim = call.v_dim = static_cast<std::uint32_t>(rows.count(row, "head_dim"));
    out.push_back({decode ? "attention_decode" : "attention",
                   {attention_operation(call)},
                   kMicro * rows.positive(row, "latency_us")});
  }
}

// A module: the attention part of one layer of DeepSeek-V3's shape without norm and residual, with
// as many heads as the table says (128, or a tensor-parallel rank's 16).
void read_mla(const std::filesystem::path& file, bool decode,
              std::vector<MeasuredOperations>& out) {
  const char* length = decode ? "kv_length" : "isl";
  const MeasuredTable rows(file, {"gemm_type", "num_heads", "batch_size", length, "latency_us"});
  ModelShape model = load_model("deepseek_v3");
  for (std::size_t row = 0; row < rows.num_rows(); ++row) {
    const std::string type = rows.text(row, "gemm_type");
    if (type != "bfloat16" && type != "fp8_block") {
      throw InputError(rows.place(row), fmt::format("gemm_type \"{}\"", type),
                       "bfloat16 or fp8_block");
    }
    StepSpec step;
    step.kind = decode ? StepKind::kDecode : StepKind::kPrefill;
    const Precision precision = type == "bfloat16" ? Precision::kBf16 : Precision::kFp8;
    step.precision.attention = {precision, precision};
    LayerWork work;
    work.sequences = rows.count(row, "batch_size");
    work.kv_length = rows.count(row, length);
    work.query_length = decode ? 1 : work.kv_length;
    work.decode = decode;
    model.attention->num_heads = static_cast<std::uint32_t>(rows.count(row, "num_heads"));
    std::vector<ModelOperation> list =
        layer_operations(model, step, work, model.moe_layers.front(), Pass::kForward).attention;
    std::erase_if(list, [](const ModelOperation& op) {
      return op.name == "attention norm" || op.name == "residual";
    });
    out.push_back({decode ? "attention_latent" : "attention_mla", std::move(list),
                   kMicro * rows.positive(row, "latency_us")});
  }
}

std::optional<Precision> table_type(const std::string& name) {
  if (name == "bfloat16") return Precision::kBf16;
  if (name == "fp8") return Precision::kFp8;
  if (name == "nvfp4") return Precision::kNvfp4;
  return std::nullopt;  // others have no use here
}

}  // namespace

double reference_time(const ModelOperation& operation, const GpuModel& gpu) {
  return kReferenceLaunch + std::max(operation.flops / peak_rate(gpu, operation.precision).value,
                                     operation.bytes / gpu.memory_bandwidth.value);
}

void ScatteredTable::add(const Point& at, double log_ratio) {
  values_[at] = log_ratio;
  for (std::size_t dim = 0; dim < kMaxDims; ++dim) {
    auto& axis = axes_[dim];
    const auto place = std::lower_bound(axis.begin(), axis.end(), at[dim]);
    if (place == axis.end() || *place != at[dim]) axis.insert(place, at[dim]);
  }
}

double ScatteredTable::at(const Point& where) const {
  // The cell around the point, and its place in it.
  Point low{}, high{};
  std::array<double, kMaxDims> share{};
  for (std::size_t dim = 0; dim < kMaxDims; ++dim) {
    const auto& axis = axes_[dim];
    const double value = std::clamp(where[dim], axis.front(), axis.back());
    const auto above = std::lower_bound(axis.begin(), axis.end(), value);
    high[dim] = *above;
    low[dim] = *above == value ? value : *(above - 1);
    share[dim] = high[dim] > low[dim] ? (value - low[dim]) / (high[dim] - low[dim]) : 0.0;
  }
  double sum = 0.0;
  bool complete = true;
  for (unsigned corner = 0; corner < (1U << kMaxDims) && complete; ++corner) {
    Point at{};
    double weight = 1.0;
    for (std::size_t dim = 0; dim < kMaxDims; ++dim) {
      const bool up = ((corner >> dim) & 1U) != 0;
      at[dim] = up ? high[dim] : low[dim];
      weight *= up ? share[dim] : 1.0 - share[dim];
    }
    if (weight == 0.0) continue;
    const auto found = values_.find(at);
    complete = found != values_.end();
    if (complete) sum += weight * found->second;
  }
  if (complete) return sum;

  std::vector<std::pair<double, double>> nearest;  // squared distance, value
  for (const auto& [at, value] : values_) {
    double distance = 0.0;
    for (std::size_t dim = 0; dim < kMaxDims; ++dim) {
      distance += (at[dim] - where[dim]) * (at[dim] - where[dim]);
    }
    nearest.emplace_back(distance, value);
  }
  const std::size_t num = std::min(kNearest, nearest.size());
  std::partial_sort(nearest.begin(), nearest.begin() + static_cast<std::ptrdiff_t>(num),
                    nearest.end());
  if (nearest.front().first == 0.0) return nearest.front().second;
  double weights = 0.0, weighted = 0.0;
  for (std::size_t i = 0; i < num; ++i) {
    weights += 1.0 / nearest[i].first;
    weighted += nearest[i].second / nearest[i].first;
  }
  return weighted / weights;
}

std::optional<double> OperationTables::over_reference(const ModelOperation& operation,
                                                      const GpuModel&) const {
  if (operation.kind == OperationKind::kMatrixProduct) {
    // MXFP8 has no table of its own; it runs at FP8's rate.
    const Precision type =
        operation.precision == Precision::kMxfp8 ? Precision::kFp8 : operation.precision;
    const auto table = products_.find(type);
    if (table == products_.end()) return std::nullopt;
    return std::exp(table->second.at(product_point(operation)));
  }
  if (operation.kind != OperationKind::kAttention || operation.backward ||
      operation.attention.latent || operation.attention.qk_dim != operation.attention.v_dim) {
    return std::nullopt;
  }
  const ScatteredTable& table = operation.attention.query_length == 1 ? decode_ : prefill_;
  if (table.empty()) return std::nullopt;
  return std::exp(table.at(attention_point(operation.attention)));
}

std::vector<MeasuredOperations> read_measured_operations(const OperationTableFiles& files) {
  std::vector<MeasuredOperations> all;
  if (files.gemm) {
    const MeasuredTable rows(*files.gemm, {"machine", "gemm_dtype", "m", "n", "k", "latency_us"});
    std::set<std::string> machines;
    for (std::size_t row = 0; row < rows.num_rows(); ++row) {
      machines.insert(rows.text(row, "machine"));
      if (rows.text(row, "machine") != files.machine) continue;
      const auto type = table_type(rows.text(row, "gemm_dtype"));
      if (!type) continue;
      const char* name = *type == Precision::kBf16  ? "product_bf16"
                         : *type == Precision::kFp8 ? "product_fp8"
                                                    : "product_fp4";
      const ModelOperation op = product_operation(rows.count(row, "m"), rows.count(row, "n"),
                                                  rows.count(row, "k"), *type);
      MeasuredOperations measured{name, {}, kMicro * rows.positive(row, "latency_us")};
      if (*type != Precision::kBf16) measured.operations.push_back(quantisation_of(op));
      measured.operations.push_back(op);
      all.push_back(std::move(measured));
    }
    if (all.empty()) {
      throw InputError(rows.name(), fmt::format("the machines {}", fmt::join(machines, ", ")),
                       fmt::format("products of the machine \"{}\"", files.machine));
    }
  }
  if (files.attention_prefill) read_attention(*files.attention_prefill, false, all);
  if (files.attention_decode) read_attention(*files.attention_decode, true, all);
  if (files.mla_prefill) read_mla(*files.mla_prefill, false, all);
  if (files.mla_decode) read_mla(*files.mla_decode, true, all);
  return all;
}

std::shared_ptr<const OperationTables> load_operation_tables(const OperationTableFiles& files,
                                                             const GpuModel& gpu) {
  auto tables = std::make_shared<OperationTables>();
  OperationTableFiles single = files;
  single.mla_prefill.reset();
  single.mla_decode.reset();
  for (const MeasuredOperations& measured : read_measured_operations(single)) {
    // A quantised product's ratio holds its quantisation.
    const ModelOperation& op = measured.operations.back();
    const double ratio = std::log(measured.time_s / reference_time(op, gpu));
    if (op.kind == OperationKind::kMatrixProduct) {
      tables->products_[op.precision].add(product_point(op), ratio);
    } else {
      (op.attention.query_length == 1 && measured.kind == "attention_decode" ? tables->decode_
                                                                             : tables->prefill_)
          .add(attention_point(op.attention), ratio);
    }
  }
  return tables;
}

}  // namespace coterie
