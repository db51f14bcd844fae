#include "sim/sweep/recommend.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "core/error.hpp"
#include "sim/step/memory.hpp"
#include "sim/step/operation_times.hpp"
#include "sim/step/operations.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kMaxPipeline = 16;
constexpr std::uint32_t kMaxBatchSteps = 8;
constexpr std::uint32_t kUnbalancedReserve = 50;  // a fiftieth of the memory

struct Candidate {
  Settings settings;
  double bound_tokens_per_s = 0.0;  // per GPU
};

double tokens_per_step(const StepSpec& step) {
  switch (step.kind) {
    case StepKind::kTrain:
      return static_cast<double>(step.train.global) * step.train.sequence;
    case StepKind::kPrefill:
      return static_cast<double>(step.prefill.tokens_per_gpu) * step.parallel.num_ranks();
    case StepKind::kDecode:
      return static_cast<double>(step.decode.sequences_per_gpu) * step.parallel.num_ranks();
  }
  return 0.0;
}

// Layers that embedding and loss must count as so that the chunks are equal: {embedding, loss}.
std::pair<std::uint32_t, std::uint32_t> filling(std::uint32_t num_layers, std::uint32_t chunks) {
  const std::uint32_t missing = (chunks - num_layers % chunks) % chunks;
  if (missing == 2) return {1, 1};
  return {0, missing};
}

// Whether the parallel sizes divide what they split; the reader of experiments has the last word.
bool divides(const ModelShape& model, const StepSpec& step, std::uint32_t gpus_per_node) {
  const ParallelSizes& sizes = step.parallel;
  const AttentionShape& attention = *model.attention;
  if (sizes.tp > gpus_per_node || attention.num_heads % sizes.tp != 0) return false;
  if (attention.kind != AttentionKind::kMla && attention.num_kv_heads % sizes.tp != 0 &&
      sizes.tp % attention.num_kv_heads != 0) {
    return false;
  }
  if (model.num_dense_layers() > 0 && model.dense_intermediate % sizes.tp != 0) return false;
  const std::uint64_t shared = std::uint64_t{model.num_shared_experts} * model.shared_intermediate;
  if (shared % sizes.tp != 0) return false;
  const std::uint32_t stage = sizes.tp * sizes.cp * sizes.dp;
  if (stage % sizes.ep != 0) return false;
  const bool whole_nodes = sizes.ep % gpus_per_node == 0 || gpus_per_node % sizes.ep == 0;
  return whole_nodes;
}

bool splits_batch(const StepSpec& step) {
  if (step.kind != StepKind::kTrain) return true;
  const TrainBatch& batch = step.train;
  if (batch.global % (batch.micro * step.parallel.dp) != 0) return false;
  if (batch.sequence % (step.parallel.tp * step.parallel.cp) != 0) return false;
  const std::uint32_t num_micro = batch.num_micro_batches(step.parallel);
  return num_micro >= step.parallel.pp &&
         (step.parallel.vp == 1 || num_micro % step.parallel.pp == 0);
}

// What a GPU may use.
GpuModel limited_gpu(const RecommendRequest& request, GpuModel gpu) {
  if (!request.memory_bytes) return gpu;
  const auto limit = static_cast<std::int64_t>(*request.memory_bytes);
  gpu.memory = Bytes{gpu.memory ? std::min(gpu.memory->value, limit) : limit};
  return gpu;
}

// What the largest batch may fill: with routing that is not balanced the fullest rank needs more than
// the mean that is searched with.
std::optional<std::uint32_t> largest_decode_batch(const ModelShape& model, const StepSpec& step,
                                                  GpuModel gpu, std::uint32_t num_replicas) {
  if (gpu.memory && step.routing != StepRouting::kBalanced) {
    gpu.memory = Bytes{gpu.memory->value - gpu.memory->value / kUnbalancedReserve};
  }
  return largest_batch(model, step, gpu, num_replicas);
}

