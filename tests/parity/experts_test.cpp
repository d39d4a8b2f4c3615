// Mixtures of experts against the reference, and the reference against what Experts says.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "parity/bounds.h"
#include "support/small_device.h"

namespace tidal::parity {
namespace {

struct Mixture {
  const char* name;
  int width;
  Experts experts;
  bool biased = false;  ///< the router and the experts, whose activation is gpt-oss'
  bool many = false;    ///< rows, so that experts have whole tiles of them
  bool fused = false;   ///< each expert's gate is followed by its up, in one matrix
  bool small = false;   ///< on a device of 99 KiB of shared memory a block
};

const Mixture kChosen{"chosen", 256, {.count = 6, .used = 2, .ffn = 256, .weights_sum_to_one = true}};
/// Up is of another type than gate.
const Mixture kMixed{"mixed", 256, {.count = 6, .used = 2, .ffn = 256, .shared_ffn = 256}};
const Mixture kShared{"shared", 160, {.count = 5, .used = 3, .ffn = 96, .shared_ffn = 64}};
const Mixture kAll{"all", 64, {.count = 3, .used = 3, .ffn = 32}};
const Mixture kBiased{"biased", 96, {.count = 6, .used = 3, .ffn = 64, .weights_sum_to_one = true}, true};
const Mixture kOne{"one", 64, {.count = 9, .used = 1, .ffn = 32, .weights_sum_to_one = true}};

/// Gemma 4's.
const Mixture kOwnNorms{
    "own_norms",
    256,
    {.count = 6, .used = 2, .ffn = 256, .shared_ffn = 256, .weights_sum_to_one = true, .own_norms = true}};
const Mixture kFused = [] {
  Mixture mixture = kOwnNorms;
  mixture.name = "fused";
  mixture.fused = true;
  return mixture;
}();
const Mixture kFusedMany{"fused_many", 288, {.count = 5, .used = 2, .ffn = 160}, false, true, true};

/// Sizes that no tile divides.
const Mixture kMany{"many", 672, {.count = 9, .used = 2, .ffn = 288, .weights_sum_to_one = true}, false, true};
const Mixture kManyBlocks{"many_blocks", 768, {.count = 4, .used = 1, .ffn = 512}, false, true};

const Mixture kManySmall = [] {
  Mixture mixture = kMany;
  mixture.name = "many_small";
  mixture.small = true;
  return mixture;
}();

/// Chunks whose rows are few for any expert, few for some, many for all.
std::vector<ChunkShape> ragged(bool many) {
  if (many) return {{7, 1}, {300, 30}, {64, 400}};
  return {{0, 1}, {64, 1}, {4096, 1}, {62, 2}, {5, 8}, {120, 9}, {0, 17}, {300, 30}};
}

class ExpertsParity : public test::BackendTest<std::tuple<std::string, Mixture, ggml_type>> {
 protected:
  /// The experts that a row goes through, their weights, and how far a backend's logits of the router may be off.
  struct Choices {
    std::vector<std::pair<int, double>> experts;
    double bound = 0;
  };

  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    hp_.layers = 1;
    hp_.width = mixture().width;
    hp_.heads = hp_.kv_heads = 1;
    hp_.head_dim = 16;
    hp_.vocab = 333;
    hp_.experts = mixture().experts;
    const auto matrix = [&](int rows, int cols) { return random_weight(type(), rows, cols, random_); };
    const Experts& experts = hp_.experts;
    norm_ = random_vector(hp_.width, 1, 0.2f, random_);
    router_ = random_weight(GGML_TYPE_F32, experts.count, hp_.width, random_);
    gate_ = matrix(experts.count * experts.ffn, hp_.width);
    if (mixture().fused) fused_ = matrix(2 * experts.count * experts.ffn, hp_.width);
    if (experts.own_norms) {
      hp_.post_norms = true;
      for (HostWeight* norm : {&router_norm_, &expert_norm_, &shared_post_norm_, &expert_post_norm_, &post_norm_}) {
        *norm = random_vector(hp_.width, 1, 0.2f, random_);
      }
    }
    up_ = random_weight(is_mixed() ? GGML_TYPE_Q6_K : type(), experts.count * experts.ffn, hp_.width, random_);
    down_ = matrix(experts.count * hp_.width, experts.ffn);
    if (mixture().biased) {
      hp_.activation = Activation::ClampedSwiGlu;
      const auto biases = [&](int count, int cols) {
        HostWeight weight = random_vector(count * cols, 0, 2.0f, random_);
        weight.view.rows = count;
        weight.view.cols = cols;
        return weight;
      };
      router_bias_ = biases(1, experts.count);
      gate_biases_ = biases(experts.count, experts.ffn);
      up_biases_ = biases(experts.count, experts.ffn);
      down_biases_ = biases(experts.count, hp_.width);
    }
    if (experts.shared_ffn > 0) {
      shared_gate_ = matrix(experts.shared_ffn, hp_.width);
      shared_up_ = matrix(experts.shared_ffn, hp_.width);
      shared_down_ = matrix(hp_.width, experts.shared_ffn);
      if (!experts.own_norms) switch_ = random_weight(GGML_TYPE_F32, 1, hp_.width, random_);
    }
    for (int r = 0; r < batch_->rows(); ++r) {
      // Where two experts are as good as each other, rounding may choose either.
      std::vector<float> own;
      do {
        own.clear();
        for (int i = 0; i < hp_.width; ++i) own.push_back(random_.normal(2.0f));
      } while (choose(normed(own, router_norm())).experts.empty());
      x_.insert(x_.end(), own.begin(), own.end());
    }
  }

