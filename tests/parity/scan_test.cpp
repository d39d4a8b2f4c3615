// A Scan layer on every backend against the reference: the sketches bit for bit, the selected positions, the output.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/reference/math.h"
#include "model/plan.h"
#include "parity/bounds.h"
#include "parity/scan_setup.h"

namespace tidal::parity {
namespace {

using Shape = ScanShape;
using Inputs = ScanInputs;
const std::vector<int>& kContexts = kScanContexts;

struct Scanned {
  std::vector<int32_t> positions;  // [rows, units, most_selected]
  std::vector<float> out;
  std::vector<std::byte> sketches;
};

Scanned scan(const std::string& backend, const Inputs& in, const Policy& policy, int threads = 2) {
  Device device(backend, threads);
  device.begin(in.hp, in.batch);
  const Rows out = device.rows(in.batch->rows(), in.hp.q_width());
  const Selection selection = device.selection(policy, in.hp, in.batch->rows());
  const KvLayer cache = device.sketched(in.cache, policy.sketch_bits);
  device->attend(*RoleBatch(in.batch, Role::Scan, policy), 0, device.rows(in.q, in.hp.q_width()), cache, selection,
                 out);
  return {device.read(selection, in.batch->rows(), most_selected(policy)), device.read(out),
          device.read_sketches(cache, policy.sketch_bits, in.batch.blocks())};
}

using Parameters = std::tuple<std::string, Shape, int>;

class ScanParity : public test::BackendTest<Parameters> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    if (!make_backend(backend(), 1)->keeps(shape().type, shape().head_dim)) GTEST_SKIP() << "refused there";
  }
  const Shape& shape() const { return std::get<1>(GetParam()); }
  int bits() const { return std::get<2>(GetParam()); }
  Random random_{static_cast<uint64_t>(1000 * shape().head_dim + 10 * shape().group + bits())};
};

std::vector<Policy> policies(int bits) {
  std::vector<Policy> policies;
  for (const auto& [scope, pooling] : {std::pair{Scope::Head, Pooling::Max},
                                       {Scope::Kv, Pooling::Max},
                                       {Scope::Shared, Pooling::Max},
                                       {Scope::Kv, Pooling::Sum},
                                       {Scope::Shared, Pooling::Sum}}) {
    for (const auto& [budget, sinks, recent] : {std::tuple{1, 0, 0}, {64, 0, 0}, {64, 4, 16}, {64, 4, 60}}) {
      Policy policy{scope, pooling, budget, sinks, recent};
      policy.sketch_bits = bits;
      policies.push_back(policy);
    }
  }
  return policies;
}

/// Sketches bit for bit, the selected positions of all policies, and the output.
void expect_scans(const std::string& backend, const Inputs& in, int bits) {
  const float cap = in.hp.product_cap(in.hp.head_dim);
  const double scale = 1 / std::sqrt(static_cast<double>(in.hp.head_dim));
  std::vector<std::vector<reference::Scores>> scores;  // [chunk][head]
  for (const Chunk& chunk : in.batch->chunks) {
    scores.emplace_back();
    for (int h = 0; h < in.hp.heads; ++h) scores.back().push_back(in.scores(chunk, h, bits));
  }
  int exact = 0, undecided = 0;
  for (const Policy& policy : policies(bits)) {
    const Scanned ours = scan(backend, in, policy), theirs = scan("reference", in, policy);
    ASSERT_EQ(ours.sketches, theirs.sketches);
    const int units = scope_units(policy.scope, in.hp.heads, in.hp.kv_heads), heads = in.hp.heads / units;
    for (const Chunk& chunk : in.batch->chunks) {
      const Policy own_policy = scan_policy(policy, chunk.context());
      for (int unit = 0; unit < units; ++unit) {
        const size_t set = static_cast<size_t>(chunk.first_row) * units + unit;
        const std::vector<int32_t> a = set_of(ours.positions, policy, set), b = set_of(theirs.positions, policy, set);
        // The budget of the full blocks, and the block still filling.
        const int filled = chunk.context() / kBlockTokens * kBlockTokens, filling = chunk.context() - filled;
        ASSERT_EQ(a.size(), std::min(policy.budget, filled) + static_cast<size_t>(filling));
        ASSERT_TRUE(std::is_sorted(a.begin(), a.end(), std::less_equal<>()));
        for (int i = 1; i <= std::max({1, filling, policy.recent}); ++i) {
          ASSERT_EQ(a[a.size() - i], chunk.context() - i);
        }
        for (int i = 0; i < policy.sinks; ++i) ASSERT_EQ(a[i], i);
        std::vector<reference::Scores> own(scores[&chunk - in.batch->chunks.data()].begin() + unit * heads,
                                           scores[&chunk - in.batch->chunks.data()].begin() + (unit + 1) * heads);
        const bool capped = weighs(own_policy, in.hp.heads, in.hp.kv_heads);
        for (reference::Scores& head : own) {
          for (float& score : head) score = reference::capped(score, capped ? cap : 0);
        }
        EXPECT_EQ(b, reference::select_positions(own, own_policy, scale));
        const bool pooled = policy.pooling == Pooling::Sum && heads > 1;
        if (a != b && pooled && rounding_decides(own, own_policy, scale, b)) {
          ++undecided;
          continue;
        }
        ++exact;
        EXPECT_EQ(a, b) << "context " << chunk.context() << ", unit " << unit << ", scope "
                        << tidal::to_string(policy.scope) << ", budget " << policy.budget;
        for (int h = unit * heads; a == b && h < (unit + 1) * heads; ++h) {
          const ptrdiff_t first = in.query(chunk, h) - in.q.data();
          const auto row = [&](const std::vector<float>& out) {
            return std::vector<float>(out.begin() + first, out.begin() + first + in.hp.head_dim);
          };
          expect_close("scan", row(ours.out), row(theirs.out),
                       attention_bounds(in.query(chunk, h), in.cache, chunk, h / in.hp.group(), a, true, nullptr, cap));
        }
      }
    }
  }
  EXPECT_GE(exact, 9 * undecided) << "too many sets hang on rounding for this to be a test";
}

