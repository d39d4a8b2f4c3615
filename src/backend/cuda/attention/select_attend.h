// Selection and attention of a Scan layer in one launch.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/attention/attend_args.h"
#include "backend/cuda/selection/select.h"

namespace tidal::cuda {

/// Which clusters select and attend for a model whose sets are its KV heads', with contexts up to a longest.
class SelectAttend {
 public:
  SelectAttend(int group, int head_dim, int max_context);
  /// For these sets, each of a KV head, which attention would cut into so many splits. No blocks where a device, a head
  /// size, a group, a ranking or a budget has no such kernel, or clusters would wait for each other. Its cost is to be
  /// held against that of the selection alone.
  ClusterChoice choose(const SelectArgs& select, int splits) const;

 private:
  int max_context_, group_;
  ClusterCounts active_ = {};
};

/// launch_select_cluster() and launch_attend_rows() of the same sets, to the same bits; `blocks` from SelectAttend.
void launch_select_attend(const SelectArgs& select, const AttendRowsArgs& attend, int blocks, cudaStream_t stream);

}  // namespace tidal::cuda
