// Decode attention: the workspace, and which kernels a role launches.
#include <algorithm>
#include <cmath>
#include <string>

#include "backend/cuda/attention/attend_args.h"
#include "backend/cuda/attention/select_attend.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/scan/scan_scores.h"
#include "backend/cuda/selection/select.h"

namespace tidal::cuda {
namespace {

constexpr int kWave = 64;                          // most rows of a launch
constexpr size_t kScoreBytes = size_t{256} << 20;  // for the scores of a launch, at most, but for one row's

template <KvType kType>
void dispatch(int head_dim, const AttendRowsArgs& args, cudaStream_t stream, int* ctas) {
  switch (head_dim) {
    case 16: return attend_rows<16, kType>(args, stream, ctas);
    case 32: return attend_rows<32, kType>(args, stream, ctas);
    case 48: return attend_rows<48, kType>(args, stream, ctas);
    case 64: return attend_rows<64, kType>(args, stream, ctas);
    case 80: return attend_rows<80, kType>(args, stream, ctas);
    case 96: return attend_rows<96, kType>(args, stream, ctas);
    case 112: return attend_rows<112, kType>(args, stream, ctas);
    case 128: return attend_rows<128, kType>(args, stream, ctas);
    case 160: return attend_rows<160, kType>(args, stream, ctas);
    case 192: return attend_rows<192, kType>(args, stream, ctas);
    case 256: return attend_rows<256, kType>(args, stream, ctas);
    case 512:
      if constexpr (kType == KvType::Bf16) return attend_rows<512, kType>(args, stream, ctas);
      if (ctas) return;
      fail_with("cuda: heads of 512 elements in a cache of 8 bits are not supported, expected bf16");
    default:
      fail_with("cuda: heads of " + std::to_string(head_dim) +
                " elements are not supported, expected 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256 or 512");
  }
}

/// How layers with such KV heads are cut. That must not depend on the batch or on what was reserved.
struct Geometry {
  Geometry(int heads, KvShape kv, int processors)
      : kv(kv),
        dense(heads, kv.heads, heads / kv.heads),
        single(heads, kv.heads, 1),
        scan_splits(cuda::scan_splits(dense, kv.head_dim, processors)) {
    const int ctas = std::max(1, attend_rows_ctas(kv.head_dim)) * processors;
    // At least two, so that 128 positions are cut the same way whoever reads them.
    dense_splits = std::clamp(ctas / dense.tiles(), 2, kMaxSplits);
    single_splits = std::clamp(ctas / single.tiles(), 2, kMaxSplits);
  }

  float scale() const { return static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(kv.head_dim))); }
  int most_splits() const { return std::max({dense_splits, single_splits, scan_splits}); }
  int64_t part_floats() const { return int64_t{std::max(dense_splits, single_splits)} * kv.head_dim; }

  KvShape kv;
  HeadTiles dense, single;
  int dense_splits = 2, single_splits = 2, scan_splits;
};

/// Of layers with a window.
KvShape window_kv(const Hyperparameters& hp) { return hp.window_kv ? hp.window_kv : KvShape{hp.kv_heads, hp.head_dim}; }

/// Sizes of the workspace.
struct Sizes {
  Sizes(const Hyperparameters& hp, int rows, int context, int processors, bool may_cluster)
      : max_context(context),
        heads(hp.heads),
        whole(hp.heads, {hp.kv_heads, hp.head_dim}, processors),
        window(hp.heads, window_kv(hp), processors),
        clusters(hp.heads, context),
        one_launch(hp.group(), hp.head_dim, context),
        in_clusters(may_cluster && clusters.choose(1, 1).blocks > 0 && clusters.choose(1, hp.heads).blocks > 0),
        shared_memory(may_cluster ? shared_memory_limit() : std::min(shared_memory_limit(), kLeastSharedMemory)),
        max_rows(rows),
        wave(std::clamp(rows, 1, kWave)),
        score_stride((int64_t{context} + 63) / 64 * 64 + 64) {
    score_wave = std::clamp(static_cast<int>(kScoreBytes / score_row_bytes()), 1, wave);
  }