// Whether placements and replicas are a second sweep's.
bool searches_runs(const RecommendRequest& request, const Experiment& experiment) {
  return !request.runs.is_default() || experiment.step->routing != StepRouting::kBalanced;
}

class Search {
 public:
  Search(const RecommendRequest& request, const Experiment& experiment)
      : request_(request),
        experiment_(experiment),
        base_(*experiment.step),
        gpu_(limited_gpu(request, experiment.cluster.gpu)) {}

  SearchSpace run() && {
    std::vector<std::uint32_t> sizes = request_.gpus;
    if (sizes.empty()) sizes.push_back(base_.parallel.num_ranks());
    for (const std::uint32_t gpus : sizes) {
      for (std::uint32_t tp = 1; tp <= experiment_.cluster.gpus_per_node; tp *= 2) {
        for (std::uint32_t pp = 1; pp <= (trains() ? kMaxPipeline : 1U); pp *= 2) {
          if (gpus % (tp * pp * base_.parallel.cp) == 0) try_stage(gpus, tp, pp);
        }
      }
    }
    std::stable_sort(candidates_.begin(), candidates_.end(),
                     [](const Candidate& a, const Candidate& b) {
                       return a.bound_tokens_per_s > b.bound_tokens_per_s;
                     });
    space_.num_fitting = candidates_.size();
    const std::size_t most = searches_runs(request_, experiment_)
                                 ? std::max<std::size_t>(1, request_.max_points / 2)
                                 : request_.max_points;
    for (const Candidate& candidate : candidates_) {
      if (space_.candidates.size() == most) break;
      space_.candidates.push_back(candidate.settings);
    }
    return std::move(space_);
  }

 private:
  [[nodiscard]] bool trains() const { return base_.kind == StepKind::kTrain; }

  void try_stage(std::uint32_t gpus, std::uint32_t tp, std::uint32_t pp) {
    const ModelShape& model = experiment_.model;
    StepSpec step = base_;
    step.parallel.tp = tp;
    step.parallel.pp = pp;
    step.parallel.dp = gpus / (tp * pp * step.parallel.cp);
    const std::uint32_t stage = gpus / pp;
    for (std::uint32_t vp :
         pp == 1 ? std::vector<std::uint32_t>{1} : std::vector<std::uint32_t>{1, 2, 4}) {
      const std::uint32_t chunks = pp * vp;
      if (chunks > model.num_layers) continue;
      step.parallel.vp = vp;
      const auto [embedding, loss] =
          chunks == 1 ? std::pair{0U, 0U} : filling(model.num_layers, chunks);
      step.parallel.embedding_layers = embedding;
      step.parallel.loss_layers = loss;
      if (loss > (model.num_layers + embedding + loss) / chunks) continue;
      for (std::uint32_t ep = 1; ep <= stage; ++ep) {
        if (stage % ep != 0) continue;
        step.parallel.ep = ep;
        if (!divides(model, step, experiment_.cluster.gpus_per_node)) continue;
        const auto [runs, added] = runs_.try_emplace(ep);
        if (added) runs->second = runs_on(experiment_, request_.runs, ep);
        if (!runs->second.empty()) try_batches(gpus, step, runs->second);
      }
    }
  }

