#include "workloads/experiment.hpp"

#include <cctype>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/reference.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

std::string quoted(const std::string& text) {
  // A JSON string is a YAML string.
  return dump_json(nlohmann::json(text));
}

std::string joined(const std::vector<std::string>& items) {
  return fmt::format("{}", fmt::join(items, ", "));
}

constexpr const char* kRenamed = "its new name \"extends\"";

// A preset's name or a path, alone or as `extends` of a map whose other keys override it.
struct Reference {
  std::string name_or_path;         // relative paths resolved
  std::vector<Override> overrides;  // dotted keys
};

// `key` is the end of the value's own path.
void flatten(const YamlValue& value, const std::string& key, std::vector<Override>& out) {
  if (!value.is_map()) {
    std::string text = dump_yaml(value);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    out.push_back({key, std::move(text), value.path().substr(0, value.path().size() - key.size()),
                   value.is_overridden() ? "" : value.position()});
    return;
  }
  YamlMap map = value.as_map();
  for (const std::string& part : map.keys()) flatten(map.required(part), key + "." + part, out);
}

// Where the relative paths of a value start: what --set gives is relative to the working directory.
fs::path home_of(const YamlValue& value, const fs::path& folder) {
  return value.is_overridden() ? fs::path() : folder;
}

template <class PresetList>
std::string resolve(const YamlValue& value, const fs::path& folder, const PresetList& presets,
                    const std::string& expected) {
  const std::string name = value.as_string();
  for (const auto& preset : presets) {
    if (preset.name == name) return name;
  }
  const fs::path path = home_of(value, folder) / name;
  if (!is_input_file(path)) throw value.error(missing_reference(name, path), expected);
  return path.string();
}

template <class PresetList>
Reference read_reference(const YamlValue& value, const fs::path& folder, const PresetList& presets,
                         const std::string& expected) {
  if (!value.is_map()) return {resolve(value, folder, presets, expected), {}};
  YamlMap map = value.as_map();
  if (const auto old = map.optional("base")) throw old->error("the key \"base\"", kRenamed);
  Reference reference{resolve(map.required("extends"), folder, presets, expected), {}};
  for (const std::string& key : map.keys()) {
    if (key != "extends") flatten(map.required(key), key, reference.overrides);
  }
  return reference;
}

// Takes the overrides below `topology.`, `model.` and `transport.` out: they go to what is named
// there. The key `kept` belongs to the experiment itself.
std::vector<Override> split_off(std::vector<Override>& overrides, const std::string& prefix,
                                const std::string& kept = "extends") {
  std::vector<Override> below;
  std::erase_if(overrides, [&](const Override& override_) {
    if (!override_.key.starts_with(prefix) || override_.key == prefix + kept) return false;
    if (kept == "extends" && override_.key == prefix + "base") {
      throw InputError(override_.where(override_.key), "the key \"base\"", kRenamed);
    }
    below.push_back({override_.key.substr(prefix.size()), override_.value, prefix});
    return true;
  });
  return below;
}

// Runs `load` and puts the place of the experiment before what it finds wrong in a document with
// overrides given there, unless that is one of them, which says itself where it stands.
template <class Load>
auto load_based(const YamlValue& value, const Load& load) {
  if (!value.is_map()) return load();
  try {
    return load();
  } catch (const InputError& error) {
    const std::string_view text = error.what();
    if (text.starts_with("--set ") || text.starts_with(value.file() + ":")) throw;
    throw InputError(fmt::format("{}: {}", value.where(), text));
  }
}

SequencePart read_part(const YamlValue& value) {
  if (const auto part = parse_sequence_part(value.as_string())) return *part;
  throw value.error(value.excerpt(), "one of all, even, odd");
}

