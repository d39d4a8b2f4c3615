// What devices of 99 KiB of shared memory a block (compute capability 8.6, 8.9 and 12) keep, take and refuse.
#include "support/small_device.h"

#include <gtest/gtest.h>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/products/matmul_skinny.h"
#include "backend/cuda/runtime/shared_memory.h"
#include "core/error.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

class CudaSmallDevice : public testing::Test {
 protected:
  void SetUp() override {
    be_small_if_asked();
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(CudaSmallDevice, LimitsWhatABlockMayHave) {
  const int whole = cuda::shared_memory_limit();
  {
    const SmallDevice small;
    EXPECT_EQ(cuda::shared_memory_limit(), 99 * 1024);
    EXPECT_LE(cuda::shared_memory_limit(), cuda::device_shared_memory());
    EXPECT_THROW(cuda::fail_without_shared_memory(1, "a test"), Error);
  }
  EXPECT_EQ(cuda::shared_memory_limit(), whole);
}

TEST_F(CudaSmallDevice, QuantisedWeightsStay) {
  const SmallDevice small;
  const auto backend = cuda::make_backend();
  for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_MXFP4}) {
    EXPECT_EQ(backend->matrix_type(type), type) << ggml_type_name(type);
    EXPECT_LT(backend->matrix_bytes(type, 4096, 4096), 4096 * 4096 * 9 / 8) << ggml_type_name(type);
  }
}

TEST_F(CudaSmallDevice, TakesWhatHasRoom) {
  const SmallDevice small;
  // One row of float32 of a usual width, but not of any.
  EXPECT_TRUE(cuda::skinny_takes_floats(1, 8192, true));
  EXPECT_FALSE(cuda::skinny_takes_floats(1, 32768, true));
  EXPECT_FALSE(cuda::skinny_takes_floats(2, 256, true));
  const auto backend = cuda::make_backend();
  Hyperparameters hp = small_shape();
  hp.width = 4096;
  hp.experts = {.count = 8, .used = 2, .ffn = 14336};
  EXPECT_EQ(backend->unsupported(hp), "");
  hp.experts.ffn = 16384;
  EXPECT_EQ(backend->unsupported(hp), "mixtures of experts as wide as these, on this device,");
  hp.experts = {};
  hp.head_dim = 256;
  EXPECT_EQ(backend->unsupported(hp), "");
  hp.head_dim = 512;
  EXPECT_EQ(backend->unsupported(hp), "heads of 512 elements, on this device,");
}

}  // namespace
}  // namespace tidal::test
