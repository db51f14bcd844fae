#include "workloads/trace/generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "core/counted.hpp"
#include "core/random.hpp"
#include "workloads/model.hpp"

namespace coterie {
namespace {

// Streams of the seed: one per sequence, and one per layer for what all its tokens share.
constexpr std::uint64_t kLayerStream = std::uint64_t{1} << 40;

struct Scored {
  double score = 0.0;
  ExpertIdx expert = 0;
};
bool better(const Scored& a, const Scored& b) {
  return a.score != b.score ? a.score > b.score : a.expert < b.expert;
}

// Taking the k best of log(weight) + Gumbel noise is drawing k without replacement with these
// weights (Gumbel top-k; Kool, van Hoof and Welling 2019).
double gumbel(Random& random) {
  double u = random.uniform();
  while (u == 0.0) u = random.uniform();
  return -std::log(-std::log(u));
}

std::vector<ExpertIdx> shuffled_experts(const WorkloadSpec& spec, std::size_t layer_idx) {
  std::vector<ExpertIdx> experts(spec.num_experts);
  std::iota(experts.begin(), experts.end(), ExpertIdx{0});
  Random random(spec.seed, kLayerStream + layer_idx);
  random.shuffle(std::span(experts));
  return experts;
}

// The router weights of a token: softmax over its chosen scores, which descend.
void append_weights(std::span<const Scored> chosen, std::vector<float>& weights) {
  double sum = 0.0;
  for (const Scored& one : chosen) sum += std::exp(one.score - chosen.front().score);
  for (const Scored& one : chosen) {
    weights.push_back(static_cast<float>(std::exp(one.score - chosen.front().score) / sum));
  }
}

// Chooses the experts of one token in one layer; `chosen` has num_topk places and ends up in router
// order, by descending score.
class Router {
 public:
  virtual ~Router() = default;
  virtual void begin_sequence(Random& random) = 0;
  virtual void begin_token(Random& random) = 0;
  virtual void choose(std::size_t layer_idx, Random& random, std::span<Scored> chosen) = 0;
};

// uniform, zipf and group_limited: every expert gets a score, the best are taken.
class ScoreRouter : public Router {
 public:
  explicit ScoreRouter(const WorkloadSpec& spec)
      : spec_(spec),
        sequence_share_(std::sqrt(spec.sequence_correlation)),
        layer_share_(std::sqrt(spec.layer_correlation)),
        own_share_(
            std::sqrt(std::max(0.0, 1.0 - spec.sequence_correlation - spec.layer_correlation))),
        scores_(spec.num_experts) {
    base_.assign(spec.layers.size(), std::vector<double>(spec.num_experts, 0.0));
    if (const auto* zipf = std::get_if<ZipfKind>(&spec.kind)) {
      for (std::size_t layer_idx = 0; layer_idx < spec.layers.size(); ++layer_idx) {
        const auto ranking = shuffled_experts(spec, layer_idx);
        for (std::size_t r = 0; r < ranking.size(); ++r) {
          base_[layer_idx][ranking[r]] = -zipf->exponent * std::log(static_cast<double>(r + 1));
        }
      }
    }
  }

  void begin_sequence(Random& random) override {
    if (sequence_share_ > 0.0) draw(random, spec_.layers.size() * spec_.num_experts, sequence_);
  }
  void begin_token(Random& random) override {
    if (layer_share_ > 0.0) draw(random, spec_.num_experts, token_);
  }
  void choose(std::size_t layer_idx, Random& random, std::span<Scored> chosen) override {
    for (std::uint32_t e = 0; e < spec_.num_experts; ++e) {
      double score = base_[layer_idx][e];
      if (own_share_ > 0.0) score += own_share_ * gumbel(random);
      if (sequence_share_ > 0.0) {
        score += sequence_share_ * sequence_[layer_idx * spec_.num_experts + e];
      }
      if (layer_share_ > 0.0) score += layer_share_ * token_[e];
      scores_[e] = {score, static_cast<ExpertIdx>(e)};
    }
    auto end = scores_.end();
    if (const auto* groups = std::get_if<GroupLimitedKind>(&spec_.kind)) {
      end = keep_best_groups(*groups, random);
    }
    const auto middle = scores_.begin() + static_cast<std::ptrdiff_t>(chosen.size());
    std::partial_sort(scores_.begin(), middle, end, better);
    std::copy(scores_.begin(), middle, chosen.begin());
  }

