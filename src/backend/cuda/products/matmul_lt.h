// Products of many rows by cuBLASLt, which is loaded when it is first needed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

namespace tidal::cuda {

/// y = x W^T, or y += x W^T; sums in float32.
struct LtProduct {
  const __nv_bfloat16* x = nullptr;  ///< [rows, cols]
  const __nv_bfloat16* w = nullptr;  ///< [w_rows, cols]
  void* y = nullptr;                 ///< [rows, w_rows], a row every `stride` elements; float32, or bf16
  int rows = 0, cols = 0, w_rows = 0, stride = 0;
  bool rounded = false;  ///< y is bf16
  bool add = false;
};

class LtMatmul {
 public:
  static constexpr int64_t kWorkspace = int64_t{32} << 20;  ///< bytes

  LtMatmul();
  ~LtMatmul();
  LtMatmul(const LtMatmul&) = delete;
  LtMatmul& operator=(const LtMatmul&) = delete;

  /// `workspace` [kWorkspace bytes] of device memory. Throws Error when the library is missing or has no way to compute
  /// this. Which algorithm it takes is asked once a shape.
  void multiply(const LtProduct& product, void* workspace, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::cuda
