// The C interface on a device against the engine's CUDA backend on the same cache.
#include "tidal_attention.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "backend/backend.h"
#include "backend/cuda/runtime/error.h"
#include "core/error_kinds.h"
#include "support/engine_attention.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr int kBudget = 128;
const std::vector<int> kContexts = {1, 64, 128, 129, 191, 192, 700, 1500, 5000};

/// Memory that the host and the device see.
template <typename T>
struct Managed {
  explicit Managed(size_t count) : count(count) {
    EXPECT_EQ(cudaMallocManaged(reinterpret_cast<void**>(&data), count * sizeof(T)), cudaSuccess);
    std::memset(static_cast<void*>(data), 0, count * sizeof(T));
  }
  explicit Managed(const std::vector<T>& from) : Managed(from.size()) { std::copy(from.begin(), from.end(), data); }
  ~Managed() { cudaFree(data); }
  Managed(const Managed&) = delete;
  Managed& operator=(const Managed&) = delete;

  T* data = nullptr;
  size_t count;
};

struct Shape {
  int heads, kv_heads, head_dim;
};

class CudaTidalAttention : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
    options_.version = TIDAL_ATTENTION_VERSION;
    options_.device = TIDAL_ATTENTION_CUDA;
    options_.dtype = TIDAL_ATTENTION_BF16;
    options_.heads = GetParam().heads;
    options_.kv_heads = GetParam().kv_heads;
    options_.head_dim = GetParam().head_dim;
    options_.sketch_bits = 2;
    options_.budget = kBudget;
    options_.max_context = 8192;
    options_.max_rows = 16;
    ASSERT_EQ(tidal_attention_create(&options_, &attention_), TIDAL_ATTENTION_OK) << tidal_attention_error();
    make_cache();
  }
  void TearDown() override { tidal_attention_free(attention_); }

  SketchLayout layout() const { return {options_.head_dim, options_.sketch_bits}; }
  int64_t tile() const { return int64_t{kBlockTokens} * 4 * options_.head_dim; }
  int width() const { return options_.heads * options_.head_dim; }

  void make_cache() {
    const int total = std::accumulate(kContexts.begin(), kContexts.end(), 0,
                                      [](int sum, int context) { return sum + blocks_for(context); });
    const auto order = random_.permutation(total + 1);
    table_ = std::make_unique<Managed<int32_t>>(kContexts.size() * kStride);
    for (size_t r = 0, next = 0; r < kContexts.size(); ++r) {
      for (int b = 0; b < blocks_for(kContexts[r]); ++b)
        table_->data[r * kStride + static_cast<size_t>(b)] = order[next++];
    }
    const int64_t page = tile() + layout().bytes();
    memory_ = std::make_unique<Managed<std::byte>>(static_cast<size_t>(page * options_.kv_heads * (total + 1)));
    cache_ = {memory_->data, page, memory_->data + tile(), page, total + 1};
  }

  /// All sequences, by calls of up to 333 rows, each with one that is left out.
  void fill() {
    const auto row = static_cast<size_t>(options_.kv_heads) * static_cast<size_t>(options_.head_dim);
    for (size_t r = 0; r < kContexts.size(); ++r) {
      for (int first = 0; first < kContexts[r]; first += 333) {
        const int rows = std::min(333, kContexts[r] - first);
        Managed<Bf16> both(2 * row * static_cast<size_t>(rows + 1));
        for (size_t i = 0; i < both.count; ++i)
          both.data[i] = to_bf16(random_.uniform(2.0f) + (i % 5 == 0 ? 3.0f : 0.0f));
        Managed<int64_t> slots(static_cast<size_t>(rows) + 1);
        for (int i = 0; i < rows; ++i) {
          const auto block = static_cast<size_t>((first + i) / kBlockTokens);
          slots.data[i] = int64_t{table_->data[r * kStride + block]} * kBlockTokens + (first + i) % kBlockTokens;
        }
        slots.data[rows] = -1;
        ASSERT_EQ(tidal_attention_append(attention_, &cache_, rows + 1, both.data, 2 * static_cast<int64_t>(row),
                                         both.data + row, 2 * static_cast<int64_t>(row), slots.data, nullptr),
                  TIDAL_ATTENTION_OK)
            << tidal_attention_error();
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      }
    }
  }

  static constexpr size_t kStride = 128;
  Random random_{11};
  tidal_attention_options options_ = {};
  tidal_attention* attention_ = nullptr;
  tidal_attention_cache cache_ = {};
  std::unique_ptr<Managed<int32_t>> table_;
  std::unique_ptr<Managed<std::byte>> memory_;
};

