#include "backend/cpu/completion.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "backend/cpu/value_sums.h"
#include "backend/cpu/vector_ops.h"
#include "core/bf16.h"

namespace tidal {
namespace {

constexpr int kPieceBlocks = 64;  // whose means are added together
constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

}  // namespace

void Completer::take_shape(const ScanRow& row) {
  const KvLayer& kv = *row.kv;
  head_dim_ = kv.head_dim;
  sets_.resize(kv.kv_heads);
  group_ = selector_.heads() / kv.kv_heads;
  heads_ = group_ * kv.kv_heads;
  blocks_ = row.chunk->context() / kBlockTokens;
  pieces_ = (blocks_ + kPieceBlocks - 1) / kPieceBlocks;
  block_weights_.resize(static_cast<size_t>(heads_) * blocks_);
  piece_outputs_.resize(static_cast<size_t>(heads_) * pieces_ * head_dim_);
  outputs_.resize(static_cast<size_t>(heads_) * head_dim_);
  maximum_.resize(heads_);
  sums_.resize(heads_);
}

void Completer::complete(const ScanRow& row, const KvRequests& requests, const Selection& selection) {
  take_shape(row);
  const int kv_heads = row.kv->kv_heads, full = blocks_ * kBlockTokens;
  const RowTerms terms{row.terms, row.stride, row.factors};
  selector_.begin(*row.chunk);
#pragma omp parallel num_threads(threads_)
  {
    // Static: threads find the terms of the KV heads that they scored in their own cache.
#pragma omp for schedule(static)
    for (int task = 0; task < kv_heads * selector_.ranges(); ++task) {
      const int kv_head = task / selector_.ranges();
      const auto [begin, end] = selector_.pool(terms, kv_head, group_, task % selector_.ranges());
      const int blocks = (std::min(end, full) - begin) / kBlockTokens;
      for (int h = kv_head * group_; blocks > 0 && h < (kv_head + 1) * group_; ++h) {
        block_sums(row.terms + h * row.stride + begin, blocks, block_weights(h) + begin / kBlockTokens);
      }
    }
#pragma omp for schedule(static)
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) choose(row, requests, kv_head, selection);
#pragma omp for schedule(static)
    for (int task = 0; task < kv_heads * pieces_; ++task) add_means(row, task / pieces_, task % pieces_);
#pragma omp for schedule(static)
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) add_estimates(kv_head, sets_[kv_head]);
  }
}

void Completer::find_codes(const ScanRow& row, int kv_head, Set& set) {
  const ValueSketchLayout layout{head_dim_};
  set.codes.clear();
  set.scales.clear();
  for (const int32_t p : set.estimated) {
    // Positions of the block still filling, the last ones, are all selected.
    if (p >= blocks_ * kBlockTokens) break;
    const std::byte* const sketch = row.kv->value_sketch(row.chunk->blocks[p / kBlockTokens], kv_head);
    const int offset = p % kBlockTokens;
    set.codes.push_back(sketch + layout.codes_offset() + offset * layout.row_bytes());
    set.scales.push_back(reinterpret_cast<const Bf16*>(sketch + layout.scales_offset()) + offset);
    // They are anywhere in memory, and needed behind the keys.
    __builtin_prefetch(set.codes.back());
    __builtin_prefetch(set.scales.back());
  }
}

void Completer::rank(const ScanRow& row, const KvRequests& requests, int kv_head, Set& set) {
  const Chunk& chunk = *row.chunk;
  const KvLayer& kv = *row.kv;
  const auto count = static_cast<int>(set.ranked.size());
  if (requests) requests.ask_for(chunk, kv_head, set.ranked);
  set.rows.clear();
  for (const int32_t p : set.ranked) {
    set.rows.push_back(kv.row(chunk.blocks[p / kBlockTokens], kv_head, p % kBlockTokens));
  }
  set.scores.resize(static_cast<size_t>(group_) * count);
  key_scores(row.q + static_cast<ptrdiff_t>(kv_head) * group_ * head_dim_, group_, kv.row_layout(), set.rows.data(),
             count, set.scores.data(), count);
  set.pooled.resize(count);
  std::vector<float>& factors = set.weights;  // not in use yet
  factors.resize(group_);
  for (int h = 0; h < group_; ++h) {
    float* const own = set.scores.data() + static_cast<ptrdiff_t>(h) * count;
    const float scale = row.scale * kLog2e;
    float& maximum = maximum_[kv_head * group_ + h];
    maximum = *std::max_element(own, own + count) * scale;
    factors[h] = 1.0f / softmax_terms(own, count, scale, maximum);
  }
  weighted_sum(set.scores.data(), count, factors.data(), group_, count, set.pooled.data());
}

