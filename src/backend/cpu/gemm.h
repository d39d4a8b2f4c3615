// Matrix products of many rows: weights dequantised panel by panel, multiplied by oneDNN, the way to prefill.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "backend/batch.h"
#include "backend/weights.h"
#include "core/buffer.h"

namespace tidal {

/// The element type of oneDNN's products on this machine: bf16 where the processor multiplies it (AVX512-BF16, AMX),
/// else float32. Elements are stored back to back in either case.
class GemmElements {
 public:
  GemmElements();
  bool bf16() const { return bf16_; }
  size_t bytes() const { return bf16_ ? 2 : 4; }
  /// Converts float32 to the element type.
  void store(const float* from, int count, std::byte* to) const;

 private:
  bool bf16_;
};

/// Single-threaded C [m, n] = A [m, k] * B for use inside a parallel region; primitives are made once per shape.
class GemmKernel {
 public:
  explicit GemmKernel(const GemmElements& elements);
  ~GemmKernel();

  /// B is [n, k], each row one output column (a weight panel, or keys). `c_stride` floats between rows of C.
  void rows_by_rows(int m, int n, int k, const std::byte* a, const std::byte* b, float* c, int c_stride);
  /// B is [k, n] (values); adds to C.
  void accumulate(int m, int n, int k, const std::byte* a, int a_stride, const std::byte* b, float* c);

 private:
  struct Primitive;
  enum class Kind { RowsByRows, Accumulate };
  Primitive& primitive(Kind kind, int m, int n, int k, int stride);

  GemmElements elements_;
  struct Library;
  std::unique_ptr<Library> library_;
  std::map<std::tuple<Kind, int, int, int, int>, std::unique_ptr<Primitive>> primitives_;
};

/// Products of activations with quantised weights.
class Gemm {
 public:
  explicit Gemm(int threads);

  /// Output columns of one panel.
  static constexpr int kPanel = 128;

  const GemmElements& elements() const { return elements_; }
  GemmKernel& kernel(int thread) { return *kernels_[thread]; }
  /// Makes room for `rows` rows and weights of at most `width` columns.
  void reserve(int rows, int width);

  /// For each panel of output columns [first, first + count) calls `use(first, count, results)` on the thread that
  /// computed it; results[w] [rows, kPanel] is x times weight w's panel. All weights have the same shape.
  using Use = std::function<void(int first, int count, std::span<const float* const> results)>;
  void run(std::span<const Weight* const> weights, const std::byte* x, int rows, const Use& use);

  static constexpr int kMaxWeights = 2;

 private:
  struct Workspace {
    Buffer panel;    // [kPanel, width] elements
    Buffer row;      // [width] float32
    Buffer results;  // [kMaxWeights][rows, kPanel] float32
  };

  int threads_;
  int max_rows_ = 0;
  int max_width_ = 0;
  GemmElements elements_;
  std::vector<std::unique_ptr<GemmKernel>> kernels_;
  std::vector<Workspace> workspaces_;
};

}  // namespace tidal
