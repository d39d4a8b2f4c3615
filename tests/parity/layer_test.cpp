// Everything of a layer but attention, of every backend against the reference: embed, qkv, project, mlp, logits.
#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/rope.h"
#include "parity/bounds.h"

namespace tidal::parity {
namespace {

struct Shape {
  const char* name;
  int heads, kv_heads, head_dim, width, ffn;
  Rope::Pairing pairing;
  int rope_dims;
  float magnitude;
  bool biases, norms, scales = false;
  bool whole_norms = false;  ///< of q and k: of all heads as one
  bool pre_norms = true, post_norms = false, rotates = true;
  float embedding_scale = 1;
  bool mixed = false;  ///< v and up are of another type
  float temperature_scale = 0;
  bool gemma = false;  ///< a rope of windows, GELU, a factor on queries
};

constexpr auto kAdjacent = Rope::Pairing::Adjacent;
constexpr auto kHalves = Rope::Pairing::Halves;

/// Widths of 256 suit every quantisation; the odd ones only those of blocks of 32 or 1.
const Shape kLlama{"llama", 4, 2, 64, 256, 512, kAdjacent, 64, 1.0f, false, false};
const Shape kQwen2{"qwen2", 7, 1, 64, 192, 320, kHalves, 64, 1.0f, true, false};
const Shape kQwen3{"qwen3", 4, 1, 128, 256, 256, kHalves, 128, 1.0f, false, true};
const Shape kPartial{"partial", 3, 3, 96, 160, 224, kAdjacent, 32, 1.25f, true, true};
const Shape kScaled{"scaled", 4, 2, 64, 256, 512, kAdjacent, 64, 1.0f, true, false, true};
const Shape kPartialHalves{"partial_halves", 2, 1, 80, 160, 96, kHalves, 48, 0.75f, true, true};
const Shape kPostNorms{.name = "post_norms",
                       .heads = 4,
                       .kv_heads = 2,
                       .head_dim = 32,
                       .width = 96,
                       .ffn = 160,
                       .pairing = kHalves,
                       .rope_dims = 32,
                       .magnitude = 1.0f,
                       .biases = false,
                       .norms = true,
                       .whole_norms = true,
                       .pre_norms = false,
                       .post_norms = true};
const Shape kUnrotated{.name = "unrotated",
                       .heads = 3,
                       .kv_heads = 1,
                       .head_dim = 64,
                       .width = 160,
                       .ffn = 96,
                       .pairing = kAdjacent,
                       .rope_dims = 64,
                       .magnitude = 1.0f,
                       .biases = true,
                       .norms = false,
                       .rotates = false,
                       .embedding_scale = 12};

const Shape kHot = [] {
  Shape shape = kLlama;
  shape.name = "hot";
  shape.temperature_scale = 0.7f;
  return shape;
}();

const Shape kGemma = [] {
  Shape shape = kQwen3;
  shape.name = "gemma";
  shape.head_dim = 256;
  shape.rope_dims = 256;
  shape.embedding_scale = 16;
  shape.post_norms = shape.gemma = true;
  return shape;
}();

const Shape kMixed = [] {
  Shape shape = kLlama;
  shape.name = "mixed";
  shape.pairing = kHalves;
  shape.biases = shape.mixed = true;
  return shape;
}();

/// Chunks for whom the ways part: 1 to 8 rows are short, more are long.
std::vector<ChunkShape> ragged() { return {{0, 1}, {63, 1}, {64, 1}, {4096, 1}, {62, 2}, {5, 8}, {120, 9}, {300, 40}}; }

class LayerParity : public test::BackendTest<std::tuple<std::string, Shape, ggml_type>> {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    hp_.architecture = "llama";
    hp_.layers = 1;
    hp_.width = shape().width;
    hp_.heads = shape().heads;
    hp_.kv_heads = shape().kv_heads;
    hp_.head_dim = shape().head_dim;
    hp_.ffn = shape().ffn;
    hp_.vocab = 333;
    hp_.rope = make_rope(shape().pairing, shape().rope_dims, 10000, {}, {});
    hp_.rope.magnitude = shape().magnitude;
    hp_.embedding_scale = shape().embedding_scale;
    hp_.post_norms = shape().post_norms;
    hp_.temperature_scale = shape().temperature_scale;
    hp_.temperature_length = 60;  // within and between the chunks
    if (shape().gemma) {
      hp_.windows = {8};
      hp_.window_rope = make_rope(shape().pairing, shape().rope_dims, 300, {}, {.attention = 0.9});
      hp_.activation = Activation::Gelu;
      hp_.query_scale = 0.8f;
    }
    for (auto* norm : {&attn_norm_, &ffn_norm_}) *norm = random_vector(hp_.width, 1, 0.2f, random_);
    for (auto* norm : {&attn_post_norm_, &ffn_post_norm_}) {
      if (shape().post_norms) *norm = random_vector(hp_.width, 1, 0.2f, random_);
    }
    const auto matrix = [&](int rows, int cols) { return random_weight(type(), rows, cols, random_); };
    wq_ = matrix(hp_.q_width(), hp_.width);
    wk_ = matrix(hp_.kv_width(), hp_.width);
    const auto other = [&](int rows, int cols) {
      return random_weight(shape().mixed ? other_type() : type(), rows, cols, random_);
    };
    wv_ = other(hp_.kv_width(), hp_.width);
    wo_ = matrix(hp_.width, hp_.q_width());
    gate_ = matrix(hp_.ffn, hp_.width);
    up_ = other(hp_.ffn, hp_.width);
    down_ = matrix(hp_.width, hp_.ffn);
    output_ = matrix(hp_.vocab, hp_.width);
    embedding_ = matrix(hp_.vocab, hp_.width);
    if (shape().scales) {
      // A factor of its own for every matrix that is multiplied; bounds and expectations go by the values.
      float scale = 0.4f;
      for (HostWeight* weight : {&wq_, &wk_, &wv_, &wo_, &gate_, &up_, &down_, &output_}) {
        weight->view.scale = scale;
        for (float& value : weight->values) value *= scale;
        scale = -1.3f * scale;
      }
    }
    if (shape().biases) {
      for (auto& [weight, count] : std::initializer_list<std::pair<HostWeight*, int>>{{&bq_, hp_.q_width()},
                                                                                      {&bk_, hp_.kv_width()},
                                                                                      {&bv_, hp_.kv_width()},
                                                                                      {&bo_, hp_.width},
                                                                                      {&b_gate_, hp_.ffn},
                                                                                      {&b_up_, hp_.ffn},
                                                                                      {&b_down_, hp_.width}}) {
        *weight = random_vector(count, 0, 0.5f, random_);
      }
    }
    if (shape().norms) {
      q_norm_ = random_vector(shape().whole_norms ? hp_.q_width() : hp_.head_dim, 1, 0.2f, random_);
      k_norm_ = random_vector(shape().whole_norms ? hp_.kv_width() : hp_.head_dim, 1, 0.2f, random_);
    }
    x_.resize(static_cast<size_t>(batch_->rows()) * hp_.width);
    for (float& value : x_) value = random_.normal(2.0f);
    out_.resize(static_cast<size_t>(batch_->rows()) * hp_.q_width());
    for (float& value : out_) value = random_.normal(1.0f);
  }