  const std::string& backend() const { return std::get<0>(GetParam()); }
  const Mixture& mixture() const { return std::get<1>(GetParam()); }
  ggml_type type() const { return std::get<2>(GetParam()); }
  bool is_mixed() const { return mixture().name == kMixed.name; }
  std::span<const float> row(int index) const {
    return {x_.data() + static_cast<size_t>(index) * hp_.width, static_cast<size_t>(hp_.width)};
  }

  /// No experts where two that the choice is between are too near to each other.
  Choices choose(std::span<const float> x) const {
    const Experts& experts = hp_.experts;
    const std::vector<float> logits = product(router_, router_bias_, x);
    Choices choices;
    for (const double bound : product_bounds(router_, x, Rounding::None))
      choices.bound = std::max(choices.bound, bound);
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    const auto used = static_cast<size_t>(experts.used);
    if (used < order.size() && logits[order[used - 1]] - logits[order[used]] < 4 * choices.bound) return choices;
    double sum = 0;
    for (size_t i = 0; i < (experts.weights_sum_to_one ? used : order.size()); ++i) sum += std::exp(logits[order[i]]);
    for (size_t i = 0; i < used; ++i) choices.experts.emplace_back(order[i], std::exp(logits[order[i]]) / sum);
    return choices;
  }

  const HostWeight& router_norm() const { return hp_.experts.own_norms ? router_norm_ : norm_; }
  const HostWeight& chosen_norm() const { return hp_.experts.own_norms ? expert_norm_ : norm_; }
  /// Gate (0) or up (1) of one expert.
  HostWeight gate_or_up(int which, int expert) const {
    if (mixture().fused) return part(fused_, 2 * expert + which, hp_.experts.ffn);
    return part(which == 0 ? gate_ : up_, expert, hp_.experts.ffn);
  }

  /// One expert's part of a matrix.
  static HostWeight part(const HostWeight& all, int expert, int rows) {
    HostWeight own = all;
    own.view.rows = rows;
    const auto begin = all.values.begin() + int64_t{expert} * rows * all.view.cols;
    own.values.assign(begin, begin + rows * all.view.cols);
    return own;
  }

  /// The bias of one expert among those of all, which may be none.
  static HostWeight bias(const HostWeight& all, int expert) {
    HostWeight own;
    if (all.values.empty()) return own;
    const auto begin = all.values.begin() + int64_t{expert} * all.view.cols;
    own.values.assign(begin, begin + all.view.cols);
    return own;
  }

  /// What is added up of one or several experts.
  struct Sum {
    explicit Sum(size_t width) : values(width), bounds(width) {}
    Bounded result() const { return {{values.begin(), values.end()}, bounds}; }
    std::vector<double> values, bounds;
  };
  static Bounded normed_part(const Bounded& part, const HostWeight& norm) {
    return {normed(part.values, norm), norm_bounds(part.values, part.bounds, norm.values)};
  }

