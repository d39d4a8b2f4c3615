// A layer's weights and rows for the parity tests of everything but attention, and what its operations' results may be
// off by.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/rope.h"
#include "parity/bounds.h"

namespace tidal::parity {

struct LayerShape {
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
  enum class Values { Plain, Normed, NormedKeys, Others };
  Values values = Values::Plain;  ///< as the products are; normed; products of the keys, normed; another layer's
  float layer_query_scale = 1;
  float logit_cap = 0;
};

/// Chunks for whom the ways part: 1 to 8 rows are short, more are long.
inline std::vector<ChunkShape> ragged() {
  return {{0, 1}, {63, 1}, {64, 1}, {4096, 1}, {62, 2}, {5, 8}, {120, 9}, {300, 40}};
}

class LayerParity : public test::BackendTest<std::tuple<std::string, LayerShape, ggml_type>> {
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
    hp_.value_norm = shape().values != LayerShape::Values::Plain;
    hp_.logit_cap = shape().logit_cap;
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
    if (shape().values == LayerShape::Values::NormedKeys) wv_ = {};
    if (shape().values == LayerShape::Values::Others) wk_ = wv_ = {};
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
    key_units_ = random_vector(hp_.kv_width(), 0, 1, random_);
    for (float& unit : key_units_.values) unit = std::ldexp(1.0f, static_cast<int>(std::lround(3 * unit)));
    std::memcpy(key_units_.bytes.data(), key_units_.values.data(), key_units_.bytes.size());
    x_.resize(static_cast<size_t>(batch_->rows()) * hp_.width);
    for (float& value : x_) value = random_.normal(2.0f);
    out_.resize(static_cast<size_t>(batch_->rows()) * hp_.q_width());
    for (float& value : out_) value = random_.normal(1.0f);
  }

  const std::string& backend() const { return std::get<0>(GetParam()); }
  const LayerShape& shape() const { return std::get<1>(GetParam()); }
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
    layer.query_scale = shape().layer_query_scale;
    layer.wq = device.weight(wq_);
    layer.wk = device.weight(wk_);
    layer.wv = device.weight(wv_);
    layer.bq = device.weight(bq_);
    layer.bk = device.weight(bk_);
    layer.bv = device.weight(bv_);
    layer.q_norm = device.weight(q_norm_);
    layer.k_norm = device.weight(k_norm_);
    layer.key_units = device.weight(key_units_);
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
        const bool halves = rope.pairing == Rope::Pairing::Halves;
        const size_t mate = halves ? (i + pairs) % rope.dims : i ^ 1;
        // Cosine, sine, magnitude, products and sum: six roundings of each term at most.
        result[h + i] =
            rope.magnitude * (own[i] + own[mate] + 6 * 0x1p-24 * (std::abs(head[i]) + std::abs(head[mate])));
      }
    }
    return result;
  }

  /// Bounds of all heads of v, of which `raw` are the products.
  std::vector<double> value_bounds(const std::vector<float>& raw, std::vector<double> bounds) const {
    const size_t dim = hp_.head_dim;
    const std::vector<float> ones(dim, 1.0f);
    for (size_t h = 0; hp_.value_norm && h < raw.size(); h += dim) {
      const std::vector<double> own =
          norm_bounds(std::span(raw).subspan(h, dim), std::span(bounds).subspan(h, dim), ones);
      std::copy(own.begin(), own.end(), bounds.begin() + static_cast<ptrdiff_t>(h));
    }
    return bounds;
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
  HostWeight bq_, bk_, bv_, bo_, b_gate_, b_up_, b_down_, q_norm_, k_norm_, key_units_;
  std::vector<float> x_;    // [rows, width]
  std::vector<float> out_;  // [rows, q_width]
};

}  // namespace tidal::parity
