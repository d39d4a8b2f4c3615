// What a pass does to rows beside products and attention.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/runtime/step_tables.h"
#include "backend/hyperparameters.h"

namespace tidal::cuda {

/// Cosines and sines of all rows, and where their keys go.
struct AnglesParams {
  StepTables tables;
  const double* frequencies = nullptr;  ///< [pairs], radians per position
  float magnitude = 1;
  int rows = 0, pairs = 0;
  float2* angles = nullptr;  ///< [rows, pairs], magnitude * (cosine, sine)
  int32_t* slots = nullptr;  ///< [rows], block * 64 + position % 64
};
/// The first launches of a pass, one a rope: start when all before is done.
void launch_angles(const AnglesParams& params, cudaStream_t stream);

/// x [rows, width] = rows of `embedding` [vocab, width]; width a multiple of 8.
void launch_embed(const __nv_bfloat16* embedding, const int32_t* tokens, int rows, int width, float* x,
                  cudaStream_t stream);

/// values [count] *= factor.
void launch_scale(float* values, int64_t count, float factor, cudaStream_t stream);

/// The same with a factor [1] in device memory.
void launch_scale(float* values, int64_t count, const float* factor, cudaStream_t stream);

/// values [count] get a soft cap: cap * tanh(value / cap).
void launch_cap(float* values, int64_t count, float cap, cudaStream_t stream);

/// q [rows, width] *= Hyperparameters::temperature() of each row's position.
struct TemperatureParams {
  const int32_t* positions = nullptr;  ///< [rows]
  float query_scale = 1, scale = 0;
  int length = 1, rows = 0, width = 0;
  float* q = nullptr;
};
void launch_temperature(const TemperatureParams& params, cudaStream_t stream);

/// x [rows, width] += the RMS norm of `given` [rows, width], with its weight, then times `scale`; width a multiple
/// of 8.
struct AddNormedParams {
  const float *given = nullptr, *norm = nullptr;
  const float* scale = nullptr;  ///< [1], device memory; optional
  float epsilon = 0;
  int rows = 0, width = 0;
  float* x = nullptr;
};
void launch_add_normed(const AddNormedParams& params, cudaStream_t stream);

/// x [rows, width] += norm(shared_norm(shared) + chosen_norm(chosen)), Experts::own_norms' way; all [rows, width],
/// width a multiple of 8.
struct AddExpertsParams {
  const float *shared = nullptr, *chosen = nullptr;
  const float *shared_norm = nullptr, *chosen_norm = nullptr, *norm = nullptr;  ///< [width]; optional
  float epsilon = 0;
  int rows = 0, width = 0;
  float* x = nullptr;
};
void launch_add_experts(const AddExpertsParams& params, cudaStream_t stream);

/// inputs [rows, layers * count] = (norm(inputs / sqrt(width)) + sqrt(count) * embedding) / sqrt(2), that norm layer by
/// layer: Backend::layer_inputs().
struct LayerInputsParams {
  const float* embedding = nullptr;  ///< [rows, layers * count], of the rows' tokens
  const float* norm = nullptr;       ///< [count]
  float epsilon = 0;
  int rows = 0, layers = 0, count = 0, width = 0;
  float* inputs = nullptr;
};
void launch_layer_inputs(const LayerInputsParams& params, cudaStream_t stream);

/// hidden [rows, count] = what `activation` says of gate [rows, count] and a layer's part of each row's inputs.
struct InputHiddenParams {
  Activation activation = Activation::Silu;
  const float* gate = nullptr;
  const float* inputs = nullptr;  ///< [rows, count], a row every `stride` elements
  int rows = 0, count = 0, stride = 0;
  __nv_bfloat16* hidden = nullptr;
};
void launch_input_hidden(const InputHiddenParams& params, cudaStream_t stream);

/// Rows rounded to bf16 for a product.
struct RoundParams {
  const float* x = nullptr;          ///< [.., cols], float32; cols a multiple of 8
  const int32_t* row_ids = nullptr;  ///< [rows], rows of x; null: 0, 1, ...
  const float* norm = nullptr;       ///< [cols], weight of an RMS norm; null: none
  float epsilon = 0;
  int rows = 0, cols = 0;
  __nv_bfloat16* rounded = nullptr;  ///< [rows, cols]: x * norm, with `whole` x * norm / rms(x)
  float* factors = nullptr;          ///< [rows], 1 / rms(x); written with a norm and without `whole`
  bool whole = false;
  // Instead of `rounded` and `factors`; not `whole`:
  std::byte* packed = nullptr;  ///< the same, packed (skinny_packed_bytes())
  float* squares = nullptr;     ///< [rows, (cols + 15) / 16], with a norm: SkinnyNext's
};
void launch_round(const RoundParams& params, cudaStream_t stream);

/// hidden = what `activation` says of gate + bias and up + bias, times the row's factor where there are any.
struct HiddenParams {
  Activation activation = Activation::Silu;
  const __nv_bfloat16 *gate = nullptr, *up = nullptr;    ///< [rows, ffn], a row every `stride` elements
  const float *gate_bias = nullptr, *up_bias = nullptr;  ///< [ffn]; optional
  const float* factors = nullptr;                        ///< [rows]; optional
  __nv_bfloat16* hidden = nullptr;                       ///< [rows, ffn]
  int rows = 0, ffn = 0, stride = 0;                     ///< multiples of 8 but `rows`
};
void launch_hidden(const HiddenParams& params, cudaStream_t stream);

/// x [rows, width] += bias [width].
void launch_add_bias(float* x, const float* bias, int rows, int width, cudaStream_t stream);

/// Raw products to q and the cache: bias, norm, rotation.
struct RopeAppendParams {
  const float *q_raw = nullptr, *k_raw = nullptr, *v_raw = nullptr;  ///< rows of heads, a row every `.._stride` floats
  int q_stride = 0, kv_stride = 0;
  const float* bias[3] = {};                                      ///< of q, k, v; optional
  const float *q_norm = nullptr, *k_norm = nullptr;               ///< [head_dim], or of rows; optional
  bool norms_rows = false;                                        ///< all heads of a row as one: weights are as long
  bool norms_values = false;                                      ///< heads of v, by no weights
  float epsilon = 0;                                              ///< of the norms
  const float2* angles = nullptr;                                 ///< [rows, dims / 2]
  const int32_t* slots = nullptr;                                 ///< [rows]
  float* q = nullptr;                                             ///< [rows, heads * head_dim], may be q_raw
  std::byte* kv = nullptr;                                        ///< KvLayer::data
  KvType type = KvType::Bf16;                                     ///< KvLayer::type
  int64_t row_bytes = 0;                                          ///< KvLayer::row_bytes()
  int rows = 0, heads = 0, kv_heads = 0, head_dim = 0, dims = 0;  ///< no KV heads: q alone
  bool halves = false;                                            ///< pairing: (i, i + dims / 2), else (2i, 2i + 1)
  float query_scale = 1;                                          ///< of q, behind its rotation
  const float* key_units = nullptr;                               ///< key_units_of(); optional
  int group = 1;                                                  ///< heads of q that share a KV head
};
void launch_rope_append(const RopeAppendParams& params, cudaStream_t stream);

}  // namespace tidal::cuda
