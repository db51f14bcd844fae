#include <cublas_v2.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "kernels/expert_mlp.hpp"

namespace coterie::kernels {
namespace {

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(std::string(what) + ": " + cublasGetStatusName(status) + ": " +
                  cublasGetStatusString(status));
}

// --- weights ------------------------------------------------------------------------------------

// SplitMix64's finaliser, as in core/random.hpp (kernels/ uses nothing but CUDA).
__host__ __device__ constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
__host__ __device__ constexpr std::uint64_t weight_stream(std::uint64_t seed, std::uint32_t layer,
                                                          std::uint32_t expert,
                                                          std::uint32_t matrix) {
  return mix(mix(seed) ^ (std::uint64_t{layer} << 32 | expert)) ^ mix(matrix);
}
__host__ __device__ inline float uniform_weight(std::uint64_t stream, std::uint64_t element,
                                                float limit) {
  const std::uint64_t bits = mix(stream + element) >> 40;  // 24 bits: exact as float
  return (static_cast<float>(bits) * 0x1p-23F - 1.0F) * limit;
}
float weight_limit(const MlpShape& shape, std::uint32_t matrix) {
  const std::uint32_t length = matrix == 2 ? shape.intermediate : shape.hidden;
  return std::sqrt(3.0F / static_cast<float>(length));
}

// weights[e] = uniform_weight(stream, e). Any grid; one thread per element and stride.
__global__ void draw_weights(Bf16* weights, std::uint64_t count, std::uint64_t stream,
                             float limit) {
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    weights[i] = __float2bfloat16_rn(uniform_weight(stream, i, limit));
  }
}

// --- activation ---------------------------------------------------------------------------------

__device__ inline float2 unpack(std::uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U));
}
__device__ inline std::uint32_t gated(std::uint32_t gate, std::uint32_t up) {
  const float2 g = unpack(gate);
  const float2 u = unpack(up);
  const float x = g.x / (1.0F + __expf(-g.x)) * u.x;
  const float y = g.y / (1.0F + __expf(-g.y)) * u.y;
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

// activated[r][i] = silu(gate_up[r][i]) * gate_up[r][intermediate + i], silu(x) = x / (1 + e^-x).
// 16-byte vectors, any grid; bound by memory; synchronises nothing. intermediate % 8 == 0.
__global__ void activate(const uint4* gate_up, uint4* activated, std::uint64_t num_rows,
                         std::uint32_t vectors_per_row) {
  const std::uint64_t count = num_rows * vectors_per_row;
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const std::uint64_t row = i / vectors_per_row;
    const std::uint64_t gate_idx = i + row * vectors_per_row;  // rows are twice as long there
    const uint4 gate = __ldcs(gate_up + gate_idx);
    const uint4 up = __ldcs(gate_up + gate_idx + vectors_per_row);
    activated[i] = make_uint4(gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z),
                              gated(gate.w, up.w));
  }
}

constexpr unsigned kThreads = 256;
unsigned grid_for(std::uint64_t count) {
  const std::uint64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 8192 ? blocks : 8192);
}

// One product Y = X W^T for every expert that has rows. Row-major [rows][n] = [rows][k] x [n][k]^T
// is, in cuBLAS's column-major terms, an (n x rows) = op(W) (n x k) x (k x rows).
struct Product {
  int n = 0;
  int k = 0;
  std::vector<int> num_rows;   // [groups]
  std::vector<const void*> w;  // [groups]
  std::vector<const void*> x;
  std::vector<void*> y;
  DeviceBuffer<const void*> device_w;
  DeviceBuffer<const void*> device_x;
  DeviceBuffer<void*> device_y;

  // cuBLAS wants every parameter once per group, in host memory.
  std::vector<cublasOperation_t> transpose;
  std::vector<cublasOperation_t> keep;
  std::vector<int> ns;
  std::vector<int> ks;
  std::vector<int> group_sizes;
  std::vector<float> ones;
  std::vector<float> zeros;

