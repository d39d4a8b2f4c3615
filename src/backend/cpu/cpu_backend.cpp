#include <ggml-cpu.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/rounded_rows.h"
#include "backend/cpu/vector_ops.h"
#include "core/error.h"
#include "core/read_stream.h"

namespace tidal {
namespace {

/// Activations that short chunks own come first in the batch and take the quantised dots; the rest takes bf16 products.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : threads_(threads), gemm_(threads), attention_(threads, gemm_) {
    ggml_cpu_init();
    // oneDNN and any region without num_threads follow the same count.
    omp_set_num_threads(threads);
  }

  std::string_view name() const override { return "cpu"; }
  int decode_rows() const override { return kShortChunk; }
  double read_stream() override { return ReadStream(threads_).measure(); }
  Buffer allocate(size_t bytes, std::string_view what) override { return allocate_memory(bytes, what); }
  Weight upload(const Weight& host) override { return host; }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void write(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void read(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  bool map(std::byte* to, int descriptor, int64_t offset, size_t bytes) override {
    return map_memory(to, descriptor, offset, bytes);
  }

  void sketch(KvLayer kv, std::span<const BlockId> blocks) override;
  void reserve(const Hyperparameters& hp, int max_rows, int max_context) override;
  void begin(const Hyperparameters& hp, const Batch& batch) override;
  void embed(const Weight& embedding, const Batch& batch, Rows x) override;
  void qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) override;
  void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out) override {
    attention_.attend(batch, layer, q, kv, selection, out);
  }
  void project(const Layer& layer, Rows out, Rows x) override;
  void mlp(const Layer& layer, Rows x) override;
  void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) override;

 private:
  /// The rows of short chunks, and of long ones.
  Rows short_rows(Rows all) const { return {all.data, short_, all.width}; }
  Rows long_rows(Rows all) const { return {all.row(short_), all.rows - short_, all.width}; }
  Rows normalise(Rows x, const Weight& norm);
  const std::byte* to_elements(Rows x);
  void rotate(float* head, const float* angles) const;

  int threads_;
  Gemm gemm_;
  Attention attention_;
  QuantisedRows quantised_;
  Hyperparameters hp_;
  int short_ = 0;                                 // rows of the batch that belong to short chunks
  std::vector<int> long_chunks_, wanted_groups_;  // rows of each long chunk; those that want logits, by chunk

  Buffer normed_;           // [rows, width]
  Buffer kv_;               // [rows, 2 * kv_width]: K, then V
  Buffer hidden_;           // short rows: gate and up, [rows, ffn] each
  Buffer elements_;         // [rows, widest] in the products' element type
  Buffer hidden_elements_;  // [rows, ffn], likewise
  Buffer angles_;           // [rows, rope.dims]: cosine and sine of every pair
  int max_rows_ = 0;
};

void CpuBackend::reserve(const Hyperparameters& hp, int max_rows, int max_context) {
  const size_t rows = static_cast<size_t>(max_rows);
  const int widest = std::max(hp.width, hp.q_width());
  max_rows_ = max_rows;
  normed_ = allocate_memory(sizeof(float) * rows * hp.width, "activations");
  kv_ = allocate_memory(sizeof(float) * rows * 2 * hp.kv_width(), "activations");
  hidden_ = allocate_memory(sizeof(float) * rows * 2 * hp.ffn, "activations");
  elements_ = allocate_memory(gemm_.elements().bytes() * rows * widest, "activations");
  hidden_elements_ = allocate_memory(gemm_.elements().bytes() * rows * hp.ffn, "activations");
  angles_ = allocate_memory(sizeof(float) * rows * hp.rope.dims, "rotary angles");
  quantised_.reserve(max_rows, std::max(widest, hp.ffn));
  gemm_.reserve(max_rows, std::max(widest, hp.ffn));
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
      sketch_block({kv.head_dim, bits}, kv.tile(block, head), kv.sketch(bits, block, head));
    }
  }
}

void CpuBackend::begin(const Hyperparameters& hp, const Batch& batch) {
  hp_ = hp;
  if (batch.rows() > max_rows_) fail("cpu backend: {} rows in a pass, reserved for {}", batch.rows(), max_rows_);
  short_ = 0;
  long_chunks_.clear();
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.rows <= kShortChunk) {
      short_ = chunk.first_row + chunk.rows;
    } else {
      long_chunks_.push_back(chunk.rows);
    }
  }
  // Angles in double: at position 100,000 a float would be off by a hundredth of a radian.
  const int pairs = hp.rope.dims / 2;
