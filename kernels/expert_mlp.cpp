#include "kernels/expert_mlp.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/cublas_product.hpp"
#include "kernels/mlp_kernels.hpp"

namespace coterie::kernels {
namespace {

constexpr std::size_t kScale = kGemmScaleBlock;

// Seconds of the fastest of three runs after one that is not counted.
template <class Run>
double fastest(const Stream& stream, const Run& run) {
  const Event begin;
  const Event end;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 4; ++i) {
    begin.record(stream.get());
    run();
    end.record(stream.get());
    stream.synchronize();
    if (i > 0) best = std::min(best, seconds_between(begin, end));
  }
  return best;
}

// One of the two products of the MLP with the way it is computed.
class Product {
 public:
  Product() = default;
  // By CUTLASS.
  Product(const GroupedProduct& product, const GemmTile& tile) : gemm_(tile.make(product)) {}
  // By cuBLAS; kAuto measures.
  Product(const GroupedProduct& product, std::span<const std::uint32_t> begin,
          const CublasHandle& blas, GemmMethod method)
      : cublas_(std::make_unique<CublasProduct>(product, begin)), method_(method) {
    if (method_ == GemmMethod::kAuto) {
      const Stream stream;
      const double grouped = fastest(stream, [&] { cublas_->run_grouped(blas, stream.get()); });
      const double alone = fastest(stream, [&] { cublas_->run_per_group(blas, stream.get()); });
      method_ = grouped <= alone ? GemmMethod::kGrouped : GemmMethod::kPerExpert;
    }
    text_ = method_ == GemmMethod::kGrouped ? "one grouped product" : "one product per expert";
  }

  void set_rows(const std::uint32_t* begin, cudaStream_t stream) { gemm_->set_rows(begin, stream); }
  void run(const CublasHandle& blas, cudaStream_t stream) const {
    if (gemm_ != nullptr) {
      gemm_->run(stream);
    } else if (method_ == GemmMethod::kGrouped) {
      cublas_->run_grouped(blas, stream);
    } else {
      cublas_->run_per_group(blas, stream);
    }
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::unique_ptr<GroupedGemm> gemm_;
  std::unique_ptr<CublasProduct> cublas_;
  GemmMethod method_ = GemmMethod::kCutlass;
  std::string text_;
};

// A matrix in FP8 with its scales.
struct Quantised {
  DeviceBuffer<E4m3> values;
  DeviceBuffer<float> scales;
  Quantised() = default;
  Quantised(std::size_t num_values, std::size_t num_scales)
      : values(num_values), scales(num_scales) {}
};

void check_options(const MlpOptions& options) {
  const bool fp8 = options.type == GemmType::kFp8;
  const bool cutlass = fp8 || options.method == GemmMethod::kCutlass || options.tile.has_value();
  if (cutlass && !grouped_gemm_available()) {
    throw std::invalid_argument(std::string("ExpertMlp: ") + (fp8 ? "FP8" : "this method") +
                                " needs CUTLASS in the build and a GPU of compute capability 9.0");
  }
  if (fp8 && options.method != GemmMethod::kAuto && options.method != GemmMethod::kCutlass) {
    throw std::invalid_argument("ExpertMlp: FP8 is computed by CUTLASS alone");
  }
  if (options.tile.has_value() &&
      (*options.tile >= gemm_tiles().size() || gemm_tiles()[*options.tile].type != options.type)) {
    throw std::invalid_argument("ExpertMlp: no tile of that number and type");
  }
}

}  // namespace

struct MlpScratch::State {
  MlpShape shape{};
  std::uint32_t max_rows = 0;
  GemmType type = GemmType::kBf16;
  DeviceBuffer<Bf16> gate_up;    // [max_rows][2 * intermediate]
  DeviceBuffer<Bf16> activated;  // [max_rows][intermediate], for BF16
  Quantised inputs;              // [max_rows][hidden], for FP8
  Quantised activated_fp8;       // [max_rows][intermediate]
  CublasHandle blas;
};

MlpScratch::MlpScratch(const MlpShape& shape, std::uint32_t max_rows, GemmType type)
    : state_(std::make_unique<State>()) {
  const std::size_t rows = max_rows;
  state_->shape = shape;
  state_->max_rows = max_rows;
  state_->type = type;
  state_->gate_up = DeviceBuffer<Bf16>(2 * rows * shape.intermediate);
  if (type == GemmType::kBf16) {
    state_->activated = DeviceBuffer<Bf16>(rows * shape.intermediate);
  } else {
    state_->inputs = Quantised(rows * shape.hidden, rows * (shape.hidden / kScale));
    state_->activated_fp8 =
        Quantised(rows * shape.intermediate, rows * (shape.intermediate / kScale));
  }
}
MlpScratch::~MlpScratch() = default;

struct ExpertMlp::State {
  MlpShape shape{};
  MlpOptions options;
  std::uint32_t num_experts = 0;
  DeviceBuffer<Bf16> gate_up;  // BF16: [experts][2 * intermediate][hidden], gate before up
  DeviceBuffer<Bf16> down;     // BF16: [experts][hidden][intermediate]
  Quantised gate_up_fp8;       // the same in FP8
  Quantised down_fp8;
  std::shared_ptr<MlpScratch> scratch;

