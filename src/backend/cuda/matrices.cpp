#include "backend/cuda/matrices.h"

#include <algorithm>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/elementwise.h"
#include "backend/cuda/error.h"
#include "backend/cuda/matmul_lt.h"
#include "backend/cuda/matmul_skinny.h"
#include "core/buffer.h"

namespace tidal::cuda {
namespace {

/// Of the next product's weights, asked for while a product ends and while attention runs. Well below the level-2
/// cache (50 MB), since attention reads through it too.
constexpr int64_t kPrefetchBytes = int64_t{16} << 20;

const __nv_bfloat16* bf16(const Weight& weight) { return reinterpret_cast<const __nv_bfloat16*>(weight.data); }
const float* floats(const Weight& weight) { return reinterpret_cast<const float*>(weight.data); }

Prefetch prefetch_of(const Weight& first) {
  Prefetch result;
  result.data[0] = first.data;
  result.bytes[0] = std::min<int64_t>(static_cast<int64_t>(first.bytes()), kPrefetchBytes);
  return result;
}

Prefetch prefetch_of(const Weight& first, const Weight& second) {
  Prefetch result = prefetch_of(first);
  result.data[1] = second.data;
  result.bytes[0] = std::min(result.bytes[0], kPrefetchBytes / 2);
  result.bytes[1] = std::min<int64_t>(static_cast<int64_t>(second.bytes()), kPrefetchBytes / 2);
  return result;
}

/// Whether matrices lie one behind the other, so that one product does both.
bool joined(const Weight& first, const Weight& second) { return first.data + first.bytes() == second.data; }

/// The parts of the workspace for passes of up to `rows` rows, in bytes.
struct Sizes {
  int64_t frequencies, angles, slots, rounded, factors, raw, gate_up, hidden, products;

  Sizes(const Hyperparameters& hp, int64_t rows)
      : frequencies(part(hp.rope.dims / 2 * sizeof(double))),
        angles(part(rows * (hp.rope.dims / 2) * sizeof(float2))),
        slots(part(rows * sizeof(int32_t))),
        rounded(part(rows * std::max(hp.width, hp.q_width()) * 2)),
        factors(part(rows * sizeof(float))),
        raw(part(rows * (hp.q_width() + 2 * hp.kv_width()) * sizeof(float))),
        gate_up(part(rows * 2 * hp.ffn * 2)),
        hidden(part(rows * hp.ffn * 2)),
        products(LtMatmul::kWorkspace) {}
  int64_t total() const { return frequencies + angles + slots + rounded + factors + raw + gate_up + hidden + products; }

 private:
  static int64_t part(int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

}  // namespace

struct Matrices::State {
  Hyperparameters hp;
  int max_rows = 0;
  Buffer memory;
  LtMatmul lt;

  double* frequencies = nullptr;     ///< [dims / 2]
  float2* angles = nullptr;          ///< [rows, dims / 2]
  int32_t* slots = nullptr;          ///< [rows]
  __nv_bfloat16* rounded = nullptr;  ///< [rows, max(width, q_width)]
  float* factors = nullptr;          ///< [rows]
  float* raw = nullptr;              ///< [rows, q_width + 2 kv_width], products before rotation
  __nv_bfloat16* gate_up = nullptr;  ///< [rows, 2 ffn]
  __nv_bfloat16* hidden = nullptr;   ///< [rows, ffn]
  std::byte* products = nullptr;     ///< cuBLASLt's own

  bool halves() const { return hp.rope.pairing == Rope::Pairing::Halves; }
  int pairs() const { return hp.rope.dims / 2; }
  /// Whether the products of q, k and v end in the rotation: not with norms of whole heads, which need all of a head.
  bool rotates_inside(const Layer& layer) const {
    return !layer.q_norm && !layer.k_norm && hp.head_dim % 16 == 0 && hp.rope.dims % 16 == 0;
  }

