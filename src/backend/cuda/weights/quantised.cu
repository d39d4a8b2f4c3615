#include "backend/cuda/weights/quantised.h"

#include <cuda_bf16.h>

#include <string>

#include "backend/cuda/runtime/bf16_pair.cuh"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

/// A thread makes what a lane has of a tile; the first of a row's four its scales, too.
template <class T>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const uint8_t* from, int64_t rows, int64_t cols, int64_t across, int64_t lanes, uint8_t* to) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= lanes) return;
  const int lane = static_cast<int>(index % 32), g = lane / 4, t = lane % 4;
  const int64_t tile = index / 32, row = tile / across * kTileRows + g, first = tile % across * kTileCols;
  const bool inside = row < rows;
  const uint8_t* source = from + row * (cols / T::kBlock) * T::kBlockBytes;
  const auto block_of = [&](int64_t column) { return source + column / T::kBlock * T::kBlockBytes; };
  uint8_t* out = to + tile * T::kBytes;
  uint32_t codes[8] = {}, low[2] = {};
  for (int i = 0; i < 32; ++i) {
    const int64_t column = first + tiles::column(t, i);
    uint32_t code = 0;
    if (inside && column < cols) code = T::code(block_of(column), static_cast<int>(column % T::kBlock));
    if constexpr (T::kBits == 8) {
      codes[i / 4] |= code << i % 4 * 8;
      continue;
    }
    const int run = i / 8, byte = i % 4, second = i / 4 % 2;
    codes[run] |= (code >> (T::kBits - 4)) << T::nibble(i % 8);
    if constexpr (T::kBits == 5) low[0] |= (code & 1) << (8 * byte + 2 * run + second);
    if constexpr (T::kBits == 6) low[run / 2] |= (code & 3) << (8 * byte + 4 * (run % 2) + 2 * second);
  }
  for (int part = 0; part < T::kCodes / 512; ++part) {
    const uint32_t* words = codes + 4 * part;
    reinterpret_cast<uint4*>(out)[part * 32 + lane] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  for (int part = 0; part < T::kLow / 128; ++part) {
    reinterpret_cast<uint32_t*>(out + T::kCodes + T::kScaleBytes)[part * 32 + lane] = low[part];
  }
  if (t != 0) return;
  uint8_t *scales = out + T::kCodes + g * T::kScaleRow, *outer = out + T::kCodes + 8 * T::kScaleRow + g * 4;
  constexpr int kRun = T::kScaleRow / 4;
  for (int run = 0; run < 4; ++run) {
    const int64_t column = first + run * 32;
    if (inside && column < cols) {
      T::scales(block_of(column), static_cast<int>(column % T::kBlock), scales + run * kRun, outer);
    } else {
      for (int b = 0; b < kRun; ++b) scales[run * kRun + b] = 0;
      if (T::kNested && run == 0) {
        for (int b = 0; b < 4; ++b) outer[b] = 0;
      }
    }
  }
}

/// A warp a tile: a lane makes its 32 elements. The grid is `groups` of eight tiles across for every tile down, from
/// that of row `first` on.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const uint8_t* matrix, int64_t first, int64_t count, int cols, int across, unsigned groups, Bf16* to) {
  const int tile = static_cast<int>(blockIdx.x % groups * kWarps + threadIdx.x / 32), lane = threadIdx.x % 32;
  const int64_t down = first / kTileRows + blockIdx.x / groups, row = down * kTileRows + lane / 4 - first;
  if (tile >= across || row < 0 || row >= count) return;
  const uint8_t* const from = matrix + (down * across + tile) * T::kBytes;
  auto* const out = reinterpret_cast<uint2*>(to + row * cols + tile * kTileCols);
#pragma unroll
  for (int run = 0; run < kTileCols / 32; ++run) {
    if (tile * kTileCols + run * 32 >= cols) break;
    float values[8];
    T::eight(from, lane, run, values);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* four = values + 4 * half;
      out[tiles::column(lane % 4, run * 8 + 4 * half) / 4] =
          make_uint2(bf16_pair(four[0], four[1]), bf16_pair(four[2], four[3]));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    tokens_kernel(const uint8_t* matrix, const int32_t* tokens, int cols, int across, float* x) {
  let_next_start();
  wait_for_previous();
  const int64_t source = tokens[blockIdx.x];
  for (int i = threadIdx.x; i < cols / 8; i += kThreads) {
    const int t = i % 4, run = i / 4 % 4, tile = i / 16;
    float values[8];
    T::eight(matrix + (source / kTileRows * across + tile) * T::kBytes, static_cast<int>(source % kTileRows) * 4 + t,
             run, values);
    float* to = x + int64_t{blockIdx.x} * cols + tile * kTileCols;
    for (int k = 0; k < 8; ++k) to[tiles::column(t, run * 8 + k)] = values[k];
  }
}

const uint8_t* bytes_of(const std::byte* data) { return reinterpret_cast<const uint8_t*>(data); }
unsigned blocks_of(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }
int64_t across_of(int64_t cols) { return (cols + kTileCols - 1) / kTileCols; }

template <typename Body>
void with(ggml_type type, Body&& body) {
  if (!tiles::with_type(type, body)) {
    fail_with(std::string("cuda backend: weights of type ") + ggml_type_name(type) + " do not stay quantised");
  }
}

}  // namespace

bool stays_quantised(ggml_type type) {
  return tiles::with_type(type, [](auto) {});
}

int tile_bytes(ggml_type type) {
  int result = 0;
  with(type, [&](auto t) { result = decltype(t)::kBytes; });
  return result;
}

void launch_tile(ggml_type type, const std::byte* from, int64_t rows, int64_t cols, std::byte* to,
                 cudaStream_t stream) {
  const int64_t across = across_of(cols), lanes = (rows + kTileRows - 1) / kTileRows * across * 32;
  if (lanes == 0) return;
  with(type, [&](auto t) {
    tile_kernel<decltype(t)><<<blocks_of(lanes), kThreads, 0, stream>>>(bytes_of(from), rows, cols, across, lanes,
                                                                        reinterpret_cast<uint8_t*>(to));
  });
  check_launch("laying weights out");
}

void launch_dequantise_rows(const DequantiseRows& p, cudaStream_t stream) {
  if (p.count == 0) return;
  const int64_t across = across_of(p.cols);
  const int64_t down = (p.first + p.count - 1) / kTileRows - p.first / kTileRows + 1;
  const unsigned groups = blocks_of(across * 32);
  with(p.type, [&](auto t) {
    rows_kernel<decltype(t)><<<groups* static_cast<unsigned>(down), kThreads, 0, stream>>>(
        bytes_of(p.matrix), p.first, p.count, static_cast<int>(p.cols), static_cast<int>(across), groups, p.to);
  });
  check_launch("dequantising a panel of weights");
}

void launch_dequantise_tokens(const DequantiseTokens& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  with(p.type, [&](auto t) {
    launch("the embedding", Start::Early, tokens_kernel<decltype(t)>, dim3(p.rows), dim3(kThreads), 0, stream,
           bytes_of(p.matrix), p.tokens, static_cast<int>(p.cols), static_cast<int>(across_of(p.cols)), p.x);
  });
}

}  // namespace tidal::cuda
