// Router logits of Hugging Face transformers (output_router_logits), dumped as JSON:
//   {"router_logits": [[[...experts] per token] per MoE layer], "top_k": k,
//    "layers": [numbers], "seq_len": [lengths], "e_score_correction_bias": [[...] per layer]}
// All but router_logits are optional (--model or --num-topk gives k). A layer that is null is
// dense: transformers puts None in the tuple for layers without a router. The model's choice of
// experts is made again:
//   softmax_topk    softmax over all experts, then the k best (Mixtral, Qwen, OLMoE, DeepSeek-V2)
//   topk_softmax    the k best logits, softmax over those (gpt-oss)
//   sigmoid_group   sigmoid plus bias, the best groups, then the k best in them (DeepSeek-V3, GLM);
//                   the weights are the sigmoids without bias, renormalised
// The bias is a model parameter and not in the logits: without it a warning is noted and choices
// near a tie differ from the model's.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

enum class Selection { kSoftmaxTopk, kTopkSoftmax, kSigmoidGroup };

Selection resolve_selection(const ImportOptions& options, const std::string& where) {
  if (options.selection == "softmax_topk") return Selection::kSoftmaxTopk;
  if (options.selection == "topk_softmax") return Selection::kTopkSoftmax;
  if (options.selection == "sigmoid_group") return Selection::kSigmoidGroup;
  if (!options.selection.empty()) {
    throw InputError("--selection", fmt::format("\"{}\"", options.selection),
                     "softmax_topk, topk_softmax or sigmoid_group");
  }
  if (options.model) {
    // The presets' notes begin with the score function or with what comes first.
    if (options.model->routing.starts_with("sigmoid")) return Selection::kSigmoidGroup;
    if (options.model->routing.starts_with("top-k")) return Selection::kTopkSoftmax;
    if (options.model->routing.starts_with("softmax")) return Selection::kSoftmaxTopk;
  }
  throw InputError(where, "logits without the model's way to choose from them",
                   "--selection or a --model whose routing is known");
}

struct Selector {
  Selection selection;
  std::size_t num_topk;
  std::size_t num_groups = 1;
  std::size_t num_topk_groups = 1;

  std::vector<std::int64_t> experts;  // of the last token
  std::vector<float> weights;

  void choose(const std::vector<float>& logits, const std::vector<float>& bias) {
    const std::size_t n = logits.size();
    std::vector<double> score(logits.begin(), logits.end());
    if (selection == Selection::kSigmoidGroup) {
      for (std::size_t e = 0; e < n; ++e) {
        score[e] = 1.0 / (1.0 + std::exp(-score[e])) + (bias.empty() ? 0.0F : bias[e]);
      }
      limit_groups(score);
    }
    std::vector<std::int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    const auto better = [&](std::int64_t a, std::int64_t b) {
      const double x = score[static_cast<std::size_t>(a)];
      const double y = score[static_cast<std::size_t>(b)];
      return x != y ? x > y : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(num_topk),
                      order.end(), better);
    experts.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(num_topk));
    weigh(logits);
  }

 private:
  // Scores of experts outside the best groups become minus infinity.
  void limit_groups(std::vector<double>& score) const {
    if (num_groups <= 1 || num_topk_groups >= num_groups) return;
    const std::size_t size = score.size() / num_groups;
    std::vector<std::pair<double, std::size_t>> groups;
    for (std::size_t g = 0; g < num_groups; ++g) {
      std::vector<double> inside(score.begin() + static_cast<std::ptrdiff_t>(g * size),
                                 score.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
      std::sort(inside.rbegin(), inside.rend());
      groups.emplace_back(-(inside[0] + (size > 1 ? inside[1] : 0.0)), g);
    }
    std::sort(groups.begin(), groups.end());
    for (std::size_t i = num_topk_groups; i < num_groups; ++i) {
      const std::size_t g = groups[i].second;
      std::fill_n(score.begin() + static_cast<std::ptrdiff_t>(g * size), size, -HUGE_VAL);
    }
  }

  void weigh(const std::vector<float>& logits) {
    const double top = *std::max_element(logits.begin(), logits.end());
    const auto raw = [&](std::int64_t e) {
      const double logit = logits[static_cast<std::size_t>(e)];
      return selection == Selection::kSigmoidGroup ? 1.0 / (1.0 + std::exp(-logit))
                                                   : std::exp(logit - top);
    };
    double sum = 0.0;
    if (selection == Selection::kSoftmaxTopk) {
      for (std::size_t e = 0; e < logits.size(); ++e) sum += raw(static_cast<std::int64_t>(e));
    } else {
      for (const std::int64_t e : experts) sum += raw(e);
    }
    weights.clear();
    for (const std::int64_t e : experts) weights.push_back(static_cast<float>(raw(e) / sum));
  }
};

