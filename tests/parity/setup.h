// What the parity tests share: a batch over shuffled, partly shared blocks, weights of any type, and a backend with its
// memory, so that one test body runs on every backend.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "support/backends.h"
#include "support/random.h"

namespace tidal::parity {

using test::Random;

/// Backends that are held against the reference. A new one joins here.
inline const std::vector<std::string> kBackends = {"cpu", "cuda"};
/// The same and the reference itself, for what must hold on any.
inline const std::vector<std::string> kAllBackends = {"reference", "cpu", "cuda"};

/// What the processor dequantises by code of its own.
inline const std::vector<ggml_type> kQuantisedTypes = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                                       GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K};
/// What stays quantised on the device.
inline const std::vector<ggml_type> kKeptTypes = {GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                                  GGML_TYPE_Q8_0,   GGML_TYPE_Q4_K,   GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,
                                                  GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4};

/// Heads and sizes for the attention operations; the rest of the shape follows.
Hyperparameters attention_shape(int group, int kv_heads, int head_dim);

/// One chunk of a batch, before it has blocks.
struct ChunkShape {
  int position = 0;
  int rows = 1;
  bool sparse = false;
};

/// One sparse row at the end of each of these contexts.
std::vector<ChunkShape> decode_chunks(const std::vector<int>& contexts);

/// A batch over blocks in random order. Chunks share the blocks that are full before either begins with the one before,
/// where `share` says so.
class HostBatch {
 public:
  HostBatch(std::vector<ChunkShape> chunks, int vocab, Random& random, bool share = true);

  const Batch& operator*() const { return batch_; }
  const Batch* operator->() const { return &batch_; }
  /// Whether a chunk was asked to be sparse; RoleBatch makes it so.
  bool sparse(const Chunk& chunk) const { return sparse_[&chunk - chunks_.data()]; }
  int blocks() const { return blocks_; }
  int max_context() const;

 private:
  std::vector<Token> tokens_;
  std::vector<int32_t> positions_, logit_rows_;
  std::vector<std::vector<BlockId>> tables_;
  std::vector<Chunk> chunks_;
  std::vector<bool> sparse_;
  Batch batch_;
  int blocks_ = 0;
};

/// The same batch with one role for all its sparse chunks, in the only layer that there is.
class RoleBatch {
 public:
  RoleBatch(const HostBatch& batch, Role role, const Policy& policy = {});
  RoleBatch(const RoleBatch&) = delete;
  RoleBatch& operator=(const RoleBatch&) = delete;
  const Batch& operator*() const { return batch_; }

 private:
  Role role_;
  std::vector<Chunk> chunks_;
  Batch batch_;
};

/// What the cache of one layer is made of, in host memory: rows [K | V] in the order of KvLayer.
struct HostCache {
  HostCache(const Hyperparameters& hp, int blocks, KvType type = KvType::Bf16);
  KvRowLayout layout() const { return {type, head_dim}; }
  /// The cache itself, as KvLayer says.
  std::vector<std::byte> bytes() const;
  /// The key and the value of a position of a chunk, as the cache has them.
  void read(const Chunk& chunk, int kv_head, int position, float* key, float* value) const;
  /// The row [K | V] of a position of a chunk.
  const Bf16* row(const Chunk& chunk, int kv_head, int position) const;
  Bf16* row(const Chunk& chunk, int kv_head, int position);

  int kv_heads, head_dim;
  KvType type;
  std::vector<Bf16> values;
};

/// Random numbers everywhere.
HostCache random_cache(const Hyperparameters& hp, int blocks, Random& random, KvType type = KvType::Bf16);

/// A weight in host memory together with the values it stands for.
struct HostWeight {
  Weight view;
  std::vector<std::byte> bytes;
  std::vector<float> values;  ///< [rows, cols], dequantised
};

/// Random weights of about unit gain, quantised to `type`.
HostWeight random_weight(ggml_type type, int rows, int cols, Random& random);
/// A float32 vector, normal around `centre`.
HostWeight random_vector(int count, float centre, float deviation, Random& random);

/// A backend with memory of its own; what it hands out lives as long as it does.
class Device {
 public:
  explicit Device(const std::string& name, int threads = 2, bool quantised = true)
      : backend_(make_backend(name, threads, quantised)) {}

  Backend& operator*() { return *backend_; }
  Backend* operator->() { return backend_.get(); }
  /// Makes room for the batch and begins it.
  void begin(const Hyperparameters& hp, const HostBatch& batch);

  Rows rows(const std::vector<float>& host, int width);
  Rows rows(int count, int width) { return rows(std::vector<float>(static_cast<size_t>(count) * width), width); }
  std::vector<float> read(Rows rows);
  KvLayer cache(const HostCache& host);
  /// The same with sketches of so many bits of all blocks, written by the backend.
  KvLayer sketched(const HostCache& host, int bits);
  /// And with those of the values.
  KvLayer sketched_values(const HostCache& host, int bits);
  /// The sketches of `blocks` blocks.
  std::vector<std::byte> read_sketches(KvLayer cache, int bits, int blocks);
  HostCache read(KvLayer cache, const HostCache& like);
  Weight weight(const HostWeight& host) { return host.bytes.empty() ? Weight{} : backend_->upload(host.view); }
  /// `positions` [rows, units, budget].
  Selection selection(const Policy& policy, const Hyperparameters& hp, int rows,
                      const std::vector<int32_t>& positions = {});
  /// What is selected: the first `width` positions of every set, [rows, units, width], -1 behind the counted ones.
  std::vector<int32_t> read(const Selection& selection, int rows, int width);

 private:
  std::byte* put(const void* host, size_t bytes);

  std::unique_ptr<Backend> backend_;
  std::vector<Buffer> buffers_;
};

/// Every value within its bound of the reference's; infinities and NaN where the reference has them.
void expect_close(const char* what, const std::vector<float>& got, const std::vector<float>& reference,
                  const std::vector<double>& bounds);

}  // namespace tidal::parity
