// The skinny product of 2 to 16 packed rows with a quantised matrix: what matmul_skinny.cuh does, to the same bits, but
// a block's two groups of 8 warps, each with a tile of 16 rows of W, have x in common.
//
// Warp w of either group multiplies the units u with u mod 8 = w, so the two of them need the same units of x. These
// come by bulk copies, which no warp waits for until it needs them (before compute capability 9.0 by cp.async of both
// warps). x lies whole in shared memory, and the first tile takes it in parts as they arrive; or in a ring of its own
// beside that of W, where the two warps wait for each other (a barrier of 64 threads) before a place is filled again.
#pragma once

#include "backend/cuda/products/matmul_launch.cuh"
#include "backend/cuda/products/matmul_tiles.cuh"

namespace tidal::cuda::skinny {

/// Rows of a block of eight that are multiplied with others: a power of 2.
__host__ __device__ inline int packed_room(int rows) { return rows > 4 ? 8 : rows > 2 ? 4 : 2; }

/// A lane's part of a unit of x in shared memory: NT blocks of packed_rows.cuh, of `room` rows each. A lane of a row
/// behind the last one has another row's.
struct PackedUnit {
  const char *even, *odd, *sum, *scales;  // runs 0 and 2, 1 and 3

  __device__ PackedUnit(const char* unit, int room, int lane) {
    const int row = lane / 4 & (room - 1), pair = lane % 4 * 2 & (room - 1), half = row % 2 * 64;
    even = unit + row * 256 + half + lane % 4 * 16;
    odd = even + 64 - 2 * half;
    sum = unit + room * 256 + row * 32 + row / 4 * 16 + lane % 4 * 4;
    scales = unit + room * 256 + pair * 32 + (1 - pair / 4) * 16;
  }
  __device__ void move(int bytes) {
    even += bytes;
    odd += bytes;
    sum += bytes;
    scales += bytes;
  }
  __device__ uint4 numbers(int n, int run) const {
    return *reinterpret_cast<const uint4*>((run % 2 ? odd : even) + run / 2 * 128 + n * kPackedBlock);
  }
  __device__ uint32_t sums(int n) const { return *reinterpret_cast<const uint32_t*>(sum + n * kPackedBlock); }
  __device__ float scale(int n, int i) const {
    return *reinterpret_cast<const float*>(scales + i * 32 + n * kPackedBlock);
  }
};

/// Something that is counted in bytes as it arrives in shared memory.
struct Arrival {
  uint64_t* barrier;

  __device__ void begin() const {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  }
  __device__ void expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
  }
  /// A multiple of 16 bytes, by one thread.
  __device__ void copy(void* to, const void* from, int bytes) const {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
  }
  __device__ void wait(int parity) const {
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
            shared_address(barrier)),
        "r"(parity)
        : "memory");
  }
};

/// Whether x comes by bulk copies: from 9 rows on, since fewer are there sooner by cp.async.
#if __CUDA_ARCH__ >= 900
template <int NT>
inline constexpr bool kBulk = NT > 1;
#else
template <int NT>
inline constexpr bool kBulk = false;
#endif

/// How units of x come to shared memory: NT blocks of `room` rows.
template <int NT>
struct UnitCopy {
  const char* packed;
  int64_t eight;  // bytes of eight rows
  int room;

  __device__ UnitCopy(const std::byte* packed, int units, int room)
      : packed(reinterpret_cast<const char*>(packed)), eight(static_cast<int64_t>(units) * kPackedBlock), room(room) {}
  /// By one thread, rows of whole blocks.
  __device__ void copy(char* to, int unit, const Arrival& arrival) const {
    const char* from = packed + static_cast<int64_t>(unit) * kPackedBlock;
#pragma unroll
    for (int n = 0; n < NT; ++n) arrival.copy(to + n * kPackedBlock, from + n * eight, kPackedBlock);
  }
  /// By the warps of a pair; `thread` of 64.
  __device__ void copy(char* to, int unit, int thread) const {
    const char* from = packed + static_cast<int64_t>(unit) * kPackedBlock;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int k = 0; k < (kPackedBlock / 16 + 63) / 64; ++k) {
        const int i = k * 64 + thread;
        if (i >= room * 18) break;
        const int behind = i < room * 16 ? 0 : kPackedNumbers - room * 256;
        copy_16(to + n * kPackedBlock + i * 16, from + n * eight + i * 16 + behind, true);
      }
    }
  }
};

