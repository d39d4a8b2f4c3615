// Selection and attention of a Scan layer in one launch (compute capability 9.0 and above): a cluster of blocks a set.
//
// The blocks find the end of the set as select_cluster.cuh does. Then each sends the rows that it takes to the blocks
// that attend to them: the list is cut into pieces of 64 positions, the pieces go to the blocks in turns, and four
// warps have 16 positions of a piece each, as in attend_rows.cuh. What comes of a piece goes to the first block, which
// adds the pieces up in order. Nothing waits for global memory but the rows themselves, and no block for others than
// those that it hears from.
//
// A piece is what a split is where attention is a launch of its own, so all sums are the same bits.
#include <algorithm>

#include "backend/cuda/attention/attend_rows.cuh"
#include "backend/cuda/attention/select_attend.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/selection/cluster_launch.h"
#include "backend/cuda/selection/select_cluster.cuh"

namespace tidal::cuda {
namespace {

constexpr int kMostPieces = 8;    // of a set
constexpr int kPiecesAtOnce = 2;  // of a block

/// Beside what the selection needs.
template <int kDim, KvType kType>
struct alignas(16) PieceMemory {
  char slices[kPiecesAtOnce][kAttendWarps * AttendSizes<kDim, kType>::kSliceBytes];
  uint32_t rows[kMostPieces][kPieceStep];  // of this block's pieces: block of the cache * kBlockTokens + place in it
  // Of the first block: all pieces' parts, and their weights in the sum.
  float outs[kMostPieces][kTileHeads][kDim];
  SoftmaxPart parts[kMostPieces][kTileHeads];
  float weights[kTileHeads][kMostPieces], inverse[kTileHeads];
  uint64_t rows_there, parts_there;  // barriers
};

/// How the pieces of a set are dealt to the blocks of its cluster.
struct Deal {
  int positions, blocks;

  __device__ int pieces() const { return (positions + kPieceStep - 1) / kPieceStep; }
  /// Positions of a piece; of all pieces of a block.
  __device__ int count(int piece) const { return min(kPieceStep, positions - piece * kPieceStep); }
  __device__ int count_of(int rank) const {
    int sum = 0;
    for (int piece = rank; piece < pieces(); piece += blocks) sum += count(piece);
    return sum;
  }
};

/// Waits for the threads of a piece.
__device__ inline void meet_piece(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kAttendThreads) : "memory");
}

/// Attention over this block's pieces, by as many warps as there are pieces at once; sends what comes of them to the
/// first block.
template <int kDim, KvType kType>
__device__ inline void attend_pieces(const AttendRowsArgs& args, const AttendTask& task, const Deal& deal, int rank,
                                     const Query<kDim>& q, PieceMemory<kDim, kType>& memory) {
  const int group = threadIdx.x / kAttendThreads, thread = threadIdx.x % kAttendThreads, warp = thread / 32;
  const int kv_head = task.first_head / (args.tiles.heads / args.tiles.kv_heads);
  char* const slice = memory.slices[group] + warp * AttendSizes<kDim, kType>::kSliceBytes;
  bool waited = false;
  for (int own = group; rank + own * deal.blocks < deal.pieces(); own += kPiecesAtOnce) {
    const int piece = rank + own * deal.blocks, valid = deal.count(piece) - warp * kSlice;
    if (!waited) wait_for_bytes(&memory.rows_there);
    waited = true;
    WarpState<kDim> state;
    if (valid > 0) {
      const uint32_t row = memory.rows[own][warp * kSlice + min(static_cast<int>(threadIdx.x % kSlice), valid - 1)];
      const int64_t tile = static_cast<int64_t>(row / kBlockTokens) * args.tiles.kv_heads + kv_head;
      const int64_t from = tile * args.tile_stride + row % kBlockTokens * AttendSizes<kDim, kType>::kRowBytes;
      copy_slice<kDim, kType, true, false>(shared_address(slice), args.kv, from, 0, valid);
      commit_copies();
      wait_for_copies<0>();
      __syncwarp();
      add_slice<kDim, kType>(args, task, slice, false, 0, 0, valid, q, state);
      add_lanes(state);
    }
    merge_warps<kDim, kType>(
        thread, task.heads, args.scale, state, memory.slices[group], [&] { meet_piece(group); },
        [&](int h, int d, SoftmaxPart part, float value) {
          send(&memory.outs[piece][h][d], &memory.parts_there, __float_as_uint(value), 0);
          if (d != 0) return;
          send(&memory.parts[piece][h].maximum, &memory.parts_there, __float_as_uint(part.maximum), 0);
          send(&memory.parts[piece][h].sum, &memory.parts_there, __float_as_uint(part.sum), 0);
        });
    meet_piece(group);  // the others may still read
  }
}

