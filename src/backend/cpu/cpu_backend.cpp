#include <ggml-cpu.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/delta.h"
#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/experts.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/mlp.h"
#include "backend/cpu/scan_blocks.h"
#include "backend/cpu/vector_ops.h"
#include "core/error.h"
#include "core/read_stream.h"

namespace tidal {
namespace {

/// Activations that short chunks own come first in the batch and take the quantised dots; the rest takes bf16 products.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads)
      : threads_(threads),
        gemm_(threads),
        attention_(threads, gemm_),
        delta_(threads),
        mlp_(threads, gemm_),
        experts_(threads, gemm_) {
    ggml_cpu_init();
    // oneDNN and any region without num_threads follow the same count.
    omp_set_num_threads(threads);
  }

  std::string_view name() const override { return "cpu"; }
  int decode_rows() const override { return kShortChunk; }
  double read_stream() override { return ReadStream(threads_).measure(); }
  int full_below(const Hyperparameters&, std::span<const Role> roles, const Policy&) const override {
    // By plain loops sketches take longer than the keys that they are of.
    return std::count(roles.begin(), roles.end(), Role::Scan) > 0 && !has_fast_scan() ? kAlwaysFull : 0;
  }
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
  void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
              const Weight& sink_logits) override {
    attention_.attend(batch, layer, {hp_.window(layer), sink_logits.floats()}, q, kv, selection, out);
  }
  void gate(const Layer& layer, Rows x, Rows out) override;
  void project(const Layer& layer, Rows out, Rows x) override;
  void delta(const Layer& layer, const Batch& batch, int index, Rows x) override;
  void mlp(const Layer& layer, Rows x) override;
  void experts(const Layer& layer, Rows x) override;
  void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) override;

 private:
  /// The rows of short chunks, and of long ones.
  Rows short_rows(Rows all) const { return {all.data, short_, all.width}; }
  Rows long_rows(Rows all) const { return {all.row(short_), all.rows - short_, all.width}; }
  Rows normalise(Rows x, const Weight& norm);
  MlpInput mlp_input(Rows normed);
  /// Where what is to be normed goes: zeros. x itself without a norm.
  Rows before_norm(Rows x, const Weight& norm);
  /// x += norm of `given`; nothing without a norm.
  void add_normed(Rows given, const Weight& norm, Rows x);
  /// A product of the same rows with a weight: of all of them, long and short ones.
  struct Product {
    const Weight* weight;
    const Weight* bias;
    Rows y;
    bool add = false;
  };
  void multiply(std::span<const Product> products, Rows x);
  const std::byte* to_elements(Rows x);
  void rotate(float* head, const Rope& rope, const float* angles) const;
  /// Cosine and sine of every pair of every row: angles [rows, rope.dims].
  void find_angles(const Rope& rope, const Batch& batch, float* angles) const;

  int threads_;
  Gemm gemm_;
  Attention attention_;
  DeltaRule delta_;
  Mlp mlp_;
  ExpertMlp experts_;
  QuantisedRows quantised_;
  Hyperparameters hp_;
  int short_ = 0;                          // rows of the batch that belong to short chunks
  std::vector<int> chunks_, long_chunks_;  // rows of each chunk, and of each long one
  std::vector<int> wanted_groups_;         // those that want logits, by chunk

  Buffer normed_, given_;  // [rows, width]; given_ only where norms follow
  Buffer gates_;           // [rows, q_width], where attention is gated
  Buffer kv_;              // [rows, 2 * kv_width]: K, then V
  Buffer elements_;        // [rows, widest] in the products' element type
  Buffer factors_;         // [rows], of a shared expert
  Buffer angles_;          // [rows, rope.dims], of the rope and behind it of that of windows
  int max_rows_ = 0;
};

void CpuBackend::reserve(const Hyperparameters& hp, int max_rows, int max_context) {
  const size_t rows = static_cast<size_t>(max_rows);
  const int widest = std::max({hp.width, hp.q_width(), hp.delta.value_width()});
  max_rows_ = max_rows;
  normed_ = allocate_memory(sizeof(float) * rows * hp.width, "activations");
  kv_ = allocate_memory(sizeof(float) * rows * 2 * hp.kv_width(), "activations");
  elements_ = allocate_memory(gemm_.elements().bytes() * rows * widest, "activations");
  if (hp.post_norms) given_ = allocate_memory(sizeof(float) * rows * hp.width, "activations");
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
      sketch_block({kv.head_dim, bits}, kv.tile(block, head), kv.sketch(bits, block, head));
    }
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

void CpuBackend::embed(const Weight& embedding, const Batch& batch, Rows x) {
  for (int r = 0; r < x.rows; ++r) {
    const std::byte* row = embedding.row(batch.tokens[r]);
    if (embedding.type == GGML_TYPE_F32) {
      std::memcpy(x.row(r), row, sizeof(float) * x.width);
    } else {
      ggml_get_type_traits(embedding.type)->to_float(row, x.row(r), x.width);
    }
    if (hp_.embedding_scale != 1) scale_by(hp_.embedding_scale, x.width, x.row(r));
  }
}

