// The attention of include/tidal_attention.h on threads of the processor.
#include <algorithm>
#include <cstring>
#include <vector>

#include "attention/attention.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kWaveRows = 16;  // rows whose queries and outputs are in float32 at a time
constexpr Role kScanRole = Role::Scan;

class CpuAttention final : public tidal_attention {
 public:
  explicit CpuAttention(const tidal_attention_options& given);

  void append(const tidal_attention_cache& cache, const Append& append, void* stream) override;
  void sketch(const tidal_attention_cache& cache, int count, const int32_t* blocks, void* stream) override;
  void attend(const tidal_attention_cache& cache, const Attend& attend, void* stream) override;

 private:
  size_t element_bytes() const { return options.dtype == TIDAL_ATTENTION_BF16 ? sizeof(Bf16) : sizeof(float); }
  void check(const tidal_attention_cache& cache, const Attend& attend) const;
  /// Rows [first, first + count) of a call.
  void attend_rows(const KvLayer& kv, const Attend& attend, int first, int count);
  void load_query(const Attend& attend, int row, float* to) const;
  void store_output(const Attend& attend, int row, const float* from) const;
  void store_sets(const Attend& attend, int row, const Chunk& chunk, const Selection& selection) const;

  Attention attention_;
  int most_;
  Buffer q_, out_, positions_, counts_;
  std::vector<Chunk> chunks_;
  std::vector<BlockId> filled_;
};

CpuAttention::CpuAttention(const tidal_attention_options& given)
    : tidal_attention(given), attention_(given.threads), most_(most_selected_of(given)) {
  const int rows = std::min(given.max_rows, kWaveRows);
  const size_t floats = sizeof(float) * static_cast<size_t>(rows) * given.heads * given.head_dim;
  q_ = allocate_memory(floats, "queries");
  out_ = allocate_memory(floats, "outputs");
  const size_t sets = static_cast<size_t>(rows) * given.kv_heads;
  positions_ = allocate_memory(sizeof(int32_t) * sets * most_selected(policy_of(given)), "selected positions");
  counts_ = allocate_memory(sizeof(int32_t) * sets, "selected positions");
  chunks_.reserve(static_cast<size_t>(rows));
  attention_.reserve(shape_of(given), given.max_context);
}

void CpuAttention::append(const tidal_attention_cache& cache, const Append& append, void* stream) {
  const int64_t slots = int64_t{cache.blocks} * kBlockTokens;
  filled_.clear();
  for (int r = 0; r < append.rows; ++r) {
    const int64_t slot = append.slots[r];
    if (slot >= slots) fail("slots: row {} has {}, expected less than {}, 64 times `blocks`", r, slot, slots);
    if (slot % kBlockTokens == kBlockTokens - 1) filled_.push_back(static_cast<BlockId>(slot / kBlockTokens));
  }
  const KvLayer kv = layer_of(options, cache);
  const auto element = static_cast<int64_t>(element_bytes()), bytes = element * options.head_dim;
  const auto* const keys = static_cast<const std::byte*>(append.key);
  const auto* const values = static_cast<const std::byte*>(append.value);
#pragma omp parallel for schedule(static) num_threads(options.threads) if (append.rows > 8)
  for (int r = 0; r < append.rows; ++r) {
    const int64_t slot = append.slots[r];
    for (int h = 0; slot >= 0 && h < options.kv_heads; ++h) {
      std::byte* const to = kv.row(static_cast<BlockId>(slot / kBlockTokens), h, static_cast<int>(slot % kBlockTokens));
      std::memcpy(to, keys + append.key_stride * r * element + h * bytes, static_cast<size_t>(bytes));
      std::memcpy(to + bytes, values + append.value_stride * r * element + h * bytes, static_cast<size_t>(bytes));
    }
  }
  sketch(cache, static_cast<int>(filled_.size()), filled_.data(), stream);
}

void CpuAttention::sketch(const tidal_attention_cache& cache, int count, const int32_t* blocks, void*) {
  for (int i = 0; i < count; ++i) {
    if (blocks[i] < 0 || blocks[i] >= cache.blocks)
      fail("blocks: entry {} is {}, expected 0 to {}", i, blocks[i], cache.blocks - 1);
  }
  const KvLayer kv = layer_of(options, cache);
  const int64_t tiles = int64_t{count} * options.kv_heads;
#pragma omp parallel for schedule(static) num_threads(options.threads) if (tiles > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const BlockId block = blocks[tile / options.kv_heads];
    const auto head = static_cast<int>(tile % options.kv_heads);
    sketch_block({kv.head_dim, options.sketch_bits}, kv.type, kv.tile(block, head),
                 kv.sketch(options.sketch_bits, block, head));
  }
}