/// The first block's: adds up the pieces as merge_splits() does.
template <int kDim, KvType kType>
__device__ inline void merge_pieces(const AttendRowsArgs& args, const AttendTask& task, int pieces,
                                    PieceMemory<kDim, kType>& memory) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  wait_for_bytes(&memory.parts_there);
  if (warp < task.heads) {
    SoftmaxPart own = {negative_infinity(), 0};
    if (lane < pieces) own = memory.parts[lane][warp];
    float top = own.maximum;
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, apart));
    float sum = 0;
    if (lane < pieces) {
      const float weight = part_factor(own.maximum, top, args.scale);
      memory.weights[warp][lane] = weight;
      sum = __fmaf_rn(weight, own.sum, 0.0f);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, apart));
    if (lane == 0) memory.inverse[warp] = __fdiv_rn(1.0f, with_sink(args, task.first_head + warp, top, sum));
  }
  __syncthreads();
  float* const out = args.out + (static_cast<int64_t>(task.row) * args.tiles.heads + task.first_head) * kDim;
  for (int i = threadIdx.x; i < task.heads * kDim; i += kSelectThreads) {
    const int h = i / kDim, d = i % kDim;
    float sum = 0;
    for (int piece = 0; piece < pieces; ++piece) {
      sum = __fmaf_rn(memory.weights[h][piece], memory.outs[piece][h][d], sum);
    }
    out[i] = __fmul_rn(sum, memory.inverse[h]);
  }
}

/// Grid (blocks of a cluster, KV heads, rows).
template <Ranking kRanking, int kDim, KvType kType>
__global__ void __launch_bounds__(kSelectThreads, 1)
    select_attend_kernel(const __grid_constant__ SelectArgs args, const __grid_constant__ AttendRowsArgs attend,
                         int slice_room) {
  extern __shared__ __align__(16) char bytes[];
  const int unit = blockIdx.y, row = args.first_row + static_cast<int>(blockIdx.z), group = args.heads / args.units;
  const SelectMemory memory = select_memory(bytes, slice_room, group);
  auto& pieces =
      *reinterpret_cast<PieceMemory<kDim, kType>*>(bytes + select_shared_bytes(gridDim.x, slice_room, group));
  const RowPolicy policy = row_policy(args.tables, row, args.scan);
  const SetSlice slice = begin_set<kSelectThreads>(args, policy, row, memory);
  if (threadIdx.x == 0) make_barrier(&pieces.rows_there), make_barrier(&pieces.parts_there);
  __syncthreads();
  meet_cluster();
  wait_for_kernels_before();
  if (slice.rank >= slice.blocks) return;

  const SetEnd end = find_end<kRanking, kSelectThreads>(args, policy, slice, memory);
  const Deal deal{end.count, slice.blocks};
  const AttendTask task{row, static_cast<int>(blockIdx.z), unit * group, group, 0, end.count};
  const bool attends = threadIdx.x < kPiecesAtOnce * kAttendThreads && slice.rank < deal.pieces();
  Query<kDim> q;
  if (attends) load_query<kDim, kType>(attend, task, q);
  if (threadIdx.x == 0) {
    args.counts[args.row_units * row + unit] = end.count;
    if (slice.rank < deal.pieces()) tell_bytes(&pieces.rows_there, sizeof(uint32_t) * deal.count_of(slice.rank));
    if (slice.rank == 0) {
      tell_bytes(&pieces.parts_there, deal.pieces() * group * (sizeof(float) * kDim + sizeof(SoftmaxPart)));
    }
  }
  write_slice<kSelectThreads>(
      policy, slice, end.search, end.ranks, memory, list_of(args, policy, row, unit), [&](int place, int position) {
        const int piece = place / kPieceStep;
        const int32_t block = memory.table[position / kBlockTokens - slice.begin / kBlockTokens];
        send(&pieces.rows[piece / deal.blocks][place % kPieceStep], &pieces.rows_there,
             static_cast<uint32_t>(block * kBlockTokens + position % kBlockTokens), piece % deal.blocks);
      });
  if (attends) attend_pieces<kDim, kType>(attend, task, deal, slice.rank, q, pieces);
  if (slice.rank == 0) merge_pieces<kDim, kType>(attend, task, deal.pieces(), pieces);
  if (end.ranks && policy.top_p < 1) synchronise_cluster();  // the others may still read
}

