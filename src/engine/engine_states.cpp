// What the engine does for recurrent layers, whose state goes forward only, and for layers that keep their window only:
// earlier ones are saved, and what is needed between them is computed again.
#include <algorithm>

#include "core/error.h"
#include "engine/engine.h"

namespace tidal {
namespace {

constexpr int kSaveEvery = 256;  // tokens; a state is as large as the K/V of some thousand

}  // namespace

int Engine::prompt_rows(int position, int rows, bool last) const {
  if (!pool_->states() || !last) return rows;
  // The last token is computed whatever a cache has, for its logits.
  const int to_block = (position + rows - 1) / kBlockTokens * kBlockTokens - position;
  return to_block >= kBlockTokens ? to_block : rows;
}

int Engine::text_rows(int position, int rows) const {
  return pool_->states() ? std::min(rows, kSaveEvery - position % kSaveEvery) : rows;
}

void Engine::restore(Sequence& sequence, int position) {
  if (!pool_->states() && !pool_->windows()) return;
  int at = sequence.begin_of_pass(position);
  if (pool_->states()) sequence.states().return_to(at);
  while (at < position) {
    const int most = std::min(chunk(), position - at);
    // What is clean is computed again as it was computed, so that its K/V stay as they are.
    const int clean = sequence.clean() - at;
    Stretches::Again again{text_rows(at, most), {}};
    if (clean > 0) again = sequence.stretches().again(at, std::min(most, clean), backend_.decode_rows());
    if (pool_->states()) again.rest = {};  // a state behind more than the text is of no use
    run_again(sequence, at, again.rows, again.rest);
    at += again.rows;
  }
  sequence.windows().hold(position);
}

void Engine::go_back(Sequence& sequence, int length) {
  sequence.truncate(length);
  try {
    restore(sequence, length);
  } catch (...) {
    sequence.release_reserved();
    throw;
  }
  sequence.release_reserved();
}

void Engine::run_again(Sequence& sequence, int position, int rows, std::span<const Token> rest) {
  const int end = position + rows + static_cast<int>(rest.size());
  sequence.reserve(position, std::max(0, end - sequence.length()));
  sequence.windows().reserve(position, end);
  SequenceStates& states = sequence.states();
  if (pool_->states()) states.reserve();
  pool_->prepare(sequence.blocks(), static_cast<size_t>(position / kBlockTokens));
  const auto tokens = sequence.tokens().subspan(static_cast<size_t>(position), static_cast<size_t>(rows));
  tokens_.assign(tokens.begin(), tokens.end());
  tokens_.insert(tokens_.end(), rest.begin(), rest.end());
  positions_.clear();
  for (int p = position; p < end; ++p) positions_.push_back(p);
  Chunk chunk;
  chunk.rows = end - position;
  chunk.position = position;
  tables_.clear();
  tables_.set(*pool_, sequence.blocks().first(blocks_for(chunk.context())), chunk);
  chunk.cached = std::max(chunk.context(), sequence.length());
  if (pool_->windows()) chunk.window_blocks = sequence.windows().blocks().first(chunk.blocks.size());
  if (pool_->states()) chunk.state = states.begin();
  // Nobody watches: it is none of the passes that were asked for.
  forward_->run({tokens_, positions_, {&chunk, 1}, {}}, pool_->layers(), {});
  sequence.mark_clean(std::max(sequence.clean(), position + rows));
  end_state(sequence, chunk);
  chunk.rows = rows;
  record(sequence, chunk);
  end_windows(sequence, chunk);
  if (!rest.empty()) sequence.release_reserved();
}

void Engine::reserve_state(const Request& request) {
  if (!pool_->states()) return;
  SequenceStates& states = request.sequence->states();
  const int clean = request.sequence->clean();
  // Sparse tokens will be corrected from here on, and drafts that do not hold are taken back.
  const bool pollutes = request.decode && plan_of(request).sparse_at(request.sequence->length() + 1);
  const bool drafts = request.all_logits && request.correct + request.tokens.size() > 1;
  if (states.position() == clean && (pollutes || drafts)) states.mark();
  states.reserve();
}

void Engine::end_state(Sequence& sequence, const Chunk& chunk) {
  if (!pool_->states()) return;
  SequenceStates& states = sequence.states();
  const int end = chunk.context();
  states.advance(end);
  if (sequence.clean() < end) return;
  // At the ends of blocks: only there others can go on from it (PrefixCache).
  if (end % kBlockTokens == 0 && (chunk.rows >= kBlockTokens || end % kSaveEvery == 0)) states.save();
}

void Engine::record(Sequence& sequence, const Chunk& chunk) {
  if ((!pool_->states() && !pool_->windows()) || sequence.clean() < chunk.context()) return;
  const auto tokens = sequence.tokens().subspan(static_cast<size_t>(chunk.position), static_cast<size_t>(chunk.rows));
  sequence.stretches().record(chunk.position, tokens, backend_.decode_rows());
}

void Engine::end_windows(Sequence& sequence, const Chunk& chunk) {
  if (!pool_->windows()) return;
  SequenceWindows& windows = sequence.windows();
  const int end = chunk.context();
  if (sequence.clean() >= end) {
    const bool passes = end / kSaveEvery != chunk.position / kSaveEvery;
    if (chunk.rows >= kBlockTokens || passes) windows.save(end);
  } else if (sequence.clean() < end - SequenceWindows::kSlack) {
    windows.save(sequence.clean());  // for the correction that may come
  }
  windows.advance(end);
}

}  // namespace tidal
