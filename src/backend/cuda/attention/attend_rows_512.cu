// Heads of 512 elements: as attend_rows.cuh, but what a warp would have to hold of them is more than it can. So the CTA
// goes through all slices of a piece together, each warp with a quarter of the channels: it multiplies these of q and
// the keys, the four parts of a score meet in shared memory, and each warp adds its channels of the values. Two
// barriers a slice, of 32 KiB; the slices ahead are on their way meanwhile.
#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {
namespace {

constexpr int kDim = 512;
constexpr int kOwn = kDim / kAttendWarps;  // channels of a warp

using Sizes = AttendSizes<kDim, KvType::Bf16>;
constexpr int kStages = 4;
constexpr int kRingBytes = kStages * Sizes::kSliceBytes;
constexpr int kWideBytes = kRingBytes + kAttendWarps * 32 * sizeof(float4);  // and the parts of a slice's scores
static_assert(kWideBytes <= kWideHeadMemory);
static_assert(kRingBytes >= 4 * kTileHeads * (kMaxSplits + 1));  // merge_splits()

/// The rows of a piece's slices on their way to the ring, a few slices ahead. All threads of the CTA.
template <bool kSelected>
class SliceRing {
 public:
  __device__ SliceRing(const AttendRowsArgs& args, const AttendTask& task, const RowFinder<kSelected>& finder,
                       char* slots)
      : args_(args),
        task_(task),
        finder_(finder),
        slots_(shared_address(slots)),
        slices_((task.count + kSlice - 1) / kSlice) {}

  __device__ int slices() const { return slices_; }
  /// Rows of slice i that count: [first, valid).
  __device__ int first(int i) const { return !kSelected && i == 0 ? task_.unseen : 0; }
  __device__ int valid(int i) const { return task_.count - i * kSlice; }
  /// Of slice i, in shared memory.
  __device__ static int offset(int i) { return i % kStages * Sizes::kSliceBytes; }

  /// Asks for the first slices; what lies at `settled` or behind it when the kernels before are through. Returns
  /// whether it has waited for them.
  __device__ bool start(int settled) {
    bool waited = !args_.early;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      const int position = position_of(i);
      // Positions ascend, so what comes behind must wait, too.
      if (!waited && __any_sync(0xffffffffu, (kSelected ? position : position + kSlice - 1) >= settled)) {
        wait_for_kernels_before();
        waited = true;
      }
      copy(i, row_of_slice(i, position));
    }
    next_row_ = row_of_slice(kStages - 1, position_of(kStages - 1));
    next_position_ = position_of(kStages);
    return waited;
  }
  /// Has slice i in shared memory for all, and asks for one more in the place of the last.
  __device__ void arrive(int i) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    copy(i + kStages - 1, next_row_);
    next_row_ = row_of_slice(i + kStages, next_position_);
    next_position_ = position_of(i + kStages + 1);
  }

 private:
  __device__ int position_of(int i) const { return i < slices_ ? finder_.position(i) : -1; }
  __device__ int64_t row_of_slice(int i, int position) const { return i < slices_ ? finder_.row(position) : 0; }
  __device__ void copy(int i, int64_t row) const {
    if (i < slices_) {
      const auto* const base = reinterpret_cast<const char*>(args_.kv) + threadIdx.x * 16;
      const uint32_t to = slots_ + offset(i) + threadIdx.x * 16;
      static_assert(Sizes::kRowBytes == kAttendThreads * 16);
#pragma unroll
      for (int r = 0; r < kSlice; ++r) {
        const int64_t from = kSelected ? __shfl_sync(0xffffffffu, row, r) : row + r * Sizes::kRowBytes;
        const bool counts = r >= first(i) && r < valid(i);
        // The selection is to find the scores in the L2: what is read once must not push them out.
        if (!kSelected && args_.scores) {
          copy_async<true>(to + r * Sizes::kStride, base + from, counts);
        } else {
          copy_async<false>(to + r * Sizes::kStride, base + from, counts);
        }
      }
    }
    commit_copies();
  }

  const AttendRowsArgs& args_;
  const AttendTask& task_;
  RowFinder<kSelected> finder_;
  uint32_t slots_;
  int slices_;
  int64_t next_row_ = 0;
  int next_position_ = -1;
};

