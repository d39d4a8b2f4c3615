// The shape of a Llama-family model: everything a backend needs to know besides the weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/kv_row.h"

namespace tidal {

using Token = int32_t;

/// Rotary position embedding, with every kind of scaling already folded into per-pair frequencies.
struct Rope {
  /// Which two elements of a head are rotated together: (2i, 2i+1) or (i, i + dims/2).
  enum class Pairing { Adjacent, Halves };
  Pairing pairing = Pairing::Adjacent;
  int dims = 0;                     ///< leading elements of each head that are rotated; even, at most head_dim
  std::vector<double> frequencies;  ///< [dims / 2], radians per position
  float magnitude = 1.0f;           ///< factor on cosine and sine (YaRN's attention factor)
};

/// A mixture of experts in place of a layer's MLP: `count` small ones, of which each token goes through the `used` that
/// its router finds most probable (of equals the first), weighted by those probabilities.
struct Experts {
  int count = 0;                    ///< 0: the model has none
  int used = 0;                     ///< 1 to `count`
  int ffn = 0;                      ///< elements of an expert's hidden layer
  int shared_ffn = 0;               ///< of one more that every token goes through; 0: there is none
  bool weights_sum_to_one = false;  ///< probabilities are divided by the sum of the chosen ones
  bool own_norms = false;           ///< router, chosen experts and shared expert have norms of their own (Layer)

  explicit operator bool() const { return count > 0; }
  bool operator==(const Experts&) const = default;
};

/// Gated DeltaNet (arXiv 2412.06464): what a recurrent layer has in place of attention. Every value head keeps a matrix
/// S [head_dim of its key, head_dim of its value] in float32, whatever the length of the context.
struct DeltaNet {
  int taps = 0;      ///< rows that the causal convolution looks at, the last one its own; >= 2
  int head_dim = 0;  ///< elements of a query, key and value head; 0: the model has no recurrent layers
  int key_heads = 0;
  int value_heads = 0;      ///< a multiple of `key_heads`
  bool neighbours = false;  ///< the value heads of one key head follow each other, else they are `key_heads` apart

  explicit operator bool() const { return head_dim > 0; }
  int key_head(int value_head) const {
    return neighbours ? value_head / (value_heads / key_heads) : value_head % key_heads;
  }
  int key_width() const { return key_heads * head_dim; }
  int value_width() const { return value_heads * head_dim; }
  int mixed_width() const { return 2 * key_width() + value_width(); }  ///< queries, keys and values
  /// Elements of a layer's state: what the convolution saw last [taps - 1, mixed_width], then S of every value head.
  int64_t tail_elements() const { return int64_t{taps - 1} * mixed_width(); }
  int64_t state_elements() const { return tail_elements() + int64_t{value_width()} * head_dim; }
  bool operator==(const DeltaNet&) const = default;
};

/// What an MLP's hidden layer makes of a row's gate and up.
enum class Activation {
  Silu,           ///< gate / (1 + exp(-gate)) * up
  Gelu,           ///< gate / (1 + exp(-2 z)) * up with z = sqrt(2 / pi) (gate + 0.044715 gate^3): GELU's form with tanh
  ClampedSwiGlu,  ///< g / (1 + exp(-1.702 g)) * (u + 1) with g = min(gate, 7) and u = up from -7 to 7 (gpt-oss)
};
inline constexpr float kClampedSlope = 1.702f, kClampedLimit = 7.0f;

/// The keys and values of a layer.
struct KvShape {
  int heads = 0;     ///< divides the query heads
  int head_dim = 0;  ///< elements of one head of q, k and v

  explicit operator bool() const { return heads > 0; }
  int width() const { return heads * head_dim; }
  /// Of one position's K and V.
  int64_t row_bytes(KvType type = KvType::Bf16) const { return heads * KvRowLayout{type, head_dim}.bytes(); }
  bool operator==(const KvShape&) const = default;
};
/// No head has more elements.
inline constexpr int kMostHeadDim = 512;

struct Hyperparameters {
  std::string architecture;  ///< as GGUF names it: llama, qwen3moe, ... (model/family.h)
  std::string name;          ///< general.name, may be empty
  int layers = 0;
  int width = 0;          ///< elements of the residual stream
  int heads = 0;          ///< query heads
  int kv_heads = 0;       ///< key/value heads; divides `heads`
  int head_dim = 0;       ///< elements of one head of q, k and v
  KvShape window_kv;      ///< in place of these two in layers with a window; no heads: they are like all others
  int ffn = 0;            ///< elements of the MLP's hidden layer, the most of any layer; of no account beside experts
  std::vector<int> ffns;  ///< [layers] of ffn_of(); empty: all have `ffn`
  int vocab = 0;
  int context = 0;  ///< positions the model was trained for
  float rms_epsilon = 1e-5f;
  Rope rope;
  int unrotated_every = 0;  ///< every so-many-th layer does not rotate its q and k (SmolLM3: 4); 0: all do
  bool post_norms = false;  ///< what attention and MLP give is normed before it is added
  float embedding_scale = 1;
  // These are in the weights' own scales once they are read.
  float attention_scale = 0;    ///< of scores; 0: 1 / sqrt(head_dim)
  float residual_scale = 1;     ///< of what attention and MLP add
  float logit_scale = 1;        ///< that logits are divided by
  float temperature_scale = 0;  ///< of temperature(); 0: there is none
  int temperature_length = 1;   ///< positions, >= 1
  float query_scale = 1;        ///< of queries, behind their norm; part of temperature()
  float score_cap = 0;  ///< scores, divided by sqrt(head_dim), are this times tanh(score / this); 0: as they are
  float logit_cap = 0;  ///< logits are this times tanh(logit / this); 0: as they are
  Activation activation = Activation::Silu;
  Experts experts;
  DeltaNet delta;
  std::vector<bool> recurrent;   ///< [layers] of recurs(); empty: no layer is
  bool value_norm = false;       ///< heads of values are normed, by no weights
  int layer_input = 0;           ///< elements of what each layer gets beside x (Backend::layer_inputs()); 0: nothing
  int shared_kv_layers = 0;      ///< so many last layers have no K and V of their own: kv_layer()
  bool gated_attention = false;  ///< attention's output times the sigmoid of gates (Layer::attn_gate)