void CpuAttention::check(const tidal_attention_cache& cache, const Attend& attend) const {
  for (int r = 0; r < attend.rows; ++r) {
    const int context = attend.contexts[r];
    if (context < 1 || context > options.max_context)
      fail("contexts: row {} has {}, expected 1 to {}, max_context", r, context, options.max_context);
    const int blocks = blocks_for(context);
    if (blocks > attend.table_stride)
      fail("table_stride: {} blocks a row, row {} needs {}", attend.table_stride, r, blocks);
    const int32_t* const table = attend.block_table + attend.table_stride * r;
    for (int i = 0; i < blocks; ++i) {
      if (table[i] < 0 || table[i] >= cache.blocks)
        fail("block_table: entry {} of row {} is {}, expected 0 to {}", i, r, table[i], cache.blocks - 1);
    }
  }
}

void CpuAttention::load_query(const Attend& attend, int row, float* to) const {
  const int width = options.heads * options.head_dim;
  if (options.dtype == TIDAL_ATTENTION_BF16) {
    const Bf16* const from = static_cast<const Bf16*>(attend.q) + attend.q_stride * row;
    for (int i = 0; i < width; ++i) to[i] = to_float(from[i]);
  } else {
    std::copy_n(static_cast<const float*>(attend.q) + attend.q_stride * row, width, to);
  }
  if (const float factor = query_factor(options); factor != 1) scale_by(factor, width, to);
}

void CpuAttention::store_output(const Attend& attend, int row, const float* from) const {
  const int width = options.heads * options.head_dim;
  if (options.dtype == TIDAL_ATTENTION_BF16) {
    floats_to_bf16(from, width, static_cast<Bf16*>(attend.out) + attend.out_stride * row);
  } else {
    std::copy_n(from, width, static_cast<float*>(attend.out) + attend.out_stride * row);
  }
}

void CpuAttention::store_sets(const Attend& attend, int row, const Chunk& chunk, const Selection& selection) const {
  for (int h = 0; attend.positions && h < options.kv_heads; ++h) {
    const int64_t set = int64_t{row} * options.kv_heads + h;
    attend.counts[set] = chunk.sparse() ? selection.count(chunk, h) : 0;
    if (chunk.sparse()) std::copy_n(selection.unit(chunk, h), attend.counts[set], attend.positions + set * most_);
  }
}

void CpuAttention::attend_rows(const KvLayer& kv, const Attend& attend, int first, int count) {
  const Policy policy = policy_of(options);
  chunks_.clear();
  for (int r = 0; r < count; ++r) {
    const int context = attend.contexts[first + r];
    const int32_t* const table = attend.block_table + attend.table_stride * (first + r);
    Chunk chunk;
    chunk.first_row = r;
    chunk.rows = 1;
    chunk.position = context - 1;
    chunk.blocks = {table, static_cast<size_t>(blocks_for(context))};
    chunk.cached = context;
    if (context > policy.budget) {
      chunk.roles = {&kScanRole, 1};
      chunk.policy = policy;
    }
    chunks_.push_back(chunk);
  }
  const int width = options.heads * options.head_dim;
  const Rows q{q_.as<float>(), count, width}, out{out_.as<float>(), count, width};
  for (int r = 0; r < count; ++r) load_query(attend, first + r, q.row(r));
  const Selection selection{positions_.as<int32_t>(), counts_.as<int32_t>(), options.kv_heads * most_selected(policy),
                            options.kv_heads};
  Batch batch;
  batch.chunks = chunks_;
  attention_.attend(batch, 0, {}, q, kv, selection, out);
  for (int r = 0; r < count; ++r) {
    store_output(attend, first + r, out.row(r));
    store_sets(attend, first + r, chunks_[static_cast<size_t>(r)], selection);
  }
}

void CpuAttention::attend(const tidal_attention_cache& cache, const Attend& attend, void*) {
  check(cache, attend);
  const KvLayer kv = layer_of(options, cache);
  for (int first = 0; first < attend.rows; first += kWaveRows)
    attend_rows(kv, attend, first, std::min(kWaveRows, attend.rows - first));
}

}  // namespace

std::unique_ptr<tidal_attention> make_cpu_attention(const tidal_attention_options& options) {
  return std::make_unique<CpuAttention>(options);
}

}  // namespace tidal
