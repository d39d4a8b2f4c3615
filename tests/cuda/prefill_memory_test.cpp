// Prefill attention with the shared memory of small devices (compute capability 8.6, 8.9 and 12) against what it gives
// with as much as it likes.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention/prefill_attention.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"
#include "support/random.h"

namespace tidal::test {
namespace {

constexpr int kHeads = 6, kKvHeads = 3, kRows = 90, kPosition = 167;  // neither ends with a tile

/// A chunk of kRows behind kPosition positions, whose blocks lie in the wrong order.
class PrefillChunk {
 public:
  PrefillChunk(int head_dim, KvType type, int window) : layout_{type, head_dim} {
    Random random(static_cast<uint64_t>(head_dim));
    std::vector<float> q(size_t{kRows} * kHeads * head_dim),
        elements(size_t{2} * head_dim * kKvHeads * kBlocks * kBlockTokens);
    for (float& one : q) one = random.normal(1);
    for (float& one : elements) one = random.uniform(1);
    std::vector<std::byte> cache(static_cast<size_t>(layout_.bytes()) * kKvHeads * kBlocks * kBlockTokens);
    for (size_t row = 0; row < cache.size() / layout_.bytes(); ++row) {
      const float* const key = &elements[2 * head_dim * row];
      write_kv_row(layout_, key, key + head_dim, &cache[row * layout_.bytes()]);
    }
    params_ = {.q = reinterpret_cast<const float*>(send(q_, q.data(), q.size() * sizeof(float))),
               .kv = send(cache_, cache.data(), cache.size()),
               .type = type,
               .blocks = reinterpret_cast<const int32_t*>(send(table_, kTable, sizeof kTable)),
               .rows = kRows,
               .position = kPosition,
               .window = window,
               .heads = kHeads,
               .kv_heads = kKvHeads,
               .head_dim = head_dim};
    out_ = cuda::allocate_device(q.size() * sizeof(float), "test");
    params_.out = out_.as<float>();
    result_.resize(q.size());
  }

  /// [rows, heads * head_dim]
  std::vector<float> attend(int shared_memory) {
    params_.shared_memory = shared_memory;
    cuda::launch_prefill_attention(params_, nullptr);
    cuda::check(cudaMemcpy(result_.data(), params_.out, result_.size() * sizeof(float), cudaMemcpyDeviceToHost),
                "test");
    return result_;
  }

 private:
  static constexpr int kBlocks = (kPosition + kRows + kBlockTokens - 1) / kBlockTokens;
  static constexpr int32_t kTable[kBlocks] = {3, 0, 4, 1, 2};

  static const std::byte* send(Buffer& to, const void* from, size_t bytes) {
    to = cuda::allocate_device(bytes, "test");
    cuda::check(cudaMemcpy(to.as<std::byte>(), from, bytes, cudaMemcpyHostToDevice), "test");
    return to.as<std::byte>();
  }

  KvRowLayout layout_;
  Buffer q_, cache_, table_, out_;
  cuda::PrefillAttentionParams params_;
  std::vector<float> result_;
};

TEST(CudaPrefillMemory, SmallDevicesHaveRoomForAllHeads) {
  if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  for (const KvType type : {KvType::Bf16, KvType::Q8}) {
    for (const int head_dim : {64, 112, 128, 160, 192, 256}) {
      for (const int window : {0, 100}) {
        PrefillChunk chunk(head_dim, type, window);
        const std::vector<float> wide = chunk.attend(0), narrow = chunk.attend(cuda::kLeastSharedMemory);
        double largest = 0;
        for (size_t i = 0; i < wide.size(); ++i) largest = std::max(largest, std::abs(double{wide[i]} - narrow[i]));
        // Values are within [-1, 1] and weights are rounded to 2^-9 of themselves, by maxima that differ on the way.
        EXPECT_LT(largest, 2 * 0x1p-9) << "heads of " << head_dim << ", " << kv_type_name(type) << ", window "
                                       << window;
        EXPECT_GT(*std::max_element(wide.begin(), wide.end()), 0.01f);
      }
    }
  }
}

}  // namespace
}  // namespace tidal::test
