// A Scan layer that estimates what it does not select (Completion), on every backend that can: tiers and selection
// against the reference, the output against the words of backend/backend.h in double.
#include <gtest/gtest.h>

#include <cmath>

#include "backend/reference/math.h"
#include "parity/bounds.h"
#include "parity/scan_setup.h"

namespace tidal::parity {
namespace {

constexpr int kBits = 2;
constexpr double kFloat = 0x1p-24, kBf16 = 0x1p-8;

struct Completed {
  std::vector<int32_t> positions;  // [rows, kv_heads, most_selected]
  std::vector<float> out;
};

Completed complete(const std::string& backend, const ScanInputs& in, const Policy& policy, int threads = 2,
                   Role role = Role::Scan) {
  Device device(backend, threads);
  device.begin(in.hp, in.batch);
  const Rows out = device.rows(in.batch->rows(), in.hp.q_width());
  const Selection selection = device.selection(policy, in.hp, in.batch->rows());
  device->attend(*RoleBatch(in.batch, role, policy), 0, device.rows(in.q, in.hp.q_width()),
                 device.sketched_values(in.cache, kBits), selection, out);
  return {device.read(selection, in.batch->rows(), most_selected(policy)), device.read(out)};
}

Policy policy_of(int budget, Completion completion, int sinks = 0, int recent = 0) {
  return {.scope = Scope::Kv,
          .pooling = Pooling::Sum,
          .budget = budget,
          .sinks = sinks,
          .recent = recent,
          .sketch_bits = kBits,
          .completion = completion};
}

/// One KV head of one row, from the words: its tiers, and the scores and values that its heads go by.
class Expected {
 public:
  Expected(const ScanInputs& in, const Chunk& chunk, int kv_head, const Policy& policy)
      : in_(in), chunk_(chunk), kv_head_(kv_head), scale_(1 / std::sqrt(static_cast<double>(in.hp.head_dim))) {
    const int context = chunk.context(), dim = in.hp.head_dim;
    for (int h = 0; h < in.hp.group(); ++h) scores_.push_back(in.scores(chunk, kv_head * in.hp.group() + h, kBits));
    const Policy outer = tier_policy(policy, context, policy.completion.estimated);
    const Policy inner = tier_policy(policy, context, policy.completion.ranked);
    estimated_ = reference::select_positions(scores_, outer, scale_);
    const std::vector<int32_t> ranked = reference::select_positions(scores_, inner, scale_);
    undecided_ =
        rounding_decides(scores_, outer, scale_, estimated_) || rounding_decides(scores_, inner, scale_, ranked);
    std::vector<reference::Scores> own(scores_.size());
    double error = 0;
    std::vector<float> key(dim), value(dim);
    for (const int32_t p : ranked) {
      in.cache.read(chunk, kv_head, p, key.data(), value.data());
      for (size_t h = 0; h < scores_.size(); ++h) {
        double sum = 0, magnitude = 0;
        for (int d = 0; d < dim; ++d) {
          const double product = static_cast<double>(query(h)[d]) * key[d];
          sum += product;
          magnitude += std::abs(product);
        }
        scores_[h][p] = static_cast<float>(sum);
        own[h].push_back(scores_[h][p]);
        error = std::max(error, kFloat * (dim + 2) * magnitude);
      }
    }
    std::vector<int32_t> places = reference::select_positions(own, scan_policy(policy, context), scale_);
    undecided_ = undecided_ || rounding_decides(own, scan_policy(policy, context), scale_, places, error);
    for (const int32_t place : places) selected_.push_back(ranked[place]);
    find_values();
  }

  bool undecided() const { return undecided_; }
  const std::vector<int32_t>& selected() const { return selected_; }

