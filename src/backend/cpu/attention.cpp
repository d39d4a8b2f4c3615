#include "backend/cpu/attention.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/memory.h"

namespace tidal {
namespace {

constexpr int kDensePiece = 1024;  // positions of one piece of dense attention
constexpr int kSparsePieces = 16;  // most pieces of sparse attention, while they are shorter than a dense one
constexpr size_t kTasksAhead = 8;  // that are asked for before their turn, where K and V are in a file
constexpr int kWave = 16;          // rows whose pieces are in flight together; bounds the memory for parts

int pieces(int count, int piece) { return (count + piece - 1) / piece; }

// Positions of one piece of a few: enough pieces to share among threads, none too small to be worth it.
int piece_of(int most) { return std::clamp((most / kSparsePieces + 63) / 64 * 64, 128, kDensePiece); }

}  // namespace

void Attention::reserve(const Hyperparameters& hp, int max_context) {
  heads_ = hp.heads;
  size_t largest = 0;
  for (const KvShape& shape : {KvShape{hp.kv_heads, hp.head_dim}, hp.window_kv}) {
    if (!shape) continue;
    take_shape({.kv_heads = shape.heads, .head_dim = shape.head_dim});
    largest = std::max(largest, part_floats());
  }
  // Scope head is the most divided: every query head has pieces of its own. Windows may begin inside of a piece.
  const size_t parts =
      static_cast<size_t>(kWave) * hp.heads * (std::max(kSparsePieces, pieces(max_context, kDensePiece)) + 1);
  items_.reserve(parts);
  task_ends_.reserve(parts);
  part_memory_ = allocate_memory(sizeof(float) * parts * largest, "partial attention");
  done_ = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(kWave) * hp.heads);
  // Whole cache lines, and heads are no power of two apart: their lines would share few places of the cache.
  score_stride_ = (int64_t{max_context} + 15) / 16 * 16 + 16;
  scores_ = allocate_memory(sizeof(float) * heads_ * static_cast<size_t>(score_stride_), "attention scores");
  selector_.reserve(hp, max_context);
  scan_.reserve(hp, max_context);
  maximum_.resize(heads_);
  sum_.resize(heads_);
}

void Attention::take_shape(const KvLayer& kv) {
  group_ = heads_ / kv.kv_heads;
  head_dim_ = kv.head_dim;
  scale_ = 1.0f / std::sqrt(static_cast<float>(head_dim_));
}

// Rounded up so that every part starts on a cache line of its own.
size_t Attention::part_floats() const { return (static_cast<size_t>(group_) * (head_dim_ + 2) + 15) / 16 * 16; }

AttentionPart Attention::part(int index) const {
  float* base = part_memory_.as<float>() + part_floats() * index;
  const size_t output = static_cast<size_t>(group_) * head_dim_;
  return {base, base + output, base + output + group_};
}

void Attention::add(const Chunk& chunk, int rows, int first_head, int heads, const Reads& reads) {
  if (heads > kMaxAttendHeads) {
    Reads of_others = reads;
    if (reads.completed.output) {
      const AttentionPart& part = reads.completed;
      of_others.completed = {part.output + static_cast<ptrdiff_t>(kMaxAttendHeads) * head_dim_,
                             part.maximum + kMaxAttendHeads, part.sum + kMaxAttendHeads};
    }
    add(chunk, rows, first_head + kMaxAttendHeads, heads - kMaxAttendHeads, of_others);
    heads = kMaxAttendHeads;
  }
  // A task is one piece of the context for all rows: after the first row the piece is in the cache.
  const int first_part = parts_, first_counter = counters_, end_piece = reads.end_piece(rows - 1);
  for (int p = reads.first_piece(0); p < end_piece; ++p) {
    for (int r = 0, row_part = first_part; r < rows; ++r) {
      const int parts = reads.pieces(r), own = p - reads.first_piece(r);
      if (own >= 0 && own < parts) {
        items_.push_back({&chunk, chunk.first_row + r, first_head, heads, reads.selected,
                          std::max(reads.begin(r), p * reads.piece), std::min(reads.end(r), (p + 1) * reads.piece),
                          parts, reads.completed.output != nullptr, row_part, row_part + own, first_counter + r});
      }
      row_part += parts;
    }
    task_ends_.push_back(static_cast<int>(items_.size()));
  }
  for (int r = 0; r < rows; ++r) {
    parts_ += reads.pieces(r);
    done_[counters_++].store(0, std::memory_order_relaxed);
  }
  if (reads.completed.output) copy_part(reads.completed, heads, part(parts_++));
}

void Attention::copy_part(const AttentionPart& from, int heads, const AttentionPart& to) const {
  std::copy_n(from.output, static_cast<ptrdiff_t>(heads) * head_dim_, to.output);
  std::copy_n(from.maximum, heads, to.maximum);
  std::copy_n(from.sum, heads, to.sum);
}

void Attention::find_rows(const Item& item, KvLayer kv, const std::byte** rows) const {
  const int kv_head = item.first_head / group_;
  const int64_t row_bytes = kv.row_bytes();
  const std::span<const BlockId> blocks = item.chunk->blocks_of(kv);
  if (item.selected) {
    for (int i = item.begin; i < item.end; ++i) {
      const auto position = static_cast<uint32_t>(item.selected[i]);
      *rows++ = kv.tile(blocks[position / kBlockTokens], kv_head) + position % kBlockTokens * row_bytes;
    }
    return;
  }
  for (int begin = item.begin; begin < item.end;) {
    const int first = begin % kBlockTokens, count = std::min(item.end - begin, kBlockTokens - first);
    const std::byte* tile = kv.tile(blocks[begin / kBlockTokens], kv_head);
    for (int i = first; i < first + count; ++i) *rows++ = tile + i * row_bytes;
    begin += count;
  }
}

