// An all-to-all beside other work of the GPU. Both begin together, on two streams, the exchange
// enqueued first; each is also measured alone.

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "runtime/device/errors.hpp"
#include "runtime/session/probe/parts.hpp"
#include "runtime/session/probe/rates.hpp"

namespace coterie {

std::vector<ProbePoint> probe_overlap(ProbeTools& tools, std::span<const OverlapCase> cases) {
  std::uint64_t max_bytes = 0;
  std::uint64_t max_copy = 0;
  for (const OverlapCase& entry : cases) {
    max_bytes = std::max(max_bytes, entry.num_bytes);
    if (entry.work == OverlapCase::Work::kCopy) max_copy = std::max(max_copy, entry.size);
  }
  const std::size_t total = max_bytes * (tools.group.num_ranks() - 1);
  kernels::DeviceBuffer<std::byte> send(total);
  const kernels::DeviceBuffer<std::byte> recv(total);
  const kernels::DeviceBuffer<std::byte> from(max_copy);
  const kernels::DeviceBuffer<std::byte> to(max_copy);
  send.fill_bytes(1);

  std::vector<ProbePoint> points;
  for (const OverlapCase& entry : cases) {
    std::vector<Message> sends;
    std::vector<Message> receives;
    for (std::uint32_t peer = 0; peer < tools.group.num_ranks(); ++peer) {
      if (peer == tools.group.rank()) continue;
      const std::size_t at = sends.size() * entry.num_bytes;
      sends.push_back({peer, send.data() + at, entry.num_bytes});
      receives.push_back({peer, recv.data() + at, entry.num_bytes});
    }
    const bool is_product = entry.work == OverlapCase::Work::kProduct;
    std::unique_ptr<SquareProduct> product;
    if (is_product)
      product = std::make_unique<SquareProduct>(static_cast<std::uint32_t>(entry.size));
    const auto exchange = [&](cudaStream_t stream) {
      tools.communicator->exchange(sends, receives, stream);
    };
    const auto other = [&](cudaStream_t stream) {
      if (is_product) {
        product->run(stream);
      } else {
        check_cuda(
            cudaMemcpyAsync(to.data(), from.data(), entry.size, cudaMemcpyDeviceToDevice, stream),
            "cudaMemcpyAsync");
      }
    };
    const std::string name = is_product ? "product" : "copy";
    const auto measure = [&](const std::vector<TimedWork>& works) {
      auto samples =
          tools.sampler.measure(fmt::format("an exchange of {} B and a {}", entry.num_bytes, name),
                                works, {4, std::min(tools.num_samples, 10U), 0.1, 1});
      for (std::size_t w = 0; w < works.size(); ++w) {
        points.push_back({{{"kind", works[w].kind},
                           {"transport", "nccl"},
                           {"bytes_per_pair", entry.num_bytes},
                           {"work", name},
                           {is_product ? "product_size" : "copy_bytes", entry.size}},
                          nlohmann::json::object(),
                          std::move(samples[w].slowest_us)});
      }
    };
    measure({{"exchange_alone", exchange, false}});
    measure({{"work_alone", other, false}});
    measure({{"exchange_beside_work", exchange, false}, {"work_beside_exchange", other, true}});
  }
  return points;
}

}  // namespace coterie
