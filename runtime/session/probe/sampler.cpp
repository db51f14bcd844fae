#include "runtime/session/probe/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <thread>

#include "core/statistics.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/device/errors.hpp"

namespace coterie {
namespace {

constexpr double kRestsFrom_s = 1e-3;

}  // namespace

Sampler::Sampler(ControlGroup& group, Communicator* communicator)
    : group_(group),
      communicator_(communicator),
      waited_(std::size(waiting_)),
      line_up_(2 * std::size_t{group.num_ranks()}) {
  line_up_.fill_bytes(0);
}

void Sampler::line_up() {
  if (communicator_ == nullptr) return;
  std::vector<Message> sends;
  std::vector<Message> receives;
  for (std::uint32_t peer = 0; peer < group_.num_ranks(); ++peer) {
    if (peer == group_.rank()) continue;
    sends.push_back({peer, line_up_.data() + peer, 1});
    receives.push_back({peer, line_up_.data() + group_.num_ranks() + peer, 1});
  }
  communicator_->exchange(sends, receives, main_.get());
}

std::vector<double> Sampler::pass(const std::string& name, std::span<const TimedWork> works,
                                  std::uint32_t num_samples, bool gated, bool among_streams,
                                  const std::function<void(cudaStream_t)>& before) {
  group_.watch_stage(fmt::format("samples of {}", name));
  while (events_.size() < 2 * works.size() * num_samples) events_.emplace_back();
  if (gated) gate_.close(main_.get());
  std::size_t next = 0;
  for (std::uint32_t i = 0; i < num_samples; ++i) {
    if (before) before(main_.get());
    line_up();
    fork_.record(main_.get());
    check_cuda(cudaStreamWaitEvent(beside_.get(), fork_.get()), "cudaStreamWaitEvent");
    const kernels::Event* last_beside = nullptr;
    for (const TimedWork& work : works) {
      const cudaStream_t stream = work.beside ? beside_.get() : main_.get();
      events_[next].record(stream);
      work.enqueue(stream);
      events_[next + 1].record(stream);
      if (work.beside) last_beside = &events_[next + 1];
      next += 2;
    }
    if (last_beside != nullptr) {
      check_cuda(cudaStreamWaitEvent(main_.get(), last_beside->get()), "cudaStreamWaitEvent");
    }
    for (std::size_t s = 0; among_streams && s < std::size(waiting_); ++s) {
      const cudaStream_t stream = waiting_[s].get();
      check_cuda(cudaStreamWaitEvent(stream, events_[next - 1].get()), "cudaStreamWaitEvent");
      // Without work behind it a wait need not reach the device.
      check_cuda(cudaMemsetAsync(waited_.data() + s, 0, 1, stream), "cudaMemsetAsync");
    }
  }
  fork_.record(main_.get());  // now the end of everything
  if (gated) {
    group_.barrier(fmt::format("opening of {}", name));
    gate_.open();
  }
  if (communicator_ != nullptr) {
    communicator_->wait_for(fork_);
  } else {
    fork_.synchronize();
  }
  std::vector<double> seconds;
  for (std::size_t i = 0; i < next; i += 2) {
    seconds.push_back(kernels::seconds_between(events_[i], events_[i + 1]));
  }
  return seconds;
}

std::vector<WorkSamples> Sampler::measure(const std::string& name, std::span<const TimedWork> works,
                                          const SampleLimits& limits,
                                          const std::function<void(cudaStream_t)>& before) {
  pass(name, works, 1, false, limits.among_streams, before);
  double total_s = 0.0;
  for (const double seconds : pass(name, works, 1, true, limits.among_streams, before))
    total_s += seconds;
  const auto wanted = static_cast<std::uint32_t>(
      std::clamp(limits.budget_s / std::max(total_s, 1e-6), static_cast<double>(limits.least),
                 static_cast<double>(std::max(limits.most, limits.least))));
  const bool would_rest = limits.rest > 0.0 && total_s > kRestsFrom_s;
  // All ranks do as rank 0 measured.
  const std::string decision =
      group_.broadcast(fmt::format("samples of {}", name),
                       Packer().number(wanted).number(would_rest ? 1U : limits.per_gate).take());
  Unpacker agreed(decision);
  const auto num_samples = agreed.number<std::uint32_t>();
  const auto per_gate = agreed.number<std::uint32_t>();
  const double rest = per_gate < limits.per_gate ? limits.rest : 0.0;
  std::vector<double> mine;
  for (std::uint32_t done = 0; done < num_samples;) {
    const std::uint32_t now = std::min(num_samples - done, per_gate);
    const auto seconds = pass(name, works, now, true, limits.among_streams, before);
    mine.insert(mine.end(), seconds.begin(), seconds.end());
    done += now;
    const double worked_s = std::accumulate(seconds.begin(), seconds.end(), 0.0);
    std::this_thread::sleep_for(std::chrono::duration<double>(rest * worked_s));
  }
  const auto all = group_.gather(fmt::format("times of {}", name), Packer().numbers(mine).take());
  std::vector<WorkSamples> samples(works.size());
  if (group_.rank() != 0) return samples;
  for (WorkSamples& entry : samples) {
    entry.slowest_us.assign(num_samples, 0.0);
    entry.fastest_us.assign(num_samples, std::numeric_limits<double>::infinity());
  }
  for (const std::string& blob : all) {
    const auto seconds = Unpacker(blob).numbers<double>();
    for (std::size_t i = 0; i < seconds.size(); ++i) {
      WorkSamples& entry = samples[i % works.size()];
      double& slowest = entry.slowest_us[i / works.size()];
      double& fastest = entry.fastest_us[i / works.size()];
      slowest = std::max(slowest, seconds[i] * 1e6);
      fastest = std::min(fastest, seconds[i] * 1e6);
    }
    for (std::size_t w = 0; w < works.size(); ++w) {
      std::vector<double> of_rank;
      for (std::size_t i = w; i < seconds.size(); i += works.size()) {
        of_rank.push_back(seconds[i] * 1e6);
      }
      samples[w].ranks_us.push_back(median(std::move(of_rank)));
    }
  }
  return samples;
}

}  // namespace coterie
