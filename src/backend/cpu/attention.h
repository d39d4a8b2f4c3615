// Attention of the short chunks of a batch: decoding by every role.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "backend/cpu/attend_rows.h"
#include "backend/cpu/completion.h"
#include "backend/cpu/kv_requests.h"
#include "backend/cpu/scan.h"
#include "backend/cpu/selector.h"
#include "backend/cpu/short_chunk.h"

namespace tidal {

/// What a layer's attention has of its own.
struct LayerOptions {
  int window = 0;                      ///< Hyperparameters::window()
  float cap = 0;                       ///< Hyperparameters::product_cap()
  const float* sink_logits = nullptr;  ///< [heads], of Backend::attend(); null: none
};

/// Short chunks (up to kShortChunk rows) go row by row through attend_rows(), split over KV heads and ranges of the
/// context; the split depends on the context alone, so results do not depend on threads or on the batch. Long chunks
/// are left out: they go through prefill_attention().
class Attention {
 public:
  explicit Attention(int threads)
      : threads_(threads), selector_(threads), scan_(threads, selector_), completer_(threads, selector_) {}

  void reserve(const Hyperparameters& hp, int max_context);

  /// Backend::attend() of the short chunks.
  void attend(const Batch& batch, int layer, LayerOptions options, Rows q, KvLayer kv, const Selection& selection,
              Rows out);
  /// Of the layer that attend() was called for last; end() is for whoever has read all of its K and V.
  KvRequests& requests() { return requests_; }

 private:
  /// One thread's piece of work: some heads of one row over some positions.
  struct Item {
    const Chunk* chunk;
    int row;                  // of the batch
    int first_head, heads;    // query heads, all of one KV head
    const int32_t* selected;  // positions to read, or null: [begin, end) of the context
    int begin, end;
    int parts;       // pieces of this row and these heads, this one included
    bool completed;  // behind these is a part that is there already
    int first_part;  // index of the first of them
    int part;        // index of this one
    int counter;     // index of their common counter
  };

  /// What the rows of a chunk read: row r the last positions before `count` + r, all of them or a window's.
  struct Reads {
    const int32_t* selected = nullptr;  // of these; or null: of the context
    int count;
    int piece;  // positions of one; pieces begin at multiples of it, so that a row's cut depends on the row alone
    int window = 0;
    AttentionPart completed = {nullptr, nullptr, nullptr};  // of the query heads, or null: a further part

    int end(int row) const { return count + row; }
    int begin(int row) const { return window > 0 ? std::max(0, end(row) - window) : 0; }
    int first_piece(int row) const { return begin(row) / piece; }
    int end_piece(int row) const { return (end(row) + piece - 1) / piece; }
    int pieces(int row) const { return end_piece(row) - first_piece(row); }
  };

  /// Of the layer in work.
  void take_shape(const KvLayer& kv);
  void add_dense(const Chunk& chunk);
  /// completed: with completer_'s part.
  void add_sparse(const Chunk& chunk, const Selection& selection, bool completed = false);
  void select(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection, Rows out);
  void scan(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection, Rows out);
  /// Heads [first_head, first_head + heads) of one KV head, for the first `rows` rows of a chunk.
  void add(const Chunk& chunk, int rows, int first_head, int heads, const Reads& reads);
  /// rows[i]: K/V of the item's i-th position.
  void find_rows(const Item& item, KvLayer kv, const std::byte** rows) const;
  void run_items(Rows q, KvLayer kv, Rows out, float* scores);
  void run_item(const Item& item, Rows q, KvLayer kv, Rows out, float* scores);
  /// Of K and V in a file: the rows of the selected positions, and the first tasks' of others.
  void ask_for_items();
  void ask_for_task(size_t task) const;
  void copy_part(const AttentionPart& from, int heads, const AttentionPart& to) const;
  size_t part_floats() const;
  AttentionPart part(int index) const;

  int threads_;
  KvRequests requests_;
  int heads_ = 0;
  int group_ = 0, head_dim_ = 0;  // of the layer in work, as all behind
  float scale_ = 1;
  LayerOptions options_;
  std::vector<Item> items_;
  std::vector<int> task_ends_;  // behind the last item of every task: what one thread does in one go
  int parts_ = 0, counters_ = 0;
  std::unique_ptr<std::atomic<int>[]> done_;  // finished pieces per counter
  Buffer part_memory_;                        // [parts][part_floats()]
  int64_t score_stride_ = 0;                  // floats from one head's scores to the next one's
  Buffer scores_;                             // [heads, score_stride_], raw q.k of the row being selected for
  std::vector<float> maximum_, sum_;          // [heads], softmax statistics of that row
  Selector selector_;
  Scan scan_;
  Completer completer_;
};

}  // namespace tidal
