#include "kernels/grouped_gemm_sm90.cuh"

namespace coterie::kernels::sm90 {

std::unique_ptr<GroupedGemm> make_bf16_128x256_c21(const GroupedProduct& product) {
  using Tile = cute::Shape<cute::_128, cute::_256, cute::_64>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  return std::make_unique<Sm90GroupedGemm<GemmType::kBf16, Tile, Cluster, Coop>>(product);
}

}  // namespace coterie::kernels::sm90
