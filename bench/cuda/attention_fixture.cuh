// What bench/cuda/attention_bench.cu and host_rows_bench.cu work on: decode rows with block tables, caches, sketches
// and selections.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/scan/sketch_blocks.h"
#include "backend/reference/select.h"

namespace {

using namespace tidal;
using cuda::allocate_device;
using cuda::check;

__global__ void fill_kernel(uint16_t* to, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32) ^ seed;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
    // Uniform in [-1, 1].
    const float value = static_cast<float>(static_cast<int>(x)) * 0x1p-31f;
    to[i] = static_cast<uint16_t>(__float_as_uint(value) >> 16);
  }
}

template <typename T>
Buffer upload(const std::vector<T>& host) {
  Buffer buffer = allocate_device(sizeof(T) * host.size(), "a benchmark");
  check(cudaMemcpy(buffer.as<T>(), host.data(), sizeof(T) * host.size(), cudaMemcpyHostToDevice), "upload");
  return buffer;
}

/// Rows of 8 bits: codes from -127 to 127, scales from 1/254 to 1/127.
__global__ void fill_q8_kernel(std::byte* cache, int64_t rows, int64_t row_bytes, KvRowLayout layout, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * row_bytes; i += gridDim.x * blockDim.x) {
    const auto at = static_cast<int>(i % row_bytes), codes = 2 * layout.head_dim;
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x = (x ^ x >> 15) * 2246822519u;
    x ^= x >> 13;
    if (at < codes) {
      cache[i] = static_cast<std::byte>(static_cast<int>(x % 255) - 127);
    } else if (at % 2 == 0) {
      const float scale = (0.5f + 0.5f * static_cast<float>(x & 0xffff) / 65536) / 127;
      const int scales = (layout.head_dim + kKvScaleBlock - 1) / kKvScaleBlock;
      const bool used = at < codes + 4 * scales;
      *reinterpret_cast<__half*>(cache + i) = used ? __float2half_rn(scale) : __float2half_rn(0.0f);
    }
  }
}

template <typename T>
std::vector<T> download(const void* from, size_t count) {
  std::vector<T> host(count);
  check(cudaMemcpy(host.data(), from, sizeof(T) * count, cudaMemcpyDeviceToHost), "download");
  return host;
}

struct Shape {
  const char* name;
  int heads, kv_heads, head_dim;
  KvType type = KvType::Bf16;
};

Hyperparameters hyperparameters(const Shape& shape) {
  Hyperparameters hp;
  hp.heads = shape.heads, hp.kv_heads = shape.kv_heads, hp.head_dim = shape.head_dim;
  return hp;
}

/// Where K and V are.
enum class Place { Device, Host };

