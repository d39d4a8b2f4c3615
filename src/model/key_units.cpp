#include "model/key_units.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "model/model.h"

namespace tidal {
namespace {

// 32 elements of an 8-bit row share a scale, so elements that are smaller than the largest of them lose bits; Qwen2.5's
// keys have some, by their bias, that are a hundred times as large as others. The larger an element the larger is its
// unit, and more so where queries are small, since they multiply what it loses. Not in proportion: with
//   unit = key^(2/3) / query^(1/3),
// of sizes as they are expected from the weights, the largest stays the largest of its block, and loses nothing: its
// code is always 127, and the scale says the rest. docs/accuracy.md has what other exponents gave.

/// Elements of a row of a matrix that its norm is taken from, a block of every type. With all of them instead 1 to 3
/// units in a hundred are others, by a factor of 2 (Qwen2.5-0.5B and 1.5B, SmolLM2-135M).
constexpr int64_t kNormElements = 256;
/// No size counts as less than this part of the largest of its head.
constexpr double kLeastShare = 0x1p-12;

/// Expected squares of what a matrix makes of a normed row, [rows]: inputs are taken for independent.
std::vector<double> product_squares(const Weight& matrix, const Weight& input_norm, const Weight& bias) {
  const int64_t count =
      std::min(kNormElements, matrix.cols) / ggml_blck_size(matrix.type) * ggml_blck_size(matrix.type);
  const double share = static_cast<double>(matrix.cols) / static_cast<double>(std::max<int64_t>(count, 1));
  std::vector<float> row(static_cast<size_t>(count));
  std::vector<double> squares;
  for (int64_t r = 0; r < matrix.rows; ++r) {
    if (matrix.type == GGML_TYPE_F32) {
      std::copy_n(reinterpret_cast<const float*>(matrix.row(r)), count, row.data());
    } else {
      ggml_get_type_traits(matrix.type)->to_float(matrix.row(r), row.data(), count);
    }
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double value = static_cast<double>(row[i]) * (input_norm ? input_norm.floats()[i] : 1.0f);
      sum += value * value;
    }
    const double added = bias ? bias.floats()[r] : 0.0;
    squares.push_back(sum * share * matrix.scale * matrix.scale + added * added);
  }
  return squares;
}

/// The same behind a norm of q or k, if there is one.
void norm_heads(const Weight& norm, int dim, std::vector<double>& squares) {
  if (!norm) return;
  for (size_t first = 0; first < squares.size(); first += static_cast<size_t>(dim)) {
    double sum = 0;
    for (int d = 0; d < dim; ++d) sum += squares[first + d];
    for (int d = 0; d < dim; ++d) {
      const double gain = norm.floats()[(first + d) % static_cast<size_t>(norm.cols)];
      squares[first + d] *= sum > 0 ? gain * gain * dim / sum : 0;
    }
  }
}

/// What rotates together has one size, [dim]: that of both.
void join_pairs(const Rope& rope, double* head) {
  const bool halves = rope.pairing == Rope::Pairing::Halves;
  for (int i = 0; i < rope.dims / 2; ++i) {
    double& a = head[halves ? i : 2 * i];
    double& b = head[halves ? i + rope.dims / 2 : 2 * i + 1];
    a = b = (a + b) / 2;
  }
}

/// Logarithms of sizes from their squares, [dim]; false where these are all 0, or no numbers.
bool to_logarithms(double* head, int dim) {
  double top = 0;
  bool finite = true;
  for (int d = 0; d < dim; ++d) {
    finite = finite && std::isfinite(head[d]);
    top = std::max(top, head[d]);
  }
  if (!finite || top <= 0) return false;
  for (int d = 0; d < dim; ++d) head[d] = std::log2(std::max(head[d], top * kLeastShare * kLeastShare)) / 2;
  return true;
}

/// The units of one KV head, [dim], from the squares of its keys and of its queries.
void find_units(double* keys, double* queries, int dim, float* units) {
  std::fill_n(units, dim, 1.0f);
  if (!to_logarithms(keys, dim) || !to_logarithms(queries, dim)) return;
  double mean = 0;
  for (int d = 0; d < dim; ++d) {
    keys[d] = (2 * keys[d] - queries[d]) / 3;
    mean += keys[d] / dim;
  }
  for (int d = 0; d < dim; ++d) units[d] = std::ldexp(1.0f, static_cast<int>(std::lround(keys[d] - mean)));
}

std::vector<float> units_of(const Hyperparameters& hp, const Layer& layer, KvShape kv) {
  const int dim = kv.head_dim, group = hp.heads / kv.heads;
  std::vector<double> keys = product_squares(layer.wk, layer.attn_norm, layer.bk);
  std::vector<double> all = product_squares(layer.wq, layer.attn_norm, layer.bq);
  norm_heads(layer.k_norm, dim, keys);
  norm_heads(layer.q_norm, dim, all);
  std::vector<double> queries(keys.size(), 0.0);  // of all heads that share a KV head
  for (size_t i = 0; i < all.size(); ++i) {
    const size_t head = i / static_cast<size_t>(dim * group);
    queries[head * dim + i % static_cast<size_t>(dim)] += all[i];
  }
  std::vector<float> units(keys.size());
  for (size_t first = 0; first < keys.size(); first += static_cast<size_t>(dim)) {
    if (layer.rotates) {
      const Rope& rope = layer.window_rope ? hp.window_rope : hp.rope;
      join_pairs(rope, keys.data() + first);
      join_pairs(rope, queries.data() + first);
    }
    find_units(keys.data() + first, queries.data() + first, dim, units.data() + first);
  }
  return units;
}

}  // namespace

void set_key_units(Model& model) {
  const Hyperparameters& hp = model.hp;
  const auto memory = std::make_shared<std::vector<std::vector<float>>>();
  for (int l = 0; l < hp.layers; ++l) {
    Layer& layer = model.layers[static_cast<size_t>(l)];
    if (layer.delta) continue;
    if (hp.kv_layer(l) != l) {
      layer.key_units = model.layers[static_cast<size_t>(hp.kv_layer(l))].key_units;
      continue;
    }
    const std::vector<float>& units = memory->emplace_back(units_of(hp, layer, hp.kv(l)));
    layer.key_units = {GGML_TYPE_F32, 1, static_cast<int64_t>(units.size()),
                       reinterpret_cast<const std::byte*>(units.data())};
  }
  model.storage = std::make_shared<std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>>(
      std::move(model.storage), memory);
}

}  // namespace tidal
