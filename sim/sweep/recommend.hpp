#pragma once
// Which parallel sizes, transport, batch, placement and replicas suit a step: candidates of an
// experiment, as the points of two sweeps, and what their rows recommend.
//
// The first sweep varies tp, pp, ep (and what follows from them), the recomputation of training, the
// batch and the transport, with the experiment's runs as they are where they fit (run_choices.hpp).
// What does not divide is no candidate, and what does not fit in memory is counted and left out. Of
// the rest those come first whose computation alone is fastest: a lower bound of their time. The
// second sweep gives the best of the first other placements and numbers of replicas: how these do
// depends on the communication, which that bound does not know.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "sim/sweep/run_choices.hpp"
#include "sim/sweep/spec.hpp"
#include "workloads/experiment.hpp"

namespace coterie {

struct RecommendRequest {
  std::filesystem::path experiment;  // with a `step` block
  std::vector<Override> overrides;
  std::vector<std::uint32_t> gpus;     // to try as `ranks`; empty: those of the experiment
  std::optional<double> tpot_s;        // decode: at most, of a candidate that is recommended
  std::optional<double> ttft_s;        // prefill: likewise
  std::optional<double> price;         // of a GPU hour, in any currency
  std::optional<double> memory_bytes;  // of a GPU, at most; absent: what the GPU has
  RunSearch runs;                      // placements and replicas
  std::size_t max_points = 100;        // simulated candidates, both sweeps together
};

struct SearchSpace {
  std::vector<Settings> candidates;  // overrides of the experiment, the most promising first
  std::size_t num_fitting = 0;       // before max_points
  std::size_t num_too_large = 0;     // in memory, at every recomputation
  std::size_t num_too_slow = 0;      // whose computation alone exceeds a limit
};
// The first sweep. Throws InputError for an experiment without a step, and where nothing is left. It
// has at most max_points candidates, half as many where a second one follows.
SearchSpace search_space(const RecommendRequest& request);

// The candidates as a sweep file. `base` is the experiment's absolute path.
std::string sweep_text(const std::vector<Settings>& candidates, const std::filesystem::path& base);

// Seconds of computation of the step on a GPU, without any communication, with balanced experts:
// a lower bound of its time.
double computation_bound_s(const ModelShape& model, const StepSpec& step, const GpuModel& gpu);

struct Recommendation {
  Settings settings;
  std::string run, placement, policy;
  std::uint32_t num_replicas = 0;
  double time_s = 0.0;
  double tokens_per_s_per_gpu = 0.0;
  std::uint32_t num_gpus = 0;
  std::optional<double> latency_s;  // TPOT or TTFT
  double memory_share = 0.0;        // of what a GPU has; 0: not known
  std::optional<double> cost;       // of a million tokens
  std::string binds;                // "experts 41 %, exposed communication 22 %, ..."
  bool within_limits = true;
  bool on_front = false;  // no other within the limits is better in both axes of the plot
};
// What binds names the three largest parts of the time, the load of the fullest rank where it has more
// than a tenth above the mean, and the memory and the limit of latency that are nearly used up.
// One per run of every successful point: within the limits first, then by tokens per second and
// GPU, ties by position. `entries`: as collect() gives them.
std::vector<Recommendation> rank_candidates(const RecommendRequest& request,
                                            const std::vector<nlohmann::json>& entries,
                                            const SweepSpec& spec);

// The second sweep, of at most `max_points` candidates: for each of `ranked` (of rank_candidates), in
// its order, all other placements and replicas. Candidates is empty where there are none.
SearchSpace placement_space(const RecommendRequest& request,
                            const std::vector<Recommendation>& ranked, std::size_t max_points);

// Of both sweeps together, in the order of rank_candidates.
std::vector<Recommendation> merge_ranked(std::vector<Recommendation> first,
                                         const std::vector<Recommendation>& second, StepKind kind);

// "64 GPUs, ep 64, sequences_per_gpu 128": sizes of one and layers of zero are left out, and so are
// the runs, of which placement_text gives "load_balanced +32", the replicas with it.
std::string settings_text(const Settings& settings);
std::string placement_text(const Recommendation& one);

// Tokens per second and GPU over tokens per second of a user (decode), time to first token
// (prefill), or step time (train), the front joined, its
// candidates named by their position in the list: an SVG document.
std::string pareto_svg(const std::vector<Recommendation>& all, StepKind kind);

}  // namespace coterie
