#include "backend/cuda/weights/weights.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/weights/dequantise.h"
#include "backend/cuda/weights/quantised.h"
#include "core/bf16.h"
#include "core/buffer.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kStage = int64_t{8} << 20;   // bytes that are sent at once
constexpr int64_t kCopy = int64_t{256} << 10;  // bytes that a thread copies at once
constexpr const char* kCopying = "copying weights to the device";

/// Float32 vectors stay what they are.
bool is_vector(const Weight& weight) { return weight.type == GGML_TYPE_F32 && weight.rows == 1; }

/// The host's bytes are the device's.
bool is_sent_as_it_is(const Weight& weight) {
  return is_vector(weight) || (weight.type == GGML_TYPE_BF16 && weight.scale == 1);
}

/// By all threads: one does not copy as fast as the device takes it, and where the file is not in memory yet, each of
/// them waits for another piece of it.
void copy(const std::byte* from, int64_t bytes, std::byte* to) {
#pragma omp parallel for schedule(static) if (bytes > kCopy)
  for (int64_t at = 0; at < bytes; at += kCopy) {
    std::memcpy(to + at, from + at, static_cast<size_t>(std::min(kCopy, bytes - at)));
  }
}

/// Rows [first, first + count) in bf16, scaled, by the host: for types that no kernel knows, and for scales.
void convert(const Weight& weight, int64_t first, int64_t count, Bf16* to) {
  const auto to_float = [&](const std::byte* row, float* values) {
    if (weight.type == GGML_TYPE_F32) {
      std::memcpy(values, row, weight.row_bytes());
    } else {
      ggml_get_type_traits(weight.type)->to_float(row, values, weight.cols);
    }
  };
#pragma omp parallel
  {
    std::vector<float> values(static_cast<size_t>(weight.cols));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; ++r) {
      to_float(weight.row(first + r), values.data());
      for (int64_t i = 0; i < weight.cols; ++i) to[r * weight.cols + i] = to_bf16(values[i] * weight.scale);
    }
  }
}

/// The same in float32.
void convert(const Weight& weight, float* to) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < weight.rows; ++r) {
    float* const values = to + r * weight.cols;
    if (weight.type == GGML_TYPE_F32) {
      std::memcpy(values, weight.row(r), weight.row_bytes());
    } else {
      ggml_get_type_traits(weight.type)->to_float(weight.row(r), values, weight.cols);
    }
    for (int64_t i = 0; i < weight.cols; ++i) values[i] *= weight.scale;
  }
}

/// A way to the device: while one piece of weights is on it, the host makes the next for another way.
struct Way {
  Stream stream = make_stream();
  Event copied = make_event();  ///< the host's piece is free
  Event done = make_event();
  Buffer host, device;  ///< the piece, pinned, and as it arrives where the device dequantises
};

}  // namespace

struct DeviceWeights::State {
  /// Weights lie one behind the other, as far as pieces of memory reach: q, k and v of a layer, and gate and up, can
  /// then be multiplied as one matrix.
  std::vector<Buffer> pieces;
  int64_t used = 0;  ///< of the last piece
  int64_t taken = 0;
  std::vector<Way> ways;
  size_t next = 0;

