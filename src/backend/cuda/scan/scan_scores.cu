// Raw scores of a Scan layer: full blocks by their sketches, the block still filling by its keys (backend/sketch.h).
//
// Grid (splits, tiles of heads, rows). A warp takes a block at a time. What a softmax over the scores needs stays in
// parts, one a split: the selection adds them up.
#include <algorithm>

#include "backend/cuda/scan/scan_warp.cuh"

namespace tidal::cuda {
namespace {

constexpr int kStaticBytes = sizeof(SoftmaxPart) * kScanWarps * kTileHeads;

template <class V, bool kRing>
__global__ void __launch_bounds__(kScanThreads, V::kChunks >= 4 || V::kQuads == 4 ? 1 : 2)
    scan_scores_kernel(const __grid_constant__ ScanArguments args) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<ScanShared<V, kRing>*>(memory);
  __shared__ SoftmaxPart of_warps[kScanWarps][kTileHeads];
  const HeadTiles& tiles = args.of.tiles;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int run_row = blockIdx.z, row = args.of.first_row + run_row;
  const int in_set = blockIdx.y % tiles.per_set * kTileHeads;
  const int first_head = blockIdx.y / tiles.per_set * tiles.set + in_set, heads = min(kTileHeads, tiles.set - in_set);
  const int kv_head = first_head / (tiles.heads / tiles.kv_heads);
  const DeviceRow at = row_of(args.of.tables, row);
  const bool sums = args.of.needs_sums || args.of.tables.chunks[args.of.tables.row_chunk[row]].top_p < 1;
  const int filled = at.context / kBlockTokens, split = blockIdx.x, first_block = warp * args.of.splits + split;
  BlockRing<V, kRing> ring(args, at.table, kv_head, first_block, args.of.splits * kScanWarps, filled,
                           shared.sketches[warp][0]);
  // The CTA with the fewest full blocks has the one still filling.
  const FillingBlock filling(args.of, at, kv_head);
  const bool fills = filling.count > 0 && split == args.of.splits - 1;
  if (fills) filling.fetch(V::dim(args));
  // Blocks that were full before this pass were sketched before, too.
  const int settled = args.of.early ? at.position / kBlockTokens : 0;
  ring.load_settled(settled);
  wait_for_kernels_before();
  ring.load_others(settled);
  load_queries<V>(args, row, first_head, heads, shared.q);
  __syncthreads();

  const int64_t first = static_cast<int64_t>(run_row) * tiles.heads + first_head;
  float* const scores = args.of.scores + (first + 2 * t) * args.of.score_stride;
  ScoreKeeper<V> keeper{scores,
                        args.of.score_stride,
                        scores + first_block * kBlockTokens + 2 * g,
                        args.of.splits * kScanWarps * kBlockTokens,
                        heads,
                        sums,
                        args.of.scale,
                        sums ? args.of.cap : 0.0f,
                        {}};
  score_blocks(args, ring, shared.q, heads, shared.of_warps[warp], keeper);
  if (fills) keeper.add_keys(filling, V::dim(args), at.context, shared.q);
  const SoftmaxPart part = keeper.part(of_warps);
  const int head = static_cast<int>(threadIdx.x) / 8;
  if (threadIdx.x % 8 == 0 && head < heads) args.of.part_statistics[(first + head) * args.of.splits + split] = part;
}

template <class V, bool kRing>
void launch_with(const ScanArguments& args, cudaStream_t stream) {
  constexpr const char* kWhat = "scores from sketches";
  constexpr int kBytes = sizeof(ScanShared<V, kRing>);
  const auto kernel = scan_scores_kernel<V, kRing>;
  if (kBytes + kStaticBytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), kWhat);
  }
  launch(kWhat, args.of.fresh_tables ? Start::After : Start::Early, kernel,
         dim3(args.of.splits, args.of.tiles.tiles(), args.of.run), dim3(kScanThreads), kBytes, stream, args);
}

template <class V>
void launch_variant(const ScanArguments& args, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ScanShared<V, true>);
  if constexpr (kBytes + kStaticBytes > kLeastSharedMemory) {
    if (args.of.shared_memory < kBytes + kStaticBytes) return launch_with<V, false>(args, stream);
  }
  launch_with<V, true>(args, stream);
}

/// 2 bits, the default, and a usual size of heads: for few of them, too.
template <int kDim>
void launch_usual(const ScanArguments& args, cudaStream_t stream) {
  switch (std::min(args.of.tiles.set, kTileHeads)) {
    case 1: return launch_variant<ScanVariant<2, kDim, true, 1>>(args, stream);
    case 2: return launch_variant<ScanVariant<2, kDim, true, 2>>(args, stream);
    case 3:
    case 4: return launch_variant<ScanVariant<2, kDim, true, 4>>(args, stream);
    default: return launch_variant<ScanVariant<2, kDim, true, 8>>(args, stream);
  }
}

template <int kBits>
void launch_other(const ScanArguments& args, cudaStream_t stream) {
  if (args.of.head_dim > 256) return launch_variant<ScanVariant<kBits, 512, true, kTileHeads>>(args, stream);
  if (args.of.head_dim > 128) return launch_variant<ScanVariant<kBits, 256, false, kTileHeads>>(args, stream);
  return launch_variant<ScanVariant<kBits, 128, false, kTileHeads>>(args, stream);
}

}  // namespace

void launch_scan_scores(const ScanScoresArgs& of, cudaStream_t stream) {
  const SketchLayout layout{of.head_dim, of.bits};
  const ScanArguments args{of, layout.vectors(), layout.codes_offset(), layout.bytes()};
  if (of.bits == 1) return launch_other<1>(args, stream);
  if (of.bits == 4) return launch_other<4>(args, stream);
  switch (of.head_dim) {
    case 64: return launch_usual<64>(args, stream);
    case 128: return launch_usual<128>(args, stream);
    case 256: return launch_usual<256>(args, stream);
    default: return launch_other<2>(args, stream);
  }
}

}  // namespace tidal::cuda