/// Single rows of sequences at one context each, their blocks in random order, and layers of cache for them.
class Fixture {
 public:
  /// cached_rows: of K and V on the host, that the device holds of each layer and KV head.
  Fixture(const Shape& shape, const std::vector<int>& contexts, int layers, const Policy& policy, int bits,
          Place place = Place::Device, int cached_rows = 0)
      : shape_(shape), contexts_(contexts), policy_(policy), bits_(bits), place_(place), stream_(cuda::make_stream()) {
    const int rows = static_cast<int>(contexts.size());
    int total = 0;
    for (const int context : contexts) total += blocks_for(context);
    blocks_.resize(total);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::shuffle(blocks_.begin(), blocks_.end(), random_);
    std::vector<int32_t> positions, row_chunk;
    std::vector<cuda::DeviceChunk> chunks;
    for (int r = 0, table = 0; r < rows; ++r) {
      positions.push_back(contexts[r] - 1);
      row_chunk.push_back(r);
      tables_.push_back(table);
      chunks.push_back({nullptr, r, 1, contexts[r] - 1, contexts[r], table, policy.budget, policy.sinks, policy.recent,
                        static_cast<float>(policy.top_p)});
      table += blocks_for(contexts[r]);
    }
    device_positions_ = upload(positions), device_row_chunk_ = upload(row_chunk);
    device_blocks_ = upload(blocks_), device_chunks_ = upload(chunks);
    const KvRowLayout layout_of_rows{shape.type, shape.head_dim};
    const int64_t rows_of_cache = int64_t{total} * shape.kv_heads * kBlockTokens;
    const SketchLayout layout{shape.head_dim, bits};
    for (int l = 0; l < layers; ++l) {
      const size_t bytes = static_cast<size_t>(rows_of_cache * layout_of_rows.bytes());
      caches_.push_back(place == Place::Host ? cuda::allocate_pinned(bytes, "a cache")
                                             : allocate_device(bytes, "a cache"));
      if (shape.type == KvType::Bf16) {
        fill_kernel<<<1024, 256>>>(caches_.back().as<uint16_t>(), rows_of_cache * 2 * shape.head_dim, l * 7919 + 1);
      } else {
        fill_q8_kernel<<<1024, 256>>>(caches_.back().as<std::byte>(), rows_of_cache, layout_of_rows.bytes(),
                                      layout_of_rows, l * 7919 + 1);
      }
      sketches_.push_back(allocate_device(layout.bytes() * shape.kv_heads * total, "sketches"));
    }
    check(cudaDeviceSynchronize(), "fill");
    for (int l = 0; l < layers; ++l) {
      cuda::launch_sketch_blocks(kv(l), device_blocks_.as<BlockId>(), total, stream_);
    }
    std::normal_distribution<float> normal(0, 1.7f);
    q_.resize(static_cast<size_t>(rows) * shape.heads * shape.head_dim);
    for (float& value : q_) value = normal(random_);
    device_q_ = upload(q_), device_out_ = upload(q_);
    attention_.reserve(hyperparameters(shape), rows, *std::max_element(contexts.begin(), contexts.end()));
    if (place == Place::Host) {
      std::vector<uint32_t> generations(blocks_.size());
      std::iota(generations.begin(), generations.end(), 1);
      generations_ = upload(generations), number_ = upload(std::vector<uint32_t>{1});
    }
    if (cached_rows > 0) cache_rows(layers, cached_rows);
    sync();
  }

  int rows() const { return static_cast<int>(contexts_.size()); }
  int width() const { return shape_.heads * shape_.head_dim; }
  int units() const { return scope_units(policy_.scope, shape_.heads, shape_.kv_heads); }
  int stride() const { return most_selected(policy_); }
  cudaStream_t stream() const { return stream_; }
  void sync() { check(cudaStreamSynchronize(stream_), "run"); }

  KvLayer kv(int layer) const {
    KvLayer kv{caches_[layer].as<std::byte>(), shape_.kv_heads, shape_.head_dim, shape_.type};
    if (place_ == Place::Host) kv.device_slots = 0;
    kv.sketches[bits_ / 2] = sketches_[layer].as<std::byte>();
    return kv;
  }

  /// New sets of random positions, so many of them.
  void select_at_random(int sets) {
    selections_.clear(), counts_.clear();
    for (int s = 0; s < sets; ++s) {
      std::vector<int32_t> positions(static_cast<size_t>(rows()) * units() * stride(), -1);
      for (int r = 0; r < rows(); ++r) {
        for (int u = 0; u < units(); ++u) {
          // One in each of `budget` equal ranges: different, ascending.
          for (int i = 0; i < policy_.budget; ++i) {
            const auto low = int64_t{contexts_[r]} * i / policy_.budget;
            const auto high = int64_t{contexts_[r]} * (i + 1) / policy_.budget - 1;
            positions[(static_cast<size_t>(r) * units() + u) * stride() + i] =
                static_cast<int32_t>(std::uniform_int_distribution<int64_t>(low, high)(random_));
          }
        }
      }
      selections_.push_back(upload(positions));
      counts_.push_back(upload(std::vector<int32_t>(static_cast<size_t>(rows()) * units(), policy_.budget)));
    }
  }