  State() = default;
  ~State() {
    for (const Way& way : ways) cudaStreamSynchronize(way.stream);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::byte* allocate(int64_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (pieces.empty() || used + bytes > static_cast<int64_t>(pieces.back().bytes())) {
      // As much again as there is, so that small models take little; never what others will need.
      const int64_t free = static_cast<int64_t>(free_device_memory());
      const int64_t more = std::min({std::max<int64_t>(taken, int64_t{16} << 20), int64_t{512} << 20, free / 16});
      pieces.push_back(allocate_device(static_cast<size_t>(std::max(bytes, more)), "weights"));
      used = 0;
    }
    std::byte* const result = pieces.back().as<std::byte>() + used;
    used += bytes;
    taken += bytes;
    return result;
  }

  /// The next way, its piece of at least `bytes` in pinned memory free to be written.
  Way& free_way(int64_t bytes) {
    if (ways.empty()) ways.resize(2);
    Way& way = ways[next++ % ways.size()];
    check(cudaEventSynchronize(way.copied), kCopying);
    if (static_cast<int64_t>(way.host.bytes()) < bytes) {
      way.host = allocate_pinned(static_cast<size_t>(std::max(bytes, kStage)), "weights on their way");
    }
    return way;
  }

  static void send(Way& way, std::byte* to, int64_t bytes) {
    check(cudaMemcpyAsync(to, way.host.as<std::byte>(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice, way.stream),
          kCopying);
    check(cudaEventRecord(way.copied, way.stream), kCopying);
  }

  void send_as_it_is(const Weight& host, std::byte* to) {
    const auto bytes = static_cast<int64_t>(host.bytes());
    for (int64_t at = 0; at < bytes; at += kStage) {
      const int64_t count = std::min(kStage, bytes - at);
      Way& way = free_way(count);
      copy(host.data + at, count, way.host.as<std::byte>());
      send(way, to + at, count);
    }
  }

  /// Sends the host's bytes and has the device dequantise them.
  void send_blocks(const Weight& host, std::byte* to) {
    // Pieces of whole blocks that begin at a multiple of 16 bytes, on both sides.
    const int64_t block = int64_t{16} * static_cast<int64_t>(ggml_type_size(host.type));
    const int64_t elements = int64_t{16} * ggml_blck_size(host.type);
    const int64_t most = kStage / block * block;
    const auto bytes = static_cast<int64_t>(host.bytes());
    for (int64_t at = 0; at < bytes; at += most) {
      const int64_t count = std::min(most, bytes - at);
      Way& way = free_way(count);
      if (!way.device.bytes()) way.device = allocate_device(static_cast<size_t>(kStage), "weights on their way");
      copy(host.data + at, count, way.host.as<std::byte>());
      send(way, way.device.as<std::byte>(), count);
      const int64_t values = count / static_cast<int64_t>(ggml_type_size(host.type)) * ggml_blck_size(host.type);
      launch_dequantise(host.type, way.device.as<std::byte>(), values,
                        reinterpret_cast<Bf16*>(to) + at / block * elements, way.stream);
    }
  }

  /// Sends the host's bytes and has the device lay them out in tiles.
  void send_tiles(const Weight& host, std::byte* to) {
    const auto row = static_cast<int64_t>(host.row_bytes());
    const int64_t most = std::max<int64_t>(1, kStage / row / kTileRows) * kTileRows;
    for (int64_t first = 0; first < host.rows; first += most) {
      const int64_t count = std::min(most, host.rows - first), bytes = count * row;
      Way& way = free_way(bytes);
      if (static_cast<int64_t>(way.device.bytes()) < bytes) {
        check(cudaStreamSynchronize(way.stream), kCopying);  // its last piece is read from there
        way.device = allocate_device(static_cast<size_t>(std::max(bytes, kStage)), "weights on their way");
      }
      copy(host.row(first), bytes, way.host.as<std::byte>());
      send(way, way.device.as<std::byte>(), bytes);
      launch_tile(host.type, way.device.as<std::byte>(), count, host.cols,
                  to + tiled_bytes(host.type, first, host.cols), way.stream);
    }
  }

  /// Sends what the host has dequantised.
  void send_rows(const Weight& host, std::byte* to) {
    const int64_t row = host.cols * static_cast<int64_t>(sizeof(Bf16));
    const int64_t most = std::max<int64_t>(1, kStage / row);
    for (int64_t first = 0; first < host.rows; first += most) {
      const int64_t count = std::min(most, host.rows - first);
      Way& way = free_way(count * row);
      convert(host, first, count, way.host.as<Bf16>());
      send(way, to + first * row, count * row);
    }
  }

  /// Has `user` wait for everything that was sent.
  void join(cudaStream_t user) {
    for (const Way& way : ways) {
      check(cudaEventRecord(way.done, way.stream), kCopying);
      check(cudaStreamWaitEvent(user, way.done, 0), kCopying);
    }
  }
};

DeviceWeights::DeviceWeights(bool quantised) : quantised_(quantised), state_(std::make_unique<State>()) {}
DeviceWeights::~DeviceWeights() = default;

ggml_type DeviceWeights::matrix_type(ggml_type type) const {
  return quantised_ && stays_quantised(type) ? type : GGML_TYPE_BF16;
}

int64_t DeviceWeights::matrix_bytes(ggml_type type, int64_t rows, int64_t cols) const {
  return matrix_type(type) == GGML_TYPE_BF16 ? rows * cols * 2 : tiled_bytes(type, rows, cols);
}

Weight DeviceWeights::upload(const Weight& host, cudaStream_t user) {
  if (!host) return host;
  // Kernels read 8 columns at a time.
  if (!is_vector(host) && host.cols % 8 != 0) {
    fail("cuda backend: a matrix of {} columns, expected a multiple of 8", host.cols);
  }
  const bool tiles = !is_vector(host) && host.scale == 1 && matrix_type(host.type) != GGML_TYPE_BF16;
  const bool raw = is_sent_as_it_is(host), blocks = !raw && host.scale == 1 && dequantises(host.type);
  if (!raw && !blocks && host.type != GGML_TYPE_F32 && !ggml_get_type_traits(host.type)->to_float) {
    fail("cuda backend: weights of type {} cannot be converted to bf16", ggml_type_name(host.type));
  }
  State& s = *state_;
  const ggml_type type = is_vector(host) ? GGML_TYPE_F32 : tiles ? host.type : GGML_TYPE_BF16;
  std::byte* const to = s.allocate(tiles ? tiled_bytes(type, host.rows, host.cols)
                                         : host.rows * static_cast<int64_t>(ggml_row_size(type, host.cols)));
  if (tiles) {
    s.send_tiles(host, to);
  } else if (raw) {
    s.send_as_it_is(host, to);
  } else if (blocks) {
    s.send_blocks(host, to);
  } else {
    s.send_rows(host, to);
  }
  s.join(user);
  Weight result = host;
  result.type = type;
  result.data = to;
  result.scale = 1;  // it is in the values
  return result;
}

Weight DeviceWeights::upload_floats(const Weight& host, cudaStream_t user) {
  if (!host) return host;
  std::vector<float> values(static_cast<size_t>(host.rows * host.cols));
  convert(host, values.data());
  Weight floats{GGML_TYPE_F32, host.rows, host.cols, reinterpret_cast<const std::byte*>(values.data())};
  std::byte* const to = state_->allocate(static_cast<int64_t>(floats.bytes()));
  state_->send_as_it_is(floats, to);
  state_->join(user);
  floats.data = to;
  return floats;
}

}  // namespace tidal::cuda
