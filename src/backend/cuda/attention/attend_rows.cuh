// Attention of one row and up to 8 query heads of one KV head over a piece of its context, or of its selection.
//
// Grid (splits, tiles of heads, rows), 4 warps. A split takes a piece of the positions; every warp goes through every
// fourth slice of 16 positions of it by itself, without a barrier: rows [K | V] come to shared memory by cp.async,
// several slices ahead. Scores are K q^T by mma (positions are its 16 rows, heads its 8 columns), with q cut into three
// bf16 that add up to the float32 exactly; the output is V^T p^T, with p rounded to bf16. The warps' parts meet in
// shared memory, the splits' in global memory, where the last one to arrive merges them in order.
//
// How a row is cut depends on the number of its positions and of splits only, so its result is the same bits in any
// batch; products that the compiler might fuse in one instance and not in another are written out.
#pragma once

#include "backend/cuda/attention/attend_rows_q8.cuh"
#include "backend/cuda/attention/row_finder.cuh"
#include "backend/cuda/runtime/bf16_pair.cuh"

namespace tidal::cuda {

/// q.k in double: what the three parts of q cannot say when q or k is not finite (infinity times a part that is 0).
static __device__ __noinline__ float exact_score(const float* q, const __nv_bfloat16* key, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += static_cast<double>(q[d]) * static_cast<double>(__bfloat162float(key[d]));
  return static_cast<float>(sum);
}

/// Two float32 cut into three pairs of bf16: the upper, middle and lower 8 bits of their significands.
__device__ inline void cut(float2 value, uint32_t (&parts)[3]) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint32_t x = __float_as_uint(value.x) & 0xffff0000u, y = __float_as_uint(value.y) & 0xffff0000u;
    parts[i] = x >> 16 | y;
    value.x = __fsub_rn(value.x, __uint_as_float(x));
    value.y = __fsub_rn(value.y, __uint_as_float(y));
  }
}

/// Products of 16 positions' kOwn channels with those of each head: score[0], [1] of position g and heads 2t, 2t + 1,
/// score[2], [3] of position g + 8. channels: where these begin in the slice, in shared memory.
template <int kOwn, int kStride>
__device__ inline void slice_products(uint32_t channels, const Query<kOwn>& q, float (&score)[4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t keys = channels + lane % 16 * kStride + lane / 16 * 16;
  float upper[4] = {}, middle[4] = {}, lower[4] = {};
#pragma unroll
  for (int k = 0; k < kOwn / 16; ++k) {
    const Fragment a = load_matrix(keys + k * 32);
    multiply_add(upper, a, q[k][0][0], q[k][1][0]);
    multiply_add(middle, a, q[k][0][1], q[k][1][1]);
    multiply_add(lower, a, q[k][0][2], q[k][1][2]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) score[i] = __fadd_rn(upper[i], __fadd_rn(middle[i], lower[i]));
}

/// mend_scores() of a slice of bf16.
template <int kDim>
__device__ inline void mend_scores(const AttendRowsArgs& args, const AttendTask& task, const char* shared, int valid,
                                   float (&score)[4]) {
  mend_scores<kDim>(args, task, valid, score, [&](const float* q, int r) {
    const char* const key = shared + r * AttendSizes<kDim, KvType::Bf16>::kStride;
    return exact_score(q, reinterpret_cast<const __nv_bfloat16*>(key), kDim);
  });
}

/// Stores the scores of positions from `at` of the piece on.
__device__ inline void store_scores(const AttendRowsArgs& args, const AttendTask& task, int at, int valid,
                                    const float (&score)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float* const to =
      args.scores +
      (static_cast<int64_t>(task.run_row) * args.tiles.heads + task.first_head + 2 * t) * args.score_stride +
      task.begin + at + g;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (g + j / 2 * 8 < valid && 2 * t + j % 2 < task.heads) to[j % 2 * args.score_stride + j / 2 * 8] = score[j];
  }
}

/// Stores what positions are ranked by, where that is wanted, and gives scores their cap, where they have one.
__device__ inline void cap_scores(const AttendRowsArgs& args, const AttendTask& task, bool stores, int at, int valid,
                                  float (&score)[4]) {
  if (args.cap == 0) {
    if (stores) store_scores(args, task, at, valid, score);
    return;
  }
  if (stores && !task.ranks_capped) store_scores(args, task, at, valid, score);
#pragma unroll
  for (int i = 0; i < 4; ++i) score[i] = soft_capped(score[i], args.cap);
  if (stores && task.ranks_capped) store_scores(args, task, at, valid, score);
}

/// Adds positions [first, valid) of a slice to the softmax. p: their weights, as `score` has the scores.
template <int kOwn>
__device__ inline void weigh_slice(int first, int valid, float (&score)[4], float scale, WarpState<kOwn>& state,
                                   float (&p)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4;
  if (g < first || g >= valid) score[0] = score[1] = negative_infinity();
  if (g + 8 < first || g + 8 >= valid) score[2] = score[3] = negative_infinity();
  float highest[2];
  bool rises = false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    highest[h] = fmaxf(score[h], score[2 + h]);  // NaN loses
#pragma unroll
    for (int apart = 4; apart < 32; apart *= 2) {
      highest[h] = fmaxf(highest[h], __shfl_xor_sync(0xffffffffu, highest[h], apart));
    }
    rises = rises || highest[h] > state.maximum[h];
  }
  if (__any_sync(0xffffffffu, rises)) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!(highest[h] > state.maximum[h])) highest[h] = state.maximum[h];
      const float factor = highest[h] > state.maximum[h]
                               ? power_of_two(__fmul_rn(__fsub_rn(state.maximum[h], highest[h]), scale))
                               : 1.0f;
      state.maximum[h] = highest[h];
      state.sum[h] = __fmul_rn(state.sum[h], factor);
