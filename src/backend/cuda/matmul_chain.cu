// The products between two attentions in one launch. A block asks for the next product's W while it still multiplies
// and while it waits for the other blocks, so that memory is never idle: D 16 KiB a multiprocessor are on their way.
#include <algorithm>

#include "backend/cuda/device.h"
#include "backend/cuda/matmul_epilogues.cuh"

namespace tidal::cuda {
namespace {

using namespace skinny;  // NOLINT: the kernel's own names

constexpr int kPhases = 4;

template <int D>
using ChainLayout = Layout<1, 1, D, false>;

__device__ inline unsigned long long arrivals(const unsigned long long* counter) {
  unsigned long long value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(counter) : "memory");
  return value;
}

/// Rows that are bf16 already, past the ring's groups.
__device__ inline void load_rounded(const SkinnyInput& in, int rows, int cols, int units, __nv_bfloat16* xs,
                                    float* factors) {
  const int stride = x_stride(units), padding = units * kUnit - cols, pieces = cols / 8, all = rows * pieces;
  for (int i = threadIdx.x; i < rows * padding; i += kRowThreads) {
    xs[i / padding * stride + cols + i % padding] = __float2bfloat16_rn(0.0f);
  }
  const auto* from = reinterpret_cast<const uint4*>(in.rounded);
  constexpr int kAhead = 6;
  for (int first = threadIdx.x; first < all; first += kAhead * kRowThreads) {
    uint4 v[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = first + k * kRowThreads;
      if (i < all) v[k] = __ldcg(from + i);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = first + k * kRowThreads;
      if (i < all) *reinterpret_cast<uint4*>(xs + i / pieces * stride + i % pieces * 8) = v[k];
    }
  }
  if (threadIdx.x < rows) factors[threadIdx.x] = 1;
  __syncthreads();
}

/// A lane's ring: copies run ahead of products, over the ends of phases.
template <int D>
struct ChainRing {
  const SkinnyChain& p;
  uint4* ring;
  int warp, g, t;
  // What is copied next.
  int phase = -1, phases, tile = 0, tiles = 0, unit = 0, own = 0, cols = 0, to_slot = 0;
  const __nv_bfloat16 *low = nullptr, *high = nullptr;
  int slot = 0;  // what is multiplied next

  __device__ ChainRing(const SkinnyChain& p, uint4* ring)
      : p(p),
        ring(ring),
        warp(threadIdx.x / 32),
        g(threadIdx.x % 32 / 4),
        t(threadIdx.x % 4),
        phases(p.with_qkv ? kPhases : kPhases - 1) {}

  __device__ int own_units(int columns) const {
    const int units = (columns + kUnit - 1) / kUnit;
    return units > warp ? (units - warp + kWarps - 1) / kWarps : 0;
  }
  __device__ void aim() {
    const auto take = [&](auto epilogue, const auto& params) {
      using E = decltype(epilogue);
      low = E::row(params, tile, 0, g);
      high = E::row(params, tile, 0, g + 8);
    };
    switch (phase) {
      case 0: return take(RowsEpilogue<1>{}, p.project);
      case 1: return take(GateUpEpilogue{}, p.both);
      case 2: return take(RowsEpilogue<1>{}, p.down);
      default: return take(QkvEpilogue{}, p.qkv);
    }
  }
  /// To the next phase in which this warp has something to copy.
  __device__ void next_phase() {
    do {
      if (++phase >= phases) {
        return prefetch(p.with_qkv ? p.qkv.next : p.down.next, blockIdx.x * kWarps + warp, gridDim.x * kWarps,
                        threadIdx.x % 32);
      }
      switch (phase) {
        case 0: tiles = RowsEpilogue<1>::tiles(p.project), cols = p.project.cols; break;
        case 1: tiles = GateUpEpilogue::tiles(p.both), cols = p.both.cols; break;
        case 2: tiles = RowsEpilogue<1>::tiles(p.down), cols = p.down.cols; break;
        default: tiles = QkvEpilogue::tiles(p.qkv), cols = p.qkv.cols; break;
      }
      tile = blockIdx.x;
      unit = 0;
      own = own_units(cols);
    } while (own == 0 || tile >= tiles);
    aim();
  }
  /// Asks for one slot and ends a group of copies, even if there is nothing left.
  __device__ void copy() {
    if (phase < phases) {
      const int col = (unit * kWarps + warp) * kUnit + t * 8;
      const bool first = col < cols, second = col + 32 < cols;
      uint4* to = ring + to_slot * 128;
      copy_16(to, first ? low + col : low, first);
      copy_16(to + 32, second ? low + col + 32 : low, second);
      copy_16(to + 64, first ? high + col : high, first);
      copy_16(to + 96, second ? high + col + 32 : high, second);
      to_slot = to_slot + 1 == D ? 0 : to_slot + 1;
      if (++unit == own) {
        unit = 0;
        tile += gridDim.x;
        if (tile < tiles) {
          aim();
        } else {
          next_phase();
        }
      }
    }
    commit();
  }
};

/// One product: this block's tiles. The same arithmetic in the same order as skinny_kernel.
template <class E, int D>
__device__ inline void run_phase(const typename E::Params& p, ChainRing<D>& from, const __nv_bfloat16* xs,
                                 const float* factors, float* reduce, int& buffer) {
  using L = ChainLayout<D>;
  const int warp = from.warp, lane = threadIdx.x % 32, g = from.g, t = from.t, rows = p.rows;
  const int stride = x_stride((p.cols + kUnit - 1) / kUnit), own = from.own_units(p.cols), tiles = E::tiles(p);
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    typename E::Operands operands;
    if (threadIdx.x < 128) operands = E::template load<1>(p, tile, threadIdx.x);
    float4 sum = {};
    for (int u = 0; u < own; ++u) {
      uint4 x0 = make_uint4(0, 0, 0, 0), x1 = x0;
      if (g < rows) {
        const auto* x = reinterpret_cast<const uint4*>(xs + g * stride + (u * kWarps + warp) * kUnit + t * 8);
        x0 = x[0];
        x1 = x[4];
      }
      wait_copies<D - 1>();
      const uint4* at = from.ring + from.slot * 128;
      const uint4 a0 = at[0], a1 = at[32], b0 = at[64], b1 = at[96];
      multiply(sum, a0.x, b0.x, a0.y, b0.y, x0.x, x0.y);
      multiply(sum, a0.z, b0.z, a0.w, b0.w, x0.z, x0.w);
      multiply(sum, a1.x, b1.x, a1.y, b1.y, x1.x, x1.y);
      multiply(sum, a1.z, b1.z, a1.w, b1.w, x1.z, x1.w);
      from.slot = from.slot + 1 == D ? 0 : from.slot + 1;
      from.copy();
    }
    float* mine = reduce + buffer * kWarps * L::kSums;
    *reinterpret_cast<float4*>(mine + warp * L::kSums + lane * 4) = sum;
    __syncthreads();
    if (threadIdx.x < 128) {
      float result = mine[threadIdx.x];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) result += mine[w * L::kSums + threadIdx.x];
      E::template store<1>(p, tile, threadIdx.x, &result, factors, operands);
    }
    buffer ^= 1;
  }
}