  const Geometry& of(const KvLayer& layer) const {
    return layer.kv_heads == whole.kv.heads && layer.head_dim == whole.kv.head_dim ? whole : window;
  }
  /// Scores and, where clusters do not keep it to themselves, what they are pooled to.
  size_t score_row_bytes() const {
    return (in_clusters ? 1 : 2) * sizeof(float) * heads * static_cast<size_t>(score_stride);
  }
  size_t part_floats() const {
    return static_cast<size_t>(wave) * heads * std::max(whole.part_floats(), window.part_floats());
  }
  size_t part_statistics() const {
    return static_cast<size_t>(wave) * heads * std::max(whole.most_splits(), window.most_splits());
  }
  size_t sets() const { return static_cast<size_t>(score_wave) * heads; }
  size_t histogram_sets() const { return in_clusters ? 0 : sets(); }
  size_t bytes() const {
    return part_floats() * sizeof(float) + (part_statistics() + sets()) * sizeof(SoftmaxPart) +
           static_cast<size_t>(wave) * heads * sizeof(uint32_t) + score_wave * score_row_bytes() +
           histogram_sets() * (kBins * sizeof(uint32_t) + sizeof(unsigned long long));
  }

  int max_context, heads;
  Geometry whole, window;  // of layers that read the whole context, and of those with a window
  SelectClusters clusters;
  SelectAttend one_launch;
  bool in_clusters;   // sets are selected
  int shared_memory;  // of a CTA that scores by sketches
  int max_rows;
  int wave, score_wave = 1;  // rows of a launch; of one with scores
  int64_t score_stride;
};

Sizes sizes_for(const Hyperparameters& hp, int max_rows, int max_context, bool may_cluster) {
  return {hp, max_rows, max_context, multiprocessors(), may_cluster};
}

}  // namespace

void launch_attend_rows(const AttendRowsArgs& args, cudaStream_t stream) {
  if (args.type == KvType::Q8) return dispatch<KvType::Q8>(args.head_dim, args, stream, nullptr);
  dispatch<KvType::Bf16>(args.head_dim, args, stream, nullptr);
}

int attend_rows_ctas(int head_dim) {
  int ctas = 0;
  const AttendRowsArgs none{.tables = {}, .tiles = HeadTiles(1, 1, 1)};
  dispatch<KvType::Q8>(head_dim, none, nullptr, &ctas);
  dispatch<KvType::Bf16>(head_dim, none, nullptr, &ctas);
  return ctas;
}

struct DecodeAttention::Workspace {
  explicit Workspace(const Sizes& sizes)
      : sizes(sizes),
        parts(allocate_device(sizeof(float) * sizes.part_floats(), "partial attention")),
        part_statistics(allocate_device(sizeof(SoftmaxPart) * sizes.part_statistics(), "partial attention")),
        done(allocate_device(sizeof(uint32_t) * sizes.wave * sizes.heads, "partial attention")),
        scores(allocate_device(sizes.score_wave * sizes.score_row_bytes(), "attention scores")),
        statistics(allocate_device(sizeof(SoftmaxPart) * sizes.sets(), "attention scores")),
        histogram(allocate_device(sizeof(uint32_t) * kBins * sizes.histogram_sets(), "attention scores")),
        mass(allocate_device(sizeof(unsigned long long) * sizes.histogram_sets(), "attention scores")) {}

  float* pooled() const {
    return scores.as<float>() + static_cast<int64_t>(sizes.score_wave) * sizes.heads * sizes.score_stride;
  }