  void try_batches(std::uint32_t gpus, StepSpec step, const std::vector<RunSpec>& runs) {
    std::uint32_t num_replicas = 0;
    for (const RunSpec& run : runs) num_replicas = std::max(num_replicas, run.num_replicas);
    bool any = false;
    const auto try_batch = [&](std::uint32_t& batch, std::uint32_t value) {
      batch = value;
      if (!splits_batch(step)) return;
      // The cheapest recomputation that fits.
      for (const Recompute recompute :
           trains() ? std::vector{Recompute::kNone, Recompute::kSelective, Recompute::kFull}
                    : std::vector{Recompute::kNone}) {
        step.recompute = recompute;
        if (!memory_per_gpu(experiment_.model, step, gpu_, num_replicas).fits()) continue;
        any = true;
        add(gpus, step, runs);
        return;
      }
    };
    if (trains()) {
      for (const std::uint32_t micro : {1U, 2U, 4U, 8U}) try_batch(step.train.micro, micro);
    } else if (step.kind == StepKind::kPrefill) {
      const std::uint32_t group = step.parallel.tp * step.parallel.cp;
      const std::uint32_t unit =
          std::lcm(step.prefill.sequence * step.overlap.micro_batches, group) / group;
      for (std::uint32_t i = 0; i < kMaxBatchSteps; ++i) {
        try_batch(step.prefill.tokens_per_gpu, unit << i);
      }
    } else {
      // Powers of two, and the largest multiple of eight that fits.
      const auto largest = largest_decode_batch(experiment_.model, step, gpu_, num_replicas);
      std::set<std::uint32_t> sizes;
      for (std::uint32_t batch = 8; batch <= std::min(largest.value_or(1024), 1024U); batch *= 2) {
        sizes.insert(batch);
      }
      if (largest && *largest >= 8) sizes.insert(std::min(*largest, 4096U) / 8 * 8);
      for (const std::uint32_t batch : sizes) try_batch(step.decode.sequences_per_gpu, batch);
    }
    if (!any) ++space_.num_too_large;
  }

  void add(std::uint32_t gpus, const StepSpec& step, const std::vector<RunSpec>& runs) {
    const double bound_s = computation_bound_s(experiment_.model, step, experiment_.cluster.gpu);
    const auto limit = step.kind == StepKind::kDecode    ? request_.tpot_s
                       : step.kind == StepKind::kPrefill ? request_.ttft_s
                                                         : std::nullopt;
    if (limit && bound_s > *limit) {
      ++space_.num_too_slow;
      return;
    }
    Candidate candidate;
    candidate.bound_tokens_per_s = tokens_per_step(step) / bound_s / gpus;
    const ParallelSizes& sizes = step.parallel;
    const auto set = [&](const char* key, const std::string& value) {
      candidate.settings.emplace_back(key, value);
    };
    set("ranks", std::to_string(gpus));
    set("step.parallel",
        trains() ? fmt::format("{{tp: {}, pp: {}, vp: {}, cp: {}, ep: {}, embedding_layers: {}, "
                               "loss_layers: {}}}",
                               sizes.tp, sizes.pp, sizes.vp, sizes.cp, sizes.ep,
                               sizes.embedding_layers, sizes.loss_layers)
                 : fmt::format("{{tp: {}, cp: {}, ep: {}}}", sizes.tp, sizes.cp, sizes.ep));
    switch (step.kind) {
      case StepKind::kTrain:
        set("step.batch.micro", std::to_string(step.train.micro));
        set("step.recompute", to_string(step.recompute));
        break;
      case StepKind::kPrefill:
        set("step.batch.tokens_per_gpu", std::to_string(step.prefill.tokens_per_gpu));
        break;
      case StepKind::kDecode:
        set("step.batch.sequences_per_gpu", std::to_string(step.decode.sequences_per_gpu));
        break;
    }
    set("runs", runs_text(runs));
    // Every transport that the machine has parameters of, unless the experiment chose one.
    const auto& transports = experiment_.cluster.transports;
    if (experiment_.transport.name || transports.size() < 2) {
      candidates_.push_back(std::move(candidate));
      return;
    }
    for (const TransportParameters& transport : transports) {
      candidates_.push_back(candidate);
      candidates_.back().settings.emplace_back("transport", std::string(transport_name(transport)));
    }
  }

  const RecommendRequest& request_;
  const Experiment& experiment_;
  StepSpec base_;
  GpuModel gpu_;
  std::map<std::uint32_t, std::vector<RunSpec>> runs_;  // by EP ranks
  std::vector<Candidate> candidates_;
  SearchSpace space_;
};

