#pragma once
// Times of kernels for the benchmarks of kernels: calls in a CUDA graph, so that no launch waits for the
// host.

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

#include "kernels/cuda.hpp"

namespace coterie::kernels {

// Median seconds per call of call(0), call(1), ... that each enqueue on the stream, over `replays` of a
// graph of `calls` of them.
inline double time_calls(const Stream& stream, int replays, int calls,
                         const std::function<void(std::size_t, cudaStream_t)>& call) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  call(0, stream.get());  // loads the module outside the capture
  stream.synchronize();
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call(static_cast<std::size_t>(i), stream.get());
  check(cudaStreamEndCapture(stream.get(), &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  const Event begin;
  const Event end;
  std::vector<double> times;
  for (int i = -2; i < replays; ++i) {
    begin.record(stream.get());
    check(cudaGraphLaunch(executable, stream.get()), "cudaGraphLaunch");
    end.record(stream.get());
    stream.synchronize();
    if (i >= 0) times.push_back(seconds_between(begin, end) / calls);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace coterie::kernels
