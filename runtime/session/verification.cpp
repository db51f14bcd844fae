#include "runtime/session/verification.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "runtime/control/channel.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/executor/shared_experts.hpp"

namespace coterie {
namespace {

std::optional<std::string> judge(const PlannedRun& planned, const RunCheck& check) {
  const std::string& name = planned.prepared.spec.name;
  if (!check.plan_difference.empty()) {
    return fmt::format("run {}: {}", name, check.plan_difference);
  }
  for (std::size_t i = 0; i < check.layers.size(); ++i) {
    const std::uint32_t layer = planned.plans[i].layer;
    const double reference = check.layers[i].reference.relative();
    const double baseline = check.layers[i].baseline.relative();
    // Written so that NaN fails.
    if (!(reference <= kReferenceTolerance)) {
      return fmt::format(
          "run {}: layer {} is off the CPU reference by {:.3g} (relative norm), "
          "allowed are {:g}",
          name, layer, reference, kReferenceTolerance);
    }
    if (!(baseline <= kExactnessTolerance)) {
      return fmt::format(
          "run {}: layer {} is off standard + contiguous by {:.3g} (relative "
          "norm), allowed are {:g}",
          name, layer, baseline, kExactnessTolerance);
    }
  }
  return std::nullopt;
}

}  // namespace

void Verifier::keep_baseline(const PlannedRun& baseline) {
  exact_samples_ = sample(baseline);
  baseline_outputs_.clear();
  for (std::size_t i = 0; i < baseline.plans.size(); ++i) {
    baseline_outputs_.push_back(executor_.output(i));
  }
}

// The tokens' experts and weights come from the plan's routing, not from the layouts.
Verifier::Samples Verifier::sample(const PlannedRun& planned) {
  group_.set_stage("reference on the CPU");
  Samples samples;
  const LayerPlan& first = planned.plans.front();
  const std::uint64_t begin = first.token_begin[group_.rank()];
  const std::uint64_t num_tokens = first.token_begin[group_.rank() + 1] - begin;
  const std::uint64_t num_samples = std::min<std::uint64_t>(num_check_tokens_, num_tokens);
  for (std::uint64_t i = 0; i < num_samples; ++i) {
    samples.tokens.push_back(i * num_tokens / num_samples);
  }
  const auto tokens = make_tokens(shape_.seed, group_.rank(),
                                  static_cast<std::uint32_t>(num_tokens), shape_.mlp.hidden);
  for (const LayerPlan& layer : planned.plans) {
    std::vector<TokenRequest> requests;
    std::vector<std::span<const kernels::Bf16>> own_rows;
    for (const std::size_t token : samples.tokens) {
      own_rows.push_back(std::span(tokens).subspan(token * shape_.mlp.hidden, shape_.mlp.hidden));
      TokenRequest request;
      request.values = wire_values(own_rows.back(), shape_.dispatch);
      for (std::size_t j = 0; j < layer.num_topk; ++j) {
        const std::size_t at = (begin + token) * layer.num_topk + j;
        request.experts.push_back(layer.experts[at]);
        request.weights.push_back(layer.weights.empty() ? 1.0F / static_cast<float>(layer.num_topk)
                                                        : layer.weights[at]);
      }
      requests.push_back(std::move(request));
    }
    samples.outputs.push_back(
        reference_outputs(shape_.mlp, shape_.seed, layer.layer, requests, shape_.experts));
    add_shared_outputs(shape_, layer.layer, own_rows, samples.outputs.back());
  }
  return samples;
}

RunCheck Verifier::verify(const PlannedRun& planned) {
  std::optional<Samples> own_samples;
  if (!planned.prepared.exact) own_samples = sample(planned);
  const Samples& samples = own_samples ? *own_samples : exact_samples_;
  group_.set_stage("check of the outputs");
  const std::size_t hidden = shape_.mlp.hidden;
  Packer packer;
  std::string difference;
  for (std::size_t i = 0; i < planned.plans.size(); ++i) {
    std::vector<float> output = executor_.output(i);
    // The first token is always among the samples.
    if (!output.empty() && fault_point(group_.rank(), "output")) output.front() += 100.0F;
    LayerCheck check;
    for (std::size_t s = 0; s < samples.tokens.size(); ++s) {
      for (std::size_t h = 0; h < hidden; ++h) {
        check.reference.add(output[samples.tokens[s] * hidden + h], samples.outputs[i][s][h]);
      }
    }
    if (planned.prepared.exact) {
      for (std::size_t e = 0; e < output.size(); ++e) {
        check.baseline.add(output[e], baseline_outputs_[i][e]);
      }
    }
    for (const ErrorNorm& norm : {check.reference, check.baseline}) {
      packer.number(norm.difference).number(norm.reference);
    }
    if (const auto found = executor_.compare_with_plan(i); found && difference.empty()) {
      difference = *found;
    }
  }
  packer.text(difference);

  RunCheck result;
  result.layers.resize(planned.plans.size());
  for (const std::string& bytes : group_.all_gather("check of the outputs", packer.take())) {
    Unpacker unpacker(bytes);
    for (LayerCheck& layer : result.layers) {
      for (ErrorNorm* norm : {&layer.reference, &layer.baseline}) {
        norm->difference += unpacker.number<double>();
        norm->reference += unpacker.number<double>();
      }
    }
    const std::string text = unpacker.text();
    if (result.plan_difference.empty()) result.plan_difference = text;
  }
  result.failure = judge(planned, result);
  return result;
}

}  // namespace coterie
