// How fast the products of the expert MLP are, and the MLP as a whole.
//
//   bench_mlp [--json OUT] [--quick] [--tiles] [--pause MS]
//
// For every shape and number of rows per expert (all experts alike) it times, in this run and on
// this GPU:
//
//   up         gate and up as one product, [rows][hidden] x [2 * intermediate][hidden]^T per expert
//   down       [rows][intermediate] x [hidden][intermediate]^T per expert
//   mlp        ExpertMlp::run: up, activation, down (for FP8 with the quantisation of its inputs)
//
// by cuBLAS's grouped product, by one cuBLAS product per expert, and by the kernel that ExpertMlp
// chooses (`ours`; with --tiles by every tile of the build, one line each). TFLOP/s count 2 * rows
// * n * k for a product and the sum of both for the MLP. `ratio` is ours over the better of the two
// cuBLAS columns of the same line.
//
// A time is the median over 7 (--quick: 3) batches, the spread (largest - smallest) / median. A
// batch is a series of calls on one stream between two events, long enough for the launches to
// hide, over several sets of weights and rows of together at least 256 MiB, so that the L2 keeps
// nothing; with --pause the GPU rests before every batch, which keeps its clock from giving way.
// Operands are uniform random. Every kernel's result is compared with cuBLAS's (BF16: 1
// percent in the norm, FP8: 6 percent) on rows spread over all experts; a wrong one ends the
// program with code 4.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cublas_product.hpp"
#include "kernels/expert_mlp.hpp"
#include "kernels/mlp_kernels.hpp"
#include "tests/bench/random_values.cuh"

namespace coterie::kernels {
namespace {

struct Shape {
  std::uint32_t hidden;
  std::uint32_t intermediate;
  std::uint32_t num_experts;
};
constexpr Shape kShapes[] = {{2048, 1408, 32}, {2048, 1408, 8}, {7168, 2048, 32}, {4096, 1536, 16}};
constexpr std::uint32_t kRowsPerExpert[] = {32, 128, 512, 768, 2048};

struct Settings {
  std::string json;
  bool quick = false;
  bool tiles = false;
  int pause_ms = 0;
  [[nodiscard]] int batches() const { return quick ? 3 : 7; }
};

struct Time {
  double median_s = 0.0;
  double spread = 0.0;
};

// Per call of call(0), call(1), ...
Time time_calls(const Stream& stream, const Settings& settings,
                const std::function<void(std::size_t)>& call) {
  const Event begin;
  const Event end;
  const auto batch = [&](std::size_t calls) {
    begin.record(stream.get());
    for (std::size_t i = 0; i < calls; ++i) call(i);
    end.record(stream.get());
    stream.synchronize();
    return seconds_between(begin, end) / static_cast<double>(calls);
  };
  batch(2);
  const double guess = batch(4);
  constexpr double kBatchSeconds = 8e-3;
  const auto calls = static_cast<std::size_t>(std::clamp(kBatchSeconds / guess, 4.0, 200.0));
  std::vector<double> times;
  for (int i = 0; i < settings.batches(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(settings.pause_ms));
    times.push_back(batch(calls));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  return {median, (times.back() - times.front()) / median};
}

// ||a - b|| / ||b|| over `count` rows of [num_rows][n], spread evenly.
double row_error(const Bf16* a, const Bf16* b, std::size_t num_rows, std::size_t n,
                 std::size_t count) {
  double difference = 0.0;
  double norm = 0.0;
  std::vector<Bf16> row_a(n);
  std::vector<Bf16> row_b(n);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t row = i * (num_rows - 1) / (count - 1);
    check(cudaMemcpy(row_a.data(), a + row * n, n * sizeof(Bf16), cudaMemcpyDeviceToHost), "fetch");
    check(cudaMemcpy(row_b.data(), b + row * n, n * sizeof(Bf16), cudaMemcpyDeviceToHost), "fetch");
    for (std::size_t j = 0; j < n; ++j) {
      const auto x = static_cast<double>(__bfloat162float(row_a[j]));
      const auto y = static_cast<double>(__bfloat162float(row_b[j]));
      difference += (x - y) * (x - y);
      norm += y * y;
    }
  }
  return std::sqrt(difference / norm);
}

struct Line {
  std::string product;
  Shape shape;
  std::uint32_t rows;
  std::string method;
  double flops;
  Time time;
  [[nodiscard]] double tflops() const { return flops / time.median_s * 1e-12; }
};

// Operands of one product, in BF16 and FP8.
struct Operands {
  GroupedProduct bf16;
  GroupedProduct fp8;
  DeviceBuffer<Bf16> x, w, y;
  DeviceBuffer<E4m3> x8, w8;
  DeviceBuffer<float> x_scales, w_scales;

