#pragma once
// From an experiment to runs that can be planned: the parts of its trace, the placement of every
// run, the routing that it evaluates.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/memo.hpp"
#include "workloads/experiment.hpp"

namespace coterie {

// What the runs of an experiment have in common, cut out of the trace once and shared by them.
struct TraceParts {
  std::shared_ptr<const Routing> train;  // what placements are learnt on
  std::shared_ptr<const Routing> eval;   // what the runs dispatch
  // Whose tokens are whose, [num_groups]. Groups start at different sequences, so that they are not
  // copies of each other. Of a step: [StepSpec::num_routings()], by micro-batch.
  std::shared_ptr<const std::vector<RankTokens>> tokens;
  std::string digest;  // of the whole trace, see trace_digest
  // Names the content of all of these, for memos (core/memo.hpp); empty without one.
  std::string key;
};

// Reads the experiment's trace, reduced to its layers. Throws InputError where trace and model do
// not agree on the number of experts or on top-k, where a layer is missing, or where the evaluated
// part holds no tokens. `memo`, where given, keeps traces by file (its place, size and times of
// change) and parts by content.
TraceParts load_trace(const Experiment& experiment, Memo* memo = nullptr);

// The parts of every step of `step.series`, [num_steps]. Throws InputError also where the trace has
// too few sequences for as many windows.
std::vector<TraceParts> load_series(const Experiment& experiment);

// A run made ready: what a predictor or the runtime starts from.
struct PreparedRun {
  RunSpec spec;
  Placement placement;
  std::shared_ptr<const Routing> routing;  // TraceParts::eval, or this run's pruned copy of it
  std::shared_ptr<const std::vector<RankTokens>> group_tokens;  // TraceParts::tokens
  bool exact = true;
  std::optional<double> weight_lost, top1_changed;
  // Names the content of the placement, the routing and the tokens; empty without a memo.
  std::string key;

  [[nodiscard]] const RankTokens& tokens(std::uint32_t group = 0) const {
    return group_tokens->at(group);
  }
};

struct PrepareOptions {
  // Where learnt placements are kept between processes, by the content they were learnt from;
  // absent: nowhere. For programs that prepare the same runs many times.
  std::optional<std::filesystem::path> cache;
  // Keeps learnt placements and pruned routing in memory, by the content they were made from.
  Memo* memo = nullptr;
  // Threads that learn a placement (PlacementRequest::num_jobs), for programs that prepare several
  // runs or points at once, which would otherwise start as many threads for each.
  unsigned num_jobs = 0;
  // What predicts the times of a run's layers, for placements learnt by time on the given part;
  // absent: such a run cannot be carried out.
  std::function<std::shared_ptr<const LayerTimes>(const RunSpec&, const Routing& training)> times =
      nullptr;
};

// Learns (or reads) the placement and prunes the evaluated part where asked for. placement.layers
// are those of the routing, in its order. Throws InputError where the run cannot be carried out: a
// placement file that does not fit, a balance cap that cannot be met.
PreparedRun prepare_run(const Experiment& experiment, const RunSpec& spec, const TraceParts& parts,
                        const PrepareOptions& options = {});

// How the layers of a run are planned. A round carries about `chunk` bytes from one rank to another.
PlanRequest plan_request(const Experiment& experiment, const PreparedRun& run, PlanDetail detail);

}  // namespace coterie
