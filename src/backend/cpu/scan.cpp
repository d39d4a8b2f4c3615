#include "backend/cpu/scan.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/scan_blocks.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kPieceBlocks = 16;  // blocks of one piece: the scores of a few heads stay in the first-level cache
constexpr float kLog2e = 1.44269504f;

}  // namespace

void Scan::reserve(const Hyperparameters& hp, int max_context) {
  heads_ = hp.heads;
  group_ = hp.group();
  head_dim_ = hp.head_dim;
  scale_ = 1.0f / std::sqrt(static_cast<float>(hp.head_dim));
  const int pieces = max_context / (kPieceBlocks * kBlockTokens) + 2;
  ends_.reserve(pieces);
  for (auto* of_pieces : {&maximum_, &sum_, &factors_}) of_pieces->resize(static_cast<size_t>(heads_) * pieces);
  head_maximum_.resize(heads_);
  head_sum_.resize(heads_);
}

void Scan::divide(int context) {
  constexpr int kPiece = kPieceBlocks * kBlockTokens;
  const int filled = context / kBlockTokens * kBlockTokens;
  ends_.clear();
  for (int end = kPiece; end < filled; end += kPiece) ends_.push_back(end);
  if (filled > 0) ends_.push_back(filled);
  if (filled < context) ends_.push_back(context);
}

void Scan::score(const Row& row, int kv_head, int piece) {
  const int begin = piece == 0 ? 0 : ends_[piece - 1], end = ends_[piece];
  const int first_head = kv_head * group_, first_block = begin / kBlockTokens;
  const float* q = row.q + static_cast<int64_t>(first_head) * head_dim_;
  float* const scores = row.scores + first_head * row.stride + begin;
  const Chunk& chunk = *row.chunk;
  if (end % kBlockTokens != 0) {
    const Bf16* keys = row.kv->tile(chunk.blocks[first_block], kv_head);
    return key_scores(q, group_, head_dim_, keys, end - begin, scores, row.stride);
  }
  const SketchLayout layout{head_dim_, chunk.policy.sketch_bits};
  // Most often the thread goes on with the piece behind.
  constexpr int kAfter = 8;
  const std::byte* sketches[kPieceBlocks + kAfter];
  const int blocks = (end - begin) / kBlockTokens, filled = chunk.context() / kBlockTokens;
  const int after = std::min(kAfter, filled - first_block - blocks);
  for (int b = 0; b < blocks + after; ++b) {
    sketches[b] = row.kv->sketch(layout.bits, chunk.blocks[first_block + b], kv_head);
  }
  scan_blocks({q, group_, layout, sketches, blocks, after, scores, row.stride});
}

void Scan::make_terms(const Row& row, int kv_head, int piece) {
  score(row, kv_head, piece);
  const int begin = piece == 0 ? 0 : ends_[piece - 1];
  for (int h = kv_head * group_; h < (kv_head + 1) * group_; ++h) {
    const size_t at = h * ends_.size() + piece;
    softmax_terms(row.scores + h * row.stride + begin, ends_[piece] - begin, scale_ * kLog2e, maximum_[at], sum_[at]);
  }
}

bool Scan::find_factors() {
  const int pieces = static_cast<int>(ends_.size());
  bool finite = true;
  for (int h = 0; h < heads_; ++h) {
    float* const own = factors_.data() + h * pieces;
    const float* const sums = sum_.data() + h * pieces;
    std::copy_n(maximum_.begin() + h * pieces, pieces, own);
    float maximum, ignored, sum = 0;
    softmax_terms(own, pieces, 1.0f, maximum, ignored);
    for (int p = 0; p < pieces; ++p) sum += own[p] * sums[p];
    finite = finite && std::isfinite(maximum) && std::isfinite(sum);
    scale_by(1.0f / sum, pieces, own);
  }
  return finite;
}

void Scan::select_by_scores(const Row& row, const Policy& policy, const Selection& selection) {
  const int pieces = static_cast<int>(ends_.size()), context = row.chunk->context();
#pragma omp parallel num_threads(threads_)
  {
#pragma omp for schedule(static)
    for (int task = 0; task < heads_ / group_ * pieces; ++task) score(row, task / pieces, task % pieces);
#pragma omp for schedule(static)
    for (int h = 0; h < heads_; ++h) {
      softmax_statistics(row.scores + h * row.stride, context, scale_, head_maximum_[h], head_sum_[h]);
    }
  }
  selector_.select({row.scores, row.stride, head_maximum_.data(), head_sum_.data(), scale_}, *row.chunk, policy,
                   selection);
}

void Scan::select(const Chunk& chunk, const float* q, const KvLayer& kv, float* scores, int64_t stride,
                  const Selection& selection) {
  const Row row{&chunk, q, &kv, scores, stride};
  const Policy policy = scan_policy(chunk.policy, chunk.context());
  divide(chunk.context());
  if (!Selector::takes_terms(policy)) return select_by_scores(row, policy, selection);
  const int pieces = static_cast<int>(ends_.size());
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (int task = 0; task < heads_ / group_ * pieces; ++task) make_terms(row, task / pieces, task % pieces);
  // Rare: the terms have taken the place of the scores that are asked for now.
  if (!find_factors()) return select_by_scores(row, policy, selection);
  selector_.select({scores, stride, factors_.data(), ends_.data(), pieces}, chunk, policy, selection);
}

}  // namespace tidal