Rows CpuBackend::normalise(Rows x, const Weight& norm) {
  if (!norm) return x;
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

MlpInput CpuBackend::mlp_input(Rows normed) {
  const bool longs = short_ < normed.rows;
  return {.normed = normed,
          .short_rows = short_,
          .elements = longs ? to_elements(long_rows(normed)) : nullptr,
          .long_chunks = long_chunks_,
          .activation = hp_.activation};
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
  multiply(products, normed);

  const Rope& rope = layer.window_rope ? hp_.window_rope : hp_.rope;
  const float* const all_angles = angles_.as<float>() + (layer.window_rope ? int64_t{x.rows} * hp_.rope.dims : 0);
  const auto finish = [&](float* row, int width, const Weight& norm, const float* angles) {
    for (int64_t i = 0; norm && i < width; i += norm.cols) {
      rms_norm(row + i, norm.floats(), static_cast<int>(norm.cols), hp_.rms_epsilon, row + i);
    }
    for (int i = 0; layer.rotates && i < width; i += dim) rotate(row + i, rope, angles);
  };
  const auto finish_row = [&](const Chunk& chunk, int i) {
    const int row = chunk.first_row + i;
    const float* angles = all_angles + static_cast<int64_t>(row) * rope.dims;
    finish(q.row(row), q.width, layer.q_norm, angles);
    finish(k.row(row), kv_width, layer.k_norm, angles);
    const int position = chunk.position + i;
    if (hp_.scales_queries()) scale_by(hp_.temperature(position), q.width, q.row(row));
    for (int h = 0; h < kv.kv_heads; ++h) {
      const float* key = k.row(row) + h * dim;
      Bf16* to =
          kv.tile(chunk.blocks_of(kv)[position / kBlockTokens], h) + (position % kBlockTokens) * int64_t{2} * dim;
      floats_to_bf16(key, dim, to);
      floats_to_bf16(v.row(row) + h * dim, dim, to + dim);
    }
  };
  for (const Chunk& chunk : batch.chunks) {
#pragma omp parallel for schedule(static) num_threads(threads_) if (chunk.rows > kShortChunk)
    for (int i = 0; i < chunk.rows; ++i) finish_row(chunk, i);
    if (const int first = chunk.first_full(), end = chunk.end_full(); first < end) {
      sketch(kv, chunk.blocks_of(kv).subspan(first, end - first));
    }
  }
}

Rows CpuBackend::before_norm(Rows x, const Weight& norm) {
  if (!norm) return x;
  const Rows given{given_.as<float>(), x.rows, x.width};
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

void CpuBackend::gate(const Layer& layer, Rows x, Rows out) {
  const Rows gates{gates_.as<float>(), out.rows, out.width};
  const Product product{&layer.attn_gate, nullptr, gates};
  multiply({&product, 1}, normalise(x, layer.attn_norm));
#pragma omp parallel for schedule(static) num_threads(threads_) if (out.rows > kShortChunk)
  for (int r = 0; r < out.rows; ++r) sigmoid_multiply(gates.row(r), out.width, out.row(r));
}

void CpuBackend::delta(const Layer& layer, const Batch& batch, int index, Rows x) {
  const DeltaWeights& weights = layer.delta;
  const DeltaRule::Inputs to = delta_.inputs(x.rows);
  const Rows normed = normalise(x, layer.attn_norm);
  const Product products[] = {{&weights.mixed, nullptr, to.mixed}, {&weights.gate, nullptr, to.gates}};
  multiply(products, normed);
  // Few columns: dequantising them for a product would take longer than the product.
  quantised_.assign(normed);
  const DotJob jobs[] = {{.weight = &weights.beta, .y = to.beta}, {.weight = &weights.alpha, .y = to.alpha}};
  dot_matmul(jobs, quantised_, threads_);
  const Product product{&weights.out, nullptr, x, true};
  multiply({&product, 1}, delta_.run(hp_, weights, batch, index));
}

void CpuBackend::mlp(const Layer& layer, Rows x) {
  const Rows given = before_norm(x, layer.ffn_post_norm);
  mlp_.add({&layer.gate, &layer.up, &layer.down, &layer.b_gate, &layer.b_up, &layer.b_down},
           mlp_input(normalise(x, layer.ffn_norm)), given);
  add_normed(given, layer.ffn_post_norm, x);
}

void CpuBackend::experts(const Layer& layer, Rows x) {
  const Rows normed = normalise(x, layer.ffn_norm);
  if (layer.shared_down) {
    MlpInput input = mlp_input(normed);
    if (layer.shared_switch) {
      auto* const factors = factors_.as<float>();
      quantised_.assign(normed);
      const DotJob job{.weight = &layer.shared_switch, .y = {factors, x.rows, 1}};
      dot_matmul({&job, 1}, quantised_, threads_);
      for (int r = 0; r < x.rows; ++r) factors[r] = 1.0f / (1.0f + std::exp(-factors[r]));
      input.factors = factors;
    }
    mlp_.add({&layer.shared_gate, &layer.shared_up, &layer.shared_down}, input, x);
  }
  experts_.add(layer, chunks_, normed, x);
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
