// Dense and Sparse attention of every backend against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "parity/bounds.h"

namespace tidal::parity {
namespace {

constexpr int kBudget = 96;

struct Shape {
  int group, kv_heads, head_dim;
  KvType type = KvType::Bf16;
};

std::string name_of(const Shape& s) {
  const std::string name = "group" + std::to_string(s.group) + "_dim" + std::to_string(s.head_dim);
  return s.type == KvType::Bf16 ? name : name + "_" + kv_type_name(s.type);
}

using Parameters = std::tuple<std::string, Shape>;

/// Decode rows at every kind of edge of a block and of the budget.
std::vector<ChunkShape> decoding(bool sparse) {
  std::vector<ChunkShape> chunks;
  for (const int context : {1, 63, 64, 65, kBudget - 1, kBudget, kBudget + 1, 4097}) {
    chunks.push_back({context - 1, 1, sparse && context > kBudget});
  }
  return chunks;
}

/// The same with short and long chunks.
std::vector<ChunkShape> ragged() {
  std::vector<ChunkShape> chunks = decoding(false);
  for (const auto& [position, rows] : {std::pair{63, 2}, {0, 3}, {100, 5}, {125, 8}, {0, 9}, {70, 33}, {190, 75}}) {
    chunks.push_back({position, rows});
  }
  return chunks;
}

struct Inputs {
  Inputs(const Shape& shape, const std::vector<ChunkShape>& chunks, Random& random)
      : hp(attention_shape(shape.group, shape.kv_heads, shape.head_dim)),
        batch(chunks, hp.vocab, random),
        cache(random_cache(hp, batch.blocks(), random, shape.type)),
        // Scores q.k / sqrt(dim) of standard deviation 1: a softmax neither flat nor a single peak.
        q(random.uniform(static_cast<size_t>(batch->rows()) * hp.q_width(), 3.0f)) {}

  Hyperparameters hp;
  HostBatch batch;
  HostCache cache;
  std::vector<float> q;
};

std::vector<float> attend(const std::string& backend, const Inputs& in, int threads = 2) {
  Device device(backend, threads);
  device.begin(in.hp, in.batch);
  const Rows out = device.rows(in.batch->rows(), in.hp.q_width());
  device->attend(*RoleBatch(in.batch, Role::Dense), 0, device.rows(in.q, in.hp.q_width()), device.cache(in.cache), {},
                 out);
  return device.read(out);
}

std::vector<float> attend_sparse(const std::string& backend, const Inputs& in, const Policy& policy,
                                 const std::vector<int32_t>& positions, int threads = 2) {
  Device device(backend, threads);
  device.begin(in.hp, in.batch);
  const Rows out = device.rows(in.batch->rows(), in.hp.q_width());
  const Selection selection = device.selection(policy, in.hp, in.batch->rows(), positions);
  device->attend(*RoleBatch(in.batch, Role::Sparse, policy), 0, device.rows(in.q, in.hp.q_width()),
                 device.cache(in.cache), selection, out);
  return device.read(out);
}

/// `budget` random positions per unit, ascending; those of the rows of sparse chunks only.
std::vector<int32_t> random_selection(const Inputs& in, const Policy& policy, Random& random) {
  const int units = scope_units(policy.scope, in.hp.heads, in.hp.kv_heads);
  std::vector<int32_t> positions(static_cast<size_t>(in.batch->rows()) * units * policy.budget, -1);
  for (const Chunk& chunk : in.batch->chunks) {
    if (!in.batch.sparse(chunk)) continue;
    for (int unit = 0; unit < units; ++unit) {
      std::vector<int32_t> all = random.permutation(chunk.context());
      std::sort(all.begin(), all.begin() + policy.budget);
      std::copy_n(all.begin(), policy.budget,
                  positions.begin() + (static_cast<ptrdiff_t>(chunk.first_row) * units + unit) * policy.budget);
    }
  }
  return positions;
}

class AttentionParity : public test::BackendTest<Parameters> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    if (backend() == "cuda" && shape().head_dim > 256) GTEST_SKIP() << "refused there";
    if (!make_backend(backend(), 1)->keeps(shape().type)) GTEST_SKIP() << "refused there";
  }
  const Shape& shape() const { return std::get<1>(GetParam()); }
  Random random_{static_cast<uint64_t>(100 * shape().head_dim + shape().group)};
};

TEST_P(AttentionParity, Dense) {
  const Inputs in(shape(), ragged(), random_);
  expect_close("attend", attend(backend(), in), attend("reference", in),
               attention_bounds(in.hp, in.batch, in.cache, in.q, true));
}

