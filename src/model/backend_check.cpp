#include "model/backend_check.h"

#include "core/error.h"

namespace tidal {

int64_t kept_bytes(const Backend& backend, ggml_type type, int64_t rows, int64_t cols) {
  if (rows > 1) return backend.matrix_bytes(type, rows, cols);
  return static_cast<int64_t>(ggml_row_size(type, cols));
}

void check_backend(const Backend& backend, const std::string& name, int64_t weights, const Hyperparameters& hp,
                   const MemoryBeside& beside) {
  if (const std::string what = backend.unsupported(hp); !what.empty()) {
    fail("{}: the {} backend does not run {}, the cpu backend does", name, backend.name(), what);
  }
  constexpr double kGibi = 1 << 30;
  const int64_t free = backend.free_bytes();
  const int64_t more = beside ? beside(hp) : 0;
  if (weights + more <= free) return;
  // What is too much says what would fit.
  const char* fits = weights > free ? "a smaller quantisation (without --weights bf16) or --backend cpu"
                                    : "a smaller --context or fewer sequences";
  fail(
      "{}: needs {:.2f} GiB of memory (weights {:.2f}, KV cache and workspace {:.2f}), the {} backend has {:.2f} GiB "
      "free; expected {}",
      name, static_cast<double>(weights + more) / kGibi, static_cast<double>(weights) / kGibi,
      static_cast<double>(more) / kGibi, backend.name(), static_cast<double>(free) / kGibi, fits);
}

}  // namespace tidal