// The largest shares of the step's time, and how full the memory is.
std::string what_binds(const nlohmann::json& row, double time_s, double memory_share) {
  std::vector<std::pair<double, std::string>> shares;
  const auto add = [&](const std::string& name, double seconds) {
    if (seconds > 0.0) shares.emplace_back(seconds / time_s, name);
  };
  for (const auto& [key, value] : row.items()) {
    if (!key.starts_with("step_") || !key.ends_with("_s") || !value.is_number()) continue;
    const std::string name = key.substr(5, key.size() - 7);
    if (name == "low" || name == "high") continue;
    add(name, value.get<double>());
  }
  std::stable_sort(shares.begin(), shares.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, shares.size()); ++i) {
    text += fmt::format("{}{} {:.0f} %", text.empty() ? "" : ", ", shares[i].second,
                        100.0 * shares[i].first);
  }
  const auto load = row.find("rank_load_max_over_mean");
  if (load != row.end() && load->is_number() && load->get<double>() > 1.1) {
    text += fmt::format("; the fullest rank has {:.1f} times the mean load", load->get<double>());
  }
  if (memory_share > 0.9) text += fmt::format("; memory {:.0f} % full", 100.0 * memory_share);
  return text;
}

// By which candidates stand in a list.
bool stands_before(const Recommendation& a, const Recommendation& b) {
  if (a.within_limits != b.within_limits) return a.within_limits;
  return a.tokens_per_s_per_gpu > b.tokens_per_s_per_gpu;
}

// Of a run that stands in the setting `runs`.
std::uint32_t replicas_of(const Settings& settings, const std::string& run) {
  for (const auto& [key, value] : settings) {
    if (key != "runs") continue;
    for (const YamlValue& item : parse_yaml(value, "runs").as_list()) {
      YamlMap map = item.as_map();
      const auto replicas = map.optional("replicas");
      if (replicas && map.required("name").as_string() == run) {
        return static_cast<std::uint32_t>(replicas->as_integer(0, 1 << 20));
      }
    }
  }
  return 0;
}

// A limit that says nothing of this kind of step would be kept by every candidate.
void check_limits(const RecommendRequest& request, StepKind kind) {
  if (request.tpot_s && kind != StepKind::kDecode) {
    throw InputError("--tpot", fmt::format("a limit for a {} step", to_string(kind)),
                     "a decode step, whose time per output token it limits");
  }
  if (request.ttft_s && kind != StepKind::kPrefill) {
    throw InputError("--ttft", fmt::format("a limit for a {} step", to_string(kind)),
                     "a prefill step, whose time to the first token it limits");
  }
}

// The plot's horizontal axis: more is better.
double horizontal(const Recommendation& one, StepKind kind) {
  if (kind == StepKind::kDecode && one.latency_s) return 1.0 / *one.latency_s;
  return -(one.latency_s ? *one.latency_s : one.time_s);
}

void mark_front(std::vector<Recommendation>& all, StepKind kind) {
  for (Recommendation& one : all) {
    one.on_front =
        one.within_limits && std::none_of(all.begin(), all.end(), [&](const Recommendation& other) {
          if (!other.within_limits) return false;
          const double x = horizontal(other, kind) - horizontal(one, kind);
          const double y = other.tokens_per_s_per_gpu - one.tokens_per_s_per_gpu;
          return x >= 0.0 && y >= 0.0 && (x > 0.0 || y > 0.0);
        });
  }
}

// 1, 2 or 5 times a power of ten, so that four to eight of them reach `largest`.
double tick_step(double largest) {
  double step = std::pow(10.0, std::floor(std::log10(largest)));
  if (largest / step < 2.0) {
    step /= 5.0;
  } else if (largest / step < 4.0) {
    step /= 2.0;
  } else if (largest / step > 8.0) {
    step *= 2.0;
  }
  return step;
}