template <int D>
__global__ void __launch_bounds__(kRowThreads, 1) chain_kernel(const __grid_constant__ SkinnyChain p) {
  using L = ChainLayout<D>;
  static_assert(L::kBuffers == 2);
  extern __shared__ uint4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  float* reduce = reinterpret_cast<float*>(base + L::kRing);
  float* factors = reinterpret_cast<float*>(base + L::kRing + L::kReduce);
  float* squares = factors + 8;
  auto* xs = reinterpret_cast<__nv_bfloat16*>(base + L::kFixed);

  let_next_start();
  ChainRing<D> ring(p, shared + threadIdx.x / 32 * D * 128 + threadIdx.x % 32);
  ring.next_phase();
#pragma unroll 1
  for (int s = 0; s < D; ++s) ring.copy();
  wait_for_previous();

  // No barrier of this launch is complete before this block has come to it, so the count is between two multiples.
  unsigned long long target = 0;
  if (threadIdx.x == 0) {
    const unsigned long long now = arrivals(p.arrived);
    target = now - now % gridDim.x;
  }
  const auto wait_for_all = [&] {
    __syncthreads();
    if (threadIdx.x == 0) {
      target += gridDim.x;
      __threadfence();
      asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(p.arrived), "l"(1ull) : "memory");
      while (arrivals(p.arrived) < target) {
      }
      __threadfence();
    }
    __syncthreads();
  };
  const auto load = [&](const SkinnyInput& in, int rows, int cols) {
    load_x<1>(in, rows, cols, (cols + kUnit - 1) / kUnit, xs, factors, squares);
    __syncthreads();  // factors
  };

  int buffer = 0;
  load(p.project.in, p.project.rows, p.project.cols);
  run_phase<RowsEpilogue<1>>(p.project, ring, xs, factors, reduce, buffer);
  wait_for_all();
  load(p.both.in, p.both.rows, p.both.cols);
  run_phase<GateUpEpilogue>(p.both, ring, xs, factors, reduce, buffer);
  wait_for_all();
  load_rounded(p.down.in, p.down.rows, p.down.cols, (p.down.cols + kUnit - 1) / kUnit, xs, factors);
  run_phase<RowsEpilogue<1>>(p.down, ring, xs, factors, reduce, buffer);
  if (!p.with_qkv) return;
  wait_for_all();
  load(p.qkv.in, p.qkv.rows, p.qkv.cols);
  run_phase<QkvEpilogue>(p.qkv, ring, xs, factors, reduce, buffer);
}

template <int D>
int chain_bytes(int rows, int widest) {
  return ChainLayout<D>::kFixed + rows * x_stride(units_of(widest)) * 2;
}

template <int D>
bool launch_depth(const SkinnyChain& params, int bytes, cudaStream_t stream) {
  if (bytes > shared_memory_limit()) return false;
  const auto kernel = chain_kernel<D>;
  static const cudaError_t allowed = allow_shared_memory(reinterpret_cast<const void*>(kernel));
  check(allowed, "a chain of products");
  launch("a chain of products", Start::Early, kernel, dim3(multiprocessors()), dim3(kRowThreads),
         static_cast<size_t>(std::max(bytes, shared_memory_limit() / 2 + 1024)), stream, params);
  return true;
}

}  // namespace

bool skinny_chains(int rows, int width, int q_width, int ffn) {
  return rows <= kFusedRows && chain_bytes<5>(rows, std::max({width, q_width, ffn})) <= shared_memory_limit();
}

void launch_skinny_chain(const SkinnyChain& params, cudaStream_t stream) {
  const int rows = params.project.rows, widest = std::max({params.project.cols, params.both.cols, params.down.cols});
  const int depth = skinny_tuning().depth;
  if (depth >= 10 && launch_depth<10>(params, chain_bytes<10>(rows, widest), stream)) return;
  if (depth >= 8 && launch_depth<8>(params, chain_bytes<8>(rows, widest), stream)) return;
  launch_depth<5>(params, chain_bytes<5>(rows, widest), stream);
}

}  // namespace tidal::cuda