#pragma unroll
      for (int i = 0; i < kOwn / 16; ++i) {
        state.out[i][h] = __fmul_rn(state.out[i][h], factor);
        state.out[i][2 + h] = __fmul_rn(state.out[i][2 + h], factor);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Before any score above -infinity every weight is 0, not the power of infinity - infinity.
    const float maximum = state.maximum[i % 2] == negative_infinity() ? 0.0f : state.maximum[i % 2];
    p[i] = power_of_two(__fmul_rn(__fsub_rn(score[i], maximum), scale));
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) state.sum[h] = __fadd_rn(state.sum[h], __fadd_rn(p[h], p[2 + h]));
}

/// Adds the values of a slice to kOwn channels of the output, with these weights. channels: where these begin in the
/// slice, in shared memory.
template <int kOwn, int kStride>
__device__ inline void add_values(uint32_t channels, const float (&p)[4], WarpState<kOwn>& state) {
  const int lane = threadIdx.x % 32;
  const uint32_t low = bf16_pair(p[0], p[1]), high = bf16_pair(p[2], p[3]);
  const uint32_t b0 = transpose(low), b1 = transpose(high);
  const uint32_t values = channels + (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 16;
#pragma unroll
  for (int i = 0; i < kOwn / 16; ++i) multiply_add(state.out[i], load_matrix<true>(values + i * 32), b0, b1);
}

/// Adds rows [first, valid) of a slice, in shared memory, to the softmax and the output; `stores`: and their scores,
/// from `at` of the piece on, to what positions are ranked by.
template <int kDim, KvType kType>
__device__ inline void add_slice(const AttendRowsArgs& args, const AttendTask& task, const char* slice, bool stores,
                                 int at, int first, int valid, const Query<kDim>& q, WarpState<kDim>& state) {
  constexpr int kStride = AttendSizes<kDim, kType>::kStride;
  float score[4], p[4];
  if constexpr (kType == KvType::Q8) {
    slice_scores_q8<kDim>(args, task, slice, valid, q, score);
  } else {
    slice_products<kDim, kStride>(shared_address(slice), q, score);
    mend_scores<kDim>(args, task, slice, valid, score);
  }
  cap_scores(args, task, stores, at, valid, score);
  weigh_slice<kDim>(first, valid, score, args.scale, state, p);
  if constexpr (kType == KvType::Q8) {
    add_values_q8<kDim>(slice, p, state);
  } else {
    add_values<kDim, kStride>(shared_address(slice) + 2 * kDim, p, state);
  }
}

/// The sums of the lanes become their heads'.
template <int kDim>
__device__ inline void add_lanes(WarpState<kDim>& state) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int apart = 4; apart < 32; apart *= 2) {
      state.sum[h] = __fadd_rn(state.sum[h], __shfl_xor_sync(0xffffffffu, state.sum[h], apart));
    }
  }
}

/// The queries of a tile of heads, as slice_products() needs them, kOwn channels of kDim, from `first_channel` on: of
/// 16 channels 2t, 2t + 1 and 2t + 8, 2t + 9; with 8 bits four neighbours, as they lie in a word of codes.
template <int kDim, KvType kType, int kOwn = kDim>
__device__ inline void load_query(const AttendRowsArgs& args, const AttendTask& task, Query<kOwn>& q,
                                  int first_channel = 0) {
  constexpr int kApart = kType == KvType::Q8 ? 2 : 8;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float* const from = args.q + (static_cast<int64_t>(task.row) * args.tiles.heads + task.first_head + g) * kDim +
                            first_channel + (kType == KvType::Q8 ? 4 : 2) * t;
#pragma unroll
  for (int k = 0; k < kOwn / 16; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 value = {0, 0};
      if (g < task.heads) value = *reinterpret_cast<const float2*>(from + 16 * k + kApart * half);
      cut(value, q[k][half]);
    }
  }
}

