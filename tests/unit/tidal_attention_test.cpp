// The C interface against the engine's own backend on the same cache, and what it refuses.
#include "tidal_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "backend/batch.h"
#include "support/engine_attention.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;
using ::testing::TestWithParam;

constexpr int kBudget = 128;
const std::vector<int> kContexts = {1, 64, 128, 129, 191, 192, 700, 1500};

struct Shape {
  int32_t dtype;
  int heads, kv_heads, head_dim, bits;
};

tidal_attention_options options_of(const Shape& shape) {
  tidal_attention_options options = {};
  options.version = TIDAL_ATTENTION_VERSION;
  options.device = TIDAL_ATTENTION_CPU;
  options.threads = 2;
  options.dtype = shape.dtype;
  options.heads = shape.heads;
  options.kv_heads = shape.kv_heads;
  options.head_dim = shape.head_dim;
  options.sketch_bits = shape.bits;
  options.budget = kBudget;
  options.max_context = 2048;
  options.max_rows = 32;
  return options;
}

struct Handle {
  explicit Handle(const tidal_attention_options& options) {
    EXPECT_EQ(tidal_attention_create(&options, &attention), TIDAL_ATTENTION_OK) << tidal_attention_error();
  }
  ~Handle() { tidal_attention_free(attention); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  tidal_attention* attention = nullptr;
};

/// Elements of a dtype.
struct Elements {
  Elements(int32_t dtype, const std::vector<float>& floats)
      : dtype(dtype), bytes(floats.size() * test::element_bytes(dtype)) {
    for (size_t i = 0; i < floats.size(); ++i) test::put_element(dtype, floats[i], bytes.data(), i);
  }
  size_t size() const { return test::element_bytes(dtype); }
  float operator[](size_t index) const { return test::element_at(dtype, bytes.data(), index); }
  std::vector<float> floats() const {
    std::vector<float> values;
    for (size_t i = 0; i < bytes.size() / size(); ++i) values.push_back((*this)[i]);
    return values;
  }

  int32_t dtype;
  std::vector<std::byte> bytes;
};

/// Sequences of kContexts in blocks of any order; a tile has its sketch behind it, as in vLLM's pages.
struct Cache {
  Cache(const Shape& given, Random& random) : shape(given), layout{given.head_dim, given.bits} {
    const int total = std::accumulate(kContexts.begin(), kContexts.end(), 0,
                                      [](int sum, int context) { return sum + blocks_for(context); });
    const auto order = random.permutation(total + 1);
    stride = blocks_for(2048);
    table.assign(kContexts.size() * static_cast<size_t>(stride), -1);
    int next = 0;
    for (size_t r = 0; r < kContexts.size(); ++r) {
      for (int b = 0; b < blocks_for(kContexts[r]); ++b)
        table[r * static_cast<size_t>(stride) + static_cast<size_t>(b)] = order[static_cast<size_t>(next++)];
    }
    tile = int64_t{kBlockTokens} * 2 * shape.head_dim * (shape.dtype == TIDAL_ATTENTION_BF16 ? 2 : 4);
    memory.resize(static_cast<size_t>((tile + layout.bytes()) * shape.kv_heads * (total + 1)));
    view = {memory.data(), tile + layout.bytes(), memory.data() + tile, tile + layout.bytes(), total + 1};
  }

  /// Keys and values of all sequences, by calls of up to `most` rows of one sequence.
  void fill(tidal_attention* attention, int most, Random& random) {
    const size_t width = static_cast<size_t>(shape.kv_heads) * static_cast<size_t>(shape.head_dim);
    for (size_t r = 0; r < kContexts.size(); ++r) {
      for (int first = 0; first < kContexts[r]; first += most) {
        const int rows = std::min(most, kContexts[r] - first);
        std::vector<float> floats = random.uniform(2 * width * static_cast<size_t>(rows), 2.0f);
        for (size_t i = 0; i < floats.size(); i += 5) floats[i] += 3;  // channels far from 0
        std::vector<int64_t> slots;
        for (int p = first; p < first + rows; ++p)
          slots.push_back(int64_t{table[r * static_cast<size_t>(stride) + static_cast<size_t>(p / kBlockTokens)]} *
                              kBlockTokens +
                          p % kBlockTokens);
        slots.push_back(-1);  // a row that is left out
        floats.resize(floats.size() + 2 * width);
        const Elements elements(shape.dtype, floats);
        ASSERT_EQ(
            tidal_attention_append(attention, &view, rows + 1, elements.bytes.data(), 2 * static_cast<int64_t>(width),
                                   elements.bytes.data() + width * elements.size(), 2 * static_cast<int64_t>(width),
                                   slots.data(), nullptr),
            TIDAL_ATTENTION_OK)
            << tidal_attention_error();
      }
    }
  }