/// A slice's scores from the warps' parts, in the order of the warps. All threads call it.
__device__ inline void add_parts(float4* parts, float (&score)[4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  parts[warp * 32 + lane] = {score[0], score[1], score[2], score[3]};
  __syncthreads();
  float4 sum = parts[lane];
#pragma unroll
  for (int w = 1; w < kAttendWarps; ++w) {
    const float4 part = parts[w * 32 + lane];
    sum = {__fadd_rn(sum.x, part.x), __fadd_rn(sum.y, part.y), __fadd_rn(sum.z, part.z), __fadd_rn(sum.w, part.w)};
  }
  score[0] = sum.x, score[1] = sum.y, score[2] = sum.z, score[3] = sum.w;
}

/// The piece's output, or its part where there are several.
__device__ inline void store_piece(const AttendRowsArgs& args, const AttendTask& task, int used,
                                   const WarpState<kOwn>& state) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (2 * t + h >= task.heads) continue;
    const int head = task.first_head + 2 * t + h;
    const int64_t of_run = static_cast<int64_t>(task.run_row) * args.tiles.heads + head;
    const float top = state.maximum[h], sum = state.sum[h];
    float factor = 1;
    float* to = args.parts + (of_run * args.splits + blockIdx.x) * kDim;
    if (used == 1) {
      to = args.out + (static_cast<int64_t>(task.row) * args.tiles.heads + head) * kDim;
      factor = __fdiv_rn(1.0f, with_sink(args, head, top, sum));
    }
    to += warp * kOwn + g;
#pragma unroll
    for (int i = 0; i < kOwn / 16; ++i) {
      to[16 * i] = __fmul_rn(state.out[i][h], factor);
      to[16 * i + 8] = __fmul_rn(state.out[i][2 + h], factor);
    }
    if (warp > 0 || g > 0) continue;
    if (used > 1) {
      args.part_statistics[of_run * args.splits + blockIdx.x] = {top, sum};
    } else if (args.scores) {
      args.statistics[of_run] = ranked_part(task, top, sum);
    }
  }
}

template <bool kSelected>
__global__ void __launch_bounds__(kAttendThreads, 1) attend_wide_kernel(const __grid_constant__ AttendRowsArgs args) {
  extern __shared__ __align__(16) char shared[];
  __shared__ uint32_t flag;
  AttendTask task = task_of(args);
  const DeviceRow row = row_of(args.tables, task.row);
  const int warp = threadIdx.x / 32;
  const int32_t* selected = nullptr;
  Query<kOwn> q;
  if (kSelected && args.early_query) load_query<kDim, KvType::Bf16, kOwn>(args, task, q, warp * kOwn);
  if (!args.early) wait_for_kernels_before();
  const int used = cut_piece<kSelected>(args, row, task, selected);
  if (task.count <= 0) {
    if (args.early) wait_for_kernels_before();
    return;
  }

  SliceRing<kSelected> ring(
      args, task,
      row_finder<kSelected>(args, task, row.table, kSelected ? selected + task.begin : nullptr, Sizes::kRowBytes),
      shared);
  if (!ring.start(row.position)) wait_for_kernels_before();
  if (!kSelected || !args.early_query) load_query<kDim, KvType::Bf16, kOwn>(args, task, q, warp * kOwn);
  auto* const parts = reinterpret_cast<float4*>(shared + kRingBytes);
  WarpState<kOwn> state;
  for (int i = 0; i < ring.slices(); ++i) {
    ring.arrive(i);
    const char* const slice = shared + SliceRing<kSelected>::offset(i);
    const uint32_t channels = shared_address(slice) + 2 * warp * kOwn;  // keys; values lie 2 * kDim behind them
    float score[4], weights[4];
    slice_products<kOwn, Sizes::kStride>(channels, q, score);
    add_parts(parts, score);
    mend_scores<kDim>(args, task, slice, ring.valid(i), score);
    cap_scores(args, task, !kSelected && args.scores && warp == 0, i * kSlice, ring.valid(i), score);
    weigh_slice<kOwn>(ring.first(i), ring.valid(i), score, args.scale, state, weights);
    add_values<kOwn, Sizes::kStride>(channels + 2 * kDim, weights, state);
  }
  wait_for_copies<0>();
  add_lanes(state);
  store_piece(args, task, used, state);
  if (used > 1 && arrives_last(args.done + static_cast<int64_t>(task.run_row) * gridDim.y + blockIdx.y, used, &flag)) {
    merge_splits<kDim>(args, task, used, shared);
  }
}

}  // namespace

template <>
void attend_rows<kDim, KvType::Bf16>(const AttendRowsArgs& args, cudaStream_t stream, int* ctas) {
  constexpr const char* kWhat = "attention of decode rows";
  if (ctas) {
    for (const auto kernel : {attend_wide_kernel<false>, attend_wide_kernel<true>}) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kWideBytes), kWhat);
    }
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(ctas, attend_wide_kernel<false>, kAttendThreads, kWideBytes),
          kWhat);
    return;
  }
  launch(kWhat, Start::Early, args.positions ? attend_wide_kernel<true> : attend_wide_kernel<false>,
         dim3(args.used_splits, args.tiles.tiles(), args.run), dim3(kAttendThreads), kWideBytes, stream, args);
}

}  // namespace tidal::cuda