// "35,000", "0.25".
std::string tick_text(double value) {
  if (value < 1000.0) return fmt::format("{:.4g}", value);
  std::string digits = fmt::format("{:.0f}", value);
  for (std::size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

std::string xml_text(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  return out;
}

}  // namespace

double computation_bound_s(const ModelShape& model, const StepSpec& step, const GpuModel& gpu) {
  const OperationTimes times(gpu);
  const LayerWork work = layer_work(step);
  const std::uint32_t local = std::max(1U, model.num_experts / step.parallel.ep);
  const double rows = static_cast<double>(work.own_tokens()) * model.num_topk / local;
  const std::vector<std::uint64_t> balanced(local, static_cast<std::uint64_t>(rows));
  std::vector<Pass> passes{Pass::kForward};
  if (step.kind == StepKind::kTrain) {
    passes.push_back(Pass::kBackwardInput);
    passes.push_back(Pass::kBackwardWeight);
    if (step.recompute != Recompute::kNone) passes.push_back(Pass::kRecompute);
  }
  const auto total = [&](const std::vector<ModelOperation>& operations) {
    return times.time(operations).total.value;
  };
  // Layers cost the same where experts and window are the same.
  std::map<std::pair<bool, bool>, double> layer_s;
  double micro_batch_s = 0.0;
  for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
    const bool moe = model.is_moe_layer(layer);
    const auto [entry, added] = layer_s.try_emplace({moe, model.is_windowed_layer(layer)}, 0.0);
    if (added) {
      for (const Pass pass : passes) {
        const LayerOperations operations = layer_operations(model, step, work, layer, pass);
        entry->second += total(operations.attention) + total(operations.dense_mlp) +
                         total(operations.router) + total(operations.shared);
        if (moe) entry->second += total(expert_operations(model, step, balanced, pass));
      }
    }
    micro_batch_s += entry->second;
  }
  for (const Pass pass : passes) micro_batch_s += total(head_operations(model, step, work, pass));
  // A stage has its share of every micro-batch, and waits for the others to fill and drain:
  // (p - 1) / v of its slots.
  const ParallelSizes& sizes = step.parallel;
  const double slots = step.num_micro_batches() + (sizes.pp - 1.0) / sizes.vp;
  return micro_batch_s / sizes.pp * slots;
}

SearchSpace search_space(const RecommendRequest& request) {
  const Experiment experiment = load_experiment(request.experiment, request.overrides);
  if (!experiment.step) {
    throw InputError(request.experiment.string(), "no key \"step\"",
                     "an experiment with a `step` block, whose sizes are searched");
  }
  check_limits(request, experiment.step->kind);
  SearchSpace space = Search(request, experiment).run();
  if (space.candidates.empty() && space.num_too_large + space.num_too_slow == 0) {
    throw InputError(request.experiment.string(),
                     "no candidate whose sizes divide GPUs, layers, heads, batch, and experts with "
                     "the searched replicas",
                     "other numbers of GPUs, or a placement that takes replicas");
  }
  if (space.candidates.empty()) {
    throw InputError(
        request.experiment.string(),
        fmt::format("no candidate ({} not fit in memory, {} too slow even without communication)",
                    space.num_too_large, space.num_too_slow),
        "more GPUs, lower precision, or looser limits");
  }
  return space;
}

std::string sweep_text(const std::vector<Settings>& candidates, const std::filesystem::path& base) {
  const auto quoted = [](const std::string& text) { return nlohmann::json(text).dump(); };
  std::string text =
      fmt::format("schema_version: 1\nbase: {}\naxes:\n  - zip:\n", quoted(base.string()));
  for (std::size_t key = 0; key < candidates.front().size(); ++key) {
    text += fmt::format("      - key: {}\n        values:\n", candidates.front()[key].first);
    for (const Settings& settings : candidates) {
      // Maps and numbers are YAML as they stand.
      text += fmt::format("          - {}\n", settings[key].second);
    }
  }
  return text;
}