  /// The input of a skinny product from float32 rows: as it is where these are few, rounded by a launch of its own
  /// otherwise.
  SkinnyInput input(const float* x, const Weight& norm, const int32_t* row_ids, int rows, int cols,
                    cudaStream_t stream) {
    SkinnyInput in;
    if (skinny_takes_floats(rows, cols)) {
      in.x = x;
      in.norm = floats(norm);
      in.row_ids = row_ids;
      in.epsilon = hp.rms_epsilon;
      return in;
    }
    launch_round({.x = x,
                  .row_ids = row_ids,
                  .norm = floats(norm),
                  .epsilon = hp.rms_epsilon,
                  .rows = rows,
                  .cols = cols,
                  .rounded = rounded,
                  .factors = factors},
                 stream);
    in.rounded = rounded;
    in.factors = norm ? factors : nullptr;
    return in;
  }
  /// Rows for cuBLASLt, behind those of decode rows: normed and rounded.
  const __nv_bfloat16* round_whole(const float* x, const Weight& norm, const int32_t* row_ids, PassRows pass, int cols,
                                   cudaStream_t stream) {
    __nv_bfloat16* to = rounded + static_cast<int64_t>(pass.decode_rows) * cols;
    launch_round({.x = x,
                  .row_ids = row_ids,
                  .norm = floats(norm),
                  .epsilon = hp.rms_epsilon,
                  .rows = pass.rows - pass.decode_rows,
                  .cols = cols,
                  .rounded = to,
                  .whole = true},
                 stream);
    return to;
  }