  bool recurs(int layer) const { return !recurrent.empty() && recurrent[static_cast<size_t>(layer)]; }
  int recurrent_layers() const { return static_cast<int>(std::count(recurrent.begin(), recurrent.end(), true)); }
  /// Bytes of what a sequence keeps for its recurrent layers; 0 where the model has none.
  int64_t state_bytes() const { return int64_t{4} * delta.state_elements() * recurrent_layers(); }
  std::vector<int> windows;  ///< [layers] of window(); empty: no layer has one
  Rope window_rope;          ///< of layers with a window; no `dims`: `rope`, as all others
  bool sink_logits = false;  ///< layers have Layer::sink_logits

  /// A layer's attention at a position p sees the last so many positions, p - window + 1 to p; 0: the whole context.
  int window(int layer) const { return windows.empty() ? 0 : windows[static_cast<size_t>(layer)]; }
  /// The first position that a layer sees from `position`.
  int first_seen(int layer, int position) const {
    return window(layer) > 0 ? std::max(0, position - window(layer) + 1) : 0;
  }
  int largest_window() const { return windows.empty() ? 0 : *std::max_element(windows.begin(), windows.end()); }
  /// Whether a layer reads the whole context, so that a plan has something to decide about it.
  bool reads_all(int layer) const { return window(layer) == 0 && !recurs(layer); }
  /// The layers that do, ascending.
  std::vector<int> layers_that_read_all() const {
    std::vector<int> all;
    for (int l = 0; l < layers; ++l) {
      if (reads_all(l)) all.push_back(l);
    }
    return all;
  }

  /// How many of them have K and V of their own, which sketches are kept of.
  int64_t sketched_layers() const {
    int64_t count = 0;
    for (int l = 0; l < layers; ++l) count += reads_all(l) && has_kv(l) ? 1 : 0;
    return count;
  }

  /// The cap of products of queries and keys that makes that of scores; 0: none.
  float product_cap(int head_size) const { return score_cap * std::sqrt(static_cast<float>(head_size)); }

  bool rotates(int layer) const { return unrotated_every == 0 || (layer + 1) % unrotated_every != 0; }
  bool rotates_by_window_rope(int layer) const { return window(layer) > 0 && window_rope.dims > 0; }
  /// Whether temperature() is anything but 1.
  bool scales_queries() const { return temperature_scale != 0 || query_scale != 1; }
  /// Factor on the queries of a position after their rotation (attention temperature: Llama 4, Ministral 3).
  float temperature(int position) const {
    if (temperature_scale == 0) return query_scale;
    const double lengths = 1.0 + position / temperature_length;  // NOLINT(bugprone-integer-division): whole ones
    return static_cast<float>(query_scale * (1.0 + static_cast<double>(temperature_scale) * std::log(lengths)));
  }
  int ffn_of(int layer) const { return ffns.empty() ? ffn : ffns[static_cast<size_t>(layer)]; }
  /// The layer whose K and V a layer reads: itself, or the last one of its kind, with a window or without, that has its
  /// own.
  int kv_layer(int layer) const {
    int source = std::min(layer, layers - shared_kv_layers - 1);
    while (source != layer && source > 0 && (window(source) > 0) != (window(layer) > 0)) --source;
    return source;
  }
  /// Whether a layer writes K and V.
  bool has_kv(int layer) const { return !recurs(layer) && kv_layer(layer) == layer; }
  KvShape kv(int layer) const { return window_kv && window(layer) > 0 ? window_kv : KvShape{kv_heads, head_dim}; }
  int q_width(int layer) const { return heads * kv(layer).head_dim; }
  /// Of the layers that read the whole context, which are all alike: query heads that share one KV head.
  int group() const { return heads / kv_heads; }
  // Of the layer where it is most.
  int q_width() const { return heads * std::max(head_dim, window_kv.head_dim); }
  int kv_width() const { return std::max(kv_heads * head_dim, window_kv.width()); }
  /// Bytes of K and V that one token adds to the cache, all layers with has_kv().
  int64_t kv_bytes_per_token(KvType type = KvType::Bf16) const {
    int64_t bytes = 0;
    for (int l = 0; l < layers; ++l) bytes += has_kv(l) ? kv(l).row_bytes(type) : 0;
    return bytes;
  }
  /// Those of them that are in layers with a window.
  int64_t window_bytes_per_token(KvType type = KvType::Bf16) const {
    int64_t bytes = 0;
    for (int l = 0; l < layers; ++l) bytes += window(l) > 0 && has_kv(l) ? kv(l).row_bytes(type) : 0;
    return bytes;
  }
  /// Bytes of K and V that full attention reads of a context, all layers.
  int64_t kv_bytes_read(int context, KvType type = KvType::Bf16) const {
    int64_t bytes = 0;
    for (int l = 0; l < layers; ++l) {
      if (!recurs(l)) bytes += kv(l).row_bytes(type) * (context - first_seen(l, context - 1));
    }
    return bytes;
  }
};

}  // namespace tidal