#pragma omp parallel for schedule(static) num_threads(threads_) if (batch.rows() > kShortChunk)
  for (int r = 0; r < batch.rows(); ++r) {
    float* angles = angles_.as<float>() + static_cast<int64_t>(r) * hp.rope.dims;
    for (int i = 0; i < pairs; ++i) {
      const double angle = batch.positions[r] * hp.rope.frequencies[i];
      angles[2 * i] = static_cast<float>(std::cos(angle)) * hp.rope.magnitude;
      angles[2 * i + 1] = static_cast<float>(std::sin(angle)) * hp.rope.magnitude;
    }
  }
}

void CpuBackend::embed(const Weight& embedding, const Batch& batch, Rows x) {
  for (int r = 0; r < x.rows; ++r) {
    const std::byte* row = embedding.row(batch.tokens[r]);
    if (embedding.type == GGML_TYPE_F32) {
      std::memcpy(x.row(r), row, sizeof(float) * x.width);
    } else {
      ggml_get_type_traits(embedding.type)->to_float(row, x.row(r), x.width);
    }
  }
}

Rows CpuBackend::normalise(Rows x, const Weight& norm) {
  const Rows normed{normed_.as<float>(), x.rows, x.width};
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

void CpuBackend::rotate(float* head, const float* angles) const {
  const int pairs = hp_.rope.dims / 2;
  const bool halves = hp_.rope.pairing == Rope::Pairing::Halves;
  for (int i = 0; i < pairs; ++i) {
    float& a = head[halves ? i : 2 * i];
    float& b = head[halves ? i + pairs : 2 * i + 1];
    const float x = a, y = b;
    a = x * angles[2 * i] - y * angles[2 * i + 1];
    b = x * angles[2 * i + 1] + y * angles[2 * i];
  }
}

void CpuBackend::qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) {
  const int kv_width = hp_.kv_width();
  const Rows normed = normalise(x, layer.attn_norm);
  const Rows k{kv_.as<float>(), x.rows, kv_width};
  const Rows v{kv_.as<float>() + static_cast<int64_t>(x.rows) * kv_width, x.rows, kv_width};
  if (short_ > 0) {
    quantised_.assign(short_rows(normed));
    const DotJob jobs[] = {{&layer.wq, &layer.bq, short_rows(q), false},
                           {&layer.wk, &layer.bk, short_rows(k), false},
                           {&layer.wv, &layer.bv, short_rows(v), false}};
    dot_matmul(jobs, quantised_, threads_);
  }
  if (short_ < x.rows) {
    const GemmJob jobs[] = {{&layer.wq, &layer.bq, long_rows(q), false},
                            {&layer.wk, &layer.bk, long_rows(k), false},
                            {&layer.wv, &layer.bv, long_rows(v), false}};
    gemm_.run(jobs, to_elements(long_rows(normed)), long_chunks_);
  }

  const int dim = hp_.head_dim;
  const auto finish = [&](float* head, const Weight& norm, const float* angles) {
    if (norm) rms_norm(head, norm.floats(), dim, hp_.rms_epsilon, head);
    rotate(head, angles);
  };
  const auto finish_row = [&](const Chunk& chunk, int i) {
    const int row = chunk.first_row + i;
    const float* angles = angles_.as<float>() + static_cast<int64_t>(row) * hp_.rope.dims;
    for (int h = 0; h < hp_.heads; ++h) finish(q.row(row) + h * dim, layer.q_norm, angles);
    const int position = chunk.position + i;
    for (int h = 0; h < hp_.kv_heads; ++h) {
      float* key = k.row(row) + h * dim;
      finish(key, layer.k_norm, angles);
      Bf16* to = kv.tile(chunk.blocks[position / kBlockTokens], h) + (position % kBlockTokens) * int64_t{2} * dim;
      floats_to_bf16(key, dim, to);
      floats_to_bf16(v.row(row) + h * dim, dim, to + dim);
    }
  };
  for (const Chunk& chunk : batch.chunks) {
#pragma omp parallel for schedule(static) num_threads(threads_) if (chunk.rows > kShortChunk)
    for (int i = 0; i < chunk.rows; ++i) finish_row(chunk, i);
    if (const int first = chunk.first_full(), end = chunk.end_full(); first < end) {
      sketch(kv, chunk.blocks.subspan(first, end - first));
    }
  }
}