  void finish() {
    const std::size_t groups = num_rows.size();
    transpose.assign(groups, CUBLAS_OP_T);
    keep.assign(groups, CUBLAS_OP_N);
    ns.assign(groups, n);
    ks.assign(groups, k);
    group_sizes.assign(groups, 1);
    ones.assign(groups, 1.0F);
    zeros.assign(groups, 0.0F);
    device_w = DeviceBuffer<const void*>(std::span<const void* const>(w));
    device_x = DeviceBuffer<const void*>(std::span<const void* const>(x));
    device_y = DeviceBuffer<void*>(std::span<void* const>(y));
  }

  void run(cublasHandle_t blas, GemmMethod method) const {
    const auto groups = static_cast<int>(num_rows.size());
    if (groups == 0) return;
    const float one = 1.0F;
    const float zero = 0.0F;
    if (method == GemmMethod::kPerExpert) {
      for (std::size_t g = 0; g < num_rows.size(); ++g) {
        check_blas(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, n, num_rows[g], k, &one, w[g],
                                CUDA_R_16BF, k, x[g], CUDA_R_16BF, k, &zero, y[g], CUDA_R_16BF, n,
                                CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                   "cublasGemmEx");
      }
      return;
    }
    check_blas(cublasGemmGroupedBatchedEx(
                   blas, transpose.data(), keep.data(), ns.data(), num_rows.data(), ks.data(),
                   ones.data(), device_w.data(), CUDA_R_16BF, ks.data(), device_x.data(),
                   CUDA_R_16BF, ks.data(), zeros.data(), device_y.data(), CUDA_R_16BF, ns.data(),
                   groups, group_sizes.data(), CUBLAS_COMPUTE_32F),
               "cublasGemmGroupedBatchedEx");
  }
};

}  // namespace

float expert_weight(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                    std::uint32_t expert, std::uint32_t matrix, std::uint64_t element) {
  const float drawn = uniform_weight(weight_stream(seed, layer, expert, matrix), element,
                                     weight_limit(shape, matrix));
  return __bfloat162float(__float2bfloat16_rn(drawn));
}