TEST_P(ScanParity, SketchesSetsAndOutput) { expect_scans(backend(), Inputs(shape(), kContexts, random_), bits()); }

TEST_P(ScanParity, CappedScores) {
  Inputs in(shape(), kContexts, random_);
  in.hp.score_cap = 2;
  expect_scans(backend(), in, bits());
}

TEST_P(ScanParity, ThreadsChangeNothing) {
  const Inputs in(shape(), {70, 2100}, random_);
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    Policy policy{scope, Pooling::Sum, 64, 4, 16};
    policy.sketch_bits = bits();
    const Scanned alone = scan(backend(), in, policy, 1);
    for (const int threads : {2, 3}) {
      const Scanned together = scan(backend(), in, policy, threads);
      EXPECT_EQ(together.positions, alone.positions);
      EXPECT_EQ(together.out, alone.out);
      EXPECT_EQ(together.sketches, alone.sketches);
    }
  }
}

// A key that is no number spoils scores, nothing else: every set has its size, in order, within the context.
TEST_P(ScanParity, ValuesThatAreNoNumbers) {
  Inputs in(shape(), {65, 129, 300}, random_);
  for (const Chunk& chunk : in.batch->chunks) {
    for (int h = 0; h < in.hp.kv_heads; ++h) {
      in.cache.row(chunk, h, 5)[1] = to_bf16(std::nanf(""));
      in.cache.row(chunk, h, 20)[2] = to_bf16(std::numeric_limits<float>::infinity());
    }
  }
  for (const Policy& policy : policies(bits())) {
    const Scanned ours = scan(backend(), in, policy);
    const int units = scope_units(policy.scope, in.hp.heads, in.hp.kv_heads);
    for (const Chunk& chunk : in.batch->chunks) {
      for (int unit = 0; unit < units; ++unit) {
        const auto set = set_of(ours.positions, policy, static_cast<size_t>(chunk.first_row) * units + unit);
        const int filled = chunk.context() / kBlockTokens * kBlockTokens;
        ASSERT_EQ(static_cast<int>(set.size()), std::min(policy.budget, filled) + chunk.context() - filled);
        ASSERT_TRUE(std::is_sorted(set.begin(), set.end(), std::less_equal<>()));
        ASSERT_GE(set.front(), 0);
        ASSERT_EQ(set.back(), chunk.context() - 1);
      }
    }
  }
}

// Where the largest product of a query with a block's scales is 0 or next to it: weights are what the words of
// backend/sketch.h say there, too, beside heads whose products are as usual.
TEST_P(ScanParity, QueriesOfAllSizes) {
  Inputs in(shape(), {129, 300, 700}, random_);
  for (const Chunk& chunk : in.batch->chunks) {
    for (int h = 0; h < in.hp.kv_heads; ++h) {
      for (int p = 64; p < 128; ++p) std::copy_n(in.cache.row(chunk, h, 64), in.hp.head_dim, in.cache.row(chunk, h, p));
    }
    for (int h = 0; h < in.hp.heads; ++h) {
      const float factor = h % 3 == 0 ? 0x1p-110f : h % 3 == 1 ? 1.0f : 0.0f;
      float* const query = in.q.data() + (in.query(chunk, h) - in.q.data());
      for (int d = 0; d < in.hp.head_dim; ++d) query[d] *= factor;
    }
  }
  for (const Policy& policy : policies(bits())) {
    if (policy.pooling == Pooling::Max) {
      EXPECT_EQ(scan(backend(), in, policy).positions, scan("reference", in, policy).positions)
          << "scope " << tidal::to_string(policy.scope) << ", budget " << policy.budget;
    }
  }
}