  AttendRowsArgs attend_args(const AttendParams& params, int first_row, int rows) const {
    const bool alone = params.role != Role::Dense && params.role != Role::Select && params.scope == Scope::Head;
    const Geometry& geometry = sizes.of(params.kv);
    const int splits = alone ? geometry.single_splits : geometry.dense_splits;
    AttendRowsArgs args{.tables = params.tables,
                        .first_row = first_row,
                        .run = rows,
                        .tiles = alone ? geometry.single : geometry.dense,
                        .head_dim = geometry.kv.head_dim,
                        .window = params.window,
                        .sink_logits = params.sink_logits,
                        .scale = geometry.scale(),
                        .cap = params.cap,
                        .early = params.early && params.role != Role::Scan && !resolves(params),
                        // Behind the selection, which has waited for the scores, which have waited for the queries; or
                        // behind the row cache, which waits likewise.
                        .early_query = params.role == Role::Scan || resolves(params),
                        .q = params.q.data,
                        .out = params.out.data,
                        .kv = params.kv.data,
                        .type = params.kv.type,
                        .tile_stride = params.kv.bytes_between_tiles(),
                        .splits = splits,
                        .used_splits = splits,
                        .parts = parts.as<float>(),
                        .part_statistics = part_statistics.as<SoftmaxPart>(),
                        .done = done.as<uint32_t>(),
                        .shared_memory = sizes.shared_memory};
    // CTAs that find nothing to do cost time, too.
    if (params.window > 0) args.used_splits = std::min(args.splits, blocks_for(params.window + kBlockTokens));
    if (params.role == Role::Select) {
      args.scores = scores.as<float>();
      args.score_stride = sizes.score_stride;
      args.pools_sums = pools_sums(params);
      args.statistics = statistics.as<SoftmaxPart>();
    }
    if (reads_selected(params.role)) {
      args.positions = params.selection.positions;
      args.counts = params.selection.counts;
      args.row_positions = params.selection.row_positions;
      args.row_units = params.selection.row_units;
      args.units = units_of(params);
      // No set has more positions than there is room for.
      args.used_splits = std::min(args.splits, blocks_for(args.row_positions / args.units));
    }
    if (resolves(params)) {
      args.resolved = params.row_cache.resolved;
      args.lists = std::max(args.units, sizes.whole.kv.heads);
      args.list_room = params.row_cache.most_selected;
      args.cached = params.row_cache.cached.rows;
    }
    return args;
  }

  /// Whether some of the rows may lie in host memory.
  static bool on_host(const AttendParams& params) {
    return params.tables.generations != nullptr && params.kv.device_slots != kAllSlots;
  }
  static bool resolves(const AttendParams& params) { return reads_selected(params.role) && params.row_cache; }

  ResolveArgs resolve_args(const AttendParams& params, int first_row, int rows) const {
    const int units = units_of(params), kv_heads = sizes.whole.kv.heads;
    return {.tables = params.tables,
            .first_row = first_row,
            .run = rows,
            .early = params.early && params.role != Role::Scan,
            .positions = params.selection.positions,
            .counts = params.selection.counts,
            .row_positions = params.selection.row_positions,
            .row_units = params.selection.row_units,
            .units = units,
            .kv_heads = kv_heads,
            .lists = std::max(units, kv_heads),
            .list_room = params.row_cache.most_selected,
            .kv = params.kv.data,
            .device_slots = params.kv.device_slots,
            .row_bytes = static_cast<int>(params.kv.row_bytes()),
            .cache = params.row_cache.cached,
            .resolved = params.row_cache.resolved};
  }

  ScanScoresArgs scan_args(const AttendParams& params, int first_row, int rows) const {
    return {.tables = params.tables,
            .first_row = first_row,
            .run = rows,
            .tiles = sizes.whole.dense,
            .head_dim = sizes.whole.kv.head_dim,
            .scale = sizes.whole.scale(),
            .cap = params.cap,
            .early = params.early,
            .fresh_tables = params.fresh_tables,
            .q = params.q.data,
            .kv = params.kv.data,
            .type = params.kv.type,
            .row_bytes = static_cast<int>(params.kv.row_bytes()),
            .tile_stride = params.kv.bytes_between_tiles(),
            .sketches = params.kv.sketches[params.sketch_bits / 2],
            .sketch_stride = params.kv.bytes_between_sketches(params.sketch_bits),
            .bits = params.sketch_bits,
            .needs_sums = pools_sums(params),
            .scores = scores.as<float>(),
            .score_stride = sizes.score_stride,
            .splits = sizes.whole.scan_splits,
            .shared_memory = sizes.shared_memory,
            .part_statistics = part_statistics.as<SoftmaxPart>()};
  }

  SelectArgs select_args(const AttendParams& params, int first_row, int rows) const {
    const bool scan = params.role == Role::Scan;
    const int units = units_of(params);
    return {.tables = params.tables,
            .first_row = first_row,
            .run = rows,
            .heads = sizes.heads,
            .units = units,
            .pooling = params.pooling,
            .scan = scan,
            .scale = sizes.whole.scale(),
            .scores = scores.as<float>(),
            .score_stride = sizes.score_stride,
            .max_context = sizes.max_context,
            .statistics = scan ? part_statistics.as<SoftmaxPart>() : statistics.as<SoftmaxPart>(),
            .statistic_parts = scan ? sizes.whole.scan_splits : 1,
            .pooled = pooled(),
            .histogram = histogram.as<uint32_t>(),
            .mass = mass.as<unsigned long long>(),
            .positions = params.selection.positions,
            .counts = params.selection.counts,
            .row_positions = params.selection.row_positions,
            .row_units = params.selection.row_units,
            .kv = scan && units >= sizes.whole.kv.heads && !on_host(params) ? params.kv.data : nullptr,
            .kv_heads = sizes.whole.kv.heads,
            .row_bytes = static_cast<int>(params.kv.row_bytes()),
            .tile_stride = params.kv.bytes_between_tiles()};
  }

