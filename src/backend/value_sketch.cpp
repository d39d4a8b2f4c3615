#include "backend/value_sketch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "backend/hyperparameters.h"

namespace tidal {
namespace {

constexpr int kRows = ValueSketchLayout::kRowsOfBlock;
constexpr int kLanes = 16;
constexpr float kMiddle = 1.5f;  // of the codes

using Row = std::array<float, kMostHeadDim>;
using Lanes = std::array<float, kLanes>;

float bf16_of(const std::byte* from, int index) {
  Bf16 value;
  std::memcpy(&value, from + sizeof value * index, sizeof value);
  return to_float(value);
}

float put_rounded(std::byte* to, int index, float value) {
  const Bf16 rounded = to_bf16(value);
  std::memcpy(to + sizeof rounded * index, &rounded, sizeof rounded);
  return to_float(rounded);
}

float add_halves(Lanes sums) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

int code_of(float ratio) {
  // In this order NaN becomes 0.
  return static_cast<int>(std::min(std::max(0.0f, ratio + 2.0f), 3.0f));
}

/// Codes and scale of one row of differences.
void sketch_row(const ValueSketchLayout& layout, const Row& differences, int p, std::byte* sketch) {
  const int dim = layout.head_dim;
  Lanes squares = {}, products = {}, code_squares = {};
  for (int d = 0; d < dim; ++d) squares[d % kLanes] += differences[d] * differences[d];
  const float rms = std::sqrt(add_halves(squares) / static_cast<float>(dim));
  const float inverse = rms > 0 ? 1.0f / rms : 0.0f;
  for (int d = 0; d < dim; ++d) {
    const int code = code_of(differences[d] * inverse);
    const float centred = static_cast<float>(code) - kMiddle;
    products[d % kLanes] += differences[d] * centred;
    code_squares[d % kLanes] += centred * centred;
    sketch[layout.byte(p, d)] |= static_cast<std::byte>(code << layout.shift(d));
  }
  put_rounded(sketch + layout.scales_offset(), p, add_halves(products) / add_halves(code_squares));
}

}  // namespace

void sketch_values(const ValueSketchLayout& layout, KvType type, const std::byte* tile, std::byte* sketch) {
  const int dim = layout.head_dim;
  const KvRowLayout rows{type, dim};
  std::array<Row, kRows> values;
  Row mean = {};
  for (int p = 0; p < kRows; ++p) {
    read_kv_row(rows, tile + p * rows.bytes(), nullptr, values[p].data());
    for (int d = 0; d < dim; ++d) mean[d] += values[p][d];
  }
  for (int d = 0; d < dim; ++d) mean[d] = put_rounded(sketch, d, mean[d] / kRows);
  std::memset(sketch + layout.codes_offset(), 0, static_cast<size_t>(layout.bytes()) - layout.codes_offset());
  for (int p = 0; p < kRows; ++p) {
    for (int d = 0; d < dim; ++d) values[p][d] -= mean[d];
    sketch_row(layout, values[p], p, sketch);
  }
}

void value_sketch_mean(const ValueSketchLayout& layout, const std::byte* sketch, float* mean) {
  for (int d = 0; d < layout.head_dim; ++d) mean[d] = bf16_of(sketch, d);
}

void value_sketch_row(const ValueSketchLayout& layout, const std::byte* sketch, int p, float* value) {
  value_sketch_mean(layout, sketch, value);
  const float scale = bf16_of(sketch + layout.scales_offset(), p);
  for (int d = 0; d < layout.head_dim; ++d) {
    const int code = std::to_integer<int>(sketch[layout.byte(p, d)]) >> layout.shift(d) & 3;
    value[d] += scale * (static_cast<float>(code) - kMiddle);
  }
}

}  // namespace tidal
