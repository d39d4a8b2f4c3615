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
  sums_.resize(static_cast<size_t>(heads_) * pieces);
  for (auto* of_heads : {&reference_, &factors_, &head_maximum_, &head_sum_}) of_heads->resize(heads_);
}

void Scan::divide(int context) {
  constexpr int kPiece = kPieceBlocks * kBlockTokens;
  const int filled = context / kBlockTokens * kBlockTokens;
  ends_.clear();
  for (int end = kPiece; end < filled; end += kPiece) ends_.push_back(end);
  if (filled > 0) ends_.push_back(filled);
  if (filled < context) ends_.push_back(context);
}

void Scan::score(const Row& row, int kv_head, int begin, int end, float* sum) {
  const int first_head = kv_head * group_, first_block = begin / kBlockTokens;
  const float* q = row.q + static_cast<int64_t>(first_head) * head_dim_;
  float* const scores = row.scores + first_head * row.stride + begin;
  const ScanTerms terms{scale_ * kLog2e, reference_.data() + first_head, sum};
  const Chunk& chunk = *row.chunk;
  if (end % kBlockTokens != 0) {
    const std::byte* rows[kBlockTokens];
    for (int r = 0; r < end - begin; ++r) rows[r] = row.kv->row(chunk.blocks[first_block], kv_head, r);
    key_scores(q, group_, row.kv->row_layout(), rows, end - begin, scores, row.stride);
    for (int h = 0; sum && h < group_; ++h) {
      sum[h] = softmax_terms(scores + h * row.stride, end - begin, terms.scale, terms.reference[h]);
    }
    return;
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
  const ScanArgs args{q, group_, layout, sketches, blocks, after, scores, row.stride};
  if (sum) {
    scan_terms(args, terms);
  } else {
    scan_blocks(args);
  }
}

void Scan::find_references(const Row& row, int kv_head) {
  const int count = std::min(row.chunk->context(), kBlockTokens);
  score(row, kv_head, 0, count, nullptr);
  for (int h = kv_head * group_; h < (kv_head + 1) * group_; ++h) {
    const float* const scores = row.scores + h * row.stride;
    reference_[h] = *std::max_element(scores, scores + count) * (scale_ * kLog2e);
  }
}

bool Scan::find_factors() {
  const int pieces = static_cast<int>(ends_.size());
  // So that neither a sum nor what it divides is out of the range of float32.
  constexpr float kLeast = 0x1p-60f, kMost = 0x1p100f;
  bool good = true;
  for (int h = 0; h < heads_; ++h) {
    const float* const own = sums_.data() + h / group_ * pieces * group_ + h % group_;
    float sum = 0;
    for (int p = 0; p < pieces; ++p) sum += own[p * group_];
    good = good && sum >= kLeast && sum <= kMost;
    factors_[h] = 1.0f / sum;
  }
  return good;
}

void Scan::select_by_scores(const Row& row, const Policy& policy, const Selection& selection) {
  const int pieces = static_cast<int>(ends_.size()), context = row.chunk->context();
  const bool weighs = tidal::weighs(policy, heads_, heads_ / group_);
#pragma omp parallel num_threads(threads_)
  {
#pragma omp for schedule(static)
    for (int task = 0; task < heads_ / group_ * pieces; ++task) {
      const int kv_head = task / pieces, begin = begin_of(task % pieces), end = ends_[task % pieces];
      score(row, kv_head, begin, end, nullptr);
      for (int h = kv_head * group_; weighs && row.cap > 0 && h < (kv_head + 1) * group_; ++h) {
        cap_by(row.cap, end - begin, row.scores + h * row.stride + begin);
      }
    }
#pragma omp for schedule(static)
    for (int h = 0; h < (weighs ? heads_ : 0); ++h) {
      softmax_statistics(row.scores + h * row.stride, context, scale_, head_maximum_[h], head_sum_[h]);
    }
  }
  selector_.select(RowScores{row.scores, row.stride, head_maximum_.data(), head_sum_.data(), scale_}, *row.chunk,
                   policy, selection);
}

void Scan::select(const Chunk& chunk, const float* q, const KvLayer& kv, float cap, float* scores, int64_t stride,
                  const Selection& selection) {
  const Row row{&chunk, q, &kv, cap, scores, stride};
  const Policy policy = scan_policy(chunk.policy, chunk.context());
  divide(chunk.context());
  // Terms are made of scores as they are.
  if (cap > 0 || !selector_.takes_terms(policy)) return select_by_scores(row, policy, selection);
  // Rare: the terms have taken the place of the scores that are asked for now.
  if (!make_terms(row)) return select_by_scores(row, policy, selection);
  selector_.select(RowTerms{scores, stride, factors_.data()}, chunk, policy, selection);
}

bool Scan::complete(const Chunk& chunk, const float* q, const KvLayer& kv, float* scores, int64_t stride,
                    const KvRequests& requests, Completer& completer, const Selection& selection) {
  const Row row{&chunk, q, &kv, 0, scores, stride};
  divide(chunk.context());
  if (!make_terms(row)) {
    select_by_scores(row, scan_policy(chunk.policy, chunk.context()), selection);
    return false;
  }
  completer.complete({&chunk, q, &kv, scores, stride, scale_, reference_.data(), factors_.data()}, requests, selection);
  return true;
}

bool Scan::make_terms(const Row& row) {
  const int pieces = static_cast<int>(ends_.size());
#pragma omp parallel num_threads(threads_)
  {
#pragma omp for schedule(static)
    for (int h = 0; h < heads_ / group_; ++h) find_references(row, h);
#pragma omp for schedule(static)
    for (int task = 0; task < heads_ / group_ * pieces; ++task) {
      const int piece = task % pieces;
      score(row, task / pieces, begin_of(piece), ends_[piece], sums_.data() + static_cast<ptrdiff_t>(task) * group_);
    }
  }
  return find_factors();
}

}  // namespace tidal