  Shape shape;
  SketchLayout layout;
  int stride = 0;
  int64_t tile = 0;
  std::vector<int32_t> table;
  std::vector<std::byte> memory;
  tidal_attention_cache view = {};
};

struct Result {
  std::vector<float> out;          // [rows, heads * head_dim]
  std::vector<int32_t> positions;  // [rows, kv_heads, most]
  std::vector<int32_t> counts;     // [rows, kv_heads]
};

Result attend(const tidal_attention_options& options, const Cache& cache, const std::vector<float>& q, size_t first,
              size_t rows) {
  const Handle handle(options);
  const size_t width = static_cast<size_t>(options.heads) * static_cast<size_t>(options.head_dim);
  const size_t sets = rows * static_cast<size_t>(options.kv_heads);
  const auto most = static_cast<size_t>(tidal_attention_most_selected(handle.attention));
  const Elements query(options.dtype, {q.begin() + static_cast<ptrdiff_t>(first * width),
                                       q.begin() + static_cast<ptrdiff_t>((first + rows) * width)});
  Elements out(options.dtype, std::vector<float>(rows * width));
  Result result{{}, std::vector<int32_t>(sets * most), std::vector<int32_t>(sets)};
  EXPECT_EQ(tidal_attention_attend(
                handle.attention, &cache.view, static_cast<int>(rows), query.bytes.data(), static_cast<int64_t>(width),
                cache.table.data() + first * static_cast<size_t>(cache.stride), cache.stride, kContexts.data() + first,
                out.bytes.data(), static_cast<int64_t>(width), result.positions.data(), result.counts.data(), nullptr),
            TIDAL_ATTENTION_OK)
      << tidal_attention_error();
  for (size_t i = 0; i < rows * width; ++i) result.out.push_back(out[i]);
  return result;
}

class TidalAttention : public TestWithParam<Shape> {
 protected:
  TidalAttention() : random_(7), options_(options_of(GetParam())), handle_(options_), cache_(GetParam(), random_) {
    cache_.fill(handle_.attention, 333, random_);
    q_ = random_.uniform(
        kContexts.size() * static_cast<size_t>(options_.heads) * static_cast<size_t>(options_.head_dim), 2.0f);
  }