// Top-p counts the approximate mass: with more of it allowed, a set only grows. Where it ends is the reference's, but
// for what is within the rounding of the mass.
TEST_P(ScanParity, TopPShortens) {
  const Inputs in(shape(), {700}, random_);
  size_t before = 0;
  for (const double top_p : {0.05, 0.5, 0.9, 1.0}) {
    Policy policy{Scope::Kv, Pooling::Sum, 128, 4, 8};
    policy.sketch_bits = bits();
    policy.top_p = top_p;
    const std::vector<int32_t> ours = set_of(scan(backend(), in, policy).positions, policy, 0);
    const std::vector<int32_t> theirs = set_of(scan("reference", in, policy).positions, policy, 0);
    if (ours != theirs) {
      const Chunk& chunk = in.batch->chunks[0];
      std::vector<reference::Scores> own;
      for (int h = 0; h < in.hp.group(); ++h) own.push_back(in.scores(chunk, h, bits()));
      const double scale = 1 / std::sqrt(static_cast<double>(in.hp.head_dim));
      const std::vector<float> masses = reference::masses(own, scale);
      double all = 0, held = 0;
      for (const float mass : masses) all += mass;
      for (const int32_t p : ours.size() < theirs.size() ? ours : theirs) held += masses[p];
      EXPECT_TRUE(std::abs(held / all - top_p) < 0x1p-24 * (700 + 64) * 4 ||
                  rounding_decides(own, scan_policy(policy, 700), scale, theirs))
          << "top-p " << top_p << ": " << ours.size() << " positions, the reference has " << theirs.size();
    }
    EXPECT_GE(ours.size(), std::max<size_t>(before, 700 % kBlockTokens + 4));
    before = ours.size();
  }
  EXPECT_EQ(before, 128u + 700 % kBlockTokens);
}

// So many KV heads that each warp of a device's scan has several blocks, more than it asks for at once.
class LongScan : public ScanParity {};

TEST_P(LongScan, SetsAreTheReferences) {
  const Inputs in(shape(), {17001}, random_);
  const Chunk& chunk = in.batch->chunks[0];
  const double scale = 1 / std::sqrt(static_cast<double>(in.hp.head_dim));
  for (const auto& [scope, pooling] :
       {std::pair{Scope::Head, Pooling::Max}, {Scope::Kv, Pooling::Max}, {Scope::Kv, Pooling::Sum}}) {
    Policy policy{scope, pooling, 256, 4, 64};
    policy.sketch_bits = bits();
    const Scanned ours = scan(backend(), in, policy), theirs = scan("reference", in, policy);
    ASSERT_EQ(ours.sketches, theirs.sketches);
    const int units = scope_units(scope, in.hp.heads, in.hp.kv_heads), heads = in.hp.heads / units;
    int undecided = 0;
    for (int unit = 0; unit < units; ++unit) {
      const std::vector<int32_t> a = set_of(ours.positions, policy, unit), b = set_of(theirs.positions, policy, unit);
      if (a != b && pooling == Pooling::Sum && heads > 1) {
        std::vector<reference::Scores> own;
        for (int h = 0; h < heads; ++h) own.push_back(in.scores(chunk, unit * heads + h, bits()));
        ++undecided;
        EXPECT_TRUE(rounding_decides(own, scan_policy(policy, chunk.context()), scale, b)) << "unit " << unit;
        continue;
      }
      EXPECT_EQ(a, b) << "unit " << unit << ", scope " << tidal::to_string(scope);
    }
    EXPECT_LE(10 * undecided, units) << "too many sets hang on rounding for this to be a test";
  }
}

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
  const Shape& shape = std::get<1>(info.param);
  return std::get<0>(info.param) + "_group" + std::to_string(shape.group) + "_dim" + std::to_string(shape.head_dim) +
         "_bits" + std::to_string(std::get<2>(info.param)) + (shape.type == KvType::Bf16 ? "" : "_q8_0");
}

INSTANTIATE_TEST_SUITE_P(Shapes, ScanParity,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(Shape{1, 3, 64}, Shape{3, 3, 64}, Shape{4, 2, 80},
                                                          Shape{7, 2, 64}, Shape{4, 1, 128}, Shape{20, 1, 96},
                                                          Shape{2, 1, 256}, Shape{4, 1, 512}),
                                          testing::Values(1, 2, 4)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(In8Bits, ScanParity,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(Shape{7, 2, 64, KvType::Q8}, Shape{4, 2, 80, KvType::Q8},
                                                          Shape{20, 1, 96, KvType::Q8}, Shape{4, 1, 128, KvType::Q8},
                                                          Shape{2, 1, 256, KvType::Q8}),
                                          testing::Values(2)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Shapes, LongScan,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(Shape{1, 32, 64}, Shape{2, 32, 64}), testing::Values(2)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(OtherWidths, LongScan,
                         testing::Combine(testing::ValuesIn(kBackends), testing::Values(Shape{1, 32, 48}),
                                          testing::Values(1, 4)),
                         name_of);

}  // namespace
}  // namespace tidal::parity