  const Bf16* inputs = nullptr;
  DeviceBuffer<std::uint32_t> own_begin;  // [experts + 1], where the host gave them
  SlotRows rows;
  bool rows_change = false;  // with every run
  Product first;
  Product second;
  std::string implementation = "no slots";

  [[nodiscard]] bool fp8() const { return options.type == GemmType::kFp8; }
  void draw(std::uint64_t seed, std::uint32_t layer, std::span<const std::uint32_t> experts);
  [[nodiscard]] GroupedProduct product(bool is_second, Bf16* outputs) const;
  void make_cutlass(std::span<const std::uint32_t> expert_rows, Bf16* outputs);
};

void ExpertMlp::State::draw(std::uint64_t seed, std::uint32_t layer,
                            std::span<const std::uint32_t> experts) {
  const std::size_t size = std::size_t{shape.hidden} * shape.intermediate;
  const std::size_t blocks = size / (kScale * kScale);
  // For FP8, the three BF16 matrices of one expert at a time.
  const std::size_t kept = fp8() ? 1 : experts.size();
  gate_up = DeviceBuffer<Bf16>(kept * 2 * size);
  down = DeviceBuffer<Bf16>(kept * size);
  if (fp8()) {
    gate_up_fp8 = Quantised(experts.size() * 2 * size, experts.size() * 2 * blocks);
    down_fp8 = Quantised(experts.size() * size, experts.size() * blocks);
  }
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const std::size_t at = fp8() ? 0 : e;
    draw_weights(shape, seed, layer, experts[e], 0, gate_up.data() + 2 * at * size, nullptr);
    draw_weights(shape, seed, layer, experts[e], 1, gate_up.data() + (2 * at + 1) * size, nullptr);
    draw_weights(shape, seed, layer, experts[e], 2, down.data() + at * size, nullptr);
    if (!fp8()) continue;
    quantise_weights(gate_up.data(), gate_up_fp8.values.data() + 2 * e * size,
                     gate_up_fp8.scales.data() + 2 * e * blocks, 2 * shape.intermediate,
                     shape.hidden, nullptr);
    quantise_weights(down.data(), down_fp8.values.data() + e * size,
                     down_fp8.scales.data() + e * blocks, shape.hidden, shape.intermediate,
                     nullptr);
  }
  check(cudaDeviceSynchronize(), "draw_weights");
  if (fp8()) {
    gate_up = {};
    down = {};
  }
}

GroupedProduct ExpertMlp::State::product(bool is_second, Bf16* outputs) const {
  const MlpScratch::State& between = *scratch->state_;
  GroupedProduct result;
  result.num_groups = num_experts;
  result.n = is_second ? shape.hidden : 2 * shape.intermediate;
  result.k = is_second ? shape.intermediate : shape.hidden;
  result.y = is_second ? outputs : between.gate_up.data();
  if (fp8()) {
    const Quantised& x = is_second ? between.activated_fp8 : between.inputs;
    const Quantised& w = is_second ? down_fp8 : gate_up_fp8;
    result.x = x.values.data();
    result.x_scales = x.scales.data();
    result.w = w.values.data();
    result.w_scales = w.scales.data();
  } else {
    result.x = is_second ? between.activated.data() : inputs;
    result.w = is_second ? down.data() : gate_up.data();
  }
  return result;
}

void ExpertMlp::State::make_cutlass(std::span<const std::uint32_t> expert_rows, Bf16* outputs) {
  const GemmTile& tile =
      gemm_tiles()[options.tile.has_value() ? *options.tile
                                            : choose_tile(options.type, expert_rows)];
  first = Product(product(false, outputs), tile);
  second = Product(product(true, outputs), tile);
  implementation =
      cutlass_version() + " sm_90a grouped " + (fp8() ? "FP8" : "BF16") + ", " + tile.name;
}

ExpertMlp::ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                     std::span<const std::uint32_t> experts, std::shared_ptr<MlpScratch> scratch,
                     const MlpOptions& options)
    : state_(std::make_unique<State>()) {
  const std::uint32_t unit = options.type == GemmType::kFp8 ? kGemmScaleBlock : 8;
  if (shape.hidden == 0 || shape.hidden % unit != 0 || shape.intermediate == 0 ||
      shape.intermediate % unit != 0) {
    throw std::invalid_argument("ExpertMlp: hidden and intermediate must be multiples of " +
                                std::to_string(unit));
  }
  if (scratch == nullptr || scratch->state_->shape.intermediate != shape.intermediate ||
      scratch->state_->shape.hidden != shape.hidden || scratch->state_->type != options.type) {
    throw std::invalid_argument("ExpertMlp: the scratch is for another shape or type");
  }
  check_options(options);
  state_->shape = shape;
  state_->options = options;
  state_->num_experts = static_cast<std::uint32_t>(experts.size());
  state_->scratch = std::move(scratch);
  state_->draw(seed, layer, experts);
}