  void attend(Role role, int layer, int set = 0, bool early = false) {
    cuda::AttendParams params;
    params.tables = {nullptr,
                     device_positions_.as<int32_t>(),
                     device_row_chunk_.as<int32_t>(),
                     device_blocks_.as<int32_t>(),
                     device_chunks_.as<cuda::DeviceChunk>(),
                     nullptr,
                     generations_.as<uint32_t>(),
                     number_.as<uint32_t>()};
    params.rows = rows();
    params.role = role;
    params.scope = policy_.scope, params.pooling = policy_.pooling, params.sketch_bits = bits_;
    params.q = {device_q_.as<float>(), rows(), width()};
    params.out = {device_out_.as<float>(), rows(), width()};
    params.kv = kv(layer);
    params.early = early;
    params.row_cache = row_cache_.layer(layer, params.kv, {.policy = policy_});
    if (role != Role::Dense) {
      params.selection = {selections_[set].as<int32_t>(), counts_[set].as<int32_t>(), units() * stride(), units()};
    }
    attention_.attend(params, stream_);
  }

  // Where K and V are on the host: the number of the step, which must grow; what the cache of rows holds of a layer.
  void step(uint32_t number) { copy_to(number_, std::vector<uint32_t>{number}); }
  std::vector<cuda::RowTag> tags(int layer) const {
    const cuda::CachedRows cached = row_cache_.layer(layer, kv(layer), {.policy = policy_}).cached;
    return download<cuda::RowTag>(cached.tags, size_t{cached.sets} * cuda::kWays * shape_.kv_heads);
  }
  void set_queries(const std::vector<float>& q) { copy_to(device_q_, q); }
  const std::vector<float>& queries() const { return q_; }
  /// Selected positions [rows, units, stride()] in place of the first set's; `budget` of each.
  void set_selected(const std::vector<int32_t>& positions) { copy_to(selections_[0], positions); }

  const float* q(int row, int head) const {
    return &q_[(static_cast<size_t>(row) * shape_.heads + head) * shape_.head_dim];
  }
  std::vector<float> out() const { return download<float>(device_out_.as<float>(), q_.size()); }
  std::vector<std::byte> cache(int layer) const {
    return download<std::byte>(caches_[layer].as<std::byte>(), caches_[layer].bytes());
  }
  std::vector<std::byte> sketches(int layer) const {
    return download<std::byte>(sketches_[layer].as<std::byte>(), sketches_[layer].bytes());
  }
  std::vector<int32_t> selected(int row, int unit) const {
    const auto all = download<int32_t>(selections_[0].as<int32_t>(), selections_[0].bytes() / sizeof(int32_t));
    const auto counts = download<int32_t>(counts_[0].as<int32_t>(), counts_[0].bytes() / sizeof(int32_t));
    const int32_t* first = all.data() + (static_cast<size_t>(row) * units() + unit) * stride();
    return {first, first + counts[row * units() + unit]};
  }
  int64_t tile(int row, int position, int kv_head) const {
    return int64_t{blocks_[tables_[row] + position / kBlockTokens]} * shape_.kv_heads + kv_head;
  }

 private:
  template <typename T>
  static void copy_to(const Buffer& to, const std::vector<T>& from) {
    check(cudaMemcpy(to.as<T>(), from.data(), sizeof(T) * from.size(), cudaMemcpyHostToDevice), "upload");
  }
  void cache_rows(int layers, int rows) {
    RowCacheRoom room{.rows = rows,
                      .heads = shape_.heads,
                      .kv_heads = shape_.kv_heads,
                      .row_bytes = KvRowLayout{shape_.type, shape_.head_dim}.bytes(),
                      .sequences = this->rows(),
                      .policy = policy_};
    room.layers.resize(layers);
    std::iota(room.layers.begin(), room.layers.end(), 0);
    row_cache_ = cuda::RowCache(room);
  }

  Shape shape_;
  std::vector<int> contexts_, tables_;
  Policy policy_;
  int bits_;
  Place place_;
  std::mt19937 random_{7};
  std::vector<int32_t> blocks_;
  std::vector<float> q_;
  Buffer device_positions_, device_row_chunk_, device_blocks_, device_chunks_, device_q_, device_out_;
  Buffer generations_, number_;  // where K and V are on the host
  cuda::RowCache row_cache_;
  std::vector<Buffer> caches_, sketches_, selections_, counts_;
  cuda::Stream stream_;
  cuda::DecodeAttention attention_;
};

}  // namespace