TEST_P(AttentionParity, Sparse) {
  std::vector<ChunkShape> chunks = decoding(true);
  chunks.push_back({30, 3});
  chunks.push_back({60, 12});
  const Inputs in(shape(), chunks, random_);
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    const Policy policy{.scope = scope, .budget = kBudget};
    const std::vector<int32_t> positions = random_selection(in, policy, random_);
    expect_close("attend_sparse", attend_sparse(backend(), in, policy, positions),
                 attend_sparse("reference", in, policy, positions),
                 attention_bounds(in.hp, in.batch, in.cache, in.q, true, policy, positions));
  }
}

TEST_P(AttentionParity, ThreadsChangeNothing) {
  // More than one piece of dense and of sparse attention, a short and a long chunk.
  const std::vector<ChunkShape> chunks = {{2500, 1}, {1500, 1, true}, {60, 3}, {70, 33}};
  const Inputs in(shape(), chunks, random_);
  const Policy policy{.scope = Scope::Kv, .budget = kBudget};
  const std::vector<int32_t> positions = random_selection(in, policy, random_);
  const std::vector<float> dense = attend(backend(), in, 1),
                           sparse = attend_sparse(backend(), in, policy, positions, 1);
  for (const int threads : {2, 3}) {
    EXPECT_EQ(attend(backend(), in, threads), dense) << threads << " threads";
    EXPECT_EQ(attend_sparse(backend(), in, policy, positions, threads), sparse) << threads << " threads";
  }
}

// Sparse over all positions is Dense: the same terms, but Dense is cut into pieces of another length, so the sums
// differ by their roundings. Each lies within its bound of the true value.
TEST_P(AttentionParity, SparseOverEverythingIsDense) {
  for (const int context : {1, 65, 128, 700}) {
    const Inputs in(shape(), {{context - 1, 1, true}}, random_);
    const Policy policy{.scope = Scope::Kv, .budget = context};
    std::vector<int32_t> positions;
    for (int kv_head = 0; kv_head < in.hp.kv_heads; ++kv_head) {
      for (int p = 0; p < context; ++p) positions.push_back(p);
    }
    std::vector<double> bounds = attention_bounds(in.hp, in.batch, in.cache, in.q, true);
    for (double& bound : bounds) bound *= 2;
    const std::vector<float> sparse = attend_sparse(backend(), in, policy, positions);
    expect_close("all positions", sparse, attend(backend(), in), bounds);
    // One piece on either path up to 128 positions: then not even the order of the sums differs.
    if (context <= 128) {
      EXPECT_EQ(sparse, attend(backend(), in)) << "context " << context;
    }
  }
}

// A row's result depends on its own sequence only, down to the last bit.
TEST_P(AttentionParity, RowsOfOthersChangeNothing) {
  const Inputs in(shape(), ragged(), random_);
  const std::vector<float> together = attend(backend(), in);
  const int width = in.hp.q_width();
  Device device(backend());
  device->reserve(in.hp, in.batch->rows(), in.batch.max_context());
  const KvLayer cache = device.cache(in.cache);
  for (const Chunk& chunk : in.batch->chunks) {
    const std::vector<Token> tokens(chunk.rows, 0);
    std::vector<int32_t> positions(chunk.rows);
    std::iota(positions.begin(), positions.end(), chunk.position);
    Chunk alone = chunk;
    alone.first_row = 0;
    const Batch batch{tokens, positions, {&alone, 1}, {}};
    device->begin(in.hp, batch);
    const auto begin = static_cast<ptrdiff_t>(chunk.first_row) * width, end = begin + ptrdiff_t{chunk.rows} * width;
    const Rows out = device.rows(chunk.rows, width);
    device->attend(batch, 0, device.rows({in.q.begin() + begin, in.q.begin() + end}, width), cache, {}, out);
    EXPECT_EQ(device.read(out), std::vector<float>(together.begin() + begin, together.begin() + end))
        << chunk.rows << " rows at position " << chunk.position;
  }
}

TEST_P(AttentionParity, CappedScores) {
  if (backend() == "cuda") GTEST_SKIP() << "refused there";
  std::vector<ChunkShape> chunks = decoding(true);
  for (const auto& [position, rows] : {std::pair{60, 3}, {70, 33}}) chunks.push_back({position, rows});
  Inputs in(shape(), chunks, random_);
  const std::vector<float> uncapped = attend("reference", in);
  in.hp.score_cap = 0.8f;  // of scores of standard deviation 1
  EXPECT_NE(attend("reference", in), uncapped);
  expect_close("attend", attend(backend(), in), attend("reference", in),
               attention_bounds(in.hp, in.batch, in.cache, in.q, true));
  const Policy policy{.scope = Scope::Kv, .budget = kBudget};
  const std::vector<int32_t> positions = random_selection(in, policy, random_);
  expect_close("attend_sparse", attend_sparse(backend(), in, policy, positions),
               attend_sparse("reference", in, policy, positions),
               attention_bounds(in.hp, in.batch, in.cache, in.q, true, policy, positions));
}