  const std::string& backend() const { return std::get<0>(GetParam()); }
  const Shape& shape() const { return std::get<1>(GetParam()); }
  ggml_type type() const { return std::get<2>(GetParam()); }
  /// Those of v and up.
  ggml_type other_type() const { return shape().mixed ? GGML_TYPE_Q6_K : matrix_type(); }
  /// A scale of its own makes bf16 of any type.
  ggml_type matrix_type() const { return shape().scales ? GGML_TYPE_BF16 : type(); }

  Layer layer(Device& device) const {
    Layer layer;
    if (shape().pre_norms) layer.attn_norm = device.weight(attn_norm_);
    if (shape().pre_norms) layer.ffn_norm = device.weight(ffn_norm_);
    layer.attn_post_norm = device.weight(attn_post_norm_);
    layer.ffn_post_norm = device.weight(ffn_post_norm_);
    layer.rotates = shape().rotates;
    layer.window_rope = shape().gemma;
    layer.wq = device.weight(wq_);
    layer.wk = device.weight(wk_);
    layer.wv = device.weight(wv_);
    layer.bq = device.weight(bq_);
    layer.bk = device.weight(bk_);
    layer.bv = device.weight(bv_);
    layer.q_norm = device.weight(q_norm_);
    layer.k_norm = device.weight(k_norm_);
    layer.wo = device.weight(wo_);
    layer.bo = device.weight(bo_);
    layer.gate = device.weight(gate_);
    layer.up = device.weight(up_);
    layer.down = device.weight(down_);
    layer.b_gate = device.weight(b_gate_);
    layer.b_up = device.weight(b_up_);
    layer.b_down = device.weight(b_down_);
    return layer;
  }