void CpuBackend::project(const Layer& layer, Rows out, Rows x) {
  if (short_ > 0) {
    quantised_.assign(short_rows(out));
    const DotJob job{&layer.wo, &layer.bo, short_rows(x), true};
    dot_matmul({&job, 1}, quantised_, threads_);
  }
  if (short_ < x.rows) {
    const GemmJob job{&layer.wo, &layer.bo, long_rows(x), true};
    gemm_.run({&job, 1}, to_elements(long_rows(out)), long_chunks_);
  }
}

void CpuBackend::mlp(const Layer& layer, Rows x) {
  const int ffn = hp_.ffn;
  const Rows normed = normalise(x, layer.ffn_norm);
  if (short_ > 0) {
    const Rows gate{hidden_.as<float>(), short_, ffn};
    const Rows up{gate.row(short_), short_, ffn};
    quantised_.assign(short_rows(normed));
    const DotJob jobs[] = {{&layer.gate, &layer.b_gate, gate, false}, {&layer.up, &layer.b_up, up, false}};
    dot_matmul(jobs, quantised_, threads_);
    for (int r = 0; r < short_; ++r) silu_multiply(gate.row(r), up.row(r), ffn, gate.row(r));
    quantised_.assign(gate);
    const DotJob job{&layer.down, &layer.b_down, short_rows(x), true};
    dot_matmul({&job, 1}, quantised_, threads_);
  }
  if (short_ < x.rows) {
    const GemmElements& elements = gemm_.elements();
    const Rows longs = long_rows(x);
    std::byte* hidden = hidden_elements_.as<std::byte>();
    gemm_.run_pair(layer.gate, layer.up, to_elements(long_rows(normed)), long_chunks_,
                   [&](int first, int count, float* gate, float* up) {
                     for (int r = 0; r < longs.rows; ++r, gate += count, up += count) {
                       if (layer.b_gate) add_to(layer.b_gate.floats() + first, count, gate);
                       if (layer.b_up) add_to(layer.b_up.floats() + first, count, up);
                       std::byte* to = hidden + elements.bytes() * (static_cast<size_t>(r) * ffn + first);
                       if (elements.bf16() && has_rounded_rows()) {
                         silu_multiply_to_bf16(gate, up, count, reinterpret_cast<Bf16*>(to));
                       } else {
                         silu_multiply(gate, up, count, gate);
                         elements.store(gate, count, to);
                       }
                     }
                   });
    const GemmJob job{&layer.down, &layer.b_down, longs, true};
    gemm_.run({&job, 1}, hidden, long_chunks_);
  }
}

void CpuBackend::logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) {
  const int vocab = static_cast<int>(output.rows);
  const Rows wanted{normed_.as<float>(), static_cast<int>(batch.logit_rows.size()), x.width};
  for (int i = 0; i < wanted.rows; ++i) {
    rms_norm(x.row(batch.logit_rows[i]), norm.floats(), x.width, hp_.rms_epsilon, wanted.row(i));
  }
  const auto multiply = [&](int begin, int end, bool dots) {
    const Rows from{wanted.row(begin), end - begin, wanted.width};
    const Rows to{logits.data() + static_cast<int64_t>(begin) * vocab, from.rows, vocab};
    if (from.rows == 0) return;
    if (!dots) {
      const GemmJob job{&output, nullptr, to, false};
      return gemm_.run({&job, 1}, to_elements(from), wanted_groups_);
    }
    quantised_.assign(from);
    const DotJob job{&output, nullptr, to, false};
    dot_matmul({&job, 1}, quantised_, threads_);
  };
  // Chunks that want few rows take the dots, even long ones, whose weights would be dequantised for nothing. Every
  // chunk decides for itself, so that its logits do not depend on its company; neighbours that agree go together.
  int begin = 0, end = 0;
  bool dots = true;
  wanted_groups_.clear();
  for (const Chunk& chunk : batch.chunks) {
    int next = end;
    while (next < wanted.rows && batch.logit_rows[next] < chunk.first_row + chunk.rows) ++next;
    const bool few = next - end <= kShortChunk;
    if (next > end && few != dots) {
      multiply(begin, end, dots);
      wanted_groups_.clear();
      begin = end;
      dots = few;
    }
    if (next > end) wanted_groups_.push_back(next - end);
    end = next;
  }
  multiply(begin, end, dots);
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  if (threads < 1) fail("threads: {} given, at least 1 is needed", threads);
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace tidal
