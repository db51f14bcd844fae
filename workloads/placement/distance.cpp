#include "workloads/placement/distance.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <thread>

#include "core/error.hpp"

namespace coterie {

void for_each_layer(unsigned num_jobs, std::size_t num_layers,
                    const std::function<void(std::size_t)>& body) {
  std::vector<std::exception_ptr> errors(num_layers);
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < num_layers; i = next++) {
      try {
        body(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> helpers;
  const std::size_t num_threads = std::min<std::size_t>(
      num_layers, num_jobs > 0 ? num_jobs : std::max(1u, std::thread::hardware_concurrency()));
  for (std::size_t i = 1; i < num_threads; ++i) helpers.emplace_back(work);
  work();
  helpers.clear();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

std::vector<FanOutDistance> fan_out_distance(const Routing& routing, const Placement& placement,
                                             const std::vector<double>& reached,
                                             std::optional<double> max_imbalance,
                                             BoundEffort effort, unsigned num_jobs) {
  std::vector<FanOutDistance> result(routing.num_layers());
  for_each_layer(num_jobs, routing.num_layers(), [&](std::size_t i) {
    const LayerPlacement& layer = placement.layers.at(i);
    std::size_t slots = 0;
    std::size_t most = 0;
    std::vector<std::uint32_t> known(routing.num_experts, 0);
    for (std::uint32_t rank = 0; rank < layer.rank_experts.size(); ++rank) {
      slots += layer.rank_experts[rank].size();
      most = std::max(most, layer.rank_experts[rank].size());
      for (const ExpertIdx expert : layer.rank_experts[rank]) known.at(expert) = rank;
    }
    const auto num_tokens = static_cast<double>(routing.num_tokens());
    FanOutBoundTask task;
    task.effort = effort;
    task.experts = routing.layer_experts(i);
    task.num_topk = routing.num_topk;
    task.num_experts = routing.num_experts;
    task.part_capacity = static_cast<std::uint32_t>(most);
    task.num_replicas = static_cast<std::uint32_t>(slots - routing.num_experts);
    if (max_imbalance) {
      task.max_load = *max_imbalance * num_tokens * routing.num_topk /
                      static_cast<double>(layer.rank_experts.size());
    }
    task.known = known;
    task.known_fan_out = static_cast<std::uint64_t>(std::llround(reached.at(i) * num_tokens));
    result[i] = {reached.at(i), static_cast<double>(fan_out_bound(task)) / num_tokens};
  });
  return result;
}

FanOutDistance mean_distance(const std::vector<FanOutDistance>& layers) {
  FanOutDistance mean;
  for (const FanOutDistance& layer : layers) {
    mean.reached += layer.reached / static_cast<double>(layers.size());
    mean.bound += layer.bound / static_cast<double>(layers.size());
  }
  return mean;
}

}  // namespace coterie