  std::span<const float> row(const std::vector<float>& values, int index, int width) const {
    return {values.data() + static_cast<size_t>(index) * width, static_cast<size_t>(width)};
  }
  /// What the products of a layer start from.
  std::vector<float> input(int index, const HostWeight& norm) const {
    const std::span<const float> x = row(x_, index, hp_.width);
    return shape().pre_norms ? normed(x, norm) : std::vector<float>(x.begin(), x.end());
  }

  /// Of what is added to the residual, x: after its norm, where the layer has one.
  void add_bounds(const HostWeight& weight, const HostWeight& bias, std::span<const float> from,
                  std::vector<double> own, const HostWeight& norm, std::span<const float> x,
                  std::vector<double>& bounds) const {
    std::vector<float> added = product(weight, bias, from);
    if (!norm.values.empty()) {
      own = norm_bounds(added, own, norm.values);
      added = normed(added, norm);
    }
    for (size_t i = 0; i < x.size(); ++i)
      bounds.push_back(own[i] + 4 * 0x1p-24 * (std::abs(x[i]) + std::abs(added[i])));
  }

  /// Bounds of all heads of q or k after q/k norm and rotation, from those of the product.
  std::vector<double> head_bounds(std::vector<float> y, std::vector<double> bounds, const HostWeight& norm) const {
    const size_t dim = hp_.head_dim;
    if (shape().whole_norms) {
      bounds = norm_bounds(y, bounds, norm.values);
      y = normed(y, norm);
    }
    std::vector<double> result(y.size());
    for (size_t h = 0; h < y.size(); h += dim) {
      std::vector<float> head(y.begin() + h, y.begin() + h + dim);
      std::vector<double> own(bounds.begin() + h, bounds.begin() + h + dim);
      if (!norm.values.empty() && !shape().whole_norms) {
        own = norm_bounds(head, own, norm.values);
        head = normed(head, norm);
      }
      const Rope& rope = shape().gemma ? hp_.window_rope : hp_.rope;
      const int pairs = rope.dims / 2;
      for (size_t i = 0; i < dim; ++i) {
        result[h + i] = own[i];
        if (i >= static_cast<size_t>(rope.dims) || !shape().rotates) continue;
        const bool halves = rope.pairing == kHalves;
        const size_t mate = halves ? (i + pairs) % rope.dims : i ^ 1;
        // Cosine, sine, magnitude, products and sum: six roundings of each term at most.
        result[h + i] =
            rope.magnitude * (own[i] + own[mate] + 6 * 0x1p-24 * (std::abs(head[i]) + std::abs(head[mate])));
      }
    }
    return result;
  }

  template <typename Run>
  std::vector<float> run(const std::string& name, const std::vector<float>& x, int width, Run&& run) const {
    Device device(name);
    device.begin(hp_, batch_);
    const Rows rows = device.rows(x, width);
    run(device, rows);
    return device.read(rows);
  }

