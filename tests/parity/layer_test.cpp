// Everything of a layer but attention, of every backend against the reference: embed, qkv, project, mlp, logits.
#include <ggml-cpu.h>

#include "parity/layer_setup.h"

namespace tidal::parity {
namespace {

constexpr auto kAdjacent = Rope::Pairing::Adjacent;
constexpr auto kHalves = Rope::Pairing::Halves;

/// Widths of 256 suit every quantisation; the odd ones only those of blocks of 32 or 1.
const LayerShape kLlama{"llama", 4, 2, 64, 256, 512, kAdjacent, 64, 1.0f, false, false};
const LayerShape kQwen2{"qwen2", 7, 1, 64, 192, 320, kHalves, 64, 1.0f, true, false};
const LayerShape kQwen3{"qwen3", 4, 1, 128, 256, 256, kHalves, 128, 1.0f, false, true};
const LayerShape kPartial{"partial", 3, 3, 96, 160, 224, kAdjacent, 32, 1.25f, true, true};
const LayerShape kScaled{"scaled", 4, 2, 64, 256, 512, kAdjacent, 64, 1.0f, true, false, true};
const LayerShape kPartialHalves{"partial_halves", 2, 1, 80, 160, 96, kHalves, 48, 0.75f, true, true};
const LayerShape kPostNorms{.name = "post_norms",
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
const LayerShape kUnrotated{.name = "unrotated",
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

const LayerShape kHot = [] {
  LayerShape shape = kLlama;
  shape.name = "hot";
  shape.temperature_scale = 0.7f;
  return shape;
}();

const LayerShape kGemma = [] {
  LayerShape shape = kQwen3;
  shape.name = "gemma";
  shape.head_dim = 256;
  shape.rope_dims = 256;
  shape.embedding_scale = 16;
  shape.post_norms = shape.gemma = true;
  return shape;
}();

/// Gemma 4's layers: with values of their own, with those of the keys, and with another layer's.
LayerShape gemma4(const char* name, LayerShape::Values values, int head_dim) {
  LayerShape shape = kGemma;
  shape.name = name;
  shape.head_dim = shape.rope_dims = head_dim;
  shape.heads = 4;
  shape.kv_heads = 1;
  shape.values = values;
  shape.layer_query_scale = 2;
  shape.logit_cap = 1.5f;  // of logits of about the size of 1
  return shape;
}
const LayerShape kNormedValues = gemma4("normed_values", LayerShape::Values::Normed, 64);
const LayerShape kKeysAsValues = gemma4("keys_as_values", LayerShape::Values::NormedKeys, 512);
const LayerShape kOthersValues = gemma4("others_values", LayerShape::Values::Others, 512);

/// A number of pairs that is odd.
const LayerShape kOdd = [] {
  LayerShape shape = kQwen3;
  shape.name = "odd";
  shape.head_dim = 48;
  shape.rope_dims = 18;
  shape.layer_query_scale = 0.5f;
  return shape;
}();
/// A factor on queries that the products themselves rotate.
const LayerShape kScaledInside = [] {
  LayerShape shape = kLlama;
  shape.name = "scaled_inside";
  shape.layer_query_scale = 0.5f;
  return shape;
}();

const LayerShape kMixed = [] {
  LayerShape shape = kLlama;
  shape.name = "mixed";
  shape.pairing = kHalves;
  shape.biases = shape.mixed = true;
  return shape;
}();

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

/// Of each of a head's elements in 8 bits, off by `own` before: half a step, and what the scale is rounded by, on both
/// sides.
std::vector<double> quantised_bounds(std::span<const float> values, std::span<const double> own) {
  std::vector<double> bounds(own.begin(), own.end());
  for (size_t first = 0; first < values.size(); first += kKvScaleBlock) {
    const size_t end = std::min(values.size(), first + kKvScaleBlock);
    double step = 0;
    for (size_t i = first; i < end; ++i) step = std::max(step, (std::abs(values[i]) + own[i]) / 127);
    for (size_t i = first; i < end; ++i) bounds[i] += 2 * (0.5 + 127 * 0x1p-11) * 1.01 * step;
  }
  return bounds;
}

class QkvParity : public LayerParity {
 protected:
  void expect_rows(KvType type);
};

void QkvParity::expect_rows(KvType type) {
  const HostCache before = random_cache(hp_, batch_.blocks(), random_, type);
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
  Device unchanged("reference");
  const HostCache kept = unchanged.read(unchanged.cache(before), before);
  const auto [q, cache] = qkv(backend());
  const auto [reference_q, reference_cache] = qkv("reference");

  // Bf16 caches know nothing of units.
  const auto unit = [&](size_t d) { return type == KvType::Q8 ? key_units_.values[d] : 1.0f; };
  const auto dim = static_cast<size_t>(hp_.head_dim);
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
      for (size_t d = 0; d < of_q.size(); ++d) {
        const double factor = hp_.temperature(chunk.position + i) * shape().layer_query_scale;
        q_bounds.push_back(of_q[d] * factor * unit(d / dim / hp_.group() * dim + d % dim) +
                           0x1p-24 * std::abs(reference_q[q_bounds.size()]));
      }
      if (shape().values == LayerShape::Values::Others) continue;
      std::vector<double> in_units = head_bounds(product(wk_, bk_, x), product_bounds(wk_, x, rounding), k_norm_);
      for (size_t d = 0; d < in_units.size(); ++d) in_units[d] /= unit(d);
      const std::vector<double> of_k = std::move(in_units);
      const bool own_values = !wv_.values.empty();
      const HostWeight& of_values = own_values ? wv_ : wk_;
      const auto of_v =
          value_bounds(product(of_values, bv_, x), product_bounds(of_values, x, own_values ? other : rounding));
      const int position = chunk.position + i;
      for (int h = 0; h < hp_.kv_heads; ++h) {
        const std::span of_key(of_k.data() + static_cast<ptrdiff_t>(h) * hp_.head_dim, hp_.head_dim);
        const std::span of_value(of_v.data() + static_cast<ptrdiff_t>(h) * hp_.head_dim, hp_.head_dim);
        for (int d = 0; d < 2 * hp_.head_dim; ++d) {
          kv.push_back(to_float(cache.row(chunk, h, position)[d]));
          reference_kv.push_back(to_float(reference_cache.row(chunk, h, position)[d]));
          untouched.row(chunk, h, position)[d] = kept.row(chunk, h, position)[d];
        }
        for (const std::span own : {of_key, of_value}) {
          const std::span values = std::span(reference_kv).subspan(kv_bounds.size(), own.size());
          const std::vector<double> floats(own.begin(), own.end());
          const auto bounds = type == KvType::Q8 ? quantised_bounds(values, own) : floats;
          // Both are rounded to bf16: where they are kept in 8 bits, to be compared here.
          for (size_t d = 0; d < own.size(); ++d) {
            kv_bounds.push_back(bounds[d] + 0x1p-8 * (2 * std::abs(values[d]) + bounds[d]));
          }
        }
      }
    }
  }
  expect_close("q", q, reference_q, q_bounds);
  expect_close("k and v", kv, reference_kv, kv_bounds);
  const auto same = [](Bf16 a, Bf16 b) { return a.bits == b.bits; };
  EXPECT_TRUE(std::equal(untouched.values.begin(), untouched.values.end(), kept.values.begin(), same))
      << "positions beside the batch's have changed";
}

TEST_P(QkvParity, Qkv) { expect_rows(KvType::Bf16); }

TEST_P(QkvParity, In8Bits) {
  if (!Device(backend())->keeps(KvType::Q8, hp_.head_dim)) GTEST_SKIP() << "refused there";
  expect_rows(KvType::Q8);
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
    // A cap makes errors no larger; it has a few roundings of its own.
    for (const double own : product_bounds(output_, x, rounding_of(backend(), wanted, matrix_type()))) {
      bounds.push_back(own + 8 * 0x1p-24 * hp_.logit_cap);
    }
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
INSTANTIATE_TEST_SUITE_P(OtherFamilies, LayerParity,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(kPostNorms, kUnrotated, kHot, kGemma, kOdd, kScaledInside),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Gemma4, LayerParity,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(kNormedValues, kKeysAsValues, kOthersValues),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(
    Shapes, LayerParity,
    testing::Combine(testing::ValuesIn(kBackends), testing::Values(kQwen2, kQwen3, kPartial, kPartialHalves),
                     testing::Values(GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q8_0)),
    name_of);

INSTANTIATE_TEST_SUITE_P(Types, QkvParity,
                         testing::Combine(testing::ValuesIn(kBackends), testing::Values(kLlama),
                                          testing::ValuesIn(all_types())),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Shapes, QkvParity,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(kQwen2, kQwen3, kPartial, kPartialHalves, kScaled, kMixed,
                                                          kPostNorms, kUnrotated, kHot, kGemma, kOdd, kScaledInside,
                                                          kNormedValues, kKeysAsValues, kOthersValues),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q8_0)),
                         name_of);

}  // namespace
}  // namespace tidal::parity