TraceSpec read_trace(const YamlValue& value, const fs::path& folder) {
  YamlMap map = value.as_map();
  TraceSpec trace;
  const YamlValue file = map.required("file");
  trace.file = home_of(file, folder) / file.as_string();
  if (!path_exists(trace.file)) {
    throw file.error(fmt::format("\"{}\", which does not exist", trace.file.string()),
                     "a .moet trace (`coterie trace import` makes one)");
  }
  const auto train = map.optional("train");
  const auto eval = map.optional("eval");
  if (train) trace.train = read_part(*train);
  if (eval) trace.eval = read_part(*eval);
  if (const auto allowed = map.optional("evaluate_on_training")) {
    trace.evaluate_on_training = allowed->as_bool();
  }
  map.finish();
  const bool disjoint = trace.train != trace.eval && trace.train != SequencePart::kAll &&
                        trace.eval != SequencePart::kAll;
  if (!disjoint && !trace.evaluate_on_training) {
    const auto name = [](SequencePart part) {
      return part == SequencePart::kAll ? "all" : part == SequencePart::kEven ? "even" : "odd";
    };
    throw value.error(
        fmt::format("train: {} and eval: {}, which overlap", name(trace.train), name(trace.eval)),
        "separate parts (even and odd), or evaluate_on_training: true");
  }
  return trace;
}

PayloadType read_payload(const YamlValue& value) {
  if (const auto type = parse_payload(value.as_string())) return *type;
  throw value.error(value.excerpt(), "one of bf16, fp8");
}

PruneRequest read_prune(const YamlValue& value, std::uint32_t num_ranks) {
  YamlMap map = value.as_map();
  PruneRequest prune;
  const bool similarity = map.required("method").as_choice({"router_score", "similarity"}) == 1;
  prune.method = similarity ? PruneMethod::kSimilarity : PruneMethod::kRouterScore;
  prune.num_devices = static_cast<std::uint32_t>(map.required("devices").as_integer(1, num_ranks));
  map.finish();
  return prune;
}

std::string read_run_name(const YamlValue& value) {
  const std::string name = value.as_string();
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '+' || c == '-';
  });
  if (!plain || name[0] == '.' || name[0] == '-') {
    throw value.error(value.excerpt(),
                      "letters, digits and . _ + -, as the files of the run carry its name");
  }
  return name;
}

// A name, or a map of a name and parameters. What transports and parameters there are is the
// business of who makes them.
TransportChoice read_transport(const YamlValue& value) {
  if (!value.is_map()) return {value.as_string(), {}};
  YamlMap map = value.as_map();
  TransportChoice choice;
  if (const auto name = map.optional("name")) choice.name = name->as_string();
  for (const std::string& key : map.keys()) {
    if (key != "name") flatten(map.required(key), key, choice.settings);
  }
  return choice;
}

RunSpec read_run(const YamlValue& value, const fs::path& folder, std::uint32_t num_ranks) {
  YamlMap map = value.as_map();
  RunSpec run;
  run.name = read_run_name(map.required("name"));

  const YamlValue placement = map.required("placement");
  run.placement = placement.as_string();
  const std::vector<std::string> strategies = placement_strategies();
  const bool strategy =
      std::find(strategies.begin(), strategies.end(), run.placement) != strategies.end();
  if (!strategy) {
    const fs::path file = home_of(placement, folder) / run.placement;
    if (!is_input_file(file)) {
      throw placement.error(placement.excerpt(),
                            fmt::format("one of {}, or a placement file", joined(strategies)));
    }
    run.placement = file.string();
  }

  const YamlValue dispatch = map.required("dispatch");
  const auto policy = parse_policy(dispatch.as_string());
  if (!policy) throw dispatch.error(dispatch.excerpt(), "one of standard, dedup, hierarchical");
  run.policy = *policy;

  if (const auto transport = map.optional("transport")) run.transport = read_transport(*transport);
  if (const auto prune = map.optional("prune")) run.prune = read_prune(*prune, num_ranks);
  const auto read_cap = [&](const char* key) -> std::optional<double> {
    const auto cap = map.optional(key);
    if (!cap) return std::nullopt;
    const double number = cap->as_number(1.0, 1e6);
    if (!strategy || !find_strategy(run.placement).takes_balance_cap) {
      throw cap->error(fmt::format("a balance cap with the placement {}", run.placement),
                       "none: only the collaboration strategies take one");
    }
    return number;
  };
  run.max_imbalance = read_cap("max_imbalance");
  run.max_node_imbalance = read_cap("max_node_imbalance");
  if (const auto replicas = map.optional("replicas")) {
    run.num_replicas = static_cast<std::uint32_t>(replicas->as_integer(0, 1 << 20));
    if (run.num_replicas > 0 && (!strategy || !find_strategy(run.placement).takes_replicas)) {
      throw replicas->error(fmt::format("replicas with the placement {}", run.placement),
                            "none: only the strategies that learn replicate experts");
    }
  }
  if (const auto choice = map.optional("replica_choice")) {
    run.replica_choice = parse_replica_choice(choice->as_string());
    if (!run.replica_choice) {
      throw choice->error(choice->excerpt(), fmt::format("one of {}", replica_choice_names()));
    }
  }
  map.finish();
  return run;
}