struct MlpScratch::State {
  std::uint32_t intermediate = 0;
  std::uint32_t max_rows = 0;
  DeviceBuffer<Bf16> gate_up;    // [max_rows][2 * intermediate]
  DeviceBuffer<Bf16> activated;  // [max_rows][intermediate]
  cublasHandle_t blas = nullptr;
  State() { check_blas(cublasCreate(&blas), "cublasCreate"); }
  ~State() { cublasDestroy(blas); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

MlpScratch::MlpScratch(std::uint32_t intermediate, std::uint32_t max_rows)
    : state_(std::make_unique<State>()) {
  state_->intermediate = intermediate;
  state_->max_rows = max_rows;
  state_->gate_up = DeviceBuffer<Bf16>(std::size_t{2} * intermediate * max_rows);
  state_->activated = DeviceBuffer<Bf16>(std::size_t{intermediate} * max_rows);
}
MlpScratch::~MlpScratch() = default;

struct ExpertMlp::State {
  MlpShape shape{};
  GemmMethod method = GemmMethod::kGrouped;
  std::size_t num_experts = 0;
  DeviceBuffer<Bf16> gate_up;  // [experts][2 * intermediate][hidden], gate before up
  DeviceBuffer<Bf16> down;     // [experts][hidden][intermediate]
  std::shared_ptr<MlpScratch> scratch;
  std::uint32_t num_rows = 0;
  Product first;
  Product second;
};

ExpertMlp::ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                     std::span<const std::uint32_t> experts, std::shared_ptr<MlpScratch> scratch,
                     GemmMethod method)
    : state_(std::make_unique<State>()) {
  if (shape.hidden == 0 || shape.hidden % 8 != 0 || shape.intermediate == 0 ||
      shape.intermediate % 8 != 0) {
    throw std::invalid_argument("ExpertMlp: hidden and intermediate must be multiples of 8");
  }
  if (scratch == nullptr || scratch->state_->intermediate != shape.intermediate) {
    throw std::invalid_argument("ExpertMlp: the scratch is for another intermediate size");
  }
  state_->shape = shape;
  state_->method = method;
  state_->num_experts = experts.size();
  state_->scratch = std::move(scratch);
  const std::size_t matrix_size = std::size_t{shape.hidden} * shape.intermediate;
  state_->gate_up = DeviceBuffer<Bf16>(experts.size() * 2 * matrix_size);
  state_->down = DeviceBuffer<Bf16>(experts.size() * matrix_size);
  for (std::size_t e = 0; e < experts.size(); ++e) {
    for (std::uint32_t matrix = 0; matrix < 3; ++matrix) {
      Bf16* weights = matrix == 2 ? state_->down.data() + e * matrix_size
                                  : state_->gate_up.data() + (2 * e + matrix) * matrix_size;
      draw_weights<<<grid_for(matrix_size), kThreads>>>(
          weights, matrix_size, weight_stream(seed, layer, experts[e], matrix),
          weight_limit(shape, matrix));
      check_launch("draw_weights");
    }
  }
  check(cudaDeviceSynchronize(), "draw_weights");
}

ExpertMlp::ExpertMlp(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                     std::span<const std::uint32_t> experts, std::uint32_t max_rows,
                     GemmMethod method)
    : ExpertMlp(shape, seed, layer, experts,
                std::make_shared<MlpScratch>(shape.intermediate, max_rows), method) {}
ExpertMlp::~ExpertMlp() = default;
ExpertMlp::ExpertMlp(ExpertMlp&&) noexcept = default;
ExpertMlp& ExpertMlp::operator=(ExpertMlp&&) noexcept = default;

void ExpertMlp::prepare(std::span<const std::uint32_t> expert_begin, const Bf16* inputs,
                        Bf16* outputs) {
  State& state = *state_;
  MlpScratch::State& scratch = *state.scratch->state_;
  if (expert_begin.size() != state.num_experts + 1 || expert_begin.front() != 0) {
    throw std::invalid_argument("ExpertMlp: expert_begin must have experts + 1 entries from 0 on");
  }
  if (expert_begin.back() > scratch.max_rows) {
    throw std::invalid_argument("ExpertMlp: more slots than the scratch is made for");
  }
  const std::size_t hidden = state.shape.hidden;
  const std::size_t intermediate = state.shape.intermediate;
  state.num_rows = expert_begin.back();
  state.first = Product{};
  state.second = Product{};
  state.first.n = static_cast<int>(2 * intermediate);
  state.first.k = static_cast<int>(hidden);
  state.second.n = static_cast<int>(hidden);
  state.second.k = static_cast<int>(intermediate);
  for (std::size_t e = 0; e < state.num_experts; ++e) {
    if (expert_begin[e + 1] < expert_begin[e]) {
      throw std::invalid_argument("ExpertMlp: expert_begin must not descend");
    }
    const std::size_t begin = expert_begin[e];
    const std::uint32_t count = expert_begin[e + 1] - expert_begin[e];
    if (count == 0) continue;
    Bf16* inner = scratch.activated.data() + begin * intermediate;
    state.first.num_rows.push_back(static_cast<int>(count));
    state.first.w.push_back(state.gate_up.data() + e * 2 * hidden * intermediate);
    state.first.x.push_back(inputs + begin * hidden);
    state.first.y.push_back(scratch.gate_up.data() + begin * 2 * intermediate);
    state.second.num_rows.push_back(static_cast<int>(count));
    state.second.w.push_back(state.down.data() + e * hidden * intermediate);
    state.second.x.push_back(inner);
    state.second.y.push_back(outputs + begin * hidden);
  }
  state.first.finish();
  state.second.finish();
}

void ExpertMlp::run(cudaStream_t stream) {
  const State& state = *state_;
  const MlpScratch::State& scratch = *state.scratch->state_;
  if (state.num_rows == 0) return;
  check_blas(cublasSetStream(scratch.blas, stream), "cublasSetStream");
  state.first.run(scratch.blas, state.method);
  const std::uint32_t vectors = state.shape.intermediate / 8;
  activate<<<grid_for(std::uint64_t{state.num_rows} * vectors), kThreads, 0, stream>>>(
      reinterpret_cast<const uint4*>(scratch.gate_up.data()),
      reinterpret_cast<uint4*>(scratch.activated.data()), state.num_rows, vectors);
  check_launch("activate");
  state.second.run(scratch.blas, state.method);
}

}  // namespace coterie::kernels
