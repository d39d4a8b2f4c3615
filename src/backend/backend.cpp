#include "backend/backend.h"

#include "backend/kv_file.h"
#include "core/error.h"
#ifdef TIDAL_CUDA
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/full_below.h"
#include "backend/cuda/weights/quantised.h"
#endif

namespace tidal {
namespace {

// The one place that knows whether the CUDA backend was built.
#ifdef TIDAL_CUDA
std::unique_ptr<Backend> make_cuda_backend(bool quantised) { return cuda::make_backend({.quantised = quantised}); }
constexpr const char* kNames = "auto, cpu, cuda or reference";
#else
std::unique_ptr<Backend> make_cuda_backend(bool) {
  fail("backend: this tidal was built without CUDA, expected auto, cpu or reference");
}
constexpr const char* kNames = "auto, cpu or reference";
#endif

/// One run of memory, layer by layer.
class PlainKvMemory final : public KvMemory {
 public:
  PlainKvMemory(KvRoom room, Backend& backend, std::string_view what) : KvMemory(std::move(room)) {
    size_t bytes = 0;
    for (const size_t layer : this->room().slot_bytes) {
      first_.push_back(bytes);
      bytes += layer * static_cast<size_t>(this->room().slots);
    }
    memory_ = backend.allocate(bytes, what);
  }
  std::byte* layer(size_t index) const override { return memory_.as<std::byte>() + first_[index]; }
  void provide(int) override {}

 private:
  std::vector<size_t> first_;  // byte of each layer
  Buffer memory_;
};

}  // namespace

std::unique_ptr<KvMemory> Backend::allocate_kv(const KvRoom& room, std::string_view what) {
  if (!room.directory.empty()) return std::make_unique<KvFile>(room, what);
  return std::make_unique<PlainKvMemory>(room, *this, what);
}

void Backend::likely(const Weight& norm, const Weight& output, const Batch& batch, Rows x, int count,
                     std::span<LikelyToken> out) {
  const size_t rows = batch.logit_rows.size(), vocab = static_cast<size_t>(output.rows), width = count;
  logits_.resize(rows * vocab);
  logits(norm, output, batch, x, logits_);
  for (size_t r = 0; r < rows; ++r) {
    select_likely(std::span<const float>(logits_).subspan(r * vocab, vocab), out.subspan(r * width, width));
  }
}

void Backend::layer_inputs(const LayerInputs&, const Batch&, Rows, Rows) {
  fail("{} backend: inputs of single layers are not supported", name());
}
void Backend::finish(const Layer&, int, Rows, Rows) {
  fail("{} backend: inputs and scales of single layers are not supported", name());
}

bool has_cuda_device() {
#ifdef TIDAL_CUDA
  return cuda::has_device();
#else
  return false;
#endif
}

#ifdef TIDAL_CUDA
std::optional<int> cuda_full_below(const Hyperparameters& hp, std::span<const Role> roles, const Policy& policy,
                                   KvType type) {
  return cuda::full_below(hp, roles, policy, type);
}
std::optional<ggml_type> cuda_matrix_type(ggml_type type) {
  return cuda::stays_quantised(type) ? type : GGML_TYPE_BF16;
}
#else
std::optional<ggml_type> cuda_matrix_type(ggml_type) { return {}; }
std::optional<int> cuda_full_below(const Hyperparameters&, std::span<const Role>, const Policy&, KvType) { return {}; }
#endif

std::unique_ptr<Backend> make_backend(std::string_view name, int threads, bool quantised) {
  if (name == "auto") name = has_cuda_device() ? "cuda" : "cpu";
  if (name == "cpu") return make_cpu_backend(threads);
  if (name == "cuda") return make_cuda_backend(quantised);
  if (name == "reference") return make_reference_backend();
  fail("backend: '{}' is not known, expected {}", name, kNames);
}

}  // namespace tidal
