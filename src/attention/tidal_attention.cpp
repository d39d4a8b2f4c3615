// The functions of include/tidal_attention.h: what they check, and how errors come over the border.
#include "tidal_attention.h"

#include <cmath>
#include <limits>
#include <new>
#include <string>

#include "attention/attention.h"
#include "core/error_kinds.h"

namespace tidal {

KvLayer layer_of(const tidal_attention_options& options, const tidal_attention_cache& cache) {
  KvLayer kv{.data = static_cast<std::byte*>(cache.rows),
             .kv_heads = options.kv_heads,
             .head_dim = options.head_dim,
             .type = options.dtype == TIDAL_ATTENTION_BF16 ? KvType::Bf16 : KvType::F32,
             .tile_stride = cache.tile_stride,
             .sketch_stride = cache.sketch_stride};
  kv.sketches[static_cast<size_t>(options.sketch_bits) / 2] = static_cast<std::byte*>(cache.sketches);
  return kv;
}

Policy policy_of(const tidal_attention_options& options) {
  Policy policy;
  policy.scope = Scope::Kv;
  policy.pooling = Pooling::Sum;
  policy.budget = std::min(options.budget, options.max_context);  // more would only take room
  policy.sinks = policy.recent = 0;
  policy.sketch_bits = options.sketch_bits;
  return policy;
}

Hyperparameters shape_of(const tidal_attention_options& options) {
  Hyperparameters hp;
  hp.layers = 1;
  hp.heads = options.heads;
  hp.kv_heads = options.kv_heads;
  hp.head_dim = options.head_dim;
  hp.width = options.heads * options.head_dim;
  return hp;
}

int most_selected_of(const tidal_attention_options& options) {
  return std::min(most_selected(policy_of(options)), options.max_context);
}

float query_factor(const tidal_attention_options& options) {
  const float root = std::sqrt(static_cast<float>(options.head_dim));
  return options.scale > 0 && options.scale != 1.0f / root ? options.scale * root : 1.0f;
}

namespace {

constexpr int kMost = 1 << 24, kMostHeads = 1024, kMostRows = 65536, kMostThreads = 1024;

std::string& last_error() {
  static thread_local std::string sentence;
  return sentence;
}

int32_t remember(int32_t code, const char* sentence) {
  try {
    last_error() = sentence;
  } catch (const std::bad_alloc&) {
    last_error().clear();  // takes no memory
  }
  return code;
}

/// Runs `body` and makes of what it throws a code and a sentence; an Error of no kind of its own has `code`.
template <typename Body>
int32_t guarded(int32_t code, Body&& body) {
  try {
    body();
    return TIDAL_ATTENTION_OK;
  } catch (const AttentionError& error) {
    return remember(error.code(), error.what());
  } catch (const MemoryError& error) {
    return remember(TIDAL_ATTENTION_NO_MEMORY, error.what());
  } catch (const DeviceError& error) {
    return remember(TIDAL_ATTENTION_FAILED, error.what());
  } catch (const Error& error) {
    return remember(code, error.what());
  } catch (const std::bad_alloc&) {
    return remember(TIDAL_ATTENTION_NO_MEMORY, "out of memory on the host");
  } catch (const std::exception& error) {
    return remember(TIDAL_ATTENTION_FAILED, error.what());
  } catch (...) {
    return remember(TIDAL_ATTENTION_FAILED, "something failed that has no name");
  }
}

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw AttentionError(TIDAL_ATTENTION_INVALID, fmt::format(format, std::forward<Args>(args)...));
}

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) refuse("{}: {}, expected {} to {}", name, value, least, most);
}

void check_pointer(const char* name, const void* pointer) {
  if (!pointer) refuse("{}: null, expected memory", name);
}

bool is_head_dim(int dim) { return dim >= 16 && dim <= kMostHeadDim && dim % 16 == 0; }

void check_options(const tidal_attention_options& options) {
  if (options.version != TIDAL_ATTENTION_VERSION) {
    throw AttentionError(TIDAL_ATTENTION_UNSUPPORTED,
                         fmt::format("version: {}, expected {}, that of the library's tidal_attention.h",
                                     options.version, TIDAL_ATTENTION_VERSION));
  }
  check_range("device", options.device, TIDAL_ATTENTION_CPU, TIDAL_ATTENTION_CUDA);
  check_range("dtype", options.dtype, TIDAL_ATTENTION_BF16, TIDAL_ATTENTION_FLOAT32);
  if (options.device == TIDAL_ATTENTION_CPU) check_range("threads", options.threads, 1, kMostThreads);
  check_range("heads", options.heads, 1, kMostHeads);
  check_range("kv_heads", options.kv_heads, 1, options.heads);
  if (options.heads % options.kv_heads != 0)
    refuse("heads: {}, expected a multiple of kv_heads, which is {}", options.heads, options.kv_heads);
  if (!is_head_dim(options.head_dim))
    refuse("head_dim: {}, expected a multiple of 16 from 16 to {}", options.head_dim, kMostHeadDim);
  if (!is_sketch_width(options.sketch_bits)) refuse("sketch_bits: {}, expected 1, 2 or 4", options.sketch_bits);
  check_range("budget", options.budget, 1, kMost);
  check_range("max_context", options.max_context, 1, kMost);
  check_range("max_rows", options.max_rows, 1, kMostRows);
  if (!(options.scale >= 0 && std::isfinite(options.scale)))
    refuse("scale: {}, expected a positive number, or 0 for 1 / sqrt(head_dim)", options.scale);
}

void check_aligned(const char* name, uint64_t value) {
  constexpr uint64_t kAlignment = 16;
  if (value % kAlignment != 0) refuse("{}: {:#x}, expected a multiple of {}", name, value, kAlignment);
}

