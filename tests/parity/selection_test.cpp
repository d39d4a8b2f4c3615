// The positions that a Select layer chooses: those of the reference, exactly.
//
// q and keys are such that the scores are the same numbers on every backend: small integers, whose products and sums
// are exact in float32 in any order (and in bf16 products). Max pooling and scope head rank these scores themselves, so
// that nothing but the rules decides, ties above all. Sum pooling ranks softmax probabilities, which are rounded: there
// the sets must be the same wherever the reference's own values tell the last chosen position from the first rejected
// one by more than the rounding.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/reference/math.h"
#include "backend/reference/select.h"
#include "model/plan.h"
#include "parity/bounds.h"

namespace tidal::parity {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Shape {
  int group, kv_heads, head_dim;
};

/// What the scores look like.
enum class Kind {
  Ties,       ///< integers in a small range
  Equal,      ///< one key everywhere
  Spread,     ///< integers in a large range, hardly any ties
  NotFinite,  ///< ties with NaN and infinities
  AllNan,
};

const char* to_string(Kind kind) {
  switch (kind) {
    case Kind::Ties: return "Ties";
    case Kind::Equal: return "Equal";
    case Kind::Spread: return "Spread";
    case Kind::NotFinite: return "NotFinite";
    case Kind::AllNan: return "AllNan";
  }
  return "";
}

struct Inputs {
  Inputs(const Shape& shape, const std::vector<int>& contexts, Kind kind, Random& random)
      : hp(attention_shape(shape.group, shape.kv_heads, shape.head_dim)),
        batch(decode_chunks(contexts), hp.vocab, random, false),
        cache(random_cache(hp, batch.blocks(), random)),
        q(static_cast<size_t>(batch->rows()) * hp.q_width()) {
    // At most 256 * 4 * 16 = 2^14: exact, and below the 2^8 of bf16's integers factor by factor.
    const int range = kind == Kind::Spread ? 16 : 1;
    for (float& value : q) value = static_cast<float>(random.integer(-range, range));
    for (size_t h = 0; h < q.size(); h += hp.head_dim) q[h] = random.integer(0, 1) ? 1.0f : -1.0f;
    for (const Chunk& chunk : batch->chunks) {
      for (int h = 0; h < hp.kv_heads; ++h) {
        for (int p = 0; p < chunk.context(); ++p) fill_key(cache.row(chunk, h, p), kind, random);
      }
    }
  }

  void fill_key(Bf16* key, Kind kind, Random& random) const {
    // Few dimensions differ from 0, so that even 256 of them give many equal sums.
    for (int d = 0; d < hp.head_dim; ++d) {
      float value = d < 6 || kind == Kind::Spread ? static_cast<float>(random.integer(-4, 4)) : 0.0f;
      if (kind == Kind::Equal) value = 1;
      if (value == 0 && random.integer(0, 1)) value = -0.0f;
      key[d] = to_bf16(value);
    }
    // Every q is 1 or -1 at dimension 0: an infinity there is one of the score, of either sign.
    const int dice = random.integer(0, 19);
    if (kind == Kind::AllNan || (kind == Kind::NotFinite && dice == 0)) key[0] = to_bf16(std::nanf(""));
    if (kind == Kind::NotFinite && dice == 1) key[0] = to_bf16(kInfinity);
    if (kind == Kind::NotFinite && dice == 2) key[0] = to_bf16(-kInfinity);
  }

  /// Raw scores of one query head.
  reference::Scores scores(const Chunk& chunk, int head) const {
    reference::Scores result;
    for (int p = 0; p < chunk.context(); ++p) {
      const Bf16* key = cache.row(chunk, head / hp.group(), p);
      const float* query = q.data() + static_cast<size_t>(chunk.first_row) * hp.q_width() + head * hp.head_dim;
      double sum = 0;
      for (int d = 0; d < hp.head_dim; ++d) sum += static_cast<double>(query[d]) * to_float(key[d]);
      result.push_back(static_cast<float>(sum));
    }
    return result;
  }