/// Parts in which x arrives where it lies whole in shared memory.
inline constexpr int kXParts = 4;

/// Shared memory of a variant; [..] is what lies there, in this order.
template <class T, int NT, int D, int kXSlots>
struct PackedLayout {
  static constexpr bool kStream = kXSlots > 0;
  static constexpr int kBuffers = NT == 1 && !kStream ? 2 : 1;  // of sums: with two, a tile needs one barrier
  static constexpr int kSlot = 2 * T::kBytes;
  static constexpr int kRing = 2 * kWarps * D * kSlot;                    // [group][warp][D]
  static constexpr int kXRing = kWarps * kXSlots * 8 * NT * kPackedUnit;  // [warp][slot]
  static constexpr int kReduce = 2 * kBuffers * kWarps * NT * 128 * 4;    // [group][buffer][warp]
  static constexpr int kFactors = 8 * NT * 4;
  static constexpr int kArrivals = kStream ? kXSlots : kXParts;  // [warp]
  static constexpr int kFixed = kRing + kXRing + kReduce + kFactors + kWarps * kArrivals * 8;
};

/// Registers are bounded (120 of the 128 there are for a thread), so that a block that packs rows for the next product
/// finds room beside. Epilogue E: as skinny_kernel() says, of one tile. kXSlots: of the ring of x; 0: x lies whole in
/// shared memory.
template <class T, class E, int NT, int D, int kXSlots>
__global__ void __maxnreg__(120)
    packed_kernel(const __grid_constant__ typename E::Params p, int tiles, int units, int room) {
  using L = PackedLayout<T, NT, D, kXSlots>;
  static_assert(E::kM == 1 && E::kItems == 1 && !E::kWaits && D <= 4);
  constexpr bool kStream = L::kStream;
  extern __shared__ uint4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  const int group = threadIdx.x / kRowThreads, thread = threadIdx.x % kRowThreads;
  const int warp = thread / 32, lane = thread % 32;
  char* ring = base + (group * kWarps + warp) * D * L::kSlot;
  float* reduce = reinterpret_cast<float*>(base + L::kRing + L::kXRing) + group * (L::kReduce / 8);
  float* factors = reinterpret_cast<float*>(base + L::kRing + L::kXRing + L::kReduce);
  const int unit_bytes = NT * room * kPackedUnit;
  char* xs = kStream ? base + L::kRing + warp * kXSlots * unit_bytes : base + L::kFixed + warp * unit_bytes;

  const int own = units > warp ? (units - warp + kWarps - 1) / kWarps : 0;  // units of this warp
  const int first_tile = static_cast<int>(blockIdx.x) * 2 + group, next_tile = static_cast<int>(gridDim.x) * 2;
  const auto wait_for_pair = [&] { asm volatile("bar.sync %0, 64;" ::"r"(warp + 3) : "memory"); };
  const auto synchronise_group = [&] {
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kRowThreads) : "memory");
  };

  // The copying end of the ring.
  int to_tile = own > 0 ? first_tile : tiles, to_unit = 0;
  const char *low = nullptr, *high = nullptr, *side = nullptr;
  constexpr int kSidePieces = 2 * T::kSide / 16;  // of both tiles, behind their codes
  const int64_t across = static_cast<int64_t>(units) * T::kBytes;
  const auto aim = [&] {
    const RowOf first = E::row(p, to_tile, 0, 0), second = E::row(p, to_tile, 0, 8);
    const int64_t at = warp * T::kBytes + lane * 16;
    low = reinterpret_cast<const char*>(first.matrix) + first.row / kTileRows * across + at;
    high = reinterpret_cast<const char*>(second.matrix) + second.row / kTileRows * across + at;
    side = (lane < kSidePieces / 2 ? low : high - T::kSide) + T::kCodes;
  };
  const int side_to = T::kCodes + lane * 16 + (lane < kSidePieces / 2 ? 0 : T::kBytes - T::kSide);
  const auto copy_w = [&](char* slot) {
    if (to_tile >= tiles) return;
    char* to = slot + lane * 16;
#pragma unroll
    for (int i = 0; i < T::kCodes; i += 512) {
      copy_16(to + i, low + i, true);
      copy_16(to + T::kBytes + i, high + i, true);
    }
    if (kSidePieces >= 32 || lane < kSidePieces) copy_16(slot + side_to, side, true);
    if constexpr (kSidePieces > 32) {
      static_assert(kSidePieces <= 64 && (kSidePieces / 2 <= 32));
      const int piece = lane + 32;  // of the second tile's
      if (piece < kSidePieces) {
        const int at = T::kCodes + (piece - kSidePieces / 2) * 16;
        copy_16(slot + T::kBytes + at, high + (at - lane * 16), true);
      }
    }
    low += kWarps * T::kBytes;
    high += kWarps * T::kBytes;
    side += kWarps * T::kBytes;
    if (++to_unit == own) {
      to_unit = 0;
      to_tile += next_tile;
      if (to_tile < tiles) aim();
    }
  };

  auto* barriers = reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(factors) + L::kFactors);
  const auto arrival = [&](int which) { return Arrival{barriers + warp * L::kArrivals + which}; };
  if (to_tile < tiles) aim();
