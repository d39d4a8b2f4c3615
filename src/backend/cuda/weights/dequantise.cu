#include <string>

#include "backend/cuda/runtime/error.h"
#include "backend/cuda/weights/dequantise.h"
#include "backend/cuda/weights/dequantise_blocks.cuh"
#include "backend/cuda/weights/round_bits.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread makes 8 elements: 16 bytes, neighbours beside each other.
template <typename Type>
__global__ void __launch_bounds__(kThreads) dequantise_kernel(const uint8_t* from, int64_t eights, uint4* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= eights) return;
  constexpr int kPerBlock = Type::kElements / 8;
  float values[8];
  Type::eight(from + i / kPerBlock * Type::kBytes, static_cast<int>(i % kPerBlock) * 8, values);
  uint32_t words[4];
  for (int w = 0; w < 4; ++w) words[w] = to_bf16_bits(values[2 * w]) | to_bf16_bits(values[2 * w + 1]) << 16;
  to[i] = make_uint4(words[0], words[1], words[2], words[3]);
}

using Launch = void (*)(const std::byte* from, int64_t count, Bf16* to, cudaStream_t stream);

template <typename Type>
void launch(const std::byte* from, int64_t count, Bf16* to, cudaStream_t stream) {
  const int64_t eights = count / 8;
  const auto blocks = static_cast<unsigned>((eights + kThreads - 1) / kThreads);
  dequantise_kernel<Type>
      <<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const uint8_t*>(from), eights, reinterpret_cast<uint4*>(to));
  check_launch("dequantising weights");
}

/// Null for a type that has no kernel.
Launch launch_of(ggml_type type) {
  switch (type) {
    case GGML_TYPE_F32: return launch<Float32>;
    case GGML_TYPE_F16: return launch<Float16>;
    case GGML_TYPE_Q4_0: return launch<Q4_0>;
    case GGML_TYPE_Q4_1: return launch<Q4_1>;
    case GGML_TYPE_Q5_0: return launch<Q5_0>;
    case GGML_TYPE_Q5_1: return launch<Q5_1>;
    case GGML_TYPE_Q8_0: return launch<Q8_0>;
    case GGML_TYPE_IQ4_NL: return launch<IQ4_NL>;
    case GGML_TYPE_IQ4_XS: return launch<IQ4_XS>;
    case GGML_TYPE_MXFP4: return launch<MXFP4>;
    case GGML_TYPE_Q2_K: return launch<Q2_K>;
    case GGML_TYPE_Q3_K: return launch<Q3_K>;
    case GGML_TYPE_Q4_K: return launch<Q4_K>;
    case GGML_TYPE_Q5_K: return launch<Q5_K>;
    case GGML_TYPE_Q6_K: return launch<Q6_K>;
    default: return nullptr;
  }
}

}  // namespace

bool dequantises(ggml_type type) { return launch_of(type) != nullptr; }

void launch_dequantise(ggml_type type, const std::byte* from, int64_t count, Bf16* to, cudaStream_t stream) {
  const Launch launch = launch_of(type);
  if (!launch) fail_with(std::string("cuda backend: no kernel dequantises weights of type ") + ggml_type_name(type));
  if (count > 0) launch(from, count, to, stream);
}

}  // namespace tidal::cuda
