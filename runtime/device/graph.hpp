#pragma once
// Work of one stream, and of what it forks to and joins with, captured once and launched many times.

#include <cuda_runtime_api.h>

#include <functional>

#include "runtime/device/errors.hpp"

namespace coterie {

class Graph {
 public:
  // What `enqueue` puts on `stream`, in place of running it. Events that it records and that others wait
  // for are edges of the graph; those that are to be read afterwards must be recorded as external ones.
  Graph(cudaStream_t stream, const std::function<void()>& enqueue) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      cudaGraphDestroy(graph);
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
    // So that the first launch need not wait for the device.
    check_cuda(cudaGraphUpload(graph_, stream), "cudaGraphUpload");
    check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
  ~Graph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(cudaStream_t stream) const {
    check_cuda(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace coterie