void check_cache(const tidal_attention* attention, const tidal_attention_cache* cache) {
  check_pointer("attention", attention);
  check_pointer("cache", cache);
  check_pointer("rows of the cache", cache->rows);
  check_pointer("sketches of the cache", cache->sketches);
  check_aligned("rows of the cache", reinterpret_cast<uintptr_t>(cache->rows));
  check_aligned("sketches of the cache", reinterpret_cast<uintptr_t>(cache->sketches));
  check_range("blocks of the cache", cache->blocks, 1, std::numeric_limits<int32_t>::max());
  const tidal_attention_options& options = attention->options;
  const int64_t tile = layer_of(options, *cache).tile_bytes();
  const int64_t sketch = SketchLayout{options.head_dim, options.sketch_bits}.bytes();
  if (cache->tile_stride < tile)
    refuse("tile_stride: {}, expected at least {}, a tile's bytes", cache->tile_stride, tile);
  if (cache->sketch_stride < sketch)
    refuse("sketch_stride: {}, expected at least {}, a sketch's bytes", cache->sketch_stride, sketch);
  check_aligned("tile_stride", static_cast<uint64_t>(cache->tile_stride));
  check_aligned("sketch_stride", static_cast<uint64_t>(cache->sketch_stride));
}

void check_stride(const char* name, int64_t stride, int64_t least) {
  if (stride < least) refuse("{}: {}, expected at least {}, a row's elements", name, stride, least);
}

void check_attend(const tidal_attention_options& options, const tidal_attention::Attend& attend) {
  check_range("rows", attend.rows, 0, options.max_rows);
  if (attend.rows == 0) return;
  check_pointer("q", attend.q);
  check_pointer("block_table", attend.block_table);
  check_pointer("contexts", attend.contexts);
  check_pointer("out", attend.out);
  if (!attend.positions != !attend.counts) refuse("positions and counts: one is null, expected both or none");
  const int64_t width = int64_t{options.heads} * options.head_dim;
  check_stride("q_stride", attend.q_stride, width);
  check_stride("out_stride", attend.out_stride, width);
  check_range("table_stride", attend.table_stride, 1, kMost);
}

}  // namespace
}  // namespace tidal

int32_t tidal_attention_version() { return TIDAL_ATTENTION_VERSION; }

const char* tidal_attention_error() { return tidal::last_error().c_str(); }

int32_t tidal_attention_has_device(int32_t device) {
  return device == TIDAL_ATTENTION_CPU || (device == TIDAL_ATTENTION_CUDA && tidal::has_cuda_attention()) ? 1 : 0;
}

int64_t tidal_attention_sketch_bytes(int32_t head_dim, int32_t bits) {
  if (!tidal::is_head_dim(head_dim) || !tidal::is_sketch_width(bits)) return 0;
  return tidal::SketchLayout{head_dim, bits}.bytes();
}

int32_t tidal_attention_most_selected(const tidal_attention* attention) {
  return attention ? tidal::most_selected_of(attention->options) : 0;
}

int32_t tidal_attention_create(const tidal_attention_options* options, tidal_attention** attention) {
  return tidal::guarded(TIDAL_ATTENTION_UNSUPPORTED, [&] {
    tidal::check_pointer("attention", static_cast<const void*>(attention));
    *attention = nullptr;
    tidal::check_pointer("options", options);
    tidal::check_options(*options);
    const bool cuda = options->device == TIDAL_ATTENTION_CUDA;
    *attention = (cuda ? tidal::make_cuda_attention(*options) : tidal::make_cpu_attention(*options)).release();
  });
}

void tidal_attention_free(tidal_attention* attention) { delete attention; }

int32_t tidal_attention_append(tidal_attention* attention, const tidal_attention_cache* cache, int32_t rows,
                               const void* key, int64_t key_stride, const void* value, int64_t value_stride,
                               const int64_t* slots, void* stream) {
  return tidal::guarded(TIDAL_ATTENTION_INVALID, [&] {
    tidal::check_cache(attention, cache);
    tidal::check_range("rows", rows, 0, tidal::kMost);
    if (rows == 0) return;
    tidal::check_pointer("key", key);
    tidal::check_pointer("value", value);
    tidal::check_pointer("slots", slots);
    const int64_t width = int64_t{attention->options.kv_heads} * attention->options.head_dim;
    tidal::check_stride("key_stride", key_stride, width);
    tidal::check_stride("value_stride", value_stride, width);
    attention->append(*cache, {rows, key, value, key_stride, value_stride, slots}, stream);
  });
}

int32_t tidal_attention_sketch(tidal_attention* attention, const tidal_attention_cache* cache, int32_t count,
                               const int32_t* blocks, void* stream) {
  return tidal::guarded(TIDAL_ATTENTION_INVALID, [&] {
    tidal::check_cache(attention, cache);
    tidal::check_range("count", count, 0, tidal::kMost);
    if (count == 0) return;
    tidal::check_pointer("blocks", blocks);
    attention->sketch(*cache, count, blocks, stream);
  });
}

int32_t tidal_attention_attend(tidal_attention* attention, const tidal_attention_cache* cache, int32_t rows,
                               const void* q, int64_t q_stride, const int32_t* block_table, int64_t table_stride,
                               const int32_t* contexts, void* out, int64_t out_stride, int32_t* positions,
                               int32_t* counts, void* stream) {
  return tidal::guarded(TIDAL_ATTENTION_INVALID, [&] {
    tidal::check_cache(attention, cache);
    const tidal_attention::Attend attend{rows,     q,   q_stride,   block_table, table_stride,
                                         contexts, out, out_stride, positions,   counts};
    tidal::check_attend(attention->options, attend);
    if (rows > 0) attention->attend(*cache, attend, stream);
  });
}