  Hyperparameters hp;
  HostBatch batch;
  HostCache cache;
  std::vector<float> q;
};

struct Selected {
  std::vector<int32_t> positions;  // [rows, units, budget]
  std::vector<float> out;
};

Selected select(const std::string& backend, const Inputs& in, const Policy& policy, int threads = 2) {
  Device device(backend, threads);
  device.begin(in.hp, in.batch);
  const Rows out = device.rows(in.batch->rows(), in.hp.q_width());
  const Selection selection = device.selection(policy, in.hp, in.batch->rows());
  device->attend(*RoleBatch(in.batch, Role::Select, policy), 0, device.rows(in.q, in.hp.q_width()),
                 device.cache(in.cache), selection, out);
  return {device.read(selection, in.batch->rows(), policy.budget), device.read(out)};
}

/// How many sets were compared exactly, and how many could not be.
struct Count {
  int exact = 0, undecided = 0;
};

void expect_same_sets(const Inputs& in, const Policy& policy, const std::vector<int32_t>& got,
                      const std::vector<int32_t>& reference, Count& count) {
  const int units = scope_units(policy.scope, in.hp.heads, in.hp.kv_heads);
  const double scale = 1 / std::sqrt(static_cast<double>(in.hp.head_dim));
  for (const Chunk& chunk : in.batch->chunks) {
    if (!in.batch.sparse(chunk)) continue;
    for (int unit = 0; unit < units; ++unit) {
      const auto at = (static_cast<ptrdiff_t>(chunk.first_row) * units + unit) * policy.budget;
      const std::vector<int32_t> ours(got.begin() + at, got.begin() + at + policy.budget);
      const std::vector<int32_t> theirs(reference.begin() + at, reference.begin() + at + policy.budget);
      // Whatever was chosen: different positions of the context, ascending, the reserved ones among them.
      ASSERT_TRUE(std::is_sorted(ours.begin(), ours.end(), std::less_equal<>()));
      ASSERT_GE(ours.front(), 0);
      ASSERT_EQ(ours.back(), chunk.context() - 1) << "the token being decoded";
      const Reserved reserved = reserved_positions(policy);
      for (int i = 0; i < reserved.sinks; ++i) ASSERT_EQ(ours[i], i);
      for (int i = 1; i <= reserved.recent; ++i) ASSERT_EQ(ours[policy.budget - i], chunk.context() - i);

      std::vector<reference::Scores> own;
      const int heads = in.hp.heads / units;
      for (int h = 0; h < heads; ++h) own.push_back(in.scores(chunk, unit * heads + h));
      for (reference::Scores& head : own) {
        for (float& score : head) score = reference::capped(score, in.hp.product_cap(in.hp.head_dim));
      }
      const bool rounded = policy.pooling == Pooling::Sum && heads > 1;
      if (rounded && ours != theirs && rounding_decides(own, policy, scale, theirs)) {
        ++count.undecided;
        continue;
      }
      EXPECT_EQ(ours, theirs) << "context " << chunk.context() << ", unit " << unit << ", scope "
                              << tidal::to_string(policy.scope) << ", budget " << policy.budget << ", sinks "
                              << policy.sinks << ", recent " << policy.recent;
      ++count.exact;
    }
  }
}

using Parameters = std::tuple<std::string, Shape, Kind>;

class SelectionParity : public test::BackendTest<Parameters> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  const Shape& shape() const { return std::get<1>(GetParam()); }
  Kind kind() const { return std::get<2>(GetParam()); }
  Random random_{static_cast<uint64_t>(1000 * shape().head_dim + 10 * shape().group + static_cast<int>(kind()))};
};