/// This warp's slices of a piece. Positions below `settled` may be read before the kernels before are through.
template <int kDim, KvType kType, bool kSelected, int kStages>
__device__ inline void run_slices(const AttendRowsArgs& args, const AttendTask& task, const int32_t* table,
                                  const int32_t* selected, int settled, Query<kDim>& q, char* shared,
                                  WarpState<kDim>& state) {
  using Sizes = AttendSizes<kDim, kType>;
  const int warp = threadIdx.x / 32;
  char* const own = shared + warp * kStages * Sizes::kSliceBytes;
  const auto finder = row_finder<kSelected>(args, task, table, selected, Sizes::kRowBytes);
  const int slices = (task.count + kSlice - 1) / kSlice;
  const auto place = [&](int i) { return warp + i * kAttendWarps; };  // of this warp's i-th slice
  const auto first_of = [&](int place) { return !kSelected && place == 0 ? task.unseen : 0; };
  const auto copy = [&](int i, int stage, int64_t row) {
    if (place(i) < slices) {
      const uint32_t to = shared_address(own + stage * Sizes::kSliceBytes);
      const int valid = task.count - place(i) * kSlice, first = first_of(place(i));
      // The selection is to find the scores in the L2: what is read once must not push them out.
      if (!kSelected && args.scores) {
        copy_slice<kDim, kType, kSelected, true>(to, args.kv, row, first, valid);
      } else {
        copy_slice<kDim, kType, kSelected, false>(to, args.kv, row, first, valid);
      }
    }
    commit_copies();
  };
  // Positions are known two slices, rows one slice before the copy starts.
  const auto position = [&](int i) { return place(i) < slices ? finder.position(place(i)) : -1; };
  const auto find = [&](int position) { return position < 0 && !kSelected ? int64_t{0} : finder.row(position); };
  int positions[kStages + 2];
  int64_t rows[kStages + 1];
#pragma unroll
  for (int i = 0; i < kStages + 2; ++i) positions[i] = position(i);
#pragma unroll
  for (int i = 0; i < kStages + 1; ++i) rows[i] = find(positions[i]);
  bool waited = !args.early;
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    // Positions ascend, so what comes behind must wait, too.
    const int last = kSelected ? positions[i] : positions[i] + kSlice - 1;
    if (!waited && __any_sync(0xffffffffu, last >= settled)) {
      wait_for_kernels_before();
      waited = true;
    }
    copy(i, i, rows[i]);
  }
  if (!waited) wait_for_kernels_before();
  int64_t next_row = rows[kStages];
  int next_position = positions[kStages + 1];

  if (!kSelected || !args.early_query) load_query<kDim, kType>(args, task, q);

  for (int i = 0, stage = 0; place(i) < slices; ++i) {
    wait_for_copies<kStages - 1>();
    __syncwarp();
    char* const slice = own + stage * Sizes::kSliceBytes;
    const int at = place(i) * kSlice, valid = task.count - at;
    add_slice<kDim, kType>(args, task, slice, !kSelected && args.scores, at, first_of(place(i)), valid, q, state);
    __syncwarp();
    copy(i + kStages, stage, next_row);
    next_row = find(next_position);
    next_position = position(i + kStages + 2);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  wait_for_copies<0>();
  add_lanes(state);
}

/// The row and heads of this CTA.
__device__ inline AttendTask task_of(const AttendRowsArgs& args) {
  const HeadTiles& tiles = args.tiles;
  AttendTask task;
  task.run_row = blockIdx.z;
  task.row = args.first_row + task.run_row;
  const int tile = blockIdx.y, in_set = tile % tiles.per_set * kTileHeads;
  task.first_head = tile / tiles.per_set * tiles.set + in_set;
  task.heads = min(kTileHeads, tiles.set - in_set);
  if (args.cap != 0 && args.scores) {
    task.ranks_capped = args.pools_sums || args.tables.chunks[args.tables.row_chunk[task.row]].top_p < 1;
  }
  return task;
}