void Attention::ask_for_task(size_t task) const {
  const Item& item = items_[static_cast<size_t>(task_ends_[task]) - 1];  // of the row that sees most
  if (!item.selected) requests_.ask_for(*item.chunk, item.first_head / group_, item.begin, item.end);
}

void Attention::ask_for_items() {
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (const Item& item : items_) {
    if (!item.selected) continue;
    requests_.ask_for(*item.chunk, item.first_head / group_,
                      std::span(item.selected, static_cast<size_t>(item.end)).subspan(static_cast<size_t>(item.begin)));
  }
  for (size_t task = 0; task < std::min(kTasksAhead, task_ends_.size()); ++task) ask_for_task(task);
}

void Attention::run_items(Rows q, KvLayer kv, Rows out, float* scores) {
  const bool asks = static_cast<bool>(requests_);
  if (asks) ask_for_items();
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (size_t task = 0; task < task_ends_.size(); ++task) {
    if (asks && task + kTasksAhead < task_ends_.size()) ask_for_task(task + kTasksAhead);
    for (int i = task == 0 ? 0 : task_ends_[task - 1]; i < task_ends_[task]; ++i)
      run_item(items_[i], q, kv, out, scores);
  }
  items_.clear();
  task_ends_.clear();
  parts_ = 0;
  counters_ = 0;
}

void Attention::run_item(const Item& item, Rows q, KvLayer kv, Rows out, float* scores) {
  const std::byte* rows[kDensePiece];
  const int count = item.end - item.begin;
  find_rows(item, kv, rows);
  AttendRowsArgs args;
  args.q = q.row(item.row) + static_cast<int64_t>(item.first_head) * head_dim_;
  args.heads = item.heads;
  args.head_dim = head_dim_;
  args.type = kv.type;
  args.rows = rows;
  args.count = count;
  args.cap = options_.cap;
  args.scale = scale_;
  if (scores) {
    args.capped_scores = weighs(item.chunk->policy, heads_, heads_ / group_);
    args.scores = scores + item.first_head * score_stride_ + item.begin;
    args.scores_stride = score_stride_;
  }
  args.part = part(item.part);
  attend_rows(args);
  // Whoever finishes last merges; always in the order of the pieces, so the sum is the same every time.
  if (done_[item.counter].fetch_add(1, std::memory_order_acq_rel) + 1 == item.parts) {
    merge_parts(part(item.first_part), part_floats(), item.parts + item.completed, item.heads, head_dim_,
                options_.sink_logits ? options_.sink_logits + item.first_head : nullptr,
                out.row(item.row) + static_cast<int64_t>(item.first_head) * head_dim_,
                scores ? maximum_.data() + item.first_head : nullptr, scores ? sum_.data() + item.first_head : nullptr);
  }
}

void Attention::add_dense(const Chunk& chunk) {
  const int window = options_.window;
  const int piece = window > 0 ? piece_of(window) : kDensePiece;
  for (int h = 0; h < heads_; h += group_) {
    add(chunk, chunk.rows, h, group_, {.count = chunk.position + 1, .piece = piece, .window = window});
  }
}

void Attention::add_sparse(const Chunk& chunk, const Selection& selection, bool completed) {
  const int set = heads_ / scope_units(chunk.policy.scope, heads_, heads_ / group_);  // query heads that share one set
  for (int h = 0; h < heads_; h += std::min(set, group_)) {
    add(chunk, 1, h, std::min(set, group_),
        {.selected = selection.unit(chunk, h / set),
         .count = selection.count(chunk, h / set),
         .piece = piece_of(chunk.most_selected()),
         .completed = completed ? completer_.part(h) : AttentionPart{}});
  }
}

void Attention::select(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection, Rows out) {
  add_dense(chunk);
  run_items(q, kv, out, scores_.as<float>());
  selector_.select(RowScores{scores_.as<float>(), score_stride_, maximum_.data(), sum_.data(), scale_}, chunk,
                   chunk.policy, selection);
}

void Attention::scan(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection, Rows out) {
  const float* const queries = q.row(chunk.first_row);
  bool completed = false;
  if (chunk.policy.completion) {
    completed =
        scan_.complete(chunk, queries, kv, scores_.as<float>(), score_stride_, requests_, completer_, selection);
  } else {
    scan_.select(chunk, queries, kv, options_.cap, scores_.as<float>(), score_stride_, selection);
  }
  add_sparse(chunk, selection, completed);
  run_items(q, kv, out, nullptr);
}

void Attention::attend(const Batch& batch, int layer, LayerOptions options, Rows q, KvLayer kv,
                       const Selection& selection, Rows out) {
  options_ = options;
  take_shape(kv);
  requests_.begin(kv);
  int wave = 0;
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.rows > kShortChunk || selects(chunk.role(layer))) continue;
    if (wave + chunk.rows > kWave) {
      run_items(q, kv, out, nullptr);
      wave = 0;
    }
    if (chunk.role(layer) == Role::Sparse) {
      add_sparse(chunk, selection);
    } else {
      add_dense(chunk);
    }
    wave += chunk.rows;
  }
  if (wave > 0) run_items(q, kv, out, nullptr);
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.role(layer) == Role::Select) select(chunk, q, kv, selection, out);
    if (chunk.role(layer) == Role::Scan) scan(chunk, q, kv, selection, out);
  }
}

}  // namespace tidal