  /// [head_dim] the output of a head, and how far a backend may be from it.
  std::vector<float> output(int head, std::vector<double>& bounds) const {
    const int context = chunk_.context(), dim = in_.hp.head_dim;
    const reference::Scores& scores = scores_[head];
    double top = -1e300, total = 0;
    for (const float score : scores) top = std::max(top, static_cast<double>(score));
    std::vector<double> weights(context), all(context), out(dim, 0.0);
    for (int p = 0; p < context; ++p) {
      all[p] = std::exp((scores[p] - top) * scale_);
      total += weights[p] = all[p] * (kinds_[p] == Kind::Mean ? kShareOfMeans : 1.0f);
    }
    for (int p = 0; p < context; ++p) {
      for (int d = 0; d < dim; ++d) out[d] += weights[p] / total * value(p)[d];
    }
    std::vector<double> chance(dim, 0.0), certain(dim, 0.0);
    for (int p = 0; p < context; ++p) {
      const auto [squares, magnitude] = products(head, p);
      const bool own = kinds_[p] == Kind::Own;
      // What is selected goes through the attention of any rows (attention_bounds()): q and weights in bf16.
      const double rounded_q = own ? kBf16 * scale_ * std::sqrt(squares) : 0.0;
      // Float32: the sum of a score by its key, the scaled score, its distances to two references, its exponential to
      // 1e-6, sums over positions and blocks.
      const double floats = kFloat * (2 * (dim + 8) * scale_ * magnitude +
                                      8 * scale_ * (std::abs(scores[p]) + std::abs(top)) + 2.0 * context + 96);
      for (int d = 0; d < dim; ++d) {
        const double v = value(p)[d], weight = weights[p] / total;
        chance[d] += square(weight * rounded_q * 1.1 * (v - out[d]));
        if (own) chance[d] += square(weight * kBf16 * v);
        certain[d] += weight * floats * (std::abs(v) + std::abs(out[d]));
        // The sum of a block's terms, of which those of the estimated positions are taken out again.
        certain[d] += all[p] / total * floats * (std::abs(mean(p)[d]) + std::abs(out[d]));
      }
    }
    bounds.resize(dim);
    for (int d = 0; d < dim; ++d) bounds[d] = 7 * std::sqrt(chance[d]) + certain[d] + 1e-30;  // as in bounds.h
    return {out.begin(), out.end()};
  }

 private:
  enum class Kind { Mean, Estimate, Own };

  static double square(double x) { return x * x; }
  const float* query(size_t head) const {
    return in_.query(chunk_, kv_head_ * in_.hp.group() + static_cast<int>(head));
  }
  const float* value(int p) const { return values_.data() + static_cast<ptrdiff_t>(p) * in_.hp.head_dim; }
  const float* mean(int p) const { return means_.data() + static_cast<ptrdiff_t>(p) * in_.hp.head_dim; }

  void find_values() {
    const int context = chunk_.context(), dim = in_.hp.head_dim;
    kinds_.assign(static_cast<size_t>(context), Kind::Mean);
    for (const int32_t p : estimated_) kinds_[p] = Kind::Estimate;
    for (const int32_t p : selected_) kinds_[p] = Kind::Own;
    values_.resize(static_cast<size_t>(context) * dim);
    means_.assign(static_cast<size_t>(context) * dim, 0.0f);
    const ValueSketchLayout layout{dim};
    std::vector<std::byte> sketch(static_cast<size_t>(layout.bytes()));
    std::vector<float> key(dim);
    for (int p = 0; p < context; ++p) {
      float* const value = values_.data() + static_cast<ptrdiff_t>(p) * dim;
      if (p / kBlockTokens < context / kBlockTokens) {
        const std::byte* const tile = in_.layer().tile(chunk_.blocks[p / kBlockTokens], kv_head_);
        if (p % kBlockTokens == 0) sketch_values(layout, in_.cache.type, tile, sketch.data());
        value_sketch_mean(layout, sketch.data(), means_.data() + static_cast<ptrdiff_t>(p) * dim);
        value_sketch_row(layout, sketch.data(), p % kBlockTokens, value);
      } else {
        ASSERT_EQ(kinds_[p], Kind::Own) << "the block still filling";
      }
      if (kinds_[p] == Kind::Mean) std::copy_n(mean(p), dim, value);
      if (kinds_[p] == Kind::Own) in_.cache.read(chunk_, kv_head_, p, key.data(), value);
    }
  }

  /// Of q and a key: the squares of the products, and their magnitudes.
  std::pair<double, double> products(int head, int p) const {
    std::vector<float> key(in_.hp.head_dim), value(in_.hp.head_dim);
    in_.cache.read(chunk_, kv_head_, p, key.data(), value.data());
    double squares = 0, magnitude = 0;
    for (int d = 0; d < in_.hp.head_dim; ++d) {
      const double product = static_cast<double>(query(head)[d]) * key[d];
      squares += product * product;
      magnitude += std::abs(product);
    }
    return {squares, magnitude};
  }

  const ScanInputs& in_;
  const Chunk& chunk_;
  int kv_head_;
  double scale_;
  std::vector<reference::Scores> scores_;  // of the heads: by sketches, of the ranked positions by keys
  std::vector<int32_t> estimated_, selected_;
  std::vector<Kind> kinds_;
  std::vector<float> values_, means_;  // [context, head_dim]
  bool undecided_ = false;
};

using Parameters = std::tuple<std::string, ScanShape>;

class CompletionParity : public test::BackendTest<Parameters> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  const ScanShape& shape() const { return std::get<1>(GetParam()); }
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    if (!make_backend(backend(), 1)->completes()) GTEST_SKIP() << "refused there";
  }
  Random random_{static_cast<uint64_t>(1000 * shape().head_dim + shape().group)};
};