/// Gives a task its piece, and says of how many it is one. `selected`: those of its set, or null.
template <bool kSelected>
__device__ inline int cut_piece(const AttendRowsArgs& args, const DeviceRow& row, AttendTask& task,
                                const int32_t*& selected) {
  int all = row.context;
  if constexpr (kSelected) {
    const int unit = static_cast<int>(static_cast<int64_t>(task.first_head) * args.units / args.tiles.heads);
    selected = args.positions + static_cast<int64_t>(args.row_positions) * task.row +
               static_cast<int64_t>(row.budget + kBlockTokens - 1) * unit;
    all = args.counts[args.row_units * task.row + unit];
    if (args.resolved) {
      const int list = static_cast<int>(static_cast<int64_t>(task.first_head) * args.lists / args.tiles.heads);
      selected = args.resolved + (static_cast<int64_t>(task.row) * args.lists + list) * args.list_room;
    }
  }
  int first = 0;
  if (!kSelected && args.window > 0 && all > args.window) {
    // Slices begin at a multiple of their length, so that none straddles two blocks.
    first = (all - args.window) / kSlice * kSlice;
    if (blockIdx.x == 0) task.unseen = all - args.window - first;
    all -= first;
  }
  const int piece = ((all + args.splits - 1) / args.splits + kPieceStep - 1) / kPieceStep * kPieceStep;
  task.begin = first + blockIdx.x * piece;
  task.count = min(piece, first + all - task.begin);
  return (all + piece - 1) / piece;
}

template <int kDim, KvType kType, bool kSelected, int kStages>
__global__ void __launch_bounds__(kAttendThreads, AttendSizes<kDim, kType>::kCtas)
    attend_rows_kernel(const __grid_constant__ AttendRowsArgs args) {
  extern __shared__ __align__(16) char shared[];
  // In the ring, which is done with by then: all that a small device has is the ring of heads of 128.
  auto* const flag =
      reinterpret_cast<uint32_t*>(shared + kAttendWarps * kStages * AttendSizes<kDim, kType>::kSliceBytes - 16);
  AttendTask task = task_of(args);
  const DeviceRow row = row_of(args.tables, task.row);
  const int32_t* selected = nullptr;
  Query<kDim> q;
  if (kSelected && args.early_query) load_query<kDim, kType>(args, task, q);
  if (!args.early) wait_for_kernels_before();
  const int used = cut_piece<kSelected>(args, row, task, selected);
  if (task.count <= 0) {
    if (args.early) wait_for_kernels_before();
    return;
  }

  WarpState<kDim> state;
  run_slices<kDim, kType, kSelected, kStages>(args, task, row.table, kSelected ? selected + task.begin : nullptr,
                                              row.position, q, shared, state);
  merge_piece<kDim, kType>(args, task, used, state, shared);
  if (used > 1 && arrives_last(args.done + static_cast<int64_t>(task.run_row) * gridDim.y + blockIdx.y, used, flag)) {
    merge_splits<kDim>(args, task, used, shared);
  }
}

/// With so many slices of each warp on their way. Launches, or where `ctas` is not null makes ready to.
template <int kDim, KvType kType, int kStages>
void attend_rows_in_stages(const AttendRowsArgs& args, cudaStream_t stream, int* ctas) {
  constexpr int kShared = kAttendWarps * kStages * AttendSizes<kDim, kType>::kSliceBytes;
  static_assert(kShared >= 4 * kTileHeads * (kMaxSplits + 1) && kShared >= 4 * kAttendWarps * kTileHeads * (kDim + 2));
  constexpr const char* kWhat = "attention of decode rows";
  const auto whole = attend_rows_kernel<kDim, kType, false, kStages>;
  const auto selected = attend_rows_kernel<kDim, kType, true, kStages>;
  if (ctas) {
    for (const auto kernel : {whole, selected}) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), kWhat);
    }
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(ctas, whole, kAttendThreads, kShared), kWhat);
    return;
  }
  const dim3 grid(args.used_splits, args.tiles.tiles(), args.run);
  launch(kWhat, Start::Early, args.positions ? selected : whole, grid, dim3(kAttendThreads), kShared, stream, args);
}

// Declared in attend_args.h.
template <int kDim, KvType kType>
void attend_rows(const AttendRowsArgs& args, cudaStream_t stream, int* ctas) {
  using Sizes = AttendSizes<kDim, kType>;
  if constexpr (Sizes::kSharedBytes > kLeastSharedMemory) {
    // Where there is no room for more: to the same bits, one slice at a time.
    const int room = args.shared_memory > 0 ? args.shared_memory : shared_memory_limit();
    if (ctas || room < Sizes::kSharedBytes) attend_rows_in_stages<kDim, kType, 1>(args, stream, ctas);
    if (room < Sizes::kSharedBytes) return;
  }
  attend_rows_in_stages<kDim, kType, Sizes::kStages>(args, stream, ctas);
}

}  // namespace tidal::cuda
