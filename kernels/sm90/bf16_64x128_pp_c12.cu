#include "kernels/grouped_gemm_sm90.cuh"

namespace coterie::kernels::sm90 {

std::unique_ptr<GroupedGemm> make_bf16_64x128_pp_c12(const GroupedProduct& product) {
  using Tile = cute::Shape<cute::_64, cute::_128, cute::_128>;
  using Cluster = cute::Shape<cute::_1, cute::_2, cute::_1>;
  return std::make_unique<Sm90GroupedGemm<GemmType::kBf16, Tile, Cluster, Pingpong>>(product);
}

}  // namespace coterie::kernels::sm90