using Kernel = void (*)(SelectArgs, AttendRowsArgs, int);

template <int kDim, KvType kType>
Kernel kernel_of(Ranking ranking) {
  return ranking == Ranking::Raw   ? select_attend_kernel<Ranking::Raw, kDim, kType>
         : ranking == Ranking::Sum ? select_attend_kernel<Ranking::Sum, kDim, kType>
                                   : nullptr;
}
/// Null where there is none.
Kernel kernel_for(Ranking ranking, int head_dim, KvType type) {
  const bool q8 = type == KvType::Q8;
  switch (head_dim) {
    case 64: return q8 ? kernel_of<64, KvType::Q8>(ranking) : kernel_of<64, KvType::Bf16>(ranking);
    case 128: return q8 ? kernel_of<128, KvType::Q8>(ranking) : kernel_of<128, KvType::Bf16>(ranking);
    default: return nullptr;
  }
}

/// With any type of cache: bf16 takes the most.
size_t shared_bytes(int blocks, int slice, int group, int head_dim) {
  return select_shared_bytes(blocks, slice, group) +
         (head_dim == 64 ? sizeof(PieceMemory<64, KvType::Bf16>) : sizeof(PieceMemory<128, KvType::Bf16>));
}
static_assert(sizeof(PieceMemory<64, KvType::Q8>) <= sizeof(PieceMemory<64, KvType::Bf16>) &&
              sizeof(PieceMemory<128, KvType::Q8>) <= sizeof(PieceMemory<128, KvType::Bf16>));

constexpr const char* kWhat = "selecting positions and attending to them";

}  // namespace

SelectAttend::SelectAttend(int group, int head_dim, int max_context) : max_context_(max_context), group_(group) {
  if (compute_capability() < 90 || group > kTileHeads) return;
  bool first = true;
  for (const KvType type : {KvType::Bf16, KvType::Q8}) {
    for (const Ranking ranking : {Ranking::Raw, Ranking::Sum}) {
      const Kernel kernel = kernel_for(ranking, head_dim, type);
      if (!kernel) return;
      const ClusterCounts counts = count_clusters(
          reinterpret_cast<const void*>(kernel), kSelectThreads,
          [&](int blocks) { return shared_bytes(blocks, slice_length(max_context, blocks), group, head_dim); });
      for (size_t i = 0; i < counts.size(); ++i) active_[i] = first ? counts[i] : std::min(active_[i], counts[i]);
      first = false;
    }
  }
}

ClusterChoice SelectAttend::choose(const SelectArgs& select, int splits) const {
  // What is spared: a launch, and what it begins with.
  constexpr int64_t kLaunch = 8000;
  const int room = select.row_positions / select.units;
  if (ranking_of(select) == Ranking::Max || room > kPieceStep * std::min(splits, kMostPieces)) return {};
  ClusterChoice choice = cheapest_cluster(
      select.units * select.run, [&](int blocks) { return active_[blocks]; },
      [&](int blocks) { return int64_t{group_} * slice_length(max_context_, blocks); });
  choice.cost -= kLaunch;
  return choice.waves == 1 ? choice : ClusterChoice{};
}

void launch_select_attend(const SelectArgs& select, const AttendRowsArgs& attend, int blocks, cudaStream_t stream) {
  const int slice = slice_length(select.max_context, blocks), group = select.heads / select.units;
  const ClusterLaunch launch(kSelectThreads, blocks, select.units, select.run,
                             shared_bytes(blocks, slice, group, attend.head_dim), stream);
  check(cudaLaunchKernelEx(&launch.config, kernel_for(ranking_of(select), attend.head_dim, attend.type), select, attend,
                           slice),
        kWhat);
}

}  // namespace tidal::cuda
