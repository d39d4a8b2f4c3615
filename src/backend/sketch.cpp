#include "backend/sketch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace tidal {
namespace {

constexpr int kMaxDim = 256;

Bf16 bf16_at(const std::byte* from, int index) {
  Bf16 value;
  std::memcpy(&value, from + sizeof value * index, sizeof value);
  return value;
}

void put_bf16(std::byte* to, int index, float value) {
  const Bf16 rounded = to_bf16(value);
  std::memcpy(to + sizeof rounded * index, &rounded, sizeof rounded);
}

}  // namespace

void sketch_block(const SketchLayout& layout, const Bf16* tile, std::byte* sketch) {
  const int dim = layout.head_dim, most = layout.levels() - 1;
  std::array<float, kMaxDim> low, high, inverse, code_sum, square_sum, key_sum, product_sum;
  const auto key = [&](int p, int d) { return to_float(tile[int64_t{p} * 2 * dim + d]); };
  for (int d = 0; d < dim; ++d) {
    low[d] = high[d] = key(0, d);
    code_sum[d] = square_sum[d] = key_sum[d] = product_sum[d] = 0;
  }
  for (int p = 1; p < kBlockTokens; ++p) {
    for (int d = 0; d < dim; ++d) {
      low[d] = std::min(low[d], key(p, d));
      high[d] = std::max(high[d], key(p, d));
    }
  }
  for (int d = 0; d < dim; ++d) {
    const float range = high[d] - low[d];
    inverse[d] = range > 0 ? static_cast<float>(layout.levels()) / range : 0;
  }
  std::memset(sketch + layout.codes_offset(), 0, static_cast<size_t>(layout.bytes()) - layout.codes_offset());
  for (int p = 0; p < kBlockTokens; ++p) {
    for (int d = 0; d < dim; ++d) {
      const float value = key(p, d);
      const float step = (value - low[d]) * inverse[d];
      // In this order NaN becomes 0.
      const int code = static_cast<int>(std::min(std::max(0.0f, step), static_cast<float>(most)));
      const auto real = static_cast<float>(code);
      code_sum[d] += real;
      square_sum[d] += real * real;
      key_sum[d] += value;
      product_sum[d] += real * value;
      sketch[layout.byte(p, d)] |= static_cast<std::byte>(code << layout.shift(d));
    }
  }
  constexpr float kCount = kBlockTokens;
  for (int d = 0; d < dim; ++d) {
    // 0 only when all codes are the same, so when all keys are.
    const float spread = kCount * square_sum[d] - code_sum[d] * code_sum[d];
    const float slope = spread > 0 ? (kCount * product_sum[d] - code_sum[d] * key_sum[d]) / spread : 0.0f;
    const float scale = to_float(to_bf16(slope));
    put_bf16(sketch, dim + d, scale);
    put_bf16(sketch, d, (key_sum[d] - scale * code_sum[d]) / kCount);
  }
}

SketchQuery sketch_query(const SketchLayout& layout, const float* q, const std::byte* sketch, int8_t* weights) {
  const int dim = layout.head_dim;
  std::array<float, kMaxDim> scaled;
  std::array<float, 16> sums = {};
  float top = 0;
  for (int d = 0; d < dim; ++d) {
    scaled[d] = q[d] * to_float(bf16_at(sketch, dim + d));
    top = std::max(top, std::abs(scaled[d]));
    sums[d % 16] = std::fma(q[d], to_float(bf16_at(sketch, d)), sums[d % 16]);
  }
  const float inverse = top > 0 ? 127.0f / top : 0.0f;
  for (int d = 0; d < dim; ++d) {
    const float rounded = std::nearbyint(scaled[d] * inverse);
    weights[d] = std::abs(rounded) <= 127 ? static_cast<int8_t>(rounded) : int8_t{0};  // NaN has no integer
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return {sums[0], top / 127.0f};
}

void sketch_scores(const SketchLayout& layout, const float* q, const std::byte* sketch, float* scores) {
  std::array<int8_t, kMaxDim> weights;
  const SketchQuery query = sketch_query(layout, q, sketch, weights.data());
  for (int p = 0; p < kBlockTokens; ++p) {
    int32_t dot = 0;
    for (int d = 0; d < layout.head_dim; ++d) {
      const int code = std::to_integer<int>(sketch[layout.byte(p, d)]) >> layout.shift(d) & (layout.levels() - 1);
      dot += weights[d] * code;
    }
    scores[p] = std::fma(query.factor, static_cast<float>(dot), query.base);
  }
}

}  // namespace tidal
