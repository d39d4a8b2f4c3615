// What the kernels of decode attention are launched with. Shapes: `run` is the number of rows of the launch; a row of
// the run is row first_row + r of the batch.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "backend/cuda/attention.h"

namespace tidal::cuda {

/// Most splits of one row and head: bounds the memory for their weights in the merge.
inline constexpr int kMaxSplits = 128;
/// Query heads that one CTA takes: the columns of an mma tile.
inline constexpr int kTileHeads = 8;
/// log2(e), for powers of two in place of e.
inline constexpr float kLog2e = 1.44269504f;

/// Maximum raw score of a head and the sum of exp((score - maximum) / sqrt(head_dim)), over a part or all of a context.
struct SoftmaxPart {
  float maximum;
  float sum;
};

/// How query heads are dealt to CTAs: sets of `set` heads that share their positions and KV head, each in tiles of
/// kTileHeads.
struct HeadTiles {
  int heads;     ///< query heads
  int kv_heads;  ///< KV heads
  int set;       ///< heads / kv_heads, or 1 with Scope::Head
  int per_set;   ///< tiles

  HeadTiles(int heads, int kv_heads, int set)
      : heads(heads), kv_heads(kv_heads), set(set), per_set((set + kTileHeads - 1) / kTileHeads) {}
  int tiles() const { return heads / set * per_set; }
};

/// Attention over whole contexts, or over selected positions where `positions` is not null.
struct AttendRowsArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  HeadTiles tiles;
  int head_dim = 0;
  float scale = 0;                     ///< log2(e) / sqrt(head_dim)
  bool early = false;                  ///< AttendParams
  bool early_query = false;            ///< of a selection: q may be read before the kernels before are through
  const float* q = nullptr;            ///< [rows of the batch, heads, head_dim]
  float* out = nullptr;                ///< the same
  const Bf16* kv = nullptr;            ///< KvLayer::data
  const int32_t* positions = nullptr;  ///< Selection, or null
  const int32_t* counts = nullptr;
  int row_positions = 0;
  int row_units = 0;
  int units = 0;            ///< sets of positions of a row
  float* scores = nullptr;  ///< [run, heads, score_stride] raw scores, or null
  int64_t score_stride = 0;
  SoftmaxPart* statistics = nullptr;       ///< [run, heads], where scores are wanted
  int splits = 0;                          ///< that a row is cut into at most, whatever its positions
  int used_splits = 0;                     ///< no row of the run takes more
  float* parts = nullptr;                  ///< [run, heads, splits, head_dim]
  SoftmaxPart* part_statistics = nullptr;  ///< [run, heads, splits]
  uint32_t* done = nullptr;                ///< [run, tiles], zeros before and after
};
void launch_attend_rows(const AttendRowsArgs& args, cudaStream_t stream);
/// CTAs of that kernel that a multiprocessor holds at once; makes it ready to be launched. Throws Error for a head_dim
/// that it was not built for.
int attend_rows_ctas(int head_dim);
/// The same for one head size: launches, or where `ctas` is not null only tells how many.
template <int kDim>
void attend_rows(const AttendRowsArgs& args, cudaStream_t stream, int* ctas);

/// Raw scores of a Scan layer: [run, heads, score_stride].
struct ScanScoresArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  HeadTiles tiles;
  int head_dim = 0;
  float scale = 0;                      ///< log2(e) / sqrt(head_dim)
  bool early = false;                   ///< AttendParams
  const float* q = nullptr;             ///< [rows of the batch, heads, head_dim]
  const Bf16* kv = nullptr;             ///< KvLayer::data
  const std::byte* sketches = nullptr;  ///< KvLayer::sketches of `bits`
  int bits = 0;
  bool needs_statistics = false;  ///< even with a top-p of 1
  float* scores = nullptr;
  int64_t score_stride = 0;
  SoftmaxPart* statistics = nullptr;  ///< [run, heads]; not written where nothing needs them
  int splits = 0;
  SoftmaxPart* part_statistics = nullptr;  ///< [run, heads, splits]
  uint32_t* done = nullptr;                ///< [run, tiles], zeros before and after
};
void launch_scan_scores(const ScanScoresArgs& args, cudaStream_t stream);

inline constexpr int kFirstBits = 11;  ///< of a key, that the first histogram is over
inline constexpr int kBins = 1 << kFirstBits;

/// From raw scores to selected positions.
struct SelectArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  int heads = 0;
  int units = 0;
  Scope scope = {};
  Pooling pooling = {};
  bool scan = false;              ///< by scan_policy()
  float scale = 0;                ///< log2(e) / sqrt(head_dim)
  const float* scores = nullptr;  ///< [run, heads, score_stride]
  int64_t score_stride = 0;       ///< multiple of 4
  int max_context = 0;
  const SoftmaxPart* statistics = nullptr;  ///< [run, heads]
  float* pooled = nullptr;  ///< [run, units, score_stride]; with Scope::Head the probabilities, where top-p wants them
  uint32_t* histogram = nullptr;       ///< [run, units, kBins], zeros before and after
  unsigned long long* mass = nullptr;  ///< [run, units], of all positions in units of kMassUnit; zeros before and after
  int32_t* positions = nullptr;        ///< Selection
  int32_t* counts = nullptr;
  int row_positions = 0;
  int row_units = 0;
  const Bf16* kv = nullptr;  ///< KvLayer::data, where the kernel behind reads the selected rows; null: it does not, or
                             ///< sets are for several KV heads
  int kv_heads = 0;
  int head_dim = 0;
};
/// In one launch, by clusters of so many blocks a set.
void launch_select_cluster(const SelectArgs& args, int blocks, cudaStream_t stream);
/// Which clusters the device runs for a model and contexts up to a longest.
class SelectClusters {
 public:
  SelectClusters(int heads, int max_context);
  /// Blocks a set, where there are so many sets of so many heads each; 0 where the device has no clusters, or no room
  /// in them.
  int blocks(int sets, int heads) const;

 private:
  static constexpr int kLeastBlocks = 2, kMostBlocks = 16;  // one alone is no cluster
  int max_context_;
  std::array<int, kMostBlocks + 1> active_ = {};  // clusters of so many blocks that run at the same time
};
/// In two, by single blocks.
void launch_pool(const SelectArgs& args, cudaStream_t stream);
void launch_top_k(const SelectArgs& args, cudaStream_t stream);
/// Lets launch_top_k() use as much shared memory as a context needs. Throws Error where the device has not as much.
void prepare_top_k(int max_context);

}  // namespace tidal::cuda
