#include "backend/cpu/cpu_backend.h"

#include <ggml-cpu.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/prefill_attention.h"
#include "backend/cpu/vector_ops.h"
#include "backend/key_units.h"
#include "core/error.h"

namespace tidal {
namespace {

/// Of norms without weights.
const std::vector<float> kOnes(kMostHeadDim, 1.0f);

/// Heads of q [q_width] times the units of their KV head.
void to_units(const float* units, int group, int dim, int q_width, float* q) {
  for (int first = 0; first < q_width; first += dim) {
    const float* const own = units + static_cast<ptrdiff_t>(first / dim / group) * dim;
    for (int d = 0; d < dim; ++d) q[first + d] *= own[d];
  }
}

}  // namespace

CpuBackend::CpuBackend(int threads)
    : threads_(threads),
      gemm_(threads),
      attention_(threads),
      delta_(threads),
      mlp_(threads, gemm_),
      experts_(threads, gemm_) {
  ggml_cpu_init();
  // oneDNN and any region without num_threads follow the same count.
  omp_set_num_threads(threads);
}

void CpuBackend::reserve(const Hyperparameters& hp, int max_rows, int max_context) {
  const size_t rows = static_cast<size_t>(max_rows);
  const int widest = std::max({hp.width, hp.q_width(), hp.delta.value_width(), hp.layer_input});
  max_rows_ = max_rows;
  normed_ = allocate_memory(sizeof(float) * rows * hp.width, "activations");
  kv_ = allocate_memory(sizeof(float) * rows * 2 * hp.kv_width(), "activations");
  elements_ = allocate_memory(gemm_.elements().bytes() * rows * widest, "activations");
  if (hp.post_norms) given_ = allocate_memory(sizeof(float) * rows * hp.width, "activations");
  for (Buffer* of_experts : {&routed_, &part_}) {
    if (hp.experts.own_norms) *of_experts = allocate_memory(sizeof(float) * rows * hp.width, "activations");
  }
  hidden_ = allocate_memory(sizeof(float) * rows * hp.layer_input, "activations");
  embedded_ =
      allocate_memory(sizeof(float) * static_cast<size_t>(threads_) * hp.layers * hp.layer_input, "activations");
  if (hp.gated_attention) gates_ = allocate_memory(sizeof(float) * rows * hp.q_width(), "activations");
  factors_ = allocate_memory(sizeof(float) * rows, "activations");
  angles_ = allocate_memory(sizeof(float) * rows * (hp.rope.dims + hp.window_rope.dims), "rotary angles");
  const int ffn = hp.experts ? hp.experts.shared_ffn : hp.ffn;
  quantised_.reserve(max_rows, widest);
  gemm_.reserve(max_rows, std::max(widest, ffn));
  mlp_.reserve(max_rows, hp.width, ffn);
  delta_.reserve(hp, max_rows);
  experts_.reserve(hp, max_rows);
  attention_.reserve(hp, max_context);
}

void CpuBackend::sketch(KvLayer kv, std::span<const BlockId> blocks) {
  const int tiles = static_cast<int>(blocks.size()) * kv.kv_heads;
  for (const int bits : kSketchBits) {
    if (!kv.keeps_sketch(bits)) continue;
#pragma omp parallel for schedule(static) num_threads(threads_) if (tiles > 1)
    for (int tile = 0; tile < tiles; ++tile) {
      const BlockId block = blocks[tile / kv.kv_heads];
      const int head = tile % kv.kv_heads;
      sketch_block({kv.head_dim, bits}, kv.type, kv.tile(block, head), kv.sketch(bits, block, head));
    }
  }
#pragma omp parallel for schedule(static) num_threads(threads_) if (tiles > 1)
  for (int tile = 0; tile < (kv.value_sketches ? tiles : 0); ++tile) {
    const BlockId block = blocks[tile / kv.kv_heads];
    const int head = tile % kv.kv_heads;
    sketch_values({kv.head_dim}, kv.type, kv.tile(block, head), kv.value_sketch(block, head));
  }
}

void CpuBackend::begin(const Hyperparameters& hp, const Batch& batch) {
  hp_ = hp;
  if (batch.rows() > max_rows_) fail("cpu backend: {} rows in a pass, reserved for {}", batch.rows(), max_rows_);
  short_ = 0;
  chunks_.clear();
  long_chunks_.clear();
  for (const Chunk& chunk : batch.chunks) {
    chunks_.push_back(chunk.rows);
    if (chunk.rows <= kShortChunk) {
      short_ = chunk.first_row + chunk.rows;
    } else {
      long_chunks_.push_back(chunk.rows);
    }
  }
  find_angles(hp.rope, batch, angles_.as<float>());
  find_angles(hp.window_rope, batch, angles_.as<float>() + int64_t{batch.rows()} * hp.rope.dims);
}

void CpuBackend::find_angles(const Rope& rope, const Batch& batch, float* angles) const {
  // In double: at position 100,000 a float would be off by a hundredth of a radian.
  const int pairs = rope.dims / 2;
#pragma omp parallel for schedule(static) num_threads(threads_) if (batch.rows() > kShortChunk)
  for (int r = 0; r < batch.rows(); ++r) {
    float* own = angles + static_cast<int64_t>(r) * rope.dims;
    for (int i = 0; i < pairs; ++i) {
      const double angle = batch.positions[r] * rope.frequencies[i];
      own[2 * i] = static_cast<float>(std::cos(angle)) * rope.magnitude;
      own[2 * i + 1] = static_cast<float>(std::sin(angle)) * rope.magnitude;
    }
  }
}

Rows CpuBackend::normalise(Rows x, const Weight& norm, const Buffer& to) {
  if (!norm) return x;
  const Rows normed{to.as<float>(), x.rows, x.width};
#pragma omp parallel for schedule(static) num_threads(threads_) if (x.rows > kShortChunk)
  for (int r = 0; r < x.rows; ++r) rms_norm(x.row(r), norm.floats(), x.width, hp_.rms_epsilon, normed.row(r));
  return normed;
}

const std::byte* CpuBackend::to_elements(Rows x) {
  const GemmElements& elements = gemm_.elements();
  std::byte* to = elements_.as<std::byte>();
#pragma omp parallel for schedule(static) num_threads(threads_) if (x.rows > kShortChunk)
  for (int r = 0; r < x.rows; ++r) elements.store(x.row(r), x.width, to + elements.bytes() * x.width * r);
  return to;
}

void CpuBackend::rotate(float* head, const Rope& rope, const float* angles) const {
  const int pairs = rope.dims / 2;
  const bool halves = rope.pairing == Rope::Pairing::Halves;
  for (int i = 0; i < pairs; ++i) {
    float& a = head[halves ? i : 2 * i];
    float& b = head[halves ? i + pairs : 2 * i + 1];
    const float x = a, y = b;
    a = x * angles[2 * i] - y * angles[2 * i + 1];
    b = x * angles[2 * i + 1] + y * angles[2 * i];
  }
}

void CpuBackend::qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) {
  const int dim = kv.head_dim, kv_width = kv.kv_heads * dim;
  const Rows normed = normalise(x, layer.attn_norm);
  const Rows k{kv_.as<float>(), x.rows, kv_width};
  const Rows v{kv_.as<float>() + static_cast<int64_t>(x.rows) * kv_width, x.rows, kv_width};
  const Product products[] = {{&layer.wq, &layer.bq, q}, {&layer.wk, &layer.bk, k}, {&layer.wv, &layer.bv, v}};
  multiply(std::span(products).first(layer.wv ? 3 : layer.wk ? 2 : 1), normed);
  if (layer.wk && !layer.wv) std::memcpy(v.data, k.data, sizeof(float) * static_cast<size_t>(k.rows) * kv_width);

  const Rope& rope = layer.window_rope ? hp_.window_rope : hp_.rope;
  const float* const all_angles = angles_.as<float>() + (layer.window_rope ? int64_t{x.rows} * hp_.rope.dims : 0);
  const auto finish = [&](float* row, int width, const Weight& norm, const float* angles) {
    for (int64_t i = 0; norm && i < width; i += norm.cols) {
      rms_norm(row + i, norm.floats(), static_cast<int>(norm.cols), hp_.rms_epsilon, row + i);
    }
    for (int i = 0; layer.rotates && i < width; i += dim) rotate(row + i, rope, angles);
  };
  const float* const units = key_units_of(layer, kv);
  const auto finish_row = [&](const Chunk& chunk, int i) {
    const int row = chunk.first_row + i;
    const float* angles = all_angles + static_cast<int64_t>(row) * rope.dims;
    const int position = chunk.position + i;
    finish(q.row(row), q.width, layer.q_norm, angles);
    if (hp_.scales_queries() || layer.query_scale != 1) {
      scale_by(hp_.temperature(position) * layer.query_scale, q.width, q.row(row));
    }
    if (units) to_units(units, q.width / kv_width, dim, q.width, q.row(row));
    if (!layer.wk) return;
    finish(k.row(row), kv_width, layer.k_norm, angles);
    for (int d = 0; units && d < kv_width; ++d) k.row(row)[d] /= units[d];
    for (int h = 0; h < kv.kv_heads; ++h) {
      const float* key = k.row(row) + h * dim;
      float* value = v.row(row) + h * dim;
      if (hp_.value_norm) rms_norm(value, kOnes.data(), dim, hp_.rms_epsilon, value);
      std::byte* to = kv.row(chunk.blocks_of(kv)[position / kBlockTokens], h, position % kBlockTokens);
      if (kv.type == KvType::Bf16) {
        floats_to_bf16(key, dim, reinterpret_cast<Bf16*>(to));
        floats_to_bf16(value, dim, reinterpret_cast<Bf16*>(to) + dim);
      } else {
        write_kv_row(kv.row_layout(), key, value, to);
      }
    }
  };
  for (const Chunk& chunk : batch.chunks) {
#pragma omp parallel for schedule(static) num_threads(threads_) if (chunk.rows > kShortChunk)
    for (int i = 0; i < chunk.rows; ++i) finish_row(chunk, i);
    if (const int first = chunk.first_full(), end = chunk.end_full(); layer.wk && first < end) {
      sketch(kv, chunk.blocks_of(kv).subspan(first, end - first));
    }
  }
}

