// Completed attention: the workspace, and what is launched.
#include <algorithm>
#include <cmath>

#include "backend/cuda/completion/complete_args.h"
#include "backend/cuda/completion/completion.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/scan/scan_scores.h"
#include "backend/cuda/selection/select.h"

namespace tidal::cuda {
namespace {

constexpr int kMostRows = 64;                             // of a launch
constexpr int64_t kCompletionBytes = int64_t{256} << 20;  // of a launch's workspace, at most, but for one row's
constexpr const char* kMemory = "completed attention";

/// Sizes of the workspace. How a row is cut depends on the model and the device alone.
struct CompletionSizes {
  CompletionSizes(const Hyperparameters& hp, int rows, int context, bool may_cluster)
      : max_rows(rows),
        max_context(context),
        heads(hp.heads),
        kv_heads(hp.kv_heads),
        head_dim(hp.head_dim),
        tiles(hp.heads, hp.kv_heads, hp.heads / hp.kv_heads),
        clusters(hp.heads, context),
        in_clusters(may_cluster && clusters.choose(1, hp.group()).blocks > 0),
        shared_memory(may_cluster ? shared_memory_limit() : std::min(shared_memory_limit(), kLeastSharedMemory)),
        scan_splits(cuda::scan_splits(tiles, hp.head_dim, multiprocessors())),
        splits(std::clamp(2 * multiprocessors() / hp.kv_heads, 1, kMostParts)),
        score_stride((int64_t{context} + 63) / 64 * 64 + 64) {}

  float scale() const { return static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(head_dim))); }
  /// Positions of the estimated tier of a policy, with the block still filling.
  int tier(const Policy& policy) const {
    const int64_t most = int64_t{policy.budget} * policy.completion.estimated;
    return static_cast<int>(std::min(most, int64_t{max_context})) + kBlockTokens;
  }
  /// Room that is made for a policy. Budgets that are shares grow with the context: not by a little each time.
  int room_for(const Policy& policy) const {
    const int wanted = tier(policy);
    return std::min(wanted + wanted / 2, max_context + kBlockTokens);
  }
  /// Of a row: scores and what they are pooled to, lists [kv_heads, room] of 4 bytes, and [heads, room].
  int64_t row_bytes(int room) const {
    return int64_t{4} * (score_stride * heads * (in_clusters ? 1 : 2) + int64_t{room} * (4 * kv_heads + 2 * heads) +
                         int64_t{heads} * (2 * scan_splits + splits * (head_dim + 1) + 2) +
                         int64_t{in_clusters ? 0 : kv_heads} * (kBins + 2));
  }
  int wave(int room) const {
    const auto rows = static_cast<int>(std::min<int64_t>(kCompletionBytes / row_bytes(room), kMostRows));
    return std::clamp(rows, 1, std::min(max_rows, kMostRows));
  }

  int max_rows, max_context, heads, kv_heads, head_dim;
  HeadTiles tiles;
  SelectClusters clusters;
  bool in_clusters;
  int shared_memory, scan_splits, splits;
  int64_t score_stride;
};

template <typename Element>
Buffer elements(int64_t count) {
  return allocate_device(sizeof(Element) * static_cast<size_t>(count), kMemory);
}

}  // namespace

struct CompletedAttention::Workspace {
  explicit Workspace(const CompletionSizes& sizes) : sizes(sizes) {}

  void make_room(int positions) {
    // What was there goes before there is more.
    for (Buffer* const each : {&scores, &statistics, &pooled, &histogram, &mass, &lists, &counts, &sources, &ranked,
                               &keys, &key_scores, &weights, &references, &parts, &part_sums}) {
      *each = Buffer();
    }
    room = 0;
    const int64_t rows = sizes.wave(positions), all_heads = rows * sizes.heads, sets = rows * sizes.kv_heads;
    scores = elements<float>(all_heads * sizes.score_stride);
    statistics = elements<SoftmaxPart>(all_heads * sizes.scan_splits);
    if (!sizes.in_clusters) {
      pooled = elements<float>(sets * sizes.score_stride);
      histogram = elements<uint32_t>(sets * kBins);
      mass = elements<unsigned long long>(sets);
    }
    lists = elements<int32_t>(sets * positions);
    counts = elements<int32_t>(sets);
    sources = elements<Source>(sets * positions);
    ranked = elements<int32_t>(sets * positions);
    keys = elements<uint32_t>(sets * positions);
    key_scores = elements<float>(all_heads * positions);
    weights = elements<float>(all_heads * positions);
    references = elements<float>(all_heads);
    parts = elements<float>(all_heads * sizes.splits * sizes.head_dim);
    part_sums = elements<float>(all_heads * sizes.splits);
    room = positions;
  }

  ScanScoresArgs scan_args(const CompleteParams& params, int first_row, int rows) const {
    return {.tables = params.tables,
            .first_row = first_row,
            .run = rows,
            .tiles = sizes.tiles,
            .head_dim = sizes.head_dim,
            .scale = sizes.scale(),
            .early = true,
            .q = params.q.data,
            .kv = params.kv.data,
            .type = params.kv.type,
            .row_bytes = static_cast<int>(params.kv.row_bytes()),
            .tile_stride = params.kv.bytes_between_tiles(),
            .sketches = params.kv.sketches[params.sketch_bits / 2],
            .sketch_stride = params.kv.bytes_between_sketches(params.sketch_bits),
            .bits = params.sketch_bits,
            .needs_sums = sizes.heads > sizes.kv_heads,
            .scores = scores.as<float>(),
            .score_stride = sizes.score_stride,
            .splits = sizes.scan_splits,
            .shared_memory = sizes.shared_memory,
            .part_statistics = statistics.as<SoftmaxPart>()};
  }