  Operands(const Shape& shape, std::uint32_t n, std::uint32_t k, std::uint32_t num_rows,
           const std::uint32_t* begin, std::uint64_t seed, bool with_fp8) {
    const std::size_t experts = shape.num_experts;
    x = random_values(std::size_t{num_rows} * k, seed, 1.7F);
    w = random_values(experts * n * k, seed + 1, std::sqrt(3.0F / static_cast<float>(k)));
    y = DeviceBuffer<Bf16>(std::size_t{num_rows} * n);
    bf16.num_groups = shape.num_experts;
    bf16.n = n;
    bf16.k = k;
    bf16.x = x.data();
    bf16.w = w.data();
    bf16.y = y.data();
    if (!with_fp8) return;
    const std::size_t blocks = std::size_t{n} * k / (kGemmScaleBlock * kGemmScaleBlock);
    x8 = DeviceBuffer<E4m3>(x.size());
    w8 = DeviceBuffer<E4m3>(w.size());
    x_scales = DeviceBuffer<float>(x.size() / kGemmScaleBlock);
    w_scales = DeviceBuffer<float>(experts * blocks);
    quantise_rows(x.data(), x8.data(), x_scales.data(), k, {begin, shape.num_experts, num_rows},
                  nullptr);
    for (std::size_t e = 0; e < experts; ++e) {
      quantise_weights(w.data() + e * n * k, w8.data() + e * n * k, w_scales.data() + e * blocks, n,
                       k, nullptr);
    }
    check(cudaDeviceSynchronize(), "quantise");
    fp8 = bf16;
    fp8.x = x8.data();
    fp8.w = w8.data();
    fp8.x_scales = x_scales.data();
    fp8.w_scales = w_scales.data();
  }
};

void expect_close(double error, double limit, const std::string& what) {
  if (error <= limit) return;  // false for NaN
  std::fprintf(stderr, "bench_mlp: error: %s differs from cuBLAS by %g\n", what.c_str(), error);
  std::exit(4);
}

// One product by every method.
void time_product(const Settings& settings, const Stream& stream, const CublasHandle& blas,
                  const Shape& shape, std::uint32_t rows, bool up, std::vector<Line>& lines) {
  const std::uint32_t n = up ? 2 * shape.intermediate : shape.hidden;
  const std::uint32_t k = up ? shape.hidden : shape.intermediate;
  const std::uint32_t num_rows = rows * shape.num_experts;
  std::vector<std::uint32_t> begin;
  for (std::uint32_t e = 0; e <= shape.num_experts; ++e) begin.push_back(e * rows);
  const DeviceBuffer<std::uint32_t> device_begin{std::span<const std::uint32_t>(begin)};
  const double set_bytes = 2.0 * (std::size_t{shape.num_experts} * n * k +
                                  std::size_t{num_rows} * k + std::size_t{num_rows} * n);
  const auto num_sets = static_cast<std::size_t>(1.0 + 256.0 * 1024 * 1024 / set_bytes);
  const bool cutlass = grouped_gemm_available();
  std::vector<Operands> sets;
  std::vector<CublasProduct> by_cublas;
  for (std::size_t i = 0; i < num_sets; ++i) {
    sets.emplace_back(shape, n, k, num_rows, device_begin.data(), 2 * i + 1, cutlass);
    by_cublas.emplace_back(sets.back().bf16, begin);
  }
  const char* name = up ? "up" : "down";
  const double flops = 2.0 * num_rows * n * k;
  const auto add = [&](const std::string& method, const std::function<void(std::size_t)>& call) {
    lines.push_back({name, shape, rows, method, flops, time_calls(stream, settings, call)});
  };
  add("cuBLAS grouped",
      [&](std::size_t i) { by_cublas[i % num_sets].run_grouped(blas, stream.get()); });
  add("cuBLAS per expert",
      [&](std::size_t i) { by_cublas[i % num_sets].run_per_group(blas, stream.get()); });
  if (!cutlass) return;
  DeviceBuffer<Bf16> expected(sets[0].y.size());
  by_cublas[0].run_per_group(blas, stream.get());
  stream.synchronize();
  check(cudaMemcpy(expected.data(), sets[0].y.data(), expected.size() * sizeof(Bf16),
                   cudaMemcpyDeviceToDevice),
        "copy");
  for (std::size_t t = 0; t < gemm_tiles().size(); ++t) {
    const GemmTile& tile = gemm_tiles()[t];
    const bool fp8 = tile.type == GemmType::kFp8;
    const bool chosen = choose_tile(tile.type, std::array{rows}) == t;
    if (!chosen && !settings.tiles) continue;
    std::vector<std::unique_ptr<GroupedGemm>> gemms;
    for (const Operands& set : sets) {
      gemms.push_back(tile.make(fp8 ? set.fp8 : set.bf16));
      gemms.back()->set_rows(device_begin.data(), stream.get());
    }
    sets[0].y.fill_bytes(0xff);
    gemms[0]->run(stream.get());
    stream.synchronize();
    const std::string method = std::string(fp8 ? "FP8 " : "BF16 ") + tile.name;
    expect_close(row_error(sets[0].y.data(), expected.data(), num_rows, n, 64), fp8 ? 0.06 : 0.01,
                 method);
    const auto run = [&](std::size_t i) { gemms[i % num_sets]->run(stream.get()); };
    if (chosen) add(fp8 ? "ours FP8" : "ours", run);
    if (settings.tiles) add(method, run);
  }
}

// The whole MLP by the method that it chooses itself, by cuBLAS, and in FP8.
void time_mlp(const Settings& settings, const Stream& stream, const Shape& shape,
              std::uint32_t rows, std::vector<Line>& lines) {
  const std::uint32_t num_rows = rows * shape.num_experts;
  std::vector<std::uint32_t> begin;
  std::vector<std::uint32_t> experts;
  for (std::uint32_t e = 0; e <= shape.num_experts; ++e) begin.push_back(e * rows);
  for (std::uint32_t e = 0; e < shape.num_experts; ++e) experts.push_back(e);
  const DeviceBuffer<Bf16> inputs = random_values(std::size_t{num_rows} * shape.hidden, 99, 1.7F);
  const DeviceBuffer<Bf16> outputs(inputs.size());
  const double flops = 6.0 * num_rows * shape.hidden * shape.intermediate;
  const auto add = [&](const std::string& method, const MlpOptions& options) {
    ExpertMlp mlp({shape.hidden, shape.intermediate}, 1, 0, experts, num_rows, options);
    mlp.prepare(begin, inputs.data(), outputs.data());
    lines.push_back({"mlp", shape, rows, method, flops,
                     time_calls(stream, settings, [&](std::size_t) { mlp.run(stream.get()); })});
  };
  add("cuBLAS grouped", {GemmMethod::kGrouped, GemmType::kBf16, std::nullopt});
  add("cuBLAS per expert", {GemmMethod::kPerExpert, GemmType::kBf16, std::nullopt});
  add("ours", {});
  if (grouped_gemm_available()) add("ours FP8", {GemmMethod::kAuto, GemmType::kFp8, std::nullopt});
}

// The lines of one product, shape and number of rows, which stand together.
void print_cell(std::span<const Line> cell) {
  const Line& first = cell.front();
  double best = 0.0;
  std::printf("%-5s %6u %5u %3u %5u ", first.product.c_str(), first.shape.hidden,
              first.shape.intermediate, first.shape.num_experts, first.rows);
  for (const Line& line : cell) {
    if (line.method.starts_with("cuBLAS")) {
      best = std::max(best, line.tflops());
      std::printf(" %8.1f", line.tflops());
    } else if (line.method == "ours") {
      std::printf(" %8.1f %6.2f", line.tflops(), line.tflops() / best);
    } else if (line.method == "ours FP8") {
      std::printf(" %8.1f %6.2f", line.tflops(), line.tflops() / best);
    }
  }
  std::printf("\n");
  for (const Line& line : cell) {
    if (!line.method.starts_with("BF16") && !line.method.starts_with("FP8")) continue;
    std::printf("        %-40s %8.1f %6.2f\n", line.method.c_str(), line.tflops(),
                line.tflops() / best);
  }
  std::fflush(stdout);
}

void write_json(const std::string& path, const std::string& machine,
                const std::vector<Line>& lines) {
  std::ofstream out(path);
  out << "{\n  \"schema_version\": 1,\n  \"machine\": \"" << machine << "\",\n  \"cutlass\": \""
      << cutlass_version() << "\",\n  \"results\": [\n";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Line& line = lines[i];
    char text[512];
    std::snprintf(
        text, sizeof text,
        "    {\"product\": \"%s\", \"hidden\": %u, \"intermediate\": %u, \"experts\": %u, "
        "\"rows_per_expert\": %u, \"method\": \"%s\", \"time_s\": %.4g, \"spread\": %.4f, "
        "\"tflops\": %.1f}%s\n",
        line.product.c_str(), line.shape.hidden, line.shape.intermediate, line.shape.num_experts,
        line.rows, line.method.c_str(), line.time.median_s, line.time.spread, line.tflops(),
        i + 1 < lines.size() ? "," : "");
    out << text;
  }
  out << "  ]\n}\n";
  if (!out) throw std::runtime_error(path + ": cannot be written");
}

Settings read_settings(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      settings.quick = true;
    } else if (argument == "--tiles") {
      settings.tiles = true;
    } else if (argument == "--json" && i + 1 < argc) {
      settings.json = argv[++i];
    } else if (argument == "--pause" && i + 1 < argc) {
      settings.pause_ms = std::clamp(std::atoi(argv[++i]), 0, 10000);
    } else {
      throw std::runtime_error("usage: bench_mlp [--json OUT] [--quick] [--tiles] [--pause MS]");
    }
  }
  return settings;
}

