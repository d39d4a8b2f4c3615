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
  /// One row of a weight in the element type: to [cols]. scratch: [cols].
  void dequantise(const Weight& weight, int64_t row, float* scratch, std::byte* to) const;

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
  /// B is [k, n] (values); adds to C. `a_stride` elements between rows of A.
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

/// y = W x + bias, or y += W x + bias.
struct GemmJob {
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;  ///< null or an absent weight: none
  Rows y;                        ///< [rows, weight->rows]
  bool add = false;
};

/// Products of activations with quantised weights.
class Gemm {
 public:
  explicit Gemm(int threads);

  /// Most output columns of one panel.
  static constexpr int kPanel = 128;

  const GemmElements& elements() const { return elements_; }
  GemmKernel& kernel(int thread) { return *kernels_[thread]; }
  /// At least `bytes` of memory for the calling thread, of a region with at most `threads` threads, to use beside its
  /// kernel; kept for the next call.
  std::byte* scratch(size_t bytes);
  /// Makes room for `rows` rows and weights of at most `width` columns.
  void reserve(int rows, int width);

  /// Runs the jobs on the same rows x [rows, width] with all threads. `groups`: how many rows, one group behind the
  /// other, get what they get without the others. oneDNN's float32 products sum in an order that depends on how many
  /// rows there are, so each group is one of its own there; its bf16 products do not, unless their columns fill no
  /// whole vectors: then they are made like that, too.
  void run(std::span<const GemmJob> jobs, const std::byte* x, std::span<const int> groups);

  /// Both products of x with two weights of one shape: for each panel of output columns [first, first + count) calls
  /// `use(first, count, a, b)` on the thread that computed it; a and b [rows, count] are its own to change.
  using UsePair = std::function<void(int first, int count, float* a, float* b)>;
  void run_pair(const Weight& a, const Weight& b, const std::byte* x, std::span<const int> groups, const UsePair& use);

 private:
  struct Workspace {
    Buffer panel;       // [kPanel, width] elements
    Buffer row;         // [width] float32
    Buffer results[2];  // [rows, kPanel] float32
    Buffer scratch;
  };

  /// Columns of one panel of a product of `columns`.
  static int panel_columns(int64_t columns);
  /// Calls body(panel) for [0, panels) on all threads; the first exception comes out.
  void for_each_panel(int panels, const std::function<void(int panel)>& body);
  /// The calling thread's result [rows, count] of columns [first, first + count).
  float* panel_product(const Weight& weight, int first, int count, const std::byte* x, std::span<const int> groups,
                       int result);

  int threads_;
  int max_rows_ = 0;
  int max_width_ = 0;
  GemmElements elements_;
  std::vector<std::unique_ptr<GemmKernel>> kernels_;
  std::vector<Workspace> workspaces_;
};

}  // namespace tidal