 private:
  static void draw(Random& random, std::size_t count, std::vector<double>& values) {
    values.resize(count);
    for (double& value : values) value = gumbel(random);
  }

  // Moves the experts of the allowed groups to the front and returns their end.
  std::vector<Scored>::iterator keep_best_groups(const GroupLimitedKind& kind, Random& random) {
    const std::uint32_t size = spec_.num_experts / kind.num_groups;
    std::vector<Scored>& groups = groups_;
    groups.resize(kind.num_groups);
    for (std::uint32_t g = 0; g < kind.num_groups; ++g) {
      double best = -HUGE_VAL;
      double second = -HUGE_VAL;
      for (std::uint32_t e = g * size; e < (g + 1) * size; ++e) {
        second = std::max(second, std::min(best, scores_[e].score));
        best = std::max(best, scores_[e].score);
      }
      double score = best;
      if (kind.score == GroupScore::kRandom) score = random.uniform();
      // DeepSeek-V3 adds affinities in (0, 1): the sigmoid keeps one giant from deciding alone.
      if (kind.score == GroupScore::kBestTwo) score = sigmoid(best) + sigmoid(second);
      groups[g] = {score, static_cast<ExpertIdx>(g)};
    }
    std::sort(groups.begin(), groups.end(), better);
    std::sort(groups.begin(), groups.begin() + kind.num_topk_groups,
              [](const Scored& a, const Scored& b) { return a.expert < b.expert; });
    auto end = scores_.begin();
    for (std::uint32_t i = 0; i < kind.num_topk_groups; ++i) {
      const auto from = scores_.begin() + static_cast<std::ptrdiff_t>(groups[i].expert) * size;
      end = std::copy(from, from + size, end);
    }
    return end;
  }
  static double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

  const WorkloadSpec& spec_;
  double sequence_share_, layer_share_, own_share_;
  std::vector<std::vector<double>> base_;  // [layers][experts] log weights
  std::vector<double> sequence_;           // [layers * experts] noise of the sequence
  std::vector<double> token_;              // [experts] noise of the token, all layers
  std::vector<Scored> scores_;
  std::vector<Scored> groups_;
};

class PlantedRouter : public Router {
 public:
  explicit PlantedRouter(const WorkloadSpec& spec)
      : spec_(spec), kind_(std::get<PlantedKind>(spec.kind)), taken_(spec.num_experts, 0) {
    for (std::size_t layer_idx = 0; layer_idx < spec.layers.size(); ++layer_idx) {
      const auto experts = shuffled_experts(spec, layer_idx);
      members_.emplace_back(kind_.num_groups);
      for (std::size_t i = 0; i < experts.size(); ++i) {
        members_.back()[i * kind_.num_groups / experts.size()].push_back(experts[i]);
      }
    }
    double sum = 0.0;
    for (std::uint32_t g = 0; g < kind_.num_groups; ++g) {
      sum += std::pow(static_cast<double>(g + 1), -kind_.exponent);
      cumulative_.push_back(sum);
    }
  }

  void begin_sequence(Random& random) override { sequence_group_ = draw_group(random); }
  void begin_token(Random& /*random*/) override { first_layer_ = true; }
  void choose(std::size_t layer_idx, Random& random, std::span<Scored> chosen) override {
    if (first_layer_ || random.uniform() >= spec_.layer_correlation) {
      const bool common = random.uniform() < spec_.sequence_correlation;
      group_ = common ? sequence_group_ : draw_group(random);
    }
    first_layer_ = false;
    const std::vector<ExpertIdx>& members = members_[layer_idx][group_];
    std::size_t free_members = members.size();
    for (Scored& one : chosen) {
      const bool inside = free_members > 0 && random.uniform() < kind_.strength;
      do {
        one.expert = inside ? members[random.index(members.size())]
                            : static_cast<ExpertIdx>(random.index(spec_.num_experts));
      } while (taken_[one.expert] != 0);
      taken_[one.expert] = 1;
      if (std::find(members.begin(), members.end(), one.expert) != members.end()) --free_members;
      one.score = gumbel(random);
    }
    for (const Scored& one : chosen) taken_[one.expert] = 0;
    std::sort(chosen.begin(), chosen.end(), better);
  }

