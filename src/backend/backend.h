// The interface between the forward pass and the machine it runs on.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/batch.h"
#include "backend/hyperparameters.h"
#include "backend/kv_memory.h"
#include "backend/likely_tokens.h"
#include "backend/row_cache_room.h"
#include "backend/weights.h"
#include "core/buffer.h"

namespace tidal {

/// Of Backend::full_below(): more positions than any context has.
inline constexpr int kAlwaysFull = 1 << 24;

/// About a dozen coarse operations, so that a backend may fuse inside each as it likes. Every pointer in Rows, KvLayer,
/// Selection, Weight and Layer is the backend's own memory. One forward pass at a time: begin(), the operations in the
/// order of model/forward.cpp, logits() or likely() last. Rows of different chunks never influence each other.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  /// The name of the device that it runs on; empty: on the host's processor.
  virtual std::string device() const { return ""; }
  /// Chunks of up to this many rows are computed by the arithmetic of a decode step: each row gets, bit for bit, what
  /// it would get alone, by full attention. >= 1.
  virtual int decode_rows() const = 0;
  /// Rows of a chunk with which prefill is fast.
  virtual int prefill_rows() const { return 512; }
  /// The rate at which memory larger than all caches is read, measured: the limit of decoding. GB/s.
  virtual double read_stream() = 0;
  /// Positions from which a decode step of one sequence whose layers have these roles takes no longer than one by full
  /// attention, by what was measured on such a machine; 0: from the start, kAlwaysFull: never. `policy` is a plan's,
  /// shares included; `type` is the cache's.
  virtual int full_below(const Hyperparameters&, std::span<const Role> /*roles*/, const Policy&,
                         KvType /*type*/) const {
    return 0;
  }

  // --- memory -------------------------------------------------------------------------------------------------------
  /// Zero-filled memory. `what` names it in the Error thrown when there is not enough ("KV cache", ...).
  virtual Buffer allocate(size_t bytes, std::string_view what) = 0;
  /// Why it cannot keep some slots of a KV cache in host memory, in a few words; "" where it can. On the host itself it
  /// can, and nothing is gained.
  virtual std::string host_kv_problem() const { return ""; }
  /// K and V of layers, some of whose slots are in host memory. On the host itself all are alike, and there they can be
  /// in a file. Throws Error with the size asked for when there is not enough memory. The backend must outlive it.
  virtual std::unique_ptr<KvMemory> allocate_kv(const KvRoom& room, std::string_view what);
  /// Makes a weight in host memory usable by this backend; the host memory must outlive the backend's use of it.
  virtual Weight upload(const Weight& host) = 0;
  /// The same of a matrix whose products decide something, a router's, and of vectors one behind the other: where
  /// upload() would round them, float32.
  virtual Weight upload_exact(const Weight& host) { return upload(host); }
  /// The type that upload() makes of a matrix of `type`.
  virtual ggml_type matrix_type(ggml_type type) const { return type; }
  /// The bytes that it takes for a matrix of `type`.
  virtual int64_t matrix_bytes(ggml_type type, int64_t rows, int64_t cols) const {
    return static_cast<int64_t>(ggml_row_size(type, cols)) * rows;
  }
  /// What of such a model it cannot compute, in a few words; "" where it can.
  virtual std::string unsupported(const Hyperparameters&) const { return ""; }
  /// Whether its caches may be of such a type, with heads of so many elements.
  virtual bool keeps(KvType type, int /*head_dim*/) const { return type == KvType::Bf16; }
  /// Whether Scan layers can estimate what they do not select (Completion).
  virtual bool completes() const { return false; }
  /// Bytes that allocate() and upload() can still give; unlimited where that is the system's business.
  virtual int64_t free_bytes() const { return std::numeric_limits<int64_t>::max(); }
  /// Bytes of them that reserve() takes at most.
  virtual int64_t reserved_bytes(const Hyperparameters&, int /*max_rows*/, int /*max_context*/) const { return 0; }
  /// Bytes that it takes beside, with the first pass of a plan with a Completion; `policy` in numbers at `max_context`.
  virtual int64_t completion_bytes(const Hyperparameters&, const Policy& /*policy*/, int /*max_rows*/,
                                   int /*max_context*/) const {
    return 0;
  }
  /// Copies between two runs of the backend's memory that do not overlap.
  virtual void copy(std::byte* to, const std::byte* from, size_t bytes) = 0;
  /// Host memory to the backend's, and back.
  virtual void write(std::byte* to, const std::byte* from_host, size_t bytes) = 0;
  virtual void read(std::byte* to_host, const std::byte* from, size_t bytes) = 0;
  /// Has [to, to + bytes) of its memory hold what is in the file from `offset` on, read when it is first used, where it
  /// can; false, and it holds anything, where not. What is written there later does not get into the file.
  virtual bool map(std::byte* /*to*/, int /*descriptor*/, int64_t /*offset*/, size_t /*bytes*/) { return false; }
  /// Writes the sketches that `kv` keeps, of keys and of values, of whole blocks, outside of a pass. `blocks` are
  /// slots.
  virtual void sketch(KvLayer kv, std::span<const BlockId> blocks) = 0;
  /// Makes room for passes of up to `max_rows` rows over up to `max_context` positions, so that later passes allocate
  /// nothing.
  virtual void reserve(const Hyperparameters& hp, int max_rows, int max_context) = 0;
  /// Makes room on the device for rows of K and V that lie in host memory and are read again and again, beside what was
  /// asked for since the last reserve() for the same memory. What is read does not depend on it. Throws Error when the
  /// memory is not there: then there is no such room.
  virtual void cache_rows(const RowCacheRoom& /*room*/) {}
  /// Bytes that it takes.
  virtual int64_t row_cache_bytes(const RowCacheRoom& /*room*/) const { return 0; }