std::vector<Policy> policies() {
  std::vector<Policy> policies;
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    for (const Pooling pooling : {Pooling::Max, Pooling::Sum}) {
      if (scope == Scope::Head && pooling == Pooling::Sum) continue;  // pools nothing
      for (const auto& [budget, sinks, recent] :
           {std::tuple{1, 0, 0}, {2, 1, 1}, {64, 0, 0}, {64, 4, 0}, {64, 0, 16}, {64, 4, 16}, {64, 30, 34}}) {
        policies.push_back({scope, pooling, budget, sinks, recent});
      }
    }
  }
  return policies;
}

TEST_P(SelectionParity, SameSets) {
  // Long contexts, cut into pieces, where the order of the pieces could show; short ones for the rest.
  std::vector<int> contexts = {65, 66, 127, 128, 129, 300};
  if (kind() == Kind::Ties || kind() == Kind::Spread) contexts.insert(contexts.end(), {2049, 4097});
  const Inputs in(shape(), contexts, kind(), random_);
  const bool finite = kind() != Kind::NotFinite && kind() != Kind::AllNan;
  const std::vector<double> bounds =
      finite ? attention_bounds(in.hp, in.batch, in.cache, in.q, true) : std::vector<double>();
  Count count;
  for (const Policy& policy : policies()) {
    const Selected ours = select(backend(), in, policy), theirs = select("reference", in, policy);
    expect_same_sets(in, policy, ours.positions, theirs.positions, count);
    if (HasFatalFailure()) return;
    if (finite) expect_close("attend_select", ours.out, theirs.out, bounds);
  }
  RecordProperty("exact", count.exact);
  RecordProperty("undecided", count.undecided);
  EXPECT_GE(count.exact, 9 * count.undecided) << "too many sets hang on rounding for this to be a test";
}

// A cap that no score comes near enough to for two to become one. Where probabilities rank, they are of capped scores.
TEST_P(SelectionParity, CappedScores) {
  Inputs in(shape(), {65, 129, 300, 2049}, kind(), random_);
  in.hp.score_cap = 50;
  Count count;
  for (const Policy& policy : policies()) {
    if (policy.budget != 64) continue;
    expect_same_sets(in, policy, select(backend(), in, policy).positions, select("reference", in, policy).positions,
                     count);
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(count.exact, 9 * count.undecided) << "too many sets hang on rounding for this to be a test";
}

TEST_P(SelectionParity, BudgetOneBelowTheContext) {
  const Inputs in(shape(), {257, 257}, kind(), random_);
  Count count;
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    for (const auto& [sinks, recent] : {std::pair{0, 0}, {4, 64}, {256, 0}, {0, 256}}) {
      const Policy policy{scope, Pooling::Max, 256, sinks, recent};
      expect_same_sets(in, policy, select(backend(), in, policy).positions, select("reference", in, policy).positions,
                       count);
    }
  }
  EXPECT_GT(count.exact, 0);
  EXPECT_EQ(count.undecided, 0);
}

TEST_P(SelectionParity, ThreadsChangeNothing) {
  const Inputs in(shape(), {70, 2100}, kind(), random_);
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    const Policy policy{scope, Pooling::Sum, 64, 4, 16};
    const std::vector<int32_t> alone = select(backend(), in, policy, 1).positions;
    for (const int threads : {2, 3}) EXPECT_EQ(select(backend(), in, policy, threads).positions, alone);
  }
}

/// Softmax mass of positions in a set's heads, over that of all positions.
double mass_of(std::span<const reference::Scores> own, double scale, const std::vector<int32_t>& positions) {
  const std::vector<float> masses = reference::masses(own, scale);
  double all = 0, held = 0;
  for (const float value : masses) all += value;
  for (const int32_t p : positions) held += masses[p];
  return all > 0 ? held / all : 1;
}

