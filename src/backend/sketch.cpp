#include "backend/sketch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "backend/hyperparameters.h"
#include "core/half.h"

namespace tidal {
namespace {

constexpr int kMaxDim = kMostHeadDim;

Bf16 bf16_at(const std::byte* from, int index) {
  Bf16 value;
  std::memcpy(&value, from + sizeof value * index, sizeof value);
  return value;
}

float float_at(const std::byte* from, int index) {
  float value;
  std::memcpy(&value, from + sizeof value * index, sizeof value);
  return value;
}

float half_at(const std::byte* from, int index) {
  uint16_t value;
  std::memcpy(&value, from + sizeof value * index, sizeof value);
  return half_to_float(value);
}

void put_bf16(std::byte* to, int index, float value) {
  const Bf16 rounded = to_bf16(value);
  std::memcpy(to + sizeof rounded * index, &rounded, sizeof rounded);
}

constexpr int kStrip = 16;  // channels sketched together, whose keys and codes stay in the first-level cache
static_assert(kKvScaleBlock % kStrip == 0);

/// Some channels of a block.
struct Strip {
  std::array<std::array<float, kStrip>, kBlockTokens> keys;
  std::array<std::array<uint8_t, kStrip>, kBlockTokens> codes;
  std::array<float, kStrip> code_sum = {}, square_sum = {}, key_sum = {}, product_sum = {};

  Strip(const KvRowLayout& rows, const std::byte* tile, int first) {
    for (auto& key : keys) {
      if (rows.type == KvType::Bf16) {
        for (int d = 0; d < kStrip; ++d) key[d] = to_float(bf16_at(tile, first + d));
      } else if (rows.type == KvType::F32) {
        for (int d = 0; d < kStrip; ++d) key[d] = float_at(tile, first + d);
      } else {
        const auto* const codes = reinterpret_cast<const int8_t*>(tile) + first;
        const float scale = half_at(tile + rows.scales_offset(), first / kKvScaleBlock);  // a strip is of one block
        for (int d = 0; d < kStrip; ++d) key[d] = scale * static_cast<float>(codes[d]);
      }
      tile += rows.bytes();
    }
  }

  void choose_codes(int levels) {
    std::array<float, kStrip> low = keys[0], high = keys[0], inverse;
    for (const auto& key : keys) {
      for (int d = 0; d < kStrip; ++d) {
        low[d] = std::min(low[d], key[d]);
        high[d] = std::max(high[d], key[d]);
      }
    }
    for (int d = 0; d < kStrip; ++d) {
      const float range = high[d] - low[d];
      inverse[d] = range > 0 ? static_cast<float>(levels) / range : 0;
    }
    const auto most = static_cast<float>(levels - 1);
    for (int p = 0; p < kBlockTokens; ++p) {
      for (int d = 0; d < kStrip; ++d) {
        const float value = keys[p][d];
        const float step = (value - low[d]) * inverse[d];
        // In this order NaN becomes 0.
        const auto code = static_cast<int>(std::min(std::max(0.0f, step), most));
        const auto real = static_cast<float>(code);
        code_sum[d] += real;
        square_sum[d] += real * real;
        key_sum[d] += value;
        product_sum[d] += real * value;
        codes[p][d] = static_cast<uint8_t>(code);
      }
    }
  }

  /// Those of the channels from `first` on, into the bytes where they lie.
  void add_codes(const SketchLayout& layout, int first, std::byte* sketch) const {
    for (int d = 0; d < kStrip; d += SketchLayout::kQuad) {
      const int shift = layout.shift(first + d);
      for (int p = 0; p < kBlockTokens; ++p) {
        std::byte* const to = sketch + layout.byte(p, first + d);
        uint32_t quad, before;
        std::memcpy(&quad, codes[p].data() + d, sizeof quad);
        std::memcpy(&before, to, sizeof before);
        before |= quad << shift;  // a code stays within its byte
        std::memcpy(to, &before, sizeof before);
      }
    }
  }
};

}  // namespace

void sketch_block(const SketchLayout& layout, KvType type, const std::byte* tile, std::byte* sketch) {
  const int dim = layout.head_dim;
  std::memset(sketch + layout.codes_offset(), 0, static_cast<size_t>(layout.bytes()) - layout.codes_offset());
  for (int first = 0; first < dim; first += kStrip) {
    Strip strip({type, dim}, tile, first);
    strip.choose_codes(layout.levels());
    strip.add_codes(layout, first, sketch);
    constexpr float kCount = kBlockTokens;
    for (int d = 0; d < kStrip; ++d) {
      const float codes = strip.code_sum[d], keys = strip.key_sum[d];
      // 0 only when all codes are the same, so when all keys are.
      const float spread = kCount * strip.square_sum[d] - codes * codes;
      const float slope = spread > 0 ? (kCount * strip.product_sum[d] - codes * keys) / spread : 0.0f;
      const float scale = to_float(to_bf16(slope));
      put_bf16(sketch, dim + first + d, scale);
      put_bf16(sketch, first + d, (keys - scale * codes) / kCount);
    }
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