std::vector<RunSpec> read_runs(const YamlValue& value, const fs::path& folder,
                               std::uint32_t num_ranks) {
  std::vector<RunSpec> runs;
  std::set<std::string> names;
  for (const YamlValue& item : value.as_list()) {
    runs.push_back(read_run(item, folder, num_ranks));
    if (!names.insert(runs.back().name).second) {
      throw item.error(fmt::format("a second run named \"{}\"", runs.back().name),
                       "a name of its own for every run");
    }
  }
  if (runs.empty()) throw value.error("an empty list", "at least one run");
  return runs;
}

std::vector<std::uint32_t> read_layers(const YamlValue& value) {
  std::vector<std::uint32_t> layers;
  for (const YamlValue& item : value.as_list()) {
    const auto layer = static_cast<std::uint32_t>(item.as_integer(0, 1 << 20));
    if (!layers.empty() && layer <= layers.back()) {
      throw item.error(item.excerpt(), "layer numbers in ascending order");
    }
    layers.push_back(layer);
  }
  if (layers.empty()) throw value.error("an empty list", "layer numbers, or no key `layers`");
  return layers;
}

// The optional keys that say how the job runs: what is sent, with which engine.
void read_settings(YamlMap& map, Experiment& experiment) {
  if (const auto tokens = map.optional("tokens_per_rank")) {
    experiment.tokens_per_rank = static_cast<std::uint32_t>(tokens->as_integer(1, 1 << 24));
  }
  if (const auto deal = map.optional("deal")) {
    experiment.deal = deal->as_choice({"round_robin", "in_order"}) == 0 ? SequenceDeal::kRoundRobin
                                                                        : SequenceDeal::kInOrder;
  }
  if (const auto layers = map.optional("layers")) experiment.layers = read_layers(*layers);
  if (const auto payload = map.optional("payload")) {
    YamlMap types = payload->as_map();
    if (const auto dispatch = types.optional("dispatch")) {
      experiment.dispatch_payload = read_payload(*dispatch);
    }
    if (const auto combine = types.optional("combine")) {
      experiment.combine_payload = read_payload(*combine);
    }
    types.finish();
  }
  if (const auto precision = map.optional("precision")) {
    if (experiment.step) {
      throw precision->error("a precision beside the step's",
                             "it in the step: `step: {precision: {experts: fp8}}`");
    }
    YamlMap types = precision->as_map();
    experiment.expert_type = read_payload(types.required("experts"));
    types.finish();
  }
  if (const auto chunk = map.optional("chunk")) {
    experiment.chunk = chunk->as_bytes();
    if (experiment.chunk.value < 1) throw chunk->error(chunk->excerpt(), "at least 1 B");
  }
  if (const auto transport = map.optional("transport")) {
    experiment.transport = read_transport(*transport);
  }
  const std::vector<std::string> engines{"simgrid", "flow", "bound"};
  const auto engine = map.optional("engine");
  experiment.engine = engines[engine ? engine->as_choice(engines) : 0];
  if (const auto seed = map.optional("seed")) {
    experiment.seed =
        static_cast<std::uint64_t>(seed->as_integer(0, std::numeric_limits<std::int64_t>::max()));
  }
}

// The keys that make the cluster. `extra` are the overrides below `topology.`.
struct ClusterPart {
  YamlValue ranks;
  std::uint32_t num_ranks = 1;
  std::uint32_t num_groups = 1;
  std::uint32_t decode_pool = 0;
  Reference topology;
  Cluster cluster;
};