void run(int argc, char** argv) {
  const Settings settings = read_settings(argc, argv);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  const std::string version = cutlass_version();
  std::printf("%s, %d multiprocessors; %s\n", properties.name, properties.multiProcessorCount,
              !grouped_gemm_available() ? "ours is cuBLAS alone" : version.c_str());
  std::printf("%-5s %6s %5s %3s %5s  %8s %8s %8s %6s %8s %6s   (TFLOP/s)\n", "", "hidden", "inter",
              "exp", "rows", "grouped", "per exp", "ours", "ratio", "ours FP8", "ratio");
  const Stream stream;
  const CublasHandle blas;
  std::vector<Line> lines;
  for (const Shape& shape : kShapes) {
    for (const std::uint32_t rows : kRowsPerExpert) {
      for (const char* what : {"up", "down", "mlp"}) {
        const std::size_t first = lines.size();
        if (std::strcmp(what, "mlp") == 0) {
          time_mlp(settings, stream, shape, rows, lines);
        } else {
          time_product(settings, stream, blas, shape, rows, std::strcmp(what, "up") == 0, lines);
        }
        print_cell(std::span(lines).subspan(first));
      }
    }
  }
  double spread = 0.0;
  for (const Line& line : lines) spread = std::max(spread, line.time.spread);
  std::printf("largest spread of a cell: %.1f percent\n", 100.0 * spread);
  if (!settings.json.empty()) write_json(settings.json, properties.name, lines);
}

}  // namespace
}  // namespace coterie::kernels

int main(int argc, char** argv) {
  try {
    coterie::kernels::run(argc, argv);
    return 0;
  } catch (const coterie::kernels::CudaError& error) {
    std::fprintf(stderr, "bench_mlp: error: %s\n", error.what());
    return 3;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_mlp: error: %s\n", error.what());
    return 2;
  }
}