// Whatever is not finite goes where the reference has it, and nowhere else.
TEST_P(AttentionParity, NotFinite) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<ChunkShape> chunks = {{150, 1}, {70, 1}, {129, 1}, {64, 1}, {5, 1}, {200, 1}, {90, 4}, {100, 20}};
  Inputs in(shape(), chunks, random_);
  in.batch = HostBatch(chunks, in.hp.vocab, random_, false);
  in.cache = random_cache(in.hp, in.batch.blocks(), random_, shape().type);
  const auto& list = in.batch->chunks;
  const int dim = in.hp.head_dim;
  // Positive everywhere at dimension 0, so that an infinite key gives a score of its sign.
  for (size_t i = 0; i < in.q.size(); i += dim) in.q[i] = 0.5f;
  in.cache.row(list[0], 0, 3)[0] = to_bf16(nan);
  in.cache.row(list[1], 0, 70)[0] = to_bf16(-infinity);
  in.cache.row(list[2], 0, 64)[0] = to_bf16(infinity);
  in.cache.row(list[3], 0, 1)[dim + dim - 1] = to_bf16(nan);
  for (int p = 0; p <= 5; ++p) in.cache.row(list[4], 0, p)[0] = to_bf16(-infinity);
  in.q[static_cast<size_t>(list[5].first_row) * in.hp.q_width() + 1] = nan;
  in.cache.row(list[6], 0, 10)[dim] = to_bf16(infinity);
  // With 8 bits it is no number, which all rows behind it would be.
  if (shape().type == KvType::Bf16) in.cache.row(list[7], 0, 99)[0] = to_bf16(-infinity);

  const std::vector<float> reference = attend("reference", in);
  std::vector<double> bounds = attention_bounds(in.hp, in.batch, in.cache, in.q, true);
  // Where a score is -infinity the bound is no number: that position has weight 0, so it falls out of the bound, too.
  HostCache finite = in.cache;
  for (Bf16& value : finite.values) {
    if (!std::isfinite(to_float(value))) value = to_bf16(-100.0f);
  }
  const std::vector<double> without = attention_bounds(in.hp, in.batch, finite, in.q, true);
  for (size_t i = 0; i < bounds.size(); ++i) {
    if (!std::isfinite(bounds[i])) bounds[i] = without[i];
  }
  expect_close("attend", attend(backend(), in), reference, bounds);
  size_t broken = 0;
  for (const float value : reference) broken += !std::isfinite(value);
  EXPECT_GT(broken, 0u);
  EXPECT_LT(broken, reference.size() / 2);
}

// Scores far from 0: exp must neither overflow nor lose the positions that count.
TEST_P(AttentionParity, LargeScores) {
  Inputs in(shape(), {{500, 1}, {40, 6}, {100, 20}}, random_);
  for (float& value : in.q) value *= 40;
  expect_close("attend", attend(backend(), in), attend("reference", in),
               attention_bounds(in.hp, in.batch, in.cache, in.q, true));
}

// Every group at head size 64, every head size with a group on either side of what one kernel call takes in registers.
std::vector<Shape> shapes() {
  std::vector<Shape> shapes;
  for (const int group : {1, 3, 4, 6, 7, 8, 9, 16, 20}) shapes.push_back({group, group > 8 ? 1 : 2, 64});
  for (const int dim : {16, 48, 80, 96, 112, 128, 256, 512}) {
    for (const int group : {1, 7}) shapes.push_back({group, group > 4 ? 1 : 2, dim});
  }
  // Ends of heads that are half a block of scales, and groups of one, of all and of more than a kernel's heads.
  for (const auto& [group, dim] :
       {std::pair{1, 16}, {7, 64}, {20, 64}, {4, 80}, {7, 112}, {4, 128}, {2, 256}, {1, 512}}) {
    shapes.push_back({group, group > 4 ? 1 : 2, dim, KvType::Q8});
  }
  return shapes;
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionParity,
                         testing::Combine(testing::ValuesIn(kBackends), testing::ValuesIn(shapes())),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + name_of(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace tidal::parity