  /// What is added to one row, x. `rows_of(expert)`: how many rows of the chunk it has.
  template <typename RowsOf>
  Bounded added(std::span<const float> row, int chunk_rows, RowsOf&& rows_of) const {
    Sum shared(row.size()), chosen(row.size());
    add_shared(normed(row, norm_), chunk_rows, shared);
    add_chosen(row, chunk_rows, rows_of, hp_.experts.own_norms ? chosen : shared);
    if (!hp_.experts.own_norms) return shared.result();
    const Bounded a = normed_part(shared.result(), shared_post_norm_);
    const Bounded b = normed_part(chosen.result(), expert_post_norm_);
    Bounded both = a;
    for (size_t i = 0; i < row.size(); ++i) {
      both.values[i] += b.values[i];
      both.bounds[i] += b.bounds[i] + 0x1p-23 * (std::abs(a.values[i]) + std::abs(b.values[i]));
    }
    return normed_part(both, post_norm_);
  }

  /// `error`: of the weight.
  void add(const Bounded& hidden, const HostWeight& down, const HostWeight& down_bias, double weight, double error,
           int rows, Sum& to) const {
    const std::vector<float> values = product(down, down_bias, hidden.values);
    const auto bounds =
        product_bounds(down, hidden.values, rounding_of(backend(), rows, down.view.type), hidden.bounds);
    for (size_t i = 0; i < values.size(); ++i) {
      to.values[i] += weight * values[i];
      // The weight's own error; product and sum in float32.
      to.bounds[i] += (weight + error) * bounds[i] + (error + 4 * 0x1p-24 * weight) * std::abs(values[i]);
    }
  }

  void add_shared(const std::vector<float>& x, int chunk_rows, Sum& to) const {
    if (hp_.experts.shared_ffn == 0) return;
    double share = 1, error = 0;
    if (!switch_.values.empty()) {
      share = 1 / (1 + std::exp(-static_cast<double>(product(switch_, {}, x)[0])));
      error = product_bounds(switch_, x, Rounding::None)[0] / 4 + 8 * 0x1p-24;  // the slope is 1/4 at most
    }
    const auto rounding = rounding_of(backend(), chunk_rows, shared_gate_.view.type);
    add(hidden_layer(shared_gate_, {}, shared_up_, {}, x, rounding), shared_down_, {}, share, error, chunk_rows, to);
  }

  template <typename RowsOf>
  void add_chosen(std::span<const float> row, int chunk_rows, RowsOf&& rows_of, Sum& to) const {
    const Experts& experts = hp_.experts;
    const std::vector<float> x = normed(row, chosen_norm());
    const Choices choices = choose(normed(row, router_norm()));
    for (const auto& [expert, weight] : choices.experts) {
      // The device takes a chunk's rows one way, however many an expert has of them.
      // As those of long ones where gate and up differ in type.
      const int there = is_mixed() ? batch_->rows() : chunk_rows;
      const int rows = backend() == "cuda" ? there : rows_of(expert);
      const Bounded hidden =
          hidden_layer(gate_or_up(0, expert), bias(gate_biases_, expert), gate_or_up(1, expert),
                       bias(up_biases_, expert), x, rounding_of(backend(), rows, gate_.view.type), hp_.activation);
      // Of a quotient of exponentials: each logit's error, and the roundings of as many terms.
      const double error = weight * (2 * choices.bound + (16 + experts.count) * 0x1p-23);
      add(hidden, part(down_, expert, hp_.width), bias(down_biases_, expert), weight, error, rows, to);
    }
  }

  std::vector<float> run(const std::string& name, const HostBatch& batch, const std::vector<float>& x) const {
    std::optional<test::SmallDevice> small;
    if (mixture().small) small.emplace();
    Device device(name);
    device.begin(hp_, batch);
    const Rows rows = device.rows(x, hp_.width);
    Layer layer;
    layer.ffn_norm = device.weight(norm_);
    layer.router_norm = device.weight(router_norm_);
    layer.expert_norm = device.weight(expert_norm_);
    layer.shared_post_norm = device.weight(shared_post_norm_);
    layer.expert_post_norm = device.weight(expert_post_norm_);
    layer.ffn_post_norm = device.weight(post_norm_);
    const auto exact = [&](const HostWeight& host) {
      return host.bytes.empty() ? Weight{} : device->upload_exact(host.view);
    };
    layer.router = exact(router_);
    layer.expert_gate = device.weight(mixture().fused ? fused_ : gate_);
    if (!mixture().fused) layer.expert_up = device.weight(up_);
    layer.expert_down = device.weight(down_);
    layer.router_bias = device.weight(router_bias_);
    layer.gate_biases = exact(gate_biases_);
    layer.up_biases = exact(up_biases_);
    layer.down_biases = exact(down_biases_);
    layer.shared_gate = device.weight(shared_gate_);
    layer.shared_up = device.weight(shared_up_);
    layer.shared_down = device.weight(shared_down_);
    layer.shared_switch = exact(switch_);
    device->experts(layer, rows);
    return device.read(rows);
  }