  /// A Scan layer behind its scores: in one launch where that is the cheaper way.
  void select_and_attend(const AttendParams& params, int first_row, int rows, cudaStream_t stream) const {
    const SelectArgs args = select_args(params, first_row, rows);
    ClusterChoice one, two;
    if (sizes.in_clusters && args.kv && args.units == sizes.whole.kv.heads) {
      one = sizes.one_launch.choose(args, sizes.whole.dense_splits);
      two = sizes.clusters.choose(args.units * rows, args.heads / args.units);
    }
    if (one.blocks > 0 && one.cost < two.cost) {
      launch_select_attend(args, attend_args(params, first_row, rows), one.blocks, stream);
    } else {
      select(args, stream);
      attend_selected(params, first_row, rows, stream);
    }
  }

  /// Attention to what is selected, and before it a look into the row cache where rows may be in host memory.
  void attend_selected(const AttendParams& params, int first_row, int rows, cudaStream_t stream) const {
    if (resolves(params)) launch_resolve_rows(resolve_args(params, first_row, rows), stream);
    launch_attend_rows(attend_args(params, first_row, rows), stream);
  }

  int units_of(const AttendParams& params) const {
    return scope_units(params.scope, sizes.heads, sizes.whole.kv.heads);
  }
  bool pools_sums(const AttendParams& params) const {
    return params.pooling == Pooling::Sum && pools(params.scope, sizes.heads, sizes.whole.kv.heads);
  }

  void select(const SelectArgs& args, cudaStream_t stream) const {
    if (sizes.in_clusters) {
      launch_select_cluster(args, sizes.clusters.choose(args.units * args.run, args.heads / args.units).blocks, stream);
    } else {
      launch_pool(args, stream);
      launch_top_k(args, stream);
    }
  }

  Sizes sizes;
  Buffer parts, part_statistics, done, scores, statistics, histogram, mass;
};

DecodeAttention::DecodeAttention(bool clusters) : clusters_(clusters) {}
DecodeAttention::~DecodeAttention() = default;

void DecodeAttention::reserve(const Hyperparameters& hp, int max_rows, int max_context) {
  if (workspace_) {
    const Sizes& has = workspace_->sizes;
    const bool same =
        has.heads == hp.heads && has.whole.kv == KvShape{hp.kv_heads, hp.head_dim} && has.window.kv == window_kv(hp);
    if (same && has.max_rows >= max_rows && has.max_context >= max_context) return;
    if (same) {
      max_rows = std::max(max_rows, has.max_rows);
      max_context = std::max(max_context, has.max_context);
    }
  }
  const Sizes sizes = sizes_for(hp, max_rows, max_context, clusters_);
  if (!sizes.in_clusters) prepare_top_k(max_context);
  workspace_.reset();  // before there is more
  workspace_ = std::make_unique<Workspace>(sizes);
}

size_t DecodeAttention::workspace_bytes(const Hyperparameters& hp, int max_rows, int max_context) const {
  return sizes_for(hp, max_rows, max_context, clusters_).bytes();
}

void DecodeAttention::attend(const AttendParams& params, cudaStream_t stream) {
  const Workspace& workspace = *workspace_;
  const int wave = selects(params.role) ? workspace.sizes.score_wave : workspace.sizes.wave;
  for (int begin = 0; begin < params.rows; begin += wave) {
    const int first_row = params.first_row + begin, rows = std::min(wave, params.rows - begin);
    if (params.role == Role::Scan) {
      launch_scan_scores(workspace.scan_args(params, first_row, rows), stream);
      workspace.select_and_attend(params, first_row, rows, stream);
    } else if (params.role == Role::Sparse) {
      workspace.attend_selected(params, first_row, rows, stream);
    } else {
      launch_attend_rows(workspace.attend_args(params, first_row, rows), stream);
      if (params.role == Role::Select) workspace.select(workspace.select_args(params, first_row, rows), stream);
    }
  }
}

}  // namespace tidal::cuda
