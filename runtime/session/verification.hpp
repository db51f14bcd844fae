#pragma once
// Whether a run computes what it should: its outputs against the CPU reference and against standard
// + contiguous, and what the devices built against the plan.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/control/group.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/session/planning.hpp"

namespace coterie {

// What the outputs of a layer may differ by, as relative error norms. Both sides round to BF16 some
// three times per element (2^-9 each at most, 1.1e-3 rms), so correct layers stay near 3e-3 and a
// single misplaced row of a hundred stands out.
inline constexpr double kReferenceTolerance = 1e-2;
inline constexpr double kExactnessTolerance = 1e-2;

// How far a layer's outputs are off, over all ranks.
struct LayerCheck {
  ErrorNorm reference;  // sampled tokens against the CPU
  ErrorNorm baseline;   // all tokens against standard + contiguous; exact runs only
};
struct RunCheck {
  std::vector<LayerCheck> layers;
  std::string plan_difference;         // empty: the devices built what the plan says
  std::optional<std::string> failure;  // what is wrong, one sentence; the same on all ranks
};

// Holds the runs of one experiment against each other and against the reference. Executor and group
// must outlive it.
class Verifier {
 public:
  // `num_check_tokens`: of every rank, recomputed on the CPU.
  Verifier(const LayerShape& shape, std::uint32_t num_check_tokens, ControlGroup& group,
           Executor& executor)
      : shape_(shape), num_check_tokens_(num_check_tokens), group_(group), executor_(executor) {}

  // The executor has just carried out standard + contiguous, which every exact run is compared with.
  void keep_baseline(const PlannedRun& baseline);
  // Collective: judges the run that the executor has just carried out.
  RunCheck verify(const PlannedRun& run);

 private:
  // The sampled tokens of this rank and what the CPU makes of them.
  struct Samples {
    std::vector<std::size_t> tokens;
    std::vector<std::vector<std::vector<float>>> outputs;  // [layer][sample][hidden]
  };
  Samples sample(const PlannedRun& run);

  const LayerShape shape_;
  const std::uint32_t num_check_tokens_;
  ControlGroup& group_;
  Executor& executor_;
  Samples exact_samples_;
  std::vector<std::vector<float>> baseline_outputs_;  // [layer][num_tokens * hidden]
};

}  // namespace coterie