  Random random_{static_cast<uint64_t>(type()) + 1000};
  Hyperparameters hp_;
  HostBatch batch_{ragged(), 333, random_};
  HostWeight attn_norm_, ffn_norm_, attn_post_norm_, ffn_post_norm_, wq_, wk_, wv_, wo_, gate_, up_, down_, output_,
      embedding_;
  HostWeight bq_, bk_, bv_, bo_, b_gate_, b_up_, b_down_, q_norm_, k_norm_;
  std::vector<float> x_;    // [rows, width]
  std::vector<float> out_;  // [rows, q_width]
};

TEST_P(LayerParity, Embed) {
  const auto embed = [&](const std::string& name) {
    return run(name, x_, hp_.width,
               [&](Device& device, Rows x) { device->embed(device.weight(embedding_), *batch_, x); });
  };
  // On the device matrices are bf16, this one, too, unless they stay quantised.
  const bool rounded = Device(backend())->matrix_type(type()) != type();
  const auto kept = [&](std::vector<float> values) {
    for (float& value : values) value = (rounded ? to_float(to_bf16(value)) : value) * hp_.embedding_scale;
    return values;
  };
  const std::vector<float> got = embed(backend()), values = kept(embedding_.values);
  if (backend() != "cuda") {
    EXPECT_EQ(got, embed("reference"));
  }
  for (int r = 0; r < batch_->rows(); ++r) {
    const auto own = row(got, r, hp_.width), weight = row(values, batch_->tokens[r], hp_.width);
    ASSERT_TRUE(std::equal(own.begin(), own.end(), weight.begin())) << "row " << r;
  }
}

TEST_P(LayerParity, Qkv) {
  const HostCache before = random_cache(hp_, batch_.blocks(), random_);
  const auto qkv = [&](const std::string& name) {
    Device device(name);
    device.begin(hp_, batch_);
    const Rows q = device.rows(batch_->rows(), hp_.q_width());
    const KvLayer kv = device.cache(before);
    const Rows x = device.rows(x_, hp_.width);
    device->qkv(layer(device), *batch_, x, q, kv);
    EXPECT_EQ(device.read(x), x_) << "x is only read";
    return std::pair{device.read(q), device.read(kv, before)};
  };
  const auto [q, cache] = qkv(backend());
  const auto [reference_q, reference_cache] = qkv("reference");

  std::vector<double> q_bounds;
  std::vector<float> kv, reference_kv;
  std::vector<double> kv_bounds;
  HostCache untouched = cache;
  for (const Chunk& chunk : batch_->chunks) {
    const Rounding rounding = rounding_of(backend(), chunk.rows, matrix_type());
    const Rounding other = rounding_of(backend(), chunk.rows, other_type());
    for (int i = 0; i < chunk.rows; ++i) {
      const std::vector<float> x = input(chunk.first_row + i, attn_norm_);
      const auto of_q = head_bounds(product(wq_, bq_, x), product_bounds(wq_, x, rounding), q_norm_);
      for (const double bound : of_q) {
        q_bounds.push_back(bound * hp_.temperature(chunk.position + i) +
                           0x1p-24 * std::abs(reference_q[q_bounds.size()]));
      }
      const auto of_k = head_bounds(product(wk_, bk_, x), product_bounds(wk_, x, rounding), k_norm_);
      const auto of_v = product_bounds(wv_, x, other);
      const int position = chunk.position + i;
      for (int h = 0; h < hp_.kv_heads; ++h) {
        for (int d = 0; d < 2 * hp_.head_dim; ++d) {
          const int at = h * hp_.head_dim + d % hp_.head_dim;
          kv.push_back(to_float(cache.row(chunk, h, position)[d]));
          reference_kv.push_back(to_float(reference_cache.row(chunk, h, position)[d]));
          // Both are rounded to bf16.
          const double own = d < hp_.head_dim ? of_k[at] : of_v[at];
          kv_bounds.push_back(own + 0x1p-8 * (2 * std::abs(reference_kv.back()) + own));
          untouched.row(chunk, h, position)[d] = before.row(chunk, h, position)[d];
        }
      }
    }
  }
  expect_close("q", q, reference_q, q_bounds);
  expect_close("k and v", kv, reference_kv, kv_bounds);
  const auto same = [](Bf16 a, Bf16 b) { return a.bits == b.bits; };
  EXPECT_TRUE(std::equal(untouched.values.begin(), untouched.values.end(), before.values.begin(), same))
      << "positions beside the batch's have changed";
}

TEST_P(LayerParity, Project) {
  const auto project = [&](const std::string& name) {
    return run(name, x_, hp_.width,
               [&](Device& device, Rows x) { device->project(layer(device), device.rows(out_, hp_.q_width()), x); });
  };
  std::vector<double> bounds;
  for (const Chunk& chunk : batch_->chunks) {
    for (int r = chunk.first_row; r < chunk.first_row + chunk.rows; ++r) {
      const std::span<const float> out = row(out_, r, hp_.q_width());
      add_bounds(wo_, bo_, out, product_bounds(wo_, out, rounding_of(backend(), chunk.rows, matrix_type())),
                 attn_post_norm_, row(x_, r, hp_.width), bounds);
    }
  }
  expect_close("project", project(backend()), project("reference"), bounds);
}

TEST_P(LayerParity, Mlp) {
  const auto mlp = [&](const std::string& name) {
    return run(name, x_, hp_.width, [&](Device& device, Rows x) { device->mlp(layer(device), x); });
  };
  std::vector<double> bounds;
  for (const Chunk& chunk : batch_->chunks) {
    const Rounding rounding = rounding_of(backend(), chunk.rows, matrix_type());
    for (int r = chunk.first_row; r < chunk.first_row + chunk.rows; ++r) {
      const Bounded hidden = hidden_layer(gate_, b_gate_, up_, b_up_, input(r, ffn_norm_), rounding, hp_.activation);
      add_bounds(down_, b_down_, hidden.values, product_bounds(down_, hidden.values, rounding, hidden.bounds),
                 ffn_post_norm_, row(x_, r, hp_.width), bounds);
    }
  }
  expect_close("mlp", mlp(backend()), mlp("reference"), bounds);
}

TEST_P(LayerParity, Logits) {
  const auto logits = [&](const std::string& name) {
    std::vector<float> result(batch_->logit_rows.size() * hp_.vocab);
    run(name, x_, hp_.width, [&](Device& device, Rows x) {
      device->logits(device.weight(ffn_norm_), device.weight(output_), *batch_, x, result);
    });
    return result;
  };
  std::vector<double> bounds;
  for (const int32_t r : batch_->logit_rows) {
    const auto chunk = std::find_if(batch_->chunks.begin(), batch_->chunks.end(),
                                    [&](const Chunk& c) { return r < c.first_row + c.rows; });
    const int wanted =
        static_cast<int>(std::count_if(batch_->logit_rows.begin(), batch_->logit_rows.end(), [&](int32_t other) {
          return other >= chunk->first_row && other < chunk->first_row + chunk->rows;
        }));
    const std::vector<float> x = normed(row(x_, r, hp_.width), ffn_norm_);
    const auto own = product_bounds(output_, x, rounding_of(backend(), wanted, matrix_type()));
    bounds.insert(bounds.end(), own.begin(), own.end());
  }
  expect_close("logits", logits(backend()), logits("reference"), bounds);
}

std::string name_of(const testing::TestParamInfo<LayerParity::ParamType>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param).name + "_" + ggml_type_name(std::get<2>(info.param));
}