Selector make_selector(const nlohmann::json& document, const ImportOptions& options,
                       const std::string& where) {
  Selector selector;
  selector.selection = resolve_selection(options, where);
  if (document.contains("top_k")) {
    selector.num_topk =
        static_cast<std::size_t>(json_integer(document["top_k"], 1, kMaxTopk, where + ": top_k"));
  } else if (options.num_topk) {
    selector.num_topk = *options.num_topk;
  } else if (options.model) {
    selector.num_topk = options.model->num_topk;
  } else {
    throw InputError(where, "no top_k", "it in the input, or --num-topk or --model");
  }
  if (options.model) {
    selector.num_groups = options.model->num_groups;
    selector.num_topk_groups = options.model->num_topk_groups;
  }
  return selector;
}

std::vector<std::uint64_t> sequence_of_token(const nlohmann::json& document, std::size_t num_tokens,
                                             const std::string& where) {
  if (!document.contains("seq_len")) return std::vector<std::uint64_t>(num_tokens, 0);
  std::vector<std::uint64_t> sequence;
  std::uint64_t number = 0;
  for (const nlohmann::json& length : document["seq_len"]) {
    const auto left = static_cast<std::int64_t>(num_tokens - sequence.size());
    sequence.insert(sequence.end(),
                    static_cast<std::size_t>(json_integer(length, 0, left, where + ": seq_len")),
                    number++);
  }
  if (sequence.size() != num_tokens) {
    throw InputError(where + ": seq_len",
                     fmt::format("{} in all", counted(sequence.size(), "token")),
                     fmt::format("{} as router_logits has", num_tokens));
  }
  return sequence;
}

// Numbers of all entries of router_logits, null ones included.
std::vector<std::uint32_t> layers_of(const nlohmann::json& document, std::size_t num_layers,
                                     const ImportOptions& options, const std::string& name) {
  std::vector<std::uint32_t> layers;
  if (document.contains("layers")) {
    for (const nlohmann::json& layer : document["layers"]) {
      layers.push_back(
          static_cast<std::uint32_t>(json_integer(layer, 0, 100000, name + ": layers")));
    }
  } else {
    layers = resolve_layers(num_layers, options, name);
  }
  if (layers.size() != num_layers) {
    throw InputError(name + ": layers", fmt::format("{} numbers", layers.size()),
                     fmt::format("{} as router_logits has layers", num_layers));
  }
  return layers;
}

// What DeepSeek-V3 and GLM add to the scores of one layer for the choice, [num_experts].
std::vector<float> bias_of(const nlohmann::json& document, std::size_t layer_idx,
                           std::size_t num_layers, std::uint32_t num_experts,
                           const std::string& name) {
  const std::string place = name + ": e_score_correction_bias";
  const nlohmann::json& rows = document["e_score_correction_bias"];
  if (!rows.is_array() || rows.size() != num_layers) {
    throw InputError(place, counted(rows.size(), "row"),
                     fmt::format("{} as router_logits has layers", num_layers));
  }
  std::vector<float> bias = json_numbers(rows[layer_idx], place);
  if (bias.size() != num_experts) {
    throw InputError(place, fmt::format("{} numbers", bias.size()),
                     fmt::format("{} as there are experts", num_experts));
  }
  return bias;
}

