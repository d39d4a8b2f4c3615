// What a pass leaves on the host: logits, or the most likely tokens by them.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "backend/cuda/pass/op_list.h"
#include "backend/likely_tokens.h"
#include "core/buffer.h"

namespace tidal::cuda {

/// Most rows whose logits are made at once: bounds the memory for them.
inline constexpr int kLogitRows = 64;

/// Room for the results of a slice of a pass's logit rows, on the device and on the host.
class Results {
 public:
  /// Makes room; what was captured before is void.
  void reserve(int vocab, int max_rows);
  /// Bytes that reserve() takes on the device.
  static size_t bytes(int vocab, int max_rows);

  /// [kLogitRows, vocab], device memory: where the logits of a slice are to be made.
  float* logits() const { return device_logits_.as<float>(); }
  /// Launches what chooses the likely tokens of a slice, if the operation wants them, and the way to the host. Only
  /// launches: may be captured.
  void launch(const LogitsOp& op, cudaStream_t stream) const;

  /// The slice on the host, when the stream has got there: [rows, vocab] and [rows, count].
  void read(std::span<float> logits) const;
  void read(std::span<LikelyToken> likely) const;

 private:
  Buffer device_logits_, host_logits_;  // [kLogitRows, vocab]
  Buffer device_likely_, host_likely_;  // [kLogitRows, kMostLikely]
  Buffer likely_keys_;
};

}  // namespace tidal::cuda