 private:
  std::uint32_t draw_group(Random& random) const {
    const double at = random.uniform() * cumulative_.back();
    const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), at);
    return static_cast<std::uint32_t>(
        std::min<std::ptrdiff_t>(found - cumulative_.begin(), kind_.num_groups - 1));
  }

  const WorkloadSpec& spec_;
  PlantedKind kind_;
  std::vector<std::vector<std::vector<ExpertIdx>>> members_;  // [layers][groups]
  std::vector<double> cumulative_;                            // [groups]
  std::vector<char> taken_;                                   // [experts]
  std::uint32_t sequence_group_ = 0;
  std::uint32_t group_ = 0;
  bool first_layer_ = true;
};

// ---------------------------------------------------------------- the YAML form

decltype(WorkloadSpec::kind) read_kind(const YamlValue& value, const WorkloadSpec& spec) {
  YamlMap map = value.as_map();
  const std::size_t kind =
      map.required("kind").as_choice({"uniform", "zipf", "group_limited", "planted"});
  if (kind == 0) {
    map.finish();
    return UniformKind{};
  }
  if (kind == 1) {
    ZipfKind zipf;
    zipf.exponent = map.required("exponent").as_number(0.0, 10.0);
    map.finish();
    return zipf;
  }
  const YamlValue groups = map.required("num_groups");
  const auto num_groups = static_cast<std::uint32_t>(groups.as_integer(1, spec.num_experts));
  if (kind == 3) {
    PlantedKind planted;
    planted.num_groups = num_groups;
    planted.strength = map.required("strength").as_number(0.0, 1.0);
    if (const auto exponent = map.optional("exponent")) {
      planted.exponent = exponent->as_number(0.0, 10.0);
    }
    map.finish();
    return planted;
  }
  GroupLimitedKind limited;
  limited.num_groups = num_groups;
  if (spec.num_experts % num_groups != 0) {
    throw groups.error(groups.excerpt(),
                       fmt::format("a divisor of {}", counted(spec.num_experts, "expert")));
  }
  const YamlValue allowed = map.required("num_topk_groups");
  limited.num_topk_groups = static_cast<std::uint32_t>(allowed.as_integer(1, num_groups));
  if (spec.num_experts / num_groups * limited.num_topk_groups < spec.num_topk) {
    throw allowed.error(allowed.excerpt(), fmt::format("groups that hold at least {}",
                                                       counted(spec.num_topk, "expert")));
  }
  if (const auto score = map.optional("score")) {
    limited.score = static_cast<GroupScore>(score->as_choice({"random", "best_one", "best_two"}));
  }
  map.finish();
  return limited;
}

void read_shape(YamlMap& map, WorkloadSpec& spec) {
  // Either a model's shape or the three numbers themselves.
  if (const auto model_name = map.optional("model")) {
    const ModelShape model = load_model(model_name->as_string());
    spec.num_experts = model.num_experts;
    spec.num_topk = model.num_topk;
    spec.layers = model.moe_layers;
  } else {
    spec.num_experts =
        static_cast<std::uint32_t>(map.required("num_experts").as_integer(1, kMaxExperts));
    spec.num_topk = static_cast<std::uint32_t>(
        map.required("num_topk").as_integer(1, std::min<std::int64_t>(kMaxTopk, spec.num_experts)));
  }
  const auto layers = map.optional("layers");
  if (!layers) {
    if (spec.layers.empty()) (void)map.required("layers");
    return;
  }
  spec.layers.clear();
  for (const YamlValue& item : layers->as_list()) {
    const auto layer = static_cast<std::uint32_t>(item.as_integer(0, 100000));
    if (!spec.layers.empty() && layer <= spec.layers.back()) {
      throw item.error(item.excerpt(), "ascending layer numbers");
    }
    spec.layers.push_back(layer);
  }
  if (spec.layers.empty()) throw layers->error("an empty list", "at least one layer");
}

}  // namespace