ClusterPart read_cluster_part(YamlMap& map, const fs::path& folder,
                              const std::vector<Override>& extra) {
  ClusterPart part{map.required("ranks"), 1, 1, 0, {}, {}};
  part.num_ranks = static_cast<std::uint32_t>(part.ranks.as_integer(1, 1 << 20));
  if (const auto groups = map.optional("groups")) {
    part.num_groups = static_cast<std::uint32_t>(groups->as_integer(1, 1 << 20));
  }
  if (const auto pool = map.optional("decode_pool")) {
    part.decode_pool = static_cast<std::uint32_t>(pool->as_integer(1, 1 << 20));
  }
  const YamlValue topology = map.required("topology");
  part.topology =
      read_reference(topology, folder, topology_presets(),
                     "a preset's name (`coterie topology list`) or the path of a topology file");
  part.topology.overrides.insert(part.topology.overrides.end(), extra.begin(), extra.end());
  const std::uint64_t num_gpus = std::uint64_t{part.num_ranks} * part.num_groups + part.decode_pool;
  if (num_gpus > std::numeric_limits<std::uint32_t>::max()) {
    throw part.ranks.error(fmt::format("{} in all groups", counted(num_gpus, "GPU")),
                           "less than 2^32");
  }
  part.cluster = load_based(topology, [&] {
    return load_cluster(part.topology.name_or_path, part.topology.overrides,
                        static_cast<std::uint32_t>(num_gpus));
  });
  return part;
}

// That they fit at all is load_cluster's business.
void check_ranks(const Experiment& experiment, const YamlValue& ranks) {
  const Cluster& cluster = experiment.cluster;
  const bool whole_nodes = experiment.num_ranks % cluster.gpus_per_node == 0;
  const bool inside_node = cluster.gpus_per_node % experiment.num_ranks == 0;
  const bool one_part = experiment.num_ranks < cluster.gpus_per_node && experiment.num_groups == 1;
  if (!whole_nodes && !inside_node && !one_part) {
    throw ranks.error(
        fmt::format("{} per group on nodes of {}", counted(experiment.num_ranks, "rank"),
                    counted(cluster.gpus_per_node, "GPU")),
        "groups of whole nodes, or several whole groups per node");
  }
}

// The `step` block and what belongs to it. The cluster and the model are there.
void read_step_part(YamlMap& map, const YamlValue& value, Experiment& experiment) {
  if (experiment.num_groups > 1) {
    throw value.error("a step beside \"groups\"",
                      "no groups: a step's EP groups follow from its parallel sizes");
  }
  const std::uint32_t num_gpus = experiment.num_ranks;
  experiment.step = read_step(value, experiment.model, num_gpus);
  experiment.num_ranks = experiment.step->parallel.ep;
  experiment.tokens_per_rank = experiment.step->tokens_per_rank();
  if (const auto tokens = map.optional("tokens_per_rank")) {
    throw tokens->error("tokens_per_rank beside a step", "no such key: it follows from the batch");
  }
  if (const auto given = map.optional("disturbances")) {
    experiment.disturbances = read_disturbances(*given, num_gpus, experiment.cluster.num_nodes,
                                                experiment.cluster.gpus_per_node);
  }
}

// The document with what makes it independent of where it lies.
std::string effective_yaml(const fs::path& path, std::vector<Override> overrides,
                           const Experiment& experiment, const Reference& topology,
                           const Reference& model, const std::vector<YamlValue>& runs) {
  const auto absolute = [](const std::string& file) {
    return path_exists(file) ? absolute_path(file).string() : file;
  };
  const auto add_reference = [&](const std::string& key, const Reference& reference,
                                 bool is_preset) {
    const std::string name =
        quoted(is_preset ? reference.name_or_path : absolute(reference.name_or_path));
    if (reference.overrides.empty()) {
      overrides.push_back({key, name});
      return;
    }
    overrides.push_back({key, fmt::format("{{extends: {}}}", name)});
    for (const Override& override_ : reference.overrides) {
      overrides.push_back({key + "." + override_.key, override_.value});
    }
  };
  const auto is_preset = [](const auto& presets, const std::string& name) {
    return std::any_of(presets.begin(), presets.end(),
                       [&](const auto& preset) { return preset.name == name; });
  };
  overrides.push_back({"name", quoted(experiment.name)});
  add_reference("topology", topology, is_preset(topology_presets(), topology.name_or_path));
  add_reference("model", model, is_preset(model_presets(), model.name_or_path));
  if (const TransportChoice& transport = experiment.transport; !transport.settings.empty()) {
    overrides.push_back({"transport", transport.name
                                          ? fmt::format("{{name: {}}}", quoted(*transport.name))
                                          : std::string("{}")});
    for (const Override& setting : transport.settings) {
      overrides.push_back({"transport." + setting.key, setting.value});
    }
  }
  if (!experiment.trace.file.empty()) {
    overrides.push_back({"trace.file", quoted(absolute(experiment.trace.file.string()))});
  }
  const std::vector<std::string> strategies = placement_strategies();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const std::string& placement = experiment.runs[i].placement;
    if (std::find(strategies.begin(), strategies.end(), placement) == strategies.end()) {
      overrides.push_back({fmt::format("runs.{}.placement", i), quoted(absolute(placement))});
    }
  }
  return dump_yaml(load_yaml(path, overrides));
}

}  // namespace

