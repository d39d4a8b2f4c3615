#include "backend/cuda/weights.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/error.h"
#include "core/bf16.h"
#include "core/buffer.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr size_t kStage = size_t{16} << 20;  // bytes of one of the two pieces of pinned memory on the way

/// Float32 vectors stay what they are.
bool is_vector(const Weight& weight) { return weight.type == GGML_TYPE_F32 && weight.rows == 1; }
int64_t row_bytes(const Weight& weight) { return weight.cols * (is_vector(weight) ? 4 : 2); }

/// Rows [first, first + count) as they will be on the device.
void convert(const Weight& weight, int64_t first, int64_t count, std::byte* to) {
  const int64_t bytes = row_bytes(weight);
#pragma omp parallel
  {
    std::vector<float> values(static_cast<size_t>(weight.cols));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; ++r) {
      const std::byte* from = weight.row(first + r);
      std::byte* row = to + r * bytes;
      if (is_vector(weight) || weight.type == GGML_TYPE_BF16) {
        std::memcpy(row, from, static_cast<size_t>(bytes));
        continue;
      }
      const auto* floats = reinterpret_cast<const float*>(from);
      if (weight.type != GGML_TYPE_F32) {
        ggml_get_type_traits(weight.type)->to_float(from, values.data(), weight.cols);
        floats = values.data();
      }
      auto* rounded = reinterpret_cast<Bf16*>(row);
      for (int64_t i = 0; i < weight.cols; ++i) rounded[i] = to_bf16(floats[i]);
    }
  }
}

}  // namespace

struct DeviceWeights::State {
  /// Weights lie one behind the other, as far as pieces of memory reach: q, k and v of a layer, and gate and up, can
  /// then be multiplied as one matrix.
  std::vector<Buffer> pieces;
  int64_t used = 0;  ///< of the last piece
  int64_t taken = 0;
  std::map<const std::byte*, Weight> uploaded;  ///< by host memory

  Buffer stage[2];
  Event done[2];
  Stream stream;

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

  void send(const Weight& host, std::byte* to) {
    if (!stream) stream = make_stream();
    const int64_t bytes = row_bytes(host);
    const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(kStage) / bytes);  // rows
    int side = 0;
    for (int64_t first = 0; first < host.rows; first += most, side ^= 1) {
      const int64_t count = std::min(most, host.rows - first);
      const auto wanted = std::max(kStage, static_cast<size_t>(count * bytes));
      if (stage[side].bytes() < wanted) stage[side] = allocate_pinned(wanted, "weights on their way");
      if (!done[side]) done[side] = make_event();
      check(cudaEventSynchronize(done[side]), "copying weights to the device");
      convert(host, first, count, stage[side].as<std::byte>());
      check(cudaMemcpyAsync(to + first * bytes, stage[side].as<std::byte>(), static_cast<size_t>(count * bytes),
                            cudaMemcpyHostToDevice, stream),
            "copying weights to the device");
      check(cudaEventRecord(done[side], stream), "copying weights to the device");
    }
    check(cudaStreamSynchronize(stream), "copying weights to the device");
  }
};

DeviceWeights::DeviceWeights() : state_(std::make_unique<State>()) {}
DeviceWeights::~DeviceWeights() = default;

int64_t DeviceWeights::device_bytes(const Weight& host) {
  if (!host) return 0;
  return (host.rows * row_bytes(host) + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t DeviceWeights::bytes() const { return state_->taken; }

Weight DeviceWeights::upload(const Weight& host) {
  if (!host) return host;
  State& s = *state_;
  if (const auto known = s.uploaded.find(host.data); known != s.uploaded.end()) return known->second;
  // Kernels read 8 columns at a time.
  if (!is_vector(host) && host.cols % 8 != 0) {
    fail("cuda backend: a matrix of {} columns, expected a multiple of 8", host.cols);
  }
  const bool floats = host.type == GGML_TYPE_F32 || host.type == GGML_TYPE_BF16;
  if (!floats && !ggml_get_type_traits(host.type)->to_float) {
    fail("cuda backend: weights of type {} cannot be converted to bf16", ggml_type_name(host.type));
  }
  Weight result = host;
  if (!is_vector(host)) result.type = GGML_TYPE_BF16;
  std::byte* const to = s.allocate(host.rows * row_bytes(host));
  s.send(host, to);
  result.data = to;
  return s.uploaded[host.data] = result;
}

}  // namespace tidal::cuda
