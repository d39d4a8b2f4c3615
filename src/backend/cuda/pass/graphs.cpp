#include "backend/cuda/pass/graphs.h"

#include <algorithm>

#include "backend/cuda/runtime/error.h"

namespace tidal::cuda {
namespace {

/// One for every number of sequences that decode together, and some for what tidal does beside.
constexpr size_t kMostEntries = 64;
constexpr const char* kWhat = "making a graph of a decode step";

Graph capture(cudaStream_t stream, const std::function<void()>& launch) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), kWhat);
  cudaGraph_t captured = nullptr;
  try {
    launch();
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);
    const Graph unused(captured);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), kWhat);
  return Graph(captured);
}

GraphExec instantiate(cudaGraph_t graph) {
  cudaGraphExec_t made = nullptr;
  check(cudaGraphInstantiate(&made, graph, 0), kWhat);
  return GraphExec(made);
}

int count_kernels(cudaGraph_t graph) {
  size_t count = 0;
  check(cudaGraphGetNodes(graph, nullptr, &count), kWhat);
  std::vector<cudaGraphNode_t> nodes(count);
  check(cudaGraphGetNodes(graph, nodes.data(), &count), kWhat);
  return static_cast<int>(std::count_if(nodes.begin(), nodes.end(), [](cudaGraphNode_t node) {
    cudaGraphNodeType type{};
    check(cudaGraphNodeGetType(node, &type), kWhat);
    return type == cudaGraphNodeTypeKernel;
  }));
}

}  // namespace

Graphs::Entry* Graphs::find(const OpList& list) {
  const auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.list == list; });
  return entry == entries_.end() ? nullptr : &*entry;
}

void Graphs::remember(const OpList& list) {
  if (entries_.size() == kMostEntries) {
    entries_.erase(std::min_element(entries_.begin(), entries_.end(),
                                    [](const Entry& a, const Entry& b) { return a.used < b.used; }));
  }
  Entry entry;
  entry.list = list;
  entry.used = now_;
  entries_.push_back(std::move(entry));
}

void Graphs::run(const OpList& list, cudaStream_t stream, const std::function<void()>& launch) {
  ++now_;
  Entry* entry = find(list);
  if (!entry) {
    launch();
    remember(list);
    return;
  }
  entry->used = now_;
  if (!entry->graph) {
    const Graph graph = capture(stream, launch);
    ++captured_;
    kernels_ = count_kernels(graph);
    entry->graph = instantiate(graph);
  }
  check(cudaGraphLaunch(entry->graph, stream), "launching the graph of a decode step");
}

}  // namespace tidal::cuda
