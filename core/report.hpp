#pragma once
// The run report: what a predictor says and what the runtime measured, in one schema, so that the
// two can be compared transfer group by transfer group. Also the timeline both write.
//
// All times are seconds from the start of the layer. "Slowest" is the maximum over ranks; a mean
// over ranks never stands for a time.

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/phase.hpp"

namespace coterie {

// Begin and end of a phase on every rank; ranks that skip the phase have begin == end.
struct PhaseTimes {
  Phase phase = Phase::kNotify;
  std::vector<double> begin_s;  // [num_ranks]
  std::vector<double> end_s;    // [num_ranks]
  // The duration on the slowest rank: max(end - begin).
  [[nodiscard]] double slowest_s() const;
  // Measured only: that duration in every iteration.
  std::vector<double> samples_s;
};

// All transfers of one phase over one tier ("local" for rows that stay on their rank).
struct TransferGroup {
  Phase phase = Phase::kDispatch;
  std::string tier;  // local, scale_up or network
  std::uint64_t num_transfers = 0;
  std::uint64_t num_rows = 0;      // token rows or result rows
  std::int64_t bytes = 0;          // payload and metadata
  std::int64_t max_rank_send = 0;  // bytes of the rank that sends most
  std::int64_t max_rank_receive = 0;
  std::optional<double> begin_s;  // first start; absent where unknown, as for local rows
  std::optional<double> end_s;    // last finish
};

struct LinkLoad {
  std::string name;
  std::string tier;
  std::int64_t bytes = 0;
  // bytes / (bandwidth * time in which dispatch, forward, gather or combine traffic is under way);
  // absent where that time is unknown (engine `bound`)
  std::optional<double> utilization;
};

struct LayerReport {
  std::uint32_t layer = 0;              // number in the model
  double time_s = 0.0;                  // start of the layer to the end of the slowest rank
  double bound_s = 0.0;                 // predicted only: the closed-form lower bound
  std::optional<double> low_s, high_s;  // interval of time_s where the topology is calibrated
  std::vector<double> samples_s;        // measured only: time_s in every iteration
  // Means per token: copies (k, what standard dispatch sends), fan-out (distinct ranks or nodes
  // that host one of the token's experts) and remote fan-out (the token's own left out).
  double copies = 0.0;
  double fanout_ranks = 0.0;
  double remote_fanout_ranks = 0.0;
  double fanout_nodes = 0.0;
  double remote_fanout_nodes = 0.0;
  double rank_load_max_over_mean = 0.0;  // (token, expert) pairs per rank
  std::vector<PhaseTimes> phases;        // empty where unknown (engine `bound`)
  // When the last of the ranks whose results a rank needs has merged them, [num_ranks]: from then on
  // its combine is not held up by a slower MLP. Empty where unknown.
  std::vector<double> combine_ready_s;
  std::vector<TransferGroup> groups;
  std::optional<LinkLoad> busiest_link;
};

// A whole training, prefill or decode step instead of single layers. Lists by name are in the order in
// which they are shown.
struct StepReport {
  std::string kind;    // train, prefill or decode
  std::string method;  // executed (the whole program) or composed (of blocks that stand for many)
  std::uint32_t num_gpus = 0;
  std::string parallel;  // "tp 1, pp 8, vp 2, cp 1, ep 32, dp 32"
  double time_s = 0.0;
  std::optional<double> low_s, high_s;  // where the topology is calibrated
  double tokens_per_s_per_gpu = 0.0;
  double model_flops_per_s_per_gpu = 0.0;
  // On the rank that ends last (executed) or the pipeline stage with most to do (composed): while it
  // communicates; while it does nothing else; while it waits for other stages.
  double communication_s = 0.0;
  double exposed_communication_s = 0.0;
  double bubble_s = 0.0;
  std::vector<std::pair<std::string, double>> parts;  // seconds that add up to time_s
  std::vector<std::pair<std::string, double>> busy;   // resource, share of time_s
  struct Segment {
    std::string name;
    double seconds = 0.0;
    std::uint32_t count = 0;
  };
  std::vector<Segment> critical_path;  // longest first; adds up to time_s
  // By kind, of the fullest GPU, with total and available; empty where unknown.
  std::vector<std::pair<std::string, double>> memory_bytes;
  std::optional<double> tpot_s, ttft_s;  // decode; prefill
  // Token rows of the rank with most over the mean, of the layer where this is largest.
  std::optional<double> rank_load_max_over_mean;
  // Of a series of steps whose routing drifts, in order; empty for one step. What else the report says is
  // then the mean over the steps, its memory that of the fullest one.
  struct SeriesStep {
    double time_s = 0.0;  // with the placement learnt for the first step
    // With a placement learnt for this step; absent where placements are not learnt.
    std::optional<double> relearnt_time_s;
    double rank_load_max_over_mean = 1.0;  // of the fullest layer, with the placement of the first
  };
  std::vector<SeriesStep> series;
  // By how much the series takes longer than with a placement learnt for each step, as a share; absent
  // without a series or where placements are not learnt.
  [[nodiscard]] std::optional<double> static_loss() const;
};

struct RunReport {
  std::string kind;    // predicted or measured
  std::string engine;  // simgrid, flow, bound; nccl for measured runs
  std::string name;    // of the run in the experiment
  std::string policy;  // standard, dedup, hierarchical
  std::string placement;
  bool exact = true;  // false for pruned routing
  std::string topology;
  std::string transport;  // how rows move: ideal, nccl, ...
  std::string model;
  std::string trace;
  std::uint32_t num_ranks = 0;
  std::uint32_t num_groups = 1;
  std::uint32_t tokens_per_rank = 0;  // the largest over the ranks
  std::string dispatch_payload;       // bf16 or fp8
  std::string combine_payload;
  std::optional<std::string> expert_type;  // bf16 or fp8, where the experiment says it
  std::vector<LayerReport> layers;
  std::optional<StepReport> step;  // then there are no layers
  // Pruned routing: share of router weight lost and how often the top-1 expert changed.
  std::optional<double> weight_lost, top1_changed;
  // Tokens that all ranks own together per token of the evaluated part of the trace. Above one, the
  // same tokens stand in the batch several times.
  std::optional<double> token_repeats;
  // Why the run could not be carried out, one sentence; it then has neither layers nor step.
  std::optional<std::string> failure;
  std::vector<std::string> warnings;  // what the reader of its numbers must know, sentences
  // Free-form facts: version, seed; measured runs add device, driver, NCCL version, ...
  std::map<std::string, nlohmann::json> provenance;