TEST_P(CompletionParity, SelectionAndOutput) {
  const ScanInputs in(shape(), {65, 129, 191, 192, 700, 1153}, random_);
  int decided = 0, undecided = 0;
  for (const Policy& policy : {policy_of(1, {1, 1}), policy_of(8, {2, 5}), policy_of(16, {4, 8}, 4, 5),
                               policy_of(40, {64, 64}), policy_of(64, {1, 3}, 0, 64)}) {
    const Completed ours = complete(backend(), in, policy);
    for (const Chunk& chunk : in.batch->chunks) {
      for (int kv_head = 0; kv_head < in.hp.kv_heads; ++kv_head) {
        const Expected expected(in, chunk, kv_head, policy);
        if (expected.undecided()) {
          ++undecided;
          continue;
        }
        ++decided;
        const size_t set = static_cast<size_t>(chunk.first_row) * in.hp.kv_heads + kv_head;
        EXPECT_EQ(set_of(ours.positions, policy, set), expected.selected())
            << "context " << chunk.context() << ", budget " << policy.budget;
        for (int h = 0; h < in.hp.group(); ++h) {
          const ptrdiff_t first = in.query(chunk, kv_head * in.hp.group() + h) - in.q.data();
          std::vector<double> bounds;
          const std::vector<float> output = expected.output(h, bounds);
          const std::vector<float> got(ours.out.begin() + first, ours.out.begin() + first + in.hp.head_dim);
          expect_close("completed", got, output, bounds);
        }
      }
    }
  }
  EXPECT_GE(decided, 9 * undecided) << "too many sets hang on rounding for this to be a test";
}

// Where every position is ranked by its key and all values of a block are the same, nothing is estimated wrongly: it is
// full attention.
TEST_P(CompletionParity, OfEqualValuesIsFullAttention) {
  ScanInputs in(shape(), {65, 192, 500}, random_);
  for (const Chunk& chunk : in.batch->chunks) {
    for (int h = 0; h < in.hp.kv_heads; ++h) {
      for (int p = 0; p < chunk.context(); ++p) {
        Bf16* const value = in.cache.row(chunk, h, p) + in.hp.head_dim;
        const Bf16* const first = in.cache.row(chunk, h, p / kBlockTokens * kBlockTokens) + in.hp.head_dim;
        for (int d = 0; d < in.hp.head_dim; ++d) {
          // 7 bits, and in each block of 32 the highest: neither bf16 nor 8 bits round them.
          const int code = d % kKvScaleBlock == 0 ? 127 : random_.integer(-127, 127);
          value[d] = p % kBlockTokens > 0 ? first[d] : to_bf16(static_cast<float>(code) / 64);
        }
      }
    }
  }
  const Policy policy = policy_of(8, {64, 64});
  const std::vector<float> ours = complete(backend(), in, policy).out;
  const std::vector<float> full = complete("reference", in, policy, 1, Role::Dense).out;
  expect_close("completed", ours, full, attention_bounds(in.hp, in.batch, in.cache, in.q, true));
}

TEST_P(CompletionParity, ThreadsChangeNothing) {
  const ScanInputs in(shape(), {70, 5000}, random_);
  const Policy policy = policy_of(16, {4, 8});
  const Completed alone = complete(backend(), in, policy, 1);
  for (const int threads : {2, 3}) {
    const Completed together = complete(backend(), in, policy, threads);
    EXPECT_EQ(together.positions, alone.positions);
    EXPECT_EQ(together.out, alone.out);
  }
}

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
  const ScanShape& shape = std::get<1>(info.param);
  return std::get<0>(info.param) + "_group" + std::to_string(shape.group) + "_dim" + std::to_string(shape.head_dim) +
         (shape.type == KvType::Bf16 ? "" : "_q8_0");
}

INSTANTIATE_TEST_SUITE_P(Shapes, CompletionParity,
                         testing::Combine(testing::ValuesIn(kAllBackends),
                                          testing::Values(ScanShape{1, 3, 64}, ScanShape{7, 2, 64}, ScanShape{4, 2, 80},
                                                          ScanShape{4, 1, 128}, ScanShape{20, 1, 96},
                                                          ScanShape{2, 1, 256}, ScanShape{4, 2, 64, KvType::Q8})),
                         name_of);

}  // namespace
}  // namespace tidal::parity
