// `deepep_low_latency` and `nvlink_one_sided`: every row is one put into the memory of the rank that it is
// for, without a copy in between; flags tell of its arrival. The low-latency kernels put one row per
// (token, expert), whatever the policy would have de-duplicated, and hold buffers for a given number
// of tokens; the one-sided kernels one per (token, rank), and their combine pulls, which moves the
// same bytes over the same ports.

#include "sim/transports/put_kernels.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <type_traits>

#include "core/error.hpp"
#include "sim/transports/makers.hpp"

namespace coterie {

KernelModel put_kernel_model(const PutKernel& kernel, Direction direction, double sms, bool pulls) {
  return [kernel, direction, sms, pulls](const PhaseVolumes& volumes, const RankVolume& volume) {
    KernelTimes times;
    const bool dispatch = direction == Direction::kDispatch;
    const double rows = (dispatch ? volume.rows_out : volume.rows_in) - volume.rows_own;
    const double per_token = volume.tokens > 0.0 ? rows / volume.tokens : 0.0;
    const double links_s = kernel.token_row.value * per_token;
    times.start_s = kernel.fixed.value + kernel.peer.value * (volumes.num_destinations - 1.0);
    const double tokens_s = volume.tokens * kernel.token.value / sms;
    times.send_s = std::max(volume.rows_out * kernel.row.value, dispatch ? tokens_s : 0.0);
    times.receive_s = std::max(volume.rows_in * kernel.row.value, dispatch ? 0.0 : tokens_s);
    if (pulls && !dispatch) {
      times.receive_s = std::max(times.receive_s, links_s);
    } else {
      times.start_s += links_s;
    }
    times.port_rate = kernel.port_bandwidth.value;
    return times;
  };
}

namespace {

template <class Parameters>
class PutTransport : public KernelTransport {
 public:
  PutTransport(const Cluster& cluster, const Parameters& parameters)
      : KernelTransport(cluster, parameters.sms), parameters_(parameters) {}
  // Flags in the receiver's memory count the rows: nothing is exchanged before.
  [[nodiscard]] std::optional<Seconds> notify() const override { return Seconds{}; }

 protected:
  KernelModel model(Direction direction, const PhaseVolumes& volumes) const override {
    if constexpr (requires { parameters_.max_tokens_per_rank; }) {
      for (const RankVolume& volume : volumes.ranks) {
        if (volume.tokens <= parameters_.max_tokens_per_rank) continue;
        throw InputError(
            "transport deepep_low_latency", fmt::format("{} tokens of a rank", volume.tokens),
            fmt::format("at most {} (max_tokens_per_rank)", parameters_.max_tokens_per_rank));
      }
    }
    const bool dispatch = direction == Direction::kDispatch;
    return put_kernel_model(dispatch ? parameters_.dispatch : parameters_.combine, direction, sms(),
                            std::is_same_v<Parameters, NvlinkOneSidedParameters>);
  }
  // The low-latency kernels know no de-duplication: a row per (token, expert).
  Message adapted(const Message& message) const override {
    Message out = message;
    if constexpr (requires { parameters_.max_tokens_per_rank; }) {
      if (message.num_copies > message.num_rows && message.num_rows > 0) {
        out.bytes *= static_cast<double>(message.num_copies) / message.num_rows;
        out.num_rows = message.num_copies;
      }
    }
    return out;
  }

 private:
  Parameters parameters_;
};

}  // namespace

std::unique_ptr<Transport> make(const Cluster& cluster,
                                const DeepepLowLatencyParameters& parameters) {
  return std::make_unique<PutTransport<DeepepLowLatencyParameters>>(cluster, parameters);
}
std::unique_ptr<Transport> make(const Cluster& cluster,
                                const NvlinkOneSidedParameters& parameters) {
  return std::make_unique<PutTransport<NvlinkOneSidedParameters>>(cluster, parameters);
}

}  // namespace coterie