Rows CpuBackend::before_norm(Rows x, const Weight& norm, const Buffer& to) {
  if (!norm) return x;
  const Rows given{to.as<float>(), x.rows, x.width};
  std::memset(given.data, 0, sizeof(float) * static_cast<size_t>(x.rows) * x.width);
  return given;
}

void CpuBackend::add_normed(Rows given, const Weight& norm, Rows x) {
  if (!norm) return;
#pragma omp parallel for schedule(static) num_threads(threads_) if (x.rows > kShortChunk)
  for (int r = 0; r < x.rows; ++r) {
    rms_norm(given.row(r), norm.floats(), x.width, hp_.rms_epsilon, given.row(r));
    add_to(given.row(r), x.width, x.row(r));
  }
}

void CpuBackend::project(const Layer& layer, Rows out, Rows x) {
  const Rows given = before_norm(x, layer.attn_post_norm);
  const Product product{&layer.wo, &layer.bo, given, true};
  multiply({&product, 1}, out);
  add_normed(given, layer.attn_post_norm, x);
}

void CpuBackend::multiply(std::span<const Product> products, Rows x) {
  constexpr size_t kMost = 4;
  if (products.size() > kMost) fail("cpu backend: {} products at once, at most {}", products.size(), kMost);
  if (short_ > 0) {
    std::array<DotJob, kMost> jobs;
    for (size_t i = 0; i < products.size(); ++i) {
      const Product& product = products[i];
      jobs[i] = {product.weight, product.bias, short_rows(product.y), product.add};
    }
    quantised_.assign(short_rows(x));
    dot_matmul(std::span(jobs).first(products.size()), quantised_, threads_);
  }
  if (short_ < x.rows) {
    std::array<GemmJob, kMost> jobs;
    for (size_t i = 0; i < products.size(); ++i) {
      const Product& product = products[i];
      jobs[i] = {product.weight, product.bias, long_rows(product.y), product.add};
    }
    gemm_.run(std::span(jobs).first(products.size()), to_elements(long_rows(x)), long_chunks_);
  }
}

void CpuBackend::attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
                        const Weight& sink_logits) {
  const LayerOptions options{hp_.window(layer), hp_.product_cap(kv.head_dim), sink_logits.floats()};
  attention_.attend(batch, layer, options, q, kv, selection, out);
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.rows <= kShortChunk) continue;
    prefill_attention(chunk, options, q, kv, hp_.heads / kv.kv_heads, out, gemm_, attention_.requests(), threads_);
  }
  attention_.requests().end();
}

void CpuBackend::gate(const Layer& layer, Rows x, Rows out) {
  const Rows gates{gates_.as<float>(), out.rows, out.width};
  const Product product{&layer.attn_gate, nullptr, gates};
  multiply({&product, 1}, normalise(x, layer.attn_norm));
#pragma omp parallel for schedule(static) num_threads(threads_) if (out.rows > kShortChunk)
  for (int r = 0; r < out.rows; ++r) sigmoid_multiply(gates.row(r), out.width, out.row(r));
}

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  if (threads < 1) fail("threads: {} given, at least 1 is needed", threads);
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace tidal