Experiment load_experiment(const fs::path& path, const std::vector<Override>& overrides,
                           EffectiveYaml effective) {
  std::vector<Override> own = overrides;
  const std::vector<Override> topology_extra = split_off(own, "topology.");
  const std::vector<Override> model_extra = split_off(own, "model.");
  const std::vector<Override> transport_extra = split_off(own, "transport.", "name");
  const fs::path folder = path.parent_path();
  YamlMap map = load_yaml(path, own).as_map();

  const YamlValue version = map.required("schema_version");
  if (version.as_string() != "1") throw version.error(version.excerpt(), "1");
  Experiment experiment;
  experiment.name = path.stem().string();
  if (const auto name = map.optional("name")) experiment.name = name->as_string();
  ClusterPart part = read_cluster_part(map, folder, topology_extra);
  experiment.num_ranks = part.num_ranks;
  experiment.num_groups = part.num_groups;
  experiment.decode_pool = part.decode_pool;
  experiment.topology = part.topology.name_or_path;
  experiment.topology_overrides = part.topology.overrides;
  experiment.cluster = std::move(part.cluster);

  const YamlValue model_value = map.required("model");
  Reference model =
      read_reference(model_value, folder, model_presets(),
                     "a preset's name (`coterie model list`) or the path of a model file");
  model.overrides.insert(model.overrides.end(), model_extra.begin(), model_extra.end());
  experiment.model =
      load_based(model_value, [&] { return load_model(model.name_or_path, model.overrides); });

  if (const auto step = map.optional("step")) {
    read_step_part(map, *step, experiment);
  } else if (const auto given = map.optional("disturbances")) {
    throw given->error("disturbances of single layers", "a \"step\" block beside them");
  }
  check_ranks(experiment, part.ranks);
  if (experiment.decode_pool > 0 &&
      (!experiment.step || experiment.step->kind != StepKind::kPrefill)) {
    const YamlValue pool = map.required("decode_pool");
    throw pool.error(pool.excerpt(), "no such key but for a prefill step");
  }

  const bool recorded = !experiment.step || experiment.step->routing == StepRouting::kTrace;
  if (recorded || map.has("trace")) {
    const YamlValue trace = map.required("trace");
    if (!recorded) throw trace.error("a trace beside routing that is not recorded", "one of both");
    experiment.trace = read_trace(trace, folder);
  }
  read_settings(map, experiment);
  auto& settings = experiment.transport.settings;
  settings.insert(settings.end(), transport_extra.begin(), transport_extra.end());
  const YamlValue runs = map.required("runs");
  experiment.runs = read_runs(runs, folder, experiment.num_ranks);
  map.finish();
  for (std::size_t i = 0; experiment.step && i < experiment.runs.size(); ++i) {
    check_experts(*experiment.step, experiment.model, experiment.runs[i].num_replicas,
                  runs.as_list()[i]);
  }

  if (effective == EffectiveYaml::kMake) {
    experiment.effective_yaml =
        effective_yaml(path, own, experiment, part.topology, model, runs.as_list());
  }
  return experiment;
}

Cluster load_experiment_cluster(const std::string& yaml, const fs::path& where,
                                const std::vector<Override>& overrides) {
  std::vector<Override> own = overrides;
  const std::vector<Override> topology_extra = split_off(own, "topology.");
  (void)split_off(own, "model.");
  (void)split_off(own, "transport.", "name");
  YamlMap map = parse_yaml(yaml, where.string(), own).as_map();
  return read_cluster_part(map, where.parent_path(), topology_extra).cluster;
}

}  // namespace coterie
