// Products of a few rows with matrices in bf16 or quantised, limited by the rate at which the matrix can be read. A
// row's result does not depend, bit for bit, on how many rows there are.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "backend/hyperparameters.h"

namespace tidal::cuda {

/// Up to this many rows of float32 input are normed and rounded inside the product itself. More would be read too often
/// (once per multiprocessor): launch_round() does it beforehand.
inline constexpr int kFusedRows = 4;  // with bf16; with quantised matrices 1

/// Up to this many rows one launch does with bf16; more read W again. On devices of less than kQuantisedMemory half as
/// many.
inline constexpr int kSkinnyRows = 32;

/// A matrix as DeviceWeights keeps it: bf16, row-major, at a multiple of 16 bytes; or in tiles (weights/quantised.h).
struct SkinnyMatrix {
  const std::byte* data = nullptr;
  ggml_type type = GGML_TYPE_BF16;

  SkinnyMatrix() = default;
  SkinnyMatrix(const std::byte* data, ggml_type type) : data(data), type(type) {}
  SkinnyMatrix(const __nv_bfloat16* data)  // NOLINT(google-explicit-constructor)
      : data(reinterpret_cast<const std::byte*>(data)) {}
};

/// The rows that are multiplied: rounded to bf16, and each result multiplied with the row's factor afterwards, so that
/// an RMS norm y = W (x * weight) / rms(x) needs one look at x.
struct SkinnyInput {
  // Either float32, at most kFusedRows rows ...
  const float* x = nullptr;          ///< [rows, cols], or more rows with row_ids
  const float* norm = nullptr;       ///< [cols], weight of an RMS norm; null: none
  const int32_t* row_ids = nullptr;  ///< [rows], rows of x; null: 0, 1, ...
  float epsilon = 0;                 ///< of the norm
  // ... or what launch_round() made, or the product before (SkinnyNext).
  const __nv_bfloat16* rounded = nullptr;  ///< [rows, cols]
  const float* factors = nullptr;          ///< [rows]; null: 1 or
  const float* squares = nullptr;          ///< [rows, (cols + 15) / 16], SkinnyNext's: factors from these
  // ... or, for quantised matrices, what launch_round() packed: several rows are packed by the launch otherwise.
  const std::byte* packed = nullptr;  ///< skinny_packed_bytes(rows, cols); with `factors` or `squares`
  std::byte* scratch = nullptr;       ///< room for that of kQuantisedRows rows
};

/// Up to this many rows one launch does with a quantised matrix; on devices of less than kQuantisedMemory half as many.
inline constexpr int kQuantisedRows = 16;

/// The bytes of packed rows (packed_rows.cuh).
int64_t skinny_packed_bytes(int rows, int cols);

/// The results as the product behind takes them, normed: one launch less. The same bits as from float32.
struct SkinnyNext {
  const float* norm = nullptr;       ///< [w_rows], weight of its RMS norm
  __nv_bfloat16* rounded = nullptr;  ///< [rows, w_rows]; null: not wanted
  float* squares = nullptr;          ///< [rows, (w_rows + 15) / 16], sums of the squares of 16 results each
};

/// y = W x (+ bias), or y += W x (+ bias).
struct SkinnyRows {
  SkinnyInput in;
  SkinnyMatrix w;               ///< [w_rows, cols]
  const float* bias = nullptr;  ///< [w_rows]; optional
  float* y = nullptr;           ///< [rows, w_rows]
  int rows = 0, cols = 0, w_rows = 0;
  bool add = false;
  SkinnyNext next;
  __nv_bfloat16* hidden = nullptr;  ///< [rows, w_rows], instead of y, which is read: activated y and W x + bias
  Activation activation = Activation::Silu;  ///< of `hidden`
};

/// hidden = what `activation` says of gate x and up x.
struct SkinnyGateUp {
  SkinnyInput in;
  Activation activation = Activation::Silu;
  SkinnyMatrix gate, up;                                 ///< [ffn, cols], of one type
  const float *gate_bias = nullptr, *up_bias = nullptr;  ///< [ffn]; optional
  __nv_bfloat16* hidden = nullptr;                       ///< [rows, ffn]
  int rows = 0, cols = 0, ffn = 0;
};

/// Where rotated heads go. Without it raw products are written, for rope_append().
struct SkinnyRope {
  const float2* angles = nullptr;  ///< [rows, dims / 2], cosine and sine
  const int32_t* slots = nullptr;  ///< [rows], block * 64 + offset of the row's position
  __nv_bfloat16* kv = nullptr;     ///< KvLayer::data
  int kv_heads = 0, head_dim = 0;  ///< head_dim a multiple of 16
  int dims = 0;                    ///< a multiple of 16
  bool halves = false;             ///< pairing: (i, i + dims / 2), else (2i, 2i + 1)
};

struct SkinnyQkv {
  SkinnyInput in;
  SkinnyMatrix w[3];          ///< q [q_width, cols], k and v [kv_width, cols]; of any types, v or both may be absent
  const float* bias[3] = {};  ///< optional
  float* q = nullptr;         ///< [rows, q_width]
  float *k_raw = nullptr, *v_raw = nullptr;  ///< [rows, kv_width]; of no account with `rope`
  int rows = 0, cols = 0, q_width = 0, kv_width = 0;
  bool fused = false;  ///< whether `rope` holds
  SkinnyRope rope;
};

/// Whether so many rows may be given as float32; with quantised matrices one.
bool skinny_takes_floats(int rows, int cols, bool quantised);
/// Any number of rows when the input is `rounded`.
void launch_skinny_rows(const SkinnyRows& params, cudaStream_t stream);
void launch_skinny_gate_up(const SkinnyGateUp& params, cudaStream_t stream);
void launch_skinny_qkv(const SkinnyQkv& params, cudaStream_t stream);

}  // namespace tidal::cuda