WorkloadSpec read_workload(const YamlValue& document) {
  constexpr std::int64_t kMaxTokens = std::int64_t{1} << 30;
  YamlMap map = document.as_map();
  WorkloadSpec spec;
  (void)map.required("schema_version").as_integer(1, 1);
  spec.name = map.required("name").as_string();
  spec.seed = static_cast<std::uint64_t>(
      map.required("seed").as_integer(0, std::numeric_limits<std::int64_t>::max()));
  read_shape(map, spec);

  YamlMap sequences = map.required("sequences").as_map();
  spec.num_sequences =
      static_cast<std::uint32_t>(sequences.required("count").as_integer(1, 100'000'000));
  const YamlValue tokens = sequences.required("tokens");
  if (tokens.is_map()) {
    YamlMap range = tokens.as_map();
    spec.min_tokens = static_cast<std::uint32_t>(range.required("min").as_integer(1, kMaxTokens));
    spec.max_tokens =
        static_cast<std::uint32_t>(range.required("max").as_integer(spec.min_tokens, kMaxTokens));
    range.finish();
  } else {
    spec.min_tokens = static_cast<std::uint32_t>(tokens.as_integer(1, kMaxTokens));
    spec.max_tokens = spec.min_tokens;
  }
  sequences.finish();

  if (const auto weights = map.optional("weights")) spec.weights = weights->as_bool();
  spec.kind = read_kind(map.required("routing"), spec);
  if (const auto correlation = map.optional("correlation")) {
    YamlMap shares = correlation->as_map();
    if (const auto share = shares.optional("sequence")) {
      spec.sequence_correlation = share->as_number(0.0, 1.0);
    }
    if (const auto share = shares.optional("layer")) {
      spec.layer_correlation = share->as_number(0.0, 1.0);
    }
    shares.finish();
    const bool planted = std::holds_alternative<PlantedKind>(spec.kind);
    if (!planted && spec.sequence_correlation + spec.layer_correlation > 1.0) {
      throw correlation->error(
          fmt::format("shares of {} and {}", spec.sequence_correlation, spec.layer_correlation),
          "shares that add up to at most 1");
    }
  }
  map.finish();
  return spec;
}

Routing generate(const WorkloadSpec& spec) {
  Routing routing;
  routing.model = spec.name;
  routing.origin = fmt::format("generated from {}, seed {}", spec.name, spec.seed);
  routing.num_experts = spec.num_experts;
  routing.num_topk = spec.num_topk;
  routing.layers = spec.layers;
  routing.sequence_begin.push_back(0);
  Random lengths(spec.seed, kLayerStream - 1);
  for (std::uint32_t i = 0; i < spec.num_sequences; ++i) {
    const std::uint64_t extra = lengths.index(spec.max_tokens - spec.min_tokens + 1ULL);
    routing.sequence_begin.push_back(routing.sequence_begin.back() + spec.min_tokens + extra);
  }
  const std::uint64_t num_tokens = routing.num_tokens();
  const std::size_t k = spec.num_topk;
  routing.experts.resize(routing.num_layers() * num_tokens * k);
  if (spec.weights) routing.weights.resize(routing.experts.size());

  std::unique_ptr<Router> router;
  if (std::holds_alternative<PlantedKind>(spec.kind)) {
    router = std::make_unique<PlantedRouter>(spec);
  } else {
    router = std::make_unique<ScoreRouter>(spec);
  }
  std::vector<Scored> chosen(k);
  std::vector<float> weights;
  for (std::size_t sequence = 0; sequence < routing.num_sequences(); ++sequence) {
    Random random(spec.seed, sequence);
    router->begin_sequence(random);
    for (std::uint64_t token = routing.sequence_begin[sequence];
         token < routing.sequence_begin[sequence + 1]; ++token) {
      router->begin_token(random);
      for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
        router->choose(layer_idx, random, chosen);
        const std::size_t row = (layer_idx * num_tokens + token) * k;
        for (std::size_t i = 0; i < k; ++i) routing.experts[row + i] = chosen[i].expert;
        if (!spec.weights) continue;
        weights.clear();
        append_weights(chosen, weights);
        std::copy(weights.begin(), weights.end(),
                  routing.weights.begin() + static_cast<std::ptrdiff_t>(row));
      }
    }
  }
  return routing;
}

}  // namespace coterie
