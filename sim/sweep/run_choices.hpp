#pragma once
// Placements and replicas of a search (recommend.hpp): which ones are tried for a number of ranks,
// and how a run that has them is written into a sweep.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "workloads/experiment.hpp"

namespace coterie {

struct RunSearch {
  std::vector<std::string> placements;  // strategies or files; empty: default_placements
  std::vector<std::uint32_t> replicas;  // counts; empty: default_replicas

  [[nodiscard]] bool is_default() const { return placements.empty() && replicas.empty(); }
};

// Where nothing else is asked for: the placements of the experiment's runs, and, unless routing is
// balanced by force, so that all placements are alike, the strategies contiguous, load_balanced and
// collaboration_two_level, in this order behind those.
std::vector<std::string> default_placements(const Experiment& experiment);

// Where nothing else is asked for, those of the following that divide: the run's own replicas, the
// fewest with which experts and replicas divide over `num_ranks`, and, unless routing is balanced,
// one more per rank.
std::vector<std::uint32_t> default_replicas(const Experiment& experiment, std::uint32_t own,
                                            std::uint32_t num_ranks);

// The runs of the experiment as they are on `num_ranks` ranks, with the first of the searched
// placements and replicas that fit where their own are not among the searched. Runs that cannot be
// there (a placement without replicas whose experts do not divide, a file of other ranks) are left
// out, and so is the second of two that are the same but for the name.
std::vector<RunSpec> runs_on(const Experiment& experiment, const RunSearch& search,
                             std::uint32_t num_ranks);

// `run` with every other searched placement and number of replicas that fits on `num_ranks` ranks:
// the placement varies slowest. Does not hold `run` itself.
std::vector<RunSpec> variants_of(const Experiment& experiment, const RunSearch& search,
                                 const RunSpec& run, std::uint32_t num_ranks);

// Runs as the value of an experiment's key `runs`, on one line of YAML.
std::string runs_text(std::span<const RunSpec> runs);

// Throws InputError for a placement that is neither a strategy nor a file, and makes paths of files
// absolute.
void check(RunSearch& search);

}  // namespace coterie
