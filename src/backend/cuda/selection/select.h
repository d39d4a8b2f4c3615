// Which positions a row reads: the highest of pooled scores, by one cluster of blocks a set, or by two launches of
// blocks.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "backend/cuda/runtime/head_tiles.h"
#include "backend/cuda/runtime/step_tables.h"
#include "backend/policy.h"
#include "core/bf16.h"

namespace tidal::cuda {

inline constexpr int kFirstBits = 11;  ///< of a key, that the first histogram is over
inline constexpr int kBins = 1 << kFirstBits;

/// From raw scores to selected positions.
struct SelectArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  int heads = 0;
  int units = 0;
  Pooling pooling = {};
  bool scan = false;              ///< by scan_policy()
  int budgets = 1;                ///< of so many budgets, as tier_policy() has them
  float scale = 0;                ///< log2(e) / sqrt(head_dim)
  const float* scores = nullptr;  ///< [run, heads, score_stride]
  int64_t score_stride = 0;       ///< multiple of 4
  int max_context = 0;
  const SoftmaxPart* statistics = nullptr;  ///< [run, heads, statistic_parts]: maxima, and sums where
                                            ///< probabilities are needed
  int statistic_parts = 1;                  ///< of a head's context
  float* pooled = nullptr;        ///< [run, units, score_stride]; of one head the probabilities, where top-p wants them
  uint32_t* histogram = nullptr;  ///< [run, units, kBins], zeros before and after
  unsigned long long* mass = nullptr;  ///< [run, units], of all positions in units of kMassUnit; zeros before and after
  int32_t* positions = nullptr;        ///< Selection
  int32_t* counts = nullptr;
  int row_positions = 0;
  int row_units = 0;
  const std::byte* kv = nullptr;  ///< KvLayer::data, where the kernel behind reads the selected rows; null: it does
                                  ///< not, or sets are for several KV heads
  int kv_heads = 0;
  int row_bytes = 0;        ///< of one KV head
  int64_t tile_stride = 0;  ///< KvLayer::bytes_between_tiles()
};
/// In one launch, by clusters of so many blocks a set.
void launch_select_cluster(const SelectArgs& args, int blocks, cudaStream_t stream);
/// Blocks of a cluster; one alone is none.
inline constexpr int kLeastClusterBlocks = 2, kMostClusterBlocks = 16;
using ClusterCounts = std::array<int, kMostClusterBlocks + 1>;  ///< by so many blocks
/// How a launch is cut into clusters, and what it costs: in scores that a block pools.
struct ClusterChoice {
  int blocks = 0;  ///< of a cluster; 0: the device has no clusters, or no room in them
  int64_t waves = 0;
  int64_t cost = 0;
};
/// Which clusters the device runs for a model and contexts up to a longest.
class SelectClusters {
 public:
  SelectClusters(int heads, int max_context);
  /// Where there are so many sets of so many heads each.
  ClusterChoice choose(int sets, int heads) const;

 private:
  int max_context_;
  ClusterCounts active_ = {}, active_of_many_ = {};  // of the usual number of threads, and of twice as many
};
/// In two, by single blocks.
void launch_pool(const SelectArgs& args, cudaStream_t stream);
void launch_top_k(const SelectArgs& args, cudaStream_t stream);
/// Lets launch_top_k() use as much shared memory as a context needs. Throws Error where the device has not as much.
void prepare_top_k(int max_context);

}  // namespace tidal::cuda
