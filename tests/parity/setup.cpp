#include "parity/setup.h"

#include <cmath>
#include <map>
#include <numeric>

#include "model/rope.h"

namespace tidal::parity {

Hyperparameters attention_shape(int group, int kv_heads, int head_dim) {
  Hyperparameters hp;
  hp.architecture = "llama";
  hp.layers = 1;
  hp.heads = group * kv_heads;
  hp.kv_heads = kv_heads;
  hp.head_dim = head_dim;
  hp.width = hp.q_width();
  hp.ffn = 64;
  hp.vocab = 100;
  hp.rope = make_rope(Rope::Pairing::Adjacent, head_dim, 10000, {}, {});
  return hp;
}

std::vector<ChunkShape> decode_chunks(const std::vector<int>& contexts) {
  std::vector<ChunkShape> result;
  for (const int context : contexts) result.push_back({context - 1, 1, true});
  return result;
}

HostBatch::HostBatch(std::vector<ChunkShape> chunks, int vocab, Random& random, bool share) {
  std::stable_sort(chunks.begin(), chunks.end(), [](const auto& a, const auto& b) { return a.rows < b.rows; });
  std::vector<std::pair<size_t, size_t>> slots;  // of tables_, those that get a block of their own
  for (const ChunkShape& shape : chunks) {
    tables_.emplace_back(blocks_for(shape.position + shape.rows), -1);
    const size_t c = tables_.size() - 1;
    size_t shared = 0;
    if (share && c > 0) shared = std::min(shape.position, chunks[c - 1].position) / kBlockTokens;
    for (size_t b = shared; b < tables_[c].size(); ++b) slots.emplace_back(c, b);
  }
  blocks_ = static_cast<int>(slots.size());
  const std::vector<int32_t> ids = random.permutation(blocks_);
  for (size_t i = 0; i < slots.size(); ++i) tables_[slots[i].first][slots[i].second] = ids[i];
  for (size_t c = 1; c < tables_.size(); ++c) {
    for (size_t b = 0; b < tables_[c].size() && tables_[c][b] < 0; ++b) tables_[c][b] = tables_[c - 1][b];
  }
  for (size_t c = 0; c < chunks.size(); ++c) {
    Chunk chunk;
    chunk.first_row = static_cast<int>(tokens_.size());
    chunk.rows = chunks[c].rows;
    chunk.position = chunks[c].position;
    chunk.cached = chunk.context();
    sparse_.push_back(chunks[c].sparse);
    chunk.blocks = tables_[c];
    for (int i = 0; i < chunk.rows; ++i) {
      tokens_.push_back(random.integer(0, vocab - 1));
      positions_.push_back(chunk.position + i);
      // All rows of every second chunk, only the last of the others.
      if (c % 2 == 0 || i + 1 == chunk.rows) logit_rows_.push_back(chunk.first_row + i);
    }
    chunks_.push_back(chunk);
  }
  batch_ = {tokens_, positions_, chunks_, logit_rows_};
}

int HostBatch::max_context() const {
  int longest = 0;
  for (const Chunk& chunk : chunks_) longest = std::max(longest, chunk.context());
  return longest;
}

RoleBatch::RoleBatch(const HostBatch& batch, Role role, const Policy& policy)
    : role_(role), chunks_(batch->chunks.begin(), batch->chunks.end()), batch_(*batch) {
  for (size_t c = 0; c < chunks_.size(); ++c) {
    if (role == Role::Dense || !batch.sparse(batch->chunks[c])) continue;
    chunks_[c].roles = {&role_, 1};
    chunks_[c].policy = policy;
  }
  batch_.chunks = chunks_;
}

HostCache::HostCache(const Hyperparameters& hp, int blocks, KvType type)
    : kv_heads(hp.kv_heads),
      head_dim(hp.head_dim),
      type(type),
      values(static_cast<size_t>(blocks) * hp.kv_heads * 2 * kBlockTokens * hp.head_dim) {}

namespace {

/// A row of the cache from its elements.
void write_row(const KvRowLayout& layout, const Bf16* elements, std::byte* to) {
  std::vector<float> floats(size_t{2} * layout.head_dim);
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = to_float(elements[i]);
  write_kv_row(layout, floats.data(), floats.data() + layout.head_dim, to);
}

}  // namespace

std::vector<std::byte> HostCache::bytes() const {
  const size_t row = size_t{2} * head_dim, count = values.size() / row, size = static_cast<size_t>(layout().bytes());
  std::vector<std::byte> bytes(count * size);
  for (size_t r = 0; r < count; ++r) write_row(layout(), values.data() + r * row, bytes.data() + r * size);
  return bytes;
}

void HostCache::read(const Chunk& chunk, int kv_head, int position, float* key, float* value) const {
  std::vector<std::byte> own(static_cast<size_t>(layout().bytes()));
  write_row(layout(), row(chunk, kv_head, position), own.data());
  read_kv_row(layout(), own.data(), key, value);
}

const Bf16* HostCache::row(const Chunk& chunk, int kv_head, int position) const {
  const size_t tile = static_cast<size_t>(chunk.blocks[position / kBlockTokens]) * kv_heads + kv_head;
  return values.data() + (tile * kBlockTokens + position % kBlockTokens) * 2 * head_dim;
}

Bf16* HostCache::row(const Chunk& chunk, int kv_head, int position) {
  return const_cast<Bf16*>(std::as_const(*this).row(chunk, kv_head, position));
}

HostCache random_cache(const Hyperparameters& hp, int blocks, Random& random, KvType type) {
  HostCache cache(hp, blocks, type);
  for (Bf16& value : cache.values) value = to_bf16(random.uniform(1.0f));
  return cache;
}

HostWeight random_weight(ggml_type type, int rows, int cols, Random& random) {
  HostWeight weight;
  std::vector<float> exact(static_cast<size_t>(rows) * cols);
  for (float& value : exact) value = random.normal(1.0f / std::sqrt(static_cast<float>(cols)));
  weight.bytes.resize(ggml_row_size(type, cols) * rows);
  weight.values.resize(exact.size());
  const std::vector<float> importance(cols, 1.0f);  // some quantisations insist on one
  ggml_quantize_chunk(type, exact.data(), weight.bytes.data(), 0, rows, cols, importance.data());
  weight.view = {type, rows, cols, weight.bytes.data()};
  for (int64_t r = 0; r < rows; ++r) {
    float* to = weight.values.data() + r * cols;
    if (type == GGML_TYPE_F32) {
      std::copy_n(reinterpret_cast<const float*>(weight.view.row(r)), cols, to);
    } else {
      ggml_get_type_traits(type)->to_float(weight.view.row(r), to, cols);
    }
  }
  return weight;
}

HostWeight random_vector(int count, float centre, float deviation, Random& random) {
  HostWeight weight;
  for (int i = 0; i < count; ++i) weight.values.push_back(centre + random.normal(deviation));
  const auto* bytes = reinterpret_cast<const std::byte*>(weight.values.data());
  weight.bytes.assign(bytes, bytes + sizeof(float) * count);
  weight.view = {GGML_TYPE_F32, 1, count, weight.bytes.data()};
  return weight;
}

void Device::begin(const Hyperparameters& hp, const HostBatch& batch) {
  backend_->reserve(hp, batch->rows(), batch.max_context());
  backend_->begin(hp, *batch);
}

std::byte* Device::put(const void* host, size_t bytes) {
  buffers_.push_back(backend_->allocate(std::max<size_t>(bytes, 64), "a test"));
  backend_->write(buffers_.back().as<std::byte>(), static_cast<const std::byte*>(host), bytes);
  return buffers_.back().as<std::byte>();
}

Rows Device::rows(const std::vector<float>& host, int width) {
  auto* data = reinterpret_cast<float*>(put(host.data(), sizeof(float) * host.size()));
  return {data, static_cast<int>(host.size() / width), width};
}

std::vector<float> Device::read(Rows rows) {
  std::vector<float> host(static_cast<size_t>(rows.rows) * rows.width);
  backend_->read(reinterpret_cast<std::byte*>(host.data()), reinterpret_cast<const std::byte*>(rows.data),
                 sizeof(float) * host.size());
  return host;
}

KvLayer Device::cache(const HostCache& host) {
  const std::vector<std::byte> bytes = host.bytes();
  return {
      .data = put(bytes.data(), bytes.size()), .kv_heads = host.kv_heads, .head_dim = host.head_dim, .type = host.type};
}

KvLayer Device::sketched(const HostCache& host, int bits) {
  KvLayer layer = cache(host);
  std::vector<BlockId> blocks(host.values.size() / (size_t{2} * kBlockTokens * layer.head_dim * layer.kv_heads));
  std::iota(blocks.begin(), blocks.end(), 0);
  const SketchLayout layout{layer.head_dim, bits};
  buffers_.push_back(backend_->allocate(layout.bytes() * layer.kv_heads * blocks.size(), "a test"));
  layer.sketches[bits / 2] = buffers_.back().as<std::byte>();
  backend_->sketch(layer, blocks);
  return layer;
}

KvLayer Device::sketched_values(const HostCache& host, int bits) {
  KvLayer layer = sketched(host, bits);
  std::vector<BlockId> blocks(host.values.size() / (size_t{2} * kBlockTokens * layer.head_dim * layer.kv_heads));
  std::iota(blocks.begin(), blocks.end(), 0);
  buffers_.push_back(
      backend_->allocate(ValueSketchLayout{layer.head_dim}.bytes() * layer.kv_heads * blocks.size(), "a test"));
  layer.value_sketches = buffers_.back().as<std::byte>();
  backend_->sketch(layer, blocks);
  return layer;
}

std::vector<std::byte> Device::read_sketches(KvLayer cache, int bits, int blocks) {
  const SketchLayout layout{cache.head_dim, bits};
  std::vector<std::byte> host(static_cast<size_t>(layout.bytes()) * cache.kv_heads * blocks);
  backend_->read(host.data(), cache.sketch(bits, 0, 0), host.size());
  return host;
}

HostCache Device::read(KvLayer cache, const HostCache& like) {
  HostCache host = like;
  const size_t row = size_t{2} * host.head_dim, count = host.values.size() / row;
  std::vector<std::byte> bytes(count * static_cast<size_t>(cache.row_bytes()));
  backend_->read(bytes.data(), cache.data, bytes.size());
  std::vector<float> elements(row);
  for (size_t r = 0; r < count; ++r) {
    read_kv_row(cache.row_layout(), bytes.data() + r * static_cast<size_t>(cache.row_bytes()), elements.data(),
                elements.data() + host.head_dim);
    for (size_t i = 0; i < row; ++i) host.values[r * row + i] = to_bf16(elements[i]);
  }
  return host;
}

Selection Device::selection(const Policy& policy, const Hyperparameters& hp, int rows,
                            const std::vector<int32_t>& positions) {
  Selection selection;
  selection.row_units = scope_units(policy.scope, hp.heads, hp.kv_heads);
  const size_t stride = most_selected(policy), sets = static_cast<size_t>(rows) * selection.row_units;
  selection.row_positions = selection.row_units * most_selected(policy);
  std::vector<int32_t> spread(sets * stride, -1);
  for (size_t set = 0; set < sets && !positions.empty(); ++set) {
    std::copy_n(positions.begin() + static_cast<ptrdiff_t>(set) * policy.budget, policy.budget,
                spread.begin() + static_cast<ptrdiff_t>(set * stride));
  }
  const std::vector<int32_t> counts(sets, policy.budget);
  selection.positions = reinterpret_cast<int32_t*>(put(spread.data(), sizeof(int32_t) * spread.size()));
  selection.counts = reinterpret_cast<int32_t*>(put(counts.data(), sizeof(int32_t) * counts.size()));
  return selection;
}

std::vector<int32_t> Device::read(const Selection& selection, int rows, int width) {
  std::vector<int32_t> host(static_cast<size_t>(rows) * selection.row_positions);
  backend_->read(reinterpret_cast<std::byte*>(host.data()), reinterpret_cast<const std::byte*>(selection.positions),
                 sizeof(int32_t) * host.size());
  std::vector<int32_t> counts(static_cast<size_t>(rows) * selection.row_units);
  backend_->read(reinterpret_cast<std::byte*>(counts.data()), reinterpret_cast<const std::byte*>(selection.counts),
                 sizeof(int32_t) * counts.size());
  const ptrdiff_t stride = selection.row_positions / selection.row_units;
  std::vector<int32_t> sets(counts.size() * width, -1);
  for (size_t set = 0; set < counts.size(); ++set) {
    const auto from = host.begin() + static_cast<ptrdiff_t>(set) * stride;
    std::copy_n(from, std::min(counts[set], width), sets.begin() + static_cast<ptrdiff_t>(set) * width);
  }
  return sets;
}

void expect_close(const char* what, const std::vector<float>& got, const std::vector<float>& reference,
                  const std::vector<double>& bounds) {
  ASSERT_EQ(got.size(), reference.size());
  ASSERT_EQ(got.size(), bounds.size());
  size_t wrong = 0, first = 0;
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    bool close;
    if (std::isfinite(reference[i])) {
      const double difference = std::abs(static_cast<double>(got[i]) - reference[i]);
      close = difference <= bounds[i];
      if (bounds[i] > 0 && close) largest = std::max(largest, difference / bounds[i]);
    } else {
      close = std::isnan(reference[i]) ? std::isnan(got[i]) : got[i] == reference[i];
    }
    if (!close && wrong++ == 0) first = i;
  }
  EXPECT_EQ(wrong, 0u) << what << ": " << wrong << " of " << got.size() << " differ; the first is [" << first
                       << "]: " << got[first] << ", the reference has " << reference[first] << ", allowed "
                       << bounds[first];
  if (std::getenv("TIDAL_TEST_BOUNDS")) std::printf("  %-40s up to %.3f of the bound\n", what, largest);
}

}  // namespace tidal::parity