std::vector<Recommendation> rank_candidates(const RecommendRequest& request,
                                            const std::vector<nlohmann::json>& entries,
                                            const SweepSpec& spec) {
  std::vector<Recommendation> all;
  StepKind kind = StepKind::kTrain;
  for (const nlohmann::json& entry : entries) {
    if (entry.at("status") != "ok") continue;
    const auto point = std::find_if(spec.points.begin(), spec.points.end(), [&](const auto& p) {
      return p.id == entry.at("id").get<std::string>();
    });
    if (point == spec.points.end()) continue;
    const auto rows = nlohmann::json::parse(entry.at("rows").get<std::string>());
    for (const nlohmann::json& row : rows) {
      if (!row.contains("tokens_per_s_per_gpu")) continue;
      Recommendation one;
      one.settings = point->settings;
      one.run = row.at("run").get<std::string>();
      one.placement = row.value("placement", "");
      one.policy = row.value("policy", "");
      one.num_replicas = replicas_of(one.settings, one.run);
      one.time_s = row.at("run_time_s").get<double>();
      one.tokens_per_s_per_gpu = row.at("tokens_per_s_per_gpu").get<double>();
      one.num_gpus = row.at("num_gpus").get<std::uint32_t>();
      const std::string step_kind = row.at("step_kind").get<std::string>();
      kind = step_kind == "train"     ? StepKind::kTrain
             : step_kind == "prefill" ? StepKind::kPrefill
                                      : StepKind::kDecode;
      const auto number = [&](const char* key) -> std::optional<double> {
        const auto found = row.find(key);
        if (found == row.end() || !found->is_number()) return std::nullopt;
        return found->get<double>();
      };
      one.latency_s = kind == StepKind::kDecode ? number("tpot_s") : number("ttft_s");
      const auto available = number("memory_available_bytes");
      if (available && *available > 0.0) {
        one.memory_share = number("memory_total_bytes").value_or(0.0) / *available;
      }
      const auto limit = kind == StepKind::kDecode ? request.tpot_s : request.ttft_s;
      one.within_limits = !limit || !one.latency_s || *one.latency_s <= *limit;
      if (request.price) {
        one.cost = *request.price / 3600.0 / one.tokens_per_s_per_gpu * 1e6;
      }
      one.binds = what_binds(row, one.time_s, one.memory_share);
      if (limit && one.latency_s && *one.latency_s > 0.9 * *limit) {
        one.binds +=
            fmt::format("; {} {:.0f} % of its limit", kind == StepKind::kDecode ? "TPOT" : "TTFT",
                        100.0 * *one.latency_s / *limit);
      }
      all.push_back(std::move(one));
    }
  }
  std::stable_sort(all.begin(), all.end(), stands_before);
  mark_front(all, kind);
  return all;
}

