// The CPU backend: its memory, and the operations of a pass.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/delta.h"
#include "backend/cpu/experts.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/mlp.h"
#include "backend/cpu/scan_blocks.h"
#include "core/read_stream.h"

namespace tidal {

/// Activations that short chunks own come first in the batch and take the quantised dots; the rest takes bf16 products.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads);

  std::string_view name() const override { return "cpu"; }
  int decode_rows() const override { return kShortChunk; }
  double read_stream() override { return ReadStream(threads_).measure(); }
  int full_below(const Hyperparameters&, std::span<const Role> roles, const Policy&, KvType) const override {
    // By plain loops sketches take longer than the keys that they are of.
    return std::count(roles.begin(), roles.end(), Role::Scan) > 0 && !has_fast_scan() ? kAlwaysFull : 0;
  }
  Buffer allocate(size_t bytes, std::string_view what) override { return allocate_memory(bytes, what); }
  Weight upload(const Weight& host) override { return host; }
  bool keeps(KvType, int) const override { return true; }
  bool completes() const override { return true; }
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
  void layer_inputs(const LayerInputs& weights, const Batch& batch, Rows x, Rows inputs) override;
  void qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) override;
  void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
              const Weight& sink_logits) override;
  void gate(const Layer& layer, Rows x, Rows out) override;
  void project(const Layer& layer, Rows out, Rows x) override;
  void delta(const Layer& layer, const Batch& batch, int index, Rows x) override;
  void mlp(const Layer& layer, Rows x) override;
  void experts(const Layer& layer, Rows x) override;
  void finish(const Layer& layer, int index, Rows inputs, Rows x) override;
  void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) override;

 private:
  /// The rows of short chunks, and of long ones.
  Rows short_rows(Rows all) const { return {all.data, short_, all.width}; }
  Rows long_rows(Rows all) const { return {all.row(short_), all.rows - short_, all.width}; }
  Rows normalise(Rows x, const Weight& norm) { return normalise(x, norm, normed_); }
  Rows normalise(Rows x, const Weight& norm, const Buffer& to);
  MlpInput mlp_input(Rows normed);
  /// Where what is to be normed goes: zeros. x itself without a norm.
  Rows before_norm(Rows x, const Weight& norm) { return before_norm(x, norm, given_); }
  static Rows before_norm(Rows x, const Weight& norm, const Buffer& to);
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
  Buffer routed_, part_;   // [rows, width], where experts have norms of their own
  Buffer gates_;           // [rows, q_width], where attention is gated
  Buffer hidden_;          // [rows, layer_input], where layers have inputs of their own
  Buffer embedded_;        // [threads, layers * layer_input], likewise
  Buffer kv_;              // [rows, 2 * kv_width]: K, then V
  Buffer elements_;        // [rows, widest] in the products' element type
  Buffer factors_;         // [rows], of a shared expert
  Buffer angles_;          // [rows, rope.dims], of the rope and behind it of that of windows
  int max_rows_ = 0;
};

}  // namespace tidal