  void decode_qkv(const QkvParams& p, cudaStream_t stream);
  void prefill_qkv(const QkvParams& p, cudaStream_t stream);
  void prefill_mlp(const MlpParams& p, cudaStream_t stream);
  /// Rotation of raw products of the rows from `first` on.
  RopeAppendParams rope_append(const QkvParams& p, int first, int rows) const;
};

Matrices::Matrices() : state_(std::make_unique<State>()) {}
Matrices::~Matrices() = default;

int64_t Matrices::workspace_bytes(const Hyperparameters& hp, int max_rows) { return Sizes(hp, max_rows).total(); }

bool Matrices::reserve(const Hyperparameters& hp, int max_rows) {
  State& s = *state_;
  check(cudaDeviceSynchronize(), "making room for a pass");
  s.hp = hp;
  s.max_rows = max_rows;
  const Sizes sizes(hp, max_rows);
  std::byte* const before = s.memory.as<std::byte>();
  if (static_cast<int64_t>(s.memory.bytes()) < sizes.total()) {
    s.memory = {};  // first, so that both need not fit
    s.memory = allocate_device(static_cast<size_t>(sizes.total()), "activations of a pass");
  }
  std::byte* at = s.memory.as<std::byte>();
  bool moved = at != before;
  const auto place = [&](auto*& pointer, int64_t bytes) {
    auto* const here = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
    moved |= pointer != here;
    pointer = here;
    at += bytes;
  };
  place(s.frequencies, sizes.frequencies);
  place(s.angles, sizes.angles);
  place(s.slots, sizes.slots);
  place(s.rounded, sizes.rounded);
  place(s.factors, sizes.factors);
  place(s.raw, sizes.raw);
  place(s.gate_up, sizes.gate_up);
  place(s.hidden, sizes.hidden);
  place(s.products, sizes.products);
  const std::vector<double>& frequencies = hp.rope.frequencies;
  check(cudaMemcpy(s.frequencies, frequencies.data(), frequencies.size() * sizeof(double), cudaMemcpyHostToDevice),
        "rotation frequencies");
  return moved;
}

void Matrices::begin(const StepTables& tables, int rows, cudaStream_t stream) {
  State& s = *state_;
  launch_angles({.tables = tables,
                 .frequencies = s.frequencies,
                 .magnitude = s.hp.rope.magnitude,
                 .rows = rows,
                 .pairs = s.pairs(),
                 .angles = s.angles,
                 .slots = s.slots},
                stream);
}

void Matrices::embed(const EmbedParams& p, cudaStream_t stream) {
  launch_embed(bf16(p.embedding), p.tables.tokens, p.rows, static_cast<int>(p.embedding.cols), p.x, stream);
}

RopeAppendParams Matrices::State::rope_append(const QkvParams& p, int first, int rows) const {
  const Layer& layer = *p.layer;
  return {.bias = {floats(layer.bq), floats(layer.bk), floats(layer.bv)},
          .q_norm = floats(layer.q_norm),
          .k_norm = floats(layer.k_norm),
          .epsilon = hp.rms_epsilon,
          .angles = angles + static_cast<int64_t>(first) * pairs(),
          .slots = slots + first,
          .q = p.q + static_cast<int64_t>(first) * hp.q_width(),
          .kv = reinterpret_cast<__nv_bfloat16*>(p.kv.data),
          .rows = rows,
          .heads = hp.heads,
          .kv_heads = hp.kv_heads,
          .head_dim = hp.head_dim,
          .dims = hp.rope.dims,
          .halves = halves()};
}

void Matrices::State::decode_qkv(const QkvParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int rows = p.pass.decode_rows, q_width = hp.q_width(), kv_width = hp.kv_width();
  const bool inside = rotates_inside(layer);
  SkinnyQkv product;
  product.in = input(p.x, layer.attn_norm, nullptr, rows, hp.width, stream);
  const Weight* weights[] = {&layer.wq, &layer.wk, &layer.wv};
  const Weight* biases[] = {&layer.bq, &layer.bk, &layer.bv};
  for (int i = 0; i < 3; ++i) {
    product.w[i] = bf16(*weights[i]);
    if (inside) product.bias[i] = floats(*biases[i]);  // else rope_append() adds them
  }
  product.q = p.q;
  product.k_raw = raw;
  product.v_raw = raw + static_cast<int64_t>(rows) * kv_width;
  product.rows = rows;
  product.cols = hp.width;
  product.q_width = q_width;
  product.kv_width = kv_width;
  product.fused = inside;
  product.rope = {.angles = angles,
                  .slots = slots,
                  .kv = reinterpret_cast<__nv_bfloat16*>(p.kv.data),
                  .kv_heads = hp.kv_heads,
                  .head_dim = hp.head_dim,
                  .dims = hp.rope.dims,
                  .halves = halves()};
  product.next = prefetch_of(layer.wo);
  launch_skinny_qkv(product, stream);
  if (inside) return;
  RopeAppendParams rope = rope_append(p, 0, rows);
  rope.q_raw = p.q;
  rope.k_raw = product.k_raw;
  rope.v_raw = product.v_raw;
  rope.q_stride = q_width;
  rope.kv_stride = kv_width;
  launch_rope_append(rope, stream);
}

void Matrices::State::prefill_qkv(const QkvParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first;
  const int q_width = hp.q_width(), kv_width = hp.kv_width(), all = q_width + 2 * kv_width;
  const __nv_bfloat16* x =
      round_whole(p.x + static_cast<int64_t>(first) * hp.width, layer.attn_norm, nullptr, p.pass, hp.width, stream);
  float* to = raw + static_cast<int64_t>(first) * all;
  LtProduct product{.x = x, .w = bf16(layer.wq), .y = to, .rows = rows, .cols = hp.width, .stride = all};
  if (joined(layer.wq, layer.wk) && joined(layer.wk, layer.wv)) {
    product.w_rows = all;
    lt.multiply(product, products, stream);
  } else {
    const Weight* weights[] = {&layer.wq, &layer.wk, &layer.wv};
    float* at = to;
    for (const Weight* weight : weights) {
      product.w = bf16(*weight);
      product.w_rows = static_cast<int>(weight->rows);
      product.y = at;
      lt.multiply(product, products, stream);
      at += weight->rows;
    }
  }
  RopeAppendParams rope = rope_append(p, first, rows);
  rope.q_raw = to;
  rope.k_raw = to + q_width;
  rope.v_raw = to + q_width + kv_width;
  rope.q_stride = rope.kv_stride = all;
  launch_rope_append(rope, stream);
}

void Matrices::qkv(const QkvParams& p, cudaStream_t stream) {
  if (p.pass.decode_rows > 0) state_->decode_qkv(p, stream);
  if (p.pass.rows > p.pass.decode_rows) state_->prefill_qkv(p, stream);
}

void Matrices::project(const ProjectParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  const int width = s.hp.width, q_width = s.hp.q_width(), first = p.pass.decode_rows;
  if (first > 0) {
    SkinnyRows product;
    product.in = s.input(p.out, {}, nullptr, first, q_width, stream);
    product.w = bf16(layer.wo);
    product.bias = floats(layer.bo);
    product.y = p.x;
    product.rows = first;
    product.cols = q_width;
    product.w_rows = width;
    product.add = true;
    product.next = prefetch_of(layer.gate, layer.up);
    launch_skinny_rows(product, stream);
  }
  const int rows = p.pass.rows - first;
  if (rows == 0) return;
  float* x = p.x + static_cast<int64_t>(first) * width;
  const __nv_bfloat16* out =
      s.round_whole(p.out + static_cast<int64_t>(first) * q_width, {}, nullptr, p.pass, q_width, stream);
  s.lt.multiply({.x = out,
                 .w = bf16(layer.wo),
                 .y = x,
                 .rows = rows,
                 .cols = q_width,
                 .w_rows = width,
                 .stride = width,
                 .add = true},
                s.products, stream);
  if (layer.bo) launch_add_bias(x, floats(layer.bo), rows, width, stream);
}

void Matrices::State::prefill_mlp(const MlpParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first, ffn = hp.ffn;
  float* x = p.x + static_cast<int64_t>(first) * hp.width;
  const __nv_bfloat16* normed = round_whole(x, layer.ffn_norm, nullptr, p.pass, hp.width, stream);
  __nv_bfloat16* both = gate_up + static_cast<int64_t>(first) * 2 * ffn;
  __nv_bfloat16* silu = hidden + static_cast<int64_t>(first) * ffn;
  LtProduct product{.x = normed,
                    .w = bf16(layer.gate),
                    .y = both,
                    .rows = rows,
                    .cols = hp.width,
                    .w_rows = ffn,
                    .stride = 2 * ffn,
                    .rounded = true};
  if (joined(layer.gate, layer.up)) {
    product.w_rows = 2 * ffn;
    lt.multiply(product, products, stream);
  } else {
    lt.multiply(product, products, stream);
    product.w = bf16(layer.up);
    product.y = both + ffn;
    lt.multiply(product, products, stream);
  }
  launch_silu({.gate = both,
               .up = both + ffn,
               .gate_bias = floats(layer.b_gate),
               .up_bias = floats(layer.b_up),
               .hidden = silu,
               .rows = rows,
               .ffn = ffn,
               .stride = 2 * ffn},
              stream);
  lt.multiply({.x = silu,
               .w = bf16(layer.down),
               .y = x,
               .rows = rows,
               .cols = ffn,
               .w_rows = hp.width,
               .stride = hp.width,
               .add = true},
              products, stream);
  if (layer.b_down) launch_add_bias(x, floats(layer.b_down), rows, hp.width, stream);
}

void Matrices::mlp(const MlpParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  const int rows = p.pass.decode_rows;
  if (rows > 0) {
    SkinnyGateUp both;
    both.in = s.input(p.x, layer.ffn_norm, nullptr, rows, s.hp.width, stream);
    both.gate = bf16(layer.gate);
    both.up = bf16(layer.up);
    both.gate_bias = floats(layer.b_gate);
    both.up_bias = floats(layer.b_up);
    both.hidden = s.hidden;
    both.rows = rows;
    both.cols = s.hp.width;
    both.ffn = s.hp.ffn;
    both.next = prefetch_of(layer.down);
    launch_skinny_gate_up(both, stream);
    SkinnyRows down;
    down.in.rounded = s.hidden;
    down.w = bf16(layer.down);
    down.bias = floats(layer.b_down);
    down.y = p.x;
    down.rows = rows;
    down.cols = s.hp.ffn;
    down.w_rows = s.hp.width;
    down.add = true;
    if (p.next) down.next = prefetch_of(p.next->wq);
    launch_skinny_rows(down, stream);
  }
  if (p.pass.rows > rows) s.prefill_mlp(p, stream);
}

void Matrices::logits(const LogitsParams& p, cudaStream_t stream) {
  State& s = *state_;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first;
  const int width = s.hp.width, vocab = static_cast<int>(p.output.rows);
  if (first > 0) {
    SkinnyRows product;
    product.in = s.input(p.x, p.norm, p.logit_rows, first, width, stream);
    product.w = bf16(p.output);
    product.y = p.logits;
    product.rows = first;
    product.cols = width;
    product.w_rows = vocab;
    launch_skinny_rows(product, stream);
  }
  if (rows == 0) return;
  const __nv_bfloat16* x = s.round_whole(p.x, p.norm, p.logit_rows + first, p.pass, width, stream);
  s.lt.multiply({.x = x,
                 .w = bf16(p.output),
                 .y = p.logits + static_cast<int64_t>(first) * vocab,
                 .rows = rows,
                 .cols = width,
                 .w_rows = vocab,
                 .stride = vocab},
                s.products, stream);
}

}  // namespace tidal::cuda