  // --- one forward pass ---------------------------------------------------------------------------------------------
  /// Starts a pass; `batch` must live until logits() or likely() returned.
  virtual void begin(const Hyperparameters& hp, const Batch& batch) = 0;
  /// x [rows, width] = rows of the embedding matrix, times hp.embedding_scale.
  virtual void embed(const Weight& embedding, const Batch& batch, Rows x) = 0;
  /// inputs [rows, layers * n], n = hp.layer_input: what every layer gets beside x, the embedding of a row's token t:
  ///   (norm(P x / sqrt(width)) + sqrt(n) E[t]) / sqrt(2), that norm layer by layer
  /// Only of models that have such.
  virtual void layer_inputs(const LayerInputs& weights, const Batch& batch, Rows x, Rows inputs);
  /// q [rows, q_width] and the appended K, V, of as many and as large heads as `kv` has: RMS norm of x, projections,
  /// bias, q/k norm, RoPE where the layer rotates, norm of V where hp.value_norm says so; K and V go to the cache at
  /// the rows' positions, unless the layer has no wk: then it reads another one's. Keys and queries are in the units
  /// that key_units_of() says. Blocks that this fills (Chunk::first_full()) get the sketches that `kv` keeps.
  virtual void qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) = 0;
  /// out [rows, q_width], likewise: causal attention of every chunk by its role in `layer` (TidalDecode, section 3).
  /// Scores are q.k / sqrt(head_dim), capped where hp.score_cap says so (what is selected: weighs()).
  ///   Dense: all positions that the layer sees (Hyperparameters::window()); other roles are for layers that see all.
  ///   Select: the same, and from the same scores the selection: sinks and recent first, the rest by pooled score, ties
  ///   to the lower position, NaN below everything.
  ///   Sparse: the selected positions only.
  ///   Scan: the scores of full blocks come from their sketches, those of the block still filling from its keys; from
  ///   them a selection by scan_policy(), and attention to the selected positions only; or, with a Completion, to all:
  ///   of the positions in tier_policy()'s `ranked` the scores are their keys', and the selection is made of them by
  ///   these; values are those of the selected rows, as value_sketch_row() has them for the other positions in
  ///   `estimated`, and the means of their blocks for what is left.
  /// `sink_logits`, where a layer has them: each head's softmax has one more term exp(sink_logits[head]), whose value
  /// is zeros. What is selected does not depend on it.
  virtual void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
                      const Weight& sink_logits = {}) = 0;
  /// out *= sigmoid(Wg norm(x)), where attention is gated.
  virtual void gate(const Layer& layer, Rows x, Rows out) = 0;
  /// x += out * Wo (+ bias), after its own norm where the layer has one.
  virtual void project(const Layer& layer, Rows out, Rows x) = 0;
  /// A recurrent layer (DeltaNet), all of it but the MLP; `index`: which one of Chunk::state. Of every row n = norm(x):
  ///   [q, k, v] = silu(convolution of the last `taps` rows of Wm n), channel by channel
  ///   q, k      = q, k / sqrt(|q|^2, |k|^2 + epsilon), head by head
  ///   a, b      = exp(decay * softplus(Wa n + bias)), sigmoid(Wb n), a number a value head
  ///   S         = a S + k (b (v - (a S)^T k))^T
  ///   o         = S^T q / sqrt(head_dim)
  ///   x        += Wo (norm(o) * silu(Wg n)), that norm head by head
  /// Rows of a chunk one after the other, each from the state that the last one has left.
  virtual void delta(const Layer& layer, const Batch& batch, int index, Rows x) = 0;
  /// x += down(hidden(gate(norm x), up(norm x))), likewise; hidden() as Activation says, silu(gate) * up for most.
  virtual void mlp(const Layer& layer, Rows x) = 0;
  /// x += the sum over the chosen experts e of weight[e] * down_e(hidden(gate_e(norm x), up_e(norm x))), as Experts
  /// says; probabilities are softmax(router(norm x)). And, where there is one, + the shared expert, times
  /// sigmoid(switch . norm x) where that has a switch. Where they have norms of their own (Experts::own_norms):
  ///   x += norm(norm(shared(norm x)) + norm(chosen(norm x)))
  /// each time another norm, one more of what the router reads.
  virtual void experts(const Layer& layer, Rows x) = 0;
  /// The end of a layer that has an input of its own, an output scale s, or both:
  ///   x = s (x + norm(Wp hidden(Wg x, the layer's part of `inputs`)))
  virtual void finish(const Layer& layer, int index, Rows inputs, Rows x);
  /// logits [logit_rows, vocab], host memory: final RMS norm and output projection of the rows that asked, capped where
  /// hp.logit_cap says so.
  virtual void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x,
                      std::span<float> logits) = 0;
  /// out [logit_rows, count], host memory: the most likely tokens by the same logits, as select_likely() has them. In
  /// place of logits(), where they need not leave the device. `count` is 1 to min(vocab, kMostLikely).
  virtual void likely(const Weight& norm, const Weight& output, const Batch& batch, Rows x, int count,
                      std::span<LikelyToken> out);

 private:
  std::vector<float> logits_;  // of likely() where logits are on the host
};

/// The scalar float32 backend that the others are tested against.
std::unique_ptr<Backend> make_reference_backend();
/// The fast CPU backend. `threads` >= 1.
std::unique_ptr<Backend> make_cpu_backend(int threads);
/// Whether there is a device that "cuda" would run on, in a build with CUDA.
bool has_cuda_device();
/// What full_below() of the backend "cuda" says, with or without a device; nullopt in a build without CUDA.
std::optional<int> cuda_full_below(const Hyperparameters& hp, std::span<const Role> roles, const Policy& policy,
                                   KvType type);
/// What the backend "cuda" makes of matrices of a type, with or without a device; nullopt in a build without CUDA.
std::optional<ggml_type> cuda_matrix_type(ggml_type type);
/// By name: "cpu", "cuda", "reference", or "auto" for cuda where it has a device, else cpu. Throws Error for any other,
/// and for cuda without a device. `threads` is of account for cpu alone; `quantised` for cuda: whether weights stay
/// quantised there where they can, or all become bf16.
std::unique_ptr<Backend> make_backend(std::string_view name, int threads, bool quantised = true);

}  // namespace tidal
