// The delta rule over long chunks, where the workspace has room for few of their blocks of rows.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <random>

#include "backend/backend.h"
#include "backend/cuda/delta/delta.h"
#include "backend/cuda/runtime/device.h"

namespace tidal::test {
namespace {

class CudaDelta : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }

  std::vector<float> numbers(int64_t count, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> result(static_cast<size_t>(count));
    for (float& value : result) value = normal(random_);
    return result;
  }
  template <typename Value>
  static Buffer on_device(const std::vector<Value>& values) {
    Buffer buffer = cuda::allocate_device(values.size() * sizeof(Value), "a test");
    cudaMemcpy(buffer.as<std::byte>(), values.data(), values.size() * sizeof(Value), cudaMemcpyHostToDevice);
    return buffer;
  }
  static std::vector<float> from_device(const Buffer& buffer) {
    std::vector<float> values(buffer.bytes() / sizeof(float));
    cudaMemcpy(values.data(), buffer.as<std::byte>(), buffer.bytes(), cudaMemcpyDeviceToHost);
    return values;
  }

  std::mt19937 random_{7};
};

TEST_F(CudaDelta, AChunkInTurnsIsTheChunk) {
  const DeltaNet net{.taps = 4, .head_dim = 40, .key_heads = 2, .value_heads = 4};
  constexpr int kRows = 64 * 4 + 17;
  const std::vector<float> mixed = numbers(int64_t{kRows} * net.mixed_width(), 0, 1);
  const std::vector<float> gates = numbers(int64_t{kRows} * net.value_width(), 0, 1);
  const std::vector<float> alpha = numbers(int64_t{kRows} * net.value_heads, 0, 1);
  const std::vector<float> beta = numbers(int64_t{kRows} * net.value_heads, 0, 1);
  const std::vector<float> taps = numbers(int64_t{net.mixed_width()} * net.taps, 0, 0.5f);
  const std::vector<float> bias = numbers(net.value_heads, 0, 1), decay = numbers(net.value_heads, -0.3f, 0.05f);
  const std::vector<float> norm = numbers(net.head_dim, 1, 0.2f), before = numbers(net.state_elements(), 0, 0.3f);

  const auto run = [&](int64_t blocks) {
    const Buffer state = on_device(before), all_mixed = on_device(mixed), all_gates = on_device(gates);
    const Buffer all_alpha = on_device(alpha), all_beta = on_device(beta), of_taps = on_device(taps);
    const Buffer of_bias = on_device(bias), of_decay = on_device(decay), of_norm = on_device(norm);
    const Buffer convolved = on_device(mixed), kept = on_device(alpha), written = on_device(beta);
    const Buffer out = on_device(gates), arrived = on_device(std::vector<uint32_t>(net.key_heads));
    const int64_t bytes = blocks * cuda::delta_scratch_bytes(net);
    const Buffer scratch = cuda::allocate_device(static_cast<size_t>(bytes), "a test");
    cuda::DeviceChunk chunk{};
    chunk.state = state.as<float>();
    chunk.rows = kRows;
    chunk.position = 100;
    const Buffer chunks = on_device(std::vector<cuda::DeviceChunk>{chunk});
    const Buffer row_chunk = on_device(std::vector<int32_t>(kRows));
    const std::vector<int> rows{kRows};
    cuda::DeltaParams params;
    params.tables.chunks = chunks.as<cuda::DeviceChunk>();
    params.tables.row_chunk = row_chunk.as<int32_t>();
    params.net = net;
    params.rows = kRows;
    params.long_chunks = rows;
    params.epsilon = 1e-5f;
    params.taps = of_taps.as<float>();
    params.alpha_bias = of_bias.as<float>();
    params.decay = of_decay.as<float>();
    params.norm = of_norm.as<float>();
    params.mixed = all_mixed.as<float>();
    params.gates = all_gates.as<float>();
    params.beta = all_beta.as<float>();
    params.alpha = all_alpha.as<float>();
    params.convolved = convolved.as<float>();
    params.kept = kept.as<float>();
    params.written = written.as<float>();
    params.arrived = arrived.as<uint32_t>();
    params.scratch = scratch.as<float>();
    params.scratch_bytes = bytes;
    params.out = out.as<float>();
    cuda::launch_delta(params, nullptr);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return std::pair(from_device(out), from_device(state));
  };
  const auto whole = run(5);
  for (const int64_t blocks : {1, 2, 3}) {
    const auto in_turns = run(blocks);
    EXPECT_EQ(in_turns.first, whole.first) << blocks;
    EXPECT_EQ(in_turns.second, whole.second) << blocks;
  }
}

}  // namespace
}  // namespace tidal::test
