#pragma once
// The CUTLASS kernels behind grouped_gemm.hpp. Included only by kernels/sm90/*.cu, which are
// compiled for sm_90a and only where CUTLASS was found. One file per tile: each takes a minute to
// compile.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cute/tensor.hpp>
#include <cutlass/detail/blockwise_scale_layout.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <type_traits>

#include "kernels/grouped_gemm.hpp"

namespace coterie::kernels::sm90 {

using Coop = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative;
using Pingpong = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong;
using CoopFp8 = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise;
using PingpongFp8 = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpongFP8Blockwise;

inline void check_cutlass(cutlass::Status status, const char* what) {
  if (status == cutlass::Status::kSuccess) return;
  throw CudaError(std::string(what) + ": CUTLASS: " + cutlassGetStatusString(status));
}

// Fills what depends on the rows. One thread per group, any grid.
void write_group_tables(const GroupedProduct& product, GemmType type, const GroupTables& tables,
                        const std::uint32_t* begin, cudaStream_t stream);

template <GemmType kType, class TileShape, class ClusterShape, class KernelSchedule>
struct GemmTypes {
  static constexpr bool kFp8 = kType == GemmType::kFp8;
  using Element = std::conditional_t<kFp8, cutlass::float_e4m3_t, cutlass::bfloat16_t>;
  using Output = cutlass::bfloat16_t;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;  // w^T: [k][n] with k fastest
  using ScaleConfig =
      cutlass::detail::Sm90BlockwiseScaleConfig<1, kGemmScaleBlock, kGemmScaleBlock>;
  using LayoutX =
      std::conditional_t<kFp8, cute::tuple<RowMajor*, decltype(ScaleConfig::deduce_layoutSFA())*>,
                         RowMajor*>;
  using LayoutW = std::conditional_t<
      kFp8, cute::tuple<ColumnMajor*, decltype(ScaleConfig::deduce_layoutSFB())*>, ColumnMajor*>;
  static constexpr int kAlignment = 16 / sizeof(Element);
  static constexpr int kOutputAlignment = 16 / sizeof(Output);
  static constexpr bool kCooperative =
      std::is_base_of_v<cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative, KernelSchedule>;
  using EpilogueSchedule =
      std::conditional_t<kCooperative, cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
                         cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor*,
      kOutputAlignment, Output, RowMajor*, kOutputAlignment, EpilogueSchedule,
      cutlass::epilogue::fusion::LinearCombination<Output, float, void>>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutX, kAlignment, Element,
      LayoutW, kAlignment, float, TileShape, ClusterShape,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      KernelSchedule>::CollectiveOp;
  using Problem = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Problem, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
};

template <GemmType kType, class TileShape, class ClusterShape, class KernelSchedule>
class Sm90GroupedGemm final : public GroupedGemm {
  using Types = GemmTypes<kType, TileShape, ClusterShape, KernelSchedule>;
  using Gemm = typename Types::Gemm;
  using Shape = typename Types::Problem::UnderlyingProblemShape;
  // The tables are written by plain code: one 64-bit stride per group, three ints per problem.
  static_assert(sizeof(typename Gemm::GemmKernel::InternalStrideA) == sizeof(std::int64_t));
  static_assert(sizeof(typename Gemm::GemmKernel::InternalStrideB) == sizeof(std::int64_t));
  static_assert(sizeof(typename Gemm::GemmKernel::InternalStrideD) == sizeof(std::int64_t));
  static_assert(sizeof(Shape) == 3 * sizeof(std::int32_t));

 public:
  explicit Sm90GroupedGemm(const GroupedProduct& product)
      : product_(product),
        problems_(std::size_t{3} * product.num_groups),
        pointers_(std::size_t{5} * product.num_groups),
        strides_(std::span<const std::int64_t>(host_strides(product))) {
    const std::size_t groups = product.num_groups;
    tables_.problems = problems_.data();
    tables_.x = pointers_.data();
    tables_.w = pointers_.data() + groups;
    tables_.y = const_cast<void**>(pointers_.data() + 2 * groups);
    tables_.x_scales = reinterpret_cast<const float**>(pointers_.data() + 3 * groups);
    tables_.w_scales = reinterpret_cast<const float**>(pointers_.data() + 4 * groups);

    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGrouped,
        {static_cast<int>(groups), reinterpret_cast<Shape*>(tables_.problems), nullptr},
        mainloop_arguments(),
        {{},
         nullptr,
         nullptr,
         reinterpret_cast<typename Types::Output**>(tables_.y),
         reinterpret_cast<typename Gemm::GemmKernel::InternalStrideD*>(strides_.data() +
                                                                       2 * groups)},
        cutlass::KernelHardwareInfo::make_kernel_hardware_info<typename Gemm::GemmKernel>(device)};
    arguments.epilogue.thread.alpha = 1.0F;
    arguments.epilogue.thread.beta = 0.0F;
    check_cutlass(gemm_.can_implement(arguments), "grouped product");
    workspace_ = DeviceBuffer<std::byte>(Gemm::get_workspace_size(arguments));
    check_cutlass(gemm_.initialize(arguments, workspace_.data()), "grouped product");
    check(cudaDeviceSynchronize(), "grouped product");
  }

  void set_rows(const std::uint32_t* begin, cudaStream_t stream) override {
    write_group_tables(product_, kType, tables_, begin, stream);
  }
  void run(cudaStream_t stream) override { check_cutlass(gemm_.run(stream), "grouped product"); }

 private:
  static std::vector<std::int64_t> host_strides(const GroupedProduct& product) {
    std::vector<std::int64_t> strides(2 * std::size_t{product.num_groups}, product.k);
    strides.insert(strides.end(), product.num_groups, product.n);
    return strides;
  }

  auto mainloop_arguments() const {
    using Element = typename Types::Element;
    const std::size_t groups = product_.num_groups;
    const auto x = reinterpret_cast<const Element**>(tables_.x);
    const auto w = reinterpret_cast<const Element**>(tables_.w);
    const auto stride_x =
        reinterpret_cast<typename Gemm::GemmKernel::InternalStrideA*>(strides_.data());
    const auto stride_w =
        reinterpret_cast<typename Gemm::GemmKernel::InternalStrideB*>(strides_.data() + groups);
    // The layouts of the scales follow from the problem in the kernel; nothing reads the pointers.
    if constexpr (Types::kFp8) {
      return typename Types::Mainloop::Arguments{
          x, stride_x, w, stride_w, tables_.x_scales, nullptr, tables_.w_scales, nullptr};
    } else {
      return typename Types::Mainloop::Arguments{x, stride_x, w, stride_w};
    }
  }

  const GroupedProduct product_;
  DeviceBuffer<std::int32_t> problems_;
  DeviceBuffer<const void*> pointers_;
  DeviceBuffer<std::int64_t> strides_;  // of x, w and y, [num_groups] each
  GroupTables tables_;
  DeviceBuffer<std::byte> workspace_;
  Gemm gemm_;
};

}  // namespace coterie::kernels::sm90