  /// The estimated tier. Lists are those of the run, but the selection counts rows of the batch.
  SelectArgs select_args(const CompleteParams& params, int first_row, int rows) const {
    const int64_t row_lists = int64_t{sizes.kv_heads} * room;
    return {.tables = params.tables,
            .first_row = first_row,
            .run = rows,
            .heads = sizes.heads,
            .units = sizes.kv_heads,
            .pooling = Pooling::Sum,
            .scan = true,
            .budgets = params.completion.estimated,
            .scale = sizes.scale(),
            .scores = scores.as<float>(),
            .score_stride = sizes.score_stride,
            .max_context = sizes.max_context,
            .statistics = statistics.as<SoftmaxPart>(),
            .statistic_parts = sizes.scan_splits,
            .pooled = pooled.as<float>(),
            .histogram = histogram.as<uint32_t>(),
            .mass = mass.as<unsigned long long>(),
            .positions = lists.as<int32_t>() - row_lists * first_row,
            .counts = counts.as<int32_t>() - int64_t{sizes.kv_heads} * first_row,
            .row_positions = static_cast<int>(row_lists),
            .row_units = sizes.kv_heads,
            .kv_heads = sizes.kv_heads,
            .row_bytes = static_cast<int>(params.kv.row_bytes()),
            .tile_stride = params.kv.bytes_between_tiles()};
  }

  CompleteArgs complete_args(const CompleteParams& params, int first_row, int rows) const {
    return {.tables = params.tables,
            .first_row = first_row,
            .run = rows,
            .heads = sizes.heads,
            .kv_heads = sizes.kv_heads,
            .head_dim = sizes.head_dim,
            .completion = params.completion,
            .scale = sizes.scale(),
            .sink_logits = params.sink_logits,
            .q = params.q.data,
            .out = params.out.data,
            .kv = params.kv.data,
            .row = params.kv.row_layout(),
            .row_bytes = static_cast<int>(params.kv.row_bytes()),
            .tile_stride = params.kv.bytes_between_tiles(),
            .value_sketches = params.kv.value_sketches,
            .places = ValueSketchPlaces(sizes.head_dim),
            .scores = scores.as<float>(),
            .score_stride = sizes.score_stride,
            .statistics = statistics.as<SoftmaxPart>(),
            .statistic_parts = sizes.scan_splits,
            .positions = params.selection.positions,
            .counts = params.selection.counts,
            .row_positions = params.selection.row_positions,
            .row_units = params.selection.row_units,
            .room = room,
            .lists = lists.as<int32_t>(),
            .row_lists = sizes.kv_heads * room,
            .list_counts = counts.as<int32_t>(),
            .sources = sources.as<Source>(),
            .ranked = ranked.as<int32_t>(),
            .keys = keys.as<uint32_t>(),
            .key_scores = key_scores.as<float>(),
            .weights = weights.as<float>(),
            .references = references.as<float>(),
            .splits = sizes.splits,
            .parts = parts.as<float>(),
            .part_sums = part_sums.as<float>()};
  }

  void select(const SelectArgs& args, cudaStream_t stream) const {
    if (sizes.in_clusters) {
      launch_select_cluster(args, sizes.clusters.choose(args.units * args.run, args.heads / args.units).blocks, stream);
    } else {
      launch_pool(args, stream);
      launch_top_k(args, stream);
    }
  }

  CompletionSizes sizes;
  int room = 0;
  Buffer scores, statistics, pooled, histogram, mass, lists, counts, sources, ranked, keys, key_scores, weights,
      references, parts, part_sums;
};

CompletedAttention::CompletedAttention(bool clusters) : clusters_(clusters) {}
CompletedAttention::~CompletedAttention() = default;

void CompletedAttention::reserve(const Hyperparameters& hp, int max_rows, int max_context) {
  workspace_ = std::make_unique<Workspace>(CompletionSizes(hp, max_rows, max_context, clusters_));
}

bool CompletedAttention::has_room(const Policy& policy) const {
  return workspace_->sizes.tier(policy) <= workspace_->room;
}

void CompletedAttention::make_room(const Policy& policy) { workspace_->make_room(workspace_->sizes.room_for(policy)); }

int64_t CompletedAttention::workspace_bytes(const Hyperparameters& hp, const Policy& policy, int max_rows,
                                            int max_context) const {
  const CompletionSizes sizes(hp, max_rows, max_context, clusters_);
  const int room = sizes.room_for(policy);
  return sizes.row_bytes(room) * sizes.wave(room);
}

void CompletedAttention::complete(const CompleteParams& params, cudaStream_t stream) {
  const Workspace& workspace = *workspace_;
  const int wave = workspace.sizes.wave(workspace.room);
  for (int begin = 0; begin < params.rows; begin += wave) {
    const int first_row = params.first_row + begin, rows = std::min(wave, params.rows - begin);
    launch_scan_scores(workspace.scan_args(params, first_row, rows), stream);
    workspace.select(workspace.select_args(params, first_row, rows), stream);
    const CompleteArgs args = workspace.complete_args(params, first_row, rows);
    launch_tiers(args, stream);
    launch_parts(args, stream);
    launch_combine(args, stream);
  }
}

}  // namespace tidal::cuda