ExpertMlp::ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                     std::span<const std::uint32_t> experts, std::uint32_t max_rows,
                     const MlpOptions& options)
    : ExpertMlp(shape, seed, layer, experts,
                std::make_shared<MlpScratch>(shape, max_rows, options.type), options) {}
ExpertMlp::~ExpertMlp() = default;
ExpertMlp::ExpertMlp(ExpertMlp&&) noexcept = default;
ExpertMlp& ExpertMlp::operator=(ExpertMlp&&) noexcept = default;

void ExpertMlp::prepare(std::span<const std::uint32_t> expert_begin, const Bf16* inputs,
                        Bf16* outputs) {
  State& state = *state_;
  const MlpScratch::State& scratch = *state.scratch->state_;
  if (expert_begin.size() != std::size_t{state.num_experts} + 1 || expert_begin.front() != 0) {
    throw std::invalid_argument("ExpertMlp: expert_begin must have experts + 1 entries from 0 on");
  }
  if (!std::is_sorted(expert_begin.begin(), expert_begin.end())) {
    throw std::invalid_argument("ExpertMlp: expert_begin must not descend");
  }
  const std::uint32_t num_rows = expert_begin.back();
  if (num_rows > scratch.max_rows) {
    throw std::invalid_argument("ExpertMlp: more slots than the scratch is made for");
  }
  state.inputs = inputs;
  state.own_begin = DeviceBuffer<std::uint32_t>(expert_begin);
  state.rows = {state.own_begin.data(), state.num_experts, num_rows};
  state.rows_change = false;
  state.first = Product();
  state.second = Product();
  state.implementation = "no slots";
  if (num_rows == 0) return;

  const GemmMethod method = state.options.method;
  const bool needs_cutlass =
      state.fp8() || method == GemmMethod::kCutlass || state.options.tile.has_value();
  if (needs_cutlass ||
      (method == GemmMethod::kAuto && state.num_experts > 1 && grouped_gemm_available())) {
    std::vector<std::uint32_t> expert_rows;
    for (std::size_t e = 0; e < state.num_experts; ++e) {
      expert_rows.push_back(expert_begin[e + 1] - expert_begin[e]);
    }
    state.make_cutlass(expert_rows, outputs);
    state.first.set_rows(state.rows.begin, nullptr);
    state.second.set_rows(state.rows.begin, nullptr);
    check(cudaStreamSynchronize(nullptr), "ExpertMlp");
    return;
  }
  const GemmMethod chosen =
      method == GemmMethod::kAuto && state.num_experts == 1 ? GemmMethod::kPerExpert : method;
  state.first = Product(state.product(false, outputs), expert_begin, scratch.blas, chosen);
  state.second = Product(state.product(true, outputs), expert_begin, scratch.blas, chosen);
  state.implementation =
      "cuBLAS BF16, gate and up by " + state.first.text() + ", down by " + state.second.text();
}

void ExpertMlp::prepare_on_device(const std::uint32_t* expert_begin,
                                  std::uint32_t expected_rows_per_expert, const Bf16* inputs,
                                  Bf16* outputs) {
  State& state = *state_;
  const GemmMethod method = state.options.method;
  if ((method != GemmMethod::kAuto && method != GemmMethod::kCutlass) ||
      !grouped_gemm_available()) {
    throw std::invalid_argument(
        "ExpertMlp: slots counted on the device need the method kCutlass, CUTLASS in the build and "
        "a GPU of compute capability 9.0");
  }
  if (state.num_experts == 0) throw std::invalid_argument("ExpertMlp: no experts to run");
  state.inputs = inputs;
  state.rows = {expert_begin, state.num_experts, state.scratch->state_->max_rows};
  state.rows_change = true;
  const std::uint32_t expert_rows[] = {expected_rows_per_expert};
  state.make_cutlass(expert_rows, outputs);
}

void ExpertMlp::run(cudaStream_t stream) {
  State& state = *state_;
  const MlpScratch::State& scratch = *state.scratch->state_;
  if (state.rows.max_rows == 0) return;
  if (state.rows_change) {
    state.first.set_rows(state.rows.begin, stream);
    state.second.set_rows(state.rows.begin, stream);
  }
  if (state.fp8()) {
    quantise_rows(state.inputs, scratch.inputs.values.data(), scratch.inputs.scales.data(),
                  state.shape.hidden, state.rows, stream);
  }
  state.first.run(scratch.blas, stream);
  if (state.fp8()) {
    activate_fp8(scratch.gate_up.data(), scratch.activated_fp8.values.data(),
                 scratch.activated_fp8.scales.data(), state.shape.intermediate, state.rows, stream);
  } else {
    activate(scratch.gate_up.data(), scratch.activated.data(), state.shape.intermediate, state.rows,
             stream);
  }
  state.second.run(scratch.blas, stream);
}

std::string ExpertMlp::implementation() const {
  return state_->implementation;
}

}  // namespace coterie::kernels
