#pragma once
// The parameters of the transport `direct` from a probe's list of the same name (runtime/README.md has
// its keys): puts and pulls over many sizes, patterns and scopes, on ranks that have a GPU each or
// share one.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "sim/calibrate/probe_fit.hpp"
#include "sim/transports/direct.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

// One measured put or pull of all ranks.
struct DirectPoint {
  std::string scope, policy, pattern;  // as the probe names them
  double sms = 0.0;
  DirectStepLoad load;
  double time_s = 0.0;
};

struct DirectProbe {
  std::uint32_t num_ranks = 0, ranks_per_gpu = 1;
  std::vector<DirectPoint> puts, pulls;
  std::vector<DirectPoint> forwards, gathers;  // of the second hop; may be empty
  double synchronise_s = 0.0;
  // A combine's announcement: what it takes longer than its pull alone, median over the cases.
  double announce_s = 0.0;
};
// Nothing where the file has no list `direct` (older probes, machines that cannot run the transport).
// Throws InputError, with the entry, for lists without one of put, pull, combine and synchronise, for
// matrices that do not fit the ranks, and for sizes and times that are not above zero.
std::optional<DirectProbe> read_direct_probe(const std::filesystem::path& path);
std::optional<DirectProbe> parse_direct_probe(const std::string& text, const std::string& name);

// The parameters, for kernels of 16 multiprocessors, and how far off the two fits were ("direct.put",
// "direct.pull", and with one rank on each GPU and eight points "direct.forward" and "direct.gather", over the ports
// of the first two, which otherwise hold both hops). Throws InputError for fewer than eight points of these, and where cluster and probe share GPUs
// differently. Deterministic.
struct DirectFit {
  DirectParameters parameters;
  std::vector<GpuFit::Part> parts;
};
DirectFit fit_direct(const Cluster& cluster, const DirectProbe& probe);
// The scales of transfers on both tiers, from the points that the fit left out.
void set_direct_uncertainty(const DirectFit& fit, Cluster& cluster);

}  // namespace coterie