// With top-p a set is a beginning of the ranking. Where it ends hangs on a sum of rounded probabilities: it must be the
// reference's wherever the share held there is not within the rounding of top-p.
TEST_P(SelectionParity, TopP) {
  const Inputs in(shape(), {65, 129, 300, 2049}, kind(), random_);
  const double scale = 1 / std::sqrt(static_cast<double>(in.hp.head_dim));
  Count count;
  bool shorter = false;
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    for (const double top_p : {0.05, 0.5, 0.9, 0.999}) {
      Policy policy{scope, Pooling::Sum, 64, 4, 8};
      policy.top_p = top_p;
      const Selected ours = select(backend(), in, policy), theirs = select("reference", in, policy);
      const int units = scope_units(scope, in.hp.heads, in.hp.kv_heads);
      for (const Chunk& chunk : in.batch->chunks) {
        for (int unit = 0; unit < units; ++unit) {
          const auto set = [&](const std::vector<int32_t>& all) {
            const auto at = all.begin() + (static_cast<ptrdiff_t>(chunk.first_row) * units + unit) * policy.budget;
            return std::vector<int32_t>(at, std::find(at, at + policy.budget, -1));
          };
          const std::vector<int32_t> a = set(ours.positions), b = set(theirs.positions);
          ASSERT_TRUE(std::is_sorted(a.begin(), a.end(), std::less_equal<>()));
          ASSERT_GE(a.size(), 12u);
          shorter = shorter || b.size() < 64;
          if (a == b) {
            ++count.exact;
            continue;
          }
          std::vector<reference::Scores> own;
          const int heads = in.hp.heads / units;
          for (int h = 0; h < heads; ++h) own.push_back(in.scores(chunk, unit * heads + h));
          // One rounding a term, and exp to a few units in the last place.
          const double rounding = 0x1p-24 * (chunk.context() + 64.0) * 4;
          const double held = mass_of(own, scale, a.size() < b.size() ? a : b);
          EXPECT_TRUE(std::abs(held - top_p) < rounding || rounding_decides(own, policy, scale, b))
              << "context " << chunk.context() << ", scope " << tidal::to_string(scope) << ", top-p " << top_p << ": "
              << a.size() << " positions, the reference has " << b.size() << ", which hold " << held;
          ++count.undecided;
        }
      }
    }
  }
  EXPECT_GE(count.exact, 9 * count.undecided) << "too many sets hang on rounding for this to be a test";
  EXPECT_TRUE(shorter) << "top-p has shortened nothing";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SelectionParity,
    testing::Combine(testing::ValuesIn(kBackends),
                     testing::Values(Shape{1, 3, 64}, Shape{3, 3, 64}, Shape{4, 2, 80}, Shape{6, 2, 128},
                                     Shape{7, 2, 64}, Shape{8, 1, 256}, Shape{20, 1, 96}, Shape{4, 1, 512}),
                     testing::Values(Kind::Ties, Kind::Equal, Kind::Spread, Kind::NotFinite, Kind::AllNan)),
    [](const auto& info) {
      const Shape& shape = std::get<1>(info.param);
      return std::get<0>(info.param) + "_group" + std::to_string(shape.group) + "_dim" +
             std::to_string(shape.head_dim) + "_" + to_string(std::get<2>(info.param));
    });

class Selecting : public test::BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, Selecting, testing::ValuesIn(kAllBackends), [](const auto& info) { return info.param; });

