// What the benches of matrices, experts and the delta rule share: device memory, random numbers, weights, inputs as the
// backend makes them, what is wanted, and time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/products/elementwise.h"
#include "backend/cuda/products/matmul_skinny.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/shared_memory.h"
#include "backend/cuda/weights/quantised.h"

namespace {

using namespace tidal::cuda;  // NOLINT: part of a program of one file
using Half = __nv_bfloat16;

cudaStream_t stream;

void must(cudaError_t code) { check(code, "the benchmark"); }

template <typename T>
struct Device {
  T* data = nullptr;
  size_t count = 0;

  explicit Device(size_t n) : count(n) { must(cudaMalloc(&data, std::max<size_t>(n, 64) * sizeof(T))); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) {
    must(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  std::vector<T> read() const {
    must(cudaStreamSynchronize(stream));
    std::vector<T> host(count);
    must(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
};

struct Random {
  uint64_t state = 1;
  float operator()() {  // -1 to 1
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
  std::vector<float> floats(size_t n, float scale, float centre = 0) {
    std::vector<float> v(n);
    for (float& x : v) x = centre + scale * (*this)();
    return v;
  }
  std::vector<Half> halves(size_t n, float scale) {
    std::vector<Half> v(n);
    for (Half& x : v) x = __float2bfloat16(scale * (*this)());
    return v;
  }
};

/// Rows of x as the backend hands them over: float32 where the product takes that, rounded by a launch before
/// otherwise.
struct Input {
  Device<float> x, norm, factors, squares;
  Device<Half> rounded_x;
  Device<std::byte> packed;

  Input(const std::vector<float>& host_x, const std::vector<float>& host_norm, int rows)
      : x(host_x),
        norm(host_norm),
        factors(rows),
        squares(rows * (host_x.size() / rows + 15) / 16 + rows),
        rounded_x(host_x.size()),
        packed(skinny_packed_bytes(rows, static_cast<int>(host_x.size()) / rows)) {}
  SkinnyInput get(int rows, int cols, bool with_norm, bool quantised = false) {
    if (!skinny_takes_floats(rows, cols, quantised)) return rounded(rows, cols, with_norm, quantised);
    SkinnyInput in;
    in.x = x.data;
    in.norm = with_norm ? norm.data : nullptr;
    in.epsilon = 1e-5f;
    return in;
  }
  SkinnyInput rounded(int rows, int cols, bool with_norm, bool packs = false) {
    launch_round({.x = x.data,
                  .norm = with_norm ? norm.data : nullptr,
                  .epsilon = 1e-5f,
                  .rows = rows,
                  .cols = cols,
                  .rounded = rounded_x.data,
                  .factors = factors.data,
                  .packed = packs ? packed.data : nullptr,
                  .squares = squares.data},
                 stream);
    SkinnyInput in;
    in.epsilon = 1e-5f;
    if (packs) {
      in.packed = packed.data;
      if (with_norm) in.squares = squares.data;
    } else {
      in.rounded = rounded_x.data;
      if (with_norm) in.factors = factors.data;
    }
    return in;
  }
};

/// Milliseconds of one launch of `body(i)`, i = 0 .. count - 1, as one graph; median of 9.
double time_graph(int count, const std::function<void(int)>& body) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  for (int i = 0; i < std::min(count, 2); ++i) body(i);  // loads the code
  must(cudaStreamSynchronize(stream));
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) body(i);
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin));
  must(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    must(cudaEventRecord(begin, stream));
    must(cudaGraphLaunch(exec, stream));
    must(cudaEventRecord(end, stream));
    must(cudaEventSynchronize(end));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end));
    if (i > 2) times.push_back(ms);
  }
  must(cudaGraphExecDestroy(exec));
  must(cudaGraphDestroy(graph));
  must(cudaEventDestroy(begin));
  must(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / count;
}

__global__ void fill(Half* data, size_t n) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    data[i] = __float2bfloat16(static_cast<float>((static_cast<uint32_t>(i) * 2654435761u) >> 20) * 1e-5f - 0.02f);
  }
}

/// Any finite numbers, whatever of a tile they are.
__global__ void fill_tiles(uint32_t* data, size_t n) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
    bits = (bits ^ bits >> 15) * 2246822519u;
    data[i] = (bits ^ bits >> 13) & 0x3b3b3b3bu;
  }
}

size_t bytes_of(ggml_type type, size_t rows, size_t cols) {
  return type == GGML_TYPE_BF16 ? rows * cols * 2 : tiled_bytes(type, rows, cols);
}

/// Matrices of one type, as DeviceWeights keeps them.
struct Weights {
  ggml_type type;
  Device<uint32_t> data;

  Weights(ggml_type type, size_t bytes) : type(type), data(bytes / 4) {
    if (type == GGML_TYPE_BF16) {
      fill<<<2048, 256, 0, stream>>>(reinterpret_cast<Half*>(data.data), bytes / 2);
    } else {
      fill_tiles<<<2048, 256, 0, stream>>>(data.data, bytes / 4);
    }
  }
  SkinnyMatrix at(size_t bytes) const { return {reinterpret_cast<const std::byte*>(data.data) + bytes, type}; }
};

/// What of a bench is to run, as its arguments say: types by ggml's names, subjects, and `small`.
struct Wanted {
  std::vector<ggml_type> types;
  std::vector<std::string> subjects;

  /// Of these types where none is named.
  Wanted(const std::vector<std::string>& parts, const std::vector<ggml_type>& usual) {
    for (const std::string& part : parts) {
      const auto type = static_cast<ggml_type>(type_named(part));
      if (part == "small") {
        limit_shared_memory(kLeastSharedMemory);
      } else if (type < GGML_TYPE_COUNT) {
        types.push_back(type);
      } else {
        subjects.push_back(part);
      }
    }
    if (types.empty()) types = usual;
  }
  bool operator()(const char* subject) const {
    return subjects.empty() || std::find(subjects.begin(), subjects.end(), subject) != subjects.end();
  }

 private:
  static int type_named(const std::string& name) {
    int type = 0;
    while (type < GGML_TYPE_COUNT &&
           (!ggml_type_name(static_cast<ggml_type>(type)) || name != ggml_type_name(static_cast<ggml_type>(type)))) {
      ++type;
    }
    return type;
  }
};

/// A bench's main(): what run() throws is said, and is exit code 1.
inline int run_program(void (*run)(const std::vector<std::string>&), int count, char** arguments) {
  try {
    run({arguments + 1, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