#pragma unroll
  for (int s = 0; s < D; ++s) {
    copy_w(ring + s * L::kSlot);
    commit();
  }
  if constexpr (kBulk<NT>) {
    if (threadIdx.x < kWarps * L::kArrivals) Arrival{barriers + threadIdx.x}.begin();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
  }
  wait_for_previous();
  // Only now: attention may read what kernels before this one wrote when it starts.
  let_next_start();
  const UnitCopy<NT> x_copy(p.in.packed, units, room);
  const int first_of_pair = first_tile - group;
  // The ring of x: what is copied next.
  int x_left = kStream ? (tiles - first_of_pair + next_tile - 1) / next_tile * own : 0, x_unit = 0, x_to = 0;
  const auto copy_x = [&] {
    if (x_left == 0) return;
    --x_left;
    char* to = xs + x_to * unit_bytes;
    const int unit = x_unit * kWarps + warp;
    if constexpr (!kBulk<NT>) {
      x_copy.copy(to, unit, group * 32 + lane);
    } else if (group == 0 && lane == 0) {
      arrival(x_to).expect(unit_bytes);
      x_copy.copy(to, unit, arrival(x_to));
    }
    x_unit = x_unit + 1 == own ? 0 : x_unit + 1;
    x_to = x_to + 1 == kXSlots ? 0 : x_to + 1;
  };
  const int part_units = (own + kXParts - 1) / kXParts;
  const auto copy_first = [&] {
    if constexpr (kStream) {
#pragma unroll
      for (int s = 0; s < kXSlots - 1; ++s) {
        copy_x();
        if constexpr (!kBulk<NT>) commit();
      }
    } else if (!kBulk<NT> || (group == 0 && lane == 0)) {
#pragma unroll 1
      for (int part = 0, u = 0; part < kXParts; ++part) {
        const int end = min(own, u + part_units);
        if constexpr (kBulk<NT>) {
          if (u < end) arrival(part).expect((end - u) * unit_bytes);
        }
        for (; u < end; ++u) {
          char* to = xs + u * kWarps * unit_bytes;
          if constexpr (kBulk<NT>) {
            x_copy.copy(to, u * kWarps + warp, arrival(part));
          } else {
            x_copy.copy(to, u * kWarps + warp, group * 32 + lane);
          }
        }
        if constexpr (!kBulk<NT>) commit();
      }
    }
  };
  // The first group makes the factors, of what it asks for before x. They are read behind the first tile's barrier.
  if (group == 0 && p.in.squares && warp < p.rows) {
    norm_factors<NT, kWarps>(p.in.squares, warp, p.rows, p.cols, p.in.epsilon, factors, copy_first);
  } else {
    const bool has = group == 0 && !p.in.squares && thread < p.rows;
    const float factor = has && p.in.factors ? __ldcg(p.in.factors + thread) : 1.0f;
    copy_first();
    if (has) factors[thread] = factor;
  }

  char* slot = ring;
  int buffer = 0, x_slot = 0;
  [[maybe_unused]] int x_parity = 0;
  [[maybe_unused]] int part = 0, part_from = 0;  // of x: what arrives next
  bool first = true;
  for (int pair = first_of_pair; pair < tiles; pair += next_tile) {
    const int tile = pair + group;
    const bool live = tile < tiles;
    if (!kStream && !live && !first) break;
    constexpr int kItems = NT * 128;  // results of a tile
    constexpr int kEach = (kItems + kRowThreads - 1) / kRowThreads;
    typename E::Operands operands[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = thread + i * kRowThreads;
      if (live && item < kItems) operands[i] = E::template load<NT>(p, tile, item);
    }

    float4 sums[NT] = {};
    PackedUnit x(xs, room, lane);
    if constexpr (kStream) x.move(x_slot * unit_bytes);
    for (int u = 0; u < own; ++u) {
      if constexpr (kStream) {
        // Without bulk copies x and W come in the same groups.
        wait_copies<(kBulk<NT> || D < kXSlots ? D - 1 : kXSlots - 2)>();
        wait_for_pair();
        copy_x();  // where the unit before was
        if constexpr (kBulk<NT>) arrival(x_slot).wait(x_parity);
      } else if constexpr (kBulk<NT>) {
        wait_copies<D - 1>();
        if (u == part_from) {  // not after the first tile: all are there
          arrival(part++).wait(0);
          part_from += part_units;
        }
        __syncwarp();
      } else if (first) {
        // Behind the last part there are as many groups as iterations were; so at least the part of this unit is there.
        if (u < D) {
          wait_copies<kXParts - 1>();
        } else {
          wait_copies<D - 1>();
        }
        wait_for_pair();
      } else {
        wait_copies<D - 1>();
        __syncwarp();
      }
      if (live) {
        multiply_tiles<T, false>(sums, slot, lane, x);
        __syncwarp();
        copy_w(slot);
      }
      commit();
      slot = slot == ring + (D - 1) * L::kSlot ? ring : slot + L::kSlot;
      if constexpr (kStream) {
        const bool last = x_slot == kXSlots - 1;
        x.move(last ? (1 - kXSlots) * unit_bytes : unit_bytes);
        x_slot = last ? 0 : x_slot + 1;
        x_parity ^= last;
      } else {
        x.move(kWarps * unit_bytes);
      }
    }
    if (first) __syncthreads();  // factors
    first = false;
    if (!live) break;  // the other group's was the last one

    float* mine = reduce + buffer * kWarps * kItems;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      *reinterpret_cast<float4*>(mine + warp * kItems + n * 128 + sum_place(lane * 4)) = sums[n];
    }
    synchronise_group();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = thread + i * kRowThreads;
      if (item >= kItems) break;
      const float* parts = mine + sum_place(E::sum_of(item));
      float sum = parts[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += parts[w * kItems];
      E::template store<NT>(p, tile, item, &sum, factors, operands[i]);
    }
    if constexpr (L::kBuffers == 1) synchronise_group();
    if constexpr (L::kBuffers == 2) buffer ^= 1;
  }
}

template <class T, class E, int NT, int D, int kXSlots>
void launch_packed(const typename E::Params& params, int bytes, cudaStream_t stream) {
  const auto kernel = packed_kernel<T, E, NT, D, kXSlots>;
  static const cudaError_t allowed = allow_shared_memory(reinterpret_cast<const void*>(kernel));
  check(allowed, "a product of packed rows");
  const int tiles = E::tiles(params);
  // No multiprocessor gets two blocks: they could be of one product and leave another multiprocessor idle.
  launch("a product of packed rows", Start::Early, kernel, dim3(std::min((tiles + 1) / 2, multiprocessors())),
         dim3(2 * kRowThreads), static_cast<size_t>(std::max(bytes, shared_memory_limit() / 2 + 1024)), stream, params,
         tiles, packed_units(params.cols), packed_room(params.rows));
}

}  // namespace tidal::cuda::skinny
