// `deepep_normal`: DeepEP's normal kernels. Half of their multiprocessors send and half receive, in
// channels of two; every row is copied by a warp into a buffer of its destination and from there to
// where it belongs, those to the own rank included, and combine reads every row that comes back.
// CopyKernel in topologies/transports.hpp has the formulas; kernel_phase.hpp says how sender,
// receiver and ports share the rows.
//
// Between nodes the kernels work in two hops (the hierarchical policy): what travels along the rails
// and what is passed on inside a node are two phases of one kernel, each with its sender and
// receiver.

#include "sim/transports/deepep_normal.hpp"

#include <algorithm>
#include <cmath>

#include "sim/transports/makers.hpp"

namespace coterie {

namespace {

// Rows that the warps of a pair send at a time, by the library's own choice for so many ranks
// (Buffer.get_dispatch_config and get_combine_config).
double chunk_rows(Direction direction, std::uint32_t num_ranks) {
  if (direction == Direction::kDispatch) return num_ranks <= 2 ? 24.0 : 6.0;
  return num_ranks <= 2 ? 10.0 : num_ranks <= 4 ? 9.0 : 4.0;
}

}  // namespace

KernelModel copy_kernel_model(const CopyKernel& kernel, Direction direction, double sms) {
  return [kernel, direction, channels = sms / 2.0](const PhaseVolumes& volumes,
                                                   const RankVolume& volume) {
    KernelTimes times;
    times.least_s = kernel.least.value;
    const bool dispatch = direction == Direction::kDispatch;
    const double bytes = volumes.row_bytes;
    const double row_s =
        std::max(kernel.row_floor.value, kernel.row.value + bytes / kernel.bandwidth.value);
    const double tokens = volume.tokens / channels;
    // Rows that a token is sent as, or comes back as.
    const double rows = dispatch ? volume.rows_out : volume.rows_in;
    const double per_token = volume.tokens > 0.0 ? rows / volume.tokens : 0.0;
    times.start_s =
        kernel.fixed.value + kernel.fill.value * (1.0 - std::exp(-tokens / kernel.fill_tokens));
    if (kernel.first_row) times.start_s += bytes / kernel.first_row->value;
    if (kernel.first_rows) times.start_s += per_token * bytes / kernel.first_rows->value;
    // Every sender looks at the tokens once; a second hop scans nothing anew.
    const double scan_s = volumes.reuses_kernel ? 0.0 : tokens * kernel.token.value;
    times.send_s = scan_s + volume.rows_out / channels * row_s;
    times.receive_s = kernel.receive_share * volume.rows_in / channels * row_s;
    if (!dispatch && kernel.token_bandwidth) {
      times.receive_s += tokens * bytes / kernel.token_bandwidth->value;
    }
    // The warps of a pair look at all tokens too, and have their part of the multiprocessor.
    const auto pair_rate = [&](double largest, double pair_row_s) {
      if (largest <= 0.0 || bytes <= 0.0) return 0.0;
      const double pair_s = scan_s + largest / bytes / channels * pair_row_s;
      return pair_s > 0.0 ? largest / pair_s : 0.0;
    };
    const double far_s = row_s * volumes.num_destinations / kernel.pair_gain;
    // Behind every chunk of rows they wait until it has arrived: within a GPU, without the links'
    // way there and back.
    const double chunk_s = 2.0 * volumes.link_s / chunk_rows(direction, volumes.num_destinations);
    times.pair_rate = pair_rate(volume.largest_out, far_s);
    times.near_pair_rate =
        pair_rate(volume.largest_near, std::max(std::min(row_s, far_s), far_s - chunk_s));
    if (kernel.port_bandwidth) times.port_rate = kernel.port_bandwidth->value;
    return times;
  };
}

namespace {

class DeepepNormal : public KernelTransport {
 public:
  DeepepNormal(const Cluster& cluster, const DeepepNormalParameters& parameters)
      : KernelTransport(cluster, parameters.sms), parameters_(parameters) {}
  [[nodiscard]] std::optional<Seconds> notify() const override { return parameters_.notify; }

 protected:
  KernelModel model(Direction direction, const PhaseVolumes& volumes) const override {
    const bool dispatch = direction == Direction::kDispatch;
    const auto& between = dispatch ? parameters_.dispatch_between : parameters_.combine_between;
    const CopyKernel& inside = dispatch ? parameters_.dispatch : parameters_.combine;
    return copy_kernel_model(volumes.crosses_nodes && between ? *between : inside, direction,
                             sms());
  }

 private:
  DeepepNormalParameters parameters_;
};

}  // namespace

std::unique_ptr<Transport> make(const Cluster& cluster, const DeepepNormalParameters& parameters) {
  return std::make_unique<DeepepNormal>(cluster, parameters);
}

}  // namespace coterie