  Random random_{static_cast<uint64_t>(type()) + 3000};
  Hyperparameters hp_;
  HostBatch batch_{ragged(mixture().many), 333, random_};
  HostWeight norm_, router_, gate_, up_, down_, shared_gate_, shared_up_, shared_down_, switch_;
  HostWeight router_bias_, gate_biases_, up_biases_, down_biases_;
  HostWeight fused_, router_norm_, expert_norm_, shared_post_norm_, expert_post_norm_, post_norm_;
  std::vector<float> x_;  // [rows, width]
};

TEST_P(ExpertsParity, ChosenOnesAreAdded) {
  std::vector<double> bounds;
  std::vector<float> expected;
  for (const Chunk& chunk : batch_->chunks) {
    std::vector<int> rows(hp_.experts.count);
    for (int i = 0; i < chunk.rows; ++i) {
      const std::vector<float> routed = normed(row(chunk.first_row + i), router_norm());
      for (const auto& [expert, weight] : choose(routed).experts) ++rows[expert];
    }
    for (int i = 0; i < chunk.rows; ++i) {
      const std::span<const float> x = row(chunk.first_row + i);
      const Bounded sum = added(x, chunk.rows, [&](int expert) { return rows[expert]; });
      for (size_t d = 0; d < x.size(); ++d) {
        expected.push_back(x[d] + sum.values[d]);
        // The residual is added to in float32, once for each expert.
        bounds.push_back(sum.bounds[d] + (hp_.experts.used + 2) * 0x1p-23 * (std::abs(x[d]) + std::abs(sum.values[d])));
      }
    }
  }
  expect_close("experts", run(backend(), batch_, x_), expected, bounds);
}

TEST_P(ExpertsParity, WhatARowGetsDependsOnItsChunkAlone) {
  const std::vector<float> together = run(backend(), batch_, x_);
  for (const Chunk& chunk : batch_->chunks) {
    Random random(5);
    const HostBatch alone({{chunk.position, chunk.rows}}, 333, random);
    const auto begin = static_cast<ptrdiff_t>(chunk.first_row) * hp_.width, count = ptrdiff_t{chunk.rows} * hp_.width;
    const std::vector<float> own = run(backend(), alone, {x_.begin() + begin, x_.begin() + begin + count});
    EXPECT_TRUE(std::equal(own.begin(), own.end(), together.begin() + begin)) << "chunk of " << chunk.rows << " rows";
  }
}

std::string name_of(const testing::TestParamInfo<ExpertsParity::ParamType>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param).name + "_" + ggml_type_name(std::get<2>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Shapes, ExpertsParity,
                         testing::Combine(testing::Values("reference", "cpu", "cuda"),
                                          testing::Values(kShared, kAll, kBiased, kOne),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Gemma4, ExpertsParity,
                         testing::Combine(testing::Values("reference", "cpu", "cuda"),
                                          testing::Values(kOwnNorms, kFused),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(FusedMany, ExpertsParity,
                         testing::Combine(testing::Values("cpu", "cuda"), testing::Values(kFusedMany),
                                          testing::Values(GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_MXFP4)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Mixed, ExpertsParity,
                         testing::Combine(testing::ValuesIn(kBackends), testing::Values(kMixed),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q4_K)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Types, ExpertsParity,
                         testing::Combine(testing::Values("cpu", "cuda"), testing::Values(kChosen),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K,
                                                          GGML_TYPE_Q6_K, GGML_TYPE_MXFP4)),
                         name_of);

INSTANTIATE_TEST_SUITE_P(Many, ExpertsParity,
                         testing::Combine(testing::Values("cpu", "cuda"), testing::Values(kMany),
                                          testing::Values(GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,
                                                          GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                                                          GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(ManySmall, ExpertsParity,
                         testing::Combine(testing::Values("cuda"), testing::Values(kManySmall),
                                          testing::Values(GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q5_1,
                                                          GGML_TYPE_Q8_0)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(ManyBlocks, ExpertsParity,
                         testing::Combine(testing::Values("cpu", "cuda"), testing::Values(kManyBlocks),
                                          testing::Values(GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_IQ4_XS)),
                         name_of);

}  // namespace
}  // namespace tidal::parity