// What the rules of policy.h mean, on a case small enough to do by hand.
TEST_P(Selecting, ByHand) {
  Random random(9);
  const Hyperparameters hp = attention_shape(2, 1, 16);
  HostBatch batch({{9, 1, true}}, hp.vocab, random);
  HostCache cache(hp, batch.blocks());
  const Chunk& chunk = batch->chunks[0];
  // Head 0 reads dimension 0, head 1 dimension 1.
  std::vector<float> q(hp.q_width(), 0.0f);
  q[0] = q[16 + 1] = 1;
  const float nan = std::nanf("");
  const float first[10] = {0, 5, 1, 5, nan, -kInfinity, 2, 0, 0, -9};
  const float second[10] = {0, 0, 6, 0, nan, 1, nan, -0.0f, 0, -9};
  for (int p = 0; p < 10; ++p) {
    cache.row(chunk, 0, p)[0] = to_bf16(first[p]);
    cache.row(chunk, 0, p)[1] = to_bf16(second[p]);
  }
  const auto chosen = [&](const Policy& policy) {
    Device device(GetParam());
    device.begin(hp, batch);
    const Selection selection = device.selection(policy, hp, 1);
    device->attend(*RoleBatch(batch, Role::Select, policy), 0, device.rows(q, hp.q_width()), device.cache(cache),
                   selection, device.rows(1, hp.q_width()));
    return device.read(selection, 1, policy.budget);
  };
  // 0 * NaN and 0 * infinity are NaN: positions 4 and 6 have no score of either head, position 5 -infinity of head 0.
  EXPECT_EQ(chosen({Scope::Head, Pooling::Max, 3, 0, 0}), (std::vector<int32_t>{1, 3, 9, 0, 2, 9}));
  EXPECT_EQ(chosen({Scope::Shared, Pooling::Max, 3, 0, 0}), (std::vector<int32_t>{1, 2, 9}));
  EXPECT_EQ(chosen({Scope::Kv, Pooling::Max, 5, 1, 2}), (std::vector<int32_t>{0, 1, 2, 8, 9}));
  EXPECT_EQ(chosen({Scope::Shared, Pooling::Max, 1, 0, 0}), (std::vector<int32_t>{9}));
  EXPECT_EQ(chosen({Scope::Shared, Pooling::Max, 9, 0, 0}), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 7, 8, 9}));
}

// Eight equal positions hold an eighth each, two hold nothing: what top-p takes can be counted.
TEST_P(Selecting, TopPByHand) {
  Random random(9);
  const Hyperparameters hp = attention_shape(2, 1, 16);
  HostBatch batch({{9, 1, true}}, hp.vocab, random);
  HostCache cache(hp, batch.blocks());
  std::vector<float> q(hp.q_width(), 0.0f);
  q[0] = q[16] = 1;
  for (int p = 0; p < 10; ++p) cache.row(batch->chunks[0], 0, p)[0] = to_bf16(p == 1 || p == 5 ? -4000.0f : 3.0f);
  const auto chosen = [&](Policy policy, double top_p) {
    policy.top_p = top_p;
    Device device(GetParam());
    device.begin(hp, batch);
    const Selection selection = device.selection(policy, hp, 1);
    device->attend(*RoleBatch(batch, Role::Select, policy), 0, device.rows(q, hp.q_width()), device.cache(cache),
                   selection, device.rows(1, hp.q_width()));
    std::vector<int32_t> positions = device.read(selection, 1, policy.budget);
    positions.erase(std::remove(positions.begin(), positions.end(), -1), positions.end());
    return positions;
  };
  using Positions = std::vector<int32_t>;
  const Policy shared{Scope::Shared, Pooling::Sum, 9, 0, 0};
  EXPECT_EQ(chosen(shared, 0.01), (Positions{9}));  // the token itself, whatever p
  EXPECT_EQ(chosen(shared, 0.125), (Positions{9}));
  EXPECT_EQ(chosen(shared, 0.126), (Positions{0, 9}));
  EXPECT_EQ(chosen(shared, 0.5), (Positions{0, 2, 3, 9}));
  EXPECT_EQ(chosen(shared, 0.99), (Positions{0, 2, 3, 4, 6, 7, 8, 9}));
  EXPECT_EQ(chosen({Scope::Shared, Pooling::Sum, 4, 0, 0}, 0.99), (Positions{0, 2, 3, 9}));    // the cap
  EXPECT_EQ(chosen({Scope::Shared, Pooling::Sum, 9, 2, 2}, 0.5), (Positions{0, 1, 2, 8, 9}));  // reserved count
  EXPECT_EQ(chosen({Scope::Head, Pooling::Max, 9, 0, 0}, 0.25), (Positions{0, 9, 0, 9}));      // each head its own
}

}  // namespace
}  // namespace tidal::parity