  Random random_;
  tidal_attention_options options_;
  Handle handle_;
  Cache cache_;
  std::vector<float> q_;
};

TEST_P(TidalAttention, SelectsAndAttendsAsTheEngine) {
  const Result own = attend(options_, cache_, q_, 0, kContexts.size());
  const std::vector<float> queries = Elements(options_.dtype, q_).floats();
  const test::EngineAttention engine =
      test::engine_attention("cpu", options_, cache_.view, queries, cache_.table, cache_.stride, kContexts);
  EXPECT_EQ(own.positions, engine.positions);
  EXPECT_EQ(own.counts, engine.counts);
  for (size_t set = 0; set < own.counts.size(); ++set) {
    const int context = kContexts[set / static_cast<size_t>(options_.kv_heads)];
    EXPECT_LE(own.counts[set], kBudget + context % kBlockTokens);
    EXPECT_EQ(own.counts[set] == 0, context <= kBudget);
  }
  const Elements rounded(options_.dtype, engine.out);
  for (size_t i = 0; i < own.out.size(); ++i) ASSERT_EQ(own.out[i], rounded[i]) << i;
}

TEST_P(TidalAttention, ARowDependsNeitherOnOthersNorOnThreads) {
  const Result together = attend(options_, cache_, q_, 0, kContexts.size());
  tidal_attention_options alone = options_;
  alone.threads = 1;
  const size_t width = q_.size() / kContexts.size();
  for (size_t r = 0; r < kContexts.size(); ++r) {
    const Result own = attend(alone, cache_, q_, r, 1);
    EXPECT_TRUE(std::equal(own.out.begin(), own.out.end(), together.out.begin() + static_cast<ptrdiff_t>(r * width)));
    EXPECT_TRUE(std::equal(own.counts.begin(), own.counts.end(),
                           together.counts.begin() + static_cast<ptrdiff_t>(r * own.counts.size())));
  }
}

TEST_P(TidalAttention, SketchesAreThoseOfTheBlocks) {
  for (const auto& [row, context] : {std::pair{6, 700}, {7, 1500}}) {
    for (int b = 0; b < context / kBlockTokens; ++b) {
      const int64_t block = cache_.table[static_cast<size_t>(row * cache_.stride + b)];
      for (int h = 0; h < options_.kv_heads; ++h) {
        const std::byte* const tile = cache_.memory.data() + (block * options_.kv_heads + h) * cache_.view.tile_stride;
        std::vector<std::byte> sketch(static_cast<size_t>(cache_.layout.bytes()));
        sketch_block(cache_.layout, options_.dtype == TIDAL_ATTENTION_BF16 ? KvType::Bf16 : KvType::F32, tile,
                     sketch.data());
        ASSERT_EQ(std::memcmp(sketch.data(), tile + cache_.tile, sketch.size()), 0) << row << " " << b << " " << h;
      }
    }
  }
}

/// With room for everything sets are everything: full attention, in double.
TEST_P(TidalAttention, AttendsToTheWholeContextBelowTheBudget) {
  options_.budget = 2048;
  options_.scale = 0.2f;
  const Result own = attend(options_, cache_, q_, 6, 1);
  const auto dim = static_cast<size_t>(options_.head_dim);
  const Elements query(options_.dtype, q_);
  const size_t tile = static_cast<size_t>(cache_.tile) / query.size();
  for (size_t h = 0; h < static_cast<size_t>(options_.heads); ++h) {
    std::vector<double> sum(dim + 1);
    for (size_t p = 0; p < 700; ++p) {
      const int64_t block = cache_.table[6 * static_cast<size_t>(cache_.stride) + p / kBlockTokens];
      const int64_t head = block * options_.kv_heads + static_cast<int64_t>(h) * options_.kv_heads / options_.heads;
      Elements rows(options_.dtype, {});
      const std::byte* const from = cache_.memory.data() + head * cache_.view.tile_stride;
      rows.bytes.assign(from, from + tile * query.size());
      double score = 0;
      for (size_t d = 0; d < dim; ++d)
        score += double{query[(6 * static_cast<size_t>(options_.heads) + h) * dim + d]} *
                 rows[p % kBlockTokens * 2 * dim + d];
      const double weight = std::exp(0.2 * score - 60);
      sum[dim] += weight;
      for (size_t d = 0; d < dim; ++d) sum[d] += weight * rows[(p % kBlockTokens * 2 + 1) * dim + d];
    }
    // Weights of bf16 (8 bits) and an output rounded likewise; in float32 what sums of 700 terms lose, with room.
    const double tolerance = options_.dtype == TIDAL_ATTENTION_BF16 ? 5 * 0x1p-7 : 5 * 1e-5;
    for (size_t d = 0; d < dim; ++d) ASSERT_NEAR(own.out[h * dim + d], sum[d] / sum[dim], tolerance) << h << " " << d;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TidalAttention,
                         testing::Values(Shape{TIDAL_ATTENTION_BF16, 8, 2, 128, 2},
                                         Shape{TIDAL_ATTENTION_FLOAT32, 6, 2, 64, 2},
                                         Shape{TIDAL_ATTENTION_FLOAT32, 3, 3, 80, 4}));

/// The sentence of a call that was refused.
template <typename Call>
std::string refusal(int32_t code, Call&& call) {
  EXPECT_EQ(call(), code);
  return tidal_attention_error();
}

TEST(TidalAttentionOptions, AreRefusedByName) {
  const auto refused = [](auto&& change) {
    tidal_attention_options options = options_of({TIDAL_ATTENTION_BF16, 8, 2, 128, 2});
    change(options);
    tidal_attention* none = nullptr;
    const std::string sentence =
        refusal(TIDAL_ATTENTION_INVALID, [&] { return tidal_attention_create(&options, &none); });
    EXPECT_EQ(none, nullptr);
    return sentence;
  };
  EXPECT_EQ(refused([](auto& o) { o.heads = 7; }), "heads: 7, expected a multiple of kv_heads, which is 2");
  EXPECT_EQ(refused([](auto& o) { o.head_dim = 72; }), "head_dim: 72, expected a multiple of 16 from 16 to 512");
  EXPECT_EQ(refused([](auto& o) { o.sketch_bits = 3; }), "sketch_bits: 3, expected 1, 2 or 4");
  EXPECT_EQ(refused([](auto& o) { o.budget = 0; }), "budget: 0, expected 1 to 16777216");
  EXPECT_EQ(refused([](auto& o) { o.max_context = -1; }), "max_context: -1, expected 1 to 16777216");
  EXPECT_EQ(refused([](auto& o) { o.threads = 0; }), "threads: 0, expected 1 to 1024");
  EXPECT_EQ(refused([](auto& o) { o.dtype = 2; }), "dtype: 2, expected 0 to 1");
  EXPECT_EQ(refused([](auto& o) { o.scale = NAN; }),
            "scale: nan, expected a positive number, or 0 for 1 / sqrt(head_dim)");
  tidal_attention_options old = options_of({TIDAL_ATTENTION_BF16, 8, 2, 128, 2});
  old.version = 0;
  tidal_attention* none = nullptr;
  EXPECT_EQ(refusal(TIDAL_ATTENTION_UNSUPPORTED, [&] { return tidal_attention_create(&old, &none); }),
            "version: 0, expected 1, that of the library's tidal_attention.h");
  EXPECT_EQ(tidal_attention_sketch_bytes(128, 2), 2560);
  EXPECT_EQ(tidal_attention_sketch_bytes(128, 3), 0);
}

TEST(TidalAttentionOptions, ABudgetBeyondAllContextsTakesNoRoom) {
  // Sets of 2^24 positions for 16 rows of 1,024 KV heads would be a terabyte.
  tidal_attention_options options = options_of({TIDAL_ATTENTION_BF16, 1024, 1024, 16, 2});
  options.budget = 1 << 24;
  options.max_context = 64;
  const Handle handle(options);
  EXPECT_EQ(tidal_attention_most_selected(handle.attention), 64);
}

TEST(TidalAttentionCalls, AreRefusedByName) {
  Random random(3);
  const tidal_attention_options options = options_of({TIDAL_ATTENTION_FLOAT32, 2, 1, 64, 2});
  const Handle handle(options);
  Cache cache({TIDAL_ATTENTION_FLOAT32, 2, 1, 64, 2}, random);
  std::vector<float> q(2 * 64), out(2 * 64);
  std::vector<int32_t> table(32, 0);
  int32_t context = 65;
  const auto call = [&] {
    return tidal_attention_attend(handle.attention, &cache.view, 1, q.data(), 128, table.data(), 32, &context,
                                  out.data(), 128, nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(call(), TIDAL_ATTENTION_OK);
  table[1] = cache.view.blocks;
  EXPECT_EQ(refusal(TIDAL_ATTENTION_INVALID, call), "block_table: entry 1 of row 0 is " + std::to_string(table[1]) +
                                                        ", expected 0 to " + std::to_string(table[1] - 1));
  context = 2049;
  EXPECT_EQ(refusal(TIDAL_ATTENTION_INVALID, call), "contexts: row 0 has 2049, expected 1 to 2048, max_context");
  cache.view.tile_stride = 16;
  EXPECT_EQ(refusal(TIDAL_ATTENTION_INVALID, call), "tile_stride: 16, expected at least 32768, a tile's bytes");
  std::thread([] { EXPECT_STREQ(tidal_attention_error(), "") << "another thread's"; }).join();
}

}  // namespace
}  // namespace tidal
