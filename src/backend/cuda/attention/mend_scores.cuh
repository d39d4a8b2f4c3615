// Scores of a slice that came out as no number, or as infinity, made again one by one.
#pragma once

#include "backend/cuda/attention/attend_merge.cuh"

namespace tidal::cuda {

/// Has scores that are not finite be what they are: exact(query, row of the slice). `score` as slice_products() has it,
/// of rows below `valid`. All lanes of a warp call it.
template <int kDim, typename Exact>
__device__ inline void mend_scores(const AttendRowsArgs& args, const AttendTask& task, int valid, float (&score)[4],
                                   Exact exact) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  bool odd = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    odd = odd || (g + i / 2 * 8 < valid && 2 * t + i % 2 < task.heads && !is_finite(score[i]));
  }
  if (__any_sync(0xffffffffu, odd)) {
    const float* const queries = args.q + (static_cast<int64_t>(task.row) * args.tiles.heads + task.first_head) * kDim;
    for (int i = 0; i < 4; ++i) {
      const int r = g + i / 2 * 8, head = 2 * t + i % 2;
      if (r >= valid || head >= task.heads || is_finite(score[i])) continue;
      score[i] = exact(queries + head * kDim, r);
    }
    __syncwarp();
  }
}

}  // namespace tidal::cuda
