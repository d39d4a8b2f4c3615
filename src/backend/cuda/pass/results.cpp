#include "backend/cuda/pass/results.h"

#include <algorithm>

#include "backend/cuda/pass/likely_tokens.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"

namespace tidal::cuda {
namespace {

size_t logits_bytes(int vocab, int rows) { return sizeof(float) * static_cast<size_t>(rows) * vocab; }
size_t likely_bytes(int rows) { return sizeof(LikelyToken) * static_cast<size_t>(rows) * kMostLikely; }

void copy(const Buffer& to, const Buffer& from, size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), bytes, cudaMemcpyDeviceToHost, stream), "copying logits");
}

}  // namespace

void Results::reserve(int vocab, int max_rows) {
  const int rows = std::min(kLogitRows, max_rows);
  const auto grow = [](Buffer& buffer, size_t bytes, auto allocate, const char* what) {
    if (buffer.bytes() < bytes) buffer = allocate(bytes, what);
  };
  grow(device_logits_, logits_bytes(vocab, rows), allocate_device, "logits");
  grow(host_logits_, logits_bytes(vocab, rows), allocate_pinned, "logits");
  grow(device_likely_, likely_bytes(rows), allocate_device, "most likely tokens");
  grow(host_likely_, likely_bytes(rows), allocate_pinned, "most likely tokens");
  grow(likely_keys_, likely_workspace(rows, vocab), allocate_device, "most likely tokens");
}

size_t Results::bytes(int vocab, int max_rows) {
  const int rows = std::min(kLogitRows, max_rows);
  return logits_bytes(vocab, rows) + likely_bytes(rows) + likely_workspace(rows, vocab);
}

void Results::launch(const LogitsOp& op, cudaStream_t stream) const {
  const auto rows = static_cast<size_t>(op.rows);
  if (op.likely == 0) {
    return copy(host_logits_, device_logits_, sizeof(float) * static_cast<size_t>(op.output.rows) * rows, stream);
  }
  launch_likely({.logits = device_logits_.as<float>(),
                 .rows = op.rows,
                 .vocab = static_cast<int>(op.output.rows),
                 .count = op.likely,
                 .keys = likely_keys_.as<uint64_t>(),
                 .out = device_likely_.as<LikelyToken>()},
                stream);
  copy(host_likely_, device_likely_, sizeof(LikelyToken) * static_cast<size_t>(op.likely) * rows, stream);
}

void Results::read(std::span<float> logits) const {
  std::copy_n(host_logits_.as<float>(), logits.size(), logits.begin());
}

void Results::read(std::span<LikelyToken> likely) const {
  std::copy_n(host_likely_.as<LikelyToken>(), likely.size(), likely.begin());
}

}  // namespace tidal::cuda