void Completer::choose(const ScanRow& row, const KvRequests& requests, int kv_head, const Selection& selection) {
  const Chunk& chunk = *row.chunk;
  const Policy& policy = chunk.policy;
  const int context = chunk.context();
  Set& set = sets_[kv_head];
  const Policy outer = tier_policy(policy, context, policy.completion.estimated);
  const Policy inner = tier_policy(policy, context, policy.completion.ranked);
  const Policy own = scan_policy(policy, context);
  set.estimated.resize(outer.budget);
  take_positions(outer, selector_.ranking(kv_head), context, set.estimated.data());
  find_codes(row, kv_head, set);
  set.pooled.clear();
  for (const int32_t p : set.estimated) set.pooled.push_back(selector_.ranking(kv_head)[p]);
  set.ranked.resize(inner.budget);
  take_positions(inner, set.pooled.data(), outer.budget, set.ranked.data());
  for (int32_t& p : set.ranked) p = set.estimated[p];
  rank(row, requests, kv_head, set);
  int32_t* const selected = selection.unit(chunk, kv_head);
  take_positions(own, set.pooled.data(), inner.budget, selected);
  for (int i = 0; i < own.budget; ++i) selected[i] = set.ranked[selected[i]];
  selection.count(chunk, kv_head) = own.budget;
  find_sources(set, {selected, static_cast<size_t>(own.budget)});
  set.weights.assign(static_cast<size_t>(group_) * set.estimated.size(), 0.0f);
  for (int h = 0; h < group_; ++h) weigh(row, kv_head * group_ + h, set);
}

void Completer::find_sources(Set& set, std::span<const int32_t> selected) {
  set.sources.assign(set.estimated.size(), kScan);
  // All three lists are ascending, each within the one before.
  for (size_t i = 0, r = 0, s = 0; r < set.ranked.size(); ++r, ++i) {
    while (set.estimated[i] != set.ranked[r]) ++i;
    const bool taken = s < selected.size() && selected[s] == set.ranked[r];
    set.sources[i] = taken ? kSelected : static_cast<int32_t>(r);
    s += taken;
  }
}

void Completer::weigh(const ScanRow& row, int head, Set& set) {
  const auto h = static_cast<ptrdiff_t>(head % group_), count = std::ssize(set.estimated);
  // Both kinds of terms by the higher of their references.
  const float maximum = std::max(maximum_[head], row.references[head]);
  const float of_scan = std::exp2(row.references[head] - maximum), of_keys = std::exp2(maximum_[head] - maximum);
  const float of_means = of_scan * kShareOfMeans;
  float* const terms = row.terms + head * row.stride;
  const float* const exact = set.scores.data() + h * std::ssize(set.ranked);
  float* const blocks = block_weights(head);
  float* const weights = set.weights.data() + h * count;
  std::vector<float>&taken = set.taken, &added = set.added;
  taken.assign(static_cast<size_t>(blocks_), 0.0f);
  added.assign(static_cast<size_t>(blocks_), 0.0f);
  for (ptrdiff_t i = 0; i < std::ssize(set.codes); ++i) {
    const int32_t p = set.estimated[i], source = set.sources[i];
    weights[i] = source >= 0 ? exact[source] * of_keys : source == kScan ? terms[p] * of_scan : 0.0f;
    added[p / kBlockTokens] += weights[i];
    taken[p / kBlockTokens] += std::exchange(terms[p], 0.0f);
  }
  // Of a block whose terms are nearly all taken out a difference would say little.
  constexpr float kLittle = 0x1p-6f;
  float sum = 0;
  for (int b = 0; b < blocks_; ++b) {
    float left = blocks[b] - taken[b];
    if (left < blocks[b] * kLittle) block_sums(terms + static_cast<ptrdiff_t>(b) * kBlockTokens, 1, &left);
    sum += blocks[b] = left * of_means + added[b];
  }
  sums_[head] = sum;
  // With nothing left its reference must not count in the merge.
  maximum_[head] = sum > 0 ? maximum * kLn2 : -std::numeric_limits<float>::infinity();
}

void Completer::add_means(const ScanRow& row, int kv_head, int piece) {
  const ValueSketchLayout layout{head_dim_};
  const int first = piece * kPieceBlocks, count = std::min(kPieceBlocks, blocks_ - first);
  const std::byte* sketches[kPieceBlocks];
  for (int b = 0; b < count; ++b) sketches[b] = row.kv->value_sketch(row.chunk->blocks[first + b], kv_head);
  const ptrdiff_t floats = static_cast<ptrdiff_t>(group_) * head_dim_;
  float* const out = piece_outputs_.data() + (static_cast<ptrdiff_t>(kv_head) * pieces_ + piece) * floats;
  std::fill_n(out, floats, 0.0f);
  tidal::add_means(layout, sketches, count, block_weights(kv_head * group_) + first, blocks_, group_, out);
}

void Completer::add_estimates(int kv_head, Set& set) {
  const auto count = std::ssize(set.estimated);
  const ptrdiff_t floats = static_cast<ptrdiff_t>(group_) * head_dim_;
  float* const out = outputs_.data() + kv_head * floats;
  const float* from = piece_outputs_.data() + kv_head * pieces_ * floats;
  std::fill_n(out, floats, 0.0f);
  for (int piece = 0; piece < pieces_; ++piece, from += floats) add_to(from, static_cast<int>(floats), out);
  for (ptrdiff_t i = 0; i < std::ssize(set.codes); ++i) {
    const float scale = to_float(*set.scales[i]);
    for (int h = 0; h < group_; ++h) set.weights[h * count + i] *= scale;
  }
  add_codes({head_dim_}, set.codes.data(), static_cast<int>(set.codes.size()), set.weights.data(), count, group_, out);
}

}  // namespace tidal
