// The ends of layers that have norms or inputs of their own (Gemma 4): what the two halves of a mixture add, and what a
// layer gets of the token itself.
#include "backend/cuda/products/activation.cuh"
#include "backend/cuda/products/elementwise.h"
#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

__device__ inline float4 weight_of(const float* norm, int i) {
  return norm ? __ldg(reinterpret_cast<const float4*>(norm) + i) : make_float4(1, 1, 1, 1);
}
__device__ inline float4 times(float4 v, float factor, float4 w) {
  return make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
}
__device__ inline float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

/// A block has a row.
__global__ void __launch_bounds__(kRowThreads) add_experts_kernel(const __grid_constant__ AddExpertsParams p) {
  __shared__ float warps[3][kRowThreads / 32];
  let_next_start();
  wait_for_previous();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * p.width;
  const auto* shared = reinterpret_cast<const float4*>(p.shared + at);
  const auto* chosen = reinterpret_cast<const float4*>(p.chosen + at);
  auto* x = reinterpret_cast<float4*>(p.x + at);
  float shared_squares = 0, chosen_squares = 0;
  for (int i = threadIdx.x; i < p.width / 4; i += kRowThreads) {
    shared_squares = add_squares(__ldcg(shared + i), shared_squares);
    chosen_squares = add_squares(__ldcg(chosen + i), chosen_squares);
  }
  float of_shared = block_norm_factor(shared_squares, warps[0], p.width, p.epsilon);
  float of_chosen = block_norm_factor(chosen_squares, warps[1], p.width, p.epsilon);
  if (!p.shared_norm) of_shared = 1;
  if (!p.chosen_norm) of_chosen = 1;
  const auto sum_of = [&](int i) {
    return plus(times(__ldcg(shared + i), of_shared, weight_of(p.shared_norm, i)),
                times(__ldcg(chosen + i), of_chosen, weight_of(p.chosen_norm, i)));
  };
  float squares = 0;
  for (int i = threadIdx.x; i < p.width / 4; i += kRowThreads) squares = add_squares(sum_of(i), squares);
  float factor = block_norm_factor(squares, warps[2], p.width, p.epsilon);
  if (!p.norm) factor = 1;
  for (int i = threadIdx.x; i < p.width / 4; i += kRowThreads) {
    x[i] = plus(x[i], times(sum_of(i), factor, weight_of(p.norm, i)));
  }
}

/// A warp has a layer's part of a row; the grid is (layers in eights, rows).
__global__ void __launch_bounds__(kRowThreads) layer_inputs_kernel(const __grid_constant__ LayerInputsParams p) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, layer = static_cast<int>(blockIdx.x * (kRowThreads / 32) + threadIdx.x / 32);
  if (layer >= p.layers) return;
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * p.layers + layer) * p.count;
  const float* const embedding = p.embedding + at;
  float* const inputs = p.inputs + at;
  const float width_root = sqrtf(static_cast<float>(p.width)), root = sqrtf(static_cast<float>(p.count));
  constexpr float kHalfRoot = 0.70710678f;  // 1 / sqrt(2)
  float squares = 0;
  for (int i = lane; i < p.count; i += 32) {
    const float value = __ldcg(inputs + i) / width_root;
    squares = fmaf(value, value, squares);
  }
  const float factor = 1.0f / sqrtf(tree_sum<1, 16>(squares) / static_cast<float>(p.count) + p.epsilon);
  for (int i = lane; i < p.count; i += 32) {
    const float normed = __ldcg(inputs + i) / width_root * factor * __ldg(p.norm + i);
    inputs[i] = fmaf(root, __ldcg(embedding + i), normed) * kHalfRoot;
  }
}

__global__ void input_hidden_kernel(const __grid_constant__ InputHiddenParams p) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t row = blockIdx.y;
  if (i >= p.count) return;
  const float hidden =
      activated(p.activation, __ldcg(p.gate + row * p.count + i), __ldcg(p.inputs + row * p.stride + i));
  p.hidden[row * p.count + i] = __float2bfloat16_rn(hidden);
}

}  // namespace

void launch_add_experts(const AddExpertsParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  launch("norms behind experts", Start::Early, add_experts_kernel, dim3(params.rows), dim3(kRowThreads), 0, stream,
         params);
}

void launch_layer_inputs(const LayerInputsParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  constexpr int kLayers = kRowThreads / 32;
  launch("the layers' inputs", Start::Early, layer_inputs_kernel,
         dim3((params.layers + kLayers - 1) / kLayers, params.rows), dim3(kRowThreads), 0, stream, params);
}

void launch_input_hidden(const InputHiddenParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  launch("the gate of a layer's input", Start::Early, input_hidden_kernel,
         dim3((params.count + 127) / 128, params.rows), dim3(128), 0, stream, params);
}

}  // namespace tidal::cuda