/// Every type that ggml can quantise to, dequantise and multiply.
std::vector<ggml_type> all_types() {
  std::vector<ggml_type> types;
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    const auto type = static_cast<ggml_type>(t);
    const auto* traits = ggml_get_type_traits_cpu(type);
    const bool floats = type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float;
    // Activations' own types cannot be made by ggml_quantize_chunk().
    const bool activations = type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K;
    if (floats && traits->vec_dot && !activations) types.push_back(type);
  }
  return types;
}

INSTANTIATE_TEST_SUITE_P(Types, LayerParity,
                         testing::Combine(testing::ValuesIn(kBackends), testing::Values(kLlama),
                                          testing::ValuesIn(all_types())),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Scales, LayerParity,
                         testing::Combine(testing::ValuesIn(kBackends), testing::Values(kScaled),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K,
                                                          GGML_TYPE_MXFP4, GGML_TYPE_NVFP4)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Mixed, LayerParity,
                         testing::Combine(testing::ValuesIn(kBackends), testing::Values(kMixed),
                                          testing::Values(GGML_TYPE_BF16, GGML_TYPE_Q4_K)),
                         name_of);
/// Without cuda: it does not run such models.
INSTANTIATE_TEST_SUITE_P(OtherFamilies, LayerParity,
                         testing::Combine(testing::Values("cpu"), testing::Values(kPostNorms, kUnrotated, kHot, kGemma),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(
    Shapes, LayerParity,
    testing::Combine(testing::ValuesIn(kBackends), testing::Values(kQwen2, kQwen3, kPartial, kPartialHalves),
                     testing::Values(GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q8_0)),
    name_of);

}  // namespace
}  // namespace tidal::parity
