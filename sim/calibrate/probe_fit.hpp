#pragma once
// What the GPUs of a machine cost by themselves, from a whole probe (curves.json of
// `coterie-runtime probe`, schema version 2; runtime/README.md documents it): the kernels that move
// rows, the expert MLP, the exchange of counts. Links are fitted from its all-to-alls
// (alltoall_fit.hpp).

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "topologies/cluster.hpp"

namespace coterie {

// One measured kernel phase. `bytes` and `rows` as RowKernels counts them.
struct KernelPoint {
  double bytes = 0.0;
  double rows = 0.0;
  double time_s = 0.0;
  double copies_per_row = 0.0;
  double items = 0.0;      // zero: not known
  double quantised = 0.0;  // bytes of tokens, as KernelCosts counts them
};

// One measured MLP: rows per expert.
struct GroupedMlpPoint {
  double hidden = 0.0, intermediate = 0.0;
  std::vector<std::uint64_t> expert_rows;
  double time_s = 0.0;
};

// The parts of a probe that describe the GPUs. Where ranks share one, times of kernels are those of the
// fastest sample, in which they ran side by side; all others are medians.
struct GpuProbe {
  std::string machine;  // as the probe was told; empty where it does not say
  std::string device;
  std::uint32_t num_ranks = 0;
  std::uint32_t ranks_per_gpu = 1;
  // By phase, BF16 and FP8 together. `sum` is measured without and with shared experts.
  // `forward` is its index, as it finds rows that other GPUs have written, and its rows: a relay's
  // caches hold nothing of them. `own_copy` are copies alone, of the part `overlap`.
  std::vector<KernelPoint> pack, forward, expand, merge, gather, sum, own_copy;
  // The indices alone; empty where the probe did not measure the transport `direct`, which they precede.
  std::vector<KernelPoint> send_index, forward_index;
  // Expansions of what a put has brought, of the part `direct`.
  std::vector<KernelPoint> expand_put;
  // What each further one of several rounds takes, of the phase pack and of its index alone.
  std::vector<double> pack_again_s, send_index_again_s;
  // What launches take longer beside waiting streams, of each kernel, routed MLP and shared one; and the
  // time between an event of another stream and the next of one that waits for it. Empty where the probe
  // did not measure them.
  std::vector<double> kernel_among_s, mlp_among_s, mlp_fp8_among_s, shared_among_s, join_s;
  std::vector<GroupedMlpPoint> mlp, mlp_fp8;  // mlp_fp8 is empty where FP8 was not measured
  std::vector<GroupedMlpPoint> shared_mlp;    // one expert each
  double notify_s = 0.0;
  double gap_s = 0.0;  // median of the entries of kind `events`
};
// Throws InputError, with the entry, for files that are no probe of schema version 2, lack one of
// the parts notify, kernels and expert_mlp, or hold times or sizes that are not above zero.
GpuProbe read_gpu_probe(const std::filesystem::path& path);
GpuProbe parse_gpu_probe(const std::string& text, const std::string& name);

// How ranks exchange when not all send alike, from the patterns of a probe's `curves`: rates between
// its two largest sizes, where starts cancel out. What a rank reaches in one direction alone
// (`all_to_one`, `one_to_all`), and two ranks over their connection, in one (`sendrecv`) and in both
// (`shift`) directions. Absent where the patterns were not measured; bytes per second. `pair_times`:
// seconds of `shift` by bytes of a pair, as long as they are more than half as long again as at
// pair_both_ways; empty for two ranks, whose pair is the whole of a uniform exchange. `beside_kernels`:
// how many times as long an all-to-all takes beside copies that outlast it (list `overlap`), the median
// over their sizes.
struct PatternRates {
  std::optional<double> rank_one_way, pair_one_way, pair_both_ways;
  std::map<double, double> pair_times{};
  std::optional<double> beside_kernels{};
};
PatternRates read_pattern_rates(const std::filesystem::path& path);
PatternRates parse_pattern_rates(const std::string& text, const std::string& name);
// The cluster's transport `nccl` inside a node with these rates, where it has a rank_bandwidth r from
// uniform exchanges: they load both directions, so r is half of what the two reach together.
// Connections that reach as much as their ranks get no rates of their own. Links carry at least what a
// rank reaches in one direction, which those of a skeleton, widened to uniform exchanges, do not. And a
// single message moves no faster than pair_times say beyond the launch (segments, half an octave each):
// a rank that sends to one other has fewer channels to fill than one that sends to all. A tier with a
// rank_bandwidth also gets beside_kernels, where it is above 1.
void set_pattern_rates(const PatternRates& rates, Cluster& cluster);

// Seconds of a kernel by the formula of KernelCosts.
double kernel_time_s(const KernelCosts& costs, const KernelPoint& point);

template <class Costs>
struct CostsFit {
  Costs costs;
  std::vector<std::string> undetermined;
  // Signed relative errors of points that a fit did not see: every fourth was left out in turn.
  std::vector<double> held_out;
};
// At least eight points. `memory_rate`: what the memory reaches, bytes per second. Throws
// InputError for fewer. Deterministic, like all fits here.
CostsFit<KernelCosts> fit_row_kernel(const std::vector<KernelPoint>& points, double memory_rate);
// At least eight points. `peak`: FLOP/s. Weights count as BF16: of FP8 ones the fitted bandwidth is
// twice what the memory moves.
struct MlpFitOptions {
  double peak = 0.0;
  double memory_rate = 0.0;
  // Heights of the tiles that the kernel chooses from, ascending: each gets a rate, and all together a
  // depth. Empty: a single dense product, whose library pads nothing that shows.
  std::vector<std::uint32_t> tile_rows{};
};
CostsFit<MlpCosts> fit_grouped_mlp(const std::vector<GroupedMlpPoint>& points,
                                   const MlpFitOptions& options);

// The cluster with kernels, expert MLPs and notify of the probe. What the fits of its parts left
// open and how far they were off is in `parts`.
struct GpuFit {
  Cluster cluster;
  struct Part {
    std::string name;  // "kernels.pack", "mlp"
    std::size_t num_points = 0;
    std::vector<std::string> undetermined;
    std::vector<double> held_out;
    std::vector<double> measured_s;  // [num_points]
  };
  std::vector<Part> parts;
};
// On a cluster whose ranks share GPUs (ranks_per_gpu) the probe's ranks did too, all at once: rates become
// those of the whole GPU, launches stay those of a rank among its neighbours. Throws InputError
// where the two share GPUs differently.
GpuFit fit_gpu(const Cluster& cluster, const GpuProbe& probe);
// The scales of kernels and of MLPs, from the fit's left-out points.
void set_gpu_uncertainty(const GpuFit& fit, Cluster& cluster);

}  // namespace coterie
