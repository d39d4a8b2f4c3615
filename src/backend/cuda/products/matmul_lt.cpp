#include "backend/cuda/products/matmul_lt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <compare>
#include <map>
#include <string>

#include "core/error.h"

namespace tidal::cuda {
namespace {

/// The few functions of the library that are used, found at run time: machines without it can still decode.
class Library {
 public:
  static const Library& get() {
    static const Library library;
    return library;
  }

// NOLINTNEXTLINE(bugprone-macro-parentheses): a declared name cannot stand in parentheses
#define TIDAL_LT(name) decltype(&cublasLt##name) name = load<decltype(&cublasLt##name)>("cublasLt" #name)
 private:
  void* handle_ = open();

 public:
  TIDAL_LT(Create);
  TIDAL_LT(Destroy);
  TIDAL_LT(MatmulDescCreate);
  TIDAL_LT(MatmulDescDestroy);
  TIDAL_LT(MatmulDescSetAttribute);
  TIDAL_LT(MatrixLayoutCreate);
  TIDAL_LT(MatrixLayoutDestroy);
  TIDAL_LT(MatmulPreferenceCreate);
  TIDAL_LT(MatmulPreferenceDestroy);
  TIDAL_LT(MatmulPreferenceSetAttribute);
  TIDAL_LT(MatmulAlgoGetHeuristic);
  TIDAL_LT(Matmul);
#undef TIDAL_LT

 private:
  static void* open() {
    // The functions' signatures are the same in both.
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return handle;
    }
    fail(
        "cuda backend: libcublasLt.so.13 cannot be loaded ({}), expected the CUDA runtime libraries on the library "
        "path",
        dlerror());
  }
  template <typename Function>
  Function load(const char* name) const {
    void* symbol = dlsym(handle_, name);
    if (!symbol) fail("cuda backend: libcublasLt has no {}, expected that of CUDA 12 or 13", name);
    return reinterpret_cast<Function>(symbol);
  }
};

void check(cublasStatus_t status, const LtProduct& p) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail("cuda backend: cuBLASLt failed with status {} at a product of {} rows with a matrix of {} x {}",
       static_cast<int>(status), p.rows, p.w_rows, p.cols);
}

/// Bytes that the rows of an operand are aligned to, 16 at most: no algorithm wants more, and how a chunk is computed
/// must not depend on where in a batch it lies.
uint32_t alignment(const void* pointer, int64_t row_bytes) {
  const auto bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uintptr_t>(row_bytes) | 16;
  return static_cast<uint32_t>(bits & -bits);
}

struct Key {
  int rows, cols, w_rows, stride;
  bool rounded, add;
  uint32_t x_alignment, w_alignment, y_alignment;
  auto operator<=>(const Key&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 sees a 0 in it
};

/// How one shape is computed. The library sees column-major matrices: y^T [w_rows, rows] = W x^T, W transposed.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, const LtProduct& p, const Key& key) {
    const Library& lt = Library::get();
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType_t y_type = p.rounded ? CUDA_R_16BF : CUDA_R_32F;
    check(lt.MatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F), p);
    check(lt.MatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)), p);
    check(lt.MatrixLayoutCreate(&w_, CUDA_R_16BF, p.cols, p.w_rows, p.cols), p);
    check(lt.MatrixLayoutCreate(&x_, CUDA_R_16BF, p.cols, p.rows, p.cols), p);
    check(lt.MatrixLayoutCreate(&y_, y_type, p.w_rows, p.rows, p.stride), p);
    cublasLtMatmulPreference_t preference = nullptr;
    check(lt.MatmulPreferenceCreate(&preference), p);
    const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, cublasStatus_t (*)(cublasLtMatmulPreference_t)> owner(
        preference, lt.MatmulPreferenceDestroy);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(lt.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), p);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(LtMatmul::kWorkspace));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.w_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.x_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.y_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.y_alignment);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    check(lt.MatmulAlgoGetHeuristic(handle, desc_, w_, x_, y_, y_, preference, 1, &result, &found), p);
    if (found == 0) check(CUBLAS_STATUS_NOT_SUPPORTED, p);
    algorithm_ = result.algo;
  }
  ~Plan() {
    const Library& lt = Library::get();
    if (y_) lt.MatrixLayoutDestroy(y_);
    if (x_) lt.MatrixLayoutDestroy(x_);
    if (w_) lt.MatrixLayoutDestroy(w_);
    if (desc_) lt.MatmulDescDestroy(desc_);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void run(cublasLtHandle_t handle, const LtProduct& p, void* workspace, cudaStream_t stream) const {
    const float one = 1, before = p.add ? 1 : 0;
    check(Library::get().Matmul(handle, desc_, &one, p.w, w_, p.x, x_, &before, p.y, y_, p.y, y_, &algorithm_,
                                workspace, LtMatmul::kWorkspace, stream),
          p);
  }

 private:
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

}  // namespace

struct LtMatmul::State {
  cublasLtHandle_t handle = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans;
};

LtMatmul::LtMatmul() : state_(std::make_unique<State>()) {}

LtMatmul::~LtMatmul() {
  state_->plans.clear();
  if (state_->handle) Library::get().Destroy(state_->handle);
}

void LtMatmul::multiply(const LtProduct& p, void* workspace, cudaStream_t stream) {
  if (p.rows == 0) return;
  if (!state_->handle) check(Library::get().Create(&state_->handle), p);
  const Key key{p.rows,
                p.cols,
                p.w_rows,
                p.stride,
                p.rounded,
                p.add,
                alignment(p.x, p.cols * sizeof(__nv_bfloat16)),
                alignment(p.w, p.cols * sizeof(__nv_bfloat16)),
                alignment(p.y, p.stride * (p.rounded ? sizeof(__nv_bfloat16) : sizeof(float)))};
  // Prompts end in chunks of any length; their plans are not kept for ever.
  constexpr size_t kMostPlans = 512;
  if (state_->plans.size() >= kMostPlans && !state_->plans.contains(key)) state_->plans.clear();
  std::unique_ptr<Plan>& plan = state_->plans[key];
  try {
    if (!plan) plan = std::make_unique<Plan>(state_->handle, p, key);
  } catch (...) {
    state_->plans.erase(key);
    throw;
  }
  plan->run(state_->handle, p, workspace, stream);
}

}  // namespace tidal::cuda