  [[nodiscard]] bool has_results() const { return step || !layers.empty(); }
  // Sums over the layers; the time also of a step.
  [[nodiscard]] double time_s() const;
  [[nodiscard]] double phase_slowest_s(Phase phase) const;
  [[nodiscard]] std::int64_t tier_bytes(std::string_view tier) const;
};

// With what core/metrics.hpp says of every layer: its critical rank, its phases on their own.
nlohmann::json to_json(const RunReport& report);
// Throws InputError with `where` for a document that is not a report of schema_version 1.
RunReport report_from_json(const nlohmann::json& document, const std::string& where);

// One interval or counter sample of a timeline.
struct TimelineSpan {
  std::string process;  // "ranks", "links"
  std::string track;    // "rank 3"
  std::string name;     // "dispatch"
  double begin_s = 0.0;
  double end_s = 0.0;
};
struct TimelineSample {
  std::string process;
  std::string track;  // "leaf 0 -> spine 1"
  double time_s = 0.0;
  double value = 0.0;
  std::string unit;  // "GB/s"
};
struct Timeline {
  std::vector<TimelineSpan> spans;
  std::vector<TimelineSample> samples;
};

// Layers as text between processes of one program; what is read equals what was written.
std::string pack_layer(const LayerReport& layer, const Timeline& timeline);
std::pair<LayerReport, Timeline> unpack_layer(const std::string& bytes);

// Writes the Chrome trace-event JSON that Perfetto and chrome://tracing open.
void write_timeline(const std::filesystem::path& path, const Timeline& timeline);

}  // namespace coterie