SearchSpace placement_space(const RecommendRequest& request,
                            const std::vector<Recommendation>& ranked, std::size_t max_points) {
  SearchSpace space;
  const Experiment base = load_experiment(request.experiment, request.overrides);
  if (!searches_runs(request, base)) return space;
  std::vector<const Recommendation*> order;
  for (const Recommendation& one : ranked) order.push_back(&one);
  // Where none keeps the limit of latency, a placement may bring the nearest one within it.
  if (!ranked.empty() && !ranked.front().within_limits) {
    std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
      return a->latency_s.value_or(a->time_s) < b->latency_s.value_or(b->time_s);
    });
  }
  std::set<Settings> seen;
  for (const Recommendation& one : ranked) {
    // Its runs one by one, so that no variant repeats what was simulated.
    std::vector<Override> overrides = request.overrides;
    for (const auto& [key, value] : one.settings) overrides.push_back({key, value});
    Settings settings = one.settings;
    for (const RunSpec& run : load_experiment(request.experiment, overrides).runs) {
      for (auto& [key, value] : settings) {
        if (key == "runs") value = runs_text(std::span(&run, 1));
      }
      seen.insert(settings);
    }
  }
  for (const Recommendation* one : order) {
    std::vector<Override> overrides = request.overrides;
    for (const auto& [key, value] : one->settings) overrides.push_back({key, value});
    const Experiment experiment = load_experiment(request.experiment, overrides);
    const auto run = std::find_if(experiment.runs.begin(), experiment.runs.end(),
                                  [&](const RunSpec& other) { return other.name == one->run; });
    if (run == experiment.runs.end()) continue;
    const GpuModel gpu = limited_gpu(request, experiment.cluster.gpu);
    for (const RunSpec& variant :
         variants_of(base, request.runs, *run, experiment.step->parallel.ep)) {
      Settings settings = one->settings;
      for (auto& [key, value] : settings) {
        if (key == "runs") value = runs_text(std::span(&variant, 1));
      }
      StepSpec step = *experiment.step;
      if (step.kind == StepKind::kDecode) {
        // Replicas may leave less room for keys and values.
        const auto largest =
            largest_decode_batch(experiment.model, step, gpu, variant.num_replicas);
        std::uint32_t& batch = step.decode.sequences_per_gpu;
        if (largest && *largest >= 8 && batch > *largest) batch = *largest / 8 * 8;
        for (auto& [key, value] : settings) {
          if (key == "step.batch.sequences_per_gpu") value = std::to_string(batch);
        }
      }
      if (!seen.insert(settings).second) continue;
      if (!memory_per_gpu(experiment.model, step, gpu, variant.num_replicas).fits()) {
        ++space.num_too_large;
        continue;
      }
      ++space.num_fitting;
      if (space.candidates.size() < max_points) space.candidates.push_back(std::move(settings));
    }
  }
  return space;
}

std::vector<Recommendation> merge_ranked(std::vector<Recommendation> first,
                                         const std::vector<Recommendation>& second, StepKind kind) {
  first.insert(first.end(), second.begin(), second.end());
  std::stable_sort(first.begin(), first.end(), stands_before);
  mark_front(first, kind);
  return first;
}