// [tokens][experts] of numbers, neither empty.
void check_layer_shape(const nlohmann::json& layer, std::size_t l, const std::string& name) {
  const std::string place = fmt::format("{}: router_logits[{}]", name, l);
  if (!layer.is_array() || layer.empty() || !layer.front().is_array() || layer.front().empty()) {
    throw InputError(place, "no tokens, or no experts of a token", "[tokens][experts]");
  }
  if (layer.front().front().is_array()) {
    throw InputError(place, "a further dimension ([batch][tokens][experts])",
                     "[tokens][experts]: the sequences of the batch one after the other (in "
                     "PyTorch: logits.flatten(0, 1)), with their lengths as \"seq_len\"");
  }
}

}  // namespace

bool is_hf_json(const FileHead& head) {
  return head.text.find("\"router_logits\"") != std::string::npos;
}

Imported import_hf_json(const std::filesystem::path& path, const ImportOptions& options) {
  const std::string name = path.string();
  const nlohmann::json document = parse_json(read_file(path), name);
  const nlohmann::json& logits = json_member(document, "router_logits", name);
  if (!logits.is_array() || logits.empty()) {
    throw InputError(name + ": router_logits", "no layers", "[layers][tokens][experts]");
  }
  std::vector<std::size_t> routed;  // positions of the layers that are not null
  for (std::size_t l = 0; l < logits.size(); ++l) {
    if (!logits[l].is_null()) routed.push_back(l);
  }
  if (routed.empty()) {
    throw InputError(name + ": router_logits", "null in place of every layer",
                     "logits of at least one");
  }
  for (const std::size_t l : routed) check_layer_shape(logits[l], l, name);
  const nlohmann::json& first = logits[routed.front()];
  Selector selector = make_selector(document, options, name);
  const std::size_t num_tokens = first.size();
  const std::uint32_t num_experts = resolve_num_experts(
      static_cast<std::uint32_t>(std::min<std::size_t>(first.front().size(), kMaxExperts)), options,
      name);
  if (selector.num_topk > num_experts || num_experts % selector.num_groups != 0) {
    throw InputError(
        name,
        fmt::format("top-{} of {} in {}", selector.num_topk, counted(num_experts, "expert"),
                    counted(selector.num_groups, "group")),
        "no more than there are, in equal groups");
  }
  const auto sequence = sequence_of_token(document, num_tokens, name);
  const std::vector<std::uint32_t> layers = layers_of(document, logits.size(), options, name);
  const bool biased = document.contains("e_score_correction_bias");
  RowTable table;
  for (const std::size_t l : routed) {
    const std::vector<float> bias =
        biased ? bias_of(document, l, logits.size(), num_experts, name) : std::vector<float>{};
    const std::string layer_place = fmt::format("{}: router_logits[{}]", name, l);
    if (!logits[l].is_array() || logits[l].size() != num_tokens) {
      throw InputError(layer_place, counted(logits[l].size(), "token"),
                       fmt::format("{} as in the first layer", num_tokens));
    }
    for (std::size_t token = 0; token < num_tokens; ++token) {
      const std::string place = fmt::format("{}[{}]", layer_place, token);
      const std::vector<float> row = json_numbers(logits[l][token], place);
      if (row.size() != num_experts) {
        throw InputError(place, fmt::format("{} logits", row.size()),
                         fmt::format("{} as there are experts", num_experts));
      }
      selector.choose(row, bias);
      table.add(sequence[token], token, layers[l], selector.experts, selector.weights, place);
    }
  }
  Imported imported = table.finish(num_experts, options, name);
  if (routed.size() < logits.size()) {
    imported.notes.push_back(fmt::format("left out {} whose logits are null (dense layers)",
                                         counted(logits.size() - routed.size(), "layer")));
  }
  if (!document.contains("seq_len")) {
    imported.notes.emplace_back(
        "without \"seq_len\" all tokens count as one sequence: what prompts they are from cannot "
        "be known");
  }
  if (selector.selection == Selection::kSigmoidGroup && !biased) {
    imported.notes.push_back(
        "the selection bias is not in the logits: choices near a tie may differ from the model's");
  }
  return imported;
}

}  // namespace coterie