TEST_P(CudaTidalAttention, SelectsAndAttendsAsTheEngine) {
  ASSERT_NO_FATAL_FAILURE(fill());
  const size_t rows = kContexts.size(), units = static_cast<size_t>(options_.kv_heads);
  const auto most = static_cast<size_t>(tidal_attention_most_selected(attention_)), wide = static_cast<size_t>(width());
  std::vector<float> queries;
  Managed<Bf16> q((rows + 1) * wide), out((rows + 1) * wide);
  for (size_t i = 0; i < rows * wide; ++i) {
    q.data[i] = to_bf16(random_.uniform(2.0f));
    queries.push_back(to_float(q.data[i]));
  }
  Managed<int32_t> contexts(rows + 1), positions((rows + 1) * units * most), counts((rows + 1) * units);
  std::copy(kContexts.begin(), kContexts.end(), contexts.data);  // and 0: a row of padding
  Managed<int32_t> table((rows + 1) * kStride);
  std::copy_n(table_->data, rows * kStride, table.data);
  const auto call = [&](cudaStream_t stream) {
    return tidal_attention_attend(attention_, &cache_, static_cast<int>(rows) + 1, q.data, width(), table.data, kStride,
                                  contexts.data, out.data, width(), positions.data, counts.data, stream);
  };
  ASSERT_EQ(call(nullptr), TIDAL_ATTENTION_OK) << tidal_attention_error();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const auto engine =
      test::engine_attention("cuda", options_, cache_, queries, {table.data, rows * kStride}, kStride, kContexts);
  for (size_t set = 0; set < rows * units; ++set) {
    ASSERT_EQ(counts.data[set], engine.counts[set]) << set;
    for (size_t i = 0; i < static_cast<size_t>(counts.data[set]); ++i) {
      ASSERT_EQ(positions.data[set * most + i], engine.positions[set * static_cast<size_t>(kBudget + 63) + i]) << set;
    }
  }
  for (size_t i = 0; i < rows * wide; ++i) ASSERT_EQ(out.data[i].bits, to_bf16(engine.out[i]).bits) << i;

  // A graph reads the tables that are there when it is replayed.
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(call(stream), TIDAL_ATTENTION_OK) << tidal_attention_error();
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
  for (size_t r = 0; r < rows; ++r) contexts.data[r] = std::max(1, kContexts[rows - 1 - r] - 3);
  for (size_t r = 0; r < rows; ++r)
    std::copy_n(table_->data + (rows - 1 - r) * kStride, kStride, table.data + r * kStride);
  ASSERT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<Bf16> replayed(out.data, out.data + rows * wide);
  ASSERT_EQ(call(nullptr), TIDAL_ATTENTION_OK) << tidal_attention_error();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (size_t i = 0; i < replayed.size(); ++i) ASSERT_EQ(replayed[i].bits, out.data[i].bits) << i;
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_P(CudaTidalAttention, SketchesAreThoseOfTheBlocks) {
  ASSERT_NO_FATAL_FAILURE(fill());
  for (size_t r = 0; r < kContexts.size(); ++r) {
    for (int b = 0; b < kContexts[r] / kBlockTokens; ++b) {
      const int64_t block = table_->data[r * kStride + static_cast<size_t>(b)];
      for (int h = 0; h < options_.kv_heads; ++h) {
        const std::byte* const own = memory_->data + (block * options_.kv_heads + h) * cache_.tile_stride;
        std::vector<std::byte> sketch(static_cast<size_t>(layout().bytes()));
        sketch_block(layout(), KvType::Bf16, own, sketch.data());
        ASSERT_EQ(std::memcmp(sketch.data(), own + tile(), sketch.size()), 0) << r << " " << b << " " << h;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaTidalAttention,
                         testing::Values(Shape{8, 2, 128}, Shape{14, 2, 64}, Shape{32, 8, 128}, Shape{4, 4, 64}));

tidal_attention_options small_options() {
  tidal_attention_options options = {};
  options.version = TIDAL_ATTENTION_VERSION;
  options.device = TIDAL_ATTENTION_CUDA;
  options.heads = options.kv_heads = 2;
  options.head_dim = 64;
  options.sketch_bits = 2;
  options.budget = options.max_context = options.max_rows = 64;
  return options;
}

/// As many rows as the header allows are more than a grid is high.
TEST(CudaTidalAttentionRows, AreAsManyAsTheHeaderSays) {
  if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  constexpr int kRows = 65536, kContext = 100;
  tidal_attention_options options = small_options();
  options.heads = options.kv_heads = 1;
  options.max_rows = kRows;
  options.max_context = 128;
  tidal_attention* attention = nullptr;
  ASSERT_EQ(tidal_attention_create(&options, &attention), TIDAL_ATTENTION_OK) << tidal_attention_error();
  const int64_t tile = int64_t{kBlockTokens} * 4 * options.head_dim, page = tile + SketchLayout{64, 2}.bytes();
  const auto dim = static_cast<size_t>(options.head_dim), most = size_t{127};
  Managed<std::byte> memory(static_cast<size_t>(2 * page));
  const tidal_attention_cache cache = {memory.data, page, memory.data + tile, page, 2};
  Random random(5);
  Managed<Bf16> rows(kContext * dim), q(kRows * dim), out(kRows * dim);
  Managed<int64_t> slots(kContext);
  std::iota(slots.data, slots.data + kContext, 0);
  for (size_t i = 0; i < rows.count; ++i) rows.data[i] = to_bf16(random.uniform(2.0f));
  for (size_t i = 0; i < q.count; ++i) q.data[i] = rows.data[i % dim];
  Managed<int32_t> table(2 * kRows), contexts(kRows), positions(kRows * most), counts(kRows);
  for (size_t r = 0; r < kRows; ++r) table.data[2 * r + 1] = 1, contexts.data[r] = kContext;
  ASSERT_EQ(tidal_attention_append(attention, &cache, kContext, rows.data, 64, rows.data, 64, slots.data, nullptr),
            TIDAL_ATTENTION_OK);
  ASSERT_EQ(tidal_attention_attend(attention, &cache, kRows, q.data, 64, table.data, 2, contexts.data, out.data, 64,
                                   positions.data, counts.data, nullptr),
            TIDAL_ATTENTION_OK)
      << tidal_attention_error();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (size_t r = 0; r < kRows; ++r) {
    ASSERT_EQ(counts.data[r], 64 + kContext % kBlockTokens) << r;
    ASSERT_EQ(std::memcmp(out.data + r * dim, out.data, dim * sizeof(Bf16)), 0) << r;
    ASSERT_EQ(std::memcmp(positions.data + r * most, positions.data, sizeof(int32_t) * 100), 0) << r;
  }
  tidal_attention_free(attention);
}

/// By which the interface tells memory from other errors of a device.
TEST(CudaErrorKinds, AreTold) {
  EXPECT_THROW(cuda::check(cudaErrorLaunchFailure, "a test"), DeviceError);
  EXPECT_THROW(cuda::check(cudaErrorInvalidConfiguration, "a test"), DeviceError);
  EXPECT_THROW(cuda::check(cudaErrorMemoryAllocation, "a test"), MemoryError);
}

TEST(CudaTidalAttentionOptions, AreRefusedByName) {
  tidal_attention_options options = small_options();
  options.device_index = 99;
  tidal_attention* none = nullptr;
  EXPECT_EQ(tidal_attention_create(&options, &none), TIDAL_ATTENTION_UNSUPPORTED);
  EXPECT_EQ(std::string(tidal_attention_error()).rfind("device_index: 99, there are ", 0), 0u);
  if (!has_cuda_device()) return;
  options.device_index = 0;
  options.dtype = TIDAL_ATTENTION_FLOAT32;
  EXPECT_EQ(tidal_attention_create(&options, &none), TIDAL_ATTENTION_UNSUPPORTED);
  EXPECT_STREQ(tidal_attention_error(), "dtype: float32 on CUDA, expected bf16");
  options.dtype = TIDAL_ATTENTION_BF16;
  options.head_dim = 80;
  EXPECT_EQ(tidal_attention_create(&options, &none), TIDAL_ATTENTION_UNSUPPORTED);
  EXPECT_STREQ(tidal_attention_error(), "head_dim: 80, expected 64 or 128 on CUDA");
}

}  // namespace
}  // namespace tidal