std::string settings_text(const Settings& settings) {
  std::vector<std::string> texts;
  for (const auto& [key, value] : settings) {
    if (key == "runs") continue;
    if (key == "ranks") {
      texts.push_back(value + " GPUs");
    } else if (key == "transport") {
      texts.push_back(value);
    } else if (key == "step.parallel") {
      YamlMap sizes = parse_yaml(value, key).as_map();
      for (const std::string& name : sizes.keys()) {
        const std::string size = sizes.required(name).as_string();
        if (size != (name.ends_with("_layers") ? "0" : "1")) texts.push_back(name + " " + size);
      }
    } else {
      texts.push_back(key.substr(key.rfind('.') + 1) + " " + value);
    }
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

std::string placement_text(const Recommendation& one) {
  const std::string name = std::filesystem::path(one.placement).filename().string();
  return one.num_replicas == 0 ? name : fmt::format("{} +{}", name, one.num_replicas);
}

std::string pareto_svg(const std::vector<Recommendation>& all, StepKind kind) {
  constexpr double kWidth = 720.0, kPlotBottom = 360.0, kLeft = 90.0, kTop = 20.0, kEdge = 24.0;
  constexpr std::size_t kMostNamed = 12;
  const bool decode = kind == StepKind::kDecode;
  const auto x_of = [&](const Recommendation& one) { return std::abs(horizontal(one, kind)); };
  double right = 0.0, top = 0.0;
  for (const Recommendation& one : all) {
    right = std::max(right, x_of(one));
    top = std::max(top, one.tokens_per_s_per_gpu);
  }
  if (right == 0.0) right = 1.0;
  if (top == 0.0) top = 1.0;
  const double x_step = tick_step(right), y_step = tick_step(top);
  right = x_step * std::ceil(1.02 * right / x_step);
  top = y_step * std::ceil(1.02 * top / y_step);
  const auto px = [&](double x) { return kLeft + x / right * (kWidth - kLeft - kEdge); };
  const auto py = [&](double y) { return kPlotBottom - y / top * (kPlotBottom - kTop); };
  std::vector<std::pair<const Recommendation*, std::size_t>> front;  // and the position in the list
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].on_front) front.emplace_back(&all[i], i + 1);
  }
  const double height =
      kPlotBottom + 64.0 + 16.0 * static_cast<double>(std::min(front.size(), kMostNamed));
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
      kWidth, height);
  for (double x = 0.0; x < 1.001 * right; x += x_step) {
    text += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{2}\" x2=\"{0:.1f}\" y2=\"{3}\" stroke=\"#ddd\"/>\n"
        "<text x=\"{0:.1f}\" y=\"{4}\" text-anchor=\"middle\">{1}</text>\n",
        px(x), tick_text(x), kTop, kPlotBottom, kPlotBottom + 18.0);
  }
  for (double y = 0.0; y < 1.001 * top; y += y_step) {
    text += fmt::format(
        "<line x1=\"{2}\" y1=\"{0:.1f}\" x2=\"{3}\" y2=\"{0:.1f}\" stroke=\"#ddd\"/>\n"
        "<text x=\"{4}\" y=\"{5:.1f}\" text-anchor=\"end\">{1}</text>\n",
        py(y), tick_text(y), kLeft, kWidth - kEdge, kLeft - 8.0, py(y) + 4.0);
  }
  for (const Recommendation& one : all) {
    if (one.on_front) continue;
    text +=
        fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", px(x_of(one)),
                    py(one.tokens_per_s_per_gpu), one.within_limits ? "#34495e" : "#bdc3c7");
  }
  std::stable_sort(front.begin(), front.end(),
                   [&](const auto& a, const auto& b) { return x_of(*a.first) < x_of(*b.first); });
  std::string line;
  for (const auto& [one, position] : front) {
    line += fmt::format("{:.1f},{:.1f} ", px(x_of(*one)), py(one->tokens_per_s_per_gpu));
  }
  text += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"#c0392b\"/>\n", line);
  for (std::size_t i = 0; i < front.size(); ++i) {
    const auto& [one, position] = front[i];
    const double x = px(x_of(*one)), y = py(one->tokens_per_s_per_gpu);
    text += fmt::format(
        "<circle cx=\"{0:.1f}\" cy=\"{1:.1f}\" r=\"5\" fill=\"#c0392b\"/>\n"
        "<text x=\"{2:.1f}\" y=\"{3:.1f}\" fill=\"#c0392b\">{4}</text>\n",
        x, y, x + 7.0, y - 6.0, position);
    if (i >= kMostNamed) continue;
    text += fmt::format("<text x=\"{}\" y=\"{}\" font-size=\"11\">{}: {}, {} ({})</text>\n", 16.0,
                        kPlotBottom + 66.0 + 16.0 * static_cast<double>(i), position,
                        xml_text(settings_text(one->settings)), xml_text(placement_text(*one)),
                        xml_text(one->run));
  }
  const char* x_title = decode                       ? "tokens per second of one user"
                        : kind == StepKind::kPrefill ? "time to first token, seconds"
                                                     : "step time, seconds";
  text += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n"
      "<text x=\"16\" y=\"{:.1f}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {:.1f})\">"
      "tokens per second and GPU</text>\n</svg>\n",
      (kLeft + kWidth - kEdge) / 2.0, kPlotBottom + 40.0, x_title, (kTop + kPlotBottom) / 2.0,
      (kTop + kPlotBottom) / 2.0);
  return text;
}

}  // namespace coterie
